// Parameters of the kernels that move elements by index.
#pragma once
#include "kernel.h"

namespace gs {

// take: out (outer, count, inner) = in (outer, length, inner) at index (count) int64, along the
// middle axis. buffers: in, index, out. take_add: out (outer, length, inner) += in (outer, count,
// inner); same buffers. All contiguous. Indices are in [-length, length), which the caller has
// checked; the kernel leaves out what is not.
struct TakeParams {
  int64_t outer, length, inner, count;
};

// gather: out[.., i, ..] = x[.., index[.., i, ..], ..] along one axis; buffers: x, index, out.
// scatter: x[.., index[.., i, ..], ..] = or += values[.., i, ..]; buffers: x, index, values.
// shape: that of index; the axis comes last in it. Lines along the axis are independent of each
// other and done in order, so sums have a fixed order.
struct GatherParams {
  int32_t ndim;
  int32_t add;
  int64_t length;  // of the axis of x
  int64_t shape[kMaxDims];
  int64_t x_strides[kMaxDims], index_strides[kMaxDims], value_strides[kMaxDims];
};

// tril, triu: out (batch, rows, columns) = in where column - row <= diagonal (or >=), else 0.
// buffers: in, out.
struct TriangleParams {
  int64_t batch, rows, columns, diagonal;
  int32_t upper;
};

// one_hot: out (count, classes) int64, 1 at index (count) int64. buffers: index, out.
struct OneHotParams {
  int64_t count, classes;
};

}  // namespace gs
