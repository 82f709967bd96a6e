// What pooling does in both directions: where windows lie, how vectors are read and written, sums
// over neighbouring columns, and few channels as blocks of pixels.
#pragma once
#include <string.h>

#include <type_traits>

#include "pool.h"
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
      int64_t b, f = 0, l;
      if (adaptive) {
        b = o * in / out;
        l = ((o + 1) * in + out - 1) / out - b;
        x->size[o] = (int32_t)l;
      } else {
        b = o * s - p;
        l = k;
        if (b < 0) f = (-b + d - 1) / d;
        if (b + (k - 1) * d >= in) l = in > b ? (in - b + d - 1) / d : 0;
        if (l > k) l = k;
        if (l < f) l = f;
        int64_t e = b + k < in + p ? b + k : in + p;
        x->size[o] = (int32_t)(e - b);
      }
      x->start[o] = (int32_t)b;
      x->first[o] = (int32_t)f;
      x->last[o] = (int32_t)l;
    }
    int64_t lo = 0, hi = 0;
    for (int64_t i = 0; i < in; ++i) {
      while (hi < out && x->start[hi] <= i) ++hi;
      while (lo < out && x->start[lo] + (adaptive ? x->size[lo] - 1 : (k - 1) * d) < i) ++lo;
      x->lo[i] = (int32_t)lo;
      x->hi[i] = (int32_t)(hi < lo ? lo : hi);
    }
  }
  return x->hi + in;
}

struct Geometry {
  PoolParams p;
  Axis y, x;
  char* room;  // behind the tables: what a kernel's plan asks for

  GS_MEMBER void init(const PoolParams& params, char* scratch, bool fill) {
    p = params;
    int32_t* at =
        axis_init(&y, (int32_t*)scratch, p.h, p.oh, p.kh, p.sh, p.ph, p.dh, p.adaptive, fill);
    axis_init(&x, at, p.w, p.ow, p.kw, p.sw, p.pw, p.dw, p.adaptive, fill);
    room = scratch + tables(p);
  }
  static constexpr int64_t kFew = 8;
  static GS_MEMBER size_t tables(const PoolParams& p) {
    return ((size_t)(4 * p.oh + 2 * p.h + 4 * p.ow + 2 * p.w) * 4 + 63) / 64 * 64;
  }
};

// How results are written when `bytes` pass through the caches: past them where rows are aligned,
// else as stores whose lines are asked for ahead. Near: all arrays stay in a last cache of few
// cores. There rows of dx are written one after another by plain stores, since those follow one
// stream at 75 bytes a nanosecond and two at 45, and past the caches go 42 (Zen 5, 8 MB).
enum Way { kPlain, kOwn, kPast, kNear };
GS_INLINE Way way_of(const Ctx* ctx, int64_t bytes, const void* p, int64_t step,
                     bool near = false) {
  if (near) return kNear;
  if (bytes < ctx->stream) return kPlain;
  return streams(ctx, bytes, p, step) ? kPast : kOwn;
}
// How far ahead: nearer is slower where stores are most of the traffic, farther where rows are odd.
constexpr int64_t kOwnAhead = 4096;
// Rows a task takes, of `rows` rows of `bytes` bytes.
GS_INLINE int64_t rows_per_task(int64_t rows, int64_t bytes) {
  int64_t r = bytes > 0 ? 65536 / bytes : rows;
  if (r < 1) r = 1;
  if (r * 8 > rows) r = rows / 8 ? rows / 8 : 1;
  return r;
}

// FULL: a whole vector, otherwise the first n lanes.
template <bool FULL, class T>
GS_INLINE typename simd<T>::V get(const T* p, int n) {
  if (FULL) return load(p);
  return load_n(p, n);
}
template <bool FULL, class T>
GS_INLINE void put(T* p, typename simd<T>::V v, int n) {
  if (FULL)
    store(p, v);
  else
    store_n(p, v, n);
}
template <bool FULL, class T>
GS_INLINE void put(Way way, T* p, typename simd<T>::V v, int n) {
  if (FULL && way == kPast) return write<true>(p, v);
  if (way == kOwn) own(p, kOwnAhead);
  if (FULL)
    store(p, v);
  else
    store_n(p, v, n);
}

// A load by itself: one that GCC makes part of a masked instruction waits for the mask, and several
// uses may load again.
template <class T>
GS_INLINE typename simd<T>::V load_once(const T* p) {
  typename simd<T>::V v = load(p);
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#endif
  return v;
}

template <class T, bool FULL>
GS_INLINE typename simd<T>::I get_index(const uint8_t* p, int n) {
  return load_taps<T, FULL>(p, n);
}
template <class T, bool FULL>
GS_INLINE typename simd<T>::I get_index(const int32_t* p, int n) {
  typedef int32_t Ints __attribute__((vector_size(simd<T>::N * 4)));
  Ints b = {};
  memcpy(&b, p, (FULL ? simd<T>::N : n) * 4);
  return __builtin_convertvector(b, typename simd<T>::I);
}
template <class T, bool FULL>
GS_INLINE void put_index(uint8_t* p, typename simd<T>::I v, int n) {
  store_taps<T, FULL>(p, v, n);
}
template <class T, bool FULL>
GS_INLINE void put_index(int32_t* p, typename simd<T>::I v, int n) {
  typedef int32_t Ints __attribute__((vector_size(simd<T>::N * 4)));
  Ints b = __builtin_convertvector(v, Ints);
  memcpy(p, &b, (FULL ? simd<T>::N : n) * 4);
}

template <class T>
struct Lanes {
  using V = typename simd<T>::V;
  using I = typename simd<T>::I;
  using S = typename simd<T>::S;
  static constexpr int N = simd<T>::N;
  static constexpr int64_t kFew = N / 2 < Geometry::kFew ? N / 2 : Geometry::kFew;

  // Whether there is code for large windows and few channels that is faster than what any type and
  // instruction set has: it would make the library larger for doubles.
  static constexpr bool kFast = sizeof(T) == 4 && GS_VBYTES >= 32;

  // Places of maxima: bytes where a vector instruction takes those by mask.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  static constexpr bool kBytes = sizeof(T) == 4;
#else
  static constexpr bool kBytes = false;
#endif
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  using P = typename std::conditional<kBytes, Bytes, I>::type;
  static GS_MEMBER P place(int t) {
    if constexpr (kBytes)
      return P{} + (uint8_t)t;
    else
      return set1((S)t);
  }
  static GS_MEMBER P load_place(const uint8_t* p) {
    if constexpr (kBytes) {
      P v;
      memcpy(&v, p, sizeof v);
      return v;
    } else {
      return get_index<T, true>(p, N);
    }
  }
  static GS_MEMBER void store_place(uint8_t* p, P v) {
    if constexpr (kBytes)
      memcpy(p, &v, sizeof v);
    else
      put_index<T, true>(p, v, N);
  }
  // The lanes of N elements of a row of n from `at` on that lie inside.
  static GS_MEMBER uint32_t lanes_in(int64_t at, int64_t n) {
    const int64_t b = at < 0 ? -at : 0, e = n - at < N ? n - at : N;
    return b < e ? ((1u << e) - 1) & ~((1u << b) - 1) : 0;
  }
  // Those elements, zero where that is outside
  static GS_MEMBER V part(const T* row, int64_t at, uint32_t in) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_maskz_loadu_ps((__mmask16)in, row + at);
    else
      return (V)_mm512_maskz_loadu_pd((__mmask8)in, row + at);
#else
    T v[N] = {};
    for (int l = 0; l < N; ++l)
      if (in >> l & 1) v[l] = row[at + l];
    return load(v);
#endif
  }
  static GS_MEMBER V part(const T* row, int64_t at, int64_t n) {
    return part(row, at, lanes_in(at, n));
  }
  static GS_MEMBER P part(const uint8_t* row, int64_t at, uint32_t in) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (kBytes) return (P)_mm_maskz_loadu_epi8((__mmask16)in, row + at);
#endif
    uint8_t v[N] = {};
    for (int l = 0; l < N; ++l)
      if (in >> l & 1) v[l] = row[at + l];
    return load_place(v);
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
  static GS_MEMBER I pick(I a, I b, I at) { return (I)pick((V)a, (V)b, at); }

  // B vectors, after one look at the way.
  template <int B>
  static GS_MEMBER void put_all(Way way, T* to, const V* v) {
    if (way == kPast) {
#pragma GCC unroll 4
      for (int i = 0; i < B; ++i) write<true>(to + i * N, v[i]);
      return;
    }
    if (way == kOwn)
#pragma GCC unroll 4
      for (int i = 0; i < B; ++i) own(to + i * N, kOwnAhead);
#pragma GCC unroll 4
    for (int i = 0; i < B; ++i) store(to + i * N, v[i]);
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
  // Columns of y whose windows lie inside the row.
  static GS_MEMBER void inside(const Geometry& g, int64_t* begin, int64_t* end) {
    const PoolParams& p = g.p;
    int64_t b = 0, e = p.ow;
    while (b < e && (g.x.first[b] != 0 || g.x.last[b] != p.kw)) ++b;
    while (e > b && (g.x.first[e - 1] != 0 || g.x.last[e - 1] != p.kw)) --e;
    *begin = b;
    *end = p.adaptive ? b : e;
  }
  // Blocks of whole pixels: lane l holds channel l % c of pixel l / c of `pixels`. All taps of a
  // block in a row of x lie in two vectors.
  struct Block {
    int pixels, lanes;
    int64_t begin, end;  // columns of y whose windows lie inside the row, if any block does
    I at;                // of two vectors of x, those of the first tap

    GS_MEMBER void init(const Geometry& g) {
      const PoolParams& p = g.p;
      const int c = (int)p.c;
      const int64_t room = 2 * N - c - (p.kw - 1) * p.dw * c;
      inside(g, &begin, &end);
      pixels = N / c;
      if (room < 0)
        pixels = 0;
      else if (pixels > room / (p.sw * c) + 1)
        pixels = (int)(room / (p.sw * c) + 1);
      lanes = pixels * c;
      if (pixels == 0 || end - begin < pixels) end = begin;
      S a[N];
      for (int l = 0; l < N; ++l) a[l] = (S)(l < lanes ? l / c * p.sw * c + l % c : 0);
      memcpy(&at, a, sizeof at);
    }
  };
  // Runs of neighbouring rows, so that lines asked for ahead are mostly one's own.
  template <class F>
  static GS_MEMBER void each_row(int64_t rows, int64_t bytes, const Ctx* ctx, F f) {
    int64_t per = rows_per_task(rows, bytes), tasks = (rows + per - 1) / per;
    int64_t r = tasks * ctx->tid / ctx->nt * per, end = tasks * (ctx->tid + 1) / ctx->nt * per;
    for (; r < rows && r < end; ++r) f(r);
  }
  // The same, at most `deep` rows of one image of `h` a call: f(first, count).
  template <class F>
  static GS_MEMBER void each_block(int64_t rows, int64_t h, int64_t bytes, int64_t deep,
                                   const Ctx* ctx, F f) {
    int64_t per = rows_per_task(rows, bytes), tasks = (rows + per - 1) / per, n;
    int64_t r = tasks * ctx->tid / ctx->nt * per, end = tasks * (ctx->tid + 1) / ctx->nt * per;
    for (end = end < rows ? end : rows; r < end; r += n) {
      n = h - r % h < end - r ? h - r % h : end - r;
      n = n < deep ? n : deep;
      f(r, n);
    }
  }
  // Vectors side by side that walk down the rows of a block with what they know of two rows in
  // registers, and whether windows are such that this is done; kDeep: rows of a block. Half as many
  // where rows lie whole pages apart: those share the ways of a few sets of the first cache.
  static constexpr int64_t kDeep = 16;
  static constexpr int kStrip = GS_VBYTES == 64 ? 2 : 1;
  static GS_MEMBER bool walks(const PoolParams& p, int64_t begin, int64_t end) {
    return !p.adaptive && p.kh == 3 && p.kw == 3 && p.sh == 1 && p.sw == 1 && p.dh == 1 &&
           p.dw == 1 && p.oh >= kDeep / 2 && (end - begin) * p.c >= kStrip * N;
  }
  // Windows of 3 x 3 at stride 1.
  static GS_MEMBER bool ones(const PoolParams& p) {
    return !p.adaptive && p.index_bytes == 1 && p.kh == 3 && p.kw == 3 && p.sh == 1 && p.sw == 1 &&
           p.dh == 1 && p.dw == 1 && p.ph <= 1 && p.pw <= 1 && p.w > 2 &&
           p.c <= 8192 / (int64_t)sizeof(T);
  }
  static GS_MEMBER bool near(const PoolParams& p, bool max) {
    const int64_t y = p.n * p.oh * p.ow * p.c, x = p.n * p.h * p.w * p.c;
    return 2 * (x + y) * (int64_t)sizeof(T) + (max ? 2 * y * p.index_bytes : 0) <= p.holds;
  }
  // Loops that write past the caches for themselves, where that is worth their size: PAST.
  static GS_MEMBER bool apart(Way way) { return kBytes && way == kPast; }
  template <bool PAST>
  static GS_MEMBER void result(Way way, T* p, V v) {
    if (PAST) return write<true>(p, v);
    if (!kBytes) return put<true>(way, p, v, N);
    if (way == kOwn) own(p, kOwnAhead);
    store(p, v);
  }
  // How far ahead, in elements, the lines of a row that is read from its begin to its end are asked
  // for: 8 KB, where a near last cache has them in time (4 and 16 KB gain less on Zen 5, fetches
  // into the second cache lose); elsewhere 0, which asks for what comes at once and leaves the rest
  // to the hardware.
  static GS_MEMBER int64_t ahead(const PoolParams& p) {
    return p.holds > 0 ? 8192 / (int64_t)sizeof(T) : 0;
  }
  // The same where rows that are near pay for being asked for: 0 for x that the second cache may
  // hold, which is quick enough.
  static GS_MEMBER int64_t ahead_far(const PoolParams& p) {
    return p.n * p.h * p.w * p.c * (int64_t)sizeof(T) > p.holds / 16 ? ahead(p) : 0;
  }
  static GS_MEMBER int64_t bytes_in(const PoolParams& p) {
    return (p.h * p.w * p.c + p.oh - 1) / p.oh * (int64_t)sizeof(T);
  }
};

void plan(const void* params, Plan* out) {
  const PoolParams& p = *(const PoolParams*)params;
  int64_t rows = p.n * (p.oh > p.h ? p.oh : p.h);
  double taps = p.adaptive ? 1.0 + (double)(p.oh * p.ow) / (double)(p.h * p.w)
                           : (double)(p.kh * p.kw * p.oh * p.ow) / (double)(p.h * p.w);
  out->tasks = rows;
  out->work = (int64_t)((double)(p.n * p.h * p.w * p.c) * (0.1 + 0.05 * taps));
  out->scratch = Geometry::tables(p);
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
