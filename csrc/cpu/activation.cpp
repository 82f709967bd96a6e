// Activation functions and their derivatives, elementwise on dense arrays.
//
// Work is split into runs of kRun elements. Floor: forward reads n and writes n elements, backward
// reads 2 n and writes n: copy bandwidth for the piecewise linear ones; those with exp take 6 to 20
// cycles a vector. Backward uses the saved output where the derivative is a function of it (the
// input may then be overwritten), else the input.
//
// Large float32 arrays do less: where the derivative has two values, forward saves a bit an element
// (backward then reads n and writes n: a fifth of all traffic saved); where it costs as much as the
// function (gelu without AVX-512), forward computes both at once and saves the derivative.
#include "activation.h"

#include "simd/moderate.h"
#include "simd/own.h"
#include "simd/philox.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kRun = 16384;

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

// ---- float32 functions with exp: several vectors at a time
//
// A curve is the short form of an op, right where fits(k) and, if kChecked, x^2 < reach(k). Blocks
// of kBlock vectors with a larger or NaN argument, and the ends of arrays, go vector by vector
// through `whole`, which takes each lane from the short form or from the op: every element has the
// same bits wherever it lies. The file is compiled with the scheduler before register allocation
// (cmake/isa.cmake), which interleaves the vectors of a block.

// x^2 < (z / |a|)^2; none where that overflows
GS_INLINE vf square_of(float z, vf a) {
  vf r = z / abs(a);
  return r * r;
}

// kSlope: whether backward is from x. both: y = f(x) and d = f'(x); what nobody reads is not
// computed. close, close_slope: y and d to the same bits where |x| < kClose; 0: no such form.
// kWide: a block out of reach takes the short form and the op for all of it at once.
template <class F>
struct Curve {
  using Op = F;
  static constexpr int kBlock = 4;
  static constexpr bool kChecked = true, kSlope = true;
  static constexpr float kClose = 0, kCloseSlope = 0;
  static constexpr bool kWide = false;
  static GS_MEMBER bool fits(const Coef<vf>&) { return true; }
  static GS_MEMBER vf close(vf x) { return x; }
  static GS_MEMBER vf close_slope(vf x) { return x; }
};

struct curve_sigmoid : Curve<op_sigmoid> {
  static constexpr bool kSlope = false;
  static GS_MEMBER vf reach(const Coef<vf>&) { return set1(87.0f * 87.0f); }
  static GS_MEMBER void both(vf x, const Coef<vf>&, vf* y, vf* d) {
    *y = moderate::sigmoid(x);
    *d = vf{};
  }
};

struct curve_tanh : Curve<op_tanh> {
  static constexpr bool kChecked = false, kSlope = false;
  static GS_MEMBER void both(vf x, const Coef<vf>&, vf* y, vf* d) {
    *y = moderate::tanh(x);
    *d = vf{};
  }
};

struct curve_elu_input : Curve<op_elu_input> {
  static constexpr bool kChecked = false;
  static GS_MEMBER bool fits(const Coef<vf>& k) { return k.c[0] > 0; }
  static GS_MEMBER void both(vf x, const Coef<vf>& k, vf* y, vf* d) {
    vf z = k.c * x;
    *y = x >= 0 ? k.b * x : k.a * moderate::expm1(max(set1(-18.0f), z));
    *d = x > 0 ? k.b : k.a * k.c * exp(z);
  }
};
struct curve_elu : curve_elu_input {
  static constexpr bool kSlope = false;
};

struct curve_gelu : Curve<op_gelu> {
  static constexpr bool kWide = GS_VBYTES == 64;
  static constexpr float kClose = moderate::kNear, kCloseSlope = moderate::kNear;
  static GS_MEMBER vf reach(const Coef<vf>&) { return set1(moderate::kNormal * moderate::kNormal); }
  static GS_MEMBER void both(vf x, const Coef<vf>&, vf* y, vf* d) {
    *y = x * moderate::normal_cdf(x);
    *d = moderate::gelu_slope(x);
  }
  static GS_MEMBER vf close(vf x) { return x * moderate::normal_cdf(x); }
  static GS_MEMBER vf close_slope(vf x) { return moderate::gelu_slope(x); }
};

struct curve_gelu_tanh : Curve<op_gelu_tanh> {
  static GS_MEMBER vf reach(const Coef<vf>&) { return set1(9.9f * 9.9f); }
  static GS_MEMBER void both(vf x, const Coef<vf>&, vf* y, vf* d) {
    const vf one = set1((float)1.5957691216057308),
             three = set1((float)(0.044715 * 1.5957691216057308));
    vf z = x * x, p = moderate::sigmoid(x * fma(z, three, one));
    *y = x * p;
    *d = fma(x * fma(z, 3 * three, one), fnma(p, p, p), p);
  }
};

struct curve_silu : Curve<op_silu> {
  static GS_MEMBER vf reach(const Coef<vf>& k) { return square_of(86.0f, k.a); }
  static GS_MEMBER void both(vf x, const Coef<vf>& k, vf* y, vf* d) {
    vf u = k.a * x, p = moderate::sigmoid(u);
    *y = x * p;
    *d = fma(u, fnma(p, p, p), p);
  }
};

// the default, whose threshold changes nothing
struct curve_softplus : Curve<op_softplus> {
  static constexpr float kClose = moderate::kNear;
  static GS_MEMBER bool fits(const Coef<vf>& k) { return k.a[0] == 1 && k.b[0] >= 18; }
  static GS_MEMBER vf reach(const Coef<vf>&) { return set1(87.0f * 87.0f); }
  static GS_MEMBER void both(vf x, const Coef<vf>&, vf* y, vf* d) {
    *y = moderate::softplus(x);
    *d = moderate::sigmoid(x);
  }
  static GS_MEMBER vf close(vf x) { return moderate::softplus_rest(x) + max(vf{}, x); }
};

struct curve_logsigmoid : Curve<op_logsigmoid> {
  static constexpr float kClose = moderate::kNear;
  static GS_MEMBER vf reach(const Coef<vf>&) { return set1(87.0f * 87.0f); }
  static GS_MEMBER void both(vf x, const Coef<vf>&, vf* y, vf* d) {
    *y = -moderate::softplus(-x);
    *d = moderate::sigmoid(-x);
  }
  static GS_MEMBER vf close(vf x) { return min(vf{}, x) - moderate::softplus_rest(x); }
};

struct curve_mish : Curve<op_mish> {
  static GS_MEMBER vf reach(const Coef<vf>&) { return set1(40.0f * 40.0f); }
  static GS_MEMBER void both(vf x, const Coef<vf>&, vf* y, vf* d) {
    vf e = moderate::exp(x), q = fma(e, e, e + e), r = reciprocal(q + 2), t = q * r;
    *y = x * t;
    *d = fma(4 * x * (e * r), fma(e, r, r), t);
  }
};

#define GS_CURVES(X) \
  X(sigmoid)         \
  X(tanh)            \
  X(elu)             \
  X(elu_input)       \
  X(gelu)            \
  X(gelu_tanh)       \
  X(silu)            \
  X(softplus)        \
  X(logsigmoid)      \
  X(mish)
template <class Op>
struct curve_of {
  static constexpr bool kAny = false, kSlope = false;
};
#define X(name)                                            \
  template <>                                              \
  struct curve_of<op_##name> {                             \
    using Q = curve_##name;                                \
    static constexpr bool kAny = true, kSlope = Q::kSlope; \
  };
GS_CURVES(X)
#undef X

// y = f(x) and d = f'(x), any x
template <class Q>
GS_INLINE void whole(vf x, const Coef<vf>& k, vf* y, vf* d) {
  using Op = typename Q::Op;
  if (!kFused || !Q::fits(k)) {
    *y = Op::f(x, k);
    *d = Op::df(set1(1.0f), x, k);
    return;
  }
  Q::both(x, k, y, d);
  if constexpr (Q::kChecked) {
    vi in = x * x < Q::reach(k);
    if (any_lane(~in)) {
      *y = in ? *y : Op::f(x, k);
      *d = in ? *d : Op::df(set1(1.0f), x, k);
    }
  }
}
template <class Op>
GS_INLINE vf value(vf x, const Coef<vf>& k) {
  if constexpr (curve_of<Op>::kAny) {
    vf y, d;
    whole<typename curve_of<Op>::Q>(x, k, &y, &d);
    return y;
  } else {
    return Op::f(x, k);
  }
}
// s: x or y, whichever the op takes
template <class Op>
GS_INLINE vf gradient(vf dy, vf s, const Coef<vf>& k) {
  if constexpr (curve_of<Op>::kSlope) {
    vf y, d;
    whole<typename curve_of<Op>::Q>(s, k, &y, &d);
    return dy * d;
  } else {
    return Op::df(dy, s, k);
  }
}

enum { kValue = 1, kGrad = 2, kBoth = 3 };

// The same for n elements: kValue y = f(x), kGrad y = dy f'(x), kBoth y = f(x) and d = f'(x).
template <class Q, int kWhat>
__attribute__((noinline)) void curve_rest(const Coef<vf>& k, const float* x, const float* dy,
                                          float* y, float* d, int64_t n) {
  constexpr int N = simd<float>::N;
  for (int64_t i = 0; i < n; i += N) {
    const int m = n - i < N ? (int)(n - i) : N;
    vf f, slope;
    whole<Q>(load_n(x + i, m), k, &f, &slope);
    if (kWhat == kGrad) f = load_n(dy + i, m) * slope;
    store_n(y + i, f, m);
    if (kWhat == kBoth) store_n(d + i, slope, m);
  }
}

// way 0: results stay in the caches; 1: y goes past them, lines of d are asked for ahead (two
// streams past the caches are slower); 2: both go past them
template <class Q, int kWhat>
__attribute__((noinline)) void curve_run(const Coef<vf>& k, int way, const float* x,
                                         const float* dy, float* y, float* d, int64_t n) {
  using Op = typename Q::Op;
  constexpr int N = simd<float>::N, B = Q::kBlock;
  int64_t i = 0;
  for (; i + B * N <= n; i += B * N) {
    vf f[B], slope[B];
#pragma GCC unroll 8
    for (int j = 0; j < B; ++j) f[j] = load(x + i + j * N);
    constexpr float kClose = kWhat == kValue ? Q::kClose : kWhat == kGrad ? Q::kCloseSlope : 0;
    if constexpr (kClose > 0) {
      if (__builtin_expect(moderate::all_below(f, kClose), 1)) {
#pragma GCC unroll 8
        for (int j = 0; j < B; ++j) {
          if (kWhat == kValue)
            f[j] = Q::close(f[j]);
          else
            f[j] = load(dy + i + j * N) * Q::close_slope(f[j]);
        }
        if (way == 0) {
#pragma GCC unroll 8
          for (int j = 0; j < B; ++j) store(y + i + j * N, f[j]);
        } else {
#pragma GCC unroll 8
          for (int j = 0; j < B; ++j) {
            fetch(x + i + j * N);
            if (kWhat == kGrad) fetch(dy + i + j * N);
            write<true>(y + i + j * N, f[j]);
          }
        }
        continue;
      }
    }
    if constexpr (Q::kChecked) {
      vf sum = f[0] * f[0];
#pragma GCC unroll 8
      for (int j = 1; j < B; ++j) sum = fma(f[j], f[j], sum);
      if (__builtin_expect(any_lane(~(sum < Q::reach(k))), 0)) {
        if constexpr (Q::kWide && kWhat != kBoth) {
#pragma GCC unroll 8
          for (int j = 0; j < B; ++j) {
            const vi in = f[j] * f[j] < Q::reach(k);
            vf y_, d_;
            Q::both(f[j], k, &y_, &d_);
            const vf v = kWhat == kValue ? y_ : d_;
            const vf other = kWhat == kValue ? Op::f(f[j], k) : Op::df(set1(1.0f), f[j], k);
            f[j] = in ? v : other;
            if (kWhat == kGrad) f[j] = load(dy + i + j * N) * f[j];
            store(y + i + j * N, f[j]);
          }
          continue;
        }
        curve_rest<Q, kWhat>(k, x + i, kWhat == kGrad ? dy + i : dy, y + i,
                             kWhat == kBoth ? d + i : d, B * N);
        continue;
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < B; ++j) {
      Q::both(f[j], k, &f[j], &slope[j]);
      if (kWhat == kGrad) f[j] = load(dy + i + j * N) * slope[j];
    }
    if (way == 0) {
#pragma GCC unroll 8
      for (int j = 0; j < B; ++j) {
        store(y + i + j * N, f[j]);
        if (kWhat == kBoth) store(d + i + j * N, slope[j]);
      }
      continue;
    }
#pragma GCC unroll 8
    for (int j = 0; j < B; ++j) {
      fetch(x + i + j * N);
      if (kWhat == kGrad) fetch(dy + i + j * N);
      write<true>(y + i + j * N, f[j]);
      if (kWhat == kBoth) {
        if (way == 1) {
          own(d + i + j * N);
          store(d + i + j * N, slope[j]);
        } else {
          write<true>(d + i + j * N, slope[j]);
        }
      }
    }
  }
  if (i < n)
    curve_rest<Q, kWhat>(k, x + i, kWhat == kGrad ? dy + i : dy, y + i, kWhat == kBoth ? d + i : d,
                         n - i);
}

// x, y: elements b .. e of n
template <bool kStream, class T, class Op>
GS_INLINE void map_loop(const ActivationParams& p, const T* x, T* y, int64_t b, int64_t e) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const Coef<V> k{set1((T)p.a), set1((T)p.b), set1((T)p.c)};
  int64_t i = b;
  for (; i + N <= e; i += N) {
    if (kStream) fetch(x + i);
    write<kStream>(y + i, Op::f(load(x + i), k));
  }
  if (i < e) store_n(y + i, Op::f(load_n(x + i, (int)(e - i)), k), (int)(e - i));
}
template <class T, class Op>
void map(const ActivationParams& p, bool stream, const T* x, T* y, int64_t b, int64_t e) {
  if constexpr (kFused && sizeof(T) == 4 && curve_of<Op>::kAny) {
    using Q = typename curve_of<Op>::Q;
    const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
    if (Q::fits(k)) return curve_run<Q, kValue>(k, stream, x + b, nullptr, y + b, nullptr, e - b);
  }
  if (sizeof(T) == 4 && stream)
    map_loop<sizeof(T) == 4, T, Op>(p, x, y, b, e);
  else
    map_loop<false, T, Op>(p, x, y, b, e);
}

// asks: lines of both inputs are asked for ahead, which costs a core that follows them by itself a
// seventh of such a short loop, but not the loops of curve_run
template <bool kStream, class T, class Op>
GS_INLINE void map_backward_loop(const ActivationParams& p, bool asks, const T* dy, const T* s,
                                 T* dx, int64_t b, int64_t e) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const Coef<V> k{set1((T)p.a), set1((T)p.b), set1((T)p.c)};
  int64_t i = b;
  for (; i + N <= e; i += N) {
    if (kStream && asks) {
      fetch(dy + i);
      fetch(s + i);
    }
    write<kStream>(dx + i, Op::df(load(dy + i), load(s + i), k));
  }
  if (i < e) {
    int n = (int)(e - i);
    store_n(dx + i, Op::df(load_n(dy + i, n), load_n(s + i, n), k), n);
  }
}
template <class T, class Op>
void map_backward(const ActivationParams& p, bool stream, bool asks, const T* dy, const T* s, T* dx,
                  int64_t b, int64_t e) {
  if constexpr (kFused && sizeof(T) == 4 && curve_of<Op>::kSlope) {
    using Q = typename curve_of<Op>::Q;
    const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
    if (Q::fits(k)) return curve_run<Q, kGrad>(k, stream, s + b, dy + b, dx + b, nullptr, e - b);
  }
  if (sizeof(T) == 4 && stream)
    map_backward_loop<sizeof(T) == 4, T, Op>(p, asks, dy, s, dx, b, e);
  else
    map_backward_loop<false, T, Op>(p, false, dy, s, dx, b, e);
}

// Whether the output of n elements at y is to be streamed; not one that overwrites its input.
template <class T>
GS_INLINE bool past_caches(const Ctx* ctx, int64_t n, const void* y, const void* x) {
  return streams(ctx, n * (int64_t)sizeof(T), y) && y != x;
}

GS_INLINE bool is_cheap(int op) {
  return op == kAct_relu || op == kAct_leaky_relu || op == kAct_hardtanh || op == kAct_hardswish ||
         op == kAct_hardsigmoid || op == kAct_threshold || op == kAct_product;
}

// Those whose forward pass is activation_mask where they are large and have a gradient.
GS_INLINE bool has_mask(int op) {
  return op == kAct_relu || op == kAct_leaky_relu || op == kAct_hardtanh || op == kAct_threshold;
}

template <class T>
void activation(const void* params, void* const* buf, const Ctx* ctx) {
  const ActivationParams& p = *(const ActivationParams*)params;
  int64_t tasks = (p.n + kRun - 1) / kRun;
  // Those with a mask come here without a gradient, so x and y are all that has to stay near. With
  // one it is not worth it even where backward reads y: tanh 0.82x, softmax 0.7x (Zen 5, 8 MB).
  const bool alone = has_mask(p.op) && 2 * p.n * (int64_t)sizeof(T) <= p.holds;
  const bool stream = !alone && past_caches<T>(ctx, p.n, buf[1], buf[0]);
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t b = t * kRun, e = b + kRun < p.n ? b + kRun : p.n;
    switch (p.op) {
#define X(name)                                                       \
  case kAct_##name:                                                   \
    map<T, op_##name>(p, stream, (const T*)buf[0], (T*)buf[1], b, e); \
    break;
      GS_ACTIVATIONS(X)
#undef X
    }
  }
  if (stream) write_fence();
}

template <class T>
void activation_backward(const void* params, void* const* buf, const Ctx* ctx) {
  const ActivationParams& p = *(const ActivationParams*)params;
  int64_t tasks = (p.n + kRun - 1) / kRun;
  const bool stream = past_caches<T>(ctx, p.n, buf[2], buf[0]);
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t b = t * kRun, e = b + kRun < p.n ? b + kRun : p.n;
    const T *dy = (const T*)buf[0], *s = (const T*)buf[1];
    switch (p.op) {
#define X(name)                                                                    \
  case kAct_##name:                                                                \
    map_backward<T, op_##name>(p, stream, !ctx->follows, dy, s, (T*)buf[2], b, e); \
    break;
      GS_ACTIVATIONS(X)
#undef X
    }
  }
  if (stream) write_fence();
}

// ---- forward that saves a bit an element: whether the derivative is 1

constexpr int kWord = 16 / simd<float>::N;  // vectors of a word of the mask

template <int kOp>
GS_INLINE vi steep(vf x, const Coef<vf>& k) {
  if (kOp == kAct_relu) return ~(x <= 0);
  if (kOp == kAct_leaky_relu) return x > 0;
  if (kOp == kAct_hardtanh) return ~((x <= k.a) | (x >= k.b));
  return ~(x <= k.a);
}

template <class Op, int kOp, bool kStream>
GS_INLINE void mask_loop(const ActivationParams& p, const float* x, float* y, uint16_t* bits,
                         int64_t b, int64_t e) {
  constexpr int N = simd<float>::N;
  const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
  int64_t i = b;
  for (; i + 16 <= e; i += 16) {
    uint32_t word = 0;
#pragma GCC unroll 4
    for (int j = 0; j < kWord; ++j) {
      vf v = load(x + i + j * N);
      if (kStream) fetch(x + i + j * N);
      write<kStream>(y + i + j * N, Op::f(v, k));
      word |= lane_bits(steep<kOp>(v, k)) << (j * N);
    }
    bits[i / 16] = (uint16_t)word;
  }
  if (i < e) {
    uint32_t word = 0;
    for (int j = 0; j < kWord; ++j) {
      int n = (int)(e - i) - j * N;
      if (n <= 0) break;
      n = n < N ? n : N;
      vf v = load_n(x + i + j * N, n);
      store_n(y + i + j * N, Op::f(v, k), n);
      word |= lane_bits(steep<kOp>(v, k)) << (j * N);
    }
    bits[i / 16] = (uint16_t)word;
  }
}

template <class Op, int kOp>
void mask_runs(const ActivationParams& p, void* const* buf, const Ctx* ctx) {
  const float* x = (const float*)buf[0];
  float* y = (float*)buf[1];
  uint16_t* bits = (uint16_t*)buf[2];
  const bool stream = past_caches<float>(ctx, p.n, y, x);
  for (int64_t b = ctx->tid * kRun; b < p.n; b += ctx->nt * kRun) {
    int64_t e = b + kRun < p.n ? b + kRun : p.n;
    if (stream)
      mask_loop<Op, kOp, true>(p, x, y, bits, b, e);
    else
      mask_loop<Op, kOp, false>(p, x, y, bits, b, e);
  }
  if (stream) write_fence();
}

void activation_mask(const void* params, void* const* buf, const Ctx* ctx) {
  const ActivationParams& p = *(const ActivationParams*)params;
  switch (p.op) {
    case kAct_relu:
      return mask_runs<op_relu, kAct_relu>(p, buf, ctx);
    case kAct_leaky_relu:
      return mask_runs<op_leaky_relu, kAct_leaky_relu>(p, buf, ctx);
    case kAct_hardtanh:
      return mask_runs<op_hardtanh, kAct_hardtanh>(p, buf, ctx);
    case kAct_threshold:
      return mask_runs<op_threshold, kAct_threshold>(p, buf, ctx);
  }
}

template <bool kStream>
GS_INLINE void mask_backward_loop(const float* dy, const uint16_t* bits, float* dx, float slope,
                                  int64_t b, int64_t e) {
  constexpr int N = simd<float>::N;
  const vf a = set1(slope);
  const vi some = set1((int32_t)(slope == 0 ? 0 : -1));  // a slope of 0 gives 0, also for NaN
  int64_t i = b;
  for (; i + 16 <= e; i += 16) {
    uint32_t word = bits[i / 16];
#pragma GCC unroll 4
    for (int j = 0; j < kWord; ++j) {
      if (kStream) fetch(dy + i + j * N);
      vf g = load(dy + i + j * N), low = (vf)((vi)(a * g) & some);
      write<kStream>(dx + i + j * N, lanes_of(word >> (j * N)) ? g : low);
    }
  }
  for (int j = 0; j < kWord && i + j * N < e; ++j) {
    int n = e - i - j * N < N ? (int)(e - i - j * N) : N;
    vf g = load_n(dy + i + j * N, n), low = (vf)((vi)(a * g) & some);
    store_n(dx + i + j * N, lanes_of((uint32_t)bits[i / 16] >> (j * N)) ? g : low, n);
  }
}

void activation_mask_backward(const void* params, void* const* buf, const Ctx* ctx) {
  const ActivationParams& p = *(const ActivationParams*)params;
  const float* dy = (const float*)buf[0];
  const uint16_t* bits = (const uint16_t*)buf[1];
  float *dx = (float*)buf[2], slope = (float)p.a;
  const bool stream = past_caches<float>(ctx, p.n, dx, dy);
  for (int64_t b = ctx->tid * kRun; b < p.n; b += ctx->nt * kRun) {
    int64_t e = b + kRun < p.n ? b + kRun : p.n;
    if (stream)
      mask_backward_loop<true>(dy, bits, dx, slope, b, e);
    else
      mask_backward_loop<false>(dy, bits, dx, slope, b, e);
  }
  if (stream) write_fence();
}

// ---- forward that saves the derivative

template <class Op>
void slope_runs(const ActivationParams& p, void* const* buf, const Ctx* ctx) {
  using Q = typename curve_of<Op>::Q;
  const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
  const float* x = (const float*)buf[0];
  float *y = (float*)buf[1], *d = (float*)buf[2];
  const int64_t bytes = p.n * (int64_t)sizeof(float);
  const bool stream = past_caches<float>(ctx, p.n, y, x) && past_caches<float>(ctx, p.n, d, x);
  // a cache shared by the cores is taken to hold what is less than eight times the threshold
  const int way = !stream ? 0 : bytes / 8 < ctx->stream ? 1 : 2;
  for (int64_t b = ctx->tid * kRun; b < p.n; b += ctx->nt * kRun) {
    int64_t e = b + kRun < p.n ? b + kRun : p.n;
    if (kFused)
      curve_run<Q, kBoth>(k, way, x + b, nullptr, y + b, d + b, e - b);
    else
      curve_rest<Q, kBoth>(k, x + b, nullptr, y + b, d + b, e - b);
  }
  if (stream) write_fence();
}

void activation_slope(const void* params, void* const* buf, const Ctx* ctx) {
  const ActivationParams& p = *(const ActivationParams*)params;
  switch (p.op) {
    case kAct_gelu:
      return slope_runs<op_gelu>(p, buf, ctx);
    case kAct_gelu_tanh:
      return slope_runs<op_gelu_tanh>(p, buf, ctx);
    case kAct_silu:
      return slope_runs<op_silu>(p, buf, ctx);
    case kAct_mish:
      return slope_runs<op_mish>(p, buf, ctx);
  }
}

// ---- a piece of a product

constexpr int64_t kPiece = 1024, kPieceCols = 256;

// fn(x, j, n, &y, &d): x are n elements of c, j where they are. Results go through memory of our
// own first: rows are often a multiple of 4 KB apart, and a load waits for the stores before it
// that end in the same 12 bits.
template <bool kTwo, class Fn>
GS_INLINE void piece(const PieceParams& p, float* c, float* other, Fn fn) {
  constexpr int N = simd<float>::N;
  alignas(64) float ys[kPiece], ds[kTwo ? kPiece : N];
  for (int64_t j0 = 0; j0 < p.cols; j0 += kPieceCols) {
    const int64_t cols = p.cols - j0 < kPieceCols ? p.cols - j0 : kPieceCols;
    const int64_t width = (cols + N - 1) / N * N, height = kPiece / width;
    for (int64_t i0 = 0; i0 < p.rows; i0 += height) {
      const int64_t rows = p.rows - i0 < height ? p.rows - i0 : height;
      const int64_t start = i0 * p.stride + j0;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < width; j += N) {
          const int n = cols - j < N ? (int)(cols - j) : N;
          const int64_t at = start + i * p.stride + j;
          vf y, d = {};
          fn(n == N ? load(c + at) : load_n(c + at, n), at, n, &y, &d);
          store(ys + i * width + j, y);
          if (kTwo) store(ds + i * width + j, d);
        }
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < width; j += N) {
          const int n = cols - j < N ? (int)(cols - j) : N;
          const int64_t at = start + i * p.stride + j;
          if (n == N) {
            store(c + at, load(ys + i * width + j));
            if (kTwo) store(other + at, load(ds + i * width + j));
          } else {
            store_n(c + at, load(ys + i * width + j), n);
            if (kTwo) store_n(other + at, load(ds + i * width + j), n);
          }
        }
    }
  }
}

template <class Op>
void piece_value(const PieceParams& p, float* c, float* other) {
  const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
  if (other)
    piece<true>(
        p, c, other, [&](vf x, int64_t, int, vf* y, vf* d) __attribute__((always_inline)) {
          *y = value<Op>(x, k);
          *d = x;
        });
  else
    piece<false>(
        p, c, other, [&](vf x, int64_t, int, vf* y, vf*) __attribute__((always_inline)) {
          *y = value<Op>(x, k);
        });
}

template <class Op>
void piece_grad(const PieceParams& p, float* c, float* other) {
  constexpr int N = simd<float>::N;
  const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
  piece<false>(
      p, c, other, [&](vf x, int64_t at, int n, vf* y, vf*) __attribute__((always_inline)) {
        *y = gradient<Op>(x, n == N ? load(other + at) : load_n(other + at, n), k);
      });
}

template <class Op>
void piece_slope(const PieceParams& p, float* c, float* other) {
  const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
  piece<true>(
      p, c, other, [&](vf x, int64_t, int, vf* y, vf* d) __attribute__((always_inline)) {
        whole<typename curve_of<Op>::Q>(x, k, y, d);
      });
}

void piece_sum(const PieceParams& p, float* c, float* other) {
  constexpr int N = simd<float>::N;
  piece<false>(
      p, c, other, [&](vf x, int64_t at, int n, vf* y, vf*) __attribute__((always_inline)) {
        *y = x + (n == N ? load(other + at) : load_n(other + at, n));
      });
}

void activation_piece(const void* params, void* const* buf, const Ctx*) {
  const PieceParams& p = *(const PieceParams*)params;
  float *c = (float*)buf[0], *other = (float*)buf[1];
  if (p.kind == kPieceSum) return piece_sum(p, c, other);
  if (p.kind == kPieceSlope) switch (p.op) {
      case kAct_gelu:
        return piece_slope<op_gelu>(p, c, other);
      case kAct_gelu_tanh:
        return piece_slope<op_gelu_tanh>(p, c, other);
      case kAct_silu:
        return piece_slope<op_silu>(p, c, other);
      case kAct_mish:
        return piece_slope<op_mish>(p, c, other);
    }
  switch (p.op) {
#define X(name)                            \
  case kAct_##name:                        \
    if (p.kind == kPieceGrad)              \
      piece_grad<op_##name>(p, c, other);  \
    else                                   \
      piece_value<op_##name>(p, c, other); \
    break;
    GS_ACTIVATIONS(X)
#undef X
  }
}

void piece_plan(const void* params, Plan* plan) {
  const PieceParams& p = *(const PieceParams*)params;
  plan->work = p.rows * p.cols / 2;
}

template <class T>
void activation_plan(const void* params, Plan* plan) {
  const ActivationParams& p = *(const ActivationParams*)params;
  bool cheap = is_cheap(p.op);
  plan->tasks = (p.n + kRun - 1) / kRun;
  plan->work = cheap ? p.n / 8 * (int64_t)sizeof(T) / 4 : sizeof(T) == 8 ? p.n * 8 : p.n / 2;
}

// ---- randomised leaky ReLU: one Philox word an element

template <class T, bool kBackward>
void rrelu(const void* params, void* const* buf, const Ctx* ctx) {
  const RReluParams& p = *(const RReluParams*)params;
  const PhiloxStream stream(p.seed, ctx->read(p.counter));
  const T* x = (const T*)buf[kBackward ? 1 : 0];
  const T* from = (const T*)buf[0];
  T* out = (T*)buf[kBackward ? 2 : 1];
  const T low = (T)p.lower, width = (T)(p.upper - p.lower);
  constexpr int N = simd<float>::N;
  int64_t tasks = (p.n + kRun - 1) / kRun;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t b = t * kRun, e = b + kRun < p.n ? b + kRun : p.n;
    for (int64_t i = b; i < e; i += 4 * N) {
      vu w[4];
      float u[4 * N];
      stream.next4((uint64_t)i, w);
      for (int j = 0; j < 4; ++j) store(u + j * N, uniform24(w[j]));
      int64_t m = e - i < 4 * N ? e - i : 4 * N;
      for (int64_t j = 0; j < m; ++j)
        out[i + j] = x[i + j] > 0 ? from[i + j] : from[i + j] * fma((T)u[j], width, low);
    }
  }
}

template <class T>
void rrelu_plan(const void* params, Plan* plan) {
  const RReluParams& p = *(const RReluParams*)params;
  plan->tasks = (p.n + kRun - 1) / kRun;
  plan->work = p.n;
}

// ---- PReLU: x is (rows, channels). Rows are cut into groups by shape; each group leaves its sums
// of dw in scratch, and the groups are added in order.

GS_INLINE int64_t prelu_group(const PReluParams& p) {
  int64_t g = kRun / p.channels;
  if (p.channels == 1) return kRun;
  g = g < 1 ? 1 : g;
  int64_t most = 256;  // at most this many groups, so that scratch stays small
  int64_t least = (p.rows + most - 1) / most;
  return g > least ? g : least;
}
GS_INLINE int64_t prelu_tasks(const PReluParams& p) {
  int64_t g = prelu_group(p);
  return (p.rows + g - 1) / g;
}

template <class T>
void prelu(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const PReluParams& p = *(const PReluParams*)params;
  const T *x = (const T*)buf[0], *w = (const T*)buf[1];
  T* y = (T*)buf[2];
  int64_t group = prelu_group(p), tasks = prelu_tasks(p), C = p.channels;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t b = t * group, e = b + group < p.rows ? b + group : p.rows;
    if (C == 1) {
      ActivationParams q{p.rows, 0, (double)w[0], 0, 0};
      map<T, op_leaky_relu>(q, false, x, y, b, e);
      continue;
    }
    for (int64_t r = b; r < e; ++r) {
      const T* xr = x + r * C;
      T* yr = y + r * C;
      for (int64_t c = 0; c < C; c += N) {
        int n = C - c < N ? (int)(C - c) : N;
        V v = n == N ? load(xr + c) : load_n(xr + c, n);
        V a = n == N ? load(w + c) : load_n(w + c, n);
        v = v > 0 ? v : a * v;
        if (n == N)
          store(yr + c, v);
        else
          store_n(yr + c, v, n);
      }
    }
  }
}

template <class T>
void prelu_backward(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const PReluParams& p = *(const PReluParams*)params;
  const T *dy = (const T*)buf[0], *x = (const T*)buf[1], *w = (const T*)buf[2];
  T *dx = (T*)buf[3], *dw = (T*)buf[4], *part = (T*)ctx->scratch;
  int64_t group = prelu_group(p), tasks = prelu_tasks(p), C = p.channels;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t b = t * group, e = b + group < p.rows ? b + group : p.rows;
    if (C == 1) {
      constexpr int W = Sum16<T>::W;
      Sum16<T> sum;
      sum.clear();
      V a = set1(w[0]);
      int64_t i = b;
      for (; i + 16 <= e; i += 16) {
#pragma GCC unroll 8
        for (int j = 0; j < W; ++j) {
          V g = load(dy + i + j * N), v = load(x + i + j * N);
          sum.v[j] += v > 0 ? V{} : v * g;
          if (dx) store(dx + i + j * N, v > 0 ? g : a * g);
        }
      }
      T rest = 0;
      for (; i < e; ++i) {
        if (!(x[i] > 0)) rest += x[i] * dy[i];
        if (dx) dx[i] = x[i] > 0 ? dy[i] : w[0] * dy[i];
      }
      part[t] = sum.total() + rest;
      continue;
    }
    T* pt = part + t * C;
    for (int64_t c = 0; c < C; c += N) {
      int n = C - c < N ? (int)(C - c) : N;
      V sum = {}, a = load_n(w + c, n);
      for (int64_t r = b; r < e; ++r) {
        V g = n == N ? load(dy + r * C + c) : load_n(dy + r * C + c, n);
        V v = n == N ? load(x + r * C + c) : load_n(x + r * C + c, n);
        sum += v > 0 ? V{} : v * g;
        if (dx) store_n(dx + r * C + c, v > 0 ? g : a * g, n);
      }
      store_n(pt + c, sum, n);
    }
  }
  ctx->sync();
  if (!dw) return;
  for (int64_t c = ctx->tid; c < C; c += ctx->nt) {
    double s = 0;
    for (int64_t t = 0; t < tasks; ++t) s += (double)part[t * C + c];
    dw[c] = (T)s;
  }
}

template <class T>
void prelu_plan(const void* params, Plan* plan) {
  const PReluParams& p = *(const PReluParams*)params;
  plan->tasks = prelu_tasks(p);
  plan->work = p.rows * p.channels / 4;
}
template <class T>
void prelu_backward_plan(const void* params, Plan* plan) {
  const PReluParams& p = *(const PReluParams*)params;
  prelu_plan<T>(params, plan);
  plan->scratch = (size_t)(prelu_tasks(p) * p.channels) * sizeof(T);
}

#define GS_BOTH(name, f, plan) \
  {name, kF32, f<float>, plan<float>}, { name, kF64, f<double>, plan<double> }
template <class T>
void rrelu_forward(const void* params, void* const* buf, const Ctx* ctx) {
  rrelu<T, false>(params, buf, ctx);
}
template <class T>
void rrelu_backward(const void* params, void* const* buf, const Ctx* ctx) {
  rrelu<T, true>(params, buf, ctx);
}
const KernelEntry entries[] = {
    GS_BOTH("activation", activation, activation_plan),
    GS_BOTH("activation_backward", activation_backward, activation_plan),
    {"activation_mask", kF32, activation_mask, activation_plan<float>},
    {"activation_mask_backward", kF32, activation_mask_backward, activation_plan<float>},
    {"activation_slope", kF32, activation_slope, activation_plan<float>},
    {"activation_piece", kF32, activation_piece, piece_plan},
    GS_BOTH("rrelu", rrelu_forward, rrelu_plan),
    GS_BOTH("rrelu_backward", rrelu_backward, rrelu_plan),
    GS_BOTH("prelu", prelu, prelu_plan),
    GS_BOTH("prelu_backward", prelu_backward, prelu_backward_plan),
};

}  // namespace

extern const KernelList activation_kernels;
const KernelList activation_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
