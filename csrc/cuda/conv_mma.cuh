// The tap-list GEMM on tensor cores: forward, input gradient, transposed.
//
// A block computes rows x columns of one tile: rows are positions of a live region, columns channels of dst, and the
// sum runs over taps and, inside, over channels of src. A pipeline of cp.async brings the rows, displaced by the tap,
// and the weights; no tap of a tile is dead for any of its rows, so that rows beyond the region's last are all that is
// left out. A tile's sum may be split among blocks, which then leave partial sums.
#pragma once

#include "cuda/arch/cp_async.h"
#include "cuda/conv_mma.h"
#include "cuda/mma_copy.cuh"
#include "cuda/mma_tile.cuh"
#include "cuda/shared.h"

namespace atrousops::cuda {

// Runs along the steps of a tile's sum.
template <int kDepth>
struct MmaCursor {
  const ConvTable& t;
  const ConvTile& tile;
  int32_t i[kAxes];  // of the tap
  int64_t channel;
  int64_t src, weight;  // offsets of the tap

  __device__ MmaCursor(const ConvTable& t, const ConvTile& tile, int64_t step) : t(t), tile(tile) {
    const int64_t blocks = (t.src_channels + kDepth - 1) / kDepth;
    int64_t rest = step / blocks;
    channel = (step - rest * blocks) * kDepth;
#pragma unroll
    for (int axis = kAxes - 1; axis > 0; --axis) {
      const int32_t n = tile.taps(axis) > 0 ? tile.taps(axis) : 1;
      rest = split(rest, n, i[axis]);
    }
    i[0] = static_cast<int32_t>(rest);
    find();
  }
  __device__ __forceinline__ void find() {
    src = weight = 0;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      if (i[axis] >= tile.taps(axis)) return;  // beyond the last, or no tap at all
      const ConvTap tap = t.tap(axis, tile.segment[axis].tap_begin + i[axis]);
      src += src_offset(t, axis, tap);
      weight += weight_offset(t, axis, tap);
    }
  }
  __device__ __forceinline__ void advance() {
    channel += kDepth;
    if (channel < t.src_channels) return;
    channel = 0;
    if (++i[2] == tile.taps(2)) {
      i[2] = 0;
      if (++i[1] == tile.taps(1)) {
        i[1] = 0;
        ++i[0];
      }
    }
    find();
  }
};

// The tile, channels and steps of this block.
struct MmaPlace {
  int32_t column, tile, group, part;

  __device__ MmaPlace(const ConvTable& t, const ConvMmaArgs& args) {
    uint32_t rest = blockIdx.x;
    const auto next = [&](uint32_t n) {
      const uint32_t quotient = rest / n, remainder = rest - quotient * n;
      rest = quotient;
      return static_cast<int32_t>(remainder);
    };
    column = next(args.column_blocks);
    tile = next(t.tiles);
    group = next(static_cast<uint32_t>(t.groups));
    part = static_cast<int32_t>(rest);
  }
};

template <class Math, class Tile, bool kAlong, bool kWide>
struct ConvMma {
  using T = typename Math::Element;
  static constexpr int kDepth = 64 / static_cast<int>(sizeof(T));
  using A = SharedOperand<T, Tile::kRows, kDepth, true>;
  using B = SharedOperand<T, Tile::kColumns, kDepth, kAlong>;
  static constexpr int kStageBytes = A::kBytes + B::kBytes;

  struct Layout {
    char* stages;
    int64_t *src, *dst;  // of each row; dst counts positions, -1 where there is no row

    __device__ __forceinline__ explicit Layout(SharedArena& arena)
        : stages(arena.take<char, 128>(Tile::kStages * kStageBytes)),
          src(arena.take<int64_t>(Tile::kRows)),
          dst(arena.take<int64_t>(Tile::kRows)) {}
  };
  static int64_t shared_bytes() {
    SharedSize size;
    size.take<char, 128>(Tile::kStages * kStageBytes);
    size.take<int64_t>(Tile::kRows);
    size.take<int64_t>(Tile::kRows);
    return size.bytes();
  }
  static_assert(Tile::kStages * kStageBytes >= kStagingBytes<Tile>);
};

template <class Math, class Tile, bool kAlong, bool kWide>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    conv_mma_kernel(const __grid_constant__ ConvTable t, const __grid_constant__ ConvMmaArgs args) {
  using Mma = ConvMma<Math, Tile, kAlong, kWide>;
  using T = typename Mma::T;
  SharedArena arena;
  const typename Mma::Layout shared(arena);
  const MmaPlace place(t, args);
  const ConvTile tile = conv_tile(t, place.tile);
  for (int row = threadIdx.x; row < Tile::kRows; row += Tile::kThreads) {
    const ConvRow r = conv_row(t, tile, row < tile.rows ? row : 0);
    shared.src[row] = row < tile.rows ? r.src + place.group * t.src_channels : -1;
    shared.dst[row] = row < tile.rows ? r.dst : -1;
  }
  __syncthreads();

  const int64_t all = tile.taps() * ((t.src_channels + Mma::kDepth - 1) / Mma::kDepth);
  const int64_t first = all * place.part / args.splits;
  const int steps = static_cast<int>(all * (place.part + 1) / args.splits - first);
  const int64_t column = int64_t{place.column} * Tile::kColumns;
  const T* src = static_cast<const T*>(args.src);
  const T* weight = static_cast<const T*>(args.weight) + place.group * t.weights.group;
  CopyOperand<T, typename Mma::A, Tile::kThreads, kWide> copy_a;
  CopyOperand<T, typename Mma::B, Tile::kThreads, true> copy_b;
  copy_a.set_lines(
      [&](int line) { return shared.src[line] < 0 ? CopyLine{0, false} : CopyLine{shared.src[line], true}; });
  if constexpr (kAlong)
    copy_b.set_lines(
        [&](int line) { return CopyLine{(column + line) * t.weights.dst, column + line < t.dst_channels}; });
  MmaCursor<Mma::kDepth> cursor(t, tile, first);
  const auto copy = [&](int step) {
    if (step < steps) {
      char* stage = shared.stages + step % Tile::kStages * Mma::kStageBytes;
      copy_a.copy(stage, src, cursor.src + cursor.channel, t.src_channels - cursor.channel);
      if constexpr (kAlong) {
        copy_b.copy(stage + Mma::A::kBytes, weight, cursor.weight + cursor.channel,
                    args.weight_columns - cursor.channel);
      } else {
        copy_b.copy_lines(stage + Mma::A::kBytes, weight, cursor.weight + cursor.channel * t.weights.src + column,
                          t.weights.src, t.src_channels - cursor.channel, args.weight_columns - column);
      }
      cursor.advance();
    }
    arch::cp_async_commit();  // an empty group too, so that the count of groups is that of steps
  };

  WarpSums<Math, Tile> sums;
  for (int step = 0; step < Tile::kStages - 1; ++step) copy(step);
  for (int step = 0; step < steps; ++step) {
    arch::cp_async_wait<Tile::kStages - 2>();
    // Behind it all have finished the step before, whose stage is filled next.
    __syncthreads();
    copy(step + Tile::kStages - 1);
    const char* stage = shared.stages + step % Tile::kStages * Mma::kStageBytes;
    sums.template add<typename Mma::A, typename Mma::B>(stage, stage + Mma::A::kBytes);
  }
  arch::cp_async_wait<0>();
  __syncthreads();

  const int64_t base = place.group * t.dst_channels, channels = t.groups * t.dst_channels;
  ConvEpilogue partial{args.part ? args.part + place.part * args.part_size : nullptr};
  partial.dst_pitch = channels;
  partial.vector_dst = t.dst_channels % 4 == 0;
  each_row_of_sums<Math, Tile>(sums, shared.stages, [&](int row, int at, auto& values) {
    const int64_t position = shared.dst[row];
    const int64_t left = t.dst_channels - column - at;
    if (position < 0 || left <= 0) return;
    constexpr int kCount = sizeof(values) / sizeof(float);
    const int count = static_cast<int>(left < kCount ? left : kCount);
    if (args.part) {
      conv_finish<float>(partial, values, position, base + column + at, count);
    } else {
      conv_finish<T>(args.epilogue, values, position, base + column + at, count);
    }
  });
}

}  // namespace atrousops::cuda
