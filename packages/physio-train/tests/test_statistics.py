"""Intervals resample subjects, survive resamples without positives, and pair what they compare."""

import numpy as np
import pytest

from physio_train import metrics, statistics


def cohort(seed=0, n_subjects=20, n_each=15, shift=1.0):
    """Windows of subjects with their own offset and label rate."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(n_subjects), n_each)
    y = (rng.random(len(who)) < rng.uniform(0.1, 0.6, n_subjects)[who]).astype(float)
    return y, y * shift + rng.normal(0, 1, n_subjects)[who] + rng.normal(0, 1, len(who)), who.astype(str)


def test_replicates_equal_metrics_of_literally_resampled_windows():
    y, s, who = cohort()
    draws, cluster_N = statistics.cluster_weights(who, 7, seed=3)
    figures = statistics.replicates(metrics.auroc, y, s, who, n=7, seed=3)
    for b in range(7):
        rows = np.repeat(np.arange(len(y)), draws[b][cluster_N])
        assert draws[b].sum() == 20 and figures[b] == pytest.approx(metrics.auroc(y[rows], s[rows]), abs=1e-12)


def test_chunks_do_not_change_the_figures(monkeypatch):
    y, s, who = cohort()
    whole = statistics.replicates(metrics.average_precision, y, s, who, n=50)
    monkeypatch.setattr(statistics, "CHUNK_CELLS", 700)
    assert np.allclose(statistics.replicates(metrics.average_precision, y, s, who, n=50), whole, atol=1e-12)


def test_the_interval_holds_its_point_and_is_wider_over_subjects_than_over_windows():
    y, s, who = cohort()
    by_subject = statistics.cluster_bootstrap(metrics.auroc, y, s, who)
    by_window = statistics.cluster_bootstrap(metrics.auroc, y, s, np.arange(len(y)))
    assert by_subject.holds_point and by_subject.n_dropped == 0
    assert by_subject.high - by_subject.low > by_window.high - by_window.low


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    y, s, _ = cohort(seed=99, n_subjects=4000, n_each=15)
    truth = metrics.auroc(y, s)
    hits = []
    for seed in range(60):
        found = statistics.cluster_bootstrap(metrics.auroc, *cohort(seed=seed, n_subjects=40), n=200)
        hits.append(found.low <= truth <= found.high)
    assert np.mean(hits) > 0.85


def test_resamples_without_positives_are_dropped_and_counted():
    who = np.repeat(list("abcd"), 5)
    y, s = (who == "a").astype(float), np.arange(20.0)
    found = statistics.cluster_bootstrap(metrics.auroc, y, s, who, n=500)
    assert 0.2 < found.n_dropped / 500 < 0.45 and np.isfinite([found.low, found.high]).all()


def test_an_interval_that_misses_its_point_says_so():
    assert not statistics.interval(0.9, np.linspace(0.5, 0.6, 100)).holds_point
    assert np.isnan(statistics.interval(0.9, np.array([np.nan, 0.5])).low)


def test_a_method_differs_from_itself_by_nothing_and_pairing_narrows_the_interval():
    y, s, who = cohort()
    same = statistics.paired_difference(metrics.auroc, y, s, s, who)
    assert same.point == same.low == same.high == 0
    worse = s + np.random.default_rng(1).normal(0, 0.3, len(s))
    paired = statistics.paired_difference(metrics.auroc, y, s, worse, who)
    alone = statistics.cluster_bootstrap(metrics.auroc, y, s, who)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_several_runs_are_averaged_inside_each_resample():
    y, s, who = cohort()
    runs = [s, -s]
    assert statistics.point(metrics.auroc, y, runs) == pytest.approx(0.5)
    assert np.allclose(statistics.replicates(metrics.auroc, y, runs, who, n=20), 0.5)
    assert statistics.paired_difference(metrics.auroc, y, [s, s, s], s, who, n=50).high == pytest.approx(0, abs=1e-12)


def test_per_record_figures_need_enough_windows_of_each_class():
    record = np.repeat(["a", "b", "c"], 10)
    y = np.tile([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], 3).astype(float)
    y[10:16] = 0
    s = np.tile(np.arange(10.0), 3)
    s[20:] *= -1
    assert statistics.per_record(y, s, record) == {"a": 1.0, "c": 0.0}
    assert statistics.per_record_mean(y, [s, s], record) == (0.5, 2)
    assert np.isnan(statistics.per_record_mean(y, s, record, min_windows=50)[0])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="one length"):
        statistics.replicates(metrics.auroc, [0, 1], np.array([0.1, 0.2, 0.3]), ["a", "b"])
