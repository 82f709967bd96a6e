// What the machine says of itself: processor name and cache sizes, from which block sizes are
// derived.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "runtime.h"

namespace gs {

namespace {

#if !defined(__APPLE__)
// Size of the level-`level` data or unified cache of core 0, 0 when unknown.
int64_t cache_size(int level) {
  for (int index = 0; index < 8; ++index) {
    char path[96], type[32] = "";
    int found = 0;
    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%d/level", index);
    FILE* f = fopen(path, "r");
    if (!f) return 0;
    if (fscanf(f, "%d", &found) != 1) found = 0;
    fclose(f);
    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%d/type", index);
    if ((f = fopen(path, "r"))) {
      if (fscanf(f, "%31s", type) != 1) type[0] = 0;
      fclose(f);
    }
    if (found != level || strcmp(type, "Instruction") == 0) continue;
    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
    if ((f = fopen(path, "r"))) {
      long n = 0;
      char unit = 0;
      int got = fscanf(f, "%ld%c", &n, &unit);
      fclose(f);
      if (got >= 1) return n * (unit == 'K' ? 1024L : unit == 'M' ? 1048576L : 1L);
    }
  }
  return 0;
}
#endif

Machine read_machine() {
  Machine m{};
  snprintf(m.name, sizeof(m.name), "unknown processor");
#if defined(__APPLE__)
  size_t n = sizeof(m.name);
  sysctlbyname("machdep.cpu.brand_string", m.name, &n, nullptr, 0);
  int64_t v = 0;
  n = sizeof(v);
  if (sysctlbyname("hw.perflevel0.l1dcachesize", &v, &n, nullptr, 0) == 0) m.l1d = v;
  n = sizeof(v);
  if (sysctlbyname("hw.perflevel0.l2cachesize", &v, &n, nullptr, 0) == 0) m.l2 = v;
#else
  if (FILE* f = fopen("/proc/cpuinfo", "r")) {
    char line[512];
    while (fgets(line, sizeof(line), f)) {
      char* colon = strchr(line, ':');
      if (strncmp(line, "model name", 10) == 0 && colon) {
        line[strcspn(line, "\n")] = 0;
        snprintf(m.name, sizeof(m.name), "%.90s", colon + 2);
        break;
      }
    }
    fclose(f);
  }
  m.l1d = cache_size(1);
  m.l2 = cache_size(2);
  m.l3 = cache_size(3);
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  if (m.l1d <= 0) m.l1d = sysconf(_SC_LEVEL1_DCACHE_SIZE);
  if (m.l2 <= 0) m.l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (m.l3 <= 0) m.l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
#endif
  if (m.l1d <= 0) m.l1d = 32 << 10;
  if (m.l2 <= 0) m.l2 = 512 << 10;
  if (m.l3 <= 0) m.l3 = 8 << 20;
  // A third level of up to 64 MB belongs to few cores and is fast: what fits in half of it is worth
  // keeping for the kernel that reads it next, which in a recorded program is there. An op by
  // itself and its gradient walk four arrays (x, y, dy, dx): once these do not fit, every line that
  // is kept costs one that is thrown out, hence a fifth. An op that walks only two arrays, without
  // a gradient or with one that it makes in its forward pass, keeps its output while both are below
  // `holds`. A larger third level is shared by a whole server, and for one core hardly faster than
  // memory.
  m.stream = m.stream_program = 2 * m.l2;
  m.near = m.l3 <= (int64_t)64 << 20 && m.l3 > 4 * m.l2;
  if (m.near) {
    if (m.l3 / 5 > m.stream) m.stream = m.l3 / 5;
    m.holds = m.l3 / 5 * 4;
    if (m.l3 / 2 > m.stream_program) m.stream_program = m.l3 / 2;
  }
#if defined(__x86_64__)
  // AMD's prefetchers see virtual addresses. There, asking for the lines of an update's three to
  // five arrays a page ahead costs 10 to 15 %; Intel's stop at pages and need it.
  __builtin_cpu_init();
  m.follows = __builtin_cpu_is("amd");
#endif
  const char* asked = getenv("GRADSMITH_STREAM_BYTES");
  if (asked && *asked) {
    m.stream = m.stream_program = strtoll(asked, nullptr, 10);
    m.holds = 0;
  }
  return m;
}

}  // namespace

const Machine& machine() {
  static const Machine m = read_machine();
  return m;
}

}  // namespace gs
