// Interpolation points of Winograd convolution and its transforms along one direction: of the
// input, the output and the filter, and the adjoint of each (conv/winograd.h).
#pragma once
#include "simd/vec.h"

namespace gs {
namespace GS_ISA {
namespace {

template <class T, int M>
struct Points;

template <class T>
struct Points<T, 4> {
  using V = typename simd<T>::V;
  static constexpr int A = 6;
  static constexpr bool kShort = true;  // has the forms of two outputs
  static constexpr T a = (T)0.70710678118654752440, b = (T)1.41421356237309504880;

  // B^T d, in place
  GS_MEMBER static void input(V (&d)[6]) {
    V two = set1((T)2), half = set1((T)0.5), k = set1((T)2.5), pa = set1(a), pb = set1(b);
    V e1 = fnma(two, d[2], d[4]), o1 = fnma(two, d[1], d[3]);
    V e2 = fnma(half, d[2], d[4]), o2 = fnma(half, d[1], d[3]);
    d[0] = fnma(k, d[2], d[0] + d[4]);
    d[5] = fnma(k, d[3], d[1] + d[5]);
    d[1] = fma(pa, o1, e1);
    d[2] = fnma(pa, o1, e1);
    d[3] = fma(pb, o2, e2);
    d[4] = fnma(pb, o2, e2);
  }
  // The same for two outputs, from the first four; v[3] and v[4] are not made.
  GS_MEMBER static void input_short(V (&d)[6]) {
    V k = set1((T)-1.5), p = k * d[2], q = (k * set1(a)) * d[1];
    d[0] = fnma(set1((T)2), d[2], d[0]);
    d[5] = fnma(set1((T)0.5), d[1], d[3]);
    d[1] = p + q;
    d[2] = p - q;
  }
  GS_MEMBER static void input_adjoint_short(V (&v)[6]) {
    V k = set1((T)-1.5), s = k * (v[1] + v[2]), t = (k * set1(a)) * (v[1] - v[2]);
    v[1] = fnma(set1((T)0.5), v[5], t);
    v[2] = fnma(set1((T)2), v[0], s);
    v[3] = v[5];
    v[4] = v[5] = V{};
  }
  // B v, in place: the adjoint of input
  GS_MEMBER static void input_adjoint(V (&v)[6]) {
    V two = set1((T)2), half = set1((T)0.5), k = set1((T)2.5);
    V s1 = v[1] + v[2], t1 = set1(a) * (v[1] - v[2]);
    V s2 = v[3] + v[4], t2 = set1(b) * (v[3] - v[4]);
    V v0 = v[0], v5 = v[5];
    v[1] = fnma(two, t1, fnma(half, t2, v5));
    v[2] = fnma(k, v0, fnma(two, s1, -(half * s2)));
    v[3] = fnma(k, v5, t1 + t2);
    v[4] = v0 + s1 + s2;
  }
  // A^T m
  GS_MEMBER static void output(const V (&m)[6], V (&y)[4]) {
    V half = set1((T)0.5), two = set1((T)2);
    V s1 = m[1] + m[2], t1 = set1(a) * (m[1] - m[2]);
    V s2 = m[3] + m[4], t2 = set1(b) * (m[3] - m[4]);
    y[0] = m[0] + s1 + s2;
    y[1] = t1 + t2;
    y[2] = fma(half, s1, two * s2);
    y[3] = fma(half, t1, fma(two, t2, m[5]));
  }
  GS_MEMBER static void output_short(const V (&m)[6], V (&y)[4]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = fma(set1(a), m[1] - m[2], m[5]);
  }
  GS_MEMBER static void output_adjoint_short(const V (&y)[4], V (&m)[6]) {
    V pa = set1(a);
    m[0] = y[0];
    m[1] = fma(pa, y[1], y[0]);
    m[2] = fnma(pa, y[1], y[0]);
    m[5] = y[1];
  }
  // A y: the adjoint of output
  GS_MEMBER static void output_adjoint(const V (&y)[4], V (&m)[6]) {
    V half = set1((T)0.5), two = set1((T)2), pa = set1(a), pb = set1(b);
    V p = fma(half, y[2], y[0]), q = fma(half, y[3], y[1]);
    V r = fma(two, y[2], y[0]), s = fma(two, y[3], y[1]);
    m[0] = y[0];
    m[1] = fma(pa, q, p);
    m[2] = fnma(pa, q, p);
    m[3] = fma(pb, s, r);
    m[4] = fnma(pb, s, r);
    m[5] = y[3];
  }
  // G g
  GS_MEMBER static void filter(const V (&g)[3], V (&u)[6]) {
    V c1 = set1((T)(-2.0 / 3)), c2 = set1((T)(1.0 / 6)), half = set1((T)0.5), two = set1((T)2);
    V p = c1 * fma(half, g[2], g[0]), q = (c1 * set1(a)) * g[1];
    V r = c2 * fma(two, g[2], g[0]), s = (c2 * set1(b)) * g[1];
    u[0] = g[0];
    u[1] = p + q;
    u[2] = p - q;
    u[3] = r + s;
    u[4] = r - s;
    u[5] = g[2];
  }
  // G^T u: the adjoint of filter
  GS_MEMBER static void filter_adjoint(const V (&u)[6], V (&g)[3]) {
    V c1 = set1((T)(-2.0 / 3)), c2 = set1((T)(1.0 / 6)), half = set1((T)0.5), two = set1((T)2);
    V s1 = c1 * (u[1] + u[2]), t1 = c1 * (u[1] - u[2]);
    V s2 = c2 * (u[3] + u[4]), t2 = c2 * (u[3] - u[4]);
    g[0] = u[0] + s1 + s2;
    g[1] = fma(set1(a), t1, set1(b) * t2);
    g[2] = fma(half, s1, fma(two, s2, u[5]));
  }
};

template <class T>
struct Points<T, 2> {
  using V = typename simd<T>::V;
  static constexpr int A = 4;
  static constexpr bool kShort = false;

  GS_MEMBER static void input(V (&d)[4]) {
    V d1 = d[1], d2 = d[2];
    d[0] = d[0] - d2;
    d[1] = d1 + d2;
    d[2] = d2 - d1;
    d[3] = d[3] - d1;
  }
  GS_MEMBER static void input_adjoint(V (&v)[4]) {
    V v1 = v[1], v2 = v[2];
    v[1] = v1 - v2 - v[3];
    v[2] = v1 + v2 - v[0];
  }
  GS_MEMBER static void output(const V (&m)[4], V (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }
  GS_MEMBER static void output_adjoint(const V (&y)[2], V (&m)[4]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = y[1];
  }
  GS_MEMBER static void filter(const V (&g)[3], V (&u)[4]) {
    V h = set1((T)0.5), s = h * (g[0] + g[2]), t = h * g[1];
    u[0] = g[0];
    u[1] = s + t;
    u[2] = s - t;
    u[3] = g[2];
  }
  GS_MEMBER static void filter_adjoint(const V (&u)[4], V (&g)[3]) {
    V h = set1((T)0.5), s = h * (u[1] + u[2]);
    g[0] = u[0] + s;
    g[1] = h * (u[1] - u[2]);
    g[2] = s + u[3];
  }
};

}  // namespace
}  // namespace GS_ISA
}  // namespace gs
