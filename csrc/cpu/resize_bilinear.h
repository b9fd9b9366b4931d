#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

#include "cpu/isa.h"

namespace atrousops::cpu {

using torch::headeronly::ScalarType;

// Elements that a kernel may read behind an axis's weights, and write behind a row of its scratch.
constexpr int64_t kResizeSlack = 16;

// Position i of an output axis is near_weight[i] x[near[i]] + far_weight[i] x[far[i]] along that axis of the input.
// Neither index falls with i. Weights are float, or double for double, with kResizeSlack more of any value.
struct ResizeAxis {
  int64_t in, out;
  const int64_t *near, *far;
  const void *near_weight, *far_weight;
  // Where a new `near` begins: runs[0] = 0, ..., runs[run_count] = out.
  const int64_t* runs;
  int64_t run_count;
};

// Dense maps (planes, height, width, channels): channels_last, or with one channel the planes of NCHW.
struct ResizeArgs {
  ScalarType dtype;
  ResizeAxis rows, columns;
  int64_t channels;
  const void* input;
  void* output;
};

// Pixels that are computed for all rows before the next: two input rows of them, resized along the columns, stay in the
// nearest cache until the last output row between them is written.
inline int64_t resize_strip(const ResizeArgs& a) {
  const int64_t pixels = a.channels > 1 ? 2048 / a.channels : a.columns.out;
  return pixels < 1 ? 1 : pixels < a.columns.out ? pixels : a.columns.out;
}

// Elements of a row in the scratch, which holds two, aligned to a cache line.
inline int64_t resize_scratch(const ResizeArgs& a) {
  return (resize_strip(a) * a.channels + 2 * kResizeSlack - 1) / kResizeSlack * kResizeSlack;
}

// Output rows (plane, y), begin .. end.
ATROUSOPS_DECLARE_KERNEL(resize_bilinear, const ResizeArgs& args, int64_t begin, int64_t end, void* scratch)

}  // namespace atrousops::cpu
