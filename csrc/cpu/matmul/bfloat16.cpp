// matmul_bf16: as matmul, C = act(alpha * A B + bias + C) for float32 matrices, batched, with every
// element of A and B rounded to bfloat16 (nearest, ties to even) and products summed in float32.
//
// Floor: 2 m n k operations at 16 times the rate of float32 with tiles, so that bytes matter first:
// reading A and B once a member, writing C. How: matmul/bfloat16.h, and where vdpbf16ps is all
// there is, matmul/paired.h. A member owns a rectangle of C.
#include "matmul/bfloat16.h"

#include "matmul.h"
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#define GS_PAIRED 1
#include "matmul/paired.h"
#endif

namespace gs {
namespace GS_ISA {
namespace {

struct Dense {
  int64_t n, k, kc, blocks;
  const float* a;
  int64_t ars, acs;
  const float* b;
  int64_t brs, bcs;
  float* c;
  int64_t ldc;
  Finish finish;

  int64_t depth(int64_t block) const { return greater(0, lesser(kc, k - block * kc)); }
  void begin(int64_t, char*) {}
  void sliver(int64_t block, int64_t row, int rows, Half* to, int64_t ld) {
    const float* p = a + row * ars + block * kc * acs;
    if (acs == 1)
      sliver_of_rows(p, ars, rows, depth(block), to, ld);
    else
      sliver_of_columns(p, acs, rows, depth(block), to, ld);
  }
  void panel(int64_t block, int64_t v, Half* to) {
    const float* p = b + block * kc * brs + v * kSide * bcs;
    int64_t cols = lesser(kSide, n - v * kSide);
    if (bcs == 1)
      panel_of_rows(p, brs, depth(block), cols, to);
    else
      panel_of_columns(p, bcs, depth(block), cols, to);
  }
#if defined(GS_PAIRED)
  // Steps of k of some blocks, from the first on.
  int64_t span(int64_t block0, int64_t block1) const {
    return greater(0, lesser(k, block1 * kc) - block0 * kc);
  }
  void unit(int64_t block0, int64_t block1, int64_t row, int64_t rows, Half* to) const {
    const float* p = a + row * ars + block0 * kc * acs;
    const int64_t steps = span(block0, block1);
    if (acs != 1) return pairs_of_rows(p, acs, steps, rows, to);
    for (int64_t i = 0; i < rows; ++i) put_run(p + i * ars, steps, to + i * kRowHalves);
  }
  // The same for a whole unit, and for a panel, beside products, if that can be. If not, a panel's
  // source is fetched.
  bool unit_beside(int64_t block0, int64_t block1, int64_t row, Half* to, Side* side) const {
    const float* p = a + row * ars + block0 * kc * acs;
    const int64_t steps = span(block0, block1);
    if (steps == 0 || steps % kPad) return false;
    if (acs == 1)
      side->pack_runs(p, ars, kUnitRows, steps, to);
    else
      side->pack_pairs(p, acs, kUnitRows, steps, to);
    return true;
  }
  bool panel_beside(int64_t block0, int64_t block1, int64_t v, Half* to, Side* side) const {
    const int64_t steps = span(block0, block1), cols = lesser(kSide, n - v * kSide);
    if (steps == 0) return false;
    if (bcs == 1 && cols == kSide && steps % kPad == 0) {
      side->pack_pairs(b + block0 * kc * brs + v * kSide, brs, kSide, steps, to);
      return true;
    }
    if (bcs == 1)
      side->fetch_region(Region{b + block0 * kc * brs + v * kSide, brs, 2, steps});
    else
      side->fetch_region(Region{b + block0 * kc + v * kSide * bcs, bcs, parts(steps, 16), cols});
    return false;
  }
#endif
  int64_t place(int64_t row, int rows, float** at) {
    for (int i = 0; i < rows; ++i) at[i] = c + (row + i) * ldc;
    return ldc;
  }
  int column(int64_t half, int64_t* at) {
    *at = 16 * half;
    return (int)greater(0, lesser(16, n - 16 * half));
  }
};

#if !defined(GS_PAIRED)
Room room(const MatmulParams& p) { return room_of(parts(p.n, kSide), block_depth(p.k), p.l2, 0); }
#endif

int64_t batch_offset(const MatmulParams& p, const int64_t* strides, int64_t t) {
  int64_t at = 0;
  for (int i = p.batch_ndim - 1; i >= 0; --i) {
    at += t % p.batch_shape[i] * strides[i];
    t /= p.batch_shape[i];
  }
  return at;
}

void gemm(const void* params, void* const* buf, const Ctx* ctx) {
  const MatmulParams& p = *(const MatmulParams*)params;
  if (p.m == 0 || p.n == 0 || p.batch == 0) return;
  auto make = [&](int64_t t) __attribute__((always_inline)) {
    Dense d;
    d.n = p.n;
    d.k = p.k;
    d.kc = block_depth(p.k);
    d.blocks = greater(1, d.kc ? parts(p.k, d.kc) : 1);
    d.a = (const float*)buf[0] + batch_offset(p, p.a_bs, t);
    d.ars = p.a_rs;
    d.acs = p.a_cs;
    d.b = (const float*)buf[1] + batch_offset(p, p.b_bs, t);
    d.brs = p.b_rs;
    d.bcs = p.b_cs;
    d.c = (float*)buf[3] + batch_offset(p, p.c_bs, t);
    d.ldc = p.c_rs;
    d.finish = Finish{(float)p.alpha,
                      (const float*)buf[2],
                      p.act == kActRelu,
                      p.accumulate != 0,
                      p.after ? &p : nullptr,
                      (float*)buf[3],
                      p.after ? (float*)buf[4] : nullptr};
    return d;
  };
#if defined(GS_PAIRED)
  Cut s;
  s.cut(p);
  run_paired(make, p.batch, p.m, s, p.m * p.n * p.k >= kDealtWork, ctx);
#else
  run_product(make, p.batch, p.m, parts(p.n, kSide), room(p), p.a_cs == 1 ? 3 : 6,
              p.b_cs == 1 ? 5 : 7, ctx);
#endif
}

void plan(const void* params, Plan* plan) {
  const MatmulParams& p = *(const MatmulParams*)params;
  plan->tasks = greater(1, lesser(p.members, p.batch * parts(p.m, kSide) * parts(p.n, kSide)));
  plan->work = p.batch * work_of(p.m, p.n, p.k);
#if defined(GS_PAIRED)
  Cut s;
  s.cut(p);
  plan->scratch = (size_t)(up(plan->tasks * kClaimBytes, 4096) + plan->tasks * s.total);
#else
  plan->scratch = (size_t)(plan->tasks * room(p).total);
#endif
}

const KernelEntry entries[] = {{"matmul_bf16", kF32, gemm, plan}};

}  // namespace

extern const KernelList matmul_bfloat16_kernels;
const KernelList matmul_bfloat16_kernels = {entries, sizeof(entries) / sizeof(entries[0])};

}  // namespace GS_ISA
}  // namespace gs
