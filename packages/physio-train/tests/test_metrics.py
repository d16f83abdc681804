"""Metrics equal scikit-learn's, weighted or not, and are NaN where they are not defined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from physio_train import metrics

PAIRS = [
    (metrics.auroc, oracle.roc_auc_score),
    (metrics.average_precision, oracle.average_precision_score),
    (metrics.brier, oracle.brier_score_loss),
    (lambda y, p, **w: metrics.log_loss(y, 0.1 + 0.8 * p, **w), lambda y, p, **w: oracle.log_loss(y, 0.1 + 0.8 * p, **w)),
]


def labelled(seed, n=60, levels=7):
    """Labels with both classes and probabilities with many ties, 0 and 1 among them."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    y[:2] = [0, 1]
    return y, rng.integers(0, levels, n) / (levels - 1), rng.integers(0, 4, n)


@pytest.mark.parametrize("ours, theirs", PAIRS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_binary_metric_equals_scikit_learn_with_ties_and_integer_weights(ours, theirs, seed):
    y, p, w = labelled(seed)
    w[:2] = 1
    assert ours(y, p) == pytest.approx(theirs(y, p), abs=1e-10)
    assert ours(y, p, weight=w) == pytest.approx(theirs(y, p, sample_weight=w), abs=1e-10)


@pytest.mark.parametrize(
    "metric",
    [metrics.auroc, metrics.average_precision, metrics.brier, metrics.ece, metrics.log_loss, metrics.f1_at, metrics.sensitivity_at_specificity],
    ids=lambda f: f.__name__,
)
def test_a_weight_counts_a_window_that_many_times_and_rows_of_weights_give_a_figure_each(metric):
    y, p, w = labelled(3)
    both = metric(y, p, weight=np.stack([w, np.ones_like(w)]))
    assert both.shape == (2,)
    assert both[0] == pytest.approx(metric(np.repeat(y, w), np.repeat(p, w)), abs=1e-12)
    assert both[1] == pytest.approx(metric(y, p), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_auroc_is_the_share_of_pairs_in_order_and_mirrors(seed):
    y, p, _ = labelled(seed, n=25, levels=4)
    gap = p[y == 1][:, None] - p[y == 0][None, :]
    assert metrics.auroc(y, p) == pytest.approx(np.mean((gap > 0) + 0.5 * (gap == 0)), abs=1e-12)
    assert metrics.auroc(y, p) == pytest.approx(1 - metrics.auroc(y, -p), abs=1e-12)
    assert metrics.auroc(y, p) == pytest.approx(metrics.auroc(y, np.exp(3 * p)), abs=1e-12)


def test_one_class_gives_nan_not_a_half():
    assert np.isnan(metrics.auroc([0, 0], [0.1, 0.2])) and np.isnan(metrics.auroc([1, 1], [0.1, 0.2])) and np.isnan(metrics.auroc([], []))
    assert np.isnan(metrics.average_precision([0, 0], [0.1, 0.2])) and np.isnan(metrics.f1_at([0, 0], [0.1, 0.9]))
    assert np.isnan(metrics.sensitivity_at_specificity([1, 1], [0.1, 0.2])) and np.isnan(metrics.best_threshold([0, 0], [0.1, 0.2]))


def test_unknown_labels_are_ignored():
    assert metrics.auroc([0, 1, -1, np.nan], [0.2, 0.8, 0.9, np.nan]) == 1.0
    assert metrics.mae([1.0, np.nan], [3.0, 7.0]) == 2.0


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="labels must be 0, 1"):
        metrics.auroc([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="scores must be finite"):
        metrics.auroc([0, 1], [np.nan, 0.2])
    with pytest.raises(ValueError, match="sigmoid"):
        metrics.brier([0, 1], [0.5, 1.2])
    with pytest.raises(ValueError, match="weight"):
        metrics.auroc([0, 1], [0.1, 0.2], weight=np.ones(3))
    with pytest.raises(ValueError, match="one column per label"):
        metrics.macro_auroc(np.zeros((3, 2)), np.zeros((3, 4)))


def test_macro_auroc_drops_labels_without_positives():
    y_NK = np.array([[0, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 0]])
    s_NK = np.array([[0.1, 0.3, 0.9], [0.8, 0.1, 0.2], [0.9, 0.2, 0.3], [0.7, 0.5, 0.1]])
    assert metrics.macro_auroc(y_NK, s_NK) == pytest.approx(np.mean([oracle.roc_auc_score(y_NK[:, k], s_NK[:, k]) for k in (0, 2)]))


def test_sensitivity_at_specificity_is_read_off_the_roc_curve():
    y, p, _ = labelled(5, n=400, levels=50)
    fpr, tpr, _ = oracle.roc_curve(y, p, drop_intermediate=False)
    assert metrics.sensitivity_at_specificity(y, p, specificity=0.9) == pytest.approx(tpr[fpr <= 0.1 + 1e-12].max())
    ours_fpr, ours_tpr, _ = metrics.roc_curve(y, p)
    assert np.allclose(ours_fpr, fpr[1:]) and np.allclose(ours_tpr, tpr[1:])


def test_the_best_threshold_beats_every_other():
    y, p, _ = labelled(6, n=200, levels=30)
    best = metrics.best_threshold(y, p)
    f1 = [oracle.f1_score(y, p >= t) for t in np.unique(p)]
    assert metrics.f1_at(y, p, threshold=best) == pytest.approx(max(f1))
    assert metrics.f1_at(y, p, threshold=np.full(200, best)) == pytest.approx(max(f1))


def test_confusion_equals_scikit_learn():
    y, p, _ = labelled(7)
    c = metrics.confusion(y, p, threshold=0.4)
    assert [[c.tn, c.fp], [c.fn, c.tp]] == oracle.confusion_matrix(y, p >= 0.4).tolist()
    assert c.mcc == pytest.approx(oracle.matthews_corrcoef(y, p >= 0.4)) and c.f1 == pytest.approx(oracle.f1_score(y, p >= 0.4))


def test_ece_of_a_calibrated_and_of_a_constant_score():
    assert metrics.ece([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]) == 0
    assert metrics.ece([0, 0, 0, 1], [1.0, 1.0, 1.0, 1.0]) == pytest.approx(0.75)


def test_regression_and_class_metrics_equal_scikit_learn():
    rng = np.random.default_rng(0)
    y, w = rng.normal(60, 9, 80), rng.integers(1, 4, 80)
    p = y + rng.normal(0, 5, 80)
    assert metrics.mae(y, p, weight=w) == pytest.approx(oracle.mean_absolute_error(y, p, sample_weight=w))
    assert metrics.r2(y, p, weight=w) == pytest.approx(oracle.r2_score(y, p, sample_weight=w))
    assert metrics.pearson(y, p) == pytest.approx(np.corrcoef(y, p)[0, 1])
    assert np.isnan(metrics.r2([2, 2, 2], [1, 2, 3])) and np.isnan(metrics.pearson([1, 2, 3], [5, 5, 5]))
    c, d = rng.integers(0, 4, 80), rng.integers(0, 4, 80)
    assert metrics.balanced_accuracy(c, d) == pytest.approx(oracle.balanced_accuracy_score(c, d))


def test_macro_f1_and_accuracy_are_scikit_learns():
    rng = np.random.default_rng(5)
    y, p = rng.integers(0, 4, 200), rng.integers(0, 5, 200)
    assert metrics.macro_f1(y, p) == pytest.approx(oracle.f1_score(y, p, labels=[0, 1, 2, 3], average="macro"))
    assert metrics.accuracy(y, p) == pytest.approx(np.mean(y == p))
    weight = np.stack([np.ones(200), np.arange(200.0)])
    expected = oracle.f1_score(y, p, labels=[0, 1, 2, 3], average="macro", sample_weight=weight[1])
    assert np.allclose(metrics.macro_f1(y, p, weight=weight), [metrics.macro_f1(y, p), expected])


def test_ectopic_beats_are_counted_as_the_standards_reference_program_counts_them():
    rng = np.random.default_rng(3)
    classes = ("Q", "N", "F", "V", "S")
    y, call = rng.integers(0, 5, 600), rng.integers(0, 5, 600)
    n = {f"{a}{b.lower()}": np.sum((y == classes.index(a)) & (call == classes.index(b))) for a in "NSVFQ" for b in "NSVFQ"}
    found = metrics.ectopic_beats(y, call, classes)
    assert found["VEB"] == pytest.approx((n["Vv"] / sum(n[f"V{b}"] for b in "nsvfq"), n["Vv"] / (n["Vv"] + n["Nv"] + n["Sv"])))
    assert found["SVEB"] == pytest.approx((n["Ss"] / sum(n[f"S{b}"] for b in "nsvfq"), n["Ss"] / (n["Ss"] + n["Ns"] + n["Vs"] + n["Fs"])))
    assert np.isnan(metrics.ectopic_beats([1, 1], [1, 1], classes)["VEB"]).all()
    with pytest.raises(ValueError, match="F, Q is missing"):
        metrics.ectopic_beats(y, call, ("N", "S", "V"))
