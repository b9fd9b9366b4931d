// conv_branches: checks of its arguments, and its convolutions in sequence, if no launch runs all of them.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "stable/conv_arguments.h"

namespace atrousops {

// One of the convolutions: its problem, and the index of its first channel in the result.
struct ConvBranch {
  std::vector<int64_t> padding, dilation;
  std::optional<Tensor> bias;
  core::Problem problem;
  int64_t channels, first_channel;
};
// `others` are maps that are appended unchanged.
struct ConvBranches {
  std::vector<ConvBranch> each;
  std::vector<Tensor> others;
  std::vector<int64_t> out_size;
};

// `padding` and `dilation` have one entry per spatial axis for each weight.
inline ConvBranches check_conv_branches(const Tensor& input, const std::vector<Tensor>& weights,
                                        const std::vector<Tensor>& biases, std::vector<Tensor> others,
                                        const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  const size_t rank = input.dim() >= 3 ? static_cast<size_t>(input.dim()) - 2 : 1, count = weights.size();
  STD_TORCH_CHECK(count > 0, "conv_branches: weights must be at least one");
  STD_TORCH_CHECK(biases.empty() || biases.size() == count,
                  "conv_branches: biases must be none or one for each weight; got ", biases.size());
  STD_TORCH_CHECK(padding.size() == count * rank && dilation.size() == count * rank,
                  "conv_branches: padding and dilation must have one entry per spatial axis for each weight");
  const auto of_branch = [&](const std::vector<int64_t>& values, size_t i) {
    const auto first = values.begin() + static_cast<std::ptrdiff_t>(i * rank);
    return std::vector<int64_t>(first, first + static_cast<std::ptrdiff_t>(rank));
  };
  ConvBranches all;
  int64_t channels = 0;
  for (size_t i = 0; i < count; ++i) {
    ConvBranch b{of_branch(padding, i), of_branch(dilation, i), std::nullopt, {}, weights[i].size(0), channels};
    if (!biases.empty()) b.bias = biases[i];
    const std::vector<int64_t> one(rank, 1);
    const ConvArguments a = conv_arguments::of_conv(input, weights[i], b.bias, one, b.padding, b.dilation, 1);
    b.problem = a.problem;
    channels += b.channels;
    if (i == 0) all.out_size = a.out_size;
    STD_TORCH_CHECK(std::equal(a.out_size.begin() + 2, a.out_size.end(), all.out_size.begin() + 2),
                    "conv_branches: all convolutions must give maps of one size; not so weight ", i);
    all.each.push_back(std::move(b));
  }
  for (const Tensor& t : others) {
    STD_TORCH_CHECK(t.dim() == input.dim() && t.scalar_type() == input.scalar_type() && t.size(0) == input.size(0) &&
                        std::equal(all.out_size.begin() + 2, all.out_size.end(), t.sizes().begin() + 2),
                    "conv_branches: others must have the results' sizes but for channels, and dtype");
    channels += t.size(1);
  }
  all.out_size[1] = channels;
  all.others = std::move(others);
  return all;
}

// Copies the others into their channels of the result.
inline void put_others(const ConvBranches& all, Tensor& out) {
  int64_t first = all.each.back().first_channel + all.each.back().channels;
  for (const Tensor& t : all.others) {
    Tensor slice = torch::stable::narrow(out, 1, first, t.size(1));
    torch::stable::copy_(slice, t);
    first += t.size(1);
  }
}

// conv(input, weight, bias, stride, padding, dilation, groups, allow_tf32, first_kernel)
template <class F>
Tensor conv_branches_apart(const F& conv, const ConvBranches& all, const Tensor& input,
                           const std::vector<Tensor>& weights, bool relu, bool allow_tf32) {
  Tensor out = empty(all.out_size, input, answers_channels_last(input));
  for (size_t i = 0; i < weights.size(); ++i) {
    const ConvBranch& b = all.each[i];
    const std::vector<int64_t> one(b.padding.size(), 1);
    Tensor y = conv(input, weights[i], b.bias, one, b.padding, b.dilation, int64_t{1}, allow_tf32, int64_t{0});
    if (relu) relu_in_place(y);
    Tensor slice = torch::stable::narrow(out, 1, b.first_channel, b.channels);
    torch::stable::copy_(slice, y);
  }
  put_others(all, out);
  return out;
}

}  // namespace atrousops
