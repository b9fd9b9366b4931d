// Convolution of int8 or float8_e4m3fn numbers on CUDA: the input is quantised to channels_last, with zeros to fill 16
// bytes of each group's channels, a tensor-core kernel sums, and scales what it sums on its way out.
#include <torch/headeronly/util/Float8_e4m3fn.h>

#include "cuda/conv_wgmma.h"
#include "cuda/pack.h"
#include "cuda/registration.h"
#include "stable/conv_arguments.h"

namespace atrousops::cuda {
namespace {

using torch::headeronly::Float8_e4m3fn;
using Ints = std::vector<int64_t>;
using Maybe = std::optional<Tensor>;
constexpr int kThreads = 256;
constexpr int kRun = 16;  // numbers of 8 bits that a thread makes

struct QuantizeArgs {
  ConvMap at;                         // of the input, its batch and three axes
  int64_t positions, channel_stride;  // all of them; elements between the input's channels
  int64_t runs;                       // of a position
  int64_t channels, padded;           // of a group, in the input and in the result
  bool across;                        // neighbouring threads have neighbouring channels, else positions
  bool whole;                         // all runs are aligned to 16 bytes, one behind the other
};

template <class Q>
__device__ __forceinline__ Q quantized(float x);
template <>
__device__ __forceinline__ int8_t quantized<int8_t>(float x) {
  const float whole = rintf(x);  // ties to even
  if (whole != whole) return 0;
  return static_cast<int8_t>(whole < -128 ? -128 : whole > 127 ? 127 : whole);
}
template <>
__device__ __forceinline__ Float8_e4m3fn quantized<Float8_e4m3fn>(float x) {
  constexpr float kLargest = 448;
  return Float8_e4m3fn(x < -kLargest ? -kLargest : x > kLargest ? kLargest : x);  // NaN stays
}

template <class T, class Q>
__global__ void __launch_bounds__(kThreads)
    conv_quantize_kernel(const T* src, const float* scale, Q* dst, const __grid_constant__ QuantizeArgs a) {
  const float factor = 1.0f / *scale;
  const int64_t items = a.positions * a.runs, fast = a.across ? a.runs : a.positions;
  for (int64_t item = first_index(); item < items; item += index_step()) {
    const int64_t high = item / fast, low = item - high * fast;
    const int64_t position = a.across ? high : low, run = a.across ? low : high;
    const int64_t group = run * kRun / a.padded, first = run * kRun - group * a.padded;
    const T* from = src + a.at(position) + (group * a.channels + first) * a.channel_stride;
    Pack<Q, kRun> out;
    if (a.whole) {
      const Packs<T, kRun> in = load_packs<T, kRun>(from);
#pragma unroll
      for (int i = 0; i < kRun; ++i) out[i] = quantized<Q>(static_cast<float>(in[i]) * factor);
    } else {
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        const float x = first + i < a.channels ? static_cast<float>(from[i * a.channel_stride]) : 0.0f;
        out[i] = quantized<Q>(x * factor);
      }
    }
    store_pack(dst + (position * a.runs + run) * kRun, out);
  }
}

// What sums are multiplied by, and the bias, in fp32.
template <class T>
__global__ void __launch_bounds__(kThreads)
    conv_quantized_parameters(const float* input_scale, const float* weight_scale, const T* bias, float* scale,
                              float* wide_bias, int64_t count) {
  for (int64_t i = first_index(); i < count; i += index_step()) {
    scale[i] = *input_scale * weight_scale[i];
    if (bias) wide_bias[i] = static_cast<float>(bias[i]);
  }
}

int64_t padded(int64_t channels) { return (channels + kRun - 1) / kRun * kRun; }

Tensor quantize(const Tensor& input, const Tensor& scale, ScalarType dtype, int64_t groups) {
  const int64_t channels = input.size(1) / groups;
  QuantizeArgs a{{{input.size(0), 1, 1, 1}, {input.stride(0), 0, 0, 0}}, 0, input.stride(1), 0, channels};
  a.padded = padded(channels);
  a.runs = groups * a.padded / kRun;
  a.across = input.stride(1) == 1;
  const int64_t vector = conv_vector(input.scalar_type());
  a.whole = a.across && a.padded == channels && input.stride(0) % vector == 0 &&
            reinterpret_cast<uintptr_t>(input.const_data_ptr()) % 16 == 0;
  Ints size = sizes_of(input);
  size[1] = groups * a.padded;
  for (int64_t from = 2, axis = 6 - input.dim(); from < input.dim(); ++from, ++axis) {
    a.at.size[axis] = input.size(from);
    a.at.stride[axis] = input.stride(from);
    a.whole = a.whole && input.stride(from) % vector == 0;
  }
  a.positions = a.at.count();
  Tensor q = empty(size, input, true, dtype);
  const auto run = [&]<class T, class Q>() {
    launch<conv_quantize_kernel<T, Q>>(Launch{blocks_for(a.positions * a.runs, kThreads), kThreads},
                                       current_stream(input), data<T>(input), data<float>(scale), mutable_data<Q>(q),
                                       a);
  };
  dispatch_floating(input.scalar_type(), "conv_quantized", [&]<class T>() {
    if constexpr (sizeof(T) <= 4)
      dtype == ScalarType::Char ? run.template operator()<T, int8_t>() : run.template operator()<T, Float8_e4m3fn>();
  });
  return q;
}

struct Parameters {
  Tensor scale;
  Maybe bias;
};
Parameters parameters(const Tensor& input_scale, const Tensor& weight_scale, const Maybe& bias) {
  const int64_t count = weight_scale.size(0);
  const Tensor weights = dense(weight_scale, false);
  const Maybe narrow = bias ? Maybe(dense(*bias, false)) : std::nullopt;
  Parameters made{empty({count}, weights, false), std::nullopt};
  if (bias) made.bias = empty({count}, weights, false);
  dispatch_floating(bias ? bias->scalar_type() : ScalarType::Float, "conv_quantized", [&]<class T>() {
    launch<conv_quantized_parameters<T>>(Launch{blocks_for(count, kThreads), kThreads}, current_stream(weights),
                                         data<float>(input_scale), data<float>(weights),
                                         narrow ? data<T>(*narrow) : nullptr, mutable_data<float>(made.scale),
                                         made.bias ? mutable_data<float>(*made.bias) : nullptr, count);
  });
  return made;
}

// In the order in which they are tried; a rule answers why a kernel cannot run a call, or null.
struct Kernel {
  const char* (*rule)(const ConvCall&);
  void (*run)(const ConvCall&, const ConvFuse&);
};
constexpr Kernel kKernels[] = {
    {conv_wgmma_rule, [](const ConvCall& call, const ConvFuse& fuse) { conv_wgmma(call, fuse); }},
    {[](const ConvCall& call) { return conv_mma_cannot(call.problem, call.src); },
     [](const ConvCall& call, const ConvFuse& fuse) { conv_mma(call, fuse, {}); }},
};

void run(const ConvCall& call, const ConvFuse& fuse) {
  const char* why = nullptr;
  for (const Kernel& kernel : kKernels) {
    why = kernel.rule(call);
    if (why == nullptr) return kernel.run(call, fuse);
  }
  STD_TORCH_CHECK(false, "conv_quantized: no tensor-core kernel runs this: ", why);
}

void check(const Tensor& input, const Tensor& weight, const Maybe& bias, const Tensor& input_scale,
           const Tensor& weight_scale, int64_t groups) {
  const ScalarType wide = input.scalar_type();
  STD_TORCH_CHECK(wide == ScalarType::Float || wide == ScalarType::Half || wide == ScalarType::BFloat16,
                  "conv_quantized: input must be float32, bfloat16 or float16");
  STD_TORCH_CHECK(conv_narrow(weight.scalar_type()), "conv_quantized: weight must be int8 or float8_e4m3fn");
  STD_TORCH_CHECK(input.dim() == weight.dim() && input.dim() >= 3 && input.dim() <= 5,
                  "conv_quantized: input and weight must both have 3 to 5 dimensions");
  STD_TORCH_CHECK(groups > 0 && weight.size(0) > 0 && weight.size(1) > 0 && weight.size(0) % groups == 0 &&
                      input.size(1) == weight.size(1) * groups,
                  "conv_quantized: channels must agree with each other and with groups");
  STD_TORCH_CHECK(input_scale.scalar_type() == ScalarType::Float && input_scale.numel() == 1 &&
                      weight_scale.scalar_type() == ScalarType::Float && weight_scale.dim() == 1 &&
                      weight_scale.size(0) == weight.size(0),
                  "conv_quantized: the scales must be float32, one number, and one of each output channel");
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)),
                  "conv_quantized: bias must have one entry a channel");
}

}  // namespace

Tensor conv_quantized(const Tensor& input, const Tensor& weight, const Maybe& bias, const Tensor& input_scale,
                      const Tensor& weight_scale, const Maybe& residual, const Ints& stride, const Ints& padding,
                      const Ints& dilation, int64_t groups, bool relu, bool float32) {
  check(input, weight, bias, input_scale, weight_scale, groups);
  const int64_t k = weight.size(0);
  // Of the quantised input, with its zeros.
  const core::Problem problem = conv_arguments::problem_of(
      core::Kind::forward, input.size(0), groups * padded(weight.size(1)), k, groups, conv_arguments::spatial(input),
      conv_arguments::spatial(weight), stride, padding, dilation, {});
  Ints size{input.size(0), k};
  for (int64_t i = 5 - input.dim(); i < core::kAxes; ++i) size.push_back(problem.axis[i].out);
  const DeviceGuard guard(input);
  Tensor dst = empty(size, input, input.dim() > 3, float32 ? ScalarType::Float : input.scalar_type());
  if (dst.numel() == 0) return dst;
  STD_TORCH_CHECK(!residual || (sizes_of(*residual) == size && residual->scalar_type() == dst.scalar_type()),
                  "conv_quantized: residual must have the result's shape and dtype");
  const Maybe added = residual ? Maybe(dense(*residual, true)) : std::nullopt;
  const Parameters p = parameters(input_scale, weight_scale, bias);
  const Tensor q = quantize(input, input_scale, weight.scalar_type(), groups);
  run(ConvCall{problem, q, weight, p.bias, dst}, ConvFuse{&p.scale, added ? &*added : nullptr, relu});
  return dst;
}

}  // namespace atrousops::cuda

// This library's alone: elsewhere, and for graphs, PyTorch's operators and `conv` make it.
ATROUSOPS_CUDA_SCHEMAS(m) {
  // clang-format off
  m.def("conv_quantized(Tensor input, Tensor weight, Tensor? bias, Tensor input_scale, Tensor weight_scale, Tensor? residual, int[] stride, int[] padding, int[] dilation, int groups, bool relu, bool float32) -> Tensor");
  // clang-format on
}

ATROUSOPS_CUDA_LIBRARY(m) {
  atrousops::implement<"conv_quantized", &atrousops::cuda::conv_quantized, "input", "weight", "bias", "input_scale",
                       "weight_scale", "residual">(m);
}
