// permutohedral_apply: values filtered over a lattice that permutohedral_lattice built.
#include "cpu/permutohedral.h"

#include <torch/csrc/stable/library.h>

#include "cpu/parallel.h"
#include "cpu/permutohedral_launch.h"
#include "stable/implement.h"
#include "stable/tensor.h"

namespace atrousops::cpu {

Tensor permutohedral_apply(const Tensor& values, const Tensor& splat_weights, const Tensor& slice_weights,
                           const Tensor& offsets, const Tensor& neighbours, const Tensor& row_starts,
                           const Tensor& rows, const Tensor& row_bounds, const Tensor& counts, bool reverse) {
  STD_TORCH_CHECK(values.dim() == 3, "permutohedral_apply: values must be (N, C, P); got ", values.dim(),
                  " dimensions");
  const LatticeView lattice(splat_weights, slice_weights, offsets, neighbours, row_starts, rows, row_bounds, counts);
  STD_TORCH_CHECK(values.size(0) == lattice.images && values.size(2) == lattice.pixels,
                  "permutohedral_apply: values must be of ", lattice.images, " images and ", lattice.pixels,
                  " pixels; got ", values.size(0), " and ", values.size(2));
  const bool nhwc = prefers_channels_last(values);
  const Tensor in = dense(values, nhwc);
  Tensor out = empty(sizes_of(in), in, nhwc);
  if (out.numel() == 0) return out;
  const ScalarType compute = in.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  LatticeWork work(lattice, 0, lattice.images, in.size(1), compute, LatticeWork::Rows::shared, in);
  const auto image = [&](const Tensor& t, int64_t n) {
    const int64_t bytes = in.size(1) * lattice.pixels * static_cast<int64_t>(in.element_size());
    return PermutohedralImage{memory_of(t) + n * bytes, in.scalar_type(), nhwc, in.size(1), lattice.pixels};
  };

  const auto splat = ATROUSOPS_SELECT(permutohedral_splat);
  const int64_t grain = chunk_grain(lattice.pixels, lattice.chunks);
  parallel_for_flushed(0, lattice.images * lattice.chunks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t n = c / lattice.chunks;
      work.clear_rows(c);
      splat(work.args, image(in, n), n * lattice.pixels, lattice.chunk_begin(c), lattice.chunk_end(c));
    }
  });
  work.blur(reverse);
  const auto slice = ATROUSOPS_SELECT(permutohedral_slice);
  const int64_t tiles = (lattice.pixels + kPixelTile - 1) / kPixelTile;
  parallel_for_flushed(0, lattice.images * tiles, 64, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin / tiles; n * tiles < end; ++n) {
      const int64_t first = std::max(begin - n * tiles, int64_t{0}), last = std::min(end - n * tiles, tiles);
      slice(work.args, image(out, n), n * lattice.pixels, first * kPixelTile,
            std::min(last * kPixelTile, lattice.pixels));
    }
  });
  return out;
}

}  // namespace atrousops::cpu

STABLE_TORCH_LIBRARY_IMPL(atrousops, CPU, m) {
  atrousops::implement<"permutohedral_apply", &atrousops::cpu::permutohedral_apply, "values", "splat_weights",
                       "slice_weights", "offsets", "neighbours", "row_starts", "rows", "row_bounds", "counts">(m);
}
