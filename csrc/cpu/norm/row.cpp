// Layer norm and RMS norm: x is (rows, cols), every row by its own mean and variance (RMS: mean
// square).
//
// Forward: a row is read once from memory; mean, then sums of x - c and (x - c)^2 with c the
// rounded mean (so the variance is exact even when mean / std is large), then y, while the next row
// is fetched: the first two sweeps find it in the first-level cache. Several short rows take each
// step together, because what is done once a row (fold, division, root) is a chain of some 150
// cycles. Backward: sums of dy g and dy g xhat in one sweep, which also fetches half of the next
// rows, then dx, and in the same pass dgamma and dbeta of a chunk of rows, four rows at a time;
// chunks are added in order at the end.
//
// Floor: forward 1 read + 1 write, backward 2 reads + 1 write; a task is a chunk of rows.
// Sums run in 64 logical lanes over blocks of 4096 columns, blocks are added in double: the same
// bits on every instruction set with FMA, and an error that does not grow with cols.
#include <string.h>

#include "norm.h"
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

  // The sum of 64 lanes: halves folded 32, 16, ..., 1.
  static GS_MEMBER T fold(V (&v)[L]) {
#pragma GCC unroll 6
    for (int h = L / 2; h > 0; h /= 2)
#pragma GCC unroll kUnroll
      for (int i = 0; i < h; ++i) v[i] += v[i + h];
    return hsum(v[0]);
  }

  // Sum over the columns of f(j, n): a vector for columns j .. j + n, lanes past n zero.
  template <class F>
  static GS_MEMBER double sum(int64_t cols, F f) {
    double total = 0;
    for (int64_t b = 0; b < cols; b += kBlock) {
      int64_t e = b + kBlock < cols ? b + kBlock : cols, j = b;
      V acc[L];
#pragma GCC unroll kUnroll
      for (int i = 0; i < L; ++i) acc[i] = V{};
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
      total += (double)fold(acc);
    }
    return total;
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

  // Two sums over the columns, in the order of sum(): f(j, n, &a, &b) gives their vectors.
  template <class F>
  static GS_MEMBER void sums(int64_t cols, double* first, double* second, F f) {
    *first = *second = 0;
    for (int64_t b = 0; b < cols; b += kBlock) {
      int64_t e = b + kBlock < cols ? b + kBlock : cols, j = b;
      V s[L], q[L], u, v;
#pragma GCC unroll kUnroll
      for (int i = 0; i < L; ++i) s[i] = q[i] = V{};
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
      *first += (double)fold(s);
      *second += (double)fold(q);
    }
  }

  struct Stat {
    T c, rs, off;  // xhat = (x - c) * rs + off
  };
  static GS_MEMBER Stat make(double mean, double rstd) {
    Stat s;
    s.c = (T)mean;
    s.rs = (T)rstd;
    s.off = (T)(-(mean - (double)s.c) * rstd);
    return s;
  }

  // The mean, or with RMS the mean square; fetches the lines of `to`, to be written.
  template <bool RMS>
  static __attribute__((noinline)) double row_mean(const T* x, int64_t cols, T* to) {
    return sum(cols,
               [=](int64_t j, int n) {
                 if (RMS && to) own(to + j, 0);
                 V v = get(x + j, n);
                 return RMS ? v * v : v;
               }) /
           (double)cols;
  }
  // The variance, and the mean to more than one float; fetches the same.
  static __attribute__((noinline)) double row_var(const T* x, int64_t cols, T* to, double* mean) {
    V c = set1((T)*mean);
    double d, var;
    sums(cols, &d, &var, [=](int64_t j, int n, V* a, V* b) {
      if (to) own(to + j, 0);
      V v = keep(get(x + j, n) - c, n);
      *a = v;
      *b = v * v;
    });
    d /= (double)cols;
    *mean = (double)(T)*mean + d;
    return var / (double)cols - d * d;
  }

  // How far ahead of sweeps over n elements the next ones are fetched.
  static GS_MEMBER int64_t next_rows(int64_t n) {
    const int64_t ahead = kAhead / (int64_t)sizeof(T);
    return n > ahead ? n : ahead;
  }
  // Rows that take each step together: they stay in the first-level cache.
  // One at a time where y goes past the caches: its stores overlap with the next row's sums.
  static GS_MEMBER int64_t together(int64_t cols, bool stream) {
    if (cols <= 64) return 16;
    return stream || cols > 512 ? 1 : cols <= 128 ? 16 : 4;
  }
  template <bool RMS, bool G, bool B>
  static void forward_rows(const RowNormParams& p, bool stream, int64_t r0, int64_t r1, const T* x,
                           const T* gamma, const T* beta, T* y, double* stats) {
    const int64_t most = together(p.cols, stream), ahead = next_rows(most * p.cols);
    auto root = [&](double var) { return 1.0 / __builtin_sqrt((var < 0 ? 0 : var) + p.eps); };
    auto write_row = [&](int64_t r, double mean, double rstd) {
      const T* in = x + r * p.cols;
      T* out = y + r * p.cols;
      stats[2 * r] = mean;
      stats[2 * r + 1] = rstd;
      const Stat s = make(mean, rstd);
      V c = set1(s.c), rs = set1(s.rs), off = set1(s.off);
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
      for (; j + N <= p.cols; j += N) step(j, N);
      if (j < p.cols) step(j, (int)(p.cols - j));
    };
    if (most == 1) {
      for (int64_t r = r0; r < r1; ++r) {
        const T* in = x + r * p.cols;
        T* to = stream ? nullptr : y + r * p.cols;
        double mean = row_mean<RMS>(in, p.cols, to), var = mean;
        if (RMS)
          mean = 0;
        else
          var = row_var(in, p.cols, to, &mean);
        write_row(r, mean, root(var));
      }
      return;
    }
    double mean[16], rstd[16];
    for (int64_t r = r0; r < r1; r += most) {
      const int64_t count = r1 - r < most ? r1 - r : most;
      const T* rows = x + r * p.cols;
      T* to = y + r * p.cols;
      for (int64_t i = 0; i < count; ++i)
        mean[i] = row_mean<RMS>(rows + i * p.cols, p.cols, stream ? nullptr : to + i * p.cols);
      for (int64_t i = 0; i < count; ++i)
        if (RMS)
          rstd[i] = mean[i], mean[i] = 0;
        else
          rstd[i] =
              row_var(rows + i * p.cols, p.cols, stream ? nullptr : to + i * p.cols, mean + i);
      for (int64_t i = 0; i < count; ++i) rstd[i] = root(rstd[i]);
      for (int64_t i = 0; i < count; ++i) write_row(r + i, mean[i], rstd[i]);
    }
  }
  template <bool RMS>
  static void forward_any(const RowNormParams& p, void* const* buf, const Ctx* ctx) {
    const T *x = (const T*)buf[0], *gamma = (const T*)buf[1], *beta = (const T*)buf[2];
    T* y = (T*)buf[3];
    double* stats = (double*)buf[4];
    const bool stream = past_caches(p, ctx, y);
    int64_t per = p.cols < 512 ? 16384 / p.cols : 16;
    if (per * 4 > p.rows) per = p.rows / 4 ? p.rows / 4 : 1;
    int64_t tasks = (p.rows + per - 1) / per;
    for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
      int64_t a = t * per, b = a + per < p.rows ? a + per : p.rows;
      if (gamma)
        beta ? forward_rows<RMS, true, true>(p, stream, a, b, x, gamma, beta, y, stats)
             : forward_rows<RMS, true, false>(p, stream, a, b, x, gamma, beta, y, stats);
      else
        beta ? forward_rows<RMS, false, true>(p, stream, a, b, x, gamma, beta, y, stats)
             : forward_rows<RMS, false, false>(p, stream, a, b, x, gamma, beta, y, stats);
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
  struct Grad {
    V c, rs, off, m1, m2;  // dx = rs * (dy g - m1 - xhat m2)
  };
  template <bool RMS>
  static GS_MEMBER V xhat(V x, const Grad& s) {
    return RMS ? x * s.rs : fma(x - s.c, s.rs, s.off);
  }
  // The two means over a row that its dx needs. A function of its own: rows share the code.
  // Fetches dy + ahead, and the lines of `to`, which will be written.
  template <bool RMS, bool G>
  static __attribute__((noinline)) void row_means(int64_t cols, const T* dy, const T* x,
                                                  const T* gamma, int64_t ahead, T* to, Grad* s) {
    const Grad q = *s;
    auto dyg = [=](int64_t j, int n) {
      __builtin_prefetch(dy + j + ahead);
      if (to) own(to + j, 0);
      return G ? get(dy + j, n) * get(gamma + j, n) : get(dy + j, n);
    };
    double first = 0, second;
    if (RMS)
      second = sum(cols, [=](int64_t j, int n) { return dyg(j, n) * xhat<RMS>(get(x + j, n), q); });
    else
      sums(cols, &first, &second, [=](int64_t j, int n, V* a, V* b) {
        V g = dyg(j, n);
        *a = g;
        *b = g * xhat<RMS>(get(x + j, n), q);
      });
    s->m1 = set1((T)(first / (double)cols));
    s->m2 = set1((T)(second / (double)cols));
  }
  // R rows from x, dy (ld = cols): dx and sums of dgamma, dbeta
  template <bool RMS, bool G, int R>
  static GS_MEMBER void backward_rows(bool stream, int64_t cols, const T* dy, const T* x,
                                      const double* stats, const T* gamma, const T* more, T* dx,
                                      T* pg, T* pb) {
    const int64_t ahead = next_rows(R * cols);
    Grad s[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      Stat st = make(stats[2 * r], stats[2 * r + 1]);
      s[r].c = set1(st.c);
      s[r].rs = set1(st.rs);
      s[r].off = set1(st.off);
      s[r].m1 = s[r].m2 = V{};
      if (dx)
        row_means<RMS, G>(cols, dy + r * cols, x + r * cols, gamma, ahead,
                          stream ? nullptr : dx + r * cols, &s[r]);
    }
    auto step = [&](int64_t j, int n) {
      V g = G ? get(gamma + j, n) : V{}, a[R], b[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        if (!dx) __builtin_prefetch(dy + r * cols + j + ahead);
        __builtin_prefetch(x + r * cols + j + ahead);
        b[r] = get(dy + r * cols + j, n);
        V h = xhat<RMS>(get(x + r * cols + j, n), s[r]);
        a[r] = b[r] * h;
        if (dx) {
          V v = G ? b[r] * g : b[r];
          v = RMS ? v : v - s[r].m1;
          v = fnma(h, s[r].m2, v) * s[r].rs;
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
    for (int64_t t = ctx->tid; t < chunks; t += ctx->nt) {
      int64_t r = t * per, e = r + per < p.rows ? r + per : p.rows;
      T *pg = dgamma ? part + t * 2 * cols : nullptr,
        *pb = dbeta ? part + t * 2 * cols + cols : nullptr;
      if (pg) memset(pg, 0, (size_t)cols * sizeof(T));
      if (pb) memset(pb, 0, (size_t)cols * sizeof(T));
      for (; r + 4 <= e; r += 4)
        backward_rows<RMS, G, 4>(stream, cols, dy + r * cols, x + r * cols, stats + 2 * r, gamma,
                                 more ? more + r * cols : more, dx ? dx + r * cols : dx, pg, pb);
      for (; r < e; ++r)
        backward_rows<RMS, G, 1>(stream, cols, dy + r * cols, x + r * cols, stats + 2 * r, gamma,
                                 more ? more + r * cols : more, dx ? dx + r * cols : dx, pg, pb);
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
