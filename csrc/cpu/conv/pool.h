// A 2 x 2 max-pool behind a convolution, in the registers of either: a window's four values to its
// maximum and index, and a window's gradient and index back to four values.
//
// index: which of the four (0 .. 3, row by row) is the first maximum or the last NaN; with ReLU 4
// when the maximum is not positive, as max_pool has it.
#pragma once
#include "simd/taps.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

using PoolV = simd<float>::V;
using PoolI = simd<float>::I;
constexpr int kPoolLanes = simd<float>::N;

// best = x and at = which where x is larger or NaN
GS_INLINE void keep(PoolV x, int which, PoolV& best, PoolI& at) {
  take<float>(x, set1((int32_t)which), best, at);
}
// How a window ends: the vector to y, its places to index.
GS_INLINE void put(PoolV best, PoolI at, bool relu, float* y, uint8_t* index, int lanes) {
  if (relu) at = best <= PoolV{} ? set1((int32_t)4) : at;
  if (lanes == kPoolLanes) {
    store(y, best);
    if (index) store_taps<float, true>(index, at, lanes);
  } else {
    store_n(y, best, lanes);
    if (index) store_taps<float, false>(index, at, lanes);
  }
}

// A whole window of finite values (row by row, before the ReLU) in fewer operations: to y and index
// (may be absent) what keep() and put() make of it.
GS_INLINE void put_finite(const PoolV (&a)[4], bool relu, float* y, uint8_t* index, int lanes) {
  const PoolV top = max(a[1], a[0]), low = max(a[3], a[2]);
  PoolV best = max(low, top);
#if defined(__AVX512F__)
  auto greater = [](PoolV p, PoolV q) __attribute__((always_inline)) {
    return _mm512_cmp_ps_mask((__m512)p, (__m512)q, _CMP_GT_OQ);
  };
  const __mmask16 below = greater(low, top), none = relu ? ~greater(best, PoolV{}) : 0;
  if (relu) best = (PoolV)_mm512_mask_max_ps((__m512)best, none, __m512{}, (__m512)a[0]);
  store_n(y, best, lanes);
  if (!index) return;
  __m128i at = _mm_maskz_mov_epi8(greater(a[1], a[0]), _mm_set1_epi8(1));
  at = _mm_mask_mov_epi8(at, below, _mm_set1_epi8(2));
  at = _mm_mask_mov_epi8(at, _mm512_mask_cmp_ps_mask(below, (__m512)a[3], (__m512)a[2], _CMP_GT_OQ),
                         _mm_set1_epi8(3));
  at = _mm_mask_mov_epi8(at, none, _mm_set1_epi8(4));
  _mm_mask_storeu_epi8(index, (__mmask16)((1u << lanes) - 1), at);
#else
  PoolI at = low > top ? (a[3] > a[2] ? set1((int32_t)3) : set1((int32_t)2))
                       : (a[1] > a[0] ? set1((int32_t)1) : PoolI{});
  if (relu) best = best > PoolV{} ? best : max(PoolV{}, a[0]);
  put(best, at, relu, y, index, lanes);
#endif
}

GS_INLINE PoolI pool_index(const uint8_t* index, int lanes) {
  return lanes == kPoolLanes ? load_taps<float, true>(index, lanes)
                             : load_taps<float, false>(index, lanes);
}
// x where the maximum was at `which`, else zero
GS_INLINE PoolV only(PoolV x, PoolI at, int which) {
#if defined(__AVX512F__)
  return (PoolV)_mm512_maskz_mov_ps(_mm512_cmpeq_epi32_mask((__m512i)at, _mm512_set1_epi32(which)),
                                    (__m512)x);
#else
  return at == set1((int32_t)which) ? x : PoolV{};
#endif
}

// The gradient of windows behind a ReLU: none where the maximum was not positive.
GS_INLINE PoolV pool_gradient(PoolV x, PoolI at) {
#if defined(__AVX512F__)
  return (PoolV)_mm512_maskz_mov_ps(_mm512_cmplt_epi32_mask((__m512i)at, _mm512_set1_epi32(4)),
                                    (__m512)x);
#else
  return at < set1((int32_t)4) ? x : PoolV{};
#endif
}

// One value of four for each lane: pick(load_quads(p), pick_control(which))[l] = p[which[l]].
// Where which is 4, whichever of them.
GS_INLINE PoolV load_quads(const float* p) {
#if defined(__AVX512F__)
  return (PoolV)_mm512_broadcast_f32x4(_mm_loadu_ps(p));
#elif defined(__AVX2__)
  return (PoolV)_mm256_broadcast_ps((const __m128*)p);
#else
  return load(p);
#endif
}
GS_INLINE PoolI pick_control(PoolI which) {
#if defined(__AVX2__)
  return which;
#else  // of bytes
  return (which & set1((int32_t)3)) * set1((int32_t)0x04040404) + set1((int32_t)0x03020100);
#endif
}
GS_INLINE PoolV pick(PoolV quads, PoolI control) {
#if defined(__AVX512F__)
  return (PoolV)_mm512_permutevar_ps((__m512)quads, (__m512i)control);
#elif defined(__AVX2__)
  return (PoolV)_mm256_permutevar_ps((__m256)quads, (__m256i)control);
#elif defined(__x86_64__)
  return (PoolV)_mm_shuffle_epi8((__m128i)quads, (__m128i)control);
#else
  return (PoolV)vqtbl1q_u8((uint8x16_t)quads, (uint8x16_t)control);
#endif
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
