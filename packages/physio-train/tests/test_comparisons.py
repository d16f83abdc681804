"""DeLong against its definition, clusters against Obuchowski's sums, permutation and Holm against brute force."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from physio_train import comparisons, metrics, statistics


def two_methods(seed=0, n_subjects=15, n_each=12):
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(n_subjects), n_each)
    y = (rng.random(len(who)) < rng.uniform(0.2, 0.6, n_subjects)[who]).astype(float)
    shared = rng.normal(size=n_subjects)[who]
    a = np.round(y * 1.5 + shared + rng.normal(size=len(y)), 1)  # rounded: ties
    b = y * 0.7 + shared + rng.normal(size=len(y))
    return y, a, b, who


def kernel(y, s):
    """psi (m, n): a positive above a negative, ties half."""
    return (s[y == 1][:, None] > s[y == 0]) + 0.5 * (s[y == 1][:, None] == s[y == 0])


def test_delong_equals_the_sample_covariance_of_structural_components():
    y, a, b, _ = two_methods()
    psi = [kernel(y, s) for s in (a, b)]
    v10, v01 = np.stack([k.mean(1) for k in psi]), np.stack([k.mean(0) for k in psi])
    expected = np.cov(v10) / (y == 1).sum() + np.cov(v01) / (y == 0).sum()
    found = comparisons.delong(y, [a, b])
    assert np.allclose(found.auroc_R, [metrics.auroc(y, a), metrics.auroc(y, b)])
    assert np.allclose(found.covariance_RR, expected, rtol=1e-10) and found.iid and found.n_clusters == len(y)


def test_clustered_variance_equals_obuchowskis_sums_written_out():
    y, a, _, who = two_methods()
    psi, area = kernel(y, a), metrics.auroc(y, a)
    m, n, clusters = (y == 1).sum(), (y == 0).sum(), np.unique(who)
    x = np.array([(psi.mean(1)[who[y == 1] == c]).sum() - (who[y == 1] == c).sum() * area for c in clusters])
    z = np.array([(psi.mean(0)[who[y == 0] == c]).sum() - (who[y == 0] == c).sum() * area for c in clusters])
    i10, i01, i = len(np.unique(who[y == 1])), len(np.unique(who[y == 0])), len(clusters)
    s10, s01 = i10 / ((i10 - 1) * m) * (x**2).sum(), i01 / ((i01 - 1) * n) * (z**2).sum()
    s11 = i / (i - 1) * (x * z).sum()
    found = comparisons.delong(y, [a], who)
    assert found.covariance_RR[0, 0] == pytest.approx(s10 / m + s01 / n + 2 * s11 / (m * n), rel=1e-10) and not found.iid


def test_clustered_error_agrees_with_the_bootstrap_of_subjects_and_exceeds_the_independent_one():
    y, a, b, who = two_methods(n_subjects=60)
    found, alone = comparisons.delong(y, [a, b], who), comparisons.delong(y, [a, b])
    drawn = statistics.replicates(metrics.auroc, y, a, who, n=2000)
    assert np.sqrt(found.covariance_RR[0, 0]) == pytest.approx(drawn.std(), rel=0.12)
    assert found.covariance_RR[0, 0] > 1.4 * alone.covariance_RR[0, 0]
    tested = comparisons.delong_difference(y, a, b, who)
    drawn = drawn - statistics.replicates(metrics.auroc, y, b, who, n=2000)
    assert tested.error == pytest.approx(drawn.std(), rel=0.15) and tested.p < 0.05 and tested.low > 0
    assert tested.p == pytest.approx(2 * stats.norm.sf(tested.value / tested.error))


def test_a_method_compared_with_itself_has_p_one():
    y, a, _, who = two_methods()
    assert comparisons.delong_difference(y, a, a, who).p == 1
    assert comparisons.permutation(metrics.auroc, y, a, a * 3 + 1, who, n=50) == (0.0, 1.0)
    assert comparisons.bootstrap_p(np.zeros(10)) == 1 and np.isnan(comparisons.bootstrap_p(np.full(3, np.nan)))
    assert comparisons.bootstrap_p(np.ones(999)) == pytest.approx(2 / 1000)


def test_permutation_agrees_with_every_swap_written_out():
    y, a, b, who = two_methods(n_subjects=7, n_each=10)
    ranks = stats.rankdata(a), stats.rankdata(b)
    observed = metrics.auroc(y, a) - metrics.auroc(y, b)
    beyond = []
    for code in range(2**7):
        swap = ((code >> who) & 1) == 1
        beyond.append(abs(metrics.auroc(y, np.where(swap, *ranks[::-1])) - metrics.auroc(y, np.where(swap, *ranks))) >= abs(observed) - 1e-12)
    value, p = comparisons.permutation(metrics.auroc, y, a, b, who, n=3000)
    assert value == pytest.approx(observed) and p == pytest.approx(np.mean(beyond), abs=0.03)


def test_holm_is_statsmodels_holm():
    p = np.random.default_rng(0).random(9) ** 3
    assert np.allclose(comparisons.holm(p), multipletests(p, method="holm")[1])
    with_hole = comparisons.holm([0.01, np.nan, 0.04])
    assert np.allclose(with_hole[[0, 2]], [0.02, 0.04]) and np.isnan(with_hole[1])


def test_what_cannot_be_tested_is_refused():
    with pytest.raises(ValueError, match="one class"):
        comparisons.delong(np.ones(4), [np.arange(4.0)])
    with pytest.raises(ValueError, match="1 clusters hold positives"):
        comparisons.delong([1, 1, 0, 0], [np.arange(4.0)], ["a", "a", "b", "c"])
    with pytest.raises(ValueError, match="finite"):
        comparisons.delong([1, 1, 0, 0], [[0.1, np.nan, 0.2, 0.3]])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        comparisons.holm([1.5])
    with pytest.raises(ValueError, match="one class"):
        comparisons.permutation(metrics.auroc, np.zeros(4), np.arange(4.0), np.arange(4.0), list("abcd"))
