// Which implementation of a convolution runs: csrc/cpu/conv/choose.cpp.
#pragma once
#include "conv.h"
#include "runtime.h"

namespace gs {

// kConvBackward: both gradients are wanted.
enum ConvPass { kConvForward, kConvBackwardData, kConvBackwardWeight, kConvBackward };

struct ConvChoice {
  const Kernel* kernel;
  bool joint;  // a kernel for all gradients (conv_*_backward); nullptr as kernel: one each
  bool bias;   // the kernel of the weights' gradient makes db, too
};

// The first of the ordered list that accepts the problem.
ConvChoice conv_choose(ConvPass pass, DType dtype, const ConvParams& p);

// "default", or "strict": no F(4 x 4) Winograd. Error text or nullptr.
const char* conv_set_precision(const char* name);
const char* conv_get_precision();
// For tests: "bfloat16_winograd4", "bfloat16_polyphase", "bfloat16" (all under autocast, the first
// two where there is an instruction for them), "stream" (forward), "winograd4", "winograd2",
// "polyphase" (float32) or "direct" wherever it can do a problem, whatever the cost model says and
// for float64 too; "" gives the choice back. l2: pretended cache size in bytes, so that small
// problems take many blocks; 0: the machine's. Error text or nullptr.
const char* conv_force(const char* name, int64_t l2);
int64_t conv_l2();

}  // namespace gs
