// Maxima of windows of 2 x 2 and 3 x 3 taps, two apart both ways, and x read row after row.
#pragma once
#include "pool/forward_rows.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct PairMaxima : RowMaxima<T> {
  using Base = RowMaxima<T>;
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
        const bool spill = s.most >= p.ow && row >= N && r + 1 < count;
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
          Base::template max_row<0>(g, kPlain, 0, 0, x, i + r, y + r * row,
                                    index ? index + r * row : index, from, to);
      }
    }
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
