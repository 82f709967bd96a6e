// Dropout and its kin: parameters shared by both devices.
#pragma once
#include "kernel.h"

namespace gs {

// dropout: out[i] = keep(i) ? a * in[i] + b : c. buffers in, out (n elements; out may be in).
// keep(i): Philox word i of (seed, counter) is at least `threshold` = p 2^32.
// The gradient is the same kernel on the incoming gradient with b = c = 0.
struct DropoutParams {
  int64_t n;
  uint64_t seed;
  Counter counter;
  uint32_t threshold;
  int32_t none;  // 1: nothing is kept (p = 1)
  double a, b, c;
};

// dropout_channels: in, out (outer, inner, channels); one word for each (outer, channel).
struct DropoutChannelsParams {
  DropoutParams each;  // n = outer * channels
  int64_t outer, inner, channels;
};

// philox: buffer out (n 32-bit words): words first .. first + n - 1 of the stream (seed, counter).
struct PhiloxParams {
  int64_t n;
  uint64_t seed, counter, first;
};

}  // namespace gs
