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
#endif

// sums[i] = hsum(v[i]), count <= 16
template <class V>
GS_INLINE void hsums(const V* v, int count, typename lane<V>::T* sums) {
#if defined(__AVX512F__)
  if constexpr (sizeof(typename lane<V>::T) == 4)
    if (count == 16) return store(sums, hsum16(v));
#endif
  for (int i = 0; i < count; ++i) sums[i] = hsum(v[i]);
}

}  // namespace GS_ISA
}  // namespace gs
