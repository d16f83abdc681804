"""Which concepts tell windows with a finding from those without: AUROC per concept, FDR, an effect gate and a rate-stratified check. N windows, K concepts.

Pairs of concept and finding are selected on training patients, and their figures are those of test patients. Windows of a patient are not independent, so
the standard error is that of a jackknife over groups of patients. With hundreds of thousands of windows an AUROC of 0.51 is significant; hence the gate. A
concept above the gate whose median AUROC inside bins of heart rate falls short, on either side, speaks of rate alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from physio_sae.codes import Codes, as_codes
from physio_sae.grounding import defined, false_discovery

N_GROUPS = 20


@dataclass(frozen=True, kw_only=True)
class EnrichConfig:
    """Gates of the test."""

    gate: float = 0.70  # least AUROC
    stratified_gate: float = 0.65  # least median AUROC over bins of heart rate
    alpha: float = 0.05
    rate_edges_bpm: tuple[float, ...] = (0.0, 60.0, 80.0, 100.0, 120.0, 250.0)
    min_windows: int = 20  # of either class in a rate bin

    def __post_init__(self) -> None:
        if not 0.5 <= self.gate < 1 or not 0.5 <= self.stratified_gate < 1 or not 0 < self.alpha < 1:
            raise ValueError(f"gates must lie in [0.5, 1) and alpha in (0, 1), got {self.gate}, {self.stratified_gate}, {self.alpha}")


@dataclass(frozen=True, kw_only=True)
class Enriched:
    """A concept that a finding goes with in training patients, and what test patients say. `stratified` is None where no rate bin holds enough windows of
    both classes, a test figure where they hold one class or (`test_q`) fewer than three patients."""

    concept: int
    finding: str
    auroc: float | None  # of test patients, as `q` (among the pairs selected) and `stratified` are
    q: float | None
    stratified: float | None
    train_auroc: float
    train_q: float
    train_stratified: float | None
    rate_confounded: bool
    confirmed: bool  # at the gate with q below alpha in test patients, and not by rate alone


@dataclass(frozen=True, kw_only=True)
class Enrichment:
    """Concepts by finding, and what kind each concept is: dead, uninformative, separable (exactly one finding confirmed) or entangled (two or more)."""

    found: tuple[Enriched, ...]
    taxonomy: dict[str, int]
    kind_K: np.ndarray
    notes: tuple[str, ...]


def enrich(
    codes_NK: Codes,
    findings: Mapping[str, np.ndarray],
    subject_N: np.ndarray,
    rate_bpm_N: np.ndarray,
    train_N: np.ndarray,
    test_N: np.ndarray,
    cfg: EnrichConfig | None = None,
) -> Enrichment:
    """Findings {name: 0/1 per window, -1 unknown}; `train_N` and `test_N` are rows of windows. A finding with one class only gets a note and no row.

    ValueError for a patient on both sides.
    """
    cfg = cfg or EnrichConfig()
    codes = as_codes(codes_NK)
    subject_N, rate_bpm_N = np.asarray(subject_N), np.asarray(rate_bpm_N, np.float64)
    if shared := np.intersect1d(subject_N[train_N], subject_N[test_N]).tolist():
        raise ValueError(f"patient {shared[0]!r} has windows in train_N and test_N; split by patient")
    chosen, notes = [], []
    for name, label_N in findings.items():
        label_N = np.asarray(label_N)
        fit_N, held_N = (rows[label_N[rows] >= 0] for rows in (np.asarray(train_N), np.asarray(test_N)))
        if len(np.unique(label_N[fit_N])) < 2:
            notes.append(f"{name}: one class only among the training windows")
            continue
        auroc_K, p_K = with_jackknife(codes[fit_N], label_N[fit_N] == 1, subject_N[fit_N])
        q_K = false_discovery(p_K)
        at = np.flatnonzero((np.nan_to_num(auroc_K) >= cfg.gate) & (np.nan_to_num(q_K, nan=1.0) < cfg.alpha))
        if not len(at):
            continue
        held, held_p = with_jackknife(codes[held_N][:, at], label_N[held_N] == 1, subject_N[held_N])
        for n, k in enumerate(at):
            within = [by_rate(codes[rows][:, [k]], label_N[rows] == 1, rate_bpm_N[rows], cfg) for rows in (fit_N, held_N)]
            chosen.append((int(k), name, (float(auroc_K[k]), float(q_K[k])), (float(held[n]), float(held_p[n])), within))
    held_q = false_discovery(np.array([held_p for *_, (_, held_p), _ in chosen]))
    found = tuple(pair(*one, defined(q), cfg) for one, q in zip(chosen, held_q, strict=True))
    n_found_K = np.bincount([e.concept for e in found if e.confirmed], minlength=codes.shape[1])
    dead_K = np.diff(codes.tocsc().indptr) == 0
    kind_K = np.select([dead_K, n_found_K == 0, n_found_K == 1], ["dead", "uninformative", "separable"], "entangled")
    taxonomy = {kind: int((kind_K == kind).sum()) for kind in ("dead", "uninformative", "separable", "entangled")}
    order = sorted(found, key=lambda e: -e.train_auroc)
    return Enrichment(found=tuple(order), taxonomy=taxonomy, kind_K=kind_K, notes=tuple(notes))


def pair(
    concept: int, finding: str, train: tuple[float, float], test: tuple[float, float], within: list[float | None], q: float | None, cfg: EnrichConfig
) -> Enriched:
    confounded = any(value is not None and value < cfg.stratified_gate for value in within)
    auroc = defined(test[0])
    return Enriched(
        concept=concept,
        finding=finding,
        auroc=auroc,
        q=q,
        stratified=within[1],
        train_auroc=train[0],
        train_q=train[1],
        train_stratified=within[0],
        rate_confounded=confounded,
        confirmed=not confounded and auroc is not None and auroc >= cfg.gate and q is not None and q < cfg.alpha,
    )


def with_jackknife(codes: Codes, positive_N: np.ndarray, subject_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(AUROC (K,), two-sided p (K,)) with the standard error of a delete-one-group jackknife over at most 20 groups of patients (Shao and Wu 1989)."""
    auroc_K = aurocs(codes, positive_N)
    names, at_N = np.unique(subject_N, return_inverse=True)
    n_groups = min(N_GROUPS, len(names))
    if n_groups < 3:
        return auroc_K, np.full(len(auroc_K), np.nan)
    group_N = np.random.default_rng(0).permutation(len(names))[at_N.reshape(-1)] % n_groups
    leave = np.stack([aurocs(codes[group_N != g], positive_N[group_N != g]) for g in range(n_groups)])
    usable = np.isfinite(leave).all(0)
    spread_K = np.where(usable, ((leave - leave.mean(0)) ** 2).sum(0) * (n_groups - 1) / n_groups, np.nan)
    se_K = np.sqrt(spread_K)
    z_K = np.abs(auroc_K - 0.5) / np.where(se_K > 0, se_K, np.nan)
    return auroc_K, 2 * norm.sf(z_K)


def aurocs(codes: Codes, positive_N: np.ndarray) -> np.ndarray:
    """AUROC (K,) of each column, ties half, from its non-zero entries alone; NaN where a class is missing."""
    positive_N = np.asarray(positive_N, bool)
    n_pos, n_neg = int(positive_N.sum()), int((~positive_N).sum())
    out = np.full(codes.shape[1], np.nan)
    if not n_pos or not n_neg:
        return out
    columns = codes.tocsc()
    for k in range(codes.shape[1]):
        part = slice(columns.indptr[k], columns.indptr[k + 1])
        value, positive = columns.data[part], positive_N[columns.indices[part]]
        level, at = np.unique(np.append(value, 0.0), return_inverse=True)  # the zeros of the sparse rest are one level
        pos = np.bincount(at[:-1], weights=positive, minlength=len(level))
        neg = np.bincount(at[:-1], weights=~positive, minlength=len(level))
        zero = int(np.searchsorted(level, 0.0))
        pos[zero] += n_pos - positive.sum()
        neg[zero] += n_neg - (~positive).sum()
        below = np.cumsum(neg) - neg
        out[k] = float((pos * (below + neg / 2)).sum() / (n_pos * n_neg))
    return out


def by_rate(code: Codes, positive_N: np.ndarray, rate_bpm_N: np.ndarray, cfg: EnrichConfig) -> float | None:
    """Median over bins of heart rate of one concept's AUROC."""
    at_N = np.where(np.isfinite(rate_bpm_N), np.digitize(rate_bpm_N, cfg.rate_edges_bpm), 0)
    values = []
    for at in range(1, len(cfg.rate_edges_bpm)):
        rows = np.flatnonzero(at_N == at)
        n_pos = int(positive_N[rows].sum())
        if min(n_pos, len(rows) - n_pos) >= cfg.min_windows:
            values.append(aurocs(code[rows], positive_N[rows])[0])
    return float(np.median(values)) if values else None
