// Bindings of the captured step: a recording (csrc/graph/record.cpp) with the arrays that it saw,
// and a program with what must hold before it may be replayed.
#include <deque>
#include <memory>
#include <unordered_set>

#include "../graph/graph.h"
#include "array.h"

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
  if (low == high) return;
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

struct Guard {
  enum Kind { kItem, kSize, kCell, kListItem, kListSize, kAttribute, kTensor } kind;
  py::object owner, key, value;
  int64_t number = 0;
  int object = -1;  // kTensor: memory that follows the tensor's array, or -1
  std::string name;
};

struct Input {
  bool tensor = false;
  py::object value;  // a constant
  py::object type;
  int type_num = 0;
  std::vector<int64_t> shape;
  int object = -1;   // memory, or -1 when nothing reads it
  int same_as = -1;  // the leaf that it shares its array with
};

struct Output {
  int object;
  DType dtype;
  std::vector<int64_t> shape;
  py::object array;   // where the next replay writes, unless somebody else holds it
  py::object holder;  // a gradient: its Tensor, held by its parameter too
  py::object parameter;
};

PyObject *names_data, *names_rg, *names_grad;  // interned, live as long as the process

bool same_value(PyObject* a, PyObject* b) {
  if (a == b) return true;
  if (Py_TYPE(a) != Py_TYPE(b)) return false;
  if (!(PyFloat_Check(a) || PyLong_Check(a) || PyUnicode_Check(a) || PyBytes_Check(a) ||
        PyTuple_Check(a)))
    return false;
  int r = PyObject_RichCompareBool(a, b, Py_EQ);
  if (r < 0) PyErr_Clear();
  return r == 1;
}

struct PyProgram {
  Program p;
  std::vector<py::object> held;
  std::vector<Check> checks;
  std::vector<Guard> guards;
  std::vector<Input> inputs;
  std::vector<Output> outputs;
  std::vector<std::pair<char*, char*>> fixed;  // memory that no input may overlap, sorted
  bool writes_inputs = false;
  std::string reason;
  uint64_t allocations = 0;
  std::atomic<bool> busy{false};

  void add_fixed() {
    fixed.clear();
    for (size_t i = 0; i < p.objects.size(); ++i) {
      const MemoryObject& o = p.objects[i];
      if (o.home == Home::kFixed && o.written && o.bytes)
        fixed.emplace_back(p.bound[i], p.bound[i] + o.bytes);
    }
    for (auto& o : outputs)
      if (o.parameter.ptr())
        fixed.emplace_back(p.bound[(size_t)o.object],
                           p.bound[(size_t)o.object] + p.objects[(size_t)o.object].bytes);
    std::sort(fixed.begin(), fixed.end());
  }
  bool overlaps_fixed(char* low, char* high) const {
    auto it = std::lower_bound(fixed.begin(), fixed.end(), std::make_pair(high, (char*)nullptr));
    return it != fixed.begin() && (--it)->second > low;
  }
  bool guard_holds(Guard& g);
  bool check(py::handle leaves);
  py::object replay();
  void raise_failed(int op);
};

bool PyProgram::guard_holds(Guard& g) {
  switch (g.kind) {
    case Guard::kItem: {
      PyObject* v = PyDict_GetItem(g.owner.ptr(), g.key.ptr());
      return v == g.value.ptr() || (v && g.value.ptr() && same_value(v, g.value.ptr()));
    }
    case Guard::kSize:
      return PyDict_GET_SIZE(g.owner.ptr()) == g.number;
    case Guard::kCell: {
      PyObject* v = PyCell_GET(g.owner.ptr());
      return v == g.value.ptr() || (v && same_value(v, g.value.ptr()));
    }
    case Guard::kListItem: {
      if (g.number >= PyList_GET_SIZE(g.owner.ptr())) return false;
      PyObject* v = PyList_GET_ITEM(g.owner.ptr(), g.number);
      return v == g.value.ptr() || same_value(v, g.value.ptr());
    }
    case Guard::kListSize:
      return PyList_GET_SIZE(g.owner.ptr()) == g.number;
    case Guard::kAttribute: {
      PyObject* v = PyObject_GetAttr(g.owner.ptr(), g.key.ptr());
      if (!v) {
        PyErr_Clear();
        return false;
      }
      bool same = v == g.value.ptr() || same_value(v, g.value.ptr());
      Py_DECREF(v);
      return same;
    }
    case Guard::kTensor: {
      PyObject* v = PyObject_GetAttr(g.owner.ptr(), names_data);
      if (!v) {
        PyErr_Clear();
        return false;
      }
      py::object now = py::reinterpret_steal<py::object>(v);
      if (v == g.value.ptr()) return true;
      if (g.object < 0 || !is_array(v)) return false;
      // Another array of the same kind: the program moves to it.
      const auto *a = proxy_of(v), *b = proxy_of(g.value.ptr());
      if (a->descr != b->descr || a->nd != b->nd || !c_contiguous(v) ||
          !c_contiguous(g.value.ptr()))
        return false;
      for (int i = 0; i < a->nd; ++i)
        if (a->dimensions[i] != b->dimensions[i]) return false;
      MemoryObject& o = p.objects[(size_t)g.object];
      char* to = a->data;
      if ((size_t)bytes_of(v) != o.bytes || b->data != p.bound[(size_t)g.object]) return false;
      for (size_t i = 0; i < p.objects.size(); ++i)
        if ((int)i != g.object && p.bound[i] && to < p.bound[i] + p.objects[i].bytes &&
            p.bound[i] < to + o.bytes)
          return false;
      p.bind(g.object, to);
      g.value = now;
      add_fixed();
      return true;
    }
  }
  return false;
}

// Whether the program fits these arguments and the state of everything that it was recorded with.
bool PyProgram::check(py::handle leaves) {
  if (!PyTuple_Check(leaves.ptr()) || PyTuple_GET_SIZE(leaves.ptr()) != (Py_ssize_t)inputs.size()) {
    reason = "another number of arguments";
    return false;
  }
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
    py::object data = py::reinterpret_steal<py::object>(PyObject_GetAttr(o, names_data));
    if (!data || !is_array(data.ptr())) {
      PyErr_Clear();
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
    PyObject* rg = PyObject_GetAttr(o, names_rg);
    if (rg != Py_False) {
      Py_XDECREF(rg);
      PyErr_Clear();
      reason = "argument " + std::to_string(i) + " requires a gradient";
      return false;
    }
    Py_DECREF(rg);
    if (in.same_as >= 0) {
      const Input& other = inputs[(size_t)in.same_as];
      if (other.object >= 0 && p.bound[(size_t)other.object] != a->data) {
        reason = "arguments that were one tensor are two now";
        return false;
      }
      continue;
    }
    if (in.object < 0) continue;
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
  for (Guard& g : guards)
    if (!guard_holds(g)) {
      reason = g.name + " has changed";
      return false;
    }
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

py::object PyProgram::replay() {
  // A result that somebody still holds keeps its memory; the next one gets new memory.
  for (Output& o : outputs) {
    Py_ssize_t holders = o.holder.ptr() ? 2 : 1;
    bool kept = Py_REFCNT(o.array.ptr()) > holders;
    if (o.holder.ptr() && !kept) {
      PyObject* g = PyObject_GetAttr(o.parameter.ptr(), names_grad);
      PyErr_Clear();
      kept = Py_REFCNT(o.holder.ptr()) > (g == o.holder.ptr() ? 3 : 1);
      Py_XDECREF(g);
    }
    if (kept) {
      Array fresh = array_new(o.dtype, (int)o.shape.size(), o.shape.data());
      ++allocations;
      o.array = fresh.object;
      o.holder = py::object();
      p.bind(o.object, fresh.data);
    }
  }
  int failed;
  {
    py::gil_scoped_release release;
    failed = p.replay();
  }
  if (failed >= 0) raise_failed(failed);
  py::tuple result(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i)
    PyTuple_SET_ITEM(result.ptr(), (Py_ssize_t)i, py::object(outputs[i].array).release().ptr());
  return std::move(result);
}

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
  q->p.options.in_place = flag("in_place", true);
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
        if (r.rec.objects[(size_t)k].written) q->writes_inputs = true;
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
  q->held = std::move(r.held);
  q->checks = std::move(r.checks);
  q->p.ops = std::move(r.rec.ops);
  q->p.objects = std::move(r.rec.objects);
  {
    py::gil_scoped_release release;
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
  names_data = PyUnicode_InternFromString("data");
  names_rg = PyUnicode_InternFromString("_rg");
  names_grad = PyUnicode_InternFromString("_grad");
  py::class_<Recording>(m, "Recording", "One run of a function, launch by launch.")
      .def(py::init<>())
      .def(
          "start",
          [](Recording& r, py::list inputs) {
            if (recorder_any.load()) return false;
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
          py::arg("inputs"), "False when another thread records.")
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

  py::class_<PyProgram>(m, "Program", "A recorded step, ready to be replayed.")
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
      .def("guard_cell",
           [](PyProgram& q, py::object cell, py::object value, std::string name) {
             if (!PyCell_Check(cell.ptr())) throw py::type_error("guard_cell: not a cell");
             q.guards.push_back(
                 Guard{Guard::kCell, cell, py::none(), value, 0, -1, std::move(name)});
           })
      .def("guard_list",
           [](PyProgram& q, py::list owner, std::string name) {
             q.guards.push_back(Guard{Guard::kListSize, owner, py::none(), py::none(),
                                      (int64_t)owner.size(), -1, name});
             for (size_t i = 0; i < owner.size(); ++i)
               q.guards.push_back(Guard{Guard::kListItem, owner, py::none(), owner[i], (int64_t)i,
                                        -1, name + "[" + std::to_string(i) + "]"});
           })
      .def(
          "guard_attribute",
          [](PyProgram& q, py::object owner, py::str key, py::object value, std::string name) {
            q.guards.push_back(Guard{Guard::kAttribute, owner, key, value, 0, -1, std::move(name)});
          })
      .def("guard_tensor",
           [](PyProgram& q, py::object tensor, py::object array, std::string name) {
             Guard g{Guard::kTensor, tensor, py::none(), array, 0, -1, std::move(name)};
             if (is_array(array.ptr()) && c_contiguous(array.ptr()) && bytes_of(array.ptr()))
               for (size_t i = 0; i < q.p.objects.size(); ++i) {
                 const MemoryObject& o = q.p.objects[i];
                 if (o.home == Home::kFixed && o.base == proxy_of(array.ptr())->data &&
                     (int64_t)o.bytes == bytes_of(array.ptr()))
                   g.object = (int)i;
               }
             q.guards.push_back(std::move(g));
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
      .def("stats",
           [](PyProgram& q) {
             py::dict d;
             d["ops"] = q.p.ops.size();
             d["steps"] = q.p.steps.size();
             d["barriers"] = q.p.barriers;
             d["arena_bytes"] = q.p.arena_bytes;
             d["unshared_bytes"] = q.p.unshared_bytes;
             d["scratch_bytes"] = q.p.scratch_bytes;
             d["constant_bytes"] = q.p.constant_bytes;
             d["aliased"] = q.p.aliased;
             d["guards"] = q.guards.size();
             d["replays"] = q.p.replays;
             d["allocations"] = q.allocations;
             d["writes_inputs"] = q.writes_inputs;
             d["threads"] = q.p.options.threads;
             return d;
           })
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
