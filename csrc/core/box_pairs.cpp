// Which bytes the two blocks of a pair can share.
#include <algorithm>

#include "core/boxes.h"

namespace atrousops::core {
namespace {

// Whether each region, a run of every axis by all images, has an even number of boxes.
bool boxes_in_twos(const Problem& p, const Box& box) {
  if (ceil_div(p.n, box.images) % 2 == 0) return true;
  for (int axis = 0; axis < kAxes; ++axis) {
    bool even = true;
    for (AxisPhase& phase : axis_phases(p.kind, p.axis[axis]))
      for (const AxisSegment& run : cut_axis(without_dead_taps(std::move(phase)), box.size[axis]).runs)
        even = even && ceil_div(run.length(), box.size[axis]) % 2 == 0;
    if (even) return true;
  }
  return false;
}

}  // namespace

Pairs pairs_of(const std::vector<Problem>& problems, const Box& box, const TileShape& shape) {
  const Problem& first = problems[0];
  const bool map = ceil_div(first.kind == Kind::input_grad ? first.c : first.k, shape.columns) % 2 == 0;
  if (map && shape.columns <= shape.rows) return Pairs::map;
  const bool weights =
      std::all_of(problems.begin(), problems.end(), [&](const Problem& p) { return boxes_in_twos(p, box); });
  return weights ? Pairs::weights : map ? Pairs::map : Pairs::none;
}

}  // namespace atrousops::core
