// matmul: C = act(alpha * A B + bias + C) for matrices, batched; A (m, k), B (k, n), C (m, n).
//
// Floor: 2 m n k operations at two FMAs a cycle; bytes only matter when m or n is small (see
// vector.cpp).
//
// A member of the team owns one rectangle of C (a cell) and packs what it needs there, so that
// nothing is shared and no barrier is needed; who is done with a larger one helps the others
// (gemm_dealt). Products with an update or with panels are packed together and dealt out in cells
// of one block of k (gemm_shared). Inside a cell, outermost first:
//   columns by `ncb`, k by `kc`: this block of B is packed into panels that stay in half of the
//   second cache; where columns of B are contiguous, 16 x 16 blocks are transposed into the panel.
//   A panel is packed a few steps at a time between the tiles on the panel before it, each time
//   right after its source was fetched: a whole panel fetched ahead would not survive where rows
//   are a power of two apart. Where they are close, the first tile on a panel stores what it reads.
//   Few rows read B in place if its rows do not crowd each other out of the second cache.
//   Rows by `mgroup`: this group of A stays in an eighth of the second cache (a long gradient has
//   one group of all rows where the third cache is near). A is read where it lies, but transposed
//   A of many steps is packed into slivers, and rows a multiple of a page apart are copied; where
//   columns take several blocks, once for all (then k is outside columns).
//   Panels of up to 4 vectors, tiles of rows (tile.h). While tiles run, what comes next is
//   prefetched from inside their loops, evenly, so that memory and arithmetic overlap: the next
//   tile of C, B that is packed next, a part of the next group of A.
//
// The bits of the result depend on shape and strides alone: an element is the sum, in ascending
// order, of its blocks of kc products (a chain of FMAs each); kc is a function of these. Products
// with few elements and a long k are cut into slices along k, again by shape alone, and added in
// order.
//
// matmul_update: pieces are whole rows, and what a member has made of a gradient goes through the
// optimizer while it is in the second cache, where the parameter and its averages have been brought
// meanwhile. Bytes: those of the update; the gradient is written and not read again.
#include "matmul.h"
#include "matmul/blocking.h"
#include "matmul/cell.h"
#include "matmul/pack.h"
#include "matmul/sharing.h"
#include "matmul/small.h"
#include "prepare_unit.h"
#include "simd/flush.h"
#include "simd/own.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

// What it takes to pack or first read an element of A or B, in 1/16 of the time of an FMA.
GS_INLINE int64_t cost_a(const Blocking& s) {
  return s.a_mode == kSlivers ? 8 : s.a_mode == kCopied ? 4 : 2;
}
GS_INLINE int64_t cost_b(const Blocking& s) {
  return s.b_mode == kPackTransposed ? 8 : s.b_mode == kPackRows ? 3 : 1;
}

// Cuts (m, n) into gr x gc = nt cells; the cheapest of the ways to write nt as a product.
template <class T>
void grid(const MatmulParams& p, const Blocking& s, int nt, int64_t* gr, int64_t* gc) {
  const int64_t N = simd<T>::N, unit = s.panels_in || s.panels_out ? s.nv * N : N;
  int64_t best = -1;
  for (int64_t r = 1; r <= nt; ++r) {
    int64_t c = nt / r;
    int64_t rows = round_up(ceil_div(p.m, r), 2), cols = round_up(ceil_div(p.n, c), unit);
    int64_t cost = 16 * rows * cols + cost_a(s) * rows * N + cost_b(s) * cols * N;
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
  char* mine = ctx->scratch + round_up(s.slices * elements * (int64_t)sizeof(T), 4096) +
               ctx->tid * member_bytes;
  int64_t depth = round_up(ceil_div(p.k, s.slices), 16);
  for (int64_t t = ctx->tid; t < s.slices; t += ctx->nt) {
    Cell<T> x = whole;
    x.a += t * depth * x.acs;
    x.b += t * depth * x.brs;
    x.k = most(0, least(depth, p.k - t * depth));
    x.c = partial + t * elements;
    x.ldc = s.turned ? p.m : p.n;
    x.bias = nullptr;
    x.alpha = 1;
    x.add = false;
    x.act = kActNone;
    x.after = nullptr;
    run_cell(x, s, mine);
  }
  ctx->sync();
  int64_t outer = s.turned ? p.n : p.m, inner = elements / outer;
  for (int64_t i = ctx->tid; i < outer; i += ctx->nt) {
    for (int64_t j = 0; j < inner; ++j) {
      T v = partial[i * inner + j];
      for (int64_t t = 1; t < s.slices; ++t) v += partial[t * elements + i * inner + j];
      v *= whole.alpha;
      if (whole.add) v += whole.c[i * whole.ldc + j];
      if (whole.bias) v += whole.bias[s.bias_rows == s.turned ? j : i];
      if (whole.act == kActRelu) v = v < 0 ? (T)0 : v;
      whole.c[i * whole.ldc + j] = v;
    }
    if (whole.after) run_after(whole, whole.c + i * whole.ldc, 1, inner);
  }
}

// The update that follows a product, and the buffers of both.
struct Update {
  const MatmulUpdateParams& u;
  void* const* buf;

  // Rows of the parameter that are prepared together: pieces are multiples of it.
  GS_MEMBER int64_t unit() const { return u.prepared.forms ? kPreparedRows : 1; }
  GS_MEMBER void prepare_unit(int64_t t) const {
    WeightUnit{u.prepared, (const float*)buf[4], (char*)buf[4 + u.updated], t}.prepare();
  }
  GS_MEMBER void prepare(int64_t offset, int64_t n) const {
    if (!u.prepared.forms) return;
    const int64_t each = kPreparedRows * u.prepared.row;
    for (int64_t t = offset / each; t * each < offset + n; ++t) prepare_unit(t);
  }
  GS_MEMBER void prepare_all(const Ctx* ctx) const {
    for (int64_t t = ctx->tid; t < prepared_units(u.prepared); t += ctx->nt) prepare_unit(t);
  }

  // Elements offset .. offset + n - 1.
  GS_MEMBER void run(int64_t offset, int64_t n, const Ctx* ctx) const {
    struct {
      OptimizerParams rule;
      int64_t size;
    } one = {u.rule, n};
    char* at[2 + kMaxUpdated] = {nullptr};
    for (int64_t i = 0; i <= u.updated; ++i)
      at[1 + (i < 2 ? 1 - i : i)] = (char*)buf[3 + i] + offset * (int64_t)sizeof(float);
    u.update(&one, (void* const*)at, ctx);
  }
  GS_MEMBER void finish(int64_t offset, int64_t n, const Ctx& alone) const {
    run(offset, n, &alone);
    prepare(offset, n);
  }
  GS_MEMBER void announce(int64_t offset, int64_t n, Soon* soon) const {
    soon->count = u.updated;
    soon->bytes = n * (int64_t)sizeof(float);
    for (int64_t i = 0; i < u.updated; ++i)
      soon->at[i] = (const char*)buf[4 + i] + offset * (int64_t)sizeof(float);
  }
};

// Where the cell of C from row i and column j on begins, x being the whole.
template <class T>
GS_INLINE T* move_to(const Cell<T>& x, const MatmulParams& p, int64_t i, int64_t j) {
  return x.panel ? x.place(i, j) : x.c + i * p.c_rs + j * p.c_cs;
}

// A member's cell of C in pieces, the small ones at the end. A piece packs what it reads, which is
// why there are few.
constexpr int64_t kPieces = 4;
constexpr int64_t kClaims = 16;  // blocks of columns of a cell, where they are taken one by one
struct Pieces {
  bool by_columns;
  int64_t count, extent, step;

  template <class T>
  GS_MEMBER void cut(const Blocking& s, int64_t rows, int64_t cols, int64_t k) {
    const int64_t N = simd<T>::N, W = s.nv * N;
    // what one more of them costs
    const int64_t columns = cost_a(s) * rows * N + cost_b(s) * W * N, more = cost_b(s) * cols * N;
    by_columns = cols > W && (s.panels_out || columns <= more);
    extent = by_columns ? cols : rows;
    step = by_columns ? W : most(s.sliver, s.height);
    for (count = kPieces; count > 1; --count) {
      const int64_t last = extent - begin(count - 1);
      if (last >= step && last * (by_columns ? rows : cols) * k >= kUnitWork &&
          (count - 1) * (by_columns ? columns : more) * 128 <= 16 * rows * cols)
        break;
    }
  }
  // A half, a quarter and so on; of two pieces the first is three quarters.
  GS_MEMBER int64_t begin(int64_t i) const {
    return i == 0 ? 0 : round_up(extent - (extent >> (i + (count == 2))), step);
  }
};

// How many members can have a part of a product.
template <class T>
int64_t gemm_tasks(const MatmulParams& p) {
  return p.batch * ceil_div(p.m, 4) * ceil_div(p.n, simd<T>::N);
}

// How a product is dealt out.
struct Dealing {
  int64_t gr, gc, rows, cols;  // cells
  int64_t kept;                // elements of A of a block of k that a member keeps packed
  int64_t member_bytes;        // of memory of a member

  template <class T>
  GS_MEMBER void set(const MatmulParams& p, const Blocking& s, int nt) {
    gr = 1;
    gc = nt;
    if (!s.panels_out) grid<T>(p, s, nt, &gr, &gc);
    rows = round_up(ceil_div(p.m, gr), 2);
    cols = round_up(ceil_div(p.n, gc), (s.panels_out ? s.nv : 1) * simd<T>::N);
    kept = s.a_mode == kInPlace ? 0 : round_up(rows, most(s.sliver, 1)) * s.a_row;
    const int64_t bytes = kept * ceil_div(p.k, s.kc) * (int64_t)sizeof(T);
    if (bytes > 2 * p.l2) kept = 0;  // it would come from too far away
    member_bytes = s.b_bytes + (kept ? round_up(bytes + 64, 4096) : s.a_bytes);
  }
};
template <class T>
int64_t dealt_scratch(const MatmulParams& p, const Blocking& s, int64_t tasks) {
  Dealing d;
  d.set<T>(p, s, (int)tasks);
  return round_up(tasks * kCounterBytes, 4096) +
         tasks * most(d.member_bytes, s.b_bytes + s.a_bytes);
}

// Larger products of a team: everyone has a cell, and packs for itself what it needs there, so that
// no memory passes from one core to another but the operands. Cores of one machine are not equally
// fast: who is done helps the others. A cell is done by blocks of columns, its owner's from the
// left without a break, helpers' from the right; where it has too few, or too much of A to be
// packed and kept, it has pieces.
template <class T>
void gemm_dealt(const MatmulParams& p, const Blocking& blocking, const Cell<T>& whole,
                const Ctx* ctx, int64_t memory) {
  Blocking s = blocking;
  const int nt = ctx->nt;
  const int64_t W = s.nv * simd<T>::N;
  char* counters = ctx->scratch;
  Dealing d;
  d.set<T>(p, s, nt);
  const int64_t gr = d.gr, gc = d.gc, rows = d.rows, cols = d.cols;
  const bool kept = d.kept && round_up(nt * kCounterBytes, 4096) + nt * d.member_bytes <= memory;
  char* mine = counters + round_up(nt * kCounterBytes, 4096) +
               ctx->tid * (kept ? d.member_bytes : s.b_bytes + s.a_bytes);
  auto counter = [&](int r, int i) __attribute__((always_inline)) {
    return (int64_t*)(counters + r * kCounterBytes) + i;
  };
  if (ctx->tid == 0)
    for (int r = 0; r < nt; ++r) *counter(r, 0) = *counter(r, 1) = 0;
  // the rectangle of C from (i, j) to (end_i, end_j)
  auto part = [&](int64_t i, int64_t j, int64_t end_i, int64_t end_j, Cell<T>* x) {
    *x = whole;
    x->m = least(end_i, p.m) - i;
    x->n = least(end_j, p.n) - j;
    if (x->m <= 0 || x->n <= 0) return false;
    x->a += i * x->ars;
    x->b += j * x->bcs;
    if (x->bias) x->bias += s.bias_rows ? i : j;
    x->c = move_to(*x, p, i, j);
    return true;
  };
  ctx->sync();
  Cell<T> x, then;
  const int64_t narrow = round_up(ceil_div(cols, kClaims), W);
  if ((s.a_mode == kInPlace || kept) && cols > W && rows * W * p.k >= kUnitWork) {
    if (narrow < s.ncb) s.ncb = narrow;
    if (kept) {
      s.a_kept = d.kept;
      s.a_whole = false;
    }
    for (int64_t q = 0; q < nt; ++q) {
      const int64_t r = (ctx->tid + q) % nt, i = r / gc * rows, j = r % gc * cols;
      if (r >= gr * gc || !part(i, j, i + rows, j + cols, &x)) continue;
      x.claims = counter((int)r, 0);
      if (q == 0) {
        if (x.claim(s.ncb)) run_cell(x, s, mine);
        continue;
      }
      const Cell<T> cell = x;
      const int64_t blocks = ceil_div(cell.n, s.ncb);
      while (cell.claim(s.ncb)) {
        const int64_t b = blocks - 1 - __atomic_fetch_add(counter((int)r, 1), 1, __ATOMIC_RELAXED);
        part(i, j + b * s.ncb, i + rows, j + least(cols, (b + 1) * s.ncb), &x);
        run_cell(x, s, mine);
      }
    }
    return;
  }
  Pieces pieces;
  pieces.cut<T>(s, rows, cols, p.k);
  auto piece = [&](int64_t t, Cell<T>* x) {
    const int64_t r = t / pieces.count, q = t % pieces.count;
    const int64_t from = pieces.begin(q),
                  to = q + 1 < pieces.count ? pieces.begin(q + 1) : pieces.extent;
    const int64_t i = r / gc * rows, j = r % gc * cols;
    if (r >= gr * gc) return false;
    return pieces.by_columns ? part(i, j + from, i + rows, j + to, x)
                             : part(i + from, j, i + to, j + cols, x);
  };
  Tickets tickets{counters, {nt * pieces.count, 0}, nt, ctx->tid, 0};
  for (int64_t t; tickets.take(&t) >= 0;) {
    if (!piece(t, &x)) continue;
    if ((t + 1) % pieces.count && piece(t + 1, &then)) x.then = &then;  // most likely
    run_cell(x, s, mine);
  }
}

// update: what is done to whole rows that are ready, or nothing. kept: all of B, packed, where
// p.prepared.
template <class T>
void gemm_shared(const MatmulParams& p, const Blocking& s, const Cell<T>& whole, const Ctx* ctx,
                 const Update* update, const T* kept) {
  const Sharing h = sharing<T>(p, s, ctx->nt, update != nullptr, update ? update->unit() : 1);
  const int64_t W = s.nv * simd<T>::N;
  const int nt = ctx->nt;
  const int64_t set = 2 * nt * kCounterBytes;  // counters of a step: of packing, of units
  char* counters = ctx->scratch;
  char* mine = ctx->scratch + round_up(3 * set, 4096);
  char* memory = mine + nt * h.member_bytes;
  mine += ctx->tid * h.member_bytes;
  const Ctx alone = ctx->alone();
  if (ctx->tid == 0)
    for (int64_t i = 0; i < 6 * nt; ++i) *(int64_t*)(counters + i * kCounterBytes) = 0;
  if (h.private_b) {
    ctx->sync();
    const int64_t mu = ceil_div(p.m, h.unit_rows);
    Tickets tickets{counters, {mu * ceil_div(p.n, h.unit_cols), 0}, nt, ctx->tid, 0};
    Soon soon;
    auto unit = [&](int64_t t) {
      Cell<T> x = whole;
      const int64_t i = t % mu * h.unit_rows, j = t / mu * h.unit_cols;
      x.m = least(h.unit_rows, p.m - i);
      x.n = least(h.unit_cols, p.n - j);
      x.a += i * x.ars;
      x.b += j * x.bcs;
      if (x.bias) x.bias += s.bias_rows ? i : j;
      x.c = move_to(x, p, i, j);
      return x;
    };
    for (int64_t t; tickets.take(&t) >= 0;) {
      Cell<T> x = unit(t), then;
      if (t + 1 < tickets.total[0]) {  // most likely the next one
        then = unit(t + 1);
        x.then = &then;
      }
      const int64_t offset = x.c - whole.c, n = x.m * x.n;
      update->announce(offset, n, &soon);
      x.soon = &soon;
      run_cell(x, s, mine);
      update->finish(offset, n, alone);
    }
    return;
  }
  int64_t gr, gc;
  grid<T>(p, s, nt, &gr, &gc);
  const bool by_columns = gc > 1 || s.panels_in || s.panels_out;
  // no piece has whole rows
  const bool late = update && (s.turned ? h.rows < p.m : h.cols < p.n);
  const int64_t blocks = ceil_div(p.k, s.kc), across = ceil_div(p.m, h.rows);
  // the operands of step q
  auto place = [&](int64_t q, int64_t* row, int64_t* col, int64_t* k) {
    *k = q % blocks * s.kc;
    *row = q / blocks % across * h.rows;
    *col = q / blocks / across * h.cols;
    Cell<T> x = whole;
    x.k = least(s.kc, p.k - *k);
    x.m = least(h.rows, p.m - *row);
    x.n = least(h.cols, p.n - *col);
    x.a += *row * x.ars + *k * x.acs;
    x.b += *col * x.bcs + *k * x.brs;
    return x;
  };
  auto pack = [&](int64_t q) {
    int64_t row, col, k;
    const Cell<T> x = place(q, &row, &col, &k);
    T* b_to = (T*)(memory + (q & 1) * (h.a_bytes + h.b_bytes));
    SharedPack<T> work{x, s, (T*)((char*)b_to + h.b_bytes), b_to, nt, {}};
    work.count();
    if (kept) work.parts[0] = 0;
    Tickets tickets{counters + q % 3 * set, {work.parts[0], work.parts[1]}, nt, ctx->tid, 0};
    int64_t t;
    int kind;
    if (q == 0) {  // nobody has seen the counters yet
      for (int64_t i = 0; (kind = tickets.in_range(ctx->tid, i, &t)) >= 0; ++i) work.part(kind, t);
      return;
    }
    while ((kind = tickets.take(&t)) >= 0) work.part(kind, t);
  };
  pack(0);
  for (int64_t q = 0; q < h.steps; ++q) {
    ctx->sync();
    // nobody is in step q - 1 any more, and step q + 2 comes behind another barrier
    if (ctx->tid == 0 && q > 0)
      for (int64_t i = 0; i < 2 * nt; ++i)
        *(int64_t*)(counters + (q + 2) % 3 * set + i * kCounterBytes) = 0;
    int64_t row, col, k;
    const Cell<T> step = place(q, &row, &col, &k);
    const T* b = (const T*)(memory + (q & 1) * (h.a_bytes + h.b_bytes));
    const T* a = (const T*)((const char*)b + h.b_bytes);
    if (kept) b = kept + col * p.k + k * round_up(step.n, simd<T>::N);
    // whole panels a unit; the last one has a rest of less than a panel
    const int64_t nu = most(1, step.n / h.unit_cols + (step.n % h.unit_cols >= W)),
                  mu = ceil_div(step.m, h.unit_rows);
    int64_t per_block = most(1, s.ncb / h.unit_cols);
    if (by_columns) per_block = least(per_block, ceil_div(nu, nt));
    // unit t: blocks of columns, groups of rows, columns
    auto unit = [&](int64_t t) {
      int64_t block = t / (per_block * mu), in = t - block * per_block * mu;
      int64_t wide = least(per_block, nu - block * per_block);
      int64_t ju = block * per_block + in % wide, i = in / wide * h.unit_rows;
      int64_t j = ju * h.unit_cols;
      Cell<T> x = step;
      x.shared = true;
      x.m = least(h.unit_rows, step.m - i);
      x.n = ju == nu - 1 ? step.n - j : h.unit_cols;
      if (s.a_mode == kInPlace) {
        x.a += i * x.ars;
      } else if (s.a_mode == kSlivers) {
        x.a = a + i * step.k;
      } else {
        x.a = a + i * s.a_row;
        x.ars = s.a_row;
      }
      if (s.b_mode == kDirect) {
        x.b += j * x.bcs;
      } else {
        x.b = b + j * step.k;
      }
      x.c = move_to(x, p, row + i, col + j);
      bool last = k + step.k >= p.k;
      x.add = x.add || k > 0;
      if (x.bias) x.bias += s.bias_rows ? row + i : col + j;
      if (!last) {
        x.bias = nullptr;
        x.act = kActNone;
        x.after = nullptr;
      }
      return x;
    };
    Tickets tickets{counters + q % 3 * set + nt * kCounterBytes, {nu * mu, 0}, nt, ctx->tid, 0};
    const bool updates = update && !late && k + step.k >= p.k;
    Soon soon;
    for (int64_t t; tickets.take(&t) >= 0;) {
      Cell<T> x = unit(t), then;
      if (t + 1 < nu * mu) {  // most likely the next one
        then = unit(t + 1);
        x.then = &then;
      }
      const int64_t offset = x.c - whole.c, n = s.turned ? x.n * p.m : x.m * p.n;
      if (updates) {
        update->announce(offset, n, &soon);
        x.soon = &soon;
      }
      run_cell(x, s, mine);
      if (updates) update->finish(offset, n, alone);
    }
    if (q + 1 < h.steps) pack(q + 1);
  }
  if (late) {
    ctx->sync();
    update->run(0, p.m * p.n, ctx);
    if (update->unit() == 1) return;
    ctx->sync();
    update->prepare_all(ctx);
  }
}

// ---- B of a product, all of it packed beforehand (include/prepared.h)

// Whether it can be, of the products that pack it anyway.
GS_INLINE bool keeps_b(const MatmulParams& p, const Blocking& s) {
  return p.batch == 1 && s.slices == 1 && p.k > 0 && s.b_mode != kDirect &&
         p.m * p.n * p.k < kSharedMost;
}

// to[k * width + j] = from[j * ld + k] for j < rows, zero for the other lanes of one vector.
void pack_vector(const float* from, int64_t ld, int64_t depth, int rows, int64_t width, float* to) {
  constexpr int N = simd<float>::N;
  for (int64_t k = 0; k < depth; k += N, to += N * width) {
    const int64_t n = least(N, depth - k);
    if (rows == N && n == N) {
      vf v[N];
      load_transposed(from + k, ld, v);
#pragma GCC unroll 16
      for (int i = 0; i < N; ++i) store(to + i * width, v[i]);
      continue;
    }
    for (int64_t i = 0; i < n; ++i)
      for (int j = 0; j < N; ++j) to[i * width + j] = j < rows ? from[j * ld + k + i] : 0;
  }
}

// A unit of rows of B, or of its transpose: columns of B.
void prepare(const void* params, void* const* buf, const Ctx*) {
  constexpr int N = simd<float>::N;
  const FormCall& call = *(const FormCall*)params;
  const MatmulParams& p = *(const MatmulParams*)call.params;
  const float* w = (const float*)buf[0];
  float* to = (float*)buf[1];
  const int64_t end = call.first + call.count;
  if (small_kept(p)) {
    for (int64_t j = call.first; j < end; j += N) {
      int64_t panel = 0, width = 0;
      small_place(p, j, &panel, &width);
      pack_vector(w + j * p.b_cs, p.b_cs, p.k, (int)least(N, p.n - j), width,
                  to + panel * p.k + j - panel);
    }
    return;
  }
  const Blocking s = blocking<float>(p);
  const Sharing h = sharing<float>(p, s, 1, false);
  for (int64_t col = 0; col < p.n; col += h.cols) {
    const int64_t cols = least(h.cols, p.n - col), nvec = ceil_div(cols, N);
    for (int64_t v = 0; v < nvec;) {
      const int nv = panel_vectors(s.nv, nvec - v);
      const int64_t width = nv * N, at = col + v * N;  // the columns of this panel
      for (int64_t k = 0; k < p.k; k += s.kc) {
        const int64_t depth = least(s.kc, p.k - k);
        float* panel = to + col * p.k + k * nvec * N + v * N * depth;
        if (s.b_mode == kPackRows) {
          const int64_t r = most(k, call.first), n = least(k + depth, end) - r;
          if (n > 0)
            pack_rows(w + r * p.b_rs + at, p.b_rs, n, (int)least(width, p.n - at), (int)width,
                      panel + (r - k) * width);
        } else {
          for (int64_t j = most(at, call.first); j < least(at + width, end); j += N)
            pack_vector(w + j * p.b_cs + k, p.b_cs, depth, (int)least(N, p.n - j), width,
                        panel + j - at);
        }
      }
      v += nv;
    }
  }
}
void prepare_plan(const void* params, Plan* plan) {
  const MatmulParams& p = *(const MatmulParams*)params;
  plan->scratch = 0;
  if (small_kept(p) || keeps_b(p, blocking<float>(p)))
    plan->scratch = (size_t)(round_up(p.n, simd<float>::N) * p.k) * sizeof(float);
}

template <class T>
Cell<T> whole_cell(const MatmulParams& p, const Blocking& s, void* const* buf) {
  Cell<T> x;
  x.m = p.m;
  x.n = p.n;
  x.k = p.k;
  x.ars = p.a_rs;
  x.acs = p.a_cs;
  x.brs = p.b_rs;
  x.bcs = p.b_cs;
  x.ldc = s.turned ? p.c_cs : s.panels_out ? s.nv * simd<T>::N : p.c_rs;
  x.panel = s.panels_out ? p.m : 0;
  x.alpha = (T)p.alpha;
  x.add = p.accumulate != 0;
  x.act = p.act;
  x.after = p.after ? &p : nullptr;
  x.first = (T*)buf[3];
  x.other = p.after ? (T*)buf[4] : nullptr;
  x.a = (const T*)buf[0];
  x.b = (const T*)buf[1];
  x.bias = (const T*)buf[2];
  x.c = (T*)buf[3];
  x.shared = false;
  x.then = nullptr;
  x.soon = nullptr;
  x.claims = nullptr;
  return x;
}

// With B as it was packed beforehand, when it was.
bool gemm_prepared(const MatmulParams& p, void* const* buf, const Ctx* ctx) {
  const int at = p.after ? 5 : 4;
  if (!prepared_ready(buf[at], p.prepared)) return false;
  const float* kept = (const float*)buf[at + 1];
  if (small_kept(p)) {
    small_prepared(p, buf, kept, ctx);
  } else {
    const Blocking s = blocking<float>(p);
    gemm_shared<float>(p, s, whole_cell<float>(p, s, buf), ctx, nullptr, kept);
  }
  return true;
}

template <class T>
void gemm(const void* params, void* const* buf, const Ctx* ctx) {
  const MatmulParams& p = *(const MatmulParams*)params;
  const FlushSubnormals flush(sizeof(T) == 4);
  if (sizeof(T) == 4 && p.prepared) {
    if (gemm_prepared(p, buf, ctx)) return;
    MatmulParams plain = p;
    plain.prepared = 0;
    return gemm<T>(&plain, buf, ctx);
  }
  if (p.m == 0 || p.n == 0 || p.batch == 0) return;
  if (sizeof(T) == 4 && ctx->nt == 1 && small_product(p, buf, ctx->scratch)) return;
  Blocking s = blocking<T>(p);
  Cell<T> x = whole_cell<T>(p, s, buf);
  if (s.slices > 1) {
    gemm_sliced(p, s, x, ctx);
    return;
  }
  if (s.panels_in && (s.a_mode != kInPlace || p.m * p.n * p.k >= kSharedWork)) {
    gemm_shared<T>(p, s, x, ctx, nullptr, (const T*)buf[1]);
    return;
  }
  if (is_dealt<T>(p, s, ctx->nt)) {
    const int64_t tasks = most(1, least(gemm_tasks<T>(p), p.members));
    gemm_dealt<T>(p, s, x, ctx, dealt_scratch<T>(p, s, tasks));
    return;
  }
  char* mine = ctx->scratch + ctx->tid * (s.b_bytes + s.a_bytes);
  int64_t gr = 1, gc = 1;
  bool whole = p.batch % ctx->nt == 0 || p.batch >= 4 * ctx->nt;
  if (!whole) grid<T>(p, s, ctx->nt, &gr, &gc);
  int64_t cells = gr * gc;
  int64_t rows = ceil_div(p.m, gr),
          cols = round_up(ceil_div(p.n, gc), (s.panels_in || s.panels_out ? s.nv : 1) * simd<T>::N);
  x.shared = s.panels_in;  // (A in place, B in panels of all rows)
  if (rows > 2 * s.height) rows = round_up(rows, 2);
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
    x.b = b + j * cols * (s.panels_in ? p.k : x.bcs);
    x.bias = buf[2] ? (const T*)buf[2] + (s.bias_rows ? i * rows : j * cols) : nullptr;
    x.c = c;
    x.c = move_to(x, p, i * rows, j * cols);
    run_cell(x, s, mine);
  }
}

// Scratch of gemm_shared where the product always goes there.
template <class T>
size_t shared_scratch(const MatmulParams& p, int64_t tasks, bool updates, int64_t unit) {
  const Sharing h = sharing<T>(p, blocking<T>(p), tasks, updates, unit);
  return (size_t)(tasks * h.member_bytes + (h.steps > 1 ? 2 : 1) * (h.a_bytes + h.b_bytes) +
                  round_up(6 * tasks * kCounterBytes, 4096));
}

template <class T>
void gemm_plan(const void* params, Plan* plan) {
  const MatmulParams& p = *(const MatmulParams*)params;
  // operations a nanosecond
  int64_t rate = (GS_VBYTES == 64 ? 128 : GS_VBYTES == 32 ? 64 : 16) * 4 / (int64_t)sizeof(T);
  if (p.prepared) {  // room for either way
    MatmulParams plain = p;
    plain.prepared = 0;
    gemm_plan<T>(&plain, plan);
    if (!small_kept(p)) {
      const size_t with = shared_scratch<T>(p, plan->tasks, false, 1);
      plan->scratch = with > plan->scratch ? with : plan->scratch;
    }
    return;
  }
  if (sizeof(T) == 4 && small_problem(p)) {
    // what the blocking below would ask for at most: no slices, A in place, B in place or in panels
    int64_t tiles = ceil_div(p.m, 4) * ceil_div(p.n, simd<T>::N);
    plan->tasks = most(1, least(tiles, p.members));
    plan->work = 2 * p.m * p.n * p.k / rate;
    plan->scratch = 0;
    if ((p.b_cs != 1 && p.n > 1) || p.k * p.n * (int64_t)sizeof(T) > kDirectBytes)
      plan->scratch =
          (size_t)(plan->tasks *
                   round_up((round_up(p.n, 64) + 128) * round_up(p.k, 4) * (int64_t)sizeof(T) + 64,
                            4096));
    return;
  }
  Blocking s = blocking<T>(p);
  plan->tasks = most(1, least(s.slices > 1 ? s.slices : gemm_tasks<T>(p), p.members));
  plan->work = p.batch * 2 * p.m * p.n * most(p.k, 1) / rate;
  plan->scratch = (size_t)(plan->tasks * (s.b_bytes + s.a_bytes));
  if (s.slices > 1)
    plan->scratch += (size_t)round_up(s.slices * p.m * p.n * (int64_t)sizeof(T), 4096);
  if (s.panels_in) {
    plan->scratch =
        (size_t)most((int64_t)plan->scratch, (int64_t)shared_scratch<T>(p, plan->tasks, false, 1));
  } else if (is_dealt<T>(p, s, plan->tasks)) {
    plan->scratch = (size_t)dealt_scratch<T>(p, s, plan->tasks);
  }
}

void gemm_update(const void* params, void* const* buf, const Ctx* ctx) {
  const MatmulUpdateParams& u = *(const MatmulUpdateParams*)params;
  const FlushSubnormals flush;
  const Blocking s = blocking<float>(u.product);
  const Update update{u, buf};
  gemm_shared<float>(u.product, s, whole_cell<float>(u.product, s, buf), ctx, &update, nullptr);
}

void gemm_update_plan(const void* params, Plan* plan) {
  const MatmulUpdateParams& u = *(const MatmulUpdateParams*)params;
  const MatmulParams& p = u.product;
  gemm_plan<float>(&p, plan);
  plan->work += (int64_t)(0.8 * (double)(p.m * p.n));
  plan->scratch = shared_scratch<float>(p, plan->tasks, true, u.prepared.forms ? kPreparedRows : 1);
}

const KernelEntry entries[] = {
    {"prepare_matmul", kF32, prepare, prepare_plan},
    {"matmul_update", kF32, gemm_update, gemm_update_plan},
    {"matmul", kF32, gemm<float>, gemm_plan<float>},
    {"matmul", kF64, gemm<double>, gemm_plan<double>},
};

}  // namespace

extern const KernelList matmul_gemm_kernels;
const KernelList matmul_gemm_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
