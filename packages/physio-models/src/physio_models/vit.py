"""A transformer encoder over patches of the waveform: the plain encoder, and what the masked autoencoders share with it.

A token is either a stretch of time across all channels ("patches") or one whole channel ("leads"). Source: Dosovitskiy et al.,
"ViT", arXiv 2010.11929. Shape letters: B items, C channels, T samples, N tokens, K visible tokens, P values of a token, D features.

    x (B, C, T) -> tokens (B, N, P) -> embedded (B, N, D) -> visible (B, K, D) -> block1 ... blockL -> norm
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from physio_models.attention import Block, check_heads, init_linear
from physio_models.interface import Encoded
from physio_models.masking import n_patches
from physio_models.patches import (
    Visible,
    check_window,
    from_patches,
    patch_for,
    patch_valid,
    real_only,
    sincos_positions,
    take,
    to_patches,
    visible,
)
from physio_models.pooling import pool

TINY: dict[str, Any] = {"n_channels": 3, "n_samples": 200, "width": 32, "depth": 2, "n_heads": 4}
FAST: dict[str, Any] = {"width": 128, "depth": 4, "n_heads": 4}


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """Shape of the encoder; the defaults are a ViT-B over patches of 100 samples x 12 leads."""

    n_channels: int = 12  # signal channels C
    n_samples: int = 2500  # window length T, samples
    tokens: Literal["patches", "leads"] = "patches"  # stretches of time across all channels, or whole channels
    patch: int | None = None  # samples of a patch; None: the divisor of the window that gives about 32 patches
    width: int = 768  # D
    depth: int = 12  # blocks
    n_heads: int = 12
    dropout: float = 0.0  # on the branches of each block while training; attention itself has none
    cls: bool = True  # one learned token beside the others, which may gather what is global
    positions: Literal["sincos", "learned"] = "sincos"
    patch_norm: bool = True  # layer norm before and after the embedding

    input: ClassVar[str] = "signal"
    length_free: ClassVar[bool] = False
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": TINY, "fast": FAST, "reference": {}}

    def __post_init__(self) -> None:
        if self.n_channels < 1 or self.n_samples < 1 or self.depth < 1:
            raise ValueError(f"n_channels, n_samples and depth must be at least 1, got {self.n_channels}, {self.n_samples} and {self.depth}")
        for field, allowed in (("tokens", ("patches", "leads")), ("positions", ("sincos", "learned"))):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}")
        check_heads(self.width, self.n_heads)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.tokens == "leads" and self.patch is not None:
            raise ValueError(f"patch must be None where a token is a whole lead, got {self.patch}")
        if self.tokens == "patches":
            n_patches(self.n_samples, self.patch_samples)

    @property
    def patch_samples(self) -> int:
        """Samples of a token."""
        return self.n_samples if self.tokens == "leads" else self.patch or patch_for(self.n_samples)

    @property
    def n_tokens(self) -> int:
        """Tokens of a window, without the class token."""
        return self.n_channels if self.tokens == "leads" else self.n_samples // self.patch_samples

    @property
    def token_size(self) -> int:
        """Values of a token, P."""
        return self.n_samples if self.tokens == "leads" else self.n_channels * self.patch_samples

    @classmethod
    def preset(cls, size: Literal["tiny", "fast", "reference"], **changes: Any) -> Self:
        """tiny: seconds, for tests; fast: minutes on two cores; reference: the published size. ``changes`` are fields, as n_channels=1."""
        if size not in cls.sizes:
            raise ValueError(f"size must be one of {', '.join(cls.sizes)}, got {size!r}")
        return cls(**{**cls.sizes[size], **changes})


@dataclass(frozen=True, kw_only=True)
class VitConfig(EncoderShape):
    """The encoder alone, for objectives that bring their own head (JEPA)."""

    role: ClassVar[str] = "token_encoder"

    def build(self) -> Vit:
        """The network with Xavier-uniform matrices, drawn from torch's global generator."""
        return Vit(self)


class Seen(NamedTuple):
    """What an encoder made of the tokens it was shown: (B, K, D), their places (B, K), and which of the K count (None: all)."""

    tokens_BKD: Tensor
    index_BK: Tensor
    valid_BK: Tensor | None


class VitEncoder(nn.Module):
    """Embedding, positions, blocks and final norm; the networks that own one decide what it is shown."""

    def __init__(self, cfg: EncoderShape) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Linear(cfg.token_size, cfg.width)
        self.norm_patch = nn.LayerNorm(cfg.token_size) if cfg.patch_norm else nn.Identity()
        self.norm_embed = nn.LayerNorm(cfg.width) if cfg.patch_norm else nn.Identity()
        self.cls_D = nn.Parameter(0.02 * torch.randn(cfg.width)) if cfg.cls else None
        add_positions(self, cfg.n_tokens, cfg.width, cfg.positions)
        self.blocks = nn.ModuleList(Block(cfg.width, cfg.n_heads, dropout=cfg.dropout) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.width, eps=1e-6)
        init_linear(self)

    def tokens(self, x_BCT: Tensor, valid_BT: Tensor | None, channel_present_BC: Tensor | None) -> Tensor:
        """Embedded tokens with their positions, (B, N, D); what is not real reads as zeros."""
        check_window(x_BCT, self.cfg.n_channels, self.cfg.n_samples)
        x_BCT = real_only(x_BCT, valid_BT, channel_present_BC)
        values_BNP = x_BCT if self.cfg.tokens == "leads" else to_patches(x_BCT, self.cfg.patch_samples)
        return self.norm_embed(self.embed(self.norm_patch(values_BNP))) + self.positions_ND

    def token_valid(self, valid_BT: Tensor | None, channel_present_BC: Tensor | None) -> Tensor | None:
        """Which tokens stand on something real, (B, N) bool, or None: all. An absent channel leaves its own token out, and no patch."""
        if self.cfg.tokens == "leads":
            return None if channel_present_BC is None else channel_present_BC.bool()
        return None if valid_BT is None else patch_valid(valid_BT, self.cfg.patch_samples)

    def through(self, tokens_BKD: Tensor, valid_BK: Tensor | None) -> list[Tensor]:
        """The output of every block over the tokens shown, the last one normed, each (B, K, D) without the class token."""
        return [level[:, self.n_extra :] for level in self.whole(tokens_BKD, valid_BK)]

    def whole(self, tokens_BKD: Tensor, valid_BK: Tensor | None) -> list[Tensor]:
        """As `through`, each (B, 1 + K, D) with the class token in front where there is one."""
        if self.cls_D is not None:
            tokens_BKD = torch.cat([self.cls_D.to(tokens_BKD.dtype).expand(tokens_BKD.shape[0], 1, -1), tokens_BKD], dim=1)
        valid_BK = with_extra(valid_BK, self.n_extra)
        levels = []
        for block in self.blocks:
            tokens_BKD = block(tokens_BKD, valid_BN=valid_BK)
            levels.append(tokens_BKD)
        return [*levels[:-1], self.norm(levels[-1])]

    @property
    def n_extra(self) -> int:
        """1 with a class token, else 0."""
        return int(self.cls_D is not None)

    def encode(self, x_BCT: Tensor, valid_BT: Tensor | None, channel_present_BC: Tensor | None) -> Encoded:
        """Every level of the unmasked window; tokens that stand on nothing real are 0 and stay out of the mean."""
        tokens_BND = self.tokens(x_BCT, valid_BT, channel_present_BC)
        valid_BN = self.token_valid(valid_BT, channel_present_BC)
        levels = self.through(tokens_BND, valid_BN)
        return encoded(levels, valid_BN)


class Vit(nn.Module):
    """The encoder as a network of its own: (B, C, T) and what is hidden -> features of what is visible."""

    def __init__(self, cfg: VitConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = VitEncoder(cfg)

    @property
    def level_names(self) -> tuple[str, ...]:
        return tuple(f"block{i}" for i in range(1, self.cfg.depth + 1))

    def forward(
        self,
        x_BCT: Tensor,
        mask_BN: Tensor | None = None,
        *,
        n_visible: int | None = None,
        valid_BT: Tensor | None = None,
        channel_present_BC: Tensor | None = None,
    ) -> Seen:
        """Features of the tokens that ``mask_BN`` (True = hidden) leaves visible; all of them without it. ``n_visible``: see `patches.visible`."""
        tokens_BND = self.encoder.tokens(x_BCT, valid_BT, channel_present_BC)
        valid_BN = self.encoder.token_valid(valid_BT, channel_present_BC)
        if mask_BN is None:
            mask_BN, n_visible = torch.zeros(tokens_BND.shape[:2], dtype=torch.bool, device=x_BCT.device), tokens_BND.shape[1]
        places = visible(mask_BN, n_visible)
        valid_BK = seen_valid(places, valid_BN)
        return Seen(self.encoder.through(take(tokens_BND, places.index_BK), valid_BK)[-1], places.index_BK, valid_BK)

    def encode(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Features of unmasked input after every block, `block1` ...; pooled is the mean of the last, after its norm."""
        return self.encoder.encode(x_BCT, valid_BT, channel_present_BC)

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level stand on real samples: name -> (B, N) bool."""
        return same_for_all(self.level_names, self.encoder.token_valid(valid_BT, None), len(valid_BT), self.cfg.n_tokens, valid_BT.device)


def add_positions(module: nn.Module, n: int, width: int, kind: Literal["sincos", "learned"]) -> None:
    """``module.positions_ND``: a trained table, or fixed sines and cosines that no state dict carries."""
    if kind == "learned":
        module.positions_ND = nn.Parameter(0.02 * torch.randn(n, width))
    else:
        module.register_buffer("positions_ND", sincos_positions(n, width), persistent=False)


def with_extra(valid_BN: Tensor | None, n_extra: int) -> Tensor | None:
    """Validity with ``n_extra`` tokens in front that always count."""
    return valid_BN if valid_BN is None or not n_extra else torch.cat([valid_BN.new_ones(len(valid_BN), n_extra), valid_BN], dim=1)


def seen_valid(places: Visible, valid_BN: Tensor | None) -> Tensor | None:
    """Which of the K tokens taken are visible and real; None: all."""
    if valid_BN is None:
        return places.visible_BK
    real_BK = valid_BN.gather(1, places.index_BK)
    return real_BK if places.visible_BK is None else real_BK & places.visible_BK


def encoded(levels: list[Tensor], valid_BN: Tensor | None) -> Encoded:
    """The levels as `Encoded`, `block1` ...: tokens that are not valid are 0 and stay out of the mean."""
    if valid_BN is not None:
        levels = [level.masked_fill(~valid_BN[..., None], 0.0) for level in levels]
    named = {f"block{i}": level for i, level in enumerate(levels, start=1)}
    return Encoded(levels[-1], pool(levels[-1], "mean", valid_BN), named)


def same_for_all(names: tuple[str, ...], valid_BN: Tensor | None, n_items: int, n_tokens: int, device: torch.device) -> dict[str, Tensor]:
    """One validity for every level, all True for None."""
    valid_BN = torch.ones(n_items, n_tokens, dtype=torch.bool, device=device) if valid_BN is None else valid_BN
    return dict.fromkeys(names, valid_BN)


def from_tokens(values_BNP: Tensor, cfg: EncoderShape) -> Tensor:
    """Tokens' values back in their places: (B, N, P) -> (B, C, T)."""
    return values_BNP if cfg.tokens == "leads" else from_patches(values_BNP, cfg.n_channels)
