"""What a run costs and how its features fare, in numbers for each line of the log.

Speed: windows a second over all ranks, the share of time spent waiting for windows, model FLOPs utilisation (the
operations of forward and backward, counted once by torch, over what the hardware can do), memory. Health without labels: how
the features of fixed windows vary and how many directions they use. Shapes: B windows, D features.
"""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from physio_train import distributed
from physio_train.batches import Batch
from physio_train.config import Precision
from physio_train.loop import Objective, Progress, Step, autocast, to_device
from physio_train.streams import Streams

COLLAPSED_RANK, COLLAPSED_SPREAD = 1.5, 1e-4


class Meter:
    """Give it every step with `add`; `numbers()` says what the steps since the last call cost. Every rank must call both.

    `flops` are those of one window, forward and backward (`flops_per_window`); `peak_flops` what one rank's device can do in
    a second (`measured_peak`). Where either is None there is no utilisation.
    """

    def __init__(self, *, flops: float | None = None, peak_flops: float | None = None, device: torch.device | None = None) -> None:
        self._flops, self._peak, self._device = flops, peak_flops, device or torch.device("cpu")
        self._began, self._n_windows, self._wait_s = time.perf_counter(), 0, 0.0

    def add(self, progress: Progress) -> None:
        """Count a step in."""
        self._n_windows += progress.n_local
        self._wait_s += progress.wait_s

    def numbers(self) -> dict[str, float]:
        """`samples_per_s` (all ranks), `data_wait` (share of the time), `mfu` (share of the peak), `memory_gib` (the fullest rank's).

        Call it after `Progress.numbers()`, which has waited for the device.
        """
        now = time.perf_counter()
        spent_s, n_windows, wait_s = now - self._began, self._n_windows, self._wait_s
        self._began, self._n_windows, self._wait_s = now, 0, 0.0
        mean = torch.tensor([n_windows, wait_s / spent_s], dtype=torch.float64)
        distributed.average([mean])
        n_ranks = distributed.world().world_size
        samples_per_s = mean[0].item() * n_ranks / spent_s
        memory = max(value.item() for value in distributed.gather(torch.tensor([self._memory_gib()], dtype=torch.float64)))
        out = {"samples_per_s": samples_per_s, "data_wait": mean[1].item(), "memory_gib": memory}
        if self._flops is not None and self._peak is not None:
            out["mfu"] = samples_per_s * self._flops / (self._peak * n_ranks)
        return out

    def _memory_gib(self) -> float:
        """The most that was held at once: by the accelerator's allocator, or by the process."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**30
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def flops_per_window(model: nn.Module, objective: Objective, batch: Batch, *, seed: int = 0, precision: Precision = "fp32") -> float:
    """Floating-point operations of one window, forward and backward, as torch counts them (matrix products, convolutions, attention).

    Counted on copies; weights, running statistics and random states stay as they are. Under several ranks all must call it.
    """
    model = copy.deepcopy(distributed.unwrap(model)).train()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        modules = objective.modules(model).to(device)
        step = Step(modules, 0.0, Streams(seed, int(batch["epoch"]), device))
        with FlopCounterMode(display=False) as counted:
            with autocast(precision, device):
                loss = objective(model, to_device(batch, device), step)
            loss.total.backward()
    return counted.get_total_flops() / len(batch["index"])


def measured_peak(device: torch.device, precision: Precision = "fp32", *, side: int | None = None, seconds: float = 0.2) -> float:
    """Floating-point operations a second of square matrix products in a precision on this device: what utilisation is a share of."""
    side = side or (8192 if device.type == "cuda" else 1024)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    wait: Callable[[], Any] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    best, began = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        a @ b
        wait()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def feature_health(z_BD: Tensor) -> dict[str, float]:
    """How features of some windows vary: `feature_std`, the mean over features, and `effective_rank`, from 1 to min(B - 1, D).

    The effective rank is exp of the entropy of the singular values of the centred features, taken as shares (Roy and
    Vetterli, "The effective rank", 2007). ValueError for fewer than two windows.
    """
    if z_BD.ndim != 2 or len(z_BD) < 2:
        raise ValueError(f"z_BD must be features of two windows or more, (B, D), got shape {tuple(z_BD.shape)}")
    centred_BD = z_BD.double() - z_BD.double().mean(0)
    values = torch.linalg.svdvals(centred_BD)
    total = values.sum()
    share = values / total.clamp(min=torch.finfo(torch.float64).tiny)
    entropy = -(share * share.clamp(min=torch.finfo(torch.float64).tiny).log()).sum()
    scale = z_BD.double().abs().mean().clamp(min=torch.finfo(torch.float64).tiny)
    spread = centred_BD.square().mean(0).sqrt().mean()
    return {"feature_std": spread.item(), "feature_spread": (spread / scale).item(), "effective_rank": entropy.exp().item() if total > 0 else 0.0}


def collapse(health: dict[str, float]) -> str | None:
    """Why the features of `feature_health` look collapsed (all windows alike, or all along one direction); None where they do not."""
    if health["feature_spread"] < COLLAPSED_SPREAD:
        return f"features hardly differ between windows: their spread is {health['feature_spread']:.1e} of their size"
    if health["effective_rank"] < COLLAPSED_RANK:
        return f"features lie along one direction: their effective rank is {health['effective_rank']:.2f}"
    return None
