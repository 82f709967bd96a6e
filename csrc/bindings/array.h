// Arrays as the bindings see them: NumPy arrays, checked by hand (no implicit conversion, no copies
// made behind the caller's back), and fresh arrays on memory of the pool.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "functions.h"
#include "runtime.h"

namespace py = pybind11;

namespace gs {

struct Recorder;                         // csrc/graph/graph.h
extern thread_local Recorder* recorder;  // of this thread, or nullptr

const char* dtype_name(DType t);
int64_t dtype_size(DType t);
PyObject* dtype_object(DType t);  // borrowed numpy.dtype
// The dtype of an argument: a numpy.dtype, its name, or None for float32; TypeError for others.
DType dtype_from(py::handle h, const char* op);

// No array is larger: what a size is made of may be added and multiplied by an element's size.
constexpr int64_t kMostElements = (int64_t)1 << 46;

// A view of an array argument; keeps the Python object alive.
struct Array {
  py::object object;
  char* data = nullptr;
  DType dtype = kF32;
  int ndim = 0;
  int64_t shape[kMaxDims];
  int64_t strides[kMaxDims];  // in elements
  int64_t size = 0;           // number of elements
  bool contiguous = false;    // C order

  bool present() const { return data != nullptr || object.ptr() != nullptr; }
  int64_t dim(int i) const { return shape[i < 0 ? ndim + i : i]; }
  int64_t nbytes() const { return size * dtype_size(dtype); }
  bool is_float() const { return dtype == kF32 || dtype == kF64; }
  std::string shape_text() const;
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
};

// What went wrong in `op`, with the sentence `what`. Raised before anything is changed.
[[noreturn]] void value_error(const char* op, const std::string& what);
[[noreturn]] void type_error(const char* op, const std::string& what);
std::string shape_text(const int64_t* shape, int ndim);

// Reads an argument: any strides that NumPy views give; TypeError when it is not an array of a
// known dtype.
Array array_in(py::handle h, const char* op, const char* name);
// As array_in, but None gives an absent array.
Array array_optional(py::handle h, const char* op, const char* name);
// As array_in and then, where the elements are not in C order, a contiguous copy.
Array array_dense(py::handle h, const char* op, const char* name);
Array dense(const Array& a);
// dst[...] = src over any strides, dtypes converted; shapes must be equal.
void copy_into(const Array& src, const Array& dst);
// Host code that looks at values: raises through `raise` where `ok` says no. A captured step makes
// the same check at each replay. args: what ok and raise need to know beside the data.
typedef bool (*CheckFn)(const void* data, const int64_t* args);
typedef void (*RaiseFn)(const Array& a, const int64_t* args);
void check_values(const Array& a, CheckFn ok, RaiseFn raise, std::initializer_list<int64_t> args);

// An array that the kernel writes in place: writeable, else ValueError.
Array array_out(py::handle h, const char* op, const char* name);
// Checks: float32 or float64; same dtype as another; a given shape.
void check_float(const Array& a, const char* op, const char* name);
void check_same_dtype(const Array& a, const char* a_name, const Array& b, const char* b_name,
                      const char* op);
void check_ndim(const Array& a, int ndim, const char* op, const char* name, const char* layout);
void check_same_shape(const Array& a, const char* a_name, const Array& b, const char* b_name,
                      const char* op);
bool same_shape(const Array& a, const Array& b);

// A fresh C-contiguous array, not zeroed; MemoryError when memory is out.
Array array_new(DType dtype, int ndim, const int64_t* shape);
Array array_new(DType dtype, std::initializer_list<int64_t> shape);
inline Array array_like(const Array& a) { return array_new(a.dtype, a.ndim, a.shape); }
// What a binding returns.
inline py::object result(Array& a) { return std::move(a.object); }

inline Buffer in(const Array& a) { return Buffer{a.data, 0, kRead}; }
inline Buffer out(const Array& a) { return Buffer{a.data, 0, kWrite}; }
inline Buffer inout(const Array& a) { return Buffer{a.data, 0, kReadWrite}; }

// Plans and launches a kernel; the GIL is released when the work is worth it. TypeError when the
// kernel does not know the dtype.
void run_kernel(const Kernel& kernel, DType dtype, const void* params, size_t params_size,
                const Buffer* buffers, int count);
template <class P>
void run(const Kernel& kernel, DType dtype, const P& params,
         std::initializer_list<Buffer> buffers) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
  if (recorder) {  // recordings are compared byte by byte
    P clean = params;
    __builtin_clear_padding(&clean);
    run_kernel(kernel, dtype, &clean, sizeof(P), buffers.begin(), (int)buffers.size());
    return;
  }
#endif
#endif
  run_kernel(kernel, dtype, &params, sizeof(P), buffers.begin(), (int)buffers.size());
}

// Merges neighbouring dimensions that all operands step through alike and drops dimensions of
// size 1. shape: ndim sizes; strides[k]: strides of operand k. Returns the new ndim.
int coalesce(int ndim, int64_t* shape, int operands, int64_t (*strides)[kMaxDims]);

}  // namespace gs
