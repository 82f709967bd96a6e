// Parameters of the reduce family.
#pragma once
#include "kernel.h"

namespace gs {

enum ReduceOp : int32_t {
  kSum,
  kProd,
  kMax,           // NaN if any element is NaN
  kMin,           // NaN if any element is NaN
  kSumAbs,        // sum |x|
  kSumSquare,     // sum x^2
  kMaxAbs,        // max |x|
  kSumSquareDev,  // sum (x - center)^2
  kSumExpDev,     // sum exp(x - center)
  kReduceFloat,   // the ops before are for float dtypes; integers have sum to min
  kReduceInt = kSumAbs
};

// What is done to the reduced value r before it is stored.
enum ReducePost : int32_t { kNone, kScale, kScaleRoot, kRoot, kLogPlusCenter };

// reduce: out[keep] = post(op over the reduced axes of in). buffers: in, center (or absent; one
// value per output), out. Axes are ordered by stride and merged; the innermost one has stride 1 in
// memory and is either reduced (inner_kept = 0) or kept (inner_kept = 1).
struct ReduceParams {
  int32_t op, post;
  int32_t inner_kept;
  int32_t keep_ndim, reduce_ndim;  // the other axes
  int64_t inner;                   // length of the innermost axis
  int64_t inner_out;               // its stride in out, when kept (elements)
  int64_t keep_shape[kMaxDims], keep_in[kMaxDims], keep_out[kMaxDims];
  int64_t reduce_shape[kMaxDims], reduce_in[kMaxDims];
  double scale;
};

// argmax, argmin: in is (outer, length, inner), contiguous; buffers: in, values (outer, inner) or
// absent, indices (outer, inner) int64. The first of equal elements wins; a NaN wins over all, the
// first NaN first. cumsum: buffers: in, out, both (outer, length, inner); reverse: from the end.
struct AxisParams {
  int64_t outer, length, inner;
  int32_t reverse;
};

}  // namespace gs
