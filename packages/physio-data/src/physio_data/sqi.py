"""Signal-quality indices of windows, each with its range and source, for thousands of windows a second. N windows, T samples, M rows.

What `quality.check` rejects by follows from some of these; the others are recorded beside a window, because what is good enough depends on the
question. No index depends on an offset or a gain.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from physio_data.quality import (
    DEFAULT_LIMITS,
    EXTREME,
    SHORTEST_S,
    Kind,
    beats_of,
    centred,
    check_kind,
    clipped_fraction,
    flat_fraction,
    relative_power,
)

HELD_S = 0.1  # a value repeated for as long is a dropout: the device holds its last sample
_BLOCK_ROWS = 1024


class Index(NamedTuple):
    """What an index means, the values it can take, which way is good (1 higher, -1 lower, 0 neither), and where it comes from."""

    meaning: str
    range: tuple[float, float]
    better: int
    source: str


INDICES: dict[str, Index] = {
    "pair": Index(
        "median over beats of the best correlation with a neighbouring beat", (-1, 1), 1, "after Orphanidou et al. 2015, IEEE JBHI 19:832, between beats"
    ),
    "template": Index(
        "median correlation of beats with their mean", (-1, 1), 1, "Orphanidou et al. 2015, IEEE JBHI 19:832 (clean from 0.86 in PPG, 0.66 in ECG)"
    ),
    "skewness": Index("third standardised moment", (-np.inf, np.inf), 1, "Elgendi 2016, Bioengineering 3:21 (best single index of PPG); Krishnan et al. 2010"),
    "kurtosis": Index(
        "fourth standardised moment less 3", (-2, np.inf), 0, "Clifford et al. 2012, Physiol Meas 33:1419 (clean ECG above 2); Selvaraj et al. 2011"
    ),
    "relative_power": Index("power at 1-2.25 Hz over 0-8 Hz (PPG), 5-15 Hz over 5-40 Hz (ECG)", (0, 1), 1, "Elgendi 2016; Clifford et al. 2012 (pSQI)"),
    "baseline_power": Index("power below 0.5 Hz (PPG: 0.3 Hz) over power below 40 Hz (PPG: 8 Hz)", (0, 1), -1, "Clifford et al. 2012 (1 - basSQI)"),
    "flat": Index("share of changes over 40 ms of at most a thousandth of the standard deviation", (0, 1), -1, "PaPaGei's flat-line rule, made scale-free"),
    "clipped": Index("share of samples at the minimum, or at the maximum, whichever is larger", (0, 1), -1, "own definition; converter rails repeat one value"),
    "saturated_s": Index("longest unbroken stay at the minimum or the maximum, in seconds", (0, np.inf), -1, "own definition"),
    "dropout": Index("share of samples that are missing, or repeat one value for 0.1 s or longer", (0, 1), -1, "own definition"),
    "n_beats": Index("beats found", (0, np.inf), 0, "humps of at least 0.3 of the usual height (quality.beats_of)"),
    "bpm": Index("beats per minute by autocorrelation; NaN without a period", (25, 300), 0, "plausible from 30 to 200; Orphanidou et al. 2015 use 40-180"),
}


def indices(x_NT: np.ndarray, fs: float, kind: Kind = "ppg") -> dict[str, np.ndarray]:
    """Every index of INDICES, (N,) float64, of windows (N, T) at `fs` Hz; see there for ranges and sources.

    Missing samples count under `dropout` and are replaced by the mean elsewhere. Indices of beats are NaN below 4 s, those of shape and spectrum
    where the window is constant. Flat, clipped, saturated and dropout look for traces of the converter: give the signal as recorded.
    Raises ValueError for another shape, an unknown kind and a rate that is not positive.
    """
    x_NT = np.asarray(x_NT)
    if x_NT.ndim != 2 or not x_NT.shape[1]:
        raise ValueError(f"x_NT must be (windows, samples), got shape {x_NT.shape}")
    check_kind(kind, fs)
    parts = [_block(x_NT[at : at + _BLOCK_ROWS], fs, kind) for at in range(0, max(len(x_NT), 1), _BLOCK_ROWS)]
    return {name: np.concatenate([part[name] for part in parts]) for name in INDICES}


def _block(x_MT: np.ndarray, fs: float, kind: Kind) -> dict[str, np.ndarray]:
    finite_MT = np.isfinite(x_MT)
    y_MT = centred(x_MT, finite_MT)
    nan_M = np.full(len(x_MT), np.nan)
    beats = beats_of(y_MT, fs, kind) if y_MT.shape[1] >= SHORTEST_S * fs and len(y_MT) else None
    sd_M = y_MT.std(1, dtype=np.float64)
    unit_MT = y_MT / np.where(sd_M > 0, sd_M, np.nan)[:, None]
    band_hz, total_hz = ((1.0, 2.25), (0.0, 8.0)) if kind == "ppg" else ((5.0, 15.0), (5.0, 40.0))
    slow_hz = 0.3 if kind == "ppg" else 0.5
    return {
        "pair": nan_M if beats is None else beats.pair_M,
        "template": nan_M if beats is None else beats.template_M,
        "skewness": (unit_MT**3).mean(1),
        "kurtosis": (unit_MT**4).mean(1) - 3,
        "relative_power": relative_power(y_MT, fs, band_hz, total_hz),
        "baseline_power": relative_power(y_MT, fs, (0.0, slow_hz), (0.0, total_hz[1])),
        "flat": flat_fraction(y_MT, finite_MT, fs, DEFAULT_LIMITS.flat_change),
        "clipped": clipped_fraction(y_MT, finite_MT),
        "saturated_s": _saturated(y_MT, finite_MT) / fs,
        "dropout": _dropout(x_MT, finite_MT, max(2, round(HELD_S * fs))),
        "n_beats": nan_M if beats is None else beats.n_beats_M.astype(np.float64),
        "bpm": nan_M if beats is None else beats.bpm_M,
    }


def _saturated(y_MT: np.ndarray, finite_MT: np.ndarray) -> np.ndarray:
    """Longest run of samples (M,) at either extreme; 0 for a constant, which is flat and not saturated, and for a single sample."""
    low_M1 = np.where(finite_MT, y_MT, np.inf).min(1, keepdims=True)
    high_M1 = np.where(finite_MT, y_MT, -np.inf).max(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        near_M1 = EXTREME * (high_M1 - low_M1)
        longest_M = np.maximum(_longest_run((y_MT <= low_M1 + near_M1) & finite_MT), _longest_run((y_MT >= high_M1 - near_M1) & finite_MT))
        return np.where((high_M1[:, 0] > low_M1[:, 0]) & (longest_M > 1), longest_M, 0)


def _dropout(x_MT: np.ndarray, finite_MT: np.ndarray, shortest: int) -> np.ndarray:
    """Share of samples (M,) that are missing or belong to a run of `shortest` or more equal values."""
    same_MT = np.zeros(x_MT.shape, bool)
    same_MT[:, 1:] = (x_MT[:, 1:] == x_MT[:, :-1]) & finite_MT[:, 1:]
    before_MT = _run_length(same_MT)  # repeats up to here
    after_MT = _run_length(same_MT[:, ::-1])[:, ::-1]
    whole_MT = before_MT + np.concatenate([after_MT[:, 1:], np.zeros((len(x_MT), 1), np.int64)], axis=1) + 1
    return ((whole_MT >= shortest) | ~finite_MT).mean(1)


def _longest_run(true_MT: np.ndarray) -> np.ndarray:
    return _run_length(true_MT).max(1)


def _run_length(true_MT: np.ndarray) -> np.ndarray:
    """How many True in a row end at each sample (M, T) int64."""
    count_MT = np.cumsum(true_MT, axis=1)
    return count_MT - np.maximum.accumulate(np.where(true_MT, 0, count_MT), axis=1)
