// kLanes channels of one pixel in vector registers; include only from csrc/cpu/kernels.
#pragma once

#include "cpu/roi_tile.h"
#include "cpu/vec.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

#if defined(__AVX512F__)
static constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
static constexpr int kVectorBytes = 32;
#else
static constexpr int kVectorBytes = 16;
#endif

// The channels of one pixel in registers.
template <class C>
struct Lanes {
  typedef C Vector __attribute__((vector_size(kVectorBytes)));
  typedef C Unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(C)), may_alias));
  static constexpr int kWidth = kVectorBytes / sizeof(C);
  static constexpr int kCount = kLanes / kWidth;
  Vector v[kCount];

  static Lanes zero() {
    Lanes r;
    for (int i = 0; i < kCount; ++i) r.v[i] = Vector{};
    return r;
  }
  static Lanes read(const C* p) {
    Lanes r;
    for (int i = 0; i < kCount; ++i) r.v[i] = *reinterpret_cast<const Unaligned*>(p + i * kWidth);
    return r;
  }
  void write(C* p) const {
    for (int i = 0; i < kCount; ++i) *reinterpret_cast<Unaligned*>(p + i * kWidth) = v[i];
  }
  void add(C weight, const Lanes& x) {
    for (int i = 0; i < kCount; ++i) v[i] += weight * x.v[i];
  }
};

}  // namespace atrousops::cpu::ATROUSOPS_ISA
