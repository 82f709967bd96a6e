// The time loop of LSTM, GRU and RNN layers, forward and backward.
//
// The input part x W_ih^T of all steps is one product made before; here each step adds the hidden
// part h W_hh^T and updates the state, and backward runs the steps in reverse to the gradients of
// the gates; those of weights and inputs are large products made afterwards.
// Floor: 2 rows G H^2 operations in each direction; the recurrent weights (4 G H^2 bytes) are read
// once a step, so they must stay in the second caches of the team.
//
// Forward, the weights are packed once, gate-interleaved: a panel holds for N units (a vector) the
// columns of all G gates side by side, so that a register tile of some rows of the batch ends with
// all gates of the same units; they pass through a few lines of the first cache to the update of
// the cell, which reads the input part, and writes state, cell and activated gates once. Backward a
// panel is 4 N units wide over all G H gradients of the gates.
//
// Where the packed weights fit into one core's second cache, each member takes some sequences of
// the batch through all steps: nothing is shared and nobody waits. Otherwise items (panel, rows) of
// a step are dealt in one piece to each member, the same at each step, so that a member keeps to
// its own panels, packed by itself, with one barrier a step. An item's result does not depend on
// the others, so the bits are the same for any team and either way.
#include "recurrent.h"

#include "matmul/block.h"
#include "matmul/pack.h"
#include "simd/vec.h"
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {
namespace {

GS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
GS_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
GS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
GS_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- activations: a division is most of their cost where the instruction set is widest, so there
// an estimate of the reciprocal is refined instead (1.5 units in the last place)
GS_INLINE vf inverse(vf d) {
#if defined(__AVX512F__)
  vf r = (vf)_mm512_rcp14_ps((__m512)d);
  return fma(r, fnma(d, r, set1(1.0f)), r);
#else
  return 1.0f / d;
#endif
}
GS_INLINE vf gate_sigmoid(vf x) {
  vf e = exp_minus_abs(x), r = inverse(1.0f + e);
  return x < 0.0f ? e * r : r;
}
GS_INLINE vf gate_tanh(vf x) {
  vf m = expm1_core(min(set1(20.0f), 2.0f * abs(x)));
  return copysign(m * inverse(m + 2.0f), x);
}
GS_INLINE vd gate_sigmoid(vd x) { return sigmoid(x); }
GS_INLINE vd gate_tanh(vd x) { return tanh(x); }

GS_INLINE int gate_count(int32_t mode) { return mode == kLstm ? 4 : mode == kGru ? 3 : 1; }

// A vector that may be the last of a row.
template <class T>
struct Lanes {
  int n;
  GS_MEMBER typename simd<T>::V get(const T* p) const {
    return n == simd<T>::N ? load(p) : load_n(p, n);
  }
  GS_MEMBER void put(T* p, typename simd<T>::V v) const {
    if (n == simd<T>::N)
      store(p, v);
    else
      store_n(p, v, n);
  }
};

// How the work is cut and where the scratch lies; from the parameters alone.
template <class T>
struct Layout {
  static constexpr int N = simd<T>::N;
  int64_t panels, depth, width;  // packed weights: panels x depth x width
  int64_t units;                 // hidden units of a panel
  int nvec;                      // vectors of a panel
  int height;                    // rows of a tile

  GS_MEMBER Layout(const RecurrentParams& p, bool back) {
    int G = gate_count(p.mode);
    int64_t vectors = ceil_div(p.hidden, N);
    nvec = back || G == 1 ? (int)least(4, vectors) : G;
    units = back || G == 1 ? nvec * N : N;
    panels = ceil_div(p.hidden, units);
    depth = back ? G * p.hidden : p.hidden;
    width = nvec * N;
    height = block_height<T>(nvec);
  }
  GS_MEMBER int64_t weight_bytes() const {
    return round_up(panels * depth * width * (int64_t)sizeof(T), 4096);
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

// Panel x of the forward weights.
template <class T>
void pack_forward(const RecurrentParams& p, const Layout<T>& s, const T* w, int64_t x, T* to) {
  constexpr int N = simd<T>::N;
  for (int v = 0; v < s.nvec; ++v) {
    bool gates = s.units == N && gate_count(p.mode) > 1;
    int64_t gate = gates ? v : 0, unit = x * s.units + (gates ? 0 : v * N);
    int64_t cols = most(0, least(N, p.hidden - unit));
    pack_gate(w + (gate * p.hidden + unit) * p.hidden, p.hidden, p.hidden, (int)cols, to + v * N,
              s.width);
  }
}

// The part of a step that is this member's: items (panel, tile of rows), the rows from `first` on.
struct Share {
  int64_t first, count, tiles, begin, end;

  // rows: how many the step has
  GS_MEMBER Share(const Ctx* ctx, bool by_rows, int64_t batch, int64_t rows, int64_t panels,
                  int64_t height) {
    first = by_rows ? batch * ctx->tid / ctx->nt : 0;
    count = by_rows ? least(rows, batch * (ctx->tid + 1) / ctx->nt) - first : rows;
    count = most(0, count);
    tiles = ceil_div(count, height);
    begin = by_rows ? 0 : panels * tiles * ctx->tid / ctx->nt;
    end = by_rows ? panels * tiles : panels * tiles * (ctx->tid + 1) / ctx->nt;
  }
  GS_MEMBER int64_t panel(int64_t item) const { return item / tiles; }
  GS_MEMBER int64_t row(int64_t tile) const { return first + tile * count / tiles; }
};

template <class T>
GS_INLINE bool split_by_rows(const RecurrentParams& p, const Layout<T>& s, const Ctx* ctx) {
  return ctx->nt > 1 && s.weight_bytes() <= p.l2 / 8 * 5 && p.batch >= 4 * ctx->nt;
}

// Panels that this member packs: those that its items mostly lie in.
template <class F>
GS_INLINE void each_own_panel(const Ctx* ctx, int64_t panels, F f) {
  for (int64_t x = panels * ctx->tid / ctx->nt; x < panels * (ctx->tid + 1) / ctx->nt; ++x) f(x);
}

// Asks for the lines of `units` elements at p while a product runs; write: they will be stored.
template <class T>
GS_INLINE void ask(const T* p, int64_t units, bool write) {
  for (int64_t u = 0; u < units; u += 64 / (int64_t)sizeof(T)) {
    if (write)
      __builtin_prefetch(p + u, 1, 2);
    else
      __builtin_prefetch(p + u, 0, 2);
  }
}

// ---------------------------------------------------------------- forward

template <class T>
struct ForwardBuffers {
  T *gates, *out, *hprev, *aux, *hn, *cn;
  const T *b_hh, *h0, *c0;
};

// Rows b0 .. b0 + m - 1 of step t, units u0 .. of one panel; part: (m, width) hidden parts.
template <class T>
__attribute__((noinline)) void update(const RecurrentParams& p, const Layout<T>& s,
                                      const Rows& rows, const ForwardBuffers<T>& f, int64_t t,
                                      int64_t b0, int64_t m, int64_t u0, const T* part) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const int64_t H = p.hidden, GH = gate_count(p.mode) * H;
  const int64_t tn = rows.after(t), next_count = rows.count(tn);
  for (int64_t i = 0; i < m; ++i) {
    int64_t b = b0 + i, row = rows.at(t, b), now = rows.state(t, b);
    bool more = b < next_count;
    int64_t next = more ? rows.state(tn, b) : 0;
    T* to_h = more ? f.hprev + next * H : f.hn + b * H;
    const T* acc = part + i * s.width;
    T* g = f.gates + row * GH;
    for (int64_t v = 0; v < s.units && u0 + v < H; v += N) {
      int64_t u = u0 + v;
      Lanes<T> ln{(int)least(N, H - u)};
      V h;
      if (p.mode == kLstm) {
        V x[4];
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          x[k] = load(acc + k * N) + ln.get(g + k * H + u);
          if (f.b_hh) x[k] += ln.get(f.b_hh + k * H + u);
        }
        V in = gate_sigmoid(x[0]), forget = gate_sigmoid(x[1]), cand = gate_tanh(x[2]),
          o = gate_sigmoid(x[3]);
        V c = fma(forget, ln.get(f.aux + now * H + u), in * cand);
        h = o * gate_tanh(c);
        if (!p.pair) {
          ln.put(g + u, in);
          ln.put(g + H + u, forget);
          ln.put(g + 2 * H + u, cand);
          ln.put(g + 3 * H + u, o);
        }
        ln.put((more ? f.aux + next * H : f.cn + b * H) + u, c);
      } else if (p.mode == kGru) {
        V bias[3] = {};
        if (f.b_hh) {
#pragma GCC unroll 3
          for (int k = 0; k < 3; ++k) bias[k] = ln.get(f.b_hh + k * H + u);
        }
        V r = gate_sigmoid(load(acc) + bias[0] + ln.get(g + u));
        V z = gate_sigmoid(load(acc + N) + bias[1] + ln.get(g + H + u));
        V hidden = load(acc + 2 * N) + bias[2];
        V n = gate_tanh(fma(r, hidden, ln.get(g + 2 * H + u)));
        h = fma(z, ln.get(f.hprev + now * H + u) - n, n);
        if (!p.pair) {
          ln.put(g + u, r);
          ln.put(g + H + u, z);
          ln.put(g + 2 * H + u, n);
          ln.put(f.aux + row * H + u, hidden);
        }
      } else {
        V x = load(acc + v) + ln.get(g + u);
        if (f.b_hh) x += ln.get(f.b_hh + u);
        h = p.mode == kRnnTanh ? gate_tanh(x) : max(V{}, x);
        if (!p.pair) ln.put(g + u, h);
      }
      ln.put(f.out + row * p.out_row + u, h);
      ln.put(to_h + u, h);
    }
  }
}

// What update() will read and write: rows lie far apart, so no hardware sees them coming.
template <class T>
GS_INLINE void ask_forward(const RecurrentParams& p, const Layout<T>& s, const Rows& rows,
                           const ForwardBuffers<T>& f, int64_t t, int64_t b0, int64_t m,
                           int64_t u0) {
  const int64_t H = p.hidden, G = gate_count(p.mode), tn = rows.after(t), next = rows.count(tn);
  const int64_t units = least(s.units, H - u0);
  for (int64_t b = b0; b < b0 + m; ++b) {
    int64_t row = rows.at(t, b);
    for (int64_t k = 0; k < G; ++k) ask(f.gates + (row * G + k) * H + u0, units, !p.pair);
    ask(f.out + row * p.out_row + u0, units, true);
    if (b < next && !p.pair) {
      ask(f.hprev + rows.at(tn, b) * H + u0, units, true);
      if (p.mode == kLstm) ask(f.aux + rows.at(tn, b) * H + u0, units, true);
    }
  }
}

template <class T>
void forward(const void* params, void* const* buf, const Ctx* ctx) {
  const RecurrentParams& p = *(const RecurrentParams*)params;
  constexpr int N = simd<T>::N;
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
  Layout<T> s(p, false);
  T* packed = (T*)ctx->scratch;
  int64_t* starts = (int64_t*)(ctx->scratch + s.weight_bytes());
  Rows rows{p, (const int64_t*)buf[5], starts};
  const int64_t H = p.hidden;
  if (rows.sizes && ctx->tid == 0) find_starts(p, rows.sizes, starts);
  each_own_panel(ctx, s.panels,
                 [&](int64_t x) { pack_forward(p, s, w, x, packed + x * s.depth * s.width); });
  ctx->sync();
  // where sequences start: the initial state (nothing of it is read before the barrier)
  for (int64_t t = 0; t < p.steps; ++t)
    for (int64_t b = rows.count(rows.before(t)) + ctx->tid; b < rows.count(t); b += ctx->nt)
      for (int64_t u = 0; u < H; u += N) {
        Lanes<T> ln{(int)least(N, H - u)};
        int64_t at = rows.state(t, b) * H + u;
        ln.put(f.hprev + at, f.h0 ? ln.get(f.h0 + b * H + u) : zero<T>());
        if (p.mode == kLstm) ln.put(f.aux + at, f.c0 ? ln.get(f.c0 + b * H + u) : zero<T>());
      }
  ctx->sync();
  const bool by_rows = split_by_rows(p, s, ctx);
  alignas(64) T part[14 * 4 * N];
  for (int64_t step = 0; step < p.steps; ++step) {
    int64_t t = p.reverse ? p.steps - 1 - step : step;
    Share mine(ctx, by_rows, p.batch, rows.count(t), s.panels, s.height);
    bool fresh = step == 0 && !f.h0;
    const T* h = f.hprev + rows.state(t, 0) * H;
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      int64_t x = mine.panel(item), i = item % mine.tiles, b0 = mine.row(i),
              m = mine.row(i + 1) - b0;
      ask_forward(p, s, rows, f, t, b0, m, x * s.units);
      block_product(h + b0 * rows.state_stride() * H, rows.state_stride() * H, (int64_t)1, m,
                    packed + x * s.depth * s.width, s.width, (int64_t)s.nvec,
                    fresh ? (int64_t)0 : s.depth, part, s.width, false);
      update(p, s, rows, f, t, b0, m, x * s.units, part);
    }
    if (!by_rows) ctx->sync();
  }
}

// ---------------------------------------------------------------- backward

template <class T>
struct BackwardBuffers {
  const T *gates, *hprev, *aux, *dout, *dhn, *dcn;
  T *dgates, *dhidden, *dh0, *dc0;
  T *carry_h, *carry_c;  // (batch, H): what a step hands to the one before, beside the gates
};

// The gradients of the gates of rows b0 .. of step t; part: (m, width) gradients of the state that
// come through the gates of the next step.
template <class T>
__attribute__((noinline)) void update_back(const RecurrentParams& p, const Layout<T>& s,
                                           const Rows& rows, const BackwardBuffers<T>& f, int64_t t,
                                           int64_t b0, int64_t m, int64_t u0, const T* part) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const int64_t H = p.hidden, GH = gate_count(p.mode) * H;
  const int64_t next_count = rows.count(rows.after(t)), prev_count = rows.count(rows.before(t));
  const V one = set1((T)1);
  for (int64_t i = 0; i < m; ++i) {
    int64_t b = b0 + i, row = rows.at(t, b);
    bool more = b < next_count, start = b >= prev_count;
    const T* g = f.gates + row * GH;
    T* d = f.dgates + row * GH;
    for (int64_t v = 0; v < s.units && u0 + v < H; v += N) {
      int64_t u = u0 + v, bu = b * H + u;
      Lanes<T> ln{(int)least(N, H - u)};
      V dh = f.dout ? ln.get(f.dout + row * p.out_row + u) : V{};
      if (more)
        dh += load(part + i * s.width + v);
      else if (f.dhn)
        dh += ln.get(f.dhn + bu);
      if (p.mode == kLstm) {
        V in = ln.get(g + u), forget = ln.get(g + H + u), cand = ln.get(g + 2 * H + u),
          o = ln.get(g + 3 * H + u), before = ln.get(f.aux + row * H + u);
        V tc = gate_tanh(fma(forget, before, in * cand));
        V dc = more ? ln.get(f.carry_c + bu) : f.dcn ? ln.get(f.dcn + bu) : V{};
        dc = fma(dh * o, fnma(tc, tc, one), dc);
        ln.put(d + u, dc * cand * (in - in * in));
        ln.put(d + H + u, dc * before * (forget - forget * forget));
        ln.put(d + 2 * H + u, dc * in * fnma(cand, cand, one));
        ln.put(d + 3 * H + u, dh * tc * (o - o * o));
        V left = dc * forget;
        if (!start)
          ln.put(f.carry_c + bu, left);
        else if (f.dc0)
          ln.put(f.dc0 + bu, left);
      } else if (p.mode == kGru) {
        if (more) dh += ln.get(f.carry_h + bu);
        V r = ln.get(g + u), z = ln.get(g + H + u), n = ln.get(g + 2 * H + u);
        V dn = dh * (one - z) * fnma(n, n, one);
        V dr = dn * ln.get(f.aux + row * H + u) * (r - r * r);
        V dz = dh * (ln.get(f.hprev + row * H + u) - n) * (z - z * z);
        T* e = f.dhidden + row * GH;
        ln.put(d + u, dr);
        ln.put(d + H + u, dz);
        ln.put(d + 2 * H + u, dn);
        ln.put(e + u, dr);
        ln.put(e + H + u, dz);
        ln.put(e + 2 * H + u, dn * r);
        ln.put(f.carry_h + bu, dh * z);
      } else {
        V h = ln.get(g + u);
        ln.put(d + u, p.mode == kRnnTanh ? dh * fnma(h, h, one) : (h > 0 ? dh : V{}));
      }
    }
  }
}

template <class T>
GS_INLINE void ask_backward(const RecurrentParams& p, const Layout<T>& s, const Rows& rows,
                            const BackwardBuffers<T>& f, int64_t t, int64_t b0, int64_t m,
                            int64_t u0) {
  const int64_t H = p.hidden, G = gate_count(p.mode), units = least(s.units, H - u0);
  for (int64_t b = b0; b < b0 + m; ++b) {
    int64_t row = rows.at(t, b);
    for (int64_t k = 0; k < G; ++k) {
      ask(f.gates + (row * G + k) * H + u0, units, false);
      ask(f.dgates + (row * G + k) * H + u0, units, true);
      if (p.mode == kGru) ask(f.dhidden + (row * G + k) * H + u0, units, true);
    }
    if (p.mode <= kGru) ask(f.aux + row * H + u0, units, false);
    if (p.mode == kGru) ask(f.hprev + row * H + u0, units, false);
    if (f.dout) ask(f.dout + row * p.out_row + u0, units, false);
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
  const T* w = (const T*)buf[1];
  BackwardBuffers<T> f;
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
  if (rows.sizes && ctx->tid == 0) find_starts(p, rows.sizes, starts);
  each_own_panel(ctx, s.panels, [&](int64_t x) {
    pack_rows(w + x * s.units, H, s.depth, (int)least(s.width, H - x * s.units), (int)s.width,
              packed + x * s.depth * s.width);
  });
  ctx->sync();
  alignas(64) T part[14 * 4 * N];
  const int64_t ars = rows.stride() * s.depth;
  const bool by_rows = split_by_rows(p, s, ctx);
  for (int64_t step = 0; step < p.steps; ++step) {
    int64_t t = p.reverse ? step : p.steps - 1 - step;
    int64_t tn = rows.after(t), next_count = rows.count(tn);
    Share mine(ctx, by_rows, p.batch, rows.count(t), s.panels, s.height);
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      int64_t x = mine.panel(item), i = item % mine.tiles, b0 = mine.row(i),
              m = mine.row(i + 1) - b0;
      int64_t some = most(0, least(m, next_count - b0));
      ask_backward(p, s, rows, f, t, b0, m, x * s.units);
      if (some)
        block_product(f.dhidden + rows.at(tn, b0) * s.depth, ars, (int64_t)1, some,
                      packed + x * s.depth * s.width, s.width, (int64_t)s.nvec, s.depth, part,
                      s.width, false);
      update_back(p, s, rows, f, t, b0, m, x * s.units, part);
    }
    if (!by_rows) ctx->sync();
  }
  if (!f.dh0) return;
  if (by_rows) ctx->sync();
  // the initial state: through the gates of the first step of each sequence
  for (int64_t t = 0; t < p.steps; ++t) {
    int64_t first = rows.count(rows.before(t)), count = rows.count(t) - first;
    Share mine(ctx, false, p.batch, count, s.panels, s.height);
    for (int64_t item = mine.begin; item < mine.end; ++item) {
      int64_t x = mine.panel(item), i = item % mine.tiles, b0 = first + mine.row(i),
              m = first + mine.row(i + 1) - b0;
      block_product(f.dhidden + rows.at(t, b0) * s.depth, ars, (int64_t)1, m,
                    packed + x * s.depth * s.width, s.width, (int64_t)s.nvec, s.depth, part,
                    s.width, false);
      for (int64_t r = 0; r < m; ++r)
        for (int64_t v = 0; v < s.units && x * s.units + v < H; v += N) {
          int64_t u = x * s.units + v, bu = (b0 + r) * H + u;
          Lanes<T> ln{(int)least(N, H - u)};
          typename simd<T>::V d = load(part + r * s.width + v);
          if (p.mode == kGru) d += ln.get(f.carry_h + bu);
          ln.put(f.dh0 + bu, d);
        }
    }
  }
}

template <class T, bool BACK>
void plan(const void* params, Plan* plan) {
  const RecurrentParams& p = *(const RecurrentParams*)params;
  Layout<T> s(p, BACK);
  int64_t rate = (GS_VBYTES == 64 ? 96 : GS_VBYTES == 32 ? 48 : 12) * 4 / (int64_t)sizeof(T);
  int64_t step = 2 * p.batch * s.panels * s.depth * s.width / rate;
  // a few sequences wait for the weights, some 80 bytes a nanosecond from the second cache
  int64_t stream = s.panels * s.depth * s.width * (int64_t)sizeof(T) / 80;
  // a member more must be worth a barrier at each step, which costs more than it seems when the
  // other core was given to somebody else; sequences of its own need none
  int64_t useful = most(step / 20000, step < stream ? stream / 6000 : 0);
  step = most(step, stream);
  if (s.weight_bytes() <= p.l2 / 8 * 5 && p.batch >= 8)
    useful = most(useful, least(p.batch / 4, p.steps * step / 8000));
  useful = most(1, useful);
  plan->tasks =
      most(1, least(least(p.members, useful), s.panels * ceil_div(p.batch, (int64_t)s.height)));
  plan->work = p.steps * step + s.panels * s.depth * s.width / 4;
  plan->scratch = (size_t)(s.weight_bytes() + round_up(p.steps * 8, 64) +
                           (BACK ? p.batch * p.hidden * (int64_t)sizeof(T) + 64 : 0));
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
