// Products that are bound by memory: a vector, or a few rows, times a matrix that is read once.
//
//   matmul_dot  rows of both operands lie along k: dot products, tiles of MR x NR, 16 lanes each
//   matmul_vec  rows of B lie along n: c += a[k] * B[k, :] for 8 rows of B at a time
//   colsum      sums of columns: the gradient of a bias
//
// Floor: the bytes of the matrix. Members take contiguous ranges, so that each streams one stretch
// of memory. The order of additions is a function of the shape: lane k mod 16 takes product k, sums
// of kDotSlice products are folded by one tree and added in order; matmul_vec sums in ascending k.
#include "matmul.h"
#include "simd/flush.h"
#include "simd/fold.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

GS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
GS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
GS_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

GS_INLINE int64_t batch_offset(const MatmulParams& p, const int64_t* strides, int64_t t) {
  int64_t o = 0;
  for (int d = p.batch_ndim - 1; d >= 0; --d) {
    o += t % p.batch_shape[d] * strides[d];
    t /= p.batch_shape[d];
  }
  return o;
}

// c = act(alpha * sum + bias + c)
template <class T>
GS_INLINE void finish(const MatmulParams& p, T sum, const T* bias, T* c, int64_t i, int64_t j) {
  T* to = c + i * p.c_rs + j * p.c_cs;
  T v = (T)p.alpha * sum;
  if (p.accumulate) v += *to;
  if (bias) v += bias[i * p.bias_rs + j * p.bias_cs];
  if (p.act == kActRelu) v = v < 0 ? (T)0 : v;
  *to = v;
}

// ---- matmul_dot

constexpr int64_t kDotSlice = 16384;  // products folded at a time
constexpr int64_t kDotRows = 64;      // columns of C (rows of B transposed) in a unit of work

#if defined(__AVX512F__)
// Row i of `sums`: v[4 i ...].
GS_INLINE void fold16(const vf* v, float* sums, int ld) {
  __m512 x = (__m512)hsum16(v);
  _mm_storeu_ps(sums, _mm512_castps512_ps128(x));
  _mm_storeu_ps(sums + ld, _mm512_extractf32x4_ps(x, 1));
  _mm_storeu_ps(sums + 2 * ld, _mm512_extractf32x4_ps(x, 2));
  _mm_storeu_ps(sums + 3 * ld, _mm512_extractf32x4_ps(x, 3));
}
GS_INLINE void fold8(const vf* v, float* sums) {
  __m512 x = fold_pairs(fold4(v, 2), fold4(v + 1, 2));  // quarter q: sums 2 q and 2 q + 1 in pairs
  x = fold_lanes2(x, x);
  x = _mm512_castpd_ps(
      _mm512_permutexvar_pd(_mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6), _mm512_castps_pd(x)));
  _mm256_storeu_ps(sums, _mm512_castps512_ps256(x));
}
#endif

// sums[i * ld + j] = dot(a + i * lda, b + j * ldb) over k products
template <class T, int MR, int NR>
__attribute__((noinline)) void dot_tile(int64_t k, const T* __restrict a, int64_t lda,
                                        const T* __restrict b, int64_t ldb, T* sums, int ld) {
  constexpr int W = 16 / simd<T>::N, N = simd<T>::N;
  typename simd<T>::V acc[MR][NR][W];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j)
#pragma GCC unroll 8
      for (int w = 0; w < W; ++w) acc[i][j][w] = typename simd<T>::V{};
  int64_t q = 0;
  for (; q + 16 <= k; q += 16) {
#pragma GCC unroll 8
    for (int w = 0; w < W; ++w) {
      typename simd<T>::V x[MR];
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) x[i] = load(a + i * lda + q + w * N);
#pragma GCC unroll 8
      for (int j = 0; j < NR; ++j) {
        typename simd<T>::V y = load(b + j * ldb + q + w * N);
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) acc[i][j][w] = fma(x[i], y, acc[i][j][w]);
      }
    }
  }
  if (q < k) {
    int left = (int)(k - q);
#pragma GCC unroll 8
    for (int w = 0; w < W; ++w) {
      int n = left - w * N;
      n = n < 0 ? 0 : n > N ? N : n;
      typename simd<T>::V x[MR];
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) x[i] = load_n(a + i * lda + q + w * N, n);
#pragma GCC unroll 8
      for (int j = 0; j < NR; ++j) {
        typename simd<T>::V y = load_n(b + j * ldb + q + w * N, n);
#pragma GCC unroll 8
        for (int i = 0; i < MR; ++i) acc[i][j][w] = fma(x[i], y, acc[i][j][w]);
      }
    }
  }
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && MR * NR == 16) {
    fold16((const vf*)acc, sums, ld);
    return;
  } else if constexpr (sizeof(T) == 4 && MR * NR == 8) {
    fold8((const vf*)acc, sums);
    return;
  }
#endif
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < NR; ++j) {
      // 16 lanes -> one vector in the same order on every width, then within it
      typename simd<T>::V v[W];
#pragma GCC unroll 8
      for (int w = 0; w < W; ++w) v[w] = acc[i][j][w];
#pragma GCC unroll 8
      for (int h = W / 2; h > 0; h /= 2)
#pragma GCC unroll 8
        for (int w = 0; w < h; ++w) v[w] += v[w + h];
      sums[i * ld + j] = hsum(v[0]);
    }
}

// How many dot products share registers: 16 vectors hold 4 x 2, 32 hold 4 x 4 (of 16 lanes each).
constexpr int kDotM = GS_VBYTES == 64 ? 4 : 2;
constexpr int kDotN = GS_VBYTES == 64 ? 4 : 2;

constexpr int kSumsLd = 8;

// sums: rows x cols of leading dimension kSumsLd, rows, cols <= 8
template <class T>
void dot_sums(int rows, int cols, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
              T* sums) {
  for (int i = 0; i < rows;) {
    int r = rows - i >= kDotM ? kDotM : 1;
    for (int j = 0; j < cols;) {
      int c = r == 1 && cols - j >= 8 && GS_VBYTES == 64 ? 8 : cols - j >= kDotN ? kDotN : 1;
      const T* x = a + i * lda;
      const T* y = b + j * ldb;
      T* to = sums + i * kSumsLd + j;
      if (c == 8)
        dot_tile<T, 1, 8>(k, x, lda, y, ldb, to, kSumsLd);
      else if (r == kDotM && c == kDotN)
        dot_tile<T, kDotM, kDotN>(k, x, lda, y, ldb, to, kSumsLd);
      else if (r == kDotM)
        dot_tile<T, kDotM, 1>(k, x, lda, y, ldb, to, kSumsLd);
      else if (c == kDotN)
        dot_tile<T, 1, kDotN>(k, x, lda, y, ldb, to, kSumsLd);
      else
        dot_tile<T, 1, 1>(k, x, lda, y, ldb, to, kSumsLd);
      j += c;
    }
    i += r;
  }
}

// finish() for a block of sums; bias one a column
template <class T>
void dot_store(const MatmulParams& p, int rows, int cols, const T* sums, const T* bias, T* c) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  V alpha = set1((T)p.alpha);
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < cols; j += N) {
      int n = cols - j < N ? cols - j : N;
      T* to = c + i * p.c_rs + j;
      V v = alpha * load_n(sums + i * kSumsLd + j, n);
      if (p.accumulate) v += load_n(to, n);
      if (bias) v += load_n(bias + j, n);
      if (p.act == kActRelu) v = max(V{}, v);
      store_n(to, v, n);
    }
}

GS_INLINE bool dot_sliced(const MatmulParams& p) {
  return p.batch == 1 && p.m * p.n <= 64 && p.k >= 4 * kDotSlice;
}

template <class T>
void matmul_dot(const void* params, void* const* buf, const Ctx* ctx) {
  const MatmulParams& p = *(const MatmulParams*)params;
  const FlushSubnormals flush(sizeof(T) == 4);
  const T* bias = (const T*)buf[2];
  T* c = (T*)buf[3];
  T sums[8 * 8], total[8 * 8];
  if (dot_sliced(p)) {
    const T* a = (const T*)buf[0];
    const T* b = (const T*)buf[1];
    T* partial = (T*)ctx->scratch;
    int64_t slices = ceil_div(p.k, kDotSlice);
    for (int64_t t = slices * ctx->tid / ctx->nt; t < slices * (ctx->tid + 1) / ctx->nt; ++t)
      for (int64_t i = 0; i < p.m; i += 8)
        for (int64_t j = 0; j < p.n; j += 8) {
          int r = (int)least(8, p.m - i), s = (int)least(8, p.n - j);
          dot_sums(r, s, least(kDotSlice, p.k - t * kDotSlice), a + i * p.a_rs + t * kDotSlice,
                   p.a_rs, b + j * p.b_cs + t * kDotSlice, p.b_cs, sums);
          for (int ii = 0; ii < r; ++ii)
            for (int jj = 0; jj < s; ++jj)
              partial[t * p.m * p.n + (i + ii) * p.n + j + jj] = sums[ii * 8 + jj];
        }
    ctx->sync();
    if (ctx->tid != 0) return;
    for (int64_t e = 0; e < p.m * p.n; ++e) {
      T v = partial[e];
      for (int64_t t = 1; t < slices; ++t) v += partial[t * p.m * p.n + e];
      finish(p, v, bias, c, e / p.n, e % p.n);
    }
    return;
  }
  int64_t chunks = ceil_div(p.n, kDotRows), units = p.batch * chunks;
  for (int64_t u = units * ctx->tid / ctx->nt; u < units * (ctx->tid + 1) / ctx->nt; ++u) {
    int64_t t = u / chunks, first = u % chunks * kDotRows, end = least(first + kDotRows, p.n);
    const T* a = (const T*)buf[0] + batch_offset(p, p.a_bs, t);
    const T* b = (const T*)buf[1] + batch_offset(p, p.b_bs, t);
    T* to = c + batch_offset(p, p.c_bs, t);
    for (int64_t j = first; j < end; j += 8)
      for (int64_t i = 0; i < p.m; i += 8) {
        int r = (int)least(8, p.m - i), s = (int)least(8, end - j);
        dot_sums(r, s, least(kDotSlice, p.k), a + i * p.a_rs, p.a_rs, b + j * p.b_cs, p.b_cs,
                 total);
        for (int64_t k = kDotSlice; k < p.k; k += kDotSlice) {
          dot_sums(r, s, least(kDotSlice, p.k - k), a + i * p.a_rs + k, p.a_rs, b + j * p.b_cs + k,
                   p.b_cs, sums);
          for (int ii = 0; ii < r; ++ii)
            for (int jj = 0; jj < s; ++jj) total[ii * kSumsLd + jj] += sums[ii * kSumsLd + jj];
        }
        if (p.c_cs == 1 && p.bias_rs == 0) {
          dot_store(p, r, s, total, bias ? bias + j : nullptr, to + i * p.c_rs + j);
          continue;
        }
        for (int ii = 0; ii < r; ++ii)
          for (int jj = 0; jj < s; ++jj) finish(p, total[ii * 8 + jj], bias, to, i + ii, j + jj);
      }
  }
}

// Rough nanoseconds of one member for `bytes` read once.
GS_INLINE int64_t stream_ns(int64_t bytes) { return bytes / 16; }

template <class T>
void matmul_dot_plan(const void* params, Plan* plan) {
  const MatmulParams& p = *(const MatmulParams*)params;
  int64_t passes = most(1, ceil_div(p.m, 4));
  plan->work = p.batch * stream_ns(p.n * p.k * (int64_t)sizeof(T) * passes);
  if (dot_sliced(p)) {
    plan->tasks = ceil_div(p.k, kDotSlice);
    plan->scratch = (size_t)(plan->tasks * p.m * p.n) * sizeof(T);
  } else {
    plan->tasks = most(1, p.batch * ceil_div(p.n, kDotRows));
  }
}

// ---- matmul_vec

// A unit of work is some columns, whose sums stay in the first two caches: kVecSums in all rows.
// The wider it is, the longer are the stretches of B that are read in one go (narrow ones cost a
// fifth of the speed of memory where rows of B are pages apart).
constexpr int64_t kVecSums = 8192;
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kVecPair = 2;  // rows of A that meet a row of B together: 8 values each in registers
#else
constexpr int kVecPair = 1;
#endif
constexpr int64_t kVecUnit = 512;     // columns that are worth a member
constexpr int64_t kVecDepth = 1024;   // rows of B in a slice, when slices are needed
constexpr int64_t kVecSliced = 1024;  // columns up to which they are

GS_INLINE int64_t vec_slices(const MatmulParams& p) {
  return p.batch == 1 && p.n <= kVecSliced && p.k >= 4 * kVecDepth ? least(32, p.k / kVecDepth) : 1;
}

// acc[i][j] += sum over KU rows of B for i < MI; acc rows are `cols` apart.
template <class T, int KU, int MI>
GS_INLINE void vec_step(int64_t n, const T* a, int64_t ars, int64_t acs, const T* b, int64_t brs,
                        T* acc, int64_t cols) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  V x[MI][KU];
#pragma GCC unroll 2
  for (int i = 0; i < MI; ++i)
#pragma GCC unroll 8
    for (int q = 0; q < KU; ++q) x[i][q] = set1(a[i * ars + q * acs]);
  int64_t j = 0;
  for (; j + N <= n; j += N) {
    V v[MI];
#pragma GCC unroll 2
    for (int i = 0; i < MI; ++i) v[i] = load(acc + i * cols + j);
#pragma GCC unroll 8
    for (int q = 0; q < KU; ++q) {
      const V y = load(b + q * brs + j);
#pragma GCC unroll 2
      for (int i = 0; i < MI; ++i) v[i] = fma(x[i][q], y, v[i]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < MI; ++i) store(acc + i * cols + j, v[i]);
  }
  if (j < n) {
    const int rest = (int)(n - j);
    for (int i = 0; i < MI; ++i) {
      V v = load(acc + i * cols + j);
#pragma GCC unroll 8
      for (int q = 0; q < KU; ++q) v = fma(x[i][q], load_n(b + q * brs + j, rest), v);
      store(acc + i * cols + j, v);
    }
  }
}

// acc (m rows of `cols`) = A (m, k) times n <= cols columns of B
template <class T>
__attribute__((noinline)) void vec_block(int64_t m, int64_t n, int64_t k, const T* a, int64_t ars,
                                         int64_t acs, const T* b, int64_t brs, T* acc,
                                         int64_t cols) {
  for (int64_t i = 0; i < m * cols; ++i) acc[i] = 0;
  for (; k >= 8; k -= 8, a += 8 * acs, b += 8 * brs) {
    int64_t i = 0;
    for (; i + kVecPair <= m; i += kVecPair)
      vec_step<T, 8, kVecPair>(n, a + i * ars, ars, acs, b, brs, acc + i * cols, cols);
    if (i < m) vec_step<T, 8, 1>(n, a + i * ars, ars, acs, b, brs, acc + i * cols, cols);
  }
  for (; k > 0; --k, a += acs, b += brs)
    for (int64_t i = 0; i < m; ++i)
      vec_step<T, 1, 1>(n, a + i * ars, ars, acs, b, brs, acc + i * cols, cols);
}

template <class T>
void matmul_vec(const void* params, void* const* buf, const Ctx* ctx) {
  const MatmulParams& p = *(const MatmulParams*)params;
  const FlushSubnormals flush(sizeof(T) == 4);
  alignas(64) T acc[kVecSums];
  const T* bias = (const T*)buf[2];
  T* c = (T*)buf[3];
  const int64_t slices = vec_slices(p), N = simd<T>::N;
  // as wide as they may be, and as many for everyone
  int64_t chunks = ceil_div(p.n, kVecSums / p.m / N * N);
  if (slices == 1 && p.batch < ctx->nt) chunks = ceil_div(chunks, ctx->nt) * ctx->nt;
  const int64_t width = ceil_div(ceil_div(p.n, chunks), N) * N;
  if (slices > 1) {
    T* partial = (T*)ctx->scratch;
    int64_t depth = ceil_div(p.k, slices), mn = p.m * p.n;
    for (int64_t t = slices * ctx->tid / ctx->nt; t < slices * (ctx->tid + 1) / ctx->nt; ++t)
      for (int64_t j = 0; j < p.n; j += width) {
        int64_t cols = least(width, p.n - j), k = most(0, least(depth, p.k - t * depth));
        vec_block(p.m, cols, k, (const T*)buf[0] + t * depth * p.a_cs, p.a_rs, p.a_cs,
                  (const T*)buf[1] + t * depth * p.b_rs + j, p.b_rs, acc, width);
        for (int64_t i = 0; i < p.m; ++i)
          for (int64_t q = 0; q < cols; ++q) partial[t * mn + i * p.n + j + q] = acc[i * width + q];
      }
    ctx->sync();
    for (int64_t e = mn * ctx->tid / ctx->nt; e < mn * (ctx->tid + 1) / ctx->nt; ++e) {
      T v = partial[e];
      for (int64_t t = 1; t < slices; ++t) v += partial[t * mn + e];
      finish(p, v, bias, c, e / p.n, e % p.n);
    }
    return;
  }
  int64_t units = p.batch * chunks;
  for (int64_t u = units * ctx->tid / ctx->nt; u < units * (ctx->tid + 1) / ctx->nt; ++u) {
    int64_t t = u / chunks, j = u % chunks * width, cols = least(width, p.n - j);
    if (cols <= 0) continue;
    const T* a = (const T*)buf[0] + batch_offset(p, p.a_bs, t);
    const T* b = (const T*)buf[1] + batch_offset(p, p.b_bs, t);
    T* to = c + batch_offset(p, p.c_bs, t);
    vec_block(p.m, cols, p.k, a, p.a_rs, p.a_cs, b + j, p.b_rs, acc, width);
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t q = 0; q < cols; ++q) finish(p, acc[i * width + q], bias, to, i, j + q);
  }
}

template <class T>
void matmul_vec_plan(const void* params, Plan* plan) {
  const MatmulParams& p = *(const MatmulParams*)params;
  int64_t slices = vec_slices(p);
  plan->work = p.batch * stream_ns(p.n * p.k * (int64_t)sizeof(T)) * most(1, p.m / 2);
  plan->tasks = slices > 1 ? slices : most(1, p.batch * ceil_div(p.n, kVecUnit));
  plan->scratch = slices > 1 ? (size_t)(slices * p.m * p.n) * sizeof(T) : 0;
}

// ---- colsum

constexpr int64_t kSumRows = 256;  // rows in a block
constexpr int64_t kSumCols = 1024;
constexpr int64_t kSumNear = 16384;  // elements that one block sums column by column

GS_INLINE int64_t sum_blocks(const ColsumParams& p) {
  return most(1, least(64, ceil_div(p.rows, kSumRows)));
}

// Columns j ... of x, `n` of them, rows r to last - 1
template <class T>
GS_INLINE typename simd<T>::V sum_columns(const T* x, int64_t rs, int64_t rows, int n) {
  using V = typename simd<T>::V;
  const bool whole = n == simd<T>::N;
  V sum{};
  for (; rows >= 8; rows -= 8) {
    V v[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i, x += rs) v[i] = whole ? load(x) : load_n(x, n);
    sum += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
  }
  for (; rows > 0; --rows, x += rs) sum += whole ? load(x) : load_n(x, n);
  return sum;
}

// x (rows, cols); rows in blocks, 8 rows folded by a tree, blocks added in order
template <class T>
void colsum(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const ColsumParams& p = *(const ColsumParams*)params;
  const T* x = (const T*)buf[0];
  T* out = (T*)buf[1];
  T* partial = (T*)ctx->scratch;
  int64_t blocks = sum_blocks(p), depth = ceil_div(p.rows, blocks),
          chunks = ceil_div(p.cols, kSumCols);
  int64_t rs = p.row_stride, units = blocks * chunks;
  if (blocks == 1 && p.rows * p.cols <= kSumNear) {  // the same sums without memory in between
    if (ctx->tid != 0) return;
    for (int64_t j = 0; j < p.cols; j += N) {
      const int n = (int)least(N, p.cols - j);
      V v;
      if (n == N) {
        v = sum_columns(x + j, rs, p.rows, N);
        store(out + j, p.accumulate ? load(out + j) + v : v);
      } else {
        v = sum_columns(x + j, rs, p.rows, n);
        store_n(out + j, p.accumulate ? load_n(out + j, n) + v : v, n);
      }
    }
    return;
  }
  for (int64_t u = units * ctx->tid / ctx->nt; u < units * (ctx->tid + 1) / ctx->nt; ++u) {
    int64_t r = u / chunks * depth, last = least(r + depth, p.rows), j0 = u % chunks * kSumCols;
    int64_t j1 = least(j0 + kSumCols, p.cols);
    T* to = partial + u / chunks * p.cols;
    for (int64_t j = j0; j < j1; ++j) to[j] = 0;
    for (; r + 8 <= last; r += 8)
      for (int64_t j = j0; j < j1; j += N) {
        const T* q = x + r * rs + j;
        int n = (int)least(N, j1 - j);
        V v[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) v[i] = n == N ? load(q + i * rs) : load_n(q + i * rs, n);
        V s = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
        if (n == N)
          store(to + j, load(to + j) + s);
        else
          store_n(to + j, load_n(to + j, n) + s, n);
      }
    for (; r < last; ++r)
      for (int64_t j = j0; j < j1; ++j) to[j] += x[r * rs + j];
  }
  ctx->sync();
  for (int64_t j = p.cols * ctx->tid / ctx->nt; j < p.cols * (ctx->tid + 1) / ctx->nt; ++j) {
    T v = partial[j];
    for (int64_t b = 1; b < blocks; ++b) v += partial[b * p.cols + j];
    out[j] = p.accumulate ? out[j] + v : v;
  }
}

template <class T>
void colsum_plan(const void* params, Plan* plan) {
  const ColsumParams& p = *(const ColsumParams*)params;
  plan->tasks = sum_blocks(p) * ceil_div(p.cols, kSumCols);
  plan->work = stream_ns(p.rows * p.cols * (int64_t)sizeof(T));
  plan->scratch = (size_t)(sum_blocks(p) * p.cols) * sizeof(T);
}

const KernelEntry entries[] = {
    {"matmul_dot", kF32, matmul_dot<float>, matmul_dot_plan<float>},
    {"matmul_dot", kF64, matmul_dot<double>, matmul_dot_plan<double>},
    {"matmul_vec", kF32, matmul_vec<float>, matmul_vec_plan<float>},
    {"matmul_vec", kF64, matmul_vec<double>, matmul_vec_plan<double>},
    {"colsum", kF32, colsum<float>, colsum_plan<float>},
    {"colsum", kF64, colsum<double>, colsum_plan<double>},
};

}  // namespace

extern const KernelList matmul_vector_kernels;
const KernelList matmul_vector_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
