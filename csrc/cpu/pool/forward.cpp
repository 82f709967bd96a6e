// Max and average pooling of channels-last images, regular and adaptive, see pool.h.
//
// x (n, h, w, c) to y (n, oh, ow, c) and, for max, the place of each maximum inside its window, a
// byte an element of y (PyTorch: 8 bytes). Vectors run over channels; a task is a run of rows, so
// neighbouring windows share the cache. The floor is memory: x once, y and the index once. Averages
// over 3 columns at stride 1 keep the sums of the last two columns in registers, 3 loads a vector
// in place of 9. Maxima of 3 x 3 windows at stride 1 walk down the rows of x with those of three
// columns of the last two rows in registers: 3 loads and 4 comparisons a vector in place of 9
// and 8. Larger windows that overlap, and all that overlap of few channels, go row by row of x:
// kw + kh comparisons in place of kw kh.
//
// With few channels (less than a vector) a vector holds a block of whole neighbouring pixels of y;
// the pixels of a tap come from two vectors of x by one permutation, which is the same for all
// blocks. Averages that do not fit (steps of more than two pixels, edges) are gathered.
#include "pool/windows.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct Forward : Lanes<T> {
  using typename Lanes<T>::V;
  using typename Lanes<T>::I;
  using typename Lanes<T>::S;
  using Lanes<T>::N;
  using Lanes<T>::kFew;
  using typename Lanes<T>::Block;
  using Lanes<T>::pick;
  using Lanes<T>::over;
  using Lanes<T>::divisor;
  using Lanes<T>::uniform;
  using Lanes<T>::slide_row;
  using Lanes<T>::slides;
  using Lanes<T>::each_row;
  using Lanes<T>::each_block;
  using Lanes<T>::kStrip;
  using Lanes<T>::kDeep;
  using Lanes<T>::walks;
  using Lanes<T>::bytes_in;
  using Lanes<T>::inside;
  using typename Lanes<T>::P;
  using Lanes<T>::kBytes;
  using Lanes<T>::place;
  using Lanes<T>::load_place;
  using Lanes<T>::store_place;

  // ---- forward, many channels
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
  // this does not handle.
  static constexpr int64_t kAside = 8192 / (int64_t)sizeof(T);
  static __attribute__((noinline)) bool max_pairs(const T* x, int64_t windows, int64_t step,
                                                  int64_t c, int64_t ls, int64_t ps, Way way, T* y,
                                                  uint8_t* index) {
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
  // Windows of 3 x 3 at stride 1: kStrip vectors of rows i .. i + count - 1 of y, at y; x: the
  // image at the first column of the first window. Whether a NaN was met, which this does not
  // handle: the first maximum of a row's three columns, then that of three rows is the first of
  // all.
  static GS_MEMBER bool max_strip(const Geometry& g, const T* x, int64_t i, int64_t count, int b0,
                                  int b1, Way way, T* y, uint8_t* index) {
    const PoolParams& p = g.p;
    const int64_t line = p.w * p.c, row = p.ow * p.c, c = p.c, high = p.h;
    V best[3][kStrip], test[kStrip] = {}, more[kStrip] = {};
    P at[3][kStrip];
    int64_t t = g.y.start[i];
    const T* q = x + t * line;
    for (int64_t k = -2; k < count; ++k, ++t, q += line) {
#pragma GCC unroll 2
      for (int v = 0; v < kStrip; ++v) {
#pragma GCC unroll 2
        for (int a = 0; a < 2; ++a) best[a][v] = best[a + 1][v], at[a][v] = at[a + 1][v];
        // a row outside: its tap is that of the first inside, should all of those be -inf
        best[2][v] = set1(-(T)__builtin_inf());
        at[2][v] = place(3);
      }
      if (t >= 0 && t < high)
#pragma GCC unroll 2
        for (int v = 0; v < kStrip; ++v) {
          const T* r = q + v * N;
          __builtin_prefetch(r + 2 * c + 2 * kStrip * N);
          const V e1 = load(r + c), e0 = b0 ? e1 : load(r);
          test[v] = fma(e0, e1, test[v]);
          best[2][v] = e0;
          at[2][v] = place(b0 ? 1 : 0);
          reach(e1, place(1), best[2][v], at[2][v]);
          if (b1 == 3) {
            const V e2 = load(r + 2 * c);
            more[v] += e2;
            reach(e2, place(2), best[2][v], at[2][v]);
          }
        }
      if (k < 0) continue;
#pragma GCC unroll 2
      for (int v = 0; v < kStrip; ++v) {
        V b = best[0][v];
        P tap = at[0][v];
        reach(best[1][v], at[1][v] + place(3), b, tap);
        reach(best[2][v], at[2][v] + place(6), b, tap);
        put<true>(way, y + v * N, b, N);
        if (index) store_place(index + v * N, tap);
      }
      y += row;
      index += index ? row : 0;
    }
    V all = test[0] + more[0];
    if (kStrip > 1) all += test[kStrip - 1] + more[kStrip - 1];
    return any_nan(all);
  }
  // Columns begin .. end of those rows, whose windows have the same columns inside
  static __attribute__((noinline)) void max_block(const Geometry& g, int64_t begin, int64_t end,
                                                  const T* x, int64_t i, int64_t count, Way way,
                                                  T* y, uint8_t* index) {
    const PoolParams& p = g.p;
    const int64_t n = (end - begin) * p.c, line = p.w * p.c, row = p.ow * p.c;
    const int b0 = g.x.first[begin], b1 = g.x.last[begin];
    y += begin * p.c;
    index += index ? begin * p.c : 0;
    for (int64_t k = 0; k < n; k += kStrip * N) {
      if (k + kStrip * N > n) k = n - kStrip * N;
      const T* q = x + g.x.start[begin] * p.c + k;
      uint8_t* ix = index ? index + k : index;
      if (__builtin_expect(max_strip(g, q, i, count, b0, b1, way, y + k, ix), 0))
        for (int64_t r = 0; r < count; ++r)
          max_window(q + g.y.start[i + r] * line, kStrip * N, line, p.c, g.y.first[i + r],
                     g.y.last[i + r], b0, b1, 3, -(T)__builtin_inf(), 0, way, y + r * row + k,
                     ix ? ix + r * row : ix);
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
        if constexpr (K == 2 && sizeof(IX) == 1)
          if (c >= N && c <= kAside && !none &&
              !max_pairs(q, windows, p.sw * p.c, c, ls, ps, way, out, ix))
            continue;
        max_whole<K>(q, windows, p.sw * p.c, c, ls, ps, low, none, way, out, ix);
      } else
        max_window(q, c, ls, ps, a0, a1, b0, b1, p.kw, low, none, way, out, ix);
    }
  }

  // ---- maxima row by row: of each row of x the maxima of the windows' columns are kept, in the
  // first cache, while windows reach into it. An element of y then costs kw + kh comparisons for
  // kw kh.
  struct Kept {
    static constexpr int kRows = 16;
    static constexpr int64_t kBytesMost = 40960, kBytesGood = 20480;
    int rows;        // that are kept at once
    bool few;        // a pixel is no vector: rows are taken as if -inf were around them
    int64_t pixels;  // of y a block
    bool whole;      // blocks begin and end where vectors of a row do
    int64_t stride;  // of the rows that are kept, elements
    Block block;     // windows of few channels that one vector takes, where those are not a run

    // Whether windows are to be computed so.
    GS_MEMBER bool init(const Geometry& g) {
      const PoolParams& p = g.p;
      const int64_t step = p.sh < p.kh ? p.sh : p.kh;
      few = p.c < N;
      if ((p.kh - 1) * p.dh >= kRows || p.index_bytes != 1) return false;
      if (p.relu && (p.dh > 1 || p.dw > 1)) return false;
      if (!few && (p.adaptive || step * (p.kw + 1) + p.kh + 1 >= p.kh * p.kw)) return false;
      rows = (int)((p.kh - 1) * p.dh + 1);
      const int64_t each = rows * (int64_t)(sizeof(T) + 1);
      // blocks of whole vectors where they can be
      pixels = p.ow;
      while (pixels > 1 && each * room(pixels * p.c) > kBytesGood)
        pixels = pixels > 32 ? pixels / 32 * 16 : pixels > 16 ? 16 : pixels / 2;
      whole = pixels == p.ow || pixels * p.c % N == 0;
      stride = room(pixels * p.c);
      block.init(g);
      return each * stride <= kBytesMost;
    }
    static GS_MEMBER int64_t room(int64_t n) { return (n + 3 * N - 1) / N * N; }
  };
  // The maxima of K columns, if K is not 0, else of b0 .. b1, `ps` apart, of B vectors. odd: NaN
  // where an element is.
  template <int K, int B>
  static GS_MEMBER void keep_vec(const T* x, int64_t line, int64_t ps, int b0, int b1, V* odd,
                                 T* value, uint8_t* places) {
    V best[B];
    P at[B];
    if (K) b0 = 0, b1 = K;
    x += b0 * ps;
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      __builtin_prefetch(x + line + v * N);  // the row that comes next
      best[v] = load(x + v * N);
      at[v] = place(b0);
      odd[v] += best[v];
    }
    auto column = [&](int b) __attribute__((always_inline)) {
      x += ps;
      const P here = place(b);
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) {
        const V e = load_once(x + v * N);
        odd[v] += e;
        reach(e, here, best[v], at[v]);
      }
    };
    if (K == 3)
      column(1), column(2);
    else
      for (int b = b0 + 1; b < b1; ++b) column(b);
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      store(value + v * N, best[v]);
      store_place(places + v * N, at[v]);
    }
  }
  // n >= N elements
  template <int K>
  static GS_MEMBER void keep_run(const T* x, int64_t line, int64_t n, int64_t ps, int b0, int b1,
                                 V* odd, T* value, uint8_t* places) {
    int64_t k = 0;
    for (; k + 4 * N <= n; k += 4 * N)
      keep_vec<K, 4>(x + k, line, ps, b0, b1, odd, value + k, places + k);
    for (; k < n; k += N) {
      if (k + N > n) k = n - N;
      keep_vec<K, 1>(x + k, line, ps, b0, b1, odd, value + k, places + k);
    }
  }
  // A row of y and the rows of maxima that it comes from.
  struct Stack {
    const T* value[Kept::kRows];         // rows a0 .. a1 of the windows
    const uint8_t* places[Kept::kRows];  // and the columns that they came from
    int a0, a1, kw;
    int none;  // with ReLU: the place of a maximum that is no more than zero
    Way way;
  };
  template <int K, int B>
  static GS_MEMBER void stack_vec(const Stack& s, T* y, uint8_t* index, int64_t k, V* least,
                                  int n = N) {
    V best[B];
    P at[B];
    const int a0 = K ? 0 : s.a0, a1 = K ? K : s.a1, kw = K ? K : s.kw;
    auto row = [&](int a) __attribute__((always_inline)) {
      const P base = place(a * kw);
      const T* from = s.value[a] + k;
      const uint8_t* ix = s.places[a] + k;
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) {
        const V e = load_once(from + v * N);
        const P here = load_place(ix + v * N) + base;
        if (a == a0)
          best[v] = e, at[v] = here;
        else
          reach(e, here, best[v], at[v]);
      }
    };
    row(a0);
    if (K == 3)
      row(1), row(2);
    else
      for (int a = a0 + 1; a < a1; ++a) row(a);
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      *least = min(*least, s.none ? abs(best[v]) : best[v]);
      if (s.none) reach(V{}, place(s.none), best[v], at[v]);
      if (n < N) {
        uint8_t places[N];
        store_n(y + k, best[v], n);
        store_place(places, at[v]);
        if (index) memcpy(index + k, places, (size_t)n);
        continue;
      }
      put<true>(s.way, y + k + v * N, best[v], N);
      if (index) store_place(index + k + v * N, at[v]);
    }
  }
  // n elements of y. Whether that went well: not where a maximum is -inf, which may be that of the
  // padding, or, with ReLU, zero, whose sign is the first tap's.
  static __attribute__((noinline)) bool stack(const Stack& all, T* y, uint8_t* index, int64_t n) {
    const Stack s = all;  // which no store of bytes can change
    const V inf = set1((T)__builtin_inf()), nan = set1((T)__builtin_nan(""));
    V least = inf;
    int64_t k = 0;
    if (s.a0 == 0 && s.a1 == 3 && s.kw == 3)
      for (; k + 4 * N <= n; k += 4 * N) stack_vec<3, 4>(s, y, index, k, &least);
    else
      for (; k + 4 * N <= n; k += 4 * N) stack_vec<0, 4>(s, y, index, k, &least);
    if (n < N) {
      stack_vec<0, 1>(s, y, index, 0, &least, (int)n);
      least = iota<T>() < set1((S)n) ? least : inf;
    }
    for (; k < n && n >= N; k += N) {
      if (k + N > n) k = n - N;
      stack_vec<0, 1>(s, y, index, k, &least);
    }
    return !any_nan(least > (s.none ? V{} : -inf) ? V{} : nan);
  }
  // Columns from .. to of a row of x. Whether that went well: not where there is a NaN.
  static __attribute__((noinline)) bool keep_row(const Geometry& g, const T* x, int64_t from,
                                                 int64_t to, T* value, uint8_t* places) {
    const PoolParams& p = g.p;
    const int64_t c = p.c, ps = p.dw * c;
    V odd[4] = {};
    bool well = true;
    for (int64_t j = from, e; j < to; j = e) {
      const int b0 = g.x.first[j], b1 = g.x.last[j];
      e = j + 1;
      if (p.sw == 1)
        while (e < to && g.x.first[e] == b0 && g.x.last[e] == b1) ++e;
      const T* q = x + g.x.start[j] * c;
      const int64_t k = (j - from) * c;
      if (b0 == b1)
        well = false;  // every tap of a dilated window fell into the padding
      else if (b0 == 0 && b1 == 3)
        keep_run<3>(q, p.w * c, (e - j) * c, ps, b0, b1, odd, value + k, places + k);
      else
        keep_run<0>(q, p.w * c, (e - j) * c, ps, b0, b1, odd, value + k, places + k);
    }
    return well && !any_nan((odd[0] + odd[1]) + (odd[2] + odd[3]));
  }
  // N elements of a row of x from `from` on, -inf where that is outside; end: its length
  static GS_MEMBER V lanes(const T* x, int64_t from, int64_t end) {
    const V low = set1(-(T)__builtin_inf());
    int64_t e = end - from < N ? end - from : N, b = from < 0 ? -from : 0;
    if (b >= e) return low;
#if defined(__AVX512F__)
    const uint32_t m = ((1u << e) - 1) & ~((1u << b) - 1);
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_mask_loadu_ps((__m512)low, (__mmask16)m, x + from);
    else
      return (V)_mm512_mask_loadu_pd((__m512d)low, (__mmask8)m, x + from);
#else
    T v[N];
    store(v, low);
    for (; b < e; ++b) v[b] = x[from + b];
    return load(v);
#endif
  }
  // One vector as by keep_vec, from `from` on, at an end of the row.
  static __attribute__((noinline)) void keep_end(const T* x, int64_t from, int64_t end, int64_t ps,
                                                 int kw, V* odd, T* value, uint8_t* places) {
    V best = lanes(x, from, end);
    P at = place(0);
    *odd += best;
    for (int b = 1; b < kw; ++b) {
      const V e = lanes(x, from + b * ps, end);
      *odd += e;
      reach(e, place(b), best, at);
    }
    store(value, best);
    store_place(places, at);
  }
  // The same for few channels, where vectors may begin and end anywhere in the row.
  static __attribute__((noinline)) bool keep_few(const Geometry& g, const Kept& kept, const T* x,
                                                 int64_t from, int64_t to, T* value,
                                                 uint8_t* places) {
    const PoolParams& p = g.p;
    const int64_t c = p.c, ps = p.dw * c, n = (to - from) * c, line = p.w * c;
    const int64_t wide = (p.kw - 1) * ps + N;
    const int kw = (int)p.kw;
    int64_t q = g.x.start[from] * c, k = 0;
    V odd[4] = {};
    if (p.sw == 1 && !p.adaptive) {
      const int64_t most = line - wide + N - q, end = most < n ? most : n;
      while (k < n) {
        if (q + k < 0 || k + N > end) {
          keep_end(x, q + k, line, ps, kw, odd, value + k, places + k);
          k += N;
          continue;
        }
        if (kw == 3)
          keep_run<3>(x + q + k, line, end - k, ps, 0, 3, odd, value + k, places + k);
        else
          keep_run<0>(x + q + k, line, end - k, ps, 0, kw, odd, value + k, places + k);
        k = end;
      }
    } else if (kept.block.pixels > 1 && !p.adaptive) {
      const int64_t lanes_ = kept.block.lanes, step = kept.block.pixels * p.sw * c;
      auto blocks = [&](int cols) __attribute__((always_inline)) {
        I at[3];
#pragma GCC unroll 3
        for (int b = 0; b < 3; ++b) at[b] = kept.block.at + set1((S)(b * ps));
        for (; k < n; k += lanes_, q += step) {
          const bool all = q >= 0 && q + 2 * N <= line;
          const V left = all ? load(x + q) : lanes(x, q, line);
          const V right = all ? load(x + q + N) : lanes(x, q + N, line);
          note(left, right, odd);
          V h = pick(left, right, at[0]);
          P from = place(0);
#pragma GCC unroll 3
          for (int b = 1; b < cols; ++b)
            reach(pick(left, right, b < 3 ? at[b] : at[0] + set1((S)(b * ps))), place(b), h, from);
          store(value + k, h);
          store_place(places + k, from);
        }
      };
      if (kw == 3)
        blocks(3);
      else
        blocks(kw);
    } else {
      for (int64_t j = from; j < to; ++j, k += c) {
        const int most = p.adaptive ? g.x.last[j] : kw;
        q = g.x.start[j] * c;
        if (q >= 0 && q + (most - 1) * ps + N <= line)
          keep_vec<0, 1>(x + q, line, ps, 0, most, odd, value + k, places + k);
        else
          keep_end(x, q, line, ps, most, odd, value + k, places + k);
      }
    }
    return !any_nan((odd[0] + odd[1]) + (odd[2] + odd[3]));
  }
  // Rows i .. i + count - 1 of y of an image.
  static __attribute__((noinline)) void max_rows(const Geometry& g, const Kept& kept, Way way,
                                                 const T* x, int64_t i, int64_t count, T* y,
                                                 uint8_t* index) {
    const PoolParams& p = g.p;
    const int64_t line = p.w * p.c, row = p.ow * p.c;
    alignas(64) char keep[Kept::kBytesMost];
    T* values = (T*)keep;
    uint8_t* places = (uint8_t*)(values + kept.rows * kept.stride);
    Stack s;
    s.kw = (int)p.kw;
    s.none = p.relu ? (int)(p.kh * p.kw) : 0;
    s.way = way;
    for (int64_t from = 0, to; from < p.ow; from = to) {
      to = from + kept.pixels < p.ow ? from + kept.pixels : p.ow;
      bool well[Kept::kRows];
      int64_t next = 0;
      for (int64_t k = 0; k < count; ++k) {
        const int64_t start = g.y.start[i + k], a0 = g.y.first[i + k], a1 = g.y.last[i + k];
        T* out = y + k * row;
        uint8_t* ix = index ? index + k * row : index;
        if (next < start) next = start;
        for (; next <= start + (a1 - 1) * p.dh; ++next) {
          const int64_t slot = (uint32_t)next % (uint32_t)kept.rows;
          T* value = values + slot * kept.stride;
          uint8_t* at = places + slot * kept.stride;
          const T* r = x + next * line;
          well[slot] = kept.few ? keep_few(g, kept, r, from, to, value, at)
                                : keep_row(g, r, from, to, value, at);
        }
        s.a0 = (int)a0;
        s.a1 = (int)a1;
        bool fine = a0 < a1;
        for (int64_t t = a0; t < a1; ++t) {
          const int64_t slot = (uint32_t)(start + t * p.dh) % (uint32_t)kept.rows;
          s.value[t] = values + slot * kept.stride;
          s.places[t] = places + slot * kept.stride;
          fine = fine && well[slot];
        }
        if (!fine || !stack(s, out + from * p.c, ix ? ix + from * p.c : ix, (to - from) * p.c))
          max_row<0>(g, kPlain, 0, 0, x, i + k, out, ix, from, to);
      }
    }
  }

  // ---- maxima of K x K windows, K 2 or 3, two apart both ways: one row of x after the other. Each
  // gives the maxima of its windows' columns; those of a window's rows meet in the first cache.
  // With K 3 a window's last row is the first of the window below, so its maxima are kept and each
  // row of x is read once. FEW: a vector holds whole pixels of y, whose second and third columns
  // come from two vectors of x by one permutation each and the first from the third of the pixel
  // before.
  struct Pairs {
    int pixels;    // of a vector, few channels
    I at[2];       // of two vectors of x, the last two columns (K 2: both)
    I shift;       // of the third columns before and these, the first columns
    int64_t most;  // pixels of y that go down the rows together
    static constexpr int64_t kVectors = 8192 / GS_VBYTES;

    static GS_MEMBER bool fits(const PoolParams& p) {
      return !p.adaptive && p.index_bytes == 1 && p.sh == 2 && p.sw == 2 && p.kh == p.kw &&
             (p.kh == 2 || p.kh == 3) && p.dh == 1 && p.dw == 1 && p.ph <= p.kh - 2 &&
             p.pw <= p.kw - 2 && p.w >= p.kw && p.c <= kVectors * N;
    }
    GS_MEMBER void init(const PoolParams& p) {
      const int c = (int)p.c;
      pixels = c < N ? N / c : 1;
      const int lanes = pixels * c;
      S a[N], b[N], m[N];
      for (int l = 0; l < N && c < N; ++l) {
        const int k = l < lanes ? l : 0;
        a[l] = (S)(k / c * 2 * c + k % c);
        b[l] = a[l] + (S)c;
        m[l] = (S)(k < c ? lanes - c + k : N + k - c);
      }
      if (c < N) {
        memcpy(&at[0], a, sizeof a);
        memcpy(&at[1], b, sizeof b);
        memcpy(&shift, m, sizeof m);
      }
      most = c < N ? kVectors * pixels : kVectors / ((c + N - 1) / N);
    }
  };
  // The maxima of the columns of windows from .. to in a row of x: f(its place in
  // the cache, in y, maxima, columns).
  // ROWS: of x, two for windows of 2 x 2. room: elements of x from there on; spill: whether
  // more may be written, behind the last element of y.
  template <int K, bool FEW, int ROWS, class F>
  static GS_MEMBER void pair_columns(const Geometry& g, const Pairs& s, const T* x, int64_t room,
                                     int64_t from, int64_t to, bool spill, V* odd, F f) {
    const PoolParams& p = g.p;
    const int64_t c = p.c, line = p.w * c;
    const V low = set1(-(T)__builtin_inf());
    V other = {};
    int64_t o = 0;
    if (FEW) {
      const int64_t step = 2 * s.pixels * c, wide = s.pixels * c, n = (to - from) * c;
      int64_t q = (2 * from - p.pw + (K == 3 ? 1 : 0)) * c, k = 0;
      const I first = s.at[0], second = s.at[1], shift = s.shift;
      V before = K == 3 ? lanes(x, q - wide, line) : low;
      auto block = [&](auto get, auto whole) __attribute__((always_inline)) {
        V h = {};
        P at = place(0);
#pragma GCC unroll 2
        for (int a = 0; a < ROWS; ++a) {
          const V left = get(x + a * line, q), right = get(x + a * line, q + Lanes<T>::N);
          *odd += left;
          other += right;
          const V e1 = pick(left, right, first), e2 = pick(left, right, second);
          if (K == 3) {
            h = pick(before, e2, shift);
            reach(e1, place(1), h, at);
            before = e2;
          } else if (a) {
            reach(e1, place(2), h, at);
          } else {
            h = e1;
          }
          reach(e2, place(K - 1 + 2 * a), h, at);
        }
        f(o, k, h, at, whole);
        o += Lanes<T>::N;
        k += wide;
        q += step;
      };
      // Behind the row is the next one: where no window ends there, what lanes without a window
      // find does no harm.
      const int64_t last = (g.x.last[p.ow - 1] == K ? room : line) - 2 * N - q;
      int64_t end = spill ? n : n - N + 1;
      if (end > last / 2 + 1) end = last < 0 ? 0 : last / 2 + 1;
      while (k < n) {
        while (k < end)
          block(
              [](const T* r, int64_t i) __attribute__((always_inline)) { return load_once(r + i); },
              std::true_type());
        if (k < n)
          block(
              [=](const T* r, int64_t i)
                  __attribute__((always_inline)) { return lanes(r, i, line); },
              std::false_type());
      }
    } else {
      for (int64_t j = from; j < to; ++j) {
        const T* q = x + (2 * j - p.pw) * c;
        const int last = g.x.last[j];
        // first: the columns inside begin there
        auto pixel = [&](auto first) __attribute__((always_inline)) {
          for (int64_t k = 0; k < c; k += Lanes<T>::N) {
            if (k + Lanes<T>::N > c) k = c - Lanes<T>::N;
            V h = low;
            P at = place(0);
            if constexpr (decltype(first)::value == 0) {
              h = load_once(q + k);
              *odd += h;
            }
            if (last > 1) {
              const V e1 = load_once(q + k + c);
              other += e1;
              reach(e1, place(1), h, at);
            }
            if (K == 3 && last == K) {
              const V e2 = load_once(q + k + 2 * c);
              *odd += e2;
              reach(e2, place(2), h, at);
            }
            f(o, (j - from) * c + k, h, at, std::true_type());
            o += Lanes<T>::N;
          }
        };
        if (g.x.first[j] > 0)
          pixel(std::integral_constant<int, 1>());
        else
          pixel(std::integral_constant<int, 0>());
      }
    }
    *odd += other;
  }
  // The first n of the bytes that store_place writes.
  static GS_MEMBER void store_places(uint8_t* p, P at, int64_t n) {
    uint8_t all[N];
    store_place(all, at);
    const uint8_t* q = all;
#pragma GCC unroll 4
    for (int b = 8; b > 0; b /= 2)
      if (n & b) {
        memcpy(p, q, (size_t)b);
        p += b;
        q += b;
      }
  }
  // Rows i .. i + count - 1 of y of an image; limit: the end of x
  template <int K, bool FEW>
  static __attribute__((noinline)) void max_pair_rows(const Geometry& g, const Pairs& s, Way way,
                                                      const T* x, const T* limit, int64_t i,
                                                      int64_t count, T* y, uint8_t* index) {
    constexpr int64_t kRoom = Pairs::kVectors * N;
    const PoolParams& p = g.p;
    const int64_t c = p.c, line = p.w * c, row = p.ow * c, lanes_ = s.pixels * c;
    const int none = p.relu ? K * K : 0;
    const V inf = set1((T)__builtin_inf());
    alignas(64) T value[2][kRoom];
    alignas(64) uint8_t places[2][kRoom];
    const int64_t room = limit - x;
    for (int64_t from = 0, to; from < p.ow; from = to) {
      to = from + s.most < p.ow ? from + s.most : p.ow;
      bool known = false, kept = true;  // whether value[0] holds the first row, without a NaN
      for (int64_t r = 0; r < count; ++r) {
        int64_t t = g.y.start[i + r];
        T* out = y + r * row + from * c;
        uint8_t* ix = index ? index + r * row + from * c : index;
        V odd = {}, least = inf;
        // into the row below, whose turn is next
        const bool spill = s.most >= p.ow && r + 1 < count;
        // vector o of y
        auto emit = [&](int64_t k, V best, P at, auto whole) __attribute__((always_inline)) {
          V size = none ? abs(best) : best;
          if (none) reach(V{}, place(none), best, at);
          if constexpr (FEW && !decltype(whole)::value) {
            const int64_t rest = (to - from) * c - k;
            if (rest < Lanes<T>::N) {
              const int64_t n = rest < lanes_ ? rest : lanes_;
              least = min(least, iota<T>() < set1((S)n) ? size : inf);
              store_n(out + k, best, (int)n);
              if (ix) store_places(ix + k, at, n);
              return;
            }
          }
          put<true>(FEW ? kPlain : way, out + k, best, N);
          least = min(least, size);
          if (ix) store_place(ix + k, at);
        };
        bool fine = true;
        int slot = 0;
        if (K == 3) {
          if (!known) {
            V first = {};
            if (t >= 0)
              pair_columns<K, FEW, 1>(
                  g, s, x + t * line, room - t * line, from, to, false,
                  &first, [&](int64_t o, int64_t, V h, P at, auto) __attribute__((always_inline)) {
                    store(value[0] + o, h);
                    store_place(places[0] + o, at);
                  });
            else
              for (int64_t o = 0; o < kRoom; o += N) {
                store(value[0] + o, -inf);
                store_place(places[0] + o, place(0));
              }
            kept = !any_nan(first);
          }
          fine = kept;
          ++t;
        }
        // short rows both at once, as little as there is to gain by walking along one
        if (K == 2 && t + 1 < p.h && line * (int64_t)sizeof(T) < 1024) {
          pair_columns<K, FEW, K == 2 ? 2 : 1>(
              g, s, x + t * line, room - (t + 1) * line, from, to, spill,
              &odd, [&](int64_t, int64_t k, V h, P at, auto whole) __attribute__((always_inline)) {
                emit(k, h, at, whole);
              });
          fine = !any_nan(odd);
        } else {
          if (t < p.h) {
            slot = 1;
            pair_columns<K, FEW, 1>(
                g, s, x + t * line, room - t * line, from, to, false,
                &odd, [&](int64_t o, int64_t, V h, P at, auto) __attribute__((always_inline)) {
                  if (K == 3) {
                    V best = load(value[0] + o);
                    P tap = load_place(places[0] + o);
                    reach(h, at + place(K), best, tap);
                    h = best;
                    at = tap;
                  }
                  store(value[1] + o, h);
                  store_place(places[1] + o, at);
                });
            fine = fine && !any_nan(odd);
          }
          known = ++t < p.h;
          if (known) {
            odd = V{};
            pair_columns<K, FEW, 1>(
                g, s, x + t * line, room - t * line, from, to, spill, &odd,
                [&](int64_t o, int64_t k, V h, P at, auto whole) __attribute__((always_inline)) {
                  if (K == 3) {
                    store(value[0] + o, h);
                    store_place(places[0] + o, at);
                  }
                  V best = load(value[1] + o);
                  P tap = load_place(places[1] + o);
                  reach(h, at + place(K * (K - 1)), best, tap);
                  emit(k, best, tap, whole);
                });
            kept = !any_nan(odd);
            fine = fine && kept;
          } else {
            const T* v = value[slot];
            const uint8_t* q = places[slot];
            for (int64_t j = 0; j < to - from; j += s.pixels)
              for (int64_t k = 0; k < c; k += FEW ? c : N, v += N, q += N) {
                if (!FEW && k + N > c) k = c - N;
                emit(j * c + k, load(v), load_place(q), std::false_type());
              }
          }
        }
        if (!fine || any_nan(least > (none ? V{} : -inf) ? V{} : set1((T)__builtin_nan(""))))
          max_row<0>(g, kPlain, 0, 0, x, i + r, y + r * row, index ? index + r * row : index, from,
                     to);
      }
    }
  }

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
  template <int K>
  static void avg_row(const Geometry& g, Way way, bool same, int64_t begin, int64_t end, const T* x,
                      int64_t i, T* y) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c;
    int a0 = g.y.first[i], a1 = g.y.last[i];
    T div = divisor(g, i, 0), inv = 1 / div;
    const bool whole = K && a0 == 0 && a1 == K;
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

  // ---- forward, few channels: lanes over a row of y
  static GS_MEMBER V gather(const T* p, I at) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_i32gather_ps((__m512i)at, p, 4);
    else
      return (V)_mm512_i64gather_pd((__m512i)at, p, 8);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm256_i32gather_ps(p, (__m256i)at, 4);
    else
      return (V)_mm256_i64gather_pd(p, (__m256i)at, 8);
#endif
    S o[N];
    T v[N];
    memcpy(o, &at, sizeof o);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = p[o[i]];
    return load(v);
  }
  // averages of columns from .. to of row i of y, gathered; x, y: their image, row
  static __attribute__((noinline)) void few_gather(const Geometry& g, const T* x, int64_t i, T* y,
                                                   int64_t from, int64_t to) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c;
    for (int64_t j = from * p.c; j < to * p.c; j += N) {
      int n = to * p.c - j < N ? (int)(to * p.c - j) : N;
      I start = {}, first = {}, last = {}, wide = {};
      for (int l = 0, o = (int)(j / p.c), k = (int)(j % p.c); l < n; ++l) {
        start[l] = (S)(g.x.start[o] * p.c + k);
        first[l] = g.x.first[o];
        last[l] = g.x.last[o];
        wide[l] = p.include_pad ? g.x.size[o] : g.x.last[o] - g.x.first[o];
        if (++k == p.c) k = 0, ++o;
      }
      V all = {};
      for (int a = g.y.first[i]; a < g.y.last[i]; ++a) {
        const T* q = x + (g.y.start[i] + a * p.dh) * line;
        V sum = {};
        for (int b = 0; b < p.kw; ++b) {
          I tap = set1((S)b), in = (tap >= first) & (tap < last);
          I off = (start + set1((S)(b * p.dw * p.c))) & in;
          sum += in ? gather(q, off) : V{};
        }
        all += sum;
      }
      if (p.divisor != 0) {
        all /= set1((T)p.divisor);
      } else {
        T high = (T)(p.include_pad ? g.y.size[i] : g.y.last[i] - g.y.first[i]);
        all /= __builtin_convertvector(wide, V) * set1(high);
      }
      store_n(y + j, all, n);
    }
  }

  // Windows of many pixels: vectors run along their rows. A period of channels is `period` vectors,
  // lane l of vector v holds channel (v N + l) % c; at the end lanes of one channel are folded.
  static GS_MEMBER int period_of(int64_t c) {
    return c == 1 || c == 2 || c == 4 ? 4 : c == 6 ? 3 : (int)c;
  }
  template <bool MAX, class IX>
  static void few_wide(const Geometry& g, const T* x, int64_t i, T* y, IX* index) {
    const PoolParams& p = g.p;
    const int64_t line = p.w * p.c, c = p.c;
    const int a0 = g.y.first[i], a1 = g.y.last[i], m = period_of(c);
    const V low = set1(-(T)__builtin_inf());
    S offset[8 * N];
    for (int l = 0; l < m * N; ++l) offset[l] = (S)(l / c);
    for (int64_t j = 0; j < p.ow; ++j) {
      const int b0 = g.x.first[j], b1 = g.x.last[j];
      const T* q = x + (int64_t)g.y.start[i] * line + (int64_t)g.x.start[j] * c;
      const int64_t count = (b1 - b0) * c;
      V best[8], row[8];
      I at[8], pixel[8];
      for (int v = 0; v < m; ++v) {
        best[v] = MAX ? low : V{};
        memcpy(&pixel[v], offset + v * N, sizeof(I));
        at[v] = set1((S)-1);
      }
      for (int a = a0; a < a1; ++a) {
        const T* r = q + a * line + b0 * c;
        I first = set1((S)(a * p.kw + b0));
        if (!MAX)
          for (int v = 0; v < m; ++v) row[v] = V{};
        for (int64_t k = 0; k < count; k += m * N, first += set1((S)(m * N / c)))
          for (int v = 0; v < m; ++v) {
            const int64_t from = k + v * N;
            if (from + N <= count) {
              fetch(r + from);
              if (MAX)
                take<T>(load(r + from), first + pixel[v], best[v], at[v]);
              else
                row[v] += load(r + from);
            } else if (from < count) {
              const int n = (int)(count - from);
              V e = load_n(r + from, n);
              if (MAX)
                take<T>(iota<T>() < set1((S)n) ? e : low, first + pixel[v], best[v], at[v]);
              else
                row[v] += e;
            }
          }
        if (!MAX)
          for (int v = 0; v < m; ++v) best[v] += row[v];
      }
      T value[8 * N];
      S tap[8 * N];
      memcpy(value, best, (size_t)m * sizeof(V));
      memcpy(tap, at, (size_t)m * sizeof(I));
      const T div = MAX ? (T)1 : divisor(g, i, j);
      for (int64_t k = 0; k < c; ++k) {
        T b = value[k];
        S t = tap[k];
        for (int64_t l = k + c; l < m * N; l += c) {
          const T e = value[l];
          if (!MAX) {
            b += e;
          } else if (e != e ? b == b || tap[l] > t
                            : e > b || (e == b && tap[l] >= 0 && (t < 0 || tap[l] < t))) {
            b = e;
            t = tap[l];
          }
        }
        if (MAX) {
          if (t < 0) t = (S)(a0 * p.kw + b0);  // -inf all over: the first
          if (p.relu && b <= 0) {
            const T zero = q[a0 * line + b0 * c + k];
            b = 0 > zero ? 0 : zero;
            t = (S)(p.kh * p.kw);
          }
          if (index) index[j * c + k] = (IX)t;
        }
        y[j * c + k] = MAX ? b : b / div;
      }
    }
  }
  // One row of y; limit: the end of x. Maxima: of windows that all lie inside.
  template <bool MAX, class IX>
  static __attribute__((noinline)) void few_row(const Geometry& g, const Block& block, const T* x,
                                                const T* limit, int64_t i, T* y, IX* index) {
    const PoolParams& p = g.p;
    const int64_t line = p.w * p.c, c = p.c, step = p.dw * c;
    const int a0 = g.y.first[i], a1 = g.y.last[i], kw = (int)p.kw, n = block.lanes;
    int64_t done = 0, j = block.begin;
    if (a0 < a1 && block.begin < block.end) {
      const T high = (T)(p.include_pad ? g.y.size[i] : a1 - a0);
      const T* image = x + (g.y.start[i] + a0 * p.dh) * line;
      const T div = p.divisor != 0
                        ? (T)p.divisor
                        : (T)(p.include_pad ? g.x.size[block.begin] : (int32_t)kw) * high;
      const T inv = 1 / div;
      if (!MAX && j) few_gather(g, x, i, y, 0, j);
      // two vectors that may end behind x
      auto two = [=](const T* r, V* l, V* m) __attribute__((always_inline)) {
        const int64_t n = limit - r;
        *l = load_n(r, n < N ? (int)n : N);
        *m = load_n(r + N, n <= N ? 0 : n < 2 * N ? (int)(n - N) : N);
      };
      for (; j < block.end; j += block.pixels) {
        if (j + block.pixels > block.end) j = block.end - block.pixels;
        const T* q = image + g.x.start[j] * c;
        const int64_t rest = limit - (q + (a1 - a0 - 1) * p.dh * line);
        V best = {};
        I tap = {};
        // number: wrong where a tap is NaN, and then `test` is
        V test = {};
        auto all = [&](int rows, int cols, bool careful, bool number)
            __attribute__((always_inline)) {
          V left = {}, right = {}, before = {};
          best = V{};
#pragma GCC unroll 3
          for (int a = 0; a < rows; ++a) {
            const T* r = q + a * p.dh * line;
            fetch(r);
            fetch(r + N);
            V l, m;
            if (careful) {
              two(r, &l, &m);
            } else {
              l = load(r);
              m = load(r + N);
            }
            if (!MAX) {
              left += l;
              right += m;
              continue;
            }
            left = l;
            right = m;
#pragma GCC unroll 3
            for (int b = 0; b < cols; ++b) {
              V v = pick(left, right, block.at + set1((S)(b * step)));
              I here = set1((S)((a0 + a) * cols + b));
              // products of two
              const int t = a * cols + b;
              if (number && t && (t % 2 == 0 || t == rows * cols - 1))
                test = fma(t % 2 ? v : before, v, test);
              before = v;
              if (!a && !b) {
                best = v;
                if (number) test = v;
                tap = here;
              } else if (number) {
                take_number<T>(v, here, best, tap);
              } else {
                take<T>(v, here, best, tap);
              }
            }
          }
          if (!MAX)
#pragma GCC unroll 3
            for (int b = 0; b < cols; ++b)
              best += pick(left, right, block.at + set1((S)(b * step)));
        };
        if (rest < 2 * N)
          all(a1 - a0, kw, true, false);
        else if (a1 - a0 == 2 && kw == 2)
          all(2, 2, false, MAX);
        else if (a1 - a0 == 3 && kw == 3)
          all(3, 3, false, MAX);
        else
          all(a1 - a0, kw, false, false);
        if (MAX && __builtin_expect(any_nan(test), 0)) all(a1 - a0, kw, false, false);
        if (!MAX) {
          best = over(best, div, inv);
        } else if (p.relu) {
          auto dead = best <= V{};
          tap = dead ? set1((S)(p.kh * p.kw)) : tap;
          V l, m;
          two(q, &l, &m);
          best = dead ? max(V{}, pick(l, m, block.at)) : best;
        }
        if (n == N) {
          store(y + j * c, best);
          if (MAX && index) put_index<T, true>(index + j * c, tap, N);
        } else {
          store_n(y + j * c, best, n);
          if (MAX && index) put_index<T, false>(index + j * c, tap, n);
        }
        done = j + block.pixels;
      }
      if (!done) done = block.begin;
    }
    if (!MAX && done < p.ow) few_gather(g, x, i, y, done, p.ow);
  }

  // How windows are computed: vectors over the channels of one or, at stride 1, of all of columns
  // begin .. end, whose windows lie inside; few channels as blocks of pixels or along the rows of a
  // wide window.
  enum Kind { kChannels, kBlocks, kWide };
  static GS_MEMBER Kind kind_of(const Geometry& g, int64_t* begin, int64_t* end) {
    const PoolParams& p = g.p;
    inside(g, begin, end);
    if (p.c >= kFew || (p.sw == 1 && (*end - *begin) * p.c >= N)) return kChannels;
    const int64_t pixels = p.adaptive ? (p.h / p.oh) * (p.w / p.ow) : p.kh * p.kw;
    const int64_t period = period_of(p.c) * N;
    if (p.dh == 1 && p.dw == 1 && p.kw * p.c >= N && pixels * p.c >= 4 * period) return kWide;
    return kBlocks;
  }
  template <class IX>
  static void max_forward_ix(const Geometry& g, void* const* buf, const Ctx* ctx) {
    const PoolParams& p = g.p;
    const T* x = (const T*)buf[0];
    T* y = (T*)buf[1];
    IX* index = (IX*)buf[2];
    int64_t image = p.h * p.w * p.c, row = p.ow * p.c, begin, end;
    const bool dense = p.dh == 1 && p.dw == 1 && sizeof(IX) == 1;
    const Kind kind = kind_of(g, &begin, &end);
    const Way way =
        way_of(ctx, p.n * (image + p.oh * row) * (int64_t)sizeof(T), y, p.c * (int64_t)sizeof(T));
    if constexpr (sizeof(IX) == 1) {
      if (p.c >= kStrip * N && p.c % N == 0 && p.w > 1 && walks(p, begin, end) && !p.relu) {
        each_block(p.n * p.oh, p.oh, bytes_in(p), bytes_in(p) % 4096 ? kDeep : kDeep / 2, ctx,
                   [&](int64_t r, int64_t count) {
                     const T* from = x + r / p.oh * image;
                     uint8_t* ix = index ? index + r * row : index;
                     for (int64_t j = 0, e; j < p.ow; j = e) {
                       e = j == begin ? end : j + 1;
                       max_block(g, j, e, from, r % p.oh, count, way, y + r * row, ix);
                     }
                   });
        if (way == kPast) write_fence();
        return;
      }
      if (kind != kWide && Pairs::fits(p) && (p.c < N || (p.kh == 3 && p.c > N))) {
        Pairs pairs;
        pairs.init(p);
        each_block(p.n * p.oh, p.oh, bytes_in(p), p.oh, ctx, [&](int64_t r, int64_t count) {
          (p.c >= N    ? max_pair_rows<3, false>
           : p.kh == 3 ? max_pair_rows<3, true>
                       : max_pair_rows<2, true>)(g, pairs, way, x + r / p.oh * image,
                                                 x + p.n * image, r % p.oh, count, y + r * row,
                                                 index ? index + r * row : index);
        });
        if (way == kPast) write_fence();
        return;
      }
      Kept kept;
      // windows of few channels that do not overlap are faster one by one
      if (kind == kBlocks && p.kh <= p.sh && p.dh == 1 && p.ph == 0 && p.oh * p.sh <= p.h) {
        Block block;
        block.init(g);
        if (block.begin == 0 && block.end == p.ow && block.pixels > 1) {
          each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
            few_row<true>(g, block, x + r / p.oh * image, x + p.n * image, r % p.oh, y + r * row,
                          index ? index + r * row : index);
          });
          return;
        }
      }
      if (kind != kWide && kept.init(g)) {
        const Way flat = way_of(ctx, p.n * (image + p.oh * row) * (int64_t)sizeof(T), y,
                                (kept.whole ? row : 1) * (int64_t)sizeof(T));
        each_block(p.n * p.oh, p.oh, bytes_in(p), p.oh, ctx, [&](int64_t r, int64_t count) {
          max_rows(g, kept, flat, x + r / p.oh * image, r % p.oh, count, y + r * row,
                   index ? index + r * row : index);
        });
        if (flat == kPast) write_fence();
        return;
      }
    }
    each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
      const T* from = x + r / p.oh * image;
      const int64_t i = r % p.oh;
      IX* ix = index ? index + r * row : index;
      if (kind == kWide)
        few_wide<true>(g, from, i, y + r * row, ix);
      else if (dense && p.kh == 2 && p.kw == 2)
        max_row<2>(g, way, begin, end, from, i, y + r * row, ix, 0, p.ow);
      else if (dense && p.kh == 3 && p.kw == 3)
        max_row<3>(g, way, begin, end, from, i, y + r * row, ix, 0, p.ow);
      else
        max_row<0>(g, way, begin, end, from, i, y + r * row, ix, 0, p.ow);
    });
    if (way == kPast) write_fence();
  }
  static void max_forward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    if (g.p.index_bytes == 4)
      max_forward_ix<int32_t>(g, buf, ctx);
    else
      max_forward_ix<uint8_t>(g, buf, ctx);
  }
  static void avg_forward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    const PoolParams& p = g.p;
    const T* x = (const T*)buf[0];
    T* y = (T*)buf[1];
    int64_t image = p.h * p.w * p.c, row = p.ow * p.c, begin, end;
    const bool same = uniform(g);
    const Kind kind = kind_of(g, &begin, &end);
    const Way way =
        way_of(ctx, p.n * (image + p.oh * row) * (int64_t)sizeof(T), y, p.c * (int64_t)sizeof(T));
    Block block;
    if (kind == kBlocks) block.init(g);
    each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
      const T* from = x + r / p.oh * image;
      const int64_t i = r % p.oh;
      T* to = y + r * row;
      if (kind == kWide)
        few_wide<false, uint8_t>(g, from, i, to, nullptr);
      else if (kind == kBlocks)
        few_row<false, uint8_t>(g, block, from, x + p.n * image, i, to, nullptr);
      else if (slides(p) && p.c >= N)
        avg_slide_row(g, way, same, from, i, to);
      else if (p.kh == 2 && p.kw == 2)
        avg_row<2>(g, way, same, begin, end, from, i, to);
      else if (p.kh == 3 && p.kw == 3)
        avg_row<3>(g, way, same, begin, end, from, i, to);
      else
        avg_row<0>(g, way, same, begin, end, from, i, to);
    });
    if (way == kPast) write_fence();
  }
};

const KernelEntry entries[] = {
    {"max_pool", kF32, Forward<float>::max_forward, plan},
    {"max_pool", kF64, Forward<double>::max_forward, plan},
    {"avg_pool", kF32, Forward<float>::avg_forward, plan},
    {"avg_pool", kF64, Forward<double>::avg_forward, plan},
};

}  // namespace

extern const KernelList pool_forward_kernels;
const KernelList pool_forward_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
