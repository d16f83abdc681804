"""Normalisations by name on tensors: the same names and numbers as ``physio_data.normalize``.

``instance_*`` takes one statistic over all channels of an item, ``lead_*`` one per channel. Shape letters: B items, C channels, T samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLAT_RANGE = 1e-6  # a peak-to-peak range up to this is flat and maps to 0
EPSILON = 1e-6  # added to a standard deviation
IQR_TO_SD = 1.349  # interquartile range of the normal distribution in standard deviations


class Scale(NamedTuple):
    """``x = y * scale + offset``, each (B, C, 1) or (B, 1, 1) float32."""

    offset: Tensor
    scale: Tensor

    def restore(self, y_BCT: Tensor) -> Tensor:
        """Back to the units before; a channel that was flat comes back as its mid-range."""
        return y_BCT * self.scale + self.offset


def _minmax(x_BGT: Tensor, real_BGT: Tensor) -> tuple[Tensor, Tensor]:
    low = x_BGT.masked_fill(~real_BGT, float("inf")).amin(-1, keepdim=True)
    high = x_BGT.masked_fill(~real_BGT, float("-inf")).amax(-1, keepdim=True)
    return (low + high) / 2, torch.where(high - low <= FLAT_RANGE, 0.0, (high - low) / 2)


def _zscore(x_BGT: Tensor, real_BGT: Tensor) -> tuple[Tensor, Tensor]:
    n = real_BGT.sum(-1, keepdim=True)
    mean = x_BGT.masked_fill(~real_BGT, 0.0).sum(-1, keepdim=True) / n
    variance = (x_BGT - mean).square().masked_fill(~real_BGT, 0.0).sum(-1, keepdim=True) / n
    return mean, variance.sqrt() + EPSILON


def _robust(x_BGT: Tensor, real_BGT: Tensor) -> tuple[Tensor, Tensor]:
    """Quartiles by linear interpolation of the sorted real samples."""
    ordered = x_BGT.masked_fill(~real_BGT, float("inf")).sort(-1).values
    last = real_BGT.sum(-1, keepdim=True) - 1

    def quantile(q: float) -> Tensor:
        position = q * last.double()
        below = position.floor().long()
        above = torch.minimum(below + 1, last)
        low, high = ordered.gather(-1, below), ordered.gather(-1, above)
        return low + (high - low) * (position - below)

    return quantile(0.5), (quantile(0.75) - quantile(0.25)) / IQR_TO_SD + EPSILON


_STATISTICS = {
    "instance_minmax": (_minmax, True),
    "lead_minmax": (_minmax, False),
    "instance_zscore": (_zscore, True),
    "lead_zscore": (_zscore, False),
    "lead_robust": (_robust, False),
}
NORMALIZERS = frozenset({"none", "fixed", *_STATISTICS})
Fixed = tuple[float | tuple[float, ...], float | tuple[float, ...]]


def normalize(
    x_BCT: Tensor, name: str, valid_BT: Tensor | None = None, fixed: Fixed | None = None, channel_present_BC: Tensor | None = None
) -> tuple[Tensor, Scale]:
    """Normalise a batch by ``name``; returns (y_BCT float32, Scale). Samples where ``valid_BT`` is False, and channels that
    ``channel_present_BC`` says are lost, count nowhere and become 0, whatever they hold.

    - ``*_minmax`` maps the range to [-1, 1]; a range up to 1e-6 (a flat channel) maps to 0
    - ``*_zscore`` (x - mean) / (population standard deviation + 1e-6)
    - ``lead_robust`` (x - median) / (interquartile range / 1.349 + 1e-6)
    - ``fixed`` (x - offset) / scale with ``fixed=(offset, scale)``, numbers or one per channel
    - ``none`` the signal itself

    ``ValueError`` for an unknown name, a wrong shape, a non-finite sample that counts or an item without one that does.
    """
    if x_BCT.ndim != 3:
        raise ValueError(f"x_BCT must be (batch, channels, samples), got shape {tuple(x_BCT.shape)}; add the missing axis explicitly")
    if name not in NORMALIZERS:
        raise ValueError(f"name must be one of {', '.join(sorted(NORMALIZERS))}, got {name!r}")
    if (fixed is not None) != (name == "fixed"):
        raise ValueError(f"fixed=(offset, scale) belongs to the name 'fixed' and only to it, got name {name!r} and fixed={fixed!r}")
    real_BCT = counted_BCT = _real(x_BCT, valid_BT)
    if channel_present_BC is not None:
        present_BC1 = _present(x_BCT, channel_present_BC)
        real_BCT = real_BCT & present_BC1
    _check_finite(x_BCT, real_BCT)
    x_BCT = x_BCT.double()  # a small pulse on a large offset keeps its digits
    n_items, n_channels, _ = x_BCT.shape
    if name in _STATISTICS:
        statistic, whole_item = _STATISTICS[name]
        groups = (n_items, 1, -1) if whole_item else (n_items, n_channels, -1)
        if channel_present_BC is not None:  # a lost channel has no part in an item's statistic, and of its own it has a flat one
            x_BCT = x_BCT.masked_fill(~present_BC1, 0.0)
            counted_BCT = torch.where(present_BC1.any(1, keepdim=True), real_BCT, counted_BCT) if whole_item else counted_BCT
        offset, scale = statistic(x_BCT.reshape(groups), counted_BCT.reshape(groups))
    else:
        offset, scale = _given(fixed or (0.0, 1.0), x_BCT)
    flat = scale == 0
    y_BCT = torch.where(flat | ~real_BCT, 0.0, (x_BCT - offset) / torch.where(flat, 1.0, scale)).float()
    return y_BCT, Scale(offset.float(), torch.where(flat, 1.0, scale).float())


def normalize_whole(x_BCT: Tensor, name: str, fixed: Fixed | None = None) -> Tensor:
    """`normalize` of finite windows without a short tail, unchecked: a plain graph of tensor operations, for export."""
    real_BCT = torch.ones_like(x_BCT, dtype=torch.bool)
    x_BCT = x_BCT.double()
    if name in _STATISTICS:
        statistic, whole_item = _STATISTICS[name]
        shape = (x_BCT.shape[0], 1 if whole_item else x_BCT.shape[1], -1)
        offset, scale = statistic(x_BCT.reshape(shape), real_BCT.reshape(shape))
    elif name == "none":
        return x_BCT.float()
    else:
        offset, scale = (torch.tensor(value, dtype=torch.float64).reshape(1, -1, 1) for value in fixed)
    flat = scale == 0
    return torch.where(flat, 0.0, (x_BCT - offset) / torch.where(flat, 1.0, scale)).float()


def _real(x_BCT: Tensor, valid_BT: Tensor | None) -> Tensor:
    if valid_BT is None:
        return torch.ones_like(x_BCT, dtype=torch.bool)
    if valid_BT.shape != (x_BCT.shape[0], x_BCT.shape[2]):
        raise ValueError(f"valid_BT must be (batch, samples) = {(x_BCT.shape[0], x_BCT.shape[2])}, got {tuple(valid_BT.shape)}")
    valid_BT = valid_BT.bool()
    empty_B = ~valid_BT.any(-1)
    if bool(empty_B.any()):
        raise ValueError(f"valid_BT has no valid sample in item {int(empty_B.nonzero()[0])}; leave that item out")
    return valid_BT[:, None, :].expand(x_BCT.shape)


def _present(x_BCT: Tensor, channel_present_BC: Tensor) -> Tensor:
    if channel_present_BC.shape != x_BCT.shape[:2]:
        raise ValueError(f"channel_present_BC must be (batch, channels) = {tuple(x_BCT.shape[:2])}, got {tuple(channel_present_BC.shape)}")
    return channel_present_BC.bool()[..., None]


def _check_finite(x_BCT: Tensor, real_BCT: Tensor) -> None:
    bad_BCT = ~torch.isfinite(x_BCT) & real_BCT
    if bool(bad_BCT.any()):
        b, c, t = bad_BCT.nonzero()[0].tolist()
        raise ValueError(f"x_BCT is not finite at item {b}, channel {c}, sample {t}; mark it in valid_BT or leave the window out")


def _given(fixed: Fixed, x_BCT: Tensor) -> tuple[Tensor, Tensor]:
    n_channels = x_BCT.shape[1]
    offset, scale = (torch.as_tensor(value, dtype=torch.float64, device=x_BCT.device).reshape(-1, 1) for value in fixed)
    for field, value in (("offset", offset), ("scale", scale)):
        if value.shape[0] not in (1, n_channels):
            raise ValueError(f"fixed {field} must be a number or {n_channels} of them, got {value.shape[0]}")
    if not (bool(offset.isfinite().all()) and bool(scale.isfinite().all()) and bool((scale > 0).all())):
        raise ValueError(f"fixed offset must be finite and scale positive, got {fixed}")
    shape = (x_BCT.shape[0], n_channels, 1)
    return offset.expand(shape), scale.expand(shape)
