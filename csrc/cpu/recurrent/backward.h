// The steps in reverse, to the gradients of the gates and of the first state.
#pragma once
#include "recurrent/layout.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct BackwardBuffers {
  const T *gates, *hprev, *aux, *dout, *dhn, *dcn;
  T *dgates, *dhidden, *dh0, *dc0;
  T *carry_h, *carry_c;  // (batch, H): what a step hands to the one before, beside the gates
  const T* packed;
};

// What an LSTM reads and writes of one row, null where there is nothing.
template <class T>
struct BackRow {
  const T *gates, *before, *dout, *dh, *dc;
  T *dgates, *left;
};

// A vector of units of one row of an LSTM, v units on; n: the units that are there.
template <class T, bool FULL>
GS_INLINE void lstm_back(const BackRow<T>& r, int64_t H, int64_t v, int64_t n) {
  using V = typename simd<T>::V;
  const V one = set1((T)1);
  Lanes<T, FULL> ln{(int)n};
  const T* g = r.gates + v;
  T* d = r.dgates + v;
  V dh = r.dout ? ln.get(r.dout + v) : V{};
  if (r.dh) dh += ln.get(r.dh + v);
  V in = ln.get(g), forget = ln.get(g + H), cand = ln.get(g + 2 * H), o = ln.get(g + 3 * H),
    before = ln.get(r.before + v);
  V tc = gate_tanh(fma(forget, before, in * cand));
  V dc = r.dc ? ln.get(r.dc + v) : V{};
  dc = fma(dh * o, fnma(tc, tc, one), dc);
  ln.put(d, dc * cand * fnma(in, in, in));
  ln.put(d + H, dc * before * fnma(forget, forget, forget));
  ln.put(d + 2 * H, dc * in * fnma(cand, cand, one));
  ln.put(d + 3 * H, dh * tc * fnma(o, o, o));
  if (r.left) ln.put(r.left + v, dc * forget);
}

// The gradients of the gates of rows b0 .. of step t of an LSTM, of n units from u on, row by row:
// the vectors of a row lie side by side, and what they share is found once. part: (m, ld)
// gradients of the state that come through the gates of the next step.
template <class T>
__attribute__((noinline)) void update_back_lstm(const RecurrentParams& p, const Rows& rows,
                                                const BackwardBuffers<T>& f, int64_t t, int64_t b0,
                                                int64_t m, int64_t u, int64_t n, const T* part,
                                                int64_t ld) {
  constexpr int N = simd<T>::N;
  const int64_t H = p.hidden, next_count = rows.count(rows.after(t)),
                prev_count = rows.count(rows.before(t));
  for (int64_t i = 0; i < m; ++i, part += ld) {
    const int64_t b = b0 + i, row = rows.at(t, b), at = row * H + u, bu = b * H + u;
    const bool more = b < next_count, start = b >= prev_count;
    const T *last = more || !f.dhn ? nullptr : f.dhn + bu,
            *dout = f.dout ? f.dout + row * p.out_row + u : last;
    const BackRow<T> r = {f.gates + row * p.gate_row + u,
                          f.aux + at,
                          dout,
                          more     ? part
                          : f.dout ? last
                                   : nullptr,
                          more    ? f.carry_c + bu
                          : f.dcn ? f.dcn + bu
                                  : nullptr,
                          f.dgates + row * p.gate_row + u,
                          !start  ? f.carry_c + bu
                          : f.dc0 ? f.dc0 + bu
                                  : nullptr};
    int64_t v = 0;
    for (; v + N <= n; v += N) lstm_back<T, true>(r, H, v, N);
    if (v < n) lstm_back<T, false>(r, H, v, n - v);
  }
}

// The same of one vector of units of a GRU or an RNN.
template <class T, bool FULL>
__attribute__((noinline)) void update_back(const RecurrentParams& p, const Rows& rows,
                                           const BackwardBuffers<T>& f, int64_t t, int64_t b0,
                                           int64_t m, int64_t u, const T* part, int64_t ld) {
  using V = typename simd<T>::V;
  const int64_t H = p.hidden, next_count = rows.count(rows.after(t));
  const V one = set1((T)1);
  Lanes<T, FULL> ln{(int)(H - u)};
  for (int64_t i = 0; i < m; ++i, part += ld) {
    int64_t b = b0 + i, row = rows.at(t, b), bu = b * H + u;
    bool more = b < next_count;
    const T* g = f.gates + row * p.gate_row + u;
    T* d = f.dgates + row * p.gate_row + u;
    V dh = f.dout ? ln.get(f.dout + row * p.out_row + u) : V{};
    if (more)
      dh += load(part);
    else if (f.dhn)
      dh = f.dout ? dh + ln.get(f.dhn + bu) : ln.get(f.dhn + bu);
    if (p.mode == kGru) {
      if (more) dh += ln.get(f.carry_h + bu);
      V r = ln.get(g), z = ln.get(g + H), n = ln.get(g + 2 * H);
      V dn = dh * (one - z) * fnma(n, n, one);
      V dr = dn * ln.get(f.aux + row * H + u) * fnma(r, r, r);
      V dz = dh * (ln.get(f.hprev + row * p.state_row + u) - n) * fnma(z, z, z);
      T* e = f.dhidden + row * p.gate_row + u;
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
    // (those of the gradients, where they are written over the gates)
    for (int64_t k = 0; k < G && f.dgates != f.gates; ++k)
      ask->lines[n++] = (const char*)(f.gates + row * p.gate_row + k * H);
    if (p.mode <= kGru) ask->lines[n++] = (const char*)(f.aux + row * H);
    if (p.mode == kGru) ask->lines[n++] = (const char*)(f.hprev + row * p.state_row);
    if (f.dout) ask->lines[n++] = (const char*)(f.dout + row * p.out_row);
  }
  ask->reads = n;
  for (int64_t b = b0; b < b0 + m; ++b)
    for (int64_t k = 0; k < G; ++k) {
      int64_t at = rows.at(t, b) * p.gate_row + k * H;
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
    in[0] = {f.dhidden + rows.at(tn, b0) * p.gate_row, rows.stride() * p.gate_row, s.depth};
  for (int64_t x = x0; x < x1; ++x) {
    if (some) {
      s.ask(p, x, &ask);
      s.product(in, some, f.packed + x * s.depth * s.width, (int64_t)0, part, &ask);
    }
    if (p.mode == kLstm) {
      const int64_t u = x * s.units;
      update_back_lstm<T>(p, rows, f, t, b0, m, u, least(s.units, p.hidden - u), part, s.width);
      continue;
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
  } else if (OwnRows::pays(p, s, rows, ctx)) {
    OwnRows own(p, ctx);
    for (int64_t step = 0; step < p.steps; ++step) {
      const int64_t t = p.reverse ? step : p.steps - 1 - step;
      own.step(
          s, [](int64_t, int64_t, int64_t) {},
          [&](int64_t, int64_t b0, int64_t m, int64_t x) {
            backward_rows(p, s, rows, f, t, b0, m, x, x + 1);
          });
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
          {f.dhidden + rows.at(t, b0) * p.gate_row, rows.stride() * p.gate_row, s.depth}, {}};
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

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
