// Tensor and its version as Python classes.
#include <structmember.h>

#include "autograd_types.h"

namespace gs {

namespace {

PyObject* tensor_class = nullptr;  // gs.Tensor

// ---- versions
constexpr int kSpare = 128;
Version* spare[kSpare];
int spare_count = 0;

Version* version_new() {
  Version* v = spare_count > 0 ? spare[--spare_count] : (Version*)PyObject_Malloc(sizeof(Version));
  if (!v) return (Version*)PyErr_NoMemory();
  v->value = 0;
  v->plain = nullptr;
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

}  // namespace

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

namespace {

void leave_list(Tensor* t) {
  if (!t->link) return;
  *t->link = t->next;
  if (t->next) t->next->link = t->link;
  t->next = nullptr;
  t->link = nullptr;
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
  leave_list(t);
  if (t->weakrefs) PyObject_ClearWeakRefs(o);
  tensor_clear(o);
  Py_CLEAR(t->version);
  Py_TYPE(o)->tp_free(o);
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
  leave_list(t);
  t->apart = true;
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

}  // namespace

PyTypeObject version_type = [] {
  PyTypeObject t = make_type("gradsmith._cpu.Version", sizeof(Version), version_dealloc,
                             "Counts the changes of a piece of memory.");
  t.tp_as_sequence = &version_sequence;
  return t;
}();
PyTypeObject tensor_type = make_tensor_type();

Tensor* tensor_wrap(PyObject* data, PyObject* k) {
  Tensor* t = (Tensor*)tensor_new((PyTypeObject*)tensor_class, nullptr, nullptr);
  if (!t) return nullptr;
  Py_XINCREF(data);
  t->data = data;
  Py_XINCREF(k);
  t->k = k;
  return t;
}

void plain_view(Tensor* t) {
  if (t->apart) return;
  t->next = t->version->plain;
  if (t->next) t->next->link = &t->next;
  t->link = &t->version->plain;
  t->version->plain = t;
}

void plain_views_changed(Tensor* t) {
  while (Tensor* v = t->version->plain) {
    leave_list(v);
    if (v == t || v->node || v->requires_grad) continue;
    v->requires_grad = true;  // with a node older than the memory, which tensor_edge refuses
    Py_XINCREF(t->node);
    v->node = t->node;
  }
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

bool set_tensor_class(PyObject* cls) {
  if (!PyType_Check(cls) || !PyType_IsSubtype((PyTypeObject*)cls, &tensor_type)) {
    PyErr_SetString(PyExc_TypeError, "a subclass of TensorBase is needed");
    return false;
  }
  Py_INCREF(cls);
  Py_XSETREF(tensor_class, cls);
  return true;
}

}  // namespace gs
