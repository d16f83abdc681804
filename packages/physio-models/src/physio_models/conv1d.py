"""Convolution blocks over time. Shape letters: B items, C or D channels, T samples.

``real_B1T`` is 1 on samples that exist; beyond a short tail every activation is held at zero, just as padding is, so that a
window with a tail has the features of the window cut short. ``seen_B1T`` is 1 where a partial convolution has something to see.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "group"]


def norm_layer(norm: Norm, n_channels: int) -> nn.Module:
    """Batch normalisation, or group normalisation with up to eight groups (no running statistics)."""
    return nn.BatchNorm1d(n_channels) if norm == "batch" else nn.GroupNorm(math.gcd(n_channels, 8), n_channels)


class DownBlock(nn.Module):
    """Residual block that halves time: (B, in, T) -> (B, out, ceil(T / 2)). HiMAE's encoder level."""

    def __init__(self, n_in: int, n_out: int, kernel: int, norm: Norm) -> None:
        super().__init__()
        self.main_path = nn.Sequential(
            nn.Conv1d(n_in, n_out, kernel, stride=2, padding=kernel // 2, bias=False),
            norm_layer(norm, n_out),
            nn.GELU(),
            nn.Conv1d(n_out, n_out, kernel, padding=kernel // 2, bias=False),
            norm_layer(norm, n_out),
        )
        self.shortcut = nn.Sequential(nn.Conv1d(n_in, n_out, 1, stride=2, bias=False), norm_layer(norm, n_out))
        self.final_activation = nn.GELU()

    def forward(self, x_BCT: Tensor, real_B1T: Tensor | None = None, seen_B1T: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The halved features with ``real`` and ``seen`` at their rate (None where none were given)."""
        conv_in, norm_in, activation, conv_out, norm_out = self.main_path
        conv_short, norm_short = self.shortcut
        real_B1T = None if real_B1T is None else real_B1T[..., ::2]
        hidden, seen_hidden = partial_conv(conv_in, x_BCT, seen_B1T)
        hidden = _only(activation(norm_in(hidden)), real_B1T)
        main, seen_main = partial_conv(conv_out, hidden, seen_hidden)
        short, _ = partial_conv(conv_short, x_BCT, seen_B1T)
        y = self.final_activation(norm_out(main) + norm_short(short))
        return _only(y, real_B1T), real_B1T, seen_main


class UpBlock(nn.Module):
    """Doubles time, crops to the skip's length and joins the skip: (B, in, T), (B, out, T') -> (B, out, T')."""

    def __init__(self, n_in: int, n_out: int, kernel: int, norm: Norm, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        self.upconv = up_conv(n_in, n_out, kernel)
        self.conv_block = nn.Sequential(
            nn.Conv1d(2 * n_out if skips else n_out, n_out, kernel, padding=kernel // 2, bias=False),
            norm_layer(norm, n_out),
            nn.GELU(),
            nn.Conv1d(n_out, n_out, kernel, padding=kernel // 2, bias=False),
            norm_layer(norm, n_out),
            nn.GELU(),
        )

    def forward(self, x_BCT: Tensor, skip_BCT: Tensor) -> Tensor:
        up_BCT = self.upconv(x_BCT)[..., : skip_BCT.shape[-1]]
        return self.conv_block(torch.cat([up_BCT, skip_BCT], dim=1) if self.skips else up_BCT)


def up_conv(n_in: int, n_out: int, kernel: int) -> nn.ConvTranspose1d:
    """Transposed convolution that doubles the length exactly."""
    return nn.ConvTranspose1d(n_in, n_out, kernel, stride=2, padding=kernel // 2, output_padding=1)


def partial_conv(conv: nn.Conv1d, x_BCT: Tensor, seen_B1T: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Convolution over seen samples alone, scaled up by how few there were (Liu et al. 2018, "Image inpainting ... partial convolutions").

    Returns the features, 0 where nothing was seen, and the new ``seen``. Where all is seen it is the plain convolution, at the
    borders too: padding does not count as missing. ``seen_B1T=None`` is the plain convolution.
    """
    if seen_B1T is None:
        return conv(x_BCT), None
    ones_11K = seen_B1T.new_ones(1, 1, conv.kernel_size[0])
    count = F.conv1d(seen_B1T, ones_11K, stride=conv.stride, padding=conv.padding)
    most = F.conv1d(torch.ones_like(seen_B1T), ones_11K, stride=conv.stride, padding=conv.padding)
    return conv(x_BCT * seen_B1T) * torch.where(count > 0, most / count.clamp(min=1), 0.0), (count > 0).to(seen_B1T.dtype)


def _only(x_BCT: Tensor, real_B1T: Tensor | None) -> Tensor:
    return x_BCT if real_B1T is None else x_BCT * real_B1T
