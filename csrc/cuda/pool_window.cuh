// Which taps of a window lie inside the map, and which windows hold a position.
#pragma once

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

// Division of 64-bit numbers costs several times that of 32-bit ones, and most are small.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// An element's place: `outer`, position along the three axes, first channel of its pack.
struct PoolPlace {
  int at[3];
  int64_t outer, channel;
};
// Element i of a map of `size`, packs of kN channels counted as one.
template <int kN>
__device__ __forceinline__ PoolPlace pool_place(int64_t i, const int (&size)[3], int64_t step) {
  PoolPlace p;
  const int64_t packs = step / kN;
  int64_t rest = packs == 1 ? i : divide(i, packs);
  p.channel = (i - rest * packs) * kN;
  for (int axis = 2; axis >= 0; --axis) {
    const int64_t up = size[axis] == 1 ? rest : divide(rest, size[axis]);
    p.at[axis] = static_cast<int>(rest - up * size[axis]);
    rest = up;
  }
  p.outer = rest;
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
