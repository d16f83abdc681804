"""Honesty: nothing of the test side reaches a score, and knowing nothing scores a half."""

import numpy as np
import pytest

from physio_train import floors, metrics
from physio_train import predictions as pr
from physio_train.folds import outer_folds
from physio_train.probe import ProbeConfig
from physio_train.protocol import Task, Windows, cross_validate, each_fold, train_test

PVC = Task(name="pvc")


def cohort(seed=0, n_subjects=20, each=15, signal=1.0):
    """Features that carry the subject strongly and the label a little; label rates differ between subjects."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(n_subjects), each)
    y = (rng.random(len(who)) < rng.uniform(0.05, 0.8, n_subjects)[who]).astype(float)
    x = rng.normal(size=(n_subjects, 30))[who] * 3 + rng.normal(size=(len(who), 30))
    x[:, :5] += signal * y[:, None]
    names = np.char.mod("s%02d", who)
    return x.astype(np.float32), Windows(y=y, subject=names, record=names, start_s=np.tile(np.arange(each) * 10.0, n_subjects))


def pooled(predictions, row="pretrained"):
    aligned = pr.align(predictions, row)
    return np.mean([metrics.auroc(aligned.labels_NK[:, 0], run[:, 0]) for run in aligned.runs])


def test_labels_without_relation_to_the_features_score_about_a_half():
    figures = []
    for seed in range(6):
        x, w = cohort(seed=seed)
        w = Windows(y=np.random.default_rng(seed + 100).permutation(w.y), subject=w.subject, record=w.record, start_s=w.start_s)
        figures.append(pooled(cross_validate("pretrained", x, w, PVC, outer_folds(w.groups, w.y, n_folds=5)).predictions))
    assert abs(np.mean(figures) - 0.5) < 0.05


def test_a_signal_in_the_features_is_found():
    x, w = cohort(signal=3.0)
    assert pooled(cross_validate("pretrained", x, w, PVC, outer_folds(w.groups, w.y, n_folds=5)).predictions) > 0.85


def test_test_labels_change_no_score_threshold_or_strength():
    x, w = cohort()
    specs = outer_folds(w.groups, w.y, n_folds=4)
    for spec in specs:
        lied = w.y.copy()
        lied[spec.test] = 1 - lied[spec.test]
        other = Windows(y=lied, subject=w.subject, record=w.record, start_s=w.start_s)
        (a, _, fitted), (b, _, again) = (next(each_fold("pretrained", x, windows, PVC, [spec])) for windows in (w, other))
        assert np.array_equal(a.scores["pvc"], b.scores["pvc"]) and np.array_equal(a.thresholds["pvc"], b.thresholds["pvc"])
        assert fitted.strength_K == again.strength_K and not np.array_equal(a.labels["pvc"], b.labels["pvc"])


def test_test_features_change_no_probe():
    x, w = cohort()
    spec = outer_folds(w.groups, w.y, n_folds=4)[1]
    moved = x.copy()
    moved[spec.test] *= 100
    (_, _, a), (_, _, b) = (next(each_fold("pretrained", features, w, PVC, [spec])) for features in (x, moved))
    assert np.array_equal(a.coef_DK, b.coef_DK) and np.array_equal(a.mean_D, b.mean_D) and np.array_equal(a.threshold_K, b.threshold_K)


def test_a_fold_with_a_subject_on_both_sides_is_refused():
    x, w = cohort()
    spec = outer_folds(w.groups, w.y, n_folds=4)[0]
    leaky = type(spec)(seed=0, repeat=0, fold=0, train=np.append(spec.train, spec.test[0]), test=spec.test)
    with pytest.raises(ValueError, match="both the train and the test side"):
        cross_validate("pretrained", x, w, PVC, [leaky])
    with pytest.raises(ValueError, match="both the train and the test side"):
        train_test("pretrained", x, w, x, w, PVC)


def test_a_validation_fold_is_not_fitted_on_and_a_waiver_lets_a_named_subject_stay():
    x, w = cohort()
    spec = outer_folds(w.groups, w.y, n_folds=4)[0]
    held = spec.train[np.isin(w.subject[spec.train], np.unique(w.subject[spec.train])[:4])]
    part, _, fitted = next(each_fold("pretrained", x, w, PVC, [spec], validation=held))
    moved = x.copy()
    moved[held] *= 100
    (_, _, other) = next(each_fold("pretrained", moved, w, PVC, [spec], ProbeConfig(strengths=tuple(fitted.strength_K)), validation=held))
    assert np.allclose(fitted.coef_DK, other.coef_DK, atol=1e-5) and np.array_equal(fitted.mean_D, other.mean_D) and len(part) == len(spec.test)
    leaky = type(spec)(seed=0, repeat=0, fold="test", train=np.append(spec.train, spec.test[0]), test=spec.test)
    assert cross_validate("pretrained", x, w, PVC, [leaky], allow_shared=frozenset({w.subject[spec.test[0]]})).predictions.fold[0] == "test"
    with pytest.raises(ValueError, match="both the train and the test side"):
        next(each_fold("pretrained", x, w, PVC, [spec], validation=spec.test))


def test_features_may_depend_on_the_fold_and_the_seed():
    x, w = cohort()
    specs = outer_folds(w.groups, w.y, n_folds=4, repeats=2, seeds=(0, 3))
    asked = []

    def features_of(spec):
        asked.append((spec.seed, spec.repeat, spec.fold))
        return x + spec.seed

    scored = cross_validate("pretrained", features_of, w, PVC, specs)
    assert asked == [(spec.seed, spec.repeat, spec.fold) for spec in specs] and len(asked) == 16
    aligned = pr.align(scored.predictions, "pretrained")
    assert aligned.keys == [(0, 0), (0, 1), (3, 0), (3, 1)] and len(aligned.subject) == len(w)
    assert len(scored.probes) == 16 and scored.converged


def test_unlabelled_windows_are_scored_and_not_learnt_from():
    x, w = cohort()
    y = w.y.copy()
    y[::7] = -1
    part = Windows(y=y, subject=w.subject, record=w.record, start_s=w.start_s)
    scored = cross_validate("pretrained", x, part, PVC, outer_folds(w.groups, y, n_folds=4)).predictions
    assert len(scored) == len(w) and np.isfinite(scored.scores["pvc"]).all() and np.isnan(scored.labels["pvc"]).sum() == (y < 0).sum()
    nothing = Windows(y=np.full(30, np.nan), subject=np.full(30, "new"), record=np.full(30, "new"), start_s=np.arange(30.0))
    test, _ = train_test("pretrained", x, w, x[:30], nothing, PVC)
    assert np.isnan(test.labels["pvc"]).all() and np.isfinite(test.scores["pvc"]).all()


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
def test_every_kind_of_task_gives_its_columns(kind):
    x, w = cohort()
    rng = np.random.default_rng(0)
    y = {"multiclass": np.argmax(x[:, :3] + rng.normal(size=(300, 3)), 1), "multilabel": (x[:, :3] > 1).astype(int), "regression": x[:, 0] * 3 + 50}[kind]
    task = Task(name="t", kind=kind, classes=() if kind == "regression" else ("A", "B", "C"))
    w = Windows(y=y, subject=w.subject, record=w.record, start_s=w.start_s)
    scored = cross_validate("pretrained", x, w, task, outer_folds(w.groups, y, n_folds=3)).predictions
    assert scored.names == (("t",) if kind == "regression" else ("A", "B", "C"))
    with pytest.raises(ValueError, match=r"config\.kind"):
        cross_validate("pretrained", x, w, task, [], ProbeConfig())


def test_the_strongest_setting_of_the_twin_is_taken_by_its_mean_over_seeds():
    x, w = cohort(signal=3.0)
    specs = outer_folds(w.groups, w.y, n_folds=3, seeds=(0, 1, 2))
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=x.shape) for _ in range(3)]
    settings = {
        name: cross_validate("twin", lambda spec, size=size: x + size * noise[spec.seed], w, PVC, specs).predictions
        for name, size in {"as initialised": 30.0, "unmasked": 0.5, "masked": 8.0}.items()
    }
    twin = floors.strongest(settings)
    assert twin.setting == "unmasked" and twin.figures["unmasked"] == pytest.approx(pooled(settings["unmasked"], "twin"))
    assert len(pr.align(twin.predictions, "twin").runs) == 3


def test_the_leak_check_is_the_label_rate_of_the_subject_in_training():
    rate = floors.label_rate(np.array([[1.0], [0.0], [0.0], [np.nan]]), ["a", "a", "b", "b"], ["a", "b", "c"])
    assert rate[:, 0].tolist() == [0.5, 0.0, pytest.approx(1 / 3)]
    assert floors.label_rate(np.array([[1.0], [0.0]]), ["a", "b"], ["c", "d"]) is None and floors.label_rate(np.array([[1.0]]), [""], [""]) is None


def test_disjoint_folds_have_no_leak_row_and_shared_subjects_do():
    _, w = cohort()
    assert floors.leak(w, PVC, outer_folds(w.groups, w.y, n_folds=5)) is None
    by_window = outer_folds(np.arange(len(w)).astype(str), w.y, n_folds=5)
    assert pooled(floors.leak(w, PVC, by_window), "leak") > 0.6
    odd, even = w.take(np.arange(1, 300, 2)), w.take(np.arange(0, 300, 2))
    assert metrics.auroc(even.y, floors.leak_train_test(odd, even, PVC).scores["pvc"]) > 0.6


def test_shared_subjects_leave_the_training_side_and_the_heading_follows_what_was_seen():
    keep, who = floors.without_shared(["a", "b", "b", "c"], ["b", "c"], allowed=["c"])
    assert keep.tolist() == [True, False, False, True] and who == ("b",)
    assert floors.heading(["a", "b"], {"c"}) == "inductive" and floors.heading(["a", "b"], {"b"}) == "transductive"
    assert floors.heading(["a"], None) == "transductive" and floors.heading(["", "a"], {"c"}) == "transductive"
    assert floors.heading(["", ""], {"r1"}, ["r2", "r3"]) == floors.heading(["", "a"], (), ["r2", "r3"]) == "inductive by recording, subjects unknown"
    assert floors.heading(["", ""], {"r2"}, ["r2", "r3"]) == floors.heading(["", ""], None, ["r2", "r3"]) == "transductive"
    assert floors.heading(["a", "b"], {"b"}, ["r2", "r3"]) == "transductive"
    assert floors.unseen(["a", "b", ""], {"b"}).tolist() == [True, False, False]


def test_windows_of_unknown_subject_are_kept_together_by_record():
    w = Windows(y=np.zeros(4), subject=np.array(["", "", "s1", "s1"]), record=np.array(["a", "b", "c", "d"]), start_s=np.zeros(4))
    assert w.groups.tolist() == ["a", "b", "s1", "s1"]


def test_recordings_that_share_a_record_name_are_not_tied_together():
    place = {"subject": np.array(["", "", "", "s1"]), "record": np.array(["0", "0", "1", "0"]), "start_s": np.zeros(4)}
    w = Windows(y=np.zeros(4), recording=np.array(["train-0", "test-0", "train-1", "x"]), **place)
    assert w.groups.tolist() == ["train-0", "test-0", "train-1", "s1"] and w.take(np.array([1, 3])).groups.tolist() == ["test-0", "s1"]
    with pytest.raises(ValueError, match="length of y"):
        Windows(y=np.zeros(4), recording=np.array(["a"]), **place)
