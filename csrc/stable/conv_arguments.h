// Converts the convolution operators' arguments to a problem, with checks that keep kernels inside their memory. The
// Python side has better messages; these are for direct calls, which must not crash.
#pragma once

#include <optional>
#include <vector>

#include "core/problem.h"
#include "stable/tensor.h"

namespace atrousops {

struct ConvArguments {
  core::Problem problem;
  std::vector<int64_t> out_size;
};

namespace conv_arguments {

using Ints = std::vector<int64_t>;

inline Ints spatial(const Tensor& t) { return {t.sizes().begin() + 2, t.sizes().end()}; }

// `padding` has one entry per spatial axis, or two: all the low sides, then all the high ones.
inline core::Problem problem_of(core::Kind kind, int64_t n, int64_t c, int64_t k, int64_t groups, const Ints& in,
                                const Ints& kernel, const Ints& stride, const Ints& padding, const Ints& dilation,
                                const Ints& out) {
  const size_t rank = in.size();
  STD_TORCH_CHECK(padding.size() == rank || padding.size() == 2 * rank,
                  "conv: padding must have one or two entries per spatial axis");
  const std::span<const int64_t> all(padding);
  return core::make_problem(kind, n, c, k, groups, {in, kernel, stride, dilation, all.first(rank), all.last(rank)},
                            out);
}

inline void check(const char* op, const Tensor& a, const Tensor& b, int64_t groups, bool channels_agree) {
  STD_TORCH_CHECK(a.dim() == b.dim() && a.dim() >= 3 && a.dim() <= 5, op, ": tensors must both have 3 to 5 dimensions");
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), op, ": all tensors must have one dtype");
  STD_TORCH_CHECK(groups > 0 && channels_agree, op, ": channels must agree with each other and with groups");
  STD_TORCH_CHECK(a.size(1) > 0 && b.size(0) > 0 && b.size(1) > 0, op, ": only the batch may be empty");
}

inline void check_bias(const char* op, const std::optional<Tensor>& bias, const Tensor& input, int64_t channels) {
  STD_TORCH_CHECK(
      !bias || (bias->scalar_type() == input.scalar_type() && bias->dim() == 1 && bias->size(0) == channels), op,
      ": bias must have one entry a channel, of the input's dtype");
}

inline ConvArguments of_conv(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                             const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  check("conv", input, weight, groups, input.size(1) == weight.size(1) * groups);
  const int64_t n = input.size(0), k = weight.size(0);
  check_bias("conv", bias, input, k);
  ConvArguments a{problem_of(core::Kind::forward, n, input.size(1), k, groups, spatial(input), spatial(weight), stride,
                             padding, dilation, {}),
                  {n, k}};
  for (int64_t i = 5 - input.dim(); i < core::kAxes; ++i) a.out_size.push_back(a.problem.axis[i].out);
  return a;
}

inline ConvArguments of_grad_input(const Tensor& grad, const Tensor& weight, const Ints& input_size, const Ints& stride,
                                   const Ints& padding, const Ints& dilation, int64_t groups) {
  check("conv_grad_input", grad, weight, groups,
        static_cast<int64_t>(input_size.size()) == grad.dim() && input_size[0] == grad.size(0) &&
            grad.size(1) == weight.size(0) && input_size[1] == weight.size(1) * groups);
  const Ints in(input_size.begin() + 2, input_size.end());
  return {problem_of(core::Kind::input_grad, grad.size(0), input_size[1], weight.size(0), groups, in, spatial(weight),
                     stride, padding, dilation, spatial(grad)),
          input_size};
}

inline ConvArguments of_grad_weight(const Tensor& grad, const Tensor& input, const Ints& kernel_size,
                                    const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  STD_TORCH_CHECK(grad.dim() == input.dim() && grad.dim() >= 3 && grad.dim() <= 5 && groups > 0 &&
                      grad.scalar_type() == input.scalar_type() && grad.size(0) == input.size(0) && grad.size(1) > 0 &&
                      input.size(1) > 0,
                  "conv_grad_weight: grad and input must agree in dtype, dimensions and batch");
  const int64_t c = input.size(1), k = grad.size(1);
  ConvArguments a{problem_of(core::Kind::weight_grad, input.size(0), c, k, groups, spatial(input), kernel_size, stride,
                             padding, dilation, spatial(grad)),
                  {k, c / groups}};
  a.out_size.insert(a.out_size.end(), kernel_size.begin(), kernel_size.end());
  return a;
}

inline ConvArguments of_conv_transpose(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                       const Ints& stride, const Ints& padding, const Ints& output_padding,
                                       const Ints& dilation, int64_t groups) {
  check("conv_transpose", input, weight, groups, input.size(1) == weight.size(0));
  const int64_t n = input.size(0), c = weight.size(1) * groups;
  check_bias("conv_transpose", bias, input, c);
  const Ints in = spatial(input), kernel = spatial(weight);
  ConvArguments a{core::make_transposed(n, input.size(1), c, groups, {in, kernel, stride, dilation, padding, padding},
                                        output_padding),
                  {n, c}};
  for (int64_t i = 5 - input.dim(); i < core::kAxes; ++i) a.out_size.push_back(a.problem.axis[i].in);
  return a;
}

}  // namespace conv_arguments
}  // namespace atrousops
