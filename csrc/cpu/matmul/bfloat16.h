// Products C = A B of float32 matrices whose elements are rounded to bfloat16 when they are packed,
// summed in float32; what matmul and convolution share.
//
// A goes into slivers of 32 rows (a row holds a block of k and is contiguous), B into panels of 32
// columns (pairs of rows, the two elements of a column side by side), which stay in half of the
// second cache while slivers pass. Where the processor has tiles (AMX) a block of 32 x 32 is 2 x 2
// tiles and a step of 32 along k is four instructions; the packing is then what costs time: 0.1 to
// 0.2 cycles an element against 1024 multiply-adds a cycle. With AVX512-BF16 alone vdpbf16ps sums
// pairs; elsewhere the rounded operands are held as float32 and multiplied by FMAs.
//
// Bits: an element of C is the sum of its blocks of k in ascending order, each a chain; blocks
// follow from k alone. Tiles and vdpbf16ps take denormals as zero and add the products of a pair
// one after the other; the float32 form keeps denormals: instruction sets differ in the last bits.
//
// A problem (Dense, and those of conv/bfloat16.cpp) says how its operands are packed and where its
// results go; run_product does the rest (for Dense by vdpbf16ps: paired.h).
#pragma once
#include <string.h>

#include "matmul.h"
#include "matmul/pack.h"
#include "simd/vec.h"
#if !defined(__AVX512BF16__)
#include "matmul/block.h"
#endif

namespace gs {
namespace GS_ISA {
namespace {

#if defined(__AVX512BF16__)
typedef uint16_t Half;
constexpr int64_t kPad = 32;  // blocks of k are filled with zeros to a multiple of it
#else
typedef float Half;  // rounded to what a bfloat16 can hold
constexpr int64_t kPad = 1;
#endif
constexpr int64_t kSide = 32;      // rows of a sliver, columns of a panel
constexpr int64_t kDepth16 = 640;  // k of a block at most

GS_INLINE int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }
GS_INLINE int64_t parts(int64_t a, int64_t b) { return (a + b - 1) / b; }
GS_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
GS_INLINE int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

// The depth of the blocks that k is cut into.
GS_INLINE int64_t block_depth(int64_t k) {
  int64_t blocks = parts(k, kDepth16);
  return blocks > 1 ? up(parts(k, blocks), 32) : k;
}

#if defined(__AVX512BF16__)

GS_INLINE __mmask16 first_lanes(int64_t n) {
  return n >= 16 ? (__mmask16)0xffff : n <= 0 ? (__mmask16)0 : (__mmask16)((1u << n) - 1);
}
// 32 elements of a row, n of them there, rounded.
GS_INLINE __m512i row_of(const float* p, int64_t n) {
  __m512 lo = _mm512_maskz_loadu_ps(first_lanes(n), p);
  __m512 hi = _mm512_maskz_loadu_ps(first_lanes(n - 16), p + 16);
  return (__m512i)_mm512_cvtne2ps_pbh(hi, lo);
}
// Lane j: (lo[j], hi[j]), rounded.
GS_INLINE __m512i pairs_of(__m512 lo, __m512 hi) {
  const __m512i turn = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                        8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(turn, (__m512i)_mm512_cvtne2ps_pbh(hi, lo));
}

// v[i] lane j <-> v[j] lane i
GS_INLINE void transpose16(__m512i* v) {
  __m512i u[16];
#pragma GCC unroll 4
  for (int g = 0; g < 16; g += 4) {
    __m512i a = _mm512_unpacklo_epi32(v[g], v[g + 1]), b = _mm512_unpackhi_epi32(v[g], v[g + 1]);
    __m512i c = _mm512_unpacklo_epi32(v[g + 2], v[g + 3]),
            d = _mm512_unpackhi_epi32(v[g + 2], v[g + 3]);
    u[g] = _mm512_unpacklo_epi64(a, c);
    u[g + 1] = _mm512_unpackhi_epi64(a, c);
    u[g + 2] = _mm512_unpacklo_epi64(b, d);
    u[g + 3] = _mm512_unpackhi_epi64(b, d);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    __m512i a = _mm512_shuffle_i32x4(u[c], u[4 + c], 0x44);
    __m512i b = _mm512_shuffle_i32x4(u[c], u[4 + c], 0xee);
    __m512i d = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x44);
    __m512i e = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xee);
    v[c] = _mm512_shuffle_i32x4(a, d, 0x88);
    v[4 + c] = _mm512_shuffle_i32x4(a, d, 0xdd);
    v[8 + c] = _mm512_shuffle_i32x4(b, e, 0x88);
    v[12 + c] = _mm512_shuffle_i32x4(b, e, 0xdd);
  }
}

// A run of n elements of a row of a sliver; up to 31 more are written as zeros.
GS_INLINE void put_run(const float* from, int64_t n, Half* to) {
  int64_t k = 0;
  for (; k + 32 <= n; k += 32)
    _mm512_storeu_si512(to + k, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + k + 16),
                                                             _mm512_loadu_ps(from + k)));
  if (k < n) _mm512_storeu_si512(to + k, row_of(from + k, n - k));
}
GS_INLINE void put_zeros(int64_t n, Half* to) {
  for (int64_t k = 0; k < n; k += 32) _mm512_storeu_si512(to + k, _mm512_setzero_si512());
}

// A: element (i, k) at from[i * rs + k].
[[maybe_unused]] __attribute__((noinline)) void sliver_of_rows(const float* from, int64_t rs,
                                                               int rows, int64_t depth, Half* to,
                                                               int64_t ld) {
  for (int i = 0; i < rows; ++i) put_run(from + i * rs, depth, to + i * ld);
}

// A: element (i, k) at from[k * ks + i].
__attribute__((noinline)) void sliver_of_columns(const float* from, int64_t ks, int rows,
                                                 int64_t depth, Half* to, int64_t ld) {
  for (int i = 0; i < rows; i += 16) {
    __mmask16 m = first_lanes(rows - i);
    for (int64_t k = 0; k < depth; k += 32) {
      const float* p = from + k * ks + i;
      __m512i v[16];
      if (k + 32 <= depth) {
#pragma GCC unroll 16
        for (int q = 0; q < 16; ++q)
          v[q] = pairs_of(_mm512_maskz_loadu_ps(m, p + 2 * q * ks),
                          _mm512_maskz_loadu_ps(m, p + (2 * q + 1) * ks));
      } else {
        for (int q = 0; q < 16; ++q) {
          __m512 lo = _mm512_setzero_ps(), hi = lo;
          if (k + 2 * q < depth) lo = _mm512_maskz_loadu_ps(m, p + 2 * q * ks);
          if (k + 2 * q + 1 < depth) hi = _mm512_maskz_loadu_ps(m, p + (2 * q + 1) * ks);
          v[q] = pairs_of(lo, hi);
        }
      }
      transpose16(v);
#pragma GCC unroll 16
      for (int q = 0; q < 16; ++q) _mm512_storeu_si512(to + (i + q) * ld + k, v[q]);
    }
  }
}

// B: element (k, j) at from[k * ks + j].
__attribute__((noinline)) void panel_of_rows(const float* from, int64_t ks, int64_t depth,
                                             int64_t cols, Half* to) {
  __mmask16 m0 = first_lanes(cols), m1 = first_lanes(cols - 16);
  int64_t k = 0;
  for (; k + 2 <= depth; k += 2, to += 64) {
    const float *p = from + k * ks, *q = p + ks;
    _mm512_storeu_si512(to, pairs_of(_mm512_maskz_loadu_ps(m0, p), _mm512_maskz_loadu_ps(m0, q)));
    _mm512_storeu_si512(
        to + 32, pairs_of(_mm512_maskz_loadu_ps(m1, p + 16), _mm512_maskz_loadu_ps(m1, q + 16)));
  }
  for (; k < up(depth, kPad); k += 2, to += 64) {
    const float* p = from + k * ks;
    __m512 a = _mm512_setzero_ps(), b = a, z = a;
    if (k < depth) {
      a = _mm512_maskz_loadu_ps(m0, p);
      b = _mm512_maskz_loadu_ps(m1, p + 16);
    }
    _mm512_storeu_si512(to, pairs_of(a, z));
    _mm512_storeu_si512(to + 32, pairs_of(b, z));
  }
}

// B: element (k, j) at from[j * js + k].
__attribute__((noinline)) void panel_of_columns(const float* from, int64_t js, int64_t depth,
                                                int64_t cols, Half* to) {
  for (int j = 0; j < kSide; j += 16)
    for (int64_t k = 0; k < depth; k += 32) {
      const float* p = from + j * js + k;
      int64_t left = depth - k, n = cols - j;
      __m512i v[16];
      if (left >= 32 && n >= 16) {
#pragma GCC unroll 16
        for (int q = 0; q < 16; ++q)
          v[q] = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(p + q * js + 16),
                                              _mm512_loadu_ps(p + q * js));
      } else {
        for (int q = 0; q < 16; ++q)
          v[q] = q < n ? row_of(p + q * js, left) : _mm512_setzero_si512();
      }
      transpose16(v);
#pragma GCC unroll 16
      for (int q = 0; q < 16; ++q) _mm512_storeu_si512(to + (k + 2 * q) * 32 + j * 2, v[q]);
    }
}

#else  // float32

GS_INLINE vf rounded(vf x) {
  vu u = (vu)x, one = (vu)set1((int32_t)1);
  vu r = (u + 0x7fffu + ((u >> 16) & one)) & 0xffff0000u;
  vu nan = (vu)(x != x);
  return (vf)((r & ~nan) | (((u | 0x400000u) & 0xffff0000u) & nan));
}
GS_INLINE void put_run(const float* from, int64_t n, Half* to) {
  constexpr int N = simd<float>::N;
  int64_t k = 0;
  for (; k + N <= n; k += N) store(to + k, rounded(load(from + k)));
  if (k < n) store_n(to + k, rounded(load_n(from + k, (int)(n - k))), (int)(n - k));
}
GS_INLINE void put_zeros(int64_t n, Half* to) { memset(to, 0, (size_t)n * sizeof(Half)); }
void round_all(Half* x, int64_t n) {  // n: a multiple of the lanes
  for (int64_t i = 0; i < n; i += simd<float>::N) store(x + i, rounded(load(x + i)));
}
[[maybe_unused]] __attribute__((noinline)) void sliver_of_rows(const float* from, int64_t rs,
                                                               int rows, int64_t depth, Half* to,
                                                               int64_t ld) {
  for (int i = 0; i < rows; ++i) put_run(from + i * rs, depth, to + i * ld);
}
__attribute__((noinline)) void sliver_of_columns(const float* from, int64_t ks, int rows,
                                                 int64_t depth, Half* to, int64_t ld) {
  pack_transposed<float>(from, ks, rows, (int)depth, (int)ld, to);
  round_all(to, rows * ld);
}
__attribute__((noinline)) void panel_of_rows(const float* from, int64_t ks, int64_t depth,
                                             int64_t cols, Half* to) {
  pack_rows<float>(from, ks, depth, (int)cols, (int)kSide, to);
  round_all(to, depth * kSide);
}
__attribute__((noinline)) void panel_of_columns(const float* from, int64_t js, int64_t depth,
                                                int64_t cols, Half* to) {
  pack_transposed<float>(from, js, depth, (int)cols, (int)kSide, to);
  round_all(to, depth * kSide);
}

#endif

// What happens to a sum on its way to C.
struct Finish {
  float alpha;
  const float* bias;  // of the first column, or null
  bool relu, add;     // add: C holds a part of the sum already
  // What each piece of C goes through when it is there, or null (MatmulParams::after); `first`:
  // the start of C, and `other` of what lies beside it.
  const MatmulParams* after = nullptr;
  float *first = nullptr, *other = nullptr;

  GS_MEMBER bool sums() const { return after && after->piece.kind == kPieceSum; }
  GS_MEMBER float* beside(const float* c) const { return other ? other + (c - first) : nullptr; }
  GS_MEMBER void piece(float* c, int64_t ldc, int64_t rows, int64_t cols) const {
    PieceParams piece = after->piece;
    piece.rows = rows;
    piece.cols = cols;
    piece.stride = ldc;
    void* buf[2] = {c, beside(c)};
    after->after(&piece, buf, nullptr);
  }
};

// 16 columns of rows at `from` (rows of kSide), `cols` of them there, to c[i] + offset.
[[maybe_unused]] __attribute__((noinline)) void finish16(const float* from, int rows, int cols,
                                                         float* const* c, int64_t offset,
                                                         const Finish& f, bool add, bool last) {
  constexpr int N = simd<float>::N;
  vf alpha = set1(f.alpha);
  for (int j = 0; j < cols; j += N) {
    int n = (int)lesser(N, cols - j);
    vf bias = last && f.bias ? load_n(f.bias + offset + j, n) : vf{};
    for (int i = 0; i < rows; ++i) {
      float* at = c[i] + offset + j;
      vf x = load(from + i * kSide + j) * alpha;
      if (add) x += load_n(at, n);
      if (last && f.bias) x += bias;
      if (last && f.relu) x = max(vf{}, x);
      if (n == N)
        store(at, x);
      else
        store_n(at, x, n);
    }
  }
}

// out (rows of ldo) = sliver times panel over depth; 32 x 32, or what of it `rows` and `halves`
// (16 columns each) ask for, rounded up to what a tile holds.
#if defined(__AMX_BF16__)
struct alignas(64) TileConfig {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};
GS_INLINE void tiles_begin() {
  TileConfig c;
  memset(&c, 0, sizeof(c));
  c.palette = 1;
  for (int i = 0; i < 8; ++i) {
    c.bytes[i] = 64;
    c.rows[i] = 16;
  }
  asm volatile("" ::: "memory");
  _tile_loadconfig(&c);
}
GS_INLINE void tiles_end() { _tile_release(); }

__attribute__((noinline)) void block_of(const Half* a, int64_t ld, const Half* b, int64_t depth,
                                        int rows, int halves, float* out, int64_t ldo) {
  asm volatile("" ::: "memory");  // the compiler does not know what tile loads read
  int64_t as = ld * 2, os = ldo * 4;
  const Half* a1 = a + 16 * ld;
  if (rows > 16 && halves == 2) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < depth; k += 32) {
      // Loads of tiles wait for the second cache one by one: the panel is fetched two steps ahead,
      // into the next panel at the end.
      const char* soon = (const char*)(b + (k + 64) * 32);
      _tile_loadd(4, a + k, as);
      _tile_loadd(6, b + k * 32, 128);
      _tile_dpbf16ps(0, 4, 6);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) __builtin_prefetch(soon + 64 * i);
      _tile_loadd(7, b + k * 32 + 32, 128);
      _tile_dpbf16ps(1, 4, 7);
#pragma GCC unroll 16
      for (int i = 16; i < 32; ++i) __builtin_prefetch(soon + 64 * i);
      _tile_loadd(5, a1 + k, as);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, os);
    _tile_stored(1, out + 16, os);
    _tile_stored(2, out + 16 * ldo, os);
    _tile_stored(3, out + 16 * ldo + 16, os);
  } else if (halves == 2) {
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t k = 0; k < depth; k += 32) {
      _tile_loadd(4, a + k, as);
      _tile_loadd(6, b + k * 32, 128);
      _tile_loadd(7, b + k * 32 + 32, 128);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, out, os);
    _tile_stored(1, out + 16, os);
  } else {
    _tile_zero(0);
    _tile_zero(2);
    for (int64_t k = 0; k < depth; k += 32) {
      _tile_loadd(6, b + k * 32, 128);
      _tile_loadd(4, a + k, as);
      _tile_dpbf16ps(0, 4, 6);
      if (rows > 16) {
        _tile_loadd(5, a1 + k, as);
        _tile_dpbf16ps(2, 5, 6);
      }
    }
    _tile_stored(0, out, os);
    if (rows > 16) _tile_stored(2, out + 16 * ldo, os);
  }
  asm volatile("" ::: "memory");
}
#elif defined(__AVX512BF16__)
GS_INLINE void tiles_begin() {}
GS_INLINE void tiles_end() {}

__attribute__((noinline)) void block_of(const Half* a, int64_t ld, const Half* b, int64_t depth,
                                        int rows, int, float* out, int64_t ldo) {
  for (int i = 0; i < rows; i += 8, a += 8 * ld, out += 8 * ldo) {
    __m512 s[8][2];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) s[r][0] = s[r][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += 2) {
      __m512bh b0 = (__m512bh)_mm512_loadu_si512(b + k * 32);
      __m512bh b1 = (__m512bh)_mm512_loadu_si512(b + k * 32 + 32);
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        int32_t pair;
        memcpy(&pair, a + r * ld + k, 4);
        __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
        s[r][0] = _mm512_dpbf16_ps(s[r][0], x, b0);
        s[r][1] = _mm512_dpbf16_ps(s[r][1], x, b1);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      _mm512_storeu_ps(out + r * ldo, s[r][0]);
      _mm512_storeu_ps(out + r * ldo + 16, s[r][1]);
    }
  }
}
#else
GS_INLINE void tiles_begin() {}
GS_INLINE void tiles_end() {}

__attribute__((noinline)) void block_of(const Half* a, int64_t ld, const Half* b, int64_t depth,
                                        int rows, int, float* out, int64_t ldo) {
#if defined(__AVX512F__) || defined(__ARM_NEON)
  constexpr int height = 8;
#else
  constexpr int height = 4;
#endif
  constexpr int N = simd<float>::N;
  for (int i = 0; i < rows; i += height)
    for (int j = 0; j < kSide; j += 2 * N)
      block_tile<float, height, 2, true>(a + i * ld, ld, 1, b + j, kSide, depth, out + i * ldo + j,
                                         ldo, false);
}
#endif

// Scratch of one member: panels, a sliver, a block of C, and what the problem keeps.
struct Room {
  int64_t panels;  // packed at a time
  int64_t ld;      // of a sliver
  int64_t b_bytes, a_bytes, own_bytes, total;
};
constexpr int64_t kBlockBytes = kSide * kSide * 4;

GS_INLINE Room room_of(int64_t panels, int64_t depth, int64_t l2, int64_t own_bytes) {
  Room r;
  int64_t panel = up(greater(depth, 1), 32) * kSide * (int64_t)sizeof(Half);
  r.panels = lesser(panels, greater(1, l2 / 2 / panel));
  r.panels = parts(panels, parts(panels, r.panels));
  r.ld = up(greater(depth, 1), 32) + 32;
  // a run that is shorter than 32 steps may be followed by zeros
  r.b_bytes = up(r.panels * panel + kSide * 32 * (int64_t)sizeof(Half), 4096);
  r.a_bytes = up(kSide * r.ld * (int64_t)sizeof(Half) + 64, 4096);
  r.own_bytes = up(own_bytes, 64);
  r.total = r.b_bytes + r.a_bytes + kBlockBytes + r.own_bytes;
  return r;
}

// Rows [row0, row1), panels [panel0, panel1) of a problem p, which has
//   blocks, depth(block), begin(block, own)
//   sliver(block, row, rows, to, ld), panel(block, panel, to)
//   place(row, rows, c): pointers to the rows of C; their distance if it is one, else 0
//   column(half, &offset): how many of 16 columns there are, and where in a row of C
template <class P>
__attribute__((noinline)) void run_part(P& p, const Room& r, int64_t row0, int64_t row1,
                                        int64_t panel0, int64_t panel1, char* scratch) {
  Half* b = (Half*)scratch;
  Half* a = (Half*)(scratch + r.b_bytes);
  float* out = (float*)(scratch + r.b_bytes + r.a_bytes);
  char* own = scratch + r.b_bytes + r.a_bytes + kBlockBytes;
  for (int64_t j = panel0; j < panel1; j += r.panels) {
    int64_t count = lesser(r.panels, panel1 - j);
    for (int64_t block = 0; block < p.blocks; ++block) {
      int64_t depth = up(p.depth(block), kPad), panel = depth * kSide;
      bool add = block > 0 || p.finish.add, last = block == p.blocks - 1;
      bool plain = p.finish.alpha == 1 && !add && !(last && (p.finish.bias || p.finish.relu));
      p.begin(block, own);
      for (int64_t v = 0; v < count; ++v) p.panel(block, j + v, b + v * panel);
      for (int64_t i = row0; i < row1; i += kSide) {
        int rows = (int)lesser(kSide, row1 - i);
        float* c[kSide];
        int64_t ldc = p.place(i, rows, c);
        p.sliver(block, i, rows, a, r.ld);
        for (int64_t v = 0; v < count; ++v) {
          int64_t at[2] = {0, 0};
          int cols[2];
          for (int h = 0; h < 2; ++h) cols[h] = p.column(2 * (j + v) + h, &at[h]);
          int halves = cols[1] > 0 ? 2 : 1;
          if (plain && ldc && rows == kSide && cols[0] == 16 && cols[1] == 16 &&
              at[1] == at[0] + 16) {
            block_of(a, r.ld, b + v * panel, depth, rows, 2, c[0] + at[0], ldc);
            continue;
          }
          block_of(a, r.ld, b + v * panel, depth, rows, halves, out, kSide);
          for (int h = 0; h < halves; ++h)
            finish16(out + 16 * h, rows, cols[h], c, at[h], p.finish, add, last);
        }
        if (last && p.finish.after) {
          int64_t begin = 0, at = 0, cols = 0;
          p.column(2 * j, &begin);
          for (int64_t h = 2 * j; h < 2 * (j + count); ++h) cols += p.column(h, &at);
          p.finish.piece(c[0] + begin, ldc, rows, cols);
        }
      }
    }
  }
}

// How nt members share the rows and panels of a problem; any way gives the same bits. Costs are
// cycles for a step along k: 2 for a block of 32 x 32, and packing.
GS_INLINE void share(int64_t slivers, int64_t panels, int64_t nt, double sliver_cost,
                     double panel_cost, int64_t* rows, int64_t* cols) {
  double best = 0;
  for (int64_t i = 1; i <= nt; ++i) {
    int64_t s = parts(slivers, i), c = parts(panels, nt / i);
    double cost = 2.0 * (double)(s * c) + sliver_cost * (double)s + panel_cost * (double)c;
    if (i == 1 || cost < best) {
      best = cost;
      *rows = i;
      *cols = nt / i;
    }
  }
}

// The problems make(0) .. make(count - 1), alike in size.
template <class Make>
GS_INLINE void run_product(Make make, int64_t count, int64_t m, int64_t panels, const Room& r,
                           double sliver_cost, double panel_cost, const Ctx* ctx) {
  char* scratch = ctx->scratch + ctx->tid * r.total;
  int64_t slivers = parts(m, kSide);
  bool whole = count % ctx->nt == 0 || count >= 4 * ctx->nt;
  int64_t gr = 1, gc = 1;
  if (!whole) share(slivers, panels, ctx->nt, sliver_cost, panel_cost, &gr, &gc);
  int64_t rows = parts(slivers, gr) * kSide, cols = parts(panels, gc);
  int64_t i = whole ? 0 : ctx->tid / gc, j = whole ? 0 : ctx->tid % gc;
  if (i >= gr) return;
  int64_t row1 = lesser(m, (i + 1) * rows), panel1 = lesser(panels, (j + 1) * cols);
  tiles_begin();
  for (int64_t t = whole ? ctx->tid : 0; t < count; t += whole ? ctx->nt : 1) {
    auto p = make(t);
    run_part(p, r, i * rows, row1, j * cols, panel1, scratch);
  }
  tiles_end();
}

// Nanoseconds of one member, for a plan.
GS_INLINE int64_t work_of(int64_t m, int64_t n, int64_t k) {
#if defined(__AMX_BF16__)
  int64_t rate = 2000;
#else
  int64_t rate = GS_VBYTES == 64 ? 128 : GS_VBYTES == 32 ? 64 : 16;
#endif
  return 2 * m * n * k / rate + (m * k + n * k + m * n) / 10;
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
