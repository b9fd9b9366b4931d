// A ring of stages in shared memory that one thread has TMA fill and warps of wgmma empty.
//
// The filling thread and the emptying warps count on through all tiles of a block, in step: a Turn is never set back. A
// stage is full when the bytes of its boxes have landed, and empty when every warp that reads it has arrived, behind
// the wgmma_wait that covers its products.
//
// Two blocks of a cluster may fill each other's stages: then the readers of both release a stage in both.
#pragma once

#include "cuda/arch/cluster.h"
#include "cuda/arch/mbarrier.h"
#include "cuda/platform.h"

namespace atrousops::cuda {

// A stage, and the parity of the round it is met in; in one register, for those who multiply have none to spare.
template <int kStages>
class Turn {
 public:
  __device__ __forceinline__ int stage() const { return static_cast<int>(both_ % kParity); }
  __device__ __forceinline__ unsigned parity() const { return both_ / kParity; }
  __device__ __forceinline__ void next() { both_ = stage() + 1 < kStages ? both_ + 1 : (parity() ^ 1) * kParity; }
  // `count` times next(), without a branch.
  __device__ __forceinline__ void skip(int count) {
    const int to = stage() + count, round = to >= kStages;
    both_ = (parity() ^ round) * kParity + static_cast<unsigned>(to - round * kStages);
  }

 private:
  static constexpr unsigned kParity = 16;
  static_assert(kStages <= static_cast<int>(kParity));
  unsigned both_ = 0;
};

template <int kStages>
class Pipeline {
 public:
  static constexpr int kBarriers = 2 * kStages;

  __device__ __forceinline__ explicit Pipeline(arch::Mbarrier* barriers)
      : full_(barriers), empty_(barriers + kStages) {}

  // One thread; a barrier of the block comes behind it.
  __device__ __forceinline__ void init(unsigned readers) const {
    for (int i = 0; i < kStages; ++i) {
      arch::mbarrier_init(full_ + i, 1);
      arch::mbarrier_init(empty_ + i, readers);
    }
    arch::mbarrier_fence_init();
  }
  // One thread waits until the stage is empty, and then announces so many bytes; the barrier is for its loads.
  __device__ __forceinline__ arch::Mbarrier* fill(Turn<kStages> t, unsigned bytes) const {
    wait_empty(t);
    arch::mbarrier_arrive_expect(full_ + t.stage(), bytes);
    return full_ + t.stage();
  }
  // The same in two, for a stage that threads write: one of them tells, when all have.
  __device__ __forceinline__ void wait_empty(Turn<kStages> t) const {
    // On a fresh barrier the phase before the first counts as ended.
    arch::mbarrier_wait(empty_ + t.stage(), t.parity() ^ 1);
  }
  __device__ __forceinline__ void tell_full(Turn<kStages> t) const { arch::mbarrier_arrive(full_ + t.stage()); }
  __device__ __forceinline__ void wait_full(Turn<kStages> t) const {
    arch::mbarrier_wait(full_ + t.stage(), t.parity());
  }
  // Once a reader: one lane of each reading warp.
  __device__ __forceinline__ void release(Turn<kStages> t) const { arch::mbarrier_arrive(empty_ + t.stage()); }
  // The same in the block of that rank. A reader has nothing to show to those who fill, and its own reads are over or
  // stand in line before this: neither side has to have the cluster agree on memory, which takes a fence of the whole
  // GPU here, and there, at each wait, what the L1 cache holds. CUTLASS' pipelines do without as well.
  __device__ __forceinline__ void release(Turn<kStages> t, unsigned rank) const {
    arch::mbarrier_arrive_cluster_cta(arch::map_to_rank(empty_ + t.stage(), rank));
  }

 private:
  arch::Mbarrier *full_, *empty_;
};

}  // namespace atrousops::cuda
