"""ST-MEM: stretches of single leads as tokens, three quarters of them hidden in each lead on its own.

Without --data the built-in corpus serves, which has one ECG lead and a PPG; a store of 12 leads takes its place with --data.
"""

from __future__ import annotations

from typing import Literal

from compose import Cohort, PretrainConfig, ReadOut, fast_precision
from physio_models.objectives.masked import MaskedReconstruction
from physio_models.st_mem import StMemConfig
from physio_train import FitConfig


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """tiny: seconds; fast: minutes on two cores; reference: the published size and the original's settings (batch 256, AdamW 3e-4, cosine, clip 1).

    The original trains for 100 epochs: with a store of your own give --fit.n-steps None --fit.n-epochs 100.
    """
    fs = 250.0 if size == "reference" else 100.0
    n_subjects, minutes = {"tiny": (24, 0.5), "fast": (120, 3.0), "reference": (4000, 10.0)}[size]
    n_steps = {"tiny": 10, "fast": 400, "reference": 300_000}[size]
    return PretrainConfig(
        cohort=Cohort(
            corpus="synthetic",
            leads=("ECG", "PPG"),
            window_s=10.0,
            hop_s=10.0,
            fs=fs,
            band=(0.5, 40.0),
            options={"signal": "both", "n_subjects": n_subjects, "minutes": minutes},
        ),
        model=StMemConfig.preset(size, n_channels=2, n_samples=round(10 * fs)),
        objective=MaskedReconstruction(mask_ratio=0.75),
        fit=FitConfig(
            n_steps=n_steps,
            batch_size=16 if size == "tiny" else 256 if size == "reference" else 64,
            lr=3e-4 if size == "reference" else 1e-3,
            betas=(0.9, 0.95),
            weight_decay=1e-2,
            warmup=0.1,
            schedule="cosine",
            clip_norm=1.0,
            precision=fast_precision(),
            checkpoint_every=max(1, n_steps // 4),
            validate_every=max(1, n_steps // 4),
        ),
        normalization="lead_zscore",
        probe=ReadOut(task="pvc"),
    )
