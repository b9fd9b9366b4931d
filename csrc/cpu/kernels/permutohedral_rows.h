// Rows of channels, and tiles of pixels, for the lattice kernels; include only from csrc/cpu/kernels.
#pragma once

#include "cpu/permutohedral.h"
#include "cpu/vec.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

// Wide enough to keep a row's sums in registers.
constexpr int kMaxBlock = 4;

template <class T>
using Vector [[gnu::vector_size(kVectorBytes), gnu::may_alias]] = T;
template <class T>
constexpr int64_t kLanes = kVectorBytes / sizeof(T);

template <class F>
inline void dispatch_compute(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Double) return f.template operator()<double>();
  f.template operator()<float>();
}

// f.operator()<B>(k) over the vectors [k, k + B) of a row, B <= kMaxBlock.
template <class F>
inline void for_blocks(int64_t vectors, const F& f) {
  int64_t k = 0;
  for (; k + kMaxBlock <= vectors; k += kMaxBlock) f.template operator()<kMaxBlock>(k);
  if (vectors - k == 3) f.template operator()<3>(k);
  if (vectors - k == 2) f.template operator()<2>(k);
  if (vectors - k == 1) f.template operator()<1>(k);
}

// tile[p] = channels [channel, channel + width) of pixel begin + p, zero beyond the last.
template <class S>
inline void load_tile(const PermutohedralImage& m, int64_t begin, int64_t count, int64_t channel,
                      compute_t<S>* __restrict tile, int64_t width) {
  const S* values = static_cast<const S*>(m.values);
  const int64_t live = m.channels - channel < width ? m.channels - channel : width;
  if (m.channels_last) {
    for (int64_t p = 0; p < count; ++p) load_row(values + (begin + p) * m.channels + channel, tile + p * width, live);
  } else {
    for (int64_t c = 0; c < live; ++c)
      for (int64_t p = 0; p < count; ++p) tile[p * width + c] = load(values[(channel + c) * m.pixels + begin + p]);
  }
  for (int64_t p = 0; p < count; ++p)
    for (int64_t c = live; c < width; ++c) tile[p * width + c] = 0;
}

template <class S>
inline void store_tile(const PermutohedralImage& m, int64_t begin, int64_t count, int64_t channel,
                       const compute_t<S>* __restrict tile, int64_t width) {
  S* values = static_cast<S*>(m.values);
  const int64_t live = m.channels - channel < width ? m.channels - channel : width;
  if (m.channels_last) {
    for (int64_t p = 0; p < count; ++p) store_row(tile + p * width, values + (begin + p) * m.channels + channel, live);
  } else {
    for (int64_t c = 0; c < live; ++c)
      for (int64_t p = 0; p < count; ++p) store(values + (channel + c) * m.pixels + begin + p, tile[p * width + c]);
  }
}

// Adds B vectors per pixel, `stride` vectors apart in the tile, to vectors [k, k + B) of the rows of its corners.
// `pixel` is an index over the whole batch.
template <class T, int B>
inline void splat_tile(const PermutohedralArgs& a, int64_t pixel, int64_t count, int64_t k, const Vector<T>* tile,
                       int64_t stride) {
  // Copies, because what is written might be `a` for all the compiler knows.
  const int64_t corners = a.corners, vectors = a.vectors;
  const T* weights = static_cast<const T*>(a.splat_weights) + pixel * corners;
  const int32_t* offsets = a.offsets + pixel * corners;
  Vector<T>* rows = static_cast<Vector<T>*>(a.splatted) + k;
  for (int64_t p = 0; p < count; ++p) {
    Vector<T> value[B];
    for (int b = 0; b < B; ++b) value[b] = tile[p * stride + b];
    for (int64_t j = p * corners; j < (p + 1) * corners; ++j) {
      Vector<T>* row = rows + offsets[j] * vectors;
      for (int b = 0; b < B; ++b) row[b] += weights[j] * value[b];
    }
  }
}

// Adds the lattice's value at each pixel to the tile.
template <class T, int B>
inline void slice_tile(const PermutohedralArgs& a, int64_t pixel, int64_t count, int64_t k, Vector<T>* tile,
                       int64_t stride) {
  // Copies, because what is written might be `a` for all the compiler knows.
  const int64_t corners = a.corners, vectors = a.vectors;
  const T* weights = static_cast<const T*>(a.slice_weights) + pixel * corners;
  const int32_t* offsets = a.offsets + pixel * corners;
  const Vector<T>* rows = static_cast<const Vector<T>*>(a.blurred) + k;
  for (int64_t p = 0; p < count; ++p) {
    Vector<T> value[B];
    for (int b = 0; b < B; ++b) value[b] = tile[p * stride + b];
    for (int64_t j = p * corners; j < (p + 1) * corners; ++j) {
      const Vector<T>* row = rows + offsets[j] * vectors;
      for (int b = 0; b < B; ++b) value[b] += weights[j] * row[b];
    }
    for (int b = 0; b < B; ++b) tile[p * stride + b] = value[b];
  }
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
