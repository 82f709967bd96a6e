// Losses: elementwise ones over two arrays of one shape, and the negative log likelihood.
//
// Forward reads input and target once (8 bytes an element) and sums in one pass; backward reads
// them again and writes the wanted gradients (12 bytes an element for one of them). The floor is
// memory for the polynomial losses; those with exp and log take 10 to 30 cycles a vector. Four
// vectors are worked on together, so that their chains of operations interleave; BCE of logits goes
// through the short forms of simd/moderate.h where four vectors are of moderate size. Gradients of
// the size of a cache are written past it.
//
// Sums: the losses are computed in T and added in double in 16 logical lanes a chunk of kChunk
// elements, with vectors of 32 bytes and more two floats 16 apart first to one another; the lanes
// are folded 8, 4, 2, 1, the chunks added in order: the same on every team.
#include "loss.h"

#include <string.h>

#include "simd/moderate.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kChunk = 8192;

// ---- the losses: value(x, t), its derivatives dx(x, t) and dt(x, t); all without the weight

// (x - t)^2
template <class T>
struct Mse {
  using V = typename simd<T>::V;
  static constexpr bool kDomain = false, kShort = false;
  static constexpr double kForward = 0.1, kBackward = 0.2;  // nanoseconds an element
  GS_MEMBER explicit Mse(const LossParams&) {}
  GS_MEMBER V value(V x, V t, V) const { return (x - t) * (x - t); }
  GS_MEMBER V dx(V x, V t, V) const { return (x - t) + (x - t); }
  GS_MEMBER V dt(V x, V t, V w) const { return -dx(x, t, w); }
};

// 1, 0 or -1; NaN for NaN
template <class V>
GS_INLINE V sign(V x) {
  V one = V{} + 1;
  return x > V{} ? one : (x < V{} ? -one : x);
}

// |x - t|
template <class T>
struct L1 {
  using V = typename simd<T>::V;
  static constexpr bool kDomain = false, kShort = false;
  static constexpr double kForward = 0.1, kBackward = 0.2;
  GS_MEMBER explicit L1(const LossParams&) {}
  GS_MEMBER V value(V x, V t, V) const { return abs(x - t); }
  GS_MEMBER V dx(V x, V t, V) const { return sign(x - t); }
  GS_MEMBER V dt(V x, V t, V w) const { return -dx(x, t, w); }
};

// d^2 / (2 beta) for |d| < beta, else |d| - beta / 2
template <class T>
struct SmoothL1 {
  using V = typename simd<T>::V;
  static constexpr bool kDomain = false, kShort = false;
  static constexpr double kForward = 0.12, kBackward = 0.2;
  V beta, half;
  GS_MEMBER explicit SmoothL1(const LossParams& p)
      : beta(set1((T)p.option)), half(set1((T)(0.5 * p.option))) {}
  GS_MEMBER V value(V x, V t, V) const {
    V d = abs(x - t);
    return d < beta ? (d * d * (T)0.5) / beta : d - half;
  }
  GS_MEMBER V dx(V x, V t, V) const {
    V d = x - t;
    return abs(d) < beta ? d / beta : sign(d);
  }
  GS_MEMBER V dt(V x, V t, V w) const { return -dx(x, t, w); }
};

// d^2 / 2 for |d| <= delta, else delta (|d| - delta / 2)
template <class T>
struct Huber {
  using V = typename simd<T>::V;
  static constexpr bool kDomain = false, kShort = false;
  static constexpr double kForward = 0.12, kBackward = 0.2;
  V delta, half;
  GS_MEMBER explicit Huber(const LossParams& p)
      : delta(set1((T)p.option)), half(set1((T)(0.5 * p.option))) {}
  GS_MEMBER V value(V x, V t, V) const {
    V d = abs(x - t);
    return d <= delta ? d * d * (T)0.5 : delta * (d - half);
  }
  GS_MEMBER V dx(V x, V t, V) const { return min(delta, max(-delta, x - t)); }
  GS_MEMBER V dt(V x, V t, V w) const { return -dx(x, t, w); }
};

// -(t log x + (1 - t) log(1 - x)), logarithms no less than -100
template <class T>
struct Bce {
  using V = typename simd<T>::V;
  static constexpr bool kDomain = true, kShort = false;
  static constexpr bool kInside = sizeof(T) == 4 && GS_VBYTES == 64;
  static constexpr double kForward = 1.0, kBackward = 0.5;
  GS_MEMBER explicit Bce(const LossParams&) {}
  static GS_MEMBER V least(V x) { return max(set1((T)-100), x); }
  GS_MEMBER V value(V x, V t, V) const { return (t - 1) * least(log_less(x)) - t * least(log(x)); }
  // To the same bits where all of x, and so 1 - x, is positive and normal.
  template <int kTogether>
  static GS_MEMBER bool inside(const V (&x)[kTogether]) {
#if defined(__AVX512F__)
    if constexpr (kInside) {
      __mmask16 in = 0xffff;
#pragma GCC unroll 4
      for (int j = 0; j < kTogether; ++j) {
        in = _mm512_mask_cmp_ps_mask(in, (__m512)x[j], _mm512_set1_ps(0x1p-126f), _CMP_GE_OQ);
        in = _mm512_mask_cmp_ps_mask(in, (__m512)x[j], _mm512_set1_ps(1.0f), _CMP_LT_OQ);
      }
      return in == 0xffff;
    }
#endif
    return false;
  }
  static GS_MEMBER V inside_value(V x, V t) {
#if defined(__AVX512F__)
    if constexpr (kInside) {
      const V u = 1 - x;
      return (t - 1) * log_normal<true>(u, (1 - u) - x) - t * log_normal<false>(x, V{});
    }
#endif
    return x * t;  // nobody asks
  }
  GS_MEMBER V dx(V x, V t, V) const { return (x - t) / max((1 - x) * x, set1((T)1e-12)); }
  GS_MEMBER V dt(V x, V, V) const { return least(log_less(x)) - least(log(x)); }
};

// -(q t log s(x) + (1 - t) log(1 - s(x))) for s the logistic function and q the weight of positives
template <class T>
struct BceLogits {
  using V = typename simd<T>::V;
  static constexpr bool kDomain = false, kShort = sizeof(T) == 4 && kFused;
  static constexpr double kForward = 0.6, kBackward = 0.6;
  GS_MEMBER explicit BceLogits(const LossParams&) {}
  // log(1 + exp(-x))
  static GS_MEMBER V minus(V x) { return log1p01(exp(-abs(x))) + max(-x, V{}); }
  static GS_MEMBER V value_of(V x, V t, V q, V m) {
    return fma(fma(q - 1, t, set1((T)1)), m, (1 - t) * x);
  }
  static GS_MEMBER V dx_of(V t, V q, V s) { return fnma(fma(q - 1, t, set1((T)1)), s, 1 - t); }
  GS_MEMBER V value(V x, V t, V q) const { return value_of(x, t, q, minus(x)); }
  GS_MEMBER V dx(V x, V t, V q) const { return dx_of(t, q, sigmoid(-x)); }
  GS_MEMBER V dt(V x, V, V q) const { return (q - 1) * minus(x) - x; }
  // the same where the squares of x are below kSquare
  static constexpr float kSquare = 7500;
  GS_MEMBER V short_value(V x, V t, V q) const { return value_of(x, t, q, moderate::softplus(-x)); }
  GS_MEMBER V short_dx(V x, V t, V q) const { return dx_of(t, q, moderate::sigmoid(-x)); }
  // to the same bits where |x| is below kClose
  static constexpr float kClose = moderate::kNear;
  GS_MEMBER V close_value(V x, V t, V q) const {
    return value_of(x, t, q, moderate::softplus_rest(x) + max(V{}, -x));
  }
};

// t (log t - x), zero where t is; with `flag` the target is log t: exp(t) (t - x)
template <class T>
struct Kl {
  using V = typename simd<T>::V;
  static constexpr bool kDomain = false, kShort = false;
  static constexpr double kForward = 0.6, kBackward = 0.6;
  bool logarithm;
  GS_MEMBER explicit Kl(const LossParams& p) : logarithm(p.flag != 0) {}
  GS_MEMBER V value(V x, V t, V) const {
    if (logarithm) return exp(t) * (t - x);
    return (t == V{} ? V{} : t * log(t)) - t * x;
  }
  GS_MEMBER V dx(V, V t, V) const { return logarithm ? -exp(t) : -t; }
  GS_MEMBER V dt(V x, V t, V) const {
    if (logarithm) return exp(t) * (t - x + 1);
    return t == V{} ? V{} : log(t) + 1 - x;
  }
};

// x - t log(x + eps); with `flag` the input is log x: exp(x) - t x
template <class T>
struct Poisson {
  using V = typename simd<T>::V;
  static constexpr bool kDomain = false, kShort = false;
  static constexpr double kForward = 0.6, kBackward = 0.6;
  V eps;
  bool logarithm;
  GS_MEMBER explicit Poisson(const LossParams& p)
      : eps(set1((T)p.option)), logarithm(p.flag != 0) {}
  GS_MEMBER V value(V x, V t, V) const { return logarithm ? exp(x) - t * x : x - t * log(x + eps); }
  GS_MEMBER V dx(V x, V t, V) const { return logarithm ? exp(x) - t : 1 - t / (x + eps); }
  GS_MEMBER V dt(V x, V, V) const { return logarithm ? -x : -log(x + eps); }
};

// ---- the loops

// v in double, its lower and its upper half
GS_INLINE void to_double(vd v, vd* out) { out[0] = v; }
GS_INLINE void to_double(vf v, vd* out) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  out[0] = (vd)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v));
  out[1] = (vd)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1));
#elif defined(__AVX2__)
  out[0] = (vd)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
  out[1] = (vd)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
#else
  typedef float hf __attribute__((vector_size(GS_VBYTES / 2)));
  hf half[2];
  memcpy(half, &v, sizeof v);
  out[0] = __builtin_convertvector(half[0], vd);
  out[1] = __builtin_convertvector(half[1], vd);
#endif
}

GS_INLINE int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

// Vectors that are worked on together: four, or as many as the 16 lanes of a sum take.
template <class T>
constexpr int kVectors = 16 / simd<T>::N > 4 ? 16 / simd<T>::N : 4;
// Whether Op's value has a short form for these, which are inside its domain.
template <class Op, class V, int kTogether>
GS_INLINE bool all_inside(const V (&x)[kTogether]) {
  if constexpr (Op::kDomain)
    if constexpr (Op::kInside) return Op::inside(x);
  return false;
}
// Whether the short forms of Op hold for these.
template <class Op, class V, int kTogether>
GS_INLINE bool all_short(const V (&x)[kTogether]) {
  if constexpr (Op::kShort) {
    V s = x[0] * x[0];
#pragma GCC unroll 4
    for (int j = 1; j < kTogether; ++j) s = fma(x[j], x[j], s);
    return !any_lane(!(s < Op::kSquare));
  }
  return false;
}
template <class Op, class V, int kTogether>
GS_INLINE bool all_close(const V (&x)[kTogether]) {
  if constexpr (Op::kShort)
    if constexpr (Op::kClose > 0) return moderate::all_below(x, Op::kClose);
  return false;
}

// x, t, weight, pos_weight: (n,);  out: (n,) or (1,)
template <class T, class Op>
void forward(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N, D = simd<double>::N, WD = 16 / D, H = N / D;
  constexpr int kTogether = kVectors<T>;
  const LossParams& p = *(const LossParams*)params;
  const T* in[4] = {(const T*)buf[0], (const T*)buf[1], (const T*)buf[2], (const T*)buf[3]};
  T* out = (T*)buf[4];
  double* partial = (double*)ctx->scratch;
  int64_t chunks = chunks_of(p.n);
  double* outside = partial + chunks;
  // vectors of 16 lanes; whether two of these are added up in T, which saves conversions
  constexpr int kLanes = 16 / N;
  constexpr bool kPairs = sizeof(T) == 4 && kTogether >= 2 * kLanes;
  const Op op(p);
  const V one = set1((T)1);
  for (int64_t c = ctx->tid; c < chunks; c += ctx->nt) {
    int64_t begin = c * kChunk, end = begin + kChunk < p.n ? begin + kChunk : p.n;
    vd sum[WD];
#pragma GCC unroll 8
    for (int w = 0; w < WD; ++w) sum[w] = vd{};
    V bad = V{};
    // the losses of kTogether vectors, to r; their sums in the order of the 16 lanes
    auto some = [&](const T* const* a, T* r) __attribute__((always_inline)) {
      V x[kTogether], t[kTogether], q[kTogether], v[kTogether];
#pragma GCC unroll 4
      for (int j = 0; j < kTogether; ++j) {
        x[j] = load(a[0] + j * N);
        t[j] = load(a[1] + j * N);
        q[j] = a[3] ? load(a[3] + j * N) : one;
      }
      if (all_inside<Op>(x)) {
        if constexpr (Op::kDomain)
#pragma GCC unroll 4
          for (int j = 0; j < kTogether; ++j) v[j] = op.inside_value(x[j], t[j]);
      } else if (all_close<Op>(x)) {
        if constexpr (Op::kShort)
#pragma GCC unroll 4
          for (int j = 0; j < kTogether; ++j) v[j] = op.close_value(x[j], t[j], q[j]);
      } else if (all_short<Op>(x)) {
        if constexpr (Op::kShort)
#pragma GCC unroll 4
          for (int j = 0; j < kTogether; ++j) v[j] = op.short_value(x[j], t[j], q[j]);
      } else {
#pragma GCC unroll 4
        for (int j = 0; j < kTogether; ++j) {
          if constexpr (Op::kDomain) bad = (x[j] >= V{}) & (x[j] <= one) ? bad : one;
          v[j] = op.value(x[j], t[j], q[j]);
        }
      }
#pragma GCC unroll 4
      for (int j = 0; j < kTogether; ++j) {
        if (a[2]) v[j] = v[j] * load(a[2] + j * N);
        if (r) store(r + j * N, v[j]);
      }
      if (p.reduce)
#pragma GCC unroll 4
        for (int j = 0; j < kTogether; ++j) {
          if (kPairs && j / kLanes % 2) continue;
          vd d[H];
          to_double(kPairs ? v[j] + v[(j + kLanes) % kTogether] : v[j], d);
#pragma GCC unroll 2
          for (int h = 0; h < H; ++h) sum[(j * H + h) % WD] += d[h];
        }
    };
    constexpr int64_t kStep = kTogether * N;  // elements; of whole rounds of the 16 lanes
    static_assert(kStep % 16 == 0, "");
    int64_t i = begin;
    for (; i + kStep <= end; i += kStep) {
      const T* a[4] = {in[0] + i, in[1] + i, in[2] ? in[2] + i : nullptr,
                       in[3] ? in[3] + i : nullptr};
#pragma GCC unroll 4
      for (int j = 0; j < kTogether; ++j) {
        fetch(a[0] + j * N);
        fetch(a[1] + j * N);
      }
      some(a, p.reduce ? nullptr : out + i);
    }
    if (i < end) {
      // what is missing is the last element again; its losses are not counted
      const int rest = (int)(end - i);
      T pad[4][kStep], r[kStep];
      const T* a[4];
      for (int k = 0; k < 4; ++k) {
        a[k] = in[k] ? pad[k] : nullptr;
        for (int j = 0; j < kStep && in[k]; ++j) pad[k][j] = in[k][j < rest ? i + j : end - 1];
      }
      vd kept[WD];
#pragma GCC unroll 8
      for (int w = 0; w < WD; ++w) kept[w] = sum[w];
      some(a, r);
#pragma GCC unroll 8
      for (int w = 0; w < WD; ++w) sum[w] = kept[w];
      if (p.reduce) {
        double lanes[16];
#pragma GCC unroll 8
        for (int w = 0; w < WD; ++w) store(lanes + w * D, sum[w]);
        for (int j = 0; j < rest; ++j) lanes[j % 16] += (double)r[j];
#pragma GCC unroll 8
        for (int w = 0; w < WD; ++w) sum[w] = load(lanes + w * D);
      } else {
        memcpy(out + i, r, (size_t)rest * sizeof(T));
      }
    }
    if constexpr (Op::kDomain) outside[c] = (double)hmax(bad);
    double lanes[16];
#pragma GCC unroll 8
    for (int w = 0; w < WD; ++w) store(lanes + w * D, sum[w]);
    for (int h = 8; h > 0; h /= 2)
      for (int k = 0; k < h; ++k) lanes[k] += lanes[k + h];
    partial[c] = lanes[0];
  }
  ctx->sync();
  if (ctx->tid != 0) return;
  double total = 0, any = 0;
  for (int64_t c = 0; c < chunks; ++c) total += partial[c];
  if (p.reduce) out[0] = (T)(total * p.scale);
  if constexpr (Op::kDomain) {
    for (int64_t c = 0; c < chunks; ++c) any = outside[c] > any ? outside[c] : any;
    if (buf[5]) *(double*)buf[5] = any;
  }
}

template <class Op>
void forward_plan(const void* params, Plan* plan) {
  const LossParams& p = *(const LossParams*)params;
  plan->tasks = chunks_of(p.n);
  plan->work = (int64_t)((double)p.n * Op::kForward);
  plan->scratch = (size_t)(2 * plan->tasks + 1) * sizeof(double);
}

// x, t, weight, pos_weight, dx, dt: (n,);  grad: (n,) or (1,)
template <class T, class Op>
void backward(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N, kTogether = kVectors<T>;
  const LossParams& p = *(const LossParams*)params;
  const T *x = (const T*)buf[0], *t = (const T*)buf[1], *weight = (const T*)buf[2];
  const T *pos = (const T*)buf[3], *grad = (const T*)buf[4];
  T *dx = (T*)buf[5], *dt = (T*)buf[6];
  const Op op(p);
  const V one = set1((T)1), all = p.reduce ? set1((T)((double)grad[0] * p.scale)) : one;
  const int64_t bytes = p.n * (int64_t)sizeof(T);
  const bool stream = dx && streams(ctx, bytes, dx), stream_t = dt && streams(ctx, bytes, dt);
  auto some = [&](const T* a, int64_t i, int n) __attribute__((always_inline)) {
    return n == N ? load(a + i) : load_n(a + i, n);
  };
  auto factor = [&](int64_t i, int n) __attribute__((always_inline)) {
    V g = p.reduce ? all : some(grad, i, n);
    return weight ? g * some(weight, i, n) : g;
  };
  int64_t chunks = chunks_of(p.n);
  for (int64_t c = ctx->tid; c < chunks; c += ctx->nt) {
    int64_t i = c * kChunk, end = i + kChunk < p.n ? i + kChunk : p.n;
    for (; i + kTogether * N <= end; i += kTogether * N) {
      V xv[kTogether], tv[kTogether], q[kTogether], g[kTogether], v[kTogether];
#pragma GCC unroll 4
      for (int j = 0; j < kTogether; ++j) {
        const int64_t k = i + j * N;
        fetch(x + k);
        fetch(t + k);
        xv[j] = load(x + k);
        tv[j] = load(t + k);
        q[j] = pos ? load(pos + k) : one;
        g[j] = factor(k, N);
      }
      if (dx) {
        if (all_short<Op>(xv)) {
          if constexpr (Op::kShort)
#pragma GCC unroll 4
            for (int j = 0; j < kTogether; ++j) v[j] = op.short_dx(xv[j], tv[j], q[j]) * g[j];
        } else {
#pragma GCC unroll 4
          for (int j = 0; j < kTogether; ++j) v[j] = op.dx(xv[j], tv[j], q[j]) * g[j];
        }
        if (stream)
#pragma GCC unroll 4
          for (int j = 0; j < kTogether; ++j) write<true>(dx + i + j * N, v[j]);
        else
#pragma GCC unroll 4
          for (int j = 0; j < kTogether; ++j) store(dx + i + j * N, v[j]);
      }
      if (dt)
        for (int j = 0; j < kTogether; ++j)
          write(stream_t, dt + i + j * N, op.dt(xv[j], tv[j], q[j]) * g[j]);
    }
    for (; i < end; i += N) {
      const int n = end - i < N ? (int)(end - i) : N;
      V xv = some(x, i, n), tv = some(t, i, n), q = pos ? some(pos, i, n) : one, g = factor(i, n);
      if (dx) store_n(dx + i, op.dx(xv, tv, q) * g, n);
      if (dt) store_n(dt + i, op.dt(xv, tv, q) * g, n);
    }
  }
  if (stream || stream_t) write_fence();
}

template <class Op>
void backward_plan(const void* params, Plan* plan) {
  const LossParams& p = *(const LossParams*)params;
  plan->tasks = chunks_of(p.n);
  plan->work = (int64_t)((double)p.n * Op::kBackward);
}

// ---- negative log likelihood: -weight[t] x[t] a row. A gather: one line of memory a row forward;
// backward writes dx.
GS_INLINE int64_t rows_of(const NllParams& p) {
  int64_t r = kChunk / (p.classes > 0 ? p.classes : 1);
  return r < 16 ? 16 : r;
}
GS_INLINE int64_t target_at(const NllParams& p, const void* target, int64_t r) {
  return p.target == kI32 ? ((const int32_t*)target)[r] : ((const int64_t*)target)[r];
}

// x: (rows, classes), target: (rows,), weight: (classes,), out: (rows,) or (1,), total: (2,)
template <class T>
void nll_forward(const void* params, void* const* buf, const Ctx* ctx) {
  const NllParams& p = *(const NllParams*)params;
  const T *x = (const T*)buf[0], *weight = (const T*)buf[2];
  T* out = (T*)buf[3];
  double* total = (double*)buf[4];
  int64_t step = rows_of(p), tasks = (p.rows + step - 1) / step;
  double* partial = (double*)ctx->scratch;  // {loss, weight, first bad row} a task
  constexpr int64_t kFar = 16;              // rows whose lines are asked for ahead
  for (int64_t c = ctx->tid; c < tasks; c += ctx->nt) {
    int64_t end = (c + 1) * step < p.rows ? (c + 1) * step : p.rows, bad = -1;
    // a sum by itself would wait for its last addition in each row
    double loss[4] = {}, sum[4] = {};
    auto one = [&](int64_t r, int i) __attribute__((always_inline)) {
      int64_t k = target_at(p, buf[1], r);
      if (r + kFar < p.rows)  // whatever the target says
        __builtin_prefetch((const void*)((uintptr_t)x + ((uint64_t)(r + kFar) * p.classes +
                                                         (uint64_t)target_at(p, buf[1], r + kFar)) *
                                                            sizeof(T)));
      T v = 0;
      if (k == p.ignore_index) {
      } else if (k < 0 || k >= p.classes) {
        if (bad < 0) bad = r;
      } else {
        T w = weight ? weight[k] : (T)1;
        v = -w * x[r * p.classes + k];
        loss[i] += (double)v;
        sum[i] += (double)w;
      }
      if (!p.reduce) out[r] = v;
    };
    int64_t r = c * step;
    for (; r + 4 <= end; r += 4) one(r, 0), one(r + 1, 1), one(r + 2, 2), one(r + 3, 3);
    for (; r < end; ++r) one(r, 0);
    partial[3 * c] = (loss[0] + loss[1]) + (loss[2] + loss[3]);
    partial[3 * c + 1] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    partial[3 * c + 2] = (double)bad;
  }
  ctx->sync();
  if (ctx->tid != 0) return;
  double loss = 0, sum = 0, bad = -1;
  for (int64_t c = 0; c < tasks; ++c) {
    loss += partial[3 * c];
    sum += partial[3 * c + 1];
    if (bad < 0) bad = partial[3 * c + 2];
  }
  if (p.reduce) out[0] = (T)(p.reduce == 2 ? loss / sum : loss);
  total[0] = sum;
  total[1] = bad;
}

void nll_forward_plan(const void* params, Plan* plan) {
  const NllParams& p = *(const NllParams*)params;
  int64_t step = rows_of(p);
  plan->tasks = (p.rows + step - 1) / step;
  plan->work = p.rows * 3;
  plan->scratch = (size_t)(3 * plan->tasks + 1) * sizeof(double);
}

// target: (rows,), weight: (classes,), grad: (rows,) or (1,), total: (2,), dx: (rows, classes)
template <class T>
void nll_backward(const void* params, void* const* buf, const Ctx* ctx) {
  const NllParams& p = *(const NllParams*)params;
  const T *weight = (const T*)buf[1], *grad = (const T*)buf[2];
  const double* total = (const double*)buf[3];
  T* dx = (T*)buf[4];
  int64_t step = rows_of(p), tasks = (p.rows + step - 1) / step;
  double all = p.reduce ? (double)grad[0] / (p.reduce == 2 ? total[0] : 1.0) : 0;
  // A member's stretch of rows, in blocks whose lines are still near when the targets are written;
  // at once where they will not stay anyway: memset then goes past the caches.
  const int64_t row = p.classes > 0 ? p.classes : 1, some = (1 << 18) / (int64_t)sizeof(T) / row;
  const bool far = p.rows * row * (int64_t)sizeof(T) >= 4 * ctx->stream;
  const int64_t block = far ? p.rows : some > 1 ? some : 1;
  int64_t stop = tasks * (ctx->tid + 1) / ctx->nt * step;
  stop = stop < p.rows ? stop : p.rows;
  for (int64_t b = tasks * ctx->tid / ctx->nt * step; b < stop; b += block) {
    const int64_t end = b + block < stop ? b + block : stop;
    memset(dx + b * p.classes, 0, (size_t)((end - b) * p.classes) * sizeof(T));
    for (int64_t r = b; r < end; ++r) {
      int64_t k = target_at(p, buf[0], r);
      if (k == p.ignore_index || k < 0 || k >= p.classes) continue;
      T w = weight ? weight[k] : (T)1;
      dx[r * p.classes + k] = -w * (p.reduce ? (T)all : grad[r]);
    }
  }
}

void nll_backward_plan(const void* params, Plan* plan) {
  const NllParams& p = *(const NllParams*)params;
  int64_t step = rows_of(p);
  plan->tasks = (p.rows + step - 1) / step;
  plan->work = p.rows * p.classes / 8 + p.rows * 2;
}

#define GS_LOSS(name, Op)                                                                    \
  {name "_loss_forward", kF32, forward<float, Op<float>>, forward_plan<Op<float>>},          \
      {name "_loss_forward", kF64, forward<double, Op<double>>, forward_plan<Op<double>>},   \
      {name "_loss_backward", kF32, backward<float, Op<float>>, backward_plan<Op<float>>}, { \
    name "_loss_backward", kF64, backward<double, Op<double>>, backward_plan<Op<double>>     \
  }

const KernelEntry entries[] = {
    GS_LOSS("mse", Mse),
    GS_LOSS("l1", L1),
    GS_LOSS("smooth_l1", SmoothL1),
    GS_LOSS("huber", Huber),
    GS_LOSS("bce", Bce),
    GS_LOSS("bce_logits", BceLogits),
    GS_LOSS("kl", Kl),
    GS_LOSS("poisson", Poisson),
    {"nll_loss_forward", kF32, nll_forward<float>, nll_forward_plan},
    {"nll_loss_forward", kF64, nll_forward<double>, nll_forward_plan},
    {"nll_loss_backward", kF32, nll_backward<float>, nll_backward_plan},
    {"nll_loss_backward", kF64, nll_backward<double>, nll_backward_plan},
};

}  // namespace

extern const KernelList loss_kernels;
const KernelList loss_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
