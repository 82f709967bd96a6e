// Softmax of rows, the last axis: x, y, dx (rows, n).
//
// Rows pass as row.h says, short ones as the flat array they are (flat.h), a lane a row where that
// is not compiled. In which order rows are read, their sums taken and results written is what the
// forms differ in.
#pragma once
#include <string.h>

#include "softmax/flat.h"

namespace gs {
namespace GS_ISA {
namespace {

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

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
