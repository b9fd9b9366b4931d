// wgmma (sm_90a): D = A B or D += A B of a warpgroup (four warps, the first a multiple of four), asynchronously. A is
// 64 x K and B is K x N, in shared memory; a call takes 32 bytes of K: 16 elements of 16 bits, 8 of tf32, or 32 of 8
// bits.
//
// Thread T of the warpgroup holds of D (64 x N), as element i of N / 2:
//   row 16 (T / 32) + (T % 32) / 4 + 8 ((i / 2) % 2), column 8 (i / 4) + 2 (T % 4) + i % 2
// An operand is K-major where its elements along K lie side by side, and MN-major where those along M or N do. Order of
// calls: wgmma_fence, products, wgmma_commit, wgmma_wait. Until a wait that covers them no thread may touch the sums,
// nor what the operands are in shared memory; ordinary stores there need fence_proxy_async and a barrier first.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/platform.h"
#include "cuda/shared.h"
#include "cuda/tensor_map.h"

#ifdef ATROUSOPS_HOST_CUDA
#include "cuda/arch/wgmma_host.h"
#else
#include "cuda/arch/wgmma_registers.h"
#endif

namespace atrousops::cuda::arch {

enum class Major { k, mn };

// Where an operand begins in shared memory and how it goes on, in bytes, all multiples of 16:
//   K-major, swizzled:      stride: from 8 rows to the next 8; leading: not used
//   K-major, no swizzle:    stride: from 8 rows to the next 8; leading: between the two 16-byte chunks along K
//   MN-major, swizzled:     stride: from 8 k to the next 8; leading: from one span along MN to the next
//   MN-major, no swizzle:   stride: between 16-byte chunks along MN; leading: from 8 k to the next 8
__device__ __forceinline__ uint64_t wgmma_operand(const void* shared, Swizzle s, int leading_bytes, int stride_bytes) {
  // 128 bytes are 1 here, 64 are 2, 32 are 3.
  const int layout = s == Swizzle::none ? 0 : 4 - static_cast<int>(s);
  return (shared_address(shared) & 0x3ffffu) >> 4 | static_cast<uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<uint64_t>(stride_bytes >> 4) << 32 | static_cast<uint64_t>(layout) << 62;
}
// Rows of M or N, each one swizzled span of K: the box {span, rows} of a TMA load.
__device__ __forceinline__ uint64_t wgmma_k_major(const void* shared, Swizzle s) {
  return wgmma_operand(shared, s, 16, 8 * swizzle_span(s));
}
// Boxes {span, depth} of a TMA load behind each other along M or N, their rows being k.
__device__ __forceinline__ uint64_t wgmma_mn_major(const void* shared, Swizzle s, int depth) {
  return wgmma_operand(shared, s, depth * swizzle_span(s), 8 * swizzle_span(s));
}
// The operand that begins so many bytes later. K-major: 32 bytes along K within a span, multiples of 8 rows along M or
// N. MN-major: 16 spans along K.
__device__ __forceinline__ uint64_t wgmma_advance(uint64_t operand, int bytes) {
  return operand + static_cast<uint64_t>(bytes >> 4);
}

// Before the first product, and before one on sums that threads have written or waited for.
__device__ __forceinline__ void wgmma_fence() {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"wgmma.fence">();
  host::with_products("wgmma.fence", [](host::WarpProducts& p) { p.fence(); });
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void wgmma_commit() {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"wgmma.commit_group">();
  host::with_products("wgmma.commit_group", [](host::WarpProducts& p) { p.commit(); });
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// All groups of products but the kPending youngest are done: their sums may be read, their operands overwritten.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  static_assert(kPending >= 0 && kPending <= 7);
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"wgmma.wait_group", kPending>();
  host::with_products("wgmma.wait_group", [](host::WarpProducts& p) { p.wait(kPending); });
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}

// What products of T are added in: int8 in whole numbers, which wrap around beyond 2^31, all else in fp32.
template <class T>
using wgmma_sum_t = std::conditional_t<std::is_same_v<T, int8_t>, int32_t, float>;

// The compiler moves no access to these sums across it: to be put before the fence and behind the wait.
template <class Sum, int kCount>
__device__ __forceinline__ void wgmma_keep(Sum (&d)[kCount]) {
#ifndef ATROUSOPS_HOST_CUDA
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (std::is_same_v<Sum, float>) {
      asm volatile("" : "+f"(d[i])::"memory");
    } else {
      asm volatile("" : "+r"(d[i])::"memory");
    }
  }
#endif
}

#ifndef ATROUSOPS_HOST_CUDA

#define ATROUSOPS_WGMMA(N, SUMS, REGISTER, KIND, ARGUMENTS, PREDICATE, ...)                                     \
  asm volatile("{.reg .pred p;\n setp.ne.b32 p, %" PREDICATE ", 0;\n wgmma.mma_async.sync.aligned.m64n" #N KIND \
               " {" ATROUSOPS_TEXT_##SUMS "}, " ARGUMENTS ";}"                                                  \
               : ATROUSOPS_SUMS_##SUMS(REGISTER)                                                                \
               : __VA_ARGS__)
// Both operands in shared memory; %A ... are the numbers behind the sums.
#define ATROUSOPS_WGMMA_SHARED(N, SUMS, A, B, P, TA, TB)                                                               \
  if constexpr (kN == N) {                                                                                             \
    if constexpr (std::is_same_v<T, BFloat16>) {                                                                       \
      ATROUSOPS_WGMMA(N, SUMS, "+f", "k16.f32.bf16.bf16", "%" A ", %" B ", p, 1, 1, %" TA ", %" TB, P, "l"(a), "l"(b), \
                      "r"(add), "n"(int(kA)), "n"(int(kB)));                                                           \
    } else if constexpr (std::is_same_v<T, Half>) {                                                                    \
      ATROUSOPS_WGMMA(N, SUMS, "+f", "k16.f32.f16.f16", "%" A ", %" B ", p, 1, 1, %" TA ", %" TB, P, "l"(a), "l"(b),   \
                      "r"(add), "n"(int(kA)), "n"(int(kB)));                                                           \
    } else if constexpr (std::is_same_v<T, int8_t>) {                                                                  \
      ATROUSOPS_WGMMA(N, SUMS, "+r", "k32.s32.s8.s8", "%" A ", %" B ", p", P, "l"(a), "l"(b), "r"(add));               \
    } else if constexpr (std::is_same_v<T, Float8_e4m3fn>) {                                                           \
      ATROUSOPS_WGMMA(N, SUMS, "+f", "k32.f32.e4m3.e4m3", "%" A ", %" B ", p, 1, 1", P, "l"(a), "l"(b), "r"(add));     \
    } else {                                                                                                           \
      ATROUSOPS_WGMMA(N, SUMS, "+f", "k8.f32.tf32.tf32", "%" A ", %" B ", p, 1, 1", P, "l"(a), "l"(b), "r"(add));      \
    }                                                                                                                  \
  }
#define ATROUSOPS_WGMMA_REGISTERS(N, SUMS, A0, A1, A2, A3, B, P, TB)                                                   \
  if constexpr (kN == N) {                                                                                             \
    if constexpr (std::is_same_v<T, BFloat16>) {                                                                       \
      ATROUSOPS_WGMMA(N, SUMS, "+f", "k16.f32.bf16.bf16",                                                              \
                      "{%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B ", p, 1, 1, %" TB, P, "r"(a[0]), "r"(a[1]),          \
                      "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(int(kB)));                                           \
    } else if constexpr (std::is_same_v<T, Half>) {                                                                    \
      ATROUSOPS_WGMMA(N, SUMS, "+f", "k16.f32.f16.f16", "{%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B ", p, 1, 1, %" TB, \
                      P, "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(int(kB)));                  \
    } else {                                                                                                           \
      ATROUSOPS_WGMMA(N, SUMS, "+f", "k8.f32.tf32.tf32", "{%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B ", p, 1, 1", P,   \
                      "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                   \
    }                                                                                                                  \
  }
#endif

// What the wrappers are written for: T is BFloat16, Half, or one that is K-major only: float for tf32, whose words lose
// their low 13 bits, int8_t, or Float8_e4m3fn, of whose sums the hardware is reported to keep some 14 bits
// (wgmma_host.h).
template <class T, int kN, Major kA, Major kB>
constexpr bool kWgmmaExists = (kN == 32 || kN == 64 || kN == 96 || kN == 128 || kN == 192 || kN == 256) &&
                              (sizeof(T) == 2 || (kA == Major::k && kB == Major::k));

// d = a b, or d += a b where `add`; the same operands in all threads of the warpgroup.
template <class T, int kN, Major kA = Major::k, Major kB = Major::k>
__device__ __forceinline__ void wgmma(wgmma_sum_t<T> (&d)[kN / 2], uint64_t a, uint64_t b, int add) {
  static_assert(kWgmmaExists<T, kN, kA, kB>);
#ifdef ATROUSOPS_HOST_CUDA
  if constexpr (std::is_same_v<T, int8_t>) {
    host_cuda::executed<"wgmma.s8", kN>();
  } else if constexpr (sizeof(T) == 1) {
    host_cuda::executed<"wgmma.e4m3", kN>();
  } else {
    host_cuda::executed<"wgmma", int(sizeof(T)), kN, int(kA), int(kB)>();
  }
  host::multiply<T, kN>({d, nullptr, a, b, add != 0, kA == Major::k, kB == Major::k});
#else
  ATROUSOPS_WGMMA_SHARED(32, 16, "16", "17", "18", "19", "20")
  ATROUSOPS_WGMMA_SHARED(64, 32, "32", "33", "34", "35", "36")
  ATROUSOPS_WGMMA_SHARED(96, 48, "48", "49", "50", "51", "52")
  ATROUSOPS_WGMMA_SHARED(128, 64, "64", "65", "66", "67", "68")
  ATROUSOPS_WGMMA_SHARED(192, 96, "96", "97", "98", "99", "100")
  ATROUSOPS_WGMMA_SHARED(256, 128, "128", "129", "130", "131", "132")
#endif
}

// A in registers, which stay as they are until the wait: each warp's 16 rows as in mma.h. Of words in tf32 likewise.
template <class T, int kN, Major kB = Major::k>
__device__ __forceinline__ void wgmma_from_registers(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, int add) {
  static_assert(kWgmmaExists<T, kN, Major::k, kB> && sizeof(T) > 1);
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"wgmma.registers", int(sizeof(T)), kN, int(kB)>();
  host::multiply<T, kN>({d, a, 0, b, add != 0, true, kB == Major::k});
#else
  ATROUSOPS_WGMMA_REGISTERS(32, 16, "16", "17", "18", "19", "20", "21", "22")
  ATROUSOPS_WGMMA_REGISTERS(64, 32, "32", "33", "34", "35", "36", "37", "38")
  ATROUSOPS_WGMMA_REGISTERS(96, 48, "48", "49", "50", "51", "52", "53", "54")
  ATROUSOPS_WGMMA_REGISTERS(128, 64, "64", "65", "66", "67", "68", "69", "70")
  ATROUSOPS_WGMMA_REGISTERS(192, 96, "96", "97", "98", "99", "100", "101", "102")
  ATROUSOPS_WGMMA_REGISTERS(256, 128, "128", "129", "130", "131", "132", "133", "134")
#endif
}

#ifndef ATROUSOPS_HOST_CUDA
#undef ATROUSOPS_WGMMA
#undef ATROUSOPS_WGMMA_SHARED
#undef ATROUSOPS_WGMMA_REGISTERS
#endif

}  // namespace atrousops::cuda::arch
