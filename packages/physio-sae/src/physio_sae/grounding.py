"""What a concept means in the words of the waveform: its correlation with morphology features, given rate, age and sex.

S patients, K concepts, F features, C covariates, N windows. Everything is chosen on training patients and reported on test patients:

    associations    Spearman rho of patients' means, and partial rho given the covariates (ranks residualised on ranks), p from t
    q               Benjamini and Hochberg 1995 (JRSS B 57:289) over all K x F pairs of the table
    selected        q of the partial rho below alpha, and |partial rho| at the effect gate or above: with many patients significance alone means little
    rate-stratified the same feature inside bins of heart rate; the median over bins must keep the sign and half the gate
    confirmed       selected, rate-stratified, and the test patients' partial rho has the same sign with q below alpha among the selected pairs
    rate only       the concept follows heart rate and no other feature is selected once rate is given
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, t

from physio_sae.codes import Codes, as_codes, patient_codes, patient_means

DETERMINED = 0.98  # a feature whose ranks the covariates explain to this share is one of them under another name: it has no partial correlation


@dataclass(frozen=True, kw_only=True)
class GroundConfig:
    """Gates of the table."""

    alpha: float = 0.05  # false discovery rate
    gate: float = 0.3  # least |rho|
    rate_edges_bpm: tuple[float, ...] = (0.0, 60.0, 80.0, 100.0, 120.0, 250.0)
    min_patients: int = 10  # of a rate bin, and of a feature
    n_shown: int = 5  # features named per concept

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or not 0 <= self.gate < 1:
            raise ValueError(f"alpha must lie in (0, 1) and gate in [0, 1), got {self.alpha} and {self.gate}")
        if len(self.rate_edges_bpm) < 2 or list(self.rate_edges_bpm) != sorted(set(self.rate_edges_bpm)):
            raise ValueError(f"rate_edges_bpm must ascend, two or more of them, got {self.rate_edges_bpm}")
        if self.min_patients < 5:
            raise ValueError(f"min_patients must be at least 5, got {self.min_patients}")


@dataclass(frozen=True, kw_only=True)
class Associations:
    """Every pair of concept and feature over some patients, (K, F) each. NaN where a side is constant or a feature too seldom known."""

    rho_KF: np.ndarray
    p_KF: np.ndarray
    q_KF: np.ndarray
    partial_KF: np.ndarray
    partial_p_KF: np.ndarray
    partial_q_KF: np.ndarray
    n_F: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Windows:
    """What grounding reads of N windows of some patients; unknown is NaN. `age_N`, `male_N` (0/1) are None where a corpus has none."""

    codes: Codes
    features_NF: np.ndarray
    rate_bpm_N: np.ndarray
    subject_N: np.ndarray
    age_N: np.ndarray | None = None
    male_N: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = self.codes.shape[0]
        for name in ("features_NF", "rate_bpm_N", "subject_N", "age_N", "male_N"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ValueError(f"{name} must have one row per window ({n}), got {len(value)}")

    def part(self, rows_N: np.ndarray) -> Windows:
        """These windows alone."""
        taken = {name: None if getattr(self, name) is None else getattr(self, name)[rows_N] for name in ("age_N", "male_N")}
        return Windows(
            codes=as_codes(self.codes)[rows_N],
            features_NF=self.features_NF[rows_N],
            rate_bpm_N=self.rate_bpm_N[rows_N],
            subject_N=self.subject_N[rows_N],
            **taken,
        )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A concept and a feature selected on training patients."""

    concept: int
    feature: str
    rho: float
    partial: float
    q: float  # of the partial, over all pairs
    stratified: float | None  # median over rate bins; None where no bin has enough patients
    test_rho: float | None
    test_partial: float | None
    test_q: float | None  # among the selected pairs
    n_train: int
    n_test: int
    confirmed: bool


@dataclass(frozen=True, kw_only=True)
class Grounded:
    """What can be said of one concept."""

    concept: int
    verdict: str  # dead, rate only, confirmed, selected, unexplained
    rate_rho: float | None  # with heart rate, training patients
    rate_q: float | None
    pairs: tuple[Pair, ...]
    note: str = ""


def associations(codes_SK: np.ndarray, features_SF: np.ndarray, covariates_SC: np.ndarray, *, min_patients: int = 10) -> Associations:
    """The whole table over patients. Covariates that do not vary, or are unknown for every patient, are left out; patients with an unknown one are too.

    Raises ValueError for another number of rows.
    """
    codes_SK, features_SF = np.asarray(codes_SK, np.float64), np.asarray(features_SF, np.float64)
    covariates_SC = np.asarray(covariates_SC, np.float64).reshape(len(codes_SK), -1)
    if len(features_SF) != len(codes_SK):
        raise ValueError(f"features_SF must have one row per patient ({len(codes_SK)}), got {len(features_SF)}")
    covariates_SC = covariates_SC[:, np.isfinite(covariates_SC).any(0)]
    shape = (codes_SK.shape[1], features_SF.shape[1])
    rho, p, partial, partial_p = (np.full(shape, np.nan) for _ in range(4))
    n_F = np.zeros(shape[1], np.int64)
    known_SF = np.isfinite(features_SF) & np.isfinite(covariates_SC).all(1)[:, None]
    patterns, of_F = np.unique(known_SF, axis=1, return_inverse=True)
    for pattern in range(patterns.shape[1]):
        rows, columns = np.flatnonzero(patterns[:, pattern]), np.flatnonzero(of_F.reshape(-1) == pattern)
        n_F[columns] = len(rows)
        if len(rows) < min_patients:
            continue
        code, feature = rankdata(codes_SK[rows], axis=0), rankdata(features_SF[rows][:, columns], axis=0)
        rho[:, columns] = correlation(code, feature)
        p[:, columns] = two_sided(rho[:, columns], len(rows) - 2)
        design = rankdata(covariates_SC[rows], axis=0)
        design = np.concatenate([np.ones((len(rows), 1)), design[:, np.ptp(design, axis=0) > 0]], axis=1)
        left, right = residual(code, design, DETERMINED), residual(feature, design, DETERMINED)
        partial[:, columns] = correlation(left, right)
        partial_p[:, columns] = two_sided(partial[:, columns], len(rows) - 1 - design.shape[1])
    return Associations(
        rho_KF=rho, p_KF=p, q_KF=false_discovery(p), partial_KF=partial, partial_p_KF=partial_p, partial_q_KF=false_discovery(partial_p), n_F=n_F
    )


def ground(train: Windows, test: Windows, feature_names: Sequence[str], cfg: GroundConfig | None = None) -> list[Grounded]:
    """One entry per concept: what it goes with in training patients, and whether test patients agree. ValueError for a patient on both sides."""
    cfg = cfg or GroundConfig()
    if shared := np.intersect1d(train.subject_N, test.subject_N).tolist():
        raise ValueError(f"patient {shared[0]!r} has windows on both sides; split by patient")
    if len(feature_names) != train.features_NF.shape[1]:
        raise ValueError(f"feature_names must name {train.features_NF.shape[1]} features, got {len(feature_names)}")
    codes_SK, features_SF, covariates_SC = by_patient(train)
    held_SK, held_SF, held_SC = by_patient(test)
    table = associations(codes_SK, features_SF, covariates_SC, min_patients=cfg.min_patients)
    held = associations(held_SK, held_SF, held_SC, min_patients=5)
    no_covariate = np.zeros((len(codes_SK), 0))
    rate = associations(codes_SK, covariates_SC[:, :1], no_covariate, min_patients=cfg.min_patients)
    chosen_KF = (np.nan_to_num(table.partial_q_KF, nan=1.0) < cfg.alpha) & (np.nan_to_num(np.abs(table.partial_KF)) >= cfg.gate)
    held_p = np.where(chosen_KF, held.partial_p_KF, np.nan)
    held_q = false_discovery(held_p)
    dead_K = np.diff(as_codes(train.codes).tocsc().indptr) == 0
    bins = rate_bins(train, cfg) if chosen_KF.any() else []
    found = []
    for k in range(len(dead_K)):
        order = np.flatnonzero(chosen_KF[k])
        order = order[np.argsort(-np.abs(table.partial_KF[k, order]), kind="stable")][: cfg.n_shown]
        pairs = tuple(pair(k, f, str(feature_names[f]), table, held, held_q, bins, cfg) for f in order)
        rate_rho, rate_q = defined(rate.rho_KF[k, 0]), defined(rate.q_KF[k, 0])
        follows_rate = rate_q is not None and rate_q < cfg.alpha and abs(rate_rho) >= cfg.gate
        found.append(Grounded(concept=k, verdict=verdict(bool(dead_K[k]), follows_rate, pairs), rate_rho=rate_rho, rate_q=rate_q, pairs=pairs))
    return found


def pair(k: int, f: int, name: str, table: Associations, held: Associations, held_q: np.ndarray, bins: list, cfg: GroundConfig) -> Pair:
    partial, test_partial, test_q = float(table.partial_KF[k, f]), defined(held.partial_KF[k, f]), defined(held_q[k, f])
    within = stratified(bins, k, f)
    agrees = test_partial is not None and test_q is not None and test_partial * partial > 0 and test_q < cfg.alpha
    return Pair(
        concept=k,
        feature=name,
        rho=float(table.rho_KF[k, f]),
        partial=partial,
        q=float(table.partial_q_KF[k, f]),
        stratified=within,
        test_rho=defined(held.rho_KF[k, f]),
        test_partial=test_partial,
        test_q=test_q,
        n_train=int(table.n_F[f]),
        n_test=int(held.n_F[f]),
        confirmed=bool(agrees and within is not None and within * np.sign(partial) >= cfg.gate / 2),
    )


def verdict(dead: bool, follows_rate: bool, pairs: Sequence[Pair]) -> str:
    if dead:
        return "dead"
    if any(p.confirmed for p in pairs):
        return "confirmed"
    if follows_rate and not pairs:
        return "rate only"
    return "selected" if pairs else "unexplained"


def by_patient(windows: Windows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean codes (S, K), features (S, F) and covariates (S, C): rate first, then age and sex where they are known."""
    columns = [windows.rate_bpm_N, *(v for v in (windows.age_N, windows.male_N) if v is not None)]
    covariates_NC = np.stack([np.asarray(v, np.float64) for v in columns], axis=1)
    means = patient_codes(windows.codes, windows.subject_N).mean_SK
    return means, patient_means(windows.features_NF, windows.subject_N), patient_means(covariates_NC, windows.subject_N)


def rate_bins(windows: Windows, cfg: GroundConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """(codes (S, K), features (S, F)) of the patients in each bin of heart rate that has enough of them."""
    at_N = np.digitize(windows.rate_bpm_N, cfg.rate_edges_bpm)
    found = []
    for at in range(1, len(cfg.rate_edges_bpm)):
        rows = np.flatnonzero((at_N == at) & np.isfinite(windows.rate_bpm_N))
        if len(rows) and len(np.unique(windows.subject_N[rows])) >= cfg.min_patients:
            codes_SK, features_SF, _ = by_patient(windows.part(rows))
            found.append((codes_SK, features_SF))
    return found


def stratified(bins: list[tuple[np.ndarray, np.ndarray]], k: int, f: int) -> float | None:
    """Median over rate bins of Spearman's rho; None without a bin where both sides vary."""
    values = []
    for codes_SK, features_SF in bins:
        known = np.isfinite(features_SF[:, f])
        if known.sum() >= 5:
            values.append(correlation(rankdata(codes_SK[known, k])[:, None], rankdata(features_SF[known, f])[:, None])[0, 0])
    values = [v for v in values if np.isfinite(v)]
    return float(np.median(values)) if values else None


def correlation(a_SK: np.ndarray, b_SF: np.ndarray) -> np.ndarray:
    """Pearson correlation (K, F) of columns; NaN where one is constant."""
    a_SK, b_SF = a_SK - a_SK.mean(0), b_SF - b_SF.mean(0)
    norm_K, norm_F = np.linalg.norm(a_SK, axis=0), np.linalg.norm(b_SF, axis=0)
    least = 1e-9 * np.sqrt(len(a_SK))
    scale_KF = np.outer(np.where(norm_K > least, norm_K, np.nan), np.where(norm_F > least, norm_F, np.nan))
    return np.clip(a_SK.T @ b_SF / scale_KF, -1, 1)


def residual(ranks_SK: np.ndarray, design_SC: np.ndarray, determined: float) -> np.ndarray:
    """Ranks less their regression on the design; constant (hence without correlation) where the design explains them to the share `determined`."""
    left_SK = ranks_SK - design_SC @ np.linalg.lstsq(design_SC, ranks_SK, rcond=None)[0]
    centred_SK = ranks_SK - ranks_SK.mean(0)
    kept_K = (left_SK**2).sum(0) > (1 - determined) * (centred_SK**2).sum(0)
    return np.where(kept_K, left_SK, 0.0)


def two_sided(r: np.ndarray, freedom: int) -> np.ndarray:
    """Two-sided p of a correlation, from t with `freedom` degrees; NaN below one degree."""
    if freedom < 1:
        return np.full_like(r, np.nan)
    return 2 * t.sf(np.abs(r) * np.sqrt(freedom / np.maximum(1 - r**2, 1e-300)), freedom)


def false_discovery(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg q of all defined p; NaN stays NaN and does not count."""
    q = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    values = p[known]
    if not len(values):
        return q
    order = np.argsort(values)
    steps = values[order] * len(values) / np.arange(1, len(values) + 1)
    out = np.empty(len(values))
    out[order] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1.0)
    q[known] = out
    return q


def defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
