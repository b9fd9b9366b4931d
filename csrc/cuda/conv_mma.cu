// Forward, input gradient and transposed convolution on tensor cores: when, with which tile, and how.
#include <algorithm>
#include <cmath>

#include "core/cuda_kernels.h"
#include "core/phases.h"
#include "cuda/conv_mma.h"

namespace atrousops::cuda {
namespace {

// `rate`: the share of the tensor cores' speed that a tile of this shape is expected to reach.
struct Tile {
  int rows, columns, stages;
  bool wide;
  double rate;

  bool is_largest() const { return columns == 128; }
};
// The last is the first with fewer copies under way, for where it would be alone on its multiprocessor.
constexpr Tile kTiles[] = {{128, 128, 4, true, 1.0},
                           {128, 64, 4, true, 0.85},
                           {64, 64, 4, true, 0.7},
                           {128, 32, 4, false, 0.3},
                           {128, 128, 3, true, 0.98}};
constexpr int kTileCount = sizeof(kTiles) / sizeof(Tile), kMostSplits = 16;
// Speed of a multiprocessor with one block, as no other multiplies while it waits and writes; a guess, not measured.
constexpr double kAlone = 0.8;
constexpr int64_t kReservedShared = 1 << 10;  // of each block, by CUDA

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

double average_taps(const core::Problem& p, const core::Phases& phases) {
  const int64_t positions = p.kind == core::Kind::input_grad ? p.in_positions() : p.out_positions();
  return phases.live_share(p) * static_cast<double>(p.out_positions()) * static_cast<double>(p.kernel_positions()) /
         static_cast<double>(std::max<int64_t>(positions, 1));
}

struct Choice {
  int tile = -1, splits = 1;
};

// As in conv_mma_launch.cuh.
bool exists(int tile, ScalarType dtype, MmaPrecision precision) {
  const bool sums_twice =
      dtype == ScalarType::Float8_e4m3fn || (dtype == ScalarType::Float && precision == MmaPrecision::split);
  if (sums_twice && kTiles[tile].is_largest()) return false;
  return !conv_narrow(dtype) || (kTiles[tile].wide && tile != 0);
}

// The least predicted time: whole waves of blocks, and the trip of partial sums through memory.
Choice choose(const core::Problem& p, const ConvPlan (&plans)[2], ScalarType dtype, MmaPrecision precision, bool wide,
              const DeviceProperties& device) {
  const ConvTable& t = plans[0].table;
  const double rate = mma_rate(dtype, precision) / 132;
  const double steps =
      average_taps(p, core::phases(p)) * static_cast<double>(ceil_div(t.src_channels, mma_depth(dtype)));
  Choice best;
  double least = INFINITY;
  for (int i = 0; i < kTileCount; ++i) {
    const Tile& tile = kTiles[i];
    if (tile.wide != wide || !exists(i, dtype, precision)) continue;
    const int64_t tiles = plans[tile.rows == 64].table.tiles;
    const int64_t blocks = tiles * ceil_div(t.dst_channels, tile.columns) * t.groups;
    const double here =
        rate * tile.rate * conv_mma_room(conv_mma_shared_bytes(tile.rows, tile.columns, tile.stages), device);
    const double work = 2.0 * tile.rows * tile.columns * mma_depth(dtype) * steps / here;
    const double bytes = 4.0 * tiles * tile.rows * t.dst_channels * t.groups;
    // Parts of sums are fp32, in which those of int8 are not exact.
    const int most_splits = conv_narrow(dtype) ? 1 : kMostSplits;
    for (int splits = 1; splits <= most_splits && (splits == 1 || steps >= 8 * splits); splits *= 2) {
      const double waves = static_cast<double>(ceil_div(blocks * splits, device.multiprocessors));
      const double seconds = waves * work / splits + (splits > 1 ? 3e-6 + bytes * (2 * splits) / 3e12 : 0);
      if (seconds < least) {
        least = seconds;
        best = {i, splits};
      }
    }
  }
  return best;
}

// Whether all that an epilogue reads and writes is aligned to 16 bytes.
bool conv_aligned(const ConvEpilogue& e) {
  const auto parameters = reinterpret_cast<uintptr_t>(e.scale) | reinterpret_cast<uintptr_t>(e.bias);
  return e.vector_dst && (!e.residual || e.vector_residual) && parameters % 16 == 0;
}

// Positions of dst, counted in memory order.
ConvTensor position_strides(const ConvTable& t) {
  const int64_t last = t.dst_size[2], plane = last * t.dst_size[1];
  return {plane * t.dst_size[0], 0, {plane, last, 1}};
}

void start(const ConvMmaLaunch& l, ScalarType dtype, MmaPrecision precision, Stream stream) {
  switch (dtype) {
    case ScalarType::BFloat16: return conv_mma_bf16(l, stream);
    case ScalarType::Half: return conv_mma_f16(l, stream);
    case ScalarType::Char: return conv_mma_s8(l, stream);
    case ScalarType::Float8_e4m3fn: return conv_mma_e4m3(l, stream);
    default: return precision == MmaPrecision::tf32 ? conv_mma_tf32(l, stream) : conv_mma_split(l, stream);
  }
}

void run(const ConvCall& call, const ConvFuse& fuse, const ConvMmaForced& forced, const Tensor& src, Tensor& dst) {
  const core::Problem& p = call.problem;
  const ScalarType dtype = src.scalar_type();
  const MmaPrecision precision = call.allow_tf32 ? MmaPrecision::tf32 : MmaPrecision::split;
  ConvPlan plans[2] = {conv_plan(p, 128), conv_plan(p, 64)};
  const ConvTable& any = plans[0].table;
  const bool wide = conv_mma_aligned(src, any.src_channels);
  Choice choice = choose(p, plans, dtype, precision, wide, properties(src));
  if (forced.tile >= 0) choice = {forced.tile, forced.splits};
  const Tile& tile = kTiles[choice.tile];
  STD_TORCH_CHECK(!tile.wide || wide, "conv: this tensor-core tile needs rows aligned to 16 bytes");
  STD_TORCH_CHECK(!conv_narrow(dtype) || choice.splits == 1, "conv: sums of 8-bit products are not split");

  ConvPlan& plan = plans[tile.rows == 64];
  ConvTable& t = plan.table;
  const ConvMmaWeights weights = conv_mma_weights(p, call.weight);
  t.src = conv_strides(src);
  t.dst = position_strides(t);
  t.weights = weights.strides;
  plan.upload(src);
  const int64_t channels = t.groups * t.dst_channels, positions = t.n * t.dst.n;
  const int64_t column_blocks = ceil_div(t.dst_channels, tile.columns);
  const int64_t blocks = column_blocks * t.tiles * t.groups * choice.splits;
  STD_TORCH_CHECK(blocks <= INT32_MAX, "conv: tensor cores take up to 2^31 tiles; got ", blocks);
  ConvMmaArgs args{src.const_data_ptr(),
                   weights.tensor.const_data_ptr(),
                   nullptr,
                   positions * channels,
                   weights.columns,
                   static_cast<int32_t>(column_blocks),
                   choice.splits,
                   conv_epilogue(call.bias ? &*call.bias : nullptr, fuse, dst)};
  args.stored = dst.scalar_type();
  // Of channels that leave together.
  const int64_t run = conv_narrow(dtype) ? conv_vector(ScalarType::Half) : conv_vector(dtype);
  if (t.groups > 1 && t.dst_channels % run != 0) args.epilogue.vector_dst = args.epilogue.vector_residual = false;
  args.whole_runs = t.dst_channels % run == 0 && (choice.splits > 1 || conv_aligned(args.epilogue));
  std::optional<Tensor> part;
  if (choice.splits > 1) {
    part = torch::stable::empty({choice.splits, args.part_size}, ScalarType::Float, std::nullopt, src.device());
    args.part = mutable_data<float>(*part);
  }
  const Stream stream = current_stream(src);
  start({t, args, choice.tile, weights.along, blocks}, dtype, precision, stream);
  if (part) conv_mma_sum(args, positions, channels, dtype, stream);
}

}  // namespace

ConvEpilogue conv_epilogue(const Tensor* bias, const ConvFuse& fuse, const Tensor& dst) {
  const int64_t vector = conv_vector(dst.scalar_type());
  ConvEpilogue e{};
  e.dst = memory_of(dst) + fuse.first_channel * (16 / vector);
  e.dst_pitch = dst.size(1);
  e.vector_dst = conv_mma_aligned(dst, dst.size(1)) && fuse.first_channel % vector == 0;
  e.bias = bias ? bias->const_data_ptr() : nullptr;
  e.scale = fuse.scale ? fuse.scale->const_data_ptr() : nullptr;
  e.fp32_parameters = (bias ? *bias : fuse.scale ? *fuse.scale : dst).scalar_type() == ScalarType::Float;
  e.relu = fuse.relu;
  if (fuse.residual) {
    e.residual = fuse.residual->const_data_ptr();
    e.residual_pitch = fuse.residual->size(1);
    e.vector_residual = conv_mma_aligned(*fuse.residual, fuse.residual->size(1));
  }
  return e;
}

double conv_mma_room(int64_t shared_bytes, const DeviceProperties& device) {
  if (shared_bytes > device.shared_per_block) return 0;
  return 2 * (shared_bytes + kReservedShared) <= device.shared_per_multiprocessor ? 1 : kAlone;
}

bool conv_mma_aligned(const Tensor& t, int64_t channels) {
  const int64_t vector = conv_vector(t.scalar_type());
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 && t.size(1) % vector == 0 && channels % vector == 0;
}

const char* conv_mma_cannot(const core::Problem& p, const Tensor& src) {
  const ScalarType dtype = src.scalar_type();
  if (dtype == ScalarType::Double) return "tensor cores multiply no fp64 here";
  if (properties(src).capability < 80) return "needs compute capability 8.0";
  const int64_t src_channels = (p.kind == core::Kind::input_grad ? p.k : p.c) / p.groups;
  if (dtype == ScalarType::Float8_e4m3fn && properties(src).capability < 89) return "needs compute capability 8.9";
  if (conv_narrow(dtype) && p.kind != core::Kind::forward) return "8-bit products are for the forward pass";
  if (dtype == ScalarType::Char && src_channels * p.kernel_positions() > kMostInt8Products)
    return "sums of so many products of int8 may leave 32 bits";
  if (p.kernel_positions() > INT32_MAX / ceil_div(src_channels, 16)) return "2^31 steps or more";
  return nullptr;
}

const char* conv_mma_rule(const ConvCall& call) {
  const core::Problem& p = call.problem;
  if (const char* why = conv_mma_cannot(p, call.src)) return why;
  if (const char* why = core::mma_cannot(p, static_cast<int64_t>(call.src.element_size()))) return why;
  const int64_t src_channels = (p.kind == core::Kind::input_grad ? p.k : p.c) / p.groups;
  const double products = average_taps(p, core::phases(p)) * static_cast<double>(src_channels);
  const bool split = call.src.scalar_type() == ScalarType::Float && !call.allow_tf32;
  return split && products < kShortSum ? "sums too short to hide the error of three tf32 products" : nullptr;
}

void conv_mma(const ConvCall& call) { conv_mma(call, {}, {}); }

void conv_mma(const ConvCall& call, const ConvFuse& fuse, const ConvMmaForced& forced) {
  const Tensor src = dense(call.src, true);
  if (is_channels_last(call.dst)) return run(call, fuse, forced, src, call.dst);
  Tensor dst = empty(sizes_of(call.dst), call.dst, true);
  run(call, fuse, forced, src, dst);
  torch::stable::copy_(call.dst, dst);
}

}  // namespace atrousops::cuda
