// Register tiles: C (MR rows, NV vectors) = sum over k of column a(:, k) times row b(k, :).
//
// The one inner loop of every matrix product here: load NV vectors of a row of B, multiply them by MR
// broadcast elements of A, keep MR x NV accumulators in registers. A is read where it lies through two
// strides, so A and its transpose need no packing; B is read by rows, either where they lie or from a
// packed panel. An element is a chain of fused multiply-adds in ascending k whatever the tile, so
// tiles and threads can be chosen freely without changing a bit of the result.
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

// What happens to the accumulators before they are stored.
template <class T>
struct TileEnd {
  T alpha;
  int32_t flags;
};

template <class T>
struct TileArgs {
  const T* a;  // element (i, k) at a[i * ars + k * acs]
  int64_t ars, acs;
  const T* b;  // row k at b + k * brs
  int64_t brs;
  T* c;  // row i at c + i * ldc
  int64_t ldc;
  const T* bias;   // of the first column
  const T* fetch;  // line k at fetch + k * fetch_step is brought into the second cache
  int64_t fetch_step;
  T* pack;      // PACK: row k of B is also written to pack + k * NV * N
  int64_t k;
  int last;     // valid lanes of the last vector, 1 .. N; below N only where kTileMasks
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
  const char* fetch = (const char*)g.fetch;
  int64_t ars = g.ars, acs = g.acs, brs = g.brs, ldc = g.ldc;
  int64_t fetch_step = g.fetch_step * (int64_t)sizeof(T);
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
  for (int64_t k = g.k; k > 0; --k) {
    V bv[NV];
    __builtin_prefetch(fetch, 0, 2);
    fetch += fetch_step;
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
  }
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

// Tiles by vectors and rows; a missing entry is filled by a smaller tile, see tile_rows().
template <class T>
struct TileTable {
  typedef void (*Fn)(const TileArgs<T>&);
  static GS_MEMBER Fn get(int nv, int rows) {
#define GS_ROW(NV, MR) \
  case MR: return kTileNV >= NV && kTileRows[NV] >= MR ? tile < T, kTileNV >= NV && kTileRows[NV] >= MR ? MR : 1, kTileNV >= NV ? NV : 1, false > : nullptr;
#define GS_ROWS(NV)                                                                       \
  switch (rows) {                                                                         \
    GS_ROW(NV, 1) GS_ROW(NV, 2) GS_ROW(NV, 3) GS_ROW(NV, 4) GS_ROW(NV, 5) GS_ROW(NV, 6)   \
    GS_ROW(NV, 7) GS_ROW(NV, 8) GS_ROW(NV, 14)                                            \
    default: return nullptr;                                                              \
  }
    switch (nv) {
      case 1: GS_ROWS(1)
      case 2: GS_ROWS(2)
      case 3: GS_ROWS(3)
      case 4: GS_ROWS(4)
      default: return nullptr;
    }
#undef GS_ROWS
#undef GS_ROW
  }
  // The full-height tile that also packs the rows of B it reads.
  static GS_MEMBER Fn packing(int nv) {
    switch (nv) {
      case 1: return tile<T, kTileRows[1], 1, true>;
      case 2: return tile<T, kTileRows[2], 2, true>;
      case 3: return kTileNV >= 3 ? tile<T, kTileNV >= 3 ? kTileRows[3] : 1, kTileNV >= 3 ? 3 : 1, true> : nullptr;
      case 4: return kTileNV >= 4 ? tile<T, kTileNV >= 4 ? kTileRows[4] : 1, kTileNV >= 4 ? 4 : 1, true> : nullptr;
      default: return nullptr;
    }
  }
};

// Rows of the next tile when `left` are left: full tiles, then one or two smaller ones.
GS_INLINE int tile_rows(int nv, int64_t left) {
  int full = kTileRows[nv];
  if (left >= full) return full;
  return left <= 8 ? (int)left : (int)(left + 1) / 2;
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
