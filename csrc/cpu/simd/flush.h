// Subnormal numbers as zero, for the kernels that need it.
#pragma once
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {

// While it lives, subnormal numbers count as zero, where they are read and where they would be
// written. An operation on a vector with one of them takes some 150 cycles. Updates meet them when
// a gradient has become zero: its averages halve until they are subnormal, where rounding holds
// them for ever. Products and losses meet them when a network has learnt its batch by heart: the
// probabilities of wrong classes, and all gradients that come from them, are that small. With
// on = false they count as they are, also inside of a kernel that flushes them: what a fused kernel
// does beside its product has the bits of a kernel of its own.
struct FlushSubnormals {
#if defined(__SSE__)
  unsigned before;
  GS_MEMBER explicit FlushSubnormals(bool on = true) : before(_mm_getcsr()) {
    _mm_setcsr(on ? before | 0x8040 : before & ~0x8040u);
  }
  GS_MEMBER ~FlushSubnormals() { _mm_setcsr(before); }
#elif defined(__aarch64__)
  uint64_t before;
  GS_MEMBER explicit FlushSubnormals(bool on = true) {
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" : : "r"((before & ~(1ull << 24)) | (uint64_t)on << 24) : "memory");
  }
  GS_MEMBER ~FlushSubnormals() { asm volatile("msr fpcr, %0" : : "r"(before) : "memory"); }
#endif
};

}  // namespace GS_ISA
}  // namespace gs
