// Feature planes rearranged for the RoI operators: kLanes consecutive channels per pixel, in the compute type. One
// block of a 200 x 200 map is 2.5 MB and stays in the cache while all RoIs read it; the whole map would not.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "stable/dispatch.h"

namespace atrousops::cpu {

constexpr int64_t kLanes = 16;

// The columns [begin, end) of a row that some RoI touches.
struct Span {
  int64_t begin, end;
};

// Rows of one image, channels [0, lanes) from `plane` on, and their copy `tile` with kLanes channels a pixel.
struct RoiTileArgs {
  ScalarType dtype;
  void* plane;
  int64_t channel_stride, row_stride, pixel_stride;
  int64_t lanes;
  int64_t width;
  const Span* spans;  // one a row
  void* tile;         // its row 0 is the row `first_row` of the plane
  int64_t first_row;
};

// One block of channels of one image, with both sides of a RoI kernel. Strides in elements.
struct RoiBlock {
  ScalarType dtype;
  int64_t lanes;
  // The pooled side, (K, C, pooled height, pooled width), at the block's channel 0.
  void* pooled;
  int64_t roi_stride, channel_stride, bin_stride;
  // The feature side: the tile of rows [row_begin, row_end), or with `direct` the features themselves.
  void* feature;
  bool direct;
  int64_t feature_channel_stride, feature_row_stride, feature_pixel_stride;
  int64_t width, row_begin, row_end;
  void* scratch;  // of one worker
};

// Copies the touched columns of rows [begin, end) into the tile; missing channels become zero.
ATROUSOPS_DECLARE_KERNEL(roi_pack, const RoiTileArgs& args, int64_t begin, int64_t end)
// Zeroes the touched columns of the tile's rows [begin, end).
ATROUSOPS_DECLARE_KERNEL(roi_clear, const RoiTileArgs& args, int64_t begin, int64_t end)
// Writes rows [begin, end) of the plane: the tile in the touched columns, zero elsewhere.
ATROUSOPS_DECLARE_KERNEL(roi_unpack, const RoiTileArgs& args, int64_t begin, int64_t end)

}  // namespace atrousops::cpu
