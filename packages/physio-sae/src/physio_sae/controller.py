"""Steers the sparsity weight to a target L0, so that ablations are compared at the same density."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class L0Control:
    """l_sp <- l_sp (1 + eta clip(log(L0 / target), -1, 1)) after every step past the warm-up, kept within [low, high].

    The clip keeps a start with half of the dictionary active from driving the weight to its ceiling within a few steps; the logarithm pulls as hard from
    below the target as from above it, so an overshoot is mended as fast as it was made.
    """

    target: float | None = None
    """Concepts per window to hold; none leaves the weight alone."""
    eta: float = 0.02
    low: float = 1e-4
    high: float = 2.0

    def __post_init__(self) -> None:
        if self.target is not None and self.target <= 0:
            raise ValueError(f"target must be a positive number of concepts per window, or none, got {self.target}")
        if not 0 < self.eta < 1 or not 0 < self.low < self.high:
            raise ValueError(f"eta must lie in (0, 1) and low below high, got eta {self.eta}, low {self.low}, high {self.high}")

    def update(self, l_sp: Tensor, l0: Tensor) -> Tensor:
        """The next weight; a tensor in, a tensor out, so nothing waits for the device."""
        if self.target is None:
            return l_sp
        return (l_sp * (1 + self.eta * torch.log(l0.clamp_min(1e-6) / self.target).clamp(-1, 1))).clamp(self.low, self.high)
