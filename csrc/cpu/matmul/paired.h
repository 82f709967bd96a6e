// Products of matrices by vdpbf16ps, for processors without tiles: what bfloat16.cpp runs there.
//
// Floor: the instruction adds two products to each of 16 sums at the rate of a multiply-add, and a
// tile of 8 rows by 2 vectors (16 sums, 10 loads a step) reaches 97-99 % of it with operands in the
// caches. What is left to lose is packing, memory, and what happens to a sum on its way to C:
//   C is finished in registers: alpha, what C held, bias, ReLU, an addend, tails. Its lines are
//   asked for, to be written, when a tile begins.
//   Columns go by sets whose panels stay in half of the second cache, for all of k or, where that
//   would leave less than eight panels, for a span of its blocks. Rows go by units of 64, packed
//   for the same steps; a panel, 16 to 32 KB, meets all rows of a unit while it is in the first
//   cache. A is packed without a transpose: rows where they are contiguous, else pairs of steps.
//   The loop of a tile has something to do beside the products (Side), a line of results every four
//   steps: it packs the next unit of A, or the next panel where columns lie side by side, for which
//   memory is asked well before; or it fetches what has to be transposed into the next panel.
//   Conversions and shuffles there take the units that multiply-adds leave free.
//   Members own rows or columns of C and pack for themselves; who is done takes units from the end
//   of another's part.
#pragma once
#include "matmul/bfloat16.h"
#include "simd/own.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kTall = 8;                     // rows of a tile
constexpr int64_t kUnitRows = 64;                // of A, packed together
constexpr int64_t kLeastPanels = 8;              // of a set, as long as one block of k allows it
constexpr int64_t kSpanDepth = 1024;             // steps of k that are packed together, at most
constexpr int64_t kRowHalves = kSpanDepth + 32;  // between packed rows of A: odd lines
constexpr int64_t kPairHalves = 2 * kUnitRows;   // between packed pairs of steps of A
constexpr int64_t kAfterPanels = 4;              // that go through MatmulParams::after together
constexpr int64_t kLead = 48;            // lines of results by which memory is asked for ahead
constexpr int64_t kCrowded = 4;          // pairs of steps, where these crowd each other out
constexpr int64_t kShort = 32;           // pairs, a time too short for memory to answer
constexpr int64_t kBesideDepth = 128;    // steps from which that pays
constexpr int64_t kDealtWork = 1 << 24;  // multiply-adds from which units are dealt out
constexpr int64_t kClaimBytes = 64;      // a line a counter

// Lines of memory that are read next: `rows` rows of `lines` each.
struct Region {
  const float* at;
  int64_t stride, lines, rows;
};

// What a tile does beside its products.
enum SideKind { kNothing, kFetches, kPacks };
struct Side {
  const char* at;
  int64_t other, lead;  // bytes to the second vector of a line of results, to what is asked for
  int64_t step, jump;   // bytes from line to line, and more from row to row
  Half* to;
  int64_t to_jump;
  int64_t left, lines, rows;
  SideKind kind;
  __m512i turn;
  alignas(64) Half nowhere[32];

  GS_MEMBER void stop() {
    at = (const char*)nowhere;
    to = nowhere;
    other = lead = step = jump = 0;
    to_jump = -32;
    left = lines = 1;
    rows = (int64_t)1 << 60;
    kind = kNothing;
  }
  GS_MEMBER void fetch_region(const Region& r) {
    at = (const char*)r.at;
    step = 64;
    left = lines = r.lines;
    jump = r.stride * 4 - 64 * r.lines;
    rows = r.rows;
    kind = kFetches;
  }
  // `count` contiguous runs of `depth` elements, `stride` apart, to runs kRowHalves apart.
  GS_MEMBER void pack_runs(const float* from, int64_t stride, int64_t count, int64_t depth,
                           Half* out) {
    at = (const char*)from;
    other = 64;
    step = 128;
    jump = (stride - depth) * 4;
    to_jump = kRowHalves - depth;
    turn = _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14,
                            13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    begin(depth / 32, count, out, kLead, kLead * step);
  }
  // `depth` runs of `count` elements: pairs of them, side by side.
  GS_MEMBER void pack_pairs(const float* from, int64_t stride, int64_t count, int64_t depth,
                            Half* out) {
    at = (const char*)from;
    other = stride * 4;
    step = 64;
    jump = (2 * stride - count) * 4;
    to_jump = 0;
    turn = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                            6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    // runs a multiple of four pages apart meet in a few sets of the second cache
    const int64_t pairs = other % 16384 == 0 ? kCrowded : kLead * 16 / count;
    begin(count / 16, depth / 2, out, pairs * count / 16, pairs * 2 * other);
  }
  GS_MEMBER void begin(int64_t each, int64_t count, Half* out, int64_t ahead, int64_t bytes) {
    left = lines = each;
    rows = count;
    to = out;
    lead = bytes;
    kind = kPacks;
    const char* p = at;
    for (int64_t i = 0, n = left; i < ahead; ++i, p += step) {
      if (n-- == 0) p += jump, n = lines - 1;
      __builtin_prefetch(p);
      __builtin_prefetch(p + other);
    }
  }
  GS_MEMBER void advance() {
    at += step;
    if (--left) return;
    left = lines;
    at += jump;
    if (--rows == 0) stop();
  }
  GS_MEMBER void fetch() {
    __builtin_prefetch(at, 0, 3);
    advance();
  }
  GS_MEMBER void line() {
    const __m512 lo = _mm512_loadu_ps(at), hi = _mm512_loadu_ps(at + other);
    __builtin_prefetch(at + lead, 0, 3);
    __builtin_prefetch(at + other + lead, 0, 3);
    _mm512_store_si512(to, _mm512_permutexvar_epi16(turn, (__m512i)_mm512_cvtne2ps_pbh(hi, lo)));
    to += 32;
    at += step;
    if (--left) return;
    left = lines;
    at += jump;
    to += to_jump;
    if (--rows == 0) stop();
  }
  __attribute__((noinline)) void finish() {
    while (kind == kPacks) line();
  }
};

// 64 elements of each of `depth` rows of A's transpose, `rows` of them there, as pairs.
__attribute__((noinline)) void pairs_of_rows(const float* from, int64_t ks, int64_t depth,
                                             int64_t rows, Half* to) {
  for (int64_t k = 0; k < up(depth, kPad); k += 2, to += kPairHalves)
    for (int64_t i = 0; i < kUnitRows; i += 16) {
      const float* p = from + k * ks + i;
      const __mmask16 m = first_lanes(rows - i);
      _mm512_store_si512(to + 2 * i,
                         pairs_of(_mm512_maskz_loadu_ps(k < depth ? m : (__mmask16)0, p),
                                  _mm512_maskz_loadu_ps(k + 1 < depth ? m : (__mmask16)0, p + ks)));
    }
}

// How sums get into C.
struct Ending {
  float alpha;
  const float* bias;  // of the tile's first column, or null
  bool relu, add;
  const float* beside;  // what is added at the end, lying as C does, or null
};

// C (rows, cols <= 32; ldc) from packed rows of A (RUNS: contiguous) and a panel, 8 rows at a time;
// steps: pairs along k, a multiple of 4.
template <bool RUNS, SideKind SIDE>
__attribute__((noinline)) void paired_tiles(const Half* a, const Half* b, int64_t steps, float* c,
                                            int64_t ldc, int64_t rows, int cols, const Ending& e,
                                            Side* side) {
  const float* beside = e.beside;
  for (; rows > 0; rows -= kTall, c += kTall * ldc, a += RUNS ? kTall * kRowHalves : 2 * kTall) {
    const int tall = (int)lesser(kTall, rows);
    // A row of C is up to three lines. All of them have to come: stores wait for each other, and so
    // would those of the side.
    for (int r = 0; r < tall && steps > kShort; ++r) {
      own(c + r * ldc, 0);
      own(c + r * ldc, cols * 2);
      own(c + r * ldc, (cols - 1) * 4);
      if (!beside) continue;
      __builtin_prefetch(beside + r * ldc);
      __builtin_prefetch(beside + r * ldc + cols - 1);
    }
    __m512 s[8][2];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) s[r][0] = s[r][1] = _mm512_setzero_ps();
    const Half *p = a, *q = b;
    auto step = [&](int u) __attribute__((always_inline)) {
      const __m512bh b0 = (__m512bh)_mm512_loadu_si512(q + u * 64),
                     b1 = (__m512bh)_mm512_loadu_si512(q + u * 64 + 32);
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        int32_t pair;
        memcpy(&pair, p + (RUNS ? r * kRowHalves + 2 * u : u * kPairHalves + 2 * r), 4);
        const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
        s[r][0] = _mm512_dpbf16_ps(s[r][0], x, b0);
        s[r][1] = _mm512_dpbf16_ps(s[r][1], x, b1);
      }
    };
    for (int64_t i = steps; i > 0; i -= 4, p += RUNS ? 8 : 4 * kPairHalves, q += 256) {
      step(0);
      step(1);
      if (SIDE == kPacks) side->line();
      if (SIDE == kFetches) side->fetch();
      step(2);
      step(3);
      if (SIDE == kFetches) side->fetch();
    }
    if (e.alpha != 1) {
      const __m512 alpha = _mm512_set1_ps(e.alpha);
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        s[r][0] = _mm512_mul_ps(s[r][0], alpha);
        s[r][1] = _mm512_mul_ps(s[r][1], alpha);
      }
    }
    if (cols == kSide && !e.add && !e.bias && !e.relu && !beside) {
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        if (r >= tall) return;
        _mm512_storeu_ps(c + r * ldc, s[r][0]);
        _mm512_storeu_ps(c + r * ldc + 16, s[r][1]);
      }
      continue;
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __mmask16 m = first_lanes(cols - 16 * h);
      const __m512 bias = e.bias ? _mm512_maskz_loadu_ps(m, e.bias + 16 * h) : __m512{};
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) {
        if (r >= tall) break;
        const int64_t at = r * ldc + 16 * h;
        __m512 x = s[r][h];
        if (e.add) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(m, c + at));
        if (e.bias) x = _mm512_add_ps(x, bias);
        if (e.relu) x = (__m512)max(vf{}, (vf)x);
        if (beside) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(m, beside + at));
        _mm512_mask_storeu_ps(c + at, m, x);
      }
    }
    if (beside) beside += kTall * ldc;
  }
}

// How a product is cut, by shape and caches.
struct Cut {
  int64_t kc, blocks, span;  // depth of a block of k; blocks that are packed together
  int64_t depth;             // padded, of a span
  int64_t panels, set;       // in all, of a set
  int64_t b_bytes, a_bytes, total;

  GS_MEMBER void cut(const MatmulParams& p) {
    kc = block_depth(p.k);
    blocks = greater(1, kc ? parts(p.k, kc) : 1);
    const int64_t block = up(greater(kc, 1), kPad), line = kSide * (int64_t)sizeof(Half);
    panels = parts(p.n, kSide);
    const int64_t room = p.l2 / 2 / (block * line);  // of panels of one block
    span = lesser(kSpanDepth / block, room / lesser(panels, kLeastPanels));
    span = greater(1, lesser(blocks, span));
    span = parts(blocks, parts(blocks, span));
    depth = span * block;
    set = greater(1, lesser(panels, room / span));
    set = parts(panels, parts(panels, set));
    b_bytes = up(set * depth * line, 4096);
    // (two units of A: one is multiplied while the other is packed)
    a_bytes = up((p.a_cs == 1 ? kRowHalves : depth) * kUnitRows * (int64_t)sizeof(Half), 4096);
    total = b_bytes + 2 * a_bytes;
  }
};

// A part of C: rows [row0, row1), panels [panel0, panel1). Its units are numbered along rows, then
// sets, then spans.
struct Unit {
  int64_t row, panel, block;
};
struct Part {
  int64_t row0, row1, panel0, panel1;
  int64_t high, sets, units;

  GS_MEMBER Part(const Cut& s, int64_t i0, int64_t i1, int64_t j0, int64_t j1)
      : row0(i0), row1(i1), panel0(j0), panel1(j1) {
    high = parts(row1 - row0, kUnitRows);
    sets = parts(panel1 - panel0, s.set);
    units = high * sets * parts(s.blocks, s.span);
  }
  GS_MEMBER Unit at(const Cut& s, int64_t u) const {
    if (u < high) return {row0 + u * kUnitRows, panel0, 0};
    const int64_t q = u / high;
    return {row0 + (u - q * high) * kUnitRows, panel0 + q % sets * s.set, q / sets * s.span};
  }
};

template <class P>
struct PairedProduct {
  P& p;
  const Cut& s;
  Half *b, *a, *spare;                 // panels, a unit, the unit that comes next
  int64_t panel_at, block_at, packed;  // what is in b: from which panel and block on, how many
  int64_t next_row, next_block;        // what is in spare
  Side side;

  GS_MEMBER PairedProduct(P& problem, const Cut& cut, char* memory)
      : p(problem),
        s(cut),
        b((Half*)memory),
        a((Half*)(memory + cut.b_bytes)),
        spare((Half*)(memory + cut.b_bytes + cut.a_bytes)),
        panel_at(-1),
        packed(0),
        next_row(-1) {
    side.stop();
  }

  // A block of rows by one panel.
  template <bool RUNS>
  GS_MEMBER void tiles(const Half* panel, int64_t block, int64_t offset, int64_t row, int64_t rows,
                       int64_t column, int cols) {
    const Finish& f = p.finish;
    const bool last = block == s.blocks - 1;
    Ending e = {f.alpha, last && f.bias ? f.bias + column : nullptr, last && f.relu,
                block > 0 || f.add, nullptr};
    const int64_t steps = up(p.depth(block), kPad) / 2;
    float* c = p.c + row * p.ldc + column;
    if (last && f.sums()) e.beside = f.beside(c);
    auto tiles = side.kind == kPacks     ? paired_tiles<RUNS, kPacks>
                 : side.kind == kFetches ? paired_tiles<RUNS, kFetches>
                                         : paired_tiles<RUNS, kNothing>;
    tiles(a + offset * (RUNS ? 1 : kUnitRows), panel + offset * kSide, steps, c, p.ldc, rows, cols,
          e, &side);
  }

  // Unit u of a part; more: unit u + 1 comes afterwards, most likely.
  __attribute__((noinline)) void unit(const Part& part, int64_t u, bool more) {
    const Unit at = part.at(s, u);
    const int64_t row = at.row, panel = at.panel, block0 = at.block;
    const int64_t block1 = lesser(s.blocks, block0 + s.span);
    const int64_t rows = lesser(kUnitRows, part.row1 - row),
                  count = lesser(s.set, part.panel1 - panel);
    if (panel_at != panel || block_at != block0) packed = 0;
    panel_at = panel;
    block_at = block0;
    if (next_row == row && next_block == block0) {
      Half* was = a;
      a = spare;
      spare = was;
    } else {
      p.unit(block0, block1, row, rows, a);
    }
    next_row = -1;
    auto pack_next = [&] {
      if (!more) return;
      const Unit then = part.at(s, u + 1);
      if (part.row1 - then.row < kUnitRows ||
          !p.unit_beside(then.block, lesser(s.blocks, then.block + s.span), then.row, spare, &side))
        return;
      next_row = then.row;
      next_block = then.block;
    };
    const bool filling = packed < count, full = rows == kUnitRows && s.depth >= kBesideDepth;
    if (!filling && full) pack_next();
    for (int64_t v = 0; v < count; ++v) {
      Half* to = b + v * s.depth * kSide;
      if (packed == v) {
        for (int64_t block = block0; block < block1; ++block)
          p.panel(block, panel + v, to + (block - block0) * s.kc * kSide);
        packed = v + 1;
      }
      bool beside = false;
      if (filling && full && v + 1 < count)
        beside = p.panel_beside(block0, block1, panel + v + 1, to + s.depth * kSide, &side);
      else if (filling && full)
        pack_next();
      const int64_t column = (panel + v) * kSide;
      const int cols = (int)lesser(kSide, p.n - column);
      for (int64_t block = block0; block < block1; ++block) {
        if (p.acs == 1)
          tiles<true>(to, block, (block - block0) * s.kc, row, rows, column, cols);
        else
          tiles<false>(to, block, (block - block0) * s.kc, row, rows, column, cols);
      }
      if (beside) {
        side.finish();
        packed = v + 2;
      }
      const Finish& f = p.finish;
      if (f.after && !f.sums() && block1 == s.blocks &&
          ((v + 1) % kAfterPanels == 0 || v + 1 == count)) {
        const int64_t begin = (panel + v / kAfterPanels * kAfterPanels) * kSide;
        f.piece(p.c + row * p.ldc + begin, p.ldc, rows, column + cols - begin);
      }
    }
    side.finish();
    side.stop();
  }
};

// The cheapest way to give `nt` members cells of rows and columns, in cycles for a step along k: 16
// a block of 32 x 32. Panels cost what packing them takes. Slivers are packed beside products, but
// come from another member's caches where it made those rows and columns are cut: dealing out rows
// gained 2 % of a step where that is slow.
GS_INLINE void share_paired(int64_t slivers, int64_t panels, int64_t nt, int64_t* rows,
                            int64_t* cols) {
  int64_t best = -1;
  for (int64_t i = nt; i >= 1; --i) {
    const int64_t s = parts(slivers, i), c = parts(panels, nt / i);
    const int64_t cost = 16 * s * c + 6 * s + 4 * c;
    if (best < 0 || cost < best) {
      best = cost;
      *rows = i;
      *cols = nt / i;
    }
  }
}

// The problems make(0) .. make(count - 1), alike in size.
template <class Make>
GS_INLINE void run_paired(Make make, int64_t count, int64_t m, const Cut& s, bool dealt,
                          const Ctx* ctx) {
  const int nt = ctx->nt;
  char* counters = ctx->scratch;
  char* mine = counters + up(nt * kClaimBytes, 4096) + ctx->tid * s.total;
  const bool whole = count % nt == 0 || count >= 4 * nt;
  int64_t gr = 1, gc = 1;
  if (!whole) share_paired(parts(m, kSide), s.panels, nt, &gr, &gc);
  const int64_t rows = parts(parts(m, kSide), gr) * kSide, cols = parts(s.panels, gc);
  auto part = [&](int64_t t) {
    const int64_t i = t / gc, j = t % gc;
    return i >= gr ? Part(s, 0, 0, 0, 0)
                   : Part(s, lesser(m, i * rows), lesser(m, (i + 1) * rows),
                          lesser(s.panels, j * cols), lesser(s.panels, (j + 1) * cols));
  };
  if (whole || !dealt || count > 1 || s.span < s.blocks) {
    const Part own_part = part(whole ? 0 : ctx->tid);
    for (int64_t t = whole ? ctx->tid : 0; t < count; t += whole ? nt : 1) {
      auto p = make(t);
      PairedProduct<decltype(p)> product(p, s, mine);
      for (int64_t u = 0; u < own_part.units; ++u)
        product.unit(own_part, u, u + 1 < own_part.units);
    }
    return;
  }
  // taken from a part: in all, and by others, from its end
  auto taken = [&](int64_t t) { return (int64_t*)(counters + t * kClaimBytes); };
  if (ctx->tid == 0)
    for (int t = 0; t < nt; ++t) taken(t)[0] = taken(t)[1] = 0;
  ctx->sync();
  auto p = make(0);
  PairedProduct<decltype(p)> product(p, s, mine);
  for (int64_t q = 0; q < nt; ++q) {
    const int64_t t = (ctx->tid + q) % nt;
    const Part from = part(t);
    const int64_t units = from.units;
    for (int64_t u = 0; __atomic_fetch_add(taken(t), 1, __ATOMIC_RELAXED) < units; ++u) {
      if (q)
        product.unit(from, units - 1 - __atomic_fetch_add(taken(t) + 1, 1, __ATOMIC_RELAXED),
                     false);
      else
        product.unit(from, u, u + 1 < units);
    }
  }
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
