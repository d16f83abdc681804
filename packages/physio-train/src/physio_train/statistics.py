"""Intervals that respect who the windows came from: whole subjects are resampled, never windows.

N windows, S clusters (subjects), B resamples. Several runs (seeds, repeats) of one method are averaged inside each resample. A label that a resample
lacks is left out of it, never scored 0.5; below `MIN_CLUSTERS` clusters there is no interval. Tests of differences are in `comparisons`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri

from physio_train.metrics import auroc

CHUNK_CELLS = 2_000_000  # resamples x windows held at once: 16 MB of weights
PAIR_WORK = 1_000_000_000  # products of the pair matrix below which AUROC is resampled by pairs of clusters
MIN_CLUSTERS = 10  # fewer subjects than this say nothing about other subjects: no interval
Method = Literal["percentile", "bca"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its interval; both ends NaN where there is none. `n_dropped` resamples had no defined figure (no positives, say) and were left out."""

    point: float
    low: float
    high: float
    level: float
    n_resamples: int
    n_dropped: int
    n_clusters: int | None = None  # None: not told
    method: Method = "percentile"
    widened: bool = False  # the resamples lay beside the point, and the nearer end was moved to it: the figure is biased under resampling

    @property
    def holds_point(self) -> bool:
        """Whether the point lies in its own interval; False only where there is none."""
        return bool(self.low <= self.point <= self.high)

    @property
    def word(self) -> str:
        """Why there is no interval, or nothing."""
        if self.holds_point or not np.isfinite(self.point):
            return ""
        return f"n = {self.n_clusters}, no interval" if self.n_clusters is not None and self.n_clusters < MIN_CLUSTERS else "no interval"


def cluster_weights(clusters_N: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each of the S clusters is drawn in each of n resamples, (n, S) int64, and each window's cluster number (N,).

    Depends on the set of cluster names, n and seed alone, so that two methods on the same windows meet the same resamples.
    """
    names, cluster_N = np.unique(np.asarray(clusters_N), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1.0 / len(names)), size=n)
    return draws, cluster_N.reshape(-1)


def point(metric: Callable, labels: np.ndarray, scores: np.ndarray | Sequence[np.ndarray]) -> float:
    """The mean over runs of `metric(labels, scores)`; `scores` is one array or a list with one per run."""
    return float(np.mean([metric(labels, run) for run in _runs(scores)]))


def replicates(
    metric: Callable, labels: np.ndarray, scores: np.ndarray | Sequence[np.ndarray], clusters_N: np.ndarray, *, n: int = 1000, seed: int = 0
) -> np.ndarray:
    """The figure (mean over runs) in each of n resamples of clusters, (n,) float64, NaN where it is not defined.

    `metric(labels, scores, weight=(B, N))` must return (B,): every function of `physio_train.metrics` does.
    """
    draws_nS, cluster_N = cluster_weights(clusters_N, n, seed)
    return weighted_figures(metric, labels, scores, cluster_N, draws_nS)


def weighted_figures(
    metric: Callable, labels: np.ndarray, scores: np.ndarray | Sequence[np.ndarray], cluster_N: np.ndarray, draws_nS: np.ndarray
) -> np.ndarray:
    """The figure (mean over runs) when cluster c counts `draws_nS[:, c]` times, (n,) float64."""
    runs, n = _runs(scores), len(draws_nS)
    if any(len(run) != len(cluster_N) for run in runs) or len(labels) != len(cluster_N):
        raise ValueError(f"labels, scores and clusters must have one length, got {len(labels)}, {[len(r) for r in runs]} and {len(cluster_N)}")
    if metric is auroc and draws_nS.shape[1] ** 2 * len(cluster_N) <= PAIR_WORK:
        return np.mean([_auroc_by_pairs(labels, run, cluster_N, draws_nS) for run in runs], axis=0)
    chunk = max(1, CHUNK_CELLS // max(len(cluster_N), 1))
    out = np.empty(n)
    for start in range(0, n, chunk):
        weight_BN = draws_nS[start : start + chunk][:, cluster_N].astype(np.float64)
        out[start : start + chunk] = np.mean([metric(labels, run, weight=weight_BN) for run in runs], axis=0)
    return out


def pair_counts(labels_N: np.ndarray, scores_N: np.ndarray, cluster_N: np.ndarray, n_clusters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often a positive of cluster i stands above a negative of cluster j, ties counted half: (S, S); and positives (S,) and negatives (S,).

    AUROC is the sum of the first over the product of the sums of the others, so a resample of clusters is two matrix products.
    """
    y_N, s_N = np.asarray(labels_N, dtype=np.float64), np.asarray(scores_N, dtype=np.float64)
    known = np.isfinite(y_N) & (y_N >= 0)
    y_N, s_N, cluster_N = y_N[known], s_N[known], np.asarray(cluster_N)[known]
    if not np.isfinite(s_N).all():
        raise ValueError(f"scores must be finite where the label is known, {int((~np.isfinite(s_N)).sum())} are not: mend the model or its input")
    if np.any((y_N != 0) & (y_N != 1)):
        raise ValueError("labels must be 0, 1, or unknown (-1 or NaN) for a binary metric: give one column per class")
    place_N = np.unique(s_N, return_inverse=True)[1].reshape(-1)
    n_places = int(place_N.max(initial=-1)) + 1
    count = lambda rows: np.bincount(place_N[rows] * n_clusters + cluster_N[rows], minlength=n_places * n_clusters).reshape(n_places, n_clusters)  # noqa: E731
    positive_TS, negative_TS = count(y_N == 1).astype(np.float64), count(y_N == 0).astype(np.float64)
    below_TS = np.cumsum(negative_TS, axis=0) - 0.5 * negative_TS
    return positive_TS.T @ below_TS, positive_TS.sum(axis=0), negative_TS.sum(axis=0)


def _auroc_by_pairs(labels_N: np.ndarray, scores_N: np.ndarray, cluster_N: np.ndarray, draws_nS: np.ndarray) -> np.ndarray:
    above_SS, n_pos_S, n_neg_S = pair_counts(labels_N, scores_N, cluster_N, draws_nS.shape[1])
    weight_nS = draws_nS.astype(np.float64)
    total_n = (weight_nS @ n_pos_S) * (weight_nS @ n_neg_S)
    return np.divide(((weight_nS @ above_SS) * weight_nS).sum(axis=1), total_n, out=np.full(len(draws_nS), np.nan), where=total_n > 0)


def interval(
    point_value: float,
    replicates_B: np.ndarray,
    *,
    level: float = 0.95,
    n_clusters: int | None = None,
    method: Method = "percentile",
    jackknife_S: np.ndarray | None = None,
) -> Interval:
    """An interval from the defined replicates, that holds its point; NaN ends when fewer than two are defined, or below `MIN_CLUSTERS` clusters.

    `percentile` takes quantiles of the replicates. `bca` (Efron 1987, JASA 82:171) moves them by the median bias and the acceleration, which comes from
    `jackknife_S`, the figures with one cluster left out. Where the point still lies outside, the nearer end is moved to it and `widened` says so.
    """
    if method not in ("percentile", "bca"):
        raise ValueError(f"method must be percentile or bca, got {method!r}")
    if method == "bca" and jackknife_S is None:
        raise ValueError("method 'bca' needs jackknife_S, the figures with one cluster left out: see `jackknife`")
    defined = replicates_B[np.isfinite(replicates_B)]
    low = high = np.nan
    if len(defined) > 1 and np.isfinite(point_value) and (n_clusters is None or n_clusters >= MIN_CLUSTERS):
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
        low, high = np.quantile(defined, tails if method == "percentile" else _bca_tails(point_value, defined, jackknife_S, tails))
    moved_low, moved_high = (min(low, point_value), max(high, point_value)) if np.isfinite(low) else (low, high)
    return Interval(
        point=float(point_value),
        low=float(moved_low),
        high=float(moved_high),
        level=level,
        n_resamples=len(replicates_B),
        n_dropped=len(replicates_B) - len(defined),
        n_clusters=n_clusters,
        method=method,
        widened=bool(np.isfinite(low) and (moved_low < low or moved_high > high)),
    )


def _bca_tails(point_value: float, defined_B: np.ndarray, jackknife_S: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """Efron 1987, equation (2.3): which quantiles of the replicates the interval's ends are."""
    n = len(defined_B)
    share = (np.sum(defined_B < point_value) + 0.5 * np.sum(defined_B == point_value)) / n
    bias = ndtri(np.clip(share, 0.5 / n, 1 - 0.5 / n))
    left_out = jackknife_S[np.isfinite(jackknife_S)]
    away = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    spread = np.sum(away**2) ** 1.5
    acceleration = np.sum(away**3) / (6 * spread) if spread > 0 else 0.0
    z = bias + ndtri(tails)
    return ndtr(bias + z / (1 - acceleration * z))


def jackknife(metric: Callable, labels: np.ndarray, scores: np.ndarray | Sequence[np.ndarray], clusters_N: np.ndarray) -> np.ndarray:
    """The figure (mean over runs) with each cluster left out in turn, (S,) float64."""
    names, cluster_N = np.unique(np.asarray(clusters_N), return_inverse=True)
    return weighted_figures(metric, labels, scores, cluster_N.reshape(-1), 1 - np.eye(len(names), dtype=np.int64))


def cluster_bootstrap(
    metric: Callable,
    labels: np.ndarray,
    scores: np.ndarray | Sequence[np.ndarray],
    clusters_N: np.ndarray,
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    method: Method = "percentile",
) -> Interval:
    """The figure (mean over runs) and its interval over resampled clusters."""
    left_out = jackknife(metric, labels, scores, clusters_N) if method == "bca" else None
    drawn = replicates(metric, labels, scores, clusters_N, n=n, seed=seed)
    n_clusters = len(np.unique(clusters_N))
    return interval(point(metric, labels, scores), drawn, level=level, n_clusters=n_clusters, method=method, jackknife_S=left_out)


def paired_difference(
    metric: Callable,
    labels: np.ndarray,
    scores_a: np.ndarray | Sequence[np.ndarray],
    scores_b: np.ndarray | Sequence[np.ndarray],
    clusters_N: np.ndarray,
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    method: Method = "percentile",
) -> Interval:
    """Figure of a minus figure of b, each averaged over its runs, on the same resamples of clusters."""
    both = lambda of, **more: of(metric, labels, scores_a, clusters_N, **more) - of(metric, labels, scores_b, clusters_N, **more)  # noqa: E731
    left_out = both(jackknife) if method == "bca" else None
    difference = point(metric, labels, scores_a) - point(metric, labels, scores_b)
    n_clusters = len(np.unique(clusters_N))
    return interval(difference, both(replicates, n=n, seed=seed), level=level, n_clusters=n_clusters, method=method, jackknife_S=left_out)


def per_record(
    labels_N: np.ndarray,
    scores_N: np.ndarray,
    records_N: np.ndarray,
    *,
    metric: Callable = auroc,
    min_windows: int = 5,
) -> dict[str, float]:
    """The metric inside each record that has at least `min_windows` windows of each class, by record name."""
    labels_N, scores_N, records_N = np.asarray(labels_N, dtype=np.float64), np.asarray(scores_N), np.asarray(records_N)
    names, record_N = np.unique(records_N, return_inverse=True)
    record_N = record_N.reshape(-1)
    n_pos = np.bincount(record_N[labels_N == 1], minlength=len(names))
    n_neg = np.bincount(record_N[labels_N == 0], minlength=len(names))
    enough = np.flatnonzero((n_pos >= min_windows) & (n_neg >= min_windows))
    return {str(names[r]): metric(labels_N[record_N == r], scores_N[record_N == r]) for r in enough}


def per_record_mean(
    labels_N: np.ndarray,
    scores: np.ndarray | Sequence[np.ndarray],
    records_N: np.ndarray,
    *,
    min_windows: int = 5,
) -> tuple[float, int]:
    """Mean over records (then over runs) of the record's own AUROC, and how many records it is over; NaN over none."""
    figures = [per_record(labels_N, run, records_N, min_windows=min_windows) for run in _runs(scores)]
    n = len(figures[0])
    return (float(np.mean([np.mean(list(f.values())) for f in figures])) if n else float("nan")), n


def _runs(scores: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    runs = [np.asarray(s) for s in scores] if isinstance(scores, list | tuple) else [np.asarray(scores)]
    if not runs:
        raise ValueError("scores must hold at least one run, got an empty list")
    return runs
