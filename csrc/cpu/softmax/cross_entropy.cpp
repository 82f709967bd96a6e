// Softmax cross-entropy: loss and gradient in one pass.
//
// x, d (rows, classes), targets (rows) or probabilities (rows, classes), loss (rows) or one value.
// dlogits = (sum q) p - q, where q are the weighted, smoothed targets: so loss and gradient cost
// one read and one write of the logits, 10 cycles a vector of 16 at the speed of a copy; exp and
// what goes with it take 8. Rows pass as row.h and flat.h say. The class of the target is taken off
// the row of exp before it is scaled: there q is the sum. Tasks are groups of rows cut by shape;
// sums over rows run in order of the groups.
#include <string.h>

#include "simd/flush.h"
#include "softmax/flat.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int32_t kIgnored = -1, kWrong = -2;  // beside the classes

struct Target {
  const void* p;
  DType dtype;
  // The classes of rows first .. first + count - 1, of n
  GS_MEMBER void classes(int64_t first, int64_t count, int64_t n, int64_t ignore,
                         int32_t* out) const {
    int64_t i = 0;
#if defined(__AVX512F__) && defined(__AVX512VL__)
    if (dtype == kI64)
      for (; i + 8 <= count; i += 8) {
        __m512i t = _mm512_loadu_si512((const int64_t*)p + first + i);
        __mmask8 in = _mm512_cmplt_epu64_mask(t, _mm512_set1_epi64(n)),
                 skip = _mm512_cmpeq_epi64_mask(t, _mm512_set1_epi64(ignore));
        t = _mm512_mask_mov_epi64(_mm512_set1_epi64(kWrong), in, t);
        t = _mm512_mask_mov_epi64(t, skip, _mm512_set1_epi64(kIgnored));
        _mm256_storeu_si256((__m256i*)(out + i), _mm512_cvtepi64_epi32(t));
      }
#endif
    for (; i < count; ++i) {
      const int64_t t = at(first + i);
      out[i] = t == ignore ? kIgnored : t < 0 || t >= n ? kWrong : (int32_t)t;
    }
  }
  GS_MEMBER int64_t at(int64_t r) const {
    return dtype == kI32 ? (int64_t)((const int32_t*)p)[r] : ((const int64_t*)p)[r];
  }
};

// As row_sum(), in an order of each instruction set's own: four vectors at a time, since a chain of
// additions on one takes as long as a sweep.
template <class T, class F>
GS_INLINE T wide_sum(int64_t n, F f) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  constexpr int64_t block = 4 * N * 64;  // at most 64 additions in a row
  V total[4] = {};
  for (int64_t b = 0; b < n; b += block) {
    const int64_t e = b + block < n ? b + block : n;
    V s[4] = {};
    int64_t i = b;
    for (; i + 4 * N <= e; i += 4 * N)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) s[j] += f(i + j * N, N);
    for (; i + N <= e; i += N) s[0] += f(i, N);
    if (i < e) s[1] += f(i, (int)(e - i));
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) total[j] += s[j];
  }
  return hsum((total[0] + total[1]) + (total[2] + total[3]));
}

template <class T>
struct Loss {
  const CrossEntropyParams& p;
  const T* weight;
  T smooth;       // label smoothing / classes
  T keep_target;  // 1 - label smoothing
  T weights;      // sum of the class weights
  T scale;        // of dlogits: 1, or 1 / denominator of the mean

  // Row with class t: returns the loss; d (classes) when wanted
  GS_MEMBER T by_index(const T* x, int64_t t, T* d) const {
    using V = typename simd<T>::V;
    int64_t C = p.classes;
    if (t == p.ignore_index || t < 0 || t >= C) {
      const V v = t == p.ignore_index ? V{} : set1((T)__builtin_nan(""));
      if (d)
        row_to(
            false, d, C, [=](int64_t, int) __attribute__((always_inline)) { return v; });
      return v[0];
    }
    T m, s = row_exp(x, d, C, &m), lse = log_of(s), q = (weight ? weight[t] : (T)1) * keep_target;
    T loss = q * (lse - (x[t] - m));
    // smoothing adds smooth * weight[c] to every q[c]
    const T* w = smooth == 0 ? nullptr : weight;
    T r = q * scale / s, u = 0;
    if (smooth != 0) {
      loss += smooth * (weights * lse - weighted_sum(x, m));
      r = (q + smooth * weights) * scale / s;
      u = smooth * scale;
    }
    if (!d) return loss;
    const T hit = d[t] * r - (w ? u * w[t] : u) - q * scale;
    row_to(
        false, d, C, [=](int64_t i, int k) __attribute__((always_inline)) {
          V v = get(d + i, k) * r;
          return v - (w ? u * get(w + i, k) : set1(u));
        });
    d[t] = hit;
    return loss;
  }
  // Sum of the logits less the maximum, times the weights
  GS_MEMBER T weighted_sum(const T* x, T m) const {
    const T* w = weight;
    return wide_sum<T>(
        p.classes, [=](int64_t i, int k) __attribute__((always_inline)) {
          auto v = keep<T>(get(x + i, k) - m, k);
          return w ? get(w + i, k) * v : v;
        });
  }
  // q of the classes i .. i + count - 1 from given probabilities
  GS_MEMBER typename simd<T>::V given(const T* q0, int64_t i, int k) const {
    auto v = keep<T>(fma(get(q0 + i, k), set1(keep_target), set1(smooth)), k);
    return weight ? v * get(weight + i, k) : v;
  }
  // The loss of a row with probabilities q0, maximum m and sum s of exp; sum of q
  GS_MEMBER T by_probability(const T* x, const T* q0, T m, T s, T* mass) const {
    using V = typename simd<T>::V;
    const T lse = log_of(s);
    *mass = row_sum<T>(
        p.classes, [=](int64_t i, int k)
                       __attribute__((always_inline)) { return given(q0, i, k); });
    // a class of probability zero adds nothing, even where its logit is -inf
    return -row_sum<T>(
        p.classes, [=](int64_t i, int k) __attribute__((always_inline)) {
          V v = given(q0, i, k);
          return v == 0 ? V{} : v * (get(x + i, k) - m - lse);
        });
  }
  GS_MEMBER T row_probability(const T* x, const T* q0, T* d) const {
    T m, s = row_exp(x, d, p.classes, &m), mass;
    const T loss = by_probability(x, q0, m, s, &mass), r = mass * scale / s, u = scale;
    if (d)
      row_to(
          false, d, p.classes, [=](int64_t i, int k) __attribute__((always_inline)) {
            return get(d + i, k) * r - u * given(q0, i, k);
          });
    return loss;
  }

#if !defined(GS_FLAT)
  // Rows 0 .. count - 1 of at most kNarrow classes, first being row `first` of the targets; loss
  // (count)
  GS_MEMBER typename simd<T>::V narrow(const T* x, const Target& target, int64_t first, int count,
                                       T* d) const {
    using V = typename simd<T>::V;
    using I = typename simd<T>::I;
    using S = typename simd<T>::S;
    constexpr int N = simd<T>::N;
    const int64_t C = p.classes;
    V z[kNarrow], e[kNarrow], dot = {};
    for (int64_t c = C; c % N; ++c) z[c] = e[c] = V{};
    load_rows(x, C, count, z);
    V s = exp_lanes<T>(z, e, C), lse = GS_ISA::log(s);
    if (smooth != 0)
      for (int64_t c = 0; c < C; ++c) dot += weight ? weight[c] * z[c] : z[c];
    I cls;
    {
      S lanes[N];
      for (int r = 0; r < N; ++r) {
        int64_t t = r < count ? target.at(first + r) : p.ignore_index;
        S code = t < 0 || t >= C ? kWrong : (S)t;
        lanes[r] = t == p.ignore_index ? kIgnored : code;
      }
      __builtin_memcpy(&cls, lanes, sizeof cls);
    }
    V at = {}, q = set1((T)1);  // logit less maximum and weight of each row's class
    for (int64_t c = 0; c < C; ++c) {
      I hit = cls == set1((S)c);
      at = hit ? z[c] : at;
      if (weight) q = hit ? set1(weight[c]) : q;
    }
    const I ignored = cls == set1((S)kIgnored), wrong = cls == set1((S)kWrong);
    const V nan = set1((T)__builtin_nan(""));
    q *= keep_target;
    V l = q * (lse - at), factor = q;
    if (smooth != 0) {
      l += smooth * (weights * lse - dot);
      factor += smooth * weights;
    }
    l = wrong ? nan : l;
    l = ignored ? V{} : l;
    if (!d) return l;
    factor *= scale;
    q *= scale;
    const V f = (wrong ? nan : factor) / s;
    const T u = smooth * scale;
    for (int64_t c = 0; c < C; ++c) {
      V v = e[c] * f;
      if (smooth != 0) v -= weight ? u * weight[c] : u;
      v -= cls == set1((S)c) ? q : V{};
      e[c] = ignored ? V{} : v;
    }
    store_rows(e, C, count, d);
    return l;
  }
#endif

  // What a row of exp, e, is made into so that e r - u (or u times the weights) is v everywhere.
  GS_MEMBER void fill(T* e, T v, T u, const T* w) const {
    for (int64_t i = 0; i < p.classes; ++i) e[i] = v + (w ? u * w[i] : u);
  }
};

// d = e r, e r - u or e r - u weight, e r - u q
enum Kind { kPlain, kSmoothed, kGiven };
struct Smoothed {
  static constexpr bool kAny = true;
  const float* e;
  float r, u;
  const float* w;
  GS_MEMBER vf operator()(int64_t i, int k) const {
    const vf v = get(e + i, k) * r;
    return w ? v - u * get(w + i, k) : v - u;
  }
};
struct Given {
  static constexpr bool kAny = true;
  const float* e;
  float r, u;
  const float* w;
  const float* q0;
  float keep_target, smooth;
  GS_MEMBER vf operator()(int64_t i, int k) const {
    vf q = fma(get(q0 + i, k), set1(keep_target), set1(smooth));
    if (w) q *= get(w + i, k);
    return get(e + i, k) * r - u * q;
  }
};

// Rows of at most kLong classes, of this member's tasks; scratch: row_scratch()
__attribute__((noinline)) void block_rows(const Loss<float>& f, Kind kind, bool past,
                                          const Ctx* ctx, int64_t group, const float* x,
                                          const Target& target, float* d, float* loss,
                                          double* losses, float* scratch) {
  const CrossEntropyParams& p = f.p;
  const int64_t C = p.classes;
  const Cut cut(C);
  alignas(64) float room[2][kRoom];
  if (ctx->tid * group >= p.rows) return;
  float* rooms[2] = {cut.blocks > 1 ? scratch : room[0],
                     cut.blocks > 1 ? scratch + row_scratch(C) / 2 : room[1]};
  float base[kLong / kPart], factor[kLong / kPart];  // of this row's blocks; of the one before
  float most = row_max(x + ctx->tid * group * C, cut.ahead());
  const float *from = nullptr, *q0 = nullptr, *w = kind == kPlain ? nullptr : f.weight;
  const float u = kind == kGiven ? f.scale : kind == kPlain ? 0 : f.smooth * f.scale;
  float* to = nullptr;
  Edge<float> line, *edge = past ? &line : nullptr;
  int now = 0;
  auto scaled = [&](int64_t b) __attribute__((always_inline)) {
    return Scaled{from + b * cut.size, factor[b]};
  };
  auto smoothed = [&](int64_t b) __attribute__((always_inline)) {
    const int64_t i = b * cut.size;
    return Smoothed{from + i, factor[b], u, w ? w + i : w};
  };
  auto given = [&](int64_t b) __attribute__((always_inline)) {
    const int64_t i = b * cut.size;
    return Given{from + i, factor[b], u, w ? w + i : w, q0 + i, f.keep_target, f.smooth};
  };
  auto nothing = [](int64_t) { return Nothing{}; };
  for (int64_t b = 0; b < cut.blocks; ++b) factor[b] = 0;
  double sum = 0;
  member_rows(
      ctx, p.rows, group, [&](int64_t, int64_t) { sum = 0; },
      [&](int64_t row, int64_t after) {
        const float *a = x + row * C, *next = x + after * C;
        float *e = rooms[now], m, s, l, r = 1;
        if (!d)
          s = row_blocks<false>(cut, a, e, base, &m, next, &most, to, edge, nothing);
        else if (kind == kPlain)
          s = row_blocks<true>(cut, a, e, base, &m, next, &most, to, edge, scaled);
        else if (kind == kSmoothed)
          s = row_blocks<true>(cut, a, e, base, &m, next, &most, to, edge, smoothed);
        else
          s = row_blocks<true>(cut, a, e, base, &m, next, &most, to, edge, given);
        for (int64_t b = 0; b < cut.blocks; ++b) factor[b] = block_factor(cut, base, b, m);
        // for a row of exp that is written anew
        auto filled = [&] {
          for (int64_t b = 0; b < cut.blocks; ++b) factor[b] = 1;
        };
        if (kind == kGiven) {
          float mass;
          q0 = (const float*)target.p + row * C;
          l = f.by_probability(a, q0, m, s, &mass);
          r = mass * f.scale / s;
        } else {
          const int64_t t = target.at(row);
          if (t == p.ignore_index || t < 0 || t >= C) {
            l = t == p.ignore_index ? 0.0f : __builtin_nanf("");
            if (d) f.fill(e, l, u, w), filled();
          } else {
            const float q = (f.weight ? f.weight[t] : 1.0f) * f.keep_target, lse = log_of(s);
            float all = q;
            l = q * (lse - (a[t] - m));
            if (f.smooth != 0) {
              l += f.smooth * (f.weights * lse - f.weighted_sum(a, m));
              all += f.smooth * f.weights;
            }
            r = all * f.scale / s;
            if (!d) {
            } else if (all == 0) {  // of q nothing is left but the target's own
              f.fill(e, 0 * f.scale, 0, nullptr);
              filled();
              e[t] = -q * f.scale;
              r = 1;
            } else {
              const int64_t at = t / cut.size, b = at < cut.blocks ? at : cut.blocks - 1;
              if (factor[b] != 1) {  // what is taken off is relative to the row's maximum
                float* block = e + b * cut.size;
                for (int64_t i = 0; i < cut.count(b); ++i) block[i] *= factor[b];
                factor[b] = 1;
              }
              e[t] -= f.smooth == 0 ? s : q * s / all;
            }
          }
        }
        if (p.reduction == kReduceNone) loss[row] = l;
        sum += (double)l;
        if (!d) return;
        for (int64_t b = 0; b < cut.blocks; ++b) factor[b] *= r;
        to = d + row * C;
        from = e;
        now = 1 - now;
      },
      [&](int64_t task) { losses[task] = sum; });
  if (!d) return;
  line.flush();
  for (int64_t b = 0; b < cut.blocks; ++b) {
    float* out = to + b * cut.size;
    const int64_t n = cut.count(b);
    if (kind == kPlain)
      row_to(past, out, n, scaled(b));
    else if (kind == kSmoothed)
      row_to(past, out, n, smoothed(b));
    else
      row_to(past, out, n, given(b));
  }
}

#if defined(GS_FLAT)
// p[i], lane by lane
GS_INLINE vf pick(const float* p, vi i) {
#if defined(__AVX512F__)
  return (vf)_mm512_i32gather_ps((__m512i)i, p, 4);
#else
  return (vf)_mm256_i32gather_ps(p, (__m256i)i, 4);
#endif
}
// p[i] -= v, lane by lane; no two lanes have one i. Through memory: a gather and a scatter take
// three times as long.
GS_INLINE void subtract(float* p, vi i, vf v) {
  alignas(64) int32_t at[kN];
  alignas(64) float by[kN];
  __builtin_memcpy(at, &i, sizeof i);
  store(by, v);
#pragma GCC unroll 16
  for (int r = 0; r < kN; ++r) p[at[r]] -= by[r];
}

// Rows first .. first + count - 1, of at most kFlat classes; returns the sum of their losses. x, d,
// loss begin at row `first`; w: the weights (kSmoothed: times u, or u), repeated for N rows, where
// results need them.
template <Kind kKind>
double flat_rows(const Loss<float>& f, const float* x, const Target& target, int64_t first,
                 int64_t count, float* d, bool past, float* loss, const Spread& spread,
                 const float* w) {
  alignas(64) float room[2][kBatch];
  alignas(64) int32_t cls[kGroups * kN];
  vf top[kGroups], sum[kGroups], factor[2][kGroups];
  const CrossEntropyParams& p = f.p;
  const int64_t n = p.classes, step = n * kN, ahead = batch_groups(n) * step;
  const float *given = (const float*)target.p + (kKind == kGiven ? first * n : 0), *q0 = given;
  const float u = kKind == kGiven ? f.scale : f.smooth == 0 ? 0 : f.smooth * f.scale;
  vd lanes[2] = {};
  double tail = 0;
  int now = 0;
  int64_t before = 0;
  float* to = nullptr;
  auto late = [&](int64_t g, int64_t j) __attribute__((always_inline)) {
    const int64_t i = g * step + j * kN;
    vf v = load(room[1 - now] + i) * spread.of(factor[1 - now][g], j);
    if (kKind == kGiven) {
      vf q = fma(load(q0 + i), set1(f.keep_target), set1(f.smooth));
      return v - u * (w ? q * load(w + j * kN) : q);
    }
    return kKind == kSmoothed ? v - load(w + j * kN) : v;
  };
  auto put = [&](int64_t i, vf v) __attribute__((always_inline)) {
    if (past)  // the caches
      write<true>(to + i, v);
    else
      write<false>(to + i, v);
  };
  batches(
      count, n,
      [&](int64_t row, int64_t groups) {
        const float* a = x + row * n;
        float* e = room[now];
        for (int64_t g = 0; g < groups; ++g) top[g] = rows_max(a + g * step, n);
        exp_batch<true>(a, e, top, groups, before, n, ahead, spread, late, put);
        for (int64_t g = 0; g < groups; ++g) sum[g] = rows_sum(e + g * step, n);
        if (kKind != kGiven) target.classes(first + row, groups * kN, n, p.ignore_index, cls);
        for (int64_t g = 0; g < groups; ++g) {
          const float* b = a + g * step;
          float* eg = e + g * step;
          const vf s = sum[g], lse = log_of_sum(s), m = top[g], over = f.scale * reciprocal(s);
          const float* ms = (const float*)&top[g];
          vf l, all, by;
          if (kKind == kGiven) {
            const float* c = given + (row + g * kN) * n;
            all = rows_of<Plus>(
                n, [ =, &f ](int r, int64_t i, int k)
                       __attribute__((always_inline)) { return f.given(c + r * n, i, k); });
            l = all * lse -
                rows_of<Plus>(
                    n, [ =, &f ](int r, int64_t i, int k) __attribute__((always_inline)) {
                      vf v = f.given(c + r * n, i, k);
                      return v == 0 ? vf{} : v * (get(b + r * n + i, k) - ms[r]);
                    });
            by = all * over;
          } else {
            const vi t = *(const vi*)(cls + g * kN), counts = t >= 0;
            const vi hit = (counts ? t : 0 * t) + iota<float>() * (int32_t)n;
            const vf weight = f.weight ? pick(f.weight, counts ? t : 0 * t) : set1(1.0f),
                     q = weight * f.keep_target;
            all = q;
            l = q * (lse - (pick(b, hit) - m));
            if (f.smooth != 0) {
              const float* c = f.weight;
              vf dot = rows_of<Plus>(
                  n, [=](int r, int64_t i, int k) __attribute__((always_inline)) {
                    vf v = keep<float>(get(b + r * n + i, k) - ms[r], k);
                    return c ? v * get(c + i, k) : v;
                  });
              l += f.smooth * (f.weights * lse - dot);
              all += f.smooth * f.weights;
            }
            by = all * over;
            if (d) subtract(eg, hit, f.smooth == 0 ? s : q * s / all);
            if (any_lane(~counts | (all == 0)))  // none to count, or nothing but the target's own
              for (int r = 0; r < kN; ++r) {
                const bool skip = t[r] < 0;
                if (!skip && all[r] != 0) continue;
                if (skip) l[r] = t[r] == kIgnored ? 0.0f : __builtin_nanf("");
                by[r] = 1;
                if (!d) continue;
                f.fill(eg + r * n, skip ? l[r] : 0 * f.scale, skip ? u : 0,
                       skip && kKind == kSmoothed ? f.weight : nullptr);
                if (!skip) eg[hit[r]] = -q[r] * f.scale;
              }
          }
          factor[now][g] = by;
          typedef float half __attribute__((vector_size(GS_VBYTES / 2), may_alias));
          for (int h = 0; h < 2; ++h) lanes[h] += __builtin_convertvector(((const half*)&l)[h], vd);
          if (loss) store(loss + row + g * kN, l);
        }
        now = 1 - now;
        before = d ? groups : 0;
        q0 = given + row * n;
        to = d ? d + row * n : d;
      },
      [&](int64_t row, int64_t rows) {
        alignas(64) float in[kBatch], out[kBatch], probability[kBatch], ls[kN];
        int64_t index[kN];
        memset(in, 0, (size_t)step * sizeof(float));
        memcpy(in, x + row * n, (size_t)(rows * n) * sizeof(float));
        Target some{index, kI64};
        if (kKind == kGiven) {
          memset(probability, 0, (size_t)step * sizeof(float));
          memcpy(probability, given + row * n, (size_t)(rows * n) * sizeof(float));
          some = Target{probability, kF32};
        } else {
          for (int r = 0; r < kN; ++r)
            index[r] = r < rows ? target.at(first + row + r) : p.ignore_index;
        }
        flat_rows<kKind>(f, in, some, 0, kN, d ? out : nullptr, false, ls, spread, w);
        for (int64_t r = 0; r < rows; ++r) tail += (double)ls[r];
        if (loss) memcpy(loss + row, ls, (size_t)rows * sizeof(float));
        if (d) memcpy(d + row * n, out, (size_t)(rows * n) * sizeof(float));
      });
  exp_batch<true>(x, nullptr, nullptr, 0, before, n, 0, spread, late, put);
  return hsum(lanes[0]) + hsum(lanes[1]) + tail;
}
#endif

// Counts and losses of the tasks, in front of the rest of the scratch.
GS_INLINE size_t sums_bytes(int64_t tasks) {
  return ((size_t)(2 * tasks + 1) * sizeof(double) + 63) & ~(size_t)63;
}

template <class T>
void cross_entropy(const void* params, void* const* buf, const Ctx* ctx) {
  const CrossEntropyParams& p = *(const CrossEntropyParams*)params;
  const FlushSubnormals flush(sizeof(T) == 4);
  const T* x = (const T*)buf[0];
  const Target target{buf[1], p.target};
  const T* weight = (const T*)buf[2];
  T *loss = (T*)buf[3], *d = (T*)buf[4];
  double *counts = (double*)ctx->scratch, *losses;
  bool indices = p.target == kI32 || p.target == kI64;
  int64_t C = p.classes, group = rows_per_task(p.rows, C), tasks = (p.rows + group - 1) / group;
  losses = counts + tasks;
  Loss<T> f{p, weight, (T)(p.smoothing / (double)(C ? C : 1)), (T)(1 - p.smoothing), (T)C, (T)1};
  if (weight && p.smoothing != 0)
    f.weights = row_sum<T>(
        C, [=](int64_t i, int k) __attribute__((always_inline)) { return get(weight + i, k); });
  double denominator = 1;
  if (p.reduction == kReduceMean) {
    denominator = (double)p.rows;
    if (indices) {
      for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
        int64_t e = (t + 1) * group < p.rows ? (t + 1) * group : p.rows;
        double n = 0;
        if (weight) {
          for (int64_t r = t * group; r < e; ++r) {
            int64_t c = target.at(r);
            if (c != p.ignore_index) n += c >= 0 && c < C ? (double)weight[c] : 1.0;
          }
        } else {
          int64_t rows = 0, r = t * group;
          if (target.dtype == kI64) {
            const int64_t* c = (const int64_t*)target.p;
            constexpr int N = simd<double>::N;
            vl counted = {}, v;
            for (; r + N <= e; r += N) {
              __builtin_memcpy(&v, c + r, sizeof v);
              counted -= v != set1((int64_t)p.ignore_index);
            }
            for (int i = 0; i < N; ++i) rows += counted[i];
            for (; r < e; ++r) rows += c[r] != p.ignore_index;
          } else {
            for (; r < e; ++r) rows += ((const int32_t*)target.p)[r] != p.ignore_index;
          }
          n = (double)rows;
        }
        counts[t] = n;
      }
      ctx->sync();
      denominator = 0;
      for (int64_t t = 0; t < tasks; ++t) denominator += counts[t];
    }
    f.scale = (T)(1 / denominator);
    if (denominator == 0) {  // no row counts: no gradient, where 0 / 0 would make NaN of it
      bool any = false;
      for (int64_t r = 0; r < p.rows; ++r) any |= !indices || target.at(r) != p.ignore_index;
      if (!any) f.scale = 0;
    }
  }
  const int64_t bytes = p.rows * C * (int64_t)sizeof(T);
  bool stream = d && bytes >= ctx->stream;
  // There is no other pass: logits and their gradient are all. Where exp has to wait in the second
  // level, an output that passes through it would push it out. (AVX2: 0.92x, hence not there.)
  if (GS_VBYTES == 64 && C > kFlat && C <= kRoom && 2 * bytes <= p.holds) stream = false;
  // without, smoothing is infinite too, and fill() makes no zeros of it for rows that are ignored
  const bool finite = f.scale - f.scale == 0;
  const Kind kind = !indices ? kGiven : p.smoothing != 0 ? kSmoothed : kPlain;
  bool done = false;
#if defined(GS_FLAT)
  if constexpr (sizeof(T) == 4)
    if (C <= kFlat && finite) {
      done = true;
      stream = stream && ((uintptr_t)d & (GS_VBYTES - 1)) == 0;
      const Spread spread(C);
      alignas(64) float repeated[kBatch];
      const bool wanted = kind == kSmoothed || (kind == kGiven && weight);
      const float u = kind == kGiven ? 1 : f.smooth * f.scale;
      for (int64_t i = 0; i < kN * C && wanted; ++i)
        repeated[i] = weight ? u * (float)weight[i % C] : u;
      const float* w = wanted ? repeated : nullptr;
      auto work = kind == kGiven      ? flat_rows<kGiven>
                  : kind == kSmoothed ? flat_rows<kSmoothed>
                                      : flat_rows<kPlain>;
      for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
        int64_t b = t * group, e = b + group < p.rows ? b + group : p.rows;
        losses[t] = work(f, x + b * C, target, b, e - b, d ? d + b * C : d, stream,
                         p.reduction == kReduceNone ? loss + b : nullptr, spread, w);
      }
    }
#endif
#if defined(GS_FLAT)
  const bool lanes = false;
#else
  const bool lanes = sizeof(T) == 4 && indices && C <= kNarrow;
#endif
  if constexpr (sizeof(T) == 4)
    if (!done && !lanes && C <= kLong && finite) {
      float* scratch = (float*)(ctx->scratch + sums_bytes(tasks)) + ctx->tid * row_scratch(C);
      block_rows(f, kind, stream, ctx, group, x, target, d, loss, losses, scratch);
      done = true;
    }
  for (int64_t t = ctx->tid; t < tasks && !done; t += ctx->nt) {
    int64_t b = t * group, e = b + group < p.rows ? b + group : p.rows;
    double sum = 0;
    if (lanes) {
#if !defined(GS_FLAT)
      constexpr int N = simd<T>::N;
      double each[N] = {};
      narrow_rows(
          e - b, C, d ? d + b * C : d,
          stream, [&](int64_t i, int count, T* out) __attribute__((always_inline)) {
            T l[N];
            store(l, f.narrow(x + (b + i) * C, target, b + i, count, out));
#pragma GCC unroll 16
            for (int j = 0; j < N; ++j) each[j] += (double)l[j];
            if (p.reduction == kReduceNone)
              for (int j = 0; j < count; ++j) loss[b + i + j] = l[j];
          });
      for (int j = 0; j < N; ++j) sum += each[j];
#endif
    } else {
      for (int64_t r = b; r < e; ++r) {
        T* dr = d ? d + r * C : nullptr;
        T l = indices ? f.by_index(x + r * C, target.at(r), dr)
                      : f.row_probability(x + r * C, (const T*)target.p + r * C, dr);
        if (p.reduction == kReduceNone) loss[r] = l;
        sum += (double)l;
      }
    }
    losses[t] = sum;
  }
  if (stream) write_fence();
  if (p.reduction == kReduceNone) return;
  ctx->sync();
  if (ctx->tid == 0) {
    double sum = 0;
    for (int64_t t = 0; t < tasks; ++t) sum += losses[t];
    loss[0] = (T)(sum / denominator);
  }
}

template <class T>
void cross_entropy_plan(const void* params, Plan* plan) {
  const CrossEntropyParams& p = *(const CrossEntropyParams*)params;
  int64_t group = rows_per_task(p.rows, p.classes);
  plan->tasks = (p.rows + group - 1) / group;
  plan->work = p.rows * p.classes * (sizeof(T) == 8 ? 8 : 1) / 2 + p.rows * 30;
  plan->scratch = sums_bytes(plan->tasks);
  if (sizeof(T) == 4) plan->scratch += (size_t)(p.threads * row_scratch(p.classes)) * sizeof(T);
}

template <class T>
void scale_rows(const void* params, void* const* buf, const Ctx* ctx) {
  const ScaleRowsParams& p = *(const ScaleRowsParams*)params;
  const T *x = (const T*)buf[0], *g = (const T*)buf[1];
  T* out = (T*)buf[2];
  int64_t group = rows_per_task(p.rows, p.n), tasks = (p.rows + group - 1) / group;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t e = (t + 1) * group < p.rows ? (t + 1) * group : p.rows;
    for (int64_t r = t * group; r < e; ++r) {
      T f = g[p.one ? 0 : r];
      const T* xr = x + r * p.n;
      T* o = out + r * p.n;
      row_each<T>(
          p.n, [=](int64_t i, int k)
                   __attribute__((always_inline)) { put(o + i, get(xr + i, k) * f, k); });
    }
  }
}

template <class T>
void scale_rows_plan(const void* params, Plan* plan) {
  const ScaleRowsParams& p = *(const ScaleRowsParams*)params;
  int64_t group = rows_per_task(p.rows, p.n);
  plan->tasks = (p.rows + group - 1) / group;
  plan->work = p.rows * p.n / 8 * (int64_t)sizeof(T) / 4;
}

#define GS_BOTH(name, f, plan) \
  {name, kF32, f<float>, plan<float>}, { name, kF64, f<double>, plan<double> }
const KernelEntry entries[] = {
    GS_BOTH("cross_entropy", cross_entropy, cross_entropy_plan),
    GS_BOTH("scale_rows", scale_rows, scale_rows_plan),
};

}  // namespace

extern const KernelList softmax_cross_entropy_kernels;
const KernelList softmax_cross_entropy_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
