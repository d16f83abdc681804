"""Codes as every evaluation reads them: sparse rows of windows, and their means per patient. N windows, K concepts, S patients, D embedding width."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse

Codes = sparse.csr_array
"""(N, K) float32 codes; a concept fires in a window where its code is not zero."""


class PatientCodes(NamedTuple):
    """What one patient's windows say about each concept. `subject_S` is sorted."""

    subject_S: np.ndarray
    mean_SK: np.ndarray  # float64, mean activation over the patient's windows
    rate_SK: np.ndarray  # float64, share of the patient's windows in which the concept fires
    n_windows_S: np.ndarray


def as_codes(codes_NK: np.ndarray | sparse.sparray | sparse.spmatrix) -> Codes:
    """The codes as a sparse float32 matrix (N, K), zeros dropped. ValueError for another rank, no window, no concept or values that are not finite."""
    if np.ndim(codes_NK) != 2 or 0 in codes_NK.shape:
        raise ValueError(f"codes_NK must be (windows, concepts) with at least one of each, got shape {np.shape(codes_NK)}")
    codes = sparse.csr_array(codes_NK, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(codes.data))
    if len(bad):
        row = int(np.searchsorted(codes.indptr, bad[0], side="right") - 1)
        raise ValueError(f"codes_NK has values that are not finite, first in window {row}; leave out embeddings that are not finite")
    codes.eliminate_zeros()
    return codes


def sparse_codes(encode: Callable[[np.ndarray], np.ndarray], z_ND: np.ndarray, *, batch: int = 8192) -> Codes:
    """Codes of embeddings, encoded `batch` windows at a time, so that no dense (N, K) array is ever held. `encode`: (B, D) float32 -> (B, K)."""
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    parts = [as_codes(encode(np.asarray(z_ND[at : at + batch], np.float32))) for at in range(0, len(z_ND), batch)]
    if not parts:
        raise ValueError("z_ND holds no window; name a fold that has some")
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def firing_rates(codes_NK: Codes) -> np.ndarray:
    """Share of windows (K,) float64 in which each concept fires."""
    codes = as_codes(codes_NK)
    return np.bincount(codes.indices, minlength=codes.shape[1]) / codes.shape[0]


def patient_codes(codes_NK: Codes, subject_N: np.ndarray) -> PatientCodes:
    """Mean activation and firing rate of each concept in each patient."""
    codes = as_codes(codes_NK)
    names, group = grouping(subject_N, codes.shape[0])
    n_S = np.asarray(group.sum(1)).reshape(-1)
    fires = codes.copy()
    fires.data = np.ones_like(fires.data)
    mean_SK, rate_SK = ((group @ part.astype(np.float64)).toarray() / n_S[:, None] for part in (codes, fires))
    return PatientCodes(names, mean_SK, rate_SK, n_S.astype(np.int64))


def patient_means(values_ND: np.ndarray, subject_N: np.ndarray) -> np.ndarray:
    """Mean (S, D) float64 over each patient's windows, unknown (NaN) values left out; NaN where a patient has none. Patients in sorted order."""
    values_ND = np.asarray(values_ND, np.float64)
    _, group = grouping(subject_N, len(values_ND))
    flat_ND = values_ND.reshape(len(values_ND), -1)
    known_ND = np.isfinite(flat_ND)
    count_SD = group @ known_ND.astype(np.float64)
    total_SD = group @ np.where(known_ND, flat_ND, 0.0)
    mean_SD = np.where(count_SD > 0, total_SD / np.maximum(count_SD, 1), np.nan)
    return mean_SD.reshape(-1, *values_ND.shape[1:])


def grouping(name_N: np.ndarray, n_windows: int) -> tuple[np.ndarray, sparse.csr_array]:
    """Sorted names (S,) and the 0/1 matrix (S, N) whose product with (N, D) sums over each name's windows. ValueError for another length."""
    name_N = np.asarray(name_N)
    if name_N.shape != (n_windows,):
        raise ValueError(f"subject_N must name one patient per window, ({n_windows},), got shape {name_N.shape}")
    names, at_N = np.unique(name_N, return_inverse=True)
    ones = (np.ones(n_windows), (at_N.reshape(-1), np.arange(n_windows)))
    return names, sparse.csr_array(ones, shape=(len(names), n_windows))
