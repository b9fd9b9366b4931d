// `_C`: the planner and build facts, for explain(), tests and benchmarks. No operator is bound here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/phases.h"
#include "core/problem.h"

namespace py = pybind11;
using namespace atrousops::core;

using Sizes = std::vector<int64_t>;

static Problem make(const std::string& kind, int64_t n, int64_t c, int64_t k, int64_t groups, const Sizes& in,
                    const Sizes& kernel, const Sizes& stride, const Sizes& dilation, const Sizes& pad_lo,
                    const Sizes& pad_hi, const Sizes& out) {
  const Kind which = kind == "forward"       ? Kind::forward
                     : kind == "input_grad"  ? Kind::input_grad
                     : kind == "weight_grad" ? Kind::weight_grad
                                             : throw py::value_error("kind must be forward, input_grad or weight_grad");
  return make_problem(which, n, c, k, groups, {in, kernel, stride, dilation, pad_lo, pad_hi}, out);
}

static Problem make_from_transposed(int64_t n, int64_t k, int64_t c, int64_t groups, const Sizes& in,
                                    const Sizes& kernel, const Sizes& stride, const Sizes& dilation,
                                    const Sizes& pad_lo, const Sizes& pad_hi, const Sizes& output_padding) {
  return make_transposed(n, k, c, groups, {in, kernel, stride, dilation, pad_lo, pad_hi}, output_padding);
}

static void bind_geometry(py::module_& m) {
  py::class_<Axis>(m, "Axis")
      .def_readonly("in_", &Axis::in)
      .def_readonly("out", &Axis::out)
      .def_readonly("kernel", &Axis::kernel)
      .def_readonly("stride", &Axis::stride)
      .def_readonly("dilation", &Axis::dilation)
      .def_readonly("pad_lo", &Axis::pad_lo)
      .def_readonly("pad_hi", &Axis::pad_hi);
  py::class_<Problem>(m, "Problem")
      .def(py::init(&make))
      .def_static("transposed", &make_from_transposed)
      .def_readonly("axis", &Problem::axis)
      .def("dense_flops", &Problem::dense_flops);
  py::class_<AxisTap>(m, "AxisTap").def("astuple", [](const AxisTap& t) {
    return py::make_tuple(t.r, t.delta, t.begin, t.end);
  });
  py::class_<AxisSegment>(m, "AxisSegment").def("astuple", [](const AxisSegment& s) {
    return py::make_tuple(s.begin, s.end, s.tap_begin, s.tap_end);
  });
  py::class_<AxisPhase>(m, "AxisPhase").def("astuple", [](const AxisPhase& p) {
    py::list taps, segments;
    for (const AxisTap& t : p.taps) taps.append(py::make_tuple(t.r, t.delta, t.begin, t.end));
    for (const AxisSegment& s : p.segments) segments.append(py::make_tuple(s.begin, s.end, s.tap_begin, s.tap_end));
    return py::make_tuple(p.p0, p.p, p.q0, p.q, p.count, p.bound, py::tuple(taps), py::tuple(segments));
  });
  m.def("axis_phases", [](const Problem& p, int axis) { return axis_phases(p.kind, p.axis.at(axis)); });
  m.def("live_share", [](const Problem& p) { return phases(p).live_share(p); });
  m.def("regions", [](const Problem& p) {
    py::list all;
    for (const Region& r : regions(phases(p)))
      all.append(py::make_tuple(r.phase, r.begin, r.end, r.tap_begin, r.tap_end));
    return all;
  });
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "atrousops: planner and build facts";
  m.attr("torch_built") = ATROUSOPS_TORCH_BUILT;
  m.attr("torch_target") = py::int_(static_cast<unsigned long long>(ATROUSOPS_TORCH_TARGET));
  m.attr("compiler") = ATROUSOPS_COMPILER;
  m.attr("isas") = ATROUSOPS_ISAS;
  bind_geometry(m);
}
