// Gradients of max and average pooling, regular and adaptive, see pool.h.
//
// dy (n, oh, ow, c) and, for max, its index to dx (n, h, w, c); the floor is memory, each once.
// Windows that do not overlap write each element of dx once, row by row; otherwise each element of
// dx looks at the windows that hold it, in order: nothing is scattered, so there are no atomics and
// no zero fill. Averages over 3 columns at stride 1 are the forward sum over dy.
//
// With few channels blocks of pixels are spread by permutations, as forward.cpp collects them;
// overlapping windows of few channels scatter within a sample, one task a sample.
#include "pool/windows.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct Backward : Lanes<T> {
  using typename Lanes<T>::V;
  using typename Lanes<T>::I;
  using typename Lanes<T>::S;
  using Lanes<T>::N;
  using Lanes<T>::kFew;
  using typename Lanes<T>::Block;
  using Lanes<T>::pick;
  using Lanes<T>::divisor;
  using Lanes<T>::uniform;
  using Lanes<T>::slide_row;
  using Lanes<T>::slides;
  using Lanes<T>::each_row;
  using Lanes<T>::bytes_in;

  // ---- backward, windows side by side: each writes its own elements of dx
  // taps a0 .. a1, b0 .. b1 of one window; dx: tap (0, 0)
  template <int K, bool MAX, bool FULL>
  static GS_MEMBER void tile_vec(Way way, const T* dy, const uint8_t* index, T* dx, int64_t ls,
                                 int64_t ps, int a0, int a1, int b0, int b1, int kw, T inv, int n) {
    fetch(dy);
    V g = get<FULL>(dy, n);
    I at = {};
    if (MAX)
      at = get_index<T, FULL>(index, n);
    else
      g *= set1(inv);
    if (K) {
#pragma GCC unroll 3
      for (int a = 0; a < K; ++a)
#pragma GCC unroll 3
        for (int b = 0; b < K; ++b)
          put<FULL>(way, dx + a * ls + b * ps, MAX ? (at == set1((S)(a * K + b)) ? g : V{}) : g, n);
    } else {
      for (int a = a0; a < a1; ++a)
        for (int b = b0; b < b1; ++b)
          put<FULL>(way, dx + a * ls + b * ps, MAX ? (at == set1((S)(a * kw + b)) ? g : V{}) : g,
                    n);
    }
  }
  template <int K, bool MAX>
  static GS_MEMBER void tile_window(Way way, const T* dy, const uint8_t* index, T* dx, int64_t c,
                                    int64_t ls, int64_t ps, int a0, int a1, int b0, int b1, int kw,
                                    T inv) {
    int64_t j = 0;
    for (; j + N <= c; j += N)
      tile_vec<K, MAX, true>(way, dy + j, index + j, dx + j, ls, ps, a0, a1, b0, b1, kw, inv, N);
    if (j < c)
      tile_vec<K, MAX, false>(way, dy + j, index + j, dx + j, ls, ps, a0, a1, b0, b1, kw, inv,
                              (int)(c - j));
  }
  // Few channels: a block of pixels of dy and the vectors of dx that their windows' taps in one
  // row are.
  struct Spread {
    static constexpr int kMost = 4;
    I from[kMost], tap[kMost];  // lane of dy and column of the window of each lane of dx
    int vectors, lanes;         // lanes: of the last vector

    GS_MEMBER bool init(const PoolParams& p, const Block& block) {
      const int total = (int)(block.pixels * p.kw * p.c), c = (int)p.c, kw = (int)p.kw;
      vectors = (total + N - 1) / N;
      if (vectors < 2 || vectors > kMost || block.begin >= block.end) return false;
      lanes = total - (vectors - 1) * N;
      for (int v = 0; v < vectors; ++v) {
        S f[N], t[N];
        for (int l = 0; l < N; ++l) {
          int m = v * N + l, w = m / c;
          f[l] = (S)(m < total ? w / kw * c + m % c : 0);
          t[l] = (S)(w % kw);
        }
        memcpy(&from[v], f, sizeof f);
        memcpy(&tap[v], t, sizeof t);
      }
      return true;
    }
  };
  // Blocks of dy from pixel j on, as many as fit before `end` (the last may overlap the one
  // before); to: the row of dx at the first. base: the tap of the row's first column.
  template <bool MAX, int M>
  static void spread_row(const Spread& s, const Block& block, Way way, int64_t c, int kw,
                         int64_t count, const T* dy, const uint8_t* index, T* to, int base, T inv) {
    const int n = block.lanes;
    I from[M], tap[M];
#pragma GCC unroll 4
    for (int v = 0; v < M; ++v) {
      from[v] = s.from[v];
      tap[v] = s.tap[v] + set1((S)base);
    }
    const bool past = way == kPast && n == N && s.lanes == N && count % block.pixels == 0 &&
                      ((uintptr_t)to & (GS_VBYTES - 1)) == 0;
    for (int64_t j = 0; j < count; j += block.pixels) {
      if (j + block.pixels > count) j = count - block.pixels;
      const T* d = dy + j * c;
      T* out = to + j * kw * c;
      fetch(d);
      V g = n == N ? load(d) : load_n(d, n);
      I at = {};
      if (MAX)
        at = n == N ? get_index<T, true>(index + j * c, N) : get_index<T, false>(index + j * c, n);
      else
        g *= set1(inv);
#pragma GCC unroll 4
      for (int v = 0; v < M; ++v) {
        V e = pick(g, from[v]);
        if (MAX) e = pick(at, from[v]) == tap[v] ? e : V{};
        if (past)
          write<true>(out + v * N, e);
        else if (v < M - 1 || s.lanes == N)
          store(out + v * N, e);
        else
          store_n(out + v * N, e, s.lanes);
        if (way == kOwn) own(out + v * N);
      }
    }
  }
  template <bool MAX>
  static void tile_row(const Geometry& g, const Block* block, const Spread* spread, Way way,
                       bool same, const T* dy, const uint8_t* index, T* dx, int64_t i) {
    const PoolParams& p = g.p;
    const int64_t line = p.w * p.c, c = p.c;
    const int a0 = g.y.first[i], a1 = g.y.last[i], kw = (int)p.kw;
    const T one = MAX ? (T)0 : 1 / divisor(g, i, 0);
    int64_t begin = 0, end = 0;  // columns of y that go by blocks
    if (spread && (MAX || same)) {
      begin = block->begin;
      end = block->end;
      const int64_t at = g.x.start[begin] * c, count = end - begin;
      for (int a = a0; a < a1; ++a) {
        T* to = dx + (g.y.start[i] + a) * line + at;
        const T* d = dy + begin * c;
        const uint8_t* ix = MAX ? index + begin * c : index;
        if (spread->vectors == 2)
          spread_row<MAX, 2>(*spread, *block, way, c, kw, count, d, ix, to, a * kw, one);
        else if (spread->vectors == 3)
          spread_row<MAX, 3>(*spread, *block, way, c, kw, count, d, ix, to, a * kw, one);
        else
          spread_row<MAX, 4>(*spread, *block, way, c, kw, count, d, ix, to, a * kw, one);
      }
    }
    const bool two = p.kh == 2 && kw == 2 && a0 == 0 && a1 == 2;
    for (int64_t j = 0; j < p.ow; ++j) {
      if (j == begin) j = end;
      if (j >= p.ow) break;
      int b0 = g.x.first[j], b1 = g.x.last[j];
      const uint8_t* ix = MAX ? index + j * c : (const uint8_t*)dx;
      T* out = dx + (int64_t)g.y.start[i] * line + (int64_t)g.x.start[j] * c;
      const T inv = MAX || same ? one : 1 / divisor(g, i, j);
      if (two && b0 == 0 && b1 == 2)
        tile_window<2, MAX>(way, dy + j * c, ix, out, c, line, c, a0, a1, b0, b1, 2, inv);
      else
        tile_window<0, MAX>(way, dy + j * c, ix, out, c, line, c, a0, a1, b0, b1, kw, inv);
    }
    // what no window covers: columns at the right, rows at the bottom
    int64_t right = g.x.start[p.ow - 1] + g.x.last[p.ow - 1], bottom = g.y.start[i] + a1;
    if (right < p.w)
      for (int64_t r = g.y.start[i] + a0; r < bottom; ++r)
        memset(dx + r * line + right * p.c, 0, (size_t)((p.w - right) * p.c) * sizeof(T));
    if (i == p.oh - 1 && bottom < p.h)
      memset(dx + bottom * line, 0, (size_t)((p.h - bottom) * line) * sizeof(T));
  }

  // ---- backward, any windows: each element of dx collects from the windows that hold it
  // acc += d where the index says tap
  static GS_MEMBER V add_hit(V acc, V d, const uint8_t* index, S tap) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_mask_add_ps(
          (__m512)acc,
          _mm_cmpeq_epi8_mask(_mm_loadu_si128((const __m128i*)index), _mm_set1_epi8((char)tap)),
          (__m512)acc, (__m512)d);
#endif
    return acc + (get_index<T, true>(index, N) == set1(tap) ? d : V{});
  }
  static GS_MEMBER V add_hit(V acc, V d, const int32_t* index, S tap) {
    return acc + (get_index<T, true>(index, N) == set1(tap) ? d : V{});
  }
  // B vectors of channels of one pixel (h, w) of dx, dy and index: their image
  template <bool MAX, int B, bool FULL, class IX>
  static GS_MEMBER void collect(const Geometry& g, Way way, bool same, T inv, const T* dy,
                                const IX* index, int64_t h, int64_t w, T* dx, int n) {
    const PoolParams& p = g.p;
    V acc[B];
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) acc[v] = V{};
    const int j0 = g.x.lo[w], j1 = g.x.hi[w];
    for (int i = g.y.lo[h]; i < g.y.hi[h]; ++i) {
      int64_t a = h - g.y.start[i];
      if (p.dh != 1) {
        if (a % p.dh) continue;
        a /= p.dh;
      }
      int64_t at = ((int64_t)i * p.ow + j0) * p.c;
      for (int j = j0; j < j1; ++j, at += p.c) {
        int64_t b = w - g.x.start[j];
        if (p.dw != 1) {
          if (b % p.dw) continue;
          b /= p.dw;
        }
        const S tap = (S)(a * p.kw + b);
        const V f = set1(MAX || same ? inv : 1 / divisor(g, i, j));
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) {
          V d = get<FULL>(dy + at + v * N, n);
          if (!MAX)
            acc[v] += d * f;
          else if (FULL)
            acc[v] = add_hit(acc[v], d, index + at + v * N, tap);
          else
            acc[v] += get_index<T, false>(index + at + v * N, n) == set1(tap) ? d : V{};
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) put<FULL>(way, dx + v * N, acc[v], n);
  }
  template <bool MAX, class IX>
  static void collect_row(const Geometry& g, Way way, bool same, const T* dy, const IX* index,
                          int64_t h, T* dx) {
    const PoolParams& p = g.p;
    const T inv = MAX ? (T)0 : 1 / divisor(g, 0, 0);
    for (int64_t w = 0; w < p.w; ++w, dx += p.c) {
      int64_t k = 0;
      for (; k + 4 * N <= p.c; k += 4 * N)
        collect<MAX, 4, true>(g, way, same, inv, dy + k, index + k, h, w, dx + k, N);
      for (; k + N <= p.c; k += N)
        collect<MAX, 1, true>(g, way, same, inv, dy + k, index + k, h, w, dx + k, N);
      if (k < p.c)
        collect<MAX, 1, false>(g, way, same, inv, dy + k, index + k, h, w, dx + k, (int)(p.c - k));
    }
  }

  // ---- backward, few channels: scattered within a sample
  template <bool MAX, class IX>
  static void few_sample(const Geometry& g, const T* dy, const IX* index, T* dx) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c, size = p.h * line;
    memset(dx, 0, (size_t)size * sizeof(T));
    for (int64_t i = 0; i < p.oh; ++i)
      for (int64_t j = 0; j < p.ow; ++j) {
        int64_t base = g.y.start[i] * line + g.x.start[j] * p.c;
        T inv = MAX ? (T)0 : (T)1 / divisor(g, i, j);
        for (int64_t k = 0; k < p.c; ++k, ++dy) {
          if (MAX) {
            int64_t tap = *index++, a = tap / p.kw, b = tap - a * p.kw;
            int64_t at = base + a * p.dh * line + b * p.dw * p.c + k;
            if (a < p.kh && at >= 0 && at < size) dx[at] += *dy;
          } else {
            T v = *dy * inv;
            for (int a = g.y.first[i]; a < g.y.last[i]; ++a)
              for (int b = g.x.first[j]; b < g.x.last[j]; ++b)
                dx[base + a * line + b * p.c + k] += v;
          }
        }
      }
  }

  template <bool MAX, class IX>
  static void backward_ix(const Geometry& g, void* const* buf, const Ctx* ctx) {
    const PoolParams& p = g.p;
    const T* dy = (const T*)buf[0];
    const IX* index = (const IX*)buf[MAX ? 1 : 0];
    T* dx = (T*)buf[MAX ? 2 : 1];
    int64_t image = p.h * p.w * p.c, row = p.ow * p.c;
    const bool few = p.c < kFew, same = !MAX && uniform(g);
    // with padding the first window may be cut short, but every element still lies in one window at
    // most
    const bool tiled =
        !p.adaptive && p.dh == 1 && p.dw == 1 && p.sh == p.kh && p.sw == p.kw && sizeof(IX) == 1;
    Block block;
    Spread spread;
    if (few) block.init(g);
    const bool blocks = few && tiled && spread.init(p, block);
    if (few && !blocks) {
      for (int64_t t = ctx->tid; t < p.n; t += ctx->nt)
        few_sample<MAX>(g, dy + t * p.oh * row, index + t * p.oh * row, dx + t * image);
      return;
    }
    Way way = way_of(ctx, p.n * image * (int64_t)sizeof(T), dx, p.c * sizeof(T));
    // nothing to read: then stores are faster, as far as a cache shared by the cores may take them
    if (way == kPast && p.oh * p.ow * 16 < p.h * p.w &&
        p.n * image * (int64_t)sizeof(T) / 8 < ctx->stream)
      way = kOwn;
    if (tiled) {
      each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
        tile_row<MAX>(g, &block, blocks ? &spread : nullptr, way, same, dy + r * row,
                      (const uint8_t*)index + (MAX ? r * row : 0), dx + r / p.oh * image, r % p.oh);
      });
    } else {
      each_row(p.n * p.h, p.w * p.c * (int64_t)sizeof(T), ctx, [&](int64_t r) {
        const int64_t from = r / p.h * p.oh * row, h = r % p.h;
        T* to = dx + r * p.w * p.c;
        if (!MAX && same && slides(p)) {
          const V inv = set1((T)1 / divisor(g, 0, 0));
          const int lo = g.y.lo[h];
          slide_row(
              way, dy + from + lo * row, row, g.y.hi[h] - lo, p.c, p.ow, p.w, 2 - p.pw,
              to, [=](int64_t, V s) __attribute__((always_inline)) { return s * inv; });
        } else {
          collect_row<MAX>(g, way, same, dy + from, index + from, h, to);
        }
      });
    }
    if (way == kPast) write_fence();
  }
  static void max_backward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    if (g.p.index_bytes == 4)
      backward_ix<true, int32_t>(g, buf, ctx);
    else
      backward_ix<true, uint8_t>(g, buf, ctx);
  }
  static void avg_backward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    backward_ix<false, uint8_t>(g, buf, ctx);
  }
};

const KernelEntry entries[] = {
    {"max_pool_backward", kF32, Backward<float>::max_backward, plan},
    {"max_pool_backward", kF64, Backward<double>::max_backward, plan},
    {"avg_pool_backward", kF32, Backward<float>::avg_backward, plan},
    {"avg_pool_backward", kF64, Backward<double>::avg_backward, plan},
};

}  // namespace

extern const KernelList pool_backward_kernels;
const KernelList pool_backward_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
