// Bindings of the dropout family.
#include "dropout.h"

#include <string.h>

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

// The stream that `gs.manual_seed` starts: every op that draws takes the next counter. Python's
// lock guards it.
uint64_t stream_seed = 0, stream_counter = 0;

py::tuple take_counters(uint64_t n) {
  py::tuple r(2);
  PyTuple_SET_ITEM(r.ptr(), 0, PyLong_FromUnsignedLongLong(stream_seed));
  PyTuple_SET_ITEM(r.ptr(), 1, PyLong_FromUnsignedLongLong(stream_counter));
  if (PyErr_Occurred()) throw py::error_already_set();
  stream_counter += n;
  return r;
}

// NumPy's generator Philox4x64-10 at (key, counter): its integers, to the same values.
struct Philox64 {
  uint64_t key, counter, block = 0, words[4] = {};
  int at = 4;
  bool half = false;
  uint32_t rest = 0;

  uint64_t next() {
    if (at < 4) return words[at++];
    uint64_t c[4] = {++block, 0, 0, counter}, k0 = key, k1 = 0;
    for (int round = 0; round < 10; ++round) {
      const unsigned __int128 a = (unsigned __int128)0xD2E7470EE14C6C93u * c[0],
                              b = (unsigned __int128)0xCA5A826395121157u * c[2];
      const uint64_t x = (uint64_t)(b >> 64) ^ c[1] ^ k0, y = (uint64_t)(a >> 64) ^ c[3] ^ k1;
      c[0] = x;
      c[1] = (uint64_t)b;
      c[2] = y;
      c[3] = (uint64_t)a;
      k0 += 0x9E3779B97F4A7C15u;
      k1 += 0xBB67AE8584CAA73Bu;
    }
    memcpy(words, c, sizeof(c));
    at = 1;
    return words[0];
  }
  uint32_t next32() {
    if (half) {
      half = false;
      return rest;
    }
    const uint64_t w = next();
    half = true;
    rest = (uint32_t)(w >> 32);
    return (uint32_t)w;
  }
  // In [0, most], without bias (Lemire, 2019).
  uint64_t below(uint64_t most) {
    if (most == 0) return 0;
    if (most == UINT32_MAX) return next32();
    if (most == UINT64_MAX) return next();
    if (most < UINT32_MAX) {
      const uint32_t n = (uint32_t)most + 1;
      uint64_t m = (uint64_t)next32() * n;
      if ((uint32_t)m < n) {
        const uint32_t least = (UINT32_MAX - (uint32_t)most) % n;
        while ((uint32_t)m < least) m = (uint64_t)next32() * n;
      }
      return m >> 32;
    }
    const uint64_t n = most + 1;
    unsigned __int128 m = (unsigned __int128)next() * n;
    if ((uint64_t)m < n) {
      const uint64_t least = (UINT64_MAX - most) % n;
      while ((uint64_t)m < least) m = (unsigned __int128)next() * n;
    }
    return (uint64_t)(m >> 64);
  }
};

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
      "random_next", [] { return take_counters(1); },
      "(seed, counter) for one op that draws numbers.");
  m.def(
      "random_take", [](uint64_t n) { return take_counters(n); }, py::arg("n"),
      "(seed, first counter) for n of them.");
  m.def(
      "random_set",
      [](uint64_t seed, uint64_t counter) {
        stream_seed = seed;
        stream_counter = counter;
      },
      py::arg("seed"), py::arg("counter"));
  m.def(
      "random_integers",
      [](uint64_t seed, uint64_t counter, int64_t low, int64_t high, py::tuple shape) {
        const int n = (int)shape.size();
        if (n > kMaxDims) value_error("randint", "at most 8 dimensions are supported");
        int64_t sizes[kMaxDims];
        for (int d = 0; d < n; ++d) {
          sizes[d] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), d));
          if (sizes[d] == -1 && PyErr_Occurred()) throw py::error_already_set();
        }
        if (high <= low) value_error("randint", "high must be above low");
        Array y = array_new(kI64, n, sizes);
        Philox64 g{seed, counter};
        const uint64_t most = (uint64_t)high - 1 - (uint64_t)low;
        int64_t* to = y.as<int64_t>();
        for (int64_t i = 0; i < y.size; ++i) to[i] = (int64_t)((uint64_t)low + g.below(most));
        return result(y);
      },
      py::arg("seed"), py::arg("counter"), py::arg("low"), py::arg("high"), py::arg("shape"),
      "int64 in [low, high), those of NumPy's Generator on Philox at this key and counter.");
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
