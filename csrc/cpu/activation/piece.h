// An activation, or its gradient, on the piece of a product that has just been written.
#pragma once
#include "activation/curves.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kPiece = 1024, kPieceCols = 256;

// fn(x, j, n, &y, &d): x are n elements of c, j where they are. Results go through memory of our
// own first: rows are often a multiple of 4 KB apart, and a load waits for the stores before it
// that end in the same 12 bits.
template <bool kTwo, class Fn>
GS_INLINE void piece(const PieceParams& p, float* c, float* other, Fn fn) {
  constexpr int N = simd<float>::N;
  alignas(64) float ys[kPiece], ds[kTwo ? kPiece : N];
  for (int64_t j0 = 0; j0 < p.cols; j0 += kPieceCols) {
    const int64_t cols = p.cols - j0 < kPieceCols ? p.cols - j0 : kPieceCols;
    const int64_t width = (cols + N - 1) / N * N, height = kPiece / width;
    for (int64_t i0 = 0; i0 < p.rows; i0 += height) {
      const int64_t rows = p.rows - i0 < height ? p.rows - i0 : height;
      const int64_t start = i0 * p.stride + j0;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < width; j += N) {
          const int n = cols - j < N ? (int)(cols - j) : N;
          const int64_t at = start + i * p.stride + j;
          vf y, d = {};
          fn(n == N ? load(c + at) : load_n(c + at, n), at, n, &y, &d);
          store(ys + i * width + j, y);
          if (kTwo) store(ds + i * width + j, d);
        }
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < width; j += N) {
          const int n = cols - j < N ? (int)(cols - j) : N;
          const int64_t at = start + i * p.stride + j;
          if (n == N) {
            store(c + at, load(ys + i * width + j));
            if (kTwo) store(other + at, load(ds + i * width + j));
          } else {
            store_n(c + at, load(ys + i * width + j), n);
            if (kTwo) store_n(other + at, load(ds + i * width + j), n);
          }
        }
    }
  }
}

template <class Op>
void piece_value(const PieceParams& p, float* c, float* other) {
  const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
  if (other)
    piece<true>(
        p, c, other, [&](vf x, int64_t, int, vf* y, vf* d) __attribute__((always_inline)) {
          *y = value<Op>(x, k);
          *d = x;
        });
  else
    piece<false>(
        p, c, other, [&](vf x, int64_t, int, vf* y, vf*) __attribute__((always_inline)) {
          *y = value<Op>(x, k);
        });
}

template <class Op>
void piece_grad(const PieceParams& p, float* c, float* other) {
  constexpr int N = simd<float>::N;
  const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
  piece<false>(
      p, c, other, [&](vf x, int64_t at, int n, vf* y, vf*) __attribute__((always_inline)) {
        *y = gradient<Op>(x, n == N ? load(other + at) : load_n(other + at, n), k);
      });
}

template <class Op>
void piece_slope(const PieceParams& p, float* c, float* other) {
  const Coef<vf> k{set1((float)p.a), set1((float)p.b), set1((float)p.c)};
  piece<true>(
      p, c, other, [&](vf x, int64_t, int, vf* y, vf* d) __attribute__((always_inline)) {
        whole<typename curve_of<Op>::Q>(x, k, y, d);
      });
}

void piece_sum(const PieceParams& p, float* c, float* other) {
  constexpr int N = simd<float>::N;
  piece<false>(
      p, c, other, [&](vf x, int64_t at, int n, vf* y, vf*) __attribute__((always_inline)) {
        *y = x + (n == N ? load(other + at) : load_n(other + at, n));
      });
}

void activation_piece(const void* params, void* const* buf, const Ctx*) {
  const PieceParams& p = *(const PieceParams*)params;
  float *c = (float*)buf[0], *other = (float*)buf[1];
  if (p.kind == kPieceSum) return piece_sum(p, c, other);
  if (p.kind == kPieceSlope) switch (p.op) {
      case kAct_gelu:
        return piece_slope<op_gelu>(p, c, other);
      case kAct_gelu_tanh:
        return piece_slope<op_gelu_tanh>(p, c, other);
      case kAct_silu:
        return piece_slope<op_silu>(p, c, other);
      case kAct_mish:
        return piece_slope<op_mish>(p, c, other);
    }
  switch (p.op) {
#define X(name)                            \
  case kAct_##name:                        \
    if (p.kind == kPieceGrad)              \
      piece_grad<op_##name>(p, c, other);  \
    else                                   \
      piece_value<op_##name>(p, c, other); \
    break;
    GS_ACTIVATIONS(X)
#undef X
  }
}

void piece_plan(const void* params, Plan* plan) {
  const PieceParams& p = *(const PieceParams*)params;
  plan->work = p.rows * p.cols / 2;
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
