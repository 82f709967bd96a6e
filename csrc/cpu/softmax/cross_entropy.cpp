// Softmax cross-entropy: loss and gradient in one pass.
//
// x, d (rows, classes), targets (rows) or probabilities (rows, classes), loss (rows) or one value.
// dlogits = (sum q) p - q, where q are the weighted, smoothed targets: so loss and gradient cost
// one read and one write of the logits, and one exp, 6 to 7 cycles a vector. Rows pass as row.h
// says. Tasks are groups of rows cut by shape; sums over rows run in order of the groups.
#include "simd/flush.h"
#include "softmax/row.h"

namespace gs {
namespace GS_ISA {
namespace {

struct Target {
  const void* p;
  DType dtype;
  GS_MEMBER int64_t at(int64_t r) const {
    return dtype == kI32 ? (int64_t)((const int32_t*)p)[r] : ((const int64_t*)p)[r];
  }
};

template <class T>
struct Loss {
  const CrossEntropyParams& p;
  const T* weight;
  T smooth;       // label smoothing / classes
  T keep_target;  // 1 - label smoothing
  T weights;      // sum of the class weights
  T scale;        // of dlogits: 1, or 1 / denominator of the mean

  // Row with class t: returns the loss; d (classes) when wanted
  GS_MEMBER T by_index(const T* x, int64_t t, T* d, bool stream) const {
    using V = typename simd<T>::V;
    int64_t C = p.classes;
    if (t == p.ignore_index || t < 0 || t >= C) {
      const V v = t == p.ignore_index ? V{} : set1((T)__builtin_nan(""));
      if (d)
        row_to(
            false, d, C, [=](int64_t, int) __attribute__((always_inline)) { return v; });
      return v[0];
    }
    alignas(64) T room[kRoom];
    const bool twice = C > kRoom;  // exp twice, not kept
    T m, s, *e = stream ? room : d;
    if (twice) {
      s = long_row(x, C, &m);
    } else {
      m = row_max(x, C);
      s = d ? exp_row<T, true>(x, e, m, C, next_row<T>(C))
            : exp_row<T, false>(x, nullptr, m, C, next_row<T>(C));
    }
    T lse = log_of(s), q = (weight ? weight[t] : (T)1) * keep_target;
    T loss = q * (lse - (x[t] - m));
    // smoothing adds smooth * weight[c] to every q[c]
    const T* w = smooth == 0 ? nullptr : weight;
    T r = q * scale / s, u = 0;
    if (smooth != 0) {
      T dot = row_sum<T>(
          C, [=](int64_t i, int k) __attribute__((always_inline)) {
            auto v = keep<T>(get(x + i, k) - m, k);
            return w ? get(w + i, k) * v : v;
          });
      loss += smooth * (weights * lse - dot);
      r = (q + smooth * weights) * scale / s;
      u = smooth * scale;
    }
    if (!d) return loss;
    // the element of the target's class is written last: its line must not be on its way already
    const T hit =
        (twice ? (T)exp_below(set1(x[t] - m))[0] : e[t]) * r - (w ? u * w[t] : u) - q * scale;
    row_to(
        stream, d, C, [=](int64_t i, int k) __attribute__((always_inline)) {
          V v = (twice ? exp_below(get(x + i, k) - m) : get(e + i, k)) * r;
          v -= w ? u * get(w + i, k) : set1(u);
          if (t - i < k && t >= i)
            v = iota<T>() == set1((typename simd<T>::S)(t - i)) ? set1(hit) : v;
          return v;
        });
    return loss;
  }

  // Rows 0 .. count - 1 of at most kNarrow classes, first being row `first` of the targets; loss
  // (count)
  GS_MEMBER typename simd<T>::V narrow(const T* x, const Target& target, int64_t first, int count,
                                       T* d) const {
    using V = typename simd<T>::V;
    using I = typename simd<T>::I;
    using S = typename simd<T>::S;
    constexpr int N = simd<T>::N;
    constexpr S kIgnored = -1, kWrong = -2;  // beside the classes
    const int64_t C = p.classes;
    V z[kNarrow], e[kNarrow], dot = {};
    for (int64_t c = C; c % N; ++c) z[c] = e[c] = V{};
    load_rows(x, C, count, z);
    V s = exp_lanes<T>(z, e, C), lse = GS_ISA::log(s);
    if (smooth != 0)
      for (int64_t c = 0; c < C; ++c) dot += weight ? weight[c] * z[c] : z[c];
    I cls;
#if defined(__AVX512F__)
    if (sizeof(T) == 4 && count == N && target.dtype == kI64) {
      __m256i half[2];
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        __m512i t = _mm512_loadu_si512((const int64_t*)target.p + first + 8 * h);
        __mmask8 in = _mm512_cmplt_epu64_mask(t, _mm512_set1_epi64(C)),
                 skip = _mm512_cmpeq_epi64_mask(t, _mm512_set1_epi64(p.ignore_index));
        t = _mm512_mask_mov_epi64(_mm512_set1_epi64(kWrong), in, t);
        half[h] =
            _mm512_cvtepi64_epi32(_mm512_mask_mov_epi64(t, skip, _mm512_set1_epi64(kIgnored)));
      }
      __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1);
      __builtin_memcpy(&cls, &both, sizeof cls);
    } else
#endif
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
    const I ignored = cls == set1(kIgnored), wrong = cls == set1(kWrong);
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

  // Row with probabilities q0 (classes)
  GS_MEMBER T by_probability(const T* x, const T* q0, T* d) const {
    using V = typename simd<T>::V;
    int64_t C = p.classes;
    const T *w = weight, a = keep_target, b = smooth;
    auto q = [=](int64_t i, int k) __attribute__((always_inline)) {
      V v = keep<T>(fma(get(q0 + i, k), set1(a), set1(b)), k);
      return w ? v * get(w + i, k) : v;
    };
    T m = row_max(x, C);
    T s = d ? exp_row<T, true>(x, d, m, C, next_row<T>(C))
            : exp_row<T, false>(x, nullptr, m, C, next_row<T>(C));
    T lse = log_of(s);
    T mass = row_sum<T>(C, q);
    // a class of probability zero adds nothing, even where its logit is -inf
    T dot = row_sum<T>(
        C, [=](int64_t i, int k) __attribute__((always_inline)) {
          V v = q(i, k);
          return v == 0 ? V{} : v * (get(x + i, k) - m - lse);
        });
    if (d) {
      T r = mass * scale / s, u = scale;
      row_each<T>(
          C, [=](int64_t i, int k) __attribute__((always_inline)) {
            put(d + i, get(d + i, k) * r - u * q(i, k), k);
          });
    }
    return -dot;
  }
};

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
          int64_t rows = 0;
          if (target.dtype == kI64)
            for (int64_t r = t * group; r < e; ++r)
              rows += ((const int64_t*)target.p)[r] != p.ignore_index;
          else
            for (int64_t r = t * group; r < e; ++r)
              rows += ((const int32_t*)target.p)[r] != p.ignore_index;
          n = (double)rows;
        }
        counts[t] = n;
      }
      ctx->sync();
      denominator = 0;
      for (int64_t t = 0; t < tasks; ++t) denominator += counts[t];
    }
    f.scale = (T)(1 / denominator);
  }
  const bool stream = past_caches<T>(ctx, p.rows, C, d) && indices;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t b = t * group, e = b + group < p.rows ? b + group : p.rows;
    double sum = 0;
    if (indices && C <= kNarrow) {
      constexpr int N = simd<T>::N;
      double lanes[N] = {};
      narrow_rows(
          e - b, C, d ? d + b * C : d,
          stream, [&](int64_t i, int count, T* out) __attribute__((always_inline)) {
            T l[N];
            store(l, f.narrow(x + (b + i) * C, target, b + i, count, out));
#pragma GCC unroll 16
            for (int j = 0; j < N; ++j) lanes[j] += (double)l[j];
            if (p.reduction == kReduceNone)
              for (int j = 0; j < count; ++j) loss[b + i + j] = l[j];
          });
      for (int j = 0; j < N; ++j) sum += lanes[j];
      losses[t] = sum;
      continue;
    }
    for (int64_t r = b; r < e; ++r) {
      T* dr = d ? d + r * C : nullptr;
      T l = indices ? f.by_index(x + r * C, target.at(r), dr, stream)
                    : f.by_probability(x + r * C, (const T*)target.p + r * C, dr);
      if (p.reduction == kReduceNone) loss[r] = l;
      sum += (double)l;
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
  plan->scratch = (size_t)(2 * plan->tasks + 1) * sizeof(double);
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
