"""An exponential moving average of a model's weights, kept as a second model that validation uses."""

from __future__ import annotations

import copy

import torch
from torch import nn

from physio_train.sharding import local


class Ema:
    """`model` is the averaged twin of a live model: in eval mode, without gradients, same names.

    `update` moves each weight by `1 - d` towards the live one, with d = min(decay, (1 + n) / (10 + n)) after n updates, so a
    short run is not dominated by its start; buffers (running statistics) are copied. Give it a `twin` of the live model; where
    that is shared out over ranks, the twin has to be so too.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema decay must lie in [0, 1), got {decay}; None switches the average off")
        self.decay, self.model = decay, model

    @torch.no_grad()
    def update(self, live: nn.Module, n_updates: int) -> None:
        decay = min(self.decay, (1 + n_updates) / (10 + n_updates))
        torch._foreach_lerp_([local(p) for p in self.model.parameters()], [local(p.detach()) for p in live.parameters()], 1.0 - decay)
        for averaged, current in zip(self.model.buffers(), live.buffers(), strict=True):
            averaged.copy_(current)


def twin(live: nn.Module) -> nn.Module:
    """A second model with the same weights, in eval mode and without gradients."""
    return copy.deepcopy(live).eval().requires_grad_(False)
