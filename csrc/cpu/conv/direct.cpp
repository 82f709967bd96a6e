// Direct convolution, forward and backward-data, without an im2col buffer.
//
// Both are one walk (see geometry.h): a tile of MR output pixels x NV vectors of output channels
// stays in registers while it sums over runs. A run is a stretch of L input values that are
// contiguous in memory (the channels of one tap, or all taps of a kernel row at once where their
// pixels touch); each pixel broadcasts its values, the packed weights (reduction index, NV vectors)
// are the vector operand. Pixels are addressed by pointers, so a tile may cross rows and images and
// no tile but the last is partial. A pixel whose tap lies in the padding points at zeros; a tap
// that lies in the padding for the whole tile is left out. With padding and enough images, MR
// images at one position form a tile, and then no padding is multiplied at all.
//
// Weights are packed once a launch: (phase, group, panel, kernel row, kernel column, input channel,
// NV vectors). Inputs of few channels are first copied with a zero border (pad_rows), so that a
// whole kernel row is one run (3x3 of 3 channels: 3 runs of 9).
//
// Blocks: a panel's slice of the reduction stays within a quarter of the second-level cache while
// all pixels of a task pass; the sums go through y between slices, so the order of sums depends on
// nothing. Tasks: (phase, group, panel, chunk of pixels). Floor: 2 n out_h out_w filters kernel
// channels/groups operations, one FMA each; traffic x, w, y once.
#include <string.h>

#include "conv/geometry.h"
#include "simd/transpose.h"

namespace gs {
namespace GS_ISA {
namespace {

#if GS_VBYTES == 64 || defined(__ARM_NEON)
constexpr int kMaxVectors = 4;  // 32 registers: 24 accumulators
constexpr int rows_of(int nv) { return nv == 4 ? 6 : nv == 3 ? 8 : nv == 2 ? 10 : 12; }
#else
constexpr int kMaxVectors = 2;  // 16 registers: 12 accumulators
constexpr int rows_of(int nv) { return nv == 2 ? 6 : 12; }
#endif
constexpr int kMaxRuns = 64;
constexpr int kMaxSteps = 256;

template <class T>
struct TileArgs {
  const T* const* x;  // MR pixels: the input of tap 0
  int64_t x_first;    // from there to the first tap that is taken
  const T* w;         // the weights of the first tap
  // taps as rows x cols runs of `length` values, with the steps of x and w between rows and columns
  int64_t rows, cols, length, x_row, x_col, w_row, w_col;
  const int64_t* steps;    // kLookup: `length` offsets from tap 0, one a reduction index
  const uintptr_t* table;  // kTable: rows x (1 + MR) addresses, the run's weights and its inputs
  T** out;                 // MR output pixels
  const T* bias;           // of the panel, or nullptr
  int pixels;              // to store
  int tail;                // lanes of the last vector that exist
  bool load;               // continue sums that lie in out
  bool relu;
  int64_t sum;   // 0, or from out to what is added
  int64_t gate;  // 0, or from out to the output of a ReLU: where that is not positive, zeros
};

// acc[m][v] += sum_l x[m][l] * w[l][v]
template <class T, int MR, int NV>
GS_INLINE void multiply(typename simd<T>::V (&acc)[MR][NV], const T* const (&x)[MR], const T* w,
                        int64_t length) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  auto step = [&](int64_t l) __attribute__((always_inline)) {
    V b[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) b[v] = load(w + v * N);
    w += NV * N;
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      V s = set1(x[m][l]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) accumulate<NV>(acc[m][v], s, b[v]);
    }
  };
  int64_t l = 0;
  for (; l + kUnroll<T> <= length; l += kUnroll<T>) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll<T>; ++u) step(l + u);
  }
  for (; l < length; ++l) step(l);
}

// How a tile finds its inputs: runs that all pixels have in common; the same, but so short that
// each value is looked up; or addresses for every pixel, because they differ in the taps that lie
// inside.
enum Mode { kRuns, kLookup, kTable };

// out[m][v] = (load ? out : bias) + sum over runs
template <class T, int MR, int NV, Mode How>
__attribute__((noinline)) void tile(const TileArgs<T>& a) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  V acc[MR][NV];
  if (a.gate)
    for (int m = 0; m < MR; ++m)
      for (int v = 0; v < NV; ++v) __builtin_prefetch(a.out[m] + a.gate + v * N, 0, 2);
  if (a.sum)
    for (int m = 0; m < MR; ++m)
      for (int v = 0; v < NV; ++v) __builtin_prefetch(a.out[m] + a.sum + v * N, 0, 2);
  if (a.load) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        acc[m][v] = v < NV - 1 ? load(a.out[m] + v * N) : load_n(a.out[m] + v * N, a.tail);
    }
  } else if (a.bias) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      V b = v < NV - 1 ? load(a.bias + v * N) : load_n(a.bias + v * N, a.tail);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) acc[m][v] = b;
    }
  } else {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = V{};
    }
  }
  const T* x[MR];
  if (How == kTable) {
    const uintptr_t* table = a.table;
    for (int64_t r = 0; r < a.rows; ++r, table += 1 + MR) {
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) x[m] = (const T*)table[1 + m];
      multiply<T, MR, NV>(acc, x, (const T*)table[0], a.length);
    }
  } else if (How == kLookup) {
    const T* w = a.w;
    const int64_t* steps = a.steps;
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) x[m] = a.x[m];
    for (const int64_t* end = steps + a.length; steps < end; ++steps, w += NV * N) {
      int64_t l = *steps;
      V b[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) b[v] = load(w + v * N);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) {
        V s = set1(x[m][l]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[m][v] = fma(s, b[v], acc[m][v]);
      }
    }
  } else {
    for (int64_t r = 0; r < a.rows; ++r)
      for (int64_t c = 0; c < a.cols; ++c) {
        int64_t off = a.x_first + r * a.x_row + c * a.x_col;
#pragma GCC unroll 16
        for (int m = 0; m < MR; ++m) x[m] = a.x[m] + off;
        multiply<T, MR, NV>(acc, x, a.w + r * a.w_row + c * a.w_col, a.length);
      }
  }
  if (a.relu) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = max(V{}, acc[m][v]);
    }
  }
  if (a.sum) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const T* s = a.out[m] + a.sum;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        acc[m][v] += v < NV - 1 ? load(s + v * N) : load_n(s + v * N, a.tail);
    }
  }
  if (a.gate) {
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const T* s = a.out[m] + a.gate;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        V y = v < NV - 1 ? load(s + v * N) : load_n(s + v * N, a.tail);
        acc[m][v] = y <= V{} ? V{} : acc[m][v];
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    if (m >= a.pixels) break;
#pragma GCC unroll 4
    for (int v = 0; v < NV - 1; ++v) store(a.out[m] + v * N, acc[m][v]);
    if (a.tail == N)
      store(a.out[m] + (NV - 1) * N, acc[m][NV - 1]);
    else
      store_n(a.out[m] + (NV - 1) * N, acc[m][NV - 1], a.tail);
  }
}

// The whole launch, derived from the parameters alone.
struct Job {
  int64_t n, groups, ci, co, cin, cout;  // ci, co: channels per group that are read and written
  int64_t in_h, in_w, out_h, out_w;
  int64_t phases_h, phases_w;
  bool backward, padded;
  bool gaps;                               // backward: pixels that no tap reaches
  int64_t top, left, hp, wp;               // border of the copy
  int64_t ld, row, image, group, out_row;  // strides of the input as tiles read it
  int64_t vectors, panels, taps;
  size_t zeros_at, x_at, scratch;  // packed weights lie at 0
};

GS_INLINE Axis axis_h(const Job& j, const ConvParams& p, int64_t r) {
  Axis a = j.backward
               ? backward_axis(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h, r)
               : forward_axis(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h);
  if (j.padded) {
    a.off0 += j.top;
    a.in = j.hp;
  }
  return a;
}
GS_INLINE Axis axis_w(const Job& j, const ConvParams& p, int64_t r) {
  Axis a = j.backward
               ? backward_axis(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w, r)
               : forward_axis(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w);
  if (j.padded) {
    a.off0 += j.left;
    a.in = j.wp;
  }
  return a;
}

template <class T>
Job make_job(const ConvParams& p, bool backward) {
  Job j{};
  j.backward = backward;
  j.n = p.n;
  j.groups = p.groups;
  j.cin = backward ? p.filters : p.channels;
  j.cout = backward ? p.channels : p.filters;
  j.ci = j.cin / p.groups;
  j.co = j.cout / p.groups;
  j.in_h = backward ? p.out_h : p.in_h;
  j.in_w = backward ? p.out_w : p.in_w;
  j.out_h = backward ? p.in_h : p.out_h;
  j.out_w = backward ? p.in_w : p.out_w;
  j.phases_h = backward ? min64(p.stride_h, p.in_h) : 1;
  j.phases_w = backward ? min64(p.stride_w, p.in_w) : 1;
  j.vectors = ceil_div(j.co, simd<T>::N);
  j.panels = ceil_div(j.vectors, kMaxVectors);

  // what the taps reach, over all phases
  int64_t low_h = 0, high_h = j.in_h - 1, low_w = 0, high_w = j.in_w - 1, run = 0;
  int64_t taps_h = 0, taps_w = 0;
  for (int64_t r = 0; r < j.phases_h; ++r) {
    Axis a = axis_h(j, p, r);
    taps_h += a.taps;
    j.gaps |= !a.taps;
    if (!a.taps || !a.out) continue;
    low_h = min64(low_h, a.first());
    high_h = max64(high_h, a.last());
  }
  for (int64_t r = 0; r < j.phases_w; ++r) {
    Axis a = axis_w(j, p, r);
    taps_w += a.taps;
    j.gaps |= !a.taps;
    if (!a.taps || !a.out) continue;
    low_w = min64(low_w, a.first());
    high_w = max64(high_w, a.last());
    if (a.off_step == 1) run = max64(run, a.taps);
  }
  j.taps = taps_h * taps_w;
  bool border = low_h < 0 || low_w < 0 || high_h >= j.in_h || high_w >= j.in_w;
  // Few channels: the copy costs little and makes long runs.
  j.padded = run > 1 && j.ci < 16 && (border || j.groups > 1);
  j.hp = j.in_h;
  j.wp = j.in_w;
  if (j.padded) {
    j.top = -low_h;
    j.left = -low_w;
    j.hp = high_h + 1 + j.top;
    j.wp = high_w + 1 + j.left;
  }
  j.ld = j.padded ? j.ci : j.cin;
  j.row = j.wp * j.ld;
  j.image = j.hp * j.row;
  j.group = j.padded ? j.n * j.image : j.ci;
  size_t w_bytes = (size_t)(p.groups * j.taps * j.ci * j.vectors * simd<T>::N) * sizeof(T);
  j.zeros_at = align64(w_bytes);
  j.x_at = align64(j.zeros_at + (size_t)j.ci * sizeof(T));
  j.scratch = j.x_at + (j.padded ? (size_t)(j.groups * j.group) * sizeof(T) : 0);
  return j;
}

// Rows of the packed panel: forward, reduction index r of filter k is w[k][r]: a transpose.
// w: first filter of the panel, (filters, reduce); dst (reduce, nv vectors); rows [r0, r1)
template <class T>
void pack_forward(const T* w, int64_t reduce, int64_t filters, int nv, T* dst, int64_t r0,
                  int64_t r1) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  for (int64_t r = r0; r < r1; r += N) {
    int cols = (int)min64(N, r1 - r);
    for (int v = 0; v < nv; ++v) {
      V t[N];
      if (cols == N && (v + 1) * N <= filters) {
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) t[i] = load(w + (v * N + i) * reduce + r);
      } else {
        for (int i = 0; i < N; ++i)
          t[i] = v * N + i < filters ? load_n(w + (v * N + i) * reduce + r, cols) : V{};
      }
      transpose<T>(t);
      T* d = dst + r * nv * N + v * N;
      if (cols == N) {
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) store(d + i * nv * N, t[i]);
      } else {
        for (int i = 0; i < cols; ++i) store(d + i * nv * N, t[i]);
      }
    }
  }
}

// Backward: row (tap, k) is w[k][tap][c0 ...], a copy. w: first filter of the group, channel c0;
// channels: how many exist from c0 on; filters [k0, k1)
template <class T>
void pack_backward(const T* w, const ConvParams& p, const Axis& h, const Axis& x, int64_t ci,
                   int64_t co, int64_t channels, int nv, T* dst, int64_t k0, int64_t k1) {
  constexpr int N = simd<T>::N;
  for (int64_t k = k0; k < k1; ++k)
    for (int64_t a = 0; a < h.taps; ++a)
      for (int64_t b = 0; b < x.taps; ++b) {
        int64_t i = h.tap0 + a * h.tap_step, jj = x.tap0 + b * x.tap_step;
        const T* s = w + ((k * p.kernel_h + i) * p.kernel_w + jj) * co;
        T* d = dst + ((a * x.taps + b) * ci + k) * nv * N;
        for (int v = 0; v < nv; ++v) {
          int64_t left = channels - v * N;
          store(d + v * N, left >= N ? load(s + v * N) : load_n(s + v * N, (int)max64(left, 0)));
        }
      }
}

// A slice of the reduction that is multiplied before the next: taps [i0, i1) x [j0, j1), channels
// [c0, c1).
struct Block {
  int64_t i0, i1, j0, j1, c0, c1;
  bool load, finish;
};

// Where the pixels of a task lie. Pixels are counted image block by image block, in it by position,
// in it by image; blocks of one image give the usual order. They are handed out in spans: along the
// images of one position, or along a row.
struct Walk {
  const Job& j;
  const Axis &h, &w;
  int64_t block;                      // images of a block
  int64_t q_lo, q_hi;                 // columns that have every tap inside
  int64_t step_in, step_out, step_w;  // from pixel to pixel of a span
  int64_t n0, count, ni, p, q;
  int64_t left;                    // pixels of the span from here on
  int64_t at_h, at_w, in, out;     // input row and column of tap 0, offsets of input and output
  int64_t lo_h, hi_h, lo_w, hi_w;  // taps that lie inside

  GS_MEMBER void place() {
    at_h = p * h.step + h.off0;
    at_w = q * w.step + w.off0;
    int64_t image = n0 * block + ni;
    in = image * j.image + at_h * j.row + at_w * j.ld;
    out =
        ((image * j.out_h + h.out0 + p * h.out_step) * j.out_w + w.out0 + q * w.out_step) * j.cout;
    left = block == 1 ? w.out - q : count - ni;
    valid_taps(h, at_h, &lo_h, &hi_h);
    if (block > 1) valid_taps(w, at_w, &lo_w, &hi_w);
  }
  GS_MEMBER void seek(int64_t pixel) {
    bool rows = block == 1;
    step_in = rows ? w.step * j.ld : j.image;
    step_out = rows ? w.out_step * j.cout : j.out_h * j.out_w * j.cout;
    step_w = rows ? w.step : 0;
    q_lo = w.off0 < 0 ? ceil_div(-w.off0, w.step) : 0;
    int64_t room = w.in - 1 - w.off0 - (w.taps - 1) * w.off_step;
    q_hi = room < 0 ? 0 : room / w.step + 1;
    lo_w = 0;
    hi_w = w.taps;
    int64_t per = block * h.out * w.out;
    n0 = pixel / per;
    pixel -= n0 * per;
    count = min64(block, j.n - n0 * block);
    ni = pixel % count;
    q = pixel / count % w.out;
    p = pixel / count / w.out;
    place();
  }
  // Takes n < left pixels.
  GS_MEMBER void skip(int64_t n) {
    left -= n;
    in += n * step_in;
    out += n * step_out;
    at_w += n * step_w;
    if (block == 1)
      q += n;
    else
      ni += n;
  }
  // Takes n <= left pixels.
  GS_MEMBER void advance(int64_t n) {
    if (n < left) {
      skip(n);
      return;
    }
    ni = 0;
    if (block == 1 || ++q == w.out) {
      q = 0;
      if (++p == h.out) {
        p = 0;
        if (++n0 * block >= j.n) return;  // past the last pixel
        count = min64(block, j.n - n0 * block);
      }
    }
    place();
  }
};

// One block of the reduction for pixels [m0, m1). x: the group's first channel; wp: the panel
// (reduction, NV vectors); y: the panel's first channel; bias: the same or nullptr.
template <class T, int MR, int NV>
void chunk(const Job& j, const Axis& h, const Axis& w, const Block& b, int64_t images, const T* x,
           const T* wp, const T* zeros, const T* bias, T* y, int64_t m0, int64_t m1, int tail,
           bool relu, int64_t sum, int64_t gate) {
  constexpr int N = simd<T>::N;
  uintptr_t table[kMaxRuns * (1 + MR)];
  T* out[MR];
  const T* in[MR];
  int64_t at_h[MR], at_w[MR];
  int64_t channels = b.c1 - b.c0;
  // the taps of a kernel row are one run where their pixels touch
  bool fold = w.off_step == 1 && j.ld == j.ci && channels == j.ci;
  bool inside = h.first() >= 0 && h.last() < h.in && w.first() >= 0 && w.last() < w.in;
  TileArgs<T> a{};
  a.x = in;
  a.table = table;
  a.out = out;
  a.bias = b.load ? nullptr : bias;
  a.tail = tail;
  a.load = b.load;
  a.relu = relu && b.finish;
  a.sum = b.finish ? sum : 0;
  a.gate = b.finish ? gate : 0;
  a.x_row = h.off_step * j.row;
  a.x_col = w.off_step * j.ld;
  // short runs, all inside: look every value up instead of starting runs
  int64_t run = fold ? w.taps * j.ci : channels, total = h.taps * w.taps * j.ci;
  bool whole = b.finish && !b.load;
  bool look_up = inside && whole && run < 32 && run < total && total <= kMaxSteps;
  int64_t steps[kMaxSteps];
  if (look_up) {
    int64_t i = 0;
    for (int64_t r = 0; r < h.taps; ++r)
      for (int64_t c = 0; c < w.taps; ++c)
        for (int64_t k = 0; k < j.ci; ++k) steps[i++] = r * a.x_row + c * a.x_col + k;
  }
  a.steps = steps;
  a.w_row = w.taps * j.ci * NV * N;
  a.w_col = j.ci * NV * N;
  Walk walk{j, h, w, images, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  walk.seek(m0);
  for (int64_t m = m0; m < m1; m += MR) {
    int pixels = (int)min64(MR, m1 - m), n = 0;
    bool uniform = true;
    int64_t lo_h = walk.lo_h, hi_h = walk.hi_h, lo_w = walk.lo_w, hi_w = walk.hi_w;
    if (inside && pixels == MR && walk.left > MR) {  // the common case, at constant strides
      const T* px = x + walk.in + b.c0;
      T* po = y + walk.out;
      int64_t si = walk.step_in, so = walk.step_out;
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        in[i] = px + i * si;
        out[i] = po + i * so;
      }
      walk.skip(MR);
      n = MR;
    }
    while (n < pixels) {
      int take = (int)min64(walk.left, pixels - n);
      const T* px = x + walk.in + b.c0;
      T* po = y + walk.out;
      int64_t si = walk.step_in, so = walk.step_out;
      if (!inside) {
        uniform &= walk.lo_h == lo_h && walk.hi_h == hi_h && walk.lo_w == lo_w && walk.hi_w == hi_w;
        if (images == 1) uniform &= walk.q >= walk.q_lo && walk.q + take <= walk.q_hi;
      }
      for (int i = 0; i < take; ++i) {
        in[n + i] = px + i * si;
        out[n + i] = po + i * so;
        at_h[n + i] = walk.at_h;
        at_w[n + i] = walk.at_w + i * walk.step_w;
      }
      n += take;
      if (n < pixels || m + MR < m1) walk.advance(take);
    }
    for (; n < MR; ++n) {  // pixels that do not exist repeat the last
      in[n] = in[n - 1];
      out[n] = out[n - 1];
      at_h[n] = at_h[n - 1];
      at_w[n] = at_w[n - 1];
    }
    a.pixels = pixels;
    if (look_up) {
      a.w = wp;
      a.length = total;
      tile<T, MR, NV, kLookup>(a);
      continue;
    }
    if (uniform) {
      int64_t i0 = max64(lo_h, b.i0), i1 = min64(hi_h, b.i1);
      int64_t j0 = max64(lo_w, b.j0), j1 = min64(hi_w, b.j1);
      a.rows = max64(i1 - i0, 0);
      a.cols = max64(j1 - j0, 0);
      a.length = channels;
      if (fold && a.cols > 0) {
        a.length *= a.cols;
        a.cols = 1;
      }
      a.x_first = i0 * a.x_row + j0 * a.x_col;
      a.w = wp + ((i0 * w.taps + j0) * j.ci + b.c0) * NV * N;
      tile<T, MR, NV, kRuns>(a);
      continue;
    }
    uintptr_t* t = table;
    for (int64_t i = b.i0; i < b.i1; ++i) {
      int64_t row_ok[MR], any_row = 0;
      for (int k = 0; k < MR; ++k) {
        row_ok[k] = -(int64_t)((uint64_t)(at_h[k] + i * h.off_step) < (uint64_t)h.in);
        any_row |= row_ok[k];
      }
      if (!any_row) continue;
      for (int64_t c = b.j0; c < b.j1; ++c) {
        int64_t any = 0, off = (i * a.x_row + c * a.x_col) * (int64_t)sizeof(T);
        for (int k = 0; k < MR; ++k) {
          int64_t ok =
              row_ok[k] & -(int64_t)((uint64_t)(at_w[k] + c * w.off_step) < (uint64_t)w.in);
          t[1 + k] = (uintptr_t)((((int64_t)in[k] + off) & ok) | ((int64_t)zeros & ~ok));
          any |= ok;
        }
        if (!any) continue;
        t[0] = (uintptr_t)(wp + ((i * w.taps + c) * j.ci + b.c0) * NV * N);
        t += 1 + MR;
      }
    }
    a.rows = (t - table) / (1 + MR);
    a.length = channels;
    tile<T, MR, NV, kTable>(a);
  }
}

template <class T>
struct Direct {
  const ConvParams& p;
  const Job& j;
  const T *x, *bias, *zeros;
  T* y;
  int64_t sum, gate;

  // pixels [m0, m1) of one panel, all blocks of the reduction
  template <int NV>
  void panel(const Axis& h, const Axis& w, int64_t images, int64_t g, int64_t first, const T* wp,
             int64_t m0, int64_t m1) const {
    constexpr int N = simd<T>::N, MR = rows_of(NV);
    int64_t channels = min64(NV * N, j.co - first * N);
    int tail = (int)(channels - (NV - 1) * N);
    const T* bp = bias ? bias + g * j.co + first * N : nullptr;
    bool relu = p.activation == kConvRelu;
    const T* xg = x + g * j.group;
    T* yg = y + g * j.co + first * N;
    int64_t si, sj, sc;
    block_steps(h, w, NV, &si, &sj, &sc);
    for (int64_t i = 0; i < h.taps; i += si)
      for (int64_t k = 0; k < w.taps; k += sj)
        for (int64_t c = 0; c < j.ci; c += sc) {
          Block b{i, min64(i + si, h.taps), k,     min64(k + sj, w.taps),
                  c, min64(c + sc, j.ci),   false, false};
          b.load = i + k + c > 0;
          b.finish = b.i1 == h.taps && b.j1 == w.taps && b.c1 == j.ci;
          chunk<T, MR, NV>(j, h, w, b, images, xg, wp, zeros, bp, yg, m0, m1, tail, relu, sum,
                           gate);
        }
  }

  // Steps over kernel rows, columns and channels such that a block of the panel fits the cache.
  void block_steps(const Axis& h, const Axis& w, int nv, int64_t* si, int64_t* sj,
                   int64_t* sc) const {
    int64_t row_bytes = nv * simd<T>::N * (int64_t)sizeof(T);
    int64_t limit = max64(p.l2 / 4, 131072) / row_bytes;
    if (w.taps * j.ci <= limit && w.taps <= kMaxRuns) {
      int64_t s = max64(1, min64(limit / (w.taps * j.ci), kMaxRuns / w.taps));
      int64_t blocks = ceil_div(h.taps, s);
      *si = ceil_div(h.taps, blocks);
      *sj = w.taps;
      *sc = j.ci;
    } else if (j.ci <= limit) {
      *si = 1;
      *sj = max64(1, min64(limit / j.ci, kMaxRuns));
      *sc = j.ci;
    } else {
      *si = *sj = 1;
      *sc = ceil_div(j.ci, ceil_div(j.ci, limit));
    }
  }
};

// Images that a tile takes side by side: with padding in play and enough images, MR of them.
GS_INLINE int64_t images_of(const Job& j, const Axis& h, const Axis& w, int mr) {
  if (h.taps == 0 || w.taps == 0 || h.out * w.out > 1024 || j.n < mr) return 1;
  bool border = h.first() < 0 || w.first() < 0 || h.last() >= h.in || w.last() >= w.in;
  return border ? mr : 1;
}

// Pixels of a task: some 20 us of work, more where the weights take several blocks.
template <class T>
GS_INLINE int64_t chunk_of(const Job& j, const ConvParams& p, const Axis& h, const Axis& w,
                           int mr) {
  int64_t reduce = h.taps * w.taps * j.ci;
  int64_t width = min64(j.vectors, kMaxVectors) * simd<T>::N;
  int64_t work = reduce * width * (int64_t)sizeof(T) > p.l2 / 4 ? 8000000 : 2000000;
  int64_t pixels = max64(work / max64(1, reduce * width), 8 * mr), total = j.n * h.out * w.out;
  if (pixels >= total) return total;
  int64_t chunks = ceil_div(total, pixels);
  return ceil_div(ceil_div(total, chunks), 12 * mr) * 12 * mr;
}

// The rows of y that pixels [m0, m1) of a walk over blocks of `images` images are.
void pixels_written(const ConvParams& p, const Job& j, int64_t images, void* const* buf, int64_t m0,
                    int64_t m1, int64_t col, int64_t cols, int64_t piece, int64_t pieces) {
  if (images == 1) {
    written(p, buf, m0, m1, col, cols, piece, pieces);
    return;
  }
  const int64_t per = j.out_h * j.out_w;
  for (int64_t n = m0 / (per * images) * images; n * per < m1; n += images) {
    const int64_t count = min64(images, j.n - n), first = n * per;
    const int64_t a = max64(m0 - first, 0), b = min64(m1 - first, count * per);
    // image i has every count-th pixel of the block, from the i-th on
    for (int64_t i = 0; i < count; ++i)
      written(p, buf, (n + i) * per + ceil_div(max64(a - i, 0), count),
              (n + i) * per + ceil_div(max64(b - i, 0), count), col, cols, piece, pieces);
  }
}

// Rows [r0, r1) of dx (n x in_h of them), those of its pixels that no tap reaches: bias, sum and
// gate alone. Row by row, since phase by phase would be a walk that no core foresees.
template <class T>
void untouched(const ConvParams& p, const Job& j, const T* bias, T* dx, int64_t sum, int64_t gate,
               int64_t r0, int64_t r1) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const int64_t C = j.cout;
  auto vector = [&](T * d, int64_t c, auto get) __attribute__((always_inline)) {
    V v = bias ? get(bias + c) : V{};
    if (p.activation == kConvRelu) v = max(V{}, v);
    if (sum) v += get(d + sum);
    if (gate) v = get(d + gate) <= V{} ? V{} : v;
    return v;
  };
  auto pixel = [&](T* d) {
    int64_t c = 0;
    for (; c + N <= C; c += N) store(d + c, vector(d + c, c, [](const T* q) { return load(q); }));
    const int rest = (int)(C - c);
    if (rest) store_n(d + c, vector(d + c, c, [=](const T* q) { return load_n(q, rest); }), rest);
  };
  for (int64_t r = r0; r < r1; ++r) {
    T* row = dx + r * j.out_w * C;
    const bool reached = axis_h(j, p, r % j.out_h % j.phases_h).taps > 0;
    for (int64_t rw = 0; rw < (reached ? j.phases_w : 1); ++rw) {
      if (reached && axis_w(j, p, rw).taps > 0) continue;
      for (int64_t x = rw; x < j.out_w; x += reached ? j.phases_w : 1) pixel(row + x * C);
    }
  }
}

template <class T>
void run(const void* params, void* const* buf, const Ctx* ctx, bool backward) {
  constexpr int N = simd<T>::N;
  const ConvParams& p = *(const ConvParams*)params;
  Job j = make_job<T>(p, backward);
  const T *x = (const T*)buf[0], *w = (const T*)buf[1];
  T *packed = (T*)ctx->scratch, *zeros = (T*)(ctx->scratch + j.zeros_at);
  T* xp = (T*)(ctx->scratch + j.x_at);

  // Where a panel of the weights is packed (its phase starts at wp), and its rows [r, end).
  auto pack = [&](const Axis& h, const Axis& a, int64_t s, T* d, int64_t r, int64_t end) {
    int64_t g = s / j.panels, b = s % j.panels, reduce = h.taps * a.taps * j.ci;
    int64_t v0 = b * j.vectors / j.panels, v1 = (b + 1) * j.vectors / j.panels;
    int64_t left = j.co - v0 * N;
    if (backward)
      pack_backward(w + g * j.ci * p.kernel_h * p.kernel_w * j.co + v0 * N, p, h, a, j.ci, j.co,
                    left, (int)(v1 - v0), d, r, end);
    else
      pack_forward(w + (g * j.co + v0 * N) * reduce, reduce, left, (int)(v1 - v0), d, r, end);
  };
  auto place = [&](T* wp, int64_t s, int64_t reduce) {
    int64_t g = s / j.panels, b = s % j.panels;
    return wp + (g * j.vectors + b * j.vectors / j.panels) * N * reduce;
  };
  int64_t panels = j.groups * j.panels, widest = ceil_div(j.vectors, j.panels);
  // All weights fit the cache: panels go innermost and a chunk of x is read once. Otherwise chunks
  // go innermost; where there are panels for all members, each packs a panel when it needs it, into
  // the same place again and again, so packed weights never leave its cache.
  auto fits = [&](int64_t reduce) {
    return panels * widest * N * reduce * (int64_t)sizeof(T) < p.l2 / 2;
  };
  bool plenty = (panels % ctx->nt == 0 || panels >= 2 * ctx->nt) && j.vectors % j.panels == 0;

  // Pack the weights, copy what needs a border.
  int64_t turn = 0;
  if (ctx->tid == 0) memset(zeros, 0, (size_t)j.ci * sizeof(T));
  T* wp = packed;
  for (int64_t rh = 0; rh < j.phases_h; ++rh)
    for (int64_t rw = 0; rw < j.phases_w; ++rw) {
      Axis h = axis_h(j, p, rh), a = axis_w(j, p, rw);
      int64_t taps = h.taps * a.taps, reduce = taps * j.ci;
      int64_t step = backward ? max64(1, 256 / max64(1, taps)) : 256;
      int64_t rows = backward ? j.ci : reduce;
      if (taps && (fits(reduce) || !plenty))
        for (int64_t s = 0; s < panels; ++s)
          for (int64_t r = 0; r < rows; r += step)
            if (turn++ % ctx->nt == ctx->tid)
              pack(h, a, s, place(wp, s, reduce), r, min64(r + step, rows));
      wp += j.groups * j.vectors * N * reduce;
    }
  if (j.padded) {
    int64_t rows = j.n * j.hp, step = max64(1, 8192 / (j.wp * j.cin));
    for (int64_t r = 0; r < rows; r += step)
      if (turn++ % ctx->nt == ctx->tid)
        pad_rows(x, xp, j.n, j.in_h, j.in_w, j.cin, j.groups, j.hp, j.wp, j.top, j.left, r,
                 min64(r + step, rows));
    x = xp;
  }
  const int64_t sum = p.sum ? (const T*)buf[4] - (const T*)buf[3] : 0;
  const int64_t gate = p.gate ? (const T*)buf[p.sum ? 5 : 4] - (const T*)buf[3] : 0;
  if (j.gaps) {
    const int64_t rows = j.n * j.out_h;
    untouched(p, j, (const T*)buf[2], (T*)buf[3], sum, gate, rows * ctx->tid / ctx->nt,
              rows * (ctx->tid + 1) / ctx->nt);
  }
  ctx->sync();

  Direct<T> d{p, j, x, (const T*)buf[2], zeros, (T*)buf[3], sum, gate};
  turn = 0;
  wp = packed;
  for (int64_t rh = 0; rh < j.phases_h; ++rh)
    for (int64_t rw = 0; rw < j.phases_w; ++rw) {
      Axis h = axis_h(j, p, rh), a = axis_w(j, p, rw);
      int64_t reduce = h.taps * a.taps * j.ci, total = j.n * h.out * a.out;
      if (!total || !h.taps || !a.taps) continue;
      int mr = rows_of((int)widest);
      int64_t images = images_of(j, h, a, mr), step = chunk_of<T>(j, p, h, a, mr);
      int64_t chunks = ceil_div(total, step);
      bool panels_inner = fits(reduce), own = !panels_inner && plenty;
      // a member's own images, as in other kernels (winograd.h), where tasks are many
      const bool stretch = panels_inner && chunks * panels >= 16 * ctx->nt;
      auto owner = [&](int64_t c, int64_t s) {
        const int64_t m = c * step, size = min64(step, total - m);
        return (m * panels + s * size) * ctx->nt / (total * panels);
      };
      int64_t packed_panel = -1;
      for (int64_t t = 0; t < chunks * panels; ++t) {
        int64_t c = panels_inner ? t / panels : t % chunks;
        int64_t s = panels_inner ? t % panels : t / chunks;
        const int64_t member = own ? s % ctx->nt : stretch ? owner(c, s) : turn++ % ctx->nt;
        if (member != ctx->tid) continue;
        const T* pw = place(wp, own ? ctx->tid : s, reduce);
        if (own && s != packed_panel) {
          pack(h, a, s, (T*)pw, 0, backward ? j.ci : reduce);
          packed_panel = s;
        }
        int64_t g = s / j.panels, b = s % j.panels;
        int64_t v0 = b * j.vectors / j.panels, v1 = (b + 1) * j.vectors / j.panels;
        int64_t m0 = c * step, m1 = min64(m0 + step, total);
        switch (v1 - v0) {
          case 1:
            d.template panel<1>(h, a, images, g, v0, pw, m0, m1);
            break;
          case 2:
            d.template panel<2>(h, a, images, g, v0, pw, m0, m1);
            break;
#if GS_VBYTES == 64 || defined(__ARM_NEON)
          case 3:
            d.template panel<3>(h, a, images, g, v0, pw, m0, m1);
            break;
          case 4:
            d.template panel<4>(h, a, images, g, v0, pw, m0, m1);
            break;
#endif
        }
        if (p.after) {
          const int64_t col = v0 * N, cols = min64(v1 * N, j.co) - col;
          pixels_written(p, j, images, buf, m0, m1, col, cols, s, panels);
        }
      }
      wp += j.groups * j.vectors * N * reduce;
    }
}

template <class T>
void forward(const void* params, void* const* buf, const Ctx* ctx) {
  run<T>(params, buf, ctx, false);
}
template <class T>
void backward_data(const void* params, void* const* buf, const Ctx* ctx) {
  run<T>(params, buf, ctx, true);
}

template <class T>
void plan_of(const void* params, Plan* plan, bool backward) {
  const ConvParams& p = *(const ConvParams*)params;
  Job j = make_job<T>(p, backward);
  plan->scratch = j.scratch;
  plan->tasks = 0;
  for (int64_t rh = 0; rh < j.phases_h; ++rh)
    for (int64_t rw = 0; rw < j.phases_w; ++rw) {
      Axis h = axis_h(j, p, rh), a = axis_w(j, p, rw);
      int64_t total = j.n * h.out * a.out;
      if (total && h.taps && a.taps)
        plan->tasks +=
            ceil_div(total, chunk_of<T>(j, p, h, a, rows_of((int)ceil_div(j.vectors, j.panels)))) *
            j.groups * j.panels;
    }
  plan->tasks = max64(1, plan->tasks);
  double work = 2.0 * (double)(p.n * p.out_h * p.out_w) *
                (double)(p.filters * p.kernel_h * p.kernel_w) * (double)(p.channels / p.groups);
  plan->work = (int64_t)(work * (sizeof(T) == 8 ? 2 : 1) / (GS_VBYTES * 2)) + 1000;
}
template <class T>
void forward_plan(const void* params, Plan* plan) {
  plan_of<T>(params, plan, false);
}
template <class T>
void backward_data_plan(const void* params, Plan* plan) {
  plan_of<T>(params, plan, true);
}

const KernelEntry entries[] = {
    {"conv_direct_forward", kF32, forward<float>, forward_plan<float>},
    {"conv_direct_forward", kF64, forward<double>, forward_plan<double>},
    {"conv_direct_backward_data", kF32, backward_data<float>, backward_data_plan<float>},
    {"conv_direct_backward_data", kF64, backward_data<double>, backward_data_plan<double>},
};

}  // namespace

extern const KernelList conv_direct_kernels;
const KernelList conv_direct_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
