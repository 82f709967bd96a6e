// Products of the planes of transformed tensors, and the memory that is fetched meanwhile; see
// conv/winograd.h.
#pragma once
#include "conv/winograd.h"

namespace gs {
namespace GS_ISA {
namespace {

#if GS_VBYTES == 64 || defined(__ARM_NEON)
#define GS_WINOGRAD_WIDE 1
constexpr int kPanel = 4;  // vectors of a panel of channels: 6 x 4 accumulators
#else
#define GS_WINOGRAD_WIDE 0
constexpr int kPanel = 2;  // 6 x 2 accumulators of 16 registers
#endif

// Memory that the next transform reads or writes, brought into the caches line by line while
// products, which leave the way to memory idle, go on: `rows` runs of `bytes`, `pitch` apart, and
// `then` what else is wanted. A few lines at a time: of a long burst most are dropped.
struct Ahead {
  const char* at;
  int64_t rows, bytes, pitch;
  bool near;
  Ahead* then;
  int64_t each;  // lines at a time
  int64_t done;  // bytes of the first row
  bool write;    // near: what will be written to

  // So that all of it has been asked for after `times` times.
  GS_MEMBER void spread(int64_t times) {
    each = ceil_div(rows * ceil_div(bytes, 64), max64(1, times));
  }
  GS_MEMBER void touch() {
    Ahead* a = this;
    while (a->rows <= 0) {
      if (!a->then) return;
      a = a->then;
    }
    for (int64_t left = a->each; left > 0 && a->rows > 0;) {
      const char* q = a->at + a->done;
      const int64_t lines = min64(left, ceil_div(a->bytes - a->done, 64));
      if (a->near && a->write)
        for (int64_t i = 0; i < lines; ++i) fetch_to_write(q + 64 * i);
      else if (a->near)
        for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(q + 64 * i, 0, 3);
      else
        for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(q + 64 * i, 0, 2);
      left -= lines;
      a->done += 64 * lines;
      if (a->done < a->bytes) continue;
      a->done = 0;
      a->at += a->pitch;
      --a->rows;
    }
  }
};
// `count` elements from `at` on.
template <class T>
GS_INLINE Ahead ahead(const T* at, int64_t count, bool near) {
  return Ahead{
      (const char*)at, count > 0, count * (int64_t)sizeof(T), 0, near, nullptr, 0, 0, false};
}
// `channels` channels from `at` on of the pixels that tiles [t0, t1) see: each A or M rows of
// image rows of w pixels with C channels. Nothing when the tiles are a small part of a row, or
// where rows are so long that the hardware sees what is coming. near (Ctx::follows): such a core
// follows long streams but not the rows of tiles, and drops a third of the fetches into the second
// level: there all is asked for into the first (a transform takes 110-140 cycles a vector then, and
// 400-650 when it finds its pixels in memory).
template <class T>
GS_INLINE Ahead pixels_ahead(const Grid& g, const T* at, int64_t h, int64_t w, int64_t C,
                             int64_t channels, int64_t step, int64_t reach, int64_t pad, int64_t t0,
                             int64_t t1, bool near) {
  if (2 * (t1 - t0) < g.cols || (!near && w * C * (int64_t)sizeof(T) >= 8192)) return Ahead{};
  int64_t per = g.rows * g.cols, n0 = t0 / per, n1 = (t1 - 1) / per;
  int64_t r0 = t0 / g.cols % g.rows * step - pad, r1 = (t1 - 1) / g.cols % g.rows * step - pad;
  r0 = n0 * h + min64(max64(r0, 0), h);
  r1 = n1 * h + min64(r1 + reach, h);
  const int64_t pixels = max64(0, r1 - r0) * w, B = sizeof(T);
  if (channels == C) return ahead(at + r0 * w * C, pixels * C, near);
  return Ahead{
      (const char*)(at + r0 * w * C), pixels, channels * B, C * B, near, nullptr, 0, 0, false};
}

// c (rows, NV vectors, ldc) (+)= a (rows, k; lda) b (k, NV vectors). rows <= MR exist.
template <class T, int MR, int NV>
__attribute__((noinline)) void product_tile(const T* a, int64_t lda, int rows, const T* b,
                                            int64_t ldb, int64_t k, T* c, int64_t ldc, bool add) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  V acc[MR][NV];
  const T* x[MR];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    x[m] = a + (m < rows ? m : rows - 1) * lda;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[m][v] = V{};
  }
  constexpr int U = MR > 10 ? 1 : kUnroll<T>;  // the pointers of 12 rows fill the registers
  auto step = [&](int64_t l) __attribute__((always_inline)) {
    V y[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) y[v] = load(b + v * N);
    b += ldb;
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      V s = set1(x[m][l]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) multiply<U == 1 ? 1 : NV>(acc[m][v], s, y[v]);
    }
  };
  int64_t l = 0;
  for (; l + U <= k; l += U) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) step(l + u);
  }
  if (U > 1)
    for (; l < k; ++l) step(l);
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    if (m >= rows) break;
    T* d = c + m * ldc;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(d + v * N, add ? load(d + v * N) + acc[m][v] : acc[m][v]);
  }
}

// c (rows, NV vectors; ldc) (+)= a^T b over k: a (k, rows; lda), b (k, NV vectors; ldb)
template <class T, int MR, int NV>
__attribute__((noinline)) void outer_tile(const T* a, int64_t lda, int rows, const T* b,
                                          int64_t ldb, int64_t k, T* c, int64_t ldc, bool add) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  V acc[MR][NV];
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[m][v] = V{};
  }
  auto step = [&]() __attribute__((always_inline)) {
    V y[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) y[v] = load(b + v * N);
    b += ldb;
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      V s = set1(a[m]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) multiply<NV>(acc[m][v], s, y[v]);
    }
    a += lda;
  };
  for (; k >= kUnroll<T>; k -= kUnroll<T>) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll<T>; ++u) step();
  }
  for (; k > 0; --k) step();
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
    if (m >= rows) break;
    T* d = c + m * ldc;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(d + v * N, add ? load(d + v * N) + acc[m][v] : acc[m][v]);
  }
}

// The largest height of a tile of nv vectors. a^T of outer_tile is read up to that many rows past
// its end.
GS_INLINE int64_t tile_height(int nv) {
#if GS_WINOGRAD_WIDE
  return nv == 4 ? 6 : nv == 3 ? 8 : 12;
#else
  return nv == 2 ? 6 : 12;
#endif
}

// The rows that a tile of `height` rows computes.
GS_INLINE int64_t tile_rows(int nv, int64_t height) {
#if GS_WINOGRAD_WIDE
  if (nv == 4) return height > 5 ? 6 : height > 4 ? 5 : height > 2 ? 4 : 2;
  if (nv == 3) return height > 6 ? 8 : height > 4 ? 6 : 4;
  if (nv == 2) return height > 10 ? 12 : height > 8 ? 10 : height > 4 ? 8 : 4;
#else
  if (nv == 2) return height > 5 ? 6 : height > 4 ? 5 : height > 2 ? 4 : 2;
#endif
  return height > 8 ? 12 : height > 4 ? 8 : 4;
}
// Whether `rows` rows are cheaper as tiles of full height and a rest than as n of nearly equal
// height.
GS_INLINE bool full_tiles(int nv, int64_t rows, int64_t n) {
  int64_t q = rows / n, r = rows % n, most = tile_height(nv) * (n - 1);
  return most + tile_rows(nv, rows - most) < r * tile_rows(nv, q + 1) + (n - r) * tile_rows(nv, q);
}

// The longest chain of additions; longer sums are added up chain by chain, which halves the error
// at 512 channels, and b stays in the first-level cache meanwhile.
constexpr int64_t kChain = 96;

// All rows against one panel, tile by tile. Outer: a is (k, rows).
template <class T, bool Outer>
void product_chain(int nv, const T* a, int64_t lda, int64_t rows, const T* b, int64_t ldb,
                   int64_t k, T* c, int64_t ldc, bool add, Ahead* ahead) {
  const int64_t most = tile_height(nv), n = ceil_div(rows, most);
  const bool full = full_tiles(nv, rows, n);
  for (int64_t t = 0; t < n; ++t) {
    ahead->touch();
    int64_t m = full ? t * most : t * rows / n;
    int height = (int)((full ? min64(m + most, rows) : (t + 1) * rows / n) - m);
    const T* q = a + (Outer ? m : m * lda);
    T* d = c + m * ldc;
#define GS_TILE(NV, MR)                                                  \
  (Outer ? outer_tile<T, MR, NV>(q, lda, height, b, ldb, k, d, ldc, add) \
         : product_tile<T, MR, NV>(q, lda, height, b, ldb, k, d, ldc, add))
    switch (nv) {
#if GS_WINOGRAD_WIDE
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
        height > 10  ? GS_TILE(2, 12)
        : height > 8 ? GS_TILE(2, 10)
        : height > 4 ? GS_TILE(2, 8)
                     : GS_TILE(2, 4);
        break;
#else
      case 2:
        height > 5   ? GS_TILE(2, 6)
        : height > 4 ? GS_TILE(2, 5)
        : height > 2 ? GS_TILE(2, 4)
                     : GS_TILE(2, 2);
        break;
#endif
      default:
        height > 8 ? GS_TILE(1, 12) : height > 4 ? GS_TILE(1, 8) : GS_TILE(1, 4);
    }
#undef GS_TILE
  }
}

template <class T, bool Outer>
void product(int nv, const T* a, int64_t lda, int64_t rows, const T* b, int64_t ldb, int64_t k,
             T* c, int64_t ldc, bool add, Ahead* ahead) {
  int64_t n = ceil_div(k, kChain);
  if (rows == 0) return;
  if (k == 0 && !add)
    for (int64_t m = 0; m < rows; ++m)
      memset(c + m * ldc, 0, (size_t)(nv * simd<T>::N) * sizeof(T));
  for (int64_t i = 0; i < n; ++i) {
    int64_t l = i * k / n, count = (i + 1) * k / n - l;
    product_chain<T, Outer>(nv, a + (Outer ? l * lda : l), lda, rows, b + l * ldb, ldb, count, c,
                            ldc, add || i > 0, ahead);
  }
}

// Tiles of the registers that a product takes.
GS_INLINE int64_t product_steps(int nv, int64_t rows, int64_t k) {
  return ceil_div(rows, tile_height(nv)) * ceil_div(k, kChain);
}

// Panels of channels: vectors [first, first + nv) of ceil(channels / N). None crosses a group.
struct Panels {
  int64_t channels, vectors, count, padded;
  GS_MEMBER int64_t first(int64_t i) const { return i * kPanel; }
  GS_MEMBER int nv(int64_t i) const { return (int)min64(kPanel, vectors - first(i)); }
};
template <class T>
GS_INLINE Panels panels_of(int64_t channels) {
  int64_t v = ceil_div(channels, simd<T>::N);
  return Panels{channels, v, ceil_div(v, kPanel), v * simd<T>::N};
}

// Transformed filters, (M + 2)^2 planes of `rows` rows by panels: where panel i is, and the size of
// all. Each plane of a panel has 16 elements more, as planes() above.
template <class T, int M>
GS_INLINE int64_t panel_at(int64_t rows, const Panels& columns, int64_t i) {
  return (M + 2) * (M + 2) * (rows * columns.first(i) * simd<T>::N + 16 * i);
}
template <class T, int M>
GS_INLINE int64_t form_size(int64_t rows, const Panels& columns) {
  return (M + 2) * (M + 2) * (rows * columns.padded + 16 * columns.count);
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
