#include "cpu/flush_subnormals.h"

#include <cmath>
#include <limits>

#include "core/subnormals.h"
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
constexpr core::FloatBits kBits = std::is_same_v<T, double>     ? core::kFloat64
                                  : std::is_same_v<T, float>    ? core::kFloat32
                                  : std::is_same_v<T, BFloat16> ? core::kBFloat16
                                                                : core::kFloat16;

void has_subnormals(const FlushSubnormalsArgs& a, int64_t begin, int64_t end, int64_t step, bool* found) {
  dispatch_floating(a.dtype, "has_subnormals",
                    [&]<class T>() { *found = core::any_subnormal<kBits<T>>(a.input, begin, end, step); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
