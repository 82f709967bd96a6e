// Products of matrices by vdpbf16ps, for processors without tiles: what bfloat16.cpp runs there.
//
// Floor: the instruction adds two products to each of 16 sums at the rate of a multiply-add, and a
// tile of 8 rows by 2 vectors (16 sums, 10 loads a step) reaches 99 % of it with operands in the
// caches. What is left to lose is packing, memory, and what happens to a sum on its way to C:
//   C is finished in registers: alpha, what C held, bias, ReLU, tails. Its lines are asked for,
//   to be written, when a tile begins.
//   Columns go by sets whose panels stay in half of the second cache, for all of k or, where that
//   would leave less than eight panels, for a span of its blocks. Rows go by units of 64, packed
//   for the same steps; a panel, 16 to 32 KB, meets all rows of a unit while it is in the first
//   cache. A whose columns are contiguous is packed as B is, pairs of steps side by side: no
//   transpose. The first unit on a set packs each panel right before it is used.
//   The source of the next panel, then of the next unit, is fetched from inside the tiles, a line
//   every two steps, so that it comes from memory while products are made.
//   Members own rows or columns of C and pack for themselves; who is done takes units from the end
//   of another's part.
#pragma once
#include "matmul/bfloat16.h"
#include "simd/own.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kTall = 8;           // rows of a tile
constexpr int64_t kUnitRows = 64;      // whole slivers
constexpr int64_t kLeastPanels = 8;    // of a set, as long as one block of k allows it
constexpr int64_t kAfterPanels = 4;    // that go through MatmulParams::after together
constexpr int64_t kDealtWork = 1 << 24;  // multiply-adds from which units are dealt out
constexpr int64_t kClaimBytes = 64;    // a line a counter

// Lines of memory that are read next: `rows` rows of `lines` each.
struct Region {
  const char* at;
  int64_t stride, lines, rows;
};
struct Ahead {
  const char* at;
  int64_t step, left, lines, jump, rows;

  GS_MEMBER explicit Ahead(const void* anything) : at((const char*)anything) { stop(); }
  GS_MEMBER void stop() {
    step = jump = rows = 0;
    left = lines = (int64_t)1 << 60;
  }
  GS_MEMBER void begin(const Region& r) {
    at = r.at;
    step = 64;
    left = lines = r.lines;
    jump = r.stride - 64 * r.lines;
    rows = r.rows;
  }
  GS_MEMBER void fetch() {
    __builtin_prefetch(at, 0, 3);
    at += step;
    if (--left == 0) {
      left = lines;
      at += jump;
      if (--rows == 0) {
        at -= 64;
        stop();
      }
    }
  }
};

// How sums get into C.
struct Ending {
  float alpha;
  const float* bias;    // of the tile's first column, or null
  bool relu, add;
  const float* beside;  // what is added at the end, lying as C does, or null
};

// C (rows <= 8, cols <= 32; ldc) from rows of a packed sliver and a panel; steps: pairs along k, a
// multiple of 4.
__attribute__((noinline)) void paired_tile(const Half* a, const Half* b, int64_t steps, float* c,
                                           int64_t ldc, int rows, int cols, const Ending& e,
                                           Ahead* ahead) {
  for (int r = 0; r < rows; ++r) {
    own(c + r * ldc, 0);
    own(c + r * ldc, (cols - 1) * 4);
    if (!e.beside) continue;
    __builtin_prefetch(e.beside + r * ldc);
    __builtin_prefetch(e.beside + r * ldc + cols - 1);
  }
  __m512 s[8][2];
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) s[r][0] = s[r][1] = _mm512_setzero_ps();
  auto step = [&](int u) __attribute__((always_inline)) {
    const __m512bh b0 = (__m512bh)_mm512_loadu_si512(b + u * 64),
                   b1 = (__m512bh)_mm512_loadu_si512(b + u * 64 + 32);
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      int32_t pair;
      memcpy(&pair, a + u * 64 + 2 * r, 4);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
      s[r][0] = _mm512_dpbf16_ps(s[r][0], x, b0);
      s[r][1] = _mm512_dpbf16_ps(s[r][1], x, b1);
    }
  };
  Ahead soon = *ahead;
  for (; steps > 0; steps -= 4, a += 256, b += 256) {
    step(0);
    step(1);
    soon.fetch();
    step(2);
    step(3);
    soon.fetch();
  }
  *ahead = soon;
  const __m512 alpha = _mm512_set1_ps(e.alpha), zero = _mm512_setzero_ps();
  const __mmask16 m[2] = {first_lanes(cols), first_lanes(cols - 16)};
  __m512 bias[2] = {zero, zero};
  if (e.bias)
    for (int h = 0; h < 2; ++h) bias[h] = _mm512_maskz_loadu_ps(m[h], e.bias + 16 * h);
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) {
    if (r >= rows) break;
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      float* to = c + r * ldc + 16 * h;
      __m512 x = _mm512_mul_ps(s[r][h], alpha);
      if (e.add) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(m[h], to));
      if (e.bias) x = _mm512_add_ps(x, bias[h]);
      if (e.relu) x = (__m512)max(vf{}, (vf)x);
      if (e.beside)
        x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(m[h], e.beside + r * ldc + 16 * h));
      _mm512_mask_storeu_ps(to, m[h], x);
    }
  }
}

// How a product is cut, by shape and caches.
struct Cut {
  int64_t kc, blocks, span;  // depth of a block of k; blocks that are packed together
  int64_t depth;             // padded, of a span
  int64_t panels, set;       // in all, of a set
  int64_t sliver;            // halves of packed A, 32 rows, of one block
  int64_t b_bytes, a_bytes, total;

  GS_MEMBER void cut(int64_t n, int64_t k, int64_t l2) {
    kc = block_depth(k);
    blocks = greater(1, kc ? parts(k, kc) : 1);
    const int64_t block = up(greater(kc, 1), kPad), line = kSide * (int64_t)sizeof(Half);
    panels = parts(n, kSide);
    const int64_t room = l2 / 2 / (block * line);  // of panels of one block
    span = greater(1, lesser(blocks, room / lesser(panels, kLeastPanels)));
    span = parts(blocks, parts(blocks, span));
    depth = span * block;
    set = greater(1, lesser(panels, room / span));
    set = parts(panels, parts(panels, set));
    sliver = kSide * block;
    b_bytes = up(set * depth * line, 4096);
    a_bytes = up(kUnitRows / kSide * span * sliver * (int64_t)sizeof(Half) + 64, 4096);
    total = b_bytes + a_bytes;
  }
};

// What one member makes of a part of C: rows [row0, row1), panels [panel0, panel1). Units are
// numbered along rows, then sets, then spans.
struct Part {
  int64_t row0, row1, panel0, panel1;
  GS_MEMBER int64_t high() const { return parts(row1 - row0, kUnitRows); }
  GS_MEMBER int64_t units(const Cut& s) const {
    return row1 > row0 && panel1 > panel0
               ? high() * parts(panel1 - panel0, s.set) * parts(s.blocks, s.span)
               : 0;
  }
};

template <class P>
struct PairedProduct {
  P& p;
  const Cut& s;
  Half *b, *a;
  int64_t first = -1, first_block = -1, packed = 0;  // of the panels in b

  GS_MEMBER Half* sliver(int64_t block, int64_t i) const {
    return a + (block * (kUnitRows / kSide) + i) * s.sliver;
  }

  // Unit u of a part; more: unit u + 1 comes afterwards, most likely.
  __attribute__((noinline)) void unit(const Part& part, int64_t u, bool more) {
    const int64_t high = part.high(), sets = parts(part.panel1 - part.panel0, s.set);
    const int64_t row = part.row0 + u % high * kUnitRows, of = u / high;
    const int64_t panel = part.panel0 + of % sets * s.set, block0 = of / sets * s.span;
    const int64_t block1 = lesser(s.blocks, block0 + s.span);
    const int64_t rows = lesser(kUnitRows, part.row1 - row),
                  count = lesser(s.set, part.panel1 - panel);
    if (first != panel || first_block != block0) packed = 0;
    first = panel;
    first_block = block0;
    for (int64_t block = block0; block < block1; ++block)
      for (int64_t i = 0; i < rows; i += kSide)
        p.left(block, row + i, (int)lesser(kSide, rows - i),
               sliver(block - block0, i / kSide));
    Ahead ahead(b);
    auto next_unit = [&] {
      const int64_t next = (u + 1) % high ? row + kUnitRows : part.row0;
      ahead.begin(p.left_source(block0, block1, next, lesser(kUnitRows, part.row1 - next)));
    };
    if (more && packed >= count) next_unit();
    for (int64_t v = 0; v < count; ++v) {
      Half* to = b + v * s.depth * kSide;
      if (v >= packed) {
        for (int64_t block = block0; block < block1; ++block)
          p.panel(block, panel + v, to + (block - block0) * up(s.kc, kPad) * kSide);
        packed = v + 1;
        if (v + 1 < count)
          ahead.begin(p.panel_source(block0, block1, panel + v + 1));
        else if (more)
          next_unit();
      }
      const int64_t column = (panel + v) * kSide;
      const int cols = (int)lesser(kSide, p.n - column);
      const Finish& f = p.finish;
      const bool sums = f.after && f.after->piece.kind == kPieceSum;
      for (int64_t block = block0; block < block1; ++block) {
        const bool last = block == s.blocks - 1;
        Ending e = {f.alpha, last && f.bias ? f.bias + column : nullptr, last && f.relu,
                    block > 0 || f.add, nullptr};
        const Half* rest = to + (block - block0) * up(s.kc, kPad) * kSide;
        const int64_t steps = up(p.depth(block), kPad) / 2;
        for (int64_t i = 0; i < rows; i += kTall) {
          float* c = p.c + (row + i) * p.ldc + column;
          if (last && sums) e.beside = f.beside(c);
          paired_tile(sliver(block - block0, i / kSide) + i % kSide * 2, rest, steps, c, p.ldc,
                      (int)lesser(kTall, rows - i), cols, e, &ahead);
        }
      }
      if (f.after && !sums && block1 == s.blocks && ((v + 1) % kAfterPanels == 0 || v + 1 == count)) {
        const int64_t begin = (panel + v / kAfterPanels * kAfterPanels) * kSide;
        f.piece(p.c + row * p.ldc + begin, p.ldc, rows, column + cols - begin);
      }
    }
  }
};

// The cheapest way to give `nt` members cells of rows and columns: cycles for a step along k.
GS_INLINE void share_paired(int64_t slivers, int64_t panels, int64_t nt, int64_t left, int64_t right,
                            int64_t* rows, int64_t* cols) {
  int64_t best = -1;
  for (int64_t i = nt; i >= 1; --i) {
    const int64_t s = parts(slivers, i), c = parts(panels, nt / i);
    const int64_t cost = 16 * s * c + left * s + right * c;
    if (best < 0 || cost < best) {
      best = cost;
      *rows = i;
      *cols = nt / i;
    }
  }
}

// The problems make(0) .. make(count - 1), alike in size.
template <class Make>
GS_INLINE void run_paired(Make make, int64_t count, int64_t m, const Cut& s, int64_t left,
                          int64_t right, bool dealt, const Ctx* ctx) {
  const int nt = ctx->nt;
  char* counters = ctx->scratch;
  char* mine = counters + up(nt * kClaimBytes, 4096) + ctx->tid * s.total;
  Half *b = (Half*)mine, *a = (Half*)(mine + s.b_bytes);
  const bool whole = count % nt == 0 || count >= 4 * nt;
  int64_t gr = 1, gc = 1;
  if (!whole) share_paired(parts(m, kSide), s.panels, nt, left, right, &gr, &gc);
  const int64_t rows = parts(parts(m, kSide), gr) * kSide, cols = parts(s.panels, gc);
  auto part = [&](int64_t t) {
    const int64_t i = t / gc, j = t % gc;
    return i >= gr ? Part{0, 0, 0, 0}
                   : Part{lesser(m, i * rows), lesser(m, (i + 1) * rows),
                          lesser(s.panels, j * cols), lesser(s.panels, (j + 1) * cols)};
  };
  if (whole || !dealt || count > 1 || s.span < s.blocks) {
    const Part mine_ = part(whole ? 0 : ctx->tid);
    const int64_t units = mine_.units(s);
    for (int64_t t = whole ? ctx->tid : 0; t < count; t += whole ? nt : 1) {
      auto p = make(t);
      PairedProduct<decltype(p)> product{p, s, b, a};
      for (int64_t u = 0; u < units; ++u) product.unit(mine_, u, u + 1 < units);
    }
    return;
  }
  // taken from a part: in all, and by others, from its end
  auto taken = [&](int64_t t) { return (int64_t*)(counters + t * kClaimBytes); };
  if (ctx->tid == 0)
    for (int t = 0; t < nt; ++t) taken(t)[0] = taken(t)[1] = 0;
  ctx->sync();
  auto p = make(0);
  PairedProduct<decltype(p)> product{p, s, b, a};
  for (int64_t q = 0; q < nt; ++q) {
    const int64_t t = (ctx->tid + q) % nt;
    const Part from = part(t);
    const int64_t units = from.units(s);
    for (int64_t u = 0; __atomic_fetch_add(taken(t), 1, __ATOMIC_RELAXED) < units; ++u) {
      if (q) {
        u = units - 1 - __atomic_fetch_add(taken(t) + 1, 1, __ATOMIC_RELAXED);
        product.unit(from, u, false);
      } else {
        product.unit(from, u, u + 1 < units);
      }
    }
  }
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
