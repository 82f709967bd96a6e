// y = f(x): one read and one write an element, 8 bytes in float32. exp-like functions are bound by
// their polynomials (6 to 20 cycles a vector, simd/vmath.h). Walked by loops.h.
#include "loops.h"
#include "power.h"
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {
namespace {

typedef ElementwiseParams P;

#define GS_UNARY(Name, expr)             \
  struct Name {                          \
    GS_MEMBER explicit Name(const P&) {} \
    template <class V>                   \
    GS_MEMBER V operator()(V a) const {  \
      return expr;                       \
    }                                    \
  };
GS_UNARY(Neg, -a)
GS_UNARY(Abs, abs(a))
GS_UNARY(Sign, a == a ? (a == V{} ? V{} : copysign(set1((typename lane<V>::T)1), a)) : a)
GS_UNARY(Square, a* a)
GS_UNARY(Cube, a* a* a)
GS_UNARY(Exp, exp(a))
GS_UNARY(Expm1, expm1(a))
GS_UNARY(Log, log(a))
GS_UNARY(Log1p, log1p(a))
GS_UNARY(Sqrt, sqrt(a))
GS_UNARY(Rsqrt, 1 / sqrt(a))
GS_UNARY(Reciprocal, 1 / a)
GS_UNARY(Sin, sin(a))
GS_UNARY(Cos, cos(a))

struct Tan {
  GS_MEMBER explicit Tan(const P&) {}
  GS_MEMBER vf operator()(vf x) const {
    vf s, c;
    sincos(x, &s, &c);
    return s / c;
  }
  GS_MEMBER vd operator()(vd x) const {
    vd y;
    for (int i = 0; i < simd<double>::N; ++i) y[i] = ::tan(x[i]);
    return y;
  }
};

// log2: exact powers of two stay exact. float32 in float64, so that it is rounded nearly once.
struct Log2 {
  GS_MEMBER explicit Log2(const P&) {}
  GS_MEMBER static vd finite(vd x) {
    vd e, m = ln_mantissa(x, &e);
    return fma(m, set1(1.44269504088896340736), e);
  }
  GS_MEMBER vf operator()(vf x) const {
    vf a = (x > 0.0f) & (x < __builtin_inff()) ? x : set1(1.0f);
    vf y = narrow(finite(widen_lo(a)), finite(widen_hi(a)));
    y = x > 0.0f ? y : (x == 0.0f ? set1(-__builtin_inff()) : set1(__builtin_nanf("")));
    return x < __builtin_inff() ? y : x;
  }
  GS_MEMBER vd operator()(vd x) const {
    vd y;
    for (int i = 0; i < simd<double>::N; ++i) y[i] = ::log2(x[i]);
    return y;
  }
};

struct Clamp {
  double lo, hi;
  GS_MEMBER explicit Clamp(const P& p) : lo(p.constant[0]), hi(p.constant[1]) {}
  template <class V>
  GS_MEMBER V operator()(V x) const {
    typedef typename lane<V>::T T;
    return min(set1((T)hi), max(set1((T)lo), x));  // a NaN is the second operand and passes
  }
};

// Rounding, and integers: left to the compiler's vectoriser.
#define GS_EACH(Name, f32, f64)                                    \
  struct Name {                                                    \
    GS_MEMBER explicit Name(const P&) {}                           \
    GS_MEMBER float operator()(float a) const { return f32(a); }   \
    GS_MEMBER double operator()(double a) const { return f64(a); } \
  };
GS_EACH(Floor, __builtin_floorf, __builtin_floor)
GS_EACH(Ceil, __builtin_ceilf, __builtin_ceil)
GS_EACH(Round, __builtin_rintf, __builtin_rint)
GS_EACH(Trunc, __builtin_truncf, __builtin_trunc)

#define GS_INT(Name, expr)               \
  struct Name {                          \
    GS_MEMBER explicit Name(const P&) {} \
    template <class T>                   \
    GS_MEMBER T operator()(T a) const {  \
      return expr;                       \
    }                                    \
  };
GS_INT(NegInt, (T)(0 - (uint64_t)a))
GS_INT(AbsInt, a < 0 ? (T)(0 - (uint64_t)a) : a)
GS_INT(SignInt, (T)((a > 0) - (a < 0)))
GS_INT(SquareInt, (T)((uint64_t)a*(uint64_t)a))

struct ClampInt {
  int64_t lo, hi;
  GS_MEMBER explicit ClampInt(const P& p) : lo(p.iscalar[0]), hi(p.iscalar[1]) {}
  template <class T>
  GS_MEMBER T operator()(T a) const {
    int64_t x = a < lo ? lo : a;
    return (T)(x > hi ? hi : x);
  }
};

template <class T>
void unary(const void* params, void* const* buf, const Ctx* ctx) {
  static const BlockFn table[] = {
      block1<Neg, T>,           block1<Abs, T>,          block1<Sign, T>,
      block1<Square, T>,        block1<Exp, T>,          block1<Expm1, T>,
      block1<Log, T>,           block1<Log1p, T>,        block1<Log2, T>,
      block1<Sqrt, T>,          block1<Rsqrt, T>,        block1<Reciprocal, T>,
      block1<Sin, T>,           block1<Cos, T>,          block1<Tan, T>,
      block1_each<Floor, T, T>, block1_each<Ceil, T, T>, block1_each<Round, T, T>,
      block1_each<Trunc, T, T>, block1<Cube, T>,         block1<Clamp, T>,
  };
  static_assert(sizeof(table) / sizeof(table[0]) == kUnaryCount, "one function for each UnaryOp");
  const P& p = *(const P*)params;
  const int64_t item[] = {sizeof(T), sizeof(T)};
  walk(p, buf, ctx, 1, item, nullptr, table[p.op]);
}

template <class T>
void unary_int(const void* params, void* const* buf, const Ctx* ctx) {
  static const BlockFn table[] = {block1_each<NegInt, T, T>, block1_each<AbsInt, T, T>,
                                  block1_each<SignInt, T, T>, block1_each<SquareInt, T, T>};
  static_assert(sizeof(table) / sizeof(table[0]) == kUnaryAll, "one function for each op");
  const P& p = *(const P*)params;
  const int64_t item[] = {sizeof(T), sizeof(T)};
  walk(p, buf, ctx, 1, item, nullptr, p.op == kClamp ? block1_each<ClampInt, T, T> : table[p.op]);
}

void unary_plan(const void* params, Plan* plan) {
  const P& p = *(const P*)params;
  bool slow =
      p.op >= kExp && p.op <= kTan && p.op != kSqrt && p.op != kReciprocal && p.op != kRsqrt;
  walk_plan(p, slow ? 12 : 3, plan);
}

const KernelEntry entries[] = {
    {"unary", kF32, unary<float>, unary_plan},
    {"unary", kF64, unary<double>, unary_plan},
    {"unary", kI32, unary_int<int32_t>, unary_plan},
    {"unary", kI64, unary_int<int64_t>, unary_plan},
    {"unary", kU8, unary_int<uint8_t>, unary_plan},
};

}  // namespace

extern const KernelList elementwise_unary_kernels;
const KernelList elementwise_unary_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
