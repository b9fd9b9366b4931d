// A convolution problem as the kernels read it: csrc/core's phases, taps and live regions flattened to 32-bit words.
//
// At lattice position o of a phase, on each axis, dst is written at p0 + p * o and tap (r, delta) reads src at
// q * o + delta with the weights of kernel coordinate r; it reads inside for begin <= o < end only. A region is a
// product of three segments (one per axis) with constant live taps: tap ranges [tap_begin, tap_end) of each axis' list.
// Its rows run over (n, o0, o1, o2), o2 fastest; a tile is `rows_per_tile` of them. So no tap of a tile's list is dead
// for any of its rows, and nothing is masked but the rows after a region's last. Where tiles are boxes (conv_box_plan),
// a segment has tiles of the same taps, each of which is live for some of its rows.
//
// The words travel in the kernel's parameters if they are few, else through a device buffer that is itself written by
// kernels whose parameters carry the words. A launch copies its parameters at once and a CUDA graph captures them by
// value, so there is nothing to synchronise with and no host memory to outlive anything, as a copy from host memory
// would need (a pageable one synchronises, a pinned one is read again at every replay of a graph).
#pragma once

#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include <optional>
#include <vector>

#include "core/boxes.h"
#include "core/problem.h"
#include "cuda/runtime.h"
#include "stable/tensor.h"

namespace atrousops::cuda {

using core::kAxes;
using Axes64 = int64_t[kAxes];

// Strides in elements, of a tensor (N, channels, *) of any layout.
struct ConvTensor {
  int64_t n, channel;
  Axes64 axis;
};

// Of the weights: `dst` and `src` count channels inside a group, `tap` has one stride per kernel axis.
struct ConvWeights {
  int64_t group, dst, src;
  Axes64 tap;
};

struct ConvTap {
  int32_t r, delta, begin, end;
};
struct ConvSegment {
  int32_t begin, length, p0, tap_begin, tap_end;
};
struct ConvRegion {
  int32_t first_tile, segment[kAxes], branch;
};
inline constexpr int kRegionWords = 5;
// The taps of the written positions p0 + p * o of one p0; those of p0 = 0 .. p - 1 lie side by side.
struct ConvResidue {
  int32_t tap_begin, tap_end;
};

// So many are in the parameters: launch.h holds all of a kernel's to 4 KB, and conv_wgmma has tensor maps beside them.
inline constexpr int kConvWords = 600;

// Trivially copyable; a kernel takes it as `const __grid_constant__ ConvTable`, so that indexing makes no copy.
struct ConvTable {
  // For the weight gradient src is the convolution's input and dst its output's gradient: the lattices are the same.
  int64_t n, groups, src_channels, dst_channels;  // channels of one group
  ConvTensor src, dst;
  ConvWeights weights;
  int32_t p[kAxes], q[kAxes];
  int32_t kernel[kAxes];
  int32_t dst_size[kAxes];
  int32_t rows_per_tile, tiles, regions;
  // First word of each part; taps, segments and residues have one part per axis.
  int32_t taps_at[kAxes], segments_at[kAxes], residues_at[kAxes], regions_at;
  int32_t words;
  const int32_t* buffer;  // null: the words are here
  int32_t word[kConvWords];

  __host__ __device__ int32_t at(int32_t i) const { return buffer ? buffer[i] : word[i]; }
  __host__ __device__ ConvTap tap(int axis, int32_t i) const {
    const int32_t w = taps_at[axis] + 4 * i;
    return {at(w), at(w + 1), at(w + 2), at(w + 3)};
  }
  __host__ __device__ ConvSegment segment(int axis, int32_t i) const {
    const int32_t w = segments_at[axis] + 5 * i;
    return {at(w), at(w + 1), at(w + 2), at(w + 3), at(w + 4)};
  }
  __host__ __device__ ConvRegion region(int32_t i) const {
    const int32_t w = regions_at + kRegionWords * i;
    return {at(w), {at(w + 1), at(w + 2), at(w + 3)}, at(w + 4)};
  }
  __host__ __device__ ConvResidue residue(int axis, int32_t p0) const {
    const int32_t w = residues_at[axis] + 2 * p0;
    return {at(w), at(w + 1)};
  }
  // The region that has this tile.
  __host__ __device__ int32_t region_of(int32_t tile) const {
    int32_t low = 0, high = regions - 1;
    while (low < high) {
      const int32_t middle = (low + high + 1) / 2;
      if (at(regions_at + kRegionWords * middle) <= tile) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
};

// What all threads of a block need of a tile.
struct ConvTile {
  int64_t first_row, rows;  // rows of the region that are this tile's; rows <= rows_per_tile
  ConvSegment segment[kAxes];

  __host__ __device__ int32_t taps(int axis) const { return segment[axis].tap_end - segment[axis].tap_begin; }
  __host__ __device__ int64_t taps() const { return int64_t{taps(0)} * taps(1) * taps(2); }
};

__host__ __device__ inline ConvTile conv_tile(const ConvTable& t, int32_t tile) {
  const ConvRegion region = t.region(t.region_of(tile));
  ConvTile result;
  int64_t all = t.n;
  for (int axis = 0; axis < kAxes; ++axis) {
    result.segment[axis] = t.segment(axis, region.segment[axis]);
    all *= result.segment[axis].length;
  }
  result.first_row = int64_t{tile - region.first_tile} * t.rows_per_tile;
  result.rows = all - result.first_row;
  if (result.rows > t.rows_per_tile) result.rows = t.rows_per_tile;
  return result;
}

// Quotient and remainder of v >= 0 by d > 0; 64-bit division is slow and seldom needed.
__host__ __device__ inline int64_t split(int64_t v, int32_t d, int32_t& remainder) {
  if (v >> 32 == 0) {
    const uint32_t quotient = static_cast<uint32_t>(v) / static_cast<uint32_t>(d);
    remainder = static_cast<int32_t>(static_cast<uint32_t>(v) - quotient * static_cast<uint32_t>(d));
    return quotient;
  }
  const int64_t quotient = v / d;
  remainder = static_cast<int32_t>(v - quotient * d);
  return quotient;
}

// Where a row of a tile reads (without its taps' displacements) and writes, in elements from the tensors' starts.
struct ConvRow {
  int64_t src, dst;
};
__host__ __device__ inline ConvRow conv_row(const ConvTable& t, const ConvTile& tile, int64_t row) {
  int64_t rest = tile.first_row + row;
  ConvRow r{0, 0};
#pragma unroll
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    const ConvSegment& s = tile.segment[axis];
    int32_t o;
    rest = split(rest, s.length, o);
    o += s.begin;
    r.src += int64_t{o} * t.q[axis] * t.src.axis[axis];
    r.dst += (s.p0 + int64_t{o} * t.p[axis]) * t.dst.axis[axis];
  }
  r.src += rest * t.src.n;
  r.dst += rest * t.dst.n;
  return r;
}

// The offset of a read at displacement delta, and of kernel coordinate r in the weights, along one axis.
__host__ __device__ inline int64_t src_offset(const ConvTable& t, int axis, const ConvTap& tap) {
  return tap.delta * t.src.axis[axis];
}
__host__ __device__ inline int64_t weight_offset(const ConvTable& t, int axis, const ConvTap& tap) {
  return tap.r * t.weights.tap[axis];
}

// Host side. The table of a problem, with no buffer yet; regions by falling number of taps, so that the longest tiles
// start first. rows_per_tile = 0 leaves regions out (a kernel that goes by residues or taps needs none).
struct ConvPlan {
  ConvTable table;
  std::vector<int32_t> words;
  std::optional<Tensor> storage;

  // Puts the words into the table, or into a buffer by launches on the current stream of `like`.
  void upload(const Tensor& like);
};
ConvPlan conv_plan(const core::Problem& problem, int32_t rows_per_tile);
// Tiles are boxes; `branches` are problems of the same map, channels and lattices, each with its own taps, and a region
// tells whose it is. Taps that are dead everywhere are in no list.
ConvPlan conv_box_plan(const std::vector<core::Problem>& branches, const core::Box& box);

// Strides of any (N, C, *) tensor of 3 to 5 dimensions, and of weights (K, C / groups, *).
ConvTensor conv_strides(const Tensor& t);
ConvWeights conv_weight_strides(const core::Problem& problem, const Tensor& weight);

}  // namespace atrousops::cuda
