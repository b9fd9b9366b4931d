// mma.sync (sm_80; e4m3 sm_89): C += A B of one warp, with the operands spread over its lanes' registers.
//
// With g = lane / 4, t = lane % 4, and element i of a lane (two 16-bit or four 8-bit elements a register, the lowest
// first):
//   8-bit, A 16 x 32:  row g + 8 ((i / 4) % 2), column 4 t + i % 4 + 16 (i / 8)
//   8-bit, B 32 x 8:   row 4 t + i % 4 + 16 (i / 4), column g
//   16-bit, A 16 x 16: row g + 8 ((i / 2) % 2), column 2 t + i % 2 + 8 (i / 4)
//   16-bit, B 16 x 8:  row 2 t + i % 2 + 8 (i / 2), column g
//   tf32, A 16 x 8:    row g + 8 (i % 2), column t + 4 (i / 2)
//   tf32, B 8 x 8:     row t + 4 i, column g
//   C 16 x 8:          row g + 8 (i / 2), column 2 t + i % 2; of 32 bits, integers for products of int8
#pragma once

#include <torch/headeronly/util/Float8_e4m3fn.h>

#include <cstdint>

#include "cuda/platform.h"
// platform.h first: it decides what device code is.
#include "stable/dispatch.h"

namespace atrousops::cuda::arch {

#ifdef ATROUSOPS_HOST_CUDA
namespace host {

template <class T>
double value_of(const uint32_t* registers, int i) {
  constexpr int kEach = 4 / static_cast<int>(sizeof(T));  // of a register
  const uint32_t word = registers[i / kEach] >> 32 / kEach * (i % kEach);
  if constexpr (sizeof(T) == 4) {
    return __uint_as_float(word & 0xffffe000u);  // tf32 has no more
  } else {
    T value;
    std::memcpy(&value, &word, sizeof(T));
    return static_cast<float>(value);
  }
}

// Tensor cores are seen to cut sums off where IEEE addition would round: the host does the same, at its worst.
inline float cut(double v) {
  const float f = static_cast<float>(v);
  return std::isfinite(f) && std::fabs(static_cast<double>(f)) > std::fabs(v) ? std::nextafterf(f, 0.0f) : f;
}
inline void store_sum(float& c, double sum) { c = cut(sum); }
// Without .satfinite it wraps around.
inline void store_sum(int32_t& c, double sum) {
  c = static_cast<int32_t>(static_cast<uint32_t>(static_cast<int64_t>(sum)));
}

template <class Sum>
struct Mma {
  Sum* c;
  const uint32_t *a, *b;
};

// T: float stands for tf32.
template <class T, class Sum>
void mma(Sum (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  constexpr int kEach = 4 / static_cast<int>(sizeof(T)), kDepth = 8 * kEach;
  const uint32_t b[2] = {b0, b1};
  host_cuda::require_full_warp("mma");
  Mma<Sum> mine{c, a, b};
  host_cuda::warp_together("mma", ~0u, mine, [](Mma<Sum>* const(&lanes)[32]) {
    double a[16][kDepth], b[kDepth][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4 * kEach; ++i)
        a[g + 8 * (i / kEach % 2)][kEach * t + i % kEach + kDepth / 2 * (i / (2 * kEach))] =
            value_of<T>(lanes[lane]->a, i);
      for (int i = 0; i < 2 * kEach; ++i)
        b[kEach * t + i % kEach + kDepth / 2 * (i / kEach)][g] = value_of<T>(lanes[lane]->b, i);
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        double sum = lanes[lane]->c[i];
        for (int k = 0; k < kDepth; ++k) sum += a[lane / 4 + 8 * (i / 2)][k] * b[k][2 * (lane % 4) + i % 2];
        store_sum(lanes[lane]->c[i], sum);
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

// 32 deep, exact: sums are int32, and wrap around.
__device__ __forceinline__ void mma_s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mma.m16n8k32.s8">();
  host::mma<int8_t>(c, a, b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// 32 deep (sm_89).
__device__ __forceinline__ void mma_e4m3(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mma.m16n8k32.e4m3">();
  host::mma<torch::headeronly::Float8_e4m3fn>(c, a, b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
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
