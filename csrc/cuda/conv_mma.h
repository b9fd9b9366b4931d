// The tap-list GEMM on tensor cores: what its kernels are called with. They read and write channels_last tensors.
#pragma once

#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "cuda/conv_epilogue.cuh"
#include "cuda/conv_kernels.h"
#include "cuda/launch.h"
#include "cuda/shared.h"

namespace atrousops::cuda {

// How fp32 is multiplied: words cut to tf32, or split in two of them for full precision.
enum class MmaPrecision { tf32, split };

// Products in a sum below which fp32 has hardly any error, and three tf32 products, some 2^-22 off each, more than
// twice as much.
constexpr int64_t kShortSum = 128;

// Products of int8 whose sum 32 bits surely hold.
constexpr int64_t kMostInt8Products = INT32_MAX / (128 * 128);

// Elements of the reduction in one stage of a pipeline: 64 bytes.
inline int64_t mma_depth(ScalarType dtype) { return 4 * conv_vector(dtype); }

// Shared memory of a block: 64 bytes of each of its operands' lines a stage, and a position of each row.
constexpr int conv_mma_stage_bytes(int rows, int columns) { return 64 * (rows + columns); }
inline int64_t conv_mma_shared_bytes(int rows, int columns, int stages) {
  SharedSize size;
  size.take<char, 128>(stages * conv_mma_stage_bytes(rows, columns));
  size.take<int64_t>(rows);
  return size.bytes();
}
// Of the weight gradient: of two steps, where each line of both operands begins.
inline int64_t conv_mma_weight_shared_bytes(int rows, int columns, int stages, int64_t depth) {
  SharedSize size;
  size.take<char, 128>(stages * conv_mma_stage_bytes(rows, columns));
  size.take<int64_t>(4 * depth);
  return size.bytes();
}
// The share of a tile's speed that it has on a device where its blocks ask for so much: 0 where there is no room for
// one.
double conv_mma_room(int64_t shared_bytes, const DeviceProperties& device);

// Operations per second of mma.sync that predictions go by, those of an H100; only ratios among tiles matter.
inline double mma_rate(ScalarType dtype, MmaPrecision precision) {
  if (conv_narrow(dtype)) return 1200e12;
  if (dtype != ScalarType::Float) return 600e12;
  return precision == MmaPrecision::tf32 ? 300e12 : 100e12;
}

// What a call may add: scale of the sum, in fp32 or as bias; a residual with dst's sizes and K channels; where in dst's
// channels the K of this call begin.
struct ConvFuse {
  const Tensor *scale = nullptr, *residual = nullptr;
  bool relu = false;
  int64_t first_channel = 0;
};
// dst is channels_last.
ConvEpilogue conv_epilogue(const Tensor* bias, const ConvFuse& fuse, const Tensor& dst);

// For tests: a tile and a number of splits instead of those predicted best.
struct ConvMmaForced {
  int tile = -1, splits = 1;
};
void conv_mma(const ConvCall& call, const ConvFuse& fuse, const ConvMmaForced& forced);
void conv_mma_weight(const ConvWeightCall& call, const ConvMmaForced& forced);

// Whether rows of a channels_last tensor, and `channels` of a group in them, begin at multiples of 16 bytes.
bool conv_mma_aligned(const Tensor& t, int64_t channels);
// Why tensor cores cannot run it, or null.
const char* conv_mma_cannot(const core::Problem& problem, const Tensor& src);

// One partial sum, or one sum that is finished at once.
struct ConvMmaArgs {
  const void *src, *weight;
  float* part;             // (splits, positions, channels), or null
  int64_t part_size;       // elements of a split
  int64_t weight_columns;  // of a line that is not along the reduction, padding included
  int32_t column_blocks, splits;
  ConvEpilogue epilogue;
  bool whole_runs = false;                // what is stored and read for it comes in whole 16 bytes
  ScalarType stored = ScalarType::Float;  // dst's, where it is not that of src
};

// The weights in lines, [group][dst][tap][src] with `along`, else [group][src][tap][dst]; lines and taps start at
// multiples of 16 bytes and what is added for that is zero.
struct ConvMmaWeights {
  Tensor tensor;
  ConvWeights strides;
  int64_t columns;  // of a line, per tap
  bool along;
};

ConvMmaWeights conv_mma_weights(const core::Problem& problem, const Tensor& weight);

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
void conv_mma_s8(const ConvMmaLaunch& launch, Stream stream);
void conv_mma_e4m3(const ConvMmaLaunch& launch, Stream stream);
void conv_mma_tf32(const ConvMmaLaunch& launch, Stream stream);
void conv_mma_split(const ConvMmaLaunch& launch, Stream stream);

void conv_mma_weight_bf16(const ConvMmaWeightLaunch& launch, Stream stream);
void conv_mma_weight_f16(const ConvMmaWeightLaunch& launch, Stream stream);
void conv_mma_weight_tf32(const ConvMmaWeightLaunch& launch, Stream stream);
void conv_mma_weight_split(const ConvMmaWeightLaunch& launch, Stream stream);

// dst[position][channel] = finished(part[0] + part[1] + ...), in this order.
void conv_mma_sum(const ConvMmaArgs& args, int64_t positions, int64_t channels, ScalarType dtype, Stream stream);

}  // namespace atrousops::cuda
