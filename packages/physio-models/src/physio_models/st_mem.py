"""ST-MEM: a masked autoencoder whose tokens are stretches of single leads, hidden in each lead on its own.

A shared separator stands before and after every lead and a learned vector names the lead, so the encoder reads all leads as one
sequence; the decoder is applied lead by lead with the same weights. Source: Na et al., "ST-MEM", ICLR 2024, arXiv 2402.09450.
Shape letters: B items, C channels, T samples, N patches of a lead, K visible ones of a lead, P samples of a patch, D features.

    x (B, C, T) -> patches (B, C, N, P) -> visible (B, C, K, D) -> [sep lead sep] per lead (B, C (K + 2), D) -> blocks -> decoder per lead
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from physio_models.attention import Block, check_heads, init_linear
from physio_models.interface import Encoded, Masked
from physio_models.masking import n_patches
from physio_models.patches import (
    check_window,
    from_lead_patches,
    patch_for,
    patch_valid,
    real_only,
    send_home,
    sincos_positions,
    take,
    to_lead_patches,
    visible,
)
from physio_models.vit import encoded, same_for_all, seen_valid
from physio_models.vit_mae import FAST_MAE, TINY_MAE


@dataclass(frozen=True, kw_only=True)
class StMemConfig:
    """Shape of an ST-MEM; the defaults are the published ViT-B over 25 patches of 100 samples in each of 12 leads."""

    n_channels: int = 12  # leads C
    n_samples: int = 2500  # window length T, samples
    patch: int | None = None  # samples; None: the divisor of the window that gives about 32 patches a lead
    width: int = 768
    depth: int = 12
    n_heads: int = 12
    decoder_width: int = 256
    decoder_depth: int = 4
    decoder_heads: int = 4

    input: ClassVar[str] = "signal"
    length_free: ClassVar[bool] = False
    sizes: ClassVar[dict[str, dict[str, Any]]] = {"tiny": TINY_MAE, "fast": FAST_MAE, "reference": {}}

    def __post_init__(self) -> None:
        for field in ("n_channels", "n_samples", "depth", "decoder_depth"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        check_heads(self.width, self.n_heads)
        check_heads(self.decoder_width, self.decoder_heads)
        n_patches(self.n_samples, self.patch_samples)

    @property
    def patch_samples(self) -> int:
        """Samples of a patch."""
        return self.patch or patch_for(self.n_samples)

    @property
    def n_lead_patches(self) -> int:
        """Patches of one lead, N."""
        return self.n_samples // self.patch_samples

    @property
    def n_tokens(self) -> int:
        """Tokens of a window without separators, C * N, lead by lead."""
        return self.n_channels * self.n_lead_patches

    def build(self) -> StMem:
        """The network with Xavier-uniform matrices, drawn from torch's global generator."""
        return StMem(self)

    @classmethod
    def preset(cls, size: Literal["tiny", "fast", "reference"], **changes: Any) -> Self:
        """tiny: seconds, for tests; fast: minutes on two cores; reference: the published size. ``changes`` are fields, as n_channels=1."""
        if size not in cls.sizes:
            raise ValueError(f"size must be one of {', '.join(cls.sizes)}, got {size!r}")
        return cls(**{**cls.sizes[size], **changes})


class StMem(nn.Module):
    """(B, C, T) and what is hidden in each lead -> the whole window reconstructed."""

    def __init__(self, cfg: StMemConfig) -> None:
        super().__init__()
        self.cfg = cfg
        n, patch = cfg.n_lead_patches, cfg.patch_samples
        self.embed = nn.Sequential(nn.LayerNorm(patch), nn.Linear(patch, cfg.width), nn.LayerNorm(cfg.width))
        self.separator_D = nn.Parameter(0.02 * torch.randn(cfg.width))
        self.leads_CD = nn.Parameter(0.02 * torch.randn(cfg.n_channels, cfg.width))
        self.register_buffer("positions_ND", sincos_positions(n + 2, cfg.width), persistent=False)  # the first and the last are the separators'
        self.blocks = nn.ModuleList(Block(cfg.width, cfg.n_heads) for _ in range(cfg.depth))
        self.norm = nn.LayerNorm(cfg.width, eps=1e-6)
        self.narrow = nn.Linear(cfg.width, cfg.decoder_width)
        self.mask_D = nn.Parameter(0.02 * torch.randn(cfg.decoder_width))
        self.register_buffer("decoder_positions_ND", sincos_positions(n + 2, cfg.decoder_width), persistent=False)
        self.decoder_blocks = nn.ModuleList(Block(cfg.decoder_width, cfg.decoder_heads) for _ in range(cfg.decoder_depth))
        self.decoder_norm = nn.LayerNorm(cfg.decoder_width, eps=1e-6)
        self.head = nn.Linear(cfg.decoder_width, patch)
        init_linear(self)

    @property
    def level_names(self) -> tuple[str, ...]:
        return tuple(f"block{i}" for i in range(1, self.cfg.depth + 1))

    @property
    def mask_axes(self) -> dict[str, int]:
        """What a mask counts."""
        return {"lead": self.cfg.n_channels, "time": self.cfg.n_lead_patches}

    def forward(
        self,
        x_BCT: Tensor,
        mask_BN: Tensor,
        *,
        n_visible: int | None = None,
        valid_BT: Tensor | None = None,
        channel_present_BC: Tensor | None = None,
    ) -> Masked:
        """Reconstruct the patches that the mask, (B, C, N) or (B, C * N) lead by lead, True = hidden, takes away.

        ``n_visible`` is the number of visible patches of a lead where it is the same for all (see `patches.visible`).
        """
        check_window(x_BCT, self.cfg.n_channels, self.cfg.n_samples)
        n_items, n_leads, n = len(x_BCT), self.cfg.n_channels, self.cfg.n_lead_patches
        if tuple(mask_BN.shape) not in ((n_items, n_leads, n), (n_items, n_leads * n)):
            raise ValueError(f"mask_BN must be {(n_items, n_leads, n)} or {(n_items, n_leads * n)}, got {tuple(mask_BN.shape)}")
        mask_MN = mask_BN.bool().reshape(n_items * n_leads, n)  # M: leads of all items
        tokens_MND = self._tokens(x_BCT, valid_BT, channel_present_BC).flatten(0, 1)
        real_BCN = self._real(valid_BT, channel_present_BC, x_BCT)
        places = visible(mask_MN, n_visible)
        seen_MK = seen_valid(places, None if real_BCN is None else real_BCN.flatten(0, 1))
        kept_BCKD = take(tokens_MND, places.index_BK).unflatten(0, (n_items, n_leads))
        sequence_BSD = self._joined(kept_BCKD)
        valid_BS = None if seen_MK is None else self._joined_valid(seen_MK.reshape(n_items, n_leads, -1), channel_present_BC)
        for block in self.blocks:
            sequence_BSD = block(sequence_BSD, valid_BN=valid_BS)
        seen_MKD = self.narrow(self.norm(sequence_BSD)).reshape(n_items * n_leads, -1, self.cfg.decoder_width)
        values_MNP = self._decode(seen_MKD, places.index_BK, mask_MN, real_BCN)
        hidden_BCT = mask_MN.reshape(n_items, n_leads, n).repeat_interleave(self.cfg.patch_samples, dim=2)
        return Masked(from_lead_patches(values_MNP.reshape(n_items, n_leads, n, -1)), x_BCT, hidden_BCT)

    def encode(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Features of unmasked input after every block, (B, C * N, D) lead by lead without separators; pooled is their mean after the norm.

        An absent lead and patches past a short tail are neither looked at nor counted: fewer leads need no zeros in their place.
        """
        tokens_BCND = self._tokens(x_BCT, valid_BT, channel_present_BC)
        real_BCN = self._real(valid_BT, channel_present_BC, x_BCT)
        valid_BS = None if real_BCN is None else self._joined_valid(real_BCN, channel_present_BC)
        sequence_BSD, levels = self._joined(tokens_BCND), []
        for block in self.blocks:
            sequence_BSD = block(sequence_BSD, valid_BN=valid_BS)
            levels.append(sequence_BSD)
        levels[-1] = self.norm(levels[-1])
        inner = [level.unflatten(1, (self.cfg.n_channels, -1))[:, :, 1:-1].flatten(1, 2) for level in levels]
        return encoded(inner, None if real_BCN is None else real_BCN.flatten(1))

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level stand on real samples: name -> (B, C * N) bool."""
        valid_BN = patch_valid(valid_BT, self.cfg.patch_samples).repeat(1, self.cfg.n_channels)
        return same_for_all(self.level_names, valid_BN, *valid_BN.shape, valid_BT.device)

    def _tokens(self, x_BCT: Tensor, valid_BT: Tensor | None, channel_present_BC: Tensor | None) -> Tensor:
        """Embedded patches with their positions, (B, C, N, D)."""
        check_window(x_BCT, self.cfg.n_channels, self.cfg.n_samples)
        x_BCT = real_only(x_BCT, valid_BT, channel_present_BC)
        return self.embed(to_lead_patches(x_BCT, self.cfg.patch_samples)) + self.positions_ND[1:-1]

    def _joined(self, kept_BCKD: Tensor) -> Tensor:
        """Separators around every lead, the lead's vector on all of them, leads one after another: (B, C (K + 2), D)."""
        edges_2D = (self.separator_D + self.positions_ND[[0, -1]]).to(kept_BCKD.dtype)
        first, last = (edge.expand(*kept_BCKD.shape[:2], 1, -1) for edge in edges_2D)
        return (torch.cat([first, kept_BCKD, last], dim=2) + self.leads_CD[:, None]).flatten(1, 2)

    def _joined_valid(self, real_BCK: Tensor, channel_present_BC: Tensor | None) -> Tensor:
        """Validity in the order of `_joined`; the separators of an absent lead are absent too."""
        present_BC1 = (torch.ones_like(real_BCK[..., 0]) if channel_present_BC is None else channel_present_BC.bool())[..., None]
        return torch.cat([present_BC1, real_BCK, present_BC1], dim=2).flatten(1)

    def _real(self, valid_BT: Tensor | None, channel_present_BC: Tensor | None, x_BCT: Tensor) -> Tensor | None:
        """Which patches hold anything real, (B, C, N) bool, or None: all."""
        if valid_BT is None and channel_present_BC is None:
            return None
        real_BCN = torch.ones(x_BCT.shape[0], self.cfg.n_channels, self.cfg.n_lead_patches, dtype=torch.bool, device=x_BCT.device)
        real_BCN = real_BCN if valid_BT is None else real_BCN & patch_valid(valid_BT, self.cfg.patch_samples)[:, None]
        return real_BCN if channel_present_BC is None else real_BCN & channel_present_BC.bool()[..., None]

    def _decode(self, seen_MKD: Tensor, index_MK: Tensor, mask_MN: Tensor, real_BCN: Tensor | None) -> Tensor:
        """One lead at a time, its separators beside it: (B * C, K + 2, D) -> (B * C, N, P)."""
        home_MND = send_home(seen_MKD[:, 1:-1], index_MK, mask_MN, self.mask_D)
        tokens_MND = torch.cat([seen_MKD[:, :1], home_MND, seen_MKD[:, -1:]], dim=1) + self.decoder_positions_ND
        edges_M1 = torch.ones_like(mask_MN[:, :1])
        valid_MN = None if real_BCN is None else torch.cat([edges_M1, real_BCN.flatten(0, 1), edges_M1], dim=1)
        for block in self.decoder_blocks:
            tokens_MND = block(tokens_MND, valid_BN=valid_MN)
        return self.head(self.decoder_norm(tokens_MND[:, 1:-1]))
