// Two numbers of 16 bits in a word, the first in the low half: instructions that make and change both (sm_80; the
// maximum that keeps NaN).
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda/platform.h"

#ifdef ATROUSOPS_HOST_CUDA
#include "host_cuda/coverage.h"
#endif

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

// The larger of each two; NaN where one is NaN, and +0 of zeros unless both are negative.
template <class T>
__device__ __forceinline__ uint32_t pair_max(uint32_t a, uint32_t b) {
  static_assert(sizeof(T) == 2);
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"max.nan.x2">();
  const auto larger = [](float x, float y) { return x > y || x != x || (x == y && !std::signbit(x)); };
  return (larger(low_of<T>(a), low_of<T>(b)) ? a & 0xffffu : b & 0xffffu) |
         (larger(high_of<T>(a), high_of<T>(b)) ? a & 0xffff0000u : b & 0xffff0000u);
#else
  uint32_t result;
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  } else {
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  }
  return result;
#endif
}
template <class T>
inline constexpr uint32_t kPairOfLowest = std::is_same_v<T, BFloat16> ? 0xff80ff80u : 0xfc00fc00u;  // -inf, -inf

}  // namespace atrousops::cuda::arch
