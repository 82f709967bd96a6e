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
#include "matmul/pack.h"
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
  kTileScale = 1,  // acc *= alpha
  kTileAdd = 2,    // acc += c
  kTileBias = 4,   // acc += bias
  kTileRelu = 8    // acc = max(acc, 0)
};

// Memory to bring into the second cache while a tile runs, a pair of lines every kFetchSteps steps:
// `total` pairs from `at` on, a row of them holds `count`; when the `left` pairs of this row are
// done, `at` moves on by `wrap` bytes.
struct Fetch {
  const char* at;
  int64_t total, left, count, wrap;
};
constexpr int64_t kFetchBytes = 128;
constexpr int64_t kFetchSteps = 4;

template <class T>
struct TileArgs {
  const T* a;  // element (i, k) at a[i * ars + k * acs]
  int64_t ars, acs;
  const T* b;  // row k at b + k * brs
  int64_t brs;
  T* c;  // row i at c + i * ldc
  int64_t ldc;
  const T* bias;  // of the first column
  Fetch fetch[5];
  T* pack;                 // kPackB: row k of B is also written to pack + k * NV * N
  int32_t fetches, every;  // entries of fetch; a pair every `every` times kFetchSteps steps
  int64_t k;
  int last;  // valid lanes of the last vector, 1 .. N; below N only where kTileMasks
  T alpha;
  int32_t flags;
};

// How a tile reads A and B. The fast ones leave nothing but loads and FMAs in the loop: a masked
// load is a load and an operation of the FMA ports, and one pointer or counter more a step takes
// some of their slots, too.
enum TileA : int {
  kColsA,    // ars == 1
  kRowsA,    // acs == 1
  kSliverA,  // ars == 1, acs == sliver_width(MR)
  kAnyA      // any strides
};
enum TileB : int {
  kAnyB,    // any row stride, the last vector masked
  kRowsB,   // any row stride, whole vectors
  kPanelB,  // rows of NV * N
  kPackB    // as kRowsB, and what is read goes to `pack`, too
};

template <class T, int MR, int NV, int LA, int LB>
__attribute__((noinline)) void tile(const TileArgs<T>& g) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const T* __restrict a = g.a;
  const T* __restrict b = g.b;
  T* __restrict c = g.c;
  T* __restrict pack = g.pack;
  int64_t ars = g.ars, acs = g.acs, brs = g.brs, ldc = g.ldc;
  int last = kTileMasks ? g.last : N, flags = g.flags;
  V acc[MR][NV];
#pragma GCC unroll 64
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 64
    for (int j = 0; j < NV; ++j) acc[i][j] = V{};
  // rows 1, 3, 5, ... of A; the even ones are these times 2, 4 or 8
  constexpr int S = sliver_width<T>(MR);
  int64_t odd[7];
#pragma GCC unroll 7
  for (int i = 0; i < 7; ++i) odd[i] = (2 * i + 1) * ars * (int64_t)sizeof(T);
  // step u after the pointers; `move` on them afterwards, by steps
  auto step = [&](int u, int move) __attribute__((always_inline)) {
    V bv[NV];
    const T* from = LB == kPanelB ? b + u * NV * N : b;
#pragma GCC unroll 64
    for (int j = 0; j < NV; ++j)
      bv[j] = kTileMasks && LB == kAnyB && j == NV - 1 ? load_n(from + j * N, last)
                                                       : load(from + j * N);
    if (LB != kPanelB)
      b += brs;
    else if (move)
      b += move * NV * N;
    if (LB == kPackB) {
#pragma GCC unroll 64
      for (int j = 0; j < NV; ++j) store(pack + (u * NV + j) * N, bv[j]);
      if (move) pack += move * NV * N;
    }
#pragma GCC unroll 64
    for (int i = 0; i < MR; ++i) {
      V x = LA == kRowsA && NV > 1 ? set1_at<V>(a, odd, i, u)
                                   : set1(LA == kRowsA     ? a[i * ars + u]
                                          : LA == kSliverA ? a[u * S + i]
                                                           : a[LA == kColsA ? i : i * ars]);
#pragma GCC unroll 64
      for (int j = 0; j < NV; ++j) accumulate<NV>(acc[i][j], x, bv[j]);
    }
    if (LA == kAnyA || LA == kColsA)
      a += acs;
    else if (move)
      a += LA == kSliverA ? move * S : move;
  };
  int64_t k = g.k;
  if constexpr (LA != kAnyA) {
    constexpr int U = kFetchSteps;  // steps without a pointer or counter moved
    const Fetch* next = g.fetch;
    int lists = g.fetches;
    int64_t turns = k / U, n = 0, left = 0;
    const char* at = nullptr;
    k -= turns * U;
    while (turns > 0) {
      int64_t q = turns;
      if (n == 0 && lists > 0) {
        n = next->total;  // all of them fit into k
        at = next->at;
        left = next->left;
        --lists;
        ++next;
      }
      if (n > 0) {
        __builtin_prefetch(at, 0, 2);
        __builtin_prefetch(at + 64, 0, 2);
        if (--left > 0) {
          at += kFetchBytes;
        } else {
          at += next[-1].wrap;
          left = next[-1].count;
        }
        --n;
        q = g.every;
      }
      turns -= q;
      do {
#pragma GCC unroll 8
        for (int u = 0; u < U; ++u) step(u, u == U - 1 ? U : 0);
        asm("" : "+r"(a), "+r"(b));  // else GCC moves copies of them
      } while (--q > 0);
    }
  }
  for (; k > 0; --k) step(0, 1);
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
template <class T, int MR, int NV, int LA, int LB>
constexpr TileFn<T> tile_or_none() {
  if constexpr (NV <= kTileNV && MR <= kTileRows[NV < 5 ? NV : 0])
    return tile<T, MR, NV, LA, LB>;
  else
    return nullptr;
}

// A tile of full height. Those of float64 that read B in place or from a panel are the ones that
// take any strides: the same chains, a tenth of the code to compile.
template <class T, int NV, int LA, int LB>
constexpr TileFn<T> full_tile() {
  constexpr int MR = NV <= kTileNV ? kTileRows[NV] : 99;
  if constexpr (sizeof(T) == 4)
    return tile_or_none<T, MR, NV, LA, LB>();
  else if constexpr (LB == kPackB)
    return tile_or_none<T, MR, NV, kAnyA, LB>();
  else
    return nullptr;
}

// Tiles by vectors and rows, see tile_rows() for which are used.
template <class T>
struct Tiles {
#define GS_EDGE(MR, NV) tile_or_none<T, MR, NV, kAnyA, kAnyB>()
#define GS_TILES(NV)                                                                         \
  {                                                                                          \
    nullptr, GS_EDGE(1, NV), GS_EDGE(2, NV), GS_EDGE(3, NV), GS_EDGE(4, NV), GS_EDGE(5, NV), \
        GS_EDGE(6, NV), GS_EDGE(7, NV), GS_EDGE(8, NV), nullptr, nullptr, nullptr, nullptr,  \
        nullptr, GS_EDGE(14, NV)                                                             \
  }
  static constexpr TileFn<T> any[5][15] = {{}, GS_TILES(1), GS_TILES(2), GS_TILES(3), GS_TILES(4)};
#undef GS_TILES
#undef GS_EDGE
  // Tiles of full height, by how A and B lie; where there is none, the one above does.
#define GS_FULL(NV, LA, LB) full_tile<T, NV, LA, LB>()
#define GS_FULLS(NV)                                                                          \
  {                                                                                           \
    {nullptr, GS_FULL(NV, kColsA, kRowsB), GS_FULL(NV, kColsA, kPanelB),                      \
     GS_FULL(NV, kColsA, kPackB)},                                                            \
        {nullptr, GS_FULL(NV, kRowsA, kRowsB), GS_FULL(NV, kRowsA, kPanelB),                  \
         GS_FULL(NV, kRowsA, kPackB)},                                                        \
        {nullptr, nullptr, GS_FULL(NV, kSliverA, kPanelB), GS_FULL(NV, kSliverA, kPackB)}, {} \
  }
  static constexpr TileFn<T> full[5][4][4] = {
      {}, GS_FULLS(1), GS_FULLS(2), GS_FULLS(3), GS_FULLS(4)};
#undef GS_FULLS
#undef GS_FULL
};

// Rows of the next tile when `left` are left: tiles of `height`, then one or two smaller ones. Low
// tiles wait for B: where rows may be cut freely, 8 go as 4 + 4, not 6 + 2.
GS_INLINE int tile_rows(int height, int64_t left, bool even) {
  if (left >= height)
    return even && left > height && left < 2 * height && height <= 8 ? (int)(left + 1) / 2 : height;
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
