// Bindings of the elementwise family.
#include "array.h"

namespace gs {

namespace {

DType dtype_from(const std::string& name, const char* op) {
  for (int t = 0; t < kBF16; ++t)
    if (name == dtype_name((DType)t)) return (DType)t;
  type_error(op, "unknown dtype " + name);
}

}  // namespace

void bind_elementwise(py::module_& m) {
  m.def(
      "contiguous",
      [](py::handle x) {
        Array a = array_in(x, "contiguous", "x");
        if (a.contiguous) return a.object;
        Array c = dense(a);
        return result(c);
      },
      py::arg("x"), "x itself when it is C-contiguous, else a copy that is.");
  m.def(
      "copy",
      [](py::handle x) {
        Array a = array_in(x, "copy", "x"), c = array_like(a);
        copy_into(a, c);
        return result(c);
      },
      py::arg("x"), "A fresh C-contiguous copy.");
  m.def(
      "copy_",
      [](py::handle dst, py::handle src) {
        Array c = array_out(dst, "copy_", "dst"), a = array_in(src, "copy_", "src");
        check_same_shape(c, "dst", a, "src", "copy_");
        copy_into(a, c);
      },
      py::arg("dst"), py::arg("src"), "dst[...] = src, dtypes converted.");
  m.def(
      "cast",
      [](py::handle x, const std::string& dtype) {
        Array a = array_in(x, "cast", "x"),
              c = array_new(dtype_from(dtype, "cast"), a.ndim, a.shape);
        copy_into(a, c);
        return result(c);
      },
      py::arg("x"), py::arg("dtype"));
  m.def(
      "empty",
      [](const std::vector<int64_t>& shape, const std::string& dtype) {
        if (shape.size() > kMaxDims) value_error("empty", "at most 8 dimensions are supported");
        for (int64_t s : shape)
          if (s < 0)
            value_error("empty",
                        "negative dimension in " + shape_text(shape.data(), (int)shape.size()));
        Array c = array_new(dtype_from(dtype, "empty"), (int)shape.size(), shape.data());
        return result(c);
      },
      py::arg("shape"), py::arg("dtype") = "float32",
      "A fresh array on pooled memory, not zeroed.");
}

}  // namespace gs
