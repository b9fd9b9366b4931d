// conv, conv_transpose and the two gradients: choice of the path for a problem.
#include <torch/csrc/stable/library.h>

#include "cpu/conv_direct.h"
#include "cpu/conv_gemm.h"
#include "stable/conv_arguments.h"
#include "stable/implement.h"

namespace atrousops::cpu {

using Ints = std::vector<int64_t>;

static int64_t pairs_of_a_group(const core::Problem& p) { return (p.c / p.groups) * (p.k / p.groups); }

// Groups this small are inefficient as GEMMs; a single group always uses a GEMM. Larger groups would have longer sums
// in fp32.
static bool is_direct(const core::Problem& p) { return p.groups > 1 && pairs_of_a_group(p) <= 16; }

// In a weight gradient each tap of a group is a separate GEMM, dominated by call overhead. The direct kernel sums long
// sums in fp64, so larger groups can use it. The bounds were timed on AVX-512, and keep a group's sums in the L1 cache.
static bool is_direct_weight(const core::Problem& p, bool channels_last) {
  constexpr int64_t kPairs = 16 * 16, kPairsChannelsLast = 12 * 12, kSums = 1 << 13;
  const int64_t pairs = pairs_of_a_group(p);
  if (p.groups == 1 || pairs * p.kernel_positions() > kSums) return is_direct(p);
  return pairs <= (channels_last ? kPairsChannelsLast : kPairs);
}

static Tensor run(const ConvArguments& a, const Tensor& src, const Tensor& weight, const std::optional<Tensor>& bias) {
  const bool channels_last = answers_channels_last(src);
  if (is_direct(a.problem)) return conv_direct(a.problem, src, weight, bias, a.out_size, channels_last);
  return conv_gemm(a.problem, src, weight, bias, a.out_size, channels_last);
}

Tensor conv(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
            const Ints& padding, const Ints& dilation, int64_t groups, bool, int64_t) {
  return run(conv_arguments::of_conv(input, weight, bias, stride, padding, dilation, groups), input, weight, bias);
}

Tensor conv_grad_input(const Tensor& grad, const Tensor& weight, const Ints& input_size, const Ints& stride,
                       const Ints& padding, const Ints& dilation, int64_t groups, bool, int64_t) {
  return run(conv_arguments::of_grad_input(grad, weight, input_size, stride, padding, dilation, groups), grad, weight,
             std::nullopt);
}

Tensor conv_grad_weight(const Tensor& grad, const Tensor& input, const Ints& kernel_size, const Ints& stride,
                        const Ints& padding, const Ints& dilation, int64_t groups, bool, int64_t) {
  const auto a = conv_arguments::of_grad_weight(grad, input, kernel_size, stride, padding, dilation, groups);
  return is_direct_weight(a.problem, prefers_channels_last(input))
             ? conv_direct_weight(a.problem, grad, input, a.out_size)
             : conv_gemm_weight(a.problem, grad, input, a.out_size);
}

Tensor conv_transpose(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                      const Ints& padding, const Ints& output_padding, const Ints& dilation, int64_t groups, bool,
                      int64_t) {
  const auto a =
      conv_arguments::of_conv_transpose(input, weight, bias, stride, padding, output_padding, dilation, groups);
  return run(a, input, weight, bias);
}

}  // namespace atrousops::cpu

STABLE_TORCH_LIBRARY_IMPL(atrousops, CPU, m) {
  atrousops::implement<"conv", &atrousops::cpu::conv, "input", "weight", "bias">(m);
  atrousops::implement<"conv_grad_input", &atrousops::cpu::conv_grad_input, "grad", "weight">(m);
  atrousops::implement<"conv_grad_weight", &atrousops::cpu::conv_grad_weight, "grad", "input">(m);
  atrousops::implement<"conv_transpose", &atrousops::cpu::conv_transpose, "input", "weight", "bias">(m);
}
