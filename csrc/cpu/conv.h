// Arguments of the convolution kernels. Counts are in elements. The "source" is read by the taps, and sums are written
// to the "destination": x and y of a convolution, dy and dx of its input gradient (the transposed convolution).
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
// [begin, end) counts tiles of kConvPackTile along each of axes 1 and 2.
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

// dst[n, position + offset[phase], first + k] = src(row - row_begin, column - column_begin) + bias[first + k], the
// columns being (phase, k). Of src, rows are contiguous in channels_last, and `ld` apart; else columns.
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

// Positions along the last axis in a packed row: packed[begin + i * step] = tensor[from + i * from_step]. The rest is
// zero, for the padding.
struct ConvPiece {
  int64_t begin, step, from, from_step, count;
};

// A packed tensor, in the compute type: [channel of a group][axis 0][axis 1][pitch], and in channels_last also
// [kConvDirectBlock groups]. A kernel's vectors are along the last dimension.
struct ConvPacked {
  const void* data;
  int64_t count;  // channels of a group
  int64_t size[3];
  int64_t rows, pitch;  // most positions of axis 1 in a band; positions of the last axis
  const ConvPiece* piece;
  int64_t pieces;
};

// Destination positions p0 + p * j along the last axis, j < count: tap r[t] reads packed position at[t] + step * j.
// With a period, several phases run as one, and at j the taps are r[j % period * taps + t].
struct ConvLine {
  int64_t p0, p, count, step, taps, period;
  const int64_t *r, *at;
};

// Positions of axis 1 processed at a time, and the source positions that they read.
struct ConvBand {
  int64_t begin, end, src_begin, src_end;
};

// Groups of few channels, without a GEMM: one multiply-add per live tap and channel, over packed bands that fit the
// cache.
struct ConvDirectShape {
  ScalarType dtype;
  bool channels_last;
  int64_t n, groups, blocks;  // blocks of groups: one group in planes, up to kConvDirectBlock in channels_last
  ConvPacked src;
  int64_t dst_count, dst_size[3], kernel[3];
  const ConvRun* run[2];
  int64_t runs[2];
  const ConvLine* line;
  int64_t lines;
  const ConvBand* band;
  int64_t bands;
};
inline constexpr int64_t kConvDirectBlock = 32;
inline constexpr int64_t kConvDirectLanes = 16;  // no vector has more

// Scratch memory of one worker.
struct ConvDirectScratch {
  int64_t* offset;                  // of each tap
  void *src, *dst, *weight, *line;  // compute type: packed tensors (initially 0), a vector per tap, a line of vectors
  double* sum;                      // of the weight gradient
};

struct ConvDirectArgs {
  ConvDirectShape shape;
  void* dst;
  const void* weight;  // compute type: channels_last [j][i][tap][group], else [group][j][i][tap]
  const void* bias;    // of dtype, or null
};
// One band of one block of groups: item is (n, block, band).
ATROUSOPS_DECLARE_KERNEL(conv_direct, const ConvDirectArgs& args, const ConvDirectScratch& scratch, int64_t item)

// Its weight gradient: part[slice] = sum of grad * input over the slice, laid out as above with j in 0..dst_count and i
// in 0..src.count.
struct ConvDirectWeightArgs {
  ConvDirectShape shape;
  ConvPacked grad;
  void* part;  // compute type
  int64_t slices;
};
// (slice, block); a slice is a range of (n, band).
ATROUSOPS_DECLARE_KERNEL(conv_direct_weight, const ConvDirectWeightArgs& args, const ConvDirectScratch& scratch,
                         int64_t item)

}  // namespace atrousops::cpu
