// Bindings of the matmul family: shapes, broadcasting of batches, and the choice among the kernels.
#include "matmul.h"

#include "autograd.h"
#include "broadcast.h"

namespace gs {

namespace matmul_bindings {

const Kernel matmul_kernel("matmul"), dot_kernel("matmul_dot"), vec_kernel("matmul_vec"),
    colsum_kernel("colsum"), bf16_kernel("matmul_bf16");

// An operand as a stack of matrices.
struct Operand {
  Array x;
  int64_t rows, cols, rs, cs;
  int batch_ndim;  // leading dimensions of x
};

bool unit(int64_t size, int64_t stride) { return size <= 1 || stride == 1; }

// x as (..., rows, cols), its last two axes swapped when t. A vector is a row (left) or a column.
Operand operand(Array x, bool t, bool left) {
  Operand o;
  int n = x.ndim;
  o.batch_ndim = n > 2 ? n - 2 : 0;
  if (n == 1) {
    o.rows = left ? 1 : x.shape[0];
    o.cols = left ? x.shape[0] : 1;
    o.rs = left ? 0 : x.strides[0];
    o.cs = left ? x.strides[0] : 0;
  } else {
    o.rows = x.shape[n - 2];
    o.cols = x.shape[n - 1];
    o.rs = x.strides[n - 2];
    o.cs = x.strides[n - 1];
  }
  if (t && n > 1) {
    std::swap(o.rows, o.cols);
    std::swap(o.rs, o.cs);
  }
  o.x = std::move(x);
  return o;
}

Operand densified(Operand o, bool t, bool left) { return operand(dense(o.x), t, left); }

bool overlaps(const Array& x, const Array& y) {
  if (!x.size || !y.size) return false;
  auto range = [](const Array& a, const char** lo, const char** hi) {
    *lo = *hi = a.data;
    for (int i = 0; i < a.ndim; ++i) {
      int64_t span = (a.shape[i] - 1) * a.strides[i] * dtype_size(a.dtype);
      (span < 0 ? *lo : *hi) += span;
    }
  };
  const char *xl, *xh, *yl, *yh;
  range(x, &xl, &xh);
  range(y, &yl, &yh);
  return xl <= yh && yl <= xh;
}

// Runs the kernel that fits. a (m, k), b (k, n), c (m, n); p holds everything but the strides'
// swap.
void run_matmul(MatmulParams& p, DType dtype, bool rounded, const Array& a, const Array& b,
                const Array& bias, const Array& c) {
  const Machine& m = machine();
  p.l1 = m.l1d;
  p.l2 = m.l2;
  p.l3 = m.l3;
  p.near_l3 = m.near;
  p.members = get_num_threads();
  // one batch dimension whose matrices of A follow each other against one B: a taller matrix
  if (p.batch_ndim == 1 && p.b_bs[0] == 0 &&
      (p.m == 1 || (p.a_bs[0] == p.m * p.a_rs && p.c_bs[0] == p.m * p.c_rs))) {
    if (p.m == 1) {
      p.a_rs = p.a_bs[0];
      p.c_rs = p.c_bs[0];
    }
    p.m *= p.batch;
    p.batch = 1;
    p.batch_ndim = 0;
  }
  if (rounded) {
    run(bf16_kernel, dtype, p, {in(a), in(b), in(bias), p.accumulate ? inout(c) : out(c)});
    return;
  }
  int64_t matrix = p.n * p.k * dtype_size(dtype);
  const Kernel* kernel = &matmul_kernel;
  bool swap = false;
  if (p.k > 0) {
    bool rows_along_k = unit(p.k, p.a_cs), cols_along_k = unit(p.k, p.b_rs);
    if (rows_along_k && cols_along_k && p.n <= 4 && p.m > p.n) {
      kernel = &dot_kernel;
      swap = true;
    } else if (rows_along_k && cols_along_k && p.m <= 8) {
      kernel = &dot_kernel;
    } else if (p.n == 1 && unit(p.m, p.a_rs) && unit(p.m, p.c_rs)) {
      kernel = &vec_kernel;
      swap = true;
    } else if (unit(p.n, p.b_cs) && (p.m <= 2 || (p.m <= kVecRows && matrix > m.l2))) {
      kernel = &vec_kernel;
    } else if (p.n > 1 && p.m > 1) {
      // The problem or its transpose, C^T = B^T A^T: whichever moves fewer elements beside the
      // arithmetic. A right operand whose columns are contiguous is transposed into panels, a left
      // one whose columns are into slivers, and C of a transposed problem once for each block of k.
      bool b_rows = unit(p.n, p.b_cs), a_rows = unit(p.m, p.a_rs) && !rows_along_k;
      int64_t blocks = (p.k + 1023) / 1024;
      int64_t plain = (b_rows ? 0 : p.n * p.k) + (a_rows ? p.m * p.k : 0);
      int64_t turned = (a_rows ? 0 : p.m * p.k) + (b_rows ? p.n * p.k : 0) + p.m * p.n * blocks;
      // B^T must lie well, too; with many rows and columns the reuse of what is packed hides it,
      // and storing C transposed costs more. (A long weight gradient of up to 256 inputs needs no
      // slivers at all: its first tiles pack the larger operand as they read it.)
      bool tall = a_rows && b_rows && p.n <= 256 && p.m >= 2 * p.n && p.k >= 2048;
      bool many = p.m >= 256 && p.n >= 256 && !tall;
      swap = turned < plain && !many && (a_rows || rows_along_k);
    }
  }
  if (!swap) {
    run(*kernel, dtype, p, {in(a), in(b), in(bias), p.accumulate ? inout(c) : out(c)});
    return;
  }
  // C^T = B^T A^T
  std::swap(p.m, p.n);
  std::swap(p.a_rs, p.b_cs);
  std::swap(p.a_cs, p.b_rs);
  std::swap(p.c_rs, p.c_cs);
  std::swap(p.bias_rs, p.bias_cs);
  std::swap(p.a_bs, p.b_bs);
  run(*kernel, dtype, p, {in(b), in(a), in(bias), p.accumulate ? inout(c) : out(c)});
}

struct Names {
  const char *op, *a, *b;
};

py::object product(const Names& nm, Array ax, Array bx, py::handle bias_h, bool ta, bool tb,
                   int act, double alpha, py::handle out_h, bool accumulate, bool exact = false) {
  const char* op = nm.op;
  Array bias = array_optional(bias_h, op, "bias");
  check_float(ax, op, nm.a);
  check_same_dtype(ax, nm.a, bx, nm.b, op);
  DType dtype = ax.dtype;
  if (ax.ndim == 0 || bx.ndim == 0)
    value_error(op, std::string(nm.a) + " has shape " + ax.shape_text() + " and " + nm.b +
                        " has shape " + bx.shape_text() + "; both need at least 1 dimension");
  if (act < 0 || act >= kActCount)
    value_error(op, "unknown activation code " + std::to_string(act));
  Operand a = operand(std::move(ax), ta, true), b = operand(std::move(bx), tb, false);
  if (a.cols != b.rows) {
    std::string want = std::string(nm.a) + " has shape " + a.x.shape_text() +
                       (ta ? " (transposed)" : "") + " and " + nm.b + " has shape " +
                       b.x.shape_text() + (tb ? " (transposed)" : "");
    value_error(op, want + "; the axes that are summed over have " + std::to_string(a.cols) +
                        " and " + std::to_string(b.rows) + " elements and must agree");
  }
  MatmulParams p{};
  p.m = a.rows;
  p.n = b.cols;
  p.k = a.cols;
  // shape of the result: batch dimensions broadcast, then rows and columns that are not from
  // vectors
  int64_t shape[kMaxDims];
  int batch_ndim = a.batch_ndim > b.batch_ndim ? a.batch_ndim : b.batch_ndim, ndim = batch_ndim;
  if (batch_ndim > kMaxBatchDims) value_error(op, "at most 6 batch dimensions are supported");
  int64_t batch_shape[kMaxDims], strides[3][kMaxDims];
  for (int i = 0; i < batch_ndim; ++i) {
    int ai = i - (batch_ndim - a.batch_ndim), bi = i - (batch_ndim - b.batch_ndim);
    int64_t an = ai >= 0 ? a.x.shape[ai] : 1, bn = bi >= 0 ? b.x.shape[bi] : 1;
    if (an != bn && an != 1 && bn != 1)
      value_error(op, std::string("the batch dimensions of ") + nm.a + " " + a.x.shape_text() +
                          " and " + nm.b + " " + b.x.shape_text() + " do not broadcast");
    shape[i] = batch_shape[i] = an == 1 ? bn : an;
  }
  if (a.x.ndim > 1) shape[ndim++] = p.m;
  if (b.x.ndim > 1) shape[ndim++] = p.n;
  if (bias.present()) {
    check_same_dtype(a.x, nm.a, bias, "bias", op);
    if (bias.ndim != 1 || bias.shape[0] != p.n)
      value_error(op, "bias has shape " + bias.shape_text() + "; expected (" + std::to_string(p.n) +
                          ",), one value for each output");
    bias = dense(bias);
  }
  bool rounded = autocast() && dtype == kF32 && !exact;
  // operands that no kernel reads well are copied first
  if (!unit(b.cols, b.cs) && !unit(b.rows, b.rs)) b = densified(std::move(b), tb, false);
  if (!unit(a.cols, a.cs) && !unit(a.rows, a.rs) && (rounded || (p.m * p.k >= 4096 && p.n > 16)))
    a = densified(std::move(a), ta, true);
  if (p.n == 1 && b.rs != 1 && unit(p.k, a.cs)) b = densified(std::move(b), tb, false);
  Array c;
  if (out_h.is_none()) {
    c = array_new(dtype, ndim, shape);
    accumulate = false;
  } else {
    c = array_out(out_h, op, "out");
    check_same_dtype(a.x, nm.a, c, "out", op);
    bool same = c.ndim == ndim;
    for (int i = 0; same && i < ndim; ++i) same = c.shape[i] == shape[i];
    if (!same)
      value_error(op, "out has shape " + c.shape_text() + "; expected " + shape_text(shape, ndim));
    if (c.size && b.x.ndim > 1 && !unit(c.shape[ndim - 1], c.strides[ndim - 1]))
      value_error(op, "the last axis of out must be contiguous");
    if (overlaps(c, a.x) || overlaps(c, b.x) || (bias.present() && overlaps(c, bias)))
      value_error(op, "out shares memory with an input; pass another array");
  }
  if (c.size == 0) return c.object;
  p.batch = 1;
  for (int i = 0; i < batch_ndim; ++i) {
    int ai = i - (batch_ndim - a.batch_ndim), bi = i - (batch_ndim - b.batch_ndim);
    p.batch *= batch_shape[i];
    strides[0][i] = ai >= 0 && a.x.shape[ai] > 1 ? a.x.strides[ai] : 0;
    strides[1][i] = bi >= 0 && b.x.shape[bi] > 1 ? b.x.strides[bi] : 0;
    strides[2][i] = c.strides[i];
  }
  p.batch_ndim = batch_ndim ? coalesce(batch_ndim, batch_shape, 3, strides) : 0;
  for (int i = 0; i < p.batch_ndim; ++i) {
    p.batch_shape[i] = batch_shape[i];
    p.a_bs[i] = strides[0][i];
    p.b_bs[i] = strides[1][i];
    p.c_bs[i] = strides[2][i];
  }
  if (p.batch == 1) p.batch_ndim = 0;
  p.a_rs = a.rs;
  p.a_cs = p.k == 1 ? 1 : a.cs;
  p.b_rs = b.rs;
  p.b_cs = b.cs;
  // axes of one element: their stride does not matter, so it is one that a kernel likes
  if (p.n == 1 && p.k > 1) p.b_cs = p.b_rs == 1 ? p.k : 1;
  if (p.n == 1 && p.k == 1) p.b_cs = p.b_rs = 1;
  if (p.n > 1 && p.k == 1) p.b_rs = p.b_cs == 1 ? p.n : 1;
  p.c_rs = a.x.ndim > 1 ? c.strides[batch_ndim] : p.n;
  p.c_cs = 1;
  if (p.n == 1 && b.x.ndim > 1 && a.x.ndim > 1 && p.m > 1) p.c_rs = c.strides[batch_ndim];
  p.bias_cs = 1;
  p.alpha = alpha;
  p.accumulate = accumulate;
  p.act = act;
  run_matmul(p, dtype, rounded, a.x, b.x, bias, c);
  return c.object;
}

// Also for csrc/bindings/recurrent.cpp.
py::object linear(Array a, Array w, py::handle bias, int act) {
  check_float(a, "linear", "input");
  check_ndim(w, 2, "linear", "weight", "(out, in)");
  if (a.ndim == 0 || a.shape[a.ndim - 1] != w.shape[1])
    value_error("linear", "input has shape " + a.shape_text() + "; its last axis must be " +
                              std::to_string(w.shape[1]) + " (weight is " + w.shape_text() +
                              "). Check the layer before it");
  return product({"linear", "input", "weight"}, std::move(a), std::move(w), bias, false, true, act,
                 1.0, py::handle(Py_None), false);
}

py::object linear(py::handle x, py::handle weight, py::handle bias, int act) {
  Array w = array_in(weight, "linear", "weight");
  return linear(array_in(x, "linear", "input"), std::move(w), bias, act);
}

// `linear` on Tensors, recorded as a node of class `cls`.
py::object apply_linear(py::handle cls, py::handle x, py::handle weight, py::handle bias) {
  const char* op = "linear";
  py::object out =
      linear(py::handle(tensor_data(x, op, "input")), py::handle(tensor_data(weight, op, "weight")),
             py::handle(tensor_data(bias, op, "bias", true)), 0);
  return tensor_apply(cls, out, {x, weight, bias}, {x, weight});
}

// x1 (rows, in1), x2 (rows, in2), weight (out, in1, in2), bias (out,) or None -> (y (rows, out),
// the outer products of the rows (rows, in1 * in2), from which y is one product).
py::tuple bilinear(py::handle x1_h, py::handle x2_h, py::handle weight_h, py::handle bias) {
  const char* op = "bilinear";
  Array a = array_in(x1_h, op, "input1"), b = array_in(x2_h, op, "input2"),
        w = array_dense(weight_h, op, "weight");
  check_ndim(a, 2, op, "input1", "(rows, in1)");
  check_ndim(b, 2, op, "input2", "(rows, in2)");
  check_ndim(w, 3, op, "weight", "(out, in1, in2)");
  const int64_t rows = a.shape[0], i = a.shape[1], j = b.shape[1];
  if (b.shape[0] != rows || w.shape[1] != i || w.shape[2] != j)
    value_error(op, "input1 has shape " + a.shape_text() + ", input2 " + b.shape_text() +
                        " and weight " + w.shape_text() + "; they do not fit");
  // for each row a column times a row
  a.ndim = b.ndim = 3;
  a.shape[2] = b.shape[1] = 1;
  a.strides[2] = 1;
  b.shape[2] = j;
  b.strides[2] = b.strides[1];
  b.strides[1] = j;
  const py::handle none(Py_None);
  Array pairs = array_in(product({op, "input1", "input2"}, std::move(a), std::move(b), none, false,
                                 false, 0, 1.0, none, false),
                         op, "pairs");
  const int64_t shape[] = {rows, i * j}, strides[] = {i * j, 1};
  pairs.ndim = w.ndim = 2;
  pairs.shape[1] = w.shape[1] = i * j;
  pairs.strides[0] = w.strides[0] = i * j;
  pairs.strides[1] = w.strides[1] = 1;
  py::object flat = view_of(pairs, 2, shape, strides, true);
  py::object y = product({op, "input", "weight"}, std::move(pairs), std::move(w), bias, false, true,
                         0, 1.0, none, false);
  return py::make_tuple(y, flat);
}

py::object colsum(py::handle x, py::handle out_h) {
  Array a = array_in(x, "colsum", "x");
  check_float(a, "colsum", "x");
  if (a.ndim == 0) value_error("colsum", "x needs at least 1 dimension");
  int64_t cols = a.shape[a.ndim - 1], rows = 1, shape[kMaxDims], strides[1][kMaxDims];
  int lead = a.ndim - 1;
  for (int i = 0; i < lead; ++i) {
    shape[i] = a.shape[i];
    strides[0][i] = a.strides[i];
    rows *= a.shape[i];
  }
  int merged = lead ? coalesce(lead, shape, 1, strides) : 0;
  if (a.size && (merged > 1 || !unit(cols, a.strides[lead]))) {
    a = dense(a);
    strides[0][0] = cols;
  }
  Array c;
  bool accumulate = !out_h.is_none();
  if (accumulate) {
    c = array_out(out_h, "colsum", "out");
    check_same_dtype(a, "x", c, "out", "colsum");
    if (c.ndim != 1 || c.shape[0] != cols || !unit(cols, c.strides[0]))
      value_error("colsum", "out has shape " + c.shape_text() + "; expected a contiguous (" +
                                std::to_string(cols) + ",)");
    if (overlaps(c, a)) value_error("colsum", "out shares memory with x; pass another array");
  } else {
    c = array_new(a.dtype, {cols});
  }
  if (cols == 0) return c.object;
  ColsumParams p{rows, cols, lead ? strides[0][0] : cols, accumulate};
  run(colsum_kernel, a.dtype, p, {in(a), accumulate ? inout(c) : out(c)});
  return c.object;
}

}  // namespace matmul_bindings

void bind_matmul(py::module_& module) {
  using namespace matmul_bindings;
  Functions m(module);
  m.def(
      "matmul",
      [](py::handle a, py::handle b, py::handle bias, bool ta, bool tb, int act, double alpha,
         bool exact) {
        return product({"matmul", "a", "b"}, array_in(a, "matmul", "a"), array_in(b, "matmul", "b"),
                       bias, ta, tb, act, alpha, py::handle(Py_None), false, exact);
      },
      py::arg("a"), py::arg("b"), py::arg("bias") = py::none(), py::arg("ta") = false,
      py::arg("tb") = false, py::arg("act") = 0, py::arg("alpha") = 1.0, py::arg("exact") = false,
      "act(alpha * a @ b + bias); ta, tb swap the last two axes first. act: 0 none, 1 relu. exact: "
      "autocast does not round the operands.");
  m.def(
      "matmul_out",
      [](py::handle out, py::handle a, py::handle b, py::handle bias, bool ta, bool tb, int act,
         double alpha, bool accumulate) {
        return product({"matmul", "a", "b"}, array_in(a, "matmul", "a"), array_in(b, "matmul", "b"),
                       bias, ta, tb, act, alpha, out, accumulate);
      },
      py::arg("out"), py::arg("a"), py::arg("b"), py::arg("bias") = py::none(),
      py::arg("ta") = false, py::arg("tb") = false, py::arg("act") = 0, py::arg("alpha") = 1.0,
      py::arg("accumulate") = false,
      "As matmul, into out; accumulate adds what out holds before the activation.");
  m.def("linear", (py::object(*)(py::handle, py::handle, py::handle, int)) & linear,
        py::arg("input"), py::arg("weight"), py::arg("bias") = py::none(), py::arg("act") = 0,
        "act(input @ weight^T + bias); input (..., in), weight (out, in), bias (out,).");
  m.def("apply_linear", &apply_linear, py::arg("cls"), py::arg("input"), py::arg("weight"),
        py::arg("bias"), "linear of Tensors, recorded as a node of class cls.");
  m.def("bilinear", &bilinear, py::arg("input1"), py::arg("input2"), py::arg("weight"),
        py::arg("bias"), "(y, outer products of the rows of input1 and input2, flattened)");
  m.def("colsum", &colsum, py::arg("x"), py::arg("out") = py::none(),
        "Sum over all axes but the last; added to out when given.");
}

}  // namespace gs
