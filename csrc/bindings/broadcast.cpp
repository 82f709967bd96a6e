#include "broadcast.h"

#include <string.h>

#include <cmath>

namespace gs {

namespace {

// [first, last) byte that the elements of a cover
void extent(const Array& a, const char** first, const char** last) {
  const char *lo = a.data, *hi = a.data;
  int64_t item = dtype_size(a.dtype);
  for (int d = 0; d < a.ndim; ++d) {
    int64_t reach = (a.shape[d] - 1) * a.strides[d] * item;
    (reach < 0 ? lo : hi) += reach;
  }
  *first = lo;
  *last = hi + item;
}

bool overlaps(const Array& a, const Array& b) {
  if (a.size == 0 || b.size == 0) return false;
  const char *a0, *a1, *b0, *b1;
  extent(a, &a0, &a1);
  extent(b, &b0, &b1);
  return a0 < b1 && b0 < a1;
}

bool same_elements(const Array& a, const Array& b) {
  if (a.data != b.data || a.ndim != b.ndim) return false;
  for (int d = 0; d < a.ndim; ++d)
    if (a.shape[d] != b.shape[d] || (a.shape[d] > 1 && a.strides[d] != b.strides[d])) return false;
  return true;
}

[[noreturn]] void cannot_broadcast(const Operand* args, int n, const char* op,
                                   const Array* target) {
  std::string s;
  int count = 0;
  for (int k = 0; k < n; ++k)
    if (!args[k].is_number) {
      s += (count ? " and " : "") + args[k].array.shape_text();
      ++count;
    }
  if (target)
    value_error(op, "inputs of shapes " + s + " do not broadcast to the shape " +
                        target->shape_text() + " of the tensor that is changed in place");
  value_error(op, "shapes " + s +
                      " do not broadcast: counted from the last axis, sizes must be equal or 1. "
                      "Reshape one of them");
}

}  // namespace

Operand operand(const Array& a) {
  Operand o;
  o.array = a;
  return o;
}

Operand operand(py::handle h, const char* op, const char* name, bool optional) {
  Operand o;
  PyObject* p = h.ptr();
  if (PyFloat_Check(p)) {
    o.is_number = true;
    o.d = PyFloat_AS_DOUBLE(p);
    return o;
  }
  if (PyBool_Check(p)) {
    o.is_number = o.is_int = o.is_bool = true;
    o.i = p == Py_True;
    o.d = (double)o.i;
    return o;
  }
  bool is_array = py::isinstance<py::array>(h);
  if (!is_array && PyLong_Check(p)) {
    int overflow = 0;
    o.is_number = o.is_int = true;
    o.i = PyLong_AsLongLongAndOverflow(p, &overflow);
    o.d = overflow ? PyLong_AsDouble(p) : (double)o.i;
    if (PyErr_Occurred()) {
      PyErr_Clear();
      value_error(op, std::string(name) + " is too large a number");
    }
    if (overflow) o.is_int = false;
    return o;
  }
  if (optional && h.is_none()) {
    o.absent = true;
    return o;
  }
  if (!is_array && PyIndex_Check(p)) {  // NumPy's integer scalars
    py::object n = py::reinterpret_steal<py::object>(PyNumber_Index(p));
    if (n) return operand(n, op, name, false);
    PyErr_Clear();
  } else if (!is_array && PyNumber_Check(p) && !PyComplex_Check(p)) {  // and its float scalars
    py::object n = py::reinterpret_steal<py::object>(PyNumber_Float(p));
    if (n) return operand(n, op, name, false);
    PyErr_Clear();
  }
  o.array = array_in(h, op, name);
  return o;
}

DType common_dtype(const Operand* args, int n, const char* op, const Array* target) {
  int found = target ? (int)target->dtype : -1;
  for (int k = 0; k < n; ++k) {
    if (args[k].is_number) continue;
    DType t = args[k].array.dtype;
    if (found >= 0 && found != t) {
      // The advice is the dtype that holds both; what is changed in place cannot be converted.
      const auto room = [](DType d) {
        return d == kBool ? 0 : d == kI32 ? 1 : d == kI64 ? 2 : d == kF32 ? 3 : 4;
      };
      const DType to = target || room((DType)found) > room(t) ? (DType)found : t;
      type_error(op, std::string("the inputs are ") + dtype_name((DType)found) + " and " +
                         dtype_name(t) +
                         "; dtypes are never mixed silently. Convert one with .astype('" +
                         dtype_name(to) + "')");
    }
    found = t;
  }
  if (found >= 0) return (DType)found;
  for (int k = 0; k < n; ++k)
    if (!args[k].is_int) return kF32;
  for (int k = 0; k < n; ++k)
    if (!args[k].is_bool) return kI64;
  return kBool;
}

void set_number(const Operand& number, DType t, const char* op, double* d, int64_t* i) {
  *d = number.d;
  *i = number.i;
  if (t == kF32 || t == kF64) return;
  if (std::abs(number.d) >= 0x1p63 && std::isfinite(number.d) && !number.is_int)
    value_error(op, "the number " + std::string(py::str(py::float_(number.d))) +
                        " does not fit into dtype " + dtype_name(t));
  if (!number.is_int)
    type_error(op, "the number " + std::string(py::str(py::float_(number.d))) +
                       " with a tensor of dtype " + dtype_name(t) +
                       " would lose its fraction. Convert the tensor with .float()");
  int64_t lo = t == kI32 ? INT32_MIN : (t == kI64 ? INT64_MIN : 0);
  int64_t hi = t == kI32 ? INT32_MAX : (t == kI64 ? INT64_MAX : (t == kU8 ? 255 : 1));
  if (number.i < lo || number.i > hi)
    value_error(
        op, "the number " + std::to_string(number.i) + " does not fit into dtype " + dtype_name(t));
}

void broadcast(Operand* args, int n, const char* op, DType t, Array* target, ElementwiseParams* p,
               Array* out) {
  // the common case: all arrays contiguous and of one shape
  const Array* first = target;
  bool plain = !target || target->contiguous;
  for (int k = 0; k < n && plain; ++k) {
    if (args[k].is_number) continue;
    const Array& a = args[k].array;
    if (!a.contiguous || (first && !same_shape(a, *first))) plain = false;
    if (target && plain && a.data != target->data && overlaps(a, *target)) plain = false;
    if (!first) first = &a;
  }
  if (plain && first) {
    if (!target) *out = array_new(t, first->ndim, first->shape);
    p->ndim = 1;
    p->shape[0] = first->size;
    for (int k = 0; k < n; ++k) p->strides[k][0] = args[k].is_number ? 0 : 1;
    p->strides[n][0] = 1;
    return;
  }
  int ndim = 0;
  int64_t shape[kMaxDims];
  for (int k = 0; k < n; ++k)
    if (!args[k].is_number && args[k].array.ndim > ndim) ndim = args[k].array.ndim;
  for (int d = 0; d < ndim; ++d) {
    shape[d] = 1;
    for (int k = 0; k < n; ++k) {
      const Array& a = args[k].array;
      int at = d - (ndim - a.ndim);
      if (args[k].is_number || at < 0 || a.shape[at] == 1) continue;
      if (shape[d] != 1 && shape[d] != a.shape[at]) cannot_broadcast(args, n, op, nullptr);
      shape[d] = a.shape[at];
    }
  }
  if (target) {
    if (ndim > target->ndim) cannot_broadcast(args, n, op, target);
    for (int d = 0; d < ndim; ++d)
      if (shape[d] != target->shape[target->ndim - ndim + d] && shape[d] != 1)
        cannot_broadcast(args, n, op, target);
    ndim = target->ndim;
    for (int d = 0; d < ndim; ++d) {
      shape[d] = target->shape[d];
      if (target->size > 0 && target->strides[d] == 0 && shape[d] > 1)
        value_error(op,
                    "the tensor that is changed in place is an expanded view: several of its "
                    "elements share one "
                    "place in memory. clone() it first");
    }
    for (int k = 0; k < n; ++k) {
      if (!args[k].is_number) args[k].array = apart(args[k].array, *target);
    }
  } else {
    *out = array_new(t, ndim, shape);
  }
  const Array& o = target ? *target : *out;
  for (int d = 0; d < ndim; ++d) {
    p->shape[d] = shape[d];
    p->strides[n][d] = o.strides[d];
    for (int k = 0; k < n; ++k) {
      const Array& a = args[k].array;
      int at = d - (ndim - a.ndim);
      p->strides[k][d] = args[k].is_number || at < 0 || a.shape[at] == 1 ? 0 : a.strides[at];
    }
  }
  p->ndim = coalesce(ndim, p->shape, n + 1, p->strides);
}

Array apart(const Array& a, const Array& target) {
  if (!overlaps(a, target) || (same_elements(a, target) && a.dtype == target.dtype)) return a;
  Array c = array_like(a);
  copy_into(a, c);
  return c;
}

py::object view_of(const Array& a, int ndim, const int64_t* shape, const int64_t* strides,
                   bool writeable) {
  auto& api = py::detail::npy_api::get();
  Py_intptr_t dims[kMaxDims], bytes[kMaxDims];
  int64_t item = dtype_size(a.dtype);
  for (int d = 0; d < ndim; ++d) {
    dims[d] = (Py_intptr_t)shape[d];
    bytes[d] = (Py_intptr_t)(strides[d] * item);
  }
  PyObject* descr = dtype_object(a.dtype);
  Py_INCREF(descr);
  PyObject* o =
      api.PyArray_NewFromDescr_(api.PyArray_Type_, descr, ndim, dims, bytes, a.data,
                                writeable ? py::detail::npy_api::NPY_ARRAY_WRITEABLE_ : 0, nullptr);
  if (!o) throw py::error_already_set();
  api.PyArray_SetBaseObject_(o, a.object.inc_ref().ptr());
  return py::reinterpret_steal<py::object>(o);
}

py::object expand(const Array& a, py::tuple shape) {
  int ndim = (int)shape.size();
  int64_t dims[kMaxDims], strides[kMaxDims];
  if (ndim > kMaxDims) value_error("expand", "at most 8 dimensions are supported");
  for (int d = 0; d < ndim; ++d) dims[d] = shape[d].cast<int64_t>();
  bool fits = ndim >= a.ndim;
  for (int d = 0; d < ndim && fits; ++d) {
    int at = d - (ndim - a.ndim);
    strides[d] = 0;
    if (at < 0) continue;
    if (a.shape[at] == dims[d])
      strides[d] = a.shape[at] == 1 ? 0 : a.strides[at];
    else if (a.shape[at] != 1)
      fits = false;
  }
  if (!fits)
    value_error("expand",
                "shape " + a.shape_text() + " does not broadcast to " + shape_text(dims, ndim));
  return view_of(a, ndim, dims, strides, false);
}

}  // namespace gs
