// Batch, group and instance norm of channels-last data: x is (outer, rows, channels), see norm.h.
//
// Forward, training: (1) chunks of rows: sums of x - k and (x - k)^2 a channel, k the mean of the
// chunk's first eight rows; (2) chunks merged in order in double (Chan: n, mean, M2), running
// statistics, and the coefficients of y = (x - hi) * a + b; (3) y. Backward: (1) chunks: sums of dy
// and dy * (x - hi); (2) coefficients of dx = A * dy + B * (x - hi) + D, dgamma, dbeta; (3) dx.
//
// Why k: for any data (k - mean)^2 <= M2 / 8, so sum (x - k)^2 <= M2 (1 + n / 8) and the
// subtraction loses at most log2(1 + n / 8) bits, none in practice, however large mean / std is.
// The mean is kept in double; hi is its float part and the rest goes into b (and D), so y is as
// accurate as its statistics.
//
// Floor, in passes over a tensor: forward 2 reads + 1 write (eval: 1 + 1), backward 4 reads + 1
// write; a few operations an element, so the memory that holds x and dy sets the pace. Phase 3
// takes the chunks in the opposite order to find the last ones still in the core's own cache. In a
// captured step (1) may have been done by the convolution that made x: channel_norm_piece. There y
// may also lie where x or the residual was, dx where dy or x was (graph/plan.cpp): a chunk reads an
// element before it writes it, and all other reads lie before a barrier.
//
// Few channels: g rows are folded into one of g * channels columns, a multiple of 16 and at least
// 64, so that every vector is full; the g columns of a channel share k and are added afterwards.
//
// Group norm of one row a sample (x of two dimensions) has more groups than work: outer * groups
// statistics of a few values each. It computes those of kGroups groups side by side
// (forward_single, backward_single), each sample by itself in one go.
#include "norm.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int kBlock = kNormBlock;
using Cut = NormCut;

enum Mask { kNoMask, kFromY, kFromX };

// One task: `rows` full rows from `at` (element offset), then `rest` columns of a partial row.
struct Piece {
  int64_t sample, chunk, col, width, at, rows, rest;

  GS_MEMBER void init(const ChannelNormParams& p, const Cut& cut, int64_t t) {
    col = t % cut.blocks * cut.width;
    width = cut.cols - col < cut.width ? cut.cols - col : cut.width;
    chunk = t / cut.blocks % cut.chunks;
    sample = t / cut.blocks / cut.chunks;
    rows = cut.rows - chunk * cut.chunk;
    rest = rows <= cut.chunk ? cut.rest : 0;  // fold > 1 only: then col is 0
    if (rows > cut.chunk) rows = cut.chunk;
    at = sample * p.rows * p.channels + chunk * cut.chunk * cut.cols + col;
  }
  // values of a channel in this piece
  GS_MEMBER int64_t count(const ChannelNormParams& p, const Cut& cut) const {
    return rows * cut.fold + rest / p.channels;
  }
};

// A member's tasks: a stretch, as convolutions deal out images (conv/winograd.h), so that it finds
// what it has written itself.
struct Share {
  int64_t first, end;
  GS_MEMBER Share(const Cut& cut, const Ctx* ctx)
      : first(cut.tasks * ctx->tid / ctx->nt), end(cut.tasks * (ctx->tid + 1) / ctx->nt) {}
};

struct Scratch {
  double* part;  // (outer, chunks, 2, channels): chunk statistics or sums
  double* sums;  // (outer, 2, channels): backward sums
  char* coef;    // T (outer, 6, padded cols): hi, a, b, A, B, D
};

GS_INLINE size_t scratch_layout(const ChannelNormParams& p, const Cut& cut, char* base,
                                Scratch* s) {
  size_t parts = (size_t)(p.outer * cut.chunks * 2 * p.channels) * sizeof(double);
  size_t sums = (size_t)(p.outer * 2 * p.channels) * sizeof(double);
  parts = (parts + 63) & ~(size_t)63;
  sums = (sums + 63) & ~(size_t)63;
  if (s) {
    s->part = (double*)base;
    s->sums = (double*)(base + parts);
    s->coef = base + parts + sums;
  }
  return parts + sums + (size_t)(p.outer * 6 * cut.padded()) * sizeof(double);
}

template <class T>
struct Kernel {
  using V = typename simd<T>::V;
  static constexpr int N = simd<T>::N;

  template <bool FULL>
  static GS_MEMBER V get(const T* p, int n) {
    if (FULL) return load(p);
    return load_n(p, n);
  }
  template <bool FULL>
  static GS_MEMBER void put(T* p, V v, int n) {
    if (FULL)
      store(p, v);
    else
      store_n(p, v, n);
  }

  // ---- statistics of a piece
  // x (R, ld): s += sum over rows of x - k, q += the squares, for one vector of columns
  template <int R, bool FULL>
  static GS_MEMBER void sum_rows(const T* x, int64_t ld, const T* k, T* s, T* q, int n) {
    V shift = load(k), d[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      fetch(x + r * ld);
      d[r] = get<FULL>(x + r * ld, n) - shift;
    }
    V sum = load(s), sq = load(q);
    if (R == 8) {
      V q0 = d[0] * d[0], q1 = d[4] * d[4];
#pragma GCC unroll 8
      for (int r = 1; r < 4; ++r) {
        q0 = fma(d[r], d[r], q0);
        q1 = fma(d[r + 4], d[r + 4], q1);
      }
      sum += ((d[0] + d[1]) + (d[2] + d[3])) + ((d[4] + d[5]) + (d[6] + d[7]));
      sq += q0 + q1;
    } else {
      sum += d[0];
      sq = fma(d[0], d[0], sq);
    }
    store(s, sum);
    store(q, sq);
  }

  template <int R>
  static GS_MEMBER void sum_row_block(const T* x, int64_t ld, int64_t cols, const T* k, T* s,
                                      T* q) {
    int64_t j = 0;
    for (; j + N <= cols; j += N) sum_rows<R, true>(x + j, ld, k + j, s + j, q + j, N);
    if (j < cols) sum_rows<R, false>(x + j, ld, k + j, s + j, q + j, (int)(cols - j));
  }

  // part (chunks, 2, channels): mean and M2 of the piece
  static void piece_stats(const ChannelNormParams& p, const Cut& cut, const Piece& w, const T* x,
                          double* part) {
    T k[kBlock + 16], s[kBlock + 16], q[kBlock + 16];
    int64_t ld = cut.cols, c = p.channels;
    int64_t width = (w.width + N - 1) / N * N;
    for (int64_t j = 0; j < width; ++j) k[j] = s[j] = q[j] = 0;
    int64_t first = w.rows < 8 ? w.rows : 8;
    for (int64_t r = 0; r < first; ++r)
      for (int64_t j = 0; j < w.width; ++j) k[j] += x[r * ld + j];
    int64_t channels = cut.fold > 1 ? c : w.width;
    for (int64_t f = 1; f < cut.fold; ++f)
      for (int64_t j = 0; j < c; ++j) k[j] += k[f * c + j];
    T scale = first ? (T)1 / (T)(first * cut.fold) : (T)0;
    for (int64_t j = 0; j < channels; ++j) k[j] *= scale;
    for (int64_t f = 1; f < cut.fold; ++f)
      for (int64_t j = 0; j < c; ++j) k[f * c + j] = k[j];

    int64_t r = 0;
    for (; r + 8 <= w.rows; r += 8) sum_row_block<8>(x + r * ld, ld, w.width, k, s, q);
    for (; r < w.rows; ++r) sum_row_block<1>(x + r * ld, ld, w.width, k, s, q);
    for (int64_t j = 0; j < w.rest; ++j) {
      T d = x[r * ld + j] - k[j];
      s[j] += d;
      q[j] += d * d;
    }
    double n = (double)w.count(p, cut);
    double* mean = part + (w.sample * cut.chunks + w.chunk) * 2 * c + (cut.fold > 1 ? 0 : w.col);
    double* m2 = mean + c;
    for (int64_t j = 0; j < channels; ++j) {
      double sum = s[j], sq = q[j];
      for (int64_t f = 1; f < cut.fold; ++f) {
        sum += s[f * c + j];
        sq += q[f * c + j];
      }
      double delta = sum / n, rest = sq - sum * delta;
      mean[j] = (double)k[j] + delta;
      m2[j] = rest > 0 || rest != rest ? rest : 0;
    }
  }

  // Rows of x that are there now: statistics of the chunks that they complete
  static void piece(const void* params, void* const* buf, const Ctx*) {
    const NormPieceParams& q = *(const NormPieceParams*)params;
    ChannelNormParams p{};
    p.outer = 1;
    p.rows = q.rows;
    p.channels = p.groups = q.channels;
    Cut cut;
    cut.init(p);
    const T* x = (const T*)buf[0];
    double* part = (double*)buf[1];
    int32_t* counters = (int32_t*)buf[2];
    const bool folded = cut.fold > 1;  // a chunk needs the columns of all pieces
    const int64_t full = cut.chunk * cut.fold;
    for (int64_t row = q.row0; row < q.row1;) {
      Piece w;
      w.sample = 0;
      w.chunk = row / full < cut.chunks ? row / full : cut.chunks - 1;
      const bool last = w.chunk + 1 == cut.chunks;
      const int64_t end = last ? q.rows : (w.chunk + 1) * full;
      const int64_t next = end < q.row1 ? end : q.row1;
      const int64_t need = (end - w.chunk * full) * (folded ? q.pieces : 1);
      int32_t* count = counters + w.chunk * q.pieces + (folded ? 0 : q.piece);
      const int32_t there = (int32_t)(next - row);
      row = next;
      if (__atomic_add_fetch(count, there, __ATOMIC_ACQ_REL) != need) continue;
      *count = 0;
      w.rows = last ? cut.rows - w.chunk * cut.chunk : cut.chunk;
      w.rest = last ? cut.rest : 0;
      const int64_t c0 = folded ? 0 : q.col, c1 = folded ? cut.cols : q.col + q.cols;
      for (w.col = c0; w.col < c1; w.col += kBlock) {
        w.width = c1 - w.col < kBlock ? c1 - w.col : kBlock;
        w.at = w.chunk * cut.chunk * cut.cols + w.col;
        piece_stats(p, cut, w, x + w.at, part);
      }
    }
  }

  // ---- coefficients
  // hi, a, b of channels c0..c1 of one sample from mean and rstd, replicated over the fold
  static void forward_coef(const ChannelNormParams& p, const Cut& cut, const double* stats,
                           const T* gamma, const T* beta, T* coef, int64_t c0, int64_t c1) {
    int64_t ld = cut.padded(), c = p.channels, per = c / p.groups;
    double mean = 0, rstd = 0;
    for (int64_t j = c0, left = 0, g = c0 / per; j < c1; ++j, --left) {
      if (left == 0) {  // the first channel of group g; c0 is one
        mean = stats[g * 2];
        rstd = stats[g * 2 + 1];
        left = per;
        ++g;
      }
      T hi = (T)mean;
      T a = (T)((gamma ? (double)gamma[j] : 1.0) * rstd);
      T b = (T)((beta ? (double)beta[j] : 0.0) - (mean - (double)hi) * (double)a);
      for (int64_t f = 0; f < cut.fold; ++f) {
        coef[f * c + j] = hi;
        coef[ld + f * c + j] = a;
        coef[2 * ld + f * c + j] = b;
      }
    }
  }

  // Statistics of groups g0..g1 of a sample from its chunks: part (chunks, 2, channels) -> stats
  // (groups, 2)
  static void merge(const ChannelNormParams& p, const Cut& cut, int64_t sample, const double* part,
                    double* stats, int64_t g0, int64_t g1, const Ctx* ctx, void* const* buf) {
    int64_t c = p.channels, per = c / p.groups;
    const double* base = part + sample * cut.chunks * 2 * c;
    double total = (double)p.rows;
    double full = (double)(cut.chunk * cut.fold);
    double last = total - full * (double)(cut.chunks - 1);
    double momentum = ctx->read(p.momentum);
    if (momentum < 0) momentum = buf[5] ? 1.0 / (double)(((const int64_t*)buf[5])[0] + 1) : 1.0;
    constexpr int64_t L = 64;
    double mean[L], m2[L];
    for (int64_t j0 = g0 * per; j0 < g1 * per; j0 += L) {
      int64_t m = g1 * per - j0 < L ? g1 * per - j0 : L;
      if (per > 1 && m > per - j0 % per) m = per - j0 % per;  // a group, or a part of it
      for (int64_t j = 0; j < m; ++j) mean[j] = m2[j] = 0;
      for (int64_t k = 0; k < cut.chunks; ++k) {
        const double* e = base + k * 2 * c + j0;
        double n = k + 1 < cut.chunks ? full : last;
        for (int64_t j = 0; j < m; ++j) mean[j] += n * e[j];
      }
      for (int64_t j = 0; j < m; ++j) mean[j] /= total;
      for (int64_t k = 0; k < cut.chunks; ++k) {
        const double* e = base + k * 2 * c + j0;
        double n = k + 1 < cut.chunks ? full : last;
        for (int64_t j = 0; j < m; ++j) {
          double d = e[j] - mean[j];
          m2[j] += e[c + j] + n * d * d;
        }
      }
      if (per > 1) {
        // channels of a group have one count: their mean and squares together, then behind those
        // that are already there
        int64_t g = j0 / per, before = j0 - g * per;
        double* st = stats + g * 2;
        double gm = 0, gq = 0, n0 = total * (double)m;
        for (int64_t j = 0; j < m; ++j) gm += mean[j];
        gm /= (double)m;
        for (int64_t j = 0; j < m; ++j) {
          double d = mean[j] - gm;
          gq += m2[j] + total * d * d;
        }
        if (before) {
          double nb = total * (double)before, d = gm - st[0];
          gq += st[1] + d * d * (nb * n0 / (nb + n0));
          gm = st[0] + d * (n0 / (nb + n0));
          n0 += nb;
        }
        st[0] = gm;
        st[1] = gq;
        if (before + m == per) st[1] = 1.0 / __builtin_sqrt(gq / n0 + p.eps);
        j0 += m - L;
        continue;
      }
      T* running_mean = (T*)buf[3];
      T* running_var = (T*)buf[4];
      for (int64_t j = 0; j < m; ++j) {
        int64_t g = j0 + j;
        double var = m2[j] / total;
        stats[g * 2] = mean[j];
        stats[g * 2 + 1] = 1.0 / __builtin_sqrt(var + p.eps);
        if (running_mean)
          running_mean[g] = (T)((1 - momentum) * (double)running_mean[g] + momentum * mean[j]);
        if (running_var)
          running_var[g] =
              (T)((1 - momentum) * (double)running_var[g] + momentum * m2[j] / (total - 1));
      }
    }
  }

  // y = v; whole vectors past the caches where `stream` says so
  template <bool FULL>
  static GS_MEMBER void put(bool stream, T* p, V v, int n) {
    if (FULL)
      write(stream, p, v);
    else
      store_n(p, v, n);
  }

  // ---- y = (x - hi) * a + b
  template <int R, bool RELU, bool RES, bool FULL>
  static GS_MEMBER void apply_rows(bool stream, const T* x, const T* res, T* y, int64_t ld,
                                   const T* coef, int64_t cl, int n) {
    V hi = load(coef), a = load(coef + cl), b = load(coef + 2 * cl);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      fetch(x + r * ld);
      V v = fma(get<FULL>(x + r * ld, n) - hi, a, b);
      if (RES) v += get<FULL>(res + r * ld, n);
      if (RELU) v = max(V{}, v);
      put<FULL>(stream, y + r * ld, v, n);
    }
  }
  template <int R, bool RELU, bool RES>
  static GS_MEMBER void apply_block(bool stream, const T* x, const T* res, T* y, int64_t ld,
                                    int64_t cols, const T* coef, int64_t cl) {
    int64_t j = 0;
    for (; j + N <= cols; j += N)
      apply_rows<R, RELU, RES, true>(stream, x + j, res + j, y + j, ld, coef + j, cl, N);
    if (j < cols)
      apply_rows<R, RELU, RES, false>(stream, x + j, res + j, y + j, ld, coef + j, cl,
                                      (int)(cols - j));
  }
  template <bool RELU, bool RES>
  static void apply_piece(bool stream, const Cut& cut, const Piece& w, const T* x, const T* res,
                          T* y, const T* coef) {
    int64_t ld = cut.cols, cl = cut.padded(), r = 0;
    x += w.at;
    y += w.at;
    if (RES)
      res += w.at;
    else
      res = x;
    coef += w.sample * 6 * cl + w.col;
    for (; r + 4 <= w.rows; r += 4)
      apply_block<4, RELU, RES>(stream, x + r * ld, res + r * ld, y + r * ld, ld, w.width, coef,
                                cl);
    for (; r < w.rows; ++r)
      apply_block<1, RELU, RES>(stream, x + r * ld, res + r * ld, y + r * ld, ld, w.width, coef,
                                cl);
    if (w.rest)
      apply_block<1, RELU, RES>(stream, x + r * ld, res + r * ld, y + r * ld, ld, w.rest, coef, cl);
  }

  // ---- one row a sample
  // sum of f(j), j < n, in four chains
  template <class F>
  static GS_MEMBER double sum_of(int64_t n, F f) {
    double s[4] = {};
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) s[i] += f(j + i);
    }
    for (; j < n; ++j) s[0] += f(j);
    return (s[0] + s[1]) + (s[2] + s[3]);
  }

  static void forward_single(const ChannelNormParams& p, const T* x, const T* gamma, const T* beta,
                             T* y, double* stats, const Ctx* ctx) {
    const int64_t c = p.channels, per = c / p.groups;
    const double share = 1.0 / (double)per;
    for (int64_t n = ctx->tid; n < p.outer; n += ctx->nt)
      for (int64_t g = 0; g < p.groups; ++g) {
        const T* v = x + n * c + g * per;
        T* out = y + n * c + g * per;
        double* st = stats + (n * p.groups + g) * 2;
        const double mean = sum_of(per, [=](int64_t j) { return (double)v[j]; }) * share;
        const double sq = sum_of(per, [=](int64_t j) {
          double d = (double)v[j] - mean;
          return d * d;
        });
        st[0] = mean;
        st[1] = 1.0 / __builtin_sqrt(sq * share + p.eps);
        const V hi = set1((T)mean), lo = set1((T)(mean - (double)hi[0])), rstd = set1((T)st[1]);
        for (int64_t j = 0; j < per; j += N) {
          const int k = per - j < N ? (int)(per - j) : N;
          V a = rstd, b = {};
          if (gamma) a *= load_n(gamma + g * per + j, k);
          if (beta) b = load_n(beta + g * per + j, k);
          store_n(out + j, fma(load_n(v + j, k) - hi, a, fnma(lo, a, b)), k);
        }
      }
  }

  // dx = rstd (w - mean(w) - xhat mean(w xhat)), w = gamma dy; sums (outer, 2, channels): dy and
  // dy xhat
  static void backward_single(const ChannelNormParams& p, const T* dy, const T* x,
                              const double* stats, const T* gamma, T* dx, double* sums,
                              const Ctx* ctx) {
    const int64_t c = p.channels, per = c / p.groups;
    const double share = 1.0 / (double)per;
    for (int64_t n = ctx->tid; n < p.outer; n += ctx->nt)
      for (int64_t g = 0; g < p.groups; ++g) {
        const int64_t at = n * c + g * per;
        const T *v = x + at, *d = dy + at, *w = gamma ? gamma + g * per : nullptr;
        const double* st = stats + (n * p.groups + g) * 2;
        const double mean = st[0], rstd = st[1];
        double *o1 = sums + n * 2 * c + g * per, *o2 = o1 + c;
        for (int64_t j = 0; j < per; ++j) {
          o1[j] = (double)d[j];
          o2[j] = (double)d[j] * (((double)v[j] - mean) * rstd);
        }
        if (!dx) continue;
        double t1, t2;
        if (w) {
          t1 = sum_of(per, [=](int64_t j) { return (double)w[j] * o1[j]; });
          t2 = sum_of(per, [=](int64_t j) { return (double)w[j] * o2[j]; });
        } else {
          t1 = sum_of(per, [=](int64_t j) { return o1[j]; });
          t2 = sum_of(per, [=](int64_t j) { return o2[j]; });
        }
        const V hi = set1((T)mean), lo = set1((T)(mean - (double)hi[0])), r = set1((T)rstd),
                m1 = set1((T)(t1 * share)), m2 = set1((T)(t2 * share * rstd));
        for (int64_t j = 0; j < per; j += N) {
          const int k = per - j < N ? (int)(per - j) : N;
          V z = (load_n(v + j, k) - hi) - lo, a = load_n(d + j, k);
          if (w) a *= load_n(w + j, k);
          store_n(dx + at + j, fnma(z, m2, a - m1) * r, k);
        }
      }
  }

  static void forward(const void* params, void* const* buf, const Ctx* ctx) {
    const ChannelNormParams& p = *(const ChannelNormParams*)params;
    if (p.single() && !buf[3] && !buf[4] && !buf[5] && !buf[6])
      return forward_single(p, (const T*)buf[0], (const T*)buf[1], (const T*)buf[2], (T*)buf[7],
                            (double*)buf[8], ctx);
    Cut cut;
    cut.init(p);
    Scratch s;
    scratch_layout(p, cut, ctx->scratch, &s);
    const T *x = (const T*)buf[0], *gamma = (const T*)buf[1], *beta = (const T*)buf[2];
    const T* res = (const T*)buf[6];
    T *y = (T*)buf[7], *coef = (T*)s.coef;
    double* stats = (double*)buf[8];
    int64_t per = p.channels / p.groups, cl = cut.padded();
    const Share share(cut, ctx);
    if (p.parts) {
      s.part = (double*)buf[9];
    } else if (p.training) {
      for (int64_t t = share.first; t < share.end; ++t) {
        Piece w;
        w.init(p, cut, t);
        piece_stats(p, cut, w, x + w.at, s.part);
      }
      ctx->sync();
    }
    int64_t step = per >= 64 ? 1 : 64 / per, parts = (p.groups + step - 1) / step;
    for (int64_t t = ctx->tid; t < p.outer * parts; t += ctx->nt) {
      int64_t n = t / parts, g0 = t % parts * step,
              g1 = g0 + step < p.groups ? g0 + step : p.groups;
      double* st = stats + n * p.groups * 2;
      if (p.training)
        merge(p, cut, n, s.part, st, g0, g1, ctx, buf);
      else
        for (int64_t g = g0; g < g1; ++g) {
          st[g * 2] = (double)((const T*)buf[3])[g];
          st[g * 2 + 1] = 1.0 / __builtin_sqrt((double)((const T*)buf[4])[g] + p.eps);
        }
      forward_coef(p, cut, st, gamma, beta, coef + n * 6 * cl, g0 * per, g1 * per);
    }
    ctx->sync();
    if (p.training && buf[5] && ctx->tid == 0) ++((int64_t*)buf[5])[0];
    // in place (a captured step) the lines are there
    const bool stream = past_caches(p, cut, ctx, y) && y != x && y != res;
    // own tasks from the last to the first
    for (int64_t t = share.end - 1; t >= share.first; --t) {
      Piece w;
      w.init(p, cut, t);
      if (p.relu)
        res ? apply_piece<true, true>(stream, cut, w, x, res, y, coef)
            : apply_piece<true, false>(stream, cut, w, x, res, y, coef);
      else
        res ? apply_piece<false, true>(stream, cut, w, x, res, y, coef)
            : apply_piece<false, false>(stream, cut, w, x, res, y, coef);
    }
    if (stream) write_fence();
  }
  // every vector of the output must lie on a vector's boundary
  static GS_MEMBER bool past_caches(const ChannelNormParams& p, const Cut& cut, const Ctx* ctx,
                                    const T* out) {
    int64_t sample = p.rows * p.channels;
    int64_t step = (p.outer > 1 ? cut.cols | sample : cut.cols) * (int64_t)sizeof(T);
    return streams(ctx, p.outer * sample * (int64_t)sizeof(T), out, step);
  }

  // ---- backward
  // dy where the output was positive; z = x - hi
  template <Mask M, bool FULL>
  static GS_MEMBER V masked(V dy, const T* y, V z, V a, V b, int n) {
    if (M == kFromY) return get<FULL>(y, n) <= V{} ? V{} : dy;
    if (M == kFromX) return fma(z, a, b) <= V{} ? V{} : dy;
    return dy;
  }

  template <Mask M, int R, bool FULL>
  static GS_MEMBER void grad_rows(const T* dy, const T* x, const T* y, int64_t ld, const T* coef,
                                  int64_t cl, T* s1, T* s2, int n) {
    V hi = load(coef), a = {}, b = {}, g[R], h[R];
    if (M == kFromX) {
      a = load(coef + cl);
      b = load(coef + 2 * cl);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      fetch(dy + r * ld);
      fetch(x + r * ld);
      V z = get<FULL>(x + r * ld, n) - hi;
      g[r] = masked<M, FULL>(get<FULL>(dy + r * ld, n), y + r * ld, z, a, b, n);
      h[r] = g[r] * z;
    }
    if (R == 4) {
      store(s1, load(s1) + ((g[0] + g[1]) + (g[2] + g[3])));
      store(s2, load(s2) + ((h[0] + h[1]) + (h[2] + h[3])));
    } else {
      store(s1, load(s1) + g[0]);
      store(s2, load(s2) + h[0]);
    }
  }
  template <Mask M, int R>
  static GS_MEMBER void grad_block(const T* dy, const T* x, const T* y, int64_t ld, int64_t cols,
                                   const T* coef, int64_t cl, T* s1, T* s2) {
    int64_t j = 0;
    for (; j + N <= cols; j += N)
      grad_rows<M, R, true>(dy + j, x + j, y + j, ld, coef + j, cl, s1 + j, s2 + j, N);
    if (j < cols)
      grad_rows<M, R, false>(dy + j, x + j, y + j, ld, coef + j, cl, s1 + j, s2 + j,
                             (int)(cols - j));
  }
  // part (chunks, 2, channels): sum dy and sum dy * (x - hi)
  template <Mask M>
  static void piece_grad(const ChannelNormParams& p, const Cut& cut, const Piece& w, const T* dy,
                         const T* x, const T* y, const T* coef, double* part) {
    T s1[kBlock + 16], s2[kBlock + 16];
    int64_t ld = cut.cols, c = p.channels, cl = cut.padded(), r = 0;
    dy += w.at;
    x += w.at;
    y = M == kFromY ? y + w.at : x;
    coef += w.sample * 6 * cl + w.col;
    for (int64_t j = 0; j < (w.width + N - 1) / N * N; ++j) s1[j] = s2[j] = 0;
    for (; r + 4 <= w.rows; r += 4)
      grad_block<M, 4>(dy + r * ld, x + r * ld, y + r * ld, ld, w.width, coef, cl, s1, s2);
    for (; r < w.rows; ++r)
      grad_block<M, 1>(dy + r * ld, x + r * ld, y + r * ld, ld, w.width, coef, cl, s1, s2);
    if (w.rest) grad_block<M, 1>(dy + r * ld, x + r * ld, y + r * ld, ld, w.rest, coef, cl, s1, s2);
    double* o1 = part + (w.sample * cut.chunks + w.chunk) * 2 * c + (cut.fold > 1 ? 0 : w.col);
    double* o2 = o1 + c;
    int64_t channels = cut.fold > 1 ? c : w.width;
    for (int64_t j = 0; j < channels; ++j) {
      double a = s1[j], b = s2[j];
      for (int64_t f = 1; f < cut.fold; ++f) {
        a += s1[f * c + j];
        b += s2[f * c + j];
      }
      o1[j] = a;
      o2[j] = b;
    }
  }

  // R rows: dx = A * dy + B * (x - hi) + D; with STATS false dx = A * dy
  template <int R, Mask M, bool STATS, bool DRES, bool FULL>
  static GS_MEMBER void dx_rows(bool stream, const T* dy, const T* x, const T* y, T* dx, T* dres,
                                int64_t ld, const T* coef, int64_t cl, int n) {
    V hi = {}, a = {}, b = {}, A = load(coef + 3 * cl), B = {}, D = {};
    if (STATS || M == kFromX) hi = load(coef);
    if (M == kFromX) {
      a = load(coef + cl);
      b = load(coef + 2 * cl);
    }
    if (STATS) {
      B = load(coef + 4 * cl);
      D = load(coef + 5 * cl);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      V z = {};
      fetch(dy + r * ld);
      fetch(x + r * ld);
      if (STATS || M == kFromX) z = get<FULL>(x + r * ld, n) - hi;
      V g = masked<M, FULL>(get<FULL>(dy + r * ld, n), y + r * ld, z, a, b, n);
      if (dx) put<FULL>(stream, dx + r * ld, STATS ? fma(g, A, fma(z, B, D)) : g * A, n);
      if (DRES) put<FULL>(stream, dres + r * ld, g, n);
    }
  }
  template <int R, Mask M, bool STATS, bool DRES>
  static GS_MEMBER void dx_block(bool stream, const T* dy, const T* x, const T* y, T* dx, T* dres,
                                 int64_t ld, int64_t cols, const T* coef, int64_t cl) {
    int64_t j = 0;
    for (; j + N <= cols; j += N)
      dx_rows<R, M, STATS, DRES, true>(stream, dy + j, x + j, y + j, dx ? dx + j : dx,
                                       DRES ? dres + j : dres, ld, coef + j, cl, N);
    if (j < cols)
      dx_rows<R, M, STATS, DRES, false>(stream, dy + j, x + j, y + j, dx ? dx + j : dx,
                                        DRES ? dres + j : dres, ld, coef + j, cl, (int)(cols - j));
  }
  template <Mask M, bool STATS, bool DRES>
  static void dx_piece(bool stream, const Cut& cut, const Piece& w, const T* dy, const T* x,
                       const T* y, T* dx, T* dres, const T* coef) {
    int64_t ld = cut.cols, cl = cut.padded(), r = 0;
    dy += w.at;
    x += w.at;
    y = M == kFromY ? y + w.at : x;
    if (dx) dx += w.at;
    if (DRES) dres += w.at;
    coef += w.sample * 6 * cl + w.col;
    for (; r + 4 <= w.rows; r += 4)
      dx_block<4, M, STATS, DRES>(stream, dy + r * ld, x + r * ld, y + r * ld,
                                  dx ? dx + r * ld : dx, DRES ? dres + r * ld : dres, ld, w.width,
                                  coef, cl);
    for (; r < w.rows + (w.rest > 0); ++r)
      dx_block<1, M, STATS, DRES>(stream, dy + r * ld, x + r * ld, y + r * ld,
                                  dx ? dx + r * ld : dx, DRES ? dres + r * ld : dres, ld,
                                  r < w.rows ? w.width : w.rest, coef, cl);
  }
  template <Mask M, bool DRES>
  static GS_MEMBER void dx_any(bool stats, bool stream, const Cut& cut, const Piece& w, const T* dy,
                               const T* x, const T* y, T* dx, T* dres, const T* coef) {
    stats ? dx_piece<M, true, DRES>(stream, cut, w, dy, x, y, dx, dres, coef)
          : dx_piece<M, false, DRES>(stream, cut, w, dy, x, y, dx, dres, coef);
  }

  // dgamma, dbeta from sums (outer, 2, channels): samples added in order
  static void add_samples(const ChannelNormParams& p, const double* sums, T* dgamma, T* dbeta,
                          const Ctx* ctx) {
    constexpr int64_t L = 64;
    const int64_t c = p.channels;
    if (!dgamma && !dbeta) return;
    for (int64_t j0 = ctx->tid * L; j0 < c; j0 += ctx->nt * L) {
      const int64_t m = c - j0 < L ? c - j0 : L;
      double a[L], b[L];
      for (int64_t j = 0; j < L; ++j) a[j] = b[j] = 0;
      for (int64_t n = 0; n < p.outer; ++n) {
        const double* s = sums + n * 2 * c + j0;
        for (int64_t j = 0; j < m; ++j) {
          a[j] += s[j];
          b[j] += s[c + j];
        }
      }
      for (int64_t j = 0; j < m; ++j) {
        if (dbeta) dbeta[j0 + j] = (T)a[j];
        if (dgamma) dgamma[j0 + j] = (T)b[j];
      }
    }
  }

  static void backward(const void* params, void* const* buf, const Ctx* ctx) {
    const ChannelNormParams& p = *(const ChannelNormParams*)params;
    Cut cut;
    cut.init(p);
    Scratch s;
    scratch_layout(p, cut, ctx->scratch, &s);
    const T *dy = (const T*)buf[0], *x = (const T*)buf[1];
    const double* stats = (const double*)buf[2];
    const T *gamma = (const T*)buf[3], *beta = (const T*)buf[4], *y = (const T*)buf[5];
    T *dx = (T*)buf[6], *dgamma = (T*)buf[7], *dbeta = (T*)buf[8], *dres = (T*)buf[9];
    T* coef = (T*)s.coef;
    int64_t c = p.channels, per = c / p.groups, cl = cut.padded();
    Mask mask = !p.relu ? kNoMask : y ? kFromY : kFromX;
    if (p.single() && !dres) {
      backward_single(p, dy, x, stats, gamma, dx, s.sums, ctx);
      ctx->sync();
      return add_samples(p, s.sums, dgamma, dbeta, ctx);
    }
    const Share share(cut, ctx);
    bool sums = (p.training && dx) || dgamma || dbeta;
    int64_t step = per >= 64 ? 1 : 64 / per, parts = (p.groups + step - 1) / step;
    for (int64_t t = ctx->tid; t < p.outer * parts; t += ctx->nt) {
      int64_t n = t / parts, g0 = t % parts * step,
              g1 = g0 + step < p.groups ? g0 + step : p.groups;
      forward_coef(p, cut, stats + n * p.groups * 2, gamma, beta, coef + n * 6 * cl, g0 * per,
                   g1 * per);
    }
    ctx->sync();
    if (sums) {
      for (int64_t t = share.first; t < share.end; ++t) {
        Piece w;
        w.init(p, cut, t);
        if (mask == kNoMask)
          piece_grad<kNoMask>(p, cut, w, dy, x, y, coef, s.part);
        else if (mask == kFromY)
          piece_grad<kFromY>(p, cut, w, dy, x, y, coef, s.part);
        else
          piece_grad<kFromX>(p, cut, w, dy, x, y, coef, s.part);
      }
      ctx->sync();
    }
    for (int64_t t = ctx->tid; t < p.outer * parts; t += ctx->nt) {
      int64_t n = t / parts, g0 = t % parts * step,
              g1 = g0 + step < p.groups ? g0 + step : p.groups;
      backward_coef(p, cut, n, s, stats + n * p.groups * 2, gamma, coef + n * 6 * cl, g0, g1, sums);
    }
    ctx->sync();
    add_samples(p, s.sums, dgamma, dbeta, ctx);
    if (!dx && !dres) return;
    bool st = p.training, stream = past_caches(p, cut, ctx, dx ? dx : dres);
    if (dx && dres && !past_caches(p, cut, ctx, dres)) stream = false;
    if (dx == dy || dx == x) stream = false;  // in place: the lines are there
    for (int64_t t = share.end - 1; t >= share.first; --t) {
      Piece w;
      w.init(p, cut, t);
      if (mask == kNoMask)
        dx_any<kNoMask, false>(st, stream, cut, w, dy, x, y, dx, dres, coef);
      else if (mask == kFromX)
        dx_any<kFromX, false>(st, stream, cut, w, dy, x, y, dx, dres, coef);
      else if (dres)
        dx_any<kFromY, true>(st, stream, cut, w, dy, x, y, dx, dres, coef);
      else
        dx_any<kFromY, false>(st, stream, cut, w, dy, x, y, dx, dres, coef);
    }
    if (stream) write_fence();
  }

  // Sums of a sample over its chunks, and A, B, D of groups g0..g1
  static void backward_coef(const ChannelNormParams& p, const Cut& cut, int64_t n, const Scratch& s,
                            const double* stats, const T* gamma, T* coef, int64_t g0, int64_t g1,
                            bool sums) {
    int64_t c = p.channels, per = c / p.groups, cl = cut.padded();
    double* o1 = s.sums + n * 2 * c;
    double* o2 = o1 + c;
    const double* part = s.part + n * cut.chunks * 2 * c;
    if (sums) {
      for (int64_t j = g0 * per; j < g1 * per; ++j) o1[j] = o2[j] = 0;
      for (int64_t k = 0; k < cut.chunks; ++k)
        for (int64_t j = g0 * per; j < g1 * per; ++j) {
          o1[j] += part[k * 2 * c + j];
          o2[j] += part[k * 2 * c + c + j];
        }
    }
    double m = (double)p.rows * (double)per;
    for (int64_t g = g0; g < g1; ++g) {
      double mean = stats[g * 2], rstd = stats[g * 2 + 1], lo = mean - (double)(T)mean;
      double t1 = 0, t2 = 0;
      if (sums)
        for (int64_t j = g * per; j < g * per + per; ++j) {
          double w = gamma ? (double)gamma[j] : 1.0;
          o2[j] = (o2[j] - lo * o1[j]) * rstd;  // sum dy * xhat
          t1 += w * o1[j];
          t2 += w * o2[j];
        }
      double B = -rstd * rstd * t2 / m, D = -rstd * t1 / m - B * lo;
      for (int64_t j = g * per; j < g * per + per; ++j)
        for (int64_t f = 0; f < cut.fold; ++f) {
          coef[3 * cl + f * c + j] = (T)((gamma ? (double)gamma[j] : 1.0) * rstd);
          coef[4 * cl + f * c + j] = (T)B;
          coef[5 * cl + f * c + j] = (T)D;
        }
    }
  }
};

void make_plan(const ChannelNormParams& p, Plan* plan, double passes) {
  Cut cut;
  cut.init(p);
  plan->tasks = cut.tasks;
  plan->work = (int64_t)((double)(p.outer * p.rows * p.channels) * 0.08 * passes);
  plan->scratch = scratch_layout(p, cut, nullptr, nullptr);
}
void forward_plan(const void* params, Plan* plan) {
  const ChannelNormParams& p = *(const ChannelNormParams*)params;
  make_plan(p, plan, p.training && !p.parts ? 3 : 2);
}
// Never launched by itself: its rows cost one pass.
void piece_plan(const void* params, Plan* plan) {
  const NormPieceParams& q = *(const NormPieceParams*)params;
  plan->work = (q.row1 - q.row0) * q.cols / 12;
}
void backward_plan(const void* params, Plan* plan) {
  const ChannelNormParams& p = *(const ChannelNormParams*)params;
  make_plan(p, plan, 5);
}

const KernelEntry entries[] = {
    {"channel_norm", kF32, Kernel<float>::forward, forward_plan},
    {"channel_norm", kF64, Kernel<double>::forward, forward_plan},
    {"channel_norm_piece", kF32, Kernel<float>::piece, piece_plan},
    {"channel_norm_backward", kF32, Kernel<float>::backward, backward_plan},
    {"channel_norm_backward", kF64, Kernel<double>::backward, backward_plan},
};

}  // namespace

extern const KernelList norm_channel_kernels;
const KernelList norm_channel_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
