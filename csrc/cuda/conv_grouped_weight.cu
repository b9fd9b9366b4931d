// The weight gradient of groups of few channels, depthwise above all: a warp sums one weight position, its lanes being
// neighbouring groups (channels_last) or neighbouring positions. All warps of a block read the same few rows, from the
// cache. Parts of the positions are added up in order by a second kernel: the same bits every time.
#include <algorithm>

#include "cuda/conv_kernels.h"
#include "cuda/launch.h"
#include "cuda/pack.h"
#include "cuda/shared.h"

namespace atrousops::cuda {
namespace {

constexpr int kWarp = 32, kMaxWarps = 16;
constexpr int kChunk = 512;  // positions whose addresses are worked out together
constexpr int kStrands = 4;  // sums side by side: loads do not wait for each other, and short sums round less

struct Work {
  int64_t blocks, parts, items;  // blocks of groups
  int64_t positions, outputs;    // outputs are (dst channel, src channel, tap) of a group
};

struct Positions {
  ConvRow* row;
  int32_t* o[kAxes];
};

// Lists the positions [first, first + count) in shared memory.
__device__ inline void list(const ConvTable& t, const Positions& positions, int64_t first, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    int64_t rest = first + i;
    ConvRow at{0, 0};
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      int32_t o;
      rest = split(rest, t.dst_size[axis], o);
      positions.o[axis][i] = o;
      at.src += int64_t{o} * t.q[axis] * t.src.axis[axis];
      at.dst += int64_t{o} * t.dst.axis[axis];
    }
    positions.row[i] = {at.src + rest * t.src.n, at.dst + rest * t.dst.n};
  }
}

// One weight position, and where it is live.
struct Output {
  int64_t grad, input;  // offsets of its channels and its tap
  ConvTap tap[kAxes];

  __device__ Output(const ConvTable& t, int64_t index) {
    int64_t delta = 0;
#pragma unroll
    for (int axis = kAxes - 1; axis >= 0; --axis) {
      int32_t r;
      index = split(index, t.kernel[axis], r);
      tap[axis] = t.tap(axis, r);  // one phase: taps are in the order of r
      delta += src_offset(t, axis, tap[axis]);
    }
    const int64_t j = index / t.src_channels, i = index - j * t.src_channels;
    grad = j * t.dst.channel;
    input = delta + i * t.src.channel;
  }
  __device__ bool live(const Positions& p, int i) const {
    bool all = true;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) all &= tap[axis].begin <= p.o[axis][i] && p.o[axis][i] < tap[axis].end;
    return all;
  }
};

// Lanes are groups, kGroups side by side each; more than one only where a group is one channel.
template <class T, int kGroups>
__device__ void sum_groups(const ConvTable& t, const T* grad, const T* input, accumulate_t<T>* to, const Output& output,
                           const Positions& positions, int count, int64_t block, bool first) {
  using A = accumulate_t<T>;
  const int64_t group = (block * kWarp + threadIdx.x % kWarp) * kGroups;
  if (group >= t.groups) return;
  const T* g = grad + output.grad + group * t.dst_channels * t.dst.channel;
  const T* x = input + output.input + group * t.src_channels * t.src.channel;
  A sum[kStrands][kGroups] = {};
  for (int start = 0; start < count; start += kStrands) {
#pragma unroll
    for (int s = 0; s < kStrands; ++s) {
      const int i = start + s;
      if (i >= count || !output.live(positions, i)) continue;
      const auto a = load_pack<T, kGroups>(g + positions.row[i].dst);
      const auto b = load_pack<T, kGroups>(x + positions.row[i].src);
#pragma unroll
      for (int v = 0; v < kGroups; ++v) sum[s][v] += static_cast<A>(a[v]) * static_cast<A>(b[v]);
    }
  }
#pragma unroll
  for (int v = 0; v < kGroups; ++v) {
    const A all = (sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v]);
    to[group + v] = first ? all : to[group + v] + all;
  }
}

// Lanes are positions; `block` is the group.
template <class T>
__device__ void sum_positions(const ConvTable& t, const T* grad, const T* input, accumulate_t<T>* to,
                              const Output& output, const Positions& positions, int count, int64_t block, bool first) {
  using A = accumulate_t<T>;
  const int lane = threadIdx.x % kWarp;
  const T* g = grad + output.grad + block * t.dst_channels * t.dst.channel;
  const T* x = input + output.input + block * t.src_channels * t.src.channel;
  A sum = 0;
  for (int i = lane; i < count; i += kWarp)
    if (output.live(positions, i))
      sum += static_cast<A>(g[positions.row[i].dst]) * static_cast<A>(x[positions.row[i].src]);
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
  if (lane == 0) to[block] = first ? sum : to[block] + sum;
}

// kGroups = 0: lanes are positions.
template <class T, int kGroups>
__global__ void __launch_bounds__(kWarp* kMaxWarps, kGroups == 0 ? 2 : 1)
    conv_grouped_weight_kernel(const __grid_constant__ ConvTable t, const T* grad, const T* input,
                               accumulate_t<T>* part, Work work) {
  ATROUSOPS_SHARED(ConvRow, row, kChunk);
  ATROUSOPS_SHARED(int32_t, o0, kChunk);
  ATROUSOPS_SHARED(int32_t, o1, kChunk);
  ATROUSOPS_SHARED(int32_t, o2, kChunk);
  const Positions positions{row, {o0, o1, o2}};
  for (int64_t item = blockIdx.x; item < work.items; item += gridDim.x) {
    const int64_t slice = item / work.blocks, block = item - slice * work.blocks;
    const int64_t begin = work.positions * slice / work.parts, end = work.positions * (slice + 1) / work.parts;
    for (int64_t chunk = begin; chunk < end; chunk += kChunk) {
      const int count = static_cast<int>(end - chunk < kChunk ? end - chunk : kChunk);
      list(t, positions, chunk, count);
      __syncthreads();
      for (int64_t index = threadIdx.x / kWarp; index < work.outputs; index += blockDim.x / kWarp) {
        const Output output(t, index);
        accumulate_t<T>* to = part + (slice * work.outputs + index) * t.groups;
        if constexpr (kGroups == 0) {
          sum_positions(t, grad, input, to, output, positions, count, block, chunk == begin);
        } else {
          sum_groups<T, kGroups>(t, grad, input, to, output, positions, count, block, chunk == begin);
        }
      }
      __syncthreads();
    }
  }
}

// Enough for eight blocks a multiprocessor, but a chunk each; none is empty.
int64_t parts_of(int64_t positions, int64_t blocks, int64_t multiprocessors) {
  const int64_t wanted = (8 * multiprocessors + blocks - 1) / blocks;
  return std::clamp<int64_t>(std::min(wanted, positions / kChunk), 1, 1024);
}

template <class T, int kGroups>
void run(const ConvWeightCall& call, ConvPlan& plan, Work work, Tensor& part, unsigned threads) {
  launch<conv_grouped_weight_kernel<T, kGroups>>(Launch{blocks_for(work.items, 1), threads}, current_stream(call.input),
                                                 plan.table, data<T>(call.grad), data<T>(call.input),
                                                 mutable_data<accumulate_t<T>>(part), work);
}

// Elements of 16 bytes if they can be read at once, else 1; 0 if groups do not lie side by side or are too few.
int64_t groups_of(const ConvTable& t, const ConvWeightCall& call) {
  if (t.src.channel != 1 || t.dst.channel != 1 || t.groups < kWarp) return 0;
  const int64_t vector = conv_vector(call.input.scalar_type());
  const bool whole = t.src_channels == 1 && t.dst_channels == 1 && t.groups % vector == 0;
  return whole && conv_fits_vectors(call.input, vector) && conv_fits_vectors(call.grad, vector) ? vector : 1;
}

}  // namespace

void conv_grouped_weight(const ConvWeightCall& call) {
  const core::Problem& p = call.problem;
  ConvPlan plan = conv_plan(p, 0);
  ConvTable& t = plan.table;
  t.src = conv_strides(call.input);
  t.dst = conv_strides(call.grad);
  plan.upload(call.input);
  const int64_t groups = groups_of(t, call), side = groups * kWarp, taps = p.kernel_positions();
  Work work{groups == 0 ? t.groups : (t.groups + side - 1) / side, 1, 0, p.n * p.out_positions(),
            t.dst_channels * t.src_channels * taps};
  work.parts = parts_of(work.positions, work.blocks, conv_multiprocessors(call.input));
  work.items = work.parts * work.blocks;
  const int64_t rounds = (work.outputs + kMaxWarps - 1) / kMaxWarps;
  const unsigned threads = static_cast<unsigned>(kWarp * ((work.outputs + rounds - 1) / rounds));
  const ScalarType dtype = call.input.scalar_type();
  Tensor part = torch::stable::empty({work.parts, work.outputs, t.groups}, compute_dtype(dtype), std::nullopt,
                                     call.input.device());
  dispatch_floating(dtype, "conv_grad_weight", [&]<class T>() {
    if (groups == 0) {
      run<T, 0>(call, plan, work, part, threads);
    } else if (groups == 1) {
      run<T, 1>(call, plan, work, part, threads);
    } else {
      run<T, 16 / sizeof(T)>(call, plan, work, part, threads);
    }
  });
  // out is [group][dst channel][src channel][tap].
  conv_sum_parts(part, work.parts, {{1, 1, work.outputs, t.groups}, {0, 0, 1, work.outputs}}, call.out);
}

}  // namespace atrousops::cuda
