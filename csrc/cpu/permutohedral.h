// Filtering over a permutohedral lattice: splat to its vertices, blur along D + 1 axes, slice back.
// Pixels are divided into chunks, whose number depends only on the pixel count. Each chunk has its own row for every
// vertex that it touches, so that chunks splat in parallel, in pixel order, without atomics; a vertex then adds its
// rows in a fixed order. Channels are innermost, padded to whole vectors.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "stable/dispatch.h"

namespace atrousops::cpu {

// Channels of type float or double in one vector, under every instruction set.
constexpr int64_t kVectorBytes = 32;
// Pixels per tile of channels-innermost values.
constexpr int64_t kPixelTile = 64;

// The minimum number of chunks per worker, so that small images stay on one thread.
inline int64_t chunk_grain(int64_t pixels, int64_t chunks) { return 1 + 4096 * chunks / (pixels + 1); }

struct PermutohedralArgs {
  ScalarType compute;  // float or double: weights, rows and vertices
  int64_t vectors;     // a row's length
  int64_t corners;     // D + 1
  const int32_t* offsets;
  const void* splat_weights;
  const void* slice_weights;
  const int32_t* neighbours;  // (D + 1, neighbour_stride, 2), -1 where there is none
  int64_t neighbour_stride;
  const int32_t* row_starts;
  const int32_t* rows;
  void* splatted;          // rows as pixels filled them
  void* blurred;           // rows as pixels read them; the same memory unless one pass does both
  void* vertex_values[2];  // the vertex before the first exists and is zero
  int64_t zero_vertex;     // its index, which is -1 in neighbours
  const void* gain;        // a row that multiplies blurred vertices, channel by channel
  const void* mix;         // or null: (channels, row), a matrix instead; row c is the contribution of channel c
  int64_t channels;
};

// Values of one image, (C, P) or (P, C).
struct PermutohedralImage {
  void* values;
  ScalarType dtype;
  bool channels_last;
  int64_t channels;
  int64_t pixels;
};

// Rows of pixels [first + begin, first + end) += weight * value, where `first` is the image's first pixel in the
// lattice.
ATROUSOPS_DECLARE_KERNEL(permutohedral_splat, const PermutohedralArgs& args, const PermutohedralImage& image,
                         int64_t first, int64_t begin, int64_t end)
// vertex_values[0] = the sum of a vertex's rows.
ATROUSOPS_DECLARE_KERNEL(permutohedral_gather, const PermutohedralArgs& args, int64_t begin, int64_t end)
// One axis: vertex_values[to] = v + (n1 + n2) / 2 of vertex_values[1 - to]. If `last`, rows = gain * that instead.
ATROUSOPS_DECLARE_KERNEL(permutohedral_blur, const PermutohedralArgs& args, int64_t axis, int to, bool last,
                         int64_t begin, int64_t end)
// rows = mix^T vertex_values[from].
ATROUSOPS_DECLARE_KERNEL(permutohedral_mix, const PermutohedralArgs& args, int from, int64_t begin, int64_t end)
ATROUSOPS_DECLARE_KERNEL(permutohedral_slice, const PermutohedralArgs& args, const PermutohedralImage& image,
                         int64_t first, int64_t begin, int64_t end)

}  // namespace atrousops::cpu
