// Which implementation of a convolution runs: csrc/cpu/conv/choose.cpp.
#pragma once
#include "conv.h"
#include "runtime.h"

namespace gs {

enum ConvPass { kConvForward, kConvBackwardData, kConvBackwardWeight };

// The first kernel of the ordered list that accepts the problem.
const Kernel& conv_choose(ConvPass pass, DType dtype, const ConvParams& p);

}  // namespace gs
