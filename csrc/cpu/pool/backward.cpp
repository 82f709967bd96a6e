// Gradients of max and average pooling, regular and adaptive, see pool.h.
//
// dy (n, oh, ow, c) and, for max, its index to dx (n, h, w, c); the floor is memory, each once.
// Windows that do not overlap write each element of dx once, row by row (backward_tiles.h);
// otherwise each element of dx looks at the windows that hold it, in order: nothing is scattered,
// so there are no atomics and no zero fill (backward_collect.h). Averages over 3 columns at stride
// 1 are the forward sum over dy. Gradients of maxima whose windows overlap much go row by row of
// dx, rows of windows first and then columns: kw + kh comparisons an element in place of kw kh
// (backward_fold.h). Those of 3 x 3 windows at stride 1 take one row of windows after the other and
// keep what rows of dx have so far in the first cache, with few channels in registers down the rows
// (backward_collect.h).
//
// With few channels blocks of pixels are spread by permutations, as forward_few.h collects them,
// and where windows are two apart pairs of pixels of dx are made from the sums of one vector of dy
// (backward_few.h); what is left scatters within a sample, one task a sample.
#include "pool/backward_few.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct Backward : FewGradients<T> {
  using Base = FewGradients<T>;
  using Base::average_row;
  using Base::bytes_in;
  using Base::collect_block;
  using Base::collect_row;
  using Base::divisor;
  using Base::each_block;
  using Base::each_row;
  using Base::few_sample;
  using Base::fold_row;
  using Base::folded;
  using Base::folds;
  using Base::inner;
  using Base::kDeep;
  using Base::kFew;
  using Base::kNone;
  using Base::N;
  using Base::near;
  using Base::pattern_row;
  using Base::slide_row;
  using Base::slides;
  using Base::uniform;
  using Base::walks;
  using typename Base::Block;
  using typename Base::Pattern;
  using typename Base::Spread;
  using typename Base::Twins;
  using typename Base::V;

  // Elements of a member's sums.
  static GS_MEMBER int64_t sums_of(const PoolParams& p) { return (p.ow * p.c + 3 * N - 1) / N * N; }
  template <bool MAX, class IX>
  static void backward_ix(const Geometry& g, void* const* buf, const Ctx* ctx) {
    const PoolParams& p = g.p;
    const T* dy = (const T*)buf[0];
    const IX* index = (const IX*)buf[MAX ? 1 : 0];
    T* dx = (T*)buf[MAX ? 2 : 1];
    int64_t image = p.h * p.w * p.c, row = p.ow * p.c, begin, end;
    const bool few = p.c < kFew, same = !MAX && uniform(g);
    // with padding the first window may be cut short, but every element still lies in one window at
    // most
    const bool tiled =
        !p.adaptive && p.dh == 1 && p.dw == 1 && p.sh == p.kh && p.sw == p.kw && sizeof(IX) == 1;
    inner(g, &begin, &end);
    Block block;
    Spread spread;
    Pattern pattern;
    Twins twins;
    bool blocks = false, patterns = false;
    const bool twin = Twins::fits(p) && (MAX || same);
    if (twin) {
      twins.init(p);
    } else if (few && tiled) {
      block.init(g);
      blocks = spread.init(p, block);
    }
    // windows of three rows and more go row by row of dx: stores to so many rows in turn are slow
    const bool tiles = tiled && (few ? blocks : p.kh < 3);
    const bool by_ones = MAX && sizeof(IX) == 1 && Base::ones(p);
    const bool folding = MAX && !twin && !tiles && !by_ones && folds(p);
    if (few && !twin && !tiles && (end - begin) * p.c < N) {
      patterns = pattern.init(g);
      if (MAX && !(patterns && sizeof(IX) == 1)) {
        for (int64_t t = ctx->tid; t < p.n; t += ctx->nt)
          few_sample(g, dy + t * p.oh * row, index + t * p.oh * row, dx + t * image);
        return;
      }
    }
    // maxima of overlapping windows are slower when dx takes room from x
    const bool keeps = (twin || (!few && (!MAX || tiled))) && near(p, MAX);
    Way way = way_of(ctx, p.n * image * (int64_t)sizeof(T), dx,
                     (folding || twin ? p.w : 1) * p.c * (int64_t)sizeof(T), keeps);
    // nothing to read: then stores are faster, as far as a cache shared by the cores may take them
    if (way == kPast && p.oh * p.ow * 16 < p.h * p.w &&
        p.n * image * (int64_t)sizeof(T) / 8 < ctx->stream)
      way = kOwn;
    if (twin) {
      const T scale = MAX ? (T)1 : 1 / divisor(g, 0, 0);
      each_block(
          p.n * p.h, p.h, p.w * p.c * (int64_t)sizeof(T), p.h, ctx, [&](int64_t r, int64_t count) {
            const int64_t from = r / p.h * p.oh * row;
            (p.kw == 2 ? Base::template twin_rows<MAX, 2, 1>
                       : twins.middle
                 ? Base::template twin_rows < MAX,
             3, Base::kBytes ? 1 : -1 > : Base::template twin_rows < MAX, 3,
             Base::kBytes ? 0 : -1 >)(g, twins, way, scale, dy + from,
                                      (const uint8_t*)index + (MAX ? from : 0),
                                      dy + p.n * p.oh * row, r % p.h, count, dx + r * p.w * p.c);
          });
    } else if (tiles) {
      each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
        Base::template tile_row<MAX>(g, &block, blocks ? &spread : nullptr, way, same, dy + r * row,
                                     (const uint8_t*)index + (MAX ? r * row : 0),
                                     dx + r / p.oh * image, r % p.oh);
      });
    } else if (folding) {
      const int64_t line = p.w * p.c, room = folded(p);
      T* value = (T*)(g.room + ctx->tid * room * (int64_t)(sizeof(T) + 1));
      uint8_t* places = (uint8_t*)(value + room);
      memset(places, kNone, (size_t)room);
      each_row(p.n * p.h, line * (int64_t)sizeof(T), ctx, [&](int64_t r) {
        const int64_t from = r / p.h * p.oh * row;
        fold_row(g, way, dy + from, (const uint8_t*)index + from, r % p.h, value, places,
                 dx + r * line);
      });
    } else if (by_ones || (MAX && sizeof(IX) == 1 && !patterns && walks(p, begin, end))) {
      const int64_t bytes = p.w * p.c * (int64_t)sizeof(T);
      const int64_t deep = by_ones ? p.h : bytes % 4096 ? kDeep : kDeep / 2;
      each_block(p.n * p.h, p.h, bytes, deep, ctx, [&](int64_t r, int64_t count) {
        const int64_t from = r / p.h * p.oh * row, h = r % p.h;
        T* to = dx + r * p.w * p.c;
        const uint8_t* ix = (const uint8_t*)index + from;
        if constexpr (sizeof(T) == 4)
          if (by_ones) return Base::ones_rows(g, way, dy + from, ix, h, count, to);
        collect_block(g, way, begin, end, dy + from, ix, h, count, to);
        for (int64_t k = 0; k < count; ++k)
          collect_row(g, way, begin, end, dy + from, ix, h + k, to + k * p.w * p.c, true);
      });
    } else {
      T* sums = (T*)g.room + ctx->tid * sums_of(p);
      int64_t before = -1;  // whose sums these are
      each_row(p.n * p.h, p.w * p.c * (int64_t)sizeof(T), ctx, [&](int64_t r) {
        const int64_t from = r / p.h * p.oh * row, h = r % p.h;
        T* to = dx + r * p.w * p.c;
        if (MAX && patterns) {
          pattern_row(g, pattern, way, dy + from, (const uint8_t*)index + from,
                      dy + p.n * p.oh * row, h, to);
        } else if (MAX) {
          collect_row(g, way, begin, end, dy + from, index + from, h, to);
        } else if (same && slides(p) && p.c >= N) {
          const V inv = set1((T)1 / divisor(g, 0, 0));
          const int lo = g.y.lo[h];
          slide_row(
              way, dy + from + lo * row, row, g.y.hi[h] - lo, p.c, p.ow, p.w, 2 - p.pw,
              to, [=](int64_t, V s) __attribute__((always_inline)) { return s * inv; });
        } else {
          const int64_t windows = (r / p.h * p.h + g.y.lo[h]) * (p.oh + 1) + g.y.hi[h];
          average_row(g, patterns ? &pattern : nullptr, way, same, begin, end, dy + from, h, sums,
                      windows == before, to);
          before = windows;
        }
      });
    }
    if (way == kPast) write_fence();
  }
  // A member keeps a row of sums; there are not so many tasks that these get large.
  static void member_plan(const PoolParams& p, int64_t row, Plan* out) {
    plan(&p, out);
    int64_t most = ((int64_t)128 << 20) / row;
    if (most > 64) most = 64;
    if (most < 1) most = 1;
    if (out->tasks > most) out->tasks = most;
    out->scratch += (size_t)(out->tasks * row);
  }
  static void avg_plan(const void* params, Plan* out) {
    const PoolParams& p = *(const PoolParams*)params;
    member_plan(p, sums_of(p) * (int64_t)sizeof(T), out);
  }
  static void max_plan(const void* params, Plan* out) {
    const PoolParams& p = *(const PoolParams*)params;
    member_plan(p, folded(p) * (int64_t)(sizeof(T) + 1), out);
  }
  static void max_backward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    if (g.p.index_bytes == 4)
      backward_ix<true, int32_t>(g, buf, ctx);
    else
      backward_ix<true, uint8_t>(g, buf, ctx);
  }
  static void avg_backward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    backward_ix<false, uint8_t>(g, buf, ctx);
  }
};

const KernelEntry entries[] = {
    {"max_pool_backward", kF32, Backward<float>::max_backward, Backward<float>::max_plan},
    {"max_pool_backward", kF64, Backward<double>::max_backward, Backward<double>::max_plan},
    {"avg_pool_backward", kF32, Backward<float>::avg_backward, Backward<float>::avg_plan},
    {"avg_pool_backward", kF64, Backward<double>::avg_backward, Backward<double>::avg_plan},
};

}  // namespace

extern const KernelList pool_backward_kernels;
const KernelList pool_backward_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
