"""CWT-MAE's PPG-ECG contrast: one tower, reconstruction first, then contrast, then mostly contrast; 10 s at 100 Hz.

The original's corpus of watches is not public; this takes the built-in cohort, or with --data any store of two channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from compose import PretrainConfig
from physio_models.cwt_mae import CwtMaePairConfig
from physio_models.objectives.paired_contrastive import PairedContrastive
from recipes import cwt_mae_v3


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """tiny: seconds; fast: a small network for minutes on two cores; reference: the original's network, stages and training.

    Cohort, fit and read-out are those of `cwt_mae_v3`. The shorter sizes give each stage a larger share of the run: the original's
    4 and 10 of 200 epochs would be a few steps.
    """
    objective = PairedContrastive() if size == "reference" else PairedContrastive(stages=(0.2, 0.5))
    return replace(cwt_mae_v3.recipe(size), model=CwtMaePairConfig.preset(size, n_samples=1000), objective=objective)
