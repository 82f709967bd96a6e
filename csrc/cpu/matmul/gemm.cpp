// matmul: C = act(alpha * A B + bias + C) for matrices, batched; A (m, k), B (k, n), C (m, n).
//
// Floor: 2 m n k operations at two FMAs a cycle; bytes only matter when m or n is small (see vector.cpp).
//
// A member of the team owns one rectangle of C (a cell), so nothing is shared and no barrier is needed.
// Inside a cell, outermost first:
//   columns by `ncb`, k by `kc`: this block of B is packed into panels that stay in half of the second
//     cache. Packing is free where rows of B are contiguous: the first tile on a panel stores what it
//     reads. Where columns are contiguous (B transposed), 16 x 16 blocks are transposed into the panel.
//   rows by `mgroup`: this group of A stays in a quarter of the second cache. Rows of A are read where
//     they lie; transposed A is packed into slivers when its stride would make lines collide.
//   panels of up to 4 vectors, tiles of rows (tile.h). While tiles run, the next panel or the next rows
//     are prefetched line by line from inside the loop, so that memory and arithmetic overlap.
//
// The bits of the result depend on m, n, k alone: an element is the sum, in ascending order, of its
// blocks of kc products (a chain of FMAs each); kc is a function of k. Products with few elements and a
// long k are cut into slices along k, again by shape alone, and added in order.
#include "matmul.h"

#include "matmul/pack.h"
#include "matmul/tile.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kDepth = 512;  // products summed before an element is written

GS_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
GS_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
GS_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
GS_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

enum BMode { kDirect, kPackRows, kPackTransposed };

// How a product is blocked; a function of the parameters.
struct Blocking {
  int64_t kc;      // depth of a block
  int64_t ncb;     // columns packed at a time
  int64_t mgroup;  // rows of A kept close
  int64_t slices;  // parts of k computed apart, 1 mostly
  BMode b_mode;
  bool pack_a;
  bool fetch;          // operands come from beyond the second cache
  int64_t b_bytes, a_bytes;  // scratch of one member
};

template <class T>
Blocking blocking(const MatmulParams& p) {
  constexpr int N = simd<T>::N, W = kTileNV * N;
  constexpr int64_t size = sizeof(T);
  Blocking s;
  int64_t blocks = most(1, ceil_div(p.k, kDepth));
  s.kc = ceil_div(p.k, blocks);
  int64_t nv = least(kTileNV, ceil_div(p.n, N)), height = kTileRows[nv > 0 ? nv : 1];
  s.slices = 1;
  if (p.batch == 1 && p.m * p.n <= 64 * 64 && p.k >= 16 * kDepth) s.slices = least(16, p.k / (8 * kDepth));
  s.ncb = most(W, p.l2 / 3 / (most(s.kc, 64) * size) / W * W);
  s.mgroup = most(4, p.l2 / 3 / (most(s.kc, 64) * size) / height) * height;
  bool row_b = p.b_cs == 1 || p.n == 1;
  if (!row_b)
    s.b_mode = kPackTransposed;
  else
    s.b_mode = p.m <= 4 * height || p.k * p.n * size <= 32 * 1024 ? kDirect : kPackRows;
  s.pack_a = p.a_cs != 1 && p.a_rs == 1 && p.m * p.k * size > 128 * 1024 && p.n > W;
  s.fetch = (p.m * p.k + p.k * p.n) * size > p.l2 / 2;
  s.b_bytes = round_up(least(s.ncb, round_up(p.n, W)) * s.kc * size + 64, 4096);
  if (s.b_mode == kDirect) s.b_bytes = kTileMasks ? 0 : round_up(W * s.kc * size, 4096);
  s.a_bytes = s.pack_a ? round_up(least(s.mgroup, round_up(p.m, height)) * s.kc * size + 64, 4096) : 0;
  return s;
}

// Vectors of the next panel when `left` are left of a row; 5 go as 3 + 2, not 4 + 1.
GS_INLINE int panel_vectors(int64_t left) {
  if (kTileNV == 4 && left == 5) return 3;
  return left < kTileNV ? (int)left : kTileNV;
}

// One rectangle (m, n) of C over k, by one member.
template <class T>
struct Cell {
  int64_t m, n, k;
  const T* a;
  int64_t ars, acs;
  const T* b;
  int64_t brs, bcs;
  const T* bias;  // of the first column, or null
  T* c;
  int64_t ldc;
  T alpha;
  bool add;
  int act;
};

// What the tile does when it stores, element by element: for tiles that went through a buffer.
template <class T>
void finish(const TileArgs<T>& g, const T* from, int64_t width, int rows, int cols, int flags) {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < cols; ++j) {
      T x = from[i * width + j];
      if (flags & kTileScale) x *= g.alpha;
      if (flags & kTileAdd) x += g.c[i * g.ldc + j];
      if (flags & kTileBias) x += g.bias[j];
      if (flags & kTileRelu) x = x < 0 ? (T)0 : x;
      g.c[i * g.ldc + j] = x;
    }
}

template <class T>
void run_tile(TileArgs<T>& g, int nv, int rows, int cols, bool packing) {
  constexpr int N = simd<T>::N;
  typename TileTable<T>::Fn fn = packing ? TileTable<T>::packing(nv) : TileTable<T>::get(nv, rows);
  g.last = cols - (nv - 1) * N;
  if (kTileMasks || g.last == N) {
    fn(g);
    return;
  }
  alignas(64) T buffer[kTileMaxRows * kTileNV * N];
  T* c = g.c;
  int64_t ldc = g.ldc;
  int32_t flags = g.flags;
  g.c = buffer;
  g.ldc = nv * N;
  g.flags = 0;
  fn(g);
  g.c = c;
  g.ldc = ldc;
  g.flags = flags;
  finish(g, buffer, nv * N, rows, cols, flags);
}

template <class T>
void run_cell(const Cell<T>& x, const Blocking& s, char* scratch) {
  constexpr int N = simd<T>::N;
  constexpr int64_t line = 64 / (int64_t)sizeof(T);
  T* b_pack = (T*)scratch;
  T* a_pack = (T*)(scratch + s.b_bytes);
  int64_t vectors = ceil_div(x.n, N);
  int height = kTileRows[least(kTileNV, vectors)], tallest = height;
  TileArgs<T> g;
  g.alpha = x.alpha;
  for (int64_t jc = 0; jc < x.n; jc += s.ncb) {
    int64_t nc = least(s.ncb, x.n - jc), nvec = ceil_div(nc, N);
    for (int64_t pc = 0; pc == 0 || pc < x.k; pc += s.kc) {
      int64_t kc = least(s.kc, x.k - pc);
      bool last_block = pc + kc >= x.k;
      int32_t flags = (x.alpha != (T)1 ? kTileScale : 0) | (pc > 0 || x.add ? kTileAdd : 0) |
                      (last_block && x.bias ? kTileBias : 0) |
                      (last_block && x.act == kActRelu ? kTileRelu : 0) |
                      (s.fetch && kc >= 64 ? kTilePrefetch : 0);
      for (int64_t mg = 0; mg < x.m; mg += s.mgroup) {
        int64_t rows = least(s.mgroup, x.m - mg);
        const T* a = x.a + mg * x.ars + pc * x.acs;
        if (s.pack_a) pack_slivers(a, x.acs, rows, kc, height, a_pack);
        int64_t number = 0;  // of the tile in this group
        for (int64_t v = 0; v < nvec;) {
          int nv = panel_vectors(nvec - v);
          int width = nv * N, cols = (int)least(width, nc - v * N);
          const T* b = x.b + pc * x.brs + (jc + v * N) * x.bcs;
          T* panel = s.b_mode == kDirect ? b_pack : b_pack + v * N * kc;
          bool packed = mg > 0 && s.b_mode != kDirect, packing = false;
          if (!packed) {
            if (s.b_mode == kPackTransposed) {
              pack_transposed(b, x.bcs, kc, cols, width, panel);
              packed = true;
            } else if (!kTileMasks && cols < width) {
              pack_rows(b, x.brs, kc, cols, width, panel);
              packed = true;
            } else if (s.b_mode == kPackRows) {
              if (height == tallest && kTileRows[nv] == height && rows >= height) {
                packing = true;
              } else {
                pack_rows(b, x.brs, kc, cols, width, panel);
                packed = true;
              }
            }
          }
          const T* next = v + nv < nvec ? b + width * x.bcs : nullptr;
          for (int64_t i = 0; i < rows; ++number) {
            int64_t in_sliver = i % height, sliver_rows = least(height, rows - (i - in_sliver));
            int r = rows - i >= height ? height : tile_rows((int)least(kTileNV, vectors), rows - i);
            if (s.pack_a && in_sliver + r > sliver_rows) r = (int)(sliver_rows - in_sliver);
            if (s.pack_a) {
              g.a = a_pack + (i - in_sliver) * kc + in_sliver;
              g.ars = 1;
              g.acs = sliver_rows;
            } else {
              g.a = a + i * x.ars;
              g.ars = x.ars;
              g.acs = x.acs;
            }
            g.b = packed ? panel : b;
            g.brs = packed ? width : x.brs;
            g.pack = panel;
            g.c = x.c + (mg + i) * x.ldc + jc + v * N;
            g.ldc = x.ldc;
            g.bias = x.bias ? x.bias + jc + v * N : nullptr;
            g.k = kc;
            g.flags = flags;
            g.fetch = g.a;
            g.fetch_step = 0;
            if (s.fetch) {
              int64_t t = i / height;
              if (mg == 0 && next && s.b_mode != kPackTransposed) {
                if (t < 4) {
                  g.fetch = next + t * line;
                  g.fetch_step = x.brs;
                }
              } else if (mg == 0 && next) {
                if (t < width) {
                  g.fetch = next + t * x.bcs;
                  g.fetch_step = x.brs;
                }
              } else if (mg + rows < x.m) {
                // rows of the next group; columns of it where A is transposed
                if (!s.pack_a && number < s.mgroup && mg + rows + number < x.m) {
                  g.fetch = a + (rows + number) * x.ars;
                  g.fetch_step = x.acs;
                } else if (s.pack_a && number * line < s.mgroup) {
                  g.fetch = a + rows + number * line;
                  g.fetch_step = x.acs;
                }
              }
            }
            run_tile(g, nv, r, cols, packing && i == 0);
            if (packing && i == 0) {
              packed = true;
              packing = false;
            }
            i += r;
          }
          v += nv;
        }
      }
      if (kc == 0) break;
    }
  }
}

// Cuts (m, n) into gr x gc = nt cells; the cheapest of the ways to write nt as a product.
template <class T>
void grid(const MatmulParams& p, const Blocking& s, int nt, int64_t* gr, int64_t* gc) {
  constexpr int N = simd<T>::N;
  int64_t height = kTileRows[least(kTileNV, ceil_div(p.n, N))];
  int64_t best = -1;
  for (int64_t r = 1; r <= nt; ++r) {
    int64_t c = nt / r;
    int64_t rows = round_up(ceil_div(p.m, r), least(height, 2)), cols = round_up(ceil_div(p.n, c), N);
    // in 1/16 of the time of an FMA on N lanes: arithmetic, packing of A and of B
    int64_t cost = 16 * rows * cols + (s.pack_a ? 8 : 2) * rows * N +
                   (s.b_mode == kPackTransposed ? 8 : s.b_mode == kPackRows ? 3 : 1) * cols * N;
    if (r * c > 0 && (best < 0 || cost < best)) {
      best = cost;
      *gr = r;
      *gc = c;
    }
  }
}

// Element offset of batch index t.
GS_INLINE int64_t batch_offset(const MatmulParams& p, const int64_t* strides, int64_t t) {
  int64_t o = 0;
  for (int d = p.batch_ndim - 1; d >= 0; --d) {
    o += t % p.batch_shape[d] * strides[d];
    t /= p.batch_shape[d];
  }
  return o;
}

template <class T>
void gemm_sliced(const MatmulParams& p, const Blocking& s, const Cell<T>& whole, const Ctx* ctx) {
  int64_t elements = p.m * p.n, member_bytes = s.b_bytes + s.a_bytes;
  T* partial = (T*)ctx->scratch;
  char* mine = ctx->scratch + round_up(s.slices * elements * (int64_t)sizeof(T), 4096) + ctx->tid * member_bytes;
  int64_t depth = round_up(ceil_div(p.k, s.slices), 16);
  for (int64_t t = ctx->tid; t < s.slices; t += ctx->nt) {
    Cell<T> x = whole;
    x.a += t * depth * x.acs;
    x.b += t * depth * x.brs;
    x.k = most(0, least(depth, p.k - t * depth));
    x.c = partial + t * elements;
    x.ldc = p.n;
    x.bias = nullptr;
    x.alpha = 1;
    x.add = false;
    x.act = kActNone;
    run_cell(x, s, mine);
  }
  ctx->sync();
  for (int64_t i = ctx->tid; i < p.m; i += ctx->nt)
    for (int64_t j = 0; j < p.n; ++j) {
      T v = partial[i * p.n + j];
      for (int64_t t = 1; t < s.slices; ++t) v += partial[t * elements + i * p.n + j];
      v *= whole.alpha;
      if (whole.add) v += whole.c[i * whole.ldc + j];
      if (whole.bias) v += whole.bias[j];
      if (whole.act == kActRelu) v = v < 0 ? (T)0 : v;
      whole.c[i * whole.ldc + j] = v;
    }
}

template <class T>
void gemm(const void* params, void* const* buf, const Ctx* ctx) {
  const MatmulParams& p = *(const MatmulParams*)params;
  if (p.m == 0 || p.n == 0 || p.batch == 0) return;
  Blocking s = blocking<T>(p);
  Cell<T> x;
  x.m = p.m;
  x.n = p.n;
  x.k = p.k;
  x.ars = p.a_rs;
  x.acs = p.a_cs;
  x.brs = p.b_rs;
  x.bcs = p.b_cs;
  x.ldc = p.c_rs;
  x.alpha = (T)p.alpha;
  x.add = p.accumulate != 0;
  x.act = p.act;
  x.a = (const T*)buf[0];
  x.b = (const T*)buf[1];
  x.bias = (const T*)buf[2];
  x.c = (T*)buf[3];
  if (s.slices > 1) {
    gemm_sliced(p, s, x, ctx);
    return;
  }
  char* mine = ctx->scratch + ctx->tid * (s.b_bytes + s.a_bytes);
  int64_t gr = 1, gc = 1;
  bool whole = p.batch % ctx->nt == 0 || p.batch >= 4 * ctx->nt;
  if (!whole) grid<T>(p, s, ctx->nt, &gr, &gc);
  int64_t cells = gr * gc, height = kTileRows[least(kTileNV, ceil_div(p.n, simd<T>::N))];
  int64_t rows = ceil_div(p.m, gr), cols = round_up(ceil_div(p.n, gc), simd<T>::N);
  if (rows > 2 * height) rows = round_up(rows, 2);
  for (int64_t t = whole ? ctx->tid : 0; t < p.batch; t += whole ? ctx->nt : 1) {
    const T* a = (const T*)buf[0] + batch_offset(p, p.a_bs, t);
    const T* b = (const T*)buf[1] + batch_offset(p, p.b_bs, t);
    T* c = (T*)buf[3] + batch_offset(p, p.c_bs, t);
    if (!whole && ctx->tid >= cells) continue;
    int64_t i = whole ? 0 : ctx->tid / gc, j = whole ? 0 : ctx->tid % gc;
    x.m = least(rows, p.m - i * rows);
    x.n = least(cols, p.n - j * cols);
    if (x.m <= 0 || x.n <= 0) continue;
    x.a = a + i * rows * x.ars;
    x.b = b + j * cols * x.bcs;
    x.bias = buf[2] ? (const T*)buf[2] + j * cols : nullptr;
    x.c = c + i * rows * x.ldc + j * cols;
    run_cell(x, s, mine);
  }
}

template <class T>
void gemm_plan(const void* params, Plan* plan) {
  const MatmulParams& p = *(const MatmulParams*)params;
  Blocking s = blocking<T>(p);
  // operations a nanosecond
  int64_t rate = (GS_VBYTES == 64 ? 128 : GS_VBYTES == 32 ? 64 : 16) * 4 / (int64_t)sizeof(T);
  int64_t tiles = s.slices > 1 ? s.slices : p.batch * ceil_div(p.m, 4) * ceil_div(p.n, simd<T>::N);
  plan->tasks = most(1, least(tiles, p.members));
  plan->work = p.batch * 2 * p.m * p.n * most(p.k, 1) / rate;
  plan->scratch = (size_t)(plan->tasks * (s.b_bytes + s.a_bytes));
  if (s.slices > 1) plan->scratch += (size_t)round_up(s.slices * p.m * p.n * (int64_t)sizeof(T), 4096);
}

const KernelEntry entries[] = {
    {"matmul", kF32, gemm<float>, gemm_plan<float>},
    {"matmul", kF64, gemm<double>, gemm_plan<double>},
};

}  // namespace

extern const KernelList matmul_gemm_kernels;
const KernelList matmul_gemm_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
