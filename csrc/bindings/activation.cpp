// Bindings of the activation family.
#include "activation.h"

#include "array.h"

namespace gs {

namespace activation_bindings {

const Kernel forward("activation"), backward("activation_backward");
const Kernel forward_mask("activation_mask"), backward_mask("activation_mask_backward");
const Kernel forward_slope("activation_slope");
const Kernel rrelu_forward("rrelu"), rrelu_back("rrelu_backward");
const Kernel prelu_forward("prelu"), prelu_back("prelu_backward");

const char* const names[kActivationCount] = {
#define X(name) #name,
    GS_ACTIVATIONS(X)
#undef X
};

const char* check_op(int op) {
  if (op < 0 || op >= kActivationCount)
    value_error("activation", "unknown function number " + std::to_string(op));
  return names[op];
}

// dx of an op from dy and what it saved, both of one shape and dtype
void check_pair(const Array& dy, const Array& s, const char* op) {
  check_float(dy, op, "grad");
  check_same_dtype(dy, "grad", s, "saved", op);
  check_same_shape(dy, "grad", s, "saved", op);
}

void check_seed_range(double lower, double upper) {
  if (!(lower <= upper))
    value_error("rrelu", "lower must not exceed upper, got lower=" + std::to_string(lower) +
                             " and upper=" + std::to_string(upper));
}

// weight: (channels,) with channels the last axis of x, or one value
PReluParams prelu_params(const Array& x, const Array& w) {
  check_float(x, "prelu", "input");
  check_same_dtype(x, "input", w, "weight", "prelu");
  if (w.size != 1 && (w.ndim != 1 || x.ndim == 0 || w.size != x.dim(-1)))
    value_error("prelu",
                "weight has shape " + w.shape_text() +
                    "; it must hold one value or one per channel, the last axis of the input " +
                    x.shape_text());
  int64_t channels = w.size;
  return PReluParams{x.size / (channels ? channels : 1), channels ? channels : 1};
}

}  // namespace activation_bindings

void bind_activation(py::module_& module) {
  using namespace activation_bindings;
  Functions m(module);
  py::dict codes;
  for (int i = 0; i < kActivationCount; ++i) codes[names[i]] = i;
  m.attr("ACTIVATIONS") = codes;
  m.def(
      "activation",
      [](int op, py::handle x, double a, double b, double c) {
        const char* name = check_op(op);
        Array in_x = array_dense(x, name, "input");
        check_float(in_x, name, "input");
        Array y = array_like(in_x);
        run(forward, in_x.dtype, ActivationParams{in_x.size, op, a, b, c, machine().holds},
            {in(in_x), out(y)});
        return result(y);
      },
      py::arg("op"), py::arg("x"), py::arg("a") = 0.0, py::arg("b") = 0.0, py::arg("c") = 0.0);
  m.def(
      "activation_",
      [](int op, py::handle x, double a, double b, double c) {
        const char* name = check_op(op);
        Array io = array_out(x, name, "input");
        check_float(io, name, "input");
        if (io.contiguous) {
          run(forward, io.dtype, ActivationParams{io.size, op, a, b, c}, {in(io), out(io)});
          return;
        }
        Array d = dense(io);
        run(forward, io.dtype, ActivationParams{io.size, op, a, b, c}, {in(d), out(d)});
        copy_into(d, io);
      },
      py::arg("op"), py::arg("x"), py::arg("a") = 0.0, py::arg("b") = 0.0, py::arg("c") = 0.0,
      "In place.");
  m.def(
      "activation_backward",
      [](int op, py::handle dy, py::handle saved, double a, double b, double c) {
        const char* name = check_op(op);
        Array g = array_dense(dy, name, "grad"), s = array_dense(saved, name, "saved");
        check_pair(g, s, name);
        Array dx = array_like(g);
        run(backward, g.dtype, ActivationParams{g.size, op, a, b, c}, {in(g), in(s), out(dx)});
        return result(dx);
      },
      py::arg("op"), py::arg("dy"), py::arg("saved"), py::arg("a") = 0.0, py::arg("b") = 0.0,
      py::arg("c") = 0.0);
  m.def(
      "activation_mask",
      [](int op, py::handle x, double a, double b) {
        const char* name = check_op(op);
        if (op != kAct_relu && op != kAct_leaky_relu && op != kAct_hardtanh && op != kAct_threshold)
          value_error(name, "its derivative is not kept as one bit");
        Array in_x = array_dense(x, name, "input"), y = array_like(in_x);
        check_float(in_x, name, "input");
        Array bits = array_new(kU8, {(in_x.size + 15) / 16 * 2});
        run(forward_mask, in_x.dtype, ActivationParams{in_x.size, op, a, b, 0},
            {in(in_x), out(y), out(bits)});
        return py::make_tuple(result(y), result(bits));
      },
      py::arg("op"), py::arg("x"), py::arg("a") = 0.0, py::arg("b") = 0.0,
      "(y, bits): float32; a bit an element says whether the derivative is 1.");
  m.def(
      "activation_mask_backward",
      [](py::handle dy, py::handle bits, double slope) {
        Array g = array_dense(dy, "activation", "grad"),
              b = array_dense(bits, "activation", "bits");
        check_float(g, "activation", "grad");
        if (b.dtype != kU8 || b.size != (g.size + 15) / 16 * 2)
          value_error("activation",
                      "the saved bits do not fit a gradient of shape " + g.shape_text());
        Array dx = array_like(g);
        run(backward_mask, g.dtype, ActivationParams{g.size, kAct_relu, slope, 0, 0},
            {in(g), in(b), out(dx)});
        return result(dx);
      },
      py::arg("dy"), py::arg("bits"), py::arg("slope") = 0.0,
      "dy where the bit is set, else slope * dy.");
  m.def(
      "activation_slope",
      [](int op, py::handle x, double a) {
        const char* name = check_op(op);
        if (op != kAct_gelu && op != kAct_gelu_tanh && op != kAct_silu && op != kAct_mish)
          value_error(name, "its derivative is not computed by its forward pass");
        Array in_x = array_dense(x, name, "input"), y = array_like(in_x), d = array_like(in_x);
        check_float(in_x, name, "input");
        run(forward_slope, in_x.dtype, ActivationParams{in_x.size, op, a, 0, 0},
            {in(in_x), out(y), out(d)});
        return py::make_tuple(result(y), result(d));
      },
      py::arg("op"), py::arg("x"), py::arg("a") = 0.0, "(y, derivative): float32.");
  m.def(
      "rrelu",
      [](py::handle x, double lower, double upper, uint64_t seed, uint64_t counter) {
        check_seed_range(lower, upper);
        Array in_x = array_dense(x, "rrelu", "input");
        check_float(in_x, "rrelu", "input");
        Array y = array_like(in_x);
        run(rrelu_forward, in_x.dtype,
            RReluParams{in_x.size, lower, upper, seed, Counter{counter, -1}}, {in(in_x), out(y)});
        return result(y);
      },
      py::arg("x"), py::arg("lower"), py::arg("upper"), py::arg("seed"), py::arg("counter"));
  m.def(
      "rrelu_backward",
      [](py::handle dy, py::handle saved, double lower, double upper, uint64_t seed,
         uint64_t counter) {
        check_seed_range(lower, upper);
        Array g = array_dense(dy, "rrelu", "grad"), s = array_dense(saved, "rrelu", "saved");
        check_pair(g, s, "rrelu");
        Array dx = array_like(g);
        run(rrelu_back, g.dtype, RReluParams{g.size, lower, upper, seed, Counter{counter, -1}},
            {in(g), in(s), out(dx)});
        return result(dx);
      },
      py::arg("dy"), py::arg("saved"), py::arg("lower"), py::arg("upper"), py::arg("seed"),
      py::arg("counter"));
  m.def(
      "prelu",
      [](py::handle x, py::handle weight) {
        Array a = array_dense(x, "prelu", "input"), w = array_dense(weight, "prelu", "weight");
        PReluParams p = prelu_params(a, w);
        Array y = array_like(a);
        run(prelu_forward, a.dtype, p, {in(a), in(w), out(y)});
        return result(y);
      },
      py::arg("x"), py::arg("weight"));
  m.def(
      "prelu_backward",
      [](py::handle dy, py::handle x, py::handle weight, bool need_x, bool need_weight) {
        Array g = array_dense(dy, "prelu", "grad"), a = array_dense(x, "prelu", "input"),
              w = array_dense(weight, "prelu", "weight"), dx, dw;
        PReluParams p = prelu_params(a, w);
        check_pair(g, a, "prelu");
        if (need_x) dx = array_like(a);
        if (need_weight) dw = array_like(w);
        run(prelu_back, a.dtype, p, {in(g), in(a), in(w), out(dx), out(dw)});
        return py::make_tuple(need_x ? result(dx) : py::none(),
                              need_weight ? result(dw) : py::none());
      },
      py::arg("dy"), py::arg("x"), py::arg("weight"), py::arg("need_x"), py::arg("need_weight"),
      "(dx, dweight), None where it is not needed.");
}

}  // namespace gs
