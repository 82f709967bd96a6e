// Parameters of the elementwise family.
//
// One struct serves every kernel that maps up to three inputs to one output element by element; the
// operation is a number in it, so a kernel is looked up once and costs one entry per dtype.
#pragma once
#include "kernel.h"

namespace gs {

// copy: out[i] = (out type) in[i] over any strides. buffers: in, out. The entry's dtype is the
// output's.
struct CopyParams {
  int32_t ndim;
  DType from;
  int64_t shape[kMaxDims];
  int64_t in_strides[kMaxDims], out_strides[kMaxDims];  // in elements
};

// fill: out[i] = value; arange: out[i] = start + i * step. buffers: out (contiguous, n elements).
// value/start/step are read as double for float dtypes and as int64 otherwise.
struct FillParams {
  int64_t n;
  double start, step;
  int64_t istart, istep;
};

constexpr int kMaxOperands = 4;

// unary, binary, ternary, compare, test, logical, where: buffers: inputs, then out. An input whose
// buffer is absent is the Python number scalar[k] (float dtypes) or iscalar[k] (integer dtypes).
// shape: the broadcast shape, neighbouring dimensions merged where all operands allow it.
struct ElementwiseParams {
  int32_t op;
  int32_t ndim;
  int64_t shape[kMaxDims];
  int64_t strides[kMaxOperands][kMaxDims];  // in elements; 0 where an operand is broadcast
  double scalar[3];
  int64_t iscalar[3];
  double constant[2];  // alpha, bounds, exponent: what the op's comment says
};

// Two inputs a, b. The *_grad ones are derivatives: g is the gradient of the output.
enum BinaryOp : int32_t {
  kAdd,          // a + b
  kSub,          // a - b
  kMul,          // a * b
  kDiv,          // a / b
  kMaximum,      // NaN if either is NaN
  kMinimum,      // NaN if either is NaN
  kRemainder,    // a - floor(a / b) * b, sign of b
  kFloorDivide,  // floor(a / b)
  kBinaryAll,    // the ops before are for all number dtypes, the others for float dtypes
  kPow = kBinaryAll,
  kAddScaled,       // a + constant[0] * b
  kLerp,            // a + constant[0] * (b - a)
  kMulScaled,       // constant[0] * a * b
  kAbsGrad,         // (g, x): g * sign(x)
  kLog1pGrad,       // (g, x): g / (1 + x)
  kExpm1Grad,       // (g, y): g * (y + 1)
  kSqrtGrad,        // (g, y): g / (2 y)
  kRsqrtGrad,       // (g, y): -g y^3 / 2
  kReciprocalGrad,  // (g, y): -g y^2
  kSinGrad,         // (g, x): g * cos(x)
  kCosGrad,         // (g, x): -g * sin(x)
  kTanGrad,         // (g, y): g * (1 + y^2)
  kClampGrad,       // (g, x): g where constant[0] <= x <= constant[1], else 0
  kPowGradScalar,   // (g, x): g * c * x^(c - 1), c = constant[0]
  kExpGradScalar,   // (g, y): g * y * constant[0]: derivative of c^x, constant[0] = ln c
  kMulOneMinus,     // (g, w): g * (1 - w)
  kBinaryCount
};

// Three inputs.
enum TernaryOp : int32_t {
  kLerp3,          // (a, b, w): a + w * (b - a)
  kAddcmul,        // (a, b, c): a + constant[0] * b * c
  kAddcdiv,        // (a, b, c): a + constant[0] * b / c
  kDivGradB,       // (g, y, b): -g * y / b
  kMaximumGrad,    // (g, a, b): g where a > b, g / 2 where equal, else 0: the gradient of a
  kMinimumGrad,    // (g, a, b): g where a < b, g / 2 where equal, else 0: the gradient of a
  kPowGradBase,    // (g, a, b): g * b * a^(b - 1), 0 where b = 0
  kPowGradExp,     // (g, a, y): g * y * ln(a), 0 where a = 0
  kRemainderGrad,  // (g, a, b): -g * floor(a / b)
  kMulDiff,        // (g, a, b): g * (a - b)
  kTieGrad,        // (g, x, y): g where x = y, else 0; g is already divided by the number of ties
  kTernaryCount
};

enum UnaryOp : int32_t {
  kNeg,
  kAbs,
  kSign,
  kSquare,
  kUnaryAll,  // the ops before are for all number dtypes
  kExp = kUnaryAll,
  kExpm1,
  kLog,
  kLog1p,
  kLog2,
  kSqrt,
  kRsqrt,
  kReciprocal,
  kSin,
  kCos,
  kTan,
  kFloor,
  kCeil,
  kRound,  // half to even
  kTrunc,
  kCube,   // x * x * x
  kClamp,  // constant[0] <= y <= constant[1]; NaN stays
  kUnaryCount
};

// out is bool.
enum CompareOp : int32_t { kEq, kNe, kLt, kLe, kGt, kGe, kCompareCount };
enum TestOp : int32_t { kIsNan, kIsFinite, kIsInf, kTestCount };
enum LogicalOp : int32_t { kAnd, kOr, kXor, kNot, kLogicalCount };
// isclose, (a, b): |a - b| <= constant[1] + constant[0] |b| with a finite b, or a = b; op 1: NaN is
// close to NaN.

// uniform: low + (high - low) * u with u in [0, 1); normal: mean + std * z (Box-Muller).
// buffers: out, contiguous, n elements. Element i of float32 takes word i % 4 of Philox block i /
// 4, of float64 words 2 (i % 2) and 2 (i % 2) + 1 of block i / 2; normal numbers come in pairs (2k,
// 2k + 1).
struct RandomParams {
  int64_t n;
  double a, b;   // low, high or mean, std
  double below;  // uniform: the largest number below high
  uint64_t seed;
  Counter counter;
};

}  // namespace gs
