// conv_branches on CUDA: tensor cores write every convolution into its channels of the result, wgmma those of one width
// in one launch; else they run one by one, and are copied there.
#include <algorithm>

#include "cuda/conv_wgmma.h"
#include "cuda/registration.h"
#include "stable/conv_branches.h"

namespace atrousops::cuda {
namespace {

bool all_can(const char* (*rule)(const ConvCall&), const std::vector<ConvCall>& calls) {
  return std::all_of(calls.begin(), calls.end(), [&](const ConvCall& call) { return rule(call) == nullptr; });
}

ConvFuse fuse_of(const ConvBranch& b, bool relu) { return {nullptr, nullptr, relu, b.first_channel}; }

void run_wgmma(const ConvBranches& all, const std::vector<ConvCall>& calls, bool relu, const Tensor& src, Tensor& dst) {
  std::vector<ConvWgmmaCall> together;
  for (size_t i = 0; i < calls.size(); ++i) {
    const ConvCall& c = calls[i];
    together.push_back({c.problem, c.weight, c.bias ? &*c.bias : nullptr, fuse_of(all.each[i], relu)});
    const bool last = i + 1 == calls.size() || all.each[i + 1].channels != all.each[i].channels;
    if (!last && together.size() < kMostBranches) continue;
    conv_wgmma(together, src, dst);
    together.clear();
  }
}

}  // namespace

Tensor conv_branches(const Tensor& input, std::vector<Tensor> weights, std::vector<Tensor> biases,
                     std::vector<Tensor> others, std::vector<int64_t> padding, std::vector<int64_t> dilation, bool relu,
                     bool allow_tf32) {
  ConvBranches all = check_conv_branches(input, weights, biases, std::move(others), padding, dilation);
  const DeviceGuard guard(input);
  for (ConvBranch& b : all.each)
    if (b.bias) b.bias = dense(*b.bias, false);
  Tensor dst = empty(all.out_size, input, true);
  std::vector<ConvCall> calls;
  for (size_t i = 0; i < weights.size(); ++i)
    calls.push_back({all.each[i].problem, input, weights[i], all.each[i].bias, dst, allow_tf32});
  const bool by_wgmma = all_can(conv_wgmma_rule, calls);
  if (dst.numel() == 0 || (!by_wgmma && !all_can(conv_mma_rule, calls)))
    return conv_branches_apart(conv, all, input, weights, relu, allow_tf32);
  const Tensor src = dense(input, true);
  if (by_wgmma) {
    run_wgmma(all, calls, relu, src, dst);
  } else {
    for (size_t i = 0; i < calls.size(); ++i) {
      const ConvCall& c = calls[i];
      conv_mma({c.problem, src, c.weight, c.bias, dst, allow_tf32}, fuse_of(all.each[i], relu), {});
    }
  }
  put_others(all, dst);
  if (answers_channels_last(input)) return dst;
  Tensor out = empty(all.out_size, input, false);
  torch::stable::copy_(out, dst);
  return out;
}

}  // namespace atrousops::cuda

ATROUSOPS_CUDA_LIBRARY(m) {
  atrousops::implement<"conv_branches", &atrousops::cuda::conv_branches, "input", "weights", "biases", "others">(m);
}
