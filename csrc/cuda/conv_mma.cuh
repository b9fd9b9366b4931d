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
    int64_t* dst;  // of each row, in positions, -1 where there is no row

    __device__ __forceinline__ explicit Layout(SharedArena& arena)
        : stages(arena.take<char, 128>(Tile::kStages * kStageBytes)), dst(arena.take<int64_t>(Tile::kRows)) {}
    // Where rows begin that are read, until the last stage is filled, and those of a residual, once all have been read.
    // With a list more beside the stages there were no room for two blocks in 100 KB (sm_86, sm_89, sm_120).
    __device__ __forceinline__ int64_t* src() const {
      return reinterpret_cast<int64_t*>(stages + (Tile::kStages - 1) * kStageBytes);
    }
    __device__ __forceinline__ int64_t* residual() const {
      return reinterpret_cast<int64_t*>(stages + kStagingBytes<Tile>);
    }
  };
  static_assert(kStageBytes == conv_mma_stage_bytes(Tile::kRows, Tile::kColumns));
  static_assert(Tile::kStages * kStageBytes >= kStagingBytes<Tile> + Tile::kRows * static_cast<int>(sizeof(int64_t)));
};

// The way out of a block's sums.
template <class Math, class Tile>
struct MmaOut {
  char* shared;
  int64_t *dst, *residual;  // of each row: its position, or -1; room for as many
  int64_t channel, left;    // the tile's first; channels of dst from there on

  // whole_runs: of 16 bytes, each lane's exist or do not.
  template <class T>
  __device__ __forceinline__ void finish(const ConvEpilogue& e, const WarpSums<Math, Tile>& sums,
                                         bool whole_runs) const {
    if (whole_runs) return in_vectors<T>(e, sums);
    each_row_of_sums<typename Math::Stored>(sums, shared, [&](int row, int at, auto& values) {
      if (dst[row] < 0 || at >= left) return;
      constexpr int kCount = sizeof(values) / sizeof(float);
      conv_finish<T>(e, values, dst[row], channel + at, static_cast<int>(left - at < kCount ? left - at : kCount));
    });
  }

 private:
  // Positions become offsets of rows, once for all lanes; of a row that is not there another's residual is read.
  __device__ __forceinline__ void find_rows(int64_t dst_pitch, int64_t residual_pitch) const {
#pragma unroll
    for (int i = 0; i < Tile::kRows; i += Tile::kThreads) {
      const int row = static_cast<int>(threadIdx.x) + i;
      if (Tile::kRows % Tile::kThreads != 0 && row >= Tile::kRows) break;
      const int64_t position = dst[row];
      dst[row] = position < 0 ? -1 : position * dst_pitch;
      residual[row] = position < 0 ? 0 : position * residual_pitch;
    }
    __syncthreads();
  }

  template <class T>
  __device__ __forceinline__ void in_vectors(const ConvEpilogue& e, const WarpSums<Math, Tile>& sums) const {
    using Runs = LaneRuns<typename Math::Stored, Tile>;
    constexpr int kSize = static_cast<int>(sizeof(T));
    find_rows(e.dst_pitch * kSize, e.residual_pitch * kSize);
    const Runs runs(shared);
    const int column = Tile::warp_column() + runs.column;
    const bool exists = column < left;
    const int64_t first = channel + (exists ? column : 0);
    char* const to = static_cast<char*>(e.dst) + first * kSize;
    const char* const from = static_cast<const char*>(e.residual) + first * kSize;
    const ConvRuns<T, Runs::kRun> finished(e, first);
#pragma unroll
    for (int i = 0; i < Tile::kFragments; ++i) {
      runs.put(sums.c[i]);
      float values[Runs::kTurns][Runs::kRun];
#pragma unroll
      for (int turn = 0; turn < Runs::kTurns; ++turn) runs.get(values[turn], turn);
      const int row = Tile::warp_row() + kMmaRows * i + runs.row;
      finished.finish(
          values, [&](int turn) { return reinterpret_cast<const T*>(from + residual[row + turn * Runs::kRowsApart]); },
          [&](int turn, int chunk, uint4 bits) {
            const int64_t offset = dst[row + turn * Runs::kRowsApart];
            if (exists && offset >= 0) arch::store_16(to + offset + kChunk * chunk, bits);
          });
    }
  }
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
    shared.src()[row] = row < tile.rows ? r.src + place.group * t.src_channels : -1;
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
  copy_a.set_lines([&](int line) { return CopyLine{shared.src()[line], shared.src()[line] >= 0}; });
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
  const MmaOut<Math, Tile> out{shared.stages, shared.dst, shared.residual(), base + column, t.dst_channels - column};
  if constexpr (kNarrow<Math>) {
    switch (args.stored) {
      case ScalarType::BFloat16: return out.template finish<BFloat16>(args.epilogue, sums, args.whole_runs);
      case ScalarType::Half: return out.template finish<Half>(args.epilogue, sums, args.whole_runs);
      default: return out.template finish<float>(args.epilogue, sums, args.whole_runs);
    }
  } else {
    ConvEpilogue partial{args.part ? args.part + place.part * args.part_size : nullptr};
    partial.dst_pitch = channels;
    partial.vector_dst = t.dst_channels % 4 == 0;
    if (args.part) {
      out.template finish<float>(partial, sums, args.whole_runs);
    } else {
      out.template finish<T>(args.epilogue, sums, args.whole_runs);
    }
  }
}

}  // namespace atrousops::cuda
