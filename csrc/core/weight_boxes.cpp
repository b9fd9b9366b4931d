#include "core/weight_boxes.h"

#include <algorithm>
#include <cmath>

#include "core/checked.h"

namespace atrousops::core {
namespace {

constexpr int64_t kMostSplits = 64, kLeastColumns = 64, kMostReach = 256;
// The expected share of the tensor cores' peak by number of columns, and bytes per second of partial sums. Neither is
// measured.
struct Columns {
  int64_t count;
  double share;
};
constexpr Columns kColumns[] = {{256, 1.0}, {128, 0.9}, {kLeastColumns, 0.7}};
constexpr double kCopy = 3e12;
// The minimum share of a tile's channels that must exist.
constexpr double kFilled = 0.6;

// Boxes along an axis, of all its taps together.
int64_t boxes_along(const AxisPhase& phase, int64_t size) {
  int64_t count = 0;
  for (const AxisTap& t : phase.taps)
    if (t.begin < t.end) count += ceil_div(t.end - t.begin, size);
  return count;
}

double filled(int64_t n, int64_t tile) {
  return static_cast<double>(n) / static_cast<double>(ceil_div(n, tile) * tile);
}

// Chooses the shape of kWeightBox positions that needs the fewest boxes.
void choose_box(const Problem& p, WeightBoxPlan& plan) {
  std::array<AxisPhase, kAxes> phases;
  for (size_t i = 0; i < kAxes; ++i) phases[i] = axis_phases(p.kind, p.axis[i])[0];
  plan.steps = INFINITY;
  for (int64_t x = 1; x <= kWeightBox; x *= 2)
    for (int64_t y = 1; x * y <= kWeightBox; y *= 2)
      for (int64_t z = 1; x * y * z <= kWeightBox; z *= 2) {
        const Box box{{z, y, x}, kWeightBox / (x * y * z)};
        auto steps = static_cast<double>(ceil_div(p.n, box.images));
        bool fits = true;
        for (size_t i = 0; i < kAxes; ++i) {
          steps *= static_cast<double>(boxes_along(phases[i], box.size[i]));
          fits = fits && box.size[i] * p.axis[i].stride <= kMostReach;
        }
        if (fits && steps < plan.steps) plan.box = box, plan.steps = steps;
      }
}

}  // namespace

WeightBoxPlan plan_weight_boxes(const Problem& p, int64_t multiprocessors, double rate) {
  WeightBoxPlan best;
  choose_box(p, best);
  const int64_t taps = p.kernel_positions(), units = std::max<int64_t>(multiprocessors, 1);
  const double steps = best.steps / static_cast<double>(taps);
  best.seconds = INFINITY;
  for (const Columns& c : kColumns) {
    const int64_t blocks = ceil_div(p.k, kWeightRows) * ceil_div(p.c, c.count) * taps;
    const double work = 2.0 * static_cast<double>(kWeightRows * c.count * kWeightBox) * steps /
                        (rate / static_cast<double>(units) * c.share);
    for (int64_t splits = 1; splits <= kMostSplits && (splits == 1 || steps >= 4.0 * splits); splits *= 2) {
      const auto waves = static_cast<double>(ceil_div(blocks * splits, units));
      const double seconds = waves * work / splits + 8.0 * splits * static_cast<double>(p.weight_elements()) / kCopy;
      if (seconds < best.seconds) best.columns = c.count, best.splits = splits, best.seconds = seconds;
    }
  }
  return best;
}

const char* weight_boxes_cannot(const Problem& p, int64_t itemsize) {
  if (itemsize != 2) return "wgmma takes operands across their lines in 16-bit types only";
  if (p.groups > 1) return "more than one group";
  if (p.c % 8 != 0 || p.k % 8 != 0) return "TMA takes rows of whole 16 bytes: channels in multiples of 8";
  if (filled(p.k, kWeightRows) * filled(p.c, kLeastColumns) < kFilled) return "too few channels to fill a tile";
  if (p.n * p.out_positions() < kWeightBox) return "too few positions to fill a step";
  for (const Axis& a : p.axis) {
    if (a.stride > 8) return "TMA steps over at most 8 positions";
    if (std::max({a.in, a.out, a.kernel, a.dilation, a.pad_lo}) > (int64_t{1} << 30)) return "coordinates beyond 2^30";
  }
  return nullptr;
}

}  // namespace atrousops::core
