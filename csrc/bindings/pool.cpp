// Bindings of the pooling family.
#include "pool.h"

#include "array.h"

namespace gs {

namespace pool_bindings {

const Kernel max_pool("max_pool"), max_pool_backward("max_pool_backward");
const Kernel avg_pool("avg_pool"), avg_pool_backward("avg_pool_backward");

// A window: kernel, stride, padding, dilation (each height and width), ceil_mode, include_pad.
struct Window {
  int64_t k[2], s[2], p[2], d[2];
  bool ceil, include_pad, adaptive;
};

// geometry: (kh, kw, sh, sw, ph, pw, dh, dw, ceil_mode, include_pad), or (oh, ow) for adaptive
// pooling. The height of 1-d pooling is one, with kernel 1.
Window read_window(const py::tuple& t, const char* op) {
  int64_t v[10];
  size_t n = t.size();
  if (n != 10 && n != 2) value_error(op, "geometry must hold 10 or 2 numbers");
  for (size_t i = 0; i < n; ++i) {
    v[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(t.ptr(), (Py_ssize_t)i));
    if (v[i] == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      type_error(op, "sizes of the window must be integers, got " + std::string(py::repr(t[i])));
    }
  }
  Window w{};
  if (n == 2) {
    w.adaptive = true;
    for (int i = 0; i < 2; ++i) {
      w.k[i] = v[i];
      if (v[i] < 1 || v[i] > (1 << 24))
        value_error(op, "output_size must lie between 1 and 2^24, got " + std::to_string(v[i]));
    }
    return w;
  }
  for (int i = 0; i < 2; ++i) {
    w.k[i] = v[i];
    w.s[i] = v[2 + i];
    w.p[i] = v[4 + i];
    w.d[i] = v[6 + i];
    const int64_t limit = 1 << 24;
    if (w.k[i] < 1 || w.s[i] < 1 || w.d[i] < 1 || w.k[i] > limit || w.s[i] > limit ||
        w.d[i] > limit)
      value_error(op, "kernel_size, stride and dilation must lie between 1 and 2^24, got " +
                          std::to_string(w.k[i]) + ", " + std::to_string(w.s[i]) + ", " +
                          std::to_string(w.d[i]));
    if (w.p[i] < 0 || w.p[i] > ((w.k[i] - 1) * w.d[i] + 1) / 2)
      value_error(op, "padding must be between 0 and half of the window, got padding " +
                          std::to_string(w.p[i]) + " for kernel_size " + std::to_string(w.k[i]) +
                          " with dilation " + std::to_string(w.d[i]));
  }
  w.ceil = v[8] != 0;
  w.include_pad = v[9] != 0;
  return w;
}

int64_t output_size(const Window& w, int i, int64_t in) {
  int64_t rest = in + 2 * w.p[i] - w.d[i] * (w.k[i] - 1) - 1;
  if (w.ceil) rest += w.s[i] - 1;
  if (rest < 0) return 0;
  int64_t out = rest / w.s[i] + 1;
  // the last window must begin inside the image or the padding before it
  if (w.ceil && (out - 1) * w.s[i] >= in + w.p[i]) --out;
  return out;
}

int64_t largest_window(int64_t in, int64_t out) {
  if (in % out == 0) return in / out;
  int64_t most = 0;
  for (int64_t o = 0; o < out; ++o) {
    int64_t k = ((o + 1) * in + out - 1) / out - o * in / out;
    if (k > most) most = k;
  }
  return most;
}

// shape: (n, h, w, c), or (n, t, c) of 1-d pooling
PoolParams make_params(const int64_t* shape, int ndim, const Window& w, double divisor,
                       const char* op) {
  PoolParams p{};
  bool one = ndim == 3;
  p.n = shape[0];
  p.h = one ? 1 : shape[1];
  p.w = shape[ndim - 2];
  p.c = shape[ndim - 1];
  p.kh = w.k[0];
  p.kw = w.k[1];
  if (p.h < 1 || p.w < 1 || p.c < 1 || p.h > (1 << 24) || p.w > (1 << 24))
    value_error(op, "input has shape " + shape_text(shape, ndim) +
                        "; height, width and channels must not be 0");
  if (w.adaptive) {
    p.oh = w.k[0];
    p.ow = w.k[1];
    p.kh = largest_window(p.h, p.oh);
    p.kw = largest_window(p.w, p.ow);
    p.sh = p.sw = p.dh = p.dw = 1;
  } else {
    p.sh = w.s[0];
    p.sw = w.s[1];
    p.ph = w.p[0];
    p.pw = w.p[1];
    p.dh = w.d[0];
    p.dw = w.d[1];
    p.oh = output_size(w, 0, p.h);
    p.ow = output_size(w, 1, p.w);
    if (p.oh < 1 || p.ow < 1)
      value_error(op, "the window is larger than the input: input has shape " +
                          shape_text(shape, ndim) + ", kernel_size " +
                          (one ? "" : std::to_string(p.kh) + " x ") + std::to_string(p.kw) +
                          ", padding " + (one ? "" : std::to_string(p.ph) + " x ") +
                          std::to_string(p.pw) + ". Use a smaller kernel_size or more padding");
  }
  p.adaptive = w.adaptive;
  p.include_pad = w.include_pad;
  p.divisor = divisor;
  p.index_bytes = p.kh * p.kw <= 255 ? 1 : 4;
  p.holds = machine().holds;
  return p;
}

Array input(py::handle h, const char* op, int ndim) {
  Array x = array_in(h, op, "input");
  check_float(x, op, "input");
  check_ndim(x, ndim, op, "input",
             ndim == 3 ? "(N, T, C): channels last" : "(N, H, W, C): channels last");
  return x;
}

Array output(const PoolParams& p, DType dtype, int ndim) {
  return ndim == 3 ? array_new(dtype, {p.n, p.ow, p.c}) : array_new(dtype, {p.n, p.oh, p.ow, p.c});
}

py::tuple max_pool_forward(py::handle xh, const py::tuple& geometry, bool index, int dims) {
  const char* op = geometry.size() == 2
                       ? (dims == 1 ? "adaptive_max_pool1d" : "adaptive_max_pool2d")
                       : (dims == 1 ? "max_pool1d" : "max_pool2d");
  Array x = input(xh, op, dims + 2);
  PoolParams p = make_params(x.shape, x.ndim, read_window(geometry, op), 0, op);
  if (p.kh * p.kw > INT32_MAX) value_error(op, "the window has more than 2^31 elements");
  x = dense(x);
  Array y = output(p, x.dtype, x.ndim), ix;
  if (index) ix = output(p, p.index_bytes == 1 ? kU8 : kI32, x.ndim);
  if (y.size) run(max_pool, x.dtype, p, {in(x), out(y), out(ix)});
  py::object none = py::none();
  return py::make_tuple(result(y), index ? result(ix) : none);
}

py::object avg_pool_forward(py::handle xh, const py::tuple& geometry, double divisor, int dims) {
  const char* op = geometry.size() == 2
                       ? (dims == 1 ? "adaptive_avg_pool1d" : "adaptive_avg_pool2d")
                       : (dims == 1 ? "avg_pool1d" : "avg_pool2d");
  Array x = input(xh, op, dims + 2);
  PoolParams p = make_params(x.shape, x.ndim, read_window(geometry, op), divisor, op);
  x = dense(x);
  Array y = output(p, x.dtype, x.ndim);
  if (y.size) run(avg_pool, x.dtype, p, {in(x), out(y)});
  return result(y);
}

// index None: the average's gradient
py::object pool_backward(py::handle gh, py::handle ih, const py::tuple& shape,
                         const py::tuple& geometry, double divisor) {
  const char* op = ih.is_none() ? "avg_pool_backward" : "max_pool_backward";
  Array dy = array_dense(gh, op, "grad"), ix = array_optional(ih, op, "index");
  check_float(dy, op, "grad");
  int64_t dims[4];
  int ndim = (int)shape.size();
  if (ndim != 3 && ndim != 4) value_error(op, "shape must be that of the input");
  for (int i = 0; i < ndim; ++i) dims[i] = shape[(size_t)i].cast<int64_t>();
  PoolParams p = make_params(dims, ndim, read_window(geometry, op), divisor, op);
  Array like;
  int64_t expect[4] = {p.n, p.oh, p.ow, p.c};
  if (ndim == 3) {
    expect[1] = p.ow;
    expect[2] = p.c;
  }
  like.ndim = ndim;
  for (int i = 0; i < ndim; ++i) like.shape[i] = expect[i];
  check_same_shape(dy, "grad", like, "output", op);
  if (ix.present()) {
    check_same_shape(ix, "index", like, "output", op);
    if (ix.dtype != (p.index_bytes == 1 ? kU8 : kI32))
      type_error(op, "index must be the array that the forward pass returned");
    ix = dense(ix);
  }
  Array dx = array_new(dy.dtype, ndim, dims);
  if (dx.size) {
    if (ix.present())
      run(max_pool_backward, dy.dtype, p, {in(dy), in(ix), out(dx)});
    else
      run(avg_pool_backward, dy.dtype, p, {in(dy), out(dx)});
  }
  return result(dx);
}

}  // namespace pool_bindings

void bind_pool(py::module_& module) {
  using namespace pool_bindings;
  Functions m(module);
  m.def("max_pool", &max_pool_forward, py::arg("x"), py::arg("geometry"), py::arg("index"),
        py::arg("dims"),
        "(y, index or None); geometry: (kh, kw, sh, sw, ph, pw, dh, dw, ceil_mode, include_pad), "
        "adaptive: (oh, ow).");
  m.def("avg_pool", &avg_pool_forward, py::arg("x"), py::arg("geometry"), py::arg("divisor"),
        py::arg("dims"), "y; geometry as in max_pool; divisor 0: the size of the window.");
  m.def("pool_backward", &pool_backward, py::arg("grad"), py::arg("index"), py::arg("shape"),
        py::arg("geometry"), py::arg("divisor"),
        "dx from max_pool's index, or of avg_pool (index None).");
}

}  // namespace gs
