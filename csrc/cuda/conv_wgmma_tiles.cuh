// Which tiles a block of conv_wgmma.cuh does, and what its threads must know of them: one warp finds out ahead of the
// others, and hands it to them in shared memory.
#pragma once

#include "cuda/arch/cluster.h"
#include "cuda/conv_wgmma.h"
#include "cuda/pipeline.h"

namespace atrousops::cuda {

inline constexpr int kTilesAhead = 4;

// For those who load: boxes, and where in the list of taps the sum begins.
struct ConvWgmmaWork {
  int32_t tap_begin[kAxes], taps[kAxes];
  int32_t read[kAxes];     // where src is read, but for a tap's displacement
  int32_t written[kAxes];  // where in dst the box begins
  int32_t i[kAxes], block;
  int32_t image, branch;
};

// For those who multiply.
struct alignas(16) ConvWgmmaSum {
  int64_t position;  // in dst, of the box's first
  uint32_t last;     // of the box's positions along each axis and of its images, a byte each
  int32_t steps;     // -1 behind the last tile
  int32_t branch, part, column;
};

template <int kColumns>
struct ConvWgmmaFound {
  ConvWgmmaSum sum;
  ConvWgmmaWork work;
  alignas(16) float bias[kColumns], scale[kColumns];  // where there are any, each at its place
};

// Where the parameters of a column lie: those of the four that a lane has of 16 columns lie side by side.
__device__ __forceinline__ int parameter_place(int column) {
  return (column & ~15) | (column & 6) << 1 | (column & 8) >> 2 | (column & 1);
}

// One tile's columns, and the part of its sum that is this block's. index: of a block's tile, or of a pair's two.
__device__ __forceinline__ void find_wgmma_tile(const ConvTable& t, const ConvWgmmaArgs& args, int32_t index,
                                                int32_t columns, ConvWgmmaWork& work, ConvWgmmaSum& sum) {
  const auto rank = static_cast<int32_t>(arch::cluster_rank());
  if (args.pairs == core::Pairs::map) index = 2 * index + rank;
  sum.column = args.column_blocks.split(index) * columns;
  int64_t rest = index;
  sum.part = static_cast<int32_t>(args.splits.split(rest));
  index = static_cast<int32_t>(rest);
  if (args.pairs == core::Pairs::weights) index = 2 * index + rank;
  const ConvRegion region = t.region(t.region_of(index));
  index -= region.first_tile;
  sum.branch = work.branch = region.branch;
  sum.position = 0;
  sum.last = 0;
  int64_t all = args.channel_blocks;
#pragma unroll
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    const ConvSegment s = t.segment(axis, region.segment[axis]);
    const int32_t size = args.box[axis].value(), pieces = args.box[axis].divide(s.length + size - 1);
    int32_t piece = 0;
    if (pieces > 1) {
      const int32_t quotient = static_cast<int32_t>(static_cast<uint32_t>(index) / static_cast<uint32_t>(pieces));
      piece = index - quotient * pieces;
      index = quotient;
    }
    const int32_t begin = s.begin + piece * size;
    work.written[axis] = s.p0 + begin * t.p[axis];
    sum.position += int64_t{work.written[axis]} * t.dst.axis[axis];
    sum.last |= static_cast<uint32_t>(min(s.length - piece * size, size) - 1) << 8 * axis;
    work.read[axis] = t.q[axis] * begin;
    work.tap_begin[axis] = s.tap_begin;
    work.taps[axis] = s.tap_end - s.tap_begin;
    all *= work.taps[axis];
  }
  work.image = index * args.images;
  sum.position += work.image * t.dst.n;
  sum.last |= static_cast<uint32_t>(min(static_cast<int32_t>(t.n) - work.image, args.images) - 1) << 8 * kAxes;
  int64_t first = args.splits.divide(all * sum.part);
  sum.steps = static_cast<int32_t>(args.splits.divide(all * (sum.part + 1)) - first);
  work.block = work.i[0] = work.i[1] = work.i[2] = 0;
  if (first == 0) return;
  first = split(first, args.channel_blocks, work.block);
#pragma unroll
  for (int axis = kAxes - 1; axis >= 0; --axis)
    first = split(first, work.taps[axis] > 0 ? work.taps[axis] : 1, work.i[axis]);
}

// A warp: each tile of this block, and behind the last one a sum of -1 steps. Forwards and backwards in turn, so that a
// block with a longer tile has a shorter one next. Two blocks of a pair go through the same taps, and so have as many
// steps.
template <class T, int kColumns>
__device__ __forceinline__ void find_wgmma_tiles(const ConvTable& t, const ConvWgmmaArgs& args,
                                                 const Pipeline<kTilesAhead>& tiles, ConvWgmmaFound<kColumns>* found) {
  const int32_t all = t.tiles * args.column_blocks.value() * static_cast<int32_t>(args.splits.value()) >> args.paired();
  const int32_t blocks = static_cast<int32_t>(gridDim.x) >> args.paired();
  const int32_t mine = static_cast<int32_t>(blockIdx.x) >> args.paired();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Turn<kTilesAhead> turn;
  const auto tell = [&](const ConvWgmmaSum& sum) {
    if (lane == 0) found[turn.stage()].sum = sum;
    __syncwarp();
    if (lane == 0) tiles.tell_full(turn);
    turn.next();
  };
  bool back = false;
  for (int32_t first = 0; first < all; first += blocks, back = !back) {
    const int32_t index = first + (back ? blocks - 1 - mine : mine);
    if (index >= all) continue;
    ConvWgmmaWork work;
    ConvWgmmaSum sum;
    find_wgmma_tile(t, args, index, kColumns, work, sum);
    ConvWgmmaFound<kColumns>& to = found[turn.stage()];
    tiles.wait_empty(turn);
    if (lane == 0) to.work = work;
    const ConvEpilogue& e = args.branch[sum.branch].epilogue;
    const auto parameters = [&](const void* from, float* into) {
      if (args.part || !from) return;
#pragma unroll
      for (int i = lane; i < kColumns; i += 32)
        if (sum.column + i < t.dst_channels)
          into[parameter_place(i)] = conv_parameter<T>(from, sum.column + i, e.fp32_parameters);
    };
    parameters(e.bias, to.bias);
    parameters(e.scale, to.scale);
    tell(sum);
  }
  tiles.wait_empty(turn);
  ConvWgmmaSum none{};
  none.steps = -1;
  tell(none);
}

}  // namespace atrousops::cuda
