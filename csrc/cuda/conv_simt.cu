// The tap-list GEMM without tensor cores: any dtype, any channel count, any strides.
//
// A block computes rows x columns of one tile: rows are positions of a live region, columns channels of dst, and the
// sum runs over (tap, channel of src) as one axis, so that few channels waste nothing. All taps of a tile are live for
// all its rows: the loop has no masks, and a dead tap's weights are never read.
#include "cuda/conv_kernels.h"
#include "cuda/launch.h"
#include "cuda/shared.h"

namespace atrousops::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kDepth = 16;  // of one step
constexpr int kMicro = 4;   // rows and columns of a thread
constexpr int kPad = 4;     // keeps rows of shared memory aligned, and off each other's banks

// Runs along (tap, channel) of a tile.
struct Cursor {
  const ConvTable& t;
  const ConvTile& tile;
  int32_t i[kAxes];  // of the tap
  int64_t channel, left;
  int64_t src = 0, weight = 0;  // offsets of the tap

  __device__ Cursor(const ConvTable& t, const ConvTile& tile, int64_t start) : t(t), tile(tile) {
    left = tile.taps() * t.src_channels - start;
    const int64_t tap = start / t.src_channels;
    channel = start - tap * t.src_channels;
    int32_t rest = static_cast<int32_t>(tap);
    for (int axis = kAxes - 1; axis > 0; --axis) {
      const int32_t n = tile.taps(axis) > 0 ? tile.taps(axis) : 1;
      i[axis] = rest % n;
      rest /= n;
    }
    i[0] = rest;
    if (left > 0) find();
  }
  __device__ void find() {
    src = weight = 0;
#pragma unroll
    for (int axis = 0; axis < kAxes; ++axis) {
      const ConvTap tap = t.tap(axis, tile.segment[axis].tap_begin + i[axis]);
      src += src_offset(t, axis, tap);
      weight += weight_offset(t, axis, tap);
    }
  }
  __device__ void advance(int64_t by) {
    channel += by;
    left -= by;
    if (channel < t.src_channels || left <= 0) return;
    do {
      channel -= t.src_channels;
      if (++i[2] < tile.taps(2)) continue;
      i[2] = 0;
      if (++i[1] < tile.taps(1)) continue;
      i[1] = 0;
      ++i[0];
    } while (channel >= t.src_channels);
    find();
  }
};

// Loads of one thread for a step: `kCount` neighbours on the axis of the sum, of one row or column.
template <class T, int kCount, bool kWeight>
__device__ void load(accumulate_t<T> (&values)[kCount], const T* base, bool inside, Cursor& cursor) {
  const int64_t stride = kWeight ? cursor.t.weights.src : cursor.t.src.channel;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const int64_t offset = (kWeight ? cursor.weight : cursor.src) + cursor.channel * stride;
    values[j] = inside && cursor.left > 0 ? static_cast<accumulate_t<T>>(base[offset]) : accumulate_t<T>(0);
    cursor.advance(j + 1 < kCount ? 1 : 1 + kDepth - kCount);
  }
}

template <class A>
__device__ void add_to(A (&total)[kMicro][kMicro], A (&sum)[kMicro][kMicro]) {
#pragma unroll
  for (int i = 0; i < kMicro; ++i)
#pragma unroll
    for (int j = 0; j < kMicro; ++j) {
      total[i][j] += sum[i][j];
      sum[i][j] = 0;
    }
}

template <class A, int kRows, int kColumns>
__device__ void multiply(A (&sum)[kMicro][kMicro], const A* a, const A* b, int row, int column) {
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    A left[kMicro], right[kMicro];
#pragma unroll
    for (int i = 0; i < kMicro; ++i) left[i] = a[k * (kRows + kPad) + row + i];
#pragma unroll
    for (int j = 0; j < kMicro; ++j) right[j] = b[k * (kColumns + kPad) + column + j];
#pragma unroll
    for (int i = 0; i < kMicro; ++i)
#pragma unroll
      for (int j = 0; j < kMicro; ++j) sum[i][j] += left[i] * right[j];
  }
}

template <class T, int kRows, int kColumns>
__global__ void __launch_bounds__(kThreads)
    conv_simt_kernel(const __grid_constant__ ConvTable t, const T* src, const T* weight, const T* bias, T* dst,
                     bool by_channel, int64_t items) {
  using A = accumulate_t<T>;
  static_assert(kRows * kColumns == kThreads * kMicro * kMicro);
  constexpr int kLoadA = kRows * kDepth / kThreads, kLoadB = kColumns * kDepth / kThreads;
  constexpr int kSizeA = kDepth * (kRows + kPad), kSizeB = kDepth * (kColumns + kPad);
  ATROUSOPS_SHARED(A, shared_a, 2 * kSizeA);
  ATROUSOPS_SHARED(A, shared_b, 2 * kSizeB);
  const int thread = threadIdx.x;
  // Neighbouring threads read neighbouring addresses: channels, or positions.
  constexpr int kAcross = kDepth / kLoadA;
  const int load_row = by_channel ? thread / kAcross : thread % kRows;
  const int load_k = (by_channel ? thread % kAcross : thread / kRows) * kLoadA;
  const int load_column = thread % kColumns, load_k_b = thread / kColumns * kLoadB;
  const int row = thread / (kColumns / kMicro) * kMicro, column = thread % (kColumns / kMicro) * kMicro;
  const int64_t column_blocks = (t.dst_channels + kColumns - 1) / kColumns;

  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t first = item % column_blocks * kColumns, rest = item / column_blocks;
    const int64_t group = rest / t.tiles;
    const ConvTile tile = conv_tile(t, static_cast<int32_t>(rest - group * t.tiles));
    const bool row_inside = load_row < tile.rows, column_inside = first + load_column < t.dst_channels;
    const T* from = src + group * t.src_channels * t.src.channel;
    if (row_inside) from += conv_row(t, tile, load_row).src;
    const T* weights = weight + group * t.weights.group + (first + load_column) * t.weights.dst;
    Cursor cursor_a(t, tile, load_k), cursor_b(t, tile, load_k_b);

    A next_a[kLoadA], next_b[kLoadB];
    load<T, kLoadA, false>(next_a, from, row_inside, cursor_a);
    load<T, kLoadB, true>(next_b, weights, column_inside, cursor_b);
    A total[kMicro][kMicro] = {}, sum[kMicro][kMicro] = {};
    const int64_t steps = (tile.taps() * t.src_channels + kDepth - 1) / kDepth;
    // Sums of sums round less: of 32 products each, or 128 where there are many.
    const int partial = steps < 64 ? 2 : 8;
    for (int64_t step = 0; step < steps; ++step) {
      A* a = shared_a + step % 2 * kSizeA;
      A* b = shared_b + step % 2 * kSizeB;
#pragma unroll
      for (int j = 0; j < kLoadA; ++j) a[(load_k + j) * (kRows + kPad) + load_row] = next_a[j];
#pragma unroll
      for (int j = 0; j < kLoadB; ++j) b[(load_k_b + j) * (kColumns + kPad) + load_column] = next_b[j];
      // One barrier a step is enough: who writes a buffer has passed the barrier after its last readers' step.
      __syncthreads();
      if (step + 1 < steps) {
        load<T, kLoadA, false>(next_a, from, row_inside, cursor_a);
        load<T, kLoadB, true>(next_b, weights, column_inside, cursor_b);
      }
      multiply<A, kRows, kColumns>(sum, a, b, row, column);
      if (step % partial == partial - 1) add_to(total, sum);
    }
    add_to(total, sum);
    __syncthreads();

#pragma unroll
    for (int i = 0; i < kMicro; ++i) {
      if (row + i >= tile.rows) break;
      T* to = dst + conv_row(t, tile, row + i).dst;
#pragma unroll
      for (int j = 0; j < kMicro; ++j) {
        if (first + column + j >= t.dst_channels) break;
        const int64_t channel = group * t.dst_channels + first + column + j;
        const A value = bias ? total[i][j] + static_cast<A>(bias[channel]) : total[i][j];
        to[channel * t.dst.channel] = static_cast<T>(value);
      }
    }
  }
}

template <class T, int kRows, int kColumns>
void run(const ConvCall& call, ConvPlan& plan, const Tensor& weight) {
  const ConvTable& t = plan.table;
  const int64_t items = t.groups * t.tiles * ((t.dst_channels + kColumns - 1) / kColumns);
  const T* bias = call.bias ? data<T>(*call.bias) : nullptr;
  launch<conv_simt_kernel<T, kRows, kColumns>>(Launch{blocks_for(items, 1), kThreads}, current_stream(call.src), t,
                                               data<T>(call.src), data<T>(weight), bias, mutable_data<T>(call.dst),
                                               t.src.channel == 1, items);
}

}  // namespace

void conv_simt(const ConvCall& call) {
  const core::Problem& p = call.problem;
  const int64_t columns = (p.kind == core::Kind::input_grad ? p.c : p.k) / p.groups;
  const bool narrow = columns <= 32;
  ConvPlan plan = conv_plan(p, narrow ? 128 : 64);
  ConvTable& t = plan.table;
  t.src = conv_strides(call.src);
  t.dst = conv_strides(call.dst);
  t.weights = conv_weight_strides(p, call.weight);
  std::optional<Tensor> packed;
  if (t.weights.dst != 1 && columns > 1) {
    packed = conv_pack_weights(p, call.weight, ConvOrder::dst_last);
    t.weights = conv_packed_strides(p, ConvOrder::dst_last);
  }
  plan.upload(call.src);
  const Tensor& weight = packed ? *packed : call.weight;
  dispatch_floating(call.src.scalar_type(), "conv", [&]<class T>() {
    if (narrow) {
      run<T, 128, 32>(call, plan, weight);
    } else {
      run<T, 64, 64>(call, plan, weight);
    }
  });
}

}  // namespace atrousops::cuda
