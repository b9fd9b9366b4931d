// Tiling of the weight gradient for TMA and wgmma: the reduction of a tap runs over boxes that cover the rectangle of
// positions in which it reads inside, over all images.
#pragma once

#include "core/boxes.h"

namespace atrousops::core {

// Positions and images of a box, which is one step of the reduction.
inline constexpr int64_t kWeightBox = 64;
// Channels of dy in a tile; the choices for channels of x.
inline constexpr int64_t kWeightRows = 128;

struct WeightBoxPlan {
  Box box;
  int64_t columns = 0, splits = 1;  // channels of x in a tile; blocks that share a tile's sum
  double steps = 0;                 // of all taps
  double seconds = 0;
};
// `rate`: FLOP/s of all multiprocessors.
WeightBoxPlan plan_weight_boxes(const Problem& problem, int64_t multiprocessors, double rate);

// Why a weight gradient cannot run in boxes, or null.
const char* weight_boxes_cannot(const Problem& problem, int64_t itemsize);

}  // namespace atrousops::core
