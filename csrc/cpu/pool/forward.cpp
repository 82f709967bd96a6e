// Max and average pooling of channels-last images, regular and adaptive, see pool.h.
//
// x (n, h, w, c) to y (n, oh, ow, c) and, for max, the place of each maximum inside its window, a
// byte an element of y (PyTorch: 8 bytes). Vectors run over channels; a task is a run of rows, so
// neighbouring windows share the cache. The floor is memory: x once, y and the index once. Averages
// over 3 columns at stride 1 keep the sums of the last two columns in registers, 3 loads a vector
// in place of 9. Maxima of 3 x 3 windows read each row of x once, one after the other as they lie
// in memory, and keep those of a row's three columns in the first cache until the windows are done
// with it: 4 comparisons a vector of y at stride 1 in place of 8, 6 two apart (forward_pairs.h).
// Larger windows that overlap go row by row of x: kw + kh comparisons in place of kw kh
// (forward_rows.h). So do those that do not, and adaptive ones, with what is known of the rows
// before kept in the first level: then x is read as one stream.
//
// With few channels (less than a vector) a vector holds a block of whole neighbouring pixels of y;
// the pixels of a tap come from two vectors of x by one permutation, which is the same for all
// blocks. Averages that do not fit (steps of more than two pixels, edges) are gathered
// (forward_few.h).
#include "pool/forward_few.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct Forward : FewChannels<T> {
  using Base = FewChannels<T>;
  using Base::avg_slide_row;
  using Base::bytes_in;
  using Base::each_block;
  using Base::each_row;
  using Base::inside;
  using Base::kFew;
  using Base::max_rows;
  using Base::N;
  using Base::period_of;
  using Base::slides;
  using Base::uniform;
  using typename Base::Block;
  using typename Base::Kept;
  using typename Base::Pairs;

  // How windows are computed: vectors over the channels of one or, at stride 1, of all of columns
  // begin .. end, whose windows lie inside; few channels as blocks of pixels or along the rows of a
  // wide window.
  enum Kind { kChannels, kBlocks, kWide };
  static GS_MEMBER Kind kind_of(const Geometry& g, int64_t* begin, int64_t* end) {
    const PoolParams& p = g.p;
    inside(g, begin, end);
    if (p.c >= kFew || (p.sw == 1 && (*end - *begin) * p.c >= N)) return kChannels;
    const int64_t pixels = p.adaptive ? (p.h / p.oh) * (p.w / p.ow) : p.kh * p.kw;
    const int64_t period = period_of(p.c) * N;
    if (p.dh == 1 && p.dw == 1 && p.kw * p.c >= N && pixels * p.c >= 4 * period) return kWide;
    return kBlocks;
  }
  template <class IX>
  static void max_forward_ix(const Geometry& g, void* const* buf, const Ctx* ctx) {
    const PoolParams& p = g.p;
    const T* x = (const T*)buf[0];
    T* y = (T*)buf[1];
    IX* index = (IX*)buf[2];
    int64_t image = p.h * p.w * p.c, row = p.ow * p.c, begin, end;
    const bool dense = p.dh == 1 && p.dw == 1 && sizeof(IX) == 1;
    const Kind kind = kind_of(g, &begin, &end);
    const Way way =
        way_of(ctx, p.n * (image + p.oh * row) * (int64_t)sizeof(T), y, p.c * (int64_t)sizeof(T));
    if constexpr (sizeof(IX) == 1) {
      const bool ones = Base::ones(p) && p.c >= N && !p.relu;
      if (ones || (kind != kWide && Pairs::fits(p) && (p.c < N || p.kh == 3))) {
        Pairs pairs;
        pairs.init(p);
        each_block(p.n * p.oh, p.oh, bytes_in(p), p.oh, ctx, [&](int64_t r, int64_t count) {
          const T* from = x + r / p.oh * image;
          const int64_t i = r % p.oh;
          T* to = y + r * row;
          uint8_t* ix = index ? index + r * row : index;
          if (p.c >= N)
            (ones ? Base::max_one_rows : Base::max_three_rows)(g, pairs, way, from, i, count, to,
                                                               ix);
          else
            (p.kh == 3 ? Base::template max_pair_rows<3>
                       : Base::template max_pair_rows<2>)(g, pairs, from, x + p.n * image, i, count,
                                                          to, ix);
        });
        if (way == kPast) write_fence();
        return;
      }
      Kept kept;
      // windows of few channels that do not overlap are faster one by one
      if (kind == kBlocks && p.kh <= p.sh && p.dh == 1 && p.ph == 0 && p.oh * p.sh <= p.h) {
        Block block;
        block.init(g);
        if (block.begin == 0 && block.end == p.ow && block.pixels > 1) {
          each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
            Base::template few_row<true>(g, block, x + r / p.oh * image, x + p.n * image, r % p.oh,
                                         y + r * row, index ? index + r * row : index);
          });
          return;
        }
      }
      if (kind != kWide && kept.init(g)) {
        const Way flat = way_of(ctx, p.n * (image + p.oh * row) * (int64_t)sizeof(T), y,
                                (kept.whole ? row : 1) * (int64_t)sizeof(T));
        each_block(p.n * p.oh, p.oh, bytes_in(p), p.oh, ctx, [&](int64_t r, int64_t count) {
          max_rows(g, kept, flat, x + r / p.oh * image, r % p.oh, count, y + r * row,
                   index ? index + r * row : index);
        });
        if (flat == kPast) write_fence();
        return;
      }
    }
    each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
      const T* from = x + r / p.oh * image;
      const int64_t i = r % p.oh;
      IX* ix = index ? index + r * row : index;
      if (kind == kWide)
        Base::template few_wide<true>(g, from, i, y + r * row, ix);
      else if (dense && p.kh == 2 && p.kw == 2)
        Base::template max_row<2>(g, way, begin, end, from, i, y + r * row, ix, 0, p.ow);
      else if (dense && p.kh == 3 && p.kw == 3)
        Base::template max_row<3>(g, way, begin, end, from, i, y + r * row, ix, 0, p.ow);
      else
        Base::template max_row<0>(g, way, begin, end, from, i, y + r * row, ix, 0, p.ow);
    });
    if (way == kPast) write_fence();
  }
  static void max_forward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    if (g.p.index_bytes == 4)
      max_forward_ix<int32_t>(g, buf, ctx);
    else
      max_forward_ix<uint8_t>(g, buf, ctx);
  }
  static void avg_forward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    const PoolParams& p = g.p;
    const T* x = (const T*)buf[0];
    T* y = (T*)buf[1];
    int64_t image = p.h * p.w * p.c, row = p.ow * p.c, begin, end;
    const bool same = uniform(g);
    const Kind kind = kind_of(g, &begin, &end);
    const int64_t bytes = p.n * (image + p.oh * row) * (int64_t)sizeof(T);
    const Way way = way_of(ctx, bytes, y, p.c * (int64_t)sizeof(T));
    const bool by_rows = Base::goes_by_rows(p, begin, end, bytes, ctx);
    if (kind != kWide && same && p.c < N && Pairs::fits(p)) {
      Pairs pairs;
      pairs.init(p);
      each_block(p.n * p.oh, p.oh, bytes_in(p), p.oh, ctx, [&](int64_t r, int64_t count) {
        (p.kh == 3 ? Base::template avg_pair_rows<3>
                   : Base::template avg_pair_rows<2>)(g, pairs, x + r / p.oh * image,
                                                      x + p.n * image, r % p.oh, count,
                                                      y + r * row);
      });
      return;
    }
    Block block;
    if (kind == kBlocks) block.init(g);
    each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
      const T* from = x + r / p.oh * image;
      const int64_t i = r % p.oh;
      T* to = y + r * row;
      if (kind == kWide)
        Base::template few_wide<false, uint8_t>(g, from, i, to, nullptr);
      else if (kind == kBlocks)
        Base::template few_row<false, uint8_t>(g, block, from, x + p.n * image, i, to, nullptr);
      else if (slides(p) && p.c >= N)
        avg_slide_row(g, way, same, from, i, to);
      else if (p.kh == 2 && p.kw == 2)
        Base::template avg_row<2>(g, way, same, by_rows, begin, end, from, i, to);
      else if (p.kh == 3 && p.kw == 3)
        Base::template avg_row<3>(g, way, same, by_rows, begin, end, from, i, to);
      else
        Base::template avg_row<0>(g, way, same, by_rows, begin, end, from, i, to);
    });
    if (way == kPast) write_fence();
  }
};

const KernelEntry entries[] = {
    {"max_pool", kF32, Forward<float>::max_forward, plan},
    {"max_pool", kF64, Forward<double>::max_forward, plan},
    {"avg_pool", kF32, Forward<float>::avg_forward, plan},
    {"avg_pool", kF64, Forward<double>::avg_forward, plan},
};

}  // namespace

extern const KernelList pool_forward_kernels;
const KernelList pool_forward_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
