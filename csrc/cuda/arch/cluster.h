// Clusters (sm_90): blocks that run at the same time, know each other by rank and reach each other's shared memory.
//
// Another block's memory may be touched after a cluster_sync behind its beginning, and no block ends while others still
// touch its own.
#pragma once

#include <cstdint>

#include "cuda/platform.h"
#include "cuda/shared.h"

namespace atrousops::cuda::arch {

#ifdef ATROUSOPS_HOST_CUDA
namespace host {

// Attached to the cluster's first block.
struct ClusterBarrier : host_cuda::Attached {
  int arrived = 0;
  int64_t phase = 0;
  static ClusterBarrier& get() { return host_cuda::attached_to_block<ClusterBarrier>(host_cuda::cluster()[0]); }
  // Threads that have ended count as arrived.
  void end_phase_if_done() {
    int alive = 0;
    for (const auto& b : host_cuda::cluster()) alive += b.alive;
    if (arrived == 0 || arrived < alive) return;
    arrived = 0;
    ++phase;
  }
  std::string state() const override {
    return arrived == 0 ? "" : std::to_string(arrived) + " threads have come to barrier.cluster";
  }
};

// Of a thread: the phase that it has arrived in.
struct ClusterArrival : host_cuda::Attached {
  int64_t phase = -1;
  bool here = false;
};

inline void cluster_arrive() {
  host_cuda::full_warp_together("barrier.cluster.arrive", [] {});
  ClusterArrival& mine = host_cuda::attached<ClusterArrival>();
  if (mine.here) host_cuda::fail("barrier.cluster.arrive: a second time without barrier.cluster.wait");
  ClusterBarrier& b = ClusterBarrier::get();
  mine.here = true;
  mine.phase = b.phase;
  ++b.arrived;
  b.end_phase_if_done();
}

inline void cluster_wait(host_cuda::Location where) {
  host_cuda::full_warp_together("barrier.cluster.wait", [] {});
  ClusterArrival& mine = host_cuda::attached<ClusterArrival>();
  if (!mine.here) host_cuda::fail("barrier.cluster.wait: without barrier.cluster.arrive");
  ClusterBarrier& b = ClusterBarrier::get();
  const auto over = [&] {
    b.end_phase_if_done();
    return b.phase > mine.phase;
  };
  host_cuda::wait_until(over, "barrier.cluster.wait", where);
  mine.here = false;
}

}  // namespace host
#endif

__device__ __forceinline__ unsigned cluster_rank() {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"%cluster_ctarank">();
  return static_cast<unsigned>(host_cuda::self->block->rank);
#else
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#endif
}

__device__ __forceinline__ unsigned cluster_size() {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"%cluster_nctarank">();
  return static_cast<unsigned>(host_cuda::cluster().size());
#else
  unsigned size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#endif
}

// What threads wrote before they arrived is visible to those that have waited. Whole warps, each thread once.
__device__ __forceinline__ void cluster_arrive() {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"barrier.cluster.arrive">();
  host::cluster_arrive();
#else
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

#ifdef ATROUSOPS_HOST_CUDA
inline void cluster_wait(host_cuda::Location where = host_cuda::Location::current()) {
  host_cuda::executed<"barrier.cluster.wait">();
  host::cluster_wait(where);
}
#else
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
#endif

// The address in the block of that rank of what `shared` is in this one.
__device__ __forceinline__ uint32_t map_to_rank(const void* shared, unsigned rank) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"mapa">();
  if (rank >= host_cuda::cluster().size()) host_cuda::fail("mapa: the cluster has no block of that rank");
  return host_cuda::cluster_address(shared_address(shared), static_cast<int>(rank));
#else
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)), "r"(rank));
  return address;
#endif
}

// 16 bytes of another block's shared memory.
__device__ __forceinline__ uint4 load_cluster(uint32_t address) {
  uint4 v;
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"ld.shared::cluster.v4">();
  if (address % 16 != 0) host_cuda::fail("ld.shared::cluster.v4: an address not aligned to 16");
  std::memcpy(&v, host_cuda::cluster_bytes(address, 16, "ld.shared::cluster"), 16);
#else
  asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
#endif
  return v;
}

__device__ __forceinline__ void store_cluster(uint32_t address, uint4 v) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"st.shared::cluster.v4">();
  if (address % 16 != 0) host_cuda::fail("st.shared::cluster.v4: an address not aligned to 16");
  std::memcpy(host_cuda::cluster_bytes(address, 16, "st.shared::cluster"), &v, 16);
#else
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
#endif
}

}  // namespace atrousops::cuda::arch
