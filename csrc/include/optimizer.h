// Parameters of the optimizer family: multi-tensor updates and gradient norms.
#pragma once
#include "kernel.h"

namespace gs {

// Scalars of an update, all of them slots: a schedule, a step count or a clip may change each
// between two replays. The first five mean the same for every rule; the others are named beside
// each rule in cpu/optimizer.cpp and computed in double by python/gradsmith/optim.
enum OptimizerScalar : int32_t {
  kScale,  // the gradient is multiplied by it: -1 to maximise
  kClip,   // and then clamped to [-clip, clip]
  kDecay,  // weight_decay * p is added to it
  kL1,     // l1 * sign(p) is added to it
  kKeep,   // p is multiplied by it before the update: 1 - lr * weight_decay
  kRule,   // first scalar of the rule
  kOptimizerScalars = kRule + 7,
};

// One update of `count` tensors; the struct is followed by int64_t sizes[count], in elements.
// buffers: control, then for each tensor: p (in/out), g (in), the rule's states (in/out).
// control: double[4] {norm, factor, finite, 0} as grad_norm leaves it, or absent (factor 1).
struct OptimizerParams {
  int64_t count;
  int32_t skip_nonfinite;  // 1: nothing is changed when control says that the norm was not finite
  Scalar scalars[kOptimizerScalars];
};

// grad_norm: the norm of all tensors together and the factor min(1, max_norm / (norm + 1e-6)).
// buffers: control (out), then each tensor (in). Followed by int64_t sizes[count].
struct GradNormParams {
  int64_t count;
  double p;  // 1, 2, infinity or any other order > 0
  Scalar max_norm;
};

// grad_scale: g *= factor of control. grad_clamp: g = min(max(g, -limit), limit).
// buffers: control (in, absent for grad_clamp), then each tensor (in/out). Followed by int64_t
// sizes[count].
struct GradScaleParams {
  int64_t count;
  Scalar limit;
};

}  // namespace gs
