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
#include "cuda/wgmma_tile.cuh"

namespace atrousops::cuda {
namespace {

template <class T, int kColumns, int kStages>
using WeightTile = WgmmaTile<T, 128, kColumns, arch::Major::mn, arch::Major::mn, kStages>;

template <class Tile>
struct Layout {
  char* stages;
  arch::Mbarrier* barriers;
  float* sums;

  __device__ __forceinline__ explicit Layout(SharedArena& arena)
      : stages(arena.take<char, 1024>(Tile::kStages * Tile::kStageBytes)),
        barriers(arena.take<arch::Mbarrier>(Pipeline<Tile::kStages>::kBarriers)),
        sums(arena.take<float>(Tile::kReadingWarps * kWarpSums)) {}

  static int64_t bytes() {
    SharedSize size;
    size.take<char, 1024>(Tile::kStages * Tile::kStageBytes);
    size.take<arch::Mbarrier>(Pipeline<Tile::kStages>::kBarriers);
    size.take<float>(Tile::kReadingWarps * kWarpSums);
    return size.bytes();
  }
};

// The tile of this block, and its share of the boxes.
struct Work {
  int32_t row, column, tap, part;
  int32_t begin[kAxes], delta[kAxes], boxes[kAxes], image_boxes;
  int64_t first, steps;

  __device__ __forceinline__ Work(const ConvTable& t, const ConvWgmmaWeightArgs& args) {
    uint32_t rest = blockIdx.x;
    const auto next = [&](int32_t n) {
      const uint32_t quotient = rest / static_cast<uint32_t>(n), remainder = rest - quotient * static_cast<uint32_t>(n);
      rest = quotient;
      return static_cast<int32_t>(remainder);
    };
    column = next(args.column_blocks);
    row = next(args.row_blocks);
    tap = next(args.taps);
    part = static_cast<int32_t>(rest);
    image_boxes = (static_cast<int32_t>(t.n) + args.images - 1) / args.images;
    int64_t all = image_boxes;
    int32_t r = tap;
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      const ConvTap found = t.tap(axis, r % t.kernel[axis]);
      r /= t.kernel[axis];
      begin[axis] = found.begin;
      delta[axis] = found.delta;
      boxes[axis] = (found.end - found.begin + args.box[axis] - 1) / args.box[axis];
      all *= boxes[axis];
    }
    first = all * part / args.splits;
    steps = all * (part + 1) / args.splits - first;
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
  for (int64_t step = 0; step < work.steps; ++step) {
    int64_t rest = work.first + step;
    int32_t o[kAxes];
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      rest = split(rest, work.boxes[axis], o[axis]);
      o[axis] = work.begin[axis] + o[axis] * args.box[axis];
    }
    const int32_t image = static_cast<int32_t>(rest) * args.images;
    arch::Mbarrier* const full = ring.fill(turn, Tile::kStageBytes);
    char* const stage = stages + turn.stage * Tile::kStageBytes;
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
  sums.multiply_all(ring, turn, shared.stages, consumer, work.steps);
  float* const to = args.part + work.part * args.part_size;
  each_row_of_sums(sums, shared.sums + (warp - 4) * kWarpSums, consumer, [&](int row, int at, float (&values)[8]) {
    const int64_t k = int64_t{work.row} * Tile::kRows + row, c = int64_t{work.column} * Tile::kColumns + at;
    // Channels come by eight, or the maps would not do.
    if (k >= t.dst_channels || c >= t.src_channels) return;
    auto* const out = reinterpret_cast<float4*>(to + (k * args.taps + work.tap) * t.src_channels + c);
    out[0] = make_float4(values[0], values[1], values[2], values[3]);
    out[1] = make_float4(values[4], values[5], values[6], values[7]);
  });
}

template <class Tile>
void start(const ConvWgmmaWeightLaunch& l, Stream stream) {
  const ConvWgmmaWeightArgs& a = l.args;
  const unsigned blocks = static_cast<unsigned>(a.row_blocks) * static_cast<unsigned>(a.column_blocks) *
                          static_cast<unsigned>(a.taps) * static_cast<unsigned>(a.splits);
  launch<conv_wgmma_weight_kernel<Tile>>(Launch{blocks, Tile::kThreads, Layout<Tile>::bytes()}, stream, l.table, l.grad,
                                         l.input, a);
}

template <class T>
void start_tile(const ConvWgmmaWeightLaunch& l, Stream stream) {
  switch (l.columns) {
    case 256: return start<WeightTile<T, 256, 4>>(l, stream);
    case 128: return start<WeightTile<T, 128, 5>>(l, stream);
    case 64: return start<WeightTile<T, 64, 5>>(l, stream);
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
