// The longest that a thread waits for an event which comes within microseconds.
//
// A copy that never lands, by a fault of ours or of the device, would hold the GPU and the waiting process without end.
// After 8 to 13 seconds the kernel ends by a trap instead: the next call of CUDA reports a launch failure. On the host,
// deadlocks are found at once (host_cuda/engine.h).
#pragma once

#include <cstdint>

#include "cuda/platform.h"

namespace atrousops::cuda::arch {

#if !defined(ATROUSOPS_HOST_CUDA)

class WaitLimit {
 public:
  // To be called after each try that failed; a try itself waits a while. The timer's high word changes every 4.3
  // seconds. Changes are counted instead of taking a difference, since a device that was paused (a debugger, a
  // checkpoint) has not tried meanwhile.
  __device__ __forceinline__ void failed() {
    uint32_t now;
    asm volatile("mov.u32 %0, %%globaltimer_hi;" : "=r"(now));
    if (now == seen_) return;
    seen_ = now;
    if (++changes_ == kChanges) asm volatile("trap;");
  }

 private:
  static constexpr uint32_t kChanges = 4;  // the first look is one
  uint32_t seen_ = 0, changes_ = 0;
};

#endif

}  // namespace atrousops::cuda::arch
