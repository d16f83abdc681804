"""A probe chooses inside its training rows, equals scikit-learn at what it chose, survives saving, and refuses broken input."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from physio_train import metrics, probe
from physio_train.folds import grouped_folds
from physio_train.probe import ProbeConfig


def data(seed=0, n_groups=12, each=20, d=8, kind="binary"):
    rng = np.random.default_rng(seed)
    group = np.repeat([f"s{i}" for i in range(n_groups)], each)
    x = rng.normal(size=(len(group), d)) * rng.uniform(0.1, 50, d) + rng.uniform(-100, 100, d)
    z = (x - x.mean(0)) / x.std(0)
    y = {
        "binary": (z[:, 0] + rng.normal(size=len(group)) > 0.8).astype(float),
        "multiclass": np.argmax(z[:, :3] + 0.5 * rng.gumbel(size=(len(group), 3)), axis=1).astype(float),
        "multilabel": (z[:, :2] + rng.normal(size=(len(group), 2)) > [0.3, 0.9]).astype(float),
        "regression": 60 + 5 * z[:, 0] - 3 * z[:, 1] + rng.normal(size=len(group)),
    }[kind]
    return x, y, group


def test_a_balanced_fit_equals_scikit_learn_at_the_chosen_strength():
    x, y, group = data()
    fitted = probe.fit(x, y, group, ProbeConfig())
    z = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(C=fitted.strength_K[0], class_weight="balanced", tol=1e-9, max_iter=10_000).fit(z, y)
    assert np.abs(fitted.predict(x)[:, 0] - theirs.predict_proba(z)[:, 1]).max() < 1e-4 and fitted.converged


def weighted_log_likelihood(y, p):
    """Mean log-likelihood with either class weighing one half, by hand."""
    return 0.5 * np.log(p[y == 1]).mean() + 0.5 * np.log(1 - p[y == 0]).mean()


@pytest.mark.parametrize(("select", "figure"), [("log_loss", weighted_log_likelihood), ("auroc", metrics.auroc)])
def test_the_strength_and_the_threshold_are_the_best_on_inner_out_of_fold_predictions(select, figure):
    x, y, group = data()
    config = ProbeConfig(strengths=(1e-3, 1e-1, 10.0), select=select)
    fitted = probe.fit(x, y, group, config)
    z, held = (x - x.mean(0)) / x.std(0), grouped_folds(group, y, 4, 0)
    out = {}
    for c in config.grid:
        score = np.zeros(len(y))
        for f in range(4):
            model = LogisticRegression(C=c, class_weight="balanced", tol=1e-9, max_iter=10_000).fit(z[held != f], y[held != f])
            score[held == f] = model.predict_proba(z[held == f])[:, 1]
        out[c] = score
    figures = {c: figure(y, s) for c, s in out.items()}
    best = max(figures, key=figures.get)
    assert fitted.strength_K[0] == best and fitted.inner_K[0] == pytest.approx(figures[best], abs=1e-3)
    assert fitted.threshold_K[0] == pytest.approx(metrics.best_threshold(y, out[best]), abs=1e-3)


def test_ridge_equals_scikit_learn_and_finds_the_target():
    x, y, group = data(kind="regression")
    fitted = probe.fit(x, y, group, ProbeConfig(kind="regression", strengths=(1e-4, 1e-2)))
    z = (x - x.mean(0)) / x.std(0)
    theirs = Ridge(alpha=1 / fitted.strength_K[0]).fit(z, y)
    assert np.allclose(fitted.predict(x)[:, 0], theirs.predict(z), atol=1e-6) and fitted.strength_K[0] == 1e-2
    wide = np.concatenate([x, np.random.default_rng(0).normal(size=(len(x), 300))], axis=1)
    assert np.isfinite(probe.fit(wide, y, group, ProbeConfig(kind="regression")).predict(wide)).all()


def test_multiclass_and_multilabel_give_a_column_per_class():
    x, y, group = data(kind="multiclass")
    fitted = probe.fit(x, y, group, ProbeConfig(kind="multiclass"), classes=("N", "S", "V"))
    score = fitted.predict(x)
    assert (
        score.shape == (240, 3) and np.allclose(score.sum(1), 1) and metrics.balanced_accuracy(y, score.argmax(1)) > 0.7 and fitted.classes == ("N", "S", "V")
    )
    x, y, group = data(kind="multilabel")
    y[:5, 1] = -1
    fitted = probe.fit(x, y, group, ProbeConfig(kind="multilabel"))
    alone = probe.fit(x[5:], y[5:, 1], group[5:], ProbeConfig(strengths=tuple(fitted.strength_K[1:])))
    assert fitted.predict(x).shape == (240, 2) and np.corrcoef(fitted.predict(x)[:, 1], alone.predict(x)[:, 0])[0, 1] > 0.999
    assert np.isfinite(fitted.threshold_K).all()


def test_a_class_absent_from_training_gets_next_to_no_probability():
    x, y, group = data(kind="multiclass")
    fitted = probe.fit(x, y, group, ProbeConfig(kind="multiclass"), classes=("N", "S", "V", "F"))
    assert fitted.predict(x)[:, 3].max() < 1e-2


def test_unknown_labels_are_passed_over():
    x, y, group = data()
    more = np.concatenate([x, x[:10] * 3]), np.concatenate([y, np.full(10, -1)]), np.concatenate([group, np.full(10, "other")])
    a, b = probe.fit(x, y, group, ProbeConfig()), probe.fit(*more, ProbeConfig())
    assert np.array_equal(a.coef_DK, b.coef_DK)


def test_a_validation_fold_chooses_and_is_not_fitted_on():
    x, y, group = data()
    train, val = slice(0, 160), slice(160, 240)
    fitted = probe.fit(x[train], y[train], group[train], ProbeConfig(), validation=(x[val], y[val]))
    flipped = probe.fit(x[train], y[train], group[train], ProbeConfig(strengths=tuple(fitted.strength_K)), validation=(x[val], 1 - y[val]))
    assert np.allclose(fitted.coef_DK, flipped.coef_DK, atol=1e-4) and flipped.threshold_K != fitted.threshold_K
    assert fitted.threshold_K[0] == metrics.best_threshold(y[val], fitted.predict(x[val])[:, 0])


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
def test_a_saved_probe_scores_the_same_bit_for_bit_and_holds_no_pickle(tmp_path, kind):
    x, y, group = data(kind=kind)
    fitted = probe.fit(x, y, group, ProbeConfig(kind=kind, missing="median"))
    fitted = dataclasses.replace(fitted, more={"task": "pvc", "level": "all", "pool": "mean"})
    back = probe.load(probe.save(tmp_path / "run", fitted))
    assert np.array_equal(back.predict(x), fitted.predict(x)) and back.config == fitted.config and back.more == fitted.more and back.classes == fitted.classes
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["head.json", "head.safetensors"]


def test_a_missing_or_damaged_probe_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no head\.safetensors"):
        probe.load(tmp_path)
    x, y, group = data()
    probe.save(tmp_path, probe.fit(x, y, group, ProbeConfig()))
    whole = (tmp_path / "head.safetensors").read_bytes()
    (tmp_path / "head.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        probe.load(tmp_path)


def test_constant_features_carry_nothing():
    x, y, group = data()
    wide = np.concatenate([x, np.full((240, 1), 3.3), np.zeros((240, 1))], axis=1)
    fitted = probe.fit(wide, y, group, ProbeConfig())
    moved = wide.copy()
    moved[:, -2:] += 5
    assert np.array_equal(fitted.predict(moved), fitted.predict(wide)) and np.allclose(
        fitted.predict(wide), probe.fit(x, y, group, ProbeConfig()).predict(x), atol=1e-5
    )


def test_holes_are_filled_with_the_training_median_or_refused():
    x, y, group = data()
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="row 3, column 1"):
        probe.fit(x, y, group, ProbeConfig())
    fitted = probe.fit(x, y, group, ProbeConfig(missing="median"))
    assert fitted.fill_D[1] == np.nanmedian(x[:, 1]) and np.isfinite(fitted.predict(x)).all()
    x[4, 2] = np.inf
    with pytest.raises(ValueError, match="row 4, column 2"):
        fitted.predict(x)


def test_bad_input_is_named():
    x, y, group = data()
    with pytest.raises(ValueError, match="one class only"):
        probe.fit(x, np.zeros(240), group, ProbeConfig())
    with pytest.raises(ValueError, match="no known label"):
        probe.fit(x, np.full(240, -1), group, ProbeConfig())
    with pytest.raises(ValueError, match="kind='multiclass'"):
        probe.fit(x, y * 2, group, ProbeConfig())
    with pytest.raises(ValueError, match="same level and pool"):
        probe.fit(x, y, group, ProbeConfig()).predict(x[:, :3])
    with pytest.raises(ValueError, match="more subjects"):
        probe.fit(x, y, np.full(240, "one"), ProbeConfig())
    with pytest.raises(ValueError, match="strengths"):
        ProbeConfig(strengths=(0.0,))
    with pytest.raises(ValueError, match="select"):
        ProbeConfig(select="accuracy")


def test_two_subjects_of_one_class_each_are_fitted_without_a_choice():
    """No inner fold has both classes, so nothing can choose: the strongest regularisation stands, and there is no threshold."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 20)
    fitted = probe.fit(rng.normal(size=(40, 3)) + y[:, None], y, y.astype(str), probe.ProbeConfig())
    assert fitted.strength_K[0] == min(probe.ProbeConfig().grid) and np.isnan(fitted.threshold_K[0]) and fitted.predict(np.ones((1, 3)))[0, 0] > 0.5
