// Planes of Winograd's transformed tensors in bfloat16, where the processor multiplies pairs of
// them (conv/winograd.h and conv/polyphase.h in the table avx512bf16).
//
// An element of a plane, 4 bytes, then holds two values that a product sums over: two channels in
// the operands of y and dx, so that a row of a plane is a row of channels, rounded; two tiles in
// those of dw. At stride 1 these are interleaved from such rows just before they are multiplied; at
// stride 2, where no operand serves both gradients, they are stored so. vdpbf16ps adds the products
// of a pair to a float32 sum, at twice the rate of a multiply-add, and the planes have half of the
// bytes. Elements are called T, float32 outside, but nothing computes with one.
//
// Rounding: both operands to 8 bits in Winograd's domain, whose transform back magnifies the error
// of F(4 x 4, 3 x 3) 3 to 5 times (rms, against the direct sum of rounded operands; 5.02 = 2.24^2
// for white noise at any choice of shape and pass, 3 to 4 behind a ReLU). No choice of points has
// less than 4.7. Stride 2: 2.35 = 1.53^2, since four of nine planes along an axis are as they are.
#pragma once
#include <string.h>

#include "simd/transpose.h"

namespace gs {
namespace GS_ISA {
namespace {

#if defined(__AVX512BF16__)
constexpr int64_t kPair = 2;  // values of an element
// Where filters are fetched to, ahead of their transform: the cores that this form is chosen on
// drop a third of the fetches into the second level (see pixels_ahead()).
constexpr int kFetch = 3;

// One vector's values to half of the bytes.
GS_INLINE void put_plane(float* to, vf x) {
  _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
}
// Sixteen pairs, of which a has the first eight, one after the other, and b the others. What is
// transformed before it is stored is brought into that order before the transform: it has 9 taps
// and becomes 36 planes.
GS_INLINE void put_pairs(float* to, vf a, vf b) {
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a));
}
// (a[i], b[i]) in lane i, of vectors that cannot be brought into that order before. put_half: only
// those of one side, the other's are zero or, for the second side, kept.
struct PairTurn {
  __m512i both, half;
  __mmask32 side;
  __mmask16 kept;
  GS_MEMBER explicit PairTurn(bool second)
      : both(_mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                              22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0)),
        half(_mm512_set_epi16(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8, 7, 7, 6,
                              6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0)),
        side(second ? 0xAAAAAAAA : 0x55555555),
        kept(second ? (__mmask16)0xFFFF : (__mmask16)0) {}
  GS_MEMBER void put_both(float* to, vf a, vf b) const {
    const __m512i q = (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(both, q));
  }
  GS_MEMBER void put_half(float* to, vf x) const {
    const __m512i q = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh((__m512)x));
    const __m512i mine = _mm512_maskz_permutexvar_epi16(side, half, q);
    _mm512_storeu_si512(to, _mm512_or_si512(mine, _mm512_maskz_loadu_epi32(kept, to)));
  }
};
// (a[i], b[i]) in the order of put_pairs().
GS_INLINE void join_pairs(vf& a, vf& b) {
  const vf low = interleave_lo(a, b);
  b = interleave_hi(a, b);
  a = low;
}
// r: of 16 rows 16 columns each. Then r[2j] and r[2j + 1] are columns 2j and 2j + 1 as the pairs of
// rows.
GS_INLINE void turn_pairs(vf (&r)[16]) {
  vd q[2][8];
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) q[h][i] = (vd)r[8 * h + i];
    transpose<double>(q[h]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = (vf)q[i % 2][i / 2];
}
// c += the products of each lane's pair
template <int NV>
GS_INLINE void multiply(vf& c, vf a, vf b) {
  c = (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)(__m512)a, (__m512bh)(__m512)b);
}

// out (half of `rows`, rounded up; ldo) element j = (row 2i, row 2i + 1) of value j < count of rows
// (ld) of values; behind the last row come zeros. Whole vectors of 16 values.
[[maybe_unused]] __attribute__((noinline)) void pair_rows(const float* from, int64_t ld,
                                                          int64_t rows, int64_t count, float* out,
                                                          int64_t ldo) {
  const __m512i turn = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                        8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t r = 0; r < rows; r += 2, from += 2 * ld, out += ldo)
    for (int64_t j = 0; j < count; j += 16) {
      const __m256i a = _mm256_loadu_si256((const __m256i*)(from + j / 2));
      const __m256i b = r + 1 < rows ? _mm256_loadu_si256((const __m256i*)(from + ld + j / 2))
                                     : _mm256_setzero_si256();
      _mm512_storeu_si512(out + j, _mm512_permutexvar_epi16(
                                       turn, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1)));
    }
}
#else
constexpr int64_t kPair = 1;
constexpr int kFetch = 2;

template <class T, class V>
GS_INLINE void put_plane(T* to, V x) {
  store(to, x);
}
template <class T, class V>
GS_INLINE void put_pairs(T* to, V x, V) {
  store(to, x);
}
template <class V>
GS_INLINE void join_pairs(V&, V&) {}
template <class V, int N>
GS_INLINE void turn_pairs(V (&r)[N]) {
  transpose<float>(r);
}
template <int NV, class V>
GS_INLINE void multiply(V& c, V a, V b) {
  accumulate<NV>(c, a, b);
}
#endif

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
