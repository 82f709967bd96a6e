// Along one axis of a contiguous (outer, length, inner) array: argmax, argmin and cumsum; and the
// reductions of integers and bools.
//
// argmax, axis innermost: 16 or fewer lanes keep the best value and its index, folded at the end
// with the smaller index winning ties; otherwise strips of columns, row by row. One read an
// element.
#include "reduce.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kStrip = 256;
constexpr int64_t kTask = 32768;

// ---- argmax, argmin. better(x, m): x is to replace the earlier m.
struct ArgMax {
  template <class T>
  GS_MEMBER static auto above(T x, T m) {
    return x > m;
  }
};
struct ArgMin {
  template <class T>
  GS_MEMBER static auto above(T x, T m) {
    return x < m;
  }
};
template <class Op, class T>
GS_INLINE bool better(T x, T m) {
  return Op::above(x, m) | ((x != x) & (m == m));
}

template <class Op, class T>
GS_INLINE void arg_row_each(const T* x, int64_t begin, int64_t n, T* value, int64_t* index) {
  for (int64_t i = begin; i < n; ++i)
    if (better<Op>(x[i], *value)) {
      *value = x[i];
      *index = i;
    }
}
template <class Op, class T>
GS_INLINE void arg_row(const T* x, int64_t n, T* value, int64_t* index) {
  *value = x[0];
  *index = 0;
  arg_row_each<Op>(x, 1, n, value, index);
}
// float: in lanes, in blocks whose indices fit into the lanes' integers
template <class Op, class T>
GS_INLINE void arg_row_lanes(const T* x, int64_t n, T* value, int64_t* index) {
  typedef typename simd<T>::V V;
  typedef typename simd<T>::I I;
  typedef typename simd<T>::S S;
  constexpr int N = simd<T>::N;
  *value = x[0];
  *index = 0;
  constexpr int64_t kBlock = (int64_t)1 << 24;
  int64_t b = 0;
  for (; b + 2 * N <= n;) {
    int64_t e = n - b < kBlock ? b + (n - b) / N * N : b + kBlock;
    V m = load(x + b);
    I at = iota<T>(), now = at;
    for (int64_t i = b + N; i < e; i += N) {
      now += set1((S)N);
      V v = load(x + i);
      I take = Op::above(v, m) | ((v != v) & (m == m));
      m = take ? v : m;
      at = take ? now : at;
    }
    for (int l = 0; l < N; ++l) {
      int64_t k = b + at[l];
      if (better<Op, T>(m[l], *value) ||
          (k < *index && (m[l] == *value || ((m[l] != m[l]) & (*value != *value))))) {
        *value = m[l];
        *index = k;
      }
    }
    b = e;
  }
  arg_row_each<Op>(x, b, n, value, index);
}
template <class Op>
GS_INLINE void arg_row(const float* x, int64_t n, float* value, int64_t* index) {
  arg_row_lanes<Op>(x, n, value, index);
}
template <class Op>
GS_INLINE void arg_row(const double* x, int64_t n, double* value, int64_t* index) {
  arg_row_lanes<Op>(x, n, value, index);
}

template <class Op, class T>
void arg_reduce(const void* params, void* const* buf, const Ctx* ctx) {
  const AxisParams& p = *(const AxisParams*)params;
  const T* in = (const T*)buf[0];
  T* values = (T*)buf[1];
  int64_t* indices = (int64_t*)buf[2];
  if (p.inner == 1) {
    int64_t group = kTask / p.length + 1;
    for (int64_t b = ctx->tid * group; b < p.outer; b += ctx->nt * group) {
      int64_t e = b + group < p.outer ? b + group : p.outer;
      for (int64_t o = b; o < e; ++o) {
        T v;
        arg_row<Op>(in + o * p.length, p.length, &v, indices + o);
        if (values) values[o] = v;
      }
    }
    return;
  }
  int64_t strips = (p.inner + kStrip - 1) / kStrip;
  T best[kStrip];
  int64_t at[kStrip];
  for (int64_t t = ctx->tid; t < p.outer * strips; t += ctx->nt) {
    int64_t o = t / strips, c0 = t % strips * kStrip;
    int64_t n = p.inner - c0 < kStrip ? p.inner - c0 : kStrip;
    const T* x = in + o * p.length * p.inner + c0;
    for (int64_t c = 0; c < n; ++c) {
      best[c] = x[c];
      at[c] = 0;
    }
    for (int64_t r = 1; r < p.length; ++r) {
      const T* row = x + r * p.inner;
      for (int64_t c = 0; c < n; ++c) {
        T v = row[c], m = best[c];
        bool take = better<Op>(v, m);
        best[c] = take ? v : m;
        at[c] = take ? r : at[c];
      }
    }
    for (int64_t c = 0; c < n; ++c) {
      indices[o * p.inner + c0 + c] = at[c];
      if (values) values[o * p.inner + c0 + c] = best[c];
    }
  }
}

// ---- cumsum: in order, so that every prefix is what a loop gives
template <class T, class R>
void cumsum(const void* params, void* const* buf, const Ctx* ctx) {
  const AxisParams& p = *(const AxisParams*)params;
  const T* in = (const T*)buf[0];
  R* out = (R*)buf[1];
  int64_t strips = (p.inner + kStrip - 1) / kStrip;
  R sum[kStrip];
  if (p.inner == 1) {  // several rows side by side, so that additions do not wait for each other
    constexpr int64_t kRows = 8;
    for (int64_t o = ctx->tid * kRows; o < p.outer; o += ctx->nt * kRows) {
      int64_t n = p.outer - o < kRows ? p.outer - o : kRows;
      for (int64_t c = 0; c < kRows; ++c) sum[c] = 0;
      const int64_t first = o * p.length + (p.reverse ? p.length - 1 : 0);
      const int64_t step = p.reverse ? -1 : 1;
      const T* x = in + first;
      R* y = out + first;
      for (int64_t k = 0; k < p.length; ++k, x += step, y += step) {
        if (n == kRows)
#pragma GCC unroll 8
          for (int64_t c = 0; c < kRows; ++c)
            y[c * p.length] = sum[c] = sum[c] + (R)x[c * p.length];
        else
          for (int64_t c = 0; c < n; ++c) y[c * p.length] = sum[c] = sum[c] + (R)x[c * p.length];
      }
    }
    return;
  }
  for (int64_t t = ctx->tid; t < p.outer * strips; t += ctx->nt) {
    int64_t o = t / strips, c0 = t % strips * kStrip;
    int64_t n = p.inner - c0 < kStrip ? p.inner - c0 : kStrip;
    for (int64_t c = 0; c < n; ++c) sum[c] = 0;
    for (int64_t k = 0; k < p.length; ++k) {
      int64_t r = p.reverse ? p.length - 1 - k : k, at = (o * p.length + r) * p.inner + c0;
      for (int64_t c = 0; c < n; ++c) out[at + c] = sum[c] = sum[c] + (R)in[at + c];
    }
  }
}

void axis_plan(const void* params, Plan* plan) {
  const AxisParams& p = *(const AxisParams*)params;
  plan->tasks = p.inner == 1 ? (p.outer * p.length + kTask - 1) / kTask
                             : p.outer * ((p.inner + kStrip - 1) / kStrip);
  if (plan->tasks > p.outer * p.inner) plan->tasks = p.outer * p.inner;
  plan->work = p.outer * p.length * p.inner / 2;
}
void cumsum_plan(const void* params, Plan* plan) {
  const AxisParams& p = *(const AxisParams*)params;
  plan->tasks = p.outer * ((p.inner + kStrip - 1) / kStrip);
  plan->work = p.outer * p.length * p.inner;
}

// ---- integers and bools: sum and prod in int64 (wrapping), max and min in their own dtype
template <class A>
GS_INLINE A join(int32_t op, A a, A b) {
  switch (op) {
    case kSum:
      return (A)((uint64_t)a + (uint64_t)b);
    case kProd:
      return (A)((uint64_t)a * (uint64_t)b);
    case kMax:
      return b > a ? b : a;
    default:
      return b < a ? b : a;
  }
}
GS_INLINE int64_t product(const int64_t* shape, int ndim) {
  int64_t n = 1;
  for (int d = 0; d < ndim; ++d) n *= shape[d];
  return n;
}
GS_INLINE int64_t offset_of(int64_t i, int ndim, const int64_t* shape, const int64_t* strides) {
  int64_t o = 0;
  for (int d = ndim - 1; d >= 0; --d) {
    o += i % shape[d] * strides[d];
    i /= shape[d];
  }
  return o;
}

// The largest or smallest of n > 0 elements, in their own type so that it goes by vectors.
template <int32_t OP, class T>
GS_INLINE T extreme(const T* x, int64_t n) {
  T best = x[0];
  for (int64_t c = 1; c < n; ++c) best = join<T>(OP, best, x[c]);
  return best;
}

template <class T>
void reduce_int(const void* params, void* const* buf, const Ctx* ctx) {
  const ReduceParams& p = *(const ReduceParams*)params;
  const T* in = (const T*)buf[0];
  bool wide = p.op == kSum || p.op == kProd;
  int64_t outputs = product(p.keep_shape, p.keep_ndim),
          rows = product(p.reduce_shape, p.reduce_ndim);
  int64_t columns = p.inner_kept ? p.inner : 1, strips = (columns + kStrip - 1) / kStrip;
  int64_t acc[kStrip];
  for (int64_t t = ctx->tid; t < outputs * strips; t += ctx->nt) {
    int64_t i = t / strips, c0 = t % strips * kStrip;
    int64_t n = columns - c0 < kStrip ? columns - c0 : kStrip;
    const T* x = in + offset_of(i, p.keep_ndim, p.keep_shape, p.keep_in) + c0;
    int64_t o = offset_of(i, p.keep_ndim, p.keep_shape, p.keep_out) + c0 * p.inner_out;
    for (int64_t c = 0; c < n; ++c)
      acc[c] = p.op == kSum ? 0 : (p.op == kProd ? 1 : (p.op == kMax ? INT64_MIN : INT64_MAX));
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = x + offset_of(r, p.reduce_ndim, p.reduce_shape, p.reduce_in);
      if (p.inner_kept)
        for (int64_t c = 0; c < n; ++c) acc[c] = join<int64_t>(p.op, acc[c], (int64_t)row[c]);
      else if (p.op == kSum)
        for (int64_t c = 0; c < p.inner; ++c) acc[0] = join<int64_t>(kSum, acc[0], (int64_t)row[c]);
      else if (p.op == kMax)
        acc[0] = join<int64_t>(kMax, acc[0], (int64_t)extreme<kMax>(row, p.inner));
      else if (p.op == kMin)
        acc[0] = join<int64_t>(kMin, acc[0], (int64_t)extreme<kMin>(row, p.inner));
      else
        for (int64_t c = 0; c < p.inner; ++c) acc[0] = join<int64_t>(p.op, acc[0], (int64_t)row[c]);
    }
    for (int64_t c = 0; c < n; ++c) {
      if (wide)
        ((int64_t*)buf[2])[o + c * p.inner_out] = acc[c];
      else
        ((T*)buf[2])[o + c * p.inner_out] = (T)acc[c];
    }
  }
}
void reduce_int_plan(const void* params, Plan* plan) {
  const ReduceParams& p = *(const ReduceParams*)params;
  int64_t outputs = product(p.keep_shape, p.keep_ndim);
  plan->tasks = p.inner_kept ? outputs * ((p.inner + kStrip - 1) / kStrip) : outputs;
  plan->work = outputs * product(p.reduce_shape, p.reduce_ndim) * p.inner;
}

#define GS_ARG(dtype, T)                                 \
  {"argmax", dtype, arg_reduce<ArgMax, T>, axis_plan}, { \
    "argmin", dtype, arg_reduce<ArgMin, T>, axis_plan    \
  }
const KernelEntry entries[] = {
    GS_ARG(kF32, float),
    GS_ARG(kF64, double),
    GS_ARG(kI32, int32_t),
    GS_ARG(kI64, int64_t),
    GS_ARG(kU8, uint8_t),
    GS_ARG(kBool, uint8_t),
    {"cumsum", kF32, cumsum<float, float>, cumsum_plan},
    {"cumsum", kF64, cumsum<double, double>, cumsum_plan},
    {"cumsum", kI32, cumsum<int32_t, int64_t>, cumsum_plan},
    {"cumsum", kI64, cumsum<int64_t, int64_t>, cumsum_plan},
    {"cumsum", kU8, cumsum<uint8_t, int64_t>, cumsum_plan},
    {"cumsum", kBool, cumsum<uint8_t, int64_t>, cumsum_plan},
    {"reduce", kI32, reduce_int<int32_t>, reduce_int_plan},
    {"reduce", kI64, reduce_int<int64_t>, reduce_int_plan},
    {"reduce", kU8, reduce_int<uint8_t>, reduce_int_plan},
    {"reduce", kBool, reduce_int<uint8_t>, reduce_int_plan},
};

}  // namespace

extern const KernelList reduce_axis_kernels;
const KernelList reduce_axis_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
