// Bindings of the norm family.
#include "norm.h"

#include "autograd.h"

namespace gs {

namespace norm_bindings {

const Kernel channel_norm("channel_norm"), channel_norm_backward("channel_norm_backward");
const Kernel row_norm("row_norm"), row_norm_backward("row_norm_backward");

// An optional vector with one value a channel, in x's dtype.
Array per_channel(py::handle h, const Array& x, int64_t channels, const char* op,
                  const char* name) {
  Array a = array_optional(h, op, name);
  if (!a.present()) return a;
  check_same_dtype(a, name, x, "input", op);
  if (a.ndim != 1 || a.shape[0] != channels)
    value_error(op, std::string(name) + " has shape " + a.shape_text() + "; input has shape " +
                        x.shape_text() + ", so it must be (" + std::to_string(channels) +
                        ",): one value a channel, channels last");
  return dense(a);
}

// As per_channel, but written in place.
Array running(py::handle h, const Array& x, int64_t channels, bool write, const char* op,
              const char* name) {
  Array a = per_channel(h, x, channels, op, name);
  if (a.present() && write) {
    a = array_out(h, op, name);
    if (!a.contiguous)
      value_error(op, std::string(name) + " must be contiguous: it is updated in place");
  }
  return a;
}

// x as (outer, rows, channels); per_sample: the first axis is kept apart
ChannelNormParams shape_of(const Array& x, bool per_sample, int64_t groups, const char* op) {
  ChannelNormParams p{};
  p.channels = x.dim(-1);
  if (p.channels == 0)
    value_error(op, "input has shape " + x.shape_text() + " with no channels (last axis)");
  p.outer = per_sample ? x.shape[0] : 1;
  p.rows = p.outer ? x.size / p.outer / p.channels : 0;
  p.groups = groups ? groups : p.channels;
  return p;
}

py::tuple batch_norm(py::handle xh, py::handle wh, py::handle bh, py::handle mh, py::handle vh,
                     py::handle nh, bool training, double momentum, double eps, py::handle rh,
                     bool relu, bool per_sample) {
  const char* op = per_sample ? "instance_norm" : "batch_norm";
  Array x = array_in(xh, op, "input");
  check_float(x, op, "input");
  if (x.ndim < (per_sample ? 3 : 2))
    value_error(op,
                "input has shape " + x.shape_text() +
                    (per_sample ? "; expected (N, ..., C): channels last, at least 3 dimensions"
                                : "; expected (N, C), (N, T, C) or (N, H, W, C): channels last"));
  ChannelNormParams p = shape_of(x, per_sample, 0, op);
  Array w = per_channel(wh, x, p.channels, op, "weight"),
        b = per_channel(bh, x, p.channels, op, "bias");
  Array m = running(mh, x, p.channels, training, op, "running_mean");
  Array v = running(vh, x, p.channels, training, op, "running_var");
  if (!training && (!m.present() || !v.present()))
    value_error(op, "without training, running_mean and running_var are needed");
  if (training && p.rows <= 1)
    value_error(op,
                "expected more than one value per channel when training; input has shape " +
                    x.shape_text() +
                    ". Use a larger batch (or drop_last=True in the loader), or call model.eval()");
  if (!(eps >= 0)) value_error(op, "eps must be 0 or more, got " + std::to_string(eps));
  Array count = array_optional(nh, op, "num_batches_tracked");
  if (count.present()) {
    count = array_out(nh, op, "num_batches_tracked");
    if (count.dtype != kI64 || count.size != 1)
      value_error(op, "num_batches_tracked must be one int64, got " +
                          std::string(dtype_name(count.dtype)) + " of shape " + count.shape_text());
  }
  Array res = array_optional(rh, op, "residual");
  if (res.present()) {
    check_same_dtype(res, "residual", x, "input", op);
    check_same_shape(res, "residual", x, "input", op);
    res = dense(res);
  }
  x = dense(x);
  Array y = array_like(x), stats = array_new(kF64, {p.outer, p.groups, 2});
  p.eps = eps;
  p.momentum.value = momentum;
  p.momentum.slot = -1;
  p.training = training;
  p.relu = relu;
  if (x.size)
    run(channel_norm, x.dtype, p,
        {in(x), in(w), in(b), training ? inout(m) : in(m), training ? inout(v) : in(v),
         inout(count), in(res), out(y), out(stats)});
  return py::make_tuple(result(y), result(stats));
}

// batch_norm on Tensors, recorded as a node of class `cls`. momentum None: the plain average.
py::object apply_batch_norm(py::handle cls, py::handle x, py::handle weight, py::handle bias,
                            py::handle mean, py::handle var, py::handle count, bool training,
                            py::handle momentum, double eps, py::handle residual, bool relu) {
  static PyObject* const names[] = {PyUnicode_InternFromString("training"),
                                    PyUnicode_InternFromString("relu")};
  const char* op = "batch_norm";
  double rate = -1.0;
  if (!momentum.is_none()) {
    rate = PyFloat_AsDouble(momentum.ptr());
    if (rate == -1.0 && PyErr_Occurred()) throw py::error_already_set();
    if (!(rate >= 0))
      value_error(op, "momentum must be 0 or more, or None, got " + std::string(py::str(momentum)));
  }
  const py::handle none(Py_None);
  py::tuple made =
      batch_norm(tensor_data(x, op, "input"), tensor_data(weight, op, "weight", true),
                 tensor_data(bias, op, "bias", true), tensor_data(mean, op, "running_mean", true),
                 tensor_data(var, op, "running_var", true),
                 training ? py::handle(tensor_data(count, op, "num_batches_tracked", true)) : none,
                 training, rate, eps, tensor_data(residual, op, "residual", true), relu, false);
  if (training)
    for (py::handle h : {mean, var, count}) tensor_changed(h);
  PyObject* const flags[] = {training ? Py_True : Py_False, relu ? Py_True : Py_False};
  const std::initializer_list<Attribute> attributes = {{names[0], flags[0]}, {names[1], flags[1]}};
  const py::handle y = PyTuple_GET_ITEM(made.ptr(), 0), stats = PyTuple_GET_ITEM(made.ptr(), 1);
  const py::handle kept = relu ? bias : none;  // of the output, what its ReLU needs
  if (relu && !residual.is_none())
    return tensor_apply(cls, y, {x, weight, bias, residual}, {x, weight, kept, stats}, true,
                        attributes);
  return tensor_apply(cls, y, {x, weight, bias, residual}, {x, weight, kept, stats, none}, false,
                      attributes);
}

py::tuple group_norm(py::handle xh, int64_t groups, py::handle wh, py::handle bh, double eps) {
  const char* op = "group_norm";
  Array x = array_in(xh, op, "input");
  check_float(x, op, "input");
  if (x.ndim < 2)
    value_error(op, "input has shape " + x.shape_text() + "; expected (N, ..., C): channels last");
  if (groups < 1 || x.dim(-1) % groups != 0)
    value_error(op, "input has shape " + x.shape_text() + ": its " + std::to_string(x.dim(-1)) +
                        " channels (last axis) cannot be split into num_groups = " +
                        std::to_string(groups));
  ChannelNormParams p = shape_of(x, true, groups, op);
  if (x.size == groups && p.outer == 1)
    value_error(op, "expected more than one value per group; input has shape " + x.shape_text());
  Array w = per_channel(wh, x, p.channels, op, "weight"),
        b = per_channel(bh, x, p.channels, op, "bias");
  x = dense(x);
  Array y = array_like(x), stats = array_new(kF64, {p.outer, p.groups, 2}), none;
  p.eps = eps;
  p.momentum.value = 0;
  p.momentum.slot = -1;
  p.training = 1;
  if (x.size)
    run(channel_norm, x.dtype, p,
        {in(x), in(w), in(b), in(none), in(none), in(none), in(none), out(y), out(stats)});
  return py::make_tuple(result(y), result(stats));
}

py::tuple channel_backward(py::handle gh, py::handle xh, py::handle sh, py::handle wh,
                           py::handle bh, py::handle yh, bool training, bool relu, bool need_dx,
                           bool need_dw, bool need_db, bool need_dres) {
  const char* op = "channel_norm_backward";
  Array dy = array_in(gh, op, "grad"), x = array_in(xh, op, "input"),
        stats = array_dense(sh, op, "stats");
  check_same_dtype(dy, "grad", x, "input", op);
  check_same_shape(dy, "grad", x, "input", op);
  if (stats.ndim != 3 || stats.dtype != kF64 || stats.shape[2] != 2 || x.ndim < 2)
    value_error(op, "stats must be the array that the forward pass returned");
  ChannelNormParams p{};
  p.outer = stats.shape[0];
  p.groups = stats.shape[1];
  p.channels = x.dim(-1);
  if ((p.outer != 1 && p.outer != x.shape[0]) || p.groups < 1 || p.channels % p.groups != 0)
    value_error(op, "stats has shape " + stats.shape_text() + ", which does not fit the input " +
                        x.shape_text());
  p.rows = p.outer && p.channels ? x.size / p.outer / p.channels : 0;
  Array w = per_channel(wh, x, p.channels, op, "weight"),
        b = per_channel(bh, x, p.channels, op, "bias");
  Array y = array_optional(yh, op, "output");
  if (y.present()) {
    check_same_shape(y, "output", x, "input", op);
    check_same_dtype(y, "output", x, "input", op);
    y = dense(y);
  }
  p.training = training;
  p.relu = relu;
  if (need_dres && !(relu && y.present()))
    value_error(op, "the residual's gradient needs relu and the output");
  dy = dense(dy);
  x = dense(x);
  Array dx, dw, db, dres;
  if (need_dx) dx = array_like(x);
  if (need_dw) dw = array_new(x.dtype, {p.channels});
  if (need_db) db = array_new(x.dtype, {p.channels});
  if (need_dres) dres = array_like(x);
  run(channel_norm_backward, x.dtype, p,
      {in(dy), in(x), in(stats), in(w), in(b), in(y), out(dx), out(dw), out(db), out(dres)});
  py::object none = py::none();
  return py::make_tuple(need_dx ? result(dx) : none, need_dw ? result(dw) : none,
                        need_db ? result(db) : none, need_dres ? result(dres) : none);
}

// An optional array of x's last `dims` axes
Array per_row(py::handle h, const Array& x, int dims, const char* op, const char* name) {
  Array a = array_optional(h, op, name);
  if (!a.present()) return a;
  check_same_dtype(a, name, x, "input", op);
  bool fits = a.ndim == dims;
  for (int i = 0; fits && i < dims; ++i) fits = a.shape[i] == x.shape[x.ndim - dims + i];
  if (!fits)
    value_error(op, std::string(name) + " has shape " + a.shape_text() +
                        "; it must be that of the last " + std::to_string(dims) +
                        " axes of the input " + x.shape_text());
  return dense(a);
}

RowNormParams rows_of(const Array& x, int dims, bool rms, const char* op) {
  if (dims < 1 || dims > x.ndim)
    value_error(
        op, "normalized_shape has " + std::to_string(dims) + " axes, the input " + x.shape_text());
  RowNormParams p{};
  p.cols = 1;
  for (int i = x.ndim - dims; i < x.ndim; ++i) p.cols *= x.shape[i];
  if (p.cols == 0)
    value_error(op, "input has shape " + x.shape_text() + ": nothing to normalise over");
  p.rows = x.size / p.cols;
  p.rms = rms;
  return p;
}

py::tuple layer_norm(py::handle xh, int dims, py::handle wh, py::handle bh, double eps, bool rms) {
  const char* op = rms ? "rms_norm" : "layer_norm";
  Array x = array_in(xh, op, "input");
  check_float(x, op, "input");
  RowNormParams p = rows_of(x, dims, rms, op);
  if (!(eps >= 0)) value_error(op, "eps must be 0 or more, got " + std::to_string(eps));
  p.eps = eps;
  p.holds = grad_enabled() ? 0 : machine().holds;
  Array w = per_row(wh, x, dims, op, "weight"), b = per_row(bh, x, dims, op, "bias");
  x = dense(x);
  Array y = array_like(x), stats = array_new(kF64, {p.rows, 2});
  if (x.size) run(row_norm, x.dtype, p, {in(x), in(w), in(b), out(y), out(stats)});
  return py::make_tuple(result(y), result(stats));
}

py::tuple row_backward(py::handle gh, py::handle xh, py::handle sh, py::handle wh, int dims,
                       bool rms, bool need_dx, bool need_dw, bool need_db) {
  const char* op = "row_norm_backward";
  Array dy = array_in(gh, op, "grad"), x = array_in(xh, op, "input"),
        stats = array_dense(sh, op, "stats");
  check_float(x, op, "input");
  check_same_dtype(dy, "grad", x, "input", op);
  check_same_shape(dy, "grad", x, "input", op);
  RowNormParams p = rows_of(x, dims, rms, op);
  if (stats.dtype != kF64 || stats.size != 2 * p.rows)
    value_error(op, "stats must be the array that the forward pass returned");
  Array w = per_row(wh, x, dims, op, "weight"), dx, dw, db;
  dy = dense(dy);
  x = dense(x);
  const int64_t* tail = x.shape + x.ndim - dims;
  if (need_dx) dx = array_like(x);
  if (need_dw) dw = array_new(x.dtype, dims, tail);
  if (need_db) db = array_new(x.dtype, dims, tail);
  run(row_norm_backward, x.dtype, p, {in(dy), in(x), in(stats), in(w), out(dx), out(dw), out(db)});
  py::object none = py::none();
  return py::make_tuple(need_dx ? result(dx) : none, need_dw ? result(dw) : none,
                        need_db ? result(db) : none);
}

}  // namespace norm_bindings

void bind_norm(py::module_& module) {
  using namespace norm_bindings;
  Functions m(module);
  m.def("batch_norm", &batch_norm, py::arg("x"), py::arg("weight"), py::arg("bias"),
        py::arg("running_mean"), py::arg("running_var"), py::arg("num_batches"),
        py::arg("training"), py::arg("momentum"), py::arg("eps"), py::arg("residual") = py::none(),
        py::arg("relu") = false, py::arg("per_sample") = false,
        "(y, stats): relu?((x - mean) * rstd * weight + bias + residual?), statistics over all but "
        "the last axis "
        "(and the first, per_sample); momentum < 0: 1 / num_batches.");
  m.def("apply_batch_norm", &apply_batch_norm, py::arg("cls"), py::arg("x"), py::arg("weight"),
        py::arg("bias"), py::arg("running_mean"), py::arg("running_var"), py::arg("num_batches"),
        py::arg("training"), py::arg("momentum"), py::arg("eps"), py::arg("residual"),
        py::arg("relu"), "batch_norm of Tensors, recorded as a node of class cls.");
  m.def("group_norm", &group_norm, py::arg("x"), py::arg("groups"), py::arg("weight"),
        py::arg("bias"), py::arg("eps"), "(y, stats)");
  m.def("channel_norm_backward", &channel_backward, py::arg("grad"), py::arg("x"), py::arg("stats"),
        py::arg("weight"), py::arg("bias"), py::arg("y"), py::arg("training"), py::arg("relu"),
        py::arg("need_dx"), py::arg("need_dw"), py::arg("need_db"), py::arg("need_dres"),
        "(dx, dweight, dbias, dresidual) of batch, group and instance norm.");
  m.def("layer_norm", &layer_norm, py::arg("x"), py::arg("dims"), py::arg("weight"),
        py::arg("bias"), py::arg("eps"), py::arg("rms"), "(y, stats) over the last `dims` axes.");
  m.def("row_norm_backward", &row_backward, py::arg("grad"), py::arg("x"), py::arg("stats"),
        py::arg("weight"), py::arg("dims"), py::arg("rms"), py::arg("need_dx"), py::arg("need_dw"),
        py::arg("need_db"), "(dx, dweight, dbias) of layer and RMS norm.");
}

}  // namespace gs
