// Tensor, Node and the recording of ops.
//
// Every op that Python calls passes through here, so it is written against the C interface of
// Python: a node and its output cost a few allocations. The classes gs.Tensor and Node are Python
// subclasses; all that is not on the path of every op is written there.
#include "autograd.h"

#include <structmember.h>

namespace gs {

namespace {

PyObject* tensor_class = nullptr;  // gs.Tensor
int64_t sequence = 0;
constexpr int64_t kLeaf = (int64_t)1 << 62;  // accumulators run as soon as they are ready

PyObject* interned(const char* s) {
  PyObject* o = PyUnicode_InternFromString(s);
  if (!o) throw py::error_already_set();
  return o;
}

// ---- versions
constexpr int kSpare = 128;
Version* spare[kSpare];
int spare_count = 0;

Version* version_new() {
  Version* v = spare_count > 0 ? spare[--spare_count] : (Version*)PyObject_Malloc(sizeof(Version));
  if (!v) return (Version*)PyErr_NoMemory();
  v->value = 0;
  return (Version*)PyObject_Init((PyObject*)v, &version_type);
}

void version_dealloc(PyObject* o) {
  if (spare_count < kSpare)
    spare[spare_count++] = (Version*)o;
  else
    PyObject_Free(o);
}

Py_ssize_t version_length(PyObject*) { return 1; }

PyObject* version_get(PyObject* o, Py_ssize_t i) {
  if (i == 0) return PyLong_FromLongLong(((Version*)o)->value);
  PyErr_SetString(PyExc_IndexError, "a version has one element");
  return nullptr;
}

int version_set(PyObject* o, Py_ssize_t i, PyObject* value) {
  if (i != 0 || !value) {
    PyErr_SetString(PyExc_IndexError, "a version has one element");
    return -1;
  }
  long long v = PyLong_AsLongLong(value);
  if (v == -1 && PyErr_Occurred()) return -1;
  ((Version*)o)->value = v;
  return 0;
}

PySequenceMethods version_sequence = [] {
  PySequenceMethods m = {};
  m.sq_length = version_length;
  m.sq_item = version_get;
  m.sq_ass_item = version_set;
  return m;
}();

// ---- tensors
PyObject* tensor_new(PyTypeObject* type, PyObject*, PyObject*) {
  Tensor* t = (Tensor*)type->tp_alloc(type, 0);
  if (!t) return nullptr;
  t->version = version_new();
  if (!t->version) {
    Py_DECREF(t);
    return nullptr;
  }
  Py_INCREF(Py_None);
  t->grad = Py_None;
  return (PyObject*)t;
}

int tensor_traverse(PyObject* o, visitproc visit, void* arg) {
  Tensor* t = (Tensor*)o;
  Py_VISIT(t->data);
  Py_VISIT(t->k);
  Py_VISIT(t->grad);
  Py_VISIT(t->node);
  Py_VISIT(t->accumulator);
  Py_VISIT(t->dict);
  return 0;
}

int tensor_clear(PyObject* o) {
  Tensor* t = (Tensor*)o;
  if (t->accumulator) t->accumulator->leaf = nullptr;
  Py_CLEAR(t->accumulator);
  Py_CLEAR(t->data);
  Py_CLEAR(t->k);
  Py_CLEAR(t->grad);
  Py_CLEAR(t->node);
  Py_CLEAR(t->dict);
  return 0;
}

PyObject* tensor_item(PyObject* o, PyObject*) {
  Tensor* t = (Tensor*)o;
  if (!t->data) {
    PyErr_SetString(PyExc_AttributeError, "item: the tensor has no data");
    return nullptr;
  }
  if (is_ndarray(t->data)) {
    using api = py::detail::npy_api;
    const auto* a = py::detail::array_proxy(t->data);
    bool one = true;
    for (int i = 0; i < a->nd; ++i) one = one && a->dimensions[i] == 1;
    const auto* d = py::detail::array_descriptor_proxy(a->descr);
    const bool native = d->byteorder != '>' && (uintptr_t)a->data % (uintptr_t)sizeof(float) == 0;
    if (one && native && d->type_num == api::NPY_FLOAT_)
      return PyFloat_FromDouble((double)*(const float*)a->data);
  }
  PyObject* size = PyObject_GetAttrString(t->data, "size");
  if (!size) return nullptr;
  const long long n = PyLong_AsLongLong(size);
  Py_DECREF(size);
  if (n == -1 && PyErr_Occurred()) return nullptr;
  if (n == 1) return PyObject_CallMethod(t->data, "item", nullptr);
  PyObject* shape = PyObject_GetAttrString(o, "shape");
  if (!shape) return nullptr;
  PyErr_Format(PyExc_ValueError, "item: the tensor has shape %S, not one element", shape);
  Py_DECREF(shape);
  return nullptr;
}

PyMethodDef tensor_methods[] = {
    {"item", tensor_item, METH_NOARGS,
     "item($self, /)\n--\n\nThe only element as a Python number; ValueError when there is not "
     "exactly one."},
    {nullptr, nullptr, 0, nullptr}};

void tensor_dealloc(PyObject* o) {
  PyObject_GC_UnTrack(o);
  Tensor* t = (Tensor*)o;
  if (t->accumulator) t->accumulator->leaf = nullptr;  // before anything can run Python
  if (t->weakrefs) PyObject_ClearWeakRefs(o);
  tensor_clear(o);
  Py_CLEAR(t->version);
  Py_TYPE(o)->tp_free(o);
}

PyObject* or_none(void* o) {
  PyObject* r = o ? (PyObject*)o : Py_None;
  Py_INCREF(r);
  return r;
}

PyObject* tensor_get_node(PyObject* o, void*) { return or_none(((Tensor*)o)->node); }

int tensor_set_node(PyObject* o, PyObject* value, void*) {
  Tensor* t = (Tensor*)o;
  if (value == Py_None) value = nullptr;
  if (value && !is_node(value)) {
    PyErr_SetString(PyExc_TypeError, "_node must be a Node or None");
    return -1;
  }
  Py_XINCREF(value);
  Py_XSETREF(t->node, (Node*)value);
  return 0;
}

PyObject* tensor_get_accumulator(PyObject* o, void*) { return or_none(((Tensor*)o)->accumulator); }

// `tensor.data = a` takes an array, or another Tensor's; everything else is the generic way.
int tensor_setattro(PyObject* o, PyObject* name, PyObject* value) {
  if (value && !is_ndarray(value) && PyUnicode_CompareWithASCIIString(name, "data") == 0) {
    if (is_tensor(value)) {
      value = ((Tensor*)value)->data;
    } else if (!PyObject_HasAttrString(value, "__array_interface__") &&
               !PyObject_HasAttrString(value, "__cuda_array_interface__")) {
      PyErr_Format(PyExc_TypeError, "Tensor.data: expected an array or a Tensor, got %.100s",
                   Py_TYPE(value)->tp_name);
      return -1;
    }
  }
  return PyObject_GenericSetAttr(o, name, value);
}

PyObject* tensor_get_version(PyObject* o, void*) { return or_none(((Tensor*)o)->version); }

int tensor_set_version(PyObject* o, PyObject* value, void*) {
  Tensor* t = (Tensor*)o;
  if (!value || Py_TYPE(value) != &version_type) {
    PyErr_SetString(PyExc_TypeError, "_ver must be the _ver of a Tensor");
    return -1;
  }
  Py_INCREF(value);
  Py_SETREF(t->version, (Version*)value);
  return 0;
}

PyMemberDef tensor_members[] = {
    {"data", T_OBJECT_EX, offsetof(Tensor, data), 0, "The array."},
    {"_k", T_OBJECT_EX, offsetof(Tensor, k), 0, "The kernel module of its device."},
    {"_grad", T_OBJECT_EX, offsetof(Tensor, grad), 0, "The gradient, a Tensor, or None."},
    {"_rg", T_BOOL, offsetof(Tensor, requires_grad), 0, "Whether it requires a gradient."},
    {"_view", T_BOOL, offsetof(Tensor, view), 0, "Whether its memory belongs to another Tensor."},
    {"_idx", T_INT, offsetof(Tensor, index), 0, "Which output of the node."},
    {"_at", T_LONGLONG, offsetof(Tensor, at), 0, "The version at which the node is valid."},
    {nullptr, 0, 0, 0, nullptr}};

PyGetSetDef tensor_getset[] = {
    {"_node", tensor_get_node, tensor_set_node, "What made it; None for a leaf.", nullptr},
    {"_acc", tensor_get_accumulator, nullptr, "What adds to the gradient of a leaf.", nullptr},
    {"_ver", tensor_get_version, tensor_set_version, "The version, shared by views.", nullptr},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

// ---- nodes

// Freeing a node frees the node before it, and so on through the whole program: by a queue, because
// a graph may be deeper than the stack.
struct Doomed {
  std::vector<Node*> nodes;
  bool draining = false;
};
thread_local Doomed doomed;

void release_edges(Node* n) {
  Doomed& d = doomed;
  int count = n->edge_count;
  n->edge_count = 0;
  for (int i = 0; i < count; ++i) {
    Node* to = n->edges[i].node;
    n->edges[i].node = nullptr;
    if (!to) continue;
    if (Py_REFCNT(to) > 1)
      Py_DECREF(to);
    else
      d.nodes.push_back(to);
  }
  if (n->edges != n->few_edges) PyMem_Free(n->edges);
  n->edges = n->few_edges;
  if (d.draining || d.nodes.empty()) return;
  d.draining = true;
  while (!d.nodes.empty()) {
    Node* next = d.nodes.back();
    d.nodes.pop_back();
    Py_DECREF(next);
  }
  d.draining = false;
}

void release_watch(Node* n) {
  int count = n->watch_count;
  n->watch_count = 0;
  for (int i = 0; i < count; ++i) Py_DECREF(n->watch[i].version);
  if (n->watch != n->few_watch) PyMem_Free(n->watch);
  n->watch = n->few_watch;
}

PyObject* node_new(PyTypeObject* type, PyObject*, PyObject*) {
  Node* n = (Node*)type->tp_alloc(type, 0);
  if (!n) return nullptr;
  n->edges = n->few_edges;
  n->watch = n->few_watch;
  n->outputs = 1;
  n->seq = ++sequence;
  n->autocast = autocast();
  return (PyObject*)n;
}

int node_traverse(PyObject* o, visitproc visit, void* arg) {
  Node* n = (Node*)o;
  Py_VISIT(n->k);
  Py_VISIT(n->needs);
  Py_VISIT(n->saved);
  Py_VISIT(n->hooks);
  Py_VISIT(n->retain);
  Py_VISIT(n->dict);
  for (int i = 0; i < n->edge_count; ++i) Py_VISIT(n->edges[i].node);
  return 0;
}

int node_clear(PyObject* o) {
  Node* n = (Node*)o;
  release_watch(n);
  Py_CLEAR(n->saved);
  Py_CLEAR(n->k);
  Py_CLEAR(n->needs);
  Py_CLEAR(n->hooks);
  Py_CLEAR(n->retain);
  Py_CLEAR(n->dict);
  release_edges(n);
  return 0;
}

void node_dealloc(PyObject* o) {
  PyObject_GC_UnTrack(o);
  if (((Node*)o)->weakrefs) PyObject_ClearWeakRefs(o);
  node_clear(o);
  Py_TYPE(o)->tp_free(o);
}

bool reserve_edges(Node* n, int count) {
  if (count > 3) {
    n->edges = (Edge*)PyMem_Calloc(count, sizeof(Edge));
    if (!n->edges) {
      n->edges = n->few_edges;
      PyErr_NoMemory();
      return false;
    }
  }
  n->edge_count = count;
  return true;
}

bool add_watch(Node* n, Version* v) {
  int count = n->watch_count;
  if (count >= 3 && (count == 3 || (count & (count - 1)) == 0)) {  // grows at 3, 4, 8, 16, ...
    Watch* old = n->watch == n->few_watch ? nullptr : n->watch;
    Watch* w = (Watch*)PyMem_Realloc(old, sizeof(Watch) * (count == 3 ? 4 : 2 * count));
    if (!w) {
      PyErr_NoMemory();
      return false;
    }
    if (!old) memcpy(w, n->few_watch, sizeof n->few_watch);
    n->watch = w;
  }
  Py_INCREF(v);
  n->watch[count] = Watch{v, v->value};
  n->watch_count = count + 1;
  return true;
}

PyObject* node_get_saved(PyObject* o, void*) { return node_saved((Node*)o); }

PyObject* node_get_arrays(PyObject* o, void*) {
  Node* n = (Node*)o;
  if (!n->saved) return PyTuple_New(0);
  return or_none(n->saved);
}

PyObject* node_get_edges(PyObject* o, void*) {
  Node* n = (Node*)o;
  PyObject* r = PyTuple_New(n->edge_count);
  for (int i = 0; r && i < n->edge_count; ++i) {
    PyObject* e = n->edges[i].node ? Py_BuildValue("(Oi)", n->edges[i].node, n->edges[i].index)
                                   : or_none(nullptr);
    if (!e) Py_CLEAR(r);
    if (r) PyTuple_SET_ITEM(r, i, e);
  }
  return r;
}

PyMemberDef node_members[] = {
    {"k", T_OBJECT, offsetof(Node, k), 0, "The kernel module of the device."},
    {"needs", T_OBJECT, offsetof(Node, needs), 0, "Which inputs want a gradient."},
    {"hooks", T_OBJECT, offsetof(Node, hooks), 0, "{output: {id: function}} or None."},
    {"retain", T_OBJECT, offsetof(Node, retain), 0, "{output: weak reference} or None."},
    {"outputs", T_INT, offsetof(Node, outputs), 0, "How many outputs it has."},
    {"seq", T_LONGLONG, offsetof(Node, seq), READONLY, "Position in the program."},
    {nullptr, 0, 0, 0, nullptr}};

PyGetSetDef node_getset[] = {
    {"saved", node_get_saved, nullptr, "The saved arrays; checks that they are unchanged.",
     nullptr},
    {"_saved", node_get_arrays, nullptr, "The saved arrays; None when they were freed.", nullptr},
    {"edges", node_get_edges, nullptr, "(node, output) or None, one an input.", nullptr},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

// ---- recording
struct Names {
  PyObject* saved = interned("saved");
  PyObject* save_output = interned("save_output");
  PyObject* dtype = interned("dtype");
  PyObject* kind = interned("kind");
  PyObject* shape = interned("shape");
  PyObject* name = interned("name");
  PyObject* a_shape = interned("a_shape");
  PyObject* b_shape = interned("b_shape");
  PyObject* hooks = interned("_hooks");
  PyObject* pre_hooks = interned("_pre_hooks");
  PyObject* forward = interned("forward");
  PyObject* call_hooked = interned("_call_hooked");
};
Names* names = nullptr;

// The tuple of needs with the bits of `mask`; small ones are made once.
PyObject* needs_tuple(int n, uint64_t mask) {
  static PyObject* made[5][16];
  bool small = n <= 4;
  if (small && made[n][mask]) {
    Py_INCREF(made[n][mask]);
    return made[n][mask];
  }
  PyObject* t = PyTuple_New(n);
  if (!t) return nullptr;
  for (int i = 0; i < n; ++i) {
    PyObject* b = (mask >> i) & 1 ? Py_True : Py_False;
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
  if (n > 64) {
    PyErr_SetString(PyExc_ValueError, "apply: at most 64 inputs are supported");
    return false;
  }
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* t = inputs[i];
    if (t == Py_None) continue;
    if (!is_tensor(t)) {
      PyErr_Format(PyExc_TypeError, "input %zd of an op must be a Tensor, got %.100s", i,
                   Py_TYPE(t)->tp_name);
      return false;
    }
    if (((Tensor*)t)->requires_grad) *mask |= (uint64_t)1 << i;
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
  node->needs = needs_tuple(n, mask);
  bool ok = node->needs && reserve_edges(node, n);
  for (int i = 0; ok && i < n; ++i)
    if ((mask >> i) & 1) ok = tensor_edge((Tensor*)inputs[i], &node->edges[i]);
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
  PyObject* dtype = PyObject_GetAttr(a, names->dtype);
  PyObject* kind = dtype ? PyObject_GetAttr(dtype, names->kind) : nullptr;
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
  uint64_t mask = 0;
  if (!inputs_need(items, count, &mask)) return nullptr;
  if (!mask || !grad_enabled()) {
    if (PyTuple_CheckExact(out)) return outputs(out, k, nullptr, false);
    return (PyObject*)tensor_wrap(out, k);
  }
  Node* node = record(cls, k, items, count, mask);
  if (!node) return nullptr;
  for (Py_ssize_t i = 0; i < attributes; ++i) {
    PyObject *key = PyTuple_GET_ITEM(keywords, i), *value = args[n + i];
    if (key == names->saved) {
      saved = value;
    } else if (key == names->save_output) {
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

// 1: both are arrays of one shape, 0: not, -1: error
int same_shape(PyObject* a, PyObject* b) {
  if (is_ndarray(a) && is_ndarray(b)) {
    auto *x = py::detail::array_proxy(a), *y = py::detail::array_proxy(b);
    return x->nd == y->nd &&
           (x->nd == 0 || memcmp(x->dimensions, y->dimensions, sizeof(Py_ssize_t) * x->nd) == 0);
  }
  PyObject *s = PyObject_GetAttr(a, names->shape), *t = s ? PyObject_GetAttr(b, names->shape) : s;
  int r = t ? PyObject_RichCompareBool(s, t, Py_EQ) : -1;
  Py_XDECREF(s);
  Py_XDECREF(t);
  return r;
}

bool set_shape(Node* node, PyObject* name, PyObject* array) {
  PyObject* shape = PyObject_GetAttr(array, names->shape);
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
    ok = set_shape(node, names->a_shape, a->data) && set_shape(node, names->b_shape, b->data);
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
  if (!base->requires_grad || !grad_enabled()) return (PyObject*)t;
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
  return needs_tuple((int)n, mask);
}

// record(cls, k, inputs, needs, saved, attributes): a node without outputs yet.
PyObject* record_node(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 6 || !PyTuple_Check(args[2]) || !PyTuple_Check(args[3]) || !PyDict_Check(args[5]) ||
      PyTuple_GET_SIZE(args[2]) != PyTuple_GET_SIZE(args[3])) {
    PyErr_SetString(PyExc_TypeError, "record: needs cls, k, inputs, needs, saved, attributes");
    return nullptr;
  }
  int count = (int)PyTuple_GET_SIZE(args[2]);
  uint64_t mask = 0, need;
  if (!inputs_need(((PyTupleObject*)args[2])->ob_item, count, &mask)) return nullptr;
  need = 0;
  for (int i = 0; i < count; ++i)
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

// _rows_flat(rows, params): parameter, gradient and states of each row in one list, or None.
PyObject* rows_flat(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 2 || !PyList_Check(args[0]) || !PyList_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "_rows_flat: needs two lists");
    return nullptr;
  }
  std::vector<PyObject*> arrays;
  if (!rows_arrays(args[0], args[1], &arrays)) Py_RETURN_NONE;
  PyObject* flat = PyList_New((Py_ssize_t)arrays.size());
  for (size_t i = 0; flat && i < arrays.size(); ++i) {
    Py_INCREF(arrays[i]);
    PyList_SET_ITEM(flat, (Py_ssize_t)i, arrays[i]);
  }
  return flat;
}

// _rows_done(rows, numbers): the state of each row takes the numbers; its parameter has changed.
PyObject* rows_done(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 2 || !PyList_Check(args[0]) || !PyDict_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "_rows_done: needs a list and a dict");
    return nullptr;
  }
  try {
    rows_changed(args[0], args[1]);
  } catch (...) {
    raise_current();
    return nullptr;
  }
  Py_RETURN_NONE;
}

// bump(*tensors): counts a change of the memory of each Tensor; None is passed over.
PyObject* bump(PyObject*, PyObject* const* args, Py_ssize_t n) {
  for (Py_ssize_t i = 0; i < n; ++i) {
    if (is_tensor(args[i])) {
      ++((Tensor*)args[i])->version->value;
    } else if (args[i] != Py_None) {
      PyErr_SetString(PyExc_TypeError, "bump: a Tensor or None is needed");
      return nullptr;
    }
  }
  Py_RETURN_NONE;
}

// 1: the dict under this name is not empty, 0: it is, -1: error. own: the module's __dict__
int has_entries(PyObject* module, PyObject* own, PyObject* name) {
  PyObject* d = PyDict_GetItemWithError(own, name);
  if (d) {
    if (PyDict_CheckExact(d)) return PyDict_GET_SIZE(d) > 0;
    Py_INCREF(d);
  } else {
    if (PyErr_Occurred()) return -1;
    d = PyObject_GetAttr(module, name);
  }
  if (!d) return -1;
  int r = PyDict_Check(d) ? PyDict_GET_SIZE(d) > 0 : PyObject_IsTrue(d);
  Py_DECREF(d);
  return r;
}

// nn.Module.__call__: forward, or _call_hooked where there are hooks.
PyObject* module_call(PyObject* self, PyObject* args, PyObject* keywords) {
  PyObject* own = PyObject_GenericGetDict(self, nullptr);
  if (!own) return nullptr;
  int hooks = has_entries(self, own, names->hooks);
  if (hooks == 0) hooks = has_entries(self, own, names->pre_hooks);
  Py_DECREF(own);
  if (hooks < 0) {
    if (PyErr_ExceptionMatches(PyExc_AttributeError))
      PyErr_Format(PyExc_AttributeError, "%.100s: call super().__init__() in __init__",
                   Py_TYPE(self)->tp_name);
    return nullptr;
  }
  PyObject* name = hooks ? names->call_hooked : names->forward;
  Py_ssize_t n = PyTuple_GET_SIZE(args);
  PyObject* few[8];
  if (n < 8 && (!keywords || PyDict_GET_SIZE(keywords) == 0)) {
    few[0] = self;
    for (Py_ssize_t i = 0; i < n; ++i) few[i + 1] = PyTuple_GET_ITEM(args, i);
    return PyObject_VectorcallMethod(name, few, (size_t)n + 1, nullptr);
  }
  PyObject* method = PyObject_GetAttr(self, name);
  if (!method) return nullptr;
  PyObject* r = PyObject_Call(method, args, keywords);
  Py_DECREF(method);
  return r;
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

PyObject* set_class(PyObject*, PyObject* cls) {
  if (!PyType_Check(cls) || !PyType_IsSubtype((PyTypeObject*)cls, &tensor_type)) {
    PyErr_SetString(PyExc_TypeError, "a subclass of TensorBase is needed");
    return nullptr;
  }
  Py_INCREF(cls);
  Py_XSETREF(tensor_class, cls);
  Py_RETURN_NONE;
}

#define GS_FAST(f) ((PyCFunction)(void (*)(void))(f))
PyMethodDef functions[] = {
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
    {"_rows_flat", GS_FAST(rows_flat), METH_FASTCALL,
     "The arrays of an optimizer's rows in one list; None when something is another now."},
    {"_rows_done", GS_FAST(rows_done), METH_FASTCALL,
     "Writes the numbers of a step into its rows."},
    {"bump", GS_FAST(bump), METH_FASTCALL,
     "bump($module, *tensors)\n--\n\nCounts a change in place of each Tensor; None is passed "
     "over."},
    {"is_grad_enabled", get_enabled, METH_NOARGS,
     "is_grad_enabled($module, /)\n--\n\nTrue when ops record the graph in this thread."},
    {"_set_grad_enabled", set_enabled, METH_O, "Sets the mode of this thread; returns the former."},
    {"_set_tensor_class", set_class, METH_O, "The class of the Tensors that ops return."},
    {nullptr, nullptr, 0, nullptr}};

PyTypeObject make_type(const char* name, size_t size, destructor dealloc, const char* doc) {
  const PyVarObject head[] = {PyVarObject_HEAD_INIT(nullptr, 0)};
  PyTypeObject t = {};
  t.ob_base = head[0];
  t.tp_name = name;
  t.tp_basicsize = (Py_ssize_t)size;
  t.tp_dealloc = dealloc;
  t.tp_flags = Py_TPFLAGS_DEFAULT;
  t.tp_doc = doc;
  return t;
}

PyTypeObject make_tensor_type() {
  PyTypeObject t = make_type("gradsmith._cpu.TensorBase", sizeof(Tensor), tensor_dealloc,
                             "The fields of a Tensor. Use gradsmith.Tensor.");
  t.tp_flags |= Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE;
  t.tp_new = tensor_new;
  t.tp_traverse = tensor_traverse;
  t.tp_clear = tensor_clear;
  t.tp_methods = tensor_methods;
  t.tp_members = tensor_members;
  t.tp_getset = tensor_getset;
  t.tp_setattro = tensor_setattro;
  t.tp_dictoffset = offsetof(Tensor, dict);
  t.tp_weaklistoffset = offsetof(Tensor, weakrefs);
  return t;
}

PyTypeObject make_node_type(const char* name, const char* doc) {
  PyTypeObject t = make_type(name, sizeof(Node), node_dealloc, doc);
  t.tp_flags |= Py_TPFLAGS_HAVE_GC;
  t.tp_new = node_new;
  t.tp_traverse = node_traverse;
  t.tp_clear = node_clear;
  t.tp_members = node_members;
  t.tp_getset = node_getset;
  t.tp_dictoffset = offsetof(Node, dict);
  t.tp_weaklistoffset = offsetof(Node, weakrefs);
  return t;
}

}  // namespace

PyTypeObject version_type = [] {
  PyTypeObject t = make_type("gradsmith._cpu.Version", sizeof(Version), version_dealloc,
                             "Counts the changes of a piece of memory.");
  t.tp_as_sequence = &version_sequence;
  return t;
}();
PyTypeObject tensor_type = make_tensor_type();
PyTypeObject node_type = [] {
  PyTypeObject t = make_node_type("gradsmith._cpu.NodeBase", "The fields of a Node.");
  t.tp_flags |= Py_TPFLAGS_BASETYPE;
  return t;
}();
PyTypeObject accumulator_type = [] {
  PyTypeObject t = make_node_type("gradsmith._cpu.Accumulate",
                                  "The end of the graph at a leaf: adds to its gradient.");
  t.tp_base = &node_type;
  t.tp_new = nullptr;  // made by tensor_edge
  t.tp_flags |= Py_TPFLAGS_DISALLOW_INSTANTIATION;
  t.tp_members = nullptr;
  t.tp_getset = nullptr;
  return t;
}();

PyTypeObject module_type = [] {
  PyTypeObject t = make_type("gradsmith._cpu.ModuleBase", sizeof(PyObject), nullptr,
                             "The call of a Module. Use gradsmith.nn.Module.");
  t.tp_flags |= Py_TPFLAGS_BASETYPE;
  t.tp_call = module_call;
  t.tp_new = PyType_GenericNew;
  return t;
}();

bool& grad_enabled() {
  static thread_local bool enabled = true;
  return enabled;
}

Tensor* tensor_wrap(PyObject* data, PyObject* k) {
  Tensor* t = (Tensor*)tensor_new((PyTypeObject*)tensor_class, nullptr, nullptr);
  if (!t) return nullptr;
  Py_XINCREF(data);
  t->data = data;
  Py_XINCREF(k);
  t->k = k;
  return t;
}

bool rows_arrays(PyObject* rows, PyObject* params, std::vector<PyObject*>* arrays) {
  const Py_ssize_t count = PyList_GET_SIZE(rows);
  if (count == 0 || count != PyList_GET_SIZE(params)) return false;
  arrays->reserve((size_t)count * 4);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject *row = PyList_GET_ITEM(rows, i), *p = PyList_GET_ITEM(params, i);
    if (!PyTuple_Check(row) || PyTuple_GET_SIZE(row) < 4 || !is_tensor(p) ||
        !PyList_Check(PyTuple_GET_ITEM(row, 3)) || PyTuple_GET_ITEM(row, 0) != p)
      return false;
    PyObject *data = ((Tensor*)p)->data, *grad = ((Tensor*)p)->grad;
    if (data != PyTuple_GET_ITEM(row, 1) || !is_tensor(grad)) return false;
    PyObject* g = ((Tensor*)grad)->data;
    if (!data || !g || !is_ndarray(data) || !is_ndarray(g) ||
        py::detail::array_proxy(data)->descr != py::detail::array_proxy(g)->descr ||
        same_shape(data, g) != 1)
      return false;
    arrays->push_back(data);
    arrays->push_back(g);
    PyObject* held = PyTuple_GET_ITEM(row, 3);
    for (Py_ssize_t j = 0; j < PyList_GET_SIZE(held); ++j)
      arrays->push_back(PyList_GET_ITEM(held, j));
  }
  return true;
}

void rows_changed(PyObject* rows, PyObject* numbers) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(rows); ++i) {
    PyObject* row = PyList_GET_ITEM(rows, i);
    if (!PyTuple_Check(row) || PyTuple_GET_SIZE(row) < 4 || !is_tensor(PyTuple_GET_ITEM(row, 0)))
      throw py::type_error("_rows_done: not a row");
    if (PyDict_Update(PyTuple_GET_ITEM(row, 2), numbers) < 0) throw py::error_already_set();
    ++((Tensor*)PyTuple_GET_ITEM(row, 0))->version->value;
  }
}

py::object tensor_apply(py::handle cls, py::handle out, std::initializer_list<py::handle> inputs,
                        std::initializer_list<py::handle> saved, bool save_output,
                        std::initializer_list<Attribute> attributes) {
  static_assert(sizeof(py::handle) == sizeof(PyObject*), "a handle is a pointer");
  PyObject* const* items = (PyObject* const*)inputs.begin();
  const int count = (int)inputs.size();
  PyObject* k = ((Tensor*)items[0])->k;
  uint64_t mask = 0;
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

void tensor_changed(py::handle h) {
  if (is_tensor(h.ptr())) ++((Tensor*)h.ptr())->version->value;
}

PyObject* tensor_data(py::handle h, const char* op, const char* name, bool optional) {
  if (optional && h.is_none()) return Py_None;
  if (!is_tensor(h.ptr()) || !((Tensor*)h.ptr())->data)
    type_error(op, std::string(name) + " must be a Tensor, got " + Py_TYPE(h.ptr())->tp_name);
  return ((Tensor*)h.ptr())->data;
}

bool tensor_edge(Tensor* t, Edge* out) {
  Node* n = t->node;
  if (n) {
    if (t->version->value != t->at) {
      PyErr_SetString(
          PyExc_RuntimeError,
          "this tensor is a view of memory that was modified in place after the view was taken; "
          "its gradient would be wrong. Take the view again after the change");
      return false;
    }
    Py_INCREF(n);
    *out = Edge{n, t->index};
    return true;
  }
  n = t->accumulator;
  if (!n) {
    n = (Node*)node_new(&accumulator_type, nullptr, nullptr);
    if (!n) return false;
    n->seq += kLeaf;
    n->leaf = t;
    PyObject* k = t->k ? t->k : Py_None;
    Py_INCREF(k);
    n->k = k;
    t->accumulator = n;
  }
  Py_INCREF(n);
  *out = Edge{n, 0};
  return true;
}

PyObject* node_name(Node* n) {
  PyObject* name = PyObject_GetAttr((PyObject*)n, names->name);
  if (name) return name;
  PyErr_Clear();
  return PyUnicode_FromString(Py_TYPE(n)->tp_name);
}

PyObject* node_saved(Node* n) {
  if (!n->saved) return PyTuple_New(0);
  if (n->saved == Py_None) {
    PyObject* name = node_name(n);
    if (name)
      PyErr_Format(PyExc_RuntimeError,
                   "%U: backward through this graph a second time: its saved arrays were freed. "
                   "Call backward(retain_graph=True) the first time",
                   name);
    Py_XDECREF(name);
    return nullptr;
  }
  for (int i = 0; i < n->watch_count; ++i) {
    const Watch& w = n->watch[i];
    if (w.version->value == w.value) continue;
    PyObject* name = node_name(n);
    if (name)
      PyErr_Format(PyExc_RuntimeError,
                   "%U: a tensor needed for the gradient was modified in place (version %lld, "
                   "recorded at %lld). Clone it before the in-place change",
                   name, (long long)w.version->value, (long long)w.value);
    Py_XDECREF(name);
    return nullptr;
  }
  Py_INCREF(n->saved);
  return n->saved;
}

void node_release_saved(Node* n) {
  if (!n->saved || (n->saved != Py_None && PyTuple_GET_SIZE(n->saved) == 0)) return;
  release_watch(n);
  Py_INCREF(Py_None);
  Py_SETREF(n->saved, Py_None);
}

void bind_autograd(py::module_& m) {
  names = new Names;
  struct {
    const char* name;
    PyTypeObject* type;
  } types[] = {{"Version", &version_type},
               {"TensorBase", &tensor_type},
               {"NodeBase", &node_type},
               {"Accumulate", &accumulator_type},
               {"ModuleBase", &module_type}};
  for (auto& t : types) {
    if (PyType_Ready(t.type) < 0) throw py::error_already_set();
    m.attr(t.name) = py::reinterpret_borrow<py::object>((PyObject*)t.type);
  }
  tensor_class = (PyObject*)&tensor_type;
  Py_INCREF(tensor_class);
  if (PyModule_AddFunctions(m.ptr(), functions) < 0) throw py::error_already_set();
  bind_engine(m);
}

}  // namespace gs
