"""The average pulse or beat where a concept is active against matched windows where it is silent. N windows, T samples, P points of a beat, M pairs.

High windows are the most active ones, few per patient; each is paired with a window of another patient in which the concept does not fire, of like heart
rate, age, sex and quality. Beats are averaged within a window, windows within a patient, patients with equal weight. Bands are bootstraps over the high
patients; the difference is tested by flipping the sign of patients' differences, with the largest cluster's mass as statistic (Maris and Oostenveld 2007,
J Neurosci Methods 164:177), so that the p values need no correction over points.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from physio_sae.codes import patient_means

MIN_LIKENESS = 0.8  # correlation of a beat with its window's mean beat


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """Which windows are compared."""

    n_high: int = 200  # at most
    per_patient: int = 5  # windows of one patient on either side, at most
    min_patients: int = 30
    rate_bpm: float = 5.0  # largest difference in heart rate
    age_years: float = 5.0  # half a decade to either side
    quality: float = 0.1  # largest difference in quality

    def __post_init__(self) -> None:
        if min(self.n_high, self.per_patient, self.min_patients) < 1:
            raise ValueError(f"n_high, per_patient and min_patients must be at least 1, got {self.n_high}, {self.per_patient}, {self.min_patients}")
        if min(self.rate_bpm, self.age_years, self.quality) <= 0:
            raise ValueError(f"tolerances must be positive, got {self.rate_bpm} bpm, {self.age_years} years, quality {self.quality}")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Curves (P,) and bands; None with a `note` where too few patients could be matched."""

    high_P: np.ndarray | None
    low_P: np.ndarray | None
    high_band_2P: np.ndarray | None
    low_band_2P: np.ndarray | None
    difference_P: np.ndarray | None
    difference_band_2P: np.ndarray | None
    second_high_P: np.ndarray | None  # second difference of the average
    second_low_P: np.ndarray | None
    p_P: np.ndarray | None  # of the cluster that holds the point; 1 outside clusters
    clusters: tuple[dict[str, float], ...]
    n_pairs: int
    n_patients: int
    note: str = ""


def phase_beats(x_NT: np.ndarray, onset: Sequence[np.ndarray], *, n_points: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """(beat_NP, n_beats_N): each window's mean beat from onset to onset, the line between the onsets removed, height 1; NaN below two like beats."""
    out_NP, n_N = np.full((len(x_NT), n_points), np.nan), np.zeros(len(x_NT), np.int64)
    phase_P = np.linspace(0, 1, n_points)
    for row, (x_T, onset_K) in enumerate(zip(x_NT, onset, strict=True)):
        beats = []
        for start, stop in itertools.pairwise(onset_K):
            beat = np.interp(start + phase_P * (stop - start), np.arange(len(x_T)), x_T)
            beats.append(scaled(beat - np.linspace(beat[0], beat[-1], n_points)))
        out_NP[row], n_N[row] = like_mean(beats, n_points)
    return out_NP, n_N


def aligned_beats(x_NT: np.ndarray, at: Sequence[np.ndarray], fs: float, *, before_s: float = 0.2, after_s: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """(beat_NP, n_beats_N): each window's mean beat about its points `at` (samples: R peaks, or steepest rises), less its median, height 1."""
    step_P = np.arange(-round(before_s * fs), round(after_s * fs) + 1)
    out_NP, n_N = np.full((len(x_NT), len(step_P)), np.nan), np.zeros(len(x_NT), np.int64)
    for row, (x_T, at_K) in enumerate(zip(x_NT, at, strict=True)):
        whole = [int(k) for k in at_K if k + step_P[0] >= 0 and k + step_P[-1] < len(x_T)]
        out_NP[row], n_N[row] = like_mean([scaled(x_T[k + step_P] - np.median(x_T[k + step_P])) for k in whole], len(step_P))
    return out_NP, n_N


def steepest_rises(x_T: np.ndarray, onset_K: np.ndarray) -> np.ndarray:
    """Sample (K - 1,) of the steepest rise in the first half of each beat."""
    slope_T = np.gradient(np.asarray(x_T, np.float64))
    pairs = itertools.pairwise(onset_K)
    return np.array([int(a) + int(slope_T[int(a) : int(a) + max((int(b) - int(a)) // 2, 1)].argmax()) for a, b in pairs], np.int64)


def scaled(beat_P: np.ndarray) -> np.ndarray:
    size = np.ptp(beat_P)
    return beat_P / size if size > 0 else beat_P


def like_mean(beats: list[np.ndarray], n_points: int) -> tuple[np.ndarray, int]:
    """Mean of the beats that correlate with the mean of all, and their number."""
    if len(beats) < 2:
        return np.full(n_points, np.nan), len(beats)
    beat_KP = np.stack(beats)
    centred_KP, mean_P = beat_KP - beat_KP.mean(1, keepdims=True), beat_KP.mean(0) - beat_KP.mean()
    scale_K = np.linalg.norm(centred_KP, axis=1) * np.linalg.norm(mean_P)
    like = np.where(scale_K > 0, centred_KP @ mean_P / np.where(scale_K > 0, scale_K, 1.0), 0.0) >= MIN_LIKENESS
    return (beat_KP[like].mean(0), int(like.sum())) if like.sum() >= 2 else (np.full(n_points, np.nan), int(like.sum()))


def matched_windows(
    code_N: np.ndarray,
    subject_N: np.ndarray,
    rate_bpm_N: np.ndarray,
    cfg: MatchConfig | None = None,
    *,
    age_N: np.ndarray | None = None,
    male_N: np.ndarray | None = None,
    quality_N: np.ndarray | None = None,
    usable_N: np.ndarray | None = None,
) -> np.ndarray:
    """(M, 2) rows: a high window and its silent match. What is not given (or not known of either window) is not matched on; rate must be known."""
    cfg = cfg or MatchConfig()
    code_N, subject_N, rate_bpm_N = np.asarray(code_N, np.float64), np.asarray(subject_N), np.asarray(rate_bpm_N, np.float64)
    usable_N = np.isfinite(rate_bpm_N) & (True if usable_N is None else np.asarray(usable_N, bool))
    high = np.flatnonzero((code_N > 0) & usable_N)
    high = high[np.argsort(-code_N[high], kind="stable")]
    high = high[occurrence(subject_N[high]) < cfg.per_patient][: cfg.n_high]
    silent = np.flatnonzero((code_N == 0) & usable_N)
    free = np.ones(len(silent), bool)
    left = dict.fromkeys(np.unique(subject_N[silent]).tolist(), cfg.per_patient)
    tolerances = [(rate_bpm_N, cfg.rate_bpm)]
    tolerances += [(np.asarray(v, np.float64), w) for v, w in ((age_N, cfg.age_years), (male_N, 0.5), (quality_N, cfg.quality)) if v is not None]
    pairs = []
    for row in high:
        cost, allowed = np.zeros(len(silent)), free & (subject_N[silent] != subject_N[row])
        for value_N, width in tolerances:
            gap = np.abs(value_N[silent] - value_N[row]) / width
            allowed &= ~(gap > 1)  # an unknown value is not matched on
            cost += np.nan_to_num(gap, nan=0.5)
        if not allowed.any():
            continue
        best = int(np.where(allowed, cost, np.inf).argmin())
        pairs.append((row, silent[best]))
        free[best] = False
        name = subject_N[silent[best]].item() if hasattr(subject_N[silent[best]], "item") else subject_N[silent[best]]
        left[name] -= 1
        if left[name] == 0:
            free &= subject_N[silent] != name
    return np.array(pairs, np.int64).reshape(-1, 2)


def compare(
    beat_NP: np.ndarray, pair_M2: np.ndarray, subject_N: np.ndarray, cfg: MatchConfig | None = None, *, n_resamples: int = 1000, seed: int = 0
) -> Comparison:
    """High against low, over the pairs whose two windows have an average beat."""
    cfg = cfg or MatchConfig()
    pair_M2 = pair_M2[np.isfinite(beat_NP[pair_M2.reshape(-1)]).all(1).reshape(-1, 2).all(1)] if len(pair_M2) else pair_M2
    who_M = np.asarray(subject_N)[pair_M2[:, 0]]
    n_patients = len(np.unique(who_M))
    if n_patients < cfg.min_patients:
        curves = ("high_P", "low_P", "high_band_2P", "low_band_2P", "difference_P", "difference_band_2P", "second_high_P", "second_low_P", "p_P")
        note = f"{n_patients} patients have a matched pair, {cfg.min_patients} are needed"
        return Comparison(**dict.fromkeys(curves), clusters=(), n_pairs=len(pair_M2), n_patients=n_patients, note=note)
    high_SP, low_SP = (patient_means(beat_NP[pair_M2[:, side]], who_M) for side in (0, 1))
    gap_SP = high_SP - low_SP
    draws = np.random.default_rng(seed).multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=n_resamples) / n_patients
    p_P, clusters = cluster_permutation(gap_SP, n_permutations=n_resamples, seed=seed)
    high_P, low_P = high_SP.mean(0), low_SP.mean(0)
    return Comparison(
        high_P=high_P,
        low_P=low_P,
        high_band_2P=np.quantile(draws @ high_SP, [0.025, 0.975], axis=0),
        low_band_2P=np.quantile(draws @ low_SP, [0.025, 0.975], axis=0),
        difference_P=gap_SP.mean(0),
        difference_band_2P=np.quantile(draws @ gap_SP, [0.025, 0.975], axis=0),
        second_high_P=np.gradient(np.gradient(high_P)),
        second_low_P=np.gradient(np.gradient(low_P)),
        p_P=p_P,
        clusters=clusters,
        n_pairs=len(pair_M2),
        n_patients=n_patients,
    )


def cluster_permutation(
    gap_SP: np.ndarray, *, threshold: float = 2.0, n_permutations: int = 1000, seed: int = 0
) -> tuple[np.ndarray, tuple[dict[str, float], ...]]:
    """(p (P,), clusters {start, stop, mass, p}) of neighbouring points with |t| above the threshold and one sign; patients' signs are flipped at random."""
    n_S, n_P = gap_SP.shape
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(n_permutations, n_S))
    square_P = (gap_SP**2).sum(0)

    def t_of(sum_P: np.ndarray) -> np.ndarray:
        spread = np.maximum(square_P - sum_P**2 / n_S, 1e-12 * np.maximum(square_P, 1e-300)) / (n_S - 1)
        return sum_P / np.sqrt(n_S * spread)

    null = np.array([max((mass for _, _, mass in runs(t_of(sum_P), threshold)), default=0.0) for sum_P in signs @ gap_SP])
    p_P, clusters = np.ones(n_P), []
    for start, stop, mass in runs(t_of(gap_SP.sum(0)), threshold):
        p = float((1 + (null >= mass - 1e-9).sum()) / (1 + n_permutations))
        p_P[start:stop] = p
        clusters.append({"start": start, "stop": stop, "mass": mass, "p": p})
    return p_P, tuple(clusters)


def runs(t_P: np.ndarray, threshold: float) -> list[tuple[int, int, float]]:
    """(start, stop, sum |t|) of each run of points beyond the threshold on one side."""
    side_P = np.where(t_P > threshold, 1, np.where(t_P < -threshold, -1, 0))
    edges = np.flatnonzero(np.diff(side_P, prepend=0, append=0))
    return [(int(a), int(b), float(np.abs(t_P[a:b]).sum())) for a, b in itertools.pairwise(edges) if side_P[a]]


def occurrence(name_N: np.ndarray) -> np.ndarray:
    """How many earlier entries (N,) have the same name."""
    order = np.argsort(name_N, kind="stable")
    _, first, count = np.unique(name_N[order], return_index=True, return_counts=True)
    out = np.empty(len(name_N), np.int64)
    out[order] = np.arange(len(name_N)) - np.repeat(first, count)
    return out
