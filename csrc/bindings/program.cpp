// The call of a captured program: the scalars of its optimizers, results that somebody still holds,
// and the object that Python sees.
#include "program.h"

#include "optimizer.h"

namespace gs {

Names option_names;

bool Stepper::read_options() {
  clip_value = INFINITY;
  max_norm = 0;
  PyObject* clip = PyDict_GetItem(own.ptr(), option_names.clip_value);
  if (!clip || (clip != Py_None && !number(own.ptr(), option_names.clip_value, &clip_value)))
    return false;
  PyObject* limit = PyDict_GetItem(own.ptr(), option_names.max_grad_norm);
  if (!limit || (limit != Py_None) != norm) return false;
  return !norm || number(own.ptr(), option_names.max_grad_norm, &max_norm);
}

bool Stepper::read(Set& s) {
  PyObject* g = s.group.ptr();
  if (!number(g, option_names.lr, &s.lr) || !number(g, option_names.weight_decay, &s.decay) ||
      !number(g, option_names.l1, &s.l1))
    return false;
  PyObject* maximize = PyDict_GetItem(g, option_names.maximize);
  if (!maximize) return false;
  s.sign = maximize == Py_True ? -1.0 : 1.0;
  s.apart = decoupled_always;
  if (rule == kAdam) {
    PyObject* amsgrad = PyDict_GetItem(g, option_names.amsgrad);
    PyObject* betas = PyDict_GetItem(g, option_names.betas);
    if (!amsgrad || (amsgrad == Py_True) != s.flag || !betas || !PyTuple_CheckExact(betas) ||
        PyTuple_GET_SIZE(betas) != 2 || !number(g, option_names.eps, &s.eps))
      return false;
    PyObject *x = PyTuple_GET_ITEM(betas, 0), *y = PyTuple_GET_ITEM(betas, 1);
    if (!PyFloat_CheckExact(x) || !PyFloat_CheckExact(y)) return false;
    s.b1 = PyFloat_AS_DOUBLE(x);
    s.b2 = PyFloat_AS_DOUBLE(y);
    if (!s.apart) s.apart = PyDict_GetItem(g, option_names.decoupled) == Py_True;
    return true;
  }
  PyObject* nesterov = PyDict_GetItem(g, option_names.nesterov);
  if (!number(g, option_names.momentum, &s.momentum) ||
      !number(g, option_names.dampening, &s.dampening) || !nesterov || (s.momentum != 0) != s.flag)
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
      PyObject* count = PyDict_GetItem(s.owns[0].ptr(), option_names.step);
      if (!count || !PyLong_CheckExact(count)) return false;
      for (py::dict& o : s.owns) {  // one that was frozen for a while has made fewer steps
        PyObject* c = PyDict_GetItem(o.ptr(), option_names.step);
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
    for (py::dict& o : s.owns) PyDict_SetItem(o.ptr(), option_names.step, next);
    Py_DECREF(next);
    s.count = t;
    s.remember();
  }
  if (norm) table[clip_slot].f = max_norm;
  for (Version* x : versions) ++x->value;
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
    WithoutGil release;
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
        PyObject* last = PyLong_FromLongLong(
            PyLong_AsLongLong(PyDict_GetItem(set.owns[0].ptr(), option_names.step)) - 1);
        for (py::dict& o : set.owns) PyDict_SetItem(o.ptr(), option_names.step, last);
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

namespace {

PyMethodDef call_method = {
    "call", call_program, METH_O,
    "Checks, replays and returns the tensor (or the arrays); NotImplemented where Python has to do "
    "it."};

}  // namespace

py::object program_caller(py::object program) {
  if (!((py::detail::instance*)program.ptr())->simple_layout ||
      program_in(program.ptr()) != program.cast<PyProgram*>())
    throw py::type_error("caller: not a program");
  py::object f = py::reinterpret_steal<py::object>(PyCFunction_New(&call_method, program.ptr()));
  if (!f) throw py::error_already_set();
  return f;
}

namespace {

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

}  // namespace

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

}  // namespace gs
