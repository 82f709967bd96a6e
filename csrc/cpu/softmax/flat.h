// Short rows of float32, N = 8 or 16 rows at a time, as the flat array they are.
//
// n vectors hold N rows of n elements. What is taken a row (maximum, sum) comes from loads at the
// rows' starts, one vector of partial results a row, and N of them are folded into one vector whose
// lane r belongs to row r. What is done an element runs over the flat vectors, aligned and full
// whatever n is; lane l of vector j belongs to row (j N + l) / n, so one permutation spreads a
// row's number over its elements. A batch of such groups stays in the first level of cache: maxima
// of this batch, exp of this batch while the results of the one before are written and the next one
// is fetched, sums of this batch. A vector takes 13 to 17 operations (exp 11) and a fold, 3 N
// operations of n vectors, twice.
#pragma once
#include "softmax/row.h"

#if defined(__AVX2__)
#define GS_FLAT 1

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kBatch = 2048;           // elements of a batch, if one group is not more
constexpr int kN = simd<float>::N;         // rows of a group
constexpr int kGroups = (int)kBatch / kN;  // groups of a batch at most

struct Spread {
  alignas(64) int32_t index[kFlat * kN];  // the row that lane l of vector j belongs to
  explicit GS_MEMBER Spread(int64_t n) {
    const float each = 1 / (float)n;
    const vf at = __builtin_convertvector(iota<float>(), vf) + 0.5f;
    for (int64_t j = 0; j < n; ++j) {
      const vi row = __builtin_convertvector((at + (float)(j * kN)) * each, vi);
      __builtin_memcpy(index + j * kN, &row, sizeof row);
    }
  }
  // v[row] in every lane of vector j
  GS_MEMBER vf of(vf v, int64_t j) const {
#if defined(__AVX512F__)
    return (vf)_mm512_permutexvar_ps(_mm512_load_si512(index + j * kN), (__m512)v);
#else
    return (vf)_mm256_permutevar8x32_ps((__m256)v,
                                        _mm256_load_si256((const __m256i*)(index + j * kN)));
#endif
  }
};

// log(s), s >= 1 and finite, or NaN
GS_INLINE vf log_of_sum(vf s) {
#if defined(__AVX512F__)
  return log(s);
#else
  vi e = (vi)((vu)s - 0x3f3504f3u) >> 23;
  vf m = (vf)((vu)s - ((vu)e << 23));
  return fma(s, vf{}, log_reduced(m - 1.0f, __builtin_convertvector(e, vf)));
#endif
}

struct Plus {
  static GS_MEMBER vf of(vf a, vf b) { return a + b; }
};
struct Most {
  static GS_MEMBER vf of(vf a, vf b) { return max(a, b); }
};
// Lane r of the result: the lanes of a[r] folded.
template <class F>
GS_INLINE vf fold_rows(vf* a) {
#if defined(__AVX512F__)
#define GS_LO(x, y) (vf) _mm512_unpacklo_ps((__m512)x, (__m512)y)
#define GS_HI(x, y) (vf) _mm512_unpackhi_ps((__m512)x, (__m512)y)
#define GS_SHUFFLE(x, y, k) (vf) _mm512_shuffle_ps((__m512)x, (__m512)y, k)
#else
#define GS_LO(x, y) (vf) _mm256_unpacklo_ps((__m256)x, (__m256)y)
#define GS_HI(x, y) (vf) _mm256_unpackhi_ps((__m256)x, (__m256)y)
#define GS_SHUFFLE(x, y, k) (vf) _mm256_shuffle_ps((__m256)x, (__m256)y, k)
#endif
#pragma GCC unroll 8
  for (int i = 0; i < kN / 2; ++i)
    a[i] = F::of(GS_LO(a[2 * i], a[2 * i + 1]), GS_HI(a[2 * i], a[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < kN / 4; ++i)
    a[i] =
        F::of(GS_SHUFFLE(a[2 * i], a[2 * i + 1], 0x44), GS_SHUFFLE(a[2 * i], a[2 * i + 1], 0xee));
#undef GS_LO
#undef GS_HI
#undef GS_SHUFFLE
#if defined(__AVX512F__)
#pragma GCC unroll 2
  for (int h = 2; h > 0; h /= 2)
#pragma GCC unroll 2
    for (int i = 0; i < h; ++i) {
      __m512 b = (__m512)a[2 * i], c = (__m512)a[2 * i + 1];
      a[i] = F::of((vf)_mm512_shuffle_f32x4(b, c, 0x88), (vf)_mm512_shuffle_f32x4(b, c, 0xdd));
    }
  return a[0];
#else
  __m256 b = (__m256)a[0], c = (__m256)a[1];
  return F::of((vf)_mm256_permute2f128_ps(b, c, 0x20), (vf)_mm256_permute2f128_ps(b, c, 0x31));
#endif
}

// Lane r: f(r, i, count) folded over the vectors, at i, of row r; lanes past count are neutral.
template <class F, class G>
GS_INLINE vf rows_of(int64_t n, G f) {
  vf a[kN];
  const int64_t full = n / kN * kN;
  const int rest = (int)(n - full);
  if (full == 0) {
#pragma GCC unroll 16
    for (int r = 0; r < kN; ++r) a[r] = f(r, 0, rest);
  } else if (full == 4 * kN && rest == 0) {
    for (int r = 0; r < kN; ++r)
      a[r] = F::of(F::of(f(r, 0, kN), f(r, kN, kN)), F::of(f(r, 2 * kN, kN), f(r, 3 * kN, kN)));
  } else {
    for (int r = 0; r < kN; ++r) {
      vf s = f(r, 0, kN);
      for (int64_t i = kN; i < full; i += kN) s = F::of(s, f(r, i, kN));
      if (rest) s = F::of(s, f(r, full, rest));
      a[r] = s;
    }
  }
  return fold_rows<F>(a);
}
GS_INLINE vf rows_max(const float* x, int64_t n) {
  return rows_of<Most>(
      n, [=](int r, int64_t i, int k) __attribute__((always_inline)) {
        const float* p = x + r * n + i;
#if defined(__AVX512F__)
        if (k < kN)
          return (vf)_mm512_mask_loadu_ps((__m512)set1(-__builtin_inff()),
                                          (__mmask16)((1u << k) - 1), p);
#endif
        return k == kN ? load(p) : load_or(p, k, -__builtin_inff());
      });
}
GS_INLINE vf rows_sum(const float* x, int64_t n) {
  return rows_of<Plus>(
      n, [=](int r, int64_t i, int k)
             __attribute__((always_inline)) { return get(x + r * n + i, k); });
}

// e = exp(x - m) for the vectors of `groups` groups, whose rows have the maxima m; x + ahead is
// fetched; and put(i, late(g, j)), i = g n + j in elements, for those of `before` groups. Four
// vectors at a time, loads first: the compiler interleaves their arithmetic.
template <int kCount, bool kLate, class L, class P>
GS_INLINE void exp_some(const float* x, float* e, vf m, int64_t g, int64_t j, int64_t at,
                        int64_t ahead, const Spread& spread, L late, P put) {
  vf v[kCount], w[kCount];
#pragma GCC unroll 4
  for (int k = 0; k < kCount; ++k) {
    __builtin_prefetch(x + at + ahead + k * kN);
    v[k] = load(x + at + k * kN) - spread.of(m, j + k);
    if (kLate) w[k] = late(g, j + k);
  }
#pragma GCC unroll 4
  for (int k = 0; k < kCount; ++k) v[k] = exp_below(v[k]);
#pragma GCC unroll 4
  for (int k = 0; k < kCount; ++k) {
    store(e + at + k * kN, v[k]);
    if (kLate) put(at + k * kN, w[k]);
  }
}
template <bool kLate, class L, class P>
GS_INLINE void exp_group(const float* x, float* e, vf m, int64_t g, int64_t n, int64_t ahead,
                         const Spread& spread, L late, P put) {
  int64_t j = 0, at = g * n * kN;
  for (; j + 4 <= n; j += 4, at += 4 * kN)
    exp_some<4, kLate>(x, e, m, g, j, at, ahead, spread, late, put);
  if (n & 2) exp_some<2, kLate>(x, e, m, g, j, at, ahead, spread, late, put);
  if (n & 1) exp_some<1, kLate>(x, e, m, g, n - 1, (g * n + n - 1) * kN, ahead, spread, late, put);
}
template <bool kLate, class L, class P>
GS_INLINE void exp_batch(const float* x, float* e, const vf* m, int64_t groups, int64_t before,
                         int64_t n, int64_t ahead, const Spread& spread, L late, P put) {
  int64_t g = 0;
  if (kLate)
    for (; g < groups && g < before; ++g)
      exp_group<true>(x, e, m[g], g, n, ahead, spread, late, put);
  for (; g < groups; ++g) exp_group<false>(x, e, m[g], g, n, ahead, spread, late, put);
  if (kLate)
    for (; g < before; ++g)
      for (int64_t j = 0; j < n; ++j) put((g * n + j) * kN, late(g, j));
}

GS_INLINE int64_t batch_groups(int64_t n) {
  const int64_t g = kBatch / (n * kN);
  return g < 1 ? 1 : g;
}

// The rows of x (count, n) in groups, a batch at a time, by work(first row, groups); what is left
// at the end by rest(first row, rows).
template <class F, class R>
GS_INLINE void batches(int64_t count, int64_t n, F work, R rest) {
  const int64_t most = batch_groups(n);
  int64_t r = 0;
  for (int64_t left; (left = (count - r) / kN) > 0;) {
    const int64_t g = left < most ? left : most;
    work(r, g);
    r += g * kN;
  }
  if (r < count) rest(r, count - r);
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
#endif
