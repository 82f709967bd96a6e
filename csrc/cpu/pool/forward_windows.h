// Maxima of windows, vectors over the channels: of one window or of several side by side, 2 x 2 by
// pairs of columns.
#pragma once
#include "pool/windows.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct WindowMaxima : Lanes<T> {
  using Base = Lanes<T>;
  using Base::kBytes;
  using Base::load_place;
  using Base::N;
  using Base::place;
  using Base::store_place;
  using typename Base::I;
  using typename Base::P;
  using typename Base::S;
  using typename Base::V;

  // best = x and at = tap where x is larger, neither being NaN
  static GS_MEMBER void reach(V x, P tap, V& best, P& at) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (kBytes) {
      const __mmask16 m = _mm512_cmp_ps_mask((__m512)x, (__m512)best, _CMP_GT_OQ);
      best = max(x, best);
      at = (P)_mm_mask_mov_epi8((__m128i)at, m, (__m128i)tap);
      return;
    }
#endif
    if constexpr (!kBytes) take_number<T>(x, tap, best, at);
  }
  // Makes a lane of odd NaN where one of a or b is (and seldom else).
  static GS_MEMBER void note(V a, V b, V* odd) {
#if defined(__AVX512F__)
    // a mask GCC would keep in memory
    const V nan = set1((T)__builtin_nan(""));
    if constexpr (sizeof(T) == 4) {
      const __mmask16 m = _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q);
      *odd = (V)_mm512_mask_mov_ps((__m512)*odd, m, (__m512)nan);
    } else {
      const __mmask8 m = _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_UNORD_Q);
      *odd = (V)_mm512_mask_mov_pd((__m512d)*odd, m, (__m512d)nan);
    }
#else
    *odd = fma(a, b, *odd);
#endif
  }
  // B vectors of channels of one window; x: tap (0, 0) of the window; strides ls (line), ps (pixel)
  template <int KH, int KW, int B, bool FULL, class IX>
  static GS_MEMBER void max_vec(const T* x, int64_t ls, int64_t ps, int a0, int a1, int b0, int b1,
                                int64_t kw, T low, int none, Way way, T* y, IX* index, int n) {
    V best[B], floor = set1(low);
    I at[B];
    const T* q = x + a0 * ls + b0 * ps;
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      best[v] = get<FULL>(q + v * N, n);
      at[v] = set1((S)(a0 * kw + b0));
    }
    if (KH) {
      // NaN where a tap is (and seldom else): products of two and the first, added up
      V test = best[0];
#pragma GCC unroll 3
      for (int a = 0; a < KH; ++a)
#pragma GCC unroll 3
        for (int b = 0; b < KW; ++b) {
          if (KH == 2) fetch(x + a * ls + b * ps);
          V e = get<FULL>(x + a * ls + b * ps, n);
          const I tap = set1((S)(a * KW + b));
          if (!a && !b) continue;
          if (KH == 2)
            take<T>(e, tap, best[0], at[0]);
          else
            take_number<T>(e, tap, best[0], at[0]);
          if (KH == 3 && (a * KW + b) % 2)
            test = fma(e, get<FULL>(x + (a * KW + b + 1) / KW * ls + (a * KW + b + 1) % KW * ps, n),
                       test);
        }
      if (KH == 3 && __builtin_expect(any_nan(test), 0)) {
        best[0] = get<FULL>(x, n);
        at[0] = I{};
        for (int a = 0; a < KH; ++a)
          for (int b = 0; b < KW; ++b)
            if (a || b)
              take<T>(get<FULL>(x + a * ls + b * ps, n), set1((S)(a * KW + b)), best[0], at[0]);
      }
    } else {
      auto all = [&](auto number) __attribute__((always_inline)) {
        V odd = {};
        for (int a = a0; a < a1; ++a)
          for (int b = b0; b < b1; ++b) {
            const I tap = set1((S)(a * kw + b));
#pragma GCC unroll 4
            for (int v = 0; v < B; ++v) {
              const T* r = x + a * ls + b * ps + v * N;
              if constexpr (decltype(number)::value) {
                const V e = FULL ? load_once(r) : get<FULL>(r, n);
                odd += e;
                take_number<T>(e, tap, best[v], at[v]);
              } else {
                take<T>(get<FULL>(r, n), tap, best[v], at[v]);
              }
            }
          }
        return odd;
      };
      // infinities of both signs look like a NaN
      if (__builtin_expect(any_nan(all(std::true_type())), 0)) {
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) {
          best[v] = get<FULL>(q + v * N, n);
          at[v] = set1((S)(a0 * kw + b0));
        }
        all(std::false_type());
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      if (none) {  // the maximum of ReLU is that of x, or the first zero, which has its own sign
        auto dead = best[v] <= floor;
        at[v] = dead ? set1((S)none) : at[v];
        best[v] = dead ? max(floor, get<FULL>(q + v * N, n)) : best[v];
      }
      put<FULL>(way, y + v * N, best[v], n);
      if (index) put_index<T, FULL>(index + v * N, at[v], n);
    }
  }
  // One window, or several side by side at stride 1, whose c elements then are those of all. A rest
  // that is no vector is computed with elements before it.
  template <class IX>
  static __attribute__((noinline)) void max_window(const T* x, int64_t c, int64_t ls, int64_t ps,
                                                   int a0, int a1, int b0, int b1, int64_t kw,
                                                   T low, int none, Way way, T* y, IX* index) {
    int64_t j = 0;
    for (; j + 4 * N <= c; j += 4 * N)
      max_vec<0, 0, 4, true>(x + j, ls, ps, a0, a1, b0, b1, kw, low, none, way, y + j,
                             index ? index + j : index, N);
    for (; j < c; j += N) {
      if (j + N > c) {
        if (c < N)
          return max_vec<0, 0, 1, false>(x, ls, ps, a0, a1, b0, b1, kw, low, none, way, y, index,
                                         (int)c);
        j = c - N;
      }
      max_vec<0, 0, 1, true>(x + j, ls, ps, a0, a1, b0, b1, kw, low, none, way, y + j,
                             index ? index + j : index, N);
    }
  }
  // `windows` whole ones of 2 x 2 taps, `step` elements apart; c >= N, no ReLU. One row of x after
  // the other, with the maxima of the first kept aside: of both at once these cores take 2.6 cycles
  // a vector from the second cache, one after the other 1.9 (Zen 5). Whether there is a NaN, which
  // this does not handle. Aligned, since where its short loops lie is worth 6 %.
  static constexpr int64_t kAside = 8192 / (int64_t)sizeof(T);
  static __attribute__((noinline, aligned(64))) bool max_pairs(const T* x, int64_t windows,
                                                               int64_t step, int64_t c, int64_t ls,
                                                               int64_t ps, int64_t ahead, Way way,
                                                               T* y, uint8_t* index) {
    alignas(64) T values[kAside + N];
    alignas(64) uint8_t places[kAside + N];
    V odd = {};
    const int64_t most = kAside / c;
    for (int64_t n; windows > 0; windows -= n, x += n * step, y += n * c) {
      n = windows < most ? windows : most;
      const T* r = x;
      for (int64_t j = 0, o = 0; j < n; ++j, r += step, o += c)
        for (int64_t k = 0; k < c; k += N) {
          if (k + N > c) k = c - N;
          if (ahead) {
            __builtin_prefetch(r + k + ahead);
            __builtin_prefetch(r + k + ahead + ps);
          }
          V h = load(r + k);
          P at = place(0);
          const V e = load(r + k + ps);
          note(h, e, &odd);
          reach(e, place(1), h, at);
          store(values + o + k, h);
          store_place(places + o + k, at);
        }
      // without an index what is there is not needed any more
      uint8_t* to = index ? index : places;
      r = x + ls;
      for (int64_t j = 0, o = 0; j < n; ++j, r += step, o += c)
        for (int64_t k = 0; k < c; k += N) {
          if (k + N > c) k = c - N;
          if (ahead) {
            __builtin_prefetch(r + k + ahead);
            __builtin_prefetch(r + k + ahead + ps);
          }
          V h = load(r + k);
          P at = place(2);
          const V e = load(r + k + ps);
          note(h, e, &odd);
          reach(e, place(3), h, at);
          V best = load(values + o + k);
          P from = load_place(places + o + k);
          reach(h, at, best, from);
          put<true>(way, y + o + k, best, N);
          store_place(to + o + k, from);
        }
      index += index ? n * c : 0;
    }
    return any_nan(odd);
  }
  // `windows` whole ones of K x K taps, `step` elements apart
  template <int K, class IX>
  static __attribute__((noinline)) void max_whole(const T* x, int64_t windows, int64_t step,
                                                  int64_t c, int64_t ls, int64_t ps, T low,
                                                  int none, Way way, T* y, IX* index) {
    for (; windows > 0; --windows, x += step, y += c, index += index ? c : 0) {
      if (c < N) {
        max_vec<K, K, 1, false>(x, ls, ps, 0, K, 0, K, K, low, none, way, y, index, (int)c);
        continue;
      }
      for (int64_t j = 0; j < c; j += N) {
        if (j + N > c) j = c - N;
        max_vec<K, K, 1, true>(x + j, ls, ps, 0, K, 0, K, K, low, none, way, y + j,
                               index ? index + j : index, N);
      }
    }
  }
  // Columns from .. to of row i of y, which begins at y; begin .. end: columns whose windows lie
  // inside the rows of x.
  template <int K, class IX>
  static void max_row(const Geometry& g, Way way, int64_t begin, int64_t end, const T* x, int64_t i,
                      T* y, IX* index, int64_t from, int64_t to) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c, ls = p.dh * line, ps = p.dw * p.c;
    int a0 = g.y.first[i], a1 = g.y.last[i];
    T low = p.relu ? (T)0 : -(T)__builtin_inf();
    int none = p.relu ? (int)(p.kh * p.kw) : 0;
    const bool whole = K && a0 == 0 && a1 == K;
    for (int64_t j = from; j < to; ++j) {
      int b0 = g.x.first[j], b1 = g.x.last[j];
      const T* q = x + (int64_t)g.y.start[i] * line + (int64_t)g.x.start[j] * p.c;
      T* out = y + j * p.c;
      IX* ix = index ? index + j * p.c : index;
      int64_t c = p.c, windows = 1;
      if (j == begin && begin < end && (whole || p.sw == 1)) {
        (p.sw == 1 ? c : windows) *= end - begin;
        j = end - 1;
      }
      if (a0 == a1 || b0 == b1) {
        // every tap of a dilated window fell into the padding: no maximum, a tap that is none
        for (int64_t k = 0; k < c; ++k) {
          out[k] = -(T)__builtin_inf();
          if (ix) ix[k] = (IX)(p.kh * p.kw);
        }
        continue;
      }
      if (K && whole && b0 == 0 && b1 == K) {
        // what the second cache may hold is quick enough
        const int64_t ahead =
            p.n * p.h * line * (int64_t)sizeof(T) > p.holds / 16 ? Base::ahead(p) : 0;
        if constexpr (K == 2 && sizeof(IX) == 1)
          if (c >= N && c <= kAside && !none &&
              !max_pairs(q, windows, p.sw * p.c, c, ls, ps, ahead, way, out, ix))
            continue;
        max_whole<K>(q, windows, p.sw * p.c, c, ls, ps, low, none, way, out, ix);
      } else
        max_window(q, c, ls, ps, a0, a1, b0, b1, p.kw, low, none, way, out, ix);
    }
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
