// Probes of the machine's limits, compiled per instruction set because the limit depends on it.
//
// fma_peak: 24 accumulators hide the latency of FMA (4-5 cycles x 2 a cycle = 10); nothing leaves
// the registers. stream_copy: out[i] = in[i] over blocks far larger than the caches, n + m bytes
// move; with unequal sizes the same mix of reads and writes as a kernel that shrinks or grows an
// array.
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
  const int64_t lines = (p.n < p.m ? p.n : p.m) / 64;
  const int64_t b = lines * ctx->tid / ctx->nt, e = lines * (ctx->tid + 1) / ctx->nt;
  const int64_t reads = lines ? p.n / 64 / lines : 0, writes = lines ? p.m / 64 / lines : 0;
  constexpr int N = simd<float>::N, W = 64 / GS_VBYTES;
  const float* in = (const float*)buf[0] + b * reads * 16;
  float* out = (float*)buf[1] + b * writes * 16;
  for (int64_t i = b; i < e; ++i) {
    vf v[W];
#pragma GCC unroll 4
    for (int k = 0; k < W; ++k) v[k] = load(in + k * N);
    for (int64_t r = 1; r < reads; ++r) {
      in += 16;
      fetch(in);
#pragma GCC unroll 4
      for (int k = 0; k < W; ++k) v[k] += load(in + k * N);
    }
    in += 16;
    for (int64_t r = 0; r < writes; ++r, out += 16)
#pragma GCC unroll 4
      for (int k = 0; k < W; ++k) write(p.streaming, out + k * N, v[k]);
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
