// What gs.capture returns, as far as a call needs it.
// core/capture.py subclasses it and holds the rest, in `_call`. A lock that its thread may take
// again keeps two threads out of one program.
#include "program.h"

namespace gs {

namespace {

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

}  // namespace

py::handle captured_base() {
  slow_call = PyUnicode_InternFromString("_call");
  if (!slow_call || PyType_Ready(&captured_type) < 0) throw py::error_already_set();
  return (PyObject*)&captured_type;
}

}  // namespace gs
