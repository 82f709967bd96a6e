// Recording: what launch(), the pool and the bindings tell about one run of the user's function.
//
// Memory that the pool hands out meanwhile is filled with a pattern and kept to the end, so that an
// address means one array, and so that values written by host code (and not by a kernel) are seen:
// before the first kernel touches the memory they are constants of the program, later they are an
// error, because a replay would not write them.
#include <string.h>

#include "activation.h"
#include "attention.h"
#include "dropout.h"
#include "elementwise.h"
#include "graph.h"
#include "norm.h"
#include "optimizer.h"

namespace gs {

thread_local Recorder* recorder = nullptr;
std::atomic<Recorder*> recorder_any{nullptr};

namespace {

constexpr uint64_t kPattern = 0xA5C3A5C3F00DF00Dull;

uint64_t hash_of(const char* p, size_t n) {
  uint64_t h[4] = {1, 2, 3, 4};
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    uint64_t w[4];
    memcpy(w, p + i, 32);
    for (int k = 0; k < 4; ++k) {
      h[k] = (h[k] ^ w[k]) * 0x9E3779B97F4A7C15ull;
      h[k] ^= h[k] >> 29;
    }
  }
  uint64_t r = h[0] ^ (h[1] * 3) ^ (h[2] * 5) ^ (h[3] * 7);
  for (; i < n; ++i) r = (r ^ (uint8_t)p[i]) * 0x100000001B3ull;
  return r;
}

bool untouched(const char* p, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8)
    if (memcmp(p + i, &kPattern, 8) != 0) return false;
  return memcmp(p + i, &kPattern, n - i) == 0;
}

}  // namespace

const char* RecordedOp::name() const { return entry ? entry->name : check ? "check" : "constant"; }

bool recording_start(Recorder* r) {
  Recorder* none = nullptr;
  if (!recorder_any.compare_exchange_strong(none, r)) return false;
  recorder = r;
  return true;
}

void recording_stop() {
  recorder = nullptr;
  recorder_any.store(nullptr);
}

int Recorder::find(const void* p) const {
  auto it = by_base.upper_bound((char*)p);
  if (it == by_base.begin()) return -1;
  --it;
  const MemoryObject& o = objects[(size_t)it->second];
  return (char*)p < o.base + (o.bytes ? o.bytes : 1) ? it->second : -1;
}

int Recorder::add_external(char* base, size_t bytes, Home home, int index) {
  MemoryObject o;
  o.base = base;
  o.bytes = bytes;
  o.home = home;
  o.index = index;
  o.external = true;
  auto gradient = gradients.find(base);
  if (home == Home::kFixed && gradient != gradients.end()) o.gradient = gradient->second;
  std::lock_guard<std::mutex> lock(mutex);
  objects.push_back(std::move(o));
  by_base[base] = (int)objects.size() - 1;
  return (int)objects.size() - 1;
}

void Recorder::allocated(void* p, size_t bytes) {
  if (paused) return;
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8) memcpy((char*)p + i, &kPattern, 8);
  memcpy((char*)p + i, &kPattern, bytes - i);
  MemoryObject o;
  o.base = (char*)p;
  o.bytes = bytes;
  o.home = Home::kArena;
  std::lock_guard<std::mutex> lock(mutex);
  objects.push_back(std::move(o));
  by_base[(char*)p] = (int)objects.size() - 1;
}

bool Recorder::released(void* p) {
  std::lock_guard<std::mutex> lock(mutex);
  auto it = by_base.find((char*)p);
  if (it == by_base.end()) return false;
  MemoryObject& o = objects[(size_t)it->second];
  if (o.external || o.freed) return false;
  o.freed = true;
  return true;
}

void Recorder::end() {
  for (MemoryObject& o : objects)
    if (!o.external && o.freed) pool_give(o.base, o.bytes);
}

void Recorder::look(int object, bool before_kernel) {
  MemoryObject& o = objects[(size_t)object];
  if (!before_kernel) {
    o.hash = hash_of(o.base, o.bytes);
    o.touched = true;
    return;
  }
  if (o.touched) {
    if (hash_of(o.base, o.bytes) != o.hash && error.empty())
      error = std::string("host code wrote into the memory of a tensor after the kernel ") +
              between +
              "; a replay would not repeat that. Use gradsmith operations (copy_, fill_, zero_) "
              "instead of writing into .data or .numpy()";
  } else if (o.external) {
    o.start = hash_of(o.base, o.bytes);
  } else if (!untouched(o.base, o.bytes)) {
    o.init.assign(o.base, o.base + o.bytes);
    o.init_before = (int)ops.size();
  }
}

void Recorder::before(const Launch& call) {
  for (int i = 0; i < call.buffer_count; ++i) {
    const Buffer& b = call.buffers[i];
    if (!b.base) continue;
    int k = find((char*)b.base + b.offset);
    if (k < 0) {
      if (error.empty())
        error = std::string("the kernel ") + call.entry->name +
                " uses memory that the recorder does not know";
      continue;
    }
    look(k, true);
  }
}

void Recorder::after(const Launch& call) {
  RecordedOp op;
  op.entry = call.entry;
  op.params_size = call.params_size;
  op.params.resize((call.params_size + 7) / 8);
  memcpy(op.params.data(), call.params, call.params_size);
  op.plan = call.plan;
  int at = (int)ops.size();
  for (int i = 0; i < call.buffer_count; ++i) {
    const Buffer& b = call.buffers[i];
    RecordedBuffer r{-1, 0, b.access};
    if (b.base) {
      r.object = find((char*)b.base + b.offset);
      if (r.object >= 0) {
        MemoryObject& o = objects[(size_t)r.object];
        r.offset = (char*)b.base + b.offset - o.base;
        if (b.access & kWrite) o.written = true;
        if (!o.touched || (b.access & kWrite)) look(r.object, false);
        if (o.first < 0) o.first = at;
        o.last = at;
      }
    }
    op.buffers.push_back(r);
  }
  between = call.entry->name;
  ops.push_back(std::move(op));
}

void Recorder::check(CheckFn fn, int id, const Buffer& buffer, const int64_t* args, int count) {
  int k = find((char*)buffer.base + buffer.offset);
  if (k < 0) {
    if (error.empty()) error = "a check of values uses memory that the recorder does not know";
    return;
  }
  look(k, true);
  RecordedOp op;
  op.check = fn;
  op.check_id = id;
  op.params.assign(args, args + count);
  op.params_size = (size_t)count * 8;
  MemoryObject& o = objects[(size_t)k];
  op.buffers.push_back(RecordedBuffer{k, (char*)buffer.base + buffer.offset - o.base, kRead});
  if (!o.touched) look(k, false);
  if (o.first < 0) o.first = (int)ops.size();
  o.last = (int)ops.size();
  ops.push_back(std::move(op));
}

Counter* counter_of(RecordedOp& op, uint64_t** seed) {
  if (!op.entry) return nullptr;
  char* p = (char*)op.params.data();
  const char* n = op.entry->name;
  if (!strcmp(n, "dropout") || !strcmp(n, "dropout_channels")) {
    // DropoutChannelsParams begins with a DropoutParams
    *seed = &((DropoutParams*)p)->seed;
    return &((DropoutParams*)p)->counter;
  }
  if (!strcmp(n, "rrelu") || !strcmp(n, "rrelu_backward")) {
    *seed = &((RReluParams*)p)->seed;
    return &((RReluParams*)p)->counter;
  }
  if (!strcmp(n, "uniform") || !strcmp(n, "normal")) {
    *seed = &((RandomParams*)p)->seed;
    return &((RandomParams*)p)->counter;
  }
  if (!strcmp(n, "attention") || !strcmp(n, "attention_backward")) {
    AttentionParams* a = (AttentionParams*)p;
    if (a->dropout != 1) return nullptr;
    *seed = &a->seed;
    return &a->counter;
  }
  return nullptr;
}

Scalar* scalars_of(RecordedOp& op, int* count) {
  static const char* const rules[] = {"sgd",
                                      "sgd_momentum",
                                      "adagrad",
                                      "rmsprop",
                                      "rmsprop_centered",
                                      "rmsprop_momentum",
                                      "rmsprop_centered_momentum",
                                      "adadelta",
                                      "adam",
                                      "adam_amsgrad",
                                      "nadam",
                                      "adamax",
                                      "radam",
                                      "asgd",
                                      "average"};
  *count = 0;
  if (!op.entry) return nullptr;
  char* p = (char*)op.params.data();
  const char* n = op.entry->name;
  for (const char* rule : rules)
    if (!strcmp(n, rule)) {
      *count = kOptimizerScalars;
      return ((OptimizerParams*)p)->scalars;
    }
  if (!strcmp(n, "grad_norm")) {
    *count = 1;
    return &((GradNormParams*)p)->max_norm;
  }
  if (!strcmp(n, "grad_clamp") || !strcmp(n, "grad_scale")) {
    *count = 1;
    return &((GradScaleParams*)p)->limit;
  }
  if (!strcmp(n, "channel_norm")) {
    *count = 1;
    return &((ChannelNormParams*)p)->momentum;
  }
  return nullptr;
}

std::string Recorder::difference(const Recorder& other, uint64_t first,
                                 uint64_t other_first) const {
  if (ops.size() != other.ops.size())
    return "it launched " + std::to_string(other.ops.size()) + " kernels at one call and " +
           std::to_string(ops.size()) + " at the next";
  auto plain = [](const RecordedOp& from, uint64_t start) {
    RecordedOp op = from;
    uint64_t* seed = nullptr;
    if (Counter* c = counter_of(op, &seed)) {
      c->value -= start;
      *seed = 0;
    }
    int n = 0;
    Scalar* s = scalars_of(op, &n);
    for (int i = 0; i < n; ++i)
      if (s[i].slot >= 0) s[i].value = 0;
    return op.params;
  };
  std::map<int, int> pair;
  for (size_t k = 0; k < ops.size(); ++k) {
    const RecordedOp &a = ops[k], &b = other.ops[k];
    std::string where = std::string(a.name()) + " (kernel " + std::to_string(k) + ")";
    if (a.entry != b.entry || a.check != b.check || a.buffers.size() != b.buffers.size() ||
        a.params.size() != b.params.size())
      return "one call launched " + std::string(b.name()) + " where the next launched " + where;
#if defined(__has_builtin) && __has_builtin(__builtin_clear_padding)
    if (plain(a, first) != plain(b, other_first))
      return "a number or size that goes into " + where + " differs between two calls";
#endif
    for (size_t i = 0; i < a.buffers.size(); ++i) {
      int x = a.buffers[i].object, y = b.buffers[i].object;
      if ((x < 0) != (y < 0) || a.buffers[i].offset != b.buffers[i].offset)
        return "what " + where + " reads or writes differs between two calls";
      if (x < 0) continue;
      auto known = pair.find(x);
      if (known != pair.end()) {
        if (known->second != y)
          return "what " + where + " reads or writes differs between two calls";
        continue;
      }
      pair[x] = y;
      const MemoryObject &o = objects[(size_t)x], &p = other.objects[(size_t)y];
      if (o.external != p.external || o.home != p.home || o.bytes != p.bytes ||
          o.index != p.index || o.gradient != p.gradient)
        return "what " + where + " reads or writes differs between two calls";
      bool made_here = o.external && o.home == Home::kFixed && o.gradient < 0 && o.base != p.base;
      if ((made_here && o.start != p.start) || (!o.external && o.init != p.init))
        return "values that host code computed for " + where +
               " differ between two calls; a replay would use the old ones";
    }
  }
  return "";
}

void Recorder::verify_contents() {
  for (size_t i = 0; i < objects.size(); ++i)
    if (objects[i].touched && !objects[i].freed) look((int)i, true);
}

}  // namespace gs
