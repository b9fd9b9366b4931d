// Values (N, C, P) or (N, P, C) to rows of pixels and back, through tiles in shared memory, so that both sides are read
// and written in runs.
#include "cuda/permutohedral.cuh"
#include "cuda/platform.h"
#include "cuda/shared.h"
#include "stable/dispatch.h"

namespace atrousops::cuda {

constexpr int kTile = 32;
constexpr int kTileRows = 8;

struct RowShape {
  int64_t images, channels, pixels, width;
  bool channels_last;

  __device__ __forceinline__ int64_t at(int64_t n, int64_t c, int64_t p) const {
    return channels_last ? (n * pixels + p) * channels + c : (n * channels + c) * pixels + p;
  }
};

// S: the type of the values. With kBack rows are read and values written. Padding is zero.
template <class T, class S, bool kBack>
__global__ void __launch_bounds__(kTile* kTileRows)
    transpose_rows(RowShape s, std::conditional_t<kBack, S*, const S*> values,
                   std::conditional_t<kBack, const T*, T*> rows) {
  ATROUSOPS_SHARED(T, tile, kTile * (kTile + 1));
  const int64_t tiles_p = (s.pixels + kTile - 1) / kTile, tiles_c = (s.width + kTile - 1) / kTile;
  const int x = static_cast<int>(threadIdx.x) % kTile, y0 = static_cast<int>(threadIdx.x) / kTile;
  for (int64_t t = blockIdx.x; t < s.images * tiles_p * tiles_c; t += gridDim.x) {
    const int64_t n = t / tiles_c / tiles_p, p0 = t / tiles_c % tiles_p * kTile, c0 = t % tiles_c * kTile;
    // side 0 reads and side 1 writes; `along_channels`: neighbouring threads hold neighbouring channels.
    for (int side = 0; side < 2; ++side) {
      const bool is_rows = (side == 1) != kBack, along_channels = is_rows || s.channels_last;
      for (int y = y0; y < kTile; y += kTileRows) {
        const int64_t c = c0 + (along_channels ? x : y), p = p0 + (along_channels ? y : x);
        T& cell = tile[(p - p0) * (kTile + 1) + (c - c0)];
        if (p >= s.pixels || c >= (is_rows ? s.width : s.channels)) {
          if (side == 0) cell = T(0);
          continue;
        }
        if constexpr (kBack) {
          if (is_rows)
            cell = rows[(n * s.pixels + p) * s.width + c];
          else
            values[s.at(n, c, p)] = static_cast<S>(cell);
        } else {
          if (is_rows)
            rows[(n * s.pixels + p) * s.width + c] = cell;
          else
            cell = static_cast<T>(values[s.at(n, c, p)]);
        }
      }
      __syncthreads();
    }
  }
}

template <class T, bool kBack, class R>
static void transpose(const Tensor& values, bool channels_last, R* rows) {
  const int64_t width = (values.size(1) + kPack<T> - 1) / kPack<T> * kPack<T>;
  const RowShape shape{values.size(0), values.size(1), values.size(2), width, channels_last};
  const int64_t tiles = shape.images * ((shape.pixels + kTile - 1) / kTile) * ((width + kTile - 1) / kTile);
  dispatch_floating(values.scalar_type(), "permutohedral", [&]<class S>() {
    if constexpr (std::is_same_v<accumulate_t<S>, T>)
      launch<transpose_rows<T, S, kBack>>({blocks_for(tiles, 1), kTile * kTileRows}, current_stream(values), shape,
                                          static_cast<S*>(values.mutable_data_ptr()), rows);
  });
}

template <class T>
void to_rows(const Tensor& values, bool channels_last, T* rows) {
  transpose<T, false>(values, channels_last, rows);
}
template <class T>
void from_rows(const T* rows, Tensor& values, bool channels_last) {
  transpose<T, true>(values, channels_last, rows);
}

template void to_rows(const Tensor&, bool, float*);
template void to_rows(const Tensor&, bool, double*);
template void from_rows(const float*, Tensor&, bool);
template void from_rows(const double*, Tensor&, bool);

}  // namespace atrousops::cuda
