// Winograd convolution F(M x M, 3 x 3): transforms and register tiles shared by forward and
// backward.
//
// A tile of M x M outputs needs A x A inputs, A = M + 2, and A * A products a pair of channels
// where the direct sum has 9 * M * M: 36 for 144 at M = 4, 16 for 36 at M = 2. With B, G and A^T
// the 1-d transforms of input, filter and output, each applied along rows and columns:
//
//   v = B^T d B      u = G g G^T      m = sum_c v * u      y = A^T m A
//
// The backward pass is the exact adjoint of each step, so it needs no second kind of tile:
//
//   dm = A dy A^T    dv = sum_k dm * u    dx (overlapping) += B dv B^T    du = sum_tiles dm * v
//   dw = G^T du G
//
// Interpolation points of M = 4: 0, +-sqrt(1/2), +-sqrt(2), infinity. They keep the entries of the
// matrices close to one and halve the rounding error of the usual 0, +-1, +-2; with fused
// multiply-adds the irrational constants cost nothing. M = 2: 0, +-1, infinity; exact but for the
// products.
//
// The last row or column of tiles of M = 4 may have one or two outputs only (14 = 4 + 4 + 4 + 2).
// It is then F(2, 3) in that direction, at the points 0, +-sqrt(1/2) and infinity: a subset, so its
// products are with the same u, and those of planes 3 and 4 are left out. For that, tiles of a
// block are ordered by kind (Order). 484 products in place of 576 for 14 x 14 outputs.
#pragma once
#include <string.h>

#include "conv/geometry.h"
#include "conv/pairs.h"
#include "conv/pool.h"
#include "simd/transpose.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

#if GS_VBYTES == 64 || defined(__ARM_NEON)
#define GS_WINOGRAD_WIDE 1
constexpr int kPanel = 4;  // vectors of a panel of channels: 6 x 4 accumulators
#else
#define GS_WINOGRAD_WIDE 0
constexpr int kPanel = 2;  // 6 x 2 accumulators of 16 registers
#endif

template <class T, int M>
struct Points;

template <class T>
struct Points<T, 4> {
  using V = typename simd<T>::V;
  static constexpr int A = 6;
  static constexpr bool kShort = true;  // has the forms of two outputs
  static constexpr T a = (T)0.70710678118654752440, b = (T)1.41421356237309504880;

  // B^T d, in place
  GS_MEMBER static void input(V (&d)[6]) {
    V two = set1((T)2), half = set1((T)0.5), k = set1((T)2.5), pa = set1(a), pb = set1(b);
    V e1 = fnma(two, d[2], d[4]), o1 = fnma(two, d[1], d[3]);
    V e2 = fnma(half, d[2], d[4]), o2 = fnma(half, d[1], d[3]);
    d[0] = fnma(k, d[2], d[0] + d[4]);
    d[5] = fnma(k, d[3], d[1] + d[5]);
    d[1] = fma(pa, o1, e1);
    d[2] = fnma(pa, o1, e1);
    d[3] = fma(pb, o2, e2);
    d[4] = fnma(pb, o2, e2);
  }
  // The same for two outputs, from the first four; v[3] and v[4] are not made.
  GS_MEMBER static void input_short(V (&d)[6]) {
    V k = set1((T)-1.5), p = k * d[2], q = (k * set1(a)) * d[1];
    d[0] = fnma(set1((T)2), d[2], d[0]);
    d[5] = fnma(set1((T)0.5), d[1], d[3]);
    d[1] = p + q;
    d[2] = p - q;
  }
  GS_MEMBER static void input_adjoint_short(V (&v)[6]) {
    V k = set1((T)-1.5), s = k * (v[1] + v[2]), t = (k * set1(a)) * (v[1] - v[2]);
    v[1] = fnma(set1((T)0.5), v[5], t);
    v[2] = fnma(set1((T)2), v[0], s);
    v[3] = v[5];
    v[4] = v[5] = V{};
  }
  // B v, in place: the adjoint of input
  GS_MEMBER static void input_adjoint(V (&v)[6]) {
    V two = set1((T)2), half = set1((T)0.5), k = set1((T)2.5);
    V s1 = v[1] + v[2], t1 = set1(a) * (v[1] - v[2]);
    V s2 = v[3] + v[4], t2 = set1(b) * (v[3] - v[4]);
    V v0 = v[0], v5 = v[5];
    v[1] = fnma(two, t1, fnma(half, t2, v5));
    v[2] = fnma(k, v0, fnma(two, s1, -(half * s2)));
    v[3] = fnma(k, v5, t1 + t2);
    v[4] = v0 + s1 + s2;
  }
  // A^T m
  GS_MEMBER static void output(const V (&m)[6], V (&y)[4]) {
    V half = set1((T)0.5), two = set1((T)2);
    V s1 = m[1] + m[2], t1 = set1(a) * (m[1] - m[2]);
    V s2 = m[3] + m[4], t2 = set1(b) * (m[3] - m[4]);
    y[0] = m[0] + s1 + s2;
    y[1] = t1 + t2;
    y[2] = fma(half, s1, two * s2);
    y[3] = fma(half, t1, fma(two, t2, m[5]));
  }
  GS_MEMBER static void output_short(const V (&m)[6], V (&y)[4]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = fma(set1(a), m[1] - m[2], m[5]);
  }
  GS_MEMBER static void output_adjoint_short(const V (&y)[4], V (&m)[6]) {
    V pa = set1(a);
    m[0] = y[0];
    m[1] = fma(pa, y[1], y[0]);
    m[2] = fnma(pa, y[1], y[0]);
    m[5] = y[1];
  }
  // A y: the adjoint of output
  GS_MEMBER static void output_adjoint(const V (&y)[4], V (&m)[6]) {
    V half = set1((T)0.5), two = set1((T)2), pa = set1(a), pb = set1(b);
    V p = fma(half, y[2], y[0]), q = fma(half, y[3], y[1]);
    V r = fma(two, y[2], y[0]), s = fma(two, y[3], y[1]);
    m[0] = y[0];
    m[1] = fma(pa, q, p);
    m[2] = fnma(pa, q, p);
    m[3] = fma(pb, s, r);
    m[4] = fnma(pb, s, r);
    m[5] = y[3];
  }
  // G g
  GS_MEMBER static void filter(const V (&g)[3], V (&u)[6]) {
    V c1 = set1((T)(-2.0 / 3)), c2 = set1((T)(1.0 / 6)), half = set1((T)0.5), two = set1((T)2);
    V p = c1 * fma(half, g[2], g[0]), q = (c1 * set1(a)) * g[1];
    V r = c2 * fma(two, g[2], g[0]), s = (c2 * set1(b)) * g[1];
    u[0] = g[0];
    u[1] = p + q;
    u[2] = p - q;
    u[3] = r + s;
    u[4] = r - s;
    u[5] = g[2];
  }
  // G^T u: the adjoint of filter
  GS_MEMBER static void filter_adjoint(const V (&u)[6], V (&g)[3]) {
    V c1 = set1((T)(-2.0 / 3)), c2 = set1((T)(1.0 / 6)), half = set1((T)0.5), two = set1((T)2);
    V s1 = c1 * (u[1] + u[2]), t1 = c1 * (u[1] - u[2]);
    V s2 = c2 * (u[3] + u[4]), t2 = c2 * (u[3] - u[4]);
    g[0] = u[0] + s1 + s2;
    g[1] = fma(set1(a), t1, set1(b) * t2);
    g[2] = fma(half, s1, fma(two, s2, u[5]));
  }
};

template <class T>
struct Points<T, 2> {
  using V = typename simd<T>::V;
  static constexpr int A = 4;
  static constexpr bool kShort = false;

  GS_MEMBER static void input(V (&d)[4]) {
    V d1 = d[1], d2 = d[2];
    d[0] = d[0] - d2;
    d[1] = d1 + d2;
    d[2] = d2 - d1;
    d[3] = d[3] - d1;
  }
  GS_MEMBER static void input_adjoint(V (&v)[4]) {
    V v1 = v[1], v2 = v[2];
    v[1] = v1 - v2 - v[3];
    v[2] = v1 + v2 - v[0];
  }
  GS_MEMBER static void output(const V (&m)[4], V (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }
  GS_MEMBER static void output_adjoint(const V (&y)[2], V (&m)[4]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = y[1];
  }
  GS_MEMBER static void filter(const V (&g)[3], V (&u)[4]) {
    V h = set1((T)0.5), s = h * (g[0] + g[2]), t = h * g[1];
    u[0] = g[0];
    u[1] = s + t;
    u[2] = s - t;
    u[3] = g[2];
  }
  GS_MEMBER static void filter_adjoint(const V (&u)[4], V (&g)[3]) {
    V h = set1((T)0.5), s = h * (u[1] + u[2]);
    g[0] = u[0] + s;
    g[1] = h * (u[1] - u[2]);
    g[2] = s + u[3];
  }
};

// Also takes the line from another core's caches: a line that is only read stays there, and the
// store waits for it. (The compilers' builtin needs an option of its own to say so.)
GS_INLINE void fetch_to_write(const void* p) {
#if defined(__x86_64__)
  asm volatile("prefetchw %0" : : "m"(*(const char*)p));
#else
  __builtin_prefetch(p, 1, 3);
#endif
}

// Tiles are counted image by image, row by row.
struct Grid {
  int64_t n, rows, cols, tiles;
  bool short_row, short_col;  // the last of an image have the form of two outputs
};

template <int M>
GS_INLINE Grid grid_of(const ConvParams& p) {
  int64_t rows = ceil_div(p.out_h, M), cols = ceil_div(p.out_w, M);
  auto few = [](int64_t out) { return M == 4 && (out - 1) % 4 < 2; };
  return Grid{p.n, rows, cols, p.n * rows * cols, few(p.out_h), few(p.out_w)};
}

// Where tiles [t0, t1) lie in planes: those of two columns, of no short side, of two rows, of both,
// so that the tiles of any plane are one stretch.
struct Order {
  int64_t at[4];  // of the next tile of a kind; at first, where the kind begins
  int64_t count;
  bool last_row, last_col;

  GS_MEMBER Order(const Grid& g, int64_t t0, int64_t t1) {
    int64_t kinds[4] = {0, 0, 0, 0};
    count = t1 - t0;
    last_row = g.short_row;
    last_col = g.short_col;
    if (!last_row && !last_col) {
      kinds[1] = count;
    } else {
      int64_t ti = t0 / g.cols % g.rows, tj = t0 % g.cols;
      for (int64_t t = t0; t < t1; ++t) {
        ++kinds[kind(g, ti, tj)];
        if (++tj == g.cols) {
          tj = 0;
          if (++ti == g.rows) ti = 0;
        }
      }
    }
    at[0] = 0;
    for (int i = 1; i < 4; ++i) at[i] = at[i - 1] + kinds[i - 1];
  }
  GS_MEMBER int kind(const Grid& g, int64_t ti, int64_t tj) const {
    const bool r = last_row && ti + 1 == g.rows, c = last_col && tj + 1 == g.cols;
    return r ? (c ? 3 : 2) : (c ? 0 : 1);
  }
  // Plane e of A * A has tiles [first, first + size). Of an Order from which nothing was taken.
  GS_MEMBER int64_t first(int e, int A) const { return left_out(e % A) ? at[1] : 0; }
  GS_MEMBER int64_t size(int e, int A) const {
    const int64_t end = left_out(e / A) ? at[2] : left_out(e % A) ? at[3] : count;
    return end - first(e, A);
  }
  GS_MEMBER static bool left_out(int i) { return i == 3 || i == 4; }
};

// Multiply-adds of one pass.
template <int M>
GS_INLINE double winograd_operations(const ConvParams& p) {
  return (double)grid_of<M>(p).tiles * (M + 2) * (M + 2) * (double)p.channels * (double)p.filters;
}

// Tasks that members take one by one, each when it is done with its last, so that none waits for a
// core that something else slows down. Who computes a task does not change its result. A counter is
// set to zero before the members meet, and has a line of the cache to itself.
constexpr int64_t kQueueBytes = 64;
struct Queue {
  int64_t* next;
  GS_MEMBER void reset() const { __atomic_store_n(next, (int64_t)0, __ATOMIC_RELAXED); }
  GS_MEMBER int64_t take() const { return __atomic_fetch_add(next, (int64_t)1, __ATOMIC_RELAXED); }
};
GS_INLINE Queue queue_at(char* at, int64_t i) { return Queue{(int64_t*)(at + i * kQueueBytes)}; }

// A transformed tensor: plane e (of A * A) is (rows, ld) of elements and starts at e * step. Steps
// are no multiple of a page, so that the stores of a tile do not all meet in one set of the cache.
// Elements c, c + kGroup, ... lie `group` apart: planes that are multiplied group by group hold one
// group each, so that they are read as one stream.
constexpr int64_t kGroup = 64;
struct Planes {
  int64_t ld, step, group;
};
GS_INLINE Planes planes(int64_t rows, int64_t ld) { return Planes{ld, rows * ld + 16, kGroup}; }
// All channels' groups, E planes each.
GS_INLINE Planes grouped(int64_t rows, int E) {
  return Planes{kGroup, rows * kGroup + 16, E * (rows * kGroup + 16)};
}

// Elements that hold c channels.
GS_INLINE int64_t elements(int64_t c) { return ceil_div(c, kPair); }
// Where channel c lies in a row.
GS_INLINE int64_t channel_at(int64_t c, Planes s) {
  return c / kPair / kGroup * s.group + c / kPair % kGroup;
}

// v[e][o][c] = B^T d B for tiles [t0, t1), o in their order; lanes past C are zero. zeros: C zeros
template <class T, int M>
void input_tiles(const ConvParams& p, const Grid& g, const T* x, const T* zeros, int64_t t0,
                 int64_t t1, Order order, T* planes, Planes s) {
  using V = typename simd<T>::V;
  using Q = Points<T, M>;
  constexpr int N = simd<T>::N, A = M + 2;
  int64_t C = p.channels;
  for (int64_t t = t0; t < t1; ++t) {
    const int64_t n = t / (g.rows * g.cols), ti = t / g.cols % g.rows, tj = t % g.cols;
    const int64_t row = ti * M - p.pad_h, col = tj * M - p.pad_w;
    const int kind = order.kind(g, ti, tj);
    const bool two_rows = Q::kShort && kind >= 2, two_cols = Q::kShort && kind % 3 == 0;
    T* v = planes + order.at[kind]++ * s.ld;
    const T* at[A][A];
    for (int i = 0; i < A; ++i)
      for (int j = 0; j < A; ++j) {
        int64_t r = row + i, c = col + j;
        bool in = r >= 0 && r < p.in_h && c >= 0 && c < p.in_w;
        at[i][j] = in ? x + ((n * p.in_h + r) * p.in_w + c) * C : zeros;
      }
    auto column = [&](int j, int64_t c, int lanes, V(&d)[A][A]) __attribute__((always_inline)) {
      V e[A];
#pragma GCC unroll 6
      for (int i = 0; i < A; ++i)
        e[i] = lanes == N ? load(at[i][j] + c) : load_n(at[i][j] + c, lanes);
      if constexpr (Q::kShort) {
        if (two_rows)
          Q::input_short(e);
        else
          Q::input(e);
      } else {
        Q::input(e);
      }
#pragma GCC unroll 6
      for (int i = 0; i < A; ++i) d[i][j] = e[i];
    };
    for (int64_t c = 0; c < C; c += N) {
      int lanes = (int)min64(N, C - c);
      T* o = v + channel_at(c, s);
      V d[A][A];
      if (lanes == N) {
#pragma GCC unroll 6
        for (int j = 0; j < A; ++j)
          if (j < 4 || !two_cols) column(j, c, N, d);
      } else {
        for (int j = 0; j < A; ++j) column(j, c, lanes, d);
      }
#pragma GCC unroll 6
      for (int i = 0; i < A; ++i) {
        if (two_rows && Order::left_out(i)) continue;
        if constexpr (Q::kShort) {
          if (two_cols) {
            Q::input_short(d[i]);
#pragma GCC unroll 6
            for (int j = 0; j < A; ++j)
              if (!Order::left_out(j)) put_plane(o + (i * A + j) * s.step, d[i][j]);
            continue;
          }
        }
        Q::input(d[i]);
#pragma GCC unroll 6
        for (int j = 0; j < A; ++j) put_plane(o + (i * A + j) * s.step, d[i][j]);
      }
    }
  }
}

// d = A^T m for a vector of filters; the elements of m are `step` apart. What short sides leave out
// is not made.
template <class T, int M>
GS_INLINE void output_columns(const T* m, int64_t step, bool two_rows, bool two_cols,
                              typename simd<T>::V (&d)[M][M + 2]) {
  using V = typename simd<T>::V;
  using Q = Points<T, M>;
  constexpr int A = M + 2;
#pragma GCC unroll 6
  for (int j = 0; j < A; ++j) {
    if (two_cols && Order::left_out(j)) continue;
    V e[A], r[M];
    if constexpr (Q::kShort) {
      if (two_rows) {
        e[0] = load(m + j * step);
        e[1] = load(m + (A + j) * step);
        e[2] = load(m + (2 * A + j) * step);
        e[5] = load(m + (5 * A + j) * step);
        Q::output_short(e, r);
        d[0][j] = r[0];
        d[1][j] = r[1];
        continue;
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < A; ++i) e[i] = load(m + (i * A + j) * step);
    Q::output(e, r);
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i) d[i][j] = r[i];
  }
}
template <class T, int M>
GS_INLINE void output_row(const typename simd<T>::V (&d)[M + 2], bool two_cols,
                          typename simd<T>::V (&r)[M]) {
  if constexpr (Points<T, M>::kShort) {
    if (two_cols) {
      Points<T, M>::output_short(d, r);
      return;
    }
  }
  Points<T, M>::output(d, r);
}

// y = A^T m A (+ bias, ReLU) for tiles [t0, t1), `channels` filters from y's on. m[e][o][k]
template <class T, int M>
void output_tiles(const ConvParams& p, const Grid& g, const T* planes, Planes s, int64_t t0,
                  int64_t t1, Order order, const T* bias, T* y, int64_t channels) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N, A = M + 2;
  bool relu = p.activation == kConvRelu;
  for (int64_t t = t0; t < t1; ++t) {
    int64_t n = t / (g.rows * g.cols), ti = t / g.cols % g.rows, tj = t % g.cols;
    int64_t row = ti * M, col = tj * M;
    const int kind = order.kind(g, ti, tj);
    const bool two_rows = Points<T, M>::kShort && kind >= 2,
               two_cols = Points<T, M>::kShort && kind % 3 == 0;
    const T* m = planes + order.at[kind]++ * s.ld;
    int64_t rows = min64(M, p.out_h - row), cols = min64(M, p.out_w - col);
    T* o = y + ((n * p.out_h + row) * p.out_w + col) * p.filters;
    int64_t pitch = p.out_w * p.filters;
    for (int64_t k = 0; k < channels; k += N) {
      int lanes = (int)min64(N, channels - k);
      V d[M][A];
      output_columns<T, M>(m + k, s.step, two_rows, two_cols, d);
      V b = bias ? load_n(bias + k, lanes) : V{};
      bool whole = rows == M && cols == M && lanes == N;
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) {
        if (i >= rows) break;
        V r[M];
        output_row<T, M>(d[i], two_cols, r);
#pragma GCC unroll 4
        for (int j = 0; j < M; ++j) {
          V q = r[j] + b;
          if (relu) q = max(V{}, q);
          if (whole)
            store(o + i * pitch + j * p.filters + k, q);
          else if (j < cols)
            store_n(o + i * pitch + j * p.filters + k, q, lanes);
        }
      }
    }
  }
}

// The same with a 2 x 2 max-pool: y and index (may be absent) are (n, out_h / 2, out_w / 2, K).
template <int M>
void output_pool_tiles(const ConvParams& p, const Grid& g, const float* planes, Planes s,
                       int64_t t0, int64_t t1, Order order, const float* bias, float* y,
                       uint8_t* index, int64_t channels) {
  using V = simd<float>::V;
  constexpr int N = simd<float>::N, A = M + 2;
  const bool relu = p.activation == kConvRelu;
  const V low = set1(relu ? 0.0f : -__builtin_inff());
  const int64_t oh = p.out_h / 2, ow = p.out_w / 2;
  for (int64_t t = t0; t < t1; ++t) {
    int64_t n = t / (g.rows * g.cols), ti = t / g.cols % g.rows, tj = t % g.cols;
    int64_t row = ti * (M / 2), col = tj * (M / 2);
    const int kind = order.kind(g, ti, tj);
    const bool two_rows = Points<float, M>::kShort && kind >= 2,
               two_cols = Points<float, M>::kShort && kind % 3 == 0;
    const float* m = planes + order.at[kind]++ * s.ld;
    int64_t rows = min64(M / 2, oh - row), cols = min64(M / 2, ow - col);
    int64_t o = ((n * oh + row) * ow + col) * p.filters;
    for (int64_t k = 0; k < channels; k += N) {
      int lanes = (int)min64(N, channels - k);
      V d[M][A];
      output_columns<float, M>(m + k, s.step, two_rows, two_cols, d);
      V b = bias ? load_n(bias + k, lanes) : V{};
#pragma GCC unroll 2
      for (int i = 0; i < M / 2; ++i) {
        if (i >= rows) break;
        V r[2][M];
        output_row<float, M>(d[2 * i], two_cols, r[0]);
        output_row<float, M>(d[2 * i + 1], two_cols, r[1]);
#pragma GCC unroll 2
        for (int j = 0; j < M / 2; ++j) {
          if (j >= cols) break;
          V best = max(low, r[0][2 * j] + b);
          PoolI at = {};
          keep(max(low, r[0][2 * j + 1] + b), 1, best, at);
          keep(max(low, r[1][2 * j] + b), 2, best, at);
          keep(max(low, r[1][2 * j + 1] + b), 3, best, at);
          int64_t q = o + (i * ow + j) * p.filters + k;
          put(best, at, relu, y + q, index ? index + q : index, lanes);
        }
      }
    }
  }
}

// dm[e][o][k] = A dy A^T for tiles [t0, t1); lanes past K are zero. db (K, padded) += dy when
// given. Pooled: dy is the gradient behind a 2 x 2 max-pool of these indices.
template <class T, int M, bool Pooled>
void gradient_tiles(const ConvParams& p, const Grid& g, const T* dy, const uint8_t* index,
                    const T* zeros, int64_t t0, int64_t t1, Order order, T* planes, Planes s,
                    T* db) {
  using V = typename simd<T>::V;
  using Z = Points<T, M>;
  constexpr int N = simd<T>::N, A = M + 2, P = Pooled ? 2 : 1, W = M / P;
  const int64_t K = p.filters, oh = p.out_h / P, ow = p.out_w / P;
  for (int64_t t = t0; t < t1; ++t) {
    int64_t n = t / (g.rows * g.cols), ti = t / g.cols % g.rows, tj = t % g.cols;
    int64_t row = ti * W, col = tj * W;
    const int kind = order.kind(g, ti, tj);
    const bool two_rows = Z::kShort && kind >= 2, two_cols = Z::kShort && kind % 3 == 0;
    T* dm = planes + order.at[kind]++ * s.ld;
    const T* at[W][W];
    const uint8_t* tap[W][W];  // where there is no window, dy is zero
    for (int i = 0; i < W; ++i)
      for (int j = 0; j < W; ++j) {
        int64_t o = ((n * oh + row + i) * ow + col + j) * K;
        bool in = row + i < oh && col + j < ow;
        at[i][j] = in ? dy + o : zeros;
        if (Pooled) tap[i][j] = in ? index + o : (const uint8_t*)zeros;
      }
    // column j of the tile from channel k on
    auto column = [&](int j, int64_t k, int lanes, V(&e)[M]) __attribute__((always_inline)) {
      if constexpr (Pooled) {
#pragma GCC unroll 2
        for (int i = 0; i < W; ++i) {
          V x = lanes == N ? load(at[i][j / 2] + k) : load_n(at[i][j / 2] + k, lanes);
          PoolI w = pool_index(tap[i][j / 2] + k, lanes);
          e[2 * i] = only(x, w, j % 2);
          e[2 * i + 1] = only(x, w, 2 + j % 2);
        }
      } else {
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i)
          e[i] = lanes == N ? load(at[i][j] + k) : load_n(at[i][j] + k, lanes);
      }
    };
    for (int64_t k = 0; k < K; k += N) {
      int lanes = (int)min64(N, K - k);
      T* o = dm + channel_at(k, s);
      V d[A][M], sum = V{};
      auto first = [&](int j, int lanes) __attribute__((always_inline)) {
        V e[M], r[A];
        column(j, k, lanes, e);
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i) sum += e[i];
        if constexpr (Z::kShort) {
          if (two_rows) {
            Z::output_adjoint_short(e, r);
            d[0][j] = r[0];
            d[1][j] = r[1];
            d[2][j] = r[2];
            d[5][j] = r[5];
            return;
          }
        }
        Z::output_adjoint(e, r);
#pragma GCC unroll 6
        for (int i = 0; i < A; ++i) d[i][j] = r[i];
      };
      if (lanes == N) {
#pragma GCC unroll 4
        for (int j = 0; j < M; ++j)
          if (j < 2 || !two_cols) first(j, N);
      } else {
        for (int j = 0; j < M; ++j) first(j, lanes);
      }
      if (db) store(db + k, load(db + k) + sum);
#pragma GCC unroll 6
      for (int i = 0; i < A; ++i) {
        if (two_rows && Order::left_out(i)) continue;
        V r[A];
        if constexpr (Z::kShort) {
          if (two_cols) {
            Z::output_adjoint_short(d[i], r);
#pragma GCC unroll 6
            for (int j = 0; j < A; ++j)
              if (!Order::left_out(j)) put_plane(o + (i * A + j) * s.step, r[j]);
            continue;
          }
        }
        Z::output_adjoint(d[i], r);
#pragma GCC unroll 6
        for (int j = 0; j < A; ++j) put_plane(o + (i * A + j) * s.step, r[j]);
      }
    }
  }
}

// dx += B dv B^T for tiles [t0, t1) in order, `channels` channels from dx's on. A pixel is stored
// by the first tile that has it and added to by later ones, so dx needs no zeros. Tiles of the row
// that starts at tile `first`, when it lies inside an image, put what they share with the row above
// into seam (2, in_w, channels of x) instead; it is added to dx later. gate (like dx, may be
// absent): the output of a ReLU, whose gradient dx is: zeros where that is not positive, set with
// the last tile that has the pixel.
template <class T, int M>
void input_gradient_tiles(const ConvParams& p, const Grid& g, const T* planes, Planes s, int64_t t0,
                          int64_t t1, Order order, int64_t first, const T* bias, T* dx, T* seam,
                          int64_t channels, const T* gate) {
  using V = typename simd<T>::V;
  using Z = Points<T, M>;
  constexpr int N = simd<T>::N, A = M + 2;
  int64_t C = p.channels;
  for (int64_t t = t0; t < t1; ++t) {
    int64_t n = t / (g.rows * g.cols), ti = t / g.cols % g.rows, tj = t % g.cols;
    const int kind = order.kind(g, ti, tj);
    const bool two_rows = Z::kShort && kind >= 2, two_cols = Z::kShort && kind % 3 == 0;
    const T* dv = planes + order.at[kind]++ * s.ld;
    int64_t row = ti * M - p.pad_h, col = tj * M - p.pad_w;
    bool up = ti > 0, left = tj > 0, split = up && t < first + g.cols;
    bool whole =
        up && left && !split && row >= 0 && row + A <= p.in_h && col >= 0 && col + A <= p.in_w;
    T* o = dx + ((n * p.in_h + row) * p.in_w + col) * C;
    int64_t pitch = p.in_w * C, apart_by = gate ? gate - dx : 0;
    const bool last_row = ti + 1 == g.rows, last_col = tj + 1 == g.cols;
    for (int64_t c = 0; c < channels; c += N) {
      int lanes = (int)min64(N, channels - c);
      V d[A][A];
#pragma GCC unroll 6
      for (int j = 0; j < A; ++j) {
        if (two_cols && Order::left_out(j)) continue;
        V e[A];
        if constexpr (Z::kShort) {
          if (two_rows) {
            e[0] = load(dv + j * s.step + c);
            e[1] = load(dv + (A + j) * s.step + c);
            e[2] = load(dv + (2 * A + j) * s.step + c);
            e[5] = load(dv + (5 * A + j) * s.step + c);
            Z::input_adjoint_short(e);
#pragma GCC unroll 6
            for (int i = 0; i < A; ++i) d[i][j] = e[i];
            continue;
          }
        }
#pragma GCC unroll 6
        for (int i = 0; i < A; ++i) e[i] = load(dv + (i * A + j) * s.step + c);
        Z::input_adjoint(e);
#pragma GCC unroll 6
        for (int i = 0; i < A; ++i) d[i][j] = e[i];
      }
      V b = bias ? load_n(bias + c, lanes) : V{};
#pragma GCC unroll 6
      for (int i = 0; i < A; ++i) {
        if constexpr (Z::kShort) {
          if (two_cols) {
            Z::input_adjoint_short(d[i]);
            continue;
          }
        }
        Z::input_adjoint(d[i]);
      }
      if (whole && lanes == N && !(gate && (last_row || last_col))) {
#pragma GCC unroll 6
        for (int i = 0; i < A; ++i)
#pragma GCC unroll 6
          for (int j = 0; j < A; ++j) {
            T* q = o + i * pitch + j * C + c;
            V r = d[i][j] + (i < 2 || j < 2 ? load(q) : b);
            if (i < M && j < M && gate) r = load(q + apart_by) <= V{} ? V{} : r;
            store(q, r);
          }
        continue;
      }
      // at a border of the image
      const int i0 = (int)max64(0, -row), i1 = (int)min64(A, p.in_h - row);
      const int j0 = (int)max64(0, -col), j1 = (int)min64(A, p.in_w - col);
      for (int i = i0; i < i1; ++i) {
        bool above = i < 2 && up, apart = above && split;
        T* line = (apart ? seam + (i * p.in_w + col) * C : o + i * pitch) + c;
        const bool add = above && !apart;
        const V start = apart ? V{} : b;
        if (lanes == N && !gate) {
          for (int j = j0; j < j1; ++j)
            store(line + j * C, d[i][j] + (add || (j < 2 && left) ? load(line + j * C) : start));
          continue;
        }
        for (int j = j0; j < j1; ++j) {
          T* q = line + j * C;
          V r = d[i][j] + (add || (j < 2 && left) ? load_n(q, lanes) : start);
          if (gate && !apart && (i < M || last_row) && (j < M || last_col))
            r = load_n(q + apart_by, lanes) <= V{} ? V{} : r;
          store_n(q, r, lanes);
        }
      }
    }
  }
}

#if defined(__AVX512BF16__)
// G g G^T of two filters' vectors as pairs; g(i, j, h): tap (i, j) of the first or second.
template <int M, class Taps>
GS_INLINE void filter_pair(Taps g, float* out, Planes s) {
  constexpr int A = M + 2;
  vf d[2][3][A];
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h)
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      vf r[3] = {g(i, 0, h), g(i, 1, h), g(i, 2, h)};
      Points<float, M>::filter(r, d[h][i]);
    }
#pragma GCC unroll 6
  for (int j = 0; j < A; ++j) {
    vf e[2][A];
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      vf r[3] = {d[h][0][j], d[h][1][j], d[h][2][j]};
      Points<float, M>::filter(r, e[h]);
    }
#pragma GCC unroll 6
    for (int i = 0; i < A; ++i) put_pairs(out + (i * A + j) * s.step, e[0][i], e[1][i]);
  }
}
#endif

// u[e][c - c0][k - k0] = G g G^T for the nv vectors of filters from k0 on: the operand of forward.
// w (K, 3, 3, C); filters and channels that do not exist give zeros.
template <class T, int M>
void filter_tiles(const ConvParams& p, const T* w, int64_t k0, int nv, int64_t c0, int64_t c1, T* u,
                  Planes s) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  [[maybe_unused]] constexpr int A = M + 2;
  int64_t C = p.channels;
  constexpr int64_t ahead = 64 / (int64_t)sizeof(T);
  for (int64_t c = c0; c < c1; c += N)
    for (int v = 0; v < nv; ++v) {
      int64_t k = k0 + v * N;
      int filters = (int)min64(N, p.filters - k), lanes = (int)min64(N, c1 - c);
      V turned[9][N];
      for (int tap = 0; tap < 9; ++tap) {
        V r[N];
        const T* q = w + (k * 9 + tap) * C + c;
        // too many streams for the hardware to foresee
        for (int i = 0; i < filters; ++i) __builtin_prefetch(q + i * 9 * C + ahead, 0, kFetch);
        if (filters == N && lanes == N) {
#pragma GCC unroll 16
          for (int i = 0; i < N; ++i) r[i] = load(q + i * 9 * C);
        } else {
          for (int i = 0; i < N; ++i) r[i] = i < filters ? load_n(q + i * 9 * C, lanes) : V{};
        }
        transpose<T>(r);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) turned[tap][i] = r[i];
      }
#if defined(__AVX512BF16__)
      for (int l = 0; l < lanes; l += 2)
        filter_pair<M>(
            [&](int i, int j, int h) __attribute__((always_inline)) {
              return l + h < lanes ? turned[i * 3 + j][l + h] : V{};
            },
            u + (c - c0 + l) / 2 * s.ld + v * N, s);
#else
      for (int l = 0; l < lanes; ++l) {
        T* out = u + (c - c0 + l) * s.ld + v * N;
        V d[3][A];
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) {
          V r[3] = {turned[i * 3][l], turned[i * 3 + 1][l], turned[i * 3 + 2][l]};
          Points<T, M>::filter(r, d[i]);
        }
#pragma GCC unroll 6
        for (int j = 0; j < A; ++j) {
          V r[3] = {d[0][j], d[1][j], d[2][j]}, e[A];
          Points<T, M>::filter(r, e);
#pragma GCC unroll 6
          for (int i = 0; i < A; ++i) store(out + (i * A + j) * s.step, e[i]);
        }
      }
#endif
    }
}

// u[e][k - k0][c - c0] for the nv vectors of channels from c0 on: the operand of backward-data.
template <class T, int M>
void filter_tiles_backward(const ConvParams& p, const T* w, int64_t c0, int nv, int64_t k0,
                           int64_t k1, T* u, Planes s) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  [[maybe_unused]] constexpr int A = M + 2;
  int64_t C = p.channels;
#if defined(__AVX512BF16__)
  for (int64_t k = k0; k < k1; k += 2)
    for (int v = 0; v < nv; ++v) {
      const int64_t c = c0 + v * N;
      const int lanes = (int)min64(N, C - c);
      const T* q = w + k * 9 * C + c;
      const bool second = k + 1 < k1;
#pragma GCC unroll 18
      for (int tap = 0; tap < 18; ++tap) __builtin_prefetch(q + (18 + tap) * C, 0, kFetch);
      filter_pair<M>(
          [&](int i, int j, int h) __attribute__((always_inline)) {
            const T* at = q + (9 * h + i * 3 + j) * C;
            return h && !second ? V{} : lanes == N ? load(at) : load_n(at, lanes);
          },
          u + (k - k0) / 2 * s.ld + v * N, s);
    }
#else
  for (int64_t k = k0; k < k1; ++k)
    for (int v = 0; v < nv; ++v) {
      int64_t c = c0 + v * N;
      int lanes = (int)min64(N, C - c);
      const T* q = w + k * 9 * C + c;
      T* out = u + (k - k0) * s.ld + v * N;
#pragma GCC unroll 9
      for (int tap = 0; tap < 9; ++tap) __builtin_prefetch(q + (9 + tap) * C, 0, kFetch);
      V d[3][A];
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        V r[3];
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j)
          r[j] = lanes == N ? load(q + (i * 3 + j) * C) : load_n(q + (i * 3 + j) * C, lanes);
        Points<T, M>::filter(r, d[i]);
      }
#pragma GCC unroll 6
      for (int j = 0; j < A; ++j) {
        V r[3] = {d[0][j], d[1][j], d[2][j]}, e[A];
        Points<T, M>::filter(r, e);
#pragma GCC unroll 6
        for (int i = 0; i < A; ++i) store(out + (i * A + j) * s.step, e[i]);
      }
    }
#endif
}

// dw (+)= G^T du G for filters [k0, k1), `channels` channels from dw's on; du[e][k - k0][c] summed
// over `parts` parts that lie part_step apart, in order.
template <class T, int M>
void filter_gradient_tiles(const ConvParams& p, const T* du, Planes s, int parts, int64_t part_step,
                           int64_t k0, int64_t k1, T* dw, int64_t channels, bool add) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N, A = M + 2;
  int64_t C = p.channels;
  for (int64_t k = k0; k < k1; ++k)
    for (int64_t c = 0; c < channels; c += N) {
      int lanes = (int)min64(N, channels - c);
      const T* q = du + (k - k0) * s.ld + c;
      V d[3][A];
#pragma GCC unroll 6
      for (int j = 0; j < A; ++j) {
        V e[A], r[3];
#pragma GCC unroll 6
        for (int i = 0; i < A; ++i) e[i] = load(q + (i * A + j) * s.step);
        for (int o = 1; o < parts; ++o) {
#pragma GCC unroll 6
          for (int i = 0; i < A; ++i) e[i] += load(q + o * part_step + (i * A + j) * s.step);
        }
        Points<T, M>::filter_adjoint(e, r);
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) d[i][j] = r[i];
      }
      T* out = dw + k * 9 * C + c;
#pragma GCC unroll 9
      for (int tap = 0; tap < 9; ++tap) {
        if (kPair == 2)
          fetch_to_write(out + (9 + tap) * C);
        else
          __builtin_prefetch(out + (9 + tap) * C, 1, 2);
      }
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        V r[3];
        Points<T, M>::filter_adjoint(d[i], r);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          T* o = out + (i * 3 + j) * C;
          store_n(o, add ? load_n(o, lanes) + r[j] : r[j], lanes);
        }
      }
    }
}

// ---- products of planes

// Memory that the next transform reads or writes, brought into the caches line by line while
// products, which leave the way to memory idle, go on: `rows` runs of `bytes`, `pitch` apart, and
// `then` what else is wanted. A few lines at a time: of a long burst most are dropped.
struct Ahead {
  const char* at;
  int64_t rows, bytes, pitch;
  bool near;
  Ahead* then;
  int64_t each;  // lines at a time
  int64_t done;  // bytes of the first row
  bool write;    // near: what will be written to

  // So that all of it has been asked for after `times` times.
  GS_MEMBER void spread(int64_t times) {
    each = ceil_div(rows * ceil_div(bytes, 64), max64(1, times));
  }
  GS_MEMBER void touch() {
    Ahead* a = this;
    while (a->rows <= 0) {
      if (!a->then) return;
      a = a->then;
    }
    for (int64_t left = a->each; left > 0 && a->rows > 0;) {
      const char* q = a->at + a->done;
      const int64_t lines = min64(left, ceil_div(a->bytes - a->done, 64));
      if (a->near && a->write)
        for (int64_t i = 0; i < lines; ++i) fetch_to_write(q + 64 * i);
      else if (a->near)
        for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(q + 64 * i, 0, 3);
      else
        for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(q + 64 * i, 0, 2);
      left -= lines;
      a->done += 64 * lines;
      if (a->done < a->bytes) continue;
      a->done = 0;
      a->at += a->pitch;
      --a->rows;
    }
  }
};
// `count` elements from `at` on.
template <class T>
GS_INLINE Ahead ahead(const T* at, int64_t count, bool near) {
  return Ahead{
      (const char*)at, count > 0, count * (int64_t)sizeof(T), 0, near, nullptr, 0, 0, false};
}
// `channels` channels from `at` on of the pixels that tiles [t0, t1) see: each A or M rows of
// image rows of w pixels with C channels. Nothing when the tiles are a small part of a row, or
// where rows are so long that the hardware sees what is coming. near (Ctx::follows): such a core
// follows long streams but not the rows of tiles, and drops a third of the fetches into the second
// level: there all is asked for into the first (a transform takes 110-140 cycles a vector then, and
// 400-650 when it finds its pixels in memory).
template <class T>
GS_INLINE Ahead pixels_ahead(const Grid& g, const T* at, int64_t h, int64_t w, int64_t C,
                             int64_t channels, int64_t step, int64_t reach, int64_t pad, int64_t t0,
                             int64_t t1, bool near) {
  if (2 * (t1 - t0) < g.cols || (!near && w * C * (int64_t)sizeof(T) >= 8192)) return Ahead{};
  int64_t per = g.rows * g.cols, n0 = t0 / per, n1 = (t1 - 1) / per;
  int64_t r0 = t0 / g.cols % g.rows * step - pad, r1 = (t1 - 1) / g.cols % g.rows * step - pad;
  r0 = n0 * h + min64(max64(r0, 0), h);
  r1 = n1 * h + min64(r1 + reach, h);
  const int64_t pixels = max64(0, r1 - r0) * w, B = sizeof(T);
  if (channels == C) return ahead(at + r0 * w * C, pixels * C, near);
  return Ahead{
      (const char*)(at + r0 * w * C), pixels, channels * B, C * B, near, nullptr, 0, 0, false};
}

// c (rows, NV vectors, ldc) (+)= a (rows, k; lda) b (k, NV vectors). rows <= MR exist.
template <class T, int MR, int NV>
__attribute__((noinline)) void product_tile(const T* a, int64_t lda, int rows, const T* b,
                                            int64_t ldb, int64_t k, T* c, int64_t ldc, bool add) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  V acc[MR][NV];
  const T* x[MR];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    x[m] = a + (m < rows ? m : rows - 1) * lda;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[m][v] = V{};
  }
  constexpr int U = MR > 10 ? 1 : kUnroll<T>;  // the pointers of 12 rows fill the registers
  auto step = [&](int64_t l) __attribute__((always_inline)) {
    V y[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) y[v] = load(b + v * N);
    b += ldb;
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      V s = set1(x[m][l]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) multiply<U == 1 ? 1 : NV>(acc[m][v], s, y[v]);
    }
  };
  int64_t l = 0;
  for (; l + U <= k; l += U) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) step(l + u);
  }
  if (U > 1)
    for (; l < k; ++l) step(l);
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    if (m >= rows) break;
    T* d = c + m * ldc;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(d + v * N, add ? load(d + v * N) + acc[m][v] : acc[m][v]);
  }
}

// c (rows, NV vectors; ldc) (+)= a^T b over k: a (k, rows; lda), b (k, NV vectors; ldb)
template <class T, int MR, int NV>
__attribute__((noinline)) void outer_tile(const T* a, int64_t lda, int rows, const T* b,
                                          int64_t ldb, int64_t k, T* c, int64_t ldc, bool add) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  V acc[MR][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[m][v] = V{};
  }
  auto step = [&]() __attribute__((always_inline)) {
    V y[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) y[v] = load(b + v * N);
    b += ldb;
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      V s = set1(a[m]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) multiply<NV>(acc[m][v], s, y[v]);
    }
    a += lda;
  };
  for (; k >= kUnroll<T>; k -= kUnroll<T>) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll<T>; ++u) step();
  }
  for (; k > 0; --k) step();
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    if (m >= rows) break;
    T* d = c + m * ldc;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(d + v * N, add ? load(d + v * N) + acc[m][v] : acc[m][v]);
  }
}

// The largest height of a tile of nv vectors. a^T of outer_tile is read up to that many rows past
// its end.
GS_INLINE int64_t tile_height(int nv) {
#if GS_WINOGRAD_WIDE
  return nv == 4 ? 6 : nv == 3 ? 8 : 12;
#else
  return nv == 2 ? 6 : 12;
#endif
}

// The rows that a tile of `height` rows computes.
GS_INLINE int64_t tile_rows(int nv, int64_t height) {
#if GS_WINOGRAD_WIDE
  if (nv == 4) return height > 5 ? 6 : height > 4 ? 5 : height > 2 ? 4 : 2;
  if (nv == 3) return height > 6 ? 8 : height > 4 ? 6 : 4;
  if (nv == 2) return height > 10 ? 12 : height > 8 ? 10 : height > 4 ? 8 : 4;
#else
  if (nv == 2) return height > 5 ? 6 : height > 4 ? 5 : height > 2 ? 4 : 2;
#endif
  return height > 8 ? 12 : height > 4 ? 8 : 4;
}
// Whether `rows` rows are cheaper as tiles of full height and a rest than as n of nearly equal
// height.
GS_INLINE bool full_tiles(int nv, int64_t rows, int64_t n) {
  int64_t q = rows / n, r = rows % n, most = tile_height(nv) * (n - 1);
  return most + tile_rows(nv, rows - most) < r * tile_rows(nv, q + 1) + (n - r) * tile_rows(nv, q);
}

// The longest chain of additions; longer sums are added up chain by chain, which halves the error
// at 512 channels, and b stays in the first-level cache meanwhile.
constexpr int64_t kChain = 96;

// All rows against one panel, tile by tile. Outer: a is (k, rows).
template <class T, bool Outer>
void product_chain(int nv, const T* a, int64_t lda, int64_t rows, const T* b, int64_t ldb,
                   int64_t k, T* c, int64_t ldc, bool add, Ahead* ahead) {
  const int64_t most = tile_height(nv), n = ceil_div(rows, most);
  const bool full = full_tiles(nv, rows, n);
  for (int64_t t = 0; t < n; ++t) {
    ahead->touch();
    int64_t m = full ? t * most : t * rows / n;
    int height = (int)((full ? min64(m + most, rows) : (t + 1) * rows / n) - m);
    const T* q = a + (Outer ? m : m * lda);
    T* d = c + m * ldc;
#define GS_TILE(NV, MR)                                                  \
  (Outer ? outer_tile<T, MR, NV>(q, lda, height, b, ldb, k, d, ldc, add) \
         : product_tile<T, MR, NV>(q, lda, height, b, ldb, k, d, ldc, add))
    switch (nv) {
#if GS_WINOGRAD_WIDE
      case 4:
        height > 5   ? GS_TILE(4, 6)
        : height > 4 ? GS_TILE(4, 5)
        : height > 2 ? GS_TILE(4, 4)
                     : GS_TILE(4, 2);
        break;
      case 3:
        height > 6 ? GS_TILE(3, 8) : height > 4 ? GS_TILE(3, 6) : GS_TILE(3, 4);
        break;
      case 2:
        height > 10  ? GS_TILE(2, 12)
        : height > 8 ? GS_TILE(2, 10)
        : height > 4 ? GS_TILE(2, 8)
                     : GS_TILE(2, 4);
        break;
#else
      case 2:
        height > 5   ? GS_TILE(2, 6)
        : height > 4 ? GS_TILE(2, 5)
        : height > 2 ? GS_TILE(2, 4)
                     : GS_TILE(2, 2);
        break;
#endif
      default:
        height > 8 ? GS_TILE(1, 12) : height > 4 ? GS_TILE(1, 8) : GS_TILE(1, 4);
    }
#undef GS_TILE
  }
}

template <class T, bool Outer>
void product(int nv, const T* a, int64_t lda, int64_t rows, const T* b, int64_t ldb, int64_t k,
             T* c, int64_t ldc, bool add, Ahead* ahead) {
  int64_t n = ceil_div(k, kChain);
  if (rows == 0) return;
  if (k == 0 && !add)
    for (int64_t m = 0; m < rows; ++m)
      memset(c + m * ldc, 0, (size_t)(nv * simd<T>::N) * sizeof(T));
  for (int64_t i = 0; i < n; ++i) {
    int64_t l = i * k / n, count = (i + 1) * k / n - l;
    product_chain<T, Outer>(nv, a + (Outer ? l * lda : l), lda, rows, b + l * ldb, ldb, count, c,
                            ldc, add || i > 0, ahead);
  }
}

// Tiles of the registers that a product takes.
GS_INLINE int64_t product_steps(int nv, int64_t rows, int64_t k) {
  return ceil_div(rows, tile_height(nv)) * ceil_div(k, kChain);
}

// Panels of channels: vectors [first, first + nv) of ceil(channels / N). None crosses a group.
struct Panels {
  int64_t channels, vectors, count, padded;
  GS_MEMBER int64_t first(int64_t i) const { return i * kPanel; }
  GS_MEMBER int nv(int64_t i) const { return (int)min64(kPanel, vectors - first(i)); }
};
template <class T>
GS_INLINE Panels panels_of(int64_t channels) {
  int64_t v = ceil_div(channels, simd<T>::N);
  return Panels{channels, v, ceil_div(v, kPanel), v * simd<T>::N};
}

// Transformed filters, (M + 2)^2 planes of `rows` rows by panels: where panel i is, and the size of
// all. Each plane of a panel has 16 elements more, as planes() above.
template <class T, int M>
GS_INLINE int64_t panel_at(int64_t rows, const Panels& columns, int64_t i) {
  return (M + 2) * (M + 2) * (rows * columns.first(i) * simd<T>::N + 16 * i);
}
template <class T, int M>
GS_INLINE int64_t form_size(int64_t rows, const Panels& columns) {
  return (M + 2) * (M + 2) * (rows * columns.padded + 16 * columns.count);
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
