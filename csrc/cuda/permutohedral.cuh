// Filtering over a permutohedral lattice: splat to its vertices, blur along D + 1 axes, slice back. Values are rows of
// channels, innermost and padded to whole packs, one a pixel or vertex; a group of lanes handles a row.
#pragma once

#include <vector>

#include "cuda/launch.h"
#include "cuda/pack.h"
#include "cuda/platform.h"
#include "cuda/runtime.h"
#include "stable/tensor.h"

namespace atrousops::cuda {

constexpr int kFilterThreads = 256;

// A lattice as its tensors hold it, checked against each other without a look at what they hold: that is trusted, as
// that of any index structure, and must come from this device's permutohedral_lattice.
struct LatticeView {
  LatticeView(const Tensor& splat_weights, const Tensor& slice_weights, const Tensor& offsets, const Tensor& neighbours,
              const Tensor& row_starts, const Tensor& rows, const Tensor& counts);

  Tensor splat_weights, slice_weights, neighbours, row_starts, rows, counts;
  int64_t images, pixels, corners;
  int64_t capacity;  // vertices at most; the device knows how many
};

// Groups of 2^lane_bits threads for rows of this many packs.
inline int lane_bits_for(int64_t packs) {
  int bits = 0;
  while (bits < 5 && (int64_t{1} << bits) < packs) ++bits;
  return bits;
}

// A row's place in a grid of groups.
__device__ __forceinline__ int64_t first_group(int lane_bits) { return first_index() >> lane_bits; }
__device__ __forceinline__ int64_t group_step(int lane_bits) { return index_step() >> lane_bits; }
__device__ __forceinline__ int group_lane(int lane_bits) {
  return static_cast<int>(threadIdx.x) & ((1 << lane_bits) - 1);
}

// Enough groups to fill the device a few times over; kernels stride over the rest.
inline Launch groups(int64_t count, int lane_bits, const Tensor& like) {
  const int64_t full = int64_t{16} * properties(like).multiprocessors;
  const int64_t blocks = blocks_for(count << lane_bits, kFilterThreads);
  return {static_cast<unsigned>(blocks < full ? blocks : full), kFilterThreads};
}

template <class T>
using RowPack = Pack<T, kPack<T>>;

template <class T>
__device__ __forceinline__ void add_scaled(RowPack<T>& sum, T weight, const RowPack<T>& x) {
#pragma unroll
  for (int i = 0; i < kPack<T>; ++i) sum[i] += weight * x[i];
}

// Blurred vertices, as pixels read them. A lattice may serve several times as many pixels as it has: replicas, each
// with vertices of its own.
template <class T>
struct SliceSource {
  const T* vertices;
  const T* weights;
  const int32_t* vertex_of;  // of each pixel and corner
  int64_t pixels, capacity, packs;
  int32_t corners;

  // sum += what the lattice holds at `pixel`, pack b of its row.
  __device__ __forceinline__ void add(int64_t pixel, int64_t b, RowPack<T>& sum) const {
    const int64_t replica = pixel < pixels ? 0 : pixel / pixels, at = (pixel - replica * pixels) * corners;
    const T* from = vertices + (replica * capacity * packs + b) * kPack<T>;
    for (int32_t j = 0; j < corners; ++j)
      add_scaled<T>(sum, weights[at + j], load_pack<T, kPack<T>>(from + vertex_of[at + j] * packs * kPack<T>));
  }
};

// What blurred vertices are multiplied by: a factor, and one number for each channel or a matrix (output, input).
template <class T>
struct Gain {
  double factor;
  const T* each;
  bool matrix;
};

template <class T>
struct FilterArgs {
  const int32_t *neighbours, *row_starts, *rows, *vertex_of;
  const int64_t* counts;
  const T* splat_weights;
  int64_t images, pixels, corners, capacity, row_count, replicas, channels, packs, segments;
  int lane_bits;
};

// Buffers to filter rows of `channels` over a lattice, any number of times.
template <class T>
class LatticeFilter {
 public:
  LatticeFilter(const LatticeView& lattice, int64_t channels, int64_t replicas, const Tensor& like);

  // Splats rows of replicas * images * pixels, and blurs along the axes, from the last to the first if `reverse`.
  // pydensecrf's constant comes on top of the gain.
  SliceSource<T> blur(const T* values, bool reverse, const Gain<T>& gain);

 private:
  const LatticeView& lattice_;
  Tensor vertex_of_, partial_, vertices_[2];
  FilterArgs<T> args_;
  Stream stream_;
};

// rows = what the lattice holds at each of `pixels`.
template <class T>
void slice_rows(const SliceSource<T>& source, int64_t pixels, T* rows, const Tensor& like);

extern template class LatticeFilter<float>;
extern template class LatticeFilter<double>;

// (N, C, P) or (N, P, C) of any dtype to rows of pixels and back.
template <class T>
void to_rows(const Tensor& values, bool channels_last, T* rows);
template <class T>
void from_rows(const T* rows, Tensor& values, bool channels_last);

}  // namespace atrousops::cuda
