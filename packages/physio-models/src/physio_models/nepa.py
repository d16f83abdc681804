"""NEPA: a causal transformer that predicts the embedding of the next patch. Nothing is decoded and nothing is masked.

Decisions taken here: a token is a patch of time across all leads; the target is the next patch's embedding alone, without its position
and without dropout, which the predictor would otherwise be paid to reproduce. Source: Xu et al., "NEPA", arXiv 2512.16922.
Shape letters: B items, C channels, T samples, N patches, D features.

    x (B, C, T) -> patches -> z (B, N, D) -> + position -> causal blocks -> norm -> head -> prediction of z one patch later
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from physio_models.attention import Block, check_heads, init_linear
from physio_models.interface import Encoded
from physio_models.masking import n_patches
from physio_models.patches import check_window, patch_for, patch_valid, real_only, to_patches
from physio_models.rope import rotary_table, rotate
from physio_models.vit import encoded, same_for_all


@dataclass(frozen=True, kw_only=True)
class NepaConfig:
    """Shape of a NEPA; the defaults are the original's width and depth with rotary positions and patches."""

    n_channels: int = 12  # signal channels C
    n_samples: int = 2500  # window length T, samples
    patch: int | None = None  # samples; None: the divisor of the window that gives about 32 patches; 1: the original
    width: int = 512
    depth: int = 6
    n_heads: int = 8
    dropout: float = 0.0  # on the branches of each block while training; attention itself has none
    positions: Literal["rotary", "learned"] = "rotary"
    qk_norm: bool = False  # RMS norm of queries and keys
    layer_scale: float | None = None  # initial gain of each branch; the paper's is 1e-5

    input: ClassVar[str] = "signal"
    length_free: ClassVar[bool] = False
    role: ClassVar[str] = "next_embedding"
    sizes: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"n_channels": 3, "n_samples": 160, "patch": 8, "width": 32, "depth": 2, "n_heads": 4},
        "fast": {"width": 128, "depth": 4, "n_heads": 4},
        "reference": {"patch": 1, "dropout": 0.1, "positions": "learned"},
    }

    def __post_init__(self) -> None:
        for field in ("n_channels", "n_samples", "depth"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        check_heads(self.width, self.n_heads)
        if self.positions not in ("rotary", "learned"):
            raise ValueError(f"positions must be rotary or learned, got {self.positions!r}")
        if self.positions == "rotary" and self.width // self.n_heads % 2:
            raise ValueError(f"width / n_heads must be even to be rotated in pairs, got {self.width} / {self.n_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        n_patches(self.n_samples, self.patch_samples)

    @property
    def patch_samples(self) -> int:
        """Samples of a token."""
        return self.patch or patch_for(self.n_samples)

    @property
    def n_tokens(self) -> int:
        return self.n_samples // self.patch_samples

    def build(self) -> Nepa:
        """The network with Xavier-uniform matrices, drawn from torch's global generator."""
        return Nepa(self)

    @classmethod
    def preset(cls, size: Literal["tiny", "fast", "reference"], **changes: Any) -> Self:
        """tiny: seconds, for tests; fast: minutes on two cores; reference: the original's size. ``changes`` are fields, as n_channels=1."""
        if size not in cls.sizes:
            raise ValueError(f"size must be one of {', '.join(cls.sizes)}, got {size!r}")
        return cls(**{**cls.sizes[size], **changes})


class NextEmbedding(NamedTuple):
    """At each patch what is expected of the next, (B, N, D); every patch's own embedding, (B, N, D); which patches are real (None: all)."""

    pred_BND: Tensor
    embedded_BND: Tensor
    valid_BN: Tensor | None


class Nepa(nn.Module):
    """(B, C, T) -> what each patch expects of the next."""

    def __init__(self, cfg: NepaConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Linear(cfg.n_channels * cfg.patch_samples, cfg.width)
        self.positions_ND = nn.Parameter(0.02 * torch.randn(cfg.n_tokens, cfg.width)) if cfg.positions == "learned" else None
        self.dropout = nn.Dropout(cfg.dropout)
        self.blocks = nn.ModuleList(
            Block(cfg.width, cfg.n_heads, causal=True, dropout=cfg.dropout, qk_norm=cfg.qk_norm, layer_scale=cfg.layer_scale) for _ in range(cfg.depth)
        )
        self.norm = nn.LayerNorm(cfg.width, eps=1e-6)
        self.head = nn.Linear(cfg.width, cfg.width)
        init_linear(self)

    @property
    def level_names(self) -> tuple[str, ...]:
        return tuple(f"block{i}" for i in range(1, self.cfg.depth + 1))

    def forward(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> NextEmbedding:
        """Predictions and embeddings of every patch. A short tail needs no mask: what is real never sees what follows."""
        z_BND = self._embedded(x_BCT, valid_BT, channel_present_BC)
        pred_BND = self.head(self._levels(z_BND)[-1])
        return NextEmbedding(pred_BND, z_BND, None if valid_BT is None else patch_valid(valid_BT, self.cfg.patch_samples))

    def encode(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Features after every block, `block1` ...; pooled is the mean of the last, after its norm. Absent channels read as zeros."""
        levels = self._levels(self._embedded(x_BCT, valid_BT, channel_present_BC))
        return encoded(levels, None if valid_BT is None else patch_valid(valid_BT, self.cfg.patch_samples))

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level stand on real samples: name -> (B, N) bool."""
        valid_BN = patch_valid(valid_BT, self.cfg.patch_samples)
        return same_for_all(self.level_names, valid_BN, *valid_BN.shape, valid_BT.device)

    def _embedded(self, x_BCT: Tensor, valid_BT: Tensor | None, channel_present_BC: Tensor | None) -> Tensor:
        check_window(x_BCT, self.cfg.n_channels, self.cfg.n_samples)
        return self.embed(to_patches(real_only(x_BCT, valid_BT, channel_present_BC), self.cfg.patch_samples))

    def _levels(self, z_BND: Tensor) -> list[Tensor]:
        """The output of every block, the last one normed."""
        turn = None
        if self.positions_ND is None:
            position_N = torch.arange(self.cfg.n_tokens, device=z_BND.device)
            turn = partial(rotate, table=rotary_table(position_N, self.cfg.width // self.cfg.n_heads))
        else:
            z_BND = z_BND + self.positions_ND
        x_BND, levels = self.dropout(z_BND), []
        for block in self.blocks:
            x_BND = block(x_BND, rotate=turn)
            levels.append(x_BND)
        return [*levels[:-1], self.norm(levels[-1])]
