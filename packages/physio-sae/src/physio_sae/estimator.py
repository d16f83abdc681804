"""A sparse autoencoder in the manner of scikit-learn, for arrays that are in memory: `fit`, `transform`, `inverse_transform`."""

from __future__ import annotations

from collections import deque

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from physio_sae.controller import L0Control
from physio_sae.losses import LossConfig
from physio_sae.members import Member
from physio_sae.sae import SaeConfig
from physio_sae.train import FitConfig, fit
from physio_sae.triplets import Features


class SparseAutoencoder(TransformerMixin, BaseEstimator):
    """Concepts of embeddings X (N, d).

    `loss` and `fit_config` take a `LossConfig` and a `FitConfig`; without them the losses that need neighbours or augmented views are off unless `fit`
    is given such. Fitted: `sae_` (the network), `components_` (K, d) atoms in units of x, `n_features_in_`, `loss_` (losses of the last step).
    """

    def __init__(
        self,
        n_concepts: int = 1024,
        kind: str = "topk",
        k: int = 32,
        target_l0: float | None = None,
        loss: LossConfig | None = None,
        fit_config: FitConfig | None = None,
        random_state: int = 0,
    ) -> None:
        self.n_concepts, self.kind, self.k, self.target_l0 = n_concepts, kind, k, target_l0
        self.loss, self.fit_config, self.random_state = loss, fit_config, random_state

    def fit(
        self, X: np.ndarray, y: None = None, *, groups: np.ndarray | None = None, next_row: np.ndarray | None = None, X_aug: np.ndarray | None = None
    ) -> SparseAutoencoder:
        """Learn from rows X (N, d). `groups` (N,) names patients (each row its own without it), `next_row` (N,) the row that follows or -1, `X_aug` (N, d)
        or (A, N, d) augmented embeddings. ValueError where a value is not finite or n_concepts exceeds the rows."""
        X = np.asarray(X, np.float32)
        if X.ndim != 2:
            raise ValueError(f"X must be (N, d), got {X.shape}")
        views = None if X_aug is None else np.asarray(X_aug, np.float32).reshape(-1, *X.shape)
        n = len(X)
        subject_N = np.arange(n).astype(str) if groups is None else np.asarray(groups).astype(str)
        index = {"subject": subject_N, "record": subject_N, "start_s": np.zeros(n), "fold": np.full(n, "train"), "next": np.full(n, -1)}
        if next_row is not None:
            index |= {"next": np.asarray(next_row, np.int64), "start_s": _clock(np.asarray(next_row, np.int64))}
        default = LossConfig(stab=0.1 if views is not None else 0.0, smooth=0.05 if next_row is not None else 0.0)
        sae = SaeConfig(width=X.shape[1], n_concepts=self.n_concepts, kind=self.kind, k=self.k)
        member = Member(name="sae", sae=sae, loss=self.loss or default, control=L0Control(target=self.target_l0), seed=self.random_state)
        cfg = self.fit_config or FitConfig(seed=self.random_state)
        (progress,) = deque(fit(Features(X, views, index, {}), np.arange(n), [member], cfg), maxlen=1)
        self.sae_ = progress.trainers[0].sae.eval()
        self.loss_ = progress.numbers()["sae"]
        self.components_ = self.sae_.dictionary_KD.detach().cpu().numpy()
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Codes (N, K) float32."""
        check_is_fitted(self, "sae_")
        return self.sae_.encode(np.asarray(X, np.float32)).cpu().numpy()

    def inverse_transform(self, X: np.ndarray) -> np.ndarray:
        """Embeddings (N, d) float32 of codes X (N, K)."""
        check_is_fitted(self, "sae_")
        return self.sae_.decode(np.asarray(X, np.float32)).cpu().numpy()

    def get_feature_names_out(self, input_features: None = None) -> np.ndarray:
        check_is_fitted(self, "sae_")
        return np.array([f"concept{k}" for k in range(self.n_concepts)], dtype=object)


def _clock(next_N: np.ndarray) -> np.ndarray:
    """Seconds that rise by one along every chain of followers."""
    start_s, is_first = np.zeros(len(next_N)), np.ones(len(next_N), bool)
    is_first[next_N[next_N >= 0]] = False
    for row in np.flatnonzero(is_first):
        while next_N[row] >= 0:
            start_s[next_N[row]] = start_s[row] + 1
            row = next_N[row]
    return start_s
