#include "array.h"

#include "../graph/graph.h"
#include "elementwise.h"

namespace gs {

void recording_sees(PyObject* array);  // capture.cpp

namespace {

const Kernel copy_kernel("copy");

struct TypeInfo {
  const char* name;
  int64_t size;
};
const TypeInfo types[kDTypeCount] = {{"float32", 4}, {"float64", 8}, {"int32", 4}, {"int64", 8},
                                     {"uint8", 1},   {"bool", 1},    {"uint16", 2}};

// NumPy type number -> DType, or -1
int from_type_num(int num) {
  using api = py::detail::npy_api;
  switch (num) {
    case api::NPY_FLOAT_:
      return kF32;
    case api::NPY_DOUBLE_:
      return kF64;
    case api::NPY_INT_:
      return kI32;
    case api::NPY_LONG_:
      return sizeof(long) == 8 ? kI64 : kI32;
    case api::NPY_LONGLONG_:
      return kI64;
    case api::NPY_UBYTE_:
      return kU8;
    case api::NPY_USHORT_:
      return kBF16;
    case api::NPY_BOOL_:
      return kBool;
    default:
      return -1;
  }
}

// Owner of a block of the pool, the base of the array that lies in it.
struct Block {
  PyObject_HEAD void* p;
  size_t bytes;
};

// Blocks come and go with every op, so a few dead ones are kept.
constexpr int kSpareBlocks = 64;
Block* spare_blocks[kSpareBlocks];
int spare_block_count = 0;

void block_dealloc(PyObject* o) {
  Block* b = (Block*)o;
  pool_free(b->p, b->bytes);
  if (spare_block_count < kSpareBlocks)
    spare_blocks[spare_block_count++] = b;
  else
    PyObject_Free(b);
}

PyTypeObject block_type = [] {
  const PyVarObject head[] = {PyVarObject_HEAD_INIT(nullptr, 0)};
  PyTypeObject t = {};
  t.ob_base = head[0];
  t.tp_name = "gradsmith._cpu.Block";
  t.tp_basicsize = sizeof(Block);
  t.tp_dealloc = block_dealloc;
  t.tp_flags = Py_TPFLAGS_DEFAULT;
  t.tp_doc = "Memory of the pool under an array.";
  return t;
}();

// Takes over `p`, also when it fails.
PyObject* block_new(void* p, size_t bytes) {
  static const bool ready = PyType_Ready(&block_type) == 0;
  Block* b = !ready                  ? nullptr
             : spare_block_count > 0 ? spare_blocks[--spare_block_count]
                                     : (Block*)PyObject_Malloc(sizeof(Block));
  if (!b) {
    pool_free(p, bytes);
    if (!PyErr_Occurred()) PyErr_NoMemory();
    throw py::error_already_set();
  }
  b->p = p;
  b->bytes = bytes;
  return PyObject_Init((PyObject*)b, &block_type);
}

std::string type_of(py::handle h) { return Py_TYPE(h.ptr())->tp_name; }

}  // namespace

const char* dtype_name(DType t) { return types[t].name; }
int64_t dtype_size(DType t) { return types[t].size; }

PyObject* dtype_object(DType t) {
  static PyObject* objects[kDTypeCount] = {};
  if (!objects[t]) objects[t] = py::dtype(types[t].name).release().ptr();
  return objects[t];
}

DType dtype_from(py::handle h, const char* op) {
  if (h.is_none()) return kF32;
  int t = -1;
  if (PyUnicode_Check(h.ptr())) {
    for (int i = 0; i < kBF16 && t < 0; ++i)
      if (PyUnicode_CompareWithASCIIString(h.ptr(), types[i].name) == 0) t = i;
  } else if (py::isinstance<py::dtype>(h)) {
    const auto* d = py::detail::array_descriptor_proxy(h.ptr());
    t = d->byteorder == '>' ? -1 : from_type_num(d->type_num);
  } else {
    type_error(op, "dtype must be a NumPy dtype or its name, got " + type_of(h));
  }
  if (t < 0 || t >= kBF16) type_error(op, "unknown dtype " + std::string(py::str(h)));
  return (DType)t;
}

std::string shape_text(const int64_t* shape, int ndim) {
  std::string s = "(";
  for (int i = 0; i < ndim; ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + (ndim == 1 ? ",)" : ")");
}
std::string Array::shape_text() const { return gs::shape_text(shape, ndim); }

void value_error(const char* op, const std::string& what) {
  throw py::value_error(std::string(op) + ": " + what);
}
void type_error(const char* op, const std::string& what) {
  throw py::type_error(std::string(op) + ": " + what);
}

Array array_in(py::handle h, const char* op, const char* name) {
  const PyObject* ndarray = (PyObject*)py::detail::npy_api::get().PyArray_Type_;
  if (!h || ((PyObject*)Py_TYPE(h.ptr()) != ndarray && !py::isinstance<py::array>(h)))
    type_error(op,
               std::string(name) + " must be a NumPy array, got " + (h ? type_of(h) : "nothing"));
  Array a;
  a.object = py::reinterpret_borrow<py::object>(h);
  const auto* proxy = py::detail::array_proxy(h.ptr());
  const auto* descr = py::detail::array_descriptor_proxy(proxy->descr);
  int t = from_type_num(descr->type_num);
  if (t < 0 || descr->byteorder == '>')
    type_error(
        op,
        std::string(name) + " has dtype " + std::string(py::str(py::handle(proxy->descr))) +
            "; float32, float64, int32, int64, uint8 and bool (native byte order) are supported. "
            "Convert it with .astype(np.float32)");
  a.dtype = (DType)t;
  a.ndim = proxy->nd;
  if (a.ndim > kMaxDims)
    value_error(op, std::string(name) + " has " + std::to_string(a.ndim) + " dimensions; at most " +
                        std::to_string(kMaxDims) + " are supported");
  int64_t item = types[t].size, expect = 1;
  a.size = 1;
  a.contiguous = true;
  for (int i = a.ndim - 1; i >= 0; --i) {
    a.shape[i] = proxy->dimensions[i];
    int64_t bytes = proxy->strides[i];
    if (bytes % item != 0)
      value_error(op, std::string(name) +
                          " has strides that are not multiples of its element size; "
                          "pass np.ascontiguousarray(" +
                          name + ")");
    a.strides[i] = bytes / item;
    if (a.shape[i] != 1 && a.strides[i] != expect) a.contiguous = false;
    expect *= a.shape[i];
    a.size *= a.shape[i];
  }
  if (a.size == 0) a.contiguous = true;
  a.data = (char*)proxy->data;
  if (recorder) recording_sees(h.ptr());
  if ((uintptr_t)a.data % (uintptr_t)item != 0)
    value_error(
        op, std::string(name) + " is not aligned to its element size; pass " + name + ".copy()");
  return a;
}

Array array_optional(py::handle h, const char* op, const char* name) {
  if (!h || h.is_none()) return Array();
  return array_in(h, op, name);
}

void copy_into(const Array& src, const Array& dst) {
  CopyParams p{};
  p.from = src.dtype;
  int64_t strides[2][kMaxDims];
  for (int i = 0; i < src.ndim; ++i) {
    p.shape[i] = src.shape[i];
    strides[0][i] = src.strides[i];
    strides[1][i] = dst.strides[i];
  }
  p.ndim = coalesce(src.ndim, p.shape, 2, strides);
  for (int i = 0; i < p.ndim; ++i) {
    p.in_strides[i] = strides[0][i];
    p.out_strides[i] = strides[1][i];
  }
  run(copy_kernel, dst.dtype, p, {in(src), out(dst)});
}

Array dense(const Array& a) {
  if (a.contiguous) return a;
  Array c = array_like(a);
  copy_into(a, c);
  return c;
}

Array array_dense(py::handle h, const char* op, const char* name) {
  return dense(array_in(h, op, name));
}

Array array_out(py::handle h, const char* op, const char* name) {
  Array a = array_in(h, op, name);
  if (!(py::detail::array_proxy(h.ptr())->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_))
    value_error(op, std::string(name) +
                        " is read-only and would be written in place; pass a writeable copy");
  return a;
}

void check_float(const Array& a, const char* op, const char* name) {
  if (!a.is_float())
    type_error(op, std::string(name) + " has dtype " + dtype_name(a.dtype) +
                       "; float32 or float64 is needed. Convert it with .astype(np.float32)");
}

void check_same_dtype(const Array& a, const char* a_name, const Array& b, const char* b_name,
                      const char* op) {
  if (a.dtype != b.dtype)
    type_error(op, std::string(a_name) + " is " + dtype_name(a.dtype) + " and " + b_name + " is " +
                       dtype_name(b.dtype) +
                       "; both must have one dtype. Convert one with .astype(...)");
}

void check_ndim(const Array& a, int ndim, const char* op, const char* name, const char* layout) {
  if (a.ndim != ndim)
    value_error(op, std::string(name) + " has shape " + a.shape_text() + "; expected " +
                        std::to_string(ndim) + " dimensions " + layout);
}

bool same_shape(const Array& a, const Array& b) {
  if (a.ndim != b.ndim) return false;
  for (int i = 0; i < a.ndim; ++i)
    if (a.shape[i] != b.shape[i]) return false;
  return true;
}

void check_same_shape(const Array& a, const char* a_name, const Array& b, const char* b_name,
                      const char* op) {
  if (!same_shape(a, b))
    value_error(op, std::string(a_name) + " has shape " + a.shape_text() + " and " + b_name +
                        " has shape " + b.shape_text() + "; they must be equal");
}

Array array_new(DType dtype, int ndim, const int64_t* shape) {
  Array a;
  a.dtype = dtype;
  a.ndim = ndim;
  a.size = 1;
  a.contiguous = true;
  Py_intptr_t dims[kMaxDims];
  int64_t item = types[dtype].size;
  bool overflow = false;
  for (int i = ndim - 1; i >= 0; --i) {
    a.shape[i] = shape[i];
    a.strides[i] = a.size;
    dims[i] = (Py_intptr_t)shape[i];
    if (shape[i] < 0 || (shape[i] > 0 && a.size > kMostElements / shape[i])) overflow = true;
    a.size *= overflow ? 1 : shape[i];
  }
  auto& api = py::detail::npy_api::get();
  PyObject* descr = dtype_object(dtype);
  size_t bytes = (size_t)(a.size * item);
  if (overflow) {
    PyErr_Format(PyExc_MemoryError, "an array of shape %s does not fit into memory",
                 shape_text(shape, ndim).c_str());
    throw py::error_already_set();
  }
  if (bytes <= 256 && !recorder) {
    // NumPy's own cache of small blocks is faster
    Py_INCREF(descr);
    PyObject* o = api.PyArray_NewFromDescr_(api.PyArray_Type_, descr, ndim, dims, nullptr, nullptr,
                                            0, nullptr);
    if (!o) throw py::error_already_set();
    a.object = py::reinterpret_steal<py::object>(o);
    a.data = (char*)py::detail::array_proxy(o)->data;
    return a;
  }
  void* p = pool_alloc(bytes);
  if (!p) {
    PyErr_Format(PyExc_MemoryError, "could not allocate %zu bytes for an array of shape %s", bytes,
                 shape_text(shape, ndim).c_str());
    throw py::error_already_set();
  }
  PyObject* block = block_new(p, bytes);
  Py_INCREF(descr);
  PyObject* o = api.PyArray_NewFromDescr_(api.PyArray_Type_, descr, ndim, dims, nullptr, p,
                                          py::detail::npy_api::NPY_ARRAY_WRITEABLE_ |
                                              py::detail::npy_api::NPY_ARRAY_ALIGNED_ |
                                              py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_,
                                          nullptr);
  if (!o) {
    Py_DECREF(block);
    throw py::error_already_set();
  }
  py::detail::array_proxy(o)->base = block;  // as PyArray_SetBaseObject, for what is no array
  a.object = py::reinterpret_steal<py::object>(o);
  a.data = (char*)p;
  return a;
}

Array array_new(DType dtype, std::initializer_list<int64_t> shape) {
  return array_new(dtype, (int)shape.size(), shape.begin());
}

void run_kernel(const Kernel& kernel, DType dtype, const void* params, size_t params_size,
                const Buffer* buffers, int count) {
  const KernelEntry* entry = kernel.get(dtype);
  if (!entry)
    type_error(kernel.name, std::string("no kernel for dtype ") + dtype_name(dtype) +
                                "; float32 and float64 are supported");
  Launch call{entry, params, params_size, buffers, count, Plan{1, 0, 0}};
  entry->plan(params, &call.plan);
  if (call.plan.work > 5000) {
    WithoutGil release;
    launch(call);
  } else {
    launch(call);
  }
}

int coalesce(int ndim, int64_t* shape, int operands, int64_t (*strides)[kMaxDims]) {
  int n = 0;
  for (int i = 0; i < ndim; ++i) {
    if (shape[i] == 1) continue;
    bool merge = n > 0;
    for (int k = 0; k < operands && merge; ++k)
      if (strides[k][n - 1] != strides[k][i] * shape[i]) merge = false;
    if (merge) {
      shape[n - 1] *= shape[i];
      for (int k = 0; k < operands; ++k) strides[k][n - 1] = strides[k][i];
    } else {
      shape[n] = shape[i];
      for (int k = 0; k < operands; ++k) strides[k][n] = strides[k][i];
      ++n;
    }
  }
  if (n == 0) {
    shape[0] = 1;
    for (int k = 0; k < operands; ++k) strides[k][0] = 1;
    n = 1;
  }
  return n;
}

}  // namespace gs
