// A lattice in its tensors, and the common steps of all filters.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/permutohedral.h"
#include "stable/tensor.h"

namespace atrousops::cpu {

// Checks that the tensors match; their contents are trusted, because checking indices would cost too much.
struct LatticeView {
  LatticeView(const Tensor& splat_weights, const Tensor& slice_weights, const Tensor& offsets, const Tensor& neighbours,
              const Tensor& row_starts, const Tensor& rows, const Tensor& row_bounds, const Tensor& counts);

  // Pixels of chunk c within its image.
  int64_t chunk_begin(int64_t c) const { return pixels * (c % chunks) / chunks; }
  int64_t chunk_end(int64_t c) const { return pixels * (c % chunks + 1) / chunks; }

  Tensor splat_weights, slice_weights, offsets, neighbours, row_starts, rows, row_bounds;
  int64_t images, pixels, corners, chunks;  // chunks of one image
  const int64_t* bounds;                    // rows of chunk c: [bounds[c], bounds[c + 1])
  std::vector<int64_t> first_vertex;        // of each image, and their number
};

// Rows and vertices for filtering images [first, first + count), and the steps between splatting and slicing.
class LatticeWork {
 public:
  // A pass can slice from one buffer of rows and splat to another.
  enum class Rows { shared, separate };

  LatticeWork(const LatticeView& lattice, int64_t first, int64_t count, int64_t channels, ScalarType compute, Rows rows,
              const Tensor& like);

  // Factors of blurred vertices, in addition to the filter's constant: one for all channels, one for each, or a matrix
  // (output channel, input channel).
  void set_gain(double factor, const Tensor* each);

  // Zeroes the rows that the chunk will splat to.
  void clear_rows(int64_t chunk) const {
    const int64_t begin = lattice_.bounds[chunk], end = lattice_.bounds[chunk + 1];
    std::memset(static_cast<char*>(args.splatted) + begin * row_bytes_, 0, (end - begin) * row_bytes_);
  }
  // Rows to vertices, D + 1 axes (from the last to the first if `reverse`), and back to rows.
  void blur(bool reverse) const;

  PermutohedralArgs args;

 private:
  const LatticeView& lattice_;
  int64_t channels_, row_bytes_, first_vertex_, last_vertex_;
  Tensor row_values_, vertex_values_, gain_;
};

}  // namespace atrousops::cpu
