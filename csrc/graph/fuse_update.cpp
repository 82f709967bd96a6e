// The optimizer: an update behind each gradient, or inside the product that makes it.
#include <string.h>

#include <algorithm>

#include "fuser.h"
#include "matmul.h"
#include "optimizer.h"

namespace gs {

namespace {

// An update of fewer elements than this waits for the next layer's.
constexpr int64_t kUpdate = 1 << 15;
// Products from which on pieces of a matrix product are no good (cpu/matmul/gemm.cpp).
constexpr double kMostUpdated = 1LL << 35;

}  // namespace

// One update of all parameters -> one for each layer, as soon as its gradients are there and
// nothing reads its weights any more.
void Fuser::optimizer(int k) {
  int scalars = 0;
  if (!scalars_of(ops[(size_t)k], &scalars) || scalars != kOptimizerScalars) return;
  const RecordedOp whole = ops[(size_t)k];
  const OptimizerParams& p = *(const OptimizerParams*)whole.params.data();
  if (whole.buffers[0].object >= 0 || p.count < 2) return;
  const int64_t* sizes = (const int64_t*)(&p + 1);
  auto part = [&](const std::vector<int>& which) { return update_of(whole, which); };
  // The last call before this one that each parameter has to wait for.
  std::vector<std::pair<int, int>> ready;
  for (int i = 0; i < (int)p.count; ++i) {
    RecordedOp one = part({i});
    int last = k - 1;
    while (last >= 0 && clear(one, last - 1, last + 1)) --last;
    ready.emplace_back(last, i);
  }
  std::stable_sort(ready.begin(), ready.end());
  std::vector<int> group;
  int64_t elements = 0;
  int groups = 0;
  for (size_t i = 0; i < ready.size(); ++i) {
    group.push_back(ready[i].second);
    elements += sizes[ready[i].second];
    bool last = i + 1 == ready.size();
    if (!last && (elements < kUpdate || ready[i + 1].first == ready[i].first)) continue;
    if (last && groups == 0) return;  // nothing to split
    RecordedOp op = part(group);
    changed(op, "right after its gradients");
    if (ready[i].first >= 0)
      follows[(size_t)ready[i].first].push_back(op);
    else
      follows[(size_t)k].push_back(op);
    group.clear();
    elements = 0;
    ++groups;
  }
  dead[(size_t)k] = 1;
  index();
}

// The call that updates some parameters, `which` of call `whole`.
RecordedOp Fuser::update_of(const RecordedOp& whole, const std::vector<int>& which) {
  const OptimizerParams& p = *(const OptimizerParams*)whole.params.data();
  int64_t each = ((int64_t)whole.buffers.size() - 1) / p.count;
  RecordedOp op = whole;
  op.params_size = sizeof(OptimizerParams) + which.size() * 8;
  op.params.resize(op.params_size / 8);
  op.buffers.assign(1, whole.buffers[0]);
  OptimizerParams* q = (OptimizerParams*)op.params.data();
  q->count = (int64_t)which.size();
  for (size_t i = 0; i < which.size(); ++i) {
    ((int64_t*)(q + 1))[i] = ((const int64_t*)(&p + 1))[which[i]];
    auto at = whole.buffers.begin() + 1 + which[i] * each;
    op.buffers.insert(op.buffers.end(), at, at + each);
  }
  return op;
}

// matmul that makes a gradient, update of the parameter -> matmul that updates what it has made
// of it. The gradient is there afterwards as before: others may read it.
void Fuser::gradient_update(int k) {
  int scalars = 0;
  if (!scalars_of(ops[(size_t)k], &scalars) || scalars != kOptimizerScalars ||
      ops[(size_t)k].entry->dtype != kF32 || buffer(k, 0).object >= 0)
    return;
  const OptimizerParams& p = params<OptimizerParams>(k);
  const int64_t count = p.count, each = ((int64_t)ops[(size_t)k].buffers.size() - 1) / count;
  if (each - 1 > kMaxUpdated) return;
  bool all = true;
  if (!options.gradient_update_anyway && machine().near) {
    // What the update touches comes from a fast third cache within a tenth of the product's time;
    // a product by itself is dealt out more cheaply (gemm_dealt) and gains more than that. (But
    // not a long gradient that is read in place: its pieces share nothing, with an update or not.)
    const int64_t* sizes = (const int64_t*)(&p + 1);
    int64_t touched = 0;
    for (int64_t i = 0; i < count; ++i) touched += sizes[i] * each * (int64_t)sizeof(float);
    all = touched > machine().stream_program;
  }
  std::vector<int> left;
  for (int i = 0; i < (int)count; ++i)
    if (!merge_update(k, update_of(ops[(size_t)k], {i}), all)) left.push_back(i);
  if ((int64_t)left.size() == count) return;
  if (left.empty()) {
    dead[(size_t)k] = 1;
  } else {
    RecordedOp rest = update_of(ops[(size_t)k], left);
    changed(rest, ops[(size_t)k].note);
    ops[(size_t)k] = std::move(rest);
  }
  index();
}

// one: the update of one parameter, a part of call k. any: not only to a gradient in place.
bool Fuser::merge_update(int k, const RecordedOp& one, bool any) {
  static const Kernel kernel("matmul_update");
  const RecordedBuffer gradient = one.buffers[2];
  const int from = writer(gradient);
  const OptimizerParams& rule = *(const OptimizerParams*)one.params.data();
  const int64_t size = ((const int64_t*)(&rule + 1))[0];
  if (from >= k || !is(from, "matmul") || !same(ops[(size_t)from].buffers.back(), gradient))
    return false;
  const MatmulParams& p = params<MatmulParams>(from);
  if (p.act != kActNone || p.after || p.batch != 1 || p.k < 1 || p.m * p.n != size ||
      size < kUpdate || !((p.c_cs == 1 && p.c_rs == p.n) || (p.c_rs == 1 && p.c_cs == p.m)) ||
      (double)size * (double)p.k >= kMostUpdated)
    return false;
  if (!any && !(in_place_gradient(p, sizeof(float)) && p.n >= 128 * p.members)) return false;
  // The place behind all that the update has to wait for.
  RecordedOp changes = one;
  changes.buffers.erase(changes.buffers.begin() + 2);
  int at = k - 1;
  while (at > from && clear(one, at - 1, at + 1)) --at;
  RecordedOp op = ops[(size_t)from];
  if (conflict(changes, op) || !clear(op, from - 1, at + 1, from) ||
      (at == from && !clear(one, from - 1, from + 1, from)))
    return false;
  op.entry = kernel.get(kF32);
  MatmulUpdateParams q{};
  q.product = p;
  q.update = one.entry->run;
  q.updated = (int64_t)changes.buffers.size() - 1;
  q.rule = rule;
  q.size = size;
  op.buffers.insert(op.buffers.end(), changes.buffers.begin() + 1, changes.buffers.end());
  op.params_size = sizeof(q);
  op.params.assign((sizeof(q) + 7) / 8, 0);
  memcpy(op.params.data(), &q, sizeof(q));
  changed(op, "with the update of its parameter");
  if (at == from) {
    ops[(size_t)from] = std::move(op);
  } else {
    follows[(size_t)at].push_back(std::move(op));
    dead[(size_t)from] = 1;
  }
  index();
  return true;
}

}  // namespace gs
