// mma.sync (sm_80): C += A B of one warp, with the operands spread over its lanes' registers.
//
// With g = lane / 4, t = lane % 4, and element i of a lane (two 16-bit elements a register, the low half first):
//   16-bit, A 16 x 16: row g + 8 ((i / 2) % 2), column 2 t + i % 2 + 8 (i / 4)
//   16-bit, B 16 x 8:  row 2 t + i % 2 + 8 (i / 2), column g
//   tf32, A 16 x 8:    row g + 8 (i % 2), column t + 4 (i / 2)
//   tf32, B 8 x 8:     row t + 4 i, column g
//   fp32, C 16 x 8:    row g + 8 (i / 2), column 2 t + i % 2
#pragma once

#include <cstdint>

#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "stable/dispatch.h"

namespace atrousops::cuda::arch {

#ifdef ATROUSOPS_HOST_CUDA
namespace host {

template <class T>
double value_of(const uint32_t* registers, int i) {
  if constexpr (sizeof(T) == 4) {
    const uint32_t bits = registers[i] & 0xffffe000u;  // tf32 has no more
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  } else {
    const uint16_t bits = static_cast<uint16_t>(registers[i / 2] >> 16 * (i % 2));
    T value;
    std::memcpy(&value, &bits, 2);
    return static_cast<float>(value);
  }
}

// Tensor cores are seen to cut sums off where IEEE addition would round: the host does the same, at its worst.
inline float cut(double v) {
  const float f = static_cast<float>(v);
  return std::isfinite(f) && std::fabs(static_cast<double>(f)) > std::fabs(v) ? std::nextafterf(f, 0.0f) : f;
}

struct Mma {
  float* c;
  const uint32_t *a, *b;
};

template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  constexpr bool kWide = sizeof(T) == 2;  // 16 deep, else 8
  const uint32_t b[2] = {b0, b1};
  host_cuda::require_full_warp("mma");
  Mma mine{c, a, b};
  host_cuda::warp_together("mma", ~0u, mine, [](Mma* const(&lanes)[32]) {
    double a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < (kWide ? 8 : 4); ++i) {
        const int row = g + 8 * (kWide ? i / 2 % 2 : i % 2),
                  column = kWide ? 2 * t + i % 2 + 8 * (i / 4) : t + 4 * (i / 2);
        a[row][column] = value_of<T>(lanes[lane]->a, i);
      }
      for (int i = 0; i < (kWide ? 4 : 2); ++i)
        b[kWide ? 2 * t + i % 2 + 8 * (i / 2) : t + 4 * i][g] = value_of<T>(lanes[lane]->b, i);
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        double sum = lanes[lane]->c[i];
        for (int k = 0; k < (kWide ? 16 : 8); ++k) sum += a[lane / 4 + 8 * (i / 2)][k] * b[k][2 * (lane % 4) + i % 2];
        lanes[lane]->c[i] = cut(sum);
      }
  });
}

}  // namespace host
#endif

// T: BFloat16 or Half, 16 deep.
template <class T>
__device__ __forceinline__ void mma_16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef ATROUSOPS_HOST_CUDA
  if constexpr (std::is_same_v<T, BFloat16>) {
    host_cuda::executed<"mma.m16n8k16.bf16">();
  } else {
    host_cuda::executed<"mma.m16n8k16.f16">();
  }
  host::mma<T>(c, a, b0, b1);
#else
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    static_assert(std::is_same_v<T, Half>);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#endif
}

// Registers hold fp32 words of which the low 13 bits are ignored, 8 deep.
__device__ __forceinline__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mma.m16n8k8.tf32">();
  host::mma<float>(c, a, b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// An fp32 word rounded to tf32 (10 bits of fraction), to nearest, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(uint32_t word) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"cvt.rna.tf32">();
  return (word & 0x7f800000u) == 0x7f800000u ? word : (word + 0x1000u) & 0xffffe000u;
#else
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "r"(word));
  return rounded;
#endif
}

}  // namespace atrousops::cuda::arch
