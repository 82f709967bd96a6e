// Gradients of the weights and of the bias of a convolution.
//
//   dw[k,i,j,c] = sum over pixels (n,p,q) dy[n,p,q,k] * x[n, p*sh - ph + i*dh, q*sw - pw + j*dw, c]
//   db[k]       = sum over pixels dy[n,p,q,k]
//
// For every tap an outer product summed over pixels: a tile of MR values that are broadcast and NV
// vectors stays in registers while lines of pixels pass; a line is a stretch of pixels at constant
// strides, along a row (clipped to where the tap lies inside x) or along the images at one position
// (maps smaller than the batch). Nothing is packed, nothing outside of x is read or multiplied.
//
// Two forms. "filters": broadcast dy over k, vectors over c; the tile is written where it belongs.
// "channels" (fewer than 16 channels): x is copied with a zero border so that all taps of a kernel
// row are neighbours; broadcast (tap, c) and vectors over k; transposed at the end.
//
// "channels" also takes the gradient behind a 2 x 2 max-pool (pool), so that of the convolution's
// output never exists. Of a window's four pixels one has a gradient, another one for each filter: a
// tap's four values of x are a quarter of a vector, and each lane picks its own by the index of the
// maximum, a permutation and an FMA where four FMAs would multiply zeros. For the same bits without
// a pool this form passes its pixels window by window (windows below). Where lanes that are left
// out could matter, because x has infinities or NaN, and where pixels pass along images, a block's
// pixels are spread from dy and the index into the first cache and go the dense way.
//
// Pixels pass in blocks of about 128, so both operands stay in the cache while all tiles of a task
// use them. Tasks: (group, 128 broadcast values, one vector tile, slice of the pixels); the slices
// depend on the shape alone and are added in order. Floor: one FMA per pixel, tap, c and k; behind
// a pool one permutation and one FMA per window, tap, c and k.
#include <string.h>

#include "conv/geometry.h"
#include "conv/pool.h"
#include "simd/transpose.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

#if GS_VBYTES == 64 || defined(__ARM_NEON)
#define GS_CONV_WIDE 1
constexpr int kMaxVectors = 4;
#else
#define GS_CONV_WIDE 0
constexpr int kMaxVectors = 2;
#endif
constexpr int64_t kBlock = 128;      // pixels of a block
constexpr int64_t kBroadcast = 128;  // broadcast values of a task
constexpr int kMaxLines = 256;

template <class T>
struct Line {
  const T *a, *b;
  int64_t count;
};

// c[m * ldc + v] (+)= sum over lines and pixels a[off[m]] * b[v]; a and b step by sa and sb.
// rows <= MR of them exist; the last vector has `tail` lanes.
template <class T, int MR, int NV>
__attribute__((noinline)) void outer(const Line<T>* lines, int64_t count, int64_t sa, int64_t sb,
                                     const int64_t* offsets, T* c, int64_t ldc, int rows, int tail,
                                     bool add) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  V acc[MR][NV];
  int64_t off[MR];  // rows that do not exist repeat the first
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    off[m] = offsets[m < rows ? m : 0];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[m][v] = V{};
  }
  bool whole = tail == N;
  for (int64_t i = 0; i < count; ++i) {
    const T *a = lines[i].a, *b = lines[i].b;
    for (int64_t n = lines[i].count; n > 0; --n, a += sa, b += sb) {
      V x[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV - 1; ++v) x[v] = load(b + v * N);
#if GS_VBYTES >= 32
      x[NV - 1] = load_n(b + (NV - 1) * N, tail);  // a masked load costs no more
#else
      x[NV - 1] = whole ? load(b + (NV - 1) * N) : load_n(b + (NV - 1) * N, tail);
#endif
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) {
        V s = set1(a[off[m]]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[m][v] = fma(s, x[v], acc[m][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    if (m >= rows) break;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      T* d = c + m * ldc + v * N;  // + 0: the sign of a zero tells nothing of pixels left out
      if (v < NV - 1 || whole)
        store(d, (add ? load(d) : V{}) + acc[m][v]);
      else
        store_n(d, (add ? load_n(d, tail) : V{}) + acc[m][v], tail);
    }
  }
}

// All broadcast values [0, rows) against one vector tile, in tiles of nearly equal height.
template <class T>
void tiles(int nv, const Line<T>* lines, int64_t count, int64_t sa, int64_t sb, const int64_t* off,
           T* c, int64_t ldc, int64_t rows, int tail, bool add) {
#if GS_CONV_WIDE
  int64_t most = nv == 4 ? 6 : nv == 3 ? 8 : 12;
#else
  int64_t most = nv == 2 ? 6 : 12;
#endif
  int64_t n = ceil_div(rows, most);
  for (int64_t t = 0; t < n; ++t) {
    int64_t m = t * rows / n;
    int height = (int)((t + 1) * rows / n - m);
    T* d = c + m * ldc;
    const int64_t* o = off + m;
#define GS_TILE(NV, MR) outer<T, MR, NV>(lines, count, sa, sb, o, d, ldc, height, tail, add)
    switch (nv) {
#if GS_CONV_WIDE
      case 4:
        height > 5   ? GS_TILE(4, 6)
        : height > 4 ? GS_TILE(4, 5)
        : height > 2 ? GS_TILE(4, 4)
                     : GS_TILE(4, 2);
        break;
      case 3:
        height > 6 ? GS_TILE(3, 8) : height > 4 ? GS_TILE(3, 6) : GS_TILE(3, 4);
        break;
      case 2:
        height > 11   ? GS_TILE(2, 12)
        : height > 10 ? GS_TILE(2, 11)
        : height > 9  ? GS_TILE(2, 10)
        : height > 8  ? GS_TILE(2, 9)
        : height > 6  ? GS_TILE(2, 8)
        : height > 4  ? GS_TILE(2, 6)
                      : GS_TILE(2, 4);
        break;
#else
      case 2:
        height > 5 ? GS_TILE(2, 6) : height > 4 ? GS_TILE(2, 5) : GS_TILE(2, 4);
        break;
#endif
      default:
        height > 8 ? GS_TILE(1, 12) : height > 4 ? GS_TILE(1, 8) : GS_TILE(1, 4);
    }
#undef GS_TILE
  }
}

struct Job {
  int64_t groups, ci, co, taps;
  bool channels_form, padded, along_images;
  bool windows;                   // "channels": a line is two rows, 2 x 2 pixels after 2 x 2 pixels
  int64_t top, left, hp, wp;      // of the copy, or of x
  int64_t ld, row, image, group;  // strides of x as read
  int64_t wide, vectors, panels, rows, row_blocks;   // vector side, broadcast side
  int64_t reduce_ld;                                 // of dw as accumulated
  int64_t segment, segments, outer, blocks, slices;  // lines, and blocks of kBlock pixels
  int64_t lines_per_block;
  size_t part, part_bias;  // elements of a slice's dw and db
  // pool: elements of a member's block of dy, of the rows of x of a line with their border, of
  // these as quads
  int64_t spread, patch, quads;
  int64_t patch_rows, quad_row;  // floats of a row of quads
  size_t x_at, part_at, bias_at, spread_at, scratch;
};

template <class T>
Job make_job(const ConvParams& p) {
  constexpr int N = simd<T>::N;
  Job j{};
  j.groups = p.groups;
  j.ci = p.channels / p.groups;
  j.co = p.filters / p.groups;
  j.taps = p.kernel_h * p.kernel_w;
  j.channels_form = j.ci < 16;
  Axis h = forward_axis(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h);
  Axis w = forward_axis(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w);
  int64_t low_h = min64(0, h.first()), high_h = max64(p.in_h - 1, h.last());
  int64_t low_w = min64(0, w.first()), high_w = max64(p.in_w - 1, w.last());
  bool border = low_h < 0 || low_w < 0 || high_h >= p.in_h || high_w >= p.in_w;
  j.padded = j.channels_form && border;
  j.hp = p.in_h;
  j.wp = p.in_w;
  if (j.padded) {
    j.top = -low_h;
    j.left = -low_w;
    j.hp = high_h + 1 + j.top;
    j.wp = high_w + 1 + j.left;
  }
  j.ld = j.padded ? j.ci : p.channels;
  j.row = j.wp * j.ld;
  j.image = j.hp * j.row;
  j.group = j.padded ? p.n * j.image : j.ci;
  j.wide = j.channels_form ? j.co : j.ci;
  j.vectors = ceil_div(j.wide, N);
  j.panels = ceil_div(j.vectors, kMaxVectors);
  j.rows = j.channels_form ? j.taps * j.ci : j.co;
  j.row_blocks = ceil_div(j.rows, kBroadcast);
  j.reduce_ld = j.channels_form ? j.vectors * N : j.taps * j.ci;

  j.along_images = p.n > p.out_w && p.out_w < 8;
  int64_t length = j.along_images ? p.n : p.out_w;
  j.segments = ceil_div(length, kBlock);
  j.segment = ceil_div(length, j.segments);
  j.outer = j.along_images ? p.out_h * p.out_w : p.n * p.out_h;
  j.windows = j.channels_form && p.stride_h == 1 && p.stride_w == 1 && p.groups == 1 &&
              !j.along_images && j.segments == 1;
  if (j.windows) j.outer = p.n * ceil_div(p.out_h, 2);
  int64_t lines = j.outer * j.segments;
  j.lines_per_block = max64(1, min64(kBlock / (j.segment * (j.windows ? 2 : 1)), kMaxLines));
  j.blocks = ceil_div(lines, j.lines_per_block);
  int64_t pixels = p.n * p.out_h * p.out_w, grid = j.groups * j.panels * j.row_blocks;
  j.slices = max64(1, min64(min64(ceil_div(16, grid), pixels / 1024), j.blocks));
  j.part = j.channels_form ? (size_t)(j.groups * j.taps * j.ci * j.reduce_ld)
                           : (size_t)(p.filters * j.taps * j.ci);
  j.part_bias = (size_t)p.filters;
  j.x_at = 0;
  j.part_at = align64(j.padded ? (size_t)(j.groups * j.group) * sizeof(T) : 0);
  bool direct = j.slices == 1 && !j.channels_form;
  j.bias_at = align64(j.part_at + (direct ? 0 : j.slices * j.part * sizeof(T)));
  j.scratch = j.bias_at + (j.slices > 1 ? j.slices * j.part_bias * sizeof(T) : 0);
  if (p.pool) {
    j.spread = (j.lines_per_block * j.segment * min64(kMaxVectors, j.vectors) + 1) * N;
    j.spread_at = align64(j.scratch);
    if (j.windows) {
      j.patch_rows = 2 + (p.kernel_h - 1) * p.dilation_h;
      j.patch = j.lines_per_block * j.patch_rows * j.row + 2 * N;
      j.quad_row = (ceil_div(j.row, N) + 1) * N * 4;
      j.quads = j.lines_per_block * (j.patch_rows - 1) * j.quad_row + 16;
      j.patch = ceil_div(j.patch, 16) * 16;
      j.spread =
          j.lines_per_block * 2 * ceil_div(p.out_w, 2) * 2 * min64(kMaxVectors, j.vectors) * N;
    }
    j.scratch =
        j.spread_at + (size_t)(max64(1, p.threads) * (j.spread + j.patch + j.quads)) * sizeof(T);
  }
  return j;
}

// Calls f(image, row, column, pixels of the row) for the stretches of lines [l0, l1), in order:
// windows of two rows, at an odd end what there is of one.
template <class F>
GS_INLINE void each_window(const ConvParams& p, int64_t l0, int64_t l1, F f) {
  const int64_t pairs = ceil_div(p.out_h, 2);
  for (int64_t l = l0; l < l1; ++l) {
    const int64_t n = l / pairs, row = l % pairs * 2;
    if (row + 1 == p.out_h) {
      f(n, row, (int64_t)0, p.out_w);
      continue;
    }
    for (int64_t q = 0; q < p.out_w; q += 2)
      for (int64_t i = 0; i < 2; ++i) f(n, row + i, q, min64(2, p.out_w - q));
  }
}

// Lines [l0, l1) for kernel row i, column k: where the pixel reads x. x: group's first channel (or
// copy).
template <class T>
int64_t lines_of(const ConvParams& p, const Job& j, int64_t l0, int64_t l1, int64_t i, int64_t k,
                 const T* x, const T* dy, Line<T>* lines) {
  int64_t oh = i * p.dilation_h - p.pad_h + j.top, ow = k * p.dilation_w - p.pad_w + j.left,
          count = 0;
  if (j.windows) {  // every tap lies inside
    each_window(p, l0, l1, [&](int64_t n, int64_t row, int64_t q, int64_t pixels) {
      lines[count++] = Line<T>{x + (n * j.image + (row + oh) * j.row + (q + ow) * j.ld),
                               dy + ((n * p.out_h + row) * p.out_w + q) * p.filters, pixels};
    });
    return count;
  }
  if (j.along_images) {
    int64_t position = l0 / j.segments, part = l0 % j.segments;
    for (int64_t l = l0; l < l1; ++l) {
      int64_t n0 = part * j.segment, n1 = min64(n0 + j.segment, p.n);
      int64_t a = position / p.out_w * p.stride_h + oh, b = position % p.out_w * p.stride_w + ow;
      if (a >= 0 && a < j.hp && b >= 0 && b < j.wp && n1 > n0)
        lines[count++] = Line<T>{x + (n0 * j.image + a * j.row + b * j.ld),
                                 dy + (n0 * p.out_h * p.out_w + position) * p.filters, n1 - n0};
      if (++part == j.segments) {
        part = 0;
        ++position;
      }
    }
    return count;
  }
  // columns q with 0 <= q * stride + ow < wp
  int64_t lo = ow < 0 ? ceil_div(-ow, p.stride_w) : 0;
  int64_t hi = ow < j.wp ? min64((j.wp - 1 - ow) / p.stride_w + 1, p.out_w) : 0;
  for (int64_t l = l0; l < l1; ++l) {
    int64_t r = l / j.segments, q0 = l % j.segments * j.segment,
            q1 = min64(q0 + j.segment, p.out_w);
    int64_t n = r / p.out_h, a = r % p.out_h * p.stride_h + oh;
    q0 = max64(q0, lo);
    q1 = min64(q1, hi);
    if (a < 0 || a >= j.hp || q0 >= q1) continue;
    lines[count++] = Line<T>{x + (n * j.image + a * j.row + (q0 * p.stride_w + ow) * j.ld),
                             dy + (r * p.out_w + q0) * p.filters, q1 - q0};
  }
  return count;
}

// db[k] (+)= sum of dy over the pixels of lines [l0, l1), channels [k0, k1)
template <class T>
void bias_block(const ConvParams& p, const Job& j, int64_t l0, int64_t l1, const T* dy, T* db,
                int64_t k0, int64_t k1, bool add) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  int64_t step = j.along_images ? p.out_h * p.out_w * p.filters : p.filters;
  int64_t length = j.along_images ? p.n : p.out_w;
  for (int64_t k = k0; k < k1; k += 2 * N) {
    int a = (int)min64(N, k1 - k), b = (int)max64(0, min64(N, k1 - k - N));
    V s = V{}, t = V{};
    if (j.windows) {
      each_window(p, l0, l1, [&](int64_t n, int64_t row, int64_t q, int64_t pixels) {
        const T* d = dy + ((n * p.out_h + row) * p.out_w + q) * p.filters + k;
        for (int64_t i = 0; i < pixels; ++i, d += p.filters) {
          s += load_n(d, a);
          if (b) t += load_n(d + N, b);
        }
      });
    }
    for (int64_t l = l0; l < l1 && !j.windows; ++l) {
      int64_t r = l / j.segments, q0 = l % j.segments * j.segment,
              q1 = min64(q0 + j.segment, length);
      const T* d =
          dy + (j.along_images ? r + q0 * p.out_h * p.out_w : r * p.out_w + q0) * p.filters + k;
      if (b == N)
        for (int64_t q = q0; q < q1; ++q, d += step) {
          s += load(d);
          t += load(d + N);
        }
      else
        for (int64_t q = q0; q < q1; ++q, d += step) {
          s += load_n(d, a);
          if (b) t += load_n(d + N, b);
        }
    }
    if (add) {
      s += load_n(db + k, a);
      if (b) t += load_n(db + k + N, b);
    }
    store_n(db + k, s, a);
    if (b) store_n(db + k + N, t, b);
  }
}

// Lines [l0, l1) of the gradient behind a pool, filters [k0, k1), to `to` (pixels, width), and
// where they meet x in `lines`, as lines_of has it.
__attribute__((noinline)) static int64_t spread_lines(const ConvParams& p, const Job& j, int64_t l0,
                                                      int64_t l1, const float* x, const float* dy,
                                                      const uint8_t* index, int64_t k0, int64_t k1,
                                                      int64_t width, float* to,
                                                      Line<float>* lines) {
  constexpr int N = simd<float>::N;
  const int64_t oh = p.out_h / 2, ow = p.out_w / 2;
  int64_t count = 0;
  auto pixel = [&](int64_t n, int64_t row, int64_t c) {
    float* at = to;
    to += width;
    if (row / 2 >= oh || c / 2 >= ow) {
      memset(at, 0, (size_t)width * sizeof(float));
      return;
    }
    const int which = (int)(row % 2 * 2 + c % 2);
    const int64_t o = ((n * oh + row / 2) * ow + c / 2) * p.filters;
    int64_t k = k0;
    for (; k + N <= k1; k += N)
      store(at + k - k0, only(load(dy + o + k), pool_index(index + o + k, N), which));
    if (k < k1) {
      int lanes = (int)(k1 - k);
      store(at + k - k0, only(load_n(dy + o + k, lanes), pool_index(index + o + k, lanes), which));
    }
  };
  if (j.windows) {  // x: the rows of these lines alone, as copy_lines has them
    const int64_t pairs = ceil_div(p.out_h, 2);
    each_window(p, l0, l1, [&](int64_t n, int64_t row, int64_t q, int64_t pixels) {
      const int64_t l = n * pairs + row / 2 - l0;
      lines[count++] = Line<float>{x + (l * j.patch_rows + row % 2) * j.row + q * j.ld, to, pixels};
      for (int64_t i = 0; i < pixels; ++i) pixel(n, row, q + i);
    });
    return count;
  }
  count = lines_of(p, j, l0, l1, 0, 0, x, dy, lines);
  for (int64_t l = l0; l < l1; ++l) {
    int64_t outer = l / j.segments, a = l % j.segments * j.segment;
    int64_t b = min64(a + j.segment, j.along_images ? p.n : p.out_w);
    lines[l - l0].b = to;
    const int64_t row = j.along_images ? outer / p.out_w : outer % p.out_h;
    const int64_t col = j.along_images ? outer % p.out_w : 0;
    const int64_t image = j.along_images ? 0 : outer / p.out_h;
    for (int64_t i = a; i < b; ++i)
      pixel(j.along_images ? i : image, row, j.along_images ? col : i);
  }
  return count;
}

// The rows of x, with their border, that lines [l0, l1) of windows see: j.patch_rows for each line.
// Whether all of them are finite.
static bool copy_lines(const ConvParams& p, const Job& j, int64_t l0, int64_t l1, const float* x,
                       float* patch) {
  constexpr int N = simd<float>::N;
  const int64_t pairs = ceil_div(p.out_h, 2);
  for (int64_t l = l0; l < l1; ++l) {
    const int64_t row = l % pairs * 2, first = l / pairs * j.hp + row;
    const int64_t count = min64(j.patch_rows, j.hp - row);
    float* to = patch + (l - l0) * j.patch_rows * j.row;
    pad_rows(x, to - first * j.row, p.n, p.in_h, p.in_w, p.channels, 1, j.hp, j.wp, j.top, j.left,
             first, first + count);
    for (int64_t i = count; i < j.patch_rows; ++i)
      memset(to + i * j.row, 0, (size_t)j.row * sizeof(float));
  }
  const int64_t size = (l1 - l0) * j.patch_rows * j.row;
  memset(patch + size, 0, 2 * N * sizeof(float));
  simd<float>::V sum = {};
  for (int64_t i = 0; i < size; i += N) sum += load(patch + i) - load(patch + i);
  float all = 0;
  for (int i = 0; i < N; ++i) all += sum[i];
  return all == 0;
}

// The values of 2 x 2 neighbours from every element of `rows` rows on, from rows of `row` floats to
// rows of `quad_row`; the pixels are `step` floats apart.
static void quads_of(const float* from, int64_t rows, int64_t row, int64_t step, float* to,
                     int64_t quad_row) {
  constexpr int N = simd<float>::N;
  for (int64_t r = 0; r < rows; ++r, from += row, to += quad_row) {
#if defined(__AVX512F__)
    if (step <= 12) {
      const int s = (int)step;
      const __m512i at = _mm512_setr_epi32(0, s, 16, 16 + s, 1, 1 + s, 17, 17 + s, 2, 2 + s, 18,
                                           18 + s, 3, 3 + s, 19, 19 + s);
      for (int64_t i = 0; i < row - step; i += 4)
        _mm512_storeu_ps(to + 4 * i, _mm512_permutex2var_ps(_mm512_loadu_ps(from + i), at,
                                                            _mm512_loadu_ps(from + row + i)));
      continue;
    }
#endif
    for (int64_t i = 0; i < row - step; i += N) {
      auto a = load(from + i), b = load(from + step + i);
      auto c = load(from + row + i), d = load(from + row + step + i);
      auto ac = interleave_lo(a, c), bd = interleave_lo(b, d);
      store(to + 4 * i, interleave_lo(ac, bd));
      store(to + 4 * i + N, interleave_hi(ac, bd));
      ac = interleave_hi(a, c), bd = interleave_hi(b, d);
      store(to + 4 * i + 2 * N, interleave_lo(ac, bd));
      store(to + 4 * i + 3 * N, interleave_hi(ac, bd));
    }
  }
}

// Windows of a line.
struct Windows {
  const float *quads, *dy;
  const uint8_t* index;
};

// c[m * ldc + v] (+)= sum over lines and `windows` windows a[at[m]][index[v]] * dy[v], where a is
// the window's quad, every next one `step` floats on. db (may be absent) (+)= the sum of dy
template <int MR, int NV>
__attribute__((noinline)) static void window_outer(const Windows* lines, int64_t count,
                                                   int64_t windows, int64_t step, int64_t filters,
                                                   const int64_t* offsets, float* c, int64_t ldc,
                                                   float* db, int rows, int tail, bool add) {
  using V = simd<float>::V;
  using I = simd<float>::I;
  constexpr int N = simd<float>::N;
  V acc[MR][NV], sum[NV];
  int64_t off[MR];
#pragma GCC unroll 2
  for (int v = 0; v < NV; ++v) sum[v] = V{};
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    off[m] = offsets[m < rows ? m : 0];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[m][v] = V{};
  }
  for (int64_t l = 0; l < count; ++l) {
    const float *a = lines[l].quads, *dy = lines[l].dy;
    const uint8_t* index = lines[l].index;
    for (int64_t w = 0; w < windows; ++w, a += step, dy += filters, index += filters) {
      V g[NV];
      I which[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        const int lanes = v < NV - 1 ? N : tail;
        const I i = lanes == N ? load_taps<float, true>(index + v * N, N)
                               : load_taps<float, false>(index + v * N, lanes);
        const V d = lanes == N ? load(dy + v * N) : load_n(dy + v * N, lanes);
        g[v] = pool_gradient(d, i);
        sum[v] += g[v];
        which[v] = pick_control(i);
      }
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m) {
        const V q = load_quads(a + off[m]);
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) acc[m][v] = fma(pick(q, which[v]), g[v], acc[m][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    if (m >= rows) break;
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      float* to = c + m * ldc + v * N;
      const int lanes = v < NV - 1 ? N : tail;
      store_n(to, (add ? load_n(to, lanes) : V{}) + acc[m][v], lanes);
    }
  }
  if (!db) return;
#pragma GCC unroll 2
  for (int v = 0; v < NV; ++v) {
    const int lanes = v < NV - 1 ? N : tail;
    store_n(db + v * N, (add ? load_n(db + v * N, lanes) : V{}) + sum[v], lanes);
  }
}
#if GS_VBYTES == 64 || defined(__ARM_NEON)
constexpr int kWindowVectors = 2;
#else
constexpr int kWindowVectors = 1;
#endif
constexpr int64_t kWindowRows = 9;

// A block of lines of windows against filters [k0, k1): c (rows, reduce_ld), whose first is k0, and
// db (filters; may be absent). off: of the rows, in quads
static void window_block(const ConvParams& p, const Job& j, int64_t l0, int64_t l1,
                         const float* quads, const float* dy, const uint8_t* index,
                         const int64_t* off, int64_t rows, int64_t k0, int64_t k1, float* c,
                         float* db, bool add) {
  constexpr int N = simd<float>::N;
  const int64_t pairs = ceil_div(p.out_h, 2), oh = p.out_h / 2, ow = p.out_w / 2;
  const int64_t tiles = ceil_div(rows, kWindowRows);
  Windows lines[kBlock / 2];
  for (int64_t k = k0; k < k1; k += kWindowVectors * N) {
    const int nv = (int)min64(kWindowVectors, ceil_div(k1 - k, N));
    const int tail = (int)min64(N, k1 - k - (nv - 1) * N);
    int64_t count = 0;
    for (int64_t l = l0; l < l1; ++l) {
      const int64_t n = l / pairs, row = l % pairs;
      if (row == oh) continue;  // no window
      const int64_t o = (n * oh + row) * ow * p.filters + k;
      lines[count++] =
          Windows{quads + (l - l0) * (j.patch_rows - 1) * j.quad_row, dy + o, index + o};
    }
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t m = t * rows / tiles;
      const int height = (int)((t + 1) * rows / tiles - m);
      float* bias = db && t == 0 ? db + k : nullptr;
      float* to = c + m * j.reduce_ld + k - k0;
#if GS_VBYTES == 64 || defined(__ARM_NEON)
      if (nv == 2) {
        window_outer<kWindowRows, 2>(lines, count, ow, 8 * j.ld, p.filters, off + m, to,
                                     j.reduce_ld, bias, height, tail, add);
        continue;
      }
#endif
      window_outer<kWindowRows, 1>(lines, count, ow, 8 * j.ld, p.filters, off + m, to, j.reduce_ld,
                                   bias, height, tail, add);
    }
  }
}

template <class T>
void backward_weight(const void* params, void* const* buf, const Ctx* ctx) {
  constexpr int N = simd<T>::N;
  const ConvParams& p = *(const ConvParams*)params;
  Job j = make_job<T>(p);
  const T *x = (const T*)buf[0], *dy = (const T*)buf[1];
  T *dw = (T*)buf[2], *db = (T*)buf[3];
  T* xp = (T*)(ctx->scratch + j.x_at);
  bool direct = j.slices == 1 && !j.channels_form;
  T* parts = direct ? dw : (T*)(ctx->scratch + j.part_at);
  T* bias_parts = j.slices == 1 ? db : (T*)(ctx->scratch + j.bias_at);

  const bool sparse = p.pool && j.windows;
  if (j.padded && !sparse) {
    int64_t rows = p.n * j.hp, step = max64(1, 8192 / (j.wp * p.channels));
    for (int64_t r = ctx->tid * step; r < rows; r += ctx->nt * step)
      pad_rows(x, xp, p.n, p.in_h, p.in_w, p.channels, j.groups, j.hp, j.wp, j.top, j.left, r,
               min64(r + step, rows));
    x = xp;
    ctx->sync();
  }

  int64_t lines_all = j.outer * j.segments;
  int64_t tasks = j.groups * j.panels * j.row_blocks * j.slices;
  int64_t step_x = j.along_images ? j.image : p.stride_w * j.ld;
  int64_t step_y = j.along_images ? p.out_h * p.out_w * p.filters : p.filters;
  Line<T> lines[kMaxLines];
  T* spread = (T*)(ctx->scratch + j.spread_at) + ctx->tid * (j.spread + j.patch + j.quads);
  T *patch = spread + j.spread, *quads = patch + j.patch;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t slice = t % j.slices, u = t / j.slices;
    int64_t rb = u % j.row_blocks, b = u / j.row_blocks % j.panels, g = u / j.row_blocks / j.panels;
    int64_t v0 = b * j.vectors / j.panels, v1 = (b + 1) * j.vectors / j.panels;
    int nv = (int)(v1 - v0);
    int tail = (int)(min64(v1 * N, j.wide) - (v1 - 1) * N);
    int64_t r0 = rb * j.rows / j.row_blocks, r1 = (rb + 1) * j.rows / j.row_blocks;
    T* part = parts + slice * (int64_t)j.part;
    T* part_bias = bias_parts + slice * (int64_t)j.part_bias;
    int64_t off[kBroadcast], quad[kBroadcast];
    for (int64_t r = r0; r < r1; ++r) {
      int64_t tap = r / j.ci;
      off[r - r0] = j.channels_form ? tap / p.kernel_w * p.dilation_h * j.row +
                                          tap % p.kernel_w * p.dilation_w * j.ld + r % j.ci
                                    : r - r0;
      quad[r - r0] = tap / p.kernel_w * p.dilation_h * j.quad_row +
                     (tap % p.kernel_w * p.dilation_w * j.ld + r % j.ci) * 4;
    }
    bool bias = p.has_bias && (j.channels_form ? rb == 0 : b == 0);
    int64_t first = slice * j.blocks / j.slices, last = (slice + 1) * j.blocks / j.slices;
    const T *xg = x + g * j.group, *dyg = dy + g * j.co;
    for (int64_t block = first; block < last; ++block) {
      int64_t l0 = block * j.lines_per_block, l1 = min64(l0 + j.lines_per_block, lines_all);
      bool add = block > first;
      if constexpr (sizeof(T) == 4) {
        if (p.pool) {
          int64_t k0 = v0 * N, k1 = min64(v1 * N, j.co), width = nv * N;
          T* c = part + r0 * j.reduce_ld + k0;
          const T* from = x;
          if (sparse) {
            from = patch;
            if (copy_lines(p, j, l0, l1, x, patch)) {
              for (int64_t l = 0; l < l1 - l0; ++l)
                quads_of(patch + l * j.patch_rows * j.row, j.patch_rows - 1, j.row, j.ld,
                         quads + l * (j.patch_rows - 1) * j.quad_row, j.quad_row);
              window_block(p, j, l0, l1, quads, dy, (const uint8_t*)buf[4], quad, r1 - r0, k0, k1,
                           c, bias ? part_bias : nullptr, add);
              continue;
            }
          }
          int64_t count = spread_lines(p, j, l0, l1, from, dy, (const uint8_t*)buf[4], k0, k1,
                                       width, spread, lines);
          if (bias)
            for (int64_t k = k0; k < k1; k += N) {
              int lanes = (int)min64(N, k1 - k);
              typename simd<T>::V s = {};
              for (int64_t l = 0; l < count; ++l)
                for (int64_t q = 0; q < lines[l].count; ++q)
                  s += load(lines[l].b + q * width + k - k0);
              if (add) s += load_n(part_bias + k, lanes);
              store_n(part_bias + k, s, lanes);
            }
          tiles(nv, lines, count, step_x, width, off, c, j.reduce_ld, r1 - r0, tail, add);
          continue;
        }
      }
      if (bias) {
        if (j.channels_form)
          bias_block(p, j, l0, l1, dy, part_bias, g * j.co + v0 * N, g * j.co + min64(v1 * N, j.co),
                     add);
        else
          bias_block(p, j, l0, l1, dy, part_bias, g * j.co + r0, g * j.co + r1, add);
      }
      if (j.channels_form) {
        // all taps lie inside the copy
        int64_t count = lines_of(p, j, l0, l1, 0, 0, xg, dyg + v0 * N, lines);
        T* c = part + (g * j.taps * j.ci + r0) * j.reduce_ld + v0 * N;
        tiles(nv, lines, count, step_x, step_y, off, c, j.reduce_ld, r1 - r0, tail, add);
        continue;
      }
      for (int64_t i = 0; i < p.kernel_h; ++i)
        for (int64_t k = 0; k < p.kernel_w; ++k) {
          int64_t count = lines_of(p, j, l0, l1, i, k, xg + v0 * N, dyg + r0, lines);
          for (int64_t l = 0; l < count; ++l) {
            const T* a = lines[l].a;
            lines[l].a = lines[l].b;
            lines[l].b = a;
          }
          T* c = part + (g * j.co + r0) * j.reduce_ld + (i * p.kernel_w + k) * j.ci + v0 * N;
          tiles(nv, lines, count, step_y, step_x, off, c, j.reduce_ld, r1 - r0, tail, add);
        }
    }
  }
  if (direct) return;
  ctx->sync();

  // Add the slices in order; transpose in the "channels" form.
  using V = typename simd<T>::V;
  if (j.channels_form) {
    int64_t reduce = j.taps * j.ci;
    for (int64_t k = ctx->tid; k < p.filters; k += ctx->nt) {
      const T* s = parts + k / j.co * reduce * j.reduce_ld + k % j.co;
      for (int64_t r = 0; r < reduce; ++r) {
        T sum = s[r * j.reduce_ld];
        for (int64_t i = 1; i < j.slices; ++i) sum += s[i * (int64_t)j.part + r * j.reduce_ld];
        dw[k * reduce + r] = sum;
      }
    }
  } else {
    int64_t n = (int64_t)j.part, step = 64 * N;
    for (int64_t e0 = ctx->tid * step; e0 < n; e0 += ctx->nt * step)
      for (int64_t e = e0; e < min64(e0 + step, n); e += N) {
        int lanes = (int)min64(N, n - e);
        V sum = load_n(parts + e, lanes);
        for (int64_t i = 1; i < j.slices; ++i) sum += load_n(parts + i * n + e, lanes);
        store_n(dw + e, sum, lanes);
      }
  }
  if (p.has_bias && j.slices > 1)
    for (int64_t k = ctx->tid * N; k < p.filters; k += ctx->nt * N) {
      int lanes = (int)min64(N, p.filters - k);
      V sum = load_n(bias_parts + k, lanes);
      for (int64_t i = 1; i < j.slices; ++i) sum += load_n(bias_parts + i * p.filters + k, lanes);
      store_n(db + k, sum, lanes);
    }
}

template <class T>
void backward_weight_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  Job j = make_job<T>(p);
  plan->tasks = j.groups * j.panels * j.row_blocks * j.slices;
  plan->scratch = j.scratch;
  double work =
      2.0 * (double)(p.n * p.out_h * p.out_w) * (double)(p.filters * j.taps) * (double)j.ci;
  plan->work = (int64_t)(work * (sizeof(T) == 8 ? 2 : 1) / (GS_VBYTES * 2)) + 1000;
}

// x (rows, channels); slices of rows that depend on the shape alone, in runs of kBlock rows.
template <class T>
void channel_sum(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const ChannelSumParams& p = *(const ChannelSumParams*)params;
  const T* x = (const T*)buf[0];
  T *out = (T*)buf[1], *parts = (T*)ctx->scratch;
  int64_t slices = max64(1, min64(16, p.rows / 4096)), C = p.channels;
  for (int64_t s = ctx->tid; s < slices; s += ctx->nt) {
    int64_t r0 = s * p.rows / slices, r1 = (s + 1) * p.rows / slices;
    T* part = parts + s * C;
    for (int64_t r = r0; r < r1; r += kBlock)
      for (int64_t c = 0; c < C; c += N) {
        int lanes = (int)min64(N, C - c);
        V sum = V{};
        for (int64_t i = r; i < min64(r + kBlock, r1); ++i) sum += load_n(x + i * C + c, lanes);
        if (r > r0) sum += load_n(part + c, lanes);
        store_n(part + c, sum, lanes);
      }
  }
  ctx->sync();
  if (ctx->tid == 0)
    for (int64_t c = 0; c < C; ++c) {
      T sum = parts[c];
      for (int64_t s = 1; s < slices; ++s) sum += parts[s * C + c];
      out[c] = sum;
    }
}

template <class T>
void channel_sum_plan(const void* params, Plan* plan) {
  const ChannelSumParams& p = *(const ChannelSumParams*)params;
  plan->tasks = max64(1, min64(16, p.rows / 4096));
  plan->scratch = (size_t)(plan->tasks * p.channels) * sizeof(T);
  plan->work = p.rows * p.channels * (int64_t)sizeof(T) / 16 + 500;
}

const KernelEntry entries[] = {
    {"conv_channel_sum", kF32, channel_sum<float>, channel_sum_plan<float>},
    {"conv_channel_sum", kF64, channel_sum<double>, channel_sum_plan<double>},
    {"conv_pool_backward_weight", kF32, backward_weight<float>, backward_weight_plan<float>},
    {"conv_direct_backward_weight", kF32, backward_weight<float>, backward_weight_plan<float>},
    {"conv_direct_backward_weight", kF64, backward_weight<double>, backward_weight_plan<double>},
};

}  // namespace

extern const KernelList conv_backward_weight_kernels;
const KernelList conv_backward_weight_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
