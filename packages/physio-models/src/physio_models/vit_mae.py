"""Masked autoencoders on a transformer: MAE-ViT and MLAE hide whole leads, MTAE hides stretches of time across all leads.

The encoder sees visible tokens alone; a small decoder sees them in their places and one learned token in every hidden place.
Sources: He et al., "MAE", arXiv 2111.06377; Zhang et al., "MaeFE" (MLAE, MTAE), IEEE TIM 2023. Every block is pre-norm.
Shape letters: B items, C channels, T samples, N tokens, K visible tokens, P values of a token, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from physio_models.attention import Block, check_heads, init_linear
from physio_models.interface import Encoded, Masked
from physio_models.masking import to_samples
from physio_models.patches import check_window, send_home, take, visible
from physio_models.vit import FAST, TINY, EncoderShape, VitEncoder, add_positions, from_tokens, same_for_all, seen_valid, with_extra

TINY_MAE: dict[str, Any] = {**TINY, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
FAST_MAE: dict[str, Any] = {**FAST, "decoder_width": 64, "decoder_depth": 2, "decoder_heads": 4}


@dataclass(frozen=True, kw_only=True)
class MaskedShape(EncoderShape):
    """Shape of encoder and decoder."""

    decoder_width: int = 256
    decoder_depth: int = 4
    decoder_heads: int = 4

    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": TINY_MAE, "fast": FAST_MAE, "reference": {}}

    def __post_init__(self) -> None:
        EncoderShape.__post_init__(self)
        check_heads(self.decoder_width, self.decoder_heads)
        if self.decoder_depth < 1:
            raise ValueError(f"decoder_depth must be at least 1, got {self.decoder_depth}")

    def build(self) -> VitMae:
        """The network with Xavier-uniform matrices, drawn from torch's global generator."""
        return VitMae(self)


@dataclass(frozen=True, kw_only=True)
class MtaeConfig(MaskedShape):
    """Time-axis masked autoencoder: 25 tokens of 100 samples x 12 leads; the published one hides 19 of them."""


@dataclass(frozen=True, kw_only=True)
class MlaeConfig(MaskedShape):
    """Lead-axis masked autoencoder: 12 tokens, each a whole lead; the published one hides 9."""

    tokens: Literal["patches", "leads"] = "leads"


@dataclass(frozen=True, kw_only=True)
class MaeVitConfig(MaskedShape):
    """MAE-ViT: whole leads as tokens, learned positions, no class token, a decoder as wide as the encoder."""

    tokens: Literal["patches", "leads"] = "leads"
    width: int = 512
    depth: int = 6
    n_heads: int = 8
    cls: bool = False
    positions: Literal["sincos", "learned"] = "learned"
    patch_norm: bool = False
    decoder_width: int = 512
    decoder_heads: int = 8


class VitMae(nn.Module):
    """(B, C, T) and what is hidden -> the whole window reconstructed."""

    def __init__(self, cfg: MaskedShape) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = VitEncoder(cfg)
        self.decoder = MaskedDecoder(cfg, cfg.n_tokens, cfg.token_size, n_extra=self.encoder.n_extra)

    @property
    def level_names(self) -> tuple[str, ...]:
        return tuple(f"block{i}" for i in range(1, self.cfg.depth + 1))

    @property
    def mask_axes(self) -> dict[str, int]:
        """What a mask counts."""
        return {"lead" if self.cfg.tokens == "leads" else "time": self.cfg.n_tokens}

    def forward(
        self,
        x_BCT: Tensor,
        mask_BN: Tensor,
        *,
        n_visible: int | None = None,
        valid_BT: Tensor | None = None,
        channel_present_BC: Tensor | None = None,
    ) -> Masked:
        """Reconstruct the tokens that ``mask_BN`` (B, N), True = hidden, takes away; N counts patches, or leads where a token is one.

        ``n_visible`` is the number of visible tokens where it is the same for every item (see `patches.visible`).
        """
        check_window(x_BCT, self.cfg.n_channels, self.cfg.n_samples)
        if mask_BN.shape != (len(x_BCT), self.cfg.n_tokens):
            raise ValueError(f"mask_BN must be {(len(x_BCT), self.cfg.n_tokens)}, one per {self.cfg.tokens[:-1]}, got {tuple(mask_BN.shape)}")
        mask_BN = mask_BN.bool()
        tokens_BND = self.encoder.tokens(x_BCT, valid_BT, channel_present_BC)
        valid_BN = self.encoder.token_valid(valid_BT, channel_present_BC)
        places = visible(mask_BN, n_visible)
        seen_BKD = self.encoder.whole(take(tokens_BND, places.index_BK), seen_valid(places, valid_BN))[-1]
        values_BNP = self.decoder(seen_BKD, places.index_BK, mask_BN, valid_BN)
        return Masked(from_tokens(values_BNP, self.cfg), x_BCT, self.hidden_samples(mask_BN))

    def hidden_samples(self, mask_BN: Tensor) -> Tensor:
        """A mask over tokens as one over samples: (B, 1, T), or (B, C, T) where a token is a lead."""
        if self.cfg.tokens == "leads":
            return mask_BN[:, :, None].expand(-1, -1, self.cfg.n_samples)
        return to_samples(mask_BN, self.cfg.patch_samples)[:, None, :]

    def encode(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Features of unmasked input after every block, `block1` ...; pooled is the mean of the last, after its norm. No decoder runs.

        Past a short tail the signal reads as zeros and whole patches there stay out; so does the token of an absent lead, while
        patches across leads read an absent one as zeros.
        """
        return self.encoder.encode(x_BCT, valid_BT, channel_present_BC)

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level stand on real samples: name -> (B, N) bool."""
        return same_for_all(self.level_names, self.encoder.token_valid(valid_BT, None), len(valid_BT), self.cfg.n_tokens, valid_BT.device)


class MaskedDecoder(nn.Module):
    """Visible tokens, sent home among mask tokens, through a few narrow blocks to values: (B, extra + K, D) -> (B, N, P)."""

    def __init__(self, cfg: MaskedShape, n_tokens: int, token_size: int, *, n_extra: int) -> None:
        super().__init__()
        self.n_extra = n_extra
        self.narrow = nn.Identity() if cfg.decoder_width == cfg.width else nn.Linear(cfg.width, cfg.decoder_width)
        self.mask_D = nn.Parameter(0.02 * torch.randn(cfg.decoder_width))
        add_positions(self, n_tokens, cfg.decoder_width, cfg.positions)
        self.blocks = nn.ModuleList(Block(cfg.decoder_width, cfg.decoder_heads, dropout=cfg.dropout) for _ in range(cfg.decoder_depth))
        self.norm = nn.LayerNorm(cfg.decoder_width, eps=1e-6)
        self.head = nn.Linear(cfg.decoder_width, token_size)
        init_linear(self)

    def forward(self, seen_BKD: Tensor, index_BK: Tensor, mask_BN: Tensor, valid_BN: Tensor | None) -> Tensor:
        seen_BKD = self.narrow(seen_BKD)
        tokens_BND = send_home(seen_BKD[:, self.n_extra :], index_BK, mask_BN, self.mask_D) + self.positions_ND
        tokens_BND = torch.cat([seen_BKD[:, : self.n_extra].to(tokens_BND.dtype), tokens_BND], dim=1)
        valid_BN = with_extra(valid_BN, self.n_extra)
        for block in self.blocks:
            tokens_BND = block(tokens_BND, valid_BN=valid_BN)
        return self.head(self.norm(tokens_BND[:, self.n_extra :]))
