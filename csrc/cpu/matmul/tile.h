// Register tiles: C (MR rows, NV vectors) = sum over k of column a(:, k) times row b(k, :).
//
// The one inner loop of every matrix product here: load NV vectors of a row of B, multiply them by
// MR broadcast elements of A, keep MR x NV accumulators in registers. A is read where it lies
// through two strides, so A and its transpose need no packing; B is read by rows, either where they
// lie or from a packed panel. An element is a chain of fused multiply-adds in ascending k whatever
// the tile, so tiles and threads can be chosen freely without changing a bit of the result.
//
// Sizes: 64-byte vectors 6 x 4, 8 x 3, 14 x 2, 14 x 1 of 32 registers; 32-byte vectors 6 x 2 of 16.
// A step of the 6 x 4 tile is 24 FMAs (12 cycles) and 11 loads.
#pragma once
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kTileNV = 4;
constexpr int kTileRows[5] = {0, 14, 14, 8, 6};
#elif defined(__AVX2__)
constexpr int kTileNV = 2;
constexpr int kTileRows[5] = {0, 8, 6, 0, 0};
#else
constexpr int kTileNV = 2;
constexpr int kTileRows[5] = {0, 6, 4, 0, 0};
#endif
constexpr int kTileMaxRows = 14;
// With mask registers a row can end anywhere at no cost; elsewhere the last panel is packed and its
// tiles go through a buffer.
#if defined(__AVX512F__)
constexpr bool kTileMasks = true;
#else
constexpr bool kTileMasks = false;
#endif

enum TileFlag : int32_t {
  kTileScale = 1,     // acc *= alpha
  kTileAdd = 2,       // acc += c
  kTileBias = 4,      // acc += bias
  kTileRelu = 8,      // acc = max(acc, 0)
  kTilePrefetch = 16  // c is not in the first caches: ask for it before the loop
};

// Lines to bring into the second cache while a tile runs, one a step: `total` of them from `at` on,
// a row of them holds `count`; when the `left` lines of this row are done, `at` moves on by `wrap`.
struct Fetch {
  const char* at;
  int64_t total, left, count, wrap;
};

template <class T>
struct TileArgs {
  const T* a;  // element (i, k) at a[i * ars + k * acs]
  int64_t ars, acs;
  const T* b;  // row k at b + k * brs
  int64_t brs;
  T* c;  // row i at c + i * ldc
  int64_t ldc;
  const T* bias;  // of the first column
  Fetch fetch;
  T* pack;  // PACK: row k of B is also written to pack + k * NV * N
  int64_t k;
  int last;  // valid lanes of the last vector, 1 .. N; below N only where kTileMasks
  T alpha;
  int32_t flags;
};

template <class T, int MR, int NV, bool PACK>
__attribute__((noinline)) void tile(const TileArgs<T>& g) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const T* __restrict a = g.a;
  const T* __restrict b = g.b;
  T* __restrict c = g.c;
  T* __restrict pack = g.pack;
  int64_t ars = g.ars, acs = g.acs, brs = g.brs, ldc = g.ldc;
  int last = kTileMasks ? g.last : N, flags = g.flags;
  if (flags & kTilePrefetch) {
#pragma GCC unroll 64
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 64
      for (int j = 0; j < NV; ++j)
        if (j * GS_VBYTES % 64 == 0) __builtin_prefetch(c + i * ldc + j * N, 1);
  }
  V acc[MR][NV];
#pragma GCC unroll 64
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 64
    for (int j = 0; j < NV; ++j) acc[i][j] = V{};
  auto step = [&]() __attribute__((always_inline)) {
    V bv[NV];
#pragma GCC unroll 64
    for (int j = 0; j < NV; ++j)
      bv[j] = kTileMasks && j == NV - 1 ? load_n(b + j * N, last) : load(b + j * N);
    b += brs;
    if (PACK) {
#pragma GCC unroll 64
      for (int j = 0; j < NV; ++j) store(pack + j * N, bv[j]);
      pack += NV * N;
    }
#pragma GCC unroll 64
    for (int i = 0; i < MR; ++i) {
      V x = set1(a[i * ars]);
#pragma GCC unroll 64
      for (int j = 0; j < NV; ++j) acc[i][j] = fma(x, bv[j], acc[i][j]);
    }
    a += acs;
  };
  int64_t k = g.k;
  if (g.fetch.total > 0) {
    const char* at = g.fetch.at;
    int64_t left = g.fetch.left, rest = k > g.fetch.total ? k - g.fetch.total : 0;
    for (; k > rest; --k) {
      __builtin_prefetch(at, 0, 2);
      --left;
      at += left ? 64 : g.fetch.wrap;
      left = left ? left : g.fetch.count;
      step();
    }
  }
  for (; k > 0; --k) step();
  if (flags & kTileScale) {
    V alpha = set1(g.alpha);
#pragma GCC unroll 64
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 64
      for (int j = 0; j < NV; ++j) acc[i][j] *= alpha;
  }
  if (flags & kTileAdd) {
#pragma GCC unroll 64
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 64
      for (int j = 0; j < NV; ++j) {
        const T* p = c + i * ldc + j * N;
        acc[i][j] += kTileMasks && j == NV - 1 ? load_n(p, last) : load(p);
      }
  }
  if (flags & kTileBias) {
#pragma GCC unroll 64
    for (int j = 0; j < NV; ++j) {
      const T* p = g.bias + j * N;
      V x = kTileMasks && j == NV - 1 ? load_n(p, last) : load(p);
#pragma GCC unroll 64
      for (int i = 0; i < MR; ++i) acc[i][j] += x;
    }
  }
  if (flags & kTileRelu) {
#pragma GCC unroll 64
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 64
      for (int j = 0; j < NV; ++j) acc[i][j] = max(V{}, acc[i][j]);  // NaN stays NaN
  }
#pragma GCC unroll 64
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 64
    for (int j = 0; j < NV; ++j) {
      T* p = c + i * ldc + j * N;
      if (kTileMasks && j == NV - 1)
        store_n(p, acc[i][j], last);
      else
        store(p, acc[i][j]);
    }
  }
}

template <class T>
using TileFn = void (*)(const TileArgs<T>&);

// The tile of MR rows and NV vectors where the registers hold one, else nothing.
template <class T, int MR, int NV, bool PACK>
constexpr TileFn<T> tile_or_none() {
  if constexpr (NV <= kTileNV && MR <= kTileRows[NV < 5 ? NV : 0])
    return tile<T, MR, NV, PACK>;
  else
    return nullptr;
}

// Tiles by vectors and rows, see tile_rows() for which are used.
template <class T>
struct Tiles {
#define GS_TILES(NV)                                                                        \
  {                                                                                         \
    nullptr, tile_or_none<T, 1, NV, false>(), tile_or_none<T, 2, NV, false>(),              \
        tile_or_none<T, 3, NV, false>(), tile_or_none<T, 4, NV, false>(),                   \
        tile_or_none<T, 5, NV, false>(), tile_or_none<T, 6, NV, false>(),                   \
        tile_or_none<T, 7, NV, false>(), tile_or_none<T, 8, NV, false>(), nullptr, nullptr, \
        nullptr, nullptr, nullptr, tile_or_none<T, 14, NV, false>()                         \
  }
  static constexpr TileFn<T> plain[5][15] = {
      {}, GS_TILES(1), GS_TILES(2), GS_TILES(3), GS_TILES(4)};
#undef GS_TILES
  // The full-height tile that also packs the rows of B it reads.
  static constexpr TileFn<T> packing[5] = {
      nullptr, tile_or_none<T, kTileRows[1], 1, true>(), tile_or_none<T, kTileRows[2], 2, true>(),
      tile_or_none<T, kTileNV >= 3 ? kTileRows[3] : 99, 3, true>(),
      tile_or_none<T, kTileNV >= 4 ? kTileRows[4] : 99, 4, true>()};
};

// Rows of the next tile when `left` are left: tiles of `height`, then one or two smaller ones.
GS_INLINE int tile_rows(int height, int64_t left) {
  if (left >= height) return height;
  return left <= 8 ? (int)left : (int)(left + 1) / 2;
}

// Vectors of the next panel when `left` are left and panels have up to nv: 5 go as 3 + 2, not 4
// + 1.
GS_INLINE int panel_vectors(int nv, int64_t left) {
  if (left <= nv) return (int)left;
  return left == nv + 1 && nv > 2 ? (nv + 2) / 2 : nv;
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
