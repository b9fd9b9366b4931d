// cp.async (sm_80): asynchronous copies from global to shared memory.
//
// Copies issued since the last commit form a group of this thread; cp_async_wait<P> returns when at most the P youngest
// groups are unfinished. Their data is then visible to this thread, and to others after a barrier.
#pragma once

#include <cstdint>

#include "cuda/platform.h"

namespace atrousops::cuda::arch {

#ifdef ATROUSOPS_HOST_CUDA
namespace host {

// Of one thread: groups in order, the last one still open. Nothing is copied before its group is waited for, and what
// is there until then is no data.
class CpAsync : public host_cuda::Attached {
 public:
  void copy(void* shared, const void* global, int bytes, int valid) {
    const bool aligned =
        host_cuda::shared_address(shared) % bytes == 0 && reinterpret_cast<uintptr_t>(global) % bytes == 0;
    if (!aligned) host_cuda::fail("cp.async: an address is not aligned to the size of the copy");
    if (valid < 0 || valid > bytes) host_cuda::fail("cp.async: more to read than to write");
    std::memset(shared, 0xff, bytes);
    groups_.back().push_back({shared, global, bytes, valid});
  }
  void commit() { groups_.emplace_back(); }
  void wait(size_t pending) {
    for (; groups_.size() > pending + 1; groups_.pop_front())
      for (const Copy& c : groups_.front()) {
        std::memset(c.shared, 0, c.bytes);
        std::memcpy(c.shared, c.global, c.valid);
      }
  }

 private:
  struct Copy {
    void* shared;
    const void* global;
    int bytes, valid;
  };
  std::deque<std::vector<Copy>> groups_{1};
};

}  // namespace host
#endif

// kBytes of shared memory, of which the first `valid` (0 to kBytes) come from global memory and the rest become zero.
// Both addresses are aligned to kBytes, and `global` is a good address even where nothing is read.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"cp.async", kBytes>();
  host_cuda::attached<host::CpAsync>().copy(shared, global, kBytes, valid);
#else
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global), "n"(kBytes), "r"(valid)
                 : "memory");
  }
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"cp.async.commit_group">();
  host_cuda::attached<host::CpAsync>().commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"cp.async.wait_group", kPending>();
  host_cuda::attached<host::CpAsync>().wait(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace atrousops::cuda::arch
