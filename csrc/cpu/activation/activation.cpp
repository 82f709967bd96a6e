// Activation functions and their derivatives, elementwise on dense arrays.
//
// Work is split into runs of kRun elements. Floor: forward reads n and writes n elements, backward
// reads 2 n and writes n: copy bandwidth for the piecewise linear ones; those with exp take 6 to 20
// cycles a vector. Backward uses the saved output where the derivative is a function of it (the
// input may then be overwritten), else the input.
//
// Large float32 arrays do less: where the derivative has two values, forward saves a bit an element
// (backward then reads n and writes n: a fifth of all traffic saved); where it costs as much as the
// function (gelu without AVX-512), forward computes both at once and saves the derivative.
#include "activation/curves.h"
#include "activation/piece.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kRun = 16384;

// A member takes runs side by side: what it wrote it reads in the next kernel, and not another one.
struct Stretch {
  int64_t begin, end;
  GS_MEMBER Stretch(int64_t n, const Ctx* ctx) {
    const int64_t runs = (n + kRun - 1) / kRun;
    begin = runs * ctx->tid / ctx->nt * kRun;
    end = runs * (ctx->tid + 1) / ctx->nt * kRun;
    if (end > n) end = n;
  }
};

// x, y: elements b .. e of n
template <bool kStream, class T, class Op>
GS_INLINE void map_loop(const ActivationParams& p, const T* x, T* y, int64_t b, int64_t e) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const Coef<V> k{set1((T)p.a), set1((T)p.b), set1((T)p.c)};
  int64_t i = b;
  for (; i + N <= e; i += N) {
    if (kStream) fetch(x + i);
    write<kStream>(y + i, Op::f(load(x + i), k));
  }
  if (i < e) store_n(y + i, Op::f(load_n(x + i, (int)(e - i)), k), (int)(e - i));
}
template <class T, class Op>
void map(const ActivationParams& p, bool stream, const T* x, T* y, int64_t b, int64_t e) {
  if constexpr (kFused && sizeof(T) == 4 && curve_of<Op>::kAny) {
    using Q = typename curve_of<Op>::Q;
    const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
    if (Q::fits(k)) return curve_run<Q, kValue>(k, stream, x + b, nullptr, y + b, nullptr, e - b);
  }
  if (sizeof(T) == 4 && stream)
    map_loop<sizeof(T) == 4, T, Op>(p, x, y, b, e);
  else
    map_loop<false, T, Op>(p, x, y, b, e);
}

// asks: lines of both inputs are asked for ahead, which costs a core that follows them by itself a
// seventh of such a short loop, but not the loops of curve_run
template <bool kStream, class T, class Op>
GS_INLINE void map_backward_loop(const ActivationParams& p, bool asks, const T* dy, const T* s,
                                 T* dx, int64_t b, int64_t e) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const Coef<V> k{set1((T)p.a), set1((T)p.b), set1((T)p.c)};
  int64_t i = b;
  for (; i + N <= e; i += N) {
    if (kStream && asks) {
      fetch(dy + i);
      fetch(s + i);
    }
    write<kStream>(dx + i, Op::df(load(dy + i), load(s + i), k));
  }
  if (i < e) {
    int n = (int)(e - i);
    store_n(dx + i, Op::df(load_n(dy + i, n), load_n(s + i, n), k), n);
  }
}
template <class T, class Op>
void map_backward(const ActivationParams& p, bool stream, bool asks, const T* dy, const T* s, T* dx,
                  int64_t b, int64_t e) {
  if constexpr (kFused && sizeof(T) == 4 && curve_of<Op>::kSlope) {
    using Q = typename curve_of<Op>::Q;
    const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
    if (Q::fits(k)) return curve_run<Q, kGrad>(k, stream, s + b, dy + b, dx + b, nullptr, e - b);
  }
  if (sizeof(T) == 4 && stream)
    map_backward_loop<sizeof(T) == 4, T, Op>(p, asks, dy, s, dx, b, e);
  else
    map_backward_loop<false, T, Op>(p, false, dy, s, dx, b, e);
}

// Whether the output of n elements at y is to be streamed; not one that overwrites its input.
template <class T>
GS_INLINE bool past_caches(const Ctx* ctx, int64_t n, const void* y, const void* x) {
  return streams(ctx, n * (int64_t)sizeof(T), y) && y != x;
}

GS_INLINE bool is_cheap(int op) {
  return op == kAct_relu || op == kAct_leaky_relu || op == kAct_hardtanh || op == kAct_hardswish ||
         op == kAct_hardsigmoid || op == kAct_threshold || op == kAct_product;
}

// Those whose forward pass is activation_mask where they are large and have a gradient.
GS_INLINE bool has_mask(int op) {
  return op == kAct_relu || op == kAct_leaky_relu || op == kAct_hardtanh || op == kAct_threshold;
}

template <class T>
void activation(const void* params, void* const* buf, const Ctx* ctx) {
  const ActivationParams& p = *(const ActivationParams*)params;
  // Those with a mask come here without a gradient, so x and y are all that has to stay near. With
  // one it is not worth it even where backward reads y: tanh 0.82x, softmax 0.7x (Zen 5, 8 MB).
  const bool alone = has_mask(p.op) && 2 * p.n * (int64_t)sizeof(T) <= p.holds;
  const bool stream = !alone && past_caches<T>(ctx, p.n, buf[1], buf[0]);
  const Stretch part(p.n, ctx);
  for (int64_t b = part.begin; b < part.end; b += kRun) {
    const int64_t e = b + kRun < part.end ? b + kRun : part.end;
    switch (p.op) {
#define X(name)                                                       \
  case kAct_##name:                                                   \
    map<T, op_##name>(p, stream, (const T*)buf[0], (T*)buf[1], b, e); \
    break;
      GS_ACTIVATIONS(X)
#undef X
    }
  }
  if (stream) write_fence();
}

template <class T>
void activation_backward(const void* params, void* const* buf, const Ctx* ctx) {
  const ActivationParams& p = *(const ActivationParams*)params;
  const bool stream = past_caches<T>(ctx, p.n, buf[2], buf[0]);
  const Stretch part(p.n, ctx);
  for (int64_t b = part.begin; b < part.end; b += kRun) {
    const int64_t e = b + kRun < part.end ? b + kRun : part.end;
    const T *dy = (const T*)buf[0], *s = (const T*)buf[1];
    switch (p.op) {
#define X(name)                                                                    \
  case kAct_##name:                                                                \
    map_backward<T, op_##name>(p, stream, !ctx->follows, dy, s, (T*)buf[2], b, e); \
    break;
      GS_ACTIVATIONS(X)
#undef X
    }
  }
  if (stream) write_fence();
}

// ---- forward that saves a bit an element: whether the derivative is 1

constexpr int kWord = 16 / simd<float>::N;  // vectors of a word of the mask

template <int kOp>
GS_INLINE vi steep(vf x, const Coef<vf>& k) {
  if (kOp == kAct_relu) return ~(x <= 0);
  if (kOp == kAct_leaky_relu) return x > 0;
  if (kOp == kAct_hardtanh) return ~((x <= k.a) | (x >= k.b));
  return ~(x <= k.a);
}

template <class Op, int kOp, bool kStream>
GS_INLINE void mask_loop(const ActivationParams& p, const float* x, float* y, uint16_t* bits,
                         int64_t b, int64_t e) {
  constexpr int N = simd<float>::N;
  const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
  int64_t i = b;
  for (; i + 16 <= e; i += 16) {
    uint32_t word = 0;
#pragma GCC unroll 4
    for (int j = 0; j < kWord; ++j) {
      vf v = load(x + i + j * N);
      if (kStream) fetch(x + i + j * N);
      write<kStream>(y + i + j * N, Op::f(v, k));
      word |= lane_bits(steep<kOp>(v, k)) << (j * N);
    }
    bits[i / 16] = (uint16_t)word;
  }
  if (i < e) {
    uint32_t word = 0;
    for (int j = 0; j < kWord; ++j) {
      int n = (int)(e - i) - j * N;
      if (n <= 0) break;
      n = n < N ? n : N;
      vf v = load_n(x + i + j * N, n);
      store_n(y + i + j * N, Op::f(v, k), n);
      word |= lane_bits(steep<kOp>(v, k)) << (j * N);
    }
    bits[i / 16] = (uint16_t)word;
  }
}

template <class Op, int kOp>
void mask_runs(const ActivationParams& p, void* const* buf, const Ctx* ctx) {
  const float* x = (const float*)buf[0];
  float* y = (float*)buf[1];
  uint16_t* bits = (uint16_t*)buf[2];
  const bool stream = past_caches<float>(ctx, p.n, y, x);
  const Stretch part(p.n, ctx);
  for (int64_t b = part.begin; b < part.end; b += kRun) {
    int64_t e = b + kRun < part.end ? b + kRun : part.end;
    if (stream)
      mask_loop<Op, kOp, true>(p, x, y, bits, b, e);
    else
      mask_loop<Op, kOp, false>(p, x, y, bits, b, e);
  }
  if (stream) write_fence();
}

void activation_mask(const void* params, void* const* buf, const Ctx* ctx) {
  const ActivationParams& p = *(const ActivationParams*)params;
  switch (p.op) {
    case kAct_relu:
      return mask_runs<op_relu, kAct_relu>(p, buf, ctx);
    case kAct_leaky_relu:
      return mask_runs<op_leaky_relu, kAct_leaky_relu>(p, buf, ctx);
    case kAct_hardtanh:
      return mask_runs<op_hardtanh, kAct_hardtanh>(p, buf, ctx);
    case kAct_threshold:
      return mask_runs<op_threshold, kAct_threshold>(p, buf, ctx);
  }
}

template <bool kStream>
GS_INLINE void mask_backward_loop(const float* dy, const uint16_t* bits, float* dx, float slope,
                                  int64_t b, int64_t e) {
  constexpr int N = simd<float>::N;
  const vf a = set1(slope);
  const vi some = set1((int32_t)(slope == 0 ? 0 : -1));  // a slope of 0 gives 0, also for NaN
  int64_t i = b;
  for (; i + 16 <= e; i += 16) {
    uint32_t word = bits[i / 16];
#pragma GCC unroll 4
    for (int j = 0; j < kWord; ++j) {
      if (kStream) fetch(dy + i + j * N);
      vf g = load(dy + i + j * N), low = (vf)((vi)(a * g) & some);
      write<kStream>(dx + i + j * N, lanes_of(word >> (j * N)) ? g : low);
    }
  }
  for (int j = 0; j < kWord && i + j * N < e; ++j) {
    int n = e - i - j * N < N ? (int)(e - i - j * N) : N;
    vf g = load_n(dy + i + j * N, n), low = (vf)((vi)(a * g) & some);
    store_n(dx + i + j * N, lanes_of((uint32_t)bits[i / 16] >> (j * N)) ? g : low, n);
  }
}

void activation_mask_backward(const void* params, void* const* buf, const Ctx* ctx) {
  const ActivationParams& p = *(const ActivationParams*)params;
  const float* dy = (const float*)buf[0];
  const uint16_t* bits = (const uint16_t*)buf[1];
  float *dx = (float*)buf[2], slope = (float)p.a;
  const bool stream = past_caches<float>(ctx, p.n, dx, dy);
  const Stretch part(p.n, ctx);
  for (int64_t b = part.begin; b < part.end; b += kRun) {
    int64_t e = b + kRun < part.end ? b + kRun : part.end;
    if (stream)
      mask_backward_loop<true>(dy, bits, dx, slope, b, e);
    else
      mask_backward_loop<false>(dy, bits, dx, slope, b, e);
  }
  if (stream) write_fence();
}

// ---- forward that saves the derivative

template <class Op>
void slope_runs(const ActivationParams& p, void* const* buf, const Ctx* ctx) {
  using Q = typename curve_of<Op>::Q;
  const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
  const float* x = (const float*)buf[0];
  float *y = (float*)buf[1], *d = (float*)buf[2];
  const int64_t bytes = p.n * (int64_t)sizeof(float);
  const bool stream = past_caches<float>(ctx, p.n, y, x) && past_caches<float>(ctx, p.n, d, x);
  // a cache shared by the cores is taken to hold what is less than eight times the threshold
  const int way = !stream ? 0 : bytes / 8 < ctx->stream ? 1 : 2;
  const Stretch part(p.n, ctx);
  for (int64_t b = part.begin; b < part.end; b += kRun) {
    int64_t e = b + kRun < part.end ? b + kRun : part.end;
    if (kFused)
      curve_run<Q, kBoth>(k, way, x + b, nullptr, y + b, d + b, e - b);
    else
      curve_rest<Q, kBoth>(k, x + b, nullptr, y + b, d + b, e - b);
  }
  if (stream) write_fence();
}

void activation_slope(const void* params, void* const* buf, const Ctx* ctx) {
  const ActivationParams& p = *(const ActivationParams*)params;
  switch (p.op) {
    case kAct_gelu:
      return slope_runs<op_gelu>(p, buf, ctx);
    case kAct_gelu_tanh:
      return slope_runs<op_gelu_tanh>(p, buf, ctx);
    case kAct_silu:
      return slope_runs<op_silu>(p, buf, ctx);
    case kAct_mish:
      return slope_runs<op_mish>(p, buf, ctx);
  }
}

template <class T>
void activation_plan(const void* params, Plan* plan) {
  const ActivationParams& p = *(const ActivationParams*)params;
  bool cheap = is_cheap(p.op);
  plan->tasks = (p.n + kRun - 1) / kRun;
  plan->work = cheap ? p.n / 8 * (int64_t)sizeof(T) / 4 : sizeof(T) == 8 ? p.n * 8 : p.n / 2;
}

#define GS_BOTH(name, f, plan) \
  {name, kF32, f<float>, plan<float>}, { name, kF64, f<double>, plan<double> }
const KernelEntry entries[] = {
    GS_BOTH("activation", activation, activation_plan),
    GS_BOTH("activation_backward", activation_backward, activation_plan),
    {"activation_mask", kF32, activation_mask, activation_plan<float>},
    {"activation_mask_backward", kF32, activation_mask_backward, activation_plan<float>},
    {"activation_slope", kF32, activation_slope, activation_plan<float>},
    {"activation_piece", kF32, activation_piece, piece_plan},
};

}  // namespace

extern const KernelList activation_kernels;
const KernelList activation_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
