"""A small convolution and transformer encoder: patches of samples to tokens, then causal blocks that read the window one way or both.

Rotary positions, so any length works and a short tail changes nothing before it. The parts are those of wav2vec's kind (Baevski et
al., arXiv 2006.11477) without its masking. Shape letters: B items, N tokens, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from physio_models.attention import Block, check_heads, init_linear
from physio_models.rope import rotary_table, rotate
from physio_models.two_ways import TwoWays


@dataclass(frozen=True, kw_only=True)
class ConvTransformerConfig:
    """Shape of the encoder."""

    n_channels: int = 12  # signal channels C
    n_samples: int = 1000  # window length trained on, samples; the network itself takes any length
    patch: int = 4  # samples of a token
    width: int = 128  # D of one way
    depth: int = 4
    n_heads: int = 4
    bidirectional: bool = True
    dropout: float = 0.0  # on the branches of each block while training; attention itself has none

    input: ClassVar[str] = "signal"
    length_free: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for field in ("n_channels", "n_samples", "patch", "depth"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        check_heads(self.width, self.n_heads)
        if self.width // self.n_heads % 2:
            raise ValueError(f"width / n_heads must be even for rotary positions, got {self.width} / {self.n_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")

    def build(self) -> TwoWays:
        """The network, drawn from torch's global generator."""
        return TwoWays(self, CausalStack(self), CausalStack(self) if self.bidirectional else None)

    @classmethod
    def preset(cls, size: Literal["tiny", "fast", "reference"], *, n_channels: int = 12, n_samples: int = 1000) -> ConvTransformerConfig:
        """tiny: seconds, for tests; fast: two blocks of 64 features; reference: four of 128."""
        if size == "tiny":
            return cls(n_channels=min(n_channels, 2), n_samples=min(n_samples, 80), width=16, depth=2, n_heads=2)
        if size == "fast":
            return cls(n_channels=n_channels, n_samples=n_samples, width=64, depth=2)
        if size == "reference":
            return cls(n_channels=n_channels, n_samples=n_samples)
        raise ValueError(f"size must be one of tiny, fast, reference, got {size!r}")


class CausalStack(nn.Module):
    """Causal blocks one after another, (B, N, D) -> the outputs of all; distance between tokens alone matters."""

    def __init__(self, cfg: ConvTransformerConfig) -> None:
        super().__init__()
        self.head_width = cfg.width // cfg.n_heads
        self.blocks = nn.ModuleList(Block(cfg.width, cfg.n_heads, causal=True, dropout=cfg.dropout) for _ in range(cfg.depth))
        init_linear(self)

    def forward(self, x_BND: Tensor) -> list[Tensor]:
        turn = partial(rotate, table=rotary_table(torch.arange(x_BND.shape[1], device=x_BND.device), self.head_width))
        outputs = []
        for block in self.blocks:
            x_BND = block(x_BND, rotate=turn)
            outputs.append(x_BND)
        return outputs
