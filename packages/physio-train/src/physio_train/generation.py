"""How far generated signals are from real ones: Frechet distance and maximum mean discrepancy of features, and distances of single quantities.

The features come from elsewhere, and never from the model under test. Letters: N, M windows, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]


def frechet_distance(real_ND: ArrayLike, other_MD: ArrayLike) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets of features (Heusel et al. 2017, arXiv 1706.08500, eq. 6), covariances over n - 1.

    The trace of the root is the sum of the singular values of A B' with S1 = A'A and S2 = B'B, so nothing complex arises and rank may be short (fewer
    windows than features); small samples raise the distance of even equal distributions, hence a floor of real against real belongs beside it.
    """
    a, b = _pair(real_ND, other_MD)
    mean = a.mean(axis=0) - b.mean(axis=0)
    a, b = (a - a.mean(axis=0)) / np.sqrt(len(a) - 1), (b - b.mean(axis=0)) / np.sqrt(len(b) - 1)
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(0.0, mean @ mean + (a**2).sum() + (b**2).sum() - 2 * root))


def mmd2(real_ND: ArrayLike, other_MD: ArrayLike, *, gamma: float | None = None) -> float:
    """Squared maximum mean discrepancy under exp(-gamma |x - y|^2), unbiased (Gretton et al. 2012, JMLR 13:723, eq. 3), so it may be below 0.

    gamma by default is 1 over the median squared distance within the real windows (`median_gamma`).
    """
    a, b = _pair(real_ND, other_MD)
    gamma = median_gamma(a) if gamma is None else gamma
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    aa, bb, ab = (np.exp(-gamma * squared_distances(x, y)) for x, y in ((a, a), (b, b), (a, b)))
    n, m = len(a), len(b)
    return float((aa.sum() - n) / (n * (n - 1)) + (bb.sum() - m) / (m * (m - 1)) - 2 * ab.mean())


def median_gamma(x_ND: ArrayLike) -> float:
    """1 over the median of the squared distances between different rows; 1 where they are all the same."""
    x = np.asarray(x_ND, dtype=np.float64)
    middle = float(np.median(squared_distances(x, x)[np.triu_indices(len(x), 1)]))
    return 1 / middle if middle > 0 else 1.0


def squared_distances(a_ND: Float, b_MD: Float) -> Float:
    """|a_i - b_j|^2, (N, M), of rows shifted to the common mean, where rounding is least."""
    middle = (a_ND.sum(axis=0) + b_MD.sum(axis=0)) / (len(a_ND) + len(b_MD))
    a, b = a_ND - middle, b_MD - middle
    out = np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T, 0.0)
    if a_ND is b_MD:
        np.fill_diagonal(out, 0.0)
    return out


def ks_distance(a_N: ArrayLike, b_M: ArrayLike) -> float:
    """Largest difference of the two distribution functions (Kolmogorov and Smirnov), 0 to 1, over known values; NaN where a side has none."""
    a, b = (np.sort(x[np.isfinite(x)]) for x in (np.asarray(a_N, dtype=np.float64).ravel(), np.asarray(b_M, dtype=np.float64).ravel()))
    if not len(a) or not len(b):
        return float("nan")
    at = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, at, side="right") / len(a) - np.searchsorted(b, at, side="right") / len(b)).max())


def standardised(reference_ND: ArrayLike, *others: ArrayLike) -> list[Float]:
    """All sets on one footing: unknown entries take the reference's median, then mean 0 and deviation 1 of the reference, each feature on its own.

    Features that are unknown or constant throughout the reference are left out. Returns the reference and the others.
    """
    reference = np.asarray(reference_ND, dtype=np.float64)
    known = np.isfinite(reference)
    some_D = known.any(axis=0)
    middle_D = np.zeros(reference.shape[1])
    middle_D[some_D] = np.nanmedian(np.where(known, reference, np.nan)[:, some_D], axis=0)
    filled = np.where(known, reference, middle_D)
    deviation_D = filled.std(axis=0)
    kept_D = some_D & (deviation_D > 1e-9 * np.maximum(1.0, np.abs(middle_D)))
    if not kept_D.any():
        raise ValueError("every feature is unknown or constant over the real windows: give more windows or other features")
    mean_D, out = filled.mean(axis=0), []
    for x_ND in (reference, *others):
        x_ND = np.asarray(x_ND, dtype=np.float64)
        x_ND = np.where(np.isfinite(x_ND), x_ND, middle_D)
        out.append(((x_ND - mean_D) / np.where(kept_D, deviation_D, 1.0))[:, kept_D])
    return out


def compared(real_ND: ArrayLike, sets: Mapping[str, ArrayLike]) -> dict[str, dict[str, float]]:
    """FID and unbiased MMD^2 of each set to the real windows, features put on one footing, one kernel for all."""
    real, *others = standardised(real_ND, *sets.values())
    gamma = median_gamma(real)
    return {name: {"FID": frechet_distance(real, x), "MMD2": mmd2(real, x, gamma=gamma)} for name, x in zip(sets, others, strict=True)}


def distribution_distances(names: Sequence[str], real_NF: ArrayLike, sets: Mapping[str, ArrayLike]) -> dict[str, dict[str, float]]:
    """The Kolmogorov-Smirnov distance of each named quantity to the real windows, by set; NaN where a side never has it."""
    real = np.asarray(real_NF, dtype=np.float64)
    return {label: {name: ks_distance(real[:, f], np.asarray(x)[:, f]) for f, name in enumerate(names)} for label, x in sets.items()}


def halves(clusters_N: ArrayLike, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows in two halves of about the same size that share no subject where there are several, else at random."""
    clusters_N = np.asarray(clusters_N)
    rng = np.random.default_rng(seed)
    names, cluster_N = np.unique(clusters_N, return_inverse=True)
    if len(names) < 2:
        order = rng.permutation(len(clusters_N))
        return np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    size_S = np.bincount(cluster_N.ravel())
    first_S, load = np.zeros(len(names), bool), [0, 0]
    for s in sorted(rng.permutation(len(names)).tolist(), key=lambda s: -size_S[s]):
        side = int(load[0] > load[1])
        first_S[s], load[side] = side == 0, load[side] + size_S[s]
    mine = first_S[cluster_N.ravel()]
    return np.flatnonzero(mine), np.flatnonzero(~mine)


def same_spectrum_noise(x_NCT: ArrayLike, seed: int = 0) -> Float:
    """Gaussian noise with each window's own amplitude spectrum and level, phases drawn anew: no shape is left (Theiler et al. 1992, Physica D 58:77)."""
    x = np.asarray(x_NCT, dtype=np.float64)
    spectrum = np.fft.rfft(x, axis=2)
    phase = np.exp(2j * np.pi * np.random.default_rng(seed).uniform(size=spectrum.shape))
    phase[..., 0] = 1
    if x.shape[2] % 2 == 0:
        phase[..., -1] = 1
    return np.fft.irfft(np.abs(spectrum) * np.where(np.arange(spectrum.shape[2]) == 0, np.sign(spectrum.real), phase), x.shape[2], axis=2)


def white_noise(x_NCT: ArrayLike, seed: int = 0) -> Float:
    """Independent normal samples of each channel's own mean and deviation."""
    x = np.asarray(x_NCT, dtype=np.float64)
    return x.mean(axis=2, keepdims=True) + x.std(axis=2, keepdims=True) * np.random.default_rng(seed).normal(size=x.shape)


def _pair(real_ND: ArrayLike, other_MD: ArrayLike) -> tuple[Float, Float]:
    a, b = np.asarray(real_ND, dtype=np.float64), np.asarray(other_MD, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (windows, features) of one width, got {a.shape} and {b.shape}")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"each side needs at least 2 windows, got {len(a)} and {len(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features must be finite: fill or leave out what is unknown first (`standardised` does)")
    return a, b
