"""MERL on 12-lead ECG with reports: give the prepared store with --data, or the corpus's folder with --cohort.root, and a --language-model."""

from __future__ import annotations

from typing import Literal

from compose import Cohort, PretrainConfig, ReadOut, fast_precision
from physio_models.merl import MerlConfig
from physio_models.objectives.merl import MerlAlignment
from physio_train import FitConfig


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """tiny: seconds; fast: 18 layers at 100 Hz for minutes on two cores; reference: ResNet-1d-101 at 250 Hz, 4 x 64 windows a step, 100 epochs.

    ``--model.text-width`` is the language model's: 768 of ncbi/MedCPT-Query-Encoder, which the published network read.
    """
    fs = 250.0 if size == "reference" else 100.0
    n_steps = {"tiny": 10, "fast": 300, "reference": None}[size]
    return PretrainConfig(
        cohort=Cohort(corpus="ptbxl", window_s=10.0, hop_s=10.0, fs=fs, split="official"),
        model=MerlConfig.preset(size, n_samples=round(10 * fs)),
        objective=MerlAlignment(),
        fit=FitConfig(
            n_steps=n_steps,
            n_epochs=100 if size == "reference" else None,
            batch_size=256 if size == "reference" else 64,
            lr=3e-4 if size == "reference" else 1e-3,
            betas=(0.9, 0.95),
            weight_decay=1e-2,
            warmup=0.1,
            schedule="cosine",
            clip_norm=1.0,
            precision=fast_precision(),
            checkpoint_every=None if n_steps is None else max(1, n_steps // 4),
            validate_every=None if n_steps is None else max(1, n_steps // 4),
        ),
        normalization="lead_zscore",
        shift=False,  # a record is one window
        language_model="ncbi/MedCPT-Query-Encoder",
        probe=ReadOut(task="superclass", level="projected", pool="mean"),
    )
