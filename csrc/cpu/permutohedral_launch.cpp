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
  first_vertex = {0};
  for (int64_t n = 0; n < images; ++n) first_vertex.push_back(first_vertex[n] + data<int64_t>(dense_counts)[n]);
  const int64_t vertices = first_vertex[images];
  STD_TORCH_CHECK(neighbours.dim() == 3 && neighbours.size(0) == corners && neighbours.size(1) >= vertices &&
                      neighbours.size(2) == 2,
                  "lattice: neighbours must be (D + 1, M, 2)");
  STD_TORCH_CHECK(row_starts.numel() > vertices && rows.numel() >= bounds[images * chunks],
                  "lattice: row_starts or rows is too short");
}

// Buffers hold what these images touch only; pointers are moved so that the lattice's own indices work.
LatticeWork::LatticeWork(const LatticeView& lattice, int64_t first, int64_t count, int64_t channels, ScalarType compute,
                         Rows rows, const Tensor& like)
    : lattice_(lattice),
      channels_(channels),
      first_vertex_(lattice.first_vertex[first]),
      last_vertex_(lattice.first_vertex[first + count]) {
  STD_TORCH_CHECK(lattice.splat_weights.scalar_type() == compute,
                  "lattice: weights must have the dtype that values are computed in");
  const int64_t lanes = kVectorBytes / (compute == ScalarType::Double ? 8 : 4);
  const int64_t vectors = (channels + lanes - 1) / lanes, width = vectors * lanes;
  row_bytes_ = vectors * kVectorBytes;
  const int64_t first_row = lattice.bounds[first * lattice.chunks];
  const int64_t row_count = lattice.bounds[(first + count) * lattice.chunks] - first_row;
  row_values_ = empty({(rows == Rows::separate ? 2 : 1) * row_count * width}, like, false, compute);
  char* row_data = static_cast<char*>(row_values_.mutable_data_ptr()) - first_row * row_bytes_;
  const int64_t vertex_count = last_vertex_ - first_vertex_ + 1;
  vertex_values_ = empty({2 * vertex_count * width}, like, false, compute);
  char* vertices = static_cast<char*>(vertex_values_.mutable_data_ptr());
  std::memset(vertices, 0, row_bytes_);
  std::memset(vertices + vertex_count * row_bytes_, 0, row_bytes_);
  // The first of each buffer is the zero vertex.
  vertices -= (first_vertex_ - 1) * row_bytes_;
  args = {compute,
          vectors,
          lattice.corners,
          data<int32_t>(lattice.offsets),
          lattice.splat_weights.const_data_ptr(),
          lattice.slice_weights.const_data_ptr(),
          data<int32_t>(lattice.neighbours),
          lattice.neighbours.size(1),
          data<int32_t>(lattice.row_starts),
          data<int32_t>(lattice.rows),
          row_data,
          rows == Rows::separate ? row_data + row_count * row_bytes_ : row_data,
          {vertices, vertices + vertex_count * row_bytes_},
          first_vertex_ - 1,
          nullptr,
          nullptr,
          channels};
  set_gain(1.0, nullptr);
}

template <class T>
static void fill_gain(T* out, int64_t width, int64_t channels, double factor, const Tensor* each) {
  if (each == nullptr) {
    std::fill_n(out, width, static_cast<T>(factor));
    return;
  }
  const T* in = data<T>(*each);
  const bool matrix = each->dim() == 2;
  std::fill_n(out, (matrix ? channels : 1) * width, T(0));
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t o = 0; o < (matrix ? channels : 1); ++o)
      if (matrix)
        out[c * width + o] = static_cast<T>(factor) * in[o * channels + c];
      else
        out[c] = static_cast<T>(factor) * in[c];
}

void LatticeWork::set_gain(double factor, const Tensor* each) {
  // pydensecrf's constant.
  const double alpha = 1.0 / (1.0 + 1.0 / static_cast<double>(int64_t{1} << (args.corners - 1)));
  const int64_t width = row_bytes_ / (args.compute == ScalarType::Double ? 8 : 4);
  const bool matrix = each != nullptr && each->dim() == 2;
  gain_ = empty({(matrix ? channels_ : 1) * width}, row_values_, false);
  if (args.compute == ScalarType::Double)
    fill_gain(mutable_data<double>(gain_), width, channels_, factor * alpha, each);
  else
    fill_gain(mutable_data<float>(gain_), width, channels_, factor * alpha, each);
  args.gain = matrix ? nullptr : gain_.const_data_ptr();
  args.mix = matrix ? gain_.const_data_ptr() : nullptr;
}

void LatticeWork::blur(bool reverse) const {
  constexpr int64_t kGrain = 1024;
  const auto each_vertex = [&](const auto& f) { parallel_for_flushed(first_vertex_, last_vertex_, kGrain, f); };
  const auto gather = ATROUSOPS_SELECT(permutohedral_gather);
  each_vertex([&](int64_t begin, int64_t end) { gather(args, begin, end); });
  const auto step = ATROUSOPS_SELECT(permutohedral_blur);
  for (int64_t j = 0; j < args.corners; ++j) {
    const int64_t axis = reverse ? args.corners - 1 - j : j;
    const bool last = j == args.corners - 1 && args.mix == nullptr;
    each_vertex([&](int64_t begin, int64_t end) { step(args, axis, (j + 1) % 2, last, begin, end); });
  }
  if (args.mix == nullptr) return;
  const auto mix = ATROUSOPS_SELECT(permutohedral_mix);
  each_vertex([&](int64_t begin, int64_t end) { mix(args, static_cast<int>(args.corners % 2), begin, end); });
}

}  // namespace atrousops::cpu
