"""Streaming metrics against plain NumPy and scikit-learn, over random batch splits."""

from __future__ import annotations

import numpy as np
import pytest

from gradsmith.train import metrics as M


def split(rng, n):
    """Random batch borders, short ones and an empty one among them."""
    cuts = np.sort(rng.integers(0, n + 1, size=5))
    return np.split(np.arange(n), cuts)


def stream(metric, pred, target, rng):
    for index in split(rng, len(pred)):
        metric.update(pred[index], target[index])
    return metric.compute()


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_accuracy_and_topk(rng):
    for n, c in [(1, 2), (17, 3), (200, 10)]:
        pred = rng.normal(size=(n, c)).astype(np.float32)
        target = rng.integers(0, c, size=n)
        assert stream(M.Accuracy(), pred, target, rng) == np.mean(pred.argmax(1) == target)
        for k in (1, 2, c):
            order = np.argsort(-pred, axis=1)[:, :k]
            want = np.mean([t in row for t, row in zip(target, order)])
            assert stream(M.TopK(k), pred, target, rng) == want


def test_short_last_batch_is_weighted_by_its_count():
    pred, target = np.zeros((5, 2)), np.array([0, 0, 0, 0, 1])
    metric = M.Accuracy()
    metric.update(pred[:4], target[:4])
    metric.update(pred[4:], target[4:])
    assert metric.compute() == 0.8  # not the mean of 1.0 and 0.0
    metric = M.Function(lambda y, p: np.mean(y), collect=False)
    metric.update(pred[:4], target[:4])
    metric.update(pred[4:], target[4:])
    assert metric.compute() == pytest.approx(0.2)


def test_binary_inputs(rng):
    score = rng.random(50)
    target = rng.integers(0, 2, size=50)
    want = np.mean((score > 0.5) == target)
    for p in (score, score[:, None]):
        for t in (target, target.astype(np.float32), target.astype(bool), target[:, None]):
            assert stream(M.Accuracy(), p, t, rng) == want
    logits = score - 0.5
    assert stream(M.Accuracy(threshold=0.0), logits, target, rng) == want


def test_labels_sequences_and_probabilities(rng):
    pred, target = rng.integers(0, 4, size=(2, 30))
    assert stream(M.Accuracy(), pred, target, rng) == np.mean(pred == target)
    scores, labels = rng.normal(size=(6, 7, 5)), rng.integers(0, 5, size=(6, 7))
    assert stream(M.Accuracy(), scores, labels, rng) == np.mean(scores.argmax(-1) == labels)
    soft = rng.random((30, 4))
    scores = rng.normal(size=(30, 4))
    want = np.mean(scores.argmax(1) == soft.argmax(1))
    assert stream(M.Accuracy(), scores, soft, rng) == want


def test_nan_scores_are_wrong():
    pred = np.array([[np.nan, 0.0], [0.0, np.nan], [1.0, 0.0]])
    for metric in (M.Accuracy(), M.TopK(1)):
        metric.update(pred, np.array([0, 1, 0]))
        assert metric.compute() == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="NaN"):
        M.ConfusionMatrix().update(pred, np.array([0, 1, 0]))


def test_topk_ties_follow_argmax():
    pred = np.zeros((3, 4))
    metric = M.TopK(2)
    metric.update(pred, np.array([0, 1, 2]))
    assert metric.compute() == pytest.approx(2 / 3)


def by_hand(pred, target, beta, average):
    """F-score from its definition, loops only."""
    classes = sorted(set(pred) | set(target))
    rows = []
    for c in classes:
        tp = sum(p == c and t == c for p, t in zip(pred, target))
        fp = sum(p == c and t != c for p, t in zip(pred, target))
        fn = sum(p != c and t == c for p, t in zip(pred, target))
        rows.append((tp, fp, fn))
    if average == "micro":
        rows = [tuple(map(sum, zip(*rows)))]

    def quotient(a, b):
        return a / b if b else 0.0

    out = []
    for tp, fp, fn in rows:
        p, r = quotient(tp, tp + fp), quotient(tp, tp + fn)
        f = quotient((1 + beta**2) * p * r, beta**2 * p + r)
        out.append((p, r, f, tp + fn))
    out = np.array(out)
    weights = out[:, 3] if average == "weighted" else np.ones(len(out))
    return (out[:, :3] * weights[:, None]).sum(0) / weights.sum()


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("seed", range(4))
def test_precision_recall_fscore(average, seed):
    rng = np.random.default_rng(seed)
    c = int(rng.integers(2, 8))
    n = int(rng.integers(1, 60))
    target, pred = rng.integers(0, c, size=n), rng.integers(0, c, size=n)
    beta = float(rng.choice([0.5, 1, 2]))
    want = by_hand(pred.tolist(), target.tolist(), beta, average)
    got = [
        stream(metric, pred, target, rng)
        for metric in (M.Precision(average), M.Recall(average), M.FScore(beta, average))
    ]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    # Scores of more classes than occur must not change the value.
    scores = np.eye(c + 2)[pred]
    assert stream(M.FScore(beta, average), scores, target, rng) == pytest.approx(want[2], abs=1e-12)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted", "binary", None])
def test_against_scikit_learn(average, rng):
    sk = pytest.importorskip("sklearn.metrics")
    for trial in range(60):
        c = 2 if average == "binary" else int(rng.integers(2, 9))
        n = int(rng.integers(1, 80) if trial % 2 else rng.integers(1, 9))
        y, p = rng.integers(0, c, size=n), rng.integers(0, c, size=n)
        if trial % 4 == 0:  # classes that are never true, or never predicted
            y, p = y // 2, p - p // 2
        zero = [0.0, 1.0, np.nan][trial % 3]  # NaN: left out of the means
        kw = dict(average=average, zero_division=zero)
        if average is None:
            kw["labels"] = range(max(y.max(), p.max()) + 1)
        for ours, theirs in [
            (M.Precision(average, zero), sk.precision_score(y, p, **kw)),
            (M.Recall(average, zero), sk.recall_score(y, p, **kw)),
            (M.FScore(2.0, average, zero), sk.fbeta_score(y, p, beta=2.0, **kw)),
            (M.FScore(0.0, average, zero), sk.fbeta_score(y, p, beta=0.0, **kw)),
            (M.FScore(np.inf, average, zero), sk.fbeta_score(y, p, beta=np.inf, **kw)),
        ]:
            np.testing.assert_allclose(stream(ours, p, y, rng), theirs, rtol=0, atol=1e-12)
    scores = rng.normal(size=(90, 7))
    y = rng.integers(0, 7, size=90)
    for k in (1, 3, 5):
        want = sk.top_k_accuracy_score(y, scores, k=k, labels=range(7))
        assert stream(M.TopK(k), scores, y, rng) == pytest.approx(want, abs=1e-12)
    want = sk.confusion_matrix(y, scores.argmax(1), labels=range(7))
    np.testing.assert_array_equal(stream(M.ConfusionMatrix(), scores, y, rng), want)


def test_regression_against_scikit_learn(rng):
    sk = pytest.importorskip("sklearn.metrics")
    for shape in [(2,), (33,), (33, 1), (50, 3)]:
        y = rng.normal(size=shape) * 3 + 5
        p = y + rng.normal(size=shape)
        assert stream(M.MSE(), p, y, rng) == pytest.approx(sk.mean_squared_error(y, p), rel=1e-12)
        assert stream(M.MAE(), p, y, rng) == pytest.approx(sk.mean_absolute_error(y, p), rel=1e-12)
        assert stream(M.R2(), p, y, rng) == pytest.approx(sk.r2_score(y, p), abs=1e-12)


def test_r2_with_a_large_mean(rng):
    """Sums of squares would lose every digit here: mean 1e9, deviation 1."""
    noise = rng.integers(-8, 9, size=4000) / 8.0
    error = rng.integers(-8, 9, size=4000) / 64.0
    y = 1e9 + noise  # exact in float64
    want = 1 - (error**2).sum() / ((noise - noise.mean()) ** 2).sum()
    assert stream(M.R2(), y + error, y, rng) == pytest.approx(want, rel=1e-9)


def test_r2_constant_target():
    metric = M.R2()
    metric.update(np.ones(4), np.ones(4))
    assert metric.compute() == 1.0
    metric.update(np.zeros(1), np.ones(1))
    assert metric.compute() == 0.0
    assert np.isnan(M.R2().compute())
    # The mean of ten times 0.1 is not 0.1 when it is summed and divided; it has to be here, or the
    # quotient is one of rounding errors.
    for value in (0.1, -1e150, 1e6 + 0.1):
        for cut in (0, 3, 10):
            metric = M.R2()
            for part in (slice(0, cut), slice(cut, 13)):
                metric.update(np.full(13, value)[part] * 1.5, np.full(13, value)[part])
            assert metric.compute() == 0.0
    metric = M.R2()
    metric.update(np.array([np.nan, 1.0]), np.ones(2))
    assert np.isnan(metric.compute())


def test_huge_and_infinite_scores_are_no_warning(recwarn):
    top = np.finfo(np.float32).max
    scores = np.array([[top, top, 0], [np.inf, -np.inf, 0], [0, np.nan, 1]], np.float32)
    metric = M.Accuracy()
    metric.update(scores, np.array([0, 0, 2]))
    assert metric.compute() == pytest.approx(2 / 3) and not recwarn.list


def test_confusion_matrix_grows():
    metric = M.ConfusionMatrix()
    metric.update(np.array([0, 1]), np.array([0, 0]))
    metric.update(np.array([3]), np.array([2]))
    want = np.zeros((4, 4), int)
    want[0, 0] = want[0, 1] = want[2, 3] = 1
    np.testing.assert_array_equal(metric.compute(), want)


def test_float32_sums_are_float64():
    """A million values of 0.1 in float32 add up to 100958; the mean must not show it."""
    metric = M.MAE()
    x = np.full(1_000_000, 0.1, np.float32)
    metric.update(x, np.zeros_like(x))
    assert metric.compute() == pytest.approx(float(np.float32(0.1)), rel=1e-12)


ALL = [
    M.Accuracy, M.TopK, M.Precision, M.Recall, M.FScore, M.ConfusionMatrix,
    lambda: M.Function(lambda y, p: (p.argmax(1) == y).mean(), "mine"),
    lambda: M.Function(lambda y, p: (p.argmax(1) == y).mean(), "mine", collect=False),
]  # fmt: skip


@pytest.mark.parametrize("build", [*ALL, M.MSE, M.MAE, M.R2])
def test_merge_reset_and_state(build, rng):
    regression = build in (M.MSE, M.MAE, M.R2)
    pred = rng.normal(size=(40, 6))
    target = rng.normal(size=(40, 6)) if regression else rng.integers(0, 6, size=40)
    whole, a, b = build(), build(), build()
    assert np.all(np.isnan(whole.compute())) or isinstance(whole, M.ConfusionMatrix)
    whole.update(pred, target)
    a.update(pred[:13], target[:13])
    b.update(pred[13:], target[13:])
    before = b.compute()
    assert a.merge(b) is a
    np.testing.assert_allclose(a.compute(), whole.compute(), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(b.compute(), before)
    # The state carries on exactly, and loading does not share memory with the saved copy.
    half, cont = build(), build()
    half.update(pred[:13], target[:13])
    cont.load_state_dict(half.state_dict())
    cont.update(pred[13:], target[13:])
    half.update(pred[13:], target[13:])
    np.testing.assert_array_equal(cont.compute(), half.compute())
    a.reset()
    a.update(pred, target)
    np.testing.assert_array_equal(a.compute(), whole.compute())
    with pytest.raises(TypeError, match="merge"):
        a.merge(M.Accuracy() if build is not M.Accuracy else M.MSE())


def test_function_is_exact_for_what_is_no_mean(rng):
    y, p = rng.normal(size=(2, 31))
    corr = M.Function(lambda y, p: np.corrcoef(y, p)[0, 1], "corr")
    assert stream(corr, p, y, rng) == pytest.approx(np.corrcoef(y, p)[0, 1], abs=1e-12)


def test_names():
    assert M.TopK(np.int64(3)).name == "top3" and M.ConfusionMatrix(np.int8(3)).num_classes == 3
    assert M.get("top_3").k == 3 and M.get("Top5_accuracy").name == "top5"
    assert isinstance(M.get("acc"), M.Accuracy) and isinstance(M.get(M.R2), M.R2)
    assert M.get(len).name == "len"
    assert [m.name for m in M.get_all("accuracy")] == ["accuracy"]
    assert [m.name for m in M.get_all(["mse", M.FScore(0.5)])] == ["mse", "f0.5"]
    with pytest.raises(ValueError, match="known"):
        M.get("acuracy")
    with pytest.raises(ValueError, match="two results"):
        M.get_all(["accuracy", "acc"])
    with pytest.raises(TypeError):
        M.get(3)
    with pytest.raises(TypeError):
        M.get_all(3)


def test_bad_input():
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(4,\)"):
        M.Accuracy().update(np.zeros((3, 2)), np.zeros(4, int))
    with pytest.raises(ValueError, match="whole numbers"):
        M.Accuracy().update(np.zeros((2, 3)), np.array([0.5, 1.0]))
    for metric in (M.MSE(), M.MAE(), M.R2()):
        with pytest.raises(ValueError, match="broadcast"):
            metric.update(np.zeros((4, 1)), np.zeros(4))
    with pytest.raises(TypeError, match="numbers"):
        M.MSE().update(np.array(["a"]), np.array(["b"]))
    with pytest.raises(ValueError, match="num_classes=3"):
        M.ConfusionMatrix(3).update(np.array([1, 3]), np.array([0, 1]))
    with pytest.raises(ValueError, match="class -1"):
        M.ConfusionMatrix().update(np.array([0]), np.array([-1]))
    with pytest.raises(ValueError, match="class 7"):
        M.TopK(2).update(np.zeros((1, 3)), np.array([7]))
    with pytest.raises(ValueError, match="top5"):
        M.TopK(5).update(np.zeros((1, 3)), np.array([0]))
    for bad in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="k must"):
            M.TopK(bad)
    for bad in (0, 2.5, "3", True):
        with pytest.raises(ValueError, match="num_classes must"):
            M.FScore(num_classes=bad)
    with pytest.raises(ValueError, match="average"):
        M.Precision("mean")
    with pytest.raises(ValueError, match="beta"):
        M.FScore(-1)
    m = M.FScore(average="binary")
    m.update(np.array([0, 2]), np.array([1, 1]))
    with pytest.raises(ValueError, match="two classes"):
        m.compute()
    with pytest.raises(ValueError, match="state"):
        M.Accuracy().load_state_dict({"right": 1})
