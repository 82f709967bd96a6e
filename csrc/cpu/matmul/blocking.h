// How a matrix product is blocked (gemm.cpp): depth of a block of k, panels of B, groups of A, the
// tile, and whether operands are packed. A function of shape and strides alone.
#pragma once
#include "matmul.h"
#include "matmul/tile.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kDepth = 512;         // products summed before an element is written
constexpr int64_t kTurnedDepth = 1024;  // the same where tiles are transposed when they are written
constexpr int64_t kShallow = 128;       // the same where a panel of B is to stay in the first cache
constexpr int64_t kNearDepth = 192;     // steps of transposed A that are read in place
constexpr int64_t kCopyCols = 512;      // columns from which such a copy of A pays
constexpr int64_t kWholeBytes = 16 << 20;    // scratch for A of a block of k
constexpr int64_t kDirectBytes = 32 * 1024;  // of B, which no packing would bring closer

GS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
GS_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
GS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
GS_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

enum BMode { kDirect, kPackRows, kPackTransposed };
enum AMode { kInPlace, kSlivers, kCopied };

// How a product is blocked; a function of the parameters.
struct Blocking {
  int64_t kc;      // depth of a block
  int64_t ncb;     // columns packed at a time
  int64_t mgroup;  // rows of A kept close
  int64_t slices;  // parts of k computed apart, 1 mostly
  int nv, height;  // widest panel in vectors, rows of its tile
  int sliver;      // rows of A packed together
  BMode b_mode;
  AMode a_mode;
  bool a_whole;                // A of a block of k is packed once, for all columns
  int64_t a_kept;              // all of A is: elements of a block of k, or 0 (gemm_dealt)
  int64_t a_row;               // elements of packed A a row
  bool turned;                 // C has unit row stride: tiles are transposed on their way out
  bool bias_rows;              // bias is one a row of C, not one a column
  bool panels_in, panels_out;  // B lies packed, C goes where packed B does (ChainFlag)
  bool tile_packs;             // B is packed by the first tile on a panel, not ahead of it
  bool fetch;                  // operands come from beyond the second cache
  int64_t b_bytes, a_bytes;    // scratch of one member
};

// Vectors of the panels between products of a chain; both sides go by the columns alone. 0: they
// are not whole panels of one width. Two panels rather than one of 4, so that two members have
// their own.
template <class T>
GS_INLINE int chain_vectors(int64_t n) {
  constexpr int N = simd<T>::N;
  const int64_t v = n / N;
  if (n % N) return 0;
  if (v <= 3 && v <= kTileNV) return (int)v;
  if (kTileNV == 4 && v > 4 && v % 4 == 0) return 4;
  if (kTileNV == 4 && v % 3 == 0) return 3;
  return v % 2 == 0 ? 2 : 0;
}

template <class T>
Blocking blocking(const MatmulParams& p) {
  constexpr int N = simd<T>::N;
  constexpr int64_t size = sizeof(T);
  Blocking s;
  bool row_b = p.b_cs == 1 || p.n == 1;
  s.turned = p.c_cs != 1;
  s.bias_rows = s.turned || p.bias_rs != 0;
  const bool deep = s.turned || (p.chain & kChainDepth);
  auto depth_for = [&](int64_t most_of) __attribute__((always_inline)) {
    return most(1, round_up(ceil_div(p.k, most(1, ceil_div(p.k, most_of))), kFetchSteps));
  };
  bool few = row_b && p.m <= kFewRows && !s.turned;
  // few rows do not pay for a copy of B where its rows do not crowd each other out of the second
  // cache
  bool direct = few && depth_for(deep ? kTurnedDepth : kDepth) * p.b_rs * size <= p.l2 / 2;
  bool shallow = few && !direct && !deep;
  s.kc = depth_for(shallow ? kShallow : deep ? kTurnedDepth : kDepth);
  s.slices = 1;
  if (p.batch == 1 && p.m * p.n <= 64 * 64 && p.k >= 16 * kDepth)
    s.slices = least(16, p.k / (8 * kDepth));
  // columns of A in place: steps are a page apart only where they would crowd each other out, and
  // few rows for a wide B are read so often that each group of them stays in the second cache
  const bool crowded = p.a_cs * size % 4096 == 0;
  bool near = !crowded && (s.kc <= kNearDepth || (s.turned && row_b && long_gradient(p)));
  bool slivers =
      !near && p.a_cs != 1 && p.a_rs == 1 && !few && p.m * p.k * size > 128 * 1024 && p.n > 4 * N;
  // rows a multiple of four pages apart meet in a few sets of the second cache: a group would take
  // all of its ways there (one page: a quarter)
  bool copied =
      p.a_cs == 1 && p.a_rs * size % 16384 == 0 && p.m * p.k * size > p.l2 && p.n > kCopyCols;
  s.a_mode = slivers ? kSlivers : copied ? kCopied : kInPlace;
  // 32 registers: 6 x 4; 8 x 3 where slivers of A are packed (8 floats are half a line); 14 x 2
  // where tiles are transposed when stored, so that a row of C gets most of a line at once
  s.nv = kTileNV;
  const bool chained = p.chain & (kChainIn | kChainOut);
  const int whole = chained ? chain_vectors<T>(p.n) : 0;
  if (whole)
    s.nv = whole;
  else if (kTileNV == 4 && (s.turned || slivers) && !(chained && p.n < 3 * N))
    s.nv = s.turned ? 2 : 3;
  s.nv = (int)most(1, least(s.nv, ceil_div(p.n, N)));
  s.height = kTileRows[s.nv];
  int64_t W = s.nv * N, depth = most(s.kc, 64) * size;
  s.ncb = most(1, p.l2 / 2 / depth / W) * W;
  s.mgroup = most(4, p.l2 / 8 / depth / s.height) * s.height;
  // of a long gradient all rows, if they come from a near third level: no panel of B is read twice
  if (s.turned && near && p.near_l3 && long_gradient(p)) s.mgroup = most(s.mgroup, p.m);
  s.sliver = sliver_width<T>(s.height);
  // groups and blocks of about one size: a narrow last one would read all of the other operand
  // again
  s.mgroup = round_up(ceil_div(p.m, ceil_div(p.m, s.mgroup)), slivers ? s.sliver : s.height);
  s.ncb = round_up(ceil_div(p.n, most(1, (p.n + s.ncb / 4) / s.ncb)), W);
  if (shallow) s.ncb = W;
  s.panels_in = whole && (p.chain & kChainIn);
  s.panels_out = whole && (p.chain & kChainOut);
  // (a copy would take 3 % of the time, for 64 rows 15 %)
  const bool in_place = near && in_place_gradient(p, size);
  if (s.panels_in)
    s.b_mode = kPackRows;
  else if (!row_b)
    s.b_mode = kPackTransposed;
  else
    s.b_mode = direct || in_place || p.m <= 4 * s.height ||
                       // (rows of a chain lie without gaps: at odd places, if not whole vectors)
                       (p.k * p.n * size <= kDirectBytes && !(chained && p.n % N))
                   ? kDirect
                   : kPackRows;
  s.tile_packs = s.b_mode == kPackRows && (shallow || s.kc * p.b_rs * size <= p.l2 / 2);
  s.fetch = (p.m * p.k + p.k * p.n) * size > p.l2 / 2;
  s.b_bytes = round_up((least(s.ncb, round_up(p.n, W)) + 2 * W) * s.kc * size + 64, 4096);
  if (s.b_mode == kDirect) s.b_bytes = kTileMasks ? 0 : round_up(W * s.kc * size, 4096);
  s.a_row = slivers ? s.kc : round_up(s.kc, N) + N;
  int64_t a_rows = round_up(p.m, most(s.sliver, 1));
  s.a_whole = s.a_mode != kInPlace && p.n > s.ncb && a_rows * s.a_row * size <= kWholeBytes;
  s.a_kept = 0;
  if (!s.a_whole) a_rows = round_up(s.mgroup, s.sliver);
  s.a_bytes = s.a_mode != kInPlace ? round_up(a_rows * s.a_row * size + 64, 4096) : 0;
  return s;
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
