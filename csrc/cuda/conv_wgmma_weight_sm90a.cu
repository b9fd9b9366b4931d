// The weight gradient on TMA and wgmma: dw[k][tap][c] = sum over positions o of dy[o][k] x[q o + delta][c].
//
// A block computes 128 channels of dy by some of x at one tap. Its sum runs over boxes that cover the rectangle of
// positions in which the tap reads inside, of all images, or over its share of them. A box of dy and the same box of x,
// displaced, come with 64 channels a line, so that the reduction lies across both operands' lines: MN-major. What a box
// has beyond the rectangle is outside of x or of dy, and comes as zero.
#include "cuda/arch/barrier.h"
#include "cuda/conv_wgmma_weight.h"
#include "cuda/launch.h"
#include "cuda/shared.h"
#include "cuda/wgmma_rows.cuh"

namespace atrousops::cuda {
namespace {

template <class T, int kColumns, int kStages>
using WeightTile = WgmmaTile<T, 128, kColumns, arch::Major::mn, arch::Major::mn, kStages>;

template <class Tile>
struct Layout {
  char* stages;
  arch::Mbarrier* barriers;
  char* rows;

  __device__ __forceinline__ explicit Layout(SharedArena& arena)
      : stages(arena.take<char, 1024>(Tile::kStages * Tile::kStageBytes)),
        barriers(arena.take<arch::Mbarrier>(Pipeline<Tile::kStages>::kBarriers)),
        rows(arena.take<char, 128>(Tile::kReadingWarps * kPieceBytes)) {}

  static int64_t bytes() {
    SharedSize size;
    size.take<char, 1024>(Tile::kStages * Tile::kStageBytes);
    size.take<arch::Mbarrier>(Pipeline<Tile::kStages>::kBarriers);
    size.take<char, 128>(Tile::kReadingWarps * kPieceBytes);
    return size.bytes();
  }
};

// The tile of this block, and its share of the boxes.
struct Work {
  int32_t row, column, tap, part;
  int32_t begin[kAxes], delta[kAxes], boxes[kAxes];
  int64_t first, steps;

  __device__ __forceinline__ Work(const ConvTable& t, const ConvWgmmaWeightArgs& args) {
    int32_t rest = static_cast<int32_t>(blockIdx.x);
    column = args.column_blocks.split(rest);
    row = args.row_blocks.split(rest);
    tap = args.taps.split(rest);
    part = rest;
    int64_t all = args.images.divide(static_cast<int32_t>(t.n) + args.images.value() - 1);
    int32_t r = tap;
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      const ConvTap found = t.tap(axis, args.kernel[axis].split(r));
      begin[axis] = found.begin;
      delta[axis] = found.delta;
      boxes[axis] = args.box[axis].divide(found.end - found.begin + args.box[axis].value() - 1);
      all *= boxes[axis];
    }
    first = args.splits.divide(all * part);
    steps = args.splits.divide(all * (part + 1)) - first;
  }
};

template <class Tile>
__device__ __forceinline__ void load(const ConvTable& t, const TensorMap* grad, const TensorMap* input,
                                     const ConvWgmmaWeightArgs& args, const Work& work,
                                     const Pipeline<Tile::kStages>& ring, char* stages) {
  using A = typename Tile::A;
  using B = typename Tile::B;
  arch::tma_prefetch(grad);
  arch::tma_prefetch(input);
  Turn<Tile::kStages> turn;
  int32_t box[kAxes], o[kAxes];
  int64_t rest = work.first;
#pragma unroll
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    if (rest > 0) {
      rest = split(rest, work.boxes[axis], box[axis]);
    } else {
      box[axis] = 0;
    }
    o[axis] = work.begin[axis] + box[axis] * args.box[axis].value();
  }
  int32_t image = static_cast<int32_t>(rest) * args.images.value();
  // To the next box, axis 2 fastest.
  const auto next = [&] {
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      o[axis] += args.box[axis].value();
      if (++box[axis] < work.boxes[axis]) return;
      box[axis] = 0;
      o[axis] = work.begin[axis];
    }
    image += args.images.value();
  };
  for (int64_t step = 0; step < work.steps; ++step, next()) {
    arch::Mbarrier* const full = ring.fill(turn, Tile::kStageBytes);
    char* const stage = stages + turn.stage() * Tile::kStageBytes;
#pragma unroll
    for (int i = 0; i < A::kBoxes; ++i) {
      const int at[5] = {work.row * Tile::kRows + i * A::kOfSpan, o[2], o[1], o[0], image};
      arch::tma_load(stage + i * A::kBoxBytes, grad, at, full);
    }
#pragma unroll
    for (int i = 0; i < B::kBoxes; ++i) {
      const int at[5] = {work.column * Tile::kColumns + i * B::kOfSpan, o[2] * t.q[2] + work.delta[2],
                         o[1] * t.q[1] + work.delta[1], o[0] * t.q[0] + work.delta[0], image};
      arch::tma_load(stage + A::kBytes + i * B::kBoxBytes, input, at, full);
    }
    turn.next();
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    conv_wgmma_weight_kernel(const __grid_constant__ ConvTable t, const __grid_constant__ TensorMap grad,
                             const __grid_constant__ TensorMap input,
                             const __grid_constant__ ConvWgmmaWeightArgs args) {
  SharedArena arena;
  const Layout<Tile> shared(arena);
  const Pipeline<Tile::kStages> ring(shared.barriers);
  if (threadIdx.x == 0) ring.init(Tile::kReadingWarps);
  __syncthreads();
  const int warp = warp_id();
  const Work work(t, args);
  // As conv_wgmma.cuh has it.
  if (warp < 4) {
    arch::give_registers<40>();
    if (warp == 0 && arch::elect_one()) load<Tile>(t, &grad, &input, args, work, ring, shared.stages);
    return;
  }
  arch::take_registers<232>();
  const int consumer = warp / 4 - 1;
  Turn<Tile::kStages> turn;
  WgmmaSums<Tile> sums;
  sums.multiply_all(ring, turn, shared.stages, consumer, work.steps,
                    [&](Turn<Tile::kStages> read) { ring.release(read); });
  const WgmmaPiece<float> piece(shared.rows, warp - 4);
  // Channels come by eight, or the maps would not do.
  const int64_t first = int64_t{work.column} * Tile::kColumns;
  const int64_t k = int64_t{work.row} * Tile::kRows + consumer * kBlockRows + warp % 4 * kWarpRows + piece.known_row();
  const auto chunks = static_cast<uint32_t>(t.src_channels / 4);
  const WgmmaLines<float> lines(
      piece, args.part + work.part * args.part_size + first,
      k < t.dst_channels ? (static_cast<uint32_t>(k) * args.taps.value() + work.tap) * chunks : kNoRow,
      static_cast<int>(min(t.src_channels - first, int64_t{Tile::kColumns})));
  store_rows<float>(sums, piece, lines, false, [](int, float*) {});
}

template <class Tile>
void start(const ConvWgmmaWeightLaunch& l, Stream stream) {
  const ConvWgmmaWeightArgs& a = l.args;
  const int64_t blocks = int64_t{a.row_blocks.value()} * a.column_blocks.value() * a.taps.value() * a.splits.value();
  launch<conv_wgmma_weight_kernel<Tile>>(Launch{static_cast<unsigned>(blocks), Tile::kThreads, Layout<Tile>::bytes()},
                                         stream, l.table, l.grad, l.input, a);
}

template <class T>
void start_tile(const ConvWgmmaWeightLaunch& l, Stream stream) {
  switch (l.columns) {
    case 256: return start<WeightTile<T, 256, 4>>(l, stream);
    case 128: return start<WeightTile<T, 128, 6>>(l, stream);
    case 64: return start<WeightTile<T, 64, 8>>(l, stream);
    default: STD_TORCH_CHECK(false, "conv_grad_weight: no wgmma tile of ", l.columns, " columns");
  }
}

}  // namespace

void conv_wgmma_weight_sm90a(const ConvWgmmaWeightLaunch& l, Stream stream) {
  if (l.dtype == ScalarType::BFloat16) return start_tile<BFloat16>(l, stream);
  STD_TORCH_CHECK(l.dtype == ScalarType::Half, "conv_grad_weight: wgmma takes 16-bit types here");
  start_tile<Half>(l, stream);
}

}  // namespace atrousops::cuda
