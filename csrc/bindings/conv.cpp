// Bindings of the convolution family. Every function serves 1-d (nd = 1: sequences (N, T, C), a
// picture of height 1) and 2-d (nd = 2: images (N, H, W, C)); an input without its first axis is a
// batch of one.
#include "autograd.h"
#include "conv_choose.h"

namespace gs {

namespace conv_bindings {

const Kernel channel_sum("conv_channel_sum");
constexpr int64_t kLimit = (int64_t)1 << 30;

// Window: per axis (h, w); a 1-d window has the neutral h.
struct Window {
  int64_t stride[2] = {1, 1}, before[2] = {0, 0}, after[2] = {0, 0}, dilation[2] = {1, 1};
  bool same = false;
};

int64_t integer(py::handle h, const char* op, const char* name, int64_t low) {
  if (PyLong_CheckExact(h.ptr())) {
    int overflow = 0;
    const long v = PyLong_AsLongAndOverflow(h.ptr(), &overflow);
    if (!overflow && v >= low && v <= kLimit) return v;
  }
  PyObject* index = PyNumber_Index(h.ptr());
  if (!index) {
    PyErr_Clear();
    type_error(op, std::string(name) + " must be an integer or a tuple of integers, got " +
                       std::string(py::repr(h)));
  }
  long long v = PyLong_AsLongLong(index);
  Py_DECREF(index);
  if (v == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    v = -1;
  }
  if (v < low || v > kLimit)
    value_error(op, std::string(name) + " must be " + std::to_string(low) +
                        " or more (and below 2^30), got " + std::string(py::repr(h)));
  return v;
}

bool is_sequence(py::handle h) { return PyTuple_Check(h.ptr()) || PyList_Check(h.ptr()); }
// Of a tuple or list.
py::handle item_of(py::handle h, Py_ssize_t i) { return PySequence_Fast_GET_ITEM(h.ptr(), i); }
Py_ssize_t size_of(py::handle h) { return PySequence_Fast_GET_SIZE(h.ptr()); }

// An integer, or one an axis.
void integers(py::handle h, int nd, const char* op, const char* name, int64_t low, int64_t* out) {
  if (!is_sequence(h)) {
    int64_t v = integer(h, op, name, low);
    for (int i = 2 - nd; i < 2; ++i) out[i] = v;
    return;
  }
  Py_ssize_t n = size_of(h);
  if (n != 1 && n != nd)
    value_error(op, std::string(name) + " must be an integer or " + std::to_string(nd) +
                        (nd == 1 ? " integer in a tuple" : " integers") + ", got " +
                        std::string(py::repr(h)));
  for (int i = 0; i < nd; ++i) out[2 - nd + i] = integer(item_of(h, n == 1 ? 0 : i), op, name, low);
}

Window window(py::handle stride, py::handle padding, py::handle dilation, int nd, const char* op) {
  Window w;
  integers(stride, nd, op, "stride", 1, w.stride);
  integers(dilation, nd, op, "dilation", 1, w.dilation);
  if (py::isinstance<py::str>(padding)) {
    std::string s = py::cast<std::string>(padding);
    if (s == "same") {
      if (w.stride[0] != 1 || w.stride[1] != 1)
        value_error(
            op,
            "padding='same' needs stride 1 (the output would not be as large as the input), "
            "got stride=" +
                std::string(py::repr(stride)) + ". Give the padding in numbers");
      w.same = true;
    } else if (s != "valid") {
      value_error(
          op,
          "padding must be 'same', 'valid', an integer, one integer an axis or a pair (before, "
          "after) an axis, got '" +
              s + "'");
    }
    return w;
  }
  bool pairs = false;
  if (is_sequence(padding))
    for (Py_ssize_t i = 0; i < size_of(padding); ++i) pairs |= is_sequence(item_of(padding, i));
  if (!pairs) {
    integers(padding, nd, op, "padding", 0, w.before);
    for (int i = 0; i < 2; ++i) w.after[i] = w.before[i];
    return w;
  }
  if (size_of(padding) != nd)
    value_error(
        op,
        "padding must be an integer, one integer an axis or a pair (before, after) an axis, got " +
            std::string(py::repr(padding)));
  for (int i = 0; i < nd; ++i) {
    py::handle pair = item_of(padding, i);
    if (!is_sequence(pair) || size_of(pair) != 2)
      value_error(op,
                  "padding must be an integer, one integer an axis or a pair (before, after) an "
                  "axis, got " +
                      std::string(py::repr(padding)));
    w.before[2 - nd + i] = integer(item_of(pair, 0), op, "padding", 0);
    w.after[2 - nd + i] = integer(item_of(pair, 1), op, "padding", 0);
  }
  return w;
}

std::string text(int64_t v) { return std::to_string(v); }

const char* layout(int nd) { return nd == 1 ? "(N, T, C)" : "(N, H, W, C)"; }
const char* weight_layout(int nd, bool transposed) {
  if (transposed) return nd == 1 ? "(in, k, out/groups)" : "(in, kh, kw, out/groups)";
  return nd == 1 ? "(out, k, in/groups)" : "(out, kh, kw, in/groups)";
}

// A shape that becomes text only in a message.
struct Shape {
  const int64_t* sizes;
  int ndim;
};
Shape shape_of(const Array& a) { return Shape{a.shape, a.ndim}; }
std::string operator+(const std::string& text, const Shape& s) {
  return text + shape_text(s.sizes, s.ndim);
}

// Sizes of an image argument as (n, h, w, c); false when it has no batch axis.
bool image_of(const int64_t* shape, int ndim, int nd, const char* op, const char* name,
              int64_t* out) {
  if (ndim != nd + 2 && ndim != nd + 1)
    value_error(op, std::string(name) + " has shape " + shape_text(shape, ndim) + "; expected " +
                        layout(nd) + ", channels last");
  bool batch = ndim == nd + 2;
  const int64_t* s = shape + (batch ? 1 : 0);
  out[0] = batch ? shape[0] : 1;
  out[1] = nd == 1 ? 1 : s[0];
  out[2] = s[nd - 1];
  out[3] = s[nd];
  for (int i = 1; i < 4; ++i) {
    if (out[i] == 0)
      value_error(op, std::string(name) + " has shape " + shape_text(shape, ndim) +
                          "; only the batch may be empty, no other axis");
    if (out[i] > kLimit)
      value_error(op, std::string(name) + " has shape " + shape_text(shape, ndim) + ": too large");
  }
  return batch;
}

void weight_of(const int64_t* shape, int ndim, int nd, bool transposed, const char* op,
               int64_t* out) {
  if (ndim != nd + 2)
    value_error(op, "weight has shape " + shape_text(shape, ndim) + "; expected " + text(nd + 2) +
                        " dimensions " + weight_layout(nd, transposed));
  out[0] = shape[0];
  out[1] = nd == 1 ? 1 : shape[1];
  out[2] = shape[nd];
  out[3] = shape[nd + 1];
  for (int i = 0; i < 4; ++i)
    if (out[i] == 0 || out[i] > kLimit)
      value_error(op, "weight has shape " + shape_text(shape, ndim) + "; expected " +
                          weight_layout(nd, transposed) + " with no empty axis");
}

ConvParams params_of(const Window& w, const int64_t* x, const int64_t* f, int64_t groups) {
  ConvParams p{};
  p.n = x[0];
  p.groups = groups;
  p.kernel_h = f[1];
  p.kernel_w = f[2];
  p.stride_h = w.stride[0];
  p.stride_w = w.stride[1];
  p.pad_h = w.before[0];
  p.pad_w = w.before[1];
  p.dilation_h = w.dilation[0];
  p.dilation_w = w.dilation[1];
  p.l2 = conv_l2();
  static const int64_t near = machine().near ? cpu_budget().cores : 0;
  p.near_cores = near;
  p.threads = get_num_threads();
  return p;
}

void check_groups(int64_t groups, const char* op) {
  if (groups < 1) value_error(op, "groups must be 1 or more, got " + text(groups));
}

// What to do about an input whose last axis is not the channels.
std::string channels_hint(int nd, const int64_t* x, int64_t channels) {
  if (x[nd == 1 ? 2 : 1] == channels)
    return std::string("). Channels are last: put them there by .movedim(") +
           (nd == 1 ? "-2" : "-3") + ", -1)";
  if (channels == 1) return "). Channels are last: add their axis by x[..., None]";
  return "). Channels are last; check the layer before it";
}

// x (n, h, w, c) and weight (out, kh, kw, in / groups) -> everything, or an error.
ConvParams forward_params(int nd, const char* op, const int64_t* x, const Shape& x_text,
                          const int64_t* f, const Shape& f_text, Window w, int64_t groups) {
  check_groups(groups, op);
  if (f[0] % groups)
    value_error(op, std::string("weight has shape ") + f_text +
                        "; its first axis must be divisible by groups=" + text(groups));
  if (x[3] != f[3] * groups)
    value_error(op, std::string("input has shape ") + x_text + "; its last axis must be " +
                        text(f[3] * groups) + " (weight is " + f_text + ", groups=" + text(groups) +
                        channels_hint(nd, x, f[3] * groups));
  ConvParams p{};
  int64_t out[2];
  const char* axis[2] = {"height", nd == 1 ? "length" : "width"};
  for (int i = 0; i < 2; ++i) {
    int64_t reach = w.dilation[i] * (f[1 + i] - 1) + 1;
    if (w.same) {
      w.before[i] = (reach - 1) / 2;
      w.after[i] = reach - 1 - w.before[i];
    }
    int64_t padded = x[1 + i] + w.before[i] + w.after[i];
    if (reach > padded)
      value_error(op, "the kernel reaches over " + text(reach) + " (size " + text(f[1 + i]) +
                          ", dilation " + text(w.dilation[i]) + ") but the padded input has " +
                          axis[i] + " " + text(padded) + " (input " + x_text + ", padding " +
                          text(w.before[i]) + " and " + text(w.after[i]) +
                          "). Use a smaller kernel or more padding");
    if (padded > kLimit)
      value_error(
          op, "the padded input has " + std::string(axis[i]) + " " + text(padded) + ": too large");
    out[i] = (padded - reach) / w.stride[i] + 1;
  }
  p = params_of(w, x, f, groups);
  p.in_h = x[1];
  p.in_w = x[2];
  p.channels = x[3];
  p.filters = f[0];
  p.out_h = out[0];
  p.out_w = out[1];
  return p;
}

// A transposed convolution as the convolution that it is the gradient of: x has its outputs.
// before: padding.
ConvParams transpose_params(int nd, const char* op, const int64_t* x, const Shape& x_text,
                            const int64_t* f, const Shape& f_text, const Window& w,
                            const int64_t* extra, int64_t groups) {
  check_groups(groups, op);
  if (x[3] != f[0])
    value_error(op, std::string("input has shape ") + x_text + "; its last axis must be " +
                        text(f[0]) + " (weight is " + f_text + ", laid out " +
                        weight_layout(nd, true) + channels_hint(nd, x, f[0]));
  if (f[0] % groups)
    value_error(op, std::string("weight has shape ") + f_text +
                        "; its first axis must be divisible by groups=" + text(groups));
  if (w.same)
    value_error(op,
                "padding='same' is not defined for a transposed convolution; give it in numbers");
  ConvParams p = params_of(w, x, f, groups);
  int64_t in[2];
  for (int i = 2 - nd; i < 2; ++i)
    if (extra[i] >= w.stride[i] && extra[i] >= w.dilation[i])
      value_error(op,
                  "output_padding must be smaller than stride or dilation, got output_padding=" +
                      text(extra[i]) + ", stride=" + text(w.stride[i]) +
                      ", dilation=" + text(w.dilation[i]));
  for (int i = 0; i < 2; ++i) {
    in[i] = (x[1 + i] - 1) * w.stride[i] - w.before[i] - w.after[i] +
            w.dilation[i] * (f[1 + i] - 1) + extra[i] + 1;
    if (in[i] < 1)
      value_error(op, "the output would have size " + text(in[i]) + " along an axis (input " +
                          x_text + ", weight " + f_text + ", padding " + text(w.before[i]) +
                          "). Use less padding");
    if (in[i] > kLimit)
      value_error(op, "the output would have size " + text(in[i]) + " along an axis: too large");
  }
  p.in_h = in[0];
  p.in_w = in[1];
  p.out_h = x[1];
  p.out_w = x[2];
  p.channels = f[3] * groups;
  p.filters = f[0];
  return p;
}

Array bias_of(py::handle h, const Array& x, int64_t channels, const char* op) {
  Array b = array_optional(h, op, "bias");
  if (!b.present()) return b;
  check_same_dtype(b, "bias", x, "input", op);
  if (b.ndim != 1 || b.shape[0] != channels)
    value_error(op, "bias has shape " + b.shape_text() + "; expected (" + text(channels) +
                        ",): one value an output channel");
  return dense(b);
}

Array image_new(DType t, int nd, bool batch, int64_t n, int64_t h, int64_t w, int64_t c) {
  int64_t s[4];
  int k = 0;
  if (batch) s[k++] = n;
  if (nd == 2) s[k++] = h;
  s[k++] = w;
  s[k++] = c;
  return array_new(t, k, s);
}

// A shape tuple from Python.
int shape_from(py::handle h, int64_t* shape, const char* op) {
  if (!is_sequence(h)) type_error(op, "shape must be a tuple");
  Py_ssize_t n = PySequence_Size(h.ptr());
  if (n > kMaxDims) value_error(op, "shape has too many dimensions");
  for (Py_ssize_t i = 0; i < n; ++i)
    shape[i] =
        integer(py::reinterpret_steal<py::object>(PySequence_GetItem(h.ptr(), i)), op, "shape", 0);
  return (int)n;
}

struct Names {
  const char *conv, *data, *weight, *backward;
};
Names names(int nd, bool transposed) {
  if (transposed)
    return nd == 1 ? Names{"conv_transpose1d", "conv_transpose1d_backward_data",
                           "conv_transpose1d_backward_weight", ""}
                   : Names{"conv_transpose2d", "conv_transpose2d_backward_data",
                           "conv_transpose2d_backward_weight", ""};
  return nd == 1
             ? Names{"conv1d", "conv1d_backward_data", "conv1d_backward_weight", "conv1d_backward"}
             : Names{"conv2d", "conv2d_backward_data", "conv2d_backward_weight", "conv2d_backward"};
}

void check_nd(int nd) {
  if (nd != 1 && nd != 2) value_error("conv", "nd must be 1 or 2");
}

void run_forward(const ConvParams& p, const Array& x, const Array& w, const Array& b,
                 const Array& y) {
  run(*conv_choose(kConvForward, x.dtype, p).kernel, x.dtype, p, {in(x), in(w), in(b), out(y)});
}

// The gradients that are present of dx, dw (which needs x) and db (which needs dw). bias: added to
// dx.
void run_backward(ConvParams& p, const Array& g, const Array& w, const Array& bias, const Array& x,
                  const Array& dx, const Array& dw, const Array& db) {
  bool data = dx.present(), weight = dw.present();
  p.has_bias = db.present();
  p.wanted = (data ? kConvData : 0) | (weight ? kConvWeight : 0);
  ConvPass pass = !weight ? kConvBackwardData : data ? kConvBackward : kConvBackwardWeight;
  ConvChoice c = conv_choose(pass, g.dtype, p);
  if (c.joint) {
    run(*c.kernel, g.dtype, p, {in(g), in(w), in(bias), out(dx), in(x), out(dw), out(db)});
  } else if (data && weight) {  // one by one, and each may be a joint kernel asked for one
    run_backward(p, g, w, bias, Array(), dx, Array(), Array());
    run_backward(p, g, Array(), Array(), x, Array(), dw, db);
  } else if (data) {
    run(*c.kernel, g.dtype, p, {in(g), in(w), in(bias), out(dx)});
  } else {
    run(*c.kernel, g.dtype, p, {in(x), in(g), out(dw), c.bias ? out(db) : out(Array())});
    if (p.has_bias && !c.bias)
      run(channel_sum, g.dtype, ChannelSumParams{p.n * p.out_h * p.out_w, p.filters},
          {in(g), out(db)});
  }
}

py::object conv(int nd, py::handle xh, py::handle wh, py::handle bh, py::handle stride,
                py::handle padding, py::handle dilation, int64_t groups, bool relu) {
  check_nd(nd);
  const char* op = names(nd, false).conv;
  Array x = array_in(xh, op, "input"), w = array_in(wh, op, "weight");
  check_float(x, op, "input");
  check_same_dtype(x, "input", w, "weight", op);
  int64_t xs[4], ws[4];
  bool batch = image_of(x.shape, x.ndim, nd, op, "input", xs);
  weight_of(w.shape, w.ndim, nd, false, op, ws);
  Window win = window(stride, padding, dilation, nd, op);
  ConvParams p = forward_params(nd, op, xs, shape_of(x), ws, shape_of(w), win, groups);
  p.activation = relu ? kConvRelu : kConvLinear;
  Array b = bias_of(bh, x, p.filters, op);
  Array y = image_new(x.dtype, nd, batch, p.n, p.out_h, p.out_w, p.filters);
  if (y.size == 0) return result(y);
  x = dense(x);
  w = dense(w);
  run_forward(p, x, w, b, y);
  return result(y);
}

// `conv` on Tensors, recorded as a node of class `cls` with the arguments of its window. With relu
// the output is kept.
py::object apply_conv(py::handle cls, int nd, py::handle x, py::handle weight, py::handle bias,
                      py::handle stride, py::handle padding, py::handle dilation, py::handle groups,
                      bool relu) {
  static PyObject* const attribute = PyUnicode_InternFromString("window");
  check_nd(nd);
  const char* op = names(nd, false).conv;
  py::object y = conv(nd, tensor_data(x, op, "input"), tensor_data(weight, op, "weight"),
                      tensor_data(bias, op, "bias", true), stride, padding, dilation,
                      integer(groups, op, "groups", std::numeric_limits<int64_t>::min()), relu);
  py::tuple window = py::make_tuple(stride, padding, dilation, groups);
  return tensor_apply(cls, y, {x, weight, bias}, {x, weight}, relu, {{attribute, window.ptr()}});
}

py::object conv_backward_data(int nd, py::handle gh, py::handle wh, py::handle shape,
                              py::handle stride, py::handle padding, py::handle dilation,
                              int64_t groups) {
  check_nd(nd);
  const char* op = names(nd, false).data;
  Array g = array_in(gh, op, "grad"), w = array_in(wh, op, "weight");
  check_float(g, op, "grad");
  check_same_dtype(g, "grad", w, "weight", op);
  int64_t xs[4], ws[4], given[kMaxDims];
  int ndim = shape_from(shape, given, op);
  bool batch = image_of(given, ndim, nd, op, "input", xs);
  weight_of(w.shape, w.ndim, nd, false, op, ws);
  Window win = window(stride, padding, dilation, nd, op);
  ConvParams p = forward_params(nd, op, xs, Shape{given, ndim}, ws, shape_of(w), win, groups);
  int64_t gs_[4];
  if (image_of(g.shape, g.ndim, nd, op, "grad", gs_) != batch || gs_[0] != p.n ||
      gs_[1] != p.out_h || gs_[2] != p.out_w || gs_[3] != p.filters)
    value_error(op, "grad has shape " + g.shape_text() + ", which is not that of the output");
  Array dx = array_new(g.dtype, ndim, given);
  if (dx.size == 0) return result(dx);
  g = dense(g);
  w = dense(w);
  run_backward(p, g, w, Array(), Array(), dx, Array(), Array());
  return result(dx);
}

py::tuple conv_backward_weight(int nd, py::handle xh, py::handle gh, py::handle shape,
                               py::handle stride, py::handle padding, py::handle dilation,
                               int64_t groups, bool bias) {
  check_nd(nd);
  const char* op = names(nd, false).weight;
  Array x = array_in(xh, op, "input"), g = array_in(gh, op, "grad");
  check_float(x, op, "input");
  check_same_dtype(x, "input", g, "grad", op);
  int64_t xs[4], ws[4], gs_[4], given[kMaxDims];
  int ndim = shape_from(shape, given, op);
  image_of(x.shape, x.ndim, nd, op, "input", xs);
  weight_of(given, ndim, nd, false, op, ws);
  Window win = window(stride, padding, dilation, nd, op);
  ConvParams p = forward_params(nd, op, xs, shape_of(x), ws, Shape{given, ndim}, win, groups);
  image_of(g.shape, g.ndim, nd, op, "grad", gs_);
  if (g.ndim != x.ndim || gs_[0] != p.n || gs_[1] != p.out_h || gs_[2] != p.out_w ||
      gs_[3] != p.filters)
    value_error(op, "grad has shape " + g.shape_text() + ", which is not that of the output");
  Array dw = array_new(x.dtype, ndim, given), db;
  if (bias) db = array_new(x.dtype, {p.filters});
  if (p.n == 0) {
    memset(dw.data, 0, (size_t)dw.nbytes());
    if (bias) memset(db.data, 0, (size_t)db.nbytes());
  } else {
    x = dense(x);
    g = dense(g);
    run_backward(p, g, Array(), Array(), x, Array(), dw, db);
  }
  return py::make_tuple(result(dw), bias ? result(db) : py::object(py::none()));
}

// (dx, dw, db), each None unless wanted; in one launch where an implementation can.
py::tuple conv_backward(int nd, py::handle xh, py::handle gh, py::handle wh, py::handle stride,
                        py::handle padding, py::handle dilation, int64_t groups, bool data,
                        bool weight, bool bias) {
  check_nd(nd);
  const char* op = names(nd, false).backward;
  Array x = array_in(xh, op, "input"), g = array_in(gh, op, "grad"), w = array_in(wh, op, "weight");
  check_float(x, op, "input");
  check_same_dtype(x, "input", g, "grad", op);
  check_same_dtype(x, "input", w, "weight", op);
  int64_t xs[4], ws[4], gs_[4];
  bool batch = image_of(x.shape, x.ndim, nd, op, "input", xs);
  weight_of(w.shape, w.ndim, nd, false, op, ws);
  Window win = window(stride, padding, dilation, nd, op);
  ConvParams p = forward_params(nd, op, xs, shape_of(x), ws, shape_of(w), win, groups);
  if (image_of(g.shape, g.ndim, nd, op, "grad", gs_) != batch || gs_[0] != p.n ||
      gs_[1] != p.out_h || gs_[2] != p.out_w || gs_[3] != p.filters)
    value_error(op, "grad has shape " + g.shape_text() + ", which is not that of the output");
  Array dx, dw, db;
  if (data) dx = array_new(x.dtype, x.ndim, x.shape);
  if (weight) dw = array_new(x.dtype, w.ndim, w.shape);
  if (bias) db = array_new(x.dtype, {p.filters});
  if (p.n == 0) {
    if (weight) memset(dw.data, 0, (size_t)dw.nbytes());
    if (bias) memset(db.data, 0, (size_t)db.nbytes());
  } else {
    g = dense(g);
    if (data) w = dense(w);
    if (weight) x = dense(x);
    if (data || weight)
      run_backward(p, g, data ? w : Array(), Array(), weight ? x : Array(), dx, dw,
                   weight ? db : Array());
    if (bias && !weight)
      run(channel_sum, g.dtype, ChannelSumParams{p.n * p.out_h * p.out_w, p.filters},
          {in(g), out(db)});
  }
  auto some = [](Array& a) { return a.present() ? result(a) : py::object(py::none()); };
  return py::make_tuple(some(dx), some(dw), some(db));
}

py::object conv_transpose(int nd, py::handle xh, py::handle wh, py::handle bh, py::handle stride,
                          py::handle padding, py::handle output_padding, py::handle dilation,
                          int64_t groups) {
  check_nd(nd);
  const char* op = names(nd, true).conv;
  Array x = array_in(xh, op, "input"), w = array_in(wh, op, "weight");
  check_float(x, op, "input");
  check_same_dtype(x, "input", w, "weight", op);
  int64_t xs[4], ws[4], extra[2] = {0, 0};
  bool batch = image_of(x.shape, x.ndim, nd, op, "input", xs);
  weight_of(w.shape, w.ndim, nd, true, op, ws);
  Window win = window(stride, padding, dilation, nd, op);
  integers(output_padding, nd, op, "output_padding", 0, extra);
  ConvParams p = transpose_params(nd, op, xs, shape_of(x), ws, shape_of(w), win, extra, groups);
  Array b = bias_of(bh, x, p.channels, op);
  Array y = image_new(x.dtype, nd, batch, p.n, p.in_h, p.in_w, p.channels);
  if (y.size == 0) return result(y);
  x = dense(x);
  w = dense(w);
  run_backward(p, x, w, b, Array(), y, Array(), Array());
  return result(y);
}

// As apply_conv.
py::object apply_conv_transpose(py::handle cls, int nd, py::handle x, py::handle weight,
                                py::handle bias, py::handle stride, py::handle padding,
                                py::handle output_padding, py::handle dilation, py::handle groups) {
  static PyObject* const attribute = PyUnicode_InternFromString("window");
  check_nd(nd);
  const char* op = names(nd, true).conv;
  py::object y =
      conv_transpose(nd, tensor_data(x, op, "input"), tensor_data(weight, op, "weight"),
                     tensor_data(bias, op, "bias", true), stride, padding, output_padding, dilation,
                     integer(groups, op, "groups", std::numeric_limits<int64_t>::min()));
  py::tuple window = py::make_tuple(stride, padding, output_padding, dilation, groups);
  return tensor_apply(cls, y, {x, weight, bias}, {x, weight}, false, {{attribute, window.ptr()}});
}

// grad has the shape of the output, from which the output padding follows.
py::object conv_transpose_backward_data(int nd, py::handle gh, py::handle wh, py::handle shape,
                                        py::handle stride, py::handle padding,
                                        py::handle output_padding, py::handle dilation,
                                        int64_t groups) {
  check_nd(nd);
  const char* op = names(nd, true).data;
  Array g = array_in(gh, op, "grad"), w = array_in(wh, op, "weight");
  check_float(g, op, "grad");
  check_same_dtype(g, "grad", w, "weight", op);
  int64_t xs[4], ws[4], gs_[4], extra[2] = {0, 0}, given[kMaxDims];
  int ndim = shape_from(shape, given, op);
  image_of(given, ndim, nd, op, "input", xs);
  weight_of(w.shape, w.ndim, nd, true, op, ws);
  Window win = window(stride, padding, dilation, nd, op);
  integers(output_padding, nd, op, "output_padding", 0, extra);
  ConvParams p =
      transpose_params(nd, op, xs, Shape{given, ndim}, ws, shape_of(w), win, extra, groups);
  image_of(g.shape, g.ndim, nd, op, "grad", gs_);
  if (g.ndim != ndim || gs_[0] != p.n || gs_[1] != p.in_h || gs_[2] != p.in_w ||
      gs_[3] != p.channels)
    value_error(op, "grad has shape " + g.shape_text() + ", which is not that of the output");
  Array dx = array_new(g.dtype, ndim, given);
  if (dx.size == 0) return result(dx);
  g = dense(g);
  w = dense(w);
  run_forward(p, g, w, Array(), dx);
  return result(dx);
}

py::tuple conv_transpose_backward_weight(int nd, py::handle xh, py::handle gh, py::handle shape,
                                         py::handle stride, py::handle padding,
                                         py::handle output_padding, py::handle dilation,
                                         int64_t groups, bool weight, bool bias) {
  check_nd(nd);
  const char* op = names(nd, true).weight;
  Array x = array_in(xh, op, "input"), g = array_in(gh, op, "grad");
  check_float(x, op, "input");
  check_same_dtype(x, "input", g, "grad", op);
  int64_t xs[4], ws[4], gs_[4], extra[2] = {0, 0}, given[kMaxDims];
  int ndim = shape_from(shape, given, op);
  image_of(x.shape, x.ndim, nd, op, "input", xs);
  weight_of(given, ndim, nd, true, op, ws);
  Window win = window(stride, padding, dilation, nd, op);
  integers(output_padding, nd, op, "output_padding", 0, extra);
  ConvParams p =
      transpose_params(nd, op, xs, shape_of(x), ws, Shape{given, ndim}, win, extra, groups);
  image_of(g.shape, g.ndim, nd, op, "grad", gs_);
  if (g.ndim != x.ndim || gs_[0] != p.n || gs_[1] != p.in_h || gs_[2] != p.in_w ||
      gs_[3] != p.channels)
    value_error(op, "grad has shape " + g.shape_text() + ", which is not that of the output");
  g = dense(g);
  Array dw, db;
  if (weight) {
    dw = array_new(x.dtype, ndim, given);
    if (p.n == 0) {
      memset(dw.data, 0, (size_t)dw.nbytes());
    } else {
      x = dense(x);
      run_backward(p, x, Array(), Array(), g, Array(), dw, db);
    }
  }
  if (bias) {
    db = array_new(x.dtype, {p.channels});
    if (p.n == 0)
      memset(db.data, 0, (size_t)db.nbytes());
    else
      run(channel_sum, x.dtype, ChannelSumParams{p.n * p.in_h * p.in_w, p.channels},
          {in(g), out(db)});
  }
  return py::make_tuple(weight ? result(dw) : py::object(py::none()),
                        bias ? result(db) : py::object(py::none()));
}

}  // namespace conv_bindings

void bind_conv(py::module_& module) {
  using namespace conv_bindings;
  Functions m(module);
  m.def("conv", &conv, py::arg("nd"), py::arg("x"), py::arg("weight"), py::arg("bias"),
        py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"),
        py::arg("relu"));
  m.def("apply_conv", &apply_conv, py::arg("cls"), py::arg("nd"), py::arg("x"), py::arg("weight"),
        py::arg("bias"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
        py::arg("groups"), py::arg("relu"), "conv of Tensors, recorded as a node of class cls.");
  m.def("conv_backward_data", &conv_backward_data, py::arg("nd"), py::arg("grad"),
        py::arg("weight"), py::arg("shape"), py::arg("stride"), py::arg("padding"),
        py::arg("dilation"), py::arg("groups"));
  m.def("conv_backward_weight", &conv_backward_weight, py::arg("nd"), py::arg("x"), py::arg("grad"),
        py::arg("shape"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
        py::arg("groups"), py::arg("bias"));
  m.def("conv_backward", &conv_backward, py::arg("nd"), py::arg("x"), py::arg("grad"),
        py::arg("weight"), py::arg("stride"), py::arg("padding"), py::arg("dilation"),
        py::arg("groups"), py::arg("data"), py::arg("weight_gradient"), py::arg("bias"));
  m.def("conv_transpose", &conv_transpose, py::arg("nd"), py::arg("x"), py::arg("weight"),
        py::arg("bias"), py::arg("stride"), py::arg("padding"), py::arg("output_padding"),
        py::arg("dilation"), py::arg("groups"));
  m.def("apply_conv_transpose", &apply_conv_transpose, py::arg("cls"), py::arg("nd"), py::arg("x"),
        py::arg("weight"), py::arg("bias"), py::arg("stride"), py::arg("padding"),
        py::arg("output_padding"), py::arg("dilation"), py::arg("groups"),
        "conv_transpose of Tensors, recorded as a node of class cls.");
  m.def("conv_transpose_backward_data", &conv_transpose_backward_data, py::arg("nd"),
        py::arg("grad"), py::arg("weight"), py::arg("shape"), py::arg("stride"), py::arg("padding"),
        py::arg("output_padding"), py::arg("dilation"), py::arg("groups"));
  m.def("conv_transpose_backward_weight", &conv_transpose_backward_weight, py::arg("nd"),
        py::arg("x"), py::arg("grad"), py::arg("shape"), py::arg("stride"), py::arg("padding"),
        py::arg("output_padding"), py::arg("dilation"), py::arg("groups"), py::arg("weight"),
        py::arg("bias"));
  m.def(
      "set_conv_precision",
      [](const std::string& name) {
        if (const char* error = conv_set_precision(name.c_str()))
          value_error("set_conv_precision", std::string(error) + ", got '" + name + "'");
      },
      py::arg("precision"));
  m.def("get_conv_precision", [] { return std::string(conv_get_precision()); });
  m.def(
      "conv_force",
      [](const std::string& name, int64_t l2) {
        if (const char* error = conv_force(name.c_str(), l2)) value_error("conv_force", error);
      },
      py::arg("name"), py::arg("l2") = 0);
}

}  // namespace gs
