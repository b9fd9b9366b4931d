#include "cpu/mean_field.h"

#include <cmath>
#include <limits>

#include "cpu/kernels/permutohedral_rows.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

// exp of x <= 0, to 2 ulp; 0 below the smallest normal number, NaN of NaN. Cody and Waite's reduction, polynomial of
// cephes' expf.
inline void exponential(Vector<float>& x) {
  using Ints [[gnu::vector_size(kVectorBytes)]] = int32_t;
  constexpr float kRound = 12582912.0f;
  const Ints vanishes = x < -87.0f, is_nan = x != x;
  const Vector<float> shifted = x * 1.44269504088896341f + kRound;
  const Vector<float> n = shifted - kRound;
  const Vector<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // n sits in the low bits of `shifted`; times 2^n is an addition to the exponent.
  x = (Vector<float>)((((Ints)p + ((Ints)shifted << 23)) & ~vanishes) | is_nan);
}
inline void exponential(Vector<double>& x) {
  for (int64_t i = 0; i < kLanes<double>; ++i) x[i] = ::exp(x[i]);
}

// Every lane becomes f of all; f(a, b) leaves its result in a.
template <class T, class F>
inline void reduce_lanes(Vector<T>& v, const F& f) {
  using Index [[gnu::vector_size(kVectorBytes)]] = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  Index lane;
  for (int64_t i = 0; i < kLanes<T>; ++i) lane[i] = i;
  for (int64_t step = kLanes<T> / 2; step > 0; step /= 2) {
    const Vector<T> other = __builtin_shuffle(v, lane ^ static_cast<decltype(lane[0] + 0)>(step));
    f(v, other);
  }
}

// B vectors a pixel, or `vectors` of them if B is 0. A row without a distribution becomes `lost`: one with a NaN or
// +inf, or with -inf alone.
template <class T, int B>
inline void softmax_tile(Vector<T>* tile, int64_t count, int64_t vectors, T lost) {
  const int64_t length = B == 0 ? vectors : B;
  const auto largest = [](Vector<T>& a, const Vector<T>& b) { a = a > b ? a : b; };
  for (int64_t p = 0; p < count; ++p) {
    Vector<T>* row = tile + p * length;
    Vector<T> top = row[0];
    for (int64_t k = 1; k < length; ++k) largest(top, row[k]);
    reduce_lanes<T>(top, largest);
    Vector<T> sum = {};
    for (int64_t k = 0; k < length; ++k) {
      Vector<T> e = row[k] - top;
      exponential(e);
      row[k] = e;
      sum += e;
    }
    reduce_lanes<T>(sum, [](Vector<T>& a, const Vector<T>& b) { a += b; });
    if (sum[0] != sum[0]) {
      for (int64_t k = 0; k < length; ++k) row[k] = Vector<T>{} + lost;
      continue;
    }
    const Vector<T> inverse = T(1) / sum;
    for (int64_t k = 0; k < length; ++k) row[k] *= inverse;
  }
}

template <class T>
static void softmax_rows(Vector<T>* tile, int64_t count, int64_t vectors, T lost) {
  switch (vectors) {
    case 1: return softmax_tile<T, 1>(tile, count, vectors, lost);
    case 2: return softmax_tile<T, 2>(tile, count, vectors, lost);
    case 3: return softmax_tile<T, 3>(tile, count, vectors, lost);
    case 4: return softmax_tile<T, 4>(tile, count, vectors, lost);
    default: return softmax_tile<T, 0>(tile, count, vectors, lost);
  }
}

template <class S>
static void pass(const MeanFieldArgs& a, int64_t begin, int64_t end, bool start, bool store, compute_t<S>* tile) {
  using T = compute_t<S>;
  const int64_t vectors = a.vectors, width = vectors * kLanes<T>;
  Vector<T>* rows = reinterpret_cast<Vector<T>*>(tile);
  for (int64_t p = begin; p < end; p += kPixelTile) {
    const int64_t count = end - p < kPixelTile ? end - p : kPixelTile;
    T* unary = static_cast<T*>(a.unary) + p * width;
    if (start) {
      load_tile<S>(a.scores, p, count, 0, unary, width);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t c = a.scores.channels; c < width; ++c) unary[i * width + c] = -std::numeric_limits<T>::infinity();
    }
    for (int64_t i = 0; i < count * width; ++i) tile[i] = unary[i];
    for (int64_t m = 0; m < a.kernel_count && !start; ++m)
      for_blocks(vectors, [&]<int B>(int64_t k) {
        slice_tile<T, B>(a.kernels[m], a.first[m] + p, count, k, rows + k, vectors);
      });
    // A pixel that is lost sends no message.
    softmax_rows<T>(rows, count, vectors, store ? std::numeric_limits<T>::quiet_NaN() : T(0));
    if (store) {
      store_tile<S>(a.q, p, count, 0, tile, width);
      continue;
    }
    for (int64_t m = 0; m < a.kernel_count; ++m)
      for_blocks(vectors, [&]<int B>(int64_t k) {
        splat_tile<T, B>(a.kernels[m], a.first[m] + p, count, k, rows + k, vectors);
      });
  }
}

void mean_field_pass(const MeanFieldArgs& a, int64_t begin, int64_t end, bool start, bool store, void* tile) {
  dispatch_floating(a.scores.dtype, "mean_field",
                    [&]<class S>() { pass<S>(a, begin, end, start, store, static_cast<compute_t<S>*>(tile)); });
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
