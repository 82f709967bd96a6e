// Small products: C = act(A B + bias + C), A (m, k), B (k, n), C (m, n), float32, at most some 2^19
// products, so that everything lies in the first two caches and is over in a microsecond or two.
//
// Floor: m n k / 32 cycles (two FMAs of 16 lanes). The general kernel (gemm.cpp) spends 100 ns and
// more on its blocking, on panels that are fetched ahead, and on the scalar transposition of a last
// panel that is not full. Here columns go by panels of 2 vectors, rows by 8, 4, 2, 1: a step of the
// 8 x 2 tile is 16 FMAs (8 cycles) and 10 loads. A is read where it lies, by rows or by columns; B
// too, unless its columns are contiguous: then a panel is transposed, 16 x 16 at a time, just
// before use.
//
// An element is one chain of FMAs in ascending k, as in gemm.cpp: the same bits by either way.
// Only for 64-byte vectors; elsewhere nothing is taken.
#pragma once
#include "matmul.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

#if defined(__AVX512F__)
namespace small {

constexpr int N = 16;
constexpr int kPanel = 2 * N;
constexpr int64_t kDepth = 512;  // steps of k: a block of gemm.cpp, whose scratch holds the panel
constexpr int64_t kMostProducts = 1 << 19;

enum Flag : int { kAdd = 1, kBias = 2, kRelu = 4 };

// ROWS: rows of A are contiguous, else its columns. Only the first `last` lanes of the last vector
// are there in C.
template <int MR, int NV, bool ROWS>
__attribute__((noinline)) void tile(const float* __restrict a, int64_t lda,
                                    const float* __restrict b, int64_t brs, int64_t k,
                                    const float* bias, float* __restrict c, int64_t ldc, int flags,
                                    int last) {
  vf acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) acc[i][j] = vf{};
  // three rows a pointer: the others are its index times 1 and 2
  constexpr int G = (MR + 2) / 3;
  const float* row[G];
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) row[g] = a + 3 * g * lda;
  auto step = [&](int u) __attribute__((always_inline)) {
    vf bv[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) bv[j] = load(b + j * N);
    b += brs;
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const vf x = set1(ROWS ? row[i / 3][(i % 3) * lda + u] : a[i]);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) acc[i][j] = fma(x, bv[j], acc[i][j]);
    }
    if (!ROWS) a += lda;
  };
  auto advance = [&](int n) __attribute__((always_inline)) {
    if (ROWS)
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) row[g] += n;
  };
  for (; k >= 4; k -= 4) {
    step(0);
    step(1);
    step(2);
    step(3);
    advance(4);
  }
  for (; k > 0; --k) {
    step(0);
    advance(1);
  }
  const bool whole = last == N;
#pragma GCC unroll 2
  for (int j = 0; j < NV; ++j) {
    const bool full = j < NV - 1 || whole;
    const vf add = flags & kBias ? (full ? load(bias + j * N) : load_n(bias + j * N, last)) : vf{};
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      float* to = c + i * ldc + j * N;
      vf v = acc[i][j];
      if (flags & kAdd) v += full ? load(to) : load_n(to, last);
      if (flags & kBias) v += add;
      if (flags & kRelu) v = max(vf{}, v);  // NaN stays NaN
      if (full)
        store(to, v);
      else
        store_n(to, v, last);
    }
  }
}

typedef void (*TileFn)(const float*, int64_t, const float*, int64_t, int64_t, const float*, float*,
                       int64_t, int, int);
// by rows (1, 2, 4, 8), vectors, layout of A
const TileFn tiles[4][2][2] = {
    {{tile<1, 1, false>, tile<1, 1, true>}, {tile<1, 2, false>, tile<1, 2, true>}},
    {{tile<2, 1, false>, tile<2, 1, true>}, {tile<2, 2, false>, tile<2, 2, true>}},
    {{tile<4, 1, false>, tile<4, 1, true>}, {tile<4, 2, false>, tile<4, 2, true>}},
    {{tile<8, 1, false>, tile<8, 1, true>}, {tile<8, 2, false>, tile<8, 2, true>}}};

// to[k * width + j] = from[j * ld + k] for j < cols <= width, zero beyond; width 16 or 32
void pack(const float* from, int64_t ld, int64_t depth, int cols, int width, float* to) {
  alignas(64) static const float zeros[N] = {};
  for (int j = 0; j < width; j += N) {
    const int rows = cols - j < N ? cols - j : N;
    int64_t k = 0;
    for (; k + N <= depth; k += N) {
      const float* r[N];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) r[i] = i < rows ? from + (j + i) * ld + k : zeros;
      // quarters of four rows come together by loads with insertion; the rest are two rounds of
      // shuffles
      __m512 q[N];
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) {
        const int at = (i >> 2) * 4, s = i & 3;
        __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(r[s] + at));
        x = _mm512_insertf32x4(x, _mm_loadu_ps(r[s + 4] + at), 1);
        x = _mm512_insertf32x4(x, _mm_loadu_ps(r[s + 8] + at), 2);
        q[i] = _mm512_insertf32x4(x, _mm_loadu_ps(r[s + 12] + at), 3);
      }
      float* t = to + k * width + j;
#pragma GCC unroll 4
      for (int g = 0; g < 4; ++g, t += 4 * width) {
        const __m512 a = _mm512_unpacklo_ps(q[4 * g], q[4 * g + 1]),
                     b = _mm512_unpackhi_ps(q[4 * g], q[4 * g + 1]),
                     c = _mm512_unpacklo_ps(q[4 * g + 2], q[4 * g + 3]),
                     d = _mm512_unpackhi_ps(q[4 * g + 2], q[4 * g + 3]);
        _mm512_storeu_ps(t, _mm512_shuffle_ps(a, c, 0x44));
        _mm512_storeu_ps(t + width, _mm512_shuffle_ps(a, c, 0xee));
        _mm512_storeu_ps(t + 2 * width, _mm512_shuffle_ps(b, d, 0x44));
        _mm512_storeu_ps(t + 3 * width, _mm512_shuffle_ps(b, d, 0xee));
      }
    }
    for (; k < depth; ++k)
      for (int i = 0; i < N; ++i) to[k * width + j + i] = i < rows ? from[(j + i) * ld + k] : 0.0f;
  }
}

}  // namespace small

// Whether a product is of the size for this kernel, however its operands lie.
GS_INLINE bool small_problem(const MatmulParams& p) {
  return p.batch == 1 && p.k >= 1 && p.k <= small::kDepth && p.c_cs == 1 &&
         p.m * p.n * p.k <= small::kMostProducts;
}

// Computes the product by itself, or leaves it alone and says false. By one member; scratch is that
// of gemm.cpp for these parameters.
__attribute__((noinline)) bool small_product(const MatmulParams& p, void* const* buf,
                                             char* scratch) {
  using namespace small;
  const bool a_rows = p.a_cs == 1, turned = p.b_cs != 1;
  if (!small_problem(p) || p.alpha != 1 || p.after || p.bias_rs != 0 || (!a_rows && p.a_rs != 1) ||
      (turned ? p.b_rs != 1 || p.n == 1 : p.n % N != 0))
    return false;
  // rows of B that crowd each other out of the caches: gemm.cpp sums blocks of fewer steps there
  if (!turned && p.k > 128 && (p.k + 3) * p.b_rs * 4 > p.l2 / 2) return false;
  const float *a = (const float*)buf[0], *b = (const float*)buf[1], *bias = (const float*)buf[2];
  float *c = (float*)buf[3], *panel = (float*)scratch;
  const int64_t lda = a_rows ? p.a_rs : p.a_cs;
  const int flags =
      (p.accumulate ? kAdd : 0) | (bias ? kBias : 0) | (p.act == kActRelu ? kRelu : 0);
  for (int64_t j = 0; j < p.n; j += kPanel) {
    const int cols = (int)(p.n - j < kPanel ? p.n - j : kPanel);
    const int nv = (cols + N - 1) / N, last = cols - (nv - 1) * N;
    const float* from = turned ? panel : b + j;
    const int64_t brs = turned ? nv * N : p.b_rs;
    if (turned) pack(b + j * p.b_cs, p.b_cs, p.k, cols, nv * N, panel);
    const float* add = bias ? bias + j : nullptr;
    for (int64_t i = 0; i < p.m;) {
      const int64_t left = p.m - i;
      const int size = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0;
      tiles[size][nv - 1][a_rows](a_rows ? a + i * lda : a + i, lda, from, brs, p.k, add,
                                  c + i * p.c_rs + j, p.c_rs, flags, last);
      i += 1 << size;
    }
  }
  return true;
}

// Whether all panels of B, transposed, may be kept for this kernel, and the product itself from
// them, rows dealt out to the team: panel j is (k, 16 or 32) and begins at element j k.
GS_INLINE bool small_kept(const MatmulParams& p) {
  return small_problem(p) && p.alpha == 1 && !p.after && p.bias_rs == 0 &&
         (p.a_cs == 1 || p.a_rs == 1) && p.b_cs != 1 && p.b_rs == 1 && p.n > 1;
}
__attribute__((noinline)) void small_prepared(const MatmulParams& p, void* const* buf,
                                              const float* panels, const Ctx* ctx) {
  using namespace small;
  const bool a_rows = p.a_cs == 1;
  const float *a = (const float*)buf[0], *bias = (const float*)buf[2];
  float* c = (float*)buf[3];
  const int64_t lda = a_rows ? p.a_rs : p.a_cs, groups = (p.m + 7) / 8;
  const int64_t first = groups * ctx->tid / ctx->nt * 8,
                all = groups * (ctx->tid + 1) / ctx->nt * 8;
  const int64_t end = all < p.m ? all : p.m;
  const int flags =
      (p.accumulate ? kAdd : 0) | (bias ? kBias : 0) | (p.act == kActRelu ? kRelu : 0);
  for (int64_t j = 0; j < p.n; j += kPanel) {
    const int cols = (int)(p.n - j < kPanel ? p.n - j : kPanel);
    const int nv = (cols + N - 1) / N, last = cols - (nv - 1) * N;
    for (int64_t i = first; i < end;) {
      const int64_t left = end - i;
      const int size = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0;
      tiles[size][nv - 1][a_rows](a_rows ? a + i * lda : a + i, lda, panels + j * p.k, nv * N, p.k,
                                  bias ? bias + j : nullptr, c + i * p.c_rs + j, p.c_rs, flags,
                                  last);
      i += 1 << size;
    }
  }
}
#else
GS_INLINE bool small_problem(const MatmulParams&) { return false; }
GS_INLINE bool small_product(const MatmulParams&, void* const*, char*) { return false; }
GS_INLINE bool small_kept(const MatmulParams&) { return false; }
GS_INLINE void small_prepared(const MatmulParams&, void* const*, const float*, const Ctx*) {}
#endif

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
