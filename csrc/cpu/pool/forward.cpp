// Max and average pooling of channels-last images, regular and adaptive, see pool.h.
//
// x (n, h, w, c) to y (n, oh, ow, c) and, for max, the place of each maximum inside its window, a
// byte an element of y (PyTorch: 8 bytes). Vectors run over channels; a task is a run of rows, so
// neighbouring windows share the cache. The floor is memory: x once, y and the index once. Averages
// over 3 columns at stride 1 keep the sums of the last two columns in registers, 3 loads a vector
// in place of 9.
//
// With few channels (less than half a vector) a vector holds a block of whole neighbouring pixels
// of y; the pixels of a tap come from two vectors of x by one permutation, which is the same for
// all blocks. What does not fit (steps of more than two pixels, edges) is gathered.
#include "pool/windows.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T>
struct Forward : Lanes<T> {
  using typename Lanes<T>::V;
  using typename Lanes<T>::I;
  using typename Lanes<T>::S;
  using Lanes<T>::N;
  using Lanes<T>::kFew;
  using typename Lanes<T>::Block;
  using Lanes<T>::pick;
  using Lanes<T>::over;
  using Lanes<T>::divisor;
  using Lanes<T>::uniform;
  using Lanes<T>::slide_row;
  using Lanes<T>::slides;
  using Lanes<T>::each_row;
  using Lanes<T>::bytes_in;

  // ---- forward, many channels
  // B vectors of channels of one window; x: tap (0, 0) of the window; strides ls (line), ps (pixel)
  template <int KH, int KW, int B, bool FULL, class IX>
  static GS_MEMBER void max_vec(const T* x, int64_t ls, int64_t ps, int a0, int a1, int b0, int b1,
                                int64_t kw, T low, int none, T* y, IX* index, int n) {
    V best[B], floor = set1(low);
    I at[B];
    const T* q = x + a0 * ls + b0 * ps;
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      best[v] = get<FULL>(q + v * N, n);
      at[v] = set1((S)(a0 * kw + b0));
    }
    if (KH) {
#pragma GCC unroll 3
      for (int a = 0; a < KH; ++a)
#pragma GCC unroll 3
        for (int b = 0; b < KW; ++b) {
          if (a || b)
#pragma GCC unroll 4
            for (int v = 0; v < B; ++v)
              take<T>(get<FULL>(x + a * ls + b * ps + v * N, n), set1((S)(a * KW + b)), best[v],
                      at[v]);
        }
    } else {
      for (int a = a0; a < a1; ++a)
        for (int b = b0; b < b1; ++b)
#pragma GCC unroll 4
          for (int v = 0; v < B; ++v)
            take<T>(get<FULL>(x + a * ls + b * ps + v * N, n), set1((S)(a * kw + b)), best[v],
                    at[v]);
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) {
      if (none) {  // the maximum of ReLU is that of x, or the first zero, which has its own sign
        auto dead = best[v] <= floor;
        at[v] = dead ? set1((S)none) : at[v];
        best[v] = dead ? max(floor, get<FULL>(q + v * N, n)) : best[v];
      }
      put<FULL>(y + v * N, best[v], n);
      if (index) put_index<T, FULL>(index + v * N, at[v], n);
    }
  }
  template <int KH, int KW, class IX>
  static GS_MEMBER void max_window(const T* x, int64_t c, int64_t ls, int64_t ps, int a0, int a1,
                                   int b0, int b1, int64_t kw, T low, int none, T* y, IX* index) {
    int64_t j = 0;
    if (!KH)
      for (; j + 4 * N <= c; j += 4 * N)
        max_vec<KH, KW, 4, true>(x + j, ls, ps, a0, a1, b0, b1, kw, low, none, y + j,
                                 index ? index + j : index, N);
    for (; j + N <= c; j += N)
      max_vec<KH, KW, 1, true>(x + j, ls, ps, a0, a1, b0, b1, kw, low, none, y + j,
                               index ? index + j : index, N);
    if (j < c)
      max_vec<KH, KW, 1, false>(x + j, ls, ps, a0, a1, b0, b1, kw, low, none, y + j,
                                index ? index + j : index, (int)(c - j));
  }
  // one row of y
  template <int KH, int KW, class IX>
  static void max_row(const Geometry& g, const T* x, int64_t i, T* y, IX* index) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c, ls = p.dh * line, ps = p.dw * p.c;
    int a0 = g.y.first[i], a1 = g.y.last[i];
    T low = p.relu ? (T)0 : -(T)__builtin_inf();
    int none = p.relu ? (int)(p.kh * p.kw) : 0;
    for (int64_t j = 0; j < p.ow; ++j) {
      int b0 = g.x.first[j], b1 = g.x.last[j];
      const T* q = x + (int64_t)g.y.start[i] * line + (int64_t)g.x.start[j] * p.c;
      T* out = y + j * p.c;
      IX* ix = index ? index + j * p.c : index;
      if (a0 == a1 || b0 == b1) {
        // every tap of a dilated window fell into the padding: no maximum, a tap that is none
        for (int64_t k = 0; k < p.c; ++k) {
          out[k] = -(T)__builtin_inf();
          if (ix) ix[k] = (IX)(p.kh * p.kw);
        }
        continue;
      }
      if (KH && a0 == 0 && a1 == KH && b0 == 0 && b1 == KW)
        max_window<KH, KW>(q, p.c, ls, ps, a0, a1, b0, b1, KW, low, none, out, ix);
      else
        max_window<0, 0>(q, p.c, ls, ps, a0, a1, b0, b1, p.kw, low, none, out, ix);
    }
  }

  template <int KH, int KW, int B, bool FULL>
  static GS_MEMBER void avg_vec(const T* x, int64_t ls, int64_t ps, int a0, int a1, int b0, int b1,
                                T div, T inv, T* y, int n) {
    V sum[B];
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) sum[v] = V{};
    if (KH) {
#pragma GCC unroll 3
      for (int a = 0; a < KH; ++a) {
        V row = get<FULL>(x + a * ls, n);
#pragma GCC unroll 3
        for (int b = 1; b < KW; ++b) row += get<FULL>(x + a * ls + b * ps, n);
        sum[0] = a ? sum[0] + row : row;
      }
    } else {
      // rows apart, then added: the error grows with height + width, not with their product
      for (int a = a0; a < a1; ++a) {
        V row[B];
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) row[v] = V{};
        for (int b = b0; b < b1; ++b)
#pragma GCC unroll 4
          for (int v = 0; v < B; ++v) {
            const T* q = x + a * ls + b * ps + v * N;
            fetch(q);
            row[v] += get<FULL>(q, n);
          }
#pragma GCC unroll 4
        for (int v = 0; v < B; ++v) sum[v] += row[v];
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < B; ++v) put<FULL>(y + v * N, over(sum[v], div, inv), n);
  }
  template <int KH, int KW>
  static GS_MEMBER void avg_window(const T* x, int64_t c, int64_t ls, int64_t ps, int a0, int a1,
                                   int b0, int b1, T div, T inv, T* y) {
    int64_t j = 0;
    if (!KH)
      for (; j + 4 * N <= c; j += 4 * N)
        avg_vec<KH, KW, 4, true>(x + j, ls, ps, a0, a1, b0, b1, div, inv, y + j, N);
    for (; j + N <= c; j += N)
      avg_vec<KH, KW, 1, true>(x + j, ls, ps, a0, a1, b0, b1, div, inv, y + j, N);
    if (j < c)
      avg_vec<KH, KW, 1, false>(x + j, ls, ps, a0, a1, b0, b1, div, inv, y + j, (int)(c - j));
  }
  template <int KH, int KW>
  static void avg_row(const Geometry& g, bool same, const T* x, int64_t i, T* y) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c;
    int a0 = g.y.first[i], a1 = g.y.last[i];
    T div = divisor(g, i, 0), inv = 1 / div;
    for (int64_t j = 0; j < p.ow; ++j) {
      int b0 = g.x.first[j], b1 = g.x.last[j];
      const T* q = x + (int64_t)g.y.start[i] * line + (int64_t)g.x.start[j] * p.c;
      if (!same) {
        div = divisor(g, i, j);
        inv = 1 / div;
      }
      if (KH && a0 == 0 && a1 == KH && b0 == 0 && b1 == KW)
        avg_window<KH, KW>(q, p.c, line, p.c, a0, a1, b0, b1, div, inv, y + j * p.c);
      else
        avg_window<0, 0>(q, p.c, line, p.c, a0, a1, b0, b1, div, inv, y + j * p.c);
    }
  }

  static void avg_slide_row(const Geometry& g, Way way, bool same, const T* x, int64_t i, T* y) {
    const PoolParams& p = g.p;
    const int a0 = g.y.first[i], a1 = g.y.last[i];
    const int64_t line = p.w * p.c;
    const T* from = x + (g.y.start[i] + a0) * line;
    if (same) {
      const T div = divisor(g, i, 0), inv = 1 / div;
      slide_row(
          way, from, line, a1 - a0, p.c, p.w, p.ow, p.pw,
          y, [=](int64_t, V s) __attribute__((always_inline)) { return over(s, div, inv); });
    } else {
      slide_row(
          way, from, line, a1 - a0, p.c, p.w, p.ow, p.pw,
          y, [&](int64_t j, V s) __attribute__((always_inline)) {
            return s / set1(divisor(g, i, j));
          });
    }
  }

  // ---- forward, few channels: lanes over a row of y
  static GS_MEMBER I lane_ints(const int32_t* p, int n) {
    return n == N ? get_index<T, true>(p, n) : get_index<T, false>(p, n);
  }
  static GS_MEMBER V gather(const T* p, I at) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm512_i32gather_ps((__m512i)at, p, 4);
    else
      return (V)_mm512_i64gather_pd((__m512i)at, p, 8);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4)
      return (V)_mm256_i32gather_ps(p, (__m256i)at, 4);
    else
      return (V)_mm256_i64gather_pd(p, (__m256i)at, 8);
#endif
    S o[N];
    T v[N];
    memcpy(o, &at, sizeof o);
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) v[i] = p[o[i]];
    return load(v);
  }
  // columns from .. to of row i of y, gathered; x, y, index: their image, row
  template <bool MAX, class IX>
  static void few_gather(const Geometry& g, const T* x, int64_t i, T* y, IX* index, int64_t from,
                         int64_t to) {
    const PoolParams& p = g.p;
    int64_t line = p.w * p.c, row = p.ow * p.c;
    for (int64_t j = from * p.c; j < to * p.c; j += N) {
      int n = to * p.c - j < N ? (int)(to * p.c - j) : N;
      I start = lane_ints(g.lanes + j, n), first = lane_ints(g.lanes + row + j, n);
      I last = lane_ints(g.lanes + 2 * row + j, n);
      V best = set1(MAX ? -(T)__builtin_inf() : (T)0);
      I at = first + set1((S)(g.y.first[i] * p.kw)), none = set1((S)(p.kh * p.kw));
      at = first < last ? at : none;
      if (g.y.first[i] == g.y.last[i]) at = none;
      for (int a = g.y.first[i]; a < g.y.last[i]; ++a) {
        const T* q = x + (g.y.start[i] + a * p.dh) * line;
        V sum = {};
        for (int b = 0; b < p.kw; ++b) {
          I tap = set1((S)b), in = (tap >= first) & (tap < last);
          I off = (start + set1((S)(b * p.dw * p.c))) & in;
          V v = gather(q, off);
          if (MAX) {
            if (p.relu) v = max(V{}, v);
            I m = ((v > best) | (v != v)) & in;
            best = m ? v : best;
            at = m ? set1((S)(a * p.kw + b)) : at;
          } else {
            sum += in ? v : V{};
          }
        }
        if (!MAX) best += sum;
      }
      if (!MAX) {
        if (p.divisor != 0) {
          best /= set1((T)p.divisor);
        } else {
          I wide = last - first;
          if (p.include_pad) wide = lane_ints(g.lanes + 3 * row + j, n);
          T high = (T)(p.include_pad ? g.y.size[i] : g.y.last[i] - g.y.first[i]);
          best /= __builtin_convertvector(wide, V) * set1(high);
        }
      }
      store_n(y + j, best, n);
      if (MAX && p.relu) at = best <= V{} ? none : at;
      if (MAX && index) put_index<T, false>(index + j, at, n);
    }
  }

  // One row of y; limit: the end of x.
  template <bool MAX, class IX>
  static void few_row(const Geometry& g, const Block& block, const T* x, const T* limit, int64_t i,
                      T* y, IX* index) {
    const PoolParams& p = g.p;
    const int64_t line = p.w * p.c, c = p.c, step = p.dw * c;
    const int a0 = g.y.first[i], a1 = g.y.last[i], kw = (int)p.kw, n = block.lanes;
    const bool apart = p.sw != 1;
    int64_t done = 0, j = block.begin;
    if (a0 < a1 && block.begin < block.end && block.near(p)) {
      const T high = (T)(p.include_pad ? g.y.size[i] : a1 - a0);
      const T* image = x + g.y.start[i] * line;
      const I at = block.at;
      if (j) few_gather<MAX>(g, x, i, y, index, 0, j);
      for (; j < block.end; j += block.pixels) {
        if (j + block.pixels > block.end) j = block.end - block.pixels;
        const T* q = image + g.x.start[j] * c;
        // the last tap's two vectors must lie in x
        if (q + (a1 - 1) * p.dh * line + (kw - 1) * step + 2 * N > limit) break;
        V best = {};
        I tap = {};
        auto all = [&](int rows, int cols) __attribute__((always_inline)) {
#pragma GCC unroll 2
          for (int a = 0; a < rows; ++a) {
            const T* r = q + (a0 + a) * p.dh * line;
            V sum = {};
#pragma GCC unroll 2
            for (int b = 0; b < cols; ++b, r += step) {
              fetch(r);
              V v = apart ? pick(load(r), load(r + N), at) : load(r);
              if (MAX) {
                I here = set1((S)((a0 + a) * cols + b));
                if (a || b) {
                  take<T>(v, here, best, tap);
                } else {
                  best = v;
                  tap = here;
                }
              } else {
                sum += v;
              }
            }
            if (!MAX) best += sum;
          }
        };
        if (a1 - a0 == 2 && kw == 2)
          all(2, 2);
        else
          all(a1 - a0, kw);
        if (!MAX) {
          T div =
              p.divisor != 0 ? (T)p.divisor : (T)(p.include_pad ? g.x.size[j] : (int32_t)kw) * high;
          if (p.include_pad && p.divisor == 0 && g.x.size[j + block.pixels - 1] != g.x.size[j])
            break;
          best = over(best, div, 1 / div);
        } else if (p.relu) {
          auto dead = best <= V{};
          const T* r = q + a0 * p.dh * line;
          tap = dead ? set1((S)(p.kh * p.kw)) : tap;
          best = dead ? max(V{}, apart ? pick(load(r), load(r + N), at) : load(r)) : best;
        }
        if (n == N) {
          store(y + j * c, best);
          if (MAX && index) put_index<T, true>(index + j * c, tap, N);
        } else {
          store_n(y + j * c, best, n);
          if (MAX && index) put_index<T, false>(index + j * c, tap, n);
        }
        done = j + block.pixels;
      }
      if (!done) done = block.begin;
    }
    if (done < p.ow) few_gather<MAX>(g, x, i, y, index, done, p.ow);
  }

  template <class IX>
  static void max_forward_ix(const Geometry& g, void* const* buf, const Ctx* ctx) {
    const PoolParams& p = g.p;
    const T* x = (const T*)buf[0];
    T* y = (T*)buf[1];
    IX* index = (IX*)buf[2];
    int64_t image = p.h * p.w * p.c, row = p.ow * p.c;
    bool few = p.c < kFew, dense = p.dh == 1 && p.dw == 1 && sizeof(IX) == 1;
    Block block;
    if (few) block.init(g);
    each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
      const T* from = x + r / p.oh * image;
      IX* ix = index ? index + r * row : index;
      if (few)
        few_row<true>(g, block, from, x + p.n * image, r % p.oh, y + r * row, ix);
      else if (dense && p.kh == 2 && p.kw == 2)
        max_row<2, 2>(g, from, r % p.oh, y + r * row, ix);
      else if (dense && p.kh == 3 && p.kw == 3)
        max_row<3, 3>(g, from, r % p.oh, y + r * row, ix);
      else
        max_row<0, 0>(g, from, r % p.oh, y + r * row, ix);
    });
  }
  static void max_forward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    if (g.p.index_bytes == 4)
      max_forward_ix<int32_t>(g, buf, ctx);
    else
      max_forward_ix<uint8_t>(g, buf, ctx);
  }
  static void avg_forward(const void* params, void* const* buf, const Ctx* ctx) {
    Geometry g;
    g.init(*(const PoolParams*)params, ctx->scratch, ctx->tid == 0);
    ctx->sync();
    const PoolParams& p = g.p;
    const T* x = (const T*)buf[0];
    T* y = (T*)buf[1];
    int64_t image = p.h * p.w * p.c, row = p.ow * p.c;
    const bool few = p.c < kFew, same = uniform(g);
    const Way way = way_of(ctx, p.n * p.oh * row * (int64_t)sizeof(T), y, p.c * sizeof(T));
    Block block;
    if (few) block.init(g);
    each_row(p.n * p.oh, bytes_in(p), ctx, [&](int64_t r) {
      const T* from = x + r / p.oh * image;
      if (few)
        few_row<false, uint8_t>(g, block, from, x + p.n * image, r % p.oh, y + r * row, nullptr);
      else if (slides(p))
        avg_slide_row(g, way, same, from, r % p.oh, y + r * row);
      else if (p.kh == 2 && p.kw == 2)
        avg_row<2, 2>(g, same, from, r % p.oh, y + r * row);
      else if (p.kh == 3 && p.kw == 3)
        avg_row<3, 3>(g, same, from, r % p.oh, y + r * row);
      else
        avg_row<0, 0>(g, same, from, r % p.oh, y + r * row);
    });
    if (way == kPast) write_fence();
  }
};

const KernelEntry entries[] = {
    {"max_pool", kF32, Forward<float>::max_forward, plan},
    {"max_pool", kF64, Forward<double>::max_forward, plan},
    {"avg_pool", kF32, Forward<float>::avg_forward, plan},
    {"avg_pool", kF64, Forward<double>::avg_forward, plan},
};

}  // namespace

extern const KernelList pool_forward_kernels;
const KernelList pool_forward_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
