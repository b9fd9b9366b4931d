// max_pool: y = max over the window, with the flat position of the maximum, or its one-byte number in the window.
#include <limits>
#include <optional>
#include <tuple>

#include "cuda/launch.h"
#include "cuda/max_unpool.h"
#include "cuda/pack.h"
#include "cuda/platform.h"
#include "cuda/pool_window.cuh"
#include "cuda/registration.h"
#include "stable/pool_tensor.h"

namespace atrousops::cuda {

constexpr int kThreads = 256;
// Blocks of a multiprocessor. Left to itself, ptxas squeezes some types into the registers for more, and spills.
constexpr int kResident = 4;

// M: int64_t for indices, uint8_t for codes, void for none.
template <class M>
struct MarkOf {
  using type = M;
};
template <>
struct MarkOf<void> {
  using type = uint8_t;
};

// A thread a window, of kN channels in channels_last. Taps come in the order of the map, so that the first of equal
// values wins, and a NaN replaces all but a later NaN, as in PyTorch.
template <class T, class M, int kN>
__global__ void __launch_bounds__(kThreads, kResident)
    max_pool_kernel(const PoolWindows g, const PoolIndex index, const T* input, T* values, M* marks, int64_t n) {
  using A = accumulate_t<T>;
  for (int64_t i = first_index(); i < n; i += index_step()) {
    const PoolPlace o = pool_place<kN>(i, index);
    const Range d = taps_inside(g, 0, o.at[0]), h = taps_inside(g, 1, o.at[1]), w = taps_inside(g, 2, o.at[2]);
    const int d0 = o.at[0] * g.stride[0] - g.padding[0], h0 = o.at[1] * g.stride[1] - g.padding[1],
              w0 = o.at[2] * g.stride[2] - g.padding[2];
    const T* map = input + o.outer * g.large_plane * g.step + o.channel;
    A best[kN];
    int tap[kN];
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      best[k] = -std::numeric_limits<A>::infinity();
      // A window of nothing but -inf is marked with its first tap inside the map.
      tap[k] = (d.begin * g.kernel[1] + h.begin) * g.kernel[2] + w.begin;
    }
    for (int kd = d.begin; kd < d.end; ++kd)
      for (int kh = h.begin; kh < h.end; ++kh) {
        const int64_t row = flat(g.large, d0 + kd * g.dilation[0], h0 + kh * g.dilation[1], w0);
        for (int kw = w.begin; kw < w.end; ++kw) {
          const auto v = load_packs<T, kN>(map + (row + kw * g.dilation[2]) * g.step);
#pragma unroll
          for (int k = 0; k < kN; ++k) {
            const A value = static_cast<A>(v[k]);
            if (value > best[k] || value != value) {
              best[k] = value;
              tap[k] = (kd * g.kernel[1] + kh) * g.kernel[2] + kw;
            }
          }
        }
      }
    Packs<T, kN> result;
    Packs<typename MarkOf<M>::type, kN> mark;
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      result[k] = static_cast<T>(best[k]);
      if constexpr (sizeof(mark[k]) == 8) {
        const int kw = tap[k] % g.kernel[2], up = tap[k] / g.kernel[2];
        mark[k] = flat(g.large, d0 + up / g.kernel[1] * g.dilation[0], h0 + up % g.kernel[1] * g.dilation[1],
                       w0 + kw * g.dilation[2]);
      } else {
        mark[k] = static_cast<uint8_t>(tap[k]);
      }
    }
    store_packs(values + i * kN, result);
    if constexpr (!std::is_void_v<M>) store_packs(marks + i * kN, mark);
  }
}

template <class T, class M>
static void run(const PoolWindows& g, const Tensor& in, Tensor& values, Tensor* marks) {
  const T* from = data<T>(in);
  T* to = mutable_data<T>(values);
  M* marked = marks ? static_cast<M*>(marks->mutable_data_ptr()) : nullptr;
  const int64_t n = values.numel();
  const Stream stream = current_stream(in);
  const auto go = [&]<int kN>() {
    launch<max_pool_kernel<T, M, kN>>({blocks_for(n / kN, kThreads), kThreads}, stream, g,
                                      PoolIndex(g.small, g.step, kN), from, to, marked, n / kN);
  };
  if (g.step % kPack<T> == 0 && packs_at<kPack<T>>(from))
    go.template operator()<kPack<T>>();
  else
    go.template operator()<1>();
}

// (values, marks); marks are not made for Marks::none.
static std::pair<Tensor, std::optional<Tensor>> pool(const char* op, const Tensor& input, const PoolArguments& args,
                                                     bool ceil_mode, Marks kind) {
  const DeviceGuard guard(input);
  auto [g, nhwc, in, values, marks] = pooled(op, input, args, ceil_mode, kind);
  const PoolWindows windows = pool_windows(op, g, nhwc);
  dispatch_floating(in.scalar_type(), op, [&]<class T>() {
    if (kind == Marks::indices)
      run<T, int64_t>(windows, in, values, &*marks);
    else if (kind == Marks::codes)
      run<T, uint8_t>(windows, in, values, &*marks);
    else
      run<T, void>(windows, in, values, nullptr);
  });
  return {values, marks};
}

// An index outside the input belongs to a window that held no element of it, and its gradient goes nowhere.
Tensor max_pool_backward(const Tensor& grad, const Tensor& indices, std::vector<int64_t> input_size,
                         std::vector<int64_t> kernel_size, std::vector<int64_t> stride, std::vector<int64_t> padding,
                         std::vector<int64_t> dilation) {
  return place_in_large("max_pool_backward", grad, indices, input_size, {kernel_size, stride, padding, dilation},
                        Meeting::sum);
}

constexpr auto max_pool = &pool_marked<"max_pool", pool, Marks::indices>;
constexpr auto max_pool_codes = &pool_marked<"max_pool_codes", pool, Marks::codes>;
constexpr auto max_pool_values = &pool_values<pool>;

}  // namespace atrousops::cuda

ATROUSOPS_CUDA_LIBRARY(m) {
  atrousops::implement<"max_pool", atrousops::cuda::max_pool, "input">(m);
  atrousops::implement<"max_pool_backward", &atrousops::cuda::max_pool_backward, "grad", "indices">(m);
  atrousops::implement<"max_pool_codes", atrousops::cuda::max_pool_codes, "input">(m);
  atrousops::implement<"max_pool_values", atrousops::cuda::max_pool_values, "input">(m);
}
