// Moving elements by index: take, gather, scatter, triangles, one-hot. One read of the index and of
// each element and one write; rows that are contiguous move as rows. Scattered sums go line by
// line, in the order of the index, so they are the same with any number of threads.
#include "index.h"

#include <string.h>

#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kTask = 16384;

// to[i] = from[at[i] * step], i < n, negative ones from the end; nothing where there is no element
template <class U>
GS_INLINE void pick(const U* from, int64_t length, int64_t step, const int64_t* at, U* to,
                    int64_t n) {
  int64_t i = 0;
#if defined(__AVX512F__)
  if (sizeof(U) == 4) {
    const __m512i all = _mm512_set1_epi64(length), steps = _mm512_set1_epi64(step);
    for (; i + 8 <= n; i += 8) {
      __m512i k = _mm512_loadu_si512(at + i);
      k = _mm512_mask_add_epi64(k, _mm512_movepi64_mask(k), k, all);
      const __mmask8 inside = _mm512_cmplt_epu64_mask(k, all);
      if (step != 1) k = _mm512_mullo_epi64(k, steps);
      const __m256i x =
          _mm512_mask_i64gather_epi32(_mm256_setzero_si256(), inside, k, (const void*)from, 4);
      _mm256_mask_storeu_epi32(to + i, inside, x);
    }
  }
#endif
#pragma GCC unroll 4
  for (; i < n; ++i) {
    const int64_t k = at[i] + (at[i] < 0 ? length : 0);
    if ((uint64_t)k < (uint64_t)length) to[i] = from[k * step];
  }
}

template <class U>
void take(const void* params, void* const* buf, const Ctx* ctx) {
  const TakeParams& p = *(const TakeParams*)params;
  const U* in = (const U*)buf[0];
  const int64_t* index = (const int64_t*)buf[1];
  U* out = (U*)buf[2];
  int64_t rows = p.outer * p.count, group = kTask / (p.inner + 1) + 1;
  for (int64_t b = ctx->tid * group; b < rows; b += ctx->nt * group) {
    int64_t e = b + group < rows ? b + group : rows;
    int64_t o = b / p.count, i = b % p.count;
    if (p.inner == 1) {
      for (int64_t r = b; r < e; ++o, i = 0) {
        const int64_t n = p.count - i < e - r ? p.count - i : e - r;
        pick(in + o * p.length, p.length, 1, index + i, out + r, n);
        r += n;
      }
      continue;
    }
    for (int64_t r = b; r < e; ++r) {
      int64_t k = index[i] < 0 ? index[i] + p.length : index[i];
      if (k >= 0 && k < p.length) {
        const U* src = in + (o * p.length + k) * p.inner;
        U* dst = out + r * p.inner;
        memcpy(dst, src, (size_t)p.inner * sizeof(U));
      }
      if (++i == p.count) {
        i = 0;
        ++o;
      }
    }
  }
}

// Tasks are (outer, block of columns): no two touch the same element.
template <class T>
void take_add(const void* params, void* const* buf, const Ctx* ctx) {
  const TakeParams& p = *(const TakeParams*)params;
  const T* in = (const T*)buf[0];
  const int64_t* index = (const int64_t*)buf[1];
  T* out = (T*)buf[2];
  constexpr int64_t W = 128;
  int64_t blocks = (p.inner + W - 1) / W;
  for (int64_t t = ctx->tid; t < p.outer * blocks; t += ctx->nt) {
    int64_t o = t / blocks, c = t % blocks * W, n = p.inner - c < W ? p.inner - c : W;
    for (int64_t i = 0; i < p.count; ++i) {
      int64_t k = index[i] < 0 ? index[i] + p.length : index[i];
      if (k < 0 || k >= p.length) continue;
      T* dst = out + (o * p.length + k) * p.inner + c;
      const T* src = in + (o * p.count + i) * p.inner + c;
      for (int64_t j = 0; j < n; ++j) dst[j] += src[j];
    }
  }
}

void take_plan(const void* params, Plan* plan) {
  const TakeParams& p = *(const TakeParams*)params;
  int64_t rows = p.outer * p.count, group = kTask / (p.inner + 1) + 1;
  plan->tasks = (rows + group - 1) / group;
  plan->work = rows * (2 + p.inner / 4);
}
void take_add_plan(const void* params, Plan* plan) {
  const TakeParams& p = *(const TakeParams*)params;
  plan->tasks = p.outer * ((p.inner + 127) / 128);
  plan->work = p.outer * p.count * (2 + p.inner / 4);
}

GS_INLINE int64_t lines(const GatherParams& p) {
  int64_t n = 1;
  for (int d = 0; d < p.ndim - 1; ++d) n *= p.shape[d];
  return n;
}
GS_INLINE void line_offsets(const GatherParams& p, int64_t line, int64_t* x, int64_t* index,
                            int64_t* value) {
  *x = *index = *value = 0;
  for (int d = p.ndim - 2; d >= 0; --d) {
    int64_t i = line % p.shape[d];
    line /= p.shape[d];
    *x += i * p.x_strides[d];
    *index += i * p.index_strides[d];
    *value += i * p.value_strides[d];
  }
}

template <class U>
void gather(const void* params, void* const* buf, const Ctx* ctx) {
  const GatherParams& p = *(const GatherParams*)params;
  const U* x = (const U*)buf[0];
  const int64_t* index = (const int64_t*)buf[1];
  U* out = (U*)buf[2];
  int last = p.ndim - 1;
  int64_t n = p.shape[last], sx = p.x_strides[last], si = p.index_strides[last],
          so = p.value_strides[last];
  for (int64_t l = ctx->tid, all = lines(p); l < all; l += ctx->nt) {
    int64_t ox, oi, oo;
    line_offsets(p, l, &ox, &oi, &oo);
    const int64_t* at = index + oi;
    const U* from = x + ox;
    U* to = out + oo;
    const int64_t length = p.length;
    if (si == 1 && so == 1) {
      pick(from, length, sx, at, to, n);
      continue;
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < n; ++i, at += si, to += so) {
      int64_t k = *at + (*at < 0 ? length : 0);
      if ((uint64_t)k < (uint64_t)length) *to = from[k * sx];
    }
  }
}

template <class T>
void scatter(const void* params, void* const* buf, const Ctx* ctx) {
  const GatherParams& p = *(const GatherParams*)params;
  T* x = (T*)buf[0];
  const int64_t* index = (const int64_t*)buf[1];
  const T* value = (const T*)buf[2];
  int last = p.ndim - 1;
  int64_t n = p.shape[last], sx = p.x_strides[last], si = p.index_strides[last],
          sv = p.value_strides[last];
  for (int64_t l = ctx->tid, all = lines(p); l < all; l += ctx->nt) {
    int64_t ox, oi, ov;
    line_offsets(p, l, &ox, &oi, &ov);
    const int64_t* at = index + oi;
    const T* from = value + ov;
    T* to = x + ox;
    const int64_t length = p.length;
    for (int64_t i = 0; i < n; ++i, at += si, from += sv) {
      int64_t k = *at + (*at < 0 ? length : 0);
      if ((uint64_t)k >= (uint64_t)length) continue;
      if (p.add)
        to[k * sx] += *from;
      else
        to[k * sx] = *from;
    }
  }
}

void gather_plan(const void* params, Plan* plan) {
  const GatherParams& p = *(const GatherParams*)params;
  plan->tasks = lines(p);
  plan->work = plan->tasks * (10 + 2 * p.shape[p.ndim - 1]);
}

template <class U>
void triangle(const void* params, void* const* buf, const Ctx* ctx) {
  const TriangleParams& p = *(const TriangleParams*)params;
  const U* in = (const U*)buf[0];
  U* out = (U*)buf[1];
  for (int64_t r = ctx->tid, all = p.batch * p.rows; r < all; r += ctx->nt) {
    // columns [0, cut) are kept below, [cut, columns) above
    int64_t cut = r % p.rows + p.diagonal + (p.upper ? 0 : 1);
    cut = cut < 0 ? 0 : (cut > p.columns ? p.columns : cut);
    const U* x = in + r * p.columns;
    U* y = out + r * p.columns;
    for (int64_t c = 0; c < cut; ++c) y[c] = p.upper ? (U)0 : x[c];
    for (int64_t c = cut; c < p.columns; ++c) y[c] = p.upper ? x[c] : (U)0;
  }
}
void triangle_plan(const void* params, Plan* plan) {
  const TriangleParams& p = *(const TriangleParams*)params;
  plan->tasks = p.batch * p.rows;
  plan->work = plan->tasks * (2 + p.columns / 8);
}

void one_hot(const void* params, void* const* buf, const Ctx* ctx) {
  const OneHotParams& p = *(const OneHotParams*)params;
  const int64_t* index = (const int64_t*)buf[0];
  int64_t* out = (int64_t*)buf[1];
  for (int64_t r = ctx->tid; r < p.count; r += ctx->nt) {
    for (int64_t c = 0; c < p.classes; ++c) out[r * p.classes + c] = 0;
    if (index[r] >= 0 && index[r] < p.classes) out[r * p.classes + index[r]] = 1;
  }
}
void one_hot_plan(const void* params, Plan* plan) {
  const OneHotParams& p = *(const OneHotParams*)params;
  plan->tasks = p.count;
  plan->work = p.count * (2 + p.classes / 4);
}

#define GS_BY_SIZE(name, fn, plan)                                        \
  {name, kF32, fn<uint32_t>, plan}, {name, kF64, fn<uint64_t>, plan},     \
      {name, kI32, fn<uint32_t>, plan}, {name, kI64, fn<uint64_t>, plan}, \
      {name, kU8, fn<uint8_t>, plan}, {                                   \
    name, kBool, fn<uint8_t>, plan                                        \
  }
const KernelEntry entries[] = {
    GS_BY_SIZE("take", take, take_plan),
    GS_BY_SIZE("gather", gather, gather_plan),
    GS_BY_SIZE("triangle", triangle, triangle_plan),
    {"take_add", kF32, take_add<float>, take_add_plan},
    {"take_add", kF64, take_add<double>, take_add_plan},
    {"scatter", kF32, scatter<float>, gather_plan},
    {"scatter", kF64, scatter<double>, gather_plan},
    {"scatter", kI32, scatter<uint32_t>, gather_plan},
    {"scatter", kI64, scatter<uint64_t>, gather_plan},
    {"scatter", kU8, scatter<uint8_t>, gather_plan},
    {"one_hot", kI64, one_hot, one_hot_plan},
};

}  // namespace

extern const KernelList elementwise_index_kernels;
const KernelList elementwise_index_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
