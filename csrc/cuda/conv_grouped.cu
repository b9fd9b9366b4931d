// Groups of few channels, without a GEMM, in any layout: a thread computes one element, neighbours in memory by
// neighbouring threads. Also depthwise where channels do not come in whole vectors.
#include "cuda/conv_kernels.h"
#include "cuda/launch.h"

namespace atrousops::cuda {
namespace {

constexpr int kThreads = 256;

struct Element {
  int32_t o[kAxes], residue[kAxes];
  int64_t n, channel;
};

__device__ Element element(const ConvTable& t, int64_t index, bool by_channel) {
  Element e;
  const int64_t channels = t.groups * t.dst_channels;
  if (by_channel) {
    const int64_t rest = index / channels;
    e.channel = index - rest * channels;
    index = rest;
  }
#pragma unroll
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    int32_t i;
    index = split(index, t.dst_size[axis], i);
    e.o[axis] = i / t.p[axis];
    e.residue[axis] = i - e.o[axis] * t.p[axis];
  }
  if (!by_channel) {
    const int64_t rest = index / channels;
    e.channel = index - rest * channels;
    index = rest;
  }
  e.n = index;
  return e;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    conv_grouped_kernel(const __grid_constant__ ConvTable t, const T* src, const T* weight, const T* bias, T* dst,
                        bool by_channel, int64_t items) {
  using A = accumulate_t<T>;
  for (int64_t item = first_index(); item < items; item += index_step()) {
    const Element e = element(t, item, by_channel);
    const int64_t group = e.channel / t.dst_channels;
    const T* from = src + e.n * t.src.n + group * t.src_channels * t.src.channel;
    const T* weights = weight + group * t.weights.group + (e.channel - group * t.dst_channels) * t.weights.dst;
    const ConvResidue r0 = t.residue(0, e.residue[0]), r1 = t.residue(1, e.residue[1]), r2 = t.residue(2, e.residue[2]);
    A sum = 0;
    for (int32_t a = r0.tap_begin; a < r0.tap_end; ++a) {
      const ConvTap tap0 = t.tap(0, a);
      if (e.o[0] < tap0.begin || e.o[0] >= tap0.end) continue;
      const int64_t at0 = (int64_t{e.o[0]} * t.q[0] + tap0.delta) * t.src.axis[0];
      for (int32_t b = r1.tap_begin; b < r1.tap_end; ++b) {
        const ConvTap tap1 = t.tap(1, b);
        if (e.o[1] < tap1.begin || e.o[1] >= tap1.end) continue;
        const int64_t at1 = at0 + (int64_t{e.o[1]} * t.q[1] + tap1.delta) * t.src.axis[1];
        const T* row_weights = weights + weight_offset(t, 0, tap0) + weight_offset(t, 1, tap1);
        for (int32_t c = r2.tap_begin; c < r2.tap_end; ++c) {
          const ConvTap tap2 = t.tap(2, c);
          if (e.o[2] < tap2.begin || e.o[2] >= tap2.end) continue;
          const T* x = from + at1 + (int64_t{e.o[2]} * t.q[2] + tap2.delta) * t.src.axis[2];
          const T* w = row_weights + weight_offset(t, 2, tap2);
          for (int64_t i = 0; i < t.src_channels; ++i)
            sum += static_cast<A>(x[i * t.src.channel]) * static_cast<A>(w[i * t.weights.src]);
        }
      }
    }
    int64_t written = e.n * t.dst.n + e.channel * t.dst.channel;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis)
      written += (e.residue[axis] + int64_t{e.o[axis]} * t.p[axis]) * t.dst.axis[axis];
    dst[written] = static_cast<T>(bias ? sum + static_cast<A>(bias[e.channel]) : sum);
  }
}

}  // namespace

void conv_grouped(const ConvCall& call) {
  ConvPlan plan = conv_plan(call.problem, 0);
  ConvTable& t = plan.table;
  t.src = conv_strides(call.src);
  t.dst = conv_strides(call.dst);
  const bool by_channel = t.dst.channel == 1;
  std::optional<Tensor> packed;
  t.weights = conv_weight_strides(call.problem, call.weight);
  if (by_channel && call.problem.groups > 1) {
    packed = conv_pack_weights(call.problem, call.weight, ConvOrder::groups_last);
    t.weights = conv_packed_strides(call.problem, ConvOrder::groups_last);
  }
  plan.upload(call.src);
  const int64_t items = call.dst.numel();
  dispatch_floating(call.src.scalar_type(), "conv", [&]<class T>() {
    launch<conv_grouped_kernel<T>>(Launch{blocks_for(items, kThreads), kThreads}, current_stream(call.src), t,
                                   data<T>(call.src), data<T>(packed ? *packed : call.weight),
                                   call.bias ? data<T>(*call.bias) : nullptr, mutable_data<T>(call.dst), by_channel,
                                   items);
  });
}

}  // namespace atrousops::cuda
