// Maxima of windows of 2 x 2 and 3 x 3 taps, two apart both ways, and x read row after row.
#pragma once
#include "pool/forward_rows.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct PairMaxima : RowMaxima<T> {
  using Base = RowMaxima<T>;
  using Base::kBytes;
  using Base::lanes;
  using Base::load_place;
  using Base::N;
  using Base::pick;
  using Base::place;
  using Base::reach;
  using Base::store_place;
  using typename Base::I;
  using typename Base::P;
  using typename Base::S;
  using typename Base::V;

  // ---- maxima of K x K windows, K 2 or 3, two apart both ways: one row of x after the other. Each
  // gives the maxima of its windows' columns; those of a window's rows meet in the first cache.
  // With K 3 a window's last row is the first of the window below, so its maxima are kept and each
  // row of x is read once. Few channels: a vector holds whole pixels of y, whose second and third
  // columns come from two vectors of x by one permutation each and the first from the third of the
  // pixel before. c >= N: max_three_rows.
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
  template <int K, int ROWS, class F>
  static GS_MEMBER void pair_columns(const Geometry& g, const Pairs& s, const T* x, int64_t room,
                                     int64_t from, int64_t to, bool spill, V* odd, F f) {
    const PoolParams& p = g.p;
    const int64_t c = p.c, line = p.w * c;
    const V low = set1(-(T)__builtin_inf());
    int64_t o = 0;
    const int64_t step = 2 * s.pixels * c, wide = s.pixels * c, n = (to - from) * c;
    int64_t q = (2 * from - p.pw + (K == 3 ? 1 : 0)) * c, k = 0;
    const int64_t ahead = Base::ahead(p);
    const I first = s.at[0], second = s.at[1], shift = s.shift;
    V before = low;
    if (K == 3 && q > 0) {
      before = lanes(x, q - wide, line);
      *odd += before;  // the first column is in no other vector
    }
    auto block = [&](auto get, auto whole) __attribute__((always_inline)) {
      V h = {};
      P at = place(0);
#pragma GCC unroll 2
      for (int a = 0; a < ROWS; ++a) {
        __builtin_prefetch(x + a * line + q + ahead);
        __builtin_prefetch(x + a * line + q + ahead + Lanes<T>::N);
        const V left = get(x + a * line, q), right = get(x + a * line, q + Lanes<T>::N);
        *odd += left + right;
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
    const int64_t fit = last < 0 ? 0 : last / 2 + 1;
    int64_t end = spill ? n : n - N + 1;
    if (end > fit) end = fit;
    while (k < n) {
      while (k < end)
        block(
            [](const T* r, int64_t i) __attribute__((always_inline)) { return load_once(r + i); },
            std::true_type());
      if (k < n)
        block(
            [=](const T* r, int64_t i) __attribute__((always_inline)) { return lanes(r, i, line); },
            std::false_type());
    }
  }
  // The first n of the bytes that store_place writes.
  static GS_MEMBER void store_places(uint8_t* p, P at, int64_t n) {
    uint8_t all[16];
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
  template <int K>
  static __attribute__((noinline)) void max_pair_rows(const Geometry& g, const Pairs& s, const T* x,
                                                      const T* limit, int64_t i, int64_t count,
                                                      T* y, uint8_t* index) {
    constexpr int64_t kRoom = Pairs::kVectors * N;
    const PoolParams& p = g.p;
    const int64_t c = p.c, line = p.w * c, row = p.ow * c, lanes_ = s.pixels * c;
    const int none = p.relu ? K * K : 0;
    const V inf = set1((T)__builtin_inf());
    alignas(64) T value[kRoom];
    alignas(64) uint8_t places[kRoom];
    const int64_t room = limit - x;
    for (int64_t from = 0, to; from < p.ow; from = to) {
      to = from + s.most < p.ow ? from + s.most : p.ow;
      bool known = false, kept = true;  // whether value holds the first row, without a NaN
      for (int64_t r = 0; r < count; ++r) {
        int64_t t = g.y.start[i + r];
        T* out = y + r * row + from * c;
        uint8_t* ix = index ? index + r * row + from * c : index;
        V odd = {}, least = inf;
        // into the row below, whose turn is next
        const bool spill = s.most >= p.ow && row >= N && r + 1 < count;
        // vector o of y
        auto emit = [&](int64_t k, V best, P at, auto whole) __attribute__((always_inline)) {
          V size = none ? abs(best) : best;
          if (none) reach(V{}, place(none), best, at);
          if constexpr (!decltype(whole)::value) {
            const int64_t rest = (to - from) * c - k;
            if (rest < Lanes<T>::N) {
              const int64_t n = rest < lanes_ ? rest : lanes_;
              least = min(least, iota<T>() < set1((S)n) ? size : inf);
              store_n(out + k, best, (int)n);
              if (ix) store_places(ix + k, at, n);
              return;
            }
          }
          put<true>(kPlain, out + k, best, N);
          least = min(least, size);
          if (ix) store_place(ix + k, at);
        };
        bool fine = true;
        if (K == 3) {
          if (!known) {
            V first = {};
            if (t >= 0)
              pair_columns<K, 1>(
                  g, s, x + t * line, room - t * line, from, to, false,
                  &first, [&](int64_t o, int64_t, V h, P at, auto) __attribute__((always_inline)) {
                    store(value + o, h);
                    store_place(places + o, at);
                  });
            else
              for (int64_t o = 0; o < kRoom; o += N) {
                store(value + o, -inf);
                store_place(places + o, place(0));
              }
            kept = !any_nan(first);
          }
          fine = kept;
          ++t;
        }
        // short rows both at once, as little as there is to gain by walking along one
        if (K == 2 && t + 1 < p.h && line * (int64_t)sizeof(T) < 1024) {
          pair_columns<K, K == 2 ? 2 : 1>(
              g, s, x + t * line, room - (t + 1) * line, from, to, spill,
              &odd, [&](int64_t, int64_t k, V h, P at, auto whole) __attribute__((always_inline)) {
                emit(k, h, at, whole);
              });
          fine = !any_nan(odd);
        } else {
          if (t < p.h) {
            pair_columns<K, 1>(
                g, s, x + t * line, room - t * line, from, to, false,
                &odd, [&](int64_t o, int64_t, V h, P at, auto) __attribute__((always_inline)) {
                  if (K == 3) {
                    V best = load(value + o);
                    P tap = load_place(places + o);
                    reach(h, at + place(K), best, tap);
                    h = best;
                    at = tap;
                  }
                  store(value + o, h);
                  store_place(places + o, at);
                });
            fine = fine && !any_nan(odd);
          }
          known = ++t < p.h;
          if (known) {
            odd = V{};
            pair_columns<K, 1>(
                g, s, x + t * line, room - t * line, from, to, spill, &odd,
                [&](int64_t o, int64_t k, V h, P at, auto whole) __attribute__((always_inline)) {
                  V best = load(value + o);
                  P tap = load_place(places + o);
                  if (K == 3) {
                    store(value + o, h);
                    store_place(places + o, at);
                  }
                  reach(h, at + place(K * (K - 1)), best, tap);
                  emit(k, best, tap, whole);
                });
            kept = !any_nan(odd);
            fine = fine && kept;
          } else {
            const T* v = value;
            const uint8_t* q = places;
            for (int64_t j = 0; j < to - from; j += s.pixels, v += N, q += N)
              emit(j * c, load(v), load_place(q), std::false_type());
          }
        }
        if (!fine || any_nan(least > (none ? V{} : -inf) ? V{} : set1((T)__builtin_nan(""))))
          Base::template max_row<0>(g, kPlain, 0, 0, x, i + r, y + r * row,
                                    index ? index + r * row : index, from, to);
      }
    }
  }
  // ---- maxima of 3 x 3 windows two apart both ways, c >= N: one row of x after the other, as it
  // lies in memory. The maxima of a row's columns meet in the first cache with what is kept of the
  // rows above; those of a window's last row are the first of the window below. A column or row
  // that lies outside is read as the one before it, which changes no maximum and no place. Windows
  // side by side of the same columns:
  struct Three {
    int64_t x, y, n, o;        // where they begin in their rows, how many, where maxima are kept
    int64_t c, second, third;  // channels; where columns lie behind the first inside
    int64_t ahead;             // how far ahead lines are asked for
    int first;                 // that column

    // from j on, before `end`; whole .. rest: columns whose windows lie inside; part: rows are
    // walked down in parts
    GS_MEMBER void init(const Geometry& g, int64_t j, int64_t end, int64_t whole, int64_t rest,
                        bool part) {
      c = g.p.c;
      ahead = part ? g.p.w * c : Base::ahead(g.p);
      first = g.x.first[j];
      const int last = g.x.last[j];
      second = first == 0 && last > 1 ? c : 0;
      third = last == 3 ? (2 - first) * c : second;
      n = j < whole || j >= rest ? 1 : (rest < end ? rest : end) - j;
      x = (g.x.start[j] + first) * c;
      y = j * c;
    }
  };
  // Those of columns from .. to of y: the first one, the last one and all between. wide: elements
  // kept of n.
  template <class F>
  static GS_MEMBER int three_runs(const Geometry& g, const Pairs& s, int64_t from, int64_t to,
                                  Three* runs, F wide) {
    int64_t whole, rest;
    int many = 0;
    Base::inside(g, &whole, &rest);
    for (int64_t j = from, o = 0; j < to; j += runs[many++].n) {
      runs[many].init(g, j, to, whole, rest, s.most < g.p.ow);
      runs[many].o = o;
      o += wide(runs[many].n);
    }
    return many;
  }
  // The runs of a row of x, the first of the windows, the second or the last: kTop keeps its
  // maxima, kMiddle adds them to what is kept, kEnd makes y of both and keeps its own.
  // odd: NaN where a window's last two columns have one; least: the least maximum.
  // M: if not 0, a pixel is M vectors and a half (float), and two windows side by side are whole
  // vectors, whose middle one has lanes of both; those begin at even columns, so that they are
  // aligned.
  enum Row { kTop, kMiddle, kEnd };
  template <Row ROW, bool PAST, int M>
  static __attribute__((noinline)) void three_run(const T* x, const Three& run, int none, Way way,
                                                  T* value, uint8_t* places, T* y, uint8_t* index,
                                                  V* odd, V* least) {
    const Three s = run;  // which no store of bytes can change
    const int64_t c = M ? M * N + N / 2 : s.c;
    const int row = ROW == kMiddle ? 3 : 0;
    const P zero = place(row + s.first), one = place(row + 1), two = place(row + 2);
    const P six = place(6);
    V nan = *odd, low = *least;
    value += s.o;
    places += s.o;
    x += s.x;
    y += s.y;
    // N elements of y, k behind the window's begin, whose columns are these
    auto vector = [&](V e0, V e1, V e2, int64_t k) __attribute__((always_inline)) {
      P at = zero;
      nan += e1 + e2;
      reach(e1, one, e0, at);
      reach(e2, two, e0, at);
      if (ROW != kTop) {
        V best = load_once(value);
        P tap = load_place(places);
        reach(e0, ROW == kEnd ? at + six : at, best, tap);
        if (ROW == kMiddle) {
          e0 = best;
          at = tap;
        } else {
          V size = best;
          if (none) {
            size = abs(best);
            reach(V{}, place(none), best, tap);
          }
          low = min(low, size);
          Base::template result<PAST>(way, y + k, best);
          store_place(index + k, tap);
        }
      }
      store(value, e0);
      store_place(places, at);
      value += N;
      places += N;
    };
    auto step = [&](int64_t windows) __attribute__((always_inline)) {
      x += windows * 2 * c;
      y += windows * c;
      index += windows * c;
    };
    auto pixel = [&]() __attribute__((always_inline)) {
      for (int64_t k = 0; k < c; k += N) {
        if (k + N > c) k = c - N;
        const T* q = x + k;
        __builtin_prefetch(q + s.ahead);
        __builtin_prefetch(q + s.ahead + s.second);
        vector(load_once(q), load_once(q + s.second), load_once(q + s.third), k);
      }
      step(1);
    };
    const bool odd_begin = M > 0 && s.y / c % 2;
    for (int64_t j = 0; j < s.n;) {
      if (M == 0 || j + 2 > s.n || (j == 0 && odd_begin)) {
        pixel();
        ++j;
        continue;
      }
#pragma GCC unroll 7
      for (int64_t v = 0; v < 2 * M + 1; ++v) {
        const T* q = x + v * N + (v > M ? c : 0);
        __builtin_prefetch(q + s.ahead);
        __builtin_prefetch(q + s.ahead + c);
        V e0 = load_once(q), e1 = load_once(q + c), e2 = load_once(q + 2 * c);
        if (v == M) {
          e0 = halves(e0, e1);
          e1 = halves(e1, e2);
          e2 = halves(e2, load_once(q + 3 * c));
        }
        vector(e0, e1, e2, v * N);
      }
      step(2);
      j += 2;
    }
    *odd = nan;
    *least = low;
  }
  // the first lanes of a, the last of b
  static GS_MEMBER V halves(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return (V)_mm512_mask_mov_ps((__m512)a, 0xff00, (__m512)b);
#endif
    for (int l = N / 2; l < N; ++l) a[l] = b[l];
    return a;
  }
  static __attribute__((noinline)) void max_three_rows(const Geometry& g, const Pairs& s, Way way,
                                                       const T* x, int64_t i, int64_t count, T* y,
                                                       uint8_t* index) {
    constexpr int64_t kRoom = Pairs::kVectors * N;
    const PoolParams& p = g.p;
    const int64_t c = p.c, line = p.w * c, row = p.ow * c;
    const int64_t wide = (c + N - 1) / N * N;  // of a pixel, what is kept
    const int none = p.relu ? 9 : 0;
    const V inf = set1((T)__builtin_inf());
    constexpr int M = kBytes ? 1 : 0;
    const bool halves = kBytes && c == N + N / 2;
    const auto top_run = halves ? three_run<kTop, false, M> : three_run<kTop, false, 0>;
    const auto middle_run = halves ? three_run<kMiddle, false, M> : three_run<kMiddle, false, 0>;
    const auto end_run = halves             ? three_run<kEnd, false, M>
                         : Base::apart(way) ? three_run<kEnd, kBytes, 0>
                                            : three_run<kEnd, false, 0>;
    alignas(64) T value[kRoom];
    alignas(64) uint8_t places[kRoom], spare[kRoom];
    for (int64_t from = 0, to; from < p.ow; from = to) {
      to = from + s.most < p.ow ? from + s.most : p.ow;
      Three runs[4];
      const int many = three_runs(g, s, from, to, runs, [=](int64_t n) { return n * wide; });
      // the first column, which is no other window's last
      auto begin = [&](const T* r) __attribute__((always_inline)) {
        V odd = {};
        for (int64_t k = 0; k < c; k += N) odd += load(r + runs[0].x + (k + N > c ? c - N : k));
        return odd;
      };
      bool known = false, kept = true;  // whether value holds the first row, without a NaN
      V least = inf;
      for (int64_t r = 0; r < count; ++r) {
        const int64_t t = g.y.start[i + r], bottom = p.h - 1;
        if (!known) {
          kept = true;
          if (t >= 0) {
            const T* top = x + t * line;
            V odd = begin(top);
            for (int v = 0; v < many; ++v)
              top_run(top, runs[v], none, kPlain, value, places, y, spare, &odd, &least);
            kept = !any_nan(odd);
          } else {
            for (int64_t o = 0; o < (to - from) * wide; o += N) {
              store(value + o, -inf);
              store_place(places + o, place(0));
            }
          }
        }
        const T* mid = x + (t + 1 < bottom ? t + 1 : bottom) * line;
        const T* end = x + (t + 2 < bottom ? t + 2 : bottom) * line;
        T* out = y + r * row;
        V odd = begin(mid), more = begin(end);
        least = inf;
        for (int v = 0; v < many; ++v)
          middle_run(mid, runs[v], none, kPlain, value, places, y, spare, &odd, &least);
        for (int v = 0; v < many; ++v)
          end_run(end, runs[v], none, way, value, places, out,
                  index ? index + r * row + runs[v].y : spare, &more, &least);
        known = t + 2 <= bottom;
        bool fine = kept && !any_nan(odd);
        kept = !any_nan(more);
        fine = fine && kept;
        if (!fine || any_nan(least > (none ? V{} : -inf) ? V{} : set1((T)__builtin_nan(""))))
          Base::template max_row<0>(g, kPlain, 0, 0, x, i + r, y + r * row,
                                    index ? index + r * row : index, from, to);
      }
    }
  }

  // ---- the same at stride 1, c >= N, no ReLU: maxima of a row's columns are kept for two rows,
  // and windows of the same columns are one run of elements. ALL: n elements of y, whose windows
  // end in this row of x; above: what is kept of the row above; value: of the one before that, then
  // of this one. Not ALL: this row is just kept. PAST: y goes past the caches. A branch on that and
  // pointers that do not fit into registers are worth 1.5 of 7 cycles a vector.
  template <bool ALL, bool PAST>
  static __attribute__((noinline)) void one_row(const T* row, const Three* runs, int many, Way way,
                                                T* value, uint8_t* places, const T* above,
                                                const uint8_t* before, T* out, uint8_t* index,
                                                V* odd) {
    const P one = place(1), two = place(2), three = place(3), six = place(6);
    V nan = *odd;
    for (; many > 0; --many, ++runs) {
      const Three s = *runs;  // which no store of bytes can change
      const int64_t n = s.n * s.c;
      const P zero = place(s.first);
      const T* x = row + s.x;
      T* y = out + s.y;
      uint8_t* ix = index + s.y;
      auto vector = [&](int64_t k, int64_t o) __attribute__((always_inline)) {
        const T* q = x + k;
        __builtin_prefetch(q + s.ahead);
        V h = load_once(q);
        P at = zero;
        const V e1 = load_once(q + s.second), e2 = load_once(q + s.third);
        nan += e1;
        reach(e1, one, h, at);
        reach(e2, two, h, at);
        if (ALL) {
          V best = load_once(value + o);
          P tap = load_place(places + o);
          reach(load_once(above + o), load_place(before + o) + three, best, tap);
          reach(h, at + six, best, tap);
          Base::template result<PAST>(way, y + k, best);
          store_place(ix + k, tap);
        }
        store(value + o, h);
        store_place(places + o, at);
      };
      int64_t k = 0;
      for (; k + N <= n; k += N) vector(k, k);
      if (k < n) vector(n - N, k), k += N;
      value += k;
      places += k;
      above += k;
      before += k;
    }
    *odd = nan;
  }
  static __attribute__((noinline)) void max_one_rows(const Geometry& g, const Pairs& s, Way way,
                                                     const T* x, int64_t i, int64_t count, T* y,
                                                     uint8_t* index) {
    constexpr int64_t kRoom = Pairs::kVectors * N;
    const PoolParams& p = g.p;
    const int64_t c = p.c, line = p.w * c, row = p.ow * c, bottom = p.h - 1;
    alignas(64) T value[2][kRoom];
    alignas(64) uint8_t places[2][kRoom], spare[kRoom];
    for (int64_t from = 0, to; from < p.ow; from = to) {
      to = from + s.most < p.ow ? from + s.most : p.ow;
      Three runs[4];
      const int many =
          three_runs(g, s, from, to, runs, [=](int64_t n) { return (n * c + N - 1) / N * N; });
      bool well[3] = {};  // whether there is no NaN in the last three rows
      int64_t t = g.y.start[i];
      for (int64_t k = -2; k < count; ++k, ++t) {
        T* kept = value[k & 1];
        uint8_t* at = places[k & 1];
        T* out = y + k * row;
        uint8_t* ix = index ? index + k * row : spare;
        V odd = {};
        if (t < 0) {
          // a row outside: its tap is that of the first inside, should all of those be -inf
          for (int v = 0; v < many; ++v)
            for (int64_t o = runs[v].o, end = o + runs[v].n * c; o < end; o += N) {
              store(kept + o, set1(-(T)__builtin_inf()));
              store_place(at + o, place(3 + runs[v].first));
            }
        } else {
          const T* r = x + (t < bottom ? t : bottom) * line;
          // the columns at both ends are not the middle of a window here
          const int64_t last = runs[many - 1].x + (runs[many - 1].n - 1) * c + runs[many - 1].third;
          for (int64_t v = 0; v < c; v += N) {
            const int64_t l = v + N > c ? c - N : v;
            odd += load(r + runs[0].x + l) + load(r + last + l);
          }
          // without an index places go nowhere
          uint8_t* places_to = index ? ix : spare - from * c;
          if (k < 0)
            one_row<false, false>(r, runs, many, kPlain, kept, at, kept, at, y, spare, &odd);
          else
            (Base::apart(way) ? one_row<true, kBytes>
                              : one_row<true, false>)(r, runs, many, way, kept, at, value[~k & 1],
                                                      places[~k & 1], out, places_to, &odd);
        }
        well[0] = well[1], well[1] = well[2], well[2] = !any_nan(odd);
        if (k >= 0 && !(well[0] && well[1] && well[2]))
          Base::template max_row<0>(g, kPlain, 0, 0, x, i + k, out, index ? ix : index, from, to);
      }
    }
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
