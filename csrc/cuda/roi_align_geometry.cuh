// Sample positions and weights of RoIAlign, once per RoI. Its sample grid is a product, so a RoI is two sparse
// matrices:
//   pooled[p][q] = sum over rows y of A[p][y] * sum over columns x of B[q][x] * feature[y][x].
// They live in global memory: both passes read them from there, and a block's reads are uniform and hit the L1 cache.
#pragma once

#include "cuda/roi_tiles.cuh"
#include "cuda/rounded.h"

namespace atrousops::cuda {

struct RoiAlignShape {
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
};

// One axis of every RoI; capacity is size + 3 * bins, since a bin shares at most two pixels with the next.
template <class W>
struct RoiAxis {
  int64_t size, bins, capacity;
  int32_t* first;  // (K, bins + 1): where a bin's weights begin
  W* weight;       // (K, capacity)
  // The forward pass lists the pixels of a bin; the backward pass has a weight for every pixel from the bin's lowest to
  // its highest, negative if no sample reads it, and knows which bins a pixel belongs to.
  int32_t* pixel;    // (K, capacity)
  int32_t* low;      // (K, bins)
  BinRange* ranges;  // (K, size)
};

// Where the samples of one axis lie, in torchvision's order of operations, so that ceil() and the border tests fall the
// same way as there.
template <class G>
struct RoiSamples {
  G start, bin;
  int64_t size, per_bin;

  __device__ RoiSamples(G from, G to, int64_t size, int64_t bins, const RoiAlignShape& shape) : size(size) {
    const G scale = static_cast<G>(shape.spatial_scale), offset = shape.aligned ? G(0.5) : G(0);
    start = rounded_product(from, scale) - offset;
    G length = (rounded_product(to, scale) - offset) - start;
    if (!shape.aligned) length = length < G(1) ? G(1) : length;
    bin = length / static_cast<G>(bins);
    // No box is sampled more finely than an int64 can count.
    const G whole = ceil(bin);
    per_bin = shape.sampling_ratio > 0 ? shape.sampling_ratio : static_cast<int64_t>(whole < G(1e18) ? whole : G(1e18));
  }

  __device__ G position(int64_t b, int64_t i) const {
    return start + rounded_product(static_cast<G>(b), bin) +
           rounded_product(static_cast<G>(i) + G(0.5), bin) / static_cast<G>(per_bin);
  }

  // Samples [begin, end) of bin b contain all that lie on the map; all of them unless there are very many.
  __device__ void candidates(int64_t b, int64_t& begin, int64_t& end) const {
    begin = 0;
    end = per_bin;
    if (per_bin <= 4096 || !(bin > 0)) return;
    const double step = static_cast<double>(bin) / static_cast<double>(per_bin);
    const double first = start + static_cast<double>(b) * bin, most = static_cast<double>(per_bin);
    begin = static_cast<int64_t>(fmin(fmax((-1 - first) / step - 4, 0.0), most));
    end = static_cast<int64_t>(fmin(fmax((static_cast<double>(size) - first) / step + 4, 0.0), most));
  }
};

// emit(pixel, weight) for the pixels that bin b reads, in ascending order: the weights of its samples summed by pixel,
// over their number. Samples move forwards, so no more than two pixels are open at a time.
template <class G, class F>
__device__ void each_pixel(const RoiSamples<G>& s, int64_t b, const F& emit) {
  int32_t at = -1;  // the lower of the open pixels
  bool has_low = false, has_high = false;
  double low = 0, high = 0;
  const auto close = [&] {
    if (has_low) emit(at, low / static_cast<double>(s.per_bin));
    ++at;
    low = high;
    has_low = has_high;
    high = 0;
    has_high = false;
  };
  int64_t i, end;
  for (s.candidates(b, i, end); i < end; ++i) {
    G position = s.position(b, i);
    if (!(position >= G(-1) && position <= static_cast<G>(s.size))) continue;
    if (position < G(0)) position = G(0);
    int32_t pixel = static_cast<int32_t>(position);
    const bool last = pixel >= s.size - 1;
    if (last) pixel = static_cast<int32_t>(s.size - 1);
    while (at < pixel && (has_low || has_high)) close();
    at = pixel;
    const G fraction = last ? G(0) : position - static_cast<G>(pixel);
    low += G(1) - fraction;
    has_low = true;
    high += fraction;
    has_high = has_high || !last;
  }
  close();
  close();
}

constexpr int kRoiGeometryThreads = 64;
// Beyond any map, with room to add to.
constexpr int32_t kNowhere = INT32_MAX - 1024;

// How many weights each bin has, and where the RoI begins and ends.
template <class G, class W, bool kBands>
__device__ void measure_axis(const RoiSamples<G>& s, const RoiAxis<W>& axis, int64_t k, int32_t* bounds) {
  int32_t* first = axis.first + k * (axis.bins + 1);
  for (int64_t b = threadIdx.x; b < axis.bins; b += kRoiGeometryThreads) {
    int32_t count = 0, low = kNowhere, high = -1;
    each_pixel(s, b, [&](int32_t pixel, double) {
      ++count;
      low = pixel < low ? pixel : low;
      high = pixel;
    });
    first[b + 1] = kBands && count > 0 ? high - low + 1 : count;
    if constexpr (kBands) {
      axis.low[k * axis.bins + b] = low;
      if (count > 0) {
        atomicMin(bounds, low);
        atomicMax(bounds + 1, high + 1);
      }
    }
  }
}

template <class W>
__device__ void number_weights(const RoiAxis<W>& axis, int64_t k) {
  int32_t* first = axis.first + k * (axis.bins + 1);
  int64_t sum = 0;
  first[0] = 0;
  for (int64_t b = 0; b < axis.bins; ++b) {
    sum += first[b + 1];
    // Never exceeded by monotone positions; it keeps any others inside.
    sum = sum < axis.capacity ? sum : axis.capacity;
    first[b + 1] = static_cast<int32_t>(sum);
  }
}

template <class G, class W, bool kBands>
__device__ void fill_axis(const RoiSamples<G>& s, const RoiAxis<W>& axis, int64_t k, const int32_t* bounds) {
  const int32_t* first = axis.first + k * (axis.bins + 1);
  W* weight = axis.weight + k * axis.capacity;
  for (int64_t b = threadIdx.x; b < axis.bins; b += kRoiGeometryThreads) {
    int32_t at = first[b];
    const int32_t end = first[b + 1];
    if constexpr (kBands) {
      for (int32_t i = at; i < end; ++i) weight[i] = W(-1);
      const int32_t low = axis.low[k * axis.bins + b];
      each_pixel(s, b, [&](int32_t pixel, double w) {
        if (at + (pixel - low) < end) weight[at + (pixel - low)] = static_cast<W>(w);
      });
    } else {
      each_pixel(s, b, [&](int32_t pixel, double w) {
        if (at >= end) return;
        axis.pixel[k * axis.capacity + at] = pixel;
        weight[at++] = static_cast<W>(w);
      });
    }
  }
  if constexpr (kBands) {
    for (int32_t pixel = bounds[0] + static_cast<int32_t>(threadIdx.x); pixel < bounds[1];
         pixel += kRoiGeometryThreads) {
      int32_t begin = static_cast<int32_t>(axis.bins), end = 0;
      for (int32_t b = 0; b < axis.bins; ++b) {
        const int32_t i = pixel - axis.low[k * axis.bins + b];
        if (i < 0 || i >= first[b + 1] - first[b]) continue;
        begin = b < begin ? b : begin;
        end = b + 1;
      }
      axis.ranges[k * axis.size + pixel] = {static_cast<int16_t>(begin), static_cast<int16_t>(end)};
    }
  }
}

// A block for each RoI.
template <class G, class W, bool kBands>
__global__ void __launch_bounds__(kRoiGeometryThreads, 8)
    roi_align_geometry(BoxRows boxes, RoiAlignShape shape, RoiAxis<W> rows, RoiAxis<W> columns, RoiBounds* bounds,
                       int32_t* image_range) {
  ATROUSOPS_SHARED(int32_t, extent, 4);
  for (int64_t k = blockIdx.x; k < boxes.count; k += gridDim.x) {
    const Box<G> box = boxes.read<G>(k);
    if (threadIdx.x < 4) extent[threadIdx.x] = threadIdx.x % 2 == 0 ? kNowhere : 0;
    __syncthreads();
    const RoiSamples<G> y(box.y1, box.y2, rows.size, rows.bins, shape);
    const RoiSamples<G> x(box.x1, box.x2, columns.size, columns.bins, shape);
    if (box.image >= 0) {
      measure_axis<G, W, kBands>(y, rows, k, extent);
      measure_axis<G, W, kBands>(x, columns, k, extent + 2);
    }
    __syncthreads();
    if (box.image >= 0 && threadIdx.x == 0) number_weights(rows, k);
    if (box.image >= 0 && threadIdx.x == 32) number_weights(columns, k);
    __syncthreads();
    if (box.image >= 0) {
      fill_axis<G, W, kBands>(y, rows, k, extent);
      fill_axis<G, W, kBands>(x, columns, k, extent + 2);
    }
    if (threadIdx.x == 0) {
      bounds[k] = {static_cast<int32_t>(box.image), extent[0], extent[1], extent[2], extent[3]};
      if (kBands && box.image >= 0) {
        atomicMax(image_range + 2 * box.image, static_cast<int32_t>(boxes.count - k));
        atomicMax(image_range + 2 * box.image + 1, static_cast<int32_t>(k + 1));
      }
    }
    __syncthreads();
  }
}

}  // namespace atrousops::cuda
