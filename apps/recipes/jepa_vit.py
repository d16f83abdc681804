"""JEPA on a ViT: the features of hidden spans, as a slowly following teacher sees them.

Without --data the built-in corpus serves, which has one ECG lead and a PPG; a store of 12 leads takes its place with --data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from compose import PretrainConfig
from physio_models.objectives.jepa import Jepa
from physio_models.vit import VitConfig
from recipes import mae_vit


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """The recipe `mae_vit`, in each size, with this network and objective; reference: a ViT-B over 100-sample patches."""
    base = mae_vit.recipe(size)
    model = VitConfig.preset(size, n_channels=2, n_samples=base.model.n_samples)
    return replace(base, model=model, objective=Jepa() if size == "reference" else Jepa(predictor_width=64, momentum=(0.99, 1.0)))
