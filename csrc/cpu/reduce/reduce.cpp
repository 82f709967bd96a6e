// Reductions of float arrays over any axes.
//
// Inner axis reduced: pieces of up to 1024 contiguous elements are summed in 64 logical lanes
// (element i goes to lane i mod 64, whatever the width of the vectors), the lanes are folded 32,
// 16, 8, 4, 2, 1, and the pieces of one output are combined as a binary tree. Inner axis kept
// (column sums): groups of 16 rows are summed in order, strip of columns by strip, and the groups
// are combined as a binary tree. So the order is a function of the shape alone, the same on every
// instruction set and with any number of threads, and the error is at most eps (4 + log2 n) times
// the sum of magnitudes.
//
// Each element is read once: the floor is the read bandwidth. Long reductions are cut into segments
// of 64 pieces (64 Ki elements), one task each, whose results a second phase combines.
#include "reduce.h"

#include "simd/transpose.h"
#include "simd/vmath.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kPiece = 1024;  // elements of a piece
constexpr int64_t kPieces = 64;   // pieces of a segment
constexpr int64_t kRows = 16;     // rows of a group
constexpr int64_t kStrip = 512;   // columns of a strip
constexpr int64_t kTask = 32768;  // elements worth a task
constexpr int kLevels = 48;
constexpr int kStripLevels = 20;  // a segment has at most 2^17 rows

// An op: map(x, center) is what is accumulated, join combines two partial results; kShort: rows of
// up to 16 elements have their own form (ops without a center).
#define GS_OP(Name, short_, identity_, map_, join_) \
  struct Name {                                     \
    static constexpr bool kShort = short_;          \
    template <class T>                              \
    GS_MEMBER static T identity() {                 \
      return (T)(identity_);                        \
    }                                               \
    template <class V>                              \
    GS_MEMBER static V map(V x, V c) {              \
      (void)c;                                      \
      return map_;                                  \
    }                                               \
    template <class V>                              \
    GS_MEMBER static V join(V a, V b) {             \
      return join_;                                 \
    }                                               \
  };
GS_OP(Sum, true, 0, x, a + b)
GS_OP(Prod, false, 1, x, a* b)
GS_OP(Max, true, -__builtin_inf(), x, ((b > a) | (b != b)) ? b : a)
GS_OP(Min, true, __builtin_inf(), x, ((b < a) | (b != b)) ? b : a)
GS_OP(SumAbs, false, 0, abs(x), a + b)
GS_OP(SumSquare, false, 0, x* x, a + b)
GS_OP(MaxAbs, false, 0, abs(x), ((b > a) | (b != b)) ? b : a)
GS_OP(SumSquareDev, false, 0, (x - c) * (x - c), a + b)
GS_OP(SumExpDev, false, 0, exp(x - c), a + b)

// What an op does, as functions: the loops around them are compiled once for all ops.
template <class T>
struct Functions {
  T identity;
  T (*join)(T a, T b);
  T (*piece)(const T* p, int64_t n, T center);
  void (*short_rows)(const T* p, int64_t stride, int rows, int64_t n, T* result);  // or null
  void (*join_strip)(const T* older, T* newer, int64_t n);
  void (*group_strip)(const T* const* row, int count, const T* center, T* acc, int64_t n);
};

// A binary counter of partial results: the i-th pushed value meets the others as in a binary tree.
template <class T>
struct Tree {
  const Functions<T>* f;
  T level[kLevels];
  int64_t count = 0;
  GS_MEMBER explicit Tree(const Functions<T>& functions) : f(&functions) {}
  GS_MEMBER void push(T x) {
    int l = 0;
    for (int64_t c = count; c & 1; c >>= 1, ++l) x = f->join(level[l], x);
    level[l] = x;
    ++count;
  }
  GS_MEMBER T total() const {
    T x = f->identity;
    bool any = false;
    for (int l = 0; l < kLevels && (count >> l); ++l)
      if ((count >> l) & 1) {
        x = any ? f->join(level[l], x) : level[l];
        any = true;
      }
    return x;
  }
};

// lanes 0 .. n - 1 of x, the others the identity
template <class Op, class T>
GS_INLINE typename simd<T>::V first(typename simd<T>::V x, int n) {
  return iota<T>() < set1((typename simd<T>::S)n) ? x : set1(Op::template identity<T>());
}

// The result over p[0 .. n), 1 <= n <= kPiece
template <class Op, class T>
__attribute__((noinline)) T piece(const T* p, int64_t n, T center) {
  typedef typename simd<T>::V V;
  constexpr int N = simd<T>::N, L = 64 / N, L16 = 16 / N;
  const V c = set1(center);
  V acc[L];
  if (n > 16) {
#pragma GCC unroll 32
    for (int l = 0; l < L; ++l) {
      int64_t left = n - l * N;
      acc[l] = left >= N  ? Op::map(load(p + l * N), c)
               : left > 0 ? first<Op, T>(Op::map(load_n(p + l * N, (int)left), c), (int)left)
                          : set1(Op::template identity<T>());
    }
    int64_t i = 64;
    for (; i + 64 <= n; i += 64) {
#pragma GCC unroll 32
      for (int l = 0; l < L; ++l) acc[l] = Op::join(acc[l], Op::map(load(p + i + l * N), c));
    }
    if (i < n) {
#pragma GCC unroll 32
      for (int l = 0; l < L; ++l) {
        int64_t left = n - i - l * N;
        if (left >= N)
          acc[l] = Op::join(acc[l], Op::map(load(p + i + l * N), c));
        else if (left > 0)
          acc[l] = Op::join(acc[l],
                            first<Op, T>(Op::map(load_n(p + i + l * N, (int)left), c), (int)left));
      }
    }
#pragma GCC unroll 32
    for (int l = 0; l < L / 2; ++l) acc[l] = Op::join(acc[l], acc[l + L / 2]);
#pragma GCC unroll 32
    for (int l = 0; l < L / 4; ++l) acc[l] = Op::join(acc[l], acc[l + L / 4]);
  } else {
#pragma GCC unroll 32
    for (int l = 0; l < L16; ++l) {
      int64_t left = n - l * N;
      acc[l] = left >= N  ? Op::map(load(p + l * N), c)
               : left > 0 ? first<Op, T>(Op::map(load_n(p + l * N, (int)left), c), (int)left)
                          : set1(Op::template identity<T>());
    }
  }
  T a[16];
#pragma GCC unroll 32
  for (int l = 0; l < L16; ++l) store(a + l * N, acc[l]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = Op::join(a[i], a[i + 8]);
#pragma GCC unroll 8
  for (int i = 0; i < 4; ++i) a[i] = Op::join(a[i], a[i + 4]);
  return Op::join(Op::join(a[0], a[2]), Op::join(a[1], a[3]));
}

// The results over N rows of n <= 16 elements at once, `stride` apart: tiles of the rows are
// transposed in registers, so that lanes are rows; the order of the tree is that of piece().
template <class Op, class T>
__attribute__((noinline)) void short_rows(const T* p, int64_t stride, int rows, int64_t n,
                                          T* result) {
  typedef typename simd<T>::V V;
  constexpr int N = simd<T>::N, L16 = 16 / N;
  V a[16];
#pragma GCC unroll 16
  for (int h = 0; h < L16; ++h) {
    int64_t left = n - h * N;
    int m = left >= N ? N : (left > 0 ? (int)left : 0);
    V v[N];
#pragma GCC unroll 16
    for (int r = 0; r < N; ++r) v[r] = r < rows && m > 0 ? load_n(p + r * stride + h * N, m) : V{};
    transpose<T>(v);
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j)
      a[h * N + j] = h * N + j < n ? Op::map(v[j], V{}) : set1(Op::template identity<T>());
  }
#pragma GCC unroll 4
  for (int half = 8; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) a[i] = Op::join(a[i], a[i + half]);
  }
  store(result, a[0]);
}

template <class T>
GS_INLINE T finish(const ReduceParams& p, T r, T center) {
  switch (p.post) {
    case kScale:
      return r * (T)p.scale;
    case kScaleRoot:
      return (T)__builtin_sqrt((double)(r * (T)p.scale));
    case kRoot:
      return (T)__builtin_sqrt((double)r);
    case kLogPlusCenter:
      return (T)(center + (T)::log((double)r));
    default:
      return r;
  }
}

GS_INLINE int64_t product(const int64_t* shape, int ndim) {
  int64_t n = 1;
  for (int d = 0; d < ndim; ++d) n *= shape[d];
  return n;
}
GS_INLINE int64_t offset_of(int64_t i, int ndim, const int64_t* shape, const int64_t* strides) {
  if (ndim == 1) return i * strides[0];
  int64_t o = 0;
  for (int d = ndim - 1; d >= 0; --d) {
    o += i % shape[d] * strides[d];
    i /= shape[d];
  }
  return o;
}

// The rows of a reduction, one after the other: offsets over the reduced outer axes.
struct Rows {
  const ReduceParams* p;
  int64_t idx[kMaxDims], offset;
  GS_MEMBER void seek(const ReduceParams& params, int64_t row) {
    p = &params;
    offset = 0;
    for (int d = p->reduce_ndim - 1; d >= 0; --d) {
      idx[d] = row % p->reduce_shape[d];
      row /= p->reduce_shape[d];
      offset += idx[d] * p->reduce_in[d];
    }
  }
  GS_MEMBER void next() {
    for (int d = p->reduce_ndim - 1; d >= 0; --d) {
      offset += p->reduce_in[d];
      if (++idx[d] < p->reduce_shape[d]) return;
      offset -= p->reduce_shape[d] * p->reduce_in[d];
      idx[d] = 0;
    }
  }
};

// ---- the shape of the work
struct InnerSplit {
  int64_t outputs, rows, per_row, pieces, segments, group, tasks;
};
GS_INLINE InnerSplit split_inner(const ReduceParams& p) {
  InnerSplit s;
  s.outputs = product(p.keep_shape, p.keep_ndim);
  s.rows = product(p.reduce_shape, p.reduce_ndim);
  s.per_row = (p.inner + kPiece - 1) / kPiece;
  s.pieces = s.rows * s.per_row;
  // short rows make short pieces: more of them to a segment, still a power of two
  int64_t per_segment = kPieces;
  if (p.inner > 0)
    while (per_segment * (p.inner < kPiece ? p.inner : kPiece) < kTask) per_segment *= 2;
  s.segments = (s.pieces + per_segment - 1) / per_segment;
  if (s.segments < 1) s.segments = 1;
  int64_t each = s.rows * p.inner;
  s.group = s.segments > 1 || each >= kTask ? 1 : kTask / (each > 0 ? each : 1);
  s.tasks = s.segments > 1 ? s.outputs * s.segments : (s.outputs + s.group - 1) / s.group;
  s.per_row = s.per_row < 1 ? 1 : s.per_row;
  return s;
}
GS_INLINE int64_t segment_pieces(const ReduceParams& p) {
  int64_t per_segment = kPieces;
  while (per_segment * (p.inner < kPiece ? p.inner : kPiece) < kTask) per_segment *= 2;
  return per_segment;
}

struct OuterSplit {
  int64_t outputs, rows, strips, segment_rows, segments, group, tasks;
};
GS_INLINE OuterSplit split_outer(const ReduceParams& p) {
  OuterSplit s;
  s.outputs = product(p.keep_shape, p.keep_ndim);
  s.rows = product(p.reduce_shape, p.reduce_ndim);
  s.strips = (p.inner + kStrip - 1) / kStrip;
  int64_t width = p.inner < kStrip ? p.inner : kStrip;
  s.segment_rows = kRows;
  while (s.segment_rows * width < 2 * kTask) s.segment_rows *= 2;
  s.segments = (s.rows + s.segment_rows - 1) / s.segment_rows;
  if (s.segments < 1) s.segments = 1;
  int64_t each = s.rows * width;
  s.group =
      s.segments > 1 || each >= kTask ? 1 : kTask / (each > 0 ? each : 1);  // outputs of a task
  s.tasks = s.segments > 1 ? s.outputs * s.strips * s.segments
                           : (s.outputs * s.strips + s.group - 1) / s.group;
  return s;
}

// ---- inner axis reduced
template <class T>
T inner_range(const ReduceParams& p, const Functions<T>& f, const T* in, int64_t per_row,
              int64_t begin, int64_t end, T center) {
  Tree<T> tree(f);
  Rows rows;
  rows.seek(p, begin / per_row);
  int64_t at = begin % per_row * kPiece;
  for (int64_t i = begin; i < end; ++i) {
    int64_t n = p.inner - at < kPiece ? p.inner - at : kPiece;
    tree.push(f.piece(in + rows.offset + at, n, center));
    at += kPiece;
    if (at >= p.inner) {
      at = 0;
      rows.next();
    }
  }
  return tree.total();
}

template <class T>
void run_inner(const ReduceParams& p, const Functions<T>& f, const T* in, const T* center, T* out,
               const Ctx* ctx) {
  const InnerSplit s = split_inner(p);
  if (s.segments == 1) {
    for (int64_t t = ctx->tid; t < s.tasks; t += ctx->nt) {
      int64_t e = (t + 1) * s.group < s.outputs ? (t + 1) * s.group : s.outputs;
      if (f.short_rows && s.pieces == 1 && p.inner <= 16 && p.keep_ndim == 1 &&
          p.keep_out[0] == 1) {
        constexpr int N = simd<T>::N;
        for (int64_t i = t * s.group; i < e; i += N) {
          int m = e - i < N ? (int)(e - i) : N;
          T r[N];
          f.short_rows(in + i * p.keep_in[0], p.keep_in[0], m, p.inner, r);
          for (int j = 0; j < m; ++j) out[i + j] = finish(p, r[j], (T)0);
        }
        continue;
      }
      for (int64_t i = t * s.group; i < e; ++i) {
        int64_t o = offset_of(i, p.keep_ndim, p.keep_shape, p.keep_out);
        const T* x = in + offset_of(i, p.keep_ndim, p.keep_shape, p.keep_in);
        T c = center ? center[o] : (T)0, r;
        if (s.pieces == 1)
          r = f.piece(x, p.inner, c);
        else
          r = inner_range(p, f, x, s.per_row, 0, s.pieces, c);
        out[o] = finish(p, r, c);
      }
    }
    return;
  }
  T* partial = (T*)ctx->scratch;  // (outputs, segments)
  const int64_t per_segment = segment_pieces(p);
  for (int64_t t = ctx->tid; t < s.tasks; t += ctx->nt) {
    int64_t i = t / s.segments, b = t % s.segments * per_segment;
    int64_t e = b + per_segment < s.pieces ? b + per_segment : s.pieces;
    T c = center ? center[offset_of(i, p.keep_ndim, p.keep_shape, p.keep_out)] : (T)0;
    partial[t] = inner_range(p, f, in + offset_of(i, p.keep_ndim, p.keep_shape, p.keep_in),
                             s.per_row, b, e, c);
  }
  ctx->sync();
  for (int64_t i = ctx->tid; i < s.outputs; i += ctx->nt) {
    int64_t o = offset_of(i, p.keep_ndim, p.keep_shape, p.keep_out);
    Tree<T> tree(f);
    for (int64_t k = 0; k < s.segments; ++k) tree.push(partial[i * s.segments + k]);
    out[o] = finish(p, tree.total(), center ? center[o] : (T)0);
  }
}

// ---- inner axis kept
// y[0 .. n) = join(y, x) or, the other way round, the join of an older x with a newer y
template <class Op, class T>
__attribute__((noinline)) void join_strip(const T* older, T* newer, int64_t n) {
  constexpr int N = simd<T>::N;
  int64_t i = 0;
  for (; i + N <= n; i += N) store(newer + i, Op::join(load(older + i), load(newer + i)));
  if (i < n)
    store_n(newer + i, Op::join(load_n(older + i, (int)(n - i)), load_n(newer + i, (int)(n - i))),
            (int)(n - i));
}

// acc[0 .. n) over rows row[0 .. count), 1 <= count <= kRows; center: n values or nullptr
template <class Op, class T>
__attribute__((noinline)) void group_strip(const T* const* row, int count, const T* center, T* acc,
                                           int64_t n) {
  typedef typename simd<T>::V V;
  constexpr int N = simd<T>::N, U = 4;
  int64_t i = 0;
  for (; i + U * N <= n; i += U * N) {
    V a[U], c[U];
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      c[u] = center ? load(center + i + u * N) : V{};
      a[u] = Op::map(load(row[0] + i + u * N), c[u]);
    }
    for (int r = 1; r < count; ++r) {
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) a[u] = Op::join(a[u], Op::map(load(row[r] + i + u * N), c[u]));
    }
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) store(acc + i + u * N, a[u]);
  }
  for (; i < n; i += N) {
    int m = n - i < N ? (int)(n - i) : N;
    V c = center ? load_n(center + i, m) : V{};
    V a = Op::map(load_n(row[0] + i, m), c);
    for (int r = 1; r < count; ++r) a = Op::join(a, Op::map(load_n(row[r] + i, m), c));
    store_n(acc + i, a, m);
  }
}

// result (n) over rows [begin, end) of the strip at in; room: kStripLevels strips
template <class T>
void strip_range(const ReduceParams& p, const Functions<T>& f, const T* in, int64_t begin,
                 int64_t end, const T* center, T (*room)[kStrip], T* result, int64_t n) {
  T* level[kStripLevels];
  for (int l = 0; l < kStripLevels; ++l) level[l] = room[l];
  T* spare = result;
  Rows rows;
  rows.seek(p, begin);
  int64_t count = 0;
  for (int64_t r = begin; r < end; r += kRows) {
    int m = end - r < kRows ? (int)(end - r) : (int)kRows;
    const T* row[kRows];
    for (int k = 0; k < m; ++k) {
      row[k] = in + rows.offset;
      rows.next();
    }
    f.group_strip(row, m, center, spare, n);
    int l = 0;
    for (int64_t c = count; c & 1; c >>= 1, ++l) f.join_strip(level[l], spare, n);
    T* swap = level[l];
    level[l] = spare;
    spare = swap;
    ++count;
  }
  T* x = nullptr;
  for (int l = 0; l < kStripLevels && (count >> l); ++l)
    if ((count >> l) & 1) {
      if (x)
        f.join_strip(level[l], x, n);
      else
        x = level[l];
    }
  for (int64_t i = 0; i < n; ++i) {
    T v = x ? x[i] : f.identity;
    result[i] = v;
  }
}

template <class T>
void run_outer(const ReduceParams& p, const Functions<T>& f, const T* in, const T* center, T* out,
               const Ctx* ctx) {
  const OuterSplit s = split_outer(p);
  T room[kStripLevels][kStrip];
  T sum[kStrip], mid[kStrip];
  if (s.segments == 1) {
    for (int64_t t = ctx->tid; t < s.tasks; t += ctx->nt) {
      int64_t e = (t + 1) * s.group, all = s.outputs * s.strips;
      if (e > all) e = all;
      for (int64_t q = t * s.group; q < e; ++q) {
        int64_t i = q / s.strips, c0 = q % s.strips * kStrip;
        int64_t n = p.inner - c0 < kStrip ? p.inner - c0 : kStrip;
        int64_t o = offset_of(i, p.keep_ndim, p.keep_shape, p.keep_out) + c0 * p.inner_out;
        const T* x = in + offset_of(i, p.keep_ndim, p.keep_shape, p.keep_in) + c0;
        const T* cp = nullptr;
        if (center) {
          for (int64_t k = 0; k < n; ++k) mid[k] = center[o + k * p.inner_out];
          cp = mid;
        }
        strip_range(p, f, x, 0, s.rows, cp, room, sum, n);
        for (int64_t k = 0; k < n; ++k)
          out[o + k * p.inner_out] = finish(p, sum[k], center ? mid[k] : (T)0);
      }
    }
    return;
  }
  T* partial = (T*)ctx->scratch;  // (outputs, segments, inner)
  for (int64_t t = ctx->tid; t < s.tasks; t += ctx->nt) {
    int64_t c0 = t % s.strips * kStrip, g = t / s.strips % s.segments,
            i = t / s.strips / s.segments;
    int64_t n = p.inner - c0 < kStrip ? p.inner - c0 : kStrip;
    int64_t b = g * s.segment_rows, e = b + s.segment_rows < s.rows ? b + s.segment_rows : s.rows;
    const T* x = in + offset_of(i, p.keep_ndim, p.keep_shape, p.keep_in) + c0;
    const T* cp = nullptr;
    if (center) {
      int64_t o = offset_of(i, p.keep_ndim, p.keep_shape, p.keep_out) + c0 * p.inner_out;
      for (int64_t k = 0; k < n; ++k) mid[k] = center[o + k * p.inner_out];
      cp = mid;
    }
    strip_range(p, f, x, b, e, cp, room, sum, n);
    T* to = partial + (i * s.segments + g) * p.inner + c0;
    for (int64_t k = 0; k < n; ++k) to[k] = sum[k];
  }
  ctx->sync();
  for (int64_t q = ctx->tid; q < s.outputs * s.strips; q += ctx->nt) {
    int64_t i = q / s.strips, c0 = q % s.strips * kStrip;
    int64_t n = p.inner - c0 < kStrip ? p.inner - c0 : kStrip;
    int64_t o = offset_of(i, p.keep_ndim, p.keep_shape, p.keep_out) + c0 * p.inner_out;
    for (int64_t k = 0; k < n; ++k) {
      Tree<T> tree(f);
      for (int64_t g = 0; g < s.segments; ++g)
        tree.push(partial[(i * s.segments + g) * p.inner + c0 + k]);
      out[o + k * p.inner_out] =
          finish(p, tree.total(), center ? center[o + k * p.inner_out] : (T)0);
    }
  }
}

template <class Op, class T>
T join_values(T a, T b) {
  return Op::join(a, b);
}

template <class Op, class T>
Functions<T> functions_of() {
  Functions<T> f = {};
  f.identity = Op::template identity<T>();
  f.join = join_values<Op, T>;
  f.piece = piece<Op, T>;
  if constexpr (Op::kShort) f.short_rows = short_rows<Op, T>;
  f.join_strip = join_strip<Op, T>;
  f.group_strip = group_strip<Op, T>;
  return f;
}

template <class T>
Functions<T> functions_of(int op) {
  switch (op) {
    case kProd:
      return functions_of<Prod, T>();
    case kMax:
      return functions_of<Max, T>();
    case kMin:
      return functions_of<Min, T>();
    case kSumAbs:
      return functions_of<SumAbs, T>();
    case kSumSquare:
      return functions_of<SumSquare, T>();
    case kMaxAbs:
      return functions_of<MaxAbs, T>();
    case kSumSquareDev:
      return functions_of<SumSquareDev, T>();
    case kSumExpDev:
      return functions_of<SumExpDev, T>();
    default:
      return functions_of<Sum, T>();
  }
}

template <class T>
void reduce(const void* params, void* const* buf, const Ctx* ctx) {
  const ReduceParams& p = *(const ReduceParams*)params;
  const T *in = (const T*)buf[0], *center = (const T*)buf[1];
  T* out = (T*)buf[2];
  const Functions<T> f = functions_of<T>(p.op);
  if (p.inner_kept)
    run_outer(p, f, in, center, out, ctx);
  else
    run_inner(p, f, in, center, out, ctx);
}

template <class T>
void reduce_plan(const void* params, Plan* plan) {
  const ReduceParams& p = *(const ReduceParams*)params;
  int64_t outputs = product(p.keep_shape, p.keep_ndim),
          rows = product(p.reduce_shape, p.reduce_ndim);
  if (p.inner_kept) {
    const OuterSplit s = split_outer(p);
    plan->tasks = s.tasks;
    if (s.segments > 1) plan->scratch = (size_t)(s.outputs * s.segments * p.inner) * sizeof(T);
  } else {
    const InnerSplit s = split_inner(p);
    plan->tasks = s.tasks;
    if (s.segments > 1) plan->scratch = (size_t)(s.outputs * s.segments) * sizeof(T);
  }
  int64_t n = outputs * rows * p.inner;
  plan->work = n / (p.op == kSumExpDev ? 2 : 8) + outputs * rows * 4;
}

const KernelEntry entries[] = {
    {"reduce", kF32, reduce<float>, reduce_plan<float>},
    {"reduce", kF64, reduce<double>, reduce_plan<double>},
};

}  // namespace

extern const KernelList reduce_reduce_kernels;
const KernelList reduce_reduce_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
