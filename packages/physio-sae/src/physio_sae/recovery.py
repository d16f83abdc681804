"""How much of what the embedding knows the concepts keep: probes on patients' mean codes, beside the same on z and on the reconstruction.

S patients, K concepts, F features. Probes are `physio_train.probe` (ridge, or class-balanced logistic regression, strength chosen on inner folds of
training patients); they are fitted on training patients, concepts are selected there too, and every figure is of test patients with an interval over
resampled patients. A k-sparse probe (Gurnee et al. 2023, arXiv 2305.01610) may use the k best concepts of the training patients only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from physio_train import probe
from physio_train.metrics import auroc, r2
from physio_train.statistics import interval, replicates


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is predicted of a patient: `binary` 0/1 with -1 unknown, or `regression` in its unit with NaN unknown."""

    name: str
    kind: str
    value_S: np.ndarray
    unit: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("binary", "regression"):
            raise ValueError(f"kind of target {self.name!r} must be binary or regression, got {self.kind!r}")
        known = np.asarray(self.value_S, np.float64)[self.known_S]
        if self.kind == "binary" and not np.isin(known, (0, 1)).all():
            raise ValueError(f"target {self.name!r} is binary and must hold 0, 1 or -1 (unknown), got {np.unique(known)[:5]}")

    @property
    def known_S(self) -> np.ndarray:
        value_S = np.asarray(self.value_S, np.float64)
        return np.isfinite(value_S) & (value_S >= 0) if self.kind == "binary" else np.isfinite(value_S)


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """One figure (R2 or AUROC) of one set of features on one target. None where it is not defined, with the reason in `note`."""

    target: str
    features: str
    metric: str
    value: float | None
    interval: tuple[float, float] | None
    n_train: int
    n_test: int
    n_features: int
    note: str = ""
    chosen: tuple[int, ...] = field(default=())  # of a k-sparse probe: the concepts, best first


def over_50(age_S: np.ndarray) -> Target:
    """Whether a patient is older than 50 years; unknown ages stay unknown."""
    age_S = np.asarray(age_S, np.float64)
    return Target(name="age > 50", kind="binary", value_S=np.where(np.isfinite(age_S), (age_S > 50).astype(np.float64), -1.0))


def recover(
    features: Mapping[str, np.ndarray], targets: Sequence[Target], train_S: np.ndarray, test_S: np.ndarray, *, n_resamples: int = 1000, seed: int = 0
) -> list[Recovered]:
    """One row for each target and set of features {name: (S, F)}; `train_S` and `test_S` are rows of patients, and must not meet."""
    train_S, test_S = sides(train_S, test_S)
    return [
        one(name, np.asarray(x_SF, np.float64), target, train_S, test_S, n_resamples=n_resamples, seed=seed)
        for target in targets
        for name, x_SF in features.items()
    ]


def sparse_probes(
    codes_SK: np.ndarray,
    targets: Sequence[Target],
    train_S: np.ndarray,
    test_S: np.ndarray,
    *,
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32),
    n_resamples: int = 1000,
    seed: int = 0,
) -> list[Recovered]:
    """Probes on the k concepts that correlate most with the target over training patients, for each k up to the concepts that vary."""
    train_S, test_S = sides(train_S, test_S)
    codes_SK = np.asarray(codes_SK, np.float64)
    rows = []
    for target in targets:
        strength_K = association(codes_SK, target, train_S)
        order_K = np.argsort(-strength_K, kind="stable")
        n_usable = int((strength_K > 0).sum())
        for size in sizes:
            chosen = order_K[: min(size, n_usable)]
            if size > n_usable:
                rows.append(empty(target, f"{size} concepts", train_S, test_S, n_usable, f"only {n_usable} concepts vary with a known target in training"))
                continue
            found = one(f"{size} concepts", codes_SK[:, chosen], target, train_S, test_S, n_resamples=n_resamples, seed=seed)
            rows.append(Recovered(**{**vars(found), "chosen": tuple(int(k) for k in chosen)}))
    return rows


def association(x_SF: np.ndarray, target: Target, rows_S: np.ndarray) -> np.ndarray:
    """|Pearson correlation| (F,) of each feature with the target over some patients; 0 where either is constant."""
    rows_S = rows_S[target.known_S[rows_S]]
    if len(rows_S) < 3:
        return np.zeros(x_SF.shape[1])
    x_SF, y_S = x_SF[rows_S], np.asarray(target.value_S, np.float64)[rows_S]
    x_SF, y_S = x_SF - x_SF.mean(0), y_S - y_S.mean()
    scale_F = np.sqrt((x_SF**2).sum(0) * (y_S**2).sum())
    return np.where(scale_F > 1e-12, np.abs(y_S @ x_SF) / np.where(scale_F > 1e-12, scale_F, 1.0), 0.0)


def one(name: str, x_SF: np.ndarray, target: Target, train_S: np.ndarray, test_S: np.ndarray, *, n_resamples: int, seed: int) -> Recovered:
    """Fit on training patients, score on test patients; an empty row says why where that cannot be done."""
    known_S = target.known_S
    fit_S, held_S = train_S[known_S[train_S]], test_S[known_S[test_S]]
    y_S = np.asarray(target.value_S, np.float64)
    if reason := hindrance(target, y_S[fit_S], y_S[held_S]):
        return empty(target, name, fit_S, held_S, x_SF.shape[1], reason)
    groups = fit_S.astype(str)  # a row is a patient
    x_SF = as_seen(x_SF, fit_S)
    fitted = probe.fit(x_SF[fit_S], y_S[fit_S], groups, probe.ProbeConfig(kind=target.kind, seed=seed))
    score_S = fitted.predict(x_SF[held_S])[:, 0]
    metric = r2 if target.kind == "regression" else auroc
    found = interval(float(metric(y_S[held_S], score_S)), replicates(metric, y_S[held_S], score_S, held_S, n=n_resamples, seed=seed), n_clusters=len(held_S))
    ends = (found.low, found.high) if np.isfinite([found.low, found.high]).all() else None
    return Recovered(
        target=target.name,
        features=name,
        metric=metric_name(target),
        value=found.point,
        interval=ends,
        n_train=len(fit_S),
        n_test=len(held_S),
        n_features=x_SF.shape[1],
    )


def as_seen(x_SF: np.ndarray, fit_S: np.ndarray) -> np.ndarray:
    """Features held within the range that the patients of a fit showed.

    A concept that fires once in training has a deviation near 0: standardised by it, a test patient in whom the concept fires would be thousands of
    deviations away, and one such patient the whole figure.
    """
    return np.clip(x_SF, np.nanmin(x_SF[fit_S], axis=0), np.nanmax(x_SF[fit_S], axis=0))


def hindrance(target: Target, fit_y: np.ndarray, held_y: np.ndarray) -> str:
    """Why no figure can be had; empty where one can."""
    if len(fit_y) < 8 or len(held_y) < 3:
        return f"{len(fit_y)} training and {len(held_y)} test patients have a known {target.name}; at least 8 and 3 are needed"
    for side, y in (("training", fit_y), ("test", held_y)):
        if len(np.unique(y)) < 2:
            return f"{target.name} is constant among {side} patients"
    if target.kind == "binary" and min(np.bincount(fit_y.astype(int), minlength=2)) < 2:
        return f"a class of {target.name} has fewer than 2 training patients"
    return ""


def empty(target: Target, name: str, train_S: np.ndarray, test_S: np.ndarray, n_features: int, note: str) -> Recovered:
    counts = {"n_train": len(train_S), "n_test": len(test_S), "n_features": n_features}
    return Recovered(target=target.name, features=name, metric=metric_name(target), value=None, interval=None, note=note, **counts)


def metric_name(target: Target) -> str:
    return "R2" if target.kind == "regression" else "AUROC"


def sides(train_S: np.ndarray, test_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    train_S, test_S = np.asarray(train_S, np.int64), np.asarray(test_S, np.int64)
    if len(np.intersect1d(train_S, test_S)):
        raise ValueError("a patient is in train_S and in test_S; split by patient")
    return train_S, test_S
