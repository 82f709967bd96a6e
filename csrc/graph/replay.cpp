// Replay: one team for the whole program. Every member walks the same list of steps, runs what is
// its share, and waits where the plan says so.
#include <string.h>
#include <time.h>

#include <stdexcept>

#include "graph.h"

namespace gs {

namespace {

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

Ctx context(int tid, int nt, char* scratch, const SlotValue* slots, void* barrier) {
  const Machine& m = machine();
  return {tid, nt, scratch, slots, barrier, team_barrier_wait, m.stream_program, m.follows};
}

void enter(void* arg, int tid, int nt, void* barrier) { ((Program*)arg)->member(tid, nt, barrier); }

}  // namespace

void Program::member(int tid, int nt, void* kernel_barrier) {
  const SlotValue* slots = slot_table();
  if (nt == 1 || nt != options.threads) {  // alone, or with fewer than planned: all of it on one
    if (tid != 0) return;
    for (size_t k = 0; k < steps.size(); ++k) {
      const Step& s = steps[k];
      double start = profile ? now() : 0;
      Ctx ctx = context(0, 1, s.scratch, slots, nullptr);
      s.run(s.params, s.buffers, &ctx);
      if (profile) times[k] += now() - start;
      if (failed.load(std::memory_order_relaxed) >= 0) return;
    }
    return;
  }
  for (size_t k = 0; k < steps.size(); ++k) {
    const Step& s = steps[k];
    if (s.barrier || profile) {
      team_barrier_wait(barrier, nt);
      // Only a check before this barrier counts: a later one may already have failed on a member
      // that is ahead, and then everybody leaves at the barrier behind that one.
      int f = failed.load(std::memory_order_relaxed);
      if (f >= 0 && f < s.op) return;
    }
    double start = profile && tid == 0 ? now() : 0;
    if (s.nt == 1) {
      if (tid == s.owner) {
        Ctx ctx = context(0, 1, s.scratch, slots, nullptr);
        s.run(s.params, s.buffers, &ctx);
      }
    } else if (tid < s.nt) {
      Ctx ctx = context(tid, s.nt, s.scratch, slots, kernel_barrier);
      s.run(s.params, s.buffers, &ctx);
    }
    if (profile) {
      team_barrier_wait(barrier, nt);
      if (tid == 0) times[k] += now() - start;
    }
  }
}

std::vector<double> Program::kernel_seconds(int rounds, int repeat) {
  std::vector<double> out;
  for (const Step& s : steps) {
    Ctx ctx = context(0, 1, s.scratch, slot_table(), nullptr);
    double best = 0;
    for (int r = 0; r < rounds; ++r) {
      double start = now();
      for (int i = 0; i < repeat; ++i) s.run(s.params, s.buffers, &ctx);
      double each = (now() - start) / repeat;
      if (r == 0 || each < best) best = each;
    }
    out.push_back(best);
  }
  return out;
}

int Program::check_inputs() const {
  for (int k : prologue) {
    const RecordedOp& op = ops[(size_t)k];
    const RecordedBuffer& b = op.buffers[0];
    // params: a CheckCall of three words and the op, then the arguments
    if (!op.check(bound[(size_t)b.object] + b.offset, op.params.data() + 4)) return k;
  }
  return -1;
}

int Program::replay() {
  failed.store(-1, std::memory_order_relaxed);
  if (team) {
    // A process that another thread has forked may find it as it was in the middle of a replay.
    memset(barrier, 0, sizeof(barrier));
    run_team(options.threads, enter, this);
  } else {
    member(0, 1, nullptr);
  }
  ++replays;
  return failed.load();
}

void Program::slot_random(uint64_t first, uint64_t last) {
  for (RecordedOp& op : ops) {
    uint64_t* key = nullptr;
    Counter* counter = counter_of(op, &key);
    if (!counter || counter->slot >= 0 || counter->value < first || counter->value >= last)
      continue;
    if (random_slot < 0) random_slot = slot_new();
    if (random_slot < 0)  // without one every replay would draw the same numbers
      throw std::runtime_error(
          "capture: the table of slots is full. Drop captured functions and optimizers that "
          "are not used any more");
    counter->value -= first;
    counter->slot = random_slot;
    seed = *key;
    seeds.push_back(key);
  }
}

}  // namespace gs
