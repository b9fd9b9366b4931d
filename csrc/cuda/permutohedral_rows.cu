// Values (N, C, P) or (N, P, C) to rows of pixels and back: planes through tiles in shared memory, so that both sides
// are read and written in runs; channels_last, whose rows lack the padding alone, pack by pack. A thread asks for all
// that it carries before it waits for the first of it.
#include "cuda/divisor.h"
#include "cuda/permutohedral.cuh"
#include "cuda/platform.h"
#include "cuda/shared.h"
#include "stable/dispatch.h"

namespace atrousops::cuda {

constexpr int kRowThreads = 256;
constexpr int kTileChannels = 32;
constexpr int kTilePixels = 128;
// Blocks of a multiprocessor; they leave no thread fewer registers than it needs.
template <class T>
constexpr int kRowBlocks = sizeof(T) == 8 ? 3 : 6;

// Loads of a thread where nothing changes its order, V values each.
template <class From, int V>
constexpr int kPadTurns = V == 1 && sizeof(From) > 2 ? 8 : 16 / V;

struct RowShape {
  int64_t images, channels, pixels, width;
  Divisor tiles_p, tiles_c;
};

// Where a tile has a channel of a pixel: packs of pixels lie together, and the channel's pack moves them, so that a
// warp that walks along channels meets no bank twice.
template <class T>
__device__ __forceinline__ int tile_cell(int c, int p) {
  return c * kTilePixels + (p ^ (c & (7 * kPack<T>)));
}

// A thread's turns, each kStep places behind the last: how many places are left, and where in memory they are.
template <int kStep>
struct Turns {
  int64_t left, stride, first;

  __device__ __forceinline__ bool has(int u) const { return u * kStep < left; }
  __device__ __forceinline__ int64_t at(int u) const { return first + u * stride; }
};

// A thread's part of a tile's planes: in each turn V pixels of a channel, kStep channels below the last.
template <class T, int V>
struct TilePlanes : Turns<kRowThreads * V / kTilePixels> {
  static constexpr int kStep = kRowThreads * V / kTilePixels, kTurns = kTileChannels / kStep;
  const int c = static_cast<int>(threadIdx.x) / (kTilePixels / V),
            p = static_cast<int>(threadIdx.x) % (kTilePixels / V) * V;

  __device__ __forceinline__ TilePlanes(const RowShape& s, int64_t n, int64_t c0, int64_t p0) {
    this->left = p0 + p < s.pixels ? s.channels - c0 - c : 0;
    this->stride = kStep * s.pixels;
    this->first = (n * s.channels + c0 + c) * s.pixels + p0 + p;
  }

  __device__ __forceinline__ int cell(int u) const {
    return (tile_cell<T>(c, p) ^ (u * kStep & (7 * kPack<T>))) + u * kStep * kTilePixels;
  }
};

// Of its rows: in each turn a pack of channels of a pixel, kStep pixels behind the last.
template <class T>
struct TileRows : Turns<kRowThreads * kPack<T> / kTileChannels> {
  static constexpr int kPacks = kTileChannels / kPack<T>, kStep = kRowThreads / kPacks, kTurns = kTilePixels / kStep;
  const int c = static_cast<int>(threadIdx.x) % kPacks * kPack<T>, p = static_cast<int>(threadIdx.x) / kPacks;

  __device__ __forceinline__ TileRows(const RowShape& s, int64_t n, int64_t c0, int64_t p0) {
    this->left = c0 + c < s.width ? s.pixels - p0 - p : 0;
    this->stride = kStep * s.width;
    this->first = (n * s.pixels + p0 + p) * s.width + c0 + c;
  }

  // Of the k-th channel.
  __device__ __forceinline__ int cell(int u, int k) const { return tile_cell<T>(c, p) + k * kTilePixels + u * kStep; }
};

template <class To, class From, int V>
__device__ __forceinline__ Pack<To, V> converted(const Pack<From, V>& from) {
  Pack<To, V> to;
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = static_cast<To>(from[i]);
  return to;
}

// A block for each tile. S: the type of the values; V: how many a load has. With kBack rows are read and values
// written. Padding is zero.
template <class T, class S, bool kBack, int V>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks<T>)
    transpose_rows(const RowShape s, std::conditional_t<kBack, S*, const S*> values,
                   std::conditional_t<kBack, const T*, T*> rows) {
  ATROUSOPS_SHARED(T, tile, kTileChannels * kTilePixels);
  constexpr int N = kPack<T>;
  int64_t n = blockIdx.x;
  const int64_t c0 = s.tiles_c.split(n) * kTileChannels, p0 = s.tiles_p.split(n) * kTilePixels;
  const TilePlanes<T, V> plane(s, n, c0, p0);
  const TileRows<T> row(s, n, c0, p0);
  if constexpr (kBack) {
    Pack<T, N> got[row.kTurns];
#pragma unroll
    for (int u = 0; u < row.kTurns; ++u)
      if (row.has(u)) got[u] = load_pack<T, N>(rows + row.at(u));
#pragma unroll
    for (int u = 0; u < row.kTurns; ++u)
#pragma unroll
      for (int k = 0; k < N; ++k) tile[row.cell(u, k)] = got[u][k];
    __syncthreads();
#pragma unroll
    for (int u = 0; u < plane.kTurns; ++u)
      if (plane.has(u)) store_pack(values + plane.at(u), converted<S>(load_pack<T, V>(tile + plane.cell(u))));
  } else {
    Pack<S, V> got[plane.kTurns] = {};
#pragma unroll
    for (int u = 0; u < plane.kTurns; ++u)
      if (plane.has(u)) got[u] = load_pack<S, V>(values + plane.at(u));
#pragma unroll
    for (int u = 0; u < plane.kTurns; ++u) *reinterpret_cast<Pack<T, V>*>(tile + plane.cell(u)) = converted<T>(got[u]);
    __syncthreads();
#pragma unroll
    for (int u = 0; u < row.kTurns; ++u) {
      if (!row.has(u)) continue;
      Pack<T, N> out;
#pragma unroll
      for (int k = 0; k < N; ++k) out[k] = tile[row.cell(u, k)];
      store_pack(rows + row.at(u), out);
    }
  }
}

// Values in channels_last: rows without their padding.
struct PadShape {
  int64_t cells, channels, width;
  Divisor width_of;
  // What a turn of kRowThreads loads adds to a channel and to a place among the values, where no row ends.
  int64_t channel_step, step;
};

// A channel and its place among the values, turn by turn.
struct PadWalk {
  const PadShape& s;
  int64_t c, at;

  __device__ __forceinline__ PadWalk(const PadShape& s, int64_t cell) : s(s) {
    c = s.width_of.split(cell);
    at = cell * s.channels + c;
  }
  __device__ __forceinline__ void next() {
    c += s.channel_step;
    at += s.step;
    if (c < s.width) return;
    c -= s.width;
    at += s.channels - s.width;
  }
};

template <class T, class S, bool kBack, int V>
__global__ void __launch_bounds__(kRowThreads, V == 1 && sizeof(T) == 4 ? 5 : kRowBlocks<T>)
    pad_rows(const PadShape s, std::conditional_t<kBack, S*, const S*> values,
             std::conditional_t<kBack, const T*, T*> rows) {
  constexpr int kTurns = kPadTurns<std::conditional_t<kBack, T, S>, V>;
  const int64_t first = (int64_t{blockIdx.x} * kTurns * kRowThreads + threadIdx.x) * V;
  Pack<std::conditional_t<kBack, T, S>, V> got[kTurns] = {};
  PadWalk from(s, first);
#pragma unroll
  for (int u = 0; u < kTurns; ++u, from.next()) {
    const int64_t cell = first + u * kRowThreads * V;
    if (cell >= s.cells || (!kBack && from.c >= s.channels)) continue;
    if constexpr (kBack)
      got[u] = load_pack<T, V>(rows + cell);
    else
      got[u] = load_pack<S, V>(values + from.at);
  }
  PadWalk to(s, first);
#pragma unroll
  for (int u = 0; u < kTurns; ++u, to.next()) {
    const int64_t cell = first + u * kRowThreads * V;
    if (cell >= s.cells || (kBack && to.c >= s.channels)) continue;
    if constexpr (kBack)
      store_pack(values + to.at, converted<S>(got[u]));
    else
      store_pack(rows + cell, converted<T>(got[u]));
  }
}

template <class T, bool kBack, class R>
static void move(const Tensor& values, bool channels_last, R* rows) {
  if (values.numel() == 0) return;
  constexpr int N = kPack<T>;
  const int64_t images = values.size(0), channels = values.size(1), pixels = values.size(2);
  const int64_t width = (channels + N - 1) / N * N, cells = images * pixels * width;
  const int64_t tiles_p = (pixels + kTilePixels - 1) / kTilePixels;
  const int64_t tiles_c = (width + kTileChannels - 1) / kTileChannels;
  const RowShape shape{images, channels, pixels, width, Divisor(tiles_p), Divisor(tiles_c)};
  const Stream stream = current_stream(values);
  dispatch_floating(values.scalar_type(), "permutohedral", [&]<class S>() {
    if constexpr (std::is_same_v<accumulate_t<S>, T>) {
      S* const from = static_cast<S*>(values.mutable_data_ptr());
      const auto go = [&]<int V>() {
        const int64_t step = int64_t{kRowThreads} * V, rest = step % width,
                      block = step * kPadTurns<std::conditional_t<kBack, T, S>, V>;
        const int64_t blocks = channels_last ? (cells + block - 1) / block : images * tiles_p * tiles_c;
        STD_TORCH_CHECK(blocks <= INT32_MAX, "permutohedral: ", values.numel(), " values are more than a launch takes");
        const Launch grid{static_cast<unsigned>(blocks), kRowThreads};
        if (channels_last)
          launch<pad_rows<T, S, kBack, V>>(
              grid, stream, PadShape{cells, channels, width, Divisor(width), rest, step / width * channels + rest},
              from, rows);
        else
          launch<transpose_rows<T, S, kBack, V>>(grid, stream, shape, from, rows);
      };
      if ((channels_last ? channels : pixels) % N == 0 && packs_at<N>(from))
        go.template operator()<N>();
      else
        go.template operator()<1>();
    }
  });
}

template <class T>
void to_rows(const Tensor& values, bool channels_last, T* rows) {
  move<T, false>(values, channels_last, rows);
}
template <class T>
void from_rows(const T* rows, Tensor& values, bool channels_last) {
  move<T, true>(values, channels_last, rows);
}

template void to_rows(const Tensor&, bool, float*);
template void to_rows(const Tensor&, bool, double*);
template void from_rows(const float*, Tensor&, bool);
template void from_rows(const double*, Tensor&, bool);

}  // namespace atrousops::cuda
