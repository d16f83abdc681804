"""Sample times to a rate."""

from __future__ import annotations

import numpy as np

TIME_NAMES = frozenset({"time", "timestamp", "timestamps", "t", "timer", "datetime", "date", "elapsed time"})


def uniform_rate(time_s: np.ndarray, decimals: int = 6) -> float | None:
    """The rate in Hz of sample times (T,) in seconds, or ``None`` where a time is more than half a step from an even grid.

    A rate that is whole within the rounding of times written with ``decimals`` decimals comes back as that whole number.
    """
    n_steps = time_s.size - 1
    if n_steps < 1 or not np.isfinite(time_s).all():
        return None
    span_s = float(time_s[-1] - time_s[0])
    if span_s <= 0:
        return None
    step_s = span_s / n_steps
    if np.abs(time_s - time_s[0] - step_s * np.arange(time_s.size)).max() > 0.51 * step_s:
        return None
    whole = round(1 / step_s)
    rounding_s = 1.01 * 10.0**-decimals
    return float(whole) if whole and abs(n_steps / whole - span_s) <= rounding_s else 1 / step_s


def rate_of_times(time_T: np.ndarray) -> float | None:
    """The rate in Hz of times in seconds, or in milliseconds where they step by more than 0.5; None where they are not uniform or count samples."""
    step = abs(float(np.nanmedian(np.diff(time_T)))) if time_T.size > 1 else 0.0
    if step == 1.0:
        return None
    return uniform_rate(time_T * (1.0 if step <= 0.5 else 1e-3))
