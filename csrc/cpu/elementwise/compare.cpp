// Kernels that yield bool: comparisons (every dtype), tests of float numbers, logic on bools.
// One or two reads and one byte written an element. Walked by loops.h.
#include "loops.h"

namespace gs {
namespace GS_ISA {
namespace {

typedef ElementwiseParams P;

#define GS_COMPARE(Name, expr)                     \
  struct Name {                                    \
    GS_MEMBER explicit Name(const P&) {}           \
    template <class T>                             \
    GS_MEMBER uint8_t operator()(T a, T b) const { \
      return expr;                                 \
    }                                              \
  };
GS_COMPARE(Eq, a == b)
GS_COMPARE(Ne, a != b)
GS_COMPARE(Lt, a < b)
GS_COMPARE(Le, a <= b)
GS_COMPARE(Gt, a > b)
GS_COMPARE(Ge, a >= b)
GS_COMPARE(And, (a != 0) & (b != 0))
GS_COMPARE(Or, (a != 0) | (b != 0))
GS_COMPARE(Xor, (a != 0) ^ (b != 0))

#define GS_TEST(Name, expr)                   \
  struct Name {                               \
    GS_MEMBER explicit Name(const P&) {}      \
    template <class T>                        \
    GS_MEMBER uint8_t operator()(T a) const { \
      const T inf = (T)__builtin_inf();       \
      (void)inf;                              \
      return expr;                            \
    }                                         \
  };
GS_TEST(IsNan, a != a)
GS_TEST(IsFinite, (a < inf) & (a > -inf))
GS_TEST(IsInf, (a == inf) | (a == -inf))

struct Not {
  GS_MEMBER explicit Not(const P&) {}
  GS_MEMBER uint8_t operator()(uint8_t a) const { return a == 0; }
};

// |a - b| <= atol + rtol |b| with a finite b, or equal; op: two NaN are close as well. constant:
// rtol, atol.
template <class T>
struct IsClose {
  T rtol, atol;
  uint8_t nan;
  GS_MEMBER explicit IsClose(const P& p)
      : rtol((T)p.constant[0]), atol((T)p.constant[1]), nan(p.op != 0) {}
  GS_MEMBER uint8_t operator()(T a, T b) const {
    const T inf = (T)__builtin_inf(), d = a - b, far = b < 0 ? -b : b, off = d < 0 ? -d : d;
    return ((off <= far * rtol + atol) & (far < inf)) | (a == b) | (nan & (a != a) & (b != b));
  }
};

template <class T>
void is_close(const void* params, void* const* buf, const Ctx* ctx) {
  const P& p = *(const P*)params;
  const Numbers<T> numbers(p);
  const int64_t item[] = {sizeof(T), sizeof(T), 1};
  walk(p, buf, ctx, 2, item, numbers.at, block2_each<IsClose<T>, T, uint8_t>);
}

template <class T>
void compare(const void* params, void* const* buf, const Ctx* ctx) {
  static const BlockFn table[] = {block2_each<Eq, T, uint8_t>, block2_each<Ne, T, uint8_t>,
                                  block2_each<Lt, T, uint8_t>, block2_each<Le, T, uint8_t>,
                                  block2_each<Gt, T, uint8_t>, block2_each<Ge, T, uint8_t>};
  const P& p = *(const P*)params;
  const Numbers<T> numbers(p);
  const int64_t item[] = {sizeof(T), sizeof(T), 1};
  walk(p, buf, ctx, 2, item, numbers.at, table[p.op]);
}

template <class T>
void test(const void* params, void* const* buf, const Ctx* ctx) {
  static const BlockFn table[] = {block1_each<IsNan, T, uint8_t>, block1_each<IsFinite, T, uint8_t>,
                                  block1_each<IsInf, T, uint8_t>};
  const P& p = *(const P*)params;
  const int64_t item[] = {sizeof(T), 1};
  walk(p, buf, ctx, 1, item, nullptr, table[p.op]);
}

void logical(const void* params, void* const* buf, const Ctx* ctx) {
  const P& p = *(const P*)params;
  const Numbers<uint8_t> numbers(p);
  const int64_t item[] = {1, 1, 1};
  switch (p.op) {
    case kAnd:
      walk(p, buf, ctx, 2, item, numbers.at, block2_each<And, uint8_t, uint8_t>);
      break;
    case kOr:
      walk(p, buf, ctx, 2, item, numbers.at, block2_each<Or, uint8_t, uint8_t>);
      break;
    case kXor:
      walk(p, buf, ctx, 2, item, numbers.at, block2_each<Xor, uint8_t, uint8_t>);
      break;
    default:
      walk(p, buf, ctx, 1, item, nullptr, block1_each<Not, uint8_t, uint8_t>);
      break;
  }
}

void plan(const void* params, Plan* plan) { walk_plan(*(const P*)params, 3, plan); }

const KernelEntry entries[] = {
    {"compare", kF32, compare<float>, plan},   {"compare", kF64, compare<double>, plan},
    {"compare", kI32, compare<int32_t>, plan}, {"compare", kI64, compare<int64_t>, plan},
    {"compare", kU8, compare<uint8_t>, plan},  {"compare", kBool, compare<uint8_t>, plan},
    {"test", kF32, test<float>, plan},         {"test", kF64, test<double>, plan},
    {"logical", kBool, logical, plan},         {"isclose", kF32, is_close<float>, plan},
    {"isclose", kF64, is_close<double>, plan},
};

}  // namespace

extern const KernelList elementwise_compare_kernels;
const KernelList elementwise_compare_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
