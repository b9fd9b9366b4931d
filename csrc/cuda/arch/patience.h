// How long a thread asks in vain for what comes within microseconds.
//
// A load that never lands, by a fault of ours or of the device, would hold the GPU, and whoever waits for it, for ever.
// After 8 to 13 seconds the kernel ends by a trap instead: the next call of CUDA reports a launch failure. On the host,
// deadlocks are found at once (host_cuda/engine.h).
#pragma once

#include <cstdint>

#include "cuda/platform.h"

namespace atrousops::cuda::arch {

#if !defined(ATROUSOPS_HOST_CUDA)

class Patience {
 public:
  // After each question in vain, which itself waits a while. The timer's high word changes every 4.3 seconds; changes
  // are counted instead of taking a difference, since a device that was paused (a debugger, a checkpoint) has asked
  // nothing meanwhile.
  __device__ __forceinline__ void lose() {
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
