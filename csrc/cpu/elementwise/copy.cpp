// Elementwise kernels. Work is split into runs of kRun elements in row-major order of the output.
//
// copy: one read and one write an element; the floor is the copy bandwidth. Where input and output
// run along different axes, tiles of 64 x 64 are transposed in registers, N x N at a time.
#include "elementwise.h"
#include "simd/transpose.h"
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

constexpr int64_t kRun = 16384;

GS_INLINE int64_t count(const CopyParams& p) {
  int64_t n = 1;
  for (int d = 0; d < p.ndim; ++d) n *= p.shape[d];
  return n;
}

template <class From, class To>
void copy_row(const From* in, int64_t si, To* out, int64_t so, int64_t n) {
  if (si == 1 && so == 1)
    for (int64_t i = 0; i < n; ++i) out[i] = (To)in[i];
  else if (si == 0 && so == 1)
    for (To value = (To)*in, *end = out + n; out < end; ++out) *out = value;
  else
    for (int64_t i = 0; i < n; ++i) out[i * so] = (To)in[i * si];
}

// in and out are (shape...) with strides in elements
template <class From, class To>
void copy_range(const CopyParams& p, const From* in, To* out, int64_t begin, int64_t end) {
  int last = p.ndim - 1;
  int64_t inner = p.ndim ? p.shape[last] : 1;
  int64_t si = p.ndim ? p.in_strides[last] : 1, so = p.ndim ? p.out_strides[last] : 1;
  int64_t rest = begin / inner, at = begin % inner, oi = 0, oo = 0, idx[kMaxDims];
  for (int d = last - 1; d >= 0; --d) {
    idx[d] = rest % p.shape[d];
    rest /= p.shape[d];
    oi += idx[d] * p.in_strides[d];
    oo += idx[d] * p.out_strides[d];
  }
  while (begin < end) {
    int64_t n = inner - at < end - begin ? inner - at : end - begin;
    copy_row(in + oi + at * si, si, out + oo + at * so, so, n);
    begin += n;
    at = 0;
    for (int d = last - 1; d >= 0; --d) {
      oi += p.in_strides[d];
      oo += p.out_strides[d];
      if (++idx[d] < p.shape[d]) break;
      oi -= p.shape[d] * p.in_strides[d];
      oo -= p.shape[d] * p.out_strides[d];
      idx[d] = 0;
    }
  }
}

// The axis along which the input is contiguous, when that is not the last and the output is
// contiguous along the last: then tiles are transposed in registers. -1: copy row by row.
constexpr int64_t kTile = 64;
GS_INLINE int transposed_axis(const CopyParams& p, DType to) {
  int last = p.ndim - 1;
  if (p.ndim < 2 || p.from != to || to == kU8 || to == kBool || p.out_strides[last] != 1 ||
      p.in_strides[last] == 1 || p.in_strides[last] == 0)
    return -1;
  for (int d = 0; d < last; ++d)
    if (p.in_strides[d] == 1) return d;
  return -1;
}
struct Tiles {
  int64_t rows, columns, others;  // tiles along the axis, along the last, and the other elements
};
GS_INLINE Tiles tiles_of(const CopyParams& p, int axis) {
  Tiles t;
  t.rows = (p.shape[axis] + kTile - 1) / kTile;
  t.columns = (p.shape[p.ndim - 1] + kTile - 1) / kTile;
  t.others = 1;
  for (int d = 0; d < p.ndim - 1; ++d)
    if (d != axis) t.others *= p.shape[d];
  return t;
}

// V: float for 4-byte elements, double for 8-byte ones; only moved, never computed with
template <class V>
void copy_transposed(const CopyParams& p, int axis, const V* in, V* out, const Ctx* ctx) {
  constexpr int N = simd<V>::N;
  const int last = p.ndim - 1;
  const int64_t si = p.in_strides[last], so = p.out_strides[axis];
  const Tiles tiles = tiles_of(p, axis);
  for (int64_t t = ctx->tid; t < tiles.rows * tiles.columns * tiles.others; t += ctx->nt) {
    int64_t c0 = t % tiles.columns * kTile, r0 = t / tiles.columns % tiles.rows * kTile;
    int64_t rest = t / tiles.columns / tiles.rows;
    const V* x = in + r0 + c0 * si;
    V* y = out + r0 * so + c0;
    for (int d = last - 1; d >= 0; --d) {
      if (d == axis) continue;
      x += rest % p.shape[d] * p.in_strides[d];
      y += rest % p.shape[d] * p.out_strides[d];
      rest /= p.shape[d];
    }
    int64_t rows = p.shape[axis] - r0 < kTile ? p.shape[axis] - r0 : kTile;
    int64_t columns = p.shape[last] - c0 < kTile ? p.shape[last] - c0 : kTile;
    for (int64_t c = 0; c < columns; c += N)
      for (int64_t r = 0; r < rows; r += N) {
        typename simd<V>::V v[N];
        if (columns - c >= N && rows - r >= N) {
#pragma GCC unroll 16
          for (int j = 0; j < N; ++j) v[j] = load(x + r + (c + j) * si);
          transpose<V>(v);
#pragma GCC unroll 16
          for (int j = 0; j < N; ++j) store(y + (r + j) * so + c, v[j]);
        } else {
          int m = columns - c < N ? (int)(columns - c) : N, k = rows - r < N ? (int)(rows - r) : N;
#pragma GCC unroll 16
          for (int j = 0; j < N; ++j)
            v[j] = j < m ? load_n(x + r + (c + j) * si, k) : typename simd<V>::V{};
          transpose<V>(v);
#pragma GCC unroll 16
          for (int j = 0; j < N; ++j)
            if (j < k) store_n(y + (r + j) * so + c, v[j], m);
        }
      }
  }
}

GS_INLINE DType dtype_of(float*) { return kF32; }
GS_INLINE DType dtype_of(double*) { return kF64; }
GS_INLINE DType dtype_of(int32_t*) { return kI32; }
GS_INLINE DType dtype_of(int64_t*) { return kI64; }
GS_INLINE DType dtype_of(uint8_t*) { return kU8; }
GS_INLINE DType dtype_of(bool*) { return kBool; }

template <class To>
void copy(const void* params, void* const* buf, const Ctx* ctx) {
  const CopyParams& p = *(const CopyParams*)params;
  const int axis = transposed_axis(p, dtype_of((To*)nullptr));
  if (axis >= 0) {
    if (sizeof(To) == 4)
      copy_transposed(p, axis, (const float*)buf[0], (float*)buf[1], ctx);
    else
      copy_transposed(p, axis, (const double*)buf[0], (double*)buf[1], ctx);
    return;
  }
  int64_t n = count(p), tasks = (n + kRun - 1) / kRun;
  for (int64_t t = ctx->tid; t < tasks; t += ctx->nt) {
    int64_t b = t * kRun, e = b + kRun < n ? b + kRun : n;
    To* out = (To*)buf[1];
    switch (p.from) {
      case kF32:
        copy_range(p, (const float*)buf[0], out, b, e);
        break;
      case kF64:
        copy_range(p, (const double*)buf[0], out, b, e);
        break;
      case kI32:
        copy_range(p, (const int32_t*)buf[0], out, b, e);
        break;
      case kI64:
        copy_range(p, (const int64_t*)buf[0], out, b, e);
        break;
      case kU8:
      case kBool:
        copy_range(p, (const uint8_t*)buf[0], out, b, e);
        break;
      default:
        break;
    }
  }
}

template <class To>
void copy_plan(const void* params, Plan* plan) {
  const CopyParams& p = *(const CopyParams*)params;
  int64_t n = count(p);
  const int axis = transposed_axis(p, dtype_of((To*)nullptr));
  if (axis >= 0) {
    const Tiles t = tiles_of(p, axis);
    plan->tasks = t.rows * t.columns * t.others;
  } else {
    plan->tasks = (n + kRun - 1) / kRun;
  }
  plan->work = n / 4;
}

// out (n)
template <class T>
void fill(const void* params, void* const* buf, const Ctx* ctx) {
  const FillParams& p = *(const FillParams*)params;
  T value = (T)0.5 != (T)0 ? (T)p.start : (T)p.istart, *out = (T*)buf[0];
  for (int64_t b = ctx->tid * kRun; b < p.n; b += ctx->nt * kRun) {
    int64_t e = b + kRun < p.n ? b + kRun : p.n;
    for (int64_t i = b; i < e; ++i) out[i] = value;
  }
}

template <class T>
void arange(const void* params, void* const* buf, const Ctx* ctx) {
  const FillParams& p = *(const FillParams*)params;
  T* out = (T*)buf[0];
  for (int64_t b = ctx->tid * kRun; b < p.n; b += ctx->nt * kRun) {
    int64_t e = b + kRun < p.n ? b + kRun : p.n;
    for (int64_t i = b; i < e; ++i)
      out[i] = (T)0.5 != (T)0 ? (T)(p.start + (double)i * p.step) : (T)(p.istart + i * p.istep);
  }
}

void fill_plan(const void* params, Plan* plan) {
  const FillParams& p = *(const FillParams*)params;
  plan->tasks = (p.n + kRun - 1) / kRun;
  plan->work = p.n / 8;
}

const KernelEntry entries[] = {
    {"fill", kF32, fill<float>, fill_plan},
    {"fill", kF64, fill<double>, fill_plan},
    {"fill", kI32, fill<int32_t>, fill_plan},
    {"fill", kI64, fill<int64_t>, fill_plan},
    {"fill", kU8, fill<uint8_t>, fill_plan},
    {"fill", kBool, fill<uint8_t>, fill_plan},
    {"arange", kF32, arange<float>, fill_plan},
    {"arange", kF64, arange<double>, fill_plan},
    {"arange", kI32, arange<int32_t>, fill_plan},
    {"arange", kI64, arange<int64_t>, fill_plan},
    {"copy", kF32, copy<float>, copy_plan<float>},
    {"copy", kF64, copy<double>, copy_plan<double>},
    {"copy", kI32, copy<int32_t>, copy_plan<int32_t>},
    {"copy", kI64, copy<int64_t>, copy_plan<int64_t>},
    {"copy", kU8, copy<uint8_t>, copy_plan<uint8_t>},
    {"copy", kBool, copy<bool>, copy_plan<bool>},
};

}  // namespace

extern const KernelList elementwise_copy_kernels;
const KernelList elementwise_copy_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
