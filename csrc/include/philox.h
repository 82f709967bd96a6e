// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a pure
// function of a 64-bit key and a 128-bit counter. gradsmith addresses it as key = seed, counter =
// (element block, op counter): element i of an op takes word i % 4 of the block i / 4, so a stream
// does not depend on how the work is split, nor on the device.
#pragma once
#include "kernel.h"

namespace gs {

struct Philox4 {
  uint32_t v[4];
};

GS_INLINE Philox4 philox(uint64_t seed, uint64_t op, uint64_t block) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32);
  uint32_t c2 = (uint32_t)op, c3 = (uint32_t)(op >> 32);
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Philox4{{c0, c1, c2, c3}};
}

// Uniform in [0, 1) with 24 bits.
GS_INLINE float uniform24(uint32_t x) { return (float)(x >> 8) * (1.0f / 16777216.0f); }

}  // namespace gs
