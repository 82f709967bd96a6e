// What tensor.cpp, node.cpp, apply.cpp and autograd.cpp share, and nobody else needs.
#pragma once
#include "autograd.h"

namespace gs {

// Interned names of attributes and keywords.
struct AutogradNames {
  PyObject* saved = PyUnicode_InternFromString("saved");
  PyObject* save_output = PyUnicode_InternFromString("save_output");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* kind = PyUnicode_InternFromString("kind");
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* name = PyUnicode_InternFromString("name");
  PyObject* a_shape = PyUnicode_InternFromString("a_shape");
  PyObject* b_shape = PyUnicode_InternFromString("b_shape");
  PyObject* hooks = PyUnicode_InternFromString("_hooks");
  PyObject* pre_hooks = PyUnicode_InternFromString("_pre_hooks");
  PyObject* forward = PyUnicode_InternFromString("forward");
  PyObject* call_hooked = PyUnicode_InternFromString("_call_hooked");
};
extern AutogradNames* autograd_names;

// For the tables of methods that take their arguments as an array.
#define GS_FAST(f) ((PyCFunction)(void (*)(void))(f))

// autograd.cpp
PyTypeObject make_type(const char* name, size_t size, destructor dealloc, const char* doc);
PyObject* or_none(void* o);  // a new reference
// 1: both are arrays of one shape, 0: not, -1: error
int same_shape(PyObject* a, PyObject* b);

// tensor.cpp
PyObject* tensor_new(PyTypeObject* type, PyObject*, PyObject*);
bool set_tensor_class(PyObject* cls);  // the class of the Tensors that ops return

// node.cpp
PyObject* node_new(PyTypeObject* type, PyObject*, PyObject*);
bool reserve_edges(Node* n, int count);
bool add_watch(Node* n, Version* v);

// apply.cpp
void bind_recording(py::module_& m);

}  // namespace gs
