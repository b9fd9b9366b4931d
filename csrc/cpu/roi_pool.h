#pragma once

#include <cstdint>

#include "cpu/roi_tile.h"

namespace atrousops::cpu {

struct RoiPoolArgs {
  int64_t pooled_height, pooled_width;
  // Bin p of RoI k pools rows [begin, end) of rows[k * pooled_height + p], likewise columns.
  const Span* rows;
  const Span* columns;
  // The positions of the pooled values, in the same order but from channel 0 on: y * width + x, or -1.
  int32_t* argmax;
};

// RoIs rois[begin] .. rois[end] in that order, one block of channels.
ATROUSOPS_DECLARE_KERNEL(roi_pool_forward, const RoiPoolArgs& args, const RoiBlock& block, const int64_t* rois,
                         int64_t begin, int64_t end)
// Adds to the tile.
ATROUSOPS_DECLARE_KERNEL(roi_pool_backward, const RoiPoolArgs& args, const RoiBlock& block, const int64_t* rois,
                         int64_t begin, int64_t end)

}  // namespace atrousops::cpu
