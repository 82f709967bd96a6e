// From a recording to a program: where each array lives, which members run which kernel, and where
// they wait for each other.
//
// Memory: an array lives from the first kernel that touches it to the last; one that takes over
// the memory of an input (an elementwise kernel that is the last to read it) is a part of that
// input's life. Arrays are placed by falling size at the lowest free offset (best fit among the
// gaps) of one arena. Members: kernels keep their order. A kernel too small to be shared runs on
// one member: the one that made what it reads, or, when it depends on nothing since the last
// barrier, the least loaded one, so that independent small kernels run side by side. A barrier
// stands before a kernel that touches memory which another member has touched since the last one
// (one of the two writing).
#include <string.h>

#include <algorithm>

#include "conv.h"
#include "elementwise.h"
#include "graph.h"
#include "matmul.h"
#include "norm.h"

namespace gs {

namespace {

constexpr int64_t kAlign = 128;  // caches fetch, and kernels ask for, pairs of lines
// Within a team that is awake a second member costs a barrier, not a wake-up.
constexpr int64_t kTeamWork = 1500;
// Nanoseconds: to call a kernel, to wait for each other, to call the team together.
constexpr int64_t kStepCost = 50, kBarrierCost = 1000, kWakeCost = 5000;
constexpr int64_t kBrief = 20000;  // a program that is not worth letting go of the interpreter for

int64_t rounded(size_t n) { return ((int64_t)n + kAlign - 1) / kAlign * kAlign; }

struct CopyInit {
  const char* from;
  size_t bytes;
};
void run_init(const void* params, void* const* buf, const Ctx*) {
  const CopyInit& p = *(const CopyInit*)params;
  memcpy(buf[0], p.from, p.bytes);
}

struct CheckCall {
  CheckFn fn;
  const int64_t* args;
  std::atomic<int>* failed;
  int op;
};
void run_check(const void* params, void* const* buf, const Ctx*) {
  const CheckCall& p = *(const CheckCall*)params;
  if (!p.fn(buf[0], p.args)) p.failed->store(p.op);
}

// Whether a kernel may write its output over input i: it reads the same element before it writes
// one, and nothing else of it after that.
bool writes_over(const RecordedOp& op, int i, int* out) {
  if (!op.entry) return false;
  const char* n = op.entry->name;
  auto is = [n](const char* name) { return !strcmp(n, name); };
  *out = 1;
  if (is("activation") || is("activation_mask") || is("dropout")) return i == 0;
  *out = 2;
  if (is("activation_backward") || is("activation_mask_backward")) return i == 0;
  const bool norm = is("channel_norm");
  if (norm || is("channel_norm_backward")) {
    // x or the residual, dy or x: what else is read of them is read before a barrier
    *out = norm ? 7 : 6;
    return !((const ChannelNormParams*)op.params.data())->single() &&
           (i == 0 || i == (norm ? 6 : 1));
  }
  *out = 8;  // the gradients of gates, which are read element by element before them
  if (is("recurrent_backward")) return i == 0;
  int inputs = is("unary") ? 1 : is("binary") ? 2 : is("ternary") ? 3 : 0;
  if (i >= inputs || op.params_size != sizeof(ElementwiseParams)) return false;
  *out = inputs;
  const ElementwiseParams& e = *(const ElementwiseParams*)op.params.data();
  return e.ndim == 1 && e.strides[i][0] == 1 && e.strides[inputs][0] == 1;
}

}  // namespace

Program::~Program() {
  if (arena) pool_give(arena, arena_bytes);
  if (scratch) pool_give(scratch, scratch_total);
  for (size_t i = 0; i < constants.size(); ++i)
    if (constants[i]) pool_give(constants[i], objects[i].bytes);
  if (random_slot >= 0) slot_free(random_slot);
}

void Program::place_memory() {
  unshared_bytes = constant_bytes = 0;
  for (MemoryObject& o : objects) {
    if (o.first < 0) continue;
    if (o.home == Home::kArena && !o.written && !o.external) o.home = Home::kConstant;
    if (o.home == Home::kConstant) constant_bytes += o.bytes;
    if (o.home == Home::kArena) unshared_bytes += (size_t)rounded(o.bytes);
  }
  arena_bytes = place(false);
  if (!options.in_place || !options.reuse) return;
  // Longer lives leave fewer gaps: only where the arena does not grow.
  std::vector<int64_t> places;
  for (const MemoryObject& o : objects) places.push_back(o.place);
  size_t shared = place(true);
  if (shared <= arena_bytes) {
    arena_bytes = shared;
    return;
  }
  for (size_t i = 0; i < objects.size(); ++i) {
    objects[i].place = places[i];
    objects[i].over = -1;
  }
  in_place = 0;
}

size_t Program::place(bool together) {
  struct Life {
    int first, last;
    int64_t bytes;
  };
  std::vector<Life> life;
  for (const MemoryObject& o : objects)
    life.push_back(
        Life{o.first, o.last, o.home == Home::kArena && o.first >= 0 ? rounded(o.bytes) : -1});
  // One that takes over another's memory is a part of its life; chains lead to the first.
  auto root = [this](int i) {
    while (objects[(size_t)i].over >= 0) i = objects[(size_t)i].over;
    return i;
  };
  for (size_t k = 0; together && k < ops.size(); ++k) {
    const RecordedOp& op = ops[k];
    int out = 0;
    for (int i = 0; i < (int)op.buffers.size(); ++i) {
      if (!writes_over(op, i, &out)) continue;
      const RecordedBuffer &a = op.buffers[(size_t)i], &b = op.buffers[(size_t)out];
      if (a.object < 0 || b.object < 0 || a.object == b.object || a.offset || b.offset) continue;
      const MemoryObject &x = objects[(size_t)a.object], &y = objects[(size_t)b.object];
      if (x.home != Home::kArena || y.home != Home::kArena || x.last != (int)k ||
          y.first != (int)k || rounded(x.bytes) != rounded(y.bytes) || y.over >= 0)
        continue;
      bool other = false;  // reads other elements of it, too
      for (int j = 0, at = 0; j < (int)op.buffers.size(); ++j)
        other = other || (op.buffers[(size_t)j].object == a.object &&
                          (op.buffers[(size_t)j].offset || !writes_over(op, j, &at)));
      if (other) continue;
      objects[(size_t)b.object].over = a.object;
      life[(size_t)root(a.object)].last = y.last;
      life[(size_t)b.object].bytes = -1;
      ++in_place;
      break;
    }
  }
  std::vector<int> order;
  for (size_t i = 0; i < objects.size(); ++i)
    if (life[i].bytes >= 0) order.push_back((int)i);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return life[(size_t)a].bytes > life[(size_t)b].bytes; });
  std::vector<int> placed;
  int64_t end = 0;
  for (int i : order) {
    const Life& o = life[(size_t)i];
    std::vector<std::pair<int64_t, int64_t>> taken;
    for (int j : placed) {
      const Life& p = life[(size_t)j];
      if (!options.reuse || (p.first <= o.last && o.first <= p.last))
        taken.emplace_back(objects[(size_t)j].place, objects[(size_t)j].place + p.bytes);
    }
    std::sort(taken.begin(), taken.end());
    int64_t at = 0, best = -1, best_gap = INT64_MAX;
    for (auto& t : taken) {
      if (t.first - at >= o.bytes && t.first - at < best_gap) best = at, best_gap = t.first - at;
      at = std::max(at, t.second);
    }
    objects[(size_t)i].place = best >= 0 ? best : at;
    end = std::max(end, objects[(size_t)i].place + o.bytes);
    placed.push_back(i);
  }
  for (size_t i = 0; i < objects.size(); ++i)
    if (objects[i].over >= 0) objects[i].place = objects[(size_t)root((int)i)].place;
  return (size_t)end;
}

void Program::resolve() {
  if (arena_bytes) {
    arena = (char*)pool_take(arena_bytes);
    if (arena) memset(arena, 0, arena_bytes);  // takes the page faults now
  }
  by_object.assign(objects.size(), {});
  bound.assign(objects.size(), nullptr);
  constants.assign(objects.size(), nullptr);
  for (size_t i = 0; i < objects.size(); ++i) {
    MemoryObject& o = objects[i];
    if (o.first < 0) continue;
    if (o.home == Home::kArena) {
      bound[i] = arena + o.place;
    } else if (o.home == Home::kConstant) {
      constants[i] = bound[i] = (char*)pool_take(o.bytes);
      if (bound[i] && o.kept) memset(bound[i], 0, o.bytes);
      if (bound[i] && !o.init.empty()) memcpy(bound[i], o.init.data(), o.init.size());
    } else {
      bound[i] = o.base;
    }
  }
  size_t count = 0;
  for (auto& op : ops) count += op.buffers.size();
  pointers.assign(count, nullptr);
  void** at = pointers.data();
  for (size_t k = 0; k < ops.size(); ++k) {
    RecordedOp& op = ops[k];
    Step s{};
    s.op = (int)k;
    s.buffers = at;
    s.nt = 1;
    for (auto& b : op.buffers) {
      if (b.object >= 0) {
        *at = bound[(size_t)b.object] + b.offset;
        by_object[(size_t)b.object].push_back(Patch{at, b.offset});
      }
      ++at;
    }
    if (op.entry) {
      s.run = op.entry->run;
    } else if (op.check) {
      std::vector<int64_t> args = op.params;
      op.params.resize(sizeof(CheckCall) / 8 + args.size());
      int64_t* tail = op.params.data() + sizeof(CheckCall) / 8;
      memcpy(tail, args.data(), args.size() * 8);
      CheckCall c{op.check, tail, &failed, (int)k};
      memcpy(op.params.data(), &c, sizeof(c));
      s.run = run_check;
    } else {
      const MemoryObject& o = objects[(size_t)op.init];
      CopyInit c{o.init.data(), o.init.size()};
      op.params.resize(sizeof(c) / 8);
      memcpy(op.params.data(), &c, sizeof(c));
      s.run = run_init;
    }
    s.params = op.params.data();
    steps.push_back(s);
  }
}

namespace {

struct Touch {
  int64_t space, low, high;  // space 0: the arena, -1: the team's scratch, else the object + 1
  bool write;
  int who;  // -1: the team
};

}  // namespace

void Program::schedule() {
  // Checks of what no kernel of the program has written yet are made before anything runs.
  std::vector<Step> kept;
  std::vector<char> written(objects.size(), 0);
  for (Step& s : steps) {
    RecordedOp& op = ops[(size_t)s.op];
    const MemoryObject* first = op.check ? &objects[(size_t)op.buffers[0].object] : nullptr;
    if (first && !written[(size_t)op.buffers[0].object] && first->home != Home::kArena) {
      prologue.push_back(s.op);
    } else {
      kept.push_back(s);
    }
    for (auto& b : op.buffers)
      if (b.object >= 0 && (b.access & kWrite)) written[(size_t)b.object] = 1;
  }
  steps.swap(kept);

  // Small programs are over before a team has come together.
  int team = options.threads;
  int64_t alone = 0;
  for (const Step& t : steps) alone += ops[(size_t)t.op].plan.work + kStepCost;
  if (team == 1 || assign(team) + kWakeCost >= alone) assign(1);
  this->team = false;
  for (const Step& t : steps) this->team = this->team || t.nt > 1 || t.owner > 0;
  brief = !this->team && alone < kBrief;
}

// Gives every step its members and the barriers in front of it; returns the nanoseconds that this
// is expected to take.
int64_t Program::assign(int team) {
  size_t shared = 0;
  std::vector<size_t> own((size_t)team, 0);
  std::vector<Touch> since;
  std::vector<int64_t> load((size_t)team, 0);
  int last_nt = 0;
  barriers = 0;
  int64_t total = 0;
  auto slowest = [&] { return *std::max_element(load.begin(), load.end()); };
  std::vector<Touch> mine;
  for (Step& s : steps) {
    const RecordedOp& op = ops[(size_t)s.op];
    s.barrier = 0;
    s.owner = 0;
    int64_t nt = op.plan.work / kTeamWork + 1;
    nt = std::min(std::min(nt, op.plan.tasks), (int64_t)team);
    s.nt = (int)std::max<int64_t>(nt, 1);
    mine.clear();
    for (auto& b : op.buffers) {
      if (b.object < 0) continue;
      const MemoryObject& o = objects[(size_t)b.object];
      if (o.home == Home::kConstant && !o.kept) continue;
      Touch t{b.object + 1, 0, 1, (b.access & kWrite) != 0, -1};
      if (o.home == Home::kArena) t = Touch{0, o.place, o.place + rounded(o.bytes), t.write, -1};
      mine.push_back(t);
    }
    if (s.nt > 1 && op.plan.scratch) mine.push_back(Touch{-1, 0, 1, true, -1});
    bool conflict_team = false;
    int conflict_member = -1;
    bool conflict_many = false;
    for (const Touch& a : mine)
      for (const Touch& b : since) {
        if (a.space != b.space || !(a.write || b.write) || a.low >= b.high || b.low >= a.high)
          continue;
        if (b.who < 0)
          conflict_team = true;
        else if (conflict_member < 0)
          conflict_member = b.who;
        else if (conflict_member != b.who)
          conflict_many = true;
      }
    bool wait = conflict_team || conflict_many || !options.barriers;
    if (s.nt > 1) wait = wait || conflict_member >= 0 || (last_nt && last_nt != s.nt);
    if (wait && team > 1 && (!since.empty() || !options.barriers)) {
      s.barrier = 1;
      ++barriers;
      total += slowest() + kBarrierCost;
      since.clear();
      std::fill(load.begin(), load.end(), 0);
      last_nt = 0;
      conflict_member = -1;
    }
    if (s.nt == 1) {
      if (conflict_member >= 0) {
        s.owner = conflict_member;
      } else {
        s.owner = 0;
        if (options.side_by_side)
          for (int m = 1; m < team; ++m)
            if (load[(size_t)m] < load[(size_t)s.owner]) s.owner = m;
      }
      load[(size_t)s.owner] += op.plan.work + kStepCost;
      own[(size_t)s.owner] = std::max(own[(size_t)s.owner], op.plan.scratch);
    } else {
      for (int m = 0; m < s.nt; ++m) load[(size_t)m] += op.plan.work / s.nt + kStepCost;
      shared = std::max(shared, op.plan.scratch);
      last_nt = s.nt;
    }
    // A failed check stops everybody at the same place: nobody may have gone on.
    for (Touch& t : mine) {
      t.who = s.nt == 1 ? s.owner : -1;
      since.push_back(t);
    }
  }
  total += slowest();
  // After a check inside the program everybody waits, and then looks at its result.
  for (size_t k = 0; team > 1 && k + 1 < steps.size(); ++k)
    if (ops[(size_t)steps[k].op].check && !steps[k + 1].barrier) {
      steps[k + 1].barrier = 1;
      ++barriers;
    }
  scratch_total = (size_t)rounded(shared);
  std::vector<size_t> at((size_t)team);
  for (int m = 0; m < team; ++m) {
    at[(size_t)m] = scratch_total;
    scratch_total += (size_t)rounded(own[(size_t)m]);
  }
  if (scratch) pool_free(scratch, scratch_bytes);
  scratch = nullptr;
  scratch_bytes = scratch_total;
  if (scratch_total) {
    scratch = (char*)pool_take(scratch_total);
    if (scratch) memset(scratch, 0, scratch_total);
  }
  for (Step& s : steps) {
    if (!ops[(size_t)s.op].plan.scratch) continue;
    s.scratch = s.nt == 1 ? scratch + at[(size_t)s.owner] : scratch;
  }
  return total;
}

void Program::build() {
  // Constants that host code put into memory which a kernel then changes: copied in at each replay.
  std::vector<RecordedOp> all;
  for (size_t k = 0; k < ops.size(); ++k) {
    for (size_t i = 0; i < objects.size(); ++i) {
      MemoryObject& o = objects[i];
      if (o.init_before != (int)k || !(o.written || o.home == Home::kOutput)) continue;
      RecordedOp copy;
      copy.init = (int)i;
      copy.plan.work = (int64_t)o.bytes / 16;
      copy.buffers.push_back(RecordedBuffer{(int)i, 0, kWrite});
      all.push_back(std::move(copy));
    }
    all.push_back(std::move(ops[k]));
  }
  ops.swap(all);
  for (auto& o : objects) o.first = o.last = -1;
  for (size_t k = 0; k < ops.size(); ++k)
    for (auto& b : ops[k].buffers)
      if (b.object >= 0) {
        MemoryObject& o = objects[(size_t)b.object];
        if (o.first < 0) o.first = (int)k;
        o.last = (int)k;
      }
  place_memory();
  resolve();
  schedule();
  memset(barrier, 0, sizeof(barrier));
}

}  // namespace gs
