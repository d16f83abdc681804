"""DiT trained to guess the way from noise to data (rectified flow).

Without --data the built-in corpus serves, which has one ECG lead and a PPG; a store of 12 leads takes its place with --data.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from compose import PretrainConfig
from physio_models.objectives.rectified_flow import RectifiedFlow
from recipes import dit_ddpm


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """The recipe `dit_ddpm`, in each size, with this objective."""
    return replace(dit_ddpm.recipe(size), objective=RectifiedFlow())
