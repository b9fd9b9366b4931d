// Division by a number known before the launch: a multiplication, where 64-bit division is a call of a hundred
// instructions.
#pragma once

#include <type_traits>

#include "cuda/platform.h"

namespace atrousops::cuda {

// Of numbers with kBits value bits, exact for 0 <= n < 2^kBits: with 2^(l-1) < d <= 2^l and
// m = floor(2^(kBits+l) / d) + 1, n / d = floor(n * m / 2^(kBits+l)) (Granlund and Montgomery, 1994).
template <class Signed, class Wide>
class DivisorOf {
  using Unsigned = std::make_unsigned_t<Signed>;
  static constexpr int kBits = 8 * sizeof(Signed) - 1;
  static constexpr int64_t kMost = kBits == 63 ? (int64_t{1} << 62) - 1 : INT32_MAX;

 public:
  DivisorOf() = default;
  explicit DivisorOf(int64_t d) : divisor_(static_cast<Signed>(d)) {
    STD_TORCH_CHECK(d >= 0 && d <= kMost, "a divisor must lie in 1 .. ", kMost, "; got ", d);
    // 0 is the size of an empty map: nothing will be divided.
    if (d < 2) return;
    int l = 1;
    while ((int64_t{1} << l) < d) ++l;
    shift_ = l - 1;
    multiplier_ = static_cast<Unsigned>((Wide{1} << (kBits + l)) / static_cast<Unsigned>(d)) + 1;
  }

  __device__ __forceinline__ Signed divide(Signed n) const {
    if (divisor_ == 1) return n;
    if constexpr (kBits == 63)
      return static_cast<Signed>(__umul64hi(static_cast<Unsigned>(n), multiplier_) >> shift_);
    else
      return static_cast<Signed>(__umulhi(static_cast<Unsigned>(n), multiplier_) >> shift_);
  }
  // n becomes n / d; returns the remainder.
  __device__ __forceinline__ Signed split(Signed& n) const {
    const Signed quotient = divide(n), remainder = n - quotient * divisor_;
    n = quotient;
    return remainder;
  }
  __host__ __device__ Signed value() const { return divisor_; }

 private:
  Unsigned multiplier_ = 0;
  Signed divisor_ = 1;
  int shift_ = 0;
};

using Divisor = DivisorOf<int64_t, unsigned __int128>;
using Divisor32 = DivisorOf<int32_t, uint64_t>;

}  // namespace atrousops::cuda
