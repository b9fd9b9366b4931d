// conv_branches: each convolution by ours, into its channels of the result.
#include "stable/conv_branches.h"

#include <torch/csrc/stable/library.h>

#include "cpu/conv_gemm.h"
#include "stable/implement.h"

namespace atrousops::cpu {

Tensor conv_branches(const Tensor& input, std::vector<Tensor> weights, std::vector<Tensor> biases,
                     std::vector<Tensor> others, std::vector<int64_t> padding, std::vector<int64_t> dilation, bool relu,
                     bool allow_tf32) {
  const ConvBranches all = check_conv_branches(input, weights, biases, std::move(others), padding, dilation);
  return conv_branches_apart(conv, all, input, weights, relu, allow_tf32);
}

}  // namespace atrousops::cpu

STABLE_TORCH_LIBRARY_IMPL(atrousops, CPU, m) {
  atrousops::implement<"conv_branches", &atrousops::cpu::conv_branches, "input", "weights", "biases", "others">(m);
}
