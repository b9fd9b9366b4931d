// What tests call the tensor-core convolutions by: a tile and a number of splits of their own, and the epilogue.
#include "cuda/conv_mma.h"
#include "cuda/registration.h"
#include "stable/conv_arguments.h"

namespace atrousops::cuda {

using Ints = std::vector<int64_t>;
using Maybe = std::optional<Tensor>;

// Writes into channels [first_channel, first_channel + K) of out, which is channels_last.
void test_conv_mma(const Tensor& input, const Tensor& weight, const Maybe& bias, const Maybe& scale,
                   const Maybe& residual, Tensor out, const Ints& stride, const Ints& padding, const Ints& dilation,
                   int64_t groups, bool transposed, bool relu, int64_t first_channel, int64_t tile, int64_t splits,
                   bool allow_tf32) {
  const Ints none(stride.size(), 0);
  const auto a = transposed
                     ? conv_arguments::of_conv_transpose(input, weight, {}, stride, padding, none, dilation, groups)
                     : conv_arguments::of_conv(input, weight, {}, stride, padding, dilation, groups);
  const ConvFuse fuse{scale ? &*scale : nullptr, residual ? &*residual : nullptr, relu, first_channel};
  conv_mma(ConvCall{a.problem, input, weight, bias, out, allow_tf32}, fuse,
           {static_cast<int>(tile), static_cast<int>(splits)});
}

void test_conv_mma_weight(const Tensor& grad, const Tensor& input, Tensor out, const Ints& stride, const Ints& padding,
                          const Ints& dilation, int64_t groups, int64_t tile, int64_t splits, bool allow_tf32) {
  const Ints kernel(out.sizes().begin() + 2, out.sizes().end());
  const auto a = conv_arguments::of_grad_weight(grad, input, kernel, stride, padding, dilation, groups);
  conv_mma_weight(ConvWeightCall{a.problem, grad, input, out, allow_tf32},
                  {static_cast<int>(tile), static_cast<int>(splits)});
}

}  // namespace atrousops::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(atrousops_host_cuda, m) {
  // clang-format off
  m.def("test_conv_mma(Tensor input, Tensor weight, Tensor? bias, Tensor? scale, Tensor? residual, Tensor(a!) out, int[] stride, int[] padding, int[] dilation, int groups, bool transposed, bool relu, int first_channel, int tile, int splits, bool allow_tf32) -> ()");
  m.def("test_conv_mma_weight(Tensor grad, Tensor input, Tensor(a!) out, int[] stride, int[] padding, int[] dilation, int groups, int tile, int splits, bool allow_tf32) -> ()");
  // clang-format on
}
STABLE_TORCH_LIBRARY_IMPL(atrousops_host_cuda, CPU, m) {
  m.impl("test_conv_mma", TORCH_BOX(&atrousops::cuda::test_conv_mma));
  m.impl("test_conv_mma_weight", TORCH_BOX(&atrousops::cuda::test_conv_mma_weight));
}
