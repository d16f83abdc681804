"""From samples to tokens and back: patches, positions, and the way of visible tokens out of and back into their places.

Shape letters: B items, C channels, T samples, N patches, P values of a patch, K kept tokens, D features. In masks over tokens True = hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from physio_models.masking import n_patches


def to_patches(x_BCT: Tensor, patch: int) -> Tensor:
    """Tokens that span all channels: (B, C, T) -> (B, T / patch, C * patch), channel by channel inside a token. ``ValueError`` if patch does not divide T."""
    n_items, n_channels, n_samples = x_BCT.shape
    n = n_patches(n_samples, patch)
    return x_BCT.reshape(n_items, n_channels, n, patch).transpose(1, 2).reshape(n_items, n, n_channels * patch)


def from_patches(patches_BNP: Tensor, n_channels: int) -> Tensor:
    """Undo `to_patches`: (B, N, C * patch) -> (B, C, N * patch)."""
    n_items, n, size = patches_BNP.shape
    return patches_BNP.reshape(n_items, n, n_channels, size // n_channels).transpose(1, 2).reshape(n_items, n_channels, -1)


def to_lead_patches(x_BCT: Tensor, patch: int) -> Tensor:
    """Tokens of one channel each: (B, C, T) -> (B, C, T / patch, patch). ``ValueError`` if patch does not divide T."""
    return x_BCT.reshape(*x_BCT.shape[:2], n_patches(x_BCT.shape[-1], patch), patch)


def from_lead_patches(patches_BCNP: Tensor) -> Tensor:
    """Undo `to_lead_patches`: (B, C, N, patch) -> (B, C, N * patch)."""
    return patches_BCNP.flatten(2)


def patch_valid(valid_BT: Tensor, patch: int) -> Tensor:
    """Which patches hold at least one real sample: (B, T) -> (B, T / patch) bool."""
    return valid_BT.bool().reshape(len(valid_BT), n_patches(valid_BT.shape[1], patch), patch).any(-1)


def sincos_positions(n: int, width: int, *, temperature: float = 10_000.0) -> Tensor:
    """(n, width) float32: row p is sin then cos of p / temperature^(i / (width / 2)), i < width / 2 (Vaswani et al., arXiv 1706.03762).

    ``ValueError`` for an odd width.
    """
    if width % 2:
        raise ValueError(f"width must be even to hold sines and cosines, got {width}")
    frequency_I = temperature ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle_NI = torch.arange(n, dtype=torch.float64)[:, None] * frequency_I
    return torch.cat([angle_NI.sin(), angle_NI.cos()], dim=1).float()


class Visible(NamedTuple):
    """Where the tokens an encoder sees come from: places (B, K) in ascending order, and which of the K are visible at all."""

    index_BK: Tensor
    visible_BK: Tensor | None  # None: all K of every item


def visible(mask_BN: Tensor, n_visible: int | None = None) -> Visible:
    """Places of the tokens that ``mask_BN`` does not hide.

    ``n_visible`` is their number where it is known and the same for every item; then nothing waits for the device. Without it K is
    the largest number of any item, and items with fewer are filled up with places that are not visible.
    """
    hidden_BN = mask_BN.bool()
    order_BN = hidden_BN.to(torch.uint8).argsort(dim=1, stable=True)
    if n_visible is not None:
        return Visible(order_BN[:, :n_visible], None)
    n_B = (~hidden_BN).sum(1)
    most = max(1, int(n_B.max()))
    visible_BK = torch.arange(most, device=mask_BN.device) < n_B[:, None]
    return Visible(order_BN[:, :most], visible_BK)


def take(x_BND: Tensor, index_BK: Tensor) -> Tensor:
    """Rows of each item: (B, N, ...) and (B, K) -> (B, K, ...)."""
    index = index_BK.reshape(*index_BK.shape, *[1] * (x_BND.ndim - 2)).expand(-1, -1, *x_BND.shape[2:])
    return x_BND.gather(1, index)


def send_home(kept_BKD: Tensor, index_BK: Tensor, mask_BN: Tensor, token_D: Tensor) -> Tensor:
    """Put kept tokens back where `visible` took them from, and ``token_D`` into every hidden place: (B, N, D)."""
    n_items, _, width = kept_BKD.shape
    home_BND = kept_BKD.new_zeros(n_items, mask_BN.shape[1], width)
    home_BND = home_BND.scatter(1, index_BK[..., None].expand(-1, -1, width), kept_BKD)
    return torch.where(mask_BN.bool()[..., None], token_D.to(kept_BKD.dtype), home_BND)


class Packed(NamedTuple):
    """Real tokens first: ``order_BN`` brings them there, ``home_BN`` brings them back, ``length_B`` counts them."""

    order_BN: Tensor
    home_BN: Tensor
    length_B: Tensor


def pack(valid_BN: Tensor) -> Packed:
    """The order that puts the real tokens of each item in front, wherever its padding stood; `take` applies it."""
    order_BN = (~valid_BN.bool()).to(torch.uint8).argsort(dim=1, stable=True)
    return Packed(order_BN, order_BN.argsort(dim=1), valid_BN.sum(1))


def patch_for(n_samples: int, *, fewest: int = 16, most: int = 64, aim: int = 32) -> int:
    """The patch length, samples, that cuts a window into the number of patches nearest to ``aim``: 100 for 2500, 50 for 1250.

    ``ValueError`` if no whole number of patches from ``fewest`` to ``most`` fits.
    """
    counts = [n for n in range(fewest, most + 1) if n_samples % n == 0]
    if not counts:
        near = next(n for n in range(n_samples, 0, -1) if any(n % k == 0 for k in range(fewest, most + 1))) if n_samples >= fewest else fewest
        raise ValueError(f"n_samples={n_samples} is no multiple of any number of patches from {fewest} to {most}: give patch, or use windows of {near} samples")
    return n_samples // min(counts, key=lambda n: abs(n - aim))


def check_window(x_BCT: Tensor, n_channels: int, n_samples: int) -> None:
    """``ValueError`` unless ``x_BCT`` is (B, n_channels, n_samples)."""
    if x_BCT.ndim != 3 or x_BCT.shape[1] != n_channels:
        raise ValueError(f"x_BCT must be (batch, {n_channels} channels, samples), got {tuple(x_BCT.shape)}; select or add channels by name first")
    if x_BCT.shape[2] != n_samples:
        raise ValueError(f"x_BCT must have {n_samples} samples, got {x_BCT.shape[2]}; prepare windows of that length or build the model for this one")


def real_only(x_BCT: Tensor, valid_BT: Tensor | None, channel_present_BC: Tensor | None) -> Tensor:
    """The signal with 0 past a short tail and in absent channels. ``ValueError`` for masks of another shape."""
    n_items, n_channels, n_samples = x_BCT.shape
    if valid_BT is not None:
        if valid_BT.shape != (n_items, n_samples):
            raise ValueError(f"valid_BT must be {(n_items, n_samples)}, got {tuple(valid_BT.shape)}")
        x_BCT = x_BCT.masked_fill(~valid_BT.bool()[:, None, :], 0.0)
    if channel_present_BC is not None:
        if channel_present_BC.shape != (n_items, n_channels):
            raise ValueError(f"channel_present_BC must be {(n_items, n_channels)}, got {tuple(channel_present_BC.shape)}")
        x_BCT = x_BCT.masked_fill(~channel_present_BC.bool()[:, :, None], 0.0)
    return x_BCT
