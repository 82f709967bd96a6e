// Gradients of maxima of few channels, and of averages where windows are two apart.
#pragma once
#include "pool/backward_average.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct FewGradients : AverageGradients<T> {
  using Base = AverageGradients<T>;
  using Base::add_equal;
  using Base::collect_pixel;
  using Base::kBytes;
  using Base::lanes_in;
  using Base::load_place;
  using Base::N;
  using Base::part;
  using Base::pick;
  using Base::place;
  using typename Base::Holders;
  using typename Base::I;
  using typename Base::P;
  using typename Base::Pattern;
  using typename Base::S;
  using typename Base::V;

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

  // ---- few channels, windows of K x K taps two apart both ways, K 2 or 3: pixels of dx
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
  // At least the first half of v.
  static GS_MEMBER void store_half(T* p, V v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm256_storeu_ps(p, _mm512_castps512_ps256((__m512)v));
#endif
    store(p, v);
  }
  // A row of dx of n elements that lies in ROWS rows of windows of `row` elements, at dy and index;
  // taps: of the three columns in each; room: elements that may be read; spill: whether more may be
  // written, behind the row.
  // MIDDLE: s.middle, or -1 where code for both is not worth its size.
  template <bool MAX, int K, int ROWS, int MIDDLE>
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
        const V d0 = K == 3 ? get(d, at, 0) : V{}, d1 = get(d, at + c, 1);
        const V dm = MIDDLE < 0 ? get(d, at + middle, 2) : MIDDLE ? d1 : d0;
        if (MAX) {
          const P p0 = K == 3 ? get_places(ix, at, 0) : P{};
          const P p1 = get_places(ix, at + c, 1);
          if (K == 3) shared = add_equal(shared, d0, p0, t[r][2]);
          shared = add_equal(shared, d1, p1, t[r][0]);
          const P pm = MIDDLE < 0 ? get_places(ix, at + middle, 2) : MIDDLE ? p1 : p0;
          alone = add_equal(alone, dm, pm, t[r][1]);
        } else {
          if (K == 3) shared += d0;
          shared += d1;
          alone += dm;
        }
      }
      left = pick(shared, alone, low);
      right = pick(shared, alone, high);
      if (!MAX) {
        left *= factor;
        right *= factor;
      }
    };
    const bool half = 2 * lanes <= N + N / 2;  // a whole one would lie in two lines more often
    const bool past = way == kPast && lanes == N, ahead = way == kOwn || way == kPast;
    const int64_t first = K == 3 ? 0 : -c, last = 2 * (room - c - N - at);
    int64_t most = spill ? n - 1 : n - 2 * N;
    if (most > last) most = last;
    while (k < n) {
      for (; k <= most && at >= first; at += lanes, k += 2 * lanes) {
        sums(
            [](const T* p, int64_t i, int)
                __attribute__((always_inline)) { return load_once(p + i); },
            [](const uint8_t* p, int64_t i, int)
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
        if (half)
          store_half(dx + k + N, right);
        else
          store(dx + k + N, right);
      }
      if (k >= n) break;
      const uint32_t in[3] = {lanes_in(at, row), lanes_in(at + c, row), lanes_in(at + middle, row)};
      sums(
          [=](const T* p, int64_t i, int w)
              __attribute__((always_inline)) { return part(p, i, in[w]); },
          [=](const uint8_t* p, int64_t i, int w)
              __attribute__((always_inline)) { return part(p, i, in[w]); });
      const int64_t rest = n - k < 2 * lanes ? n - k : 2 * lanes;
      store_n(dx + k, left, (int)(rest < N ? rest : N));
      if (rest > N) store_n(dx + k + N, right, (int)(rest - N));
      at += lanes;
      k += 2 * lanes;
    }
  }
  // Rows h .. h + count - 1 of dx, at dx; dy and index: their image; limit: the end of dy
  template <bool MAX, int K, int MIDDLE>
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
      // into the next row, whose turn comes
      const bool spill = K == 2 && n >= 2 * N && h + 1 < end;
      if (rows == 0)
        memset(dx, 0, (size_t)n * sizeof(T));
      else if (K == 2 || rows == 1)
        twin_row<MAX, K, 1, MIDDLE>(s, way, d, ix, row, room, c, taps + (h - g.y.start[i]), n,
                                    spill, factor, low, high, dx);
      else
        twin_row<MAX, K, 2, MIDDLE>(s, way, d, ix, row, row, c, both, n, spill, factor, low, high,
                                    dx);
    }
  }

  // ---- few channels, what is left: scattered within a sample
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
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
