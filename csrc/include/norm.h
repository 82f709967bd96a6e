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
//   running_var are used. parts (captured steps): one more buffer holds what channel_norm_piece
//   made of all rows, and x is read once less.
// channel_norm_backward:
//   buffers: dy, x, stats, gamma?, beta?, y?, dx?, dgamma?, dbeta?, dresidual?
//   relu: dy counts only where the output was positive: read from y when it is given, else computed
//   again from x (gamma, beta needed; not with a residual). training as in the forward pass.
struct ChannelNormParams {
  int64_t outer, rows, channels, groups;
  double eps;
  Scalar momentum;
  int32_t training, relu, parts;

  // Group norm of one row a sample: computed in one go a sample, without a ReLU.
  GS_MEMBER bool single() const { return rows == 1 && training && !relu && channels > groups; }
};

// How the norms cut a sample of x into chunks, whose statistics are merged in order; a function of
// the shape alone. Few channels: `fold` rows are one of so many columns that every vector is full.
constexpr int kNormBlock =
    1024;  // columns of a task at most: accumulators stay in the first-level cache
struct NormCut {
  int64_t fold;           // rows in a folded row
  int64_t cols;           // columns of a folded row
  int64_t rows;           // full folded rows of a sample
  int64_t rest;           // elements after them: columns of one more, partial row
  int64_t chunk, chunks;  // folded rows in a chunk, chunks in a sample
  int64_t blocks, width;  // column blocks and their width
  int64_t tasks;          // outer * chunks * blocks

  GS_MEMBER void init(const ChannelNormParams& p) {
    int64_t c = p.channels;
    fold = 1;
    if (c < 64) {
      while (fold * c < 64 || (fold * c) % 16 != 0) ++fold;
      if (p.rows < 8 * fold) fold = 1;
    }
    cols = fold * c;
    rows = p.rows / fold;
    rest = (p.rows - rows * fold) * c;
    chunk = cols <= 128 ? 256 : rows < 1024 ? 64 : 128;
    chunks = rows ? (rows + chunk - 1) / chunk : 1;
    width = fold > 1 || cols <= kNormBlock ? cols : kNormBlock / 2;
    if (fold == 1 && chunks * p.outer < 8 && cols > 128)
      width = 128;  // few rows: more column tasks
    blocks = (cols + width - 1) / width;
    tasks = p.outer * chunks * blocks;
  }
  // columns rounded up to whole vectors
  GS_MEMBER int64_t padded() const { return (cols + 15) & ~(int64_t)15; }
};

// channel_norm_piece, float32: what a convolution tells a batch norm (training) of its output x, as
// soon as rows [row0, row1) of columns [col, col + cols) are there. Whoever completes a chunk of
// x takes its statistics, which it then has in its caches, for these columns.
//   buffers: x, parts: float64 (chunks, 2, channels), counters: int32 (chunks, pieces), zero
//   between launches
struct NormPieceParams {
  int64_t rows, channels;  // of x
  int64_t row0, row1, col, cols;
  int64_t piece, pieces;  // columns come in so many pieces; this is that one
};

// x is (rows, cols).
// row_norm: y = gamma * (x - mean) * rstd + beta; rms: y = gamma * x * rstd, rstd of the mean
// square.
//   buffers: x, gamma?, beta?, y, stats; stats: float64 (rows, 2), mean (0 for rms) and rstd.
// row_norm_backward:
//   buffers: dy, x, stats, gamma?, dx?, dgamma?, dbeta?; with `sum` (captured steps) more, added to
//   dx
// holds: y is kept in the caches where it and x are no more than so many bytes; 0 where a gradient
// will need the room.
struct RowNormParams {
  int64_t rows, cols;
  double eps;
  int32_t rms, sum;
  int64_t holds;
};

}  // namespace gs
