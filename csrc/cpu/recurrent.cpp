// The time loop of LSTM, GRU and RNN layers, forward and backward.
//
// The input part x W_ih^T of all steps is one product made before, or (LSTM and RNN whose weights
// all stay in a second cache) made here beside the hidden part h W_hh^T of each step, so that it
// never goes through memory. Then the state is updated; backward runs the steps in reverse to the
// gradients of the gates; those of weights and inputs are large products made afterwards.
// Floor: 2 rows G H^2 operations in each direction (H + I forward, with the input); the recurrent
// weights (4 G H^2 bytes) are read once a step, so they must stay in the second caches of the team.
//
// Forward, the weights are packed once, gate-interleaved: a panel holds for N units (a vector) the
// columns of all G gates side by side, so that a register tile of some rows of the batch ends with
// all gates of the same units; they pass through a few lines of the first cache to the update of
// the cell, which reads the input part, and writes state, cell and activated gates once. Backward a
// panel is 4 N units wide over all G H gradients of the gates.
//
// Where the packed weights fit into one core's second cache, the batch is cut into strips, the rows
// of one tile each, and a strip goes through all panels of a step while its state stays near.
// Members take the strip that is furthest behind for some steps at a time, so nobody waits for a
// core that something else slows down, and without that a member keeps to its own. Otherwise items
// (panel, rows) of a step are dealt in one piece to each member, the same at each step, so that a
// member keeps to its own panels, with one barrier a step. An item's result does not depend on the
// others, so the bits are the same for any team and either way.
#include "recurrent.h"

#include "matmul/pack.h"
#include "simd/moderate.h"
#include "simd/own.h"
#include "simd/vec.h"
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {
namespace {

GS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
GS_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
GS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
GS_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- activations: short forms, within 2.5 units in the last place. A gate beyond 87 is as shut as
// one at 87.
GS_INLINE vf gate_sigmoid(vf x) { return moderate::sigmoid(clamp(x, -87.0f, 87.0f)); }
GS_INLINE vf gate_tanh(vf x) {
#if defined(__AVX512F__)
  return moderate::tanh(x);
#else
  vf m = expm1_core(min(set1(20.0f), 2.0f * abs(x)));
  return copysign(m / (m + 2.0f), x);
#endif
}
GS_INLINE vd gate_sigmoid(vd x) { return sigmoid(x); }
GS_INLINE vd gate_tanh(vd x) { return tanh(x); }

GS_INLINE int gate_count(int32_t mode) { return mode == kLstm ? 4 : mode == kGru ? 3 : 1; }

// A vector of n elements, of all N where FULL: the last of a row may have fewer.
template <class T, bool FULL>
struct Lanes {
  int n;
  GS_MEMBER typename simd<T>::V get(const T* p) const { return FULL ? load(p) : load_n(p, n); }
  GS_MEMBER void put(T* p, typename simd<T>::V v) const {
    if (FULL)
      store(p, v);
    else
      store_n(p, v, n);
  }
};

// Rows of a tile by its vectors; 0: no such tile.
#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kTileRows[5] = {0, 8, 8, 8, 6};
#elif defined(__AVX2__)
constexpr int kTileRows[5] = {0, 8, 6, 0, 0};
#else
constexpr int kTileRows[5] = {0, 6, 4, 0, 0};
#endif
constexpr int kMostRows = 8;
template <class T>
constexpr int kTileNV = sizeof(T) == 4 && kTileRows[4] ? 4 : 2;

// Lines of the cache that an update will need, asked for one by one while the product before it
// runs: rows lie far apart, so no hardware sees them coming, and all at once would hold the product
// up. Those from `reads` on will be written.
struct Ask {
  const char* lines[kMostRows * 12];
  int reads, count, next;
  int64_t at, end;  // bytes into a row

  GS_MEMBER void one() {
    if (at >= end) return;
    const char* p = lines[next] + at;
    if (next < reads)
      __builtin_prefetch(p, 0, 2);
    else
      own((void*)p, 0);
    if (++next == count) {
      next = 0;
      at += 64;
    }
  }
  // Bytes [from, to) of all rows.
  GS_MEMBER void start(int64_t from, int64_t to) {
    next = 0;
    at = from;
    end = count > 0 ? to : from;
  }
};

// Rows of A, `stride` apart, and their depth k.
template <class T>
struct Operand {
  const T* a;
  int64_t stride, k;
};

// C (MR rows `ldc` apart, NV vectors) = the two operands side by side times B, rows of NV vectors.
// An element is one chain of FMAs in ascending k. Every third row has a pointer and one stride
// serves all, so that no address is left in a vector register.
template <class T, int MR, int NV>
__attribute__((noinline)) void tile(const Operand<T>* in, const T* b, T* c, int64_t ldc, Ask* ask) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N, P = (MR + 2) / 3;
  V acc[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) acc[i][j] = V{};
#pragma GCC unroll 1
  for (int q = 0; q < 2; ++q) {
    const T* p[P];
    const int64_t stride = in[q].stride;
    int64_t k = in[q].k;
#pragma GCC unroll 4
    for (int i = 0; i < P; ++i) p[i] = in[q].a + 3 * i * stride;
    auto step = [&](int u) __attribute__((always_inline)) {
      V row[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) row[j] = load(b + (u * NV + j) * N);
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) {
        V x = set1(p[i / 3][(i % 3) * stride + u]);
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[i][j] = fma(x, row[j], acc[i][j]);
      }
    };
    constexpr int U = kUnroll<T>;
    for (; k >= U; k -= U, b += U * NV * N) {
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) asm("" : "+r"(p[i]));
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) step(u);
      ask->one();
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) p[i] += U;
    }
    for (; k > 0; --k, b += NV * N) {
      step(0);
#pragma GCC unroll 4
      for (int i = 0; i < P; ++i) ++p[i];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store(c + i * ldc + j * N, acc[i][j]);
}

template <class T>
using TileFn = void (*)(const Operand<T>*, const T*, T*, int64_t, Ask*);
template <class T, int MR, int NV>
constexpr TileFn<T> tile_or_none() {
  if constexpr (NV <= kTileNV<T> && MR <= kTileRows[NV])
    return tile<T, MR, NV>;
  else
    return nullptr;
}
template <class T>
struct Tiles {
#define GS_TILES(NV)                                                                       \
  {                                                                                        \
    nullptr, tile_or_none<T, 1, NV>(), tile_or_none<T, 2, NV>(), tile_or_none<T, 3, NV>(), \
        tile_or_none<T, 4, NV>(), tile_or_none<T, 5, NV>(), tile_or_none<T, 6, NV>(),      \
        tile_or_none<T, 7, NV>(), tile_or_none<T, 8, NV>()                                 \
  }
  static constexpr TileFn<T> table[5][kMostRows + 1] = {
      {}, GS_TILES(1), GS_TILES(2), GS_TILES(3), GS_TILES(4)};
#undef GS_TILES
};

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

// ---------------------------------------------------------------- forward

template <class T>
struct ForwardBuffers {
  T *gates, *out, *hprev, *aux, *hn, *cn;
  const T *b_hh, *h0, *c0, *x, *w_ih, *b_ih;
  const T* packed;
  T* bias;  // of all gates, where the input is multiplied here
};

// Where the rows of a tile lie at one step; what a mode does not have is null.
template <class T>
struct ForwardRows {
  int64_t m, b0;
  Operand<T> in[2];         // their states and inputs
  const T* add[kMostRows];  // to the products: input parts, or the bias
  T *gates[kMostRows], *out[kMostRows], *h_next[kMostRows], *c_next[kMostRows];
  T* aux[kMostRows];  // LSTM: the cell, GRU: where the hidden part goes

  GS_MEMBER ForwardRows(const RecurrentParams& p, const Rows& rows, const ForwardBuffers<T>& f,
                        int64_t t, int64_t first, int64_t count) {
    const int64_t H = p.hidden, GH = gate_count(p.mode) * H, tn = rows.after(t);
    const int64_t next_count = rows.count(tn);
    m = count;
    b0 = first;
    in[0] = {f.hprev + rows.state(t, b0) * H, rows.state_stride() * H, H};
    in[1] = {f.x + rows.at(t, b0) * p.input, rows.stride() * p.input, p.input};
    for (int64_t i = 0; i < m; ++i) {
      int64_t b = b0 + i, row = rows.at(t, b);
      bool more = b < next_count;
      int64_t next = more ? rows.state(tn, b) * H : 0;
      gates[i] = f.gates ? f.gates + row * GH : f.bias;  // none: not written
      add[i] = p.input ? f.bias : gates[i];
      out[i] = f.out + row * p.out_row;
      h_next[i] = more ? f.hprev + next : f.hn + b * H;
      if (p.mode == kLstm) {
        aux[i] = f.aux + rows.state(t, b) * H;
        c_next[i] = more ? f.aux + next : f.cn + b * H;
      } else {
        aux[i] = p.mode == kGru && !p.pair ? f.aux + row * H : nullptr;
      }
    }
  }
  GS_MEMBER void list(const RecurrentParams& p, Ask* ask) const {
    const int64_t G = gate_count(p.mode);
    int n = 0;
    if (!p.pair || !p.input)
      for (int64_t i = 0; i < m; ++i)
        for (int64_t k = 0; k < G; ++k) ask->lines[n++] = (const char*)(gates[i] + k * p.hidden);
    ask->reads = p.pair ? n : 0;
    for (int64_t i = 0; i < m; ++i) {
      ask->lines[n++] = (const char*)out[i];
      if (p.pair) continue;
      ask->lines[n++] = (const char*)h_next[i];
      if (p.mode == kLstm) ask->lines[n++] = (const char*)c_next[i];
      if (p.mode == kGru) ask->lines[n++] = (const char*)aux[i];
    }
    ask->count = n;
  }
};

// The update of units u .. of all rows. part: (m, width) hidden parts. First all gates, then all
// cells: either is a row of independent chains.
template <class T, bool FULL>
__attribute__((noinline)) void update_lstm(const RecurrentParams& p, const ForwardRows<T>& r,
                                           const T* b_hh, int64_t u, T* part) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const int64_t H = p.hidden, m = r.m;
  const bool keep = !p.pair;
  Lanes<T, FULL> ln{(int)(H - u)};
  V bias[4] = {};
  if (b_hh) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) bias[k] = ln.get(b_hh + k * H + u);
  }
  for (int64_t i = 0; i < m; ++i) {
    const T* add = r.add[i] + u;
    T *g = r.gates[i] + u, *a = part + i * 4 * N;
    V x[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) x[k] = load(a + k * N) + bias[k] + ln.get(add + k * H);
    x[0] = gate_sigmoid(x[0]);
    x[1] = gate_sigmoid(x[1]);
    x[2] = gate_tanh(x[2]);
    x[3] = gate_sigmoid(x[3]);
    if (keep) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) ln.put(g + k * H, x[k]);
    }
    store(a, x[0] * x[2]);
    store(a + N, x[1]);
    store(a + 2 * N, x[3]);
  }
  for (int64_t i = 0; i < m; ++i) {
    const T* a = part + i * 4 * N;
    V c = fma(load(a + N), ln.get(r.aux[i] + u), load(a));
    V h = load(a + 2 * N) * gate_tanh(c);
    ln.put(r.c_next[i] + u, c);
    ln.put(r.out[i] + u, h);
    ln.put(r.h_next[i] + u, h);
  }
}

template <class T, bool FULL>
__attribute__((noinline)) void update_gru(const RecurrentParams& p, const ForwardRows<T>& r,
                                          const T* b_hh, int64_t u, const T* part) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const int64_t H = p.hidden, m = r.m;
  Lanes<T, FULL> ln{(int)(H - u)};
  V bias[3] = {};
  if (b_hh) {
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) bias[k] = ln.get(b_hh + k * H + u);
  }
  for (int64_t i = 0; i < m; ++i) {
    T* g = r.gates[i] + u;
    const T* a = part + i * 3 * N;
    V reset = gate_sigmoid(load(a) + bias[0] + ln.get(g));
    V z = gate_sigmoid(load(a + N) + bias[1] + ln.get(g + H));
    V hidden = load(a + 2 * N) + bias[2];
    V n = gate_tanh(fma(reset, hidden, ln.get(g + 2 * H)));
    V h = fma(z, ln.get(r.in[0].a + i * r.in[0].stride + u) - n, n);
    if (r.aux[i]) {
      ln.put(g, reset);
      ln.put(g + H, z);
      ln.put(g + 2 * H, n);
      ln.put(r.aux[i] + u, hidden);
    }
    ln.put(r.out[i] + u, h);
    ln.put(r.h_next[i] + u, h);
  }
}

template <class T, bool FULL>
__attribute__((noinline)) void update_rnn(const RecurrentParams& p, const ForwardRows<T>& r,
                                          const T* b_hh, int64_t u, const T* part, int64_t ld) {
  using V = typename simd<T>::V;
  const int64_t m = r.m;
  const bool keep = !p.pair;
  Lanes<T, FULL> ln{(int)(p.hidden - u)};
  V bias = b_hh ? ln.get(b_hh + u) : V{};
  for (int64_t i = 0; i < m; ++i) {
    T* g = r.gates[i] + u;
    V x = load(part + i * ld) + bias + ln.get(r.add[i] + u);
    V h = p.mode == kRnnTanh ? gate_tanh(x) : max(V{}, x);
    if (keep) ln.put(g, h);
    ln.put(r.out[i] + u, h);
    ln.put(r.h_next[i] + u, h);
  }
}

template <class T, bool FULL>
GS_INLINE void update(const RecurrentParams& p, const ForwardRows<T>& r, const T* b_hh, int64_t u,
                      T* part, int64_t ld) {
  if (p.mode == kLstm)
    update_lstm<T, FULL>(p, r, b_hh, u, part);
  else if (p.mode == kGru)
    update_gru<T, FULL>(p, r, b_hh, u, part);
  else
    update_rnn<T, FULL>(p, r, b_hh, u, part, ld);
}

// Panels [x0, x1) of some rows of step t. fresh: their states are zero.
template <class T>
__attribute__((noinline)) void forward_rows(const RecurrentParams& p, const Layout<T>& s,
                                            const Rows& rows, const ForwardBuffers<T>& f, int64_t t,
                                            int64_t b0, int64_t m, int64_t x0, int64_t x1,
                                            bool fresh) {
  constexpr int N = simd<T>::N;
  alignas(64) T part[kMostRows * 4 * N];
  ForwardRows<T> r(p, rows, f, t, b0, m);
  if (fresh) r.in[0].k = 0;
  const T* b_hh = p.input ? nullptr : f.b_hh;
  Ask ask;
  r.list(p, &ask);
  for (int64_t x = x0; x < x1; ++x) {
    s.ask(p, x, &ask);
    s.product(r.in, m, f.packed + x * s.depth * s.width, fresh ? p.hidden : (int64_t)0, part, &ask);
    for (int64_t v = 0; v < s.units && x * s.units + v < p.hidden; v += N) {
      int64_t u = x * s.units + v;
      if (u + N <= p.hidden)
        update<T, true>(p, r, b_hh, u, part + v, s.width);
      else
        update<T, false>(p, r, b_hh, u, part + v, s.width);
    }
  }
}

// to = from, or zero
template <class T>
GS_INLINE void set_row(T* to, const T* from, int64_t n) {
  for (int64_t u = 0; u < n; ++u) to[u] = from ? from[u] : (T)0;
}

template <class T>
void forward(const void* params, void* const* buf, const Ctx* ctx) {
  const RecurrentParams& p = *(const RecurrentParams*)params;
  const T* w = (const T*)buf[1];
  ForwardBuffers<T> f;
  f.gates = (T*)buf[0];
  f.b_hh = (const T*)buf[2];
  f.h0 = (const T*)buf[3];
  f.c0 = (const T*)buf[4];
  f.out = (T*)buf[6];
  f.hprev = (T*)buf[7];
  f.aux = (T*)buf[8];
  f.hn = (T*)buf[9];
  f.cn = (T*)buf[10];
  f.x = (const T*)buf[11];
  f.w_ih = (const T*)buf[12];
  f.b_ih = (const T*)buf[13];
  Layout<T> s(p, false);
  T* packed = (T*)ctx->scratch;
  f.packed = packed;
  int64_t* starts = (int64_t*)(ctx->scratch + s.weight_bytes());
  char* lines = (char*)starts + round_up(p.steps * 8, 64);
  Strips strips = strips_of(p, s, lines);
  f.bias = (T*)(lines + s.strips * kStripBytes);
  Rows rows{p, (const int64_t*)buf[5], starts};
  const int64_t H = p.hidden;
  if (ctx->tid == 0) {
    if (rows.sizes) find_starts(p, rows.sizes, starts);
    strips.reset();
    for (int64_t u = 0; p.input && u < gate_count(p.mode) * H; ++u)
      f.bias[u] = (f.b_ih ? f.b_ih[u] : (T)0) + (f.b_hh ? f.b_hh[u] : (T)0);
  }
  each_own_panel(ctx, s.panels,
                 [&](int64_t x) { pack_forward(p, s, w, f.w_ih, x, s.panel(packed, x)); });
  ctx->sync();
  // where sequences start: the initial state (nothing of it is read before the barrier)
  for (int64_t t = 0; t < p.steps; ++t)
    for (int64_t b = rows.count(rows.before(t)) + ctx->tid; b < rows.count(t); b += ctx->nt) {
      int64_t at = rows.state(t, b) * H;
      set_row(f.hprev + at, f.h0 ? f.h0 + b * H : nullptr, H);
      if (p.mode == kLstm) set_row(f.aux + at, f.c0 ? f.c0 + b * H : nullptr, H);
    }
  ctx->sync();
  if (by_strips(p, s, ctx)) {
    while (strips.take(ctx)) {
      int64_t b0 = strips.row(strips.strip), b1 = strips.row(strips.strip + 1);
      for (int64_t step = strips.step; step < strips.until(); ++step) {
        int64_t t = p.reverse ? p.steps - 1 - step : step, m = least(b1, rows.count(t)) - b0;
        if (m > 0) forward_rows(p, s, rows, f, t, b0, m, (int64_t)0, s.panels, step == 0 && !f.h0);
      }
      strips.give();
    }
    return;
  }
  for (int64_t step = 0; step < p.steps; ++step) {
    int64_t t = p.reverse ? p.steps - 1 - step : step;
    Share mine(ctx, rows.count(t), s.panels, s.height);
    for (int64_t item = mine.begin; item < mine.end; item += mine.run(item)) {
      int64_t x = mine.panel(item), i = item % mine.tiles, b0 = mine.row(i),
              m = mine.row(i + 1) - b0;
      forward_rows(p, s, rows, f, t, b0, m, x, x + mine.run(item), step == 0 && !f.h0);
    }
    ctx->sync();
  }
}

// ---------------------------------------------------------------- backward

template <class T>
struct BackwardBuffers {
  const T *gates, *hprev, *aux, *dout, *dhn, *dcn;
  T *dgates, *dhidden, *dh0, *dc0;
  T *carry_h, *carry_c;  // (batch, H): what a step hands to the one before, beside the gates
  const T* packed;
};

// The gradients of the gates of rows b0 .. of step t, of units u ..; part: (m, ld) gradients of the
// state that come through the gates of the next step.
template <class T, bool FULL>
__attribute__((noinline)) void update_back(const RecurrentParams& p, const Rows& rows,
                                           const BackwardBuffers<T>& f, int64_t t, int64_t b0,
                                           int64_t m, int64_t u, const T* part, int64_t ld) {
  using V = typename simd<T>::V;
  const int64_t H = p.hidden, GH = gate_count(p.mode) * H, next_count = rows.count(rows.after(t)),
                prev_count = rows.count(rows.before(t));
  const V one = set1((T)1);
  Lanes<T, FULL> ln{(int)(H - u)};
  for (int64_t i = 0; i < m; ++i, part += ld) {
    int64_t b = b0 + i, row = rows.at(t, b), bu = b * H + u;
    bool more = b < next_count, start = b >= prev_count;
    const T* g = f.gates + row * GH + u;
    T* d = f.dgates + row * GH + u;
    V dh = f.dout ? ln.get(f.dout + row * p.out_row + u) : V{};
    if (more)
      dh += load(part);
    else if (f.dhn)
      dh += ln.get(f.dhn + bu);
    if (p.mode == kLstm) {
      V in = ln.get(g), forget = ln.get(g + H), cand = ln.get(g + 2 * H), o = ln.get(g + 3 * H),
        before = ln.get(f.aux + row * H + u);
      V tc = gate_tanh(fma(forget, before, in * cand));
      V dc = more ? ln.get(f.carry_c + bu) : f.dcn ? ln.get(f.dcn + bu) : V{};
      dc = fma(dh * o, fnma(tc, tc, one), dc);
      ln.put(d, dc * cand * fnma(in, in, in));
      ln.put(d + H, dc * before * fnma(forget, forget, forget));
      ln.put(d + 2 * H, dc * in * fnma(cand, cand, one));
      ln.put(d + 3 * H, dh * tc * fnma(o, o, o));
      V left = dc * forget;
      if (!start)
        ln.put(f.carry_c + bu, left);
      else if (f.dc0)
        ln.put(f.dc0 + bu, left);
    } else if (p.mode == kGru) {
      if (more) dh += ln.get(f.carry_h + bu);
      V r = ln.get(g), z = ln.get(g + H), n = ln.get(g + 2 * H);
      V dn = dh * (one - z) * fnma(n, n, one);
      V dr = dn * ln.get(f.aux + row * H + u) * fnma(r, r, r);
      V dz = dh * (ln.get(f.hprev + row * H + u) - n) * fnma(z, z, z);
      T* e = f.dhidden + row * GH + u;
      ln.put(d, dr);
      ln.put(d + H, dz);
      ln.put(d + 2 * H, dn);
      ln.put(e, dr);
      ln.put(e + H, dz);
      ln.put(e + 2 * H, dn * r);
      ln.put(f.carry_h + bu, dh * z);
    } else {
      V h = ln.get(g);
      ln.put(d, p.mode == kRnnTanh ? dh * fnma(h, h, one) : (h > 0 ? dh : V{}));
    }
  }
}

template <class T>
GS_INLINE void list_backward(const RecurrentParams& p, const Rows& rows,
                             const BackwardBuffers<T>& f, int64_t t, int64_t b0, int64_t m,
                             Ask* ask) {
  const int64_t H = p.hidden, G = gate_count(p.mode);
  int n = 0;
  for (int64_t b = b0; b < b0 + m; ++b) {
    int64_t row = rows.at(t, b);
    for (int64_t k = 0; k < G; ++k) ask->lines[n++] = (const char*)(f.gates + (row * G + k) * H);
    if (p.mode <= kGru) ask->lines[n++] = (const char*)(f.aux + row * H);
    if (p.mode == kGru) ask->lines[n++] = (const char*)(f.hprev + row * H);
    if (f.dout) ask->lines[n++] = (const char*)(f.dout + row * p.out_row);
  }
  ask->reads = n;
  for (int64_t b = b0; b < b0 + m; ++b)
    for (int64_t k = 0; k < G; ++k) {
      int64_t at = (rows.at(t, b) * G + k) * H;
      ask->lines[n++] = (const char*)(f.dgates + at);
      if (p.mode == kGru) ask->lines[n++] = (const char*)(f.dhidden + at);
    }
  ask->count = n;
}

// Panels [x0, x1) of some rows of step t.
template <class T>
__attribute__((noinline)) void backward_rows(const RecurrentParams& p, const Layout<T>& s,
                                             const Rows& rows, const BackwardBuffers<T>& f,
                                             int64_t t, int64_t b0, int64_t m, int64_t x0,
                                             int64_t x1) {
  constexpr int N = simd<T>::N;
  alignas(64) T part[kMostRows * 4 * N];
  const int64_t tn = rows.after(t), some = most(0, least(m, rows.count(tn) - b0));
  Ask ask;
  list_backward(p, rows, f, t, b0, m, &ask);
  Operand<T> in[2] = {};
  if (some)  // there is a step after this one
    in[0] = {f.dhidden + rows.at(tn, b0) * s.depth, rows.stride() * s.depth, s.depth};
  for (int64_t x = x0; x < x1; ++x) {
    if (some) {
      s.ask(p, x, &ask);
      s.product(in, some, f.packed + x * s.depth * s.width, (int64_t)0, part, &ask);
    }
    for (int64_t v = 0; v < s.units && x * s.units + v < p.hidden; v += N) {
      int64_t u = x * s.units + v;
      if (u + N <= p.hidden)
        update_back<T, true>(p, rows, f, t, b0, m, u, part + v, s.width);
      else
        update_back<T, false>(p, rows, f, t, b0, m, u, part + v, s.width);
    }
  }
}

template <class T>
void backward(const void* params, void* const* buf, const Ctx* ctx) {
  const RecurrentParams& p = *(const RecurrentParams*)params;
  constexpr int N = simd<T>::N;
  const int64_t H = p.hidden;
  Layout<T> s(p, true);
  T* packed = (T*)ctx->scratch;
  char* at = ctx->scratch + s.weight_bytes();
  int64_t* starts = (int64_t*)at;
  at += round_up(p.steps * 8, 64);
  Strips strips = strips_of(p, s, at);
  at += s.strips * kStripBytes;
  const T* w = (const T*)buf[1];
  BackwardBuffers<T> f;
  f.packed = packed;
  f.gates = (const T*)buf[0];
  f.hprev = (const T*)buf[3];
  f.aux = (const T*)buf[4];
  f.dout = (const T*)buf[5];
  f.dhn = (const T*)buf[6];
  f.dcn = (const T*)buf[7];
  f.dgates = (T*)buf[8];
  f.dhidden = buf[9] ? (T*)buf[9] : f.dgates;
  f.dh0 = (T*)buf[10];
  f.dc0 = (T*)buf[11];
  f.carry_h = f.carry_c = (T*)at;  // LSTM uses one, GRU the other
  Rows rows{p, (const int64_t*)buf[2], starts};
  if (ctx->tid == 0) {
    if (rows.sizes) find_starts(p, rows.sizes, starts);
    strips.reset();
  }
  each_own_panel(ctx, s.panels, [&](int64_t x) { pack_backward(p, s, w, x, s.panel(packed, x)); });
  ctx->sync();
  if (by_strips(p, s, ctx)) {
    while (strips.take(ctx)) {
      int64_t b0 = strips.row(strips.strip), b1 = strips.row(strips.strip + 1);
      for (int64_t step = strips.step; step < strips.until(); ++step) {
        int64_t t = p.reverse ? step : p.steps - 1 - step, m = least(b1, rows.count(t)) - b0;
        if (m > 0) backward_rows(p, s, rows, f, t, b0, m, (int64_t)0, s.panels);
      }
      strips.give();
    }
    if (f.dh0) ctx->sync();
  } else {
    for (int64_t step = 0; step < p.steps; ++step) {
      int64_t t = p.reverse ? step : p.steps - 1 - step;
      Share mine(ctx, rows.count(t), s.panels, s.height);
      for (int64_t item = mine.begin; item < mine.end; item += mine.run(item)) {
        int64_t x = mine.panel(item), i = item % mine.tiles, b0 = mine.row(i),
                m = mine.row(i + 1) - b0;
        backward_rows(p, s, rows, f, t, b0, m, x, x + mine.run(item));
      }
      ctx->sync();
    }
  }
  if (!f.dh0) return;
  // the initial state: through the gates of the first step of each sequence
  alignas(64) T part[kMostRows * 4 * N];
  Ask ask;
  ask.count = 0;
  ask.start(0, 0);
  for (int64_t t = 0; t < p.steps; ++t) {
    int64_t first = rows.count(rows.before(t)), count = rows.count(t) - first;
    if (count <= 0) continue;
    Share mine(ctx, count, s.panels, s.height);
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      int64_t x = mine.panel(item), i = item % mine.tiles, b0 = first + mine.row(i),
              m = first + mine.row(i + 1) - b0;
      const Operand<T> in[2] = {
          {f.dhidden + rows.at(t, b0) * s.depth, rows.stride() * s.depth, s.depth}, {}};
      s.product(in, m, s.panel(packed, x), (int64_t)0, part, &ask);
      for (int64_t r = 0; r < m; ++r)
        for (int64_t v = 0; v < s.units && x * s.units + v < H; ++v) {
          int64_t u = x * s.units + v, bu = (b0 + r) * H + u;
          T d = part[r * s.width + v];
          f.dh0[bu] = p.mode == kGru ? d + f.carry_h[bu] : d;
        }
    }
  }
}

template <class T, bool BACK>
void plan(const void* params, Plan* plan) {
  const RecurrentParams& p = *(const RecurrentParams*)params;
  Layout<T> s(p, BACK);
  int64_t step = s.cost(p.batch);
  // a few sequences wait for the weights, some 80 bytes a nanosecond from the second cache
  int64_t stream = s.panels * s.depth * s.width * (int64_t)sizeof(T) / 80;
  // a member more must be worth a barrier at each step, which costs more than it seems when the
  // other core was given to somebody else; sequences of its own need none
  int64_t useful = most(step / 20000, step < stream ? stream / 6000 : 0);
  step = most(step, stream);
  int64_t tasks = s.panels * ceil_div(p.batch, (int64_t)s.height);
  if (s.near && p.batch >= 8) {
    useful = most(useful, p.steps * step / 8000);
    tasks = s.strips;
  }
  plan->tasks = most(1, least(least(p.members, useful), tasks));
  plan->work = p.steps * step + s.panels * s.depth * s.width / 4;
  plan->scratch =
      (size_t)(s.weight_bytes() + round_up(p.steps * 8, 64) + s.strips * kStripBytes + 64 +
               (int64_t)sizeof(T) * p.hidden *
                   (BACK      ? p.batch
                    : p.input ? gate_count(p.mode)
                              : 0));
}

const KernelEntry entries[] = {
    {"recurrent", kF32, forward<float>, plan<float, false>},
    {"recurrent", kF64, forward<double>, plan<double, false>},
    {"recurrent_backward", kF32, backward<float>, plan<float, true>},
    {"recurrent_backward", kF64, backward<double>, plan<double, true>},
};

}  // namespace

extern const KernelList recurrent_kernels;
const KernelList recurrent_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
