// The first layer of a small network in one pass: convolution of a few channels, bias, ReLU and
// 2 x 2 max-pool, so that the convolution's output, the largest array of the step, never exists.
//
//   a[n,p,q,k] = relu?(bias[k] + sum_ijc x[n, p - pad_h + i, q - pad_w + j, c] w[k,i,j,c])
//   y[n,p,q,k] = max of a[n, 2p .. 2p+1, 2q .. 2q+1, k]
//   index: as in conv/pool.h
//
// A task is a row of y of one image. Its kernel_h + 1 rows of x are copied with their border of
// zeros (a few KB); a window's four pixels times two vectors of filters are eight accumulators that
// pass over the taps in the order of conv_direct, which gives the same bits. Weights are packed
// once, (tap and channel, filters up to whole vectors). Floor: 4 FMAs a tap, channel and filter of
// y; traffic x, y and a byte for each of y.
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

void stem_pool(const void* params, void* const* buf, const Ctx* ctx) {
  const ConvParams& p = *(const ConvParams*)params;
  const Layout l = layout(p);
  const float *x = (const float*)buf[0], *w = (const float*)buf[1], *bias = (const float*)buf[2];
  float* y = (float*)buf[3];
  uint8_t* index = (uint8_t*)buf[4];
  float *packed = (float*)ctx->scratch, *first = packed + l.taps * l.filters;
  for (int64_t k = ctx->tid; k < l.filters; k += ctx->nt) {
    for (int64_t t = 0; t < l.taps; ++t)
      packed[t * l.filters + k] = k < p.filters ? w[k * l.taps + t] : 0.0f;
    first[k] = bias && k < p.filters ? bias[k] : 0.0f;
  }
  float* rows = first + l.filters + ctx->tid * l.room;
  ctx->sync();
  const bool relu = p.activation == kConvRelu;
  const V low = set1(relu ? 0.0f : -__builtin_inff());
  const int64_t run = p.kernel_w * p.channels, step = p.channels;
  for (int64_t t = ctx->tid; t < p.n * l.oh; t += ctx->nt) {
    copy_rows(p, l, x + t / l.oh * p.in_h * p.in_w * p.channels, t % l.oh * 2, rows);
    for (int64_t k = 0; k < p.filters; k += 2 * N) {
      const int a = (int)min64(N, p.filters - k), b = (int)min64(N, p.filters - k - N);
      const V b0 = load(first + k), b1 = load(first + k + N);
      for (int64_t q = 0; q < l.ow; ++q) {
        V acc[4][2] = {{b0, b1}, {b0, b1}, {b0, b1}, {b0, b1}};
        const float* from = rows + 2 * q * step;
        const float* u = packed + k;
        for (int64_t i = 0; i < p.kernel_h; ++i, from += l.line)
          for (int64_t j = 0; j < run; ++j, u += l.filters) {
            V w0 = load(u), w1 = load(u + N);
            const V in[4] = {set1(from[j]), set1(from[j + step]), set1(from[l.line + j]),
                             set1(from[l.line + j + step])};
#pragma GCC unroll 4
            for (int m = 0; m < 4; ++m) {
              acc[m][0] = fma(in[m], w0, acc[m][0]);
              acc[m][1] = fma(in[m], w1, acc[m][1]);
            }
          }
        V best0 = max(low, acc[0][0]), best1 = max(low, acc[0][1]);
        I at0 = {}, at1 = {};
#pragma GCC unroll 3
        for (int m = 1; m < 4; ++m) {
          keep(max(low, acc[m][0]), m, best0, at0);
          keep(max(low, acc[m][1]), m, best1, at1);
        }
        int64_t o = (t * l.ow + q) * p.filters + k;
        put(best0, at0, relu, y + o, index ? index + o : index, a);
        if (b > 0) put(best1, at1, relu, y + o + N, index ? index + o + N : index, b);
      }
    }
  }
}

void stem_pool_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  const Layout l = layout(p);
  plan->tasks = p.n * l.oh;
  plan->scratch = (size_t)((l.taps + 1) * l.filters + p.threads * l.room) * sizeof(float);
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
