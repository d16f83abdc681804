"""Normalisations by name; each returns what it took away, so that it can be put back.

Shape letters: B batch, C channels, T samples. ``instance_*`` takes one statistic over all channels of an item (lead amplitudes
keep their proportions), ``lead_*`` one per channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FLAT_RANGE = 1e-6  # a peak-to-peak range up to this is flat and maps to 0
EPSILON = 1e-6  # added to a standard deviation
IQR_TO_SD = 1.349  # interquartile range of the normal distribution in standard deviations


class Scale(NamedTuple):
    """``x = y * scale + offset``, each (B, C, 1) or (B, 1, 1) float32."""

    offset: np.ndarray
    scale: np.ndarray

    def restore(self, y_BCT: np.ndarray) -> np.ndarray:
        """Back to the units before ``normalize``; a channel that was flat comes back as its mid-range."""
        return y_BCT * self.scale + self.offset


Statistic = Callable[[np.ndarray, tuple[int, ...]], tuple[np.ndarray, np.ndarray]]


def _minmax(x: np.ndarray, axis: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.nanmin(x, axis, keepdims=True), np.nanmax(x, axis, keepdims=True)
    return (low + high) / 2, np.where(high - low <= FLAT_RANGE, 0.0, (high - low) / 2)


def _zscore(x: np.ndarray, axis: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.nanmean(x, axis, keepdims=True), np.nanstd(x, axis, keepdims=True) + EPSILON


def _robust(x: np.ndarray, axis: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    quantile = np.nanquantile if np.isnan(x).any() else np.quantile  # the first is slow, and needed only for short tails
    q1, median, q3 = quantile(x, [0.25, 0.5, 0.75], axis=axis, keepdims=True)
    return median, (q3 - q1) / IQR_TO_SD + EPSILON


_STATISTICS: dict[str, tuple[Statistic, tuple[int, ...]]] = {
    "instance_minmax": (_minmax, (1, 2)),
    "lead_minmax": (_minmax, (2,)),
    "instance_zscore": (_zscore, (1, 2)),
    "lead_zscore": (_zscore, (2,)),
    "lead_robust": (_robust, (2,)),
}
NORMALIZERS = frozenset({"none", "fixed", *_STATISTICS})


def normalize(
    x_BCT: np.ndarray,
    name: str,
    valid_BT: np.ndarray | None = None,
    fixed: tuple[np.ndarray | float, np.ndarray | float] | None = None,
    channel_present_BC: np.ndarray | None = None,
) -> tuple[np.ndarray, Scale]:
    """Normalise a batch (B, C, T) by ``name``; returns (y_BCT float32, Scale).

    - ``*_minmax`` maps the range to [-1, 1]; a range up to 1e-6 (a flat channel) maps to 0
    - ``*_zscore`` (x - mean) / (population standard deviation + 1e-6)
    - ``lead_robust`` (x - median) / (interquartile range / 1.349 + 1e-6), quartiles by linear interpolation
    - ``fixed`` (x - offset) / scale with ``fixed=(offset, scale)``, scalars or (C,)
    - ``none`` the signal itself

    Where ``valid_BT`` is False (a short tail), and in channels that ``channel_present_BC`` says are lost, samples enter no statistic
    and come out as 0. ``ValueError`` for an unknown name, a non-finite sample that counts (named by item) or an item without one that
    does.
    """
    x_BCT = np.asarray(x_BCT)
    if x_BCT.ndim != 3:
        raise ValueError(f"x_BCT must be (batch, channels, samples), got shape {x_BCT.shape}; add the missing axis explicitly")
    if name not in NORMALIZERS:
        raise ValueError(f"name must be one of {', '.join(sorted(NORMALIZERS))}, got {name!r}")
    if (fixed is not None) != (name == "fixed"):
        raise ValueError(f"fixed=(offset, scale) belongs to the name 'fixed' and only to it, got name {name!r} and fixed={fixed!r}")
    x_BCT = x_BCT.astype(np.float32, copy=False)
    invalid_BCT = None if valid_BT is None else ~_as_valid(valid_BT, x_BCT)[:, None, :]
    lost_BC1 = None if channel_present_BC is None else ~_as_present(channel_present_BC, x_BCT)[..., None]
    if lost_BC1 is not None:
        invalid_BCT = lost_BC1 if invalid_BCT is None else invalid_BCT | lost_BC1
    _check_finite(x_BCT, invalid_BCT)

    if name in _STATISTICS:
        statistic, axis = _STATISTICS[name]
        x64 = x_BCT.astype(np.float64)
        x64 = x64 if invalid_BCT is None else np.where(invalid_BCT, np.nan, x64)
        if lost_BC1 is not None:  # of its own a lost channel has a flat statistic, and so has an item without any channel
            x64 = np.where(lost_BC1 if axis == (2,) else lost_BC1.all(1, keepdims=True), 0.0, x64)
        offset, scale = statistic(x64, axis)
    else:
        offset, scale = _given(fixed if name == "fixed" else (0.0, 1.0), x_BCT)
    flat = scale == 0
    # The subtraction is done in float64: a small pulse on a large offset keeps its digits.
    y_BCT = np.where(flat, 0.0, (x_BCT - offset) / np.where(flat, 1.0, scale)).astype(np.float32)
    if invalid_BCT is not None:
        y_BCT = np.where(invalid_BCT, np.float32(0), y_BCT)
    return y_BCT, Scale(offset.astype(np.float32), np.where(flat, 1.0, scale).astype(np.float32))


def himae_sample(x_T: np.ndarray, length: int, reference: bool = False) -> np.ndarray:
    """One training sample as HiMAE's loader makes it: min-max to [-1, 1], then the last value repeated to ``length``; (length,) float32.

    A flat sample becomes zeros. ``ValueError`` for non-finite samples and for more than ``length`` of them. ``reference=True`` is
    the original's behaviour instead: NaN becomes 0 before scaling, and a sample that is too long becomes all zeros.
    """
    x_T = np.asarray(x_T, np.float32)
    if x_T.ndim != 1 or x_T.size == 0:
        raise ValueError(f"x_T must be a non-empty (samples,) array, got shape {x_T.shape}")
    if reference:
        x_T = np.nan_to_num(x_T)
    if x_T.size > length:
        if not reference:
            raise ValueError(f"x_T has {x_T.size} samples, more than length={length}; cut it into windows (reference=True gives the original's zeros)")
        return np.zeros(length, np.float32)
    y_BCT, _ = normalize(x_T[None, None, :], "instance_minmax")
    return np.pad(y_BCT[0, 0], (0, length - x_T.size), mode="edge")


def himae_probe_input(x: np.ndarray, fs_in: float = 25.0, fs_out: float = 100.0, reference: bool = False) -> np.ndarray:
    """Windows (..., T) at 25 Hz as input of HiMAE's PVC probe at 100 Hz: polyphase resampling, then min-max to [-1, 1]; float32.

    ``reference=True`` is the original's order and method, float64 out: min-max, then FFT resampling, which takes the window as periodic and
    leaves [-1, 1]; a flat window is refused, the original divides by zero.
    """
    from physio_data.filters import resample

    x = np.asarray(x)
    if not reference:
        y = resample(x, fs_in, fs_out)
        return normalize(y.reshape(-1, 1, y.shape[-1]), "instance_minmax")[0].reshape(y.shape)
    from scipy.signal import resample as fft_resample

    from physio_data.windows import n_samples

    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    if not (high > low).all():
        raise ValueError("x holds a flat or non-finite window, which the original turns into NaN; leave it out or use reference=False")
    return fft_resample(2 * (x - low) / (high - low) - 1, n_samples(x.shape[-1] / fs_in, fs_out), axis=-1)


def _as_valid(valid_BT: np.ndarray, x_BCT: np.ndarray) -> np.ndarray:
    valid_BT = np.asarray(valid_BT, bool)
    if valid_BT.shape != (x_BCT.shape[0], x_BCT.shape[2]):
        raise ValueError(f"valid_BT must be (batch, samples) = {(x_BCT.shape[0], x_BCT.shape[2])}, got {valid_BT.shape}")
    if not valid_BT.any(-1).all():
        raise ValueError(f"valid_BT has no valid sample in item {int(np.argmin(valid_BT.any(-1)))}; leave that item out")
    return valid_BT


def _as_present(channel_present_BC: np.ndarray, x_BCT: np.ndarray) -> np.ndarray:
    channel_present_BC = np.asarray(channel_present_BC, bool)
    if channel_present_BC.shape != x_BCT.shape[:2]:
        raise ValueError(f"channel_present_BC must be (batch, channels) = {x_BCT.shape[:2]}, got {channel_present_BC.shape}")
    return channel_present_BC


def _check_finite(x_BCT: np.ndarray, invalid_BCT: np.ndarray | None) -> None:
    usable = np.isfinite(x_BCT) if invalid_BCT is None else np.isfinite(x_BCT) | invalid_BCT
    if not usable.all():
        b, c, t = np.unravel_index(int(np.argmin(usable)), x_BCT.shape)
        raise ValueError(f"x_BCT is not finite at item {b}, channel {c}, sample {t}; mark it in valid_BT or leave the window out")


def _given(fixed: tuple[np.ndarray | float, np.ndarray | float], x_BCT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    offset, scale = (np.asarray(value, np.float64) for value in fixed)
    for field, value in (("offset", offset), ("scale", scale)):
        if value.shape not in ((), (1,), (x_BCT.shape[1],)):
            raise ValueError(f"fixed {field} must be a scalar or ({x_BCT.shape[1]},), got shape {value.shape}")
    if not (np.isfinite(offset).all() and np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"fixed offset must be finite and scale positive, got {offset}, {scale}")
    shape = (x_BCT.shape[0], x_BCT.shape[1], 1)
    return np.broadcast_to(offset.reshape(-1, 1), shape), np.broadcast_to(scale.reshape(-1, 1), shape)
