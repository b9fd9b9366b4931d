// Depthwise convolution, its input gradient and bilinear upsampling in channels_last: bound by memory, 16 bytes of
// channels at a time. A thread computes kPixels neighbours of one lattice, which share weights and taps.
#include "cuda/conv_kernels.h"
#include "cuda/launch.h"
#include "cuda/pack.h"

namespace atrousops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 4;

template <class T, int kChannels>
__global__ void __launch_bounds__(kThreads)
    conv_depthwise_kernel(const __grid_constant__ ConvTable t, const T* src, const T* weight, const T* bias, T* dst,
                          int32_t chunks, int64_t items) {
  using A = accumulate_t<T>;
  using Channels = Pack<T, kChannels>;
  const int32_t blocks = static_cast<int32_t>(t.groups / kChannels);
  for (int64_t item = first_index(); item < items; item += index_step()) {
    int32_t block, residue[kAxes], o[kAxes], chunk, i;
    int64_t rest = split(item, blocks, block);
    // Along the last axis an item is a chunk of one residue's positions.
    rest = split(rest, chunks, chunk);
    rest = split(rest, t.p[2], residue[2]);
    o[2] = chunk * kPixels;
#pragma unroll
    for (int axis = 1; axis >= 0; --axis) {
      rest = split(rest, t.dst_size[axis], i);
      o[axis] = i / t.p[axis];
      residue[axis] = i - o[axis] * t.p[axis];
    }
    const int64_t channel = int64_t{block} * kChannels;
    const T* from = src + rest * t.src.n + channel;
    T* to = dst + rest * t.dst.n + channel;
    A sum[kPixels][kChannels] = {};
    if (residue[2] + o[2] * t.p[2] >= t.dst_size[2]) continue;

    const ConvResidue r0 = t.residue(0, residue[0]), r1 = t.residue(1, residue[1]), r2 = t.residue(2, residue[2]);
    for (int32_t a = r0.tap_begin; a < r0.tap_end; ++a) {
      const ConvTap tap0 = t.tap(0, a);
      if (o[0] < tap0.begin || o[0] >= tap0.end) continue;
      const int64_t at0 = (int64_t{o[0]} * t.q[0] + tap0.delta) * t.src.axis[0];
      for (int32_t b = r1.tap_begin; b < r1.tap_end; ++b) {
        const ConvTap tap1 = t.tap(1, b);
        if (o[1] < tap1.begin || o[1] >= tap1.end) continue;
        const int64_t at1 = at0 + (int64_t{o[1]} * t.q[1] + tap1.delta) * t.src.axis[1];
        const T* row_weight = weight + weight_offset(t, 0, tap0) + weight_offset(t, 1, tap1) + channel;
        for (int32_t c = r2.tap_begin; c < r2.tap_end; ++c) {
          const ConvTap tap2 = t.tap(2, c);
          if (o[2] + kPixels <= tap2.begin || o[2] >= tap2.end) continue;
          const Channels w = load_pack<T, kChannels>(row_weight + weight_offset(t, 2, tap2));
          const T* const row = from + at1 + (int64_t{o[2]} * t.q[2] + tap2.delta) * t.src.axis[2];
          // All of a tap's pixels are asked for before the first is used.
          Channels x[kPixels];
          bool inside[kPixels];
#pragma unroll
          for (int pixel = 0; pixel < kPixels; ++pixel) {
            inside[pixel] = o[2] + pixel >= tap2.begin && o[2] + pixel < tap2.end;
            if (inside[pixel]) x[pixel] = load_pack<T, kChannels>(row + pixel * (t.q[2] * t.src.axis[2]));
          }
#pragma unroll
          for (int pixel = 0; pixel < kPixels; ++pixel)
#pragma unroll
            for (int v = 0; v < kChannels; ++v)
              if (inside[pixel]) sum[pixel][v] += static_cast<A>(x[pixel][v]) * static_cast<A>(w[v]);
        }
      }
    }
    int64_t written = 0;
#pragma unroll
    for (int axis = 0; axis < 2; ++axis) written += (residue[axis] + int64_t{o[axis]} * t.p[axis]) * t.dst.axis[axis];
    A add[kChannels];
#pragma unroll
    for (int v = 0; v < kChannels; ++v) add[v] = bias ? static_cast<A>(bias[channel + v]) : A{0};
#pragma unroll
    for (int pixel = 0; pixel < kPixels; ++pixel) {
      const int64_t position = residue[2] + int64_t{o[2] + pixel} * t.p[2];
      if (position >= t.dst_size[2]) continue;
      Channels y;
#pragma unroll
      for (int v = 0; v < kChannels; ++v) y[v] = static_cast<T>(sum[pixel][v] + add[v]);
      store_pack(to + written + position * t.dst.axis[2], y);
    }
  }
}

}  // namespace

const char* conv_depthwise_rule(const ConvCall& call) {
  const core::Problem& p = call.problem;
  if (p.groups == 1 || p.groups != p.c || p.groups != p.k) return "not one channel in and out a group";
  const int64_t vector = conv_vector(call.src.scalar_type());
  if (p.groups % vector != 0) return "channels are no multiple of 16 bytes";
  if (!conv_fits_vectors(call.src, vector) || !conv_fits_vectors(call.dst, vector))
    return "not channels_last on addresses of 16 bytes";
  return nullptr;
}

void conv_depthwise(const ConvCall& call) {
  ConvPlan plan = conv_plan(call.problem, 0);
  ConvTable& t = plan.table;
  t.src = conv_strides(call.src);
  t.dst = conv_strides(call.dst);
  t.weights = conv_packed_strides(call.problem, ConvOrder::groups_last);
  const Tensor weight = conv_pack_weights(call.problem, call.weight, ConvOrder::groups_last);
  plan.upload(call.src);
  const int32_t counts = (t.dst_size[2] + t.p[2] - 1) / t.p[2], chunks = (counts + kPixels - 1) / kPixels;
  dispatch_floating(call.src.scalar_type(), "conv", [&]<class T>() {
    constexpr int kVector = 16 / sizeof(T);
    const int64_t items = t.groups / kVector * chunks * t.p[2] * t.dst_size[1] * t.dst_size[0] * t.n;
    launch<conv_depthwise_kernel<T, kVector>>(
        Launch{blocks_for(items, kThreads), kThreads}, current_stream(call.src), t, data<T>(call.src), data<T>(weight),
        call.bias ? data<T>(*call.bias) : nullptr, mutable_data<T>(call.dst), chunks, items);
  });
}

}  // namespace atrousops::cuda
