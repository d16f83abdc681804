"""Residual network over time, 18 to 152 layers: the supervised baseline, and the ECG tower of MERL.

Source: He et al. 2016, arXiv 1512.03385, with one-dimensional convolutions: a stem of kernel 7 and stride 2 without max-pooling,
four stages of strides 1, 2, 2, 2, bottlenecks from 50 layers on. No positions: any length works. Shape letters: B items,
C channels, T samples, N tokens, D features.

    x (B, C, T) -> stem (64, T/2) -> block1 (64 or 256, T/2) -> block2 (128, T/4) -> block3 (256, T/8) -> block4 (512 or 2048, T/16) -> mean
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from physio_models.interface import Embedded, Encoded
from physio_models.pooling import pool

Depth = Literal[18, 34, 50, 101, 152]
BLOCKS: dict[int, tuple[int, int, int, int]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
FIRST_BOTTLENECK = 50  # layers from which the blocks are bottlenecks
EXPANSION = 4  # output width of a bottleneck over its inner width


@dataclass(frozen=True, kw_only=True)
class ResNet1dConfig:
    """Shape of a residual network."""

    n_channels: int = 12  # signal channels C
    n_samples: int = 1000  # window length trained on, samples; the network itself takes any length
    depth: Depth = 18  # layers with weights
    base_width: int = 64  # inner width of the first stage; doubled from stage to stage
    kernel: int = 3  # of the blocks, samples at their own rate, odd

    input: ClassVar[str] = "signal"
    length_free: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("n_channels", "n_samples", "base_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.depth not in BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}, got {self.depth}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number of samples, got {self.kernel}; use {abs(self.kernel) + 1}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of the four stages."""
        return tuple(self.base_width * 2**stage * (EXPANSION if self.depth >= FIRST_BOTTLENECK else 1) for stage in range(4))

    def build(self) -> ResNet1d:
        """The network with PyTorch's default initialisation, drawn from torch's global generator."""
        return ResNet1d(self)

    @classmethod
    def preset(cls, size: Literal["tiny", "fast", "reference"], *, n_channels: int = 12, n_samples: int = 1000) -> ResNet1dConfig:
        """tiny: seconds, for tests; fast: 18 layers of a quarter of the width, minutes on two cores; reference: 18 layers of the published width."""
        widths = {"tiny": 4, "fast": 16, "reference": 64}
        if size not in widths:
            raise ValueError(f"size must be one of {', '.join(widths)}, got {size!r}")
        n_samples = 200 if size == "tiny" and n_samples == 1000 else n_samples
        return cls(n_channels=n_channels, n_samples=n_samples, base_width=widths[size])


class Stage(NamedTuple):
    """Features of one stage (B, D, N), and which of its tokens stand on real samples, (B, 1, N) bool; None: all."""

    features_BDN: Tensor
    real_B1N: Tensor | None


class ResNet1d(nn.Module):
    """(B, C, T) -> one vector per item; `encode` gives every stage's features."""

    level_names = ("block1", "block2", "block3", "block4")

    def __init__(self, cfg: ResNet1dConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.conv = nn.Conv1d(cfg.n_channels, cfg.base_width, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm1d(cfg.base_width)
        bottleneck = cfg.depth >= FIRST_BOTTLENECK
        self.stages = nn.ModuleList()
        n_in = cfg.base_width
        for stage, (n_out, n_blocks) in enumerate(zip(cfg.widths, BLOCKS[cfg.depth], strict=True)):
            strides = [2 if stage and i == 0 else 1 for i in range(n_blocks)]
            self.stages.append(
                nn.ModuleList(Residual(n_in if i == 0 else n_out, n_out, cfg.kernel, stride, bottleneck=bottleneck) for i, stride in enumerate(strides))
            )
            n_in = n_out

    @property
    def n_features(self) -> int:
        """D of the last stage and of the embedding."""
        return self.cfg.widths[-1]

    def forward(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Embedded:
        """The mean over time of the last stage; samples where ``valid_BT`` is False (a short tail) take no part, an absent channel reads as zeros."""
        *_, last = self.features(without_absent(x_BCT, channel_present_BC), valid_BT)
        return Embedded(pool(last.features_BDN.transpose(1, 2), "mean", None if last.real_B1N is None else last.real_B1N[:, 0]))

    def encode(self, x_BCT: Tensor, *, valid_BT: Tensor | None = None, channel_present_BC: Tensor | None = None) -> Encoded:
        """Features of every stage; pooled is the mean of the last, the embedding of `forward`.

        Past a short tail tokens are 0 and stay out of the mean, and real ones are as if the window ended there. An absent channel
        reads as zeros.
        """
        stages = self.features(without_absent(x_BCT, channel_present_BC), valid_BT)
        levels = {name: stage.features_BDN.transpose(1, 2) for name, stage in zip(self.level_names, stages, strict=True)}
        real_B1N = stages[-1].real_B1N
        return Encoded(levels["block4"], pool(levels["block4"], "mean", None if real_B1N is None else real_B1N[:, 0]), levels)

    def token_valid(self, valid_BT: Tensor) -> dict[str, Tensor]:
        """Which tokens of each level stand on real samples: name -> (B, N_l) bool."""
        return {name: valid_BT[:, :: 2**level].bool() for level, name in enumerate(self.level_names, start=1)}

    def features(self, x_BCT: Tensor, valid_BT: Tensor | None = None) -> list[Stage]:
        """Every stage's output, 0 past a short tail."""
        if x_BCT.ndim != 3 or x_BCT.shape[1] != self.cfg.n_channels:
            raise ValueError(f"x_BCT must be (batch, {self.cfg.n_channels} channels, samples), got {tuple(x_BCT.shape)}; select or add channels by name first")
        real_B1T = None
        if valid_BT is not None:
            if valid_BT.shape != (x_BCT.shape[0], x_BCT.shape[2]):
                raise ValueError(f"valid_BT must be (batch, samples) = {(x_BCT.shape[0], x_BCT.shape[2])}, got {tuple(valid_BT.shape)}")
            real_B1T = valid_BT[:, None].bool()
            x_BCT, real_B1T = x_BCT.masked_fill(~real_B1T, 0.0), real_B1T[..., ::2]
        x_BCT = only(F.relu(self.norm(self.conv(x_BCT))), real_B1T)
        found = []
        for blocks in self.stages:
            for block in blocks:
                x_BCT, real_B1T = block(x_BCT, real_B1T)
            found.append(Stage(x_BCT, real_B1T))
        return found


class Residual(nn.Module):
    """Two convolutions, or a bottleneck of three, beside a shortcut: (B, in, T) -> (B, out, ceil(T / stride))."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        inner = n_out // EXPANSION if bottleneck else n_out
        shapes = (
            [(n_in, inner, 1, 1), (inner, inner, kernel, stride), (inner, n_out, 1, 1)]
            if bottleneck
            else [(n_in, n_out, kernel, stride), (n_out, n_out, kernel, 1)]
        )
        self.convs = nn.ModuleList(nn.Conv1d(a, b, size, stride=step, padding=size // 2, bias=False) for a, b, size, step in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm1d(b) for _, b, _, _ in shapes)
        self.stride = stride
        self.shortcut = (
            nn.Sequential(nn.Conv1d(n_in, n_out, 1, stride=stride, bias=False), nn.BatchNorm1d(n_out)) if stride > 1 or n_in != n_out else nn.Identity()
        )

    def forward(self, x_BCT: Tensor, real_B1T: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The block's output and ``real`` at its rate."""
        y_BCT, real_in = x_BCT, real_B1T
        real_out = None if real_B1T is None else real_B1T[..., :: self.stride]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            real_in = real_out if conv.stride[0] > 1 else real_in
            y_BCT = norm(conv(y_BCT))
            if conv is not self.convs[-1]:
                y_BCT = only(F.relu(y_BCT), real_in)
        return only(F.relu(y_BCT + self.shortcut(x_BCT)), real_out), real_out


def only(x_BCT: Tensor, real_B1T: Tensor | None) -> Tensor:
    """Zero where nothing real stands."""
    return x_BCT if real_B1T is None else x_BCT.masked_fill(~real_B1T, 0.0)


def without_absent(x_BCT: Tensor, channel_present_BC: Tensor | None) -> Tensor:
    """Absent channels as zeros. ``ValueError`` for a mask of another shape."""
    if channel_present_BC is None:
        return x_BCT
    if channel_present_BC.shape != x_BCT.shape[:2]:
        raise ValueError(f"channel_present_BC must be {tuple(x_BCT.shape[:2])}, got {tuple(channel_present_BC.shape)}")
    return x_BCT.masked_fill(~channel_present_BC.to(torch.bool)[:, :, None], 0.0)
