// Parameters of the elementwise family.
#pragma once
#include "kernel.h"

namespace gs {

// copy: out[i] = (out type) in[i] over any strides. buffers: in, out. The entry's dtype is the
// output's.
struct CopyParams {
  int32_t ndim;
  DType from;
  int64_t shape[kMaxDims];
  int64_t in_strides[kMaxDims], out_strides[kMaxDims];  // in elements
};

}  // namespace gs
