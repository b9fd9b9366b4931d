// What the convolution kernels are told. All counts are elements; a "source" is what the taps read, a "destination"
// what the sum is written to: x and y of a convolution, dy and dx of its input gradient (the transposed convolution).
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "stable/dispatch.h"

namespace atrousops::cpu {

// dst (contiguous, sizes[4]) = src by strides[4], converted. Changes layouts: planes to channels_last, weights to rows.
struct ConvPackArgs {
  const void* src;
  void* dst;
  ScalarType src_dtype, dst_dtype;
  int64_t sizes[4], strides[4];
};
// Tiles of kConvPackTile along axes 1 and 2 each; [begin, end) counts them.
inline constexpr int64_t kConvPackTile = 16;
ATROUSOPS_DECLARE_KERNEL(conv_pack, const ConvPackArgs& args, int64_t begin, int64_t end)

// A box of lattice positions, all images; rows of a GEMM operand run over (n, j0, j1, j2).
struct ConvBox {
  int64_t begin[3], length[3];
  int64_t step[3];  // tensor position = step * j (+ an offset of its own)
  int64_t size[3];  // of the tensor
};

// dst[row - row_begin][t][c] = src[n, position + offset[t], first + c]: the live taps' input rows side by side.
struct ConvGatherArgs {
  const void* src;  // (N, positions, channels)
  void* dst;
  ScalarType src_dtype, dst_dtype;
  ConvBox box;
  int64_t channels, first, count;
  int64_t taps, ld;
  const int64_t* offset;  // in positions
};
ATROUSOPS_DECLARE_KERNEL(conv_gather, const ConvGatherArgs& args, int64_t row_begin, int64_t row_end)

// dst[n, position + offset[phase], first + k] = src[row - row_begin][column - column_begin] + bias[first + k], the
// columns being (phase, k).
struct ConvScatterArgs {
  const void* src;  // null: zero
  void* dst;
  const void* bias;  // of dst_dtype, or null
  ScalarType src_dtype, dst_dtype;
  ConvBox box;
  int64_t channels, first, count;
  int64_t column_begin, column_end, ld;
  const int64_t* offset;
  bool channels_last;
};
ATROUSOPS_DECLARE_KERNEL(conv_scatter, const ConvScatterArgs& args, int64_t row_begin, int64_t row_end)

// dst(k, c, tap[u]) = sum over slices of src[slice][k][u][c], for k in [begin, end).
struct ConvWeightSumArgs {
  const void* src;
  void* dst;
  ScalarType src_dtype, dst_dtype;
  int64_t slices, k, taps, c;
  const int64_t* tap;
  int64_t stride_k, stride_c, stride_t;
};
ATROUSOPS_DECLARE_KERNEL(conv_weight_sum, const ConvWeightSumArgs& args, int64_t begin, int64_t end)

// Along one axis, for one run of destination positions p0 + p * j: the taps r[i] that read source q0 + q * j +
// delta[i].
struct ConvRun {
  int64_t begin, end;
  int64_t p0, p, q0, q;
  int64_t taps;
  const int64_t *r, *delta;
};

// What one worker needs for itself: tap lists (two numbers and one weight a tap), a row, and planes in the compute
// type.
struct ConvDirectScratch {
  int64_t* taps;
  void* values;
};

// Groups of few channels, without a GEMM: one multiply-add per live tap and channel.
struct ConvDirectArgs {
  const void* src;
  void* dst;
  const void* weight;  // compute type: channels_last [j][i][tap][group], else [group][j][i][tap]
  const void* bias;    // of dtype, or null
  ScalarType dtype;
  int64_t groups, src_count, dst_count;  // channels of a group
  int64_t src_size[3], dst_size[3], kernel[3];
  const ConvRun* run[3];
  int64_t runs[3];
};
// One row (n, position 0, position 1) of the destination.
ATROUSOPS_DECLARE_KERNEL(conv_direct_channels_last, const ConvDirectArgs& args, const ConvDirectScratch& scratch,
                         int64_t row)
// All planes of one group (n, group).
ATROUSOPS_DECLARE_KERNEL(conv_direct_planes, const ConvDirectArgs& args, const ConvDirectScratch& scratch, int64_t item)

// One kernel coordinate along an axis and the positions in which it reads inside.
struct ConvTapRange {
  int64_t r, delta, begin, end;
};

// The weight gradient of the same: part[slice] = sum of grad * input over the slice's share, laid out as above with
// j in 0..k_count and i in 0..c_count.
struct ConvDirectWeightArgs {
  const void *grad, *input;
  void* part;  // compute type, zero
  ScalarType dtype;
  int64_t n, groups, c_count, k_count;
  int64_t in[3], out[3], kernel[3], stride[3];
  const ConvTapRange* tap[3];
  int64_t slices;
};
inline constexpr int64_t kConvDirectBlock = 64;  // groups summed at a time in channels_last
// (slice, block of groups); a slice is a range of rows (n, o0, o1).
ATROUSOPS_DECLARE_KERNEL(conv_direct_weight_channels_last, const ConvDirectWeightArgs& args, int64_t item)
// (slice, group); a slice is a range of images.
ATROUSOPS_DECLARE_KERNEL(conv_direct_weight_planes, const ConvDirectWeightArgs& args, const ConvDirectScratch& scratch,
                         int64_t item)

}  // namespace atrousops::cpu
