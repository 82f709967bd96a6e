// Elementary functions on vectors.
//
// vf (float32): own polynomials (bench/fit_vmath.py derives them). Largest errors, in units in the
// last place of the exact result, with fused multiply-add (without it, the x86 baseline, in
// brackets):
//   exp 1 (1), expm1 1.5 (2), log 1.1 (1), log1p 1.5 (1.5), tanh 2 (2.5), sigmoid 2.5 (2.5),
//   softplus 2 (2), erf 1.5 (1.5), sin and cos 2 (2); measured by tests/test_vmath.py. Right at
//   +-0, +-inf and NaN; denormal arguments and results are exact to the same bounds.
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

// A mask as bits, lane i in bit i, and the way back.
GS_INLINE uint32_t lane_bits(vi m) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  return _mm512_movepi32_mask((__m512i)m);
#elif defined(__AVX2__)
  return (uint32_t)_mm256_movemask_ps((__m256)m);
#elif defined(__x86_64__)
  return (uint32_t)_mm_movemask_ps((__m128)m);
#else
  return vaddvq_u32((uint32x4_t)(m & (vi){1, 2, 4, 8}));
#endif
}
GS_INLINE vi lanes_of(uint32_t bits) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  return (vi)_mm512_movm_epi32((__mmask16)bits);
#else
  const vi one = set1((int32_t)1) << iota<float>();
  return (set1((int32_t)bits) & one) != 0;
#endif
}

// n / d where n is finite and d and 1 / d are normal numbers, within 0.51 units in the last place.
// 512-bit divisions take 16 cycles, this a third.
GS_INLINE vf quotient(vf n, vf d) {
#if defined(__AVX512F__)
  vf r = (vf)_mm512_rcp14_ps((__m512)d);
  r = fma(fnma(d, r, set1(1.0f)), r, r);
  vf q = n * r;
  return fma(fnma(q, d, n), r, q);
#else
  return n / d;
#endif
}
// 1 / d likewise, within 1 unit
GS_INLINE vf reciprocal(vf d) {
#if defined(__AVX512F__)
  vf r = (vf)_mm512_rcp14_ps((__m512)d);
  return fma(fnma(d, r, set1(1.0f)), r, r);
#else
  return 1.0f / d;
#endif
}
GS_INLINE vd quotient(vd n, vd d) { return n / d; }
GS_INLINE vd reciprocal(vd d) { return 1.0 / d; }

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

#if defined(__AVX512F__)
// log(x), x = 2^e m with m in [3/4, 3/2), c close to m, one of 16 points whose logarithm is a
// multiple of 2^-16 to nine digits, as is the first part of ln 2: so e ln 2 + log c is exact and
// what is left is m / c - 1 and its polynomial. unit: what a unit of `e` counts. kPart: `part`, a
// small addend to the result.
template <bool kPart>
GS_INLINE vf log_of(vf m, vf e, float unit, vf part) {
  alignas(64) static const float inverse[16] = {1.0f,        0.9154279f,  0.8640292f,  0.8212983f,
                                                0.77943087f, 0.74445343f, 0.71087205f, 0.6818055f,
                                                1.3049625f,  1.2542236f,  1.2069851f,  1.1621286f,
                                                1.121931f,   1.0849267f,  1.0323576f,  1.0f};
  alignas(64) static const float logs[16] = {0.0f,         0.08836365f,  0.14614868f,   0.1968689f,
                                             0.24919128f,  0.29510498f,  0.34126282f,   0.38301086f,
                                             -0.26617432f, -0.22651672f, -0.18812561f,  -0.1502533f,
                                             -0.11505127f, -0.08151245f, -0.031845093f, 0.0f};
  const __m512i at = _mm512_srli_epi32((__m512i)m, 19);  // its low four bits
  const vf r = fma(m, (vf)_mm512_permutexvar_ps(at, _mm512_load_ps(inverse)), set1(-1.0f));
  const vf high =
      fma(e, set1(45426.0f / 65536 * unit), (vf)_mm512_permutexvar_ps(at, _mm512_load_ps(logs)));
  const vf rr = r * r, p = fma(fma(set1(0.18885878f), r, set1(-0.2500925f)), rr,
                               fma(set1(0.33334476f), r, set1(-0.5f)));
  vf low = fma(e, set1(1.4286068e-6f * unit), r);
  if (kPart) low += part;
  return high + fma(p, rr, low);
}
// 14 operations, zeros, infinities, NaN and denormals without a case of their own
template <bool kPart>
GS_INLINE vf log_looked_up(vf x, vf part) {
  const __m512 m = _mm512_getmant_ps((__m512)x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
  const __m512 one = _mm512_set1_ps(1.0f), whole = _mm512_getexp_ps((__m512)x);
  const vf e = (vf)_mm512_mask_add_ps(whole, _mm512_cmp_ps_mask(m, one, _CMP_LT_OQ), whole, one);
  return log_of<kPart>((vf)m, e, 1.0f, part);
}
// The same bits for positive normal numbers; three integer operations, which go to any of four
// units, and a conversion in place of four that share two of them with additions.
template <bool kPart>
GS_INLINE vf log_normal(vf x, vf part) {
  const vi power = ((vi)x - 0x3f400000) & (int32_t)0xff800000;
  return log_of<kPart>((vf)((vi)x - power), __builtin_convertvector(power, vf), 0x1p-23f, part);
}
GS_INLINE vf log(vf x) { return log_looked_up<false>(x, vf{}); }
#else
GS_INLINE vf log(vf x) {
  vi small = x < 1.17549435e-38f;
  vf s = small ? x * 8388608.0f : x;
  vi e = (vi)((vu)s - 0x3f3504f3u) >> 23;  // may wrap: x < 0 is replaced below
  vf m = (vf)((vu)s - ((vu)e << 23));
  vf y = log_reduced(m - 1.0f, __builtin_convertvector(e + (small & -23), vf));
  y = x > 0.0f ? y : (x == 0.0f ? set1(-__builtin_inff()) : set1(__builtin_nanf("")));
  return x < __builtin_inff() ? y : x;
}
#endif

GS_INLINE vf log1p(vf x) {
  vf u = 1.0f + x;
  vf c = x > 1.0f ? 1.0f - (u - x) : x - (u - 1.0f);  // what the addition lost
  vi e = (vi)((vu)u - 0x3f3504f3u) >> 23;
  vf m = (vf)((vu)u - ((vu)e << 23)), w = pow2(e < 126 ? -e : set1(-126));
  vf y = copysign(log_reduced(fma(c, w, m - 1.0f), __builtin_convertvector(e, vf)), x);
  y = x > -1.0f ? y : (x == -1.0f ? set1(-__builtin_inff()) : set1(__builtin_nanf("")));
  return x < __builtin_inff() ? y : x;
}

// log(1 - x) for 0 <= x <= 1, within 1.6 units
GS_INLINE vf log_less(vf x) {
#if defined(__AVX512F__)
  const vf u = 1.0f - x;
  return log_looked_up<true>(u, (1.0f - u) - x);  // what the subtraction lost, over u > 1/2
#else
  return log1p(-x);
#endif
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
  vf m = expm1_core(min(set1(20.0f), 2.0f * abs(x))), d = m + 2.0f, y = quotient(m, d);
  // what the addition and the division lost, times 1 / d = (1 - y) / 2
  vf lost = m < 64.0f ? m - (d - 2.0f) : vf{};
  vf rest = fnma(y, lost, kFused ? fnma(y, d, m) : vf{});
  y = fma(rest, fnma(set1(0.5f), y, set1(0.5f)), y);
  return (vf)((vi)y | ((vi)x & (int32_t)0x80000000));
}

GS_INLINE vf sigmoid(vf x) {
  vf e = exp_minus_abs(x);
  return quotient(x < 0.0f ? e : set1(1.0f), 1.0f + e);
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

#if defined(__AVX512F__)
// The normal distribution: *cdf = P(X < x), *bell = exp(-x^2 / 2), which is the density times
// sqrt(2 pi). The lower tail keeps its relative accuracy: P(X > t) = bell * R(t), and R, Mills'
// ratio over sqrt(2 pi), is a polynomial of degree 6 around each multiple of 1/2, whose
// coefficients are looked up in registers. One exp, no division: 18 cycles.
GS_INLINE void normal(vf x, vf* cdf, vf* bell) {
  alignas(64) static const float mills[7][32] = {
      {5.0e-01f,       3.4961882e-01f, 2.615783e-01f,   2.0578067e-01f, 1.68102e-01f,
       1.4133133e-01f, 1.2151395e-01f, 1.06345154e-01f, 9.441064e-02f,  8.4803395e-02f,
       7.69193e-02f,   7.03427e-02f,   6.477931e-02f,   6.0015675e-02f, 5.589348e-02f,
       5.2293096e-02f, 4.9122546e-02f, 4.6310045e-02f,  4.379879e-02f,  4.154329e-02f,
       3.9506692e-02f, 3.765886e-02f,  3.597489e-02f,   3.4434058e-02f, 3.3018973e-02f,
       3.1714927e-02f, 3.0509414e-02f, 2.9391732e-02f,  2.8352661e-02f, 2.7384225e-02f,
       2.6479488e-02f, 2.563239e-02f},
      {-3.9894238e-01f, -2.241329e-01f,  -1.37364e-01f,   -9.027128e-02f,  -6.273828e-02f,
       -4.5613952e-02f, -3.4400437e-02f, -2.6734242e-02f, -2.1299716e-02f, -1.7327016e-02f,
       -1.4345756e-02f, -1.2057464e-02f, -1.0266394e-02f, -8.8403905e-03f, -7.6879035e-03f,
       -6.744052e-03f,  -5.961911e-03f,  -5.306914e-03f,  -4.753181e-03f,  -4.28104e-03f,
       -3.8753394e-03f, -3.5242639e-03f, -3.2184946e-03f, -2.9506066e-03f, -2.7146274e-03f,
       -2.5057108e-03f, -2.319892e-03f,  -2.1539035e-03f, -2.005033e-03f,  -1.8710152e-03f,
       -1.7499455e-03f, -1.6402141e-03f},
      {2.4999987e-01f, 1.1877617e-01f, 6.2107146e-02f, 3.5186872e-02f, 2.1312723e-02f,
       1.3648226e-02f, 9.156321e-03f,  6.387652e-03f,  4.6058903e-03f, 3.4159103e-03f,
       2.5952638e-03f, 2.0133231e-03f, 1.5904738e-03f, 1.276568e-03f,  1.0390796e-03f,
       8.563535e-04f,  7.136303e-04f,  6.006361e-04f,  5.100819e-04f,  4.3670597e-04f,
       3.766501e-04f,  3.2704414e-04f, 2.8572467e-04f, 2.510413e-04f,  2.217207e-04f,
       1.9677042e-04f, 1.7540948e-04f, 1.5701784e-04f, 1.4109914e-04f, 1.2725293e-04f,
       1.151539e-04f,  1.0453589e-04f},
      {-1.3296774e-01f, -5.4911412e-02f, -2.5084557e-02f, -1.249664e-02f,  -6.7041507e-03f,
       -3.8310795e-03f, -2.3104695e-03f, -1.459144e-03f,  -9.587136e-04f,  -6.518044e-04f,
       -4.564779e-04f,  -3.2806155e-04f, -2.4118353e-04f, -1.8089937e-04f, -1.3811523e-04f,
       -1.071335e-04f,  -8.4289386e-05f, -6.7169e-05f,    -5.4147804e-05f, -4.411091e-05f,
       -3.627941e-05f,  -3.0100144e-05f, -2.5174353e-05f, -2.121058e-05f,  -1.7993065e-05f,
       -1.5360183e-05f, -1.318954e-05f,  -1.1387493e-05f, -9.881717e-06f,  -8.615855e-06f,
       -7.545626e-06f,  -6.635966e-06f},
      {6.250256e-02f,  2.2830045e-02f, 9.255427e-03f,  4.110347e-03f,  1.9760383e-03f,
       1.0175986e-03f, 5.562112e-04f,  3.2015322e-04f, 1.9275423e-04f, 1.2069498e-04f,
       7.8217025e-05f, 5.2245217e-05f, 3.5842593e-05f, 2.5180176e-05f, 1.8068027e-05f,
       1.3212907e-05f, 9.828694e-06f,  7.4248424e-06f, 5.68787e-06f,   4.413045e-06f,
       3.4639784e-06f, 2.7481378e-06f, 2.2016852e-06f, 1.7798927e-06f, 1.4509709e-06f,
       1.1920248e-06f, 9.863614e-07f,  8.216694e-07f,  6.887713e-07f,  5.807574e-07f,
       4.9237616e-07f, 4.1960135e-07f},
      {-2.7013911e-02f, -8.812462e-03f,  -3.199815e-03f,  -1.2774902e-03f, -5.5449625e-04f,
       -2.590178e-04f,  -1.290417e-04f,  -6.8024325e-05f, -3.7683178e-05f, -2.1807291e-05f,
       -1.311616e-05f,  -8.163055e-06f,  -5.2371674e-06f, -3.4524041e-06f, -2.331873e-06f,
       -1.6098533e-06f, -1.1335602e-06f, -8.1259896e-07f, -5.920766e-07f,  -4.378561e-07f,
       -3.282401e-07f,  -2.4915877e-07f, -1.9131821e-07f, -1.484739e-07f,  -1.16363346e-07f,
       -9.203373e-08f,  -7.3412195e-08f, -5.90242e-08f,   -4.7808545e-08f, -3.8993537e-08f,
       -3.2011314e-08f, -2.6440505e-08f},
      {1.0484728e-02f, 3.0996203e-03f, 1.0209159e-03f, 3.7046e-04f,    1.4655538e-04f,
       6.2600935e-05f, 2.8621625e-05f, 1.3898556e-05f, 7.1192e-06f,    3.8235844e-06f,
       2.1419619e-06f, 1.2458718e-06f, 7.494317e-07f,  4.6460937e-07f, 2.959592e-07f,
       1.9320764e-07f, 1.2896388e-07f, 8.7838586e-08f, 6.093988e-08f,  4.2996927e-08f,
       3.080951e-08f,  2.2393785e-08f, 1.6491407e-08f, 1.22935e-08f,   9.267563e-09f,
       7.060683e-09f,  5.4312848e-09f, 4.2160098e-09f, 3.3015284e-09f, 2.6056186e-09f,
       2.0719202e-09f, 1.6585969e-09f},
  };
  const vf magic = set1(12582912.0f);
  vf t = min(set1(14.5f), abs(x));
  vf j = fma(t, set1(2.0f), magic), d = fnma(j - magic, set1(0.5f), t);
  vf p = {};
#pragma GCC unroll 7
  for (int i = 6; i >= 0; --i) {
    vf c = (vf)_mm512_permutex2var_ps(_mm512_load_ps(mills[i]), (__m512i)j,
                                      _mm512_load_ps(mills[i] + 16));
    p = i == 6 ? c : fma(p, d, c);
  }
  // exp(-t^2 / 2), t^2 = hh - lost to more than a float; v = -2 r of exp_reduced
  vf hh = t * t, lost = fnma(t, t, hh);
  vf k = fma(hh, set1(-0.72134752f), magic) - magic;
  vf v = fma(k, set1(2 * 0.693359375f), hh);
  v = fma(k, set1(2 * -2.12194440e-4f), v) - lost;
  vf q = fma(set1(0.0013818393f / 64), v, set1(0.008368719f / -32));
  q = fma(q, v, set1(0.041668296f / 16));
  q = fma(q, v, set1(0.16666521f / -8));
  q = fma(q, v, set1(0.49999994f / 4));
  q = fma(q, v * v, fma(set1(-0.5f), v, set1(1.0f)));
  vf e = (vf)_mm512_scalef_ps((__m512)q, (__m512)k);
  vf tail = e * p;
  *cdf = x < 0.0f ? tail : 1.0f - tail;
  *bell = e;
}
#else
// Mills' ratio R = P(X > t) / exp(-t^2 / 2), X standard normal, from u = 1 / (1 + t / 4), of which
// `lost` is a relative error. R's relative change is about 1 + 2.2 u times that of u, so what u
// lost is put back, with the last product rather than behind it: one rounding less.
GS_INLINE vf mills(vf u, vf lost) {
  vf p = fma(set1(0.016891958f), u, set1(-0.06453471f));
  p = fma(p, u, set1(0.055873588f));
  p = fma(p, u, set1(0.022618921f));
  p = fma(p, u, set1(0.017727874f));
  p = fma(p, u, set1(0.083855f));
  p = fma(p, u, set1(0.07301146f));
  p = fma(p, u, set1(0.09528816f));
  p = fma(p, u, set1(0.09952142f));
  p = fma(p, u, set1(0.09974633f));
  return fma(p, u, p * (u * lost * fma(set1(2.2f), u, set1(1.0f))));
}

// The normal distribution: *cdf = P(X < x), *bell = exp(-x^2 / 2), which is the density times
// sqrt(2 pi). The lower tail keeps its relative accuracy. One exp and one division for both.
GS_INLINE void normal(vf x, vf* cdf, vf* bell) {
  vf t = min(set1(14.5f), abs(x));
  // t^2 to more than a float: h has 12 bits, so h * h is exact
  vf h = (vf)((vi)t & (int32_t)0xfffff000), hh = h * h;
  vf e = exp2parts(-0.5f * hh, -0.5f * ((t - h) * (t + h)));
  vf d = fma(set1(0.25f), t, set1(1.0f)), u = reciprocal(d);
  vf lost = fma(set1(0.25f), t, 1.0f - d);
  vf rest = fnma(d, u, set1(1.0f));  // 1 - d u; where that rounds, by halves of 12 bits
  if (!kFused) {
    vf dh = (vf)((vi)d & (int32_t)0xfffff000), uh = (vf)((vi)u & (int32_t)0xfffff000);
    rest = (1.0f - dh * uh) - dh * (u - uh) - (d - dh) * u;
  }
  vf delta = fnma(lost, u, rest);
  vf tail = e * mills(u, delta);  // P(X > |x|)
  *cdf = x < 0.0f ? tail : 1.0f - tail;
  *bell = e;
}
#endif

// x = n pi/2 + r, |r| <= pi/4; *quarter has n in its low bits. In float64; right up to 10^6.
GS_INLINE vf quarter_turns_far(vf x, vi* quarter) {
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
  *quarter = low_words((vl)quarters[0], (vl)quarters[1]);
  return narrow(rest[0], rest[1]);
}
// The same. With fused multiply-add and |x| <= 10^4 the first of three parts of pi/2 leaves an
// exact difference, the others a rounding each of the result.
GS_INLINE vf quarter_turns(vf x, vi* quarter) {
#if defined(__FMA__) || defined(__ARM_NEON)
  if (__builtin_expect(!any_lane(~(abs(x) <= 1e4f)), 1)) {
    const vf magic = set1(12582912.0f);
    vf t = fma(x, set1(0.63661977f), magic), n = t - magic;
    *quarter = (vi)t;
    vf r = fnma(n, set1(1.57079637f), x);
    r = fnma(n, set1(-4.37113883e-8f), r);
    return fnma(n, set1(-1.71512489e-15f), r);
  }
#endif
  return quarter_turns_far(x, quarter);
}

// *s = sin(x), *c = cos(x); beyond 10^6, libm.
GS_INLINE void sincos(vf x, vf* s, vf* c) {
  vi quarter;
  vf r = quarter_turns(x, &quarter), z = r * r;
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
GS_INLINE vd log_less(vd x) { return log1p(-x); }
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
