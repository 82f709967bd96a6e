// Forward convolution of few pixels: the weights are read once, where they lie.
//
// x (n, in_h, in_w, channels), w (filters, kernel_h, kernel_w, channels / groups), y (n, out_h,
// out_w, filters). Lanes run along the channels, in which x and w are contiguous, so a sum is a dot
// product and nothing is packed or transformed: with few pixels that costs more than the products.
//
// A member takes kFilters filters at a time and passes over their taps in the order of memory.
// Under a tap, tiles of 4 pixels times kFilters filters keep their sums (a vector each) in
// registers; between taps the sums lie in the first cache, beside the tap's weights (4 x 2 KB of
// 512 channels) and the rows of x. Only pixels whose tap lies inside are in a tap's list, so
// padding is not multiplied; a rest of 3 pixels is a tile whose fourth sum nobody reads. While
// tiles of one tap run they ask the memory for the weights of the next, into the second cache: the
// first is full of x. Lanes are folded at the end, N sums at a time by a transpose.
//
// Pixels come in chunks of kPixels, each of which reads the weights again. A sum's order is lanes
// modulo the vector, taps in order, then a tree: it depends on neither threads nor batch. Floor:
// the bytes of w at the speed of the memory it comes from; 1 FMA a vector of channels, tap inside,
// pixel and filter.
#include "conv/geometry.h"
#include "simd/transpose.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kPixels = 64;
constexpr int kRows = 4;  // pixels in a tile
#if GS_VBYTES == 64 || defined(__ARM_NEON)
constexpr int kFilters = 4;  // 32 registers
#else
constexpr int kFilters = 2;  // 16
#endif

// A pixel under a tap: where its channels start in x, and the pixel's number in the chunk.
struct Entry {
  int64_t x, pixel;
};

// sums[pixel][filter] += x[pixel][c] * w[filter][c] for all c, lane by lane. w: rows are ld apart.
// next, other: lines from there on are asked for.
template <class T, int MR, int NR>
__attribute__((noinline)) void tile(const Entry* e, const T* x, const T* w, int64_t ld, int64_t ci,
                                    typename simd<T>::V* sums, const T* next, const T* other) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  V acc[MR][NR];
  const T* in[MR];
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m) {
    in[m] = x + e[m].x;
#pragma GCC unroll 4
    for (int r = 0; r < NR; ++r) acc[m][r] = sums[e[m].pixel * NR + r];
  }
  int64_t c = 0;
  for (; c + N <= ci; c += N) {
    V f[NR];
#pragma GCC unroll 4
    for (int r = 0; r < NR; ++r) f[r] = load(w + r * ld + c);
    __builtin_prefetch(next + c, 0, 2);
    __builtin_prefetch(other + c, 0, 2);
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
      V v = load(in[m] + c);
#pragma GCC unroll 4
      for (int r = 0; r < NR; ++r) acc[m][r] = fma(v, f[r], acc[m][r]);
    }
  }
  if (c < ci) {
    int left = (int)(ci - c);
    V f[NR];
#pragma GCC unroll 4
    for (int r = 0; r < NR; ++r) f[r] = load_n(w + r * ld + c, left);
#pragma GCC unroll 4
    for (int m = 0; m < MR; ++m) {
      V v = load_n(in[m] + c, left);
#pragma GCC unroll 4
      for (int r = 0; r < NR; ++r) acc[m][r] = fma(v, f[r], acc[m][r]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int r = 0; r < NR; ++r) sums[e[m].pixel * NR + r] = acc[m][r];
  }
}

// The pixels of a chunk, tap by tap: entries [begin[t], begin[t + 1]), `count[t]` of which are
// real.
struct Table {
  int64_t *begin, *count;
  Entry* entries;
};
GS_INLINE int64_t most_entries(int64_t taps) { return taps * (kPixels + 1); }
GS_INLINE size_t table_bytes(int64_t taps) {
  return align64((size_t)(2 * taps) * sizeof(int64_t) + (size_t)most_entries(taps) * sizeof(Entry));
}

void make_table(const ConvParams& p, int64_t m0, int64_t m1, const Table& t) {
  Entry* to = t.entries;
  for (int64_t i = 0; i < p.kernel_h; ++i)
    for (int64_t j = 0; j < p.kernel_w; ++j) {
      int64_t tap = i * p.kernel_w + j;
      t.begin[tap] = to - t.entries;
      int64_t b = m0 % p.out_w, a = m0 / p.out_w % p.out_h, image = m0 / p.out_w / p.out_h;
      for (int64_t m = m0; m < m1; ++m) {
        int64_t y = a * p.stride_h - p.pad_h + i * p.dilation_h;
        int64_t x = b * p.stride_w - p.pad_w + j * p.dilation_w;
        if (y >= 0 && y < p.in_h && x >= 0 && x < p.in_w)
          *to++ = Entry{((image * p.in_h + y) * p.in_w + x) * p.channels, m - m0};
        if (++b < p.out_w) continue;
        b = 0;
        if (++a < p.out_h) continue;
        a = 0;
        ++image;
      }
      t.count[tap] = to - t.entries - t.begin[tap];
      if (t.count[tap] % kRows == kRows - 1) {
        *to = Entry{to[-1].x, kPixels};
        ++to;
      }
    }
}

// sums (pixels, NR vectors) of filters k0 ... of one group; w: the first of them
template <class T, int NR>
void taps(const ConvParams& p, const Table& t, const T* x, const T* w, typename simd<T>::V* sums) {
  const int64_t ci = p.channels / p.groups, all = p.kernel_h * p.kernel_w, ld = all * ci;
  for (int64_t tap = 0; tap < all; ++tap, w += ci) {
    const T* ahead = tap + 1 < all ? w + ci : w - tap * ci + NR * ld;
    const Entry* e = t.entries + t.begin[tap];
    int64_t tiles = ceil_div(t.count[tap], kRows), left = t.count[tap];
    for (int64_t i = 0; i < tiles; ++i, e += kRows, left -= kRows) {
      const T* next = i < NR ? ahead + i * ld : w;
      const T* other = i + tiles < NR ? ahead + (i + tiles) * ld : next;
      if (left >= kRows - 1)
        tile<T, kRows, NR>(e, x, w, ld, ci, sums, next, other);
      else if (left == 2)
        tile<T, 2, NR>(e, x, w, ld, ci, sums, next, other);
      else
        tile<T, 1, NR>(e, x, w, ld, ci, sums, next, other);
    }
  }
}

// The lanes of each of `count` vectors added up, N vectors at a time; `v` has room for whole ones.
template <class T>
__attribute__((noinline)) void fold(typename simd<T>::V* v, int64_t count, T* to) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  for (int64_t i = 0; i < count; i += N) {
    V t[N];
#pragma GCC unroll 16
    for (int l = 0; l < N; ++l) t[l] = v[i + l];
    transpose<T>(t);
#pragma GCC unroll 4
    for (int h = N / 2; h > 0; h /= 2)
#pragma GCC unroll 8
      for (int l = 0; l < h; ++l) t[l] += t[l + h];
    store(to + i, t[0]);
  }
}

template <class T>
void forward(const void* params, void* const* buf, const Ctx* ctx) {
  using V = typename simd<T>::V;
  constexpr int N = simd<T>::N;
  const ConvParams& p = *(const ConvParams*)params;
  const T *x = (const T*)buf[0], *w = (const T*)buf[1], *bias = (const T*)buf[2];
  T* y = (T*)buf[3];
  const int64_t all = p.kernel_h * p.kernel_w, ci = p.channels / p.groups, ld = all * ci;
  const int64_t co = p.filters / p.groups, pixels = p.n * p.out_h * p.out_w;
  char* own = ctx->scratch + (size_t)ctx->tid * table_bytes(all);
  Table t{(int64_t*)own, (int64_t*)own + all, (Entry*)((int64_t*)own + 2 * all)};
  // one sum more for the fourth pixel of three, and a whole vector of sums to fold
  V sums[(kPixels + 1) * kFilters + N];
  T folded[(kPixels + 1) * kFilters + N];
  const int64_t per = ceil_div(co, kFilters), units = p.groups * per;
  const int64_t u0 = units * ctx->tid / ctx->nt, u1 = units * (ctx->tid + 1) / ctx->nt;
  if (u0 == u1) return;
  for (int64_t m0 = 0; m0 < pixels; m0 += kPixels) {
    const int64_t m = min64(kPixels, pixels - m0);
    make_table(p, m0, m0 + m, t);
    for (int64_t u = u0; u < u1; ++u) {
      const int64_t g = u / per, k0 = g * co + u % per * kFilters;
      const int64_t k1 = min64(k0 + kFilters, (g + 1) * co);
      const int64_t step = k1 - k0 == kFilters ? kFilters : 1;
      for (int64_t k = k0; k < k1; k += step) {
        for (int64_t i = 0; i < m * step + N; ++i) sums[i] = V{};
        if (step == kFilters)
          taps<T, kFilters>(p, t, x + g * ci, w + k * ld, sums);
        else
          taps<T, 1>(p, t, x + g * ci, w + k * ld, sums);
        fold<T>(sums, m * step, folded);
        for (int64_t i = 0; i < m; ++i)
          for (int64_t r = 0; r < step; ++r) {
            T v = folded[i * step + r];
            if (bias) v += bias[k + r];
            if (p.activation == kConvRelu) v = v < 0 ? (T)0 : v;
            y[(m0 + i) * p.filters + k + r] = v;
          }
      }
    }
  }
}

template <class T>
void forward_plan(const void* params, Plan* plan) {
  const ConvParams& p = *(const ConvParams*)params;
  const int64_t co = p.filters / p.groups, pixels = p.n * p.out_h * p.out_w;
  plan->scratch = (size_t)max64(1, p.threads) * table_bytes(p.kernel_h * p.kernel_w);
  plan->tasks = p.groups * ceil_div(co, kFilters);
  double weights = (double)p.filters * (double)(p.kernel_h * p.kernel_w) *
                   (double)(p.channels / p.groups) * sizeof(T);
  // nanoseconds: bytes at a core's share of the memory, or products
  double bytes = weights * (double)ceil_div(pixels, kPixels) / 12;
  double products = weights * (double)pixels / (GS_VBYTES * 5);
  plan->work = (int64_t)(bytes > products ? bytes : products) + 1000;
}

const KernelEntry entries[] = {
    {"conv_stream_forward", kF32, forward<float>, forward_plan<float>},
    {"conv_stream_forward", kF64, forward<double>, forward_plan<double>},
};

}  // namespace

extern const KernelList conv_stream_kernels;
const KernelList conv_stream_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
