// What a captured step needs beside its program (csrc/graph): the arguments and results, the guards
// on what Python it was recorded with (guards.cpp), the optimizers' scalars and the call itself
// (program.cpp). capture.cpp makes it from a recording, captured.cpp is what gs.capture returns.
#pragma once
#include <math.h>

#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "../graph/graph.h"
#include "array.h"
#include "autograd.h"

namespace gs {

inline const auto* proxy_of(PyObject* a) { return py::detail::array_proxy(a); }

inline bool is_array(PyObject* o) { return py::isinstance<py::array>(py::handle(o)); }

inline int64_t item_size(PyObject* a) {
  return (int64_t)py::reinterpret_borrow<py::dtype>(proxy_of(a)->descr).itemsize();
}

inline bool c_contiguous(PyObject* a) {
  return proxy_of(a)->flags & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_;
}

inline bool writeable(PyObject* a) {
  return proxy_of(a)->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
}

// First byte and the byte after the last one that an array covers.
inline void extent(PyObject* a, char** low, char** high) {
  const auto* p = proxy_of(a);
  *low = *high = p->data;
  for (int i = 0; i < p->nd; ++i) {
    if (p->dimensions[i] == 0) return;
    int64_t span = (p->dimensions[i] - 1) * p->strides[i];
    (span < 0 ? *low : *high) += span;
  }
  *high += item_size(a);
}

inline int64_t bytes_of(PyObject* a) {
  const auto* p = proxy_of(a);
  int64_t n = item_size(a);
  for (int i = 0; i < p->nd; ++i) n *= p->dimensions[i];
  return n;
}

// Whether an array has the dtype and the shape of `kind`, (dtype, shape).
inline bool same_kind_as(PyObject* a, const py::object& kind) {
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
    kHasGrad,
    kGradient
  } kind;
  py::object owner, key, value;
  int64_t number = 0;
  int object = -1;  // kTensor, kGradient: memory that follows the tensor's array, or -1
  std::string name;
  int64_t hooks = 0;  // kTensor: the hooks on a leaf's gradient, by hooks_of
  int shared = -1;    // kTensor: `object`, also where another tensor has the same memory
};

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
inline uint64_t version_of(PyObject* dict) { return ((PyDictObject*)dict)->ma_version_tag; }
#else
constexpr bool kDictVersions = false;
inline uint64_t version_of(PyObject*) { return 0; }
#endif

struct Names {
  PyObject *lr, *betas, *eps, *weight_decay, *l1, *maximize, *amsgrad, *step, *momentum, *dampening,
      *nesterov, *decoupled, *clip_value, *max_grad_norm;
};
extern Names option_names;

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
  bool plain_arguments = false;  // the code may look for attributes of tensors, their gradients
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

// Whether a replay may take one for the other: zeros of two signs it may not, nor 1 and True.
bool same_value(PyObject* a, PyObject* b);
PyObject* dict_of(PyObject* o);
int64_t hooks_of(const Tensor* t);

PyProgram* program_in(PyObject* self);
PyObject* call_program(PyObject* self, PyObject* leaves);  // Program.call
py::object program_caller(py::object program);
int program_traverse(PyObject* self, visitproc visit, void* arg);
int program_clear(PyObject* self);

py::handle captured_base();  // the type that core/capture.py subclasses

}  // namespace gs
