// The recording of ops: what makes the Tensors that ops return, and the nodes behind them.
//
// Every op that Python calls passes through here, so it is written against the C interface of
// Python: a node and its output cost a few allocations.
#include "autograd_types.h"

namespace gs {

namespace {

// Which inputs of an op need a gradient is a word: a bit each for the first 63, and one that says
// whether any behind them does, which are then asked themselves (cat and stack of many Tensors).
constexpr int kOwn = 63;

bool needs(PyObject* const* inputs, uint64_t mask, int i) {
  if (i < kOwn) return (mask >> i) & 1;
  return (mask >> kOwn) && inputs[i] != Py_None && ((Tensor*)inputs[i])->requires_grad;
}

// The tuple of needs with the bits of `mask`; small ones are made once.
PyObject* needs_tuple(PyObject* const* inputs, int n, uint64_t mask) {
  static PyObject* made[5][16];
  bool small = n <= 4;
  if (small && made[n][mask]) {
    Py_INCREF(made[n][mask]);
    return made[n][mask];
  }
  PyObject* t = PyTuple_New(n);
  if (!t) return nullptr;
  for (int i = 0; i < n; ++i) {
    PyObject* b = needs(inputs, mask, i) ? Py_True : Py_False;
    Py_INCREF(b);
    PyTuple_SET_ITEM(t, i, b);
  }
  if (small) {
    Py_INCREF(t);
    made[n][mask] = t;
  }
  return t;
}

// Which of the inputs (Tensors or None) require a gradient; false with an error set.
bool inputs_need(PyObject* const* inputs, Py_ssize_t n, uint64_t* mask) {
  *mask = 0;
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* t = inputs[i];
    if (t == Py_None) continue;
    if (!is_tensor(t)) {
      PyErr_Format(PyExc_TypeError, "input %zd of an op must be a Tensor, got %.100s", i,
                   Py_TYPE(t)->tp_name);
      return false;
    }
    if (((Tensor*)t)->requires_grad) *mask |= (uint64_t)1 << (i < kOwn ? i : kOwn);
  }
  return true;
}

bool check_class(PyObject* cls) {
  if (PyType_Check(cls) && PyType_IsSubtype((PyTypeObject*)cls, &node_type)) return true;
  PyErr_SetString(PyExc_TypeError, "the class of an op must be a subclass of Node");
  return false;
}

// A node with edges to those of `inputs` whose bit is set.
Node* record(PyObject* cls, PyObject* k, PyObject* const* inputs, int n, uint64_t mask) {
  if (!check_class(cls)) return nullptr;
  Node* node = (Node*)node_new((PyTypeObject*)cls, nullptr, nullptr);
  if (!node) return nullptr;
  Py_XINCREF(k);
  node->k = k;
  node->needs = needs_tuple(inputs, n, mask);
  bool ok = node->needs && reserve_edges(node, n);
  for (int i = 0; ok && i < n; ++i)
    if (needs(inputs, mask, i)) ok = tensor_edge((Tensor*)inputs[i], &node->edges[i]);
  if (!ok) Py_CLEAR(node);
  return node;
}

// Appends to the saved arrays: Tensors are watched, arrays taken as they are.
bool save(Node* node, PyObject* const* items, Py_ssize_t n) {
  Py_ssize_t before = node->saved ? PyTuple_GET_SIZE(node->saved) : 0;
  PyObject* all = PyTuple_New(before + n);
  if (!all) return false;
  for (Py_ssize_t i = 0; i < before; ++i) {
    PyObject* o = PyTuple_GET_ITEM(node->saved, i);
    Py_INCREF(o);
    PyTuple_SET_ITEM(all, i, o);
  }
  Py_XSETREF(node->saved, all);
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* o = items[i];
    if (is_tensor(o)) {
      if (!add_watch(node, ((Tensor*)o)->version)) return false;
      o = ((Tensor*)o)->data;
    }
    if (!o) o = Py_None;
    Py_INCREF(o);
    PyTuple_SET_ITEM(all, before + i, o);
  }
  return true;
}

bool save_sequence(Node* node, PyObject* items) {
  PyObject* fast = PySequence_Fast(items, "saved must be a sequence of Tensors and arrays");
  if (!fast) return false;
  Py_ssize_t n = PySequence_Fast_GET_SIZE(fast);
  bool ok = n == 0 || save(node, PySequence_Fast_ITEMS(fast), n);
  Py_DECREF(fast);
  return ok;
}

// 1: a floating-point array, 0: not, -1: error
int is_floating(PyObject* a) {
  if (is_ndarray(a)) {
    PyObject* descr = py::detail::array_proxy(a)->descr;
    return py::detail::array_descriptor_proxy(descr)->kind == 'f';
  }
  PyObject* dtype = PyObject_GetAttr(a, autograd_names->dtype);
  PyObject* kind = dtype ? PyObject_GetAttr(dtype, autograd_names->kind) : nullptr;
  int r = kind ? PyUnicode_Check(kind) && PyUnicode_CompareWithASCIIString(kind, "f") == 0 : -1;
  Py_XDECREF(kind);
  Py_XDECREF(dtype);
  return r;
}

// The Tensor around output `index` of `node`.
Tensor* output(PyObject* array, PyObject* k, Node* node, int index) {
  Tensor* t = tensor_wrap(array, k);
  if (!t) return nullptr;
  Py_INCREF(node);
  t->node = node;
  t->index = index;
  t->requires_grad = true;
  return t;
}

PyObject* outputs(PyObject* out, PyObject* k, Node* node, bool save_output) {
  Py_ssize_t n = PyTuple_GET_SIZE(out);
  PyObject* r = PyTuple_New(n);
  if (!r) return nullptr;
  if (node) node->outputs = (int)n;
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* a = PyTuple_GET_ITEM(out, i);
    int floating = node ? is_floating(a) : 0;
    Tensor* t = floating < 0 ? nullptr : floating ? output(a, k, node, (int)i) : tensor_wrap(a, k);
    if (!t) {
      Py_DECREF(r);
      return nullptr;
    }
    PyTuple_SET_ITEM(r, i, (PyObject*)t);
  }
  if (node && save_output && !save(node, ((PyTupleObject*)r)->ob_item, n)) Py_CLEAR(r);
  return r;
}

PyObject* apply(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* keywords) {
  if (n < 4 || n > 6) {
    PyErr_SetString(PyExc_TypeError, "apply: cls, k, out, inputs are needed by position");
    return nullptr;
  }
  PyObject *cls = args[0], *k = args[1], *out = args[2], *inputs = args[3];
  PyObject* saved = n > 4 ? args[4] : nullptr;
  bool save_output = n > 5 && PyObject_IsTrue(args[5]) == 1;
  if (!PyTuple_Check(inputs)) {
    PyErr_SetString(PyExc_TypeError, "apply: inputs must be a tuple");
    return nullptr;
  }
  Py_ssize_t attributes = keywords ? PyTuple_GET_SIZE(keywords) : 0;
  int count = (int)PyTuple_GET_SIZE(inputs);
  PyObject* const* items = ((PyTupleObject*)inputs)->ob_item;
  uint64_t mask;
  if (!inputs_need(items, count, &mask)) return nullptr;
  if (!mask || !grad_enabled()) {
    if (PyTuple_CheckExact(out)) return outputs(out, k, nullptr, false);
    return (PyObject*)tensor_wrap(out, k);
  }
  Node* node = record(cls, k, items, count, mask);
  if (!node) return nullptr;
  for (Py_ssize_t i = 0; i < attributes; ++i) {
    PyObject *key = PyTuple_GET_ITEM(keywords, i), *value = args[n + i];
    if (key == autograd_names->saved) {
      saved = value;
    } else if (key == autograd_names->save_output) {
      save_output = PyObject_IsTrue(value) == 1;
    } else if (PyObject_SetAttr((PyObject*)node, key, value) < 0) {
      Py_DECREF(node);
      return nullptr;
    }
  }
  PyObject* r = nullptr;
  if (!saved || save_sequence(node, saved)) {
    if (PyTuple_CheckExact(out)) {
      r = outputs(out, k, node, save_output);
    } else {
      r = (PyObject*)output(out, k, node, 0);
      if (r && save_output && !save(node, &r, 1)) Py_CLEAR(r);
    }
  }
  Py_DECREF(node);
  return r;
}

bool set_shape(Node* node, PyObject* name, PyObject* array) {
  PyObject* shape = PyObject_GetAttr(array, autograd_names->shape);
  bool ok = shape && PyObject_SetAttr((PyObject*)node, name, shape) == 0;
  Py_XDECREF(shape);
  return ok;
}

// apply_pair(cls, k, out, a, b, keep): an op of two Tensors that broadcast. keep: 0 nothing is
// saved, 1 each operand whose partner needs a gradient, 2 both, 3 b, and a when b needs a gradient.
// Sets a_shape and b_shape when an operand was broadcast.
PyObject* apply_pair(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 6 || !is_tensor(args[3]) || !is_tensor(args[4])) {
    PyErr_SetString(PyExc_TypeError, "apply_pair: needs cls, k, out, two Tensors, keep");
    return nullptr;
  }
  PyObject *k = args[1], *out = args[2];
  Tensor *a = (Tensor*)args[3], *b = (Tensor*)args[4];
  uint64_t mask = (a->requires_grad ? 1 : 0) | (b->requires_grad ? 2 : 0);
  if (!mask || !grad_enabled()) return (PyObject*)tensor_wrap(out, k);
  long keep = PyLong_AsLong(args[5]);
  Node* node = record(args[0], k, args + 3, 2, mask);
  if (!node) return nullptr;
  bool ok = true;
  if (keep) {
    bool keep_a = keep == 2 || (mask & 2), keep_b = keep != 1 || (mask & 1);
    PyObject* items[] = {keep_a ? args[3] : Py_None, keep_b ? args[4] : Py_None};
    ok = save(node, items, 2);
  }
  if (ok && !(a->data && b->data)) {
    PyErr_SetString(PyExc_ValueError, "apply_pair: a Tensor without data");
    ok = false;
  }
  int plain = ok ? same_shape(a->data, b->data) : -1;
  if (plain < 0)
    ok = false;
  else if (!plain)
    ok = set_shape(node, autograd_names->a_shape, a->data) &&
         set_shape(node, autograd_names->b_shape, b->data);
  PyObject* r = ok ? (PyObject*)output(out, k, node, 0) : nullptr;
  Py_DECREF(node);
  return r;
}

// The node behind views of base: args and keywords of apply_view.
Node* view_node(Tensor* base, PyObject* const* args, Py_ssize_t n, PyObject* keywords) {
  Node* node = record(args[0], base->k, args + 1, 1, 1);
  Py_ssize_t attributes = node && keywords ? PyTuple_GET_SIZE(keywords) : 0;
  for (Py_ssize_t i = 0; i < attributes; ++i)
    if (PyObject_SetAttr((PyObject*)node, PyTuple_GET_ITEM(keywords, i), args[n + i]) != 0) {
      Py_DECREF(node);
      return nullptr;
    }
  return node;
}

// apply_view(cls, base, out, **attributes): `out` is a view of the memory of `base`.
PyObject* apply_view(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* keywords) {
  if (n != 3 || !is_tensor(args[1])) {
    PyErr_SetString(PyExc_TypeError, "apply_view: needs cls, a Tensor, a view of it");
    return nullptr;
  }
  Tensor* base = (Tensor*)args[1];
  Tensor* t = tensor_wrap(args[2], base->k);
  if (!t) return nullptr;
  Py_INCREF(base->version);
  Py_SETREF(t->version, base->version);
  t->at = base->version->value;
  t->view = true;
  t->apart = base->apart;
  if (!base->requires_grad || !grad_enabled()) {
    if (!base->requires_grad) plain_view(t);
    return (PyObject*)t;
  }
  Node* node = view_node(base, args, n, keywords);
  if (!node) {
    Py_DECREF(t);
    return nullptr;
  }
  t->node = node;
  t->requires_grad = true;
  return (PyObject*)t;
}

// apply_views(cls, base, outs, **attributes): as apply_view for several views, a tuple.
PyObject* apply_views(PyObject*, PyObject* const* args, Py_ssize_t n, PyObject* keywords) {
  if (n != 3 || !is_tensor(args[1]) || !PyTuple_CheckExact(args[2])) {
    PyErr_SetString(PyExc_TypeError, "apply_views: needs cls, a Tensor, a tuple of views of it");
    return nullptr;
  }
  Tensor* base = (Tensor*)args[1];
  Node* node = nullptr;
  if (base->requires_grad && grad_enabled()) {
    node = view_node(base, args, n, keywords);
    if (!node) return nullptr;
  }
  PyObject* r = outputs(args[2], base->k, node, false);
  Py_XDECREF(node);
  for (Py_ssize_t i = 0; r && i < PyTuple_GET_SIZE(r); ++i) {
    Tensor* t = (Tensor*)PyTuple_GET_ITEM(r, i);
    Py_INCREF(base->version);
    Py_SETREF(t->version, base->version);
    t->at = base->version->value;
    t->view = true;
    t->apart = base->apart;
    if (!base->requires_grad) plain_view(t);
  }
  return r;
}

PyObject* wrap(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 2) {
    PyErr_SetString(PyExc_TypeError, "wrap: needs an array and a kernel module");
    return nullptr;
  }
  return (PyObject*)tensor_wrap(args[0], args[1]);
}

PyObject* edge(PyObject*, PyObject* t) {
  Edge e;
  if (!is_tensor(t)) {
    PyErr_SetString(PyExc_TypeError, "a Tensor is needed");
    return nullptr;
  }
  if (!tensor_edge((Tensor*)t, &e)) return nullptr;
  return Py_BuildValue("(Ni)", e.node, e.index);
}

PyObject* wants(PyObject*, PyObject* inputs) {
  if (!PyTuple_Check(inputs)) {
    PyErr_SetString(PyExc_TypeError, "inputs must be a tuple");
    return nullptr;
  }
  uint64_t mask;
  Py_ssize_t n = PyTuple_GET_SIZE(inputs);
  if (!inputs_need(((PyTupleObject*)inputs)->ob_item, n, &mask)) return nullptr;
  if (!mask || !grad_enabled()) Py_RETURN_NONE;
  return needs_tuple(((PyTupleObject*)inputs)->ob_item, (int)n, mask);
}

// record(cls, k, inputs, needs, saved, attributes): a node without outputs yet.
PyObject* record_node(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 6 || !PyTuple_Check(args[2]) || !PyTuple_Check(args[3]) || !PyDict_Check(args[5]) ||
      PyTuple_GET_SIZE(args[2]) != PyTuple_GET_SIZE(args[3])) {
    PyErr_SetString(PyExc_TypeError, "record: needs cls, k, inputs, needs, saved, attributes");
    return nullptr;
  }
  int count = (int)PyTuple_GET_SIZE(args[2]);
  uint64_t mask, need = (uint64_t)1 << kOwn;
  if (!inputs_need(((PyTupleObject*)args[2])->ob_item, count, &mask)) return nullptr;
  for (int i = 0; i < count && i < kOwn; ++i)
    if (PyTuple_GET_ITEM(args[3], i) == Py_True) need |= (uint64_t)1 << i;
  Node* node = record(args[0], args[1], ((PyTupleObject*)args[2])->ob_item, count, mask & need);
  if (!node) return nullptr;
  bool ok = save_sequence(node, args[4]);
  PyObject *key, *value;
  Py_ssize_t at = 0;
  while (ok && PyDict_Next(args[5], &at, &key, &value))
    ok = PyObject_SetAttr((PyObject*)node, key, value) == 0;
  if (!ok) Py_CLEAR(node);
  return (PyObject*)node;
}

// keep(node, tensor): appends a Tensor to what the node saved.
PyObject* keep(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 2 || !is_node(args[0])) {
    PyErr_SetString(PyExc_TypeError, "keep: needs a Node and a Tensor");
    return nullptr;
  }
  if (!save((Node*)args[0], args + 1, 1)) return nullptr;
  Py_RETURN_NONE;
}

// _changed(tensor): it has just been changed in place by an op that was recorded.
PyObject* changed(PyObject*, PyObject* t) {
  if (!is_tensor(t)) {
    PyErr_SetString(PyExc_TypeError, "a Tensor is needed");
    return nullptr;
  }
  plain_views_changed((Tensor*)t);
  Py_RETURN_NONE;
}

PyObject* get_enabled(PyObject*, PyObject*) { return PyBool_FromLong(grad_enabled()); }

// Sets the mode; returns the one before.
PyObject* set_enabled(PyObject*, PyObject* flag) {
  int v = PyObject_IsTrue(flag);
  if (v < 0) return nullptr;
  bool before = grad_enabled();
  grad_enabled() = v != 0;
  return PyBool_FromLong(before);
}

PyMethodDef recording_functions[] = {
    {"apply", GS_FAST(apply), METH_FASTCALL | METH_KEYWORDS,
     "apply($module, cls, k, out, inputs, saved=(), save_output=False, /, **attrs)\n--\n\n"
     "Wraps the arrays `out` that an op computed and records the op when an input needs a "
     "gradient.\n\ncls: the op's Node class. k: kernel module. out: an array, or a tuple of them "
     "for several\noutputs. inputs: tuple of Tensors or None. saved: Tensors (watched for in-place "
     "changes) or\nprivate arrays that `backward` needs. save_output: append the output. attrs: "
     "attributes of the node."},
    {"apply_pair", GS_FAST(apply_pair), METH_FASTCALL,
     "apply_pair($module, cls, k, out, a, b, keep, /)\n--\n\nAs `apply` for two Tensors that "
     "broadcast. keep: 0 nothing is saved, 1 each operand whose\npartner needs a gradient, 2 both, "
     "3 b, and a when b needs one. a_shape and b_shape are set\non the node when the operands' "
     "shapes differ."},
    {"apply_view", GS_FAST(apply_view), METH_FASTCALL | METH_KEYWORDS,
     "apply_view($module, cls, base, out, /, **attrs)\n--\n\nAs `apply` for an op whose output is "
     "a view of the memory of its only input `base`."},
    {"apply_views", GS_FAST(apply_views), METH_FASTCALL | METH_KEYWORDS,
     "apply_views($module, cls, base, outs, /, **attrs)\n--\n\nAs `apply_view` for an op with "
     "several outputs, a tuple of views of `base`."},
    {"wrap", GS_FAST(wrap), METH_FASTCALL,
     "wrap($module, data, k, /)\n--\n\nA Tensor around an array that a kernel made; nothing is "
     "checked."},
    {"_edge", edge, METH_O, "The (node, output) that a Tensor's gradient goes to."},
    {"_wants", wants, METH_O, "Which inputs need a gradient, or None when nothing is recorded."},
    {"_record", GS_FAST(record_node), METH_FASTCALL,
     "_record($module, cls, k, inputs, needs, saved, attrs, /)\n--\n\nA node without outputs yet."},
    {"_keep", GS_FAST(keep), METH_FASTCALL, "Appends a Tensor to what a node saved."},
    {"_changed", changed, METH_O, "Views without a gradient of what an op changed are refused."},
    {"is_grad_enabled", get_enabled, METH_NOARGS,
     "is_grad_enabled($module, /)\n--\n\nTrue when ops record the graph in this thread."},
    {"_set_grad_enabled", set_enabled, METH_O, "Sets the mode of this thread; returns the former."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool& grad_enabled() {
  static thread_local bool enabled = true;
  return enabled;
}

py::object tensor_apply(py::handle cls, py::handle out, std::initializer_list<py::handle> inputs,
                        std::initializer_list<py::handle> saved, bool save_output,
                        std::initializer_list<Attribute> attributes) {
  static_assert(sizeof(py::handle) == sizeof(PyObject*), "a handle is a pointer");
  PyObject* const* items = (PyObject* const*)inputs.begin();
  const int count = (int)inputs.size();
  PyObject* k = ((Tensor*)items[0])->k;
  uint64_t mask;
  if (!inputs_need(items, count, &mask)) throw py::error_already_set();
  Node* node = nullptr;
  if (mask && grad_enabled()) {
    node = record(cls.ptr(), k, items, count, mask);
    bool ok = node && (saved.size() == 0 ||
                       save(node, (PyObject* const*)saved.begin(), (Py_ssize_t)saved.size()));
    for (const Attribute& a : attributes)
      ok = ok && PyObject_SetAttr((PyObject*)node, a.first, a.second) == 0;
    if (!ok) {
      Py_XDECREF(node);
      throw py::error_already_set();
    }
  }
  PyObject* r;
  if (PyTuple_CheckExact(out.ptr())) {
    r = outputs(out.ptr(), k, node, save_output);
  } else if (!node) {
    r = (PyObject*)tensor_wrap(out.ptr(), k);
  } else {
    r = (PyObject*)output(out.ptr(), k, node, 0);
    if (r && save_output && !save(node, &r, 1)) Py_CLEAR(r);
  }
  Py_XDECREF(node);
  if (!r) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(r);
}

bool tensors_want(std::initializer_list<py::handle> inputs) {
  if (!grad_enabled()) return false;
  for (py::handle h : inputs)
    if (is_tensor(h.ptr()) && ((Tensor*)h.ptr())->requires_grad) return true;
  return false;
}

void bind_recording(py::module_& m) {
  if (PyModule_AddFunctions(m.ptr(), recording_functions) < 0) throw py::error_already_set();
}

}  // namespace gs
