// The tap-list GEMM on TMA and wgmma (sm_90a): what its kernels are called with. They read and write channels_last
// tensors of one group.
#pragma once

#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "cuda/conv_epilogue.cuh"
#include "cuda/conv_kernels.h"
#include "cuda/conv_mma.h"
#include "cuda/divisor.h"
#include "cuda/tensor_map.h"

namespace atrousops::cuda {

// Convolutions of one launch that read the same tensor and write other channels of another.
inline constexpr int kMostBranches = 6;

struct ConvWgmmaMaps {
  // {channels, axis 2, axis 1, axis 0, images}: boxes of 128 bytes of channels at a tile's positions.
  TensorMap src;
  // {columns of a line, taps, lines}; a line is a channel of dst where weights are K-major, else one of src.
  TensorMap weights[kMostBranches];

  // Of the only branch, in boxes as those of src; parameters have no room for one more map.
  __host__ __device__ TensorMap& residual() { return weights[1]; }
  __host__ __device__ const TensorMap& residual() const { return weights[1]; }
};

struct ConvWgmmaBranch {
  ConvEpilogue epilogue;
  int32_t tap_strides[2];  // of a kernel coordinate along axes 0 and 1
};

struct ConvWgmmaArgs {
  Divisor32 box[kAxes];  // rows of a tile, axis 2 fastest
  int32_t images;
  int32_t channel_blocks;   // of src, 128 bytes each
  Divisor32 column_blocks;  // a tile is done for each of them, and of the splits
  int32_t box_bytes;
  core::Pairs pairs;  // blocks come in clusters of two, but for none
  bool whole;         // rows, or parts of their sums, leave by whole 16 bytes
  int32_t residual;   // how many stages one takes behind a tile's steps, 0 where none comes by TMA
  Divisor splits;
  float* part;        // (branches, splits, positions, channels), or null
  int64_t part_size;  // elements of a split
  ConvWgmmaBranch branch[kMostBranches];

  __host__ __device__ int32_t paired() const { return pairs != core::Pairs::none; }
};

// `along`: weights are K-major; `tile` is an entry of core::tile_shapes.
struct ConvWgmmaLaunch {
  const ConvTable& table;
  const ConvWgmmaMaps& maps;
  const ConvWgmmaArgs& args;
  int64_t tile;
  bool along;
  unsigned blocks;
  ScalarType out;  // what dst has
};

void conv_wgmma_bf16(const ConvWgmmaLaunch& launch, Stream stream);
void conv_wgmma_f16(const ConvWgmmaLaunch& launch, Stream stream);
void conv_wgmma_tf32(const ConvWgmmaLaunch& launch, Stream stream);
// Of bytes, into 16 bits. int8: a sum is exact, and rounded to fp32 once, or each of its parts if it is split. e4m3:
// tensor cores are reported to keep some 14 bits of a sum, so that each 128 products are added to the others in fp32.
void conv_wgmma_s8(const ConvWgmmaLaunch& launch, Stream stream);
void conv_wgmma_e4m3(const ConvWgmmaLaunch& launch, Stream stream);

// For tests: a box, a tile and a number of splits instead of those predicted best, and so many blocks.
struct ConvWgmmaForced {
  int64_t tile = -1, splits = 1, blocks = 0;
  core::Box box{};
};
// One convolution of a launch; biases, scales and residuals as in conv_mma.
struct ConvWgmmaCall {
  const core::Problem& problem;
  const Tensor& weight;
  const Tensor* bias;
  ConvFuse fuse;
};
// dst is channels_last.
void conv_wgmma(const std::vector<ConvWgmmaCall>& calls, const Tensor& src, Tensor& dst,
                const ConvWgmmaForced& forced = {});
// One that conv_wgmma_rule allows; of bytes, biases and scales are in fp32 or of dst's type.
void conv_wgmma(const ConvCall& call, const ConvFuse& fuse);

}  // namespace atrousops::cuda
