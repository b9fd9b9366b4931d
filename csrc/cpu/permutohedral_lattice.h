// The permutohedral lattice (Adams, Baek, Davis 2010): the vertices that enclose each pixel, and their weights.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "stable/dispatch.h"

namespace atrousops::cpu {

// D coordinates and the remainder share 64 bits, and kernels keep D + 1 values a pixel on the stack.
constexpr int kMaxFeatures = 7;
// Pixels a geometry call handles.
constexpr int kLatticeTile = 64;

// A vertex's coordinates are all congruent modulo D + 1: x_i = (D + 1) q_i + r. The key holds r in its three lowest
// bits and the biased q_i above them, so that a step along the lattice is one addition.
struct KeyLayout {
  explicit KeyLayout(int features) : bits((64 - 3) / features < 31 ? (64 - 3) / features : 31) {}
  uint64_t unit(int i) const { return uint64_t{1} << (3 + i * bits); }
  uint64_t bias() const { return uint64_t{1} << (bits - 1); }
  // One less than the maximum of the field, for a step to a neighbour.
  double limit() const { return static_cast<double>(bias() - 2); }
  int bits;
};

struct PermutohedralGeometryArgs {
  const void* features;  // (D, P) of one image
  void* weights;         // (P, D + 1) of the same image
  ScalarType dtype;      // float or double
  int features_count;
  int64_t pixels;
};
// Weights of pixels [begin, end), at most kLatticeTile of them, and the keys (end - begin, D + 1) of their vertices.
// Clears *fits if a coordinate exceeds the key or is not finite.
ATROUSOPS_DECLARE_KERNEL(permutohedral_geometry, const PermutohedralGeometryArgs& args, int64_t begin, int64_t end,
                         uint64_t* keys, bool* fits)

}  // namespace atrousops::cpu
