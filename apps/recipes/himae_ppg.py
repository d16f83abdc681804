"""HiMAE on the built-in PPG cohort: 10 s at 25 Hz. The main job of a fresh clone, minutes on two cores."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from compose import Cohort, PretrainConfig, ReadOut, fast_precision
from physio_models.himae import HiMaeConfig
from physio_models.objectives.masked import MaskedReconstruction
from physio_train import FitConfig


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """tiny: seconds; fast: minutes on two cores; reference: the published network's size and training length.

    Z-scored windows and a linear output; `--normalization instance_minmax --model.output tanh` are the published pair.
    """
    n_subjects = {"tiny": 30, "fast": 400, "reference": 4000}[size]
    minutes = {"tiny": 1.0, "fast": 4.0, "reference": 10.0}[size]
    n_steps = {"tiny": 20, "fast": 1200, "reference": 30_000}[size]
    return PretrainConfig(
        cohort=Cohort(corpus="synthetic", window_s=10.0, hop_s=10.0, fs=25.0, options={"n_subjects": n_subjects, "minutes": minutes}),
        model=replace(HiMaeConfig.preset(size, n_samples=250), output="linear"),
        objective=MaskedReconstruction(patch=5, mask_ratio=0.8),
        fit=FitConfig(
            n_steps=n_steps,
            batch_size=64,
            lr=2e-3,
            betas=(0.9, 0.99),
            weight_decay=1e-2,
            warmup=0.05,
            schedule="cosine",
            clip_norm=1.0,
            precision=fast_precision(),
            checkpoint_every=max(1, n_steps // 6),
            validate_every=max(1, n_steps // 6),
        ),
        normalization="lead_zscore",
        probe=ReadOut(task="pvc"),
    )
