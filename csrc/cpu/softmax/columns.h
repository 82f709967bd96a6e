// Softmax along an axis that is not the last: x, y, dx (n, inner), neighbouring columns together,
// lane by lane.
//
// float32 passes in slabs, blocks of columns as wide as the second level of cache holds: maxima,
// exp and results of three blocks in one sweep; anything else kColumns columns at a time.
#pragma once
#include "softmax/row.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int kColumns = 64;  // neighbouring columns that are worked on together

// Columns j .. j + count - 1 of (n, inner); one vector each of W
template <class T>
struct Columns {
  using V = typename simd<T>::V;
  static constexpr int N = simd<T>::N, W = kColumns / N;
  int64_t n, inner;
  int count;

  GS_MEMBER int lanes(int j) const {
    int k = count - j * N;
    return k < 0 ? 0 : (k < N ? k : N);
  }
  GS_MEMBER V at(const T* p, int64_t i, int j) const {
    const T* q = p + i * inner + j * N;
    return count >= (j + 1) * N ? load(q) : load_n(q, lanes(j));
  }
  GS_MEMBER void set(T* p, int64_t i, int j, V v) const {
    T* q = p + i * inner + j * N;
    if (count >= (j + 1) * N)
      store(q, v);
    else
      store_n(q, v, lanes(j));
  }
  // total[j] = sum over i of f(i, j), in blocks
  template <class F>
  GS_MEMBER void sum(V* total, F f) const {
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j) total[j] = V{};
    for (int64_t b = 0; b < n; b += 64) {
      int64_t e = b + 64 < n ? b + 64 : n;
      V s[W];
#pragma GCC unroll 4
      for (int j = 0; j < W; ++j) s[j] = V{};
      for (int64_t i = b; i < e; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < W; ++j) s[j] += f(i, j);
      }
#pragma GCC unroll 4
      for (int j = 0; j < W; ++j) total[j] += s[j];
    }
  }
};

template <class T>
void softmax_columns(const T* x, T* y, const Columns<T>& c, bool log) {
  using V = typename simd<T>::V;
  constexpr int W = Columns<T>::W;
  V m[W], s[W];
#pragma GCC unroll 4
  for (int j = 0; j < W; ++j) m[j] = set1(-(T)__builtin_inf());
  for (int64_t i = 0; i < c.n; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j) m[j] = max(m[j], c.at(x, i, j));
  }
  c.sum(
      s, [&](int64_t i, int j) __attribute__((always_inline)) {
        V e = exp_below(c.at(x, i, j) - m[j]);
        if (!log) c.set(y, i, j, e);
        return e;
      });
#pragma GCC unroll 4
  for (int j = 0; j < W; ++j) s[j] = log ? GS_ISA::log(s[j]) : 1 / s[j];
  for (int64_t i = 0; i < c.n; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j)
      c.set(y, i, j, log ? (c.at(x, i, j) - m[j]) - s[j] : c.at(y, i, j) * s[j]);
  }
}

// How (n, inner) is cut into blocks of columns: as wide as the second level of cache holds, all of
// inner if it can be. Lines of memory one after the other are what counts: a copy in blocks of 1,
// 2, 4, 8 lines a row takes 15, 13, 10, 7 cycles a line, and past the caches 20, 11, 7, 5.
struct Slabs {
  static constexpr int64_t kLeast = 64, kMost = 1024;  // columns, unless there are fewer
  int64_t n, inner, width, per;
  GS_MEMBER Slabs(const SoftmaxParams& p, int members) : n(p.n), inner(p.inner) {
    width = p.slab / (int64_t)sizeof(float) / n / kLeast * kLeast;
    width = width > kMost ? kMost : width;
    int64_t blocks = width > 0 ? (inner + width - 1) / width : 1;
    const int64_t wanted = (4 * members + p.outer - 1) / p.outer;  // for all to have work
    if (members > 1 && blocks < wanted) blocks = wanted;
    const int64_t even = ((inner + blocks - 1) / blocks + kLeast - 1) / kLeast * kLeast;
    width = width == 0 ? 0 : even < inner ? even : inner;
    per = width > 0 ? (inner + width - 1) / width : 1;
  }
  GS_MEMBER int64_t place(int64_t b) const { return b / per * n * inner + b % per * width; }
  // how far ahead rows are fetched: 8 KB, whole steps of four rows
  GS_MEMBER int64_t ahead() const {
    const int64_t rows = 2048 / width & ~(int64_t)3;
    return (rows < 4 ? 4 : rows) * inner;
  }
  GS_MEMBER int64_t count(int64_t b) const {
    const int64_t k = inner - b % per * width;
    return k < width ? k : width;
  }
};

// Blocks first .. last - 1 as row.h passes its rows: exp of this block, the maxima of the next and
// the results of the one before in one sweep, four rows of a vector of columns at a time. exp takes
// the place in e, n rows of whole vectors, that the one before leaves.
template <bool kLog>
void softmax_slabs(const float* x, float* y, const Slabs& slabs, int64_t first, int64_t last,
                   bool past, float* e) {
  constexpr int N = simd<float>::N;
  constexpr int64_t W = Slabs::kMost;
  const int64_t n = slabs.n, inner = slabs.inner, pitch = (slabs.width + N - 1) / N * N;
  const float low = -__builtin_inff();
  // of this block and the next: maxima; of this one: sums; of the one before: maxima, and
  // logarithms or reciprocals of sums
  alignas(64) float top[W], next[W], sum[W], total[W], m0[W], factor[W];
  auto sweep_slab = [&](int64_t b, auto now_, auto before_, auto full_)
      __attribute__((always_inline)) {
    // kNow: there is a block b; kBefore: there is one before it
    constexpr bool kNow = decltype(now_)::value, kBefore = decltype(before_)::value;
    constexpr bool kFull = decltype(full_)::value;
    const int64_t after = b + 1 < last ? b + 1 : b;
    const float *a = x + slabs.place(b), *c = x + slabs.place(after);
    const int64_t count = kNow ? slabs.count(b) : 0, count_after = slabs.count(after);
    const int64_t old = kBefore ? b - 1 : b, count_old = kBefore ? slabs.count(old) : 0;
    const float* from = x + slabs.place(old);
    float* to = y + slabs.place(old);
    const int64_t most = count > count_old ? count : count_old, ahead = slabs.ahead();
    const int64_t widest = kNow && count_after > most ? count_after : most;
    for (int64_t j = 0; j < widest; j += N) {
      store(next + j, set1(low));
      store(sum + j, vf{});
      store(total + j, vf{});
    }
    auto lanes = [](int64_t all, int64_t j) __attribute__((always_inline)) {
      const int64_t k = all - j;
      return kFull || k > simd<float>::N ? simd<float>::N : k < 0 ? 0 : (int)k;
    };
    auto rows = [&](int64_t i, int64_t j, auto count_) __attribute__((always_inline)) {
      constexpr int kCount = decltype(count_)::value;
      const int k = lanes(count, j), kc = lanes(count_after, j), kb = lanes(count_old, j);
      vf v[kCount], late[kCount], h = load(next + j);
      const vf m = load(top + j), f = load(factor + j), before = load(m0 + j);
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) {
        const int64_t at = (i + r) * inner + j;
        if (kNow) {
          v[r] = get(a + at, k) - m;
          h = max(h, get(c + at, kc));
          __builtin_prefetch(c + at + ahead);
        }
        if (kBefore)
          late[r] = kLog ? (get(from + at, kb) - before) - f : load(e + (i + r) * pitch + j) * f;
      }
      if (kNow) {
#pragma GCC unroll 4
        for (int r = 0; r < kCount; ++r) v[r] = exp_below(v[r]);
        store(next + j, h);
        if (kCount == 4)
          store(sum + j, load(sum + j) + ((v[0] + v[1]) + (v[kCount / 2] + v[kCount - 1])));
        else
          store(sum + j, load(sum + j) + v[0]);
      }
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) {
        if (kNow && !kLog) store(e + (i + r) * pitch + j, v[r]);
        float* p = to + (i + r) * inner + j;
        if (!kBefore) continue;
        if (kFull || kb == N)
          write(past, p, late[r]);
        else
          store_n(p, late[r], kb);
      }
    };
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) {
      for (int64_t j = 0; j < widest; j += N) rows(i, j, Count<4>());
      if (kNow && i % 256 == 252)  // no long chains of additions
        for (int64_t j = 0; j < count; j += N) {
          store(total + j, load(total + j) + load(sum + j));
          store(sum + j, vf{});
        }
    }
    for (; i < n; ++i)
      for (int64_t j = 0; j < widest; j += N) rows(i, j, Count<1>());
    for (int64_t j = 0; j < widest && kNow; j += N) {
      const vf s = load(total + j) + load(sum + j);
      store(factor + j, kLog ? GS_ISA::log(s) : 1 / s);
      store(m0 + j, load(top + j));
      store(top + j, load(next + j));
    }
  };
  {
    const float* a = x + slabs.place(first);
    const int64_t count = slabs.count(first);
    for (int64_t j = 0; j < count; j += N) store(top + j, set1(low));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < count; j += N) {
        const int k = count - j < N ? (int)(count - j) : N;
        store(top + j, max(load(top + j), get(a + i * inner + j, k)));
      }
  }
  const bool whole = inner % N == 0 && inner % slabs.width == 0;
  sweep_slab(first, Flag<true>(), Flag<false>(), Flag<false>());
  for (int64_t b = first + 1; b < last; ++b)
    if (whole)
      sweep_slab(b, Flag<true>(), Flag<true>(), Flag<true>());
    else
      sweep_slab(b, Flag<true>(), Flag<true>(), Flag<false>());
  sweep_slab(last, Flag<false>(), Flag<true>(), Flag<false>());
}

// The sums of a block, then its dx.
template <bool kLog>
void softmax_slabs_backward(const float* dy, const float* y, float* dx, const Slabs& slabs,
                            int64_t first, int64_t last, bool past) {
  constexpr int N = simd<float>::N;
  constexpr int64_t W = Slabs::kMost;
  const int64_t n = slabs.n, inner = slabs.inner;
  alignas(64) float sum[W], total[W];
  for (int64_t b = first; b < last; ++b) {
    const float *g = dy + slabs.place(b), *v = y + slabs.place(b);
    float* to = dx + slabs.place(b);
    const int64_t count = slabs.count(b);
    const int64_t step = slabs.place(b + 1) - slabs.place(b);
    auto sweep_slab = [&](auto full_) __attribute__((always_inline)) {
      constexpr bool kFull = decltype(full_)::value;
      auto lanes = [=](int64_t j) __attribute__((always_inline)) {
        return kFull || count - j > simd<float>::N ? simd<float>::N : (int)(count - j);
      };
      auto part = [=](int64_t at, int k) __attribute__((always_inline)) {
        const vf d = get(g + at, k);
        return kLog ? d : d * get(v + at, k);
      };
      for (int64_t j = 0; j < count; j += N) {
        store(sum + j, vf{});
        store(total + j, vf{});
      }
      int64_t i = 0;
      for (; i + 4 <= n; i += 4) {
        for (int64_t j = 0; j < count; j += N) {
          const int k = lanes(j);
          const int64_t at = i * inner + j;
          store(sum + j, load(sum + j) + ((part(at, k) + part(at + inner, k)) +
                                          (part(at + 2 * inner, k) + part(at + 3 * inner, k))));
        }
        if (i % 256 == 252)
          for (int64_t j = 0; j < count; j += N) {
            store(total + j, load(total + j) + load(sum + j));
            store(sum + j, vf{});
          }
      }
      for (; i < n; ++i)
        for (int64_t j = 0; j < count; j += N)
          store(sum + j, load(sum + j) + part(i * inner + j, lanes(j)));
      for (int64_t j = 0; j < count; j += N) store(sum + j, load(sum + j) + load(total + j));
      auto results = [&](int64_t i, auto count_) __attribute__((always_inline)) {
        constexpr int kCount = decltype(count_)::value;
        for (int64_t j = 0; j < count; j += N) {
          const int k = lanes(j);
          const vf s = load(sum + j);
          vf r[kCount];
#pragma GCC unroll 4
          for (int q = 0; q < kCount; ++q) {
            const int64_t at = (i + q) * inner + j;
            const vf d = get(g + at, k), p = get(v + at, k);
            if (kLog) __builtin_prefetch(v + step + at, 0, 2);  // the sums do not read it
            r[q] = kLog ? d - exp_below(p) * s : p * (d - s);
          }
#pragma GCC unroll 4
          for (int q = 0; q < kCount; ++q) {
            float* p = to + (i + q) * inner + j;
            if (kFull)
              write(past, p, r[q]);
            else
              put(p, r[q], k);
          }
        }
      };
      i = 0;
      if (GS_VBYTES == 64 || !past)  // past the caches both halves of a line at once
        for (; i + 4 <= n; i += 4) results(i, Count<4>());
      for (; i < n; ++i) results(i, Count<1>());
    };
    if (inner % N == 0)
      sweep_slab(Flag<true>());
    else
      sweep_slab(Flag<false>());
  }
}

template <class T>
void softmax_columns_backward(const T* dy, const T* y, T* dx, const Columns<T>& c, bool log,
                              bool past) {
  using V = typename simd<T>::V;
  constexpr int W = Columns<T>::W, N = simd<T>::N;
  const int64_t ahead = 8 * c.inner;
  V s[W];
  c.sum(
      s, [&](int64_t i, int j) __attribute__((always_inline)) {
        __builtin_prefetch(dy + i * c.inner + ahead + j * N);
        __builtin_prefetch(y + i * c.inner + ahead + j * N);
        V g = c.at(dy, i, j);
        return log ? g : g * c.at(y, i, j);
      });
  for (int64_t i = 0; i < c.n; ++i) {
    V r[W];
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j) {
      V g = c.at(dy, i, j), v = c.at(y, i, j);
      r[j] = log ? g - exp_below(v) * s[j] : v * (g - s[j]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < W; ++j)
      if (past)
        write<true>(dx + i * c.inner + j * N, r[j]);
      else
        c.set(dx, i, j, r[j]);
  }
}

// Bytes of a member's block of exp.
GS_INLINE int64_t slab_scratch(const SoftmaxParams& p) {
  const int64_t all = p.n * ((p.inner + Slabs::kLeast - 1) / Slabs::kLeast * Slabs::kLeast);
  const int64_t bytes = all * (int64_t)sizeof(float);
  return bytes < p.slab ? bytes : p.slab & ~(int64_t)63;
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
