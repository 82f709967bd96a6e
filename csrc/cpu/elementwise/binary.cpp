// y = f(a, b): arithmetic and the gradients that are products of the output's gradient with a
// function of one saved array. One read each of a and b, one write: 12 bytes an element in float32;
// the floor is the bandwidth of the level of memory the arrays live in. Walked by loops.h.
#include "loops.h"
#include "power.h"
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {
namespace {

typedef ElementwiseParams P;

// A functor of the constants in p; operator() works on vectors of either dtype.
#define GS_BINARY(Name, expr)                \
  struct Name {                              \
    GS_MEMBER explicit Name(const P&) {}     \
    template <class V>                       \
    GS_MEMBER V operator()(V a, V b) const { \
      return expr;                           \
    }                                        \
  };
// the same with the constant c
#define GS_BINARY_C(Name, expr)                                \
  struct Name {                                                \
    double c0;                                                 \
    GS_MEMBER explicit Name(const P& p) : c0(p.constant[0]) {} \
    template <class V>                                         \
    GS_MEMBER V operator()(V a, V b) const {                   \
      const V c = set1((typename lane<V>::T)c0);               \
      return expr;                                             \
    }                                                          \
  };

GS_BINARY(Add, a + b)
GS_BINARY(Sub, a - b)
GS_BINARY(Mul, a* b)
GS_BINARY(Div, a / b)
GS_BINARY(Maximum, a != a ? a : max(a, b))
GS_BINARY(Minimum, a != a ? a : min(a, b))
GS_BINARY(Pow, power(a, b))
GS_BINARY_C(AddScaled, fma(c, b, a))
GS_BINARY_C(MulScaled, c* a* b)
GS_BINARY(AbsGrad, b == b ? (b == V{} ? V{} : (b > V{} ? a : -a)) : b)
GS_BINARY(Log1pGrad, a / (b + 1))
GS_BINARY(Expm1Grad, fma(a, b, a))
GS_BINARY(SqrtGrad, a / (b + b))
GS_BINARY(RsqrtGrad, a*(b* b* b) * (typename lane<V>::T)(-0.5))
GS_BINARY(ReciprocalGrad, -a*(b* b))
GS_BINARY(SinGrad, a* cos(b))
GS_BINARY(CosGrad, -a* sin(b))
GS_BINARY(TanGrad, a*(b* b + 1))
GS_BINARY_C(PowGradScalar, a*(c* power(b, c - 1)))
GS_BINARY_C(ExpGradScalar, a* b* c)
GS_BINARY(MulOneMinus, a*(1 - b))

// a + w (b - a), exact at both ends
struct Lerp {
  double w;
  GS_MEMBER explicit Lerp(const P& p) : w(p.constant[0]) {}
  template <class V>
  GS_MEMBER V operator()(V a, V b) const {
    typedef typename lane<V>::T T;
    return w < 0.5 ? fma(set1((T)w), b - a, a) : fnma(set1((T)(1.0 - w)), b - a, b);
  }
};

struct ClampGrad {
  double lo, hi;
  GS_MEMBER explicit ClampGrad(const P& p) : lo(p.constant[0]), hi(p.constant[1]) {}
  template <class V>
  GS_MEMBER V operator()(V g, V x) const {
    typedef typename lane<V>::T T;
    return ((x >= set1((T)lo)) & (x <= set1((T)hi))) ? g : V{};
  }
};

// ---- integers, and float division with a floor; a quotient by the integer zero is 0
GS_INLINE float mod(float a, float b) { return __builtin_fmodf(a, b); }
GS_INLINE double mod(double a, double b) { return __builtin_fmod(a, b); }
GS_INLINE float floor_of(float a) { return __builtin_floorf(a); }
GS_INLINE double floor_of(double a) { return __builtin_floor(a); }

// a = q b + r with q = trunc(a / b), r with the sign of a, as vectors: the rounded quotient is off
// by one at most, and then a - q b is exact with a fused multiply-add, so it tells. Lanes that are
// not `plain` (large quotients, zero, infinity, NaN; all of them without such an instruction) hold
// nothing of use.
#if defined(__FMA__) || defined(__ARM_NEON)
constexpr bool kDivides = true;
#else
constexpr bool kDivides = false;
#endif
template <class V>
GS_INLINE auto divide(V a, V b, V* q, V* r) {
  typedef typename lane<V>::T T;
  const V x = a / b;
  const auto plain = (abs(x) < (T)2097152) & (abs(b) < (T)__builtin_inff());
  V n = __builtin_convertvector(__builtin_convertvector(plain ? x : V{}, decltype(x == x)), V);
  V rest = fnma(n, b, a);
  const auto past = (rest != V{}) & ((rest < V{}) != (a < V{}));
  *q = past ? n - copysign(set1((T)1), x) : n;
  *r = copysign(past ? rest + copysign(b, a) : rest, a);
  return plain;
}
template <class M>
GS_INLINE bool all_plain(M m) {
  for (size_t i = 0; i < sizeof(M) / sizeof(m[0]); ++i)
    if (!m[i]) return false;
  return true;
}
GS_INLINE bool all_plain(vi m) { return !any_lane(~m); }

struct Remainder {
  GS_MEMBER explicit Remainder(const P&) {}
  template <class V, class M>
  GS_MEMBER static V join(V b, V, V r, M other_sign) {
    return other_sign ? r + b : r;
  }
  template <class T>
  GS_MEMBER T operator()(T a, T b) const {
    if ((T)0.5 != (T)0) {
      T r = each_mod(a, b);
      return r != 0 && ((r < 0) != (b < 0)) ? r + b : r;
    }
    if (b == 0 || ((T)-1 < 0 && b == (T)-1)) return 0;
    T r = int_mod(a, b);
    return r != 0 && ((r < 0) != (b < 0)) ? (T)(r + b) : r;
  }
  GS_MEMBER static float each_mod(float a, float b) { return mod(a, b); }
  GS_MEMBER static double each_mod(double a, double b) { return mod(a, b); }
  template <class T>
  GS_MEMBER static T each_mod(T a, T) {
    return a;
  }
  GS_MEMBER static float int_mod(float a, float) { return a; }
  GS_MEMBER static double int_mod(double a, double) { return a; }
  template <class T>
  GS_MEMBER static T int_mod(T a, T b) {
    return a % b;
  }
};
// The same for floats, on vectors.
template <class One>
struct Divided {
  const One one;
  GS_MEMBER explicit Divided(const P& p) : one(p) {}
  template <class V>
  GS_MEMBER V operator()(V a, V b) const {
    V y{};
    if (kDivides) {
      V q, r;
      const auto plain = divide(a, b, &q, &r);
      y = One::join(b, q, r, (r != V{}) & ((r < V{}) != (b < V{})));
      if (__builtin_expect(all_plain(plain), 1)) return y;
      for (size_t i = 0; i < sizeof(V) / sizeof(y[0]); ++i)
        if (!plain[i]) y[i] = one(a[i], b[i]);
      return y;
    }
    for (size_t i = 0; i < sizeof(V) / sizeof(y[0]); ++i) y[i] = one(a[i], b[i]);
    return y;
  }
};
struct FloorDivide {
  GS_MEMBER explicit FloorDivide(const P&) {}
  template <class V, class M>
  GS_MEMBER static V join(V b, V q, V, M other_sign) {
    V y = other_sign ? q - 1 : q;
    return y == V{} ? copysign(V{}, b) : y;
  }
  GS_MEMBER float operator()(float a, float b) const { return quotient(a, b); }
  GS_MEMBER double operator()(double a, double b) const { return quotient(a, b); }
  template <class T>
  GS_MEMBER static T quotient(T a, T b) {
    if (b == 0) return a / b;
    T r = mod(a, b), q = (a - r) / b;
    if (r != 0 && ((r < 0) != (b < 0))) q -= 1;
    T f = floor_of(q);
    return q - f > (T)0.5 ? f + 1 : f;
  }
  template <class T>
  GS_MEMBER T operator()(T a, T b) const {
    if (b == 0) return 0;
    if (b == (T)-1 && (T)-1 < 0) return (T)(0 - wide(a));
    T q = a / b;
    return (a % b != 0 && ((a < 0) != (b < 0))) ? (T)(q - 1) : q;
  }
  template <class T>
  GS_MEMBER static uint64_t wide(T a) {
    return (uint64_t)a;
  }
};

// Sums and products wrap around, as NumPy's do: computed without sign.
#define GS_EACH(Name, expr)                  \
  struct Name {                              \
    GS_MEMBER explicit Name(const P&) {}     \
    template <class T>                       \
    GS_MEMBER T operator()(T a, T b) const { \
      return expr;                           \
    }                                        \
  };
GS_EACH(AddEach, (T)((uint64_t)a + (uint64_t)b))
GS_EACH(SubEach, (T)((uint64_t)a - (uint64_t)b))
GS_EACH(MulEach, (T)((uint64_t)a*(uint64_t)b))
GS_EACH(MaximumEach, a > b ? a : b)
GS_EACH(MinimumEach, a < b ? a : b)

template <class T>
void binary(const void* params, void* const* buf, const Ctx* ctx) {
  static const BlockFn table[] = {
      block2<Add, T>,
      block2<Sub, T>,
      block2<Mul, T>,
      block2<Div, T>,
      block2<Maximum, T>,
      block2<Minimum, T>,
      block2<Divided<Remainder>, T>,
      block2<Divided<FloorDivide>, T>,
      block2<Pow, T>,
      block2<AddScaled, T>,
      block2<Lerp, T>,
      block2<MulScaled, T>,
      block2<AbsGrad, T>,
      block2<Log1pGrad, T>,
      block2<Expm1Grad, T>,
      block2<SqrtGrad, T>,
      block2<RsqrtGrad, T>,
      block2<ReciprocalGrad, T>,
      block2<SinGrad, T>,
      block2<CosGrad, T>,
      block2<TanGrad, T>,
      block2<ClampGrad, T>,
      block2<PowGradScalar, T>,
      block2<ExpGradScalar, T>,
      block2<MulOneMinus, T>,
  };
  static_assert(sizeof(table) / sizeof(table[0]) == kBinaryCount, "one function for each BinaryOp");
  const P& p = *(const P*)params;
  const Numbers<T> numbers(p);
  const int64_t item[] = {sizeof(T), sizeof(T), sizeof(T)};
  walk(p, buf, ctx, 2, item, numbers.at, table[p.op]);
}

template <class T>
void binary_int(const void* params, void* const* buf, const Ctx* ctx) {
  static const BlockFn table[] = {
      block2_each<AddEach, T, T>,     block2_each<SubEach, T, T>,
      block2_each<MulEach, T, T>,     nullptr,
      block2_each<MaximumEach, T, T>, block2_each<MinimumEach, T, T>,
      block2_each<Remainder, T, T>,   block2_each<FloorDivide, T, T>,
  };
  static_assert(sizeof(table) / sizeof(table[0]) == kBinaryAll, "one function for each op");
  const P& p = *(const P*)params;
  const Numbers<T> numbers(p);
  const int64_t item[] = {sizeof(T), sizeof(T), sizeof(T)};
  walk(p, buf, ctx, 2, item, numbers.at, table[p.op]);
}

void binary_plan(const void* params, Plan* plan) {
  const P& p = *(const P*)params;
  bool slow = p.op == kRemainder || p.op == kFloorDivide || p.op == kPow || p.op == kSinGrad ||
              p.op == kCosGrad || p.op == kPowGradScalar;
  walk_plan(p, slow ? 40 : 4, plan);
}

const KernelEntry entries[] = {
    {"binary", kF32, binary<float>, binary_plan},
    {"binary", kF64, binary<double>, binary_plan},
    {"binary", kI32, binary_int<int32_t>, binary_plan},
    {"binary", kI64, binary_int<int64_t>, binary_plan},
    {"binary", kU8, binary_int<uint8_t>, binary_plan},
};

}  // namespace

extern const KernelList elementwise_binary_kernels;
const KernelList elementwise_binary_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
