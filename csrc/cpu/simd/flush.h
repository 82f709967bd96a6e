// Subnormal numbers as zero, for the kernels that need it.
#pragma once
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {

// While it lives, subnormal numbers count as zero, where they are read and where they would be
// written. An operation on a vector with one of them takes some 150 cycles. Updates meet them when
// a gradient has become zero: its averages halve until they are subnormal, where rounding holds
// them for ever. Products and losses meet them when a network has learnt its batch by heart: the
// probabilities of wrong classes, and all gradients that come from them, are that small.
struct FlushSubnormals {
#if defined(__SSE__)
  unsigned before;
  GS_MEMBER explicit FlushSubnormals(bool on = true) : before(_mm_getcsr()) {
    _mm_setcsr(before | (on ? 0x8040 : 0));
  }
  GS_MEMBER ~FlushSubnormals() { _mm_setcsr(before); }
#elif defined(__aarch64__)
  uint64_t before;
  GS_MEMBER explicit FlushSubnormals(bool on = true) {
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" : : "r"(before | (uint64_t)on << 24) : "memory");
  }
  GS_MEMBER ~FlushSubnormals() { asm volatile("msr fpcr, %0" : : "r"(before) : "memory"); }
#endif
};

}  // namespace GS_ISA
}  // namespace gs
