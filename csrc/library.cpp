// Every operator's schema, one line each. Implementations register themselves at the bottom of their own file.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(atrousops, m) {
  m.def("flush_subnormals(Tensor input) -> Tensor");
  m.def("permutohedral_apply(Tensor values, Tensor splat_weights, Tensor slice_weights, Tensor offsets, Tensor neighbours, Tensor row_starts, Tensor rows, Tensor row_bounds, Tensor counts, bool reverse) -> Tensor");
  m.def("permutohedral_lattice(Tensor features) -> (Tensor offsets, Tensor weights, Tensor neighbours, Tensor row_starts, Tensor rows, Tensor row_bounds, Tensor counts)");
}
