// Few channels: windows of many pixels by vectors along their rows, and blocks of neighbouring
// pixels, whose taps come from two vectors of x by one permutation each.
#pragma once
#include "pool/forward_average.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct FewChannels : Averages<T> {
  using Base = Averages<T>;
  using Base::divisor;
  using Base::kFast;
  using Base::lanes;
  using Base::N;
  using Base::over;
  using Base::part;
  using Base::pick;
  using typename Base::Block;
  using typename Base::I;
  using typename Base::Pairs;
  using typename Base::S;
  using typename Base::V;

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

  // Averages of windows of K x K taps two apart, all divided by one number: rows i .. i + count - 1
  // of y of an image, whose end limit is not before. The columns of a window as in pair_columns,
  // of the sums of its rows.
  template <int K>
  static __attribute__((noinline)) void avg_pair_rows(const Geometry& g, const Pairs& s, const T* x,
                                                      const T* limit, int64_t i, int64_t count,
                                                      T* y) {
    const PoolParams& p = g.p;
    const int64_t c = p.c, line = p.w * c, n = p.ow * c, wide = s.pixels * c;
    const int64_t ahead = Base::ahead_far(p);
    const int64_t begin = ((K == 3 ? 1 : 0) - p.pw) * c;
    const T div = divisor(g, i, 0), inv = 1 / div;
    const I first = s.at[0], second = s.at[1], shift = s.shift;
    for (int64_t r = 0; r < count; ++r, y += n) {
      const int a0 = g.y.first[i + r], rows = g.y.last[i + r] - a0;
      if (rows <= 0) {
        memset(y, 0, (size_t)n * sizeof(T));
        continue;
      }
      const T* from = x + (g.y.start[i + r] + a0) * line;
      auto sum = [&](int64_t q, auto get, int rows) __attribute__((always_inline)) {
        V v = get(from, q);
#pragma GCC unroll 2
        for (int a = 1; a < rows; ++a) v += get(from + a * line, q);
        return v;
      };
      auto inside = [](const T* t, int64_t q) __attribute__((always_inline)) {
        return load(t + q);
      };
      auto edge = [=](const T* t, int64_t q) __attribute__((always_inline)) {
        return part(t, q, line);
      };
      int64_t q = begin, k = 0;
      V before = K == 3 && q > 0 ? sum(q - wide, edge, rows) : V{};
      auto block = [&](auto get, int rows, auto asks) __attribute__((always_inline)) {
        if (decltype(asks)::value)  // for the rows that the window above has not read
#pragma GCC unroll 2
          for (int v = 0; v < 2; ++v) {
            __builtin_prefetch(from + (K - 2) * line + q + ahead + v * Lanes<T>::N);
            __builtin_prefetch(from + (K - 1) * line + q + ahead + v * Lanes<T>::N);
          }
        const V left = sum(q, get, rows), right = sum(q + Lanes<T>::N, get, rows);
        const V e1 = pick(left, right, first), e2 = pick(left, right, second);
        V all = e1;
        if (K == 3) all = pick(before, e2, shift) + e1;
        before = e2;
        all = over(all + e2, div, inv);
        if (n - k >= Lanes<T>::N)
          store(y + k, all);
        else
          store_n(y + k, all, (int)(n - k));
        k += wide;
        q += 2 * wide;
      };
      const bool whole = g.x.last[p.ow - 1] == K;
      const int64_t last = (whole ? limit - from - (rows - 1) * line : line) - 2 * N;
      while (k < n) {
        if (rows < K)
          while (k < n && q >= 0 && q <= last) block(inside, rows, std::false_type());
        else if (ahead)
          while (k < n && q >= 0 && q <= last) block(inside, K, std::true_type());
        else
          while (k < n && q >= 0 && q <= last) block(inside, K, std::false_type());
        if (k < n) block(edge, rows, std::false_type());
      }
    }
  }

  // Windows of many pixels: vectors run along their rows. A period of channels is `period` vectors,
  // lane l of vector v holds channel (v N + l) % c; at the end lanes of one channel are folded.
  static GS_MEMBER int period_of(int64_t c) {
    return c == 1 || c == 2 || c == 4 ? 4 : c == 6 ? 3 : (int)c;
  }
  // Whole periods of M vectors of a row, from k on, with what is known of them in registers.
  template <bool MAX, int M>
  static __attribute__((noinline)) void wide_periods(const T* row, int64_t count, int64_t c,
                                                     const I* pixel, int64_t* k, I* first, V* best,
                                                     I* at) {
    V b[M];
    I from[M], tap = *first;
    int64_t j = *k;
    const I step = set1((S)(M * N / c));
#pragma GCC unroll 4
    for (int v = 0; v < M; ++v) {
      b[v] = best[v];
      from[v] = at[v];
    }
    for (; j + M * N <= count; j += M * N, tap += step)
#pragma GCC unroll 4
      for (int v = 0; v < M; ++v) {
        fetch(row + j + v * N);
        if (MAX)
          take<T>(load(row + j + v * N), tap + pixel[v], b[v], from[v]);
        else
          b[v] += load(row + j + v * N);
      }
#pragma GCC unroll 4
    for (int v = 0; v < M; ++v) {
      best[v] = b[v];
      if (MAX) at[v] = from[v];
    }
    *k = j;
    *first = tap;
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
        int64_t k = 0;
        if constexpr (kFast) {
          V* known = MAX ? best : row;
          if (m == 3) wide_periods<MAX, 3>(r, count, c, pixel, &k, &first, known, at);
          if (m == 4) wide_periods<MAX, 4>(r, count, c, pixel, &k, &first, known, at);
        }
        for (; k < count; k += m * N, first += set1((S)(m * N / c)))
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
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
