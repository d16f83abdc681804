"""Pulses of a PPG: which way they point. T samples."""

from __future__ import annotations

import numpy as np

from physio_data.beats import pulse_band


def pulse_polarity(x_T: np.ndarray, fs: float, *, piece_s: float = 30.0) -> int:
    """1 where pulses point up, -1 where they point down, by the skewness of the pulse band (0.5-8 Hz) and of its slope.

    An upright pulse is a peak shorter than the rest of its beat, so the signal's skewness is positive (the quality index of Elgendi 2016,
    Bioengineering 3:21), and its systolic rise is shorter than its fall (Elgendi 2012, Curr Cardiol Rev 8:14), so the slope's is too. Each piece
    of `piece_s` seconds votes with both, limited to +-1; missing samples and constant pieces do not vote. Without any vote it is 1. Raises
    ValueError for another shape than (T,).
    """
    x_T = np.asarray(x_T, np.float64)
    if x_T.ndim != 1:
        raise ValueError(f"x_T must be one channel (T,), got shape {x_T.shape}")
    length = max(int(piece_s * fs), 4)
    votes = 0.0
    for first in range(0, len(x_T), length):
        piece = x_T[first : first + length]
        if len(piece) < 4 * fs or not np.isfinite(piece).all() or np.ptp(piece) == 0:
            continue
        band = pulse_band(piece, fs)
        votes += _skewness(band) + _skewness(np.gradient(band))
    return -1 if votes < 0 else 1


def _skewness(x_T: np.ndarray) -> float:
    """Within [-1, 1]; 0 for a constant."""
    x_T = x_T - x_T.mean()
    power = (x_T**2).mean()
    return float(np.clip((x_T**3).mean() / power**1.5, -1, 1)) if power > 0 else 0.0
