// Elementary functions on vectors.
//
// vf (float32): own polynomials (bench/fit_vmath.py derives them). Largest errors, in units in the
// last place of the exact result, with fused multiply-add (without it, the x86 baseline, in
// brackets):
//   exp 1 (1), expm1 1.5 (2), log 1 (1), log1p 1.5 (1.5), tanh 2 (2.5), sigmoid 2.5 (2.5), softplus
//   2 (2), erf 1.5 (1.5), sin and cos 2 (2); measured by tests/test_vmath.py. Right at +-0, +-inf
//   and NaN; denormal arguments and results are exact to the same bounds.
// vd (float64): libm, lane by lane: complete, not tuned.
#pragma once
#include <math.h>

#include "simd/vec.h"
#include "simd/widen.h"

namespace gs {
namespace GS_ISA {

// Whether any lane of a mask is set.
GS_INLINE bool any_lane(vi m) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)m, (__m512i)m) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)m) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_ps((__m128)m) != 0;
#else
  return vmaxvq_u32((uint32x4_t)m) != 0;
#endif
}

// min and max that pass a NaN of x on; bounds are constants.
GS_INLINE vf clamp(vf x, float lo, float hi) { return max(set1(lo), min(set1(hi), x)); }

// 2^n for -126 <= n <= 127
GS_INLINE vf pow2(vi n) { return (vf)((vu)(n + 127) << 23); }

// p * 2^n, rounded once, for |n| <= 250; nf is n as a float
GS_INLINE vf scale2(vf p, vi n, vf nf) {
#if defined(__AVX512F__)
  (void)n;
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)nf);
#else
  (void)nf;
  vi h = n >> 1;
  return (p * pow2(h)) * pow2(n - h);
#endif
}

// x = n ln 2 + r with |r| <= ln 2 / 2; returns exp(r) - 1. The high part of ln 2 has 9 bits, so n
// times it is exact for |n| < 2^15 with or without fma. lo: a small addend to x.
GS_INLINE vf exp_reduced(vf x, vi* n, vf* nf, const vf* lo = nullptr) {
  const vf magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  vf t = fma(x, set1(1.44269504f), magic);
  *nf = t - magic;
  *n = (vi)t - (vi)magic;
  vf r = fnma(*nf, set1(0.693359375f), x);
  r = fnma(*nf, set1(-2.12194440e-4f), r);
  if (lo) r += *lo;
  vf p = fma(set1(0.0013818393f), r, set1(0.008368719f));
  p = fma(p, r, set1(0.041668296f));
  p = fma(p, r, set1(0.16666521f));
  p = fma(p, r, set1(0.49999994f));
  return fma(p, r * r, r);
}

GS_INLINE vf exp(vf x) {
  vi n;
  vf nf, p = exp_reduced(clamp(x, -104.0f, 89.0f), &n, &nf);
  return scale2(1.0f + p, n, nf);
}

// exp(-|x|)
GS_INLINE vf exp_minus_abs(vf x) {
  vi n;
  vf nf, m = (vf)((vi)x | (int32_t)0x80000000);
  vf p = exp_reduced(max(set1(-104.0f), m), &n, &nf);
  return scale2(1.0f + p, n, nf);
}

// exp(hi + lo), lo small against hi: for arguments known to more than one float
GS_INLINE vf exp2parts(vf hi, vf lo) {
  vi n;
  vf nf, p = exp_reduced(clamp(hi, -104.0f, 89.0f), &n, &nf, &lo);
  return scale2(1.0f + p, n, nf);
}

// expm1 for -18 <= x <= 40 and NaN; the sign of zero is lost
GS_INLINE vf expm1_core(vf x) {
  vi n;
  vf nf, q = exp_reduced(x, &n, &nf), s = pow2(n);
  return fma(q, s, s - 1.0f);
}

GS_INLINE vf expm1(vf x) {
  vi n;
  vf nf, q = exp_reduced(clamp(x, -18.0f, 89.0f), &n, &nf);
  vf s = pow2(n - 1);  // half, because 2^128 is not a float
  vf y = fma(q, s, s - 0.5f);
  return copysign(n == 0 ? q : y + y, x);
}

// log(1 + f) for sqrt(1/2) - 1 <= f <= sqrt(2) - 1, plus e ln 2
GS_INLINE vf log_reduced(vf f, vf e) {
  vf p = fma(set1(0.06750956f), f, set1(-0.11671449f));
  p = fma(p, f, set1(0.11883568f));
  p = fma(p, f, set1(-0.12406032f));
  p = fma(p, f, set1(0.14220327f));
  p = fma(p, f, set1(-0.16667996f));
  p = fma(p, f, set1(0.20002073f));
  p = fma(p, f, set1(-0.2500001f));
  p = fma(p, f, set1(0.33333313f));
  vf f2 = f * f, y = fma(e, set1(-2.12194440e-4f), p * (f2 * f));
  return fma(e, set1(0.693359375f), fma(set1(-0.5f), f2, y) + f);
}

GS_INLINE vf log(vf x) {
  vi small = x < 1.17549435e-38f;
  vf s = small ? x * 8388608.0f : x;
  vi e = (vi)((vu)s - 0x3f3504f3u) >> 23;  // may wrap: x < 0 is replaced below
  vf m = (vf)((vu)s - ((vu)e << 23));
  vf y = log_reduced(m - 1.0f, __builtin_convertvector(e + (small & -23), vf));
  y = x > 0.0f ? y : (x == 0.0f ? set1(-__builtin_inff()) : set1(__builtin_nanf("")));
  return x < __builtin_inff() ? y : x;
}

GS_INLINE vf log1p(vf x) {
  vf u = 1.0f + x;
  vf c = x > 1.0f ? 1.0f - (u - x) : x - (u - 1.0f);  // what the addition lost
  vi e = (vi)((vu)u - 0x3f3504f3u) >> 23;
  vf m = (vf)((vu)u - ((vu)e << 23)), w = pow2(e < 126 ? -e : set1(-126));
  vf y = copysign(log_reduced(fma(c, w, m - 1.0f), __builtin_convertvector(e, vf)), x);
  y = x > -1.0f ? y : (x == -1.0f ? set1(-__builtin_inff()) : set1(__builtin_nanf("")));
  return x < __builtin_inff() ? y : x;
}

// log1p for 0 <= x <= 1 (and NaN): no reduction
GS_INLINE vf log1p01(vf x) {
  vf p = fma(set1(0.00208444f), x, set1(-0.013691187f));
  p = fma(p, x, set1(0.042113908f));
  p = fma(p, x, set1(-0.08323805f));
  p = fma(p, x, set1(0.12479481f));
  p = fma(p, x, set1(-0.16135158f));
  p = fma(p, x, set1(0.19899622f));
  p = fma(p, x, set1(-0.24988864f));
  p = fma(p, x, set1(0.33332714f));
  p = fma(p, x, set1(-0.49999988f));
  return fma(p, x * x, x);
}

// With fused multiply-add, a - b * c comes out exactly enough to correct a rounding.
#if defined(__FMA__) || defined(__ARM_NEON)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

GS_INLINE vf tanh(vf x) {
  vf m = expm1_core(min(set1(20.0f), 2.0f * abs(x))), d = m + 2.0f, y = m / d;
  // what the addition and the division lost, times 1 / d = (1 - y) / 2
  vf lost = m < 64.0f ? m - (d - 2.0f) : vf{};
  vf rest = fnma(y, lost, kFused ? fnma(y, d, m) : vf{});
  y = fma(rest, fnma(set1(0.5f), y, set1(0.5f)), y);
  return (vf)((vi)y | ((vi)x & (int32_t)0x80000000));
}

GS_INLINE vf sigmoid(vf x) {
  vf e = exp_minus_abs(x);
  return (x < 0.0f ? e : set1(1.0f)) / (1.0f + e);
}

// log(1 + exp(x))
GS_INLINE vf softplus(vf x) {
  vf e = exp_minus_abs(x);
  return log1p01(e) + max(set1(0.0f), x);
}

GS_INLINE vf erf(vf x) {
  vf a = abs(x), z = x * x;
  vf p = fma(set1(7.806903e-05f), z, set1(-0.0007997853f));
  p = fma(p, z, set1(0.005187162f));
  p = fma(p, z, set1(-0.026853347f));
  p = fma(p, z, set1(0.11283579f));
  p = fma(p, z, set1(-0.37612626f));
  p = fma(p, z, set1(0.12837917f));
  vf t = min(set1(4.0f), a);
  vf q = fma(set1(-1.8275357e-05f), t, set1(0.00039649362f));
  q = fma(q, t, set1(-0.0039584213f));
  q = fma(q, t, set1(0.024477039f));
  q = fma(q, t, set1(-0.10714878f));
  q = fma(q, t, set1(-0.63450927f));
  q = fma(q, t, set1(-1.1288692f));
  q = fma(q, t, set1(2.4873894e-05f));
  return copysign(a < 1.0f ? fma(p, a, a) : 1.0f - exp(q), x);
}

// The normal distribution: *cdf = P(X < x), *bell = exp(-x^2 / 2), which is the density times
// sqrt(2 pi). The lower tail keeps its relative accuracy. One exp and one division for both.
GS_INLINE void normal(vf x, vf* cdf, vf* bell) {
  vf t = min(set1(14.5f), abs(x));
  // t^2 to more than a float: h has 12 bits, so h * h is exact
  vf h = (vf)((vi)t & (int32_t)0xfffff000), hh = h * h;
  vf e = exp2parts(-0.5f * hh, -0.5f * ((t - h) * (t + h)));
  // Mills' ratio R = P(X > t) / exp(-t^2 / 2) is a polynomial in u = 1 / (1 + t / 4). Its relative
  // change is about 1 + 2.2 u times that of u, so what u lost is put back.
  vf d = fma(set1(0.25f), t, set1(1.0f)), u = 1.0f / d;
  vf lost = fma(set1(0.25f), t, 1.0f - d);
  vf delta = fnma(lost, u, kFused ? fnma(d, u, set1(1.0f)) : vf{});
  vf p = fma(set1(0.016891958f), u, set1(-0.06453471f));
  p = fma(p, u, set1(0.055873588f));
  p = fma(p, u, set1(0.022618921f));
  p = fma(p, u, set1(0.017727874f));
  p = fma(p, u, set1(0.083855f));
  p = fma(p, u, set1(0.07301146f));
  p = fma(p, u, set1(0.09528816f));
  p = fma(p, u, set1(0.09952142f));
  p = fma(p, u, set1(0.09974633f));
  p = p * u;
  p = fma(p * delta, fma(set1(2.2f), u, set1(1.0f)), p);
  vf tail = e * p;  // P(X > |x|)
  *cdf = x < 0.0f ? tail : 1.0f - tail;
  *bell = e;
}

// *s = sin(x), *c = cos(x). The reduction by pi/2 runs in float64; beyond 10^6, libm.
GS_INLINE void sincos(vf x, vf* s, vf* c) {
  const vd magic = set1(6755399441055744.0);
  const vd part[2] = {widen_lo(x), widen_hi(x)};
  vd rest[2], quarters[2];
#pragma GCC unroll 2
  for (int k = 0; k < 2; ++k) {
    vd d = part[k], t = d * 0.63661977236758134 + magic, n = t - magic;
    // pi/2 in two parts; the first has 33 bits, so n times it is exact for n < 2^20
    rest[k] = (d - n * 1.5707963267341256) - n * 6.0771005065061922e-11;
    quarters[k] = t;
  }
  vi quarter = low_words((vl)quarters[0], (vl)quarters[1]);
  vf r = narrow(rest[0], rest[1]), z = r * r;
  vf a = fma(set1(2.8375428e-06f), z, set1(-0.00019853513f));
  a = fma(a, z, set1(0.00833338f));
  a = fma(a, z, set1(-0.16666667f));
  a = fma(a * z, r, r);
  vf b = fma(set1(2.4430661e-05f), z, set1(-0.0013887301f));
  b = fma(b, z, set1(0.041666646f));
  b = fma(b, z * z, fma(set1(-0.5f), z, set1(1.0f)));
  vi swap = -(quarter & 1), q = quarter;
  *s = (vf)((vi)(swap ? b : a) ^ (vi)((vu)(q & 2) << 30));
  *c = (vf)((vi)(swap ? a : b) ^ (vi)((vu)((q + 1) & 2) << 30));
  *s = x == 0.0f ? x : *s;
  vi large = abs(x) > 1e6f;
  if (__builtin_expect(any_lane(large), 0))
    for (int i = 0; i < simd<float>::N; ++i) {
      if (!large[i]) continue;
      (*s)[i] = (float)::sin((double)x[i]);
      (*c)[i] = (float)::cos((double)x[i]);
    }
}
GS_INLINE vf sin(vf x) {
  vf s, c;
  sincos(x, &s, &c);
  return s;
}
GS_INLINE vf cos(vf x) {
  vf s, c;
  sincos(x, &s, &c);
  return c;
}

// ---- float64: libm, lane by lane
#define GS_LANEWISE(name)                                          \
  GS_INLINE vd name(vd x) {                                        \
    vd y;                                                          \
    for (int i = 0; i < simd<double>::N; ++i) y[i] = ::name(x[i]); \
    return y;                                                      \
  }
GS_LANEWISE(exp)
GS_LANEWISE(expm1)
GS_LANEWISE(log)
GS_LANEWISE(log1p)
GS_LANEWISE(tanh)
GS_LANEWISE(erf)
GS_LANEWISE(sin)
GS_LANEWISE(cos)
#undef GS_LANEWISE
GS_INLINE vd log1p01(vd x) { return log1p(x); }
GS_INLINE vd clamp(vd x, double lo, double hi) { return max(set1(lo), min(set1(hi), x)); }
GS_INLINE vd sigmoid(vd x) {
  vd e = exp((vd)((vl)x | (int64_t)0x8000000000000000LL));
  return (x < 0.0 ? e : set1(1.0)) / (1.0 + e);
}
GS_INLINE vd softplus(vd x) {
  return log1p(exp((vd)((vl)x | (int64_t)0x8000000000000000LL))) + max(set1(0.0), x);
}
GS_INLINE void normal(vd x, vd* cdf, vd* bell) {
  for (int i = 0; i < simd<double>::N; ++i) {
    (*cdf)[i] = 0.5 * ::erfc(-0.70710678118654752 * x[i]);
    (*bell)[i] = ::exp(-0.5 * x[i] * x[i]);
  }
}
GS_INLINE void sincos(vd x, vd* s, vd* c) {
  *s = sin(x);
  *c = cos(x);
}

}  // namespace GS_ISA
}  // namespace gs
