"""Zero-phase filters and anti-aliased resampling, along the last axis of arrays (..., T).

Every function computes in float64, returns float32 for float32 input, and refuses NaN with its position: a filter would smear
one missing sample over the whole record.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np

from physio_data.windows import n_samples


def bandpass(x: np.ndarray, fs: float, low_hz: float | None, high_hz: float | None, order: int = 4) -> np.ndarray:
    """Butterworth band-pass (``low_hz``, ``high_hz``), forward and backward so that no phase is added.

    ``None`` for an edge leaves that side open (high-pass or low-pass); both ``None`` return a copy. The attenuation at an edge is
    6 dB and the slope that of twice ``order``. Ends are extended by odd reflection over one period of the low edge (or of the high
    edge without a low one), at most by the signal's own length. ``ValueError`` for edges not inside 0 < low < high < fs/2.
    """
    x = checked(x)
    nyquist_hz = fs / 2
    if low_hz is None and high_hz is None:
        return x.copy()
    edges = [hz for hz in (low_hz, high_hz) if hz is not None]
    if not all(0 < hz < nyquist_hz for hz in edges) or edges != sorted(set(edges)):
        raise ValueError(f"low_hz={low_hz}, high_hz={high_hz} must satisfy 0 < low < high < fs/2 = {nyquist_hz:g} Hz; lower the edge or raise fs")
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    kind = "bandpass" if len(edges) == 2 else "highpass" if high_hz is None else "lowpass"
    return _forward_backward(x, _butterworth(order, tuple(edges), kind, float(fs)), math.ceil(fs / edges[0]))


def highpass(x: np.ndarray, fs: float, low_hz: float, order: int = 4) -> np.ndarray:
    """``bandpass`` with an open upper side."""
    return bandpass(x, fs, low_hz, None, order)


def lowpass(x: np.ndarray, fs: float, high_hz: float, order: int = 4) -> np.ndarray:
    """``bandpass`` with an open lower side."""
    return bandpass(x, fs, None, high_hz, order)


def notch(x: np.ndarray, fs: float, hz: float = 50.0, q: float = 30.0) -> np.ndarray:
    """Second-order notch at ``hz`` of width ``hz / q``, forward and backward. ``ValueError`` when ``hz`` is not below fs/2."""
    from scipy.signal import iirnotch, tf2sos

    x = checked(x)
    if not 0 < hz < fs / 2:
        raise ValueError(f"hz={hz} must lie between 0 and fs/2 = {fs / 2:g} Hz; at this rate there is nothing to remove there")
    if q <= 0:
        raise ValueError(f"q must be positive, got {q}")
    return _forward_backward(x, tf2sos(*iirnotch(hz, q, fs)), math.ceil(fs * q / hz))


def resample(x: np.ndarray, fs_in: float, fs_out: float) -> np.ndarray:
    """From ``fs_in`` to ``fs_out`` Hz by a polyphase filter; ``n_samples(T / fs_in, fs_out)`` samples come out.

    The Kaiser-windowed anti-alias filter is flat to 0.83 of the lower rate's half and 80 dB down from 1.01 of it on (a tone above the new half
    rate does not fold back). The straight line through the first and last sample is kept out of the filter, so an offset or a
    drift leaves no ringing at the ends. ``fs_out / fs_in`` is taken as a fraction with terms up to 10,000.
    """
    from scipy.signal import resample_poly

    x = checked(x)
    if not (math.isfinite(fs_in) and math.isfinite(fs_out) and fs_in > 0 and fs_out > 0):
        raise ValueError(f"fs_in and fs_out must be positive numbers of Hz, got {fs_in}, {fs_out}")
    if fs_in == fs_out:
        return x.copy()
    n_out = n_samples(x.shape[-1] / fs_in, fs_out)
    ratio = Fraction(fs_out / fs_in).limit_denominator(10_000)
    if ratio == 0:
        raise ValueError(f"fs_out={fs_out} is more than 10,000 times below fs_in={fs_in}; average the signal first")
    up, down = ratio.numerator, ratio.denominator
    # Each phase of the filter passes a constant with its own error of 1e-5, which on a large offset is a ripple: no constant goes in.
    first, slope = _line(x)
    y = resample_poly(x - first - slope * np.arange(x.shape[-1]), up, down, axis=-1, window=anti_alias(max(up, down)))
    y += first + slope * (down / up) * np.arange(y.shape[-1])
    if y.shape[-1] < n_out:  # only where the fraction is an approximation: repeat the end
        y = np.concatenate([y, np.repeat(y[..., -1:], n_out - y.shape[-1], axis=-1)], axis=-1)
    return np.ascontiguousarray(y[..., :n_out], dtype=x.dtype)


def checked(x: np.ndarray) -> np.ndarray:
    """The array as float32 or float64; `ValueError` with the position of the first sample that is not finite."""
    x = np.asarray(x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must hold at least one sample along its last axis, got shape {x.shape}")
    if x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float64)
    finite = np.isfinite(x)
    if not finite.all():
        position = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), x.shape))
        n_bad = int(x.size - np.count_nonzero(finite))
        raise ValueError(f"x is not finite at index {position} ({n_bad} such samples of {x.size}); cut the signal at its gaps and filter the parts")
    return x


def _line(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First value and slope per sample, (..., 1) float64 each, of the straight line through the first and the last sample."""
    first, last = x[..., :1].astype(np.float64), x[..., -1:].astype(np.float64)
    return first, (last - first) / max(1, x.shape[-1] - 1)


@lru_cache(maxsize=64)
def _butterworth(order: int, edges: tuple[float, ...], kind: str, fs: float) -> np.ndarray:
    from scipy.signal import butter

    return butter(order, edges if len(edges) == 2 else edges[0], kind, fs=fs, output="sos")


def _forward_backward(x: np.ndarray, sos: np.ndarray, n_period: int) -> np.ndarray:
    from scipy.signal import sosfiltfilt

    n_pad = min(x.shape[-1] - 1, max(n_period, 3 * (2 * len(sos) + 1)))
    return sosfiltfilt(sos, x.astype(np.float64), axis=-1, padtype="odd", padlen=n_pad).astype(x.dtype)


@lru_cache(maxsize=16)
def anti_alias(factor: int) -> np.ndarray:
    """Low-pass for ``resample_poly``: Kaiser beta 8 (about 80 dB), centred at 0.92 of the lower half rate, 0.16 of it wide."""
    from scipy.signal import firwin

    return firwin(2 * 32 * factor + 1, 0.92 / factor, window=("kaiser", 8.0))
