// Huge pages for results so large that the allocator maps new memory: otherwise most of the time of a memory-bound
// operator is page faults of 4 KiB pages.
#pragma once

#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "stable/tensor.h"

namespace atrousops::cpu {

// glibc maps allocations of at least this size separately, and unmaps them when they are freed.
constexpr int64_t kMappedBytes = int64_t{32} << 20;

// Requests huge pages for a tensor that has not been written yet; the system may refuse.
inline void expect_writes(const Tensor& t) {
#if defined(MADV_HUGEPAGE)
  const int64_t bytes = t.numel() * static_cast<int64_t>(t.element_size());
  if (bytes < kMappedBytes) return;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = (reinterpret_cast<uintptr_t>(t.const_data_ptr()) + page - 1) / page * page;
  const uintptr_t last =
      (reinterpret_cast<uintptr_t>(t.const_data_ptr()) + static_cast<uintptr_t>(bytes)) / page * page;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)t;
#endif
}

}  // namespace atrousops::cpu
