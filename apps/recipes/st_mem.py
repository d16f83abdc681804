"""ST-MEM: stretches of single leads as tokens, three quarters of them hidden in each lead on its own.

Without --data the built-in corpus serves, which has one ECG lead and a PPG; a store of 12 leads takes its place with --data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from compose import PretrainConfig
from physio_models.st_mem import StMemConfig
from recipes import mae_vit


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """The recipe `mae_vit`, in each size, with this network."""
    base = mae_vit.recipe(size)
    return replace(base, model=StMemConfig.preset(size, n_channels=2, n_samples=base.model.n_samples))
