// What tests call the convolutions by TMA and wgmma by: a box, a tile, splits and blocks of their own, and branches.
#include "cuda/conv_wgmma.h"
#include "cuda/registration.h"
#include "stable/conv_arguments.h"

namespace atrousops::cuda {

using Ints = std::vector<int64_t>;
using Maybe = std::optional<Tensor>;

// Each branch has one padding and one dilation for all axes; bias and scale have K numbers for each of them. Writes
// into channels [first_channel, first_channel + branches * K) of out, which is channels_last. No box: as planned.
void test_conv_wgmma(const Tensor& input, const std::vector<Tensor>& weights, const Maybe& bias, const Maybe& scale,
                     const Maybe& residual, Tensor out, int64_t stride, const Ints& padding, const Ints& dilation,
                     bool transposed, bool relu, int64_t first_channel, int64_t tile, int64_t splits, int64_t blocks,
                     const Ints& box) {
  const size_t rank = static_cast<size_t>(input.dim()) - 2;
  const auto all = [&](int64_t v) { return Ints(rank, v); };
  std::vector<core::Problem> problems;
  std::vector<Tensor> parameters;
  parameters.reserve(2 * weights.size());
  std::vector<ConvWgmmaCall> calls;
  problems.reserve(weights.size());
  const int64_t channels = weights[0].size(transposed ? 1 : 0);
  const auto slice = [&](const Maybe& t, size_t i) -> const Tensor* {
    if (!t) return nullptr;
    parameters.push_back(
        torch::stable::narrow(const_cast<Tensor&>(*t), 0, static_cast<int64_t>(i) * channels, channels));
    return &parameters.back();
  };
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& w = weights[i];
    problems.push_back((transposed
                            ? conv_arguments::of_conv_transpose(input, w, {}, all(stride), all(padding[i]), all(0),
                                                                all(dilation[i]), 1)
                            : conv_arguments::of_conv(input, w, {}, all(stride), all(padding[i]), all(dilation[i]), 1))
                           .problem);
    const ConvFuse fuse{slice(scale, i), residual ? &*residual : nullptr, relu,
                        first_channel + static_cast<int64_t>(i) * channels};
    calls.push_back({problems.back(), w, slice(bias, i), fuse});
  }
  ConvWgmmaForced forced{tile, splits, blocks, {}};
  if (!box.empty()) forced.box = {{box[0], box[1], box[2]}, box[3]};
  conv_wgmma(calls, input, out, forced);
}

// As an operator calls it, or an error with the reason why not.
void test_conv_wgmma_call(const Tensor& input, const Tensor& weight, const Maybe& bias, const Maybe& scale,
                          const Maybe& residual, Tensor out, int64_t stride, int64_t padding, int64_t dilation,
                          bool transposed, int64_t groups, bool relu) {
  const size_t rank = static_cast<size_t>(input.dim()) - 2;
  const auto all = [&](int64_t v) { return Ints(rank, v); };
  const core::Problem problem =
      (transposed ? conv_arguments::of_conv_transpose(input, weight, {}, all(stride), all(padding), all(0),
                                                      all(dilation), groups)
                  : conv_arguments::of_conv(input, weight, {}, all(stride), all(padding), all(dilation), groups))
          .problem;
  const ConvCall call{problem, input, weight, bias, out, true};
  const char* const why = conv_wgmma_rule(call);
  STD_TORCH_CHECK(!why, why ? why : "");
  conv_wgmma(call, {scale ? &*scale : nullptr, residual ? &*residual : nullptr, relu});
}

}  // namespace atrousops::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(atrousops_host_cuda, m) {
  // clang-format off
  m.def("test_conv_wgmma(Tensor input, Tensor[] weights, Tensor? bias, Tensor? scale, Tensor? residual, Tensor(a!) out, int stride, int[] padding, int[] dilation, bool transposed, bool relu, int first_channel, int tile, int splits, int blocks, int[] box) -> ()");
  m.def("test_conv_wgmma_call(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, Tensor? residual, Tensor(a!) out, int stride, int padding, int dilation, bool transposed, int groups, bool relu) -> ()");
  // clang-format on
}
STABLE_TORCH_LIBRARY_IMPL(atrousops_host_cuda, CPU, m) {
  m.impl("test_conv_wgmma", TORCH_BOX(&atrousops::cuda::test_conv_wgmma));
  m.impl("test_conv_wgmma_call", TORCH_BOX(&atrousops::cuda::test_conv_wgmma_call));
}
