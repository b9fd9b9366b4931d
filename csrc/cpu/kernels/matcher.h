// Compares runs of marks with expected values, for the kernels of unpooling.
#pragma once

#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/vec.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

template <int kBytes>
struct LaneOf {
  using type = int64_t;
};
template <>
struct LaneOf<4> {
  using type = int32_t;
};
template <>
struct LaneOf<2> {
  using type = int16_t;
};

// Compares a run of marks with expected values, one vector at a time: one tap for all, or positions `step` apart.
// Written with vector types because GCC does not vectorise 64-bit comparisons that select narrower elements.
template <class T, class M>
class Matcher {
 public:
  static constexpr int kWide = sizeof(T) == 8 ? 8 : 4;
  static constexpr int kLanes = 32 / kWide;
  // Elements of T as bits, for masking.
  using Bits __attribute__((vector_size(kLanes * sizeof(T)))) = typename LaneOf<sizeof(T)>::type;
  using Mask __attribute__((vector_size(32))) = typename LaneOf<kWide>::type;

  Matcher(int64_t first, int64_t step)
      : tap_(Mask{} + static_cast<typename LaneOf<kWide>::type>(first)),
        wanted_(Wide{0, 1, 2, 3} * step + first),
        wanted_high_(wanted_ + 4 * step),
        ahead_(Wide{} + kLanes * step) {}

  // A mask of the elements with the expected mark; counts them in `hits` per lane. By reference, because passing
  // vectors by value depends on the ABI without AVX.
  void next(const M* m, Bits& bits, Mask& hits) {
    Mask here;
    if constexpr (sizeof(M) == 1) {
      widen(m, here);
      here = here == tap_;
    } else if constexpr (kWide == 8) {
      compare(m, wanted_, here);
    } else {
      Wide low, high;
      compare(m, wanted_, low);
      compare(m + 4, wanted_high_, high);
      // The lower half of each 64-bit result.
#if defined(__clang__)
      here = __builtin_shufflevector((Mask)low, (Mask)high, 0, 2, 4, 6, 8, 10, 12, 14);
#else
      here = __builtin_shuffle((Mask)low, (Mask)high, Mask{0, 2, 4, 6, 8, 10, 12, 14});
#endif
    }
    hits -= here;
    bits = __builtin_convertvector(here, Bits);
  }

  // Alternating elements of two vectors.
  static void interleave(const Bits& l, const Bits& r, Bits* out) {
#if defined(__clang__)
    if constexpr (kLanes == 4) {
      out[0] = __builtin_shufflevector(l, r, 0, 4, 1, 5);
      out[1] = __builtin_shufflevector(l, r, 2, 6, 3, 7);
    } else {
      out[0] = __builtin_shufflevector(l, r, 0, 8, 1, 9, 2, 10, 3, 11);
      out[1] = __builtin_shufflevector(l, r, 4, 12, 5, 13, 6, 14, 7, 15);
    }
#else
    Bits low, high;
    for (int i = 0; i < kLanes; ++i) {
      low[i] = i / 2 + (i % 2) * kLanes;
      high[i] = low[i] + kLanes / 2;
    }
    out[0] = __builtin_shuffle(l, r, low);
    out[1] = __builtin_shuffle(l, r, high);
#endif
  }

 private:
  using Wide __attribute__((vector_size(32))) = int64_t;
  using Bytes __attribute__((vector_size(kLanes))) = uint8_t;

  static void widen(const M* m, Mask& out) {
#if defined(__AVX2__)
    // GCC would process the bytes one by one.
    if constexpr (kWide == 4) {
      out = (Mask)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(m)));
    } else {
      int32_t four;
      std::memcpy(&four, m, sizeof four);
      out = (Mask)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
    }
#else
    Bytes bytes;
    std::memcpy(&bytes, m, sizeof bytes);
    out = __builtin_convertvector(bytes, Mask);
#endif
  }

  void compare(const M* m, Wide& wanted, Wide& here) {
    std::memcpy(&here, m, sizeof here);
    here = here == wanted;
    wanted += ahead_;
  }

  Mask tap_;
  Wide wanted_, wanted_high_, ahead_;
};

}  // namespace atrousops::cpu::ATROUSOPS_ISA
