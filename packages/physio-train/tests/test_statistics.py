"""Intervals resample subjects, survive resamples without positives, and pair what they compare."""

import numpy as np
import pytest
from scipy.stats import bootstrap, norm

from physio_train import comparisons, metrics, statistics


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
    who = np.repeat(list("abcdefghijkl"), 5)
    y, s = (who == "a").astype(float), np.arange(60.0)
    found = statistics.cluster_bootstrap(metrics.auroc, y, s, who, n=500)
    assert 0.25 < found.n_dropped / 500 < 0.45 and np.isfinite([found.low, found.high]).all()


def test_an_interval_is_widened_to_its_point_and_says_so():
    found = statistics.interval(0.9, np.linspace(0.5, 0.6, 100))
    assert found.holds_point and found.widened and found.high == 0.9
    assert not statistics.interval(0.55, np.linspace(0.5, 0.6, 100)).widened
    assert np.isnan(statistics.interval(0.9, np.array([np.nan, 0.5])).low)


def test_too_few_subjects_have_no_interval():
    y, s, who = cohort(n_subjects=3)
    found = statistics.cluster_bootstrap(metrics.auroc, y, s, who)
    assert found.word == "n = 3, no interval" and np.isnan(found.low) and np.isfinite(found.point)
    assert statistics.cluster_bootstrap(metrics.auroc, *cohort(n_subjects=10)).word == ""


def test_auroc_by_pairs_of_clusters_is_auroc_of_weighted_windows(monkeypatch):
    y, s, who = cohort()
    y[3], s = np.nan, np.round(s, 1)
    fast = statistics.replicates(metrics.auroc, y, s, who, n=40)
    monkeypatch.setattr(statistics, "PAIR_WORK", 0)
    assert np.allclose(statistics.replicates(metrics.auroc, y, s, who, n=40), fast, atol=1e-12)
    with pytest.raises(ValueError, match="finite"):
        statistics.pair_counts([0, 1], [0.1, np.nan], [0, 0], 1)


def test_bca_of_a_mean_is_scipys():
    x = np.random.default_rng(1).exponential(size=30)
    mean = lambda labels, scores, weight=None: scores.mean() if weight is None else weight @ scores / weight.sum(1)  # noqa: E731
    ours = statistics.cluster_bootstrap(mean, np.zeros(30), x, np.arange(30), n=20000, method="bca")
    theirs = bootstrap((x,), np.mean, n_resamples=20000, method="BCa", rng=0).confidence_interval
    plain = statistics.cluster_bootstrap(mean, np.zeros(30), x, np.arange(30), n=20000)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01) and abs(ours.high - plain.high) > 0.015
    same = statistics.paired_difference(metrics.auroc, *cohort()[:2], cohort()[1], cohort()[2], method="bca")
    assert same.low == same.high == 0
    with pytest.raises(ValueError, match="jackknife"):
        statistics.interval(0.5, np.zeros(3), method="bca")


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


def correlated(rng, n_subjects=60, n_each=20, icc=0.3, area=0.8, prevalence=0.3):
    """Windows whose scores share `icc` of their variance within a subject, of pooled AUROC `area`."""
    who = np.repeat(np.arange(n_subjects), n_each)
    y = (rng.random(len(who)) < prevalence).astype(float)
    noise = np.sqrt(icc) * rng.normal(size=n_subjects)[who] + np.sqrt(1 - icc) * rng.normal(size=len(who))
    return y, y * np.sqrt(2) * norm.ppf(area) + noise, who


@pytest.mark.slow
@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_95_percent_intervals_of_correlated_windows_cover_93_to_97_percent(method):
    rng, hits, naive, n_draws = np.random.default_rng(0), 0, 0, 1000
    for draw in range(n_draws):
        y, s, who = correlated(rng)
        found = statistics.cluster_bootstrap(metrics.auroc, y, s, who, n=1000, seed=draw, method=method)
        assert found.holds_point
        hits += found.low <= 0.8 <= found.high
        areas = comparisons.delong(y, [s])
        naive += abs(areas.auroc_R[0] - 0.8) <= 1.96 * np.sqrt(areas.covariance_RR[0, 0])
    print(f"{method}: coverage {hits / n_draws:.3f} of clusters, {naive / n_draws:.3f} of windows taken as independent")
    assert 0.93 <= hits / n_draws <= 0.97 and naive < hits


@pytest.mark.slow
def test_an_absent_label_scored_one_half_pulls_the_interval_below_its_point():
    """Seventy-one labels, twenty-two of them with fewer than ten positives among 2,198 records, as PTB-XL's statements have."""
    rng, n = np.random.default_rng(0), 2198
    counts = np.concatenate([[1, 1], rng.integers(2, 10, 20), np.geomspace(10, 1300, 49).astype(int)])
    label_NK = np.zeros((n, 71))
    for k, count in enumerate(counts):
        label_NK[rng.choice(n, count, replace=False), k] = 1
    score_NK = label_NK * 2.2 + rng.normal(size=(n, 71))
    point = metrics.macro_auroc(label_NK, score_NK)
    each = np.stack([statistics.replicates(metrics.auroc, label_NK[:, k], score_NK[:, k], np.arange(n), n=300) for k in range(71)], axis=1)
    dropped, imputed = np.nanmean(each, axis=1), np.where(np.isnan(each), 0.5, each).mean(axis=1)
    print(f"point {point:.3f}: absent labels dropped {dropped.mean():.3f}, scored 0.5 {imputed.mean():.3f}, 97.5 % at {np.quantile(imputed, 0.975):.3f}")
    assert abs(dropped.mean() - point) < 0.004 < point - imputed.mean()
