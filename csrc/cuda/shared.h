// Shared memory. Static: ATROUSOPS_SHARED(T, name, COUNT) declares T* name. Dynamic: an arena asked for one array after
// the other; the host asks a SharedSize the same, to learn how many bytes the launch needs.
#pragma once

#include "cuda/platform.h"

#if defined(ATROUSOPS_HOST_CUDA)
#define ATROUSOPS_SHARED(T, NAME, COUNT) \
  static const char NAME##_tag = 0;      \
  T* const NAME = static_cast<T*>(       \
      ::atrousops::host_cuda::static_shared(&NAME##_tag, sizeof(T) * (COUNT), alignof(T) > 16 ? alignof(T) : 16))
#else
// Raw bytes, because a shared array runs no constructor.
#define ATROUSOPS_SHARED(T, NAME, COUNT)                                                                 \
  __shared__ alignas(alignof(T) > 16 ? alignof(T) : 16) unsigned char NAME##_bytes[sizeof(T) * (COUNT)]; \
  T* const NAME = reinterpret_cast<T*>(NAME##_bytes)
#endif

namespace atrousops::cuda {

// Layouts written as a template over the arena serve both.
class SharedSize {
 public:
  template <class T, int kAlign = 16>
  T* take(int64_t count) {
    bytes_ = (bytes_ + kAlign - 1) / kAlign * kAlign + static_cast<int64_t>(sizeof(T)) * count;
    return nullptr;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

#if !defined(ATROUSOPS_HOST_CUDA)
extern __shared__ __align__(1024) unsigned char atrousops_dynamic_shared[];
#endif

class SharedArena {
 public:
  template <class T, int kAlign = 16>
  __device__ __forceinline__ T* take(int count) {
    static_assert(kAlign >= 16 && kAlign <= 1024 && (kAlign & (kAlign - 1)) == 0);
    const int begin = (offset_ + kAlign - 1) / kAlign * kAlign;
    offset_ = begin + static_cast<int>(sizeof(T)) * count;
#if defined(ATROUSOPS_HOST_CUDA)
    return static_cast<T*>(
        host_cuda::dynamic_shared(call_++, static_cast<size_t>(begin), sizeof(T) * static_cast<size_t>(count), kAlign));
#else
    return reinterpret_cast<T*>(atrousops_dynamic_shared + begin);
#endif
  }

 private:
  int offset_ = 0;
#if defined(ATROUSOPS_HOST_CUDA)
  int call_ = 0;
#endif
};

// The address that ldmatrix, cp.async and the like take.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
#if defined(ATROUSOPS_HOST_CUDA)
  return host_cuda::shared_address(p);
#else
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
#endif
}

}  // namespace atrousops::cuda
