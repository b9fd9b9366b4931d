// The tap-list GEMM on TMA and wgmma: forward, input gradient, transposed.
//
// A tile is a box of positions and images by columns of dst's channels; its sum runs over the taps that are live for
// some position and, inside, over channels of src. For each step one thread has TMA bring the box, displaced by the
// tap, and the weights. What the box reads outside the tensor is zero: that is the padding. Blocks stay for many tiles,
// and loads for the next one go on while sums are written.
#pragma once

#include "cuda/arch/barrier.h"
#include "cuda/conv_wgmma.h"
#include "cuda/launch.h"
#include "cuda/shared.h"
#include "cuda/wgmma_tile.cuh"

namespace atrousops::cuda {

// One tile's columns, and the part of its sum that is this block's.
struct ConvWgmmaWork {
  ConvSegment segment[kAxes];
  int32_t begin[kAxes], length[kAxes];  // lattice positions
  int64_t image;
  int32_t branch, column, part;
  int64_t first, steps;

  __device__ __forceinline__ ConvWgmmaWork(const ConvTable& t, const ConvWgmmaArgs& args, int32_t index) {
    const auto next = [&](int32_t n) {
      const int32_t quotient = index / n, remainder = index - quotient * n;
      index = quotient;
      return remainder;
    };
    column = next(args.column_blocks);
    part = next(args.splits);
    const ConvRegion region = t.region(t.region_of(index));
    index -= region.first_tile;
    branch = region.branch;
    int64_t all = args.channel_blocks;
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      const ConvSegment s = t.segment(axis, region.segment[axis]);
      const int32_t before = next((s.length + args.box[axis] - 1) / args.box[axis]) * args.box[axis];
      segment[axis] = s;
      begin[axis] = s.begin + before;
      length[axis] = min(s.length - before, args.box[axis]);
      all *= s.tap_end - s.tap_begin;
    }
    image = int64_t{index} * args.images;
    first = all * part / args.splits;
    steps = all * (part + 1) / args.splits - first;
  }
};

// Calls f(work) for each tile of this block: forwards and backwards in turn, so that a block with a longer one has a
// shorter one next.
template <class F>
__device__ __forceinline__ void each_wgmma_tile(const ConvTable& t, const ConvWgmmaArgs& args, const F& f) {
  const int32_t blocks = static_cast<int32_t>(gridDim.x), all = t.tiles * args.column_blocks * args.splits;
  const int32_t mine = static_cast<int32_t>(blockIdx.x);
  bool back = false;
  for (int32_t first = 0; first < all; first += blocks, back = !back) {
    const int32_t index = first + (back ? blocks - 1 - mine : mine);
    if (index < all) f(ConvWgmmaWork(t, args, index));
  }
}

// Runs along the steps of a tile's sum.
struct ConvWgmmaCursor {
  const ConvTable& t;
  const ConvWgmmaArgs& args;
  const ConvWgmmaWork& work;
  int32_t i[kAxes], block;  // of the tap; of channels
  int32_t at[kAxes], tap;   // where its box begins, and its weights

  __device__ __forceinline__ ConvWgmmaCursor(const ConvTable& t, const ConvWgmmaArgs& args, const ConvWgmmaWork& work)
      : t(t), args(args), work(work) {
    int64_t rest = split(work.first, args.channel_blocks, block);
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      const int32_t taps = work.segment[axis].tap_end - work.segment[axis].tap_begin;
      rest = split(rest, taps > 0 ? taps : 1, i[axis]);
    }
    find();
  }
  __device__ __forceinline__ void find() {
    int32_t r[kAxes];
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      if (i[axis] >= work.segment[axis].tap_end - work.segment[axis].tap_begin) return;  // beyond the last
      const ConvTap found = t.tap(axis, work.segment[axis].tap_begin + i[axis]);
      at[axis] = t.q[axis] * work.begin[axis] + found.delta;
      r[axis] = found.r;
    }
    const int32_t* strides = args.branch[work.branch].tap_strides;
    tap = r[0] * strides[0] + r[1] * strides[1] + r[2];
  }
  __device__ __forceinline__ void next() {
    if (++block < args.channel_blocks) return;
    block = 0;
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      if (++i[axis] < work.segment[axis].tap_end - work.segment[axis].tap_begin || axis == 0) break;
      i[axis] = 0;
    }
    find();
  }
};

template <class Tile>
struct ConvWgmma {
  static constexpr int kWarps = Tile::kReadingWarps;

  struct Layout {
    char* stages;
    arch::Mbarrier* barriers;
    float* sums;
    int64_t* positions;  // of each row in dst; -1 where there is none

    __device__ __forceinline__ explicit Layout(SharedArena& arena)
        : stages(arena.take<char, 1024>(Tile::kStages * Tile::kStageBytes)),
          barriers(arena.take<arch::Mbarrier>(Pipeline<Tile::kStages>::kBarriers)),
          sums(arena.take<float>(kWarps * kWarpSums)),
          positions(arena.take<int64_t>(Tile::kRows)) {}
  };
  static int64_t shared_bytes() {
    SharedSize size;
    size.take<char, 1024>(Tile::kStages * Tile::kStageBytes);
    size.take<arch::Mbarrier>(Pipeline<Tile::kStages>::kBarriers);
    size.take<float>(kWarps * kWarpSums);
    size.take<int64_t>(Tile::kRows);
    return size.bytes();
  }
};

template <class Tile>
__device__ __forceinline__ void load_wgmma_tiles(const ConvTable& t, const ConvWgmmaMaps& maps,
                                                 const ConvWgmmaArgs& args, const Pipeline<Tile::kStages>& ring,
                                                 char* stages) {
  using B = typename Tile::B;
  arch::tma_prefetch(&maps.src);
  Turn<Tile::kStages> turn;
  each_wgmma_tile(t, args, [&](const ConvWgmmaWork& work) {
    const TensorMap* weights = &maps.weights[work.branch];
    const int32_t image = static_cast<int32_t>(work.image), column = work.column * Tile::kColumns;
    ConvWgmmaCursor cursor(t, args, work);
    for (int64_t step = 0; step < work.steps; ++step) {
      arch::Mbarrier* const full = ring.fill(turn, static_cast<unsigned>(args.box_bytes + B::kBytes));
      char* const stage = stages + turn.stage * Tile::kStageBytes;
      const int32_t channel = cursor.block * Tile::kDepth;
      const int box[5] = {channel, cursor.at[2], cursor.at[1], cursor.at[0], image};
      arch::tma_load(stage, &maps.src, box, full);
#pragma unroll
      for (int i = 0; i < B::kBoxes; ++i) {
        const int along[3] = {channel, cursor.tap, column}, across[3] = {column + i * B::kOfSpan, cursor.tap, channel};
        arch::tma_load(stage + Tile::A::kBytes + i * B::kBoxBytes, weights, B::kAlong ? along : across, full);
      }
      cursor.next();
      turn.next();
    }
  });
}

// Where the rows of this warp go, a lane a row.
template <class Tile>
__device__ __forceinline__ void find_positions(const ConvTable& t, const ConvWgmmaArgs& args, const ConvWgmmaWork& work,
                                               int consumer, int64_t* positions) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 % 4;
  __syncwarp();  // all have read those of the tile before
  if (lane < 16) {
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; ++block) {
      const int row = (consumer * Tile::kBlocks + block) * kBlockRows + 16 * warp + lane;
      int32_t rest = row;
      int64_t position = 0;
      bool exists = true;
#pragma unroll
      for (int axis = kAxes - 1; axis >= 0; --axis) {
        const int32_t quotient = rest / args.box[axis], o = rest - quotient * args.box[axis];
        rest = quotient;
        exists = exists && o < work.length[axis];
        position += (work.segment[axis].p0 + int64_t{work.begin[axis] + o} * t.p[axis]) * t.dst.axis[axis];
      }
      const int64_t image = work.image + rest;
      positions[row] = exists && rest < args.images && image < t.n ? position + image * t.dst.n : -1;
    }
  }
  __syncwarp();
}

template <class Tile>
__device__ __forceinline__ void multiply_wgmma_tiles(const ConvTable& t, const ConvWgmmaArgs& args,
                                                     const Pipeline<Tile::kStages>& ring,
                                                     const typename ConvWgmma<Tile>::Layout& shared, int warp) {
  using T = typename Tile::T;
  const int consumer = warp / 4 - 1;
  Turn<Tile::kStages> turn;
  WgmmaSums<Tile> sums;
  each_wgmma_tile(t, args, [&](const ConvWgmmaWork& work) {
    find_positions<Tile>(t, args, work, consumer, shared.positions);
    sums.multiply_all(ring, turn, shared.stages, consumer, work.steps);
    const int64_t first = int64_t{work.column} * Tile::kColumns;
    ConvEpilogue partial{args.part ? args.part + (work.branch * args.splits + work.part) * args.part_size : nullptr};
    partial.dst_pitch = t.dst_channels;
    partial.vector_dst = t.dst_channels % 4 == 0;
    float* const mine = shared.sums + (warp - 4) * kWarpSums;
    each_row_of_sums(sums, mine, consumer, [&](int row, int at, float (&values)[8]) {
      const int64_t position = shared.positions[row], channel = first + at, left = t.dst_channels - channel;
      if (position < 0 || left <= 0) return;
      const int count = static_cast<int>(left < 8 ? left : 8);
      if (args.part) {
        conv_finish<float>(partial, values, position, channel, count);
      } else {
        conv_finish<T>(args.branch[work.branch].epilogue, values, position, channel, count);
      }
    });
  });
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    conv_wgmma_kernel(const __grid_constant__ ConvTable t, const __grid_constant__ ConvWgmmaMaps maps,
                      const __grid_constant__ ConvWgmmaArgs args) {
  SharedArena arena;
  const typename ConvWgmma<Tile>::Layout shared(arena);
  const Pipeline<Tile::kStages> ring(shared.barriers);
  if (threadIdx.x == 0) ring.init(Tile::kReadingWarps);
  __syncthreads();
  const int warp = warp_id();
  // What the warpgroups had at launch, 168 each, in sum; the compiler holds all code to what it starts with. With 40,
  // the loading warps spill.
  if (warp < 4) {
    arch::give_registers<56>();
    if (warp == 0 && arch::elect_one()) load_wgmma_tiles<Tile>(t, maps, args, ring, shared.stages);
  } else {
    arch::take_registers<224>();
    multiply_wgmma_tiles<Tile>(t, args, ring, shared, warp);
  }
}

template <class T, arch::Major kB>
void conv_wgmma_start(const ConvWgmmaLaunch& l, Stream stream) {
  const auto start = [&]<class Tile>(Tile*) {
    const Launch where{l.blocks, Tile::kThreads, ConvWgmma<Tile>::shared_bytes()};
    launch<conv_wgmma_kernel<Tile>>(where, stream, l.table, l.maps, l.args);
  };
  constexpr arch::Major kA = arch::Major::k;
  // In the order of core::tile_shapes.
  switch (l.tile) {
    case 0: return start(static_cast<WgmmaTile<T, 128, 256, kA, kB, 4>*>(nullptr));
    case 1: return start(static_cast<WgmmaTile<T, 128, 128, kA, kB, 5>*>(nullptr));
    case 2: return start(static_cast<WgmmaTile<T, 128, 64, kA, kB, 5>*>(nullptr));
    default: STD_TORCH_CHECK(false, "conv: no wgmma tile ", l.tile);
  }
}

}  // namespace atrousops::cuda
