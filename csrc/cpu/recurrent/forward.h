// The steps forward: panels of the hidden (and input) product, then the update of the cell.
#pragma once
#include "recurrent/layout.h"

namespace gs {
namespace GS_ISA {
namespace {

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
  Ask ask;
  int64_t skip;  // of the depth: states that are zero

  // fresh: the states are zero
  GS_MEMBER void set(const RecurrentParams& p, const Rows& rows, const ForwardBuffers<T>& f,
                     int64_t t, int64_t first, int64_t count, bool fresh) {
    const int64_t H = p.hidden, tn = rows.after(t);
    const int64_t next_count = rows.count(tn);
    m = count;
    b0 = first;
    in[0] = {f.hprev + rows.state(t, b0) * p.state_row, rows.state_stride() * p.state_row, H};
    in[1] = {f.x + rows.at(t, b0) * p.input, rows.stride() * p.input, p.input};
    for (int64_t i = 0; i < m; ++i) {
      int64_t b = b0 + i, row = rows.at(t, b);
      bool more = b < next_count;
      int64_t next = more ? rows.state(tn, b) : 0;
      gates[i] = f.gates ? f.gates + row * p.gate_row : f.bias;  // none: not written
      add[i] = p.input ? f.bias : gates[i];
      out[i] = f.out + row * p.out_row;
      h_next[i] = more ? f.hprev + next * p.state_row : f.hn + b * H;
      if (p.mode == kLstm) {
        aux[i] = f.aux + rows.state(t, b) * H;
        c_next[i] = more ? f.aux + next * H : f.cn + b * H;
      } else {
        aux[i] = p.mode == kGru && !p.pair ? f.aux + row * H : nullptr;
      }
    }
    skip = fresh ? H : 0;
    if (fresh) in[0].k = 0;
    list(p);
  }
  GS_MEMBER void list(const RecurrentParams& p) {
    const int64_t G = gate_count(p.mode);
    int n = 0;
    if (!p.pair || !p.input)
      for (int64_t i = 0; i < m; ++i)
        for (int64_t k = 0; k < G; ++k) ask.lines[n++] = (const char*)(gates[i] + k * p.hidden);
    ask.reads = p.pair ? n : 0;
    for (int64_t i = 0; i < m; ++i) {
      ask.lines[n++] = (const char*)out[i];
      if (p.pair) continue;
      ask.lines[n++] = (const char*)h_next[i];
      if (p.mode == kLstm) ask.lines[n++] = (const char*)c_next[i];
      if (p.mode == kGru) ask.lines[n++] = (const char*)aux[i];
    }
    ask.count = n;
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

// Panels [x0, x1) of some rows of a step.
template <class T>
__attribute__((noinline)) void forward_rows(const RecurrentParams& p, const Layout<T>& s,
                                            const ForwardBuffers<T>& f, ForwardRows<T>& r,
                                            int64_t x0, int64_t x1) {
  constexpr int N = simd<T>::N;
  alignas(64) T part[kMostRows * 4 * N];
  const T* b_hh = p.input ? nullptr : f.b_hh;
  for (int64_t x = x0; x < x1; ++x) {
    s.ask(p, x, &r.ask);
    s.product(r.in, r.m, f.packed + x * s.depth * s.width, r.skip, part, &r.ask);
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
      int64_t at = rows.state(t, b);
      set_row(f.hprev + at * p.state_row, f.h0 ? f.h0 + b * H : nullptr, H);
      if (p.mode == kLstm) set_row(f.aux + at * H, f.c0 ? f.c0 + b * H : nullptr, H);
    }
  ctx->sync();
  ForwardRows<T> kept[kKept];
  if (by_strips(p, s, ctx)) {
    while (strips.take(ctx)) {
      int64_t b0 = strips.row(strips.strip), b1 = strips.row(strips.strip + 1);
      for (int64_t step = strips.step; step < strips.until(); ++step) {
        int64_t t = p.reverse ? p.steps - 1 - step : step, m = least(b1, rows.count(t)) - b0;
        if (m <= 0) continue;
        kept[0].set(p, rows, f, t, b0, m, step == 0 && !f.h0);
        forward_rows(p, s, f, kept[0], 0, s.panels);
      }
      strips.give();
    }
    return;
  }
  if (OwnRows::pays(p, s, rows, ctx)) {
    OwnRows own(p, ctx);
    for (int64_t step = 0; step < p.steps; ++step) {
      const int64_t t = p.reverse ? p.steps - 1 - step : step;
      own.step(
          s,
          [&](int64_t i, int64_t b0, int64_t m) {
            kept[i].set(p, rows, f, t, b0, m, step == 0 && !f.h0);
          },
          [&](int64_t i, int64_t, int64_t, int64_t x) {
            forward_rows(p, s, f, kept[i], x, x + 1);
          });
    }
    return;
  }
  for (int64_t step = 0; step < p.steps; ++step) {
    int64_t t = p.reverse ? p.steps - 1 - step : step;
    Share mine(ctx, rows.count(t), s.panels, s.height);
    for (int64_t item = mine.begin; item < mine.end; item += mine.run(item)) {
      int64_t x = mine.panel(item), i = item % mine.tiles, b0 = mine.row(i);
      ForwardRows<T>& r = kept[i % kKept];
      if (mine.tiles > kKept || item - mine.begin < mine.tiles)
        r.set(p, rows, f, t, b0, mine.row(i + 1) - b0, step == 0 && !f.h0);
      forward_rows(p, s, f, r, x, x + mine.run(item));
    }
    ctx->sync();
  }
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
