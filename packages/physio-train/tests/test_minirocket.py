"""MiniRocket's shares are those of plain sums, its dilations the paper's, and what is saved scores as before."""

import math

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from physio_train import minirocket


def series(n=30, t=40, seed=0):
    """Three classes: a bump early, a bump late, none."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    at = np.where(y == 0, t // 4, 3 * t // 4)[:, None]
    bump = np.exp(-0.5 * ((np.arange(t) - at) / 2) ** 2) * (y < 2)[:, None]
    return 2 * bump + 0.3 * rng.normal(size=(n, t)), y


def convolution(x, weights, dilation):
    """Nine taps about every sample, zeros outside, written out."""
    return [sum(w * x[t + (i - 4) * dilation] for i, w in enumerate(weights) if 0 <= t + (i - 4) * dilation < len(x)) for t in range(len(x))]


def brute(x, dilations, counts, bias):
    """Share of samples above each bias, by loops over kernels as the paper lists them."""
    kernels = [[2 if i in (a, b, c) else -1 for i in range(9)] for a in range(9) for b in range(a + 1, 9) for c in range(b + 1, 9)]
    assert len(kernels) == 84 and all(sum(k) == 0 for k in kernels)
    out, f = [], 0
    for place, (dilation, n) in enumerate(zip(dilations, counts, strict=True)):
        for k, weights in enumerate(kernels):
            y = convolution(x, weights, dilation)
            y = y if (k + place) % 2 == 0 else y[4 * dilation : len(y) - 4 * dilation]
            for _ in range(n):
                out.append(sum(v > bias[f] for v in y) / len(y))
                f += 1
    return out


def test_shares_are_those_of_sums_written_out():
    x, y = series()
    model = minirocket.fit(x, y, ("a", "b", "c"), n_features=84 * 5)
    found = model.features(x[:2])
    expected = [brute(v.tolist(), model.dilation_D.tolist(), model.n_biases_D.tolist(), model.bias_F.tolist()) for v in x[:2]]
    off = np.abs(found - expected) > 1e-12  # a bias that is a value of the convolution itself may fall on either side of it by rounding
    assert found.shape == (2, 420) and off.mean() < 0.005 and np.abs(found - expected)[off].max(initial=0) <= 1 / 8


@pytest.mark.parametrize(("t", "n"), [(140, 10_000), (96, 10_000), (9, 500), (300, 84)])
def test_dilations_fill_the_series_and_share_out_every_feature(t, n):
    dilation, count = minirocket.dilations(t, n)
    each = n // 84
    wanted = {math.floor(2 ** (i / max(1, min(each, 32) - 1) * math.log2((t - 1) / 8)) + 1e-9) for i in range(min(each, 32))}
    assert set(dilation.tolist()) == wanted and dilation[0] == 1 and 8 * dilation[-1] <= t - 1
    assert count.sum() == each and count.min() >= 1


def test_every_bias_is_a_quantile_of_a_whole_convolution():
    x, _ = series()
    model = minirocket.fit(x[:1].repeat(2, 0), np.array([0, 1]), ("a", "b"), n_features=84 * 3)  # one series lends all of them
    kernels = [[2 if i in (a, b, c) else -1 for i in range(9)] for a in range(9) for b in range(a + 1, 9) for c in range(b + 1, 9)]
    expected, level = [], 0
    for dilation, count in zip(model.dilation_D.tolist(), model.n_biases_D.tolist(), strict=True):
        for weights in kernels:
            whole = convolution(x[0].tolist(), weights, dilation)
            expected += [np.quantile(whole, (i * (1 + math.sqrt(5)) / 2) % 1) for i in range(level + 1, level + 1 + count)]
            level += count
    assert len(model.dilation_D) > 1 and level == 84 * 3
    assert model.bias_F == pytest.approx(np.array(expected), abs=1e-9)


def test_the_ridge_is_scikit_learns_and_a_class_that_training_lacks_is_never_called():
    (x, y), (x_test, y_test) = series(60), series(30, seed=1)
    model = minirocket.fit(x, y, ("a", "b", "c", "d"), n_features=84 * 6)
    theirs = RidgeClassifierCV(alphas=np.logspace(-3, 3, 10))
    scaler = StandardScaler().fit(model.features(x))
    theirs.fit(scaler.transform(model.features(x)), y)
    scores = model.scores(x_test)
    assert scores[:, :3] == pytest.approx(theirs.decision_function(scaler.transform(model.features(x_test))), abs=1e-8)
    assert (scores[:, 3] == -1).all() and (scores.argmax(1) == y_test).mean() > 0.9
    two = minirocket.fit(x[y < 2], y[y < 2], ("a", "b"), n_features=84).scores(x_test)
    assert two[:, 0] == pytest.approx(-two[:, 1])


def test_what_is_saved_scores_as_before_and_damage_is_told(tmp_path):
    x, y = series()
    model = minirocket.fit(x, np.where(np.arange(30) < 3, -1, y), ("a", "b", "c"), n_features=84, seed=3)
    back = minirocket.load(minirocket.save(tmp_path / "m", model))
    assert np.array_equal(back.scores(x), model.scores(x)) and back.classes == model.classes and back.alpha == model.alpha
    (tmp_path / "m" / minirocket.WEIGHTS_FILE).write_bytes(b"cut off")
    with pytest.raises(ValueError, match="no whole MiniRocket"):
        minirocket.load(tmp_path / "m")


def test_series_that_do_not_fit_are_refused():
    x, y = series()
    model = minirocket.fit(x, y, ("a", "b", "c"), n_features=84)
    with pytest.raises(ValueError, match=r"\(N, 40\)"):
        model.scores(x[:, :39])
    with pytest.raises(ValueError, match="finite"):
        model.scores(np.where(x > 1, np.nan, x))
    with pytest.raises(ValueError, match="at least the 9 samples"):
        minirocket.fit(x[:, :8], y, ("a", "b", "c"))
    with pytest.raises(ValueError, match="one class only"):
        minirocket.fit(x, np.zeros(30), ("a", "b", "c"))
    with pytest.raises(ValueError, match="n_features"):
        minirocket.fit(x, y, ("a", "b", "c"), n_features=83)
