#include "straight.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <memory>
#include <unordered_map>

#include "core/subnormals.h"
#include "dlpack.h"

namespace py = pybind11;

namespace atrousops {
namespace {

// Behind a convolution that has filled the caches, looking an attribute up by name costs more than reading it.
struct Attribute {
  py::object name;
  getter get = nullptr;
  void* closure = nullptr;

  Attribute(const py::handle& type, const char* n) : name(py::str(n)) {
    const py::object descriptor = type.attr(n);
    if (!Py_IS_TYPE(descriptor.ptr(), &PyGetSetDescr_Type)) return;
    const PyGetSetDef* def = reinterpret_cast<PyGetSetDescrObject*>(descriptor.ptr())->d_getset;
    get = def->get;
    closure = def->closure;
  }
  // Null, with an error set, where it cannot be read.
  py::object of(PyObject* o) const {
    return py::reinterpret_steal<py::object>(get != nullptr ? get(o, closure) : PyObject_GetAttr(o, name.ptr()));
  }
  bool holds(PyObject* o) const { return of(o).ptr() == Py_True; }
};

bool says(const py::object& f) {
  return py::reinterpret_steal<py::object>(PyObject_CallNoArgs(f.ptr())).ptr() == Py_True;
}

constexpr int32_t kRank = 5;
constexpr size_t kMost = 4096;
// call, input, weight and bias.
constexpr Py_ssize_t kTensors = 4;

// What tells one call from another, without its further arguments; compared as bytes. The weight by its address, its
// data and its shape: a weak reference would forbid torch.utils.swap_tensors.
struct Key {
  PyObject *call, *weight;
  const void* data;
  uint32_t dtype, flags;
  int32_t rank, weight_rank;
  std::array<int64_t, kRank> size, stride, weight_size;

  bool operator==(const Key& o) const { return std::memcmp(this, &o, sizeof(Key)) == 0; }
};
struct KeyHash {
  size_t operator()(const Key& k) const {
    uint64_t h = reinterpret_cast<uintptr_t>(k.weight) ^ k.dtype ^ uint64_t{k.flags} << 40;
    for (int64_t w : k.size) h = (h ^ static_cast<uint64_t>(w)) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
  }
};

// One block of elements in `step` is free of subnormals, as far as the tensor can be read.
bool is_clean(const dlpack::Tensor& t, int64_t step) {
  int64_t elements = 1, last = 0;
  for (int32_t i = 0; i < t.rank; ++i) {
    elements *= t.size[i];
    last += (t.size[i] - 1) * t.stride[i];
  }
  if (last + 1 != elements) return false;
  const void* data = static_cast<const char*>(t.data) + t.offset;
  switch (t.dtype) {
    case dlpack::kFloat64: return !core::any_subnormal<core::kFloat64>(data, 0, elements, step);
    case dlpack::kFloat32: return !core::any_subnormal<core::kFloat32>(data, 0, elements, step);
    case dlpack::kBFloat16: return !core::any_subnormal<core::kBFloat16>(data, 0, elements, step);
    case dlpack::kFloat16: return !core::any_subnormal<core::kFloat16>(data, 0, elements, step);
    default: return false;
  }
}

// What goes straight to `aten` with `args` behind its three tensors.
struct Known {
  int64_t version, step;
  py::object aten, call;
  py::tuple args;
};

class Straight {
 public:
  Straight(const dlpack::ExchangeApi* api, const py::object& tensor, py::tuple types, py::list forced,
           py::object grad_enabled, py::object autocast, py::object otherwise)
      : api_(api),
        types_(std::move(types)),
        forced_(std::move(forced)),
        grad_enabled_(std::move(grad_enabled)),
        autocast_(std::move(autocast)),
        otherwise_(std::move(otherwise)),
        requires_grad_(tensor, "requires_grad"),
        version_(tensor, "_version") {}

  // PyTorch's operator, or null: `found` is not looked at behind what may run Python code, and that come here again.
  py::object find(PyObject* const* a, Py_ssize_t n) const {
    Key key;
    dlpack::Tensor t;
    int64_t version = 0;
    if (!read(a, key, t, version)) return {};
    const auto found = calls_.find(key);
    if (found == calls_.end() || found->second.version != version) return {};
    const py::object aten = found->second.aten;
    const py::tuple args = found->second.args;
    const int64_t step = found->second.step;
    if (PyTuple_GET_SIZE(args.ptr()) != n - kTensors) return {};
    for (Py_ssize_t i = kTensors; i < n; ++i)
      if (PyObject_RichCompareBool(PyTuple_GET_ITEM(args.ptr(), i - kTensors), a[i], Py_EQ) != 1) return {};
    return step == 0 || is_clean(t, step) ? aten : py::object();
  }

  PyObject* run(PyObject* const* a, Py_ssize_t n) const {
    if (const py::object aten = find(a, n)) {
      PyObject* result = PyObject_Vectorcall(aten.ptr(), a + 1, n - 1, nullptr);
      if (result != nullptr || !PyErr_ExceptionMatches(PyExc_Exception)) return result;
    }
    // What cannot be read is not known, and what PyTorch refused is refused there with a better word.
    PyErr_Clear();
    return PyObject_Vectorcall(otherwise_.ptr(), a, n, nullptr);
  }

  void note(PyObject* const* a) {
    Key key;
    dlpack::Tensor t;
    int64_t version = 0;
    const int64_t step = PyLong_AsLongLong(a[4]);
    if (step < 0 || !read(a, key, t, version)) return;
    const auto hold = [](PyObject* o) { return py::reinterpret_borrow<py::object>(o); };
    const py::object aten = py::getattr(a[0], "aten", py::none());
    if (!PyTuple_Check(a[3])) return;
    if (calls_.size() >= kMost) forget();
    calls_.insert_or_assign(key, Known{version, step, aten, hold(a[0]), py::reinterpret_borrow<py::tuple>(a[3])});
  }

  // What is dropped may run Python code, and that come here again.
  void forget() { decltype(calls_)().swap(calls_); }

 private:
  bool is_plain(PyObject* o) const {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(types_.ptr()); ++i)
      if (PyTuple_GET_ITEM(types_.ptr(), i) == reinterpret_cast<PyObject*>(Py_TYPE(o))) return true;
    return false;
  }

  // False, perhaps with an error set, for what is not remembered.
  bool read(PyObject* const* a, Key& key, dlpack::Tensor& t, int64_t& version) const {
    PyObject *const input = a[1], *const weight = a[2];
    if (PyList_GET_ITEM(forced_.ptr(), 0) != Py_None || !is_plain(input) || !is_plain(weight)) return false;
    dlpack::Tensor w;
    if (api_->tensor_from_object(input, &t) != 0 || t.device_type != dlpack::kCpu || t.rank > kRank) return false;
    if (api_->tensor_from_object(weight, &w) != 0 || w.device_type != dlpack::kCpu || w.rank > kRank) return false;
    if (t.rank > 0 && t.stride == nullptr) return false;
    const py::object stamp = version_.of(weight);
    if (!stamp) return false;
    version = PyLong_AsLongLong(stamp.ptr());
    const bool graded = says(grad_enabled_) && (requires_grad_.holds(input) || requires_grad_.holds(weight));
    const char* data = static_cast<const char*>(w.data) + w.offset;
    key = {a[0], weight, data, t.dtype, graded + 2u * says(autocast_), t.rank, w.rank, {}, {}, {}};
    std::copy_n(w.size, w.rank, key.weight_size.begin());
    std::copy_n(t.size, t.rank, key.size.begin());
    std::copy_n(t.stride, t.rank, key.stride.begin());
    return PyErr_Occurred() == nullptr;
  }

  const dlpack::ExchangeApi* api_;
  py::tuple types_;
  py::list forced_;
  py::object grad_enabled_, autocast_, otherwise_;
  Attribute requires_grad_, version_;
  std::unordered_map<Key, Known, KeyHash> calls_;
};

Straight& straight_of(PyObject* self) { return *static_cast<Straight*>(PyCapsule_GetPointer(self, nullptr)); }

bool takes(const char* what, bool right) {
  if (!right) PyErr_Format(PyExc_TypeError, "takes %s", what);
  return right;
}

PyObject* run(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  return takes("call, input, weight, bias and args", n >= kTensors) ? straight_of(self).run(args, n) : nullptr;
}

PyObject* known(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  if (!takes("call, input, weight, bias and args", n >= kTensors)) return nullptr;
  const bool yes = static_cast<bool>(straight_of(self).find(args, n));
  PyErr_Clear();
  return PyBool_FromLong(yes);
}

PyObject* note(PyObject* self, PyObject* const* args, Py_ssize_t n) {
  if (!takes("call, input, weight, args and step", n == 5)) return nullptr;
  straight_of(self).note(args);
  PyErr_Clear();
  Py_RETURN_NONE;
}

PyObject* forget(PyObject* self, PyObject*) {
  straight_of(self).forget();
  Py_RETURN_NONE;
}

PyCFunction fast(PyObject* (*f)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f));
}

// Not pybind11's functions, which look for overloads and convert arguments.
PyMethodDef methods[] = {
    {"run", fast(&run), METH_FASTCALL, nullptr},
    {"known", fast(&known), METH_FASTCALL, nullptr},
    {"note", fast(&note), METH_FASTCALL, nullptr},
    {"forget", &forget, METH_NOARGS, nullptr},
};

py::object straight(const py::object& tensor, const py::tuple& types, const py::list& forced,
                    const py::object& grad_enabled, const py::object& autocast, const py::object& otherwise) {
  const dlpack::ExchangeApi* api = dlpack::exchange_api(tensor);
  if (api == nullptr) return py::none();
  auto made = std::make_unique<Straight>(api, tensor, types, forced, grad_enabled, autocast, otherwise);
  const py::capsule owner(made.release(), [](void* p) { delete static_cast<Straight*>(p); });
  py::tuple functions(std::size(methods));
  for (size_t i = 0; i < std::size(methods); ++i)
    functions[i] = py::reinterpret_steal<py::object>(PyCFunction_New(&methods[i], owner.ptr()));
  return functions;
}

}  // namespace

void bind_straight(py::module_& m) { m.def("straight", &straight); }

}  // namespace atrousops
