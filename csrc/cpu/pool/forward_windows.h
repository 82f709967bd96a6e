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
  using Base::kFast;
  using Base::load_place;
  using Base::N;
  using Base::place;
  using Base::store_place;
  using typename Base::I;
  using typename Base::P;
  using typename Base::S;
  using typename Base::V;
  using U = typename std::conditional<kBytes, uint8_t, S>::type;  // of P
  static constexpr int64_t kSlots = 8192 / GS_VBYTES;

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
  static GS_MEMBER I wide(I at) { return at; }
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  static GS_MEMBER I wide(typename Base::Bytes at) { return (I)_mm512_cvtepu8_epi32((__m128i)at); }
#endif
  // Maxima of any window and their places, of type Q, where no tap is NaN: of B vectors of
  // channels, from their first tap on. Whether a tap may be NaN. A sum a vector: one for all would
  // be the longest chain.
  template <class Q, int B, bool FULL>
  static GS_MEMBER bool max_taps(const T* x, int64_t ls, int64_t ps, int a0, int a1, int b0, int b1,
                                 int kw, V* best, I* places, int n) {
    constexpr bool bytes = !std::is_same<Q, I>::value;
    using E = typename std::conditional<bytes, uint8_t, S>::type;
    V odd[B] = {};
    Q at[B];
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) at[v] = Q{} + (E)(a0 * kw + b0);
    for (int a = a0; a < a1; ++a) {
      const T* r = x + a * ls + b0 * ps;
      Q tap = Q{} + (E)(a * kw + b0);
      for (int b = b0; b < b1; ++b, r += ps, tap += (E)1)
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) {
          const V e = FULL ? load_once(r + v * N) : get<FULL>(r + v * N, n);
          odd[v] += e;
          if constexpr (bytes)
            reach(e, tap, best[v], at[v]);
          else
            take_number<T>(e, tap, best[v], at[v]);
        }
    }
    V all = odd[0];
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      if (v) all += odd[v];
      places[v] = wide(at[v]);
    }
    return any_nan(all);
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
      using Q = typename std::conditional<sizeof(IX) == 1, P, I>::type;
      const bool nan = max_taps<Q, B, FULL>(x, ls, ps, a0, a1, b0, b1, (int)kw, best, at, n);
      // infinities of both signs look like a NaN
      if (__builtin_expect(nan, 0)) {
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) {
          best[v] = get<FULL>(q + v * N, n);
          at[v] = set1((S)(a0 * kw + b0));
        }
        for (int a = a0; a < a1; ++a)
          for (int b = b0; b < b1; ++b)
#pragma GCC unroll 4
            for (int v = 0; v < B; ++v)
              take<T>(get<FULL>(x + a * ls + b * ps + v * N, n), set1((S)(a * kw + b)), best[v],
                      at[v]);
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
  // Taps of one row of a window and of the rows before it, of which the maxima are kept aside: B
  // vectors. Sums of all taps are added to odd.
  template <int B>
  static GS_MEMBER void max_stretch(const T* x, int64_t ps, int taps, int tap, bool first,
                                    bool last, V* value, P* from, Way way, T* y, uint8_t* index,
                                    V* odd) {
    V best[B], sum[B];
    P at[B], here = place(tap);
    if (first) {
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) {
        best[v] = sum[v] = load(x + v * N);
        at[v] = here;
      }
      x += ps;
      here += (U)1;
      --taps;
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) {
        best[v] = value[v];
        at[v] = from[v];
        sum[v] = V{};
      }
    }
    auto one = [&]() __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) {
        const V e = load_once(x + v * N);
        __builtin_prefetch((const char*)(x + v * N) + 2 * kAhead);
        sum[v] += e;
        reach(e, here, best[v], at[v]);
      }
      x += ps;
      here += (U)1;
    };
    if (B == 4 && taps == 4)
      one(), one(), one(), one();
    else
      for (; taps > 0; --taps) one();
    *odd += B == 4 ? (sum[0] + sum[B / 4]) + (sum[B / 2] + sum[B - 1]) : sum[0];
    if (last) {
      Base::template put_all<B>(way, y, best);
      if (index)
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) store_place(index + v * N, at[v]);
    } else {
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) {
        value[v] = best[v];
        from[v] = at[v];
      }
    }
  }
  // One row of all windows from .. to, which begins at x; tap: its first; y and index: of window 0.
  // The sum of all taps.
  static __attribute__((noinline)) V max_stretches(const Axis& wide, int64_t from, int64_t to,
                                                   int64_t c, const T* x, int tap, bool first,
                                                   bool last, V* value, P* places, Way way, T* y,
                                                   uint8_t* index) {
    V odd = {};
    for (; from < to; ++from) {
      const int b0 = wide.first[from], taps = wide.last[from] - b0;
      const T* r = x + (wide.start[from] + b0) * c;
      T* out = y + from * c;
      uint8_t* ix = index ? index + from * c : index;
      int64_t k = 0;
      for (; k + 4 * N <= c; k += 4 * N, value += 4, places += 4)
        max_stretch<4>(r + k, c, taps, tap + b0, first, last, value, places, way, out + k,
                       ix ? ix + k : ix, &odd);
      for (; k < c; k += N, ++value, ++places) {
        if (k + N > c) k = c - N;
        max_stretch<1>(r + k, c, taps, tap + b0, first, last, value, places, way, out + k,
                       ix ? ix + k : ix, &odd);
      }
    }
    return odd;
  }
  // Columns from .. to of row i of y, no ReLU: one row of x after the other, as memory has them,
  // with the maxima of the rows before kept aside. Windows of 4 x 4 one by one read four streams,
  // which is slower past the second cache (Zen 5: 1.2x in all, adaptive ones 1.2-1.3x).
  static __attribute__((noinline)) void max_by_rows(const Geometry& g, Way way, const T* x,
                                                    int64_t i, T* y, uint8_t* index, int64_t from,
                                                    int64_t to) {
    const PoolParams& p = g.p;
    const int64_t c = p.c, line = p.w * c, most = kSlots / ((c + N - 1) / N);
    const int a0 = g.y.first[i], a1 = g.y.last[i];
    V value[kSlots];
    P places[kSlots];
    x += g.y.start[i] * line;
    for (int64_t end; from < to; from = end) {
      end = from + most < to ? from + most : to;
      V odd = {};
      for (int a = a0; a < a1; ++a)
        odd += max_stretches(g.x, from, end, c, x + a * line, (int)(a * p.kw), a == a0, a == a1 - 1,
                             value, places, way, y, index);
      // infinities of both signs look like a NaN
      if (__builtin_expect(any_nan(odd), 0))
        for (int64_t j = from; j < end; ++j)
          max_window(x + g.x.start[j] * c, c, line, c, a0, a1, g.x.first[j], g.x.last[j], p.kw,
                     -(T)__builtin_inf(), 0, way, y + j * c, index ? index + j * c : index);
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
    if constexpr (kFast && K == 0 && sizeof(IX) == 1)
      if (p.dh == 1 && p.dw == 1 && (p.sw > 1 || begin >= end) && p.c >= N && p.c <= kSlots * N &&
          !none)
        return max_by_rows(g, way, x, i, y, index, from, to);
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
        if constexpr (K == 2 && sizeof(IX) == 1)
          if (c >= N && c <= kAside && !none &&
              !max_pairs(q, windows, p.sw * p.c, c, ls, ps, Base::ahead_far(p), way, out, ix))
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
