// Bindings of the elementwise family: arithmetic with NumPy's broadcasting, Python numbers as
// operands, results in fresh arrays or in place. The plain data movement (copy, cast, empty) is
// here too.
#include "elementwise.h"

#include <math.h>

#include "array.h"
#include "broadcast.h"

namespace gs {

namespace {

const Kernel unary_kernel("unary"), binary_kernel("binary"), ternary_kernel("ternary"),
    compare_kernel("compare"), test_kernel("test"), logical_kernel("logical"),
    where_kernel("where"), fill_kernel("fill"), close_kernel("isclose");

enum Kinds { kFloats = 1, kInts = 2, kBools = 4, kNumbers = kFloats | kInts };

bool allowed(DType t, int kinds) {
  if (t == kF32 || t == kF64) return kinds & kFloats;
  if (t == kBool) return kinds & kBools;
  return kinds & kInts;
}
void check_kind(DType t, int kinds, const char* op) {
  if (allowed(t, kinds)) return;
  const char* want = kinds == kFloats ? "float32 or float64 is needed; convert it with .float()"
                     : kinds == kBools
                         ? "bool is needed; compare it with 0 or convert it with .bool()"
                         : "numbers are needed; convert it with .float() or .long()";
  type_error(op, std::string("an input has dtype ") + dtype_name(t) + "; " + want);
}

// y = op(inputs) into `target` when given (in place), else into a fresh array of dtype
// `result_type` (kDTypeCount: that of the inputs).
py::object map(const Kernel& kernel, int op, const char* name, Operand* args, int n, int kinds,
               DType result_type, const double* constants, int constant_count, Array* target,
               bool plain_check = true) {
  DType t = common_dtype(args, n, name, target);
  if (plain_check) check_kind(t, kinds, name);
  ElementwiseParams p{};
  p.op = op;
  for (int i = 0; i < constant_count; ++i) p.constant[i] = constants[i];
  for (int k = 0; k < n; ++k)
    if (args[k].is_number) set_number(args[k], t, name, &p.scalar[k], &p.iscalar[k]);
  Array out;
  broadcast(args, n, name, target ? target->dtype : (result_type == kDTypeCount ? t : result_type),
            target, &p, &out);
  Buffer buffers[4];
  for (int k = 0; k < n; ++k)
    buffers[k] = args[k].is_number ? Buffer{nullptr, 0, kRead} : in(args[k].array);
  buffers[n] = target ? inout(*target) : gs::out(out);
  run_kernel(kernel, t, &p, sizeof(p), buffers, n + 1);
  return target ? target->object : std::move(out.object);
}

struct BinaryName {
  const char *name, *in_place;
  int op, kinds;
};
const BinaryName binary_names[] = {
    {"add", "add_", kAdd, kNumbers},
    {"sub", "sub_", kSub, kNumbers},
    {"mul", "mul_", kMul, kNumbers},
    {"div", "div_", kDiv, kFloats},
    {"maximum", "maximum_", kMaximum, kNumbers},
    {"minimum", "minimum_", kMinimum, kNumbers},
    {"remainder", "remainder_", kRemainder, kNumbers},
    {"floor_divide", "floor_divide_", kFloorDivide, kNumbers},
    {"pow", "pow_", kPow, kFloats},
    {"abs_backward", nullptr, kAbsGrad, kFloats},
    {"log1p_backward", nullptr, kLog1pGrad, kFloats},
    {"expm1_backward", nullptr, kExpm1Grad, kFloats},
    {"sqrt_backward", nullptr, kSqrtGrad, kFloats},
    {"rsqrt_backward", nullptr, kRsqrtGrad, kFloats},
    {"reciprocal_backward", nullptr, kReciprocalGrad, kFloats},
    {"sin_backward", nullptr, kSinGrad, kFloats},
    {"cos_backward", nullptr, kCosGrad, kFloats},
    {"tan_backward", nullptr, kTanGrad, kFloats},
    {"mul_one_minus", nullptr, kMulOneMinus, kFloats},
};
// two arrays and a constant
const BinaryName scaled_names[] = {
    {"add_scaled", "add_scaled_", kAddScaled, kFloats},
    {"lerp_scalar", "lerp_scalar_", kLerp, kFloats},
    {"mul_scaled", nullptr, kMulScaled, kFloats},
    {"pow_scalar_backward", nullptr, kPowGradScalar, kFloats},
    {"exp_scalar_backward", nullptr, kExpGradScalar, kFloats},
};
const BinaryName ternary_names[] = {
    {"lerp", nullptr, kLerp3, kFloats},
    {"div_backward_b", nullptr, kDivGradB, kFloats},
    {"maximum_backward", nullptr, kMaximumGrad, kFloats},
    {"minimum_backward", nullptr, kMinimumGrad, kFloats},
    {"pow_backward_base", nullptr, kPowGradBase, kFloats},
    {"pow_backward_exp", nullptr, kPowGradExp, kFloats},
    {"remainder_backward_b", nullptr, kRemainderGrad, kFloats},
    {"mul_diff", nullptr, kMulDiff, kFloats},
    {"tie_backward", nullptr, kTieGrad, kFloats},
};
const BinaryName ternary_scaled_names[] = {
    {"addcmul", "addcmul_", kAddcmul, kFloats},
    {"addcdiv", "addcdiv_", kAddcdiv, kFloats},
};
const BinaryName unary_names[] = {
    {"neg", "neg_", kNeg, kNumbers},      {"abs", "abs_", kAbs, kNumbers},
    {"sign", "sign_", kSign, kNumbers},   {"square", "square_", kSquare, kNumbers},
    {"exp", "exp_", kExp, kFloats},       {"expm1", "expm1_", kExpm1, kFloats},
    {"log", "log_", kLog, kFloats},       {"log1p", "log1p_", kLog1p, kFloats},
    {"log2", "log2_", kLog2, kFloats},    {"sqrt", "sqrt_", kSqrt, kFloats},
    {"rsqrt", "rsqrt_", kRsqrt, kFloats}, {"reciprocal", "reciprocal_", kReciprocal, kFloats},
    {"sin", "sin_", kSin, kFloats},       {"cos", "cos_", kCos, kFloats},
    {"tan", "tan_", kTan, kFloats},       {"floor", "floor_", kFloor, kFloats},
    {"ceil", "ceil_", kCeil, kFloats},    {"round", "round_", kRound, kFloats},
    {"trunc", "trunc_", kTrunc, kFloats}, {"cube", "cube_", kCube, kFloats},
};
const char* const compare_names[] = {"eq", "ne", "lt", "le", "gt", "ge"};
const char* const test_names[] = {"isnan", "isfinite", "isinf"};
const char* const logical_names[] = {"logical_and", "logical_or", "logical_xor"};

// The bounds of clamp in a dtype: None is no bound.
void clamp_bounds(py::handle lo, py::handle hi, DType t, const char* op, double* d, int64_t* i) {
  Operand a = operand(lo, op, "min", true), b = operand(hi, op, "max", true);
  if (a.absent && b.absent) value_error(op, "min and max are both None; at least one is needed");
  d[0] = -HUGE_VAL;
  d[1] = HUGE_VAL;
  i[0] = INT64_MIN;
  i[1] = INT64_MAX;
  if ((!a.absent && !a.is_number) || (!b.absent && !b.is_number))
    type_error(op, "min and max must be numbers; use maximum() and minimum() with tensors");
  if (!a.absent) set_number(a, t, op, &d[0], &i[0]);
  if (!b.absent) set_number(b, t, op, &d[1], &i[1]);
}

py::object clamp(py::handle x, py::handle lo, py::handle hi, bool in_place) {
  const char* op = "clamp";
  Operand a;
  a.array = in_place ? array_out(x, op, "input") : array_in(x, op, "input");
  check_kind(a.array.dtype, kNumbers, op);
  ElementwiseParams p{};
  p.op = kClamp;
  clamp_bounds(lo, hi, a.array.dtype, op, p.constant, p.iscalar);
  if (a.array.dtype == kU8) {
    p.iscalar[0] = p.iscalar[0] < 0 ? 0 : p.iscalar[0];
    p.iscalar[1] = p.iscalar[1] > 255 ? 255 : p.iscalar[1];
  }
  Array out, *target = in_place ? &a.array : nullptr;
  broadcast(&a, 1, op, a.array.dtype, target, &p, &out);
  run(unary_kernel, a.array.dtype, p, {in(a.array), in_place ? inout(a.array) : gs::out(out)});
  return in_place ? a.array.object : std::move(out.object);
}

void fill(const Array& a, py::handle value) {
  Operand v = operand(value, "fill_", "value", false);
  if (!v.is_number) type_error("fill_", "value must be a number");
  FillParams p{};
  set_number(v, a.dtype, "fill_", &p.start, &p.istart);
  p.n = a.size;
  if (a.size == 0) return;
  if (a.contiguous) {
    run(fill_kernel, a.dtype, p, {gs::out(a)});
    return;
  }
  Array one = array_new(a.dtype, {1});
  p.n = 1;
  run(fill_kernel, a.dtype, p, {gs::out(one)});
  one.ndim = a.ndim;
  for (int d = 0; d < a.ndim; ++d) {
    one.shape[d] = a.shape[d];
    one.strides[d] = 0;
  }
  copy_into(one, a);
}

}  // namespace

void bind_elementwise(py::module_& module) {
  Functions m(module);
  m.def(
      "contiguous",
      [](py::handle x) {
        Array a = array_in(x, "contiguous", "x");
        if (a.contiguous) return a.object;
        Array c = dense(a);
        return result(c);
      },
      py::arg("x"), "x itself when it is C-contiguous, else a copy that is.");
  m.def(
      "copy",
      [](py::handle x) {
        Array a = array_in(x, "copy", "x"), c = array_like(a);
        copy_into(a, c);
        return result(c);
      },
      py::arg("x"), "A fresh C-contiguous copy.");
  m.def(
      "copy_",
      [](py::handle dst, py::handle src) {
        Array c = array_out(dst, "copy_", "dst"), a = array_in(src, "copy_", "src");
        check_same_shape(c, "dst", a, "src", "copy_");
        copy_into(apart(a, c), c);
      },
      py::arg("dst"), py::arg("src"), "dst[...] = src, dtypes converted.");
  m.def(
      "cast",
      [](py::handle x, py::handle dtype) {
        Array a = array_in(x, "cast", "x"),
              c = array_new(dtype_from(dtype, "cast"), a.ndim, a.shape);
        copy_into(a, c);
        return result(c);
      },
      py::arg("x"), py::arg("dtype"));
  m.def(
      "empty",
      [](const std::vector<int64_t>& shape, py::handle dtype) {
        if (shape.size() > kMaxDims) value_error("empty", "at most 8 dimensions are supported");
        for (int64_t s : shape)
          if (s < 0)
            value_error("empty",
                        "negative dimension in " + shape_text(shape.data(), (int)shape.size()));
        Array c = array_new(dtype_from(dtype, "empty"), (int)shape.size(), shape.data());
        return result(c);
      },
      py::arg("shape"), py::arg("dtype") = py::none(),
      "A fresh array on pooled memory, not zeroed.");
  for (const BinaryName& b : binary_names) {
    m.def(
        b.name,
        [b](py::handle x, py::handle y) {
          Operand args[] = {operand(x, b.name, "input"), operand(y, b.name, "other")};
          return map(binary_kernel, b.op, b.name, args, 2, b.kinds, kDTypeCount, nullptr, 0,
                     nullptr);
        },
        py::arg("input"), py::arg("other"));
    if (b.in_place)
      m.def(
          b.in_place,
          [b](py::handle x, py::handle y) {
            Array target = array_out(x, b.in_place, "input");
            Operand args[] = {operand(target), operand(y, b.in_place, "other")};
            return map(binary_kernel, b.op, b.in_place, args, 2, b.kinds, kDTypeCount, nullptr, 0,
                       &target);
          },
          py::arg("input"), py::arg("other"));
  }
  for (const BinaryName& b : scaled_names) {
    m.def(
        b.name,
        [b](py::handle x, py::handle y, double c) {
          Operand args[] = {operand(x, b.name, "input"), operand(y, b.name, "other")};
          return map(binary_kernel, b.op, b.name, args, 2, b.kinds, kDTypeCount, &c, 1, nullptr);
        },
        py::arg("input"), py::arg("other"), py::arg("alpha"));
    if (b.in_place)
      m.def(
          b.in_place,
          [b](py::handle x, py::handle y, double c) {
            Array target = array_out(x, b.in_place, "input");
            Operand args[] = {operand(target), operand(y, b.in_place, "other")};
            return map(binary_kernel, b.op, b.in_place, args, 2, b.kinds, kDTypeCount, &c, 1,
                       &target);
          },
          py::arg("input"), py::arg("other"), py::arg("alpha"));
  }
  for (const BinaryName& b : ternary_names)
    m.def(
        b.name,
        [b](py::handle x, py::handle y, py::handle z) {
          Operand args[] = {operand(x, b.name, "a"), operand(y, b.name, "b"),
                            operand(z, b.name, "c")};
          return map(ternary_kernel, b.op, b.name, args, 3, b.kinds, kDTypeCount, nullptr, 0,
                     nullptr);
        },
        py::arg("a"), py::arg("b"), py::arg("c"));
  for (const BinaryName& b : ternary_scaled_names) {
    m.def(
        b.name,
        [b](py::handle x, py::handle y, py::handle z, double c) {
          Operand args[] = {operand(x, b.name, "input"), operand(y, b.name, "tensor1"),
                            operand(z, b.name, "tensor2")};
          return map(ternary_kernel, b.op, b.name, args, 3, b.kinds, kDTypeCount, &c, 1, nullptr);
        },
        py::arg("input"), py::arg("tensor1"), py::arg("tensor2"), py::arg("value"));
    m.def(
        b.in_place,
        [b](py::handle x, py::handle y, py::handle z, double c) {
          Array target = array_out(x, b.in_place, "input");
          Operand args[] = {operand(target), operand(y, b.in_place, "tensor1"),
                            operand(z, b.in_place, "tensor2")};
          return map(ternary_kernel, b.op, b.in_place, args, 3, b.kinds, kDTypeCount, &c, 1,
                     &target);
        },
        py::arg("input"), py::arg("tensor1"), py::arg("tensor2"), py::arg("value"));
  }
  for (const BinaryName& u : unary_names) {
    m.def(
        u.name,
        [u](py::handle x) {
          Operand args[] = {operand(array_in(x, u.name, "input"))};
          return map(unary_kernel, u.op, u.name, args, 1, u.kinds, kDTypeCount, nullptr, 0,
                     nullptr);
        },
        py::arg("input"));
    m.def(
        u.in_place,
        [u](py::handle x) {
          Array target = array_out(x, u.in_place, "input");
          Operand args[] = {operand(target)};
          return map(unary_kernel, u.op, u.in_place, args, 1, u.kinds, kDTypeCount, nullptr, 0,
                     &target);
        },
        py::arg("input"));
  }
  for (int op = 0; op < kCompareCount; ++op) {
    const char* name = compare_names[op];
    m.def(
        name,
        [op, name](py::handle x, py::handle y) {
          Operand args[] = {operand(x, name, "input"), operand(y, name, "other")};
          return map(compare_kernel, op, name, args, 2, kNumbers | kBools, kBool, nullptr, 0,
                     nullptr);
        },
        py::arg("input"), py::arg("other"));
  }
  m.def(
      "isclose",
      [](py::handle x, py::handle y, double rtol, double atol, bool nan) {
        Operand args[] = {operand(x, "isclose", "input"), operand(y, "isclose", "other")};
        const double constants[] = {rtol, atol};
        return map(close_kernel, nan, "isclose", args, 2, kFloats, kBool, constants, 2, nullptr);
      },
      py::arg("input"), py::arg("other"), py::arg("rtol"), py::arg("atol"), py::arg("equal_nan"),
      "|input - other| <= atol + rtol |other| with a finite other, or equal.");
  for (int op = 0; op < kTestCount; ++op) {
    const char* name = test_names[op];
    m.def(
        name,
        [op, name](py::handle x) {
          Operand args[] = {operand(array_in(x, name, "input"))};
          return map(test_kernel, op, name, args, 1, kFloats, kBool, nullptr, 0, nullptr);
        },
        py::arg("input"));
  }
  for (int op = 0; op < 3; ++op) {
    const char* name = logical_names[op];
    m.def(
        name,
        [op, name](py::handle x, py::handle y) {
          Operand args[] = {operand(x, name, "input"), operand(y, name, "other")};
          return map(logical_kernel, op, name, args, 2, kBools, kBool, nullptr, 0, nullptr);
        },
        py::arg("input"), py::arg("other"));
  }
  m.def(
      "logical_not",
      [](py::handle x) {
        Operand args[] = {operand(array_in(x, "logical_not", "input"))};
        return map(logical_kernel, kNot, "logical_not", args, 1, kBools, kBool, nullptr, 0,
                   nullptr);
      },
      py::arg("input"));
  m.def(
      "where",
      [](py::handle c, py::handle x, py::handle y) {
        Array cond = array_in(c, "where", "condition");
        if (cond.dtype != kBool)
          type_error("where", std::string("condition has dtype ") + dtype_name(cond.dtype) +
                                  "; bool is needed. Compare it with 0 or convert it with .bool()");
        Operand args[] = {operand(cond), operand(x, "where", "input"),
                          operand(y, "where", "other")};
        DType t = common_dtype(args + 1, 2, "where", nullptr);
        ElementwiseParams p{};
        for (int k = 1; k < 3; ++k)
          if (args[k].is_number) set_number(args[k], t, "where", &p.scalar[k], &p.iscalar[k]);
        Array out;
        broadcast(args, 3, "where", t, nullptr, &p, &out);
        Buffer buffers[] = {
            in(cond), args[1].is_number ? Buffer{nullptr, 0, kRead} : in(args[1].array),
            args[2].is_number ? Buffer{nullptr, 0, kRead} : in(args[2].array), gs::out(out)};
        run_kernel(where_kernel, t, &p, sizeof(p), buffers, 4);
        return result(out);
      },
      py::arg("condition"), py::arg("input"), py::arg("other"));
  m.def(
      "clamp", [](py::handle x, py::handle lo, py::handle hi) { return clamp(x, lo, hi, false); },
      py::arg("input"), py::arg("min"), py::arg("max"));
  m.def(
      "clamp_", [](py::handle x, py::handle lo, py::handle hi) { return clamp(x, lo, hi, true); },
      py::arg("input"), py::arg("min"), py::arg("max"));
  m.def(
      "clamp_backward",
      [](py::handle g, py::handle x, py::handle lo, py::handle hi) {
        Operand args[] = {operand(array_in(g, "clamp", "grad")),
                          operand(array_in(x, "clamp", "input"))};
        double bounds[2];
        int64_t unused[2];
        clamp_bounds(lo, hi, args[1].array.dtype, "clamp", bounds, unused);
        return map(binary_kernel, kClampGrad, "clamp", args, 2, kFloats, kDTypeCount, bounds, 2,
                   nullptr);
      },
      py::arg("grad"), py::arg("input"), py::arg("min"), py::arg("max"));
  m.def(
      "fill_", [](py::handle x, py::handle value) { fill(array_out(x, "fill_", "input"), value); },
      py::arg("input"), py::arg("value"), "x[...] = value");
  m.def(
      "full",
      [](const std::vector<int64_t>& shape, py::handle value, py::handle dtype) {
        if (shape.size() > kMaxDims) value_error("full", "at most 8 dimensions are supported");
        for (int64_t s : shape)
          if (s < 0)
            value_error("full",
                        "negative dimension in " + shape_text(shape.data(), (int)shape.size()));
        Array c = array_new(dtype_from(dtype, "full"), (int)shape.size(), shape.data());
        fill(c, value);
        return result(c);
      },
      py::arg("shape"), py::arg("value"), py::arg("dtype") = py::none());
  m.def(
      "expand",
      [](py::handle x, py::tuple shape) { return expand(array_in(x, "expand", "input"), shape); },
      py::arg("input"), py::arg("shape"), "A read-only view of x broadcast to shape.");
}

}  // namespace gs
