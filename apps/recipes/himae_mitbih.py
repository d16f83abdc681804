"""HiMAE on MIT-BIH, lead MLII, 10 s at 100 Hz: give the prepared store with --data, or the records' folder with --cohort.root."""

from __future__ import annotations

from typing import Literal

from compose import Cohort, PretrainConfig, ReadOut
from physio_models.himae import HiMaeConfig
from physio_models.objectives.masked import MaskedReconstruction
from physio_train import FitConfig


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """tiny: seconds; fast: the five published levels for minutes on two cores; reference: the same for longer."""
    n_steps = {"tiny": 10, "fast": 400, "reference": 4000}[size]
    return PretrainConfig(
        cohort=Cohort(corpus="mitbih", leads=("MLII",), window_s=10.0, hop_s=10.0, fs=100.0, band=(0.5, 40.0), split="official"),
        model=HiMaeConfig.preset("tiny" if size == "tiny" else "reference", n_samples=1000),
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
            checkpoint_every=max(1, n_steps // 4),
            validate_every=max(1, n_steps // 4),
        ),
        normalization="instance_minmax",
        probe=ReadOut(task="pvc", train=("train",), test=("test",)),
    )
