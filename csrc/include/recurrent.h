// Parameters of the recurrent family: one direction of one layer over all its steps.
#pragma once
#include "kernel.h"

namespace gs {

enum RecurrentMode : int32_t { kLstm, kGru, kRnnTanh, kRnnRelu, kRecurrentModes };

// Rows: one for each (step t, sequence b). Dense: row t * row_t + b * row_b. Packed: step t has
// sizes[t] rows, not more than the step before, one step after the other.
// G gates (4, 3 or 1; order i f g o, r z n), H = hidden.
//
// recurrent           buffers: gates (rows, gate_row) in: input part x W_ih^T + b_ih,
//                     out: activated gates; w_hh (G H, H), b_hh (G H) or null, h0 (batch, H) or
//                     null, c0 or null, sizes int64 (steps) or null, out (rows, out_row), hprev
//                     (rows, state_row): the state before each step, aux (rows, H): LSTM: the cell
//                     before each step, GRU: the hidden part of n, null for RNN; hn (batch, H), cn
//                     (LSTM) or null; where p.input is not 0: x (rows, I), w_ih (G H, I), b_ih (G
//                     H) or null, and gates is written only, null with p.pair.
// recurrent_backward  buffers: gates, w_hh, sizes, hprev, aux as left by the forward; dout (rows,
//                     out_row) or null, dhn (batch, H) or null, dcn or null; dgates (rows,
//                     gate_row): gradient of the input part, dhidden: the same of the hidden part
//                     (GRU; else null), dh0 (batch, H) or null, dc0 or null.
struct RecurrentParams {
  int64_t steps, batch, hidden;
  int64_t row_t, row_b, out_row;
  int32_t mode, reverse;
  int32_t members;  // threads that may come, never changes the result
  int32_t pair;   // forward of dense rows without a backward: gates stay the input part, and hprev
                  // and aux (LSTM only) are (2, batch, H), the states before even and odd steps
  int64_t l2;     // bytes of second cache a core has, neither
  int64_t input;  // I where forward multiplies the input too (not GRU), else 0
  int64_t near_l3;    // whether the third level is fast, see Machine
  int64_t state_row;  // elements from a row of hprev to the next, H or more, and
  int64_t gate_row;   // from a row of gates, dgates and dhidden, G H or more
};

}  // namespace gs
