// What must hold before a program may be replayed: its arguments fit, and what its function saw in
// Python is as it was.
#include <algorithm>
#include <unordered_map>

#include "program.h"

namespace gs {

namespace {

// Of NumPy's numbers: whether they have the same bytes.
bool same_number(PyObject* a, PyObject* b) {
  Py_buffer x, y;
  bool same = false;
  if (PyObject_GetBuffer(a, &x, PyBUF_SIMPLE) == 0) {
    if (PyObject_GetBuffer(b, &y, PyBUF_SIMPLE) == 0) {
      same = x.len == y.len && memcmp(x.buf, y.buf, (size_t)x.len) == 0;
      PyBuffer_Release(&y);
    }
    PyBuffer_Release(&x);
  }
  if (PyErr_Occurred()) PyErr_Clear();
  return same;
}

bool numpy_number(PyObject* o) {
  static PyTypeObject* type =
      (PyTypeObject*)py::object(py::module_::import("numpy").attr("number")).release().ptr();
  return PyObject_TypeCheck(o, type);
}

}  // namespace

bool same_value(PyObject* a, PyObject* b) {
  if (a == b) return true;
  if (Py_TYPE(a) != Py_TYPE(b)) return false;
  if (PyFloat_Check(a)) {
    const double x = PyFloat_AS_DOUBLE(a), y = PyFloat_AS_DOUBLE(b);
    return memcmp(&x, &y, sizeof x) == 0;
  }
  if (PyComplex_Check(a)) {
    const Py_complex x = PyComplex_AsCComplex(a), y = PyComplex_AsCComplex(b);
    return memcmp(&x, &y, sizeof x) == 0;
  }
  if (PyTuple_Check(a)) {
    const Py_ssize_t n = PyTuple_GET_SIZE(a);
    bool same = n == PyTuple_GET_SIZE(b);
    for (Py_ssize_t i = 0; same && i < n; ++i)
      same = same_value(PyTuple_GET_ITEM(a, i), PyTuple_GET_ITEM(b, i));
    return same;
  }
  if (!(PyLong_Check(a) || PyUnicode_Check(a) || PyBytes_Check(a)))
    return numpy_number(a) && same_number(a, b);
  int r = PyObject_RichCompareBool(a, b, Py_EQ);
  if (r < 0) PyErr_Clear();
  return r == 1;
}

// The dict of an object, which need not be the one that it had.
PyObject* dict_of(PyObject* o) {
#if PY_VERSION_HEX < 0x030C0000
  PyObject** at = _PyObject_GetDictPtr(o);
  return at ? *at : nullptr;
#else
  PyObject* d = PyObject_GenericGetDict(o, nullptr);
  if (!d)
    PyErr_Clear();
  else
    Py_DECREF(d);  // the object holds it
  return d;
#endif
}

// A number for the hooks on a leaf's gradient: 0 without any, another one when some come or go.
int64_t hooks_of(const Tensor* t) {
  if (!t->accumulator || !t->accumulator->hooks || !PyDict_Check(t->accumulator->hooks)) return 0;
  int64_t sum = 0;
  PyObject *key, *table, *id, *fn;
  for (Py_ssize_t i = 0; PyDict_Next(t->accumulator->hooks, &i, &key, &table);)
    if (PyDict_Check(table))
      for (Py_ssize_t j = 0; PyDict_Next(table, &j, &id, &fn);)
        sum = sum * 31 + 1 + PyLong_AsLongLong(id);
  return sum;
}

namespace {

// Whether walking over an object gives these values, in this order.
bool same_order(PyObject* owner, PyObject* values) {
  PyObject* it = PyObject_GetIter(owner);
  Py_ssize_t n = 0;
  bool all = it != nullptr;
  while (all) {
    PyObject* x = PyIter_Next(it);
    if (!x) break;
    all = n < PyTuple_GET_SIZE(values) && same_value(x, PyTuple_GET_ITEM(values, n));
    ++n;
    Py_DECREF(x);
  }
  Py_XDECREF(it);
  if (PyErr_Occurred()) {
    PyErr_Clear();
    return false;
  }
  return all && n == PyTuple_GET_SIZE(values);
}

// Whether a dict still has these keys in this order, which is the order of whoever walks over it.
bool same_keys(PyObject* dict, PyObject* keys) {
  if (PyDict_GET_SIZE(dict) != PyTuple_GET_SIZE(keys)) return false;
  Py_ssize_t n = 0;
  if (PyDict_CheckExact(dict)) {
    PyObject *key, *value;
    for (Py_ssize_t i = 0; PyDict_Next(dict, &i, &key, &value); ++n)
      if (!same_value(key, PyTuple_GET_ITEM(keys, n))) return false;
    return true;
  }
  return same_order(dict, keys);
}

// Whether a buffer still has this format, this shape and these bytes (in C order).
bool same_content(PyObject* owner, PyObject* content) {
  Py_buffer b;
  if (PyObject_GetBuffer(owner, &b, PyBUF_FULL_RO) < 0) {
    PyErr_Clear();
    return false;
  }
  PyObject *format = PyTuple_GET_ITEM(content, 0), *shape = PyTuple_GET_ITEM(content, 1),
           *bytes = PyTuple_GET_ITEM(content, 2);
  bool same = b.len == PyBytes_GET_SIZE(bytes) && b.ndim == PyTuple_GET_SIZE(shape) &&
              PyUnicode_CompareWithASCIIString(format, b.format ? b.format : "B") == 0;
  for (int i = 0; same && i < b.ndim; ++i)
    same = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, i)) == b.shape[i];
  if (same && PyBuffer_IsContiguous(&b, 'C')) {
    same = memcmp(b.buf, PyBytes_AS_STRING(bytes), (size_t)b.len) == 0;
  } else if (same) {
    std::vector<char> copy((size_t)b.len);
    same = PyBuffer_ToContiguous(copy.data(), &b, b.len, 'C') == 0 &&
           memcmp(copy.data(), PyBytes_AS_STRING(bytes), copy.size()) == 0;
    if (PyErr_Occurred()) PyErr_Clear();
  }
  PyBuffer_Release(&b);
  return same;
}

PyObject* or_none(PyObject* o) { return o ? o : Py_None; }

}  // namespace

// Whether code could find more on an argument than its array.
bool carries_more(PyObject* tensor) {
  const PyObject* grad = ((Tensor*)tensor)->grad;
  if (grad && grad != Py_None) return true;
  PyObject* own = dict_of(tensor);
  return own && PyDict_Check(own) && PyDict_GET_SIZE(own) > 0;
}

// Binds memory of the program to another array, unless that lies in other memory of the program.
bool PyProgram::moves_to(int object, PyObject* array) {
  char* to = proxy_of(array)->data;
  const MemoryObject& o = p.objects[(size_t)object];
  if ((size_t)bytes_of(array) != o.bytes || (o.written && !writeable(array))) return false;
  for (size_t i = 0; i < p.objects.size(); ++i)
    if ((int)i != object && p.bound[i] && to < p.bound[i] + p.objects[i].bytes &&
        p.bound[i] < to + o.bytes)
      return false;
  p.bind(object, to);
  add_fixed();
  return true;
}

// Gradients that are other arrays than at the last call: what the old ones occupied is free by now,
// and others, inputs too, may lie there.
void PyProgram::forget_gradients() {
  bool moved = false;
  for (size_t i : gradients) {
    const Guard& g = guards[i];
    PyObject* v = ((Tensor*)g.owner.ptr())->grad;
    char*& bound = p.bound[(size_t)g.object];
    if (bound && v && is_tensor(v) && ((Tensor*)v)->data && is_ndarray(((Tensor*)v)->data) &&
        proxy_of(((Tensor*)v)->data)->data == bound)
      continue;
    bound = nullptr;
    moved = true;
  }
  if (moved) add_fixed();
}

bool PyProgram::guard_holds(Guard& g) {
  switch (g.kind) {
    case Guard::kItem: {
      PyObject* v = PyDict_GetItem(g.owner.ptr(), g.key.ptr());
      return v == g.value.ptr() || (v && g.value.ptr() && same_value(v, g.value.ptr()));
    }
    case Guard::kSize:
      return PyDict_GET_SIZE(g.owner.ptr()) == g.number;
    case Guard::kKeys:
      return same_keys(g.owner.ptr(), g.key.ptr());
    case Guard::kPlace:
      return (PyObject*)Py_TYPE(g.owner.ptr()) == g.key.ptr() &&
             dict_of(g.owner.ptr()) == g.value.ptr();
    case Guard::kCell: {
      PyObject* v = PyCell_GET(g.owner.ptr());
      return v == g.value.ptr() || (v && same_value(v, g.value.ptr()));
    }
    case Guard::kList: {
      const Py_ssize_t n = PyTuple_GET_SIZE(g.key.ptr());
      if (PyList_GET_SIZE(g.owner.ptr()) != n) return false;
      for (Py_ssize_t i = 0; i < n; ++i)
        if (!same_value(PyList_GET_ITEM(g.owner.ptr(), i), PyTuple_GET_ITEM(g.key.ptr(), i)))
          return false;
      return true;
    }
    case Guard::kType: {
      PyObject* v = _PyType_Lookup((PyTypeObject*)g.owner.ptr(), g.key.ptr());
      return v == g.value.ptr() || (v && g.value.ptr() && same_value(v, g.value.ptr()));
    }
    case Guard::kFunction:
      return PyFunction_GET_CODE(g.owner.ptr()) == PyTuple_GET_ITEM(g.key.ptr(), 0) &&
             or_none(PyFunction_GET_DEFAULTS(g.owner.ptr())) == PyTuple_GET_ITEM(g.key.ptr(), 1) &&
             or_none(PyFunction_GET_KW_DEFAULTS(g.owner.ptr())) == PyTuple_GET_ITEM(g.key.ptr(), 2);
    case Guard::kOrder:
      return same_order(g.owner.ptr(), g.key.ptr());
    case Guard::kContent:
      return same_content(g.owner.ptr(), g.key.ptr());
    case Guard::kContext: {
      PyObject* v = nullptr;
      if (PyContextVar_Get(g.owner.ptr(), nullptr, &v) < 0) {
        PyErr_Clear();
        return false;
      }
      const bool same = v == g.value.ptr() || (v && g.value.ptr() && same_value(v, g.value.ptr()));
      Py_XDECREF(v);
      return same;
    }
    case Guard::kAttribute: {
      PyObject* v = PyObject_GetAttr(g.owner.ptr(), g.key.ptr());
      if (!v) {
        PyErr_Clear();
        return !g.value.ptr();
      }
      if (!g.value.ptr()) {
        Py_DECREF(v);
        return false;
      }
      bool same = v == g.value.ptr() || same_value(v, g.value.ptr());
      Py_DECREF(v);
      return same;
    }
    case Guard::kGrad: {
      PyObject* v = ((Tensor*)g.owner.ptr())->grad;
      return v == g.value.ptr() || (!v && g.value.is_none());
    }
    case Guard::kHasGrad: {
      PyObject* v = ((Tensor*)g.owner.ptr())->grad;
      return v && v != Py_None;
    }
    case Guard::kGradient: {
      PyObject* v = ((Tensor*)g.owner.ptr())->grad;
      if (!v || !is_tensor(v)) return false;
      v = ((Tensor*)v)->data;
      if (!v || !is_ndarray(v) || !same_kind_as(v, g.value) || !c_contiguous(v)) return false;
      return proxy_of(v)->data == p.bound[(size_t)g.object] || moves_to(g.object, v);
    }
    case Guard::kTensor: {
      const Tensor* t = (const Tensor*)g.owner.ptr();
      if (t->requires_grad != (g.number != 0) || hooks_of(t) != g.hooks) return false;
      PyObject* v = t->data;
      if (v == g.value.ptr()) return true;
      if (!v) return false;
      py::object now = py::reinterpret_borrow<py::object>(v);
      if (g.object < 0 || !is_array(v)) return false;
      // Another array of the same kind: the program moves to it.
      const auto *a = proxy_of(v), *b = proxy_of(g.value.ptr());
      if (a->descr != b->descr || a->nd != b->nd || !c_contiguous(v) ||
          !c_contiguous(g.value.ptr()))
        return false;
      for (int i = 0; i < a->nd; ++i)
        if (a->dimensions[i] != b->dimensions[i]) return false;
      if (b->data != p.bound[(size_t)g.object] || !moves_to(g.object, v)) return false;
      g.value = now;
      return true;
    }
  }
  return false;
}

// Whether the program fits these arguments and the state of everything that it was recorded with.
bool PyProgram::check(py::handle leaves) {
  if (gone || !PyTuple_Check(leaves.ptr()) ||
      PyTuple_GET_SIZE(leaves.ptr()) != (Py_ssize_t)inputs.size()) {
    reason = "another number of arguments";
    return false;
  }
  if (sorted != guards.size()) sort_guards();
  if (!gradients.empty()) forget_gradients();
  for (size_t i = 0; i < inputs.size(); ++i) {
    Input& in = inputs[i];
    PyObject* o = PyTuple_GET_ITEM(leaves.ptr(), (Py_ssize_t)i);
    if (!in.tensor) {
      if (!same_value(o, in.value.ptr())) {
        reason = "argument " + std::to_string(i) + " has another value";
        return false;
      }
      continue;
    }
    if ((PyObject*)Py_TYPE(o) != in.type.ptr()) {
      reason = "argument " + std::to_string(i) + " has another type";
      return false;
    }
    // The program was recorded with this very type, which is a Tensor.
    py::handle data = ((Tensor*)o)->data;
    if (!data || !is_ndarray(data.ptr())) {
      reason = "argument " + std::to_string(i) + " has no array";
      return false;
    }
    const auto* a = proxy_of(data.ptr());
    const auto* dtype = py::detail::array_descriptor_proxy(a->descr);
    bool fits = a->nd == (int)in.shape.size() && c_contiguous(data.ptr()) &&
                dtype->type_num == in.type_num && dtype->byteorder != '>';
    for (int d = 0; fits && d < a->nd; ++d) fits = a->dimensions[d] == in.shape[(size_t)d];
    if (!fits) {
      reason = "argument " + std::to_string(i) + " has another shape, dtype or layout";
      return false;
    }
    if (((Tensor*)o)->requires_grad) {
      reason = "argument " + std::to_string(i) + " requires a gradient";
      return false;
    }
    if (plain_arguments && carries_more(o)) {
      reason = "argument " + std::to_string(i) + " has attributes or a gradient";
      return false;
    }
    if (in.same_as >= 0) {
      const Input& other = inputs[(size_t)in.same_as];
      if (other.object >= 0 && p.bound[(size_t)other.object] != a->data) {
        reason = "arguments that were one tensor are two now";
        return false;
      }
      continue;
    }
    if (in.object < 0) continue;
    if (in.written && !writeable(data.ptr())) {
      reason = "argument " + std::to_string(i) + " is read-only";
      return false;
    }
    char* high = a->data + p.objects[(size_t)in.object].bytes;
    if (overlaps_fixed(a->data, high)) {
      reason = "argument " + std::to_string(i) + " shares memory with a parameter or state";
      return false;
    }
    if ((uintptr_t)a->data % (uintptr_t)item_size(data.ptr()) != 0) {
      reason = "argument " + std::to_string(i) + " is not aligned";
      return false;
    }
    if (writes_inputs)
      for (size_t j = 0; j < i; ++j)
        if (inputs[j].object >= 0) {
          char* other = p.bound[(size_t)inputs[j].object];
          if (other < high && a->data < other + p.objects[(size_t)inputs[j].object].bytes) {
            reason = "arguments share memory";
            return false;
          }
        }
    p.bind(in.object, a->data);
  }
  return guards_hold();
}

void PyProgram::sort_guards() {
  by_dict.clear();
  not_on_dicts.clear();
  gradients.clear();
  stepped.clear();
  std::unordered_map<PyObject*, size_t> at;
  for (size_t i = 0; i < guards.size(); ++i) {
    const Guard& g = guards[i];
    // an OrderedDict's order is its own, without a version
    const bool on_dict = g.kind == Guard::kItem || g.kind == Guard::kSize ||
                         (g.kind == Guard::kKeys && PyDict_CheckExact(g.owner.ptr()));
    if (!on_dict) {
      not_on_dicts.push_back(i);
      if (g.kind == Guard::kGradient) gradients.push_back(i);
      continue;
    }
    auto it = at.emplace(g.owner.ptr(), by_dict.size()).first;
    if (it->second == by_dict.size()) by_dict.push_back(DictGuards{g.owner.ptr(), 0, {}});
    by_dict[it->second].guards.push_back(i);
  }
  for (Stepper& s : steppers)
    for (auto& set : s.sets)
      for (py::dict& o : set.owns) {
        auto it = at.find(o.ptr());
        if (it != at.end()) stepped.push_back(it->second);
      }
  sorted = guards.size();
}

bool PyProgram::guards_hold() {
  auto holds = [this](size_t i) {
    if (guard_holds(guards[i])) return true;
    reason = guards[i].name + " has changed";
    return false;
  };
  for (DictGuards& d : by_dict) {
    if (kDictVersions && d.version == version_of(d.dict)) continue;
    d.version = 0;
    for (size_t i : d.guards)
      if (!holds(i)) return false;
    d.version = version_of(d.dict);
  }
  for (size_t i : not_on_dicts)
    if (!holds(i)) return false;
  return true;
}

}  // namespace gs
