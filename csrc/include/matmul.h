// Parameters of the matmul family.
#pragma once
#include "activation.h"
#include "kernel.h"
#include "optimizer.h"
#include "prepared.h"

namespace gs {

constexpr int kMaxBatchDims = 6;

// What is done to a result before it is stored.
enum MatmulAct : int32_t { kActNone, kActRelu, kActCount };

// A product in a chain of them, C^T = B^T A^T stored as C (graph/fuse_matmul.cpp).
enum ChainFlag : int32_t {
  kChainDepth = 1,  // sums are cut along k as they are where c_rs == 1
  kChainOut = 2,  // C goes where kChainIn looks for it. Both mean the layout of packed B (panels of
  kChainIn = 4    // all rows one after the other) if columns are whole panels, else the strides
};

// c[b] = act(alpha * a[b] @ b[b] + bias + (accumulate ? c[b] : 0)) for every batch index b.
// a[b] is (m, k), b[b] is (k, n), c[b] is (m, n), bias is (n,). Strides in elements; any sign, 0
// too. buffers: a, b, bias or null, c.
//
// after (`matmul` and `matmul_bf16` only, set by rewrites of captured steps): the kernel that each
// piece of c goes through while it is in the caches, with the same piece of buffer 4, which lies as
// c does.
//
// Which kernel takes which strides:
//   matmul      a any; b with b_cs == 1 or b_rs == 1; c with c_cs == 1, or c_rs == 1 and bias a row
//               (a row with c_cs == 1, too, without batches: a rewrite of captured steps)
//   matmul_dot  a_cs == 1, b_rs == 1; c any: few rows or columns, both operands contiguous along k
//   matmul_vec  b_cs == 1, c_cs == 1, m <= kVecRows: a vector or a few times a matrix, read once
struct MatmulParams {
  int64_t m, n, k;
  int64_t a_rs, a_cs, b_rs, b_cs, c_rs, c_cs;
  int64_t bias_rs, bias_cs;  // (0, 1): one a column; (1, 0): one a row, for a transposed problem
  int64_t batch;             // product of batch_shape
  int32_t batch_ndim;
  int32_t accumulate;
  int32_t act;
  int32_t members;  // threads that may come: bounds the scratch, never changes the result
  int32_t chain;    // ChainFlags, set by rewrites of captured steps
  int64_t batch_shape[kMaxBatchDims], a_bs[kMaxBatchDims], b_bs[kMaxBatchDims], c_bs[kMaxBatchDims];
  double alpha;
  int64_t l1, l2, l3;  // bytes of cache a core sees
  int64_t near_l3;     // whether the third level is fast, see Machine
  KernelFn after;      // activation_piece or nothing
  PieceParams piece;
  int64_t prepared;  // `matmul` only: B may be there, packed (prepared.h)
};

constexpr int kVecRows = 8;

// A product of few rows over so many steps that reading A in place pays (of half as many GPT's
// step was 3-5 % slower).
constexpr int64_t kFewRows = 256;  // rows that a packed panel of B would serve too seldom
static inline bool long_gradient(const MatmulParams& p) { return p.m <= kFewRows && p.k >= 2048; }
// One whose B, of elements of `size` bytes, is read in place where the third cache is near: a panel
// stays in the second, as its rows do not crowd each other out, and they are whole pairs of lines.
static inline bool in_place_gradient(const MatmulParams& p, int64_t size) {
  const int64_t row = p.b_rs * size;
  return long_gradient(p) && p.near_l3 && p.c_cs != 1 && p.b_cs == 1 && row % 1024 &&
         row % 128 == 0;
}

// matmul_update, float32, made by rewrites of captured steps: `matmul` whose C, (m, n) or its
// transpose without gaps, is the gradient of a parameter of the same size. Whoever has made some
// whole rows lets `update`, the kernel of an optimizer, change the parameter there. buffers: a, b,
// bias or null, c, parameter, then the states of the optimizer; p.count is 1, and there is no
// control. Where `prepared` has forms, kept is the last buffer: they are made with each piece.
constexpr int kMaxUpdated = 6;
struct MatmulUpdateParams {
  MatmulParams product;
  KernelFn update;
  int64_t updated;  // arrays that it changes: the parameter and the states, up to kMaxUpdated
  OptimizerParams rule;
  int64_t size;  // of p, behind it as OptimizerParams wants
  PreparedParams prepared;
};

// colsum: out[j] = sum over i of x[i, j] (+ out[j] when accumulate). buffers: x (rows, cols; unit
// column stride), out (cols,).
struct ColsumParams {
  int64_t rows, cols, row_stride;
  int32_t accumulate;
};

}  // namespace gs
