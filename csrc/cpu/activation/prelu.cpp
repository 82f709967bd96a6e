// Leaky ReLU with slopes that are drawn (randomised) or learnt (PReLU), forward and backward.
//
// Randomised: one Philox word an element, drawn again backward instead of stored. PReLU: x is
// (rows, channels), w has one slope or one a channel. Rows are cut into groups by shape; each group
// leaves its sums of dw in scratch, and the groups are added in order. Floor: the copy (two streams
// forward, three backward).
#include "activation.h"
#include "simd/philox.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kRun = 16384;

template <class T, bool kBackward>
void rrelu(const void* params, void* const* buf, const Ctx* ctx) {
  const RReluParams& p = *(const RReluParams*)params;
  const PhiloxStream stream(p.seed, ctx->read(p.counter));
  const T* x = (const T*)buf[kBackward ? 1 : 0];
  const T* from = (const T*)buf[0];
  T* out = (T*)buf[kBackward ? 2 : 1];
  const T low = (T)p.lower, width = (T)(p.upper - p.lower);
  constexpr int N = simd<float>::N;
  int64_t tasks = (p.n + kRun - 1) / kRun;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t b = t * kRun, e = b + kRun < p.n ? b + kRun : p.n;
    for (int64_t i = b; i < e; i += 4 * N) {
      vu w[4];
      float u[4 * N];
      stream.next4((uint64_t)i, w);
      for (int j = 0; j < 4; ++j) store(u + j * N, uniform24(w[j]));
      int64_t m = e - i < 4 * N ? e - i : 4 * N;
      for (int64_t j = 0; j < m; ++j)
        out[i + j] = x[i + j] > 0 ? from[i + j] : from[i + j] * fma((T)u[j], width, low);
    }
  }
}

template <class T>
void rrelu_plan(const void* params, Plan* plan) {
  const RReluParams& p = *(const RReluParams*)params;
  plan->tasks = (p.n + kRun - 1) / kRun;
  plan->work = p.n;
}

// rows of a group
GS_INLINE int64_t prelu_group(const PReluParams& p) {
  int64_t g = kRun / p.channels;
  if (p.channels == 1) return kRun;
  g = g < 1 ? 1 : g;
  int64_t most = 256;  // at most this many groups, so that scratch stays small
  int64_t least = (p.rows + most - 1) / most;
  return g > least ? g : least;
}
GS_INLINE int64_t prelu_tasks(const PReluParams& p) {
  int64_t g = prelu_group(p);
  return (p.rows + g - 1) / g;
}

template <class T>
void prelu(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const PReluParams& p = *(const PReluParams*)params;
  const T *x = (const T*)buf[0], *w = (const T*)buf[1];
  T* y = (T*)buf[2];
  int64_t group = prelu_group(p), tasks = prelu_tasks(p), C = p.channels;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t b = t * group, e = b + group < p.rows ? b + group : p.rows;
    if (C == 1) {
      const V a = set1(w[0]);
      int64_t i = b;
      for (; i + N <= e; i += N) {
        const V v = load(x + i);
        store(y + i, v > 0 ? v : a * v);
      }
      for (; i < e; ++i) y[i] = x[i] > 0 ? x[i] : w[0] * x[i];
      continue;
    }
    for (int64_t r = b; r < e; ++r) {
      const T* xr = x + r * C;
      T* yr = y + r * C;
      for (int64_t c = 0; c < C; c += N) {
        int n = C - c < N ? (int)(C - c) : N;
        V v = n == N ? load(xr + c) : load_n(xr + c, n);
        V a = n == N ? load(w + c) : load_n(w + c, n);
        v = v > 0 ? v : a * v;
        if (n == N)
          store(yr + c, v);
        else
          store_n(yr + c, v, n);
      }
    }
  }
}

template <class T>
void prelu_backward(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const PReluParams& p = *(const PReluParams*)params;
  const T *dy = (const T*)buf[0], *x = (const T*)buf[1], *w = (const T*)buf[2];
  T *dx = (T*)buf[3], *dw = (T*)buf[4], *part = (T*)ctx->scratch;
  int64_t group = prelu_group(p), tasks = prelu_tasks(p), C = p.channels;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t b = t * group, e = b + group < p.rows ? b + group : p.rows;
    if (C == 1) {
      constexpr int W = Sum16<T>::W;
      Sum16<T> sum;
      sum.clear();
      V a = set1(w[0]);
      int64_t i = b;
      for (; i + 16 <= e; i += 16) {
#pragma GCC unroll 8
        for (int j = 0; j < W; ++j) {
          V g = load(dy + i + j * N), v = load(x + i + j * N);
          sum.v[j] += v > 0 ? V{} : v * g;
          if (dx) store(dx + i + j * N, v > 0 ? g : a * g);
        }
      }
      T rest = 0;
      for (; i < e; ++i) {
        if (!(x[i] > 0)) rest += x[i] * dy[i];
        if (dx) dx[i] = x[i] > 0 ? dy[i] : w[0] * dy[i];
      }
      part[t] = sum.total() + rest;
      continue;
    }
    T* pt = part + t * C;
    for (int64_t c = 0; c < C; c += N) {
      int n = C - c < N ? (int)(C - c) : N;
      V sum = {}, a = load_n(w + c, n);
      for (int64_t r = b; r < e; ++r) {
        V g = n == N ? load(dy + r * C + c) : load_n(dy + r * C + c, n);
        V v = n == N ? load(x + r * C + c) : load_n(x + r * C + c, n);
        sum += v > 0 ? V{} : v * g;
        if (dx) store_n(dx + r * C + c, v > 0 ? g : a * g, n);
      }
      store_n(pt + c, sum, n);
    }
  }
  ctx->sync();
  if (!dw) return;
  for (int64_t c = ctx->tid; c < C; c += ctx->nt) {
    double s = 0;
    for (int64_t t = 0; t < tasks; ++t) s += (double)part[t * C + c];
    dw[c] = (T)s;
  }
}

template <class T>
void prelu_plan(const void* params, Plan* plan) {
  const PReluParams& p = *(const PReluParams*)params;
  plan->tasks = prelu_tasks(p);
  plan->work = p.rows * p.channels / 4;
}
template <class T>
void prelu_backward_plan(const void* params, Plan* plan) {
  const PReluParams& p = *(const PReluParams*)params;
  prelu_plan<T>(params, plan);
  plan->scratch = (size_t)(prelu_tasks(p) * p.channels) * sizeof(T);
}
template <class T>
void rrelu_forward(const void* params, void* const* buf, const Ctx* ctx) {
  rrelu<T, false>(params, buf, ctx);
}
template <class T>
void rrelu_backward(const void* params, void* const* buf, const Ctx* ctx) {
  rrelu<T, true>(params, buf, ctx);
}
#define GS_BOTH(name, f, plan) \
  {name, kF32, f<float>, plan<float>}, { name, kF64, f<double>, plan<double> }
const KernelEntry entries[] = {
    GS_BOTH("rrelu", rrelu_forward, rrelu_plan),
    GS_BOTH("rrelu_backward", rrelu_backward, rrelu_plan),
    GS_BOTH("prelu", prelu, prelu_plan),
    GS_BOTH("prelu_backward", prelu_backward, prelu_backward_plan),
};

}  // namespace

extern const KernelList activation_prelu_kernels;
const KernelList activation_prelu_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
