"""CWT-MAE version 3 on ECG and PPG together: scalogram and waveform under hidden columns, 10 s at 100 Hz.

The original's corpus of watches is not public; this takes the built-in cohort, or with --data any store (the network takes its channels).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from compose import Cohort, PretrainConfig, ReadOut, fast_precision
from physio_models.cwt_mae import CwtMaeConfig
from physio_models.objectives.dual_domain import DualDomain
from physio_train import FitConfig


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """tiny: seconds; fast: a small network for minutes on two cores; reference: the original's network and training (142 million parameters).

    The original also decays norms and biases, and ends at a rate of 1e-6 where ours ends at 0. Its linear scales stand in the reference
    size; the smaller ones have theirs spaced by ratio from 0.5 to 40 Hz.
    """
    n_subjects = {"tiny": 20, "fast": 200, "reference": 4000}[size]
    minutes = {"tiny": 1.0, "fast": 4.0, "reference": 10.0}[size]
    n_steps = {"tiny": 10, "fast": 400, "reference": None}[size]
    model = CwtMaeConfig.preset(size, n_channels=2, n_samples=1000)
    return PretrainConfig(
        cohort=Cohort(
            corpus="synthetic",
            leads=("PPG", "ECG"),
            window_s=10.0,
            hop_s=10.0,
            fs=100.0,
            band=(0.5, 40.0),
            options={"signal": "both", "n_subjects": n_subjects, "minutes": minutes},
        ),
        model=replace(model, attention_residuals=size == "reference"),
        objective=DualDomain(),
        fit=FitConfig(
            n_steps=n_steps,
            n_epochs=200 if n_steps is None else None,
            batch_size={"tiny": 16, "fast": 32, "reference": 360}[size],
            lr=1.5e-4 * 360 / 256 if size == "reference" else 1e-3,
            weight_decay=0.05,
            decay_all=size == "reference",
            warmup=0.05,
            schedule="cosine",
            clip_norm=3.0,
            precision=fast_precision(),
            checkpoint_every=None if n_steps is None else max(1, n_steps // 5),
            validate_every=None if n_steps is None else max(1, n_steps // 5),
        ),
        normalization="lead_zscore",
        probe=ReadOut(task="pvc", level="block4" if size == "fast" else "all", pool="mean+std"),
    )
