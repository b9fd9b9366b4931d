// The weight gradient by TMA and wgmma: when, with which boxes and tiles, and how.
#include <algorithm>
#include <cmath>

#include "core/checked.h"
#include "core/phases.h"
#include "cuda/conv_mma.h"
#include "cuda/conv_wgmma_weight.h"
#include "cuda/launch.h"

namespace atrousops::cuda {
namespace {

using core::ceil_div;

constexpr int64_t kRows = 128, kBoxChannels = 64, kMostSplits = 64;
// Operations per second of an H100 that predictions go by, and the share of them that tiles of so many columns reach;
// only ratios matter.
constexpr double kRate = 600e12, kCopy = 3e12;
struct Columns {
  int64_t count;
  double share;
};
constexpr Columns kColumns[] = {{256, 1.0}, {128, 0.9}, {64, 0.7}};

struct Boxes {
  int32_t size[kAxes + 1];  // axes, then images
  double count;             // of all taps
};

// Boxes along an axis, of all taps together.
int64_t boxes_along(const core::AxisPhase& phase, int64_t size) {
  int64_t count = 0;
  for (const core::AxisTap& t : phase.taps)
    if (t.begin < t.end) count += ceil_div(t.end - t.begin, size);
  return count;
}

// Of the boxes of kWeightBox positions those of which the fewest cover all taps' rectangles.
Boxes choose_boxes(const core::Problem& p) {
  std::array<std::vector<core::AxisPhase>, kAxes> phases;
  for (int i = 0; i < kAxes; ++i) phases[static_cast<size_t>(i)] = core::axis_phases(p.kind, p.axis[i]);
  Boxes best{{}, INFINITY};
  for (int32_t x = 1; x <= kWeightBox; x *= 2)
    for (int32_t y = 1; x * y <= kWeightBox; y *= 2)
      for (int32_t z = 1; x * y * z <= kWeightBox; z *= 2) {
        const int32_t size[kAxes + 1] = {z, y, x, kWeightBox / (x * y * z)};
        double count = static_cast<double>(ceil_div(p.n, size[kAxes]));
        bool fits = true;
        for (int i = 0; i < kAxes; ++i) {
          count *= static_cast<double>(boxes_along(phases[static_cast<size_t>(i)][0], size[i]));
          fits = fits && size[i] * p.axis[i].stride <= 256;
        }
        if (!fits || count >= best.count) continue;
        std::copy(size, size + kAxes + 1, best.size);
        best.count = count;
      }
  return best;
}

struct Choice {
  int64_t columns = 0, splits = 1;
};
Choice choose(const core::Problem& p, double boxes, int64_t multiprocessors) {
  const int64_t taps = p.kernel_positions();
  const double steps = boxes / static_cast<double>(taps);
  Choice best;
  double least = INFINITY;
  for (const Columns& c : kColumns) {
    const int64_t blocks = ceil_div(p.k, kRows) * ceil_div(p.c, c.count) * taps;
    const double work = 2.0 * kRows * static_cast<double>(c.count * kWeightBox) * steps / (kRate / 132 * c.share);
    for (int64_t splits = 1; splits <= kMostSplits && (splits == 1 || steps >= 4.0 * splits); splits *= 2) {
      const auto waves = static_cast<double>(ceil_div(blocks * splits, multiprocessors));
      const double seconds = waves * work / splits + 8.0 * splits * static_cast<double>(p.weight_elements()) / kCopy;
      if (seconds >= least) continue;
      least = seconds;
      best = {c.count, splits};
    }
  }
  return best;
}

// `size`: of its axes; every stride-th position of a box's reach is read.
TensorMap map_of(const Tensor& t, const int64_t (&size)[kAxes], const int32_t (&box)[kAxes + 1],
                 const int64_t (&stride)[kAxes]) {
  TensorMapArguments a{t.scalar_type() == ScalarType::Half ? TensorMapType::f16 : TensorMapType::bf16,
                       5,
                       t.data_ptr(),
                       {t.size(1)},
                       {},
                       {static_cast<int>(kBoxChannels)},
                       {1, 1, 1, 1, 1},
                       Swizzle::bytes_128};
  // Computed, since a tensor may give any stride where it has one position.
  int64_t bytes = t.size(1) * 2;
  for (int d = 1; d <= kAxes; ++d) {
    const int axis = kAxes - d;
    a.sizes[d] = size[axis];
    a.strides[d] = bytes;
    a.element_strides[d] = static_cast<int>(stride[axis]);
    a.box[d] = box[axis] * a.element_strides[d];
    bytes *= size[axis];
  }
  a.sizes[4] = t.size(0);
  a.strides[4] = bytes;
  a.box[4] = box[kAxes];
  return make_tensor_map(a);
}

// Dense in channels_last it is as it is; else a copy comes first, which is aligned.
bool aligned(const Tensor& t) { return !is_channels_last(t) || reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0; }

}  // namespace

const char* conv_wgmma_weight_rule(const ConvWeightCall& call) {
  const core::Problem& p = call.problem;
  const ScalarType dtype = call.input.scalar_type();
#if !defined(ATROUSOPS_SM90A)
  return "not built for compute capability 9.0";
#endif
  if (properties(call.input).capability != 90) return "needs compute capability 9.0";
  if (dtype != ScalarType::BFloat16 && dtype != ScalarType::Half) return "only 16-bit types lie across both operands";
  if (p.groups > 1) return "more than one group";
  if (p.c % 8 != 0 || p.k % 8 != 0 || !aligned(call.grad) || !aligned(call.input))
    return "TMA needs channels in multiples of 16 bytes";
  const auto filled = [](int64_t n, int64_t tile) { return static_cast<double>(n) / (ceil_div(n, tile) * tile); };
  if (filled(p.k, kRows) * filled(p.c, kBoxChannels) < 0.6) return "tiles of 128 by 64 channels would be half empty";
  if (p.n * p.out_positions() < kWeightBox) return "fewer positions than one step takes";
  int64_t bytes = 2 * p.n * std::max(p.c * p.in_positions(), p.k * p.out_positions());
  for (const core::Axis& a : p.axis) {
    if (a.stride > 8) return "TMA takes strides up to 8";
    if (a.in > INT32_MAX / 2 || a.out > INT32_MAX / 2) return "coordinates of more than 32 bits";
  }
  return bytes >= int64_t{1} << 40 || p.n > INT32_MAX / 2 ? "tensors of 2^40 bytes or more" : nullptr;
}

void conv_wgmma_weight(const ConvWeightCall& call) { conv_wgmma_weight(call, {}); }

void conv_wgmma_weight(const ConvWeightCall& call, const ConvWgmmaWeightForced& forced) {
#if defined(ATROUSOPS_SM90A)
  const core::Problem& p = call.problem;
  const Tensor grad = dense(call.grad, true), input = dense(call.input, true);
  const int64_t taps = p.kernel_positions(), elements = p.weight_elements();
  Boxes boxes = choose_boxes(p);
  Choice choice = choose(p, boxes.count, conv_multiprocessors(input));
  if (forced.columns > 0) {
    choice = {forced.columns, forced.splits};
    std::copy(forced.box, forced.box + kAxes + 1, boxes.size);
  }
  STD_TORCH_CHECK(boxes.size[0] * boxes.size[1] * boxes.size[2] * boxes.size[3] == kWeightBox,
                  "conv_grad_weight: a box must have ", kWeightBox, " positions");
  ConvPlan plan = conv_plan(p, 0);
  plan.upload(input);
  int64_t in[kAxes], out[kAxes], stride[kAxes];
  for (int i = 0; i < kAxes; ++i) in[i] = p.axis[i].in, out[i] = p.axis[i].out, stride[i] = p.axis[i].stride;
  const TensorMap grad_map = map_of(grad, out, boxes.size, {1, 1, 1}),
                  input_map = map_of(input, in, boxes.size, stride);
  Tensor part = torch::stable::empty({choice.splits, elements}, ScalarType::Float, std::nullopt, input.device());
  ConvWgmmaWeightArgs args{};
  args.part = mutable_data<float>(part);
  args.part_size = elements;
  std::copy(boxes.size, boxes.size + kAxes, args.box);
  args.images = boxes.size[kAxes];
  args.row_blocks = static_cast<int32_t>(ceil_div(p.k, kRows));
  args.column_blocks = static_cast<int32_t>(ceil_div(p.c, choice.columns));
  args.taps = static_cast<int32_t>(taps);
  args.splits = static_cast<int32_t>(choice.splits);
  STD_TORCH_CHECK(ceil_div(p.k, kRows) * ceil_div(p.c, choice.columns) * taps * choice.splits <= INT32_MAX,
                  "conv_grad_weight: one launch takes up to 2^31 tiles");
  conv_wgmma_weight_sm90a({plan.table, grad_map, input_map, args, choice.columns, input.scalar_type()},
                          current_stream(input));
  conv_sum_parts(part, choice.splits, {{1, p.k, taps, p.c}, {0, p.c * taps, 1, taps}}, call.out);
#else
  STD_TORCH_CHECK(false, "conv_grad_weight: not built for compute capability 9.0");
#endif
}

}  // namespace atrousops::cuda
