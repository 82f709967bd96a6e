// Convolution 3 x 3 of stride 2 by Winograd products of its phases: transforms and layout.
//
// Along one axis output p sees three inputs, w0 x[2p] + w1 x[2p + 1] + w2 x[2p + 2]. The even ones
// are a convolution of two taps and stride 1, of which F(4, 2) makes four outputs from five inputs
// with five products instead of eight; the odd ones have one tap and need their four. In two
// dimensions a tile of 4 x 4 outputs sees 9 x 9 inputs and takes (5 + 4)^2 = 81 products a pair of
// channels, where the direct sum has 144:
//
//   rows \ columns  even                    odd
//   even            25, four taps, F(4 x 4, 2 x 2)  5 x 4, taps (0, 1) and (2, 1), F(4, 2) down
//   odd             4 x 5, F(4, 2) along    16, the middle tap
//
// Planes are counted by nine rows and columns, of which the first five are transformed and the last
// four as they are. Those of untransformed rows or columns share their filters, so there are 6 x 6
// transformed filters ("forms"), each multiplied with one, four or sixteen planes, which follow one
// another in memory and are multiplied like one.
//
// Everything with one set of sums, in one domain of 5 x 5, would take 100 products and 25 in place
// of 81 sums to transform; products are what costs.
//
// Interpolation points: +-1/2, +-5/4, infinity. Half the rounding error of 0, +-1, 2: 5e-7 of the
// root mean square at 512 channels.
//
// In the table avx512bf16 the operands of products are rounded to bfloat16 and an element holds a
// pair (conv/pairs.h): of channels in the operands of y and dx, of rows of planes in those of dw.
#pragma once
#include "conv/winograd_products.h"

namespace gs {
namespace GS_ISA {
namespace {

using PV = simd<float>::V;
constexpr int kLanes = simd<float>::N;

// F(4, 2), in place or from the first to the second; see Points in winograd_points.h.
struct Poly {
  static constexpr float a = 0.5f, b = 1.25f, a2 = a * a, b2 = b * b;
  static constexpr float c = 1 / (2 * (b2 - a2));

  GS_MEMBER static void input(PV (&d)[5]) {
    const PV pa = set1(a), pb = set1(b), qa = set1(a2), qb = set1(b2);
    const PV e1 = fnma(qb, d[1], d[3]), o1 = fnma(qb, d[0], d[2]);
    const PV e2 = fnma(qa, d[1], d[3]), o2 = fnma(qa, d[0], d[2]);
    d[4] = fnma(set1(a2 + b2), d[2], fma(set1(a2 * b2), d[0], d[4]));
    d[0] = fma(pa, o1, e1);
    d[1] = fnma(pa, o1, e1);
    d[2] = fma(pb, o2, e2);
    d[3] = fnma(pb, o2, e2);
  }
  GS_MEMBER static void input_adjoint(PV (&v)[5]) {
    const PV qa = set1(a2), qb = set1(b2);
    const PV s1 = v[0] + v[1], t1 = set1(a) * (v[0] - v[1]);
    const PV s2 = v[2] + v[3], t2 = set1(b) * (v[2] - v[3]);
    v[0] = fnma(qb, t1, fnma(qa, t2, set1(a2 * b2) * v[4]));
    v[1] = -fma(qb, s1, qa * s2);
    v[2] = fnma(set1(a2 + b2), v[4], t1 + t2);
    v[3] = s1 + s2;
  }
  GS_MEMBER static void output(const PV (&m)[5], PV (&y)[4]) {
    const PV qa = set1(a2), qb = set1(b2);
    const PV s1 = m[0] + m[1], t1 = set1(a) * (m[0] - m[1]);
    const PV s2 = m[2] + m[3], t2 = set1(b) * (m[2] - m[3]);
    y[0] = s1 + s2;
    y[1] = t1 + t2;
    y[2] = fma(qa, s1, qb * s2);
    y[3] = fma(qa, t1, fma(qb, t2, m[4]));
  }
  GS_MEMBER static void output_adjoint(const PV (&y)[4], PV (&m)[5]) {
    const PV qa = set1(a2), qb = set1(b2), pa = set1(a), pb = set1(b);
    const PV p = fma(qa, y[2], y[0]), q = fma(qa, y[3], y[1]);
    const PV r = fma(qb, y[2], y[0]), s = fma(qb, y[3], y[1]);
    m[0] = fma(pa, q, p);
    m[1] = fnma(pa, q, p);
    m[2] = fma(pb, s, r);
    m[3] = fnma(pb, s, r);
    m[4] = y[3];
  }
  // of taps g0 and g2
  GS_MEMBER static void filter(PV g0, PV g2, PV (&u)[5]) {
    const PV k = set1(c), p = k * g2, r = set1(c / a) * g0, s = set1(c / b) * g0;
    u[0] = -(p + r);
    u[1] = r - p;
    u[2] = p + s;
    u[3] = p - s;
    u[4] = g2;
  }
  GS_MEMBER static void filter_adjoint(const PV (&u)[5], PV& g0, PV& g2) {
    const PV s1 = u[0] + u[1], t1 = u[1] - u[0], s2 = u[2] + u[3], t2 = u[2] - u[3];
    g0 = fma(set1(c / a), t1, set1(c / b) * t2);
    g2 = fma(set1(c), s2 - s1, u[4]);
  }
};

constexpr int kPlanes = 81, kForms = 36, kPatch = 9;

// x, which the compiler takes for new: left to itself it computes the addresses of all 81 vectors
// ahead, one variable each, and keeps them in vector registers and on the stack.
template <class T>
GS_INLINE T anew(T x) {
#if defined(__GNUC__)
  asm("" : "+r"(x));
#endif
  return x;
}

// Where planes of R tiles and one group of 64 elements (pairs: up to 64) lie: form f has planes(f)
// of them from at(f) on. Forms are no multiple of a page apart, see Planes in winograd.h.
struct Phases {
  int64_t rows, ld = kGroup;
  GS_MEMBER int64_t plane() const { return rows * ld; }
  GS_MEMBER static int64_t planes(int f) { return (f / 6 < 5 ? 1 : 4) * (f % 6 < 5 ? 1 : 4); }
  GS_MEMBER int64_t at(int f) const {
    const int r = f / 6, c = f % 6;
    return (r < 5 ? r * 9 + c : 45 + c * 4) * plane() + 16 * f;
  }
  GS_MEMBER int64_t size() const { return kPlanes * plane() + 16 * kForms; }
  GS_MEMBER int64_t count(int f) const { return planes(f) * rows; }
  // Where channel c lies in a row, whose groups are `group` apart; from row t to the next, of forms
  // of one plane and of more.
  GS_MEMBER static int64_t place(int64_t c, int64_t group) {
    return c / kPair / kGroup * group + c / kPair % kGroup;
  }
  GS_MEMBER int64_t next_of_one(int64_t) const { return ld; }
};

// Vectors of a tile at o: those of row r and column c of the nine.
template <class P>
struct Vectors {
  P* o;
  int64_t plane;
  GS_MEMBER Vectors(P* at, Phases s) : o(anew(at)), plane(anew(s.plane())) {}
  GS_MEMBER P* at(int r, int c) const {
    const int f = (r < 5 ? r : 5) * 6 + (c < 5 ? c : 5);
    if (r < 5) return o + r * 9 * plane + c * plane + 16 * f;
    return o + 45 * plane + (c < 5 ? c * 4 + r - 5 : 20 + (r - 5) * 4 + c - 5) * plane + 16 * f;
  }
};

// What a transform that runs over all channels does four vectors later: where that is, seen from
// its pixels and from its vectors, those of forms of more planes and of one. A transform's 81 lines
// are far apart, so no core foresees them; fetched a tile of 64 channels ahead they cost a third (a
// tile of more channels ahead they would leave the first cache before they are used).
struct Later {
  int64_t pixel, vector, one;
};
// Of row t. next: from a pixel to that of the next tile
template <class S>
GS_INLINE Later later(int64_t c, int64_t channels, int64_t next, S s, int64_t group, int64_t t) {
  const int64_t C = ceil_div(channels, kLanes) * kLanes, by = min64(kGroup, C), to = c + by;
  if (to < C) {
    const int64_t d = s.place(to, group) - s.place(c, group);
    return {by, d, d};
  }
  const int64_t d = s.place(to - C, group) - s.place(c, group);
  return {next + to - C - c, d + s.ld, d + s.next_of_one(t)};
}

// Stores the vectors of row t of planes: one, of row r and column c of the nine, or that and the
// next one, which is below it or beside it.
struct PutPlanes {
  Vectors<float> o;
  int64_t then;
  GS_MEMBER PutPlanes(float* planes, Phases s, int64_t t, Later l)
      : o(planes + t * s.ld, s), then(anew(l.vector)) {}
  GS_MEMBER void one(int r, int c, PV x) const {
    float* p = o.at(r, c);
    fetch_to_write(p + then);
    put_plane(p, x);
  }
  GS_MEMBER void two(int r, int c, bool below, PV x, PV y) const {
    one(r, c, x);
    one(below ? r + 1 : r, below ? c : c + 1, y);
  }
};

#if defined(__AVX512BF16__)
// The operands of dw: rows of pairs. Of a form of one plane these are two tiles, of other forms two
// planes that a tile has there, one below or beside the other. An element is one channel.
struct TilePairs {
  int64_t rows, ld;  // tiles, the length of a row
  GS_MEMBER int64_t half() const { return (rows + 1) / 2 * ld; }
  GS_MEMBER int64_t line() const { return 5 * half() + 2 * rows * ld; }
  GS_MEMBER int64_t at(int f) const {
    const int r = f / 6, c = f % 6;
    return r * line() + c * (r < 5 ? half() : 2 * rows * ld) + 16 * f;
  }
  GS_MEMBER int64_t count(int f) const {
    return f == kForms - 1 ? 8 * rows : f / 6 < 5 && f % 6 < 5 ? (rows + 1) / 2 : 2 * rows;
  }
  GS_MEMBER int64_t size() const { return at(kForms - 1) + 8 * rows * ld + 16; }
  GS_MEMBER static int64_t place(int64_t c, int64_t group) {
    return c / kGroup * group + c % kGroup;
  }
  GS_MEMBER int64_t next_of_one(int64_t t) const { return t % 2 * ld; }
};
struct PutTiles {
  float *single, *more;
  int64_t half, plane, line, then, then_one;
  PairTurn turn;
  GS_MEMBER PutTiles(float* planes, TilePairs s, int64_t t, Later l)
      : single(anew(planes + t / 2 * s.ld)),
        more(anew(planes + t * s.ld)),
        half(anew(s.half())),
        plane(anew(s.rows * s.ld)),
        line(anew(s.line())),
        then(anew(l.vector)),
        then_one(anew(l.one)),
        turn(t % 2) {}
  GS_MEMBER void one(int r, int c, PV x) const {
    float* p = single + r * line + c * half + 16 * (r * 6 + c);
    fetch_to_write(p + then_one);
    turn.put_half(p, x);
  }
  GS_MEMBER void two(int r, int c, bool, PV x, PV y) const {
    float* p = more + (r < 5 ? r : 5) * line;
    if (r < 5)
      p += 5 * half + (c - 5) / 2 * plane + 16 * (r * 6 + 5);
    else if (c < 5)
      p += (2 * c + (r - 5) / 2) * plane + 16 * (30 + c);
    else
      p += (10 + (r - 5) / 2 * 4 + c - 5) * plane + 16 * 35;
    fetch_to_write(p + then);
    turn.put_both(p, x, y);
  }
};
GS_INLINE PutTiles put_of(float* planes, TilePairs s, int64_t t, Later l) {
  return PutTiles(planes, s, t, l);
}
#else
using TilePairs = Phases;
#endif
GS_INLINE PutPlanes put_of(float* planes, Phases s, int64_t t, Later l) {
  return PutPlanes(planes, s, t, l);
}

// Pixels of a patch: `by` of rows, each `cols` of them; those outside point to `outside`.
template <int R, class P>
GS_INLINE void pixels(P* x, P* outside, int64_t n, int64_t h, int64_t w, int64_t C, int64_t row,
                      int64_t col, P* (&at)[R][R]) {
  for (int i = 0; i < R; ++i) {
    const int64_t r = row + i;
    P* line = x + ((n * h + r) * w + col) * C;
    const bool in = r >= 0 && r < h;
    for (int j = 0; j < R; ++j)
      at[i][j] = in && col + j >= 0 && col + j < w ? line + j * C : outside;
  }
}

// From a pixel of tile t to that of the next, `step` pixels on; 0 where there is none.
GS_INLINE int64_t next_tile(const Grid& g, int64_t t, int64_t h, int64_t w, int64_t C,
                            int64_t step) {
  const int64_t u = t + 1, row = (u / g.cols % g.rows - t / g.cols % g.rows) * step;
  const int64_t n = u / (g.rows * g.cols) - t / (g.rows * g.cols);
  return u == g.tiles ? 0 : ((n * h + row) * w + (u % g.cols - t % g.cols) * step) * C;
}

template <bool Full>
GS_INLINE PV take(const float* p, int lanes) {
  return Full ? load(p) : load_n(p, lanes);
}
template <bool Full>
GS_INLINE void give(float* p, PV v, int lanes) {
  if (Full)
    store(p, v);
  else
    store_n(p, v, lanes);
}

// One vector of a tile of inputs: at, from channel c on; soon: Later::pixel
template <bool Full, class Put>
GS_INLINE void input_vector(const float* const (&at)[9][9], int64_t c, int lanes, int64_t soon,
                            const Put put) {
  soon = anew(c + soon);
  c = anew(c);
  // pointers come from memory just where they are used: there are too many for registers
  const float* const(*rows)[9] = anew(&at[0]);
  auto get = [&](int i, int j) __attribute__((always_inline)) {
    const float* q = rows[i][j];
    __builtin_prefetch(q + soon, 0, 3);
    return take<Full>(q + c, lanes);
  };
  PV d[5][5], e[2][5];
#pragma GCC unroll 5
  for (int j = 0; j < 5; ++j) {
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) e[0][i] = get(2 * i, 2 * j);
    Poly::input(e[0]);
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) d[i][j] = e[0][i];
  }
#pragma GCC unroll 5
  for (int i = 0; i < 5; ++i) {
    Poly::input(d[i]);
#pragma GCC unroll 5
    for (int j = 0; j < 5; ++j) put.one(i, j, d[i][j]);
  }
#pragma GCC unroll 2
  for (int k = 0; k < 4; k += 2) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 5
      for (int i = 0; i < 5; ++i) e[h][i] = get(2 * i, 2 * (k + h) + 1);
      Poly::input(e[h]);
    }
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) put.two(i, 5 + k, false, e[0][i], e[1][i]);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 5
      for (int i = 0; i < 5; ++i) e[h][i] = get(2 * (k + h) + 1, 2 * i);
      Poly::input(e[h]);
    }
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) put.two(5 + k, i, true, e[0][i], e[1][i]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      put.two(5 + k, 5 + i, true, get(2 * k + 1, 2 * i + 1), get(2 * k + 3, 2 * i + 1));
  }
}

// v = the phases of x for tiles [t0, t1), the first of which is row `row` of v; groups of elements
// `group` apart, lanes past C are zero. zeros: C zeros
template <class S>
void phase_inputs(const ConvParams& p, const Grid& g, const float* x, const float* zeros,
                  int64_t t0, int64_t t1, float* v, int64_t row, S s, int64_t group) {
  const int64_t C = p.channels;
  for (int64_t t = t0; t < t1; ++t, ++row) {
    const int64_t n = t / (g.rows * g.cols), ti = t / g.cols % g.rows, tj = t % g.cols;
    const float* at[9][9];
    pixels<9>(x, zeros, n, p.in_h, p.in_w, C, 8 * ti - p.pad_h, 8 * tj - p.pad_w, at);
    const int64_t next = next_tile(g, t, p.in_h, p.in_w, C, 8);
    for (int64_t c = 0; c < C; c += kLanes) {
      const Later l = later(c, C, next, s, group, row);
      const auto put = put_of(v + s.place(c, group), s, row, l);
      if (c + kLanes <= C)
        input_vector<true>(at, c, kLanes, l.pixel, put);
      else
        input_vector<false>(at, c, (int)(C - c), l.pixel, put);
    }
  }
}

// y (+ bias, ReLU) for tiles [t0, t1) from their sums m, `channels` filters from y's on
void phase_outputs(const ConvParams& p, const Grid& g, const float* m, Phases s, int64_t t0,
                   int64_t t1, const float* bias, float* y, int64_t channels) {
  const bool relu = p.activation == kConvRelu;
  for (int64_t t = t0; t < t1; ++t) {
    const int64_t n = t / (g.rows * g.cols), ti = t / g.cols % g.rows, tj = t % g.cols;
    const int64_t row = ti * 4, col = tj * 4, pitch = p.out_w * p.filters;
    const int64_t rows = min64(4, p.out_h - row), cols = min64(4, p.out_w - col);
    float* to = y + ((n * p.out_h + row) * p.out_w + col) * p.filters;
    for (int64_t k = 0; k < channels; k += kLanes) {
      const int lanes = (int)min64(kLanes, channels - k);
      const Vectors<const float> q(m + (t - t0) * s.ld + k, s);
      PV d[4][5], r[4][4], e[5], f[4];
#pragma GCC unroll 5
      for (int j = 0; j < 5; ++j) {
#pragma GCC unroll 5
        for (int i = 0; i < 5; ++i) e[i] = load(q.at(i, j));
        Poly::output(e, f);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) d[i][j] = f[i] + load(q.at(5 + i, j));
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) Poly::output(d[i], r[i]);
      const PV b = bias ? load_n(bias + k, lanes) : PV{};
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 5
        for (int i = 0; i < 5; ++i) e[i] = load(q.at(i, 5 + j));
        Poly::output(e, f);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          PV z = r[i][j] + (f[i] + load(q.at(5 + i, 5 + j))) + b;
          if (relu) z = max(PV{}, z);
          float* o = to + i * pitch + j * p.filters + k;
          if (lanes == kLanes && rows == 4 && cols == 4)
            store(o, z);
          else if (i < rows && j < cols)
            store_n(o, z, lanes);
        }
      }
    }
  }
}

template <bool Full, class Put>
GS_INLINE void gradient_vector(const float* const (&at)[4][4], int64_t k, int lanes, int64_t soon,
                               const Put put) {
  soon = anew(k + soon);
  k = anew(k);
  PV y[4][4], d[5][4], e[4], r[2][5];
#pragma GCC unroll 2
  for (int j = 0; j < 4; j += 2) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        __builtin_prefetch(at[i][j + h] + soon, 0, 3);
        y[i][j + h] = e[i] = take<Full>(at[i][j + h] + k, lanes);
      }
      Poly::output_adjoint(e, r[h]);
#pragma GCC unroll 5
      for (int i = 0; i < 5; ++i) d[i][j + h] = r[h][i];
    }
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) put.two(i, 5 + j, false, r[0][i], r[1][i]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 4; i += 2) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) Poly::output_adjoint(y[i + h], r[h]);
#pragma GCC unroll 5
    for (int j = 0; j < 5; ++j) put.two(5 + i, j, true, r[0][j], r[1][j]);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) put.two(5 + i, 5 + j, true, y[i][j], y[i + 1][j]);
  }
#pragma GCC unroll 5
  for (int i = 0; i < 5; ++i) {
    Poly::output_adjoint(d[i], r[0]);
#pragma GCC unroll 5
    for (int j = 0; j < 5; ++j) put.one(i, j, r[0][j]);
  }
}

// dm = the gradients of sums for tiles [t0, t1) and filters [k0, k1), the first of which is filter
// k0 of dm, that of tile t0 in its first row; groups of elements `group` apart, lanes past K are
// zero. zeros: K zeros
template <class S>
void phase_gradients(const ConvParams& p, const Grid& g, const float* dy, const float* zeros,
                     int64_t t0, int64_t t1, int64_t k0, int64_t k1, float* dm, S s,
                     int64_t group) {
  const int64_t K = p.filters;
  for (int64_t t = t0; t < t1; ++t) {
    const int64_t n = t / (g.rows * g.cols), ti = t / g.cols % g.rows, tj = t % g.cols;
    const float* at[4][4];
    pixels<4>(dy, zeros, n, p.out_h, p.out_w, K, 4 * ti, 4 * tj, at);
    const int64_t next = next_tile(g, t, p.out_h, p.out_w, K, 4);
    for (int64_t k = k0; k < k1; k += kLanes) {
      const Later l = later(k - k0, k1 - k0, next, s, group, t - t0);
      const auto put = put_of(dm + s.place(k - k0, group), s, t - t0, l);
      if (k + kLanes <= K)
        gradient_vector<true>(at, k, kLanes, l.pixel, put);
      else
        gradient_vector<false>(at, k, (int)(K - k), l.pixel, put);
    }
  }
}

// What dx += of a patch needs of its pixels: where they are, and what is added to each.
struct Patch {
  float* to[9][9];
  const float* from[9][9];  // the pixel, where an earlier tile has been; else the bias or zeros
  bool last_row, last_col;
  int64_t next;  // to the pixels of the next tile
};

template <bool Full>
GS_INLINE void patch_vector(const float* from, Phases s, const Patch& at, int64_t c, int lanes,
                            int64_t gate) {
  const Vectors<const float> q(from, s);
  c = anew(c);
  const int64_t next = anew(at.next);
  const Patch* patch = anew(&at);  // as the pointers of input_vector()
  auto put = [&](int i, int j, PV r) __attribute__((always_inline)) {
    float* to = patch->to[i][j] + c;
    if (j > 0) fetch_to_write(to + next);
    r += take<Full>(patch->from[i][j] + c, lanes);
    if (gate && (i < 8 || at.last_row) && (j < 8 || at.last_col))
      r = take<Full>(to + gate, lanes) <= PV{} ? PV{} : r;
    give<Full>(to, r, lanes);
  };
  PV d[5][5], e[5];
#pragma GCC unroll 5
  for (int j = 0; j < 5; ++j) {
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) e[i] = load(q.at(i, j));
    Poly::input_adjoint(e);
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) d[i][j] = e[i];
  }
#pragma GCC unroll 5
  for (int i = 0; i < 5; ++i) {
    Poly::input_adjoint(d[i]);
#pragma GCC unroll 5
    for (int j = 0; j < 5; ++j) put(2 * i, 2 * j, d[i][j]);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) e[i] = load(q.at(i, 5 + k));
    Poly::input_adjoint(e);
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) put(2 * i, 2 * k + 1, e[i]);
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) e[i] = load(q.at(5 + k, i));
    Poly::input_adjoint(e);
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i) put(2 * k + 1, 2 * i, e[i]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) put(2 * k + 1, 2 * i + 1, load(q.at(5 + k, 5 + i)));
  }
}

// dx of tiles [t0, t1), `channels` channels from dx's on, from dv. Tiles of an image come in order:
// a pixel is stored by the first that has it, and the one row and column that two tiles share is
// added to. bias (may be absent), zeros and sink: `channels` elements. gate (like dx, may be
// absent): the output of a ReLU, see winograd.h.
void phase_input_gradients(const ConvParams& p, const Grid& g, const float* dv, Phases s,
                           int64_t t0, int64_t t1, const float* bias, const float* zeros,
                           float* sink, float* dx, int64_t channels, const float* gate) {
  const int64_t C = p.channels;
  for (int64_t t = t0; t < t1; ++t) {
    const int64_t n = t / (g.rows * g.cols), ti = t / g.cols % g.rows, tj = t % g.cols;
    const int64_t row = 8 * ti - p.pad_h, col = 8 * tj - p.pad_w;
    Patch at;
    pixels<9>(dx, sink, n, p.in_h, p.in_w, C, row, col, at.to);
    const float* start = bias ? bias : zeros;
    for (int i = 0; i < 9; ++i)
      for (int j = 0; j < 9; ++j)
        at.from[i][j] = (i == 0 && ti > 0) || (j == 0 && tj > 0) ? at.to[i][j] : start;
    at.next = next_tile(g, t, p.in_h, p.in_w, C, 8);
    at.last_row = ti + 1 == g.rows;
    at.last_col = tj + 1 == g.cols;
    // at a border the gate follows pixel by pixel: the sink has none
    const bool inside = row >= 0 && col >= 0 && row + 9 <= p.in_h && col + 9 <= p.in_w;
    const float* q = dv + (t - t0) * s.ld;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int lanes = (int)min64(kLanes, channels - c);
      if (lanes == kLanes)
        patch_vector<true>(q + c, s, at, c, lanes, gate && inside ? gate - dx : 0);
      else
        patch_vector<false>(q + c, s, at, c, lanes, gate && inside ? gate - dx : 0);
    }
    if (!gate || inside) continue;
    for (int i = 0; i < 9; ++i)
      for (int j = 0; j < 9; ++j) {
        float* to = at.to[i][j];
        if (to == sink || (i == 8 && !at.last_row) || (j == 8 && !at.last_col)) continue;
        for (int64_t c = 0; c < channels; c += kLanes) {
          const int lanes = (int)min64(kLanes, channels - c);
          const PV y = load_n(to + (gate - dx) + c, lanes);
          store_n(to + c, y <= PV{} ? PV{} : load_n(to + c, lanes), lanes);
        }
      }
  }
}

// Pixels of dx of images [n0, n1) that no tile has: those behind the last patch.
void rest_of_images(const ConvParams& p, const Grid& g, int64_t n0, int64_t n1, const float* bias,
                    const float* zeros, float* dx, int64_t channels) {
  const int64_t h = max64(0, min64(p.in_h, 8 * g.rows + 1 - p.pad_h));
  const int64_t w = max64(0, min64(p.in_w, 8 * g.cols + 1 - p.pad_w));
  if (h == p.in_h && w == p.in_w) return;
  for (int64_t n = n0; n < n1; ++n)
    for (int64_t i = 0; i < p.in_h; ++i)
      for (int64_t j = i < h ? w : 0; j < p.in_w; ++j)
        memcpy(dx + ((n * p.in_h + i) * p.in_w + j) * p.channels, bias ? bias : zeros,
               (size_t)channels * sizeof(float));
}

// The forms of an element's filters, of taps g, each `step` from the last; the next vector's are
// `pitch` behind.
GS_INLINE void form_vector(const PV (&g)[kPair][9], float* u, int64_t step, int64_t pitch) {
  auto put = [&](int f, PV v, PV w) __attribute__((always_inline)) {
    fetch_to_write(u + f * step + pitch);
    put_pairs(u + f * step, v, w);
  };
  constexpr int L = kPair - 1;
  u = anew(u);
  step = anew(step);
  PV r[kPair][6][3], e[kPair][5];
#pragma GCC unroll 2
  for (int h = 0; h < kPair; ++h)
#pragma GCC unroll 3
    for (int j = 0; j < 3; ++j) {
      Poly::filter(g[h][j], g[h][6 + j], e[0]);
#pragma GCC unroll 5
      for (int i = 0; i < 5; ++i) r[h][i][j] = e[0][i];
      r[h][5][j] = g[h][3 + j];
    }
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i) {
#pragma GCC unroll 2
    for (int h = 0; h < kPair; ++h) Poly::filter(r[h][i][0], r[h][i][2], e[h]);
#pragma GCC unroll 5
    for (int j = 0; j < 5; ++j) put(i * 6 + j, e[0][j], e[L][j]);
    put(i * 6 + 5, r[0][i][1], r[L][i][1]);
  }
}

// u[f][c - c0][k - k0] for the nv vectors of filters from k0 on: the operand of forward; filters
// and channels that do not exist give zeros. Rows are elements.
void forms(const ConvParams& p, const float* w, int64_t k0, int nv, int64_t c0, int64_t c1,
           float* u, Planes s) {
  constexpr int N = kLanes;
  const int64_t C = p.channels;
  for (int64_t c = c0; c < c1; c += N)
    for (int v = 0; v < nv; ++v) {
      const int64_t k = k0 + v * N;
      const int filters = (int)min64(N, p.filters - k), lanes = (int)min64(N, c1 - c);
      PV turned[9][N];
      for (int tap = 0; tap < 9; ++tap) {
        PV r[N];
        const float* q = w + (k * 9 + tap) * C + c;
        // too many streams for the hardware to foresee
        for (int i = 0; i < filters; ++i) __builtin_prefetch(q + i * 9 * C + 16, 0, kFetch);
        if (filters == N && lanes == N) {
#pragma GCC unroll 16
          for (int i = 0; i < N; ++i) r[i] = load(q + i * 9 * C);
        } else {
          for (int i = 0; i < N; ++i) r[i] = i < filters ? load_n(q + i * 9 * C, lanes) : PV{};
        }
        turn_pairs(r);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) turned[tap][i] = r[i];
      }
      for (int l = 0; l < lanes; l += kPair) {
        PV g[kPair][9];
#pragma GCC unroll 2
        for (int h = 0; h < kPair; ++h)
#pragma GCC unroll 9
          for (int tap = 0; tap < 9; ++tap) g[h][tap] = turned[tap][l + h];
        form_vector(g, u + (c - c0 + l) / kPair * s.ld + v * N, s.step, s.ld);
      }
    }
}

// u[f][k - k0][c - c0] for the nv vectors of channels from c0 on: the operand of backward-data
void forms_backward(const ConvParams& p, const float* w, int64_t c0, int nv, int64_t k0, int64_t k1,
                    float* u, Planes s) {
  const int64_t C = p.channels;
  for (int64_t k = k0; k < k1; k += kPair)
    for (int v = 0; v < nv; ++v) {
      const int64_t c = c0 + v * kLanes;
      const int lanes = (int)min64(kLanes, C - c);
      const float* q = w + k * 9 * C + c;
      PV g[kPair][9];
#pragma GCC unroll 2
      for (int h = 0; h < kPair; ++h)
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap, q += C) {
          __builtin_prefetch(q + 9 * kPair * C, 0, kFetch);
          g[h][tap] = k + h >= k1 ? PV{} : lanes == kLanes ? load(q) : load_n(q, lanes);
        }
#pragma GCC unroll 9
      for (int tap = 0; tap < 9; ++tap) join_pairs(g[0][tap], g[kPair - 1][tap]);
      form_vector(g, u + (k - k0) / kPair * s.ld + v * kLanes, s.step, s.ld);
    }
}

// dw of filters [k0, k1), `channels` channels from dw's on, from du[f][k - k0][c]
void form_gradients(const ConvParams& p, const float* du, Planes s, int64_t k0, int64_t k1,
                    float* dw, int64_t channels) {
  const int64_t C = p.channels;
  for (int64_t k = k0; k < k1; ++k)
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int lanes = (int)min64(kLanes, channels - c);
      const float* q = du + (k - k0) * s.ld + c;
      PV r[3][6], e[5];
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
#pragma GCC unroll 5
        for (int i = 0; i < 5; ++i) e[i] = load(q + (i * 6 + j) * s.step);
        Poly::filter_adjoint(e, r[0][j], r[2][j]);
        r[1][j] = load(q + (30 + j) * s.step);
      }
      float* o = dw + k * 9 * C + c;
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        PV g0, g2;
#pragma GCC unroll 5
        for (int j = 0; j < 5; ++j) e[j] = r[i][j];
        Poly::filter_adjoint(e, g0, g2);
        store_n(o + i * 3 * C, g0, lanes);
        store_n(o + (i * 3 + 1) * C, r[i][5], lanes);
        store_n(o + (i * 3 + 2) * C, g2, lanes);
      }
    }
}

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
