// st.async (sm_90): 16 bytes into the shared memory of a block of the cluster, which count on a barrier of that block
// when they have arrived. Nobody waits for the store itself; who waits for the barrier (mbarrier_wait_cluster) sees it.
#pragma once

#include <cstdint>

#include "cuda/arch/mbarrier.h"

namespace atrousops::cuda::arch {

#ifdef ATROUSOPS_HOST_CUDA
namespace host {

inline void store_async(uint32_t address, uint4 v, uint32_t barrier) {
  const char* const what = "st.async";
  if (address % 16 != 0) host_cuda::fail("st.async.v4: an address not aligned to 16");
  if (host_cuda::rank_of(address) != host_cuda::rank_of(barrier))
    host_cuda::fail("st.async: the barrier has to be in the block that is stored to");
  unsigned char* const to = host_cuda::cluster_bytes(address, 16, what);
  std::memset(to, 0xff, 16);
  complete(barrier, 16, [to, v] { std::memcpy(to, &v, 16); }, what);
}

}  // namespace host
#endif

// Both addresses as map_to_rank makes them.
__device__ __forceinline__ void store_async(uint32_t address, uint4 v, uint32_t barrier) {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"st.async.v4">();
  host::store_async(address, v, barrier);
#else
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(barrier)
      : "memory");
#endif
}

}  // namespace atrousops::cuda::arch
