// Gradients of maxima of any windows: each element of dx looks at the windows that hold it.
#pragma once
#include "pool/backward_tiles.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct Collected : Tiles<T> {
  using Base = Tiles<T>;
  using Base::kBytes;
  using Base::kFast;
  using Base::kLine;
  using Base::kStrip;
  using Base::load_place;
  using Base::N;
  using Base::place;
  using typename Base::I;
  using typename Base::P;
  using typename Base::S;
  using typename Base::V;

  // ---- backward, any windows: each element of dx collects from the windows that hold it
  // acc += d where the index says tap
  static GS_MEMBER V add_hit(V acc, V d, const uint8_t* index, S tap) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_mask_add_ps(
          (__m512)acc,
          _mm_cmpeq_epi8_mask(_mm_loadu_si128((const __m128i*)index), _mm_set1_epi8((char)tap)),
          (__m512)acc, (__m512)d);
#endif
    return acc + (get_index<T, true>(index, N) == set1(tap) ? d : V{});
  }
  static GS_MEMBER V add_hit(V acc, V d, const int32_t* index, S tap) {
    return acc + (get_index<T, true>(index, N) == set1(tap) ? d : V{});
  }
  // The windows that hold a row or a column of dx: `count` from `start` on, of the same pixel.
  struct Holders {
    const int32_t* start;
    int count, at, dilation;

    GS_MEMBER Holders(const Axis& x, int64_t i)
        : start(x.start + x.lo[i]),
          count(x.hi[i] - x.lo[i]),
          at((int)i),
          dilation((int)x.dilation) {}
    // the tap of window w that is this pixel, or -1
    GS_MEMBER int tap(int w) const {
      int a = at - start[w];
      if (dilation == 1) return a;
      return a % dilation ? -1 : a / dilation;
    }
  };
  // B vectors of channels of one pixel of dx, or of neighbouring pixels that all lie in the same
  // taps of windows one column on; dy and index: the first window; row: elements of a row of y
  template <int B, bool FULL, class IX>
  static GS_MEMBER void collect(const Holders& y, const Holders& x, int kw, int64_t row, int64_t c,
                                Way way, const T* dy, const IX* index, T* dx, int n) {
    V acc[B];
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) acc[v] = V{};
    for (int i = 0; i < y.count; ++i, dy += row, index += row) {
      const int a = y.tap(i);
      if (a < 0) continue;
      const T* d = dy;
      const IX* ix = index;
      for (int j = 0; j < x.count; ++j, d += c, ix += c) {
        const int b = x.tap(j);
        if (b < 0) continue;
        const S tap = (S)(a * kw + b);
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) {
          V e = get<FULL>(d + v * N, n);
          if (FULL)
            acc[v] = add_hit(acc[v], e, ix + v * N, tap);
          else
            acc[v] += get_index<T, false>(ix + v * N, n) == set1(tap) ? e : V{};
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) put<FULL>(way, dx + v * N, acc[v], n);
  }
  // c: channels, many: elements of all pixels
  template <class IX>
  static __attribute__((noinline)) void collect_pixel(const Holders& y, const Holders& x, int kw,
                                                      int64_t row, int64_t c, int64_t many, Way way,
                                                      const T* dy, const IX* index, T* dx) {
    int64_t k = 0;
    for (; k + 4 * N <= many; k += 4 * N)
      collect<4, true>(y, x, kw, row, c, way, dy + k, index + k, dx + k, N);
    for (; k < many; k += N) {
      if (k + N > many) {
        if (many < N) return collect<1, false>(y, x, kw, row, c, way, dy, index, dx, (int)many);
        k = many - N;
      }
      collect<1, true>(y, x, kw, row, c, way, dy + k, index + k, dx + k, N);
    }
  }
  // acc += d where index is tap
  static GS_MEMBER V add_equal(V acc, V d, P index, P tap) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (kBytes)
      return (V)_mm512_mask_add_ps((__m512)acc, _mm_cmpeq_epi8_mask((__m128i)index, (__m128i)tap),
                                   (__m512)acc, (__m512)d);
#endif
    if constexpr (!kBytes) return acc + (index == tap ? d : V{});
  }
  // What an index is compared as.
  template <class IX>
  using Places = typename std::conditional<sizeof(IX) == 1, P, I>::type;
  static GS_MEMBER P places_at(const uint8_t* index) { return load_place(index); }
  static GS_MEMBER I places_at(const int32_t* index) { return get_index<T, true>(index, N); }
  // d where index is tap, else zero
  template <class Q>
  static GS_MEMBER V only_at(V d, Q index, Q tap) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (!std::is_same<Q, I>::value)
      return (V)_mm512_maskz_mov_ps(_mm_cmpeq_epi8_mask((__m128i)index, (__m128i)tap), (__m512)d);
    else
#endif
      return index == tap ? d : V{};
  }
  // B vectors of `pixels` neighbours that lie in one window a row, of ROWS rows of windows; tap: of
  // the first. Then, if that `shares`, of `both` more that lie in the window after it too, from its
  // tap `next` on.
  template <int ROWS, class IX>
  static constexpr bool shares() {
    return kFast && ROWS == 1 && sizeof(IX) == 1;
  }
  template <int ROWS, int B, class IX>
  static GS_MEMBER void window_vec(Way way, const T* dy, const IX* index, int64_t row, int64_t c,
                                   const int* tap, int64_t pixels, int64_t both, int next, T* to) {
    using Q = Places<IX>;
    using E = typename std::conditional<std::is_same<Q, I>::value, S, uint8_t>::type;
    V d[ROWS][B], sum[B];
    Q at[ROWS][B], here[ROWS];
#pragma GCC unroll 2
    for (int i = 0; i < ROWS; ++i) {
      here[i] = Q{} + (E)tap[i];
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) {
        d[i][v] = load_once(dy + i * row + v * N);
        at[i][v] = places_at(index + i * row + v * N);
      }
    }
    for (const T* end = to + pixels * c; to < end; to += c) {
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) {
        sum[v] = only_at(d[0][v], at[0][v], here[0]);
        if (ROWS == 2) sum[v] += only_at(d[ROWS - 1][v], at[ROWS - 1][v], here[ROWS - 1]);
      }
      Base::template put_all<B>(way, to, sum);
#pragma GCC unroll 2
      for (int i = 0; i < ROWS; ++i) here[i] += (E)1;
    }
    if constexpr (shares<ROWS, IX>())
      for (int64_t q = 0; q < both; ++q, to += c) {
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) {
          sum[v] = add_equal(V{}, d[0][v], at[0][v], here[0]);
          sum[v] = add_hit(sum[v], load_once(dy + c + v * N), index + c + v * N, (S)(next + q));
        }
        Base::template put_all<B>(way, to, sum);
        here[0] += (E)1;
      }
  }
  template <int ROWS, class IX>
  static GS_MEMBER void window_run(Way way, const T* dy, const IX* index, int64_t row, int64_t c,
                                   const int* tap, int64_t pixels, int64_t both, int next, T* to) {
    int64_t k = 0;
    for (; k + 4 * N <= c; k += 4 * N)
      window_vec<ROWS, 4>(way, dy + k, index + k, row, c, tap, pixels, both, next, to + k);
    for (; k < c; k += N) {
      if (k + N > c) k = c - N;
      window_vec<ROWS, 1>(way, dy + k, index + k, row, c, tap, pixels, both, next, to + k);
    }
  }
  // A pixel that lies in two windows of each of ROWS rows; tap: of the first columns of windows; a,
  // b: its column in either
  template <int ROWS>
  static GS_MEMBER void two_windows(Way way, const T* dy, const uint8_t* index, int64_t row,
                                    int64_t c, const int* tap, int a, int b, T* to) {
    for (int64_t k = 0; k < c; k += N) {
      if (k + N > c) k = c - N;
      V sum = {};
#pragma GCC unroll 2
      for (int i = 0; i < ROWS; ++i) {
        const int64_t at = i * row + k;
        sum = add_hit(sum, load_once(dy + at), index + at, (S)(tap[i] + a));
        sum = add_hit(sum, load_once(dy + at + c), index + at + c, (S)(tap[i] + b));
      }
      put<true>(way, to + k, sum, N);
    }
  }
  // Columns from .. to of a row of dx that lies in ROWS rows of windows: pixels of one window at a
  // time, those of several one by one. tap: of the first column of windows; dy, index: the first
  // row of windows.
  template <int ROWS, class IX>
  static __attribute__((noinline)) void window_row(const Geometry& g, const Holders& y, Way way,
                                                   const T* dy, const IX* index, const int* tap,
                                                   int64_t from, int64_t to, T* dx) {
    const int64_t c = g.p.c, row = g.p.ow * c;
    for (int64_t w = from, end; w < to; w = end) {
      const int j = g.x.lo[w], many = g.x.hi[w] - j;
      const T* d = dy + j * c;
      const IX* ix = index + j * c;
      T* out = dx + w * c;
      const int at = (int)w - g.x.start[j];
      end = w + 1;
      if (many == 1) {
        const int64_t last = g.x.start[j] + g.x.last[j];
        int64_t both = 0;
        int next = 0;
        end = last;
        if (j + 1 < g.p.ow) {
          next = g.x.first[j + 1];
          const int64_t begin = g.x.start[j + 1] + next;
          if (begin < end) end = begin;
          both = last - end;
          if (both > 0 && j + 2 < g.p.ow && g.x.start[j + 2] + g.x.first[j + 2] < last) both = 0;
        }
        if (end + both > to || !shares<ROWS, IX>()) {
          both = 0;
          end = end < to ? end : to;
        }
        const int here[] = {tap[0] + at, tap[1] + at};
        window_run<ROWS>(way, d, ix, row, c, here, end - w, both, tap[0] + next, out);
        end += both;
        continue;
      }
      if constexpr (kFast && sizeof(IX) == 1)
        if (many == 2) {
          two_windows<ROWS>(way, d, ix, row, c, tap, at, (int)w - g.x.start[j + 1], out);
          continue;
        }
      collect_pixel(y, Holders(g.x, w), (int)g.p.kw, row, c, c, way, d, ix, out);
    }
  }
  template <int ROWS, int B>
  static GS_MEMBER void pair_vec(Way way, const T* dy, const uint8_t* index, int64_t row, int64_t c,
                                 const int* tap, T* to) {
    V one[B], two[B];
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      one[v] = two[v] = V{};
#pragma GCC unroll 2
      for (int i = 0; i < ROWS; ++i) {
        const T* d = dy + i * row + v * N;
        const uint8_t* ix = index + i * row + v * N;
        fetch(d);
        const V left = load_once(d), right = load_once(d + c);
        one[v] = add_hit(one[v], left, ix, (S)(tap[i] + 1));
        two[v] = add_hit(two[v], left, ix, (S)(tap[i] + 2));
        two[v] = add_hit(two[v], right, ix + c, (S)tap[i]);
      }
    }
    Base::template put_all<B>(way, to, one);
    Base::template put_all<B>(way, to + c, two);
  }
  // Windows of three columns, two apart: of two neighbouring pixels one lies in the middle of
  // window j, the other in its end and in the begin of the next. `pairs` of them from to on; d, ix:
  // window j of the first of ROWS rows of windows; tap: of its first column.
  // B vectors of channels side by side where there are so many.
  template <int ROWS, int B>
  static __attribute__((noinline)) void pair_row(Way way, const T* dy, const uint8_t* index,
                                                 int64_t row, int64_t c, const int* tap,
                                                 int64_t pairs, T* to) {
    for (; pairs > 0; --pairs, dy += c, index += c, to += 2 * c)
      for (int64_t k = 0; k < c;) {
        if (B > 1 && k + B * N <= c) {
          pair_vec<ROWS, B>(way, dy + k, index + k, row, c, tap, to + k);
          k += B * N;
          continue;
        }
        if (k + N > c) k = c - N;
        pair_vec<ROWS, 1>(way, dy + k, index + k, row, c, tap, to + k);
        k += N;
      }
  }
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
  // The same, float, where a pixel is M vectors and a half: a pair is whole vectors, whose middle
  // one has lanes of both pixels. An element lies as far behind the pair's begin as what it takes
  // lies behind the begin of the window (for the second pixel: of the window before).
  template <int ROWS, int M>
  static __attribute__((noinline)) void pair_halves(const T* dy, const uint8_t* index, int64_t row,
                                                    const int* tap, int64_t pairs, bool owns,
                                                    T* to) {
    constexpr int64_t c = M * N + N / 2;
    P middle[ROWS], end[ROWS], begin[ROWS], both[ROWS], half[ROWS];
#pragma GCC unroll 2
    for (int i = 0; i < ROWS; ++i) {
      middle[i] = place(tap[i] + 1);
      end[i] = place(tap[i] + 2);
      begin[i] = place(tap[i]);
      both[i] = (P)_mm_unpacklo_epi64((__m128i)middle[i], (__m128i)begin[i]);
      half[i] = (P)_mm_unpacklo_epi64(_mm_set1_epi8(-1), (__m128i)end[i]);
      asm("" : "+v"(middle[i]), "+v"(end[i]), "+v"(begin[i]), "+v"(both[i]), "+v"(half[i]));
    }
    for (; pairs > 0; --pairs, dy += c, index += c, to += 2 * c) {
      V sum[2 * M + 1] = {};
#pragma GCC unroll 2
      for (int i = 0; i < ROWS; ++i) {
        const T* d = dy + i * row;
        const uint8_t* ix = index + i * row;
        auto hit = [&](int64_t l, P t, V & v) __attribute__((always_inline)) {
          v = add_equal(v, load_once(d + l), load_place(ix + l), t);
        };
        fetch(d);
#pragma GCC unroll 3
        for (int v = 0; v < M; ++v) hit(v * N, middle[i], sum[v]);
        int64_t eight;
        memcpy(&eight, ix, 8);
        sum[M] = add_equal(sum[M], (V)_mm512_broadcast_f32x8(_mm256_loadu_ps((const float*)d)),
                           (P)_mm_set1_epi64x(eight), half[i]);
        hit(M * N, both[i], sum[M]);
#pragma GCC unroll 3
        for (int v = M + 1; v < 2 * M + 1; ++v) {
          hit(v * N - c, end[i], sum[v]);
          hit(v * N, begin[i], sum[v]);
        }
      }
#pragma GCC unroll 7
      for (int v = 0; v < 2 * M + 1; ++v) {
        if (owns) own(to + v * N, kOwnAhead);
        store(to + v * N, sum[v]);
      }
    }
  }
#endif
  // Columns of dx that lie in as many windows as there are, when windows are one column apart.
  static GS_MEMBER void inner(const Geometry& g, int64_t* begin, int64_t* end) {
    const PoolParams& p = g.p;
    *begin = *end = 0;
    if (p.adaptive || p.sw != 1) return;
    int64_t b = 0, e = p.w, all = (p.kw - 1) * p.dw + 1;
    while (b < e && g.x.hi[b] - g.x.lo[b] != all) ++b;
    while (e > b && g.x.hi[e - 1] - g.x.lo[e - 1] != all) --e;
    *begin = b;
    *end = e;
  }
  // Sums depend on one another, so strips are wider here where there are registers.
  static constexpr int kMany = GS_VBYTES == 64 ? 4 : kStrip;
  // Windows of 3 x 3 at stride 1: B vectors of rows h .. h + count - 1 of dx, at dx, which lie
  // in columns b0 .. b1 of windows (ALL: 0 .. 3); dy and index: their image where windows have
  // their last column there. Sums in the order of windows.
  template <int B, bool ALL>
  static GS_MEMBER void collect_strip(const PoolParams& p, Way way, const T* dy,
                                      const uint8_t* index, int64_t h, int64_t count, int b0,
                                      int b1, const P* tap, T* dx) {
    const int64_t c = p.c, row = p.ow * c, line = p.w * c, rows = p.oh;
    V sum[3][B] = {};
    int64_t i = h + p.ph - 2;  // a row of windows; it holds rows h + k .. h + k + 2
    const T* from = dy + i * row;
    const uint8_t* ix = index + i * row;
    for (int64_t k = -2; k < count; ++k, ++i, from += row, ix += row) {
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) {
        sum[0][v] = sum[1][v];
        sum[1][v] = sum[2][v];
        sum[2][v] = V{};
      }
      if (i >= 0 && i < rows)
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) {
          __builtin_prefetch(from + v * N + 2 * c + 2 * B * N);
#pragma GCC unroll 3
          for (int b = 2; b >= 0; --b) {
            if (!ALL && (b < b0 || b >= b1)) continue;
            V d = load(from + v * N + (2 - b) * c);
#if defined(__AVX512F__)
            asm("" : "+v"(d));  // GCC would load it three times
#endif
            const P at = load_place(ix + v * N + (2 - b) * c);
#pragma GCC unroll 3
            for (int a = 0; a < 3; ++a) sum[a][v] = add_equal(sum[a][v], d, at, tap[3 * a + b]);
          }
        }
      if (k < 0) continue;
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) put<true>(way, dx + v * N, sum[0][v], N);
      dx += line;
    }
  }
  static __attribute__((noinline)) void collect_block(const Geometry& g, Way way, int64_t begin,
                                                      int64_t end, const T* dy,
                                                      const uint8_t* index, int64_t h,
                                                      int64_t count, T* dx) {
    const PoolParams& p = g.p;
    const int64_t n = (end - begin) * p.c, from = (begin + p.pw - 2) * p.c;
    const int b0 = (int)(begin + p.pw - g.x.hi[begin] + 1),
              b1 = (int)(begin + p.pw - g.x.lo[begin] + 1);
    P tap[9];
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) {
      tap[t] = place(t);
#if defined(__AVX512F__)
      asm("" : "+v"(tap[t]));  // GCC would make them anew in the loop
#endif
    }
    const T* d = dy + from;
    const uint8_t* ix = index + from;
    int64_t k = 0;
    dx += begin * p.c;
    for (; k + kMany * N <= n && b0 == 0 && b1 == 3; k += kMany * N)
      collect_strip<kMany, true>(p, way, d + k, ix + k, h, count, 0, 3, tap, dx + k);
    for (; k < n; k += kStrip * N) {
      if (k + kStrip * N > n) k = n - kStrip * N;
      collect_strip<kStrip, false>(p, way, d + k, ix + k, h, count, b0, b1, tap, dx + k);
    }
  }
  // Windows of 3 x 3 at stride 1, one row of windows after the other: what they add to the two rows
  // of dx that are not complete yet stays in the first cache. Columns of dx in the same columns of
  // windows are one run of elements.
  struct Shares {
    int64_t w, n;           // where they begin, in elements of dx, how many
    int64_t from;           // the first window in its row, elements
    int64_t second, third;  // where the others lie behind it
    P tap[9];               // what their place must be; of three windows in order, row by row

    // columns w .. w + count - 1
    __attribute__((noinline)) void init(const Geometry& g, int64_t column, int64_t count) {
      const PoolParams& p = g.p;
      const int64_t lo = g.x.lo[column], last = column + p.pw - lo;
      const int64_t least = column + p.pw - g.x.hi[column] + 1;
      int64_t at[3];
      w = column * p.c;
      n = count * p.c;
      from = lo * p.c;
      for (int64_t b = 0; b < 3; ++b) {
        const int64_t col = 2 - b;  // of the windows' columns
        const bool in = col >= least && col <= last;
        at[b] = in ? (last - col) * p.c : 0;
        for (int a = 0; a < 3; ++a) tap[3 * a + b] = place(in ? (int)(3 * a + col) : 255);
      }
      second = at[1];
      third = at[2];
    }
  };
  // A row of dx. next, later: what the two rows above have added to this and the next row, then of
  // that one and the one behind it; none: nothing is added, as by a row of windows outside.
  template <bool PAST>
  static __attribute__((noinline)) void ones_row(const T* dy_row, const uint8_t* index_row,
                                                 int64_t ahead, const Shares* runs, int many,
                                                 const P* none, Way way, T* next, T* later,
                                                 T* dx_row) {
    for (; many > 0; --many, ++runs) {
      const Shares& s = *runs;
      const P* taps = none ? none : s.tap;
      P tap[9];
#pragma GCC unroll 9
      for (int t = 0; t < 9; ++t) {
        tap[t] = taps[t];
#if defined(__AVX512F__)
        asm("" : "+v"(tap[t]));
#endif
      }
      const int64_t n = s.n, second = s.second, third = s.third;
      const T* dy = dy_row + s.from;
      const uint8_t* index = index_row + s.from;
      T* dx = dx_row + s.w;
      auto vector = [&](int64_t k, int64_t o) __attribute__((always_inline)) {
        V sum[3] = {load(next + o), load(later + o), V{}};
        __builtin_prefetch(dy + k + ahead);
#pragma GCC unroll 3
        for (int b = 0; b < 3; ++b) {
          const int64_t q = b == 0 ? k : b == 1 ? k + second : k + third;
          const V d = load_once(dy + q);
          const P at = load_place(index + q);
#pragma GCC unroll 3
          for (int a = 0; a < 3; ++a) sum[a] = add_equal(sum[a], d, at, tap[3 * a + b]);
        }
        Base::template result<PAST>(way, dx + k, sum[0]);
        store(next + o, sum[1]);
        store(later + o, sum[2]);
      };
      int64_t k = 0;
      for (; k + N <= n; k += N) vector(k, k);
      if (k < n) vector(n - N, k), k += N;
      next += k;
      later += k;
    }
  }
  // float alone, for size: fold_row takes 1.1 to 1.3 times as long in double; in rows shorter than
  // this it is quicker
  static GS_MEMBER bool ones(const PoolParams& p) {
    return sizeof(T) == 4 && Base::ones(p) && p.c >= N && p.w * p.c >= 1024;
  }
  // Rows h .. h + count - 1 of dx, at dx; dy and index: of their image
  static __attribute__((noinline)) void ones_rows(const Geometry& g, Way way, const T* dy,
                                                  const uint8_t* index, int64_t h, int64_t count,
                                                  T* dx) {
    constexpr int64_t kRoom = 8192 / (int64_t)sizeof(T);
    const PoolParams& p = g.p;
    const int64_t c = p.c, row = p.ow * c, line = p.w * c, wide = (c + N - 1) / N * N;
    alignas(64) T next[kRoom], later[kRoom], spare[kRoom];
    const int64_t most = kRoom / wide;
    P none[9];
    for (int t = 0; t < 9; ++t) none[t] = place(255);
    const int64_t ahead = most < p.w ? row : Base::ahead(p);
    for (int64_t from = 0, to; from < p.w; from = to) {
      to = from + most < p.w ? from + most : p.w;
      memset(next, 0, (size_t)((to - from) * wide) * sizeof(T));
      memset(later, 0, (size_t)((to - from) * wide) * sizeof(T));
      Shares runs[5];
      int many = 0;
      for (int64_t w = from, e; w < to; w = e, ++many) {
        const int64_t lo = g.x.lo[w];
        e = w + 1;
        if (g.x.hi[w] - lo == 3)
          while (e < to && g.x.lo[e] == lo + e - w && g.x.hi[e] == lo + e - w + 3) ++e;
        runs[many].init(g, w, e - w);
      }
      for (int64_t k = -2, i = h + p.ph - 2; k < count; ++k, ++i) {
        const bool in = i >= 0 && i < p.oh;
        const int64_t at = (i < 0 ? 0 : in ? i : p.oh - 1) * row;
        (Base::apart(way) && k >= 0 ? ones_row<kBytes>
                                    : ones_row<false>)(dy + at, index + at, ahead, runs, many,
                                                       in ? nullptr : none, k < 0 ? kPlain : way,
                                                       next, later,
                                                       k < 0 ? spare - from * c : dx + k * line);
      }
    }
  }
  template <class IX>
  static void collect_row(const Geometry& g, Way way, int64_t run_begin, int64_t run_end,
                          const T* dy, const IX* index, int64_t h, T* dx, bool skip = false) {
    const PoolParams& p = g.p;
    const int64_t c = p.c, row = p.ow * c;
    const Holders y(g.y, h);
    dy += g.y.lo[h] * row;
    index += g.y.lo[h] * row;
    const bool dense = p.dh == 1 && p.dw == 1 && c >= N && (y.count == 1 || y.count == 2);
    int tap[2] = {};
    if (dense)
      for (int i = 0; i < y.count; ++i) tap[i] = (int)(y.tap(i) * p.kw);
    int64_t first = p.w, pairs = 0;
    bool halves = false;
    if (dense && !p.adaptive && p.kw == 3 && p.sw == 2 && sizeof(IX) == 1) {
      first = 1 - p.pw;
      pairs = (p.w - first) / 2 < p.ow - 1 ? (p.w - first) / 2 : p.ow - 1;
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
      if constexpr (kBytes)
        if (c == N + N / 2 || c == 2 * N + N / 2) {
          (c < 2 * N      ? y.count == 1 ? pair_halves<1, 1> : pair_halves<2, 1>
                : y.count == 1 ? pair_halves<1, 2>
                          : pair_halves<2, 2>)(dy, (const uint8_t*)index, row, tap, pairs,
                                               way == kOwn, dx + first * c);
          halves = true;
        }
#endif
      if (!halves)
        (c >= 4 * N     ? y.count == 1 ? pair_row<1, 4> : pair_row<2, 4>
             : y.count == 1 ? pair_row<1, kLine>
                        : pair_row<2, kLine>)(way, dy, (const uint8_t*)index, row, c, tap, pairs,
                                              dx + first * c);
    }
    if (dense) {
      // what lies outside of pairs or of a run, which is computed below
      const bool run = p.kw > 1 && run_begin < run_end;
      const int64_t before = run ? run_begin : first, after = run         ? run_end
                                                              : pairs > 0 ? first + 2 * pairs
                                                                          : first;
      auto* part = y.count == 1 ? window_row<1, IX> : window_row<2, IX>;
      if (before > 0) part(g, y, way, dy, index, tap, 0, before, dx);
      if (after < p.w) part(g, y, way, dy, index, tap, after, p.w, dx);
    }
    if (dense && (skip || run_begin >= run_end || p.kw == 1)) return;
    for (int64_t w = dense ? run_begin : 0; w < (dense ? run_begin + 1 : p.w); ++w) {
      const int64_t at = w, from = g.x.lo[w] * c;
      const Holders x(g.x, at);
      int64_t many = c;
      if (w == run_begin && run_begin < run_end) {
        many *= run_end - run_begin;
        w = run_end - 1;
        if (skip) continue;
      }
      collect_pixel(y, x, (int)p.kw, row, c, many, way, dy + from, index + from, dx + at * c);
    }
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
