// Every operator's schema, one line each. Implementations register themselves at the bottom of their own file.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(atrousops, m) {
  m.def("flush_subnormals(Tensor input) -> Tensor");
}
