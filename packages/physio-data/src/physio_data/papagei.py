"""PaPaGei's preprocessing of PPG and the three quantities that its training labels windows with. N windows, T samples.

Two recipes exist. ST-SAE ships a Butterworth band-pass 0.5-12 Hz: `filters.bandpass(x, fs, 0.5, 12)`. The PaPaGei paper filters with a
Chebyshev-II band-pass whose *stop-band* edges are 0.5 and 12 Hz (it passes about 0.7-9 Hz), then smooths over 50 ms: `chebyshev`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from physio_data.filters import checked, resample

FS = 125.0  # Hz, the rate of PaPaGei's input
EDGES_HZ, ORDER, STOP_DB, SMOOTH_S = (0.5, 12.0), 4, 20.0, 0.05
SMOOTHED_FROM_HZ = 75.0
NAMES = ("svri", "skew_sqi", "ipa")


def chebyshev(x: np.ndarray, fs: float, *, compat: bool = False) -> np.ndarray:
    """The Chebyshev-II band-pass (order 4, 20 dB, 0.5-12 Hz) and the moving average over 50 ms, both forward and backward, of (..., T).

    The default takes the mean off, resamples to 125 Hz (what comes out has that rate) and filters in second-order sections. `compat=True` repeats the original
    to its rounding: at the native rate, as one transfer function, without smoothing below 75 Hz. That form loses digits as the rate grows (at
    1000 Hz a short clip diverges), so it is for comparison only. Computed in float64, float32 in gives float32 out.

    `ValueError` for NaN (with its position), a rate of 24 Hz or less, and with `compat` for 27 samples or fewer.
    """
    from scipy.signal import filtfilt, sosfiltfilt

    x = checked(x)
    if not fs > 2 * EDGES_HZ[1]:
        raise ValueError(f"fs must be above {2 * EDGES_HZ[1]:g} Hz for a filter up to {EDGES_HZ[1]:g} Hz, got {fs}")
    if compat:
        numerator, denominator = _design(float(fs), "ba")
        if x.shape[-1] <= 3 * len(numerator):
            raise ValueError(f"x must hold more than {3 * len(numerator)} samples for the original's filter, got {x.shape[-1]}")
        y = filtfilt(numerator, denominator, x.astype(np.float64), axis=-1)
        if fs >= SMOOTHED_FROM_HZ:
            n = round(fs * SMOOTH_S)
            y = filtfilt(np.full(n, 1 / n), 1.0, y, axis=-1)
        return y.astype(x.dtype)
    x_mean = x.mean(axis=-1, dtype=np.float64, keepdims=True)  # a hundredth of an offset would come through
    y = resample(x.astype(np.float64) - x_mean, fs, FS)
    pad = min(y.shape[-1] - 1, round(2 * FS))
    y = sosfiltfilt(_design(FS, "sos"), y, axis=-1, padtype="odd", padlen=pad)
    n = round(FS * SMOOTH_S)
    y = filtfilt(np.full(n, 1 / n), 1.0, y, axis=-1, padlen=min(y.shape[-1] - 1, 3 * n))
    return y.astype(x.dtype)


def window_labels(x_NT: np.ndarray, fs: float = FS) -> np.ndarray:
    """sVRI, skewness quality and IPA of filtered windows: (N, 3) float64 in the order of NAMES; NaN for a constant window.

    sVRI: the window scaled to 0-1, its mean from the maximum on over its mean before it (Lyu et al. 2015). Skewness: mean of the two halves'.
    IPA: of the z-scored first beat (between the first two minima that are lowest within fs // 5 samples), the area before over the area from its
    first inner minimum on; 0 where there is none. PaPaGei's IPA is the inverse of the usual one (Wang et al. 2009: diastolic over systolic),
    and its areas are signed.
    """
    x_NT = np.asarray(x_NT, np.float64)
    if x_NT.ndim != 2 or x_NT.shape[1] < fs:
        raise ValueError(f"x_NT must be (windows, samples) of at least a second, got shape {x_NT.shape} at {fs:g} Hz")
    x_NT = x_NT - x_NT.mean(1, keepdims=True)
    sd_N1 = x_NT.std(1, keepdims=True)
    flat_N = sd_N1[:, 0] <= 1e-12
    x_NT = x_NT / np.where(flat_N[:, None], 1.0, sd_N1)
    half = x_NT.shape[1] // 2
    out_N3 = np.stack([_svri(x_NT), (_skewness(x_NT[:, :half]) + _skewness(x_NT[:, half:])) / 2, _ipa(x_NT, int(fs // 5))], axis=1)
    out_N3[flat_N] = np.nan
    return out_N3


def _svri(x_NT: np.ndarray) -> np.ndarray:
    low_N1, high_N1 = x_NT.min(1, keepdims=True), x_NT.max(1, keepdims=True)
    y_NT = (x_NT - low_N1) / np.where(high_N1 > low_N1, high_N1 - low_N1, 1.0)
    top_N = y_NT.argmax(1)
    before_NT = np.arange(y_NT.shape[1]) < top_N[:, None]
    total_N = np.where(before_NT, y_NT, 0).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(before_NT, 0, y_NT).sum(1) / (y_NT.shape[1] - top_N) / (total_N / top_N)


def _skewness(x_NT: np.ndarray) -> np.ndarray:
    x_NT = x_NT - x_NT.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x_NT**3).mean(1) / (x_NT**2).mean(1) ** 1.5


def _ipa(x_NT: np.ndarray, order: int) -> np.ndarray:
    deep_NT, any_NT = _minima(x_NT, order), _minima(x_NT, 1)
    n_N = deep_NT.sum(1)
    first_N = deep_NT.argmax(1)
    rest_NT = deep_NT & (np.arange(x_NT.shape[1]) > first_N[:, None])
    last_N = rest_NT.argmax(1)
    inner_NT = any_NT & (np.arange(x_NT.shape[1]) > first_N[:, None]) & (np.arange(x_NT.shape[1]) < last_N[:, None] - 1)
    split_N = inner_NT.argmax(1)
    area_NT = np.concatenate([np.zeros((len(x_NT), 1)), np.cumsum((x_NT[:, 1:] + x_NT[:, :-1]) / 2, axis=1)], axis=1)
    row_N = np.arange(len(x_NT))
    systolic_N = area_NT[row_N, split_N - 1] - area_NT[row_N, first_N]
    diastolic_N = area_NT[row_N, last_N - 1] - area_NT[row_N, split_N]
    found_N = (n_N >= 2) & inner_NT.any(1) & (diastolic_N != 0)
    return np.where(found_N, systolic_N / np.where(found_N, diastolic_N, 1.0), 0.0)


def _minima(x_NT: np.ndarray, order: int) -> np.ndarray:
    """Where a sample is lower than all within `order` of it (N, T) bool; never at the ends."""
    lowest_NT = np.ones(x_NT.shape, bool)
    lowest_NT[:, 0] = lowest_NT[:, -1] = False
    for k in range(1, min(order, x_NT.shape[1] - 1) + 1):
        lowest_NT[:, k:] &= x_NT[:, k:] < x_NT[:, :-k]
        lowest_NT[:, :-k] &= x_NT[:, :-k] < x_NT[:, k:]
        lowest_NT[:, :k] &= x_NT[:, :k] < x_NT[:, :1]  # beyond an end, the end is repeated
        lowest_NT[:, -k:] &= x_NT[:, -k:] < x_NT[:, -1:]
    return lowest_NT


@lru_cache(maxsize=16)
def _design(fs: float, form: str) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    from scipy.signal import cheby2

    return cheby2(ORDER, STOP_DB, EDGES_HZ, btype="bandpass", fs=fs, output=form)
