// The weight gradient on tensor cores: when, with which tile, and how.
#include <algorithm>
#include <cmath>

#include "core/phases.h"
#include "cuda/conv_mma.h"

namespace atrousops::cuda {
namespace {

// `rate`: as those of conv_mma.cu have it, and so is the last.
struct Tile {
  int size, stages;
  bool wide;
  double rate;

  bool is_largest() const { return size == 128; }
};
constexpr Tile kTiles[] = {{128, 4, true, 1.0}, {64, 4, true, 0.7}, {64, 4, false, 0.3}, {128, 3, true, 0.98}};
constexpr int kTileCount = sizeof(kTiles) / sizeof(Tile), kMostSplits = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Positions along an axis in which the tap that reads inside least often, but does, reads inside.
int64_t shortest(const core::Axis& a) {
  int64_t least = a.out;
  const auto phases = core::axis_phases(core::Kind::weight_grad, a);
  for (const core::AxisTap& t : phases[0].taps)
    if (t.begin < t.end) least = std::min(least, t.end - t.begin);
  return least;
}

struct Choice {
  int tile = -1, splits = 1;
};
Choice choose(const core::Problem& p, ScalarType dtype, MmaPrecision precision, bool wide,
              const DeviceProperties& device) {
  const int64_t k = p.k / p.groups, c = p.c / p.groups, taps = p.kernel_positions();
  const double rate = mma_rate(dtype, precision) / 132;
  const double positions = static_cast<double>(p.n * p.out_positions()) * core::phases(p).live_share(p);
  const double steps = positions / mma_depth(dtype);
  Choice best;
  double least = INFINITY;
  for (int i = 0; i < kTileCount; ++i) {
    const Tile& tile = kTiles[i];
    const bool sums_twice = dtype == ScalarType::Float && precision == MmaPrecision::split;
    if (tile.wide != wide || (tile.is_largest() && sums_twice)) continue;
    const int64_t shared_bytes = conv_mma_weight_shared_bytes(tile.size, tile.size, tile.stages, mma_depth(dtype));
    const double here = rate * tile.rate * conv_mma_room(shared_bytes, device);
    const int64_t blocks = ceil_div(k, tile.size) * ceil_div(c, tile.size) * taps * p.groups;
    const double work = 2.0 * tile.size * tile.size * mma_depth(dtype) * steps / here;
    for (int splits = 1; splits <= kMostSplits && (splits == 1 || steps >= 8 * splits); splits *= 2) {
      const double waves = static_cast<double>(ceil_div(blocks * splits, device.multiprocessors));
      const double seconds = waves * work / splits + 8.0 * splits * static_cast<double>(p.weight_elements()) / 3e12;
      if (seconds < least) {
        least = seconds;
        best = {i, splits};
      }
    }
  }
  return best;
}

void start(const ConvMmaWeightLaunch& l, ScalarType dtype, MmaPrecision precision, Stream stream) {
  switch (dtype) {
    case ScalarType::BFloat16: return conv_mma_weight_bf16(l, stream);
    case ScalarType::Half: return conv_mma_weight_f16(l, stream);
    default:
      return precision == MmaPrecision::tf32 ? conv_mma_weight_tf32(l, stream) : conv_mma_weight_split(l, stream);
  }
}

}  // namespace

const char* conv_mma_weight_rule(const ConvWeightCall& call) {
  const core::Problem& p = call.problem;
  if (const char* why = conv_mma_cannot(p, call.input)) return why;
  if (call.input.scalar_type() != ScalarType::Float || call.allow_tf32) return nullptr;
  // As conv_mma_rule has it; the shortest sums are those of a corner tap.
  int64_t products = p.n;
  for (const core::Axis& a : p.axis) products *= shortest(a);
  return products < kShortSum ? "sums too short to hide the error of three tf32 products" : nullptr;
}

void conv_mma_weight(const ConvWeightCall& call) { conv_mma_weight(call, {}); }

void conv_mma_weight(const ConvWeightCall& call, const ConvMmaForced& forced) {
  const core::Problem& p = call.problem;
  const Tensor grad = dense(call.grad, true), input = dense(call.input, true);
  const ScalarType dtype = input.scalar_type();
  const MmaPrecision precision = call.allow_tf32 ? MmaPrecision::tf32 : MmaPrecision::split;
  const int64_t k = p.k / p.groups, c = p.c / p.groups, taps = p.kernel_positions();
  const bool wide = conv_mma_aligned(grad, k) && conv_mma_aligned(input, c);
  Choice choice = choose(p, dtype, precision, wide, properties(input));
  if (forced.tile >= 0) choice = {forced.tile, forced.splits};
  const Tile& tile = kTiles[choice.tile];
  STD_TORCH_CHECK(!tile.wide || wide, "conv_grad_weight: this tensor-core tile needs rows aligned to 16 bytes");

  ConvPlan plan = conv_plan(p, 0);
  plan.table.src = conv_strides(input);
  plan.table.dst = conv_strides(grad);
  plan.upload(input);
  const int64_t row_blocks = ceil_div(k, tile.size), column_blocks = ceil_div(c, tile.size);
  const int64_t blocks = row_blocks * column_blocks * taps * p.groups * choice.splits, elements = p.weight_elements();
  STD_TORCH_CHECK(blocks <= INT32_MAX, "conv_grad_weight: tensor cores take up to 2^31 tiles; got ", blocks);
  Tensor part = torch::stable::empty({choice.splits, elements}, ScalarType::Float, std::nullopt, input.device());
  const ConvMmaWeightArgs args{grad.const_data_ptr(),
                               input.const_data_ptr(),
                               mutable_data<float>(part),
                               elements,
                               static_cast<int32_t>(row_blocks),
                               static_cast<int32_t>(column_blocks),
                               static_cast<int32_t>(taps),
                               choice.splits};
  start({plan.table, args, choice.tile, blocks}, dtype, precision, current_stream(input));
  conv_sum_parts(part, choice.splits, {{1, p.k, taps, c}, {0, c * taps, 1, taps}}, call.out);
}

}  // namespace atrousops::cuda
