"""Which patches an autoencoder hides, as pure functions of given noise. Shape letters: B items, N patches, T samples.

True means hidden. Every kind hides exactly ``int(ratio * N)`` patches of an item, as the original HiMAE does.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MaskKind = Literal["random", "block", "trailing"]


def n_hidden(ratio: float | Tensor, n_patches: int) -> int | Tensor:
    """``int(ratio * n_patches)``, truncated; a (B,) tensor of ratios gives (B,) int64."""
    if isinstance(ratio, Tensor):
        return (ratio.double() * n_patches).long()
    return int(ratio * n_patches)


def random_mask(noise_BN: Tensor, ratio: float | Tensor) -> Tensor:
    """Hide the patches of lowest noise: (B, N) bool, exactly ``int(ratio * N)`` per item. ``ratio`` is one number or (B,)."""
    order_BN = noise_BN.argsort(dim=1, stable=True)
    rank_N = torch.arange(noise_BN.shape[1], device=noise_BN.device)
    hidden_BN = rank_N < _column(n_hidden(ratio, noise_BN.shape[1]), noise_BN)
    return torch.zeros_like(noise_BN, dtype=torch.bool).scatter(1, order_BN, hidden_BN)


def block_mask(noise_BN: Tensor, ratio: float | Tensor) -> Tensor:
    """Hide one run of patches whose place is drawn from the first noise value of each item: (B, N) bool."""
    n = noise_BN.shape[1]
    length_B1 = _column(n_hidden(ratio, n), noise_BN)
    start_B1 = (noise_BN[:, :1].double() * (n - length_B1 + 1)).long()
    position_N = torch.arange(n, device=noise_BN.device)
    return (position_N >= start_B1) & (position_N < start_B1 + length_B1)


def trailing_mask(noise_BN: Tensor, ratio: float | Tensor) -> Tensor:
    """Hide the last patches (forecasting); the noise gives only the shape: (B, N) bool."""
    n = noise_BN.shape[1]
    return torch.arange(n, device=noise_BN.device) >= n - _column(n_hidden(ratio, n), noise_BN)


def part_of(mask: Tensor, noise: Tensor, fraction: float) -> Tensor:
    """The hidden places of lowest noise: ``int(fraction * n)`` of the n that an item, or a lead of it, hides, at least one; as the mask is."""
    rank = noise.masked_fill(~mask, 2.0).argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
    count = mask.sum(-1, keepdim=True)
    return rank < torch.minimum((fraction * count.double()).long().clamp(min=1), count)


MASKS = {"random": random_mask, "block": block_mask, "trailing": trailing_mask}


def to_samples(mask_BN: Tensor, patch: int) -> Tensor:
    """A mask over patches (B, N) as one over samples (B, N * patch)."""
    return mask_BN.repeat_interleave(patch, dim=1)


def n_patches(n_samples: int, patch: int) -> int:
    """How many patches of ``patch`` samples a window has. ``ValueError`` if it is no whole number, naming the nearest patches that fit."""
    if patch < 1 or n_samples < 1:
        raise ValueError(f"patch and window must be at least one sample, got patch={patch}, window={n_samples}")
    if n_samples % patch:
        divisors = [d for d in range(1, n_samples + 1) if n_samples % d == 0]
        below, above = max(d for d in divisors if d < patch), min((d for d in divisors if d > patch), default=n_samples)
        raise ValueError(
            f"patch={patch} samples does not divide the window of {n_samples} samples: use patch={below} or {above}, "
            f"or windows of {n_samples // patch * patch or patch} or {(n_samples // patch + 1) * patch} samples"
        )
    return n_samples // patch


def _column(count: int | Tensor, like_BN: Tensor) -> Tensor:
    """A count per item as (B, 1) int64."""
    if isinstance(count, Tensor):
        return count.to(like_BN.device).reshape(-1, 1)
    return torch.full((like_BN.shape[0], 1), count, device=like_BN.device)
