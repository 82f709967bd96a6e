// Bindings of the kernels that move elements by index, put arrays together, and draw random
// numbers.
#include "index.h"

#include <math.h>
#include <string.h>

#include <algorithm>

#include "array.h"
#include "broadcast.h"
#include "elementwise.h"

namespace gs {

namespace index_bindings {

const Kernel take_kernel("take"), take_add_kernel("take_add"), gather_kernel("gather"),
    scatter_kernel("scatter"), triangle_kernel("triangle"), one_hot_kernel("one_hot"),
    uniform_kernel("uniform"), normal_kernel("normal"), arange_kernel("arange"),
    fill_kernel("fill");

int normal_axis(int64_t axis, int ndim, const char* op, const std::string& shape) {
  if (axis < -ndim || axis >= ndim)
    throw py::index_error(std::string(op) + ": axis " + std::to_string(axis) +
                          " is out of range for shape " + shape);
  return (int)(axis < 0 ? axis + ndim : axis);
}

// int64 in C order, every value within [-length, length)
Array index_in(py::handle h, const char* op, int64_t length, int64_t lowest) {
  Array a = array_in(h, op, "index");
  if (a.dtype != kI64 && a.dtype != kI32)
    type_error(
        op, std::string("index has dtype ") + dtype_name(a.dtype) + "; int64 or int32 is needed");
  if (a.dtype == kI32 || !a.contiguous) {
    Array c = array_new(kI64, a.ndim, a.shape);
    copy_into(a, c);
    a = c;
  }
  check_values(
      a,
      [](const void* data, const int64_t* args) {
        const int64_t* p = (const int64_t*)data;
        // the distances from both ends have no sign bit, two elements at a time
        typedef uint64_t Pair __attribute__((vector_size(16)));
        const uint64_t low = (uint64_t)args[1], most = (uint64_t)args[2] - 1;
        const Pair lows = {low, low}, mosts = {most, most};
        Pair two = {0, 0}, more = {0, 0};
        int64_t i = 0;
        for (; i + 4 <= args[0]; i += 4) {
          Pair x, y;
          memcpy(&x, p + i, 16);
          memcpy(&y, p + i + 2, 16);
          two |= (x - lows) | (mosts - x);
          more |= (y - lows) | (mosts - y);
        }
        two |= more;
        uint64_t bad = two[0] | two[1];
        for (; i < args[0]; ++i) bad |= ((uint64_t)p[i] - low) | (most - (uint64_t)p[i]);
        return (int64_t)bad >= 0;
      },
      [](const Array& index, const int64_t* args) {
        const int64_t* p = index.as<int64_t>();
        int64_t bad = 0;
        for (int64_t i = 0; i < index.size; ++i)
          if (p[i] < args[1] || p[i] >= args[2]) bad = p[i];
        throw py::index_error(std::string((const char*)args[3]) + ": index " + std::to_string(bad) +
                              " is out of range for an axis of size " + std::to_string(args[2]));
      },
      {a.size, lowest, length, (int64_t)(intptr_t)op});
  return a;
}

// shape of x with the axis replaced by the shape of index
py::object take(py::handle x_h, py::handle index_h, int64_t axis) {
  const char* op = "take";
  Array x = array_dense(x_h, op, "input");
  int at = normal_axis(axis, x.ndim, op, x.shape_text());
  Array index = index_in(index_h, op, x.shape[at], -x.shape[at]);
  if (x.ndim - 1 + index.ndim > kMaxDims)
    value_error(op, "the result would have more than 8 dimensions");
  int64_t shape[2 * kMaxDims];
  int n = 0;
  TakeParams p{1, x.shape[at], 1, index.size};
  for (int d = 0; d < at; ++d) p.outer *= shape[n++] = x.shape[d];
  for (int d = 0; d < index.ndim; ++d) shape[n++] = index.shape[d];
  for (int d = at + 1; d < x.ndim; ++d) p.inner *= shape[n++] = x.shape[d];
  Array out = array_new(x.dtype, n, shape);
  if (out.size > 0) run(take_kernel, x.dtype, p, {in(x), in(index), gs::out(out)});
  return result(out);
}

// The places of the true elements of a bool array, counted in C order.
py::object mask_places(py::handle mask_h) {
  const char* op = "mask_places";
  Array mask = array_dense(mask_h, op, "mask");
  if (mask.dtype != kBool)
    type_error(op, std::string("mask has dtype ") + dtype_name(mask.dtype) + "; bool is needed");
  const uint8_t* m = mask.as<uint8_t>();
  constexpr uint64_t kLow = 0x0101010101010101, kRest = 0x7f7f7f7f7f7f7f7f;
  int64_t n = 0, i = 0;
  for (; i + 8 <= mask.size; i += 8) {  // eight bytes made 0 or 1, and added up
    uint64_t w;
    memcpy(&w, m + i, 8);
    w = ((((w & kRest) + kRest) | w) >> 7) & kLow;
    n += (int64_t)((w * kLow) >> 56);
  }
  for (; i < mask.size; ++i) n += m[i] != 0;
  Array out = array_new(kI64, 1, &n);
  int64_t *to = out.as<int64_t>(), at = 0;
  for (i = 0; at < n; ++i) {  // no branch on the mask; `at` stays within the result
    to[at] = i;
    at += m[i] != 0;
  }
  return result(out);
}

// For a tuple of int64 arrays of one shape that index the first axes of an array of this shape:
// their places in these axes merged into one. None for anything else, an index out of range too.
py::object linear_places(py::handle indices, py::handle shape) {
  const char* op = "linear_places";
  if (!PyTuple_Check(indices.ptr()) || !PyTuple_Check(shape.ptr())) return py::none();
  const Py_ssize_t n = PyTuple_GET_SIZE(indices.ptr());
  if (n == 0 || n > PyTuple_GET_SIZE(shape.ptr())) return py::none();
  Array total;
  for (Py_ssize_t d = 0; d < n; ++d) {
    py::handle h = PyTuple_GET_ITEM(indices.ptr(), d);
    if (!py::isinstance<py::array>(h)) return py::none();
    const Array a = array_in(h, op, "index");
    if (a.dtype != kI64 || !a.contiguous) return py::none();
    if (d == 0) total = array_new(kI64, a.ndim, a.shape);
    if (!same_shape(a, total)) return py::none();
    const int64_t size = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), d));
    const int64_t* from = a.as<int64_t>();
    int64_t* to = total.as<int64_t>();
    uint64_t bad = 0;
    for (int64_t i = 0; i < a.size; ++i) {
      const int64_t k = from[i] + (from[i] < 0 ? size : 0);
      bad |= (uint64_t)k >= (uint64_t)size;
      to[i] = d == 0 ? k : to[i] * size + k;
    }
    if (bad) return py::none();
  }
  return result(total);
}

void take_add(py::handle target_h, py::handle index_h, int64_t axis, py::handle src_h) {
  const char* op = "index_add";
  Array target = array_out(target_h, op, "input"), src = array_dense(src_h, op, "source");
  check_float(target, op, "input");
  check_same_dtype(target, "input", src, "source", op);
  if (!target.contiguous) value_error(op, "the tensor that is added to must be contiguous");
  int at = normal_axis(axis, target.ndim, op, target.shape_text());
  Array index = index_in(index_h, op, target.shape[at], -target.shape[at]);
  TakeParams p{1, target.shape[at], 1, index.size};
  for (int d = 0; d < at; ++d) p.outer *= target.shape[d];
  for (int d = at + 1; d < target.ndim; ++d) p.inner *= target.shape[d];
  if (src.size != p.outer * p.inner * p.count)
    value_error(op, "source has shape " + src.shape_text() + "; " + std::to_string(p.count) +
                        " slices of " + target.shape_text() + " along axis " + std::to_string(at) +
                        " are needed");
  if (src.size > 0) run(take_add_kernel, target.dtype, p, {in(src), in(index), inout(target)});
}

// The parameters of gather and scatter; index and values have one shape, within that of x except
// along the axis.
GatherParams gather_params(const Array& x, int at, const Array& index, const Array& values,
                           const char* op) {
  GatherParams p{};
  if (x.ndim != index.ndim)
    value_error(op, "input has shape " + x.shape_text() + " and index has shape " +
                        index.shape_text() + "; they must have the same number of dimensions");
  for (int d = 0; d < x.ndim; ++d)
    if (d != at && index.shape[d] > x.shape[d])
      value_error(op, "index has shape " + index.shape_text() +
                          ", which does not fit into the input's " + x.shape_text() +
                          " outside axis " + std::to_string(at));
  p.ndim = x.ndim;
  p.length = x.shape[at];
  int n = 0;
  for (int pass = 0; pass < 2; ++pass)
    for (int d = 0; d < x.ndim; ++d)
      if ((d == at) == (pass == 1)) {
        p.shape[n] = index.shape[d];
        p.x_strides[n] = x.strides[d];
        p.index_strides[n] = index.strides[d];
        p.value_strides[n++] = values.strides[d];
      }
  return p;
}

py::object gather(py::handle x_h, int64_t axis, py::handle index_h) {
  const char* op = "gather";
  Array x = array_in(x_h, op, "input");
  int at = normal_axis(axis, x.ndim, op, x.shape_text());
  Array index = index_in(index_h, op, x.shape[at], -x.shape[at]);
  Array out = array_new(x.dtype, index.ndim, index.shape);
  GatherParams p = gather_params(x, at, index, out, op);
  if (out.size > 0) run(gather_kernel, x.dtype, p, {in(x), in(index), gs::out(out)});
  return result(out);
}

void scatter(py::handle target_h, int64_t axis, py::handle index_h, py::handle src_h, bool add) {
  const char* op = add ? "scatter_add" : "scatter";
  Array x = array_out(target_h, op, "input"), src = array_in(src_h, op, "src");
  check_same_dtype(x, "input", src, "src", op);
  int at = normal_axis(axis, x.ndim, op, x.shape_text());
  Array index = index_in(index_h, op, x.shape[at], -x.shape[at]);
  if (src.ndim != index.ndim)
    value_error(op,
                "src has shape " + src.shape_text() + " and index has shape " + index.shape_text());
  for (int d = 0; d < src.ndim; ++d)
    if (src.shape[d] < index.shape[d])
      value_error(
          op, "src has shape " + src.shape_text() + ", smaller than index " + index.shape_text());
  for (int d = 0; d < x.ndim; ++d)
    if (x.size > 0 && x.strides[d] == 0 && x.shape[d] > 1)
      value_error(op, "the tensor that is changed in place is an expanded view");
  GatherParams p = gather_params(x, at, index, src, op);
  p.add = add;
  if (index.size > 0) run(scatter_kernel, x.dtype, p, {inout(x), in(index), in(src)});
}

// The part of a that starts at `start` along `axis` and has `length` there; shares memory.
Array part(const Array& a, int axis, int64_t start, int64_t length) {
  Array r = a;
  r.data += start * a.strides[axis] * dtype_size(a.dtype);
  r.size = a.shape[axis] ? a.size / a.shape[axis] * length : 0;
  r.shape[axis] = length;
  int64_t expect = 1;
  r.contiguous = true;
  for (int d = r.ndim - 1; d >= 0; --d) {
    if (r.shape[d] != 1 && r.strides[d] != expect) r.contiguous = false;
    expect *= r.shape[d];
  }
  return r;
}

// x with borders of one value: `widths` holds (before, after) of the last axis, then of the one
// before it, and so on; negative ones crop.
py::object pad(py::handle x_h, py::tuple widths, py::handle value) {
  const char* op = "pad";
  Array x = array_in(x_h, op, "input"), from = x;
  int64_t shape[kMaxDims], start[kMaxDims] = {};
  bool grows = false, fits = true;
  for (int d = 0; d < x.ndim; ++d) shape[d] = x.shape[d];
  Py_ssize_t n = PyTuple_GET_SIZE(widths.ptr());
  if (n % 2 || n / 2 > x.ndim)
    value_error(op, std::to_string(n) + " numbers for " + std::to_string(x.ndim) +
                        " axes; two for each of the last axes are needed");
  for (Py_ssize_t i = 0; i < n / 2; ++i) {
    const int d = x.ndim - 1 - (int)i;
    int64_t w[2];
    for (int j = 0; j < 2; ++j) {
      int overflow = 0;
      w[j] = PyLong_AsLongLongAndOverflow(PyTuple_GET_ITEM(widths.ptr(), 2 * i + j), &overflow);
      if (w[j] == -1 && PyErr_Occurred()) throw py::error_already_set();
      if (overflow || w[j] < -kMostElements || w[j] > kMostElements)
        value_error(op, "a border of axis " + std::to_string(d) + " is larger than any memory");
    }
    const int64_t before = w[0] < 0 ? -w[0] : 0, after = w[1] < 0 ? -w[1] : 0;
    fits = fits && before + after <= x.shape[d];
    if (!fits) break;
    from = part(from, d, before, x.shape[d] - before - after);
    shape[d] += w[0] + w[1];
    start[d] = w[0] > 0 ? w[0] : 0;
    grows = grows || w[0] > 0 || w[1] > 0;
  }
  if (!fits)
    value_error(op, "padding " + std::string(py::str(widths)) + " crops more than the shape " +
                        x.shape_text() + " has");
  Array out = array_new(x.dtype, x.ndim, shape), inside = out;
  if (grows && out.size > 0) {
    FillParams p{};
    p.n = out.size;
    set_number(operand(value, op, "value"), x.dtype, op, &p.start, &p.istart);
    run(fill_kernel, x.dtype, p, {gs::out(out)});
  }
  for (int d = 0; d < x.ndim; ++d) inside = part(inside, d, start[d], from.shape[d]);
  if (from.size > 0) copy_into(from, inside);
  return result(out);
}

py::object cat(py::sequence list, int64_t axis) {
  const char* op = "cat";
  int n = (int)py::len(list);
  if (n == 0) value_error(op, "at least one tensor is needed");
  std::vector<Array> parts;
  // an item of what is no list lives no longer than its object
  for (py::object item : list) parts.push_back(array_in(item, op, "an input"));
  const Array& first = parts[0];
  if (first.ndim == 0) value_error(op, "0-d tensors cannot be concatenated; use stack");
  int at = normal_axis(axis, first.ndim, op, first.shape_text());
  int64_t shape[kMaxDims], total = 0;
  for (const Array& a : parts) {
    check_same_dtype(first, "the first input", a, "another", op);
    bool fits = a.ndim == first.ndim;
    for (int d = 0; d < first.ndim && fits; ++d) fits = d == at || a.shape[d] == first.shape[d];
    if (!fits)
      value_error(op, "shapes " + first.shape_text() + " and " + a.shape_text() +
                          " differ outside axis " + std::to_string(at));
    total += a.shape[at];
  }
  for (int d = 0; d < first.ndim; ++d) shape[d] = d == at ? total : first.shape[d];
  Array out = array_new(first.dtype, first.ndim, shape);
  int64_t start = 0;
  for (const Array& a : parts) {
    if (a.size > 0) copy_into(a, part(out, at, start, a.shape[at]));
    start += a.shape[at];
  }
  return result(out);
}

py::object triangle(py::handle h, int64_t diagonal, bool upper) {
  const char* op = upper ? "triu" : "tril";
  Array a = array_dense(h, op, "input");
  if (a.ndim < 2)
    value_error(op, "input has shape " + a.shape_text() + "; at least 2 dimensions are needed");
  Array out = array_like(a);
  // the same triangle, and no sum of it with a row overflows
  diagonal = std::min(std::max(diagonal, -a.dim(-2)), a.dim(-1));
  TriangleParams p{1, a.dim(-2), a.dim(-1), diagonal, upper};
  for (int d = 0; d < a.ndim - 2; ++d) p.batch *= a.shape[d];
  if (a.size > 0) run(triangle_kernel, a.dtype, p, {in(a), gs::out(out)});
  return result(out);
}

py::object one_hot(py::handle h, int64_t classes) {
  const char* op = "one_hot";
  if (classes < 1)
    value_error(op, "num_classes must be at least 1, got " + std::to_string(classes));
  Array index = index_in(h, op, classes, 0);
  if (index.ndim + 1 > kMaxDims) value_error(op, "at most 8 dimensions are supported");
  int64_t shape[kMaxDims];
  for (int d = 0; d < index.ndim; ++d) shape[d] = index.shape[d];
  shape[index.ndim] = classes;
  Array out = array_new(kI64, index.ndim + 1, shape);
  OneHotParams p{index.size, classes};
  if (out.size > 0) run(one_hot_kernel, kI64, p, {in(index), gs::out(out)});
  return result(out);
}

py::object random(const Kernel& kernel, const char* op, const std::vector<int64_t>& shape,
                  py::handle dtype, double a, double b, uint64_t seed, uint64_t counter, int slot) {
  if (shape.size() > kMaxDims) value_error(op, "at most 8 dimensions are supported");
  for (int64_t s : shape)
    if (s < 0)
      value_error(op, "negative dimension in " + shape_text(shape.data(), (int)shape.size()));
  DType t = dtype_from(dtype, op);
  if (t != kF32 && t != kF64)
    type_error(op, std::string("dtype ") + dtype_name(t) + "; float32 or float64 is needed");
  if (!isfinite(a) || !isfinite(b)) value_error(op, "the parameters must be finite");
  RandomParams p{};
  Array out = array_new(t, (int)shape.size(), shape.data());
  p.n = out.size;
  p.a = a;
  p.b = b;
  p.seed = seed;
  p.counter = Counter{counter, slot};
  if (&kernel == &uniform_kernel) {
    if (a > b) value_error(op, "low must not be above high");
    p.below = t == kF32 ? (double)nextafterf((float)b, (float)a) : nextafter(b, a);
  } else if (b < 0) {
    value_error(op, "std must not be negative");
  }
  if (out.size > 0) run(kernel, t, p, {gs::out(out)});
  return result(out);
}

}  // namespace index_bindings

void bind_index(py::module_& module) {
  using namespace index_bindings;
  Functions m(module);
  m.def("take", &take, py::arg("input"), py::arg("index"), py::arg("axis"));
  m.def("take_add_", &take_add, py::arg("input"), py::arg("index"), py::arg("axis"),
        py::arg("source"), "input[.., index[i], ..] += source[.., i, ..], in the order of i.");
  m.def("mask_places", &mask_places, py::arg("mask"),
        "The places of the true elements, counted in C order.");
  m.def("linear_places", &linear_places, py::arg("indices"), py::arg("shape"),
        "Indices of the first axes as indices of these axes merged; None where NumPy has to look.");
  m.def("gather", &gather, py::arg("input"), py::arg("axis"), py::arg("index"));
  m.def(
      "scatter_add_",
      [](py::handle x, int64_t axis, py::handle i, py::handle s) { scatter(x, axis, i, s, true); },
      py::arg("input"), py::arg("axis"), py::arg("index"), py::arg("src"));
  m.def(
      "scatter_",
      [](py::handle x, int64_t axis, py::handle i, py::handle s) { scatter(x, axis, i, s, false); },
      py::arg("input"), py::arg("axis"), py::arg("index"), py::arg("src"));
  m.def("cat", &cat, py::arg("tensors"), py::arg("axis"));
  m.def("pad", &pad, py::arg("input"), py::arg("widths"), py::arg("value"),
        "Borders of one value; widths as F.pad takes them.");
  m.def("triangle", &triangle, py::arg("input"), py::arg("diagonal"), py::arg("upper"));
  m.def("one_hot", &one_hot, py::arg("index"), py::arg("num_classes"));
  m.def(
      "uniform",
      [](const std::vector<int64_t>& shape, py::handle dtype, double low, double high,
         uint64_t seed, uint64_t counter, int slot) {
        return random(uniform_kernel, "uniform", shape, dtype, low, high, seed, counter, slot);
      },
      py::arg("shape"), py::arg("dtype"), py::arg("low"), py::arg("high"), py::arg("seed"),
      py::arg("counter"), py::arg("slot") = -1, "Numbers in [low, high).");
  m.def(
      "normal",
      [](const std::vector<int64_t>& shape, py::handle dtype, double mean, double std,
         uint64_t seed, uint64_t counter, int slot) {
        return random(normal_kernel, "normal", shape, dtype, mean, std, seed, counter, slot);
      },
      py::arg("shape"), py::arg("dtype"), py::arg("mean"), py::arg("std"), py::arg("seed"),
      py::arg("counter"), py::arg("slot") = -1);
  m.def(
      "arange",
      [](py::handle start, py::handle step, int64_t n, py::handle dtype) {
        DType t = dtype_from(dtype, "arange");
        if (n < 0) n = 0;
        if (t == kU8 || t == kBool)
          type_error("arange", std::string("dtype ") + dtype_name(t) + " is not supported");
        Array out = array_new(t, {n});
        FillParams p{};
        p.n = n;
        set_number(operand(start, "arange", "start"), t, "arange", &p.start, &p.istart);
        set_number(operand(step, "arange", "step"), t, "arange", &p.step, &p.istep);
        if (n > 0) run(arange_kernel, t, p, {gs::out(out)});
        return result(out);
      },
      py::arg("start"), py::arg("step"), py::arg("n"), py::arg("dtype"),
      "start + i * step for i < n");
}

}  // namespace gs
