// context_module: checks of its arguments, and its layers in sequence, if no kernel runs all of them.
#pragma once

#include <optional>
#include <vector>

#include "stable/tensor.h"

namespace atrousops {

// For each layer the dilation of its 3x3 kernel, or 0 if it is 1x1.
inline std::vector<int64_t> check_context_module(const Tensor& input, const std::vector<Tensor>& weights,
                                                 const std::vector<Tensor>& biases,
                                                 const std::vector<int64_t>& dilation) {
  STD_TORCH_CHECK(input.dim() == 4, "context_module: input must be (N, C, H, W); got ", input.dim(), " dimensions");
  STD_TORCH_CHECK(!weights.empty() && weights.size() == dilation.size(),
                  "context_module: weights must be one for each dilation, at least one; got ", weights.size(), " for ",
                  dilation.size());
  STD_TORCH_CHECK(biases.empty() || biases.size() == weights.size(),
                  "context_module: biases must be none or one for each weight; got ", biases.size());
  const int64_t channels = input.size(1);
  std::vector<int64_t> reach;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    STD_TORCH_CHECK(w.dim() == 4 && w.size(0) == channels && w.size(1) == channels && w.size(2) == w.size(3) &&
                        (w.size(2) == 1 || w.size(2) == 3) && w.scalar_type() == input.scalar_type(),
                    "context_module: weights must be (C, C, 3, 3) or (C, C, 1, 1) of input's dtype, with C = ",
                    channels, "; not so weight ", i);
    STD_TORCH_CHECK(dilation[i] >= 1, "context_module: dilation must be positive; got ", dilation[i]);
    if (!biases.empty())
      STD_TORCH_CHECK(
          biases[i].dim() == 1 && biases[i].size(0) == channels && biases[i].scalar_type() == input.scalar_type(),
          "context_module: biases must be (C) of input's dtype; not so bias ", i);
    reach.push_back(w.size(2) == 3 ? dilation[i] : 0);
  }
  return reach;
}

// conv(input, weight, bias, stride, padding, dilation, groups, allow_tf32, first_kernel)
template <class F>
Tensor context_module_by_layers(const F& conv, const Tensor& input, const std::vector<Tensor>& weights,
                                const std::vector<Tensor>& biases, const std::vector<int64_t>& reach, bool allow_tf32) {
  const std::vector<int64_t> one{1, 1};
  Tensor x = input;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (i > 0) relu_in_place(x);
    const std::optional<Tensor> bias = biases.empty() ? std::nullopt : std::optional(biases[i]);
    const std::vector<int64_t> padding{reach[i], reach[i]};
    x = conv(x, weights[i], bias, one, padding, reach[i] ? padding : one, int64_t{1}, allow_tf32, int64_t{0});
  }
  return x;
}

}  // namespace atrousops
