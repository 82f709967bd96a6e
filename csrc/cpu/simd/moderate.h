// Elementary functions of arguments of moderate size, for loops that look after the others.
//
// float32 with fused multiply-add. Without the bounds, infinities and subnormal results of vmath.h
// a function is a third shorter, and several vectors can be interleaved. Each says up to which |x|
// it holds; NaN gives anything. Errors stay within the bounds that vmath.h states.
#pragma once
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {
namespace moderate {

// sign * x = n ln 2 + r, |r| <= ln 2 / 2, for |x| <= 87; *power = 2^n, returns sign * r. The number
// that is added to round carries the bias of the exponent, so a shift makes the power.
GS_INLINE vf reduce(vf x, float sign, vf* power) {
  const vf magic = set1(12583039.0f);  // 1.5 * 2^23 + 127
  vf t = fma(x, set1(sign * 1.44269504f), magic), n = t - magic;
  *power = (vf)((vu)t << 23);
  vf r = fnma(n, set1(sign * 0.693359375f), x);
  return fnma(n, set1(sign * -2.12194440e-4f), r);
}
// (exp(sign * r) - 1 - sign * r) / r^2
GS_INLINE vf exp_rest(vf r, float sign) {
  vf p = fma(set1(0.0013818393f), r, set1(sign * 0.008368719f));
  p = fma(p, r, set1(0.041668296f));
  p = fma(p, r, set1(sign * 0.16666521f));
  return fma(p, r, set1(0.49999994f));
}
// exp(sign * r)
GS_INLINE vf exp_reduced(vf r, float sign) {
  return fma(fma(exp_rest(r, sign), r, set1(sign)), r, set1(1.0f));
}

// exp(x), |x| <= 87
GS_INLINE vf exp(vf x) {
  vf s, r = reduce(x, 1, &s);
  return exp_reduced(r, 1) * s;
}

// 1 / (1 + exp(-x)), |x| <= 87
GS_INLINE vf sigmoid(vf x) {
  vf s, r = reduce(x, -1, &s), q = fma(exp_rest(r, -1), r * r, -r);
  return reciprocal(fma(q, s, s + 1.0f));
}

// log(1 + exp(x)), |x| <= 87
GS_INLINE vf softplus(vf x) {
  vf s, r = reduce((vf)((vi)x | (int32_t)0x80000000), 1, &s);
  vf q = fma(exp_rest(r, 1), r * r, r), e = fma(q, s, s), w = e - 0.4375f;
  // (log1p(e) - e) / e^2 by pairs: a chain of nine is longer than what a core looks ahead
  vf w2 = w * w, a = fma(set1(0.19150712f), w, set1(-0.38971823f));
  vf b = fma(set1(0.059019692f), w, set1(-0.10353151f));
  vf c = fma(set1(0.02108884f), w, set1(-0.03477163f));
  vf d = fma(set1(-0.003315651f), w2, fma(set1(0.008577609f), w, set1(-0.013564169f)));
  vf p = fma(fma(d, w2, c), w2 * w2, fma(b, w2, a));
  return s + (fma(p, e * e, q * s) + max(set1(0.0f), x));  // s: exact
}

// exp(x) - 1, |x| <= 87; the sign of zero is lost
GS_INLINE vf expm1(vf x) {
  vf s, r = reduce(x, 1, &s);
  return fma(fma(exp_rest(r, 1), r * r, r), s, s - 1.0f);
}

#if defined(__AVX512F__)
// t[i][index], the low five bits of each lane of the index
GS_INLINE vf look_up(const float* t, vi index) {
  return (vf)_mm512_permutex2var_ps(_mm512_load_ps(t), (__m512i)index, _mm512_load_ps(t + 16));
}

// Every x, NaN too. A polynomial of degree 5 around one of 30 points: one for |x| < 1/16, four an
// octave from there to 8, one up to 9.2.
GS_INLINE vf tanh(vf x) {
  alignas(64) static const float table[7][32] = {
      {0.0f,        0.06972504f, 0.08643341f, 0.101566315f, 0.117061615f, 0.13919067f, 0.1723938f,
       0.20389557f, 0.23573303f, 0.27877808f, 0.34225464f,  0.40585327f,  0.47151184f, 0.5669861f,
       0.69125366f, 0.8117981f,  0.9389038f,  1.1296387f,   1.3834839f,   1.6166992f,  1.8855591f,
       2.243164f,   2.7305908f,  3.23938f,    3.7509766f,   4.534424f,    5.529785f,   6.4924316f,
       7.465332f,   9.0f,        9.0f,        9.0f},
      {0.0f,        0.069612265f, 0.08621881f, 0.10121851f, 0.116529815f, 0.13829869f, 0.17070603f,
       0.20111623f, 0.23146139f,  0.2717738f,  0.32948875f, 0.38494608f,  0.43942004f, 0.5131424f,
       0.5987868f,  0.670581f,    0.7347182f,  0.81089556f, 0.881729f,    0.9241439f,  0.95498395f,
       0.977727f,   0.9915389f,   0.9969333f,  0.9988966f,  0.9997696f,   0.9999685f,  0.9999954f,
       0.99999934f, 0.99999994f,  0.99999994f, 0.99999994f},
      {1.0f,          0.99515414f,    0.9925663f,    0.9897548f,    0.9864208f,     0.98087347f,
       0.97085947f,   0.9595523f,     0.9464256f,    0.926139f,     0.8914372f,     0.85181653f,
       0.80691004f,   0.73668486f,    0.6414544f,    0.55032116f,   0.46018916f,    0.34244835f,
       0.22255394f,   0.14595804f,    0.088005655f,  0.0440499f,    0.016850613f,   0.006124026f,
       0.0022055863f, 0.00046074577f, 6.294826e-05f, 9.179249e-06f, 1.3114587e-06f, 6.787355e-08f,
       6.787355e-08f, 6.787355e-08f},
      {1.4094394e-08f,  -0.069276966f,  -0.08558038f,   -0.10018241f,    -0.114947215f,
       -0.13565336f,    -0.16573122f,   -0.1929817f,    -0.21906039f,    -0.25169912f,
       -0.29371834f,    -0.32790402f,   -0.3545727f,    -0.37802404f,    -0.38409436f,
       -0.36903483f,    -0.33810925f,   -0.27769178f,   -0.19623332f,    -0.13488667f,
       -0.08404402f,    -0.04306759f,   -0.016707214f,  -0.006104855f,   -0.002202998f,
       -0.00046005877f, -6.286427e-05f, -9.168633e-06f, -1.3119696e-06f, 9.991278e-07f,
       9.991278e-07f,   9.991278e-07f},
      {-0.33333498f,   -0.3268988f,    -0.3235462f,    -0.31978673f,   -0.3154091f,
       -0.30819696f,   -0.29532492f,   -0.28104162f,   -0.26476625f,   -0.24030626f,
       -0.2003693f,    -0.15771559f,   -0.11316554f,   -0.051585864f,  0.016171163f,
       0.064027265f,   0.09501924f,    0.111037366f,   0.09884863f,    0.07599945f,
       0.05092621f,    0.027428309f,   0.010953026f,   0.004045826f,   0.0014653886f,
       0.0003054691f,  4.1776504e-05f, 6.1161154e-06f, 8.7566855e-07f, 1.8803827e-06f,
       1.8803827e-06f, 1.8803827e-06f},
      {6.490072e-05f,   0.08017706f,     0.099134885f,    0.08059068f,     0.07151784f,
       0.08716441f,     0.10421283f,     0.12151859f,     0.13166957f,     0.14789054f,
       0.16365682f,     0.17054166f,     0.16816543f,     0.15229286f,     0.11829565f,
       0.0800893f,      0.042928316f,    0.0029266274f,   -0.021517066f,   -0.025183996f,
       -0.020608522f,   -0.012521629f,   -0.005333678f,   -0.002018729f,   -0.00073770777f,
       -0.00016021387f, -2.1940934e-05f, -3.2015462e-06f, -4.4915393e-07f, -7.650289e-08f,
       -7.650289e-08f,  -7.650289e-08f},
      {0.13245273f,    -0.5407636f,   1.9131571f,    0.26744574f,    0.094428234f,   0.12029541f,
       0.081862025f,   0.10449283f,   0.02585717f,   0.06565536f,    0.033314303f,   0.0071076616f,
       -0.0141355125f, -0.043347105f, -0.061527684f, -0.06269642f,   -0.05314069f,   -0.03211031f,
       -0.009550345f,  0.0013811926f, 0.004598504f,  0.003976742f,   0.0019162683f,  0.000771135f,
       0.0002928868f,  6.858545e-05f, 9.31893e-06f,  1.2608408e-06f, 1.6890355e-07f, -8.892558e-07f,
       -8.892558e-07f, -8.892558e-07f},
  };
  vf a = min(set1(9.2f), abs(x));
  vi i = ((vi)a >> 21) - ((0x3d800000 >> 21) - 1);
  i = i > 0 ? i : 0 * i;
  vf d = a - look_up(table[0], i), p = look_up(table[6], i);
#pragma GCC unroll 5
  for (int k = 5; k > 0; --k) p = fma(p, d, look_up(table[k], i));
  return (vf)((vi)p | ((vi)x & (int32_t)0x80000000));
}

constexpr float kNormal = 7.8f;  // how far normal() goes
// P(X < x) and the density, X standard normal. Around c = |x| rounded to a quarter,
// P(X > |x|) = exp((c^2 - x^2) / 2) times a polynomial of degree 5.
GS_INLINE void normal(vf x, vf* cdf, vf* density) {
  alignas(64) static const float peak[32] = {
      0.3989423f,     0.38666812f,    0.35206532f,    0.30113742f,    0.24197072f,
      0.18264909f,    0.1295176f,     0.08627732f,    0.053990968f,   0.031739652f,
      0.017528301f,   0.009093562f,   0.0044318484f,  0.002029048f,   0.0008726827f,
      0.00035259567f, 0.00013383022f, 4.7718637e-05f, 1.5983742e-05f, 5.029507e-06f,
      1.4867195e-06f, 4.128471e-07f,  1.076976e-07f,  2.6392431e-08f, 6.075883e-09f,
      1.3140018e-09f, 2.6695565e-10f, 5.094938e-11f,  9.134721e-12f,  1.538538e-12f,
      2.4343206e-13f, 3.6182944e-14f};
  alignas(64) static const float table[6][32] = {
      {0.5f,           0.40129367f,    0.30853754f,    0.22662735f,    0.15865526f,
       0.10564978f,    0.0668072f,     0.040059157f,   0.022750132f,   0.012224473f,
       0.0062096654f,  0.0029797633f,  0.001349898f,   0.00057702506f, 0.00023262909f,
       8.8417284e-05f, 3.1671243e-05f, 1.0688525e-05f, 3.397673e-06f,  1.0170833e-06f,
       2.8665158e-07f, 7.60496e-08f,   1.8989562e-08f, 4.4621724e-09f, 9.865877e-10f,
       2.0522634e-10f, 4.0160007e-11f, 7.392258e-12f,  1.2798125e-12f, 2.0838581e-13f,
       3.1908917e-14f, 4.5946273e-15f},
      {-0.3989423f,     -0.28634468f,    -0.19779655f,    -0.13116692f,    -0.08331547f,
       -0.050586868f,   -0.029306795f,   -0.016173795f,   -0.008490702f,   -0.0042345887f,
       -0.0020041373f,  -0.00089921366f, -0.00038215434f, -0.00015371667f, -5.848092e-05f,
       -2.1030863e-05f, -7.1452587e-06f, -2.2924019e-06f, -6.94212e-07f,   -1.9836189e-07f,
       -5.3461658e-08f, -1.3586671e-08f, -3.2550067e-09f, -7.3494044e-10f, -1.5635698e-10f,
       -3.1337176e-11f, -5.915624e-12f,  -1.0516396e-12f, -1.760326e-13f,  -2.7740785e-14f,
       -4.115178e-15f,  -5.745819e-16f},
      {0.2499989f,     0.16485775f,    0.10481722f,     0.06412721f,    0.037668742f,
       0.02120648f,    0.011422607f,   0.0058775777f,   0.0028844438f,  0.0013481168f,
       0.0005996005f,  0.00025342044f, 0.000101705446f, 3.8715305e-05f, 1.39698395e-05f,
       4.77632e-06f,   1.5444813e-06f, 4.730822e-07f,   1.3690968e-07f, 3.7421263e-08f,
       9.665323e-09f,  2.3613196e-09f, 5.4378996e-10f,  1.1815528e-10f, 2.4194565e-11f,
       4.6878642e-12f, 8.534976e-13f,  1.4682748e-13f,  2.3804899e-14f, 3.6343312e-15f,
       5.2241874e-16f, 7.0874304e-17f},
      {-0.13298105f,    -0.08171351f,    -0.048460796f,   -0.027691478f,   -0.015214605f,
       -0.008024816f,   -0.004056787f,   -0.001962747f,   -0.0009073557f,  -0.0004002143f,
       -0.00016830851f, -6.738406e-05f,  -2.5663812e-05f, -9.287014e-06f,  -3.191108e-06f,
       -1.040699e-06f,  -3.214736e-07f,  -9.421731e-08f,  -2.6125086e-08f, -6.850951e-09f,
       -1.6999596e-09f, -3.9953282e-10f, -8.861054e-11f,  -1.8563262e-11f, -3.6687376e-12f,
       -6.868826e-13f,  -1.2094315e-13f, -2.014211e-14f,  -3.1642265e-15f, -4.6847656e-16f,
       -6.53564e-17f,   -8.612433e-18f},
      {0.06272699f,     0.03593586f,     0.020343972f,   0.010788281f,    0.005696822f,
       0.0029017422f,   0.0013937704f,   0.00060702756f, 0.0002625825f,   0.00012532645f,
       4.8636124e-05f,  1.9762703e-05f,  6.95763e-06f,   2.6230541e-06f,  8.987043e-07f,
       1.836586e-07f,   1.0454506e-07f,  7.0665718e-09f, 1.6250048e-09f,  1.9165116e-09f,
       6.9628836e-10f,  -3.1976522e-11f, -3.650455e-12f, 1.3978219e-12f,  2.357995e-12f,
       -1.1706806e-13f, 6.348918e-14f,   3.856829e-15f,  -4.0074368e-16f, -5.3824143e-17f,
       1.5918555e-17f,  -3.1518404e-18f},
      {-0.026642302f,   -0.014368112f,   -0.007784637f,   -0.0038744062f,  -0.0019608212f,
       -0.0009569436f,  -0.0004366746f,  -0.00017716055f, -7.2629264e-05f, -3.4318215e-05f,
       -1.2571617e-05f, -4.935378e-06f,  -1.6459838e-06f, -6.014061e-07f,  -1.9797214e-07f,
       -3.6030997e-08f, -2.1588578e-08f, -1.0194262e-09f, -2.1473646e-10f, -3.474138e-10f,
       -1.2423051e-10f, 6.853788e-12f,   8.452634e-13f,   -1.9016182e-13f, -3.6676752e-13f,
       1.9011643e-14f,  -9.175632e-15f,  -5.227589e-16f,  5.872497e-17f,   7.639442e-18f,
       -1.9939333e-18f, 4.0109424e-19f},
  };
  const vf magic = set1(12582912.0f);
  vf t = abs(x), k = fma(t, set1(4.0f), magic), n = k - magic;
  vf d = fnma(n, set1(0.25f), t), u = d * fma(n, set1(0.25f), t);
  // exp(-u / 2), |u| <= 2
  vf q = fma(set1(2.4082152e-05f / 256), u, set1(0.0002039045f / -128));
  q = fma(q, u, set1(0.0013908807f / 64));
  q = fma(q, u, set1(0.008330014f / -32));
  q = fma(q, u, set1(0.041665476f / 16));
  q = fma(q, u, set1(0.16666725f / -8));
  q = fma(q, u, set1(0.5000002f / 4));
  q = fma(q, u, set1(-0.5f));
  q = fma(q, u, set1(1.0f));
  vf p = look_up(table[5], (vi)k);
#pragma GCC unroll 5
  for (int j = 4; j >= 0; --j) p = fma(p, d, look_up(table[j], (vi)k));
  p = p * q;
  *density = q * look_up(peak, (vi)k);
  *cdf = (vi)x < 0 ? p : 1.0f - p;
}
#else
// every x, NaN too
GS_INLINE vf tanh(vf x) {
  const vf magic = set1(12583039.0f);
  vf c = min(set1(9.2f), abs(x)), t = fma(c, set1(2 * 1.44269504f), magic), n = t - magic;
  vf s = (vf)((vu)t << 23);
  // r is half of what reduce(2 x) leaves
  vf r = fnma(n, set1(0.693359375f / 2), c);
  r = fnma(n, set1(-2.12194440e-4f / 2), r);
  vf p = fma(set1(64 * 0.0013818393f), r, set1(32 * 0.008368719f));
  p = fma(p, r, set1(16 * 0.041668296f));
  p = fma(p, r, set1(8 * 0.16666521f));
  p = fma(p, r, set1(4 * 0.49999994f));
  p = fma(p, r * r, r + r);
  vf m = fma(p, s, s - 1.0f), d = m + 2.0f, y = m / d;
  // what the addition and the division lost, times 1 / d = (1 - y) / 2
  vf lost = m < 64.0f ? m - (d - 2.0f) : vf{};
  y = fma(fnma(y, lost, fnma(y, d, m)), fnma(set1(0.5f), y, set1(0.5f)), y);
  return (vf)((vi)y | ((vi)x & (int32_t)0x80000000));
}
constexpr float kNormal = 13.0f;  // how far normal() goes
// P(X < x) and the density, X standard normal, as in vmath.h
GS_INLINE void normal(vf x, vf* cdf, vf* density) {
  vf t = abs(x), hh = t * t, lost = fnma(t, t, hh);  // t^2 = hh - lost
  vf s, r = fma(set1(0.5f), lost, reduce(-0.5f * hh, 1, &s));
  vf e = fma(fma(exp_rest(r, 1), r * r, r), s, s);
  vf d = fma(set1(0.25f), t, set1(1.0f)), u = reciprocal(d);
  vf delta = fnma(fma(set1(0.25f), t, 1.0f - d), u, fnma(d, u, set1(1.0f)));
  vf p = mills(u);
  p = fma(p * delta, fma(set1(2.2f), u, set1(1.0f)), p) * e;
  *cdf = (vi)x < 0 ? p : 1.0f - p;
  *density = e * 0.39894228f;
}
#endif

}  // namespace moderate
}  // namespace GS_ISA
}  // namespace gs
