// The walk that all elementwise kernels share: up to three inputs and one output of any strides,
// cut into blocks on which every operand is contiguous.
//
// A kernel supplies a function for one contiguous block. Operands that are contiguous are passed
// where they lie; a number or a broadcast value is spread over a block in L1 once and read from
// there (an L1 load more per vector, so that no kernel needs variants for scalars); anything else
// is gathered into such a block. Which of three walks is taken depends on shapes and strides alone:
//   flat:  every operand is contiguous or one value: blocks of the whole
//   rows:  the last dimension is long: row by row
//   short: the last dimension is short (3 channels, 10 classes): whole rows are packed into blocks,
//   and an
//          operand that repeats along the rows is packed once
#pragma once
#include "elementwise.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kRun = 16384;   // elements of a task
constexpr int64_t kBlock = 1024;  // elements of a gathered block
constexpr int64_t kShortRow = 96;

// One contiguous block: in[k] and out hold n elements.
typedef void (*BlockFn)(const ElementwiseParams& p, int64_t n, const void* const* in, void* out);

template <class U>
GS_INLINE void spread_row(U* dst, const U* src, int64_t stride, int64_t n) {
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) dst[i] = src[i];
  else if (stride == 0)
    for (int64_t i = 0; i < n; ++i) dst[i] = *src;
  else
    for (int64_t i = 0; i < n; ++i) dst[i] = src[i * stride];
}
// n elements of `item` bytes, `stride` elements apart, to dst
__attribute__((noinline)) void gather_row(char* dst, const char* src, int64_t stride, int64_t item,
                                          int64_t n) {
  if (item == 4)
    spread_row((uint32_t*)dst, (const uint32_t*)src, stride, n);
  else if (item == 8)
    spread_row((uint64_t*)dst, (const uint64_t*)src, stride, n);
  else
    spread_row((uint8_t*)dst, (const uint8_t*)src, stride, n);
}
template <class U>
GS_INLINE void put_row(U* dst, int64_t stride, const U* src, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i * stride] = src[i];
}
__attribute__((noinline)) void scatter_row(char* dst, int64_t stride, const char* src, int64_t item,
                                           int64_t n) {
  if (item == 4)
    put_row((uint32_t*)dst, stride, (const uint32_t*)src, n);
  else if (item == 8)
    put_row((uint64_t*)dst, stride, (const uint64_t*)src, n);
  else
    put_row((uint8_t*)dst, stride, (const uint8_t*)src, n);
}

struct Walk {
  const ElementwiseParams* p;
  const Ctx* ctx;
  BlockFn fn;
  int inputs;                   // operand `inputs` is the output
  char* base[kMaxOperands];     // first element of each operand
  int64_t item[kMaxOperands];   // bytes of an element
  bool linear[kMaxOperands];    // C-contiguous over the whole shape
  bool constant[kMaxOperands];  // one value
  char (*room)[kBlock * 8];     // a block for each operand

  // The tasks of a member lie side by side: what it wrote it reads in the next kernel, and not
  // another one.
  GS_MEMBER int64_t first_task(int64_t tasks) const { return tasks * ctx->tid / ctx->nt; }
  GS_MEMBER int64_t last_task(int64_t tasks) const { return tasks * (ctx->tid + 1) / ctx->nt; }
};

// n bytes (a multiple of 64) from L1 past the caches to dst, aligned to 64
GS_INLINE void stream_out(char* dst, const char* src, int64_t n) {
  constexpr int N = simd<float>::N;
  for (int64_t i = 0; i < n; i += 64)
#pragma GCC unroll 4
    for (int j = 0; j < 16; j += N)
      write<true>((float*)(dst + i) + j, load((const float*)(src + i) + j));
}

// The result of a block stays in L1 and is copied from there past the caches; meanwhile the next
// block of each input is fetched, by the loop where the core does not do so.
GS_INLINE void walk_stream(Walk& w, int64_t n) {
  const int o = w.inputs;
  const int64_t tasks = (n + kRun - 1) / kRun;
  const void* in[3];
  const int64_t end_task = w.last_task(tasks);
  for (int64_t t = w.first_task(tasks); t < end_task; ++t) {
    int64_t e = (t + 1) * kRun < n ? (t + 1) * kRun : n;
    for (int64_t b = t * kRun; b < e; b += kBlock) {
      int64_t m = e - b < kBlock ? e - b : kBlock;
      char* dst = w.base[o] + b * w.item[o];
      for (int k = 0; k < o; ++k) {
        in[k] = w.room[k];
        if (!w.linear[k]) continue;
        in[k] = w.base[k] + b * w.item[k];
        const char* next = (const char*)in[k] + kBlock * w.item[k];
        if (w.ctx->follows) continue;
        for (int64_t i = 0; i < kBlock * w.item[k]; i += 64) __builtin_prefetch(next + i);
      }
      if (m < kBlock) {
        w.fn(*w.p, m, in, dst);
      } else {
        w.fn(*w.p, m, in, w.room[o]);
        stream_out(dst, w.room[o], kBlock * w.item[o]);
      }
    }
  }
  write_fence();
}

GS_INLINE void walk_flat(Walk& w, int64_t n) {
  bool own = true;  // nothing is overwritten that is read
  for (int k = 0; k < w.inputs; ++k)
    if (w.base[k] == w.base[w.inputs]) own = false;
  if (own && streams(w.ctx, n * w.item[w.inputs], w.base[w.inputs])) return walk_stream(w, n);
  bool whole = true;
  for (int k = 0; k < w.inputs; ++k)
    if (!w.linear[k]) whole = false;
  int64_t tasks = (n + kRun - 1) / kRun, step = whole ? kRun : kBlock;
  const void* in[3];
  const int64_t end_task = w.last_task(tasks);
  for (int64_t t = w.first_task(tasks); t < end_task; ++t) {
    int64_t e = (t + 1) * kRun < n ? (t + 1) * kRun : n;
    for (int64_t b = t * kRun; b < e; b += step) {
      for (int k = 0; k < w.inputs; ++k)
        in[k] = w.linear[k] ? w.base[k] + b * w.item[k] : w.room[k];
      w.fn(*w.p, e - b < step ? e - b : step, in, w.base[w.inputs] + b * w.item[w.inputs]);
    }
  }
}

// Sets idx and the offsets (elements) of the row that starts at linear row number `row`.
GS_INLINE void seek(const ElementwiseParams& p, int operands, int64_t row, int64_t* idx,
                    int64_t* offset) {
  for (int k = 0; k < operands; ++k) offset[k] = 0;
  for (int d = p.ndim - 2; d >= 0; --d) {
    idx[d] = row % p.shape[d];
    row /= p.shape[d];
    for (int k = 0; k < operands; ++k) offset[k] += idx[d] * p.strides[k][d];
  }
}
GS_INLINE void next_row(const ElementwiseParams& p, int operands, int64_t* idx, int64_t* offset) {
  for (int d = p.ndim - 2; d >= 0; --d) {
    for (int k = 0; k < operands; ++k) offset[k] += p.strides[k][d];
    if (++idx[d] < p.shape[d]) return;
    for (int k = 0; k < operands; ++k) offset[k] -= p.shape[d] * p.strides[k][d];
    idx[d] = 0;
  }
}

GS_INLINE void walk_rows(Walk& w, int64_t n) {
  const ElementwiseParams& p = *w.p;
  int last = p.ndim - 1, operands = w.inputs + 1;
  int64_t inner = p.shape[last], tasks = (n + kRun - 1) / kRun;
  int64_t idx[kMaxDims], offset[kMaxOperands], s[kMaxOperands];
  char* filled[kMaxOperands];  // whose value the room holds
  bool direct = true;
  for (int k = 0; k < operands; ++k) {
    s[k] = p.strides[k][last];
    filled[k] = nullptr;
    if (s[k] != 1) direct = false;
  }
  const void* in[3];
  const int64_t end_task = w.last_task(tasks);
  for (int64_t t = w.first_task(tasks); t < end_task; ++t) {
    int64_t b = t * kRun, e = b + kRun < n ? b + kRun : n, at = b % inner;
    seek(p, operands, b / inner, idx, offset);
    while (b < e) {
      int64_t len = inner - at < e - b ? inner - at : e - b;
      int64_t step = direct ? len : kBlock;
      for (int64_t c = 0; c < len; c += step) {
        int64_t m = len - c < step ? len - c : step;
        for (int k = 0; k < w.inputs; ++k) {
          char* src = w.base[k] + (offset[k] + (at + c) * s[k]) * w.item[k];
          if (w.constant[k]) {
            in[k] = w.room[k];
          } else if (s[k] == 1) {
            in[k] = src;
          } else {
            if (s[k] != 0 || filled[k] != src) {
              int64_t room = inner < kBlock ? inner : kBlock;
              gather_row(w.room[k], src, s[k], w.item[k], s[k] == 0 ? room : m);
              filled[k] = src;
            }
            in[k] = w.room[k];
          }
        }
        int o = w.inputs;
        char* dst = w.base[o] + (offset[o] + (at + c) * s[o]) * w.item[o];
        if (s[o] == 1) {
          w.fn(p, m, in, dst);
        } else {
          w.fn(p, m, in, w.room[o]);
          scatter_row(dst, s[o], w.room[o], w.item[o], m);
        }
      }
      b += len;
      at = 0;
      next_row(p, operands, idx, offset);
    }
  }
}

GS_INLINE void walk_short(Walk& w, int64_t n) {
  const ElementwiseParams& p = *w.p;
  int last = p.ndim - 1, o = w.inputs, operands = w.inputs + 1;
  int64_t inner = p.shape[last], rows = n / inner;
  int64_t per_block = kBlock / inner, per_task = per_block * (kRun / kBlock);
  int64_t tasks = (rows + per_task - 1) / per_task;
  int64_t idx[kMaxDims], offset[kMaxOperands];
  bool repeats[kMaxOperands], packed[kMaxOperands];
  for (int k = 0; k < operands; ++k) {
    packed[k] = false;
    repeats[k] = true;
    for (int d = 0; d < last; ++d)
      if (p.strides[k][d] != 0) repeats[k] = false;
  }
  const void* in[3];
  const int64_t end_task = w.last_task(tasks);
  for (int64_t t = w.first_task(tasks); t < end_task; ++t) {
    int64_t end = (t + 1) * per_task < rows ? (t + 1) * per_task : rows;
    seek(p, operands, t * per_task, idx, offset);
    for (int64_t r = t * per_task; r < end; r += per_block) {
      int64_t m = end - r < per_block ? end - r : per_block;
      bool gather[kMaxOperands], any = false;
      for (int k = 0; k < operands; ++k) {
        gather[k] = !w.linear[k] && !w.constant[k] && !(k < o && repeats[k] && packed[k]);
        any |= gather[k];
        if (k < o) in[k] = w.linear[k] ? (const char*)w.base[k] + r * inner * w.item[k] : w.room[k];
      }
      int64_t out_offset[kBlock];
      if (any) {
        for (int64_t i = 0; i < m; ++i) {
          for (int k = 0; k < o; ++k)
            if (gather[k])
              gather_row(w.room[k] + i * inner * w.item[k], w.base[k] + offset[k] * w.item[k],
                         p.strides[k][last], w.item[k], inner);
          out_offset[i] = offset[o];
          next_row(p, operands, idx, offset);
        }
        for (int k = 0; k < o; ++k)
          if (repeats[k] && m == per_block) packed[k] = true;
      }
      if (!gather[o]) {
        w.fn(p, m * inner, in, w.base[o] + r * inner * w.item[o]);
        if (!any) continue;
      } else {
        w.fn(p, m * inner, in, w.room[o]);
        for (int64_t i = 0; i < m; ++i)
          scatter_row(w.base[o] + out_offset[i] * w.item[o], p.strides[o][last],
                      w.room[o] + i * inner * w.item[o], w.item[o], inner);
      }
    }
  }
}

// Runs fn over the whole shape. item: bytes of an element of each input and of the output;
// numbers[k]: where the value of an absent input lies.
__attribute__((noinline)) void walk(const ElementwiseParams& p, void* const* buf, const Ctx* ctx,
                                    int inputs, const int64_t* item, const void* const* numbers,
                                    BlockFn fn) {
  int64_t n = 1;
  for (int d = 0; d < p.ndim; ++d) n *= p.shape[d];
  if (n == 0) return;
  alignas(64) char room[kMaxOperands][kBlock * 8];
  Walk w;
  w.p = &p;
  w.ctx = ctx;
  w.fn = fn;
  w.inputs = inputs;
  w.room = room;
  bool flat = true;
  for (int k = 0; k <= inputs; ++k) {
    w.item[k] = item[k];
    w.base[k] = (char*)buf[k];
    w.linear[k] = w.constant[k] = true;
    int64_t expect = 1;
    for (int d = p.ndim - 1; d >= 0; --d) {
      if (p.strides[k][d] != expect) w.linear[k] = false;
      if (p.strides[k][d] != 0) w.constant[k] = false;
      expect *= p.shape[d];
    }
    if (!buf[k]) {
      w.linear[k] = false;
      w.constant[k] = true;
      w.base[k] = (char*)numbers[k];
    }
    if (w.linear[k]) w.constant[k] = false;
    if (w.constant[k]) gather_row(room[k], w.base[k], 0, item[k], n < kBlock ? n : kBlock);
    if (!w.linear[k] && (k == inputs || !w.constant[k])) flat = false;
  }
  if (flat)
    walk_flat(w, n);
  else if (p.ndim == 1 || p.shape[p.ndim - 1] >= kShortRow)
    walk_rows(w, n);
  else
    walk_short(w, n);
}

// Splits by shape; `cost` in nanoseconds for 16 elements.
GS_INLINE void walk_plan(const ElementwiseParams& p, int64_t cost, Plan* plan) {
  int64_t n = 1;
  for (int d = 0; d < p.ndim; ++d) n *= p.shape[d];
  plan->tasks = (n + kRun - 1) / kRun;
  plan->work = n * cost / 16;
}

// ---- block functions from functors. F(p) is built once per block.

// y = f(a), f(a, b), f(a, b, c) on vectors; tails by partial loads and stores
template <class F, class T>
void block1(const ElementwiseParams& p, int64_t n, const void* const* in, void* out) {
  constexpr int N = simd<T>::N;
  const F f(p);
  const T* a = (const T*)in[0];
  T* y = (T*)out;
  int64_t i = 0;
  for (; i + 4 * N <= n; i += 4 * N) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) store(y + i + j * N, f(load(a + i + j * N)));
  }
  for (; i + N <= n; i += N) store(y + i, f(load(a + i)));
  if (i < n) store_n(y + i, f(load_n(a + i, (int)(n - i))), (int)(n - i));
}
template <class F, class T>
void block2(const ElementwiseParams& p, int64_t n, const void* const* in, void* out) {
  constexpr int N = simd<T>::N;
  const F f(p);
  const T *a = (const T*)in[0], *b = (const T*)in[1];
  T* y = (T*)out;
  int64_t i = 0;
  for (; i + 4 * N <= n; i += 4 * N) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) store(y + i + j * N, f(load(a + i + j * N), load(b + i + j * N)));
  }
  for (; i + N <= n; i += N) store(y + i, f(load(a + i), load(b + i)));
  if (i < n) {
    int m = (int)(n - i);
    store_n(y + i, f(load_n(a + i, m), load_n(b + i, m)), m);
  }
}
template <class F, class T>
void block3(const ElementwiseParams& p, int64_t n, const void* const* in, void* out) {
  constexpr int N = simd<T>::N;
  const F f(p);
  const T *a = (const T*)in[0], *b = (const T*)in[1], *c = (const T*)in[2];
  T* y = (T*)out;
  int64_t i = 0;
  for (; i + N <= n; i += N) store(y + i, f(load(a + i), load(b + i), load(c + i)));
  if (i < n) {
    int m = (int)(n - i);
    store_n(y + i, f(load_n(a + i, m), load_n(b + i, m), load_n(c + i, m)), m);
  }
}

// The same one element at a time, for the compiler to vectorise: integers, and functions that have
// no vector form here. y may be a or b itself, so elements are independent.
template <class F, class T, class R>
void block1_each(const ElementwiseParams& p, int64_t n, const void* const* in, void* out) {
  const F f(p);
  const T* a = (const T*)in[0];
  R* y = (R*)out;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) y[i] = f(a[i]);
}
template <class F, class T, class R>
void block2_each(const ElementwiseParams& p, int64_t n, const void* const* in, void* out) {
  const F f(p);
  const T *a = (const T*)in[0], *b = (const T*)in[1];
  R* y = (R*)out;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) y[i] = f(a[i], b[i]);
}
template <class F, class T>
void block3_each(const ElementwiseParams& p, int64_t n, const void* const* in, void* out) {
  const F f(p);
  const T *a = (const T*)in[0], *b = (const T*)in[1], *c = (const T*)in[2];
  T* y = (T*)out;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) y[i] = f(a[i], b[i], c[i]);
}

// Where the numbers of absent inputs lie, in the kernel's type.
template <class T>
struct Numbers {
  T value[3];
  const void* at[3];
  GS_MEMBER explicit Numbers(const ElementwiseParams& p) {
    for (int k = 0; k < 3; ++k) {
      value[k] = (T)0.5 != (T)0 ? (T)p.scalar[k] : (T)p.iscalar[k];
      at[k] = &value[k];
    }
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
