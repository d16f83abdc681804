"""PaPaGei-S on PPG: windows of like pulse shape attract each other, two heads tell shape and quality. 10 s at 125 Hz.

For PaPaGei-P: --objective patient_contrastive --model.n-experts 0 --model.projection
"""

from __future__ import annotations

from typing import Literal

from compose import Cohort, PretrainConfig, ReadOut, fast_precision
from physio_models.objectives.papagei import PapageiMorphology
from physio_models.papagei import PapageiConfig
from physio_train import FitConfig


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """tiny: seconds; fast: a network of twelve blocks for minutes on two cores; reference: the published network, batch and length.

    The original: Adam at 1e-4 without decay or schedule, 8 x 128 windows a step, 10,000 steps.
    """
    n_subjects = {"tiny": 30, "fast": 200, "reference": 4000}[size]
    minutes = {"tiny": 1.0, "fast": 4.0, "reference": 10.0}[size]
    n_steps = {"tiny": 10, "fast": 400, "reference": 10_000}[size]
    published = size == "reference"
    return PretrainConfig(
        cohort=Cohort(corpus="synthetic", window_s=10.0, hop_s=10.0, fs=125.0, band=(0.5, 12.0), options={"n_subjects": n_subjects, "minutes": minutes}),
        model=PapageiConfig.preset(size, n_samples=1250),
        objective=PapageiMorphology(),
        fit=FitConfig(
            n_steps=n_steps,
            batch_size=1024 if published else 64,
            lr=1e-4 if published else 1e-3,
            weight_decay=0.0 if published else 1e-2,
            warmup=0.0 if published else 0.05,
            schedule="constant" if published else "cosine",
            clip_norm=None if published else 1.0,
            precision=fast_precision(),
            checkpoint_every=max(1, n_steps // 4),
            validate_every=max(1, n_steps // 4),
        ),
        normalization="lead_zscore",
        probe=ReadOut(task="pvc", level="embedding", pool="mean"),
    )
