// What the kernels of a program have to do at least: multiply-adds (two operations each) and bytes.
// Operations are those of the direct algorithm, so that a Winograd convolution may pass the peak.
// Bytes are those of the arrays that a kernel touches, once for reading and once for writing.
#include <string.h>

#include "attention.h"
#include "conv.h"
#include "graph.h"
#include "matmul.h"
#include "recurrent.h"

namespace gs {

namespace {

bool begins(const char* name, const char* with) { return !strncmp(name, with, strlen(with)); }

double flops_of(const RecordedOp& op) {
  if (!op.entry) return 0;
  const char* name = op.entry->name;
  const void* p = op.params.data();
  bool backward = strstr(name, "backward") != nullptr;
  if (begins(name, "matmul") && op.params_size == sizeof(MatmulParams)) {
    const MatmulParams& m = *(const MatmulParams*)p;
    return 2.0 * (double)m.m * (double)m.n * (double)m.k * (double)m.batch;
  }
  if (begins(name, "matmul_update")) {
    const MatmulParams& m = ((const MatmulUpdateParams*)p)->product;
    return 2.0 * (double)m.m * (double)m.n * (double)m.k;
  }
  if (begins(name, "conv_") && op.params_size == sizeof(ConvParams)) {
    const ConvParams& c = *(const ConvParams*)p;
    double one = 2.0 * (double)c.n * (double)c.out_h * (double)c.out_w * (double)c.filters *
                 (double)c.kernel_h * (double)c.kernel_w * (double)c.channels / (double)c.groups;
    bool both = backward && (begins(name, "conv_winograd") || begins(name, "conv_bf16_winograd"));
    return both ? one * (((c.wanted & kConvData) != 0) + ((c.wanted & kConvWeight) != 0)) : one;
  }
  if (begins(name, "attention") && op.params_size == sizeof(AttentionParams)) {
    const AttentionParams& a = *(const AttentionParams*)p;
    double pairs = (double)a.tq * (double)a.tk * (a.causal ? 0.5 : 1.0);
    double one = 2.0 * (double)a.batch * (double)a.heads * pairs;
    return backward ? one * (3.0 * (double)a.d + 2.0 * (double)a.dv) : one * (double)(a.d + a.dv);
  }
  if (begins(name, "recurrent") && op.params_size == sizeof(RecurrentParams)) {
    const RecurrentParams& r = *(const RecurrentParams*)p;
    double gates = r.mode == kLstm ? 4 : r.mode == kGru ? 3 : 1;
    return 2.0 * (double)r.steps * (double)r.batch * (double)r.hidden * gates *
           (double)(r.hidden + r.input);
  }
  return 0;
}

}  // namespace

std::vector<Work> Program::work() const {
  std::vector<Work> out;
  for (const Step& s : steps) {
    const RecordedOp& op = ops[(size_t)s.op];
    Work w{flops_of(op), 0};
    for (size_t i = 0; i < op.buffers.size(); ++i) {
      const RecordedBuffer& b = op.buffers[i];
      if (b.object < 0 || objects[(size_t)b.object].kept) continue;
      int access = 0;
      bool first = true;
      for (size_t j = 0; j < op.buffers.size(); ++j)
        if (op.buffers[j].object == b.object) {
          access |= op.buffers[j].access;
          first = first && j >= i;
        }
      if (!first) continue;
      double bytes = (double)objects[(size_t)b.object].bytes;
      w.bytes += bytes * (((access & kRead) != 0) + ((access & kWrite) != 0));
    }
    out.push_back(w);
  }
  return out;
}

}  // namespace gs
