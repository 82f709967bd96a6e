// Bindings of the recurrent family.
#include "recurrent.h"

#include "autograd.h"

namespace gs {

namespace matmul_bindings {
py::object linear(Array input, Array weight, py::handle bias, int act);  // matmul.cpp
}

namespace recurrent_bindings {

const Kernel forward_kernel("recurrent"), backward_kernel("recurrent_backward");
const char* const kNames[kRecurrentModes] = {"LSTM", "GRU", "RNN", "RNN"};

int64_t gates_of(int mode) { return mode == kLstm ? 4 : mode == kGru ? 3 : 1; }

void need_shape(const Array& a, const char* op, const char* name,
                std::initializer_list<int64_t> shape) {
  bool same = a.ndim == (int)shape.size();
  for (int i = 0; same && i < a.ndim; ++i) same = a.shape[i] == shape.begin()[i];
  if (!same)
    value_error(op, std::string(name) + " has shape " + a.shape_text() + "; expected " +
                        shape_text(shape.begin(), (int)shape.size()));
}

// Elements of a row of `width` of the states and gates that are kept for a backward. The gradient
// of the weights reads them a few columns at a time: rows whose number of lines is a large power of
// two would meet in the same sets of a cache, and crowd each other out.
int64_t kept_row(int64_t rows, int64_t width, int64_t size) {
  const bool crowded = width * size % 1024 == 0 && rows * width * size > machine().l2 / 2;
  return crowded ? width + 128 / size : width;
}

// Steps and rows of (T, B, n), (B, T, n) or packed (rows, n) arrays.
struct Steps {
  RecurrentParams p;
  int64_t rows;
  Array sizes;
};

Steps steps_of(const char* op, const Array& x, int mode, bool reverse, bool batch_first,
               py::handle sizes_h, int64_t hidden) {
  Steps s{};
  RecurrentParams& p = s.p;
  p.mode = mode;
  p.reverse = reverse;
  p.hidden = hidden;
  p.members = get_num_threads();
  p.l2 = machine().l2;
  p.near_l3 = machine().near;
  s.sizes = array_optional(sizes_h, op, "batch_sizes");
  if (s.sizes.present()) {
    s.sizes = dense(s.sizes);
    if (x.ndim != 2 || s.sizes.ndim != 1 || s.sizes.dtype != kI64)
      value_error(op, "packed input must be (rows, size) with int64 batch_sizes (steps,)");
    const int64_t* n = s.sizes.as<int64_t>();
    p.steps = s.sizes.size;
    p.batch = p.steps ? n[0] : 0;
    for (int64_t t = 0; t < p.steps; ++t) {
      if (n[t] < 1 || (t > 0 && n[t] > n[t - 1]))
        value_error(op, "batch_sizes must be positive and must not rise; batch_sizes[" +
                            std::to_string(t) + "] is " + std::to_string(n[t]));
      s.rows += n[t];
    }
    if (s.rows != x.shape[0])
      value_error(op, "packed data has " + std::to_string(x.shape[0]) +
                          " rows, but batch_sizes add up to " + std::to_string(s.rows));
  } else {
    check_ndim(x, 3, op, "input", batch_first ? "(B, T, size)" : "(T, B, size)");
    p.steps = x.shape[batch_first ? 1 : 0];
    p.batch = x.shape[batch_first ? 0 : 1];
    p.row_t = batch_first ? 1 : p.batch;
    p.row_b = batch_first ? p.steps : 1;
    s.rows = p.steps * p.batch;
  }
  p.state_row = kept_row(s.rows, hidden, dtype_size(x.dtype));
  if (p.steps == 0)
    value_error(op, "input has shape " + x.shape_text() + "; a sequence needs at least one step");
  return s;
}

const char* name_of(int mode) {
  if (mode < 0 || mode >= kRecurrentModes) value_error("recurrent", "unknown mode");
  return kNames[mode];
}

Array state_in(py::handle h, const char* op, const char* name, const RecurrentParams& p,
               DType dtype) {
  Array a = array_optional(h, op, name);
  if (!a.present()) return a;
  a = dense(a);
  if (a.dtype != dtype)
    type_error(op, std::string(name) + " is " + dtype_name(a.dtype) + " and input is " +
                       dtype_name(dtype) + "; both must have one dtype");
  need_shape(a, op, name, {p.batch, p.hidden});
  return a;
}

Buffer shifted(const Array& a, int64_t elements, Access access) {
  return Buffer{a.data, a.data ? elements * dtype_size(a.dtype) : 0, access};
}

// Whether `forward` takes the input itself: where all weights stay in a second cache, or do not
// much exceed one and the third is near, for so many sequences and steps that packing W_ih is worth
// it. By the sizes alone (and autocast, whose products round), so that results do not depend on
// threads, nor on whether there is a backward.
bool takes_input(int mode, int64_t batch, int64_t steps, int64_t input, int64_t hidden,
                 int64_t size) {
  const Machine& m = machine();
  const int64_t bytes = gates_of(mode) * hidden * (hidden + input) * size;
  return mode != kGru && !autocast() && batch >= 8 && steps >= 4 &&
         (bytes <= m.l2 / 8 * 5 || (m.near && bytes <= 2 * m.l2));
}

// gates: the input part, changed to the activated gates; None with x, w_ih and b_ih. out: (...,
// directions * H), written from column direction * H on. Returns (gates or None, hprev, aux or
// None), rows of gates and hprev some elements longer than what they hold; hn, cn (directions, B,
// H) are written. keep: for a backward; otherwise what is left in gates, hprev and aux means
// nothing.
py::tuple layer(int mode, Array gates, py::handle w_h, py::handle b_h, py::handle h0_h,
                py::handle c0_h, py::handle sizes_h, bool batch_first, int64_t direction,
                const Array& o, const Array& hn, const Array& cn, bool keep, const Array& x,
                py::handle w_ih_h, py::handle b_ih_h) {
  const char* op = name_of(mode);
  Array w = array_dense(w_h, op, "weight_hh"), b = array_optional(b_h, op, "bias_hh"), w_ih, b_ih;
  const Array& like = x.present() ? x : gates;
  check_float(like, op, "input");
  DType t = like.dtype;
  check_same_dtype(like, "input", w, "weight_hh", op);
  check_ndim(w, 2, op, "weight_hh", "(gates * hidden_size, hidden_size)");
  int64_t H = w.shape[1], G = gates_of(mode);
  need_shape(w, op, "weight_hh", {G * H, H});
  if (b.present()) {
    check_same_dtype(like, "input", b, "bias_hh", op);
    b = dense(b);
    need_shape(b, op, "bias_hh", {G * H});
  }
  if (x.present()) {
    w_ih = array_dense(w_ih_h, op, "weight_ih");
    check_same_dtype(x, "input", w_ih, "weight_ih", op);
    need_shape(w_ih, op, "weight_ih", {G * H, x.dim(-1)});
    b_ih = array_optional(b_ih_h, op, "bias_ih");
    if (b_ih.present()) {
      check_same_dtype(x, "input", b_ih, "bias_ih", op);
      b_ih = dense(b_ih);
      need_shape(b_ih, op, "bias_ih", {G * H});
    }
  }
  Steps s = steps_of(op, like, mode, direction == 1, batch_first, sizes_h, H);
  Array h0 = state_in(h0_h, op, "h_0", s.p, t), c0 = state_in(c0_h, op, "c_0", s.p, t);
  int64_t dirs = hn.ndim == 3 ? hn.shape[0] : 0;
  s.p.out_row = dirs * H;
  bool good =
      (x.present() ? !gates.present()
                   : gates.contiguous && gates.dtype == t && gates.dim(-1) == G * H &&
                         gates.size == s.rows * G * H) &&
      (!x.present() || mode != kGru) && o.contiguous && hn.contiguous && direction >= 0 &&
      direction < dirs && o.dtype == t && hn.dtype == t && o.size == s.rows * dirs * H &&
      hn.size == dirs * s.p.batch * H &&
      (mode != kLstm || (cn.present() && cn.contiguous && cn.dtype == t && same_shape(cn, hn)));
  if (!good)
    value_error(op, "internal arrays do not fit: gates " + gates.shape_text() + ", output " +
                        o.shape_text() + ", h_n " + hn.shape_text());
  s.p.pair = !keep && !s.sizes.present();
  s.p.input = x.present() ? x.dim(-1) : 0;
  s.p.gate_row = G * H;
  if (!s.p.pair && x.present()) {
    int64_t shape[kMaxDims];
    std::copy(x.shape, x.shape + x.ndim, shape);
    shape[x.ndim - 1] = s.p.gate_row = kept_row(s.rows, G * H, dtype_size(t));
    gates = array_new(t, x.ndim, shape);
  }
  int64_t states = s.p.pair ? 2 * s.p.batch : s.rows;
  if (s.p.pair) s.p.state_row = H;
  Array hprev = array_new(t, {states, s.p.state_row}), aux;
  if (mode == kLstm || (mode == kGru && !s.p.pair)) aux = array_new(t, {states, H});
  int64_t state = direction * s.p.batch * H;
  if (s.rows)
    run(forward_kernel, t, s.p,
        {x.present() ? out(gates) : inout(gates), in(w), in(b), in(h0), in(c0), in(s.sizes),
         shifted(o, direction * H, kWrite), out(hprev), out(aux), shifted(hn, state, kWrite),
         mode == kLstm ? shifted(cn, state, kWrite) : out(Array()), in(x), in(w_ih), in(b_ih)});
  return py::make_tuple(gates.present() ? py::object(result(gates)) : py::none(), result(hprev),
                        aux.present() ? py::object(result(aux)) : py::none());
}

py::tuple forward(int mode, py::handle gates_h, py::handle w_h, py::handle b_h, py::handle h0_h,
                  py::handle c0_h, py::handle sizes_h, bool batch_first, int64_t direction,
                  py::handle out_h, py::handle hn_h, py::handle cn_h, bool keep, py::handle x_h,
                  py::handle w_ih_h, py::handle b_ih_h) {
  const char* op = name_of(mode);
  Array x = array_optional(x_h, op, "input");
  if (x.present()) x = dense(x);
  Array gates = x.present() ? Array() : array_out(gates_h, op, "gates"),
        o = array_out(out_h, op, "output"), hn = array_out(hn_h, op, "h_n");
  Array cn = array_optional(cn_h, op, "c_n");
  return layer(mode, gates, w_h, b_h, h0_h, c0_h, sizes_h, batch_first, direction, o, hn, cn, keep,
               x, w_ih_h, b_ih_h);
}

// One step: x (B, I), h0 and c0 (B, H) or None -> (h, c or None, gates, hprev, aux), the last three
// as `layer` leaves them for a backward of one step.
py::tuple cell(int mode, py::handle x_h, py::handle h0, py::handle c0, py::handle w_ih,
               py::handle w_hh, py::handle b_ih, py::handle b_hh, bool keep) {
  const char* op = name_of(mode);
  Array x = array_in(x_h, op, "input"), w = array_in(w_hh, op, "weight_hh");
  check_ndim(x, 2, op, "input", "(B, size)");
  check_ndim(w, 2, op, "weight_hh", "(gates * hidden_size, hidden_size)");
  const DType t = x.dtype;
  auto stacked = [](Array a) {  // as (1, ...), the axis of time or of directions
    for (int d = a.ndim++; d > 0; --d) {
      a.shape[d] = a.shape[d - 1];
      a.strides[d] = a.strides[d - 1];
    }
    a.strides[0] = a.shape[0] = 1;
    for (int d = 1; d < a.ndim; ++d) a.strides[0] *= a.shape[d];
    return a;
  };
  const int64_t batch = x.shape[0], hidden = w.shape[1];
  py::object gates = matmul_bindings::linear(stacked(x), array_in(w_ih, op, "weight_ih"), b_ih, 0);
  Array h = array_new(t, {batch, hidden}), c, out = array_new(t, {1, batch, hidden});
  if (mode == kLstm) c = array_new(t, {batch, hidden});
  py::tuple kept =
      layer(mode, array_in(gates, op, "gates"), w_hh, b_hh, h0, c0, py::handle(Py_None), false, 0,
            out, stacked(h), c.present() ? stacked(c) : c, keep, Array(), py::handle(Py_None),
            py::handle(Py_None));
  return py::make_tuple(result(h), c.present() ? py::object(result(c)) : py::none(), gates,
                        py::object(kept[1]), py::object(kept[2]));
}

// Whether h is None, or a Tensor of (rows, columns) and this dtype.
bool is_state(py::handle h, int64_t rows, int64_t columns, PyObject* descr) {
  if (h.is_none()) return true;
  if (!is_tensor(h.ptr())) return false;
  PyObject* data = ((Tensor*)h.ptr())->data;
  if (!data || !is_ndarray(data)) return false;
  const auto* a = py::detail::array_proxy(data);
  return a->nd == 2 && a->dimensions[0] == rows && a->dimensions[1] == columns && a->descr == descr;
}

// `cell` on Tensors, recorded as a node of class `cls`: (h,) or (h, c). None, with nothing done,
// where the input or a state is not of the shape and dtype that the weights ask for.
py::object apply_cell(py::handle cls, int mode, py::handle x, py::handle h0, py::handle c0,
                      py::handle w_ih, py::handle w_hh, py::handle b_ih, py::handle b_hh) {
  static PyObject* const attribute = PyUnicode_InternFromString("mode");
  const char* op = name_of(mode);
  PyObject *wi = tensor_data(w_ih, op, "weight_ih"), *wh = tensor_data(w_hh, op, "weight_hh");
  if (!is_tensor(x.ptr()) || !is_ndarray(wi) || !is_ndarray(wh)) return py::none();
  PyObject* data = ((Tensor*)x.ptr())->data;
  if (!data || !is_ndarray(data)) return py::none();
  const auto *a = py::detail::array_proxy(data), *w = py::detail::array_proxy(wi),
             *u = py::detail::array_proxy(wh);
  if (w->nd != 2 || u->nd != 2 || a->nd != 2 || a->descr != w->descr ||
      a->dimensions[1] != w->dimensions[1] ||
      !is_state(h0, a->dimensions[0], u->dimensions[1], a->descr) ||
      !is_state(c0, a->dimensions[0], u->dimensions[1], a->descr))
    return py::none();
  py::tuple made =
      cell(mode, data, tensor_data(h0, op, "h", true), tensor_data(c0, op, "c", true), wi, wh,
           tensor_data(b_ih, op, "bias_ih", true), tensor_data(b_hh, op, "bias_hh", true),
           tensors_want({x, h0, c0, w_ih, w_hh, b_ih, b_hh}));
  PyObject* const* m = ((PyTupleObject*)made.ptr())->ob_item;  // h, c, gates, hprev, aux
  py::tuple out =
      py::reinterpret_steal<py::tuple>(PyTuple_GetSlice(made.ptr(), 0, m[1] == Py_None ? 1 : 2));
  if (!out) throw py::error_already_set();
  py::object which = py::int_(mode);
  return tensor_apply(cls, out, {x, h0, c0, w_ih, w_hh, b_ih, b_hh},
                      {x, w_ih, w_hh, m[2], m[3], m[4] == Py_None ? m[3] : m[4]}, false,
                      {{attribute, which.ptr()}});
}

// One layer of one direction over all steps, from zeros, on Tensors, recorded as a node of class
// `cls`: (output, h_n) or (output, h_n, c_n). None, with nothing done, where the input is not of
// the shape and dtype that the weights ask for.
py::object apply_layer(py::handle cls, int mode, py::handle x, py::handle w_ih, py::handle w_hh,
                       py::handle b_ih, py::handle b_hh, bool batch_first) {
  static PyObject* const names[] = {
      PyUnicode_InternFromString("mode"), PyUnicode_InternFromString("batch_first"),
      PyUnicode_InternFromString("sizes"), PyUnicode_InternFromString("directions")};
  const char* op = name_of(mode);
  const py::handle none(Py_None);
  PyObject *wi = tensor_data(w_ih, op, "weight_ih"), *bi = tensor_data(b_ih, op, "bias_ih", true);
  if (!is_tensor(x.ptr()) || !((Tensor*)x.ptr())->data) return py::none();
  Array a = array_in(((Tensor*)x.ptr())->data, op, "input"), w = array_in(wi, op, "weight_ih"),
        u = array_in(tensor_data(w_hh, op, "weight_hh"), op, "weight_hh");
  if (a.ndim != 3 || w.ndim != 2 || u.ndim != 2 || a.size == 0 || a.dtype != w.dtype ||
      a.shape[2] != w.shape[1])
    return py::none();
  const int64_t hidden = u.shape[1], batch = a.shape[batch_first ? 0 : 1],
                steps = a.shape[batch_first ? 1 : 0];
  const bool keep = tensors_want({x, w_ih, w_hh, b_ih, b_hh});
  const bool whole = takes_input(mode, batch, steps, a.shape[2], hidden, dtype_size(a.dtype));
  Array out = array_new(a.dtype, {a.shape[0], a.shape[1], hidden}),
        h = array_new(a.dtype, {1, batch, hidden}), c, gates;
  if (mode == kLstm) c = array_new(a.dtype, {1, batch, hidden});
  if (!whole) gates = array_in(matmul_bindings::linear(a, std::move(w), bi, 0), op, "gates");
  py::tuple kept = layer(mode, gates, u.object, tensor_data(b_hh, op, "bias_hh", true), none, none,
                         none, batch_first, 0, out, h, c, keep, whole ? dense(a) : Array(), wi, bi);
  const py::handle hprev = PyTuple_GET_ITEM(kept.ptr(), 1), aux = PyTuple_GET_ITEM(kept.ptr(), 2);
  py::tuple results(mode == kLstm ? 3 : 2);
  const Array* made[] = {&out, &h, &c};
  for (Py_ssize_t i = 0; i < (Py_ssize_t)results.size(); ++i)
    PyTuple_SET_ITEM(results.ptr(), i, made[i]->object.inc_ref().ptr());
  py::object which = py::int_(mode), one = py::int_(1);
  return tensor_apply(
      cls, results, {x, none, none, w_ih, w_hh, b_ih, b_hh},
      {x, w_ih, w_hh, PyTuple_GET_ITEM(kept.ptr(), 0), hprev, aux.is_none() ? hprev : aux}, false,
      {{names[0], which.ptr()},
       {names[1], batch_first ? Py_True : Py_False},
       {names[2], Py_None},
       {names[3], one.ptr()}});
}

// Returns (dgates, dhidden, dh0 or None, dc0 or None), the first two with rows as long as those of
// gates; dhidden is dgates but for GRU.
py::tuple backward(int mode, py::handle gates_h, py::handle w_h, py::handle sizes_h,
                   bool batch_first, int64_t direction, py::handle hprev_h, py::handle aux_h,
                   py::handle dout_h, py::handle dhn_h, py::handle dcn_h, bool need_h0,
                   bool need_c0) {
  const char* op = name_of(mode);
  Array gates = array_dense(gates_h, op, "gates"), w = array_dense(w_h, op, "weight_hh"),
        hprev = array_dense(hprev_h, op, "hprev"), aux = array_optional(aux_h, op, "aux"),
        dout = array_optional(dout_h, op, "gradient");
  check_float(gates, op, "gates");
  DType t = gates.dtype;
  check_ndim(w, 2, op, "weight_hh", "(gates * hidden_size, hidden_size)");
  int64_t H = w.shape[1], G = gates_of(mode);
  Steps s = steps_of(op, gates, mode, direction == 1, batch_first, sizes_h, H);
  Array dhn = state_in(dhn_h, op, "gradient of h_n", s.p, t),
        dcn = state_in(dcn_h, op, "gradient of c_n", s.p, t);
  if (dout.present()) {
    dout = dense(dout);
    check_same_dtype(gates, "gates", dout, "gradient", op);
    s.p.out_row = dout.ndim ? dout.dim(-1) : 0;
  }
  s.p.gate_row = gates.dim(-1);
  bool good = s.p.gate_row >= G * H && w.shape[0] == G * H && w.dtype == t && hprev.dtype == t &&
              hprev.size == s.rows * s.p.state_row &&
              (mode > kGru ||
               (aux.present() && aux.dtype == t && aux.contiguous && aux.size == s.rows * H)) &&
              direction >= 0 && direction < 2 &&
              (!dout.present() ||
               (s.p.out_row >= (direction + 1) * H && dout.size == s.rows * s.p.out_row));
  if (!good)
    value_error(op, "internal arrays do not fit: gates " + gates.shape_text() + ", gradient " +
                        dout.shape_text());
  Array dgates = array_like(gates), dhidden, dh0, dc0;
  if (mode == kGru) dhidden = array_like(gates);
  if (need_h0) dh0 = array_new(t, {s.p.batch, H});
  if (need_c0 && mode == kLstm) dc0 = array_new(t, {s.p.batch, H});
  if (s.rows)
    run(backward_kernel, t, s.p,
        {in(gates), in(w), in(s.sizes), in(hprev), in(aux), shifted(dout, direction * H, kRead),
         in(dhn), in(dcn), out(dgates), out(dhidden), out(dh0), out(dc0)});
  py::object grad = result(dgates);
  return py::make_tuple(grad, mode == kGru ? py::object(result(dhidden)) : grad,
                        need_h0 ? py::object(result(dh0)) : py::none(),
                        need_c0 && mode == kLstm ? py::object(result(dc0)) : py::none());
}

}  // namespace recurrent_bindings

void bind_recurrent(py::module_& module) {
  using namespace recurrent_bindings;
  Functions m(module);
  m.def(
      "recurrent", &forward, py::arg("mode"), py::arg("gates"), py::arg("w_hh"), py::arg("b_hh"),
      py::arg("h0"), py::arg("c0"), py::arg("sizes"), py::arg("batch_first"), py::arg("direction"),
      py::arg("out"), py::arg("hn"), py::arg("cn"), py::arg("keep") = true,
      py::arg("x") = py::none(), py::arg("w_ih") = py::none(), py::arg("b_ih") = py::none(),
      "(gates, hprev, aux): one direction of a layer over all steps; mode 0 LSTM, 1 GRU, 2 tanh, 3 "
      "relu. keep: for a backward, which reads the activated gates and the states. With x, w_ih "
      "and "
      "b_ih (recurrent_takes_input) the input part is made here, and gates is None before.");
  m.def("apply_cell", &apply_cell, py::arg("cls"), py::arg("mode"), py::arg("x"), py::arg("h0"),
        py::arg("c0"), py::arg("w_ih"), py::arg("w_hh"), py::arg("b_ih"), py::arg("b_hh"),
        "(h,) or (h, c): one step of rows (B, I), Tensors, recorded as a node of class cls; None "
        "where "
        "input or states do not fit the weights.");
  m.def("apply_layer", &apply_layer, py::arg("cls"), py::arg("mode"), py::arg("x"), py::arg("w_ih"),
        py::arg("w_hh"), py::arg("b_ih"), py::arg("b_hh"), py::arg("batch_first"),
        "(output, h_n) or (output, h_n, c_n) of one direction from zeros, Tensors, recorded as a "
        "node of "
        "class cls; None where the input does not fit the weights.");
  m.def("recurrent_takes_input", &takes_input, py::arg("mode"), py::arg("batch"), py::arg("steps"),
        py::arg("input"), py::arg("hidden"), py::arg("size"),
        "Whether `recurrent` should multiply the input itself; size: bytes of an element.");
  m.def("recurrent_backward", &backward, py::arg("mode"), py::arg("gates"), py::arg("w_hh"),
        py::arg("sizes"), py::arg("batch_first"), py::arg("direction"), py::arg("hprev"),
        py::arg("aux"), py::arg("dout"), py::arg("dhn"), py::arg("dcn"), py::arg("need_h0"),
        py::arg("need_c0"), "(dgates, dhidden, dh0, dc0)");
}

}  // namespace gs
