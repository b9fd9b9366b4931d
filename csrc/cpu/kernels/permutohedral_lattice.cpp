// Elevation, rounding, ranks and barycentric weights, in the order of operations of Kraehenbuehl's densecrf. Compiled
// without contraction to fused multiply-adds: a vertex exists or not by the last bit, and must not depend on the CPU.
#include "cpu/permutohedral_lattice.h"

#include <cmath>

#include "cpu/vec.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

// Adding and subtracting this rounds to nearest even, as long as |v| is far below it.
template <class T>
constexpr T kRound = T(12582912);
template <>
constexpr double kRound<double> = 6755399441055744.0;

template <class T, int D>
struct Geometry {
  // One lane a pixel.
  alignas(64) T elevated[D + 1][kLatticeTile];
  alignas(64) T rounded[D + 1][kLatticeTile];
  alignas(64) int32_t rank[D + 1][kLatticeTile];

  // y = E p (page 5 of the paper), scaled to the filter's standard deviation.
  void elevate(const T* features, int64_t pixels, int64_t begin, int count) {
    const float deviation = static_cast<float>(std::sqrt(2.0 / 3.0) * (D + 1));
    T sum[kLatticeTile] = {};
    for (int j = D; j > 0; --j) {
      const T scale = sizeof(T) == 4 ? static_cast<T>(1.0 / std::sqrt((j + 1.0) * j) * deviation)
                                     : static_cast<T>(1.0 / std::sqrt((j + 1.0) * j) * std::sqrt(2.0 / 3.0) * (D + 1));
      const T* row = features + (j - 1) * pixels + begin;
      for (int p = 0; p < count; ++p) {
        const T v = row[p] * scale;
        elevated[j][p] = sum[p] - T(j) * v;
        sum[p] += v;
      }
    }
    for (int p = 0; p < count; ++p) elevated[0][p] = sum[p];
  }

  // The nearest vertex of remainder 0, and each coordinate's rank by its distance from it.
  void round(int count) {
    int32_t sum[kLatticeTile] = {};
    for (int i = 0; i <= D; ++i)
      for (int p = 0; p < count; ++p) {
        const T v = ((T(1) / T(D + 1)) * elevated[i][p] + kRound<T>)-kRound<T>;
        rounded[i][p] = v;
        elevated[i][p] -= v * T(D + 1);
        sum[p] += static_cast<int32_t>(v);
        rank[i][p] = 0;
      }
    for (int i = 0; i < D; ++i)
      for (int j = i + 1; j <= D; ++j)
        for (int p = 0; p < count; ++p) {
          const int32_t below = elevated[i][p] < elevated[j][p];
          rank[i][p] += below;
          rank[j][p] += 1 - below;
        }
    // Off the plane by `sum` steps: move the coordinates of the extreme ranks back.
    for (int i = 0; i <= D; ++i)
      for (int p = 0; p < count; ++p) {
        const int32_t r = rank[i][p] + sum[p];
        const int32_t step = (r < 0) - (r > D);
        rank[i][p] = r + step * (D + 1);
        rounded[i][p] += T(step);
        elevated[i][p] -= T(step) * T(D + 1);
      }
  }

  void emit(int count, const KeyLayout& key, T* weights, uint64_t* keys) const {
    for (int p = 0; p < count; ++p) {
      T sorted[D + 1];
      uint64_t unit[D + 1];
      uint64_t k = 0;
      for (int i = 0; i <= D; ++i) {
        // The mask changes nothing for finite features; it keeps the index inside for the others, which are refused.
        const int r = rank[i][p] & 7;
        sorted[r > D ? D : r] = elevated[i][p] * (T(1) / T(D + 1));
        unit[r > D ? D : r] = i < D ? key.unit(i) : 0;
        if (i < D) k += (static_cast<uint64_t>(static_cast<int64_t>(rounded[i][p])) + key.bias()) * key.unit(i);
      }
      keys[0] = k;
      weights[0] = sorted[D] + (T(1) - sorted[0]);
      for (int r = 1; r <= D; ++r) {
        k += 1 - unit[D - r + 1];
        keys[r] = k;
        weights[r] = sorted[D - r] - sorted[D - r + 1];
      }
      keys += D + 1;
      weights += D + 1;
    }
  }
};

template <class T, int D>
static void run(const PermutohedralGeometryArgs& a, int64_t begin, int64_t end, uint64_t* keys, bool* fits) {
  const KeyLayout key(D);
  const int count = static_cast<int>(end - begin);
  Geometry<T, D> g;
  g.elevate(static_cast<const T*>(a.features), a.pixels, begin, count);
  // Beyond a quarter of kRound the rounding trick fails, and in float the fraction is all but gone anyway.
  const double most = static_cast<double>(kRound<T>) / 4;
  const T limit = static_cast<T>((key.limit() < most ? key.limit() : most) * (D + 1));
  bool inside = true;
  for (int i = 0; i <= D; ++i)
    for (int p = 0; p < count; ++p) {
      // Written so that NaN is outside.
      const bool ok = g.elevated[i][p] <= limit && g.elevated[i][p] >= -limit;
      inside &= ok;
      g.elevated[i][p] = ok ? g.elevated[i][p] : T(0);
    }
  if (!inside) *fits = false;
  g.round(count);
  g.emit(count, key, static_cast<T*>(a.weights) + begin * (D + 1), keys);
}

template <class T>
static void run(const PermutohedralGeometryArgs& a, int64_t begin, int64_t end, uint64_t* keys, bool* fits) {
  switch (a.features_count) {
    case 1: return run<T, 1>(a, begin, end, keys, fits);
    case 2: return run<T, 2>(a, begin, end, keys, fits);
    case 3: return run<T, 3>(a, begin, end, keys, fits);
    case 4: return run<T, 4>(a, begin, end, keys, fits);
    case 5: return run<T, 5>(a, begin, end, keys, fits);
    case 6: return run<T, 6>(a, begin, end, keys, fits);
    case 7: return run<T, 7>(a, begin, end, keys, fits);
  }
}

void permutohedral_geometry(const PermutohedralGeometryArgs& a, int64_t begin, int64_t end, uint64_t* keys,
                            bool* fits) {
  if (a.dtype == ScalarType::Double) return run<double>(a, begin, end, keys, fits);
  run<float>(a, begin, end, keys, fits);
}

}  // namespace atrousops::cpu::ATROUSOPS_ISA
