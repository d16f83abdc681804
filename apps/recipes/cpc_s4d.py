"""Contrastive predictive coding with an S4D encoder that reads both ways, on lead MLII of MIT-BIH: 10 s at 100 Hz.

Give the prepared store with --data, or the records' folder with --cohort.root. `--model conv_transformer` puts a small transformer in its place.
"""

from __future__ import annotations

from typing import Literal

from compose import Cohort, PretrainConfig, ReadOut, fast_precision
from physio_models.objectives.cpc import Cpc
from physio_models.s4d import S4dConfig
from physio_train import FitConfig


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """tiny: seconds; fast: two layers of 64 features over tokens of 4 samples, minutes on two cores; reference: four of 512, a token a sample."""
    n_steps = {"tiny": 10, "fast": 400, "reference": 100_000}[size]
    return PretrainConfig(
        cohort=Cohort(corpus="mitbih", leads=("MLII",), window_s=10.0, hop_s=10.0, fs=100.0, band=(0.5, 40.0), split="official"),
        model=S4dConfig.preset(size, n_channels=1, n_samples=1000),
        objective=Cpc(n_steps=12, n_anchors=16 if size == "tiny" else 32),
        fit=FitConfig(
            n_steps=n_steps,
            batch_size=16 if size == "tiny" else 32,
            lr=1e-3,
            weight_decay=1e-3,
            warmup=0.1,
            schedule="cosine",
            clip_norm=1.0,
            precision=fast_precision(),
            checkpoint_every=max(1, n_steps // 4),
            validate_every=max(1, n_steps // 4),
        ),
        normalization="lead_zscore",
        probe=ReadOut(task="pvc", train=("train",), test=("test",)),
    )
