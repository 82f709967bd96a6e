// Bindings of the reduce family.
#include "reduce.h"

#include <float.h>
#include <math.h>

#include <algorithm>

#include "array.h"
#include "elementwise.h"

namespace gs {

namespace reduce_bindings {

const Kernel reduce_kernel("reduce"), argmax_kernel("argmax"), argmin_kernel("argmin"),
    cumsum_kernel("cumsum"), unary_kernel("unary");

[[noreturn]] void bad_axis(const char* op, int64_t axis, const Array& a) {
  throw py::index_error(std::string(op) + ": axis " + std::to_string(axis) +
                        " is out of range for shape " + a.shape_text());
}

int normal_axis(int64_t axis, const Array& a, const char* op) {
  int64_t n = a.ndim > 0 ? a.ndim : 1;
  if (axis < -n || axis >= n) bad_axis(op, axis, a);
  return (int)(axis < 0 ? axis + n : axis);
}

int64_t to_int(py::handle h, const char* op) {
  if (!PyIndex_Check(h.ptr()))
    type_error(op, std::string("axis must be an integer, a tuple of integers or None, got ") +
                       Py_TYPE(h.ptr())->tp_name);
  py::object n = py::reinterpret_steal<py::object>(PyNumber_Index(h.ptr()));
  int64_t v = n ? PyLong_AsLongLong(n.ptr()) : -1;
  if (PyErr_Occurred()) throw py::error_already_set();
  return v;
}

// Marks the axes of None (all), an integer or a sequence of integers.
void mark_axes(py::handle axes, const Array& a, const char* op, bool* reduced) {
  for (int d = 0; d < a.ndim; ++d) reduced[d] = axes.is_none();
  if (axes.is_none()) return;
  if (PyTuple_Check(axes.ptr()) || PyList_Check(axes.ptr())) {
    if (py::len(axes) == 0)  // as PyTorch: an empty list is all axes
      for (int d = 0; d < a.ndim; ++d) reduced[d] = true;
    for (py::handle h : axes) {
      int64_t given = to_int(h, op);
      int d = normal_axis(given, a, op);
      if (a.ndim == 0) continue;
      if (reduced[d]) value_error(op, "axis " + std::to_string(given) + " appears twice");
      reduced[d] = true;
    }
    return;
  }
  int d = normal_axis(to_int(axes, op), a, op);
  if (a.ndim > 0) reduced[d] = true;
}

void fill_value(const Array& a, double v) {
  for (int64_t i = 0; i < a.size; ++i) switch (a.dtype) {
      case kF32:
        a.as<float>()[i] = (float)v;
        break;
      case kF64:
        a.as<double>()[i] = v;
        break;
      case kI32:
        a.as<int32_t>()[i] = (int32_t)v;
        break;
      case kI64:
        a.as<int64_t>()[i] = (int64_t)v;
        break;
      default:
        a.as<uint8_t>()[i] = (uint8_t)v;
        break;
    }
}

// out = post(op over the axes marked in `reduced`). center: one value per output or absent. out:
// already made, C-contiguous over the kept axes.
void launch_reduce(const Array& given, const bool* reduced, int op, int post, double scale,
                   const Array& center, const Array& out) {
  struct Dim {
    int64_t size, stride, out_stride;
    bool reduced;
  };
  Array a = given;
  Dim dims[kMaxDims];
  int n = 0;
  for (int attempt = 0;; ++attempt) {
    n = 0;
    int64_t out_stride = 1;
    for (int d = a.ndim - 1; d >= 0; --d) {
      if (a.shape[d] != 1)
        dims[n++] = Dim{a.shape[d], a.strides[d], reduced[d] ? 0 : out_stride, reduced[d]};
      if (!reduced[d]) out_stride *= a.shape[d];
    }
    std::reverse(dims, dims + n);
    std::stable_sort(dims, dims + n, [](const Dim& x, const Dim& y) {
      auto key = [](const Dim& d) {
        return d.stride == 0 ? INT64_MAX : (d.stride < 0 ? -d.stride : d.stride);
      };
      return key(x) > key(y);
    });
    if (n == 0 || dims[n - 1].stride == 1) break;
    a = array_like(given);
    copy_into(given, a);
  }
  int m = 0;
  for (int i = 0; i < n; ++i) {
    const Dim& d = dims[i];
    if (m > 0 && dims[m - 1].reduced == d.reduced && dims[m - 1].stride == d.stride * d.size &&
        (d.reduced || dims[m - 1].out_stride == d.out_stride * d.size)) {
      dims[m - 1].size *= d.size;
      dims[m - 1].stride = d.stride;
      dims[m - 1].out_stride = d.out_stride;
    } else {
      dims[m++] = d;
    }
  }
  if (m == 0) dims[m++] = Dim{1, 1, 0, true};
  ReduceParams p{};
  p.op = op;
  p.post = post;
  p.scale = scale;
  p.inner = dims[m - 1].size;
  p.inner_kept = !dims[m - 1].reduced;
  p.inner_out = dims[m - 1].out_stride;
  for (int i = 0; i < m - 1; ++i) {
    const Dim& d = dims[i];
    if (d.reduced) {
      p.reduce_shape[p.reduce_ndim] = d.size;
      p.reduce_in[p.reduce_ndim++] = d.stride;
    } else {
      p.keep_shape[p.keep_ndim] = d.size;
      p.keep_in[p.keep_ndim] = d.stride;
      p.keep_out[p.keep_ndim++] = d.out_stride;
    }
  }
  run(reduce_kernel, a.dtype, p, {in(a), in(center), gs::out(out)});
}

int64_t reduced_count(const Array& a, const bool* reduced) {
  int64_t n = 1;
  for (int d = 0; d < a.ndim; ++d)
    if (reduced[d]) n *= a.shape[d];
  return n;
}

Array make_output(const Array& a, const bool* reduced, bool keepdims, DType t) {
  int64_t shape[kMaxDims];
  int n = 0;
  for (int d = 0; d < a.ndim; ++d) {
    if (!reduced[d])
      shape[n++] = a.shape[d];
    else if (keepdims)
      shape[n++] = 1;
  }
  return array_new(t, n, shape);
}

struct Spec {
  const char* name;
  int op, post;
  double empty;     // result over no elements
  bool needs_some;  // ValueError over no elements
  bool ints;
};
const Spec specs[] = {
    {"sum", kSum, kNone, 0, false, true},
    {"prod", kProd, kNone, 1, false, true},
    {"amax", kMax, kNone, 0, true, true},
    {"amin", kMin, kNone, 0, true, true},
    {"sum_abs", kSumAbs, kNone, 0, false, false},
    {"sum_square", kSumSquare, kNone, 0, false, false},
    {"norm2", kSumSquare, kRoot, 0, false, false},
    {"max_abs", kMaxAbs, kNone, 0, false, false},
};

py::object reduce_by(const Spec& s, const Array& a, const bool* reduced, bool keepdims) {
  bool is_float = a.is_float();
  if (!is_float && !s.ints)
    type_error(s.name, std::string("the input has dtype ") + dtype_name(a.dtype) +
                           "; float32 or float64 is needed. Convert it with .float()");
  if (s.needs_some && reduced_count(a, reduced) == 0)
    value_error(s.name, "the axes to reduce have no elements (shape " + a.shape_text() + ") and " +
                            s.name + " of nothing is not defined");
  bool wide = !is_float && (s.op == kSum || s.op == kProd);
  Array out = make_output(a, reduced, keepdims, wide ? kI64 : a.dtype);
  if (a.size == 0)
    fill_value(out, s.empty);
  else
    launch_reduce(a, reduced, s.op, s.post, 1.0, Array(), out);
  return result(out);
}

// mean, and for var the mean followed by the mean of squared deviations
py::object mean(const Array& a, const bool* reduced, bool keepdims, const char* op) {
  check_float(a, op, "input");
  Array out = make_output(a, reduced, keepdims, a.dtype);
  if (a.size == 0)
    fill_value(out, NAN);
  else
    launch_reduce(a, reduced, kSum, kScale, 1.0 / (double)reduced_count(a, reduced), Array(), out);
  return result(out);
}

// `given`, or where it is None the largest elements over the reduced axes, infinite ones made
// finite so that x - center is no NaN.
Array largest_finite(const Array& a, const bool* reduced, py::handle given) {
  if (!given.is_none()) {
    Array c = array_dense(given, "logsumexp", "center");
    check_same_dtype(a, "input", c, "center", "logsumexp");
    return c;
  }
  Array c = make_output(a, reduced, true, a.dtype);
  if (c.size == 0 || a.size == 0) return c;
  launch_reduce(a, reduced, kMax, kNone, 1.0, Array(), c);
  ElementwiseParams p{};
  p.op = kClamp;
  p.ndim = 1;
  p.shape[0] = c.size;
  p.strides[0][0] = p.strides[1][0] = 1;
  p.constant[1] = a.dtype == kF32 ? (double)FLT_MAX : DBL_MAX;
  p.constant[0] = -p.constant[1];
  run(unary_kernel, a.dtype, p, {in(c), inout(c)});
  return c;
}

py::tuple arg(const Kernel& kernel, py::handle x, py::handle axis, bool keepdims, bool values,
              const char* op) {
  Array a = array_dense(x, op, "input");
  AxisParams p{};
  bool reduced[kMaxDims];
  if (axis.is_none()) {
    p.outer = p.inner = 1;
    p.length = a.size;
    for (int d = 0; d < a.ndim; ++d) reduced[d] = true;
  } else {
    int at = normal_axis(to_int(axis, op), a, op);
    p.outer = p.inner = p.length = 1;
    for (int d = 0; d < a.ndim; ++d) {
      (d < at ? p.outer : (d == at ? p.length : p.inner)) *= a.shape[d];
      reduced[d] = d == at;
    }
  }
  if (p.length == 0)
    value_error(op, "the axis to search has no elements (shape " + a.shape_text() + ")");
  Array index = make_output(a, reduced, keepdims, kI64), value;
  if (values) value = make_output(a, reduced, keepdims, a.dtype);
  if (a.size > 0) run(kernel, a.dtype, p, {in(a), gs::out(value), gs::out(index)});
  if (values) return py::make_tuple(result(value), result(index));
  return py::make_tuple(result(index));
}

}  // namespace reduce_bindings

void bind_reduce(py::module_& module) {
  using namespace reduce_bindings;
  Functions m(module);
  for (const Spec& s : specs)
    m.def(
        s.name,
        [s](py::handle x, py::handle axes, bool keepdims) {
          Array a = array_in(x, s.name, "input");
          bool reduced[kMaxDims];
          mark_axes(axes, a, s.name, reduced);
          return reduce_by(s, a, reduced, keepdims);
        },
        py::arg("input"), py::arg("axes") = py::none(), py::arg("keepdims") = false);
  m.def(
      "mean",
      [](py::handle x, py::handle axes, bool keepdims) {
        Array a = array_in(x, "mean", "input");
        bool reduced[kMaxDims];
        mark_axes(axes, a, "mean", reduced);
        return mean(a, reduced, keepdims, "mean");
      },
      py::arg("input"), py::arg("axes") = py::none(), py::arg("keepdims") = false);
  m.def(
      "var",
      [](py::handle x, py::handle axes, double correction, bool keepdims, bool root) {
        Array a = array_in(x, "var", "input");
        bool reduced[kMaxDims];
        mark_axes(axes, a, "var", reduced);
        Array center = array_in(mean(a, reduced, true, "var"), "var", "mean");
        Array out = make_output(a, reduced, keepdims, a.dtype);
        double n = (double)reduced_count(a, reduced) - correction;
        if (a.size == 0)
          fill_value(out, NAN);
        else
          launch_reduce(a, reduced, kSumSquareDev, root ? kScaleRoot : kScale,
                        1.0 / (n > 0 ? n : 0.0), center, out);
        return py::make_tuple(result(out), result(center));
      },
      py::arg("input"), py::arg("axes"), py::arg("correction"), py::arg("keepdims"),
      py::arg("root"), "(variance or its root, mean with the reduced axes kept)");
  m.def(
      "logsumexp",
      [](py::handle x, py::handle center, py::handle axes, bool keepdims) {
        Array a = array_in(x, "logsumexp", "input");
        check_float(a, "logsumexp", "input");
        bool reduced[kMaxDims];
        mark_axes(axes, a, "logsumexp", reduced);
        Array c = largest_finite(a, reduced, center);
        Array out = make_output(a, reduced, keepdims, a.dtype);
        if (c.size != out.size)
          value_error("logsumexp", "center must have one value for each output");
        if (a.size == 0)
          fill_value(out, -HUGE_VAL);
        else
          launch_reduce(a, reduced, kSumExpDev, kLogPlusCenter, 1.0, c, out);
        return result(out);
      },
      py::arg("input"), py::arg("center"), py::arg("axes"), py::arg("keepdims"),
      "center + log(sum(exp(x - center))); center None: the largest elements, made finite.");
  m.def(
      "any_",
      [](py::handle x, py::handle axes, bool keepdims, bool all) {
        const char* op = all ? "all" : "any";
        Array a = array_in(x, op, "input");
        if (a.dtype != kBool)
          type_error(
              op, std::string("the input has dtype ") + dtype_name(a.dtype) + "; bool is needed");
        bool reduced[kMaxDims];
        mark_axes(axes, a, op, reduced);
        const Spec s{op, all ? kMin : kMax, kNone, all ? 1.0 : 0.0, false, true};
        return reduce_by(s, a, reduced, keepdims);
      },
      py::arg("input"), py::arg("axes"), py::arg("keepdims"), py::arg("all"));
  m.def(
      "sum_to",
      [](py::handle g, py::tuple shape) {
        Array a = array_in(g, "sum_to", "grad");
        int n = (int)shape.size();
        int64_t dims[kMaxDims];
        bool reduced[kMaxDims], same = n == a.ndim;
        if (n > a.ndim)
          value_error("sum_to", "cannot reduce to more dimensions than the gradient has");
        for (int d = 0; d < a.ndim; ++d) reduced[d] = true;
        for (int i = 0; i < n; ++i) {
          int d = a.ndim - n + i;
          dims[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i));
          if (dims[i] != a.shape[d] && dims[i] != 1)
            value_error("sum_to", "a gradient of shape " + a.shape_text() +
                                      " cannot be reduced to " + shape_text(dims, i + 1) + "...");
          reduced[d] = dims[i] == 1 && a.shape[d] != 1;
          if (reduced[d]) same = false;
        }
        if (same) return a.object;
        if (!a.is_float()) check_float(a, "sum_to", "grad");
        Array out = array_new(a.dtype, n, dims);
        if (a.size == 0)
          fill_value(out, 0);
        else
          launch_reduce(a, reduced, kSum, kNone, 1.0, Array(), out);
        return result(out);
      },
      py::arg("grad"), py::arg("shape"),
      "The gradient summed to the shape of an operand that was broadcast.");
  m.def(
      "argmax",
      [](py::handle x, py::handle axis, bool keepdims) -> py::object {
        return arg(argmax_kernel, x, axis, keepdims, false, "argmax")[0];
      },
      py::arg("input"), py::arg("axis") = py::none(), py::arg("keepdims") = false);
  m.def(
      "argmin",
      [](py::handle x, py::handle axis, bool keepdims) -> py::object {
        return arg(argmin_kernel, x, axis, keepdims, false, "argmin")[0];
      },
      py::arg("input"), py::arg("axis") = py::none(), py::arg("keepdims") = false);
  m.def(
      "max_along",
      [](py::handle x, py::handle axis, bool keepdims) {
        return arg(argmax_kernel, x, axis, keepdims, true, "max");
      },
      py::arg("input"), py::arg("axis"), py::arg("keepdims"), "(values, indices)");
  m.def(
      "min_along",
      [](py::handle x, py::handle axis, bool keepdims) {
        return arg(argmin_kernel, x, axis, keepdims, true, "min");
      },
      py::arg("input"), py::arg("axis"), py::arg("keepdims"), "(values, indices)");
  m.def(
      "cumsum",
      [](py::handle x, py::handle axis, bool reverse) {
        Array a = array_dense(x, "cumsum", "input");
        int at = normal_axis(to_int(axis, "cumsum"), a, "cumsum");
        AxisParams p{1, 1, 1, reverse};
        for (int d = 0; d < a.ndim; ++d)
          (d < at ? p.outer : (d == at ? p.length : p.inner)) *= a.shape[d];
        Array out = array_new(a.is_float() ? a.dtype : kI64, a.ndim, a.shape);
        if (a.size > 0) run(cumsum_kernel, a.dtype, p, {in(a), gs::out(out)});
        return result(out);
      },
      py::arg("input"), py::arg("axis"), py::arg("reverse") = false);
}

}  // namespace gs
