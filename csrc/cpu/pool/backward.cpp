// Gradients of max and average pooling, regular and adaptive, see pool.h.
//
// dy (n, oh, ow, c) and, for max, its index to dx (n, h, w, c); the floor is memory, each once.
// Windows that do not overlap write each element of dx once, row by row; otherwise each element of
// dx looks at the windows that hold it, in order: nothing is scattered, so there are no atomics and
// no zero fill. Averages over 3 columns at stride 1 are the forward sum over dy. Gradients of
// maxima whose windows overlap much go row by row of dx, rows of windows first and then columns:
// kw + kh comparisons an element in place of kw kh. Those of 3 x 3 windows at stride 1 and of few
// channels walk down the rows of windows with the sums of three rows of dx in registers.
//
// With few channels blocks of pixels are spread by permutations, as forward.cpp collects them;
// overlapping windows of few channels scatter within a sample, one task a sample.
#include "pool/windows.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct Backward : Lanes<T> {
  using typename Lanes<T>::V;
  using typename Lanes<T>::I;
  using typename Lanes<T>::S;
  using Lanes<T>::N;
  using Lanes<T>::kFew;
  using typename Lanes<T>::Block;
  using Lanes<T>::pick;
  using Lanes<T>::divisor;
  using Lanes<T>::uniform;
  using Lanes<T>::slide_row;
  using Lanes<T>::slides;
  using Lanes<T>::kStrip;
  using Lanes<T>::kDeep;
  using Lanes<T>::walks;
  using Lanes<T>::each_block;
  using Lanes<T>::each_row;
  using Lanes<T>::bytes_in;
  using Lanes<T>::near;
  using typename Lanes<T>::P;
  using Lanes<T>::kBytes;
  using Lanes<T>::place;
  using Lanes<T>::load_place;
  using Lanes<T>::store_place;

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
  // B vectors, after one look at the way.
  template <int B>
  static GS_MEMBER void put_all(Way way, T* to, const V* v) {
    if (way == kPast) {
#pragma GCC unroll 4
      for (int i = 0; i < B; ++i) write<true>(to + i * N, v[i]);
      return;
    }
    if (way == kOwn)
#pragma GCC unroll 4
      for (int i = 0; i < B; ++i) own(to + i * N, kOwnAhead);
#pragma GCC unroll 4
    for (int i = 0; i < B; ++i) store(to + i * N, v[i]);
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
  // B vectors of `pixels` neighbours that lie in one window a row, of ROWS rows of windows; tap: of
  // the first
  template <int ROWS, int B, class IX>
  static GS_MEMBER void window_vec(Way way, const T* dy, const IX* index, int64_t row, int64_t c,
                                   const int* tap, int64_t pixels, T* to) {
    V d[ROWS][B];
    I at[ROWS][B];
#pragma GCC unroll 2
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) {
        fetch(dy + i * row + v * N);
        d[i][v] = load(dy + i * row + v * N);
        at[i][v] = get_index<T, true>(index + i * row + v * N, N);
      }
    I here = set1((S)tap[0]);
    const I apart = set1((S)(ROWS == 2 ? tap[1] - tap[0] : 0));
    for (int64_t q = 0; q < pixels; ++q, to += c, here += set1((S)1))
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) {
        V sum = at[0][v] == here ? d[0][v] : V{};
        if (ROWS == 2) sum += at[ROWS - 1][v] == here + apart ? d[ROWS - 1][v] : V{};
        put<true>(way, to + v * N, sum, N);
      }
  }
  template <int ROWS, class IX>
  static __attribute__((noinline)) void window_run(Way way, const T* dy, const IX* index,
                                                   int64_t row, int64_t c, const int* tap,
                                                   int64_t pixels, T* to) {
    int64_t k = 0;
    for (; k + 4 * N <= c; k += 4 * N)
      window_vec<ROWS, 4>(way, dy + k, index + k, row, c, tap, pixels, to + k);
    for (; k < c; k += N) {
      if (k + N > c) k = c - N;
      window_vec<ROWS, 1>(way, dy + k, index + k, row, c, tap, pixels, to + k);
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
    put_all<B>(way, to, one);
    put_all<B>(way, to + c, two);
  }
  // Windows of three columns, two apart: of two neighbouring pixels one lies in the middle of
  // window j, the other in its end and in the begin of the next. `pairs` of them from to on; d, ix:
  // window j of the first of ROWS rows of windows; tap: of its first column.
  template <int ROWS>
  static __attribute__((noinline)) void pair_row(Way way, const T* dy, const uint8_t* index,
                                                 int64_t row, int64_t c, const int* tap,
                                                 int64_t pairs, T* to) {
    for (; pairs > 0; --pairs, dy += c, index += c, to += 2 * c)
      for (int64_t k = 0; k < c;) {
        if (k + 4 * N <= c) {
          pair_vec<ROWS, 4>(way, dy + k, index + k, row, c, tap, to + k);
          k += 4 * N;
          continue;
        }
        if (k + N > c) k = c - N;
        pair_vec<ROWS, 1>(way, dy + k, index + k, row, c, tap, to + k);
        k += N;
      }
  }
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
  // acc += d where index is tap
  static GS_MEMBER V add_equal(V acc, V d, P index, P tap) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (kBytes)
      return (V)_mm512_mask_add_ps((__m512)acc, _mm_cmpeq_epi8_mask((__m128i)index, (__m128i)tap),
                                   (__m512)acc, (__m512)d);
#endif
    if constexpr (!kBytes) return acc + (index == tap ? d : V{});
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
    if (dense && !p.adaptive && p.kw == 3 && p.sw == 2 && sizeof(IX) == 1) {
      first = 1 - p.pw;
      pairs = (p.w - first) / 2 < p.ow - 1 ? (p.w - first) / 2 : p.ow - 1;
      (y.count == 1 ? pair_row<1> : pair_row<2>)(way, dy, (const uint8_t*)index, row, c, tap, pairs,
                                                 dx + first * c);
    }
    for (int64_t w = 0; w < p.w; ++w) {
      if (w == first && pairs > 0) {
        w += 2 * pairs - 1;
        continue;
      }
      const int64_t at = w, from = g.x.lo[w] * c;
      const Holders x(g.x, at);
      if (dense && x.count == 1) {
        while (w + 1 < p.w && w + 1 != first && g.x.lo[w + 1] == g.x.lo[at] &&
               g.x.hi[w + 1] == g.x.hi[at])
          ++w;
        const int taps[2] = {tap[0] + x.tap(0), tap[1] + x.tap(0)};
        (y.count == 1 ? window_run<1, IX> : window_run<2, IX>)(way, dy + from, index + from, row, c,
                                                               taps, w + 1 - at, dx + at * c);
        continue;
      }
      int64_t many = c;
      if (w == run_begin && run_begin < run_end) {
        many *= run_end - run_begin;
        w = run_end - 1;
        if (skip) continue;
      }
      collect_pixel(y, x, (int)p.kw, row, c, many, way, dy + from, index + from, dx + at * c);
    }
  }

  // ---- backward of averages, any windows: dy is added up over the windows that hold a row of dx,
  // then over those that hold a column
  // out = scale * the sum of `rows` runs of c elements, `step` apart
  template <int B>
  static GS_MEMBER void add_vec(Way way, const T* from, int64_t step, int rows, V scale, T* to) {
    V sum[B];
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) sum[v] = load(from + v * N);
    for (int r = 1; r < rows; ++r) {
      from += step;
#pragma GCC unroll 4
      for (int v = 0; v < B; ++v) sum[v] += load(from + v * N);
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) put<true>(way, to + v * N, sum[v] * scale, N);
  }
  static __attribute__((noinline)) void add_runs(Way way, const T* from, int64_t step, int rows,
                                                 int64_t c, V scale, T* to) {
    int64_t k = 0;
    if (rows <= 0) {
      memset(to, 0, (size_t)c * sizeof(T));
      return;
    }
    for (; k + 4 * N <= c; k += 4 * N) add_vec<4>(way, from + k, step, rows, scale, to + k);
    for (; k < c; k += N) {
      if (k + N > c) {
        if (c < N) {
          V sum = load_n(from, (int)c);
          for (int r = 1; r < rows; ++r) sum += load_n(from + r * step, (int)c);
          store_n(to, sum * scale, (int)c);
          return;
        }
        k = c - N;
      }
      add_vec<1>(way, from + k, step, rows, scale, to + k);
    }
  }
  // ---- backward, few channels: blocks of pixels of dx, whose windows lie in two vectors of dy
  struct Pattern {
    static constexpr int kSlots = 4;
    int pixels, slots;
    int64_t begin, end;  // columns of dx; the last block overlaps the one before it
    int64_t last;        // its first column, from begin on
    I from[kSlots];      // of two vectors of dy, for each lane of dx: that of its t-th window
    I tap[kSlots];       // and the column in that window, or -1

    GS_MEMBER bool init(const Geometry& g) {
      const PoolParams& p = g.p;
      const int c = (int)p.c;
      begin = end = 0;
      if (p.adaptive || p.dh != 1 || p.dw != 1 || p.sw < 2) return false;
      slots = (int)((p.kw + p.sw - 1) / p.sw);
      pixels = (int)(N / c / p.sw * p.sw);
      if (pixels == 0 || slots > kSlots) return false;
      // windows that are not cut off
      int64_t b = p.kw - 1 - p.pw, e = p.ow * p.sw - p.pw;
      if (b < 0) b = 0;
      if (e > p.w) e = p.w;
      if (e - b < pixels) return false;
      S f[kSlots][N], t[kSlots][N];
      for (int l = 0; l < N; ++l) {
        const int64_t w = b + l / c;
        for (int s = 0; s < slots; ++s) {
          const int64_t j = l < pixels * c ? g.x.lo[w] + s : 0;
          const bool is = l < pixels * c && j < g.x.hi[w];
          const int64_t at = is ? (j - g.x.lo[b]) * c + l % c : 0;
          if (at >= 2 * N) return false;
          f[s][l] = (S)at;
          t[s][l] = is ? (S)(w - g.x.start[j]) : (S)-1;
        }
      }
      for (int s = 0; s < slots; ++s) {
        memcpy(&from[s], f[s], sizeof(I));
        memcpy(&tap[s], t[s], sizeof(I));
      }
      begin = b;
      last = (e - b - pixels) / p.sw * p.sw;
      end = b + last + pixels;
      return true;
    }
  };
  // All blocks of a row; from: the first window of the first.
  static __attribute__((noinline)) void average_pattern(const Pattern& s, Way way, const T* from,
                                                        int64_t c, int64_t sw, V scale, T* to) {
    const int pixels = s.pixels, n = pixels * (int)c, slots = s.slots;
    I at[Pattern::kSlots];
    I is[Pattern::kSlots];
#pragma GCC unroll 4
    for (int t = 0; t < Pattern::kSlots; ++t) {
      at[t] = s.from[t];
      is[t] = t < slots ? s.tap[t] >= 0 : I{};
    }
    for (int64_t w = 0;;) {
      const V left = load(from + w / sw * c), right = load(from + w / sw * c + N);
      V sum = is[0] ? pick(left, right, at[0]) : V{};
      sum += is[1] ? pick(left, right, at[1]) : V{};
      if (slots > 2) {
        sum += is[2] ? pick(left, right, at[2]) : V{};
        sum += is[3] ? pick(left, right, at[3]) : V{};
      }
      T* out = to + w * c;
      if (way == kOwn) own(out, kOwnAhead);
      if (n == N)
        store(out, sum * scale);
      else
        store_n(out, sum * scale, n);
      if (w == s.last) break;
      w = w + pixels < s.last ? w + pixels : s.last;
    }
  }
  // Pairs of neighbouring pixels, as in pair_row, of the sums of a column of windows.
  static __attribute__((noinline)) void average_pairs(Way way, const T* from, int64_t c,
                                                      int64_t pairs, V scale, T* to) {
    for (; pairs > 0; --pairs, from += c, to += 2 * c)
      for (int64_t k = 0; k < c; k += N) {
        if (k + N > c) k = c - N;
        const V one = load_once(from + k);
        put<true>(way, to + k, one * scale, N);
        put<true>(way, to + c + k, (one + load(from + c + k)) * scale, N);
      }
  }
  // Row h of dx. dy: its image; sums: a row of y and two vectors more; known: whether they are
  // those of the same windows already.
  static __attribute__((noinline)) void average_row(const Geometry& g, const Pattern* pattern,
                                                    Way way, bool same, int64_t run_begin,
                                                    int64_t run_end, const T* dy, int64_t h,
                                                    T* sums, bool known, T* dx) {
    const PoolParams& p = g.p;
    const int64_t c = p.c, row = p.ow * c;
    const int lo = g.y.lo[h], hi = g.y.hi[h];
    const V scale = set1(same ? 1 / divisor(g, 0, 0) : (T)1);
    if (known && (c < N || way != kPast)) {  // the row before
      const int64_t n = p.w * c;
      int64_t k = 0;
      for (; k + 4 * N <= n; k += 4 * N)
#pragma GCC unroll 4
        for (int64_t v = k; v < k + 4 * N; v += N) {
          if (way == kOwn) own(dx + v, kOwnAhead);
          store(dx + v, load(dx + v - n));
        }
      for (; k + N <= n; k += N) store(dx + k, load(dx + k - n));
      if (k < n) store_n(dx + k, load_n(dx + k - n, (int)(n - k)), (int)(n - k));
      return;
    }
    const T* columns = sums;
    if (same && hi - lo == 1 && !pattern)
      columns = dy + lo * row;
    else if (known)
      ;
    else if (same)
      add_runs(kPlain, dy + lo * row, row, hi - lo, row, set1((T)1), sums);
    else
      for (int64_t j = 0, e; j < p.ow; j = e) {
        // columns of one divisor
        e = j + 1;
        while (e < p.ow && g.x.size[e] == g.x.size[j] && g.x.first[e] == g.x.first[j] &&
               g.x.last[e] == g.x.last[j])
          ++e;
        for (int i = lo; i < hi || i == lo; ++i) {
          const V part = set1(i < hi ? 1 / divisor(g, i, j) : (T)0);
          for (int64_t k = j * c; k < e * c; k += N) {
            const int n = e * c - k < N ? (int)(e * c - k) : N;
            if (n == N) {
              V s = i < hi ? load(dy + i * row + k) * part : V{};
              store(sums + k, i == lo ? s : s + load(sums + k));
            } else {
              V s = i < hi ? load_n(dy + i * row + k, n) * part : V{};
              store_n(sums + k, i == lo ? s : s + load_n(sums + k, n), n);
            }
          }
        }
      }
    int64_t first = p.w, pairs = 0;
    if (same && !p.adaptive && p.kw == 3 && p.sw == 2 && p.dw == 1 && c >= N && p.pw <= 1) {
      first = 1 - p.pw;
      pairs = (p.w - first) / 2 < p.ow - 1 ? (p.w - first) / 2 : p.ow - 1;
      average_pairs(way, columns, c, pairs, scale, dx + first * c);
    }
    for (int64_t w = 0; w < p.w; ++w) {
      const int j = g.x.lo[w];
      T* to = dx + w * c;
      if (w == first && pairs > 0) {
        w += 2 * pairs - 1;
        continue;
      }
      if (pattern && w == pattern->begin && w < pattern->end) {
        average_pattern(*pattern, way, columns + j * c, c, p.sw, scale, to);
        w = pattern->end - 1;
      } else if (w == run_begin && run_begin < run_end) {
        add_runs(way, columns + j * c, c, (int)p.kw, (run_end - run_begin) * c, scale, to);
        w = run_end - 1;
      } else {
        add_runs(way, columns + j * c, c, g.x.hi[w] - j, c, scale, to);
      }
    }
  }

  // Blocks of a row of dx that lies in `rows` rows of windows, up to `last`; dy and index: the
  // first window of the first block; tap: of the first column of the first row, `next` more in the
  // next
  template <int SLOTS>
  static __attribute__((noinline)) void max_blocks(const Pattern& s, Way way, const T* dy,
                                                   const uint8_t* index, int64_t row, int rows,
                                                   int tap, int next, int64_t c, int64_t sw,
                                                   int64_t last, T* to) {
    const int n = s.pixels * (int)c;
    I at[SLOTS], column[SLOTS];
#pragma GCC unroll 4
    for (int t = 0; t < SLOTS; ++t) {
      at[t] = s.from[t];
      // never equal where the lane has no such window
      const I no = set1((S)-1000000);
      column[t] = t < s.slots ? (s.tap[t] >= 0 ? s.tap[t] : no) : no;
    }
    for (int64_t w = 0;;) {
      V sum = {};
      I base = set1((S)tap);
      for (int i = 0; i < rows; ++i, base += set1((S)next)) {
        const T* d = dy + i * row + w / sw * c;
        const uint8_t* x = index + i * row + w / sw * c;
        const V left = load(d), right = load(d + N);
        const I il = get_index<T, true>(x, N), ir = get_index<T, true>(x + N, N);
#pragma GCC unroll 4
        for (int t = 0; t < SLOTS; ++t)
          sum += pick(il, ir, at[t]) == column[t] + base ? pick(left, right, at[t]) : V{};
      }
      T* out = to + w * c;
      if (way == kOwn) own(out, kOwnAhead);
      if (n == N)
        store(out, sum);
      else
        store_n(out, sum, n);
      if (w == last) break;
      w = w + s.pixels < last ? w + s.pixels : last;
    }
  }
  // Row h of dx by blocks; dy and index: their image, limit: the end of dy. What is left at the
  // ends of the row goes pixel by pixel.
  static __attribute__((noinline)) void pattern_row(const Geometry& g, const Pattern& s, Way way,
                                                    const T* dy, const uint8_t* index,
                                                    const T* limit, int64_t h, T* dx) {
    const PoolParams& p = g.p;
    const int64_t c = p.c, row = p.ow * c;
    const Holders y(g.y, h);
    dy += g.y.lo[h] * row;
    index += g.y.lo[h] * row;
    for (int64_t w = 0; w < p.w; ++w) {
      const int64_t from = g.x.lo[w] * c;
      if (w == s.begin && y.count > 0) {
        // the last block's two vectors must lie in dy
        const int64_t room = limit - (dy + (y.count - 1) * row + from) - 2 * N;
        const int64_t last = room / c * p.sw < s.last ? room / c * p.sw : s.last;
        if (room >= 0) {
          const int tap = (int)(y.tap(0) * p.kw), next = -(int)(p.sh * p.kw);
          (s.slots <= 2 ? max_blocks<2> : max_blocks<4>)(s, way, dy + from, index + from, row,
                                                         y.count, tap, next, c, p.sw, last,
                                                         dx + w * c);
          w += last + s.pixels - 1;
          continue;
        }
      }
      collect_pixel(y, Holders(g.x, w), (int)p.kw, row, c, c, way, dy + from, index + from,
                    dx + w * c);
    }
  }

  // ---- backward, few channels, windows of K x K taps two apart both ways, K 2 or 3: pixels of dx
  // come in pairs, of which one lies in the first column of a window and in the last of the one
  // before, the other in the middle of one of them. A vector of dy gives two of sums, where dy
  // lies, and those by two permutations two of dx, with both kinds of pixels in turn.
  struct Twins {
    int pixels, lanes;  // of a vector of dy
    int64_t before;     // the window before, of the first pair of pixels
    int64_t middle;     // 0 where the pixel that is alone lies in that, 1: in the one after
    I low, high;        // of the sums of pixels that two windows share, and of those that one has

    // With padding of K 2 no pixel would lie where the others do.
    static GS_MEMBER bool fits(const PoolParams& p) {
      return !p.adaptive && p.index_bytes == 1 && p.sh == 2 && p.sw == 2 && p.kh == p.kw &&
             (p.kh == 3 || (p.kh == 2 && p.pw == 0)) && p.dh == 1 && p.dw == 1 && p.c < N;
    }
    GS_MEMBER void init(const PoolParams& p) {
      const int c = (int)p.c, odd = (int)p.pw % 2;
      pixels = N / c;
      lanes = pixels * c;
      before = p.pw / 2 - 1 + odd;
      middle = odd ? 0 : 1;
      S at[2 * N];
      for (int l = 0; l < 2 * N; ++l) {
        const int k = l < 2 * lanes ? l : 0, second = k % (2 * c) >= c;
        at[l] = (S)(k / (2 * c) * c + k % c + (second == odd ? 0 : N));
      }
      memcpy(&low, at, sizeof low);
      memcpy(&high, at + N, sizeof high);
    }
  };
  // N elements of a row of n from `at` on, zero where that is outside
  static GS_MEMBER V part(const T* row, int64_t at, int64_t n) {
    const int64_t b = at < 0 ? -at : 0, e = n - at < N ? n - at : N;
    if (b >= e) return V{};
#if defined(__AVX512F__)
    const uint32_t m = ((1u << e) - 1) & ~((1u << b) - 1);
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_maskz_loadu_ps((__mmask16)m, row + at);
    else
      return (V)_mm512_maskz_loadu_pd((__mmask8)m, row + at);
#else
    T v[N] = {};
    for (int64_t l = b; l < e; ++l) v[l] = row[at + l];
    return load(v);
#endif
  }
  static GS_MEMBER P part(const uint8_t* row, int64_t at, int64_t n) {
    const int64_t b = at < 0 ? -at : 0, e = n - at < N ? n - at : N;
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (kBytes) {
      if (b >= e) return place(0);
      const uint32_t m = ((1u << e) - 1) & ~((1u << b) - 1);
      return (P)_mm_maskz_loadu_epi8((__mmask16)m, row + at);
    }
#endif
    uint8_t v[N] = {};
    for (int64_t l = b; l < e; ++l) v[l] = row[at + l];
    return load_place(v);
  }
  // A row of dx of n elements that lies in ROWS rows of windows of `row` elements, at dy and index;
  // taps: of the three columns in each; room: elements that may be read; spill: whether more may be
  // written, behind the row.
  template <bool MAX, int K, int ROWS>
  static GS_MEMBER void twin_row(const Twins& s, Way way, const T* dy, const uint8_t* index,
                                 int64_t row, int64_t room, int64_t c, const P (*taps)[3],
                                 int64_t n, bool spill, V factor, I low, I high, T* dx) {
    P t[ROWS][3];
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 3
      for (int b = 0; b < 3; ++b) t[r][b] = taps[r][b];
    const int64_t middle = s.middle * c, lanes = s.lanes;
    int64_t at = s.before * c, k = 0;
    V left, right;
    auto sums = [&](auto get, auto get_places) __attribute__((always_inline)) {
      V shared = {}, alone = {};
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; ++r) {
        const T* d = dy + r * row;
        const uint8_t* ix = index + r * row;
        if (MAX) {
          if (K == 3) shared = add_equal(shared, get(d, at), get_places(ix, at), t[r][2]);
          shared = add_equal(shared, get(d, at + c), get_places(ix, at + c), t[r][0]);
          alone = add_equal(alone, get(d, at + middle), get_places(ix, at + middle), t[r][1]);
        } else {
          if (K == 3) shared += get(d, at);
          shared += get(d, at + c);
          alone += get(d, at + middle);
        }
      }
      left = pick(shared, alone, low);
      right = pick(shared, alone, high);
      if (!MAX) {
        left *= factor;
        right *= factor;
      }
    };
    const bool past = way == kPast && lanes == N, ahead = way == kOwn || way == kPast;
    const int64_t first = K == 3 ? 0 : -c, last = 2 * (room - c - N - at);
    int64_t most = spill ? n - 1 : n - 2 * N;
    if (most > last) most = last;
    while (k < n) {
      for (; k <= most && at >= first; at += lanes, k += 2 * lanes) {
        sums(
            [](const T* p, int64_t i) __attribute__((always_inline)) { return load(p + i); },
            [](const uint8_t* p, int64_t i)
                __attribute__((always_inline)) { return load_place(p + i); });
        if (past) {
          write<true>(dx + k, left);
          write<true>(dx + k + N, right);
          continue;
        }
        if (ahead) {
          own(dx + k, kOwnAhead);
          own(dx + k + N, kOwnAhead);
        }
        store(dx + k, left);
        store(dx + k + N, right);
      }
      if (k >= n) break;
      sums(
          [=](const T* p, int64_t i) __attribute__((always_inline)) { return part(p, i, row); }, [=
      ](const uint8_t* p, int64_t i) __attribute__((always_inline)) { return part(p, i, row); });
      const int64_t rest = n - k < 2 * lanes ? n - k : 2 * lanes;
      store_n(dx + k, left, (int)(rest < N ? rest : N));
      if (rest > N) store_n(dx + k + N, right, (int)(rest - N));
      at += lanes;
      k += 2 * lanes;
    }
  }
  // Rows h .. h + count - 1 of dx, at dx; dy and index: their image; limit: the end of dy
  template <bool MAX, int K>
  static __attribute__((noinline)) void twin_rows(const Geometry& g, const Twins& s, Way way,
                                                  T scale, const T* dy, const uint8_t* index,
                                                  const T* limit, int64_t h, int64_t count, T* dx) {
    const PoolParams& p = g.p;
    const int64_t c = p.c, row = p.ow * c, n = p.w * c;
    P taps[3][3];
    for (int t = 0; t < 9; ++t) taps[t / 3][t % 3] = place(t / 3 * K + t % 3);
    // of two rows of windows that hold one of dx, which is the last of the first
    const P both[2][3] = {{taps[2][0], taps[2][1], taps[2][2]},
                          {taps[0][0], taps[0][1], taps[0][2]}};
    const V factor = set1(scale);
    const I low = s.low, high = s.high;
    for (const int64_t end = h + count; h < end; ++h, dx += n) {
      const int32_t i = g.y.lo[h], rows = g.y.hi[h] - i;
      const T* d = dy + i * row;
      const uint8_t* ix = MAX ? index + i * row : index;
      // what no window holds must be zero, else what lies behind the row does no harm
      const int64_t room = K == 2 && p.w == 2 * p.ow ? limit - d : row;
      const bool spill = K == 2 && h + 1 < end;  // the next row's turn comes
      if (rows == 0)
        memset(dx, 0, (size_t)n * sizeof(T));
      else if (K == 2 || rows == 1)
        twin_row<MAX, K, 1>(s, way, d, ix, row, room, c, taps + (h - g.y.start[i]), n, spill,
                            factor, low, high, dx);
      else
        twin_row<MAX, K, 2>(s, way, d, ix, row, row, c, both, n, spill, factor, low, high, dx);
    }
  }

  // ---- backward, few channels, what is left: scattered within a sample
  template <class IX>
  static void few_sample(const Geometry& g, const T* dy, const IX* index, T* dx) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c, size = p.h * line;
    memset(dx, 0, (size_t)size * sizeof(T));
    for (int64_t i = 0; i < p.oh; ++i)
      for (int64_t j = 0; j < p.ow; ++j) {
        int64_t base = g.y.start[i] * line + g.x.start[j] * p.c;
        for (int64_t k = 0; k < p.c; ++k, ++dy) {
          int64_t tap = *index++, a = tap / p.kw, b = tap - a * p.kw;
          int64_t at = base + a * p.dh * line + b * p.dw * p.c + k;
          if (a < p.kh && at >= 0 && at < size) dx[at] += *dy;
        }
      }
  }

  // Elements of a member's sums.
  static GS_MEMBER int64_t sums_of(const PoolParams& p) { return (p.ow * p.c + 3 * N - 1) / N * N; }
  template <bool MAX, class IX>
  static void backward_ix(const Geometry& g, void* const* buf, const Ctx* ctx) {
    const PoolParams& p = g.p;
    const T* dy = (const T*)buf[0];
    const IX* index = (const IX*)buf[MAX ? 1 : 0];
    T* dx = (T*)buf[MAX ? 2 : 1];
    int64_t image = p.h * p.w * p.c, row = p.ow * p.c, begin, end;
    const bool few = p.c < kFew, same = !MAX && uniform(g);
    // with padding the first window may be cut short, but every element still lies in one window at
    // most
    const bool tiled =
        !p.adaptive && p.dh == 1 && p.dw == 1 && p.sh == p.kh && p.sw == p.kw && sizeof(IX) == 1;
    inner(g, &begin, &end);
    Block block;
    Spread spread;
    Pattern pattern;
    Twins twins;
    bool blocks = false, patterns = false;
    const bool twin = Twins::fits(p) && (MAX || same);
    if (twin) {
      twins.init(p);
    } else if (few && tiled) {
      block.init(g);
      blocks = spread.init(p, block);
    }
    // windows of three rows and more go row by row of dx: stores to so many rows in turn are slow
    const bool tiles = tiled && (few ? blocks : p.kh < 3);
    const bool folding = MAX && !twin && !tiles && folds(p);
    if (few && !twin && !tiles && (end - begin) * p.c < N) {
      patterns = pattern.init(g);
      if (MAX && !(patterns && sizeof(IX) == 1)) {
        for (int64_t t = ctx->tid; t < p.n; t += ctx->nt)
          few_sample(g, dy + t * p.oh * row, index + t * p.oh * row, dx + t * image);
        return;
      }
    }
    // maxima of overlapping windows are slower when dx takes room from x
    const bool keeps = (twin || (!few && (!MAX || tiled))) && near(p, MAX);
    Way way = way_of(ctx, p.n * image * (int64_t)sizeof(T), dx,
                     (folding || twin ? p.w : 1) * p.c * (int64_t)sizeof(T), keeps);
    // nothing to read: then stores are faster, as far as a cache shared by the cores may take them
    if (way == kPast && p.oh * p.ow * 16 < p.h * p.w &&
        p.n * image * (int64_t)sizeof(T) / 8 < ctx->stream)
      way = kOwn;
    if (twin) {
      const T scale = MAX ? (T)1 : 1 / divisor(g, 0, 0);
      each_block(p.n * p.h, p.h, p.w * p.c * (int64_t)sizeof(T), p.h, ctx,
                 [&](int64_t r, int64_t count) {
                   const int64_t from = r / p.h * p.oh * row;
                   (p.kw == 2 ? twin_rows<MAX, 2>
                              : twin_rows<MAX, 3>)(g, twins, way, scale, dy + from,
                                                   (const uint8_t*)index + (MAX ? from : 0),
                                                   dy + p.n * p.oh * row, r % p.h, count,
                                                   dx + r * p.w * p.c);
                 });
    } else if (tiles) {
      each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
        tile_row<MAX>(g, &block, blocks ? &spread : nullptr, way, same, dy + r * row,
                      (const uint8_t*)index + (MAX ? r * row : 0), dx + r / p.oh * image, r % p.oh);
      });
    } else if (folding) {
      const int64_t line = p.w * p.c, room = folded(p);
      T* value = (T*)(g.room + ctx->tid * room * (int64_t)(sizeof(T) + 1));
      uint8_t* places = (uint8_t*)(value + room);
      memset(places, kNone, (size_t)room);
      each_row(p.n * p.h, line * (int64_t)sizeof(T), ctx, [&](int64_t r) {
        const int64_t from = r / p.h * p.oh * row;
        fold_row(g, way, dy + from, (const uint8_t*)index + from, r % p.h, value, places,
                 dx + r * line);
      });
    } else if (MAX && sizeof(IX) == 1 && !patterns && walks(p, begin, end)) {
      const int64_t bytes = p.w * p.c * (int64_t)sizeof(T);
      each_block(p.n * p.h, p.h, bytes, bytes % 4096 ? kDeep : kDeep / 2, ctx,
                 [&](int64_t r, int64_t count) {
                   const int64_t from = r / p.h * p.oh * row, h = r % p.h;
                   T* to = dx + r * p.w * p.c;
                   const uint8_t* ix = (const uint8_t*)index + from;
                   collect_block(g, way, begin, end, dy + from, ix, h, count, to);
                   for (int64_t k = 0; k < count; ++k)
                     collect_row(g, way, begin, end, dy + from, ix, h + k, to + k * p.w * p.c,
                                 true);
                 });
    } else {
      T* sums = (T*)g.room + ctx->tid * sums_of(p);
      int64_t before = -1;  // whose sums these are
      each_row(p.n * p.h, p.w * p.c * (int64_t)sizeof(T), ctx, [&](int64_t r) {
        const int64_t from = r / p.h * p.oh * row, h = r % p.h;
        T* to = dx + r * p.w * p.c;
        if (MAX && patterns) {
          pattern_row(g, pattern, way, dy + from, (const uint8_t*)index + from,
                      dy + p.n * p.oh * row, h, to);
        } else if (MAX) {
          collect_row(g, way, begin, end, dy + from, index + from, h, to);
        } else if (same && slides(p) && p.c >= N) {
          const V inv = set1((T)1 / divisor(g, 0, 0));
          const int lo = g.y.lo[h];
          slide_row(
              way, dy + from + lo * row, row, g.y.hi[h] - lo, p.c, p.ow, p.w, 2 - p.pw,
              to, [=](int64_t, V s) __attribute__((always_inline)) { return s * inv; });
        } else {
          const int64_t windows = (r / p.h * p.h + g.y.lo[h]) * (p.oh + 1) + g.y.hi[h];
          average_row(g, patterns ? &pattern : nullptr, way, same, begin, end, dy + from, h, sums,
                      windows == before, to);
          before = windows;
        }
      });
    }
    if (way == kPast) write_fence();
  }
  // A member keeps a row of sums; there are not so many tasks that these get large.
  static void member_plan(const PoolParams& p, int64_t row, Plan* out) {
    plan(&p, out);
    int64_t most = ((int64_t)128 << 20) / row;
    if (most > 64) most = 64;
    if (most < 1) most = 1;
    if (out->tasks > most) out->tasks = most;
    out->scratch += (size_t)(out->tasks * row);
  }
  static void avg_plan(const void* params, Plan* out) {
    const PoolParams& p = *(const PoolParams*)params;
    member_plan(p, sums_of(p) * (int64_t)sizeof(T), out);
  }
  static void max_plan(const void* params, Plan* out) {
    const PoolParams& p = *(const PoolParams*)params;
    member_plan(p, folded(p) * (int64_t)(sizeof(T) + 1), out);
  }
  static void max_backward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    if (g.p.index_bytes == 4)
      backward_ix<true, int32_t>(g, buf, ctx);
    else
      backward_ix<true, uint8_t>(g, buf, ctx);
  }
  static void avg_backward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    backward_ix<false, uint8_t>(g, buf, ctx);
  }
};

const KernelEntry entries[] = {
    {"max_pool_backward", kF32, Backward<float>::max_backward, Backward<float>::max_plan},
    {"max_pool_backward", kF64, Backward<double>::max_backward, Backward<double>::max_plan},
    {"avg_pool_backward", kF32, Backward<float>::avg_backward, Backward<float>::avg_plan},
    {"avg_pool_backward", kF64, Backward<double>::avg_backward, Backward<double>::avg_plan},
};

}  // namespace

extern const KernelList pool_backward_kernels;
const KernelList pool_backward_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
