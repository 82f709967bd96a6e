// Conversion between float32 and bfloat16 (the upper half of a float32), contiguous arrays of n
// elements.
//
// To bfloat16 rounds to nearest even; NaN stays NaN (quiet), denormals are kept. Runs of kRun
// elements are the tasks; 6 bytes an element move, so the floor is the memory bandwidth. With
// AVX512-BF16 one instruction rounds 16 elements; it flushes denormals, so vectors that hold one
// take the integer path, and every instruction set gives the same bits.
#include "bfloat16.h"

#include <string.h>

#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kRun = 16384;

GS_INLINE uint16_t round_one(uint32_t x) {
  if ((x & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((x >> 16) | 0x40);
  return (uint16_t)((x + 0x7fffu + ((x >> 16) & 1)) >> 16);
}

void to_bfloat16(const void* params, void* const* buf, const Ctx* ctx) {
  int64_t n = ((const Bfloat16Params*)params)->n;
  const float* in = (const float*)buf[0];
  uint16_t* out = (uint16_t*)buf[1];
  for (int64_t t = ctx->tid; t * kRun < n; t += ctx->nt) {
    int64_t i = t * kRun, e = i + kRun < n ? i + kRun : n;
#if defined(__AVX512BF16__)
    for (; i + 16 <= e; i += 16) {
      __m512 v = _mm512_loadu_ps(in + i);
      // class mask 0x20: denormal
      if (_mm512_fpclass_ps_mask(v, 0x20)) {
        for (int j = 0; j < 16; ++j) {
          uint32_t x;
          memcpy(&x, in + i + j, 4);
          out[i + j] = round_one(x);
        }
      } else {
        _mm256_storeu_si256((__m256i*)(out + i), (__m256i)_mm512_cvtneps_pbh(v));
      }
    }
#endif
    for (; i < e; ++i) {
      uint32_t x;
      memcpy(&x, in + i, 4);
      out[i] = round_one(x);
    }
  }
}

void from_bfloat16(const void* params, void* const* buf, const Ctx* ctx) {
  int64_t n = ((const Bfloat16Params*)params)->n;
  const uint16_t* in = (const uint16_t*)buf[0];
  float* out = (float*)buf[1];
  for (int64_t t = ctx->tid; t * kRun < n; t += ctx->nt) {
    int64_t i = t * kRun, e = i + kRun < n ? i + kRun : n;
    for (; i < e; ++i) {
      uint32_t x = (uint32_t)in[i] << 16;
      memcpy(out + i, &x, 4);
    }
  }
}

void plan(const void* params, Plan* p) {
  int64_t n = ((const Bfloat16Params*)params)->n;
  p->tasks = (n + kRun - 1) / kRun;
  p->work = n / 8;
}

const KernelEntry entries[] = {
    {"float32_to_bfloat16", kF32, to_bfloat16, plan},
    {"bfloat16_to_float32", kF32, from_bfloat16, plan},
};

}  // namespace

extern const KernelList bfloat16_kernels;
const KernelList bfloat16_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
