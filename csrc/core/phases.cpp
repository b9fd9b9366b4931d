#include "core/phases.h"

#include <algorithm>
#include <set>

#include "core/checked.h"

namespace atrousops::core {

int64_t AxisPhase::live_pairs() const {
  int64_t pairs = 0;
  for (const AxisTap& t : taps) pairs += t.end - t.begin;
  return pairs;
}

static void set_live_range(AxisTap& t, const AxisPhase& p) {
  const int64_t at_zero = p.q0 + t.delta;
  t.begin = std::clamp<int64_t>(ceil_div(-at_zero, p.q), 0, p.count);
  t.end = std::clamp<int64_t>(ceil_div(p.bound - at_zero, p.q), t.begin, p.count);
}

// Deltas ascend, so `begin` and `end` of the taps never increase: live taps are a range that slides along the list.
static void set_segments(AxisPhase& p) {
  std::vector<int64_t> cuts = {0, p.count};
  for (const AxisTap& t : p.taps)
    if (t.begin < t.end) cuts.insert(cuts.end(), {t.begin, t.end});
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  int64_t first = static_cast<int64_t>(p.taps.size()), last = first;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    while (first > 0 && p.taps[first - 1].begin <= cuts[i]) --first;
    while (last > 0 && p.taps[last - 1].end <= cuts[i]) --last;
    const bool live = first < last;
    p.segments.push_back({cuts[i], cuts[i + 1], live ? first : 0, live ? last : 0});
  }
}

static void finish(AxisPhase& p) {
  std::sort(p.taps.begin(), p.taps.end(), [](const AxisTap& a, const AxisTap& b) { return a.delta < b.delta; });
  for (AxisTap& t : p.taps) set_live_range(t, p);
  set_segments(p);
}

int64_t phase_count(Kind kind, const Axis& a) { return kind == Kind::input_grad ? std::min(a.stride, a.in) : 1; }

static std::vector<AxisPhase> residue_phases(const Axis& a) {
  // dx[i] = sum over r of dy[(i + pad - dilation * r) / stride] w[r], where the index is an integer.
  std::vector<AxisPhase> all;
  for (int64_t residue = 0; residue < phase_count(Kind::input_grad, a); ++residue)
    all.push_back({residue, a.stride, 0, 1, ceil_div(a.in - residue, a.stride), a.out, {}, {}});
  for (int64_t r = 0; r < a.kernel; ++r) {
    const int64_t shift = a.dilation * r - a.pad_lo;
    const int64_t residue = shift - floor_div(shift, a.stride) * a.stride;
    if (residue < static_cast<int64_t>(all.size()))
      all[residue].taps.push_back({r, (residue - shift) / a.stride, 0, 0});
  }
  return all;
}

std::vector<AxisPhase> axis_phases(Kind kind, const Axis& a) {
  std::vector<AxisPhase> all;
  if (kind == Kind::input_grad) {
    all = residue_phases(a);
  } else {
    all.push_back({0, 1, 0, a.stride, a.out, a.in, {}, {}});
    for (int64_t r = 0; r < a.kernel; ++r) all[0].taps.push_back({r, a.dilation * r - a.pad_lo, 0, 0});
  }
  for (AxisPhase& p : all) finish(p);
  return all;
}

Gathered gathered(const std::vector<AxisPhase>& phases) {
  std::set<std::vector<int64_t>> blocks;  // begin, end, displacements
  for (const AxisPhase& phase : phases)
    for (const AxisSegment& s : phase.segments) {
      std::vector<int64_t> block = {s.begin, s.end};
      for (int64_t t = s.tap_begin; t < s.tap_end; ++t) block.push_back(phase.taps[t].delta);
      blocks.insert(std::move(block));
    }
  Gathered all;
  for (const auto& b : blocks) {
    ++all.blocks;
    all.rows += b[1] - b[0];
    all.pairs += (b[1] - b[0]) * (static_cast<int64_t>(b.size()) - 2);
  }
  return all;
}

Phases phases(const Problem& problem) {
  Phases all;
  for (int i = 0; i < kAxes; ++i) all.axis[i] = axis_phases(problem.kind, problem.axis[i]);
  return all;
}

int64_t Phases::size() const {
  return static_cast<int64_t>(axis[0].size()) * static_cast<int64_t>(axis[1].size()) *
         static_cast<int64_t>(axis[2].size());
}

Phase Phases::operator[](int64_t index) const {
  Phase p;
  for (int i = kAxes - 1; i >= 0; --i) {
    const int64_t n = static_cast<int64_t>(axis[i].size());
    p[i] = &axis[i][index % n];
    index /= n;
  }
  return p;
}

double Phases::live_share(const Problem& problem) const {
  double share = 1;
  for (int i = 0; i < kAxes; ++i) {
    int64_t live = 0;
    for (const AxisPhase& p : axis[i]) live += p.live_pairs();
    share *= static_cast<double>(live) / (static_cast<double>(problem.axis[i].out) * problem.axis[i].kernel);
  }
  return share;
}

std::vector<Region> regions(const Phases& phases) {
  std::vector<Region> all;
  for (int64_t index = 0; index < phases.size(); ++index) {
    const Phase p = phases[index];
    for (const AxisSegment& a : p[0]->segments)
      for (const AxisSegment& b : p[1]->segments)
        for (const AxisSegment& c : p[2]->segments)
          all.push_back({index,
                         {a.begin, b.begin, c.begin},
                         {a.end, b.end, c.end},
                         {a.tap_begin, b.tap_begin, c.tap_begin},
                         {a.tap_end, b.tap_end, c.tap_end}});
  }
  return all;
}

static std::vector<Tap> tap_product(const Problem& problem, const Phase& p, const Vec3& begin, const Vec3& end) {
  std::vector<Tap> all;
  for (int64_t i = begin[0]; i < end[0]; ++i)
    for (int64_t j = begin[1]; j < end[1]; ++j)
      for (int64_t l = begin[2]; l < end[2]; ++l) {
        const AxisTap &a = p[0]->taps[i], &b = p[1]->taps[j], &c = p[2]->taps[l];
        all.push_back({(a.r * problem.axis[1].kernel + b.r) * problem.axis[2].kernel + c.r,
                       {a.delta, b.delta, c.delta},
                       {a.begin, b.begin, c.begin},
                       {a.end, b.end, c.end}});
      }
  return all;
}

std::vector<Tap> taps(const Problem& problem, const Phase& p) {
  Vec3 end;
  for (int i = 0; i < kAxes; ++i) end[i] = static_cast<int64_t>(p[i]->taps.size());
  return tap_product(problem, p, {0, 0, 0}, end);
}

std::vector<Tap> taps(const Problem& problem, const Phase& p, const Region& region) {
  return tap_product(problem, p, region.tap_begin, region.tap_end);
}

}  // namespace atrousops::core
