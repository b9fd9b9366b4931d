// `_C`: the planner and build facts, for explain(), tests and benchmarks. No operator is bound here.
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "atrousops: planner and build facts";
  m.attr("torch_built") = ATROUSOPS_TORCH_BUILT;
  m.attr("torch_target") = py::int_(static_cast<unsigned long long>(ATROUSOPS_TORCH_TARGET));
  m.attr("compiler") = ATROUSOPS_COMPILER;
  m.attr("isas") = ATROUSOPS_ISAS;
}
