// Gradients of windows that do not overlap: each writes its own elements of dx.
#pragma once
#include "pool/windows.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct Tiles : Lanes<T> {
  using Base = Lanes<T>;
  using Base::divisor;
  using Base::N;
  using Base::pick;
  using typename Base::Block;
  using typename Base::I;
  using typename Base::S;
  using typename Base::V;

  // ---- backward, windows side by side: each writes its own elements of dx
  // taps a0 .. a1, b0 .. b1 of one window; dx: tap (0, 0). B vectors are a line of the cache, which
  // is written whole before the next.
  static constexpr int kLine = 64 / GS_VBYTES;
  template <int K, bool MAX, int B, bool FULL>
  static GS_MEMBER void tile_vec(Way way, const T* dy, const uint8_t* index, T* dx, int64_t ls,
                                 int64_t ps, int a0, int a1, int b0, int b1, int kw, T inv, int n) {
    V g[B];
    I at[B];
    fetch(dy);
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      g[v] = get<FULL>(dy + v * N, n);
      if (MAX)
        at[v] = get_index<T, FULL>(index + v * N, n);
      else
        g[v] *= set1(inv);
    }
    auto tap = [&](int a, int b, S t) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v)
        put<FULL>(way, dx + a * ls + b * ps + v * N, MAX ? (at[v] == set1(t) ? g[v] : V{}) : g[v],
                  n);
    };
    if (K) {
#pragma GCC unroll 3
      for (int a = 0; a < K; ++a)
#pragma GCC unroll 3
        for (int b = 0; b < K; ++b) tap(a, b, (S)(a * K + b));
    } else {
      for (int a = a0; a < a1; ++a)
        for (int b = b0; b < b1; ++b) tap(a, b, (S)(a * kw + b));
    }
  }
  template <int K, bool MAX>
  static GS_MEMBER void tile_window(Way way, const T* dy, const uint8_t* index, T* dx, int64_t c,
                                    int64_t ls, int64_t ps, int a0, int a1, int b0, int b1, int kw,
                                    T inv) {
    int64_t j = 0;
    if (kLine > 1)
      for (; j + kLine * N <= c; j += kLine * N)
        tile_vec<K, MAX, kLine, true>(way, dy + j, index + j, dx + j, ls, ps, a0, a1, b0, b1, kw,
                                      inv, N);
    for (; j < c; j += N) {
      if (j + N > c) {
        if (c < N)
          return tile_vec<K, MAX, 1, false>(way, dy, index, dx, ls, ps, a0, a1, b0, b1, kw, inv,
                                            (int)c);
        j = c - N;
      }
      tile_vec<K, MAX, 1, true>(way, dy + j, index + j, dx + j, ls, ps, a0, a1, b0, b1, kw, inv, N);
    }
  }
  // d where the index says tap, else zero
  static GS_MEMBER V only(V d, const uint8_t* index, S tap) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_maskz_mov_ps(
          _mm_cmpeq_epi8_mask(_mm_loadu_si128((const __m128i*)index), _mm_set1_epi8((char)tap)),
          (__m512)d);
#endif
    return get_index<T, true>(index, N) == set1(tap) ? d : V{};
  }
  // Windows of 2 x 2, near: their two rows of dx one after the other; c >= N
  template <bool MAX>
  static __attribute__((noinline)) void tile_near(const T* dy, const uint8_t* index, T* dx,
                                                  int64_t windows, int64_t c, int64_t line, T inv) {
    for (int a = 0; a < 2; ++a, dx += line) {
      const T* d = dy;
      const uint8_t* ix = index;
      T* to = dx;
      for (int64_t j = 0; j < windows; ++j, d += c, ix += c, to += 2 * c)
        for (int64_t k = 0; k < c; k += N) {
          if (k + N > c) k = c - N;
          const V g = load(d + k);
          store(to + k, MAX ? only(g, ix + k, (S)(2 * a)) : g * set1(inv));
          store(to + c + k, MAX ? only(g, ix + k, (S)(2 * a + 1)) : g * set1(inv));
        }
    }
  }
  // Few channels: a block of pixels of dy and the vectors of dx that their windows' taps in one
  // row are.
  struct Spread {
    static constexpr int kMost = 4;
    I from[kMost], tap[kMost];  // lane of dy and column of the window of each lane of dx
    int vectors, lanes;         // lanes: of the last vector

    GS_MEMBER bool init(const PoolParams& p, const Block& block) {
      const int total = (int)(block.pixels * p.kw * p.c), c = (int)p.c, kw = (int)p.kw;
      vectors = (total + N - 1) / N;
      if (vectors < 2 || vectors > kMost || block.begin >= block.end) return false;
      lanes = total - (vectors - 1) * N;
      for (int v = 0; v < vectors; ++v) {
        S f[N], t[N];
        for (int l = 0; l < N; ++l) {
          int m = v * N + l, w = m / c;
          f[l] = (S)(m < total ? w / kw * c + m % c : 0);
          t[l] = (S)(w % kw);
        }
        memcpy(&from[v], f, sizeof f);
        memcpy(&tap[v], t, sizeof t);
      }
      return true;
    }
  };
  // Blocks of dy from pixel j on, as many as fit before `end` (the last may overlap the one
  // before); to: the row of dx at the first. base: the tap of the row's first column.
  template <bool MAX, int M>
  static __attribute__((noinline)) void spread_row(const Spread& s, const Block& block, Way way,
                                                   int64_t c, int kw, int64_t count, const T* dy,
                                                   const uint8_t* index, T* to, int base, T inv) {
    const int n = block.lanes, pixels = block.pixels, lanes = s.lanes;
    I from[M], tap[M];
#pragma GCC unroll 4
    for (int v = 0; v < M; ++v) {
      from[v] = s.from[v];
      tap[v] = s.tap[v] + set1((S)base);
    }
    const bool past = way == kPast && n == N && lanes == N && count % pixels == 0 &&
                      ((uintptr_t)to & (GS_VBYTES - 1)) == 0;
    for (int64_t j = 0; j < count; j += pixels) {
      if (j + pixels > count) j = count - pixels;
      const T* d = dy + j * c;
      T* out = to + j * kw * c;
      fetch(d);
      V g = n == N ? load(d) : load_n(d, n);
      I at = {};
      if (MAX)
        at = n == N ? get_index<T, true>(index + j * c, N) : get_index<T, false>(index + j * c, n);
      else
        g *= set1(inv);
#pragma GCC unroll 4
      for (int v = 0; v < M; ++v) {
        V e = pick(g, from[v]);
        if (MAX) e = pick(at, from[v]) == tap[v] ? e : V{};
        if (past)
          write<true>(out + v * N, e);
        else if (v < M - 1 || lanes == N)
          store(out + v * N, e);
        else
          store_n(out + v * N, e, lanes);
        if (way == kOwn) own(out + v * N, kOwnAhead);
      }
    }
  }
  template <bool MAX>
  static __attribute__((noinline)) void tile_row(const Geometry& g, const Block* block,
                                                 const Spread* spread, Way way, bool same,
                                                 const T* dy, const uint8_t* index, T* dx,
                                                 int64_t i) {
    const PoolParams& p = g.p;
    const int64_t line = p.w * p.c, c = p.c;
    const int a0 = g.y.first[i], a1 = g.y.last[i], kw = (int)p.kw;
    const T one = MAX ? (T)0 : 1 / divisor(g, i, 0);
    int64_t begin = 0, end = 0;  // columns of y that go by blocks
    if (spread && (MAX || same)) {
      begin = block->begin;
      end = block->end;
      const int64_t at = g.x.start[begin] * c, count = end - begin;
      for (int a = a0; a < a1; ++a) {
        T* to = dx + (g.y.start[i] + a) * line + at;
        const T* d = dy + begin * c;
        const uint8_t* ix = MAX ? index + begin * c : index;
        if (spread->vectors == 2)
          spread_row<MAX, 2>(*spread, *block, way, c, kw, count, d, ix, to, a * kw, one);
        else if (spread->vectors == 3)
          spread_row<MAX, 3>(*spread, *block, way, c, kw, count, d, ix, to, a * kw, one);
        else
          spread_row<MAX, 4>(*spread, *block, way, c, kw, count, d, ix, to, a * kw, one);
      }
    }
    const bool two = p.kh == 2 && kw == 2 && a0 == 0 && a1 == 2;
    if (way == kNear && two && c >= N && (MAX || same)) {
      begin = g.x.first[0] > 0;
      end = p.ow - (g.x.last[p.ow - 1] < 2);
      if (begin < end)
        tile_near<MAX>(dy + begin * c, MAX ? index + begin * c : index,
                       dx + g.y.start[i] * line + g.x.start[begin] * c, end - begin, c, line, one);
    }
    for (int64_t j = 0; j < p.ow; ++j) {
      if (j == begin && begin < end) j = end;
      if (j >= p.ow) break;
      int b0 = g.x.first[j], b1 = g.x.last[j];
      const uint8_t* ix = MAX ? index + j * c : (const uint8_t*)dx;
      T* out = dx + (int64_t)g.y.start[i] * line + (int64_t)g.x.start[j] * c;
      const T inv = MAX || same ? one : 1 / divisor(g, i, j);
      if (two && b0 == 0 && b1 == 2)
        tile_window<2, MAX>(way, dy + j * c, ix, out, c, line, c, a0, a1, b0, b1, 2, inv);
      else
        tile_window<0, MAX>(way, dy + j * c, ix, out, c, line, c, a0, a1, b0, b1, kw, inv);
    }
    // what no window covers: columns at the right, rows at the bottom
    int64_t right = g.x.start[p.ow - 1] + g.x.last[p.ow - 1], bottom = g.y.start[i] + a1;
    if (right < p.w)
      for (int64_t r = g.y.start[i] + a0; r < bottom; ++r)
        memset(dx + r * line + right * p.c, 0, (size_t)((p.w - right) * p.c) * sizeof(T));
    if (i == p.oh - 1 && bottom < p.h)
      memset(dx + bottom * line, 0, (size_t)((p.h - bottom) * line) * sizeof(T));
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
