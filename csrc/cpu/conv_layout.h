// Common code of the convolution's GEMM and direct paths: weights and images in the order and type that kernels read.
#pragma once
#include <array>
#include <functional>

#include "core/problem.h"
#include "cpu/conv.h"
#include "cpu/parallel.h"
#include "stable/tensor.h"

namespace atrousops::cpu {

inline ScalarType compute_dtype(ScalarType t) { return t == ScalarType::Double ? t : ScalarType::Float; }

inline int64_t element_size(ScalarType t) { return t == ScalarType::Double ? 8 : t == ScalarType::Float ? 4 : 2; }

inline char* at(void* base, int64_t element, ScalarType t) {
  return static_cast<char*>(base) + element * element_size(t);
}
inline const char* at(const void* base, int64_t element, ScalarType t) {
  return static_cast<const char*>(base) + element * element_size(t);
}

// (K, C / groups, taps) with the taps flattened.
struct WeightView {
  Tensor tensor;
  int64_t stride_k, stride_c, stride_t;
};
inline WeightView weight_view(const Tensor& weight, int64_t taps) {
  const int64_t c = weight.size(1);
  if (prefers_channels_last(weight)) return {weight, taps * c, 1, c};
  return {dense(weight, false), taps * c, taps, 1};
}

// A contiguous tensor of `sizes`, read from `src` by `strides` (elements of src), converted to `dtype`.
Tensor conv_packed(const Tensor& src, std::array<int64_t, 4> sizes, std::array<int64_t, 4> strides, ScalarType dtype);

// A weight gradient from partial sums (slices, sizes[0], sizes[1] places, sizes[2]): contiguous, its elements at
// `strides` of the three, with tap[place] for the place.
Tensor conv_weight_from(const Tensor& part, int64_t slices, std::array<int64_t, 3> sizes,
                        std::array<int64_t, 3> strides, const std::vector<int64_t>& tap,
                        const std::vector<int64_t>& out_size, ScalarType dtype);

// (N, positions, C), the memory order of channels_last, from any format.
Tensor conv_channels_last(const Tensor& t);

// Elements of one worker's scratch, rounded so that all workers have the same alignment: a library may choose another
// code path, with other rounding, for another alignment.
inline int64_t conv_aligned(int64_t elements) { return (elements + 63) / 64 * 64; }

// Calls f(item, worker) for one item at a time on any free worker, because items differ in size. It is always a
// parallel region, so that a library called from f uses one thread and its sums do not depend on the pool. An exception
// in f is rethrown here.
void conv_each(int64_t items, const std::function<void(int64_t, int64_t)>& f);
int64_t conv_workers(int64_t items);

}  // namespace atrousops::cpu
