// Max and average pooling of channels-last images, regular and adaptive, see pool.h.
//
// Vectors run over channels; a task is a run of rows, so neighbouring windows share the cache. The
// floor is memory: forward reads x once and writes y and one index byte an element of y; backward
// reads those and writes dx once. Max keeps the place of the maximum inside its window in a byte
// (PyTorch: 8 bytes).
//
// Backward never scatters, so needs no atomics and no zero fill: windows that do not overlap write
// each element of dx once; otherwise each element of dx looks at the windows that hold it, in
// order. With few channels (less than half a vector) lanes run over a whole row of y (gathered
// loads) and backward scatters within a sample, one task a sample.
#include "pool.h"

#include <string.h>

#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

// Windows along one axis: tap t of window o lies at start[o] + t * dilation and inside the image
// for first[o] <= t < last[o]; size[o]: its length in the padded image; windows lo[i] .. hi[i] may
// hold i.
struct Axis {
  int32_t *start, *first, *last, *size, *lo, *hi;
  int64_t dilation;
};

GS_INLINE int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

GS_INLINE int32_t* axis_init(Axis* x, int32_t* at, int64_t in, int64_t out, int64_t k, int64_t s,
                             int64_t p, int64_t d, bool adaptive, bool fill) {
  x->start = at;
  x->first = at + out;
  x->last = at + 2 * out;
  x->size = at + 3 * out;
  x->lo = at + 4 * out;
  x->hi = x->lo + in;
  x->dilation = d;
  if (fill) {
    for (int64_t o = 0; o < out; ++o) {
      int64_t b, f, l;
      if (adaptive) {
        b = o * in / out;
        f = 0;
        l = ((o + 1) * in + out - 1) / out - b;
        x->size[o] = (int32_t)l;
      } else {
        b = o * s - p;
        f = b < 0 ? (-b + d - 1) / d : 0;
        l = (in - b + d - 1) / d;
        if (l > k) l = k;
        if (l < f) l = f;
        int64_t e = b + k < in + p ? b + k : in + p;
        x->size[o] = (int32_t)(e - b);
      }
      x->start[o] = (int32_t)b;
      x->first[o] = (int32_t)f;
      x->last[o] = (int32_t)l;
    }
    for (int64_t i = 0; i < in; ++i) {
      int64_t lo, hi;
      if (adaptive) {
        lo = i * out / in;
        hi = ((i + 1) * out + in - 1) / in;
      } else {
        lo = -floor_div(-(i + p - (k - 1) * d), s);
        hi = (i + p) / s + 1;
        if (lo < 0) lo = 0;
      }
      if (hi > out) hi = out;
      x->lo[i] = (int32_t)lo;
      x->hi[i] = (int32_t)(hi < lo ? lo : hi);
    }
  }
  return x->hi + in;
}

struct Geometry {
  PoolParams p;
  Axis y, x;
  int32_t*
      lanes;  // few channels: start, first and last tap, size of each lane's window in a row of y

  GS_MEMBER void init(const PoolParams& params, char* scratch, bool fill) {
    p = params;
    int32_t* at =
        axis_init(&y, (int32_t*)scratch, p.h, p.oh, p.kh, p.sh, p.ph, p.dh, p.adaptive, fill);
    at = axis_init(&x, at, p.w, p.ow, p.kw, p.sw, p.pw, p.dw, p.adaptive, fill);
    lanes = at;
    if (fill && p.c < kFew)
      for (int64_t j = 0; j < p.ow; ++j)
        for (int64_t k = 0; k < p.c; ++k) {
          int64_t i = j * p.c + k, n = p.ow * p.c;
          lanes[i] = (int32_t)(x.start[j] * p.c + k);
          lanes[n + i] = x.first[j];
          lanes[2 * n + i] = x.last[j];
          lanes[3 * n + i] = x.size[j];
        }
  }
  static constexpr int64_t kFew = 8;
  static GS_MEMBER size_t bytes(const PoolParams& p) {
    return (size_t)(4 * p.oh + 2 * p.h + 4 * p.ow + 2 * p.w + (p.c < kFew ? 4 * p.ow * p.c : 0)) *
           4;
  }
};

// Rows a task takes, of `rows` rows of `bytes` bytes.
GS_INLINE int64_t rows_per_task(int64_t rows, int64_t bytes) {
  int64_t r = bytes > 0 ? 65536 / bytes : rows;
  if (r < 1) r = 1;
  if (r * 8 > rows) r = rows / 8 ? rows / 8 : 1;
  return r;
}

template <class T>
struct Pool {
  using V = typename simd<T>::V;
  using I = typename simd<T>::I;
  using S = typename simd<T>::S;
  static constexpr int N = simd<T>::N;
  typedef uint8_t Bytes __attribute__((vector_size(N)));
  typedef int32_t Ints __attribute__((vector_size(N * 4)));
  static constexpr int64_t kFew = N / 2 < Geometry::kFew ? N / 2 : Geometry::kFew;

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
  template <bool FULL>
  static GS_MEMBER void put(bool stream, T* p, V v, int n) {
    if (FULL)
      write(stream, p, v);
    else
      store_n(p, v, n);
  }
  template <bool FULL>
  static GS_MEMBER I get_index(const uint8_t* p, int n) {
    Bytes b = {};
    memcpy(&b, p, FULL ? N : n);
    return __builtin_convertvector(b, I);
  }
  template <bool FULL>
  static GS_MEMBER I get_index(const int32_t* p, int n) {
    Ints b = {};
    memcpy(&b, p, (FULL ? N : n) * 4);
    return __builtin_convertvector(b, I);
  }
  template <bool FULL>
  static GS_MEMBER void put_index(uint8_t* p, I v, int n) {
    Bytes b = __builtin_convertvector(v, Bytes);
    memcpy(p, &b, FULL ? N : n);
  }
  template <bool FULL>
  static GS_MEMBER void put_index(int32_t* p, I v, int n) {
    Ints b = __builtin_convertvector(v, Ints);
    memcpy(p, &b, (FULL ? N : n) * 4);
  }

  // best = x and index = tap where x is larger or NaN
  static GS_MEMBER void take(V x, I tap, V& best, I& index) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      __mmask16 m = _mm512_cmp_ps_mask((__m512)x, (__m512)best, _CMP_GT_OQ) |
                    _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
      best = (V)_mm512_mask_mov_ps((__m512)best, m, (__m512)x);
      index = (I)_mm512_mask_mov_epi32((__m512i)index, m, (__m512i)tap);
    } else {
      __mmask8 m = _mm512_cmp_pd_mask((__m512d)x, (__m512d)best, _CMP_GT_OQ) |
                   _mm512_cmp_pd_mask((__m512d)x, (__m512d)x, _CMP_UNORD_Q);
      best = (V)_mm512_mask_mov_pd((__m512d)best, m, (__m512d)x);
      index = (I)_mm512_mask_mov_epi64((__m512i)index, m, (__m512i)tap);
    }
#else
    I m = (x > best) | (x != x);
    best = m ? x : best;
    index = m ? tap : index;
#endif
  }

  // ---- forward, many channels
  // B vectors of channels of one window; x: tap (0, 0) of the window; strides ls (line), ps (pixel)
  template <int KH, int KW, int B, bool FULL, class IX>
  static GS_MEMBER void max_vec(const T* x, int64_t ls, int64_t ps, int a0, int a1, int b0, int b1,
                                int64_t kw, T low, int none, T* y, IX* index, int n) {
    V best[B], floor = set1(low);
    I at[B];
    const T* q = x + a0 * ls + b0 * ps;
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      best[v] = max(floor, get<FULL>(q + v * N, n));
      at[v] = set1((S)(a0 * kw + b0));
    }
    if (KH) {
#pragma GCC unroll 3
      for (int a = 0; a < KH; ++a)
#pragma GCC unroll 3
        for (int b = 0; b < KW; ++b)
          if (a || b)
#pragma GCC unroll 4
            for (int v = 0; v < B; ++v)
              take(max(floor, get<FULL>(x + a * ls + b * ps + v * N, n)), set1((S)(a * KW + b)),
                   best[v], at[v]);
    } else {
      for (int a = a0; a < a1; ++a)
        for (int b = b0; b < b1; ++b)
#pragma GCC unroll 4
          for (int v = 0; v < B; ++v)
            take(max(floor, get<FULL>(x + a * ls + b * ps + v * N, n)), set1((S)(a * kw + b)),
                 best[v], at[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      put<FULL>(y + v * N, best[v], n);
      if (none) at[v] = best[v] <= floor ? set1((S)none) : at[v];
      if (index) put_index<FULL>(index + v * N, at[v], n);
    }
  }
  template <int KH, int KW, class IX>
  static GS_MEMBER void max_window(const T* x, int64_t c, int64_t ls, int64_t ps, int a0, int a1,
                                   int b0, int b1, int64_t kw, T low, int none, T* y, IX* index) {
    int64_t j = 0;
    if (!KH)
      for (; j + 4 * N <= c; j += 4 * N)
        max_vec<KH, KW, 4, true>(x + j, ls, ps, a0, a1, b0, b1, kw, low, none, y + j,
                                 index ? index + j : index, N);
    for (; j + N <= c; j += N)
      max_vec<KH, KW, 1, true>(x + j, ls, ps, a0, a1, b0, b1, kw, low, none, y + j,
                               index ? index + j : index, N);
    if (j < c)
      max_vec<KH, KW, 1, false>(x + j, ls, ps, a0, a1, b0, b1, kw, low, none, y + j,
                                index ? index + j : index, (int)(c - j));
  }
  // one row of y
  template <int KH, int KW, class IX>
  static void max_row(const Geometry& g, const T* x, int64_t i, T* y, IX* index) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c, ls = p.dh * line, ps = p.dw * p.c;
    int a0 = g.y.first[i], a1 = g.y.last[i];
    T low = p.relu ? (T)0 : -(T)__builtin_inf();
    int none = p.relu ? (int)(p.kh * p.kw) : 0;
    for (int64_t j = 0; j < p.ow; ++j) {
      int b0 = g.x.first[j], b1 = g.x.last[j];
      const T* q = x + (int64_t)g.y.start[i] * line + (int64_t)g.x.start[j] * p.c;
      T* out = y + j * p.c;
      IX* ix = index ? index + j * p.c : index;
      if (a0 == a1 || b0 == b1) {
        // every tap of a dilated window fell into the padding: no maximum, a tap that is none
        for (int64_t k = 0; k < p.c; ++k) {
          out[k] = -(T)__builtin_inf();
          if (ix) ix[k] = (IX)(p.kh * p.kw);
        }
        continue;
      }
      if (KH && a0 == 0 && a1 == KH && b0 == 0 && b1 == KW)
        max_window<KH, KW>(q, p.c, ls, ps, a0, a1, b0, b1, KW, low, none, out, ix);
      else
        max_window<0, 0>(q, p.c, ls, ps, a0, a1, b0, b1, p.kw, low, none, out, ix);
    }
  }

  template <int KH, int KW, int B, bool FULL>
  static GS_MEMBER void avg_vec(const T* x, int64_t ls, int64_t ps, int a0, int a1, int b0, int b1,
                                T div, T* y, int n) {
    V sum[B];
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) sum[v] = V{};
    if (KH) {
#pragma GCC unroll 3
      for (int a = 0; a < KH; ++a) {
        V row = get<FULL>(x + a * ls, n);
#pragma GCC unroll 3
        for (int b = 1; b < KW; ++b) row += get<FULL>(x + a * ls + b * ps, n);
        sum[0] = a ? sum[0] + row : row;
      }
    } else {
      // rows apart, then added: the error grows with height + width, not with their product
      for (int a = a0; a < a1; ++a) {
        V row[B];
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) row[v] = V{};
        for (int b = b0; b < b1; ++b)
#pragma GCC unroll 4
          for (int v = 0; v < B; ++v) row[v] += get<FULL>(x + a * ls + b * ps + v * N, n);
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) sum[v] += row[v];
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) put<FULL>(y + v * N, sum[v] / set1(div), n);
  }
  template <int KH, int KW>
  static GS_MEMBER void avg_window(const T* x, int64_t c, int64_t ls, int64_t ps, int a0, int a1,
                                   int b0, int b1, T div, T* y) {
    int64_t j = 0;
    if (!KH)
      for (; j + 4 * N <= c; j += 4 * N)
        avg_vec<KH, KW, 4, true>(x + j, ls, ps, a0, a1, b0, b1, div, y + j, N);
    for (; j + N <= c; j += N)
      avg_vec<KH, KW, 1, true>(x + j, ls, ps, a0, a1, b0, b1, div, y + j, N);
    if (j < c) avg_vec<KH, KW, 1, false>(x + j, ls, ps, a0, a1, b0, b1, div, y + j, (int)(c - j));
  }
  static GS_MEMBER T divisor(const Geometry& g, int64_t i, int64_t j) {
    const PoolParams& p = g.p;
    if (p.divisor != 0) return (T)p.divisor;
    if (p.include_pad) return (T)((int64_t)g.y.size[i] * g.x.size[j]);
    int64_t d = (int64_t)(g.y.last[i] - g.y.first[i]) * (g.x.last[j] - g.x.first[j]);
    return (T)(d ? d : 1);
  }
  template <int KH, int KW>
  static void avg_row(const Geometry& g, const T* x, int64_t i, T* y) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c;
    int a0 = g.y.first[i], a1 = g.y.last[i];
    for (int64_t j = 0; j < p.ow; ++j) {
      int b0 = g.x.first[j], b1 = g.x.last[j];
      const T* q = x + (int64_t)g.y.start[i] * line + (int64_t)g.x.start[j] * p.c;
      T div = divisor(g, i, j);
      if (KH && a0 == 0 && a1 == KH && b0 == 0 && b1 == KW)
        avg_window<KH, KW>(q, p.c, line, p.c, a0, a1, b0, b1, div, y + j * p.c);
      else
        avg_window<0, 0>(q, p.c, line, p.c, a0, a1, b0, b1, div, y + j * p.c);
    }
  }

  // ---- forward, few channels: lanes over a row of y
  static GS_MEMBER I lane_ints(const int32_t* p, int n) {
    return n == N ? get_index<true>(p, n) : get_index<false>(p, n);
  }
  static GS_MEMBER V gather(const T* p, I at) {
    S o[N];
    T v[N];
    memcpy(o, &at, sizeof o);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = p[o[i]];
    return load(v);
  }
  template <bool MAX, class IX>
  static void few_row(const Geometry& g, const T* x, int64_t i, T* y, IX* index) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c, row = p.ow * p.c;
    for (int64_t j = 0; j < row; j += N) {
      int n = row - j < N ? (int)(row - j) : N;
      I start = lane_ints(g.lanes + j, n), first = lane_ints(g.lanes + row + j, n);
      I last = lane_ints(g.lanes + 2 * row + j, n);
      V best = set1(MAX ? -(T)__builtin_inf() : (T)0);
      I at = first + set1((S)(g.y.first[i] * p.kw)), none = set1((S)(p.kh * p.kw));
      at = first < last ? at : none;
      if (g.y.first[i] == g.y.last[i]) at = none;
      for (int a = g.y.first[i]; a < g.y.last[i]; ++a) {
        const T* q = x + (g.y.start[i] + a * p.dh) * line;
        V sum = {};
        for (int b = 0; b < p.kw; ++b) {
          I tap = set1((S)b), in = (tap >= first) & (tap < last);
          I off = (start + set1((S)(b * p.dw * p.c))) & in;
          V v = gather(q, off);
          if (MAX) {
            if (p.relu) v = max(V{}, v);
            I m = ((v > best) | (v != v)) & in;
            best = m ? v : best;
            at = m ? set1((S)(a * p.kw + b)) : at;
          } else {
            sum += in ? v : V{};
          }
        }
        if (!MAX) best += sum;
      }
      if (!MAX) {
        if (p.divisor != 0) {
          best /= set1((T)p.divisor);
        } else {
          I wide = last - first;
          if (p.include_pad) wide = lane_ints(g.lanes + 3 * row + j, n);
          T high = (T)(p.include_pad ? g.y.size[i] : g.y.last[i] - g.y.first[i]);
          best /= __builtin_convertvector(wide, V) * set1(high);
        }
      }
      store_n(y + j, best, n);
      if (MAX && p.relu) at = best <= V{} ? none : at;
      if (MAX && index) put_index<false>(index + j, at, n);
    }
  }

  template <class F>
  static GS_MEMBER void each_row(int64_t rows, int64_t bytes, const Ctx* ctx, F f) {
    int64_t per = rows_per_task(rows, bytes), tasks = (rows + per - 1) / per;
    for (int64_t t = ctx->tid; t < tasks; t += ctx->nt)
      for (int64_t r = t * per; r < rows && r < (t + 1) * per; ++r) f(r);
  }
  static GS_MEMBER int64_t bytes_in(const PoolParams& p) {
    return (p.h * p.w * p.c + p.oh - 1) / p.oh * (int64_t)sizeof(T);
  }

  template <class IX>
  static void max_forward_ix(const Geometry& g, void* const* buf, const Ctx* ctx) {
    const PoolParams& p = g.p;
    const T* x = (const T*)buf[0];
    T* y = (T*)buf[1];
    IX* index = (IX*)buf[2];
    int64_t image = p.h * p.w * p.c, row = p.ow * p.c;
    bool few = p.c < kFew, dense = p.dh == 1 && p.dw == 1 && sizeof(IX) == 1;
    each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
      const T* from = x + r / p.oh * image;
      IX* ix = index ? index + r * row : index;
      if (few)
        few_row<true>(g, from, r % p.oh, y + r * row, ix);
      else if (dense && p.kh == 2 && p.kw == 2)
        max_row<2, 2>(g, from, r % p.oh, y + r * row, ix);
      else if (dense && p.kh == 3 && p.kw == 3)
        max_row<3, 3>(g, from, r % p.oh, y + r * row, ix);
      else
        max_row<0, 0>(g, from, r % p.oh, y + r * row, ix);
    });
  }
  static void max_forward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    if (g.p.index_bytes == 4)
      max_forward_ix<int32_t>(g, buf, ctx);
    else
      max_forward_ix<uint8_t>(g, buf, ctx);
  }
  static void avg_forward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    const PoolParams& p = g.p;
    const T* x = (const T*)buf[0];
    T* y = (T*)buf[1];
    int64_t image = p.h * p.w * p.c, row = p.ow * p.c;
    bool few = p.c < kFew;
    each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
      const T* from = x + r / p.oh * image;
      if (few)
        few_row<false, uint8_t>(g, from, r % p.oh, y + r * row, nullptr);
      else if (p.kh == 2 && p.kw == 2)
        avg_row<2, 2>(g, from, r % p.oh, y + r * row);
      else if (p.kh == 3 && p.kw == 3)
        avg_row<3, 3>(g, from, r % p.oh, y + r * row);
      else
        avg_row<0, 0>(g, from, r % p.oh, y + r * row);
    });
  }

  // ---- backward, windows side by side: each writes its own elements of dx
  // taps a0..a1, b0..b1 of one window; dx: tap (0, 0)
  template <int K, bool MAX, bool FULL>
  static GS_MEMBER void tile_vec(bool stream, const T* dy, const uint8_t* index, T* dx, int64_t ls,
                                 int64_t ps, int a0, int a1, int b0, int b1, int kw, T inv, int n) {
    fetch(dy);
    V g = get<FULL>(dy, n);
    I at = {};
    if (MAX)
      at = get_index<FULL>(index, n);
    else
      g *= set1(inv);
    if (K) {
#pragma GCC unroll 3
      for (int a = 0; a < K; ++a)
#pragma GCC unroll 3
        for (int b = 0; b < K; ++b)
          put<FULL>(stream, dx + a * ls + b * ps, MAX ? (at == set1((S)(a * K + b)) ? g : V{}) : g,
                    n);
    } else {
      for (int a = a0; a < a1; ++a)
        for (int b = b0; b < b1; ++b)
          put<FULL>(stream, dx + a * ls + b * ps, MAX ? (at == set1((S)(a * kw + b)) ? g : V{}) : g,
                    n);
    }
  }
  template <int K, bool MAX>
  static GS_MEMBER void tile_window(bool stream, const T* dy, const uint8_t* index, T* dx,
                                    int64_t c, int64_t ls, int64_t ps, int a0, int a1, int b0,
                                    int b1, int kw, T inv) {
    int64_t j = 0;
    for (; j + N <= c; j += N)
      tile_vec<K, MAX, true>(stream, dy + j, index + j, dx + j, ls, ps, a0, a1, b0, b1, kw, inv, N);
    if (j < c)
      tile_vec<K, MAX, false>(stream, dy + j, index + j, dx + j, ls, ps, a0, a1, b0, b1, kw, inv,
                              (int)(c - j));
  }
  template <bool MAX>
  static void tile_row(const Geometry& g, bool stream, const T* dy, const uint8_t* index, T* dx,
                       int64_t i) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c;
    int a0 = g.y.first[i], a1 = g.y.last[i];
    bool two = p.kh == 2 && p.kw == 2 && a0 == 0 && a1 == 2;
    for (int64_t j = 0; j < p.ow; ++j) {
      int b0 = g.x.first[j], b1 = g.x.last[j];
      T* out = dx + (int64_t)g.y.start[i] * line + (int64_t)g.x.start[j] * p.c;
      const uint8_t* ix = MAX ? index + j * p.c : (const uint8_t*)dx;
      T inv = MAX ? (T)0 : (T)1 / divisor(g, i, j);
      if (two && b0 == 0 && b1 == 2)
        tile_window<2, MAX>(stream, dy + j * p.c, ix, out, p.c, line, p.c, a0, a1, b0, b1, 2, inv);
      else
        tile_window<0, MAX>(stream, dy + j * p.c, ix, out, p.c, line, p.c, a0, a1, b0, b1,
                            (int)p.kw, inv);
    }
    // what no window covers: columns at the right, rows at the bottom
    int64_t right = g.x.start[p.ow - 1] + g.x.last[p.ow - 1], bottom = g.y.start[i] + a1;
    if (right < p.w)
      for (int64_t r = g.y.start[i] + a0; r < bottom; ++r)
        memset(dx + r * line + right * p.c, 0, (size_t)((p.w - right) * p.c) * sizeof(T));
    if (i == p.oh - 1 && bottom < p.h)
      memset(dx + bottom * line, 0, (size_t)((p.h - bottom) * line) * sizeof(T));
  }

  // ---- backward, any windows: each element of dx collects from the windows that hold it
  struct Holder {  // a window that holds the pixel: offset of its dy, the pixel's tap, 1 / divisor
    int64_t at;
    S tap;
    T inv;
  };
  // acc += d where the index says tap
  static GS_MEMBER V add_hit(V acc, V d, const uint8_t* index, S tap) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_mask_add_ps(
          (__m512)acc,
          _mm_cmpeq_epi8_mask(_mm_loadu_si128((const __m128i*)index), _mm_set1_epi8((char)tap)),
          (__m512)acc, (__m512)d);
#endif
    return acc + (get_index<true>(index, N) == set1(tap) ? d : V{});
  }
  static GS_MEMBER V add_hit(V acc, V d, const int32_t* index, S tap) {
    return acc + (get_index<true>(index, N) == set1(tap) ? d : V{});
  }
  // B vectors of channels of one pixel; more: dx already holds the sum over earlier windows
  template <bool MAX, int B, class IX>
  static GS_MEMBER void collect(bool stream, const Holder* list, int count, bool more, const T* dy,
                                const IX* index, T* dx) {
    V acc[B];
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) acc[v] = more ? load(dx + v * N) : V{};
    for (int k = 0; k < count; ++k) {
      const T* d = dy + list[k].at;
      const IX* ix = index + list[k].at;
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v)
        acc[v] = MAX ? add_hit(acc[v], load(d + v * N), ix + v * N, list[k].tap)
                     : acc[v] + load(d + v * N) * set1(list[k].inv);
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) write(stream, dx + v * N, acc[v]);
  }
  template <bool MAX, class IX>
  static void collect_tail(const Holder* list, int count, bool more, const T* dy, const IX* index,
                           T* dx, int n) {
    V acc = more ? load_n(dx, n) : V{};
    for (int k = 0; k < count; ++k) {
      V d = load_n(dy + list[k].at, n);
      if (MAX)
        acc += get_index<false>(index + list[k].at, n) == set1(list[k].tap) ? d : V{};
      else
        acc += d * set1(list[k].inv);
    }
    store_n(dx, acc, n);
  }
  template <bool MAX, class IX>
  static void collect_pixel(bool stream, const Holder* list, int count, bool more, const T* dy,
                            const IX* index, T* dx, int64_t c) {
    int64_t k = 0;
    for (; k + 4 * N <= c; k += 4 * N)
      collect<MAX, 4>(stream, list, count, more, dy + k, index + k, dx + k);
    for (; k + N <= c; k += N)
      collect<MAX, 1>(stream, list, count, more, dy + k, index + k, dx + k);
    if (k < c) collect_tail<MAX>(list, count, more, dy + k, index + k, dx + k, (int)(c - k));
  }
  template <bool MAX, class IX>
  static void collect_row(const Geometry& g, bool stream, const T* dy, const IX* index, int64_t h,
                          T* dx) {
    constexpr int kHolders = 64;
    const PoolParams& p = g.p;
    Holder list[kHolders];
    for (int64_t w = 0; w < p.w; ++w, dx += p.c) {
      int count = 0;
      bool more = false;
      for (int i = g.y.lo[h]; i < g.y.hi[h]; ++i) {
        int64_t a = h - g.y.start[i];
        if (p.dh != 1) {
          if (a % p.dh) continue;
          a /= p.dh;
        }
        for (int j = g.x.lo[w]; j < g.x.hi[w]; ++j) {
          int64_t b = w - g.x.start[j];
          if (p.dw != 1) {
            if (b % p.dw) continue;
            b /= p.dw;
          }
          if (count == kHolders) {
            collect_pixel<MAX>(stream, list, count, more, dy, index, dx, p.c);
            more = true;
            count = 0;
          }
          list[count].at = ((int64_t)i * p.ow + j) * p.c;
          list[count].tap = (S)(a * p.kw + b);
          list[count++].inv = MAX ? (T)0 : (T)1 / divisor(g, i, j);
        }
      }
      collect_pixel<MAX>(stream, list, count, more, dy, index, dx, p.c);
    }
  }

  // ---- backward, few channels: scattered within a sample
  template <bool MAX, class IX>
  static void few_sample(const Geometry& g, const T* dy, const IX* index, T* dx) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c, size = p.h * line;
    memset(dx, 0, (size_t)size * sizeof(T));
    for (int64_t i = 0; i < p.oh; ++i)
      for (int64_t j = 0; j < p.ow; ++j) {
        int64_t base = g.y.start[i] * line + g.x.start[j] * p.c;
        T inv = MAX ? (T)0 : (T)1 / divisor(g, i, j);
        for (int64_t k = 0; k < p.c; ++k, ++dy) {
          if (MAX) {
            int64_t tap = *index++, a = tap / p.kw, b = tap - a * p.kw;
            int64_t at = base + a * p.dh * line + b * p.dw * p.c + k;
            if (a < p.kh && at >= 0 && at < size) dx[at] += *dy;
          } else {
            T v = *dy * inv;
            for (int a = g.y.first[i]; a < g.y.last[i]; ++a)
              for (int b = g.x.first[j]; b < g.x.last[j]; ++b)
                dx[base + a * line + b * p.c + k] += v;
          }
        }
      }
  }

  template <bool MAX, class IX>
  static void backward_ix(const Geometry& g, void* const* buf, const Ctx* ctx) {
    const PoolParams& p = g.p;
    const T* dy = (const T*)buf[0];
    const IX* index = (const IX*)buf[MAX ? 1 : 0];
    T* dx = (T*)buf[MAX ? 2 : 1];
    int64_t image = p.h * p.w * p.c, row = p.ow * p.c;
    if (p.c < kFew) {
      for (int64_t t = ctx->tid; t < p.n; t += ctx->nt)
        few_sample<MAX>(g, dy + t * p.oh * row, index + t * p.oh * row, dx + t * image);
      return;
    }
    const bool stream = streams(ctx, p.n * image * (int64_t)sizeof(T), dx, p.c * sizeof(T));
    bool tiled =
        !p.adaptive && p.dh == 1 && p.dw == 1 && p.sh == p.kh && p.sw == p.kw && sizeof(IX) == 1;
    // with padding the first window may be cut short, but every element still lies in one window at
    // most
    if (tiled) {
      each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
        tile_row<MAX>(g, stream, dy + r * row, (const uint8_t*)index + (MAX ? r * row : 0),
                      dx + r / p.oh * image, r % p.oh);
      });
      if (stream) write_fence();
      return;
    }
    each_row(p.n * p.h, p.w * p.c * (int64_t)sizeof(T), ctx, [&](int64_t r) {
      int64_t from = r / p.h * p.oh * row;
      collect_row<MAX>(g, stream, dy + from, index + from, r % p.h, dx + r * p.w * p.c);
    });
    if (stream) write_fence();
  }
  static void max_backward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    if (g.p.index_bytes == 4)
      backward_ix<true, int32_t>(g, buf, ctx);
    else
      backward_ix<true, uint8_t>(g, buf, ctx);
  }
  static void avg_backward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    backward_ix<false, uint8_t>(g, buf, ctx);
  }
};

void plan(const void* params, Plan* out) {
  const PoolParams& p = *(const PoolParams*)params;
  int64_t rows = p.n * (p.oh > p.h ? p.oh : p.h);
  double taps = p.adaptive ? 1.0 + (double)(p.oh * p.ow) / (double)(p.h * p.w)
                           : (double)(p.kh * p.kw * p.oh * p.ow) / (double)(p.h * p.w);
  out->tasks = rows;
  out->work = (int64_t)((double)(p.n * p.h * p.w * p.c) * (0.1 + 0.05 * taps));
  out->scratch = Geometry::bytes(p);
}

const KernelEntry entries[] = {
    {"max_pool", kF32, Pool<float>::max_forward, plan},
    {"max_pool", kF64, Pool<double>::max_forward, plan},
    {"max_pool_backward", kF32, Pool<float>::max_backward, plan},
    {"max_pool_backward", kF64, Pool<double>::max_backward, plan},
    {"avg_pool", kF32, Pool<float>::avg_forward, plan},
    {"avg_pool", kF64, Pool<double>::avg_forward, plan},
    {"avg_pool_backward", kF32, Pool<float>::avg_backward, plan},
    {"avg_pool_backward", kF64, Pool<double>::avg_backward, plan},
};

}  // namespace

extern const KernelList pool_kernels;
const KernelList pool_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
