// One unit of a prepared weight (include/prepared.h).
#pragma once
#include <string.h>

#include "prepared.h"

namespace gs {
namespace GS_ISA {
namespace {

GS_INLINE int64_t prepared_units(const PreparedParams& p) {
  return (p.rows + kPreparedRows - 1) / kPreparedRows;
}

struct WeightUnit {
  const PreparedParams& p;
  const float* w;  // of the whole weight
  char* kept;
  int64_t t;

  GS_MEMBER int64_t rows() const {
    const int64_t left = p.rows - t * kPreparedRows;
    return left < kPreparedRows ? left : kPreparedRows;
  }
  GS_MEMBER int32_t* state() const { return (int32_t*)kept + t; }
  GS_MEMBER const float* now() const { return w + t * kPreparedRows * p.row; }
  GS_MEMBER float* copied() const { return (float*)(kept + p.copy_at) + t * kPreparedRows * p.row; }
  GS_MEMBER size_t bytes() const { return (size_t)(rows() * p.row) * sizeof(float); }

  // Unknown while it is written: a process that is forked in between starts anew.
  GS_MEMBER void begin() const {
    __atomic_store_n(state(), (int32_t)kUnitUnknown, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
  }
  GS_MEMBER void end(UnitState s) const { __atomic_store_n(state(), (int32_t)s, __ATOMIC_RELEASE); }
  GS_MEMBER void copy() const { memcpy(copied(), now(), bytes()); }
  GS_MEMBER void forms() const {
    const int64_t count = rows();
    for (int64_t i = 0; i < p.forms; ++i) {
      const FormCall call{p.form[i].params, t * kPreparedRows, count};
      void* buf[2] = {kept + p.copy_at, kept + p.form[i].at};  // of what is compared
      p.form[i].write(&call, buf, nullptr);
    }
  }
  // After the update of a unit.
  GS_MEMBER void prepare() const {
    begin();
    copy();
    forms();
    end(kUnitReady);
  }
  // Before a replay.
  GS_MEMBER void look() const {
    const int32_t s = *state();
    if (s == kUnitUnknown || memcmp(copied(), now(), bytes()) != 0) {
      begin();
      copy();
      end(kUnitCopied);
    } else if (s == kUnitCopied) {
      begin();
      forms();
      end(kUnitReady);
    }
  }
};

// Whether a reader may use its form.
GS_INLINE bool prepared_ready(const void* states, int64_t units) {
  for (int64_t t = 0; t < units; ++t)
    if (((const int32_t*)states)[t] != kUnitReady) return false;
  return true;
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
