// The weight gradient on TMA and wgmma (sm_90a): what its kernel is called with. Tensors are channels_last, of one
// group and of 16-bit types.
#pragma once

#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "core/weight_boxes.h"
#include "cuda/conv_kernels.h"
#include "cuda/divisor.h"
#include "cuda/tensor_map.h"

namespace atrousops::cuda {

struct ConvWgmmaWeightArgs {
  float* part;           // (splits, K, taps, C)
  int64_t part_size;     // elements of a split
  Divisor32 box[kAxes];  // of a step of the reduction, axis 2 fastest
  Divisor32 kernel[kAxes];
  Divisor32 row_blocks, column_blocks, taps, images;
  Divisor splits;
};

struct ConvWgmmaWeightLaunch {
  const ConvTable& table;
  // {channels, axis 2, axis 1, axis 0, images}: boxes of 64 channels at a step's positions.
  const TensorMap &grad, &input;
  const ConvWgmmaWeightArgs& args;
  int64_t columns;
  ScalarType dtype;
};

void conv_wgmma_weight_sm90a(const ConvWgmmaWeightLaunch& launch, Stream stream);

// For tests: columns of a tile, splits and a box instead of those predicted best.
struct ConvWgmmaWeightForced {
  int64_t columns = 0, splits = 1;
  core::Box box{};
};
void conv_wgmma_weight(const ConvWeightCall& call, const ConvWgmmaWeightForced& forced);

}  // namespace atrousops::cuda
