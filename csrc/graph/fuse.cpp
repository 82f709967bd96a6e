// Rewrites of a recorded list of kernels, made before memory and members are planned: each finds a
// few calls that meet in arrays nobody else sees and puts fewer in their place. All of them leave
// the bits as they are: the fused kernels do the same operations in the same order.
//
// An array is temporary when it is made and used up within the step. A call may take the place of
// another when nothing between the two touches what it reads or writes.
#include <string.h>

#include <algorithm>

#include "activation.h"
#include "conv.h"
#include "elementwise.h"
#include "graph.h"
#include "matmul.h"
#include "norm.h"
#include "optimizer.h"
#include "pool.h"
#include "prepared.h"

namespace gs {

namespace {

// An update of fewer elements than this waits for the next layer's.
constexpr int64_t kUpdate = 1 << 15;
// Products from which on pieces of a matrix product are no good (cpu/matmul/gemm.cpp).
constexpr double kMostUpdated = 1LL << 35;

// Elements of a sum whose pieces are looked at one by one.
constexpr int64_t kMaxPieces = 1 << 23;
// The most bytes of all prepared weights of a program with the copies that they are compared with.
// Transformed filters are 4 times the weights: those of inference have to stay in a second cache,
// or it takes longer to read them than to make them.
constexpr int64_t kPreparedBytes = 8 << 20, kPreparedFilters = 1 << 19;
// Products whose results stay transposed (cpu/matmul/gemm.cpp): rows that one block of steps of the
// next product holds, elements above which none is cut into slices of k, and steps that are one
// block whatever the layout.
constexpr int64_t kChainRows = 1024, kChainLeast = 64 * 64, kOneBlock = 512;
const char* const kPiece = "a piece of a sum, written in place";

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

  explicit Fuser(Program& p) : ops(p.ops), objects(p.objects) {
    dead.assign(ops.size(), 0);
    follows.resize(ops.size());
    index();
  }

  void index() {
    uses.assign(objects.size(), {});
    for (size_t k = 0; k < ops.size(); ++k) {
      if (dead[k]) continue;
      for (size_t i = 0; i < ops[k].buffers.size(); ++i) {
        const RecordedBuffer& b = ops[k].buffers[i];
        if (b.object >= 0)
          uses[(size_t)b.object].push_back(Use{(int)k, (int)i, (b.access & kWrite) != 0});
      }
    }
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

  bool temporary(const RecordedBuffer& b) const {
    if (b.object < 0 || b.offset != 0) return false;
    const MemoryObject& o = objects[(size_t)b.object];
    return o.home == Home::kArena && !o.external && o.init_before < 0;
  }
  // The only call that writes the array, or -1.
  int writer(const RecordedBuffer& b) const {
    int found = -1;
    if (b.object < 0 || b.offset != 0 || objects[(size_t)b.object].init_before >= 0) return -1;
    for (const Use& u : uses[(size_t)b.object])
      if (u.write) {
        if (found >= 0 && found != u.op) return -1;
        found = u.op;
      }
    return found;
  }
  // Reads of an array, all of them from its start; false when one is not.
  bool reads(const RecordedBuffer& b, std::vector<Use>* out) const {
    out->clear();
    if (b.object < 0) return true;
    for (const Use& u : uses[(size_t)b.object]) {
      if (ops[(size_t)u.op].buffers[(size_t)u.buffer].offset != 0) return false;
      if (!u.write || ops[(size_t)u.op].buffers[(size_t)u.buffer].access == kReadWrite)
        out->push_back(u);
    }
    return true;
  }
  static bool same(const RecordedBuffer& a, const RecordedBuffer& b) {
    return a.object == b.object && a.offset == b.offset;
  }
  // Whether `op` may run anywhere from behind call `low` to before call `high`, call `but` apart.
  bool clear(const RecordedOp& op, int low, int high, int but = -1) const {
    for (const RecordedBuffer& x : op.buffers)
      if (x.object >= 0 && objects[(size_t)x.object].init_before >= 0) return false;
    for (int k = low + 1; k < high; ++k) {
      for (const RecordedOp& next : follows[(size_t)k])
        if (conflict(op, next)) return false;
      if (dead[(size_t)k] || k == but) continue;
      if (ops[(size_t)k].check || conflict(op, ops[(size_t)k])) return false;
    }
    return true;
  }
  static bool conflict(const RecordedOp& a, const RecordedOp& b) {
    for (const RecordedBuffer& x : a.buffers)
      for (const RecordedBuffer& y : b.buffers)
        if (x.object >= 0 && x.object == y.object && ((x.access | y.access) & kWrite)) return true;
    return false;
  }
  void changed(RecordedOp& op, const char* note) {
    op.note = note;
    op.entry->plan(op.params.data(), &op.plan);
  }

  // `op` at place `at` in the stead of what stood there and of call `gone`.
  void join(RecordedOp op, int at, int gone, const char* note) {
    changed(op, note);
    ops[(size_t)at] = std::move(op);
    dead[(size_t)gone] = 1;
    index();
  }

  // A ReLU at call k whose backward pass, if any, is known.
  bool find_relu(int k, Relu* r) {
    bool bits = is(k, "activation_mask");
    if (!bits && !is(k, "activation")) return false;
    if (params<ActivationParams>(k).op != kAct_relu) return false;
    r->forward = k;
    r->n = params<ActivationParams>(k).n;
    r->x = buffer(k, 0);
    r->y = buffer(k, 1);
    RecordedBuffer kept = bits ? buffer(k, 2) : r->y;
    if (r->x.object == r->y.object || writer(r->y) != k || writer(kept) != k) return false;
    if (bits && !temporary(kept)) return false;
    std::vector<Use> all;
    if (!reads(kept, &all)) return false;
    for (const Use& u : all) {
      bool back = bits ? is(u.op, "activation_mask_backward")
                       : is(u.op, "activation_backward") && u.buffer == 1 &&
                             params<ActivationParams>(u.op).op == kAct_relu;
      if (!back) {
        if (bits) return false;
        continue;
      }
      if (r->backward >= 0) return false;
      const ActivationParams& q = params<ActivationParams>(u.op);
      if (q.n != r->n || (bits && q.a != 0)) return false;
      r->backward = u.op;
      r->dy = buffer(u.op, 0);
      r->dx = buffer(u.op, 2);
      if (same(r->dy, r->dx)) return false;
    }
    return true;
  }
  // Who reads the output of a ReLU, its own backward pass left out.
  bool readers_of(const Relu& r, std::vector<int>* out) const {
    std::vector<Use> all;
    out->clear();
    if (!reads(r.y, &all)) return false;
    for (const Use& u : all)
      if (u.op != r.backward) out->push_back(u.op);
    return true;
  }
  int only_reader(const RecordedBuffer& b) const {
    std::vector<Use> all;
    return reads(b, &all) && all.size() == 1 ? all[0].op : -1;
  }

  // relu, max_pool, max_pool_backward, relu's backward -> max_pool, max_pool_backward.
  // A window whose maximum is not positive keeps the index of no tap at all, so the gradient that
  // goes back through the pool has the ReLU's zeros already.
  void relu_pool(int k) {
    Relu r;
    if (!find_relu(k, &r) || !temporary(r.y)) return;
    std::vector<int> all;
    if (!readers_of(r, &all) || all.size() != 1 || !is(all[0], "max_pool")) return;
    int pool = all[0], back = -1;
    PoolParams q = params<PoolParams>(pool);
    if (q.relu || q.n * q.h * q.w * q.c != r.n || !same(buffer(pool, 0), r.y)) return;
    RecordedBuffer tap = buffer(pool, 2);
    if (tap.object >= 0) {
      if (!temporary(tap) || writer(tap) != pool) return;
      std::vector<Use> use;
      if (!reads(tap, &use) || use.size() > 1) return;
      if (!use.empty()) {
        back = use[0].op;
        if (!is(back, "max_pool_backward")) return;
      }
    }
    if ((back >= 0) != (r.backward >= 0)) return;
    RecordedOp first = ops[(size_t)pool];
    first.buffers[0] = r.x;
    first.buffers[0].access = kRead;
    if (!clear(first, k, pool)) return;
    if (back >= 0) {
      RecordedBuffer between = buffer(back, 2);
      if (!temporary(between) || !same(between, r.dy) || writer(between) != back ||
          only_reader(between) != r.backward)
        return;
      RecordedOp second = ops[(size_t)back];
      second.buffers[2] = r.dx;
      if (!clear(second, back, r.backward)) return;
      changed(second, "with the ReLU before the pool");
      ops[(size_t)back] = second;
      dead[(size_t)r.backward] = 1;
    }
    ((PoolParams*)first.params.data())->relu = 1;
    changed(first, "with the ReLU before it");
    ops[(size_t)pool] = first;
    dead[(size_t)k] = 1;
    index();
  }

  // Whether call k adds two arrays of n elements.
  bool adds(int k, int64_t n) {
    if (!is(k, "binary")) return false;
    const ElementwiseParams& e = params<ElementwiseParams>(k);
    return e.op == kAdd && e.ndim == 1 && e.shape[0] == n && e.strides[0][0] == 1 &&
           e.strides[1][0] == 1 && e.strides[2][0] == 1 && buffer(k, 0).object >= 0 &&
           buffer(k, 1).object >= 0;
  }
  // A plain channel_norm whose output only call `reader` reads.
  bool plain_norm(int norm, const RecordedBuffer& y, int reader, int64_t n) {
    if (!is(norm, "channel_norm")) return false;
    const ChannelNormParams& p = params<ChannelNormParams>(norm);
    return !p.relu && !p.single() && p.outer * p.rows * p.channels == n &&
           buffer(norm, 6).object < 0 && same(buffer(norm, 7), y) && temporary(y) &&
           only_reader(y) == reader && temporary(buffer(norm, 8));
  }

  // channel_norm, (add,) relu -> channel_norm; the same backward.
  void norm_relu(int k) {
    Relu r;
    if (!find_relu(k, &r) || !temporary(r.x) || only_reader(r.x) != k) return;
    int sum = writer(r.x), norm = -1;
    RecordedBuffer residual{-1, 0, kRead};
    if (adds(sum, r.n)) {
      for (int i = 0; i < 2 && norm < 0; ++i) {
        RecordedBuffer a = buffer(sum, i), b = buffer(sum, 1 - i);
        if (a.object == b.object || !plain_norm(writer(a), a, sum, r.n)) continue;
        norm = writer(a);
        residual = b;
      }
      if (norm < 0) return;
    } else {
      norm = sum;
      sum = -1;
      if (!plain_norm(norm, r.x, k, r.n)) return;
    }
    RecordedOp first = ops[(size_t)norm];
    ((ChannelNormParams*)first.params.data())->relu = 1;
    first.buffers[6] = residual;
    first.buffers[7] = r.y;
    if (!clear(ops[(size_t)norm], norm, k, sum)) return;
    if (sum >= 0 && !clear_reads(residual, sum, k)) return;
    if (r.backward >= 0 && !norm_relu_backward(r, norm, sum >= 0)) return;
    changed(first, sum >= 0 ? "with the sum and the ReLU behind it" : "with the ReLU behind it");
    ops[(size_t)k] = first;
    dead[(size_t)norm] = 1;
    if (sum >= 0) dead[(size_t)sum] = 1;
    index();
  }
  bool norm_relu_backward(const Relu& r, int norm, bool residual) {
    std::vector<Use> all;
    if (!temporary(r.dx) || writer(r.dx) != r.backward || !reads(r.dx, &all)) return false;
    if (!residual && all.size() != 1) return false;
    int back = -1;
    for (const Use& u : all)
      if (is(u.op, "channel_norm_backward") && u.buffer == 0 &&
          same(buffer(u.op, 1), buffer(norm, 0)) && same(buffer(u.op, 2), buffer(norm, 8)))
        back = u.op;
    if (back < 0 || params<ChannelNormParams>(back).relu || buffer(back, 9).object >= 0)
      return false;
    RecordedOp second = ops[(size_t)back];
    ((ChannelNormParams*)second.params.data())->relu = 1;
    second.buffers[0] = r.dy;
    // Without a residual the kernel knows the sign from x; gamma and beta are still those of the
    // forward pass, or nothing could take the place of anything here.
    bool from_x = !residual && buffer(norm, 1).object >= 0 && buffer(norm, 2).object >= 0 &&
                  same(second.buffers[3], buffer(norm, 1));
    if (from_x) {
      second.buffers[4] = buffer(norm, 2);
      if (!clear_reads(second.buffers[4], norm, back)) return false;
    } else {
      second.buffers[5] = r.y;
      second.buffers[5].access = kRead;
    }
    if (residual) second.buffers[9] = r.dx;
    if (!clear(second, r.backward, back)) {
      // others read dx before: then it has to be made first
      if (!residual || !clear(ops[(size_t)back], r.backward, back)) return false;
      changed(second, "with the sum's and the ReLU's");
      ops[(size_t)r.backward] = second;
      dead[(size_t)back] = 1;
      return true;
    }
    changed(second, residual ? "with the sum's and the ReLU's" : "with the ReLU's");
    ops[(size_t)back] = second;
    dead[(size_t)r.backward] = 1;
    return true;
  }
  // Whether nothing writes an array between two calls.
  bool clear_reads(const RecordedBuffer& b, int low, int high) const {
    for (const Use& u : uses[(size_t)b.object])
      if (u.write && u.op > low && u.op < high) return false;
    return true;
  }

  // A new array of the program.
  int add(Home home, size_t bytes) {
    MemoryObject o;
    o.home = home;
    o.bytes = bytes;
    if (home == Home::kConstant)
      o.init.assign(bytes, 0);
    else
      o.written = true;
    objects.push_back(std::move(o));
    return (int)objects.size() - 1;
  }
  // convolution, channel_norm of its output in training -> the statistics of chunks of rows are
  // taken as soon as the convolution has made them. Counters of the rows that are there stay with
  // the program and are zero between launches.
  void norm_stats(int k) {
    static const Kernel piece("channel_norm_piece");
    if (!is(k, "channel_norm")) return;
    ChannelNormParams& p = params<ChannelNormParams>(k);
    RecordedBuffer x = buffer(k, 0);
    int conv = writer(x);
    if (!p.training || p.parts || p.outer != 1 || p.groups != p.channels ||
        (!is(conv, "conv_winograd4_forward") && !is(conv, "conv_winograd2_forward") &&
         !is(conv, "conv_direct_forward")))
      return;
    ConvParams& c = params<ConvParams>(conv);
    if (c.after || c.groups != 1 || !same(buffer(conv, 3), x) || c.filters != p.channels ||
        c.n * c.out_h * c.out_w != p.rows)
      return;
    NormCut cut;
    cut.init(p);
    // panels of columns are at least 8 wide, but for the last
    const int64_t pieces = p.channels / 8 + 1;
    RecordedBuffer parts{add(Home::kArena, (size_t)(cut.chunks * 2 * p.channels * 8)), 0, kWrite};
    RecordedBuffer counters{add(Home::kConstant, (size_t)(cut.chunks * pieces * 4)), 0, kReadWrite};
    c.after = piece.get(kF32)->run;
    c.after_rows = cut.chunk * cut.fold;
    ops[(size_t)conv].buffers.push_back(parts);
    ops[(size_t)conv].buffers.push_back(counters);
    changed(ops[(size_t)conv], "with the statistics of its output");
    p.parts = 1;
    parts.access = kRead;
    ops[(size_t)k].buffers.push_back(parts);
    ops[(size_t)k].entry->plan(ops[(size_t)k].params.data(), &ops[(size_t)k].plan);
    index();
  }

  // Switches on the ReLU of a product or convolution whose output has n elements.
  bool with_relu(int k, RecordedOp* op, int64_t n) {
    if (is(k, "matmul") || is(k, "matmul_dot") || is(k, "matmul_vec")) {
      MatmulParams& p = *(MatmulParams*)op->params.data();
      if (p.act != kActNone || p.after || p.accumulate || p.m * p.n * p.batch != n) return false;
      p.act = kActRelu;
      return true;
    }
    if (!is(k, "conv_winograd4_forward") && !is(k, "conv_winograd2_forward") &&
        !is(k, "conv_direct_forward") && !is(k, "conv_stream_forward") &&
        !is(k, "conv_depthwise_forward"))
      return false;
    ConvParams& p = *(ConvParams*)op->params.data();
    if (p.activation != kConvLinear || p.n * p.out_h * p.out_w * p.filters != n) return false;
    p.activation = kConvRelu;
    return true;
  }

  // matmul or convolution, relu -> matmul or convolution. Backward then looks at the output.
  void bias_relu(int k) {
    static const Kernel from_output("activation_backward");
    Relu r;
    if (!find_relu(k, &r) || !temporary(r.x) || only_reader(r.x) != k) return;
    int product = writer(r.x);
    if (product < 0 || !same(ops[(size_t)product].buffers.back(), r.x)) return;
    RecordedOp op = ops[(size_t)product];
    if (!with_relu(product, &op, r.n)) return;
    op.buffers.back() = r.y;
    if (!clear(op, product, k)) return;
    if (is(r.backward, "activation_mask_backward")) {
      RecordedOp& back = ops[(size_t)r.backward];
      back.entry = from_output.get(kF32);
      back.buffers[1] = r.y;
      back.buffers[1].access = kRead;
      changed(back, "from the output");
    }
    join(op, k, product, "with the ReLU behind it");
  }

  // The product that alone writes the n elements of x and has nothing behind it yet, or -1.
  int plain_product(const RecordedBuffer& x, int64_t n) {
    int k = temporary(x) ? writer(x) : -1;
    if (!is(k, "matmul") || !same(ops[(size_t)k].buffers.back(), x)) return -1;
    const MatmulParams& p = params<MatmulParams>(k);
    bool plain = p.act == kActNone && !p.after && !p.accumulate && p.m * p.n * p.batch == n;
    return plain ? k : -1;
  }
  // Lets `op`, a product, do what activation q says to each piece of its result, with `other`.
  static void set_piece(RecordedOp* op, PieceKind kind, const ActivationParams& q,
                        RecordedBuffer other) {
    static const Kernel piece("activation_piece");
    MatmulParams& p = *(MatmulParams*)op->params.data();
    p.after = piece.get(kF32)->run;
    p.piece = PieceParams{0, 0, 0, q.op, kind, q.a, q.b, q.c};
    op->buffers.push_back(other);
  }

  // matmul, activation -> matmul. Where backward needs the input or the derivative, the product
  // writes that too.
  void bias_activation(int k) {
    static const Kernel from_output("activation_backward");
    bool slope = is(k, "activation_slope"), bits = is(k, "activation_mask");
    if (!slope && !bits && !is(k, "activation")) return;
    const ActivationParams q = params<ActivationParams>(k);
    RecordedBuffer x = buffer(k, 0), y = buffer(k, 1);
    int product = plain_product(x, q.n), back = -1;
    if (product < 0 || x.object == y.object || q.op == kAct_relu) return;
    std::vector<Use> all;
    if (!reads(x, &all)) return;
    bool alone = all.size() == 1;
    RecordedOp op = ops[(size_t)product];
    op.buffers.back() = y;
    const RecordedBuffer none{-1, 0, kRead}, input{x.object, x.offset, kWrite};
    if (slope) {
      if (!alone) return;
      set_piece(&op, kPieceSlope, q, buffer(k, 2));
    } else if (bits) {
      // backward looks at the output instead: the same where that has the sign of the input
      RecordedBuffer kept = buffer(k, 2);
      bool fits = q.op == kAct_hardtanh || (q.op == kAct_leaky_relu && q.a > 0);
      if (!alone || !fits || writer(y) != k || !temporary(kept) || writer(kept) != k) return;
      if (!reads(kept, &all) || all.size() > 1) return;
      if (!all.empty()) {
        back = all[0].op;
        if (!is(back, "activation_mask_backward")) return;
      }
      set_piece(&op, kPieceValue, q, none);
    } else if (alone) {
      set_piece(&op, kPieceValue, q, none);
    } else {
      for (const Use& u : all)
        if (u.op != k) back = u.op;
      bool both =
          q.op == kAct_gelu || q.op == kAct_gelu_tanh || q.op == kAct_silu || q.op == kAct_mish;
      bool once = all.size() == 2 && is(back, "activation_backward") &&
                  params<ActivationParams>(back).op == q.op && same(buffer(back, 1), x) &&
                  !same(buffer(back, 0), x);
      if (!both || !once) back = -1;
      set_piece(&op, back >= 0 ? kPieceSlope : kPieceInput, q, input);
    }
    if (!clear(op, product, k)) return;
    if (back >= 0) {
      RecordedOp& b = ops[(size_t)back];
      ActivationParams& r = params<ActivationParams>(back);
      if (bits) {
        b.entry = from_output.get(kF32);
        b.buffers[1] = y;
        b.buffers[1].access = kRead;
        r = q;
        changed(b, "from the output");
      } else {
        r.op = kAct_product;
        changed(b, "from the derivative");
      }
    }
    join(op, k, product, "with the activation behind it");
  }

  // matmul, activation_backward -> matmul.
  void activation_gradient(int k) {
    if (!is(k, "activation_backward")) return;
    const ActivationParams q = params<ActivationParams>(k);
    RecordedBuffer dy = buffer(k, 0), saved = buffer(k, 1), dx = buffer(k, 2);
    int product = plain_product(dy, q.n);
    if (product < 0 || only_reader(dy) != k || dx.object == dy.object ||
        dx.object == saved.object || saved.object == dy.object)
      return;
    RecordedOp op = ops[(size_t)product];
    op.buffers.back() = dx;
    set_piece(&op, kPieceGrad, q, saved);
    if (!clear(op, product, k)) return;
    join(op, k, product, "with the gradient of the activation");
  }

  // gradient of a convolution, a ReLU's gradient -> the convolution writes zeros where the ReLU's
  // output is not positive. Where the ReLU saved bits, none are made any more: its output is there,
  // for the gradient of the convolution's weights.
  void conv_gradient(int k) {
    static const Kernel plain("activation");
    const bool bits = is(k, "activation_mask_backward");
    if (!bits && !is(k, "activation_backward")) return;
    RecordedBuffer dy = buffer(k, 0), y = buffer(k, 1), dx = buffer(k, 2);
    int conv = temporary(dy) ? writer(dy) : -1, forward = -1;
    if (conv < 0 || only_reader(dy) != k) return;
    if (!is(conv, "conv_winograd4_backward") && !is(conv, "conv_winograd2_backward") &&
        !is(conv, "conv_winograd4_pool_backward") && !is(conv, "conv_winograd2_pool_backward") &&
        !is(conv, "conv_direct_backward_data"))
      return;
    if (bits) {
      forward = writer(y);
      if (!is(forward, "activation_mask") || !temporary(y) || only_reader(y) != k ||
          !same(buffer(forward, 2), y))
        return;
      y = buffer(forward, 1);
      if (y.object == buffer(forward, 0).object || writer(y) != forward) return;
    }
    const ActivationParams& q = params<ActivationParams>(bits ? forward : k);
    ConvParams c = params<ConvParams>(conv);
    if (q.op != kAct_relu || c.gate || !same(buffer(conv, 3), dy) || y.object < 0 ||
        c.n * c.in_h * c.in_w * c.channels != q.n)
      return;
    RecordedOp op = ops[(size_t)conv], late;  // late: what is done earlier than by call k
    for (const RecordedBuffer& b : op.buffers)
      if (b.object == dx.object) return;
    y.access = kRead;
    late.buffers = {y, dx};
    if (dx.object == y.object || !clear(late, conv, k)) return;
    c.gate = 1;
    op.buffers[3] = dx;
    op.buffers.push_back(y);
    memcpy(op.params.data(), &c, sizeof(c));
    if (bits) {
      RecordedOp& first = ops[(size_t)forward];
      first.entry = plain.get(kF32);
      first.buffers.pop_back();
      first.entry->plan(first.params.data(), &first.plan);
    }
    join(op, conv, k, "with the ReLU's gradient");
  }

  // matmul, sum with something else -> matmul that adds it.
  void residual(int k) {
    if (!is(k, "binary")) return;
    const ElementwiseParams& e = params<ElementwiseParams>(k);
    int64_t n = e.ndim == 1 ? e.shape[0] : 0;
    if (!adds(k, n)) return;
    RecordedBuffer sum = buffer(k, 2);
    int product = -1, side = 0;
    for (int i = 0; i < 2; ++i) {
      RecordedBuffer a = buffer(k, i), b = buffer(k, 1 - i);
      int from = a.object == b.object || sum.object == a.object || sum.object == b.object ||
                         only_reader(a) != k
                     ? -1
                     : plain_product(a, n);
      if (from > product) product = from, side = i;
    }
    if (product < 0) return;
    RecordedOp op = ops[(size_t)product];
    op.buffers.back() = sum;
    set_piece(&op, kPieceSum, ActivationParams{}, buffer(k, 1 - side));
    if (!clear(op, product, k)) return;
    join(op, k, product, "with the sum behind it");
  }

  // row_norm_backward, sum with another gradient -> row_norm_backward that adds it.
  void norm_sum(int k) {
    if (!is(k, "binary")) return;
    const ElementwiseParams& e = params<ElementwiseParams>(k);
    int64_t n = e.ndim == 1 ? e.shape[0] : 0;
    if (!adds(k, n)) return;
    RecordedBuffer sum = buffer(k, 2);
    for (int i = 0; i < 2; ++i) {
      RecordedBuffer a = buffer(k, i), b = buffer(k, 1 - i);
      int norm = temporary(a) ? writer(a) : -1;
      if (!is(norm, "row_norm_backward") || a.object == b.object || sum.object == a.object ||
          only_reader(a) != k || !same(buffer(norm, 4), a))
        continue;
      const RowNormParams& p = params<RowNormParams>(norm);
      if (p.sum || p.rows * p.cols != n) continue;
      RecordedOp op = ops[(size_t)norm];
      ((RowNormParams*)op.params.data())->sum = 1;
      op.buffers[4] = sum;
      op.buffers.push_back(b);
      op.buffers.back().access = kRead;
      if (!clear(op, norm, k)) continue;
      join(op, k, norm, "with the other gradient");
      return;
    }
  }

  // A 2 x 2 max-pool, stride 2, of the output of convolution p.
  static bool pool_of(const PoolParams& q, const ConvParams& p) {
    return !q.adaptive && q.kh == 2 && q.kw == 2 && q.sh == 2 && q.sw == 2 && !q.ph && !q.pw &&
           q.dh == 1 && q.dw == 1 && q.index_bytes == 1 && q.oh == p.out_h / 2 &&
           q.ow == p.out_w / 2 && q.n == p.n && q.h == p.out_h && q.w == p.out_w &&
           q.c == p.filters && p.groups == 1;
  }

  // convolution of few channels, 2 x 2 max_pool -> conv_stem_pool; Winograd alike.
  void conv_pool(int k) {
    static const Kernel stem("conv_stem_pool"), four("conv_winograd4_pool"),
        two("conv_winograd2_pool");
    if (is(k, "max_pool_backward")) pool_conv_backward(k);
    if (!is(k, "max_pool")) return;
    const PoolParams& q = params<PoolParams>(k);
    RecordedBuffer x = buffer(k, 0);
    int conv = writer(x);
    const bool direct = is(conv, "conv_direct_forward"), four_ = is(conv, "conv_winograd4_forward");
    if (!direct && !four_ && !is(conv, "conv_winograd2_forward")) return;
    if (!temporary(x) || only_reader(x) != k) return;
    ConvParams p = params<ConvParams>(conv);
    if (!pool_of(q, p) || p.activation != kConvLinear) return;
    if (direct && (p.channels > 4 || p.kernel_h > 7 || p.kernel_w > 7 || p.stride_h != 1 ||
                   p.stride_w != 1 || p.dilation_h != 1 || p.dilation_w != 1))
      return;
    RecordedOp op = ops[(size_t)conv];
    op.buffers[3] = buffer(k, 1);
    op.buffers.push_back(buffer(k, 2));
    if (!clear(op, conv, k)) return;
    if (q.relu) p.activation = kConvRelu;
    p.pool = !direct;
    op.entry = (direct ? stem : four_ ? four : two).get(kF32);
    memcpy(op.params.data(), &p, sizeof(p));
    join(op, k, conv, q.relu ? "with the ReLU and the pool behind it" : "with the pool behind it");
  }
  // max_pool_backward, gradients of a convolution -> the gradients from the pool's.
  void pool_conv_backward(int k) {
    static const Kernel weight("conv_pool_backward_weight"), four("conv_winograd4_pool_backward"),
        two("conv_winograd2_pool_backward");
    RecordedBuffer dy = buffer(k, 0), tap = buffer(k, 1), dx = buffer(k, 2);
    if (!temporary(dx) || writer(dx) != k) return;
    int conv = only_reader(dx);
    const bool direct = is(conv, "conv_direct_backward_weight");
    const bool four_ = is(conv, "conv_winograd4_backward");
    if (!direct && !four_ && !is(conv, "conv_winograd2_backward")) return;
    ConvParams p = params<ConvParams>(conv);
    RecordedOp op = ops[(size_t)conv];
    const size_t from = direct ? 1 : 0;
    if (!same(op.buffers[from], dx) || !pool_of(params<PoolParams>(k), p) ||
        (direct && p.channels >= 16) || tap.object < 0 || dy.object < 0)
      return;
    for (const RecordedBuffer& b : op.buffers)
      if (b.object >= 0 && (b.object == dy.object || b.object == tap.object)) return;
    if (!clear_reads(dy, k, conv) || !clear_reads(tap, k, conv)) return;
    op.buffers[from] = dy;
    op.buffers.push_back(tap);
    p.pool = 1;
    op.entry = (direct ? weight : four_ ? four : two).get(kF32);
    memcpy(op.params.data(), &p, sizeof(p));
    join(op, conv, k, "from the pool's gradient");
  }

  // A temporary of n elements that is, before call `reader`, zeros but for what copies put into
  // parts of it. used: call `reader` is the last one to see it.
  bool pieces_of(const RecordedBuffer& b, int64_t n, int reader, bool used, int* fill,
                 std::vector<int>* copies) {
    *fill = -1;
    copies->clear();
    if (!temporary(b)) return false;
    for (const Use& u : uses[(size_t)b.object]) {
      const RecordedOp& op = ops[(size_t)u.op];
      if (u.op == reader) continue;
      if (u.op > reader) {
        if (used) return false;
        break;
      }
      if (op.buffers[(size_t)u.buffer].offset % 4) return false;
      if (*fill < 0) {
        if (!is(u.op, "fill")) return false;
        const FillParams& f = params<FillParams>(u.op);
        if (f.n != n || f.start != 0 || __builtin_signbit(f.start)) return false;
        *fill = u.op;
      } else if ((is(u.op, "copy") && u.buffer == 1 && params<CopyParams>(u.op).from == kF32) ||
                 (is(u.op, "binary") && u.buffer == 2 && op.note == kPiece)) {
        copies->push_back(u.op);
      } else {
        return false;
      }
    }
    return *fill >= 0;
  }
  // Counts the elements that a copy writes; false when one was there before or lies outside.
  bool mark(int k, std::vector<char>* seen, int64_t* count) {
    const bool plain = is(k, "copy");
    const CopyParams& c = params<CopyParams>(k);
    const ElementwiseParams& e = params<ElementwiseParams>(k);
    int nd = plain ? c.ndim : e.ndim;
    const int64_t *shape = plain ? c.shape : e.shape, *step = plain ? c.out_strides : e.strides[2];
    int64_t index[kMaxDims] = {}, at = ops[(size_t)k].buffers[plain ? 1 : 2].offset / 4;
    for (int d = 0; d < nd; ++d)
      if (shape[d] == 0) return true;
    for (;;) {
      if (at < 0 || at >= (int64_t)seen->size() || (*seen)[(size_t)at]) return false;
      (*seen)[(size_t)at] = 1;
      ++*count;
      int d = nd - 1;
      for (; d >= 0; --d) {
        at += step[d];
        if (++index[d] < shape[d]) break;
        at -= shape[d] * step[d];
        index[d] = 0;
      }
      if (d < 0) return true;
    }
  }

  // Two arrays of zeros with a piece copied into each, added -> the pieces written into one. A
  // piece is written as x + 0, so that -0 becomes 0 as it does in the sum.
  void pieces(int k) {
    static const Kernel adding("binary");
    if (!is(k, "binary")) return;
    int64_t n = params<ElementwiseParams>(k).shape[0];
    if (!adds(k, n) || n > kMaxPieces) return;
    RecordedBuffer a = buffer(k, 0), b = buffer(k, 1), sum = buffer(k, 2);
    int fill_a, fill_b;
    std::vector<int> in_a, in_b;
    bool into_a = sum.object == a.object, into_b = sum.object == b.object;
    if (a.object == b.object || !temporary(sum) || !pieces_of(a, n, k, !into_a, &fill_a, &in_a) ||
        !pieces_of(b, n, k, !into_b, &fill_b, &in_b))
      return;
    if (!into_a && !into_b && uses[(size_t)sum.object][0].op != k) return;
    std::vector<char> seen((size_t)n, 0);
    int64_t count = 0;
    in_a.insert(in_a.end(), in_b.begin(), in_b.end());
    for (int c : in_a)
      if (!mark(c, &seen, &count)) return;
    for (int c : in_a) {
      RecordedOp& op = ops[(size_t)c];
      if (is(c, "copy")) {
        const CopyParams p = params<CopyParams>(c);
        ElementwiseParams e{};
        e.op = kAdd;
        e.ndim = p.ndim;
        for (int d = 0; d < p.ndim; ++d) {
          e.shape[d] = p.shape[d];
          e.strides[0][d] = p.in_strides[d];
          e.strides[2][d] = p.out_strides[d];
        }
        op.entry = adding.get(kF32);
        op.params_size = sizeof(e);
        op.params.assign((sizeof(e) + 7) / 8, 0);
        memcpy(op.params.data(), &e, sizeof(e));
        op.buffers.insert(op.buffers.begin() + 1, RecordedBuffer{-1, 0, kRead});
        changed(op, kPiece);
      }
      op.buffers[2].object = sum.object;
    }
    // zeros first, unless the pieces leave no room for them
    int first = std::min(fill_a, fill_b), other = std::max(fill_a, fill_b);
    ops[(size_t)first].buffers[0] = sum;
    dead[(size_t)other] = dead[(size_t)k] = 1;
    if (count == n) dead[(size_t)first] = 1;
    index();
  }

  // One update of all parameters -> one for each layer, as soon as its gradients are there and
  // nothing reads its weights any more.
  void optimizer(int k) {
    int scalars = 0;
    if (!scalars_of(ops[(size_t)k], &scalars) || scalars != kOptimizerScalars) return;
    const RecordedOp whole = ops[(size_t)k];
    const OptimizerParams& p = *(const OptimizerParams*)whole.params.data();
    if (whole.buffers[0].object >= 0 || p.count < 2) return;
    const int64_t* sizes = (const int64_t*)(&p + 1);
    auto part = [&](const std::vector<int>& which) { return update_of(whole, which); };
    // The last call before this one that each parameter has to wait for.
    std::vector<std::pair<int, int>> ready;
    for (int i = 0; i < (int)p.count; ++i) {
      RecordedOp one = part({i});
      int last = k - 1;
      while (last >= 0 && clear(one, last - 1, last + 1)) --last;
      ready.emplace_back(last, i);
    }
    std::stable_sort(ready.begin(), ready.end());
    std::vector<int> group;
    int64_t elements = 0;
    int groups = 0;
    for (size_t i = 0; i < ready.size(); ++i) {
      group.push_back(ready[i].second);
      elements += sizes[ready[i].second];
      bool last = i + 1 == ready.size();
      if (!last && (elements < kUpdate || ready[i + 1].first == ready[i].first)) continue;
      if (last && groups == 0) return;  // nothing to split
      RecordedOp op = part(group);
      changed(op, "right after its gradients");
      if (ready[i].first >= 0)
        follows[(size_t)ready[i].first].push_back(op);
      else
        follows[(size_t)k].push_back(op);
      group.clear();
      elements = 0;
      ++groups;
    }
    dead[(size_t)k] = 1;
    index();
  }

  // The call that updates some parameters, `which` of call `whole`.
  static RecordedOp update_of(const RecordedOp& whole, const std::vector<int>& which) {
    const OptimizerParams& p = *(const OptimizerParams*)whole.params.data();
    int64_t each = ((int64_t)whole.buffers.size() - 1) / p.count;
    RecordedOp op = whole;
    op.params_size = sizeof(OptimizerParams) + which.size() * 8;
    op.params.resize(op.params_size / 8);
    op.buffers.assign(1, whole.buffers[0]);
    OptimizerParams* q = (OptimizerParams*)op.params.data();
    q->count = (int64_t)which.size();
    for (size_t i = 0; i < which.size(); ++i) {
      ((int64_t*)(q + 1))[i] = ((const int64_t*)(&p + 1))[which[i]];
      auto at = whole.buffers.begin() + 1 + which[i] * each;
      op.buffers.insert(op.buffers.end(), at, at + each);
    }
    return op;
  }

  // matmul that makes a gradient, update of the parameter -> matmul that updates what it has made
  // of it. The gradient is there afterwards as before: others may read it.
  void gradient_update(int k) {
    int scalars = 0;
    if (!scalars_of(ops[(size_t)k], &scalars) || scalars != kOptimizerScalars ||
        ops[(size_t)k].entry->dtype != kF32 || buffer(k, 0).object >= 0)
      return;
    const OptimizerParams& p = params<OptimizerParams>(k);
    const int64_t count = p.count, each = ((int64_t)ops[(size_t)k].buffers.size() - 1) / count;
    if (each - 1 > kMaxUpdated) return;
    std::vector<int> left;
    for (int i = 0; i < (int)count; ++i)
      if (!merge_update(k, update_of(ops[(size_t)k], {i}))) left.push_back(i);
    if ((int64_t)left.size() == count) return;
    if (left.empty()) {
      dead[(size_t)k] = 1;
    } else {
      RecordedOp rest = update_of(ops[(size_t)k], left);
      changed(rest, ops[(size_t)k].note);
      ops[(size_t)k] = std::move(rest);
    }
    index();
  }
  // one: the update of one parameter, a part of call k.
  bool merge_update(int k, const RecordedOp& one) {
    static const Kernel kernel("matmul_update");
    const RecordedBuffer gradient = one.buffers[2];
    const int from = writer(gradient);
    const OptimizerParams& rule = *(const OptimizerParams*)one.params.data();
    const int64_t size = ((const int64_t*)(&rule + 1))[0];
    if (from >= k || !is(from, "matmul") || !same(ops[(size_t)from].buffers.back(), gradient))
      return false;
    const MatmulParams& p = params<MatmulParams>(from);
    if (p.act != kActNone || p.after || p.batch != 1 || p.k < 1 || p.m * p.n != size ||
        size < kUpdate || !((p.c_cs == 1 && p.c_rs == p.n) || (p.c_rs == 1 && p.c_cs == p.m)) ||
        (double)size * (double)p.k >= kMostUpdated)
      return false;
    // The place behind all that the update has to wait for.
    RecordedOp changes = one;
    changes.buffers.erase(changes.buffers.begin() + 2);
    int at = k - 1;
    while (at > from && clear(one, at - 1, at + 1)) --at;
    RecordedOp op = ops[(size_t)from];
    if (conflict(changes, op) || !clear(op, from - 1, at + 1, from) ||
        (at == from && !clear(one, from - 1, from + 1, from)))
      return false;
    op.entry = kernel.get(kF32);
    MatmulUpdateParams q{};
    q.product = p;
    q.update = one.entry->run;
    q.updated = (int64_t)changes.buffers.size() - 1;
    q.rule = rule;
    q.size = size;
    op.buffers.insert(op.buffers.end(), changes.buffers.begin() + 1, changes.buffers.end());
    op.params_size = sizeof(q);
    op.params.assign((sizeof(q) + 7) / 8, 0);
    memcpy(op.params.data(), &q, sizeof(q));
    changed(op, "with the update of its parameter");
    if (at == from) {
      ops[(size_t)from] = std::move(op);
    } else {
      follows[(size_t)at].push_back(std::move(op));
      dead[(size_t)from] = 1;
    }
    index();
    return true;
  }

  // ---- results that stay transposed

  // C = A B as C^T = B^T A^T.
  void turn(int k) {
    MatmulParams& p = params<MatmulParams>(k);
    std::swap(p.m, p.n);
    std::swap(p.a_rs, p.b_cs);
    std::swap(p.a_cs, p.b_rs);
    std::swap(p.c_rs, p.c_cs);
    std::swap(p.bias_rs, p.bias_cs);
    std::swap(buffer(k, 0), buffer(k, 1));
  }
  // Who reads array x, of (n, m) numbers, made by call k alone, also behind activations: products
  // C^T = W x^T, and those C = x W^T that give the same bits that way. False: somebody else, too.
  bool find_products(int k, const RecordedBuffer& x, int64_t m, int64_t n,
                     std::vector<int>* found) const {
    std::vector<Use> readers;
    if (!temporary(x) || writer(x) != k || !reads(x, &readers) || readers.empty()) return false;
    for (const Use& u : readers) {
      const RecordedOp& op = ops[(size_t)u.op];
      if (is(u.op, "activation")) {
        const ActivationParams& q = *(const ActivationParams*)op.params.data();
        if (u.buffer != 0 || q.n != m * n || op.buffers[1].access != kWrite ||
            !find_products(u.op, op.buffers[1], m, n, found))
          return false;
        continue;
      }
      if (!is(u.op, "matmul")) return false;
      const MatmulParams& p = *(const MatmulParams*)op.params.data();
      if (p.batch != 1 || p.prepared || p.k != m) return false;
      const bool product = u.buffer == 1 && p.n == n && p.b_rs == 1 && p.b_cs == m && p.a_cs == 1 &&
                           p.c_rs == 1 && p.c_cs != 1;
      const bool other = u.buffer == 0 && p.m == n && p.a_cs == 1 && p.a_rs == m && p.b_rs == 1 &&
                         p.c_cs == 1 && p.n > 1 && p.k <= kOneBlock && p.bias_rs == 0 && !p.after;
      if (!product && !other) return false;
      found->push_back(u.op);
    }
    return true;
  }
  // matmul whose result C^T = W x^T only such products read: C is stored instead, as they want it.
  // Neither is it transposed when it is stored nor again when it is packed.
  void transposed(int k) {
    if (!is(k, "matmul") || ops[(size_t)k].buffers.size() != 4) return;
    MatmulParams& p = params<MatmulParams>(k);
    if (p.batch != 1 || p.after || p.prepared || p.accumulate || p.m < 2 || p.n < 2 ||
        p.a_cs != 1 || p.c_rs != 1 || p.c_cs != p.m || p.m > kChainRows ||
        p.m * p.n <= kChainLeast || buffer(k, 3).access != kWrite)
      return;
    std::vector<int> found;
    if (!find_products(k, buffer(k, 3), p.m, p.n, &found)) return;
    p.c_rs = p.n;
    p.c_cs = 1;
    p.chain |= kChainDepth | kChainOut;
    changed(ops[(size_t)k], ops[(size_t)k].note ? "with the ReLU behind it, stored transposed"
                                                : "stored transposed");
    for (int i : found) {
      MatmulParams& q = params<MatmulParams>(i);
      if (q.c_cs == 1) turn(i);
      q.b_rs = q.n;
      q.b_cs = 1;
      q.chain |= kChainDepth | kChainIn;
      changed(ops[(size_t)i], ops[(size_t)i].note);
    }
    index();
  }

  // ---- weights that kernels transform or pack before they multiply by them

  struct Prepared {
    RecordedBuffer weight, kept;
    PreparedParams p;
    std::vector<std::pair<int, int>> readers;  // call, form
    int update, index;                         // the call that changes it, or -1; which parameter
  };

  // Whether call k, which multiplies by its second buffer, can have that prepared, and how.
  // form->at: the bytes that it takes.
  bool form_of(int k, PreparedParams* p, WeightForm* form) {
    static const Kernel four("prepare_winograd4"), two("prepare_winograd2"),
        four_data("prepare_winograd4_data"), two_data("prepare_winograd2_data"),
        packed("prepare_matmul");
    static_assert(sizeof(MatmulParams) <= sizeof(form->params), "kFormWords");
    static_assert(sizeof(ConvParams) <= sizeof(form->params), "kFormWords");
    const KernelEntry* entry = nullptr;
    *form = WeightForm{};
    Plan plan{1, 0, 0};
    if (is(k, "matmul")) {
      MatmulParams m = params<MatmulParams>(k);
      const bool turned = m.b_rs == 1 && m.n > 1;
      p->rows = turned ? m.n : m.k;
      p->row = turned ? m.k : m.n;
      if ((turned ? m.b_cs : m.b_rs) != p->row || turned == (m.b_cs == 1)) return false;
      m.prepared = 1;
      memcpy(form->params, &m, sizeof(m));
      entry = packed.get(kF32);
      entry->plan(&m, &plan);
    } else {
      const bool four_ = is(k, "conv_winograd4_forward") || is(k, "conv_winograd4_pool");
      const bool two_ = is(k, "conv_winograd2_forward") || is(k, "conv_winograd2_pool");
      const bool four_back =
          is(k, "conv_winograd4_backward") || is(k, "conv_winograd4_pool_backward");
      const bool two_back =
          is(k, "conv_winograd2_backward") || is(k, "conv_winograd2_pool_backward");
      if (!four_ && !two_ && !four_back && !two_back) return false;
      const ConvParams& c = params<ConvParams>(k);
      ConvParams small{};  // what the form depends on
      small.channels = c.channels;
      small.filters = c.filters;
      p->rows = c.filters;
      p->row = 9 * c.channels;
      memcpy(form->params, &small, sizeof(small));
      entry = (four_ ? four : two_ ? two : four_back ? four_data : two_data).get(kF32);
      entry->plan(&c, &plan);
    }
    form->write = entry->run;
    form->at = (int64_t)plan.scratch;
    return plan.scratch > 0;
  }

  // The call that changes a weight of n elements, alone, and that is an update without a norm: -1
  // when nothing does, -2 when something else does.
  int update_of_weight(const RecordedBuffer& w, int64_t n, int* index) {
    int found = -1;
    for (const Use& u : uses[(size_t)w.object]) {
      if (!u.write) continue;
      if (found >= 0) return -2;
      found = u.op;
      const RecordedOp& op = ops[(size_t)u.op];
      if (!op.entry || op.entry->dtype != kF32 || !same(op.buffers[(size_t)u.buffer], w)) return -2;
      if (is(u.op, "matmul_update")) {
        const MatmulUpdateParams& m = params<MatmulUpdateParams>(u.op);
        if (u.buffer != 4 || m.size != n) return -2;
        continue;
      }
      int scalars = 0;
      if (!scalars_of(ops[(size_t)u.op], &scalars) || scalars != kOptimizerScalars ||
          op.buffers[0].object >= 0)
        return -2;
      const OptimizerParams& p = params<OptimizerParams>(u.op);
      const int64_t each = ((int64_t)op.buffers.size() - 1) / p.count;
      *index = (int)((u.buffer - 1) / each);
      if ((u.buffer - 1) % each || each > kMaxUpdated + 1 ||
          ((const int64_t*)(&p + 1))[*index] != n)
        return -2;
    }
    return found;
  }

  // Gives each its memory, as long as there is room.
  void place_prepared(std::vector<Prepared>* all) {
    int64_t used[2] = {0, 0};
    std::vector<Prepared> placed;
    for (Prepared& x : *all) {
      int64_t at = 0;
      auto take = [&](int64_t bytes) {
        const int64_t was = at;
        at += (bytes + 63) / 64 * 64;
        return was;
      };
      take((x.p.rows + kPreparedRows - 1) / kPreparedRows * 4);
      x.p.copy_at = take(x.p.rows * x.p.row * 4);
      for (int i = 0; i < (int)x.p.forms; ++i) x.p.form[i].at = take(x.p.form[i].at);
      const bool filters = x.update < 0 && !is(x.readers[0].first, "matmul");
      if (used[filters] + at > (filters ? kPreparedFilters : kPreparedBytes)) continue;
      used[filters] += at;
      x.kept = RecordedBuffer{add(Home::kConstant, 0), 0, kReadWrite};
      objects.back().bytes = (size_t)at;
      objects.back().kept = true;
      placed.push_back(x);
    }
    all->swap(placed);
  }

  // Weights that the program does not change (`fixed`) stay prepared from replay to replay; for
  // those that an update changes (`updated`) it writes what the next replay multiplies by. One call
  // at the start looks whether the weights are still the same.
  void prepared_weights(bool fixed, bool updated, std::vector<RecordedOp>* first) {
    static const Kernel check("prepared_weights");
    std::vector<Prepared> all;
    for (int k = 0; k < (int)ops.size(); ++k) {
      PreparedParams p{};
      WeightForm form;
      if (!form_of(k, &p, &form)) continue;
      const RecordedBuffer w = buffer(k, 1);
      if (w.object < 0 || w.offset % 4) continue;
      const MemoryObject& o = objects[(size_t)w.object];
      if (o.home != Home::kFixed || w.offset + p.rows * p.row * 4 > (int64_t)o.bytes) continue;
      Prepared* at = nullptr;
      for (Prepared& x : all)
        if (same(x.weight, w)) at = &x;
      if (!at) {
        int index = -1, update = update_of_weight(w, p.rows * p.row, &index);
        if (update == -2 || !(update < 0 ? fixed : updated) || !fits(update, p)) continue;
        all.push_back(Prepared{w, {-1, 0, kRead}, p, {}, update, index});
        at = &all.back();
      }
      PreparedParams& q = at->p;
      if (q.rows != p.rows || q.row != p.row) continue;
      int which = -1;
      for (int i = 0; i < (int)q.forms; ++i)
        if (q.form[i].write == form.write &&
            !memcmp(q.form[i].params, form.params, sizeof(form.params)))
          which = i;
      if (which < 0) {
        if (q.forms == kMaxForms) continue;
        which = (int)q.forms++;
        q.form[which] = form;
      }
      at->readers.emplace_back(k, which);
    }
    place_prepared(&all);
    if (all.empty()) return;

    RecordedOp look;
    look.entry = check.get(kF32);
    look.params_size = sizeof(PreparedCheckParams) + all.size() * sizeof(PreparedParams);
    look.params.assign(look.params_size / 8, 0);
    ((PreparedCheckParams*)look.params.data())->count = (int64_t)all.size();
    PreparedParams* list = (PreparedParams*)(look.params.data() + sizeof(PreparedCheckParams) / 8);
    for (Prepared& x : all) {
      *list++ = x.p;
      look.buffers.push_back(RecordedBuffer{x.weight.object, x.weight.offset, kRead});
      look.buffers.push_back(x.kept);
      for (auto& r : x.readers) {
        RecordedOp& op = ops[(size_t)r.first];
        const int64_t units = (x.p.rows + kPreparedRows - 1) / kPreparedRows;
        if (is(r.first, "matmul"))
          params<MatmulParams>(r.first).prepared = units;
        else
          params<ConvParams>(r.first).prepared = (int32_t)units;
        op.buffers.push_back(RecordedBuffer{x.kept.object, 0, kRead});
        op.buffers.push_back(RecordedBuffer{x.kept.object, x.p.form[r.second].at, kRead});
        changed(op, op.note ? op.note : "with prepared weights");
      }
    }
    for (int k = 0; k < (int)ops.size(); ++k) prepare_in_update(k, all);
    changed(look, "compared with what was prepared");
    first->push_back(std::move(look));
  }
  // Whether pieces of an update are whole rows of the weight.
  bool fits(int update, const PreparedParams& p) {
    if (!is(update, "matmul_update")) return true;
    const MatmulParams& m = params<MatmulUpdateParams>(update).product;
    return p.row == (m.c_cs == 1 ? m.n : m.m);
  }
  // Call k, an update, writes the forms of those of `all` that it changes.
  void prepare_in_update(int k, const std::vector<Prepared>& all) {
    static const Kernel kernel("prepared_update");
    std::vector<char> taken;
    for (const Prepared& x : all) {
      if (x.update != k) continue;
      if (is(k, "matmul_update")) {
        RecordedOp& op = ops[(size_t)k];
        params<MatmulUpdateParams>(k).prepared = x.p;
        op.buffers.push_back(x.kept);
        changed(op, "with the update of its parameter, which is prepared");
        return;
      }
      const RecordedOp one = update_of(ops[(size_t)k], {x.index});
      PreparedUpdateParams q{};
      q.prepared = x.p;
      q.update = one.entry->run;
      q.states = (int64_t)one.buffers.size() - 3;
      q.rule = *(const OptimizerParams*)one.params.data();
      q.size = x.p.rows * x.p.row;
      RecordedOp op;
      op.entry = kernel.get(kF32);
      op.params_size = sizeof(q);
      op.params.assign((sizeof(q) + 7) / 8, 0);
      memcpy(op.params.data(), &q, sizeof(q));
      op.buffers.assign(one.buffers.begin() + 1, one.buffers.end());
      op.buffers.push_back(x.kept);
      changed(op, "with what the next step multiplies by");
      follows[(size_t)k].push_back(std::move(op));
      taken.resize((size_t)params<OptimizerParams>(k).count, 0);
      taken[(size_t)x.index] = 1;
    }
    if (taken.empty()) return;
    std::vector<int> left;
    for (size_t i = 0; i < taken.size(); ++i)
      if (!taken[i]) left.push_back((int)i);
    if (left.empty()) {
      dead[(size_t)k] = 1;
      return;
    }
    RecordedOp rest = update_of(ops[(size_t)k], left);
    changed(rest, ops[(size_t)k].note);
    ops[(size_t)k] = std::move(rest);
  }

  // Takes the dead out and puts the new ones in.
  void finish() {
    std::vector<RecordedOp> next;
    std::vector<int> at(ops.size() + 1);
    for (size_t k = 0; k < ops.size(); ++k) {
      at[k] = (int)next.size();
      if (!dead[k]) next.push_back(std::move(ops[k]));
      for (RecordedOp& op : follows[k]) next.push_back(std::move(op));
    }
    for (MemoryObject& o : objects)
      if (o.init_before >= 0) o.init_before = at[(size_t)o.init_before];
    ops.swap(next);
  }
};

}  // namespace

void Program::fuse() {
  auto each = [this](bool on, void (Fuser::*rewrite)(int)) {
    if (!on) return;
    Fuser f(*this);
    for (int k = 0; k < (int)f.ops.size(); ++k)
      if (!f.dead[(size_t)k]) (f.*rewrite)(k);
    f.finish();
  };
  each(options.relu_pool, &Fuser::relu_pool);
  each(options.conv_pool, &Fuser::conv_pool);
  each(options.norm_relu, &Fuser::norm_relu);
  each(options.norm_stats, &Fuser::norm_stats);
  each(options.bias_relu, &Fuser::bias_relu);
  each(options.bias_activation, &Fuser::bias_activation);
  each(options.activation_gradient, &Fuser::activation_gradient);
  each(options.conv_gradient, &Fuser::conv_gradient);
  each(options.residual, &Fuser::residual);
  each(options.norm_sum, &Fuser::norm_sum);
  each(options.pieces, &Fuser::pieces);
  each(options.gradient_update, &Fuser::gradient_update);
  each(options.optimizer, &Fuser::optimizer);
  each(options.transposed, &Fuser::transposed);
  if (options.prepared_weights || options.prepared_updates) {
    Fuser f(*this);
    std::vector<RecordedOp> first;
    f.prepared_weights(options.prepared_weights, options.prepared_updates, &first);
    f.finish();
    ops.insert(ops.begin(), first.begin(), first.end());
    for (MemoryObject& o : objects)
      if (o.init_before >= 0) o.init_before += (int)first.size();
  }
}

}  // namespace gs
