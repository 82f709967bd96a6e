// Vectors of the instruction set that this file is compiled for.
//
// The types are GCC/Clang vector extensions: + - * / comparisons, ?: and bit casts come from the
// compiler. Only what it cannot express (fma, sqrt, min/max, partial loads and stores) is
// overloaded per instruction set. `simd<T>::V` is the native vector of T, `simd<T>::N` its lanes,
// `simd<T>::I` the integer vector of the same shape (masks are such vectors: all ones or zero per
// lane).
//
// Sums that must agree on every instruction set use Sum16 (16 logical lanes whatever the width).
#pragma once
#include <stdint.h>

#include "kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12
// GCC 11 knows it by another name, for indices in a vector.
#define __builtin_shufflevector(a, b, ...) \
  __builtin_shuffle(a, b, (decltype((a) == (b))){__VA_ARGS__})
#endif

#if defined(__AVX512F__)
#define GS_VBYTES 64
#elif defined(__AVX2__)
#define GS_VBYTES 32
#else
#define GS_VBYTES 16
#endif

namespace gs {
namespace GS_ISA {

typedef float vf __attribute__((vector_size(GS_VBYTES)));
typedef double vd __attribute__((vector_size(GS_VBYTES)));
typedef int32_t vi __attribute__((vector_size(GS_VBYTES)));
typedef uint32_t vu __attribute__((vector_size(GS_VBYTES)));
typedef int64_t vl __attribute__((vector_size(GS_VBYTES)));
typedef uint64_t vul __attribute__((vector_size(GS_VBYTES)));
typedef float vf_u __attribute__((vector_size(GS_VBYTES), may_alias, aligned(4)));
typedef double vd_u __attribute__((vector_size(GS_VBYTES), may_alias, aligned(8)));
typedef int32_t vi_u __attribute__((vector_size(GS_VBYTES), may_alias, aligned(4)));

template <class T>
struct simd;
template <>
struct simd<float> {
  using V = vf;
  using I = vi;
  using S = int32_t;
  static constexpr int N = GS_VBYTES / 4;
};
template <>
struct simd<double> {
  using V = vd;
  using I = vl;
  using S = int64_t;
  static constexpr int N = GS_VBYTES / 8;
};

template <class V>
struct lane;
template <>
struct lane<vf> {
  using T = float;
};
template <>
struct lane<vd> {
  using T = double;
};

// ---- loads and stores (unaligned)
GS_INLINE vf load(const float* p) { return *(const vf_u*)p; }
GS_INLINE vd load(const double* p) { return *(const vd_u*)p; }
GS_INLINE void store(float* p, vf v) { *(vf_u*)p = v; }
GS_INLINE void store(double* p, vd v) { *(vd_u*)p = v; }

// ---- stores that may go past the caches
//
// write<true> needs an address aligned to GS_VBYTES and is not ordered with other stores:
// write_fence() before another thread may look. It saves the read of the line that is overwritten
// (a third of the traffic of a copy) and costs the next reader its cache hit, so it pays for
// arrays that would not stay in the core's own cache: those of Ctx::stream bytes and more.
template <bool kStream>
GS_INLINE void write(float* p, vf v) {
#if defined(__AVX512F__)
  if (kStream) return _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  if (kStream) return _mm256_stream_ps(p, (__m256)v);
#elif defined(__x86_64__)
  if (kStream) return _mm_stream_ps(p, (__m128)v);
#endif
  store(p, v);
}
template <bool kStream>
GS_INLINE void write(double* p, vd v) {
#if defined(__AVX512F__)
  if (kStream) return _mm512_stream_pd(p, (__m512d)v);
#elif defined(__AVX2__)
  if (kStream) return _mm256_stream_pd(p, (__m256d)v);
#elif defined(__x86_64__)
  if (kStream) return _mm_stream_pd(p, (__m128d)v);
#endif
  store(p, v);
}
// The same, chosen at run time: one predictable branch.
template <class T, class V>
GS_INLINE void write(bool stream, T* p, V v) {
  if (stream)
    write<true>(p, v);
  else
    write<false>(p, v);
}
GS_INLINE void write_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}
// Whether an output of `bytes` at p, whose rows start `step` bytes apart, is to be streamed.
GS_INLINE bool streams(const Ctx* ctx, int64_t bytes, const void* p, int64_t step = 0) {
  return bytes >= ctx->stream && (((uintptr_t)p | (uintptr_t)step) & (GS_VBYTES - 1)) == 0;
}
// How far ahead of a streaming loop its inputs are fetched: a page. The hardware's own prefetcher
// stops at pages and does not keep enough lines in flight for two inputs.
constexpr int64_t kAhead = 4096;
GS_INLINE void fetch(const void* p) { __builtin_prefetch((const char*)p + kAhead); }

// All lanes equal to x.
GS_INLINE vf set1(float x) { return x - (vf){}; }
GS_INLINE vd set1(double x) { return x - (vd){}; }
GS_INLINE vi set1(int32_t x) { return x - (vi){}; }
GS_INLINE vl set1(int64_t x) { return x - (vl){}; }
template <class T>
GS_INLINE typename simd<T>::V zero() {
  return typename simd<T>::V{};
}

// 0, 1, 2, ... per lane
template <class T>
GS_INLINE typename simd<T>::I iota() {
  typename simd<T>::I r;
  for (int i = 0; i < simd<T>::N; ++i) r[i] = i;
  return r;
}

// The first n lanes (0 <= n <= N) from p, the others zero; memory past n is not touched.
// The first n lanes to p; memory past n is not touched.
#if defined(__AVX512F__)
GS_INLINE vf load_n(const float* p, int n) {
  return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
GS_INLINE vd load_n(const double* p, int n) {
  return (vd)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
GS_INLINE void store_n(float* p, vf v, int n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
GS_INLINE void store_n(double* p, vd v, int n) {
  _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
}
#elif defined(__AVX2__)
GS_INLINE vf load_n(const float* p, int n) {
  return (vf)_mm256_maskload_ps(p, (__m256i)(iota<float>() < set1((int32_t)n)));
}
GS_INLINE vd load_n(const double* p, int n) {
  return (vd)_mm256_maskload_pd(p, (__m256i)(iota<double>() < set1((int64_t)n)));
}
GS_INLINE void store_n(float* p, vf v, int n) {
  _mm256_maskstore_ps(p, (__m256i)(iota<float>() < set1((int32_t)n)), (__m256)v);
}
GS_INLINE void store_n(double* p, vd v, int n) {
  _mm256_maskstore_pd(p, (__m256i)(iota<double>() < set1((int64_t)n)), (__m256d)v);
}
#else
template <class T>
GS_INLINE typename simd<T>::V load_n(const T* p, int n) {
  typename simd<T>::V r = {};
  for (int i = 0; i < simd<T>::N; ++i)
    if (i < n) r[i] = p[i];
  return r;
}
GS_INLINE void store_n(float* p, vf v, int n) {
  for (int i = 0; i < simd<float>::N; ++i)
    if (i < n) p[i] = v[i];
}
GS_INLINE void store_n(double* p, vd v, int n) {
  for (int i = 0; i < simd<double>::N; ++i)
    if (i < n) p[i] = v[i];
}
#endif

// ---- fma(a, b, c) = a * b + c, rounded once where the instruction set has it (not on x86
// baseline) min(a, b) = a < b ? a : b and max(a, b) = a > b ? a : b: with a NaN the second operand
// is taken.
#if defined(__AVX512F__)
GS_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
GS_INLINE vd fma(vd a, vd b, vd c) {
  return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
GS_INLINE vf fnma(vf a, vf b, vf c) {
  return (vf)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
GS_INLINE vd fnma(vd a, vd b, vd c) {
  return (vd)_mm512_fnmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
GS_INLINE vf sqrt(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
GS_INLINE vd sqrt(vd a) { return (vd)_mm512_sqrt_pd((__m512d)a); }
GS_INLINE vf min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
GS_INLINE vd min(vd a, vd b) { return (vd)_mm512_min_pd((__m512d)a, (__m512d)b); }
GS_INLINE vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
GS_INLINE vd max(vd a, vd b) { return (vd)_mm512_max_pd((__m512d)a, (__m512d)b); }
#elif defined(__AVX2__)
GS_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
GS_INLINE vd fma(vd a, vd b, vd c) {
  return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
GS_INLINE vf fnma(vf a, vf b, vf c) {
  return (vf)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
GS_INLINE vd fnma(vd a, vd b, vd c) {
  return (vd)_mm256_fnmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
GS_INLINE vf sqrt(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
GS_INLINE vd sqrt(vd a) { return (vd)_mm256_sqrt_pd((__m256d)a); }
GS_INLINE vf min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
GS_INLINE vd min(vd a, vd b) { return (vd)_mm256_min_pd((__m256d)a, (__m256d)b); }
GS_INLINE vf max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
GS_INLINE vd max(vd a, vd b) { return (vd)_mm256_max_pd((__m256d)a, (__m256d)b); }
#elif defined(__x86_64__)
GS_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
GS_INLINE vd fma(vd a, vd b, vd c) { return a * b + c; }
GS_INLINE vf fnma(vf a, vf b, vf c) { return c - a * b; }
GS_INLINE vd fnma(vd a, vd b, vd c) { return c - a * b; }
GS_INLINE vf sqrt(vf a) { return (vf)_mm_sqrt_ps((__m128)a); }
GS_INLINE vd sqrt(vd a) { return (vd)_mm_sqrt_pd((__m128d)a); }
GS_INLINE vf min(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
GS_INLINE vd min(vd a, vd b) { return (vd)_mm_min_pd((__m128d)a, (__m128d)b); }
GS_INLINE vf max(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
GS_INLINE vd max(vd a, vd b) { return (vd)_mm_max_pd((__m128d)a, (__m128d)b); }
#else  // NEON
GS_INLINE vf fma(vf a, vf b, vf c) {
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
GS_INLINE vd fma(vd a, vd b, vd c) {
  return (vd)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
GS_INLINE vf fnma(vf a, vf b, vf c) {
  return (vf)vfmsq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
GS_INLINE vd fnma(vd a, vd b, vd c) {
  return (vd)vfmsq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
GS_INLINE vf sqrt(vf a) { return (vf)vsqrtq_f32((float32x4_t)a); }
GS_INLINE vd sqrt(vd a) { return (vd)vsqrtq_f64((float64x2_t)a); }
GS_INLINE vf min(vf a, vf b) { return a < b ? a : b; }
GS_INLINE vd min(vd a, vd b) { return a < b ? a : b; }
GS_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
GS_INLINE vd max(vd a, vd b) { return a > b ? a : b; }
#endif

// ---- bit tricks
GS_INLINE vf abs(vf a) { return (vf)((vi)a & 0x7fffffff); }
GS_INLINE vd abs(vd a) { return (vd)((vl)a & 0x7fffffffffffffffLL); }
GS_INLINE vf copysign(vf mag, vf sgn) {
  return (vf)(((vi)mag & 0x7fffffff) | ((vi)sgn & (int32_t)0x80000000));
}
GS_INLINE vd copysign(vd mag, vd sgn) {
  return (vd)(((vl)mag & 0x7fffffffffffffffLL) | ((vl)sgn & (int64_t)0x8000000000000000LL));
}

// ---- For loops that keep a tile of sums in registers, NV vectors a row. What such a loop does
// beside loads and multiply-adds costs nothing while a core is alone, and as much as them when
// another program shares it. accumulate<NV>(c, a, b): c = a * b + c. Left to itself GCC picks forms
// of the instruction that overwrite a or b, and pays with copies and spills of sums; a row of one
// vector is better off with its forms that read b from memory.
template <int NV, class V>
GS_INLINE void accumulate(V& c, V a, V b) {
#if defined(__GNUC__) && defined(__FMA__)
  if constexpr (NV > 1) {
    V sum = c;  // an element of an array in the instruction itself would stay in memory
    if constexpr (sizeof(c[0]) == 4)
      asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    else
      asm("vfmadd231pd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    c = sum;
    return;
  }
#endif
  c = fma(a, b, c);
}
// Steps that such a loop takes at a time; float64 is written once, for the sake of the compile
// time.
template <class T>
constexpr int kUnroll = sizeof(T) == 4 ? 4 : 1;

// Element u of row i of a in all lanes, odd[j] = 2 j + 1 rows in bytes, i < 15. The address is
// written out: GCC computes row + u ahead for every row and step, runs out of registers and reloads
// them from the stack, a fifth more instructions.
template <class V, class T>
GS_INLINE V set1_at(const T* a, const int64_t* odd, int i, int u) {
#if defined(__FMA__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
  V x;
  if (i == 0) return set1(a[u]);
  const int j = i % 8 == 0 ? i / 16 : i % 4 == 0 ? i / 8 : i % 2 == 0 ? i / 4 : i / 2;
  const int scale = i / (2 * j + 1);
  if (sizeof(T) == 4)
    asm("vbroadcastss %c3(%1,%2,%c4), %0"
        : "=v"(x)
        : "r"(a), "r"(odd[j]), "i"(u * sizeof(T)), "i"(scale));
  else
    asm("vbroadcastsd %c3(%1,%2,%c4), %0"
        : "=v"(x)
        : "r"(a), "r"(odd[j]), "i"(u * sizeof(T)), "i"(scale));
  return x;
#else
  (void)odd;
  return set1(*(const T*)((const char*)a + i * odd[0] + u * sizeof(T)));
#endif
}

// ---- scalar twins, so that tails and heads can share formulas
GS_INLINE float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_NEON)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
GS_INLINE double fma(double a, double b, double c) {
#if defined(__FMA__) || defined(__ARM_NEON)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// 16 partial sums in logical lanes, the same on every instruction set, and their fixed tree:
// lane i takes elements i, i + 16, ...; then halves are folded 8, 4, 2, 1.
template <class T>
struct Sum16 {
  static constexpr int W = 16 / simd<T>::N;
  typename simd<T>::V v[W];

  GS_MEMBER void clear() {
    for (int i = 0; i < W; ++i) v[i] = typename simd<T>::V{};
  }
  GS_MEMBER void add(const T* p) {
    for (int i = 0; i < W; ++i) v[i] += load(p + i * simd<T>::N);
  }
  // the first n of 16 elements
  GS_MEMBER void add_n(const T* p, int n) {
    for (int i = 0; i < W; ++i) {
      int k = n - i * simd<T>::N;
      if (k > 0) v[i] += load_n(p + i * simd<T>::N, k < simd<T>::N ? k : simd<T>::N);
    }
  }
  GS_MEMBER T total() const {
    T a[16];
    for (int i = 0; i < W; ++i) store(a + i * simd<T>::N, v[i]);
    for (int h = 8; h > 0; h /= 2)
      for (int i = 0; i < h; ++i) a[i] += a[i + h];
    return a[0];
  }
};

// Sum and maximum of the lanes of one vector by halves: lane i with lane i + h, h = N / 2, ..., 1.
// For sums whose order is private to one instruction set. A NaN may or may not pass hmax.
#if defined(__x86_64__)
struct AddLanes {
  static GS_MEMBER __m128 of(__m128 a, __m128 b) { return a + b; }
  static GS_MEMBER __m128d of(__m128d a, __m128d b) { return a + b; }
#if defined(__AVX2__)
  static GS_MEMBER __m256 of(__m256 a, __m256 b) { return a + b; }
  static GS_MEMBER __m256d of(__m256d a, __m256d b) { return a + b; }
#endif
};
struct MaxLanes {
  static GS_MEMBER __m128 of(__m128 a, __m128 b) { return _mm_max_ps(a, b); }
  static GS_MEMBER __m128d of(__m128d a, __m128d b) { return _mm_max_pd(a, b); }
#if defined(__AVX2__)
  static GS_MEMBER __m256 of(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
  static GS_MEMBER __m256d of(__m256d a, __m256d b) { return _mm256_max_pd(a, b); }
#endif
};
template <class F>
GS_INLINE float fold_lanes(__m128 v) {
  v = F::of(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(F::of(v, _mm_shuffle_ps(v, v, 1)));
}
template <class F>
GS_INLINE double fold_lanes(__m128d v) {
  return _mm_cvtsd_f64(F::of(v, _mm_unpackhi_pd(v, v)));
}
#if defined(__AVX2__)
template <class F>
GS_INLINE float fold_lanes(__m256 v) {
  return fold_lanes<F>(F::of(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
}
template <class F>
GS_INLINE double fold_lanes(__m256d v) {
  return fold_lanes<F>(F::of(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1)));
}
#endif
#if defined(__AVX512F__)
template <class F>
GS_INLINE float fold_lanes(__m512 v) {
  return fold_lanes<F>(F::of(_mm512_castps512_ps256(v),
                             _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1))));
}
template <class F>
GS_INLINE double fold_lanes(__m512d v) {
  return fold_lanes<F>(F::of(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd(v, 1)));
}
typedef __m512 native_f;
typedef __m512d native_d;
#elif defined(__AVX2__)
typedef __m256 native_f;
typedef __m256d native_d;
#else
typedef __m128 native_f;
typedef __m128d native_d;
#endif
GS_INLINE float hsum(vf v) { return fold_lanes<AddLanes>((native_f)v); }
GS_INLINE double hsum(vd v) { return fold_lanes<AddLanes>((native_d)v); }
GS_INLINE float hmax(vf v) { return fold_lanes<MaxLanes>((native_f)v); }
GS_INLINE double hmax(vd v) { return fold_lanes<MaxLanes>((native_d)v); }
#else
GS_INLINE float hsum(vf v) { return (v[0] + v[2]) + (v[1] + v[3]); }
GS_INLINE double hsum(vd v) { return v[0] + v[1]; }
GS_INLINE float hmax(vf v) {
  float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
  return a > b ? a : b;
}
GS_INLINE double hmax(vd v) { return v[0] > v[1] ? v[0] : v[1]; }
#endif

}  // namespace GS_ISA
}  // namespace gs
