"""What formats of bare arrays share: which axis is time, what the rate is, how channels are called. C channels, T samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RATE_NAMES = ("fs", "sampling_rate", "sampling rate", "sample_rate", "sampling_frequency", "sfreq", "srate")


def oriented(path: Path, name: str, shape: Sequence[int], axes: str) -> tuple[int, int, str]:
    """(channels, samples, axes) of an array read as ``axes`` "CT" or "TC"; a row or column vector is one channel, axes "T".

    ``ValueError`` for another rank, and where there would be more channels than samples: nothing is transposed by guess.
    """
    if axes not in ("CT", "TC"):
        raise ValueError(f"axes must be 'CT' (channels, samples) or 'TC' (samples, channels), got {axes!r}")
    shape = tuple(int(n) for n in shape)
    if len(shape) == 1:
        return 1, shape[0], "T"
    if len(shape) != 2:
        raise ValueError(f"{path}: {name} has shape {shape}; a recording is (T,), (C, T) or (T, C)")
    n_channels, n_samples = shape if axes == "CT" else shape[::-1]
    if n_channels > n_samples:
        raise ValueError(f"{path}: {name} of shape {shape} read as {axes} has more channels than samples; give axes={'TC' if axes == 'CT' else 'CT'!r}")
    return n_channels, n_samples, axes


def settled_rate(path: Path, stated: float | None, source_fs: float | None, why: str) -> float:
    """The rate in Hz that the file states or the caller gives; ``ValueError`` where neither does or the two differ. ``why`` says what was sought."""
    if source_fs is not None and not (math.isfinite(source_fs) and source_fs > 0):
        raise ValueError(f"source_fs must be a positive number of Hz, got {source_fs}")
    if stated is not None and not (math.isfinite(stated) and stated > 0):
        raise ValueError(f"{path}: the file states a sampling rate of {stated}; mend it, a rate is positive")
    if stated is None and source_fs is None:
        raise ValueError(f"{path}: no sampling rate ({why}); give it with --source-fs HZ (source_fs=...)")
    if stated is not None and source_fs is not None and abs(stated - source_fs) > 0.005 * stated:
        raise ValueError(f"{path}: the file states {stated:g} Hz, which --source-fs {source_fs:g} contradicts; leave it out")
    return float(source_fs if stated is None else stated)


def settled_names(path: Path, n_channels: int, channels: Sequence[str] | None, units: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names and units, one a channel: ``ch1``, ... and ``a.u.`` where none are given; ``ValueError`` where their number does not fit."""
    names = tuple(channels) if channels is not None else tuple(f"ch{i}" for i in range(1, n_channels + 1))
    unit_of = tuple(units) if units is not None else ("a.u.",) * n_channels
    for argument, given in (("channels", names), ("units", unit_of)):
        if len(given) != n_channels:
            raise ValueError(f"{path}: {argument} must name {n_channels} channels, got {len(given)}: {', '.join(given)}")
    return names, unit_of


def as_rows(x: np.ndarray, axes: str) -> np.ndarray:
    """(C, T) from an array whose axes are "T", "CT" or "TC"."""
    return x.T if axes == "TC" else np.atleast_2d(x)
