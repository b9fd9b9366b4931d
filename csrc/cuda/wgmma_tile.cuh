// What kernels of TMA and wgmma share: operands as boxes of 128-byte rows, the sums of a warpgroup, and their way out.
//
// A block has one warpgroup that loads, of which one thread works, and two that multiply, each half of the tile's rows.
#pragma once

#include "cuda/arch/setmaxnreg.h"
#include "cuda/arch/tma.h"
#include "cuda/arch/wgmma.h"
#include "cuda/pipeline.h"
#include "cuda/platform.h"
#include "cuda/shared.h"

namespace atrousops::cuda {

inline constexpr int kSpan = 128;      // bytes of a row of a box, which is swizzled as a whole
inline constexpr int kBlockRows = 64;  // of A in one wgmma
inline constexpr int kWarpgroup = 128;
inline constexpr int kConsumers = 2;  // warpgroups that multiply

// kExtent rows of A or columns of B by kDepth of the reduction, in one stage.
//   K-major:  one box {kDepth, kExtent}, kDepth elements being a row's 128 bytes
//   MN-major: kBoxes boxes {128 bytes of the extent, kDepth} behind each other
template <class T, arch::Major kMajor, int kExtent, int kDepth>
struct WgmmaOperand {
  static constexpr bool kAlong = kMajor == arch::Major::k;
  static constexpr int kOfSpan = kSpan / static_cast<int>(sizeof(T));
  static constexpr int kBytes = kExtent * kDepth * static_cast<int>(sizeof(T));
  static constexpr int kBoxes = kAlong ? 1 : kExtent / kOfSpan, kBoxBytes = kBytes / kBoxes;
  static_assert(kAlong ? kDepth == kOfSpan : kExtent % kOfSpan == 0 && sizeof(T) == 2);
  static_assert(kExtent % 8 == 0 && kDepth % 8 == 0);  // boxes begin where the swizzle's pattern does

  // 64 rows from 64 * block on (all columns, of B), and 32 bytes of the reduction from 32 * step on.
  static __device__ __forceinline__ uint64_t at(const char* stage, int block, int step) {
    if constexpr (kAlong) {
      const uint64_t first = arch::wgmma_k_major(stage, Swizzle::bytes_128);
      return arch::wgmma_advance(first, block * kBlockRows * kSpan + 32 * step);
    } else {
      const uint64_t first = arch::wgmma_mn_major(stage, Swizzle::bytes_128, kDepth);
      return arch::wgmma_advance(first, block * kDepth * kSpan + 16 * kSpan * step);
    }
  }
};

template <class T_, int kRowsOfTile, int kColumnsOfTile, arch::Major kMajorOfA, arch::Major kMajorOfB,
          int kStagesOfPipeline>
struct WgmmaTile {
  using T = T_;
  using Out = T;                     // what sums are rounded to
  using Sum = arch::wgmma_sum_t<T>;  // what they are while products are added
  static constexpr arch::Major kA = kMajorOfA, kB = kMajorOfB;
  static constexpr int kRows = kRowsOfTile, kColumns = kColumnsOfTile, kStages = kStagesOfPipeline;
  static constexpr int kDepth = kSpan / static_cast<int>(sizeof(T)), kSteps = kSpan / 32;  // of a stage
  using A = WgmmaOperand<T, kA, kRows, kDepth>;
  using B = WgmmaOperand<T, kB, kColumns, kDepth>;
  static constexpr int kStageBytes = A::kBytes + B::kBytes;
  static constexpr int kBlocks = kRows / kBlockRows / kConsumers;  // of 64 rows, of a warpgroup
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup, kReadingWarps = kConsumers * kWarpgroup / 32;
  static_assert(kBlocks * kBlockRows * kConsumers == kRows);
};

// The same with results of a type of their own.
template <class Tile, class Out_>
struct WgmmaInto : Tile {
  using Out = Out_;
};

// The same in all lanes, and known to the compiler to be.
__device__ __forceinline__ int warp_id() { return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0); }

// The sums of one warpgroup, `consumer` 0 or 1: kBlocks times 64 rows from kBlocks * 64 * consumer on.
template <class Tile>
struct WgmmaSums {
  using Sum = typename Tile::Sum;
  Sum d[Tile::kBlocks][Tile::kColumns / 2];

  __device__ __forceinline__ void keep() {
#pragma unroll
    for (int i = 0; i < Tile::kBlocks; ++i) arch::wgmma_keep(d[i]);
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < Tile::kBlocks; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kColumns / 2; ++j) d[i][j] = 0;
  }
  // Starts the products of one stage, as one group. anew: what the sums were is forgotten.
  __device__ __forceinline__ void multiply(const char* stage, int consumer, bool anew = false) {
    keep();
    arch::wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step)
#pragma unroll
      for (int i = 0; i < Tile::kBlocks; ++i)
        arch::wgmma<typename Tile::T, Tile::kColumns, Tile::kA, Tile::kB>(
            d[i], Tile::A::at(stage, consumer * Tile::kBlocks + i, step), Tile::B::at(stage + Tile::A::kBytes, 0, step),
            !anew || step > 0);
    arch::wgmma_commit();
  }
  // The sums of `steps` stages from `turn` on, which goes on behind them; while products of one stage run, those of the
  // next are started. One lane calls release(turn) when a stage has been read.
  template <class F>
  __device__ __forceinline__ void multiply_all(const Pipeline<Tile::kStages>& ring, Turn<Tile::kStages>& turn,
                                               const char* stages, int consumer, int64_t steps, const F& release) {
    const bool first_lane = threadIdx.x % 32 == 0;
    Turn<Tile::kStages> before = turn;
    clear();
    for (int64_t step = 0; step < steps; ++step) {
      ring.wait_full(turn);
      multiply(stages + turn.stage() * Tile::kStageBytes, consumer);
      if (step > 0) {
        arch::wgmma_wait<1>();
        if (first_lane) release(before);
      }
      before = turn;
      turn.next();
    }
    arch::wgmma_wait<0>();
    keep();
    if (steps > 0 && first_lane) release(before);
  }
  // The same where tensor cores keep fewer bits of a sum than fp32 has: each stage's sum is added to the others in
  // fp32, with a second set of registers, and while the other warpgroup multiplies.
  template <class F>
  __device__ __forceinline__ void multiply_apart(const Pipeline<Tile::kStages>& ring, Turn<Tile::kStages>& turn,
                                                 const char* stages, int consumer, int64_t steps, const F& release) {
    WgmmaSums part;
    clear();
    for (int64_t step = 0; step < steps; ++step) {
      ring.wait_full(turn);
      part.multiply(stages + turn.stage() * Tile::kStageBytes, consumer, true);
      arch::wgmma_wait<0>();
      part.keep();
      if (threadIdx.x % 32 == 0) release(turn);
      turn.next();
#pragma unroll
      for (int i = 0; i < Tile::kBlocks; ++i)
#pragma unroll
        for (int j = 0; j < Tile::kColumns / 2; ++j) d[i][j] += part.d[i][j];
    }
  }
};

}  // namespace atrousops::cuda
