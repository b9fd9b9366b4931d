// The weight gradient without tensor cores: per tap a GEMM over the positions in which that tap is live.
//
// dw[k, c, tap] = sum over (n, o) of grad[n, o, k] * input[n, q * o + delta, c]. The sum is cut into parts, one a
// block, which a second kernel adds up in their order: the same bits every time.
#include <algorithm>

#include "cuda/conv_kernels.h"
#include "cuda/launch.h"
#include "cuda/shared.h"

namespace atrousops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDepth = 16;   // positions of one step
constexpr int kMicro = 4;    // rows and columns of a thread
constexpr int kTile = 64;    // channels of grad, and of input
constexpr int kChunk = 128;  // positions whose addresses are worked out together; sums of sums round less, too
constexpr int kLoads = kTile * kDepth / kThreads;
constexpr int kLine = kTile + 4;  // keeps rows of shared memory aligned, and off each other's banks

// The box in which a tap is live.
struct Box {
  int32_t begin[kAxes], length[kAxes];
  int64_t src, positions;

  __device__ Box(const ConvTable& t, int64_t index) : src(0), positions(t.n) {
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      int32_t i;
      index = split(index, t.kernel[axis], i);
      const ConvTap tap = t.tap(axis, i);
      begin[axis] = tap.begin;
      length[axis] = tap.end - tap.begin;
      src += src_offset(t, axis, tap);
      positions *= length[axis];
    }
  }
  __device__ ConvRow at(const ConvTable& t, int64_t position) const {
    ConvRow r{src, 0};
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      int32_t o;
      position = split(position, length[axis], o);
      o += begin[axis];
      r.src += int64_t{o} * t.q[axis] * t.src.axis[axis];
      r.dst += int64_t{o} * t.dst.axis[axis];
    }
    r.src += position * t.src.n;
    r.dst += position * t.dst.n;
    return r;
  }
};

// Which four elements (position, channel) of a step a thread loads: neighbours in memory for neighbouring threads.
struct Loader {
  int position, channel, position_step, channel_step;
  int64_t stride;

  __device__ Loader(int64_t channel_stride, int thread) : stride(channel_stride) {
    const bool by_channel = channel_stride == 1;
    position = by_channel ? thread / kTile * kLoads : thread % kDepth;
    channel = by_channel ? thread % kTile : thread / kDepth;
    position_step = by_channel ? 1 : 0;
    channel_step = by_channel ? 0 : kThreads / kDepth;
  }
  // `offset` of each position; a position or channel from the ends on is zero.
  template <class T>
  __device__ void load(accumulate_t<T> (&values)[kLoads], const T* base, const int64_t* offset, int64_t positions,
                       int64_t channels) const {
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int at = position + j * position_step, c = channel + j * channel_step;
      values[j] = at < positions && c < channels ? static_cast<accumulate_t<T>>(base[offset[at] + c * stride]) : 0;
    }
  }
  template <class A>
  __device__ void store(const A (&values)[kLoads], A* shared) const {
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
      shared[(position + j * position_step) * kLine + channel + j * channel_step] = values[j];
  }
};

template <class A>
__device__ void multiply(A (&sum)[kMicro][kMicro], const A* a, const A* b, int row, int column) {
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    A left[kMicro], right[kMicro];
#pragma unroll
    for (int i = 0; i < kMicro; ++i) left[i] = a[k * kLine + row + i];
#pragma unroll
    for (int j = 0; j < kMicro; ++j) right[j] = b[k * kLine + column + j];
#pragma unroll
    for (int i = 0; i < kMicro; ++i)
#pragma unroll
      for (int j = 0; j < kMicro; ++j) sum[i][j] += left[i] * right[j];
  }
}

struct Work {
  int64_t taps, rows, columns, parts, items;  // rows and columns are blocks of channels
};

template <class T>
__global__ void __launch_bounds__(kThreads) conv_simt_weight_kernel(const __grid_constant__ ConvTable t, const T* grad,
                                                                    const T* input, accumulate_t<T>* part, Work work) {
  using A = accumulate_t<T>;
  ATROUSOPS_SHARED(A, shared_a, 2 * kDepth * kLine);
  ATROUSOPS_SHARED(A, shared_b, 2 * kDepth * kLine);
  ATROUSOPS_SHARED(int64_t, grad_at, kChunk);
  ATROUSOPS_SHARED(int64_t, input_at, kChunk);
  const int thread = threadIdx.x;
  const Loader load_a(t.dst.channel, thread), load_b(t.src.channel, thread);
  const int row = thread / (kTile / kMicro) * kMicro, column = thread % (kTile / kMicro) * kMicro;

  for (int64_t item = blockIdx.x; item < work.items; item += gridDim.x) {
    // Blocks that read the same positions come one after the other.
    int64_t rest = item;
    const int64_t first_k = rest % work.rows * kTile;
    rest /= work.rows;
    const int64_t first_c = rest % work.columns * kTile;
    rest /= work.columns;
    const int64_t tap = rest % work.taps;
    rest /= work.taps;
    const int64_t group = rest % t.groups, slice = rest / t.groups;
    const Box box(t, tap);
    const int64_t chunks = (box.positions + kChunk - 1) / kChunk;
    const int64_t begin = chunks * slice / work.parts * kChunk;
    const int64_t next = chunks * (slice + 1) / work.parts * kChunk;
    const int64_t end = next < box.positions ? next : box.positions;
    const int64_t channels_a = t.dst_channels - first_k, channels_b = t.src_channels - first_c;
    const T* a_base = grad + (group * t.dst_channels + first_k) * t.dst.channel;
    const T* b_base = input + (group * t.src_channels + first_c) * t.src.channel;
    A total[kMicro][kMicro] = {};
    for (int64_t chunk = begin; chunk < end; chunk += kChunk) {
      const int64_t left = end - chunk < kChunk ? end - chunk : kChunk;
      if (thread < left) {
        const ConvRow at = box.at(t, chunk + thread);
        grad_at[thread] = at.dst;
        input_at[thread] = at.src;
      }
      __syncthreads();
      A sum[kMicro][kMicro] = {}, next_a[kLoads], next_b[kLoads];
      load_a.load(next_a, a_base, grad_at, left, channels_a);
      load_b.load(next_b, b_base, input_at, left, channels_b);
      for (int step = 0; step * kDepth < left; ++step) {
        A* a = shared_a + step % 2 * kDepth * kLine;
        A* b = shared_b + step % 2 * kDepth * kLine;
        load_a.store(next_a, a);
        load_b.store(next_b, b);
        __syncthreads();
        const int done = (step + 1) * kDepth;
        if (done < left) {
          load_a.load(next_a, a_base, grad_at + done, left - done, channels_a);
          load_b.load(next_b, b_base, input_at + done, left - done, channels_b);
        }
        multiply(sum, a, b, row, column);
      }
#pragma unroll
      for (int i = 0; i < kMicro; ++i)
#pragma unroll
        for (int j = 0; j < kMicro; ++j) total[i][j] += sum[i][j];
      __syncthreads();
    }
    A* to = part + ((slice * t.groups + group) * work.taps + tap) * t.dst_channels * t.src_channels;
#pragma unroll
    for (int i = 0; i < kMicro; ++i)
#pragma unroll
      for (int j = 0; j < kMicro; ++j)
        if (row + i < channels_a && column + j < channels_b)
          to[(first_k + row + i) * t.src_channels + first_c + column + j] = total[i][j];
  }
}

// Parts enough for four blocks a multiprocessor, each of at least four chunks.
int64_t parts_of(const core::Problem& p, int64_t blocks, int64_t multiprocessors) {
  const int64_t positions = p.n * p.out_positions(), wanted = (4 * multiprocessors + blocks - 1) / blocks;
  return std::clamp<int64_t>(std::min(wanted, positions / (4 * kChunk)), 1, 256);
}

}  // namespace

void conv_simt_weight(const ConvWeightCall& call) {
  const core::Problem& p = call.problem;
  ConvPlan plan = conv_plan(p, 0);
  ConvTable& t = plan.table;
  t.src = conv_strides(call.input);
  t.dst = conv_strides(call.grad);
  plan.upload(call.input);
  const auto blocks = [](int64_t channels) { return (channels + kTile - 1) / kTile; };
  Work work{p.kernel_positions(), blocks(t.dst_channels), blocks(t.src_channels), 1, 0};
  work.items = work.taps * work.rows * work.columns * t.groups;
  work.parts = parts_of(p, work.items, conv_multiprocessors(call.input));
  work.items *= work.parts;
  const ScalarType dtype = call.input.scalar_type();
  const int64_t each = t.dst_channels * t.src_channels;
  const ConvMap map{{t.groups, work.taps, t.dst_channels, t.src_channels},
                    {each * work.taps, 1, t.src_channels * work.taps, work.taps}};
  Tensor part =
      torch::stable::empty({work.parts, map.count()}, compute_dtype(dtype), std::nullopt, call.input.device());
  dispatch_floating(dtype, "conv_grad_weight", [&]<class T>() {
    if constexpr (sizeof(T) == 2) {
      STD_TORCH_CHECK(false, "conv_grad_weight: 16-bit floats need tensor cores of compute capability 8.0");
    } else {
      launch<conv_simt_weight_kernel<T>>(Launch{blocks_for(work.items, 1), kThreads}, current_stream(call.input), t,
                                         data<T>(call.grad), data<T>(call.input), mutable_data<T>(part), work);
    }
  });
  conv_sum_parts(part, work.parts, map, call.out);
}

}  // namespace atrousops::cuda
