// What rewrites a recorded list of kernels: the questions that all rewrites ask, and the rewrites,
// a file for each kind of kernel (fuse_*.cpp).
#pragma once
#include <string.h>

#include "activation.h"
#include "conv.h"
#include "graph.h"
#include "pool.h"
#include "prepared.h"

namespace gs {

struct Use {
  int op, buffer;
  bool write;
};

// A ReLU with its backward pass: either bits or the output itself is kept.
struct Relu {
  int forward = -1, backward = -1;
  RecordedBuffer x, y;    // of forward
  RecordedBuffer dy, dx;  // of backward, when there is one
  int64_t n = 0;
};

struct Fuser {
  std::vector<RecordedOp>& ops;
  std::vector<MemoryObject>& objects;
  std::vector<std::vector<Use>> uses;            // by object
  std::vector<char> dead;                        // by op
  std::vector<std::vector<RecordedOp>> follows;  // by op: new ones behind it

  const Options& options;

  explicit Fuser(Program& p) : ops(p.ops), objects(p.objects), options(p.options) {
    dead.assign(ops.size(), 0);
    follows.resize(ops.size());
    index();
  }
  bool is(int k, const char* name) const {
    return k >= 0 && !dead[(size_t)k] && ops[(size_t)k].entry &&
           ops[(size_t)k].entry->dtype == kF32 && strcmp(ops[(size_t)k].entry->name, name) == 0;
  }
  template <class P>
  P& params(int k) {
    return *(P*)ops[(size_t)k].params.data();
  }
  RecordedBuffer& buffer(int k, int i) { return ops[(size_t)k].buffers[(size_t)i]; }
  static bool same(const RecordedBuffer& a, const RecordedBuffer& b) {
    return a.object == b.object && a.offset == b.offset;
  }
  void changed(RecordedOp& op, const char* note) {
    op.note = note;
    op.entry->plan(op.params.data(), &op.plan);
  }

  // fuse.cpp
  void index();
  bool temporary(const RecordedBuffer& b) const;
  int writer(const RecordedBuffer& b) const;
  bool reads(const RecordedBuffer& b, std::vector<Use>* out) const;
  bool clear(const RecordedOp& op, int low, int high, int but = -1) const;
  static bool conflict(const RecordedOp& a, const RecordedOp& b);
  void join(RecordedOp op, int at, int gone, const char* note);
  bool find_relu(int k, Relu* r);
  bool readers_of(const Relu& r, std::vector<int>* out) const;
  int only_reader(const RecordedBuffer& b) const;
  bool adds(int k, int64_t n);
  bool clear_reads(const RecordedBuffer& b, int low, int high) const;
  int add(Home home, size_t bytes);
  void finish();

  // fuse_conv.cpp
  bool conv_y(int op) const;        // a convolution that takes part in what reads its output
  bool conv_dx(int op) const;       // one whose dx can have a sum and a gate (conv.h)
  bool conv_pool_dx(int op) const;  // the same behind a pool
  void relu_pool(int k);
  bool add_in_conv(int k, int i);
  void gradient_sum(int k);
  void conv_gradient(int k);
  void norm_gradient(int k);
  static bool pool_of(const PoolParams& q, const ConvParams& p);
  void conv_pool(int k);
  void pool_conv_backward(int k);

  // fuse_norm.cpp
  bool plain_norm(int norm, const RecordedBuffer& y, int reader, int64_t n);
  void norm_relu(int k);
  bool norm_relu_backward(const Relu& r, int norm, bool residual);
  void norm_stats(int k);
  void norm_sum(int k);

  // fuse_matmul.cpp
  bool with_relu(int k, RecordedOp* op, int64_t n);
  void bias_relu(int k);
  int plain_product(const RecordedBuffer& x, int64_t n);
  static void set_piece(RecordedOp* op, PieceKind kind, const ActivationParams& q,
                        RecordedBuffer other);
  void bias_activation(int k);
  void activation_gradient(int k);
  void residual(int k);
  void turn(int k);
  bool find_products(int k, const RecordedBuffer& x, int64_t m, int64_t n,
                     std::vector<int>* found) const;
  void transposed(int k);

  // fuse_pieces.cpp
  bool pieces_of(const RecordedBuffer& b, int64_t n, int reader, bool used, int* fill,
                 std::vector<int>* copies);
  bool mark(int k, std::vector<char>* seen, int64_t* count);
  void pieces(int k);

  // fuse_recurrent.cpp
  void last_step(int k);

  // fuse_update.cpp
  void optimizer(int k);
  static RecordedOp update_of(const RecordedOp& whole, const std::vector<int>& which);
  void gradient_update(int k);
  bool merge_update(int k, const RecordedOp& one, bool any);

  // fuse_prepared.cpp
  struct Prepared {
    RecordedBuffer weight, kept;
    PreparedParams p;
    std::vector<std::pair<int, int>> readers;  // call, form
    int update, index;                         // the call that changes it, or -1; which parameter
  };
  bool form_of(int k, PreparedParams* p, WeightForm* form);
  int update_of_weight(const RecordedBuffer& w, int64_t n, int* index);
  void place_prepared(std::vector<Prepared>* all);
  void prepared_weights(bool fixed, bool updated, std::vector<RecordedOp>* first);
  bool fits(int update, const PreparedParams& p);
  void prepare_in_update(int k, const std::vector<Prepared>& all);
};

}  // namespace gs
