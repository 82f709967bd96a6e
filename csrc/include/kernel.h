// What every kernel, on every device and instruction set, agrees on.
//
// A kernel is a plain function `run(params, buffers, ctx)`. `params` is a plain struct (sizes,
// strides, scalars), `buffers` the resolved pointers, `ctx` says which member of the team calls.
// All members call the same function; work is split into tasks by shape, and a member takes a
// stretch of them, every nt-th from tid on, or the next one of a counter: results do not depend on
// the number of members.
//
// Included by files that are compiled for higher instruction sets: nothing here may become a weak
// symbol, so no inline functions except always_inline ones, and nothing from the C++ library.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define GS_INLINE static inline __attribute__((always_inline))
#define GS_MEMBER inline __attribute__((always_inline))

namespace gs {

// kBF16 arrays are held as uint16 bit patterns on the Python side.
enum DType : int32_t { kF32, kF64, kI32, kI64, kU8, kBool, kBF16, kDTypeCount };

constexpr int kMaxDims = 8;

// A number that outlives one launch and may change between replays: learning rate, step, counter.
union SlotValue {
  double f;
  int64_t i;
  uint64_t u;
};

// A scalar argument: slot < 0 means `value` itself, otherwise the slot table is read when the
// kernel runs.
struct Scalar {
  double value;
  int32_t slot;
};

// A position in the random stream: value plus, when slot >= 0, what the slot holds when the kernel
// runs.
struct Counter {
  uint64_t value;
  int32_t slot;
};

// One member's view of the team that runs a kernel.
struct Ctx {
  int tid;                 // this member, 0 .. nt - 1
  int nt;                  // members
  char* scratch;           // plan.scratch bytes, 64-byte aligned, shared by the team, not zeroed
  const SlotValue* slots;  // the slot table
  void* barrier;           // opaque
  void (*barrier_wait)(void*, int nt);
  int64_t stream;  // outputs of so many bytes and more are written past the caches
  bool follows;    // loops over several arrays need not fetch ahead, see Machine

  // The view of a kernel that this member runs by itself.
  GS_MEMBER Ctx alone() const {
    return {0, 1, nullptr, slots, nullptr, barrier_wait, stream, follows};
  }
  // Waits until every member has come here. All members must make the same calls.
  GS_MEMBER void sync() const {
    if (nt > 1) barrier_wait(barrier, nt);
  }
  GS_MEMBER double read(const Scalar& s) const { return s.slot < 0 ? s.value : slots[s.slot].f; }
  GS_MEMBER uint64_t read(const Counter& c) const {
    return c.slot < 0 ? c.value : c.value + slots[c.slot].u;
  }
};

// What a launch needs to know before it runs a kernel; a function of the parameters alone.
struct Plan {
  int64_t tasks;   // independent tasks: more members than this are useless
  int64_t work;    // rough single-thread nanoseconds; decides how many members are worth waking
  size_t scratch;  // bytes
};

typedef void (*KernelFn)(const void* params, void* const* buffers, const Ctx* ctx);
typedef void (*PlanFn)(const void* params, Plan* plan);

struct KernelEntry {
  const char* name;
  DType dtype;
  KernelFn run;
  PlanFn plan;
};

// The single symbol that a kernel file exports, one per family and instruction set.
struct KernelList {
  const KernelEntry* entries;
  int32_t count;
};

}  // namespace gs
