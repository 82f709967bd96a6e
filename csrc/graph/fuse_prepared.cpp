// Weights that kernels transform or pack before they multiply by them: kept from replay to replay.
#include <string.h>

#include "conv.h"
#include "fuser.h"
#include "matmul.h"
#include "optimizer.h"
#include "prepared.h"

namespace gs {

namespace {

// The most bytes of all prepared weights of a program with the copies that they are compared with.
// Transformed filters are 4 times the weights: those of inference have to stay in a second cache,
// or it takes longer to read them than to make them.
constexpr int64_t kPreparedBytes = 8 << 20, kPreparedFilters = 1 << 19;

}  // namespace

// Whether call k, which multiplies by its second buffer, can have that prepared, and how.
// form->at: the bytes that it takes.
bool Fuser::form_of(int k, PreparedParams* p, WeightForm* form) {
  static const Kernel four("prepare_winograd4"), two("prepare_winograd2"),
      four_data("prepare_winograd4_data"), two_data("prepare_winograd2_data"),
      packed("prepare_matmul");
  static_assert(sizeof(MatmulParams) <= sizeof(form->params), "kFormWords");
  static_assert(sizeof(ConvParams) <= sizeof(form->params), "kFormWords");
  const KernelEntry* entry = nullptr;
  *form = WeightForm{};
  Plan plan{1, 0, 0};
  if (is(k, "matmul")) {
    MatmulParams m = params<MatmulParams>(k);
    const bool turned = m.b_rs == 1 && m.n > 1;
    p->rows = turned ? m.n : m.k;
    p->row = turned ? m.k : m.n;
    if ((turned ? m.b_cs : m.b_rs) != p->row || turned == (m.b_cs == 1)) return false;
    m.prepared = 1;
    memcpy(form->params, &m, sizeof(m));
    entry = packed.get(kF32);
    entry->plan(&m, &plan);
  } else {
    const bool four_ = is(k, "conv_winograd4_forward") || is(k, "conv_winograd4_pool");
    const bool two_ = is(k, "conv_winograd2_forward") || is(k, "conv_winograd2_pool");
    const bool four_back =
        is(k, "conv_winograd4_backward") || is(k, "conv_winograd4_pool_backward");
    const bool two_back = is(k, "conv_winograd2_backward") || is(k, "conv_winograd2_pool_backward");
    if (!four_ && !two_ && !four_back && !two_back) return false;
    const ConvParams& c = params<ConvParams>(k);
    ConvParams small{};  // what the form depends on
    small.channels = c.channels;
    small.filters = c.filters;
    p->rows = c.filters;
    p->row = 9 * c.channels;
    memcpy(form->params, &small, sizeof(small));
    entry = (four_ ? four : two_ ? two : four_back ? four_data : two_data).get(kF32);
    entry->plan(&c, &plan);
  }
  form->write = entry->run;
  form->at = (int64_t)plan.scratch;
  return plan.scratch > 0;
}

// The call that changes a weight of n elements, alone, and that is an update without a norm: -1
// when nothing does, -2 when something else does.
int Fuser::update_of_weight(const RecordedBuffer& w, int64_t n, int* index) {
  int found = -1;
  for (const Use& u : uses[(size_t)w.object]) {
    if (!u.write) continue;
    if (found >= 0) return -2;
    found = u.op;
    const RecordedOp& op = ops[(size_t)u.op];
    if (!op.entry || op.entry->dtype != kF32 || !same(op.buffers[(size_t)u.buffer], w)) return -2;
    if (is(u.op, "matmul_update")) {
      const MatmulUpdateParams& m = params<MatmulUpdateParams>(u.op);
      if (u.buffer != 4 || m.size != n) return -2;
      continue;
    }
    int scalars = 0;
    if (!scalars_of(ops[(size_t)u.op], &scalars) || scalars != kOptimizerScalars ||
        op.buffers[0].object >= 0)
      return -2;
    const OptimizerParams& p = params<OptimizerParams>(u.op);
    const int64_t each = ((int64_t)op.buffers.size() - 1) / p.count;
    *index = (int)((u.buffer - 1) / each);
    if ((u.buffer - 1) % each || each > kMaxUpdated + 1 || ((const int64_t*)(&p + 1))[*index] != n)
      return -2;
  }
  return found;
}

// Gives each its memory, as long as there is room.
void Fuser::place_prepared(std::vector<Prepared>* all) {
  int64_t used[2] = {0, 0};
  std::vector<Prepared> placed;
  for (Prepared& x : *all) {
    int64_t at = 0;
    auto take = [&](int64_t bytes) {
      const int64_t was = at;
      at += (bytes + 63) / 64 * 64;
      return was;
    };
    take((x.p.rows + kPreparedRows - 1) / kPreparedRows * 4);
    x.p.copy_at = take(x.p.rows * x.p.row * 4);
    for (int i = 0; i < (int)x.p.forms; ++i) x.p.form[i].at = take(x.p.form[i].at);
    const bool filters = x.update < 0 && !is(x.readers[0].first, "matmul");
    if (used[filters] + at > (filters ? kPreparedFilters : kPreparedBytes)) continue;
    used[filters] += at;
    x.kept = RecordedBuffer{add(Home::kConstant, 0), 0, kReadWrite};
    objects.back().bytes = (size_t)at;
    objects.back().kept = true;
    placed.push_back(x);
  }
  all->swap(placed);
}

// Weights that the program does not change (`fixed`) stay prepared from replay to replay; for
// those that an update changes (`updated`) it writes what the next replay multiplies by. One call
// at the start looks whether the weights are still the same.
void Fuser::prepared_weights(bool fixed, bool updated, std::vector<RecordedOp>* first) {
  static const Kernel check("prepared_weights");
  std::vector<Prepared> all;
  for (int k = 0; k < (int)ops.size(); ++k) {
    PreparedParams p{};
    WeightForm form;
    if (!form_of(k, &p, &form)) continue;
    const RecordedBuffer w = buffer(k, 1);
    if (w.object < 0 || w.offset % 4) continue;
    const MemoryObject& o = objects[(size_t)w.object];
    if (o.home != Home::kFixed || w.offset + p.rows * p.row * 4 > (int64_t)o.bytes) continue;
    Prepared* at = nullptr;
    for (Prepared& x : all)
      if (same(x.weight, w)) at = &x;
    if (!at) {
      int index = -1, update = update_of_weight(w, p.rows * p.row, &index);
      if (update == -2 || !(update < 0 ? fixed : updated) || !fits(update, p)) continue;
      all.push_back(Prepared{w, {-1, 0, kRead}, p, {}, update, index});
      at = &all.back();
    }
    PreparedParams& q = at->p;
    if (q.rows != p.rows || q.row != p.row) continue;
    int which = -1;
    for (int i = 0; i < (int)q.forms; ++i)
      if (q.form[i].write == form.write &&
          !memcmp(q.form[i].params, form.params, sizeof(form.params)))
        which = i;
    if (which < 0) {
      if (q.forms == kMaxForms) continue;
      which = (int)q.forms++;
      q.form[which] = form;
    }
    at->readers.emplace_back(k, which);
  }
  place_prepared(&all);
  if (all.empty()) return;

  RecordedOp look;
  look.entry = check.get(kF32);
  look.params_size = sizeof(PreparedCheckParams) + all.size() * sizeof(PreparedParams);
  look.params.assign(look.params_size / 8, 0);
  ((PreparedCheckParams*)look.params.data())->count = (int64_t)all.size();
  PreparedParams* list = (PreparedParams*)(look.params.data() + sizeof(PreparedCheckParams) / 8);
  for (Prepared& x : all) {
    *list++ = x.p;
    look.buffers.push_back(RecordedBuffer{x.weight.object, x.weight.offset, kRead});
    look.buffers.push_back(x.kept);
    for (auto& r : x.readers) {
      RecordedOp& op = ops[(size_t)r.first];
      const int64_t units = (x.p.rows + kPreparedRows - 1) / kPreparedRows;
      if (is(r.first, "matmul"))
        params<MatmulParams>(r.first).prepared = units;
      else
        params<ConvParams>(r.first).prepared = (int32_t)units;
      op.buffers.push_back(RecordedBuffer{x.kept.object, 0, kRead});
      op.buffers.push_back(RecordedBuffer{x.kept.object, x.p.form[r.second].at, kRead});
      changed(op, op.note ? op.note : "with prepared weights");
    }
  }
  for (int k = 0; k < (int)ops.size(); ++k) prepare_in_update(k, all);
  changed(look, "compared with what was prepared");
  first->push_back(std::move(look));
}

// Whether pieces of an update are whole rows of the weight.
bool Fuser::fits(int update, const PreparedParams& p) {
  if (!is(update, "matmul_update")) return true;
  const MatmulParams& m = params<MatmulUpdateParams>(update).product;
  return p.row == (m.c_cs == 1 ? m.n : m.m);
}

// Call k, an update, writes the forms of those of `all` that it changes.
void Fuser::prepare_in_update(int k, const std::vector<Prepared>& all) {
  static const Kernel kernel("prepared_update");
  std::vector<char> taken;
  for (const Prepared& x : all) {
    if (x.update != k) continue;
    if (is(k, "matmul_update")) {
      RecordedOp& op = ops[(size_t)k];
      params<MatmulUpdateParams>(k).prepared = x.p;
      op.buffers.push_back(x.kept);
      changed(op, "with the update of its parameter, which is prepared");
      return;
    }
    const RecordedOp one = update_of(ops[(size_t)k], {x.index});
    PreparedUpdateParams q{};
    q.prepared = x.p;
    q.update = one.entry->run;
    q.states = (int64_t)one.buffers.size() - 3;
    q.rule = *(const OptimizerParams*)one.params.data();
    q.size = x.p.rows * x.p.row;
    RecordedOp op;
    op.entry = kernel.get(kF32);
    op.params_size = sizeof(q);
    op.params.assign((sizeof(q) + 7) / 8, 0);
    memcpy(op.params.data(), &q, sizeof(q));
    op.buffers.assign(one.buffers.begin() + 1, one.buffers.end());
    op.buffers.push_back(x.kept);
    changed(op, "with what the next step multiplies by");
    follows[(size_t)k].push_back(std::move(op));
    taken.resize((size_t)params<OptimizerParams>(k).count, 0);
    taken[(size_t)x.index] = 1;
  }
  if (taken.empty()) return;
  std::vector<int> left;
  for (size_t i = 0; i < taken.size(); ++i)
    if (!taken[i]) left.push_back((int)i);
  if (left.empty()) {
    dead[(size_t)k] = 1;
    return;
  }
  RecordedOp rest = update_of(ops[(size_t)k], left);
  changed(rest, ops[(size_t)k].note);
  ops[(size_t)k] = std::move(rest);
}

}  // namespace gs
