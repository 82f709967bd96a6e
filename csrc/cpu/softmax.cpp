// Softmax, log-softmax and softmax cross-entropy, forward and backward.
//
// A row stays in the first or second level of cache over its sweeps: maximum; exp and sum; scaling.
// Floor: one read and one write an element (three streams backward), and one exp: 6 to 8 cycles a
// vector. Cross-entropy writes the gradient of the logits in the same pass: dlogits = (sum q) p -
// q, where q are the weighted, smoothed targets; so loss and gradient cost one read and one write
// of the logits. Tasks are groups of rows cut by shape; sums over a row run in 16 logical lanes and
// blocks of 1024, sums over rows in order of the groups.
#include "softmax.h"

#include "simd/transpose.h"
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kTask = 16384;  // elements of one task
constexpr int64_t kBlock = 1024;  // elements that one level of a sum takes
constexpr int64_t kNarrow = 32;   // longest row that is worked on as one lane
constexpr int kColumns = 64;      // neighbouring columns that are worked on together

GS_INLINE int64_t rows_per_task(int64_t rows, int64_t n) {
  int64_t g = kTask / (n > 0 ? n : 1);
  g = g < 1 ? 1 : g;
  int64_t least = (rows + 4095) / 4096;  // at most 4096 tasks: their partial results stay few
  return g > least ? g : least;
}

template <class T>
GS_INLINE typename simd<T>::I first_lanes(int n) {
  return iota<T>() < set1((typename simd<T>::S)n);
}

// The first n lanes from p, the others `fill`
template <class T>
GS_INLINE typename simd<T>::V load_or(const T* p, int n, T fill) {
  return first_lanes<T>(n) ? load_n(p, n) : set1(fill);
}

template <class T>
GS_INLINE T row_max(const T* x, int64_t n) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const T low = -(T)__builtin_inf();
  V m0 = set1(low), m1 = m0, m2 = m0, m3 = m0;
  int64_t i = 0;
  for (; i + 4 * N <= n; i += 4 * N) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) fetch(x + i + j * N);
    m0 = max(m0, load(x + i));
    m1 = max(m1, load(x + i + N));
    m2 = max(m2, load(x + i + 2 * N));
    m3 = max(m3, load(x + i + 3 * N));
  }
  for (; i + N <= n; i += N) m0 = max(m0, load(x + i));
  if (i < n) m1 = max(m1, load_or(x + i, (int)(n - i), low));
  return hmax(max(max(m0, m1), max(m2, m3)));
}

// Sum over i < n of f(i, count): f gives the vector of elements i .. i + count - 1, zero past
// count.
template <class T, class F>
GS_INLINE T row_sum(int64_t n, F f) {
  constexpr int N = simd<T>::N;
  constexpr int W = Sum16<T>::W;
  Sum16<T> total;
  total.clear();
  for (int64_t b = 0; b < n; b += kBlock) {
    int64_t e = b + kBlock < n ? b + kBlock : n, i = b;
    Sum16<T> s;
    s.clear();
    for (; i + 16 <= e; i += 16) {
#pragma GCC unroll 8
      for (int j = 0; j < W; ++j) s.v[j] += f(i + j * N, N);
    }
#pragma GCC unroll 8
    for (int j = 0; j < W; ++j) {
      int64_t left = e - i - j * N;
      if (left > 0) s.v[j] += f(i + j * N, left < N ? (int)left : N);
    }
#pragma GCC unroll 8
    for (int j = 0; j < W; ++j) total.v[j] += s.v[j];
  }
  return total.total();
}

// f(i, count) for every vector of a row
template <class T, class F>
GS_INLINE void row_each(int64_t n, F f) {
  constexpr int N = simd<T>::N;
  int64_t i = 0;
  for (; i + N <= n; i += N) f(i, N);
  if (i < n) f(i, (int)(n - i));
}

template <class T>
GS_INLINE typename simd<T>::V get(const T* p, int n) {
  return n == simd<T>::N ? load(p) : load_n(p, n);
}
template <class T>
GS_INLINE void put(T* p, typename simd<T>::V v, int n) {
  if (n == simd<T>::N)
    store(p, v);
  else
    store_n(p, v, n);
}
template <class T>
GS_INLINE typename simd<T>::V keep(typename simd<T>::V v, int n) {
  return n == simd<T>::N ? v : (first_lanes<T>(n) ? v : typename simd<T>::V{});
}

// Large results are made in a block in L1 and go from there past the caches: n elements to dst.
constexpr int64_t kRoom = 4096;
template <class T>
GS_INLINE bool past_caches(const Ctx* ctx, int64_t rows, int64_t n, const void* out) {
  return out && n <= kRoom && rows * n * (int64_t)sizeof(T) >= ctx->stream;
}
template <class T>
GS_INLINE void stream_row(T* dst, const T* src, int64_t n) {
  constexpr int N = simd<T>::N;
  int64_t i = (int64_t)((0 - (uintptr_t)dst) % GS_VBYTES / sizeof(T));
  i = i < n ? i : n;
  if (i) store_n(dst, load_n(src, (int)i), (int)i);
  for (; i + N <= n; i += N) write<true>(dst + i, load(src + i));
  if (i < n) store_n(dst + i, load_n(src + i, (int)(n - i)), (int)(n - i));
}

// e[i] = exp(x[i] - m), returns their sum; e may be absent
template <class T, bool kStore>
GS_INLINE T exp_row(const T* x, T* e, T m, int64_t n) {
  return row_sum<T>(
      n, [=](int64_t i, int k) __attribute__((always_inline)) {
        auto v = keep<T>(exp(get(x + i, k) - m), k);
        if (kStore) put(e + i, v, k);
        return v;
      });
}

template <class T>
void softmax_row(const T* x, T* y, int64_t n, bool log) {
  T m = row_max(x, n);
  if (log) {
    T s = exp_row<T, false>(x, nullptr, m, n);
    T l = sizeof(T) == 4 ? (T)::logf((float)s) : (T)::log((double)s);
    row_each<T>(
        n, [=](int64_t i, int k)
               __attribute__((always_inline)) { put(y + i, (get(x + i, k) - m) - l, k); });
  } else {
    T r = 1 / exp_row<T, true>(x, y, m, n);
    row_each<T>(
        n, [=](int64_t i, int k)
               __attribute__((always_inline)) { put(y + i, get(y + i, k) * r, k); });
  }
}

template <class T>
void softmax_row_backward(const T* dy, const T* y, T* dx, int64_t n, bool log) {
  if (log) {
    T s = row_sum<T>(
        n, [=](int64_t i, int k) __attribute__((always_inline)) {
          fetch(dy + i);
          fetch(y + i);
          return get(dy + i, k);
        });
    row_each<T>(
        n, [=](int64_t i, int k) __attribute__((always_inline)) {
          put(dx + i, get(dy + i, k) - exp(get(y + i, k)) * s, k);
        });
  } else {
    T s = row_sum<T>(
        n, [=](int64_t i, int k) __attribute__((always_inline)) {
          fetch(dy + i);
          fetch(y + i);
          return get(dy + i, k) * get(y + i, k);
        });
    row_each<T>(
        n, [=](int64_t i, int k) __attribute__((always_inline)) {
          put(dx + i, get(y + i, k) * (get(dy + i, k) - s), k);
        });
  }
}

// ---- narrow rows: N rows at once, a row a lane

// out[c] = element c of rows 0 .. N - 1 of x (count, n); lanes past count repeat the last row.
// out has room for n rounded up to a multiple of N.
template <class T>
GS_INLINE void load_rows(const T* x, int64_t n, int count, typename simd<T>::V* out) {
  constexpr int N = simd<T>::N;
  for (int64_t c = 0; c < n; c += N) {
    typename simd<T>::V v[N];
    int k = n - c < N ? (int)(n - c) : N;
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r) {
      const T* p = x + (r < count ? r : count - 1) * n + c;
      v[r] = k == N ? load(p) : load_n(p, k);
    }
    transpose<T>(v);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) out[c + i] = v[i];
  }
}

// The way back: rows 0 .. count - 1 of y (count, n).
template <class T>
GS_INLINE void store_rows(const typename simd<T>::V* in, int64_t n, int count, T* y) {
  constexpr int N = simd<T>::N;
  for (int64_t c = 0; c < n; c += N) {
    typename simd<T>::V v[N];
    int k = n - c < N ? (int)(n - c) : N;
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = in[c + i];
    transpose<T>(v);
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r)
      if (r < count) {
        if (k == N)
          store(y + r * n + c, v[r]);
        else
          store_n(y + r * n + c, v[r], k);
      }
  }
}

// z[c] -= max over c; e[c] = exp(z[c]); returns the sum of e
template <class T>
GS_INLINE typename simd<T>::V exp_lanes(typename simd<T>::V* z, typename simd<T>::V* e, int64_t n) {
  using V = typename simd<T>::V;
  V m = z[0], s = {};
  for (int64_t c = 1; c < n; ++c) m = max(m, z[c]);
  for (int64_t c = 0; c < n; ++c) {
    z[c] -= m;
    e[c] = exp(z[c]);
    s += e[c];
  }
  return s;
}

template <class T>
void softmax_narrow(const T* x, T* y, int64_t n, int count, bool log) {
  using V = typename simd<T>::V;
  V z[kNarrow], e[kNarrow];
  for (int64_t c = n; c < kNarrow; ++c) z[c] = e[c] = V{};
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
  for (int64_t c = n; c < kNarrow; ++c) g[c] = v[c] = V{};
  load_rows(dy, n, count, g);
  load_rows(y, n, count, v);
  if (log) {
    for (int64_t c = 0; c < n; ++c) s += g[c];
    for (int64_t c = 0; c < n; ++c) g[c] -= exp(v[c]) * s;
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
        V e = exp(c.at(x, i, j) - m[j]);
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
      c.set(dx, i, j, log ? g - exp(v) * s[j] : v * (g - s[j]));
    }
  }
}

// rows(first, count) for inner == 1; columns(outer index, first column, count) otherwise
template <class R, class C>
GS_INLINE void softmax_tasks(const SoftmaxParams& p, int lanes, const Ctx* ctx, R rows, C columns) {
  if (p.inner == 1) {
    int64_t group = rows_per_task(p.outer, p.n), tasks = (p.outer + group - 1) / group;
    for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
      int64_t e = (t + 1) * group < p.outer ? (t + 1) * group : p.outer;
      int64_t step = p.n <= kNarrow ? lanes : 1;
      for (int64_t r = t * group; r < e; r += step) rows(r, (int)(e - r < step ? e - r : step));
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
void softmax(const void* params, void* const* buf, const Ctx* ctx) {
  const SoftmaxParams& p = *(const SoftmaxParams*)params;
  const T* x = (const T*)buf[0];
  T* y = (T*)buf[1];
  const bool stream = p.inner == 1 && past_caches<T>(ctx, p.outer, p.n, y);
  alignas(64) T room[kRoom];
  softmax_tasks(
      p, simd<T>::N, ctx,
      [&](int64_t r, int count) {
        T* to = stream ? room : y + r * p.n;
        if (p.n <= kNarrow)
          softmax_narrow(x + r * p.n, to, p.n, count, p.log);
        else
          softmax_row(x + r * p.n, to, p.n, p.log);
        if (stream) stream_row(y + r * p.n, room, count * p.n);
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
  const bool stream = p.inner == 1 && past_caches<T>(ctx, p.outer, p.n, dx);
  alignas(64) T room[kRoom];
  softmax_tasks(
      p, simd<T>::N, ctx,
      [&](int64_t r, int count) {
        const T *g = dy + r * p.n, *v = y + r * p.n;
        T* to = stream ? room : dx + r * p.n;
        if (p.n <= kNarrow)
          softmax_narrow_backward(g, v, to, p.n, count, p.log);
        else
          softmax_row_backward(g, v, to, p.n, p.log);
        if (stream) stream_row(dx + r * p.n, room, count * p.n);
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

// ---- cross-entropy

struct Target {
  const void* p;
  DType dtype;
  GS_MEMBER int64_t at(int64_t r) const {
    return dtype == kI32 ? (int64_t)((const int32_t*)p)[r] : ((const int64_t*)p)[r];
  }
};

template <class T>
struct Loss {
  const CrossEntropyParams& p;
  const T* weight;
  T smooth;       // label smoothing / classes
  T keep_target;  // 1 - label smoothing
  T weights;      // sum of the class weights
  T scale;        // of dlogits: 1, or 1 / denominator of the mean

  // Row with class t: returns the loss; d (classes) when wanted
  GS_MEMBER T by_index(const T* x, int64_t t, T* d) const {
    int64_t C = p.classes;
    if (t == p.ignore_index) {
      if (d)
        row_each<T>(
            C, [=](int64_t i, int k)
                   __attribute__((always_inline)) { put(d + i, typename simd<T>::V{}, k); });
      return 0;
    }
    if (t < 0 || t >= C) {
      if (d)
        row_each<T>(
            C, [=](int64_t i, int k)
                   __attribute__((always_inline)) { put(d + i, set1((T)__builtin_nan("")), k); });
      return (T)__builtin_nan("");
    }
    T m = row_max(x, C);
    T s = d ? exp_row<T, true>(x, d, m, C) : exp_row<T, false>(x, nullptr, m, C);
    T lse = sizeof(T) == 4 ? (T)::logf((float)s) : (T)::log((double)s);
    T q = (weight ? weight[t] : (T)1) * keep_target;
    T loss = q * (lse - (x[t] - m));
    if (smooth == 0) {
      if (d) {
        T r = q * scale / s;
        row_each<T>(
            C, [=](int64_t i, int k)
                   __attribute__((always_inline)) { put(d + i, get(d + i, k) * r, k); });
        d[t] -= q * scale;
      }
      return loss;
    }
    // smoothing adds smooth * weight[c] to every q[c]
    const T* w = weight;
    T dot = row_sum<T>(
        C, [=](int64_t i, int k) __attribute__((always_inline)) {
          auto v = keep<T>(get(x + i, k) - m, k);
          return w ? get(w + i, k) * v : v;
        });
    loss += smooth * (weights * lse - dot);
    if (d) {
      T r = (q + smooth * weights) * scale / s, u = smooth * scale;
      row_each<T>(
          C, [=](int64_t i, int k) __attribute__((always_inline)) {
            auto v = get(d + i, k) * r;
            put(d + i, w ? v - u * get(w + i, k) : v - u, k);
          });
      d[t] -= q * scale;
    }
    return loss;
  }

  // Rows 0 .. count - 1 of at most kNarrow classes, first being row `first` of the targets; loss
  // (count)
  GS_MEMBER void narrow(const T* x, const Target& target, int64_t first, int count, T* loss,
                        T* d) const {
    using V = typename simd<T>::V;
    using I = typename simd<T>::I;
    using S = typename simd<T>::S;
    constexpr int N = simd<T>::N;
    constexpr S kIgnored = -1, kWrong = -2;  // beside the classes
    const int64_t C = p.classes;
    V z[kNarrow], e[kNarrow], dot = {};
    for (int64_t c = C; c < kNarrow; ++c) z[c] = e[c] = V{};
    load_rows(x, C, count, z);
    V s = exp_lanes<T>(z, e, C), lse = GS_ISA::log(s);
    if (smooth != 0)
      for (int64_t c = 0; c < C; ++c) dot += weight ? weight[c] * z[c] : z[c];
    S lanes[N];
    for (int r = 0; r < N; ++r) {
      int64_t t = r < count ? target.at(first + r) : p.ignore_index;
      S code = t < 0 || t >= C ? kWrong : (S)t;
      lanes[r] = t == p.ignore_index ? kIgnored : code;
    }
    I cls;
    __builtin_memcpy(&cls, lanes, sizeof cls);
    V at = {}, q = set1((T)1);  // logit less maximum and weight of each row's class
    for (int64_t c = 0; c < C; ++c) {
      I hit = cls == set1((S)c);
      at = hit ? z[c] : at;
      if (weight) q = hit ? set1(weight[c]) : q;
    }
    const I ignored = cls == set1(kIgnored), wrong = cls == set1(kWrong);
    const V nan = set1((T)__builtin_nan(""));
    q *= keep_target;
    V l = q * (lse - at), factor = q;
    if (smooth != 0) {
      l += smooth * (weights * lse - dot);
      factor += smooth * weights;
    }
    l = wrong ? nan : l;
    store(loss, ignored ? V{} : l);
    if (!d) return;
    factor *= scale;
    q *= scale;
    const V f = (wrong ? nan : factor) / s;
    const T u = smooth * scale;
    for (int64_t c = 0; c < C; ++c) {
      V v = e[c] * f;
      if (smooth != 0) v -= weight ? u * weight[c] : u;
      v -= cls == set1((S)c) ? q : V{};
      e[c] = ignored ? V{} : v;
    }
    store_rows(e, C, count, d);
  }

  // Row with probabilities q0 (classes)
  GS_MEMBER T by_probability(const T* x, const T* q0, T* d) const {
    using V = typename simd<T>::V;
    int64_t C = p.classes;
    const T *w = weight, a = keep_target, b = smooth;
    auto q = [=](int64_t i, int k) __attribute__((always_inline)) {
      V v = keep<T>(fma(get(q0 + i, k), set1(a), set1(b)), k);
      return w ? v * get(w + i, k) : v;
    };
    T m = row_max(x, C);
    T s = d ? exp_row<T, true>(x, d, m, C) : exp_row<T, false>(x, nullptr, m, C);
    T lse = sizeof(T) == 4 ? (T)::logf((float)s) : (T)::log((double)s);
    T mass = row_sum<T>(C, q);
    // a class of probability zero adds nothing, even where its logit is -inf
    T dot = row_sum<T>(
        C, [=](int64_t i, int k) __attribute__((always_inline)) {
          V v = q(i, k);
          return v == 0 ? V{} : v * (get(x + i, k) - m - lse);
        });
    if (d) {
      T r = mass * scale / s, u = scale;
      row_each<T>(
          C, [=](int64_t i, int k) __attribute__((always_inline)) {
            put(d + i, get(d + i, k) * r - u * q(i, k), k);
          });
    }
    return -dot;
  }
};

template <class T>
void cross_entropy(const void* params, void* const* buf, const Ctx* ctx) {
  const CrossEntropyParams& p = *(const CrossEntropyParams*)params;
  const T* x = (const T*)buf[0];
  const Target target{buf[1], p.target};
  const T* weight = (const T*)buf[2];
  T *loss = (T*)buf[3], *d = (T*)buf[4];
  double *counts = (double*)ctx->scratch, *losses;
  bool indices = p.target == kI32 || p.target == kI64;
  int64_t C = p.classes, group = rows_per_task(p.rows, C), tasks = (p.rows + group - 1) / group;
  losses = counts + tasks;
  Loss<T> f{p, weight, (T)(p.smoothing / (double)(C ? C : 1)), (T)(1 - p.smoothing), (T)C, (T)1};
  if (weight && p.smoothing != 0)
    f.weights = row_sum<T>(
        C, [=](int64_t i, int k) __attribute__((always_inline)) { return get(weight + i, k); });
  double denominator = 1;
  if (p.reduction == kReduceMean) {
    denominator = (double)p.rows;
    if (indices) {
      for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
        int64_t e = (t + 1) * group < p.rows ? (t + 1) * group : p.rows;
        double n = 0;
        for (int64_t r = t * group; r < e; ++r) {
          int64_t c = target.at(r);
          if (c != p.ignore_index) n += weight && c >= 0 && c < C ? (double)weight[c] : 1.0;
        }
        counts[t] = n;
      }
      ctx->sync();
      denominator = 0;
      for (int64_t t = 0; t < tasks; ++t) denominator += counts[t];
    }
    f.scale = (T)(1 / denominator);
  }
  const bool stream = past_caches<T>(ctx, p.rows, C, d);
  alignas(64) T room[kRoom];
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t e = (t + 1) * group < p.rows ? (t + 1) * group : p.rows;
    double sum = 0;
    if (indices && C <= kNarrow) {
      constexpr int N = simd<T>::N;
      for (int64_t r = t * group; r < e; r += N) {
        int count = e - r < N ? (int)(e - r) : N;
        T l[N];
        f.narrow(x + r * C, target, r, count, l, stream ? room : d ? d + r * C : nullptr);
        if (stream) stream_row(d + r * C, room, count * C);
        for (int j = 0; j < count; ++j) {
          if (p.reduction == kReduceNone) loss[r + j] = l[j];
          sum += (double)l[j];
        }
      }
      losses[t] = sum;
      continue;
    }
    for (int64_t r = t * group; r < e; ++r) {
      T* dr = stream ? room : d ? d + r * C : nullptr;
      T l = indices ? f.by_index(x + r * C, target.at(r), dr)
                    : f.by_probability(x + r * C, (const T*)target.p + r * C, dr);
      if (stream) stream_row(d + r * C, room, C);
      if (p.reduction == kReduceNone) loss[r] = l;
      sum += (double)l;
    }
    losses[t] = sum;
  }
  if (stream) write_fence();
  if (p.reduction == kReduceNone) return;
  ctx->sync();
  if (ctx->tid == 0) {
    double sum = 0;
    for (int64_t t = 0; t < tasks; ++t) sum += losses[t];
    loss[0] = (T)(sum / denominator);
  }
}

template <class T>
void cross_entropy_plan(const void* params, Plan* plan) {
  const CrossEntropyParams& p = *(const CrossEntropyParams*)params;
  int64_t group = rows_per_task(p.rows, p.classes);
  plan->tasks = (p.rows + group - 1) / group;
  plan->work = p.rows * p.classes * (sizeof(T) == 8 ? 8 : 1) / 2 + p.rows * 30;
  plan->scratch = (size_t)(2 * plan->tasks + 1) * sizeof(double);
}

template <class T>
void scale_rows(const void* params, void* const* buf, const Ctx* ctx) {
  const ScaleRowsParams& p = *(const ScaleRowsParams*)params;
  const T *x = (const T*)buf[0], *g = (const T*)buf[1];
  T* out = (T*)buf[2];
  int64_t group = rows_per_task(p.rows, p.n), tasks = (p.rows + group - 1) / group;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t e = (t + 1) * group < p.rows ? (t + 1) * group : p.rows;
    for (int64_t r = t * group; r < e; ++r) {
      T f = g[p.one ? 0 : r];
      const T* xr = x + r * p.n;
      T* o = out + r * p.n;
      row_each<T>(
          p.n, [=](int64_t i, int k)
                   __attribute__((always_inline)) { put(o + i, get(xr + i, k) * f, k); });
    }
  }
}

template <class T>
void scale_rows_plan(const void* params, Plan* plan) {
  const ScaleRowsParams& p = *(const ScaleRowsParams*)params;
  int64_t group = rows_per_task(p.rows, p.n);
  plan->tasks = (p.rows + group - 1) / group;
  plan->work = p.rows * p.n / 8 * (int64_t)sizeof(T) / 4;
}

#define GS_BOTH(name, f, plan) \
  {name, kF32, f<float>, plan<float>}, { name, kF64, f<double>, plan<double> }
const KernelEntry entries[] = {
    GS_BOTH("softmax", softmax, softmax_plan),
    GS_BOTH("softmax_backward", softmax_backward, softmax_plan),
    GS_BOTH("cross_entropy", cross_entropy, cross_entropy_plan),
    GS_BOTH("scale_rows", scale_rows, scale_rows_plan),
};

}  // namespace

extern const KernelList softmax_kernels;
const KernelList softmax_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
