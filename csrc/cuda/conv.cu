// conv, conv_transpose and the two gradients on CUDA: arguments to a problem, and the problem to a kernel.
#include "cuda/conv_kernels.h"
#include "cuda/registration.h"
#include "stable/conv_arguments.h"

namespace atrousops::cuda {
namespace {

using Ints = std::vector<int64_t>;

// Groups this small leave most of a GEMM's tile empty.
bool is_small(const core::Problem& p) { return (p.c / p.groups) * (p.k / p.groups) <= (p.groups > 1 ? 64 : 4); }

const char* grouped_rule(const ConvCall& call) {
  return is_small(call.problem) ? nullptr : "too many channels a group for a loop";
}
const char* grouped_weight_rule(const ConvWeightCall& call) {
  return call.problem.groups > 1 && is_small(call.problem) ? nullptr : "too many channels a group for a loop";
}
template <class Call>
const char* no_rule(const Call&) {
  return nullptr;
}

// A rule answers why the kernel cannot or should not run a call, or null. The first kernel without an answer runs: a
// new one goes before those it beats. `reason` says what makes it the choice.
template <class Call>
struct Kernel {
  const char *name, *reason;
  const char* (*rule)(const Call&);
  void (*run)(const Call&);
};
constexpr Kernel<ConvCall> kConv[] = {
    {"depthwise", "one channel a group, 16 bytes of channels at a time", conv_depthwise_rule, conv_depthwise},
    {"grouped", "groups of few channels, an element a thread", grouped_rule, conv_grouped},
    {"wgmma", "tensor cores by TMA and wgmma", conv_wgmma_rule, conv_wgmma},
    {"mma", "tensor cores by mma.sync", conv_mma_rule, conv_mma},
    {"simt", "any dtype, channels and strides", no_rule<ConvCall>, conv_simt},
};
constexpr Kernel<ConvWeightCall> kConvWeight[] = {
    {"grouped", "groups of few channels, a weight a warp", grouped_weight_rule, conv_grouped_weight},
    {"wgmma", "tensor cores by wgmma, boxes by TMA", conv_wgmma_weight_rule, conv_wgmma_weight},
    {"mma", "tensor cores by mma.sync", conv_mma_weight_rule, conv_mma_weight},
    {"simt", "any dtype, channels and strides", no_rule<ConvWeightCall>, conv_simt_weight},
};

template <class Call, size_t N>
void run_first(const Kernel<Call> (&kernels)[N], const Call& call) {
  for (const Kernel<Call>& k : kernels)
    if (k.rule(call) == nullptr) return k.run(call);
}

Tensor run(const ConvArguments& a, const Tensor& src, const Tensor& weight, const std::optional<Tensor>& bias,
           bool allow_tf32) {
  const DeviceGuard guard(src);
  Tensor dst = empty(a.out_size, src, answers_channels_last(src));
  if (dst.numel() == 0) return dst;
  const std::optional<Tensor> dense_bias = bias ? std::optional(dense(*bias, false)) : std::nullopt;
  run_first(kConv, ConvCall{a.problem, src, weight, dense_bias, dst, allow_tf32});
  return dst;
}

}  // namespace

Tensor conv(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
            const Ints& padding, const Ints& dilation, int64_t groups, bool allow_tf32) {
  return run(conv_arguments::of_conv(input, weight, bias, stride, padding, dilation, groups), input, weight, bias,
             allow_tf32);
}

Tensor conv_grad_input(const Tensor& grad, const Tensor& weight, const Ints& input_size, const Ints& stride,
                       const Ints& padding, const Ints& dilation, int64_t groups, bool allow_tf32) {
  return run(conv_arguments::of_grad_input(grad, weight, input_size, stride, padding, dilation, groups), grad, weight,
             std::nullopt, allow_tf32);
}

Tensor conv_grad_weight(const Tensor& grad, const Tensor& input, const Ints& kernel_size, const Ints& stride,
                        const Ints& padding, const Ints& dilation, int64_t groups, bool allow_tf32) {
  const auto a = conv_arguments::of_grad_weight(grad, input, kernel_size, stride, padding, dilation, groups);
  const DeviceGuard guard(input);
  if (input.numel() == 0 || grad.numel() == 0) return torch::stable::new_zeros(input, a.out_size);
  Tensor out = torch::stable::empty(a.out_size, input.scalar_type(), std::nullopt, input.device());
  run_first(kConvWeight, ConvWeightCall{a.problem, grad, input, out, allow_tf32});
  return out;
}

Tensor conv_transpose(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                      const Ints& padding, const Ints& output_padding, const Ints& dilation, int64_t groups,
                      bool allow_tf32) {
  const auto a =
      conv_arguments::of_conv_transpose(input, weight, bias, stride, padding, output_padding, dilation, groups);
  return run(a, input, weight, bias, allow_tf32);
}

}  // namespace atrousops::cuda

ATROUSOPS_CUDA_LIBRARY(m) {
  m.impl("conv", TORCH_BOX(&atrousops::cuda::conv));
  m.impl("conv_grad_input", TORCH_BOX(&atrousops::cuda::conv_grad_input));
  m.impl("conv_grad_weight", TORCH_BOX(&atrousops::cuda::conv_grad_weight));
  m.impl("conv_transpose", TORCH_BOX(&atrousops::cuda::conv_transpose));
}
