// power(x, y) = x^y on vectors. float32: exp(y ln x) in float64, by series good to 3e-10, so the
// result is rounded nearly once (at most 0.51 units in the last place for x > 0). float64: libm.
#pragma once
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {

// ln m and e for finite x = 2^e m > 0, sqrt(1/2) <= m < sqrt(2)
GS_INLINE vd ln_mantissa(vd x, vd* exponent) {
  // ln m = 2 atanh(s), s = (m - 1) / (m + 1)
  vl e = ((vl)x - 0x3fe6a09e667f3bcdLL) >> 52;
  vd m = (vd)((vl)x - (vl)((vul)e << 52));
  vd s = (m - 1.0) / (m + 1.0), z = s * s;
  vd q = fma(z, set1(1.0 / 13), set1(1.0 / 11));
  q = fma(q, z, set1(1.0 / 9));
  q = fma(q, z, set1(1.0 / 7));
  q = fma(q, z, set1(1.0 / 5));
  q = fma(q, z, set1(1.0 / 3));
  *exponent = __builtin_convertvector(e, vd);
  return 2.0 * fma(s * z, q, s);
}

#if defined(__AVX512F__)
// x^y for finite x > 0 as 2^(y log2 x). log2 x = e + log2 c + log2(1 + r), x = 2^e m, m in
// [3/4, 3/2) close to c, one of 16 points with 1 / c to 24 bits: no division, and r is exact. 2^t:
// one of 16 points, too. Tables are two registers each (bench/fit_vmath.py).
GS_INLINE vd power_positive(vd x, vd y) {
  alignas(64) static const double inverse[16] = {1.0,
                                                 0.9142857193946838,
                                                 0.8648648858070374,
                                                 0.8205128312110901,
                                                 0.7804877758026123,
                                                 0.7441860437393188,
                                                 0.7111111283302307,
                                                 0.6808510422706604,
                                                 1.3061224222183228,
                                                 1.2549020051956177,
                                                 1.2075471878051758,
                                                 1.163636326789856,
                                                 1.1228070259094238,
                                                 1.0847457647323608,
                                                 1.049180269241333,
                                                 1.0};
  alignas(64) static const double logs[16] = {0.0,
                                              0.12928300888327973,
                                              0.20945333069497424,
                                              0.285402200051646,
                                              0.35755205836266307,
                                              0.4262647600765558,
                                              0.4918530613956992,
                                              0.5545888973605297,
                                              -0.3852901263252734,
                                              -0.32757470908585296,
                                              -0.27207956693463203,
                                              -0.21864024079244804,
                                              -0.16710999658417397,
                                              -0.11735695332538766,
                                              -0.06926258182024388,
                                              0.0};
  alignas(64) static const double powers[16] = {1.0,
                                                1.0442737824274138,
                                                1.0905077326652577,
                                                1.1387886347566916,
                                                1.189207115002721,
                                                1.241857812073484,
                                                1.2968395546510096,
                                                1.3542555469368927,
                                                1.4142135623730951,
                                                1.4768261459394993,
                                                1.5422108254079407,
                                                1.6104903319492543,
                                                1.681792830507429,
                                                1.7562521603732995,
                                                1.8340080864093424,
                                                1.9152065613971474};
  const auto at = [](const double* t, __m512i i) __attribute__((always_inline)) {
    return (vd)_mm512_permutex2var_pd(_mm512_load_pd(t), i, _mm512_load_pd(t + 8));
  };
  const __m512d m = _mm512_getmant_pd((__m512d)x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero);
  const __m512d one = _mm512_set1_pd(1.0), whole = _mm512_getexp_pd((__m512d)x);
  const vd e = (vd)_mm512_mask_add_pd(whole, _mm512_cmp_pd_mask(m, one, _CMP_LT_OQ), whole, one);
  const __m512i i = _mm512_srli_epi64((__m512i)m, 48);  // its low four bits
  const vd r = fma((vd)m, at(inverse, i), set1(-1.0)), rr = r * r;
  vd p = fma(set1(0.18813973762225977), rr,
             fma(set1(-0.24027912786322736), r, set1(0.2885669133853638)));
  p = fma(p, rr, fma(set1(-0.36067423343412097), r, set1(0.4808983349948115)));
  p = fma(p, rr, fma(set1(-0.72134752030572), r, set1(1.442695040889869)));
  vd t = y * fma(p, r, e + at(logs, i));
  t = min(set1(1000.0), max(set1(-1000.0), t));
  const vd magic = set1(6755399441055744.0 / 16), n = t + magic, k = n - magic;
  const vd d = t - k;
  vd q = fma(fma(set1(0.009618362626627809), d, set1(0.05550573623596971)), d * d,
             fma(set1(0.2402265068761527), d, set1(0.6931471801626332)));
  const vd s = at(powers, (__m512i)n);
  return (vd)_mm512_scalef_pd((__m512d)fma(q * d, s, s), (__m512d)k);
}
#else
// x^y for finite x > 0
GS_INLINE vd power_positive(vd x, vd y) {
  vd e, m = ln_mantissa(x, &e);
  vd ln = fma(e, set1(0.69314718055994530942), m);
  vd t = min(set1(700.0), max(set1(-700.0), y * ln));
  const vd magic = set1(6755399441055744.0);
  vd n = t * 1.4426950408889634 + magic;
  vl k = (vl)n - (vl)magic;
  vd r = fnma(n - magic, set1(0.69314718055994530942), t);
  vd p = fma(r, set1(1.0 / 40320), set1(1.0 / 5040));
  p = fma(p, r, set1(1.0 / 720));
  p = fma(p, r, set1(1.0 / 120));
  p = fma(p, r, set1(1.0 / 24));
  p = fma(p, r, set1(1.0 / 6));
  p = fma(p, r, set1(0.5));
  p = fma(p, r, set1(1.0));
  p = fma(p, r, set1(1.0));
  return p * (vd)((vul)(k + 1023) << 52);
}
#endif

GS_INLINE vf power(vf x, vf y) {
  // a negative x to an integer is |x| to it, with a sign where that is odd
  const float inf = __builtin_inff();
  vi whole = __builtin_convertvector(y, vi);
  vi integer = (abs(y) < 4194304.0f) & (__builtin_convertvector(whole, vf) == y);
  vi plain = (x != 0.0f) & (abs(x) < inf) & (((x > 0.0f) & (abs(y) < inf)) | integer);
  vf a = plain ? abs(x) : set1(1.0f);
  vf out =
      narrow(power_positive(widen_lo(a), widen_lo(y)), power_positive(widen_hi(a), widen_hi(y)));
  out = (x < 0.0f) & ((whole & 1) != 0) ? -out : out;
  // zero, infinite, NaN, roots of negative numbers: one lane at a time
  if (__builtin_expect(any_lane(~plain), 0))
    for (int i = 0; i < simd<float>::N; ++i)
      if (!plain[i]) out[i] = __builtin_powf(x[i], y[i]);
  return out;
}

GS_INLINE vd power(vd x, vd y) {
  vd r;
  for (int i = 0; i < simd<double>::N; ++i) r[i] = __builtin_pow(x[i], y[i]);
  return r;
}

}  // namespace GS_ISA
}  // namespace gs
