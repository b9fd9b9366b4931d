// context_module: the layers one after the other, each by our convolution.
#include "stable/context_module.h"

#include <torch/csrc/stable/library.h>

#include "cpu/conv_gemm.h"
#include "stable/implement.h"

namespace atrousops::cpu {

Tensor context_module(const Tensor& input, std::vector<Tensor> weights, std::vector<Tensor> biases,
                      std::vector<int64_t> dilation, bool allow_tf32) {
  const std::vector<int64_t> reach = check_context_module(input, weights, biases, dilation);
  return context_module_by_layers(conv, input, weights, biases, reach, allow_tf32);
}

}  // namespace atrousops::cpu

STABLE_TORCH_LIBRARY_IMPL(atrousops, CPU, m) {
  atrousops::implement<"context_module", &atrousops::cpu::context_module, "input", "weights", "biases">(m);
}
