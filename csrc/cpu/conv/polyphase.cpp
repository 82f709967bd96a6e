// Convolution 3 x 3 of stride 2 by Winograd products of its phases: forward and both gradients, the
// exact adjoint of each step (see polyphase.h).
//
// x (n, in_h, in_w, C), w (K, 3, 3, C), y (n, out_h, out_w, K), bias, gate as other kernels have
// them. Of the three operands of a pass one is transformed before the others, for all tasks:
//
// - forward and backward-data by tiles (many tiles): the filters; a task takes a block of tiles,
//   transforms it into the second-level cache, multiplies it with each panel of filters and
//   transforms the sums;
// - by filters (few tiles, so that the filters would be read once a tile or two): the tiles; a task
//   takes a panel, transforms its filters slice by slice and multiplies all tiles of its range;
// - backward-weight: x; a task takes up to 64 filters and a panel of channels, transforms dy of
//   these filters and keeps du of 36 forms in the second-level cache. Tiles pass in rounds.
//
// Members make that first operand together, but few of them each for itself where it is a small
// part of the work, or where rounds would write again and again what the others have read: cores
// with third levels of their own wait long for that.
//
// conv_bf16_polyphase_*, the same with rounded operands: what is transformed holds pairs of
// channels, for backward-weight pairs of rows.
//
// Floor: 2 * 81 tiles C K operations a pass (pairs: in half of the time), some 200 vector
// operations a tile and vector of channels, 36 stores a vector of filters.
#include "conv/polyphase.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t B = sizeof(float), kWidth = kPanel * kLanes;

struct Job {
  Grid g;
  Panels out;          // of what is made
  int64_t in, groups;  // elements that are summed over, in groups of 64
  int64_t ld;          // of their rows
  bool by_filters;
  int64_t images, tasks;  // images of a task, tasks
  int64_t rows;           // tile rows of a block (by tiles), of a round (backward-weight)
  int64_t panel_tasks;    // backward-data by tiles: tasks of the same images
  int64_t units;          // by filters: tile rows of a range; forward by tiles: of a task
  int64_t slice;          // by filters: elements that are summed over at a time
  int64_t filters;        // backward-weight: of a task
  Phases most;            // tiles of a block or a range
  TilePairs x, dm;        // backward-weight: of a round, dy's
  int64_t rounds;
  Planes u;        // of a slice
  bool own_first;  // each member has a first operand of its own
  // bytes: of the first operand; of zeros; of what a member has of its own from own_at on, in it
  // zeros, a sink, the first operand (own_first) and what a task needs
  size_t first, zeros, own_at, own, queue_at, scratch;
  size_t du_at;         // backward-weight: where tasks have their sums, if there are rounds
  int64_t du, dm_room;  // floats of a task's du, of its dm
};

// Cycles to transform a vector: of a tile, of filters.
constexpr double kTileCycles = 250, kFormCycles = 150;
// The part of the work up to which each member rather makes the first operand for itself: filters,
// tiles, tiles of rounds. Pairs are multiplied in half of the time, so waiting weighs more.
constexpr double kOwnForms = kPair == 2 ? 0.13 : 0.015, kOwnTiles = kPair == 2 ? 0.2 : 0,
                 kOwnRounds = 0.08;

GS_INLINE int64_t tile_elements(const Phases& s, int64_t groups) { return s.size() * groups; }
// The length of a row that holds `count` elements of a group: pairs of few channels leave no gaps.
GS_INLINE int64_t row_of(int64_t count) {
  return kPair == 1 ? kGroup : min64(kGroup, ceil_div(count, 16) * 16);
}

// Transformed filters: panels of 36 planes of `rows` rows
GS_INLINE int64_t forms_at(int64_t rows, const Panels& out, int64_t i) {
  return kForms * (rows * out.first(i) * kLanes + 16 * i);
}
GS_INLINE int64_t forms_size(int64_t rows, const Panels& out) {
  return kForms * (rows * out.padded + 16 * out.count);
}

// What both gradients and forward have in common. in, made: channels that are summed over, that are
// made
Job common(const ConvParams& p, int64_t in, int64_t made) {
  Job j{};
  j.g = grid_of<4>(p);
  j.out = panels_of<float>(made);
  j.in = elements(in);
  j.groups = ceil_div(j.in, kGroup);
  j.ld = row_of(j.in);
  j.zeros = align64((size_t)((max64(p.channels, p.filters) + kLanes) * B));
  j.rounds = 1;
  return j;
}

// A first operand that takes `cycles` to make is made by each member for itself where that is at
// most `part` of the work.
bool makes_own(const ConvParams& p, const Job& j, double cycles, double part) {
  const double products = 0.5 / kPair * kPlanes * (double)j.g.tiles * (double)p.channels *
                          (double)ceil_div(p.filters, kLanes);
  return (double)(p.threads - 1) * cycles < part * products;
}

// Forward, or backward-data (data): a task of that has whole images, since tiles share pixels.
Job make_job(const ConvParams& p, bool data) {
  Job j = common(p, data ? p.filters : p.channels, data ? p.channels : p.filters);
  const int64_t members = max64(1, p.threads), all = p.n * j.g.rows, per = j.g.rows * j.g.cols;
  const int64_t width = min64(kWidth, j.out.padded), floats = forms_size(j.in, j.out);
  const int64_t room = max64(p.l2 * 6 / 10 / (kPlanes * width * B), 32);
  j.by_filters = floats * B > p.l2 && all > 0 && j.g.tiles <= 2 * room && j.out.count > 1;
  size_t mine;
  if (!j.by_filters) {
    const int64_t space =
        floats * B < p.l2 / 2 ? max64(p.l2 * 55 / 100 - floats * B, p.l2 / 5) : p.l2 * 6 / 10;
    const int64_t most = max64(min64(space / (kPlanes * (j.groups * j.ld + width) * B), 48), 12);
    j.panel_tasks = 1;
    if (data) {
      // tasks for all members; how many images one has does not change a sum
      const int64_t share = members > 1 ? ceil_div(p.n, 2 * members) : p.n;
      j.images = max64(1, min64(most / per, share));
      j.tasks = max64(1, ceil_div(p.n, j.images));
      j.rows = max64(1, per <= most ? j.images * j.g.rows : most / j.g.cols);
      if (j.tasks < 2 * members) j.panel_tasks = min64(j.out.count, ceil_div(2 * members, j.tasks));
      j.tasks *= j.panel_tasks;
    } else {
      j.tasks = max64(1, max64(ceil_div(all, max64(1, most / j.g.cols)), min64(members, all)));
      if (j.tasks > 1 && j.tasks < all) j.tasks += j.tasks % 2;
      j.rows = ceil_div(all, j.tasks);
    }
    j.most = Phases{j.rows * j.g.cols, j.ld};
    j.first = align64((size_t)(floats * B));
    j.own_first = makes_own(p, j, kFormCycles * (double)(j.in * j.out.vectors), kOwnForms);
    mine = (size_t)((tile_elements(j.most, j.groups) + Phases{j.most.rows}.size()) * B);
  } else {
    const int64_t rows = data ? j.g.rows : 1;  // that stay together
    j.units = max64(rows, room / j.g.cols / rows * rows);
    j.units = ceil_div(all / rows, ceil_div(all, j.units)) * rows;
    j.most = Phases{j.units * j.g.cols, j.ld};
    const int64_t ranges = ceil_div(all, j.units);
    j.tasks = ranges * j.out.count;
    j.slice = kGroup;
    while (j.slice > 16 && kForms * j.slice * width * B > p.l2 * 6 / 10) j.slice /= 2;
    j.u = planes(j.slice, width);
    j.first = align64((size_t)(ranges * tile_elements(j.most, j.groups) * B));
    mine = (size_t)((kForms * j.u.step + Phases{j.most.rows}.size()) * B);
  }
  j.own_at = j.own_first ? 0 : j.first;
  j.own = align64(2 * j.zeros + (j.own_first ? j.first : 0) + mine);
  j.queue_at = j.own_at + (size_t)members * j.own;
  j.scratch = j.queue_at + (size_t)members * kQueueBytes;
  return j;
}

// m (+)= v u for all planes of groups [g0, g1): v (groups, planes, tiles, 64), u (forms, elements
// of these groups, nv vectors), m (planes, tiles, 64)
void multiply(int nv, const float* v, Phases s, int64_t g0, int64_t g1, int64_t c0, int64_t c1,
              const float* u, Planes us, float* m, bool add, Ahead* first, Ahead* then) {
  const Phases ms{s.rows};
  for (int f = 0; f < kForms; ++f)
    for (int64_t g = g0; g < g1; ++g) {
      const int64_t from = max64(g * kGroup, c0), to = min64((g + 1) * kGroup, c1);
      product<float, false>(nv, v + g * s.size() + s.at(f) + from % kGroup, s.ld,
                            Phases::planes(f) * s.rows, u + f * us.step + (from - c0) * us.ld,
                            us.ld, to - from, m + ms.at(f), kGroup, add || g > g0,
                            f < 24 ? first : then);
    }
}
// Register tiles of that.
GS_INLINE int64_t multiply_steps(int nv, int64_t rows, int64_t groups) {
  return groups * (25 * product_steps(nv, rows, kGroup) + 10 * product_steps(nv, 4 * rows, kGroup) +
                   product_steps(nv, 16 * rows, kGroup));
}

struct Pass {
  const ConvParams& p;
  const Job& j;
  const Ctx* ctx;
  bool data;
  const float *from, *w, *bias, *gate;
  float* to;
  void* const* buf;
  char* own;
  const float* zeros;
  float *first, *sink, *mine;

  void transform(int64_t t0, int64_t t1, float* v, Phases s) const {
    if (data)
      phase_gradients(p, j.g, from, zeros, t0, t1, 0, p.filters, v, s, s.size());
    else
      phase_inputs(p, j.g, from, zeros, t0, t1, v, 0, s, s.size());
  }
  // of elements [c0, c1)
  void filters(int64_t i, int64_t c0, int64_t c1, float* u, Planes s) const {
    const int64_t k0 = j.out.first(i) * kLanes;
    if (data)
      forms_backward(p, w, k0, j.out.nv(i), c0 * kPair, min64(c1 * kPair, p.filters), u, s);
    else
      forms(p, w, k0, j.out.nv(i), c0 * kPair, min64(c1 * kPair, p.channels), u, s);
  }
  int64_t lanes(int64_t i) const {
    return min64(j.out.nv(i) * kLanes, j.out.channels - j.out.first(i) * kLanes);
  }
  // What comes behind the products of tiles [t0, t1) and panel i.
  void finish(int64_t i, const float* m, Phases s, int64_t t0, int64_t t1) const {
    const int64_t k0 = j.out.first(i) * kLanes;
    const float* b = bias ? bias + k0 : nullptr;
    if (data)
      phase_input_gradients(p, j.g, m, s, t0, t1, b, zeros, sink, to + k0, lanes(i),
                            gate ? gate + k0 : gate);
    else
      phase_outputs(p, j.g, m, s, t0, t1, b, to + k0, lanes(i));
  }
  Ahead input_ahead(int64_t t0, int64_t t1) const {
    return data ? pixels_ahead(j.g, from, p.out_h, p.out_w, p.filters, p.filters, 4, 4, 0, t0, t1,
                               ctx->follows)
                : pixels_ahead(j.g, from, p.in_h, p.in_w, p.channels, p.channels, 8, kPatch,
                               p.pad_h, t0, t1, ctx->follows);
  }
  Ahead output_ahead(int64_t i, int64_t t0, int64_t t1) const {
    const float* at = to + j.out.first(i) * kLanes;
    Ahead a = data ? pixels_ahead(j.g, at, p.in_h, p.in_w, p.channels, lanes(i), 8, kPatch, p.pad_h,
                                  t0, t1, ctx->follows)
                   : pixels_ahead(j.g, at, p.out_h, p.out_w, p.filters, lanes(i), 4, 4, 0, t0, t1,
                                  ctx->follows);
    a.write = true;
    return a;
  }
  // The rows of y that tile rows [r0, r1) are are there, see written().
  void tell(int64_t r0, int64_t r1, int64_t col, int64_t cols, int64_t piece,
            int64_t pieces) const {
    if (data || !p.after) return;
    auto first_row = [&](int64_t r) {
      return (r / j.g.rows * p.out_h + r % j.g.rows * 4) * p.out_w;
    };
    written(p, buf, first_row(r0), first_row(r1), col, cols, piece, pieces);
  }

  // Tile rows [r0, r1) of a task.
  void span(int64_t task, int64_t* r0, int64_t* r1) const {
    const int64_t all = p.n * j.g.rows;
    if (data) {
      const int64_t sets = j.tasks / j.panel_tasks, t = task / j.panel_tasks;
      *r0 = t * p.n / sets * j.g.rows;
      *r1 = (t + 1) * p.n / sets * j.g.rows;
    } else {
      *r0 = task * all / j.tasks;
      *r1 = (task + 1) * all / j.tasks;
    }
  }

  void by_tiles(const Shares& shares) const {
    // one after the other, since each fetches what the next reads
    const int64_t tid = j.own_first ? 0 : ctx->tid, nt = j.own_first ? 1 : ctx->nt;
    const int64_t slices = ceil_div(j.in, 16), all = j.out.count * slices;
    for (int64_t t = tid * all / nt; t < (tid + 1) * all / nt; ++t) {
      const int64_t i = t / slices, c = t % slices * 16;
      const Planes s = planes(j.in, j.out.nv(i) * kLanes);
      filters(i, c, min64(c + 16, j.in), first + forms_at(j.in, j.out, i) + c * s.ld, s);
    }
    ctx->sync();
    float *v = mine, *m = v + tile_elements(j.most, j.groups);
    int64_t next = 0;
    for (int64_t task = after(shares, -1); task < j.tasks; task = next) {
      int64_t r0, r1, n0 = 0, n1 = 0;
      span(task, &r0, &r1);
      next = after(shares, task);
      if (next < j.tasks) span(next, &n0, &n1);
      const int64_t part = task % j.panel_tasks;
      const int64_t i0 = part * j.out.count / j.panel_tasks;
      const int64_t i1 = (part + 1) * j.out.count / j.panel_tasks;
      for (int64_t r = r0; r < r1; r += j.rows) {
        const int64_t end = min64(r + j.rows, r1), t0 = r * j.g.cols, t1 = end * j.g.cols;
        const Phases s{t1 - t0, j.ld}, ms{t1 - t0};
        transform(t0, t1, v, s);
        // half of the products bring the next block, half what this one makes
        Ahead in{};
        if (end < r1)
          in = input_ahead(t1, min64(end + j.rows, r1) * j.g.cols);
        else if (n0 < n1)
          in = input_ahead(n0 * j.g.cols, min64(n0 + j.rows, n1) * j.g.cols);
        const int64_t steps = multiply_steps(kPanel, t1 - t0, j.groups) / 2;
        in.spread((i1 - i0) * steps);
        for (int64_t i = i0; i < i1; ++i) {
          Ahead out = output_ahead(i, t0, t1);
          out.spread(steps);
          const Planes us = planes(j.in, j.out.nv(i) * kLanes);
          multiply(j.out.nv(i), v, s, 0, j.groups, 0, j.in, first + forms_at(j.in, j.out, i), us, m,
                   false, &out, &in);
          finish(i, m, ms, t0, t1);
        }
        tell(r, end, 0, p.filters, 0, 1);
      }
      if (data)
        for (int64_t i = i0; i < i1; ++i) rest(i, r0 / j.g.rows, r1 / j.g.rows);
    }
  }

  void rest(int64_t i, int64_t n0, int64_t n1) const {
    const int64_t k0 = j.out.first(i) * kLanes;
    rest_of_images(p, j.g, n0, n1, bias ? bias + k0 : nullptr, zeros, to + k0, lanes(i));
  }

  // The task behind `task` (-1: the first), known before that is done so that its operands can be
  // fetched: by a counter whoever comes first would have two, so few tasks are dealt out.
  int64_t after(const Shares& shares, int64_t task) const {
    if (j.tasks >= 4 * ctx->nt) return shares.take();
    if (task < 0) task = ctx->tid * j.tasks / ctx->nt - 1;
    return task + 1 < (ctx->tid + 1) * j.tasks / ctx->nt ? task + 1 : j.tasks;
  }
  int64_t after(const Queue& queue, int64_t task) const {
    if (j.tasks >= 4 * ctx->nt) return queue.take();
    return task < 0 ? ctx->tid : task + ctx->nt;
  }
  // The weights that filters(i, c0, c1) reads.
  Ahead weights_ahead(int64_t i, int64_t c0, int64_t c1) const {
    const int64_t C = p.channels, k0 = j.out.first(i) * kLanes;
    c0 *= kPair;
    c1 = min64(c1 * kPair, data ? p.filters : C);
    const int64_t bytes = (data ? lanes(i) : c1 - c0) * B;
    return Ahead{(const char*)(w + (data ? c0 * 9 * C + k0 : k0 * 9 * C + c0)),
                 (data ? c1 - c0 : lanes(i)) * 9,
                 bytes,
                 C * B,
                 true,
                 nullptr,
                 0,
                 0,
                 false};
  }

  void by_filters(Queue queue) const {
    const int64_t all = p.n * j.g.rows, ranges = ceil_div(all, j.units);
    const int64_t size = tile_elements(j.most, j.groups);
    auto phases = [&](int64_t r) {
      return Phases{(min64((r + 1) * j.units, all) - r * j.units) * j.g.cols, j.ld};
    };
    for (int64_t r = 0; r < ranges; ++r) {
      const Phases s = phases(r);
      const int64_t t0 = r * j.units * j.g.cols, t = ctx->tid * s.rows / ctx->nt;
      transform(t0 + t, t0 + (ctx->tid + 1) * s.rows / ctx->nt, first + r * size + t * s.ld, s);
    }
    ctx->sync();
    float *u = mine, *m = u + kForms * j.u.step;
    int64_t next = 0;
    for (int64_t task = after(queue, -1); task < j.tasks; task = next) {
      const int64_t i = task / ranges, r = task % ranges;
      const Phases s = phases(r);
      next = after(queue, task);
      const int64_t r0 = r * j.units, t0 = r0 * j.g.cols, t1 = t0 + s.rows;
      Ahead out = output_ahead(i, t0, t1);
      const int64_t steps = multiply_steps(j.out.nv(i), s.rows, 1);
      for (int64_t c = 0; c < j.in; c += j.slice) {
        const int64_t end = min64(c + j.slice, j.in), g = c / kGroup;
        filters(i, c, end, u, j.u);
        // products bring the weights of the next slice, the last ones what they make
        Ahead ws{};
        if (end < j.in)
          ws = weights_ahead(i, end, min64(end + j.slice, j.in));
        else if (next < j.tasks)
          ws = weights_ahead(next / ranges, 0, min64(j.slice, j.in));
        if (end == j.in) {
          out.spread(steps / 3);
          ws.spread(steps / 3);
          ws.then = &out;
        } else {
          ws.spread(steps);
        }
        multiply(j.out.nv(i), first + r * size, s, g, g + 1, c, end, u, j.u, m, c > 0, &ws, &ws);
      }
      finish(i, m, Phases{s.rows}, t0, t1);
      tell(r0, r0 + s.rows / j.g.cols, j.out.first(i) * kLanes, lanes(i), i, j.out.count);
      if (data) rest(i, r0 / j.g.rows, min64(r0 + j.units, all) / j.g.rows);
    }
  }
};

template <bool Data>
void run(const void* params, void* const* buf, const Ctx* ctx) {
  const ConvParams& p = *(const ConvParams*)params;
  const Job j = make_job(p, Data);
  char* own = ctx->scratch + j.own_at + (size_t)ctx->tid * j.own;
  memset(own, 0, j.zeros);
  const Shares shares{ctx->scratch + j.queue_at, j.tasks, ctx->nt, ctx->tid};
  if (ctx->tid == 0) shares.reset();
  const Pass pass{p,
                  j,
                  ctx,
                  Data,
                  (const float*)buf[0],
                  (const float*)buf[1],
                  (const float*)buf[2],
                  Data && p.gate ? (const float*)buf[4] : nullptr,
                  (float*)buf[3],
                  buf,
                  own,
                  (const float*)own,
                  (float*)(j.own_first ? own + 2 * j.zeros : ctx->scratch),
                  (float*)(own + j.zeros),
                  (float*)(own + 2 * j.zeros + (j.own_first ? j.first : 0))};
  if (j.by_filters)
    pass.by_filters(queue_at(shares.at, 0));
  else
    pass.by_tiles(shares);
}

int64_t work(const ConvParams& p) {
  return (int64_t)((double)grid_of<4>(p).tiles * kPlanes * (double)p.channels * (double)p.filters /
                   (GS_VBYTES * kPair)) +
         1000;
}

template <bool Data>
void plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  const Job j = make_job(p, Data);
  plan->tasks = min64(max64(1, p.threads), j.tasks);
  plan->scratch = j.scratch;
  plan->work = work(p);
}

// ---- backward weight

Job make_weight_job(const ConvParams& p) {
  Job j = common(p, p.channels, p.channels);
  // rows of pairs have a channel an element
  j.groups = ceil_div(p.channels, kGroup);
  j.ld = row_of(p.channels);
  const int64_t members = max64(1, p.threads), all = p.n * j.g.rows;
  // rounds whose tiles, both operands' of a task, pass through the second-level cache, or all tiles
  const int64_t row = kPlanes * j.groups * j.ld * B * j.g.cols / kPair;
  j.rows = max64(1, min64(all, all * row <= 3 * p.l2 ? all : p.l2 * 2 / 3 / row));
  j.rounds = max64(1, ceil_div(all, j.rows));
  j.x = TilePairs{ceil_div(all, j.rounds) * j.g.cols, j.ld};
  // tasks for all members; which does what does not change a sum
  j.filters = kGroup;
  while (j.filters > 16 && ceil_div(p.filters, j.filters) * j.out.count < members) j.filters /= 2;
  // of about one size
  j.filters = ceil_div(ceil_div(p.filters, ceil_div(p.filters, j.filters)), 16) * 16;
  j.tasks = ceil_div(p.filters, j.filters) * j.out.count;
  j.u = planes(kGroup, min64(kWidth, j.out.padded));
  j.du = kForms * j.u.step;
  j.first = align64((size_t)(j.x.size() * j.groups * B));
  // rows of dm are read beyond their end
  j.dm = TilePairs{j.x.rows, row_of(j.filters)};
  j.dm_room = j.dm.size() + kGroup;
  // tiles of a round are written where those of the last one were read
  j.own_first = makes_own(p, j, kTileCycles * (double)(j.g.tiles * ceil_div(p.channels, kLanes)),
                          j.rounds > 1 ? kOwnRounds : kOwnTiles);
  j.own_at = j.own_first ? 0 : j.first;
  j.own = align64(j.zeros + (j.own_first ? j.first : 0) +
                  (size_t)((j.dm_room + (j.rounds > 1 ? 0 : j.du)) * B));
  j.du_at = j.own_at + (size_t)members * j.own;
  j.scratch = j.du_at + (j.rounds > 1 ? (size_t)(j.tasks * j.du * B) : 0);
  return j;
}

// db of filters [k0, k1) (+)= sums of dy over tile rows [r0, r1)
void bias_gradient(const ConvParams& p, const Grid& g, const float* dy, int64_t r0, int64_t r1,
                   int64_t k0, int64_t k1, bool add, float* db) {
  for (int64_t k = k0; k < k1; k += kLanes) {
    const int lanes = (int)min64(kLanes, k1 - k);
    PV all = add ? load_n(db + k, lanes) : PV{};
    for (int64_t r = r0; r < r1; ++r) {
      const int64_t row = r % g.rows * 4, pixels = min64(4, p.out_h - row) * p.out_w;
      const float* q = dy + (r / g.rows * p.out_h + row) * p.out_w * p.filters + k;
      for (int64_t i = 0; i < pixels; i += 128) {
        PV sum = {};
        for (int64_t l = i; l < min64(i + 128, pixels); ++l)
          sum += load_n(q + l * p.filters, lanes);
        all += sum;
      }
    }
    store_n(db + k, all, lanes);
  }
}

void weight(const void* params, void* const* buf, const Ctx* ctx) {
  const ConvParams& p = *(const ConvParams*)params;
  const Job j = make_weight_job(p);
  const float *x = (const float*)buf[0], *dy = (const float*)buf[1];
  float *dw = (float*)buf[2], *db = (float*)buf[3];
  char* own = ctx->scratch + j.own_at + (size_t)ctx->tid * j.own;
  memset(own, 0, j.zeros);
  const float* zeros = (const float*)own;
  float* v = (float*)(j.own_first ? own + j.zeros : ctx->scratch);
  float* dm = (float*)(own + j.zeros + (j.own_first ? j.first : 0));
  float* last = dm + j.dm_room;
  const int64_t all = p.n * j.g.rows;
  const int64_t tid = j.own_first ? 0 : ctx->tid, nt = j.own_first ? 1 : ctx->nt;
  const int64_t first = ctx->tid * j.tasks / ctx->nt, end = (ctx->tid + 1) * j.tasks / ctx->nt;
  for (int64_t round = 0; round < j.rounds; ++round) {
    const int64_t t0 = round * all / j.rounds * j.g.cols;
    const int64_t t1 = (round + 1) * all / j.rounds * j.g.cols;
    const TilePairs s{t1 - t0, j.ld}, ms{t1 - t0, j.dm.ld};
    // no two members have the tiles of a pair
    const int64_t u0 = tid * s.rows / nt / kPair * kPair;
    const int64_t u1 = tid + 1 == nt ? s.rows : (tid + 1) * s.rows / nt / kPair * kPair;
    if (round > 0 && !j.own_first) ctx->sync();
    phase_inputs(p, j.g, x, zeros, t0 + u0, t0 + u1, v, u0, s, s.size());
    if (!j.own_first) ctx->sync();
    // products bring what the next round transforms
    Ahead next{};
    if (round + 1 < j.rounds)
      next = pixels_ahead(j.g, x, p.in_h, p.in_w, p.channels, p.channels, 8, kPatch, p.pad_h, t1,
                          (round + 2) * all / j.rounds * j.g.cols, ctx->follows);
    next.spread(max64(1, end - first) * kForms * product_steps(kPanel, j.filters, s.rows) / 2);
    int64_t made = -1;
    for (int64_t task = first; task < end; ++task) {
      const int64_t i = task % j.out.count, kb = task / j.out.count, c0 = j.out.first(i) * kLanes;
      const int64_t k0 = kb * j.filters, k1 = min64(k0 + j.filters, p.filters);
      const int nv = j.out.nv(i);
      if (made != kb) {
        phase_gradients(p, j.g, dy, zeros, t0, t1, k0, k1, dm, ms, 0);
        made = kb;
      }
      if (db && i == 0)
        bias_gradient(p, j.g, dy, t0 / j.g.cols, t1 / j.g.cols, k0, k1, round > 0, db);
      // the last products bring what becomes of them
      const int64_t lanes = min64(nv * kLanes, p.channels - c0);
      Ahead out{};
      if (round + 1 == j.rounds)
        out = Ahead{(const char*)(dw + k0 * 9 * p.channels + c0),
                    (k1 - k0) * 9,
                    lanes * B,
                    p.channels * B,
                    true,
                    &next,
                    0,
                    0,
                    true};
      out.spread(product_steps(nv, k1 - k0, s.rows) * kForms / 2);
      float* du = j.rounds > 1 ? (float*)(ctx->scratch + j.du_at) + task * j.du : last;
      for (int f = 0; f < kForms; ++f) {
        Ahead sums = ahead(du + (f + 1) * j.u.step, f + 1 < kForms ? j.u.step : 0, true);
        sums.write = true;
        sums.then = out.rows > 0 ? &out : &next;
        sums.spread(product_steps(nv, k1 - k0, s.count(f)) / 2);
        product<float, true>(nv, dm + ms.at(f), ms.ld, k1 - k0, v + s.place(c0, s.size()) + s.at(f),
                             s.ld, s.count(f), du + f * j.u.step, j.u.ld, round > 0, &sums);
      }
      if (round + 1 == j.rounds) form_gradients(p, du, j.u, k0, k1, dw + c0, lanes);
    }
  }
}

void weight_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  const Job j = make_weight_job(p);
  plan->tasks = min64(max64(1, p.threads), j.tasks);
  plan->scratch = j.scratch;
  plan->work = work(p);
}

const KernelEntry entries[] = {
#if defined(__AVX512BF16__)
    {"conv_bf16_polyphase_forward", kF32, run<false>, plan<false>},
    {"conv_bf16_polyphase_backward_data", kF32, run<true>, plan<true>},
    {"conv_bf16_polyphase_backward_weight", kF32, weight, weight_plan},
#else
    {"conv_polyphase_forward", kF32, run<false>, plan<false>},
    {"conv_polyphase_backward_data", kF32, run<true>, plan<true>},
    {"conv_polyphase_backward_weight", kF32, weight, weight_plan},
#endif
};

}  // namespace

extern const KernelList conv_polyphase_kernels;
const KernelList conv_polyphase_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
