// Functions of the module, called without a dispatcher.
//
// pybind11 resolves overloads and converts through type-erased casters, some 0.4 us a call: as much
// as the arithmetic of a small op. Here a C++ function becomes a METH_FASTCALL builtin whose
// arguments are converted in place. The interface is pybind11's: wrap the module and use def().
//
//   void bind_family(py::module_& module) {
//     Functions m(module);
//     m.def("name", [](py::handle x, double p) { ... }, py::arg("x"), py::arg("p") = 0.5, "Doc.");
//   }
//
// Arguments: py::handle and kin, double, bool, integers, std::string, std::vector<int64_t>.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace gs {

struct Function {
  static constexpr int kMaxArguments = 16;
  std::string name, doc;
  int count = 0;                           // arguments
  PyObject* names[kMaxArguments] = {};     // interned
  PyObject* defaults[kMaxArguments] = {};  // nullptr: required
  PyObject* (*invoke)(const Function&, PyObject* const*) = nullptr;
  void* target = nullptr;  // the C++ callable
  PyMethodDef method = {};

  void add(const py::arg& a);
  void add(const py::arg_v& a);
  void add(const char* text) { doc = text; }
  // TypeError: argument i must be `expected`.
  [[noreturn]] void mismatch(int i, const char* expected, PyObject* got) const;
};

// Conversion of argument i.
double as_double(const Function& f, int i, PyObject* o);
int64_t as_int(const Function& f, int i, PyObject* o, int64_t low, int64_t high);
uint64_t as_unsigned(const Function& f, int i, PyObject* o);
bool as_bool(const Function& f, int i, PyObject* o);

template <class T>
struct Argument {
  static T get(const Function& f, int i, PyObject* o) {
    if constexpr (std::is_same<T, py::handle>::value) {
      return py::handle(o);
    } else if constexpr (std::is_base_of<py::object, T>::value) {
      if (!py::isinstance<T>(py::handle(o))) f.mismatch(i, py::type_id<T>().c_str(), o);
      return py::reinterpret_borrow<T>(o);
    } else if constexpr (std::is_same<T, bool>::value) {
      return as_bool(f, i, o);
    } else if constexpr (std::is_floating_point<T>::value) {
      return (T)as_double(f, i, o);
    } else if constexpr (std::is_same<T, uint64_t>::value) {
      return as_unsigned(f, i, o);
    } else if constexpr (std::is_integral<T>::value) {
      return (T)as_int(f, i, o, std::numeric_limits<T>::min(), std::numeric_limits<T>::max());
    } else {
      try {
        return py::cast<T>(py::handle(o));
      } catch (const py::cast_error&) {
        f.mismatch(i, py::type_id<T>().c_str(), o);
      }
    }
  }
};

template <class F>
struct Signature : Signature<decltype(&F::operator())> {};
template <class R, class... A>
struct Signature<R (*)(A...)> {
  using Result = R;
  using Arguments = std::tuple<std::decay_t<A>...>;
};
template <class C, class R, class... A>
struct Signature<R (C::*)(A...) const> : Signature<R (*)(A...)> {};

template <class F, size_t... I>
PyObject* invoke(const Function& f, PyObject* const* args, std::index_sequence<I...>) {
  using S = Signature<F>;
  using A = typename S::Arguments;
  const F& fn = *(const F*)f.target;
  (void)args;
  if constexpr (std::is_void<typename S::Result>::value) {
    fn(Argument<std::tuple_element_t<I, A>>::get(f, (int)I, args[I])...);
    Py_RETURN_NONE;
  } else if constexpr (std::is_base_of<py::object, typename S::Result>::value) {
    return fn(Argument<std::tuple_element_t<I, A>>::get(f, (int)I, args[I])...).release().ptr();
  } else {
    return py::cast(fn(Argument<std::tuple_element_t<I, A>>::get(f, (int)I, args[I])...))
        .release()
        .ptr();
  }
}

class Functions {
 public:
  explicit Functions(py::module_& m) : module_(m) {}

  template <class F, class... Extra>
  void def(const char* name, F&& fn, const Extra&... extra) {
    using T = std::decay_t<F>;
    using A = typename Signature<T>::Arguments;
    constexpr size_t n = std::tuple_size<A>::value;
    static_assert(n <= Function::kMaxArguments, "raise kMaxArguments");
    auto* f = new Function;  // lives as long as the module: to the end of the process
    f->name = name;
    f->target = new T(std::forward<F>(fn));
    f->invoke = [](const Function& self, PyObject* const* args) {
      return gs::invoke<T>(self, args, std::make_index_sequence<n>());
    };
    (f->add(extra), ...);
    finish(f, (int)n);
  }
  py::detail::str_attr_accessor attr(const char* name) { return module_.attr(name); }

 private:
  void finish(Function* f, int n);
  py::module_& module_;
};

// Turns the C++ exception in flight into a Python one; for functions that Python calls directly.
void raise_current();

// Other Python threads run while it lives. pybind11's gil_scoped_release would end the process
// where the interpreter is going (a daemon thread in the middle of a kernel): Python up to 3.13
// ends such a thread by unwinding its stack, which may not leave a destructor. Here the thread
// sleeps, as from 3.14 on.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil();
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace gs
