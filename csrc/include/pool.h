// Parameters of the pooling family: maximum and average over windows of images, channels last.
#pragma once
#include "kernel.h"

namespace gs {

// x is (n, h, w, c), y is (n, oh, ow, c). Window (i, j) covers the taps i * sh - ph + a * dh,
// j * sw - pw + b * dw, a < kh, b < kw, as far as they lie in the image; adaptive: rows
// floor(i * h / oh) .. ceil((i + 1) * h / oh) and columns alike, kh and kw then being the largest
// window.
//
// max_pool: buffers x, y, index?; index (n, oh, ow, c): a * kw + b of the first maximum (of the
// last NaN),
//   kh * kw when the window
//   has no tap in the image; index_bytes 1 (kh * kw <= 255) or 4.
// max_pool_backward: buffers dy, index, dx.
// avg_pool: buffers x, y; the sum over the taps in the image divided by `divisor`, or when that is
// 0 by
//   the size of the window: as far as it lies in the padded image (include_pad) or in the image.
// avg_pool_backward: buffers dy, dx.
struct PoolParams {
  int64_t n, h, w, c, oh, ow;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
  double divisor;
  int32_t adaptive, include_pad, index_bytes;
  int32_t relu;   // max_pool: of max(x, 0); index kh * kw where the maximum is not positive
  int64_t holds;  // an op all of whose arrays are no more bytes keeps dx in the caches
};

}  // namespace gs
