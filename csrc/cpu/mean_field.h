// Mean-field inference over permutohedral lattices, in one pass over the pixels for each iteration.
#pragma once

#include "cpu/permutohedral.h"

namespace atrousops::cpu {

// For one image. Unaries have the row layout of the lattices, with -inf beyond the last label.
struct MeanFieldArgs {
  const PermutohedralArgs* kernels;
  const int64_t* first;  // the image's first pixel in each kernel's lattice
  int64_t kernel_count;
  int64_t vectors;
  void* unary;
  PermutohedralImage scores;
  PermutohedralImage q;
};

// Pixels [begin, end): Q = softmax(unary + kernel values), splatted to the kernels, or stored if `store`. If Q is NaN,
// zero is splatted and NaN stored. With `start`, unaries are read from the scores, and there are no kernel values yet.
// The tile is scratch of kPixelTile rows.
ATROUSOPS_DECLARE_KERNEL(mean_field_pass, const MeanFieldArgs& args, int64_t begin, int64_t end, bool start, bool store,
                         void* tile)

}  // namespace atrousops::cpu
