// Node, a recorded op, and the end of the graph at a leaf as Python classes.
#include <structmember.h>

#include "autograd_types.h"

namespace gs {

namespace {

int64_t sequence = 0;
constexpr int64_t kLeaf = (int64_t)1 << 62;  // accumulators run as soon as they are ready

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

}  // namespace

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

namespace {

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

}  // namespace

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

namespace {

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
  PyObject* name = PyObject_GetAttr((PyObject*)n, autograd_names->name);
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

}  // namespace gs
