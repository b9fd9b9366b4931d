// Around the tensor-core GEMM: weights into its lines, and partial sums into results.
#include "cuda/conv_mma.h"

namespace atrousops::cuda {
namespace {

constexpr int kThreads = 256;

struct PackArgs {
  int64_t count, lines, taps, columns, pitch;  // columns of a line that exist, and with padding
  int64_t group, line, tap, column;            // strides of the source
};

template <class T>
__global__ void __launch_bounds__(kThreads) conv_mma_pack_kernel(const T* src, T* dst, PackArgs a) {
  for (int64_t i = first_index(); i < a.count; i += index_step()) {
    int32_t column, tap, line;
    int64_t rest = split(i, static_cast<int32_t>(a.pitch), column);
    rest = split(rest, static_cast<int32_t>(a.taps), tap);
    const int64_t group = split(rest, static_cast<int32_t>(a.lines), line);
    dst[i] = column < a.columns ? src[group * a.group + line * a.line + tap * a.tap + column * a.column] : T(0);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    conv_mma_sum_kernel(const __grid_constant__ ConvMmaArgs args, int64_t channels, int64_t items) {
  constexpr int kRun = 16 / sizeof(T);
  const int64_t runs = (channels + kRun - 1) / kRun;
  for (int64_t item = first_index(); item < items; item += index_step()) {
    int32_t run;
    const int64_t position = split(item, static_cast<int32_t>(runs), run);
    const int64_t channel = int64_t{run} * kRun;
    const int count = static_cast<int>(channels - channel < kRun ? channels - channel : kRun);
    const float* from = args.part + position * channels + channel;
    float sum[kRun] = {};
    if (args.whole_runs) {
#pragma unroll 2  // more under way at once would cost blocks
      for (int p = 0; p < args.splits; ++p, from += args.part_size) {
        const Packs<float, kRun> part = load_packs<float, kRun>(from);
#pragma unroll
        for (int i = 0; i < kRun; ++i) sum[i] += part[i];
      }
    } else {
#pragma unroll 1
      for (int p = 0; p < args.splits; ++p, from += args.part_size)
#pragma unroll
        for (int i = 0; i < kRun; ++i)
          if (i < count) sum[i] += from[i];
    }
    conv_finish<T>(args.epilogue, sum, position, channel, count);
  }
}

}  // namespace

ConvMmaWeights conv_mma_weights(const core::Problem& p, const Tensor& weight) {
  const bool swapped = p.kind == core::Kind::input_grad, fp32 = weight.scalar_type() == ScalarType::Float;
  const int64_t k = p.k / p.groups, c = weight.size(1), taps = p.kernel_positions();
  // Words of 32 bits cannot be transposed on their way out of shared memory.
  const bool along = !swapped || fp32;
  const int64_t lines = swapped && fp32 ? c : k, columns = swapped && fp32 ? k : c;
  const int64_t vector = conv_vector(weight.scalar_type()), pitch = (columns + vector - 1) / vector * vector;
  const bool ready = !(swapped && fp32) && pitch == columns && is_channels_last(weight) &&
                     reinterpret_cast<uintptr_t>(weight.const_data_ptr()) % 16 == 0;
  ConvMmaWeights w{weight, {lines * taps * pitch, taps * pitch, 1, {}}, pitch, along};
  if (!along) std::swap(w.strides.dst, w.strides.src);
  w.strides.tap[2] = pitch;
  w.strides.tap[1] = pitch * p.axis[2].kernel;
  w.strides.tap[0] = w.strides.tap[1] * p.axis[1].kernel;
  if (ready) return w;

  const bool last = prefers_channels_last(weight);
  const Tensor in = dense(weight, last);
  const ConvWeights from = conv_weight_strides(p, in);
  const PackArgs args{p.groups * lines * taps * pitch,
                      lines,
                      taps,
                      columns,
                      pitch,
                      from.group,
                      along ? from.dst : from.src,
                      last ? in.size(1) : 1,
                      along ? from.src : from.dst};
  STD_TORCH_CHECK(lines <= INT32_MAX && taps <= INT32_MAX && pitch <= INT32_MAX, "conv: weights beyond 2^31 lines");
  w.tensor = torch::stable::empty({args.count}, in.scalar_type(), std::nullopt, in.device());
  const auto pack = [&]<class T>() {
    if constexpr (sizeof(T) <= 4)
      launch<conv_mma_pack_kernel<T>>(Launch{blocks_for(args.count, kThreads), kThreads}, current_stream(in),
                                      data<T>(in), mutable_data<T>(w.tensor), args);
  };
  // All kinds of 8 bits move alike, and have the same zero.
  conv_narrow(in.scalar_type()) ? pack.template operator()<int8_t>()
                                : dispatch_floating(in.scalar_type(), "conv", pack);
  return w;
}

void conv_mma_sum(const ConvMmaArgs& parts, int64_t positions, int64_t channels, ScalarType dtype, Stream stream) {
  ConvMmaArgs args = parts;
  args.whole_runs = channels % conv_vector(dtype) == 0;
  dispatch_floating(dtype, "conv", [&]<class T>() {
    const int64_t run = 16 / sizeof(T), items = positions * ((channels + run - 1) / run);
    if constexpr (sizeof(T) <= 4)
      launch<conv_mma_sum_kernel<T>>(Launch{blocks_for(items, kThreads), kThreads}, stream, args, channels, items);
  });
}

}  // namespace atrousops::cuda
