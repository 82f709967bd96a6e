// What softmax and cross-entropy share: sweeps over a row, and rows as lanes.
//
// A row of float32 passes in one sweep, which does three things at once: exp and sum of this row,
// the maximum of the next one, and the results of the one before, whose exp lies in the caches; the
// row after the next is fetched. So loads, arithmetic (12 to 14 operations a vector, 7 cycles) and
// stores overlap, where one after the other they cost their sum. A row of more than 4096 elements
// passes block by block, each relative to the largest element so far, and its exp waits for the
// results in the second level of cache. Short rows pass as flat.h says, in instruction sets without
// its permutations through the lanes, a row a lane. Float64, where exp takes most of the time, and
// rows too long for the second level go step by step.
#pragma once
#include "simd/transpose.h"
#include "simd/vmath.h"
#include "softmax.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kTask = 16384;  // elements of one task
constexpr int64_t kBlock = 1024;  // elements that one level of a sum takes
constexpr int64_t kNarrow = 32;   // longest row that is worked on as one lane
constexpr int64_t kFlat = 128;    // and in the flat array of flat.h

// exp(x) for x <= 0 (and NaN), within 1.5 units
GS_INLINE vf exp_below(vf x) {
  x = max(set1(-104.0f), x);
#if defined(__AVX512F__)
  // x = n ln 2 / 16 + r: 2^(n/16) from a table, a cubic for the rest; 11 operations, not 14. The
  // square's factor, 1/2 + 0.83 (ln 2 / 32)^2 / 24, levels what the fourth power leaves: 2e-9
  alignas(64) static const float table[16] = {1.0f,        1.04427378f, 1.09050773f, 1.13878863f,
                                              1.18920712f, 1.24185781f, 1.29683955f, 1.35425555f,
                                              1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
                                              1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
  const vf magic = set1(786432.0f);  // 1.5 * 2^19: adding it rounds to sixteenths
  vf t = fma(x, set1(1.44269504f), magic), n = t - magic;
  vf r = fnma(n, set1(0.693359375f), x);
  r = fnma(n, set1(-2.12194440e-4f), r);
  vf e = (vf)_mm512_permutexvar_ps((__m512i)t, _mm512_load_ps(table));
  vf p = fma(r * r, fma(set1(0.16666667f), r, set1(0.50001618f)), r);
  return (vf)_mm512_scalef_ps((__m512)fma(e, p, e), (__m512)n);  // 2^floor(n)
#elif defined(__FMA__)
  // 2^(n + 64) is a normal number, as is the result times it: rounded once, by the last product
  const vf magic = set1(12583103.0f);  // 1.5 * 2^23 + 127 + 64
  vf t = fma(x, set1(1.44269504f), magic), n = t - magic;
  vf r = fnma(n, set1(0.693359375f), x);
  r = fnma(n, set1(-2.12194440e-4f), r);
  vf p = fma(set1(0.0013818393f), r, set1(0.008368719f));
  p = fma(p, r, set1(0.041668296f));
  p = fma(p, r, set1(0.16666521f));
  p = fma(p, r, set1(0.49999994f));
  p = fma(fma(p, r, set1(1.0f)), r, set1(1.0f));
  return p * (vf)((vu)t << 23) * 5.421010862427522e-20f;
#else
  vi n;
  vf nf, p = exp_reduced(x, &n, &nf);
  return scale2(1.0f + p, n, nf);
#endif
}
GS_INLINE vd exp_below(vd x) { return exp(x); }

// total() by shuffles, to the same bits: through memory it waits for the stores.
template <class T>
GS_INLINE T total_of(const Sum16<T>& s) {
  constexpr int W = Sum16<T>::W;
  typename simd<T>::V a[W];
#pragma GCC unroll 8
  for (int i = 0; i < W; ++i) a[i] = s.v[i];
#pragma GCC unroll 4
  for (int h = W / 2; h > 0; h /= 2)
#pragma GCC unroll 4
    for (int i = 0; i < h; ++i) a[i] += a[i + h];
  return hsum(a[0]);
}

GS_INLINE int64_t rows_per_task(int64_t rows, int64_t n) {
  int64_t g = kTask / (n > 0 ? n : 1);
  g = g < 1 ? 1 : g;
  int64_t least = (rows + 4095) / 4096;  // at most 4096 tasks: their partial results stay few
  g = g > least ? g : least;
  return g > 16 ? g & ~(int64_t)15 : g;  // whole groups of flat.h
}

template <class T>
GS_INLINE typename simd<T>::I first_lanes(int n) {
  return iota<T>() < set1((typename simd<T>::S)n);
}

// The first n lanes from p, the others `fill`
template <class T>
GS_INLINE typename simd<T>::V load_or(const T* p, int n, T fill) {
  return first_lanes<T>(n) ? load_n(p, n) : set1(fill);
}

template <class T>
GS_INLINE T row_max(const T* x, int64_t n) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const T low = -(T)__builtin_inf();
  V m0 = set1(low), m1 = m0, m2 = m0, m3 = m0;
  int64_t i = 0;
  for (; i + 4 * N <= n; i += 4 * N) {
    m0 = max(m0, load(x + i));
    m1 = max(m1, load(x + i + N));
    m2 = max(m2, load(x + i + 2 * N));
    m3 = max(m3, load(x + i + 3 * N));
  }
  for (; i + N <= n; i += N) m0 = max(m0, load(x + i));
  if (i < n) m1 = max(m1, load_or(x + i, (int)(n - i), low));
  return hmax(max(max(m0, m1), max(m2, m3)));
}

// Sum over i < n of f(i, count): f gives the vector of elements i .. i + count - 1, zero past
// count.
template <class T, class F>
GS_INLINE T row_sum(int64_t n, F f) {
  constexpr int N = simd<T>::N;
  constexpr int W = Sum16<T>::W;
  Sum16<T> total;
  total.clear();
  for (int64_t b = 0; b < n; b += kBlock) {
    int64_t e = b + kBlock < n ? b + kBlock : n, i = b;
    Sum16<T> s;
    s.clear();
    for (; i + 16 <= e; i += 16) {
#pragma GCC unroll 8
      for (int j = 0; j < W; ++j) s.v[j] += f(i + j * N, N);
    }
#pragma GCC unroll 8
    for (int j = 0; j < W; ++j) {
      int64_t left = e - i - j * N;
      if (left > 0) s.v[j] += f(i + j * N, left < N ? (int)left : N);
    }
#pragma GCC unroll 8
    for (int j = 0; j < W; ++j) total.v[j] += s.v[j];
  }
  return total_of(total);
}

// f(i, count) for every vector of a row
template <class T, class F>
GS_INLINE void row_each(int64_t n, F f) {
  constexpr int N = simd<T>::N;
  int64_t i = 0;
  for (; i + N <= n; i += N) f(i, N);
  if (i < n) f(i, (int)(n - i));
}

template <class T>
GS_INLINE typename simd<T>::V get(const T* p, int n) {
  return n == simd<T>::N ? load(p) : load_n(p, n);
}
template <class T>
GS_INLINE void put(T* p, typename simd<T>::V v, int n) {
  if (n == simd<T>::N)
    store(p, v);
  else
    store_n(p, v, n);
}
template <class T>
GS_INLINE typename simd<T>::V keep(typename simd<T>::V v, int n) {
  return n == simd<T>::N ? v : (first_lanes<T>(n) ? v : typename simd<T>::V{});
}

constexpr int64_t kRoom = 4096;  // elements of a block in the first level of cache

// What a row that goes past the caches leaves of its last line: it waits for the head of the next
// row, so that lines go out whole. Half a line, written as it is, has to be read from memory first:
// at rows of 1000 elements, one line of 62, a quarter of a sweep's time.
template <class T>
struct Edge {
  static constexpr int N = simd<T>::N;
  alignas(64) T line[N];
  T* to;      // where the line begins in the row
  int count;  // elements that wait
  GS_MEMBER Edge() : to(nullptr), count(0) {}
  GS_MEMBER void flush() {
    if (count) store_n(to, load(line), count);
    count = 0;
  }
  // the last c elements, fewer than a line, of a row; they go to y
  GS_MEMBER void tail(T* y, typename simd<T>::V v, int c) {
    flush();
    store(line, v);
    to = y;
    count = c;
  }
  // the first k elements of a row, which end a line
  GS_MEMBER void head(T* y, typename simd<T>::V v, int k) {
    if (count + k == N && to + count == y) {
      store_n(line + count, v, k);
      write<true>(to, load(line));
      count = 0;
    } else {
      store_n(y, v, k);
    }
  }
};

// y[i ..] = f(i, count) for every vector of a row; past the caches when `stream`
template <class T, class F>
GS_INLINE void row_to(bool stream, T* y, int64_t n, F f) {
  constexpr int N = simd<T>::N;
  int64_t i = 0;
  if (stream) {
    int64_t k = (int64_t)((0 - (uintptr_t)y) % GS_VBYTES / sizeof(T));
    k = k < n ? k : n;
    if (k) store_n(y, f(0, (int)k), (int)k);
    for (i = k; i + N <= n; i += N) write<true>(y + i, f(i, N));
  } else {
    for (; i + N <= n; i += N) store(y + i, f(i, N));
  }
  if (i < n) store_n(y + i, f(i, (int)(n - i)), (int)(n - i));
}

// How far ahead of the last sweep over a row of n elements the next one is fetched.
template <class T>
GS_INLINE int64_t next_row(int64_t n) {
  int64_t ahead = kAhead / (int64_t)sizeof(T);
  return n > ahead ? n : ahead;
}

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};
template <bool k>
struct Flag {
  static constexpr bool value = k;
};

// What becomes of exp: nothing; e r.
struct Nothing {
  static constexpr bool kAny = false;
  GS_MEMBER vf operator()(int64_t, int) const { return vf{}; }
};
struct Scaled {
  static constexpr bool kAny = true;
  const float* e;
  float r;
  GS_MEMBER vf operator()(int64_t i, int k) const { return get(e + i, k) * r; }
};

// e[i] = exp(x[i] - m) where kKeep, returns their sum; *most is the maximum of `next` (n), and what
// lies n further is fetched; y[i] = out(i, count) for the row before, if y, past the caches if
// `edge`. All of n elements, N at least.
template <bool kKeep, class Out>
__attribute__((noinline)) float sweep(const float* x, float* e, float m, int64_t n,
                                      const float* next, float* most, float* y, Edge<float>* edge,
                                      Out out) {
  constexpr int N = simd<float>::N;
  y = Out::kAny ? y : nullptr;
  const bool past = edge != nullptr;
  const int64_t k = y && past ? (int64_t)((0 - (uintptr_t)y) % GS_VBYTES / sizeof(float)) : 0;
  const int64_t ahead = next_row<float>(n), full = y ? n - k : 0;
  const float low = -__builtin_inff();
  vf s[4] = {}, total[4] = {}, h[4] = {set1(low), set1(low), set1(low), set1(low)};
  if (k) edge->head(y, out(0, (int)k), (int)k);
  auto four = [&](int64_t i, auto with) __attribute__((always_inline)) {
    constexpr bool kResults = decltype(with)::value && Out::kAny;
    vf v[4], late[4];  // no load behind a store: the compiler would not move it up
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const int64_t at = i + j * N;
      __builtin_prefetch(next + at + ahead);
      v[j] = load(x + at) - m;
      h[j] = max(h[j], load(next + at));
      if (kResults) late[j] = out(k + at, N);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) v[j] = exp_below(v[j]);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      s[j] += v[j];
      if (kKeep) store(e + i + j * N, v[j]);
    }
    if (kResults) {
      float* to = y + k + i;
      if (past) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) write<true>(to + j * N, late[j]);
      } else {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) store(to + j * N, late[j]);
      }
    }
    // a sum takes 64 addends in a row at most, as 16 lanes in blocks of kBlock do
    if (N < 16 && i / (4 * N) % 64 == 63)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) total[j] += s[j], s[j] = vf{};
  };
  int64_t i = 0;
  for (; i + 4 * N <= full; i += 4 * N) four(i, Flag<true>());
  int64_t done = k + i;                                       // results
  for (; i + 4 * N <= n; i += 4 * N) four(i, Flag<false>());  // where results end earlier by k
  for (; i + N <= n; i += N) {
    vf v = exp_below(load(x + i) - m);
    if (kKeep) store(e + i, v);
    s[0] += v;
    h[0] = max(h[0], load(next + i));
  }
  if (i < n) {
    const int c = (int)(n - i);
    vf v = keep<float>(exp_below(load_n(x + i, c) - m), c);
    if (kKeep) store_n(e + i, v, c);
    s[1] += v;
    h[1] = max(h[1], load_or(next + i, c, low));
  }
  if (y) {
    for (; done + N <= n; done += N) write(past, y + done, out(done, N));
    if (done < n) {
      const int c = (int)(n - done);
      if (past)
        edge->tail(y + done, out(done, c), c);
      else
        store_n(y + done, out(done, c), c);
    }
  }
  *most = hmax(max(max(h[0], h[1]), max(h[2], h[3])));
#pragma GCC unroll 4
  for (int j = 0; j < 4 && N < 16; ++j) s[j] += total[j];
  return hsum((s[0] + s[1]) + (s[2] + s[3]));
}

constexpr int64_t kPart = 2048;        // elements of a block of a long row
constexpr int64_t kLong = 64 * kPart;  // longest row whose exp stays in the second level
// A row as it is swept: whole up to kRoom elements, else in blocks, of which the last takes the
// rest and so is the longest.
struct Cut {
  int64_t n, size, blocks;
  explicit GS_MEMBER Cut(int64_t n_) : n(n_), size(n_), blocks(1) {
    if (n > kRoom) size = kPart, blocks = n / kPart;
  }
  GS_MEMBER int64_t count(int64_t b) const { return b + 1 < blocks ? size : n - b * size; }
  // Elements of a row whose maximum is known when its first block is swept.
  GS_MEMBER int64_t ahead() const { return count(blocks - 1); }
};
// Floats that a member needs for the exp of two rows.
GS_INLINE int64_t row_scratch(int64_t n) {
  return n > kRoom && n <= kLong ? 2 * ((n + 15) & ~(int64_t)15) : 0;
}

// exp of the row x by blocks: e is relative to base[b] in block b. Returns the sum relative to the
// maximum *m. *most is the maximum of the first c.ahead() elements, then of those of the row
// `after`. Meanwhile y is written, by outs(b), block by block.
template <bool kKeep, class F>
GS_INLINE float row_blocks(const Cut& c, const float* x, float* e, float* base, float* m,
                           const float* after, float* most, float* y, Edge<float>* edge, F outs) {
  if (c.blocks == 1) {
    *m = base[0] = *most;
    return sweep<kKeep>(x, e, *m, c.n, after, most, y, edge, outs(0));
  }
  const float low = -__builtin_inff();
  float top = low, s = 0;
  for (int64_t b = 0; b < c.blocks; ++b) {
    const int64_t n = c.count(b), i = b * c.size;
    const bool last = b + 1 == c.blocks;
    const float* next = last ? after : x + i + n;
    if (*most > top) {
      s *= exp_below(set1(top - *most))[0];
      top = *most;
    }
    base[b] = top > low ? top : 0;
    s += sweep<kKeep>(x + i, e + i, base[b], n, next, most, y ? y + i : y, edge, outs(b));
    const int64_t more = last ? 0 : c.count(b + 1) - n;
    if (more > 0) {
      const float v = row_max(next + n, more);
      *most = v > *most ? v : *most;
    }
  }
  *m = top;
  return s;
}
// exp(base - m), by which block b has yet to be multiplied.
GS_INLINE float block_factor(const Cut& c, const float* base, int64_t b, float m) {
  return c.blocks == 1 || base[b] == m ? 1.0f : exp_below(set1(base[b] - m))[0];
}

// The tasks of this member: begin(task, first row), row(row, the next one or the same), end(task).
template <class B, class F, class E>
GS_INLINE void member_rows(const Ctx* ctx, int64_t rows, int64_t group, B begin, F row, E end) {
  for (int64_t b = ctx->tid * group; b < rows; b += ctx->nt * group) {
    const int64_t e = b + group < rows ? b + group : rows, after = b + ctx->nt * group;
    begin(b / group, b);
    for (int64_t r = b; r + 1 < e; ++r) row(r, r + 1);
    row(e - 1, after < rows ? after : e - 1);
    end(b / group);
  }
}

template <class T>
GS_INLINE T log_of(T s) {
  return sizeof(T) == 4 ? (T)::logf((float)s) : (T)::log((double)s);
}

// exp_below of the first n lanes, zero behind them
GS_INLINE vf exp_first(vf x, int n) { return keep<float>(exp_below(x), n); }
GS_INLINE vd exp_first(vd x, int n) {
  vd y = {};
  for (int i = 0; i < n; ++i) y[i] = ::exp(x[i]);
  return y;
}

// The maximum m of a row of any length, and the sum of exp(x - m), which goes to e (or nowhere).
template <class T>
__attribute__((noinline)) T row_exp(const T* x, T* e, int64_t n, T* maximum) {
  const T m = *maximum = row_max(x, n);
  if (sizeof(T) == 8 && n <= kNarrow) {
    T s = 0;
    for (int64_t i = 0; i < n; ++i) {
      const T v = (T)::exp((double)(x[i] - m));
      s += v;
      if (e) e[i] = v;
    }
    return s;
  }
  return row_sum<T>(
      n, [=](int64_t i, int k) __attribute__((always_inline)) {
        auto v = exp_first(get(x + i, k) - m, k);
        if (e) put(e + i, v, k);
        return v;
      });
}

#if !defined(__AVX2__)
// ---- narrow rows: N rows at once, a row a lane

// out[c] = element c of rows 0 .. N - 1 of x (count, n); lanes past count repeat the last row.
// out has room for n rounded up to a multiple of N.
template <class T>
GS_INLINE void load_rows(const T* x, int64_t n, int count, typename simd<T>::V* out) {
  constexpr int N = simd<T>::N;
  for (int64_t c = 0; c < n; c += N) {
    typename simd<T>::V v[N];
    int k = n - c < N ? (int)(n - c) : N;
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r) {
      const T* p = x + (r < count ? r : count - 1) * n + c;
      v[r] = k == N ? load(p) : load_n(p, k);
    }
    transpose<T>(v);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) out[c + i] = v[i];
  }
}

// The way back: rows 0 .. count - 1 of y (count, n).
template <class T>
GS_INLINE void store_rows(const typename simd<T>::V* in, int64_t n, int count, T* y) {
  constexpr int N = simd<T>::N;
  for (int64_t c = 0; c < n; c += N) {
    typename simd<T>::V v[N];
    int k = n - c < N ? (int)(n - c) : N;
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = in[c + i];
    transpose<T>(v);
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r)
      if (r < count) {
        if (k == N)
          store(y + r * n + c, v[r]);
        else
          store_n(y + r * n + c, v[r], k);
      }
  }
}

// Rows 0 .. count - 1 of narrow rows, N at a time, by f(first, count, result), whose results go to
// y: when `stream`, by way of a block in the first level of cache, because a row's stores are
// narrower than a line.
template <class T, class F>
GS_INLINE void narrow_rows(int64_t count, int64_t n, T* y, bool stream, F f) {
  constexpr int N = simd<T>::N;
  alignas(64) T room[kRoom];
  const int64_t chunk = stream ? kRoom / n / N * N : count;
  for (int64_t r = 0; r < count; r += chunk) {
    const int64_t e = r + chunk < count ? r + chunk : count;
    T* to = stream ? room : y ? y + r * n : y;
    for (int64_t i = r; i < e; i += N)
      f(i, (int)(e - i < N ? e - i : N), to ? to + (i - r) * n : to);
    if (stream) {
      const T* from = room;
      row_to(
          true, y + r * n, (e - r) * n, [=](int64_t i, int k) __attribute__((always_inline)) {
            return get(from + i, k);
          });
    }
  }
}

// z[c] -= max over c; e[c] = exp(z[c]); returns the sum of e
template <class T>
GS_INLINE typename simd<T>::V exp_lanes(typename simd<T>::V* z, typename simd<T>::V* e, int64_t n) {
  using V = typename simd<T>::V;
  V m = z[0], s = {};
  for (int64_t c = 1; c < n; ++c) m = max(m, z[c]);
  for (int64_t c = 0; c < n; ++c) {
    z[c] -= m;
    e[c] = exp_below(z[c]);
    s += e[c];
  }
  return s;
}

#endif

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
