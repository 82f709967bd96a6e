// Bindings of the softmax family.
#include "softmax.h"

#include "array.h"

namespace gs {

namespace softmax_bindings {

const Kernel forward("softmax"), backward("softmax_backward");
const Kernel loss_kernel("cross_entropy"), scale_kernel("scale_rows");

SoftmaxParams axis_params(const Array& x, int64_t dim, bool log, const char* op) {
  int64_t nd = x.ndim ? x.ndim : 1;
  if (dim < -nd || dim >= nd)
    throw py::index_error(std::string(op) + ": dim " + std::to_string(dim) +
                          " is out of range for an input of shape " + x.shape_text());
  SoftmaxParams p{1, 1, 1, log, get_num_threads(), machine().l2 / 4};
  if (dim < 0) dim += nd;
  for (int i = 0; i < x.ndim; ++i) (i < dim ? p.outer : i > dim ? p.inner : p.n) *= x.shape[i];
  return p;
}

// Throws IndexError when an index is neither a class nor ignored: int scan without branches first.
template <class I>
void check_indices(const Array& target, int64_t classes, int64_t ignore) {
  check_values(
      target,
      [](const void* data, const int64_t* args) {
        const I* t = (const I*)data;
        const I high = (I)args[1], skip = (I)args[2];
        const bool can_skip = (int64_t)skip == args[2];
        int bad = 0;
        for (int64_t i = 0; i < args[0]; ++i)
          bad |= (t[i] < 0 || t[i] >= high) && !(can_skip && t[i] == skip);
        return !bad;
      },
      [](const Array& a, const int64_t* args) {
        const I* t = a.as<I>();
        for (int64_t i = 0; i < a.size; ++i) {
          if ((t[i] >= 0 && t[i] < (I)args[1]) || (int64_t)t[i] == args[2]) continue;
          std::string at;
          int64_t rest = i;
          for (int d = a.ndim - 1; d >= 0; --d) {
            at = std::to_string(rest % a.shape[d]) + (at.empty() ? "" : ", ") + at;
            rest /= a.shape[d];
          }
          throw py::index_error(
              "cross_entropy: target[" + at + "] is " + std::to_string((int64_t)t[i]) +
              ", but there are " + std::to_string(args[1]) + " classes (0 .. " +
              std::to_string(args[1] - 1) + ") and ignore_index is " + std::to_string(args[2]) +
              ". Check the labels, or the size of the last layer");
        }
      },
      {target.size, classes, ignore});
}

// (loss, dlogits or None)
py::tuple cross_entropy(py::handle logits_h, py::handle target_h, py::handle weight_h,
                        int64_t ignore_index, int reduction, double smoothing, bool need_grad) {
  const char* op = "cross_entropy";
  Array x = array_dense(logits_h, op, "input");
  check_float(x, op, "input");
  Array target = array_dense(target_h, op, "target"),
        weight = array_optional(weight_h, op, "weight");
  if (x.ndim == 0) value_error(op, "input is 0-dimensional; it must be (..., classes)");
  int64_t classes = x.dim(-1), rows = 1;
  for (int i = 0; i + 1 < x.ndim; ++i) rows *= x.shape[i];
  bool indices = target.dtype == kI32 || target.dtype == kI64;
  if (indices) {
    bool fits = target.ndim == x.ndim - 1;
    for (int i = 0; fits && i < target.ndim; ++i) fits = target.shape[i] == x.shape[i];
    if (!fits) {
      const char* hint = "";
      if (target.ndim == x.ndim && target.dim(-1) == 1)
        hint = ". Drop the last axis by target[..., 0]";
      else if (target.ndim == x.ndim && target.dim(-1) == classes)
        hint = ". One-hot targets become indices by target.argmax(-1)";
      value_error(op, "class indices have shape " + target.shape_text() + "; expected " +
                          shape_text(x.shape, x.ndim - 1) + " for an input of shape " +
                          x.shape_text() + " (classes are the last axis)" + hint);
    }
  } else if (target.is_float()) {
    if (target.ndim == x.ndim - 1)
      type_error(op,
                 std::string("target has dtype ") + dtype_name(target.dtype) + " and shape " +
                     target.shape_text() +
                     "; class indices must be int32 or int64 (convert "
                     "them with .astype(np.int64)), probabilities have the shape of the input, " +
                     x.shape_text());
    check_same_dtype(x, "input", target, "target", op);
    check_same_shape(x, "input", target, "target (probabilities)", op);
  } else {
    type_error(op,
               std::string("target has dtype ") + dtype_name(target.dtype) +
                   "; class indices must be int32 or int64, probabilities the dtype of the input. "
                   "Convert it with .astype(np.int64)");
  }
  if (weight.present()) {
    check_same_dtype(x, "input", weight, "weight", op);
    weight = dense(weight);
    if (weight.ndim != 1 || weight.size != classes)
      value_error(op, "weight has shape " + weight.shape_text() +
                          "; expected one value per class, (" + std::to_string(classes) + ",)");
  }
  if (!(smoothing >= 0 && smoothing <= 1))
    value_error(op, "label_smoothing must lie in [0, 1], got " + std::to_string(smoothing));
  if (reduction < kReduceNone || reduction > kReduceSum) value_error(op, "unknown reduction");
  if (rows == 0 && reduction == kReduceMean)
    value_error(op, "input has shape " + x.shape_text() +
                        ": the mean over an empty batch is not defined; leave the batch out or use "
                        "reduction='sum'");
  if (classes == 0 && rows > 0)
    value_error(op, "input has shape " + x.shape_text() + ": no classes");
  if (target.dtype == kI32) check_indices<int32_t>(target, classes, ignore_index);
  if (target.dtype == kI64) check_indices<int64_t>(target, classes, ignore_index);
  Array loss = reduction == kReduceNone ? array_new(x.dtype, x.ndim - 1, x.shape)
                                        : array_new(x.dtype, {}),
        d;
  if (need_grad) d = array_like(x);
  CrossEntropyParams p{rows,         classes,   target.dtype,      reduction,
                       ignore_index, smoothing, get_num_threads(), machine().holds};
  run(loss_kernel, x.dtype, p, {in(x), in(target), in(weight), out(loss), out(d)});
  py::object grad = py::none();
  if (need_grad) grad = result(d);
  return py::make_tuple(result(loss), grad);
}

}  // namespace softmax_bindings

void bind_softmax(py::module_& module) {
  using namespace softmax_bindings;
  Functions m(module);
  m.def(
      "softmax",
      [](py::handle h, int64_t dim, bool log) {
        const char* op = log ? "log_softmax" : "softmax";
        Array x = array_dense(h, op, "input");
        check_float(x, op, "input");
        SoftmaxParams p = axis_params(x, dim, log, op);
        Array y = array_like(x);
        if (x.size) run(forward, x.dtype, p, {in(x), out(y)});
        return result(y);
      },
      py::arg("x"), py::arg("dim"), py::arg("log"));
  m.def(
      "softmax_backward",
      [](py::handle grad, py::handle saved, int64_t dim, bool log) {
        const char* op = log ? "log_softmax" : "softmax";
        Array dy = array_dense(grad, op, "grad"), y = array_dense(saved, op, "output");
        check_float(dy, op, "grad");
        check_same_dtype(dy, "grad", y, "output", op);
        check_same_shape(dy, "grad", y, "output", op);
        SoftmaxParams p = axis_params(y, dim, log, op);
        Array dx = array_like(y);
        if (y.size) run(backward, y.dtype, p, {in(dy), in(y), out(dx)});
        return result(dx);
      },
      py::arg("dy"), py::arg("y"), py::arg("dim"), py::arg("log"));
  m.def("cross_entropy", &cross_entropy, py::arg("input"), py::arg("target"), py::arg("weight"),
        py::arg("ignore_index"), py::arg("reduction"), py::arg("label_smoothing"),
        py::arg("need_grad"),
        "(loss, gradient of the input or None); reduction 0 none, 1 mean, 2 sum.");
  m.def(
      "scale_rows",
      [](py::handle h, py::handle factors) {
        const char* op = "scale_rows";
        Array x = array_dense(h, op, "x"), g = array_dense(factors, op, "factors");
        check_float(x, op, "x");
        check_same_dtype(x, "x", g, "factors", op);
        int64_t n = x.ndim ? x.dim(-1) : 1, rows = n ? x.size / n : 0;
        if (g.size != 1 && g.size != rows)
          value_error(op,
                      "factors have shape " + g.shape_text() + " for x of shape " + x.shape_text());
        Array out_a = array_like(x);
        if (x.size)
          run(scale_kernel, x.dtype, ScaleRowsParams{rows, n, g.size == 1},
              {in(x), in(g), out(out_a)});
        return result(out_a);
      },
      py::arg("x"), py::arg("factors"),
      "x with row r multiplied by factors[r] (or all by the only factor).");
}

}  // namespace gs
