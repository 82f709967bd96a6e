// The one entry through which every kernel runs, and the table of slots. A recorder of the captured
// step attaches here: it sees the kernel, the parameters and the buffers with their access.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <memory>
#include <mutex>
#include <new>

#include "../graph/graph.h"
#include "runtime.h"

namespace gs {

namespace {

constexpr int kSlots = 65536;
SlotValue slots[kSlots];
std::mutex slots_mutex;
int slots_used = 0;
int free_slots[kSlots];
int free_count = 0;

// Waking a member costs about a microsecond; each must have several to do.
constexpr int64_t kWorkPerMember = 4000;

struct TeamCall {
  const KernelEntry* entry;
  const void* params;
  void* const* pointers;
  char* scratch;
};

void member(void* arg, int tid, int nt, void* barrier) {
  const TeamCall& c = *(const TeamCall*)arg;
  Ctx ctx{
      tid, nt, c.scratch, slots, barrier, team_barrier_wait, machine().stream, machine().follows};
  c.entry->run(c.params, c.pointers, &ctx);
}

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

bool verbose() {
  static const bool on = [] {
    const char* v = getenv("GRADSMITH_VERBOSE");
    return v && *v && *v != '0';
  }();
  return on;
}

}  // namespace

SlotValue* slot_table() { return slots; }

int slot_new() {
  std::lock_guard<std::mutex> lock(slots_mutex);
  if (free_count > 0) return free_slots[--free_count];
  return slots_used < kSlots ? slots_used++ : -1;
}

void slot_free(int slot) {
  std::lock_guard<std::mutex> lock(slots_mutex);
  if (slot >= 0 && slot < slots_used) free_slots[free_count++] = slot;
}

void launch(const Launch& call) {
  Recorder* watching = recorder;
  if (watching) watching->before(call);
  // Kernels over lists of tensors (optimizers) bring more buffers than the stack should hold.
  void* few[kMaxBuffers];
  std::unique_ptr<void*[]> many(call.buffer_count > kMaxBuffers ? new void*[call.buffer_count]
                                                                : nullptr);
  void** pointers = many ? many.get() : few;
  for (int i = 0; i < call.buffer_count; ++i)
    pointers[i] =
        call.buffers[i].base ? (char*)call.buffers[i].base + call.buffers[i].offset : nullptr;
  char* scratch = nullptr;
  if (call.plan.scratch) {
    scratch = (char*)pool_take(call.plan.scratch);
    if (!scratch) throw std::bad_alloc();
  }
  int64_t nt = call.plan.work / kWorkPerMember + 1;
  if (nt > call.plan.tasks) nt = call.plan.tasks;
  int limit = get_num_threads();
  if (nt > limit) nt = limit;
  if (nt < 1) nt = 1;
  TeamCall team_call{call.entry, call.params, pointers, scratch};
  double start = verbose() ? now() : 0;
  if (nt == 1)
    member(&team_call, 0, 1, nullptr);
  else
    run_team((int)nt, member, &team_call);
  if (verbose())
    fprintf(stderr, "gradsmith: %s %s, %d of %lld tasks at once, %zu bytes of scratch, %.1f us\n",
            call.entry->name, isa_active(), (int)nt, (long long)call.plan.tasks, call.plan.scratch,
            (now() - start) * 1e6);
  if (scratch) pool_give(scratch, call.plan.scratch);
  if (watching) watching->after(call);
}

}  // namespace gs
