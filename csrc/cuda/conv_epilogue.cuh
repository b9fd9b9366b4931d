// What becomes of a convolution's sums: y = relu(scale[k] * sum + bias[k] + residual), rounded once.
#pragma once

#include "cuda/arch/pair.h"
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

// The same of `kCount` channels that a thread has in many positions: their parameters are read once. All exist and are
// aligned to 16 bytes, parameters too.
template <class T, int kCount>
class ConvRuns {
 public:
  __device__ __forceinline__ ConvRuns(const ConvEpilogue& e, int64_t channel) : e_(e) {
    if (e.scale) read(scale_, e.scale, channel);
    if (e.bias) read(bias_, e.bias, channel);
  }
  // Of kTurns positions: residual(turn) is where theirs is, store(turn, i, bits) takes the i-th 16 bytes.
  template <int kTurns, class R, class S>
  __device__ __forceinline__ void finish(float (&v)[kTurns][kCount], const R& residual, const S& store) const {
    const auto each = [&](const auto& f) {
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn)
#pragma unroll
        for (int i = 0; i < kCount; ++i) v[turn][i] = f(v[turn][i], turn, i);
    };
    if (e_.scale) each([&](float x, int, int i) { return x * scale_[i]; });
    if (e_.bias) each([&](float x, int, int i) { return x + bias_[i]; });
    if (e_.residual) {
      Packs<T, kCount> r[kTurns];
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) r[turn] = load_packs<T, kCount>(residual(turn));
      each([&](float x, int turn, int i) { return x + static_cast<float>(r[turn][i]); });
    }
    const auto store_all = [&](const auto& word) {
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn)
#pragma unroll
        for (int i = 0; i < kCount * static_cast<int>(sizeof(T)) / 16; ++i)
          store(turn, i,
                make_uint4(word(v[turn], 4 * i), word(v[turn], 4 * i + 1), word(v[turn], 4 * i + 2),
                           word(v[turn], 4 * i + 3)));
    };
    if constexpr (sizeof(T) == 4) {
      if (e_.relu) each([](float x, int, int) { return x < 0 ? 0.0f : x; });
      store_all([](const float* x, int i) { return __float_as_uint(x[i]); });
    } else if (e_.relu) {
      store_all([](const float* x, int i) { return arch::pair_of_relu<T>(x[2 * i], x[2 * i + 1]); });
    } else {
      store_all([](const float* x, int i) { return arch::pair_of<T>(x[2 * i], x[2 * i + 1]); });
    }
  }

 private:
  __device__ __forceinline__ void read(float (&to)[kCount], const void* values, int64_t channel) const {
    if (e_.fp32_parameters) {
      read_as<float>(to, values, channel);
    } else {
      read_as<T>(to, values, channel);
    }
  }
  template <class P>
  static __device__ __forceinline__ void read_as(float (&to)[kCount], const void* values, int64_t channel) {
    const Packs<P, kCount> packs = load_packs<P, kCount>(static_cast<const P*>(values) + channel);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = static_cast<float>(packs[i]);
  }

  const ConvEpilogue& e_;
  float scale_[kCount], bias_[kCount];
};

}  // namespace atrousops::cuda
