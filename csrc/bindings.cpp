// `_C`: the planner and build facts, for explain(), tests and benchmarks. No operator is bound here.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <initializer_list>
#include <span>

#include "core/boxes.h"
#include "core/checked.h"
#include "core/phases.h"
#include "core/plan.h"
#include "core/problem.h"
#include "core/tiles.h"
#include "core/weight_boxes.h"

namespace py = pybind11;
using namespace atrousops::core;

// Geometry crosses as plain tuples; atrousops/dispatch/geometry.py names their fields.
using Sizes = std::vector<int64_t>;
using AxisFields = std::array<int64_t, 7>;
using AxesFields = std::array<AxisFields, kAxes>;

static Kind kind_of(const std::string& kind) {
  if (kind == "forward") return Kind::forward;
  if (kind == "input_grad") return Kind::input_grad;
  if (kind == "weight_grad") return Kind::weight_grad;
  throw py::value_error("kind must be forward, input_grad or weight_grad; got " + kind);
}

static Axis axis_of(const AxisFields& f) { return {f[0], f[1], f[2], f[3], f[4], f[5], f[6]}; }

static Problem problem_of(const std::string& kind, int64_t n, int64_t c, int64_t k, int64_t groups,
                          const AxesFields& axes) {
  return {kind_of(kind), n, c, k, groups, {axis_of(axes[0]), axis_of(axes[1]), axis_of(axes[2])}};
}

using ProblemFields = std::tuple<std::string, int64_t, int64_t, int64_t, int64_t, AxesFields>;

// planner.py's CallArguments: kind, sizes of input and weight, stride, padding, dilation, groups, output_padding.
using CallFields = std::tuple<std::string, Sizes, Sizes, Sizes, Sizes, Sizes, int64_t, Sizes>;

static Problem problem_of_call(const CallFields& call) {
  const auto& [kind, input, weight, stride, padding, dilation, groups, output_padding] = call;
  const std::span<const int64_t> size(input), kernel(weight), pads(padding);
  const size_t rank = input.size() - 2;
  const Spatial spatial{size.subspan(2), kernel.subspan(2), stride, dilation, pads.first(rank), pads.last(rank)};
  if (kind != "transposed") return make_problem(kind_of(kind), input[0], input[1], weight[0], groups, spatial);
  const Sizes extra = output_padding.empty() ? Sizes(rank) : output_padding;
  return make_transposed(input[0], input[1], weight[1] * groups, groups, spatial, extra);
}

static std::vector<Problem> problems_of(const std::vector<ProblemFields>& fields) {
  std::vector<Problem> all;
  for (const ProblemFields& f : fields) all.push_back(std::apply(problem_of, f));
  return all;
}

static AxesFields axes_of(const Problem& p) {
  AxesFields all;
  for (int i = 0; i < kAxes; ++i) {
    const Axis& a = p.axis[i];
    all[i] = {a.in, a.out, a.kernel, a.stride, a.dilation, a.pad_lo, a.pad_hi};
  }
  return all;
}

static py::tuple tuple_of(const AxisPhase& p) {
  py::list taps, segments;
  for (const AxisTap& t : p.taps) taps.append(py::make_tuple(t.r, t.delta, t.begin, t.end));
  for (const AxisSegment& s : p.segments) segments.append(py::make_tuple(s.begin, s.end, s.tap_begin, s.tap_end));
  return py::make_tuple(p.p0, p.p, p.q0, p.q, p.count, p.bound, py::tuple(taps), py::tuple(segments));
}

// A tuple of dispatch/planner.py, whose fields have names.
template <class... T>
static py::object named_tuple(const char* type, T&&... fields) {
  return py::module_::import("atrousops.dispatch.planner").attr(type)(std::forward<T>(fields)...);
}

static py::object tuple_of(const std::optional<BoxPlan>& p, int64_t itemsize) {
  if (!p) return py::none();
  const TileShape& s = tile_shapes()[static_cast<size_t>(p->shape)];
  static constexpr const char* kShared[] = {"none", "map", "weights"};
  return named_tuple("Boxes", py::tuple(py::cast(p->box.size)), p->box.images, s.rows, s.columns, 128 / itemsize,
                     p->splits, kShared[static_cast<size_t>(p->pairs)], p->tiles, p->steps, p->step, p->beside,
                     p->finish, p->seconds, p->dense_seconds);
}

static py::list list_of(const std::vector<Candidate>& all) {
  py::list candidates;
  for (const Candidate& c : all) candidates.append(named_tuple("Candidate", c.kernel, c.seconds, c.reason));
  return candidates;
}

static py::object tuple_of(const Plan& p, int64_t itemsize) {
  return named_tuple("Plan", p.kernel, p.reason, p.seconds, p.live_share, p.regions, p.dense_flops, p.bytes_floor,
                     p.workspace, py::tuple(list_of(p.candidates)), tuple_of(p.boxes, itemsize));
}

// An entry of a list, by its name.
template <class T>
static const T& named(std::span<const T> all, const std::string& name) {
  for (const T& each : all)
    if (name == each.name) return each;
  throw py::value_error("no rate or condition is named " + name);
}

template <class T>
static T one_of(const std::string& name, std::initializer_list<std::pair<const char*, T>> all) {
  for (const auto& [known, value] : all)
    if (name == known) return value;
  throw py::value_error("the planner knows no " + name);
}

static Exception exception_of(const py::dict& d) {
  Exception e;
  e.of = named(rate_names(), d["of"].cast<std::string>()).value;
  e.rate = d["rate"].cast<double>();
  if (d.contains("skips")) e.skips = d["skips"].cast<int64_t>();
  for (const auto& [name, limit] : d["when"].cast<py::dict>())
    e.when.emplace_back(&named(conditions(), name.cast<std::string>()), limit.cast<double>());
  return e;
}

static DeviceKind device_kind_of(const std::string& name) {
  return one_of<DeviceKind>(name,
                            {{"cpu", DeviceKind::cpu}, {"cuda", DeviceKind::cuda}, {"triton", DeviceKind::triton}});
}

// devices.py's Device, by the names of its fields.
static Device device_of(const py::dict& d) {
  Device device;
  device.kind = device_kind_of(d["kind"].cast<std::string>());
  device.threads = d["threads"].cast<int64_t>();
  const auto rates = d["rates"].cast<py::dict>();
  for (const RateName& r : rate_names())
    if (device.kind == DeviceKind::cpu ? r.cpu : r.gpu) device.rates.*r.value = rates[r.name].cast<double>();
  for (const auto& e : rates["exceptions"]) device.rates.exceptions.push_back(exception_of(e.cast<py::dict>()));
  device.multiprocessors = d["multiprocessors"].cast<int64_t>();
  device.math = {d["capability"].cast<int64_t>(),
                 one_of<Precision>(d["precision"].cast<std::string>(), {{"double", Precision::f64},
                                                                        {"float", Precision::f32},
                                                                        {"tf32", Precision::tf32},
                                                                        {"half", Precision::half}})};
  return device;
}

static void bind_geometry(py::module_& m) {
  m.def("convolution", [](const std::string& kind, int64_t n, int64_t c, int64_t k, int64_t groups, const Sizes& in,
                          const Sizes& kernel, const Sizes& stride, const Sizes& dilation, const Sizes& pad_lo,
                          const Sizes& pad_hi, const Sizes& out) {
    return axes_of(make_problem(kind_of(kind), n, c, k, groups, {in, kernel, stride, dilation, pad_lo, pad_hi}, out));
  });
  m.def("transposed", [](int64_t n, int64_t k, int64_t c, int64_t groups, const Sizes& in, const Sizes& kernel,
                         const Sizes& stride, const Sizes& dilation, const Sizes& pad_lo, const Sizes& pad_hi,
                         const Sizes& output_padding) {
    return axes_of(make_transposed(n, k, c, groups, {in, kernel, stride, dilation, pad_lo, pad_hi}, output_padding));
  });
  m.def("axis_phases", [](const std::string& kind, const AxisFields& axis) {
    py::list all;
    for (const AxisPhase& p : axis_phases(kind_of(kind), axis_of(axis))) all.append(tuple_of(p));
    return py::tuple(all);
  });
  m.def("live_share", [](const std::string& kind, const AxesFields& axes) {
    const Problem p = problem_of(kind, 1, 1, 1, 1, axes);
    return phases(p).live_share(p);
  });
  m.def("regions", [](const std::string& kind, const AxesFields& axes) {
    py::list all;
    for (const Region& r : regions(phases(problem_of(kind, 1, 1, 1, 1, axes))))
      all.append(py::make_tuple(r.phase, py::tuple(py::cast(r.begin)), py::tuple(py::cast(r.end)),
                                py::tuple(py::cast(r.tap_begin)), py::tuple(py::cast(r.tap_end))));
    return all;
  });
  m.def("region_taps", [](const std::string& kind, const AxesFields& axes, int64_t region) {
    const Problem p = problem_of(kind, 1, 1, 1, 1, axes);
    const Phases all = phases(p);
    const Region r = regions(all).at(region);
    py::list out;
    for (const Tap& t : taps(p, all[r.phase], r)) out.append(py::make_tuple(t.index, t.delta, t.begin, t.end));
    return out;
  });
}

static void bind_planner(py::module_& m) {
  m.def("plan", [](const std::string& kind, int64_t n, int64_t c, int64_t k, int64_t groups, const AxesFields& axes,
                   const py::dict& device, int64_t itemsize, bool needs_grad, int64_t workspace_limit) {
    const Problem p = problem_of(kind, n, c, k, groups, axes);
    return tuple_of(plan({p, itemsize, needs_grad, workspace_limit}, device_of(device)), itemsize);
  });
  m.def("plan_call", [](const CallFields& call, const py::dict& device, int64_t itemsize, bool needs_grad) {
    return tuple_of(plan({problem_of_call(call), itemsize, needs_grad}, device_of(device)), itemsize);
  });
  m.def("runnable", [](const std::string& kind, int64_t n, int64_t c, int64_t k, int64_t groups, const AxesFields& axes,
                       const py::dict& device, int64_t itemsize) {
    return list_of(runnable({problem_of(kind, n, c, k, groups, axes), itemsize}, device_of(device)));
  });
  m.def("plan_branches", [](const std::vector<ProblemFields>& problems, const py::dict& device, int64_t itemsize,
                            bool channels_last, bool relu, int64_t others) {
    return tuple_of(plan_branches({problems_of(problems), itemsize, channels_last, relu, others}, device_of(device)),
                    itemsize);
  });
  m.def("plan_context",
        [](int64_t n, int64_t c, int64_t h, int64_t w, const Sizes& reach, int64_t itemsize, int64_t multiprocessors,
           int64_t shared_memory, int64_t capability, const std::function<double()>& by_layers) {
          const ContextDecision d =
              plan_context({n, c, h, w, reach, itemsize}, {multiprocessors, capability, shared_memory}, by_layers);
          return named_tuple("ContextPlan", d.together ? d.one.cluster : 0, d.one.rows, d.one.shared_bytes,
                             d.one.seconds, d.by_layers, d.reason);
        });
  m.attr("MARGIN") = kMargin;
  m.def("kernels", [](const std::string& kind) { return kernel_names(device_kind_of(kind)); });
  // What the files of dispatch/machines consist of: name -> (unit, whether a CPU has it, whether a GPU has it).
  m.def("rates", [] {
    py::dict all;
    for (const RateName& r : rate_names()) {
      const char* const units[] = {"operations", "bytes", "seconds", "count"};
      all[r.name] = py::make_tuple(units[static_cast<size_t>(r.unit)], r.cpu, r.gpu);
    }
    return all;
  });
  m.def("conditions", [] {
    std::vector<std::string> all;
    for (const Condition& c : conditions()) all.emplace_back(c.name);
    return all;
  });
}

static void bind_boxes(py::module_& m) {
  m.def("plan_boxes",
        [](const std::vector<ProblemFields>& problems, int64_t itemsize, int64_t multiprocessors, double rate) {
          return tuple_of(plan_boxes({problems_of(problems), itemsize, multiprocessors, rate}), itemsize);
        });
  m.def("boxes_cannot", [](const std::string& kind, int64_t n, int64_t c, int64_t k, int64_t groups,
                           const AxesFields& axes, int64_t itemsize) {
    const Problem p = problem_of(kind, n, c, k, groups, axes);
    const char* why = p.kind == Kind::weight_grad ? weight_boxes_cannot(p, itemsize) : boxes_cannot(p, itemsize);
    return std::string(why ? why : "");
  });
  m.def("plan_weight_boxes",
        [](int64_t n, int64_t c, int64_t k, const AxesFields& axes, int64_t multiprocessors, double rate) {
          const WeightBoxPlan p = plan_weight_boxes(problem_of("weight_grad", n, c, k, 1, axes), multiprocessors, rate);
          return py::make_tuple(py::tuple(py::cast(p.box.size)), p.box.images, p.columns, p.splits, p.steps, p.seconds);
        });
  m.def("cut_axis", [](const std::string& kind, const AxisFields& axis, int64_t size) {
    py::list all;
    for (const AxisPhase& p : axis_phases(kind_of(kind), axis_of(axis))) {
      py::list runs, pieces;
      const AxisCut cut = cut_axis(p, size);
      for (const AxisSegment& s : cut.runs) runs.append(py::make_tuple(s.begin, s.end, s.tap_begin, s.tap_end));
      for (const Pieces& n : cut.pieces) pieces.append(py::make_tuple(n.taps, n.count));
      all.append(py::make_tuple(runs, pieces));
    }
    return all;
  });
  m.def("tilings", [](const std::string& kind, int64_t n, int64_t c, int64_t k, const AxesFields& axes, int64_t rows,
                      int64_t columns, int64_t multiprocessors) {
    py::list all;
    for (const Tiling& t : tilings(problem_of(kind, n, c, k, 1, axes), {rows, columns, multiprocessors}))
      all.append(py::make_tuple(t.name, py::tuple(py::cast(t.box)), t.batch, t.tiles, t.work, t.finish));
    return all;
  });
}

PYBIND11_MODULE(_C, m) {
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const ArgumentError& e) {
      py::set_error(py::module_::import("atrousops.common.checks").attr("ArgumentError"), e.what());
    }
  });
  m.doc() = "atrousops: planner and build facts";
  m.attr("torch_built") = ATROUSOPS_TORCH_BUILT;
  m.attr("torch_target") = py::int_(static_cast<unsigned long long>(ATROUSOPS_TORCH_TARGET));
  m.attr("compiler") = ATROUSOPS_COMPILER;
  m.attr("isas") = ATROUSOPS_ISAS;
  bind_geometry(m);
  bind_planner(m);
  bind_boxes(m);
}
