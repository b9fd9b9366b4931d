// Two numbers of 16 bits in a word, the first in the low half: instructions that make both (sm_80).
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/platform.h"

namespace atrousops::cuda::arch {

template <class T>
__device__ __forceinline__ float low_of(uint32_t pair) {
  if constexpr (std::is_same_v<T, BFloat16>) return __uint_as_float(pair << 16);
  return static_cast<float>(T(static_cast<uint16_t>(pair), T::from_bits()));
}
template <class T>
__device__ __forceinline__ float high_of(uint32_t pair) {
  if constexpr (std::is_same_v<T, BFloat16>) return __uint_as_float(pair & 0xffff0000u);
  return low_of<T>(pair >> 16);
}

// Rounds to the nearest, ties to even.
template <class T>
__device__ __forceinline__ uint32_t pair_of(float low, float high) {
  static_assert(sizeof(T) == 2);
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"cvt.x2">();
  return static_cast<T>(low).x | static_cast<uint32_t>(static_cast<T>(high).x) << 16;
#else
  uint32_t pair;
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#endif
}

// The same of max(x, 0): NaN stays NaN. -0 may become +0, as of max; PyTorch keeps it on a CPU, and on a GPU its
// versions differ.
template <class T>
__device__ __forceinline__ uint32_t pair_of_relu(float low, float high) {
  static_assert(sizeof(T) == 2);
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"cvt.relu.x2">();
  return pair_of<T>(low > 0 || low != low ? low : 0.0f, high > 0 || high != high ? high : 0.0f);
#else
  uint32_t pair;
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#endif
}

}  // namespace atrousops::cuda::arch
