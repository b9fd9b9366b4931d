// One store of 16 bytes to global memory. From an assignment the compiler may make a store of each element instead, and
// of __stwb a strong one.
#pragma once

#include "cuda/platform.h"

namespace atrousops::cuda::arch {

__device__ __forceinline__ void store_16(void* to, uint4 v) {
#if defined(ATROUSOPS_HOST_CUDA)
  host_cuda::executed<"st.global.v4">();
  if (reinterpret_cast<uintptr_t>(to) % sizeof(v) != 0) host_cuda::fail("st.global.v4: an address not aligned to 16");
  *static_cast<uint4*>(to) = v;
#else
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
#endif
}

}  // namespace atrousops::cuda::arch
