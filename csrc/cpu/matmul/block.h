// A small product whose operands lie in the caches: C (m rows, nvec vectors) = A B (+ C), for
// kernels that make many of them (attention). B and C are padded to whole
// vectors, so no tile needs a mask. An element is one chain of FMAs in ascending k.
//
// Four steps of k go by without a counter or pointer moved, because integer additions share ports
// with FMAs. Tiles of few rows, transposed A and float64 take a plainer loop, for the sake of the
// compile time.
#pragma once
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

// Rows of a full tile by vectors; 0: no such tile.
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kBlockRows[5] = {0, 14, 14, 8, 6};
#elif defined(__AVX2__)
constexpr int kBlockRows[5] = {0, 8, 6, 0, 0};
#else
constexpr int kBlockRows[5] = {0, 6, 4, 0, 0};
#endif
template <class T>
constexpr int kBlockNV = sizeof(T) == 4 && kBlockRows[4] ? 4 : 2;

// a: element (i, k) at a[i * ars + k * acs], acs == 1 where ROWS.
template <class T, int MR, int NV, bool ROWS>
__attribute__((noinline)) void block_tile(const T* __restrict a, int64_t ars, int64_t acs,
                                          const T* __restrict b, int64_t brs, int64_t k,
                                          T* __restrict c, int64_t ldc, bool add) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  V acc[MR][NV];
#pragma GCC unroll 64
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 64
    for (int j = 0; j < NV; ++j) acc[i][j] = V{};
  int64_t odd[7];  // rows 1, 3, 5, ... of A
#pragma GCC unroll 7
  for (int i = 0; i < 7; ++i) odd[i] = (2 * i + 1) * ars * (int64_t)sizeof(T);
  auto step = [&](int u, const T* row) __attribute__((always_inline)) {
    V bv[NV];
#pragma GCC unroll 64
    for (int j = 0; j < NV; ++j) bv[j] = load(row + j * N);
#pragma GCC unroll 64
    for (int i = 0; i < MR; ++i) {
      V x = ROWS && NV > 1 ? set1_at<V>(a, odd, i, u) : set1(a[i * ars + u]);
#pragma GCC unroll 64
      for (int j = 0; j < NV; ++j) accumulate<ROWS ? NV : 1>(acc[i][j], x, bv[j]);
    }
  };
  if (ROWS) {
    for (; k >= 4; k -= 4, a += 4, b += 4 * brs) {
      step(0, b);
      step(1, b + brs);
      step(2, b + 2 * brs);
      step(3, b + 3 * brs);
    }
  }
  for (; k > 0; --k, a += ROWS ? 1 : acs, b += brs) step(0, b);
  if (add) {
#pragma GCC unroll 64
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 64
      for (int j = 0; j < NV; ++j) acc[i][j] += load(c + i * ldc + j * N);
  }
#pragma GCC unroll 64
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 64
    for (int j = 0; j < NV; ++j) store(c + i * ldc + j * N, acc[i][j]);
}

template <class T>
using BlockFn = void (*)(const T*, int64_t, int64_t, const T*, int64_t, int64_t, T*, int64_t, bool);

template <class T, int MR, int NV, bool ROWS>
constexpr BlockFn<T> block_or_none() {
  if constexpr (NV <= kBlockNV<T> && MR <= kBlockRows[NV])
    return block_tile < T, MR, NV, ROWS && sizeof(T) == 4 && (MR >= 5 || MR == kBlockRows[NV]) > ;
  else
    return nullptr;
}

template <class T>
struct BlockTiles {
#define GS_BLOCK(NV, ROWS)                                                                  \
  {                                                                                         \
    nullptr, block_or_none<T, 1, NV, ROWS>(), block_or_none<T, 2, NV, ROWS>(),              \
        block_or_none<T, 3, NV, ROWS>(), block_or_none<T, 4, NV, ROWS>(),                   \
        block_or_none<T, 5, NV, ROWS>(), block_or_none<T, 6, NV, ROWS>(),                   \
        block_or_none<T, 7, NV, ROWS>(), block_or_none<T, 8, NV, ROWS>(), nullptr, nullptr, \
        nullptr, nullptr, nullptr, block_or_none<T, 14, NV, ROWS>()                         \
  }
  static constexpr BlockFn<T> table[2][5][15] = {
      {{}, GS_BLOCK(1, false), GS_BLOCK(2, false), GS_BLOCK(3, false), GS_BLOCK(4, false)},
      {{}, GS_BLOCK(1, true), GS_BLOCK(2, true), GS_BLOCK(3, true), GS_BLOCK(4, true)}};
#undef GS_BLOCK
};

// Rows of a full tile for results of nvec vectors.
template <class T>
GS_INLINE int block_height(int64_t nvec) {
  return kBlockRows[nvec < kBlockNV<T> ? (int)nvec : kBlockNV<T>];
}

// a: element (i, k) at a[i * ars + k * acs]; b: row k at b + k * brs; c: row i at c + i * ldc.
template <class T>
__attribute__((noinline)) void block_product(const T* a, int64_t ars, int64_t acs, int64_t m,
                                             const T* b, int64_t brs, int64_t nvec, int64_t k, T* c,
                                             int64_t ldc, bool add) {
  constexpr int N = simd<T>::N;
  for (int64_t v = 0; v < nvec;) {
    // 5 vectors go as 3 + 2, not 4 + 1
    int64_t left = nvec - v;
    int nv = left <= kBlockNV<T> ? (int)left : kBlockNV<T> > 2 && left == 5 ? 3 : kBlockNV<T>;
    int height = kBlockRows[nv];
    for (int64_t i = 0; i < m;) {
      int64_t rest = m - i;
      // low tiles wait for B: 8 rows of a tile of 6 go as 4 + 4
      bool halve = rest < height ? rest > 8 : height <= 8 && rest > height && rest < 2 * height;
      int rows = (int)(halve ? (rest + 1) / 2 : rest < height ? rest : height);
      BlockTiles<T>::table[acs == 1][nv][rows](a + i * ars, ars, acs, b + v * N, brs, k,
                                               c + i * ldc + v * N, ldc, add);
      i += rows;
    }
    v += nv;
  }
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
