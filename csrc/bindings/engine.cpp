// The backward pass: from the roots to the leaves, each node once, after all nodes that use its
// outputs; among ready nodes the youngest first. Sums of gradients are made in an order fixed by
// the graph. Nothing here recurses, so a graph may be as deep as memory allows.
//
// Ownership: a gradient may be kept (by a leaf) or added to in place when nobody else can hold it.
// That is an array which a rule of a `fresh` class returned once and which is neither one of its
// incoming gradients, nor saved, nor a view.
#include <algorithm>

#include "autograd.h"

namespace gs {

namespace {

struct Names {
  PyObject* backward = PyUnicode_InternFromString("backward");
  PyObject* add = PyUnicode_InternFromString("add");
  PyObject* add_ = PyUnicode_InternFromString("add_");
  PyObject* copy = PyUnicode_InternFromString("copy");
  PyObject* fresh = PyUnicode_InternFromString("fresh");
  PyObject* base = PyUnicode_InternFromString("base");
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* flags = PyUnicode_InternFromString("flags");
  PyObject* c_contiguous = PyUnicode_InternFromString("c_contiguous");
};
const Names* names = nullptr;

PyObject* call(PyObject* self, PyObject* name, PyObject* a, PyObject* b = nullptr) {
  PyObject* args[] = {self, a, b};
  if (!self || !a) {
    PyErr_SetString(PyExc_ValueError, "backward: a Tensor without data");
    return nullptr;
  }
  return PyObject_VectorcallMethod(name, args, b ? 3 : 2, nullptr);
}

// The sum so far of the gradients of one output; owns the array.
struct Slot {
  PyObject* grad = nullptr;
  bool fresh = false;
};

// A node of this pass.
struct State {
  Node* node;   // owned
  int waiting;  // edges from nodes that have not run
  Slot one;     // outputs: one, or `many`
  std::vector<Slot> many;
  bool reached = false;

  Slot* slots() { return many.empty() ? &one : many.data(); }
  int count() const { return many.empty() ? 1 : (int)many.size(); }
};

// Node -> index of its state: open addressing, since each edge asks twice.
class Index {
 public:
  Index() : keys_(64), values_(64) {}
  // The place of a node; *found tells whether it was there.
  int32_t* at(Node* n, bool* found) {
    size_t i = slot(n);
    *found = keys_[i] == n;
    if (!*found) {
      if (2 * ++used_ > keys_.size()) {
        grow();
        i = slot(n);
      }
      keys_[i] = n;
    }
    return &values_[i];
  }
  int32_t get(Node* n) const { return values_[slot(n)]; }

 private:
  size_t slot(Node* n) const {
    size_t mask = keys_.size() - 1;
    size_t i = ((uintptr_t)n >> 4) * (size_t)0x9E3779B97F4A7C15u >> 20 & mask;
    while (keys_[i] && keys_[i] != n) i = (i + 1) & mask;
    return i;
  }
  void grow() {
    std::vector<Node*> keys(keys_.size() * 2);
    std::vector<int32_t> values(keys.size());
    keys.swap(keys_);
    values.swap(values_);
    for (size_t j = 0; j < keys.size(); ++j)
      if (keys[j]) {
        size_t i = slot(keys[j]);
        keys_[i] = keys[j];
        values_[i] = values[j];
      }
  }
  std::vector<Node*> keys_;
  std::vector<int32_t> values_;
  size_t used_ = 0;
};

PyObject* base_of(PyObject* a) {  // borrowed, nullptr: none
  if (is_ndarray(a)) return py::detail::array_proxy(a)->base;
  PyObject* base = PyObject_GetAttr(a, names->base);
  if (!base) return nullptr;
  Py_DECREF(base);  // the array holds it
  return base == Py_None ? nullptr : base;
}

// Whether the memory of `a` belongs to another array.
bool is_view(PyObject* a) {
  PyObject* base = base_of(a);
  return base && (is_ndarray(base) || Py_TYPE(base) == Py_TYPE(a));
}

bool is_contiguous(PyObject* a) {
  if (is_ndarray(a))
    return py::detail::array_proxy(a)->flags & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_;
  PyObject* flags = PyObject_GetAttr(a, names->flags);
  PyObject* c = flags ? PyObject_GetAttr(flags, names->c_contiguous) : nullptr;
  bool r = c == Py_True;
  Py_XDECREF(c);
  Py_XDECREF(flags);
  if (!c) PyErr_Clear();
  return r;
}

// 1: shape and dtype are equal, 0: not, -1: error
int same_kind(PyObject* a, PyObject* b) {
  if (is_ndarray(a) && is_ndarray(b)) {
    auto *x = py::detail::array_proxy(a), *y = py::detail::array_proxy(b);
    if (x->descr == y->descr && x->nd == y->nd &&
        (x->nd == 0 || memcmp(x->dimensions, y->dimensions, sizeof(Py_ssize_t) * x->nd) == 0))
      return 1;
  }
  for (PyObject* name : {names->shape, names->dtype}) {
    PyObject *p = PyObject_GetAttr(a, name), *q = p ? PyObject_GetAttr(b, name) : nullptr;
    int equal = q ? PyObject_RichCompareBool(p, q, Py_EQ) : -1;
    Py_XDECREF(p);
    Py_XDECREF(q);
    if (equal != 1) return equal;
  }
  return 1;
}

// Adds a gradient to the one that a leaf holds.
bool accumulate(Node* n, const Slot& s) {
  if (!n->leaf) return true;  // nobody can ask for it any more
  py::object hold = py::reinterpret_borrow<py::object>((PyObject*)n->leaf);
  Tensor* leaf = n->leaf;
  if (!leaf->data) return true;
  int same = same_kind(s.grad, leaf->data);
  if (same < 0) return false;
  if (!same) {
    py::handle g(s.grad), d(leaf->data);
    std::string text = "backward: gradient has shape " + std::string(py::str(g.attr("shape"))) +
                       " and dtype " + std::string(py::str(g.attr("dtype"))) + ", its leaf " +
                       std::string(py::str(d.attr("shape"))) + " and " +
                       std::string(py::str(d.attr("dtype")));
    PyErr_SetString(PyExc_RuntimeError, text.c_str());
    return false;
  }
  if (leaf->grad && is_tensor(leaf->grad)) {
    Tensor* held = (Tensor*)leaf->grad;
    py::object keep = py::reinterpret_borrow<py::object>(leaf->grad);
    PyObject* r = call(n->k, names->add_, held->data, s.grad);
    Py_XDECREF(r);
    ++held->version->value;
    return r != nullptr;
  }
  PyObject* g = s.grad;
  if (!s.fresh || !is_contiguous(g) || is_view(g))
    g = call(n->k, names->copy, g);
  else
    Py_INCREF(g);
  if (!g) return false;
  PyObject* t = (PyObject*)tensor_wrap(g, n->k);
  Py_DECREF(g);
  if (!t) return false;
  Py_XSETREF(leaf->grad, t);
  return true;
}

PyObject* call_hooks = nullptr;  // Python: (node, gradients) replaces gradients in place
PyObject* call_retain = nullptr;

class Pass {
 public:
  ~Pass() {
    for (State& s : states_) {
      for (int i = 0; i < s.count(); ++i) Py_XDECREF(s.slots()[i].grad);
      Py_DECREF(s.node);
    }
  }

  // All return false with a Python error set.
  bool start(PyObject* roots, PyObject* grads);
  bool run(bool retain_graph, PyObject* only);

 private:
  int find(Node* n);
  bool add(int state, int output, PyObject* g, bool fresh);
  bool watchers(int state, PyObject* only);
  bool step(int state);
  void push(int state) {
    ready_.emplace_back(states_[state].node->seq, state);
    std::push_heap(ready_.begin(), ready_.end());
  }

  std::vector<State> states_;
  Index index_;
  std::vector<std::pair<int64_t, int>> ready_;  // a heap, youngest first
};

// The state of a node, made when it is new.
int Pass::find(Node* n) {
  bool found;
  int32_t* at = index_.at(n, &found);
  if (found) return *at;
  *at = (int32_t)states_.size();
  State s;
  Py_INCREF(n);
  s.node = n;
  s.waiting = 0;
  if (n->outputs > 1) s.many.resize((size_t)n->outputs);
  states_.push_back(std::move(s));
  return (int)states_.size() - 1;
}

bool Pass::start(PyObject* roots, PyObject* grads) {
  Py_ssize_t n = PyList_GET_SIZE(roots);
  std::vector<std::pair<int, int>> starts;
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* root = PyList_GET_ITEM(roots, i);
    Edge e;
    if (!is_tensor(root)) {
      PyErr_SetString(PyExc_TypeError, "backward: a Tensor is needed");
      return false;
    }
    if (!tensor_edge((Tensor*)root, &e)) return false;
    starts.emplace_back(find(e.node), e.index);
    Py_DECREF(e.node);
  }
  // How many edges lead into each node that can be reached.
  for (size_t i = 0; i < states_.size(); ++i) {
    Node* node = states_[i].node;
    for (int j = 0; j < node->edge_count; ++j)
      if (node->edges[j].node) ++states_[(size_t)find(node->edges[j].node)].waiting;
  }
  for (size_t i = 0; i < starts.size(); ++i)
    if (!add(starts[i].first, starts[i].second, PyList_GET_ITEM(grads, i), false)) return false;
  for (size_t i = 0; i < states_.size(); ++i)
    if (states_[i].waiting == 0) push((int)i);
  return true;
}

// Adds g (borrowed) to the gradient of an output.
bool Pass::add(int state, int output, PyObject* g, bool fresh) {
  State& s = states_[(size_t)state];
  if (output < 0 || output >= s.count()) {
    PyErr_SetString(PyExc_RuntimeError, "backward: an output of a node that has fewer");
    return false;
  }
  s.reached = true;
  Slot& slot = s.slots()[output];
  if (!slot.grad) {
    Py_INCREF(g);
    slot.grad = g;
    slot.fresh = fresh;
    return true;
  }
  PyObject* sum = call(s.node->k, slot.fresh ? names->add_ : names->add, slot.grad, g);
  if (!sum) return false;
  if (slot.fresh) {
    Py_DECREF(sum);
  } else {
    Py_SETREF(slot.grad, sum);
    slot.fresh = true;
  }
  return true;
}

// Hooks, retained gradients, and the gradients that `gs.grad` asks for: rare, so by way of Python.
bool Pass::watchers(int state, PyObject* only) {
  State& s = states_[(size_t)state];
  Node* node = s.node;
  bool hooks = node->hooks && node->hooks != Py_None;
  bool retain = node->retain && node->retain != Py_None;
  if (hooks || retain) {
    py::list grads((size_t)s.count());
    for (int i = 0; i < s.count(); ++i) {
      PyObject* g = s.slots()[i].grad;
      grads[(size_t)i] = g ? py::reinterpret_borrow<py::object>(g) : py::none();
    }
    for (PyObject* fn : {hooks ? call_hooks : nullptr, retain ? call_retain : nullptr}) {
      if (!fn) continue;
      PyObject* args[] = {(PyObject*)node, grads.ptr()};
      PyObject* r = PyObject_Vectorcall(fn, args, 2, nullptr);
      if (!r) return false;
      Py_DECREF(r);
    }
    for (int i = 0; hooks && i < s.count(); ++i) {
      Slot& slot = s.slots()[i];
      if (!slot.grad) continue;
      Py_SETREF(slot.grad, py::object(grads[(size_t)i]).release().ptr());
      slot.fresh = false;  // a hook may have kept it
    }
  }
  if (only != Py_None) {
    PyObject* wanted = PyDict_GetItemWithError(only, (PyObject*)node);
    if (!wanted) return !PyErr_Occurred();
    for (int i = 0; i < s.count(); ++i)
      if (s.slots()[i].grad) {
        py::int_ key(i);
        if (PyDict_SetItem(wanted, key.ptr(), s.slots()[i].grad) < 0) return false;
      }
  }
  return true;
}

// Runs one node's backward and hands the gradients on.
bool Pass::step(int state) {
  State& s = states_[(size_t)state];
  Node* node = s.node;
  int n = s.count();
  Slot* slots = s.slots();
  PyObject* few[9];
  std::vector<PyObject*> many;
  PyObject** args = few;
  if (n > 8) {
    many.resize((size_t)n + 1);
    args = many.data();
  }
  args[0] = (PyObject*)node;
  for (int i = 0; i < n; ++i) args[1 + i] = slots[i].grad ? slots[i].grad : Py_None;
  autocast() = node->autocast;
  py::object results = py::reinterpret_steal<py::object>(
      PyObject_VectorcallMethod(names->backward, args, (size_t)n + 1, nullptr));
  if (!results) return false;
  PyObject* single = nullptr;
  PyObject* const* items;
  Py_ssize_t count;
  if (PyTuple_CheckExact(results.ptr())) {
    items = ((PyTupleObject*)results.ptr())->ob_item;
    count = PyTuple_GET_SIZE(results.ptr());
  } else if (PyList_Check(results.ptr())) {
    items = ((PyListObject*)results.ptr())->ob_item;
    count = PyList_GET_SIZE(results.ptr());
  } else {
    single = results.ptr();
    items = &single;
    count = 1;
  }
  if (count != node->edge_count) {
    py::object name = py::reinterpret_steal<py::object>(node_name(node));
    if (name)
      PyErr_Format(PyExc_RuntimeError, "%U.backward returned %zd gradients for %d inputs",
                   name.ptr(), count, node->edge_count);
    return false;
  }
  int rule = -1;  // does the class make fresh arrays? asked once, when it matters
  for (Py_ssize_t i = 0; i < count; ++i) {
    const Edge& e = node->edges[i];
    PyObject* g = items[i];
    if (!e.node || g == Py_None) continue;
    bool fresh = true;
    for (int j = 0; fresh && j < n; ++j) fresh = g != slots[j].grad;
    for (Py_ssize_t j = 0; fresh && j < count; ++j) fresh = j == i || items[j] != g;
    if (fresh && is_view(g)) fresh = false;
    if (PyErr_Occurred()) return false;
    if (fresh && rule < 0) {
      PyObject* f = PyObject_GetAttr((PyObject*)node, names->fresh);
      rule = f ? PyObject_IsTrue(f) : -1;
      Py_XDECREF(f);
      if (rule < 0) return false;
    }
    if (fresh && rule == 0) fresh = false;
    Py_ssize_t held =
        fresh && node->saved && node->saved != Py_None ? PyTuple_GET_SIZE(node->saved) : 0;
    for (Py_ssize_t j = 0; fresh && j < held; ++j) fresh = PyTuple_GET_ITEM(node->saved, j) != g;
    if (!add(index_.get(e.node), e.index, g, fresh)) return false;
  }
  return true;
}

bool Pass::run(bool retain_graph, PyObject* only) {
  while (!ready_.empty()) {
    std::pop_heap(ready_.begin(), ready_.end());
    int at = ready_.back().second;
    ready_.pop_back();
    State& s = states_[(size_t)at];
    Node* node = s.node;
    if (s.reached) {
      bool leaf = Py_TYPE(node) == &accumulator_type;
      if (!watchers(at, only)) return false;
      if (!(leaf ? only != Py_None || accumulate(node, s.one) : step(at))) return false;
      for (int i = 0; i < s.count(); ++i) Py_CLEAR(s.slots()[i].grad);
      if (!retain_graph) node_release_saved(node);
    }
    for (int i = 0; i < node->edge_count; ++i) {
      if (!node->edges[i].node) continue;
      int next = index_.get(node->edges[i].node);
      if (--states_[(size_t)next].waiting == 0) push(next);
    }
  }
  return true;
}

// run(roots, gradients, retain_graph, only): only is None, or {node: {}} of the nodes whose
// gradients are wanted instead of those of the leaves.
PyObject* run(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 4 || !PyList_Check(args[0]) || !PyList_Check(args[1]) ||
      PyList_GET_SIZE(args[0]) != PyList_GET_SIZE(args[1]) ||
      (args[3] != Py_None && !PyDict_Check(args[3]))) {
    PyErr_SetString(PyExc_TypeError, "run: needs lists of roots and gradients, a bool, a dict");
    return nullptr;
  }
  struct Mode {  // nothing is recorded while gradients are computed
    bool before = grad_enabled(), precision = autocast();
    Mode() { grad_enabled() = false; }
    ~Mode() {
      grad_enabled() = before;
      autocast() = precision;
    }
  } mode;
  try {
    Pass pass;
    if (!pass.start(args[0], args[1]) || !pass.run(PyObject_IsTrue(args[2]) == 1, args[3]))
      return nullptr;
  } catch (...) {
    raise_current();
    return nullptr;
  }
  Py_RETURN_NONE;
}

// set_watchers(hooks, retain): the Python functions of rare cases.
PyObject* set_watchers(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 2) {
    PyErr_SetString(PyExc_TypeError, "needs two functions");
    return nullptr;
  }
  Py_INCREF(args[0]);
  Py_XSETREF(call_hooks, args[0]);
  Py_INCREF(args[1]);
  Py_XSETREF(call_retain, args[1]);
  Py_RETURN_NONE;
}

PyMethodDef functions[] = {
    {"_run", (PyCFunction)(void (*)(void))run, METH_FASTCALL,
     "_run($module, roots, grads, retain_graph, only, /)\n--\n\nThe backward pass. only: None, or "
     "{node: {}} of the nodes whose gradients are wanted\ninstead of those of the leaves."},
    {"_set_watchers", (PyCFunction)(void (*)(void))set_watchers, METH_FASTCALL,
     "The functions that call hooks and keep retained gradients."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

void bind_engine(py::module_& m) {
  names = new Names;
  if (PyModule_AddFunctions(m.ptr(), functions) < 0) throw py::error_already_set();
}

}  // namespace gs
