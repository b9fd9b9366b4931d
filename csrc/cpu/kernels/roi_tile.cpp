#include "cpu/roi_tile.h"

#include "cpu/vec.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

// Pixels handled together, so that both the reads along a channel and the writes along a pixel stay in the L1 cache.
static constexpr int64_t kPixels = 16;

template <class T>
static void pack(const RoiTileArgs& a, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  for (int64_t y = begin; y < end; ++y) {
    const T* row = static_cast<const T*>(a.plane) + y * a.row_stride;
    C* tile = static_cast<C*>(a.tile) + (y - a.first_row) * a.width * kLanes;
    for (int64_t x0 = a.spans[y].begin; x0 < a.spans[y].end; x0 += kPixels) {
      const int64_t n = x0 + kPixels < a.spans[y].end ? kPixels : a.spans[y].end - x0;
      if (a.channel_stride == 1 && a.lanes == kLanes) {
        for (int64_t x = x0; x < x0 + n; ++x) load_row(row + x * a.pixel_stride, tile + x * kLanes, kLanes);
        continue;
      }
      for (int64_t c = 0; c < a.lanes; ++c)
        for (int64_t x = x0; x < x0 + n; ++x)
          tile[x * kLanes + c] = load(row[c * a.channel_stride + x * a.pixel_stride]);
      for (int64_t c = a.lanes; c < kLanes; ++c)
        for (int64_t x = x0; x < x0 + n; ++x) tile[x * kLanes + c] = 0;
    }
  }
}

template <class T>
static void unpack(const RoiTileArgs& a, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  for (int64_t y = begin; y < end; ++y) {
    T* row = static_cast<T*>(a.plane) + y * a.row_stride;
    const C* tile = static_cast<const C*>(a.tile) + (y - a.first_row) * a.width * kLanes;
    const Span span = a.spans[y];
    const auto zero = [&](int64_t x0, int64_t x1) {
      if (a.channel_stride == 1) {
        for (int64_t x = x0; x < x1; ++x)
          for (int64_t c = 0; c < a.lanes; ++c) store(row + x * a.pixel_stride + c, C(0));
      } else {
        for (int64_t c = 0; c < a.lanes; ++c)
          for (int64_t x = x0; x < x1; ++x) store(row + c * a.channel_stride + x * a.pixel_stride, C(0));
      }
    };
    zero(0, span.begin);
    zero(span.end, a.width);
    for (int64_t x0 = span.begin; x0 < span.end; x0 += kPixels) {
      const int64_t n = x0 + kPixels < span.end ? kPixels : span.end - x0;
      if (a.channel_stride == 1 && a.lanes == kLanes) {
        for (int64_t x = x0; x < x0 + n; ++x) store_row(tile + x * kLanes, row + x * a.pixel_stride, kLanes);
        continue;
      }
      for (int64_t c = 0; c < a.lanes; ++c)
        for (int64_t x = x0; x < x0 + n; ++x)
          store(row + c * a.channel_stride + x * a.pixel_stride, tile[x * kLanes + c]);
    }
  }
}

void roi_pack(const RoiTileArgs& a, int64_t begin, int64_t end) {
  dispatch_floating(a.dtype, "roi_pack", [&]<class T>() { pack<T>(a, begin, end); });
}

void roi_clear(const RoiTileArgs& a, int64_t begin, int64_t end) {
  dispatch_floating(a.dtype, "roi_clear", [&]<class T>() {
    compute_t<T>* tile = static_cast<compute_t<T>*>(a.tile);
    for (int64_t y = begin; y < end; ++y) {
      compute_t<T>* row = tile + (y - a.first_row) * a.width * kLanes;
      for (int64_t i = a.spans[y].begin * kLanes; i < a.spans[y].end * kLanes; ++i) row[i] = 0;
    }
  });
}

void roi_unpack(const RoiTileArgs& a, int64_t begin, int64_t end) {
  dispatch_floating(a.dtype, "roi_unpack", [&]<class T>() { unpack<T>(a, begin, end); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
