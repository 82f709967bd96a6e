// The register tile of a step's product, C = A B with B packed, and what goes on beside it: the
// activations of gates, vectors at the end of a row, lines of the cache asked for ahead.
#pragma once
#include "matmul/pack.h"
#include "recurrent.h"
#include "simd/moderate.h"
#include "simd/own.h"
#include "simd/vec.h"
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {
namespace {

GS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
GS_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
GS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
GS_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- activations: short forms, within 2.5 units in the last place. A gate beyond 87 is as shut as
// one at 87.
GS_INLINE vf gate_sigmoid(vf x) { return moderate::sigmoid(clamp(x, -87.0f, 87.0f)); }
GS_INLINE vf gate_tanh(vf x) {
#if defined(__AVX512F__)
  return moderate::tanh(x);
#else
  vf m = expm1_core(min(set1(20.0f), 2.0f * abs(x)));
  return copysign(m / (m + 2.0f), x);
#endif
}
GS_INLINE vd gate_sigmoid(vd x) { return sigmoid(x); }
GS_INLINE vd gate_tanh(vd x) { return tanh(x); }

GS_INLINE int gate_count(int32_t mode) { return mode == kLstm ? 4 : mode == kGru ? 3 : 1; }

// A vector of n elements, of all N where FULL: the last of a row may have fewer.
template <class T, bool FULL>
struct Lanes {
  int n;
  GS_MEMBER typename simd<T>::V get(const T* p) const { return FULL ? load(p) : load_n(p, n); }
  GS_MEMBER void put(T* p, typename simd<T>::V v) const {
    if (FULL)
      store(p, v);
    else
      store_n(p, v, n);
  }
};

// Rows of a tile by its vectors; 0: no such tile.
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kTileRows[5] = {0, 8, 8, 8, 6};
#elif defined(__AVX2__)
constexpr int kTileRows[5] = {0, 8, 6, 0, 0};
#else
constexpr int kTileRows[5] = {0, 6, 4, 0, 0};
#endif
constexpr int kMostRows = 8;
template <class T>
constexpr int kTileNV = sizeof(T) == 4 && kTileRows[4] ? 4 : 2;

// Lines of the cache that an update will need, asked for one by one while the product before it
// runs: rows lie far apart, so no hardware sees them coming, and all at once would hold the product
// up. Those from `reads` on will be written.
struct Ask {
  const char* lines[kMostRows * 12];
  int reads, count, next;
  int64_t at, end;  // bytes into a row

  GS_MEMBER void one() {
    if (at >= end) return;
    const char* p = lines[next] + at;
    if (next < reads)
      __builtin_prefetch(p, 0, 2);
    else
      own((void*)p, 0);
    if (++next == count) {
      next = 0;
      at += 64;
    }
  }
  // Bytes [from, to) of all rows.
  GS_MEMBER void start(int64_t from, int64_t to) {
    next = 0;
    at = from;
    end = count > 0 ? to : from;
  }
};

// Rows of A, `stride` apart, and their depth k.
template <class T>
struct Operand {
  const T* a;
  int64_t stride, k;
};

// C (MR rows `ldc` apart, NV vectors) = the two operands side by side times B, rows of NV vectors.
// An element is one chain of FMAs in ascending k. Every third row has a pointer and one stride
// serves all, so that no address is left in a vector register.
template <class T, int MR, int NV>
__attribute__((noinline)) void tile(const Operand<T>* in, const T* b, T* c, int64_t ldc, Ask* ask) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N, P = (MR + 2) / 3;
  V acc[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) acc[i][j] = V{};
#pragma GCC unroll 1
  for (int q = 0; q < 2; ++q) {
    const T* p[P];
    const int64_t stride = in[q].stride;
    int64_t k = in[q].k;
#pragma GCC unroll 4
    for (int i = 0; i < P; ++i) p[i] = in[q].a + 3 * i * stride;
    auto step = [&](int u) __attribute__((always_inline)) {
      V row[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) row[j] = load(b + (u * NV + j) * N);
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) {
        V x = set1(p[i / 3][(i % 3) * stride + u]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[i][j] = fma(x, row[j], acc[i][j]);
      }
    };
    constexpr int U = kUnroll<T>;
    for (; k >= U; k -= U, b += U * NV * N) {
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) asm("" : "+r"(p[i]));
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) step(u);
      ask->one();
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) p[i] += U;
    }
    for (; k > 0; --k, b += NV * N) {
      step(0);
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) ++p[i];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store(c + i * ldc + j * N, acc[i][j]);
}

template <class T>
using TileFn = void (*)(const Operand<T>*, const T*, T*, int64_t, Ask*);
template <class T, int MR, int NV>
constexpr TileFn<T> tile_or_none() {
  if constexpr (NV <= kTileNV<T> && MR <= kTileRows[NV])
    return tile<T, MR, NV>;
  else
    return nullptr;
}
template <class T>
struct Tiles {
#define GS_TILES(NV)                                                                       \
  {                                                                                        \
    nullptr, tile_or_none<T, 1, NV>(), tile_or_none<T, 2, NV>(), tile_or_none<T, 3, NV>(), \
        tile_or_none<T, 4, NV>(), tile_or_none<T, 5, NV>(), tile_or_none<T, 6, NV>(),      \
        tile_or_none<T, 7, NV>(), tile_or_none<T, 8, NV>()                                 \
  }
  static constexpr TileFn<T> table[5][kMostRows + 1] = {
      {}, GS_TILES(1), GS_TILES(2), GS_TILES(3), GS_TILES(4)};
#undef GS_TILES
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
