// y = f(a, b, c): interpolation, fused multiply-add and the gradients that need three arrays;
// where. Three reads and one write an element. Walked by loops.h.
#include "loops.h"
#include "power.h"
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {
namespace {

typedef ElementwiseParams P;

#define GS_TERNARY(Name, expr)                                 \
  struct Name {                                                \
    double c0;                                                 \
    GS_MEMBER explicit Name(const P& p) : c0(p.constant[0]) {} \
    template <class V>                                         \
    GS_MEMBER V operator()(V a, V b, V c) const {              \
      const V k = set1((typename lane<V>::T)c0);               \
      (void)k;                                                 \
      return expr;                                             \
    }                                                          \
  };
#define GS_HALF ((typename lane<V>::T)0.5)

GS_TERNARY(Lerp3, c < GS_HALF ? fma(c, b - a, a) : fnma(1 - c, b - a, b))
GS_TERNARY(Addcmul, fma(k* b, c, a))
GS_TERNARY(Addcdiv, fma(k, b / c, a))
GS_TERNARY(DivGradB, -(a / c) * b)
GS_TERNARY(MaximumGrad, b > c ? a : (b == c ? a * GS_HALF : (b != b ? a : V{})))
GS_TERNARY(MinimumGrad, b < c ? a : (b == c ? a * GS_HALF : (b != b ? a : V{})))
GS_TERNARY(PowGradBase, c == V{} ? V{} : a * (c * power(b, c - 1)))
GS_TERNARY(PowGradExp, b == V{} ? V{} : a * c * log(b))
GS_TERNARY(MulDiff, a*(b - c))
GS_TERNARY(TieGrad, b == c ? a : V{})

GS_INLINE float floor_of(float a) { return __builtin_floorf(a); }
GS_INLINE double floor_of(double a) { return __builtin_floor(a); }
struct RemainderGrad {
  GS_MEMBER explicit RemainderGrad(const P&) {}
  template <class T>
  GS_MEMBER T operator()(T g, T a, T b) const {
    return -g * floor_of(a / b);
  }
};

template <class T>
void ternary(const void* params, void* const* buf, const Ctx* ctx) {
  static const BlockFn table[] = {
      block3<Lerp3, T>,       block3<Addcmul, T>,     block3<Addcdiv, T>,
      block3<DivGradB, T>,    block3<MaximumGrad, T>, block3<MinimumGrad, T>,
      block3<PowGradBase, T>, block3<PowGradExp, T>,  block3_each<RemainderGrad, T>,
      block3<MulDiff, T>,     block3<TieGrad, T>,
  };
  static_assert(sizeof(table) / sizeof(table[0]) == kTernaryCount,
                "one function for each TernaryOp");
  const P& p = *(const P*)params;
  const Numbers<T> numbers(p);
  const int64_t item[] = {sizeof(T), sizeof(T), sizeof(T), sizeof(T)};
  walk(p, buf, ctx, 3, item, numbers.at, table[p.op]);
}

// y = cond ? a : b; cond is bool
template <class T>
void choose_vec(const P&, int64_t n, const void* const* in, void* out) {
  typedef typename simd<T>::V V;
  typedef typename simd<T>::I I;
  constexpr int N = simd<T>::N;
  typedef uint8_t Bytes __attribute__((vector_size(N)));
  const uint8_t* c = (const uint8_t*)in[0];
  const T *a = (const T*)in[1], *b = (const T*)in[2];
  T* y = (T*)out;
  int64_t i = 0;
#if defined(__AVX512F__)
  // GCC takes the bytes of the generic form apart one by one
  if constexpr (sizeof(T) == 4)
    for (; i + N <= n; i += N) {
      const __m512i m = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(c + i)));
      _mm512_storeu_ps(y + i, _mm512_mask_blend_ps(_mm512_test_epi32_mask(m, m),
                                                   _mm512_loadu_ps(b + i), _mm512_loadu_ps(a + i)));
    }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4)
    for (; i + N <= n; i += N) {
      const __m256i m = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(c + i)));
      const __m256 off = _mm256_castsi256_ps(_mm256_cmpeq_epi32(m, _mm256_setzero_si256()));
      _mm256_storeu_ps(y + i,
                       _mm256_blendv_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), off));
    }
#endif
  for (; i + N <= n; i += N) {
    Bytes bytes;
    __builtin_memcpy(&bytes, c + i, N);
    V t = load(a + i), f = load(b + i);
    store(y + i, __builtin_convertvector(bytes, I) != 0 ? t : f);
  }
  for (; i < n; ++i) y[i] = c[i] ? a[i] : b[i];
}
// the same for other types; U carries their bits
template <class U>
void choose(const P&, int64_t n, const void* const* in, void* out) {
  const uint8_t* c = (const uint8_t*)in[0];
  const U *a = (const U*)in[1], *b = (const U*)in[2];
  U* y = (U*)out;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    U t = a[i], f = b[i];
    y[i] = c[i] ? t : f;
  }
}

template <class T, BlockFn fn>
void where(const void* params, void* const* buf, const Ctx* ctx) {
  const P& p = *(const P*)params;
  const Numbers<T> numbers(p);
  const int64_t item[] = {1, sizeof(T), sizeof(T), sizeof(T)};
  walk(p, buf, ctx, 3, item, numbers.at, fn);
}

void ternary_plan(const void* params, Plan* plan) {
  const P& p = *(const P*)params;
  bool slow = p.op == kPowGradBase || p.op == kPowGradExp || p.op == kRemainderGrad;
  walk_plan(p, slow ? 40 : 5, plan);
}
void where_plan(const void* params, Plan* plan) { walk_plan(*(const P*)params, 5, plan); }

const KernelEntry entries[] = {
    {"ternary", kF32, ternary<float>, ternary_plan},
    {"ternary", kF64, ternary<double>, ternary_plan},
    {"where", kF32, where<float, choose_vec<float>>, where_plan},
    {"where", kF64, where<double, choose_vec<double>>, where_plan},
    {"where", kI32, where<int32_t, choose<uint32_t>>, where_plan},
    {"where", kI64, where<int64_t, choose<uint64_t>>, where_plan},
    {"where", kU8, where<uint8_t, choose<uint8_t>>, where_plan},
    {"where", kBool, where<uint8_t, choose<uint8_t>>, where_plan},
};

}  // namespace

extern const KernelList elementwise_ternary_kernels;
const KernelList elementwise_ternary_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
