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
  static constexpr int kStageBytes = A::kBytes + B::kBytes;
  static_assert(Tile::kStages * kStageBytes >= kStagingBytes<Tile>);

  struct Layout {
    char* stages;
    int64_t *grad, *input;  // of each line of each stage, -1 where there is no position

    __device__ __forceinline__ explicit Layout(SharedArena& arena)
        : stages(arena.take<char, 128>(Tile::kStages * kStageBytes)),
          grad(arena.take<int64_t>(Tile::kStages * kDepth)),
          input(arena.take<int64_t>(Tile::kStages * kDepth)) {}
  };
  static int64_t shared_bytes() {
    SharedSize size;
    size.take<char, 128>(Tile::kStages * kStageBytes);
    size.take<int64_t>(Tile::kStages * kDepth);
    size.take<int64_t>(Tile::kStages * kDepth);
    return size.bytes();
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
  const auto find_lines = [&](int step) {
    const int line = static_cast<int>(threadIdx.x);
    if (line >= kDepth || step >= steps) return;
    const int64_t position = (first + step) * kDepth + line;
    const bool exists = position < box.rows;
    const ConvRow r = box.row(t, exists ? position : 0);
    const int at = step % Tile::kStages * kDepth + line;
    shared.grad[at] = exists ? r.dst + group * t.dst_channels + first_row : -1;
    shared.input[at] = exists ? r.src + group * t.src_channels + column : -1;
  };
  const T* grad = static_cast<const T*>(args.grad);
  const T* input = static_cast<const T*>(args.input);
  CopyOperand<T, typename Mma::A, Tile::kThreads, kWide> copy_a;
  CopyOperand<T, typename Mma::B, Tile::kThreads, kWide> copy_b;
  const auto copy = [&](int step) {
    if (step < steps) {
      const int at = step % Tile::kStages;
      char* stage = shared.stages + at * Mma::kStageBytes;
      const auto line_of = [&](const int64_t* lines, int line) {
        const int64_t offset = lines[at * kDepth + line];
        return CopyLine{offset, offset >= 0};
      };
      copy_a.set_lines([&](int line) { return line_of(shared.grad, line); });
      copy_a.copy(stage, grad, 0, t.dst_channels - first_row);
      copy_b.set_lines([&](int line) { return line_of(shared.input, line); });
      copy_b.copy(stage + Mma::A::kBytes, input, 0, t.src_channels - column);
    }
    arch::cp_async_commit();
  };

  for (int step = 0; step < Tile::kStages; ++step) find_lines(step);
  __syncthreads();
  WarpSums<Math, Tile> sums;
  for (int step = 0; step < Tile::kStages - 1; ++step) copy(step);
  for (int step = 0; step < steps; ++step) {
    arch::cp_async_wait<Tile::kStages - 2>();
    // Behind it all have finished the step before, whose stage and lines are filled next.
    __syncthreads();
    copy(step + Tile::kStages - 1);
    find_lines(step + Tile::kStages);
    const char* stage = shared.stages + step % Tile::kStages * Mma::kStageBytes;
    sums.template add<typename Mma::A, typename Mma::B>(stage, stage + Mma::A::kBytes);
  }
  arch::cp_async_wait<0>();
  __syncthreads();

  ConvEpilogue partial{args.part + part * args.part_size + tap * t.src_channels};
  partial.dst_pitch = args.taps * t.src_channels;
  partial.vector_dst = t.src_channels % 4 == 0;
  each_row_of_sums<Math, Tile>(sums, shared.stages, [&](int row, int at, auto& values) {
    constexpr int kCount = sizeof(values) / sizeof(float);
    const int64_t k = first_row + row, left = t.src_channels - column - at;
    if (k >= t.dst_channels || left <= 0) return;
    conv_finish<float>(partial, values, group * t.dst_channels + k, column + at,
                       static_cast<int>(left < kCount ? left : kCount));
  });
}

}  // namespace atrousops::cuda
