// Parameters of the loss family.
#pragma once
#include "kernel.h"

namespace gs {

// <name>_loss_forward: buffers x, t, weight, pos_weight, out, status.  x, t, weight and pos_weight
// (absent: ones) have n elements; out has one element with `reduce` (scale * sum of the losses),
// else n. status: double[1], set to 1 when an input is outside the domain of the loss, else 0;
// absent when the loss has none. <name>_loss_backward: buffers x, t, weight, pos_weight, grad, dx,
// dt. grad has one element with `reduce`, else n; dx or dt absent: not wanted.
struct LossParams {
  int64_t n;
  double scale;
  double option;  // beta of smooth L1, delta of Huber, eps of Poisson
  int32_t flag;   // KL: the target is a logarithm; Poisson: the input is
  int32_t reduce;
};

// nll_loss_forward: buffers x (rows, classes), target (rows,), weight (classes,) or absent, out,
// total. total: double[2] {sum of the weights of the targets, first row with a target out of range
// or -1}. nll_loss_backward: buffers target, weight, grad, total, dx (rows, classes).
struct NllParams {
  int64_t rows, classes, ignore_index;
  DType target;    // kI32 or kI64
  int32_t reduce;  // 0: none, 1: sum, 2: mean (sum / sum of weights)
};

}  // namespace gs
