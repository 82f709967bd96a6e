// Elementwise kernels. Work is split into runs of kRun elements in row-major order of the output.
//
// copy: one read and one write an element; the floor is the copy bandwidth.
#include "elementwise.h"

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
  else
    for (int64_t i = 0; i < n; ++i) out[i * so] = (To)in[i * si];
}

// in and out are (shape...) with strides in elements
template <class From, class To>
void copy_range(const CopyParams& p, const From* in, To* out, int64_t begin, int64_t end) {
  int last = p.ndim - 1;
  int64_t inner = p.ndim ? p.shape[last] : 1;
  int64_t si = p.ndim ? p.in_strides[last] : 1, so = p.ndim ? p.out_strides[last] : 1;
  while (begin < end) {
    int64_t rest = begin / inner, at = begin % inner, oi = at * si, oo = at * so;
    for (int d = last - 1; d >= 0; --d) {
      int64_t k = rest % p.shape[d];
      rest /= p.shape[d];
      oi += k * p.in_strides[d];
      oo += k * p.out_strides[d];
    }
    int64_t n = inner - at < end - begin ? inner - at : end - begin;
    copy_row(in + oi, si, out + oo, so, n);
    begin += n;
  }
}

template <class To>
void copy(const void* params, void* const* buf, const Ctx* ctx) {
  const CopyParams& p = *(const CopyParams*)params;
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

void copy_plan(const void* params, Plan* plan) {
  int64_t n = count(*(const CopyParams*)params);
  plan->tasks = (n + kRun - 1) / kRun;
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
    {"fill", kF32, fill<float>, fill_plan},       {"fill", kF64, fill<double>, fill_plan},
    {"fill", kI32, fill<int32_t>, fill_plan},     {"fill", kI64, fill<int64_t>, fill_plan},
    {"fill", kU8, fill<uint8_t>, fill_plan},      {"fill", kBool, fill<uint8_t>, fill_plan},
    {"arange", kF32, arange<float>, fill_plan},   {"arange", kF64, arange<double>, fill_plan},
    {"arange", kI32, arange<int32_t>, fill_plan}, {"arange", kI64, arange<int64_t>, fill_plan},
    {"copy", kF32, copy<float>, copy_plan},   {"copy", kF64, copy<double>, copy_plan},
    {"copy", kI32, copy<int32_t>, copy_plan}, {"copy", kI64, copy<int64_t>, copy_plan},
    {"copy", kU8, copy<uint8_t>, copy_plan},  {"copy", kBool, copy<bool>, copy_plan},
};

}  // namespace

extern const KernelList elementwise_copy_kernels;
const KernelList elementwise_copy_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
