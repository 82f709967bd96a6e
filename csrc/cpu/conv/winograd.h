// Winograd convolution F(M x M, 3 x 3): the transforms of tiles and filters that forward and
// backward share; their products are in conv/winograd_products.h.
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
#include "conv/winograd_points.h"
#include "simd/transpose.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

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
  GS_MEMBER int64_t taken() const { return __atomic_load_n(next, __ATOMIC_RELAXED); }
};
GS_INLINE Queue queue_at(char* at, int64_t i) { return Queue{(int64_t*)(at + i * kQueueBytes)}; }

// The same for tasks that are stretches of images: a member begins with its own share, the images
// that it has in every kernel that knows how, so that where each core has a third level of its own
// it finds there what the kernel before has left. Then it helps the others. A counter a member.
struct Shares {
  char* at;
  int64_t tasks, nt, tid;
  GS_MEMBER void reset() const {
    for (int64_t m = 0; m < nt; ++m) queue_at(at, m).reset();
  }
  GS_MEMBER int64_t take() const {
    for (int64_t k = 0; k < nt; ++k) {
      const int64_t m = (tid + k) % nt, first = m * tasks / nt, end = (m + 1) * tasks / nt;
      const Queue queue = queue_at(at, m);
      if (first + queue.taken() >= end) continue;  // of many members most are done: no writes
      const int64_t t = first + queue.take();
      if (t < end) return t;
    }
    return tasks;
  }
};

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

// Whether each member transforms all filters for itself rather than wait for what another one has
// just written: with cores that have third levels of their own that takes longer than the transform
// of an element, 270 cycles, where this is a fiftieth of its `products`, half a cycle each, or
// less. Of pairs, which are multiplied in half of the time.
GS_INLINE bool repeats_filters(const ConvParams& p, int64_t products) {
  return kPair == 2 && (double)(p.threads - 1) * 270 < 0.02 * 0.5 * (double)products;
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
// into seam (2, in_w, channels of x) instead; it is added to dx later. What is left to do for a
// pixel is done with the last tile that has it: `sum` (like dx, may be absent) is added; gate (the
// same): the output of a ReLU, whose gradient dx is: zeros where that is not positive.
template <class T, int M>
void input_gradient_tiles(const ConvParams& p, const Grid& g, const T* planes, Planes s, int64_t t0,
                          int64_t t1, Order order, int64_t first, const T* bias, T* dx, T* seam,
                          int64_t channels, const T* sum, const T* gate) {
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
    int64_t pitch = p.in_w * C;
    const int64_t sum_at = sum ? sum - dx : 0, gate_at = gate ? gate - dx : 0;
    const bool more = sum || gate;
    const bool last_row = ti + 1 == g.rows, last_col = tj + 1 == g.cols;
    const T* next = dx + ((n * p.in_h + row) * p.in_w + col + M) * C;  // the next tile's
    if (last_col) {
      const int64_t nn = last_row ? n + 1 : n, nrow = last_row ? -p.pad_h : row + M;
      next = dx + ((nn * p.in_h + nrow) * p.in_w - p.pad_w) * C;
    }
    for (int64_t c = 0; c < channels; c += N) {
      int lanes = (int)min64(N, channels - c);
      auto ahead = [&](int64_t at) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
          for (int j = 0; j < M; ++j) __builtin_prefetch(next + at + i * pitch + j * C + c, 0, 3);
      };
      if (sum) ahead(sum_at);
      if (gate) ahead(gate_at);
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
      auto along = [&](int i) __attribute__((always_inline)) {  // row i of the tile
        if constexpr (Z::kShort) {
          if (two_cols) {
            Z::input_adjoint_short(d[i]);
            return;
          }
        }
        Z::input_adjoint(d[i]);
      };
      const bool full = lanes == N;
      auto get = [&](const T* q) __attribute__((always_inline)) {
        return full ? load(q) : load_n(q, lanes);
      };
      auto end = [&](V r, const T* q) __attribute__((always_inline)) {
        if (sum) r += get(q + sum_at);
        if (gate) r = get(q + gate_at) <= V{} ? V{} : r;
        return r;
      };
      if (whole && full && !(more && (last_row || last_col))) {
#pragma GCC unroll 6
        for (int i = 0; i < A; ++i) {
          along(i);
#pragma GCC unroll 6
          for (int j = 0; j < A; ++j) {
            T* q = o + i * pitch + j * C + c;
            V r = d[i][j] + (i < 2 || j < 2 ? load(q) : b);
            if (i < M && j < M && more) r = end(r, q);
            store(q, r);
          }
        }
        continue;
      }
      // at a border of the image; unrolled, so that d stays in registers
      const int i0 = (int)max64(0, -row), i1 = (int)min64(A, p.in_h - row);
      const int j0 = (int)max64(0, -col), j1 = (int)min64(A, p.in_w - col);
#pragma GCC unroll 6
      for (int i = 0; i < A; ++i) {
        if (i < i0 || i >= i1) continue;
        along(i);
        const bool above = i < 2 && up, apart = above && split, add = above && !apart;
        T* line = (apart ? seam + (i * p.in_w + col) * C : o + i * pitch) + c;
        const V start = apart ? V{} : b;
        const bool last = more && !apart && (i < M || last_row);
#pragma GCC unroll 6
        for (int j = 0; j < A; ++j) {
          if (j < j0 || j >= j1) continue;
          T* q = line + j * C;
          V r = d[i][j] + (add || (j < 2 && left) ? get(q) : start);
          if (last && (j < M || last_col)) r = end(r, q);
          if (full)
            store(q, r);
          else
            store_n(q, r, lanes);
        }
      }
    }
  }
}

#if defined(__AVX512BF16__)
// G g G^T of pairs of filters; g(i, j, h): of the first eight pairs or the others tap (i, j).
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
#if defined(__AVX512BF16__)
        turn_pairs(r);
#else
        transpose<T>(r);
#endif
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) turned[tap][i] = r[i];
      }
#if defined(__AVX512BF16__)
      for (int l = 0; l < lanes; l += 2)
        filter_pair<M>(
            [&](int i, int j, int h)
                __attribute__((always_inline)) { return turned[i * 3 + j][l + h]; },
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
      V taps[2][9];
#pragma GCC unroll 9
      for (int tap = 0; tap < 9; ++tap) {
        const T *at = q + tap * C, *next = at + 9 * C;
        V& a = taps[0][tap] = lanes == N ? load(at) : load_n(at, lanes);
        V& b = taps[1][tap] = !second ? V{} : lanes == N ? load(next) : load_n(next, lanes);
        join_pairs(a, b);
      }
      filter_pair<M>(
          [&](int i, int j, int h) __attribute__((always_inline)) { return taps[h][i * 3 + j]; },
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

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
