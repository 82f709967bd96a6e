// Memory for arrays and scratch: blocks are kept mapped and handed out again, because a fresh block
// of megabytes costs more in page faults than the kernel that fills it.
//
// Sizes are rounded up to 8 classes per power of two (at most 12.5 % waste). Blocks below 1 MB are
// carved from malloc; blocks of 1 MB and more are mapped on 2 MB boundaries and advised to huge
// pages. Freed blocks go to a list per class; when the cache holds more than its limit, large
// blocks go back to the system. Built with AddressSanitizer (or GRADSMITH_POOL=0) every block comes
// from malloc and goes back, so that stray accesses are seen.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../graph/graph.h"
#include "runtime.h"

namespace gs {

namespace {

constexpr size_t kLarge = (size_t)1 << 20;
constexpr size_t kHuge = (size_t)2 << 20;
constexpr int kClasses = 8 * 64;

struct FreeBlock {
  FreeBlock* next;
};

pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
FreeBlock* lists[kClasses];
PoolStats stats;
size_t cache_limit = 0;
bool pass_through = false;
bool ready = false;
thread_local uint64_t taken = 0;

// Class c holds blocks of (8 + c % 8) << (c / 8 + 3) bytes: 64, 72, 80, ... rounded up to 64 below
// 512.
size_t class_size(int c) { return (size_t)(8 + c % 8) << (c / 8 + 3); }

int class_of(size_t bytes) {
  if (bytes < 64) bytes = 64;
  int top = 63 - __builtin_clzll((unsigned long long)bytes);
  size_t step = (size_t)1 << (top - 3);
  size_t over = bytes - ((size_t)1 << top);
  return (top - 6) * 8 + (int)((over + step - 1) / step);
}

size_t rounded(int c) {
  size_t s = class_size(c);
  return s >= kLarge ? (s + kHuge - 1) & ~(kHuge - 1) : (s + 63) & ~(size_t)63;
}

void prepare() {
  if (ready) return;
  const char* off = getenv("GRADSMITH_POOL");
  pass_through = off && strcmp(off, "0") == 0;
#if defined(__SANITIZE_ADDRESS__)
  pass_through = true;
#endif
  long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  cache_limit = pages > 0 && page > 0 ? (size_t)pages * (size_t)page / 4 : (size_t)1 << 30;
  pthread_atfork([] { pthread_mutex_lock(&mutex); }, [] { pthread_mutex_unlock(&mutex); },
                 [] { pthread_mutex_unlock(&mutex); });
  ready = true;
}

void* from_system(size_t size) {
  void* p = nullptr;
  ++stats.system_calls;
  if (size < kLarge || pass_through) {
    if (posix_memalign(&p, 64, size) != 0) return nullptr;
    return p;
  }
  // Map with slack, keep the part on a 2 MB boundary.
  char* raw = (char*)mmap(nullptr, size + kHuge, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == (char*)MAP_FAILED) return nullptr;
  char* start = (char*)(((uintptr_t)raw + kHuge - 1) & ~(uintptr_t)(kHuge - 1));
  if (start > raw) munmap(raw, (size_t)(start - raw));
  char* end = raw + size + kHuge;
  if (end > start + size) munmap(start + size, (size_t)(end - (start + size)));
#if defined(MADV_HUGEPAGE)
  madvise(start, size, MADV_HUGEPAGE);
#endif
  return start;
}

void to_system(void* p, size_t size) {
  if (size < kLarge || pass_through)
    free(p);
  else
    munmap(p, size);
}

void trim_locked(size_t keep) {
  for (int c = kClasses - 1; c >= 0 && stats.cached > keep; --c) {
    while (lists[c] && stats.cached > keep) {
      FreeBlock* b = lists[c];
      lists[c] = b->next;
      stats.cached -= rounded(c);
      to_system(b, rounded(c));
    }
  }
}

}  // namespace

void* pool_take(size_t bytes) {
  if (bytes > ((size_t)1 << 46)) return nullptr;
  ++taken;
  pthread_mutex_lock(&mutex);
  prepare();
  int c = class_of(bytes);
  size_t size = rounded(c);
  void* p = lists[c];
  if (p) {
    lists[c] = ((FreeBlock*)p)->next;
    stats.cached -= size;
    ++stats.hits;
  } else {
    ++stats.misses;
    p = from_system(pass_through ? (bytes ? bytes : 1) : size);
    if (!p && stats.cached) {
      trim_locked(0);
      p = from_system(size);
    }
  }
  if (p) {
    stats.in_use += size;
    if (stats.in_use > stats.peak) stats.peak = stats.in_use;
  }
  pthread_mutex_unlock(&mutex);
  return p;
}

void pool_give(void* p, size_t bytes) {
  if (!p) return;
  pthread_mutex_lock(&mutex);
  int c = class_of(bytes);
  size_t size = rounded(c);
  stats.in_use -= size;
  if (pass_through) {
    free(p);
  } else {
    ((FreeBlock*)p)->next = lists[c];
    lists[c] = (FreeBlock*)p;
    stats.cached += size;
    if (stats.cached > cache_limit) trim_locked(cache_limit);
  }
  pthread_mutex_unlock(&mutex);
}

void* pool_alloc(size_t bytes) {
  void* p = pool_take(bytes);
  if (recorder && p) recorder->allocated(p, bytes);
  return p;
}

void pool_free(void* p, size_t bytes) {
  if (!p) return;
  Recorder* r = recorder_any.load(std::memory_order_relaxed);
  if (r && r->released(p)) return;
  pool_give(p, bytes);
}

uint64_t pool_taken() { return taken; }

PoolStats pool_stats() {
  pthread_mutex_lock(&mutex);
  PoolStats s = stats;
  pthread_mutex_unlock(&mutex);
  return s;
}

void pool_trim() {
  pthread_mutex_lock(&mutex);
  trim_locked(0);
  pthread_mutex_unlock(&mutex);
}

}  // namespace gs
