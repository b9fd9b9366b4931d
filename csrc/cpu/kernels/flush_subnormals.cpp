#include "cpu/flush_subnormals.h"

#include <cmath>
#include <limits>

#include "cpu/vec.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

template <class T>
static void run(const T* __restrict in, T* __restrict out, int64_t begin, int64_t end) {
  // bfloat16 has float's exponent range and so its smallest normal number; float16 has its own.
  const auto smallest =
      std::is_same_v<T, Half> ? compute_t<T>(6.103515625e-05f) : std::numeric_limits<compute_t<T>>::min();
  for (int64_t i = begin; i < end; ++i) {
    const compute_t<T> v = load(in[i]);
    // Written so that NaN is kept: a comparison with NaN is false.
    store(out + i, std::abs(v) < smallest ? compute_t<T>(0) : v);
  }
}

void flush_subnormals(const FlushSubnormalsArgs& a, int64_t begin, int64_t end) {
  dispatch_floating(a.dtype, "flush_subnormals",
                    [&]<class T>() { run(static_cast<const T*>(a.input), static_cast<T*>(a.output), begin, end); });
}

template <class T>
static bool any_subnormal(const T* in, int64_t n) {
  // As integers, so that it neither costs what a subnormal costs nor depends on the mode that flushes them.
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  constexpr Bits one = 1;
  constexpr int mantissa = std::is_same_v<T, double>     ? 52
                           : std::is_same_v<T, Half>     ? 10
                           : std::is_same_v<T, BFloat16> ? 7
                                                         : 23;
  const Bits* bits = reinterpret_cast<const Bits*>(in);
  Bits found = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Bits magnitude = static_cast<Bits>(bits[i] << 1) >> 1;
    found |= static_cast<Bits>(static_cast<Bits>(magnitude - one) < static_cast<Bits>((one << mantissa) - one));
  }
  return found != 0;
}

void has_subnormals(const FlushSubnormalsArgs& a, int64_t begin, int64_t end, int64_t block_step, bool* found) {
  dispatch_floating(a.dtype, "has_subnormals", [&]<class T>() {
    for (int64_t i = begin; i < end && !*found; i += block_step * kSubnormalBlock)
      *found = any_subnormal(static_cast<const T*>(a.input) + i, end - i < kSubnormalBlock ? end - i : kSubnormalBlock);
  });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
