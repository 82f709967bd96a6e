// Transpose of a square tile in registers: simd<T>::N vectors of N lanes.
//
// log2 N stages; each interleaves vector i with vector i + N/2. After the last stage vector i holds
// what was lane i of every vector.
#pragma once
#include "vec.h"

namespace gs {
namespace GS_ISA {

#if GS_VBYTES == 64
GS_INLINE vf interleave_lo(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
GS_INLINE vf interleave_hi(vf a, vf b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
}
GS_INLINE vd interleave_lo(vd a, vd b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
GS_INLINE vd interleave_hi(vd a, vd b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#elif GS_VBYTES == 32
GS_INLINE vf interleave_lo(vf a, vf b) {
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
GS_INLINE vf interleave_hi(vf a, vf b) {
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
GS_INLINE vd interleave_lo(vd a, vd b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
GS_INLINE vd interleave_hi(vd a, vd b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
#else
GS_INLINE vf interleave_lo(vf a, vf b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
GS_INLINE vf interleave_hi(vf a, vf b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
GS_INLINE vd interleave_lo(vd a, vd b) { return __builtin_shufflevector(a, b, 0, 2); }
GS_INLINE vd interleave_hi(vd a, vd b) { return __builtin_shufflevector(a, b, 1, 3); }
#endif

// v (N) -> its transpose
template <class T>
GS_INLINE void transpose(typename simd<T>::V* v) {
  constexpr int N = simd<T>::N;
  typename simd<T>::V u[N];
#pragma GCC unroll 4
  for (int stage = 1; stage < N; stage *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; ++i) {
      u[2 * i] = interleave_lo(v[i], v[i + N / 2]);
      u[2 * i + 1] = interleave_hi(v[i], v[i + N / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = u[i];
  }
}

}  // namespace GS_ISA
}  // namespace gs
