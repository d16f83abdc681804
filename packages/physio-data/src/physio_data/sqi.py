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
    unit_MT = y_MT / np.where(sd_M > 0, sd_M, np.nan).astype(np.float32)[:, None]
    square_MT = unit_MT * unit_MT
    band_hz, total_hz = ((1.0, 2.25), (0.0, 8.0)) if kind == "ppg" else ((5.0, 15.0), (5.0, 40.0))
    slow_hz = 0.3 if kind == "ppg" else 0.5
    clipped_M = clipped_fraction(y_MT, finite_MT)
    relative_M, baseline_M = _power_shares(y_MT, fs, ((band_hz, total_hz), ((0.0, slow_hz), (0.0, total_hz[1]))))
    return {
        "pair": nan_M if beats is None else beats.pair_M,
        "template": nan_M if beats is None else beats.template_M,
        "skewness": (square_MT * unit_MT).mean(1, dtype=np.float64),
        "kurtosis": (square_MT * square_MT).mean(1, dtype=np.float64) - 3,
        "relative_power": relative_M,
        "baseline_power": baseline_M,
        "flat": flat_fraction(y_MT, finite_MT, fs, DEFAULT_LIMITS.flat_change),
        "clipped": clipped_M,
        "saturated_s": _saturated(y_MT, finite_MT, clipped_M) / fs,
        "dropout": _dropout(x_MT, finite_MT, max(2, round(HELD_S * fs))),
        "n_beats": nan_M if beats is None else beats.n_beats_M.astype(np.float64),
        "bpm": nan_M if beats is None else beats.bpm_M,
    }


def _power_shares(y_MT: np.ndarray, fs: float, bands_hz: tuple[tuple[tuple[float, float], tuple[float, float]], ...]) -> list[np.ndarray]:
    """`quality.relative_power` for several pairs of bands from one spectrum, in single precision."""
    from scipy.fft import rfft

    spectrum_MF = rfft(y_MT * np.hanning(y_MT.shape[1]).astype(np.float32), axis=1)
    power_MF = spectrum_MF.real**2 + spectrum_MF.imag**2
    hz_F = np.fft.rfftfreq(y_MT.shape[1], 1 / fs)
    shares = []
    for pair in bands_hz:
        band_M, total_M = (power_MF[:, (hz_F >= low) & (hz_F <= high)].sum(1, dtype=np.float64) for low, high in pair)
        shares.append(np.where(total_M > 0, band_M / np.where(total_M > 0, total_M, 1), np.nan))
    return shares


def _saturated(y_MT: np.ndarray, finite_MT: np.ndarray, clipped_M: np.ndarray) -> np.ndarray:
    """Longest run of samples (M,) at either extreme; 0 for a constant, which is flat and not saturated, and for a single sample."""
    longest_M = np.zeros(len(y_MT), np.int64)
    rows = np.flatnonzero(clipped_M * finite_MT.sum(1) > 1.5)
    if rows.size:
        y_MT, finite_MT = y_MT[rows], finite_MT[rows]
        low_M1 = np.where(finite_MT, y_MT, np.inf).min(1, keepdims=True)
        high_M1 = np.where(finite_MT, y_MT, -np.inf).max(1, keepdims=True)
        near_M1 = EXTREME * (high_M1 - low_M1)
        for extreme_MT in (y_MT <= low_M1 + near_M1, y_MT >= high_M1 - near_M1):
            row_R, length_R = _runs(extreme_MT & finite_MT)
            np.maximum.at(longest_M, rows[row_R], length_R)
    return np.where(longest_M > 1, longest_M, 0)


def _dropout(x_MT: np.ndarray, finite_MT: np.ndarray, shortest: int) -> np.ndarray:
    """Share of samples (M,) that are missing or belong to a run of `shortest` or more equal values."""
    row_R, repeats_R = _runs(x_MT[:, 1:] == x_MT[:, :-1])
    held_R = repeats_R >= shortest - 1
    n_held_M = np.bincount(row_R[held_R], repeats_R[held_R] + 1, len(x_MT))
    return (n_held_M + (~finite_MT).sum(1)) / x_MT.shape[1]


def _runs(true_MT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row (R,) and length (R,) of every stretch of True."""
    edge_MT = np.diff(np.pad(true_MT, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row_R, start_R = np.nonzero(edge_MT == 1)
    return row_R, np.nonzero(edge_MT == -1)[1] - start_R
