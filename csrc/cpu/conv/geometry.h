// One axis of a convolution as the kernels walk it.
//
// Forward and backward-data are the same walk over different numbers. Forward: output p meets tap i
// at input p * stride - pad + i * dilation. Backward-data splits its outputs (the pixels of dx) by
// their remainder r modulo the stride; within one such phase the taps that meet any dy are an
// arithmetic progression, the steps through dy are 1, and nothing is multiplied by zeros that a
// stride would insert. Taps are counted so that the input index grows with m, so neighbouring taps
// can be read as one run.
#pragma once
#include "conv.h"
#include "norm.h"

namespace gs {
namespace GS_ISA {

struct Axis {
  int64_t taps, tap0, tap_step;  // tap m is kernel index tap0 + m * tap_step
  int64_t step, off0, off_step;  // output p meets tap m at input p * step + off0 + m * off_step
  int64_t in;                    // inputs
  int64_t out, out0, out_step;   // outputs of this phase; output p has index out0 + p * out_step

  GS_MEMBER int64_t first() const { return off0; }
  GS_MEMBER int64_t last() const { return (out - 1) * step + off0 + (taps - 1) * off_step; }
};

GS_INLINE Axis forward_axis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                            int64_t dilation) {
  return Axis{kernel, 0, 1, stride, -pad, dilation, in, out, 0, 1};
}

// Phase r of dx (in), gathering from dy (out).
GS_INLINE Axis backward_axis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad,
                             int64_t dilation, int64_t r) {
  int64_t a = stride, b = dilation;
  while (b) {
    int64_t c = a % b;
    a = b;
    b = c;
  }
  int64_t every = stride / a, first = 0;  // taps first, first + every, ... hit a dy
  while (first < every && (r + pad - first * dilation) % stride != 0) ++first;
  int64_t taps = first < every && first < kernel ? (kernel - 1 - first) / every + 1 : 0;
  int64_t count = r < in ? (in - r + stride - 1) / stride : 0;
  int64_t tap0 = taps ? first + (taps - 1) * every : 0;
  int64_t off0 = taps ? (r + pad - tap0 * dilation) / stride : 0;
  return Axis{taps, tap0, -every, 1, off0, dilation / a, out, count, r, stride};
}

GS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
GS_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
GS_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
GS_INLINE size_t align64(size_t n) { return (n + 63) & ~(size_t)63; }

// Taps [lo, hi) of an axis whose input, starting at index `at`, lies inside.
GS_INLINE void valid_taps(const Axis& a, int64_t at, int64_t* lo, int64_t* hi) {
  int64_t l = at < 0 ? (-at + a.off_step - 1) / a.off_step : 0;
  int64_t h = at < a.in ? (a.in - 1 - at) / a.off_step + 1 : 0;
  *hi = min64(h, a.taps);
  *lo = min64(l, *hi > 0 ? *hi : 0);
  if (*hi < 0) *hi = 0;
}

// Rows [row0, row1) of y are there, columns [col, col + cols), of `pieces` pieces of columns this
// one: tells p.after. buf: of a forward kernel
GS_INLINE void written(const ConvParams& p, void* const* buf, int64_t row0, int64_t row1,
                       int64_t col, int64_t cols, int64_t piece, int64_t pieces) {
  if (row0 >= row1) return;
  NormPieceParams q{p.n * p.out_h * p.out_w, p.filters, row0, row1, col, cols, piece, pieces};
  p.after(&q, buf + 3, nullptr);
}

// Copies rows [row0, row1) of the zero-bordered image: dst (groups, n, hp, wp, c / groups), x (n,
// h, w, c); x starts at (top, left). A row is one (n, row of hp), for all groups.
template <class T>
static void pad_rows(const T* x, T* dst, int64_t n, int64_t h, int64_t w, int64_t c, int64_t groups,
                     int64_t hp, int64_t wp, int64_t top, int64_t left, int64_t row0,
                     int64_t row1) {
  int64_t ci = c / groups;
  for (int64_t r = row0; r < row1; ++r) {
    int64_t image = r / hp, y = r % hp - top;
    for (int64_t g = 0; g < groups; ++g) {
      T* d = dst + ((g * n + image) * hp + r % hp) * wp * ci;
      if (y < 0 || y >= h) {
        memset(d, 0, (size_t)(wp * ci) * sizeof(T));
        continue;
      }
      int64_t cols = min64(w, wp - left);
      memset(d, 0, (size_t)(left * ci) * sizeof(T));
      const T* s = x + (image * h + y) * w * c + g * ci;
      if (groups == 1)
        memcpy(d + left * ci, s, (size_t)(cols * ci) * sizeof(T));
      else
        for (int64_t q = 0; q < cols; ++q)
          for (int64_t k = 0; k < ci; ++k) d[(left + q) * ci + k] = s[q * c + k];
      memset(d + (left + cols) * ci, 0, (size_t)((wp - left - cols) * ci) * sizeof(T));
    }
  }
}

}  // namespace GS_ISA
}  // namespace gs
