// Parameters of the embedding family: rows of a table by index.
#pragma once
#include "kernel.h"

namespace gs {

// embedding: y[i] = weight[index[i]]; buffers: weight (rows, cols), index (n,), y (n, cols).
//   An index out of range (the caller has checked; it can only come from a replay) gives a row of
//   NaN.
// embedding_backward: dw[v] = sum of dy[i] over index[i] == v; 0 for v == padding.
//   buffers: dy (n, cols), index, dw (rows, cols).
struct EmbeddingParams {
  int64_t n, rows, cols;
  int64_t padding;  // -1: none
  int32_t wide;     // index is int64, else int32
};

}  // namespace gs
