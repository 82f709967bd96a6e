// Softmax and log-softmax, forward and backward, along any axis.
//
// x, y, dx (outer, n, inner). Along the last axis rows pass as row.h says, short ones as flat.h
// says (last_axis.h). Along another axis blocks of neighbouring columns are worked on together,
// lane by lane, as wide as the second level of cache holds. Floor: one read and one write an
// element (three streams backward), 5 and 10 cycles a vector of 16 on Zen 5 for 8 MB past the
// caches; exp and what goes with it take 7. Tasks are groups of rows or of columns, cut by shape.
#include "softmax/columns.h"
#include "softmax/last_axis.h"

namespace gs {
namespace GS_ISA {
namespace {

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
