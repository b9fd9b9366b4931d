#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "stable/pool.h"

namespace atrousops::cpu {

// The value of an element of the large map that several windows point at.
enum class Meeting { last, sum };

struct MaxUnpoolArgs {
  PoolGeometry g;
  const void* source;  // small map when placing, large map when picking
  const void* marks;   // of the small map
  void* output;
  Marks kind;
  Meeting meeting;
  ScalarType dtype;
  bool channels_last;
};

// Channels that a worker scatters together.
constexpr int64_t kScatterChannels = 16;

// Windows around one position that place_windows sums.
constexpr int64_t kMostMeeting = 64;

// Whether place_windows can run it: overlapping windows only for sums in channels_last, disjoint ones in channels_last
// or as pairs along rows.
inline bool can_place(const MaxUnpoolArgs& a) {
  const PoolGeometry& g = a.g;
  const bool pairs = g.kernel[2] == 2 && g.stride[2] == 2 && g.padding[2] == 0 && 2 * g.small[2] <= g.large[2];
  // Measured on AVX2: rows of 14 windows are faster scattered, of 16 as fast, longer ones slower.
  const bool short_sums = a.kind == Marks::codes && a.meeting == Meeting::sum && g.small[2] < 16;
  if (g.disjoint()) return a.channels_last || (pairs && !short_sums);
  int64_t meeting = 1;
  for (int i = 0; i < 3; ++i) meeting *= ((g.kernel[i] - 1) * g.dilation[i] + g.stride[i]) / g.stride[i];
  return a.channels_last && a.meeting == Meeting::sum && meeting <= kMostMeeting;
}

// Large map from small, by gathering: each element checks the windows around it, and is written once. Rows (n, c, d, h)
// of the large map, or positions (n, d, h, w) of all channels in channels_last. Adds to *matched the number of marks
// found in their own window; if some indices were not found, everything must be repeated by `scatter`.
ATROUSOPS_DECLARE_KERNEL(place_windows, const MaxUnpoolArgs& args, int64_t begin, int64_t end, int64_t* matched)

// Large map from small, by scattering in the order of the small map, for any marks. Groups of channels (n, c / group),
// group = kScatterChannels in channels_last, else 1; scratch holds a group of planes in float for sums of 16-bit
// numbers. Adds to *matched the number of marks inside the large map; others are ignored.
ATROUSOPS_DECLARE_KERNEL(scatter, const MaxUnpoolArgs& args, int64_t begin, int64_t end, void* scratch,
                         int64_t* matched)

// Small map from large: each window takes the element at its mark, or 0 if that is outside. Rows (n, c, od, oh), or
// windows (n, od, oh, ow) of all channels in channels_last.
ATROUSOPS_DECLARE_KERNEL(pick, const MaxUnpoolArgs& args, int64_t begin, int64_t end)

}  // namespace atrousops::cpu
