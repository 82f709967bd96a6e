// matmul: C = act(alpha * A B + bias + C) for matrices, batched; A (m, k), B (k, n), C (m, n).
//
// Floor: 2 m n k operations at two FMAs a cycle; bytes only matter when m or n is small (see
// vector.cpp).
//
// Small products and batches: a member of the team owns one rectangle of C (a cell), so nothing is
// shared and no barrier is needed. Larger ones of a team are packed together and dealt out in cells
// of one block of k (gemm_shared). Inside a cell, outermost first:
//   columns by `ncb`, k by `kc`: this block of B is packed into panels that stay in half of the
//   second cache; where columns of B are contiguous, 16 x 16 blocks are transposed into the panel.
//   A panel is packed a few steps at a time between the tiles on the panel before it, each time
//   right after its source was fetched: a whole panel fetched ahead would not survive where rows
//   are a power of two apart. Where they are close, the first tile on a panel stores what it reads.
//   Few rows read B in place if its rows do not crowd each other out of the second cache.
//   Rows by `mgroup`: this group of A stays in an eighth of the second cache. A is read where it
//   lies, but transposed A of many steps is packed into slivers, and rows a multiple of a page
//   apart are copied; where columns take several blocks, once for all (then k is outside columns).
//   Panels of up to 4 vectors, tiles of rows (tile.h). While tiles run, what comes next is
//   prefetched from inside their loops, evenly, so that memory and arithmetic overlap: the next
//   tile of C, B that is packed next, a part of the next group of A.
//
// The bits of the result depend on shape and strides alone: an element is the sum, in ascending
// order, of its blocks of kc products (a chain of FMAs each); kc is a function of these. Products
// with few elements and a long k are cut into slices along k, again by shape alone, and added in
// order.
//
// matmul_update: pieces are whole rows, and what a member has made of a gradient goes through the
// optimizer while it is in the second cache, where the parameter and its averages have been brought
// meanwhile. Bytes: those of the update; the gradient is written and not read again.
#include "matmul.h"
#include "matmul/pack.h"
#include "matmul/small.h"
#include "matmul/tile.h"
#include "prepare_unit.h"
#include "simd/flush.h"
#include "simd/own.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kDepth = 512;         // products summed before an element is written
constexpr int64_t kTurnedDepth = 1024;  // the same where tiles are transposed when they are written
constexpr int64_t kShallow = 128;       // the same where a panel of B is to stay in the first cache
constexpr int64_t kNearDepth = 192;     // steps of transposed A that are read in place
constexpr int64_t kCopyCols = 512;      // columns from which such a copy of A pays
constexpr int64_t kWholeBytes = 16 << 20;    // scratch for A of a block of k
constexpr int64_t kDirectBytes = 32 * 1024;  // of B, which no packing would bring closer
constexpr int64_t kFewRows = 256;            // rows that a packed panel of B would serve too seldom

GS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
GS_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
GS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
GS_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

enum BMode { kDirect, kPackRows, kPackTransposed };
enum AMode { kInPlace, kSlivers, kCopied };

// How a product is blocked; a function of the parameters.
struct Blocking {
  int64_t kc;      // depth of a block
  int64_t ncb;     // columns packed at a time
  int64_t mgroup;  // rows of A kept close
  int64_t slices;  // parts of k computed apart, 1 mostly
  int nv, height;  // widest panel in vectors, rows of its tile
  int sliver;      // rows of A packed together
  BMode b_mode;
  AMode a_mode;
  bool a_whole;                // A of a block of k is packed once, for all columns
  int64_t a_row;               // elements of packed A a row
  bool turned;                 // C has unit row stride: tiles are transposed on their way out
  bool bias_rows;              // bias is one a row of C, not one a column
  bool panels_in, panels_out;  // B lies packed, C goes where packed B does (ChainFlag)
  bool tile_packs;             // B is packed by the first tile on a panel, not ahead of it
  bool fetch;                  // operands come from beyond the second cache
  int64_t b_bytes, a_bytes;    // scratch of one member
};

// Vectors of the panels between products of a chain; both sides go by the columns alone. 0: they
// are not whole panels of one width. Two panels rather than one of 4, so that two members have
// their own.
template <class T>
GS_INLINE int chain_vectors(int64_t n) {
  constexpr int N = simd<T>::N;
  const int64_t v = n / N;
  if (n % N) return 0;
  if (v <= 3 && v <= kTileNV) return (int)v;
  if (kTileNV == 4 && v > 4 && v % 4 == 0) return 4;
  if (kTileNV == 4 && v % 3 == 0) return 3;
  return v % 2 == 0 ? 2 : 0;
}

template <class T>
Blocking blocking(const MatmulParams& p) {
  constexpr int N = simd<T>::N;
  constexpr int64_t size = sizeof(T);
  Blocking s;
  bool row_b = p.b_cs == 1 || p.n == 1;
  s.turned = p.c_cs != 1;
  s.bias_rows = s.turned || p.bias_rs != 0;
  const bool deep = s.turned || (p.chain & kChainDepth);
  auto depth_for = [&](int64_t most_of) __attribute__((always_inline)) {
    return most(1, round_up(ceil_div(p.k, most(1, ceil_div(p.k, most_of))), kFetchSteps));
  };
  bool few = row_b && p.m <= kFewRows && !s.turned;
  // few rows do not pay for a copy of B where its rows do not crowd each other out of the second
  // cache
  bool direct = few && depth_for(deep ? kTurnedDepth : kDepth) * p.b_rs * size <= p.l2 / 2;
  bool shallow = few && !direct && !deep;
  s.kc = depth_for(shallow ? kShallow : deep ? kTurnedDepth : kDepth);
  s.slices = 1;
  if (p.batch == 1 && p.m * p.n <= 64 * 64 && p.k >= 16 * kDepth)
    s.slices = least(16, p.k / (8 * kDepth));
  bool near = s.kc <= kNearDepth && p.a_cs * size % 4096 != 0;
  bool slivers =
      !near && p.a_cs != 1 && p.a_rs == 1 && !few && p.m * p.k * size > 128 * 1024 && p.n > 4 * N;
  // rows a multiple of a page apart meet in a few sets of the second cache
  bool copied =
      p.a_cs == 1 && p.a_rs * size % 4096 == 0 && p.m * p.k * size > p.l2 && p.n > kCopyCols;
  s.a_mode = slivers ? kSlivers : copied ? kCopied : kInPlace;
  // 32 registers: 6 x 4; 8 x 3 where slivers of A are packed (8 floats are half a line); 14 x 2
  // where tiles are transposed when stored, so that a row of C gets most of a line at once
  s.nv = kTileNV;
  const bool chained = p.chain & (kChainIn | kChainOut);
  const int whole = chained ? chain_vectors<T>(p.n) : 0;
  if (whole)
    s.nv = whole;
  else if (kTileNV == 4 && (s.turned || slivers) && !(chained && p.n < 3 * N))
    s.nv = s.turned ? 2 : 3;
  s.nv = (int)most(1, least(s.nv, ceil_div(p.n, N)));
  s.height = kTileRows[s.nv];
  int64_t W = s.nv * N, depth = most(s.kc, 64) * size;
  s.ncb = most(1, p.l2 / 2 / depth / W) * W;
  s.mgroup = most(4, p.l2 / 8 / depth / s.height) * s.height;
  s.sliver = sliver_width<T>(s.height);
  // groups and blocks of about one size: a narrow last one would read all of the other operand
  // again
  s.mgroup = round_up(ceil_div(p.m, ceil_div(p.m, s.mgroup)), slivers ? s.sliver : s.height);
  s.ncb = round_up(ceil_div(p.n, most(1, (p.n + s.ncb / 4) / s.ncb)), W);
  if (shallow) s.ncb = W;
  s.panels_in = whole && (p.chain & kChainIn);
  s.panels_out = whole && (p.chain & kChainOut);
  if (s.panels_in)
    s.b_mode = kPackRows;
  else if (!row_b)
    s.b_mode = kPackTransposed;
  else
    s.b_mode = direct || p.m <= 4 * s.height ||
                       // (rows of a chain lie without gaps: at odd places, if not whole vectors)
                       (p.k * p.n * size <= kDirectBytes && !(chained && p.n % N))
                   ? kDirect
                   : kPackRows;
  s.tile_packs = s.b_mode == kPackRows && (shallow || s.kc * p.b_rs * size <= p.l2 / 2);
  s.fetch = (p.m * p.k + p.k * p.n) * size > p.l2 / 2;
  s.b_bytes = round_up((least(s.ncb, round_up(p.n, W)) + 2 * W) * s.kc * size + 64, 4096);
  if (s.b_mode == kDirect) s.b_bytes = kTileMasks ? 0 : round_up(W * s.kc * size, 4096);
  s.a_row = slivers ? s.kc : round_up(s.kc, N) + N;
  int64_t a_rows = round_up(p.m, most(s.sliver, 1));
  s.a_whole = s.a_mode != kInPlace && p.n > s.ncb && a_rows * s.a_row * size <= kWholeBytes;
  if (!s.a_whole) a_rows = round_up(s.mgroup, s.sliver);
  s.a_bytes = s.a_mode != kInPlace ? round_up(a_rows * s.a_row * size + 64, 4096) : 0;
  return s;
}

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
    const bool more = kc > 0 && njc < x.n && npc < x.k;
    const Cell<T>* then = more ? nullptr : x.then;
    for (int64_t mg = 0; mg < x.m; mg += s.mgroup) {
      const int64_t rows = least(s.mgroup, x.m - mg), tiles = ceil_div(rows, height);
      const bool last_group = mg + rows >= x.m;
      const T* a = x.a + mg * x.ars + pc * x.acs;
      int64_t ars = x.ars, acs = x.acs;
      T* slivers = nullptr;
      if (slivered) slivers = (T*)x.a + mg * kc;
      if (packs_a) {
        T* to = a_pack + (s.a_whole ? mg * s.a_row : 0);
        if (!s.a_whole || jc == 0) {
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
        if (nrows == 0 && then && then->a != x.a) {
          na = then->a;
          nk = x.k;
          nrows = then->m;
        }
        if (packs_a && s.a_whole && (last_group ? njc : jc) > 0)
          next_a.set(a_pack + nmg * s.a_row, 1, 0, nrows * s.a_row * size);
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

// Cuts (m, n) into gr x gc = nt cells; the cheapest of the ways to write nt as a product.
template <class T>
void grid(const MatmulParams& p, const Blocking& s, int nt, int64_t* gr, int64_t* gc) {
  const int64_t N = simd<T>::N, unit = s.panels_in || s.panels_out ? s.nv * N : N;
  int64_t best = -1;
  for (int64_t r = 1; r <= nt; ++r) {
    int64_t c = nt / r;
    int64_t rows = round_up(ceil_div(p.m, r), 2), cols = round_up(ceil_div(p.n, c), unit);
    // in 1/16 of the time of an FMA on N lanes: arithmetic, packing of A and of B
    int64_t cost = 16 * rows * cols +
                   (s.a_mode == kSlivers  ? 8
                    : s.a_mode == kCopied ? 4
                                          : 2) *
                       rows * N +
                   (s.b_mode == kPackTransposed ? 8
                    : s.b_mode == kPackRows     ? 3
                                                : 1) *
                       cols * N;
    if (r * c > 0 && (best < 0 || cost < best)) {
      best = cost;
      *gr = r;
      *gc = c;
    }
  }
}

// Element offset of batch index t.
GS_INLINE int64_t batch_offset(const MatmulParams& p, const int64_t* strides, int64_t t) {
  int64_t o = 0;
  for (int d = p.batch_ndim - 1; d >= 0; --d) {
    o += t % p.batch_shape[d] * strides[d];
    t /= p.batch_shape[d];
  }
  return o;
}

template <class T>
void gemm_sliced(const MatmulParams& p, const Blocking& s, const Cell<T>& whole, const Ctx* ctx) {
  int64_t elements = p.m * p.n, member_bytes = s.b_bytes + s.a_bytes;
  T* partial = (T*)ctx->scratch;
  char* mine = ctx->scratch + round_up(s.slices * elements * (int64_t)sizeof(T), 4096) +
               ctx->tid * member_bytes;
  int64_t depth = round_up(ceil_div(p.k, s.slices), 16);
  for (int64_t t = ctx->tid; t < s.slices; t += ctx->nt) {
    Cell<T> x = whole;
    x.a += t * depth * x.acs;
    x.b += t * depth * x.brs;
    x.k = most(0, least(depth, p.k - t * depth));
    x.c = partial + t * elements;
    x.ldc = s.turned ? p.m : p.n;
    x.bias = nullptr;
    x.alpha = 1;
    x.add = false;
    x.act = kActNone;
    x.after = nullptr;
    run_cell(x, s, mine);
  }
  ctx->sync();
  int64_t outer = s.turned ? p.n : p.m, inner = elements / outer;
  for (int64_t i = ctx->tid; i < outer; i += ctx->nt) {
    for (int64_t j = 0; j < inner; ++j) {
      T v = partial[i * inner + j];
      for (int64_t t = 1; t < s.slices; ++t) v += partial[t * elements + i * inner + j];
      v *= whole.alpha;
      if (whole.add) v += whole.c[i * whole.ldc + j];
      if (whole.bias) v += whole.bias[s.bias_rows == s.turned ? j : i];
      if (whole.act == kActRelu) v = v < 0 ? (T)0 : v;
      whole.c[i * whole.ldc + j] = v;
    }
    if (whole.after) run_after(whole, whole.c + i * whole.ldc, 1, inner);
  }
}

// A product whose pieces go to whoever is free: cores of one machine are not equally fast, and a
// product ends with the slower. C is cut along k into steps of one block (and where the operands
// are large, along rows and columns, too). For each, A and B are packed by all into memory that
// they share, then units of C are taken, everyone from a range of its own first, so that its
// part of the operands stays in its caches, then from what the others have left. The next step is
// packed by who finds no unit any more; one barrier a step.
constexpr int64_t kSharedBytes = 8 << 20;          // packed B of a step, and packed A
constexpr int64_t kSharedWork = 1 << 24;           // products of numbers from which it pays
constexpr int64_t kSharedMost = (int64_t)1 << 35;  // and up to which: larger ones wait for memory
constexpr int64_t kUnitWork = 3 << 20;             // of a unit, at least
constexpr int64_t kUnits = 12;                     // of a member, about
constexpr int64_t kCounterBytes = 64;              // a line each
constexpr int64_t kPackSteps = 16;                 // steps of k packed together
constexpr int64_t kTurnSteps = 256;                // steps of k of a panel transposed together
constexpr int64_t kCopyRows = 16;                  // rows of A copied together

struct Sharing {
  int64_t rows, cols;            // of a step
  int64_t unit_rows, unit_cols;  // of a piece of C
  int64_t a_bytes, b_bytes;      // packed operands of a step
  int64_t steps, member_bytes;   // of memory that a member has for itself
  bool private_b;  // few rows: a unit has all of them and all of k, and packs its columns of B
};

// updates: a piece of C is whole rows, or columns of a transposed problem, a multiple of `unit` of
// them.
template <class T>
Sharing sharing(const MatmulParams& p, const Blocking& s, int64_t nt, bool updates,
                int64_t unit = 1) {
  constexpr int64_t size = sizeof(T);
  int64_t W = s.nv * simd<T>::N;
  int64_t group = s.a_mode == kSlivers ? most(s.sliver, s.height) : s.height;
  if (updates) {
    while (group % unit) group += s.a_mode == kSlivers ? most(s.sliver, s.height) : s.height;
    while (s.turned && W % unit) W += s.nv * simd<T>::N;
  }
  Sharing h;
  // few panels: rows are dealt out as well where packing them does not cost more than that brings
  const int64_t panels = ceil_div(p.n, W);
  const bool narrow =
      panels < 4 * nt && (s.b_mode == kDirect ? p.k <= s.kc : panels % nt != 0 && p.m > W);
  h.private_b = !updates && !p.prepared && !s.panels_in && s.a_mode == kInPlace && !narrow &&
                (p.m <= kFewRows || (s.tile_packs && p.k <= s.kc && p.m * p.k * size <= p.l2 / 4 &&
                                     ceil_div(p.n, W) >= 4 * nt));
  h.rows = p.m;
  h.cols = p.n;
  if (!h.private_b) {
    if (s.b_mode != kDirect) {
      int64_t most_cols = most(s.ncb, kSharedBytes / (s.kc * size) / W * W);
      h.cols = round_up(ceil_div(p.n, ceil_div(p.n, most_cols)), W);
    }
    if (s.a_mode != kInPlace) {
      int64_t most_rows = most(s.mgroup, kSharedBytes / (s.a_row * size) / group * group);
      h.rows = round_up(ceil_div(p.m, ceil_div(p.m, most_rows)), group);
    }
  }
  h.steps = h.private_b
                ? 1
                : ceil_div(p.n, h.cols) * ceil_div(p.m, h.rows) * most(1, ceil_div(p.k, s.kc));
  h.b_bytes = s.b_mode == kDirect || h.private_b || p.prepared || s.panels_in
                  ? 0
                  : round_up(round_up(h.cols, W) * s.kc * size + 64, 4096);
  h.a_bytes = s.a_mode == kInPlace || h.private_b
                  ? 0
                  : round_up(round_up(h.rows, group) * s.a_row * size + 64, 4096);
  h.member_bytes = h.private_b ? s.b_bytes + s.a_bytes : s.b_mode == kDirect ? s.b_bytes : 0;
  int64_t rows = h.rows, cols = h.cols, k = h.private_b ? p.k : least(p.k, s.kc);
  h.unit_rows = h.private_b ? p.m : least(s.mgroup, round_up(rows, group));
  h.unit_cols = h.private_b ? round_up(cols, W) : least(s.ncb, round_up(cols, W));
  if (updates) {
    // rows of C as they lie in memory
    auto part = [&](int64_t count, int64_t other, int64_t step) __attribute__((always_inline)) {
      return round_up(most(ceil_div(count, kUnits * nt), ceil_div(kUnitWork / 2, other * k)), step);
    };
    h.unit_cols = s.turned ? part(cols, rows, W) : round_up(cols, W);
    h.unit_rows = s.turned ? round_up(rows, group) : part(rows, cols, group);
    return h;
  }
  // columns of a chain of products stay with one member, and so in its caches
  if (s.panels_in || s.panels_out)
    h.unit_cols = least(h.unit_cols, round_up(ceil_div(cols, nt), W));
  for (;;) {
    const int64_t count = ceil_div(rows, h.unit_rows) * ceil_div(cols, h.unit_cols);
    // of three units one member gets two: rather smaller ones
    const bool coarse = count < 4 * nt;
    if (count >= kUnits * nt ||
        h.unit_rows * h.unit_cols * k < (coarse ? kUnitWork / 2 : 2 * kUnitWork))
      break;
    if (h.unit_cols > 2 * W || (h.private_b && h.unit_cols > W))
      h.unit_cols = round_up(h.unit_cols / 2, W);
    else if ((!h.private_b || s.b_mode == kDirect) && h.unit_rows > (coarse ? 4 : 8) * group)
      h.unit_rows = round_up(h.unit_rows / 2, group);
    else
      break;
  }
  return h;
}

template <class T>
bool is_shared(const MatmulParams& p, const Blocking& s, int64_t nt) {
  return nt > 1 && p.batch == 1 && s.slices == 1 && p.k > 0 && p.m * p.n * p.k >= kSharedWork &&
         p.m * p.n * p.k < kSharedMost;
}

// Numbers of two kinds, 0 .. total - 1 each, every one given to one member: to everyone from its
// own range of both, then from the others'. counters: one a member, zero at first.
struct Tickets {
  char* counters;
  int64_t total[2];
  int nt, tid, at;

  GS_MEMBER int64_t first(int kind, int r) const { return total[kind] * r / nt; }
  GS_MEMBER int64_t size(int kind, int r) const { return first(kind, r + 1) - first(kind, r); }
  // Number i of range r; its kind, or -1.
  GS_MEMBER int in_range(int r, int64_t i, int64_t* number) const {
    int kind = i >= size(0, r);
    if (kind) i -= size(0, r);
    *number = first(kind, r) + i;
    return i < size(kind, r) ? kind : -1;
  }
  GS_MEMBER int take(int64_t* number) {
    for (; at < nt; ++at) {
      int r = tid + at < nt ? tid + at : tid + at - nt;
      int kind = in_range(
          r, __atomic_fetch_add((int64_t*)(counters + r * kCounterBytes), 1, __ATOMIC_RELAXED),
          number);
      if (kind >= 0) return kind;
    }
    return -1;
  }
};

// Memory that is about to be read and written.
GS_INLINE void fetch_rows(const void* p, int64_t rows, int64_t stride, int64_t bytes) {
  const char* row = (const char*)p;
  for (int64_t i = 0; i < rows; ++i, row += stride)
    for (int64_t j = 0; j < bytes; j += 64) __builtin_prefetch(row + j, 0, 2);
}
GS_INLINE void own_bytes(void* p, int64_t bytes) {
  for (int64_t j = 0; j < bytes; j += 64) own((char*)p + j, 0);
}

// The operands of a step of a shared product on their way into its memory, in parts: B, then A.
// Where rows are copied, a part is some steps of k for all of them, so that it is read in order.
template <class T>
struct SharedPack {
  const Cell<T>& x;
  const Blocking& s;
  T *a_to, *b_to;
  int64_t nt;
  int64_t parts[2];  // of B, of A

  static constexpr int N = simd<T>::N;
  static constexpr int64_t size = sizeof(T);

  GS_MEMBER void count() {
    parts[0] = s.b_mode == kDirect     ? 0
               : s.b_mode == kPackRows ? nt * ceil_div(x.k, kPackSteps)
                                       : ceil_div(ceil_div(x.n, N), s.nv) * turns();
    parts[1] = s.a_mode == kInPlace   ? 0
               : s.a_mode == kSlivers ? ceil_div(x.k, kPackSteps)
                                      : ceil_div(x.m, kCopyRows);
  }
  GS_MEMBER void part(int kind, int64_t t) {
    if (kind)
      s.a_mode == kSlivers ? slivers(t) : copy(t);
    else
      s.b_mode == kPackRows ? rows(t) : turn(t);
  }
  GS_MEMBER void rows(int64_t t) {
    // some steps of the columns of one member
    const int64_t chunks = ceil_div(x.k, kPackSteps), r = t / chunks,
                  k = (t - r * chunks) * kPackSteps;
    const int64_t n = least(kPackSteps, x.k - k), nvec = ceil_div(x.n, N);
    const int64_t whole = nvec / s.nv - (nvec % s.nv == 1);
    const int64_t end = r + 1 < nt ? whole * (r + 1) / nt * s.nv : nvec;
    const T* from = x.b + k * x.brs;
    for (int64_t v = whole * r / nt * s.nv; v < end;) {
      int nv = panel_vectors(s.nv, nvec - v);
      const int width = nv * N;
      int64_t next = v + nv, ahead = next < end ? least(s.nv * N, x.n - next * N) : 0;
      if (ahead > 0) {
        fetch_rows(from + next * N, n, x.brs * size, ahead * size);
        own_bytes(b_to + next * N * x.k + k * width, n * ahead * size);
      }
      pack_rows(from + v * N, x.brs, n, (int)least(width, x.n - v * N), width,
                b_to + v * N * x.k + k * width);
      v = next;
    }
  }
  // Parts of a panel that is transposed.
  GS_MEMBER int64_t turns() const { return ceil_div(x.k, kTurnSteps); }
  GS_MEMBER void turn(int64_t part) {
    const int64_t t = part / turns(), first = part % turns() * kTurnSteps,
                  end = least(x.k, first + kTurnSteps);
    // the panel before the last may be narrower
    const int64_t nvec = ceil_div(x.n, N);
    int64_t v = t * s.nv;
    if (t > 0 && nvec - v <= s.nv) v += panel_vectors(s.nv, nvec - v + s.nv) - s.nv;
    const int width = panel_vectors(s.nv, nvec - v) * N, cols = (int)least(width, x.n - v * N);
    const T* from = x.b + v * N * x.bcs;
    T* to = b_to + v * N * x.k;
    for (int64_t k = first; k < end; k += kPackSteps) {
      int64_t n = least(kPackSteps, end - k), ahead = least(kPackSteps, end - k - n);
      if (ahead > 0) {
        fetch_rows(from + k + n, cols, x.bcs * size, ahead * size);
        own_bytes(to + (k + n) * width, ahead * width * size);
      }
      pack_transposed(from + k, x.bcs, n, cols, width, to + k * width);
    }
  }
  GS_MEMBER void slivers(int64_t t) {
    const int64_t k = t * kPackSteps, n = least(kPackSteps, x.k - k), wide = 4 * s.sliver;
    const T* from = x.a + k * x.acs;
    for (int64_t i = 0; i < x.m; i += wide) {
      int64_t ahead = least(wide, x.m - i - wide);
      if (ahead > 0) {
        fetch_rows(from + i + wide, n, x.acs * size, ahead * size);
        for (int64_t j = 0; j < ahead; j += s.sliver)
          own_bytes(a_to + (i + wide + j) * x.k + k * s.sliver, n * s.sliver * size);
      }
      pack_slivers(from + i, x.acs, least(wide, x.m - i), n, s.sliver, x.k,
                   a_to + i * x.k + k * s.sliver);
    }
  }
  GS_MEMBER void copy(int64_t t) {
    int64_t end = least(x.m, (t + 1) * kCopyRows);
    for (int64_t i = t * kCopyRows; i < end; i += 2) {
      int64_t ahead = least(2, end - i - 2);
      if (ahead > 0) {
        fetch_rows(x.a + (i + 2) * x.ars, ahead, x.ars * size, x.k * size);
        own_bytes(a_to + (i + 2) * s.a_row, ahead * s.a_row * size);
      }
      pack_rows(x.a + i * x.ars, x.ars, least(2, end - i), (int)x.k, (int)s.a_row,
                a_to + i * s.a_row);
    }
  }
};

// The update that follows a product, and the buffers of both.
struct Update {
  const MatmulUpdateParams& u;
  void* const* buf;

  // Rows of the parameter that are prepared together: pieces are multiples of it.
  GS_MEMBER int64_t unit() const { return u.prepared.forms ? kPreparedRows : 1; }
  GS_MEMBER void prepare_unit(int64_t t) const {
    WeightUnit{u.prepared, (const float*)buf[4], (char*)buf[4 + u.updated], t}.prepare();
  }
  GS_MEMBER void prepare(int64_t offset, int64_t n) const {
    if (!u.prepared.forms) return;
    const int64_t each = kPreparedRows * u.prepared.row;
    for (int64_t t = offset / each; t * each < offset + n; ++t) prepare_unit(t);
  }
  GS_MEMBER void prepare_all(const Ctx* ctx) const {
    for (int64_t t = ctx->tid; t < prepared_units(u.prepared); t += ctx->nt) prepare_unit(t);
  }

  // Elements offset .. offset + n - 1.
  GS_MEMBER void run(int64_t offset, int64_t n, const Ctx* ctx) const {
    struct {
      OptimizerParams rule;
      int64_t size;
    } one = {u.rule, n};
    char* at[2 + kMaxUpdated] = {nullptr};
    for (int64_t i = 0; i <= u.updated; ++i)
      at[1 + (i < 2 ? 1 - i : i)] = (char*)buf[3 + i] + offset * (int64_t)sizeof(float);
    u.update(&one, (void* const*)at, ctx);
  }
  GS_MEMBER void announce(int64_t offset, int64_t n, Soon* soon) const {
    soon->count = u.updated;
    soon->bytes = n * (int64_t)sizeof(float);
    for (int64_t i = 0; i < u.updated; ++i)
      soon->at[i] = (const char*)buf[4 + i] + offset * (int64_t)sizeof(float);
  }
};

// Where the cell of C from row i and column j on begins, x being the whole.
template <class T>
GS_INLINE T* move_to(const Cell<T>& x, const MatmulParams& p, int64_t i, int64_t j) {
  return x.panel ? x.place(i, j) : x.c + i * p.c_rs + j * p.c_cs;
}

// update: what is done to whole rows that are ready, or nothing. kept: all of B, packed, where
// p.prepared.
template <class T>
void gemm_shared(const MatmulParams& p, const Blocking& s, const Cell<T>& whole, const Ctx* ctx,
                 const Update* update, const T* kept) {
  const Sharing h = sharing<T>(p, s, ctx->nt, update != nullptr, update ? update->unit() : 1);
  const int64_t W = s.nv * simd<T>::N;
  const int nt = ctx->nt;
  const int64_t set = 2 * nt * kCounterBytes;  // counters of a step: of packing, of units
  char* counters = ctx->scratch;
  char* mine = ctx->scratch + round_up(3 * set, 4096);
  char* memory = mine + nt * h.member_bytes;
  mine += ctx->tid * h.member_bytes;
  if (ctx->tid == 0)
    for (int64_t i = 0; i < 6 * nt; ++i) *(int64_t*)(counters + i * kCounterBytes) = 0;
  if (h.private_b) {
    ctx->sync();
    const int64_t mu = ceil_div(p.m, h.unit_rows);
    Tickets tickets{counters, {mu * ceil_div(p.n, h.unit_cols), 0}, nt, ctx->tid, 0};
    for (int64_t t; tickets.take(&t) >= 0;) {
      Cell<T> x = whole;
      int64_t i = t % mu * h.unit_rows, j = t / mu * h.unit_cols;
      x.m = least(h.unit_rows, p.m - i);
      x.n = least(h.unit_cols, p.n - j);
      x.a += i * x.ars;
      x.b += j * x.bcs;
      if (x.bias) x.bias += s.bias_rows ? i : j;
      x.c = move_to(x, p, i, j);
      run_cell(x, s, mine);
    }
    return;
  }
  int64_t gr, gc;
  grid<T>(p, s, nt, &gr, &gc);
  const bool by_columns = gc > 1 || s.panels_in || s.panels_out;
  // no piece has whole rows
  const bool late = update && (s.turned ? h.rows < p.m : h.cols < p.n);
  const int64_t blocks = ceil_div(p.k, s.kc), across = ceil_div(p.m, h.rows);
  // the operands of step q
  auto place = [&](int64_t q, int64_t* row, int64_t* col, int64_t* k) {
    *k = q % blocks * s.kc;
    *row = q / blocks % across * h.rows;
    *col = q / blocks / across * h.cols;
    Cell<T> x = whole;
    x.k = least(s.kc, p.k - *k);
    x.m = least(h.rows, p.m - *row);
    x.n = least(h.cols, p.n - *col);
    x.a += *row * x.ars + *k * x.acs;
    x.b += *col * x.bcs + *k * x.brs;
    return x;
  };
  auto pack = [&](int64_t q) {
    int64_t row, col, k;
    const Cell<T> x = place(q, &row, &col, &k);
    T* b_to = (T*)(memory + (q & 1) * (h.a_bytes + h.b_bytes));
    SharedPack<T> work{x, s, (T*)((char*)b_to + h.b_bytes), b_to, nt, {}};
    work.count();
    if (kept) work.parts[0] = 0;
    Tickets tickets{counters + q % 3 * set, {work.parts[0], work.parts[1]}, nt, ctx->tid, 0};
    int64_t t;
    int kind;
    if (q == 0) {  // nobody has seen the counters yet
      for (int64_t i = 0; (kind = tickets.in_range(ctx->tid, i, &t)) >= 0; ++i) work.part(kind, t);
      return;
    }
    while ((kind = tickets.take(&t)) >= 0) work.part(kind, t);
  };
  pack(0);
  for (int64_t q = 0; q < h.steps; ++q) {
    ctx->sync();
    // nobody is in step q - 1 any more, and step q + 2 comes behind another barrier
    if (ctx->tid == 0 && q > 0)
      for (int64_t i = 0; i < 2 * nt; ++i)
        *(int64_t*)(counters + (q + 2) % 3 * set + i * kCounterBytes) = 0;
    int64_t row, col, k;
    const Cell<T> step = place(q, &row, &col, &k);
    const T* b = (const T*)(memory + (q & 1) * (h.a_bytes + h.b_bytes));
    const T* a = (const T*)((const char*)b + h.b_bytes);
    if (kept) b = kept + col * p.k + k * round_up(step.n, simd<T>::N);
    // whole panels a unit; the last one has a rest of less than a panel
    const int64_t nu = most(1, step.n / h.unit_cols + (step.n % h.unit_cols >= W)),
                  mu = ceil_div(step.m, h.unit_rows);
    int64_t per_block = most(1, s.ncb / h.unit_cols);
    if (by_columns) per_block = least(per_block, ceil_div(nu, nt));
    // unit t: blocks of columns, groups of rows, columns
    auto unit = [&](int64_t t) {
      int64_t block = t / (per_block * mu), in = t - block * per_block * mu;
      int64_t wide = least(per_block, nu - block * per_block);
      int64_t ju = block * per_block + in % wide, i = in / wide * h.unit_rows;
      int64_t j = ju * h.unit_cols;
      Cell<T> x = step;
      x.shared = true;
      x.m = least(h.unit_rows, step.m - i);
      x.n = ju == nu - 1 ? step.n - j : h.unit_cols;
      if (s.a_mode == kInPlace) {
        x.a += i * x.ars;
      } else if (s.a_mode == kSlivers) {
        x.a = a + i * step.k;
      } else {
        x.a = a + i * s.a_row;
        x.ars = s.a_row;
      }
      if (s.b_mode == kDirect) {
        x.b += j * x.bcs;
      } else {
        x.b = b + j * step.k;
      }
      x.c = move_to(x, p, row + i, col + j);
      bool last = k + step.k >= p.k;
      x.add = x.add || k > 0;
      if (x.bias) x.bias += s.bias_rows ? row + i : col + j;
      if (!last) {
        x.bias = nullptr;
        x.act = kActNone;
        x.after = nullptr;
      }
      return x;
    };
    Tickets tickets{counters + q % 3 * set + nt * kCounterBytes, {nu * mu, 0}, nt, ctx->tid, 0};
    const bool updates = update && !late && k + step.k >= p.k;
    const Ctx alone{0, 1, nullptr, ctx->slots, nullptr, ctx->barrier_wait, ctx->stream};
    Soon soon;
    for (int64_t t; tickets.take(&t) >= 0;) {
      Cell<T> x = unit(t), then;
      if (t + 1 < nu * mu) {  // most likely the next one
        then = unit(t + 1);
        x.then = &then;
      }
      const int64_t offset = x.c - whole.c, n = s.turned ? x.n * p.m : x.m * p.n;
      if (updates) {
        update->announce(offset, n, &soon);
        x.soon = &soon;
      }
      run_cell(x, s, mine);
      if (!updates) continue;
      update->run(offset, n, &alone);
      update->prepare(offset, n);
    }
    if (q + 1 < h.steps) pack(q + 1);
  }
  if (late) {
    ctx->sync();
    update->run(0, p.m * p.n, ctx);
    if (update->unit() == 1) return;
    ctx->sync();
    update->prepare_all(ctx);
  }
}

// ---- B of a product, all of it packed beforehand (include/prepared.h)

// Whether it can be, of the products that pack it anyway.
GS_INLINE bool keeps_b(const MatmulParams& p, const Blocking& s) {
  return p.batch == 1 && s.slices == 1 && p.k > 0 && s.b_mode != kDirect &&
         p.m * p.n * p.k < kSharedMost;
}

// to[k * width + j] = from[j * ld + k] for j < rows, zero for the other lanes of one vector.
void pack_vector(const float* from, int64_t ld, int64_t depth, int rows, int64_t width, float* to) {
  constexpr int N = simd<float>::N;
  for (int64_t k = 0; k < depth; k += N, to += N * width) {
    const int64_t n = least(N, depth - k);
    if (rows == N && n == N) {
      vf v[N];
      load_transposed(from + k, ld, v);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) store(to + i * width, v[i]);
      continue;
    }
    for (int64_t i = 0; i < n; ++i)
      for (int j = 0; j < N; ++j) to[i * width + j] = j < rows ? from[j * ld + k + i] : 0;
  }
}

// A unit of rows of B, or of its transpose: columns of B.
void prepare(const void* params, void* const* buf, const Ctx*) {
  constexpr int N = simd<float>::N;
  const FormCall& call = *(const FormCall*)params;
  const MatmulParams& p = *(const MatmulParams*)call.params;
  const float* w = (const float*)buf[0];
  float* to = (float*)buf[1];
  const int64_t end = call.first + call.count;
  if (small_kept(p)) {
    for (int64_t j = call.first; j < end; j += N) {
      int64_t panel = 0, width = 0;
      small_place(p, j, &panel, &width);
      pack_vector(w + j * p.b_cs, p.b_cs, p.k, (int)least(N, p.n - j), width,
                  to + panel * p.k + j - panel);
    }
    return;
  }
  const Blocking s = blocking<float>(p);
  const Sharing h = sharing<float>(p, s, 1, false);
  for (int64_t col = 0; col < p.n; col += h.cols) {
    const int64_t cols = least(h.cols, p.n - col), nvec = ceil_div(cols, N);
    for (int64_t v = 0; v < nvec;) {
      const int nv = panel_vectors(s.nv, nvec - v);
      const int64_t width = nv * N, at = col + v * N;  // the columns of this panel
      for (int64_t k = 0; k < p.k; k += s.kc) {
        const int64_t depth = least(s.kc, p.k - k);
        float* panel = to + col * p.k + k * nvec * N + v * N * depth;
        if (s.b_mode == kPackRows) {
          const int64_t r = most(k, call.first), n = least(k + depth, end) - r;
          if (n > 0)
            pack_rows(w + r * p.b_rs + at, p.b_rs, n, (int)least(width, p.n - at), (int)width,
                      panel + (r - k) * width);
        } else {
          for (int64_t j = most(at, call.first); j < least(at + width, end); j += N)
            pack_vector(w + j * p.b_cs + k, p.b_cs, depth, (int)least(N, p.n - j), width,
                        panel + j - at);
        }
      }
      v += nv;
    }
  }
}
void prepare_plan(const void* params, Plan* plan) {
  const MatmulParams& p = *(const MatmulParams*)params;
  plan->scratch = 0;
  if (small_kept(p) || keeps_b(p, blocking<float>(p)))
    plan->scratch = (size_t)(round_up(p.n, simd<float>::N) * p.k) * sizeof(float);
}

template <class T>
Cell<T> whole_cell(const MatmulParams& p, const Blocking& s, void* const* buf) {
  Cell<T> x;
  x.m = p.m;
  x.n = p.n;
  x.k = p.k;
  x.ars = p.a_rs;
  x.acs = p.a_cs;
  x.brs = p.b_rs;
  x.bcs = p.b_cs;
  x.ldc = s.turned ? p.c_cs : s.panels_out ? s.nv * simd<T>::N : p.c_rs;
  x.panel = s.panels_out ? p.m : 0;
  x.alpha = (T)p.alpha;
  x.add = p.accumulate != 0;
  x.act = p.act;
  x.after = p.after ? &p : nullptr;
  x.first = (T*)buf[3];
  x.other = p.after ? (T*)buf[4] : nullptr;
  x.a = (const T*)buf[0];
  x.b = (const T*)buf[1];
  x.bias = (const T*)buf[2];
  x.c = (T*)buf[3];
  x.shared = false;
  x.then = nullptr;
  x.soon = nullptr;
  return x;
}

// With B as it was packed beforehand, when it was.
bool gemm_prepared(const MatmulParams& p, void* const* buf, const Ctx* ctx) {
  const int at = p.after ? 5 : 4;
  if (!prepared_ready(buf[at], p.prepared)) return false;
  const float* kept = (const float*)buf[at + 1];
  if (small_kept(p)) {
    small_prepared(p, buf, kept, ctx);
  } else {
    const Blocking s = blocking<float>(p);
    gemm_shared<float>(p, s, whole_cell<float>(p, s, buf), ctx, nullptr, kept);
  }
  return true;
}

template <class T>
void gemm(const void* params, void* const* buf, const Ctx* ctx) {
  const MatmulParams& p = *(const MatmulParams*)params;
  const FlushSubnormals flush(sizeof(T) == 4);
  if (sizeof(T) == 4 && p.prepared) {
    if (gemm_prepared(p, buf, ctx)) return;
    MatmulParams plain = p;
    plain.prepared = 0;
    return gemm<T>(&plain, buf, ctx);
  }
  if (p.m == 0 || p.n == 0 || p.batch == 0) return;
  if (sizeof(T) == 4 && ctx->nt == 1 && small_product(p, buf, ctx->scratch)) return;
  Blocking s = blocking<T>(p);
  Cell<T> x = whole_cell<T>(p, s, buf);
  if (s.slices > 1) {
    gemm_sliced(p, s, x, ctx);
    return;
  }
  if (s.panels_in && (s.a_mode != kInPlace || p.m * p.n * p.k >= kSharedWork)) {
    gemm_shared<T>(p, s, x, ctx, nullptr, (const T*)buf[1]);
    return;
  }
  if (is_shared<T>(p, s, ctx->nt)) {
    gemm_shared<T>(p, s, x, ctx, nullptr, nullptr);
    return;
  }
  char* mine = ctx->scratch + ctx->tid * (s.b_bytes + s.a_bytes);
  int64_t gr = 1, gc = 1;
  bool whole = p.batch % ctx->nt == 0 || p.batch >= 4 * ctx->nt;
  if (!whole) grid<T>(p, s, ctx->nt, &gr, &gc);
  int64_t cells = gr * gc;
  int64_t rows = ceil_div(p.m, gr),
          cols = round_up(ceil_div(p.n, gc), (s.panels_in || s.panels_out ? s.nv : 1) * simd<T>::N);
  x.shared = s.panels_in;  // (A in place, B in panels of all rows)
  if (rows > 2 * s.height) rows = round_up(rows, 2);
  for (int64_t t = whole ? ctx->tid : 0; t < p.batch; t += whole ? ctx->nt : 1) {
    const T* a = (const T*)buf[0] + batch_offset(p, p.a_bs, t);
    const T* b = (const T*)buf[1] + batch_offset(p, p.b_bs, t);
    T* c = (T*)buf[3] + batch_offset(p, p.c_bs, t);
    if (!whole && ctx->tid >= cells) continue;
    int64_t i = whole ? 0 : ctx->tid / gc, j = whole ? 0 : ctx->tid % gc;
    x.m = least(rows, p.m - i * rows);
    x.n = least(cols, p.n - j * cols);
    if (x.m <= 0 || x.n <= 0) continue;
    x.a = a + i * rows * x.ars;
    x.b = b + j * cols * (s.panels_in ? p.k : x.bcs);
    x.bias = buf[2] ? (const T*)buf[2] + (s.bias_rows ? i * rows : j * cols) : nullptr;
    x.c = c;
    x.c = move_to(x, p, i * rows, j * cols);
    run_cell(x, s, mine);
  }
}

// Scratch of gemm_shared where the product always goes there.
template <class T>
size_t shared_scratch(const MatmulParams& p, int64_t tasks, bool updates, int64_t unit) {
  const Sharing h = sharing<T>(p, blocking<T>(p), tasks, updates, unit);
  return (size_t)(tasks * h.member_bytes + (h.steps > 1 ? 2 : 1) * (h.a_bytes + h.b_bytes) +
                  round_up(6 * tasks * kCounterBytes, 4096));
}

template <class T>
void gemm_plan(const void* params, Plan* plan) {
  const MatmulParams& p = *(const MatmulParams*)params;
  // operations a nanosecond
  int64_t rate = (GS_VBYTES == 64 ? 128 : GS_VBYTES == 32 ? 64 : 16) * 4 / (int64_t)sizeof(T);
  if (p.prepared) {  // room for either way
    MatmulParams plain = p;
    plain.prepared = 0;
    gemm_plan<T>(&plain, plan);
    if (!small_kept(p)) {
      const size_t with = shared_scratch<T>(p, plan->tasks, false, 1);
      plan->scratch = with > plan->scratch ? with : plan->scratch;
    }
    return;
  }
  if (sizeof(T) == 4 && small_problem(p)) {
    // what the blocking below would ask for at most: no slices, A in place, B in place or in panels
    int64_t tiles = ceil_div(p.m, 4) * ceil_div(p.n, simd<T>::N);
    plan->tasks = most(1, least(tiles, p.members));
    plan->work = 2 * p.m * p.n * p.k / rate;
    plan->scratch = 0;
    if ((p.b_cs != 1 && p.n > 1) || p.k * p.n * (int64_t)sizeof(T) > kDirectBytes)
      plan->scratch =
          (size_t)(plan->tasks *
                   round_up((round_up(p.n, 64) + 128) * round_up(p.k, 4) * (int64_t)sizeof(T) + 64,
                            4096));
    return;
  }
  Blocking s = blocking<T>(p);
  int64_t tiles = s.slices > 1 ? s.slices : p.batch * ceil_div(p.m, 4) * ceil_div(p.n, simd<T>::N);
  plan->tasks = most(1, least(tiles, p.members));
  plan->work = p.batch * 2 * p.m * p.n * most(p.k, 1) / rate;
  plan->scratch = (size_t)(plan->tasks * (s.b_bytes + s.a_bytes));
  if (s.slices > 1)
    plan->scratch += (size_t)round_up(s.slices * p.m * p.n * (int64_t)sizeof(T), 4096);
  if (s.panels_in || is_shared<T>(p, s, plan->tasks)) {
    Sharing h = sharing<T>(p, s, plan->tasks, false);
    int64_t bytes = plan->tasks * h.member_bytes + (h.steps > 1 ? 2 : 1) * (h.a_bytes + h.b_bytes);
    plan->scratch = most((int64_t)plan->scratch, bytes);
    plan->scratch += round_up(6 * plan->tasks * kCounterBytes, 4096);
  }
}

void gemm_update(const void* params, void* const* buf, const Ctx* ctx) {
  const MatmulUpdateParams& u = *(const MatmulUpdateParams*)params;
  const FlushSubnormals flush;
  const Blocking s = blocking<float>(u.product);
  const Update update{u, buf};
  gemm_shared<float>(u.product, s, whole_cell<float>(u.product, s, buf), ctx, &update, nullptr);
}

void gemm_update_plan(const void* params, Plan* plan) {
  const MatmulUpdateParams& u = *(const MatmulUpdateParams*)params;
  const MatmulParams& p = u.product;
  gemm_plan<float>(&p, plan);
  plan->work += (int64_t)(0.8 * (double)(p.m * p.n));
  plan->scratch = shared_scratch<float>(p, plan->tasks, true, u.prepared.forms ? kPreparedRows : 1);
}

const KernelEntry entries[] = {
    {"prepare_matmul", kF32, prepare, prepare_plan},
    {"matmul_update", kF32, gemm_update, gemm_update_plan},
    {"matmul", kF32, gemm<float>, gemm_plan<float>},
    {"matmul", kF64, gemm<double>, gemm_plan<double>},
};

}  // namespace

extern const KernelList matmul_gemm_kernels;
const KernelList matmul_gemm_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
