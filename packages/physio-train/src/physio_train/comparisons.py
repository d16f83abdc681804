"""Is one method better than another on the same windows? DeLong's test, permutation, and Holm's correction for asking often.

N windows, S clusters (subjects), R methods. Bootstrap intervals of a difference are in `statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri


@dataclass(frozen=True, kw_only=True)
class Areas:
    """AUROCs of R methods on the same windows with their covariance. `iid` True: windows were taken as independent of one another."""

    auroc_R: np.ndarray
    covariance_RR: np.ndarray
    iid: bool
    n_clusters: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second, its standard error, interval and two-sided p-value; `iid` as in `Areas`. NaN where the error is zero but the difference is not."""

    value: float
    error: float
    low: float
    high: float
    p: float
    iid: bool


def delong(labels_N: np.ndarray, scores: Sequence[np.ndarray], clusters_N: np.ndarray | None = None) -> Areas:
    """AUROCs and their covariance: DeLong et al. 1988 (Biometrics 44:837); with clusters, Obuchowski 1997 (Biometrics 53:567).

    Windows of one subject resemble one another, so without `clusters_N` the error is usually too small: the result is then marked `iid`. Windows of unknown
    label are left out. ValueError with one class only, or fewer than two clusters holding either class.
    """
    labels_N = np.asarray(labels_N, dtype=np.float64)
    keep = np.isfinite(labels_N) & (labels_N >= 0)
    y_N = labels_N[keep]
    if len(np.unique(y_N)) < 2:
        raise ValueError("labels hold one class only: an AUROC needs positives and negatives")
    names = np.arange(len(y_N)) if clusters_N is None else np.asarray(clusters_N)[keep]
    cluster_N = np.unique(names, return_inverse=True)[1].reshape(-1)
    n_clusters = int(cluster_N.max()) + 1
    count = lambda rows: np.bincount(cluster_N[rows], minlength=n_clusters).astype(np.float64)  # noqa: E731
    n_pos_S, n_neg_S = count(y_N == 1), count(y_N == 0)
    n_pos, n_neg = n_pos_S.sum(), n_neg_S.sum()
    with_pos, with_neg = int((n_pos_S > 0).sum()), int((n_neg_S > 0).sum())
    if with_pos < 2 or with_neg < 2:
        raise ValueError(f"{with_pos} clusters hold positives and {with_neg} negatives: a variance needs at least two of each")
    auroc, up, down = [], [], []
    for score_N in scores:
        above_S, below_S = _components(y_N, np.asarray(score_N, dtype=np.float64)[keep], cluster_N, n_clusters)
        area = above_S.sum() / n_pos
        auroc.append(area)
        up.append(above_S - n_pos_S * area)
        down.append(below_S - n_neg_S * area)
    up_RS, down_RS = np.stack(up), np.stack(down)
    s10 = with_pos / (with_pos - 1) * up_RS @ up_RS.T / n_pos**2
    s01 = with_neg / (with_neg - 1) * down_RS @ down_RS.T / n_neg**2
    s11 = n_clusters / (n_clusters - 1) * up_RS @ down_RS.T / (n_pos * n_neg)
    return Areas(auroc_R=np.array(auroc), covariance_RR=s10 + s01 + s11 + s11.T, iid=clusters_N is None, n_clusters=n_clusters)


def _midranks(score_N: np.ndarray) -> np.ndarray:
    """1 to N, ties at their mean."""
    from scipy.stats import rankdata  # slow to import, and few that import this module need it

    return rankdata(score_N)


def _components(y_N: np.ndarray, score_N: np.ndarray, cluster_N: np.ndarray, n_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Structural components summed by cluster: of positives, the share of negatives below each; of negatives, the share of positives above."""
    if not np.isfinite(score_N).all():
        raise ValueError(f"scores must be finite where the label is known, {int((~np.isfinite(score_N)).sum())} are not: mend the model or its input")
    positive = y_N == 1
    rank_N, own_N = _midranks(score_N), np.empty(len(y_N))
    own_N[positive], own_N[~positive] = _midranks(score_N[positive]), _midranks(score_N[~positive])
    other_N = (rank_N - own_N) / np.where(positive, (~positive).sum(), positive.sum())  # windows of the other class below, ties half
    above_S = np.bincount(cluster_N[positive], weights=other_N[positive], minlength=n_clusters)
    below_S = np.bincount(cluster_N[~positive], weights=1 - other_N[~positive], minlength=n_clusters)
    return above_S, below_S


def delong_difference(
    labels_N: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, clusters_N: np.ndarray | None = None, *, level: float = 0.95
) -> Difference:
    """AUROC of a minus AUROC of b on the same windows, tested by `delong`."""
    areas = delong(labels_N, [scores_a, scores_b], clusters_N)
    value = float(areas.auroc_R[0] - areas.auroc_R[1])
    contrast = np.array([1.0, -1.0])
    error = float(np.sqrt(max(0.0, contrast @ areas.covariance_RR @ contrast)))
    if error < 1e-12:
        same = abs(value) < 1e-12
        return Difference(value=value, error=0.0, low=value, high=value, p=1.0 if same else float("nan"), iid=areas.iid)
    reach = float(ndtri((1 + level) / 2)) * error
    return Difference(value=value, error=error, low=value - reach, high=value + reach, p=float(2 * ndtr(-abs(value) / error)), iid=areas.iid)


def permutation(
    metric: Callable, labels_N: np.ndarray, scores_a: np.ndarray, scores_b: np.ndarray, clusters_N: np.ndarray, *, n: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Difference of a figure that depends on ranks alone (AUROC, AP), and its two-sided p-value when whole subjects swap the two methods.

    Scores become ranks within each method first, so that methods on different scales are exchangeable under the null hypothesis (Venkatraman & Begg 1996,
    Biometrika 83:835). p counts the observed difference itself, so it is never 0.
    """
    a_N, b_N = _midranks(scores_a), _midranks(scores_b)
    names, cluster_N = np.unique(np.asarray(clusters_N), return_inverse=True)
    observed = float(metric(labels_N, a_N) - metric(labels_N, b_N))
    if not np.isfinite(observed):
        raise ValueError("the figure is not defined on these labels (one class only): nothing can be compared")
    rng, beyond = np.random.default_rng(seed), 0
    for _ in range(n):
        swap_N = rng.integers(0, 2, len(names), dtype=np.int64)[cluster_N.reshape(-1)] == 1
        beyond += abs(metric(labels_N, np.where(swap_N, b_N, a_N)) - metric(labels_N, np.where(swap_N, a_N, b_N))) >= abs(observed) - 1e-12
    return observed, (1 + int(beyond)) / (1 + n)


def bootstrap_p(replicates_B: np.ndarray) -> float:
    """Two-sided p-value of no difference from replicates of a difference, by the share beyond zero; never 0, NaN without replicates."""
    defined = replicates_B[np.isfinite(replicates_B)]
    if not len(defined):
        return float("nan")
    side = min(np.sum(defined <= 0), np.sum(defined >= 0))
    return float(min(1.0, 2 * (1 + side) / (1 + len(defined))))


def holm(p_K: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values adjusted for their number (Holm 1979, Scand J Stat 6:65), in the order given; NaN ones stay NaN and do not count."""
    p_K = np.asarray(p_K, dtype=np.float64)
    if np.any((p_K < 0) | (p_K > 1)):
        raise ValueError(f"p-values must lie in [0, 1], got {p_K.tolist()}")
    out, known = np.full(len(p_K), np.nan), np.flatnonzero(np.isfinite(p_K))
    order = known[np.argsort(p_K[known], kind="stable")]
    out[order] = np.minimum(np.maximum.accumulate(p_K[order] * np.arange(len(order), 0, -1)), 1.0)
    return out
