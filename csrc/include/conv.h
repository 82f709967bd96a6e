// Parameters of the convolution family: 2-d, channels last; a 1-d convolution is one of height 1.
//
//   x  (n, in_h, in_w, channels)     w (filters, kernel_h, kernel_w, channels / groups)
//   y  (n, out_h, out_w, filters)    bias (filters)
//   y[n,p,q,k] = bias[k] + sum_ijc x[n, p*stride_h - pad_h + i*dilation_h, q*stride_w - pad_w +
//   j*dilation_w, c] w[k,i,j,c]
//
// The padding behind follows from out_h, out_w; what lies outside of x counts as zero.
#pragma once
#include "kernel.h"

namespace gs {

enum ConvActivation : int32_t { kConvLinear, kConvRelu };
enum ConvWanted : int32_t { kConvData = 1, kConvWeight = 2 };

// conv_*_forward:          buffers x, w, bias (may be absent), y
// conv_*_backward_data:    buffers dy, w, bias (channels; may be absent), dx. Also the forward pass
// of a transposed
//                          convolution: then dy is its input, dx its output, and bias is its bias.
// conv_*_backward_weight:  buffers x, dy, dw, db (may be absent)
// conv_winograd*_backward: buffers dy, w, bias (channels; may be absent), dx, x, dw, db; dx, or x,
// dw and db absent where `wanted` says so
// conv_stem_pool:         buffers x, w, bias (may be absent), y, index (may be absent): the forward
// pass, stride 1 and no dilation, and a 2 x 2 max-pool; out_h and out_w are those before the pool
// conv_winograd*_pool:    buffers x, w, bias (may be absent), y, index (may be absent): the forward
// pass and a 2 x 2 max-pool behind it, stride 2; out_h and out_w are those before the pool
// conv_winograd*_pool_backward, conv_pool_backward_weight: as the kernels of that name without
// "pool" (the second is direct, of one group and fewer than 16 channels), but dy is the gradient of
// such a pool's output and its index the last buffer
//
// conv_bf16_winograd4_*, conv_bf16_polyphase_*: as conv_winograd4_* and conv_polyphase_*, with
// operands rounded in their domain (conv/pairs.h)
//
// Set by rewrites of captured steps, in kernels that then have more buffers behind the others:
// - after, conv_direct_forward, conv_*polyphase_forward and conv_*winograd*_forward, of one group:
//   channel_norm_piece, which hears of rows of y when they are there; its parts and counters.
// - sum, conv_direct_backward_data, conv_bf16_backward_data and conv_*winograd*_backward, also with
//   a pool: another gradient, like dx, that is added to it.
// - gate, the same and conv_*polyphase_backward_data: the output of a ReLU, like dx, whose gradient
//   dx (with the sum) is: zeros where that output is not positive.
// - prepared, conv_winograd*: the transformed filters may be there (prepared.h); the last buffers.
struct ConvParams {
  int64_t n, in_h, in_w, out_h, out_w;
  int64_t channels, filters, groups;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t l2;          // bytes of the second-level cache: block sizes follow from it
  int64_t near_cores;  // cores, where their third level is fast (Machine::near); 0 elsewhere
  int64_t threads;     // the most members: room for what each has of its own, nothing else
  ConvActivation activation;
  int32_t has_bias;  // backward_weight: db is wanted
  int32_t wanted;    // conv_winograd*_backward: bits of ConvWanted
  int32_t pool;      // conv_winograd*_pool*, conv_pool_backward_weight
  KernelFn after;
  int64_t after_rows;  // channel_norm_piece: rows of y that it takes together
  int32_t sum, gate;
  int32_t prepared;
};

// conv_channel_sum: out[c] = sum over rows of x (rows, channels). buffers x, out.
struct ChannelSumParams {
  int64_t rows, channels;
};

}  // namespace gs
