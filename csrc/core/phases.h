// Phases, tap lists and live regions: a problem as sums over taps without multiplications by padding.
//
// Inside a phase, at lattice position o = (o0, o1, o2), the operator writes P(o) = p0 + p * o and its tap t reads
// Q(o) + delta_t with Q(o) = q0 + q * o, on each axis independently. Everything is therefore kept per axis; a phase is
// a product of three axis phases, a region a product of three axis segments, its taps the product of their live taps.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/problem.h"

namespace atrousops::core {

using Vec3 = std::array<int64_t, kAxes>;

// One kernel coordinate. It reads inside the tensor exactly for begin <= o < end, otherwise padding.
struct AxisTap {
  int64_t r;      // coordinate in the kernel
  int64_t delta;  // displacement of the read
  int64_t begin, end;
};

// Maximal run of positions in which the live taps are the same: taps[tap_begin .. tap_end).
struct AxisSegment {
  int64_t begin, end, tap_begin, tap_end;

  int64_t length() const { return end - begin; }
  int64_t taps() const { return tap_end - tap_begin; }
};

struct AxisPhase {
  int64_t p0, p;                      // written position p0 + p * o
  int64_t q0, q;                      // read position q0 + q * o + delta
  int64_t count;                      // 0 <= o < count
  int64_t bound;                      // 0 <= read position < bound, or it is padding
  std::vector<AxisTap> taps;          // ascending delta
  std::vector<AxisSegment> segments;  // ascending position, together [0, count)

  int64_t live_pairs() const;  // (position, tap) pairs that read inside
};

// The phases of one axis. Forward and weight gradient: one. Input gradient: one per residue of the written position mod
// stride; a residue that no tap falls on has no taps, and its result is zero.
std::vector<AxisPhase> axis_phases(Kind kind, const Axis& axis);

// The number of phases, without building them, because a large stride has as many.
int64_t phase_count(Kind kind, const Axis& axis);

// Positions and live (position, tap) pairs, counted once for phases with the same taps at the same positions, because
// they share gathered rows.
struct Gathered {
  int64_t blocks = 0, rows = 0, pairs = 0;
};
Gathered gathered(const std::vector<AxisPhase>& phases);

using Phase = std::array<const AxisPhase*, kAxes>;

struct Phases {
  std::array<std::vector<AxisPhase>, kAxes> axis;

  int64_t size() const;
  Phase operator[](int64_t index) const;            // the last axis runs fastest; valid as long as this object
  double live_share(const Problem& problem) const;  // live (output, tap) pairs / all of them, dead ones included
};
Phases phases(const Problem& problem);

// A box of lattice positions of one phase with constant live taps, given as a range of each axis' tap list.
struct Region {
  int64_t phase;
  Vec3 begin, end;
  Vec3 tap_begin, tap_end;

  int64_t positions() const { return (end[0] - begin[0]) * (end[1] - begin[1]) * (end[2] - begin[2]); }
  int64_t taps() const {
    return (tap_end[0] - tap_begin[0]) * (tap_end[1] - tap_begin[1]) * (tap_end[2] - tap_begin[2]);
  }
};
// All regions, phase by phase, in row-major order; a region without taps is listed too (its result is zero).
std::vector<Region> regions(const Phases& phases);

struct Tap {
  int64_t index;  // (r0 * kernel1 + r1) * kernel2 + r2: where its weights are
  Vec3 delta;
  Vec3 begin, end;  // box of positions in which it reads inside: the weight gradient's range of reduction
};
std::vector<Tap> taps(const Problem& problem, const Phase& phase);
std::vector<Tap> taps(const Problem& problem, const Phase& phase, const Region& region);

}  // namespace atrousops::core
