"""HiMAE: a small convolutional U-Net over the waveform whose every encoder level is a representation at its own time scale.

Source: Lee et al., "HiMAE", ICLR 2026, arXiv 2510.25785. Parameter names and shapes are the original's, so its weights load.
No attention, no positions: any length works, and `encode` never runs the decoder. Shape letters: B items, C channels, T samples,
N tokens, D features.

    x (B, C, T) -> L1 (16, T/2) -> L2 (32, T/4) -> ... -> L5 (256, T/32) -> decoder, joined with L4 ... L1 -> (B, C, T)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.conv1d import DownBlock, Norm, UpBlock, up_conv
from physio_models.interface import Encoded, Masked
from physio_models.patches import real_only
from physio_models.pooling import pool

MIN_TOKENS = 8  # fewest tokens the deepest level may keep
MAX_TOKEN_STEP_S = 1.0  # longest time step of the deepest level: one beat at 60 per minute
PUBLISHED_DEPTH = 5


@dataclass(frozen=True, kw_only=True)
class HiMaeConfig:
    """Shape of a HiMAE. The defaults are the published network (1,245,953 parameters); four levels have 309,889."""

    n_channels: int = 1  # signal channels C
    n_samples: int = 1000  # window length trained on, samples; the network itself takes any length
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)  # channels of each level, shallow to deep; each level halves time
    kernel: int = 5  # samples at the level's own rate, odd
    skips: bool = True  # False: the decoder sees only the deepest level
    norm: Norm = "batch"  # "group" has no running statistics, so masked training and unmasked use agree by construction
    mask_input: Literal["zero", "channel", "partial"] = (
        "zero"  # how the encoder meets hidden samples: zeros (original), zeros and a mask channel, partial convolution
    )
    output: Literal["tanh", "linear"] = "tanh"  # tanh (original) fits signals in [-1, 1], linear any scale

    input: ClassVar[str] = "signal"
    length_free: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if self.n_channels < 1 or self.n_samples < 2:
            raise ValueError(f"n_channels must be at least 1 and n_samples at least 2, got {self.n_channels} and {self.n_samples}")
        if not self.widths or any(width < 1 for width in self.widths):
            raise ValueError(f"widths must name at least one level of at least one channel, got {self.widths}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number of samples, got {self.kernel}; use {abs(self.kernel) + 1}")
        for field, allowed in (("norm", ("batch", "group")), ("mask_input", ("zero", "channel", "partial")), ("output", ("tanh", "linear"))):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}")

    @property
    def depth(self) -> int:
        return len(self.widths)

    def build(self) -> HiMae:
        """The network with PyTorch's default initialisation, drawn from torch's global generator."""
        return HiMae(self)

    @classmethod
    def preset(cls, size: Literal["tiny", "fast", "reference"], *, n_channels: int = 1, n_samples: int = 1000) -> HiMaeConfig:
        """tiny: seconds, for tests; fast: four levels, minutes on two cores; reference: the published five levels."""
        widths = {"tiny": (8, 16, 32), "fast": (16, 32, 64, 128), "reference": (16, 32, 64, 128, 256)}
        if size not in widths:
            raise ValueError(f"size must be one of {', '.join(widths)}, got {size!r}")
        return cls(n_channels=n_channels, n_samples=n_samples, widths=widths[size])

    @classmethod
    def for_length(
        cls, n_samples: int, fs: float, *, n_channels: int = 1, base_width: int = 16, kernel: int = 5, max_depth: int = PUBLISHED_DEPTH
    ) -> HiMaeConfig:
        """A depth that suits windows of ``n_samples`` at ``fs`` Hz, widths doubling from ``base_width``.

        The deepest level up to ``max_depth`` that keeps at least 8 tokens, whose receptive field fits into the window, and whose
        tokens are at most 1 s apart. 10 s at 100 Hz gives the published five levels, 10 s at 25 Hz four (the fifth would see 14.9 s).
        ``ValueError`` if not even one level fits.
        """
        if not fs > 0:
            raise ValueError(f"fs must be a positive rate in Hz, got {fs}")

        def fits(depth: int) -> bool:
            stride = 2**depth
            return -(-n_samples // stride) >= MIN_TOKENS and receptive_field(depth, kernel) <= n_samples and stride / fs <= MAX_TOKEN_STEP_S

        depths = [depth for depth in range(1, max_depth + 1) if fits(depth)]
        if not depths:
            raise ValueError(
                f"n_samples={n_samples} at {fs:g} Hz is too short for one level, which needs {2 * MIN_TOKENS - 1} samples at 2 Hz or more; use longer windows"
            )
        return cls(n_channels=n_channels, n_samples=n_samples, widths=tuple(base_width * 2**level for level in range(depths[-1])), kernel=kernel)


def receptive_field(level: int, kernel: int = 5) -> int:
    """Samples that one token of a level (from 1) depends on: 13, 37, 85, 181, 373 for kernel 5."""
    return 1 + sum((kernel - 1) * (2**i + 2 ** (i + 1)) for i in range(level))


class HiMae(nn.Module):
    """Masked autoencoder of a waveform: (B, C, T) -> (B, C, T) for any T; `encode` gives features of every level."""

    def __init__(self, cfg: HiMaeConfig) -> None:
        super().__init__()
        self.cfg = cfg
        n_in = cfg.n_channels + (cfg.mask_input == "channel")
        self.encoder_layers = nn.ModuleList(
            DownBlock(below, width, cfg.kernel, cfg.norm) for below, width in zip((n_in, *cfg.widths[:-1]), cfg.widths, strict=True)
        )
        up = cfg.widths[::-1]
        self.decoder_layers = nn.ModuleList(UpBlock(deep, shallow, cfg.kernel, cfg.norm, cfg.skips) for deep, shallow in pairwise(up))
        self.final_deconv = up_conv(cfg.widths[0], cfg.n_channels, cfg.kernel)

    @property
    def level_names(self) -> tuple[str, ...]:
        return tuple(f"L{level}" for level in range(1, self.cfg.depth + 1))

    def forward(self, x_BCT: Tensor, mask_BT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Masked:
        """Reconstruct what ``mask_BT`` (B, T) or (B, 1, T), True or 1 = hidden, takes away; ``valid_BT`` is False past a short tail.

        A channel that is absent (``channel_present_BC`` False) reads as zeros, in the target too.
        """
        self._check(x_BCT)
        x_BCT = real_only(x_BCT, None, channel_present_BC)
        mask_B1T = _as_B1T(mask_BT, x_BCT, "mask_BT").bool()
        levels = self._levels(x_BCT.masked_fill(mask_B1T, 0.0), mask_B1T, valid_BT)
        return Masked(self._decode(levels, x_BCT.shape[-1]), x_BCT, mask_B1T)

    def encode(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Features of unmasked input at every level, `L1` ... ; pooled is the mean of the deepest. The decoder does not run.

        Past a short tail (``valid_BT`` False) tokens are 0 and stay out of the mean, and real ones are as if the window ended there.
        A channel that is absent (``channel_present_BC`` False) reads as zeros. Pure in eval mode; in train mode batch
        normalisation uses and updates its statistics, as in any module.
        """
        self._check(x_BCT)
        features = self._levels(real_only(x_BCT, None, channel_present_BC), None, valid_BT)
        levels = {name: feature.transpose(1, 2) for name, feature in zip(self.level_names, features, strict=True)}
        deepest = levels[self.level_names[-1]]
        valid_BN = None if valid_BT is None else self.token_valid(valid_BT)[self.level_names[-1]]
        return Encoded(deepest, pool(deepest, "mean", valid_BN), levels)

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level stand on real samples: name -> (B, N_l) bool."""
        return {name: valid_BT[:, :: 2**level].bool() for level, name in enumerate(self.level_names, start=1)}

    def _levels(self, x_BCT: Tensor, mask_B1T: Tensor | None, valid_BT: Tensor | None) -> list[Tensor]:
        """Outputs of the encoder's blocks, (B, D_l, N_l), shallow to deep."""
        real_B1T = None
        if valid_BT is not None:
            valid_B1T = _as_B1T(valid_BT, x_BCT, "valid_BT").bool()
            x_BCT, real_B1T = x_BCT.masked_fill(~valid_B1T, 0.0), valid_B1T.to(x_BCT.dtype)
        seen_B1T = None
        if self.cfg.mask_input == "channel":
            hidden = torch.zeros_like(x_BCT[:, :1]) if mask_B1T is None else mask_B1T.to(x_BCT.dtype)
            x_BCT = torch.cat([x_BCT, hidden], dim=1)
        elif self.cfg.mask_input == "partial" and mask_B1T is not None:
            seen_B1T = (~mask_B1T).to(x_BCT.dtype)
        levels = []
        for block in self.encoder_layers:
            x_BCT, real_B1T, seen_B1T = block(x_BCT, real_B1T, seen_B1T)
            levels.append(x_BCT)
        return levels

    def _decode(self, levels: list[Tensor], n_samples: int) -> Tensor:
        y_BCT = levels[-1]
        for block, skip_BCT in zip(self.decoder_layers, levels[-2::-1], strict=True):
            y_BCT = block(y_BCT, skip_BCT)
        y_BCT = self.final_deconv(y_BCT)
        if y_BCT.shape[-1] != n_samples:  # odd lengths come out one sample longer; the original interpolates
            y_BCT = F.interpolate(y_BCT, size=n_samples, mode="linear", align_corners=False)
        return y_BCT.tanh() if self.cfg.output == "tanh" else y_BCT

    def _check(self, x_BCT: Tensor) -> None:
        if x_BCT.ndim != 3 or x_BCT.shape[1] != self.cfg.n_channels:
            raise ValueError(f"x_BCT must be (batch, {self.cfg.n_channels} channels, samples), got {tuple(x_BCT.shape)}; select or add channels by name first")


def _as_B1T(mask: Tensor, x_BCT: Tensor, name: str) -> Tensor:
    """A (B, T) or (B, 1, T) mask as (B, 1, T); both are unambiguous, anything else raises."""
    n_items, _, n_samples = x_BCT.shape
    if mask.shape == (n_items, n_samples):
        return mask[:, None, :]
    if mask.shape == (n_items, 1, n_samples):
        return mask
    raise ValueError(
        f"{name} must be {(n_items, n_samples)} or {(n_items, 1, n_samples)}, got {tuple(mask.shape)}; spread a mask over patches with masking.to_samples"
    )
