"""Whether another seed, or half of the patients, finds the same concepts. K concepts of one dictionary, L of the other, D width, N windows.

Matching is one to one and optimal (Hungarian: `scipy.optimize.linear_sum_assignment`), by cosine of decoder atoms or by correlation of activations on
shared windows. Random unit atoms match too, at 0.137 for K = 1024 and D = 512, so every figure stands beside that floor, computed for the sizes at hand.
Dictionaries that disagree atom by atom may still span the same space: `principal_angles`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import subspace_angles
from scipy.optimize import linear_sum_assignment

from physio_sae.codes import Codes, as_codes


@dataclass(frozen=True, kw_only=True)
class Match:
    """An optimal one-to-one matching. None where a side has no concept, with the reason in `note`."""

    mean: float | None
    floor: float | None  # the same for random unit atoms of these sizes
    above_floor: float | None
    above_70: float | None  # share of the pairs whose similarity exceeds 0.7
    above_90: float | None
    n_pairs: int
    pair_P2: np.ndarray  # (P, 2) concept of the first, concept of the second
    similarity_P: np.ndarray
    note: str = ""


def match_atoms(a_KD: np.ndarray, b_LD: np.ndarray, *, live_a_K: np.ndarray | None = None, live_b_L: np.ndarray | None = None, seed: int = 0) -> Match:
    """Match live decoder atoms by cosine, less the floor of random atoms. ValueError for two widths."""
    a_KD, b_LD = np.asarray(a_KD, np.float32), np.asarray(b_LD, np.float32)
    if a_KD.ndim != 2 or b_LD.ndim != 2 or a_KD.shape[1] != b_LD.shape[1]:
        raise ValueError(f"dictionaries must be (K, D) and (L, D) of one width, got {a_KD.shape} and {b_LD.shape}")
    at_a, at_b = alive(live_a_K, len(a_KD)), alive(live_b_L, len(b_LD))
    if not len(at_a) or not len(at_b):
        return nothing("no live concept on one side")
    floor = random_floor(len(at_a), len(at_b), a_KD.shape[1], seed=seed)
    return assigned(unit(a_KD[at_a]) @ unit(b_LD[at_b]).T, at_a, at_b, floor)


def match_activations(a_NK: Codes, b_NL: Codes, *, seed: int = 0) -> Match:
    """Match concepts by Pearson correlation of their activations on the same windows; the floor shuffles the windows of one side."""
    a, b = as_codes(a_NK), as_codes(b_NL)
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"both codes must be of the same windows, got {a.shape[0]} and {b.shape[0]}")
    live_a, live_b = (np.flatnonzero(deviations(codes) > 0) for codes in (a, b))
    if not len(live_a) or not len(live_b):
        return nothing("no concept varies on one side")
    a, b = a[:, live_a], b[:, live_b]
    shuffled = b[np.random.default_rng(seed).permutation(b.shape[0])]
    floor = best(correlations(a, shuffled))[2].mean()
    return assigned(correlations(a, b), live_a, live_b, float(floor))


def random_floor(n_a: int, n_b: int, width: int, *, seed: int = 0) -> float:
    """Mean matched cosine of two dictionaries of random unit atoms."""
    generator = np.random.default_rng(seed)
    a, b = (unit(generator.standard_normal((n, width)).astype(np.float32)) for n in (n_a, n_b))
    return float(best(a @ b.T)[2].mean())


def assigned(similarity_KL: np.ndarray, at_a: np.ndarray, at_b: np.ndarray, floor: float) -> Match:
    """The optimal matching of a similarity matrix, concepts numbered by `at_a` and `at_b`."""
    row_P, column_P, value_P = best(similarity_KL)
    return Match(
        mean=float(value_P.mean()),
        floor=floor,
        above_floor=float(value_P.mean()) - floor,
        above_70=float((value_P > 0.7).mean()),
        above_90=float((value_P > 0.9).mean()),
        n_pairs=len(value_P),
        pair_P2=np.stack([at_a[row_P], at_b[column_P]], axis=1),
        similarity_P=value_P,
    )


def best(similarity_KL: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and float64 similarities of the one-to-one matching with the largest sum."""
    row_P, column_P = linear_sum_assignment(similarity_KL, maximize=True)
    return row_P, column_P, similarity_KL[row_P, column_P].astype(np.float64)


def principal_angles(a_KD: np.ndarray, b_LD: np.ndarray, weight_a_K: np.ndarray, weight_b_L: np.ndarray, *, energy: float = 0.9) -> np.ndarray:
    """Angles in degrees, ascending, between the subspaces that hold `energy` of the weighted atoms' squares (weights: firing rate times mean squared
    activation, say); both subspaces take the smaller of the two ranks. Empty where a side has no weight. ValueError for `energy` outside (0, 1]."""
    if not 0 < energy <= 1:
        raise ValueError(f"energy is a share in (0, 1], got {energy}")
    bases = [leading(atoms, weight, energy) for atoms, weight in ((a_KD, weight_a_K), (b_LD, weight_b_L))]
    rank = min(basis.shape[1] for basis in bases)
    return np.sort(np.degrees(subspace_angles(bases[0][:, :rank], bases[1][:, :rank]))) if rank else np.zeros(0)


def leading(atoms_KD: np.ndarray, weight_K: np.ndarray, energy: float) -> np.ndarray:
    """Orthonormal directions (D, R) holding a share of the weighted atoms' squares."""
    value_D, vector_DD = np.linalg.eigh((np.asarray(atoms_KD, np.float64) * np.asarray(weight_K, np.float64)[:, None]).T @ np.asarray(atoms_KD, np.float64))
    value_D, vector_DD = np.clip(value_D[::-1], 0, None), vector_DD[:, ::-1]
    if value_D.sum() <= 0:
        return vector_DD[:, :0]
    return vector_DD[:, : int(np.searchsorted(np.cumsum(value_D) / value_D.sum(), energy - 1e-12) + 1)]


def correlations(a_NK: Codes, b_NL: Codes) -> np.ndarray:
    """Pearson correlation (K, L) float32 of the columns of two sparse matrices; 0 where a column does not vary."""
    a, b = as_codes(a_NK).astype(np.float64), as_codes(b_NL).astype(np.float64)
    n = a.shape[0]
    mean_K, mean_L = (np.asarray(part.sum(0)).reshape(-1) / n for part in (a, b))
    scale = np.outer(deviations(a), deviations(b))
    covariance = (a.T @ b).toarray() / n - np.outer(mean_K, mean_L)
    return np.where(scale > 0, covariance / np.where(scale > 0, scale, 1.0), 0.0).astype(np.float32)


def deviations(codes: Codes) -> np.ndarray:
    """Standard deviation (K,) of each column; exactly 0 for a constant one."""
    codes = codes.astype(np.float64)
    mean_K = np.asarray(codes.sum(0)).reshape(-1) / codes.shape[0]
    square_K = np.asarray(codes.power(2).sum(0)).reshape(-1) / codes.shape[0]
    variance_K = square_K - mean_K**2
    return np.sqrt(np.where(variance_K > 1e-12 * square_K, variance_K, 0.0))


def unit(atoms_KD: np.ndarray) -> np.ndarray:
    norm_K1 = np.linalg.norm(atoms_KD, axis=1, keepdims=True)
    return atoms_KD / np.where(norm_K1 > 0, norm_K1, 1.0)


def alive(live_K: np.ndarray | None, n: int) -> np.ndarray:
    if live_K is None:
        return np.arange(n)
    if np.shape(live_K) != (n,):
        raise ValueError(f"live must have one flag per concept ({n}), got shape {np.shape(live_K)}")
    return np.flatnonzero(live_K)


def nothing(note: str) -> Match:
    none = {"mean": None, "floor": None, "above_floor": None, "above_70": None, "above_90": None}
    return Match(**none, n_pairs=0, pair_P2=np.zeros((0, 2), np.int64), similarity_P=np.zeros(0), note=note)
