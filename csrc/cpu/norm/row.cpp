// Layer norm and RMS norm: x is (rows, cols), every row by its own mean and variance (RMS: mean
// square).
//
// Forward: a row is read once from memory, for the sums of x - c and (x - c)^2, c being the mean of
// its first columns; a row whose mean turns out to be far from c, which is rare, is summed again
// from it, so the variance is exact even when mean / std is large. y then finds the row in the
// first-level cache. Several short rows take each step together, because what is done once a row
// (fold, division, root) is a chain of some 200 cycles and as many operations as a row of 64:
// sixteen rows are folded by one tree, and sweeps of three groups of rows alternate. Where y goes
// past the caches, and for rows of 64 (row64.h), they share a loop with AVX-512. Backward: sums
// of dy g and dy g (x - c) in one sweep, then dx in strips of columns whose dgamma and dbeta stay
// in registers for a group of rows, added up over a chunk of rows; chunks are added in order at the
// end.
//
// Floor: forward 1 read + 1 write, backward 2 reads + 1 write; a task is a chunk of rows, and a
// member takes chunks side by side, so that rows stay with it from kernel to kernel. Without
// memory a vector of 512 columns takes 5 cycles forward and 7 backward (Zen 5, second cache).
// Sums run in 64 logical lanes over blocks of 4096 columns, blocks are added in double: the same
// bits on every instruction set with FMA, and an error that does not grow with cols.
#include <string.h>

#include "norm.h"
#include "norm/row64.h"
#include "simd/fold.h"
#include "simd/own.h"
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {
namespace {

// As many T as a vector has doubles
template <class T>
struct Narrow;
template <>
struct Narrow<float> {
  typedef float V __attribute__((vector_size(GS_VBYTES / 2), may_alias, aligned(4)));
  static GS_MEMBER vd wide(V v) {
#if defined(__AVX512F__)
    return (vd)_mm512_cvtps_pd((__m256)v);
#else
    return __builtin_convertvector(v, vd);
#endif
  }
};
template <>
struct Narrow<double> {
  using V = vd_u;
  static GS_MEMBER vd wide(V v) { return v; }
};

constexpr int64_t kBlock = 4096;
// 64 lanes are up to 32 vectors of 16 bytes: more than the registers, and minutes of compilation
// when unrolled.
constexpr int kUnroll = GS_VBYTES == 16 ? 1 : 8;

GS_INLINE int64_t chunk_rows(int64_t cols) { return cols <= 64 ? 256 : cols <= 256 ? 128 : 64; }
GS_INLINE int64_t chunks_of(const RowNormParams& p) {
  int64_t c = chunk_rows(p.cols);
  return (p.rows + c - 1) / c;
}

template <class T>
struct Row {
  using V = typename simd<T>::V;
  static constexpr int N = simd<T>::N;
  static constexpr int L = 64 / N;  // vectors of 64 lanes

  // 64 lanes to those of a vector: halves folded 32, 16, ...; hsum() goes on to 1. Not a loop over
  // h: GCC would keep the sums of whoever calls this in memory.
  template <int H = L / 2>
  static GS_MEMBER V fold(V (&v)[L]) {
    if constexpr (H > 0) {
#pragma GCC unroll kUnroll
      for (int i = 0; i < H; ++i) v[i] += v[i + H];
      return fold<H / 2>(v);
    } else {
      return v[0];
    }
  }

  // Sum over columns b .. e of f(j, n): a vector for columns j .. j + n, lanes past n zero.
  template <class F>
  static GS_MEMBER V block(int64_t b, int64_t e, F f) {
    V acc[L];
#pragma GCC unroll kUnroll
    for (int i = 0; i < L; ++i) acc[i] = V{};
    int64_t j = b;
    for (; j + 64 <= e; j += 64)
#pragma GCC unroll kUnroll
      for (int i = 0; i < L; ++i) acc[i] += f(j + i * N, N);
    if (j < e)
#pragma GCC unroll kUnroll
      for (int i = 0; i < L; ++i) {
        int64_t n = e - j - i * N;
        if (n >= N)
          acc[i] += f(j + i * N, N);
        else if (n > 0)
          acc[i] += f(j + i * N, (int)n);
      }
    return fold(acc);
  }
  static GS_MEMBER V get(const T* p, int n) { return n == N ? load(p) : load_n(p, n); }
  static GS_MEMBER void put(T* p, V v, int n) {
    if (n == N)
      store(p, v);
    else
      store_n(p, v, n);
  }
  static GS_MEMBER void put(bool stream, T* p, V v, int n) {
    if (n == N)
      write(stream, p, v);
    else
      store_n(p, v, n);
  }
  // lanes from n on set to zero
  static GS_MEMBER V keep(V v, int n) {
    return n == N ? v : (iota<T>() < set1((typename simd<T>::S)n) ? v : V{});
  }

  // Two sums in the order of block(): f(j, n, &a, &b) adds its vectors to them.
  template <class F>
  static GS_MEMBER void blocks(int64_t b, int64_t e, V* first, V* second, F f) {
    V s[L], q[L];
#pragma GCC unroll kUnroll
    for (int i = 0; i < L; ++i) s[i] = q[i] = V{};
    int64_t j = b;
    for (; j + 64 <= e; j += 64)
#pragma GCC unroll kUnroll
      for (int i = 0; i < L; ++i) f(j + i * N, N, s + i, q + i);
    if (j < e)
#pragma GCC unroll kUnroll
      for (int i = 0; i < L; ++i) {
        int64_t n = e - j - i * N;
        if (n >= N)
          f(j + i * N, N, s + i, q + i);
        else if (n > 0)
          f(j + i * N, (int)n, s + i, q + i);
      }
    *first = fold(s);
    *second = fold(q);
  }
  // So many rows, or fewer, take each step together, so that what is done once a row is done in
  // vectors of double. Of numbers of rows that are not there nobody reads anything.
  static constexpr int kRows = 16, kWide = simd<double>::N, W = kRows / kWide;
  struct Each {
    vd v[W];
  };
  static GS_MEMBER vd wide(const T* p) { return Narrow<T>::wide(*(const typename Narrow<T>::V*)p); }
  static GS_MEMBER void put_narrow(T* p, vd v) {
    *(typename Narrow<T>::V*)p = __builtin_convertvector(v, typename Narrow<T>::V);
  }
  // to[i] += the sum of the 64 lanes of row i
  static GS_MEMBER void add_sums_here(const V* v, int count, Each* to) {
    alignas(64) T s[kRows];
    hsums(v, count, s);
    for (int w = 0; w * kWide < count; ++w) to->v[w] += wide(s + w * kWide);
  }
  // The same where a call is nothing beside the rows
  static __attribute__((noinline)) void add_sums_there(const V* v, int count, Each* to) {
    add_sums_here(v, count, to);
  }
  static GS_MEMBER void add_sums(const V* v, int count, Each* to) {
    sizeof(T) == 4 ? add_sums_here(v, count, to) : add_sums_there(v, count, to);
  }

  // Room for the sums of a group of rows
  struct Sums {
    V a[kRows], b[kRows];
    GS_MEMBER void clear() {
      for (int i = 0; i < kRows; ++i) a[i] = b[i] = V{};
    }
  };

  // Mean squares of rows x (count, cols); fetches the lines of `to`, which will be written.
  static __attribute__((noinline)) void mean_squares(const T* x, int64_t cols, int count, T* to,
                                                     Sums* sums, Each* mean) {
    Each q{};
    for (int64_t b = 0; b < cols; b += kBlock) {
      for (int i = 0; i < count; ++i) {
        const T* row = x + i * cols;
        T* line = to ? to + i * cols : nullptr;
        sums->a[i] = block(b, b + kBlock < cols ? b + kBlock : cols, [=](int64_t j, int n) {
          if (line) own(line + j, 0);
          V v = get(row + j, n);
          return v * v;
        });
      }
      add_sums(sums->a, count, &q);
    }
    for (int w = 0; w * kWide < count; ++w) mean->v[w] = q.v[w] * (1.0 / (double)cols);
  }
  // c[i]: the mean of the first 64 columns of row i
  static __attribute__((noinline)) void samples(const T* x, int64_t cols, int count, Sums* sums,
                                                T* c) {
    const int64_t m = cols < 64 ? cols : 64;
    for (int i = 0; i < count; ++i)
      sums->a[i] = block(0, m, [=](int64_t j, int n) { return get(x + i * cols + j, n); });
    Each s{};
    add_sums(sums->a, count, &s);
    for (int w = 0; w * kWide < count; ++w) put_narrow(c + w * kWide, s.v[w] * (1.0 / (double)m));
  }
  // Means, to more than one T, and variances from x - c; fetches the same. A mean that is far from
  // c costs the variance accuracy: such rows are done again from the mean. (The columns that c is
  // from are so far from it then that they alone make the variance large, so this is rare.)
  static __attribute__((noinline)) void variances(const T* x, int64_t cols, int count, const T* c,
                                                  T* to, Sums* sums, Each* mean, Each* var) {
    Each d{}, q{};
    for (int64_t b = 0; b < cols; b += kBlock) {
      for (int i = 0; i < count; ++i) {
        const T* row = x + i * cols;
        T* line = to ? to + i * cols : nullptr;
        const V from = set1(c[i]);
        blocks(b, b + kBlock < cols ? b + kBlock : cols, sums->a + i, sums->b + i,
               [=](int64_t j, int n, V* a, V* q) {
                 if (line) own(line + j, 0);
                 V v = keep(get(row + j, n) - from, n);
                 *a += v;
                 *q = fma(v, v, *q);
               });
      }
      add_sums(sums->a, count, &d);
      add_sums(sums->b, count, &q);
    }
    moments(x, cols, count, c, d, q, mean, var);
  }
  // The same from sums of x - c and of their squares
  static GS_MEMBER void moments(const T* x, int64_t cols, int count, const T* c, const Each& d,
                                const Each& q, Each* mean, Each* var) {
    const double each = 1.0 / (double)cols;
    vl far{};
    for (int w = 0; w * kWide < count; ++w) {
      const vd e = d.v[w] * each;
      mean->v[w] = wide(c + w * kWide) + e;
      var->v[w] = q.v[w] * each - e * e;
      far |= 4 * (e * e) > var->v[w];
    }
    if (cols > 64 && __builtin_expect(any_lane((vi)far), 0)) again(x, cols, count, c, mean, var);
  }
  static __attribute__((noinline)) void again(const T* x, int64_t cols, int count, const T* c,
                                              Each* mean, Each* var) {
    alignas(64) T from[kRows] = {};
    double m[kRows], v[kRows];
    Sums sums;
    sums.clear();
    memcpy(m, mean, sizeof m);
    memcpy(v, var, sizeof v);
    for (int i = 0; i < count; ++i) {
      const double d = m[i] - (double)c[i];
      if (!(4 * d * d > v[i]) || c[i] == (T)m[i]) continue;
      Each one, its;
      from[0] = (T)m[i];
      variances(x + i * cols, cols, 1, from, nullptr, &sums, &one, &its);
      m[i] = one.v[0][0];
      v[i] = its.v[0][0];
    }
    memcpy(mean, m, sizeof m);
    memcpy(var, v, sizeof v);
  }

  // xhat = (x - c) * rs + off
  struct alignas(64) Stats {
    T c[kRows], rs[kRows], off[kRows];
    // kWide rows
    GS_MEMBER void set(int i, vd mean, vd rstd) {
      put_narrow(c + i, mean);
      put_narrow(rs + i, rstd);
      put_narrow(off + i, (wide(c + i) - mean) * rstd);
    }
  };

#if GS_VBYTES == 64
#define GS_FIRST 0, 8, 1, 9, 2, 10, 3, 11
#define GS_SECOND 4, 12, 5, 13, 6, 14, 7, 15
#define GS_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define GS_ODD 1, 3, 5, 7, 9, 11, 13, 15
#elif GS_VBYTES == 32
#define GS_FIRST 0, 4, 1, 5
#define GS_SECOND 2, 6, 3, 7
#define GS_EVEN 0, 2, 4, 6
#define GS_ODD 1, 3, 5, 7
#else
#define GS_FIRST 0, 2
#define GS_SECOND 1, 3
#define GS_EVEN 0, 2
#define GS_ODD 1, 3
#endif
  // mean and rstd of the first n rows of kWide, alternating at p
  static GS_MEMBER void put_pairs(double* p, int n, vd mean, vd rstd) {
    const int most = n < kWide ? 2 * n : 2 * kWide;
    const vd a = __builtin_shufflevector(mean, rstd, GS_FIRST);
    const vd b = __builtin_shufflevector(mean, rstd, GS_SECOND);
    store_n(p, a, most < kWide ? most : kWide);
    if (most > kWide) store_n(p + kWide, b, most - kWide);
  }
  static GS_MEMBER void get_pairs(const double* p, int n, vd* mean, vd* rstd) {
    const int most = n < kWide ? 2 * n : 2 * kWide;
    const vd a = load_n(p, most < kWide ? most : kWide);
    const vd b = most > kWide ? load_n(p + kWide, most - kWide) : vd{};
    *mean = __builtin_shufflevector(a, b, GS_EVEN);
    *rstd = __builtin_shufflevector(a, b, GS_ODD);
  }

  // What results need of rows, and their statistics
  static GS_MEMBER void finish(int count, const Each& mean, const Each& var, double eps, Stats* s,
                               double* stats) {
    for (int w = 0; w * kWide < count; ++w) {
      const vd rs = 1.0 / sqrt(max(vd{}, var.v[w]) + eps);
      s->set(w * kWide, mean.v[w], rs);
      put_pairs(stats + 2 * w * kWide, count - w * kWide, mean.v[w], rs);
    }
  }

  // Whether lines are asked for ahead. A core that follows several arrays by itself is only slowed
  // down, unless its results go past the caches.
  static GS_MEMBER bool asks(const Ctx* ctx, bool stream) { return stream || !ctx->follows; }
  // Whether lines of the results are asked for in the sweep before. To such a core this is a loss
  // of 5 to 25 %, but for rows that end within a line and are not near (8 MB of 250 columns 1.3x).
  static GS_MEMBER bool writes_far(const RowNormParams& p, const Ctx* ctx, bool stream) {
    const int64_t row = p.cols * (int64_t)sizeof(T);
    return !stream && (!ctx->follows || (row % 64 && 4 * p.rows * row >= 3 * ctx->stream));
  }
  // How far ahead of sweeps over n elements the next ones are fetched.
  static GS_MEMBER int64_t next_rows(int64_t n) {
    const int64_t ahead = kAhead / (int64_t)sizeof(T);
    return n > ahead ? n : ahead;
  }
  // A line past the caches takes 6 cycles (Zen 5), and a core that is in the sums of a group of
  // rows meanwhile stores none. So where rows are whole blocks of 64 columns, these sums and the
  // results of the group before share a loop, each in the order of the sweep by itself: layer norm
  // of 8 MB and 512 columns 1.1x, 128 columns 1.3x. A core that does not follow many arrays by
  // itself keeps to sweeps: it overlaps results of a row with sums of the next.
  static constexpr bool kShares = GS_VBYTES == 64 && sizeof(T) == 4;
  static GS_MEMBER bool shares(const Ctx* ctx, bool far, int64_t cols) {
    return kShares && far && ctx->follows && cols % 64 == 0 && cols <= kBlock;
  }
  // Rows that take each step together forward: they stay in the first-level cache. Where y goes
  // past the caches one at a time, its stores overlapping with the next row's sums, unless the core
  // does not mind.
  static GS_MEMBER int together(int64_t cols, const Ctx* ctx, bool stream, bool far) {
    if (cols <= 64) return kRows;
    if (shares(ctx, far, cols)) return cols <= 128 ? kRows : cols <= 256 ? 4 : 2;
    if (stream && !ctx->follows) return 1;
    return cols <= 128 ? kRows : cols <= 256 ? 8 : cols <= 512 ? 4 : cols <= 1024 ? 2 : 1;
  }
  // y of R rows, i, i + 1, ... of s, at x and y
  template <bool RMS, bool G, bool B, int R>
  static GS_MEMBER void results(bool stream, int64_t cols, int64_t ahead, const T* x,
                                const Stats& s, int i, const T* gamma, const T* beta, T* y) {
    V c[R], rs[R], off[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      c[r] = set1(s.c[i + r]);
      rs[r] = set1(s.rs[i + r]);
      off[r] = set1(s.off[i + r]);
    }
    x += i * cols;
    y += i * cols;
    auto step = [&](int64_t j, int n) {
      V g = G ? get(gamma + j, n) : V{}, b = B ? get(beta + j, n) : V{};
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        const T* in = x + r * cols + j;
        if (ahead) __builtin_prefetch(in + ahead);
        V v = RMS ? get(in, n) * rs[r] : fma(get(in, n) - c[r], rs[r], off[r]);
        v = G && B ? fma(v, g, b) : G ? v * g : B ? v + b : v;
        put(stream, y + r * cols + j, v, n);
      }
    };
    int64_t j = 0;
    for (; j + N <= cols; j += N) step(j, N);
    if (j < cols) step(j, (int)(cols - j));
  }
  // Sums of `count` rows at x and y of as many at `last`
  template <bool RMS, bool G, bool B>
  static __attribute__((noinline)) void sums_and_results(int64_t cols, int count, const T* x,
                                                         const T* c, Sums* sums, const T* last,
                                                         const Stats& s, const T* gamma,
                                                         const T* beta, T* y, bool stream) {
    for (int i = 0; i < count; ++i, x += cols, last += cols, y += cols) {
      const V from = set1(c[i]), m = set1(s.c[i]), rs = set1(s.rs[i]), off = set1(s.off[i]);
      V a[L] = {}, q[L] = {};
      for (int64_t j = 0; j < cols; j += 64)
#pragma GCC unroll 4
        for (int k = 0; k < L; ++k) {
          const int64_t at = j + k * N;
          fetch(x + at);
          V v = load(x + at), u = load(last + at);
          if (RMS) {
            q[k] += v * v;
          } else {
            v -= from;
            a[k] += v;
            q[k] = fma(v, v, q[k]);
          }
          u = RMS ? u * rs : fma(u - m, rs, off);
          if (G && B)
            u = fma(u, load(gamma + at), load(beta + at));
          else
            u = G ? u * load(gamma + at) : B ? u + load(beta + at) : u;
          if (!stream) own(y + at, kAhead);
          write(stream, y + at, u);
        }
      if (!RMS) sums->b[i] = fold(q);
      sums->a[i] = fold(RMS ? q : a);
    }
  }
  // What is done once a row waits for the row's sums, and the sweeps wait for it, so sweeps of
  // three groups of rows alternate: sums of one, the sample of the next and the results of the one
  // before.
  template <bool RMS, bool G, bool B>
  static void forward_rows(const RowNormParams& p, const Ctx* ctx, bool stream, int64_t r0,
                           int64_t r1, const T* x, const T* gamma, const T* beta, T* y,
                           double* stats) {
    // results that stay in a farther cache are not faster there, but for such a loop
    const bool far = stream || 4 * p.rows * p.cols * (int64_t)sizeof(T) >= 3 * ctx->stream;
    const int most = together(p.cols, ctx, stream, far);
    const int64_t cols = p.cols, ahead = asks(ctx, stream) ? next_rows(2 * most * cols) : 0;
    const bool owns = writes_far(p, ctx, stream);
    Each mean{}, var;
    Sums sums;
    sums.clear();
    alignas(64) T c[kRows];
    Stats s;
    auto rows_at = [=](int64_t r) { return r >= r1 ? 0 : r1 - r < most ? (int)(r1 - r) : most; };
    if (!RMS) samples(x + r0 * cols, cols, rows_at(r0), &sums, c);
    int before = 0;  // rows before r whose results are missing
    for (int64_t r = r0;; r += most) {
      const int count = rows_at(r), next = rows_at(r + most);
      T* to = owns ? y + r * cols : nullptr;
      if constexpr (kShares && G && B == !RMS)
        if (count == most && before == most && shares(ctx, far, cols)) {
          sums_and_results<RMS, G, B>(cols, most, x + r * cols, c, &sums, x + (r - most) * cols, s,
                                      gamma, beta, y + (r - most) * cols, stream);
          Each d{}, q{};
          add_sums_there(sums.a, most, &d);
          if (!RMS) add_sums_there(sums.b, most, &q);
          if (RMS)
            for (int w = 0; w * kWide < most; ++w) var.v[w] = d.v[w] * (1.0 / (double)cols);
          else
            moments(x + r * cols, cols, most, c, d, q, &mean, &var);
          if (!RMS && next) samples(x + (r + most) * cols, cols, next, &sums, c);
          finish(most, mean, var, p.eps, &s, stats + 2 * r);
          continue;
        }
      if (RMS && count) mean_squares(x + r * cols, cols, count, to, &sums, &var);
      if (!RMS && count) variances(x + r * cols, cols, count, c, to, &sums, &mean, &var);
      if (!RMS && next) samples(x + (r + most) * cols, cols, next, &sums, c);
      if (before) {
        const T* last = x + (r - most) * cols;
        T* out = y + (r - most) * cols;
        int i = 0;
        // a line that goes past the caches in parts should not wait for those of another row
        for (; (GS_VBYTES == 64 || !stream) && i + 2 <= before; i += 2)
          results<RMS, G, B, 2>(stream, cols, ahead, last, s, i, gamma, beta, out);
        for (; i < before; ++i)
          results<RMS, G, B, 1>(stream, cols, ahead, last, s, i, gamma, beta, out);
      }
      if (!count) break;
      before = count;
      finish(count, mean, var, p.eps, &s, stats + 2 * r);
    }
  }
  template <bool RMS>
  static void forward_any(const RowNormParams& p, void* const* buf, const Ctx* ctx) {
    const T *x = (const T*)buf[0], *gamma = (const T*)buf[1], *beta = (const T*)buf[2];
    T* y = (T*)buf[3];
    double* stats = (double*)buf[4];
    const bool alone = 2 * p.rows * p.cols * (int64_t)sizeof(T) <= p.holds;
    const bool stream = !alone && past_caches(p, ctx, y);
    int64_t per = p.cols < 1024 ? 32768 / p.cols : 32;
    if (per * 4 > p.rows) per = p.rows / 4 ? p.rows / 4 : 1;
    int64_t tasks = (p.rows + per - 1) / per;
    const int64_t last = tasks * (ctx->tid + 1) / ctx->nt;
    for (int64_t t = tasks * ctx->tid / ctx->nt; t < last; ++t) {
      int64_t a = t * per, b = a + per < p.rows ? a + per : p.rows;
#if defined(__AVX512F__)
      if constexpr (sizeof(T) == 4)
        if (p.cols == 64 && b - a >= 4 * kRows) {
          const int64_t groups = (b - a) / kRows;
          Rows64::forward<RMS>(stream, writes_far(p, ctx, stream), groups, p.eps, x + a * 64, gamma,
                               beta, y + a * 64, stats + 2 * a);
          a += groups * kRows;
          if (a == b) continue;
        }
#endif
      if (gamma)
        beta ? forward_rows<RMS, true, true>(p, ctx, stream, a, b, x, gamma, beta, y, stats)
             : forward_rows<RMS, true, false>(p, ctx, stream, a, b, x, gamma, beta, y, stats);
      else
        beta ? forward_rows<RMS, false, true>(p, ctx, stream, a, b, x, gamma, beta, y, stats)
             : forward_rows<RMS, false, false>(p, ctx, stream, a, b, x, gamma, beta, y, stats);
    }
    if (stream) write_fence();
  }
  static GS_MEMBER bool past_caches(const RowNormParams& p, const Ctx* ctx, const T* out) {
    int64_t row = p.cols * (int64_t)sizeof(T);
    return streams(ctx, p.rows * row, out, row);
  }
  static void forward(const void* params, void* const* buf, const Ctx* ctx) {
    const RowNormParams& p = *(const RowNormParams*)params;
    p.rms ? forward_any<true>(p, buf, ctx) : forward_any<false>(p, buf, ctx);
  }

  // ---- backward
  // dx = rs dy g + m1 + xhat m2
  struct Grads : Stats {
    T m1[kRows], m2[kRows];
  };
  // The two means over each of `count` rows that their dx needs. Fetches dy + ahead, the lines of
  // `to`, which will be written, and of `more`: strips of columns come to both out of order.
  template <bool RMS, bool G>
  static __attribute__((noinline)) void grad_means(int64_t cols, int count, const T* dy, const T* x,
                                                   const T* gamma, int64_t ahead, T* to,
                                                   const T* more, Sums* sums, Grads* s) {
    Each first{}, second{};
    for (int64_t b = 0; b < cols; b += kBlock) {
      const int64_t e = b + kBlock < cols ? b + kBlock : cols;
      for (int i = 0; i < count; ++i) {
        const T *g = dy + i * cols, *row = x + i * cols;
        T* line = to ? to + i * cols : nullptr;
        const T* also = more ? more + i * cols : nullptr;
        const V c = set1(s->c[i]);
        auto dyg = [=](int64_t j, int n) {
          if (ahead) __builtin_prefetch(g + j + ahead);
          if (line) own(line + j, 0);
          if (also) __builtin_prefetch(also + j);
          return G ? get(g + j, n) * get(gamma + j, n) : get(g + j, n);
        };
        if (RMS)
          sums->b[i] = block(b, e, [=](int64_t j, int n) { return dyg(j, n) * get(row + j, n); });
        else
          blocks(b, e, sums->a + i, sums->b + i, [=](int64_t j, int n, V* a, V* q) {
            V v = dyg(j, n);
            *a += v;
            *q = fma(v, get(row + j, n) - c, *q);
          });
      }
      if (!RMS) add_sums(sums->a, count, &first);
      add_sums(sums->b, count, &second);
    }
    set_means<RMS>(cols, count, first, second, s);
  }
  template <bool RMS>
  static GS_MEMBER void set_means(int64_t cols, int count, const Each& first, const Each& second,
                                  Grads* s) {
    for (int w = 0; w * kWide < count; ++w) {
      const vd rs = wide(s->rs + w * kWide), f = rs * (-1.0 / (double)cols);
      vd with = second.v[w] * rs;
      if (!RMS) with += first.v[w] * wide(s->off + w * kWide);
      put_narrow(s->m1 + w * kWide, f * first.v[w]);
      put_narrow(s->m2 + w * kWide, f * with);
    }
  }
  static GS_MEMBER void set_stats(const double* stats, int count, Grads* s) {
    for (int w = 0; w * kWide < count; ++w) {
      vd mean, rstd;
      get_pairs(stats + 2 * w * kWide, count - w * kWide, &mean, &rstd);
      s->set(w * kWide, mean, rstd);
    }
  }
  // Vectors of a strip of columns, whose dgamma and dbeta stay in registers for some rows.
  static constexpr int kStrip = GS_VBYTES == 64 ? 4 : 2;
  // Columns j .. j + S N (the last vector: n lanes) of rows 0 .. count: dx and, added to pg and pb,
  // the sums over these rows for dgamma and dbeta. kPlain: dx is there, is not streamed, and there
  // is nothing to add to it; asking for each vector took a twentieth.
  template <bool RMS, bool G, bool kPlain, int S>
  static GS_MEMBER void strip(bool stream, int64_t cols, int64_t ahead, int count, int64_t j, int n,
                              const T* dy, const T* x, const Grads& s, const T* gamma,
                              const T* more, T* dx, T* pg, T* pb) {
    V g[S], a[S], b[S];
#pragma GCC unroll 4
    for (int k = 0; k < S; ++k) {
      g[k] = G ? get(gamma + j + k * N, n) : V{};
      a[k] = b[k] = V{};
    }
    for (int i = 0; i < count; ++i) {
      const V c = set1(s.c[i]), rs = set1(s.rs[i]), off = set1(s.off[i]);
      const V m1 = set1(s.m1[i]), m2 = set1(s.m2[i]);
      const int64_t at = i * cols + j;
#pragma GCC unroll 4
      for (int k = 0; k < S; ++k) {
        if (!kPlain && ahead && !dx) __builtin_prefetch(dy + at + k * N + ahead);
        if (ahead) __builtin_prefetch(x + at + k * N + ahead);
        const V d = get(dy + at + k * N, n), v = get(x + at + k * N, n);
        const V h = RMS ? v * rs : fma(v - c, rs, off);
        a[k] = fma(d, h, a[k]);
        b[k] += d;
        if (kPlain || dx) {
          V u = G ? d * g[k] : d;
          u = RMS ? u * rs : fma(u, rs, m1);
          u = fma(h, m2, u);
          if (!kPlain && more) u += get(more + at + k * N, n);
          put(!kPlain && stream, dx + at + k * N, u, n);
        }
      }
    }
#pragma GCC unroll 4
    for (int k = 0; k < S; ++k) {
      if (pg) put(pg + j + k * N, get(pg + j + k * N, n) + a[k], n);
      if (pb) put(pb + j + k * N, get(pb + j + k * N, n) + b[k], n);
    }
  }
  // The same for all columns of rows that go past the caches, and the sums of as many rows at dyn
  // and xn, those that follow: see shares(). Beside each strip of a row stands a block of these.
  template <bool RMS>
  static __attribute__((noinline)) void strips_and_sums(int64_t cols, int count, const T* dy,
                                                        const T* x, const Grads& s, const T* gamma,
                                                        T* dx, T* pg, T* pb, const T* dyn,
                                                        const T* xn, const T* cn, Sums* sums) {
    V first[L] = {}, second[L] = {}, from = set1(cn[0]);
    int64_t block = 0;
    int row = 0;
    for (int64_t j = 0; j < cols; j += 64) {
      V g[L], a[L] = {}, b[L] = {};
#pragma GCC unroll 4
      for (int k = 0; k < L; ++k) g[k] = load(gamma + j + k * N);
      for (int i = 0; i < count; ++i) {
        const V c = set1(s.c[i]), rs = set1(s.rs[i]), off = set1(s.off[i]);
        const V m1 = set1(s.m1[i]), m2 = set1(s.m2[i]);
        const int64_t at = i * cols + j;
        V u[L];
#pragma GCC unroll 4
        for (int k = 0; k < L; ++k) {
          const V d = load(dy + at + k * N), v = load(x + at + k * N);
          const V h = RMS ? v * rs : fma(v - c, rs, off);
          a[k] = fma(d, h, a[k]);
          b[k] += d;
          u[k] = d * g[k];
          u[k] = fma(h, m2, RMS ? u[k] * rs : fma(u[k], rs, m1));
        }
#pragma GCC unroll 4
        for (int k = 0; k < L; ++k) write<true>(dx + at + k * N, u[k]);
#pragma GCC unroll 4
        for (int k = 0; k < L; ++k) {
          fetch(dyn + block + k * N);
          fetch(xn + block + k * N);
          const V d = load(dyn + block + k * N) * load(gamma + block + k * N);
          const V v = load(xn + block + k * N);
          if (RMS) {
            second[k] += d * v;
          } else {
            first[k] += d;
            second[k] = fma(d, v - from, second[k]);
          }
        }
        block += 64;
        if (block == cols) {
          if (!RMS) sums->a[row] = fold(first);
          sums->b[row] = fold(second);
#pragma GCC unroll 4
          for (int k = 0; k < L; ++k) first[k] = second[k] = V{};
          block = 0;
          ++row;
          from = set1(cn[row & (kRows - 1)]);
          dyn += cols;
          xn += cols;
        }
      }
#pragma GCC unroll 4
      for (int k = 0; k < L; ++k) {
        if (pg) store(pg + j + k * N, load(pg + j + k * N) + a[k]);
        if (pb) store(pb + j + k * N, load(pb + j + k * N) + b[k]);
      }
    }
  }
  // The same for all columns
  template <bool RMS, bool G>
  static __attribute__((noinline)) void backward_rows(bool stream, int64_t cols, int64_t ahead,
                                                      int count, const T* dy, const T* x,
                                                      const Grads& s, const T* gamma, const T* more,
                                                      T* dx, T* pg, T* pb) {
    constexpr int S = kStrip;
    int64_t j = 0;
    if (dx && !more && !stream)
      for (; j + S * N <= cols; j += S * N)
        strip<RMS, G, true, S>(false, cols, ahead, count, j, N, dy, x, s, gamma, nullptr, dx, pg,
                               pb);
    for (; j + S * N <= cols; j += S * N)
      strip<RMS, G, false, S>(stream, cols, ahead, count, j, N, dy, x, s, gamma, more, dx, pg, pb);
    for (; j < cols; j += N)
      strip<RMS, G, false, 1>(stream, cols, ahead, count, j, cols - j < N ? (int)(cols - j) : N, dy,
                              x, s, gamma, more, dx, pg, pb);
  }
  template <bool RMS, bool G>
  static void backward_any(const RowNormParams& p, void* const* buf, const Ctx* ctx) {
    const T *dy = (const T*)buf[0], *x = (const T*)buf[1], *gamma = (const T*)buf[3];
    const double* stats = (const double*)buf[2];
    T *dx = (T*)buf[4], *dgamma = (T*)buf[5], *dbeta = (T*)buf[6];
    const T* more = dx && p.sum ? (const T*)buf[7] : nullptr;
    T* part = (T*)ctx->scratch;  // (chunks, 2, cols)
    int64_t cols = p.cols, per = chunk_rows(cols), chunks = chunks_of(p);
    const bool stream = dx && past_caches(p, ctx, dx);
    const int most = cols <= 64 ? kRows : cols <= 256 ? 8 : 4;
    const int64_t ahead = asks(ctx, stream) ? next_rows(most * cols) : 0;
    Sums sums;
    sums.clear();
    Grads both[2];  // of a group of rows, and of the next
    memset(both, 0, sizeof both);
    int now = 0;
    bool ready = false;  // whether the means of the next group are known
    const int64_t own = chunks * ctx->tid / ctx->nt, last = chunks * (ctx->tid + 1) / ctx->nt;
    memset(part + own * 2 * cols, 0, (size_t)((last - own) * 2 * cols) * sizeof(T));
    const int64_t end = last * per < p.rows ? last * per : p.rows;
    const bool share = shares(ctx, stream, cols) && G && !more;
    const bool owns = more ? !stream : writes_far(p, ctx, stream);
    int64_t done = 0;  // so many rows, if more than those before its own
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      if (cols == 64 && dx && !more && own < last &&
          (stream || 2 * p.rows * cols * (int64_t)sizeof(T) < ctx->stream)) {
        // (of dx that goes to a farther cache the sweeps are faster)
        const int64_t r = own * per;
        T* sums = part + own * 2 * cols;
        done = r + (end - r) / kRows * kRows;
        Rows64::backward<RMS>(stream, owns, (end - r) / kRows, dy + r * cols, x + r * cols,
                              stats + 2 * r, gamma, dx + r * cols, dgamma ? sums : nullptr,
                              dbeta ? sums + cols : nullptr, per / kRows, 2 * cols);
      }
#endif
    for (int64_t t = own; t < last; ++t) {
      int64_t r = t * per, e = r + per < p.rows ? r + per : p.rows;
      T *pg = dgamma ? part + t * 2 * cols : nullptr,
        *pb = dbeta ? part + t * 2 * cols + cols : nullptr;
      if (r < done) r = done < e ? done : e;
      for (; r < e; r += most) {
        const int count = e - r < most ? (int)(e - r) : most;
        const T *g = dy + r * cols, *in = x + r * cols, *sum = more ? more + r * cols : more;
        T* out = dx ? dx + r * cols : dx;
        Grads &s = both[now], &after = both[1 - now];
        if (!ready) {
          set_stats(stats + 2 * r, count, &s);
          if (dx)
            grad_means<RMS, G>(cols, count, g, in, gamma, ahead, owns ? out : nullptr, sum, &sums,
                               &s);
        }
        ready = share && r + 2 * most <= end;
        if constexpr (kShares && G)
          if (ready) {
            const int64_t next = r + most;
            set_stats(stats + 2 * next, most, &after);
            strips_and_sums<RMS>(cols, most, g, in, s, gamma, out, pg, pb, dy + next * cols,
                                 x + next * cols, after.c, &sums);
            Each first{}, second{};
            if (!RMS) add_sums_there(sums.a, most, &first);
            add_sums_there(sums.b, most, &second);
            set_means<RMS>(cols, most, first, second, &after);
            now = 1 - now;
            continue;
          }
        backward_rows<RMS, G>(stream, cols, ahead, count, g, in, s, gamma, sum, out, pg, pb);
      }
    }
    if (stream) write_fence();
    if (!dgamma && !dbeta) return;
    ctx->sync();
    for (int64_t t = ctx->tid; t < (cols + 63) / 64; t += ctx->nt)
      for (int k = 0; k < 2; ++k) {
        T* out = k ? dbeta : dgamma;
        if (!out) continue;
        int64_t j0 = t * 64, m = cols - j0 < 64 ? cols - j0 : 64;
        vd total[64 / kWide];
        for (int i = 0; i < 64 / kWide; ++i) total[i] = vd{};
        for (int64_t c = 0; c < chunks; ++c) {
          const T* from = part + (c * 2 + k) * cols + j0;  // after the last: scratch to spare
#pragma GCC unroll 8
          for (int i = 0; i < 64 / kWide; ++i) total[i] += wide(from + i * kWide);
        }
        alignas(64) T sum[64];
        for (int i = 0; i < 64 / kWide; ++i) put_narrow(sum + i * kWide, total[i]);
        memcpy(out + j0, sum, (size_t)m * sizeof(T));
      }
  }
  static void backward(const void* params, void* const* buf, const Ctx* ctx) {
    const RowNormParams& p = *(const RowNormParams*)params;
    if (p.rms)
      buf[3] ? backward_any<true, true>(p, buf, ctx) : backward_any<true, false>(p, buf, ctx);
    else
      buf[3] ? backward_any<false, true>(p, buf, ctx) : backward_any<false, false>(p, buf, ctx);
  }
};

void forward_plan(const void* params, Plan* plan) {
  const RowNormParams& p = *(const RowNormParams*)params;
  plan->tasks = p.rows;
  plan->work = (int64_t)((double)p.rows * (20 + 0.2 * (double)p.cols));
}
void backward_plan(const void* params, Plan* plan) {
  const RowNormParams& p = *(const RowNormParams*)params;
  plan->tasks = chunks_of(p);
  plan->work = (int64_t)((double)p.rows * (30 + 0.4 * (double)p.cols));
  plan->scratch = (size_t)(chunks_of(p) * 2 * p.cols + 64) * sizeof(double);
}

const KernelEntry entries[] = {
    {"row_norm", kF32, Row<float>::forward, forward_plan},
    {"row_norm", kF64, Row<double>::forward, forward_plan},
    {"row_norm_backward", kF32, Row<float>::backward, backward_plan},
    {"row_norm_backward", kF64, Row<double>::backward, backward_plan},
};

}  // namespace

extern const KernelList norm_row_kernels;
const KernelList norm_row_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
