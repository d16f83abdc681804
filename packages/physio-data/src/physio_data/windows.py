"""Windows: seconds to samples by one rule, where windows start, and the cut itself.

Shape letters: C channels, N windows, T samples.
"""

from __future__ import annotations

import math

import numpy as np


def n_samples(window_s: float, fs: float) -> int:
    """Samples in ``window_s`` seconds at ``fs`` Hz: the product rounded half up. Every conversion in the house goes through here.

    The product is first rounded to 1e-6 samples, so that a half which binary fractions miss by a hair (1.005 s at 100 Hz) counts
    as a half. ``ValueError`` when not finite or when less than one sample is left.
    """
    product = window_s * fs
    if not math.isfinite(product) or fs <= 0:
        raise ValueError(f"window_s and fs must be finite and fs positive, got window_s={window_s}, fs={fs}")
    n = math.floor(round(product, 6) + 0.5)
    if n < 1:
        raise ValueError(f"window_s={window_s} holds no sample at fs={fs} Hz; choose at least {1 / fs:g} s")
    return n


def starts(n_total: int, length: int, hop: int) -> np.ndarray:
    """First samples (N,) int64 of the windows of ``length`` samples, ``hop`` apart, that fit whole into ``n_total`` samples."""
    if length < 1 or hop < 1:
        raise ValueError(f"length and hop must be at least one sample, got length={length}, hop={hop}")
    if n_total < 0:
        raise ValueError(f"n_total must not be negative, got {n_total}")
    return np.arange(0, n_total - length + 1, hop, dtype=np.int64)


def cut(x_CT: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Windows (N, C, length), a copy in C order, of a signal (C, T), from given first samples (N,).

    ``ValueError`` when a window reaches outside the signal: nothing is padded.
    """
    x_CT = np.asarray(x_CT)
    starts_N = np.asarray(starts, np.int64)
    if x_CT.ndim != 2:
        raise ValueError(f"x_CT must be (channels, samples), got shape {x_CT.shape}")
    if starts_N.ndim != 1 or length < 1:
        raise ValueError(f"starts must be one-dimensional and length at least 1, got starts of shape {starts_N.shape}, length={length}")
    if starts_N.size == 0:
        return np.empty((0, x_CT.shape[0], length), x_CT.dtype)
    if starts_N.min() < 0 or starts_N.max() + length > x_CT.shape[1]:
        worst = starts_N.min() if starts_N.min() < 0 else starts_N.max()
        raise ValueError(f"a window [{worst}, {worst + length}) reaches outside the signal of {x_CT.shape[1]} samples; take starts from windows.starts")
    windows_CNT = np.lib.stride_tricks.sliding_window_view(x_CT, length, axis=1)[:, starts_N]
    return np.ascontiguousarray(windows_CNT.transpose(1, 0, 2))
