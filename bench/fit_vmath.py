"""Derives the polynomial coefficients of csrc/cpu/simd/vmath.h and moderate.h.

Each fit minimises the largest weighted error over an interval by Lawson's iteration (weighted least
squares in a Chebyshev basis, weights multiplied by the error), on samples computed with mpmath.
Coefficients are then rounded to float32 from the lowest power up, the rest refitted after each
rounding, so that the printed error is the one of the float32 coefficients.

    python bench/fit_vmath.py            needs numpy and mpmath
"""

import mpmath as mp
import numpy as np

mp.mp.dps = 40


def samples(fun, lo, hi, n=1200):
    x = np.cos(np.pi * (np.arange(n) + 0.5) / n) * (hi - lo) / 2 + (hi + lo) / 2
    return x, np.array([float(fun(mp.mpf(float(v)))) for v in x])


def lawson(x, y, w, powers, iterations=80):
    """Coefficients of sum c_k x^k, k in powers, that minimise max |w (sum - y)|."""
    scale = np.abs(x).max()
    basis = np.stack([(x / scale) ** k for k in powers], 1)
    q, r = np.linalg.qr(basis)
    weight = np.full(len(x), 1.0)
    for _ in range(iterations):
        s = np.sqrt(weight) * w
        c = np.linalg.lstsq(q * s[:, None], y * s, rcond=None)[0]
        err = np.abs(q @ c - y) * w
        if err.max() == 0:
            break
        weight = weight * (err + 1e-3 * err.max())
        weight /= weight.sum()
    c = np.linalg.solve(r, c)
    return c / scale ** np.array(powers, dtype=float), err.max()


def fit(name, fun, weight, lo, hi, degree):
    """Prints c_0 .. c_degree of the polynomial closest to fun, error weighted by weight(x)."""
    x, y = samples(fun, lo, hi)
    w = np.abs(samples(weight, lo, hi)[1])
    fixed, rest = [], y.copy()
    for k in range(degree + 1):
        c, _ = lawson(x, rest, w, list(range(k, degree + 1)))
        fixed.append(float(np.float32(c[0])))
        rest = rest - fixed[-1] * x**k
    print(f"{name}: degree {degree}, largest error {np.abs(rest * w).max():.1e}")
    print(
        "   ",
        ", ".join(f"{np.float32(c)!r}" for c in fixed).replace("np.float32(", "").replace(")", ""),
    )


def mills_table(degree=6):
    """Mills' ratio over sqrt(2 pi) around k / 2 for k < 32: a row a power, a column a k."""
    d = 0.25 * np.cos(np.pi * (np.arange(64) + 0.5) / 64)
    columns = []
    for k in range(32):
        t = [mp.mpf(0.5 * k + v) for v in d]
        y = np.array([float(mp.erfc(v / mp.sqrt(2)) / 2 * mp.exp(v * v / 2)) for v in t])
        powers = np.vander(d, degree + 1, increasing=True) / y[:, None]
        columns.append(np.linalg.lstsq(powers, np.ones(len(d)), rcond=None)[0])
    print("mills", np.array(columns, np.float32).T.tolist())


def fit_row(d, y, first, degree):
    """Coefficients in float32 that minimise the relative error, c_0 rounded before the others are fitted
    (0 when `first` is 1)."""
    c0 = 0.0 if first else float(np.float32(lawson(d, y, 1 / y, list(range(degree + 1)))[0][0]))
    rest, _ = lawson(d, y - c0, 1 / y, list(range(1, degree + 1)))
    return np.concatenate([[c0], rest])


def print_table(name, columns):
    print(name)
    for row in np.array(columns, np.float32).T:
        print("   ", "{" + ", ".join(f"{v!s}f" for v in row) + "},")


def tanh_table(degree=5):
    """tanh around 30 points: 0 for [0, 1/16), then four intervals an octave up to 8, and [8, 9.2). The points
    are where tanh is nearly a float, close to the middle. The last column fills up to 32."""

    def start(i):
        return 2.0 ** ((i - 1) // 4 - 4) * (1 + (i - 1) % 4 / 4)

    columns = []
    for i in range(30):
        lo, hi = (start(i) if i else 0.0), start(i + 1)
        middle = (lo + hi) / 2 if i else 0.0
        if 0 < i < 29:
            step = (hi - lo) / 4096

            def off(k, middle=middle, step=step):
                t = mp.tanh(middle + k * step)
                return abs(float((mp.mpf(float(np.float32(float(t)))) - t) / t))

            middle += step * min(range(-200, 201), key=off)
        hi = min(hi, 9.2)
        d = np.cos(np.pi * (np.arange(48) + 0.5) / 48) * (hi - lo) / 2 + ((hi + lo) / 2 - middle)
        y = np.array([float(mp.tanh(mp.mpf(float(middle + v)))) for v in d])
        columns.append([middle, *fit_row(d, y, i == 0, degree)])
    print_table("tanh: points, c_0, ...", columns + columns[-1:] * 2)


def point_table(name, fun, steps, numbers, reach, degree, zero=None):
    """A polynomial around each of 32 points: multiples k / steps for k in numbers, moved by up to `reach` / 8192 to
    where fun is nearly a float. c_0 is that float; the error of the others is relative, and where fun has a zero,
    relative to its largest value of the interval."""
    columns, worst = [], 0.0
    for k in numbers:
        c, half = k / steps, 0.5 / steps + 1e-6

        def off(j, c=c):
            v = fun(mp.mpf(c + j / 8192))
            return abs(float((mp.mpf(float(np.float32(float(v)))) - v) / v))

        first = min(numbers) == 0 == k  # the function is not used below zero
        m = c + min(range(0 if first else -reach, reach + 1), key=off) / 8192
        lo, hi = (0.0 if first else c - half), c + half
        x = np.cos(np.pi * (np.arange(64) + 0.5) / 64) * (hi - lo) / 2 + (hi + lo) / 2
        d, y = x - m, np.array([float(fun(mp.mpf(float(v)))) for v in x])
        w = 1 / np.abs(y)
        if zero is not None and abs(c - zero) < 0.3:
            w[:] = w.min()
        fixed = [float(np.float32(float(fun(mp.mpf(m)))))]
        rest = y - fixed[0]
        for q in range(1, degree + 1):
            coefficients, _ = lawson(d, rest, w, list(range(q, degree + 1)))
            fixed.append(float(np.float32(coefficients[0])))
            rest = rest - fixed[-1] * d**q
        worst = max(worst, np.abs(rest * w).max())
        columns.append([m, *fixed])
    print_table(f"{name}: points, c_0, ..., largest error {worst:.1e}", columns)


def point_tables():
    """Of |x| by quarters."""

    def tail(t):
        return mp.erfc(t / mp.sqrt(2)) / 2

    def gelu_slope(t):
        return tail(t) - t * mp.exp(-t * t / 2) / mp.sqrt(2 * mp.pi)

    quarters = list(range(32))
    point_table("normal_cdf", tail, 4, quarters, 40, 7)
    point_table("gelu_slope", gelu_slope, 4, quarters, 40, 6, 0.75)
    point_table("softplus_rest", lambda t: mp.log1p(mp.exp(-t)), 4, quarters, 40, 4)


def log_table():
    """16 points of [3/4, 3/2): 1 / c, and log(c), a multiple of 2^-16 that is almost exact. Both outermost
    intervals at 1 take c = 1."""
    rows = []
    for i in range(16):
        lo, hi = (1 + i / 16, 1 + (i + 1) / 16) if i < 8 else ((16 + i) / 32, (17 + i) / 32)
        # the one below 1 begins at its end: there the result is smallest
        middle = round(float(mp.log(hi if i == 14 else (lo + hi) / 2)) * 65536)

        def off(k):
            r = np.float32(float(mp.exp(-mp.mpf(k) / 65536)))
            return abs(float(mp.log(mp.mpf(float(r))) + mp.mpf(k) / 65536))

        k = 0 if i in (0, 15) else min(range(middle - 100, middle + 101), key=off)
        rows.append([float(mp.exp(-mp.mpf(k) / 65536)), k / 65536])
    print_table("log: 1 / c, log c", rows)


def exp_table(bits=9):
    """moderate.h: 16 numbers of few bits close to 2^(i / 16), and the logarithm of what they lack."""
    roots = [mp.mpf(2) ** (mp.mpf(i) / 16) for i in range(16)]
    near = [mp.nint(t * 2**bits) / 2**bits for t in roots]
    lack = [float(mp.log(t / s)) for t, s in zip(roots, near)]
    short = [np.array([float(s)], "f4").view("u4") - np.uint32(i << 19) for i, s in enumerate(near)]
    print_table("exp: 16ths, rest", [[float(v.view("f4")[0]), d] for v, d in zip(short, lack)])
    reach = float(mp.log(2) / 32) + max(map(abs, lack))
    for name, weight, degree in ("exp", mp.exp, 1), ("expm1", mp.expm1, 2):
        fit(
            name,
            lambda r: (mp.expm1(r) - r) / r**2,
            lambda r, of=weight: r**2 / of(r),
            -reach,
            reach,
            degree,
        )


def power_tables():
    """power.h: float64, points of the mantissa in [3/4, 3/2) and of 2^x, and their polynomials."""
    middles = [1 + (i + 0.5) / 16 if i < 8 else 0.5 + (i + 0.5) / 32 for i in range(16)]
    inverse = [1.0 if i in (0, 15) else float(np.float32(1 / m)) for i, m in enumerate(middles)]
    print("inverse", inverse)
    print("log2", [float(-mp.log(mp.mpf(v), 2)) for v in inverse])
    x, y = samples(lambda r: mp.log1p(r) / r / mp.log(2), -1 / 32, 1 / 16)
    c, error = lawson(x, y, np.log(2.0) * np.ones_like(x), range(7))
    print("log2(1 + r) / r", [float(v) for v in c], f"relative error {error:.1e}")
    print("2^(i / 16)", [float(mp.mpf(2) ** (mp.mpf(i) / 16)) for i in range(16)])
    x, y = samples(lambda r: (mp.mpf(2) ** r - 1) / r, -1 / 32, 1 / 32)
    c, error = lawson(x, y, np.abs(x), range(4))
    print("(2^r - 1) / r", [float(v) for v in c], f"relative error of 2^r {error:.1e}")


def main():
    half = float(mp.log(2) / 2) + 1e-3
    fit("exp", lambda r: (mp.expm1(r) - r) / r**2, lambda r: r**2 / mp.exp(r), -half, half, 4)
    lo, hi = float(mp.sqrt(0.5)) - 1, float(mp.sqrt(2)) - 1
    fit(
        "log",
        lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3,
        lambda f: f**3 / mp.log1p(f),
        lo,
        hi,
        8,
    )
    log_table()
    exp_table()
    power_tables()
    fit(
        "log, around a point",
        lambda r: (mp.log1p(r) - r) / r**2,
        lambda r: r**2 / mp.log1p(r),
        -1 / 31,
        1 / 16,
        3,
    )
    fit("log1p01", lambda e: (mp.log1p(e) - e) / e**2, lambda e: e**2 / mp.log1p(e), 1e-9, 1, 9)
    fit(
        "erf_small",
        lambda z: mp.erf(mp.sqrt(z)) / mp.sqrt(z) - 1,
        lambda z: mp.sqrt(z) / mp.erf(mp.sqrt(z)),
        1e-12,
        1,
        6,
    )
    # erf = 1 - exp(tail): the error matters less where the tail is small
    fit("erf_tail", lambda t: mp.log(mp.erfc(t)), lambda t: mp.sqrt(mp.erfc(t)), 0.99, 4.0, 7)

    def mills(u):
        t = (1 / u - 1) * 4
        return mp.erfc(t / mp.sqrt(2)) / 2 * mp.exp(t * t / 2) / u

    fit("normal", mills, lambda u: 1 / mills(u), 1 / (1 + 14.5 / 4), 1.0, 9)
    mills_table()
    # moderate.h
    tanh_table()
    point_tables()

    def shifted(w):
        return mp.mpf("0.4375") + w

    fit(
        "softplus",
        lambda w: (mp.log1p(shifted(w)) - shifted(w)) / shifted(w) ** 2,
        lambda w: shifted(w) ** 2 / mp.log1p(shifted(w)),
        -0.4375 + 1e-9,
        0.5625,
        8,
    )
    q = float(mp.pi / 4) + 1e-6
    fit("sin", lambda z: (mp.sin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z, lambda z: z, 1e-9, q * q, 3)
    fit("cos", lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2, lambda z: z**2, 1e-5, q * q, 2)


if __name__ == "__main__":
    main()
