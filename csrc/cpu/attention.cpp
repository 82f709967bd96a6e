// Scaled dot-product attention, forward and backward, for one set of strides a tensor, so that q, k
// and v may be views of one fused projection (B, T, 3, H, D) and nothing is transposed in memory.
//
// q (B, H, Tq, D), k (B, G, Tk, D), v (B, G, Tk, E); out (B, H, Tq, E).
// Floor: forward 2 B H Tq Tk (D + E) operations, backward 2.5 times that (half of both when
// causal) plus one exp a score in each; bytes only matter for short sequences.
//
// Forward: a task is a group of up to kGroup rows of one head. Its outer loop takes kKeys keys at a
// time: K is packed transposed, V by rows, both padded to whole vectors; the inner loop takes kRows
// rows: scores of kRows x kKeys in the first cache (register tiles of matmul/block.h), one pass
// over each row for the maximum and one for exp and the sum, then P V into accumulators that are
// rescaled when a later block of keys raises a row's maximum. Up to kKeys keys there is one block
// and no rescaling: everything of a head stays in the first caches. Causal rows take only the tiles
// up to the diagonal.
//
// Backward: only lse was saved. A task is one key head and a group of its keys; for each block of
// keys and rows it computes P = exp(S - lse) and dP = dO V^T again, dS = P (dP - rowsum(dO O)),
// then dV += P^T dO, dK += dS^T Q, dQ += dS K. dQ is summed over the groups in order afterwards.
// Groups, blocks and tiles depend on the shape alone.
//
// Without mask and dropout, up to kShortKeys keys of float32 go the way of attention_short.h.
#include "attention.h"

#include "matmul/block.h"
#include "matmul/pack.h"
#include "simd/own.h"
#include "simd/philox.h"
#include "simd/vec.h"
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kKeys = 128;   // keys of a block
constexpr int64_t kRows = 42;    // rows of a block in forward: 7 tiles of 6, 3 of 14
constexpr int64_t kGroup = 252;  // rows that share a packed block of keys
constexpr int64_t kBackRows = 64;
constexpr int64_t kPad = 16;  // keeps rows of scores off the same cache sets

GS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
GS_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
GS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
GS_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

GS_INLINE float top(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  return hmax(v);
#endif
}
GS_INLINE double top(vd v) { return hmax(v); }
GS_INLINE float total(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  return hsum(v);
#endif
}
GS_INLINE double total(vd v) { return hsum(v); }

template <class T>
GS_INLINE T exp1(T x) {
  return exp(set1(x))[0];
}
template <class T>
GS_INLINE T log1(T x) {
  return log(set1(x))[0];
}

// Member-private memory, cut from one piece.
struct Arena {
  char* at;
  template <class T>
  GS_MEMBER T* take(int64_t n) {
    T* p = (T*)at;
    at += round_up(n * (int64_t)sizeof(T), 64);
    return p;
  }
};

// Rows that lie apart and are wanted soon: no prefetcher of the machine sees them coming. They are
// asked for piece by piece between tiles: a row of a head of every array, and where arrays are
// parts of one, row after row in the order of memory. Those that will be written come last, to be
// owned. It costs a few instructions a line, which hot arrays would notice otherwise, and few lines
// at once, of which a core takes some ten or twenty and drops the rest.
struct Ahead {
  const char* at[8];
  int64_t jump[8], bytes[8], rows[8];
  int count, reads;
  int64_t parts;               // heads side by side in a row
  int64_t part, row, row_end;  // where it is
  int64_t each;                // pieces between two tiles
  GS_MEMBER void reset() {
    count = reads = 0;
    part = row = row_end = 0;
    parts = each = 1;
  }
  template <class T>
  GS_MEMBER void add(const T* p, int64_t step, int64_t some, int64_t width, bool write = false) {
    if (some <= 0 || width <= 0) return;
    at[count] = (const char*)p;
    jump[count] = (step - parts * width) * (int64_t)sizeof(T);
    bytes[count] = width * (int64_t)sizeof(T);
    rows[count++] = some;
    if (!write) reads = count;
    row_end = most(row_end, some);
  }
  GS_MEMBER void step() {
    if (row < row_end) pieces(each);
  }
  __attribute__((noinline)) void pieces(int64_t n) {
    for (; n > 0 && row < row_end; --n) {
      for (int i = 0; i < count; ++i) {
        if (row >= rows[i]) continue;
        const char* p = at[i];
        const char* end = p + bytes[i];
        at[i] = end;
        if (i < reads)
          for (; p < end; p += 64) __builtin_prefetch(p, 0, 2);
        else
          for (; p < end; p += 64) own((void*)p, 0);
      }
      if (++part < parts) continue;
      part = 0;
      ++row;
      for (int i = 0; i < count; ++i) at[i] += jump[i];
    }
  }
};
constexpr int64_t kAheadRows = 128;

// Keys that row i of the query sees at all.
GS_INLINE int64_t visible(const AttentionParams& p, int64_t i) {
  return p.causal ? least(p.tk, i + 1) : p.tk;
}

// One head's view of what is added to its scores, row by row.
template <class T>
struct Scores {
  const AttentionParams& p;
  const void* mask;  // of this batch entry and head
  const PhiloxStream* stream;
  int64_t row0;     // (b heads + h) tq
  T* bias;          // kKeys: the mask of one row
  uint32_t* words;  // kKeys + 4 N random words

  // The mask of row i, keys j0 .. j0 + n - 1, as numbers to add; null when there is none.
  GS_MEMBER const T* bias_row(int64_t i, int64_t j0, int64_t n) const {
    if (p.mask == kMaskNone) return nullptr;
    int64_t step = p.mask_strides[3], at = i * p.mask_strides[2] + j0 * step;
    if (p.mask == kMaskBool) {
      const uint8_t* m = (const uint8_t*)mask + at;
      const T out = (T)-__builtin_inf();
      if (step == 1)
        for (int64_t j = 0; j < n; ++j) bias[j] = m[j] ? (T)0 : out;
      else
        for (int64_t j = 0; j < n; ++j) bias[j] = m[j * step] ? (T)0 : out;
      return bias;
    }
    const T* m = (const T*)mask + at;
    if (step == 1) return m;
    for (int64_t j = 0; j < n; ++j) bias[j] = m[j * step];
    return bias;
  }

  // The random words of row i, keys j0 .. j0 + n - 1; j0 is a multiple of 4.
  GS_MEMBER const uint32_t* words_row(int64_t i, int64_t j0, int64_t n) const {
    constexpr int N = simd<float>::N;
    uint64_t first = (uint64_t)((row0 + i) * round_up(p.tk, 4) + j0);
    for (int64_t j = 0; j < n; j += 4 * N) {
      vu w[4];
      stream->next4(first + (uint64_t)j, w);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) store((float*)words + j + r * N, (vf)w[r]);
    }
    return words;
  }
};

GS_INLINE vi kept(const uint32_t* w, uint32_t threshold, const float*) {
  return (vi)((vu)load((const float*)w) >= (vu{} + threshold));
}
GS_INLINE vl kept(const uint32_t* w, uint32_t threshold, const double*) {
  vl m;
  for (int i = 0; i < simd<double>::N; ++i) m[i] = w[i] >= threshold ? -1 : 0;
  return m;
}

// x rows (n, d) with stride `row` -> to (n, width), zeros beyond d.
template <class T>
GS_INLINE void gather_rows(const T* x, int64_t row, int64_t n, int64_t d, int64_t width, T* to) {
  pack_rows(x, row, n, (int)d, (int)width, to);
}

// Keys k (n, d) -> to[c * width + j] = k[j, c], zeros for n <= j < width.
template <class T>
GS_INLINE void turn_rows(const T* x, int64_t row, int64_t n, int64_t d, int64_t width, T* to) {
  pack_transposed(x, row, d, (int)n, (int)width, to);
}

// s (rows, ld) = a (rows, d) bt (d, width): the scores of rows i0 .. against keys j0 .. j0 + n - 1;
// tiles that no row of theirs sees are left out.
template <class T>
GS_INLINE void score_block(const AttentionParams& p, const T* a, int64_t ars, int64_t rows,
                           int64_t depth, const T* bt, int64_t width, int64_t i0, int64_t j0,
                           int64_t n, T* s, int64_t ld) {
  constexpr int N = simd<T>::N;
  if (!p.causal || j0 + n <= i0 + 1) {
    block_product(a, ars, (int64_t)1, rows, bt, width, ceil_div(n, N), depth, s, ld, false);
    return;
  }
  for (int64_t r = 0; r < rows;) {
    int64_t h = block_height<T>(4), nvec = ceil_div(least(n, i0 + r + h - j0), N);
    if (nvec <= 2) {  // few columns: a taller tile
      h = block_height<T>(2);
      nvec = ceil_div(least(n, i0 + r + h - j0), N);
    }
    h = least(h, rows - r);
    if (nvec > 0)
      block_product(a + r * ars, ars, (int64_t)1, h, bt, width, nvec, depth, s + r * ld, ld, false);
    r += h;
  }
}

template <class T>
GS_INLINE void write_rows(const T* from, int64_t width, int64_t n, int64_t d, T* to, int64_t row) {
  constexpr int N = simd<T>::N;
  for (int64_t i = 0; i < n; ++i, from += width, to += row)
    for (int64_t c = 0; c < d; c += N) {
      if (d - c >= N)
        store(to + c, load(from + c));
      else
        store_n(to + c, load(from + c), (int)(d - c));
    }
}

template <class T>
GS_INLINE void clear(T* x, int64_t n) {
  constexpr int N = simd<T>::N;
  for (int64_t i = 0; i < n; i += N) store(x + i, zero<T>());
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs

#include "attention_short.h"

namespace gs {
namespace GS_ISA {
namespace {

GS_INLINE bool is_short(const AttentionParams& p, const float*) {
  return p.tk <= kShortKeys && p.tk >= kShortLeast && p.tq >= kShortLeast && p.d > 0 && p.dv > 0 &&
         p.mask == kMaskNone && p.dropout == 0;
}
GS_INLINE bool is_short(const AttentionParams&, const double*) { return false; }

// Where the heads of a batch entry lie side by side, a member takes all of them, and while it is at
// one of them asks for its share of the rows of the next entry, whole rows in order. Else, and
// where the second cache does not hold two entries, it asks for the next head.
struct Order {
  const AttentionParams& p;
  void* const* buf;
  int64_t begin, end;  // heads of this member, b heads + h; of keys in backward
  bool back;
  int64_t tiles;  // of a head, after each of which pieces are asked for

  GS_MEMBER bool side_by_side() const {
    const int64_t in = (p.tq + p.tk) * p.heads * (p.d + p.dv) * (int64_t)sizeof(float);
    return p.heads == p.kv_heads && p.q.head == p.d && p.k.head == p.d && p.v.head == p.dv &&
           p.out.head == p.dv && (!back || p.dout.head == p.dv) && 2 * (back ? 2 * in : in) < p.l2;
  }
  // Rows lo .. hi of `wide` heads from head h of entry b on; sizes in 1 / parts.
  GS_MEMBER void add(Ahead& a, int64_t b, int64_t h, int64_t wide, int64_t part,
                     int64_t parts) const {
    const int64_t rep = p.heads / p.kv_heads;
    auto rows = [&](int i, const HeadStrides& s, int64_t head, int64_t t, int64_t width, bool write)
        __attribute__((always_inline)) {
      const int64_t lo = t * part / parts, hi = t * (part + 1) / parts;
      a.add((const float*)buf[i] + b * s.batch + head * s.head + lo * s.row, s.row, hi - lo, width,
            write);
    };
    const int64_t g = back ? h : h / rep, hq = back ? h * rep : h;
    a.parts = wide;
    rows(0, p.q, hq, p.tq, p.d, false);
    rows(1, p.k, g, p.tk, p.d, false);
    rows(2, p.v, g, p.tk, p.dv, false);
    if (back) {
      rows(4, p.out, hq, p.tq, p.dv, false);
      rows(6, p.dout, hq, p.tq, p.dv, false);
      rows(7, p.dq, hq, p.tq, p.d, true);
      rows(8, p.dk, g, p.tk, p.d, true);
      rows(9, p.dvs, g, p.tk, p.dv, true);
    } else {
      rows(4, p.out, hq, p.tq, p.dv, true);
    }
    a.each = ceil_div(a.row_end * wide, tiles);
  }
  // What to ask for while head t runs.
  GS_MEMBER void ahead(int64_t t, Ahead& a) const {
    a.reset();
    const int64_t heads = back ? p.kv_heads : p.heads, b = t / heads, h = t % heads;
    if (!side_by_side()) {
      if (t + 1 < end) add(a, (t + 1) / heads, (t + 1) % heads, 1, 0, 1);
      return;
    }
    if (t == begin) {
      add(a, b, h, least(heads - h, end - t), 0, 1);
      a.pieces(1 << 20);
      a.reset();
    }
    const int64_t next = (b + 1) * heads;
    if (next < end) add(a, b + 1, 0, least(heads, end - next), h, heads);
  }
};

// ---------------------------------------------------------------- forward

// One row of scores: s[0 .. n) becomes exp(scale s + bias - maximum), zeros up to `end`; the
// running maximum and sum are brought up to date. Returns the factor for what was summed before.
template <class T>
GS_INLINE T softmax_row(T* s, int64_t n, int64_t end, const T* bias, T scale, T* running_max,
                        T* running_sum) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const T lowest = (T)-__builtin_inf();
  const V vs = set1(scale);
  int64_t whole = n / N * N;
  int rest = (int)(n - whole);
  V m = set1(lowest);
  if (bias) {
    for (int64_t j = 0; j < whole; j += N) {
      V x = fma(load(s + j), vs, load(bias + j));
      store(s + j, x);
      m = max(x, m);
    }
    if (rest) {
      V x = fma(load(s + whole), vs, load_n(bias + whole, rest));
      store(s + whole, x);
      m = max(iota<T>() < set1((typename simd<T>::S)rest) ? x : set1(lowest), m);
    }
  } else {
    for (int64_t j = 0; j < whole; j += N) m = max(load(s + j) * vs, m);
    if (rest)
      m = max(iota<T>() < set1((typename simd<T>::S)rest) ? load(s + whole) * vs : set1(lowest), m);
  }
  T before = *running_max, now = top(m);
  if (before > now) now = before;
  T factor = before == lowest ? (T)0 : (before == now ? (T)1 : exp1(before - now));
  *running_max = now;
  const V shift = set1(now == lowest ? (T)0 : -now), one = bias ? set1((T)1) : vs;
  V sum = V{};
  for (int64_t j = 0; j < whole; j += N) {
    V e = exp_low(fma(load(s + j), one, shift));
    sum += e;
    store(s + j, e);
  }
  int64_t j = whole;
  if (rest) {
    V e = exp_low(fma(load(s + whole), one, shift));
    e = iota<T>() < set1((typename simd<T>::S)rest) ? e : V{};
    sum += e;
    store(s + whole, e);
    j += N;
  }
  for (; j < end; j += N) store(s + j, V{});
  *running_sum = *running_sum * factor + total(sum);
  return factor;
}

template <class T>
struct ForwardScratch {
  int64_t width, dvp, ld;
  T *kt, *v, *s, *acc, *m, *l, *bias;
  uint32_t* words;
  GS_MEMBER ForwardScratch(const AttentionParams& p, char* at) {
    constexpr int N = simd<T>::N;
    width = round_up(least(p.tk, kKeys), N);
    dvp = round_up(p.dv, N);
    ld = width + kPad;
    int64_t group = least(p.tq, kGroup);
    Arena a{at};
    kt = a.take<T>(p.d * width);
    v = a.take<T>(width * dvp);
    s = a.take<T>(least(p.tq, kRows) * ld);
    acc = a.take<T>(group * dvp);
    m = a.take<T>(group);
    l = a.take<T>(group);
    bias = a.take<T>(kKeys);
    words = a.take<uint32_t>(kKeys + 64);
    end = a.at;
  }
  char* end;
};

template <class T>
void forward_task(const AttentionParams& p, void* const* buf, const PhiloxStream* stream,
                  const ForwardScratch<T>& w, int64_t b, int64_t h, int64_t i_begin, int64_t i_end,
                  Ahead& ahead) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  int64_t g = h / (p.heads / p.kv_heads);
  const T* q = (const T*)buf[0] + b * p.q.batch + h * p.q.head;
  const T* k = (const T*)buf[1] + b * p.k.batch + g * p.k.head;
  const T* v = (const T*)buf[2] + b * p.v.batch + g * p.v.head;
  T* out = (T*)buf[4] + b * p.out.batch + h * p.out.head;
  int64_t item = p.mask == kMaskBool ? 1 : (int64_t)sizeof(T);
  Scores<T> scores{
      p,      (const char*)buf[3] + (b * p.mask_strides[0] + h * p.mask_strides[1]) * item,
      stream, (b * p.heads + h) * p.tq,
      w.bias, w.words};
  const T scale = (T)p.scale, lowest = (T)-__builtin_inf();
  int64_t rows_all = i_end - i_begin, nv = w.dvp / N;
  for (int64_t i = 0; i < rows_all; ++i) {
    w.m[i] = lowest;
    w.l[i] = 0;
  }
  int64_t keys = visible(p, i_end - 1);
  for (int64_t j0 = 0; j0 < keys; j0 += kKeys) {
    int64_t n = least(kKeys, keys - j0), width = round_up(n, N);
    turn_rows(k + j0 * p.k.row, p.k.row, n, p.d, width, w.kt);
    gather_rows(v + j0 * p.v.row, p.v.row, n, p.dv, w.dvp, w.v);
    for (int64_t r0 = 0; r0 < rows_all; r0 += kRows) {
      int64_t i0 = i_begin + r0, rows = least(kRows, rows_all - r0);
      if (j0 >= visible(p, i0 + rows - 1)) continue;
      score_block(p, q + i0 * p.q.row, p.q.row, rows, p.d, w.kt, width, i0, j0, n, w.s, w.ld);
      for (int64_t r = 0; r < rows; ++r) {
        T* s = w.s + r * w.ld;
        int64_t i = i0 + r, seen = least(n, visible(p, i) - j0);
        ahead.step();
        if (seen <= 0) {
          for (int64_t j = 0; j < width; j += N) store(s + j, V{});
          continue;
        }
        T f = softmax_row(s, seen, width, scores.bias_row(i, j0, seen), scale, &w.m[r0 + r],
                          &w.l[r0 + r]);
        if (p.dropout == 1) {
          const uint32_t* words = scores.words_row(i, j0, seen);
          for (int64_t j = 0; j < seen; j += N)
            store(s + j, kept(words + j, p.threshold, s) ? load(s + j) : V{});
        }
        if (j0 > 0 && f != (T)1) {
          T* o = w.acc + (r0 + r) * w.dvp;
          V vf_ = set1(f);
          for (int64_t c = 0; c < w.dvp; c += N) store(o + c, load(o + c) * vf_);
        }
      }
      T* acc = w.acc + r0 * w.dvp;
      int64_t step = p.causal ? block_height<T>(nv) : rows;
      for (int64_t r = 0; r < rows; r += step) {
        int64_t some = least(step, rows - r), depth = least(n, visible(p, i0 + r + some - 1) - j0);
        if (depth > 0 || j0 == 0)
          block_product(w.s + r * w.ld, w.ld, (int64_t)1, some, w.v, w.dvp, nv, most(depth, 0),
                        acc + r * w.dvp, w.dvp, j0 > 0);
      }
    }
  }
  T* lse = buf[5] ? (T*)buf[5] + (b * p.heads + h) * p.tq + i_begin : nullptr;
  for (int64_t i = 0; i < rows_all; ++i) {
    T l = w.l[i];
    V f = set1(l == 0 || p.dropout == 2 ? (T)0 : (T)p.keep_scale / l);
    T* o = out + (i_begin + i) * p.out.row;
    const T* a = w.acc + i * w.dvp;
    if (l == 0 || p.dropout == 2) {
      for (int64_t c = 0; c < p.dv; c += N) store_n(o + c, V{}, (int)least(N, p.dv - c));
    } else {
      for (int64_t c = 0; c < p.dv; c += N) {
        V x = load(a + c) * f;
        if (p.dv - c >= N)
          store(o + c, x);
        else
          store_n(o + c, x, (int)(p.dv - c));
      }
    }
    if (lse) lse[i] = l == 0 ? (T)__builtin_inf() : w.m[i] + log1(l);
  }
}

// Task t of a member's round r, back and forth, so that causal groups balance.
GS_INLINE int64_t snake(const Ctx* ctx, int64_t r) {
  return r * ctx->nt + (r & 1 ? ctx->nt - 1 - ctx->tid : ctx->tid);
}

// Queries of a task of a short head, and tasks a head.
GS_INLINE int64_t short_groups(const AttentionParams& p) { return ceil_div(p.tq, 4 * kQueries); }

void forward_short(const AttentionParams& p, void* const* buf, const Ctx* ctx) {
  const ShortForward size(p, nullptr);
  const ShortForward w(p, ctx->scratch + ctx->tid * round_up(size.end - (char*)nullptr, 4096));
  const int64_t groups = short_groups(p);
  const int64_t tasks = p.batch * p.heads * groups;
  const Order order{p,
                    buf,
                    tasks * ctx->tid / ctx->nt,
                    tasks * (ctx->tid + 1) / ctx->nt,
                    false,
                    short_tiles(p, false)};
  for (int64_t t = order.begin; t < order.end; ++t) {
    Ahead ahead;
    ahead.reset();
    if (groups == 1) order.ahead(t, ahead);
    const int64_t bh = t / groups, part = t % groups, i = p.tq * part / groups / 8 * 8;
    const int64_t end = part + 1 < groups ? p.tq * (part + 1) / groups / 8 * 8 : p.tq;
    short_forward(p, buf, w, bh / p.heads, bh % p.heads, i, end, ahead);
  }
}

template <class T>
void forward(const void* params, void* const* buf, const Ctx* ctx) {
  const AttentionParams& p = *(const AttentionParams*)params;
  if (is_short(p, (const T*)nullptr)) return forward_short(p, buf, ctx);
  int64_t groups = ceil_div(p.tq, kGroup), rows = ceil_div(p.tq, groups);
  rows = round_up(rows, kRows) <= kGroup ? round_up(rows, kRows) : rows;
  int64_t tasks = p.batch * p.heads * groups;
  ForwardScratch<T> size(p, nullptr);
  ForwardScratch<T> w(p, ctx->scratch + ctx->tid * round_up(size.end - (char*)nullptr, 4096));
  const PhiloxStream stream(p.seed, ctx->read(p.counter));
  for (int64_t r = 0; r * ctx->nt < tasks; ++r) {
    int64_t t = snake(ctx, r);
    if (t >= tasks) continue;
    int64_t bh = t / groups, i = t % groups * rows;
    Ahead ahead;
    ahead.reset();
    int64_t next = snake(ctx, r + 1);
    if (next < tasks && groups == 1) {
      int64_t b = next / p.heads, h = next % p.heads, g = h / (p.heads / p.kv_heads);
      int64_t some = least(p.tk, kAheadRows);
      ahead.add((const T*)buf[0] + b * p.q.batch + h * p.q.head, p.q.row, p.tq, p.d);
      ahead.add((const T*)buf[1] + b * p.k.batch + g * p.k.head, p.k.row, some, p.d);
      ahead.add((const T*)buf[2] + b * p.v.batch + g * p.v.head, p.v.row, some, p.dv);
    }
    if (i < p.tq)
      forward_task<T>(p, buf, &stream, w, bh / p.heads, bh % p.heads, i, least(p.tq, i + rows),
                      ahead);
  }
}

// ns of one thread: operations at half the peak rate, an exp a score
template <class T>
GS_INLINE int64_t work(const AttentionParams& p, int64_t products) {
  int64_t rate = (GS_VBYTES == 64 ? 64 : GS_VBYTES == 32 ? 32 : 8) * 4 / (int64_t)sizeof(T);
  int64_t scores = p.batch * p.heads * p.tq * p.tk;
  if (p.causal) scores /= 2;
  return scores * (p.d + p.dv) * products / rate + scores / (sizeof(T) == 4 ? 4 : 1) +
         p.batch * p.heads * (p.tq + p.tk) * (p.d + p.dv) / 16;
}

template <class T>
void forward_plan(const void* params, Plan* plan) {
  const AttentionParams& p = *(const AttentionParams*)params;
  if (is_short(p, (const T*)nullptr)) {
    const ShortForward w(p, nullptr);
    plan->tasks = most(1, least(p.batch * p.heads * short_groups(p), p.members));
    plan->work = work<T>(p, 1) / 2;
    plan->scratch = (size_t)(plan->tasks * round_up(w.end - (char*)nullptr, 4096));
    return;
  }
  ForwardScratch<T> size(p, nullptr);
  plan->tasks = most(1, least(p.batch * p.heads * ceil_div(p.tq, kGroup), p.members));
  plan->work = work<T>(p, 1);
  plan->scratch = (size_t)(plan->tasks * round_up(size.end - (char*)nullptr, 4096));
}

// ---------------------------------------------------------------- backward

// How the keys of one head are cut into tasks: a head alone keeps several threads busy when there
// are few heads.
GS_INLINE int64_t key_groups(const AttentionParams& p) {
  int64_t heads = p.batch * p.kv_heads;
  if (heads >= 16 || p.tk < 4 * kKeys) return 1;
  return least(ceil_div(16, heads), p.tk / (2 * kKeys));
}

template <class T>
struct BackwardScratch {
  int64_t width, dp, dvp, ld, rows, rep;
  T *kt, *vt, *k, *dk, *dv, *q, *dout, *s, *ds, *delta, *bias, *dq;
  uint32_t* words;
  char* end;
  GS_MEMBER BackwardScratch(const AttentionParams& p, char* at, bool own_dq) {
    constexpr int N = simd<T>::N;
    width = round_up(least(p.tk, kKeys), N);
    dp = round_up(p.d, N);
    dvp = round_up(p.dv, N);
    ld = width + kPad;
    rows = least(p.tq, kBackRows);
    rep = p.heads / p.kv_heads;
    Arena a{at};
    kt = a.take<T>(p.d * width);
    vt = a.take<T>(p.dv * width);
    k = a.take<T>(width * dp);
    dk = a.take<T>(width * dp);
    dv = a.take<T>(width * dvp);
    q = a.take<T>(rows * dp);
    dout = a.take<T>(rows * dvp);
    s = a.take<T>(rows * ld);
    ds = a.take<T>(rows * ld);
    delta = a.take<T>(rows);
    bias = a.take<T>(kKeys);
    words = a.take<uint32_t>(kKeys + 64);
    dq = own_dq ? a.take<T>(rep * p.tq * dp) : nullptr;
    end = a.at;
  }
};

// One row: s (scores) becomes the probabilities after dropout, ds the gradient of the scores times
// scale; both zero from `seen` to `end`.
template <class T>
GS_INLINE void backward_row(const AttentionParams& p, T* s, T* ds, int64_t seen, int64_t end,
                            const T* bias, const uint32_t* words, T lse, T delta) {
  using V = typename simd<T>::V;
  using I = typename simd<T>::I;
  constexpr int N = simd<T>::N;
  const V scale = set1((T)p.scale), vl_ = set1(lse), vd_ = set1(delta),
          keep = set1((T)p.keep_scale);
  int64_t j = 0;
  for (; j < seen; j += N) {
    V x = load(s + j) * scale, d = load(ds + j);
    int left = (int)(seen - j);
    if (bias) x += left >= N ? load(bias + j) : load_n(bias + j, left);
    V e = exp_low(x - vl_), kept_e = e;
    if (words) {
      I m = kept(words + j, p.threshold, s);
      kept_e = m ? e * keep : V{};
      d = m ? d * keep : V{};
    }
    if (p.dropout == 2) kept_e = d = V{};
    V g = e * (d - vd_) * scale;
    if (left < N) {
      I in = iota<T>() < set1((typename simd<T>::S)left);
      kept_e = in ? kept_e : V{};
      g = in ? g : V{};
    }
    store(s + j, kept_e);
    store(ds + j, g);
  }
  for (; j < end; j += N) {
    store(s + j, V{});
    store(ds + j, V{});
  }
}

// Keys j_begin .. j_end of key head (b, g); dq: (rep, tq, dp), of this task alone.
template <class T>
void backward_task(const AttentionParams& p, void* const* buf, const PhiloxStream* stream,
                   const BackwardScratch<T>& w, int64_t b, int64_t g, int64_t j_begin,
                   int64_t j_end, T* dq, Ahead& ahead) {
  constexpr int N = simd<T>::N;
  const T* k = (const T*)buf[1] + b * p.k.batch + g * p.k.head;
  const T* v = (const T*)buf[2] + b * p.v.batch + g * p.v.head;
  T* dk = (T*)buf[8] + b * p.dk.batch + g * p.dk.head;
  T* dv = (T*)buf[9] + b * p.dvs.batch + g * p.dvs.head;
  int64_t item = p.mask == kMaskBool ? 1 : (int64_t)sizeof(T);
  int64_t nd = w.dp / N, ne = w.dvp / N;
  clear(dq, w.rep * p.tq * w.dp);
  for (int64_t j0 = j_begin; j0 < j_end; j0 += kKeys) {
    int64_t n = least(kKeys, j_end - j0), width = round_up(n, N);
    turn_rows(k + j0 * p.k.row, p.k.row, n, p.d, width, w.kt);
    turn_rows(v + j0 * p.v.row, p.v.row, n, p.dv, width, w.vt);
    gather_rows(k + j0 * p.k.row, p.k.row, n, p.d, w.dp, w.k);
    clear(w.dk, n * w.dp);
    clear(w.dv, n * w.dvp);
    for (int64_t e = 0; e < w.rep; ++e) {
      int64_t h = g * w.rep + e;
      const T* q = (const T*)buf[0] + b * p.q.batch + h * p.q.head;
      const T* out = (const T*)buf[4] + b * p.out.batch + h * p.out.head;
      const T* dout = (const T*)buf[6] + b * p.dout.batch + h * p.dout.head;
      const T* lse = (const T*)buf[5] + (b * p.heads + h) * p.tq;
      T* dqh = dq + e * p.tq * w.dp;
      Scores<T> scores{
          p,      (const char*)buf[3] + (b * p.mask_strides[0] + h * p.mask_strides[1]) * item,
          stream, (b * p.heads + h) * p.tq,
          w.bias, w.words};
      for (int64_t i0 = p.causal ? j0 / kBackRows * kBackRows : 0; i0 < p.tq; i0 += kBackRows) {
        int64_t rows = least(kBackRows, p.tq - i0);
        gather_rows(q + i0 * p.q.row, p.q.row, rows, p.d, w.dp, w.q);
        gather_rows(dout + i0 * p.dout.row, p.dout.row, rows, p.dv, w.dvp, w.dout);
        for (int64_t r = 0; r < rows; ++r) {
          const T *o = out + (i0 + r) * p.out.row, *d = w.dout + r * w.dvp;
          typename simd<T>::V sum = zero<T>();
          for (int64_t c = 0; c < p.dv; c += N)
            sum =
                fma(p.dv - c >= N ? load(o + c) : load_n(o + c, (int)(p.dv - c)), load(d + c), sum);
          w.delta[r] = total(sum);
        }
        score_block(p, w.q, w.dp, rows, p.d, w.kt, width, i0, j0, n, w.s, w.ld);
        score_block(p, w.dout, w.dvp, rows, p.dv, w.vt, width, i0, j0, n, w.ds, w.ld);
        for (int64_t r = 0; r < rows; ++r) {
          int64_t i = i0 + r, seen = most(0, least(n, visible(p, i) - j0));
          ahead.step();
          const uint32_t* words =
              p.dropout == 1 && seen > 0 ? scores.words_row(i, j0, seen) : nullptr;
          backward_row(p, w.s + r * w.ld, w.ds + r * w.ld, seen, width,
                       seen > 0 ? scores.bias_row(i, j0, seen) : nullptr, words, lse[i],
                       w.delta[r]);
        }
        bool triangle = p.causal && j0 + n > i0 + 1;
        // dV (n, dv) += P^T dO, dK (n, d) += dS^T Q; key j is seen by rows from j on
        for (int pass = 0; pass < 2; ++pass) {
          const T *a = pass ? w.ds : w.s, *x = pass ? w.q : w.dout;
          int64_t xs = pass ? w.dp : w.dvp, nx = pass ? nd : ne;
          T* y = pass ? w.dk : w.dv;
          int64_t step = triangle ? block_height<T>(nx) : n;
          for (int64_t j = 0; j < n; j += step) {
            int64_t first = triangle ? most(0, j0 + j - i0) : 0;
            if (first < rows)
              block_product(a + first * w.ld + j, (int64_t)1, w.ld, least(step, n - j),
                            x + first * xs, xs, nx, rows - first, y + j * xs, xs, true);
          }
        }
        // dQ (rows, d) += dS K
        int64_t step = triangle ? block_height<T>(nd) : rows;
        for (int64_t r = 0; r < rows; r += step) {
          int64_t some = least(step, rows - r);
          int64_t depth = least(n, visible(p, i0 + r + some - 1) - j0);
          if (depth > 0)
            block_product(w.ds + r * w.ld, w.ld, (int64_t)1, some, w.k, w.dp, nd, depth,
                          dqh + (i0 + r) * w.dp, w.dp, true);
        }
      }
    }
    write_rows(w.dk, w.dp, n, p.d, dk + j0 * p.dk.row, p.dk.row);
    write_rows(w.dv, w.dvp, n, p.dv, dv + j0 * p.dvs.row, p.dvs.row);
  }
}

// A row whose probabilities are all dropped (p = 1) has no gradient; so have rows without keys,
// whose lse is +inf.
void backward_short(const AttentionParams& p, void* const* buf, const Ctx* ctx) {
  const ShortBackward size(p, nullptr);
  const ShortBackward w(p, ctx->scratch + ctx->tid * round_up(size.end - (char*)nullptr, 4096));
  const int64_t tasks = p.batch * p.kv_heads;
  const Order order{p,
                    buf,
                    tasks * ctx->tid / ctx->nt,
                    tasks * (ctx->tid + 1) / ctx->nt,
                    true,
                    short_tiles(p, true)};
  for (int64_t t = order.begin; t < order.end; ++t) {
    Ahead ahead;
    order.ahead(t, ahead);
    short_backward(p, buf, w, t / p.kv_heads, t % p.kv_heads, ahead);
  }
}

template <class T>
void backward(const void* params, void* const* buf, const Ctx* ctx) {
  const AttentionParams& p = *(const AttentionParams*)params;
  if (is_short(p, (const T*)nullptr)) return backward_short(p, buf, ctx);
  constexpr int N = simd<T>::N;
  int64_t groups = key_groups(p), heads = p.batch * p.kv_heads, tasks = heads * groups;
  int64_t keys = round_up(ceil_div(p.tk, groups), kKeys);
  bool own = groups == 1;
  BackwardScratch<T> size(p, nullptr, own);
  int64_t member = round_up(size.end - (char*)nullptr, 4096);
  BackwardScratch<T> w(p, ctx->scratch + ctx->tid * member, own);
  int64_t part = w.rep * p.tq * w.dp;
  // sums of dQ of each task: behind the memory of the members, whose number the plan fixed
  int64_t members = most(1, least(tasks, p.members));
  T* parts = (T*)(ctx->scratch + members * member);
  const PhiloxStream stream(p.seed, ctx->read(p.counter));
  for (int64_t r = 0; r * ctx->nt < tasks; ++r) {
    int64_t t = snake(ctx, r);
    if (t >= tasks) continue;
    int64_t bg = t / groups, j = least(p.tk, t % groups * keys), b = bg / p.kv_heads,
            g = bg % p.kv_heads;
    T* dq = own ? w.dq : parts + t * part;
    Ahead ahead;
    ahead.reset();
    int64_t next = snake(ctx, r + 1);
    if (next < tasks && own) {
      int64_t nb = next / p.kv_heads, ng = next % p.kv_heads, h = ng * w.rep;
      int64_t some = least(p.tk, kAheadRows), few = least(p.tq, kAheadRows);
      ahead.add((const T*)buf[0] + nb * p.q.batch + h * p.q.head, p.q.row, few, p.d);
      ahead.add((const T*)buf[1] + nb * p.k.batch + ng * p.k.head, p.k.row, some, p.d);
      ahead.add((const T*)buf[2] + nb * p.v.batch + ng * p.v.head, p.v.row, some, p.dv);
      ahead.add((const T*)buf[4] + nb * p.out.batch + h * p.out.head, p.out.row, few, p.dv);
      ahead.add((const T*)buf[6] + nb * p.dout.batch + h * p.dout.head, p.dout.row, few, p.dv);
    }
    backward_task<T>(p, buf, &stream, w, b, g, j, least(p.tk, j + keys), dq, ahead);
    if (own)
      for (int64_t e = 0; e < w.rep; ++e)
        write_rows(dq + e * p.tq * w.dp, w.dp, p.tq, p.d,
                   (T*)buf[7] + b * p.dq.batch + (g * w.rep + e) * p.dq.head, p.dq.row);
  }
  if (own) return;
  ctx->sync();
  for (int64_t x = ctx->tid; x < p.batch * p.heads * p.tq; x += ctx->nt) {
    int64_t i = x % p.tq, bh = x / p.tq, b = bh / p.heads, h = bh % p.heads;
    int64_t bg = b * p.kv_heads + h / w.rep, e = h % w.rep;
    const T* from = parts + bg * groups * part + (e * p.tq + i) * w.dp;
    T* to = (T*)buf[7] + b * p.dq.batch + h * p.dq.head + i * p.dq.row;
    for (int64_t c = 0; c < p.d; c += N) {
      typename simd<T>::V sum = load(from + c);
      for (int64_t s = 1; s < groups; ++s) sum += load(from + s * part + c);
      store_n(to + c, sum, (int)least(N, p.d - c));
    }
  }
}

template <class T>
void backward_plan(const void* params, Plan* plan) {
  const AttentionParams& p = *(const AttentionParams*)params;
  if (is_short(p, (const T*)nullptr)) {
    const ShortBackward w(p, nullptr);
    plan->tasks = most(1, least(p.batch * p.kv_heads, p.members));
    plan->work = work<T>(p, 3) / 2;
    plan->scratch = (size_t)(plan->tasks * round_up(w.end - (char*)nullptr, 4096));
    return;
  }
  int64_t groups = key_groups(p), tasks = p.batch * p.kv_heads * groups;
  BackwardScratch<T> size(p, nullptr, groups == 1);
  plan->tasks = most(1, least(tasks, p.members));
  plan->work = work<T>(p, 3);
  plan->scratch = (size_t)(plan->tasks * round_up(size.end - (char*)nullptr, 4096));
  if (groups > 1) plan->scratch += (size_t)(tasks * size.rep * p.tq * size.dp) * sizeof(T);
}

const KernelEntry entries[] = {
    {"attention", kF32, forward<float>, forward_plan<float>},
    {"attention", kF64, forward<double>, forward_plan<double>},
    {"attention_backward", kF32, backward<float>, backward_plan<float>},
    {"attention_backward", kF64, backward<double>, backward_plan<double>},
};

}  // namespace

extern const KernelList attention_kernels;
const KernelList attention_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
