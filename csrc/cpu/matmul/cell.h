// A rectangle of C by one member (gemm.cpp): its loops over blocks, panels, groups and tiles, what
// is packed and fetched between and inside the tiles, and how a tile is stored.
#pragma once
#include "matmul/blocking.h"
#include "matmul/pack.h"
#include "matmul/tile.h"
#include "simd/flush.h"

namespace gs {
namespace GS_ISA {
namespace {

// Arrays of `bytes` each that are wanted when a cell is done.
struct Soon {
  const char* at[kMaxUpdated];
  int64_t count, bytes;
};

// One rectangle (m, n) of C over k, by one member.
template <class T>
struct Cell {
  int64_t m, n, k;
  const T* a;
  int64_t ars, acs;
  const T* b;
  int64_t brs, bcs;
  const T* bias;  // of the first column, or null
  T* c;
  int64_t ldc;
  T alpha;
  bool add;
  int act;
  const MatmulParams* after;  // with something to do to each piece of C, or null
  T *first, *other;           // C and what lies beside it, from their starts
  bool shared;                // A lies as tiles read it, in slivers of k steps if at all, and B in
                              // panels of k steps where it is packed
  const Cell* then;           // what comes afterwards, of the same steps of k, or null
  const Soon* soon;           // what is read when all of it is done, or null
  int64_t panel;              // rows of the panels that C goes into, 0: it has none
  int64_t* claims;            // blocks of columns (ncb) that were taken, or null: all are taken

  // Whether there is a block of columns left to take. Who owns the cell takes from the left,
  // helpers from the right.
  GS_MEMBER bool claim(int64_t ncb) const {
    return !claims || __atomic_fetch_add(claims, 1, __ATOMIC_RELAXED) < ceil_div(n, ncb);
  }
  // Element (i, j) of C, j being the first of a panel.
  GS_MEMBER T* place(int64_t i, int64_t j) const { return c + i * ldc + j * (panel ? panel : 1); }
};

// c (rows, cols) is made and, when that is done, goes through MatmulParams::after: a few tiles at a
// time, because the functions take a while to get going, and no more, because rows that are 4 KB
// apart share few sets of the caches.
constexpr int64_t kAfterRows = 24;
template <class T>
GS_INLINE void fetch_after(const Cell<T>& x, const T* c, int64_t rows, int64_t cols) {
  const char* row = (const char*)(x.other + (c - x.first));
  for (int64_t i = 0; i < rows; ++i, row += x.ldc * (int64_t)sizeof(T))
    for (int64_t j = 0; j < cols * (int64_t)sizeof(T); j += 64) __builtin_prefetch(row + j, 0, 2);
}
template <class T>
GS_INLINE void run_after(const Cell<T>& x, T* c, int64_t rows, int64_t cols) {
  const FlushSubnormals off(false);
  PieceParams piece = x.after->piece;
  piece.rows = rows;
  piece.cols = cols;
  piece.stride = x.ldc;
  void* buf[2] = {c, x.other ? x.other + (c - x.first) : nullptr};
  x.after->after(&piece, buf, nullptr);
}

// What a tile does when it stores, element by element: for tiles that went through a buffer.
template <class T>
void finish(const TileArgs<T>& g, const T* from, int64_t width, int rows, int cols, int flags) {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < cols; ++j) {
      T x = from[i * width + j];
      if (flags & kTileScale) x *= g.alpha;
      if (flags & kTileAdd) x += g.c[i * g.ldc + j];
      if (flags & kTileBias) x += g.bias[j];
      if (flags & kTileRelu) x = x < 0 ? (T)0 : x;
      g.c[i * g.ldc + j] = x;
    }
}

// The same, transposed: element (i, j) of the tile goes to c[j * ldc + i]; bias is one a row i.
template <class T>
void finish_turned(const TileArgs<T>& g, const T* from, int64_t width, int rows, int cols,
                   int flags) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  V alpha = set1(g.alpha);
  for (int i = 0; i < rows; i += N) {
    int r = rows - i < N ? rows - i : N;
    V bias = flags & kTileBias ? load_n(g.bias + i, r) : V{};
    for (int j = 0; j < cols; j += N) {
      V v[N];
      int n = cols - j < N ? cols - j : N;
      load_transposed(from + i * width + j, width, v);  // rows past the tile are never stored
      T* c = g.c + j * g.ldc + i;
      for (int q = 0; q < n; ++q, c += g.ldc) {
        V x = v[q];
        if (flags & kTileScale) x *= alpha;
        if (flags & kTileAdd) x += load_n(c, r);
        if (flags & kTileBias) x += bias;
        if (flags & kTileRelu) x = max(V{}, x);
        store_n(c, x, r);
      }
    }
  }
}

// The last of what a tile does where bias is one a row: a tile has it one a column.
template <class T>
__attribute__((noinline)) void finish_rows(T* c, int64_t ldc, int rows, int cols, const T* bias,
                                           bool relu) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  for (int i = 0; i < rows; ++i, c += ldc)
    for (int j = 0; j < cols; j += N) {
      const int n = cols - j < N ? cols - j : N;
      V x = load_n(c + j, n) + set1(bias[i]);
      if (relu) x = max(V{}, x);
      store_n(c + j, x, n);
    }
}

// Runs the tile fn of `rows` x nv vectors that g describes, `cols` columns of it stored.
template <class T>
void run_tile(TileFn<T> fn, TileArgs<T>& g, int nv, int rows, int cols, bool turned) {
  constexpr int N = simd<T>::N;
  g.last = cols - (nv - 1) * N;
  if (!turned && (kTileMasks || g.last == N)) {
    fn(g);
    return;
  }
  // room for whole blocks of N rows: the transposition reads them, whatever they hold
  alignas(64) T buffer[(kTileMaxRows + 2 + N) * kTileNV * N];
  T* c = g.c;
  int64_t ldc = g.ldc;
  int32_t flags = g.flags;
  g.c = buffer;
  g.ldc = nv * N;
  g.flags = 0;
  if (kTileMasks && g.last != N)
    for (int i = 0; i < rows; ++i) store(buffer + i * nv * N + (nv - 1) * N, zero<T>());
  if (turned)
    for (int64_t i = rows * nv * N; i < round_up(rows, N) * nv * N; i += N)
      store(buffer + i, zero<T>());
  fn(g);
  g.c = c;
  g.ldc = ldc;
  g.flags = flags;
  if (turned)
    finish_turned(g, buffer, nv * N, rows, cols, flags);
  else
    finish(g, buffer, nv * N, rows, cols, flags);
}

// Memory that is wanted soon: rows of `count` pairs of lines, `jump` bytes apart.
struct Lines {
  const char* p;  // of the row that is next
  int64_t left, jump;
  int32_t count, col;

  GS_MEMBER void set(const void* start, int64_t rows, int64_t jump_bytes, int64_t row_bytes) {
    p = (const char*)((uintptr_t)start & ~(uintptr_t)(kFetchBytes - 1));
    count =
        (int32_t)(((uintptr_t)start - (uintptr_t)p + row_bytes + kFetchBytes - 1) / kFetchBytes);
    left = rows * count;
    jump = jump_bytes;
    col = 0;
  }
  // Gives up to `room` of them to a tile; how many.
  GS_MEMBER int64_t take(Fetch* f, int64_t room, int32_t* used) {
    if (left <= 0 || room <= 0) return 0;
    ++*used;
    int64_t n = left < room ? left : room;
    f->at = p + col * kFetchBytes;
    f->total = n;
    f->left = count - col;
    f->count = count;
    f->wrap = jump - (count - 1) * kFetchBytes;
    uint32_t to = (uint32_t)(col + n), full = to / (uint32_t)count;
    p += full * jump;
    col = (int32_t)(to - full * (uint32_t)count);
    left -= n;
    return n;
  }
};

// A panel of B on its way into the scratch, some steps of k at a time.
template <class T>
struct PanelPack {
  const T* from;
  T* to;
  int64_t ld, depth, done;
  int cols, width;
  bool turn;  // columns of B are contiguous

  GS_MEMBER int64_t next(int64_t n) const { return least(n, depth - done); }
  GS_MEMBER void step(int64_t n) {
    n = next(n);
    if (n <= 0) return;
    if (turn)
      pack_transposed(from + done, ld, n, cols, width, to + done * width);
    else
      pack_rows(from + done * ld, ld, n, cols, width, to + done * width);
    done += n;
  }
  // What the next step of n will read and write.
  GS_MEMBER void announce(int64_t n, Lines* lines, Lines* target) const {
    constexpr int64_t size = sizeof(T);
    n = next(n);
    if (turn)
      lines->set(from + done, n > 0 ? cols : 0, ld * size, n * size);
    else
      lines->set(from + done * ld, n, ld * size, cols * size);
    target->set(to + done * width, n > 0, 0, n * width * size);
  }
};

template <class T>
void run_cell(const Cell<T>& x, const Blocking& s, char* scratch) {
  constexpr int N = simd<T>::N;
  constexpr int64_t size = sizeof(T);
  const int64_t W = s.nv * N;
  T* b_pack = (T*)scratch;
  T* a_pack = (T*)(scratch + s.b_bytes);
  // the shape of the tile was chosen for the whole of C: a narrow cell takes narrower panels
  const int height = s.height;
  const bool packs_b = s.b_mode != kDirect && !x.shared;
  const bool packs_a = s.a_mode != kInPlace && !x.shared;
  const bool panelled = s.b_mode != kDirect && x.shared;
  const bool slivered = s.a_mode == kSlivers && x.shared;
  const bool by_rows = x.bias && s.bias_rows && !s.turned;
  TileArgs<T> g;
  g.alpha = x.alpha;
  g.ldc = x.ldc;
  Lines soon = {};
  int64_t soons = 0, soon_part = 0;
  if (x.soon) {
    int64_t pairs = x.soon->count * ceil_div(x.soon->bytes, kFetchBytes);
    soon_part = ceil_div(pairs, ceil_div(x.m, height) * ceil_div(ceil_div(x.n, N), s.nv));
  }
  PanelPack<T> pack = {};
  pack.turn = s.b_mode == kPackTransposed;
  // starts to pack the panel of nv vectors from column j and step p of B on
  auto start = [&](int64_t p, int64_t j, int64_t nv, T * to) __attribute__((always_inline)) {
    pack.from = x.b + p * x.brs + j * x.bcs;
    pack.ld = pack.turn ? x.bcs : x.brs;
    pack.to = to;
    pack.depth = least(s.kc, x.k - p);
    pack.done = 0;
    pack.width = (int)nv * N;
    pack.cols = (int)least(pack.width, x.n - j);
  };
  int64_t jc = 0, pc = 0;
  // The first panel of a block has two places, in turns: it is packed while the last panel of the
  // block before is still in use.
  for (int parity = 0;; parity ^= s.tile_packs ? 0 : 1) {
    int64_t nc = panelled ? x.n : least(s.ncb, x.n - jc), nvec = ceil_div(nc, N),
            kc = least(s.kc, x.k - pc);
    bool last_block = pc + kc >= x.k;
    const bool after = x.after && last_block;
    int32_t flags = (x.alpha != (T)1 ? kTileScale : 0) | (pc > 0 || x.add ? kTileAdd : 0) |
                    (last_block && x.bias && !by_rows ? kTileBias : 0) |
                    (last_block && x.act == kActRelu && !by_rows ? kTileRelu : 0);
    // the block after this one
    int64_t njc = jc, npc = pc;
    if (s.a_whole) {
      njc = jc + nc >= x.n ? 0 : jc + nc;
      npc = njc ? pc : pc + kc;
    } else {
      npc = last_block ? 0 : pc + kc;
      njc = npc ? jc : jc + nc;
    }
    const bool more = kc > 0 && njc < x.n && npc < x.k && (npc > 0 || x.claim(s.ncb));
    const Cell<T>* then = more ? nullptr : x.then;
    for (int64_t mg = 0; mg < x.m; mg += s.mgroup) {
      const int64_t rows = least(s.mgroup, x.m - mg), tiles = ceil_div(rows, height);
      const bool last_group = mg + rows >= x.m;
      const T* a = x.a + mg * x.ars + pc * x.acs;
      int64_t ars = x.ars, acs = x.acs;
      T* slivers = nullptr;
      if (slivered) slivers = (T*)x.a + mg * kc;
      if (packs_a) {
        T* to = a_pack + (s.a_whole || s.a_kept ? mg * s.a_row : 0) + pc / s.kc * s.a_kept;
        if (!(s.a_whole || s.a_kept) || jc == 0) {
          if (s.a_mode == kSlivers)
            pack_slivers(a, x.acs, rows, kc, s.sliver, kc, to);
          else
            pack_rows(a, x.ars, rows, (int)kc, (int)s.a_row, to);
        }
        if (s.a_mode == kSlivers) {
          slivers = to;
        } else {
          a = to;
          ars = s.a_row;
        }
      }
      // A of the next group, in even parts for all tiles
      Lines next_a = {}, next_b = {}, next_c = {}, next_pack = {};
      int64_t a_part = 0;
      if (s.fetch) {
        int64_t nmg = last_group ? 0 : mg + rows, np = last_group ? npc : pc;
        int64_t nk = least(s.kc, x.k - np);
        int64_t nrows = last_group && !more ? 0 : least(s.mgroup, x.m - nmg);
        const T* na = x.a + nmg * x.ars + np * x.acs;
        // an update's own lines come first
        const bool anew = then && (then->a != x.a || (!x.soon && (x.m > s.mgroup || x.k > s.kc)));
        if (nrows == 0 && anew) {
          na = then->a;
          nk = least(s.kc, then->k);
          nrows = least(s.mgroup, then->m);
        }
        if (packs_a && (s.a_whole || s.a_kept) && (last_group ? njc : jc) > 0)
          next_a.set(a_pack + nmg * s.a_row + np / s.kc * s.a_kept, 1, 0, nrows * s.a_row * size);
        else if (slivered)
          next_a.set(na, 1, 0, nrows * nk * size);
        else if (x.acs == 1)
          next_a.set(na, nrows, x.ars * size, nk * size);
        else if (x.ars == 1)
          next_a.set(na, nrows > 0 ? nk : 0, x.acs * size, nrows * size);
        a_part = ceil_div(next_a.left, tiles * ceil_div(nvec, s.nv));
      }
      for (int64_t v = 0; v < nvec;) {
        int nv = panel_vectors(s.nv, nvec - v);
        const int width = nv * N, cols = (int)least(width, nc - v * N);
        const bool last_panel = v + nv >= nvec;
        const T* b = panelled ? x.b + v * N * kc : x.b + pc * x.brs + (jc + v * N) * x.bcs;
        auto place = [&](int64_t first, int flip) __attribute__((always_inline)) {
          return b_pack + (first ? 2 * W + first * N : flip * W) * s.kc;
        };
        bool packed = packs_b || panelled, packing = false;
        int64_t chunk = 0;
        T* panel = packs_b ? place(v, parity) : panelled ? (T*)b : b_pack;
        if (packs_b) {
          if (mg == 0) {
            if (pack.to != panel) start(pc, jc + v * N, nv, panel);
            // few rows: the first tile packs, so that its arithmetic is not lost
            packing = s.tile_packs && cols == width && kTileRows[nv] == height &&
                      tile_rows(height, rows, !slivers) == height && (acs == 1 || ars == 1);
            if (!packing) pack.step(kc);
          }
          pack.to = nullptr;
          if (s.tile_packs) {
            // nothing is packed ahead
          } else if (mg == 0 && !last_panel)
            start(pc, jc + v * N + width, panel_vectors(s.nv, nvec - v - nv),
                  place(v + nv, parity));
          else if (last_group && last_panel && more)
            start(npc, njc, panel_vectors(s.nv, ceil_div(least(s.ncb, x.n - njc), N)),
                  place(0, parity ^ 1));
          if (pack.to) chunk = round_up(ceil_div(pack.depth, tiles), pack.turn ? (int64_t)N : 4);
        } else if (!kTileMasks && !panelled && cols < width) {
          pack_rows(b, x.brs, kc, cols, width, panel);
          packed = true;
        }
        if (s.fetch && panelled) {
          const T* nb = !last_panel ? b + width * kc : last_group && then ? then->b : x.b;
          int64_t left = !last_panel          ? nvec - v - nv
                         : last_group && then ? ceil_div(then->n, N)
                                              : nvec;
          next_b.set(nb, 1, 0, panel_vectors(s.nv, left) * N * kc * size);
        } else if (s.fetch && (!packs_b || s.tile_packs)) {
          const T* nb = nullptr;
          int64_t nk = kc, ncols = least(W, nc - v * N - width);
          if (!last_panel) {
            nb = b + width;
          } else if (last_group && more) {
            nb = x.b + npc * x.brs + njc;
            nk = least(s.kc, x.k - npc);
            ncols = least(W, x.n - njc);
          } else if (last_group && then && !packs_b) {
            nb = then->b;
            nk = least(s.kc, then->k);
            ncols = least(W, then->n);
          }
          if (nb) next_b.set(nb, nk, x.brs * size, ncols * size);
          if (mg == 0 && !last_panel && s.tile_packs)
            next_pack.set(place(v + nv, parity), 1, 0, kc * ncols * size);
        }
        packed = packed && !packing;
        g.b = packed ? panel : b;
        g.brs = packed ? width : x.brs;
        g.pack = panel;
        g.k = kc;
        g.flags = flags;
        const int la = slivers ? kSliverA : acs == 1 ? kRowsA : ars == 1 ? kColsA : kAnyA;
        int lb = packing ? kPackB : packed ? kPanelB : cols == width ? kRowsB : kAnyB;
        int64_t ready = 0;  // rows that went through `after`
        for (int64_t i = 0; i < rows;) {
          int r = tile_rows(height, rows - i, !slivers);
          if (slivers) {
            int64_t in = i % s.sliver;
            g.a = slivers + (i - in) * kc + in;
            g.ars = 1;
            g.acs = s.sliver;
          } else {
            g.a = a + i * ars;
            g.ars = ars;
            g.acs = acs;
          }
          if (s.turned) {
            g.c = x.c + (jc + v * N) * x.ldc + mg + i;
            g.bias = x.bias ? x.bias + mg + i : nullptr;
          } else {
            g.c = x.place(mg + i, jc + v * N);
            g.bias = x.bias && !by_rows ? x.bias + jc + v * N : nullptr;
          }
          g.fetches = 0;
          int64_t room = kc / kFetchSteps;
          const int64_t all = room;
          if (s.fetch) {
            // C of the next tile, B that is packed after this one, a part of A
            int64_t ni = mg + i + r, nj = jc + v * N, nrows = least(height, x.m - ni);
            const Cell<T>* nc = &x;
            if (i + r >= rows) {
              ni = last_panel ? mg + rows : mg;
              nj = last_panel ? jc : nj + width;
              nrows = least(height, x.m - ni);
              if (nrows <= 0 && (then || more)) {
                nc = then ? then : &x;
                ni = 0;
                nj = more ? njc : 0;
                nrows = least(height, more ? x.m : then->m);
              }
            }
            const T* nc_at = s.turned ? nc->c + nj * x.ldc + ni : nc->place(ni, nj);
            if (s.turned)
              next_c.set(nc_at, nrows > 0 ? cols : 0, x.ldc * size, nrows * size);
            else
              next_c.set(nc_at, most(nrows, 0), x.ldc * size, cols * size);
            if (chunk) pack.announce(chunk, &next_b, &next_pack);
            if (chunk) room -= next_b.take(&g.fetch[g.fetches], room, &g.fetches);
            room -= next_c.take(&g.fetch[g.fetches], room, &g.fetches);
            if (!chunk) room -= next_b.take(&g.fetch[g.fetches], room, &g.fetches);
            room -= next_pack.take(&g.fetch[g.fetches], room, &g.fetches);
            room -= next_a.take(&g.fetch[g.fetches], least(room, a_part), &g.fetches);
          }
          if (x.soon) {
            if (soon.left <= 0 && soons < x.soon->count)
              soon.set(x.soon->at[soons++], 1, 0, x.soon->bytes);
            room -= soon.take(&g.fetch[g.fetches], least(room, soon_part), &g.fetches);
          }
          g.every = all > room ? (int32_t)(all / (all - room)) : 1;
          TileFn<T> fn = r == kTileRows[nv] ? Tiles<T>::full[nv][la][lb] : nullptr;
          if (!fn) fn = Tiles<T>::any[nv][r];
          if (after && x.other) fetch_after(x, g.c, s.turned ? cols : r, s.turned ? r : cols);
          run_tile(fn, g, nv, r, cols, s.turned);
          if (by_rows && last_block)
            finish_rows(g.c, x.ldc, r, cols, x.bias + mg + i, x.act == kActRelu);
          if (chunk) pack.step(chunk);
          if (packing) {
            packing = false;
            g.b = panel;
            g.brs = width;
            lb = kPanelB;
          }
          i += r;
          if (after && (i - ready >= kAfterRows || i >= rows)) {
            T* c = s.turned ? x.c + (jc + v * N) * x.ldc + mg + ready
                            : x.c + (mg + ready) * x.ldc + jc + v * N;
            run_after(x, c, s.turned ? cols : i - ready, s.turned ? i - ready : cols);
            ready = i;
          }
        }
        v += nv;
      }
    }
    if (!more) break;
    jc = njc;
    pc = npc;
  }
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
