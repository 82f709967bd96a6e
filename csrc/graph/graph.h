// The captured step: a recorder at launch(), the plan of a program, its replay. Knows nothing of
// Python; bindings/capture.cpp tells it which memory belongs to inputs, outputs and the rest.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <atomic>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "runtime.h"

namespace gs {

// A piece of memory that kernels of a recording touched.
enum class Home : int32_t {
  kArena,     // made and used up within the step: the planner gives it a place
  kConstant,  // written by host code during the recording, only read by kernels: kept as it was
  kFixed,     // made before the recording: parameters, states; used where it is
  kInput,     // bound at each call
  kOutput,    // made by the step and seen after it: its place may change from call to call
};

struct MemoryObject {
  char* base = nullptr;
  size_t bytes = 0;
  Home home = Home::kFixed;
  int index = -1;         // which input or output
  int gradient = -1;      // which of the gradients from before the call, whose memory may change
  bool external = false;  // not from the pool during the recording
  bool freed = false;     // the pool got it back during the recording
  bool touched = false, written = false;
  uint64_t hash = 0;          // of the contents after the last kernel that touched it
  uint64_t start = 0;         // of the contents before the first one
  std::vector<char> init;     // what host code had put there before the first kernel, if anything
  int init_before = -1;       // op that needs it
  int first = -1, last = -1;  // ops
  int64_t place = -1;         // offset in the arena
  int over = -1;              // object whose memory it takes over
  bool kept = false;          // kConstant: written by kernels and read at the next replay
};

// Looks at values on the host: false stops the program there. data: the first buffer.
typedef bool (*CheckFn)(const void* data, const int64_t* args);

struct RecordedBuffer {
  int32_t object;  // -1: absent
  int64_t offset;
  Access access;
};

struct RecordedOp {
  const KernelEntry* entry = nullptr;  // nullptr: a check, or with `init` set, a copy of constants
  CheckFn check = nullptr;
  int check_id = -1;
  int init = -1;                // object whose `init` is copied into place
  std::vector<int64_t> params;  // the parameter struct
  size_t params_size = 0;
  Plan plan{1, 0, 0};
  std::vector<RecordedBuffer> buffers;
  const char* note = nullptr;  // the pass that made or changed it
  const char* name() const;
};

// Watches launches, allocations and frees of one thread.
struct Recorder {
  std::vector<MemoryObject> objects;
  std::map<char*, int> by_base;
  std::map<char*, int> gradients;  // memory of those that parameters have at the start
  std::vector<RecordedOp> ops;
  std::string error;  // first thing that cannot be recorded
  int paused = 0;
  const char* between = "the start";  // last kernel seen
  std::mutex mutex;                   // another thread may free what this one allocated

  int find(const void* p) const;
  int add_external(char* base, size_t bytes, Home home, int index);
  void before(const Launch& call);
  void after(const Launch& call);
  void check(CheckFn fn, int id, const Buffer& buffer, const int64_t* args, int count);
  void allocated(void* p, size_t bytes);
  bool released(void* p);  // true: kept until the end of the recording
  // Gives back to the pool what was freed during the recording.
  void end();
  void verify_contents();
  // What differs between two recordings of one function, other than values that a replay renews;
  // empty when nothing does. first: the random counter at the start of each.
  std::string difference(const Recorder& other, uint64_t first, uint64_t other_first) const;

 private:
  void look(int object, bool before_kernel);
};

extern thread_local Recorder* recorder;      // of this thread, or nullptr
extern std::atomic<Recorder*> recorder_any;  // of any thread: frees may come from elsewhere
bool recording_start(Recorder* r);           // false: another thread records
void recording_stop();

// The random counter and seed in the parameters of a kernel that draws, or nullptr.
Counter* counter_of(RecordedOp& op, uint64_t** seed);
// The scalars that a kernel may read from slots.
Scalar* scalars_of(RecordedOp& op, int* count);

struct Options {
  int threads = 1;
  bool side_by_side = true;  // independent small kernels on different members
  bool barriers = true;      // false: no elision, a barrier before every kernel
  bool reuse = true;         // arena memory is reused
  bool in_place = true;  // an elementwise kernel writes over an input that it is the last to read
  bool relu_pool = true, conv_pool = true, norm_relu = true, norm_stats = true, bias_relu = true,
       bias_activation = true, activation_gradient = true, gradient_sum = true,
       conv_gradient = true, norm_gradient = true, residual = true, norm_sum = true, pieces = true,
       last_step = true, optimizer = true, gradient_update = true, transposed = true,
       prepared_weights = true,
       prepared_updates = true;         // rewrites: fuser.h
  bool gradient_update_anyway = false;  // false: where it pays on this machine
};

// One kernel of a program as the replay sees it.
struct Step {
  KernelFn run;
  const void* params;
  void** buffers;
  char* scratch;
  int32_t nt;       // members
  int32_t owner;    // the member, when nt is 1
  int32_t barrier;  // wait for all before it
  int32_t op;
};

// Operations and bytes that a kernel needs at least.
struct Work {
  double flops, bytes;
};

struct Patch {
  void** where;
  int64_t offset;
};

struct Program {
  std::vector<RecordedOp> ops;
  std::vector<MemoryObject> objects;
  Options options;
  int inputs = 0, outputs = 0;

  std::vector<Step> steps;
  std::vector<int> prologue;  // checks of inputs, made before anything runs
  std::vector<void*> pointers;
  std::vector<std::vector<Patch>> by_object;  // what to write when the object moves
  std::vector<char*> bound;                   // by object: where it is now
  char* arena = nullptr;
  size_t arena_bytes = 0, scratch_bytes = 0, unshared_bytes = 0, constant_bytes = 0;
  char* scratch = nullptr;
  size_t scratch_total = 0;
  std::vector<char*> constants;
  int barriers = 0, in_place = 0;
  int random_slot = -1;
  std::vector<uint64_t*> seeds;
  uint64_t seed = 0;
  std::atomic<int> failed{-1};  // op of the check that failed
  alignas(64) char barrier[128];
  std::vector<double> times;  // profile: seconds by step
  bool profile = false;
  int64_t replays = 0;
  bool team = false;   // whether several members take part
  bool brief = false;  // a few microseconds on one member

  Program() = default;
  Program(const Program&) = delete;
  ~Program();
  void fuse();   // rewrites the calls; before build()
  void build();  // places, steps, barriers; objects have their homes
  void bind(int object, char* base) {
    if (bound[object] == base) return;
    bound[object] = base;
    for (const Patch& p : by_object[object]) *p.where = base + p.offset;
  }
  int check_inputs() const;  // op of a failed check, or -1
  int replay();              // op of a failed check, or -1
  void member(int tid, int nt, void* kernel_barrier);
  std::vector<Work> work() const;  // by step
  // Seconds of one run of each kernel, alone on this thread, the least of `rounds` means over
  // `repeat` runs in a row. Overwrites what the kernels write.
  std::vector<double> kernel_seconds(int rounds, int repeat);
  // Which counters drawn in [first, last) the kernels use become relative to a slot.
  void slot_random(uint64_t first, uint64_t last);

 private:
  void place_memory();
  size_t place(bool in_place);
  void resolve();
  void schedule();
  int64_t assign(int team);
};

}  // namespace gs
