"""Ti-MAE on Mamba-2 on ECG5000, single beats of 140 samples: give the folder of the UCR files with --cohort.root, or a prepared store with --data.

uv run apps/pretrain.py ti_mae_mamba_ecg5000 --cohort.root UCR/ECG5000

Any other folder of the archive works too, at its own length. The published port pretrains on the test file's windows without their
labels: `--use test` does that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from compose import PretrainConfig
from physio_models.ti_mae_mamba import TiMaeMambaConfig
from recipes import ti_mae_ecg5000


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """The recipe `ti_mae_ecg5000`, in each size, with its network on Mamba-2; fast: two thirds of its steps, since one takes four times as long."""
    base = ti_mae_ecg5000.recipe(size)
    fit = replace(base.fit, n_steps=1000, checkpoint_every=200, validate_every=200) if size == "fast" else base.fit
    return replace(base, model=TiMaeMambaConfig.preset(size), fit=fit)
