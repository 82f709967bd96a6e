// Small products: C = act(A B + bias + C), A (m, k), B (k, n), C (m, n), float32, at most some 2^19
// products, so that everything lies in the first two caches and is over in a microsecond or two.
//
// Floor: m n k / 32 cycles (two FMAs of 16 lanes). The general kernel (gemm.cpp) spends 100 ns and
// more on its blocking, on panels that are fetched ahead, and on the scalar transposition of a last
// panel that is not full. Here columns go by panels of 4 vectors with tiles of 6 rows, what is left
// by 2 or 1 vectors with tiles of 8: a step of the 6 x 4 tile is 24 FMAs (12 cycles) and 10 loads.
// A is read where it lies, by rows or by columns; B too, unless its columns are contiguous: then a
// panel is transposed, 16 x 16 at a time, just before use.
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
constexpr int kWidest = 4;       // vectors of a panel
constexpr int64_t kDepth = 512;  // steps of k: a block of gemm.cpp, whose scratch holds the panel
constexpr int64_t kMostProducts = 1 << 19;

enum Flag : int { kAdd = 1, kBias = 2, kRelu = 4 };

struct Args {
  const float* a;  // (i, k) at a[i * lda + k], or a[k * lda + i]
  int64_t lda;
  const float* b;  // row k at b + k * brs
  int64_t brs, k;
  const float* bias;  // of the first column
  float* c;           // row i at c + i * ldc
  int64_t ldc;
  int flags;
  int last;  // lanes of the last vector of a row
};

// ROWS: rows of A are contiguous, else its columns.
template <int MR, int NV, bool ROWS>
__attribute__((noinline)) void tile(const Args& g) {
  const float* __restrict a = g.a, * __restrict b = g.b;
  float* __restrict c = g.c;
  const int64_t lda = g.lda, brs = g.brs;
  vf acc[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) acc[i][j] = vf{};
  int64_t odd[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) odd[i] = (2 * i + 1) * lda * (int64_t)sizeof(float);
  auto step = [&](int u) __attribute__((always_inline)) {
    vf bv[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) bv[j] = load(b + j * N);
    b += brs;
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const vf x = ROWS ? set1_at<vf>(a, odd, i, u) : set1(a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) accumulate<NV>(acc[i][j], x, bv[j]);
    }
    if (!ROWS) a += lda;
  };
  int64_t k = g.k;
  for (int64_t turns = k >> 2; turns > 0; --turns) {
    step(0);
    step(1);
    step(2);
    step(3);
    if (ROWS) a += 4;
    asm("" : "+r"(a), "+r"(b));  // else GCC moves copies of them
  }
  for (k &= 3; k > 0; --k) {
    step(0);
    if (ROWS) ++a;
  }
  const int flags = g.flags, last = g.last;
  const int64_t ldc = g.ldc;
  const bool whole = last == N;
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) {
    const bool full = j < NV - 1 || whole;
    auto get = [&](const float* p) __attribute__((always_inline)) {
      return full ? load(p) : load_n(p, last);
    };
    if (flags & kAdd)
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) acc[i][j] += get(c + i * ldc + j * N);
    if (flags & kBias) {
      const vf add = get(g.bias + j * N);
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) acc[i][j] += add;
    }
    if (flags & kRelu)
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) acc[i][j] = max(vf{}, acc[i][j]);  // NaN stays NaN
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      float* to = c + i * ldc + j * N;
      if (full)
        store(to, acc[i][j]);
      else
        store_n(to, acc[i][j], last);
    }
  }
}

typedef void (*TileFn)(const Args&);
// by layout of A, vectors (1, 2, 4), rows (1, 2, 4, 6 or 8)
#define GS_TILES(ROWS)                                                              \
  {                                                                                 \
    {tile<1, 1, ROWS>, tile<2, 1, ROWS>, tile<4, 1, ROWS>, tile<8, 1, ROWS>},       \
        {tile<1, 2, ROWS>, tile<2, 2, ROWS>, tile<4, 2, ROWS>, tile<8, 2, ROWS>}, { \
      tile<1, 4, ROWS>, tile<2, 4, ROWS>, tile<4, 4, ROWS>, tile<6, 4, ROWS>        \
    }                                                                               \
  }
const TileFn tiles[2][3][4] = {GS_TILES(false), GS_TILES(true)};
#undef GS_TILES
const int8_t tile_heights[4] = {1, 2, 4, 8};

// 16 rows of `from`, N elements of each, to N rows of `to`.
template <bool WHOLE>
GS_INLINE void turn(const float* from, int64_t ld, int rows, float* to, int64_t width) {
  alignas(64) static const float zeros[N] = {};
  // quarters of four rows come together by loads with insertion; the rest are two rounds of
  // shuffles
  const int64_t row = ld * (int64_t)sizeof(float), row3 = 3 * row;
  const char* base[4];
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) base[q] = (const char*)(from + 4 * q * ld);
  auto at = [&](int i, int g) __attribute__((always_inline)) {
    if (!WHOLE && i >= rows) return zeros + 4 * g;
    const int s = i & 3;
    return (const float*)(base[i >> 2] + (s == 3 ? row3 : s * row) + 16 * g);
  };
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g, to += 4 * width) {
    __m512 q[4];
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(at(s, g)));
      x = _mm512_insertf32x4(x, _mm_loadu_ps(at(s + 4, g)), 1);
      x = _mm512_insertf32x4(x, _mm_loadu_ps(at(s + 8, g)), 2);
      q[s] = _mm512_insertf32x4(x, _mm_loadu_ps(at(s + 12, g)), 3);
    }
    const __m512 a = _mm512_unpacklo_ps(q[0], q[1]), b = _mm512_unpackhi_ps(q[0], q[1]),
                 c = _mm512_unpacklo_ps(q[2], q[3]), d = _mm512_unpackhi_ps(q[2], q[3]);
    _mm512_storeu_ps(to, _mm512_shuffle_ps(a, c, 0x44));
    _mm512_storeu_ps(to + width, _mm512_shuffle_ps(a, c, 0xee));
    _mm512_storeu_ps(to + 2 * width, _mm512_shuffle_ps(b, d, 0x44));
    _mm512_storeu_ps(to + 3 * width, _mm512_shuffle_ps(b, d, 0xee));
  }
}

// to[k * width + j] = from[j * ld + k] for j < cols <= width, zero beyond; width a multiple of 16
void pack(const float* from, int64_t ld, int64_t depth, int cols, int width, float* to) {
  for (int j = 0; j < width; j += N) {
    const int rows = cols - j < N ? cols - j : N;
    int64_t k = 0;
    if (rows == N)
      for (; k + N <= depth; k += N)
        turn<true>(from + j * ld + k, ld, N, to + k * width + j, width);
    else
      for (; k + N <= depth; k += N)
        turn<false>(from + j * ld + k, ld, rows, to + k * width + j, width);
    for (; k < depth; ++k)
      for (int i = 0; i < N; ++i) to[k * width + j + i] = i < rows ? from[(j + i) * ld + k] : 0.0f;
  }
}

// The panel that column j, a multiple of N, lies in: its first column and its vectors. 4 vectors as
// long as there are 4, then 2 or 1.
struct Panel {
  int64_t first;
  int nv;
  GS_MEMBER Panel(int64_t n, int64_t j) {
    const int64_t vectors = (n + N - 1) / N, rest = vectors / kWidest * kWidest * N;
    if (j < rest) {
      first = j / (kWidest * N) * (kWidest * N);
      nv = kWidest;
    } else if (vectors * N - rest >= 2 * N && j < rest + 2 * N) {
      first = rest;
      nv = 2;
    } else {
      first = j;
      nv = 1;
    }
  }
};

// Rows [i, end) of one panel; g has all but its place in A and C.
GS_INLINE void rows(Args& g, int nv, bool a_rows, const float* a, float* c, int64_t i,
                    int64_t end) {
  const TileFn* by_rows = tiles[a_rows][nv >> 1];
  while (i < end) {
    const int64_t left = end - i;
    const int high = nv == kWidest ? 6 : 8;
    // 8 rows go as 4 + 4, not 6 + 2
    const int size = left >= high && (high == 8 || left != 8) ? 3
                     : left >= 4                              ? 2
                     : left >= 2                              ? 1
                                                              : 0;
    g.a = a_rows ? a + i * g.lda : a + i;
    g.c = c + i * g.ldc;
    by_rows[size](g);
    i += size == 3 ? high : tile_heights[size];
  }
}

// Rows [first, end) of C, panel by panel. place(&g, j, width, cols) says where B has the panel of
// columns j .. j + cols - 1.
template <class F>
GS_INLINE void columns(const MatmulParams& p, void* const* buf, int64_t first, int64_t end,
                       F place) {
  const float *a = (const float*)buf[0], *bias = (const float*)buf[2];
  float* c = (float*)buf[3];
  const bool a_rows = p.a_cs == 1;
  Args g;
  g.lda = a_rows ? p.a_rs : p.a_cs;
  g.k = p.k;
  g.ldc = p.c_rs;
  g.flags = (p.accumulate ? kAdd : 0) | (bias ? kBias : 0) | (p.act == kActRelu ? kRelu : 0);
  for (int64_t j = 0; j < p.n;) {
    const int nv = Panel(p.n, j).nv;
    const int cols = (int)(p.n - j < nv * N ? p.n - j : nv * N);
    g.last = cols - (nv - 1) * N;
    g.bias = bias ? bias + j : nullptr;
    place(&g, j, (int64_t)nv * N, cols);
    rows(g, nv, a_rows, a, c + j, first, end);
    j += cols;
  }
}

}  // namespace small

// Whether a product is of the size for this kernel, however its operands lie.
GS_INLINE bool small_problem(const MatmulParams& p) {
  return p.batch == 1 && p.k >= 1 && p.k <= small::kDepth && p.c_cs == 1 && !p.chain &&
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
  const float* b = (const float*)buf[1];
  float* panel = (float*)scratch;
  columns(p, buf, 0, p.m, [&](Args* g, int64_t j, int64_t width, int cols) {
    if (turned) pack(b + j * p.b_cs, p.b_cs, p.k, cols, (int)width, panel);
    g->b = turned ? panel : b + j;
    g->brs = turned ? width : p.b_rs;
  });
  return true;
}

// Whether all panels of B, transposed, may be kept for this kernel, and the product itself from
// them, rows dealt out to the team: the panel of column j on is (k, its width) and begins at
// element j k.
GS_INLINE bool small_kept(const MatmulParams& p) {
  return small_problem(p) && p.alpha == 1 && !p.after && p.bias_rs == 0 &&
         (p.a_cs == 1 || p.a_rs == 1) && p.b_cs != 1 && p.b_rs == 1 && p.n > 1;
}
// Where column j, a multiple of the vector, has its place: its panel's first column and width.
GS_INLINE void small_place(const MatmulParams& p, int64_t j, int64_t* first, int64_t* width) {
  const small::Panel panel(p.n, j);
  *first = panel.first;
  *width = panel.nv * small::N;
}
__attribute__((noinline)) void small_prepared(const MatmulParams& p, void* const* buf,
                                              const float* panels, const Ctx* ctx) {
  using namespace small;
  // whole tiles, or whole lines where rows of A lie side by side
  const int64_t unit = p.a_cs == 1 ? 6 : N, groups = (p.m + unit - 1) / unit;
  const int64_t first = groups * ctx->tid / ctx->nt * unit,
                all = groups * (ctx->tid + 1) / ctx->nt * unit;
  columns(p, buf, first, all < p.m ? all : p.m, [&](Args* g, int64_t j, int64_t width, int) {
    g->b = panels + j * p.k;
    g->brs = width;
  });
}
#else
GS_INLINE bool small_problem(const MatmulParams&) { return false; }
GS_INLINE bool small_product(const MatmulParams&, void* const*, char*) { return false; }
GS_INLINE bool small_kept(const MatmulParams&) { return false; }
GS_INLINE void small_place(const MatmulParams&, int64_t, int64_t*, int64_t*) {}
GS_INLINE void small_prepared(const MatmulParams&, void* const*, const float*, const Ctx*) {}
#endif

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
