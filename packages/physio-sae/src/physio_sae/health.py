"""The health audit of a dictionary: how many concepts fire, how often, how evenly, and how alike their atoms are. N windows, K concepts, D width.

Dead: fires in no window (train and test). Ultra-dense: fires in more than a share of them. Hoyer's sparseness (Hoyer 2004, JMLR 5:1457) and the Gini
index (Hurley and Rickard 2009, IEEE TIT 55:4723) of a window's codes are 1 for one active concept and 0 for all alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from physio_sae.codes import Codes, as_codes, firing_rates

RATE_EDGES = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
_CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class Health:
    """Counts over concepts and spread over windows; atoms' figures are None without a dictionary."""

    n_concepts: int
    l0: float  # mean number of active concepts of a window
    l0_p1: float
    l0_p50: float
    l0_p99: float
    empty_windows: float  # share without any active concept
    dead: float  # share of concepts
    dense: float
    gini: float | None  # mean over windows that have a code
    hoyer: float | None
    rate_counts: tuple[int, ...]  # concepts by firing rate: 0, then between RATE_EDGES
    diversity: float | None  # L_div * D: about 1 - D/K for a tight frame
    nearest_atom: float | None  # mean over live atoms of the largest |cosine| with another one
    duplicates: int | None  # live atoms with a neighbour above 0.9
    rate_K: np.ndarray
    live_K: np.ndarray


def health(codes_NK: Codes, dictionary_KD: np.ndarray | None = None, *, train_rate_K: np.ndarray | None = None, dense_rate: float = 0.1) -> Health:
    """The audit on some windows. `train_rate_K`: firing rates on the training windows; a concept that fires there is not dead.

    Raises ValueError for a dictionary of another K, or `dense_rate` outside (0, 1).
    """
    codes = as_codes(codes_NK)
    n_concepts = codes.shape[1]
    if not 0 < dense_rate < 1:
        raise ValueError(f"dense_rate is a share of windows between 0 and 1, got {dense_rate}")
    if dictionary_KD is not None and len(dictionary_KD) != n_concepts:
        raise ValueError(f"dictionary_KD must have one atom per concept ({n_concepts}), got {len(dictionary_KD)}")
    rate_K = firing_rates(codes)
    live_K = (rate_K > 0) | (False if train_rate_K is None else np.asarray(train_rate_K) > 0)
    l0_N = np.diff(codes.indptr)
    counts = (int((rate_K == 0).sum()), *(int(c) for c in np.histogram(rate_K[rate_K > 0], bins=RATE_EDGES)[0]))
    diversity, nearest, duplicates = atoms(dictionary_KD, live_K) if dictionary_KD is not None else (None, None, None)
    gini, hoyer = spread(codes)
    p1, p50, p99 = (float(q) for q in np.quantile(l0_N, [0.01, 0.5, 0.99]))
    return Health(
        n_concepts=n_concepts,
        l0=float(l0_N.mean()),
        l0_p1=p1,
        l0_p50=p50,
        l0_p99=p99,
        empty_windows=float((l0_N == 0).mean()),
        dead=float((~live_K).mean()),
        dense=float((rate_K > dense_rate).mean()),
        gini=gini,
        hoyer=hoyer,
        rate_counts=counts,
        diversity=diversity,
        nearest_atom=nearest,
        duplicates=duplicates,
        rate_K=rate_K,
        live_K=live_K,
    )


def spread(codes_NK: Codes) -> tuple[float | None, float | None]:
    """(Gini, Hoyer) of |codes|, means over windows with at least one code; None where there is no such window."""
    codes = as_codes(codes_NK)
    n = codes.shape[1]
    ginis, hoyers = [], []
    for start, stop in zip(codes.indptr[:-1], codes.indptr[1:], strict=True):
        value = np.sort(np.abs(codes.data[start:stop].astype(np.float64)))
        if not len(value):
            continue
        place = np.arange(n - len(value) + 1, n + 1)  # ranks among all n, the zeros first
        ginis.append(float(2 * (place * value).sum() / (n * value.sum()) - (n + 1) / n))
        if n > 1:
            hoyers.append(float((np.sqrt(n) - value.sum() / np.sqrt((value**2).sum())) / (np.sqrt(n) - 1)))
    return (float(np.mean(ginis)) if ginis else None), (float(np.mean(hoyers)) if hoyers else None)


def atoms(dictionary_KD: np.ndarray, live_K: np.ndarray | None = None) -> tuple[float | None, float | None, int | None]:
    """(L_div * D over all atoms, mean nearest |cosine| and near-duplicates over live ones); None below two atoms. No (K, K) array is held."""
    norm_K1 = np.linalg.norm(dictionary_KD, axis=1, keepdims=True)
    unit_KD = np.asarray(dictionary_KD, np.float64) / np.where(norm_K1 > 0, norm_K1, 1.0)
    n_atoms, width = unit_KD.shape
    if n_atoms < 2:
        return None, None, None
    frame_DD = unit_KD.T @ unit_KD  # |D D^T|^2 = |D^T D|^2
    diversity = float((np.sum(frame_DD**2) - np.sum(np.sum(unit_KD**2, axis=1) ** 2)) / (n_atoms * (n_atoms - 1)) * width)
    live_LD = unit_KD if live_K is None else unit_KD[live_K]
    if len(live_LD) < 2:
        return diversity, None, None
    nearest = []
    for at in range(0, len(live_LD), _CHUNK):
        cosine = np.abs(live_LD[at : at + _CHUNK] @ live_LD.T)
        cosine[np.arange(len(cosine)), at + np.arange(len(cosine))] = 0
        nearest.append(cosine.max(1))
    nearest_L = np.concatenate(nearest)
    return diversity, float(nearest_L.mean()), int((nearest_L > 0.9).sum())
