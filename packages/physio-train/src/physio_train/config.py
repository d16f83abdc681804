"""How to train: one typed config that checks itself. What is said once here is read by the loop, the optimiser and the apps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from physio_train.optimizer import Schedule

Precision = Literal["fp32", "bf16", "fp16"]
Optimizer = Literal["adamw", "muon", "schedule_free"]
Parallel = Literal["ddp", "fsdp"]
Sdpa = Literal["auto", "flash", "efficient", "cudnn", "math"]
_CHOICES = {"schedule": Schedule, "precision": Precision, "optimizer": Optimizer, "parallel": Parallel, "sdpa": Sdpa}
CHANGEABLE = (
    "n_steps",
    "n_epochs",
    "checkpoint_every",
    "validate_every",
    "validate_items",
    "patience",
    "keep_last",
    "check_every",
    "parallel",
    "timeout_s",
    "peak_flops",
)
"""Keys of `FitConfig` that may differ when a run is resumed."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train. Counts are of optimiser steps and of windows over all ranks."""

    n_steps: int | None = None  # optimiser steps in all; or give n_epochs
    n_epochs: float | None = None  # passes over the rows in all, rounded to steps
    batch_size: int = 64  # windows per optimiser step, all ranks and micro-batches together
    optimizer: Optimizer = "adamw"
    lr: float = 1e-3  # peak learning rate
    lr_batch: int | None = None  # lr is meant for this batch size and grows with batch_size in proportion; None takes lr as it stands
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2  # of matrices and kernels; norms, biases, embeddings, tokens and state-space parameters have none
    decay_all: bool = False  # True decays every parameter, as HiMAE did
    layer_decay: float | None = None  # learning rate of each layer as a fraction of the one above it; None: all alike
    momentum: float = 0.95  # of muon
    nesterov: bool = True  # of muon
    newton_schulz: int = 5  # iterations of muon
    adamw_lr_ratio: float = 0.1  # of muon: the learning rate of what AdamW trains, as a fraction of lr
    warmup: float = 0.05  # fraction of the steps in which the learning rate rises
    schedule: Schedule = "cosine"
    lr_floor: float = 0.0  # fraction of the peak at which linear and cosine end
    clip_norm: float | None = 1.0  # largest norm of the whole gradient; None leaves it
    accumulate: int = 1  # micro-batches a rank's share is computed in, to save memory
    precision: Precision = "fp32"
    ema_decay: float | None = None  # None: no averaged weights
    compile: bool = False
    sdpa: Sdpa = "auto"  # the kernel of scaled-dot-product attention; auto leaves the choice to torch
    parallel: Parallel = "ddp"  # several ranks: whole weights on each, or (fsdp) weights, gradients and moments shared out
    find_unused: bool = False  # several ranks: True where a loss leaves some of the model's parameters without gradient
    timeout_s: float = 3600.0  # how long a rank waits for a silent one, seconds
    seed: int = 0
    deterministic: bool = False  # refuse operations whose result varies between runs (CUDA)
    checkpoint_every: int | None = None  # steps; None: only at the end
    validate_every: int | None = None  # steps; None: only at the end
    validate_items: int | None = None  # windows validated on, spread evenly over the fold; None takes all
    patience: int | None = None  # validations without a better loss before the run ends early; None never
    keep_last: int | None = 3  # newest checkpoints that stay; None keeps all
    check_every: int = 50  # steps between looks for NaN
    peak_flops: float | None = None  # floating-point operations a second of one rank, for the utilisation; None measures it

    def __post_init__(self) -> None:
        if (self.n_steps is None) == (self.n_epochs is None):
            raise ValueError(f"give n_steps or n_epochs, one of them; got n_steps={self.n_steps}, n_epochs={self.n_epochs}")
        self._check_ranges()
        for name, choice in _CHOICES.items():
            if (value := getattr(self, name)) not in get_args(choice):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choice))}, got {value!r}")
        if self.optimizer == "schedule_free" and (self.schedule != "constant" or self.ema_decay is not None):
            raise ValueError(
                f"optimizer='schedule_free' averages by itself: it needs schedule='constant' and ema_decay=None, got {self.schedule!r} and {self.ema_decay}"
            )
        if self.parallel == "fsdp" and self.precision == "fp16":
            raise ValueError("parallel='fsdp' has no gradient scaling: use precision='bf16' or 'fp32', or parallel='ddp'")

    def _check_ranges(self) -> None:
        counts = ("n_steps", "batch_size", "lr_batch", "newton_schulz", "accumulate", "checkpoint_every", "validate_every", "validate_items", "patience")
        for name in (*counts, "keep_last", "check_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in ("n_epochs", "lr", "eps", "clip_norm", "layer_decay", "adamw_lr_ratio", "timeout_s", "peak_flops"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        unbounded = float("inf")
        limits = (("warmup", 1.0), ("lr_floor", 1.0), ("layer_decay", 1.0), ("weight_decay", unbounded), ("ema_decay", 1.0), ("momentum", 1.0))
        for name, high in limits:
            if (value := getattr(self, name)) is not None and not 0.0 <= value <= high:
                raise ValueError(f"{name} must lie in [0, {high:g}], got {value}")
        if self.ema_decay == 1.0 or self.momentum == 1.0 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"ema_decay, momentum and betas must lie in [0, 1), got {self.ema_decay}, {self.momentum} and {self.betas}")
