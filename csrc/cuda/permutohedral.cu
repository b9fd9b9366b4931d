// permutohedral_apply: values filtered over a lattice that permutohedral_lattice built.
#include "cuda/permutohedral.cuh"
#include "cuda/platform.h"
#include "cuda/registration.h"

namespace atrousops::cuda {

namespace {

template <class T>
Tensor apply(const Tensor& in, bool nhwc, const LatticeView& lattice, bool reverse) {
  const int64_t packs = (in.size(1) + kPack<T> - 1) / kPack<T>, pixels = in.size(0) * in.size(2);
  const ScalarType compute = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  Tensor rows = empty({pixels * packs * kPack<T>}, in, false, compute), out = empty(sizes_of(in), in, nhwc);
  T* values = mutable_data<T>(rows);
  to_rows<T>(in, nhwc, values);
  LatticeFilter<T> filter(lattice, in.size(1), 1, in);
  const SliceSource<T> source = filter.blur(values, reverse, {1.0, nullptr, false});
  slice_rows(source, pixels, values, in);
  from_rows<T>(values, out, nhwc);
  return out;
}

}  // namespace

Tensor permutohedral_apply(const Tensor& values, const Tensor& splat_weights, const Tensor& slice_weights,
                           const Tensor& offsets, const Tensor& neighbours, const Tensor& row_starts,
                           const Tensor& rows, const Tensor& row_bounds, const Tensor& counts, bool reverse) {
  STD_TORCH_CHECK(values.dim() == 3, "permutohedral_apply: values must be (N, C, P); got ", values.dim(),
                  " dimensions");
  const DeviceGuard guard(values);
  const LatticeView lattice(splat_weights, slice_weights, offsets, neighbours, row_starts, rows, counts);
  STD_TORCH_CHECK(values.size(0) == lattice.images && values.size(2) == lattice.pixels,
                  "permutohedral_apply: values must be of ", lattice.images, " images and ", lattice.pixels,
                  " pixels; got ", values.size(0), " and ", values.size(2));
  const bool nhwc = prefers_channels_last(values);
  const Tensor in = dense(values, nhwc);
  if (in.numel() == 0) return empty(sizes_of(in), in, nhwc);
  return in.scalar_type() == ScalarType::Double ? apply<double>(in, nhwc, lattice, reverse)
                                                : apply<float>(in, nhwc, lattice, reverse);
}

}  // namespace atrousops::cuda

ATROUSOPS_CUDA_LIBRARY(m) {
  atrousops::implement<"permutohedral_apply", &atrousops::cuda::permutohedral_apply, "values", "splat_weights",
                       "slice_weights", "offsets", "neighbours", "row_starts", "rows", "row_bounds", "counts">(m);
}
