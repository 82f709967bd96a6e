// Gradients of averages of any windows: sums over rows of windows, then over columns.
#pragma once
#include "pool/backward_fold.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct AverageGradients : Folded<T> {
  using Base = Folded<T>;
  using Base::divisor;
  using Base::N;
  using Base::pick;
  using typename Base::I;
  using typename Base::S;
  using typename Base::V;

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
  // The first c elements of `to` again, until there are n, twice as many each time.
  static __attribute__((noinline)) void repeat(T* to, int64_t c, int64_t n) {
    for (int64_t done = c, more; done < n; done += more) {
      more = done < n - done ? done : n - done;
      T* out = to + done;
      int64_t k = 0;
      for (; k + N <= more; k += N) store(out + k, load(to + k));
      if (k < more) store_n(out + k, load_n(to + k, (int)(more - k)), (int)(more - k));
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
  static __attribute__((noinline, aligned(64))) void average_pairs(Way way, const T* from,
                                                                   int64_t c, int64_t pairs,
                                                                   V scale, T* to) {
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
    // a row of one window is its first pixel again, others the row before where the first level has
    // it
    const bool one = p.ow == 1 && !pattern && (c < N || way != kPast);
    if (known && (c < N || (way != kPast && (!one || p.w * c * (int64_t)sizeof(T) <= 32768)))) {
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
        if (one && g.x.lo[w] < g.x.hi[w]) {
          const int64_t end = g.x.start[0] + g.x.last[0];
          repeat(to, c, (end - w) * c);
          w = end - 1;
        }
      }
    }
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
