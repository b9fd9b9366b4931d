// Which taps of a window lie inside the map, and which windows hold a position.
#pragma once

#include "cuda/divisor.h"
#include "cuda/platform.h"
#include "stable/pool.h"

namespace atrousops::cuda {

// PoolGeometry for device arithmetic: 32 bits along an axis, 64 for flat positions. An `outer` is a batch entry of all
// channels in channels_last (step = channels), else a plane (step = 1); elements of a position are `step` apart.
struct PoolWindows {
  int large[3], small[3], kernel[3], stride[3], padding[3], dilation[3];
  int64_t outers, step, large_plane, small_plane;
};

// Checks that 32 bits suffice along each axis.
inline PoolWindows pool_windows(const char* op, const PoolGeometry& g, bool channels_last) {
  PoolWindows w{};
  for (int i = 0; i < 3; ++i) {
    const int64_t reach = g.large[i] + g.small[i] * g.stride[i] + 2 * g.padding[i] + g.kernel[i] * g.dilation[i];
    STD_TORCH_CHECK(reach < (int64_t{1} << 30), op, ": maps and windows of 2^30 elements along an axis are too long");
    w.large[i] = static_cast<int>(g.large[i]);
    w.small[i] = static_cast<int>(g.small[i]);
    w.kernel[i] = static_cast<int>(g.kernel[i]);
    w.stride[i] = static_cast<int>(g.stride[i]);
    w.padding[i] = static_cast<int>(g.padding[i]);
    w.dilation[i] = static_cast<int>(g.dilation[i]);
  }
  w.outers = g.batch * (channels_last ? 1 : g.channels);
  w.step = channels_last ? g.channels : 1;
  w.large_plane = g.large_plane();
  w.small_plane = g.small_plane();
  return w;
}

// How a number becomes a place in a map, kN channels counted as one.
struct PoolIndex {
  Divisor packs, size[3];
  PoolIndex(const int (&map)[3], int64_t step, int kN)
      : packs(step / kN), size{Divisor(map[0]), Divisor(map[1]), Divisor(map[2])} {}
};
struct PoolPlace {
  int at[3];
  int64_t outer, channel;
};
template <int kN>
__device__ __forceinline__ PoolPlace pool_place(int64_t i, const PoolIndex& index) {
  PoolPlace p;
  p.channel = index.packs.split(i) * kN;
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) p.at[axis] = static_cast<int>(index.size[axis].split(i));
  p.outer = i;
  return p;
}

__device__ __forceinline__ int64_t flat(const int (&size)[3], int d, int h, int w) {
  return (static_cast<int64_t>(d) * size[1] + h) * size[2] + w;
}

struct Range {
  int begin, end;
};

// Taps of window o inside the map. `begin` is the first one not before the map, even if that lies behind it.
__device__ __forceinline__ Range taps_inside(const PoolWindows& g, int axis, int o) {
  const int start = o * g.stride[axis] - g.padding[axis], d = g.dilation[axis];
  const int end = start < g.large[axis] ? (g.large[axis] - start + d - 1) / d : 0;
  return {start < 0 ? (-start + d - 1) / d : 0, end < g.kernel[axis] ? end : g.kernel[axis]};
}

// Windows that may hold position x; one does if tap_of answers with a tap.
__device__ __forceinline__ Range windows_around(const PoolWindows& g, int axis, int x) {
  const int last = x + g.padding[axis], first = last - (g.kernel[axis] - 1) * g.dilation[axis], s = g.stride[axis];
  const int end = last / s + 1;
  return {first > 0 ? (first + s - 1) / s : 0, end < g.small[axis] ? end : g.small[axis]};
}

// The tap of window o that lies at x, or -1.
__device__ __forceinline__ int tap_of(const PoolWindows& g, int axis, int x, int o) {
  const int distance = x + g.padding[axis] - o * g.stride[axis];
  if (g.dilation[axis] == 1) return distance;
  return distance % g.dilation[axis] == 0 ? distance / g.dilation[axis] : -1;
}

}  // namespace atrousops::cuda
