// Rewrites around matrix products: what follows them done to their results, and results that stay
// transposed.
#include <algorithm>

#include "activation.h"
#include "conv.h"
#include "elementwise.h"
#include "fuser.h"
#include "matmul.h"

namespace gs {

namespace {

// Products whose results stay transposed (cpu/matmul/gemm.cpp): rows that one block of steps of the
// next product holds, elements above which none is cut into slices of k, and steps that are one
// block whatever the layout.
constexpr int64_t kChainRows = 1024, kChainLeast = 64 * 64, kOneBlock = 512;

}  // namespace

// Switches on the ReLU of a product or convolution whose output has n elements.
bool Fuser::with_relu(int k, RecordedOp* op, int64_t n) {
  if (is(k, "matmul") || is(k, "matmul_bf16") || is(k, "matmul_dot") || is(k, "matmul_vec")) {
    MatmulParams& p = *(MatmulParams*)op->params.data();
    if (p.act != kActNone || p.after || p.accumulate || p.m * p.n * p.batch != n) return false;
    p.act = kActRelu;
    return true;
  }
  if (!conv_y(k) && !is(k, "conv_stream_forward") && !is(k, "conv_depthwise_forward")) return false;
  ConvParams& p = *(ConvParams*)op->params.data();
  if (p.activation != kConvLinear || p.n * p.out_h * p.out_w * p.filters != n) return false;
  p.activation = kConvRelu;
  return true;
}

// matmul or convolution, relu -> matmul or convolution. Backward then looks at the output.
void Fuser::bias_relu(int k) {
  static const Kernel from_output("activation_backward");
  Relu r;
  if (!find_relu(k, &r) || !temporary(r.x) || only_reader(r.x) != k) return;
  int product = writer(r.x);
  if (product < 0 || !same(ops[(size_t)product].buffers.back(), r.x)) return;
  RecordedOp op = ops[(size_t)product];
  if (!with_relu(product, &op, r.n)) return;
  op.buffers.back() = r.y;
  if (!clear(op, product, k)) return;
  if (is(r.backward, "activation_mask_backward")) {
    RecordedOp& back = ops[(size_t)r.backward];
    back.entry = from_output.get(kF32);
    back.buffers[1] = r.y;
    back.buffers[1].access = kRead;
    changed(back, "from the output");
  }
  join(op, k, product, "with the ReLU behind it");
}

// The product that alone writes the n elements of x and has nothing behind it yet, or -1.
int Fuser::plain_product(const RecordedBuffer& x, int64_t n) {
  int k = temporary(x) ? writer(x) : -1;
  const bool product = is(k, "matmul") || is(k, "matmul_bf16");
  if (!product || !same(ops[(size_t)k].buffers.back(), x)) return -1;
  const MatmulParams& p = params<MatmulParams>(k);
  bool plain = p.act == kActNone && !p.after && !p.accumulate && p.m * p.n * p.batch == n;
  return plain ? k : -1;
}

// Lets `op`, a product, do what activation q says to each piece of its result, with `other`.
void Fuser::set_piece(RecordedOp* op, PieceKind kind, const ActivationParams& q,
                      RecordedBuffer other) {
  static const Kernel piece("activation_piece");
  MatmulParams& p = *(MatmulParams*)op->params.data();
  p.after = piece.get(kF32)->run;
  p.piece = PieceParams{0, 0, 0, q.op, kind, q.a, q.b, q.c};
  op->buffers.push_back(other);
}

// matmul, activation -> matmul. Where backward needs the input or the derivative, the product
// writes that too.
void Fuser::bias_activation(int k) {
  static const Kernel from_output("activation_backward");
  bool slope = is(k, "activation_slope"), bits = is(k, "activation_mask");
  if (!slope && !bits && !is(k, "activation")) return;
  const ActivationParams q = params<ActivationParams>(k);
  RecordedBuffer x = buffer(k, 0), y = buffer(k, 1);
  int product = plain_product(x, q.n), back = -1;
  if (product < 0 || x.object == y.object || q.op == kAct_relu) return;
  std::vector<Use> all;
  if (!reads(x, &all)) return;
  bool alone = all.size() == 1;
  RecordedOp op = ops[(size_t)product];
  op.buffers.back() = y;
  const RecordedBuffer none{-1, 0, kRead}, input{x.object, x.offset, kWrite};
  if (slope) {
    if (!alone) return;
    set_piece(&op, kPieceSlope, q, buffer(k, 2));
  } else if (bits) {
    // backward looks at the output instead: the same where that has the sign of the input
    RecordedBuffer kept = buffer(k, 2);
    bool fits = q.op == kAct_hardtanh || (q.op == kAct_leaky_relu && q.a > 0);
    if (!alone || !fits || writer(y) != k || !temporary(kept) || writer(kept) != k) return;
    if (!reads(kept, &all) || all.size() > 1) return;
    if (!all.empty()) {
      back = all[0].op;
      if (!is(back, "activation_mask_backward")) return;
    }
    set_piece(&op, kPieceValue, q, none);
  } else if (alone) {
    set_piece(&op, kPieceValue, q, none);
  } else {
    for (const Use& u : all)
      if (u.op != k) back = u.op;
    bool both =
        q.op == kAct_gelu || q.op == kAct_gelu_tanh || q.op == kAct_silu || q.op == kAct_mish;
    bool once = all.size() == 2 && is(back, "activation_backward") &&
                params<ActivationParams>(back).op == q.op && same(buffer(back, 1), x) &&
                !same(buffer(back, 0), x);
    if (!both || !once) back = -1;
    set_piece(&op, back >= 0 ? kPieceSlope : kPieceInput, q, input);
  }
  if (!clear(op, product, k)) return;
  if (back >= 0) {
    RecordedOp& b = ops[(size_t)back];
    ActivationParams& r = params<ActivationParams>(back);
    if (bits) {
      b.entry = from_output.get(kF32);
      b.buffers[1] = y;
      b.buffers[1].access = kRead;
      r = q;
      changed(b, "from the output");
    } else {
      r.op = kAct_product;
      changed(b, "from the derivative");
    }
  }
  join(op, k, product, "with the activation behind it");
}

// matmul, activation_backward -> matmul.
void Fuser::activation_gradient(int k) {
  if (!is(k, "activation_backward")) return;
  const ActivationParams q = params<ActivationParams>(k);
  RecordedBuffer dy = buffer(k, 0), saved = buffer(k, 1), dx = buffer(k, 2);
  int product = plain_product(dy, q.n);
  if (product < 0 || only_reader(dy) != k || dx.object == dy.object || dx.object == saved.object ||
      saved.object == dy.object)
    return;
  RecordedOp op = ops[(size_t)product];
  op.buffers.back() = dx;
  set_piece(&op, kPieceGrad, q, saved);
  if (!clear(op, product, k)) return;
  join(op, k, product, "with the gradient of the activation");
}

// matmul, sum with something else -> matmul that adds it.
void Fuser::residual(int k) {
  if (!is(k, "binary")) return;
  const ElementwiseParams& e = params<ElementwiseParams>(k);
  int64_t n = e.ndim == 1 ? e.shape[0] : 0;
  if (!adds(k, n)) return;
  RecordedBuffer sum = buffer(k, 2);
  int product = -1, side = 0;
  for (int i = 0; i < 2; ++i) {
    RecordedBuffer a = buffer(k, i), b = buffer(k, 1 - i);
    int from = a.object == b.object || sum.object == a.object || sum.object == b.object ||
                       only_reader(a) != k
                   ? -1
                   : plain_product(a, n);
    if (from > product) product = from, side = i;
  }
  if (product < 0) return;
  RecordedOp op = ops[(size_t)product];
  op.buffers.back() = sum;
  set_piece(&op, kPieceSum, ActivationParams{}, buffer(k, 1 - side));
  if (!clear(op, product, k)) return;
  join(op, k, product, "with the sum behind it");
}

// C = A B as C^T = B^T A^T.
void Fuser::turn(int k) {
  MatmulParams& p = params<MatmulParams>(k);
  std::swap(p.m, p.n);
  std::swap(p.a_rs, p.b_cs);
  std::swap(p.a_cs, p.b_rs);
  std::swap(p.c_rs, p.c_cs);
  std::swap(p.bias_rs, p.bias_cs);
  std::swap(buffer(k, 0), buffer(k, 1));
}

// Who reads array x, of (n, m) numbers, made by call k alone, also behind activations: products
// C^T = W x^T, and those C = x W^T that give the same bits that way. False: somebody else, too.
bool Fuser::find_products(int k, const RecordedBuffer& x, int64_t m, int64_t n,
                          std::vector<int>* found) const {
  std::vector<Use> readers;
  if (!temporary(x) || writer(x) != k || !reads(x, &readers) || readers.empty()) return false;
  for (const Use& u : readers) {
    const RecordedOp& op = ops[(size_t)u.op];
    if (is(u.op, "activation")) {
      const ActivationParams& q = *(const ActivationParams*)op.params.data();
      if (u.buffer != 0 || q.n != m * n || op.buffers[1].access != kWrite ||
          !find_products(u.op, op.buffers[1], m, n, found))
        return false;
      continue;
    }
    if (!is(u.op, "matmul")) return false;
    const MatmulParams& p = *(const MatmulParams*)op.params.data();
    if (p.batch != 1 || p.prepared || p.k != m) return false;
    const bool product = u.buffer == 1 && p.n == n && p.b_rs == 1 && p.b_cs == m && p.a_cs == 1 &&
                         p.c_rs == 1 && p.c_cs != 1;
    const bool other = u.buffer == 0 && p.m == n && p.a_cs == 1 && p.a_rs == m && p.b_rs == 1 &&
                       p.c_cs == 1 && p.n > 1 && p.k <= kOneBlock && p.bias_rs == 0 && !p.after;
    if (!product && !other) return false;
    found->push_back(u.op);
  }
  return true;
}

// matmul whose result C^T = W x^T only such products read: C is stored instead, as they want it.
// Neither is it transposed when it is stored nor again when it is packed.
void Fuser::transposed(int k) {
  if (!is(k, "matmul") || ops[(size_t)k].buffers.size() != 4) return;
  MatmulParams& p = params<MatmulParams>(k);
  if (p.batch != 1 || p.after || p.prepared || p.accumulate || p.m < 2 || p.n < 2 || p.a_cs != 1 ||
      p.c_rs != 1 || p.c_cs != p.m || p.m > kChainRows || p.m * p.n <= kChainLeast ||
      buffer(k, 3).access != kWrite)
    return;
  std::vector<int> found;
  if (!find_products(k, buffer(k, 3), p.m, p.n, &found)) return;
  p.c_rs = p.n;
  p.c_cs = 1;
  p.chain |= kChainDepth | kChainOut;
  changed(ops[(size_t)k],
          ops[(size_t)k].note ? "with the ReLU behind it, stored transposed" : "stored transposed");
  for (int i : found) {
    MatmulParams& q = params<MatmulParams>(i);
    if (q.c_cs == 1) turn(i);
    q.b_rs = q.n;
    q.b_cs = 1;
    q.chain |= kChainDepth | kChainIn;
    changed(ops[(size_t)i], ops[(size_t)i].note);
  }
  index();
}

}  // namespace gs
