// float32 functions with exp: several vectors at a time.
//
// A curve is the short form of an op, right where fits(k) and, if kChecked, x^2 < reach(k). Blocks
// of kBlock vectors with a larger or NaN argument, and the ends of arrays, go vector by vector
// through `whole`, which takes each lane from the short form or from the op: every element has the
// same bits wherever it lies. activation.cpp is compiled with the scheduler before register
// allocation (cmake/isa.cmake), which interleaves the vectors of a block.
#pragma once
#include "activation/functions.h"
#include "simd/own.h"

namespace gs {
namespace GS_ISA {
namespace {

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

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
