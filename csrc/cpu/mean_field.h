// Mean-field inference over permutohedral lattices, in one pass over the pixels for each iteration.
#pragma once

#include "cpu/permutohedral.h"

namespace atrousops::cpu {

// Of one image. Unaries are rows as the lattices' are, with -inf beyond the last label.
struct MeanFieldArgs {
  const PermutohedralArgs* kernels;
  const int64_t* first;  // the image's first pixel in each kernel's lattice
  int64_t kernel_count;
  int64_t vectors;
  void* unary;
  PermutohedralImage scores;
  PermutohedralImage q;
};

// Pixels [begin, end): Q = softmax(unary + what the kernels hold), splatted to the kernels, or stored if `store`; where
// that is not a number, zero is splatted and NaN stored. At the `start` unaries are taken from the scores, and the
// kernels hold nothing. The tile is scratch of kPixelTile rows.
ATROUSOPS_DECLARE_KERNEL(mean_field_pass, const MeanFieldArgs& args, int64_t begin, int64_t end, bool start, bool store,
                         void* tile)

}  // namespace atrousops::cpu
