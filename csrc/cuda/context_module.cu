// context_module on CUDA: one launch where it is planned, else the layers one after the other.
#include "cuda/context_module.h"
#include "cuda/conv_kernels.h"
#include "cuda/registration.h"
#include "stable/context_module.h"

namespace atrousops::cuda {
namespace {

#if defined(ATROUSOPS_SM90A)
core::ContextPlan plan_of(const Tensor& input, const std::vector<int64_t>& reach, int64_t largest) {
  const DeviceProperties& d = properties(input);
  return core::context_plan(
      {input.size(0), input.size(1), input.size(2), input.size(3), reach, static_cast<int64_t>(input.element_size())},
      {d.multiprocessors, d.capability, d.shared_per_block, largest});
}

std::optional<Tensor> run(const core::ContextPlan& plan, const Tensor& input, const std::vector<Tensor>& weights,
                          const std::vector<Tensor>& biases, const std::vector<int64_t>& reach) {
  const DeviceGuard guard(input);
  const bool nhwc = prefers_channels_last(input);
  const Tensor in = dense(input, nhwc);
  Tensor out = empty(sizes_of(in), in, nhwc);
  if (out.numel() == 0) return out;
  const int64_t channels = in.size(1), pixels = in.size(2) * in.size(3);
  ContextArgs a{};
  a.input = in.const_data_ptr();
  a.output = out.mutable_data_ptr();
  a.image_stride = channels * pixels;
  // An image is no larger than the shared memory of a cluster.
  a.channel_stride = static_cast<int32_t>(nhwc ? 1 : pixels);
  a.pixel_stride = static_cast<int32_t>(nhwc ? channels : 1);
  a.channels = static_cast<int32_t>(channels);
  a.height = static_cast<int32_t>(in.size(2));
  a.width = Divisor32(in.size(3));
  a.rows = Divisor32(plan.rows);
  a.halo = static_cast<int32_t>(plan.halo);
  a.layers = static_cast<int32_t>(weights.size());
  std::vector<Tensor> kept;
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = kept.emplace_back(dense(weights[i], prefers_channels_last(weights[i])));
    const auto stride = [&](int64_t d) { return static_cast<int32_t>(w.stride(d)); };
    a.layer[i] = {
        w.const_data_ptr(), nullptr, stride(0), stride(1), stride(2), stride(3), static_cast<int32_t>(reach[i])};
    if (!biases.empty()) a.layer[i].bias = kept.emplace_back(dense(biases[i], false)).const_data_ptr();
  }
  if (!context_module_sm90a(a, plan, in.size(0), in.scalar_type(), current_stream(in))) return std::nullopt;
  return out;
}
#endif

}  // namespace

Tensor context_module(const Tensor& input, std::vector<Tensor> weights, std::vector<Tensor> biases,
                      std::vector<int64_t> dilation, bool allow_tf32) {
  const std::vector<int64_t> reach = check_context_module(input, weights, biases, dilation);
#if defined(ATROUSOPS_SM90A)
  // A device or a slice of one may have no sixteen multiprocessors that lie together; all have eight, but for slices.
  for (const int64_t largest : {core::kContextBlocks, core::kPortableBlocks}) {
    const core::ContextPlan plan = plan_of(input, reach, largest);
    if (plan.cluster == 0) break;
    if (std::optional<Tensor> out = run(plan, input, weights, biases, reach)) return *out;
  }
#endif
  return context_module_by_layers(conv, input, weights, biases, reach, allow_tf32);
}

}  // namespace atrousops::cuda

ATROUSOPS_CUDA_LIBRARY(m) {
  atrousops::implement<"context_module", &atrousops::cuda::context_module, "input", "weights", "biases">(m);
}
