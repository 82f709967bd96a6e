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
