// conv_bf16_*: convolution, forward and both gradients, with operands rounded to bfloat16 (nearest,
// ties to even) and products summed in float32. The products are those of matmul/bfloat16.h:
//
//   forward         y (pixels, filters)          = patches of x (pixels, taps x channels) W^T
//   backward data   dx (pixels, channels)        = patches of dy (pixels, taps x filters) W, for
//   each
//                                                  phase of the stride (geometry.h)
//   backward weight dw (filters, taps x channels) = dy^T patches of x (pixels, taps x channels)
//
// Patches are not stored: a sliver of 32 pixels by a block of taps and channels (at most 640 deep)
// is rounded from x where it lies, 32 channels of a tap at a time, and used for all filters. For
// the weights' gradient a panel is 32 channels of a tap by a block of at most 640 pixels. Groups
// are products of their own. With tiles and images enough conv/images.h does all of it in another
// way.
//
// Floor: 2 n out_h out_w filters kernel channels / groups operations at 16 times the rate of
// float32 with tiles; packing a patch takes about 4 cycles a tap and 32 channels of a pixel,
// against filters / 16 cycles of products. Traffic x, w, y once.
#include "matmul/bfloat16.h"

#include "conv/geometry.h"
#if defined(__AMX_BF16__)
#include "conv/images.h"
#endif

namespace gs {
namespace GS_ISA {
namespace {

#if defined(__AVX512BF16__)
constexpr int64_t kEven = 2;  // taps start at whole pairs
#else
constexpr int64_t kEven = 1;
#endif
constexpr int64_t kMaxTaps = 64;  // of a block

// Forward, or one phase of backward data: patches of `from` (its pixels have `stride` channels, the
// group `count` of them) times weights.
struct Patches {
  Axis h, w;
  const float* from;
  int64_t stride, count;
  const float* weights;
  int64_t kernel_w, filter, tap;  // elements of a filter, of a tap
  bool backward;
  float* to;
  int64_t to_h, to_w, to_stride, n;
  Finish finish;

  int64_t taps, block_taps, pieces, piece, blocks;
  // of the sliver that place() saw: first pixels of the patches
  int64_t base[kSide];
  int32_t y[kSide], x[kSide];

  GS_MEMBER void cut() {
    taps = h.taps * w.taps;
    int64_t each = up(count, kEven);
    pieces = parts(each, kDepth16);
    piece = pieces > 1 ? up(parts(count, pieces), 32) : count;
    block_taps = pieces > 1 ? 1 : min64(kMaxTaps, max64(1, kDepth16 / each));
    blocks = max64(1, parts(taps, block_taps));
    block_taps = parts(taps, blocks);
    blocks *= pieces;
  }
  struct Block {
    int64_t tap0, taps, c0, channels, each;  // each: channels, whole pairs
  };
  GS_MEMBER Block block(int64_t b) const {
    int64_t t = b / pieces * block_taps, c0 = b % pieces * piece;
    int64_t channels = min64(piece, count - c0);
    return Block{t, max64(0, min64(block_taps, taps - t)), c0, channels, up(channels, kEven)};
  }
  int64_t depth(int64_t b) const {
    Block k = block(b);
    return k.taps * k.each;
  }
  void begin(int64_t, char*) {}
  int64_t place(int64_t row, int rows, float** c) {
    int64_t q = row % w.out, p = row / w.out % h.out, image = row / w.out / h.out;
    for (int i = 0; i < rows; ++i) {
      y[i] = (int32_t)(p * h.step + h.off0);
      x[i] = (int32_t)(q * w.step + w.off0);
      base[i] = (image * h.in + y[i]) * w.in + x[i];
      c[i] = to + ((image * to_h + h.out0 + p * h.out_step) * to_w + w.out0 + q * w.out_step) *
                      to_stride;
      if (++q == w.out) {
        q = 0;
        if (++p == h.out) {
          p = 0;
          ++image;
        }
      }
    }
    return h.out == to_h && w.out == to_w ? to_stride : 0;
  }
  __attribute__((noinline)) void sliver(int64_t b, int64_t, int rows, Half* out, int64_t ld) {
    Block k = block(b);
    int64_t deep = k.taps * k.each, full = up(deep, kPad);
    int32_t ty[kMaxTaps], tx[kMaxTaps];
    int64_t at[kMaxTaps];
    for (int64_t t = 0; t < k.taps; ++t) {
      ty[t] = (int32_t)((k.tap0 + t) / w.taps * h.off_step);
      tx[t] = (int32_t)((k.tap0 + t) % w.taps * w.off_step);
      at[t] = (ty[t] * w.in + tx[t]) * stride + k.c0;
    }
    uint32_t in_h = (uint32_t)h.in, in_w = (uint32_t)w.in;
    for (int i = 0; i < rows; ++i) {
      Half* d = out + i * ld;
      if (deep < full) put_zeros(32, d + full - 32);
      const float* s = from + base[i] * stride;
      for (int64_t t = 0; t < k.taps; ++t, d += k.each) {
        if ((uint32_t)(y[i] + ty[t]) < in_h && (uint32_t)(x[i] + tx[t]) < in_w)
          put_run(s + at[t], k.channels, d);
        else
          put_zeros(k.channels, d);
      }
    }
  }
  void panel(int64_t b, int64_t v, Half* out) {
    Block k = block(b);
    int64_t deep = k.taps * k.each, full = up(deep, kPad), j = v * kSide;
    int64_t cols = min64(kSide, n - j);
    if (!backward && k.channels == count && k.each == count) {  // taps follow each other
      panel_of_columns(weights + j * filter + k.tap0 * tap, filter, deep, cols, out);
      return;
    }
    if (deep < full) put_zeros(32 * kSide, out + (full - 32) * kSide);
    for (int64_t t = k.tap0; t < k.tap0 + k.taps; ++t, out += k.each * kSide) {
      int64_t i = h.tap0 + t / w.taps * h.tap_step, l = w.tap0 + t % w.taps * w.tap_step;
      const float* s = weights + (i * kernel_w + l) * tap;
      if (backward)
        panel_of_rows(s + k.c0 * filter + j, filter, k.channels, cols, out);
      else
        panel_of_columns(s + j * filter + k.c0, filter, k.channels, cols, out);
    }
  }
  int column(int64_t half, int64_t* at) {
    *at = 16 * half;
    return (int)max64(0, min64(16, n - 16 * half));
  }
};

GS_INLINE int64_t deepest(int64_t taps, int64_t channels) {
  return min64(kDepth16, taps * up(channels, kEven));
}

struct Walk {
  bool backward;
  int64_t phases_h, phases_w, count, n;  // channels that are summed over and that are made
  Room room;
};

Walk walk_of(const ConvParams& p, bool backward) {
  Walk k;
  k.backward = backward;
  k.phases_h = backward ? min64(p.stride_h, p.in_h) : 1;
  k.phases_w = backward ? min64(p.stride_w, p.in_w) : 1;
  k.count = (backward ? p.filters : p.channels) / p.groups;
  k.n = (backward ? p.channels : p.filters) / p.groups;
  k.room = room_of(parts(k.n, kSide), deepest(p.kernel_h * p.kernel_w, k.count), p.l2, 0);
  return k;
}

// A phase of backward data, if it has pixels that finish_rows() makes alone.
GS_INLINE bool left_to_rows(const ConvParams& p, const void* bias, const Axis& h, const Axis& w) {
  return (p.sum || p.gate) && !bias && (h.taps == 0 || w.taps == 0);
}

void run_walk(const ConvParams& p, const Walk& k, void* const* buf, const Ctx* ctx) {
  for (int64_t rh = 0; rh < k.phases_h; ++rh)
    for (int64_t rw = 0; rw < k.phases_w; ++rw) {
      Axis h =
          k.backward
              ? backward_axis(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h, rh)
              : forward_axis(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h);
      Axis w =
          k.backward
              ? backward_axis(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w, rw)
              : forward_axis(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w);
      int64_t m = p.n * h.out * w.out;
      if (m == 0 || (k.backward && left_to_rows(p, buf[2], h, w))) continue;
      auto make = [&](int64_t g) __attribute__((always_inline)) {
        Patches q;
        q.h = h;
        q.w = w;
        q.backward = k.backward;
        q.count = k.count;
        q.n = k.n;
        q.stride = k.count * p.groups;
        q.from = (const float*)buf[0] + g * k.count;
        q.tap = p.channels / p.groups;
        q.filter = p.kernel_h * p.kernel_w * q.tap;
        q.kernel_w = p.kernel_w;
        q.weights = (const float*)buf[1] + g * (p.filters / p.groups) * q.filter;
        q.to = (float*)buf[3] + g * k.n;
        q.to_h = k.backward ? p.in_h : p.out_h;
        q.to_w = k.backward ? p.in_w : p.out_w;
        q.to_stride = k.n * p.groups;
        q.finish = Finish{1, buf[2] ? (const float*)buf[2] + g * k.n : nullptr,
                          p.activation == kConvRelu, false};
        q.cut();
        return q;
      };
      run_product(make, p.groups, m, parts(k.n, kSide), k.room, 4, k.backward ? 5 : 7, ctx);
    }
}

#if defined(__AMX_BF16__)
WalkRoom images_room(const ConvParams& p, const Walk& k) {
  return walk_room(k.count, k.n, p.kernel_h * p.kernel_w, (p.kernel_h - 1) * p.dilation_h + 1,
                   k.backward ? 1 : p.stride_w, (p.kernel_w - 1) * p.dilation_w + 1,
                   k.backward ? parts(p.in_w, k.phases_w) : p.out_w, p.l2);
}

void walk_images(const ConvParams& p, const Walk& k, void* const* buf, const Ctx* ctx) {
  const WalkRoom room = images_room(p, k);
  tiles_begin();
  for (int64_t phase = 0; phase < k.phases_h * k.phases_w; ++phase) {
    const int64_t rh = phase / k.phases_w, rw = phase % k.phases_w;
    ImageWalk q;
    q.h = k.backward
              ? backward_axis(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h, rh)
              : forward_axis(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h);
    q.w = k.backward
              ? backward_axis(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w, rw)
              : forward_axis(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w);
    if (q.h.out == 0 || q.w.out == 0) continue;
    if (k.backward && left_to_rows(p, buf[2], q.h, q.w)) continue;
    q.backward = k.backward;
    q.count = k.count;
    q.images = p.n;
    q.n = k.n;
    q.stride = k.count * p.groups;
    q.tap = p.channels / p.groups;
    q.filter = p.kernel_h * p.kernel_w * q.tap;
    q.kernel_w = p.kernel_w;
    q.to_h = k.backward ? p.in_h : p.out_h;
    q.to_w = k.backward ? p.in_w : p.out_w;
    q.to_stride = k.n * p.groups;
    q.relu = p.activation == kConvRelu;
    q.room = &room;
    q.own = ctx->scratch + ctx->tid * room.total;
    for (int64_t g = 0; g < p.groups; ++g) {
      q.from = (const float*)buf[0] + g * k.count;
      q.weights = (const float*)buf[1] + g * (p.filters / p.groups) * q.filter;
      q.bias = buf[2] ? (const float*)buf[2] + g * k.n : nullptr;
      q.to = (float*)buf[3] + g * k.n;
      run_images(q, ctx);
    }
  }
  tiles_end();
}
#endif

// What rewrites ask of dx (conv.h): the sum with another gradient, and the zeros of a ReLU. One
// linear sweep when the products are done: with a stride larger than the kernel most pixels have
// nothing but the other gradient, and are not written before. A member has the images that it has
// in other kernels (winograd.h).
void finish_rows(const ConvParams& p, void* const* buf, const Ctx* ctx) {
  constexpr int N = simd<float>::N;
  float* dx = (float*)buf[3];
  const float* sum = p.sum ? (const float*)buf[4] : nullptr;
  const float* gate = p.gate ? (const float*)buf[p.sum ? 5 : 4] : nullptr;
  const int64_t C = p.channels;
  auto pixels = [&](int64_t at, int64_t count, bool made) {
    auto value = [&](int64_t i, auto get) __attribute__((always_inline)) {
      vf r = made ? get(dx + i) : vf{};
      if (sum) r += get(sum + i);
      if (gate) r = get(gate + i) <= vf{} ? vf{} : r;
      return r;
    };
    int64_t i = at;
    const int64_t end = at + count * C;
    for (; i + N <= end; i += N) store(dx + i, value(i, [](const float* q) { return load(q); }));
    const int rest = (int)(end - i);
    if (rest) store_n(dx + i, value(i, [=](const float* q) { return load_n(q, rest); }), rest);
  };
  const auto made_y = [&](int64_t y) {
    return buf[2] || backward_axis(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h,
                                   y % p.stride_h)
                             .taps > 0;
  };
  const auto made_x = [&](int64_t x) {
    return buf[2] || backward_axis(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w,
                                   x % p.stride_w)
                             .taps > 0;
  };
  bool every = true;   // pixel of a row
  uint64_t which = 0;  // of the first 64 phases
  for (int64_t x = 0; x < min64(p.stride_w, p.in_w); ++x) {
    every &= made_x(x);
    if (x < 64) which |= (uint64_t)made_x(x) << x;
  }
  const int64_t rows = p.n * p.in_h;
  for (int64_t r = rows * ctx->tid / ctx->nt; r < rows * (ctx->tid + 1) / ctx->nt; ++r) {
    const int64_t at = r * p.in_w * C;
    const bool any = made_y(r % p.in_h);
    if (!any || every) {
      pixels(at, p.in_w, any);
      continue;
    }
    for (int64_t x = 0, phase = 0; x < p.in_w; ++x) {
      pixels(at + x * C, 1, phase < 64 ? which >> phase & 1 : made_x(x));
      if (++phase == p.stride_w) phase = 0;
    }
  }
}

void run(const ConvParams& p, bool backward, void* const* buf, const Ctx* ctx) {
  const Walk k = walk_of(p, backward);
#if defined(__AMX_BF16__)
  if (by_images(p, k.count))
    walk_images(p, k, buf, ctx);
  else
#endif
    run_walk(p, k, buf, ctx);
  if (backward && (p.sum || p.gate)) {
    ctx->sync();
    finish_rows(p, buf, ctx);
  }
}
void forward(const void* params, void* const* buf, const Ctx* ctx) {
  run(*(const ConvParams*)params, false, buf, ctx);
}
void backward_data(const void* params, void* const* buf, const Ctx* ctx) {
  run(*(const ConvParams*)params, true, buf, ctx);
}

void set_plan(const ConvParams& p, int64_t m, int64_t n, int64_t k, int64_t room, Plan* plan) {
  plan->tasks = max64(1, min64(p.threads, p.groups * parts(m, kSide) * parts(n, kSide)));
  plan->work = p.groups * work_of(m, n, k);
  plan->scratch = (size_t)(plan->tasks * room);
}
int64_t walk_bytes([[maybe_unused]] const ConvParams& p, const Walk& k) {
#if defined(__AMX_BF16__)
  if (by_images(p, k.count)) return images_room(p, k).total;
#endif
  return k.room.total;
}
void forward_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  Walk k = walk_of(p, false);
  set_plan(p, p.n * p.out_h * p.out_w, k.n, p.kernel_h * p.kernel_w * k.count, walk_bytes(p, k),
           plan);
}
void backward_data_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  Walk k = walk_of(p, true);
  const int64_t pixels = p.n * p.in_h * p.in_w;
  set_plan(p, pixels, k.n, max64(1, p.kernel_h * p.kernel_w * k.count / (k.phases_h * k.phases_w)),
           walk_bytes(p, k), plan);
  if (p.sum || p.gate) plan->work += pixels * p.channels / 10;
}

// dw of a group: dy^T times patches; columns are taps x channels, 16 channels of a tap at a time.
struct Gradient {
  const float *x, *dy;
  float* dw;
  int64_t in_h, in_w, out_h, out_w, stride, channels, filters_all;
  int64_t kernel_w, taps, step_h, step_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t k, kc, blocks, halves;  // pixels; halves: sixteens of channels of a tap
  Finish finish;
  int64_t* base;  // of the block's pixels: where their patches start
  int32_t *py, *px;

  int64_t depth(int64_t b) const { return min64(kc, k - b * kc); }
  void begin(int64_t b, char* own) {
    base = (int64_t*)own;
    py = (int32_t*)(base + kc);
    px = py + kc;
    int64_t row = b * kc, q = row % out_w, p = row / out_w % out_h, image = row / out_w / out_h;
    for (int64_t i = 0; i < depth(b); ++i) {
      py[i] = (int32_t)(p * step_h - pad_h);
      px[i] = (int32_t)(q * step_w - pad_w);
      base[i] = ((image * in_h + py[i]) * in_w + px[i]) * stride;
      if (++q == out_w) {
        q = 0;
        if (++p == out_h) {
          p = 0;
          ++image;
        }
      }
    }
  }
  void sliver(int64_t b, int64_t row, int rows, Half* to, int64_t ld) {
    sliver_of_columns(dy + b * kc * filters_all + row, filters_all, rows, depth(b), to, ld);
  }
  int column(int64_t half, int64_t* at) {
    int64_t t = half / halves, c = half % halves * 16;
    *at = t * channels + c;
    return t < taps ? (int)min64(16, channels - c) : 0;
  }
  int64_t place(int64_t row, int rows, float** c) {
    for (int i = 0; i < rows; ++i) c[i] = dw + (row + i) * taps * channels;
    return taps * channels;
  }
  // Columns of one tap from channel c: 16 kWide, `cols` of them there.
  template <int kWide>
  __attribute__((noinline)) void patch(int64_t t, int64_t c, int64_t cols, int64_t deep, Half* to) {
    int32_t ty = (int32_t)(t / kernel_w * dilation_h), tx = (int32_t)(t % kernel_w * dilation_w);
    const float* s = x + (ty * in_w + tx) * stride + c;
    uint32_t high = (uint32_t)in_h, wide = (uint32_t)in_w;
#if defined(__AVX512BF16__)
    __mmask16 m = first_lanes(cols);
    for (int64_t i = 0; i < up(deep, kPad); i += 2, to += 64) {
      bool first = i < deep && (uint32_t)(py[i] + ty) < high && (uint32_t)(px[i] + tx) < wide;
      bool second =
          i + 1 < deep && (uint32_t)(py[i + 1] + ty) < high && (uint32_t)(px[i + 1] + tx) < wide;
      const float *p = first ? s + base[i] : s, *q = second ? s + base[i + 1] : s;
      __mmask16 mp = first ? m : (__mmask16)0, mq = second ? m : (__mmask16)0;
#pragma GCC unroll 2
      for (int h = 0; h < kWide; ++h)
        _mm512_storeu_si512(to + 32 * h, pairs_of(_mm512_maskz_loadu_ps(mp, p + 16 * h),
                                                  _mm512_maskz_loadu_ps(mq, q + 16 * h)));
    }
#else
    constexpr int N = simd<float>::N;
    for (int64_t i = 0; i < deep; ++i, to += kSide) {
      bool inside = (uint32_t)(py[i] + ty) < high && (uint32_t)(px[i] + tx) < wide;
      for (int j = 0; j < 16 * kWide; j += N) {
        int n = (int)(cols >= 16 ? N : max64(0, min64(N, cols - j)));
        store(to + j, inside ? rounded(load_n(s + base[i] + j, n)) : vf{});
      }
    }
#endif
  }
  void panel(int64_t b, int64_t v, Half* to) {
    int64_t at[2];
    int cols[2] = {column(2 * v, &at[0]), column(2 * v + 1, &at[1])};
    int64_t t0 = 2 * v / halves, t1 = (2 * v + 1) / halves, deep = depth(b);
    if (t0 == t1 && cols[0] == 16 && cols[1] == 16) {
      patch<2>(t0, 2 * v % halves * 16, 16, deep, to);
      return;
    }
    patch<1>(t0, 2 * v % halves * 16, cols[0], deep, to);
    if (cols[1]) patch<1>(t1, (2 * v + 1) % halves * 16, cols[1], deep, to + 16 * 4 / sizeof(Half));
  }
};

Room gradient_room(const ConvParams& p) {
  int64_t k = p.n * p.out_h * p.out_w, kc = block_depth(k);
  int64_t halves = p.kernel_h * p.kernel_w * parts(p.channels / p.groups, 16);
  return room_of(parts(halves, 2), kc, p.l2, kc * 16);
}

#if defined(__AMX_BF16__)
void weight_images(const ConvParams& p, void* const* buf, const Ctx* ctx) {
  const WeightRoom room = weight_room(p);
  int64_t filters = p.filters / p.groups, channels = p.channels / p.groups, rows, cols;
  share_weight(p, room, ctx->nt, &rows, &cols);
  const int64_t i = ctx->tid / cols, j = ctx->tid % cols, units = room.cb * room.taps;
  if (i >= rows) return;
  tiles_begin();
  for (int64_t g = 0; g < p.groups; ++g) {
    ImageGradient q{p,
                    room,
                    (const float*)buf[0] + g * channels,
                    (const float*)buf[1] + g * filters,
                    (float*)buf[2] + g * filters * room.taps * channels,
                    filters,
                    channels,
                    ctx->scratch + ctx->tid * room.total};
    q.run(i * room.fb / rows, (i + 1) * room.fb / rows, j * units / cols, (j + 1) * units / cols);
  }
  tiles_end();
}
#endif

void backward_weight(const void* params, void* const* buf, const Ctx* ctx) {
  const ConvParams& p = *(const ConvParams*)params;
#if defined(__AMX_BF16__)
  if (by_images(p, kSide)) {
    weight_images(p, buf, ctx);
    return;
  }
#endif
  int64_t filters = p.filters / p.groups;
  auto make = [&](int64_t g) __attribute__((always_inline)) {
    Gradient q;
    q.channels = p.channels / p.groups;
    q.filters_all = p.filters;
    q.taps = p.kernel_h * p.kernel_w;
    q.kernel_w = p.kernel_w;
    q.x = (const float*)buf[0] + g * q.channels;
    q.dy = (const float*)buf[1] + g * filters;
    q.dw = (float*)buf[2] + g * filters * q.taps * q.channels;
    q.in_h = p.in_h;
    q.in_w = p.in_w;
    q.out_h = p.out_h;
    q.out_w = p.out_w;
    q.stride = p.channels;
    q.step_h = p.stride_h;
    q.step_w = p.stride_w;
    q.pad_h = p.pad_h;
    q.pad_w = p.pad_w;
    q.dilation_h = p.dilation_h;
    q.dilation_w = p.dilation_w;
    q.k = p.n * p.out_h * p.out_w;
    q.kc = block_depth(q.k);
    q.blocks = parts(q.k, q.kc);
    q.halves = parts(q.channels, 16);
    q.finish = Finish{1, nullptr, false, false};
    return q;
  };
  int64_t panels = parts(p.kernel_h * p.kernel_w * parts(p.channels / p.groups, 16), 2);
  run_product(make, p.groups, filters, panels, gradient_room(p), 6, 8, ctx);
}
void backward_weight_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  int64_t room = gradient_room(p).total;
#if defined(__AMX_BF16__)
  if (by_images(p, kSide)) room = weight_room(p).total;
#endif
  set_plan(p, p.filters / p.groups, p.kernel_h * p.kernel_w * p.channels / p.groups,
           p.n * p.out_h * p.out_w, room, plan);
}

const KernelEntry entries[] = {
    {"conv_bf16_forward", kF32, forward, forward_plan},
    {"conv_bf16_backward_data", kF32, backward_data, backward_data_plan},
    {"conv_bf16_backward_weight", kF32, backward_weight, backward_weight_plan},
};

}  // namespace

extern const KernelList conv_bfloat16_kernels;
const KernelList conv_bfloat16_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
