#include "cpu/roi_pool.h"

#include <limits>

#include "cpu/roi_lanes.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

// The largest value of every lane so far and where it stood; the first of equals wins, and NaN never does.
template <class C>
struct Best {
  using Vector = typename Lanes<C>::Vector;
  using Index = decltype(Vector{} > Vector{});
  Vector value[Lanes<C>::kCount];
  Index index[Lanes<C>::kCount];

  Best() {
    for (int i = 0; i < Lanes<C>::kCount; ++i) {
      value[i] = Vector{} - std::numeric_limits<C>::infinity();
      index[i] = Index{} - 1;
    }
  }
  void see(const Lanes<C>& x, int64_t at) {
    const Index here = Index{} + static_cast<std::conditional_t<sizeof(C) == 8, int64_t, int32_t>>(at);
    for (int i = 0; i < Lanes<C>::kCount; ++i) {
      const Index larger = x.v[i] > value[i];
      value[i] = larger ? x.v[i] : value[i];
      index[i] = larger ? here : index[i];
    }
  }
};

template <class T, bool kDirect>
static Lanes<compute_t<T>> read_pixel(const RoiBlock& b, int64_t y, int64_t x) {
  using C = compute_t<T>;
  if constexpr (!kDirect) {
    return Lanes<C>::read(static_cast<const C*>(b.feature) + y * b.feature_row_stride + x * kLanes);
  } else {
    const T* pixel = static_cast<const T*>(b.feature) + y * b.feature_row_stride + x * b.feature_pixel_stride;
    C values[kLanes] = {};
    for (int64_t c = 0; c < b.lanes; ++c) values[c] = load(pixel[c * b.feature_channel_stride]);
    return Lanes<C>::read(values);
  }
}

template <class T, bool kDirect>
static void forward(const RoiPoolArgs& a, const RoiBlock& b, const int64_t* rois, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t k = rois[i];
    for (int64_t bin = 0; bin < a.pooled_height * a.pooled_width; ++bin) {
      const Span rows = a.rows[k * a.pooled_height + bin / a.pooled_width];
      const Span columns = a.columns[k * a.pooled_width + bin % a.pooled_width];
      const bool none = rows.begin >= rows.end || columns.begin >= columns.end;
      Best<C> best;
      for (int64_t y = rows.begin; y < rows.end; ++y)
        for (int64_t x = columns.begin; x < columns.end; ++x)
          best.see(read_pixel<T, kDirect>(b, y, x), y * b.width + x);
      const int64_t at = k * b.roi_stride + bin * b.bin_stride;
      for (int64_t c = 0; c < b.lanes; ++c) {
        const int vector = c / Lanes<C>::kWidth, lane = c % Lanes<C>::kWidth;
        store(static_cast<T*>(b.pooled) + at + c * b.channel_stride, none ? C(0) : best.value[vector][lane]);
        a.argmax[at + c * b.channel_stride] = static_cast<int32_t>(best.index[vector][lane]);
      }
    }
  }
}

template <class T>
static void backward(const RoiPoolArgs& a, const RoiBlock& b, const int64_t* rois, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  const int64_t first = b.row_begin * b.width, last = b.row_end * b.width;
  C* tile = static_cast<C*>(b.feature);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t k = rois[i];
    const int64_t at = k * b.roi_stride;
    const Span* rows = a.rows + k * a.pooled_height;
    if (rows[0].begin >= b.row_end || rows[a.pooled_height - 1].end <= b.row_begin) continue;
    for (int64_t c = 0; c < b.lanes; ++c)
      for (int64_t bin = 0; bin < a.pooled_height * a.pooled_width; ++bin) {
        const int64_t offset = at + c * b.channel_stride + bin * b.bin_stride;
        const int64_t pixel = a.argmax[offset];
        if (pixel >= first && pixel < last)
          tile[(pixel - first) * kLanes + c] += load(static_cast<const T*>(b.pooled)[offset]);
      }
  }
}

void roi_pool_forward(const RoiPoolArgs& a, const RoiBlock& b, const int64_t* rois, int64_t begin, int64_t end) {
  dispatch_floating(b.dtype, "roi_pool", [&]<class T>() {
    if (b.direct)
      forward<T, true>(a, b, rois, begin, end);
    else
      forward<T, false>(a, b, rois, begin, end);
  });
}

void roi_pool_backward(const RoiPoolArgs& a, const RoiBlock& b, const int64_t* rois, int64_t begin, int64_t end) {
  dispatch_floating(b.dtype, "roi_pool_backward", [&]<class T>() { backward<T>(a, b, rois, begin, end); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
