// Softmax and log-softmax, forward and backward, along any axis.
//
// x, y, dx (outer, n, inner). Along the last axis rows pass as row.h says, short ones as flat.h
// says. Along another axis blocks of neighbouring columns are worked on together, lane by lane, as
// wide as the second level of cache holds. Floor: one read and one write an element (three streams
// backward), 5 and 10 cycles a vector of 16 on Zen 5 for 8 MB past the caches; exp and what goes
// with it take 7. Tasks are groups of rows or of columns, cut by shape.
#include <string.h>

#include "softmax/flat.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int kColumns = 64;  // neighbouring columns that are worked on together

// (x - m) - f
struct Logarithm {
  static constexpr bool kAny = true;
  const float* x;
  float m, f;
  GS_MEMBER vf operator()(int64_t i, int k) const { return (get(x + i, k) - m) - f; }
};

// Rows of at most kLong elements: e of two rows lies in the first level of cache, or in `scratch`.
template <bool kLog>
void softmax_rows(const Ctx* ctx, int64_t rows, int64_t group, const float* x, float* y, int64_t n,
                  bool past, float* scratch) {
  const Cut cut(n);
  alignas(64) float room[2][kRoom];
  if (ctx->tid * group >= rows) return;
  float* rooms[2] = {cut.blocks > 1 ? scratch : room[0],
                     cut.blocks > 1 ? scratch + row_scratch(n) / 2 : room[1]};
  float base[2][kLong / kPart], most = row_max(x + ctx->tid * group * n, cut.ahead()), m = 0, f = 0;
  const float* from = nullptr;  // of the row before
  float* to = nullptr;
  Edge<float> line, *edge = past ? &line : nullptr;
  int now = 0;
  auto results = [&](int64_t b) __attribute__((always_inline)) {
    if constexpr (kLog)
      return Logarithm{from + b * cut.size, m, f};
    else
      return Scaled{from + b * cut.size, from ? f * block_factor(cut, base[1 - now], b, m) : 0.0f};
  };
  member_rows(
      ctx, rows, group, [](int64_t, int64_t) {},
      [&](int64_t r, int64_t after) {
        float top;
        const float s = row_blocks<!kLog>(cut, x + r * n, rooms[now], base[now], &top,
                                          x + after * n, &most, to, edge, results);
        f = kLog ? log_of(s) : 1 / s;
        m = top;
        to = y + r * n;
        from = kLog ? x + r * n : rooms[now];
        now = 1 - now;
      },
      [](int64_t) {});
  line.flush();
  for (int64_t b = 0; b < cut.blocks; ++b)
    row_to(past, to + b * cut.size, cut.count(b), results(b));
}

#if defined(GS_FLAT)
// past the caches takes whole lines of y
template <bool kLog>
void softmax_flat(const float* x, float* y, int64_t count, int64_t n, const Spread& spread,
                  bool past) {
  alignas(64) float room[2][kBatch];
  vf top[2][kGroups], low[2][kGroups];  // maximum; logarithm of the sum, or its reciprocal
  int now = 0;
  int64_t before = 0;  // groups of the batch before, which has yet to be written
  const float* last = nullptr;
  float* to = nullptr;
  const int64_t step = n * kN, ahead = batch_groups(n) * step;
  auto late = [&](int64_t g, int64_t j) __attribute__((always_inline)) {
    const int64_t i = g * step + j * kN;
    const vf f = spread.of(low[1 - now][g], j);
    if (kLog) return (load(last + i) - spread.of(top[1 - now][g], j)) - f;
    return load(room[1 - now] + i) * f;
  };
  auto put = [&](int64_t i, vf v) __attribute__((always_inline)) { write(past, to + i, v); };
  batches(
      count, n,
      [&](int64_t r, int64_t groups) {
        const float* a = x + r * n;
        float* e = room[now];
        for (int64_t g = 0; g < groups; ++g) top[now][g] = rows_max(a + g * step, n);
        exp_batch<true>(a, e, top[now], groups, before, n, ahead, spread, late, put);
        for (int64_t g = 0; g < groups; ++g) {
          vf s = rows_sum(e + g * step, n);
          low[now][g] = kLog ? log_of_sum(s) : reciprocal(s);
        }
        now = 1 - now;
        before = groups;
        last = a;
        to = y + r * n;
      },
      [&](int64_t r, int64_t rows) {
        alignas(64) float in[kBatch], out[kBatch];
        memset(in, 0, (size_t)step * sizeof(float));
        memcpy(in, x + r * n, (size_t)(rows * n) * sizeof(float));
        softmax_flat<kLog>(in, out, kN, n, spread, false);
        memcpy(y + r * n, out, (size_t)(rows * n) * sizeof(float));
      });
  exp_batch<true>(x, nullptr, nullptr, 0, before, n, 0, spread, late, put);
}

// The same for rows of whole vectors: what belongs to a row is one number for all of a vector, and
// sums and the maxima of the next batch are taken as exp is made: rows of 128 take 7.5 cycles a
// vector, not 9.5.
template <bool kLog>
void softmax_whole(const float* x, float* y, int64_t count, int64_t n, bool past) {
  constexpr int N = simd<float>::N;
  alignas(64) float room[2][kBatch];
  alignas(64) float top[3][kGroups * kN], low[2][kGroups * kN];
  int now = 0, was = 2, next = 1;  // maxima of this batch, of the one before, of the next
  int half = 0;                    // what else there is of this batch
  int64_t before = 0;              // rows of the batch before, which have yet to be written
  const float* last = nullptr;
  float* to = nullptr;
  const int64_t ahead = batch_groups(n) * n * kN;
  auto late = [&](int64_t r, int64_t i) __attribute__((always_inline)) {
    const float f = low[1 - half][r];
    if (kLog) return (load(last + i) - top[was][r]) - f;
    return load(room[1 - half] + i) * f;
  };
  // exp of a row of this batch, its lanes' sums; the results of the same row of the one before
  auto row = [&](const float* a, const float* b, int64_t r, vf* most, auto late_)
      __attribute__((always_inline)) {
    constexpr bool kLate = decltype(late_)::value;
    float* e = room[half];
    const float m = top[now][r];
    vf sum = {}, h = set1(-__builtin_inff());
    auto some = [&](int64_t i, auto count_) __attribute__((always_inline)) {
      constexpr int kCount = decltype(count_)::value;
      vf v[kCount], w[kCount];
#pragma GCC unroll 4
      for (int k = 0; k < kCount; ++k) {
        __builtin_prefetch(b + i + k * N + ahead);
        v[k] = load(a + i + k * N) - m;
        h = max(h, load(b + i + k * N));
        if (kLate) w[k] = late(r, i + k * N);
      }
#pragma GCC unroll 4
      for (int k = 0; k < kCount; ++k) v[k] = exp_below(v[k]);
#pragma GCC unroll 4
      for (int k = 0; k < kCount; ++k) {
        if (!kLog) store(e + i + k * N, v[k]);
        if (kLate) write(past, to + i + k * N, w[k]);
      }
      sum += kCount == 4 ? (v[0] + v[1]) + (v[kCount / 2] + v[kCount - 1])
                         : (kCount == 2 ? v[0] + v[kCount - 1] : v[0]);
    };
    int64_t i = r * n;
    const int64_t end = i + n;
    for (; i + 4 * N <= end; i += 4 * N) some(i, Count<4>());
    if (n & (2 * N)) some(i, Count<2>()), i += 2 * N;
    if (n & N) some(i, Count<1>());
    *most = h;
    return sum;
  };
  batches(
      count, n,
      [&](int64_t first, int64_t groups) {
        const float* a = x + first * n;
        if (first == 0)
          for (int64_t g = 0; g < groups; ++g)
            store(top[now] + g * kN, rows_max(a + g * kN * n, n));
        for (int64_t g = 0; g < groups; ++g) {
          vf sums[kN], most[kN];
          // the same group of the next batch, if there is one
          const bool more = first + (groups + g + 1) * kN <= count;
          const float* b = more ? a + groups * kN * n : a;
          if (g * kN < before)
            for (int r = 0; r < kN; ++r) sums[r] = row(a, b, g * kN + r, most + r, Flag<true>());
          else
            for (int r = 0; r < kN; ++r) sums[r] = row(a, b, g * kN + r, most + r, Flag<false>());
          const vf s = fold_rows<Plus>(sums);
          store(low[half] + g * kN, kLog ? log_of_sum(s) : reciprocal(s));
          store(top[next] + g * kN, fold_rows<Most>(most));
        }
        for (int64_t r = groups * kN; r < before; ++r)
          for (int64_t i = r * n; i < (r + 1) * n; i += N) write(past, to + i, late(r, i));
        half = 1 - half;
        const int old = was;
        was = now, now = next, next = old;
        before = groups * kN;
        last = a;
        to = y + first * n;
      },
      [&](int64_t first, int64_t rows) {
        alignas(64) float in[kBatch], out[kBatch];
        memset(in, 0, (size_t)(kN * n) * sizeof(float));
        memcpy(in, x + first * n, (size_t)(rows * n) * sizeof(float));
        softmax_whole<kLog>(in, out, kN, n, false);
        memcpy(y + first * n, out, (size_t)(rows * n) * sizeof(float));
      });
  for (int64_t r = 0; r < before; ++r)
    for (int64_t i = r * n; i < (r + 1) * n; i += N) write(past, to + i, late(r, i));
}

template <bool kLog>
void softmax_flat_backward(const float* dy, const float* y, float* dx, int64_t count, int64_t n,
                           const Spread& spread, bool past) {
  vf sum[kGroups];
  const int64_t step = n * kN, ahead = batch_groups(n) * step;
  auto some = [&](auto count_, const float* a, const float* b, float* to, int64_t i, int64_t j,
                  vf s) __attribute__((always_inline)) {
    constexpr int kCount = decltype(count_)::value;
    vf v[kCount];
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) {
      const int64_t at = i + k * kN;
      __builtin_prefetch(a + ahead + at);
      __builtin_prefetch(b + ahead + at);
      vf d = load(a + at), p = load(b + at), t = spread.of(s, j + k);
      v[k] = kLog ? d - exp_below(p) * t : p * (d - t);
    }
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) write(past, to + i + k * kN, v[k]);
  };
  batches(
      count, n,
      [&](int64_t r, int64_t groups) {
        const float *a = dy + r * n, *b = y + r * n;
        float* to = dx + r * n;
        for (int64_t g = 0; g < groups; ++g)
          sum[g] = rows_of<Plus>(
              n, [=](int row, int64_t i, int k) __attribute__((always_inline)) {
                const int64_t at = g * step + row * n + i;
                vf v = get(a + at, k);
                return kLog ? v : v * get(b + at, k);
              });
        for (int64_t g = 0; g < groups; ++g) {
          const vf s = sum[g];
          int64_t i = g * step, j = 0;
          for (; j + 4 <= n; j += 4, i += 4 * kN) some(Count<4>(), a, b, to, i, j, s);
          for (; j < n; ++j, i += kN) some(Count<1>(), a, b, to, i, j, s);
        }
      },
      [&](int64_t r, int64_t rows) {
        alignas(64) float in[2][kBatch], out[kBatch];
        memset(in[0], 0, (size_t)step * sizeof(float));
        memset(in[1], 0, (size_t)step * sizeof(float));
        memcpy(in[0], dy + r * n, (size_t)(rows * n) * sizeof(float));
        memcpy(in[1], y + r * n, (size_t)(rows * n) * sizeof(float));
        softmax_flat_backward<kLog>(in[0], in[1], out, kN, n, spread, false);
        memcpy(dx + r * n, out, (size_t)(rows * n) * sizeof(float));
      });
}
#endif

// Rows of any length, step by step
template <class T>
void softmax_row(const T* x, T* y, int64_t n, bool log) {
  T m, s = row_exp(x, log ? (T*)nullptr : y, n, &m), f = log ? log_of(s) : 1 / s;
  row_to(
      false, y, n, [=](int64_t i, int k) __attribute__((always_inline)) {
        return log ? (get(x + i, k) - m) - f : get(y + i, k) * f;
      });
}

template <class T>
void softmax_row_backward(const T* dy, const T* y, T* dx, int64_t n, bool log, bool stream) {
  using V = typename simd<T>::V;
  const bool once = n > kRoom;  // then the first sweep fetches, else the last one the next row
  const int64_t ahead = next_row<T>(n);
  T s = row_sum<T>(
      n, [=](int64_t i, int k) __attribute__((always_inline)) {
        if (once) {
          fetch(dy + i);
          fetch(y + i);
        }
        V g = get(dy + i, k);
        return log ? g : g * get(y + i, k);
      });
  row_to(
      stream, dx, n, [=](int64_t i, int k) __attribute__((always_inline)) {
        if (!once) {
          __builtin_prefetch(dy + i + ahead);
          __builtin_prefetch(y + i + ahead);
        }
        V g = get(dy + i, k), v = get(y + i, k);
        return log ? g - exp_below(v) * s : v * (g - s);
      });
}

// The sums of a few rows, then their dx, for cores whose prefetchers follow many streams: those of
// dy they find by themselves; y, which went past the caches, is fetched three rounds ahead. In the
// caches a row takes 5 cycles a vector, where pairs of rows, which load twice as much that begins
// within a line, take 8.
template <bool kLog>
__attribute__((noinline)) void softmax_rows_few(const Ctx* ctx, int64_t rows, int64_t group,
                                                const float* dy, const float* y, float* dx,
                                                int64_t n, bool past) {
  constexpr int N = simd<float>::N;
  constexpr int64_t kFew = 2048;  // elements of a round
  const int64_t few = kFew / n < 1 ? 1 : kFew / n, ahead = 3 * few * n;
  float sums[kFew / kNarrow];
  Edge<float> line;
  auto sum_of = [=](const float* g, const float* v) __attribute__((always_inline)) {
    auto part = [=](int64_t i, int k) __attribute__((always_inline)) {
      const vf a = get(g + i, k);
      return kLog ? a : a * get(v + i, k);
    };
    vf s[4] = {};
    int64_t i = 0;
    for (; i + 4 * N <= n; i += 4 * N)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) s[j] += part(i + j * N, N);
    for (; i + N <= n; i += N) s[0] += part(i, N);
    if (i < n) s[1] += part(i, (int)(n - i));
    return hsum((s[0] + s[1]) + (s[2] + s[3]));
  };
  auto write_row = [&](const float* g, const float* v, float* to, float sum)
      __attribute__((always_inline)) {
    auto result = [=](int64_t at, int k) __attribute__((always_inline)) {
      const vf a = get(g + at, k), b = get(v + at, k);
      return kLog ? a - exp_below(b) * sum : b * (a - sum);
    };
    const int k = past ? (int)((0 - (uintptr_t)to) % GS_VBYTES / sizeof(float)) : 0;
    int64_t i = k;
    if (k) line.head(to, result(0, k), k);
    for (; i + 4 * N <= n; i += 4 * N) {
      vf q[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        __builtin_prefetch(v + ahead + i + j * N);
        q[j] = result(i + j * N, N);
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) write(past, to + i + j * N, q[j]);
    }
    for (; i + N <= n; i += N) {
      __builtin_prefetch(v + ahead + i);
      write(past, to + i, result(i, N));
    }
    if (i == n) return;
    __builtin_prefetch(v + ahead + i);
    const int c = (int)(n - i);
    if (past)
      line.tail(to + i, result(i, c), c);
    else
      store_n(to + i, result(i, c), c);
  };
  for (int64_t b = ctx->tid * group; b < rows; b += ctx->nt * group) {
    const int64_t e = b + group < rows ? b + group : rows;
    for (int64_t r = b; r < e; r += few) {
      const int64_t count = r + few < e ? few : e - r;
      for (int64_t i = 0; i < count; ++i) sums[i] = sum_of(dy + (r + i) * n, y + (r + i) * n);
      for (int64_t i = 0; i < count; ++i)
        write_row(dy + (r + i) * n, y + (r + i) * n, dx + (r + i) * n, sums[i]);
    }
  }
  line.flush();
}

// Rows of at most kPaired elements: while dx of one is written the sum of the next one is taken,
// and the row after that is fetched.
constexpr int64_t kPaired = simd<float>::N * 256 < kPart ? simd<float>::N * 256 : kPart;
template <bool kLog>
__attribute__((noinline)) void softmax_rows_backward(const Ctx* ctx, int64_t rows, int64_t group,
                                                     const float* dy, const float* y, float* dx,
                                                     int64_t n, bool past) {
  constexpr int N = simd<float>::N;
  if (ctx->tid * group >= rows) return;
  const int64_t ahead = next_row<float>(n);
  auto part = [=](const float* g, const float* v, int k) __attribute__((always_inline)) {
    const vf a = get(g, k);
    return kLog ? a : a * get(v, k);
  };
  // to (n) from g and v, sum; returns the sum of the row at g2 and v2
  auto pass = [&](float* to, const float* g, const float* v, float sum, const float* g2,
                  const float* v2) __attribute__((always_inline)) {
    auto result = [=](int64_t i, int k) __attribute__((always_inline)) {
      const vf a = get(g + i, k), b = get(v + i, k);
      return kLog ? a - exp_below(b) * sum : b * (a - sum);
    };
    int64_t k = past ? (int64_t)((0 - (uintptr_t)to) % GS_VBYTES / sizeof(float)) : 0, i = 0;
    k = k < n ? k : n;
    if (k) store_n(to, result(0, (int)k), (int)k);
    vf s[4] = {};
    for (; i + 4 * N <= n - k; i += 4 * N) {
      vf r[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const int64_t at = i + j * N;
        __builtin_prefetch(g2 + at + ahead);
        __builtin_prefetch(v2 + at + ahead);
        r[j] = result(k + at, N);
        s[j] += part(g2 + at, v2 + at, N);
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) write(past, to + k + i + j * N, r[j]);
    }
    int64_t done = k + i;
    for (; done + N <= n; done += N) write(past, to + done, result(done, N));
    if (done < n) store_n(to + done, result(done, (int)(n - done)), (int)(n - done));
    // where the sum is in the row must not follow from where the line of dx begins
    for (; i + 4 * N <= n; i += 4 * N)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) s[j] += part(g2 + i + j * N, v2 + i + j * N, N);
    for (; i + N <= n; i += N) s[0] += part(g2 + i, v2 + i, N);
    if (i < n) s[1] += part(g2 + i, v2 + i, (int)(n - i));
    return hsum((s[0] + s[1]) + (s[2] + s[3]));
  };
  const int64_t first = ctx->tid * group * n;
  float sum = 0;
  {
    vf s[4] = {};
    int64_t i = 0;
    for (; i + 4 * N <= n; i += 4 * N)
      for (int j = 0; j < 4; ++j) s[j] += part(dy + first + i + j * N, y + first + i + j * N, N);
    for (; i + N <= n; i += N) s[0] += part(dy + first + i, y + first + i, N);
    if (i < n) s[1] += part(dy + first + i, y + first + i, (int)(n - i));
    sum = hsum((s[0] + s[1]) + (s[2] + s[3]));
  }
  member_rows(
      ctx, rows, group, [](int64_t, int64_t) {},
      [&](int64_t r, int64_t after) {
        sum = pass(dx + r * n, dy + r * n, y + r * n, sum, dy + after * n, y + after * n);
      },
      [](int64_t) {});
}

#if !defined(GS_FLAT)
template <class T>
void softmax_narrow(const T* x, T* y, int64_t n, int count, bool log) {
  using V = typename simd<T>::V;
  V z[kNarrow], e[kNarrow];
  for (int64_t c = n; c % simd<T>::N; ++c) z[c] = e[c] = V{};
  load_rows(x, n, count, z);
  V s = exp_lanes<T>(z, e, n);
  if (log) {
    V l = GS_ISA::log(s);
    for (int64_t c = 0; c < n; ++c) z[c] -= l;
    store_rows(z, n, count, y);
  } else {
    V r = 1 / s;
    for (int64_t c = 0; c < n; ++c) e[c] *= r;
    store_rows(e, n, count, y);
  }
}

template <class T>
void softmax_narrow_backward(const T* dy, const T* y, T* dx, int64_t n, int count, bool log) {
  using V = typename simd<T>::V;
  V g[kNarrow], v[kNarrow], s = {};
  for (int64_t c = n; c % simd<T>::N; ++c) g[c] = v[c] = V{};
  load_rows(dy, n, count, g);
  load_rows(y, n, count, v);
  if (log) {
    for (int64_t c = 0; c < n; ++c) s += g[c];
    for (int64_t c = 0; c < n; ++c) g[c] -= exp_below(v[c]) * s;
  } else {
    for (int64_t c = 0; c < n; ++c) s += g[c] * v[c];
    for (int64_t c = 0; c < n; ++c) g[c] = v[c] * (g[c] - s);
  }
  store_rows(g, n, count, dx);
}
#endif

// ---- along an axis that is not the last: neighbouring columns together, lane by lane

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

// rows(first, count) for inner == 1; columns(outer index, first column, count) otherwise
template <class R, class C>
GS_INLINE void softmax_tasks(const SoftmaxParams& p, const Ctx* ctx, R rows, C columns) {
  if (p.inner == 1) {
    int64_t group = rows_per_task(p.outer, p.n), tasks = (p.outer + group - 1) / group;
    for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
      int64_t e = (t + 1) * group < p.outer ? (t + 1) * group : p.outer;
      rows(t * group, e - t * group);
    }
    return;
  }
  int64_t per = (p.inner + kColumns - 1) / kColumns, tasks = p.outer * per;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t o = t / per, j = t % per * kColumns;
    columns(o, j, (int)(p.inner - j < kColumns ? p.inner - j : kColumns));
  }
}

template <class T>
GS_INLINE bool whole_lines(const T* y) {
  return ((uintptr_t)y & (GS_VBYTES - 1)) == 0;
}

// Bytes of a member's block of exp.
GS_INLINE int64_t slab_scratch(const SoftmaxParams& p) {
  const int64_t all = p.n * ((p.inner + Slabs::kLeast - 1) / Slabs::kLeast * Slabs::kLeast);
  const int64_t bytes = all * (int64_t)sizeof(float);
  return bytes < p.slab ? bytes : p.slab & ~(int64_t)63;
}

template <class T>
void softmax(const void* params, void* const* buf, const Ctx* ctx) {
  const SoftmaxParams& p = *(const SoftmaxParams*)params;
  const T* x = (const T*)buf[0];
  T* y = (T*)buf[1];
  const int64_t n = p.n;
  const bool log = p.log;
  auto columns = [&](int64_t o, int64_t j, int k) {
    int64_t at = o * p.n * p.inner + j;
    softmax_columns(x + at, y + at, Columns<T>{p.n, p.inner, k}, p.log);
  };
  if constexpr (sizeof(T) == 4) {
    bool past = p.outer * n * p.inner * (int64_t)sizeof(T) >= ctx->stream;
    if (p.inner >= simd<T>::N && n >= 4) {
      const Slabs slabs(p, ctx->nt);
      if (slabs.width > 0) {
        // half lines, four rows of them at a time, do not go past the caches
        past = past && GS_VBYTES == 64 && whole_lines(y) && p.inner % simd<T>::N == 0;
        float* room = log ? nullptr : (float*)(ctx->scratch + ctx->tid * slab_scratch(p));
        const int64_t blocks = p.outer * slabs.per;
        const int64_t b = blocks * ctx->tid / ctx->nt, e = blocks * (ctx->tid + 1) / ctx->nt;
        if (b < e)
          (log ? softmax_slabs<true> : softmax_slabs<false>)(x, y, slabs, b, e, past, room);
        if (past) write_fence();
        return;
      }
    }
#if defined(GS_FLAT)
    if (p.inner == 1 && n <= kFlat) {
      past = past && whole_lines(y);
      if (n % kN == 0 && n >= 64) {  // below, what is done a row costs more than it saves
        auto f = log ? softmax_whole<true> : softmax_whole<false>;
        softmax_tasks(
            p, ctx, [&](int64_t r, int64_t k) { f(x + r * n, y + r * n, k, n, past); }, columns);
      } else {
        const Spread spread(n);
        auto f = log ? softmax_flat<true> : softmax_flat<false>;
        softmax_tasks(
            p, ctx, [&](int64_t r, int64_t k) { f(x + r * n, y + r * n, k, n, spread, past); },
            columns);
      }
      if (past) write_fence();
      return;
    }
    const bool lanes = false;
#else
    const bool lanes = n <= kNarrow;
#endif
    if (p.inner == 1 && !lanes && n <= kLong) {
      float* scratch = (float*)ctx->scratch + ctx->tid * row_scratch(n);
      (log ? softmax_rows<true> : softmax_rows<false>)(ctx, p.outer, rows_per_task(p.outer, n), x,
                                                       y, n, past, scratch);
      if (past) write_fence();
      return;
    }
  }
  softmax_tasks(
      p, ctx,
      [&](int64_t r, int64_t count) {
        const T* from = x + r * n;
        T* to = y + r * n;
#if !defined(GS_FLAT)
        if constexpr (sizeof(T) == 4)
          if (n <= kNarrow)
            return narrow_rows(
                count, n, to, false, [=](int64_t i, int k, T* out) __attribute__((always_inline)) {
                  softmax_narrow(from + i * n, out, n, k, log);
                });
#endif
        for (int64_t i = 0; i < count; ++i) softmax_row(from + i * n, to + i * n, n, log);
      },
      columns);
}

template <class T>
void softmax_backward(const void* params, void* const* buf, const Ctx* ctx) {
  const SoftmaxParams& p = *(const SoftmaxParams*)params;
  const T *dy = (const T*)buf[0], *y = (const T*)buf[1];
  T* dx = (T*)buf[2];
  const int64_t n = p.n, bytes = p.outer * n * p.inner * (int64_t)sizeof(T);
  const bool log = p.log, stream = p.inner == 1 && bytes >= ctx->stream;
  const bool past_columns = streams(ctx, bytes, dx, p.inner * (int64_t)sizeof(T));
  auto columns = [&](int64_t o, int64_t j, int k) {
    int64_t at = o * p.n * p.inner + j;
    softmax_columns_backward(dy + at, y + at, dx + at, Columns<T>{p.n, p.inner, k}, p.log,
                             past_columns && k == kColumns);
  };
  if constexpr (sizeof(T) == 4)
    if (p.inner >= simd<T>::N && n >= 4) {
      const Slabs slabs(p, ctx->nt);
      if (slabs.width > 0) {
        const int64_t blocks = p.outer * slabs.per;
        const int64_t b = blocks * ctx->tid / ctx->nt, e = blocks * (ctx->tid + 1) / ctx->nt;
        (log ? softmax_slabs_backward<true> : softmax_slabs_backward<false>)(dy, y, dx, slabs, b, e,
                                                                             past_columns);
        if (past_columns) write_fence();
        return;
      }
    }
#if defined(GS_FLAT)
  if constexpr (sizeof(T) == 4)
    if (p.inner == 1 && n <= kFlat && (log || n < 64 || n % kN)) {
      const Spread spread(n);
      const bool past = stream && whole_lines(dx);
      auto f = log ? softmax_flat_backward<true> : softmax_flat_backward<false>;
      softmax_tasks(
          p, ctx,
          [&](int64_t r, int64_t k) { f(dy + r * n, y + r * n, dx + r * n, k, n, spread, past); },
          columns);
      if (past) write_fence();
      return;
    }
#endif
  if constexpr (sizeof(T) == 4)
    if (p.inner == 1 && n > kNarrow && n <= kPaired) {
      // past the caches, short rows 0.9x, log-softmax 1.0x
      auto f = ctx->follows && (!stream || (n >= 256 && !log))
                   ? (log ? softmax_rows_few<true> : softmax_rows_few<false>)
                   : (log ? softmax_rows_backward<true> : softmax_rows_backward<false>);
      f(ctx, p.outer, rows_per_task(p.outer, n), dy, y, dx, n, stream);
      if (stream) write_fence();
      return;
    }
  softmax_tasks(
      p, ctx,
      [&](int64_t r, int64_t count) {
        const T *g = dy + r * n, *v = y + r * n;
        T* to = dx + r * n;
#if !defined(GS_FLAT)
        if constexpr (sizeof(T) == 4)
          if (n <= kNarrow)
            return narrow_rows(
                count, n, to, stream, [=](int64_t i, int k, T* out) __attribute__((always_inline)) {
                  softmax_narrow_backward(g + i * n, v + i * n, out, n, k, log);
                });
#endif
        for (int64_t i = 0; i < count; ++i)
          softmax_row_backward(g + i * n, v + i * n, to + i * n, n, log, stream);
      },
      columns);
  if (stream || past_columns) write_fence();
}

template <class T>
void softmax_plan(const void* params, Plan* plan) {
  const SoftmaxParams& p = *(const SoftmaxParams*)params;
  int64_t group = rows_per_task(p.outer, p.n);
  plan->tasks = p.inner == 1 ? (p.outer + group - 1) / group
                             : p.outer * ((p.inner + kColumns - 1) / kColumns);
  plan->work = p.outer * p.n * p.inner * (sizeof(T) == 8 ? 8 : 1) / 2 + p.outer * 20;
  if (sizeof(T) == 4 && p.inner == 1 && !p.log)
    plan->scratch = (size_t)(p.threads * row_scratch(p.n)) * sizeof(T);
  if (sizeof(T) == 4 && p.inner >= simd<float>::N && p.n >= 4 && !p.log)
    plan->scratch = (size_t)(p.threads * slab_scratch(p));
}

#define GS_BOTH(name, f, plan) \
  {name, kF32, f<float>, plan<float>}, { name, kF64, f<double>, plan<double> }
const KernelEntry entries[] = {
    GS_BOTH("softmax", softmax, softmax_plan),
    GS_BOTH("softmax_backward", softmax_backward, softmax_plan),
};

}  // namespace

extern const KernelList softmax_softmax_kernels;
const KernelList softmax_softmax_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
