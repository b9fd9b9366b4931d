// A vector register of the compute type, as a GCC vector: the same source under every instruction set. Include only
// from csrc/cpu/kernels.
#pragma once

#include "cpu/vec.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

#if defined(__AVX512F__)
inline constexpr int64_t kLaneBytes = 64;
#else
inline constexpr int64_t kLaneBytes = 32;
#endif

template <class C>
struct LanesOf {
  typedef C type __attribute__((vector_size(kLaneBytes)));
  typedef C unaligned __attribute__((vector_size(kLaneBytes), aligned(alignof(C)), may_alias));
};
template <class C>
using lanes_t = typename LanesOf<C>::type;
template <class C>
inline constexpr int64_t kLanes = kLaneBytes / static_cast<int64_t>(sizeof(C));

// As references, because passing wide vectors by value is an ABI question.
template <class T>
inline void load_lanes(const T* p, lanes_t<compute_t<T>>& v) {
  using C = compute_t<T>;
  if constexpr (std::is_same_v<T, C>) {
    v = *reinterpret_cast<const typename LanesOf<C>::unaligned*>(p);
  } else {
    alignas(kLaneBytes) C row[kLanes<C>];
    load_row(p, row, kLanes<C>);
    v = *reinterpret_cast<const lanes_t<C>*>(row);
  }
}
template <class T>
inline void store_lanes(T* p, const lanes_t<compute_t<T>>& v) {
  using C = compute_t<T>;
  if constexpr (std::is_same_v<T, C>) {
    *reinterpret_cast<typename LanesOf<C>::unaligned*>(p) = v;
  } else {
    alignas(kLaneBytes) C row[kLanes<C>];
    *reinterpret_cast<lanes_t<C>*>(row) = v;
    store_row(row, p, kLanes<C>);
  }
}

// Written out for 16 bits: GCC would store a vector in two halves, and a load of the whole would stall on them.
#if defined(__AVX2__)
typedef uint32_t Bits __attribute__((vector_size(kLaneBytes)));

// bfloat16's bits of each lane.
inline Bits rounded(const lanes_t<float>& v) {
  const Bits bits = reinterpret_cast<Bits>(v), nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return v == v ? nearest : Bits{} + 0x7fc0;
}
#endif
#if defined(__AVX512F__)
// With a mask of ones, because GCC warns about undefined lanes of the unmasked forms.
inline void load_lanes(const BFloat16* p, lanes_t<float>& v) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  v = reinterpret_cast<lanes_t<float>>(reinterpret_cast<Bits>(_mm512_maskz_cvtepu16_epi32(0xffff, bits)) << 16);
}
inline void store_lanes(BFloat16* p, const lanes_t<float>& v) {
  const __m256i bits = _mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(rounded(v)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
}
inline void load_lanes(const Half* p, lanes_t<float>& v) {
  v = _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_lanes(Half* p, const lanes_t<float>& v) {
  const __m256i bits = _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
}
#elif defined(__AVX2__)
inline void load_lanes(const BFloat16* p, lanes_t<float>& v) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  v = reinterpret_cast<lanes_t<float>>(reinterpret_cast<Bits>(_mm256_cvtepu16_epi32(bits)) << 16);
}
inline void store_lanes(BFloat16* p, const lanes_t<float>& v) {
  const __m256i bits = reinterpret_cast<__m256i>(rounded(v));
  const __m128i low = _mm256_castsi256_si128(bits), high = _mm256_extracti128_si256(bits, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low, high));
}
inline void load_lanes(const Half* p, lanes_t<float>& v) {
  v = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store_lanes(Half* p, const lanes_t<float>& v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#endif

// `n` elements in the compute type: the original ones, or converted into `copy`.
template <class T>
inline const compute_t<T>* computed(const T* src, compute_t<T>* copy, int64_t n) {
  if constexpr (std::is_same_v<T, compute_t<T>>) {
    return src;
  } else {
    load_row(src, copy, n);
    return copy;
  }
}

// For short rows, for which a call of memcpy or memset is slower; the last vector overlaps.
template <class T, class C = compute_t<T>>
inline void load_short(const T* src, C* dst, int64_t n) {
  constexpr int64_t L = kLanes<C>;
  if (n < L) {
    for (int64_t i = 0; i < n; ++i) dst[i] = load(src[i]);
    return;
  }
  lanes_t<C> value[4];
  int64_t i = 0;
  // Loads come first: a load after a store to the same offset in another page would stall (4K aliasing).
  for (; i + 4 * L <= n; i += 4 * L) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) load_lanes(src + i + v * L, value[v]);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) store_lanes(dst + i + v * L, value[v]);
  }
  for (; i < n; i += L) {
    const int64_t at = i + L <= n ? i : n - L;
    load_lanes(src + at, value[0]);
    store_lanes(dst + at, value[0]);
  }
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
