#include "cpu/permutohedral.h"

#include "cpu/kernels/permutohedral_rows.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

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
    const Vector<T>* rows = static_cast<const Vector<T>*>(a.splatted);
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

// Every row of vertex v, in all chunks.
template <class T, int B>
static void scatter(const PermutohedralArgs& a, int64_t v, int64_t k, const Vector<T> (&value)[B]) {
  Vector<T>* rows = static_cast<Vector<T>*>(a.blurred);
  for (int64_t r = a.row_starts[v]; r < a.row_starts[v + 1]; ++r)
    for (int b = 0; b < B; ++b) rows[a.rows[r] * a.vectors + k + b] = value[b];
}

template <class T, int B, bool kLast>
static void blur(const PermutohedralArgs& a, int64_t axis, int to, int64_t begin, int64_t end, int64_t k) {
  const int32_t* neighbours = a.neighbours + axis * a.neighbour_stride * 2;
  const Vector<T>* from = static_cast<const Vector<T>*>(a.vertex_values[1 - to]) + k;
  Vector<T>* vertices = static_cast<Vector<T>*>(a.vertex_values[to]) + k;
  const Vector<T>* gain = static_cast<const Vector<T>*>(a.gain) + k;
  for (int64_t v = begin; v < end; ++v) {
    const int64_t i1 = neighbours[2 * v], i2 = neighbours[2 * v + 1];
    const Vector<T>* n1 = from + (i1 < 0 ? a.zero_vertex : i1) * a.vectors;
    const Vector<T>* n2 = from + (i2 < 0 ? a.zero_vertex : i2) * a.vectors;
    Vector<T> value[B];
    for (int b = 0; b < B; ++b) value[b] = from[v * a.vectors + b] + T(0.5) * (n1[b] + n2[b]);
    if constexpr (kLast) {
      for (int b = 0; b < B; ++b) value[b] *= gain[b];
      scatter<T, B>(a, v, k, value);
    } else {
      for (int b = 0; b < B; ++b) vertices[v * a.vectors + b] = value[b];
    }
  }
}

void permutohedral_blur(const PermutohedralArgs& a, int64_t axis, int to, bool last, int64_t begin, int64_t end) {
  dispatch_compute(a.compute, [&]<class T>() {
    for_blocks(a.vectors, [&]<int B>(int64_t k) {
      if (last) return blur<T, B, true>(a, axis, to, begin, end, k);
      blur<T, B, false>(a, axis, to, begin, end, k);
    });
  });
}

void permutohedral_mix(const PermutohedralArgs& a, int from, int64_t begin, int64_t end) {
  dispatch_compute(a.compute, [&]<class T>() {
    const T* vertices = static_cast<const T*>(a.vertex_values[from]);
    for_blocks(a.vectors, [&]<int B>(int64_t k) {
      const Vector<T>* mix = static_cast<const Vector<T>*>(a.mix) + k;
      for (int64_t v = begin; v < end; ++v) {
        const T* in = vertices + v * a.vectors * kLanes<T>;
        Vector<T> value[B] = {};
        for (int64_t c = 0; c < a.channels; ++c)
          for (int b = 0; b < B; ++b) value[b] += in[c] * mix[c * a.vectors + b];
        scatter<T, B>(a, v, k, value);
      }
    });
  });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
