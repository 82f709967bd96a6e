// Activation functions: parameters shared by both devices.
#pragma once
#include "kernel.h"

namespace gs {

// Name, and what a, b, c mean. Formulas stand beside the kernels in cpu/activation/functions.h.
#define GS_ACTIVATIONS(X)                                                         \
  X(sigmoid)                                                                      \
  X(tanh)                                                                         \
  X(relu)                                                                         \
  X(leaky_relu) /* a: slope below zero */                                         \
  X(elu)        /* a: factor below zero, b: factor above, c: factor inside exp */ \
  X(elu_input)  /* elu whose backward takes the input instead of the output */    \
  X(gelu)       /* exact */                                                       \
  X(gelu_tanh)  /* tanh approximation */                                          \
  X(silu)       /* a: beta */                                                     \
  X(softplus)   /* a: beta, b: threshold */                                       \
  X(logsigmoid)                                                                   \
  X(mish)                                                                         \
  X(hardtanh) /* a: low, b: high */                                               \
  X(hardswish)                                                                    \
  X(hardsigmoid)                                                                  \
  X(softsign)                                                                     \
  X(threshold) /* a: threshold, b: value */                                       \
  X(product)   /* backward only: dy times the derivative that forward saved */

enum Activation : int32_t {
#define X(name) kAct_##name,
  GS_ACTIVATIONS(X)
#undef X
      kActivationCount
};

// activation: buffers x, y (n elements each; y may be x).
// activation_backward: buffers dy, saved (x or y, as the op says), dx.
struct ActivationParams {
  int64_t n;
  int32_t op;
  double a, b, c;
  int64_t holds = 0;  // forward, as in CrossEntropyParams
};

// Forward passes that leave backward less to do, float32:
// activation_mask: buffers x, y, bits. For relu, leaky_relu, hardtanh and threshold backward asks
// only whether the derivative is 1: bit i % 16 of the 16-bit word i / 16. y may be x.
// activation_mask_backward: buffers dy, bits, dx: dx = bit ? dy : a dy (0 for a = 0).
// activation_slope: buffers x, y, d. d is the derivative; backward is `product`.

// activation_piece, float32: what a product does to a piece of its result right after it was stored
// (MatmulParams::after). buffers c, other: `rows` rows of `cols` elements, `stride` apart in both.
enum PieceKind : int32_t {
  kPieceValue,  // c = f(c)
  kPieceInput,  // other = c, c = f(c)
  kPieceSlope,  // other = f'(c), c = f(c): gelu, gelu_tanh, silu, mish
  kPieceGrad,   // c = the gradient c through f, other being the saved x or y
  kPieceSum     // c += other
};
struct PieceParams {
  int64_t rows, cols, stride;
  int32_t op, kind;
  double a, b, c;
};

// rrelu, rrelu_backward: y = x > 0 ? x : slope * x with slope uniform in [lower, upper) by element.
// buffers x, y; dy, saved, dx: saved is x, or y when lower >= 0.
struct RReluParams {
  int64_t n;
  double lower, upper;
  uint64_t seed;
  Counter counter;
};

// prelu: buffers x (rows, channels), w (channels or 1 value when channels == 1), y.
// prelu_backward: buffers dy, x, w, dx (may be absent), dw (channels; may be absent).
struct PReluParams {
  int64_t rows, channels;
};

}  // namespace gs
