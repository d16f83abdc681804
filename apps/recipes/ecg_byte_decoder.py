"""A causal transformer over ECG-Byte tokens: the next token of a recording, lead after lead.

Without --data the built-in corpus serves, whose one ECG lead is read; a store of 12 leads takes its place with --data. The tokenizer is trained on the
training windows, or given with --tokenizer; the run keeps it.
"""

from __future__ import annotations

from typing import Literal

from compose import Cohort, PretrainConfig, ReadOut, fast_precision
from physio_models.decoder import TokenDecoderConfig
from physio_models.objectives.autoregressive import Autoregressive
from physio_train import FitConfig
from tokens import Tokens


def recipe(size: Literal["tiny", "fast", "reference"] = "fast") -> PretrainConfig:
    """tiny: seconds; fast: minutes on two cores; reference: the original's network, 2048 tokens of a vocabulary of 10,259, batch 128.

    `--model.head-depth 4 --normalization lead_zscore` adds the flow-matching signal head; `--weights RUN --model.freeze-decoder` trains it alone on
    a decoder that RUN trained. Tokens are always of the signal as it is stored.
    """
    fs = 250.0 if size == "reference" else 100.0
    n_subjects, minutes = {"tiny": (24, 0.5), "fast": (120, 3.0), "reference": (4000, 10.0)}[size]
    n_steps = {"tiny": 10, "fast": 400, "reference": 90_000}[size]
    return PretrainConfig(
        cohort=Cohort(
            corpus="synthetic",
            leads=("ECG",),
            window_s=10.0,
            hop_s=10.0,
            fs=fs,
            band=(0.5, 40.0),
            options={"signal": "ecg", "n_subjects": n_subjects, "minutes": minutes},
        ),
        model=TokenDecoderConfig.preset(size, n_channels=1, n_samples=round(10 * fs), n_positions={"tiny": 768, "fast": 1024, "reference": 2048}[size]),
        tokens=Tokens(merges={"tiny": 60, "fast": 1000, "reference": 10_000}[size], windows={"tiny": 64, "fast": 2048, "reference": 200_000}[size]),
        objective=Autoregressive(),
        fit=FitConfig(
            n_steps=n_steps,
            batch_size=128 if size == "reference" else 16,
            lr=3e-4 if size == "reference" else 1e-3,
            betas=(0.9, 0.95),
            weight_decay=5e-2,
            warmup=0.1,
            schedule="cosine",
            clip_norm=1.0,
            precision=fast_precision(),
            checkpoint_every=max(1, n_steps // 4),
            validate_every=max(1, n_steps // 4),
        ),
        normalization="none",
        probe=ReadOut(task="pvc"),
    )
