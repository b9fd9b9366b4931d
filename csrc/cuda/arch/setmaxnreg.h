// setmaxnreg (sm_90a): a warpgroup gives registers back, or takes what others gave; all its warps call it together.
//
// Counts are multiples of 8 from 24 to 256. A kernel needs __launch_bounds__(threads, 1), or the compiler leaves them
// out. The warpgroups' counts may sum to what they had at launch: 168 each at 384 threads (40, 232, 232), 128 at 512.
// Taking waits until there are enough; with a sum too high it never returns. That these splits are granted is not
// verified on hardware.
#pragma once

#include "cuda/platform.h"

namespace atrousops::cuda::arch {

#ifdef ATROUSOPS_HOST_CUDA
namespace host {

// Of a block: what its warps have, as far as they said so.
struct Registers : host_cuda::Attached {
  int of_warp[32] = {};
  void set(int count) {
    host_cuda::full_warp_together("setmaxnreg", [&] { of_warp[host_cuda::self->linear / 32] = count; });
  }
  void end() override {
    const unsigned threads = host_cuda::block_size.x * host_cuda::block_size.y * host_cuda::block_size.z;
    // At launch as many as 65536 allow, eight by eight.
    const int warps = static_cast<int>(threads) / 32, each = std::min(255, 65536 / static_cast<int>(threads) / 8 * 8);
    int sum = 0;
    for (int w = 0; w < warps; ++w) {
      if (of_warp[w] != of_warp[w / 4 * 4]) host_cuda::fail("setmaxnreg: the warps of a warpgroup differ");
      sum += of_warp[w] ? of_warp[w] : each;
    }
    if (sum > warps * each)
      host_cuda::fail("setmaxnreg: " + std::to_string(sum / 4) +
                      " registers in all warpgroups' threads, and at launch " + std::to_string(warps * each / 4));
  }
};

}  // namespace host
#endif

template <int kCount>
__device__ __forceinline__ void give_registers() {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0);
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"setmaxnreg.dec", kCount>();
  host_cuda::attached_to_block<host::Registers>(*host_cuda::self->block).set(kCount);
#else
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

template <int kCount>
__device__ __forceinline__ void take_registers() {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0);
#ifdef ATROUSOPS_HOST_CUDA
  host_cuda::executed<"setmaxnreg.inc", kCount>();
  host_cuda::attached_to_block<host::Registers>(*host_cuda::self->block).set(kCount);
#else
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

}  // namespace atrousops::cuda::arch
