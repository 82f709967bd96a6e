// The time loop of LSTM, GRU and RNN layers, forward and backward.
//
// The input part x W_ih^T of all steps is one product made before, or (LSTM and RNN whose weights
// all stay in a second cache) made here beside the hidden part h W_hh^T of each step, so that it
// never goes through memory. Then the state is updated; backward runs the steps in reverse to the
// gradients of the gates; those of weights and inputs are large products made afterwards.
// Floor: 2 rows G H^2 operations in each direction (H + I forward, with the input); the recurrent
// weights (4 G H^2 bytes) are read once a step, so they must stay in the second caches of the team.
//
// Forward, the weights are packed once, gate-interleaved: a panel holds for N units (a vector) the
// columns of all G gates side by side, so that a register tile of some rows of the batch ends with
// all gates of the same units; they pass through a few lines of the first cache to the update of
// the cell, which reads the input part, and writes state, cell and activated gates once. Backward a
// panel is 4 N units wide over all G H gradients of the gates.
//
// Where the packed weights fit into one core's second cache, the batch is cut into strips, the rows
// of one tile each, and a strip goes through all panels of a step while its state stays near.
// Members take the strip that is furthest behind for some steps at a time, so nobody waits for a
// core that something else slows down, and without that a member keeps to its own. Where they do
// not fit but come from a near third cache, each member has sequences of its own (OwnRows).
// Otherwise items (panel, rows) of a step are dealt in one piece to each member, the same at each
// step, so that a member keeps to its own panels, with one barrier a step. An item's result does
// not depend on the others, so the bits are the same for any team and either way.
#include "recurrent/backward.h"
#include "recurrent/forward.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T, bool BACK>
void plan(const void* params, Plan* plan) {
  const RecurrentParams& p = *(const RecurrentParams*)params;
  Layout<T> s(p, BACK);
  int64_t step = s.cost(p.batch);
  // a few sequences wait for the weights, some 80 bytes a nanosecond from the second cache
  int64_t stream = s.panels * s.depth * s.width * (int64_t)sizeof(T) / 80;
  // a member more must be worth a barrier at each step, which costs more than it seems when the
  // other core was given to somebody else; sequences of its own need none
  int64_t useful = most(step / 20000, step < stream ? stream / 6000 : 0);
  step = most(step, stream);
  int64_t tasks = s.panels * ceil_div(p.batch, (int64_t)s.height);
  if (s.near && p.batch >= 8) {
    useful = most(useful, p.steps * step / 8000);
    tasks = s.strips;
  }
  plan->tasks = most(1, least(least(p.members, useful), tasks));
  plan->work = p.steps * step + s.panels * s.depth * s.width / 4;
  plan->scratch =
      (size_t)(s.weight_bytes() + round_up(p.steps * 8, 64) + s.strips * kStripBytes + 64 +
               (int64_t)sizeof(T) * p.hidden *
                   (BACK      ? p.batch
                    : p.input ? gate_count(p.mode)
                              : 0));
}

const KernelEntry entries[] = {
    {"recurrent", kF32, forward<float>, plan<float, false>},
    {"recurrent", kF64, forward<double>, plan<double, false>},
    {"recurrent_backward", kF32, backward<float>, plan<float, true>},
    {"recurrent_backward", kF64, backward<double>, plan<double, true>},
};

}  // namespace

extern const KernelList recurrent_kernels;
const KernelList recurrent_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
