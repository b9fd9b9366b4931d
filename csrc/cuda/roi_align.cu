// roi_align and its gradient in the features (He et al., Mask R-CNN, arXiv:1703.06870).
#include <cmath>

#include "cuda/platform.h"
#include "cuda/registration.h"
#include "cuda/roi_align_geometry.cuh"
#include "cuda/runtime.h"
#include "stable/dispatch.h"

namespace atrousops::cuda {

template <class W>
struct RoiAlignForward {
  RoiAxis<W> rows, columns;
  const RoiBounds* bounds;
  int64_t rois, channels;
  int64_t blocks_per_roi;
};

// A thread for each bin and pack of N channels (NHWC), or for each bin and channel (NCHW); a block stays in one RoI.
template <class T, int N, bool kNhwc>
__global__ void __launch_bounds__(kRoiThreads, sizeof(T) == 8 ? 3 : 4)
    roi_align_forward(RoiAlignForward<accumulate_t<T>> a, const T* __restrict__ features, T* __restrict__ out) {
  using C = accumulate_t<T>;
  const int32_t channels = static_cast<int32_t>(a.channels), packs = channels / N;
  const int32_t bins = static_cast<int32_t>(a.rows.bins * a.columns.bins), width = static_cast<int32_t>(a.columns.size);
  const int64_t plane = a.rows.size * a.columns.size;
  for (int64_t block = blockIdx.x; block < a.rois * a.blocks_per_roi; block += gridDim.x) {
    const int64_t k = block / a.blocks_per_roi;
    const int32_t item =
        static_cast<int32_t>(block % a.blocks_per_roi) * kRoiThreads + static_cast<int32_t>(threadIdx.x);
    if (item >= bins * packs) continue;
    const int32_t bin = kNhwc ? item / packs : item % bins, channel = kNhwc ? item % packs * N : item / bins;
    const int64_t image = a.bounds[k].image;
    C sum[N] = {};
    if (image >= 0) {
      const int32_t* row_first = a.rows.first + k * (a.rows.bins + 1) + bin / a.columns.bins;
      const int32_t* column_first = a.columns.first + k * (a.columns.bins + 1) + bin % a.columns.bins;
      const int32_t r1 = row_first[1], c0 = column_first[0], c1 = column_first[1];
      const int32_t *row = a.rows.pixel + k * a.rows.capacity, *column = a.columns.pixel + k * a.columns.capacity;
      const C *row_weight = a.rows.weight + k * a.rows.capacity,
              *column_weight = a.columns.weight + k * a.columns.capacity;
      const T* map = features + image * channels * plane + (kNhwc ? channel : channel * plane);
      for (int32_t r = row_first[0]; r < r1; ++r) {
        const int32_t begin = row[r] * width;
        C line[N] = {};
        for (int32_t c = c0; c < c1; ++c) {
          const int64_t pixel = begin + column[c];
          const auto value = load_pack<T, N>(map + (kNhwc ? pixel * channels : pixel));
          for (int i = 0; i < N; ++i) line[i] += column_weight[c] * static_cast<C>(value[i]);
        }
        for (int i = 0; i < N; ++i) sum[i] += row_weight[r] * line[i];
      }
    } else {
      for (int i = 0; i < N; ++i) sum[i] = static_cast<C>(NAN);
    }
    Pack<T, N> pack;
    for (int i = 0; i < N; ++i) pack[i] = static_cast<T>(sum[i]);
    store_pack(out + k * bins * channels + (kNhwc ? bin * channels + channel : item), pack);
  }
}

// What a RoI's bins send to N channels of a pixel.
template <class Element, int N, bool kChannelsLast>
struct RoiAlignGather {
  using T = Element;
  using C = accumulate_t<T>;
  static constexpr int kPack = N;
  static constexpr bool kNhwc = kChannelsLast;

  const T* grad;
  RoiAxis<C> rows, columns;
  int64_t channels;

  // Gradients of a step are asked for together, of all rows and of kBins columns of bins: with no branch between them,
  // for which one that is not wanted is the box's first.
  static constexpr int kBins = kNhwc ? 2 : 1;

  __device__ __forceinline__ void add(int64_t k, const RoiRow (&row)[kRoiRows], int32_t x, BinRange q, int32_t channel,
                                      C (&sum)[kRoiRows][N]) const {
    // A box's gradient has fewer than 2^31 elements.
    const int32_t width = static_cast<int32_t>(columns.bins), bins = static_cast<int32_t>(rows.bins) * width;
    const int32_t step = kNhwc ? static_cast<int32_t>(channels) : 1, apart = kNhwc ? 1 : bins;
    const T* const from = grad + k * bins * channels + int64_t{channel} * apart;
    const int32_t most = most_bins(row);
    // Few bins meet in a pixel: unrolled, these loops would only take registers.
#pragma unroll 1
    for (int32_t u = 0; u < most; ++u) {
      C row_weight[kRoiRows];
#pragma unroll
      for (int r = 0; r < kRoiRows; ++r)
        row_weight[r] = weight(rows, k, row[r].bins.first + u, row[r].bins.last, row[r].y);
#pragma unroll 1
      for (int32_t j = q.first; j < q.last; j += kBins) {
        C w[kRoiRows][kBins];
        Pack<T, N> value[kRoiRows][kBins];
#pragma unroll
        for (int v = 0; v < kBins; ++v) {
          const C column_weight = weight(columns, k, j + v, q.last, x);
#pragma unroll
          for (int r = 0; r < kRoiRows; ++r) {
            const bool used = !(row_weight[r] < C(0)) & !(column_weight < C(0));
            w[r][v] = used ? row_weight[r] * column_weight : C(-1);
            const int32_t at = used ? ((row[r].bins.first + u) * width + j + v) * step : 0;
            if constexpr (kNhwc) {
              value[r][v] = load_pack<T, N>(from + at);
            } else {
#pragma unroll
              for (int c = 0; c < N; ++c) value[r][v][c] = channel + c < channels ? from[c * bins + at] : T(0);
            }
          }
        }
#pragma unroll
        for (int r = 0; r < kRoiRows; ++r)
#pragma unroll
          for (int v = 0; v < kBins; ++v)
#pragma unroll
            for (int c = 0; c < N; ++c) {
              const C next = sum[r][c] + w[r][v] * static_cast<C>(value[r][v][c]);
              sum[r][c] = w[r][v] < C(0) ? sum[r][c] : next;
            }
      }
    }
  }

  // Of a pixel within the bin's band, which ranges are made of; they may span a bin without it. -1 where bin b is none
  // or has no weight there; its loads have no branch between them.
  __device__ __forceinline__ static C weight(const RoiAxis<C>& axis, int64_t k, int32_t b, int32_t last,
                                             int32_t pixel) {
    const int64_t bin = b < last ? b : 0;
    const int32_t* first = axis.first + k * (axis.bins + 1) + bin;
    const int32_t begin = first[0], count = first[1] - begin, at = pixel - axis.low[k * axis.bins + bin];
    C w = C(-1);
    if ((b < last) & (at >= 0) & (at < count)) w = axis.weight[k * axis.capacity + begin + at];
    return w;
  }
};

namespace {

// The geometry of all RoIs, and the memory that it lives in.
template <class W>
struct RoiAlignTables {
  RoiAlignTables(const Tensor& boxes, const RoiAlignShape& shape, int64_t images, const int64_t (&map)[2],
                 const int64_t (&pooled)[2], bool bands)
      : count(boxes.size(0)) {
    rows = make_axis(map[0], pooled[0], boxes, bands);
    columns = make_axis(map[1], pooled[1], boxes, bands);
    bounds_memory = ints(boxes, count * static_cast<int64_t>(sizeof(RoiBounds) / sizeof(int32_t)));
    bounds = static_cast<RoiBounds*>(bounds_memory.mutable_data_ptr());
    range_memory = ints(boxes, 2 * images);
    torch::stable::zero_(range_memory);
    image_range = mutable_data<int32_t>(range_memory);
    if (count == 0) return;
    const BoxRows box = box_rows(boxes, images);
    if (box.is_double || sizeof(W) == sizeof(double))
      run<double>(boxes, box, shape, bands);
    else
      run<float>(boxes, box, shape, bands);
  }

  RoiAxis<W> rows{}, columns{};
  RoiBounds* bounds;
  int32_t* image_range;

 private:
  static Tensor ints(const Tensor& like, int64_t n) { return empty({n}, like, false, ScalarType::Int); }

  template <class P>
  P* take(const Tensor& like, int64_t n) {
    const int64_t words = (n * static_cast<int64_t>(sizeof(P)) + 7) / 8;
    memory.push_back(empty({words}, like, false, ScalarType::Long));
    return static_cast<P*>(memory.back().mutable_data_ptr());
  }

  RoiAxis<W> make_axis(int64_t size, int64_t bins, const Tensor& like, bool bands) {
    RoiAxis<W> axis{size, bins, size + 3 * bins, nullptr, nullptr, nullptr, nullptr, nullptr};
    STD_TORCH_CHECK(axis.capacity < INT32_MAX, "roi_align: input must have fewer than 2^31 rows and columns");
    axis.first = take<int32_t>(like, count * (bins + 1));
    axis.weight = take<W>(like, count * axis.capacity);
    if (!bands) axis.pixel = take<int32_t>(like, count * axis.capacity);
    if (bands) axis.low = take<int32_t>(like, count * bins);
    if (bands) axis.ranges = take<BinRange>(like, count * size);
    return axis;
  }

  template <class G>
  void run(const Tensor& like, const BoxRows& boxes, const RoiAlignShape& shape, bool bands) {
    if constexpr (sizeof(G) >= sizeof(W)) {
      const Launch grid{blocks_for(count, 1), kRoiGeometryThreads};
      const Stream stream = current_stream(like);
      if (bands)
        launch<roi_align_geometry<G, W, true>>(grid, stream, boxes, shape, rows, columns, bounds, image_range);
      else
        launch<roi_align_geometry<G, W, false>>(grid, stream, boxes, shape, rows, columns, bounds, image_range);
    }
  }

  int64_t count;
  std::vector<Tensor> memory;
  Tensor bounds_memory, range_memory;
};

template <class T, int N, bool kNhwc>
void run_forward(const RoiAlignTables<accumulate_t<T>>& tables, const Tensor& in, Tensor& out) {
  const int64_t items = out.numel() / out.size(0) / N, per_roi = (items + kRoiThreads - 1) / kRoiThreads;
  const RoiAlignForward<accumulate_t<T>> args{tables.rows, tables.columns, tables.bounds,
                                              out.size(0), in.size(1),     per_roi};
  const Launch grid{blocks_for(out.size(0) * per_roi, 1), kRoiThreads};
  launch<roi_align_forward<T, N, kNhwc>>(grid, current_stream(in), args, data<T>(in), mutable_data<T>(out));
}

template <class T, int N, bool kNhwc>
void run_backward(const RoiAlignTables<accumulate_t<T>>& tables, const Tensor& grad, Tensor& out) {
  const auto tiles = make_tiles(tables.bounds, tables.image_range, tables.rows.ranges, tables.columns.ranges,
                                grad.size(0), out, kNhwc, N);
  const RoiAlignGather<T, N, kNhwc> gather{data<T>(grad), tables.rows, tables.columns, out.size(1)};
  launch_gather(tiles, gather, out);
}

}  // namespace

Tensor roi_align(const Tensor& input, const Tensor& boxes, double spatial_scale, int64_t pooled_height,
                 int64_t pooled_width, int64_t sampling_ratio, bool aligned) {
  check_feature_map("roi_align", input);
  check_boxes("roi_align", boxes);
  check_pooled("roi_align", input.size(1), pooled_height, pooled_width);
  const DeviceGuard guard(input);
  const bool nhwc = prefers_channels_last(input);
  const Tensor in = dense(input, nhwc), rows = dense(boxes, false);
  Tensor out = empty({boxes.size(0), in.size(1), pooled_height, pooled_width}, in, nhwc);
  if (out.numel() == 0) return out;
  dispatch_floating(in.scalar_type(), "roi_align", [&]<class T>() {
    const RoiAlignTables<accumulate_t<T>> tables(rows, {spatial_scale, sampling_ratio, aligned}, in.size(0),
                                                 {in.size(2), in.size(3)}, {pooled_height, pooled_width}, false);
    if (!nhwc)
      run_forward<T, 1, false>(tables, in, out);
    else if (fits_packs<T>(in, in.size(1)))
      run_forward<T, kPack<T>, true>(tables, in, out);
    else
      run_forward<T, 1, true>(tables, in, out);
  });
  return out;
}

Tensor roi_align_backward(const Tensor& grad, const Tensor& boxes, double spatial_scale, int64_t batch_size,
                          int64_t channels, int64_t height, int64_t width, int64_t sampling_ratio, bool aligned,
                          bool channels_last) {
  check_gradient("roi_align_backward", grad, boxes, channels);
  const DeviceGuard guard(grad);
  Tensor out = empty({batch_size, channels, height, width}, grad, channels_last);
  if (out.numel() == 0) return out;
  check_feature_map("roi_align_backward", out);
  const Tensor pooled = dense(grad, channels_last), rows = dense(boxes, false);
  dispatch_floating(grad.scalar_type(), "roi_align_backward", [&]<class T>() {
    const RoiAlignTables<accumulate_t<T>> tables(rows, {spatial_scale, sampling_ratio, aligned}, batch_size,
                                                 {height, width}, {grad.size(2), grad.size(3)}, true);
    if (!channels_last)
      run_backward<T, kRoiPlanes<T>, false>(tables, pooled, out);
    else if (fits_packs<T>(pooled, channels))
      run_backward<T, kPack<T>, true>(tables, pooled, out);
    else
      run_backward<T, 1, true>(tables, pooled, out);
  });
  return out;
}

}  // namespace atrousops::cuda

ATROUSOPS_CUDA_LIBRARY(m) {
  atrousops::implement<"roi_align", &atrousops::cuda::roi_align, "input", "boxes">(m);
  atrousops::implement<"roi_align_backward", &atrousops::cuda::roi_align_backward, "grad", "boxes">(m);
}
