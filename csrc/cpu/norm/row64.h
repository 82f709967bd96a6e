// Row norms of rows of 64 floats, four vectors of AVX-512, sixteen rows a step; row.cpp has the
// rest and says what is computed.
//
// A row is so short that what is done once a row, and waiting for it, costs more than its elements:
// so sweeps of groups of sixteen rows run in one loop, a row of each at a time: the means of one
// group, the variances of the one before, y of one that is finished for a whole step (backward:
// sums and dx). No chain is waited for, stores past the caches are spread evenly among the work,
// gamma, beta and the sums of their gradients stay in registers. Sums have the order of row.cpp.
//
// Floor: a line past the caches every 6 cycles (Zen 5); without memory a vector takes 4.9 cycles
// forward and 6.2 backward. The same for strips of 64 columns of longer rows was slower: a row's
// sums then go through memory between its strips.
#pragma once
#include "norm.h"
#include "simd/fold.h"
#include "simd/own.h"

#if defined(__AVX512F__)
namespace gs {
namespace GS_ISA {
namespace {

struct Rows64 {
  static constexpr int kRows = 16, N = 16, kCols = 4 * N;
  // What a group's sweeps need of each row: xhat = (x - c) rs + off, dx = rs dy g + m1 + xhat m2
  struct alignas(64) Group {
    float c[kRows], rs[kRows], off[kRows], m1[kRows], m2[kRows];
    GS_MEMBER void set(int half, vd mean, vd rstd) {
      put(c, half, mean);
      put(rs, half, rstd);
      put(off, half, (get(c, half) - mean) * rstd);
    }
  };
  // 8 of 16 numbers as doubles
  static GS_MEMBER vd get(const float* p, int half) {
    return (vd)_mm512_cvtps_pd(_mm256_load_ps(p + 8 * half));
  }
  static GS_MEMBER void put(float* p, int half, vd v) {
    _mm256_store_ps(p + 8 * half, _mm512_cvtpd_ps((__m512d)v));
  }
  static GS_MEMBER vd half_of(vf v, int half) {
    return (vd)_mm512_cvtps_pd(half ? _mm512_extractf32x8_ps((__m512)v, 1)
                                    : _mm512_castps512_ps256((__m512)v));
  }
  static GS_MEMBER vf sum4(const vf (&v)[4]) { return (v[0] + v[2]) + (v[1] + v[3]); }
  static GS_MEMBER void put_row(bool stream, float* p, const vf (&v)[4]) {
    if (stream)
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) write<true>(p + k * N, v[k]);
    else
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) store(p + k * N, v[k]);
  }

  // y of `groups` groups of rows at x; stats as in row_norm. owns: lines of y are asked for ahead.
  template <bool RMS>
  static __attribute__((noinline)) void forward(bool stream, bool owns, int64_t groups, double eps,
                                                const float* x, const float* gamma,
                                                const float* beta, float* y, double* stats) {
    constexpr int64_t kStep = kRows * kCols;
    alignas(64) vf sums[kRows], first[kRows], second[kRows];
    Group ring[4];
    vf g[4], b[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      g[k] = gamma ? load(gamma + k * N) : vf{} + 1;
      b[k] = beta ? load(beta + k * N) : vf{};
    }
    for (int64_t t = 0; t < groups + 3; ++t) {
      const bool samples = t<groups, results = t> 2;
      const bool squares = t > 0 && t <= groups;
      const float *xm = x + t * kStep, *xs = xm - kStep, *xr = xs - 2 * kStep;
      float* out = y + (t - 3) * kStep;
      Group &now = ring[t & 3], &next = ring[(t - 1) & 3], &done = ring[(t - 3) & 3];
      for (int i = 0; i < kRows; ++i) {
        if (samples) {
          vf v[4];
#pragma GCC unroll 4
          for (int k = 0; k < 4; ++k) {
            if (stream) fetch(xm + i * kCols + k * N);
            if (owns) own(out + 3 * kStep + i * kCols + k * N, 0);
            if (!RMS) v[k] = load(xm + i * kCols + k * N);
          }
          if (!RMS) sums[i] = sum4(v);
        }
        if (squares) {
          vf v[4];
          const vf c = RMS ? vf{} : set1(next.c[i]);
#pragma GCC unroll 4
          for (int k = 0; k < 4; ++k) {
            v[k] = load(xs + i * kCols + k * N);
            if (!RMS) v[k] -= c;
          }
          if (!RMS) first[i] = sum4(v);
#pragma GCC unroll 4
          for (int k = 0; k < 4; ++k) v[k] *= v[k];
          second[i] = sum4(v);
        }
        if (results) {
          vf v[4];
          const vf c = set1(done.c[i]), rs = set1(done.rs[i]), off = set1(done.off[i]);
#pragma GCC unroll 4
          for (int k = 0; k < 4; ++k) {
            const vf u = load(xr + i * kCols + k * N);
            v[k] = fma(RMS ? u * rs : fma(u - c, rs, off), g[k], b[k]);
          }
          put_row(stream, out + i * kCols, v);
        }
      }
      if (!RMS && samples) store(now.c, hsum16(sums) * (1.0f / kCols));
      if (squares) {
        const vf q = hsum16(second), d = RMS ? vf{} : hsum16(first);
        double* to = stats + (t - 1) * 2 * kRows;
        for (int half = 0; half < 2; ++half) {
          vd mean{}, var = half_of(q, half) * (1.0 / kCols);
          if (!RMS) {
            const vd e = half_of(d, half) * (1.0 / kCols);
            mean = get(next.c, half) + e;
            var -= e * e;
          }
          const vd rstd = 1.0 / sqrt(max(vd{}, var) + eps);
          next.set(half, mean, rstd);
          store(to + 16 * half, __builtin_shufflevector(mean, rstd, 0, 8, 1, 9, 2, 10, 3, 11));
          store(to + 16 * half + 8,
                __builtin_shufflevector(mean, rstd, 4, 12, 5, 13, 6, 14, 7, 15));
        }
      }
    }
  }

  // dx of `groups` groups of rows; adds what dgamma and dbeta get of `each` groups of rows at a
  // time at pg and pb, which go on by `part` floats.
  template <bool RMS>
  static __attribute__((noinline)) void backward(bool stream, bool owns, int64_t groups,
                                                 const float* dy, const float* x,
                                                 const double* stats, const float* gamma, float* dx,
                                                 float* pg, float* pb, int64_t each, int64_t part) {
    constexpr int64_t kStep = kRows * kCols;
    alignas(64) vf first[kRows], second[kRows];
    Group ring[4];
    vf g[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) g[k] = gamma ? load(gamma + k * N) : vf{} + 1;
    auto prepare = [&](int64_t t) __attribute__((always_inline)) {
      for (int half = 0; half < 2; ++half) {
        const double* from = stats + t * 2 * kRows + 16 * half;
        const vd a = load(from), b = load(from + 8);
        ring[t & 3].set(half, __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14),
                        __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15));
      }
    };
    if (groups == 0) return;
    prepare(0);
    for (int64_t t = 0; t < groups + 1; ++t) {
      const bool means = t<groups, results = t> 0;
      const float *dm = dy + t * kStep, *xm = x + t * kStep;
      const float *dr = dm - kStep, *xr = xm - kStep;
      float* out = dx + (t - 1) * kStep;
      Group &now = ring[t & 3], &done = ring[(t - 1) & 3];
      vf sg[4] = {}, sb[4] = {};
      for (int i = 0; i < kRows; ++i) {
        if (means) {
          vf v[4];
          const vf c = RMS ? vf{} : set1(now.c[i]);
#pragma GCC unroll 4
          for (int k = 0; k < 4; ++k) {
            fetch(dm + i * kCols + k * N);
            if (owns) own(out + kStep + i * kCols + k * N, 0);
            v[k] = load(dm + i * kCols + k * N) * g[k];
          }
          if (!RMS) first[i] = sum4(v);
#pragma GCC unroll 4
          for (int k = 0; k < 4; ++k) {
            if (stream) fetch(xm + i * kCols + k * N);
            const vf u = load(xm + i * kCols + k * N);
            v[k] *= RMS ? u : u - c;
          }
          second[i] = sum4(v);
        }
        if (results) {
          vf v[4];
          const vf c = set1(done.c[i]), rs = set1(done.rs[i]), off = set1(done.off[i]);
          const vf m1 = set1(done.m1[i]), m2 = set1(done.m2[i]);
#pragma GCC unroll 4
          for (int k = 0; k < 4; ++k) {
            const vf d = load(dr + i * kCols + k * N), u = load(xr + i * kCols + k * N);
            const vf h = RMS ? u * rs : fma(u - c, rs, off);
            sg[k] = fma(d, h, sg[k]);
            sb[k] += d;
            const vf dg = d * g[k];
            v[k] = fma(h, m2, RMS ? dg * rs : fma(dg, rs, m1));
          }
          put_row(stream, out + i * kCols, v);
        }
      }
      if (results) {
        const int64_t at = (t - 1) / each * part;
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
          if (pg) store(pg + at + k * N, load(pg + at + k * N) + sg[k]);
          if (pb) store(pb + at + k * N, load(pb + at + k * N) + sb[k]);
        }
      }
      if (means) {
        const vf with = hsum16(second), sum = RMS ? vf{} : hsum16(first);
        for (int half = 0; half < 2; ++half) {
          const vd rs = get(now.rs, half), f = rs * (-1.0 / kCols);
          vd w = half_of(with, half) * rs;
          if (!RMS) w += half_of(sum, half) * get(now.off, half);
          put(now.m1, half, f * half_of(sum, half));
          put(now.m2, half, f * w);
        }
        if (t + 1 < groups) prepare(t + 1);
      }
    }
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
#endif
