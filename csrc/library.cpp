// Every operator's schema, one line each. Implementations register themselves at the bottom of their own file.
// ATROUSOPS_LIBRARY: the namespace; tests have one more for the CUDA kernels run on the CPU.
#include <torch/csrc/stable/library.h>

#if !defined(ATROUSOPS_LIBRARY)
#define ATROUSOPS_LIBRARY atrousops
#endif
// One macro more, so that the name is replaced before it is pasted.
#define ATROUSOPS_SCHEMAS(name, m) STABLE_TORCH_LIBRARY(name, m)

ATROUSOPS_SCHEMAS(ATROUSOPS_LIBRARY, m) {
  // clang-format off
  m.def("context_module(Tensor input, Tensor[] weights, Tensor[] biases, int[] dilation, bool allow_tf32=False) -> Tensor");
  m.def("conv(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, bool allow_tf32=False) -> Tensor");
  m.def("conv_branches(Tensor input, Tensor[] weights, Tensor[] biases, Tensor[] others, int[] padding, int[] dilation, bool relu, bool allow_tf32) -> Tensor");
  m.def("conv_grad_input(Tensor grad, Tensor weight, SymInt[] input_size, int[] stride, int[] padding, int[] dilation, int groups, bool allow_tf32=False) -> Tensor");
  m.def("conv_grad_weight(Tensor grad, Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, bool allow_tf32=False) -> Tensor");
  m.def("conv_transpose(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] output_padding, int[] dilation, int groups, bool allow_tf32=False) -> Tensor");
  m.def("max_pool(Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> (Tensor, Tensor)");
  m.def("max_pool_backward(Tensor grad, Tensor indices, SymInt[] input_size, int[] kernel_size, int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def("max_pool_codes(Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> (Tensor, Tensor)");
  m.def("max_pool_values(Tensor input, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode) -> Tensor");
  m.def("max_unpool(Tensor input, Tensor indices, SymInt[] output_size, int[] kernel_size, int[] stride, int[] padding) -> Tensor");
  m.def("max_unpool_backward(Tensor grad, Tensor indices, int[] kernel_size, int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def("mean_field(Tensor scores, Tensor[] lattices, Tensor[] compatibilities, int iterations) -> Tensor");
  m.def("permutohedral_apply(Tensor values, Tensor splat_weights, Tensor slice_weights, Tensor offsets, Tensor neighbours, Tensor row_starts, Tensor rows, Tensor row_bounds, Tensor counts, bool reverse) -> Tensor");
  m.def("permutohedral_lattice(Tensor features) -> (Tensor offsets, Tensor weights, Tensor neighbours, Tensor row_starts, Tensor rows, Tensor row_bounds, Tensor counts)");
  m.def("roi_align(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width, int sampling_ratio, bool aligned) -> Tensor");
  m.def("roi_align_backward(Tensor grad, Tensor boxes, float spatial_scale, SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned, bool channels_last) -> Tensor");
  m.def("roi_pool(Tensor input, Tensor boxes, float spatial_scale, SymInt pooled_height, SymInt pooled_width) -> (Tensor, Tensor)");
  m.def("roi_pool_backward(Tensor grad, Tensor boxes, Tensor argmax, float spatial_scale, SymInt batch_size, SymInt channels, SymInt height, SymInt width, bool channels_last) -> Tensor");
  // clang-format on
}
