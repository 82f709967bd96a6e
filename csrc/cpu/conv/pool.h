// A 2 x 2 max-pool behind a convolution, in the registers of either: a window's four values to its
// maximum and index, and a window's gradient and index back to four values.
//
// index: which of the four (0 .. 3, row by row) is the first maximum or the last NaN; with ReLU 4
// when the maximum is not positive, as max_pool has it.
#pragma once
#include <string.h>

#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

using PoolV = simd<float>::V;
using PoolI = simd<float>::I;
constexpr int kPoolLanes = simd<float>::N;
typedef uint8_t PoolBytes __attribute__((vector_size(kPoolLanes)));

// best = x and at = which where x is larger or NaN
GS_INLINE void keep(PoolV x, int which, PoolV& best, PoolI& at) {
#if defined(__AVX512F__)
  __mmask16 m = _mm512_cmp_ps_mask((__m512)x, (__m512)best, _CMP_GT_OQ) |
                _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
  best = (PoolV)_mm512_mask_mov_ps((__m512)best, m, (__m512)x);
  at = (PoolI)_mm512_mask_mov_epi32((__m512i)at, m, _mm512_set1_epi32(which));
#else
  PoolI more = (x > best) | (x != x);
  best = more ? x : best;
  at = more ? set1((int32_t)which) : at;
#endif
}
// GCC 12 converts vectors of bytes one by one where it is not told the instruction.
// How a window ends: the vector to y, its bytes to index.
GS_INLINE void put(PoolV best, PoolI at, bool relu, float* y, uint8_t* index, int lanes) {
  if (lanes == kPoolLanes)
    store(y, best);
  else
    store_n(y, best, lanes);
  if (!index) return;
#if defined(__AVX512F__)
  if (relu) {
    __mmask16 m = _mm512_cmp_ps_mask((__m512)best, _mm512_setzero_ps(), _CMP_LE_OQ);
    at = (PoolI)_mm512_mask_mov_epi32((__m512i)at, m, _mm512_set1_epi32(4));
  }
#else
  if (relu) at = best <= PoolV{} ? set1((int32_t)4) : at;
#endif
#if defined(__AVX512F__)
  PoolBytes b = (PoolBytes)_mm512_cvtepi32_epi8((__m512i)at);
#else
  PoolBytes b = __builtin_convertvector(at, PoolBytes);
#endif
  if (lanes == kPoolLanes)
    memcpy(index, &b, kPoolLanes);
  else
    memcpy(index, &b, (size_t)lanes);
}

GS_INLINE PoolI pool_index(const uint8_t* index, int lanes) {
  PoolBytes b = {};
  if (lanes == kPoolLanes)
    memcpy(&b, index, kPoolLanes);
  else
    memcpy(&b, index, (size_t)lanes);
#if defined(__AVX512F__)
  return (PoolI)_mm512_cvtepu8_epi32((__m128i)b);
#else
  return __builtin_convertvector(b, PoolI);
#endif
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

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
