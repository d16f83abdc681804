"""Ti-MAE on ECG5000, single beats of 140 samples: give the folder of the UCR files with --cohort.root, or a prepared store with --data.

uv run apps/pretrain.py ti_mae_ecg5000 --cohort.root UCR/ECG5000

Any other folder of the archive works too, at its own length. The published port pretrains on the test file's windows without their
labels: `--use test` does that.
"""

from __future__ import annotations

from typing import Literal

from compose import Cohort, PretrainConfig, ReadOut, fast_precision
from physio_models.objectives.masked import MaskedReconstruction
from physio_models.ti_mae import TiMaeConfig
from physio_train import FitConfig


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """tiny: seconds; fast: minutes on two cores; reference: the port's 71,000 steps of 64 windows, and its loss over all samples.

    The port's schedule is one cycle: up over 30 % of the steps, then a half cosine down. Hidden points stand alone here (75 % of
    them); `--objective.patch 5` hides runs instead.
    """
    n_steps = {"tiny": 10, "fast": 1500, "reference": 71_000}[size]
    return PretrainConfig(
        cohort=Cohort(corpus="ucr", split="official"),
        model=TiMaeConfig.preset(size),
        objective=MaskedReconstruction(mask_ratio=0.75, loss_on="all" if size == "reference" else "masked"),
        fit=FitConfig(
            n_steps=n_steps,
            batch_size=16 if size == "tiny" else 64,
            lr=1e-3,
            weight_decay=1e-2,
            warmup=0.3,
            schedule="one_cycle" if size == "reference" else "cosine",
            clip_norm=1.0,
            precision=fast_precision(),
            checkpoint_every=max(1, n_steps // 5),
            validate_every=max(1, n_steps // 5),
        ),
        normalization="none",
        shift=False,
        validate_on=(),  # the archive has no third fold
        probe=ReadOut(task="class", pool="mean+max", train=("train",), test=("test",)),
    )
