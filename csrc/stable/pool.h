// Geometry of max-pooling and of its inverse: a large map, and a small map with one element per window.
#pragma once

#include <cstdint>

#include "stable/dispatch.h"

namespace atrousops {

// Three spatial axes, unused ones of size 1 in front. Along an axis tap k of window o lies at o * stride - padding +
// k * dilation of the large map.
struct PoolGeometry {
  int64_t batch, channels;
  int64_t large[3], small[3];
  int64_t kernel[3], stride[3], padding[3], dilation[3];

  int64_t large_plane() const { return large[0] * large[1] * large[2]; }
  int64_t small_plane() const { return small[0] * small[1] * small[2]; }
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  bool disjoint() const {
    for (int i = 0; i < 3; ++i)
      if ((kernel[i] - 1) * dilation[i] >= stride[i]) return false;
    return true;
  }
};

// How the position of a maximum is stored: as the flat position in the large map, or as the number of the tap.
enum class Marks { none, indices, codes };

}  // namespace atrousops
