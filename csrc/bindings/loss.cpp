// Bindings of the loss family.
#include "loss.h"

#include "array.h"

namespace gs {

namespace loss_bindings {

struct Loss {
  const char* name;  // as users know it
  Kernel forward, backward;
  bool domain;
};
const Loss losses[] = {
    {"mse_loss", Kernel("mse_loss_forward"), Kernel("mse_loss_backward"), false},
    {"l1_loss", Kernel("l1_loss_forward"), Kernel("l1_loss_backward"), false},
    {"smooth_l1_loss", Kernel("smooth_l1_loss_forward"), Kernel("smooth_l1_loss_backward"), false},
    {"huber_loss", Kernel("huber_loss_forward"), Kernel("huber_loss_backward"), false},
    {"binary_cross_entropy", Kernel("bce_loss_forward"), Kernel("bce_loss_backward"), true},
    {"binary_cross_entropy_with_logits", Kernel("bce_logits_loss_forward"),
     Kernel("bce_logits_loss_backward"), false},
    {"kl_div", Kernel("kl_loss_forward"), Kernel("kl_loss_backward"), false},
    {"poisson_nll_loss", Kernel("poisson_loss_forward"), Kernel("poisson_loss_backward"), false},
};
const Kernel nll_forward("nll_loss_forward"), nll_backward("nll_loss_backward");

const Loss& find(const std::string& name) {
  for (const Loss& l : losses)
    if (name == l.name) return l;
  value_error("loss", "unknown loss '" + name + "'");
}

// The reshape that makes the two fit, where there is one.
std::string advice(const Array& x, const Array& t) {
  if (x.ndim == t.ndim + 1 && x.dim(-1) == 1) return "Use target[:, None] or input[:, 0].";
  if (t.ndim == x.ndim + 1 && t.dim(-1) == 1) return "Use input[:, None] or target[:, 0].";
  if (x.size == t.size)
    return "Use target.reshape" + x.shape_text() + " if the order of the elements is right.";
  return "Losses never broadcast: check the last layer and the target.";
}

struct Inputs {
  Array x, t, w, q;
};

// A weight of any shape that broadcasts to the input's.
Array weight_like(py::handle h, const Array& x, const char* op, const char* name) {
  if (!h || h.is_none()) return Array();
  Array w = array_in(h, op, name);
  check_same_dtype(x, "input", w, name, op);
  bool fits = w.ndim <= x.ndim;
  Array v = w;
  v.ndim = x.ndim;
  v.size = x.size;
  v.contiguous = same_shape(w, x) && w.contiguous;
  for (int i = 0; fits && i < x.ndim; ++i) {
    int k = i - (x.ndim - w.ndim);
    v.shape[i] = x.shape[i];
    v.strides[i] = k < 0 || w.shape[k] == 1 ? 0 : w.strides[k];
    if (k >= 0 && w.shape[k] != 1 && w.shape[k] != x.shape[i]) fits = false;
  }
  if (!fits)
    value_error(op, std::string(name) + " has shape " + w.shape_text() +
                        "; it must broadcast to the input's " + x.shape_text());
  return dense(v);
}

Inputs inputs_of(const char* op, py::handle x, py::handle t, py::handle w, py::handle q) {
  Inputs in;
  in.x = array_in(x, op, "input");
  in.t = array_in(t, op, "target");
  check_float(in.x, op, "input");
  if (!same_shape(in.x, in.t))
    value_error(op, "input " + in.x.shape_text() + " and target " + in.t.shape_text() +
                        " differ. " + advice(in.x, in.t));
  check_same_dtype(in.x, "input", in.t, "target", op);
  in.x = dense(in.x);
  in.t = dense(in.t);
  in.w = weight_like(w, in.x, op, "weight");
  in.q = weight_like(q, in.x, op, "pos_weight");
  return in;
}

Array gradient_in(py::handle h, const Array& x, bool reduce, const char* op) {
  Array g = array_dense(h, op, "grad");
  check_same_dtype(x, "input", g, "grad", op);
  if (reduce ? g.size != 1 : g.size != x.size) value_error(op, "grad has shape " + g.shape_text());
  return g;
}

struct NllInputs {
  Array x, t, w;
  NllParams p;
};

NllInputs nll_inputs(const Array& x, py::handle t, py::handle w, int64_t ignore_index, int reduce) {
  const char* op = "nll_loss";
  NllInputs in;
  in.x = x;
  check_float(in.x, op, "input");
  if (in.x.ndim < 1) value_error(op, "input must have a class axis, the last; it has shape ()");
  in.t = array_in(t, op, "target");
  if (in.t.dtype != kI32 && in.t.dtype != kI64)
    type_error(op, std::string("target has dtype ") + dtype_name(in.t.dtype) +
                       "; class indices are int32 or int64");
  bool fits = in.t.ndim == in.x.ndim - 1;
  for (int i = 0; fits && i < in.t.ndim; ++i) fits = in.t.shape[i] == in.x.shape[i];
  if (!fits)
    value_error(op, "input " + in.x.shape_text() + " and target " + in.t.shape_text() +
                        " do not fit; the target has the shape of the input without its last axis, "
                        "the classes");
  in.t = dense(in.t);
  in.w = array_optional(w, op, "weight");
  if (in.w.present()) {
    check_same_dtype(in.x, "input", in.w, "weight", op);
    if (in.w.ndim != 1 || in.w.dim(0) != in.x.dim(-1))
      value_error(op, "weight has shape " + in.w.shape_text() + "; it must be (" +
                          std::to_string(in.x.dim(-1)) + ",), one number a class");
    in.w = dense(in.w);
  }
  in.p = NllParams{in.t.size, in.x.dim(-1), ignore_index, in.t.dtype, reduce};
  return in;
}

}  // namespace loss_bindings

void bind_loss(py::module_& module) {
  using namespace loss_bindings;
  Functions m(module);
  m.def(
      "loss_forward",
      [](const std::string& name, py::handle x, py::handle t, py::handle weight,
         py::handle pos_weight, double option, bool flag, bool reduce, double scale) {
        const Loss& loss = find(name);
        Inputs i = inputs_of(loss.name, x, t, weight, pos_weight);
        LossParams p{i.x.size, scale, option, flag, reduce};
        Array y = reduce ? array_new(i.x.dtype, {}) : array_like(i.x);
        Array status = loss.domain ? array_new(kF64, {1}) : Array();
        if (loss.domain) *status.as<double>() = 0;
        run(loss.forward, i.x.dtype, p, {in(i.x), in(i.t), in(i.w), in(i.q), out(y), out(status)});
        if (loss.domain)
          check_values(
              status, [](const void* s, const int64_t*) { return *(const double*)s == 0; },
              [](const Array&, const int64_t* args) {
                value_error((const char*)args[0],
                            "input has a value that is not in [0, 1]. Apply a sigmoid first, or "
                            "use binary_cross_entropy_with_logits");
              },
              {(int64_t)(intptr_t)loss.name});
        return result(y);
      },
      py::arg("name"), py::arg("input"), py::arg("target"), py::arg("weight") = py::none(),
      py::arg("pos_weight") = py::none(), py::arg("option") = 0.0, py::arg("flag") = false,
      py::arg("reduce") = true, py::arg("scale") = 1.0,
      "scale * sum of the losses (shape ()), or with reduce=False each of them.");
  m.def(
      "loss_backward",
      [](const std::string& name, py::handle grad, py::handle x, py::handle t, py::handle weight,
         py::handle pos_weight, double option, bool flag, bool reduce, double scale,
         bool need_input, bool need_target) {
        const Loss& loss = find(name);
        Inputs i = inputs_of(loss.name, x, t, weight, pos_weight);
        Array g = gradient_in(grad, i.x, reduce, loss.name);
        LossParams p{i.x.size, scale, option, flag, reduce};
        Array dx = need_input ? array_like(i.x) : Array(),
              dt = need_target ? array_like(i.x) : Array();
        run(loss.backward, i.x.dtype, p,
            {in(i.x), in(i.t), in(i.w), in(i.q), in(g), out(dx), out(dt)});
        return py::make_tuple(need_input ? result(dx) : py::none(),
                              need_target ? result(dt) : py::none());
      },
      py::arg("name"), py::arg("grad"), py::arg("input"), py::arg("target"),
      py::arg("weight") = py::none(), py::arg("pos_weight") = py::none(), py::arg("option") = 0.0,
      py::arg("flag") = false, py::arg("reduce") = true, py::arg("scale") = 1.0,
      py::arg("need_input") = true, py::arg("need_target") = false,
      "(d input, d target), None where not needed.");
  m.def(
      "nll_loss_forward",
      [](py::handle x, py::handle t, py::handle weight, int64_t ignore_index, int reduce) {
        NllInputs i = nll_inputs(array_in(x, "nll_loss", "input"), t, weight, ignore_index, reduce);
        if (i.t.size == 0 && reduce == 2)
          value_error("nll_loss", "input has shape " + i.x.shape_text() +
                                      ": the mean over an empty batch is not defined; leave the "
                                      "batch out or use reduction='sum'");
        i.x = dense(i.x);
        Array y = reduce ? array_new(i.x.dtype, {}) : array_new(i.x.dtype, i.t.ndim, i.t.shape);
        Array total = array_new(kF64, {2});
        run(nll_forward, i.x.dtype, i.p, {in(i.x), in(i.t), in(i.w), out(y), out(total)});
        double bad = total.as<double>()[1];
        if (bad >= 0) {
          int64_t r = (int64_t)bad,
                  k = i.t.dtype == kI32 ? i.t.as<int32_t>()[r] : i.t.as<int64_t>()[r];
          throw py::index_error("nll_loss: target element " + std::to_string(r) + " is " +
                                std::to_string(k) + "; classes are 0 to " +
                                std::to_string(i.p.classes - 1) + " (ignore_index is " +
                                std::to_string(ignore_index) + ")");
        }
        check_values(
            total, [](const void* s, const int64_t*) { return !(((const double*)s)[1] >= 0); },
            [](const Array& a, const int64_t* args) {
              throw py::index_error(
                  "nll_loss: target element " + std::to_string((int64_t)a.as<double>()[1]) +
                  " is not a class; classes are 0 to " + std::to_string(args[0] - 1) +
                  " (ignore_index is " + std::to_string(args[1]) + ")");
            },
            {i.p.classes, ignore_index});
        return py::make_tuple(result(y), result(total));
      },
      py::arg("input"), py::arg("target"), py::arg("weight") = py::none(),
      py::arg("ignore_index") = -100, py::arg("reduce") = 2,
      "(loss, {sum of weights, -1}); reduce: 0 none, 1 sum, 2 mean.");
  m.def(
      "nll_loss_backward",
      [](py::handle grad, py::handle x, py::handle t, py::handle weight, py::handle total,
         int64_t ignore_index, int reduce) {
        NllInputs i = nll_inputs(array_in(x, "nll_loss", "input"), t, weight, ignore_index, reduce);
        Array g = array_dense(grad, "nll_loss", "grad"), s = array_in(total, "nll_loss", "total");
        check_same_dtype(i.x, "input", g, "grad", "nll_loss");
        if (g.size != (reduce ? 1 : i.t.size) || s.dtype != kF64 || s.size != 2 || !s.contiguous)
          value_error("nll_loss", "grad has shape " + g.shape_text());
        Array dx = array_like(i.x);
        run(nll_backward, i.x.dtype, i.p, {in(i.t), in(i.w), in(g), in(s), out(dx)});
        return result(dx);
      },
      py::arg("grad"), py::arg("input"), py::arg("target"), py::arg("weight"), py::arg("total"),
      py::arg("ignore_index") = -100, py::arg("reduce") = 2);
}

}  // namespace gs
