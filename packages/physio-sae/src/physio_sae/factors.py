"""Which concept follows a known factor best, and what a few of them say together: chosen on training patients, reported on test patients.

A code that is never negative follows one side of a factor, a signed score both: so beside the best single concept stands the least-squares sum of a few,
picked one after another by what the ones before leave unexplained (orthogonal matching pursuit: Pati et al. 1993, Asilomar 27:40). The same is asked of
PCA, ICA, NMF, k-means and a random dictionary at one sparsity, so that a match means more than that something in z follows the factor. N windows, K concepts.
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
    """The concept chosen on training patients and its |correlation| on test patients, with an interval over them. None where undefined (`note`).

    `several` are the first few concepts of the pursuit, `several_test` the correlation of their sum, weighted as on training patients, with the factor.
    """

    factor: str
    method: str
    concept: int | None
    train: float | None
    test: float | None
    interval: tuple[float, float] | None
    n_test: int  # patients
    several: tuple[int, ...] = ()
    several_train: float | None = None
    several_test: float | None = None
    several_interval: tuple[float, float] | None = None
    note: str = ""


def matched(
    codes: Mapping[str, Codes],
    factors: Sequence[Factor],
    subject_N: np.ndarray,
    train_N: np.ndarray,
    test_N: np.ndarray,
    *,
    n_several: int = 4,
    n_resamples: int = 1000,
    seed: int = 0,
) -> list[Matched]:
    """A row for each factor and method {name: codes (N, K)}; `train_N` and `test_N` are rows of windows whose patients must not meet."""
    subject_N = np.asarray(subject_N)
    sides(train_N, test_N)
    if shared := np.intersect1d(subject_N[train_N], subject_N[test_N]).tolist():
        raise ValueError(f"patient {shared[0]!r} has windows in train_N and test_N; split by patient")
    return [
        best(name, as_codes(code), factor, subject_N, np.asarray(train_N), np.asarray(test_N), n_several=n_several, n_resamples=n_resamples, seed=seed)
        for factor in factors
        for name, code in codes.items()
    ]


def best(method: str, codes: Codes, factor: Factor, subject_N, train_N, test_N, *, n_several: int, n_resamples: int, seed: int) -> Matched:
    """The concept of largest |correlation| in training, on test patients with the sign that it had in training; and the first few of the pursuit."""
    nothing = {"factor": factor.name, "method": method, "concept": None, "train": None, "test": None, "interval": None}
    x_MK, y_M, _ = view(codes, factor, subject_N, train_N)
    if len(y_M) < 3 or np.ptp(y_M) == 0:
        return Matched(**nothing, n_test=0, note=f"{factor.name} is unknown or constant in training")
    chosen, weight_J, fitted = pursuit(x_MK, y_M, n_several)
    if not chosen:
        return Matched(**nothing, n_test=0, note="no concept varies in training")
    k, r = chosen[0], column_correlations(columns(x_MK, chosen[:1]), y_M)[0]
    known = {"concept": k, "train": float(abs(r)), "several": chosen, "several_train": fitted}
    held_MK, held_M, who_M = view(codes[:, list(chosen)], factor, subject_N, test_N)
    x_MJ = columns(held_MK, range(len(chosen)))
    n_test = len(np.unique(who_M))
    if len(held_M) < 3 or np.ptp(held_M) == 0 or np.ptp(x_MJ[:, 0]) == 0:
        note = f"{factor.name} or its concept {k} is unknown or constant among test patients"
        return Matched(**{**nothing, **known}, n_test=n_test, note=note)

    def scored(score_M: np.ndarray) -> tuple[float | None, tuple[float, float] | None]:
        if np.ptp(score_M) == 0:
            return None, None
        drawn_B = replicates(pearson, held_M, score_M, who_M, n=n_resamples, seed=seed)
        found = interval(float(pearson(held_M, score_M)), drawn_B, n_clusters=n_test)
        return found.point, ends(found)

    (one, one_ends), (several, several_ends) = scored(np.sign(r) * x_MJ[:, 0]), scored(x_MJ @ weight_J)
    return Matched(**{**nothing, **known, "test": one, "interval": one_ends, "several_test": several, "several_interval": several_ends}, n_test=n_test)


def pursuit(x_MK, y_M: np.ndarray, n_several: int) -> tuple[tuple[int, ...], np.ndarray, float]:
    """(columns, weights, correlation of their sum with y) of at most `n_several` columns, each the one that correlates most with what is left of y."""
    centred_M = y_M - y_M.mean()
    left_M, chosen, weight_J, fitted_M = centred_M, [], np.zeros(0), np.zeros(len(y_M))
    while len(chosen) < n_several:
        r_K = np.abs(column_correlations(x_MK, left_M))
        r_K[chosen] = 0
        if r_K.max() < 1e-6:
            break
        chosen.append(int(r_K.argmax()))
        x_MJ = columns(x_MK, chosen)
        weight_J = np.linalg.lstsq(x_MJ - x_MJ.mean(0), centred_M, rcond=None)[0]
        fitted_M = (x_MJ - x_MJ.mean(0)) @ weight_J
        left_M = centred_M - fitted_M
        if left_M @ left_M < 1e-12 * (centred_M @ centred_M):
            break
    return tuple(chosen), weight_J, float(pearson(y_M, fitted_M)) if chosen else 0.0


def columns(x_MK, at) -> np.ndarray:
    """Some columns, dense (M, J) float64."""
    part = x_MK[:, list(at)]
    return np.asarray(part.toarray() if sparse.issparse(part) else part, np.float64)


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
