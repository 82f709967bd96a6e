// Depthwise convolution (groups = channels = filters), forward, backward-data and backward-weight.
//
// Vectors run over the channels. Forward and backward-data are one walk over phases (geometry.h): a
// tile of kWidth pixels of a row and one vector of channels stays in registers while the taps pass;
// columns where a tap lies outside are done one by one. Weights are transposed to (tap, channel)
// once a launch. Backward-weight keeps a vector for each of up to kTaps taps of a kernel row while
// a row of pixels passes; rows are summed in slices that depend on the shape alone, and the slices
// are added in order. Floor: the traffic of x and y once; 2 x kernel operations an element.
#include <string.h>

#include "conv/geometry.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int kWidth = 8;
constexpr int kTaps = 4;

// taps-major weights: dst (taps, channels), w (channels, taps); the step of one member
template <class T>
void turn_weights(const T* w, int64_t channels, int64_t taps, T* dst, const Ctx* ctx) {
  for (int64_t c = ctx->tid * 64; c < channels; c += ctx->nt * 64)
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t i = c; i < min64(c + 64, channels); ++i) dst[t * channels + i] = w[i * taps + t];
}

struct Strides {
  int64_t in_row, in_pixel, out_pixel;
};

// One output pixel of one vector of channels. x: image, channel c; w: taps at channel c.
template <class T>
GS_INLINE void pixel(const Axis& h, const Axis& w, int64_t channels, int64_t kernel_w,
                     int64_t in_row, const T* x, const T* wt, int64_t at_h, int64_t at_w, T* y,
                     typename simd<T>::V bias, int lanes, bool relu) {
  using V = typename simd<T>::V;
  V s = V{};
  for (int64_t i = 0; i < h.taps; ++i) {
    int64_t a = at_h + i * h.off_step;
    if (a < 0 || a >= h.in) continue;
    for (int64_t k = 0; k < w.taps; ++k) {
      int64_t b = at_w + k * w.off_step;
      if (b < 0 || b >= w.in) continue;
      int64_t tap = (h.tap0 + i * h.tap_step) * kernel_w + w.tap0 + k * w.tap_step;
      s = fma(load_n(x + a * in_row + b * channels, lanes), load_n(wt + tap * channels, lanes), s);
    }
  }
  s += bias;
  if (relu) s = max(V{}, s);
  store_n(y, s, lanes);
}

template <class T>
void walk(const void* params, void* const* buf, const Ctx* ctx, bool backward) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const ConvParams& p = *(const ConvParams*)params;
  const T *x = (const T*)buf[0], *bias = (const T*)buf[2];
  T *y = (T*)buf[3], *wt = (T*)ctx->scratch;
  int64_t C = p.channels;
  turn_weights((const T*)buf[1], C, p.kernel_h * p.kernel_w, wt, ctx);
  ctx->sync();
  int64_t in_h = backward ? p.out_h : p.in_h, in_w = backward ? p.out_w : p.in_w;
  int64_t out_h = backward ? p.in_h : p.out_h, out_w = backward ? p.in_w : p.out_w;
  int64_t in_row = in_w * C;
  bool relu = p.activation == kConvRelu;
  int64_t phases_w = backward ? min64(p.stride_w, out_w) : 1;
  // a task: one row of the output
  for (int64_t t = ctx->tid; t < p.n * out_h; t += ctx->nt) {
    int64_t n = t / out_h, row = t % out_h;
    int64_t rh = backward ? row % p.stride_h : 0;
    Axis h = backward
                 ? backward_axis(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h, rh)
                 : forward_axis(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h);
    int64_t at_h = (backward ? row / p.stride_h : row) * h.step + h.off0, lo, hi;
    valid_taps(h, at_h, &lo, &hi);
    const T* image = x + n * in_h * in_row;
    for (int64_t rw = 0; rw < phases_w; ++rw) {
      Axis w =
          backward
              ? backward_axis(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w, rw)
              : forward_axis(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w);
      // columns [q0, q1): every tap inside
      int64_t q0 = w.off0 < 0 ? ceil_div(-w.off0, w.step) : 0;
      int64_t room = w.in - 1 - w.off0 - (w.taps - 1) * w.off_step;
      int64_t q1 = w.taps == 0 ? w.out : room < 0 ? 0 : min64(room / w.step + 1, w.out);
      q0 = min64(q0, w.out);
      if (q1 < q0) q1 = q0;
      T* out = y + ((n * out_h + row) * out_w + w.out0) * C;
      int64_t out_step = w.out_step * C, in_step = w.step * C;
      for (int64_t c = 0; c < C; c += N) {
        int lanes = (int)min64(N, C - c);
        V b = bias ? load_n(bias + c, lanes) : V{};
        for (int64_t q = 0; q < w.out; ++q) {
          if (q == q0 && lanes == N) {
            for (; q + kWidth <= q1; q += kWidth) {
              V s[kWidth];
#pragma GCC unroll 8
              for (int k = 0; k < kWidth; ++k) s[k] = V{};
              for (int64_t i = lo; i < hi; ++i) {
                const T* r =
                    image + (at_h + i * h.off_step) * in_row + (q * w.step + w.off0) * C + c;
                const T* f = wt + ((h.tap0 + i * h.tap_step) * p.kernel_w + w.tap0) * C + c;
                for (int64_t k = 0; k < w.taps; ++k, r += w.off_step * C, f += w.tap_step * C) {
                  V v = load(f);
#pragma GCC unroll 8
                  for (int m = 0; m < kWidth; ++m) s[m] = fma(load(r + m * in_step), v, s[m]);
                }
              }
#pragma GCC unroll 8
              for (int k = 0; k < kWidth; ++k) {
                V v = s[k] + b;
                store(out + (q + k) * out_step + c, relu ? max(V{}, v) : v);
              }
            }
            if (q >= w.out) break;
          }
          pixel(h, w, C, p.kernel_w, in_row, image + c, wt + c, at_h, q * w.step + w.off0,
                out + q * out_step + c, b, lanes, relu);
        }
      }
    }
  }
}

template <class T>
void forward(const void* params, void* const* buf, const Ctx* ctx) {
  walk<T>(params, buf, ctx, false);
}
template <class T>
void backward_data(const void* params, void* const* buf, const Ctx* ctx) {
  walk<T>(params, buf, ctx, true);
}

template <class T>
void walk_plan(const ConvParams& p, Plan* plan, int64_t rows) {
  plan->tasks = rows;
  plan->scratch = (size_t)(p.kernel_h * p.kernel_w * p.channels) * sizeof(T);
  plan->work = p.n * p.out_h * p.out_w * p.channels * (4 + p.kernel_h * p.kernel_w) /
                   (GS_VBYTES / (int64_t)sizeof(T)) +
               1000;
}
template <class T>
void forward_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  walk_plan<T>(p, plan, p.n * p.out_h);
}
template <class T>
void backward_data_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  walk_plan<T>(p, plan, p.n * p.in_h);
}

GS_INLINE int64_t slices_of(const ConvParams& p) {
  return max64(1, min64(16, p.n * p.out_h * p.out_w / 512));
}

// Row r of pixels, kernel row i, columns k0 ... k0 + Taps: dw[tap][c] += x * dy for a vector of
// channels. x, dy, part: at channel c
template <class T, int Taps, bool Whole>
GS_INLINE void weight_taps(const ConvParams& p, const T* xr, const T* d, T* part, int64_t k0,
                           int lanes) {
  using V = typename simd<T>::V;
  int64_t C = p.channels, at = k0 * p.dilation_w - p.pad_w, tap = p.dilation_w * C;
  // columns [q0, q1): all of the taps inside
  int64_t q0 = at < 0 ? min64(ceil_div(-at, p.stride_w), p.out_w) : 0;
  int64_t room = p.in_w - 1 - at - (Taps - 1) * p.dilation_w;
  int64_t q1 = room < 0 ? 0 : min64(room / p.stride_w + 1, p.out_w);
  if (q1 < q0) q1 = q0;
  V s[Taps];
#pragma GCC unroll 4
  for (int k = 0; k < Taps; ++k) s[k] = V{};
  for (int64_t q = 0; q < p.out_w; ++q) {
    if (q == q0) {
      const T *e = d + q * C, *f = xr + (q * p.stride_w + at) * C;
      for (; q < q1; ++q, e += C, f += p.stride_w * C) {
        V v = Whole ? load(e) : load_n(e, lanes);
#pragma GCC unroll 4
        for (int k = 0; k < Taps; ++k)
          s[k] = fma(Whole ? load(f + k * tap) : load_n(f + k * tap, lanes), v, s[k]);
      }
      if (q == p.out_w) break;
    }
    V v = load_n(d + q * C, lanes);
    int64_t b = q * p.stride_w + at;
#pragma GCC unroll 4
    for (int k = 0; k < Taps; ++k, b += p.dilation_w)
      if (b >= 0 && b < p.in_w) s[k] = fma(load_n(xr + b * C, lanes), v, s[k]);
  }
#pragma GCC unroll 4
  for (int k = 0; k < Taps; ++k) store_n(part + k * C, load_n(part + k * C, lanes) + s[k], lanes);
}

// All columns of kernel row i for row r of pixels.
template <class T, bool Whole>
void weight_row(const ConvParams& p, int64_t r, int64_t i, const T* x, const T* dy, T* part,
                int lanes) {
  int64_t C = p.channels, n = r / p.out_h;
  int64_t a = r % p.out_h * p.stride_h - p.pad_h + i * p.dilation_h;
  if (a < 0 || a >= p.in_h) return;
  const T *xr = x + (n * p.in_h + a) * p.in_w * C, *d = dy + r * p.out_w * C;
  part += i * p.kernel_w * C;
  for (int64_t k = 0; k < p.kernel_w; k += kTaps) switch (min64(kTaps, p.kernel_w - k)) {
      case 1:
        weight_taps<T, 1, Whole>(p, xr, d, part + k * C, k, lanes);
        break;
      case 2:
        weight_taps<T, 2, Whole>(p, xr, d, part + k * C, k, lanes);
        break;
      case 3:
        weight_taps<T, 3, Whole>(p, xr, d, part + k * C, k, lanes);
        break;
      default:
        weight_taps<T, 4, Whole>(p, xr, d, part + k * C, k, lanes);
    }
}

template <class T>
void backward_weight(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const ConvParams& p = *(const ConvParams*)params;
  const T *x = (const T*)buf[0], *dy = (const T*)buf[1];
  T *dw = (T*)buf[2], *db = (T*)buf[3];
  int64_t C = p.channels, taps = p.kernel_h * p.kernel_w, slices = slices_of(p),
          rows = p.n * p.out_h;
  int64_t stride = (taps + 1) * C;  // the last row of a slice sums dy
  T* parts = (T*)ctx->scratch;
  int64_t vectors = ceil_div(C, N);
  for (int64_t t = ctx->tid; t < slices * vectors; t += ctx->nt) {
    int64_t slice = t / vectors, c = t % vectors * N;
    int lanes = (int)min64(N, C - c);
    T* part = parts + slice * stride + c;
    for (int64_t i = 0; i <= taps; ++i) store_n(part + i * C, V{}, lanes);
    for (int64_t r = slice * rows / slices; r < (slice + 1) * rows / slices; ++r) {
      for (int64_t i = 0; i < p.kernel_h; ++i)
        if (lanes == N)
          weight_row<T, true>(p, r, i, x + c, dy + c, part, lanes);
        else
          weight_row<T, false>(p, r, i, x + c, dy + c, part, lanes);
      if (p.has_bias) {
        V s = V{};
        for (int64_t q = 0; q < p.out_w; ++q) s += load_n(dy + (r * p.out_w + q) * C + c, lanes);
        store_n(part + taps * C, load_n(part + taps * C, lanes) + s, lanes);
      }
    }
  }
  ctx->sync();
  for (int64_t c = ctx->tid * 16; c < C; c += ctx->nt * 16)
    for (int64_t e = c; e < min64(c + 16, C); ++e)
      for (int64_t i = 0; i <= taps; ++i) {
        T sum = parts[i * C + e];
        for (int64_t s = 1; s < slices; ++s) sum += parts[s * stride + i * C + e];
        if (i < taps)
          dw[e * taps + i] = sum;
        else if (p.has_bias)
          db[e] = sum;
      }
}

template <class T>
void backward_weight_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  int64_t slices = slices_of(p);
  walk_plan<T>(p, plan, slices * ceil_div(p.channels, simd<T>::N));
  plan->scratch = (size_t)(slices * (p.kernel_h * p.kernel_w + 1) * p.channels) * sizeof(T);
}

const KernelEntry entries[] = {
    {"conv_depthwise_forward", kF32, forward<float>, forward_plan<float>},
    {"conv_depthwise_forward", kF64, forward<double>, forward_plan<double>},
    {"conv_depthwise_backward_data", kF32, backward_data<float>, backward_data_plan<float>},
    {"conv_depthwise_backward_data", kF64, backward_data<double>, backward_data_plan<double>},
    {"conv_depthwise_backward_weight", kF32, backward_weight<float>, backward_weight_plan<float>},
    {"conv_depthwise_backward_weight", kF64, backward_weight<double>, backward_weight_plan<double>},
};

}  // namespace

extern const KernelList conv_depthwise_kernels;
const KernelList conv_depthwise_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
