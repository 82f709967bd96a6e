// Softmax, log-softmax and the softmax cross-entropy: parameters shared by both devices.
#pragma once
#include "kernel.h"

namespace gs {

// softmax: x -> y, both (outer, n, inner), along n.
// softmax_backward: dy, y -> dx.
struct SoftmaxParams {
  int64_t outer, n, inner;
  int32_t log;      // 1: log-softmax
  int64_t threads;  // the most members: room for what each has of its own, nothing else
  int64_t slab;     // bytes of a block of columns of which three stay in the second level
};

enum Reduction : int32_t { kReduceNone, kReduceMean, kReduceSum };

// cross_entropy: buffers logits (rows, classes), target, weight (classes; may be absent),
// loss (rows, or 1 element), dlogits (rows, classes; may be absent: no gradient wanted).
// target: class indices (rows), int32 or int64, or probabilities (rows, classes) of the dtype of
// logits. A class index outside 0 .. classes - 1 gives NaN for its row; bindings refuse it before.
struct CrossEntropyParams {
  int64_t rows, classes;
  DType target;  // kI32, kI64 or the dtype of logits
  int32_t reduction;
  int64_t ignore_index;
  double smoothing;
  int64_t threads;  // as above
  int64_t holds;    // an op all of whose arrays are no more bytes keeps its output in the caches
};

// scale_rows: out[r][c] = x[r][c] * g[r], or g[0] for every row when one == 1. buffers x, g, out.
struct ScaleRowsParams {
  int64_t rows, n;
  int32_t one;
};

}  // namespace gs
