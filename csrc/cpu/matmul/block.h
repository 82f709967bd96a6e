// A small product whose operands lie in the caches: C (m rows, nvec vectors) = A B (+ C), for
// kernels that make many of them (attention, recurrent layers). B and C are padded to whole
// vectors, so no tile needs a mask. An element is one chain of FMAs in ascending k.
#pragma once
#include "matmul/tile.h"

namespace gs {
namespace GS_ISA {
namespace {

// float64 is complete, not tuned: it takes narrow tiles only, for the sake of the compile time.
template <class T>
constexpr int kBlockNV = sizeof(T) == 4 || kTileNV < 2 ? kTileNV : 2;

template <class T, int R, int NV>
constexpr TileFn<T> block_tile() {
  if constexpr (NV <= kBlockNV<T>)
    return tile_or_none<T, R, NV, false>();
  else
    return nullptr;
}

template <class T>
struct BlockTiles {
#define GS_BLOCK_TILES(NV)                                                                  \
  {                                                                                         \
    nullptr, block_tile<T, 1, NV>(), block_tile<T, 2, NV>(), block_tile<T, 3, NV>(),        \
        block_tile<T, 4, NV>(), block_tile<T, 5, NV>(), block_tile<T, 6, NV>(),             \
        block_tile<T, 7, NV>(), block_tile<T, 8, NV>(), nullptr, nullptr, nullptr, nullptr, \
        nullptr, block_tile<T, 14, NV>()                                                    \
  }
  static constexpr TileFn<T> table[5][15] = {
      {}, GS_BLOCK_TILES(1), GS_BLOCK_TILES(2), GS_BLOCK_TILES(3), GS_BLOCK_TILES(4)};
#undef GS_BLOCK_TILES
};

// Rows of a full tile for results of nvec vectors.
template <class T>
GS_INLINE int block_height(int64_t nvec) {
  return kTileRows[nvec < kBlockNV<T> ? (int)nvec : kBlockNV<T>];
}

// a: element (i, k) at a[i * ars + k * acs]; b: row k at b + k * brs; c: row i at c + i * ldc.
template <class T>
__attribute__((noinline)) void block_product(const T* a, int64_t ars, int64_t acs, int64_t m,
                                             const T* b, int64_t brs, int64_t nvec, int64_t k, T* c,
                                             int64_t ldc, bool add) {
  constexpr int N = simd<T>::N;
  TileArgs<T> g;
  g.ars = ars;
  g.acs = acs;
  g.brs = brs;
  g.ldc = ldc;
  g.bias = nullptr;
  g.fetch.total = 0;
  g.pack = nullptr;
  g.k = k;
  g.last = N;
  g.alpha = 1;
  g.flags = add ? kTileAdd : 0;
  for (int64_t v = 0; v < nvec;) {
    int nv = panel_vectors(kBlockNV<T>, nvec - v);
    int height = kTileRows[nv];
    g.b = b + v * N;
    for (int64_t i = 0; i < m;) {
      int rows = tile_rows(height, m - i);
      g.a = a + i * ars;
      g.c = c + i * ldc + v * N;
      BlockTiles<T>::table[nv][rows](g);
      i += rows;
    }
    v += nv;
  }
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
