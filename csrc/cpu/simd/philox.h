// Philox4x32-10 on vectors, in the order of elements: lane j of the vector that starts at element i
// (a multiple of 4) holds word (i + j) % 4 of block (i + j) / 4, as philox.h defines the stream.
//
// A vector holds whole blocks side by side, (c0 c1 c2 c3) (c0 c1 c2 c3) ..., so one widening
// multiply by (M0 . M1 .) makes both products of a round, and reversing the four words puts them
// where the next round wants them: multiply, shift, shuffle, xor, and nothing to transpose at the
// end.
#pragma once
#include "philox.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {

// The round keys of one stream, broadcast; made once a task.
struct PhiloxStream {
  vu key[10];  // (k0 0 k1 0) of each round
  vu start;    // (0 0 c2 c3): the op counter
  vu blocks;   // (0 0 0 0) (1 0 0 0) (2 0 0 0) ...

  GS_MEMBER PhiloxStream(uint64_t seed, uint64_t op) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int r = 0; r < 10; ++r) {
      for (int i = 0; i < simd<float>::N; i += 4) {
        key[r][i] = k0;
        key[r][i + 1] = 0;
        key[r][i + 2] = k1;
        key[r][i + 3] = 0;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < simd<float>::N; i += 4) {
      start[i] = 0;
      start[i + 1] = 0;
      start[i + 2] = (uint32_t)op;
      start[i + 3] = (uint32_t)(op >> 32);
      blocks[i] = (uint32_t)(i / 4);
      blocks[i + 1] = blocks[i + 2] = blocks[i + 3] = 0;
    }
  }

  // The counters of the vector whose first element is i (a multiple of 4).
  GS_MEMBER vu counter(uint64_t i) const {
    uint64_t block = i / 4;
    vul low = (vul){} + block;  // (lo hi) in both halves of a block
    vu c = (vu)low, keep = vu{};
#pragma GCC unroll 16
    for (int j = 0; j < simd<float>::N; j += 4) keep[j] = keep[j + 1] = 0xffffffffu;
    // the carry into the high word: block indices of one vector differ by less than 4
    vu sum = (c & keep) + blocks;
    if (__builtin_expect((uint32_t)block > 0xfffffff0u, 0))
      for (int j = 0; j < simd<float>::N; j += 4)
        if (sum[j] < (uint32_t)block) sum[j + 1] += 1;
    return sum | start;
  }

  static GS_MEMBER vu round(vu c, vu k) {
#if defined(__AVX512F__)
    __m512i mult = _mm512_set4_epi32(0, (int)0xCD9E8D57u, 0, (int)0xD2511F53u);
    __m512i p = _mm512_shuffle_epi32(_mm512_mul_epu32((__m512i)c, mult), (_MM_PERM_ENUM)0x1B);
    return (vu)_mm512_ternarylogic_epi32(p, _mm512_srli_epi64((__m512i)c, 32), (__m512i)k, 0x96);
#elif defined(__AVX2__)
    __m256i mult = _mm256_set_epi32(0, (int)0xCD9E8D57u, 0, (int)0xD2511F53u, 0, (int)0xCD9E8D57u,
                                    0, (int)0xD2511F53u);
    __m256i p = _mm256_shuffle_epi32(_mm256_mul_epu32((__m256i)c, mult), 0x1B);
    return (vu)p ^ (vu)_mm256_srli_epi64((__m256i)c, 32) ^ k;
#elif defined(__x86_64__)
    __m128i mult = _mm_set_epi32(0, (int)0xCD9E8D57u, 0, (int)0xD2511F53u);
    __m128i p = _mm_shuffle_epi32(_mm_mul_epu32((__m128i)c, mult), 0x1B);
    return (vu)p ^ (vu)_mm_srli_epi64((__m128i)c, 32) ^ k;
#else
    uint64_t a = (uint64_t)c[0] * 0xD2511F53u, b = (uint64_t)c[2] * 0xCD9E8D57u;
    return vu{(uint32_t)(b >> 32) ^ c[1], (uint32_t)b, (uint32_t)(a >> 32) ^ c[3], (uint32_t)a} ^ k;
#endif
  }

  // words of elements i .. i + 4 N - 1: four vectors at once hide the latency of the ten rounds
  GS_MEMBER void next4(uint64_t i, vu* w) const {
    constexpr int N = simd<float>::N;
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) w[j] = counter(i + (uint64_t)(j * N));
#pragma GCC unroll 10
    for (int r = 0; r < 10; ++r) {
      vu k = key[r];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) w[j] = round(w[j], k);
    }
  }
};

// Uniform in [0, 1) with 24 bits, from words.
GS_INLINE vf uniform24(vu w) {
  return __builtin_convertvector((vi)(w >> 8), vf) * (1.0f / 16777216.0f);
}

}  // namespace GS_ISA
}  // namespace gs
