#include "cpu/permutohedral_launch.h"

namespace atrousops::cpu {

LatticeView::LatticeView(const Tensor& splat_weights_, const Tensor& slice_weights_, const Tensor& offsets_,
                         const Tensor& neighbours_, const Tensor& row_starts_, const Tensor& rows_,
                         const Tensor& row_bounds_, const Tensor& counts)
    : splat_weights(dense(splat_weights_, false)),
      slice_weights(dense(slice_weights_, false)),
      offsets(dense(offsets_, false)),
      neighbours(dense(neighbours_, false)),
      row_starts(dense(row_starts_, false)),
      rows(dense(rows_, false)),
      row_bounds(dense(row_bounds_, false)) {
  STD_TORCH_CHECK(offsets.dim() == 3, "lattice: offsets must be (N, P, D + 1); got ", offsets.dim(), " dimensions");
  images = offsets.size(0);
  pixels = offsets.size(1);
  corners = offsets.size(2);
  for (const Tensor* w : {&splat_weights, &slice_weights})
    STD_TORCH_CHECK(w->dim() == 3 && w->size(0) == images && w->size(1) == pixels && w->size(2) == corners &&
                        w->scalar_type() == splat_weights.scalar_type(),
                    "lattice: weights must have the shape of offsets and one dtype");
  for (const Tensor* i : {&offsets, &neighbours, &row_starts, &rows})
    STD_TORCH_CHECK(i->scalar_type() == ScalarType::Int, "lattice: index tensors must be int32");
  STD_TORCH_CHECK(row_bounds.scalar_type() == ScalarType::Long && counts.scalar_type() == ScalarType::Long,
                  "lattice: row_bounds and counts must be int64");
  STD_TORCH_CHECK(counts.numel() == images, "lattice: counts must have one entry an image");
  chunks = images == 0 ? 1 : (row_bounds.numel() - 1) / images;
  STD_TORCH_CHECK(row_bounds.numel() == images * chunks + 1 && chunks >= 1, "lattice: row_bounds has a wrong length");
  bounds = data<int64_t>(row_bounds);
  const Tensor dense_counts = dense(counts, false);
  for (int64_t n = 0; n < images; ++n) vertices += data<int64_t>(dense_counts)[n];
  STD_TORCH_CHECK(neighbours.dim() == 3 && neighbours.size(0) == corners && neighbours.size(1) >= vertices &&
                      neighbours.size(2) == 2,
                  "lattice: neighbours must be (D + 1, M, 2)");
  STD_TORCH_CHECK(row_starts.numel() > vertices && rows.numel() >= bounds[images * chunks],
                  "lattice: row_starts or rows is too short");
}

LatticeWork::LatticeWork(const LatticeView& lattice, int64_t channels, ScalarType compute, const Tensor& like)
    : lattice_(lattice) {
  STD_TORCH_CHECK(lattice.splat_weights.scalar_type() == compute,
                  "lattice: weights must have the dtype that values are computed in");
  const int64_t lanes = kVectorBytes / (compute == ScalarType::Double ? 8 : 4);
  const int64_t vectors = (channels + lanes - 1) / lanes;
  row_bytes_ = vectors * kVectorBytes;
  const int64_t row_count = lattice.bounds[lattice.images * lattice.chunks];
  row_values_ = empty({row_count * vectors * lanes}, like, false, compute);
  vertex_values_ = empty({2 * (lattice.vertices + 1) * vectors * lanes}, like, false, compute);
  char* vertices = static_cast<char*>(vertex_values_.data_ptr());
  char* second = vertices + (lattice.vertices + 1) * row_bytes_;
  std::memset(vertices, 0, row_bytes_);
  std::memset(second, 0, row_bytes_);
  args = {compute,
          vectors,
          lattice.corners,
          data<int32_t>(lattice.offsets),
          lattice.splat_weights.data_ptr(),
          lattice.slice_weights.data_ptr(),
          data<int32_t>(lattice.neighbours),
          lattice.neighbours.size(1),
          data<int32_t>(lattice.row_starts),
          data<int32_t>(lattice.rows),
          row_values_.data_ptr(),
          {vertices + row_bytes_, second + row_bytes_}};
}

void LatticeWork::blur(bool reverse) const {
  constexpr int64_t kGrain = 1024;
  const auto gather = ATROUSOPS_SELECT(permutohedral_gather);
  parallel_for(0, lattice_.vertices, kGrain, [&](int64_t begin, int64_t end) { gather(args, begin, end); });
  const auto step = ATROUSOPS_SELECT(permutohedral_blur);
  for (int64_t j = 0; j < lattice_.corners; ++j) {
    const int64_t axis = reverse ? lattice_.corners - 1 - j : j;
    const bool last = j == lattice_.corners - 1;
    parallel_for(0, lattice_.vertices, kGrain,
                 [&](int64_t begin, int64_t end) { step(args, axis, (j + 1) % 2, last, begin, end); });
  }
}

}  // namespace atrousops::cpu
