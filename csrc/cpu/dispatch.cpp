// Chooses one instruction set at load and looks kernels up in its tables. Compiled for the
// baseline.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(GS_HAVE_AMX)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include "runtime.h"

namespace gs {

#define GS_FAMILY(f) extern const KernelList f##_kernels;
#if defined(GS_HAVE_NEON)
namespace neon {
#include "families.inc"
}
#else
namespace base {
#include "families.inc"
}
#if defined(GS_HAVE_AVX2)
namespace avx2 {
#include "families.inc"
}
#endif
#if defined(GS_HAVE_AVX512)
namespace avx512 {
#include "families.inc"
}
#endif
#if defined(GS_HAVE_AVX512BF16)
namespace avx512bf16 {
extern const KernelList bfloat16_kernels, matmul_bfloat16_kernels, conv_bfloat16_kernels,
    conv_winograd_kernels, conv_winograd_backward_kernels, conv_polyphase_kernels;
}
#endif
#if defined(GS_HAVE_AMX)
namespace amx {
extern const KernelList matmul_bfloat16_kernels, conv_bfloat16_kernels;
}
#endif
#endif
#undef GS_FAMILY

namespace {

#define GS_FAMILY(f) &GS_LEVEL::f##_kernels,
#if defined(GS_HAVE_NEON)
#define GS_LEVEL neon
const KernelList* const neon_lists[] = {
#include "families.inc"
};
#undef GS_LEVEL
#else
#define GS_LEVEL base
const KernelList* const base_lists[] = {
#include "families.inc"
};
#undef GS_LEVEL
#if defined(GS_HAVE_AVX2)
#define GS_LEVEL avx2
const KernelList* const avx2_lists[] = {
#include "families.inc"
};
#undef GS_LEVEL
#endif
#if defined(GS_HAVE_AVX512)
#define GS_LEVEL avx512
const KernelList* const avx512_lists[] = {
#include "families.inc"
};
#undef GS_LEVEL
#endif
#if defined(GS_HAVE_AVX512BF16)
// Overrides on top of avx512: only the kernels that use the bfloat16 instructions.
const KernelList* const avx512bf16_lists[] = {&avx512bf16::bfloat16_kernels,
                                              &avx512bf16::matmul_bfloat16_kernels,
                                              &avx512bf16::conv_bfloat16_kernels,
                                              &avx512bf16::conv_winograd_kernels,
                                              &avx512bf16::conv_winograd_backward_kernels,
                                              &avx512bf16::conv_polyphase_kernels};
#endif
#if defined(GS_HAVE_AMX)
const KernelList* const amx_lists[] = {&amx::matmul_bfloat16_kernels, &amx::conv_bfloat16_kernels};
#endif
#endif
#undef GS_FAMILY

struct Level {
  const char* name;
  const KernelList* const* lists;
  int count;
  int below;  // where to look for a kernel that this level does not have
  bool (*runs)();
};

bool always() { return true; }
#if !defined(GS_HAVE_NEON)
bool runs_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2");
}
bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#if defined(GS_HAVE_AVX512BF16)
bool runs_avx512bf16() { return runs_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif
#if defined(GS_HAVE_AMX)
// Tiles: the processor has them, the system saves their state, and lets this process use it. A
// process has to ask, once; its threads and children inherit the answer.
bool asks_for_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned bf16 = 1u << 22, tile = 1u << 24;
  if ((d & bf16) == 0 || (d & tile) == 0) return false;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (1u << 27)) == 0) return false;  // OSXSAVE
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & (3u << 17)) != (3u << 17)) return false;
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
bool runs_amx() {
  static const bool tiles = asks_for_tiles();
  return tiles && runs_avx512bf16();
}
#endif
#endif

#define GS_COUNT(a) (int)(sizeof(a) / sizeof(a[0]))
const Level levels[] = {
#if defined(GS_HAVE_NEON)
    {"neon", neon_lists, GS_COUNT(neon_lists), -1, always},
#else
    {"base", base_lists, GS_COUNT(base_lists), -1, always},
#if defined(GS_HAVE_AVX2)
    {"avx2", avx2_lists, GS_COUNT(avx2_lists), -1, runs_avx2},
#endif
#if defined(GS_HAVE_AVX512)
    {"avx512", avx512_lists, GS_COUNT(avx512_lists), -1, runs_avx512},
#endif
#if defined(GS_HAVE_AVX512BF16)
    {"avx512bf16", avx512bf16_lists, GS_COUNT(avx512bf16_lists), 2, runs_avx512bf16},
#endif
#if defined(GS_HAVE_AMX)
    {"amx", amx_lists, GS_COUNT(amx_lists), 3, runs_amx},
#endif
#endif
};
constexpr int level_count = GS_COUNT(levels);

int active = -1;
int choice_epoch = 0;

int best() {
  int b = 0;
  for (int i = 0; i < level_count; ++i)
    if (levels[i].runs()) b = i;
  return b;
}

int current() {
  if (active < 0) {
    active = best();
    ++choice_epoch;
  }
  return active;
}

const KernelEntry* find(int level, const char* name, DType dtype) {
  for (int i = 0; i < levels[level].count; ++i) {
    const KernelList& list = *levels[level].lists[i];
    for (int j = 0; j < list.count; ++j)
      if (list.entries[j].dtype == dtype && strcmp(list.entries[j].name, name) == 0)
        return &list.entries[j];
  }
  return levels[level].below >= 0 ? find(levels[level].below, name, dtype) : nullptr;
}

}  // namespace

const char* isa_active() { return levels[current()].name; }

int isa_supported(const char** names) {
  int n = 0;
  for (int i = 0; i < level_count && n < 8; ++i)
    if (levels[i].runs()) names[n++] = levels[i].name;
  return n;
}

const char* isa_choose(const char* want) {
  static char message[200];
  for (int i = 0; i < level_count; ++i)
    if (strcmp(levels[i].name, want) == 0) {
      // A level that the machine lacks is lowered to its best: the variable can only lower the
      // choice.
      active = levels[i].runs() ? i : best();
      if (active > i) active = i;
      ++choice_epoch;
      return nullptr;
    }
  int n = snprintf(message, sizeof(message), "GRADSMITH_ISA=%.40s: not an instruction set; one of",
                   want);
  for (int i = 0; i < level_count; ++i)
    n += snprintf(message + n, sizeof(message) - n, " %s", levels[i].name);
  return message;
}

const KernelEntry* Kernel::get(DType dtype) const {
  int level = current();
  if (this->epoch != choice_epoch) {
    for (auto& e : entry) e = nullptr;
    this->epoch = choice_epoch;
  }
  if (!entry[dtype]) entry[dtype] = find(level, name, dtype);
  return entry[dtype];
}

bool& autocast() {
  static thread_local bool on = false;
  return on;
}

}  // namespace gs
