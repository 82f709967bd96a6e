// How the work of a layer is cut: the scratch, the rows of each step, packed weights, and who does
// what (items dealt out, or strips taken by whoever is free).
#pragma once
#include "recurrent/tile.h"

namespace gs {
namespace GS_ISA {
namespace {

// How the work is cut and where the scratch lies; from the parameters alone.
template <class T>
struct Layout {
  static constexpr int N = simd<T>::N;
  // Packed weights: panels of depth x width. Inside a panel the columns of one tile after the
  // other, each depth x its vectors.
  int64_t panels, depth, width;
  int64_t units;   // hidden units of a panel
  int nvec;        // vectors of a panel
  int height;      // rows of a tile
  int64_t strips;  // of the batch
  bool near;       // the weights stay in one core's second cache

  GS_MEMBER Layout(const RecurrentParams& p, bool back) {
    int G = gate_count(p.mode);
    int64_t vectors = ceil_div(p.hidden, N);
    nvec = back || G == 1 ? (int)least(4, vectors) : G;
    units = back || G == 1 ? nvec * N : N;
    panels = ceil_div(p.hidden, units);
    depth = back ? G * p.hidden : p.hidden + p.input;
    width = nvec * N;
    height = kTileRows[nvec < kTileNV<T> ? nvec : kTileNV<T>];
    strips = most(ceil_div(p.batch, height), least(p.members, p.batch / 4));
    near = weight_bytes() <= p.l2 / 8 * 5;
  }
  GS_MEMBER int64_t weight_bytes() const {
    return round_up(panels * depth * width * (int64_t)sizeof(T), 4096);
  }
  // Nanoseconds of a product of that many rows of the batch with all panels.
  GS_MEMBER int64_t cost(int64_t rows) const {
    int64_t rate = (GS_VBYTES == 64 ? 96 : GS_VBYTES == 32 ? 48 : 12) * 4 / (int64_t)sizeof(T);
    return 2 * rows * panels * depth * width / rate;
  }
  GS_MEMBER T* panel(T* packed, int64_t x) const { return packed + x * depth * width; }
  // Vectors of the tile that begins at vector v.
  GS_MEMBER int vectors(int v) const { return nvec - v < kTileNV<T> ? nvec - v : kTileNV<T>; }
  // The units of panel x.
  GS_MEMBER void ask(const RecurrentParams& p, int64_t x, Ask* ask) const {
    int64_t size = (int64_t)sizeof(T);
    ask->start(x * units * size, least(p.hidden, (x + 1) * units) * size);
  }
  // part (m, width) = the operands (m rows) times a panel from row `from` on; m at most `height`
  GS_MEMBER void product(const Operand<T>* in, int64_t m, const T* panel, int64_t from, T* part,
                         Ask* ask) const {
    for (int v = 0; v < nvec; v += kTileNV<T>)
      Tiles<T>::table[vectors(v)][m](in, panel + (v * depth + from * vectors(v)) * N, part + v * N,
                                     width, ask);
  }
};

// Where rows are, and which sequences are there at a step.
struct Rows {
  const RecurrentParams& p;
  const int64_t* sizes;   // null: dense
  const int64_t* starts;  // of packed steps

  GS_MEMBER int64_t count(int64_t t) const {
    if (t < 0 || t >= p.steps) return 0;
    return sizes ? sizes[t] : p.batch;
  }
  GS_MEMBER int64_t at(int64_t t, int64_t b) const {
    return sizes ? starts[t] + b : t * p.row_t + b * p.row_b;
  }
  GS_MEMBER int64_t stride() const { return sizes ? 1 : p.row_b; }
  // Where the state before a step is kept.
  GS_MEMBER int64_t state(int64_t t, int64_t b) const {
    return p.pair ? (t & 1) * p.batch + b : at(t, b);
  }
  GS_MEMBER int64_t state_stride() const { return p.pair ? 1 : stride(); }
  GS_MEMBER int64_t before(int64_t t) const { return p.reverse ? t + 1 : t - 1; }
  GS_MEMBER int64_t after(int64_t t) const { return p.reverse ? t - 1 : t + 1; }
};

GS_INLINE void find_starts(const RecurrentParams& p, const int64_t* sizes, int64_t* starts) {
  int64_t sum = 0;
  for (int64_t t = 0; t < p.steps; ++t) {
    starts[t] = sum;
    sum += sizes[t];
  }
}

// to[k * stride + j] = from[j * ld + k] for k < depth and j < N; zero for cols <= j.
template <class T>
GS_INLINE void pack_gate(const T* from, int64_t ld, int64_t depth, int cols, T* to,
                         int64_t stride) {
  constexpr int N = simd<T>::N;
  for (int64_t k = 0; k < depth; k += N) {
    if (cols == N && depth - k >= N) {
      typename simd<T>::V v[N];
      load_transposed(from + k, ld, v);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) store(to + (k + i) * stride, v[i]);
    } else {
      for (int64_t i = k; i < least(depth, k + N); ++i)
        for (int j = 0; j < N; ++j) to[i * stride + j] = j < cols ? from[j * ld + i] : (T)0;
    }
  }
}

// Panel x of the forward weights: those of the state, then those of the input.
template <class T>
void pack_forward(const RecurrentParams& p, const Layout<T>& s, const T* w_hh, const T* w_ih,
                  int64_t x, T* to) {
  constexpr int N = simd<T>::N;
  for (int v = 0; v < s.nvec; ++v) {
    bool gates = gate_count(p.mode) > 1;
    int64_t unit = x * s.units + (gates ? 0 : v * N), row = (gates ? v * p.hidden : 0) + unit;
    int in = v % kTileNV<T>, first = v - in, cols = (int)most(0, least(N, p.hidden - unit));
    int64_t step = (int64_t)s.vectors(first) * N;
    T* at = to + first * N * s.depth + in * N;
    pack_gate(w_hh + row * p.hidden, p.hidden, p.hidden, cols, at, step);
    if (p.input)
      pack_gate(w_ih + row * p.input, p.input, p.input, cols, at + p.hidden * step, step);
  }
}

// Panel x of the weights as backward reads them.
template <class T>
void pack_backward(const RecurrentParams& p, const Layout<T>& s, const T* w, int64_t x, T* to) {
  constexpr int N = simd<T>::N;
  for (int v = 0; v < s.nvec; v += kTileNV<T>) {
    int64_t unit = x * s.units + v * N, wide = (int64_t)s.vectors(v) * N;
    pack_rows(w + unit, p.hidden, s.depth, (int)most(0, least(wide, p.hidden - unit)), (int)wide,
              to + v * N * s.depth);
  }
}

// The part of a step that is this member's: items (panel, tile of rows).
struct Share {
  int64_t count, tiles, begin, end;

  // rows: how many the step has
  GS_MEMBER Share(const Ctx* ctx, int64_t rows, int64_t panels, int64_t height) {
    count = rows;
    tiles = ceil_div(count, height);
    begin = panels * tiles * ctx->tid / ctx->nt;
    end = panels * tiles * (ctx->tid + 1) / ctx->nt;
  }
  GS_MEMBER int64_t panel(int64_t item) const { return item / tiles; }
  // Items that have the same rows as this one, one panel after the other.
  GS_MEMBER int64_t run(int64_t item) const { return tiles == 1 ? end - item : 1; }
  GS_MEMBER int64_t row(int64_t tile) const { return tile * count / tiles; }
};

// The strips of the batch, each a line of the cache with twice the steps that are done, plus one
// while a member is at it.
constexpr int64_t kStripBytes = 64;
struct Strips {
  char* lines;
  int64_t batch, count, steps;
  int64_t chunk;        // steps that a member takes
  int64_t strip, step;  // taken

  GS_MEMBER int64_t* line(int64_t i) const { return (int64_t*)(lines + i * kStripBytes); }
  GS_MEMBER int64_t row(int64_t i) const { return batch * i / count; }
  GS_MEMBER void reset() const {
    for (int64_t i = 0; i < count; ++i) __atomic_store_n(line(i), (int64_t)0, __ATOMIC_RELAXED);
  }
  // The strip that is furthest behind, of several the next from this member's part on; false: none
  // is left that nobody is at, and who is at one goes on.
  GS_MEMBER bool take(const Ctx* ctx) {
    for (;;) {
      int64_t best = 2 * steps;
      for (int64_t k = 0; k < count; ++k) {
        int64_t i = k + count * ctx->tid / ctx->nt;
        if (i >= count) i -= count;
        int64_t done = __atomic_load_n(line(i), __ATOMIC_RELAXED);
        if (!(done & 1) && done < best) {
          best = done;
          strip = i;
        }
      }
      if (best == 2 * steps) return false;
      step = best / 2;
      if (__atomic_compare_exchange_n(line(strip), &best, best + 1, false, __ATOMIC_ACQUIRE,
                                      __ATOMIC_RELAXED))
        return true;
    }
  }
  GS_MEMBER int64_t until() const { return least(steps, step + chunk); }
  GS_MEMBER void give() const { __atomic_store_n(line(strip), 2 * until(), __ATOMIC_RELEASE); }
};

template <class T>
GS_INLINE bool by_strips(const RecurrentParams& p, const Layout<T>& s, const Ctx* ctx) {
  return s.near && (ctx->nt == 1 || (p.batch >= 8 && s.strips >= ctx->nt));
}

constexpr int kKept = 8;  // tiles of a step that are looked up once, not for each panel

// Sequences of its own for each member, where the weights do not stay in its second cache but the
// third is near: they pass through at each step, half of them from the second cache still, because
// panels come in rising and falling order in turns. No barriers, and no core reads what the other
// has just written: 145 ns for a line and back where both share a third cache, 610 where a
// hypervisor has put them on two.
struct OwnRows {
  int64_t from, to;
  bool falling = false;

  GS_MEMBER OwnRows(const RecurrentParams& p, const Ctx* ctx) {
    from = p.batch * ctx->tid / ctx->nt;
    to = p.batch * (ctx->tid + 1) / ctx->nt;
  }
  template <class T>
  GS_MEMBER static bool pays(const RecurrentParams& p, const Layout<T>& s, const Rows& rows,
                             const Ctx* ctx) {
    // (16 MB of weights took 1.2 times as long so: rows of all members share what is read)
    return !s.near && p.near_l3 && s.weight_bytes() <= 4 * p.l2 && !rows.sizes &&
           p.batch >= 2 * s.height * ctx->nt;
  }
  // All tiles of a step. start(i, first row, rows) for the tiles that pass through the weights
  // together, at most kKept; then tile(i, first row, rows, panel) for all panels.
  template <class T, class S, class F>
  GS_MEMBER void step(const Layout<T>& s, S start, F tile) {
    const int64_t groups = ceil_div(to - from, kKept * s.height);
    for (int64_t g = 0; g < groups; ++g, falling = !falling) {
      const int64_t b0 = from + (to - from) * g / groups,
                    n = from + (to - from) * (g + 1) / groups - b0, tiles = ceil_div(n, s.height);
      auto row = [&](int64_t i) __attribute__((always_inline)) { return n * i / tiles; };
      for (int64_t i = 0; i < tiles; ++i) start(i, b0 + row(i), row(i + 1) - row(i));
      for (int64_t k = 0; k < s.panels; ++k)
        for (int64_t i = 0; i < tiles; ++i)
          tile(i, b0 + row(i), row(i + 1) - row(i), falling ? s.panels - 1 - k : k);
    }
  }
};

template <class T>
GS_INLINE Strips strips_of(const RecurrentParams& p, const Layout<T>& s, char* lines) {
  // long enough that a strip that changes its member does not count
  int64_t chunk = 100000 / most(1, s.cost(ceil_div(p.batch, s.strips)));
  return Strips{lines, p.batch, s.strips, p.steps, most(1, chunk), 0, 0};
}

// Panels that this member packs: those that its items mostly lie in.
template <class F>
GS_INLINE void each_own_panel(const Ctx* ctx, int64_t panels, F f) {
  for (int64_t x = panels * ctx->tid / ctx->nt; x < panels * (ctx->tid + 1) / ctx->nt; ++x) f(x);
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
