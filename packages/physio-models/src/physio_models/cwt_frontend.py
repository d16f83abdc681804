"""From a waveform to what CWT-MAE reads: z-scored channels, their scalograms in planes, and patches of both.

A plane is the wavelet transform of the channel, of its first or of its second difference, z-scored as a whole. Everything is computed in
float32 outside autocast and has no parameters. Shape letters: B items, C channels, T samples, P planes, S scales, W patch columns,
H patch rows, N = W H tokens (all rows of a column together, columns in time), V values of a patch.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from physio_models.cwt import Definition, Wavelet, cwt

SMALLEST_SD = 1e-5
LARGEST = 100.0  # z-scores of a scalogram are clamped here


class FrontEnd(Protocol):
    """What of a config the front end reads."""

    wavelet: Wavelet
    definition: Definition
    differences: int
    patch_scales: int
    patch_samples: int

    @property
    def scales(self) -> tuple[float, ...]: ...


class Views(NamedTuple):
    """Both views of a batch in patches: scalogram (B, C, N, V) and waveform (B, C, W, patch_samples)."""

    spec_BCNV: Tensor
    time_BCWV: Tensor


def zscore(x_BCT: Tensor, valid_BT: Tensor | None = None) -> Tensor:
    """Each channel less its mean over its standard deviation (population, at least 1e-5); 0 past a short tail, where nothing counts.

    The gradient of a flat channel is finite.
    """
    if valid_BT is None:
        return _standardized(x_BCT, None, (-1,))
    return _standardized(x_BCT, valid_BT[:, None].bool(), (-1,))


def scalogram(z_BCT: Tensor, front: FrontEnd, valid_BT: Tensor | None = None) -> Tensor:
    """(B, C, P, S, T): the transform of each channel and of its differences, every plane z-scored over its real columns; magnitudes for Morlet."""
    planes_BCPT = differences(z_BCT, front.differences)
    y = cwt(planes_BCPT, front.scales, wavelet=front.wavelet, definition=front.definition, output="magnitude" if front.wavelet == "morlet" else "coefficients")
    real = None if valid_BT is None else valid_BT[:, None, None, None].bool()
    return _standardized(y, real, (-2, -1)).clamp(-LARGEST, LARGEST)


def differences(z_BCT: Tensor, order: int) -> Tensor:
    """(B, C, 1 + order, T): the signal, its backward difference (0 at the first sample), its centred second one (ends repeated)."""
    planes = [z_BCT]
    if order >= 1:
        planes.append(F.pad(z_BCT.diff(dim=-1), (1, 0)))
    if order >= 2:
        wide = torch.cat([z_BCT[..., :1], z_BCT, z_BCT[..., -1:]], dim=-1)
        planes.append(wide[..., 2:] - 2 * z_BCT + wide[..., :-2])
    return torch.stack(planes, dim=2)


def views(x_BCT: Tensor, front: FrontEnd, valid_BT: Tensor | None = None) -> Views:
    """Patches of the scalogram and of the z-scored waveform; samples after the last whole patch are seen by the wavelets alone."""
    with torch.autocast(x_BCT.device.type, enabled=False):
        z_BCT = zscore(x_BCT.float(), valid_BT)
        return Views(to_spec_patches(scalogram(z_BCT, front, valid_BT), front), to_columns(z_BCT, front.patch_samples))


def to_spec_patches(y: Tensor, front: FrontEnd) -> Tensor:
    """(B, C, P, S, T) -> (B, C, N, V), values of a patch in the order plane, scale, sample."""
    n_items, n_channels, n_planes, n_scales, n_samples = y.shape
    height, width = front.patch_scales, front.patch_samples
    columns = n_samples // width
    y = y[..., : columns * width].reshape(n_items, n_channels, n_planes, n_scales // height, height, columns, width)
    return y.permute(0, 1, 5, 3, 2, 4, 6).reshape(n_items, n_channels, columns * (n_scales // height), n_planes * height * width)


def to_columns(x_BCT: Tensor, patch: int) -> Tensor:
    """(B, C, T) -> (B, C, W, patch), the last samples left out where they make no whole patch."""
    columns = x_BCT.shape[-1] // patch
    return x_BCT[..., : columns * patch].reshape(*x_BCT.shape[:2], columns, patch)


def _standardized(x: Tensor, real: Tensor | None, dims: tuple[int, ...]) -> Tensor:
    if real is None:
        centred = x - x.mean(dims, keepdim=True)
        variance = centred.square().mean(dims, keepdim=True)
    else:
        others = 1
        for dim in dims[:-1]:
            others *= x.shape[dim]
        n = (real.sum(-1, keepdim=True) * others).clamp(min=1)
        centred = (x - x.masked_fill(~real, 0.0).sum(dims, keepdim=True) / n).masked_fill(~real, 0.0)
        variance = centred.square().sum(dims, keepdim=True) / n
    return centred / variance.clamp(min=SMALLEST_SD**2).sqrt()
