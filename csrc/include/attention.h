// Parameters of the attention family.
#pragma once
#include "kernel.h"

namespace gs {

enum AttentionMask : int32_t { kMaskNone, kMaskBool, kMaskAdd };

// Strides of batch, head and row in elements; the last axis is contiguous.
struct HeadStrides {
  int64_t batch, head, row;
};

// out[b, h, i, :] = sum over j of p[i, j] v[b, g, j, :], g = h / (heads / kv_heads),
// p = softmax over j of scale * q[b, h, i, :] . k[b, g, j, :] + mask[b, h, i, j].
// q (batch, heads, tq, d), k (batch, kv_heads, tk, d), v (batch, kv_heads, tk, dv).
// mask: strides of the four axes, 0 where it is broadcast; kMaskBool: bytes, 0 takes the key away;
// kMaskAdd: numbers of the dtype. causal: row i sees the keys j <= i. A row without keys gives 0.
// Dropout of p: key j of row r = (b heads + h) tq + i is kept when word r round_up(tk, 4) + j of
// the Philox stream (seed, counter) is at least `threshold`, and then multiplied by keep_scale.
//
// attention           buffers: q, k, v, mask or null, out, lse or null
// attention_backward  buffers: q, k, v, mask or null, out, lse, dout, dq, dk, dv
// lse (batch, heads, tq): log of the sum of exp of a row's scores; +inf for a row without keys.
struct AttentionParams {
  int64_t batch, heads, kv_heads, tq, tk, d, dv;
  HeadStrides q, k, v, out, dout, dq, dk, dvs;
  int64_t mask_strides[4];
  int32_t mask, causal;
  double scale;
  uint64_t seed;
  Counter counter;
  uint32_t threshold;
  int32_t dropout;  // 0 none, 1 by threshold, 2 nothing is kept
  double keep_scale;
  int32_t members;  // threads that may come: bounds the scratch, never changes the result
  int64_t l2;       // bytes of the second cache
};

}  // namespace gs
