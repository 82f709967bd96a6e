// Averages of windows, vectors over the channels.
#pragma once
#include "pool/forward_pairs.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct Averages : PairMaxima<T> {
  using Base = PairMaxima<T>;
  using Base::divisor;
  using Base::kFast;
  using Base::kSlots;
  using Base::N;
  using Base::over;
  using Base::slide_row;
  using typename Base::V;

  template <int KH, int KW, int B, bool FULL>
  static GS_MEMBER void avg_vec(const T* x, int64_t ls, int64_t ps, int a0, int a1, int b0, int b1,
                                T div, T inv, Way way, T* y, int n) {
    V sum[B];
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) sum[v] = V{};
    if (KH) {
#pragma GCC unroll 3
      for (int a = 0; a < KH; ++a) {
        if (KH == 2) fetch(x + a * ls);
        V row = get<FULL>(x + a * ls, n);
#pragma GCC unroll 3
        for (int b = 1; b < KW; ++b) {
          if (KH == 2 || a) fetch(x + a * ls + b * ps);
          row += get<FULL>(x + a * ls + b * ps, n);
        }
        sum[0] = a ? sum[0] + row : row;
      }
    } else {
      // rows apart, then added: the error grows with height + width, not with their product
      for (int a = a0; a < a1; ++a) {
        V row[B];
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) row[v] = V{};
        for (int b = b0; b < b1; ++b)
#pragma GCC unroll 4
          for (int v = 0; v < B; ++v) {
            const T* q = x + a * ls + b * ps + v * N;
            fetch(q);
            row[v] += get<FULL>(q, n);
          }
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) sum[v] += row[v];
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) put<FULL>(way, y + v * N, over(sum[v], div, inv), n);
  }
  static __attribute__((noinline)) void avg_window(const T* x, int64_t c, int64_t ls, int64_t ps,
                                                   int a0, int a1, int b0, int b1, T div, T inv,
                                                   Way way, T* y) {
    int64_t j = 0;
    for (; j + 4 * N <= c; j += 4 * N)
      avg_vec<0, 0, 4, true>(x + j, ls, ps, a0, a1, b0, b1, div, inv, way, y + j, N);
    for (; j < c; j += N) {
      if (j + N > c) {
        if (c < N)
          return avg_vec<0, 0, 1, false>(x, ls, ps, a0, a1, b0, b1, div, inv, way, y, (int)c);
        j = c - N;
      }
      avg_vec<0, 0, 1, true>(x + j, ls, ps, a0, a1, b0, b1, div, inv, way, y + j, N);
    }
  }
  template <int K>
  static __attribute__((noinline)) void avg_whole(const T* x, int64_t windows, int64_t step,
                                                  int64_t c, int64_t ls, int64_t ps, T div, T inv,
                                                  Way way, T* y) {
    for (; windows > 0; --windows, x += step, y += c) {
      if (c < N) {
        avg_vec<K, K, 1, false>(x, ls, ps, 0, K, 0, K, div, inv, way, y, (int)c);
        continue;
      }
      for (int64_t j = 0; j < c; j += N) {
        if (j + N > c) j = c - N;
        avg_vec<K, K, 1, true>(x + j, ls, ps, 0, K, 0, K, div, inv, way, y + j, N);
      }
    }
  }
  // One row of a window, and the sum of the rows before it, which is kept aside: B vectors.
  template <int B>
  static GS_MEMBER void avg_stretch(const T* x, int64_t ps, int taps, bool first, bool last,
                                    V* value, T div, T inv, Way way, T* y) {
    V sum[B] = {};
    for (; taps > 0; --taps, x += ps)
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) {
        __builtin_prefetch((const char*)(x + v * N) + 2 * kAhead);
        sum[v] += load(x + v * N);
      }
    if (!first)
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) sum[v] = value[v] + sum[v];
    if (last) {
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) sum[v] = over(sum[v], div, inv);
      Base::template put_all<B>(way, y, sum);
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) value[v] = sum[v];
    }
  }
  // One row of all windows from .. to, which begins at x, in row i of windows, which is y.
  static __attribute__((noinline)) void avg_stretches(const Geometry& g, int64_t from, int64_t to,
                                                      const T* x, int64_t i, bool first, bool last,
                                                      V* value, bool same, Way way, T* y) {
    const int64_t c = g.p.c;
    T div = divisor(g, i, 0), inv = 1 / div;
    for (; from < to; ++from) {
      const int b0 = g.x.first[from], taps = g.x.last[from] - b0;
      const T* r = x + (g.x.start[from] + b0) * c;
      T* out = y + from * c;
      if (last && !same) {
        div = divisor(g, i, from);
        inv = 1 / div;
      }
      int64_t k = 0;
      for (; k + 4 * N <= c; k += 4 * N, value += 4)
        avg_stretch<4>(r + k, c, taps, first, last, value, div, inv, way, out + k);
      for (; k < c; k += N, ++value) {
        if (k + N > c) k = c - N;
        avg_stretch<1>(r + k, c, taps, first, last, value, div, inv, way, out + k);
      }
    }
  }
  // Row i of y: one row of x after the other, as max_by_rows does it.
  static void avg_by_rows(const Geometry& g, Way way, bool same, const T* x, int64_t i, T* y) {
    const PoolParams& p = g.p;
    const int64_t line = p.w * p.c, most = kSlots / ((p.c + N - 1) / N);
    V value[kSlots];
    for (int64_t from = 0, end; from < p.ow; from = end) {
      end = from + most < p.ow ? from + most : p.ow;
      for (int a = g.y.first[i], a1 = g.y.last[i], first = true; a < a1; ++a, first = false)
        avg_stretches(g, from, end, x + (g.y.start[i] + a) * line, i, first, a == a1 - 1, value,
                      same, way, y);
    }
  }
  // Whether windows go row by row of x: those that do not share columns, unless a row is one window
  // of few channels. Several adaptive ones that the second level holds are faster one by one.
  static GS_MEMBER bool goes_by_rows(const PoolParams& p, int64_t begin, int64_t end, int64_t bytes,
                                     const Ctx* ctx) {
    return (p.sw > 1 || begin >= end) && (p.ow > 1 || p.c > 4 * N) && p.c >= N &&
           p.c <= kSlots * N && (!p.adaptive || p.ow == 1 || 4 * bytes >= ctx->stream);
  }
  template <int K>
  static void avg_row(const Geometry& g, Way way, bool same, bool by_rows, int64_t begin,
                      int64_t end, const T* x, int64_t i, T* y) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c;
    int a0 = g.y.first[i], a1 = g.y.last[i];
    T div = divisor(g, i, 0), inv = 1 / div;
    const bool whole = K && a0 == 0 && a1 == K;
    if constexpr (kFast && K == 0)
      if (by_rows && a0 < a1) return avg_by_rows(g, way, same, x, i, y);
    for (int64_t j = 0; j < p.ow; ++j) {
      int b0 = g.x.first[j], b1 = g.x.last[j];
      const T* q = x + (int64_t)g.y.start[i] * line + (int64_t)g.x.start[j] * p.c;
      T* out = y + j * p.c;
      int64_t c = p.c, windows = 1;
      if (!same) {
        div = divisor(g, i, j);
        inv = 1 / div;
      }
      // their divisors are equal
      if (j == begin && begin < end && (whole || p.sw == 1)) {
        (p.sw == 1 ? c : windows) *= end - begin;
        j = end - 1;
      }
      if (K && whole && b0 == 0 && b1 == K)
        avg_whole<K>(q, windows, p.sw * p.c, c, line, p.c, div, inv, way, out);
      else
        avg_window(q, c, line, p.c, a0, a1, b0, b1, div, inv, way, out);
    }
  }

  static __attribute__((noinline)) void avg_slide_row(const Geometry& g, Way way, bool same,
                                                      const T* x, int64_t i, T* y) {
    const PoolParams& p = g.p;
    const int a0 = g.y.first[i], a1 = g.y.last[i];
    const int64_t line = p.w * p.c;
    const T* from = x + (g.y.start[i] + a0) * line;
    if (same) {
      const T div = divisor(g, i, 0), inv = 1 / div;
      slide_row(
          way, from, line, a1 - a0, p.c, p.w, p.ow, p.pw,
          y, [=](int64_t, V s) __attribute__((always_inline)) { return over(s, div, inv); });
    } else {
      slide_row(
          way, from, line, a1 - a0, p.c, p.w, p.ow, p.pw,
          y, [&](int64_t j, V s) __attribute__((always_inline)) {
            return s / set1(divisor(g, i, j));
          });
    }
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
