#include <algorithm>
#include <limits>

#include "core/boxes.h"
#include "core/checked.h"
#include "core/phases.h"
#include "cuda/conv_tables.h"
#include "cuda/launch.h"

namespace atrousops::cuda {
namespace {

constexpr int kChunk = 896;  // words that one launch carries
struct ConvChunk {
  int32_t count, word[kChunk];
};

__global__ void conv_table_write(const __grid_constant__ ConvChunk chunk, int32_t* dst) {
  for (int i = threadIdx.x; i < chunk.count; i += blockDim.x) dst[i] = chunk.word[i];
}

int32_t narrow(int64_t v) {
  STD_TORCH_CHECK(v >= std::numeric_limits<int32_t>::min() && v <= std::numeric_limits<int32_t>::max(),
                  "conv: CUDA kernels take coordinates and tiles up to 2^31; got ", v);
  return static_cast<int32_t>(v);
}

using Words = std::vector<int32_t>;

void add_taps(Words& words, const std::vector<core::AxisPhase>& phases) {
  for (const core::AxisPhase& phase : phases)
    for (const core::AxisTap& t : phase.taps) {
      // Nothing reads through a dead tap: its displacement may be anything, also beyond 32 bits.
      const bool live = t.begin < t.end;
      const int64_t delta = live ? phase.q0 + t.delta : 0;
      words.insert(words.end(), {narrow(t.r), narrow(delta), narrow(live ? t.begin : 0), narrow(live ? t.end : 0)});
    }
}

// `first` of an axis' taps are those of other branches.
void add_segments(Words& words, const std::vector<core::AxisPhase>& phases, int64_t first = 0) {
  for (const core::AxisPhase& phase : phases) {
    for (const core::AxisSegment& s : phase.segments)
      words.insert(words.end(), {narrow(s.begin), narrow(s.length()), narrow(phase.p0), narrow(first + s.tap_begin),
                                 narrow(first + s.tap_end)});
    first += static_cast<int64_t>(phase.taps.size());
  }
}

void add_residues(Words& words, const std::vector<core::AxisPhase>& phases) {
  int64_t first = 0;
  for (const core::AxisPhase& phase : phases) {
    const int64_t end = first + static_cast<int64_t>(phase.taps.size());
    words.insert(words.end(), {narrow(first), narrow(end)});
    first = end;
  }
}

struct RegionTiles {
  int32_t segment[kAxes], branch;
  int64_t taps, tiles;
};

// Every product of three segments, with as many tiles as count(lengths) says; `first` of each axis' segments are those
// of other branches.
template <class Count>
void add_products(std::vector<RegionTiles>& regions, const core::Phases& phases, const core::Vec3& first,
                  int32_t branch, const Count& count) {
  std::vector<core::AxisSegment> all[kAxes];
  for (int axis = 0; axis < kAxes; ++axis)
    for (const core::AxisPhase& phase : phases.axis[axis])
      all[axis].insert(all[axis].end(), phase.segments.begin(), phase.segments.end());
  for (size_t i = 0; i < all[0].size(); ++i)
    for (size_t j = 0; j < all[1].size(); ++j)
      for (size_t l = 0; l < all[2].size(); ++l) {
        const core::AxisSegment &a = all[0][i], &b = all[1][j], &c = all[2][l];
        const int64_t tiles = count({a.length(), b.length(), c.length()});
        const auto at = [&](size_t index, int axis) { return narrow(first[axis] + static_cast<int64_t>(index)); };
        if (tiles > 0)
          regions.push_back({{at(i, 0), at(j, 1), at(l, 2)}, branch, a.taps() * b.taps() * c.taps(), tiles});
      }
}

void add_regions(ConvPlan& plan, std::vector<RegionTiles> regions) {
  std::stable_sort(regions.begin(), regions.end(),
                   [](const RegionTiles& a, const RegionTiles& b) { return a.taps > b.taps; });
  int64_t tiles = 0;
  for (const RegionTiles& r : regions) {
    plan.words.insert(plan.words.end(), {narrow(tiles), r.segment[0], r.segment[1], r.segment[2], r.branch});
    tiles += r.tiles;
    ++plan.table.regions;
  }
  plan.table.tiles = narrow(tiles);
}

void set_channels(ConvTable& t, const core::Problem& p) {
  const bool swapped = p.kind == core::Kind::input_grad;
  t.n = p.n;
  t.groups = p.groups;
  t.src_channels = (swapped ? p.k : p.c) / p.groups;
  t.dst_channels = (swapped ? p.c : p.k) / p.groups;
}

}  // namespace

ConvPlan conv_plan(const core::Problem& problem, int32_t rows_per_tile) {
  ConvPlan plan{};
  ConvTable& t = plan.table;
  set_channels(t, problem);
  t.rows_per_tile = rows_per_tile;
  const core::Phases phases = core::phases(problem);
  const auto here = [&] { return narrow(static_cast<int64_t>(plan.words.size())); };
  for (int axis = 0; axis < kAxes; ++axis) {
    const core::Axis& a = problem.axis[axis];
    t.kernel[axis] = narrow(a.kernel);
    t.dst_size[axis] = narrow(problem.kind == core::Kind::input_grad ? a.in : a.out);
    if (phases.axis[axis].empty()) continue;
    t.p[axis] = narrow(phases.axis[axis][0].p);
    t.q[axis] = narrow(phases.axis[axis][0].q);
    t.taps_at[axis] = here();
    add_taps(plan.words, phases.axis[axis]);
    t.segments_at[axis] = here();
    add_segments(plan.words, phases.axis[axis]);
    t.residues_at[axis] = here();
    add_residues(plan.words, phases.axis[axis]);
  }
  t.regions_at = here();
  if (rows_per_tile > 0) {
    std::vector<RegionTiles> regions;
    add_products(regions, phases, {0, 0, 0}, 0, [&](const core::Vec3& length) {
      return core::ceil_div(t.n * length[0] * length[1] * length[2], rows_per_tile);
    });
    add_regions(plan, std::move(regions));
  }
  t.words = here();
  return plan;
}

ConvPlan conv_box_plan(const std::vector<core::Problem>& branches, const core::Box& box) {
  ConvPlan plan{};
  ConvTable& t = plan.table;
  set_channels(t, branches[0]);
  t.rows_per_tile = narrow(box.positions() * box.images);
  std::vector<core::Phases> cut;
  for (const core::Problem& p : branches) {
    cut.emplace_back();
    for (int axis = 0; axis < kAxes; ++axis)
      for (core::AxisPhase& phase : core::axis_phases(p.kind, p.axis[axis])) {
        phase = core::without_dead_taps(std::move(phase));
        phase.segments = core::cut_axis(phase, box.size[axis]).runs;
        cut.back().axis[axis].push_back(std::move(phase));
      }
  }
  const auto here = [&] { return narrow(static_cast<int64_t>(plan.words.size())); };
  std::vector<core::Vec3> first_segment(branches.size());
  for (int axis = 0; axis < kAxes; ++axis) {
    const core::Axis& a = branches[0].axis[axis];
    t.dst_size[axis] = narrow(branches[0].kind == core::Kind::input_grad ? a.in : a.out);
    t.p[axis] = narrow(cut[0].axis[axis][0].p);
    t.q[axis] = narrow(cut[0].axis[axis][0].q);
    t.taps_at[axis] = here();
    for (const core::Phases& phases : cut) add_taps(plan.words, phases.axis[axis]);
    t.segments_at[axis] = here();
    int64_t taps = 0, segments = 0;
    for (size_t branch = 0; branch < cut.size(); ++branch) {
      first_segment[branch][axis] = segments;
      add_segments(plan.words, cut[branch].axis[axis], taps);
      for (const core::AxisPhase& phase : cut[branch].axis[axis]) {
        taps += static_cast<int64_t>(phase.taps.size());
        segments += static_cast<int64_t>(phase.segments.size());
      }
    }
  }
  t.regions_at = here();
  std::vector<RegionTiles> regions;
  for (size_t branch = 0; branch < cut.size(); ++branch)
    add_products(regions, cut[branch], first_segment[branch], narrow(static_cast<int64_t>(branch)),
                 [&](const core::Vec3& length) {
                   int64_t tiles = core::ceil_div(t.n, box.images);
                   for (int axis = 0; axis < kAxes; ++axis) tiles *= core::ceil_div(length[axis], box.size[axis]);
                   return tiles;
                 });
  add_regions(plan, std::move(regions));
  t.words = here();
  return plan;
}

void ConvPlan::upload(const Tensor& like) {
  if (table.words <= kConvWords) {
    std::copy(words.begin(), words.end(), table.word);
    return;
  }
  storage = torch::stable::empty({table.words}, ScalarType::Int, std::nullopt, like.device());
  int32_t* dst = mutable_data<int32_t>(*storage);
  table.buffer = dst;
  const Stream stream = current_stream(like);
  for (int32_t first = 0; first < table.words; first += kChunk) {
    ConvChunk chunk{};
    chunk.count = std::min(kChunk, table.words - first);
    std::copy_n(words.begin() + first, chunk.count, chunk.word);
    launch<conv_table_write>(Launch{1, 256}, stream, chunk, dst + first);
  }
}

ConvTensor conv_strides(const Tensor& t) {
  ConvTensor s{t.stride(0), t.stride(1), {0, 0, 0}};
  for (int64_t d = 2; d < t.dim(); ++d) s.axis[kAxes - t.dim() + d] = t.stride(d);
  return s;
}

ConvWeights conv_weight_strides(const core::Problem& problem, const Tensor& weight) {
  const int64_t k = weight.stride(0), c = weight.stride(1);
  const bool swapped = problem.kind == core::Kind::input_grad;
  ConvWeights s{problem.k / problem.groups * k, swapped ? c : k, swapped ? k : c, {0, 0, 0}};
  for (int64_t d = 2; d < weight.dim(); ++d) s.tap[kAxes - weight.dim() + d] = weight.stride(d);
  return s;
}

}  // namespace atrousops::cuda
