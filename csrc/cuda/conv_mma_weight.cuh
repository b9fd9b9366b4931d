// The weight gradient on tensor cores: dw[k][tap][c] = sum over positions o of dy[o][k] x[q o + delta][c].
//
// A block computes rows (channels of dy) by columns (channels of x) of one tap; its sum runs over the positions of all
// images that the tap reads inside for, or over one share of them. Both operands have the reduction across their lines.
#pragma once

#include "cuda/arch/cp_async.h"
#include "cuda/conv_mma.h"
#include "cuda/mma_copy.cuh"
#include "cuda/mma_tile.cuh"
#include "cuda/shared.h"

namespace atrousops::cuda {

// The box of positions in which a tap reads inside, and what a position reads.
struct MmaBox {
  int32_t begin[kAxes], length[kAxes], delta[kAxes];
  int64_t rows;

  __device__ MmaBox(const ConvTable& t, int32_t tap) : rows(t.n) {
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      const ConvTap here = t.tap(axis, tap % t.kernel[axis]);
      tap /= t.kernel[axis];
      begin[axis] = here.begin;
      length[axis] = here.end - here.begin;
      delta[axis] = here.delta;
      rows *= length[axis];
    }
  }
  __device__ ConvRow row(const ConvTable& t, int64_t row) const {
    ConvRow r{0, 0};
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      int32_t o;
      row = split(row, length[axis], o);
      o += begin[axis];
      r.src += (int64_t{o} * t.q[axis] + delta[axis]) * t.src.axis[axis];
      r.dst += int64_t{o} * t.dst.axis[axis];
    }
    r.src += row * t.src.n;
    r.dst += row * t.dst.n;
    return r;
  }
};

template <class Math, class Tile, bool kWide>
struct ConvMmaWeight {
  using T = typename Math::Element;
  static constexpr int kDepth = 64 / static_cast<int>(sizeof(T));
  using A = SharedOperand<T, Tile::kRows, kDepth, false>;
  using B = SharedOperand<T, Tile::kColumns, kDepth, false>;
  static constexpr int kStageBytes = A::kBytes + B::kBytes, kFirst = Tile::kStages - 1;

  struct Layout {
    char* stages;
    int64_t* lines;  // of two steps

    __device__ __forceinline__ explicit Layout(SharedArena& arena)
        : stages(arena.take<char, 128>(Tile::kStages * kStageBytes)), lines(arena.take<int64_t>(4 * kDepth)) {}
    // Where the lines of a step begin, those of dy and then those of x; -1 where there is no position. Those of the
    // first steps, which are found together, lie in the stage that is filled behind them: beside the stages they would
    // leave no room for two blocks in 100 KB (sm_86, sm_89, sm_120).
    __device__ __forceinline__ int64_t* first_lines(int step) const {
      return reinterpret_cast<int64_t*>(stages + kFirst * kStageBytes) + step * (2 * kDepth);
    }
    __device__ __forceinline__ int64_t* lines_of(int step) const { return lines + step % 2 * (2 * kDepth); }
  };
  static_assert(kStageBytes == conv_mma_stage_bytes(Tile::kRows, Tile::kColumns));
  static_assert(kStageBytes >= kFirst * 2 * kDepth * static_cast<int>(sizeof(int64_t)));
  static_assert(Tile::kStages * kStageBytes >= kStagingBytes<Tile>);
};

// Rows of a tile, `pitch` elements apart, of which so many rows and columns exist.
struct MmaPart {
  float* to;
  int64_t pitch, rows, columns;

  template <class Math, class Tile>
  __device__ __forceinline__ void store(const WarpSums<Math, Tile>& sums, char* shared) const {
    each_row_of_sums<float>(sums, shared, [&](int row, int column, const auto& values) {
      if (row >= rows) return;
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(values) / sizeof(float)); ++i)
        if (column + i < columns) to[row * pitch + column + i] = values[i];
    });
  }
  // Of 16 bytes all exist or none do.
  template <class Math, class Tile>
  __device__ __forceinline__ void store_in_vectors(const WarpSums<Math, Tile>& sums, char* shared) const {
    using Runs = LaneRuns<float, Tile>;
    const Runs runs(shared);
    const int row = Tile::warp_row() + runs.row, column = Tile::warp_column() + runs.column;
    const int left = column < columns ? static_cast<int>(rows < Tile::kRows ? rows : Tile::kRows) - row : 0;
    const uint64_t step = static_cast<uint64_t>(Runs::kRowsApart * pitch) * sizeof(float);
    // A number: of a pointer the compiler would make each address anew.
    uint64_t at = reinterpret_cast<uint64_t>(to + row * pitch + column);
#pragma unroll
    for (int i = 0; i < Tile::kFragments; ++i) {
      runs.put(sums.c[i]);
#pragma unroll
      for (int turn = 0; turn < Runs::kTurns; ++turn, at += step) {
        Pack<float, Runs::kRun> values;
        runs.get(values.at, turn);
        if (kMmaRows * i + turn * Runs::kRowsApart < left) store_pack(reinterpret_cast<float*>(at), values);
      }
    }
  }
};

template <class Math, class Tile, bool kWide>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    conv_mma_weight_kernel(const __grid_constant__ ConvTable t, const __grid_constant__ ConvMmaWeightArgs args) {
  using Mma = ConvMmaWeight<Math, Tile, kWide>;
  using T = typename Mma::T;
  constexpr int kDepth = Mma::kDepth;
  SharedArena arena;
  const typename Mma::Layout shared(arena);
  uint32_t rest = blockIdx.x;
  const auto next = [&](int32_t n) {
    const uint32_t quotient = rest / static_cast<uint32_t>(n), remainder = rest - quotient * static_cast<uint32_t>(n);
    rest = quotient;
    return static_cast<int32_t>(remainder);
  };
  const int64_t column = int64_t{next(args.column_blocks)} * Tile::kColumns;
  const int64_t first_row = int64_t{next(args.row_blocks)} * Tile::kRows;
  const int32_t tap = next(args.taps), group = next(static_cast<int32_t>(t.groups)), part = static_cast<int32_t>(rest);
  const MmaBox box(t, tap);

  const int64_t all = (box.rows + kDepth - 1) / kDepth;
  const int64_t first = all * part / args.splits;
  const int steps = static_cast<int>(all * (part + 1) / args.splits - first);
  const auto find_lines = [&](int step, int64_t* lines) {
    const int line = static_cast<int>(threadIdx.x);
    if (line >= kDepth || step >= steps) return;
    const int64_t position = (first + step) * kDepth + line;
    const bool exists = position < box.rows;
    const ConvRow r = box.row(t, exists ? position : 0);
    lines[line] = exists ? r.dst + group * t.dst_channels + first_row : -1;
    lines[kDepth + line] = exists ? r.src + group * t.src_channels + column : -1;
  };
  const T* grad = static_cast<const T*>(args.grad);
  const T* input = static_cast<const T*>(args.input);
  CopyOperand<T, typename Mma::A, Tile::kThreads, kWide> copy_a;
  CopyOperand<T, typename Mma::B, Tile::kThreads, kWide> copy_b;
  const auto copy = [&](int step, const int64_t* lines) {
    if (step < steps) {
      char* stage = shared.stages + step % Tile::kStages * Mma::kStageBytes;
      copy_a.set_lines([&](int line) { return CopyLine{lines[line], lines[line] >= 0}; });
      copy_a.copy(stage, grad, 0, t.dst_channels - first_row);
      copy_b.set_lines([&](int line) { return CopyLine{lines[kDepth + line], lines[kDepth + line] >= 0}; });
      copy_b.copy(stage + Mma::A::kBytes, input, 0, t.src_channels - column);
    }
    arch::cp_async_commit();
  };

  for (int step = 0; step < Mma::kFirst; ++step) find_lines(step, shared.first_lines(step));
  find_lines(Mma::kFirst, shared.lines_of(Mma::kFirst));
  __syncthreads();
  WarpSums<Math, Tile> sums;
  for (int step = 0; step < Mma::kFirst; ++step) copy(step, shared.first_lines(step));
  for (int step = 0; step < steps; ++step) {
    arch::cp_async_wait<Tile::kStages - 2>();
    // Behind it all have finished the step before, whose stage is filled next, and read the lines that are found next.
    __syncthreads();
    copy(step + Mma::kFirst, shared.lines_of(step + Mma::kFirst));
    find_lines(step + Tile::kStages, shared.lines_of(step + Tile::kStages));
    const char* stage = shared.stages + step % Tile::kStages * Mma::kStageBytes;
    sums.template add<typename Mma::A, typename Mma::B>(stage, stage + Mma::A::kBytes);
  }
  arch::cp_async_wait<0>();
  __syncthreads();

  const int64_t pitch = args.taps * t.src_channels;
  const MmaPart part_of{
      args.part + part * args.part_size + (group * t.dst_channels + first_row) * pitch + tap * t.src_channels + column,
      pitch, t.dst_channels - first_row, t.src_channels - column};
  if (kWide || t.src_channels % kChunkOf<float> == 0) {
    part_of.store_in_vectors(sums, shared.stages);
  } else {
    part_of.store(sums, shared.stages);
  }
}

}  // namespace atrousops::cuda
