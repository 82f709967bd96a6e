// Bindings of the optimizer family: lists of arrays in, one launch for all of them.
#include "optimizer.h"

#include <math.h>

#include "autograd.h"

namespace gs {

namespace optimizer_bindings {

struct Rule {
  Kernel kernel;
  int states;
};
const Rule rules[] = {{Kernel("sgd"), 0},
                      {Kernel("sgd_momentum"), 1},
                      {Kernel("adagrad"), 1},
                      {Kernel("rmsprop"), 1},
                      {Kernel("rmsprop_centered"), 2},
                      {Kernel("rmsprop_momentum"), 2},
                      {Kernel("rmsprop_centered_momentum"), 3},
                      {Kernel("adadelta"), 2},
                      {Kernel("adam"), 2},
                      {Kernel("adam_amsgrad"), 3},
                      {Kernel("nadam"), 2},
                      {Kernel("adamax"), 2},
                      {Kernel("radam"), 2},
                      {Kernel("asgd"), 1},
                      {Kernel("average"), 0}};
const Kernel grad_norm("grad_norm"), grad_scale("grad_scale"), grad_clamp("grad_clamp");

const Rule& find_rule(const std::string& name) {
  for (const Rule& r : rules)
    if (name == r.kernel.name) return r;
  value_error("optimizer_update", "unknown rule '" + name + "'");
}

Array control_in(py::handle h, const char* op) {
  Array c = array_out(h, op, "control");
  if (c.dtype != kF64 || c.ndim != 1 || c.dim(0) != 4 || !c.contiguous)
    value_error(op, "control must be a contiguous float64 array of shape (4,), got shape " +
                        c.shape_text());
  return c;
}

// The parameter struct with the sizes behind it, the buffers, and what keeps them alive.
template <class P>
struct Call {
  std::vector<int64_t> words;
  std::vector<Buffer> buffers;
  std::vector<py::object> held;
  std::vector<std::pair<Array, Array>> back;  // dense copies to be written back to strided arrays
  static_assert(sizeof(P) % sizeof(int64_t) == 0, "");

  explicit Call(int64_t count) : words(sizeof(P) / sizeof(int64_t) + (size_t)count) {
    params()->count = count;
  }
  P* params() { return (P*)words.data(); }
  void size(int64_t i, int64_t n) { words[sizeof(P) / sizeof(int64_t) + (size_t)i] = n; }
  void add(const Array& a, Access access) {
    if (a.contiguous) {
      buffers.push_back(Buffer{a.data, 0, access});
      held.push_back(a.object);
      return;
    }
    Array c = dense(a);
    buffers.push_back(Buffer{c.data, 0, access});
    held.push_back(c.object);
    if (access & kWrite) back.emplace_back(c, a);
  }
  void launch(const Kernel& kernel, DType dtype) {
    run_kernel(kernel, dtype, words.data(), words.size() * sizeof(int64_t), buffers.data(),
               (int)buffers.size());
    for (auto& b : back) copy_into(b.first, b.second);
  }
};

// A list of gradients of one dtype.
template <class P>
DType add_gradients(Call<P>& call, py::handle arrays, int64_t count, const char* op,
                    Access access) {
  DType dtype = kF32;
  for (int64_t i = 0; i < count; ++i) {
    std::string name = "gradient " + std::to_string(i);
    py::handle h = PyList_GET_ITEM(arrays.ptr(), i);
    Array a = access == kRead ? array_in(h, op, name.c_str()) : array_out(h, op, name.c_str());
    check_float(a, op, name.c_str());
    if (i == 0)
      dtype = a.dtype;
    else if (a.dtype != dtype)
      type_error(op, name + " is " + dtype_name(a.dtype) + ", the first one " + dtype_name(dtype));
    call.size(i, a.size);
    call.add(a, access);
  }
  return dtype;
}

int64_t list_size(py::handle h, const char* op) {
  if (!h || !PyList_Check(h.ptr())) type_error(op, "arrays must be a list");
  return (int64_t)PyList_GET_SIZE(h.ptr());
}

// Field by field: recordings compare parameters byte by byte, and a whole Scalar that is assigned
// brings along whatever lay in its padding.
void set(Scalar* s, double value, int slot) {
  s->value = value;
  s->slot = slot;
}

// One launch for the arrays of all parameters: each, its gradient, its states.
void update(const std::string& name, py::handle slots, py::handle values, PyObject* const* arrays,
            int64_t n, py::handle control, bool skip_nonfinite) {
  const char* op = name.c_str();
  const Rule& rule = find_rule(name);
  const int64_t stride = rule.states + 2;
  if (n % stride != 0)
    value_error(op, "needs " + std::to_string(stride) + " arrays for each parameter");
  if (!PyTuple_Check(values.ptr()) || PyTuple_GET_SIZE(values.ptr()) > kOptimizerScalars)
    type_error(op, "values must be a tuple of at most " + std::to_string((int)kOptimizerScalars) +
                       " floats");
  bool slotted = !slots.is_none();
  Py_ssize_t given = PyTuple_GET_SIZE(values.ptr());
  if (slotted && (!PyTuple_Check(slots.ptr()) || PyTuple_GET_SIZE(slots.ptr()) < given))
    type_error(op, "slots must be a tuple with one slot for each value, or None");
  if (n == 0) return;
  Call<OptimizerParams> call(n / stride);
  OptimizerParams* p = call.params();
  p->skip_nonfinite = skip_nonfinite;
  for (int i = 0; i < kOptimizerScalars; ++i) set(&p->scalars[i], 0, -1);
  for (Py_ssize_t i = 0; i < given; ++i) {
    double v = PyFloat_AsDouble(PyTuple_GET_ITEM(values.ptr(), i));
    if (v == -1 && PyErr_Occurred()) throw py::error_already_set();
    int slot = -1;
    if (slotted) {
      slot = (int)PyLong_AsLong(PyTuple_GET_ITEM(slots.ptr(), i));
      if (slot < 0 || slot >= 65536) {
        PyErr_Clear();
        value_error(op, "a slot is out of range");
      }
      slot_table()[slot].f = v;
    }
    set(&p->scalars[i], v, slot);
  }
  call.buffers.reserve((size_t)n + 1);
  call.held.reserve((size_t)n + 1);
  Array c = control.is_none() ? Array() : control_in(control, op);
  call.buffers.push_back(in(c));
  Array first;
  DType dtype = kF32;
  for (int64_t i = 0; i < n; ++i) {
    py::handle h = arrays[i];
    int64_t k = i % stride;
    const char* what = k == 0 ? "parameter" : k == 1 ? "gradient" : "state";
    Array a = k == 1 ? array_in(h, op, what) : array_out(h, op, what);
    if (k == 0) {
      check_float(a, op, what);
      if (i == 0) dtype = a.dtype;
      if (a.dtype != dtype) type_error(op, "parameters of one launch must have one dtype");
      first = a;
      call.size(i / stride, a.size);
    } else {
      check_same_dtype(first, "parameter", a, what, op);
      check_same_shape(first, "parameter", a, what, op);
    }
    call.add(a, k == 1 ? kRead : kReadWrite);
  }
  call.launch(rule.kernel, dtype);
}

// As `update` for the rows of an optimizer's last step, tuples (parameter, its array, dict of its
// state, list of the state's arrays): their states take `numbers`, and the parameters have changed.
// false, with nothing done, where the parameters, their arrays, or shape or dtype of a gradient are
// others now.
bool update_rows(const std::string& name, py::handle slots, py::handle values, py::handle rows,
                 py::handle params, py::handle numbers) {
  if (!PyList_Check(rows.ptr()) || !PyList_Check(params.ptr()) || !PyDict_Check(numbers.ptr()))
    type_error(name.c_str(), "rows and params must be lists, numbers a dict");
  std::vector<PyObject*> flat;
  if (!rows_arrays(rows.ptr(), params.ptr(), &flat)) return false;
  update(name, slots, values, flat.data(), (int64_t)flat.size(), py::handle(Py_None), false);
  rows_changed(rows.ptr(), numbers.ptr());
  return true;
}

py::tuple floats(const double* v, int n) {
  py::tuple r(n);
  for (int i = 0; i < n; ++i) PyTuple_SET_ITEM(r.ptr(), i, PyFloat_FromDouble(v[i]));
  if (PyErr_Occurred()) throw py::error_already_set();
  return r;
}

}  // namespace optimizer_bindings

void bind_optimizer(py::module_& module) {
  using namespace optimizer_bindings;
  Functions m(module);
  m.def(
      "optimizer_update",
      [](const std::string& name, py::handle slots, py::handle values, py::handle arrays,
         py::handle control, bool skip_nonfinite) {
        const int64_t n = list_size(arrays, name.c_str());
        update(name, slots, values, n ? PySequence_Fast_ITEMS(arrays.ptr()) : nullptr, n, control,
               skip_nonfinite);
      },
      py::arg("rule"), py::arg("slots"), py::arg("values"), py::arg("arrays"),
      py::arg("control") = py::none(), py::arg("skip_nonfinite") = false,
      "One update of all parameters in `arrays`: parameter, gradient and states of the first, then "
      "of the second, "
      "...\nvalues: the scalars (csrc/include/optimizer.h); written into `slots` where those are "
      "given.");
  m.def("optimizer_update_rows", &update_rows, py::arg("rule"), py::arg("slots"), py::arg("values"),
        py::arg("rows"), py::arg("params"), py::arg("numbers"),
        "optimizer_update for the rows of the last step; False, with nothing done, where they do "
        "not fit.");
  // The scalars of the rules with long formulas, to the bits of Python's arithmetic.
  m.def(
      "adam_scalars",
      [](double t, double lr, double b1, double b2, double eps) {
        const double v[] = {lr / (1 - pow(b1, t)),   b1, 1 - b1, b2, 1 - b2, eps,
                            1 / sqrt(1 - pow(b2, t))};
        return floats(v, 7);
      },
      py::arg("t"), py::arg("lr"), py::arg("b1"), py::arg("b2"), py::arg("eps"));
  m.def(
      "nadam_scalars",
      [](double t, double lr, double b1, double b2, double decay, double eps, double product) {
        const double mu = b1 * (1 - 0.5 * pow(0.96, t * decay));
        const double ahead = b1 * (1 - 0.5 * pow(0.96, (t + 1) * decay));
        product = product * mu;
        const double v[] = {lr * (1 - mu) / (1 - product),
                            lr * ahead / (1 - product * ahead),
                            b1,
                            b2,
                            1 - b2,
                            eps,
                            1 / (1 - pow(b2, t)),
                            product};
        return floats(v, 8);
      },
      py::arg("t"), py::arg("lr"), py::arg("b1"), py::arg("b2"), py::arg("decay"), py::arg("eps"),
      py::arg("product"), "Those of step t (optim/adam.py), and behind them the new mu_product.");
  m.def(
      "radam_scalars",
      [](double t, double lr, double b1, double b2, double eps) {
        double rate = lr / (1 - pow(b1, t));
        const double power = pow(b2, t), correction = 1 - power, far = 2 / (1 - b2) - 1,
                     rho = far - 2 * t * power / correction;
        const bool rectified = rho > 5;
        if (rectified)
          rate *= sqrt((rho - 4) * (rho - 2) * far / ((far - 4) * (far - 2) * rho) * correction);
        const double v[] = {rate, b1, 1 - b1, b2, 1 - b2, eps, rectified ? 1.0 : 0.0};
        return floats(v, 7);
      },
      py::arg("t"), py::arg("lr"), py::arg("b1"), py::arg("b2"), py::arg("eps"));
  m.def(
      "slots_write",
      [](py::handle slots, py::handle values) {
        if (!PyTuple_Check(slots.ptr()) || !PyTuple_Check(values.ptr()))
          type_error("slots_write", "slots and values must be tuples");
        Py_ssize_t n = PyTuple_GET_SIZE(values.ptr());
        if (PyTuple_GET_SIZE(slots.ptr()) < n)
          value_error("slots_write", "fewer slots than values");
        for (Py_ssize_t i = 0; i < n; ++i) {
          double v = PyFloat_AsDouble(PyTuple_GET_ITEM(values.ptr(), i));
          long slot = PyLong_AsLong(PyTuple_GET_ITEM(slots.ptr(), i));
          if (PyErr_Occurred()) throw py::error_already_set();
          if (slot < 0 || slot >= 65536) value_error("slots_write", "a slot is out of range");
          slot_table()[slot].f = v;
        }
      },
      py::arg("slots"), py::arg("values"),
      "Writes values into slots: what a replayed step reads next.");
  m.def(
      "grad_norm",
      [](py::handle control, py::handle arrays, double p, double max_norm, int slot) {
        int64_t n = list_size(arrays, "grad_norm");
        if (!(p > 0)) value_error("grad_norm", "the order must be greater than 0");
        Call<GradNormParams> call(n);
        call.params()->p = p;
        if (slot >= 0 && slot < 65536) slot_table()[slot].f = max_norm;
        set(&call.params()->max_norm, max_norm, slot);
        Array c = control_in(control, "grad_norm");
        call.buffers.push_back(out(c));
        DType dtype = add_gradients(call, arrays, n, "grad_norm", kRead);
        call.launch(grad_norm, dtype);
      },
      py::arg("control"), py::arg("arrays"), py::arg("p") = 2.0, py::arg("max_norm") = HUGE_VAL,
      py::arg("slot") = -1,
      "control = {norm, min(1, max_norm / (norm + 1e-6)), finite, 0} of all arrays together.");
  m.def(
      "grad_scale",
      [](py::handle control, py::handle arrays) {
        int64_t n = list_size(arrays, "grad_scale");
        Call<GradScaleParams> call(n);
        Array c = control_in(control, "grad_scale");
        set(&call.params()->limit, 0, -1);
        call.buffers.push_back(in(c));
        DType dtype = add_gradients(call, arrays, n, "grad_scale", kReadWrite);
        call.launch(grad_scale, dtype);
      },
      py::arg("control"), py::arg("arrays"), "g *= control[1] for every array.");
  m.def(
      "grad_clamp",
      [](py::handle arrays, double limit) {
        int64_t n = list_size(arrays, "grad_clamp");
        if (!(limit >= 0)) value_error("grad_clamp", "the limit must be at least 0");
        Call<GradScaleParams> call(n);
        set(&call.params()->limit, limit, -1);
        call.buffers.push_back(in(Array()));
        DType dtype = add_gradients(call, arrays, n, "grad_clamp", kReadWrite);
        call.launch(grad_clamp, dtype);
      },
      py::arg("arrays"), py::arg("limit"), "g = min(max(g, -limit), limit) for every array.");
}

}  // namespace gs
