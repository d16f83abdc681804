"""HiMAE on MIT-BIH, lead MLII, 10 s at 100 Hz: give the prepared store with --data, or the records' folder with --cohort.root."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from compose import Cohort, PretrainConfig, ReadOut, fast_precision
from physio_models.himae import HiMaeConfig
from physio_models.objectives.masked import MaskedReconstruction
from physio_train import FitConfig


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """tiny: seconds; fast: the five published levels for minutes on two cores; reference: the same for longer.

    Z-scored input, long patches, half of them hidden, no skips and a linear output: `apps/README.md` says what was tried.
    """
    n_steps = {"tiny": 10, "fast": 375, "reference": 3750}[size]
    return PretrainConfig(
        cohort=Cohort(corpus="mitbih", leads=("MLII",), window_s=10.0, hop_s=10.0, fs=100.0, band=(0.5, 40.0), split="official"),
        model=replace(HiMaeConfig.preset("tiny" if size == "tiny" else "reference", n_samples=1000), skips=False, output="linear"),
        objective=MaskedReconstruction(patch=25, mask_ratio=0.5),
        fit=FitConfig(
            n_steps=n_steps,
            batch_size=64,
            lr=2e-3,
            betas=(0.9, 0.99),
            weight_decay=1e-3,
            warmup=0.05,
            schedule="cosine",
            clip_norm=1.0,
            precision=fast_precision(),
            checkpoint_every=max(1, n_steps // 5),
            validate_every=max(1, n_steps // 5),
        ),
        normalization="lead_zscore",
        probe=ReadOut(task="pvc", pool="peak", train=("train",), test=("test",)),
    )
