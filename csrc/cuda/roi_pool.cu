// roi_pool and its gradient in the features (Girshick, Fast R-CNN, arXiv:1504.08083).
#include <cmath>
#include <limits>
#include <tuple>

#include "cuda/platform.h"
#include "cuda/registration.h"
#include "cuda/roi_tiles.cuh"
#include "cuda/runtime.h"
#include "stable/dispatch.h"

namespace atrousops::cuda {

// The windows of one axis, in torchvision's order of operations.
template <class G>
struct RoiWindows {
  int32_t start, size;
  G bin;

  __device__ __forceinline__ RoiWindows(G from, G to, G scale, int32_t size, int32_t bins) : size(size) {
    start = to_pixel(rounded_product(from, scale));
    const int64_t length = int64_t{to_pixel(rounded_product(to, scale))} - start;
    bin = static_cast<G>(length < 0 ? 1 : length + 1) / static_cast<G>(bins);
  }

  // Clips to a range far outside any map that boxes can be told apart on; NaN, whose box pools nothing, too.
  __device__ __forceinline__ static int32_t to_pixel(G v) {
    const G most = static_cast<G>(1 << 30);
    const G whole = round(v);
    return static_cast<int32_t>(whole > -most ? whole < most ? whole : most : -most);
  }

  __device__ __forceinline__ int32_t begin(int32_t b) const { return clip(floor(rounded_product(G(b), bin))); }
  __device__ __forceinline__ int32_t end(int32_t b) const { return clip(ceil(rounded_product(G(b + 1), bin))); }

 private:
  __device__ __forceinline__ int32_t clip(G offset) const {
    const int64_t at = static_cast<int64_t>(offset) + start;
    return at < 0 ? 0 : at > size ? size : static_cast<int32_t>(at);
  }
};

struct RoiPoolShape {
  BoxRows boxes;
  bool is_double;  // the geometry
  double spatial_scale;
  int32_t height, width, pooled_height, pooled_width;

  template <class G>
  __device__ __forceinline__ RoiWindows<G> rows(const Box<G>& box) const {
    return {box.y1, box.y2, static_cast<G>(spatial_scale), height, pooled_height};
  }
  template <class G>
  __device__ __forceinline__ RoiWindows<G> columns(const Box<G>& box) const {
    return {box.x1, box.x2, static_cast<G>(spatial_scale), width, pooled_width};
  }

  // What bin (p, q) of RoI k pools.
  __device__ __forceinline__ RoiBounds window(int64_t k, int32_t p, int32_t q) const {
    return is_double ? window_as<double>(k, p, q) : window_as<float>(k, p, q);
  }
  template <class G>
  __device__ __forceinline__ RoiBounds window_as(int64_t k, int32_t p, int32_t q) const {
    const Box<G> box = boxes.read<G>(k);
    const RoiWindows<G> y = rows(box), x = columns(box);
    return {static_cast<int32_t>(box.image), y.begin(p), y.end(p), x.begin(q), x.end(q)};
  }
};

// A thread for each bin and pack of N channels (NHWC), or for each bin and channel (NCHW); a block stays in one RoI.
// The first of equals wins, and NaN never does.
template <class T, int N, bool kNhwc>
__global__ void __launch_bounds__(kRoiThreads, 4)
    roi_pool_forward(RoiPoolShape a, int64_t channels, int64_t blocks_per_roi, const T* __restrict__ features,
                     T* __restrict__ out, int32_t* __restrict__ argmax) {
  using C = accumulate_t<T>;
  const int32_t packs = static_cast<int32_t>(channels) / N, bins = a.pooled_height * a.pooled_width;
  const int64_t plane = static_cast<int64_t>(a.height) * a.width;
  for (int64_t block = blockIdx.x; block < a.boxes.count * blocks_per_roi; block += gridDim.x) {
    const int64_t k = block / blocks_per_roi;
    const int32_t item = static_cast<int32_t>(block % blocks_per_roi) * kRoiThreads + static_cast<int32_t>(threadIdx.x);
    if (item >= bins * packs) continue;
    const int32_t bin = kNhwc ? item / packs : item % bins;
    const int64_t channel = kNhwc ? item % packs * N : item / bins;
    const RoiBounds w = a.window(k, bin / a.pooled_width, bin % a.pooled_width);
    const bool is_empty = w.y0 >= w.y1 || w.x0 >= w.x1;
    C best[N];
    Packs<int32_t, N> at;
    for (int i = 0; i < N; ++i) {
      best[i] = w.image < 0 ? static_cast<C>(NAN) : is_empty ? C(0) : -std::numeric_limits<C>::infinity();
      at[i] = -1;
    }
    if (w.image >= 0) {
      const T* map = features + w.image * channels * plane + (kNhwc ? channel : channel * plane);
      for (int32_t y = w.y0; y < w.y1; ++y)
        for (int32_t x = w.x0; x < w.x1; ++x) {
          const int32_t pixel = y * a.width + x;
          const auto value = load_pack<T, N>(map + (kNhwc ? pixel * channels : pixel));
          for (int i = 0; i < N; ++i) {
            const C v = static_cast<C>(value[i]);
            if (v > best[i]) {
              best[i] = v;
              at[i] = pixel;
            }
          }
        }
    }
    Pack<T, N> pack;
    for (int i = 0; i < N; ++i) pack[i] = static_cast<T>(best[i]);
    const int64_t to = k * bins * channels + (kNhwc ? bin * channels + channel : item);
    store_pack(out + to, pack);
    store_packs(argmax + to, at);
  }
}

constexpr int kRoiBoundsThreads = 64;

// Which bins the pixels of row or column `size` belong to; [lowest, highest) are those that belong to any.
template <class G>
__device__ void find_bins(const RoiWindows<G>& windows, int32_t bins, BinRange* ranges, int32_t lowest,
                          int32_t highest) {
  for (int32_t pixel = lowest + static_cast<int32_t>(threadIdx.x); pixel < highest; pixel += kRoiBoundsThreads) {
    int32_t begin = bins, end = 0;
    for (int32_t b = 0; b < bins; ++b) {
      if (pixel < windows.begin(b) || pixel >= windows.end(b)) continue;
      begin = b < begin ? b : begin;
      end = b + 1;
    }
    ranges[pixel] = {static_cast<int16_t>(begin), static_cast<int16_t>(end)};
  }
}

// A block for each RoI.
template <class G>
__global__ void __launch_bounds__(kRoiBoundsThreads)
    roi_pool_bounds(RoiPoolShape a, RoiBounds* bounds, int32_t* image_range, BinRange* row_bins,
                    BinRange* column_bins) {
  for (int64_t k = blockIdx.x; k < a.boxes.count; k += gridDim.x) {
    const Box<G> box = a.boxes.read<G>(k);
    const RoiWindows<G> rows = a.rows(box), columns = a.columns(box);
    const RoiBounds b{static_cast<int32_t>(box.image), rows.begin(0), rows.end(a.pooled_height - 1), columns.begin(0),
                      columns.end(a.pooled_width - 1)};
    if (threadIdx.x == 0) bounds[k] = b;
    if (b.image < 0) continue;
    find_bins(rows, a.pooled_height, row_bins + k * a.height, b.y0, b.y1);
    find_bins(columns, a.pooled_width, column_bins + k * a.width, b.x0, b.x1);
    if (threadIdx.x == 0) {
      atomicMax(image_range + 2 * b.image, static_cast<int32_t>(a.boxes.count - k));
      atomicMax(image_range + 2 * b.image + 1, static_cast<int32_t>(k + 1));
    }
  }
}

// What a RoI's bins send to N channels of a pixel: their gradient, if the pixel was their largest.
template <class Element, int N, bool kChannelsLast>
struct RoiPoolGather {
  using T = Element;
  using C = accumulate_t<T>;
  static constexpr int kPack = N;
  static constexpr bool kNhwc = kChannelsLast;

  const T* grad;
  const int32_t* argmax;
  int64_t channels;
  int32_t pooled_height, pooled_width, width;

  // In packs, all rows' winners and gradients of a bin are asked for together: with no branch between them, for which a
  // gradient is read whether it is wanted or not, and for a row without the bin the box's first.
  __device__ __forceinline__ void add(int64_t k, const RoiRow (&row)[kRoiRows], int32_t x, BinRange q, int32_t channel,
                                      C (&sum)[kRoiRows][N]) const {
    // A box's gradient has fewer than 2^31 elements.
    const int32_t bins = pooled_height * pooled_width, step = kNhwc ? static_cast<int32_t>(channels) : 1;
    const int64_t first = k * bins * channels + int64_t{channel} * (kNhwc ? 1 : bins);
    const int32_t most = most_bins(row);
    // Few bins meet in a pixel: unrolled, these loops would only take registers.
#pragma unroll 1
    for (int32_t u = 0; u < most; ++u)
#pragma unroll 1
      for (int32_t j = q.first; j < q.last; ++j) {
        int32_t wanted[kRoiRows];
        Packs<int32_t, N> winner[kRoiRows];
        Pack<T, N> value[kRoiRows];
#pragma unroll
        for (int r = 0; r < kRoiRows; ++r) {
          const int32_t i = row[r].bins.first + u;
          const bool used = i < row[r].bins.last;
          wanted[r] = used ? row[r].y * width + x : INT32_MIN;
          const int64_t at = first + (used ? (i * pooled_width + j) * step : 0);
          if constexpr (kNhwc) {
            winner[r] = load_packs<int32_t, N>(argmax + at);
            value[r] = load_pack<T, N>(grad + at);
          } else {
#pragma unroll
            for (int c = 0; c < N; ++c)
              if (used && channel + c < channels && argmax[at + c * bins] == wanted[r])
                sum[r][c] += static_cast<C>(grad[at + c * bins]);
          }
        }
        if constexpr (kNhwc) {
#pragma unroll
          for (int r = 0; r < kRoiRows; ++r)
#pragma unroll
            for (int c = 0; c < N; ++c) {
              const C next = sum[r][c] + static_cast<C>(value[r][c]);
              sum[r][c] = winner[r][c] == wanted[r] ? next : sum[r][c];
            }
        }
      }
  }
};

namespace {

template <class T, int N, bool kNhwc>
void run_forward(const RoiPoolShape& shape, const Tensor& in, Tensor& out, Tensor& argmax) {
  const int64_t items = out.numel() / out.size(0) / N, per_roi = (items + kRoiThreads - 1) / kRoiThreads;
  launch<roi_pool_forward<T, N, kNhwc>>({blocks_for(out.size(0) * per_roi, 1), kRoiThreads}, current_stream(in), shape,
                                        in.size(1), per_roi, data<T>(in), mutable_data<T>(out),
                                        mutable_data<int32_t>(argmax));
}

template <class T, int N, bool kNhwc>
void run_backward(const RoiTiles& common, const Tensor& grad, const Tensor& argmax, Tensor& out) {
  RoiTiles tiles = common;
  shape_tiles(tiles, kNhwc, N);
  const RoiPoolGather<T, N, kNhwc> gather{data<T>(grad),
                                          data<int32_t>(argmax),
                                          out.size(1),
                                          static_cast<int32_t>(grad.size(2)),
                                          static_cast<int32_t>(grad.size(3)),
                                          static_cast<int32_t>(out.size(3))};
  launch_gather(tiles, gather, out);
}

RoiPoolShape make_shape(const Tensor& rows, double spatial_scale, const Tensor& map, int64_t height, int64_t width) {
  const auto narrow = [](int64_t n) { return static_cast<int32_t>(n); };
  const BoxRows boxes = box_rows(rows, map.size(0));
  return {boxes,
          boxes.is_double || map.scalar_type() == ScalarType::Double,
          spatial_scale,
          narrow(map.size(2)),
          narrow(map.size(3)),
          narrow(height),
          narrow(width)};
}

}  // namespace

std::tuple<Tensor, Tensor> roi_pool(const Tensor& input, const Tensor& boxes, double spatial_scale,
                                    int64_t pooled_height, int64_t pooled_width) {
  check_feature_map("roi_pool", input);
  check_boxes("roi_pool", boxes);
  check_pooled("roi_pool", input.size(1), pooled_height, pooled_width);
  const DeviceGuard guard(input);
  const bool nhwc = prefers_channels_last(input);
  const Tensor in = dense(input, nhwc), rows = dense(boxes, false);
  const std::vector<int64_t> size = {boxes.size(0), in.size(1), pooled_height, pooled_width};
  Tensor out = empty(size, in, nhwc), argmax = empty(size, in, nhwc, ScalarType::Int);
  if (out.numel() == 0) return {out, argmax};
  const RoiPoolShape shape = make_shape(rows, spatial_scale, in, pooled_height, pooled_width);
  dispatch_floating(in.scalar_type(), "roi_pool", [&]<class T>() {
    if (!nhwc)
      run_forward<T, 1, false>(shape, in, out, argmax);
    else if (fits_packs<T>(in, in.size(1)))
      run_forward<T, kPack<T>, true>(shape, in, out, argmax);
    else
      run_forward<T, 1, true>(shape, in, out, argmax);
  });
  return {out, argmax};
}

Tensor roi_pool_backward(const Tensor& grad, const Tensor& boxes, const Tensor& argmax, double spatial_scale,
                         int64_t batch_size, int64_t channels, int64_t height, int64_t width, bool channels_last) {
  check_gradient("roi_pool_backward", grad, boxes, channels);
  STD_TORCH_CHECK(sizes_of(argmax) == sizes_of(grad) && argmax.scalar_type() == ScalarType::Int,
                  "roi_pool_backward: argmax must be int32 and have the shape of grad");
  const DeviceGuard guard(grad);
  Tensor out = empty({batch_size, channels, height, width}, grad, channels_last);
  if (out.numel() == 0) return out;
  check_feature_map("roi_pool_backward", out);
  const Tensor pooled = dense(grad, channels_last), at = dense(argmax, channels_last), rows = dense(boxes, false);
  const int64_t rois = rows.size(0);
  const RoiPoolShape shape = make_shape(rows, spatial_scale, out, grad.size(2), grad.size(3));
  // RoiBounds are five integers, and a BinRange is the size of one.
  Tensor bounds = empty({rois * 5}, out, false, ScalarType::Int), range = empty({2 * batch_size}, bounds, false);
  Tensor row_bins = empty({rois * height}, bounds, false), column_bins = empty({rois * width}, bounds, false);
  torch::stable::zero_(range);
  const RoiTiles tiles =
      make_tiles(static_cast<RoiBounds*>(bounds.mutable_data_ptr()), mutable_data<int32_t>(range),
                 static_cast<BinRange*>(row_bins.mutable_data_ptr()),
                 static_cast<BinRange*>(column_bins.mutable_data_ptr()), rois, out, channels_last, 1);
  const auto find_bounds = [&]<class G>() {
    launch<roi_pool_bounds<G>>(Launch{blocks_for(rois, 1), kRoiBoundsThreads}, current_stream(out), shape,
                               static_cast<RoiBounds*>(bounds.mutable_data_ptr()), mutable_data<int32_t>(range),
                               static_cast<BinRange*>(row_bins.mutable_data_ptr()),
                               static_cast<BinRange*>(column_bins.mutable_data_ptr()));
  };
  if (rois > 0 && shape.is_double) find_bounds.template operator()<double>();
  if (rois > 0 && !shape.is_double) find_bounds.template operator()<float>();
  dispatch_floating(grad.scalar_type(), "roi_pool_backward", [&]<class T>() {
    if (!channels_last)
      run_backward<T, kRoiPlanes<T>, false>(tiles, pooled, at, out);
    else if (fits_packs<T>(pooled, channels) && packs_at<kPack<T>>(data<int32_t>(at)))
      run_backward<T, kPack<T>, true>(tiles, pooled, at, out);
    else
      run_backward<T, 1, true>(tiles, pooled, at, out);
  });
  return out;
}

}  // namespace atrousops::cuda

ATROUSOPS_CUDA_LIBRARY(m) {
  atrousops::implement<"roi_pool", &atrousops::cuda::roi_pool, "input", "boxes">(m);
  atrousops::implement<"roi_pool_backward", &atrousops::cuda::roi_pool_backward, "grad", "boxes", "argmax">(m);
}
