// Whether there are subnormal numbers, told by bits: it neither costs what a subnormal costs nor depends on the mode
// that flushes them.
#pragma once
#include <cstdint>
#include <type_traits>

namespace atrousops::core {

struct FloatBits {
  int bytes, mantissa;
};
inline constexpr FloatBits kFloat64{8, 52}, kFloat32{4, 23}, kBFloat16{2, 7}, kFloat16{2, 10};

// Where not all is looked at, whole blocks of so many elements are.
inline constexpr int64_t kSubnormalBlock = 64;

// Static, as each file is compiled for an instruction set of its own.
template <FloatBits kOf>
static inline bool any_subnormal(const void* data, int64_t n) {
  using Bits = std::conditional_t<kOf.bytes == 8, uint64_t, std::conditional_t<kOf.bytes == 4, uint32_t, uint16_t>>;
  constexpr Bits one = 1;
  const Bits* bits = static_cast<const Bits*>(data);
  Bits found = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Bits magnitude = static_cast<Bits>(bits[i] << 1) >> 1;
    found |= static_cast<Bits>(static_cast<Bits>(magnitude - one) < static_cast<Bits>((one << kOf.mantissa) - one));
  }
  return found != 0;
}

// Of elements [begin, end), in one block of `step`.
template <FloatBits kOf>
static inline bool any_subnormal(const void* data, int64_t begin, int64_t end, int64_t step) {
  for (int64_t i = begin; i < end; i += step * kSubnormalBlock)
    if (any_subnormal<kOf>(static_cast<const char*>(data) + i * kOf.bytes,
                           end - i < kSubnormalBlock ? end - i : kSubnormalBlock))
      return true;
  return false;
}

}  // namespace atrousops::core
