// Layer norm and RMS norm: x is (rows, cols), every row by its own mean and variance (RMS: mean
// square).
//
// Forward: a row is read once from memory; mean, then sums of x - c and (x - c)^2 with c the
// rounded mean (so the variance is exact even when mean / std is large), then y, while the next row
// is fetched: the first two sweeps find it in the first-level cache. Several short rows take each
// step together, because what is done once a row (fold, division, root) is a chain of some 150
// cycles and as many operations as a row of 64: sixteen rows are folded by one tree. Backward: sums
// of dy g and dy g xhat in one sweep, which also fetches half of the next rows, then dx, and in the
// same pass dgamma and dbeta of a chunk of rows, four rows at a time; chunks are added in order at
// the end.
//
// Floor: forward 1 read + 1 write, backward 2 reads + 1 write; a task is a chunk of rows.
// Sums run in 64 logical lanes over blocks of 4096 columns, blocks are added in double: the same
// bits on every instruction set with FMA, and an error that does not grow with cols.
#include <string.h>

#include "norm.h"
#include "simd/fold.h"
#include "simd/own.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

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

  // Two sums in the order of block(): f(j, n, &a, &b) gives their vectors.
  template <class F>
  static GS_MEMBER void blocks(int64_t b, int64_t e, V* first, V* second, F f) {
    V s[L], q[L], u, v;
#pragma GCC unroll kUnroll
    for (int i = 0; i < L; ++i) s[i] = q[i] = V{};
    int64_t j = b;
    for (; j + 64 <= e; j += 64)
#pragma GCC unroll kUnroll
      for (int i = 0; i < L; ++i) {
        f(j + i * N, N, &u, &v);
        s[i] += u;
        q[i] += v;
      }
    if (j < e)
#pragma GCC unroll kUnroll
      for (int i = 0; i < L; ++i) {
        int64_t n = e - j - i * N;
        if (n <= 0) continue;
        f(j + i * N, n < N ? (int)n : N, &u, &v);
        s[i] += u;
        q[i] += v;
      }
    *first = fold(s);
    *second = fold(q);
  }
  // Rows that take each step together. total[i] += the sum of the 64 lanes of row i.
  static constexpr int kRows = 16;
  static GS_MEMBER void add_rows(const V* v, int count, double* total) {
    T s[kRows];
    hsums(v, count, s);
    for (int i = 0; i < count; ++i) total[i] += (double)s[i];
  }

  // Means of rows x (count, cols), or with RMS mean squares; fetches the lines of `to`, which will
  // be written.
  template <bool RMS>
  static __attribute__((noinline)) void means(const T* x, int64_t cols, int count, T* to,
                                              double* mean) {
    V part[kRows];
    for (int i = 0; i < count; ++i) mean[i] = 0;
    for (int64_t b = 0; b < cols; b += kBlock) {
      for (int i = 0; i < count; ++i) {
        const T* row = x + i * cols;
        T* line = RMS && to ? to + i * cols : nullptr;
        part[i] = block(b, b + kBlock < cols ? b + kBlock : cols, [=](int64_t j, int n) {
          if (RMS && line) own(line + j, 0);
          V v = get(row + j, n);
          return RMS ? v * v : v;
        });
      }
      add_rows(part, count, mean);
    }
    for (int i = 0; i < count; ++i) mean[i] /= (double)cols;
  }
  // Variances, and the means to more than one float; fetches the same.
  static __attribute__((noinline)) void variances(const T* x, int64_t cols, int count, T* to,
                                                  double* mean, double* var) {
    V part[kRows], square[kRows];
    double d[kRows];
    for (int i = 0; i < count; ++i) d[i] = var[i] = 0;
    for (int64_t b = 0; b < cols; b += kBlock) {
      for (int i = 0; i < count; ++i) {
        const T* row = x + i * cols;
        T* line = to ? to + i * cols : nullptr;
        const V c = set1((T)mean[i]);
        blocks(b, b + kBlock < cols ? b + kBlock : cols, part + i, square + i,
               [=](int64_t j, int n, V* a, V* q) {
                 if (line) own(line + j, 0);
                 V v = keep(get(row + j, n) - c, n);
                 *a = v;
                 *q = v * v;
               });
      }
      add_rows(part, count, d);
      add_rows(square, count, var);
    }
    for (int i = 0; i < count; ++i) {
      d[i] /= (double)cols;
      mean[i] = (double)(T)mean[i] + d[i];
      var[i] = var[i] / (double)cols - d[i] * d[i];
    }
  }

  // xhat = (x - c) * rs + off
  struct Stats {
    T c[kRows], rs[kRows], off[kRows];
    GS_MEMBER void set(int i, double mean, double rstd) {
      c[i] = (T)mean;
      rs[i] = (T)rstd;
      off[i] = (T)(-(mean - (double)c[i]) * rstd);
    }
  };

  // How far ahead of sweeps over n elements the next ones are fetched.
  static GS_MEMBER int64_t next_rows(int64_t n) {
    const int64_t ahead = kAhead / (int64_t)sizeof(T);
    return n > ahead ? n : ahead;
  }
  // Rows that take each step together forward: they stay in the first-level cache. Where y goes
  // past the caches one at a time, its stores overlapping with the next row's sums, unless the core
  // does not mind.
  static GS_MEMBER int together(int64_t cols, const Ctx* ctx, bool stream) {
    if (cols <= 64) return 16;
    if (stream && !ctx->follows) return 1;
    return cols <= 128 ? 16 : cols <= 512 ? 4 : cols <= 1024 ? 2 : 1;
  }
  template <bool RMS, bool G, bool B>
  static void forward_rows(const RowNormParams& p, bool stream, int most, int64_t r0, int64_t r1,
                           const T* x, const T* gamma, const T* beta, T* y, double* stats) {
    const int64_t cols = p.cols, ahead = next_rows(most * cols);
    double mean[kRows], rstd[kRows];
    Stats s;
    for (int64_t r = r0; r < r1; r += most) {
      const int count = r1 - r < most ? (int)(r1 - r) : most;
      T* to = stream ? nullptr : y + r * cols;
      means<RMS>(x + r * cols, cols, count, to, mean);
      if (RMS)
        for (int i = 0; i < count; ++i) rstd[i] = mean[i], mean[i] = 0;
      else
        variances(x + r * cols, cols, count, to, mean, rstd);
      for (int i = 0; i < count; ++i)
        rstd[i] = 1.0 / __builtin_sqrt((rstd[i] < 0 ? 0 : rstd[i]) + p.eps);
      for (int i = 0; i < count; ++i) s.set(i, mean[i], rstd[i]);
      for (int i = 0; i < count; ++i) {
        stats[2 * (r + i)] = mean[i];
        stats[2 * (r + i) + 1] = rstd[i];
      }
      for (int i = 0; i < count; ++i) {
        const T* in = x + (r + i) * cols;
        T* out = y + (r + i) * cols;
        const V c = set1(s.c[i]), rs = set1(s.rs[i]), off = set1(s.off[i]);
        auto step = [=](int64_t j, int n) {
          __builtin_prefetch(in + j + ahead);
          V v = RMS ? get(in + j, n) * rs : fma(get(in + j, n) - c, rs, off);
          if (G && B)
            v = fma(v, get(gamma + j, n), get(beta + j, n));
          else if (G)
            v *= get(gamma + j, n);
          else if (B)
            v += get(beta + j, n);
          put(stream, out + j, v, n);
        };
        int64_t j = 0;
        for (; j + N <= cols; j += N) step(j, N);
        if (j < cols) step(j, (int)(cols - j));
      }
    }
  }
  template <bool RMS>
  static void forward_any(const RowNormParams& p, void* const* buf, const Ctx* ctx) {
    const T *x = (const T*)buf[0], *gamma = (const T*)buf[1], *beta = (const T*)buf[2];
    T* y = (T*)buf[3];
    double* stats = (double*)buf[4];
    const bool stream = past_caches(p, ctx, y);
    const int most = together(p.cols, ctx, stream);
    int64_t per = p.cols < 512 ? 16384 / p.cols : 16;
    if (per * 4 > p.rows) per = p.rows / 4 ? p.rows / 4 : 1;
    int64_t tasks = (p.rows + per - 1) / per;
    for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
      int64_t a = t * per, b = a + per < p.rows ? a + per : p.rows;
      if (gamma)
        beta ? forward_rows<RMS, true, true>(p, stream, most, a, b, x, gamma, beta, y, stats)
             : forward_rows<RMS, true, false>(p, stream, most, a, b, x, gamma, beta, y, stats);
      else
        beta ? forward_rows<RMS, false, true>(p, stream, most, a, b, x, gamma, beta, y, stats)
             : forward_rows<RMS, false, false>(p, stream, most, a, b, x, gamma, beta, y, stats);
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
  // dx = rs * (dy g - m1 - xhat m2)
  struct Grads : Stats {
    T m1[kRows], m2[kRows];
  };
  // The two means over each of `count` rows that their dx needs. Fetches dy + ahead, and the lines
  // of `to`, which will be written.
  template <bool RMS, bool G>
  static __attribute__((noinline)) void grad_means(int64_t cols, int count, const T* dy, const T* x,
                                                   const T* gamma, int64_t ahead, T* to, Grads* s) {
    V part[kRows], with[kRows];
    double first[kRows], second[kRows];
    for (int i = 0; i < count; ++i) first[i] = second[i] = 0;
    for (int64_t b = 0; b < cols; b += kBlock) {
      const int64_t e = b + kBlock < cols ? b + kBlock : cols;
      for (int i = 0; i < count; ++i) {
        const T *g = dy + i * cols, *row = x + i * cols;
        T* line = to ? to + i * cols : nullptr;
        const V c = set1(s->c[i]), rs = set1(s->rs[i]), off = set1(s->off[i]);
        auto dyg = [=](int64_t j, int n) {
          __builtin_prefetch(g + j + ahead);
          if (line) own(line + j, 0);
          return G ? get(g + j, n) * get(gamma + j, n) : get(g + j, n);
        };
        if (RMS)
          with[i] =
              block(b, e, [=](int64_t j, int n) { return dyg(j, n) * (get(row + j, n) * rs); });
        else
          blocks(b, e, part + i, with + i, [=](int64_t j, int n, V* a, V* q) {
            V v = dyg(j, n);
            *a = v;
            *q = v * fma(get(row + j, n) - c, rs, off);
          });
      }
      if (!RMS) add_rows(part, count, first);
      add_rows(with, count, second);
    }
    for (int i = 0; i < count; ++i) {
      s->m1[i] = (T)(first[i] / (double)cols);
      s->m2[i] = (T)(second[i] / (double)cols);
    }
  }
  // Rows i .. i + R from x, dy (ld = cols): dx and sums of dgamma, dbeta
  template <bool RMS, bool G, int R>
  static GS_MEMBER void backward_rows(bool stream, int64_t cols, int64_t ahead, const T* dy,
                                      const T* x, const Grads& s, int i, const T* gamma,
                                      const T* more, T* dx, T* pg, T* pb) {
    V c[R], rs[R], off[R], m1[R], m2[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      c[r] = set1(s.c[i + r]);
      rs[r] = set1(s.rs[i + r]);
      off[r] = set1(s.off[i + r]);
      m1[r] = set1(s.m1[i + r]);
      m2[r] = set1(s.m2[i + r]);
    }
    dy += i * cols;
    x += i * cols;
    if (more) more += i * cols;
    if (dx) dx += i * cols;
    auto step = [&](int64_t j, int n) {
      V g = G ? get(gamma + j, n) : V{}, a[R], b[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        if (!dx) __builtin_prefetch(dy + r * cols + j + ahead);
        __builtin_prefetch(x + r * cols + j + ahead);
        b[r] = get(dy + r * cols + j, n);
        V v = get(x + r * cols + j, n), h = RMS ? v * rs[r] : fma(v - c[r], rs[r], off[r]);
        a[r] = b[r] * h;
        if (dx) {
          v = G ? b[r] * g : b[r];
          v = RMS ? v : v - m1[r];
          v = fnma(h, m2[r], v) * rs[r];
          if (more) v += get(more + r * cols + j, n);
          put(stream, dx + r * cols + j, v, n);
        }
      }
      if (pg)
        put(pg + j, get(pg + j, n) + (R == 4 ? (a[0] + a[R / 4]) + (a[R / 2] + a[R - 1]) : a[0]),
            n);
      if (pb)
        put(pb + j, get(pb + j, n) + (R == 4 ? (b[0] + b[R / 4]) + (b[R / 2] + b[R - 1]) : b[0]),
            n);
    };
    int64_t j = 0;
    for (; j + N <= cols; j += N) step(j, N);
    if (j < cols) step(j, (int)(cols - j));
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
    const int most = cols <= 128 ? 16 : 4;
    const int64_t ahead = next_rows(most * cols);
    for (int64_t t = ctx->tid; t < chunks; t += ctx->nt) {
      int64_t r = t * per, e = r + per < p.rows ? r + per : p.rows;
      T *pg = dgamma ? part + t * 2 * cols : nullptr,
        *pb = dbeta ? part + t * 2 * cols + cols : nullptr;
      if (pg) memset(pg, 0, (size_t)cols * sizeof(T));
      if (pb) memset(pb, 0, (size_t)cols * sizeof(T));
      Grads s;
      for (; r < e; r += most) {
        const int count = e - r < most ? (int)(e - r) : most;
        const T *g = dy + r * cols, *in = x + r * cols, *sum = more ? more + r * cols : more;
        T* out = dx ? dx + r * cols : dx;
        for (int i = 0; i < count; ++i) {
          s.set(i, stats[2 * (r + i)], stats[2 * (r + i) + 1]);
          s.m1[i] = s.m2[i] = 0;
        }
        if (dx) grad_means<RMS, G>(cols, count, g, in, gamma, ahead, stream ? nullptr : out, &s);
        int i = 0;
        for (; i + 4 <= count; i += 4)
          backward_rows<RMS, G, 4>(stream, cols, ahead, g, in, s, i, gamma, sum, out, pg, pb);
        for (; i < count; ++i)
          backward_rows<RMS, G, 1>(stream, cols, ahead, g, in, s, i, gamma, sum, out, pg, pb);
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
        double total[64];
        for (int64_t j = 0; j < m; ++j) total[j] = 0;
        for (int64_t c = 0; c < chunks; ++c) {
          const T* from = part + (c * 2 + k) * cols + j0;
          for (int64_t j = 0; j < m; ++j) total[j] += (double)from[j];
        }
        for (int64_t j = 0; j < m; ++j) out[j0 + j] = (T)total[j];
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
  plan->scratch = (size_t)(chunks_of(p) * 2 * p.cols) * sizeof(double);
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
