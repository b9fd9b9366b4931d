// The weight gradient by TMA and wgmma: when, with which boxes and tiles, and how.
#include <algorithm>

#include "core/checked.h"
#include "core/weight_boxes.h"
#include "cuda/conv_wgmma_weight.h"
#include "cuda/launch.h"

namespace atrousops::cuda {
namespace {

using core::ceil_div;

// Operations per second of an H100 that predictions go by; only ratios matter.
constexpr int kBoxChannels = 64;
constexpr double kRate = 500e12;

// `size`: of its axes; every stride-th position of a box's reach is read.
TensorMap map_of(const Tensor& t, const int64_t (&size)[kAxes], const core::Box& box, const int64_t (&stride)[kAxes]) {
  TensorMapArguments a{t.scalar_type() == ScalarType::Half ? TensorMapType::f16 : TensorMapType::bf16,
                       5,
                       t.const_data_ptr(),
                       {t.size(1)},
                       {},
                       {kBoxChannels},
                       {1, 1, 1, 1, 1},
                       Swizzle::bytes_128};
  // Computed, since a tensor may give any stride where it has one position.
  int64_t bytes = t.size(1) * 2;
  for (int d = 1; d <= kAxes; ++d) {
    const int axis = kAxes - d;
    a.sizes[d] = size[axis];
    a.strides[d] = bytes;
    a.element_strides[d] = static_cast<int>(stride[axis]);
    a.box[d] = static_cast<int>(box.size[axis]) * a.element_strides[d];
    bytes *= size[axis];
  }
  a.sizes[4] = t.size(0);
  a.strides[4] = bytes;
  a.box[4] = static_cast<int>(box.images);
  return make_tensor_map(a);
}

// Dense in channels_last it is as it is; else a copy comes first, which is aligned.
bool aligned(const Tensor& t) {
  return !is_channels_last(t) || reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
}

}  // namespace

const char* conv_wgmma_weight_rule(const ConvWeightCall& call) {
#if !defined(ATROUSOPS_SM90A)
  return "not built for compute capability 9.0";
#endif
  const core::Problem& p = call.problem;
  if (properties(call.input).capability != 90) return "needs compute capability 9.0";
  if (!aligned(call.grad) || !aligned(call.input)) return "TMA takes tensors that begin at multiples of 16 bytes";
  if (const char* why = core::weight_boxes_cannot(p, static_cast<int64_t>(call.input.element_size()))) return why;
  if (p.weight_elements() >= int64_t{1} << 34) return "rows of the result are counted in 2^32 times 16 bytes";
  const int64_t elements = p.n * std::max(p.c * p.in_positions(), p.k * p.out_positions());
  return elements >= int64_t{1} << 39 ? "TMA takes strides below 2^40 bytes" : nullptr;
}

void conv_wgmma_weight(const ConvWeightCall& call) { conv_wgmma_weight(call, {}); }

void conv_wgmma_weight(const ConvWeightCall& call, const ConvWgmmaWeightForced& forced) {
  const core::Problem& p = call.problem;
  const Tensor grad = dense(call.grad, true), input = dense(call.input, true);
  const int64_t taps = p.kernel_positions(), elements = p.weight_elements();
  core::WeightBoxPlan chosen = core::plan_weight_boxes(p, conv_multiprocessors(input), kRate);
  if (forced.columns > 0) {
    chosen.columns = forced.columns;
    chosen.splits = forced.splits;
    chosen.box = forced.box;
  }
  const core::Box& box = chosen.box;
  STD_TORCH_CHECK(box.positions() * box.images == core::kWeightBox, "conv_grad_weight: a box must have ",
                  core::kWeightBox, " positions; got ", box.positions() * box.images);
  ConvPlan plan = conv_plan(p, 0);
  plan.upload(input);
  int64_t in[kAxes], out[kAxes], stride[kAxes];
  for (int i = 0; i < kAxes; ++i) in[i] = p.axis[i].in, out[i] = p.axis[i].out, stride[i] = p.axis[i].stride;
  const TensorMap grad_map = map_of(grad, out, box, {1, 1, 1}), input_map = map_of(input, in, box, stride);
  Tensor part = torch::stable::empty({chosen.splits, elements}, ScalarType::Float, std::nullopt, input.device());
  ConvWgmmaWeightArgs args{};
  args.part = mutable_data<float>(part);
  args.part_size = elements;
  for (int i = 0; i < kAxes; ++i) {
    args.box[i] = Divisor32(box.size[i]);
    args.kernel[i] = Divisor32(p.axis[i].kernel);
  }
  args.images = Divisor32(box.images);
  args.row_blocks = Divisor32(ceil_div(p.k, core::kWeightRows));
  args.column_blocks = Divisor32(ceil_div(p.c, chosen.columns));
  args.taps = Divisor32(taps);
  args.splits = Divisor(chosen.splits);
  STD_TORCH_CHECK(ceil_div(p.k, core::kWeightRows) * ceil_div(p.c, chosen.columns) * taps * chosen.splits <= INT32_MAX,
                  "conv_grad_weight: one launch takes up to 2^31 tiles");
#if defined(ATROUSOPS_SM90A)
  conv_wgmma_weight_sm90a({plan.table, grad_map, input_map, args, chosen.columns, input.scalar_type()},
                          current_stream(input));
#endif
  conv_sum_parts(part, chosen.splits, {{1, p.k, taps, p.c}, {0, p.c * taps, 1, taps}}, call.out);
}

}  // namespace atrousops::cuda
