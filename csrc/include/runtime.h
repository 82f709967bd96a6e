// The CPU runtime below the bindings: choice of the instruction set, launch, team of threads,
// memory pool, slots. Knows nothing of Python. Not for kernel files.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <initializer_list>

#include "kernel.h"

namespace gs {

// ---- instruction sets (dispatch.cpp)
const char* isa_active();  // "base", "avx2", "avx512", "avx512bf16", "amx" or "neon"
int isa_supported(
    const char** names);  // what machine and build both have, lowest first; fills up to 8
const char* isa_choose(const char* want);  // lower the choice; error text or nullptr

// A kernel looked up once by name in the active table, one entry per dtype.
struct Kernel {
  explicit Kernel(const char* kernel_name) : name(kernel_name) {}
  const KernelEntry* get(DType dtype) const;  // nullptr when there is no kernel for the dtype
  const char* name;
  mutable const KernelEntry* entry[kDTypeCount] = {};
  mutable int epoch = -1;
};

// Whether products of float32 arrays started by this thread round their operands to bfloat16.
bool& autocast();

// ---- launch (launch.cpp): the one door through which every kernel call goes
enum Access : int32_t { kRead = 1, kWrite = 2, kReadWrite = 3 };

struct Buffer {
  void* base;      // start of the memory block (nullptr: an absent optional argument)
  int64_t offset;  // bytes from base to the first element
  Access access;
};

struct Launch {
  const KernelEntry* entry;
  const void* params;
  size_t params_size;
  const Buffer* buffers;
  int buffer_count;
  Plan plan;
};

constexpr int kMaxBuffers = 64;  // more are allowed, at the price of an allocation
void launch(const Launch& call);

// ---- team (threads.cpp)
int get_num_threads();
void set_num_threads(int n);
struct CpuBudget {
  int affinity, quota, cores, chosen;
  const char* reason;
};
CpuBudget cpu_budget();
// Runs fn(arg, tid, nt, barrier) on nt members, the caller being member 0. Nested or concurrent
// calls run with nt = 1: kernels give the same bits either way.
typedef void (*TeamFn)(void* arg, int tid, int nt, void* barrier);
void run_team(int nt, TeamFn fn, void* arg);
void team_barrier_wait(void* barrier, int nt);
uint64_t team_moves();  // how often a worker left a core that it shared with another member

// ---- memory (memory.cpp)
void* pool_alloc(size_t bytes);  // 64-byte aligned, not zeroed; nullptr when memory is out
void pool_free(void* p, size_t bytes);
void* pool_take(size_t bytes);  // the same for memory that a recording should not see: scratch
void pool_give(void* p, size_t bytes);
struct PoolStats {
  uint64_t in_use, cached, peak, system_calls, hits, misses;
};
PoolStats pool_stats();
uint64_t pool_taken();  // blocks that this thread has asked for
void pool_trim();       // gives all cached memory back

// ---- slots (launch.cpp)
SlotValue* slot_table();
int slot_new();  // index of a fresh slot, or -1 when the table is full
void slot_free(int slot);

// ---- machine (machine.cpp)
struct Machine {
  char name[96];
  int64_t l1d, l2, l3;     // bytes; sensible guesses where the system does not tell
  int64_t stream;          // outputs of so many bytes and more are written past the caches,
  int64_t stream_program;  // and those of recorded programs
  bool follows;            // the core's own prefetchers follow many streams and go on across pages
  bool near;               // the third level belongs to few cores, and is fast
  int64_t holds;  // an op that touches no more bytes in all, its gradient included, streams nothing
};
const Machine& machine();

}  // namespace gs
