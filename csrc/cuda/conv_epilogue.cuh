// What becomes of a convolution's sums: y = relu(scale[k] * sum + bias[k] + residual), rounded once.
#pragma once

#include "cuda/pack.h"
#include "cuda/platform.h"
#include "stable/dispatch.h"

namespace atrousops::cuda {

// dst and residual hold one row of channels a position, `dst_pitch` and `residual_pitch` elements apart, so that dst
// may be a slice of the channels of a larger tensor. scale, bias, residual may be null.
struct ConvEpilogue {
  void* dst = nullptr;
  const void *scale = nullptr, *bias = nullptr, *residual = nullptr;
  int64_t dst_pitch = 0, residual_pitch = 0;
  bool fp32_parameters = false;  // scale and bias; else they are of dst's type
  bool relu = false;
  bool vector_dst = false, vector_residual = false;  // rows aligned to 16 bytes
};

template <class T>
__device__ __forceinline__ float conv_parameter(const void* values, int64_t i, bool fp32) {
  return fp32 ? static_cast<const float*>(values)[i] : static_cast<float>(static_cast<const T*>(values)[i]);
}

// Finishes `kCount` neighbouring channels of one position, of which the first `count` exist.
template <class T, int kCount>
__device__ __forceinline__ void conv_finish(const ConvEpilogue& e, float (&v)[kCount], int64_t position,
                                            int64_t channel, int count) {
  static_assert(kCount * sizeof(T) % 16 == 0);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i >= count) continue;
    if (e.scale) v[i] *= conv_parameter<T>(e.scale, channel + i, e.fp32_parameters);
    if (e.bias) v[i] += conv_parameter<T>(e.bias, channel + i, e.fp32_parameters);
  }
  if (e.residual) {
    const T* from = static_cast<const T*>(e.residual) + position * e.residual_pitch + channel;
    if (count == kCount && e.vector_residual) {
      const Packs<T, kCount> r = load_packs<T, kCount>(from);
#pragma unroll
      for (int i = 0; i < kCount; ++i) v[i] += static_cast<float>(r[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (i < count) v[i] += static_cast<float>(from[i]);
    }
  }
  Packs<T, kCount> out;
#pragma unroll
  for (int i = 0; i < kCount; ++i) out[i] = static_cast<T>(e.relu && v[i] < 0 ? 0.0f : v[i]);  // NaN stays
  T* to = static_cast<T*>(e.dst) + position * e.dst_pitch + channel;
  if (count == kCount && e.vector_dst) {
    store_packs(to, out);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (i < count) to[i] = out[i];
  }
}

}  // namespace atrousops::cuda
