// Bilinear resizing. A row of the input is resized along its columns once, for all the output rows that it has a share
// in; each of them is then a weighted sum of two such rows. This is PyTorch's order of sums.
#include "cpu/resize_bilinear.h"

#include "cpu/lanes.h"
#include "stable/dispatch.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

template <class C>
static const C* weights(const void* of_axis) {
  return static_cast<const C*>(of_axis);
}

// A row of one channel. All columns of a run lie between the same two pixels; the last vector
// of a run writes over what the next one begins with, which comes after it.
template <class T>
static void resize_plane_row(const ResizeAxis& x, const T* row, compute_t<T>* out) {
  using C = compute_t<T>;
  const C *near = weights<C>(x.near_weight), *far = weights<C>(x.far_weight);
  for (int64_t r = 0; r < x.run_count; ++r) {
    const C a = load(row[x.near[x.runs[r]]]), b = load(row[x.far[x.runs[r]]]);
    for (int64_t i = x.runs[r]; i < x.runs[r + 1]; i += kLanes<C>) {
      lanes_t<C> u, v;
      load_lanes(near + i, u);
      load_lanes(far + i, v);
      store_lanes(out + i, u * a + v * b);
    }
  }
}

// u near + v far, n of them.
template <class In, class C, class Out>
static void blend(const In* near, const In* far, C u, C v, Out* out, int64_t n) {
  constexpr int64_t L = kLanes<C>;
  if (n < L) {
    for (int64_t i = 0; i < n; ++i) store(out + i, u * load(near[i]) + v * load(far[i]));
    return;
  }
  for (int64_t i = 0; i < n; i += L) {
    const int64_t at = i + L <= n ? i : n - L;
    lanes_t<C> a, b;
    load_lanes(near + at, a);
    load_lanes(far + at, b);
    store_lanes(out + at, u * a + v * b);
  }
}

// Columns begin .. end of a row of pixels.
template <class T>
static void resize_pixel_row(const ResizeAxis& x, int64_t channels, const T* row, int64_t begin, int64_t end,
                             compute_t<T>* out) {
  using C = compute_t<T>;
  for (int64_t i = begin; i < end; ++i, out += channels)
    blend(row + x.near[i] * channels, row + x.far[i] * channels, weights<C>(x.near_weight)[i],
          weights<C>(x.far_weight)[i], out, channels);
}

// Columns begin .. end of output rows first .. last of one plane.
template <class T>
static void resize_strip_of(const ResizeArgs& a, const T* plane, T* output, int64_t first, int64_t last, int64_t begin,
                            int64_t end, compute_t<T>* scratch) {
  using C = compute_t<T>;
  const ResizeAxis &y = a.rows, &x = a.columns;
  C* held[2] = {scratch, scratch + resize_scratch(a)};
  int64_t holds[2] = {-1, -1};
  const auto fill = [&](int slot, int64_t row) {
    if (holds[slot] == row) return;
    holds[slot] = row;
    const T* source = plane + row * x.in * a.channels;
    if (a.channels == 1)
      resize_plane_row(x, source, held[slot]);
    else
      resize_pixel_row(x, a.channels, source, begin, end, held[slot]);
  };
  for (int64_t row = first; row < last; ++row) {
    const int near = holds[1] == y.near[row] ? 1 : 0;
    const int far = y.far[row] == y.near[row] ? near : 1 - near;
    fill(near, y.near[row]);
    fill(far, y.far[row]);
    blend(held[near], held[far], weights<C>(y.near_weight)[row], weights<C>(y.far_weight)[row],
          output + (row * x.out + begin) * a.channels, (end - begin) * a.channels);
  }
}

template <class T>
static void resize_rows(const ResizeArgs& a, int64_t begin, int64_t end, void* scratch) {
  const int64_t strip = resize_strip(a), height = a.rows.out, width = a.columns.out;
  while (begin < end) {
    const int64_t plane = begin / height, first = begin % height;
    const int64_t last = end - begin < height - first ? first + end - begin : height;
    const T* input = static_cast<const T*>(a.input) + plane * a.rows.in * a.columns.in * a.channels;
    T* output = static_cast<T*>(a.output) + plane * height * width * a.channels;
    for (int64_t x = 0; x < width; x += strip)
      resize_strip_of(a, input, output, first, last, x, x + strip < width ? x + strip : width,
                      static_cast<compute_t<T>*>(scratch));
    begin += last - first;
  }
}

void resize_bilinear(const ResizeArgs& a, int64_t begin, int64_t end, void* scratch) {
  dispatch_floating(a.dtype, "resize_bilinear", [&]<class T>() { resize_rows<T>(a, begin, end, scratch); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
