// Sums over the lanes of many vectors at once.
#pragma once
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {

#if defined(__AVX512F__)
// Each stage adds halves of two vectors, so that the additions are those of hsum(), lane by lane,
// at a quarter of its shuffles and none of its waits.
GS_INLINE __m512 fold_halves(vf a, vf b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4((__m512)a, (__m512)b, 0x44),
                       _mm512_shuffle_f32x4((__m512)a, (__m512)b, 0xee));
}
GS_INLINE __m512 fold_quarters(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
// lanes 0, 1 of each quarter: of a; 2, 3: of b
GS_INLINE __m512 fold_pairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}
GS_INLINE __m512 fold_lanes2(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
// Four vectors: quarter q holds four partial sums of v[q * step].
GS_INLINE __m512 fold4(const vf* v, int step) {
  return fold_quarters(fold_halves(v[0], v[step]), fold_halves(v[2 * step], v[3 * step]));
}
// Lane i: the sum of v[i].
GS_INLINE vf hsum16(const vf* v) {
  return (vf)fold_lanes2(fold_pairs(fold4(v, 4), fold4(v + 1, 4)),
                         fold_pairs(fold4(v + 2, 4), fold4(v + 3, 4)));
}
// Lane i: the sum of v[i], i < 8.
GS_INLINE __m256 hsum8(const vf* v) {
  const __m512 pairs = fold_pairs(fold4(v, 1), fold4(v + 4, 1));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_castps512_ps256(_mm512_permutexvar_ps(order, fold_lanes2(pairs, pairs)));
}
#elif defined(__AVX2__)
GS_INLINE __m256 fold_halves(vf a, vf b) {
  return _mm256_add_ps(_mm256_permute2f128_ps((__m256)a, (__m256)b, 0x20),
                       _mm256_permute2f128_ps((__m256)a, (__m256)b, 0x31));
}
// Lane i: the sum of v[i], i < 4.
GS_INLINE __m128 hsum4(const vf* v) {
  const __m256 a = fold_halves(v[0], v[1]), b = fold_halves(v[2], v[3]);
  const __m256 c = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
  const __m256 d = _mm256_add_ps(_mm256_shuffle_ps(c, c, 0x88), _mm256_shuffle_ps(c, c, 0xdd));
  return _mm_unpacklo_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1));
}
#endif

// sums[i] = hsum(v[i]), i < count <= 16; v and sums have room for a multiple of 8
template <class V>
GS_INLINE void hsums(const V* v, int count, typename lane<V>::T* sums) {
#if defined(__AVX512F__)
  if constexpr (sizeof(typename lane<V>::T) == 4) {
    if (count > 8) return store(sums, hsum16(v));
    return _mm256_storeu_ps(sums, hsum8(v));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(typename lane<V>::T) == 4) {
    for (int i = 0; i < count; i += 4) _mm_storeu_ps(sums + i, hsum4(v + i));
    return;
  }
#endif
  for (int i = 0; i < count; ++i) sums[i] = hsum(v[i]);
}

}  // namespace GS_ISA
}  // namespace gs
