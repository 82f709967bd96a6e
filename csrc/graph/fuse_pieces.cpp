// Sums of arrays of zeros with a piece in each, as gradients of slices are: pieces written in
// place.
#include <string.h>

#include <algorithm>

#include "elementwise.h"
#include "fuser.h"

namespace gs {

namespace {

// Elements of a sum whose pieces are looked at one by one.
constexpr int64_t kMaxPieces = 1 << 23;
const char* const kPiece = "a piece of a sum, written in place";

}  // namespace

// A temporary of n elements that is, before call `reader`, zeros but for what copies put into
// parts of it. used: call `reader` is the last one to see it.
bool Fuser::pieces_of(const RecordedBuffer& b, int64_t n, int reader, bool used, int* fill,
                      std::vector<int>* copies) {
  *fill = -1;
  copies->clear();
  if (!temporary(b)) return false;
  for (const Use& u : uses[(size_t)b.object]) {
    const RecordedOp& op = ops[(size_t)u.op];
    if (u.op == reader) continue;
    if (u.op > reader) {
      if (used) return false;
      break;
    }
    if (op.buffers[(size_t)u.buffer].offset % 4) return false;
    if (*fill < 0) {
      if (!is(u.op, "fill")) return false;
      const FillParams& f = params<FillParams>(u.op);
      if (f.n != n || f.start != 0 || __builtin_signbit(f.start)) return false;
      *fill = u.op;
    } else if ((is(u.op, "copy") && u.buffer == 1 && params<CopyParams>(u.op).from == kF32) ||
               (is(u.op, "binary") && u.buffer == 2 && op.note == kPiece)) {
      copies->push_back(u.op);
    } else {
      return false;
    }
  }
  return *fill >= 0;
}

// Counts the elements that a copy writes; false when one was there before or lies outside.
bool Fuser::mark(int k, std::vector<char>* seen, int64_t* count) {
  const bool plain = is(k, "copy");
  const CopyParams& c = params<CopyParams>(k);
  const ElementwiseParams& e = params<ElementwiseParams>(k);
  int nd = plain ? c.ndim : e.ndim;
  const int64_t *shape = plain ? c.shape : e.shape, *step = plain ? c.out_strides : e.strides[2];
  int64_t index[kMaxDims] = {}, at = ops[(size_t)k].buffers[plain ? 1 : 2].offset / 4;
  for (int d = 0; d < nd; ++d)
    if (shape[d] == 0) return true;
  for (;;) {
    if (at < 0 || at >= (int64_t)seen->size() || (*seen)[(size_t)at]) return false;
    (*seen)[(size_t)at] = 1;
    ++*count;
    int d = nd - 1;
    for (; d >= 0; --d) {
      at += step[d];
      if (++index[d] < shape[d]) break;
      at -= shape[d] * step[d];
      index[d] = 0;
    }
    if (d < 0) return true;
  }
}

// Two arrays of zeros with a piece copied into each, added -> the pieces written into one. A
// piece is written as x + 0, so that -0 becomes 0 as it does in the sum.
void Fuser::pieces(int k) {
  static const Kernel adding("binary");
  if (!is(k, "binary")) return;
  int64_t n = params<ElementwiseParams>(k).shape[0];
  if (!adds(k, n) || n > kMaxPieces) return;
  RecordedBuffer a = buffer(k, 0), b = buffer(k, 1), sum = buffer(k, 2);
  int fill_a, fill_b;
  std::vector<int> in_a, in_b;
  bool into_a = sum.object == a.object, into_b = sum.object == b.object;
  if (a.object == b.object || !temporary(sum) || !pieces_of(a, n, k, !into_a, &fill_a, &in_a) ||
      !pieces_of(b, n, k, !into_b, &fill_b, &in_b))
    return;
  if (!into_a && !into_b && uses[(size_t)sum.object][0].op != k) return;
  std::vector<char> seen((size_t)n, 0);
  int64_t count = 0;
  in_a.insert(in_a.end(), in_b.begin(), in_b.end());
  for (int c : in_a)
    if (!mark(c, &seen, &count)) return;
  for (int c : in_a) {
    RecordedOp& op = ops[(size_t)c];
    if (is(c, "copy")) {
      const CopyParams p = params<CopyParams>(c);
      ElementwiseParams e{};
      e.op = kAdd;
      e.ndim = p.ndim;
      for (int d = 0; d < p.ndim; ++d) {
        e.shape[d] = p.shape[d];
        e.strides[0][d] = p.in_strides[d];
        e.strides[2][d] = p.out_strides[d];
      }
      op.entry = adding.get(kF32);
      op.params_size = sizeof(e);
      op.params.assign((sizeof(e) + 7) / 8, 0);
      memcpy(op.params.data(), &e, sizeof(e));
      op.buffers.insert(op.buffers.begin() + 1, RecordedBuffer{-1, 0, kRead});
      changed(op, kPiece);
    }
    op.buffers[2].object = sum.object;
  }
  // zeros first, unless the pieces leave no room for them
  int first = std::min(fill_a, fill_b), other = std::max(fill_a, fill_b);
  ops[(size_t)first].buffers[0] = sum;
  dead[(size_t)other] = dead[(size_t)k] = 1;
  if (count == n) dead[(size_t)first] = 1;
  index();
}

}  // namespace gs
