// Element types in the kernels: 16-bit types are stored unchanged and computed in float. Plain loops over these
// conversions vectorise with every instruction set; include only from csrc/cpu/kernels.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <bit>
#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace atrousops::cpu::ATROUSOPS_ISA {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// The type a kernel accumulates in.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

inline double load(double v) { return v; }
inline float load(float v) { return v; }
inline float load(BFloat16 v) { return std::bit_cast<float>(static_cast<uint32_t>(v.x) << 16); }
inline float load(Half v) {
#if defined(__F16C__)
  return _cvtsh_ss(v.x);
#else
  return static_cast<float>(v);
#endif
}

inline void store(double* p, double v) { *p = v; }
inline void store(float* p, float v) { *p = v; }
inline void store(BFloat16* p, float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  p->x = static_cast<uint16_t>(v != v ? 0x7fc0 : rounded);
}
inline void store(Half* p, float v) {
#if defined(__F16C__)
  p->x = static_cast<uint16_t>(_cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT));
#else
  *p = Half(v);
#endif
}

// n elements to the compute type, and back. Arrays do not overlap.
template <class T>
inline void load_row(const T* __restrict src, compute_t<T>* __restrict dst, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, Half>)
    for (; i + 8 <= n; i += 8)
      _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
#endif
  for (; i < n; ++i) dst[i] = load(src[i]);
}
template <class T>
inline void store_row(const compute_t<T>* __restrict src, T* __restrict dst, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, Half>)
    for (; i + 8 <= n; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < n; ++i) store(dst + i, src[i]);
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
