// Copies into the layouts that the tiles read fastest: panels of B (k rows of W = NV * N elements,
// padded with zeros) and slivers of A (k columns of R elements).
#pragma once
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

// r[i] = (x, y)[m[i]]: lanes 0 .. N - 1 of x, N .. 2 N - 1 of y
template <class V, class I>
GS_INLINE V shuffle2(V x, V y, I m) {
#if defined(__clang__)
  V r;
  constexpr int n = (int)(sizeof(V) / sizeof(x[0]));
  for (int i = 0; i < n; ++i) r[i] = m[i] < n ? x[m[i] & (n - 1)] : y[m[i] & (n - 1)];
  return r;
#else
  return __builtin_shuffle(x, y, m);
#endif
}

// v[i] lane j <-> v[j] lane i, in log2(N) rounds of N shuffles that exchange blocks of h lanes.
template <class T>
GS_INLINE void transpose(typename simd<T>::V* v) {
  using V = typename simd<T>::V;
  using I = typename simd<T>::I;
  constexpr int N = simd<T>::N;
#pragma GCC unroll 8
  for (int h = 1; h < N; h *= 2) {
    I lo, hi;
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
      lo[j] = j & h ? N + (j ^ h) : j;
      hi[j] = j & h ? N + j : (j ^ h);
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i)
      if (!(i & h)) {
        V x = v[i], y = v[i + h];
        v[i] = shuffle2(x, y, lo);
        v[i + h] = shuffle2(x, y, hi);
      }
  }
}

#if defined(__AVX512F__)
// 16 rows of 16 floats, transposed: quarters of four rows are gathered by loads with insertion, so
// that only the two rounds inside quarters use the one port that shuffles.
GS_INLINE void load_transposed(const float* p, int64_t ld, vf* v) {
  __m512 q[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    const float* s = p + (i & 3) * ld + (i >> 2) * 4;
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(s));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(s + 4 * ld), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(s + 8 * ld), 2);
    q[i] = _mm512_insertf32x4(x, _mm_loadu_ps(s + 12 * ld), 3);
  }
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    __m512 a = _mm512_unpacklo_ps(q[4 * g], q[4 * g + 1]),
           b = _mm512_unpackhi_ps(q[4 * g], q[4 * g + 1]);
    __m512 c = _mm512_unpacklo_ps(q[4 * g + 2], q[4 * g + 3]),
           d = _mm512_unpackhi_ps(q[4 * g + 2], q[4 * g + 3]);
    v[4 * g] = (vf)_mm512_shuffle_ps(a, c, 0x44);
    v[4 * g + 1] = (vf)_mm512_shuffle_ps(a, c, 0xee);
    v[4 * g + 2] = (vf)_mm512_shuffle_ps(b, d, 0x44);
    v[4 * g + 3] = (vf)_mm512_shuffle_ps(b, d, 0xee);
  }
}
#else
GS_INLINE void load_transposed(const float* p, int64_t ld, vf* v) {
#pragma GCC unroll 16
  for (int i = 0; i < simd<float>::N; ++i) v[i] = load(p + i * ld);
  transpose<float>(v);
}
#endif
GS_INLINE void load_transposed(const double* p, int64_t ld, vd* v) {
#pragma GCC unroll 16
  for (int i = 0; i < simd<double>::N; ++i) v[i] = load(p + i * ld);
  transpose<double>(v);
}

// to[k * width + j] = from[j * ld + k] for k < depth, j < cols; zero for cols <= j < width.
// width is a multiple of N.
template <class T>
__attribute__((noinline)) void pack_transposed(const T* from, int64_t ld, int64_t depth, int cols,
                                               int width, T* to) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  for (int j = 0; j < width; j += N) {
    for (int64_t k = 0; k < depth; k += N) {
      int left = depth - k < N ? (int)(depth - k) : N;
      V v[N];
      const T* p = from + j * ld + k;
      T* q = to + k * width + j;
      int rows = cols - j < N ? cols - j : N;
      if (left == N && rows == N) {
        load_transposed(p, ld, v);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) store(q + i * width, v[i]);
      } else {
        for (int i = 0; i < left; ++i)
          for (int r = 0; r < N; ++r) q[i * width + r] = r < rows ? p[r * ld + i] : (T)0;
      }
    }
  }
}

// Rows of NV whole vectors.
template <class T, int NV>
GS_INLINE void copy_rows(const T* from, int64_t ld, int64_t depth, T* to) {
  constexpr int N = simd<T>::N;
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; ++k, from += ld, to += NV * N) {
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store(to + j * N, load(from + j * N));
  }
}

// to[k * width + j] = from[k * ld + j] for j < cols, zero for cols <= j < width.
template <class T>
__attribute__((noinline)) void pack_rows(const T* from, int64_t ld, int64_t depth, int cols,
                                         int width, T* to) {
  constexpr int N = simd<T>::N;
  if (cols == width && width == 4 * N) return copy_rows<T, 4>(from, ld, depth, to);
  if (cols == width && width == 3 * N) return copy_rows<T, 3>(from, ld, depth, to);
  if (cols == width && width == 2 * N) return copy_rows<T, 2>(from, ld, depth, to);
  for (int64_t k = 0; k < depth; ++k, from += ld, to += width) {
    int j = 0;
    for (; j + N <= cols; j += N) store(to + j, load(from + j));
    for (; j < width; j += N) store(to + j, load_n(from + j, cols > j ? cols - j : 0));
  }
}

// Rows in a sliver of A that tiles of `height` read: whole vectors where tiles fit in evenly,
// because then a copy is whole lines; each tile reads its part of the row.
template <class T>
constexpr int sliver_width(int height) {
  return simd<T>::N % height == 0 ? simd<T>::N : height;
}

// Slivers of A: sliver s holds rows s * width .. of a, element (i, k) at to[s * width * steps + k *
// width + i]; what is past the last row is not written. a: (rows, depth) with row stride 1 and
// column stride ld; steps: of a whole sliver, of which depth are packed.
template <class T>
__attribute__((noinline)) void pack_slivers(const T* a, int64_t ld, int64_t rows, int64_t depth,
                                            int width, int64_t steps, T* to) {
  constexpr int N = simd<T>::N;
  constexpr int64_t depth_step = 16;  // rows of a read together: one page of each
  for (int64_t k0 = 0; k0 < depth; k0 += depth_step) {
    int64_t k1 = k0 + depth_step < depth ? k0 + depth_step : depth;
    for (int64_t s = 0; s < rows; s += width) {
      int h = rows - s < width ? (int)(rows - s) : width;
      T* q = to + s * steps + k0 * width;
      const T* p = a + k0 * ld + s;
      if (h == N && width == N) {
        for (int64_t k = k0; k < k1; ++k, q += N, p += ld) store(q, load(p));
      } else if (width < N && s + N <= rows) {
        // what is written past a row of the sliver is overwritten by the next row
        for (int64_t k = k0; k < k1; ++k, q += width, p += ld)
          if (k + 1 < depth)
            store(q, load(p));
          else
            store_n(q, load(p), width);
      } else {
        for (int64_t k = k0; k < k1; ++k, q += width, p += ld)
          for (int i = 0; i < h; i += N) {
            int n = h - i < N ? h - i : N;
            store_n(q + i, load_n(p + i, n), n);
          }
      }
    }
  }
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
