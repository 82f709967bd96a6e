// Softmax and log-softmax, forward and backward, along any axis.
//
// x, y, dx (outer, n, inner). Along the last axis rows pass as row.h says; those of at most 64
// elements stay in registers. Along another axis neighbouring columns are worked on together, lane
// by lane. Floor: one read and one write an element (three streams backward), and one exp: 6 to 7
// cycles a vector. Tasks are groups of rows or of columns, cut by shape.
#include "softmax/row.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int kColumns = 64;  // neighbouring columns that are worked on together

// Rows that fit in kShort vectors, in registers.
constexpr int kShort = 4;
template <class T>
struct Short {
  using V = typename simd<T>::V;
  static constexpr int N = simd<T>::N;
  static GS_MEMBER bool fits(int64_t n) { return n <= kShort * N; }
  static GS_MEMBER int part(int64_t n, int j) {
    int64_t k = n - j * N;
    return k < 0 ? 0 : k < N ? (int)k : N;
  }
  // f(j, count) for each vector
  template <class F>
  static GS_MEMBER void each(int64_t n, F f) {
    if (n == kShort * N) {
#pragma GCC unroll 4
      for (int j = 0; j < kShort; ++j) f(j, N);
    } else {
#pragma GCC unroll 4
      for (int j = 0; j < kShort; ++j) f(j, part(n, j));
    }
  }
  static GS_MEMBER T sum(const V (&v)[kShort]) {
    Sum16<T> s;
    s.clear();
#pragma GCC unroll 4
    for (int j = 0; j < kShort; ++j) s.v[j % Sum16<T>::W] += v[j];
    return total_of(s);
  }
};

// y past the caches when `stream` and its rows are aligned
template <class T>
void softmax_short(const T* x, T* y, int64_t rows, int64_t n, bool log, bool stream) {
  using S = Short<T>;
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  for (int64_t r = 0; r < rows; ++r, x += n, y += n) {
    V v[kShort];
    S::each(
        n, [&](int j, int k) __attribute__((always_inline)) {
          fetch(x + j * N);
          v[j] = k == N ? load(x + j * N) : load_or(x + j * N, k, -(T)__builtin_inf());
        });
    T m = hmax(max(max(v[0], v[1]), max(v[2], v[3])));
    V e[kShort];
#pragma GCC unroll 4
    for (int j = 0; j < kShort; ++j) {
      v[j] -= m;
      e[j] = exp_below(v[j]);
    }
    T s = S::sum(e), f = log ? log_of(s) : 1 / s;
    S::each(
        n, [&](int j, int k) __attribute__((always_inline)) {
          V out = log ? v[j] - f : e[j] * f;
          if (k < N)
            store_n(y + j * N, out, k);
          else
            write(stream, y + j * N, out);
        });
  }
}
template <class T>
void softmax_short_backward(const T* dy, const T* y, T* dx, int64_t rows, int64_t n, bool log,
                            bool stream) {
  using S = Short<T>;
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  for (int64_t r = 0; r < rows; ++r, dy += n, y += n, dx += n) {
    V g[kShort], v[kShort], t[kShort];
    S::each(
        n, [&](int j, int k) __attribute__((always_inline)) {
          fetch(dy + j * N);
          fetch(y + j * N);
          g[j] = get(dy + j * N, k);
          v[j] = get(y + j * N, k);
          t[j] = log ? g[j] : g[j] * v[j];
        });
    T s = S::sum(t);
    S::each(
        n, [&](int j, int k) __attribute__((always_inline)) {
          V out = log ? g[j] - exp_below(v[j]) * s : v[j] * (g[j] - s);
          if (k < N)
            store_n(dx + j * N, out, k);
          else
            write(stream, dx + j * N, out);
        });
  }
}

template <class T>
void softmax_row(const T* x, T* y, int64_t n, bool log, bool stream) {
  using V = typename simd<T>::V;
  T m;
  if (n > kRoom) {
    T s = long_row(x, n, &m), f = log ? log_of(s) : 1 / s;
    row_to(
        stream, y, n, [=](int64_t i, int k) __attribute__((always_inline)) {
          V v = get(x + i, k) - m;
          return log ? v - f : exp_below(v) * f;
        });
    return;
  }
  const int64_t ahead = next_row<T>(n);
  m = row_max(x, n);
  if (log) {
    T l = log_of(exp_row<T, false>(x, nullptr, m, n, ahead));
    row_to(
        stream, y, n, [=](int64_t i, int k) __attribute__((always_inline)) {
          return (get(x + i, k) - m) - l;
        });
    return;
  }
  alignas(64) T room[kRoom];
  T* e = stream ? room : y;
  T r = 1 / exp_row<T, true>(x, e, m, n, ahead);
  row_to(
      stream, y,
      n, [=](int64_t i, int k) __attribute__((always_inline)) { return get(e + i, k) * r; });
}

template <class T>
void softmax_row_backward(const T* dy, const T* y, T* dx, int64_t n, bool log, bool stream) {
  using V = typename simd<T>::V;
  const bool once = n > kRoom;  // then the first sweep fetches, else the last one the next row
  const int64_t ahead = next_row<T>(n);
  T s = row_sum<T>(
      n, [=](int64_t i, int k) __attribute__((always_inline)) {
        if (once) {
          fetch(dy + i);
          fetch(y + i);
        }
        V g = get(dy + i, k);
        return log ? g : g * get(y + i, k);
      });
  row_to(
      stream, dx, n, [=](int64_t i, int k) __attribute__((always_inline)) {
        if (!once) {
          __builtin_prefetch(dy + i + ahead);
          __builtin_prefetch(y + i + ahead);
        }
        V g = get(dy + i, k), v = get(y + i, k);
        return log ? g - exp_below(v) * s : v * (g - s);
      });
}

template <class T>
void softmax_narrow(const T* x, T* y, int64_t n, int count, bool log) {
  using V = typename simd<T>::V;
  V z[kNarrow], e[kNarrow];
  for (int64_t c = n; c % simd<T>::N; ++c) z[c] = e[c] = V{};
  load_rows(x, n, count, z);
  V s = exp_lanes<T>(z, e, n);
  if (log) {
    V l = GS_ISA::log(s);
    for (int64_t c = 0; c < n; ++c) z[c] -= l;
    store_rows(z, n, count, y);
  } else {
    V r = 1 / s;
    for (int64_t c = 0; c < n; ++c) e[c] *= r;
    store_rows(e, n, count, y);
  }
}

template <class T>
void softmax_narrow_backward(const T* dy, const T* y, T* dx, int64_t n, int count, bool log) {
  using V = typename simd<T>::V;
  V g[kNarrow], v[kNarrow], s = {};
  for (int64_t c = n; c % simd<T>::N; ++c) g[c] = v[c] = V{};
  load_rows(dy, n, count, g);
  load_rows(y, n, count, v);
  if (log) {
    for (int64_t c = 0; c < n; ++c) s += g[c];
    for (int64_t c = 0; c < n; ++c) g[c] -= exp_below(v[c]) * s;
  } else {
    for (int64_t c = 0; c < n; ++c) s += g[c] * v[c];
    for (int64_t c = 0; c < n; ++c) g[c] = v[c] * (g[c] - s);
  }
  store_rows(g, n, count, dx);
}

// ---- along an axis that is not the last: neighbouring columns together, lane by lane

// Columns j .. j + count - 1 of (n, inner); one vector each of W
template <class T>
struct Columns {
  using V = typename simd<T>::V;
  static constexpr int N = simd<T>::N, W = kColumns / N;
  int64_t n, inner;
  int count;

  GS_MEMBER int lanes(int j) const {
    int k = count - j * N;
    return k < 0 ? 0 : (k < N ? k : N);
  }
  GS_MEMBER V at(const T* p, int64_t i, int j) const {
    const T* q = p + i * inner + j * N;
    return count >= (j + 1) * N ? load(q) : load_n(q, lanes(j));
  }
  GS_MEMBER void set(T* p, int64_t i, int j, V v) const {
    T* q = p + i * inner + j * N;
    if (count >= (j + 1) * N)
      store(q, v);
    else
      store_n(q, v, lanes(j));
  }
  // total[j] = sum over i of f(i, j), in blocks
  template <class F>
  GS_MEMBER void sum(V* total, F f) const {
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j) total[j] = V{};
    for (int64_t b = 0; b < n; b += 64) {
      int64_t e = b + 64 < n ? b + 64 : n;
      V s[W];
#pragma GCC unroll 4
      for (int j = 0; j < W; ++j) s[j] = V{};
      for (int64_t i = b; i < e; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < W; ++j) s[j] += f(i, j);
      }
#pragma GCC unroll 4
      for (int j = 0; j < W; ++j) total[j] += s[j];
    }
  }
};

template <class T>
void softmax_columns(const T* x, T* y, const Columns<T>& c, bool log) {
  using V = typename simd<T>::V;
  constexpr int W = Columns<T>::W;
  V m[W], s[W];
#pragma GCC unroll 4
  for (int j = 0; j < W; ++j) m[j] = set1(-(T)__builtin_inf());
  for (int64_t i = 0; i < c.n; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j) m[j] = max(m[j], c.at(x, i, j));
  }
  c.sum(
      s, [&](int64_t i, int j) __attribute__((always_inline)) {
        V e = exp_below(c.at(x, i, j) - m[j]);
        if (!log) c.set(y, i, j, e);
        return e;
      });
#pragma GCC unroll 4
  for (int j = 0; j < W; ++j) s[j] = log ? GS_ISA::log(s[j]) : 1 / s[j];
  for (int64_t i = 0; i < c.n; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j)
      c.set(y, i, j, log ? (c.at(x, i, j) - m[j]) - s[j] : c.at(y, i, j) * s[j]);
  }
}

template <class T>
void softmax_columns_backward(const T* dy, const T* y, T* dx, const Columns<T>& c, bool log) {
  using V = typename simd<T>::V;
  constexpr int W = Columns<T>::W;
  V s[W];
  c.sum(
      s, [&](int64_t i, int j) __attribute__((always_inline)) {
        V g = c.at(dy, i, j);
        return log ? g : g * c.at(y, i, j);
      });
  for (int64_t i = 0; i < c.n; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j) {
      V g = c.at(dy, i, j), v = c.at(y, i, j);
      c.set(dx, i, j, log ? g - exp_below(v) * s[j] : v * (g - s[j]));
    }
  }
}

// rows(first, count) for inner == 1; columns(outer index, first column, count) otherwise
template <class R, class C>
GS_INLINE void softmax_tasks(const SoftmaxParams& p, const Ctx* ctx, R rows, C columns) {
  if (p.inner == 1) {
    int64_t group = rows_per_task(p.outer, p.n), tasks = (p.outer + group - 1) / group;
    for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
      int64_t e = (t + 1) * group < p.outer ? (t + 1) * group : p.outer;
      rows(t * group, e - t * group);
    }
    return;
  }
  int64_t per = (p.inner + kColumns - 1) / kColumns, tasks = p.outer * per;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t o = t / per, j = t % per * kColumns;
    columns(o, j, (int)(p.inner - j < kColumns ? p.inner - j : kColumns));
  }
}

template <class T>
GS_INLINE bool aligned_rows(const T* y, int64_t n) {
  return (((uintptr_t)y | (uintptr_t)(n * (int64_t)sizeof(T))) & (GS_VBYTES - 1)) == 0;
}

template <class T>
void softmax(const void* params, void* const* buf, const Ctx* ctx) {
  const SoftmaxParams& p = *(const SoftmaxParams*)params;
  const T* x = (const T*)buf[0];
  T* y = (T*)buf[1];
  const int64_t n = p.n;
  const bool log = p.log, stream = p.inner == 1 && past_caches<T>(ctx, p.outer, n, y);
  softmax_tasks(
      p, ctx,
      [&](int64_t r, int64_t count) {
        const T* from = x + r * n;
        T* to = y + r * n;
        if (n <= kNarrow)
          narrow_rows(
              count, n, to, stream, [=](int64_t i, int k, T* out) __attribute__((always_inline)) {
                softmax_narrow(from + i * n, out, n, k, log);
              });
        else if (Short<T>::fits(n))
          softmax_short(from, to, count, n, log, stream && aligned_rows(to, n));
        else
          for (int64_t i = 0; i < count; ++i) softmax_row(from + i * n, to + i * n, n, log, stream);
      },
      [&](int64_t o, int64_t j, int k) {
        int64_t at = o * p.n * p.inner + j;
        softmax_columns(x + at, y + at, Columns<T>{p.n, p.inner, k}, p.log);
      });
  if (stream) write_fence();
}

template <class T>
void softmax_backward(const void* params, void* const* buf, const Ctx* ctx) {
  const SoftmaxParams& p = *(const SoftmaxParams*)params;
  const T *dy = (const T*)buf[0], *y = (const T*)buf[1];
  T* dx = (T*)buf[2];
  const int64_t n = p.n;
  const bool log = p.log, stream = p.inner == 1 && past_caches<T>(ctx, p.outer, n, dx);
  softmax_tasks(
      p, ctx,
      [&](int64_t r, int64_t count) {
        const T *g = dy + r * n, *v = y + r * n;
        T* to = dx + r * n;
        if (n <= kNarrow)
          narrow_rows(
              count, n, to, stream, [=](int64_t i, int k, T* out) __attribute__((always_inline)) {
                softmax_narrow_backward(g + i * n, v + i * n, out, n, k, log);
              });
        else if (Short<T>::fits(n))
          softmax_short_backward(g, v, to, count, n, log, stream && aligned_rows(to, n));
        else
          for (int64_t i = 0; i < count; ++i)
            softmax_row_backward(g + i * n, v + i * n, to + i * n, n, log, stream);
      },
      [&](int64_t o, int64_t j, int k) {
        int64_t at = o * p.n * p.inner + j;
        softmax_columns_backward(dy + at, y + at, dx + at, Columns<T>{p.n, p.inner, k}, p.log);
      });
  if (stream) write_fence();
}

template <class T>
void softmax_plan(const void* params, Plan* plan) {
  const SoftmaxParams& p = *(const SoftmaxParams*)params;
  int64_t group = rows_per_task(p.outer, p.n);
  plan->tasks = p.inner == 1 ? (p.outer + group - 1) / group
                             : p.outer * ((p.inner + kColumns - 1) / kColumns);
  plan->work = p.outer * p.n * p.inner * (sizeof(T) == 8 ? 8 : 1) / 2 + p.outer * 20;
}

#define GS_BOTH(name, f, plan) \
  {name, kF32, f<float>, plan<float>}, { name, kF64, f<double>, plan<double> }
const KernelEntry entries[] = {
    GS_BOTH("softmax", softmax, softmax_plan),
    GS_BOTH("softmax_backward", softmax_backward, softmax_plan),
};

}  // namespace

extern const KernelList softmax_softmax_kernels;
const KernelList softmax_softmax_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
