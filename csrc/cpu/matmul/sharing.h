// How a product is dealt out in units (gemm.cpp, gemm_shared), and how its operands are packed by
// all members together.
#pragma once
#include "matmul/cell.h"
#include "simd/own.h"

namespace gs {
namespace GS_ISA {
namespace {

// A product with an update, or of panels: its pieces go to whoever is free, and what they read is
// packed by all into memory that they share. C is cut along k into steps of one block (and where
// the operands are large, along rows and columns, too). For each, A and B are packed by all into
// memory that they share, then units of C are taken, everyone from a range of its own first, so
// that its part of the operands stays in its caches, then from what the others have left. The next
// step is packed by who finds no unit any more; one barrier a step.
constexpr int64_t kSharedBytes = 8 << 20;          // packed B of a step, and packed A
constexpr int64_t kSharedWork = 1 << 24;           // products of numbers from which it pays
constexpr int64_t kSharedMost = (int64_t)1 << 35;  // and up to which: larger ones wait for memory
constexpr int64_t kUnitWork = 3 << 20;             // of a unit, at least
constexpr int64_t kUnits = 12;                     // of a member, about
constexpr int64_t kCounterBytes = 64;              // a line each
constexpr int64_t kPackSteps = 16;                 // steps of k packed together
constexpr int64_t kTurnSteps = 256;                // steps of k of a panel transposed together
constexpr int64_t kCopyRows = 16;                  // rows of A copied together

struct Sharing {
  int64_t rows, cols;            // of a step
  int64_t unit_rows, unit_cols;  // of a piece of C
  int64_t a_bytes, b_bytes;      // packed operands of a step
  int64_t steps, member_bytes;   // of memory that a member has for itself
  // a long gradient, updated by columns: a unit has all rows and all of k, and packs its columns
  bool private_b;
};

// updates: a piece of C is whole rows, or columns of a transposed problem, a multiple of `unit` of
// them.
template <class T>
Sharing sharing(const MatmulParams& p, const Blocking& s, int64_t nt, bool updates,
                int64_t unit = 1) {
  constexpr int64_t size = sizeof(T);
  int64_t W = s.nv * simd<T>::N;
  int64_t group = s.a_mode == kSlivers ? most(s.sliver, s.height) : s.height;
  if (updates) {
    while (group % unit) group += s.a_mode == kSlivers ? most(s.sliver, s.height) : s.height;
    while (s.turned && W % unit) W += s.nv * simd<T>::N;
  }
  Sharing h;
  h.private_b = updates && s.turned && long_gradient(p) && s.a_mode == kInPlace && !p.prepared &&
                !s.panels_in && ceil_div(p.n, W) >= 4 * nt;
  h.rows = p.m;
  h.cols = p.n;
  if (s.b_mode != kDirect && !h.private_b) {
    int64_t most_cols = most(s.ncb, kSharedBytes / (s.kc * size) / W * W);
    h.cols = round_up(ceil_div(p.n, ceil_div(p.n, most_cols)), W);
  }
  if (s.a_mode != kInPlace) {
    int64_t most_rows = most(s.mgroup, kSharedBytes / (s.a_row * size) / group * group);
    h.rows = round_up(ceil_div(p.m, ceil_div(p.m, most_rows)), group);
  }
  h.steps = h.private_b
                ? 1
                : ceil_div(p.n, h.cols) * ceil_div(p.m, h.rows) * most(1, ceil_div(p.k, s.kc));
  h.b_bytes = s.b_mode == kDirect || h.private_b || p.prepared || s.panels_in
                  ? 0
                  : round_up(round_up(h.cols, W) * s.kc * size + 64, 4096);
  h.a_bytes =
      s.a_mode == kInPlace ? 0 : round_up(round_up(h.rows, group) * s.a_row * size + 64, 4096);
  h.member_bytes = h.private_b ? s.b_bytes + s.a_bytes : s.b_mode == kDirect ? s.b_bytes : 0;
  int64_t rows = h.rows, cols = h.cols, k = h.private_b ? p.k : least(p.k, s.kc);
  h.unit_rows = least(s.mgroup, round_up(rows, group));
  h.unit_cols = least(s.ncb, round_up(cols, W));
  if (updates) {
    // rows of C as they lie in memory
    auto part = [&](int64_t count, int64_t other, int64_t step) __attribute__((always_inline)) {
      return round_up(most(ceil_div(count, kUnits * nt), ceil_div(kUnitWork / 2, other * k)), step);
    };
    h.unit_cols = s.turned ? part(cols, rows, W) : round_up(cols, W);
    h.unit_rows = s.turned ? round_up(rows, group) : part(rows, cols, group);
    // A is read once a unit: as wide as packed B may be, but four of a member
    if (h.private_b) {
      h.unit_cols = most(h.unit_cols, least(s.ncb / W * W, round_up(ceil_div(cols, 4 * nt), W)));
      h.unit_rows = p.m;
    }
    return h;
  }
  // columns of a chain of products stay with one member, and so in its caches
  if (s.panels_in || s.panels_out)
    h.unit_cols = least(h.unit_cols, round_up(ceil_div(cols, nt), W));
  for (;;) {
    const int64_t count = ceil_div(rows, h.unit_rows) * ceil_div(cols, h.unit_cols);
    // of three units one member gets two: rather smaller ones
    const bool coarse = count < 4 * nt;
    if (count >= kUnits * nt ||
        h.unit_rows * h.unit_cols * k < (coarse ? kUnitWork / 2 : 2 * kUnitWork))
      break;
    if (h.unit_cols > 2 * W)
      h.unit_cols = round_up(h.unit_cols / 2, W);
    else if (h.unit_rows > (coarse ? 4 : 8) * group)
      h.unit_rows = round_up(h.unit_rows / 2, group);
    else
      break;
  }
  return h;
}

template <class T>
bool is_dealt(const MatmulParams& p, const Blocking& s, int64_t nt) {
  return nt > 1 && p.batch == 1 && s.slices == 1 && p.k > 0 && p.m * p.n * p.k >= kSharedWork &&
         p.m * p.n * p.k < kSharedMost;
}

// Numbers of two kinds, 0 .. total - 1 each, every one given to one member: to everyone from its
// own range of both, then from the others'. counters: one a member, zero at first.
struct Tickets {
  char* counters;
  int64_t total[2];
  int nt, tid, at;

  GS_MEMBER int64_t first(int kind, int r) const { return total[kind] * r / nt; }
  GS_MEMBER int64_t size(int kind, int r) const { return first(kind, r + 1) - first(kind, r); }
  // Number i of range r; its kind, or -1.
  GS_MEMBER int in_range(int r, int64_t i, int64_t* number) const {
    int kind = i >= size(0, r);
    if (kind) i -= size(0, r);
    *number = first(kind, r) + i;
    return i < size(kind, r) ? kind : -1;
  }
  GS_MEMBER int take(int64_t* number) {
    for (; at < nt; ++at) {
      int r = tid + at < nt ? tid + at : tid + at - nt;
      int kind = in_range(
          r, __atomic_fetch_add((int64_t*)(counters + r * kCounterBytes), 1, __ATOMIC_RELAXED),
          number);
      if (kind >= 0) return kind;
    }
    return -1;
  }
};

// Memory that is about to be read and written.
GS_INLINE void fetch_rows(const void* p, int64_t rows, int64_t stride, int64_t bytes) {
  const char* row = (const char*)p;
  for (int64_t i = 0; i < rows; ++i, row += stride)
    for (int64_t j = 0; j < bytes; j += 64) __builtin_prefetch(row + j, 0, 2);
}
GS_INLINE void own_bytes(void* p, int64_t bytes) {
  for (int64_t j = 0; j < bytes; j += 64) own((char*)p + j, 0);
}

// The operands of a step of a shared product on their way into its memory, in parts: B, then A.
// Where rows are copied, a part is some steps of k for all of them, so that it is read in order.
template <class T>
struct SharedPack {
  const Cell<T>& x;
  const Blocking& s;
  T *a_to, *b_to;
  int64_t nt;
  int64_t parts[2];  // of B, of A

  static constexpr int N = simd<T>::N;
  static constexpr int64_t size = sizeof(T);

  GS_MEMBER void count() {
    parts[0] = s.b_mode == kDirect     ? 0
               : s.b_mode == kPackRows ? nt * ceil_div(x.k, kPackSteps)
                                       : ceil_div(ceil_div(x.n, N), s.nv) * turns();
    parts[1] = s.a_mode == kInPlace   ? 0
               : s.a_mode == kSlivers ? ceil_div(x.k, kPackSteps)
                                      : ceil_div(x.m, kCopyRows);
  }
  GS_MEMBER void part(int kind, int64_t t) {
    if (kind)
      s.a_mode == kSlivers ? slivers(t) : copy(t);
    else
      s.b_mode == kPackRows ? rows(t) : turn(t);
  }
  GS_MEMBER void rows(int64_t t) {
    // some steps of the columns of one member
    const int64_t chunks = ceil_div(x.k, kPackSteps), r = t / chunks,
                  k = (t - r * chunks) * kPackSteps;
    const int64_t n = least(kPackSteps, x.k - k), nvec = ceil_div(x.n, N);
    const int64_t whole = nvec / s.nv - (nvec % s.nv == 1);
    const int64_t end = r + 1 < nt ? whole * (r + 1) / nt * s.nv : nvec;
    const T* from = x.b + k * x.brs;
    for (int64_t v = whole * r / nt * s.nv; v < end;) {
      int nv = panel_vectors(s.nv, nvec - v);
      const int width = nv * N;
      int64_t next = v + nv, ahead = next < end ? least(s.nv * N, x.n - next * N) : 0;
      if (ahead > 0) {
        fetch_rows(from + next * N, n, x.brs * size, ahead * size);
        own_bytes(b_to + next * N * x.k + k * width, n * ahead * size);
      }
      pack_rows(from + v * N, x.brs, n, (int)least(width, x.n - v * N), width,
                b_to + v * N * x.k + k * width);
      v = next;
    }
  }
  // Parts of a panel that is transposed.
  GS_MEMBER int64_t turns() const { return ceil_div(x.k, kTurnSteps); }
  GS_MEMBER void turn(int64_t part) {
    const int64_t t = part / turns(), first = part % turns() * kTurnSteps,
                  end = least(x.k, first + kTurnSteps);
    // the panel before the last may be narrower
    const int64_t nvec = ceil_div(x.n, N);
    int64_t v = t * s.nv;
    if (t > 0 && nvec - v <= s.nv) v += panel_vectors(s.nv, nvec - v + s.nv) - s.nv;
    const int width = panel_vectors(s.nv, nvec - v) * N, cols = (int)least(width, x.n - v * N);
    const T* from = x.b + v * N * x.bcs;
    T* to = b_to + v * N * x.k;
    for (int64_t k = first; k < end; k += kPackSteps) {
      int64_t n = least(kPackSteps, end - k), ahead = least(kPackSteps, end - k - n);
      if (ahead > 0) {
        fetch_rows(from + k + n, cols, x.bcs * size, ahead * size);
        own_bytes(to + (k + n) * width, ahead * width * size);
      }
      pack_transposed(from + k, x.bcs, n, cols, width, to + k * width);
    }
  }
  GS_MEMBER void slivers(int64_t t) {
    const int64_t k = t * kPackSteps, n = least(kPackSteps, x.k - k), wide = 4 * s.sliver;
    const T* from = x.a + k * x.acs;
    for (int64_t i = 0; i < x.m; i += wide) {
      int64_t ahead = least(wide, x.m - i - wide);
      if (ahead > 0) {
        fetch_rows(from + i + wide, n, x.acs * size, ahead * size);
        for (int64_t j = 0; j < ahead; j += s.sliver)
          own_bytes(a_to + (i + wide + j) * x.k + k * s.sliver, n * s.sliver * size);
      }
      pack_slivers(from + i, x.acs, least(wide, x.m - i), n, s.sliver, x.k,
                   a_to + i * x.k + k * s.sliver);
    }
  }
  GS_MEMBER void copy(int64_t t) {
    int64_t end = least(x.m, (t + 1) * kCopyRows);
    for (int64_t i = t * kCopyRows; i < end; i += 2) {
      int64_t ahead = least(2, end - i - 2);
      if (ahead > 0) {
        fetch_rows(x.a + (i + 2) * x.ars, ahead, x.ars * size, x.k * size);
        own_bytes(a_to + (i + 2) * s.a_row, ahead * s.a_row * size);
      }
      pack_rows(x.a + i * x.ars, x.ars, least(2, end - i), (int)x.k, (int)s.a_row,
                a_to + i * s.a_row);
    }
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
