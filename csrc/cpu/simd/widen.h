// float32 <-> float64 in halves: lane i of a float vector is lane i of the low half or lane i - N /
// 2 of the high one. By shuffles in registers: through memory, two narrow stores before one wide
// load stall.
#pragma once
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {

#if defined(__AVX512F__)
GS_INLINE vd widen_lo(vf x) { return (vd)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)x)); }
GS_INLINE vd widen_hi(vf x) { return (vd)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)x, 1)); }
GS_INLINE vf narrow(vd lo, vd hi) {
  return (vf)_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)lo)),
                                _mm512_cvtpd_ps((__m512d)hi), 1);
}
#elif defined(__AVX2__)
GS_INLINE vd widen_lo(vf x) { return (vd)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x)); }
GS_INLINE vd widen_hi(vf x) { return (vd)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1)); }
GS_INLINE vf narrow(vd lo, vd hi) {
  return (vf)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps((__m256d)lo)),
                                  _mm256_cvtpd_ps((__m256d)hi), 1);
}
#elif defined(__x86_64__)
GS_INLINE vd widen_lo(vf x) { return (vd)_mm_cvtps_pd((__m128)x); }
GS_INLINE vd widen_hi(vf x) { return (vd)_mm_cvtps_pd(_mm_movehl_ps((__m128)x, (__m128)x)); }
GS_INLINE vf narrow(vd lo, vd hi) {
  return (vf)_mm_movelh_ps(_mm_cvtpd_ps((__m128d)lo), _mm_cvtpd_ps((__m128d)hi));
}
#else
GS_INLINE vd widen_lo(vf x) { return (vd)vcvt_f64_f32(vget_low_f32((float32x4_t)x)); }
GS_INLINE vd widen_hi(vf x) { return (vd)vcvt_high_f64_f32((float32x4_t)x); }
GS_INLINE vf narrow(vd lo, vd hi) {
  return (vf)vcvt_high_f32_f64(vcvt_f32_f64((float64x2_t)lo), (float64x2_t)hi);
}
#endif

// the low 32 bits of each 64-bit lane
GS_INLINE vi low_words(vl lo, vl hi) {
#if GS_VBYTES == 64
  return __builtin_shufflevector((vi)lo, (vi)hi, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26,
                                 28, 30);
#elif GS_VBYTES == 32
  return __builtin_shufflevector((vi)lo, (vi)hi, 0, 2, 4, 6, 8, 10, 12, 14);
#else
  return __builtin_shufflevector((vi)lo, (vi)hi, 0, 2, 4, 6);
#endif
}

}  // namespace GS_ISA
}  // namespace gs
