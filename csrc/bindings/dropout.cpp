// Bindings of the dropout family.
#include "dropout.h"

#include <cmath>

#include "array.h"

namespace gs {

namespace dropout_bindings {

const Kernel each_kernel("dropout"), channels_kernel("dropout_channels"), philox_kernel("philox");

DropoutParams make(int64_t n, double p, uint64_t seed, uint64_t counter, double a, double b,
                   double c) {
  if (!(p >= 0 && p <= 1)) value_error("dropout", "p must lie in [0, 1], got " + std::to_string(p));
  double t = std::nearbyint(p * 4294967296.0);
  return DropoutParams{
      n, seed, Counter{counter, -1}, t > 4294967295.0 ? 4294967295u : (uint32_t)t, p == 1, a, b, c};
}

// (outer, inner, channels) of x: channels the last axis, inner the `spatial` axes before it
DropoutChannelsParams make_channels(const Array& x, int spatial, const DropoutParams& each) {
  if (x.ndim < spatial + 1)
    value_error("dropout", "input has shape " + x.shape_text() +
                               "; channel dropout needs at least " + std::to_string(spatial + 1) +
                               " axes, channels last");
  DropoutChannelsParams q{each, 1, 1, x.dim(-1)};
  for (int i = 0; i < x.ndim - 1; ++i) (i < x.ndim - 1 - spatial ? q.outer : q.inner) *= x.shape[i];
  q.each.n = q.outer * q.channels;
  return q;
}

void launch_dropout(const Array& x, const Array& y, int spatial, const DropoutParams& p) {
  if (x.size == 0) return;
  if (spatial == 0)
    run(each_kernel, x.dtype, p, {in(x), out(y)});
  else
    run(channels_kernel, x.dtype, make_channels(x, spatial, p), {in(x), out(y)});
}

}  // namespace dropout_bindings

void bind_dropout(py::module_& module) {
  using namespace dropout_bindings;
  Functions m(module);
  m.def(
      "dropout",
      [](py::handle h, double p, uint64_t seed, uint64_t counter, double a, double b, double c,
         int spatial) {
        Array x = array_dense(h, "dropout", "input");
        check_float(x, "dropout", "input");
        DropoutParams d = make(x.size, p, seed, counter, a, b, c);
        if (spatial) make_channels(x, spatial, d);
        Array y = array_like(x);
        launch_dropout(x, y, spatial, d);
        return result(y);
      },
      py::arg("x"), py::arg("p"), py::arg("seed"), py::arg("counter"), py::arg("a"),
      py::arg("b") = 0.0, py::arg("c") = 0.0, py::arg("spatial") = 0,
      "keep ? a x + b : c, keep with probability 1 - p; spatial: axes between batch and channels "
      "that share a draw.");
  m.def(
      "dropout_",
      [](py::handle h, double p, uint64_t seed, uint64_t counter, double a, double b, double c,
         int spatial) {
        Array x = array_out(h, "dropout", "input");
        check_float(x, "dropout", "input");
        DropoutParams d = make(x.size, p, seed, counter, a, b, c);
        if (spatial) make_channels(x, spatial, d);
        Array w = dense(x);
        launch_dropout(w, w, spatial, d);
        if (!x.contiguous) copy_into(w, x);
      },
      py::arg("x"), py::arg("p"), py::arg("seed"), py::arg("counter"), py::arg("a"),
      py::arg("b") = 0.0, py::arg("c") = 0.0, py::arg("spatial") = 0, "In place.");
  m.def(
      "philox",
      [](uint64_t seed, uint64_t counter, uint64_t first, int64_t n) {
        if (n < 0 || first % 4)
          value_error("philox", "n must be 0 or more and first a multiple of 4");
        Array y = array_new(kI32, {n});
        run(philox_kernel, kI32, PhiloxParams{n, seed, counter, first}, {out(y)});
        return result(y);
      },
      py::arg("seed"), py::arg("counter"), py::arg("first"), py::arg("n"),
      "Words first .. first + n - 1 of the stream (seed, counter), as int32 bits.");
}

}  // namespace gs
