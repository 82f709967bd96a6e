// Calls from Python into C++: arguments by position and keyword, defaults, exceptions.
#include "functions.h"

#include <string.h>
#include <unistd.h>

#include <new>

#if defined(__GLIBCXX__) && defined(__GLIBC__)
#include <cxxabi.h>
#define GS_UNWINDS_THREADS 1  // pthread_exit is an exception that nobody may keep
#endif

namespace gs {

namespace {

[[noreturn]] void fail(const Function& f, const std::string& what) {
  throw py::type_error(f.name + ": " + what);
}

// Puts the arguments of a call into their places.
void place(const Function& f, PyObject* const* args, Py_ssize_t given, PyObject* keywords,
           PyObject** out) {
  if (given > f.count)
    fail(f, "takes " + std::to_string(f.count) + " arguments, got " + std::to_string(given));
  for (Py_ssize_t i = 0; i < f.count; ++i) out[i] = i < given ? args[i] : nullptr;
  Py_ssize_t n = keywords ? PyTuple_GET_SIZE(keywords) : 0;
  for (Py_ssize_t j = 0; j < n; ++j) {
    PyObject* key = PyTuple_GET_ITEM(keywords, j);
    int i = 0;
    while (i < f.count && f.names[i] != key) ++i;
    for (int t = 0; i == f.count && t < f.count; ++t)  // not interned: by value
      if (f.names[t] && PyUnicode_Compare(f.names[t], key) == 0) i = t;
    if (i == f.count) fail(f, "unknown argument '" + std::string(py::str(py::handle(key))) + "'");
    if (out[i]) fail(f, "argument '" + std::string(py::str(py::handle(key))) + "' is given twice");
    out[i] = args[given + j];
  }
  for (int i = 0; i < f.count; ++i) {
    if (out[i]) continue;
    out[i] = f.defaults[i];
    if (!out[i])
      fail(f, "argument '" +
                  (f.names[i] ? std::string(py::str(py::handle(f.names[i]))) : std::to_string(i)) +
                  "' is missing");
  }
}

PyObject* call(PyObject* self, PyObject* const* args, Py_ssize_t given, PyObject* keywords) {
  const Function& f = *(const Function*)PyCapsule_GetPointer(self, nullptr);
  try {
    if (given == f.count && !keywords) return f.invoke(f, args);
    PyObject* full[Function::kMaxArguments];
    place(f, args, given, keywords, full);
    return f.invoke(f, full);
  } catch (...) {
    raise_current();
    return nullptr;
  }
}

}  // namespace

#ifdef GS_UNWINDS_THREADS
[[noreturn]] static void sleep_to_the_end() {
  for (;;) pause();
}
#endif

WithoutGil::~WithoutGil() {
#ifdef GS_UNWINDS_THREADS
  try {
    PyEval_RestoreThread(state_);
  } catch (abi::__forced_unwind&) {
    sleep_to_the_end();
  }
#else
  PyEval_RestoreThread(state_);
#endif
}

void raise_current() {
  try {
    throw;
#ifdef GS_UNWINDS_THREADS
  } catch (abi::__forced_unwind&) {  // Python code that was called from here
    sleep_to_the_end();
#endif
  } catch (py::error_already_set& e) {
    e.restore();
  } catch (const py::builtin_exception& e) {
    e.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_SetString(PyExc_MemoryError, "out of memory");
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
  }
}

void Function::add(const py::arg& a) { names[count++] = PyUnicode_InternFromString(a.name); }

void Function::add(const py::arg_v& a) {
  defaults[count] = py::object(a.value).release().ptr();
  names[count++] = PyUnicode_InternFromString(a.name);
}

void Function::mismatch(int i, const char* expected, PyObject* got) const {
  std::string which = names[i] ? std::string(py::str(py::handle(names[i]))) : std::to_string(i);
  // of a number that is out of range its type says nothing
  const std::string what = PyLong_CheckExact(got) && strstr(expected, "an integer from")
                               ? std::string(py::str(py::handle(got)))
                               : Py_TYPE(got)->tp_name;
  fail(*this, which + " must be " + expected + ", got " + what);
}

double as_double(const Function& f, int i, PyObject* o) {
  if (PyFloat_CheckExact(o)) return PyFloat_AS_DOUBLE(o);
  double v = PyFloat_AsDouble(o);
  if (v == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    f.mismatch(i, "a number", o);
  }
  return v;
}

int64_t as_int(const Function& f, int i, PyObject* o, int64_t low, int64_t high) {
  int overflow = 0;
  long long v;
  if (PyLong_Check(o)) {
    v = PyLong_AsLongLongAndOverflow(o, &overflow);
  } else {
    py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(o));
    if (!index) {
      PyErr_Clear();
      f.mismatch(i, "an integer", o);
    }
    v = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  }
  if (overflow || v < low || v > high) {
    const std::string range =
        "an integer from " + std::to_string(low) + " to " + std::to_string(high);
    f.mismatch(i, range.c_str(), o);
  }
  return v;
}

uint64_t as_unsigned(const Function& f, int i, PyObject* o) {
  py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(o));
  if (!index) {
    PyErr_Clear();
    f.mismatch(i, "an integer", o);
  }
  unsigned long long v = PyLong_AsUnsignedLongLong(index.ptr());
  if (v == (unsigned long long)-1 && PyErr_Occurred()) {
    PyErr_Clear();
    f.mismatch(i, "an integer from 0 to 2^64 - 1", o);
  }
  return v;
}

bool as_bool(const Function& f, int i, PyObject* o) {
  if (o == Py_True) return true;
  if (o == Py_False) return false;
  int v = PyObject_IsTrue(o);
  if (v < 0) {
    PyErr_Clear();
    f.mismatch(i, "a bool", o);
  }
  return v != 0;
}

void Functions::finish(Function* f, int n) {
  if (f->count == 0) f->count = n;  // no names: by position only
  if (f->count != n) throw std::logic_error(f->name + ": arguments and their names differ");
  std::string signature = f->name + "(";
  if (f->names[0] || n == 0) {
    for (int i = 0; i < n; ++i) {
      signature += (i ? ", " : "") + std::string(py::str(py::handle(f->names[i])));
      if (f->defaults[i]) signature += "=" + std::string(py::repr(py::handle(f->defaults[i])));
    }
    f->doc = signature + ")\n--\n\n" + f->doc;
  }
  f->method.ml_name = f->name.c_str();
  f->method.ml_meth = (PyCFunction)(void (*)(void))call;
  f->method.ml_flags = METH_FASTCALL | METH_KEYWORDS;
  f->method.ml_doc = f->doc.c_str();
  py::object self = py::reinterpret_steal<py::object>(PyCapsule_New(f, nullptr, nullptr));
  if (!self) throw py::error_already_set();
  py::object name = module_.attr("__name__");
  py::object o =
      py::reinterpret_steal<py::object>(PyCFunction_NewEx(&f->method, self.ptr(), name.ptr()));
  if (!o) throw py::error_already_set();
  module_.attr(f->name.c_str()) = o;
}

}  // namespace gs
