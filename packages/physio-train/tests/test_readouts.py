"""Read-outs rank what they should, pass over unknown labels, and few-shot draws whole subjects."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from physio_train import metrics, readouts
from physio_train.few_shot import labelled_subjects, validation_part
from physio_train.folds import grouped_folds
from physio_train.probe import ProbeConfig, fit
from physio_train.readouts import SHARES, _vote, fit_fused, fit_knn, fit_readout, fit_thresholds


def ring(n=300, seed=0):
    """Positives lie on a ring about the negatives: no straight line separates them."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    radius, angle = np.where(y == 1, 2.0, 0.5) + 0.3 * rng.normal(size=n), rng.uniform(0, 2 * np.pi, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), rng.normal(size=n)], axis=1), y, np.arange(n) // 10


@pytest.mark.parametrize("name", ["forest", "boosted", "blend"])
def test_trees_see_what_a_line_cannot(name):
    (x, y, g), (x_test, y_test, _) = ring(), ring(seed=1)
    x[::17, 0], y_with_hole = np.nan, np.where(np.arange(300) % 29 == 0, -1, y)
    score = fit_readout(name, x, y_with_hole, g, "binary")(x_test)
    linear = fit_readout("linear", x, y_with_hole, g, "binary")(x_test)
    assert score.shape == (300, 1) and metrics.auroc(y_test, score[:, 0]) > 0.97 > 0.75 > metrics.auroc(y_test, linear[:, 0])


def test_the_forest_is_scikit_learns_with_balanced_weights():
    x, y, g = ring()
    theirs = ExtraTreesClassifier(300, min_samples_leaf=2, random_state=3).fit(x, y, sample_weight=len(y) / (2 * np.bincount(y)[y]))
    assert np.allclose(fit_readout("forest", x, y, g, "binary", seed=3)(x)[:, 0], theirs.predict_proba(x)[:, 1])


def test_neighbours_vote_as_scikit_learns_weighted_by_cosine():
    rng = np.random.default_rng(0)
    z, z_test = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (rng.normal(size=(80, 4)), rng.normal(size=(30, 4))))
    y = rng.integers(0, 3, 80)
    theirs = KNeighborsClassifier(7, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.07)).fit(z, y).predict_proba(z_test)
    assert np.allclose(_vote(z, np.eye(3)[y], z_test, 7), theirs)
    x, y, g = ring()
    assert metrics.auroc(ring(seed=2)[1], fit_knn(x, y, g, "binary")(ring(seed=2)[0])[:, 0]) > 0.75
    with pytest.raises(ValueError, match="finite"):
        fit_knn(np.where(x > 2, np.nan, x), y, g, "binary")


@pytest.mark.parametrize("name", ["linear", "knn", "forest", "boosted", "blend"])
@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
def test_every_read_out_answers_every_kind(name, kind, monkeypatch):
    monkeypatch.setattr(readouts, "N_TREES", 20)
    monkeypatch.setattr(readouts, "N_ROUNDS", 10)
    rng = np.random.default_rng(1)
    x, g = rng.normal(size=(120, 4)), np.arange(120) // 6
    y = {"binary": x[:, 0] > 0, "multiclass": np.digitize(x[:, 0], [-0.5, 0.5]), "multilabel": x[:, :3] > 0.3, "regression": 50 + 9 * x[:, 0]}[kind].astype(
        float
    )
    classes = {"multiclass": ("a", "b", "c"), "multilabel": ("a", "b", "c")}.get(kind, ())
    score = fit_readout(name, x, y, g, kind, classes)(x)
    assert score.shape == (120, 3 if classes else 1) and np.isfinite(score).all()
    figure = (
        metrics.mae(y, score[:, 0]) < 6 if kind == "regression" else metrics.macro_auroc(np.eye(3)[y.astype(int)] if kind == "multiclass" else y, score) > 0.8
    )
    assert figure
    thresholds = fit_thresholds(name, x, y, g, kind, classes)
    assert np.isfinite(thresholds).all() == (kind in ("binary", "multilabel"))


def test_one_class_and_a_wrong_name_are_refused():
    x, y, g = ring()
    for name in ("forest", "boosted", "linear"):
        with pytest.raises(ValueError, match="one class only"):
            fit_readout(name, x, np.zeros_like(y), g, "binary")
    with pytest.raises(ValueError, match="name must be"):
        fit_readout("oracle", x, y, g, "binary")


def test_labels_are_kept_by_subject_nested_and_with_both_classes():
    groups = np.repeat(np.arange(100), 5)
    y = (groups % 25 == 0).astype(float)
    kept = {f: labelled_subjects(groups, y, f, seed=4) for f in (0.01, 0.05, 0.1, 1.0)}
    assert kept[1.0].all()
    for f, mask in kept.items():
        people = np.unique(groups[mask])
        assert np.array_equal(mask, np.isin(groups, people)) and len(people) >= max(2, 100 * f) and set(y[mask]) == {0.0, 1.0}
        assert len(people) <= max(2, 100 * f) + 1
    assert (kept[0.1] | ~kept[0.05]).all()
    with pytest.raises(ValueError, match="one class"):
        labelled_subjects(groups, np.zeros(500), 0.1)
    with pytest.raises(ValueError, match="fraction"):
        labelled_subjects(groups, y, 0.0)
    held = validation_part(groups, y)
    assert held.mean() == pytest.approx(0.2, abs=0.02) and not set(groups[held]) & set(groups[~held])
    rare = (groups == 7).astype(float)
    assert not validation_part(groups, rare, seed=3).any(), "the only subject with the class stays on the training side, and one class chooses nothing"
    with pytest.raises(ValueError, match="one subject"):
        validation_part(np.zeros(5), np.zeros(5))


def sides(groups, y, held):
    """Whether subjects are whole, the classes of the training side and those of the validation side."""
    whole = not set(groups[held]) & set(groups[~held])
    return whole, set(y[~held & (y >= 0)]), set(y[held & (y >= 0)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.sampled_from([-1, 0, 1]), min_size=1), min_size=2, max_size=7), st.integers(0, 3))
def test_a_validation_part_has_both_classes_wherever_whole_subjects_allow_it(classes_of, seed):
    """Against every way of dividing the subjects in two."""
    y = np.array([c for classes in classes_of for c in sorted(classes) for _ in range(2)])
    groups = np.array([f"s{g}" for g, classes in enumerate(classes_of) for _ in range(2 * len(classes))])
    held = validation_part(groups, y, seed=seed)
    assert np.array_equal(held, validation_part(groups, y, seed=seed))
    divisions = [{g for g in range(len(classes_of)) if code >> g & 1} for code in range(2 ** len(classes_of))]
    side = lambda people: set().union(*(classes_of[g] for g in people)) - {-1}  # noqa: E731
    possible = any(side(people) == {0, 1} == side(set(range(len(classes_of))) - people) for people in divisions)
    whole, there, chosen_by = sides(groups, y, held)
    assert whole and (there == chosen_by == {0, 1} if possible else not held.any())


def test_a_validation_part_of_several_classes_or_labels_leaves_every_class_to_training():
    groups = np.repeat([f"s{i}" for i in range(12)], 4)
    y = np.tile([0, 0, 1, 1], 12)
    y[:8] = 2  # two subjects have the third class, and nothing else
    held = validation_part(groups, y, seed=1)
    assert sides(groups, y, held) == (True, {0, 1, 2}, {0, 1, 2})
    many = np.stack([y == 2, np.arange(48) < 4], axis=1).astype(int)  # of the second label one subject has all
    held = validation_part(groups, many, seed=1)
    assert set(many[held, 0]) == set(many[~held, 0]) == set(many[~held, 1]) == {0, 1} and not many[held, 1].any()
    age = np.repeat(np.linspace(20, 80, 12), 4)
    assert 0 < validation_part(groups, age).sum() < 48


def odds(p):
    p = np.clip(p, 1e-4, 1 - 1e-4)
    return np.log(p / (1 - p))


def test_the_blend_is_the_mean_of_two_kinds_of_trees_on_the_log_odds_scale(monkeypatch):
    monkeypatch.setattr(readouts, "N_TREES", 30)
    (x, y, g), (x_test, *_) = ring(), ring(seed=1)
    forest, boosted = (fit_readout(name, x, y, g, "binary")(x_test) for name in ("forest", "boosted"))
    said = fit_readout("blend", x, y, g, "binary")(x_test)
    assert np.allclose(said, 1 / (1 + np.exp(-(odds(forest) + odds(boosted)) / 2)))
    years = [fit_readout(name, x, 40 + x[:, 0], g, "regression")(x_test) for name in ("forest", "boosted")]
    assert np.allclose(fit_readout("blend", x, 40 + x[:, 0], g, "regression")(x_test), (years[0] + years[1]) / 2)
    monkeypatch.setattr(readouts, "FOREST_WINDOWS", 299)
    assert np.allclose(fit_readout("blend", x, y, g, "binary")(x_test), np.clip(boosted, 1e-4, 1 - 1e-4))


def test_thresholds_are_the_f1_best_of_scores_that_the_window_had_no_part_in(monkeypatch):
    monkeypatch.setattr(readouts, "N_TREES", 30)
    x, y, g = ring()
    y = np.where(np.random.default_rng(2).random(300) < 0.3, 1 - y, y)  # noisy labels, so that the best threshold is another for every score
    fold, score = grouped_folds(g, y, 3, 0), np.zeros(300)
    for f in range(3):
        score[fold == f] = fit_readout("blend", x[fold != f], y[fold != f], g[fold != f], "binary")(x[fold == f])[:, 0]
    f1 = [f1_score(y, score >= t) for t in score]
    found = fit_thresholds("blend", x, y, g, "binary")
    assert f1_score(y, score >= found[0]) == pytest.approx(max(f1))
    monkeypatch.setattr(readouts, "FOREST_WINDOWS", 299)  # too many windows for a forest in all, not in two thirds of them: it is left out of both
    for f in range(3):
        score[fold == f] = fit_readout("boosted", x[fold != f], y[fold != f], g[fold != f], "binary")(x[fold == f])[:, 0]
    found = fit_thresholds("blend", x, y, g, "binary")
    assert f1_score(y, score >= found[0]) == pytest.approx(max(f1_score(y, score >= t) for t in score))


def shares_by_hand(x, y, g, n_first):
    """Figures by share, by how much each is within one standard error over resampled subjects (scikit-learn's weighted AUROC), and both parts' log-odds."""
    first, second, z = np.zeros(len(y)), np.zeros(len(y)), x[:, :n_first]
    z = (z - z.mean(0)) / z.std(0)
    strength = fit(x[:, :n_first], y, g, ProbeConfig(kind="binary")).strength_K[0]
    for f, fold in ((f, grouped_folds(g, y, 4, 0)) for f in range(4)):
        theirs = LogisticRegression(C=strength, class_weight="balanced", tol=1e-9).fit(z[fold != f], y[fold != f])
        first[fold == f] = theirs.predict_proba(z[fold == f])[:, 1]
    for f, fold in ((f, grouped_folds(g, y, 3, 0)) for f in range(3)):
        second[fold == f] = fit_readout("blend", x[fold != f, n_first:], y[fold != f], g[fold != f], "binary")(x[fold == f, n_first:])[:, 0]
    scores = {share: share * odds(first) + (1 - share) * odds(second) for share in SHARES}
    figures = {share: roc_auc_score(y, score) for share, score in scores.items()}
    weights = [np.bincount(drawn, minlength=g.max() + 1)[g] for drawn in np.random.default_rng(9).integers(0, g.max() + 1, (200, g.max() + 1))]
    drawn = {share: np.array([roc_auc_score(y, score, sample_weight=w) for w in weights]) for share, score in scores.items()}
    best = max(figures, key=figures.get)
    slack = {share: np.std(drawn[best] - drawn[share]) - (figures[best] - figures[share]) for share in SHARES}
    return figures, slack, odds(first), odds(second)


@pytest.mark.parametrize(("own", "expected"), [(1.0, 0.5), (0.1, 0.0), (0.3, 0.5)])  # of the last two .75 has the best figure, by less than is sure
def test_an_encoder_earns_its_share_beside_hand_made_features(own, expected, monkeypatch):
    monkeypatch.setattr(readouts, "N_TREES", 30)
    rng = np.random.default_rng(4)
    x, g = rng.normal(size=(300, 8)), np.arange(300) // 6
    y = (own * x[:, 0] + x[:, 4] + 0.3 * rng.normal(size=300) > 0).astype(np.int64)
    fused = fit_fused(x, 4, y, g, "binary")
    figures, slack, first, second = shares_by_hand(x, y, g, 4)
    assert list(fused.figures) == list(SHARES) and np.allclose(list(fused.figures.values()), list(figures.values()), atol=1e-4)
    assert fused.share == expected and slack[fused.share] > -1e-3 and all(slack[share] < 1e-3 for share in SHARES if share < fused.share)
    parts = fit(x[:, :4], y, g, ProbeConfig(kind="binary")).predict(x[:, :4]), fit_readout("blend", x[:, 4:], y, g, "binary")(x[:, 4:])
    assert np.allclose(fused.predict(x), 1 / (1 + np.exp(-(fused.share * odds(parts[0]) + (1 - fused.share) * odds(parts[1])))))
    out = fused.share * first + (1 - fused.share) * second
    f1 = [f1_score(y, out >= t) for t in out]
    assert f1_score(y, out >= odds(fused.threshold_K[0])) == pytest.approx(max(f1), abs=0.01)


def test_an_encoder_earns_its_share_of_a_number_and_none_where_nothing_can_be_judged(monkeypatch):
    monkeypatch.setattr(readouts, "N_TREES", 30)
    rng = np.random.default_rng(4)
    x, g = rng.normal(size=(300, 8)), np.arange(300) // 6
    found = fit_fused(x, 4, 3 * x[:, 0] + x[:, 4], g, "regression")
    assert found.share > 0 and found.figures[found.share] < found.figures[0.0]  # an error: lower is better
    assert np.isnan(found.threshold_K).all() and found.predict(x).shape == (300, 1)
    three = np.arange(300) // 100
    unknown = np.where(three == 2, -1, (x[:, 0] > 0).astype(np.int64))  # of one of three subjects nothing is known: one is left to fit on, and no fold
    assert np.isnan(fit_thresholds("knn", x, unknown, three, "binary")).all()
    two = fit_fused(x, 4, (x[:, 0] > 0).astype(np.int64), np.arange(300) // 150, "binary")
    assert two.share == 0.0 and np.isnan(two.figures[1.0])  # no inner fold can be fitted


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_two_views_answer_several_classes(kind, monkeypatch):
    monkeypatch.setattr(readouts, "N_TREES", 20)
    monkeypatch.setattr(readouts, "N_ROUNDS", 10)
    rng = np.random.default_rng(1)
    x, g = rng.normal(size=(120, 6)), np.arange(120) // 6
    y = np.digitize(x[:, 0], [-0.5, 0.5]) if kind == "multiclass" else (x[:, [0, 1, 4]] > 0.3).astype(np.int64)
    score = fit_fused(x, 3, y, g, kind, ("a", "b", "c")).predict(x)
    assert score.shape == (120, 3) and np.isfinite(score).all() and (kind != "multiclass" or np.allclose(score.sum(1), 1))


def test_two_subjects_leave_no_inner_fold_to_choose_a_threshold_on():
    x, y, _ = ring(60)
    assert np.isnan(fit_thresholds("linear", x, y, np.arange(60) // 30, "binary")).all()
    assert np.isfinite(fit_thresholds("linear", x, y, np.arange(60) // 10, "binary")).all()
