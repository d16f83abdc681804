"""What a sparse autoencoder must beat: PCA, ICA, NMF, k-means and a random dictionary, each cut to the same number of active components.

N rows, d width, m components. Every baseline offers `encode`, `decode` and `dictionary_KD` as `Sae` does, in the embedding's units;
codes of PCA, ICA, k-means and random are signed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy import sparse

Baseline = Literal["pca", "ica", "nmf", "kmeans", "random"]
ICA_COMPONENTS = 256
ROWS_AT_ONCE = 1024
NMF_ROUNDS = 200  # multiplicative updates of a fit, and of every encode


Refit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(z (N, d), the components kept (N, l0), the cut scores (N, m)) -> codes (N, m) that reconstruct best on those components."""


@dataclass(frozen=True)
class Fitted:
    """A fitted baseline: z is about `offset_D + codes @ dictionary_KD`; `encode` keeps the `l0` entries of a row that weigh most."""

    name: Baseline
    l0: int
    dictionary_KD: np.ndarray
    offset_D: np.ndarray
    scores: Callable[[np.ndarray], np.ndarray]

    def encode(self, z_ND: np.ndarray) -> np.ndarray:
        """Codes (N, m) float32, at most `l0` of a row not zero."""
        z_ND = _checked(z_ND, self.dictionary_KD.shape[1])
        return np.concatenate([self.scores(z_ND[i : i + ROWS_AT_ONCE]) for i in range(0, len(z_ND), ROWS_AT_ONCE)]).astype(np.float32)

    def decode(self, codes_NM: np.ndarray | sparse.sparray) -> np.ndarray:
        """Embeddings (N, d) float32 of codes, an array or a SciPy sparse array."""
        return (codes_NM @ self.dictionary_KD + self.offset_D).astype(np.float32)


def fit_baseline(name: Baseline, z_ND: np.ndarray, *, n_components: int, l0: int, seed: int = 0, max_rows: int = 100_000) -> Fitted:
    """Fit a baseline on training rows (at most `max_rows`, drawn at random), read with `l0` active components a row.

    pca, ica, nmf: the scores that weigh most, |score| x length of the component, at most d components (ica also at most 256); components of ica and nmf are
    not orthogonal, so the scores kept are fitted again on those alone. nmf: of z where z is never negative, else of [z+, z-] side by side, by
    multiplicative updates (Lee and Seung 2001). kmeans and random: directions of the centroids, or at random,
    as atoms chosen greedily (matching pursuit, each atom once, then least squares on the chosen). ValueError where a value is not finite or
    `n_components` or `l0` exceed what the rows allow.
    """
    if name not in get_args(Baseline):
        raise ValueError(f"name must be one of {', '.join(get_args(Baseline))}, got {name!r}")
    z_ND = _checked(z_ND, np.shape(z_ND)[-1]).astype(np.float64)
    if len(z_ND) > max_rows:
        z_ND = z_ND[np.sort(np.random.default_rng(seed).choice(len(z_ND), max_rows, replace=False))]
    if not 1 <= n_components <= (len(z_ND) if name != "random" else n_components):
        raise ValueError(f"n_components must lie between 1 and the {len(z_ND)} training rows, got {n_components}")
    if l0 < 1:
        raise ValueError(f"l0 must be at least 1, got {l0}")
    return FITS[name](z_ND, n_components, l0, seed)


def _pca(z_ND: np.ndarray, m: int, l0: int, seed: int) -> Fitted:
    from sklearn.decomposition import PCA

    found = PCA(min(m, *z_ND.shape), random_state=seed).fit(z_ND)
    atoms_MD = found.components_
    return _linear("pca", l0, atoms_MD, found.mean_, lambda z: (z - found.mean_) @ atoms_MD.T)


def _ica(z_ND: np.ndarray, m: int, l0: int, seed: int) -> Fitted:
    import warnings

    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    rank = int(np.linalg.matrix_rank(z_ND - z_ND.mean(0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the rotation after max_iter is as good a baseline
        found = FastICA(min(m, rank, ICA_COMPONENTS), whiten="unit-variance", max_iter=200, tol=1e-3, random_state=seed).fit(z_ND)
    atoms_MD, gram_MM = found.mixing_.T, found.mixing_.T @ found.mixing_

    def refitted(z: np.ndarray, chosen_NL: np.ndarray, _: np.ndarray) -> np.ndarray:
        return _on_support((z - found.mean_) @ atoms_MD.T, chosen_NL, gram_MM)

    return _linear("ica", l0, atoms_MD, found.mean_, lambda z: (z - found.mean_) @ found.components_.T, refitted)


def _nmf(z_ND: np.ndarray, m: int, l0: int, seed: int) -> Fitted:
    import warnings

    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    signed, d = bool((z_ND < 0).any()), z_ND.shape[1]

    def parts(z: np.ndarray) -> np.ndarray:
        return (np.concatenate([z.clip(min=0), (-z).clip(min=0)], axis=1) if signed else z.clip(min=0)).astype(np.float32)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = NMF(min(m, *parts(z_ND[:1]).shape[1:]), init="nndsvda", solver="mu", max_iter=NMF_ROUNDS, random_state=seed)
        atoms_MP = start.fit(parts(z_ND)).components_.astype(np.float32)
    gram_MM = atoms_MP @ atoms_MP.T

    def updated(z: np.ndarray, code_NM: np.ndarray | None = None) -> np.ndarray:
        """The same updates with the components held: a window's code does not depend on the others, and what is 0 stays 0."""
        target_NM = parts(z) @ atoms_MP.T
        if code_NM is None:
            code_NM = np.repeat(target_NM.sum(1, keepdims=True) / np.maximum(gram_MM.sum(), 1e-12), len(gram_MM), axis=1)
        for _ in range(NMF_ROUNDS):
            code_NM = code_NM * target_NM / np.maximum(code_NM @ gram_MM, 1e-12)
        return code_NM

    atoms_MD = atoms_MP[:, :d] - (atoms_MP[:, d:] if signed else 0)
    return _linear("nmf", l0, atoms_MD, np.zeros(d), updated, lambda z, _, code_NM: updated(z, code_NM))


def _kmeans(z_ND: np.ndarray, m: int, l0: int, seed: int) -> Fitted:
    from sklearn.cluster import MiniBatchKMeans

    mean_D = z_ND.mean(0)
    centre_MD = MiniBatchKMeans(m, random_state=seed, n_init=1, batch_size=max(1024, 2 * m)).fit(z_ND - mean_D).cluster_centers_
    length_M1 = np.linalg.norm(centre_MD, axis=1, keepdims=True)
    return _greedy("kmeans", l0, (centre_MD / np.maximum(length_M1, 1e-12))[length_M1[:, 0] > 1e-12], mean_D)


def _random(z_ND: np.ndarray, m: int, l0: int, seed: int) -> Fitted:
    atoms_MD = np.random.default_rng(seed).standard_normal((m, z_ND.shape[1]))
    return _greedy("random", l0, atoms_MD / np.linalg.norm(atoms_MD, axis=1, keepdims=True), z_ND.mean(0))


def _linear(
    name: Baseline, l0: int, atoms_MD: np.ndarray, mean_D: np.ndarray, scores: Callable[[np.ndarray], np.ndarray], refit: Refit | None = None
) -> Fitted:
    length_M = np.linalg.norm(atoms_MD, axis=1)

    def kept(z_ND: np.ndarray) -> np.ndarray:
        z_ND = z_ND.astype(np.float64)
        score_NM = scores(z_ND)
        if l0 >= score_NM.shape[1]:
            return score_NM
        chosen_NL = np.argpartition(-np.abs(score_NM) * length_M, l0 - 1, axis=1)[:, :l0]
        out = np.zeros_like(score_NM)
        np.put_along_axis(out, chosen_NL, np.take_along_axis(score_NM, chosen_NL, 1), 1)
        return out if refit is None else refit(z_ND, chosen_NL, out)

    return Fitted(name, l0, atoms_MD, mean_D, kept)


def _on_support(start_NM: np.ndarray, chosen_NL: np.ndarray, gram_MM: np.ndarray) -> np.ndarray:
    """Least squares on the chosen atoms of each row: codes (N, m) from the inner products with all atoms and the atoms' Gram matrix."""
    sub_NLL = gram_MM[chosen_NL[:, :, None], chosen_NL[:, None, :]].astype(np.float64)
    sub_NLL += 1e-8 * np.diagonal(sub_NLL, axis1=1, axis2=2).max(1)[:, None, None] * np.eye(chosen_NL.shape[1])
    value_NL = np.linalg.solve(sub_NLL, np.take_along_axis(start_NM, chosen_NL, 1).astype(np.float64)[..., None])[..., 0]
    out = np.zeros_like(start_NM)
    np.put_along_axis(out, chosen_NL, value_NL.astype(start_NM.dtype), 1)
    return out


def _greedy(name: Baseline, l0: int, atoms_MD: np.ndarray, mean_D: np.ndarray) -> Fitted:
    gram_MM = (atoms_MD @ atoms_MD.T).astype(np.float32)
    l0 = min(l0, len(atoms_MD), atoms_MD.shape[1])

    def pursued(z_ND: np.ndarray) -> np.ndarray:
        start_NM = ((z_ND - mean_D) @ atoms_MD.T).astype(np.float32)
        left_NM, rows = start_NM.copy(), np.arange(len(z_ND))
        chosen_NL, size_NM = np.empty((len(z_ND), l0), np.int64), np.empty_like(left_NM)
        for step in range(l0):
            np.abs(left_NM, out=size_NM)
            size_NM[rows[:, None], chosen_NL[:, :step]] = -1
            chosen_NL[:, step] = best_N = size_NM.argmax(1)
            left_NM -= left_NM[rows, best_N][:, None] * gram_MM[best_N]
        return _on_support(start_NM, chosen_NL, gram_MM)

    return Fitted(name, l0, atoms_MD, mean_D, pursued)


def _checked(z_ND: np.ndarray, width: int) -> np.ndarray:
    z_ND = np.asarray(z_ND)
    if z_ND.ndim != 2 or z_ND.shape[1] != width:
        raise ValueError(f"z_ND must be (N, {width}), got {z_ND.shape}")
    if not np.isfinite(z_ND).all():
        raise ValueError("z_ND has values that are not finite: leave such windows out first")
    return z_ND


FITS: Mapping[str, Callable[[np.ndarray, int, int, int], Fitted]] = {"pca": _pca, "ica": _ica, "nmf": _nmf, "kmeans": _kmeans, "random": _random}
