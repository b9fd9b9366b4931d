// What tests call the weight gradient by TMA and wgmma by: a tile, splits and a box of their own, or as planned.
#include "cuda/conv_wgmma_weight.h"
#include "cuda/registration.h"
#include "stable/conv_arguments.h"

namespace atrousops::cuda {

using Ints = std::vector<int64_t>;

// box: along the three axes, and images; empty: as planned.
void test_conv_wgmma_weight(const Tensor& grad, const Tensor& input, Tensor out, const Ints& stride,
                            const Ints& padding, const Ints& dilation, int64_t columns, int64_t splits,
                            const Ints& box) {
  const Ints kernel(out.sizes().begin() + 2, out.sizes().end());
  const auto a = conv_arguments::of_grad_weight(grad, input, kernel, stride, padding, dilation, 1);
  ConvWgmmaWeightForced forced;
  if (!box.empty()) forced = {columns, splits, {{box[0], box[1], box[2]}, box[3]}};
  conv_wgmma_weight(ConvWeightCall{a.problem, grad, input, out}, forced);
}

}  // namespace atrousops::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(atrousops_host_cuda, m) {
  // clang-format off
  m.def("test_conv_wgmma_weight(Tensor grad, Tensor input, Tensor(a!) out, int[] stride, int[] padding, int[] dilation, int columns, int splits, int[] box) -> ()");
  // clang-format on
}
STABLE_TORCH_LIBRARY_IMPL(atrousops_host_cuda, CPU, m) {
  m.impl("test_conv_wgmma_weight", TORCH_BOX(&atrousops::cuda::test_conv_wgmma_weight));
}
