"""NEPA: the embedding of the next patch, causally.

Without --data the built-in corpus serves, which has one ECG lead and a PPG; a store of 12 leads takes its place with --data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from compose import PretrainConfig
from physio_models.nepa import NepaConfig
from physio_models.objectives.nepa import NextEmbeddingPrediction
from recipes import mae_vit


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """The recipe `mae_vit` with this network and objective; reference: the original's network, a token a sample, with its uncentred loss and averaged weights.

    `--model.patch 25` makes the reference size a hundred times cheaper.
    """
    base = mae_vit.recipe(size)
    model = NepaConfig.preset(size, n_channels=2, n_samples=base.model.n_samples)
    fit = replace(base.fit, batch_size=512, ema_decay=0.999) if size == "reference" else base.fit
    return replace(base, model=model, objective=NextEmbeddingPrediction(center=size != "reference"), fit=fit)
