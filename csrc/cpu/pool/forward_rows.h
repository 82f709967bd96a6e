// Maxima row by row of x: those of a row's columns are kept in the first cache until windows have
// left the row. For larger windows that overlap, and few channels.
#pragma once
#include "pool/forward_windows.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct RowMaxima : WindowMaxima<T> {
  using Base = WindowMaxima<T>;
  using Base::load_place;
  using Base::N;
  using Base::note;
  using Base::pick;
  using Base::place;
  using Base::reach;
  using Base::store_place;
  using typename Base::Block;
  using typename Base::I;
  using typename Base::P;
  using typename Base::S;
  using typename Base::V;

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
          Base::template max_row<0>(g, kPlain, 0, 0, x, i + k, out, ix, from, to);
      }
    }
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
