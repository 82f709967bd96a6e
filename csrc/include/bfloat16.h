// Parameters of the bfloat16 family.
#pragma once
#include "kernel.h"

namespace gs {

// float32_to_bfloat16, bfloat16_to_float32: n elements, contiguous. buffers: in, out.
struct Bfloat16Params {
  int64_t n;
};

}  // namespace gs
