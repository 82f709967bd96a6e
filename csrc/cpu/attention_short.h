// Attention of float32 up to kShortKeys keys without mask or dropout: scores stand transposed, keys
// by queries, so that 16 queries lie in the lanes of a vector. A maximum, a sum, lse and delta are
// then one operation a vector and none across lanes, and all keys of a row are there at once: no
// running maximum.
//
// Forward, 64 queries at a time: Q is transposed (and scaled), S = K Q^T by tiles that read rows
// of K where they lie; maximum, exp and sum go down the columns of S; out = P^T V by tiles that
// read P by columns and divide by the sum when they store. Backward: tiles make S and V dO^T side
// by side and turn them into P and dS before they store; dV = P dO and dK = dS Q are ordinary
// products (matmul/block.h), dQ = dS^T K are tiles like those of out. Causal: a vector of queries
// that sees no key of a tile is left out.
//
// A head of 64 x 32, causal: 5120 and 12800 cycles of multiply-adds forward and backward (160 of
// 256 blocks of a key and 16 queries), 1100 of exp.
#pragma once
#include "attention.h"
#include "matmul/block.h"
#include "matmul/pack.h"
#include "simd/moderate.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kShortKeys = 256;
constexpr int64_t kShortLeast = 8;             // queries and keys from which tiles are full
constexpr int64_t kQueries = 64;               // of a block
constexpr int64_t kScoresRow = kQueries + 16;  // keeps rows off the same cache sets
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kScoreRows = 8, kPairRows = 6, kMixRows = 8;
#else
constexpr int kScoreRows = 4, kPairRows = 2, kMixRows = 4;
#endif

// exp(x) for x <= 87; below -87 it is 0, NaN stays NaN.
GS_INLINE vf exp_low(vf x) {
  vf e = moderate::exp(x);
  return x < -87.0f ? vf{} : e;
}
GS_INLINE vd exp_low(vd x) { return exp(x); }

// Odd multiples of a row, as set1_at wants them.
GS_INLINE void odd_rows(int64_t* odd, int64_t row) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) odd[i] = (2 * i + 1) * row * (int64_t)sizeof(float);
}

// acc += MR rows of a, `ars` apart, times b (d, NV vectors of kQueries columns)
template <int MR, int NV>
GS_INLINE void add_products(vf (&acc)[MR][NV], const float* a, int64_t ars, const float* b,
                            int64_t d) {
  constexpr int N = simd<float>::N;
  int64_t odd[4];
  odd_rows(odd, ars);
  auto step = [&](int u) __attribute__((always_inline)) {
    vf bv[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) bv[v] = load(b + u * kQueries + v * N);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      vf x = set1_at<vf>(a, odd, i, u);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) accumulate<2>(acc[i][v], x, bv[v]);
    }
  };
  for (; d >= 4; d -= 4, a += 4, b += 4 * kQueries) {
    step(0);
    step(1);
    step(2);
    step(3);
  }
  for (; d > 0; --d, ++a, b += kQueries) step(0);
}

// acc += a b and acc2 += a2 b2 in turns: chains of one alone are too few where NV is 1.
template <int MR, int NV>
GS_INLINE void add_both(vf (&acc)[MR][NV], vf (&acc2)[MR][NV], const float* a, const float* a2,
                        int64_t ars, const float* b, const float* b2, int64_t d) {
  int64_t odd[4];
  odd_rows(odd, ars);
  auto step = [&](int u) __attribute__((always_inline)) {
    const vf bv = load(b + u * kQueries), bv2 = load(b2 + u * kQueries);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      accumulate<1>(acc[i][0], set1_at<vf>(a, odd, i, u), bv);
      accumulate<1>(acc2[i][0], set1_at<vf>(a2, odd, i, u), bv2);
    }
  };
  for (; d >= 4; d -= 4, a += 4, a2 += 4, b += 4 * kQueries, b2 += 4 * kQueries) {
    step(0);
    step(1);
    step(2);
    step(3);
  }
  for (; d > 0; --d, ++a, ++a2, b += kQueries, b2 += kQueries) step(0);
}

// s (MR, NV vectors) = a (MR, d) b (d, NV vectors); rows of b and s are kQueries and kScoresRow
// apart.
template <int MR, int NV>
__attribute__((noinline)) void score_tile(const float* __restrict a, int64_t ars,
                                          const float* __restrict b, int64_t d,
                                          float* __restrict s) {
  constexpr int N = simd<float>::N;
  vf acc[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[i][v] = vf{};
  add_products<MR, NV>(acc, a, ars, b, d);
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) store(s + i * kScoresRow + v * N, acc[i][v]);
}

// c (kMixRows, NV vectors) = s^T (kMixRows, k) b (k, NV vectors), row i times factor[i] if there is
// one. last: lanes of the last vector.
template <int NV>
__attribute__((noinline)) void mix_tile(const float* __restrict s, const float* __restrict b,
                                        int64_t brs, int64_t k, const float* factor,
                                        float* __restrict c, int64_t ldc, int last) {
  constexpr int N = simd<float>::N, MR = kMixRows;
  vf acc[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[i][v] = vf{};
#pragma GCC unroll 4
  for (; k > 0; --k, s += kScoresRow, b += brs) {
    vf bv[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) bv[v] = load(b + v * N);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      vf x = set1(s[i]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) accumulate<2>(acc[i][v], x, bv[v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
    vf f = set1(factor ? factor[i] : 1.0f);
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      vf x = acc[i][v] * f;
      if (v < NV - 1 || last == N)
        store(c + i * ldc + v * N, x);
      else
        store_n(c + i * ldc + v * N, x, last);
    }
  }
}

// out (rows, n) from s (keys, queries) and b (keys, padded columns), tile by tile.
__attribute__((noinline)) void mix(const float* s, int64_t rows, int64_t keys, bool causal,
                                   int64_t i0, const float* b, int64_t brs, const float* factor,
                                   float* out, int64_t row, int64_t n, Ahead& ahead) {
  constexpr int64_t N = simd<float>::N;
  for (int64_t r = 0; r < rows; r += kMixRows) {
    if (r + kMixRows > rows) r = rows - kMixRows;  // some rows a second time, to the same result
    int64_t depth = causal && i0 + r + kMixRows < keys ? i0 + r + kMixRows : keys;
    const float* f = factor ? factor + r : nullptr;
    for (int64_t c = 0; c < n; c += 2 * N) {
      float* to = out + r * row + c;
      if (n - c > N)
        mix_tile<2>(s + r, b + c, brs, depth, f, to, row, (int)(n - c < 2 * N ? n - c - N : N));
      else
        mix_tile<1>(s + r, b + c, brs, depth, f, to, row, (int)(n - c));
      ahead.step();
    }
  }
}

// First vector of the queries from i0 on that sees key j.
GS_INLINE int64_t first_vector(bool causal, int64_t i0, int64_t j) {
  return causal && j > i0 ? (j - i0) / simd<float>::N : 0;
}

// Tiles of a head, about: a half of those of scores is left out where it is causal.
GS_INLINE int64_t short_tiles(const AttentionParams& p, bool back) {
  constexpr int64_t N = simd<float>::N;
  const int64_t wide = 2 * N,
                scores = ceil_div(p.tq, wide) * ceil_div(p.tk, back ? kPairRows : kScoreRows);
  const int64_t mixed = ceil_div(p.tq, kMixRows) * ceil_div(back ? p.d : p.dv, wide);
  const int64_t blocks = back && p.causal ? 2 * ceil_div(p.tk, 14) : 0;
  return (p.causal ? scores * 5 / 8 : scores) + mixed + blocks + 1;
}

// q (rows, d) times scale, transposed: to[c * kQueries + i].
__attribute__((noinline)) void turn_queries(const float* q, int64_t row, int64_t rows, int64_t d,
                                            float scale, float* to) {
  constexpr int64_t N = simd<float>::N;
  const int64_t width = (rows + N - 1) / N * N;
  for (int64_t i = 0; i < width; i += N)
    for (int64_t c = 0; c < d; c += N) {
      vf v[N];
      const float* from = q + i * row + c;
      const int some = (int)(rows - i < N ? rows - i : N), deep = (int)(d - c < N ? d - c : N);
      alignas(64) float part[N * N];
      int64_t step = row;
      if (some < N || deep < N) {  // rows that end, put where whole vectors may be read
        for (int r = 0; r < N; ++r)
          store(part + r * N, r < some ? load_n(from + r * row, deep) : vf{});
        from = part;
        step = N;
      }
      load_transposed(from, step, v);
#pragma GCC unroll 16
      for (int r = 0; r < N; ++r)
        if (r < deep) store(to + (c + r) * kQueries + i, v[r] * scale);
    }
}

// ---------------------------------------------------------------- forward

struct ShortForward {
  float *turned, *v, *s, *factor;
  int64_t dvp;
  GS_MEMBER ShortForward(const AttentionParams& p, char* at) {
    constexpr int N = simd<float>::N;
    dvp = (p.dv + N - 1) / N * N;
    Arena a{at};
    turned = a.take<float>(p.d * kQueries);
    v = a.take<float>(p.tk * dvp);
    s = a.take<float>(p.tk * kScoresRow);
    factor = a.take<float>(kQueries);
    end = a.at;
  }
  char* end;
};

// One vector of queries, the first of them i: its column of scores becomes exp(s - maximum), of
// `keys` keys; keeps the factor for their sum, and lse.
__attribute__((noinline)) void softmax_column(bool causal, float* s, int64_t keys, int64_t i,
                                              float* factor, float* lse, int rows) {
  constexpr int64_t N = simd<float>::N;
  const vf lowest = set1(-__builtin_inff());
  int64_t last = causal && i + N < keys ? i + N : keys;
  int64_t free = causal && i + 1 < last ? i + 1 : last;  // keys that all of them see
  vf m[4] = {lowest, lowest, lowest, lowest};
  int64_t j = 0;
  for (; j + 4 <= free; j += 4)
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) m[u] = max(load(s + (j + u) * kScoresRow), m[u]);
  for (; j < free; ++j) m[0] = max(load(s + j * kScoresRow), m[0]);
  const vi lane = iota<float>();
  for (; j < last; ++j) {
    vf x = load(s + j * kScoresRow);
    m[1] = max(lane >= set1((int32_t)(j - i)) ? x : lowest, m[1]);
  }
  vf top = max(max(m[0], m[1]), max(m[2], m[3])), shift = top == lowest ? vf{} : top;
  vf sum[4] = {};
  for (j = 0; j + 4 <= free; j += 4) {
    vf e[4];
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) e[u] = exp_low(load(s + (j + u) * kScoresRow) - shift);
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      store(s + (j + u) * kScoresRow, e[u]);
      sum[u] += e[u];
    }
  }
  for (; j < free; ++j) {
    vf e = exp_low(load(s + j * kScoresRow) - shift);
    store(s + j * kScoresRow, e);
    sum[0] += e;
  }
  for (; j < last; ++j) {
    vf e = exp_low(load(s + j * kScoresRow) - shift);
    e = lane >= set1((int32_t)(j - i)) ? e : vf{};
    store(s + j * kScoresRow, e);
    sum[1] += e;
  }
  // a tile of mix() that begins with these queries may end with later ones
  for (; causal && j < keys && j < last + kMixRows; ++j) store(s + j * kScoresRow, vf{});
  vf l = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  store(factor, l == 0.0f ? vf{} : 1.0f / l);
  if (lse) {
    vf x = l == 0.0f ? -lowest : top + log(l);
    if (rows >= N)
      store(lse, x);
    else
      store_n(lse, x, rows);
  }
}

void short_forward(const AttentionParams& p, void* const* buf, const ShortForward& w, int64_t b,
                   int64_t h, int64_t i_begin, int64_t i_end, Ahead& ahead) {
  constexpr int64_t N = simd<float>::N;
  const int64_t g = h / (p.heads / p.kv_heads);
  const float* q = (const float*)buf[0] + b * p.q.batch + h * p.q.head;
  const float* k = (const float*)buf[1] + b * p.k.batch + g * p.k.head;
  const float* v = (const float*)buf[2] + b * p.v.batch + g * p.v.head;
  float* out = (float*)buf[4] + b * p.out.batch + h * p.out.head;
  float* lse = buf[5] ? (float*)buf[5] + (b * p.heads + h) * p.tq : nullptr;
  const bool causal = p.causal != 0;
  pack_rows(v, p.v.row, visible(p, i_end - 1), (int)p.dv, (int)w.dvp, w.v);
  for (int64_t i0 = i_begin; i0 < i_end; i0 += kQueries) {
    if (i0 + kMixRows > i_end) i0 = i_end - kMixRows;
    const int64_t rows = least(kQueries, i_end - i0), vectors = ceil_div(rows, N);
    const int64_t keys = visible(p, i0 + rows - 1);
    turn_queries(q + i0 * p.q.row, p.q.row, rows, p.d, (float)p.scale, w.turned);
    for (int64_t j = 0; j < keys; j += kScoreRows) {
      if (j + kScoreRows > keys) j = keys - kScoreRows;
      const float* a = k + j * p.k.row;
      float* s = w.s + j * kScoresRow;
      for (int64_t c = first_vector(causal, i0, j); c < vectors; c += 2) {
        if (c + 1 < vectors)
          score_tile<kScoreRows, 2>(a, p.k.row, w.turned + c * N, p.d, s + c * N);
        else
          score_tile<kScoreRows, 1>(a, p.k.row, w.turned + c * N, p.d, s + c * N);
        ahead.step();
      }
    }
    for (int64_t c = 0; c < rows; c += N) {
      float* to = lse ? lse + i0 + c : nullptr;
      softmax_column(causal, w.s + c, keys, i0 + c, w.factor + c, to, (int)(rows - c));
    }
    mix(w.s, rows, keys, causal, i0, w.v, w.dvp, w.factor, out + i0 * p.out.row, p.out.row, p.dv,
        ahead);
  }
}

// ---------------------------------------------------------------- backward

struct ShortBackward {
  float *turned, *turned_dout, *k, *q, *dout, *p, *ds, *dk, *dv, *delta, *lse;
  int64_t dp, dvp;
  GS_MEMBER ShortBackward(const AttentionParams& p_, char* at) {
    constexpr int N = simd<float>::N;
    dp = (p_.d + N - 1) / N * N;
    dvp = (p_.dv + N - 1) / N * N;
    Arena a{at};
    turned = a.take<float>(p_.d * kQueries);
    turned_dout = a.take<float>(p_.dv * kQueries);
    k = a.take<float>(p_.tk * dp);
    q = a.take<float>(kQueries * dp);
    dout = a.take<float>(kQueries * dvp);
    p = a.take<float>(p_.tk * kScoresRow);
    ds = a.take<float>(p_.tk * kScoresRow);
    dk = a.take<float>(p_.tk * dp);
    dv = a.take<float>(p_.tk * dvp);
    delta = a.take<float>(kQueries);
    lse = a.take<float>(kQueries);
    end = a.at;
  }
  char* end;
};

struct PairTile {
  const float *k, *v;  // rows of a tile
  int64_t k_row, v_row, d, dv;
  const float *q, *dout;     // transposed
  const float *lse, *delta;  // of the queries
  float *p, *ds;
  float scale;
  int32_t hidden;  // causal: lane l of vector c of row i counts where c N + l >= hidden + i
};

// P and dS of MR keys and NV vectors of queries.
template <int MR, int NV>
__attribute__((noinline)) void pair_tile(const PairTile& t) {
  constexpr int N = simd<float>::N;
  vf s[MR][NV], x[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) s[i][v] = x[i][v] = vf{};
  if (NV == 1 && t.d == t.dv && t.k_row == t.v_row) {
    add_both<MR, NV>(s, x, t.k, t.v, t.k_row, t.q, t.dout, t.d);
  } else {
    add_products<MR, NV>(s, t.k, t.k_row, t.q, t.d);
    add_products<MR, NV>(x, t.v, t.v_row, t.dout, t.dv);
  }
  const vf scale = set1(t.scale);
  vf lse[NV], delta[NV];
#pragma GCC unroll 2
  for (int v = 0; v < NV; ++v) {
    lse[v] = load(t.lse + v * N);
    delta[v] = load(t.delta + v * N);
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      vf e = exp_low(s[i][v] - lse[v]), g = e * (x[i][v] - delta[v]) * scale;
      store(t.p + i * kScoresRow + v * N, e);
      store(t.ds + i * kScoresRow + v * N, g);
    }
  if (t.hidden + MR - 1 <= 0) return;
  for (int i = 0; i < MR; ++i)
    for (int v = 0; v < NV; ++v) {
      const int64_t at = i * kScoresRow + v * N;
      vi in = iota<float>() + v * N >= set1(t.hidden + i);
      store(t.p + at, in ? load(t.p + at) : vf{});
      store(t.ds + at, in ? load(t.ds + at) : vf{});
    }
}

// y (rows, n) is copied to `to`, rows of `width` padded with zeros; sums[i] = x row i . y row i.
GS_INLINE void copy_dots(const float* x, int64_t x_row, const float* y, int64_t y_row, int64_t rows,
                         int64_t n, float* to, int64_t width, float* sums) {
  constexpr int64_t N = simd<float>::N;
  for (int64_t i = 0; i < rows; i += N) {
    alignas(64) float part[N * N];
    const int64_t some = least(N, rows - i);
    for (int64_t r = 0; r < some; ++r, x += x_row, y += y_row, to += width) {
      vf sum = {};
      int64_t c = 0;
      for (; c + N <= n; c += N) {
        vf a = load(y + c);
        store(to + c, a);
        sum = fma(load(x + c), a, sum);
      }
      if (c < n) {
        vf a = load_n(y + c, (int)(n - c));
        store(to + c, a);
        sum = fma(load_n(x + c, (int)(n - c)), a, sum);
      }
      store(part + r * N, sum);
    }
    for (int64_t r = some; r < N; ++r) store(part + r * N, vf{});
    vf v[N];
    load_transposed(part, N, v);
#pragma GCC unroll 4
    for (int h = N / 2; h > 0; h /= 2)
#pragma GCC unroll 8
      for (int r = 0; r < h; ++r) v[r] += v[r + h];
    store(sums + i, v[0]);
  }
}

void short_backward(const AttentionParams& p, void* const* buf, const ShortBackward& w, int64_t b,
                    int64_t g, Ahead& ahead) {
  constexpr int64_t N = simd<float>::N;
  const float* k = (const float*)buf[1] + b * p.k.batch + g * p.k.head;
  const float* v = (const float*)buf[2] + b * p.v.batch + g * p.v.head;
  float* dk = (float*)buf[8] + b * p.dk.batch + g * p.dk.head;
  float* dv = (float*)buf[9] + b * p.dvs.batch + g * p.dvs.head;
  const int64_t rep = p.heads / p.kv_heads, nd = w.dp / N, ne = w.dvp / N;
  const bool causal = p.causal != 0, once = rep == 1 && p.tq <= kQueries;
  pack_rows(k, p.k.row, p.tk, (int)p.d, (int)w.dp, w.k);
  // what no product below writes, or all of it where they add
  const int64_t seen = once ? visible(p, p.tq - 1) : 0;
  clear(w.dk + seen * w.dp, (p.tk - seen) * w.dp);
  clear(w.dv + seen * w.dvp, (p.tk - seen) * w.dvp);
  // written at once where nothing is added and rows are whole vectors
  float* dk_to = once && p.d == w.dp ? dk : w.dk;
  float* dv_to = once && p.dv == w.dvp ? dv : w.dv;
  const int64_t dk_row = dk_to == dk ? p.dk.row : w.dp, dv_row = dv_to == dv ? p.dvs.row : w.dvp;
  for (int64_t e = 0; e < rep; ++e) {
    const int64_t h = g * rep + e;
    const float* q = (const float*)buf[0] + b * p.q.batch + h * p.q.head;
    const float* out = (const float*)buf[4] + b * p.out.batch + h * p.out.head;
    const float* dout = (const float*)buf[6] + b * p.dout.batch + h * p.dout.head;
    const float* lse = (const float*)buf[5] + (b * p.heads + h) * p.tq;
    float* dq = (float*)buf[7] + b * p.dq.batch + h * p.dq.head;
    for (int64_t i0 = 0, next; i0 < p.tq; i0 = next) {
      // the last block has a tile's rows at least
      next = p.tq - i0 <= kQueries             ? p.tq
             : p.tq - i0 < kQueries + kMixRows ? i0 + kQueries - kMixRows
                                               : i0 + kQueries;
      const int64_t rows = next - i0, vectors = ceil_div(rows, N), keys = visible(p, next - 1);
      pack_rows(q + i0 * p.q.row, p.q.row, rows, (int)p.d, (int)w.dp, w.q);
      copy_dots(out + i0 * p.out.row, p.out.row, dout + i0 * p.dout.row, p.dout.row, rows, p.dv,
                w.dout, w.dvp, w.delta);
      turn_queries(w.q, w.dp, rows, p.d, (float)p.scale, w.turned);
      turn_queries(w.dout, w.dvp, rows, p.dv, 1.0f, w.turned_dout);
      for (int64_t i = 0; i < rows; i += N)
        store(w.lse + i, load_n(lse + i0 + i, (int)least(N, rows - i)));
      for (int64_t j = 0; j < keys; j += kPairRows) {
        if (j + kPairRows > keys) j = keys - kPairRows;
        const int64_t first = first_vector(causal, i0, j);
        for (int64_t i = 0; i < kPairRows; ++i)
          for (int64_t c = 0; c < first * N; c += N) {
            store(w.p + (j + i) * kScoresRow + c, vf{});
            store(w.ds + (j + i) * kScoresRow + c, vf{});
          }
        for (int64_t c = first; c < vectors; c += 2) {
          PairTile t{k + j * p.k.row,
                     v + j * p.v.row,
                     p.k.row,
                     p.v.row,
                     p.d,
                     p.dv,
                     w.turned + c * N,
                     w.turned_dout + c * N,
                     w.lse + c * N,
                     w.delta + c * N,
                     w.p + j * kScoresRow + c * N,
                     w.ds + j * kScoresRow + c * N,
                     (float)p.scale,
                     causal ? (int32_t)(j - i0 - c * N) : -kPairRows};
          if (c + 1 < vectors)
            pair_tile<kPairRows, 2>(t);
          else
            pair_tile<kPairRows, 1>(t);
          ahead.step();
        }
      }
      // dV (keys, dv) = P dO, dK (keys, d) = dS Q; key j is seen by rows from j on
      const bool triangle = causal && keys > i0 + 1;
      for (int pass = 0; pass < 2; ++pass) {
        const float *a = pass ? w.ds : w.p, *x = pass ? w.q : w.dout;
        const int64_t xs = pass ? w.dp : w.dvp, nx = pass ? nd : ne;
        float* y = pass ? dk_to : dv_to;
        const int64_t y_row = pass ? dk_row : dv_row;
        const int64_t step = triangle ? block_height<float>(nx) : keys;
        for (int64_t j = 0; j < keys; j += step) {
          const int64_t from = triangle ? most(0, j - i0) : 0;
          block_product(a + j * kScoresRow + from, kScoresRow, (int64_t)1, least(step, keys - j),
                        x + from * xs, xs, nx, rows - from, y + j * y_row, y_row, !once);
          ahead.step();
        }
      }
      mix(w.ds, rows, keys, causal, i0, w.k, w.dp, nullptr, dq + i0 * p.dq.row, p.dq.row, p.d,
          ahead);
    }
  }
  const int64_t dk_done = dk_to == dk ? seen : 0, dv_done = dv_to == dv ? seen : 0;
  write_rows(w.dk + dk_done * w.dp, w.dp, p.tk - dk_done, p.d, dk + dk_done * p.dk.row, p.dk.row);
  write_rows(w.dv + dv_done * w.dvp, w.dvp, p.tk - dv_done, p.dv, dv + dv_done * p.dvs.row,
             p.dvs.row);
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
