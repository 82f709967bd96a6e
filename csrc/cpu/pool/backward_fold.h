// Gradients of maxima whose windows overlap much: rows of windows first, then columns.
#pragma once
#include "pool/backward_collect.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct Folded : Collected<T> {
  using Base = Collected<T>;
  using Base::add_equal;
  using Base::kBytes;
  using Base::load_place;
  using Base::N;
  using Base::place;
  using Base::store_place;
  using typename Base::Holders;
  using typename Base::I;
  using typename Base::P;
  using typename Base::S;
  using typename Base::V;

  // ---- maxima row by row of dx: first dy is added up over the rows of windows that hold the row,
  // then over their columns. All windows of a column whose maximum lies in the row have it in one
  // place, the maximum of their columns there, so this takes kw + kh comparisons an element in
  // place of kw kh. What the first step finds lies where windows begin, with gaps between: then
  // ends of rows and strides need no code of their own.
  static constexpr uint8_t kNone = 255;
  // Elements of the sums of a row, each with the column in the window that it belongs to, or kNone:
  // a multiple of 64, so that the next member's sums, behind both, are aligned.
  static GS_MEMBER int64_t folded(const PoolParams& p) {
    return ((p.w + (p.kw - 1) * p.dw) * p.c + 2 * N + 63) / 64 * 64;
  }
  // Few windows that hold an element are looked at one by one.
  static GS_MEMBER bool folds(const PoolParams& p) {
    const int64_t rows = (p.kh + p.sh - 1) / p.sh, columns = (p.kw + p.sw - 1) / p.sw;
    return p.index_bytes == 1 && !p.adaptive && p.c >= N && rows * columns > 4;
  }
  // sum += d and at = the column, where tap lies in the row whose first tap is `first`
  static GS_MEMBER void fold(V d, P tap, int first, int kw, V& sum, P& at) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (kBytes) {
      const __m128i column = _mm_sub_epi8((__m128i)tap, _mm_set1_epi8((char)first));
      const __mmask16 m = _mm_cmplt_epu8_mask(column, _mm_set1_epi8((char)kw));
      sum = (V)_mm512_mask_add_ps((__m512)sum, m, (__m512)sum, (__m512)d);
      at = (P)_mm_mask_mov_epi8((__m128i)at, m, column);
      return;
    }
#endif
    if constexpr (!kBytes) {
      const I column = tap - set1((S)first), m = (column >= I{}) & (column < set1((S)kw));
      sum += m ? d : V{};
      at = m ? column : at;
    }
  }
  // B vectors of windows side by side; dy, index: in their first row
  template <int B>
  static GS_MEMBER void fold_vec(const Holders& y, int kw, int64_t row, const T* dy,
                                 const uint8_t* index, T* value, uint8_t* places) {
    V sum[B] = {};
    P at[B];
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) at[v] = place(kNone);
    for (int i = 0; i < y.count; ++i, dy += row, index += row) {
      const int a = y.tap(i);
      if (a < 0) continue;
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v)
        fold(load(dy + v * N), load_place(index + v * N), a * kw, kw, sum[v], at[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      __builtin_prefetch(dy + v * N);  // the row of windows that comes next
      store(value + v * N, sum[v]);
      store_place(places + v * N, at[v]);
    }
    __builtin_prefetch(index);
  }
  static GS_MEMBER void fold_run(const Holders& y, int kw, int64_t row, const T* dy,
                                 const uint8_t* index, int64_t n, T* value, uint8_t* places) {
    int64_t k = 0;
    for (; k + 4 * N <= n; k += 4 * N)
      fold_vec<4>(y, kw, row, dy + k, index + k, value + k, places + k);
    for (; k < n; k += N) {
      if (k + N > n) k = n - N;
      fold_vec<1>(y, kw, row, dy + k, index + k, value + k, places + k);
    }
  }
  // B vectors of dx of the sums that begin K columns, or kw if K is 0, before them
  template <int K, int B>
  static GS_MEMBER void unfold_vec(Way way, const T* value, const uint8_t* places, int64_t ps,
                                   int kw, T* dx) {
    V acc[B] = {};
    auto column = [&](int m) __attribute__((always_inline)) {
      const P tap = place(kw - 1 - m);
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v)
        acc[v] = add_equal(acc[v], load(value + m * ps + v * N),
                           load_place(places + m * ps + v * N), tap);
    };
    if (K == 3)
      column(0), column(1), column(2);
    else
      for (int m = 0; m < kw; ++m) column(m);
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) put<true>(way, dx + v * N, acc[v], N);
  }
  template <int K>
  static GS_MEMBER void unfold(Way way, const T* value, const uint8_t* places, int64_t ps, int kw,
                               int64_t n, T* dx) {
    int64_t k = 0;
    for (; k + 4 * N <= n; k += 4 * N) unfold_vec<K, 4>(way, value + k, places + k, ps, kw, dx + k);
    for (; k < n; k += N) {
      if (k + N > n) k = n - N;
      unfold_vec<K, 1>(way, value + k, places + k, ps, kw, dx + k);
    }
  }
  // Row h of dx; dy and index: its image. value, places: `folded` elements; the places are kNone
  // where no window begins.
  static __attribute__((noinline)) void fold_row(const Geometry& g, Way way, const T* dy,
                                                 const uint8_t* index, int64_t h, T* value,
                                                 uint8_t* places, T* dx) {
    const PoolParams& p = g.p;
    const int64_t c = p.c, row = p.ow * c, ps = p.dw * c, before = (p.kw - 1) * p.dw;
    const Holders y(g.y, h);
    const int kw = (int)p.kw;
    dy += g.y.lo[h] * row;
    index += g.y.lo[h] * row;
    const int64_t windows = p.sw == 1 ? p.ow : 1;
    for (int64_t j = 0; j < p.ow; j += windows) {
      const int64_t at = (g.x.start[j] + before) * c;
      fold_run(y, kw, row, dy + j * c, index + j * c, windows * c, value + at, places + at);
    }
    if (kw == 3)
      unfold<3>(way, value, places, ps, 3, p.w * c, dx);
    else
      unfold<0>(way, value, places, ps, kw, p.w * c, dx);
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
