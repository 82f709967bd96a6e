// The rest of the autograd core: the call of a module, the rows of an optimizer, counts of changes;
// and the binding of all of it. The classes gs.Tensor and Node are Python subclasses of
// tensor.cpp's and node.cpp's; what is not on the path of every op is written there.
#include "autograd_types.h"

namespace gs {

AutogradNames* autograd_names = nullptr;

PyTypeObject make_type(const char* name, size_t size, destructor dealloc, const char* doc) {
  const PyVarObject head[] = {PyVarObject_HEAD_INIT(nullptr, 0)};
  PyTypeObject t = {};
  t.ob_base = head[0];
  t.tp_name = name;
  t.tp_basicsize = (Py_ssize_t)size;
  t.tp_dealloc = dealloc;
  t.tp_flags = Py_TPFLAGS_DEFAULT;
  t.tp_doc = doc;
  return t;
}

PyObject* or_none(void* o) {
  PyObject* r = o ? (PyObject*)o : Py_None;
  Py_INCREF(r);
  return r;
}

// 1: both are arrays of one shape, 0: not, -1: error
int same_shape(PyObject* a, PyObject* b) {
  if (is_ndarray(a) && is_ndarray(b)) {
    auto *x = py::detail::array_proxy(a), *y = py::detail::array_proxy(b);
    return x->nd == y->nd &&
           (x->nd == 0 || memcmp(x->dimensions, y->dimensions, sizeof(Py_ssize_t) * x->nd) == 0);
  }
  PyObject *s = PyObject_GetAttr(a, autograd_names->shape),
           *t = s ? PyObject_GetAttr(b, autograd_names->shape) : s;
  int r = t ? PyObject_RichCompareBool(s, t, Py_EQ) : -1;
  Py_XDECREF(s);
  Py_XDECREF(t);
  return r;
}

namespace {

// _rows_flat(rows, params): parameter, gradient and states of each row in one list, or None.
PyObject* rows_flat(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 2 || !PyList_Check(args[0]) || !PyList_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "_rows_flat: needs two lists");
    return nullptr;
  }
  std::vector<PyObject*> arrays;
  if (!rows_arrays(args[0], args[1], &arrays)) Py_RETURN_NONE;
  PyObject* flat = PyList_New((Py_ssize_t)arrays.size());
  for (size_t i = 0; flat && i < arrays.size(); ++i) {
    Py_INCREF(arrays[i]);
    PyList_SET_ITEM(flat, (Py_ssize_t)i, arrays[i]);
  }
  return flat;
}

// _rows_done(rows, numbers): the state of each row takes the numbers; its parameter has changed.
PyObject* rows_done(PyObject*, PyObject* const* args, Py_ssize_t n) {
  if (n != 2 || !PyList_Check(args[0]) || !PyDict_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "_rows_done: needs a list and a dict");
    return nullptr;
  }
  try {
    rows_changed(args[0], args[1]);
  } catch (...) {
    raise_current();
    return nullptr;
  }
  Py_RETURN_NONE;
}

// bump(*tensors): counts a change of the memory of each Tensor; None is passed over.
PyObject* bump(PyObject*, PyObject* const* args, Py_ssize_t n) {
  for (Py_ssize_t i = 0; i < n; ++i) {
    if (is_tensor(args[i])) {
      ++((Tensor*)args[i])->version->value;
    } else if (args[i] != Py_None) {
      PyErr_SetString(PyExc_TypeError, "bump: a Tensor or None is needed");
      return nullptr;
    }
  }
  Py_RETURN_NONE;
}

// 1: the dict under this name is not empty, 0: it is, -1: error. own: the module's __dict__
int has_entries(PyObject* module, PyObject* own, PyObject* name) {
  PyObject* d = PyDict_GetItemWithError(own, name);
  if (d) {
    if (PyDict_CheckExact(d)) return PyDict_GET_SIZE(d) > 0;
    Py_INCREF(d);
  } else {
    if (PyErr_Occurred()) return -1;
    d = PyObject_GetAttr(module, name);
  }
  if (!d) return -1;
  int r = PyDict_Check(d) ? PyDict_GET_SIZE(d) > 0 : PyObject_IsTrue(d);
  Py_DECREF(d);
  return r;
}

// nn.Module.__call__: forward, or _call_hooked where there are hooks.
PyObject* module_call(PyObject* self, PyObject* args, PyObject* keywords) {
  PyObject* own = PyObject_GenericGetDict(self, nullptr);
  if (!own) return nullptr;
  int hooks = has_entries(self, own, autograd_names->hooks);
  if (hooks == 0) hooks = has_entries(self, own, autograd_names->pre_hooks);
  Py_DECREF(own);
  if (hooks < 0) {
    if (PyErr_ExceptionMatches(PyExc_AttributeError))
      PyErr_Format(PyExc_AttributeError, "%.100s: call super().__init__() in __init__",
                   Py_TYPE(self)->tp_name);
    return nullptr;
  }
  PyObject* name = hooks ? autograd_names->call_hooked : autograd_names->forward;
  Py_ssize_t n = PyTuple_GET_SIZE(args);
  PyObject* few[8];
  if (n < 8 && (!keywords || PyDict_GET_SIZE(keywords) == 0)) {
    few[0] = self;
    for (Py_ssize_t i = 0; i < n; ++i) few[i + 1] = PyTuple_GET_ITEM(args, i);
    return PyObject_VectorcallMethod(name, few, (size_t)n + 1, nullptr);
  }
  PyObject* method = PyObject_GetAttr(self, name);
  if (!method) return nullptr;
  PyObject* r = PyObject_Call(method, args, keywords);
  Py_DECREF(method);
  return r;
}

PyObject* set_class(PyObject*, PyObject* cls) {
  if (!set_tensor_class(cls)) return nullptr;
  Py_RETURN_NONE;
}

PyMethodDef autograd_functions[] = {
    {"_rows_flat", GS_FAST(rows_flat), METH_FASTCALL,
     "The arrays of an optimizer's rows in one list; None when something is another now."},
    {"_rows_done", GS_FAST(rows_done), METH_FASTCALL,
     "Writes the numbers of a step into its rows."},
    {"bump", GS_FAST(bump), METH_FASTCALL,
     "bump($module, *tensors)\n--\n\nCounts a change in place of each Tensor; None is passed "
     "over."},
    {"_set_tensor_class", set_class, METH_O, "The class of the Tensors that ops return."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

PyTypeObject module_type = [] {
  PyTypeObject t = make_type("gradsmith._cpu.ModuleBase", sizeof(PyObject), nullptr,
                             "The call of a Module. Use gradsmith.nn.Module.");
  t.tp_flags |= Py_TPFLAGS_BASETYPE;
  t.tp_call = module_call;
  t.tp_new = PyType_GenericNew;
  return t;
}();

bool rows_arrays(PyObject* rows, PyObject* params, std::vector<PyObject*>* arrays) {
  const Py_ssize_t count = PyList_GET_SIZE(rows);
  if (count == 0 || count != PyList_GET_SIZE(params)) return false;
  arrays->reserve((size_t)count * 4);
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject *row = PyList_GET_ITEM(rows, i), *p = PyList_GET_ITEM(params, i);
    if (!PyTuple_Check(row) || PyTuple_GET_SIZE(row) < 4 || !is_tensor(p) ||
        !PyList_Check(PyTuple_GET_ITEM(row, 3)) || PyTuple_GET_ITEM(row, 0) != p)
      return false;
    PyObject *data = ((Tensor*)p)->data, *grad = ((Tensor*)p)->grad;
    if (data != PyTuple_GET_ITEM(row, 1) || !is_tensor(grad)) return false;
    PyObject* g = ((Tensor*)grad)->data;
    if (!data || !g || !is_ndarray(data) || !is_ndarray(g) ||
        py::detail::array_proxy(data)->descr != py::detail::array_proxy(g)->descr ||
        same_shape(data, g) != 1)
      return false;
    arrays->push_back(data);
    arrays->push_back(g);
    PyObject* held = PyTuple_GET_ITEM(row, 3);
    for (Py_ssize_t j = 0; j < PyList_GET_SIZE(held); ++j)
      arrays->push_back(PyList_GET_ITEM(held, j));
  }
  return true;
}

void rows_changed(PyObject* rows, PyObject* numbers) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(rows); ++i) {
    PyObject* row = PyList_GET_ITEM(rows, i);
    if (!PyTuple_Check(row) || PyTuple_GET_SIZE(row) < 4 || !is_tensor(PyTuple_GET_ITEM(row, 0)))
      throw py::type_error("_rows_done: not a row");
    if (PyDict_Update(PyTuple_GET_ITEM(row, 2), numbers) < 0) throw py::error_already_set();
    ++((Tensor*)PyTuple_GET_ITEM(row, 0))->version->value;
  }
}

void bind_autograd(py::module_& m) {
  autograd_names = new AutogradNames;
  if (PyErr_Occurred()) throw py::error_already_set();
  struct {
    const char* name;
    PyTypeObject* type;
  } types[] = {{"Version", &version_type},
               {"TensorBase", &tensor_type},
               {"NodeBase", &node_type},
               {"Accumulate", &accumulator_type},
               {"ModuleBase", &module_type}};
  for (auto& t : types) {
    if (PyType_Ready(t.type) < 0) throw py::error_already_set();
    m.attr(t.name) = py::reinterpret_borrow<py::object>((PyObject*)t.type);
  }
  set_tensor_class((PyObject*)&tensor_type);
  if (PyModule_AddFunctions(m.ptr(), autograd_functions) < 0) throw py::error_already_set();
  bind_recording(m);
  bind_engine(m);
}

}  // namespace gs
