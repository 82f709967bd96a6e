"""Transforms against plain loops and references."""

import colorsys

import numpy as np
import pytest

from gradsmith.data import transforms as T
from gradsmith.data.dataset import ArrayDataset


def rng(seed=0):
    return np.random.default_rng(seed)


def images(n=6, h=9, w=11, c=3, dtype="float32", seed=1):
    if dtype == "uint8":
        return rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8)
    return rng(seed).random((n, h, w, c)).astype(dtype)


RANDOM = [
    T.RandomFlip(True, True),
    T.RandomCrop(padding=3),
    T.RandomCrop((5, 4), padding=(1, 2), mode="reflect"),
    T.RandomRotate(30, fill=0.5),
    T.ColorJitter(0.4, 0.4, 0.4, 0.2),
    T.Cutout((3, 4), holes=2),
    T.Compose(T.RandomFlip(), T.RandomCrop(padding=1), T.Cutout(2)),
]
PLAIN = [T.Grayscale(), T.Grayscale(3), T.ToFloat(), T.Clip(0.2, 0.7)]


# ---- what holds for all --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("t", RANDOM + PLAIN, ids=repr)
def test_seeded_pure_and_typed(t, dtype):
    x = images(dtype=dtype)
    before = x.copy()
    y = t(x, rng(3))
    np.testing.assert_array_equal(x, before)  # the input is not changed
    assert not np.shares_memory(x, y) or isinstance(t, T.Grayscale)
    assert y.tobytes() == t(x, rng(3)).tobytes()
    if t in RANDOM:
        assert y.dtype == x.dtype
        assert y.tobytes() != t(x, rng(4)).tobytes()
        with pytest.raises(TypeError, match="generator"):
            t(x)
    else:
        assert t(x).tobytes() == y.tobytes()
    assert t(x[:0], rng()).shape == (0, *y.shape[1:])
    turned = x.transpose(0, 2, 1, 3)  # any strides
    np.testing.assert_array_equal(t(turned, rng(3)), t(np.ascontiguousarray(turned), rng(3)))
    assert repr(t)


@pytest.mark.parametrize("t", RANDOM[:-1] + [T.Grayscale()], ids=repr)
def test_images_have_four_axes(t):
    with pytest.raises(ValueError, match=r"\(N, H, W, C\)"):
        t(np.zeros((4, 4, 3)), rng())


def test_tensors_and_lists_are_taken():
    gs = pytest.importorskip("gradsmith")
    x = gs.tensor(np.float32([[1, 2], [3, 4]]))
    np.testing.assert_array_equal(T.Clip(2, 3)(x), [[2, 2], [3, 3]])
    np.testing.assert_array_equal(T.Clip(2, 3)([[1.0, 4.0]]), [[2, 3]])


# ---- scaling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
@pytest.mark.parametrize("shape", [(50, 4), (7, 5, 6, 3), (40,), (1, 3), (3, 400_000)])
def test_standardize(dtype, shape):
    x = (rng().normal(size=shape) * 20 + 50).astype(dtype)
    s = T.Standardize().fit(x)
    axes = tuple(range(max(1, x.ndim - 1)))
    mean, std = x.astype(float).mean(axes), x.astype(float).std(axes)
    np.testing.assert_allclose(s.mean, np.atleast_1d(mean), rtol=1e-12)
    np.testing.assert_allclose(s.std, np.where(np.atleast_1d(std) == 0, 1, std), rtol=1e-9)
    y = s(x)
    assert y.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert y.shape == shape
    np.testing.assert_allclose(y, (x - mean) / np.where(std == 0, 1, std), atol=5e-6)
    np.testing.assert_allclose(s.inverse(y), x, atol=1e-4)
    assert s.fit_transform(x).tobytes() == s.transform(x).tobytes() == y.tobytes()


def test_standardize_large_offset_in_many_chunks():
    x = 1e9 + rng().normal(size=(3_000_000, 1))  # three chunks; a sum of squares would lose it
    s = T.Standardize().fit(x)
    np.testing.assert_allclose(s.std, x.std(0), rtol=1e-9)
    np.testing.assert_allclose(s.mean, x.mean(0), rtol=1e-15)


def test_constant_features_become_zero():
    x = np.full((1000, 3), 0.1)
    x[:, 1] = np.arange(1000)
    x[:, 2] = 3e-200
    for t in (T.Standardize(), T.MinMax()):
        y = t.fit_transform(x)
        assert (y[:, 0] == 0).all() and (y[:, 2] == 0).all() and np.isfinite(y).all()
        np.testing.assert_allclose(t.inverse(y), x, rtol=1e-12)
    assert T.Standardize().fit(np.ones((5, 2), np.uint8)).std.tolist() == [1, 1]


def test_minmax():
    x = rng().normal(size=(40, 3))
    y = T.MinMax((-1, 2)).fit_transform(x)
    np.testing.assert_allclose(y.min(0), -1, atol=1e-12)
    np.testing.assert_allclose(y.max(0), 2, atol=1e-12)
    np.testing.assert_allclose(y, (x - x.min(0)) / (x.max(0) - x.min(0)) * 3 - 1, atol=1e-12)
    assert (T.MinMax((2, 5)).fit_transform(np.ones((3, 1))) == 2).all()
    with pytest.raises(ValueError, match="rise"):
        T.MinMax((1, 1))


@pytest.mark.parametrize("t", [T.Standardize, T.MinMax])
def test_fit_errors_and_state(t):
    with pytest.raises(ValueError, match="call fit"):
        t()(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="no values"):
        t().fit(np.zeros((0, 3)))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="feature 1 holds"):
            t().fit([[1.0, 2.0], [3.0, bad]])
    fitted = t().fit(rng().normal(size=(9, 3)))
    with pytest.raises(ValueError, match=r"has 2 features.*fitted on 3"):
        fitted(np.zeros((4, 2)))
    other = t()
    other.load_state_dict(fitted.state_dict())
    x = rng(5).normal(size=(4, 3))
    np.testing.assert_array_equal(other(x), fitted(x))
    ds = ArrayDataset(x, np.arange(4))
    np.testing.assert_array_equal(t().fit(ds)(x), t().fit(x)(x))


def test_given_mean_and_std():
    s = T.Standardize([1.0, 2.0], [2.0, 0.0])
    np.testing.assert_array_equal(s([[3.0, 5.0]]), [[1.0, 3.0]])
    with pytest.raises(ValueError, match="both"):
        T.Standardize(mean=[1.0])


def test_log():
    x = np.array([0.0, 1e-9, 3.0])
    np.testing.assert_allclose(T.Log()(x), np.log1p(x), rtol=1e-15)
    np.testing.assert_allclose(T.Log(0.5)(x), np.log(x + 0.5), rtol=1e-15)
    for t in (T.Log(), T.Log(0.5)):
        np.testing.assert_allclose(t.inverse(t(x)), x, atol=1e-15)
    for bad in (-1.0, -5.0, np.nan):
        with pytest.raises(ValueError, match="above 0"):
            T.Log()(np.array([1.0, bad]))
    assert T.Log()(np.array([3], np.uint8)).dtype == np.float32


def test_clip():
    x = np.array([0, 100, 255], np.uint8)
    np.testing.assert_array_equal(T.Clip(-5, 150.7)(x), [0, 100, 150])
    np.testing.assert_array_equal(T.Clip(high=99)(x), [0, 99, 99])
    assert T.Clip(2.5)(x).tolist() == [3, 100, 255]
    with pytest.raises(ValueError, match="above"):
        T.Clip(2, 1)
    with pytest.raises(ValueError, match="low, high"):
        T.Clip()


def test_one_hot():
    y = rng().integers(0, 5, (3, 4))
    np.testing.assert_array_equal(T.OneHot(5)(y), np.eye(5, dtype=np.float32)[y])
    for bad in (5, -1):
        with pytest.raises(IndexError, match="0 to 4"):
            T.OneHot(5)(np.array([0, bad]))
    with pytest.raises(TypeError, match="integers"):
        T.OneHot(5)([0.0])
    assert T.OneHot(3)(np.zeros(0, int)).shape == (0, 3)


def test_to_float():
    bytes_ = np.arange(256, dtype=np.uint8)  # x / 255, not times a rounded 1 / 255
    np.testing.assert_array_equal(T.ToFloat()(bytes_), np.float32(bytes_) / np.float32(255))
    assert T.ToFloat()(np.array([7], np.uint32)) == 7
    assert T.ToFloat()(np.array([65535], np.uint16)) == 1
    assert T.ToFloat()(np.array([7.0])).dtype == np.float32


def test_compose():
    steps = [T.RandomFlip(), T.RandomCrop(padding=1)]
    x, g = images(), rng(2)
    expected = steps[1](steps[0](x, g), g)
    assert T.Compose(*steps)(x, rng(2)).tobytes() == expected.tobytes()
    assert T.Compose(steps)(x, rng(2)).tobytes() == expected.tobytes()
    with pytest.raises(TypeError, match="not a transform"):
        T.Compose(T.ToFloat(), 3)


# ---- images --------------------------------------------------------------------------------------


def test_flip():
    x = images(n=400)
    y = T.RandomFlip(True, True, p=0.3)(x, rng(1))
    kinds = [0, 0, 0, 0]
    for a, b in zip(x, y):
        kind = [k for k, f in enumerate((a, a[:, ::-1], a[::-1], a[::-1, ::-1])) if (f == b).all()]
        kinds[kind[0]] += 1
    for count, share in zip(kinds, (0.49, 0.21, 0.21, 0.09)):
        assert abs(count - 400 * share) < 4.5 * np.sqrt(400 * share * (1 - share))
    np.testing.assert_array_equal(T.RandomFlip(p=1)(x, rng()), x[:, :, ::-1])
    np.testing.assert_array_equal(T.RandomFlip(False, True, p=1)(x, rng()), x[:, ::-1])
    np.testing.assert_array_equal(T.RandomFlip(p=0)(x, rng()), x)
    with pytest.raises(ValueError, match="p must"):
        T.RandomFlip(p=1.5)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric", "wrap"])
@pytest.mark.parametrize("size, padding", [(None, 2), ((4, 7), 0), (9, (0, 1)), ((1, 1), 3)])
def test_crop(mode, size, padding):
    x = images(n=300, h=9, w=10, c=2)
    more = {"fill": 7} if mode == "constant" else {}
    y = T.RandomCrop(size, padding, mode, **more)(x, rng(2))
    py, px = (padding, padding) if isinstance(padding, int) else padding
    h, w = (9, 10) if size is None else (size, size) if isinstance(size, int) else size
    assert y.shape == (300, h, w, 2) and y.flags.c_contiguous
    extra = {"constant_values": 7} if mode == "constant" else {}
    padded = np.pad(x, ((0, 0), (py, py), (px, px), (0, 0)), mode=mode, **extra)
    places = set()
    for a, b in zip(padded, y):
        found = [
            (i, j)
            for i in range(a.shape[0] - h + 1)
            for j in range(a.shape[1] - w + 1)
            if (a[i : i + h, j : j + w] == b).all()
        ]
        assert found
        places.update(found)
    every = (10 + 2 * py - h) * (11 + 2 * px - w)
    assert len(places) >= min(every, 300) * 0.6  # all places are reached


def test_crop_errors():
    with pytest.raises(ValueError, match="12 x 12 is larger than the padded images, 11 x 13"):
        T.RandomCrop(12, padding=1)(images(), rng())
    with pytest.raises(ValueError, match="mode"):
        T.RandomCrop(mode="zeros")
    for bad in (0, (3, 0), (1, 2, 3), 2.5):
        with pytest.raises((ValueError, TypeError)):
            T.RandomCrop(bad)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, -1])
def test_quarter_turns_are_exact(turns):
    x = images(h=8, w=8)
    y = T.RandomRotate((90.0 * turns, 90.0 * turns))(x, rng())
    np.testing.assert_allclose(y, np.rot90(x, turns, axes=(1, 2)), atol=3e-6)
    raw = images(h=7, w=7, dtype="uint8")
    y = T.RandomRotate((90.0 * turns, 90.0 * turns))(raw, rng())
    np.testing.assert_array_equal(y, np.rot90(raw, turns, axes=(1, 2)))


def rotated(image, degrees, fill):
    """Bilinear rotation of one image, pixel by pixel, in float64."""
    height, width, channels = image.shape
    a = np.deg2rad(degrees)
    result = np.empty(image.shape)

    def pixel(i, j):
        inside = 0 <= i < height and 0 <= j < width
        return image[i, j].astype(float) if inside else np.full(channels, fill, float)

    for i in range(height):
        for j in range(width):
            dy, dx = i - (height - 1) / 2, j - (width - 1) / 2
            y = np.sin(a) * dx + np.cos(a) * dy + (height - 1) / 2
            x = np.cos(a) * dx - np.sin(a) * dy + (width - 1) / 2
            i0, j0 = int(np.floor(y)), int(np.floor(x))
            v, u = y - i0, x - j0
            result[i, j] = (1 - v) * ((1 - u) * pixel(i0, j0) + u * pixel(i0, j0 + 1)) + v * (
                (1 - u) * pixel(i0 + 1, j0) + u * pixel(i0 + 1, j0 + 1)
            )
    return result


@pytest.mark.parametrize("fill", [0.0, 0.25])
@pytest.mark.parametrize("shape", [(9, 14), (1, 5), (6, 6)])
def test_rotation_against_a_loop(shape, fill):
    x = images(n=12, h=shape[0], w=shape[1], c=2)
    y = T.RandomRotate((-180, 180), fill=fill)(x, rng(8))
    angles = rng(8).uniform(-180, 180, 12)
    for a, b, degrees in zip(x, y, angles):
        np.testing.assert_allclose(b, rotated(a, degrees, fill), atol=2e-5)


def test_rotation_arguments():
    with pytest.raises(ValueError, match="0 or more"):
        T.RandomRotate(-3)
    with pytest.raises(ValueError, match="rise"):
        T.RandomRotate((3, 1))
    x = images(h=8, w=8)
    np.testing.assert_allclose(T.RandomRotate(0)(x, rng()), x, atol=1e-6)


def test_grayscale():
    x = images()
    expected = 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]
    np.testing.assert_allclose(T.Grayscale()(x)[..., 0], expected, rtol=1e-5)
    y = T.Grayscale(3)(images(dtype="uint8"))
    assert y.dtype == np.uint8 and (y[..., 0] == y[..., 2]).all() and y.shape[-1] == 3
    np.testing.assert_array_equal(T.Grayscale()(x[..., :1]), x[..., :1])
    with pytest.raises(ValueError, match="1 or 3 channels"):
        T.Grayscale()(images(c=2))
    with pytest.raises(ValueError, match="channels"):
        T.Grayscale(2)


def only(name, value):
    return T.ColorJitter(**{name: (value, value)})


def test_color_jitter_one_at_a_time():
    x = images(n=4) * 0.9
    gray = T.Grayscale()(x)
    for f in (0.3, 1.7):
        np.testing.assert_allclose(only("brightness", f)(x, rng()), np.clip(f * x, 0, 1), atol=1e-6)
        mean = gray.mean((1, 2, 3), keepdims=True)
        expected = np.clip(f * x + (1 - f) * mean, 0, 1)
        np.testing.assert_allclose(only("contrast", f)(x, rng()), expected, atol=1e-5)
        expected = np.clip(f * x + (1 - f) * gray, 0, 1)
        np.testing.assert_allclose(only("saturation", f)(x, rng()), expected, atol=1e-5)
    x[0, 0, 0] = 0.5  # a grey pixel has no hue
    x[0, 0, 1] = [0.2, 0.7, 0.7]
    for f in (-0.5, -0.2, 0.1, 0.45):
        y = only("hue", f)(x, rng())
        for a, b in zip(x.reshape(-1, 3), y.reshape(-1, 3)):
            h, s, v = colorsys.rgb_to_hsv(*map(float, a))
            np.testing.assert_allclose(b, colorsys.hsv_to_rgb((h + f) % 1, s, v), atol=2e-5)


def test_color_jitter_ranges():
    x = np.full((2000, 1, 1, 3), 0.25, np.float32)
    y = T.ColorJitter(brightness=0.6)(x, rng(1))[:, 0, 0, 0] / 0.25
    assert y.min() > 0.4 - 1e-5 and y.max() < 1.6 + 1e-5
    assert y.min() < 0.41 and y.max() > 1.59 and abs(y.mean() - 1) < 0.03
    x = images(dtype="uint8")
    y = T.ColorJitter((0.0, 9.0))(x, rng(1)).astype(int)
    assert y.min() == 0 and y.max() == 255  # limited, not wrapped
    rises = np.diff(x.astype(int), axis=-1) >= 0
    assert (np.diff(y, axis=-1)[rises] >= 0).all()
    assert T.ColorJitter(0.9, 0.9, 0.9, 0.5)(x, rng(1)).dtype == np.uint8
    np.testing.assert_array_equal(T.ColorJitter()(x, rng()), x)
    one = images(c=1)
    np.testing.assert_array_equal(T.ColorJitter(saturation=0.5, hue=0.5)(one, rng()), one)
    for bad in ({"brightness": -1}, {"hue": 0.6}, {"contrast": (2, 1)}, {"hue": (-0.6, 0)}):
        with pytest.raises(ValueError, match="ColorJitter"):
            T.ColorJitter(**bad)
    with pytest.raises(ValueError, match="channels"):
        T.ColorJitter(0.1)(images(c=2), rng())
    with pytest.raises(TypeError, match="uint8 or floats"):
        T.ColorJitter(0.1)(images().astype(int), rng())


def test_color_jitter_against_torchvision_factors():
    """The four in every order: some order of plain NumPy steps gives the result of each batch."""
    from itertools import permutations

    x = images(n=1) * 0.5 + 0.2
    fixed = {"brightness": 1.2, "contrast": 0.8, "saturation": 1.3, "hue": 0.1}
    results = []
    for order in permutations(fixed):
        y = x
        for name in order:
            y = only(name, fixed[name])(y, rng())
        results.append(y)
    jitter = T.ColorJitter(**{k: (v, v) for k, v in fixed.items()})
    found = set()
    for seed in range(60):
        y = jitter(x, rng(seed))
        fits = [i for i, r in enumerate(results) if np.allclose(r, y, atol=1e-5)]
        assert fits
        found.add(fits[0])
    assert len(found) > 3


@pytest.mark.parametrize("size, holes", [(3, 1), ((2, 5), 1), ((4, 3), 3), (40, 1)])
def test_cutout(size, holes):
    x = images(n=300) + 1
    y = T.Cutout(size, holes, fill=-2)(x, rng(3))
    h, w = (size, size) if isinstance(size, int) else size
    cut = y == -2
    assert (cut.all(-1) == cut.any(-1)).all()  # all channels
    np.testing.assert_array_equal(np.where(cut, x, y), x)  # nothing else
    count = cut[..., 0].sum((1, 2))
    assert count.min() >= 1 and count.max() <= min(holes * h * w, 99)
    if holes == 1:
        for hole in cut[..., 0]:  # one full rectangle
            rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
            assert hole.sum() == len(rows) * len(columns)
            assert (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all()
        assert cut[..., 0].mean(0).min() > 0  # every pixel is reached
    with pytest.raises(ValueError, match="Cutout"):
        T.Cutout(0)
    with pytest.raises(ValueError, match="holes"):
        T.Cutout(2, 0)


def test_images_are_drawn_one_by_one():
    x = np.repeat(images(n=1), 40, 0)
    for t in RANDOM[:-1]:
        y = t(x, rng(5))
        assert len({image.tobytes() for image in y}) > 2, t


def test_large_batches_are_as_small_ones():
    """Work is done some images at a time; where the cuts fall does not show."""
    x = images(n=37, h=30, w=33)
    y = T.RandomRotate((-90, 90))(x, rng(2))
    for i, a in enumerate(rng(2).uniform(-90, 90, 37)):
        np.testing.assert_allclose(
            y[i : i + 1], T.RandomRotate((a, a))(x[i : i + 1], rng()), atol=1e-6
        )
    y = T.ColorJitter(hue=0.5)(x, rng(2))
    g = rng(2)
    g.permutation(4)
    for i, f in enumerate(g.uniform(-0.5, 0.5, 37)):
        np.testing.assert_allclose(y[i : i + 1], only("hue", f)(x[i : i + 1], rng()), atol=1e-5)


def test_arguments_as_lists_and_what_is_none():
    x = images()
    for a, b in (
        (T.RandomRotate([5, 9]), T.RandomRotate((5, 9))),
        (T.ColorJitter([0.5, 1.5], hue=[-0.1, 0.1]), T.ColorJitter((0.5, 1.5), hue=(-0.1, 0.1))),
        (T.RandomCrop([3, 4]), T.RandomCrop((3, 4))),
    ):
        np.testing.assert_array_equal(a(x, 3), b(x, 3))
    for make in (
        lambda: T.RandomRotate("a"),
        lambda: T.RandomRotate((1, 2, 3)),
        lambda: T.ColorJitter(brightness="a"),
        lambda: T.RandomCrop(5.0),
        lambda: T.MinMax(3),
        lambda: T.Standardize([0.5, 0.5], [1.0, 2.0, 3.0]),
    ):
        with pytest.raises((TypeError, ValueError), match="must be|expected"):
            make()


@pytest.mark.parametrize("fill, pixel", [(300, 255), (-7, 0), (127.6, 128)])
def test_fill_is_limited_like_the_images(fill, pixel):
    x = np.full((2, 6, 6, 1), 9, np.uint8)
    crop = T.RandomCrop((8, 8), padding=1, fill=fill)(x, 0)
    turn = T.RandomRotate((45, 45), fill=fill)(x, 0)
    cut = T.Cutout(20, fill=fill)(x, 0)
    assert (crop[:, 0] == pixel).all() and (turn[:, 0, 0] == pixel).all() and (cut == pixel).all()
