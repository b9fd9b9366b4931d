// max_unpool: writes each value where its mark says, zero elsewhere. Marks are flat positions (int64) or one-byte
// numbers of taps. Also the gradients, which are the same two movements: windows to positions, positions to windows.
// A mark that names no place is left out: to raise for it, the host would have to wait for the device.
#include <algorithm>
#include <optional>

#include "cuda/launch.h"
#include "cuda/max_unpool.h"
#include "cuda/pack.h"
#include "cuda/platform.h"
#include "cuda/pool_window.cuh"
#include "cuda/registration.h"
#include "cuda/shared.h"

namespace atrousops::cuda {

constexpr int kThreads = 256;
// Blocks of a multiprocessor. Left to itself, ptxas squeezes some types into the registers for more, and spills.
constexpr int kResident = 4;

template <class T>
__device__ __forceinline__ void meet(Meeting meeting, accumulate_t<T>& sum, T value) {
  sum = meeting == Meeting::sum ? sum + static_cast<accumulate_t<T>>(value) : static_cast<accumulate_t<T>>(value);
}

// Packs of a position that a thread handles, which share its windows; one of indices is read in many bytes, and the
// sums of two of eight values need more registers than kResident blocks have.
template <class M, int kN>
constexpr int kTogether = sizeof(M) == 8 || kN == 1 || kN == 8 ? 1 : 2;

// Each element of the large map looks at the windows around it, in the order of the small map: one pass, no scatter.
// Adds to *matched the number of indices found in their own window.
template <class T, class M, int kN>
__global__ void __launch_bounds__(kThreads, kResident)
    place_windows_kernel(const PoolWindows g, const PoolIndex index, const T* small, const M* marks, T* large,
                         Meeting meeting, int64_t n, unsigned long long* matched) {
  constexpr bool kIndices = sizeof(M) == 8;
  constexpr int kEach = kTogether<M, kN>;
  unsigned found = 0;
  for (int64_t i = first_index(); i < n; i += index_step()) {
    const PoolPlace x = pool_place<kN>(i, index);
    const Range rd = windows_around(g, 0, x.at[0]), rh = windows_around(g, 1, x.at[1]),
                rw = windows_around(g, 2, x.at[2]);
    const int64_t here = flat(g.large, x.at[0], x.at[1], x.at[2]);
    // Where there is no other pack, the first again.
    const int64_t other = x.channel + index.packs.value() * kN < g.step ? index.packs.value() * kN : 0;
    accumulate_t<T> sum[kEach][kN] = {};
    for (int od = rd.begin; od < rd.end; ++od) {
      const int kd = tap_of(g, 0, x.at[0], od);
      for (int oh = rh.begin; oh < rh.end; ++oh) {
        const int kh = tap_of(g, 1, x.at[1], oh);
        for (int ow = rw.begin; ow < rw.end; ++ow) {
          const int kw = tap_of(g, 2, x.at[2], ow);
          if (kd < 0 || kh < 0 || kw < 0) continue;
          const int64_t from = (x.outer * g.small_plane + flat(g.small, od, oh, ow)) * g.step + x.channel;
          const M wanted = static_cast<M>(kIndices ? here : (kd * g.kernel[1] + kh) * g.kernel[2] + kw);
          Packs<M, kN> mark[kEach];
          Packs<T, kN> v[kEach];
#pragma unroll
          for (int e = 0; e < kEach; ++e) {
            mark[e] = load_packs<M, kN>(marks + from + e * other);
            v[e] = load_packs<T, kN>(small + from + e * other);
          }
#pragma unroll
          for (int e = 0; e < kEach; ++e)
#pragma unroll
            for (int k = 0; k < kN; ++k)
              if (mark[e][k] == wanted) {
                meet<T>(meeting, sum[e][k], v[e][k]);
                ++found;
              }
        }
      }
    }
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      if (e > 0 && other == 0) continue;
      Packs<T, kN> out;
#pragma unroll
      for (int k = 0; k < kN; ++k) out[k] = static_cast<T>(sum[e][k]);
      store_packs(large + (x.outer * g.large_plane + here) * g.step + x.channel + e * other, out);
    }
  }
  if constexpr (kIndices) {
    found = __reduce_add_sync(0xffffffffu, found);
    if (threadIdx.x % 32 == 0 && found) atomicAdd(matched, static_cast<unsigned long long>(found));
  }
}

__global__ void clear_kernel(unsigned long long* count) { *count = 0; }

// The same for indices that point out of their own window: every element looks at all indices of its plane. Slow, and
// the bits are still those of a sequential scatter. Ends at once where `expected` indices have matched.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    place_anywhere_kernel(const PoolWindows g, const T* small, const int64_t* marks, T* large, Meeting meeting,
                          const Divisor tiles, const Divisor step, const unsigned long long* matched,
                          unsigned long long expected) {
  if (*matched == expected) return;
  ATROUSOPS_SHARED(int64_t, tile, kThreads);
  for (int64_t b = blockIdx.x; b < g.outers * g.step * tiles.value(); b += gridDim.x) {
    int64_t outer = b;
    const int64_t here = tiles.split(outer) * kThreads + threadIdx.x, c = step.split(outer);
    const int64_t base = outer * g.small_plane * g.step + c;
    accumulate_t<T> sum = 0;
    for (int64_t begin = 0; begin < g.small_plane; begin += kThreads) {
      const int64_t mine = begin + threadIdx.x;
      tile[threadIdx.x] = mine < g.small_plane ? marks[base + mine * g.step] : -1;
      __syncthreads();
      for (int j = 0; j < kThreads; ++j)
        if (tile[j] == here) meet<T>(meeting, sum, small[base + (begin + j) * g.step]);
      __syncthreads();
    }
    if (here < g.large_plane) large[(outer * g.large_plane + here) * g.step + c] = static_cast<T>(sum);
  }
}

// Small map from large: each window takes the element its mark names, 0 if that is outside.
template <class T, class M>
__global__ void __launch_bounds__(kThreads)
    pick_kernel(const PoolWindows g, const PoolIndex index, const T* large, const M* marks, T* small, int64_t n) {
  for (int64_t i = first_index(); i < n; i += index_step()) {
    const PoolPlace o = pool_place<1>(i, index);
    const M mark = marks[i];
    int64_t p = -1;
    if constexpr (sizeof(M) == 8) {
      p = mark >= 0 && mark < g.large_plane ? mark : -1;
    } else {
      const int up = mark / g.kernel[2], tap[3] = {up / g.kernel[1], up % g.kernel[1], mark % g.kernel[2]};
      int x[3];
      bool inside = tap[0] < g.kernel[0];
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        x[axis] = o.at[axis] * g.stride[axis] - g.padding[axis] + tap[axis] * g.dilation[axis];
        inside = inside && x[axis] >= 0 && x[axis] < g.large[axis];
      }
      if (inside) p = flat(g.large, x[0], x[1], x[2]);
    }
    small[i] = p < 0 ? T(0) : large[(o.outer * g.large_plane + p) * g.step + o.channel];
  }
}

template <class T, class M>
static void place(const PoolWindows& g, const Tensor& in, const Tensor& marks, Tensor& out, Meeting meeting) {
  const T* small = data<T>(in);
  const M* marked = data<M>(marks);
  T* large = mutable_data<T>(out);
  const Stream stream = current_stream(in);
  constexpr bool kIndices = sizeof(M) == 8;
  std::optional<Tensor> count;
  unsigned long long* matched = nullptr;
  if (kIndices) {
    count = torch::stable::empty({1}, ScalarType::Long, std::nullopt, in.device());
    matched = static_cast<unsigned long long*>(count->mutable_data_ptr());
    launch<clear_kernel>({1, 1}, stream, matched);
  }
  const auto go = [&]<int kN>() {
    constexpr int kStep = kN * kTogether<M, kN>;
    const int64_t steps = (g.step + kStep - 1) / kStep, items = g.outers * g.large_plane * steps;
    launch<place_windows_kernel<T, M, kN>>({blocks_for(items, kThreads), kThreads}, stream, g,
                                           PoolIndex(g.large, steps * kN, kN), small, marked, large, meeting, items,
                                           matched);
  };
  if (g.step % kPack<T> == 0 && packs_at<kPack<T>>(small) && packs_at<kPack<T>>(marked))
    go.template operator()<kPack<T>>();
  else
    go.template operator()<1>();
  if constexpr (kIndices) {
    // Few blocks: they almost always end at once.
    const Divisor tiles((g.large_plane + kThreads - 1) / kThreads);
    const int64_t blocks = std::min<int64_t>(g.outers * g.step * tiles.value(), 8 * properties(in).multiprocessors);
    launch<place_anywhere_kernel<T>>({static_cast<unsigned>(blocks), kThreads}, stream, g, small, marked, large,
                                     meeting, tiles, Divisor(g.step), matched,
                                     static_cast<unsigned long long>(in.numel()));
  }
}

Tensor place_in_large(const char* op, const Tensor& small, const Tensor& marks, const std::vector<int64_t>& large_size,
                      const PoolArguments& args, Meeting meeting) {
  const DeviceGuard guard(small);
  const PoolGeometry g = placed_geometry(op, small, marks, large_size, args);
  const bool nhwc = is_batched(small, args) && answers_channels_last(small);
  const Tensor in = dense(small, nhwc), m = dense(marks, nhwc);
  Tensor out = empty(size_with(small, args, g.large), in, nhwc);
  const PoolWindows windows = pool_windows(op, g, nhwc);
  dispatch_floating(in.scalar_type(), op, [&]<class T>() {
    if (kind_of(op, marks) == Marks::indices)
      place<T, int64_t>(windows, in, m, out, meeting);
    else
      place<T, uint8_t>(windows, in, m, out, meeting);
  });
  return out;
}

// Large map to small map.
static Tensor pick_elements(const char* op, const Tensor& large, const Tensor& marks, const PoolArguments& args) {
  const DeviceGuard guard(large);
  PoolGeometry g = window_geometry(op, large, args);
  STD_TORCH_CHECK(marks.dim() == large.dim(), op, ": indices must have as many dimensions as the gradient");
  spatial(large, args, g.large);
  spatial(marks, args, g.small);
  for (int64_t i = 0; i < marks.dim() - args.axes(); ++i)
    STD_TORCH_CHECK(marks.size(i) == large.size(i), op, ": indices must have the batch and channels of the gradient");
  const bool nhwc = is_batched(large, args) && answers_channels_last(marks);
  const Tensor in = dense(large, nhwc), m = dense(marks, nhwc);
  Tensor out = empty(sizes_of(marks), in, nhwc);
  const PoolWindows windows = pool_windows(op, g, nhwc);
  const Stream stream = current_stream(in);
  const int64_t n = out.numel();
  const PoolIndex index(windows.small, windows.step, 1);
  const Launch over_windows{blocks_for(n, kThreads), kThreads};
  dispatch_floating(in.scalar_type(), op, [&]<class T>() {
    if (kind_of(op, marks) == Marks::indices)
      launch<pick_kernel<T, int64_t>>(over_windows, stream, windows, index, data<T>(in), data<int64_t>(m),
                                      mutable_data<T>(out), n);
    else
      launch<pick_kernel<T, uint8_t>>(over_windows, stream, windows, index, data<T>(in), data<uint8_t>(m),
                                      mutable_data<T>(out), n);
  });
  return out;
}

Tensor max_unpool(const Tensor& input, const Tensor& indices, std::vector<int64_t> output_size,
                  std::vector<int64_t> kernel_size, std::vector<int64_t> stride, std::vector<int64_t> padding) {
  const std::vector<int64_t> dilation(kernel_size.size(), 1);
  return place_in_large("max_unpool", input, indices, output_size, {kernel_size, stride, padding, dilation},
                        Meeting::last);
}

Tensor max_unpool_backward(const Tensor& grad, const Tensor& indices, std::vector<int64_t> kernel_size,
                           std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  return pick_elements("max_unpool_backward", grad, indices, {kernel_size, stride, padding, dilation});
}

}  // namespace atrousops::cuda

ATROUSOPS_CUDA_LIBRARY(m) {
  atrousops::implement<"max_unpool", &atrousops::cuda::max_unpool, "input", "indices">(m);
  atrousops::implement<"max_unpool_backward", &atrousops::cuda::max_unpool_backward, "grad", "indices">(m);
}
