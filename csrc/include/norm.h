// Parameters of the norm family: batch, group and instance norm (one value a channel or group of
// channels), layer and RMS norm (one value a row).
#pragma once
#include "kernel.h"

namespace gs {

// x is (outer, rows, channels); statistics are taken apart for each of the `outer` samples and each
// of the `groups` runs of channels / groups channels. Batch norm: outer 1, groups = channels. Group
// norm: outer N. Instance norm: outer N, groups = channels.
//
// channel_norm: y = relu?(gamma * (x - mean) * rstd + beta + residual?)
//   buffers: x, gamma?, beta?, running_mean?, running_var?, num_batches?, residual?, y, stats
//   stats: float64 (outer, groups, 2), mean and 1 / sqrt(var + eps), written for the backward pass.
//   training: statistics of the batch; running_mean and running_var (groups,) move by `momentum`
//   towards the mean and the unbiased variance, num_batches (int64, one element) is raised by one;
//   a negative momentum means 1 / num_batches, the plain average. Otherwise running_mean and
//   running_var are used.
// channel_norm_backward:
//   buffers: dy, x, stats, gamma?, beta?, y?, dx?, dgamma?, dbeta?, dresidual?
//   relu: dy counts only where the output was positive: read from y when it is given, else computed
//   again from x (gamma, beta needed; not with a residual). training as in the forward pass.
struct ChannelNormParams {
  int64_t outer, rows, channels, groups;
  double eps;
  Scalar momentum;
  int32_t training, relu;
};

// x is (rows, cols).
// row_norm: y = gamma * (x - mean) * rstd + beta; rms: y = gamma * x * rstd, rstd of the mean
// square.
//   buffers: x, gamma?, beta?, y, stats; stats: float64 (rows, 2), mean (0 for rms) and rstd.
// row_norm_backward:
//   buffers: dy, x, stats, gamma?, dx?, dgamma?, dbeta?; with `sum` (captured steps) more, added to
//   dx
struct RowNormParams {
  int64_t rows, cols;
  double eps;
  int32_t rms, sum;
};

}  // namespace gs
