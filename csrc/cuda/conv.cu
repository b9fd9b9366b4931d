// conv, conv_transpose and the two gradients on CUDA: arguments to a problem, and the problem to the kernel that the
// planner names for it.
#include <algorithm>

#include "core/cuda_kernels.h"
#include "cuda/conv_kernels.h"
#include "cuda/registration.h"
#include "stable/conv_arguments.h"

namespace atrousops::cuda {
namespace {

using core::CudaKernel;
using Ints = std::vector<int64_t>;

template <class Call>
const char* any_tensors(const Call&) {
  return nullptr;
}

// The kernels in the planner's order. A rule answers why a kernel cannot run a call whose problem it could, or null:
// what the planner does not see are addresses, strides and how the library was built.
template <class Call>
struct Kernel {
  CudaKernel name;
  const char* (*rule)(const Call&);
  void (*run)(const Call&);
};
constexpr Kernel<ConvCall> kConv[] = {
    {CudaKernel::depthwise, conv_depthwise_rule, conv_depthwise},
    {CudaKernel::grouped, any_tensors<ConvCall>, conv_grouped},
    {CudaKernel::wgmma, conv_wgmma_rule, conv_wgmma},
    {CudaKernel::mma, conv_mma_rule, conv_mma},
    {CudaKernel::simt, any_tensors<ConvCall>, conv_simt},
};
// One channel a group is no case of its own here: a weight a warp.
constexpr Kernel<ConvWeightCall> kConvWeight[] = {
    {CudaKernel::depthwise, any_tensors<ConvWeightCall>, conv_grouped_weight},
    {CudaKernel::grouped, any_tensors<ConvWeightCall>, conv_grouped_weight},
    {CudaKernel::wgmma, conv_wgmma_weight_rule, conv_wgmma_weight},
    {CudaKernel::mma, conv_mma_weight_rule, conv_mma_weight},
    {CudaKernel::simt, any_tensors<ConvWeightCall>, conv_simt_weight},
};

core::CudaMath math_of(const Tensor& t, bool allow_tf32) {
  const int64_t capability = properties(t).capability;
  switch (t.scalar_type()) {
    case ScalarType::Double: return {capability, core::Precision::f64};
    case ScalarType::Float: return {capability, allow_tf32 ? core::Precision::tf32 : core::Precision::f32};
    case ScalarType::BFloat16:
    case ScalarType::Half: return {capability, core::Precision::half};
    default:
      STD_TORCH_CHECK(false, "conv: dtype must be float64, float32, bfloat16 or float16; got ScalarType ",
                      static_cast<int>(t.scalar_type()));
  }
}

// The planned kernel, or the next that can take these tensors; of the planner's list, in which PyTorch's is the 0th,
// from `first` on.
template <class Call, size_t N>
void run_planned(const Kernel<Call> (&kernels)[N], const Call& call, const Tensor& source, int64_t first) {
  STD_TORCH_CHECK(first >= 0 && first <= static_cast<int64_t>(N), "first_kernel must be 0 to ", N, "; got ", first);
  const CudaKernel planned =
      core::cuda_kernel(call.problem, static_cast<int64_t>(source.element_size()), math_of(source, call.allow_tf32));
  const auto* const found = std::find_if(std::begin(kernels), std::end(kernels), [&](const Kernel<Call>& k) {
    return k.name >= planned && static_cast<int64_t>(k.name) + 1 >= first && k.rule(call) == nullptr;
  });
  found->run(call);
}

Tensor run(const ConvArguments& a, const Tensor& src, const Tensor& weight, const std::optional<Tensor>& bias,
           bool allow_tf32, int64_t first_kernel) {
  const DeviceGuard guard(src);
  Tensor dst = empty(a.out_size, src, answers_channels_last(src));
  if (dst.numel() == 0) return dst;
  const std::optional<Tensor> dense_bias = bias ? std::optional(dense(*bias, false)) : std::nullopt;
  run_planned(kConv, ConvCall{a.problem, src, weight, dense_bias, dst, allow_tf32}, src, first_kernel);
  return dst;
}

}  // namespace

Tensor conv(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
            const Ints& padding, const Ints& dilation, int64_t groups, bool allow_tf32, int64_t first_kernel) {
  return run(conv_arguments::of_conv(input, weight, bias, stride, padding, dilation, groups), input, weight, bias,
             allow_tf32, first_kernel);
}

Tensor conv_grad_input(const Tensor& grad, const Tensor& weight, const Ints& input_size, const Ints& stride,
                       const Ints& padding, const Ints& dilation, int64_t groups, bool allow_tf32,
                       int64_t first_kernel) {
  return run(conv_arguments::of_grad_input(grad, weight, input_size, stride, padding, dilation, groups), grad, weight,
             std::nullopt, allow_tf32, first_kernel);
}

Tensor conv_grad_weight(const Tensor& grad, const Tensor& input, const Ints& kernel_size, const Ints& stride,
                        const Ints& padding, const Ints& dilation, int64_t groups, bool allow_tf32,
                        int64_t first_kernel) {
  const auto a = conv_arguments::of_grad_weight(grad, input, kernel_size, stride, padding, dilation, groups);
  const DeviceGuard guard(input);
  if (input.numel() == 0 || grad.numel() == 0) return torch::stable::new_zeros(input, a.out_size);
  Tensor out = torch::stable::empty(a.out_size, input.scalar_type(), std::nullopt, input.device());
  run_planned(kConvWeight, ConvWeightCall{a.problem, grad, input, out, allow_tf32}, input, first_kernel);
  return out;
}

Tensor conv_transpose(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                      const Ints& padding, const Ints& output_padding, const Ints& dilation, int64_t groups,
                      bool allow_tf32, int64_t first_kernel) {
  const auto a =
      conv_arguments::of_conv_transpose(input, weight, bias, stride, padding, output_padding, dilation, groups);
  return run(a, input, weight, bias, allow_tf32, first_kernel);
}

}  // namespace atrousops::cuda

ATROUSOPS_CUDA_LIBRARY(m) {
  atrousops::implement<"conv", &atrousops::cuda::conv, "input", "weight", "bias">(m);
  atrousops::implement<"conv_grad_input", &atrousops::cuda::conv_grad_input, "grad", "weight">(m);
  atrousops::implement<"conv_grad_weight", &atrousops::cuda::conv_grad_weight, "grad", "input">(m);
  atrousops::implement<"conv_transpose", &atrousops::cuda::conv_transpose, "input", "weight", "bias">(m);
}
