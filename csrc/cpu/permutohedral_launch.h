// A lattice as its tensors hold it, and the steps that every filter over it shares.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/parallel.h"
#include "cpu/permutohedral.h"
#include "cpu/tensor.h"

namespace atrousops::cpu {

// Checks the tensors against each other; their contents are trusted, as those of any index structure.
struct LatticeView {
  LatticeView(const Tensor& splat_weights, const Tensor& slice_weights, const Tensor& offsets, const Tensor& neighbours,
              const Tensor& row_starts, const Tensor& rows, const Tensor& row_bounds, const Tensor& counts);

  // Pixels of chunk c within its image.
  int64_t chunk_begin(int64_t c) const { return pixels * (c % chunks) / chunks; }
  int64_t chunk_end(int64_t c) const { return pixels * (c % chunks + 1) / chunks; }

  // f(image, begin, end) in parallel over pixels.
  template <class F>
  void for_pixel_ranges(const F& f) const {
    const int64_t tiles = (pixels + kPixelTile - 1) / kPixelTile;
    parallel_for(0, images * tiles, 16, [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t n = begin / tiles, stop = std::min(end, (n + 1) * tiles);
        f(n, (begin - n * tiles) * kPixelTile, std::min((stop - n * tiles) * kPixelTile, pixels));
        begin = stop;
      }
    });
  }

  int64_t images, pixels, corners, chunks;
  int64_t vertices = 0;   // of all images
  const int64_t* bounds;  // rows of chunk c: [bounds[c], bounds[c + 1])
  Tensor splat_weights, slice_weights, offsets, neighbours, row_starts, rows, row_bounds;
};

// Rows and vertices for one filter, and what happens between splatting and slicing.
class LatticeWork {
 public:
  LatticeWork(const LatticeView& lattice, int64_t channels, ScalarType compute, const Tensor& like);

  void clear_rows(int64_t chunk) const {
    const int64_t begin = lattice_.bounds[chunk], end = lattice_.bounds[chunk + 1];
    std::memset(static_cast<char*>(args.row_values) + begin * row_bytes_, 0, (end - begin) * row_bytes_);
  }
  // Rows to vertices, D + 1 axes (from the last to the first if `reverse`), and back to rows.
  void blur(bool reverse) const;

  PermutohedralArgs args;

 private:
  const LatticeView& lattice_;
  int64_t row_bytes_;
  Tensor row_values_, vertex_values_;
};

}  // namespace atrousops::cpu
