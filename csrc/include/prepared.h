// Weights as kernels multiply by them: transformed or packed, kept with a captured program, so that
// who reads them finds them made.
//
// The memory of one weight of `rows` rows of `row` float32, called kept: an int32 UnitState for
// each unit of kPreparedRows rows, a copy of the weights, and their forms. Readers
// (ConvParams::prepared, MatmulParams::prepared, the number of units) have the states and a form as
// their last buffers and use the form when all units are ready; else they do without.
//
// prepared_weights: compares every unit with its copy, since anybody may have changed the weights.
// What differs is copied, what does not and has no form gets it: weights that change all the time
// cost a copy and no form. Params PreparedCheckParams and `count` PreparedParams behind it.
// buffers: for each weight: w, kept. prepared_update: an update of one weight, unit by unit, with
// its forms. buffers: w (in/out), g (in), states (in/out), kept.
#pragma once
#include "kernel.h"
#include "optimizer.h"

namespace gs {

constexpr int64_t kPreparedRows = 16;  // a whole number of vectors
constexpr int kMaxForms = 2;
constexpr int kFormWords = 64;

enum UnitState : int32_t { kUnitUnknown, kUnitCopied, kUnitReady };

// write: makes the form of a whole unit of rows. params FormCall, buffers: w, form. Its `plan` says
// how many bytes the form of a consumer's parameters takes: 0 where it has none.
struct FormCall {
  const void* params;    // of the consumer
  int64_t first, count;  // rows
};
struct WeightForm {
  KernelFn write;
  int64_t at;  // bytes from kept
  int64_t params[kFormWords];
};
struct PreparedParams {
  int64_t rows, row, copy_at, forms;
  WeightForm form[kMaxForms];
};
struct PreparedCheckParams {
  int64_t count;
};
struct PreparedUpdateParams {
  PreparedParams prepared;
  KernelFn update;
  int64_t states;
  OptimizerParams rule;
  int64_t size;  // of p, behind it as OptimizerParams wants
};

}  // namespace gs
