#include "core/boxes.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "core/checked.h"

namespace atrousops::core {
namespace {

constexpr int64_t kSpan = 128;                                                      // bytes of channels in a step
constexpr int64_t kSplits[] = {1, 2, 3, 4, 5, 6, 8, 10, 12, 16}, kMostSplits = 16;  // parts of a sum
constexpr int64_t kLeastSteps = 8;                                                  // of a part of a sum
constexpr int64_t kSimulated = 32;  // rounds beyond which finishing times are an average
constexpr size_t kFinalists = 8;    // boxes of each shape whose finishing times are computed
constexpr int64_t kLeastPositions = 64;
constexpr int64_t kMostStride = 8;                    // of a tensor map
constexpr int64_t kMostExtent = 256;                  // of its boxes, strides included
constexpr double kSumLaunch = 3e-6, kSumCopy = 3e12;  // seconds of the launch that adds parts; its bytes/s

// The time of a tile outside its steps, in steps. Counted in the machine code: a warp of 128 rows issues about 180
// instructions plus 1.3 per column, two warps share an issue slot, and the last products take about 300 cycles to
// arrive; a step takes 4 cycles per column.
double tile_steps(int64_t columns) { return (2 * 180 + 300) / (4.0 * static_cast<double>(columns)) + 2 * 1.3 / 4; }

// The taps that are live somewhere in [begin, end).
AxisSegment piece_of(const AxisPhase& p, int64_t begin, int64_t end) {
  AxisSegment piece{begin, end, 0, 0};
  for (const AxisSegment& s : p.segments) {
    if (s.end <= begin || s.begin >= end || s.taps() == 0) continue;
    piece.tap_begin = piece.taps() == 0 ? s.tap_begin : std::min(piece.tap_begin, s.tap_begin);
    piece.tap_end = std::max(piece.tap_end, s.tap_end);
  }
  return piece;
}

// The cheapest pieces from a position on: by their taps, then by their number. A piece only needs to end where the taps
// change or where it is full, because extending it up to there is free. Full pieces in a stretch of constant taps form
// one run.
class Cutter {
 public:
  Cutter(const AxisPhase& phase, int64_t size) : phase_(phase), size_(size) {}

  std::vector<AxisSegment> runs() {
    std::vector<AxisSegment> all;
    for (int64_t at = 0; at < phase_.count; at = all.back().end) all.push_back(best(at).first);
    return all;
  }

 private:
  using Cost = std::pair<int64_t, int64_t>;
  struct Choice {
    AxisSegment first;
    Cost cost;
  };
  // Computed backwards over reachable positions.
  const Choice& best(int64_t at) {
    if (const auto known = known_.find(at); known != known_.end()) return known->second;
    std::vector<int64_t> starts = {at};
    std::map<int64_t, bool> seen;
    while (!starts.empty()) {
      const int64_t start = starts.back();
      bool ready = true;
      for (const int64_t end : ends(start))
        if (end < phase_.count && !known_.count(end)) {
          starts.push_back(end);
          ready = false;
        }
      if (!ready) continue;
      starts.pop_back();
      if (!known_.count(start)) settle(start);
    }
    return known_.at(at);
  }
  std::vector<int64_t> ends(int64_t begin) const {
    const int64_t full = std::min(begin + size_, phase_.count);
    std::vector<int64_t> all = {full};
    for (const AxisSegment& s : phase_.segments) {
      if (s.begin <= begin && begin + size_ <= s.end) return {begin + (s.end - begin) / size_ * size_};
      if (begin < s.begin && s.begin < full) all.push_back(s.begin);
    }
    return all;
  }
  void settle(int64_t begin) {
    Choice chosen{{}, {std::numeric_limits<int64_t>::max(), 0}};
    for (const int64_t end : ends(begin)) {
      const AxisSegment run = piece_of(phase_, begin, end);
      const int64_t pieces = ceil_div(end - begin, size_);
      Cost cost = end < phase_.count ? known_.at(end).cost : Cost{0, 0};
      cost.first += run.taps() * pieces;
      cost.second += pieces;
      if (cost < chosen.cost) chosen = {run, cost};
    }
    known_.emplace(begin, chosen);
  }
  const AxisPhase& phase_;
  int64_t size_;
  std::map<int64_t, Choice> known_;
};
}  // namespace

AxisCut cut_axis(const AxisPhase& phase, int64_t size) {
  AxisCut cut;
  std::map<int64_t, int64_t, std::greater<>> by_taps;
  bool full = false;  // the last piece
  for (const AxisSegment& run : Cutter(phase, size).runs()) {
    by_taps[run.taps()] += ceil_div(run.length(), size);
    AxisSegment* last = full ? &cut.runs.back() : nullptr;
    if (last && last->tap_begin == run.tap_begin && last->tap_end == run.tap_end) {
      last->end = run.end;
    } else {
      cut.runs.push_back(run);
    }
    full = run.length() % size == 0;
  }
  for (const auto& [taps, count] : by_taps) cut.pieces.push_back({taps, count});
  return cut;
}

AxisPhase without_dead_taps(AxisPhase p) {
  std::vector<int64_t> now;  // where taps have gone
  std::vector<AxisTap> live;
  for (const AxisTap& t : p.taps) {
    now.push_back(static_cast<int64_t>(live.size()));
    if (t.begin < t.end) live.push_back(t);
  }
  now.push_back(static_cast<int64_t>(live.size()));
  for (AxisSegment& s : p.segments) {
    s.tap_begin = now[s.tap_begin];
    s.tap_end = now[s.tap_end];
  }
  p.taps = std::move(live);
  return p;
}

// Numbers are guesses until they are measured on a GPU; only their ratios matter.
const std::vector<TileShape>& tile_shapes() {
  static const std::vector<TileShape> shapes = {
#include "core/wgmma_tiles.inc"
  };
  return shapes;
}

namespace {

struct AxisSums {
  std::vector<Pieces> pieces;
  int64_t count = 0, taps = 0, most = 0;
};

AxisSums sums_of(const std::vector<AxisPhase>& phases, int64_t size) {
  std::map<int64_t, int64_t, std::greater<>> by_taps;
  for (const AxisPhase& phase : phases)
    for (const Pieces& p : cut_axis(phase, size).pieces) by_taps[p.taps] += p.count;
  AxisSums sums;
  for (const auto& [taps, count] : by_taps) {
    sums.pieces.push_back({taps, count});
    sums.count += count;
    sums.taps += taps * count;
    sums.most = std::max(sums.most, taps);
  }
  return sums;
}

// Only sizes that divide the axis, or a stretch of constant taps, into equal parts: for any other size a smaller one is
// as good.
std::vector<int64_t> sizes_of(const std::vector<AxisPhase>& phases, int64_t most) {
  std::vector<int64_t> lengths, sizes = {1};
  for (const AxisPhase& p : phases) {
    lengths.push_back(p.count);
    for (const AxisSegment& s : p.segments) lengths.push_back(s.length());
  }
  for (const int64_t length : lengths)
    for (int64_t parts = ceil_div(length, most); parts <= length; ++parts) {
      const int64_t size = ceil_div(length, parts);
      sizes.push_back(size);
      // Skip to the last number of parts that gives this size.
      if (size > 1) parts = (length - 1) / (size - 1);
    }
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  while (sizes.back() > most) sizes.pop_back();
  return sizes;
}

struct Branch {
  std::array<std::vector<AxisPhase>, kAxes> phases;
  std::array<std::map<int64_t, AxisSums>, kAxes> known;

  explicit Branch(const Problem& p) {
    for (int axis = 0; axis < kAxes; ++axis)
      for (AxisPhase& phase : axis_phases(p.kind, p.axis[axis]))
        phases[axis].push_back(without_dead_taps(std::move(phase)));
  }
  const AxisSums& at(int axis, int64_t size) {
    auto& all = known[axis];
    const auto found = all.find(size);
    return found != all.end() ? found->second : all.emplace(size, sums_of(phases[axis], size)).first->second;
  }
};

class Planner {
 public:
  explicit Planner(const BoxRequest& q) : q_(q), n_(q.problems[0].n) {
    const Problem& p = q.problems[0];
    const bool swapped = p.kind == Kind::input_grad;
    width_ = swapped ? p.c : p.k;
    blocks_ = ceil_div((swapped ? p.k : p.c) * q.itemsize, kSpan);
    written_ = swapped ? p.in_positions() : p.out_positions();
    for (const Problem& each : q.problems) branches_.emplace_back(each);
    for (int axis = 0; axis < kAxes; ++axis) read_stride_[axis] = swapped ? 1 : p.axis[axis].stride;
  }

  BoxPlan best() {
    BoxPlan best;
    best.seconds = std::numeric_limits<double>::infinity();
    const auto& shapes = tile_shapes();
    for (size_t i = 0; i < shapes.size(); ++i) {
      if (shapes[i].rate <= 0 || shapes[i].columns > q_.most_columns || wider_than_needed(i)) continue;
      for (const Box& box : finalists(shapes[i]))
        for (const int64_t splits : kSplits) {
          if (splits > 1 && longest(box) < kLeastSteps * splits) break;
          const BoxPlan plan = planned(box, static_cast<int64_t>(i), splits);
          if (plan.seconds < best.seconds) best = plan;
        }
    }
    best.dense_seconds = dense_seconds(shapes[static_cast<size_t>(best.shape)]);
    best.pairs = pairs_of(q_.problems, best.box, shapes[static_cast<size_t>(best.shape)]);
    return best;
  }

 private:
  struct Ranked {
    double score, share;
    Box box;
  };
  // A narrower tile holds all channels too.
  bool wider_than_needed(size_t shape) const {
    const TileShape& s = tile_shapes()[shape];
    return std::any_of(tile_shapes().begin(), tile_shapes().end(), [&](const TileShape& other) {
      return other.rate > 0 && other.rows == s.rows && other.columns < s.columns && other.columns >= width_;
    });
  }
  std::vector<int64_t> sizes(int axis, int64_t rows) {
    std::vector<AxisPhase> all;
    for (const Branch& b : branches_) all.insert(all.end(), b.phases[axis].begin(), b.phases[axis].end());
    return sizes_of(all, std::min(rows, kMostExtent / read_stride_[axis]));
  }
  std::vector<Box> finalists(const TileShape& shape) {
    std::vector<Ranked> all;
    for (const int64_t x : sizes(2, shape.rows))
      for (const int64_t y : sizes(1, shape.rows / x))
        for (const int64_t z : sizes(0, shape.rows / (x * y))) {
          const Box box{{z, y, x}, std::min(n_, shape.rows / (x * y * z))};
          const auto copies = static_cast<double>(ceil_div(width_, shape.columns));
          const double beside = tile_steps(shape.columns), share = work(box, beside) * copies / multiprocessors();
          // With few tiles, sums will be split.
          const double splits =
              std::clamp(std::floor(multiprocessors() / (count(box) * copies)), 1.0, double{kMostSplits});
          all.push_back({std::max(share, static_cast<double>(longest(box)) / splits + beside), share, box});
        }
    std::stable_sort(all.begin(), all.end(), [](const Ranked& a, const Ranked& b) {
      return std::pair(a.score, a.share) < std::pair(b.score, b.share);
    });
    if (all.size() > kFinalists) all.resize(kFinalists);
    std::vector<Box> boxes;
    for (const Ranked& r : all) boxes.push_back(r.box);
    return boxes;
  }
  double multiprocessors() const { return static_cast<double>(q_.multiprocessors); }
  int64_t images(const Box& box) const { return ceil_div(n_, box.images); }
  // Steps of the longest tile.
  int64_t longest(const Box& box) {
    int64_t most = 0;
    for (Branch& b : branches_)
      most = std::max(most, b.at(0, box.size[0]).most * b.at(1, box.size[1]).most * b.at(2, box.size[2]).most);
    return most * blocks_;
  }
  // Tiles of one block of channels.
  double count(const Box& box) {
    double all = 0;
    for (Branch& b : branches_)
      all += static_cast<double>(b.at(0, box.size[0]).count * b.at(1, box.size[1]).count * b.at(2, box.size[2]).count);
    return all * static_cast<double>(images(box));
  }
  // Steps of all tiles of one block of channels, with what they take beside.
  double work(const Box& box, double beside) {
    double steps = 0;
    for (Branch& b : branches_) {
      const AxisSums &z = b.at(0, box.size[0]), &y = b.at(1, box.size[1]), &x = b.at(2, box.size[2]);
      steps += static_cast<double>(z.taps * y.taps * x.taps * blocks_) +
               static_cast<double>(z.count * y.count * x.count) * beside;
    }
    return steps * static_cast<double>(images(box));
  }
  // Tiles of one block of channels, by falling taps.
  std::map<int64_t, int64_t, std::greater<>> tiles(const Box& box) {
    std::map<int64_t, int64_t, std::greater<>> all;
    for (Branch& b : branches_)
      for (const Pieces& z : b.at(0, box.size[0]).pieces)
        for (const Pieces& y : b.at(1, box.size[1]).pieces)
          for (const Pieces& x : b.at(2, box.size[2]).pieces)
            all[z.taps * y.taps * x.taps] += z.count * y.count * x.count * images(box);
    return all;
  }
  // Tiles go to multiprocessors longest first, forwards and backwards in turn, as the kernel takes them.
  double finishing(const std::map<int64_t, int64_t, std::greater<>>& tiles, int64_t copies, int64_t splits,
                   double beside) const {
    const int64_t p = q_.multiprocessors;
    int64_t count = 0;
    double sum = 0;
    for (const auto& [taps, n] : tiles) {
      count += n * copies * splits;
      sum += static_cast<double>(n * copies * splits) * cost(taps, splits, beside);
    }
    if (count > kSimulated * p)
      return sum / static_cast<double>(p) + (tiles.empty() ? 0 : cost(tiles.begin()->first, splits, beside));
    std::vector<double> loads(static_cast<size_t>(p), 0.0);
    int64_t index = 0;
    for (const auto& [taps, n] : tiles)
      for (int64_t i = 0; i < n * copies * splits; ++i, ++index) {
        const int64_t round = index / p, at = index % p;
        loads[static_cast<size_t>(round % 2 == 0 ? at : p - 1 - at)] += cost(taps, splits, beside);
      }
    return *std::max_element(loads.begin(), loads.end());
  }
  double cost(int64_t taps, int64_t splits, double beside) const {
    return static_cast<double>(taps * blocks_) / static_cast<double>(splits) + beside;
  }
  BoxPlan planned(const Box& box, int64_t shape, int64_t splits) {
    const TileShape& s = tile_shapes()[static_cast<size_t>(shape)];
    const int64_t copies = ceil_div(width_, s.columns);
    const auto by_taps = tiles(box);
    BoxPlan plan{box, shape, splits};
    for (const auto& [taps, n] : by_taps) {
      plan.tiles += n * copies * splits;
      plan.steps += static_cast<double>(n * copies * taps * blocks_);
    }
    plan.beside = tile_steps(s.columns);
    plan.finish = finishing(by_taps, copies, splits, plan.beside);
    plan.step = step_seconds(s);
    plan.seconds = plan.finish * plan.step + sum_seconds(splits);
    return plan;
  }
  double step_seconds(const TileShape& s) const {
    const double depth = static_cast<double>(kSpan / q_.itemsize);
    return 2.0 * static_cast<double>(s.rows * s.columns) * depth * multiprocessors() / (q_.rate * s.rate);
  }
  double sum_seconds(int64_t splits) const {
    if (splits == 1) return 0;
    const double sums = 4.0 * static_cast<double>(n_ * written_) * static_cast<double>(width_);
    return kSumLaunch + sums * static_cast<double>(q_.problems.size()) * static_cast<double>(2 * splits) / kSumCopy;
  }
  // Every tap computed for flattened rows, with the best number of parts.
  double dense_seconds(const TileShape& s) const {
    double tiles = 0, taps = 0;
    for (const Problem& p : q_.problems) {
      tiles += static_cast<double>(ceil_div(n_ * written_, s.rows) * ceil_div(width_, s.columns));
      // Each position of an input gradient has a share of the taps.
      const double each = static_cast<double>(p.out_positions()) / static_cast<double>(written_);
      taps = std::max(taps, static_cast<double>(p.kernel_positions()) * (p.kind == Kind::input_grad ? each : 1.0));
    }
    double best = std::numeric_limits<double>::infinity();
    for (const int64_t splits : kSplits) {
      const double part = taps * static_cast<double>(blocks_) / static_cast<double>(splits) + tile_steps(s.columns);
      const double rounds = std::ceil(tiles * static_cast<double>(splits) / multiprocessors());
      best = std::min(best, rounds * part * step_seconds(s) + sum_seconds(splits));
    }
    return best;
  }

  const BoxRequest& q_;
  int64_t n_, width_ = 0, blocks_ = 0, written_ = 0;
  std::array<int64_t, kAxes> read_stride_{};
  std::vector<Branch> branches_;
};

}  // namespace

BoxPlan plan_boxes(const BoxRequest& request) { return Planner(request).best(); }

const char* boxes_cannot(const Problem& p, int64_t itemsize) {
  if (p.kind == Kind::weight_grad) return "the weight gradient has another kernel";
  if (p.groups > 1) return "more than one group";
  const bool swapped = p.kind == Kind::input_grad;
  const int64_t depth = swapped ? p.k : p.c, width = swapped ? p.c : p.k;
  if (depth * itemsize % 16 != 0) return "TMA takes rows of whole 16 bytes: channels by 8 (4 of fp32, 16 of bytes)";
  if (depth * itemsize < kSpan / 2 || width < 32) return "too few channels to fill a tile";
  if (p.n * (swapped ? p.in_positions() : p.out_positions()) < kLeastPositions)
    return "too few positions to fill a tile";
  for (const Axis& a : p.axis) {
    if (!swapped && a.stride > kMostStride) return "TMA steps over at most 8 positions";
    if (std::max({a.in, a.out, a.kernel, a.dilation, a.pad_lo}) > (int64_t{1} << 30)) return "coordinates beyond 2^30";
  }
  return nullptr;
}

}  // namespace atrousops::core
