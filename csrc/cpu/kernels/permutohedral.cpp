#include "cpu/permutohedral.h"

#include "cpu/kernels/permutohedral_rows.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

template <class F>
static void dispatch_compute(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Double) return f.template operator()<double>();
  f.template operator()<float>();
}

// f<S, B>(pixel, count, k): every tile of pixels and block of vectors of [begin, end), with the image's dtype.
template <class F>
static void for_tiles(const PermutohedralArgs& a, const PermutohedralImage& image, int64_t begin, int64_t end,
                      const F& f) {
  dispatch_floating(image.dtype, "permutohedral_apply", [&]<class S>() {
    for (int64_t p = begin; p < end; p += kPixelTile) {
      const int64_t count = end - p < kPixelTile ? end - p : kPixelTile;
      for_blocks(a.vectors, [&]<int B>(int64_t k) { f.template operator()<S, B>(p, count, k); });
    }
  });
}

void permutohedral_splat(const PermutohedralArgs& a, const PermutohedralImage& image, int64_t first, int64_t begin,
                         int64_t end) {
  for_tiles(a, image, begin, end, [&]<class S, int B>(int64_t p, int64_t count, int64_t k) {
    using T = compute_t<S>;
    Vector<T> tile[kPixelTile * B];
    load_tile<S>(image, p, count, k * kLanes<T>, reinterpret_cast<T*>(tile), B * kLanes<T>);
    splat_tile<T, B>(a, first + p, count, k, tile, B);
  });
}

void permutohedral_slice(const PermutohedralArgs& a, const PermutohedralImage& image, int64_t first, int64_t begin,
                         int64_t end) {
  for_tiles(a, image, begin, end, [&]<class S, int B>(int64_t p, int64_t count, int64_t k) {
    using T = compute_t<S>;
    Vector<T> tile[kPixelTile * B] = {};
    slice_tile<T, B>(a, first + p, count, k, tile, B);
    store_tile<S>(image, p, count, k * kLanes<T>, reinterpret_cast<T*>(tile), B * kLanes<T>);
  });
}

void permutohedral_gather(const PermutohedralArgs& a, int64_t begin, int64_t end) {
  dispatch_compute(a.compute, [&]<class T>() {
    const Vector<T>* rows = static_cast<const Vector<T>*>(a.row_values);
    Vector<T>* vertices = static_cast<Vector<T>*>(a.vertex_values[0]);
    for_blocks(a.vectors, [&]<int B>(int64_t k) {
      for (int64_t v = begin; v < end; ++v) {
        Vector<T> sum[B] = {};
        for (int64_t r = a.row_starts[v]; r < a.row_starts[v + 1]; ++r)
          for (int b = 0; b < B; ++b) sum[b] += rows[a.rows[r] * a.vectors + k + b];
        for (int b = 0; b < B; ++b) vertices[v * a.vectors + k + b] = sum[b];
      }
    });
  });
}

void permutohedral_blur(const PermutohedralArgs& a, int64_t axis, int to, bool last, int64_t begin, int64_t end) {
  dispatch_compute(a.compute, [&]<class T>() {
    const int32_t* neighbours = a.neighbours + axis * a.neighbour_stride * 2;
    const Vector<T>* from = static_cast<const Vector<T>*>(a.vertex_values[1 - to]);
    Vector<T>* vertices = static_cast<Vector<T>*>(a.vertex_values[to]);
    Vector<T>* rows = static_cast<Vector<T>*>(a.row_values);
    // pydensecrf's constant: the gain of the whole filter.
    const T alpha = T(1) / (T(1) + T(1) / static_cast<T>(int64_t{1} << (a.corners - 1)));
    for_blocks(a.vectors, [&]<int B>(int64_t k) {
      for (int64_t v = begin; v < end; ++v) {
        const Vector<T>* centre = from + v * a.vectors + k;
        const Vector<T>* n1 = from + neighbours[2 * v] * a.vectors + k;
        const Vector<T>* n2 = from + neighbours[2 * v + 1] * a.vectors + k;
        Vector<T> value[B];
        for (int b = 0; b < B; ++b) value[b] = centre[b] + T(0.5) * (n1[b] + n2[b]);
        if (!last) {
          for (int b = 0; b < B; ++b) vertices[v * a.vectors + k + b] = value[b];
          continue;
        }
        for (int64_t r = a.row_starts[v]; r < a.row_starts[v + 1]; ++r)
          for (int b = 0; b < B; ++b) rows[a.rows[r] * a.vectors + k + b] = alpha * value[b];
      }
    });
  });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
