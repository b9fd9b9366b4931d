// Weights into the order a kernel reads, and partial sums out of the order a kernel writes.
#include <algorithm>

#include "cuda/conv_kernels.h"
#include "cuda/launch.h"
#include "cuda/pack.h"

namespace atrousops::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) conv_pack_kernel(const T* src, T* dst, ConvMap map, int64_t count) {
  for (int64_t i = first_index(); i < count; i += index_step()) dst[i] = src[map(i)];
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    conv_sum_kernel(const accumulate_t<T>* part, T* out, ConvMap map, int64_t parts, int64_t count) {
  for (int64_t i = first_index(); i < count; i += index_step()) {
    accumulate_t<T> sum = 0;
    for (int64_t p = 0; p < parts; ++p) sum += part[p * count + i];
    out[map(i)] = static_cast<T>(sum);
  }
}

struct Counts {
  int64_t groups, taps, dst, src;
};
Counts counts_of(const core::Problem& p) {
  const bool swapped = p.kind == core::Kind::input_grad;
  const int64_t k = p.k / p.groups, c = p.c / p.groups;
  return {p.groups, p.kernel_positions(), swapped ? c : k, swapped ? k : c};
}

ConvMap map_of(const Counts& n, const ConvWeights& w, ConvOrder order) {
  const int64_t tap = w.tap[kAxes - 1];  // dense weights: the taps are one axis
  if (order == ConvOrder::groups_last) return {{n.taps, n.dst, n.src, n.groups}, {tap, w.dst, w.src, w.group}};
  if (order == ConvOrder::dst_last) return {{n.groups, n.taps, n.src, n.dst}, {w.group, tap, w.src, w.dst}};
  return {{n.groups, n.taps, n.dst, n.src}, {w.group, tap, w.dst, w.src}};
}

}  // namespace

bool conv_fits_vectors(const Tensor& t, int64_t vector) {
  const ConvTensor s = conv_strides(t);
  const auto whole = [&](int64_t stride) { return stride % vector == 0; };
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 && s.channel == 1 && whole(s.n) &&
         std::all_of(s.axis, s.axis + kAxes, whole);
}

int64_t conv_multiprocessors(const Tensor& t) { return properties(t).multiprocessors; }

Tensor conv_pack_weights(const core::Problem& problem, const Tensor& weight, ConvOrder order) {
  const Tensor in = dense(weight, prefers_channels_last(weight));
  const Counts n = counts_of(problem);
  ConvWeights strides = conv_weight_strides(problem, in);
  strides.tap[kAxes - 1] = prefers_channels_last(in) ? weight.size(1) : 1;
  const ConvMap map = map_of(n, strides, order);
  Tensor out = torch::stable::empty({map.count()}, in.scalar_type(), std::nullopt, in.device());
  dispatch_floating(in.scalar_type(), "conv", [&]<class T>() {
    launch<conv_pack_kernel<T>>(Launch{blocks_for(map.count(), kThreads), kThreads}, current_stream(in), data<T>(in),
                                mutable_data<T>(out), map, map.count());
  });
  return out;
}

ConvWeights conv_packed_strides(const core::Problem& problem, ConvOrder order) {
  const Counts n = counts_of(problem);
  ConvWeights w{};
  if (order == ConvOrder::groups_last) {
    w = {1, n.src * n.groups, n.groups, {0, 0, n.dst * n.src * n.groups}};
  } else {
    const bool src_last = order == ConvOrder::src_last;
    w = {n.taps * n.dst * n.src, src_last ? n.src : 1, src_last ? 1 : n.dst, {0, 0, n.dst * n.src}};
  }
  for (int axis = kAxes - 2; axis >= 0; --axis) w.tap[axis] = w.tap[axis + 1] * problem.axis[axis + 1].kernel;
  return w;
}

void conv_sum_parts(const Tensor& part, int64_t parts, const ConvMap& map, Tensor& out) {
  dispatch_floating(out.scalar_type(), "conv_grad_weight", [&]<class T>() {
    launch<conv_sum_kernel<T>>(Launch{blocks_for(map.count(), kThreads), kThreads}, current_stream(out),
                               data<accumulate_t<T>>(part), mutable_data<T>(out), map, parts, map.count());
  });
}

}  // namespace atrousops::cuda
