// What softmax and cross-entropy share: sweeps over a row, and rows as lanes.
//
// A row of up to 4096 elements stays in the first level of cache over its sweeps: maximum; exp and
// sum, while the next row is fetched; scaling. A longer row takes two: maximum and sum together,
// block by block, the sum scaled whenever the maximum grows; then exp once more in place of keeping
// it, because results go past the caches. Rows of at most 32 elements go through the lanes, a row a
// lane. Sums over a row run in 16 logical lanes and blocks of 1024.
#pragma once
#include "simd/transpose.h"
#include "simd/vmath.h"
#include "softmax.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kTask = 16384;  // elements of one task
constexpr int64_t kBlock = 1024;  // elements that one level of a sum takes
constexpr int64_t kNarrow = 32;   // longest row that is worked on as one lane

// exp(x) for x <= 0 (and NaN), within 1.5 units
GS_INLINE vf exp_below(vf x) {
  x = max(set1(-104.0f), x);
#if defined(__AVX512F__)
  // x = n ln 2 / 16 + r: 2^(n/16) from a table, a cubic for the rest; 11 operations, not 14. The
  // square's factor, 1/2 + 0.83 (ln 2 / 32)^2 / 24, levels what the fourth power leaves: 2e-9
  alignas(64) static const float table[16] = {1.0f,        1.04427378f, 1.09050773f, 1.13878863f,
                                              1.18920712f, 1.24185781f, 1.29683955f, 1.35425555f,
                                              1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
                                              1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
  const vf magic = set1(786432.0f);  // 1.5 * 2^19: adding it rounds to sixteenths
  vf t = fma(x, set1(1.44269504f), magic), n = t - magic;
  vf r = fnma(n, set1(0.693359375f), x);
  r = fnma(n, set1(-2.12194440e-4f), r);
  vf e = (vf)_mm512_permutexvar_ps((__m512i)t, _mm512_load_ps(table));
  vf p = fma(r * r, fma(set1(0.16666667f), r, set1(0.50001618f)), r);
  return (vf)_mm512_scalef_ps((__m512)fma(e, p, e), (__m512)n);  // 2^floor(n)
#else
  vi n;
  vf nf, p = exp_reduced(x, &n, &nf);
  return scale2(1.0f + p, n, nf);
#endif
}
GS_INLINE vd exp_below(vd x) { return exp(x); }

// total() by shuffles, to the same bits: through memory it waits for the stores.
template <class T>
GS_INLINE T total_of(const Sum16<T>& s) {
  constexpr int W = Sum16<T>::W;
  typename simd<T>::V a[W];
#pragma GCC unroll 8
  for (int i = 0; i < W; ++i) a[i] = s.v[i];
#pragma GCC unroll 4
  for (int h = W / 2; h > 0; h /= 2)
#pragma GCC unroll 4
    for (int i = 0; i < h; ++i) a[i] += a[i + h];
  return hsum(a[0]);
}

GS_INLINE int64_t rows_per_task(int64_t rows, int64_t n) {
  int64_t g = kTask / (n > 0 ? n : 1);
  g = g < 1 ? 1 : g;
  int64_t least = (rows + 4095) / 4096;  // at most 4096 tasks: their partial results stay few
  return g > least ? g : least;
}

template <class T>
GS_INLINE typename simd<T>::I first_lanes(int n) {
  return iota<T>() < set1((typename simd<T>::S)n);
}

// The first n lanes from p, the others `fill`
template <class T>
GS_INLINE typename simd<T>::V load_or(const T* p, int n, T fill) {
  return first_lanes<T>(n) ? load_n(p, n) : set1(fill);
}

template <class T>
GS_INLINE T row_max(const T* x, int64_t n) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const T low = -(T)__builtin_inf();
  V m0 = set1(low), m1 = m0, m2 = m0, m3 = m0;
  int64_t i = 0;
  for (; i + 4 * N <= n; i += 4 * N) {
    m0 = max(m0, load(x + i));
    m1 = max(m1, load(x + i + N));
    m2 = max(m2, load(x + i + 2 * N));
    m3 = max(m3, load(x + i + 3 * N));
  }
  for (; i + N <= n; i += N) m0 = max(m0, load(x + i));
  if (i < n) m1 = max(m1, load_or(x + i, (int)(n - i), low));
  return hmax(max(max(m0, m1), max(m2, m3)));
}

// Sum over i < n of f(i, count): f gives the vector of elements i .. i + count - 1, zero past
// count.
template <class T, class F>
GS_INLINE T row_sum(int64_t n, F f) {
  constexpr int N = simd<T>::N;
  constexpr int W = Sum16<T>::W;
  Sum16<T> total;
  total.clear();
  for (int64_t b = 0; b < n; b += kBlock) {
    int64_t e = b + kBlock < n ? b + kBlock : n, i = b;
    Sum16<T> s;
    s.clear();
    for (; i + 16 <= e; i += 16) {
#pragma GCC unroll 8
      for (int j = 0; j < W; ++j) s.v[j] += f(i + j * N, N);
    }
#pragma GCC unroll 8
    for (int j = 0; j < W; ++j) {
      int64_t left = e - i - j * N;
      if (left > 0) s.v[j] += f(i + j * N, left < N ? (int)left : N);
    }
#pragma GCC unroll 8
    for (int j = 0; j < W; ++j) total.v[j] += s.v[j];
  }
  return total_of(total);
}

// f(i, count) for every vector of a row
template <class T, class F>
GS_INLINE void row_each(int64_t n, F f) {
  constexpr int N = simd<T>::N;
  int64_t i = 0;
  for (; i + N <= n; i += N) f(i, N);
  if (i < n) f(i, (int)(n - i));
}

template <class T>
GS_INLINE typename simd<T>::V get(const T* p, int n) {
  return n == simd<T>::N ? load(p) : load_n(p, n);
}
template <class T>
GS_INLINE void put(T* p, typename simd<T>::V v, int n) {
  if (n == simd<T>::N)
    store(p, v);
  else
    store_n(p, v, n);
}
template <class T>
GS_INLINE typename simd<T>::V keep(typename simd<T>::V v, int n) {
  return n == simd<T>::N ? v : (first_lanes<T>(n) ? v : typename simd<T>::V{});
}

constexpr int64_t kRoom = 4096;  // elements of a block in the first level of cache
template <class T>
GS_INLINE bool past_caches(const Ctx* ctx, int64_t rows, int64_t n, const void* out) {
  return out && rows * n * (int64_t)sizeof(T) >= ctx->stream;
}

// y[i ..] = f(i, count) for every vector of a row; past the caches when `stream`
template <class T, class F>
GS_INLINE void row_to(bool stream, T* y, int64_t n, F f) {
  constexpr int N = simd<T>::N;
  int64_t i = 0;
  if (stream) {
    int64_t k = (int64_t)((0 - (uintptr_t)y) % GS_VBYTES / sizeof(T));
    k = k < n ? k : n;
    if (k) store_n(y, f(0, (int)k), (int)k);
    for (i = k; i + N <= n; i += N) write<true>(y + i, f(i, N));
  } else {
    for (; i + N <= n; i += N) store(y + i, f(i, N));
  }
  if (i < n) store_n(y + i, f(i, (int)(n - i)), (int)(n - i));
}

// How far ahead of the last sweep over a row of n elements the next one is fetched.
template <class T>
GS_INLINE int64_t next_row(int64_t n) {
  int64_t ahead = kAhead / (int64_t)sizeof(T);
  return n > ahead ? n : ahead;
}

// e[i] = exp(x[i] - m), returns their sum; e may be absent. Fetches x + ahead.
template <class T, bool kStore>
GS_INLINE T exp_row(const T* x, T* e, T m, int64_t n, int64_t ahead) {
  return row_sum<T>(
      n, [=](int64_t i, int k) __attribute__((always_inline)) {
        __builtin_prefetch(x + i + ahead);
        auto v = keep<T>(exp_below(get(x + i, k) - m), k);
        if (kStore) put(e + i, v, k);
        return v;
      });
}

template <class T>
GS_INLINE T log_of(T s) {
  return sizeof(T) == 4 ? (T)::logf((float)s) : (T)::log((double)s);
}

// The maximum m of a long row, and the sum of exp(x - m): one sweep.
template <class T>
__attribute__((noinline)) T long_row(const T* x, int64_t n, T* maximum) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N, W = Sum16<T>::W;
  const T low = -(T)__builtin_inf();
  T m = low;
  Sum16<T> total;
  total.clear();
  for (int64_t b = 0; b < n; b += kBlock) {
    int64_t e = b + kBlock < n ? b + kBlock : n, i = b;
    T most = row_max(x + b, e - b);
    if (most > m) {
      V f = exp_below(set1(m - most));  // 0 the first time
      m = most;
#pragma GCC unroll 8
      for (int j = 0; j < W; ++j) total.v[j] *= f;
    }
    const T c = m > low ? m : (T)0;
    Sum16<T> s;
    s.clear();
    for (; i + 16 <= e; i += 16) {
#pragma GCC unroll 8
      for (int j = 0; j < W; ++j) {
        fetch(x + i + j * N);
        s.v[j] += exp_below(load(x + i + j * N) - c);
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < W; ++j) {
      int64_t left = e - i - j * N;
      int k = left < N ? (int)left : N;
      if (left > 0) s.v[j] += keep<T>(exp_below(load_n(x + i + j * N, k) - c), k);
    }
#pragma GCC unroll 8
    for (int j = 0; j < W; ++j) total.v[j] += s.v[j];
  }
  *maximum = m;
  return total_of(total);
}

// ---- narrow rows: N rows at once, a row a lane

#if defined(__AVX512F__) && defined(__AVX512VL__)
// 4 x 4 tiles in the quarters of four vectors, transposed
GS_INLINE void transpose_quarters(vf* v) {
  __m512 a = _mm512_unpacklo_ps((__m512)v[0], (__m512)v[1]),
         b = _mm512_unpackhi_ps((__m512)v[0], (__m512)v[1]),
         c = _mm512_unpacklo_ps((__m512)v[2], (__m512)v[3]),
         d = _mm512_unpackhi_ps((__m512)v[2], (__m512)v[3]);
  v[0] = (vf)_mm512_shuffle_ps(a, c, 0x44);
  v[1] = (vf)_mm512_shuffle_ps(a, c, 0xee);
  v[2] = (vf)_mm512_shuffle_ps(b, d, 0x44);
  v[3] = (vf)_mm512_shuffle_ps(b, d, 0xee);
}
#endif

// out[c] = element c of rows 0 .. N - 1 of x (count, n); lanes past count repeat the last row.
// out has room for n rounded up to a multiple of N.
template <class T>
GS_INLINE void load_rows(const T* x, int64_t n, int count, typename simd<T>::V* out) {
  constexpr int N = simd<T>::N;
#if defined(__AVX512F__) && defined(__AVX512VL__)
  if constexpr (sizeof(T) == 4) {
    if (count == N) {
      // four columns of rows r, r + 4, r + 8, r + 12 a vector: most of the way by loads
      const float *p0 = x, *p1 = x + 4 * n, *p2 = x + 8 * n, *p3 = x + 12 * n;
      int64_t left = n;
      for (; left >= 4; left -= 4, out += 4) {
        asm("" : "+r"(p0), "+r"(p1), "+r"(p2), "+r"(p3));  // else GCC keeps sixteen pointers
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p0 + r * n));
          v = _mm512_insertf32x4(v, _mm_loadu_ps(p1 + r * n), 1);
          v = _mm512_insertf32x4(v, _mm_loadu_ps(p2 + r * n), 2);
          out[r] = (vf)_mm512_insertf32x4(v, _mm_loadu_ps(p3 + r * n), 3);
        }
        transpose_quarters(out);
        p0 += 4, p1 += 4, p2 += 4, p3 += 4;
      }
      if (left > 0) {
        const __mmask8 mask = (__mmask8)((1u << left) - 1);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          __m512 v = _mm512_castps128_ps512(_mm_maskz_loadu_ps(mask, p0 + r * n));
          v = _mm512_insertf32x4(v, _mm_maskz_loadu_ps(mask, p1 + r * n), 1);
          v = _mm512_insertf32x4(v, _mm_maskz_loadu_ps(mask, p2 + r * n), 2);
          out[r] = (vf)_mm512_insertf32x4(v, _mm_maskz_loadu_ps(mask, p3 + r * n), 3);
        }
        transpose_quarters(out);
      }
      return;
    }
  }
#endif
  for (int64_t c = 0; c < n; c += N) {
    typename simd<T>::V v[N];
    int k = n - c < N ? (int)(n - c) : N;
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r) {
      const T* p = x + (r < count ? r : count - 1) * n + c;
      v[r] = k == N ? load(p) : load_n(p, k);
    }
    transpose<T>(v);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) out[c + i] = v[i];
  }
}

// The way back: rows 0 .. count - 1 of y (count, n).
template <class T>
GS_INLINE void store_rows(const typename simd<T>::V* in, int64_t n, int count, T* y) {
  constexpr int N = simd<T>::N;
#if defined(__AVX512F__) && defined(__AVX512VL__)
  if constexpr (sizeof(T) == 4) {
    if (count == N) {
      float *p0 = y, *p1 = y + 4 * n, *p2 = y + 8 * n, *p3 = y + 12 * n;
      int64_t left = n;
      for (; left >= 4; left -= 4, in += 4) {
        asm("" : "+r"(p0), "+r"(p1), "+r"(p2), "+r"(p3));
        vf v[4] = {in[0], in[1], in[2], in[3]};
        transpose_quarters(v);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          _mm_storeu_ps(p0 + r * n, _mm512_castps512_ps128((__m512)v[r]));
          _mm_storeu_ps(p1 + r * n, _mm512_extractf32x4_ps((__m512)v[r], 1));
          _mm_storeu_ps(p2 + r * n, _mm512_extractf32x4_ps((__m512)v[r], 2));
          _mm_storeu_ps(p3 + r * n, _mm512_extractf32x4_ps((__m512)v[r], 3));
        }
        p0 += 4, p1 += 4, p2 += 4, p3 += 4;
      }
      if (left > 0) {
        const __mmask8 mask = (__mmask8)((1u << left) - 1);
        vf v[4] = {in[0], in[1], in[2], in[3]};
        transpose_quarters(v);
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          _mm_mask_storeu_ps(p0 + r * n, mask, _mm512_castps512_ps128((__m512)v[r]));
          _mm_mask_storeu_ps(p1 + r * n, mask, _mm512_extractf32x4_ps((__m512)v[r], 1));
          _mm_mask_storeu_ps(p2 + r * n, mask, _mm512_extractf32x4_ps((__m512)v[r], 2));
          _mm_mask_storeu_ps(p3 + r * n, mask, _mm512_extractf32x4_ps((__m512)v[r], 3));
        }
      }
      return;
    }
  }
#endif
  for (int64_t c = 0; c < n; c += N) {
    typename simd<T>::V v[N];
    int k = n - c < N ? (int)(n - c) : N;
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = in[c + i];
    transpose<T>(v);
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r)
      if (r < count) {
        if (k == N)
          store(y + r * n + c, v[r]);
        else
          store_n(y + r * n + c, v[r], k);
      }
  }
}

// Rows 0 .. count - 1 of narrow rows, N at a time, by f(first, count, result), whose results go to
// y: when `stream`, by way of a block in the first level of cache, because a row's stores are
// narrower than a line.
template <class T, class F>
GS_INLINE void narrow_rows(int64_t count, int64_t n, T* y, bool stream, F f) {
  constexpr int N = simd<T>::N;
  alignas(64) T room[kRoom];
  const int64_t chunk = stream ? kRoom / n / N * N : count;
  for (int64_t r = 0; r < count; r += chunk) {
    const int64_t e = r + chunk < count ? r + chunk : count;
    T* to = stream ? room : y ? y + r * n : y;
    for (int64_t i = r; i < e; i += N)
      f(i, (int)(e - i < N ? e - i : N), to ? to + (i - r) * n : to);
    if (stream) {
      const T* from = room;
      row_to(
          true, y + r * n, (e - r) * n, [=](int64_t i, int k) __attribute__((always_inline)) {
            return get(from + i, k);
          });
    }
  }
}

// z[c] -= max over c; e[c] = exp(z[c]); returns the sum of e
template <class T>
GS_INLINE typename simd<T>::V exp_lanes(typename simd<T>::V* z, typename simd<T>::V* e, int64_t n) {
  using V = typename simd<T>::V;
  V m = z[0], s = {};
  for (int64_t c = 1; c < n; ++c) m = max(m, z[c]);
  for (int64_t c = 0; c < n; ++c) {
    z[c] -= m;
    e[c] = exp_below(z[c]);
    s += e[c];
  }
  return s;
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
