// Named barriers of a block (bar.sync, bar.arrive), and one lane chosen of a warp (elect.sync, sm_90).
#pragma once

#include <cstdint>

#include "cuda/platform.h"

namespace atrousops::cuda::arch {

// Waits until kThreads threads, whole warps, have come to barrier kId; number 0 is __syncthreads' own.
#ifdef ATROUSOPS_HOST_CUDA
template <int kId, int kThreads>
void named_barrier_sync(host_cuda::Location where = host_cuda::Location::current()) {
  static_assert(kId >= 1 && kId <= 15 && kThreads % 32 == 0);
  host_cuda::executed<"bar.sync">();
  host_cuda::barrier_sync(kId, kThreads, "bar.sync", where);
}
// Counts, and does not wait.
template <int kId, int kThreads>
void named_barrier_arrive(host_cuda::Location where = host_cuda::Location::current()) {
  static_assert(kId >= 1 && kId <= 15 && kThreads % 32 == 0);
  host_cuda::executed<"bar.arrive">();
  host_cuda::barrier_arrive(kId, kThreads, "bar.arrive", where);
}
#else
template <int kId, int kThreads>
__device__ __forceinline__ void named_barrier_sync() {
  static_assert(kId >= 1 && kId <= 15 && kThreads % 32 == 0);
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}
template <int kId, int kThreads>
__device__ __forceinline__ void named_barrier_arrive() {
  static_assert(kId >= 1 && kId <= 15 && kThreads % 32 == 0);
  asm volatile("bar.arrive %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}
#endif

// True for one lane of a warp whose 32 lanes are here.
__device__ __forceinline__ bool elect_one() {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"elect.sync">();
  host_cuda::full_warp_together("elect.sync", [] {});
  // The manual leaves the choice open.
  return host_cuda::self->lane == 0;
#else
  uint32_t elected;
  asm volatile("{.reg .pred p;\n elect.sync _|p, 0xffffffff;\n selp.u32 %0, 1, 0, p;}" : "=r"(elected));
  return elected != 0;
#endif
}

}  // namespace atrousops::cuda::arch
