// Bindings of the bfloat16 family. bfloat16 arrays travel as uint16, NumPy having no such dtype.
#include "bfloat16.h"

#include "array.h"

namespace gs {

namespace bfloat16_bindings {
const Kernel to_bfloat16("float32_to_bfloat16"), from_bfloat16("bfloat16_to_float32");
}

void bind_bfloat16(py::module_& module) {
  using namespace bfloat16_bindings;
  Functions m(module);
  m.def(
      "autocast", [] { return autocast(); },
      "Whether products that this thread starts round float32 operands to bfloat16.");
  m.def(
      "set_autocast",
      [](bool on) {
        bool before = autocast();
        autocast() = on;
        return before;
      },
      py::arg("on"), "Sets it for this thread; returns what it was.");
  m.def(
      "float32_to_bfloat16",
      [](py::handle x) {
        Array a = array_dense(x, "float32_to_bfloat16", "x");
        if (a.dtype != kF32)
          type_error("float32_to_bfloat16",
                     std::string("x must be float32, got ") + dtype_name(a.dtype));
        Array y = array_new(kBF16, a.ndim, a.shape);
        run(to_bfloat16, kF32, Bfloat16Params{a.size}, {in(a), out(y)});
        return result(y);
      },
      py::arg("x"), "Rounds to nearest even; the result is a uint16 array of bit patterns.");
  m.def(
      "bfloat16_to_float32",
      [](py::handle x) {
        Array a = array_dense(x, "bfloat16_to_float32", "x");
        if (a.dtype != kBF16)
          type_error("bfloat16_to_float32",
                     std::string("x must be uint16, got ") + dtype_name(a.dtype));
        Array y = array_new(kF32, a.ndim, a.shape);
        run(from_bfloat16, kF32, Bfloat16Params{a.size}, {in(a), out(y)});
        return result(y);
      },
      py::arg("x"), "Exact; x is a uint16 array of bit patterns.");
}

}  // namespace gs
