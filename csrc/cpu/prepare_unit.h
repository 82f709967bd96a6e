// One unit of a prepared weight (include/prepared.h): its forms, then its copy.
#pragma once
#include "prepared.h"

#include <string.h>

namespace gs {
namespace GS_ISA {
namespace {

GS_INLINE int64_t prepared_units(const PreparedParams& p) {
  return (p.rows + kPreparedRows - 1) / kPreparedRows;
}
GS_INLINE int64_t unit_rows(const PreparedParams& p, int64_t t) {
  const int64_t left = p.rows - t * kPreparedRows;
  return left < kPreparedRows ? left : kPreparedRows;
}

// The flag is down meanwhile: a process that is forked in between makes the unit anew.
GS_INLINE void prepare_unit(const PreparedParams& p, const float* w, char* kept, int64_t t) {
  int32_t* made = (int32_t*)kept + t;
  const int64_t first = t * kPreparedRows, count = unit_rows(p, t);
  __atomic_store_n(made, 0, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  for (int64_t i = 0; i < p.forms; ++i) {
    const FormCall call{p.form[i].params, first, count};
    void* buf[2] = {(void*)w, kept + p.form[i].at};
    p.form[i].write(&call, buf, nullptr);
  }
  memcpy((float*)(kept + p.copy_at) + first * p.row, w + first * p.row,
         (size_t)(count * p.row) * sizeof(float));
  __atomic_store_n(made, 1, __ATOMIC_RELEASE);
}

GS_INLINE bool unit_is_good(const PreparedParams& p, const float* w, const char* kept, int64_t t) {
  const int64_t first = t * kPreparedRows * p.row;
  return __atomic_load_n((const int32_t*)kept + t, __ATOMIC_ACQUIRE) &&
         memcmp((const float*)(kept + p.copy_at) + first, w + first,
                (size_t)(unit_rows(p, t) * p.row) * sizeof(float)) == 0;
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
