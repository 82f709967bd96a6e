// Rewrites of a recorded list of kernels, made before memory and members are planned: each finds a
// few calls that meet in arrays nobody else sees and puts fewer in their place. All of them leave
// the bits as they are: the fused kernels do the same operations in the same order.
//
// An array is temporary when it is made and used up within the step. A call may take the place of
// another when nothing between the two touches what it reads or writes.
#include "activation.h"
#include "elementwise.h"
#include "fuser.h"

namespace gs {

void Fuser::index() {
  uses.assign(objects.size(), {});
  for (size_t k = 0; k < ops.size(); ++k) {
    if (dead[k]) continue;
    for (size_t i = 0; i < ops[k].buffers.size(); ++i) {
      const RecordedBuffer& b = ops[k].buffers[i];
      if (b.object >= 0)
        uses[(size_t)b.object].push_back(Use{(int)k, (int)i, (b.access & kWrite) != 0});
    }
  }
}

bool Fuser::temporary(const RecordedBuffer& b) const {
  if (b.object < 0 || b.offset != 0) return false;
  const MemoryObject& o = objects[(size_t)b.object];
  return o.home == Home::kArena && !o.external && o.init_before < 0;
}

// The only call that writes the array, or -1.
int Fuser::writer(const RecordedBuffer& b) const {
  int found = -1;
  if (b.object < 0 || b.offset != 0 || objects[(size_t)b.object].init_before >= 0) return -1;
  for (const Use& u : uses[(size_t)b.object])
    if (u.write) {
      if (found >= 0 && found != u.op) return -1;
      found = u.op;
    }
  return found;
}

// Reads of an array, all of them from its start; false when one is not.
bool Fuser::reads(const RecordedBuffer& b, std::vector<Use>* out) const {
  out->clear();
  if (b.object < 0) return true;
  for (const Use& u : uses[(size_t)b.object]) {
    if (ops[(size_t)u.op].buffers[(size_t)u.buffer].offset != 0) return false;
    if (!u.write || ops[(size_t)u.op].buffers[(size_t)u.buffer].access == kReadWrite)
      out->push_back(u);
  }
  return true;
}

// Whether `op` may run anywhere from behind call `low` to before call `high`, call `but` apart.
bool Fuser::clear(const RecordedOp& op, int low, int high, int but) const {
  for (const RecordedBuffer& x : op.buffers)
    if (x.object >= 0 && objects[(size_t)x.object].init_before >= 0) return false;
  for (int k = low + 1; k < high; ++k) {
    for (const RecordedOp& next : follows[(size_t)k])
      if (conflict(op, next)) return false;
    if (dead[(size_t)k] || k == but) continue;
    if (ops[(size_t)k].check || conflict(op, ops[(size_t)k])) return false;
  }
  return true;
}

bool Fuser::conflict(const RecordedOp& a, const RecordedOp& b) {
  for (const RecordedBuffer& x : a.buffers)
    for (const RecordedBuffer& y : b.buffers)
      if (x.object >= 0 && x.object == y.object && ((x.access | y.access) & kWrite)) return true;
  return false;
}

// `op` at place `at` in the stead of what stood there and of call `gone`.
void Fuser::join(RecordedOp op, int at, int gone, const char* note) {
  changed(op, note);
  ops[(size_t)at] = std::move(op);
  dead[(size_t)gone] = 1;
  index();
}

// A ReLU at call k whose backward pass, if any, is known.
bool Fuser::find_relu(int k, Relu* r) {
  bool bits = is(k, "activation_mask");
  if (!bits && !is(k, "activation")) return false;
  if (params<ActivationParams>(k).op != kAct_relu) return false;
  r->forward = k;
  r->n = params<ActivationParams>(k).n;
  r->x = buffer(k, 0);
  r->y = buffer(k, 1);
  RecordedBuffer kept = bits ? buffer(k, 2) : r->y;
  if (r->x.object == r->y.object || writer(r->y) != k || writer(kept) != k) return false;
  if (bits && !temporary(kept)) return false;
  std::vector<Use> all;
  if (!reads(kept, &all)) return false;
  for (const Use& u : all) {
    bool back = bits ? is(u.op, "activation_mask_backward")
                     : is(u.op, "activation_backward") && u.buffer == 1 &&
                           params<ActivationParams>(u.op).op == kAct_relu;
    if (!back) {
      if (bits) return false;
      continue;
    }
    if (r->backward >= 0) return false;
    const ActivationParams& q = params<ActivationParams>(u.op);
    if (q.n != r->n || (bits && q.a != 0)) return false;
    r->backward = u.op;
    r->dy = buffer(u.op, 0);
    r->dx = buffer(u.op, 2);
    if (same(r->dy, r->dx)) return false;
  }
  return true;
}

// Who reads the output of a ReLU, its own backward pass left out.
bool Fuser::readers_of(const Relu& r, std::vector<int>* out) const {
  std::vector<Use> all;
  out->clear();
  if (!reads(r.y, &all)) return false;
  for (const Use& u : all)
    if (u.op != r.backward) out->push_back(u.op);
  return true;
}

int Fuser::only_reader(const RecordedBuffer& b) const {
  std::vector<Use> all;
  return reads(b, &all) && all.size() == 1 ? all[0].op : -1;
}

// Whether call k adds two arrays of n elements.
bool Fuser::adds(int k, int64_t n) {
  if (!is(k, "binary")) return false;
  const ElementwiseParams& e = params<ElementwiseParams>(k);
  return e.op == kAdd && e.ndim == 1 && e.shape[0] == n && e.strides[0][0] == 1 &&
         e.strides[1][0] == 1 && e.strides[2][0] == 1 && buffer(k, 0).object >= 0 &&
         buffer(k, 1).object >= 0;
}

// Whether nothing writes an array between two calls.
bool Fuser::clear_reads(const RecordedBuffer& b, int low, int high) const {
  for (const Use& u : uses[(size_t)b.object])
    if (u.write && u.op > low && u.op < high) return false;
  return true;
}

// A new array of the program.
int Fuser::add(Home home, size_t bytes) {
  MemoryObject o;
  o.home = home;
  o.bytes = bytes;
  if (home == Home::kConstant)
    o.init.assign(bytes, 0);
  else
    o.written = true;
  objects.push_back(std::move(o));
  return (int)objects.size() - 1;
}

// Takes the dead out and puts the new ones in.
void Fuser::finish() {
  std::vector<RecordedOp> next;
  std::vector<int> at(ops.size() + 1);
  for (size_t k = 0; k < ops.size(); ++k) {
    at[k] = (int)next.size();
    if (!dead[k]) next.push_back(std::move(ops[k]));
    for (RecordedOp& op : follows[k]) next.push_back(std::move(op));
  }
  for (MemoryObject& o : objects)
    if (o.init_before >= 0) o.init_before = at[(size_t)o.init_before];
  ops.swap(next);
}

void Program::fuse() {
  auto each = [this](bool on, void (Fuser::*rewrite)(int)) {
    if (!on) return;
    Fuser f(*this);
    for (int k = 0; k < (int)f.ops.size(); ++k)
      if (!f.dead[(size_t)k]) (f.*rewrite)(k);
    f.finish();
  };
  each(options.relu_pool, &Fuser::relu_pool);
  each(options.conv_pool, &Fuser::conv_pool);
  each(options.norm_relu, &Fuser::norm_relu);
  each(options.norm_stats, &Fuser::norm_stats);
  each(options.bias_relu, &Fuser::bias_relu);
  each(options.bias_activation, &Fuser::bias_activation);
  each(options.activation_gradient, &Fuser::activation_gradient);
  each(options.gradient_sum, &Fuser::gradient_sum);
  each(options.conv_gradient, &Fuser::conv_gradient);
  each(options.norm_gradient, &Fuser::norm_gradient);
  each(options.residual, &Fuser::residual);
  each(options.norm_sum, &Fuser::norm_sum);
  each(options.pieces, &Fuser::pieces);
  each(options.last_step, &Fuser::last_step);
  each(options.gradient_update, &Fuser::gradient_update);
  each(options.optimizer, &Fuser::optimizer);
  each(options.transposed, &Fuser::transposed);
  if (options.prepared_weights || options.prepared_updates) {
    Fuser f(*this);
    std::vector<RecordedOp> first;
    f.prepared_weights(options.prepared_weights, options.prepared_updates, &first);
    f.finish();
    ops.insert(ops.begin(), first.begin(), first.end());
    for (MemoryObject& o : objects)
      if (o.init_before >= 0) o.init_before += (int)first.size();
  }
}

}  // namespace gs
