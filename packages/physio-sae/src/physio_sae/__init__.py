"""Sparse autoencoders on embeddings of physiological signals: concepts, their stability, ageing and grounding."""

from __future__ import annotations

from physio_sae.baselines import fit_baseline
from physio_sae.controller import L0Control
from physio_sae.estimator import SparseAutoencoder
from physio_sae.losses import LossConfig
from physio_sae.members import ABLATIONS, Member, ablated, grid
from physio_sae.sae import Sae, SaeConfig, load, save
from physio_sae.train import FitConfig, Progress, fit
from physio_sae.triplets import Features

__all__ = [
    "ABLATIONS",
    "Features",
    "FitConfig",
    "L0Control",
    "LossConfig",
    "Member",
    "Progress",
    "Sae",
    "SaeConfig",
    "SparseAutoencoder",
    "ablated",
    "fit",
    "fit_baseline",
    "grid",
    "load",
    "save",
]
