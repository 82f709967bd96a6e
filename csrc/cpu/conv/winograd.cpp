// Winograd convolution, forward: F(4 x 4, 3 x 3) and F(2 x 2, 3 x 3), stride 1 (see winograd.h).
//
// x (n, in_h, in_w, C), w (K, 3, 3, C), y (n, out_h, out_w, K). No transformed tensor goes through
// memory. Two schedules, by shape and caches:
//
// "by tiles" (the transformed filters are small, or there are many tiles): they are made once and
// stay in the shared cache; a task transforms a block of tiles into the second-level cache,
// multiplies it A * A times by each panel of filters, transforms each panel's products in registers
// and stores.
//
// "by filters" (small maps, many channels): the transformed tiles are made once; a task takes a
// panel of filters, transforms a slice of input channels of it into the second-level cache,
// multiplies all tiles of its range, goes on to the next slice, and transforms the products at the
// end. The transformed filters, 4 times the weights, exist only slice by slice.
//
// With a 2 x 2 max-pool behind it (conv_winograd*_pool) the output transform keeps each window's
// maximum and its index (conv/pool.h): y is a quarter, and what lies between is never stored.
//
// Floor: 2 tiles A * A C K operations, plus some 150 vector operations a tile and vector of
// channels.
#include "conv/winograd_products.h"
#include "prepare_unit.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kUnit = 4;  // tiles that a member transforms at a time

template <class T>
struct Job {
  Grid g;
  Panels out;
  int64_t channels;              // padded; elements
  bool by_filters, own_filters;  // own: and tasks dealt out in turn, so that members never meet
  bool repeat_filters;           // own, but members meet
  int64_t blocks, block, unit;   // by tiles: tasks, the most tiles of one, a step of these
  int64_t images, ranges, range, slice;  // by filters: of a round, of a task
  Planes v, m, u;                        // u: of a panel (by tiles) or of a slice
  // bytes; own: of a member, in it zeros, filters (own_filters), then v or u, m
  size_t own_at, own, zeros, filters, queues_at, scratch;

  // The first tile of block b.
  GS_MEMBER int64_t start(int64_t b) const { return b * (g.tiles / unit) / blocks * unit; }
};

// Bytes of the transformed filters; E planes of C rows.
template <class T, int M>
GS_INLINE size_t form_bytes(const ConvParams& p) {
  return align64((size_t)form_size<T, M>(elements(p.channels), panels_of<T>(p.filters)) *
                 sizeof(T));
}

template <class T, int M>
Job<T> make_job(const ConvParams& p) {
  constexpr int N = simd<T>::N, E = (M + 2) * (M + 2);
  constexpr int64_t W = kPanel * N, B = sizeof(T);
  Job<T> j{};
  j.g = grid_of<M>(p);
  j.out = panels_of<T>(p.filters);
  j.channels = ceil_div(p.channels, N) * N / kPair;
  int64_t tiles = j.g.tiles, width = min64(W, j.out.padded);
  int64_t filters = E * elements(p.channels) * j.out.padded * B,
          inputs = E * tiles * j.channels * B;
  // a block of tiles shares the cache with the filters where these fit
  int64_t space = filters < p.l2 / 2 ? max64(p.l2 * 55 / 100 - filters, p.l2 / 5) : p.l2 * 6 / 10;
  int64_t most = max64(min64(space / (E * (j.channels + width) * B), 48), 12);
  j.blocks = max64(ceil_div(tiles, most), min64(8, tiles / 16));
  if (j.blocks > 1) j.blocks += j.blocks % 2;
  // bytes that pass between the caches
  double by_tiles =
      (filters > p.l2 / 2 ? (double)filters * (double)(j.blocks + 1) : 0) + (double)filters;
  int64_t room = max64(p.l2 * 6 / 10 / (E * width * B), 32);
  double by_filters = (double)inputs * (double)(j.out.count + 1) +
                      (double)filters * 2 * (double)(ceil_div(tiles, room) - 1);
  // one panel of all tiles would be one task
  const bool one = j.out.count * ceil_div(tiles, room) == 1 && j.blocks > 1;
  j.by_filters = by_filters < by_tiles && !one;
  int64_t members = max64(1, p.threads);
  j.zeros = align64((size_t)(j.channels * kPair * B));
  if (!j.by_filters) {
    j.block = ceil_div(tiles, j.blocks);
    j.unit = 1;
    // blocks end where rows that p.after takes together end, if those are not too many
    if (p.after && p.out_h % M == 0) {
      const int64_t row = M * p.out_w, rows = j.g.n * j.g.rows;
      int64_t unit = 1;
      while (unit < rows && unit * row % p.after_rows) ++unit;
      const int64_t units = rows / unit;
      if (rows % unit == 0 && units >= j.blocks) {
        j.unit = unit * j.g.cols;
        j.blocks = ceil_div(units, ceil_div(units, j.blocks));
        if (j.blocks > 1 && j.blocks < units) j.blocks += j.blocks % 2;
        j.block = ceil_div(units, j.blocks) * j.unit;
      }
    }
    j.v = planes(j.block, j.channels);
    j.m = planes(j.block, width);
    // for few tiles, members rather repeat the transform than read what another one has just
    // written
    j.own_filters = filters < p.l2 / 2 && tiles <= 512;
    j.filters = form_bytes<T, M>(p);
    j.repeat_filters = j.own_filters || repeats_filters(p, tiles * E);
    j.own_at = j.repeat_filters ? 0 : j.filters;
    j.own = align64(j.zeros + (j.repeat_filters ? j.filters : 0) +
                    (size_t)(E * (j.v.step + j.m.step) * B));
  } else {
    // tiles of a task are not those of a transform: no order of theirs
    j.g.short_row = j.g.short_col = false;
    int64_t per = j.g.rows * j.g.cols;
    j.images = max64(1, min64(p.n, 16 * p.l2 / (E * j.channels * B * per)));
    j.images = ceil_div(p.n, ceil_div(p.n, j.images));
    int64_t all = j.images * per;
    j.ranges = ceil_div(all, room);
    j.range = ceil_div(all, j.ranges);
    j.slice = kGroup;
    while (j.slice > 16 && E * j.slice * width * B > p.l2 * 6 / 10) j.slice /= 2;
    j.v = grouped(all, E);
    j.u = planes(j.slice, width);
    j.m = planes(j.range, width);
    j.own_at = align64((size_t)(j.v.group * ceil_div(j.channels, kGroup) * B));
    j.own = align64(j.zeros + (size_t)(E * (j.u.step + j.m.step) * B));
  }
  // counters of tasks a round, one a member; none where members do not meet before their tasks
  int64_t queues = j.by_filters ? ceil_div(p.n, j.images) * members : j.own_filters ? 0 : members;
  j.queues_at = j.own_at + (size_t)members * j.own;
  j.scratch = j.queues_at + (size_t)(queues * kQueueBytes);
  return j;
}

// The rows of y that tiles [t0, t1) are: whole rows of tiles are one stretch.
template <int M>
void tiles_written(const ConvParams& p, const Grid& g, void* const* buf, int64_t t0, int64_t t1,
                   int64_t col, int64_t cols, int64_t piece, int64_t pieces) {
  auto first = [&](int64_t r) {  // of row r of tiles
    return (r / g.rows * p.out_h + r % g.rows * M) * p.out_w;
  };
  for (int64_t t = t0; t < t1;) {
    const int64_t r = t / g.cols, c = t % g.cols;
    if (c == 0 && t + g.cols <= t1) {
      t = t1 / g.cols * g.cols;
      written(p, buf, first(r), first(t / g.cols), col, cols, piece, pieces);
      continue;
    }
    const int64_t end = min64(t1 - r * g.cols, g.cols);
    const int64_t count = min64(M, p.out_h - r % g.rows * M);
    for (int64_t i = 0; i < count; ++i)
      written(p, buf, first(r) + i * p.out_w + c * M,
              first(r) + i * p.out_w + min64(end * M, p.out_w), col, cols, piece, pieces);
    t = r * g.cols + end;
  }
}

template <class T, int M>
void forward(const void* params, void* const* buf, const Ctx* ctx) {
  constexpr int N = simd<T>::N, E = (M + 2) * (M + 2);
  const ConvParams& p = *(const ConvParams*)params;
  Job<T> j = make_job<T, M>(p);
  const T *x = (const T*)buf[0], *w = (const T*)buf[1], *bias = (const T*)buf[2];
  T* y = (T*)buf[3];
  uint8_t* index = p.pool ? (uint8_t*)buf[4] : nullptr;
  const int64_t P = p.pool ? 2 : 1;
  char* own = ctx->scratch + j.own_at + (size_t)ctx->tid * j.own;
  T *zeros = (T*)own, *mine = (T*)(own + j.zeros);
  memset(zeros, 0, j.zeros);
  const int64_t C = p.channels, D = elements(C);
  auto finish = [&](const T* m, Planes s, int64_t t0, int64_t t1, const Order& order, int64_t k0,
                    int64_t channels) {
    const T* b = bias ? bias + k0 : nullptr;
    if constexpr (sizeof(T) == 4) {
      if (p.pool) {
        output_pool_tiles<M>(p, j.g, m, s, t0, t1, order, b, y + k0, index ? index + k0 : nullptr,
                             channels);
        return;
      }
    }
    output_tiles<T, M>(p, j.g, m, s, t0, t1, order, b, y + k0, channels);
  };

  char* queues = ctx->scratch + j.queues_at;
  auto shares_of = [&](int64_t round, int64_t tasks) {
    return Shares{queues + round * ctx->nt * kQueueBytes, tasks, ctx->nt, ctx->tid};
  };
  if (ctx->tid == 0 && !j.own_filters)
    for (int64_t i = 0; i < (j.by_filters ? ceil_div(p.n, j.images) : 1); ++i)
      shares_of(i, 0).reset();

  if (!j.by_filters) {
    const int at = 4 + (p.pool ? 1 : 0) + (p.after ? 2 : 0);
    const bool made = p.prepared && prepared_ready(buf[at], p.prepared);
    T* all = made ? (T*)buf[at + 1] : j.repeat_filters ? mine : (T*)ctx->scratch;
    auto panel = [&](int64_t i) { return all + panel_at<T, M>(D, j.out, i); };
    int64_t start = j.repeat_filters ? 0 : ctx->tid, step = j.repeat_filters ? 1 : ctx->nt;
    int64_t slices = ceil_div(C, N), transforms = made ? 0 : j.out.count * slices;
    for (int64_t t = start; t < transforms; t += step) {
      int64_t i = t / slices, c = t % slices * N;
      Planes s = planes(D, j.out.nv(i) * N);
      filter_tiles<T, M>(p, w, j.out.first(i) * N, j.out.nv(i), c, min64(c + N, C),
                         panel(i) + c / kPair * s.ld, s);
    }
    if (!j.own_filters) ctx->sync();
    T *v = mine + (j.repeat_filters ? j.filters / sizeof(T) : 0), *m = v + E * j.v.step;
    const Shares shares = shares_of(0, j.blocks);
    auto after = [&](int64_t b) { return j.own_filters ? b + ctx->nt : shares.take(); };
    int64_t next = 0;
    for (int64_t b = j.own_filters ? ctx->tid : after(0); b < j.blocks; b = next) {
      int64_t t0 = j.start(b), t1 = j.start(b + 1);
      const Order order(j.g, t0, t1);
      input_tiles<T, M>(p, j.g, x, zeros, t0, t1, order, v, j.v);
      // half of the products bring y, half the next x
      next = after(b);
      int64_t n0 = j.start(next);
      Ahead in{};
      if (next < j.blocks)
        in = pixels_ahead(j.g, x, p.in_h, p.in_w, C, C, M, M + 2, p.pad_h, n0, j.start(next + 1),
                          ctx->follows);
      in.spread(j.out.count * product_steps(j.out.nv(0), t1 - t0, D) * (E / 2));
      for (int64_t i = 0; i < j.out.count; ++i) {
        int nv = j.out.nv(i);
        int64_t k0 = j.out.first(i) * N, channels = min64(nv * N, p.filters - k0);
        Planes s = planes(D, nv * N);
        Ahead out = pixels_ahead(j.g, y + k0, p.out_h / P, p.out_w / P, p.filters, channels, M / P,
                                 M / P, 0, t0, t1, ctx->follows);
        out.write = true;
        out.spread(product_steps(nv, t1 - t0, D) * (E / 2));
        for (int e = 0; e < E; ++e) {
          const int64_t o = order.first(e, M + 2);
          product<T, false>(nv, v + e * j.v.step + o * j.v.ld, j.v.ld, order.size(e, M + 2),
                            panel(i) + e * s.step, s.ld, D, m + e * j.m.step + o * j.m.ld, j.m.ld,
                            false, e < E / 2 ? &out : &in);
        }
        finish(m, j.m, t0, t1, order, k0, channels);
      }
      if (p.after) tiles_written<M>(p, j.g, buf, t0, t1, 0, p.filters, 0, 1);
    }
    return;
  }

  T *v = (T*)ctx->scratch, *u = mine, *m = mine + E * j.u.step;
  int64_t per = j.g.rows * j.g.cols;
  for (int64_t n = 0; n < p.n; n += j.images) {
    int64_t first = n * per, end = min64(n + j.images, p.n) * per;
    if (n > 0) ctx->sync();
    const int64_t units = ceil_div(end - first, kUnit);
    for (int64_t u = units * ctx->tid / ctx->nt; u < units * (ctx->tid + 1) / ctx->nt; ++u) {
      const int64_t t = first + u * kUnit;
      const int64_t next = min64(t + kUnit, end);
      input_tiles<T, M>(p, j.g, x, zeros, t, next, Order(j.g, t, next), v + (t - first) * j.v.ld,
                        j.v);
    }
    ctx->sync();
    const Shares shares = shares_of(n / j.images, j.out.count * j.ranges);
    for (int64_t task = shares.take(); task < shares.tasks; task = shares.take()) {
      int64_t i = task % j.out.count, r = task / j.out.count, k0 = j.out.first(i) * N;
      int64_t t0 = r * (end - first) / j.ranges, t1 = (r + 1) * (end - first) / j.ranges;
      if (t0 == t1) continue;
      int nv = j.out.nv(i);
      int64_t channels = min64(nv * N, p.filters - k0);
      Ahead out = pixels_ahead(j.g, y + k0, p.out_h / P, p.out_w / P, p.filters, channels, M / P,
                               M / P, 0, first + t0, first + t1, ctx->follows);
      out.write = true;
      out.spread(product_steps(nv, t1 - t0, min64(j.slice, D)) * ceil_div(D, j.slice) * E);
      for (int64_t c = 0; c < D; c += j.slice) {
        int64_t count = min64(j.slice, D - c);
        filter_tiles<T, M>(p, w, k0, nv, c * kPair, min64((c + count) * kPair, C), u, j.u);
        for (int e = 0; e < E; ++e)
          product<T, false>(
              nv, v + c / kGroup * j.v.group + e * j.v.step + t0 * j.v.ld + c % kGroup, j.v.ld,
              t1 - t0, u + e * j.u.step, j.u.ld, count, m + e * j.m.step, j.m.ld, c > 0, &out);
      }
      finish(m, j.m, first + t0, first + t1, Order(j.g, first + t0, first + t1), k0, channels);
      if (p.after)
        tiles_written<M>(p, j.g, buf, first + t0, first + t1, k0, channels, i, j.out.count);
    }
  }
}

template <class T, int M>
void forward_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  Job<T> j = make_job<T, M>(p);
  int64_t shared = j.by_filters    ? ceil_div(j.images * j.g.rows * j.g.cols, kUnit)
                   : j.own_filters ? 1
                                   : j.out.count * ceil_div(p.channels, simd<T>::N);
  plan->tasks =
      min64(max64(1, p.threads), max64(j.by_filters ? j.out.count * j.ranges : j.blocks, shared));
  plan->scratch = j.scratch;
  plan->work = (int64_t)(winograd_operations<M>(p) * (sizeof(T) == 8 ? 2 : 1) / GS_VBYTES) + 1000;
}

#if !defined(__AVX512BF16__)
// The filters of a unit of rows, transformed as by tiles.
template <int M>
void prepare(const void* params, void* const* buf, const Ctx*) {
  constexpr int N = simd<float>::N;
  const FormCall& call = *(const FormCall*)params;
  const ConvParams& p = *(const ConvParams*)call.params;
  const Panels out = panels_of<float>(p.filters);
  for (int64_t k = call.first; k < call.first + call.count; k += N) {
    const int64_t i = k / (kPanel * N), c = k - out.first(i) * N;
    filter_tiles<float, M>(p, (const float*)buf[0], k, 1, 0, p.channels,
                           (float*)buf[1] + panel_at<float, M>(p.channels, out, i) + c,
                           planes(p.channels, out.nv(i) * N));
  }
}
template <int M>
void prepare_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  plan->scratch = make_job<float, M>(p).by_filters ? 0 : form_bytes<float, M>(p);
}
#endif

const KernelEntry entries[] = {
#if defined(__AVX512BF16__)
    {"conv_bf16_winograd4_pool", kF32, forward<float, 4>, forward_plan<float, 4>},
    {"conv_bf16_winograd4_forward", kF32, forward<float, 4>, forward_plan<float, 4>},
#else
    {"prepare_winograd4", kF32, prepare<4>, prepare_plan<4>},
    {"prepare_winograd2", kF32, prepare<2>, prepare_plan<2>},
    {"conv_winograd4_pool", kF32, forward<float, 4>, forward_plan<float, 4>},
    {"conv_winograd2_pool", kF32, forward<float, 2>, forward_plan<float, 2>},
    {"conv_winograd4_forward", kF32, forward<float, 4>, forward_plan<float, 4>},
    {"conv_winograd4_forward", kF64, forward<double, 4>, forward_plan<double, 4>},
    {"conv_winograd2_forward", kF32, forward<float, 2>, forward_plan<float, 2>},
    {"conv_winograd2_forward", kF64, forward<double, 2>, forward_plan<double, 2>},
#endif
};

}  // namespace

extern const KernelList conv_winograd_kernels;
const KernelList conv_winograd_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
