// Dropout: element by element or channel by channel, plain or alpha (affine) form.
//
// The mask is a function of (seed, op counter, element): Philox4x32-10, one 32-bit word an element,
// so it is the same for any number of threads, instruction set or device, and the backward draws it
// again instead of storing it. Floor: one read and one write an element; ten Philox rounds cost
// about 2 cycles a round and 16 words on AVX-512.
#include "dropout.h"

#include "simd/philox.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kRun = 16384;  // a multiple of 4 N for every instruction set

// f(i, w, count): words of elements i .. i + 4 N - 1, the first count of them in range
template <class F>
GS_INLINE void each_block(const PhiloxStream& s, int64_t b, int64_t e, F f) {
  constexpr int N = simd<float>::N;
  for (int64_t i = b; i < e; i += 4 * N) {
    vu w[4];
    s.next4((uint64_t)i, w);
    f(i, w, (int)(e - i < 4 * N ? e - i : 4 * N));
  }
}

GS_INLINE void drop_run(const DropoutParams& p, const PhiloxStream& s, const float* in, float* out,
                        int64_t b, int64_t e) {
  constexpr int N = simd<float>::N;
  const vf va = set1((float)p.a), vb = set1((float)p.b), vc = set1((float)p.c);
  const vu t = vu{} + p.threshold;
  each_block(
      s, b, e, [=](int64_t i, const vu* w, int n) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          int k = n - j * N;
          if (k >= N)
            store(out + i + j * N, w[j] >= t ? fma(load(in + i + j * N), va, vb) : vc);
          else if (k > 0)
            store_n(out + i + j * N, w[j] >= t ? fma(load_n(in + i + j * N, k), va, vb) : vc, k);
        }
      });
}

GS_INLINE void drop_run(const DropoutParams& p, const PhiloxStream& s, const double* in,
                        double* out, int64_t b, int64_t e) {
  constexpr int N = simd<float>::N;
  const double va = p.a, vb = p.b, vc = p.c;
  const uint32_t t = p.threshold;
  each_block(
      s, b, e, [=](int64_t i, const vu* w, int n) __attribute__((always_inline)) {
        uint32_t words[4 * N];
        for (int j = 0; j < 4; ++j) store((float*)words + j * N, (vf)w[j]);
        for (int j = 0; j < n; ++j) out[i + j] = words[j] >= t ? fma(in[i + j], va, vb) : vc;
      });
}

template <class T>
void dropout(const void* params, void* const* buf, const Ctx* ctx) {
  const DropoutParams& p = *(const DropoutParams*)params;
  const T* in = (const T*)buf[0];
  T* out = (T*)buf[1];
  const PhiloxStream s(p.seed, ctx->read(p.counter));
  int64_t tasks = (p.n + kRun - 1) / kRun;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t b = t * kRun, e = b + kRun < p.n ? b + kRun : p.n;
    if (p.none)
      for (int64_t i = b; i < e; ++i) out[i] = (T)p.c;
    else
      drop_run(p, s, in, out, b, e);
  }
}

template <class T>
void dropout_plan(const void* params, Plan* plan) {
  const DropoutParams& p = *(const DropoutParams*)params;
  plan->tasks = (p.n + kRun - 1) / kRun;
  plan->work = p.n / 2;
}

// The factors of all (outer, channel) first: 1 keeps, 0 drops. Then rows of channels.
template <class T>
void dropout_channels(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const DropoutChannelsParams& q = *(const DropoutChannelsParams*)params;
  const DropoutParams& p = q.each;
  T* mask = (T*)ctx->scratch;
  const PhiloxStream s(p.seed, ctx->read(p.counter));
  for (int64_t t = ctx->tid; t * kRun < p.n; t += ctx->nt) {
    int64_t b = t * kRun, e = b + kRun < p.n ? b + kRun : p.n;
    each_block(s, b, e, [&](int64_t i, const vu* w, int n) {
      for (int j = 0; j < n; ++j)
        mask[i + j] = !p.none && w[j / simd<float>::N][j % simd<float>::N] >= p.threshold ? 1 : 0;
    });
  }
  ctx->sync();
  const T* in = (const T*)buf[0];
  T* out = (T*)buf[1];
  const V va = set1((T)p.a), vb = set1((T)p.b), vc = set1((T)p.c);
  int64_t C = q.channels, rows = q.outer * q.inner, group = kRun / (C > 0 ? C : 1);
  group = group < 1 ? 1 : group;
  for (int64_t t = ctx->tid; t * group < rows; t += ctx->nt) {
    int64_t e = (t + 1) * group < rows ? (t + 1) * group : rows;
    for (int64_t r = t * group; r < e; ++r) {
      const T *m = mask + r / q.inner * C, *x = in + r * C;
      T* y = out + r * C;
      int64_t c = 0;
      for (; c + N <= C; c += N) store(y + c, load(m + c) > 0 ? fma(load(x + c), va, vb) : vc);
      if (c < C) {
        int k = (int)(C - c);
        store_n(y + c, load_n(m + c, k) > 0 ? fma(load_n(x + c, k), va, vb) : vc, k);
      }
    }
  }
}

template <class T>
void dropout_channels_plan(const void* params, Plan* plan) {
  const DropoutChannelsParams& q = *(const DropoutChannelsParams*)params;
  int64_t n = q.outer * q.inner * q.channels;
  plan->tasks = (n + kRun - 1) / kRun;
  plan->work = n / 8 + q.each.n;
  plan->scratch = (size_t)q.each.n * sizeof(T);
}

void philox_words(const void* params, void* const* buf, const Ctx* ctx) {
  const PhiloxParams& p = *(const PhiloxParams*)params;
  if (ctx->tid != 0) return;
  const PhiloxStream s(p.seed, p.counter);
  constexpr int N = simd<float>::N;
  for (int64_t i = 0; i < p.n; i += 4 * N) {
    vu w[4];
    s.next4(p.first + (uint64_t)i, w);
    for (int j = 0; j < 4 * N && i + j < p.n; ++j) ((uint32_t*)buf[0])[i + j] = w[j / N][j % N];
  }
}
void philox_plan(const void*, Plan* plan) { plan->tasks = 1; }

const KernelEntry entries[] = {
    {"dropout", kF32, dropout<float>, dropout_plan<float>},
    {"dropout", kF64, dropout<double>, dropout_plan<double>},
    {"dropout_channels", kF32, dropout_channels<float>, dropout_channels_plan<float>},
    {"dropout_channels", kF64, dropout_channels<double>, dropout_channels_plan<double>},
    {"philox", kI32, philox_words, philox_plan},
};

}  // namespace

extern const KernelList dropout_kernels;
const KernelList dropout_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
