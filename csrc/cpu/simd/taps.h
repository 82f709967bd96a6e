// The places of maxima, for kernels that pool: a running maximum with the tap it came from, and
// vectors of taps from and to bytes.
//
// By intrinsics where there are such: of __builtin_convertvector between bytes and integers GCC 12
// makes a move a byte.
#pragma once
#include <string.h>

#include "simd/vec.h"

namespace gs {
namespace GS_ISA {

// best = x and at = tap where x is larger or NaN
template <class T>
GS_INLINE void take(typename simd<T>::V x, typename simd<T>::I tap, typename simd<T>::V& best,
                    typename simd<T>::I& at) {
  using V [[maybe_unused]] = typename simd<T>::V;
  using I = typename simd<T>::I;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    __mmask16 m = _mm512_cmp_ps_mask((__m512)x, (__m512)best, _CMP_GT_OQ) |
                  _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
    best = (V)_mm512_mask_mov_ps((__m512)best, m, (__m512)x);
    at = (I)_mm512_mask_mov_epi32((__m512i)at, m, (__m512i)tap);
  } else {
    __mmask8 m = _mm512_cmp_pd_mask((__m512d)x, (__m512d)best, _CMP_GT_OQ) |
                 _mm512_cmp_pd_mask((__m512d)x, (__m512d)x, _CMP_UNORD_Q);
    best = (V)_mm512_mask_mov_pd((__m512d)best, m, (__m512d)x);
    at = (I)_mm512_mask_mov_epi64((__m512i)at, m, (__m512i)tap);
  }
#else
  I m = (x > best) | (x != x);
  best = m ? x : best;
  at = m ? tap : at;
#endif
}

// The same in three instructions for five where neither x nor best is NaN, wrong where one is.
template <class T>
GS_INLINE void take_number(typename simd<T>::V x, typename simd<T>::I tap,
                           typename simd<T>::V& best, typename simd<T>::I& at) {
  using V [[maybe_unused]] = typename simd<T>::V;
  using I = typename simd<T>::I;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    __mmask16 m = _mm512_cmp_ps_mask((__m512)x, (__m512)best, _CMP_GT_OQ);
    best = max(x, best);
    at = (I)_mm512_mask_mov_epi32((__m512i)at, m, (__m512i)tap);
  } else {
    __mmask8 m = _mm512_cmp_pd_mask((__m512d)x, (__m512d)best, _CMP_GT_OQ);
    best = max(x, best);
    at = (I)_mm512_mask_mov_epi64((__m512i)at, m, (__m512i)tap);
  }
#else
  I m = x > best;
  best = max(x, best);
  at = m ? tap : at;
#endif
}
// Whether a lane of x is NaN.
GS_INLINE bool any_nan(vf x) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)(x != x)) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_ps((__m128)(x != x)) != 0;
#else
  return vmaxvq_u32((uint32x4_t)(x != x)) != 0;
#endif
}
GS_INLINE bool any_nan(vd x) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask((__m512d)x, (__m512d)x, _CMP_UNORD_Q) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_pd((__m256d)(x != x)) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_pd((__m128d)(x != x)) != 0;
#else
  return vmaxvq_u32((uint32x4_t)(x != x)) != 0;
#endif
}

// The first n of 8 bytes, without a call of memcpy.
GS_INLINE uint64_t load_bytes(const uint8_t* p, int n) {
  uint64_t v = 0;
  uint32_t four;
  uint16_t two;
  if (n & 1) v = p[n & 6];
  if (n & 2) {
    memcpy(&two, p + (n & 4), 2);
    v = v << 16 | two;
  }
  if (n & 4) {
    memcpy(&four, p, 4);
    v = v << 32 | four;
  }
  return v;
}
GS_INLINE void store_bytes(uint8_t* p, uint64_t v, int n) {
  if (n & 4) {
    memcpy(p, &v, 4);
    p += 4;
    v >>= 32;
  }
  if (n & 2) {
    memcpy(p, &v, 2);
    p += 2;
    v >>= 16;
  }
  if (n & 1) *p = (uint8_t)v;
}

// FULL: a whole vector, otherwise the first n lanes.
template <class T, bool FULL>
GS_INLINE typename simd<T>::I load_taps(const uint8_t* p, [[maybe_unused]] int n) {
  using I = typename simd<T>::I;
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (sizeof(T) == 4 && FULL)
    return (I)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
  else if constexpr (sizeof(T) == 4)
    return (I)_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1), p));
  else if constexpr (FULL)
    return (I)_mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)p));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4 && FULL)
    return (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
  else if constexpr (sizeof(T) == 4)
    return (I)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)load_bytes(p, n)));
#endif
  typedef uint8_t Bytes __attribute__((vector_size(simd<T>::N)));
  Bytes b = {};
  memcpy(&b, p, FULL ? simd<T>::N : n);
  return __builtin_convertvector(b, I);
}
template <class T, bool FULL>
GS_INLINE void store_taps(uint8_t* p, typename simd<T>::I v, [[maybe_unused]] int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && FULL)
    return _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v));
  else if constexpr (sizeof(T) == 4)
    return _mm_mask_storeu_epi8(p, (__mmask16)((1u << n) - 1), _mm512_cvtepi32_epi8((__m512i)v));
  else if constexpr (FULL)
    return _mm_storel_epi64((__m128i*)p, _mm512_cvtepi64_epi8((__m512i)v));
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    const __m256i low = _mm256_shuffle_epi8(
        (__m256i)v, _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0,
                                     4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m128i all =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    if (FULL || n == simd<T>::N) return _mm_storel_epi64((__m128i*)p, all);
    return store_bytes(p, (uint64_t)_mm_cvtsi128_si64(all), n);
  }
#endif
  typedef uint8_t Bytes __attribute__((vector_size(simd<T>::N)));
  Bytes b = __builtin_convertvector(v, Bytes);
  memcpy(p, &b, FULL ? simd<T>::N : n);
}

}  // namespace GS_ISA
}  // namespace gs
