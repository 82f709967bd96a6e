// Bindings of the attention family.
#include "attention.h"

#include <cmath>

#include "array.h"

namespace gs {

namespace attention_bindings {

const Kernel forward_kernel("attention"), backward_kernel("attention_backward");
const char* const kOp = "scaled_dot_product_attention";

bool fits(const Array& a) {  // strides that the kernels read: rows contiguous, nothing backwards
  if (a.size == 0) return true;
  int n = a.ndim - 1;
  if (a.shape[n] > 1 && a.strides[n] != 1) return false;
  for (int i = 0; i < n; ++i)
    if (a.shape[i] > 1 && a.strides[i] < 0) return false;
  return true;
}

Array heads_in(py::handle h, const char* name) {
  Array a = array_in(h, kOp, name);
  check_float(a, kOp, name);
  check_ndim(a, 4, kOp, name, "(batch, heads, length, size)");
  return fits(a) ? a : dense(a);
}

HeadStrides strides_of(const Array& a) { return {a.strides[0], a.strides[1], a.strides[2]}; }

// A fresh (b, h, t, d) array, laid out as (b, t, h, d), or (t, b, h, d), where `like` is.
Array heads_new(const Array& like, int64_t b, int64_t h, int64_t t, int64_t d) {
  bool inner =
      like.size && like.shape[1] > 1 && like.shape[2] > 1 && like.strides[1] < like.strides[2];
  if (!inner) return array_new(like.dtype, {b, h, t, d});
  bool outer = like.shape[0] > 1 && like.strides[0] < like.strides[2];
  Array a = outer ? array_new(like.dtype, {t, b, h, d}) : array_new(like.dtype, {b, t, h, d});
  py::object view =
      outer ? a.object.attr("transpose")(1, 2, 0, 3) : a.object.attr("transpose")(0, 2, 1, 3);
  return array_in(view, kOp, "output");
}

struct Dropout {
  double p;
  uint64_t seed, counter;
};

void set_dropout(AttentionParams& p, const Dropout& d) {
  if (!(d.p >= 0 && d.p <= 1))
    value_error(kOp, "dropout_p must lie in [0, 1], got " + std::to_string(d.p));
  double t = std::nearbyint(d.p * 4294967296.0);
  p.seed = d.seed;
  p.counter = Counter{d.counter, -1};
  p.threshold = t > 4294967295.0 ? 4294967295u : (uint32_t)t;
  p.dropout = d.p == 0 ? 0 : d.p == 1 ? 2 : 1;
  p.keep_scale = d.p == 1 ? 0.0 : 1.0 / (1.0 - d.p);
}

// The mask as strides over (batch, heads, tq, tk); `m` is made one that the kernels read.
void set_mask(AttentionParams& p, Array& m, DType dtype) {
  p.mask = kMaskNone;
  if (!m.present()) return;
  const int64_t want[4] = {p.batch, p.heads, p.tq, p.tk};
  if (m.dtype != kBool && m.dtype != dtype)
    type_error(kOp, std::string("attn_mask has dtype ") + dtype_name(m.dtype) +
                        "; it must be bool (True: takes part) or the dtype of query, " +
                        dtype_name(dtype) + " (added to the scores)");
  bool good = m.ndim <= 4;
  for (int i = 0; good && i < m.ndim; ++i) {
    int64_t n = m.shape[m.ndim - 1 - i];
    good = n == 1 || n == want[3 - i];
  }
  if (!good)
    value_error(kOp, "attn_mask has shape " + m.shape_text() + "; it must broadcast to " +
                         shape_text(want, 4) + " (batch, heads, query length, key length)");
  for (int i = 0; i < m.ndim; ++i)
    if (m.strides[i] < 0 && m.shape[i] > 1) {
      m = dense(m);
      break;
    }
  p.mask = m.dtype == kBool ? kMaskBool : kMaskAdd;
  for (int i = 0; i < 4; ++i) {
    int at = m.ndim - 4 + i;
    p.mask_strides[i] = at >= 0 && m.shape[at] > 1 ? m.strides[at] : 0;
  }
}

// Sizes from q, k, v, all checked.
AttentionParams sizes(const Array& q, const Array& k, const Array& v, bool causal, double scale) {
  check_same_dtype(q, "query", k, "key", kOp);
  check_same_dtype(q, "query", v, "value", kOp);
  AttentionParams p{};
  p.batch = q.shape[0];
  p.heads = q.shape[1];
  p.tq = q.shape[2];
  p.d = q.shape[3];
  p.kv_heads = k.shape[1];
  p.tk = k.shape[2];
  p.dv = v.shape[3];
  auto fail = [&](const char* what) {
    value_error(kOp, "query has shape " + q.shape_text() + ", key " + k.shape_text() +
                         " and value " + v.shape_text() + "; " + what);
  };
  if (k.shape[3] != p.d) fail("query and key must have one size along the last axis");
  if (k.shape[0] != p.batch || v.shape[0] != p.batch) fail("their batch sizes must be equal");
  if (v.shape[1] != p.kv_heads || v.shape[2] != p.tk)
    fail("key and value must have the same number of heads and the same length");
  if (p.kv_heads == 0 ? p.heads != 0 : p.heads % p.kv_heads != 0)
    fail("the heads of query must be a multiple of those of key");
  p.causal = causal;
  p.scale = std::isnan(scale) ? 1.0 / std::sqrt((double)(p.d > 0 ? p.d : 1)) : scale;
  p.q = strides_of(q);
  p.k = strides_of(k);
  p.v = strides_of(v);
  p.members = get_num_threads();
  p.l2 = machine().l2;
  return p;
}

Array lse_new(const AttentionParams& p, DType dtype) {
  return array_new(dtype, {p.batch, p.heads, p.tq});
}

py::tuple attention(py::handle qh, py::handle kh, py::handle vh, py::handle mask_h, bool causal,
                    double scale, double drop, uint64_t seed, uint64_t counter, bool need_lse) {
  Array q = heads_in(qh, "query"), k = heads_in(kh, "key"), v = heads_in(vh, "value");
  Array mask = array_optional(mask_h, kOp, "attn_mask");
  AttentionParams p = sizes(q, k, v, causal, scale);
  set_dropout(p, {drop, seed, counter});
  set_mask(p, mask, q.dtype);
  Array o = heads_new(q, p.batch, p.heads, p.tq, p.dv), lse;
  if (need_lse) lse = lse_new(p, q.dtype);
  p.out = strides_of(o);
  if (o.size || (need_lse && lse.size))
    run(forward_kernel, q.dtype, p, {in(q), in(k), in(v), in(mask), out(o), out(lse)});
  return py::make_tuple(result(o), need_lse ? py::object(result(lse)) : py::none());
}

py::tuple attention_backward(py::handle dh, py::handle qh, py::handle kh, py::handle vh,
                             py::handle mask_h, py::handle oh, py::handle lse_h, bool causal,
                             double scale, double drop, uint64_t seed, uint64_t counter) {
  Array q = heads_in(qh, "query"), k = heads_in(kh, "key"), v = heads_in(vh, "value");
  Array o = heads_in(oh, "output"), d = heads_in(dh, "gradient");
  Array mask = array_optional(mask_h, kOp, "attn_mask"), lse = array_dense(lse_h, kOp, "lse");
  AttentionParams p = sizes(q, k, v, causal, scale);
  set_dropout(p, {drop, seed, counter});
  set_mask(p, mask, q.dtype);
  check_same_dtype(q, "query", d, "gradient", kOp);
  check_same_dtype(q, "query", o, "output", kOp);
  check_same_shape(d, "gradient", o, "output", kOp);
  if (o.shape[0] != p.batch || o.shape[1] != p.heads || o.shape[2] != p.tq || o.shape[3] != p.dv ||
      lse.dtype != q.dtype || lse.size != p.batch * p.heads * p.tq)
    value_error(kOp, "output has shape " + o.shape_text() + " for query " + q.shape_text() +
                         " and value " + v.shape_text());
  Array dq = heads_new(q, p.batch, p.heads, p.tq, p.d),
        dk = heads_new(k, p.batch, p.kv_heads, p.tk, p.d),
        dv = heads_new(v, p.batch, p.kv_heads, p.tk, p.dv);
  p.out = strides_of(o);
  p.dout = strides_of(d);
  p.dq = strides_of(dq);
  p.dk = strides_of(dk);
  p.dvs = strides_of(dv);
  if (dq.size || dk.size || dv.size)
    run(backward_kernel, q.dtype, p,
        {in(q), in(k), in(v), in(mask), in(o), in(lse), in(d), out(dq), out(dk), out(dv)});
  return py::make_tuple(result(dq), result(dk), result(dv));
}

// ---- q, k and v in one array (B, T, 3 H D), or (T, B, 3 H D) when time comes first

struct Fused {
  AttentionParams p;
  int64_t width;  // H D
};

Fused fused(const Array& x, int64_t heads, bool time_first, bool causal, double scale) {
  check_float(x, kOp, "qkv");
  check_ndim(x, 3, kOp, "qkv", time_first ? "(T, B, 3 H D)" : "(B, T, 3 H D)");
  if (heads < 1 || x.shape[2] % (3 * heads))
    value_error(kOp, "qkv has shape " + x.shape_text() +
                         "; its last axis must be a multiple of 3 * " + std::to_string(heads) +
                         " (query, key and value of every head)");
  Fused f{};
  AttentionParams& p = f.p;
  f.width = x.shape[2] / 3;
  p.batch = x.shape[time_first ? 1 : 0];
  p.tq = p.tk = x.shape[time_first ? 0 : 1];
  p.heads = p.kv_heads = heads;
  p.d = p.dv = f.width / heads;
  p.causal = causal;
  p.scale = std::isnan(scale) ? 1.0 / std::sqrt((double)(p.d > 0 ? p.d : 1)) : scale;
  p.members = get_num_threads();
  p.l2 = machine().l2;
  int64_t row = time_first ? p.batch : 1, batch = time_first ? 1 : p.tq;
  HeadStrides wide{batch * 3 * f.width, p.d, row * 3 * f.width},
      narrow{batch * f.width, p.d, row * f.width};
  p.q = p.k = p.v = p.dq = p.dk = p.dvs = wide;
  p.out = p.dout = narrow;
  return f;
}

Buffer part(const Array& x, int64_t elements, Access access) {
  return Buffer{x.data, elements * dtype_size(x.dtype), access};
}

py::tuple attention_qkv(py::handle xh, int64_t heads, bool time_first, py::handle mask_h,
                        bool causal, double scale, double drop, uint64_t seed, uint64_t counter,
                        bool need_lse) {
  Array x = array_dense(xh, kOp, "qkv"), mask = array_optional(mask_h, kOp, "attn_mask");
  Fused f = fused(x, heads, time_first, causal, scale);
  set_dropout(f.p, {drop, seed, counter});
  set_mask(f.p, mask, x.dtype);
  Array o = array_new(x.dtype, {x.shape[0], x.shape[1], f.width}), lse;
  if (need_lse) lse = lse_new(f.p, x.dtype);
  if (o.size)
    run(forward_kernel, x.dtype, f.p,
        {part(x, 0, kRead), part(x, f.width, kRead), part(x, 2 * f.width, kRead), in(mask), out(o),
         out(lse)});
  return py::make_tuple(result(o), need_lse ? py::object(result(lse)) : py::none());
}

py::object attention_qkv_backward(py::handle dh, py::handle xh, int64_t heads, bool time_first,
                                  py::handle mask_h, py::handle oh, py::handle lse_h, bool causal,
                                  double scale, double drop, uint64_t seed, uint64_t counter) {
  Array x = array_dense(xh, kOp, "qkv"), mask = array_optional(mask_h, kOp, "attn_mask");
  Array o = array_dense(oh, kOp, "output"), d = array_dense(dh, kOp, "gradient"),
        lse = array_dense(lse_h, kOp, "lse");
  Fused f = fused(x, heads, time_first, causal, scale);
  set_dropout(f.p, {drop, seed, counter});
  set_mask(f.p, mask, x.dtype);
  check_same_dtype(x, "qkv", d, "gradient", kOp);
  check_same_shape(d, "gradient", o, "output", kOp);
  if (o.dtype != x.dtype || lse.dtype != x.dtype || o.size * 3 != x.size ||
      lse.size != f.p.batch * f.p.heads * f.p.tq)
    value_error(kOp, "output has shape " + o.shape_text() + " for qkv " + x.shape_text());
  Array dx = array_like(x);
  if (dx.size)
    run(backward_kernel, x.dtype, f.p,
        {part(x, 0, kRead), part(x, f.width, kRead), part(x, 2 * f.width, kRead), in(mask), in(o),
         in(lse), in(d), part(dx, 0, kWrite), part(dx, f.width, kWrite),
         part(dx, 2 * f.width, kWrite)});
  return result(dx);
}

}  // namespace attention_bindings

void bind_attention(py::module_& module) {
  using namespace attention_bindings;
  Functions m(module);
  m.def("attention", &attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("mask"),
        py::arg("causal"), py::arg("scale"), py::arg("p"), py::arg("seed"), py::arg("counter"),
        py::arg("need_lse"),
        "(out, lse or None) of (B, H, T, D) arrays of any strides; scale nan: 1 / sqrt(D).");
  m.def("attention_backward", &attention_backward, py::arg("dout"), py::arg("q"), py::arg("k"),
        py::arg("v"), py::arg("mask"), py::arg("out"), py::arg("lse"), py::arg("causal"),
        py::arg("scale"), py::arg("p"), py::arg("seed"), py::arg("counter"), "(dq, dk, dv).");
  m.def("attention_qkv", &attention_qkv, py::arg("qkv"), py::arg("heads"), py::arg("time_first"),
        py::arg("mask"), py::arg("causal"), py::arg("scale"), py::arg("p"), py::arg("seed"),
        py::arg("counter"), py::arg("need_lse"),
        "(out, lse or None); qkv (B, T, 3 H D), or (T, B, 3 H D) when time_first.");
  m.def("attention_qkv_backward", &attention_qkv_backward, py::arg("dout"), py::arg("qkv"),
        py::arg("heads"), py::arg("time_first"), py::arg("mask"), py::arg("out"), py::arg("lse"),
        py::arg("causal"), py::arg("scale"), py::arg("p"), py::arg("seed"), py::arg("counter"),
        "The gradient of qkv.");
}

}  // namespace gs
