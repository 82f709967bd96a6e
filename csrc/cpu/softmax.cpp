// Softmax, log-softmax and softmax cross-entropy, forward and backward.
//
// A row of up to 4096 elements stays in the first level of cache over its sweeps: maximum; exp and
// sum, while the next row is fetched; scaling. A longer row takes two: maximum and sum together,
// block by block, the sum scaled whenever the maximum grows; then exp once more in place of keeping
// it, because results go past the caches. Rows of at most 64 elements stay in registers, those of
// at most 32 go through the lanes, a row a lane.
// Floor: one read and one write an element (three streams backward), and one exp: 6 to 7 cycles a
// vector. Cross-entropy writes the gradient of the logits in the same pass: dlogits = (sum q) p -
// q, where q are the weighted, smoothed targets; so loss and gradient cost one read and one write
// of the logits. Tasks are groups of rows cut by shape; sums over a row run in 16 logical lanes and
// blocks of 1024, sums over rows in order of the groups.
#include "softmax.h"

#include "simd/transpose.h"
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kTask = 16384;  // elements of one task
constexpr int64_t kBlock = 1024;  // elements that one level of a sum takes
constexpr int64_t kNarrow = 32;   // longest row that is worked on as one lane
constexpr int kColumns = 64;      // neighbouring columns that are worked on together

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

// Rows that fit in kShort vectors, in registers.
constexpr int kShort = 4;
template <class T>
struct Short {
  using V = typename simd<T>::V;
  static constexpr int N = simd<T>::N;
  static GS_MEMBER bool fits(int64_t n) { return n <= kShort * N; }
  static GS_MEMBER int part(int64_t n, int j) {
    int64_t k = n - j * N;
    return k < 0 ? 0 : k < N ? (int)k : N;
  }
  // f(j, count) for each vector
  template <class F>
  static GS_MEMBER void each(int64_t n, F f) {
    if (n == kShort * N) {
#pragma GCC unroll 4
      for (int j = 0; j < kShort; ++j) f(j, N);
    } else {
#pragma GCC unroll 4
      for (int j = 0; j < kShort; ++j) f(j, part(n, j));
    }
  }
  static GS_MEMBER T sum(const V (&v)[kShort]) {
    Sum16<T> s;
    s.clear();
#pragma GCC unroll 4
    for (int j = 0; j < kShort; ++j) s.v[j % Sum16<T>::W] += v[j];
    return total_of(s);
  }
};

// y past the caches when `stream` and its rows are aligned
template <class T>
void softmax_short(const T* x, T* y, int64_t rows, int64_t n, bool log, bool stream) {
  using S = Short<T>;
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  for (int64_t r = 0; r < rows; ++r, x += n, y += n) {
    V v[kShort];
    S::each(
        n, [&](int j, int k) __attribute__((always_inline)) {
          fetch(x + j * N);
          v[j] = k == N ? load(x + j * N) : load_or(x + j * N, k, -(T)__builtin_inf());
        });
    T m = hmax(max(max(v[0], v[1]), max(v[2], v[3])));
    V e[kShort];
#pragma GCC unroll 4
    for (int j = 0; j < kShort; ++j) {
      v[j] -= m;
      e[j] = exp_below(v[j]);
    }
    T s = S::sum(e), f = log ? log_of(s) : 1 / s;
    S::each(
        n, [&](int j, int k) __attribute__((always_inline)) {
          V out = log ? v[j] - f : e[j] * f;
          if (k < N)
            store_n(y + j * N, out, k);
          else
            write(stream, y + j * N, out);
        });
  }
}
template <class T>
void softmax_short_backward(const T* dy, const T* y, T* dx, int64_t rows, int64_t n, bool log,
                            bool stream) {
  using S = Short<T>;
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  for (int64_t r = 0; r < rows; ++r, dy += n, y += n, dx += n) {
    V g[kShort], v[kShort], t[kShort];
    S::each(
        n, [&](int j, int k) __attribute__((always_inline)) {
          fetch(dy + j * N);
          fetch(y + j * N);
          g[j] = get(dy + j * N, k);
          v[j] = get(y + j * N, k);
          t[j] = log ? g[j] : g[j] * v[j];
        });
    T s = S::sum(t);
    S::each(
        n, [&](int j, int k) __attribute__((always_inline)) {
          V out = log ? g[j] - exp_below(v[j]) * s : v[j] * (g[j] - s);
          if (k < N)
            store_n(dx + j * N, out, k);
          else
            write(stream, dx + j * N, out);
        });
  }
}

template <class T>
void softmax_row(const T* x, T* y, int64_t n, bool log, bool stream) {
  using V = typename simd<T>::V;
  T m;
  if (n > kRoom) {
    T s = long_row(x, n, &m), f = log ? log_of(s) : 1 / s;
    row_to(
        stream, y, n, [=](int64_t i, int k) __attribute__((always_inline)) {
          V v = get(x + i, k) - m;
          return log ? v - f : exp_below(v) * f;
        });
    return;
  }
  const int64_t ahead = next_row<T>(n);
  m = row_max(x, n);
  if (log) {
    T l = log_of(exp_row<T, false>(x, nullptr, m, n, ahead));
    row_to(
        stream, y, n, [=](int64_t i, int k) __attribute__((always_inline)) {
          return (get(x + i, k) - m) - l;
        });
    return;
  }
  alignas(64) T room[kRoom];
  T* e = stream ? room : y;
  T r = 1 / exp_row<T, true>(x, e, m, n, ahead);
  row_to(
      stream, y,
      n, [=](int64_t i, int k) __attribute__((always_inline)) { return get(e + i, k) * r; });
}

template <class T>
void softmax_row_backward(const T* dy, const T* y, T* dx, int64_t n, bool log, bool stream) {
  using V = typename simd<T>::V;
  const bool once = n > kRoom;  // then the first sweep fetches, else the last one the next row
  const int64_t ahead = next_row<T>(n);
  T s = row_sum<T>(
      n, [=](int64_t i, int k) __attribute__((always_inline)) {
        if (once) {
          fetch(dy + i);
          fetch(y + i);
        }
        V g = get(dy + i, k);
        return log ? g : g * get(y + i, k);
      });
  row_to(
      stream, dx, n, [=](int64_t i, int k) __attribute__((always_inline)) {
        if (!once) {
          __builtin_prefetch(dy + i + ahead);
          __builtin_prefetch(y + i + ahead);
        }
        V g = get(dy + i, k), v = get(y + i, k);
        return log ? g - exp_below(v) * s : v * (g - s);
      });
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

template <class T>
void softmax_narrow(const T* x, T* y, int64_t n, int count, bool log) {
  using V = typename simd<T>::V;
  V z[kNarrow], e[kNarrow];
  for (int64_t c = n; c % simd<T>::N; ++c) z[c] = e[c] = V{};
  load_rows(x, n, count, z);
  V s = exp_lanes<T>(z, e, n);
  if (log) {
    V l = GS_ISA::log(s);
    for (int64_t c = 0; c < n; ++c) z[c] -= l;
    store_rows(z, n, count, y);
  } else {
    V r = 1 / s;
    for (int64_t c = 0; c < n; ++c) e[c] *= r;
    store_rows(e, n, count, y);
  }
}

template <class T>
void softmax_narrow_backward(const T* dy, const T* y, T* dx, int64_t n, int count, bool log) {
  using V = typename simd<T>::V;
  V g[kNarrow], v[kNarrow], s = {};
  for (int64_t c = n; c % simd<T>::N; ++c) g[c] = v[c] = V{};
  load_rows(dy, n, count, g);
  load_rows(y, n, count, v);
  if (log) {
    for (int64_t c = 0; c < n; ++c) s += g[c];
    for (int64_t c = 0; c < n; ++c) g[c] -= exp_below(v[c]) * s;
  } else {
    for (int64_t c = 0; c < n; ++c) s += g[c] * v[c];
    for (int64_t c = 0; c < n; ++c) g[c] = v[c] * (g[c] - s);
  }
  store_rows(g, n, count, dx);
}

// ---- along an axis that is not the last: neighbouring columns together, lane by lane

// Columns j .. j + count - 1 of (n, inner); one vector each of W
template <class T>
struct Columns {
  using V = typename simd<T>::V;
  static constexpr int N = simd<T>::N, W = kColumns / N;
  int64_t n, inner;
  int count;

  GS_MEMBER int lanes(int j) const {
    int k = count - j * N;
    return k < 0 ? 0 : (k < N ? k : N);
  }
  GS_MEMBER V at(const T* p, int64_t i, int j) const {
    const T* q = p + i * inner + j * N;
    return count >= (j + 1) * N ? load(q) : load_n(q, lanes(j));
  }
  GS_MEMBER void set(T* p, int64_t i, int j, V v) const {
    T* q = p + i * inner + j * N;
    if (count >= (j + 1) * N)
      store(q, v);
    else
      store_n(q, v, lanes(j));
  }
  // total[j] = sum over i of f(i, j), in blocks
  template <class F>
  GS_MEMBER void sum(V* total, F f) const {
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j) total[j] = V{};
    for (int64_t b = 0; b < n; b += 64) {
      int64_t e = b + 64 < n ? b + 64 : n;
      V s[W];
#pragma GCC unroll 4
      for (int j = 0; j < W; ++j) s[j] = V{};
      for (int64_t i = b; i < e; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < W; ++j) s[j] += f(i, j);
      }
#pragma GCC unroll 4
      for (int j = 0; j < W; ++j) total[j] += s[j];
    }
  }
};

template <class T>
void softmax_columns(const T* x, T* y, const Columns<T>& c, bool log) {
  using V = typename simd<T>::V;
  constexpr int W = Columns<T>::W;
  V m[W], s[W];
#pragma GCC unroll 4
  for (int j = 0; j < W; ++j) m[j] = set1(-(T)__builtin_inf());
  for (int64_t i = 0; i < c.n; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j) m[j] = max(m[j], c.at(x, i, j));
  }
  c.sum(
      s, [&](int64_t i, int j) __attribute__((always_inline)) {
        V e = exp_below(c.at(x, i, j) - m[j]);
        if (!log) c.set(y, i, j, e);
        return e;
      });
#pragma GCC unroll 4
  for (int j = 0; j < W; ++j) s[j] = log ? GS_ISA::log(s[j]) : 1 / s[j];
  for (int64_t i = 0; i < c.n; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j)
      c.set(y, i, j, log ? (c.at(x, i, j) - m[j]) - s[j] : c.at(y, i, j) * s[j]);
  }
}

template <class T>
void softmax_columns_backward(const T* dy, const T* y, T* dx, const Columns<T>& c, bool log) {
  using V = typename simd<T>::V;
  constexpr int W = Columns<T>::W;
  V s[W];
  c.sum(
      s, [&](int64_t i, int j) __attribute__((always_inline)) {
        V g = c.at(dy, i, j);
        return log ? g : g * c.at(y, i, j);
      });
  for (int64_t i = 0; i < c.n; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j) {
      V g = c.at(dy, i, j), v = c.at(y, i, j);
      c.set(dx, i, j, log ? g - exp_below(v) * s[j] : v * (g - s[j]));
    }
  }
}

// rows(first, count) for inner == 1; columns(outer index, first column, count) otherwise
template <class R, class C>
GS_INLINE void softmax_tasks(const SoftmaxParams& p, const Ctx* ctx, R rows, C columns) {
  if (p.inner == 1) {
    int64_t group = rows_per_task(p.outer, p.n), tasks = (p.outer + group - 1) / group;
    for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
      int64_t e = (t + 1) * group < p.outer ? (t + 1) * group : p.outer;
      rows(t * group, e - t * group);
    }
    return;
  }
  int64_t per = (p.inner + kColumns - 1) / kColumns, tasks = p.outer * per;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t o = t / per, j = t % per * kColumns;
    columns(o, j, (int)(p.inner - j < kColumns ? p.inner - j : kColumns));
  }
}

template <class T>
GS_INLINE bool aligned_rows(const T* y, int64_t n) {
  return (((uintptr_t)y | (uintptr_t)(n * (int64_t)sizeof(T))) & (GS_VBYTES - 1)) == 0;
}

template <class T>
void softmax(const void* params, void* const* buf, const Ctx* ctx) {
  const SoftmaxParams& p = *(const SoftmaxParams*)params;
  const T* x = (const T*)buf[0];
  T* y = (T*)buf[1];
  const int64_t n = p.n;
  const bool log = p.log, stream = p.inner == 1 && past_caches<T>(ctx, p.outer, n, y);
  softmax_tasks(
      p, ctx,
      [&](int64_t r, int64_t count) {
        const T* from = x + r * n;
        T* to = y + r * n;
        if (n <= kNarrow)
          narrow_rows(
              count, n, to, stream, [=](int64_t i, int k, T* out) __attribute__((always_inline)) {
                softmax_narrow(from + i * n, out, n, k, log);
              });
        else if (Short<T>::fits(n))
          softmax_short(from, to, count, n, log, stream && aligned_rows(to, n));
        else
          for (int64_t i = 0; i < count; ++i) softmax_row(from + i * n, to + i * n, n, log, stream);
      },
      [&](int64_t o, int64_t j, int k) {
        int64_t at = o * p.n * p.inner + j;
        softmax_columns(x + at, y + at, Columns<T>{p.n, p.inner, k}, p.log);
      });
  if (stream) write_fence();
}

template <class T>
void softmax_backward(const void* params, void* const* buf, const Ctx* ctx) {
  const SoftmaxParams& p = *(const SoftmaxParams*)params;
  const T *dy = (const T*)buf[0], *y = (const T*)buf[1];
  T* dx = (T*)buf[2];
  const int64_t n = p.n;
  const bool log = p.log, stream = p.inner == 1 && past_caches<T>(ctx, p.outer, n, dx);
  softmax_tasks(
      p, ctx,
      [&](int64_t r, int64_t count) {
        const T *g = dy + r * n, *v = y + r * n;
        T* to = dx + r * n;
        if (n <= kNarrow)
          narrow_rows(
              count, n, to, stream, [=](int64_t i, int k, T* out) __attribute__((always_inline)) {
                softmax_narrow_backward(g + i * n, v + i * n, out, n, k, log);
              });
        else if (Short<T>::fits(n))
          softmax_short_backward(g, v, to, count, n, log, stream && aligned_rows(to, n));
        else
          for (int64_t i = 0; i < count; ++i)
            softmax_row_backward(g + i * n, v + i * n, to + i * n, n, log, stream);
      },
      [&](int64_t o, int64_t j, int k) {
        int64_t at = o * p.n * p.inner + j;
        softmax_columns_backward(dy + at, y + at, dx + at, Columns<T>{p.n, p.inner, k}, p.log);
      });
  if (stream) write_fence();
}

template <class T>
void softmax_plan(const void* params, Plan* plan) {
  const SoftmaxParams& p = *(const SoftmaxParams*)params;
  int64_t group = rows_per_task(p.outer, p.n);
  plan->tasks = p.inner == 1 ? (p.outer + group - 1) / group
                             : p.outer * ((p.inner + kColumns - 1) / kColumns);
  plan->work = p.outer * p.n * p.inner * (sizeof(T) == 8 ? 8 : 1) / 2 + p.outer * 20;
}

// ---- cross-entropy

struct Target {
  const void* p;
  DType dtype;
  GS_MEMBER int64_t at(int64_t r) const {
    return dtype == kI32 ? (int64_t)((const int32_t*)p)[r] : ((const int64_t*)p)[r];
  }
};

template <class T>
struct Loss {
  const CrossEntropyParams& p;
  const T* weight;
  T smooth;       // label smoothing / classes
  T keep_target;  // 1 - label smoothing
  T weights;      // sum of the class weights
  T scale;        // of dlogits: 1, or 1 / denominator of the mean

  // Row with class t: returns the loss; d (classes) when wanted
  GS_MEMBER T by_index(const T* x, int64_t t, T* d, bool stream) const {
    using V = typename simd<T>::V;
    int64_t C = p.classes;
    if (t == p.ignore_index || t < 0 || t >= C) {
      const V v = t == p.ignore_index ? V{} : set1((T)__builtin_nan(""));
      if (d)
        row_to(
            false, d, C, [=](int64_t, int) __attribute__((always_inline)) { return v; });
      return v[0];
    }
    alignas(64) T room[kRoom];
    const bool twice = C > kRoom;  // exp twice, not kept
    T m, s, *e = stream ? room : d;
    if (twice) {
      s = long_row(x, C, &m);
    } else {
      m = row_max(x, C);
      s = d ? exp_row<T, true>(x, e, m, C, next_row<T>(C))
            : exp_row<T, false>(x, nullptr, m, C, next_row<T>(C));
    }
    T lse = log_of(s), q = (weight ? weight[t] : (T)1) * keep_target;
    T loss = q * (lse - (x[t] - m));
    // smoothing adds smooth * weight[c] to every q[c]
    const T* w = smooth == 0 ? nullptr : weight;
    T r = q * scale / s, u = 0;
    if (smooth != 0) {
      T dot = row_sum<T>(
          C, [=](int64_t i, int k) __attribute__((always_inline)) {
            auto v = keep<T>(get(x + i, k) - m, k);
            return w ? get(w + i, k) * v : v;
          });
      loss += smooth * (weights * lse - dot);
      r = (q + smooth * weights) * scale / s;
      u = smooth * scale;
    }
    if (!d) return loss;
    // the element of the target's class is written last: its line must not be on its way already
    const T hit =
        (twice ? (T)exp_below(set1(x[t] - m))[0] : e[t]) * r - (w ? u * w[t] : u) - q * scale;
    row_to(
        stream, d, C, [=](int64_t i, int k) __attribute__((always_inline)) {
          V v = (twice ? exp_below(get(x + i, k) - m) : get(e + i, k)) * r;
          v -= w ? u * get(w + i, k) : set1(u);
          if (t - i < k && t >= i)
            v = iota<T>() == set1((typename simd<T>::S)(t - i)) ? set1(hit) : v;
          return v;
        });
    return loss;
  }

  // Rows 0 .. count - 1 of at most kNarrow classes, first being row `first` of the targets; loss
  // (count)
  GS_MEMBER typename simd<T>::V narrow(const T* x, const Target& target, int64_t first, int count,
                                       T* d) const {
    using V = typename simd<T>::V;
    using I = typename simd<T>::I;
    using S = typename simd<T>::S;
    constexpr int N = simd<T>::N;
    constexpr S kIgnored = -1, kWrong = -2;  // beside the classes
    const int64_t C = p.classes;
    V z[kNarrow], e[kNarrow], dot = {};
    for (int64_t c = C; c % N; ++c) z[c] = e[c] = V{};
    load_rows(x, C, count, z);
    V s = exp_lanes<T>(z, e, C), lse = GS_ISA::log(s);
    if (smooth != 0)
      for (int64_t c = 0; c < C; ++c) dot += weight ? weight[c] * z[c] : z[c];
    I cls;
#if defined(__AVX512F__)
    if (sizeof(T) == 4 && count == N && target.dtype == kI64) {
      __m256i half[2];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        __m512i t = _mm512_loadu_si512((const int64_t*)target.p + first + 8 * h);
        __mmask8 in = _mm512_cmplt_epu64_mask(t, _mm512_set1_epi64(C)),
                 skip = _mm512_cmpeq_epi64_mask(t, _mm512_set1_epi64(p.ignore_index));
        t = _mm512_mask_mov_epi64(_mm512_set1_epi64(kWrong), in, t);
        half[h] =
            _mm512_cvtepi64_epi32(_mm512_mask_mov_epi64(t, skip, _mm512_set1_epi64(kIgnored)));
      }
      __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1);
      __builtin_memcpy(&cls, &both, sizeof cls);
    } else
#endif
    {
      S lanes[N];
      for (int r = 0; r < N; ++r) {
        int64_t t = r < count ? target.at(first + r) : p.ignore_index;
        S code = t < 0 || t >= C ? kWrong : (S)t;
        lanes[r] = t == p.ignore_index ? kIgnored : code;
      }
      __builtin_memcpy(&cls, lanes, sizeof cls);
    }
    V at = {}, q = set1((T)1);  // logit less maximum and weight of each row's class
    for (int64_t c = 0; c < C; ++c) {
      I hit = cls == set1((S)c);
      at = hit ? z[c] : at;
      if (weight) q = hit ? set1(weight[c]) : q;
    }
    const I ignored = cls == set1(kIgnored), wrong = cls == set1(kWrong);
    const V nan = set1((T)__builtin_nan(""));
    q *= keep_target;
    V l = q * (lse - at), factor = q;
    if (smooth != 0) {
      l += smooth * (weights * lse - dot);
      factor += smooth * weights;
    }
    l = wrong ? nan : l;
    l = ignored ? V{} : l;
    if (!d) return l;
    factor *= scale;
    q *= scale;
    const V f = (wrong ? nan : factor) / s;
    const T u = smooth * scale;
    for (int64_t c = 0; c < C; ++c) {
      V v = e[c] * f;
      if (smooth != 0) v -= weight ? u * weight[c] : u;
      v -= cls == set1((S)c) ? q : V{};
      e[c] = ignored ? V{} : v;
    }
    store_rows(e, C, count, d);
    return l;
  }

  // Row with probabilities q0 (classes)
  GS_MEMBER T by_probability(const T* x, const T* q0, T* d) const {
    using V = typename simd<T>::V;
    int64_t C = p.classes;
    const T *w = weight, a = keep_target, b = smooth;
    auto q = [=](int64_t i, int k) __attribute__((always_inline)) {
      V v = keep<T>(fma(get(q0 + i, k), set1(a), set1(b)), k);
      return w ? v * get(w + i, k) : v;
    };
    T m = row_max(x, C);
    T s = d ? exp_row<T, true>(x, d, m, C, next_row<T>(C))
            : exp_row<T, false>(x, nullptr, m, C, next_row<T>(C));
    T lse = log_of(s);
    T mass = row_sum<T>(C, q);
    // a class of probability zero adds nothing, even where its logit is -inf
    T dot = row_sum<T>(
        C, [=](int64_t i, int k) __attribute__((always_inline)) {
          V v = q(i, k);
          return v == 0 ? V{} : v * (get(x + i, k) - m - lse);
        });
    if (d) {
      T r = mass * scale / s, u = scale;
      row_each<T>(
          C, [=](int64_t i, int k) __attribute__((always_inline)) {
            put(d + i, get(d + i, k) * r - u * q(i, k), k);
          });
    }
    return -dot;
  }
};

template <class T>
void cross_entropy(const void* params, void* const* buf, const Ctx* ctx) {
  const CrossEntropyParams& p = *(const CrossEntropyParams*)params;
  const T* x = (const T*)buf[0];
  const Target target{buf[1], p.target};
  const T* weight = (const T*)buf[2];
  T *loss = (T*)buf[3], *d = (T*)buf[4];
  double *counts = (double*)ctx->scratch, *losses;
  bool indices = p.target == kI32 || p.target == kI64;
  int64_t C = p.classes, group = rows_per_task(p.rows, C), tasks = (p.rows + group - 1) / group;
  losses = counts + tasks;
  Loss<T> f{p, weight, (T)(p.smoothing / (double)(C ? C : 1)), (T)(1 - p.smoothing), (T)C, (T)1};
  if (weight && p.smoothing != 0)
    f.weights = row_sum<T>(
        C, [=](int64_t i, int k) __attribute__((always_inline)) { return get(weight + i, k); });
  double denominator = 1;
  if (p.reduction == kReduceMean) {
    denominator = (double)p.rows;
    if (indices) {
      for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
        int64_t e = (t + 1) * group < p.rows ? (t + 1) * group : p.rows;
        double n = 0;
        if (weight) {
          for (int64_t r = t * group; r < e; ++r) {
            int64_t c = target.at(r);
            if (c != p.ignore_index) n += c >= 0 && c < C ? (double)weight[c] : 1.0;
          }
        } else {
          int64_t rows = 0;
          if (target.dtype == kI64)
            for (int64_t r = t * group; r < e; ++r)
              rows += ((const int64_t*)target.p)[r] != p.ignore_index;
          else
            for (int64_t r = t * group; r < e; ++r)
              rows += ((const int32_t*)target.p)[r] != p.ignore_index;
          n = (double)rows;
        }
        counts[t] = n;
      }
      ctx->sync();
      denominator = 0;
      for (int64_t t = 0; t < tasks; ++t) denominator += counts[t];
    }
    f.scale = (T)(1 / denominator);
  }
  const bool stream = past_caches<T>(ctx, p.rows, C, d) && indices;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t b = t * group, e = b + group < p.rows ? b + group : p.rows;
    double sum = 0;
    if (indices && C <= kNarrow) {
      constexpr int N = simd<T>::N;
      double lanes[N] = {};
      narrow_rows(
          e - b, C, d ? d + b * C : d,
          stream, [&](int64_t i, int count, T* out) __attribute__((always_inline)) {
            T l[N];
            store(l, f.narrow(x + (b + i) * C, target, b + i, count, out));
#pragma GCC unroll 16
            for (int j = 0; j < N; ++j) lanes[j] += (double)l[j];
            if (p.reduction == kReduceNone)
              for (int j = 0; j < count; ++j) loss[b + i + j] = l[j];
          });
      for (int j = 0; j < N; ++j) sum += lanes[j];
      losses[t] = sum;
      continue;
    }
    for (int64_t r = b; r < e; ++r) {
      T* dr = d ? d + r * C : nullptr;
      T l = indices ? f.by_index(x + r * C, target.at(r), dr, stream)
                    : f.by_probability(x + r * C, (const T*)target.p + r * C, dr);
      if (p.reduction == kReduceNone) loss[r] = l;
      sum += (double)l;
    }
    losses[t] = sum;
  }
  if (stream) write_fence();
  if (p.reduction == kReduceNone) return;
  ctx->sync();
  if (ctx->tid == 0) {
    double sum = 0;
    for (int64_t t = 0; t < tasks; ++t) sum += losses[t];
    loss[0] = (T)(sum / denominator);
  }
}

template <class T>
void cross_entropy_plan(const void* params, Plan* plan) {
  const CrossEntropyParams& p = *(const CrossEntropyParams*)params;
  int64_t group = rows_per_task(p.rows, p.classes);
  plan->tasks = (p.rows + group - 1) / group;
  plan->work = p.rows * p.classes * (sizeof(T) == 8 ? 8 : 1) / 2 + p.rows * 30;
  plan->scratch = (size_t)(2 * plan->tasks + 1) * sizeof(double);
}

template <class T>
void scale_rows(const void* params, void* const* buf, const Ctx* ctx) {
  const ScaleRowsParams& p = *(const ScaleRowsParams*)params;
  const T *x = (const T*)buf[0], *g = (const T*)buf[1];
  T* out = (T*)buf[2];
  int64_t group = rows_per_task(p.rows, p.n), tasks = (p.rows + group - 1) / group;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t e = (t + 1) * group < p.rows ? (t + 1) * group : p.rows;
    for (int64_t r = t * group; r < e; ++r) {
      T f = g[p.one ? 0 : r];
      const T* xr = x + r * p.n;
      T* o = out + r * p.n;
      row_each<T>(
          p.n, [=](int64_t i, int k)
                   __attribute__((always_inline)) { put(o + i, get(xr + i, k) * f, k); });
    }
  }
}

template <class T>
void scale_rows_plan(const void* params, Plan* plan) {
  const ScaleRowsParams& p = *(const ScaleRowsParams*)params;
  int64_t group = rows_per_task(p.rows, p.n);
  plan->tasks = (p.rows + group - 1) / group;
  plan->work = p.rows * p.n / 8 * (int64_t)sizeof(T) / 4;
}

#define GS_BOTH(name, f, plan) \
  {name, kF32, f<float>, plan<float>}, { name, kF64, f<double>, plan<double> }
const KernelEntry entries[] = {
    GS_BOTH("softmax", softmax, softmax_plan),
    GS_BOTH("softmax_backward", softmax_backward, softmax_plan),
    GS_BOTH("cross_entropy", cross_entropy, cross_entropy_plan),
    GS_BOTH("scale_rows", scale_rows, scale_rows_plan),
};

}  // namespace

extern const KernelList softmax_kernels;
const KernelList softmax_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
