// Division by a number known before the launch: a multiplication, where 64-bit division is a call of a hundred
// instructions.
#pragma once

#include "cuda/platform.h"

namespace atrousops::cuda {

// Exact for 0 <= n < 2^63 and 1 <= d < 2^62: with 2^(l-1) < d <= 2^l and m = floor(2^(63+l) / d) + 1,
// n / d = floor(n * m / 2^(63+l)) (Granlund and Montgomery, 1994).
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t d) : divisor_(d) {
    STD_TORCH_CHECK(d >= 0 && d < (int64_t{1} << 62), "a divisor must lie in 1 .. 2^62; got ", d);
    // 0 is the size of an empty map: nothing will be divided.
    if (d < 2) return;
    int l = 1;
    while ((int64_t{1} << l) < d) ++l;
    shift_ = l - 1;
    multiplier_ = static_cast<uint64_t>((static_cast<unsigned __int128>(1) << (63 + l)) / static_cast<uint64_t>(d)) + 1;
  }

  __device__ __forceinline__ int64_t divide(int64_t n) const {
    if (divisor_ == 1) return n;
    return static_cast<int64_t>(__umul64hi(static_cast<uint64_t>(n), multiplier_) >> shift_);
  }
  // n becomes n / d; returns the remainder.
  __device__ __forceinline__ int64_t split(int64_t& n) const {
    const int64_t quotient = divide(n), remainder = n - quotient * divisor_;
    n = quotient;
    return remainder;
  }
  __host__ __device__ int64_t value() const { return divisor_; }

 private:
  uint64_t multiplier_ = 0;
  int64_t divisor_ = 1;
  int shift_ = 0;
};

// The same of 32 bits, exact for 0 <= n < 2^31 and 1 <= d < 2^31; m has 32 bits and is divided by 2^(31+l).
class Divisor32 {
 public:
  Divisor32() = default;
  explicit Divisor32(int64_t d) : divisor_(static_cast<int32_t>(d)) {
    STD_TORCH_CHECK(d >= 1 && d <= INT32_MAX, "a divisor must lie in 1 .. 2^31 - 1; got ", d);
    if (d < 2) return;
    int l = 1;
    while ((int64_t{1} << l) < d) ++l;
    shift_ = l - 1;
    multiplier_ = static_cast<uint32_t>((uint64_t{1} << (31 + l)) / static_cast<uint64_t>(d)) + 1;
  }

  __device__ __forceinline__ int32_t divide(int32_t n) const {
    if (divisor_ == 1) return n;
    return static_cast<int32_t>(__umulhi(static_cast<uint32_t>(n), multiplier_) >> shift_);
  }
  // n becomes n / d; returns the remainder.
  __device__ __forceinline__ int32_t split(int32_t& n) const {
    const int32_t quotient = divide(n), remainder = n - quotient * divisor_;
    n = quotient;
    return remainder;
  }
  __host__ __device__ int32_t value() const { return divisor_; }

 private:
  uint32_t multiplier_ = 0;
  int32_t divisor_ = 1, shift_ = 0;
};

}  // namespace atrousops::cuda
