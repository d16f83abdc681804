"""What a sparse autoencoder must beat: PCA, ICA, NMF, k-means and a random dictionary, each cut to the same number of active components.

N rows, d width, m components. Every baseline offers `encode`, `decode` and `dictionary_KD` as `Sae` does, in the embedding's units.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Baseline = Literal["pca", "ica", "nmf", "kmeans", "random"]


class Fitted:
    """A fitted baseline: `encode(z_ND) -> (N, m)` with at most `l0` entries not zero in a row, `decode(codes_Nm) -> (N, d)`, `dictionary_KD` (m, d)."""

    name: Baseline
    l0: int
    dictionary_KD: np.ndarray

    def encode(self, z_ND: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def decode(self, codes_NM: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def fit_baseline(name: Baseline, z_ND: np.ndarray, *, n_components: int, l0: int, seed: int = 0) -> Fitted:
    """Fit a baseline on training rows, to be read with the `l0` largest scores of each row."""
    raise NotImplementedError
