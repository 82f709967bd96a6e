// The first layer of a small network in one pass: convolution of a few channels, bias, ReLU and
// 2 x 2 max-pool, so that the convolution's output, the largest array of the step, never exists.
//
//   a[n,p,q,k] = relu?(bias[k] + sum_ijc x[n, p - pad_h + i, q - pad_w + j, c] w[k,i,j,c])
//   y[n,p,q,k] = max of a[n, 2p .. 2p+1, 2q .. 2q+1, k]
//   index: as in conv/pool.h
//
// A task is a row of y of one image. Its kernel_h + 1 rows of x are copied with their border of
// zeros (a few KB); the four pixels of a window or two times two vectors of filters are
// accumulators that pass over the taps in the order of conv_direct, which gives the same bits.
// Weights are packed once, (tap and channel, filters up to whole vectors). Where the largest x of
// the rows times the sums of weights shows that every value is finite, NaN needs no test in the
// maximum. Floor: 4 FMAs a tap, channel and filter of y; traffic x, y and a byte for each of y.
#include <string.h>

#include "conv/geometry.h"
#include "conv/pool.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

using V = simd<float>::V;
using I = simd<float>::I;
constexpr int N = simd<float>::N;

struct Layout {
  int64_t taps;     // reduction: kernel_h * kernel_w * channels
  int64_t filters;  // rounded up to two vectors
  int64_t oh, ow;   // of y
  int64_t line;     // floats of a copied row of x
  int64_t room;     // floats of a member's copy
};
GS_INLINE Layout layout(const ConvParams& p) {
  Layout l;
  l.taps = p.kernel_h * p.kernel_w * p.channels;
  l.filters = ceil_div(p.filters, 2 * N) * 2 * N;
  l.oh = p.out_h / 2;
  l.ow = p.out_w / 2;
  l.line = (2 * l.ow + p.kernel_w - 1) * p.channels;
  l.room = (l.line * (p.kernel_h + 1) + 15) & ~(int64_t)15;
  return l;
}

// Rows row .. row + kernel_h of the bordered x of one image.
void copy_rows(const ConvParams& p, const Layout& l, const float* x, int64_t row, float* to) {
  int64_t c = p.channels, left = min64(p.pad_w * c, l.line);
  int64_t inner = min64(p.in_w * c, l.line - left), right = l.line - left - inner;
  for (int64_t i = 0; i <= p.kernel_h; ++i, to += l.line) {
    int64_t r = row - p.pad_h + i;
    if (r < 0 || r >= p.in_h) {
      memset(to, 0, (size_t)l.line * sizeof(float));
      continue;
    }
    memset(to, 0, (size_t)left * sizeof(float));
    memcpy(to + left, x + r * p.in_w * c, (size_t)inner * sizeof(float));
    memset(to + left + inner, 0, (size_t)right * sizeof(float));
  }
}

// W windows from `from` on, against the two vectors of filters u (taps, l.filters): y and index of
// the first.
template <int W, bool Finite>
GS_INLINE void windows(const ConvParams& p, const Layout& l, const float* from, const float* u,
                       V b0, V b1, float* y, uint8_t* index, int a, int b) {
  const bool relu = p.activation == kConvRelu;
  const int64_t run = p.kernel_w * p.channels, step = p.channels;
  V acc[W][2][4];
#pragma GCC unroll 2
  for (int i = 0; i < W; ++i)
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {
      acc[i][0][m] = b0;
      acc[i][1][m] = b1;
    }
  for (int64_t i = 0; i < p.kernel_h; ++i, from += l.line)
    for (int64_t j = 0; j < run; ++j, u += l.filters) {
      V w0 = load(u), w1 = load(u + N);
      const float* top = from + j;
#pragma GCC unroll 2
      for (int w = 0; w < W; ++w, top += 2 * step) {
        const V in[4] = {set1(top[0]), set1(top[step]), set1(top[l.line]),
                         set1(top[l.line + step])};
#pragma GCC unroll 4
        for (int m = 0; m < 4; ++m) {
          acc[w][0][m] = fma(in[m], w0, acc[w][0][m]);
          acc[w][1][m] = fma(in[m], w1, acc[w][1][m]);
        }
      }
    }
  const V low = set1(relu ? 0.0f : -__builtin_inff());
#pragma GCC unroll 2
  for (int i = 0; i < W; ++i, y += p.filters, index = index ? index + p.filters : index)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const int lanes = v ? b : a;
      if (lanes <= 0) continue;
      uint8_t* to = index ? index + v * N : index;
      if (Finite) {
        put_finite(acc[i][v], relu, y + v * N, to, lanes);
        continue;
      }
      V best = max(low, acc[i][v][0]);
      I at = {};
#pragma GCC unroll 3
      for (int m = 1; m < 4; ++m) keep(max(low, acc[i][v][m]), m, best, at);
      put(best, at, relu, y + v * N, to, lanes);
    }
}
#if GS_VBYTES == 64 || defined(__ARM_NEON)
constexpr int kWindows = 2;
#else
constexpr int kWindows = 1;
#endif

// The largest magnitude of n floats, whose vectors may be read to their end; a NaN is larger.
GS_INLINE float largest(const float* x, int64_t n) {
  I most = {};
  for (int64_t i = 0; i < n; i += N) {
    const I bits = (I)load(x + i) & set1((int32_t)0x7fffffff);
    most = bits > most ? bits : most;
  }
  int32_t r = 0;
  for (int i = 0; i < N; ++i) r = most[i] > r ? most[i] : r;
  float f;
  memcpy(&f, &r, sizeof(f));
  return f;
}

void stem_pool(const void* params, void* const* buf, const Ctx* ctx) {
  const ConvParams& p = *(const ConvParams*)params;
  const Layout l = layout(p);
  const float *x = (const float*)buf[0], *w = (const float*)buf[1], *bias = (const float*)buf[2];
  float* y = (float*)buf[3];
  uint8_t* index = (uint8_t*)buf[4];
  float *packed = (float*)ctx->scratch, *first = packed + l.taps * l.filters;
  for (int64_t k = 0; k < l.filters; ++k) {
    if (k / N % ctx->nt != ctx->tid) continue;  // a line of the cache is one member's
    for (int64_t t = 0; t < l.taps; ++t)
      packed[t * l.filters + k] = k < p.filters ? w[k * l.taps + t] : 0.0f;
    first[k] = bias && k < p.filters ? bias[k] : 0.0f;
  }
  float* rows = first + l.filters + ctx->tid * l.room;
  memset(rows, 0, (size_t)l.room * sizeof(float));
  int64_t* next_row = (int64_t*)(first + l.filters + p.threads * l.room);
  if (ctx->tid == 0) __atomic_store_n(next_row, (int64_t)0, __ATOMIC_RELAXED);
  ctx->sync();
  float bound = 0;  // of what |x| <= 1 gives
  for (int64_t k = 0; k < l.filters; ++k) {
    float sum = first[k] < 0 ? -first[k] : first[k];
    for (int64_t t = 0; t < l.taps; ++t) {
      const float u = packed[t * l.filters + k];
      sum += u < 0 ? -u : u;
    }
    bound = sum <= bound ? bound : sum;  // a NaN stays
    if (sum != sum) break;
  }
  const int64_t step = p.channels;
  // runs of rows, to whoever is free: rows dealt out in turn would lie beside the other's
  const int64_t all = p.n * l.oh, length = max64(1, all / (16 * ctx->nt));
  int64_t end = 0;
  for (int64_t t = 0;; ++t) {
    if (t >= end) {
      t = __atomic_fetch_add(next_row, length, __ATOMIC_RELAXED);
      end = min64(t + length, all);
      if (t >= all) break;
    }
    copy_rows(p, l, x + t / l.oh * p.in_h * p.in_w * p.channels, t % l.oh * 2, rows);
    const float most = largest(rows, l.room);
    const bool finite = bound * (most < 1 ? 1 : most) < 1e38f;
    for (int64_t k = 0; k < p.filters; k += 2 * N) {
      const int a = (int)min64(N, p.filters - k), b = (int)min64(N, p.filters - k - N);
      const V b0 = load(first + k), b1 = load(first + k + N);
      float* to = y + t * l.ow * p.filters + k;
      uint8_t* at = index ? index + t * l.ow * p.filters + k : index;
      int64_t q = 0;
      auto next = [&](int64_t count) __attribute__((always_inline)) {
        q += count;
        to += count * p.filters;
        at = at ? at + count * p.filters : at;
      };
      if (finite) {
        for (; q + kWindows <= l.ow; next(kWindows))
          windows<kWindows, true>(p, l, rows + 2 * q * step, packed + k, b0, b1, to, at, a, b);
        if (kWindows > 1 && q < l.ow)
          windows<1, true>(p, l, rows + 2 * q * step, packed + k, b0, b1, to, at, a, b);
      } else {
        for (; q < l.ow; next(1))
          windows<1, false>(p, l, rows + 2 * q * step, packed + k, b0, b1, to, at, a, b);
      }
    }
  }
}

void stem_pool_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  const Layout l = layout(p);
  plan->tasks = p.n * l.oh;
  plan->scratch = (size_t)((l.taps + 1) * l.filters + p.threads * l.room) * sizeof(float) + 64;
  plan->work = (int64_t)((double)(p.n * l.oh * l.ow * l.filters) * (double)(4 * l.taps + 8) /
                         (GS_VBYTES * 1.2)) +
               1000;
}

const KernelEntry entries[] = {{"conv_stem_pool", kF32, stem_pool, stem_pool_plan}};

}  // namespace

extern const KernelList conv_stem_kernels;
const KernelList conv_stem_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
