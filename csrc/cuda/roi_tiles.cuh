// The gradient of a RoI operator as a gather: a block owns a tile of the map and adds what the RoIs that touch it send,
// in the order of the boxes. No atomics, and the same bits always.
#pragma once

#include "cuda/launch.h"
#include "cuda/pack.h"
#include "cuda/roi_boxes.cuh"
#include "cuda/rounded.h"
#include "cuda/runtime.h"
#include "cuda/shared.h"

namespace atrousops::cuda {

constexpr int kRoiThreads = 256;
// Rows of the map that a thread owns, one below the other, so that they share what is known of a column.
constexpr int kRoiRows = 2;

// Bins [first, last) of a RoI that one row or column of the map takes part in.
struct BinRange {
  int16_t first, last;
};

struct RoiTiles {
  const RoiBounds* bounds;
  // Of image n: (K - the first, the last + 1) of its RoIs, or zeros if it has none.
  const int32_t* image_range;
  const BinRange* row_bins;     // (K, height), written where a RoI's bounds say so
  const BinRange* column_bins;  // (K, width)
  int64_t rois, images, channels;
  int32_t height, width;
  // Threads of a block: `lanes` along channels, then `tile_width` columns, then rows.
  int32_t lanes, tile_width, tile_height, channel_groups, tiles_x, tiles_y;
  int64_t blocks;
};

// The number of threads along channels that leaves fewest idle.
inline int32_t roi_lanes(int64_t packs) {
  int32_t best = 32;
  for (const int32_t lanes : {16, 8, 4, 2, 1})
    if ((packs + lanes - 1) / lanes * lanes < (packs + best - 1) / best * best) best = lanes;
  return best;
}

inline void shape_tiles(RoiTiles& t, bool nhwc, int64_t pack) {
  const int64_t packs = (t.channels + pack - 1) / pack;
  t.lanes = nhwc ? roi_lanes(packs) : 1;
  const int32_t positions = kRoiThreads / t.lanes;
  t.tile_width = positions < 8 ? positions : positions < 64 ? 8 : 32;
  t.tile_height = positions / t.tile_width * kRoiRows;
  t.channel_groups = static_cast<int32_t>((packs + t.lanes - 1) / t.lanes);
  t.tiles_x = (t.width + t.tile_width - 1) / t.tile_width;
  t.tiles_y = (t.height + t.tile_height - 1) / t.tile_height;
  t.blocks = t.images * t.tiles_y * t.tiles_x * t.channel_groups;
}

// f(k) for the RoIs of `image` that touch rows [y0, y1) and columns [x0, x1), in ascending order; called by all threads
// of a block, which list kRoiThreads RoIs at a time.
template <class F>
__device__ __forceinline__ void for_each_roi(const RoiTiles& a, int32_t image, int32_t y0, int32_t y1, int32_t x0,
                                             int32_t x1, const F& f) {
  ATROUSOPS_SHARED(int32_t, list, kRoiThreads);
  ATROUSOPS_SHARED(int32_t, warp_hits, kRoiThreads / 32);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int64_t end = a.image_range[2 * image + 1];
  for (int64_t base = a.rois - a.image_range[2 * image]; base < end; base += kRoiThreads) {
    const int64_t k = base + thread;
    bool hit = false;
    if (k < end) {
      const RoiBounds b = a.bounds[k];
      hit = b.image == image && b.y0 < y1 && b.y1 > y0 && b.x0 < x1 && b.x1 > x0;
    }
    const unsigned hits = __ballot_sync(0xffffffffu, hit);
    if (lane == 0) warp_hits[warp] = __popc(hits);
    __syncthreads();
    int before = 0, total = 0;
    for (int w = 0; w < kRoiThreads / 32; ++w) {
      if (w < warp) before += warp_hits[w];
      total += warp_hits[w];
    }
    if (hit) list[before + __popc(hits & ((1u << lane) - 1))] = static_cast<int32_t>(k);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < total; ++i) f(list[i]);
    __syncthreads();
  }
}

// A row of the map and the bins that it takes part in.
struct RoiRow {
  int32_t y;
  BinRange bins;
};

__device__ __forceinline__ int32_t most_bins(const RoiRow (&rows)[kRoiRows]) {
  int32_t most = 0;
#pragma unroll
  for (int r = 0; r < kRoiRows; ++r) {
    const int32_t count = rows[r].bins.last - rows[r].bins.first;
    most = count > most ? count : most;
  }
  return most;
}

// Gather: a struct with types T and kPack, kNhwc, and add(k, rows, x, column bins, channel, sums), which adds a row's
// bins in ascending order.
template <class Gather>
__global__ void __launch_bounds__(kRoiThreads, 3) roi_gather(RoiTiles a, Gather gather, typename Gather::T* out) {
  using T = typename Gather::T;
  using C = accumulate_t<T>;
  constexpr int N = Gather::kPack;
  const int lane = static_cast<int>(threadIdx.x) % a.lanes, position = static_cast<int>(threadIdx.x) / a.lanes;
  const int rows_apart = a.tile_height / kRoiRows;
  for (int64_t block = blockIdx.x; block < a.blocks; block += gridDim.x) {
    const int64_t tile = block / a.channel_groups;
    const int64_t channel = ((block % a.channel_groups) * a.lanes + lane) * N;
    const int32_t x0 = static_cast<int32_t>(tile % a.tiles_x) * a.tile_width;
    const int32_t y0 = static_cast<int32_t>(tile / a.tiles_x % a.tiles_y) * a.tile_height;
    const int32_t image = static_cast<int32_t>(tile / a.tiles_x / a.tiles_y);
    const int32_t x = x0 + position % a.tile_width, y = y0 + position / a.tile_width;
    const bool live = x < a.width && channel < a.channels;
    C sum[kRoiRows][N] = {};
    for_each_roi(a, image, y0, y0 + a.tile_height, x0, x0 + a.tile_width, [&](int64_t k) {
      const RoiBounds b = a.bounds[k];
      if (!live || x < b.x0 || x >= b.x1) return;
      const BinRange columns = a.column_bins[k * a.width + x];
      RoiRow rows[kRoiRows];
#pragma unroll
      for (int r = 0; r < kRoiRows; ++r) {
        rows[r] = {y + r * rows_apart, {0, 0}};
        if (rows[r].y >= b.y0 && rows[r].y < b.y1) rows[r].bins = a.row_bins[k * a.height + rows[r].y];
      }
      gather.add(k, rows, x, columns, static_cast<int32_t>(channel), sum);
    });
    if (!live) continue;
#pragma unroll
    for (int r = 0; r < kRoiRows; ++r) {
      const int32_t row = y + r * rows_apart;
      if (row >= a.height) continue;
      if constexpr (Gather::kNhwc) {
        Pack<T, N> pack;
        for (int i = 0; i < N; ++i) pack[i] = static_cast<T>(sum[r][i]);
        store_pack(out + ((static_cast<int64_t>(image) * a.height + row) * a.width + x) * a.channels + channel, pack);
      } else {
        for (int i = 0; i < N; ++i)
          if (channel + i < a.channels)
            out[((image * a.channels + channel + i) * a.height + row) * a.width + x] = static_cast<T>(sum[r][i]);
      }
    }
  }
}

// Planes that a thread handles together where channels are not innermost.
template <class T>
constexpr int kRoiPlanes = sizeof(T) == 8 ? 2 : 4;

// Whether both the number of channels and the address let packs be read whole.
template <class T>
bool fits_packs(const Tensor& t, int64_t channels) {
  return channels % kPack<T> == 0 && packs_at<kPack<T>>(data<T>(t));
}

inline RoiTiles make_tiles(const RoiBounds* bounds, const int32_t* image_range, const BinRange* row_bins,
                           const BinRange* column_bins, int64_t rois, const Tensor& map, bool nhwc, int64_t pack) {
  RoiTiles t{};
  t.bounds = bounds;
  t.image_range = image_range;
  t.row_bins = row_bins;
  t.column_bins = column_bins;
  t.rois = rois;
  t.images = map.size(0);
  t.channels = map.size(1);
  t.height = static_cast<int32_t>(map.size(2));
  t.width = static_cast<int32_t>(map.size(3));
  shape_tiles(t, nhwc, pack);
  return t;
}

template <class Gather>
void launch_gather(const RoiTiles& tiles, const Gather& gather, Tensor& out) {
  launch<roi_gather<Gather>>(Launch{blocks_for(tiles.blocks, 1), kRoiThreads}, current_stream(out), tiles, gather,
                             mutable_data<typename Gather::T>(out));
}

inline void check_gradient(const char* op, const Tensor& grad, const Tensor& boxes, int64_t channels) {
  check_boxes(op, boxes);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == boxes.size(0) && grad.size(1) == channels, op,
                  ": grad must have shape (K, C, pooled height, pooled width) of ", boxes.size(0), " boxes and ",
                  channels, " channels");
  check_pooled(op, channels, grad.size(2), grad.size(3));
}

}  // namespace atrousops::cuda
