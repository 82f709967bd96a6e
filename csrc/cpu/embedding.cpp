// Embedding: rows of a table gathered by index, and the gradient of the table.
//
// Forward copies rows; the floor is one read and one write of n * cols elements. Backward sorts the
// indices by counting (stable, so the occurrences of a row stay in order), then every row of the
// gradient is summed by the task that owns it and written once: no atomics, no zero fill, the same
// bits on any number of threads. Floor: a read of dy and a write of rows * cols elements. Sums run
// over segments of 64 occurrences, so the rounding error of a frequent row stays small.
#include "embedding.h"

#include <string.h>

#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kSegment = 64;

GS_INLINE int64_t index_at(const EmbeddingParams& p, const void* index, int64_t i) {
  return p.wide ? ((const int64_t*)index)[i] : ((const int32_t*)index)[i];
}
GS_INLINE int64_t per_task(int64_t cols, int64_t rows) {
  int64_t r = 8192 / cols;
  if (r < 1) r = 1;
  if (r * 8 > rows) r = rows / 8 ? rows / 8 : 1;
  return r;
}

template <class T>
struct Embed {
  using V = typename simd<T>::V;
  static constexpr int N = simd<T>::N;

  static GS_MEMBER void copy_row(const T* from, T* to, int64_t cols) {
    int64_t j = 0;
    for (; j + N <= cols; j += N) store(to + j, load(from + j));
    if (j < cols) store_n(to + j, load_n(from + j, (int)(cols - j)), (int)(cols - j));
  }

  static void forward(const void* params, void* const* buf, const Ctx* ctx) {
    const EmbeddingParams& p = *(const EmbeddingParams*)params;
    const T* weight = (const T*)buf[0];
    T* y = (T*)buf[2];
    int64_t per = per_task(p.cols, p.n), tasks = (p.n + per - 1) / per;
    for (int64_t t = ctx->tid; t < tasks; t += ctx->nt)
      for (int64_t i = t * per; i < p.n && i < (t + 1) * per; ++i) {
        int64_t v = index_at(p, buf[1], i);
        if (i + 4 < p.n) {
          int64_t next = index_at(p, buf[1], i + 4);
          if ((uint64_t)next < (uint64_t)p.rows) {
            const char* a = (const char*)(weight + next * p.cols);
            __builtin_prefetch(a);
            if (p.cols * (int64_t)sizeof(T) > 64) __builtin_prefetch(a + 64);
          }
        }
        if ((uint64_t)v < (uint64_t)p.rows)
          copy_row(weight + v * p.cols, y + i * p.cols, p.cols);
        else
          for (int64_t j = 0; j < p.cols; ++j) y[i * p.cols + j] = (T)__builtin_nan("");
      }
  }

  // B vectors of columns of one row of dw: occurrences order[0 .. count) of dy
  template <int B, bool FULL>
  static GS_MEMBER void sum_block(const T* dy, int64_t ld, const int32_t* order, int64_t count,
                                  T* out, int n) {
    V total[B];
#pragma GCC unroll 8
    for (int v = 0; v < B; ++v) total[v] = V{};
    for (int64_t k = 0; k < count; k += kSegment) {
      int64_t e = k + kSegment < count ? k + kSegment : count;
      V acc[B];
#pragma GCC unroll 8
      for (int v = 0; v < B; ++v) acc[v] = V{};
      for (int64_t i = k; i < e; ++i) {
        const T* row = dy + (int64_t)order[i] * ld;
#pragma GCC unroll 8
        for (int v = 0; v < B; ++v) acc[v] += FULL ? load(row + v * N) : load_n(row + v * N, n);
      }
#pragma GCC unroll 8
      for (int v = 0; v < B; ++v) total[v] += acc[v];
    }
#pragma GCC unroll 8
    for (int v = 0; v < B; ++v)
      if (FULL)
        store(out + v * N, total[v]);
      else
        store_n(out + v * N, total[v], n);
  }

  static void backward(const void* params, void* const* buf, const Ctx* ctx) {
    const EmbeddingParams& p = *(const EmbeddingParams*)params;
    const T* dy = (const T*)buf[0];
    T* dw = (T*)buf[2];
    int32_t* end =
        (int32_t*)ctx->scratch;         // (rows + 1,): after the sort, the end of each row's run
    int32_t* order = end + p.rows + 1;  // (n,)
    if (ctx->tid == 0) {
      memset(end, 0, (size_t)(p.rows + 1) * sizeof(int32_t));
      for (int64_t i = 0; i < p.n; ++i) {
        int64_t v = index_at(p, buf[1], i);
        if ((uint64_t)v < (uint64_t)p.rows) ++end[v + 1];
      }
      for (int64_t v = 0; v < p.rows; ++v) end[v + 1] += end[v];
      for (int64_t i = 0; i < p.n; ++i) {
        int64_t v = index_at(p, buf[1], i);
        if ((uint64_t)v < (uint64_t)p.rows) order[end[v]++] = (int32_t)i;
      }
    }
    ctx->sync();
    int64_t per = per_task(p.cols, p.rows), tasks = (p.rows + per - 1) / per;
    for (int64_t t = ctx->tid; t < tasks; t += ctx->nt)
      for (int64_t v = t * per; v < p.rows && v < (t + 1) * per; ++v) {
        int64_t first = v ? end[v - 1] : 0, count = end[v] - first;
        T* out = dw + v * p.cols;
        if (count == 0 || v == p.padding) {
          memset(out, 0, (size_t)p.cols * sizeof(T));
          continue;
        }
        const int32_t* run = order + first;
        if (count == 1) {
          copy_row(dy + (int64_t)run[0] * p.cols, out, p.cols);
          continue;
        }
        int64_t j = 0;
        for (; j + 8 * N <= p.cols; j += 8 * N)
          sum_block<8, true>(dy + j, p.cols, run, count, out + j, N);
        for (; j + N <= p.cols; j += N) sum_block<1, true>(dy + j, p.cols, run, count, out + j, N);
        if (j < p.cols) sum_block<1, false>(dy + j, p.cols, run, count, out + j, (int)(p.cols - j));
      }
  }
};

void forward_plan(const void* params, Plan* plan) {
  const EmbeddingParams& p = *(const EmbeddingParams*)params;
  plan->tasks = p.n;
  plan->work = (int64_t)((double)p.n * (5 + 0.15 * (double)p.cols));
}
void backward_plan(const void* params, Plan* plan) {
  const EmbeddingParams& p = *(const EmbeddingParams*)params;
  plan->tasks = p.rows;
  plan->work = (int64_t)((double)(p.n + p.rows) * (4 + 0.1 * (double)p.cols));
  plan->scratch = (size_t)(p.rows + 1 + p.n) * sizeof(int32_t);
}

const KernelEntry entries[] = {
    {"embedding", kF32, Embed<float>::forward, forward_plan},
    {"embedding", kF64, Embed<double>::forward, forward_plan},
    {"embedding_backward", kF32, Embed<float>::backward, backward_plan},
    {"embedding_backward", kF64, Embed<double>::backward, backward_plan},
};

}  // namespace

extern const KernelList embedding_kernels;
const KernelList embedding_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
