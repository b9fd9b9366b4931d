// A ring of stages in shared memory that one thread has TMA fill and warps of wgmma empty.
//
// The filling thread and the emptying warps count on through all tiles of a block, in step: a Turn is never set back. A
// stage is full when the bytes of its boxes have landed, and empty when every warp that reads it has arrived, behind
// the wgmma_wait that covers its products.
#pragma once

#include "cuda/arch/mbarrier.h"
#include "cuda/platform.h"

namespace atrousops::cuda {

template <int kStages>
struct Turn {
  int stage = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

template <int kStages>
class Pipeline {
 public:
  static constexpr int kBarriers = 2 * kStages;

  __device__ __forceinline__ explicit Pipeline(arch::Mbarrier* barriers)
      : full_(barriers), empty_(barriers + kStages) {}

  // One thread; a barrier of the block comes behind it.
  __device__ __forceinline__ void init(unsigned reading_warps) const {
    for (int i = 0; i < kStages; ++i) {
      arch::mbarrier_init(full_ + i, 1);
      arch::mbarrier_init(empty_ + i, reading_warps);
    }
    arch::mbarrier_fence_init();
  }
  // One thread waits until the stage is empty, and then announces so many bytes; the barrier is for its loads.
  __device__ __forceinline__ arch::Mbarrier* fill(Turn<kStages> t, unsigned bytes) const {
    // On a fresh barrier the phase before the first counts as ended.
    arch::mbarrier_wait(empty_ + t.stage, t.parity ^ 1);
    arch::mbarrier_arrive_expect(full_ + t.stage, bytes);
    return full_ + t.stage;
  }
  __device__ __forceinline__ void wait_full(Turn<kStages> t) const { arch::mbarrier_wait(full_ + t.stage, t.parity); }
  // One lane of each reading warp.
  __device__ __forceinline__ void release(Turn<kStages> t) const { arch::mbarrier_arrive(empty_ + t.stage); }

 private:
  arch::Mbarrier *full_, *empty_;
};

}  // namespace atrousops::cuda
