// Max and average pooling of channels-last images, regular and adaptive, see pool.h.
//
// Vectors run over channels; a task is a run of rows, so neighbouring windows share the cache. The
// floor is memory: forward reads x once and writes y and one index byte an element of y; backward
// reads those and writes dx once. Max keeps the place of the maximum inside its window in a byte
// (PyTorch: 8 bytes).
//
// Backward never scatters, so needs no atomics and no zero fill: windows that do not overlap write
// each element of dx once, row by row; otherwise each element of dx looks at the windows that hold
// it, in order. Averages over 3 columns at stride 1 keep the sums of the last two columns in
// registers, 3 loads a vector in place of 9, forward and backward.
//
// With few channels (less than half a vector) a vector holds a block of whole neighbouring pixels
// of y; the pixels of a tap come from two vectors of x by one permutation, which is the same for
// all blocks, and backward the other way around. What does not fit (steps of more than two pixels,
// edges) is gathered; overlapping windows scatter backward within a sample, one task a sample.
#include "pool.h"

#include <string.h>

#include "simd/own.h"
#include "simd/taps.h"
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

// How large results are written: past the caches where rows are aligned, else as stores whose lines
// are asked for ahead.
enum Way { kPlain, kOwn, kPast };
GS_INLINE Way way_of(const Ctx* ctx, int64_t bytes, const void* p, int64_t step) {
  if (bytes < ctx->stream) return kPlain;
  return streams(ctx, bytes, p, step) ? kPast : kOwn;
}
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
  static GS_MEMBER void put(Way way, T* p, V v, int n) {
    if (FULL && way == kPast) return write<true>(p, v);
    if (way == kOwn) own(p);
    if (FULL)
      store(p, v);
    else
      store_n(p, v, n);
  }
  // lane l of the result: lane at[l] of v, of a and b side by side
  static GS_MEMBER V pick(V v, I at) {
#if defined(__clang__)
    V r;
    for (int i = 0; i < N; ++i) r[i] = v[at[i]];
    return r;
#else
    return __builtin_shuffle(v, at);
#endif
  }
  static GS_MEMBER I pick(I v, I at) {
#if defined(__clang__)
    I r;
    for (int i = 0; i < N; ++i) r[i] = v[at[i]];
    return r;
#else
    return __builtin_shuffle(v, at);
#endif
  }
  static GS_MEMBER V pick(V a, V b, I at) {
#if defined(__clang__)
    V r;
    for (int i = 0; i < N; ++i) r[i] = at[i] < N ? a[at[i]] : b[at[i] - N];
    return r;
#else
    return __builtin_shuffle(a, b, at);
#endif
  }
  template <bool FULL>
  static GS_MEMBER I get_index(const uint8_t* p, int n) {
    return load_taps<T, FULL>(p, n);
  }
  template <bool FULL>
  static GS_MEMBER I get_index(const int32_t* p, int n) {
    Ints b = {};
    memcpy(&b, p, (FULL ? N : n) * 4);
    return __builtin_convertvector(b, I);
  }
  template <bool FULL>
  static GS_MEMBER void put_index(uint8_t* p, I v, int n) {
    store_taps<T, FULL>(p, v, n);
  }
  template <bool FULL>
  static GS_MEMBER void put_index(int32_t* p, I v, int n) {
    Ints b = __builtin_convertvector(v, Ints);
    memcpy(p, &b, (FULL ? N : n) * 4);
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
      best[v] = get<FULL>(q + v * N, n);
      at[v] = set1((S)(a0 * kw + b0));
    }
    if (KH) {
#pragma GCC unroll 3
      for (int a = 0; a < KH; ++a)
#pragma GCC unroll 3
        for (int b = 0; b < KW; ++b) {
          if (a || b)
#pragma GCC unroll 4
            for (int v = 0; v < B; ++v)
              take<T>(get<FULL>(x + a * ls + b * ps + v * N, n), set1((S)(a * KW + b)), best[v],
                      at[v]);
        }
    } else {
      for (int a = a0; a < a1; ++a)
        for (int b = b0; b < b1; ++b)
#pragma GCC unroll 4
          for (int v = 0; v < B; ++v)
            take<T>(get<FULL>(x + a * ls + b * ps + v * N, n), set1((S)(a * kw + b)), best[v],
                    at[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      if (none) {  // the maximum of ReLU is that of x, or the first zero, which has its own sign
        auto dead = best[v] <= floor;
        at[v] = dead ? set1((S)none) : at[v];
        best[v] = dead ? max(floor, get<FULL>(q + v * N, n)) : best[v];
      }
      put<FULL>(y + v * N, best[v], n);
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

  // s / d to the last bit, without the 16 cycles of a division: inv = 1 / d, rounded
  static GS_MEMBER V over(V s, T d, [[maybe_unused]] T inv) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      V q = s * set1(inv), rest = fnma(q, set1(d), s);
      // the rest of an infinite sum is no number
      __mmask16 finite = _mm512_cmp_ps_mask((__m512)rest, (__m512)rest, _CMP_ORD_Q);
      return (V)_mm512_mask3_fmadd_ps((__m512)rest, _mm512_set1_ps(inv), (__m512)q, finite);
    }
#endif
    return s / set1(d);
  }
  template <int KH, int KW, int B, bool FULL>
  static GS_MEMBER void avg_vec(const T* x, int64_t ls, int64_t ps, int a0, int a1, int b0, int b1,
                                T div, T inv, T* y, int n) {
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
          for (int v = 0; v < B; ++v) {
            const T* q = x + a * ls + b * ps + v * N;
            fetch(q);
            row[v] += get<FULL>(q, n);
          }
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) sum[v] += row[v];
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) put<FULL>(y + v * N, over(sum[v], div, inv), n);
  }
  template <int KH, int KW>
  static GS_MEMBER void avg_window(const T* x, int64_t c, int64_t ls, int64_t ps, int a0, int a1,
                                   int b0, int b1, T div, T inv, T* y) {
    int64_t j = 0;
    if (!KH)
      for (; j + 4 * N <= c; j += 4 * N)
        avg_vec<KH, KW, 4, true>(x + j, ls, ps, a0, a1, b0, b1, div, inv, y + j, N);
    for (; j + N <= c; j += N)
      avg_vec<KH, KW, 1, true>(x + j, ls, ps, a0, a1, b0, b1, div, inv, y + j, N);
    if (j < c)
      avg_vec<KH, KW, 1, false>(x + j, ls, ps, a0, a1, b0, b1, div, inv, y + j, (int)(c - j));
  }
  static GS_MEMBER T divisor(const Geometry& g, int64_t i, int64_t j) {
    const PoolParams& p = g.p;
    if (p.divisor != 0) return (T)p.divisor;
    if (p.include_pad) return (T)((int64_t)g.y.size[i] * g.x.size[j]);
    int64_t d = (int64_t)(g.y.last[i] - g.y.first[i]) * (g.x.last[j] - g.x.first[j]);
    return (T)(d ? d : 1);
  }
  // Whether all windows are divided by the same number.
  static GS_MEMBER bool uniform(const Geometry& g) {
    const PoolParams& p = g.p;
    if (p.divisor != 0) return true;
    T d = divisor(g, 0, 0);
    bool same = true;
    for (int64_t i = 0; i < p.oh; ++i) same &= divisor(g, i, 0) == d;
    for (int64_t j = 0; j < p.ow; ++j) same &= divisor(g, 0, j) == d;
    return same;
  }
  template <int KH, int KW>
  static void avg_row(const Geometry& g, bool same, const T* x, int64_t i, T* y) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c;
    int a0 = g.y.first[i], a1 = g.y.last[i];
    T div = divisor(g, i, 0), inv = 1 / div;
    for (int64_t j = 0; j < p.ow; ++j) {
      int b0 = g.x.first[j], b1 = g.x.last[j];
      const T* q = x + (int64_t)g.y.start[i] * line + (int64_t)g.x.start[j] * p.c;
      if (!same) {
        div = divisor(g, i, j);
        inv = 1 / div;
      }
      if (KH && a0 == 0 && a1 == KH && b0 == 0 && b1 == KW)
        avg_window<KH, KW>(q, p.c, line, p.c, a0, a1, b0, b1, div, inv, y + j * p.c);
      else
        avg_window<0, 0>(q, p.c, line, p.c, a0, a1, b0, b1, div, inv, y + j * p.c);
    }
  }

  // Averages over 3 columns at stride 1. Backward is the same sum over the windows that hold a
  // pixel: x is dy and y is dx. rows: of x, to be added; cols: of x and y; column j of y sums x at
  // j - pad .. j - pad + 2. div(j) divides.
  template <int B, bool FULL, class F>
  static GS_MEMBER void slide(Way way, const T* x, int64_t line, int rows, int64_t c, int64_t in,
                              int64_t out, int64_t pad, T* y, int n, F scale) {
    auto column = [=](int64_t q, V * s) __attribute__((always_inline)) {
      if (q < 0 || q >= in) {
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) s[v] = V{};
        return;
      }
      const T* from = x + q * c;
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) s[v] = get<FULL>(from + v * N, n);
      for (int a = 1; a < rows; ++a) {
        from += line;
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) s[v] += get<FULL>(from + v * N, n);
      }
      if (FULL)
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) __builtin_prefetch(from + line + v * N);
    };
    V s0[B], s1[B], s2[B];
    column(-pad, s0);
    column(1 - pad, s1);
    for (int64_t j = 0; j < out; ++j) {
      column(j + 2 - pad, s2);
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) {
        put<FULL>(way, y + j * c + v * N, scale(j, (s0[v] + s1[v]) + s2[v]), n);
        s0[v] = s1[v];
        s1[v] = s2[v];
      }
    }
  }
  template <class F>
  static GS_MEMBER void slide_row(Way way, const T* x, int64_t line, int rows, int64_t c,
                                  int64_t in, int64_t out, int64_t pad, T* y, F scale) {
    if (rows <= 0) {
      memset(y, 0, (size_t)(out * c) * sizeof(T));
      return;
    }
    int64_t k = 0;
    for (; k + 4 * N <= c; k += 4 * N)
      slide<4, true>(way, x + k, line, rows, c, in, out, pad, y + k, N, scale);
    for (; k + N <= c; k += N)
      slide<1, true>(way, x + k, line, rows, c, in, out, pad, y + k, N, scale);
    if (k < c)
      slide<1, false>(kPlain, x + k, line, rows, c, in, out, pad, y + k, (int)(c - k), scale);
  }
  static GS_MEMBER bool slides(const PoolParams& p) {
    return !p.adaptive && p.kw == 3 && p.sw == 1 && p.sh == 1;
  }
  static void avg_slide_row(const Geometry& g, Way way, bool same, const T* x, int64_t i, T* y) {
    const PoolParams& p = g.p;
    const int a0 = g.y.first[i], a1 = g.y.last[i];
    const int64_t line = p.w * p.c;
    const T* from = x + (g.y.start[i] + a0) * line;
    if (same) {
      const T div = divisor(g, i, 0), inv = 1 / div;
      slide_row(
          way, from, line, a1 - a0, p.c, p.w, p.ow, p.pw,
          y, [=](int64_t, V s) __attribute__((always_inline)) { return over(s, div, inv); });
    } else {
      slide_row(
          way, from, line, a1 - a0, p.c, p.w, p.ow, p.pw,
          y, [&](int64_t j, V s) __attribute__((always_inline)) {
            return s / set1(divisor(g, i, j));
          });
    }
  }

  // ---- forward, few channels: lanes over a row of y
  static GS_MEMBER I lane_ints(const int32_t* p, int n) {
    return n == N ? get_index<true>(p, n) : get_index<false>(p, n);
  }
  static GS_MEMBER V gather(const T* p, I at) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_i32gather_ps((__m512i)at, p, 4);
    else
      return (V)_mm512_i64gather_pd((__m512i)at, p, 8);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm256_i32gather_ps(p, (__m256i)at, 4);
    else
      return (V)_mm256_i64gather_pd(p, (__m256i)at, 8);
#endif
    S o[N];
    T v[N];
    memcpy(o, &at, sizeof o);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = p[o[i]];
    return load(v);
  }
  // columns from .. to of row i of y, gathered; x, y, index: their image, row
  template <bool MAX, class IX>
  static void few_gather(const Geometry& g, const T* x, int64_t i, T* y, IX* index, int64_t from,
                         int64_t to) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c, row = p.ow * p.c;
    for (int64_t j = from * p.c; j < to * p.c; j += N) {
      int n = to * p.c - j < N ? (int)(to * p.c - j) : N;
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

  // Blocks of whole pixels: lane l holds channel l % c of pixel l / c of `pixels`.
  struct Block {
    int pixels, lanes;
    int64_t begin, end;  // columns of y whose windows lie inside the row, if any block does
    I at;                // of two vectors of x, those of a tap

    GS_MEMBER void init(const Geometry& g) {
      const PoolParams& p = g.p;
      const int c = (int)p.c;
      pixels = N / c;
      lanes = pixels * c;
      begin = 0;
      end = p.ow;
      while (begin < end && (g.x.first[begin] != 0 || g.x.last[begin] != p.kw)) ++begin;
      while (end > begin && (g.x.first[end - 1] != 0 || g.x.last[end - 1] != p.kw)) --end;
      if (end - begin < pixels || p.adaptive) end = begin;
      S a[N];
      for (int l = 0; l < N; ++l) a[l] = (S)(l < lanes ? l / c * p.sw * c + l % c : 0);
      memcpy(&at, a, sizeof at);
    }
    // Whether a tap's pixels lie in two vectors.
    GS_MEMBER bool near(const PoolParams& p) const {
      return p.sw == 1 || (pixels - 1) * p.sw * p.c + p.c <= 2 * N;
    }
  };
  // One row of y; limit: the end of x.
  template <bool MAX, class IX>
  static void few_row(const Geometry& g, const Block& block, const T* x, const T* limit, int64_t i,
                      T* y, IX* index) {
    const PoolParams& p = g.p;
    const int64_t line = p.w * p.c, c = p.c, step = p.dw * c;
    const int a0 = g.y.first[i], a1 = g.y.last[i], kw = (int)p.kw, n = block.lanes;
    const bool apart = p.sw != 1;
    int64_t done = 0, j = block.begin;
    if (a0 < a1 && block.begin < block.end && block.near(p)) {
      const T high = (T)(p.include_pad ? g.y.size[i] : a1 - a0);
      const T* image = x + g.y.start[i] * line;
      const I at = block.at;
      if (j) few_gather<MAX>(g, x, i, y, index, 0, j);
      for (; j < block.end; j += block.pixels) {
        if (j + block.pixels > block.end) j = block.end - block.pixels;
        const T* q = image + g.x.start[j] * c;
        // the last tap's two vectors must lie in x
        if (q + (a1 - 1) * p.dh * line + (kw - 1) * step + 2 * N > limit) break;
        V best = {};
        I tap = {};
        auto all = [&](int rows, int cols) __attribute__((always_inline)) {
#pragma GCC unroll 2
          for (int a = 0; a < rows; ++a) {
            const T* r = q + (a0 + a) * p.dh * line;
            V sum = {};
#pragma GCC unroll 2
            for (int b = 0; b < cols; ++b, r += step) {
              fetch(r);
              V v = apart ? pick(load(r), load(r + N), at) : load(r);
              if (MAX) {
                I here = set1((S)((a0 + a) * cols + b));
                if (a || b) {
                  take<T>(v, here, best, tap);
                } else {
                  best = v;
                  tap = here;
                }
              } else {
                sum += v;
              }
            }
            if (!MAX) best += sum;
          }
        };
        if (a1 - a0 == 2 && kw == 2)
          all(2, 2);
        else
          all(a1 - a0, kw);
        if (!MAX) {
          T div =
              p.divisor != 0 ? (T)p.divisor : (T)(p.include_pad ? g.x.size[j] : (int32_t)kw) * high;
          if (p.include_pad && p.divisor == 0 && g.x.size[j + block.pixels - 1] != g.x.size[j])
            break;
          best = over(best, div, 1 / div);
        } else if (p.relu) {
          auto dead = best <= V{};
          const T* r = q + a0 * p.dh * line;
          tap = dead ? set1((S)(p.kh * p.kw)) : tap;
          best = dead ? max(V{}, apart ? pick(load(r), load(r + N), at) : load(r)) : best;
        }
        if (n == N) {
          store(y + j * c, best);
          if (MAX && index) put_index<true>(index + j * c, tap, N);
        } else {
          store_n(y + j * c, best, n);
          if (MAX && index) put_index<false>(index + j * c, tap, n);
        }
        done = j + block.pixels;
      }
      if (!done) done = block.begin;
    }
    if (done < p.ow) few_gather<MAX>(g, x, i, y, index, done, p.ow);
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
    Block block;
    if (few) block.init(g);
    each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
      const T* from = x + r / p.oh * image;
      IX* ix = index ? index + r * row : index;
      if (few)
        few_row<true>(g, block, from, x + p.n * image, r % p.oh, y + r * row, ix);
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
    const bool few = p.c < kFew, same = uniform(g);
    const Way way = way_of(ctx, p.n * p.oh * row * (int64_t)sizeof(T), y, p.c * sizeof(T));
    Block block;
    if (few) block.init(g);
    each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
      const T* from = x + r / p.oh * image;
      if (few)
        few_row<false, uint8_t>(g, block, from, x + p.n * image, r % p.oh, y + r * row, nullptr);
      else if (slides(p))
        avg_slide_row(g, way, same, from, r % p.oh, y + r * row);
      else if (p.kh == 2 && p.kw == 2)
        avg_row<2, 2>(g, same, from, r % p.oh, y + r * row);
      else if (p.kh == 3 && p.kw == 3)
        avg_row<3, 3>(g, same, from, r % p.oh, y + r * row);
      else
        avg_row<0, 0>(g, same, from, r % p.oh, y + r * row);
    });
    if (way == kPast) write_fence();
  }

  // ---- backward, windows side by side: each writes its own elements of dx
  // taps a0 .. a1, b0 .. b1 of one window; dx: tap (0, 0)
  template <int K, bool MAX, bool FULL>
  static GS_MEMBER void tile_vec(Way way, const T* dy, const uint8_t* index, T* dx, int64_t ls,
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
          put<FULL>(way, dx + a * ls + b * ps, MAX ? (at == set1((S)(a * K + b)) ? g : V{}) : g, n);
    } else {
      for (int a = a0; a < a1; ++a)
        for (int b = b0; b < b1; ++b)
          put<FULL>(way, dx + a * ls + b * ps, MAX ? (at == set1((S)(a * kw + b)) ? g : V{}) : g,
                    n);
    }
  }
  template <int K, bool MAX>
  static GS_MEMBER void tile_window(Way way, const T* dy, const uint8_t* index, T* dx, int64_t c,
                                    int64_t ls, int64_t ps, int a0, int a1, int b0, int b1, int kw,
                                    T inv) {
    int64_t j = 0;
    for (; j + N <= c; j += N)
      tile_vec<K, MAX, true>(way, dy + j, index + j, dx + j, ls, ps, a0, a1, b0, b1, kw, inv, N);
    if (j < c)
      tile_vec<K, MAX, false>(way, dy + j, index + j, dx + j, ls, ps, a0, a1, b0, b1, kw, inv,
                              (int)(c - j));
  }
  // Few channels: a block of pixels of dy and the vectors of dx that their windows' taps in one
  // row are.
  struct Spread {
    static constexpr int kMost = 4;
    I from[kMost], tap[kMost];  // lane of dy and column of the window of each lane of dx
    int vectors, lanes;         // lanes: of the last vector

    GS_MEMBER bool init(const PoolParams& p, const Block& block) {
      const int total = (int)(block.pixels * p.kw * p.c), c = (int)p.c, kw = (int)p.kw;
      vectors = (total + N - 1) / N;
      if (vectors < 2 || vectors > kMost || block.begin >= block.end) return false;
      lanes = total - (vectors - 1) * N;
      for (int v = 0; v < vectors; ++v) {
        S f[N], t[N];
        for (int l = 0; l < N; ++l) {
          int m = v * N + l, w = m / c;
          f[l] = (S)(m < total ? w / kw * c + m % c : 0);
          t[l] = (S)(w % kw);
        }
        memcpy(&from[v], f, sizeof f);
        memcpy(&tap[v], t, sizeof t);
      }
      return true;
    }
  };
  // Blocks of dy from pixel j on, as many as fit before `end` (the last may overlap the one
  // before); to: the row of dx at the first. base: the tap of the row's first column.
  template <bool MAX, int M>
  static void spread_row(const Spread& s, const Block& block, Way way, int64_t c, int kw,
                         int64_t count, const T* dy, const uint8_t* index, T* to, int base, T inv) {
    const int n = block.lanes;
    I from[M], tap[M];
#pragma GCC unroll 4
    for (int v = 0; v < M; ++v) {
      from[v] = s.from[v];
      tap[v] = s.tap[v] + set1((S)base);
    }
    const bool past = way == kPast && n == N && s.lanes == N && count % block.pixels == 0 &&
                      ((uintptr_t)to & (GS_VBYTES - 1)) == 0;
    for (int64_t j = 0; j < count; j += block.pixels) {
      if (j + block.pixels > count) j = count - block.pixels;
      const T* d = dy + j * c;
      T* out = to + j * kw * c;
      fetch(d);
      V g = n == N ? load(d) : load_n(d, n);
      I at = {};
      if (MAX)
        at = n == N ? get_index<true>(index + j * c, N) : get_index<false>(index + j * c, n);
      else
        g *= set1(inv);
#pragma GCC unroll 4
      for (int v = 0; v < M; ++v) {
        V e = pick(g, from[v]);
        if (MAX) e = pick(at, from[v]) == tap[v] ? e : V{};
        if (past)
          write<true>(out + v * N, e);
        else if (v < M - 1 || s.lanes == N)
          store(out + v * N, e);
        else
          store_n(out + v * N, e, s.lanes);
        if (way == kOwn) own(out + v * N);
      }
    }
  }
  template <bool MAX>
  static void tile_row(const Geometry& g, const Block* block, const Spread* spread, Way way,
                       bool same, const T* dy, const uint8_t* index, T* dx, int64_t i) {
    const PoolParams& p = g.p;
    const int64_t line = p.w * p.c, c = p.c;
    const int a0 = g.y.first[i], a1 = g.y.last[i], kw = (int)p.kw;
    const T one = MAX ? (T)0 : 1 / divisor(g, i, 0);
    int64_t begin = 0, end = 0;  // columns of y that go by blocks
    if (spread && (MAX || same)) {
      begin = block->begin;
      end = block->end;
      const int64_t at = g.x.start[begin] * c, count = end - begin;
      for (int a = a0; a < a1; ++a) {
        T* to = dx + (g.y.start[i] + a) * line + at;
        const T* d = dy + begin * c;
        const uint8_t* ix = MAX ? index + begin * c : index;
        if (spread->vectors == 2)
          spread_row<MAX, 2>(*spread, *block, way, c, kw, count, d, ix, to, a * kw, one);
        else if (spread->vectors == 3)
          spread_row<MAX, 3>(*spread, *block, way, c, kw, count, d, ix, to, a * kw, one);
        else
          spread_row<MAX, 4>(*spread, *block, way, c, kw, count, d, ix, to, a * kw, one);
      }
    }
    const bool two = p.kh == 2 && kw == 2 && a0 == 0 && a1 == 2;
    for (int64_t j = 0; j < p.ow; ++j) {
      if (j == begin) j = end;
      if (j >= p.ow) break;
      int b0 = g.x.first[j], b1 = g.x.last[j];
      const uint8_t* ix = MAX ? index + j * c : (const uint8_t*)dx;
      T* out = dx + (int64_t)g.y.start[i] * line + (int64_t)g.x.start[j] * c;
      const T inv = MAX || same ? one : 1 / divisor(g, i, j);
      if (two && b0 == 0 && b1 == 2)
        tile_window<2, MAX>(way, dy + j * c, ix, out, c, line, c, a0, a1, b0, b1, 2, inv);
      else
        tile_window<0, MAX>(way, dy + j * c, ix, out, c, line, c, a0, a1, b0, b1, kw, inv);
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
  // B vectors of channels of one pixel (h, w) of dx, dy and index: their image
  template <bool MAX, int B, bool FULL, class IX>
  static GS_MEMBER void collect(const Geometry& g, Way way, bool same, T inv, const T* dy,
                                const IX* index, int64_t h, int64_t w, T* dx, int n) {
    const PoolParams& p = g.p;
    V acc[B];
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) acc[v] = V{};
    const int j0 = g.x.lo[w], j1 = g.x.hi[w];
    for (int i = g.y.lo[h]; i < g.y.hi[h]; ++i) {
      int64_t a = h - g.y.start[i];
      if (p.dh != 1) {
        if (a % p.dh) continue;
        a /= p.dh;
      }
      int64_t at = ((int64_t)i * p.ow + j0) * p.c;
      for (int j = j0; j < j1; ++j, at += p.c) {
        int64_t b = w - g.x.start[j];
        if (p.dw != 1) {
          if (b % p.dw) continue;
          b /= p.dw;
        }
        const S tap = (S)(a * p.kw + b);
        const V f = set1(MAX || same ? inv : 1 / divisor(g, i, j));
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) {
          V d = get<FULL>(dy + at + v * N, n);
          if (!MAX)
            acc[v] += d * f;
          else if (FULL)
            acc[v] = add_hit(acc[v], d, index + at + v * N, tap);
          else
            acc[v] += get_index<false>(index + at + v * N, n) == set1(tap) ? d : V{};
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) put<FULL>(way, dx + v * N, acc[v], n);
  }
  template <bool MAX, class IX>
  static void collect_row(const Geometry& g, Way way, bool same, const T* dy, const IX* index,
                          int64_t h, T* dx) {
    const PoolParams& p = g.p;
    const T inv = MAX ? (T)0 : 1 / divisor(g, 0, 0);
    for (int64_t w = 0; w < p.w; ++w, dx += p.c) {
      int64_t k = 0;
      for (; k + 4 * N <= p.c; k += 4 * N)
        collect<MAX, 4, true>(g, way, same, inv, dy + k, index + k, h, w, dx + k, N);
      for (; k + N <= p.c; k += N)
        collect<MAX, 1, true>(g, way, same, inv, dy + k, index + k, h, w, dx + k, N);
      if (k < p.c)
        collect<MAX, 1, false>(g, way, same, inv, dy + k, index + k, h, w, dx + k, (int)(p.c - k));
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
    const bool few = p.c < kFew, same = !MAX && uniform(g);
    // with padding the first window may be cut short, but every element still lies in one window at
    // most
    const bool tiled =
        !p.adaptive && p.dh == 1 && p.dw == 1 && p.sh == p.kh && p.sw == p.kw && sizeof(IX) == 1;
    Block block;
    Spread spread;
    if (few) block.init(g);
    const bool blocks = few && tiled && spread.init(p, block);
    if (few && !blocks) {
      for (int64_t t = ctx->tid; t < p.n; t += ctx->nt)
        few_sample<MAX>(g, dy + t * p.oh * row, index + t * p.oh * row, dx + t * image);
      return;
    }
    Way way = way_of(ctx, p.n * image * (int64_t)sizeof(T), dx, p.c * sizeof(T));
    // nothing to read: then stores are faster, as far as a cache shared by the cores may take them
    if (way == kPast && p.oh * p.ow * 16 < p.h * p.w &&
        p.n * image * (int64_t)sizeof(T) / 8 < ctx->stream)
      way = kOwn;
    if (tiled) {
      each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
        tile_row<MAX>(g, &block, blocks ? &spread : nullptr, way, same, dy + r * row,
                      (const uint8_t*)index + (MAX ? r * row : 0), dx + r / p.oh * image, r % p.oh);
      });
    } else {
      each_row(p.n * p.h, p.w * p.c * (int64_t)sizeof(T), ctx, [&](int64_t r) {
        const int64_t from = r / p.h * p.oh * row, h = r % p.h;
        T* to = dx + r * p.w * p.c;
        if (!MAX && same && slides(p)) {
          const V inv = set1((T)1 / divisor(g, 0, 0));
          const int lo = g.y.lo[h];
          slide_row(
              way, dy + from + lo * row, row, g.y.hi[h] - lo, p.c, p.ow, p.w, 2 - p.pw,
              to, [=](int64_t, V s) __attribute__((always_inline)) { return s * inv; });
        } else {
          collect_row<MAX>(g, way, same, dy + from, index + from, h, to);
        }
      });
    }
    if (way == kPast) write_fence();
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
