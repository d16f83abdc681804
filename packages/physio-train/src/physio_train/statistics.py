"""Intervals and differences that respect who the windows came from: whole subjects are resampled, never windows.

N windows, S clusters (subjects), B resamples. Several runs (seeds, repeats) of one method are averaged inside each resample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from physio_train.metrics import auroc

CHUNK_CELLS = 2_000_000  # resamples x windows held at once: 16 MB of weights


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its percentile interval. `n_dropped` resamples had no defined figure (no positives, say) and were left out."""

    point: float
    low: float
    high: float
    level: float
    n_resamples: int
    n_dropped: int

    @property
    def holds_point(self) -> bool:
        """Whether the point lies in its own interval; where it does not, the resampling is biased for this figure and the table says so."""
        return bool(self.low <= self.point <= self.high)


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
    runs, (draws_nS, cluster_N) = _runs(scores), cluster_weights(clusters_N, n, seed)
    if any(len(run) != len(cluster_N) for run in runs) or len(labels) != len(cluster_N):
        raise ValueError(f"labels, scores and clusters must have one length, got {len(labels)}, {[len(r) for r in runs]} and {len(cluster_N)}")
    chunk = max(1, CHUNK_CELLS // max(len(cluster_N), 1))
    out = np.empty(n)
    for start in range(0, n, chunk):
        weight_BN = draws_nS[start : start + chunk][:, cluster_N].astype(np.float64)
        out[start : start + chunk] = np.mean([metric(labels, run, weight=weight_BN) for run in runs], axis=0)
    return out


def interval(point_value: float, replicates_B: np.ndarray, *, level: float = 0.95) -> Interval:
    """Percentile interval of the defined replicates; NaN ends when fewer than two are defined."""
    defined = replicates_B[np.isfinite(replicates_B)]
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) > 1 else (np.nan, np.nan)
    dropped = len(replicates_B) - len(defined)
    return Interval(point=float(point_value), low=float(low), high=float(high), level=level, n_resamples=len(replicates_B), n_dropped=dropped)


def cluster_bootstrap(
    metric: Callable,
    labels: np.ndarray,
    scores: np.ndarray | Sequence[np.ndarray],
    clusters_N: np.ndarray,
    *,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The figure (mean over runs) and its interval over resampled clusters."""
    return interval(point(metric, labels, scores), replicates(metric, labels, scores, clusters_N, n=n, seed=seed), level=level)


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
) -> Interval:
    """Figure of a minus figure of b, each averaged over its runs, on the same resamples of clusters."""
    difference = replicates(metric, labels, scores_a, clusters_N, n=n, seed=seed) - replicates(metric, labels, scores_b, clusters_N, n=n, seed=seed)
    return interval(point(metric, labels, scores_a) - point(metric, labels, scores_b), difference, level=level)


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
