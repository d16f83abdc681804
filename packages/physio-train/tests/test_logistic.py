"""The batched solver finds scikit-learn's minimum for every problem of the batch."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from physio_train import logistic


@pytest.mark.parametrize("n, d", [(300, 12), (120, 200)])
def test_every_binary_problem_equals_scikit_learn(n, d):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) @ (np.eye(d) + 0.3 * rng.normal(size=(d, d)))
    x = (x - x.mean(0)) / x.std(0)
    y = (x[:, 0] + rng.normal(size=n) > 0.4).astype(int)
    strengths = np.array([1e-3, 0.1, 10.0, 0.1])
    weight = np.stack([np.ones(n), 1 + y * 2.0, np.ones(n), (np.arange(n) % 3 > 0).astype(float)], axis=1)
    found = logistic.solve(logistic.design(x), y, weight, strengths)
    assert found.converged_P.all()
    for p in range(4):
        rows = weight[:, p] > 0
        theirs = LogisticRegression(C=strengths[p], tol=1e-9, max_iter=10_000).fit(x[rows], y[rows], sample_weight=weight[rows, p])
        ours = expit(x @ found.coef_DPK[:, p, 0] + found.intercept_PK[p, 0])
        assert np.abs(ours - theirs.predict_proba(x)[:, 1]).max() < 1e-4


def test_softmax_equals_scikit_learn():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 10))
    y = np.argmax(x[:, :4] + rng.gumbel(size=(400, 4)), axis=1)
    x = (x - x.mean(0)) / x.std(0)
    weight = np.stack([np.ones(400), 1.0 + (y == 2)], axis=1)
    found = logistic.solve(logistic.design(x), y, weight, np.array([0.05, 1.0]), n_classes=4)
    for p, c in enumerate([0.05, 1.0]):
        theirs = LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(x, y, sample_weight=weight[:, p])
        ours = softmax(x @ found.coef_DPK[:, p] + found.intercept_PK[p], axis=1)
        assert np.abs(ours - theirs.predict_proba(x)).max() < 1e-4


def test_constant_and_repeated_columns_and_separable_classes_do_no_harm():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 4))
    x = np.concatenate([x, x[:, :2], np.zeros((80, 1))], axis=1)
    y = (x[:, 0] > 0).astype(int)
    found = logistic.solve(logistic.design(x), y, np.ones((80, 1)), np.array([100.0]))
    assert found.converged_P.all() and np.isfinite(found.coef_DPK).all() and found.coef_DPK[6, 0, 0] == 0
    nothing = logistic.solve(logistic.design(np.zeros((80, 3))), y, np.ones((80, 1)), np.array([1.0]))
    assert expit(nothing.intercept_PK[0, 0]) == pytest.approx(y.mean(), abs=1e-5)


def test_a_problem_without_rows_is_refused():
    with pytest.raises(ValueError, match="positive weight"):
        logistic.solve(logistic.design(np.ones((4, 1))), np.array([0, 1, 0, 1]), np.zeros((4, 1)), np.array([1.0]))
