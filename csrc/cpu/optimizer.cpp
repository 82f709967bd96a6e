// Optimizer updates: every tensor of a parameter group in one launch.
//
// The tensors are cut into chunks of kChunk elements (32 KB of float32); one parallel loop runs
// over the chunks of all of them, so many small tensors cost no more than one large one. A chunk
// reads parameter, gradient and states once and writes parameter and states: the floor is memory,
// for Adam 28 bytes a parameter (16 read, 12 written) at ~12 operations, a division and a square
// root. In 512 bits those two take longer than the second cache takes for the bytes: over_root()
// estimates one of them.
//
// Scalars are computed in double by the caller and rounded to T once; the arithmetic is in T.
#include "optimizer.h"

#include <math.h>

#include "prepare_unit.h"
#include "simd/flush.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kChunk = 8192;
constexpr int64_t kNear = 4096;  // chunks of at most so many elements are not fetched ahead

GS_INLINE int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

template <class P>
GS_INLINE const int64_t* sizes_of(const P& p) {
  return (const int64_t*)(&p + 1);
}

// Walks the chunks that belong to one member: of each tensor one run of neighbouring chunks, the
// members in order. A product that makes a gradient, or reads the parameter in the next step, gives
// its members parts of the rows in the same order, so that most of what a core updates lies in its
// own caches. Chunks that are over go to the members in turn.
struct Walk {
  const int64_t* sizes;
  int64_t count, tensor, first;  // `first`: index of the first chunk of `tensor`
  int64_t at, end, turn;         // this member's chunks of `tensor`; who has the next one over
  int64_t chunk;                 // index of the chunk that next() gave
  int tid, nt;

  GS_MEMBER Walk(const int64_t* s, int64_t n, const Ctx* ctx)
      : sizes(s),
        count(n),
        tensor(-1),
        first(0),
        at(0),
        end(0),
        turn(0),
        chunk(0),
        tid(ctx->tid),
        nt(ctx->nt) {}
  // The tensor, offset and length of the next chunk; false at the end.
  GS_MEMBER bool next(int64_t* offset, int64_t* n) {
    while (at == end) {
      if (tensor >= 0) first += chunks_of(sizes[tensor]);
      if (++tensor == count) return false;
      int64_t chunks = chunks_of(sizes[tensor]), each = chunks / nt, over = chunks % nt;
      // members turn .. turn + over - 1, around the end, have one more
      int64_t last = turn + over;
      int64_t before = (tid < last ? tid : last) - turn, around = last - nt;
      at =
          tid * each + (before > 0 ? before : 0) + (around > 0 ? (tid < around ? tid : around) : 0);
      end = at + each + ((tid >= turn && tid < last) || tid < around);
      turn = last % nt;
    }
    chunk = first + at;
    *offset = at++ * kChunk;
    int64_t rest = sizes[tensor] - *offset;
    *n = rest < kChunk ? rest : kChunk;
    return true;
  }
};

template <class P>
void plan_of(const void* params, Plan* plan, double ns_per_element) {
  const P& p = *(const P*)params;
  const int64_t* sizes = sizes_of(p);
  int64_t n = 0, chunks = 0;
  for (int64_t i = 0; i < p.count; ++i) n += sizes[i], chunks += chunks_of(sizes[i]);
  plan->tasks = chunks;
  plan->work = (int64_t)((double)n * ns_per_element) + 5 * p.count;
}

// n / (sqrt(v) c + e), what most rules end in, within 0.6 units in the last place of a division by
// that denominator. 512-bit roots and divisions share one unit, 12 and 10 cycles each: the root is
// left to it, the quotient is estimated and corrected. (The root, too: more instructions, slower.)
// Lanes that are not finite, or divide by 0, come out as NaN, and EXACT divides them after all.
// *quotient is what update() looks at to know.
template <bool EXACT>
GS_INLINE vd over_root(vd n, vd v, vd c, vd e, vd*) {
  return n / fma(sqrt(v), c, e);
}
template <bool EXACT>
GS_INLINE vf over_root(vf n, vf v, vf c, vf e, vf* quotient) {
  vf d = fma(sqrt(v), c, e);
#if defined(__AVX512F__)
  vf r = (vf)_mm512_rcp14_ps((__m512)d), q = n * r;
  q = fma(fnma(q, d, n), r, q);
  if (EXACT) {
    __mmask16 odd = _mm512_cmp_ps_mask((__m512)q, (__m512)q, _CMP_UNORD_Q);
    q = (vf)_mm512_mask_blend_ps(odd, (__m512)q, (__m512)(n / d));
  }
  return *quotient = q;
#else
  (void)quotient;
  return n / d;
#endif
}
#if defined(__AVX512F__)
constexpr bool kEstimates = true;
// Whether a lane of either is NaN.
GS_INLINE bool unordered(vf a, vf b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q) != 0;
}
#else
constexpr bool kEstimates = false;
GS_INLINE bool unordered(vf, vf) { return false; }
#endif
GS_INLINE bool unordered(vd, vd) { return false; }

// ---- the rules
//
// A rule holds its scalars as vectors; step(x, q) is given x[0] = p, x[1] = g, x[2...] = states and
// replaces p and the states; q as in over_root(), which rules with kRoot end in.

// The scalars of a launch, rounded to T and spread over a vector.
template <class T>
struct Scalars {
  using V = typename simd<T>::V;
  const OptimizerParams& p;
  const Ctx* ctx;
  GS_MEMBER double number(int i) const { return ctx->read(p.scalars[i]); }
  GS_MEMBER V operator[](int i) const { return set1((T)number(i)); }
  GS_MEMBER V rule(int i) const { return (*this)[kRule + i]; }
};

// scalars: lr
template <class T>
struct Sgd {
  static constexpr int kStates = 0;
  static constexpr bool kRoot = false;
  using V = typename simd<T>::V;
  V lr;
  GS_MEMBER explicit Sgd(const Scalars<T>& s) : lr(s.rule(0)) {}
  template <bool EXACT>
  GS_MEMBER void step(V* x, V*) const {
    x[0] = fnma(lr, x[1], x[0]);
  }
};

// scalars: lr, momentum (0 at the first step), 1 - dampening (1 at the first step), momentum with
// Nesterov, else 0 state: b = momentum b + (1 - dampening) g;  p -= lr b, or with Nesterov p -= lr
// (g + momentum b)
template <class T>
struct Momentum {
  static constexpr int kStates = 1;
  static constexpr bool kRoot = false;
  using V = typename simd<T>::V;
  V lr, momentum, share, ahead;
  bool nesterov;
  GS_MEMBER explicit Momentum(const Scalars<T>& s)
      : lr(s.rule(0)),
        momentum(s.rule(1)),
        share(s.rule(2)),
        ahead(s.rule(3)),
        nesterov(s.number(kRule + 3) != 0) {}
  template <bool EXACT>
  GS_MEMBER void step(V* x, V*) const {
    x[2] = fma(momentum, x[2], share * x[1]);
    V d = nesterov ? fma(ahead, x[2], x[1]) : x[2];
    x[0] = fnma(lr, d, x[0]);
  }
};

// scalars: lr / (1 + (t - 1) lr_decay), eps.   s += g^2;  p -= lr g / (sqrt(s) + eps)
template <class T>
struct Adagrad {
  static constexpr int kStates = 1;
  static constexpr bool kRoot = true;
  using V = typename simd<T>::V;
  V lr, eps;
  GS_MEMBER explicit Adagrad(const Scalars<T>& s) : lr(s.rule(0)), eps(s.rule(1)) {}
  template <bool EXACT>
  GS_MEMBER void step(V* x, V* q) const {
    x[2] = fma(x[1], x[1], x[2]);
    x[0] = fnma(lr, over_root<EXACT>(x[1], x[2], set1((T)1), eps, q), x[0]);
  }
};

// scalars: lr, alpha, 1 - alpha, eps, momentum.  states: v [, mean gradient] [, momentum buffer]
// v = alpha v + (1 - alpha) g^2;  centered: a = alpha a + (1 - alpha) g, v - a^2 in place of v
// p -= lr g / (sqrt(v) + eps);  momentum: b = momentum b + g / (sqrt(v) + eps), p -= lr b
template <class T, bool centered, bool with_momentum>
struct RmsProp {
  static constexpr int kStates = 1 + centered + with_momentum;
  static constexpr bool kRoot = true;
  using V = typename simd<T>::V;
  V lr, alpha, rest, eps, momentum;
  GS_MEMBER explicit RmsProp(const Scalars<T>& s)
      : lr(s.rule(0)), alpha(s.rule(1)), rest(s.rule(2)), eps(s.rule(3)), momentum(s.rule(4)) {}
  template <bool EXACT>
  GS_MEMBER void step(V* x, V* q) const {
    x[2] = fma(alpha, x[2], rest * x[1] * x[1]);
    V v = x[2];
    if constexpr (centered) {
      x[3] = fma(rest, x[1] - x[3], x[3]);
      v = max(V{}, v - x[3] * x[3]);  // rounding may leave less than nothing
    }
    V d = over_root<EXACT>(x[1], v, set1((T)1), eps, q);
    if constexpr (with_momentum) d = x[kStates + 1] = fma(momentum, x[kStates + 1], d);
    x[0] = fnma(lr, d, x[0]);
  }
};

// scalars: lr, rho, 1 - rho, eps.  states: v, u
// v = rho v + (1 - rho) g^2;  d = sqrt(u + eps) / sqrt(v + eps) g;  u = rho u + (1 - rho) d^2;  p
// -= lr d
template <class T>
struct Adadelta {
  static constexpr int kStates = 2;
  static constexpr bool kRoot = false;
  using V = typename simd<T>::V;
  V lr, rho, rest, eps;
  GS_MEMBER explicit Adadelta(const Scalars<T>& s)
      : lr(s.rule(0)), rho(s.rule(1)), rest(s.rule(2)), eps(s.rule(3)) {}
  template <bool EXACT>
  GS_MEMBER void step(V* x, V*) const {
    x[2] = fma(rho, x[2], rest * x[1] * x[1]);
    V d = sqrt(x[3] + eps) / sqrt(x[2] + eps) * x[1];
    x[3] = fma(rho, x[3], rest * d * d);
    x[0] = fnma(lr, d, x[0]);
  }
};

// scalars: lr / (1 - beta1^t), beta1, 1 - beta1, beta2, 1 - beta2, eps, 1 / sqrt(1 - beta2^t)
// states: m, v [, largest v]
// m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  p -= lr' m / (sqrt(v) * c + eps)
template <class T, bool amsgrad>
struct Adam {
  static constexpr int kStates = 2 + amsgrad;
  static constexpr bool kRoot = true;
  using V = typename simd<T>::V;
  V lr, beta1, rest1, beta2, rest2, eps, correction;
  GS_MEMBER explicit Adam(const Scalars<T>& s)
      : lr(s.rule(0)),
        beta1(s.rule(1)),
        rest1(s.rule(2)),
        beta2(s.rule(3)),
        rest2(s.rule(4)),
        eps(s.rule(5)),
        correction(s.rule(6)) {}
  template <bool EXACT>
  GS_MEMBER void step(V* x, V* q) const {
    x[2] = fma(rest1, x[1], beta1 * x[2]);
    x[3] = fma(beta2, x[3], rest2 * x[1] * x[1]);
    V v = x[3];
    if constexpr (amsgrad) v = x[4] = max(x[4], v);
    x[0] = fnma(lr, over_root<EXACT>(x[2], v, correction, eps, q), x[0]);
  }
};

// scalars: share of g, share of m, beta1, beta2, 1 - beta2, eps, 1 / (1 - beta2^t).  states: m, v
// p -= (a g + b m) / (sqrt(v c) + eps), a = lr (1 - mu_t) / (1 - prod mu), b = lr mu_{t+1} / (1 -
// prod mu mu_{t+1})
template <class T>
struct NAdam {
  static constexpr int kStates = 2;
  static constexpr bool kRoot = true;
  using V = typename simd<T>::V;
  V a, b, beta1, rest1, beta2, rest2, eps, correction;
  GS_MEMBER explicit NAdam(const Scalars<T>& s)
      : a(s.rule(0)),
        b(s.rule(1)),
        beta1(s.rule(2)),
        beta2(s.rule(3)),
        rest2(s.rule(4)),
        eps(s.rule(5)),
        correction(s.rule(6)) {
    rest1 = set1((T)(1.0 - s.number(kRule + 2)));
  }
  template <bool EXACT>
  GS_MEMBER void step(V* x, V* q) const {
    x[2] = fma(rest1, x[1], beta1 * x[2]);
    x[3] = fma(beta2, x[3], rest2 * x[1] * x[1]);
    x[0] = x[0] - over_root<EXACT>(fma(a, x[1], b * x[2]), x[3] * correction, set1((T)1), eps, q);
  }
};

// scalars: lr / (1 - beta1^t), beta1, 1 - beta1, beta2, eps.  states: m, u
// u = max(beta2 u, |g| + eps);  p -= lr' m / u
template <class T>
struct Adamax {
  static constexpr int kStates = 2;
  static constexpr bool kRoot = false;
  using V = typename simd<T>::V;
  V lr, beta1, rest1, beta2, eps;
  GS_MEMBER explicit Adamax(const Scalars<T>& s)
      : lr(s.rule(0)), beta1(s.rule(1)), rest1(s.rule(2)), beta2(s.rule(3)), eps(s.rule(4)) {}
  template <bool EXACT>
  GS_MEMBER void step(V* x, V*) const {
    x[2] = fma(rest1, x[1], beta1 * x[2]);
    x[3] = max(beta2 * x[3], abs(x[1]) + eps);
    x[0] = fnma(lr, x[2] / x[3], x[0]);
  }
};

// scalars: lr', beta1, 1 - beta1, beta2, 1 - beta2, eps, rectified (0 or 1).  states: m, v
// rectified: p -= lr' m / (sqrt(v) + eps), lr' = lr r_t sqrt(1 - beta2^t) / (1 - beta1^t)
// otherwise: p -= lr' m, lr' = lr / (1 - beta1^t)
template <class T>
struct RAdam {
  static constexpr int kStates = 2;
  static constexpr bool kRoot = true;
  using V = typename simd<T>::V;
  V lr, beta1, rest1, beta2, rest2, eps;
  bool rectified;
  GS_MEMBER explicit RAdam(const Scalars<T>& s)
      : lr(s.rule(0)),
        beta1(s.rule(1)),
        rest1(s.rule(2)),
        beta2(s.rule(3)),
        rest2(s.rule(4)),
        eps(s.rule(5)),
        rectified(s.number(kRule + 6) != 0) {}
  template <bool EXACT>
  GS_MEMBER void step(V* x, V* q) const {
    x[2] = fma(rest1, x[1], beta1 * x[2]);
    x[3] = fma(beta2, x[3], rest2 * x[1] * x[1]);
    V d = *q = x[2];
    if (rectified) d = over_root<EXACT>(x[2], x[3], set1((T)1), eps, q);
    x[0] = fnma(lr, d, x[0]);
  }
};

// scalars: eta, 1 - lambd eta, mu.  state: the average a.   p = p (1 - lambd eta) - eta g;  a += mu
// (p - a)
template <class T>
struct Asgd {
  static constexpr int kStates = 1;
  static constexpr bool kRoot = false;
  using V = typename simd<T>::V;
  V eta, shrink, mu;
  bool copy;
  GS_MEMBER explicit Asgd(const Scalars<T>& s)
      : eta(s.rule(0)), shrink(s.rule(1)), mu(s.rule(2)), copy(s.number(kRule + 2) == 1) {}
  template <bool EXACT>
  GS_MEMBER void step(V* x, V*) const {
    x[0] = fnma(eta, x[1], x[0] * shrink);
    x[2] = copy ? x[0] : fma(mu, x[0] - x[2], x[2]);
  }
};

// scalars: weight.  p is the average, g what is averaged:  p += weight (g - p)
template <class T>
struct Average {
  static constexpr int kStates = 0;
  static constexpr bool kRoot = false;
  using V = typename simd<T>::V;
  V weight;
  bool copy;
  GS_MEMBER explicit Average(const Scalars<T>& s) : weight(s.rule(0)), copy(s.number(kRule) == 1) {}
  template <bool EXACT>
  GS_MEMBER void step(V* x, V*) const {
    x[0] = copy ? x[1] : fma(weight, x[1] - x[0], x[0]);
  }
};

// ---- the loop that all rules share
// What is done to the gradient before the rule sees it.
template <class T>
struct Prepare {
  using V = typename simd<T>::V;
  V scale, clip, decay, l1, keep;
  bool plain;  // the gradient stays as it is

  GS_MEMBER Prepare(const Scalars<T>& s, double factor)
      : scale(set1((T)(s.number(kScale) * factor))),
        clip(s[kClip]),
        decay(s[kDecay]),
        l1(s[kL1]),
        keep(s[kKeep]) {
    plain = s.number(kScale) * factor == 1 && s.number(kDecay) == 0 && s.number(kL1) == 0 &&
            s.number(kClip) == INFINITY;
  }
  GS_MEMBER void gradient(V* x) const {
    V g = min(clip, max(-clip, x[1] * scale));  // in this order a NaN stays
    g = fma(decay, x[0], g);
    g = g + ((x[0] > V{} ? l1 : V{}) - (x[0] < V{} ? l1 : V{}));
    x[1] = g;
  }
};

// Not where nothing is added to a root that is divided by: a subnormal one is better than zero.
template <class Rule>
GS_INLINE auto flushes(const Rule& rule, int) -> decltype(rule.eps[0] > 0) {
  return rule.eps[0] > 0;
}
template <class Rule>
GS_INLINE bool flushes(const Rule&, long) {
  return true;
}

// Elements i .. i + n - 1, a vector at most, of p, g and the states.
template <class T, class Rule>
__attribute__((noinline)) void update_few(const Prepare<T>& prepare, const Rule& rule, T* const* a,
                                          int64_t i, int n) {
  using V = typename simd<T>::V;
  constexpr int B = Rule::kStates + 2;
  const bool whole = n == simd<T>::N;
  V x[B], q;
#pragma GCC unroll 8
  for (int k = 0; k < B; ++k) x[k] = whole ? load(a[k] + i) : load_n(a[k] + i, n);
  if (!prepare.plain) prepare.gradient(x);
  x[0] = x[0] * prepare.keep;
  rule.template step<true>(x, &q);
#pragma GCC unroll 8
  for (int k = 0; k < B; ++k) {
    if (k == 1) continue;
    if (whole)
      store(a[k] + i, x[k]);
    else
      store_n(a[k] + i, x[k], n);
  }
}

// p, g and kStates states of (n,) each
template <class T, class Rule>
void update(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N, S = Rule::kStates, B = S + 2;
  // one look at the quotients of two vectors
  constexpr int U = kEstimates && sizeof(T) == 4 && Rule::kRoot ? 2 : 1;
  const OptimizerParams& p = *(const OptimizerParams*)params;
  const double* control = (const double*)buf[0];
  if (control && p.skip_nonfinite && control[2] == 0) return;
  Scalars<T> scalars{p, ctx};
  const Prepare<T> prepare(scalars, control ? control[1] : 1.0);
  const Rule rule(scalars);
  const FlushSubnormals flush(flushes(rule, 0));
  const bool plain = prepare.plain;
  const V keep = prepare.keep;
  Walk walk(sizes_of(p), p.count, ctx);
  int64_t offset, n;
  while (walk.next(&offset, &n)) {
    T* a[B];
#pragma GCC unroll 8
    for (int k = 0; k < B; ++k) a[k] = (T*)buf[1 + walk.tensor * B + k] + offset;
    const bool far = n > kNear && !ctx->follows;
    int64_t i = 0;
    for (; i + U * N <= n; i += U * N) {
      V x[U][B], q[U];
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
        for (int k = 0; k < B; ++k) x[u][k] = load(a[k] + i + u * N);
      if (far)
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
          for (int k = 0; k < B; ++k) fetch(a[k] + i + u * N);
      if (!plain)
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u) prepare.gradient(x[u]);
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) {
        x[u][0] = x[u][0] * keep;
        rule.template step<false>(x[u], &q[u]);
      }
      if (U == 2 && __builtin_expect(unordered(q[0], q[U - 1]), 0)) {
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u) update_few<T, Rule>(prepare, rule, a, i + u * N, N);
        continue;
      }
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
        for (int k = 0; k < B; ++k)
          if (k != 1) store(a[k] + i + u * N, x[u][k]);
    }
    for (; i < n; i += N) update_few<T, Rule>(prepare, rule, a, i, (int)(n - i < N ? n - i : N));
  }
}

void update_plan(const void* params, Plan* plan) { plan_of<OptimizerParams>(params, plan, 0.8); }

// ---- gradient norms and clipping
//
// Norms are summed in double, 16 logical lanes a chunk, folded 8, 4, 2, 1, and the chunks in order:
// squares of float32 are exact in double and cannot overflow, and the result is the same on every
// instruction set and team.

typedef float hf __attribute__((vector_size(GS_VBYTES / 2), may_alias, aligned(4)));

// simd<double>::N elements as doubles
GS_INLINE vd load_double(const float* p) { return __builtin_convertvector(*(const hf*)p, vd); }
GS_INLINE vd load_double(const double* p) { return load(p); }

// p: the order; 0 stands for infinity.  x: (n,)
template <class T, int order>
double norm_chunk(const T* x, int64_t n) {
  constexpr int N = simd<double>::N, W = 16 / N;
  vd sum[W];
#pragma GCC unroll 8
  for (int w = 0; w < W; ++w) sum[w] = vd{};
  auto take = [&](const T* q) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int w = 0; w < W; ++w) {
      vd v = load_double(q + w * N);
      if (order == 2)
        sum[w] += v * v;
      else if (order == 1)
        sum[w] += abs(v);
      else
        sum[w] = (abs(v) > sum[w]) | (v != v) ? abs(v) : sum[w];  // a NaN stays
    }
  };
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) take(x + i);
  if (i < n) {
    T last[16] = {};
    for (int64_t k = i; k < n; ++k) last[k - i] = x[k];
    take(last);
  }
  double a[16];
#pragma GCC unroll 8
  for (int w = 0; w < W; ++w) store(a + w * N, sum[w]);
  for (int h = 8; h > 0; h /= 2)
    for (int k = 0; k < h; ++k) {
      if (order == 0)
        a[k] = a[k] != a[k] || a[k] > a[k + h] ? a[k] : a[k + h];
      else
        a[k] += a[k + h];
    }
  return a[0];
}

template <class T>
double norm_any(const T* x, int64_t n, double p) {
  double s = 0;
  for (int64_t i = 0; i < n; ++i) s += pow(fabs((double)x[i]), p);
  return s;
}

template <class T>
void grad_norm(const void* params, void* const* buf, const Ctx* ctx) {
  const GradNormParams& p = *(const GradNormParams*)params;
  double* partial = (double*)ctx->scratch;
  Walk walk(sizes_of(p), p.count, ctx);
  int64_t offset, n;
  while (walk.next(&offset, &n)) {
    const T* x = (const T*)buf[1 + walk.tensor] + offset;
    partial[walk.chunk] = p.p == 2          ? norm_chunk<T, 2>(x, n)
                          : p.p == 1        ? norm_chunk<T, 1>(x, n)
                          : p.p == INFINITY ? norm_chunk<T, 0>(x, n)
                                            : norm_any(x, n, p.p);
  }
  ctx->sync();
  if (ctx->tid != 0) return;
  int64_t chunks = 0;
  for (int64_t i = 0; i < p.count; ++i) chunks += chunks_of(sizes_of(p)[i]);
  double s = 0;
  for (int64_t t = 0; t < chunks; ++t) {
    if (p.p == INFINITY)
      s = s != s || s > partial[t] ? s : partial[t];
    else
      s += partial[t];
  }
  double norm = p.p == 2 ? ::sqrt(s) : p.p == 1 || p.p == INFINITY ? s : pow(s, 1 / p.p);
  double* control = (double*)buf[0];
  double factor = ctx->read(p.max_norm) / (norm + 1e-6);
  control[0] = norm;
  control[1] = factor < 1 || factor != factor ? factor : 1;
  control[2] = norm - norm == 0;
  control[3] = 0;
}

void grad_norm_plan(const void* params, Plan* plan) {
  plan_of<GradNormParams>(params, plan, 0.2);
  plan->scratch = (size_t)plan->tasks * sizeof(double);
}

// g: (n,) each
template <class T, bool clamp>
void grad_scale(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const GradScaleParams& p = *(const GradScaleParams*)params;
  V limit = set1((T)(clamp ? ctx->read(p.limit) : ((const double*)buf[0])[1]));
  auto f = [&](V g) __attribute__((always_inline)) {
    return clamp ? min(limit, max(-limit, g)) : g * limit;
  };
  if (!clamp && ((const double*)buf[0])[1] == 1) return;
  Walk walk(sizes_of(p), p.count, ctx);
  int64_t offset, n;
  while (walk.next(&offset, &n)) {
    T* g = (T*)buf[1 + walk.tensor] + offset;
    int64_t i = 0;
    for (; i + N <= n; i += N) store(g + i, f(load(g + i)));
    if (i < n) store_n(g + i, f(load_n(g + i, (int)(n - i))), (int)(n - i));
  }
}

void grad_scale_plan(const void* params, Plan* plan) {
  plan_of<GradScaleParams>(params, plan, 0.3);
}

// ---- weights whose transformed or packed form is kept (include/prepared.h)
// Bytes: the check reads weights and copy; the update writes copy and forms beside what it does
// anyway. Members take units of rows, in order.

void prepared_check(const void* params, void* const* buf, const Ctx* ctx) {
  const PreparedCheckParams& c = *(const PreparedCheckParams*)params;
  const PreparedParams* all = (const PreparedParams*)(&c + 1);
  for (int64_t i = 0; i < c.count; ++i) {
    const float* w = (const float*)buf[2 * i];
    char* kept = (char*)buf[2 * i + 1];
    const int64_t units = prepared_units(all[i]);
    for (int64_t t = units * ctx->tid / ctx->nt; t < units * (ctx->tid + 1) / ctx->nt; ++t)
      WeightUnit{all[i], w, kept, t}.look();
  }
}
void prepared_check_plan(const void* params, Plan* plan) {
  const PreparedCheckParams& c = *(const PreparedCheckParams*)params;
  const PreparedParams* all = (const PreparedParams*)(&c + 1);
  plan->tasks = 1;
  plan->work = 0;
  for (int64_t i = 0; i < c.count; ++i) {
    const int64_t units = prepared_units(all[i]);
    plan->tasks = units > plan->tasks ? units : plan->tasks;
    plan->work += all[i].rows * all[i].row / 8 + 5;
  }
}

void prepared_update(const void* params, void* const* buf, const Ctx* ctx) {
  const PreparedUpdateParams& p = *(const PreparedUpdateParams*)params;
  const int64_t units = prepared_units(p.prepared), row = p.prepared.row;
  // what a chunk of an update holds, and no less than a unit
  int64_t each = kChunk / (kPreparedRows * row);
  if (each < 1) each = 1;
  const int64_t end = units * (ctx->tid + 1) / ctx->nt;
  const Ctx alone = ctx->alone();
  for (int64_t t = units * ctx->tid / ctx->nt; t < end; t += each) {
    const int64_t next = t + each < end ? t + each : end, offset = t * kPreparedRows * row;
    struct {
      OptimizerParams rule;
      int64_t size;
    } one = {p.rule, (next - t) * kPreparedRows * row};
    if (one.size > p.size - offset) one.size = p.size - offset;
    void* at[3 + 6] = {nullptr};
    for (int64_t i = 0; i < 2 + p.states; ++i) at[1 + i] = (float*)buf[i] + offset;
    p.update(&one, at, &alone);
    for (int64_t u = t; u < next; ++u)
      WeightUnit{p.prepared, (const float*)buf[0], (char*)buf[2 + p.states], u}.prepare();
  }
}
void prepared_update_plan(const void* params, Plan* plan) {
  const PreparedUpdateParams& p = *(const PreparedUpdateParams*)params;
  plan->tasks = prepared_units(p.prepared);
  plan->work = p.size * (1 + p.prepared.forms) + 20;
}

template <class T>
using RmsPlain = RmsProp<T, false, false>;
template <class T>
using RmsCentered = RmsProp<T, true, false>;
template <class T>
using RmsMomentum = RmsProp<T, false, true>;
template <class T>
using RmsCenteredMomentum = RmsProp<T, true, true>;
template <class T>
using PlainAdam = Adam<T, false>;
template <class T>
using AmsGrad = Adam<T, true>;

#define GS_UPDATE(name, Rule)                              \
  {name, kF32, update<float, Rule<float>>, update_plan}, { \
    name, kF64, update<double, Rule<double>>, update_plan  \
  }

const KernelEntry entries[] = {
    GS_UPDATE("sgd", Sgd),
    GS_UPDATE("sgd_momentum", Momentum),
    GS_UPDATE("adagrad", Adagrad),
    GS_UPDATE("rmsprop", RmsPlain),
    GS_UPDATE("rmsprop_centered", RmsCentered),
    GS_UPDATE("rmsprop_momentum", RmsMomentum),
    GS_UPDATE("rmsprop_centered_momentum", RmsCenteredMomentum),
    GS_UPDATE("adadelta", Adadelta),
    GS_UPDATE("adam", PlainAdam),
    GS_UPDATE("adam_amsgrad", AmsGrad),
    GS_UPDATE("nadam", NAdam),
    GS_UPDATE("adamax", Adamax),
    GS_UPDATE("radam", RAdam),
    GS_UPDATE("asgd", Asgd),
    GS_UPDATE("average", Average),
    {"prepared_weights", kF32, prepared_check, prepared_check_plan},
    {"prepared_update", kF32, prepared_update, prepared_update_plan},
    {"grad_norm", kF32, grad_norm<float>, grad_norm_plan},
    {"grad_norm", kF64, grad_norm<double>, grad_norm_plan},
    {"grad_scale", kF32, grad_scale<float, false>, grad_scale_plan},
    {"grad_scale", kF64, grad_scale<double, false>, grad_scale_plan},
    {"grad_clamp", kF32, grad_scale<float, true>, grad_scale_plan},
    {"grad_clamp", kF64, grad_scale<double, true>, grad_scale_plan},
};

}  // namespace

extern const KernelList optimizer_kernels;
const KernelList optimizer_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
