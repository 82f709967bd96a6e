// Convolution with tiles of bfloat16 where there are images enough: forward and both gradients, for
// 32 images at a time. conv/bfloat16.cpp packs a patch anew for every tap; here each element of x
// and dy is rounded once, into blocks of 32 images by 32 channels at one pixel (2 KB, one or two
// operands of a tile), and a tap is the block of another pixel. Taps outside of the image are left
// out, not multiplied by zero: 31 % of the products of a 3x3 over 4x4 pixels.
//
//   forward         y (images, filters) of a pixel   = sum over taps and 32 channels of
//                                                      x block (images, channels) W (channels,
//                                                      filters)
//   backward data   the same over dy, for each phase of the stride (geometry.h)
//   backward weight dw (filters, channels) of a tap  = sum over pixels of
//                                                      dy block (filters, images) x block (images,
//                                                      channels)
//
// Forward and data: a member walks rows of pixels; the rows of blocks that a row of pixels needs
// are kept in a ring, in strips of columns where they would not fit half of the second cache, and
// all filters of a group of panels (the other half) are made of them. Weight: a member has some
// filters and taps x channels; a strip of pixels is rounded, multiplied with the shifted strips of
// x, and added to sums that stay in the second cache.
//
// Bits: sums of at most kSteps blocks, in ascending order of taps and channels (weight: of pixels),
// are added one after the other; all of it follows from the shape. Floor: 2 x (taps inside) x n x
// channels x filters operations, 16 times the rate of float32; rounding takes 4 cycles a line.
#pragma once
#include "conv/geometry.h"
#include "matmul/bfloat16.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kBlock = kSide * kSide;     // elements of a block
constexpr int64_t kSteps = kDepth16 / kSide;  // blocks of a sum at most
constexpr int64_t kBlockHalf = kBlock * 2;    // bytes
constexpr int64_t kBlockFloat = kBlock * 4;

// out (32 x 32, or 16 columns or rows of it) = sum over n pairs of blocks a (rows, k), b (k,
// columns)
__attribute__((noinline)) void sum_blocks(const Half* const* a, const Half* const* b, int64_t n,
                                          bool tall, bool wide, float* out, int64_t ldo) {
  asm volatile("" ::: "memory");
  const int64_t os = ldo * 4;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if (tall && wide) {
    for (int64_t k = 0; k < n; ++k) {
      const char* soon = (const char*)b[k + 2 < n ? k + 2 : n - 1];
      _tile_loadd(4, a[k], 64);
      _tile_loadd(6, b[k], 128);
      _tile_dpbf16ps(0, 4, 6);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) __builtin_prefetch(soon + 64 * i);
      _tile_loadd(7, b[k] + 32, 128);
      _tile_dpbf16ps(1, 4, 7);
#pragma GCC unroll 16
      for (int i = 16; i < 32; ++i) __builtin_prefetch(soon + 64 * i);
      _tile_loadd(5, a[k] + 512, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  } else {
    for (int64_t k = 0; k < n; ++k) {
      _tile_loadd(4, a[k], 64);
      _tile_loadd(6, b[k], 128);
      _tile_dpbf16ps(0, 4, 6);
      if (wide) {
        _tile_loadd(7, b[k] + 32, 128);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (tall) {
        _tile_loadd(5, a[k] + 512, 64);
        _tile_dpbf16ps(2, 5, 6);
        if (wide) _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  _tile_stored(0, out, os);
  if (wide) _tile_stored(1, out + 16, os);
  if (tall) {
    _tile_stored(2, out + 16 * ldo, os);
    if (wide) _tile_stored(3, out + 16 * ldo + 16, os);
  }
  asm volatile("" ::: "memory");
}

GS_INLINE void add_block(const float* from, float* to) {
  for (int64_t i = 0; i < kBlock; i += 16)
    _mm512_storeu_ps(to + i, _mm512_add_ps(_mm512_loadu_ps(to + i), _mm512_loadu_ps(from + i)));
}

// 32 images' pixels [c0, c1) of a row, `channels` of them from `from` on (image 0, pixel c0),
// rounded to blocks (pixel, channels / 32). Pairs: of images side by side, as a panel has them.
struct Source {
  const float* from;
  int64_t image, pixel, channels, images;  // distances; how many of each there are
};
template <bool Pairs>
__attribute__((noinline)) void round_row(const Source& s, int64_t pixels, Half* to) {
  const int64_t cb = parts(s.channels, kSide), each = greater(1, 16 / cb);  // 32 KB at a time
  for (int64_t q0 = 0; q0 < pixels; q0 += each) {
    const int64_t q1 = lesser(q0 + each, pixels);
    for (int64_t i = 0; i < kSide; i += Pairs ? 2 : 1) {
      const float* p = s.from + (i < s.images ? i : 0) * s.image;
      const float* r = s.from + (i + 1 < s.images ? i + 1 : 0) * s.image;
      for (int64_t q = q0; q < q1; ++q)
        for (int64_t c = 0; c < cb; ++c) {
          const int64_t left = s.channels - c * kSide, at = q * s.pixel + c * kSide;
          Half* d = to + (q * cb + c) * kBlock + i * kSide;
          const __mmask16 lo = first_lanes(left), hi = first_lanes(left - 16);
          const __mmask16 m = i < s.images ? 0xffff : 0;
          const __m512 a = _mm512_maskz_loadu_ps(lo & m, p + at);
          const __m512 b = _mm512_maskz_loadu_ps(hi & m, p + at + 16);
          if (!Pairs) {
            _mm512_store_si512(d, (__m512i)_mm512_cvtne2ps_pbh(b, a));
          } else {
            const __mmask16 m2 = i + 1 < s.images ? 0xffff : 0;
            _mm512_store_si512(d, pairs_of(a, _mm512_maskz_loadu_ps(lo & m2, r + at)));
            _mm512_store_si512(d + 32, pairs_of(b, _mm512_maskz_loadu_ps(hi & m2, r + at + 16)));
          }
        }
    }
  }
}

// Whether rows of 32 images, and blocks of 32 of the channels that are summed over, are mostly
// full.
GS_INLINE bool by_images(const ConvParams& p, int64_t channels) {
  return 3 * up(p.n, kSide) <= 4 * p.n && 4 * up(channels, kSide) <= 5 * channels;
}

// ---- forward and backward data

// What a member has room for; from the whole convolution, for any phase of it.
struct WalkRoom {
  int64_t cb, taps, panel_bytes, panels;  // panels that stay
  int64_t strip;                          // pixels of a strip at most
  int64_t ring_bytes, parts_at, lists_at, panels_at, total;
};
GS_INLINE int64_t reach(const Axis& a) { return (a.taps - 1) * a.off_step + 1; }

GS_INLINE WalkRoom walk_room(int64_t count, int64_t n, int64_t taps, int64_t rows, int64_t step,
                             int64_t cols, int64_t wide, int64_t l2) {
  WalkRoom r;
  r.cb = parts(count, kSide);
  r.taps = taps;
  r.panel_bytes = r.cb * taps * kBlockHalf;
  r.panels = lesser(parts(n, kSide), greater(1, l2 * 45 / 100 / r.panel_bytes));
  r.panels = parts(parts(n, kSide), parts(parts(n, kSide), r.panels));
  // columns of the ring: (strip - 1) * step + cols
  const int64_t most = l2 * 4 / 10 / (greater(rows, 1) * r.cb * kBlockHalf);
  r.strip = greater(4, lesser(wide, (most - cols) / step + 1));
  r.strip = parts(wide, parts(wide, r.strip));
  r.ring_bytes = greater(rows, 1) * ((r.strip - 1) * step + greater(cols, 1)) * r.cb * kBlockHalf;
  r.panels_at = r.ring_bytes;
  r.parts_at = r.panels_at + r.panels * r.panel_bytes;
  r.lists_at = r.parts_at + (r.panels + 1) * kBlockFloat;
  r.total = up(r.lists_at + 16 * r.cb * taps + 64, 4096);
  return r;
}

struct ImageWalk {
  Axis h, w;
  const float* from;
  int64_t stride, count, images;  // of a pixel, of the group; in all
  const float* weights;
  int64_t kernel_w, filter, tap;
  bool backward;
  float* to;
  int64_t to_h, to_w, to_stride, n;
  const float* bias;
  bool relu;
  const WalkRoom* room;
  char* own;

  GS_MEMBER int64_t strips() const { return parts(w.out, room->strip); }
  GS_MEMBER int64_t units() const { return parts(images, kSide) * strips() * h.out; }

  __attribute__((noinline)) void pack(int64_t panel0, int64_t panel1) {
    Half* out = (Half*)(own + room->panels_at);
    for (int64_t v = panel0; v < panel1; ++v) {
      const int64_t j = v * kSide, cols = min64(kSide, n - j);
      for (int64_t t = 0; t < h.taps * w.taps; ++t)
        for (int64_t c = 0; c < room->cb; ++c, out += kBlock) {
          const int64_t i = h.tap0 + t / w.taps * h.tap_step, l = w.tap0 + t % w.taps * w.tap_step;
          const float* s = weights + (i * kernel_w + l) * tap;
          const int64_t c0 = c * kSide, channels = min64(kSide, count - c0);
          if (backward)
            panel_of_rows(s + c0 * filter + j, filter, channels, cols, out);
          else
            panel_of_columns(s + j * filter + c0, filter, channels, cols, out);
        }
    }
  }

  // y of 32 images at a pixel, panels [panel0, panel1)
  GS_MEMBER void finish(const float* from_, const float* more, int64_t v, float* y, int64_t image,
                        int64_t count_images) const {
    for (int64_t j = 0; j < kSide; j += 16) {
      const int64_t k = v * kSide + j;
      const __mmask16 m = first_lanes(n - k);
      if (!m) break;
      const __m512 b = bias ? _mm512_maskz_loadu_ps(m, bias + k) : _mm512_setzero_ps();
      for (int64_t i = 0; i < count_images; ++i) {
        __m512 x = _mm512_loadu_ps(from_ + i * kSide + j);
        if (more) x = _mm512_add_ps(_mm512_loadu_ps(more + i * kSide + j), x);
        if (bias) x = _mm512_add_ps(x, b);
        if (relu) x = _mm512_max_ps(_mm512_setzero_ps(), x);
        _mm512_mask_storeu_ps(y + i * image + k, m, x);
      }
    }
  }

  // Units [u0, u1) (rows of a strip of 32 images), panels [panel0, panel1)
  __attribute__((noinline)) void run(int64_t u0, int64_t u1, int64_t panel0, int64_t panel1) {
    const int64_t cb = room->cb, rows = greater(1, reach(h)), cross = strips();
    Half* ring = (Half*)own;
    const Half* packed = (const Half*)(own + room->panels_at);
    float* sums = (float*)(own + room->parts_at);
    const Half** a = (const Half**)(own + room->lists_at);
    const Half** b = a + cb * room->taps;
    const int64_t step_of_panel = h.taps * w.taps * cb * kBlock;
    for (int64_t first = panel0; first < panel1; first += room->panels) {
      const int64_t last = min64(first + room->panels, panel1);
      pack(first, last);
      int64_t at = -1, done = 0;  // the strip whose rows the ring has, up to row `done`
      for (int64_t u = u0; u < u1; ++u) {
        const int64_t p = u % h.out, s = u / h.out % cross, g = u / h.out / cross;
        const int64_t q0 = s * w.out / cross, q1 = (s + 1) * w.out / cross;
        const int64_t here = min64(kSide, images - g * kSide);
        const int64_t x0 = max64(0, q0 * w.step + w.off0);
        const int64_t x1 = max64(x0, min64(w.in, (q1 - 1) * w.step + w.off0 + reach(w)));
        const int64_t y0 = p * h.step + h.off0, y1 = min64(h.in, y0 + reach(h));
        if (u / h.out != at) {
          at = u / h.out;
          done = 0;
        }
        done = max64(done, y0);
        if (h.taps && w.taps)
          for (; done < y1; ++done) {
            const Source from_row = {from + ((g * kSide * h.in + done) * w.in + x0) * stride,
                                     h.in * w.in * stride, stride, count, here};
            round_row<false>(from_row, x1 - x0, ring + done % rows * (x1 - x0) * cb * kBlock);
          }
        for (int64_t q = q0; q < q1; ++q) {
          int64_t i0, i1, j0, j1, steps = 0;
          const int64_t xq = q * w.step + w.off0;
          valid_taps(h, y0, &i0, &i1);
          valid_taps(w, xq, &j0, &j1);
          for (int64_t i = i0; i < i1; ++i)
            for (int64_t j = j0; j < j1; ++j) {
              const int64_t r = (y0 + i * h.off_step) % rows, x = xq + j * w.off_step - x0;
              const Half* from_block = ring + (r * (x1 - x0) + x) * cb * kBlock;
              const Half* weight = packed + (i * w.taps + j) * cb * kBlock;
              for (int64_t c = 0; c < cb; ++c, ++steps) {
                a[steps] = from_block + c * kBlock;
                b[steps] = weight + c * kBlock;
              }
            }
          const int64_t image = to_h * to_w * to_stride;
          float* y =
              to + ((g * kSide * to_h + h.out0 + p * h.out_step) * to_w + w.out0 + q * w.out_step) *
                       to_stride;
          const int64_t cuts = max64(1, parts(steps, kSteps));
          float* extra = sums + room->panels * kBlock;
          for (int64_t k = 0; k < cuts; ++k) {
            const int64_t s0 = k * steps / cuts, count_steps = (k + 1) * steps / cuts - s0;
            for (int64_t v = first; v < last; ++v) {
              const bool wide = n - v * kSide > 16, tall = here > 16;
              float* sum = sums + (v - first) * kBlock;
              const bool plain =
                  cuts == 1 && !bias && !relu && here == kSide && n - v * kSide >= kSide;
              float* out = plain ? y + v * kSide : k ? extra : sum;
              sum_blocks(a + s0, b + s0, count_steps, tall, wide, out, plain ? image : kSide);
              for (int64_t t = 0; t < count_steps; ++t) b[s0 + t] += step_of_panel;
              if (plain) continue;
              if (k == cuts - 1)
                finish(sum, k ? extra : nullptr, v, y, image, here);
              else if (k)
                add_block(extra, sum);
            }
          }
        }
      }
    }
  }
};

// How nt members share units and panels: as the cheapest of the ways, in cycles.
GS_INLINE void share_walk(const ImageWalk& q, int64_t panels, int64_t nt, int64_t* rows,
                          int64_t* cols) {
  double best = 0, steps = (double)(q.h.taps * q.w.taps * q.room->cb);
  for (int64_t i = 1; i <= nt; ++i) {
    const int64_t u = parts(q.units(), i), c = parts(panels, nt / i);
    const double pixels = (double)u * (double)q.room->strip, blocks = pixels * (double)q.room->cb;
    const double cost = 80.0 * pixels * steps * (double)c +
                        200.0 * blocks * (double)(q.h.step * q.w.step * parts(c, q.room->panels)) +
                        250.0 * steps * (double)c;
    if (i == 1 || cost < best) {
      best = cost;
      *rows = i;
      *cols = nt / i;
    }
  }
}

GS_INLINE void run_images(ImageWalk& q, const Ctx* ctx) {
  const int64_t panels = parts(q.n, kSide), units = q.units();
  int64_t rows = 1, cols = 1;
  share_walk(q, panels, ctx->nt, &rows, &cols);
  const int64_t i = ctx->tid / cols, j = ctx->tid % cols;
  if (i >= rows) return;
  q.run(i * units / rows, (i + 1) * units / rows, j * panels / cols, (j + 1) * panels / cols);
}

// ---- backward weight

struct WeightRoom {
  int64_t fb, cb, taps, strip, rows, ring;  // pixels of a strip, rows of dy and of x at a time
  int64_t cols;                             // of x
  bool once;                                // all pixels are one sum
  int64_t sums_most;                        // blocks that stay
  int64_t x_at, sums_at, lists_at, total;
};
GS_INLINE WeightRoom weight_room(const ConvParams& p) {
  WeightRoom r;
  r.fb = parts(p.filters / p.groups, kSide);
  r.cb = parts(p.channels / p.groups, kSide);
  r.taps = p.kernel_h * p.kernel_w;
  r.strip = parts(p.out_w, parts(p.out_w, kSteps));
  r.rows = min64(p.out_h, max64(1, kSteps / r.strip));
  r.ring = (r.rows - 1) * p.stride_h + (p.kernel_h - 1) * p.dilation_h + 1;
  r.cols = (r.strip - 1) * p.stride_w + (p.kernel_w - 1) * p.dilation_w + 1;
  r.once = p.n <= kSide && r.strip == p.out_w && r.rows == p.out_h;
  r.sums_most = r.once ? 1 : greater(r.fb * r.taps, p.l2 * 35 / 100 / kBlockFloat);
  r.x_at = r.fb * r.rows * r.strip * kBlockHalf;
  r.sums_at = r.x_at + r.ring * r.cols * r.cb * kBlockHalf;
  r.lists_at = r.sums_at + (r.sums_most + 1) * kBlockFloat;
  r.total = up(r.lists_at + 16 * kSteps, 4096);
  return r;
}

// How nt members share filters and taps x channels, likewise.
GS_INLINE void share_weight(const ConvParams& p, const WeightRoom& r, int64_t nt, int64_t* rows,
                            int64_t* cols) {
  const double pixels = (double)(parts(p.n, kSide) * p.out_h * p.out_w);
  double best = 0;
  for (int64_t i = 1; i <= nt; ++i) {
    const int64_t f = parts(r.fb, i), u = parts(r.cb * r.taps, nt / i), c = parts(u, r.taps);
    const int64_t times = r.once ? 1 : parts(c, greater(1, r.sums_most / (f * r.taps)));
    const double cost = pixels * (80.0 * (double)(f * u) + 350.0 * (double)(f * times) +
                                  300.0 * (double)(c * p.stride_h * p.stride_w));
    if (i == 1 || cost < best) {
      best = cost;
      *rows = i;
      *cols = nt / i;
    }
  }
}

struct ImageGradient {
  const ConvParams& p;
  const WeightRoom& room;
  const float *x, *dy;
  float* dw;
  int64_t filters, channels;  // of the group
  char* own;

  GS_MEMBER void put(const float* sum, int64_t f, int64_t t, int64_t c) const {
    const int64_t k0 = f * kSide, c0 = c * kSide, count = min64(kSide, filters - k0);
    const __mmask16 lo = first_lanes(channels - c0), hi = first_lanes(channels - c0 - 16);
    for (int64_t k = 0; k < count; ++k, sum += kSide) {
      float* d = dw + ((k0 + k) * room.taps + t) * channels + c0;
      _mm512_mask_storeu_ps(d, lo, _mm512_loadu_ps(sum));
      if (hi) _mm512_mask_storeu_ps(d + 16, hi, _mm512_loadu_ps(sum + 16));
    }
  }

  // Filters 32 [f0, f1), units [u0, u1) of channels x taps
  __attribute__((noinline)) void run(int64_t f0, int64_t f1, int64_t u0, int64_t u1) {
    const int64_t T = room.taps, fb = f1 - f0;
    // channels at a time so that the sums stay
    const int64_t most = room.once ? room.cb : greater(1, room.sums_most / (fb * T));
    for (int64_t c0 = u0 / T; c0 < parts(u1, T); c0 += most) {
      const int64_t c1 = min64(c0 + most, parts(u1, T));
      part(f0, f1, c0, c1, max64(u0, c0 * T), min64(u1, c1 * T));
    }
  }

  void part(int64_t f0, int64_t f1, int64_t c0, int64_t c1, int64_t u0, int64_t u1) {
    const int64_t T = room.taps, fb = f1 - f0, cb = c1 - c0, units = u1 - u0;
    Half* dyt = (Half*)own;
    Half* xs = (Half*)(own + room.x_at);
    float* sums = (float*)(own + room.sums_at);
    float* sum = sums + (room.once ? 0 : fb * units) * kBlock;
    const Half** a = (const Half**)(own + room.lists_at);
    const Half** b = a + kSteps;
    if (!room.once) memset(sums, 0, (size_t)(fb * units * kBlockFloat));
    const int64_t strips = parts(p.out_w, room.strip), stride = p.channels, wide = p.filters;
    const int64_t have_c = min64(c1 * kSide, channels) - c0 * kSide;
    for (int64_t g = 0; g < parts(p.n, kSide); ++g)
      for (int64_t s = 0; s < strips; ++s) {
        const int64_t here = min64(kSide, p.n - g * kSide);
        const int64_t q0 = s * p.out_w / strips, q1 = (s + 1) * p.out_w / strips, qs = q1 - q0;
        const int64_t x0 = max64(0, q0 * p.stride_w - p.pad_w);
        const int64_t x1 = max64(x0, min64(p.in_w, (q1 - 1) * p.stride_w - p.pad_w +
                                                       (p.kernel_w - 1) * p.dilation_w + 1));
        int64_t done = 0;
        for (int64_t p0 = 0; p0 < p.out_h; p0 += room.rows) {
          const int64_t p1 = min64(p0 + room.rows, p.out_h);
          for (int64_t i = p0; i < p1; ++i)
            for (int64_t q = q0; q < q1; ++q) {
              const int64_t image = p.out_h * p.out_w * wide;
              const float* from = dy + ((g * kSide * p.out_h + i) * p.out_w + q) * wide;
              for (int64_t f = f0; f < f1; ++f) {
                Half* to = dyt + (((f - f0) * room.rows + i - p0) * room.strip + q - q0) * kBlock;
                const float* of = from + f * kSide;
                for (int64_t n = 0; n < here; ++n) {
                  __builtin_prefetch(of + n * image + wide);
                  __builtin_prefetch(of + n * image + wide + 16);
                }
                sliver_of_columns(of, image, (int)min64(kSide, filters - f * kSide), here, to,
                                  kSide);
              }
            }
          const int64_t y0 = p0 * p.stride_h - p.pad_h;
          const int64_t y1 =
              min64(p.in_h, (p1 - 1) * p.stride_h - p.pad_h + (p.kernel_h - 1) * p.dilation_h + 1);
          done = max64(done, y0);
          for (; done < y1; ++done) {
            const Source from = {
                x + ((g * kSide * p.in_h + done) * p.in_w + x0) * stride + c0 * kSide,
                p.in_h * p.in_w * stride, stride, have_c, here};
            round_row<true>(from, x1 - x0, xs + done % room.ring * (x1 - x0) * cb * kBlock);
          }
          for (int64_t f = f0; f < f1; ++f)
            for (int64_t u = u0; u < u1; ++u) {
              const int64_t c = u / T - c0, t = u % T;
              const int64_t ti = t / p.kernel_w * p.dilation_h, tj = t % p.kernel_w * p.dilation_w;
              int64_t steps = 0;
              for (int64_t i = p0; i < p1; ++i) {
                const int64_t y = i * p.stride_h - p.pad_h + ti;
                if (y < 0 || y >= p.in_h) continue;
                const Half* row = xs + y % room.ring * (x1 - x0) * cb * kBlock;
                const Half* left = dyt + ((f - f0) * room.rows + i - p0) * room.strip * kBlock;
                for (int64_t q = 0; q < qs; ++q) {
                  const int64_t v = (q0 + q) * p.stride_w - p.pad_w + tj;
                  if (v < 0 || v >= p.in_w) continue;
                  a[steps] = left + q * kBlock;
                  b[steps++] = row + ((v - x0) * cb + c) * kBlock;
                }
              }
              const bool tall = filters - f * kSide > 16, broad = channels - (c + c0) * kSide > 16;
              if (room.once) {
                sum_blocks(a, b, steps, tall, broad, sum, kSide);
                put(sum, f, t, c + c0);
              } else if (steps) {
                sum_blocks(a, b, steps, tall, broad, sum, kSide);
                add_block(sum, sums + ((f - f0) * units + u - u0) * kBlock);
              }
            }
        }
      }
    if (room.once) return;
    for (int64_t f = f0; f < f1; ++f)
      for (int64_t u = u0; u < u1; ++u)
        put(sums + ((f - f0) * units + u - u0) * kBlock, f, u % T, u / T);
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
