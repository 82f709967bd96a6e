// Probes of the machine's limits, compiled per instruction set because the limit depends on it.
//
// fma_peak: 24 accumulators hide the latency of FMA (4-5 cycles x 2 a cycle = 10); nothing leaves
// the registers. stream_copy: out[i] = in[i] over blocks far larger than the caches; 2 n bytes
// move.
#include "probe.h"

#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
void fma_peak(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  const FmaPeakParams& p = *(const FmaPeakParams*)params;
  // half of the registers that the instruction set has
  constexpr int A = GS_VBYTES == 64 ? 24 : 12;
  V acc[A];
#pragma GCC unroll 24
  for (int i = 0; i < A; ++i) acc[i] = set1((T)i);
  V x = set1((T)1.0000001), y = set1((T)1e-9);
  for (int64_t k = 0; k < p.iterations; ++k) {
#pragma GCC unroll 24
    for (int i = 0; i < A; ++i) {
      acc[i] = fma(acc[i], x, y);
#if defined(__x86_64__)
      asm volatile("" : "+v"(acc[i]));
#endif
    }
  }
  V s = acc[0];
#pragma GCC unroll 24
  for (int i = 1; i < A; ++i) s += acc[i];
  if (ctx->tid == 0) ((T*)buf[0])[0] = hsum(s);
}

template <class T>
void fma_peak_plan(const void* params, Plan* plan) {
  const FmaPeakParams& p = *(const FmaPeakParams*)params;
  plan->tasks = p.members;
  plan->work = (int64_t)1 << 40;
}

void stream_copy(const void* params, void* const* buf, const Ctx* ctx) {
  const StreamCopyParams& p = *(const StreamCopyParams*)params;
  int64_t lines = p.n / 64;
  int64_t b = lines * ctx->tid / ctx->nt, e = lines * (ctx->tid + 1) / ctx->nt;
  const float* in = (const float*)buf[0];
  float* out = (float*)buf[1];
  constexpr int N = simd<float>::N;
  for (int64_t i = b * 16; i < e * 16; i += N) {
    vf v = load(in + i);
#if defined(__AVX512F__)
    if (p.streaming)
      _mm512_stream_ps(out + i, (__m512)v);
    else
#elif defined(__AVX2__)
    if (p.streaming)
      _mm256_stream_ps(out + i, (__m256)v);
    else
#elif defined(__x86_64__)
    if (p.streaming)
      _mm_stream_ps(out + i, (__m128)v);
    else
#endif
      store(out + i, v);
  }
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

void stream_copy_plan(const void* params, Plan* plan) {
  plan->tasks = ((const StreamCopyParams*)params)->members;
  plan->work = (int64_t)1 << 40;
}

const KernelEntry entries[] = {
    {"fma_peak", kF32, fma_peak<float>, fma_peak_plan<float>},
    {"fma_peak", kF64, fma_peak<double>, fma_peak_plan<double>},
    {"stream_copy", kF32, stream_copy, stream_copy_plan},
};

}  // namespace

extern const KernelList probe_kernels;
const KernelList probe_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
