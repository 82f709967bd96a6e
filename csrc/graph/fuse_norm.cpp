// Rewrites around normalisations.
#include "conv.h"
#include "elementwise.h"
#include "fuser.h"
#include "norm.h"

namespace gs {

// A plain channel_norm whose output only call `reader` reads.
bool Fuser::plain_norm(int norm, const RecordedBuffer& y, int reader, int64_t n) {
  if (!is(norm, "channel_norm")) return false;
  const ChannelNormParams& p = params<ChannelNormParams>(norm);
  return !p.relu && !p.single() && p.outer * p.rows * p.channels == n &&
         buffer(norm, 6).object < 0 && same(buffer(norm, 7), y) && temporary(y) &&
         only_reader(y) == reader && temporary(buffer(norm, 8));
}

// channel_norm, (add,) relu -> channel_norm; the same backward.
void Fuser::norm_relu(int k) {
  Relu r;
  if (!find_relu(k, &r) || !temporary(r.x) || only_reader(r.x) != k) return;
  int sum = writer(r.x), norm = -1;
  RecordedBuffer residual{-1, 0, kRead};
  if (adds(sum, r.n)) {
    for (int i = 0; i < 2 && norm < 0; ++i) {
      RecordedBuffer a = buffer(sum, i), b = buffer(sum, 1 - i);
      if (a.object == b.object || !plain_norm(writer(a), a, sum, r.n)) continue;
      norm = writer(a);
      residual = b;
    }
    if (norm < 0) return;
  } else {
    norm = sum;
    sum = -1;
    if (!plain_norm(norm, r.x, k, r.n)) return;
  }
  RecordedOp first = ops[(size_t)norm];
  ((ChannelNormParams*)first.params.data())->relu = 1;
  first.buffers[6] = residual;
  first.buffers[7] = r.y;
  if (!clear(ops[(size_t)norm], norm, k, sum)) return;
  if (sum >= 0 && !clear_reads(residual, sum, k)) return;
  if (r.backward >= 0 && !norm_relu_backward(r, norm, sum >= 0)) return;
  changed(first, sum >= 0 ? "with the sum and the ReLU behind it" : "with the ReLU behind it");
  ops[(size_t)k] = first;
  dead[(size_t)norm] = 1;
  if (sum >= 0) dead[(size_t)sum] = 1;
  index();
}

bool Fuser::norm_relu_backward(const Relu& r, int norm, bool residual) {
  std::vector<Use> all;
  if (!temporary(r.dx) || writer(r.dx) != r.backward || !reads(r.dx, &all)) return false;
  if (!residual && all.size() != 1) return false;
  int back = -1;
  for (const Use& u : all)
    if (is(u.op, "channel_norm_backward") && u.buffer == 0 &&
        same(buffer(u.op, 1), buffer(norm, 0)) && same(buffer(u.op, 2), buffer(norm, 8)))
      back = u.op;
  if (back < 0 || params<ChannelNormParams>(back).relu || buffer(back, 9).object >= 0) return false;
  RecordedOp second = ops[(size_t)back];
  ((ChannelNormParams*)second.params.data())->relu = 1;
  second.buffers[0] = r.dy;
  // Without a residual the kernel knows the sign from x; gamma and beta are still those of the
  // forward pass, or nothing could take the place of anything here.
  bool from_x = !residual && buffer(norm, 1).object >= 0 && buffer(norm, 2).object >= 0 &&
                same(second.buffers[3], buffer(norm, 1));
  if (from_x) {
    second.buffers[4] = buffer(norm, 2);
    if (!clear_reads(second.buffers[4], norm, back)) return false;
  } else {
    second.buffers[5] = r.y;
    second.buffers[5].access = kRead;
  }
  if (residual) second.buffers[9] = r.dx;
  if (!clear(second, r.backward, back)) {
    // others read dx before: then it has to be made first
    if (!residual || !clear(ops[(size_t)back], r.backward, back)) return false;
    changed(second, "with the sum's and the ReLU's");
    ops[(size_t)r.backward] = second;
    dead[(size_t)back] = 1;
    return true;
  }
  changed(second, residual ? "with the sum's and the ReLU's" : "with the ReLU's");
  ops[(size_t)back] = second;
  dead[(size_t)r.backward] = 1;
  return true;
}

// convolution, channel_norm of its output in training -> the statistics of chunks of rows are
// taken as soon as the convolution has made them. Counters of the rows that are there stay with
// the program and are zero between launches.
void Fuser::norm_stats(int k) {
  static const Kernel piece("channel_norm_piece");
  if (!is(k, "channel_norm")) return;
  ChannelNormParams& p = params<ChannelNormParams>(k);
  RecordedBuffer x = buffer(k, 0);
  int conv = writer(x);
  if (!p.training || p.parts || p.outer != 1 || p.groups != p.channels || !conv_y(conv)) return;
  ConvParams& c = params<ConvParams>(conv);
  if (c.after || c.groups != 1 || !same(buffer(conv, 3), x) || c.filters != p.channels ||
      c.n * c.out_h * c.out_w != p.rows)
    return;
  NormCut cut;
  cut.init(p);
  // panels of columns are at least 8 wide, but for the last
  const int64_t pieces = p.channels / 8 + 1;
  RecordedBuffer parts{add(Home::kArena, (size_t)(cut.chunks * 2 * p.channels * 8)), 0, kWrite};
  RecordedBuffer counters{add(Home::kConstant, (size_t)(cut.chunks * pieces * 4)), 0, kReadWrite};
  c.after = piece.get(kF32)->run;
  c.after_rows = cut.chunk * cut.fold;
  ops[(size_t)conv].buffers.push_back(parts);
  ops[(size_t)conv].buffers.push_back(counters);
  changed(ops[(size_t)conv], "with the statistics of its output");
  p.parts = 1;
  parts.access = kRead;
  ops[(size_t)k].buffers.push_back(parts);
  ops[(size_t)k].entry->plan(ops[(size_t)k].params.data(), &ops[(size_t)k].plan);
  index();
}

// gradient of a convolution, gradient of a batch norm with a sum and the ReLU -> the convolution
// writes the zeros of the ReLU's gradient, which then is the gradient of the other summand as it
// is. Batch norm's gradient needs no look at the ReLU's output any more and has one array less to
// write.
void Fuser::norm_gradient(int k) {
  if (!is(k, "channel_norm_backward")) return;
  ChannelNormParams q = params<ChannelNormParams>(k);
  const RecordedBuffer dy = buffer(k, 0), other = buffer(k, 9);
  RecordedBuffer y = buffer(k, 5);
  const int conv = temporary(dy) ? writer(dy) : -1;
  if (!q.relu || y.object < 0 || other.object < 0 || conv < 0 || only_reader(dy) != k) return;
  if (!conv_dx(conv)) return;
  ConvParams c = params<ConvParams>(conv);
  if (c.gate || !same(buffer(conv, 3), dy) ||
      c.n * c.in_h * c.in_w * c.channels != q.outer * q.rows * q.channels)
    return;
  RecordedOp op = ops[(size_t)conv], late;  // late: what is done earlier than by call k
  for (const RecordedBuffer& b : op.buffers)
    if (b.object == other.object || (b.object == y.object && (b.access & kWrite))) return;
  y.access = kRead;
  late.buffers = {y, other};
  if (y.object == other.object || y.object == dy.object || !clear(late, conv, k)) return;
  c.gate = 1;
  op.buffers[3] = other;
  op.buffers.push_back(y);
  memcpy(op.params.data(), &c, sizeof(c));
  changed(op, c.sum ? "with the other gradient and the ReLU's" : "with the ReLU's gradient");
  ops[(size_t)conv] = op;
  RecordedOp& norm = ops[(size_t)k];
  ((ChannelNormParams*)norm.params.data())->relu = 0;
  norm.buffers[0] = other;
  norm.buffers[0].access = kRead;
  norm.buffers[5] = norm.buffers[9] = RecordedBuffer{-1, 0, kRead};
  changed(norm, "without the ReLU's, which is there");
  index();
}

// row_norm_backward, sum with another gradient -> row_norm_backward that adds it.
void Fuser::norm_sum(int k) {
  if (!is(k, "binary")) return;
  const ElementwiseParams& e = params<ElementwiseParams>(k);
  int64_t n = e.ndim == 1 ? e.shape[0] : 0;
  if (!adds(k, n)) return;
  RecordedBuffer sum = buffer(k, 2);
  for (int i = 0; i < 2; ++i) {
    RecordedBuffer a = buffer(k, i), b = buffer(k, 1 - i);
    int norm = temporary(a) ? writer(a) : -1;
    if (!is(norm, "row_norm_backward") || a.object == b.object || sum.object == a.object ||
        only_reader(a) != k || !same(buffer(norm, 4), a))
      continue;
    const RowNormParams& p = params<RowNormParams>(norm);
    if (p.sum || p.rows * p.cols != n) continue;
    RecordedOp op = ops[(size_t)norm];
    ((RowNormParams*)op.params.data())->sum = 1;
    op.buffers[4] = sum;
    op.buffers.push_back(b);
    op.buffers.back().access = kRead;
    if (!clear(op, norm, k)) continue;
    join(op, k, norm, "with the other gradient");
    return;
  }
}

}  // namespace gs
