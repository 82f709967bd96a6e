// The machine's own limits, measured: register-only FMA loop and large copy.
#pragma once
#include "kernel.h"

namespace gs {

// fma_peak: each member runs `iterations` rounds of 24 independent FMAs. buffers: out (1 element).
struct FmaPeakParams {
  int64_t iterations;
  int64_t members;
};

// stream_copy: buffers: in, of n bytes, and out, of m; one is a multiple of the other: as many
// lines of in are added up for each of out, or each is written as often. Members take disjoint
// parts.
struct StreamCopyParams {
  int64_t n, m;
  int64_t members;
  int32_t streaming;  // 1: non-temporal stores
};

}  // namespace gs
