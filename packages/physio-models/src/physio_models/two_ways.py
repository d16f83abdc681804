"""Encoders that read a window forwards and backwards in two separate stacks, so that each way can be trained to predict what it has not read.

A token is a patch of samples of all channels; nothing outside the patch reaches it before the stacks do. Any length works: the last
patch may be short. Shape letters: B items, C channels, T samples, N tokens, L features of a token alone, D features of one way.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.interface import Contexts, Encoded
from physio_models.patches import real_only, take
from physio_models.pooling import pool


class Stem(nn.Module):
    """Patches to tokens, (B, C, T) -> (B, ceil(T / patch), D): a convolution without overlap, norm, GELU, linear."""

    def __init__(self, n_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.conv = nn.Conv1d(n_channels, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, x_BCT: Tensor) -> Tensor:
        x_BCT = F.pad(x_BCT, (0, -x_BCT.shape[-1] % self.patch))
        return self.linear(F.gelu(self.norm(self.conv(x_BCT).transpose(1, 2))))


class TwoWaysShape(Protocol):
    """What a config says of stem and stacks: channels, samples of a token, D of one way, blocks."""

    n_channels: int
    patch: int
    width: int
    depth: int


class TwoWays(nn.Module):
    """A stem and one or two stacks over its tokens; `forward` gives what predictive coding needs, `encode` the features of both ways side by side.

    ``ahead`` and ``back`` are modules from (B, N, D) to the outputs of their blocks, causal: token t of the outputs depends on tokens
    up to t alone. ``back`` is given the real tokens of each item from last to first.
    """

    def __init__(self, cfg: TwoWaysShape, ahead: nn.Module, back: nn.Module | None) -> None:
        super().__init__()
        self.cfg = cfg
        self.stem = Stem(cfg.n_channels, cfg.width, cfg.patch)
        self.ahead, self.back = ahead, back
        self.norm = nn.LayerNorm(cfg.width)
        self.norm_back = None if back is None else nn.LayerNorm(cfg.width)

    @property
    def level_names(self) -> tuple[str, ...]:
        return tuple(f"block{i}" for i in range(1, self.cfg.depth + 1))

    @property
    def n_features(self) -> int:
        """D of the pooled vector: one way's, or both side by side."""
        return self.cfg.width * (1 if self.back is None else 2)

    def forward(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Contexts:
        """Tokens alone, their context each way, and the mean of both over real tokens."""
        local_BNL, valid_BN = self._tokens(x_BCT, valid_BT, channel_present_BC)
        ahead, back = self._ways(local_BNL, valid_BN)
        joined_BND = ahead[-1] if back is None else torch.cat([ahead[-1], back[-1]], -1)
        return Contexts(pool(joined_BND, "mean", valid_BN), local_BNL, ahead[-1], None if back is None else back[-1], valid_BN)

    def encode(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Features after every block, `block1` ..., forwards and backwards side by side; the last after its norm, pooled by the mean.

        Past a short tail tokens are 0 and stay out of the mean, and real ones are as if the window ended there. An absent channel reads
        as zeros.
        """
        local_BNL, valid_BN = self._tokens(x_BCT, valid_BT, channel_present_BC)
        ahead, back = self._ways(local_BNL, valid_BN)
        levels = ahead if back is None else [torch.cat(pair, -1) for pair in zip(ahead, back, strict=True)]
        if valid_BN is not None:
            levels = [level.masked_fill(~valid_BN[..., None], 0.0) for level in levels]
        return Encoded(levels[-1], pool(levels[-1], "mean", valid_BN), dict(zip(self.level_names, levels, strict=True)))

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level hold a real sample: name -> (B, ceil(T / patch)) bool."""
        return dict.fromkeys(self.level_names, _token_valid(valid_BT, self.cfg.patch))

    def _tokens(self, x_BCT: Tensor, valid_BT: Tensor | None, channel_present_BC: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if x_BCT.ndim != 3 or x_BCT.shape[1] != self.cfg.n_channels:
            raise ValueError(f"x_BCT must be (batch, {self.cfg.n_channels} channels, samples), got {tuple(x_BCT.shape)}; select or add channels by name first")
        return self.stem(real_only(x_BCT, valid_BT, channel_present_BC)), None if valid_BT is None else _token_valid(valid_BT, self.cfg.patch)

    def _ways(self, local_BNL: Tensor, valid_BN: Tensor | None) -> tuple[list[Tensor], list[Tensor] | None]:
        """The outputs of every block each way, in the order of time, the last ones normed."""
        ahead = self.ahead(local_BNL)
        ahead[-1] = self.norm(ahead[-1])
        if self.back is None:
            return ahead, None
        order_BN = last_to_first(local_BNL, valid_BN)
        back = [take(level, order_BN) for level in self.back(take(local_BNL, order_BN))]  # the order is its own inverse
        back[-1] = self.norm_back(back[-1])
        return ahead, back


def last_to_first(tokens_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
    """Places (B, N) that put the real tokens of each item from last to first, and leave a short tail where it is."""
    n_items, n = tokens_BND.shape[:2]
    place_N = torch.arange(n, device=tokens_BND.device)
    if valid_BN is None:
        return place_N.flip(0).expand(n_items, -1)
    length_B1 = valid_BN.sum(1, keepdim=True)
    return torch.where(place_N < length_B1, length_B1 - 1 - place_N, place_N)


def _token_valid(valid_BT: Tensor, patch: int) -> Tensor:
    padded = F.pad(valid_BT.bool(), (0, -valid_BT.shape[1] % patch))
    return padded.unflatten(1, (-1, patch)).any(-1)
