// The tap-list GEMM on tensor cores: what its kernels are called with. They read and write channels_last tensors.
#pragma once

#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "cuda/conv_epilogue.cuh"
#include "cuda/conv_kernels.h"
#include "cuda/launch.h"

namespace atrousops::cuda {

// How fp32 is multiplied: words cut to tf32, or split in two of them for full precision.
enum class MmaPrecision { tf32, split };

// One partial sum, or one sum that is finished at once.
struct ConvMmaArgs {
  const void *src, *weight;
  float* part;          // (splits, positions, channels), or null
  int64_t part_size;    // elements of a split
  int64_t weight_columns;  // of a line that is not along the reduction, padding included
  int32_t column_blocks, splits;
  ConvEpilogue epilogue;
};

// The weights in lines, [group][dst][tap][src] with `along`, else [group][src][tap][dst]; lines and taps start at
// multiples of 16 bytes and what is added for that is zero.
struct ConvMmaWeights {
  Tensor tensor;
  ConvWeights strides;
  int64_t columns;  // of a line, per tap
  bool along;
};

// What one launch does: the table says where, `tile` is an entry of conv_mma_tiles.
struct ConvMmaLaunch {
  const ConvTable& table;
  ConvMmaArgs args;
  int tile;
  bool along;
  int64_t blocks;
};

struct ConvMmaWeightArgs {
  const void *grad, *input;
  float* part;        // (splits, groups * rows, taps, columns)
  int64_t part_size;  // elements of a split
  int32_t row_blocks, column_blocks, taps, splits;
};

struct ConvMmaWeightLaunch {
  const ConvTable& table;
  ConvMmaWeightArgs args;
  int tile;
  int64_t blocks;
};

// By type: each in a file of its own, to be compiled side by side.
void conv_mma_bf16(const ConvMmaLaunch& launch, Stream stream);
void conv_mma_f16(const ConvMmaLaunch& launch, Stream stream);
void conv_mma_tf32(const ConvMmaLaunch& launch, Stream stream);
void conv_mma_split(const ConvMmaLaunch& launch, Stream stream);

void conv_mma_weight_bf16(const ConvMmaWeightLaunch& launch, Stream stream);
void conv_mma_weight_f16(const ConvMmaWeightLaunch& launch, Stream stream);
void conv_mma_weight_tf32(const ConvMmaWeightLaunch& launch, Stream stream);
void conv_mma_weight_split(const ConvMmaWeightLaunch& launch, Stream stream);

// dst[position][channel] = finished(part[0] + part[1] + ...), in this order.
void conv_mma_sum(const ConvMmaArgs& args, int64_t positions, int64_t channels, ScalarType dtype, Stream stream);

}  // namespace atrousops::cuda
