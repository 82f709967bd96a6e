// Activation functions and their derivatives on one vector, or one number.
#pragma once
#include "activation.h"
#include "simd/moderate.h"

namespace gs {
namespace GS_ISA {
namespace {

// a, b, c of ActivationParams, broadcast
template <class V>
struct Coef {
  V a, b, c;
};

// 0 as a vector of the type of v
template <class V>
GS_INLINE V nil(V) {
  return V{};
}

// Each op: f(x), and df(dy, s): the gradient, s being x or y as the first line says.
#define OP(name)                                        \
  struct name {                                         \
    template <class V>                                  \
    static GS_MEMBER V f(V x, const Coef<V>& k);        \
    template <class V>                                  \
    static GS_MEMBER V df(V dy, V s, const Coef<V>& k); \
  };
#define GS_OP_F(name) \
  template <class V>  \
  GS_MEMBER V name::f([[maybe_unused]] V x, [[maybe_unused]] const Coef<V>& k)
#define GS_OP_D(name)                                               \
  template <class V>                                                \
  GS_MEMBER V name::df([[maybe_unused]] V dy, [[maybe_unused]] V s, \
                       [[maybe_unused]] const Coef<V>& k)
#define X(name) OP(op_##name)
GS_ACTIVATIONS(X)
#undef X
#undef OP

// 1 / (1 + exp(-x)); from y: y (1 - y)
GS_OP_F(op_sigmoid) { return sigmoid(x); }
GS_OP_D(op_sigmoid) { return dy * (s - s * s); }

// from y: 1 - y^2
GS_OP_F(op_tanh) { return tanh(x); }
GS_OP_D(op_tanh) { return dy * fnma(s, s, 1 - nil(s)); }

// max(x, 0), NaN stays; from y: 1 where y > 0
GS_OP_F(op_relu) { return max(nil(x), x); }
GS_OP_D(op_relu) { return s <= 0 ? nil(s) : dy; }

// x > 0 ? x : a x; from x, or from y when a >= 0
GS_OP_F(op_leaky_relu) { return x > 0 ? x : k.a * x; }
GS_OP_D(op_leaky_relu) { return s > 0 ? dy : k.a * dy; }

// x > 0 ? b x : a (exp(c x) - 1): ELU, SELU, CELU; from y: b above, c (y + a) below
GS_OP_F(op_elu) { return x > 0 ? k.b * x : k.a * expm1(k.c * x); }
GS_OP_D(op_elu) { return dy * (s > 0 ? k.b : k.c * (s + k.a)); }
GS_OP_F(op_elu_input) { return op_elu::f(x, k); }
GS_OP_D(op_elu_input) { return dy * (s > 0 ? k.b : k.a * k.c * exp(k.c * s)); }

// x P(X < x), X standard normal; from x: P(X < x) + x density(x)
GS_OP_F(op_gelu) {
  V cdf, bell;
  normal(x, &cdf, &bell);
  if constexpr (sizeof(typename lane<V>::T) == 4)
    return max(nil(x) - 14.5f, x) * cdf;  // the float is 0 from there down; NaN stays
  V y = x * cdf;
  return abs(x) < __builtin_inf() ? y : max(nil(x), x);  // 0 at -inf
}
GS_OP_D(op_gelu) {
  V cdf, bell;
  normal(s, &cdf, &bell);
  V slope = bell == 0 ? nil(s) : s * bell;
  return dy * fma(slope, nil(s) + (typename lane<V>::T)0.39894228040143268, cdf);
}

// x/2 (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3); from x
template <class V>
GS_INLINE V gelu_u2(V x) {
  using T = typename lane<V>::T;
  return x * fma(x * x, set1((T)(0.044715 * 1.5957691216057308)), set1((T)1.5957691216057308));
}
GS_OP_F(op_gelu_tanh) {
  V y = x * sigmoid(gelu_u2(x));
  return abs(x) < __builtin_inf() ? y : max(nil(x), x);
}
GS_OP_D(op_gelu_tanh) {
  using T = typename lane<V>::T;
  V p = sigmoid(gelu_u2(s));
  V du = fma(s * s, set1((T)(3 * 0.044715 * 1.5957691216057308)), set1((T)1.5957691216057308));
  V bump = p - p * p;
  return dy * (bump == 0 ? p : fma(s * du, bump, p));
}

// x sigmoid(a x); from x: p + a x p (1 - p)
GS_OP_F(op_silu) {
  V p = sigmoid(k.a * x);
  return p == 0 ? nil(x) : x * p;
}
GS_OP_D(op_silu) {
  V p = sigmoid(k.a * s), bump = p - p * p;
  return dy * (bump == 0 ? p : fma(k.a * s, bump, p));
}

// a x > b ? x : log(1 + exp(a x)) / a; from x
GS_OP_F(op_softplus) {
  V z = k.a * x;
  return z > k.b ? x : softplus(z) / k.a;
}
GS_OP_D(op_softplus) {
  V z = k.a * s;
  return z > k.b ? dy : dy * sigmoid(z);
}

// -log(1 + exp(-x)); from x
GS_OP_F(op_logsigmoid) { return -softplus(-x); }
GS_OP_D(op_logsigmoid) { return dy * sigmoid(-s); }

// x tanh(log(1 + exp(x))) = x q / (q + 2), q = e (e + 2), e = exp(x); from x
GS_OP_F(op_mish) {
  V e = exp(min(set1((typename lane<V>::T)30), x)), q = e * (e + 2);
  V y = x * quotient(q, q + 2);
  return e == 0 ? nil(x) - 0 * e : y;
}
GS_OP_D(op_mish) {
  V x = min(set1((typename lane<V>::T)30), s);  // above it slope would not fall any more
  V e = exp(x), q = e * (e + 2), r = reciprocal(q + 2);
  V t = q * r;                            // tanh(softplus)
  V slope = 4 * (e * r) * ((1 + e) * r);  // sigmoid (1 - t^2)
  return dy * (slope == 0 ? t : fma(x, slope, t));
}

// min(max(x, a), b), NaN stays; from y: 1 strictly inside
GS_OP_F(op_hardtanh) { return min(k.b, max(k.a, x)); }
GS_OP_D(op_hardtanh) { return (s <= k.a) | (s >= k.b) ? nil(s) : dy; }

// x min(max(x + 3, 0), 6) / 6; from x
GS_OP_F(op_hardswish) {
  using T = typename lane<V>::T;
  V h = min(set1((T)6), max(nil(x), x + 3));
  return h == 0 ? nil(x) : x * (h * (T)(1.0 / 6.0));  // 6 times that is 1
}
GS_OP_D(op_hardswish) {
  using T = typename lane<V>::T;
  V inner = dy * fma(s, set1((T)(1.0 / 3.0)), set1((T)0.5));
  return s <= -3 ? nil(s) : (s >= 3 ? dy : inner);
}

// min(max(x + 3, 0), 6) / 6; from x
GS_OP_F(op_hardsigmoid) {
  using T = typename lane<V>::T;
  return min(set1((T)6), max(nil(x), x + 3)) * (T)(1.0 / 6.0);
}
GS_OP_D(op_hardsigmoid) { return (s <= -3) | (s >= 3) ? nil(s) : dy / 6; }

// x / (1 + |x|); from x
GS_OP_F(op_softsign) {
  V d = 1 + abs(x);
  return d < __builtin_inf() ? x / d : (x == x ? copysign(1 + nil(x), x) : x);
}
GS_OP_D(op_softsign) {
  V d = 1 + abs(s);
  return dy / (d * d);
}

// x > a ? x : b; from x
GS_OP_F(op_threshold) { return x <= k.a ? k.b : x; }
GS_OP_D(op_threshold) { return s <= k.a ? nil(s) : dy; }

// from the derivative that forward saved
GS_OP_F(op_product) { return x; }
GS_OP_D(op_product) { return dy * s; }

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
