// Winograd convolution, both gradients in one launch: the exact adjoint of the forward pass (see
// winograd.h). dy is transformed once and serves dx and dw.
//
// dy (n, out_h, out_w, K), w (K, 3, 3, C), bias (C) to dx, dx (n, in_h, in_w, C), x like dx, dw
// like w, db (K). Which of dx, dw, db are wanted is in the parameters. With a max-pool behind the
// convolution dy is the pool's gradient, spread by its index while it is transformed. Two
// schedules:
//
// "by tiles" (the transformed filters and their gradient stay in the caches): tile rows fall into
// slices; a task is a slice and has its own sum du, which it adds to block by block. A block of
// transformed dy and x lies in the second-level cache while it is multiplied with every panel of
// filters (dx) and with itself (du). The slices of du are added in order at the end, and where a
// slice starts inside an image, the two rows of dx that it shares with the one before.
//
// "by channels" (many channels, small maps): dy and x of a round of images are transformed once; a
// task is a panel of channels of dx (its filters are transformed slice by slice on the way) or a
// block of filters x channels of dw, whose du never leaves the second-level cache.
//
// Slices, blocks and rounds follow from shapes and cache sizes. Floor: 4 tiles A * A C K
// operations, plus some 400 vector operations a tile and vector of channels.
#include "conv/winograd_products.h"
#include "prepare_unit.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kUnit = 8;    // tiles that a member transforms at a time
constexpr int64_t kBlock = 64;  // filters of a block of dw

// A member's room for `tiles` rows of K and of a panel's channels as pairs of tiles, and what a
// product reads past their end.
GS_INLINE size_t pair_bytes(int64_t tiles, int64_t K, int64_t width) {
  return kPair == 1 ? 0 : align64((size_t)(ceil_div(tiles, kPair) * (K + width) + 16) * 4);
}

struct Job {
  Grid g;
  Panels in;                  // of the channels
  int64_t channels, filters;  // padded
  int64_t chain;              // pairs: tiles that are interleaved at a time, see weight_product()
  bool by_channels, data, weight;
  bool both;     // by tiles: the two products of a plane follow each other, dv in the place of v
  bool repeat;   // by tiles: each member has transformed filters of its own
  int64_t rows;  // tile rows in all
  int64_t slices, block;                        // by tiles: of rows; rows of a block
  int64_t images, ranges, strip, slice, units;  // by channels: of a round; tile rows; filters
  int64_t filter_blocks, queues;
  Planes v, dm, dv, u, du;
  size_t pairs;        // bytes, of a member: the interleaved operands of dw
  int64_t seam, part;  // elements of a slice's seam and du
  size_t v_at, dm_at, du_at, u_at, db_at, seam_at, own_at, own, zeros, queues_at, scratch;
};

// Elements of the transformed filters, by tiles; E planes of K rows.
template <class T, int M>
GS_INLINE int64_t form_size(const ConvParams& p) {
  return form_size<T, M>(elements(p.filters), panels_of<T>(p.channels));
}

template <class T, int M>
Job make_job(const ConvParams& p) {
  constexpr int N = simd<T>::N, E = (M + 2) * (M + 2);
  constexpr int64_t B = sizeof(T);
  Job j{};
  j.g = grid_of<M>(p);
  j.in = panels_of<T>(p.channels);
  j.channels = j.in.padded;
  j.filters = ceil_div(p.filters, N) * N;
  j.data = p.wanted & kConvData;
  j.weight = p.wanted & kConvWeight;
  j.rows = p.n * j.g.rows;
  int64_t tiles = j.g.tiles, width = min64(kPanel * N, j.channels), C = j.channels, K = j.filters;
  double plane = (double)E * (double)p.filters * (double)C * B;  // their gradient
  double form = plane / (double)kPair;                           // the transformed filters
  double v = (double)E * (double)tiles * (double)C * B / (double)kPair;
  double dm = v / (double)C * (double)K;
  // by tiles: du and filters of a block together with dy and x, or, when filters do not fit anyway,
  // blocks as large as the cache
  bool resident = plane + form < 0.8 * (double)p.l2;
  // Where all else passes through a second cache much smaller than a fast third level, the two
  // products one after the other, with a place of its own for dv, need less of it at a time.
  const bool one = j.weight && j.data && j.in.count == 1;
  j.both = one && !p.near_cores;
  const int64_t space = resident ? max64(p.l2 - (int64_t)(plane + form), p.l2 / 3) : p.l2;
  int64_t most = (int64_t)((double)space / 1.1) / (E * ((C + K) / kPair + width) * B);
  // longer blocks of few channels gain nothing and push each other's planes out of the cache
  const int64_t cap = resident || (one && p.near_cores) ? 36 : 96;
  j.block = max64(1, min64(min64(most, cap) / j.g.cols, j.rows));
  j.slices = 1;
  while (j.slices * 2 <= j.rows && j.slices * 512 <= tiles && j.slices < 32) j.slices *= 2;
  double blocks = (double)ceil_div(j.rows, j.block);
  double by_tiles = (resident ? 0 : (2 * plane + form) * blocks) + 2 * plane * (double)j.slices;
  double by_channels =
      (v + dm) + 2 * dm * (double)j.in.count + v * (double)ceil_div(p.filters, kBlock);
  // Near a fast third level filters and their gradient, long streams, pass behind the products,
  // while the transforms that write whole rounds wait for it: by tiles is measured faster up to
  // here. Unless cores outnumber the slices: by channels, half of the work is a task for each block
  // of dw.
  if (p.near_cores && j.slices >= min64(p.near_cores, 2 * j.in.count * ceil_div(p.filters, kBlock)))
    by_channels += 7 * (v + dm);
  // one slice would be one task
  j.by_channels = by_channels < by_tiles || j.slices == 1;
  int64_t members = max64(1, p.threads);
  j.zeros = align64((size_t)(max64(C, K) * B));
  size_t at = 0;
  auto take = [&](int64_t elements) {
    size_t was = at;
    at = align64(at + (size_t)(elements * B));
    return was;
  };
  if (!j.by_channels) {
    j.seam = 2 * p.in_w * p.channels;
    j.du = planes(p.filters, C);
    j.part = E * j.du.step;
    if (j.data) {
      j.repeat = repeats_filters(p, tiles * E * (1 + j.weight));
      if (!j.repeat) j.u_at = take(form_size<T, M>(p));
      j.seam_at = take(j.slices * j.seam);
    }
    if (j.weight) {
      j.du_at = take(j.slices * j.part);
      j.db_at = take(j.slices * K);
    }
    int64_t t = j.block * j.g.cols;
    j.dm = planes(t, K / kPair);
    j.v = planes(t, j.both ? C : C / kPair);
    j.dv = planes(t, width);
    j.chain = t;
    j.pairs = pair_bytes(t, K, width);
    j.own_at = at;
    const int64_t own = E * (j.dm.step + j.v.step + (j.both ? 0 : j.dv.step));
    j.own = align64(j.zeros + j.pairs + (size_t)((own + (j.repeat ? form_size<T, M>(p) : 0)) * B));
  } else {
    // tiles of a task are not those of a transform: no order of theirs
    j.g.short_row = j.g.short_col = false;
    int64_t per = j.g.rows * j.g.cols;
    // rounds that stay in the third-level cache; of a fast one more, since each round
    // transforms the filters again, adds to dw and lets members wait for each other
    const int64_t caches = p.near_cores ? 8 : 4;
    j.images = max64(1, min64(p.n, caches * p.l2 / (E * (C + K) / kPair * B * per)));
    j.images = ceil_div(p.n, ceil_div(p.n, j.images));
    int64_t all = j.images * per, room = max64(p.l2 * 6 / 10 / (E * width * B), 32);
    j.strip = max64(1, min64(room / j.g.cols, j.images * j.g.rows));
    j.ranges = min64(j.images, ceil_div(all, room));
    j.slice = kGroup;
    while (j.slice > 16 && E * j.slice * width * B > p.l2 * 6 / 10) j.slice /= 2;
    j.filter_blocks = ceil_div(p.filters, kBlock);
    j.units = ceil_div(all, kUnit);
    j.v = j.dm = grouped(all, E);
    j.u = planes(j.slice, width);
    j.dv = planes(min64(j.strip * j.g.cols, all), width);
    j.du = planes(kBlock, width);
    j.chain = kPair * 64;
    j.pairs = pair_bytes(j.chain, kBlock, width);
    j.dm_at = take(j.dm.group * ceil_div(K / kPair, kGroup));
    if (j.weight) {
      j.v_at = take(j.v.group * ceil_div(C / kPair, kGroup));
      j.db_at = take(ceil_div(p.n, j.images) * j.units * K);
    }
    j.own_at = at;
    int64_t own = max64(j.data ? E * (j.u.step + j.dv.step) : 0, j.weight ? E * j.du.step : 0);
    j.own = align64(j.zeros + j.pairs + (size_t)(own * B));
  }
  // counters of tasks, one a member, of each kind in each round; by tiles members meet before their
  // tasks only for the filters
  j.queues_at = j.own_at + (size_t)members * j.own;
  j.queues = members * (j.by_channels ? 2 * ceil_div(p.n, j.images) : j.data ? 1 : 0);
  j.scratch = j.queues_at + (size_t)(j.queues * kQueueBytes);
  return j;
}

// db = sum of the parts, in order
template <class T>
void add_bias(const ConvParams& p, const T* parts, int64_t count, int64_t ld, T* db,
              const Ctx* ctx) {
  constexpr int N = simd<T>::N;
  for (int64_t k = ctx->tid * N; k < p.filters; k += ctx->nt * N) {
    auto s = load(parts + k);
    for (int64_t i = 1; i < count; ++i) s += load(parts + i * ld + k);
    store_n(db + k, s, (int)min64(N, p.filters - k));
  }
}

template <class T, int M>
struct Backward {
  const ConvParams& p;
  const Job& j;
  const Ctx* ctx;
  const T *dy, *w, *bias, *x;
  T *dx, *dw, *db;
  const uint8_t* index;  // of a pool behind the convolution
  const T* other;        // a gradient that is added to dx
  const T* gate;         // the output of a ReLU whose gradient dx is
  const T* prepared;     // the transformed filters, by tiles, or nothing
  const T* zeros;
  T *pairs, *mine;
  char* queues;
  static constexpr int N = simd<T>::N, E = (M + 2) * (M + 2);
  using V = typename simd<T>::V;

  T* at(size_t bytes) const { return (T*)(ctx->scratch + bytes); }
  int64_t lanes(int64_t i) const { return min64(j.in.nv(i) * N, p.channels - j.in.first(i) * N); }

  Ahead x_ahead(int64_t t0, int64_t t1) const {
    return pixels_ahead(j.g, x, p.in_h, p.in_w, p.channels, p.channels, M, M + 2, p.pad_h, t0, t1,
                        ctx->follows);
  }

  // Panel i of what tiles [t0, t1) see of an array like dx.
  Ahead dx_ahead(const T* q, int64_t i, int64_t t0, int64_t t1) const {
    return pixels_ahead(j.g, q + j.in.first(i) * N, p.in_h, p.in_w, p.channels, lanes(i), M, M + 2,
                        p.pad_h, t0, t1, ctx->follows);
  }

  void transform_dy(int64_t t0, int64_t t1, const Order& order, T* dm, Planes s, T* sum) const {
    if constexpr (sizeof(T) == 4) {
      if (p.pool) {
        gradient_tiles<T, M, true>(p, j.g, dy, index, zeros, t0, t1, order, dm, s, sum);
        return;
      }
    }
    gradient_tiles<T, M, false>(p, j.g, dy, index, zeros, t0, t1, order, dm, s, sum);
  }

  // du (K rows; ldu) (+)= dm^T v over tiles; dm, v: a plane's rows. What is multiplied as pairs of
  // tiles is interleaved here, where it is in the first-level cache.
  void weight_product(int nv, const T* dm, int64_t K, const T* v, int64_t tiles, T* du, bool add,
                      Ahead* ahead) const {
#if defined(__AVX512BF16__)
    const int64_t lda = ceil_div(K, N) * N, ldb = nv * N;
    for (int64_t t = 0; t < tiles; t += j.chain) {
      const int64_t count = min64(j.chain, tiles - t), k = ceil_div(count, 2);
      T *a = pairs, *b = a + k * lda;
      pair_rows(dm + t * j.dm.ld, j.dm.ld, count, lda, a, lda);
      pair_rows(v + t * j.v.ld, j.v.ld, count, ldb, b, ldb);
      product<T, true>(nv, a, lda, K, b, ldb, k, du, j.du.ld, add || t > 0, ahead);
    }
    if (tiles == 0) product<T, true>(nv, pairs, lda, K, pairs, ldb, 0, du, j.du.ld, add, ahead);
#else
    product<T, true>(nv, dm, j.dm.ld, K, v, j.v.ld, tiles, du, j.du.ld, add, ahead);
#endif
  }

  void by_tiles() const {
    int64_t K = p.filters, D = elements(K), P = p.pool ? 2 : 1;
    T *dm = mine, *v = dm + E * j.dm.step, *dv = j.both ? v : v + E * j.v.step;
    T* all = prepared ? (T*)prepared : j.repeat ? dv + E * j.dv.step : at(j.u_at);
    auto panel = [&](int64_t i) { return all + panel_at<T, M>(D, j.in, i); };
    if (j.data) {
      int64_t steps = ceil_div(K, 16), transforms = prepared ? 0 : j.in.count * steps;
      for (int64_t t = j.repeat ? 0 : ctx->tid; t < transforms; t += j.repeat ? 1 : ctx->nt) {
        int64_t i = t / steps, k = t % steps * 16;
        Planes s = planes(D, j.in.nv(i) * N);
        filter_tiles_backward<T, M>(p, w, j.in.first(i) * N, j.in.nv(i), k, min64(k + 16, K),
                                    panel(i) + k / kPair * s.ld, s);
      }
      ctx->sync();
    }
    const Shares shares{queues, j.slices, ctx->nt, ctx->tid};
    auto after = [&](int64_t s) { return j.data ? shares.take() : s + ctx->nt; };
    for (int64_t s = j.data ? after(0) : ctx->tid; s < j.slices; s = after(s)) {
      int64_t r0 = s * j.rows / j.slices, r1 = (s + 1) * j.rows / j.slices;
      T* seam = at(j.seam_at) + s * j.seam;
      T *du = at(j.du_at) + s * j.part, *sum = at(j.db_at) + s * j.filters;
      if (j.weight) memset(sum, 0, (size_t)j.filters * sizeof(T));
      int64_t blocks = ceil_div(r1 - r0, j.block);
      for (int64_t b = 0; b < blocks; ++b) {
        int64_t t0 = (r0 + b * (r1 - r0) / blocks) * j.g.cols;
        int64_t t1 = (r0 + (b + 1) * (r1 - r0) / blocks) * j.g.cols;
        const Order order(j.g, t0, t1);
        transform_dy(t0, t1, order, dm, j.dm, db ? sum : nullptr);
        // half of the products for dx bring dx, half x or the next dy; those for dw the next dy
        // and, when there was no time yet, the next x
        int64_t t2 = (r0 + (b + 2) * (r1 - r0) / blocks) * j.g.cols;
        int64_t steps = j.in.count * product_steps(j.in.nv(0), t1 - t0, D) * (E / 2);
        Ahead next{}, in{};
        if (b + 1 < blocks)
          next = pixels_ahead(j.g, dy, p.out_h / P, p.out_w / P, K, K, M / P, M / P, 0, t1, t2,
                              ctx->follows);
        if (j.weight && j.data && !j.both)
          in = x_ahead(t0, t1);
        else if (j.weight && b + 1 < blocks)
          in = x_ahead(t1, t2);
        in.spread(j.both ? product_steps(j.in.nv(0), K, t1 - t0) * E : steps);
        next.spread(steps);
        if (j.both) input_tiles<T, M>(p, j.g, x, zeros, t0, t1, order, v, j.v);
        auto weight = [&](int e, int64_t i, Ahead* ahead) {
          const int64_t o = order.first(e, M + 2), c0 = j.in.first(i) * N;
          weight_product(j.in.nv(i), dm + e * j.dm.step + o * j.dm.ld, K,
                         v + e * j.v.step + o * j.v.ld + c0 / kPair, order.size(e, M + 2),
                         du + e * j.du.step + c0, b > 0, ahead);
        };
        if (j.data)
          for (int64_t i = 0; i < j.in.count; ++i) {
            int nv = j.in.nv(i);
            int64_t c0 = j.in.first(i) * N;
            Planes q = planes(D, nv * N);
            Ahead out = dx_ahead(dx, i, t0, t1);
            out.write = true;
            out.spread(product_steps(nv, t1 - t0, D) * (E / 2));
            for (int e = 0; e < E; ++e) {
              const int64_t o = order.first(e, M + 2);
              if (j.both) weight(e, i, &in);
              product<T, false>(nv, dm + e * j.dm.step + o * j.dm.ld, j.dm.ld, order.size(e, M + 2),
                                panel(i) + e * q.step, q.ld, D, dv + e * j.dv.step + o * j.dv.ld,
                                j.dv.ld, false,
                                e < E / 2             ? &out
                                : j.both || !j.weight ? &next
                                                      : &in);
            }
            input_gradient_tiles<T, M>(p, j.g, dv, j.dv, t0, t1, order, r0 * j.g.cols,
                                       bias ? bias + c0 : nullptr, dx + c0, seam + c0, lanes(i),
                                       other ? other + c0 : other, gate ? gate + c0 : gate);
          }
        if (j.weight && !j.both) {
          input_tiles<T, M>(p, j.g, x, zeros, t0, t1, order, v, j.v);
          for (int e = 0; e < E; ++e)
            for (int64_t i = 0; i < j.in.count; ++i)
              weight(e, i, e < E / 2 || j.data ? &next : &in);
        }
      }
    }
    ctx->sync();
    if (j.data)
      for (int64_t s = 1; s < j.slices; ++s) {
        int64_t r = s * j.rows / j.slices, ti = r % j.g.rows;
        if (ti == 0 || r == (s - 1) * j.rows / j.slices) continue;
        for (int64_t i = 0; i < 2; ++i) {
          int64_t row = ti * M - p.pad_h + i, count = p.in_w * p.channels;
          if (row < 0 || row >= p.in_h) continue;
          const T* q = at(j.seam_at) + s * j.seam + i * count;
          T* o = dx + (r / j.g.rows * p.in_h + row) * count;
          for (int64_t c = ctx->tid * N; c < count; c += ctx->nt * N) {
            int n = (int)min64(N, count - c);
            V r = load_n(o + c, n) + load_n(q + c, n);
            if (other) r += load_n(other + (o - dx) + c, n);
            if (gate) r = load_n(gate + (o - dx) + c, n) <= V{} ? V{} : r;
            store_n(o + c, r, n);
          }
        }
      }
    if (j.weight) {
      for (int64_t k = ctx->tid * 4; k < K; k += ctx->nt * 4)
        filter_gradient_tiles<T, M>(p, at(j.du_at) + k * j.du.ld, j.du, (int)j.slices, j.part, k,
                                    min64(k + 4, K), dw, p.channels, false);
      if (db) add_bias(p, at(j.db_at), j.slices, j.filters, db, ctx);
    }
  }

  // dx of panel i for images [n0, n1) of the round that starts at tile `first`
  void data_task(int64_t first, int64_t i, int64_t n0, int64_t n1, Ahead& next) const {
    int nv = j.in.nv(i);
    int64_t c0 = j.in.first(i) * N, r1 = n1 * j.g.rows, K = p.filters, D = elements(K);
    const T* dm = at(j.dm_at);
    T *u = mine, *dv = u + E * j.u.step;
    int64_t kept = -1;  // the first element of the slice in u
    const int64_t all = product_steps(nv, (n1 - n0) * j.g.rows * j.g.cols, min64(j.slice, D)) *
                        ceil_div(D, j.slice) * E;
    next.spread(all / 3);
    next.then->spread(all / 3);
    for (int64_t r = n0 * j.g.rows; r < r1; r += j.strip) {
      int64_t t0 = r * j.g.cols, t1 = min64(r + j.strip, r1) * j.g.cols;
      Ahead out = dx_ahead(dx, i, first + t0, first + t1);
      const int64_t steps = product_steps(nv, t1 - t0, min64(j.slice, D)) * E;
      out.spread(steps * ceil_div(D, j.slice) / (next.rows ? 3 : 1));
      out.write = true;
      out.then = &next;
      for (int64_t k = 0; k < D; k += j.slice) {
        int64_t count = min64(j.slice, D - k);
        if (kept != k)
          filter_tiles_backward<T, M>(p, w, c0, nv, k * kPair, min64((k + count) * kPair, K), u,
                                      j.u);
        kept = k;
        for (int e = 0; e < E; ++e)
          product<T, false>(
              nv, dm + k / kGroup * j.dm.group + e * j.dm.step + t0 * j.dm.ld + k % kGroup, j.dm.ld,
              t1 - t0, u + e * j.u.step, j.u.ld, count, dv + e * j.dv.step, j.dv.ld, k > 0, &out);
      }
      input_gradient_tiles<T, M>(
          p, j.g, dv, j.dv, first + t0, first + t1, Order(j.g, first + t0, first + t1),
          first + n0 * j.g.rows * j.g.cols, bias ? bias + c0 : nullptr, dx + c0, nullptr, lanes(i),
          other ? other + c0 : other, gate ? gate + c0 : gate);
    }
  }

  // dw of panel i and filters [k0, k1), summed over the tiles of the round
  void weight_task(int64_t i, int64_t k0, int64_t k1, int64_t tiles, bool add, Ahead& next) const {
    int64_t c0 = j.in.first(i) * N;
    const T *dm = at(j.dm_at), *v = at(j.v_at);
    T* du = mine;
    const int64_t steps = product_steps(j.in.nv(i), k1 - k0, tiles) * E;
    next.spread(steps / 2);
    next.then->spread(steps / 2);
    for (int e = 0; e < E; ++e) {
      const T* a = dm + channel_at(k0, j.dm) + e * j.dm.step;
      const T* b = v + channel_at(c0, j.v) + e * j.v.step;
      // Pairs are made of short rows, which no core follows: those of the next plane come from the
      // third level meanwhile.
      Ahead left{}, right{};
      if (kPair == 2 && ctx->follows && e + 1 < E) {
        auto fetch = [&](Ahead& q, const T* from, Planes s, int64_t values, Ahead* then) {
          q.at = (const char*)(from + s.step);
          q.rows = tiles;
          q.bytes = elements(values) * (int64_t)sizeof(T);
          q.pitch = s.ld * (int64_t)sizeof(T);
          q.near = true;
          q.then = then;
          q.spread(product_steps(j.in.nv(i), k1 - k0, ceil_div(tiles, kPair)) / 2);
        };
        fetch(left, a, j.dm, k1 - k0, &right);
        fetch(right, b, j.v, j.in.nv(i) * N, &next);
      }
      weight_product(j.in.nv(i), a, k1 - k0, b, tiles, du + e * j.du.step, false,
                     left.rows ? &left : &next);
    }
    filter_gradient_tiles<T, M>(p, du, j.du, 1, 0, k0, k1, dw + c0, lanes(i), add);
  }

  void by_channels() const {
    int64_t per = j.g.rows * j.g.cols, K = j.filters;
    for (int64_t n = 0; n < p.n; n += j.images) {
      int64_t count = min64(j.images, p.n - n), first = n * per, tiles = count * per;
      T* sums = at(j.db_at) + n / j.images * j.units * K;
      if (n > 0) ctx->sync();
      const int64_t units = ceil_div(tiles, kUnit);
      for (int64_t u = units * ctx->tid / ctx->nt; u < units * (ctx->tid + 1) / ctx->nt; ++u) {
        const int64_t t = u * kUnit;
        T* sum = db ? sums + t / kUnit * K : nullptr;
        if (db) memset(sum, 0, (size_t)K * sizeof(T));
        int64_t t1 = first + min64(t + kUnit, tiles);
        const Order order(j.g, first + t, t1);
        transform_dy(first + t, t1, order, at(j.dm_at) + t * j.dm.ld, j.dm, sum);
        if (j.weight)
          input_tiles<T, M>(p, j.g, x, zeros, first + t, t1, order, at(j.v_at) + t * j.v.ld, j.v);
      }
      ctx->sync();
      // weights first: they may be the longer tasks
      const int64_t weights = j.weight ? j.in.count * j.filter_blocks : 0;
      const int64_t tasks = weights + (j.data ? j.in.count * j.ranges : 0);
      // with each task a member asks for a part of what it transforms in the next round
      const int64_t n1 = n + count, left = min64(j.images, p.n - n1), P = p.pool ? 2 : 1;
      const int64_t turns = ceil_div(tasks, ctx->nt);
      auto part = [&](int64_t turn, const T* at, int64_t image) {
        const int64_t first = left * image * ctx->tid / ctx->nt;
        const int64_t size = left * image * (ctx->tid + 1) / ctx->nt - first;
        const int64_t i0 = turn * size / turns, i1 = (turn + 1) * size / turns;
        return ahead(at + n1 * image + first + i0, i1 - i0, true);
      };
      char* counters = queues + n / j.images * 2 * ctx->nt * kQueueBytes;
      const Shares first_kind{counters, weights, ctx->nt, ctx->tid};
      const Shares second_kind{counters + ctx->nt * kQueueBytes, tasks - weights, ctx->nt,
                               ctx->tid};
      auto take = [&](int64_t last) {
        if (last < weights) {
          const int64_t t = first_kind.take();
          if (t < weights) return t;
        }
        return weights + second_kind.take();
      };
      int64_t turn = 0;
      for (int64_t t = take(-1); t < tasks; t = take(t), ++turn) {
        Ahead next{}, xs{};
        if (left > 0 && ctx->follows && turn < turns) {
          next = part(turn, dy, p.out_h / P * (p.out_w / P) * p.filters);
          if (j.weight) xs = part(turn, x, p.in_h * p.in_w * p.channels);
        }
        next.then = &xs;
        if (t < weights) {
          const int64_t f = t / j.in.count;
          weight_task(t % j.in.count, f * kBlock, min64(f * kBlock + kBlock, p.filters), tiles,
                      n > 0, next);
        } else {
          const int64_t r = (t - weights) / j.in.count;
          data_task(first, (t - weights) % j.in.count, r * count / j.ranges,
                    (r + 1) * count / j.ranges, next);
        }
      }
    }
    if (db) {
      // rounds may have fewer units than room for them
      ctx->sync();
      int64_t rounds = ceil_div(p.n, j.images), last = p.n - (rounds - 1) * j.images;
      add_bias(p, at(j.db_at), (rounds - 1) * j.units + ceil_div(last * per, kUnit), K, db, ctx);
    }
  }
};

template <class T, int M>
void backward(const void* params, void* const* buf, const Ctx* ctx) {
  const ConvParams& p = *(const ConvParams*)params;
  Job j = make_job<T, M>(p);
  char* own = ctx->scratch + j.own_at + (size_t)ctx->tid * j.own;
  memset(own, 0, j.zeros);
  const int sum = 7 + (p.pool ? 1 : 0), gate = sum + (p.sum ? 1 : 0);
  const int last = gate + (p.gate ? 1 : 0);
  const bool made = p.prepared && prepared_ready(buf[last], p.prepared);
  Backward<T, M> b{p,
                   j,
                   ctx,
                   (const T*)buf[0],
                   (const T*)buf[1],
                   (const T*)buf[2],
                   (const T*)buf[4],
                   (T*)buf[3],
                   (T*)buf[5],
                   (T*)buf[6],
                   p.pool ? (const uint8_t*)buf[7] : nullptr,
                   p.sum ? (const T*)buf[sum] : nullptr,
                   p.gate ? (const T*)buf[gate] : nullptr,
                   made ? (const T*)buf[last + 1] : nullptr,
                   (const T*)own,
                   (T*)(own + j.zeros),
                   (T*)(own + j.zeros + j.pairs),
                   ctx->scratch + j.queues_at};
  if (ctx->tid == 0)
    for (int64_t i = 0; i < j.queues; ++i) queue_at(b.queues, i).reset();
  if (j.by_channels)
    b.by_channels();
  else
    b.by_tiles();
}

template <class T, int M>
void backward_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  Job j = make_job<T, M>(p);
  int64_t tasks = j.slices;
  if (j.by_channels)
    tasks = j.in.count * ((j.data ? j.ranges : 0) + (j.weight ? j.filter_blocks : 0));
  plan->tasks = min64(max64(1, p.threads), tasks);
  plan->scratch = j.scratch;
  plan->work = (int64_t)(winograd_operations<M>(p) * (j.data + j.weight) *
                         (sizeof(T) == 8 ? 2 : 1) / GS_VBYTES) +
               1000;
}

#if !defined(__AVX512BF16__)
// The filters of a unit of rows, transformed as by tiles.
template <int M>
void prepare(const void* params, void* const* buf, const Ctx*) {
  constexpr int N = simd<float>::N;
  const FormCall& call = *(const FormCall*)params;
  const ConvParams& p = *(const ConvParams*)call.params;
  const Panels in = panels_of<float>(p.channels);
  for (int64_t i = 0; i < in.count; ++i) {
    const Planes s = planes(p.filters, in.nv(i) * N);
    filter_tiles_backward<float, M>(
        p, (const float*)buf[0], in.first(i) * N, in.nv(i), call.first, call.first + call.count,
        (float*)buf[1] + panel_at<float, M>(p.filters, in, i) + call.first * s.ld, s);
  }
}
template <int M>
void prepare_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  const Job j = make_job<float, M>(p);
  plan->scratch =
      j.by_channels || !j.data ? 0 : align64((size_t)form_size<float, M>(p) * sizeof(float));
}

#endif

const KernelEntry entries[] = {
#if defined(__AVX512BF16__)
    {"conv_bf16_winograd4_pool_backward", kF32, backward<float, 4>, backward_plan<float, 4>},
    {"conv_bf16_winograd4_backward", kF32, backward<float, 4>, backward_plan<float, 4>},
#else
    {"prepare_winograd4_data", kF32, prepare<4>, prepare_plan<4>},
    {"prepare_winograd2_data", kF32, prepare<2>, prepare_plan<2>},
    {"conv_winograd4_pool_backward", kF32, backward<float, 4>, backward_plan<float, 4>},
    {"conv_winograd2_pool_backward", kF32, backward<float, 2>, backward_plan<float, 2>},
    {"conv_winograd4_backward", kF32, backward<float, 4>, backward_plan<float, 4>},
    {"conv_winograd4_backward", kF64, backward<double, 4>, backward_plan<double, 4>},
    {"conv_winograd2_backward", kF32, backward<float, 2>, backward_plan<float, 2>},
    {"conv_winograd2_backward", kF64, backward<double, 2>, backward_plan<double, 2>},
#endif
};

}  // namespace

extern const KernelList conv_winograd_backward_kernels;
const KernelList conv_winograd_backward_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
