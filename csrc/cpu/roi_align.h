// RoIAlign is bilinear and its sample grid is a product, so one RoI is a matrix product with two sparse matrices:
//   pooled[p][q] = sum over rows y of A[p][y] * sum over columns x of B[q][x] * feature[y][x]
// and its gradient is the same product with A and B transposed.
#pragma once

#include <cstdint>

#include "cpu/roi_tile.h"

namespace atrousops::cpu {

// The rows of a sparse matrix for every bin of every RoI: entries first[k * bins + b] .. first[k * bins + b + 1].
struct RoiTaps {
  int64_t bins;
  const int64_t* first;
  const int32_t* index;
  const void* weight;  // in the compute type
};

struct RoiAlignArgs {
  RoiTaps rows;                 // index: row of the feature map
  RoiTaps columns;              // index: position in the RoI's list of columns
  const int64_t* column_first;  // RoI k reads the columns column[column_first[k]] .. column[column_first[k + 1]]
  const int32_t* column;
  // A worker's scratch holds (most columns of a RoI + number of bins) * kLanes elements of the compute type.
  int64_t most_columns;
};

// RoIs rois[begin] .. rois[end] in that order, one block of channels.
ATROUSOPS_DECLARE_KERNEL(roi_align_forward, const RoiAlignArgs& args, const RoiBlock& block, const int64_t* rois,
                         int64_t begin, int64_t end)
// Adds to the tile.
ATROUSOPS_DECLARE_KERNEL(roi_align_backward, const RoiAlignArgs& args, const RoiBlock& block, const int64_t* rois,
                         int64_t begin, int64_t end)

}  // namespace atrousops::cpu
