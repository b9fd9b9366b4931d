#include "cpu/roi_align.h"

#include "cpu/roi_lanes.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

// One RoI's view of the arguments.
template <class T>
struct Roi {
  using C = compute_t<T>;
  Roi(const RoiAlignArgs& args, const RoiBlock& block, int64_t k)
      : a(args),
        b(block),
        row_first(args.rows.first + k * args.rows.bins),
        column_first(args.columns.first + k * args.columns.bins),
        row_weight(static_cast<const C*>(args.rows.weight)),
        column_weight(static_cast<const C*>(args.columns.weight)),
        column(args.column + args.column_first[k]),
        columns(args.column_first[k + 1] - args.column_first[k]),
        pooled(static_cast<T*>(block.pooled) + k * block.roi_stride),
        line(static_cast<C*>(block.scratch)),
        bins(line + args.most_columns * kLanes) {}

  const RoiAlignArgs& a;
  const RoiBlock& b;
  const int64_t* row_first;
  const int64_t* column_first;
  const C* row_weight;
  const C* column_weight;
  const int32_t* column;
  int64_t columns;
  T* pooled;
  C* line;  // scratch: one weighted sum of rows, at the RoI's columns
  C* bins;  // scratch: the pooled values, channels innermost
};

// line = sum over the rows of bin p of weight * feature row.
template <class T>
static void combine_rows(const Roi<T>& r, int64_t p) {
  using C = compute_t<T>;
  const RoiAlignArgs& a = r.a;
  const RoiBlock& b = r.b;
  const C* tile = static_cast<const C*>(b.feature);
  for (int64_t j = 0; j < r.columns; ++j) {
    const C* pixel = tile + r.column[j] * kLanes;
    Lanes<C> sum = Lanes<C>::zero();
    for (int64_t t = r.row_first[p]; t < r.row_first[p + 1]; ++t)
      sum.add(r.row_weight[t], Lanes<C>::read(pixel + (a.rows.index[t] - b.row_begin) * b.feature_row_stride));
    sum.write(r.line + j * kLanes);
  }
}

template <class T>
static void combine_rows_direct(const Roi<T>& r, int64_t p) {
  const RoiAlignArgs& a = r.a;
  const RoiBlock& b = r.b;
  for (int64_t i = 0; i < r.columns * kLanes; ++i) r.line[i] = 0;
  for (int64_t t = r.row_first[p]; t < r.row_first[p + 1]; ++t) {
    const T* row = static_cast<const T*>(b.feature) + a.rows.index[t] * b.feature_row_stride;
    const auto add = [&](int64_t j, int64_t c) {
      r.line[j * kLanes + c] +=
          r.row_weight[t] * load(row[r.column[j] * b.feature_pixel_stride + c * b.feature_channel_stride]);
    };
    if (b.feature_channel_stride == 1) {
      for (int64_t j = 0; j < r.columns; ++j)
        for (int64_t c = 0; c < b.lanes; ++c) add(j, c);
    } else {
      for (int64_t c = 0; c < b.lanes; ++c)
        for (int64_t j = 0; j < r.columns; ++j) add(j, c);
    }
  }
}

template <class T>
static void forward(const RoiAlignArgs& a, const RoiBlock& b, const int64_t* rois, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  for (int64_t i = begin; i < end; ++i) {
    const Roi<T> r(a, b, rois[i]);
    for (int64_t p = 0; p < a.rows.bins; ++p) {
      if (b.direct)
        combine_rows_direct(r, p);
      else
        combine_rows(r, p);
      for (int64_t q = 0; q < a.columns.bins; ++q) {
        Lanes<C> sum = Lanes<C>::zero();
        for (int64_t t = r.column_first[q]; t < r.column_first[q + 1]; ++t)
          sum.add(r.column_weight[t], Lanes<C>::read(r.line + a.columns.index[t] * kLanes));
        sum.write(r.bins + (p * a.columns.bins + q) * kLanes);
      }
    }
    const int64_t bins = a.rows.bins * a.columns.bins;
    for (int64_t c = 0; c < b.lanes; ++c)
      for (int64_t i = 0; i < bins; ++i)
        store(r.pooled + c * b.channel_stride + i * b.bin_stride, r.bins[i * kLanes + c]);
  }
}

// tile += transposed(A) * line, in the rows that the tile holds.
template <class T>
static void scatter_rows(const Roi<T>& r, int64_t p) {
  using C = compute_t<T>;
  const RoiAlignArgs& a = r.a;
  const RoiBlock& b = r.b;
  for (int64_t t = r.row_first[p]; t < r.row_first[p + 1]; ++t) {
    const int64_t y = a.rows.index[t];
    if (y < b.row_begin || y >= b.row_end) continue;
    C* row = static_cast<C*>(b.feature) + (y - b.row_begin) * b.feature_row_stride;
    for (int64_t j = 0; j < r.columns; ++j) {
      C* pixel = row + r.column[j] * kLanes;
      Lanes<C> sum = Lanes<C>::read(pixel);
      sum.add(r.row_weight[t], Lanes<C>::read(r.line + j * kLanes));
      sum.write(pixel);
    }
  }
}

template <class T>
static bool touches(const Roi<T>& r, int64_t p) {
  for (int64_t t = r.row_first[p]; t < r.row_first[p + 1]; ++t)
    if (r.a.rows.index[t] >= r.b.row_begin && r.a.rows.index[t] < r.b.row_end) return true;
  return false;
}

template <class T>
static void backward(const RoiAlignArgs& a, const RoiBlock& b, const int64_t* rois, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  for (int64_t i = begin; i < end; ++i) {
    const Roi<T> r(a, b, rois[i]);
    for (int64_t p = 0; p < a.rows.bins; ++p) {
      if (!touches(r, p)) continue;
      for (int64_t c = 0; c < b.lanes; ++c)
        for (int64_t q = 0; q < a.columns.bins; ++q)
          r.bins[q * kLanes + c] = load(r.pooled[c * b.channel_stride + (p * a.columns.bins + q) * b.bin_stride]);
      for (int64_t j = 0; j < r.columns * kLanes; ++j) r.line[j] = 0;
      for (int64_t q = 0; q < a.columns.bins; ++q) {
        const Lanes<C> g = Lanes<C>::read(r.bins + q * kLanes);
        for (int64_t t = r.column_first[q]; t < r.column_first[q + 1]; ++t) {
          C* at = r.line + a.columns.index[t] * kLanes;
          Lanes<C> sum = Lanes<C>::read(at);
          sum.add(r.column_weight[t], g);
          sum.write(at);
        }
      }
      scatter_rows(r, p);
    }
  }
}

void roi_align_forward(const RoiAlignArgs& a, const RoiBlock& b, const int64_t* rois, int64_t begin, int64_t end) {
  dispatch_floating(b.dtype, "roi_align", [&]<class T>() { forward<T>(a, b, rois, begin, end); });
}

void roi_align_backward(const RoiAlignArgs& a, const RoiBlock& b, const int64_t* rois, int64_t begin, int64_t end) {
  dispatch_floating(b.dtype, "roi_align_backward", [&]<class T>() { backward<T>(a, b, rois, begin, end); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
