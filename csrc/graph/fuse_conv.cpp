// Rewrites around convolutions and pools.
#include <string.h>

#include "activation.h"
#include "conv.h"
#include "fuser.h"
#include "pool.h"

namespace gs {

// relu, max_pool, max_pool_backward, relu's backward -> max_pool, max_pool_backward.
// A window whose maximum is not positive keeps the index of no tap at all, so the gradient that
// goes back through the pool has the ReLU's zeros already.
void Fuser::relu_pool(int k) {
  Relu r;
  if (!find_relu(k, &r) || !temporary(r.y)) return;
  std::vector<int> all;
  if (!readers_of(r, &all) || all.size() != 1 || !is(all[0], "max_pool")) return;
  int pool = all[0], back = -1;
  PoolParams q = params<PoolParams>(pool);
  if (q.relu || q.n * q.h * q.w * q.c != r.n || !same(buffer(pool, 0), r.y)) return;
  RecordedBuffer tap = buffer(pool, 2);
  if (tap.object >= 0) {
    if (!temporary(tap) || writer(tap) != pool) return;
    std::vector<Use> use;
    if (!reads(tap, &use) || use.size() > 1) return;
    if (!use.empty()) {
      back = use[0].op;
      if (!is(back, "max_pool_backward")) return;
    }
  }
  if ((back >= 0) != (r.backward >= 0)) return;
  RecordedOp first = ops[(size_t)pool];
  first.buffers[0] = r.x;
  first.buffers[0].access = kRead;
  if (!clear(first, k, pool)) return;
  if (back >= 0) {
    RecordedBuffer between = buffer(back, 2);
    if (!temporary(between) || !same(between, r.dy) || writer(between) != back ||
        only_reader(between) != r.backward)
      return;
    RecordedOp second = ops[(size_t)back];
    second.buffers[2] = r.dx;
    if (!clear(second, back, r.backward)) return;
    changed(second, "with the ReLU before the pool");
    ops[(size_t)back] = second;
    dead[(size_t)r.backward] = 1;
  }
  ((PoolParams*)first.params.data())->relu = 1;
  changed(first, "with the ReLU before it");
  ops[(size_t)pool] = first;
  dead[(size_t)k] = 1;
  index();
}

bool Fuser::conv_y(int op) const {
  return is(op, "conv_winograd4_forward") || is(op, "conv_winograd2_forward") ||
         is(op, "conv_bf16_winograd4_forward") || is(op, "conv_polyphase_forward") ||
         is(op, "conv_bf16_polyphase_forward") || is(op, "conv_direct_forward");
}

bool Fuser::conv_dx(int op) const {
  return is(op, "conv_winograd4_backward") || is(op, "conv_winograd2_backward") ||
         is(op, "conv_bf16_winograd4_backward") || is(op, "conv_direct_backward_data") ||
         is(op, "conv_bf16_backward_data");
}

bool Fuser::conv_pool_dx(int op) const {
  return is(op, "conv_winograd4_pool_backward") || is(op, "conv_winograd2_pool_backward") ||
         is(op, "conv_bf16_winograd4_pool_backward");
}

// gradient of a convolution, sum with another gradient -> the convolution adds the other one before
// it stores. Operand i of the sum at call k is the convolution's. Sums in place: of the
// convolution's gradient there is nothing to do; where the sum took the place of the other one, the
// array of the convolution's gradient holds it from here on.
bool Fuser::add_in_conv(int k, int i) {
  const RecordedBuffer a = buffer(k, i), sum = buffer(k, 2);
  RecordedBuffer other = buffer(k, 1 - i);
  if (a.object == other.object || !temporary(a)) return false;
  int conv = -1;
  for (const Use& u : uses[(size_t)a.object]) {
    if (u.op > k && sum.object == a.object) continue;
    if (u.op == k) continue;
    if (conv >= 0 || !u.write || u.op > k) return false;
    conv = u.op;
  }
  if (!conv_dx(conv) && !conv_pool_dx(conv)) return false;
  ConvParams c = params<ConvParams>(conv);
  if (c.sum || c.gate || !same(buffer(conv, 3), a) || !adds(k, c.n * c.in_h * c.in_w * c.channels))
    return false;
  const bool moves = sum.object == other.object;
  if (moves &&
      (!temporary(sum) || objects[(size_t)sum.object].bytes != objects[(size_t)a.object].bytes))
    return false;
  // the call moves to where the sum was
  RecordedOp op = ops[(size_t)conv];
  if (!clear(op, conv, k)) return false;
  for (const RecordedBuffer& b : op.buffers)
    if (b.object >= 0 &&
        (b.object == other.object || (b.object == sum.object && sum.object != a.object)))
      return false;
  other.access = kRead;
  op.buffers[3] = moves ? a : sum;
  op.buffers[3].access = kWrite;
  op.buffers.push_back(other);
  c.sum = 1;
  memcpy(op.params.data(), &c, sizeof(c));
  if (moves)
    for (size_t n = (size_t)k + 1; n < ops.size(); ++n)
      for (RecordedBuffer& b : ops[n].buffers)
        if (b.object == sum.object) b.object = a.object;
  join(op, k, conv, "with the other gradient");
  return true;
}

void Fuser::gradient_sum(int k) {
  if (is(k, "binary") && !add_in_conv(k, 0)) add_in_conv(k, 1);
}

// gradient of a convolution, a ReLU's gradient -> the convolution writes zeros where the ReLU's
// output is not positive. Where the ReLU saved bits, none are made any more: its output is there,
// for the gradient of the convolution's weights.
void Fuser::conv_gradient(int k) {
  static const Kernel plain("activation");
  const bool bits = is(k, "activation_mask_backward");
  if (!bits && !is(k, "activation_backward")) return;
  RecordedBuffer dy = buffer(k, 0), y = buffer(k, 1), dx = buffer(k, 2);
  int conv = temporary(dy) ? writer(dy) : -1, forward = -1;
  if (conv < 0 || only_reader(dy) != k) return;
  if (!conv_dx(conv) && !conv_pool_dx(conv) && !is(conv, "conv_polyphase_backward_data") &&
      !is(conv, "conv_bf16_polyphase_backward_data"))
    return;
  if (bits) {
    forward = writer(y);
    if (!is(forward, "activation_mask") || !temporary(y) || only_reader(y) != k ||
        !same(buffer(forward, 2), y))
      return;
    y = buffer(forward, 1);
    if (y.object == buffer(forward, 0).object || writer(y) != forward) return;
  }
  const ActivationParams& q = params<ActivationParams>(bits ? forward : k);
  ConvParams c = params<ConvParams>(conv);
  // a sweep for the zeros alone would read more than the ReLU's gradient, which has bits
  if (is(conv, "conv_bf16_backward_data") && !c.sum) return;
  if (q.op != kAct_relu || c.gate || !same(buffer(conv, 3), dy) || y.object < 0 ||
      c.n * c.in_h * c.in_w * c.channels != q.n)
    return;
  RecordedOp op = ops[(size_t)conv], late;  // late: what is done earlier than by call k
  for (const RecordedBuffer& b : op.buffers)
    if (b.object == dx.object) return;
  y.access = kRead;
  late.buffers = {y, dx};
  if (dx.object == y.object || !clear(late, conv, k)) return;
  c.gate = 1;
  op.buffers[3] = dx;
  op.buffers.push_back(y);
  memcpy(op.params.data(), &c, sizeof(c));
  if (bits) {
    RecordedOp& first = ops[(size_t)forward];
    first.entry = plain.get(kF32);
    first.buffers.pop_back();
    first.entry->plan(first.params.data(), &first.plan);
  }
  join(op, conv, k, "with the ReLU's gradient");
}

// A 2 x 2 max-pool, stride 2, of the output of convolution p.
bool Fuser::pool_of(const PoolParams& q, const ConvParams& p) {
  return !q.adaptive && q.kh == 2 && q.kw == 2 && q.sh == 2 && q.sw == 2 && !q.ph && !q.pw &&
         q.dh == 1 && q.dw == 1 && q.index_bytes == 1 && q.oh == p.out_h / 2 &&
         q.ow == p.out_w / 2 && q.n == p.n && q.h == p.out_h && q.w == p.out_w &&
         q.c == p.filters && p.groups == 1;
}

// convolution of few channels, 2 x 2 max_pool -> conv_stem_pool; Winograd alike.
void Fuser::conv_pool(int k) {
  static const Kernel stem("conv_stem_pool"), four("conv_winograd4_pool"),
      two("conv_winograd2_pool"), half("conv_bf16_winograd4_pool");
  if (is(k, "max_pool_backward")) pool_conv_backward(k);
  if (!is(k, "max_pool")) return;
  const PoolParams& q = params<PoolParams>(k);
  RecordedBuffer x = buffer(k, 0);
  int conv = writer(x);
  const bool direct = is(conv, "conv_direct_forward"), four_ = is(conv, "conv_winograd4_forward");
  const bool half_ = is(conv, "conv_bf16_winograd4_forward");
  if (!direct && !four_ && !half_ && !is(conv, "conv_winograd2_forward")) return;
  if (!temporary(x) || only_reader(x) != k) return;
  ConvParams p = params<ConvParams>(conv);
  if (!pool_of(q, p) || p.activation != kConvLinear) return;
  if (direct && (p.channels > 4 || p.kernel_h > 7 || p.kernel_w > 7 || p.stride_h != 1 ||
                 p.stride_w != 1 || p.dilation_h != 1 || p.dilation_w != 1))
    return;
  RecordedOp op = ops[(size_t)conv];
  op.buffers[3] = buffer(k, 1);
  op.buffers.push_back(buffer(k, 2));
  if (!clear(op, conv, k)) return;
  if (q.relu) p.activation = kConvRelu;
  p.pool = !direct;
  op.entry = (direct ? stem : four_ ? four : half_ ? half : two).get(kF32);
  memcpy(op.params.data(), &p, sizeof(p));
  join(op, k, conv, q.relu ? "with the ReLU and the pool behind it" : "with the pool behind it");
}

// max_pool_backward, gradients of a convolution -> the gradients from the pool's.
void Fuser::pool_conv_backward(int k) {
  static const Kernel weight("conv_pool_backward_weight"), four("conv_winograd4_pool_backward"),
      two("conv_winograd2_pool_backward"), half("conv_bf16_winograd4_pool_backward");
  RecordedBuffer dy = buffer(k, 0), tap = buffer(k, 1), dx = buffer(k, 2);
  if (!temporary(dx) || writer(dx) != k) return;
  int conv = only_reader(dx);
  const bool direct = is(conv, "conv_direct_backward_weight");
  const bool four_ = is(conv, "conv_winograd4_backward");
  const bool half_ = is(conv, "conv_bf16_winograd4_backward");
  if (!direct && !four_ && !half_ && !is(conv, "conv_winograd2_backward")) return;
  ConvParams p = params<ConvParams>(conv);
  RecordedOp op = ops[(size_t)conv];
  const size_t from = direct ? 1 : 0;
  if (!same(op.buffers[from], dx) || !pool_of(params<PoolParams>(k), p) ||
      (direct && p.channels >= 16) || tap.object < 0 || dy.object < 0)
    return;
  for (const RecordedBuffer& b : op.buffers)
    if (b.object >= 0 && (b.object == dy.object || b.object == tap.object)) return;
  if (!clear_reads(dy, k, conv) || !clear_reads(tap, k, conv)) return;
  op.buffers[from] = dy;
  op.buffers.push_back(tap);
  p.pool = 1;
  op.entry = (direct ? weight : four_ ? four : half_ ? half : two).get(kF32);
  memcpy(op.params.data(), &p, sizeof(p));
  join(op, conv, k, "from the pool's gradient");
}

}  // namespace gs
