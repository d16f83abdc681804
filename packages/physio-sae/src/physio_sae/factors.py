"""Which single concept follows a known factor best: chosen on training patients, its correlation reported on test patients. N windows, K concepts.

The same is asked of PCA, ICA and a random dictionary at one sparsity, so that a match means more than that something in z follows the factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from physio_sae.codes import Codes, as_codes, patient_codes, patient_means
from physio_sae.evaluate import ends
from physio_sae.recovery import sides
from physio_train.metrics import pearson
from physio_train.statistics import interval, replicates


@dataclass(frozen=True, kw_only=True)
class Factor:
    """A known truth about windows (NaN unknown). `per_patient`: constant in a patient, so patients and not windows are counted."""

    name: str
    value_N: np.ndarray
    per_patient: bool = False


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The concept chosen on training patients and its |correlation| on test patients, with an interval over them. None where undefined (`note`)."""

    factor: str
    method: str
    concept: int | None
    train: float | None
    test: float | None
    interval: tuple[float, float] | None
    n_test: int  # patients
    note: str = ""


def matched(
    codes: Mapping[str, Codes],
    factors: Sequence[Factor],
    subject_N: np.ndarray,
    train_N: np.ndarray,
    test_N: np.ndarray,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> list[Matched]:
    """A row for each factor and method {name: codes (N, K)}; `train_N` and `test_N` are rows of windows whose patients must not meet."""
    subject_N = np.asarray(subject_N)
    sides(train_N, test_N)
    if shared := np.intersect1d(subject_N[train_N], subject_N[test_N]).tolist():
        raise ValueError(f"patient {shared[0]!r} has windows in train_N and test_N; split by patient")
    return [
        best(name, as_codes(code), factor, subject_N, np.asarray(train_N), np.asarray(test_N), n_resamples=n_resamples, seed=seed)
        for factor in factors
        for name, code in codes.items()
    ]


def best(method: str, codes: Codes, factor: Factor, subject_N, train_N, test_N, *, n_resamples: int, seed: int) -> Matched:
    """The concept of largest |correlation| in training, on test patients with the sign that it had in training."""
    nothing = {"factor": factor.name, "method": method, "concept": None, "train": None, "test": None, "interval": None}
    x_MK, y_M, _ = view(codes, factor, subject_N, train_N)
    if len(y_M) < 3 or np.ptp(y_M) == 0:
        return Matched(**nothing, n_test=0, note=f"{factor.name} is unknown or constant in training")
    r_K = column_correlations(x_MK, y_M)
    if not (np.abs(r_K) > 0).any():
        return Matched(**nothing, n_test=0, note="no concept varies in training")
    k = int(np.abs(r_K).argmax())
    held_MK, held_M, who_M = view(codes[:, [k]], factor, subject_N, test_N)
    x_M = np.asarray(held_MK.toarray() if sparse.issparse(held_MK) else held_MK, np.float64).reshape(-1)
    n_test = len(np.unique(who_M))
    if len(held_M) < 3 or np.ptp(held_M) == 0 or np.ptp(x_M) == 0:
        note = f"{factor.name} or its concept {k} is unknown or constant among test patients"
        return Matched(**{**nothing, "concept": k, "train": float(abs(r_K[k]))}, n_test=n_test, note=note)
    sign = float(np.sign(r_K[k]))
    drawn_B = sign * replicates(pearson, held_M, x_M, who_M, n=n_resamples, seed=seed)
    found = interval(sign * float(pearson(held_M, x_M)), drawn_B, n_clusters=n_test)
    return Matched(factor=factor.name, method=method, concept=k, train=float(abs(r_K[k])), test=found.point, interval=ends(found), n_test=n_test)


def view(codes: Codes, factor: Factor, subject_N: np.ndarray, rows_N: np.ndarray):
    """Codes (M, K), factor (M,) and patient (M,) of the windows, or of the patients, whose factor is known."""
    value_N = np.asarray(factor.value_N, np.float64)
    rows_N = rows_N[np.isfinite(value_N[rows_N])]
    if not len(rows_N) or not factor.per_patient:
        return codes[rows_N], value_N[rows_N], subject_N[rows_N]
    means = patient_codes(codes[rows_N], subject_N[rows_N])
    return means.mean_SK, patient_means(value_N[rows_N], subject_N[rows_N]), means.subject_S


def column_correlations(x_MK, y_M: np.ndarray) -> np.ndarray:
    """Pearson correlation (K,) of each column with y; 0 for a column that does not vary."""
    y_M = y_M - y_M.mean()
    mean_K = np.asarray(x_MK.sum(0), np.float64).reshape(-1) / len(y_M)
    square_K = np.asarray((x_MK.astype(np.float64).power(2) if sparse.issparse(x_MK) else x_MK**2).sum(0)).reshape(-1) / len(y_M)
    variance_K = square_K - mean_K**2
    varies_K = variance_K > 1e-12 * np.maximum(square_K, 1e-300)
    scale_K = np.sqrt(np.where(varies_K, variance_K, 1.0) * np.mean(y_M**2))
    return np.where(varies_K, np.asarray(x_MK.T @ y_M, np.float64).reshape(-1) / len(y_M) / scale_K, 0.0)
