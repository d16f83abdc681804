"""An exponential moving average of a model's weights, kept as a second model that validation uses."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """`model` is the averaged twin of a live model: in eval mode, without gradients, same names.

    `update` moves each weight by `1 - d` towards the live one, with d = min(decay, (1 + n) / (10 + n)) after n updates, so a
    short run is not dominated by its start; buffers (running statistics) are copied.
    """

    def __init__(self, live: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema decay must lie in [0, 1), got {decay}; None switches the average off")
        self.decay = decay
        self.model = copy.deepcopy(live).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, live: nn.Module, n_updates: int) -> None:
        decay = min(self.decay, (1 + n_updates) / (10 + n_updates))
        torch._foreach_lerp_(list(self.model.parameters()), [p.detach() for p in live.parameters()], 1.0 - decay)
        for averaged, current in zip(self.model.buffers(), live.buffers(), strict=True):
            averaged.copy_(current)
