// Which taps of a window lie inside the map, and which windows hold a position; include only from csrc/cpu/kernels.
#pragma once

#include <cstdint>

#include "stable/pool.h"

namespace atrousops::cpu::ATROUSOPS_ISA {

struct Range {
  int64_t begin, end;
};

// As in core/checked.h, without overflow for any b; compiled here for each instruction set.
inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b > 0); }
inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Taps of window o inside the map. `begin` is the first one not before the map, even if it is beyond the end.
inline Range taps_inside(const PoolGeometry& g, int axis, int64_t o) {
  const int64_t start = o * g.stride[axis] - g.padding[axis], d = g.dilation[axis];
  const int64_t begin = start < 0 ? ceil_div(-start, d) : 0;
  return {begin, least(g.kernel[axis], start < g.large[axis] ? ceil_div(g.large[axis] - start, d) : 0)};
}

// Windows that may contain position x; a window does if tap_of returns a tap.
inline Range windows_around(const PoolGeometry& g, int axis, int64_t x) {
  const int64_t last = x + g.padding[axis], first = last - (g.kernel[axis] - 1) * g.dilation[axis];
  return {first > 0 ? ceil_div(first, g.stride[axis]) : 0, least(g.small[axis], last / g.stride[axis] + 1)};
}

// The tap of window o at position x, or -1.
inline int64_t tap_of(const PoolGeometry& g, int axis, int64_t x, int64_t o) {
  const int64_t distance = x + g.padding[axis] - o * g.stride[axis];
  if (g.dilation[axis] == 1) return distance;
  return distance % g.dilation[axis] == 0 ? distance / g.dilation[axis] : -1;
}

// Tap k of the innermost axis, for all windows of a row: for window o it is element o + shift of phase `phase` of the
// row (every stride-th element); it is inside the map for windows [begin, end).
struct RowTap {
  int64_t phase, shift, begin, end;
};
inline RowTap row_tap(const PoolGeometry& g, int64_t k) {
  const int64_t offset = k * g.dilation[2] - g.padding[2], s = g.stride[2];
  const int64_t shift = floor_div(offset, s), phase = offset - shift * s;
  const int64_t length = phase < g.large[2] ? ceil_div(g.large[2] - phase, s) : 0;
  return {phase, shift, most(0, -shift), least(g.small[2], length - shift)};
}
// Elements reserved for one phase of a row.
inline int64_t phase_pitch(const PoolGeometry& g) { return ceil_div(g.large[2], g.stride[2]); }

// A flat index split into coordinates of a box, innermost last.
struct Walk {
  int64_t size[3], at[3], outer;

  Walk(int64_t flat, int64_t a, int64_t b, int64_t c) : size{a, b, c} {
    at[2] = flat % c;
    at[1] = flat / c % b;
    at[0] = flat / (c * b) % a;
    outer = flat / (c * b * a);
  }
  void next() {
    for (int i = 2; i >= 0; --i) {
      if (++at[i] < size[i]) return;
      at[i] = 0;
    }
    ++outer;
  }
};

}  // namespace atrousops::cpu::ATROUSOPS_ISA
