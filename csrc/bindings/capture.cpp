// Bindings of the captured step: a recording (csrc/graph/record.cpp) with the arrays that it saw,
// and a program with what must hold before it may be replayed.
#include <math.h>

#include <algorithm>
#include <memory>
#include <unordered_map>
#include <unordered_set>

#include "../graph/graph.h"
#include "array.h"
#include "autograd.h"
#include "optimizer.h"

namespace gs {

namespace {

const auto* proxy_of(PyObject* a) { return py::detail::array_proxy(a); }

bool is_array(PyObject* o) { return py::isinstance<py::array>(py::handle(o)); }

int64_t item_size(PyObject* a) {
  return (int64_t)py::reinterpret_borrow<py::dtype>(proxy_of(a)->descr).itemsize();
}

bool c_contiguous(PyObject* a) {
  return proxy_of(a)->flags & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_;
}

bool writeable(PyObject* a) {
  return proxy_of(a)->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
}

// First byte and the byte after the last one that an array covers.
void extent(PyObject* a, char** low, char** high) {
  const auto* p = proxy_of(a);
  *low = *high = p->data;
  for (int i = 0; i < p->nd; ++i) {
    if (p->dimensions[i] == 0) return;
    int64_t span = (p->dimensions[i] - 1) * p->strides[i];
    (span < 0 ? *low : *high) += span;
  }
  *high += item_size(a);
}

int64_t bytes_of(PyObject* a) {
  const auto* p = proxy_of(a);
  int64_t n = item_size(a);
  for (int i = 0; i < p->nd; ++i) n *= p->dimensions[i];
  return n;
}

// Whether an array has the dtype and the shape of `kind`, (dtype, shape).
bool same_kind_as(PyObject* a, const py::object& kind) {
  const auto* x = proxy_of(a);
  PyObject* shape = PyTuple_GET_ITEM(kind.ptr(), 1);
  if (x->descr != PyTuple_GET_ITEM(kind.ptr(), 0) || x->nd != PyTuple_GET_SIZE(shape)) return false;
  for (int i = 0; i < x->nd; ++i)
    if (PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, i)) != x->dimensions[i]) return false;
  return true;
}

struct Check {
  Array shape;  // without the object
  RaiseFn raise;
};

struct Recording {
  Recorder rec;
  std::vector<py::object> held;  // every array that is not from the recording itself
  std::vector<Check> checks;
  std::unordered_set<PyObject*> seen;
  int inputs = 0;
  bool running = false;

  ~Recording() {
    if (running) stop();
  }
  void stop() {
    running = false;
    recording_stop();
    rec.end();
  }
  void see(PyObject* a);
  int object_of(py::handle a) const { return rec.find(proxy_of(a.ptr())->data); }
};

Recording* current = nullptr;

void Recording::see(PyObject* a) {
  char *low, *high;
  extent(a, &low, &high);
  if (low == high) {  // kernels get the address of what they do not read
    if (rec.find(low) < 0) {
      rec.add_external(low, 0, Home::kFixed, -1);
      held.push_back(py::reinterpret_borrow<py::object>(a));
    }
    return;
  }
  int k = rec.find(low);
  if (k >= 0) {
    const MemoryObject& o = rec.objects[(size_t)k];
    if (high <= o.base + o.bytes) {
      if (o.external && seen.insert(a).second)
        held.push_back(py::reinterpret_borrow<py::object>(a));
      return;
    }
  }
  // A view stands for the array that owns the memory, unless a part of that is known already.
  PyObject* root = a;
  while (proxy_of(root)->base && is_array(proxy_of(root)->base)) root = proxy_of(root)->base;
  char *root_low, *root_high;
  extent(root, &root_low, &root_high);
  if (root_low <= low && high <= root_high) {
    auto it = rec.by_base.lower_bound(root_low);
    bool free = it == rec.by_base.end() || it->first >= root_high;
    if (free && rec.find(root_low) < 0) {
      low = root_low;
      high = root_high;
    }
  }
  auto it = rec.by_base.lower_bound(low);
  if (rec.find(low) >= 0 || (it != rec.by_base.end() && it->first < high)) {
    if (rec.error.empty())
      rec.error =
          "two arrays share a part of their memory, and one of them is an input or another view "
          "of the same array. Pass a clone()";
    return;
  }
  rec.add_external(low, (size_t)(high - low), Home::kFixed, -1);
  held.push_back(py::reinterpret_borrow<py::object>(a));
  seen.insert(a);
}

// ---- what must hold before a replay

// Whether a replay may take one for the other: zeros of two signs it may not, nor 1 and True.
bool same_value(PyObject* a, PyObject* b) {
  if (a == b) return true;
  if (Py_TYPE(a) != Py_TYPE(b)) return false;
  if (PyFloat_Check(a)) {
    const double x = PyFloat_AS_DOUBLE(a), y = PyFloat_AS_DOUBLE(b);
    return memcmp(&x, &y, sizeof x) == 0;
  }
  if (PyTuple_Check(a)) {
    const Py_ssize_t n = PyTuple_GET_SIZE(a);
    bool same = n == PyTuple_GET_SIZE(b);
    for (Py_ssize_t i = 0; same && i < n; ++i)
      same = same_value(PyTuple_GET_ITEM(a, i), PyTuple_GET_ITEM(b, i));
    return same;
  }
  if (!(PyLong_Check(a) || PyUnicode_Check(a) || PyBytes_Check(a))) return false;
  int r = PyObject_RichCompareBool(a, b, Py_EQ);
  if (r < 0) PyErr_Clear();
  return r == 1;
}

struct Guard {
  enum Kind {
    kItem,
    kSize,
    kKeys,
    kPlace,
    kCell,
    kList,
    kAttribute,
    kType,
    kFunction,
    kOrder,
    kContent,
    kContext,
    kTensor,
    kGrad,
    kGradient
  } kind;
  py::object owner, key, value;
  int64_t number = 0;
  int object = -1;  // kTensor, kGradient: memory that follows the tensor's array, or -1
  std::string name;
  int64_t hooks = 0;  // kTensor: the hooks on a leaf's gradient, by hooks_of
  int shared = -1;    // kTensor: `object`, also where another tensor has the same memory
};

// Whether walking over an object gives these values, in this order.
bool same_order(PyObject* owner, PyObject* values) {
  PyObject* it = PyObject_GetIter(owner);
  Py_ssize_t n = 0;
  bool all = it != nullptr;
  while (all) {
    PyObject* x = PyIter_Next(it);
    if (!x) break;
    all = n < PyTuple_GET_SIZE(values) && same_value(x, PyTuple_GET_ITEM(values, n));
    ++n;
    Py_DECREF(x);
  }
  Py_XDECREF(it);
  if (PyErr_Occurred()) {
    PyErr_Clear();
    return false;
  }
  return all && n == PyTuple_GET_SIZE(values);
}

// Whether a dict still has these keys in this order, which is the order of whoever walks over it.
bool same_keys(PyObject* dict, PyObject* keys) {
  if (PyDict_GET_SIZE(dict) != PyTuple_GET_SIZE(keys)) return false;
  Py_ssize_t n = 0;
  if (PyDict_CheckExact(dict)) {
    PyObject *key, *value;
    for (Py_ssize_t i = 0; PyDict_Next(dict, &i, &key, &value); ++n)
      if (!same_value(key, PyTuple_GET_ITEM(keys, n))) return false;
    return true;
  }
  return same_order(dict, keys);
}

// Whether a buffer still has this format, this shape and these bytes (in C order).
bool same_content(PyObject* owner, PyObject* content) {
  Py_buffer b;
  if (PyObject_GetBuffer(owner, &b, PyBUF_FULL_RO) < 0) {
    PyErr_Clear();
    return false;
  }
  PyObject *format = PyTuple_GET_ITEM(content, 0), *shape = PyTuple_GET_ITEM(content, 1),
           *bytes = PyTuple_GET_ITEM(content, 2);
  bool same = b.len == PyBytes_GET_SIZE(bytes) && b.ndim == PyTuple_GET_SIZE(shape) &&
              PyUnicode_CompareWithASCIIString(format, b.format ? b.format : "B") == 0;
  for (int i = 0; same && i < b.ndim; ++i)
    same = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, i)) == b.shape[i];
  if (same && PyBuffer_IsContiguous(&b, 'C')) {
    same = memcmp(b.buf, PyBytes_AS_STRING(bytes), (size_t)b.len) == 0;
  } else if (same) {
    std::vector<char> copy((size_t)b.len);
    same = PyBuffer_ToContiguous(copy.data(), &b, b.len, 'C') == 0 &&
           memcmp(copy.data(), PyBytes_AS_STRING(bytes), copy.size()) == 0;
    if (PyErr_Occurred()) PyErr_Clear();
  }
  PyBuffer_Release(&b);
  return same;
}

// The dict of an object, which need not be the one that it had.
PyObject* dict_of(PyObject* o) {
#if PY_VERSION_HEX < 0x030C0000
  PyObject** at = _PyObject_GetDictPtr(o);
  return at ? *at : nullptr;
#else
  PyObject* d = PyObject_GenericGetDict(o, nullptr);
  if (!d)
    PyErr_Clear();
  else
    Py_DECREF(d);  // the object holds it
  return d;
#endif
}

PyObject* or_none(PyObject* o) { return o ? o : Py_None; }

// A number for the hooks on a leaf's gradient: 0 without any, another one when some come or go.
int64_t hooks_of(const Tensor* t) {
  if (!t->accumulator || !t->accumulator->hooks || !PyDict_Check(t->accumulator->hooks)) return 0;
  int64_t sum = 0;
  PyObject *key, *table, *id, *fn;
  for (Py_ssize_t i = 0; PyDict_Next(t->accumulator->hooks, &i, &key, &table);)
    if (PyDict_Check(table))
      for (Py_ssize_t j = 0; PyDict_Next(table, &j, &id, &fn);)
        sum = sum * 31 + 1 + PyLong_AsLongLong(id);
  return sum;
}

struct Input {
  bool tensor = false;
  py::object value;  // a constant
  py::object type;
  int type_num = 0;
  std::vector<int64_t> shape;
  int object = -1;   // memory, or -1 when nothing reads it
  int same_as = -1;  // the leaf that it shares its array with
  bool written = false;
};

struct Output {
  int object;
  DType dtype;
  std::vector<int64_t> shape;
  py::object array;   // where the next replay writes, unless somebody else holds it
  py::object spare;   // the one before it: a loop that keeps a result for one step uses two in turn
  py::object holder;  // a gradient: its Tensor, held by its parameter too
  py::object parameter;
};

// A number that changes whenever the dict does, so that what was found in it need not be looked for
// again; Python took it away later.
#if PY_VERSION_HEX < 0x030C0000
constexpr bool kDictVersions = true;
uint64_t version_of(PyObject* dict) { return ((PyDictObject*)dict)->ma_version_tag; }
#else
constexpr bool kDictVersions = false;
uint64_t version_of(PyObject*) { return 0; }
#endif

struct Names {
  PyObject *lr, *betas, *eps, *weight_decay, *l1, *maximize, *amsgrad, *step, *momentum, *dampening,
      *nesterov, *decoupled, *clip_value, *max_grad_norm;
};
Names nm;

// The step counts and scalars of an optimizer whose rule is known here: what Optimizer.advance does
// in Python, with the same operations in the same order, so that the numbers have the same bits.
struct Stepper {
  enum Rule { kSgd, kAdam } rule;
  struct Set {
    py::dict group;
    std::vector<int> slots;
    std::vector<py::dict> owns;
    bool flag;  // amsgrad, or momentum > 0: which kernel was recorded
    // what was read, and the versions of the dicts it was read from
    uint64_t group_version = 0;
    std::vector<uint64_t> versions;  // of owns
    double lr, decay, l1, sign, count, b1, b2, eps, momentum, dampening;
    bool apart = false, nesterov = false;

    bool counted() const {
      if (!kDictVersions || versions.size() != owns.size()) return false;
      for (size_t i = 0; i < owns.size(); ++i)
        if (versions[i] != version_of(owns[i].ptr())) return false;
      return true;
    }
    void remember() {
      versions.resize(owns.size());
      for (size_t i = 0; i < owns.size(); ++i) versions[i] = version_of(owns[i].ptr());
    }
  };
  py::dict own;  // the optimizer's __dict__
  std::vector<Set> sets;
  std::vector<Version*> versions;
  std::vector<py::object> held;
  bool decoupled_always, norm;
  int clip_slot;
  uint64_t own_version = 0;
  double clip_value = INFINITY, max_norm = 0;

  bool number(PyObject* dict, PyObject* name, double* out) const {
    PyObject* v = PyDict_GetItem(dict, name);
    if (!v) return false;
    if (PyFloat_CheckExact(v))
      *out = PyFloat_AS_DOUBLE(v);
    else if (PyLong_CheckExact(v))
      *out = PyLong_AsDouble(v);
    else
      return false;
    return true;
  }
  bool read_options();
  bool read(Set& s);
  bool ready();
  void advance();
};

bool Stepper::read_options() {
  clip_value = INFINITY;
  max_norm = 0;
  PyObject* clip = PyDict_GetItem(own.ptr(), nm.clip_value);
  if (!clip || (clip != Py_None && !number(own.ptr(), nm.clip_value, &clip_value))) return false;
  PyObject* limit = PyDict_GetItem(own.ptr(), nm.max_grad_norm);
  if (!limit || (limit != Py_None) != norm) return false;
  return !norm || number(own.ptr(), nm.max_grad_norm, &max_norm);
}

bool Stepper::read(Set& s) {
  PyObject* g = s.group.ptr();
  if (!number(g, nm.lr, &s.lr) || !number(g, nm.weight_decay, &s.decay) || !number(g, nm.l1, &s.l1))
    return false;
  PyObject* maximize = PyDict_GetItem(g, nm.maximize);
  if (!maximize) return false;
  s.sign = maximize == Py_True ? -1.0 : 1.0;
  s.apart = decoupled_always;
  if (rule == kAdam) {
    PyObject* amsgrad = PyDict_GetItem(g, nm.amsgrad);
    PyObject* betas = PyDict_GetItem(g, nm.betas);
    if (!amsgrad || (amsgrad == Py_True) != s.flag || !betas || !PyTuple_CheckExact(betas) ||
        PyTuple_GET_SIZE(betas) != 2 || !number(g, nm.eps, &s.eps))
      return false;
    PyObject *x = PyTuple_GET_ITEM(betas, 0), *y = PyTuple_GET_ITEM(betas, 1);
    if (!PyFloat_CheckExact(x) || !PyFloat_CheckExact(y)) return false;
    s.b1 = PyFloat_AS_DOUBLE(x);
    s.b2 = PyFloat_AS_DOUBLE(y);
    if (!s.apart) s.apart = PyDict_GetItem(g, nm.decoupled) == Py_True;
    return true;
  }
  PyObject* nesterov = PyDict_GetItem(g, nm.nesterov);
  if (!number(g, nm.momentum, &s.momentum) || !number(g, nm.dampening, &s.dampening) || !nesterov ||
      (s.momentum != 0) != s.flag)
    return false;
  s.nesterov = nesterov == Py_True;
  return true;
}

// Whether the kernels and options are such that advance() can do it; reads what has changed.
bool Stepper::ready() {
  if (!kDictVersions || own_version != version_of(own.ptr())) {
    own_version = 0;
    if (!read_options()) return false;
    own_version = version_of(own.ptr());
  }
  for (Set& s : sets) {
    if (!kDictVersions || s.group_version != version_of(s.group.ptr())) {
      s.group_version = 0;
      if (!read(s)) return false;
      s.group_version = version_of(s.group.ptr());
    }
    if (!s.counted()) {
      s.versions.clear();
      PyObject* count = PyDict_GetItem(s.owns[0].ptr(), nm.step);
      if (!count || !PyLong_CheckExact(count)) return false;
      for (py::dict& o : s.owns) {  // one that was frozen for a while has made fewer steps
        PyObject* c = PyDict_GetItem(o.ptr(), nm.step);
        if (!c || !same_value(c, count)) return false;
      }
      s.count = PyLong_AsDouble(count);
      s.remember();
    }
  }
  return true;
}

// After ready().
void Stepper::advance() {
  SlotValue* table = slot_table();
  for (Set& s : sets) {
    const double t = s.count + 1;
    double v[kOptimizerScalars] = {};
    int n;
    if (rule == kAdam) {
      double correction = 1 / sqrt(1 - pow(s.b2, t));
      v[5] = s.lr / (1 - pow(s.b1, t));
      v[6] = s.b1;
      v[7] = 1 - s.b1;
      v[8] = s.b2;
      v[9] = 1 - s.b2;
      v[10] = s.eps;
      v[11] = correction;
      n = 12;
    } else {
      v[5] = s.lr;
      n = 6;
      if (s.momentum != 0) {
        v[6] = t == 1 ? 0.0 : s.momentum;
        v[7] = t == 1 ? 1.0 : 1.0 - s.dampening;
        v[8] = s.nesterov ? s.momentum : 0.0;
        n = 9;
      }
    }
    v[0] = s.sign;
    v[1] = clip_value;
    v[2] = s.apart ? 0.0 : s.decay;
    v[3] = s.l1;
    v[4] = s.apart ? 1.0 - s.lr * s.decay : 1.0;
    for (int i = 0; i < n; ++i) table[s.slots[(size_t)i]].f = v[i];
    PyObject* next = PyLong_FromDouble(t);
    if (!next) throw py::error_already_set();
    for (py::dict& o : s.owns) PyDict_SetItem(o.ptr(), nm.step, next);
    Py_DECREF(next);
    s.count = t;
    s.remember();
  }
  if (norm) table[clip_slot].f = max_norm;
  for (Version* x : versions) ++x->value;
}

// The guards on what one dict holds.
struct DictGuards {
  PyObject* dict;
  uint64_t version = 0;  // at which they all held
  std::vector<size_t> guards;
};

struct PyProgram {
  Program p;
  std::vector<py::object> held;
  std::vector<Check> checks;
  std::vector<Guard> guards;
  std::vector<DictGuards> by_dict;  // guards on dicts, and the others, of the first `sorted`
  std::vector<size_t> not_on_dicts;
  std::vector<size_t> stepped;    // of by_dict: those that the steppers write
  std::vector<size_t> gradients;  // of guards: on gradients whose memory may change
  size_t sorted = 0;
  std::vector<Input> inputs;
  std::vector<Output> outputs;
  std::vector<std::pair<char*, char*>> fixed;  // memory that no input may overlap, sorted
  bool writes_inputs = false;
  std::string reason;
  uint64_t allocations = 0;
  uint64_t pool_allocations = 0;  // blocks of any kind that replays took from the pool
  std::atomic<bool> busy{false};
  std::vector<Stepper> steppers;
  std::vector<PyObject*> cleared;  // parameters without a gradient afterwards, held by guards
  std::vector<py::object> cleared_held;
  bool grad_mode = true, autocast_mode = false;
  bool direct = false;            // call() does everything
  bool gone = false;              // taken apart by the collector of cycles
  py::object module;              // of the kernels
  std::vector<int> leaf_outputs;  // the outputs that the function returns, in order
  bool single = false;            // one tensor
  // Of tensors that a replay changes: graphs that have saved them find out.
  std::vector<py::object> changed;
  std::vector<int> changed_inputs;

  void add_fixed() {
    fixed.clear();
    for (size_t i = 0; i < p.objects.size(); ++i) {
      const MemoryObject& o = p.objects[i];
      if (o.home == Home::kFixed && (o.written || writes_inputs) && o.bytes && p.bound[i])
        fixed.emplace_back(p.bound[i], p.bound[i] + o.bytes);
    }
    std::sort(fixed.begin(), fixed.end());
  }
  bool overlaps_fixed(char* low, char* high) const {
    auto it = std::lower_bound(fixed.begin(), fixed.end(), std::make_pair(high, (char*)nullptr));
    return it != fixed.begin() && (--it)->second > low;
  }
  bool moves_to(int object, PyObject* array);
  void forget_gradients();
  bool guard_holds(Guard& g);
  bool guards_hold();
  void sort_guards();
  bool check(py::handle leaves);
  void run();  // replay without the results
  void count_changes(PyObject* leaves);
  py::object replay();
  PyObject* call(PyObject* leaves);
  void raise_failed(int op);
};

// Binds memory of the program to another array, unless that lies in other memory of the program.
bool PyProgram::moves_to(int object, PyObject* array) {
  char* to = proxy_of(array)->data;
  const MemoryObject& o = p.objects[(size_t)object];
  if ((size_t)bytes_of(array) != o.bytes || (o.written && !writeable(array))) return false;
  for (size_t i = 0; i < p.objects.size(); ++i)
    if ((int)i != object && p.bound[i] && to < p.bound[i] + p.objects[i].bytes &&
        p.bound[i] < to + o.bytes)
      return false;
  p.bind(object, to);
  add_fixed();
  return true;
}

// Gradients that are other arrays than at the last call: what the old ones occupied is free by now,
// and others, inputs too, may lie there.
void PyProgram::forget_gradients() {
  bool moved = false;
  for (size_t i : gradients) {
    const Guard& g = guards[i];
    PyObject* v = ((Tensor*)g.owner.ptr())->grad;
    char*& bound = p.bound[(size_t)g.object];
    if (bound && v && is_tensor(v) && ((Tensor*)v)->data && is_ndarray(((Tensor*)v)->data) &&
        proxy_of(((Tensor*)v)->data)->data == bound)
      continue;
    bound = nullptr;
    moved = true;
  }
  if (moved) add_fixed();
}

bool PyProgram::guard_holds(Guard& g) {
  switch (g.kind) {
    case Guard::kItem: {
      PyObject* v = PyDict_GetItem(g.owner.ptr(), g.key.ptr());
      return v == g.value.ptr() || (v && g.value.ptr() && same_value(v, g.value.ptr()));
    }
    case Guard::kSize:
      return PyDict_GET_SIZE(g.owner.ptr()) == g.number;
    case Guard::kKeys:
      return same_keys(g.owner.ptr(), g.key.ptr());
    case Guard::kPlace:
      return (PyObject*)Py_TYPE(g.owner.ptr()) == g.key.ptr() &&
             dict_of(g.owner.ptr()) == g.value.ptr();
    case Guard::kCell: {
      PyObject* v = PyCell_GET(g.owner.ptr());
      return v == g.value.ptr() || (v && same_value(v, g.value.ptr()));
    }
    case Guard::kList: {
      const Py_ssize_t n = PyTuple_GET_SIZE(g.key.ptr());
      if (PyList_GET_SIZE(g.owner.ptr()) != n) return false;
      for (Py_ssize_t i = 0; i < n; ++i)
        if (!same_value(PyList_GET_ITEM(g.owner.ptr(), i), PyTuple_GET_ITEM(g.key.ptr(), i)))
          return false;
      return true;
    }
    case Guard::kType:
      return _PyType_Lookup((PyTypeObject*)g.owner.ptr(), g.key.ptr()) == g.value.ptr();
    case Guard::kFunction:
      return PyFunction_GET_CODE(g.owner.ptr()) == PyTuple_GET_ITEM(g.key.ptr(), 0) &&
             or_none(PyFunction_GET_DEFAULTS(g.owner.ptr())) == PyTuple_GET_ITEM(g.key.ptr(), 1) &&
             or_none(PyFunction_GET_KW_DEFAULTS(g.owner.ptr())) == PyTuple_GET_ITEM(g.key.ptr(), 2);
    case Guard::kOrder:
      return same_order(g.owner.ptr(), g.key.ptr());
    case Guard::kContent:
      return same_content(g.owner.ptr(), g.key.ptr());
    case Guard::kContext: {
      PyObject* v = nullptr;
      if (PyContextVar_Get(g.owner.ptr(), nullptr, &v) < 0) {
        PyErr_Clear();
        return false;
      }
      const bool same = v == g.value.ptr() || (v && g.value.ptr() && same_value(v, g.value.ptr()));
      Py_XDECREF(v);
      return same;
    }
    case Guard::kAttribute: {
      PyObject* v = PyObject_GetAttr(g.owner.ptr(), g.key.ptr());
      if (!v) {
        PyErr_Clear();
        return !g.value.ptr();
      }
      if (!g.value.ptr()) {
        Py_DECREF(v);
        return false;
      }
      bool same = v == g.value.ptr() || same_value(v, g.value.ptr());
      Py_DECREF(v);
      return same;
    }
    case Guard::kGrad: {
      PyObject* v = ((Tensor*)g.owner.ptr())->grad;
      return v == g.value.ptr() || (!v && g.value.is_none());
    }
    case Guard::kGradient: {
      PyObject* v = ((Tensor*)g.owner.ptr())->grad;
      if (!v || !is_tensor(v)) return false;
      v = ((Tensor*)v)->data;
      if (!v || !is_ndarray(v) || !same_kind_as(v, g.value) || !c_contiguous(v)) return false;
      return proxy_of(v)->data == p.bound[(size_t)g.object] || moves_to(g.object, v);
    }
    case Guard::kTensor: {
      const Tensor* t = (const Tensor*)g.owner.ptr();
      if (t->requires_grad != (g.number != 0) || hooks_of(t) != g.hooks) return false;
      PyObject* v = t->data;
      if (v == g.value.ptr()) return true;
      if (!v) return false;
      py::object now = py::reinterpret_borrow<py::object>(v);
      if (g.object < 0 || !is_array(v)) return false;
      // Another array of the same kind: the program moves to it.
      const auto *a = proxy_of(v), *b = proxy_of(g.value.ptr());
      if (a->descr != b->descr || a->nd != b->nd || !c_contiguous(v) ||
          !c_contiguous(g.value.ptr()))
        return false;
      for (int i = 0; i < a->nd; ++i)
        if (a->dimensions[i] != b->dimensions[i]) return false;
      if (b->data != p.bound[(size_t)g.object] || !moves_to(g.object, v)) return false;
      g.value = now;
      return true;
    }
  }
  return false;
}

// Whether the program fits these arguments and the state of everything that it was recorded with.
bool PyProgram::check(py::handle leaves) {
  if (gone || !PyTuple_Check(leaves.ptr()) ||
      PyTuple_GET_SIZE(leaves.ptr()) != (Py_ssize_t)inputs.size()) {
    reason = "another number of arguments";
    return false;
  }
  if (sorted != guards.size()) sort_guards();
  if (!gradients.empty()) forget_gradients();
  for (size_t i = 0; i < inputs.size(); ++i) {
    Input& in = inputs[i];
    PyObject* o = PyTuple_GET_ITEM(leaves.ptr(), (Py_ssize_t)i);
    if (!in.tensor) {
      if (!same_value(o, in.value.ptr())) {
        reason = "argument " + std::to_string(i) + " has another value";
        return false;
      }
      continue;
    }
    if ((PyObject*)Py_TYPE(o) != in.type.ptr()) {
      reason = "argument " + std::to_string(i) + " has another type";
      return false;
    }
    // The program was recorded with this very type, which is a Tensor.
    py::handle data = ((Tensor*)o)->data;
    if (!data || !is_ndarray(data.ptr())) {
      reason = "argument " + std::to_string(i) + " has no array";
      return false;
    }
    const auto* a = proxy_of(data.ptr());
    bool fits = a->nd == (int)in.shape.size() && c_contiguous(data.ptr()) &&
                py::detail::array_descriptor_proxy(a->descr)->type_num == in.type_num;
    for (int d = 0; fits && d < a->nd; ++d) fits = a->dimensions[d] == in.shape[(size_t)d];
    if (!fits) {
      reason = "argument " + std::to_string(i) + " has another shape, dtype or layout";
      return false;
    }
    if (((Tensor*)o)->requires_grad) {
      reason = "argument " + std::to_string(i) + " requires a gradient";
      return false;
    }
    if (in.same_as >= 0) {
      const Input& other = inputs[(size_t)in.same_as];
      if (other.object >= 0 && p.bound[(size_t)other.object] != a->data) {
        reason = "arguments that were one tensor are two now";
        return false;
      }
      continue;
    }
    if (in.object < 0) continue;
    if (in.written && !writeable(data.ptr())) {
      reason = "argument " + std::to_string(i) + " is read-only";
      return false;
    }
    char* high = a->data + p.objects[(size_t)in.object].bytes;
    if (overlaps_fixed(a->data, high)) {
      reason = "argument " + std::to_string(i) + " shares memory with a parameter or state";
      return false;
    }
    if ((uintptr_t)a->data % (uintptr_t)item_size(data.ptr()) != 0) {
      reason = "argument " + std::to_string(i) + " is not aligned";
      return false;
    }
    if (writes_inputs)
      for (size_t j = 0; j < i; ++j)
        if (inputs[j].object >= 0) {
          char* other = p.bound[(size_t)inputs[j].object];
          if (other < high && a->data < other + p.objects[(size_t)inputs[j].object].bytes) {
            reason = "arguments share memory";
            return false;
          }
        }
    p.bind(in.object, a->data);
  }
  return guards_hold();
}

void PyProgram::sort_guards() {
  by_dict.clear();
  not_on_dicts.clear();
  gradients.clear();
  stepped.clear();
  std::unordered_map<PyObject*, size_t> at;
  for (size_t i = 0; i < guards.size(); ++i) {
    const Guard& g = guards[i];
    // an OrderedDict's order is its own, without a version
    const bool on_dict = g.kind == Guard::kItem || g.kind == Guard::kSize ||
                         (g.kind == Guard::kKeys && PyDict_CheckExact(g.owner.ptr()));
    if (!on_dict) {
      not_on_dicts.push_back(i);
      if (g.kind == Guard::kGradient) gradients.push_back(i);
      continue;
    }
    auto it = at.emplace(g.owner.ptr(), by_dict.size()).first;
    if (it->second == by_dict.size()) by_dict.push_back(DictGuards{g.owner.ptr(), 0, {}});
    by_dict[it->second].guards.push_back(i);
  }
  for (Stepper& s : steppers)
    for (auto& set : s.sets)
      for (py::dict& o : set.owns) {
        auto it = at.find(o.ptr());
        if (it != at.end()) stepped.push_back(it->second);
      }
  sorted = guards.size();
}

bool PyProgram::guards_hold() {
  auto holds = [this](size_t i) {
    if (guard_holds(guards[i])) return true;
    reason = guards[i].name + " has changed";
    return false;
  };
  for (DictGuards& d : by_dict) {
    if (kDictVersions && d.version == version_of(d.dict)) continue;
    d.version = 0;
    for (size_t i : d.guards)
      if (!holds(i)) return false;
    d.version = version_of(d.dict);
  }
  for (size_t i : not_on_dicts)
    if (!holds(i)) return false;
  return true;
}

void PyProgram::raise_failed(int op) {
  const RecordedOp& r = p.ops[(size_t)op];
  const RecordedBuffer& b = r.buffers[0];
  Check& c = checks[(size_t)r.check_id];
  Array a = c.shape;
  a.data = p.bound[(size_t)b.object] + b.offset;
  c.raise(a, r.params.data() + 4);
  throw std::runtime_error("a check of values failed in a captured step");
}

void PyProgram::run() {
  uint64_t before = pool_taken();
  // A result that somebody still holds keeps its memory; the next one gets new memory.
  for (Output& o : outputs) {
    if (o.holder.ptr()) {  // somebody may have given it another array, or flags of his own
      const Tensor* t = (const Tensor*)o.holder.ptr();
      if (t->data != o.array.ptr() || t->requires_grad) o.holder = py::object();
    }
    Py_ssize_t holders = o.holder.ptr() ? 2 : 1;
    bool kept = Py_REFCNT(o.array.ptr()) > holders;
    if (o.holder.ptr() && !kept) {
      PyObject* g = ((Tensor*)o.parameter.ptr())->grad;
      kept = Py_REFCNT(o.holder.ptr()) > (g == o.holder.ptr() ? 2 : 1);
    }
    if (kept && o.spare.ptr() && Py_REFCNT(o.spare.ptr()) == 1) {
      std::swap(o.array, o.spare);
      p.bind(o.object, proxy_of(o.array.ptr())->data);
    } else if (kept) {
      Array fresh = array_new(o.dtype, (int)o.shape.size(), o.shape.data());
      ++allocations;
      if (!o.holder.ptr()) o.spare = o.array;
      o.array = fresh.object;
      o.holder = py::object();
      p.bind(o.object, fresh.data);
    }
  }
  int failed;
  if (p.brief) {  // over before another thread would have run
    failed = p.replay();
  } else {
    py::gil_scoped_release release;
    failed = p.replay();
  }
  pool_allocations += pool_taken() - before;
  if (failed >= 0) raise_failed(failed);
}

// The whole call where no Python has to run: nullptr without an error when the program does not
// fit.
PyObject* PyProgram::call(PyObject* leaves) {
  if (!direct || grad_enabled() != grad_mode || autocast() != autocast_mode ||
      get_num_threads() != p.options.threads || !check(leaves))
    return nullptr;
  for (Stepper& s : steppers)
    if (!s.ready()) return nullptr;
  if (!p.prologue.empty()) {
    int failed = p.check_inputs();
    if (failed >= 0) raise_failed(failed);
  }
  for (Stepper& s : steppers) s.advance();
  // the guards held just now, and nothing but step counts was written since
  for (size_t i : stepped) by_dict[i].version = version_of(by_dict[i].dict);
  try {
    run();
  } catch (...) {
    for (Stepper& s : steppers)
      for (auto& set : s.sets) {
        PyObject* last =
            PyLong_FromLongLong(PyLong_AsLongLong(PyDict_GetItem(set.owns[0].ptr(), nm.step)) - 1);
        for (py::dict& o : set.owns) PyDict_SetItem(o.ptr(), nm.step, last);
        Py_XDECREF(last);
      }
    throw;
  }
  count_changes(leaves);
  for (Output& o : outputs) {
    if (!o.parameter.ptr()) continue;
    Tensor* t = (Tensor*)o.parameter.ptr();
    if (!o.holder.ptr()) {
      Tensor* g = tensor_wrap(o.array.ptr(), module.ptr());
      if (!g) throw py::error_already_set();
      o.holder = py::reinterpret_steal<py::object>((PyObject*)g);
    }
    if (t->grad != o.holder.ptr()) {
      PyObject* old = t->grad;
      t->grad = py::object(o.holder).release().ptr();
      Py_XDECREF(old);
    }
  }
  for (PyObject* x : cleared) {
    Tensor* t = (Tensor*)x;
    if (t->grad != Py_None) {
      PyObject* old = t->grad;
      Py_INCREF(Py_None);
      t->grad = Py_None;
      Py_XDECREF(old);
    }
  }
  if (single) {
    Tensor* t = tensor_wrap(outputs[(size_t)leaf_outputs[0]].array.ptr(), module.ptr());
    if (!t) throw py::error_already_set();
    return (PyObject*)t;
  }
  PyObject* result = PyTuple_New((Py_ssize_t)outputs.size());
  if (!result) throw py::error_already_set();
  for (size_t i = 0; i < outputs.size(); ++i)
    PyTuple_SET_ITEM(result, (Py_ssize_t)i, py::object(outputs[i].array).release().ptr());
  return result;
}

void PyProgram::count_changes(PyObject* leaves) {
  for (py::object& v : changed) ++((Version*)v.ptr())->value;
  for (int i : changed_inputs)
    if (i < PyTuple_GET_SIZE(leaves) && is_tensor(PyTuple_GET_ITEM(leaves, i)))
      ++((Tensor*)PyTuple_GET_ITEM(leaves, i))->version->value;
}

py::object PyProgram::replay() {
  run();
  py::tuple result(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i)
    PyTuple_SET_ITEM(result.ptr(), (Py_ssize_t)i, py::object(outputs[i].array).release().ptr());
  return std::move(result);
}

// The program in its Python object, which holds one C++ object in the simple way.
PyProgram* program_in(PyObject* self) {
  return (PyProgram*)((py::detail::instance*)self)->simple_value_holder[0];
}

// Program.call without a dispatcher: a builtin whose self is the program.
PyObject* call_program(PyObject* self, PyObject* leaves) {
  PyProgram* q = program_in(self);
  if (!q) return nullptr;
  try {
    PyObject* r = q->call(leaves);
    if (r) return r;
  } catch (...) {
    raise_current();
    return nullptr;
  }
  Py_INCREF(Py_NotImplemented);
  return Py_NotImplemented;
}

PyMethodDef call_method = {
    "call", call_program, METH_O,
    "Checks, replays and returns the tensor (or the arrays); NotImplemented where Python has to do "
    "it."};

py::object caller(py::object program) {
  if (!((py::detail::instance*)program.ptr())->simple_layout ||
      program_in(program.ptr()) != program.cast<PyProgram*>())
    throw py::type_error("caller: not a program");
  py::object f = py::reinterpret_steal<py::object>(PyCFunction_New(&call_method, program.ptr()));
  if (!f) throw py::error_already_set();
  return f;
}

// A program holds what its function sees, and that may hold the captured function: the collector of
// cycles has to see all of it.
template <class F>
void each_reference(PyProgram& q, F f) {
  for (auto& o : q.held) f(o);
  for (Guard& g : q.guards) {
    f(g.owner);
    f(g.key);
    f(g.value);
  }
  for (Input& i : q.inputs) {
    f(i.value);
    f(i.type);
  }
  for (Output& o : q.outputs) {
    f(o.array);
    f(o.spare);
    f(o.holder);
    f(o.parameter);
  }
  for (Stepper& s : q.steppers) {
    f(s.own);
    for (auto& set : s.sets) {
      f(set.group);
      for (auto& o : set.owns) f(o);
    }
    for (auto& o : s.held) f(o);
  }
  for (auto& o : q.cleared_held) f(o);
  for (auto& o : q.changed) f(o);
  f(q.module);
}

int program_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  PyProgram* q = program_in(self);
  if (!q) return 0;
  int stop = 0;
  each_reference(*q, [&](py::object& o) {
    if (!stop && o.ptr()) stop = visit(o.ptr(), arg);
  });
  return stop;
}

// Of what nobody reaches any more: it fits no call from here on.
int program_clear(PyObject* self) {
  PyProgram* q = program_in(self);
  if (!q) return 0;
  q->direct = false;
  std::vector<py::object> dropped;  // freed when nothing here points to them any more
  each_reference(*q, [&](py::object& o) {
    if (o.ptr()) dropped.push_back(std::move(o));
  });
  q->held.clear();
  q->guards.clear();
  q->by_dict.clear();
  q->not_on_dicts.clear();
  q->gradients.clear();
  q->stepped.clear();
  q->sorted = 0;
  q->inputs.clear();
  q->outputs.clear();
  q->steppers.clear();
  q->cleared.clear();
  q->cleared_held.clear();
  q->changed.clear();
  q->gone = true;
  return 0;
}

// ---- what gs.capture returns, as far as a call needs it
//
// core/capture.py subclasses it and holds the rest, in `_call`. A lock that its thread may take
// again keeps two threads out of one program.
struct Captured {
  PyObject_HEAD PyObject* builtin;  // `call` of the program used last; nullptr: none in C++ alone
  PyProgram* program;
  PyThread_type_lock lock;
  unsigned long owner;
  int depth;
};

PyObject* slow_call = nullptr;  // "_call"

bool captured_enter(Captured* c) {
  const unsigned long me = PyThread_get_thread_ident();
  if (c->depth > 0 && c->owner == me) {
    ++c->depth;
    return true;
  }
  if (PyThread_acquire_lock(c->lock, NOWAIT_LOCK) != PY_LOCK_ACQUIRED) {
    PyLockStatus got;
    do {
      Py_BEGIN_ALLOW_THREADS;
      got = PyThread_acquire_lock_timed(c->lock, -1, 1);
      Py_END_ALLOW_THREADS;
      if (got == PY_LOCK_INTR && PyErr_CheckSignals() < 0) return false;
    } while (got != PY_LOCK_ACQUIRED);
  }
  c->owner = me;
  c->depth = 1;
  return true;
}

void captured_leave(Captured* c) {
  if (--c->depth == 0) PyThread_release_lock(c->lock);
}

PyObject* captured_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  Captured* c = (Captured*)self;
  // while somebody records, Python looks whether this call is a part of it
  if (c->program && !recorder_any.load(std::memory_order_relaxed) &&
      (!kwargs || PyDict_GET_SIZE(kwargs) == 0)) {
    if (!captured_enter(c)) return nullptr;
    PyObject* r = nullptr;
    if (c->program) {  // another thread may have been here
      PyObject* held = c->builtin;
      Py_INCREF(held);
      try {
        r = c->program->call(args);
      } catch (...) {
        raise_current();
      }
      Py_DECREF(held);
    }
    captured_leave(c);
    if (r || PyErr_Occurred()) return r;
  }
  PyObject* f = PyObject_GetAttr(self, slow_call);
  if (!f) return nullptr;
  PyObject* r = PyObject_Call(f, args, kwargs);
  Py_DECREF(f);
  return r;
}

PyObject* captured_new(PyTypeObject* type, PyObject*, PyObject*) {
  Captured* c = (Captured*)type->tp_alloc(type, 0);
  if (!c) return nullptr;
  c->lock = PyThread_allocate_lock();
  if (!c->lock) {
    Py_DECREF(c);
    return PyErr_NoMemory();
  }
  return (PyObject*)c;
}

int captured_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(((Captured*)self)->builtin);
  return 0;
}

int captured_clear(PyObject* self) {
  ((Captured*)self)->program = nullptr;
  Py_CLEAR(((Captured*)self)->builtin);
  return 0;
}

void captured_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  captured_clear(self);
  if (((Captured*)self)->lock) PyThread_free_lock(((Captured*)self)->lock);
  Py_TYPE(self)->tp_free(self);
}

PyObject* captured_use(PyObject* self, PyObject* call) {
  Captured* c = (Captured*)self;
  PyProgram* q = nullptr;
  if (call != Py_None) {
    if (!PyCFunction_Check(call) || PyCFunction_GET_FUNCTION(call) != call_program) {
      PyErr_SetString(PyExc_TypeError, "_use: not the call of a program");
      return nullptr;
    }
    q = program_in(PyCFunction_GET_SELF(call));
    if (!q->single) q = nullptr;
  }
  PyObject* old = c->builtin;
  c->builtin = nullptr;
  c->program = q;
  if (q) {
    Py_INCREF(call);
    c->builtin = call;
  }
  Py_XDECREF(old);
  Py_RETURN_NONE;
}

PyObject* captured_acquire(PyObject* self, PyObject*) {
  if (!captured_enter((Captured*)self)) return nullptr;
  Py_RETURN_NONE;
}

PyObject* captured_release(PyObject* self, PyObject*) {
  Captured* c = (Captured*)self;
  if (c->depth == 0 || c->owner != PyThread_get_thread_ident()) {
    PyErr_SetString(PyExc_RuntimeError, "_release: this thread does not hold the lock");
    return nullptr;
  }
  captured_leave(c);
  Py_RETURN_NONE;
}

PyObject* captured_renew(PyObject* self, PyObject*) {
  Captured* c = (Captured*)self;
  PyThread_type_lock lock = PyThread_allocate_lock();
  if (!lock) return PyErr_NoMemory();
  c->lock = lock;  // the old one may be held by a thread that is gone: it is left alone
  c->depth = 0;
  Py_RETURN_NONE;
}

PyMethodDef captured_methods[] = {
    {"_use", captured_use, METH_O,
     "The `call` of a program that a call tries first, where it can be made without Python; None: "
     "none."},
    {"_acquire", captured_acquire, METH_NOARGS, "Takes the lock; its thread may take it again."},
    {"_release", captured_release, METH_NOARGS, "Gives the lock back."},
    {"_renew", captured_renew, METH_NOARGS, "A new lock, after a fork."},
    {nullptr, nullptr, 0, nullptr}};

PyTypeObject captured_type = [] {
  const PyVarObject head[] = {PyVarObject_HEAD_INIT(nullptr, 0)};
  PyTypeObject t = {};
  t.ob_base = head[0];
  t.tp_name = "gradsmith._cpu.CapturedBase";
  t.tp_basicsize = (Py_ssize_t)sizeof(Captured);
  t.tp_dealloc = captured_dealloc;
  t.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE;
  t.tp_doc = "The call of a captured function. Use gradsmith.capture.";
  t.tp_call = captured_call;
  t.tp_new = captured_new;
  t.tp_traverse = captured_traverse;
  t.tp_clear = captured_clear;
  t.tp_methods = captured_methods;
  return t;
}();

// ---- from the recording to the program

std::unique_ptr<PyProgram> finish(Recording& r, py::list leaves, py::list outs, int threads,
                                  py::dict options, uint64_t first_counter, uint64_t last_counter) {
  if (r.running) throw std::runtime_error("finish: the recording still runs");
  auto q = std::make_unique<PyProgram>();
  q->p.options.threads = threads;
  auto flag = [&](const char* name, bool fallback) {
    return options.contains(name) ? options[name].cast<bool>() : fallback;
  };
  q->p.options.side_by_side = flag("side_by_side", true);
  q->p.options.barriers = flag("barriers", true);
  q->p.options.reuse = flag("memory", true);
  q->p.options.relu_pool = flag("relu_pool", true);
  q->p.options.conv_pool = flag("conv_pool", true);
  q->p.options.norm_relu = flag("norm_relu", true);
  q->p.options.norm_stats = flag("norm_stats", true);
  q->p.options.bias_relu = flag("bias_relu", true);
  q->p.options.bias_activation = flag("bias_activation", true);
  q->p.options.activation_gradient = flag("activation_gradient", true);
  q->p.options.conv_gradient = flag("conv_gradient", true);
  q->p.options.in_place = flag("in_place", true);
  q->p.options.residual = flag("residual", true);
  q->p.options.norm_sum = flag("norm_sum", true);
  q->p.options.pieces = flag("pieces", true);
  q->p.options.optimizer = flag("optimizer", true);
  q->p.options.gradient_update = flag("gradient_update", true);
  q->p.options.transposed = flag("transposed", true);
  q->p.options.prepared_weights = flag("prepared_weights", true);
  q->p.options.prepared_updates = flag("prepared_updates", true);
  for (auto item : leaves) {
    Input in;
    py::tuple t = py::reinterpret_borrow<py::tuple>(item);  // (constant,) or (type, array, same_as)
    if (t.size() == 1) {
      in.value = t[0];
    } else {
      in.tensor = true;
      in.type = t[0];
      py::object a = t[1];
      const auto* x = proxy_of(a.ptr());
      in.type_num = py::detail::array_descriptor_proxy(x->descr)->type_num;
      in.shape.assign(x->dimensions, x->dimensions + x->nd);
      in.same_as = t[2].cast<int>();
      int k = bytes_of(a.ptr()) ? r.rec.find(x->data) : -1;
      if (k >= 0 && in.same_as < 0 && r.rec.objects[(size_t)k].home == Home::kInput) {
        in.object = k;
        in.written = r.rec.objects[(size_t)k].written;
        if (in.written) q->writes_inputs = true;
      }
    }
    q->inputs.push_back(std::move(in));
  }
  for (auto item : outs) {
    py::tuple t = py::reinterpret_borrow<py::tuple>(item);  // (array, holder, parameter)
    Output o;
    o.array = t[0];
    if (!t[1].is_none()) {
      o.holder = t[1];
      o.parameter = t[2];
    }
    o.object = r.rec.find(proxy_of(o.array.ptr())->data);
    if (o.object < 0) throw std::runtime_error("finish: an output is not in the recording");
    Array a = array_in(o.array, "capture", "output");
    o.dtype = a.dtype;
    o.shape.assign(a.shape, a.shape + a.ndim);
    MemoryObject& m = r.rec.objects[(size_t)o.object];
    m.home = Home::kOutput;
    m.index = (int)q->outputs.size();
    q->outputs.push_back(std::move(o));
  }
  // Gradients from before the call may be freed: each replay looks for those that there are.
  for (py::object& a : r.held) {
    int k = r.object_of(a);
    if (k < 0 || r.rec.objects[(size_t)k].gradient < 0) q->held.push_back(std::move(a));
  }
  r.held.clear();
  q->checks = std::move(r.checks);
  q->p.ops = std::move(r.rec.ops);
  q->p.objects = std::move(r.rec.objects);
  {
    py::gil_scoped_release release;
    q->p.fuse();
    q->p.build();
    q->p.slot_random(first_counter, last_counter);
  }
  q->add_fixed();
  return q;
}

}  // namespace

void recording_sees(PyObject* array) {
  if (current) current->see(array);
}

void check_values(const Array& a, CheckFn ok, RaiseFn raise, std::initializer_list<int64_t> args) {
  if (!ok(a.data, args.begin())) raise(a, args.begin());
  if (!recorder || !current || a.size == 0) return;
  Array shape = a;
  shape.object = py::object();
  current->checks.push_back(Check{shape, raise});
  recorder->check(ok, (int)current->checks.size() - 1, in(a), args.begin(), (int)args.size());
}

void bind_capture(py::module_& m) {
  auto intern = [](const char* s) { return PyUnicode_InternFromString(s); };
  nm = Names{intern("lr"),          intern("betas"),
             intern("eps"),         intern("weight_decay"),
             intern("l1"),          intern("maximize"),
             intern("amsgrad"),     intern("step"),
             intern("momentum"),    intern("dampening"),
             intern("nesterov"),    intern("decoupled_weight_decay"),
             intern("_clip_value"), intern("_max_grad_norm")};
  slow_call = intern("_call");
  if (PyType_Ready(&captured_type) < 0) throw py::error_already_set();
  m.attr("CapturedBase") = py::reinterpret_borrow<py::object>((PyObject*)&captured_type);
  m.def(
      "has_dict",
      [](py::handle o) {
        PyObject* d = dict_of(o.ptr());
        return d && PyDict_Check(d);
      },
      py::arg("object"), "Whether an object keeps its attributes in a dict of its own.");
  m.def(
      "_recording_forked", [] { recorder_any.store(recorder); },
      "In a forked child: a recording of a thread that did not come along is over.");
  py::class_<Recording>(m, "Recording", "One run of a function, launch by launch.")
      .def(py::init<>())
      .def(
          "start",
          [](Recording& r, py::list inputs, py::list gradients) {
            if (recorder_any.load()) return false;
            for (size_t i = 0; i < gradients.size(); ++i)
              if (is_array(gradients[i].ptr()))
                r.rec.gradients.emplace(proxy_of(py::object(gradients[i]).ptr())->data, (int)i);
            for (auto a : inputs) {
              char *low, *high;
              extent(a.ptr(), &low, &high);
              if (low == high) continue;
              if (r.rec.find(low) >= 0) continue;
              r.rec.add_external(low, (size_t)(high - low), Home::kInput, r.inputs++);
              r.held.push_back(py::reinterpret_borrow<py::object>(a));
            }
            if (!recording_start(&r.rec)) return false;
            r.running = true;
            current = &r;
            return true;
          },
          py::arg("inputs"), py::arg("gradients"),
          "gradients: the array that each parameter has for it, or None. False when another thread "
          "records.")
      .def("stop",
           [](Recording& r) {
             if (!r.running) return;
             r.rec.verify_contents();
             current = nullptr;
             r.stop();
           })
      .def("drop", [](Recording& r) { r.held.clear(); })
      .def_property_readonly("error", [](Recording& r) { return r.rec.error; })
      .def_property_readonly("launches", [](Recording& r) { return r.rec.ops.size(); })
      .def(
          "whole",
          [](Recording& r, py::handle a) {
            int k = r.object_of(a);
            if (k < 0 || !c_contiguous(a.ptr())) return false;
            const MemoryObject& o = r.rec.objects[(size_t)k];
            return !o.external && o.touched && o.base == proxy_of(a.ptr())->data &&
                   (int64_t)o.bytes == bytes_of(a.ptr());
          },
          py::arg("array"), "Whether an array is a whole piece of memory that a kernel wrote.")
      .def("input_of",
           [](Recording& r, py::handle a) {
             int k = r.object_of(a);
             return k >= 0 && r.rec.objects[(size_t)k].home == Home::kInput;
           })
      .def(
          "touched",
          [](Recording& r, py::handle a) {
            int k = r.object_of(a);
            return k >= 0 && r.rec.objects[(size_t)k].touched;
          },
          py::arg("array"))
      .def(
          "written",
          [](Recording& r, py::handle a) {
            int k = r.object_of(a);
            return k >= 0 && r.rec.objects[(size_t)k].written;
          },
          py::arg("array"))
      .def(
          "alive",
          [](Recording& r, py::list known) {
            std::unordered_set<int> ok;
            for (auto a : known) ok.insert(r.object_of(a));
            int64_t bytes = 0, count = 0;
            for (size_t i = 0; i < r.rec.objects.size(); ++i) {
              const MemoryObject& o = r.rec.objects[i];
              if (!o.external && !o.freed && o.written && !ok.count((int)i)) {
                ++count;
                bytes += (int64_t)o.bytes;
              }
            }
            return py::make_tuple(count, bytes);
          },
          py::arg("known"),
          "Arrays made in the recording that somebody still holds: (count, bytes).")
      .def(
          "difference",
          [](Recording& r, Recording& other, uint64_t first, uint64_t other_first) {
            return r.rec.difference(other.rec, first, other_first);
          },
          py::arg("other"), py::arg("first"), py::arg("other_first"),
          "What differs between two recordings of one function; empty when nothing does.")
      .def("finish", &finish, py::arg("leaves"), py::arg("outputs"), py::arg("threads"),
           py::arg("options"), py::arg("first_counter"), py::arg("last_counter"));

  py::class_<PyProgram>(m, "Program", "A recorded step, ready to be replayed.",
                        py::custom_type_setup([](PyHeapTypeObject* type) {
                          type->ht_type.tp_flags |= Py_TPFLAGS_HAVE_GC;
                          type->ht_type.tp_traverse = program_traverse;
                          type->ht_type.tp_clear = program_clear;
                        }))
      .def("check", &PyProgram::check, py::arg("leaves"))
      .def("replay", &PyProgram::replay)
      .def_property_readonly("reason", [](PyProgram& q) { return q.reason; })
      .def("guard_item",
           [](PyProgram& q, py::dict owner, py::object key, py::object value, std::string name) {
             q.guards.push_back(Guard{Guard::kItem, owner, key, value, 0, -1, std::move(name)});
           })
      .def("guard_size",
           [](PyProgram& q, py::dict owner, std::string name) {
             q.guards.push_back(Guard{Guard::kSize, owner, py::none(), py::none(),
                                      (int64_t)owner.size(), -1, std::move(name)});
           })
      .def("guard_keys",
           [](PyProgram& q, py::dict owner, std::string name) {
             py::tuple keys = py::reinterpret_steal<py::tuple>(PySequence_Tuple(owner.ptr()));
             if (!keys) throw py::error_already_set();
             q.guards.push_back(
                 Guard{Guard::kKeys, owner, keys, py::none(), 0, -1, std::move(name)});
           })
      .def(
          "guard_place",
          [](PyProgram& q, py::object owner, std::string name) {
            PyObject* own = dict_of(owner.ptr());
            if (!own) throw py::type_error("guard_place: no __dict__");
            q.guards.push_back(Guard{Guard::kPlace, owner, py::type::of(owner),
                                     py::reinterpret_borrow<py::object>(own), 0, -1,
                                     std::move(name)});
          },
          "An object keeps its class and its __dict__.")
      .def("guard_cell",
           [](PyProgram& q, py::object cell, py::object value, std::string name) {
             if (!PyCell_Check(cell.ptr())) throw py::type_error("guard_cell: not a cell");
             q.guards.push_back(
                 Guard{Guard::kCell, cell, py::none(), value, 0, -1, std::move(name)});
           })
      .def("guard_list",
           [](PyProgram& q, py::list owner, std::string name) {
             q.guards.push_back(
                 Guard{Guard::kList, owner, py::tuple(owner), py::none(), 0, -1, std::move(name)});
           })
      .def("guard_attribute",
           [](PyProgram& q, py::object owner, py::str key, py::object value, bool there,
              std::string name) {
             q.guards.push_back(Guard{Guard::kAttribute, owner, key, there ? value : py::object(),
                                      0, -1, std::move(name)});
           })
      .def(
          "guard_absent",
          [](PyProgram& q, py::dict owner, py::object key, std::string name) {
            q.guards.push_back(
                Guard{Guard::kItem, owner, key, py::object(), 0, -1, std::move(name)});
          },
          "A dict does not get this key.")
      .def(
          "guard_type",
          [](PyProgram& q, py::type owner, py::str key, py::object value, bool there,
             std::string name) {
            q.guards.push_back(Guard{Guard::kType, owner, key, there ? value : py::object(), 0, -1,
                                     std::move(name)});
          },
          "What a class, with those that it inherits from, has under a name.")
      .def(
          "guard_function",
          [](PyProgram& q, py::object owner, py::tuple parts, std::string name) {
            if (!PyFunction_Check(owner.ptr()) || parts.size() != 3)
              throw py::type_error("guard_function: not a function");
            q.guards.push_back(
                Guard{Guard::kFunction, owner, parts, py::none(), 0, -1, std::move(name)});
          },
          "A function keeps its code and its defaults.")
      .def(
          "guard_order",
          [](PyProgram& q, py::object owner, py::tuple values, std::string name) {
            q.guards.push_back(
                Guard{Guard::kOrder, owner, values, py::none(), 0, -1, std::move(name)});
          },
          "Walking over a set or a deque gives these values.")
      .def(
          "guard_content",
          [](PyProgram& q, py::object owner, py::tuple content, std::string name) {
            if (content.size() != 3 || !PyBytes_Check(PyTuple_GET_ITEM(content.ptr(), 2)))
              throw py::type_error("guard_content: not (format, shape, bytes)");
            q.guards.push_back(
                Guard{Guard::kContent, owner, content, py::none(), 0, -1, std::move(name)});
          },
          "An array or a buffer keeps its values.")
      .def("guard_context",
           [](PyProgram& q, py::object owner, py::object value, bool there, std::string name) {
             if (!PyContextVar_CheckExact(owner.ptr()))
               throw py::type_error("guard_context: not a ContextVar");
             q.guards.push_back(Guard{Guard::kContext, owner, py::none(),
                                      there ? value : py::object(), 0, -1, std::move(name)});
           })
      .def("guard_tensor",
           [](PyProgram& q, py::object tensor, py::object array, std::string name) {
             if (!is_tensor(tensor.ptr())) throw py::type_error("guard_tensor: not a Tensor");
             Guard g{Guard::kTensor, tensor, py::none(), array, 0, -1, std::move(name)};
             g.number = ((Tensor*)tensor.ptr())->requires_grad;
             g.hooks = hooks_of((Tensor*)tensor.ptr());
             if (is_array(array.ptr()) && c_contiguous(array.ptr()) && bytes_of(array.ptr()))
               for (size_t i = 0; i < q.p.objects.size(); ++i) {
                 const MemoryObject& o = q.p.objects[i];
                 if (o.home == Home::kFixed && o.base == proxy_of(array.ptr())->data &&
                     (int64_t)o.bytes == bytes_of(array.ptr()))
                   g.object = (int)i;
               }
             // Of two tensors that share their memory none can move alone.
             if (g.object >= 0)
               for (Guard& other : q.guards)
                 if (other.kind == Guard::kTensor && other.shared == g.object) {
                   other.object = -1;
                   g.shared = g.object;
                 }
             if (g.shared >= 0)
               g.object = -1;
             else
               g.shared = g.object;
             q.guards.push_back(std::move(g));
           })
      .def("guard_grad",
           [](PyProgram& q, py::object tensor, py::object grad, std::string name) {
             if (!is_tensor(tensor.ptr())) throw py::type_error("guard_grad: not a Tensor");
             q.guards.push_back(
                 Guard{Guard::kGrad, tensor, py::none(), grad, 0, -1, std::move(name)});
           })
      .def(
          "guard_gradient",
          [](PyProgram& q, py::object tensor, py::object array, std::string name) {
            if (!is_tensor(tensor.ptr())) throw py::type_error("guard_gradient: not a Tensor");
            for (size_t i = 0; i < q.p.objects.size(); ++i) {
              const MemoryObject& o = q.p.objects[i];
              if (o.gradient < 0 || o.base != proxy_of(array.ptr())->data ||
                  (int64_t)o.bytes != bytes_of(array.ptr()) || !c_contiguous(array.ptr()))
                continue;
              py::object kind = py::make_tuple(array.attr("dtype"), array.attr("shape"));
              q.guards.push_back(
                  Guard{Guard::kGradient, tensor, py::none(), kind, 0, (int)i, std::move(name)});
              return true;
            }
            return false;
          },
          "A gradient that the program reads may be any array of its kind; False when it may not.")
      .def(
          "set_changed",
          [](PyProgram& q, py::list versions, std::vector<int> inputs) {
            for (auto v : versions) {
              if (Py_TYPE(v.ptr()) != &version_type) throw py::type_error("not a version");
              q.changed.push_back(py::reinterpret_borrow<py::object>(v));
            }
            q.changed_inputs = std::move(inputs);
          },
          "The versions of tensors, and the arguments, that a replay changes in place.")
      .def("count_changes", [](PyProgram& q, py::tuple leaves) { q.count_changes(leaves.ptr()); })
      .def("caller", &caller, "`call`, a builtin: see its documentation.")
      .def("set_direct",
           [](PyProgram& q, bool grad_mode, bool autocast_mode, py::object module,
              py::list steppers, py::list cleared, py::list leaf_outputs, bool single) {
             for (auto item : steppers) {
               // (rule, own dict, decoupled, norm, clip slot, [(group, slots, owns, flag)],
               // versions)
               py::tuple t = py::reinterpret_borrow<py::tuple>(item);
               Stepper s;
               s.rule = t[0].cast<std::string>() == "adam" ? Stepper::kAdam : Stepper::kSgd;
               s.own = t[1];
               s.decoupled_always = t[2].cast<bool>();
               s.norm = t[3].cast<bool>();
               s.clip_slot = t[4].cast<int>();
               for (auto each : t[5]) {
                 py::tuple u = py::reinterpret_borrow<py::tuple>(each);
                 Stepper::Set set;
                 set.group = u[0];
                 set.slots = u[1].cast<std::vector<int>>();
                 for (auto o : u[2]) set.owns.push_back(py::reinterpret_borrow<py::dict>(o));
                 set.flag = u[3].cast<bool>();
                 s.sets.push_back(std::move(set));
               }
               for (auto v : t[6]) {
                 if (Py_TYPE(v.ptr()) != &version_type) throw py::type_error("not a version");
                 s.versions.push_back((Version*)v.ptr());
                 s.held.push_back(py::reinterpret_borrow<py::object>(v));
               }
               q.steppers.push_back(std::move(s));
             }
             for (auto c : cleared) {
               q.cleared_held.push_back(py::reinterpret_borrow<py::object>(c));
               q.cleared.push_back(c.ptr());
             }
             for (auto i : leaf_outputs) q.leaf_outputs.push_back(i.cast<int>());
             q.single = single;
             q.sorted = 0;
             q.grad_mode = grad_mode;
             q.autocast_mode = autocast_mode;
             q.module = module;
             q.direct = true;
           })
      .def("set_random",
           [](PyProgram& q, uint64_t seed, uint64_t counter) {
             if (q.p.random_slot >= 0) slot_table()[q.p.random_slot].u = counter;
             if (seed != q.p.seed) {
               q.p.seed = seed;
               for (uint64_t* s : q.p.seeds) *s = seed;
             }
           })
      .def("set_holder", [](PyProgram& q, size_t i, py::object h) { q.outputs.at(i).holder = h; })
      .def("holder",
           [](PyProgram& q, size_t i) {
             py::object h = q.outputs.at(i).holder;
             return h.ptr() ? h : py::object(py::none());
           })
      .def("check_inputs",
           [](PyProgram& q) {
             int failed = q.p.check_inputs();
             if (failed >= 0) q.raise_failed(failed);
           })
      .def("has_checks", [](PyProgram& q) { return !q.p.prologue.empty(); })
      .def("acquire",
           [](PyProgram& q) {
             bool expected = false;
             return q.busy.compare_exchange_strong(expected, true);
           })
      .def("release", [](PyProgram& q) { q.busy.store(false); })
      .def("profile",
           [](PyProgram& q, bool on) {
             q.p.profile = on;
             q.p.times.assign(q.p.steps.size(), 0.0);
           })
      .def("times", [](PyProgram& q) { return q.p.times; })
      .def(
          "kernel_seconds",
          [](PyProgram& q, int rounds, int repeat) {
            if (rounds < 1 || repeat < 1)
              throw py::value_error("kernel_seconds: rounds and repeat must be positive");
            py::gil_scoped_release release;
            return q.p.kernel_seconds(rounds, repeat);
          },
          py::arg("rounds"), py::arg("repeat"),
          "Seconds of each kernel alone on this thread; overwrites what they write.")
      .def("stats",
           [](PyProgram& q) {
             py::dict d;
             d["ops"] = q.p.ops.size();
             d["steps"] = q.p.steps.size();
             d["barriers"] = q.p.barriers;
             d["arena_bytes"] = q.p.arena_bytes;
             d["unshared_bytes"] = q.p.unshared_bytes;
             d["in_place"] = q.p.in_place;
             d["scratch_bytes"] = q.p.scratch_bytes;
             d["constant_bytes"] = q.p.constant_bytes;
             d["guards"] = q.guards.size();
             d["replays"] = q.p.replays;
             d["allocations"] = q.allocations;
             d["pool_allocations"] = q.pool_allocations;
             d["writes_inputs"] = q.writes_inputs;
             d["threads"] = q.p.options.threads;
             return d;
           })
      .def(
          "work",
          [](PyProgram& q) {
            py::list l;
            for (const Work& w : q.p.work()) l.append(py::make_tuple(w.flops, w.bytes));
            return l;
          },
          "Operations and bytes that each kernel needs at least.")
      .def("listing", [](PyProgram& q) {
        py::list l;
        for (const Step& s : q.p.steps) {
          const RecordedOp& op = q.p.ops[(size_t)s.op];
          l.append(py::make_tuple(op.name(), s.nt, s.owner, s.barrier, op.plan.work,
                                  op.note ? op.note : ""));
        }
        return l;
      });
}

}  // namespace gs
