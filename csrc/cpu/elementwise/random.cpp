// Uniform and normal numbers from Philox4x32-10, addressed by (seed, op counter, element), so they
// do not depend on how the work is split. One write an element; bound by the ten rounds of integer
// multiplication, and for normal numbers by log and sincos of Box-Muller (Ann. Math. Stat. 29,
// 1958).
#include "elementwise.h"
#include "philox.h"
#include "simd/philox.h"
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kRun = 8192;

// Two vectors in the order of elements -> their even and odd elements, in some order of pairs; join
// is the inverse.
GS_INLINE void split_pairs(vf a, vf b, vf* even, vf* odd) {
#if defined(__AVX512F__)
  *even = (vf)_mm512_shuffle_ps((__m512)a, (__m512)b, 0x88);
  *odd = (vf)_mm512_shuffle_ps((__m512)a, (__m512)b, 0xdd);
#elif defined(__AVX2__)
  *even = (vf)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x88);
  *odd = (vf)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd);
#elif defined(__x86_64__)
  *even = (vf)_mm_shuffle_ps((__m128)a, (__m128)b, 0x88);
  *odd = (vf)_mm_shuffle_ps((__m128)a, (__m128)b, 0xdd);
#else
  *even = vf{a[0], a[2], b[0], b[2]};
  *odd = vf{a[1], a[3], b[1], b[3]};
#endif
}
GS_INLINE void join_pairs(vf even, vf odd, vf* a, vf* b) {
#if defined(__AVX512F__)
  *a = (vf)_mm512_unpacklo_ps((__m512)even, (__m512)odd);
  *b = (vf)_mm512_unpackhi_ps((__m512)even, (__m512)odd);
#elif defined(__AVX2__)
  *a = (vf)_mm256_unpacklo_ps((__m256)even, (__m256)odd);
  *b = (vf)_mm256_unpackhi_ps((__m256)even, (__m256)odd);
#elif defined(__x86_64__)
  *a = (vf)_mm_unpacklo_ps((__m128)even, (__m128)odd);
  *b = (vf)_mm_unpackhi_ps((__m128)even, (__m128)odd);
#else
  *a = vf{even[0], odd[0], even[1], odd[1]};
  *b = vf{even[2], odd[2], even[3], odd[3]};
#endif
}

// 4 N numbers from 4 N words, in the order of elements
struct Uniform {
  vf low, span, below;
  GS_MEMBER explicit Uniform(const RandomParams& p)
      : low(set1((float)p.a)), span(set1((float)(p.b - p.a))), below(set1((float)p.below)) {}
  GS_MEMBER void make(const vu word[4], vf v[4]) const {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) v[j] = min(below, low + span * uniform24(word[j]));
  }
};
struct Normal {
  vf mean, std;
  GS_MEMBER explicit Normal(const RandomParams& p)
      : mean(set1((float)p.a)), std(set1((float)p.b)) {}
  // u1 in (0, 1), u2 in [0, 1): r = sqrt(-2 ln u1), z = r cos(2 pi u2), r sin(2 pi u2)
  GS_MEMBER void make(const vu word[4], vf v[4]) const {
#pragma GCC unroll 2
    for (int j = 0; j < 4; j += 2) {
      vf even, odd, s, c;
      split_pairs(uniform24(word[j]), uniform24(word[j + 1]), &even, &odd);
      vf r = std * sqrt(-2.0f * log(even + 0.5f / 16777216.0f));
      sincos(odd * 6.28318531f, &s, &c);
      join_pairs(mean + r * c, mean + r * s, &v[j], &v[j + 1]);
    }
  }
};

template <class F>
void fill_f32(const void* params, void* const* buf, const Ctx* ctx) {
  const RandomParams& p = *(const RandomParams*)params;
  constexpr int N = simd<float>::N;
  float* out = (float*)buf[0];
  const PhiloxStream stream(p.seed, ctx->read(p.counter));
  const F f(p);
  for (int64_t b = ctx->tid * kRun; b < p.n; b += ctx->nt * kRun) {
    int64_t e = b + kRun < p.n ? b + kRun : p.n;
    for (int64_t i = b; i < e; i += 4 * N) {
      vu word[4];
      vf v[4];
      stream.next4((uint64_t)i, word);
      f.make(word, v);
      for (int j = 0; j < 4; ++j) {
        int64_t left = e - i - j * N;
        if (left >= N)
          store(out + i + j * N, v[j]);
        else if (left > 0)
          store_n(out + i + j * N, v[j], (int)left);
      }
    }
  }
}

// 53 bits from two words
GS_INLINE double uniform53(uint32_t hi, uint32_t lo) {
  return (double)(((uint64_t)hi << 21) ^ (lo >> 11)) * (1.0 / 9007199254740992.0);
}

template <bool normal>
void fill_f64(const void* params, void* const* buf, const Ctx* ctx) {
  const RandomParams& p = *(const RandomParams*)params;
  double* out = (double*)buf[0];
  const uint64_t op = ctx->read(p.counter);
  for (int64_t b = ctx->tid * kRun; b < p.n; b += ctx->nt * kRun) {
    int64_t e = b + kRun < p.n ? b + kRun : p.n;
    for (int64_t i = b; i < e; i += 2) {
      Philox4 x = philox(p.seed, op, (uint64_t)i / 2);
      double u1 = uniform53(x.v[0], x.v[1]), u2 = uniform53(x.v[2], x.v[3]), y[2];
      if (normal) {
        double r = __builtin_sqrt(-2.0 * ::log(u1 + 0.5 / 9007199254740992.0));
        double t = u2 * 6.283185307179586477;
        y[0] = p.a + p.b * (r * ::cos(t));
        y[1] = p.a + p.b * (r * ::sin(t));
      } else {
        y[0] = p.a + (p.b - p.a) * u1;
        y[1] = p.a + (p.b - p.a) * u2;
        y[0] = y[0] < p.below ? y[0] : p.below;
        y[1] = y[1] < p.below ? y[1] : p.below;
      }
      out[i] = y[0];
      if (i + 1 < e) out[i + 1] = y[1];
    }
  }
}

template <int cost>
void plan(const void* params, Plan* plan) {
  const RandomParams& p = *(const RandomParams*)params;
  plan->tasks = (p.n + kRun - 1) / kRun;
  plan->work = p.n * cost / 4;
}

const KernelEntry entries[] = {
    {"uniform", kF32, fill_f32<Uniform>, plan<3>},
    {"uniform", kF64, fill_f64<false>, plan<30>},
    {"normal", kF32, fill_f32<Normal>, plan<8>},
    {"normal", kF64, fill_f64<true>, plan<120>},
};

}  // namespace

extern const KernelList elementwise_random_kernels;
const KernelList elementwise_random_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
