"""PPG as a whole: which way its pulses point, and the heart rate under motion. C channels, T samples, W windows, F rates."""

from __future__ import annotations

import numpy as np

from physio_data.beats import pulse_band
from physio_data.filters import bandpass, resample
from physio_data.windows import n_samples, starts

RATES_BPM = np.arange(40.0, 200.5, 0.5)
TRACK_HZ = 25.0  # rate of the work: five times the highest frequency that counts
_BAND_HZ = (0.6, 5.0)  # the pulse and its first overtone up to 150 bpm
_MOTION = 3.0  # how much power at the rhythm of motion counts against a rate: halves it where motion is a third of its maximum
_STEP_BPM = 8.0  # change of the rate from one window to the next that costs as much as a spectrum lower by e
_FLOOR = 1e-3  # what a rate without any power may still have, so that one bad window does not break the path


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


def heart_rate_track(ppg_CT: np.ndarray, fs: float, acc_AT: np.ndarray | None = None, *, window_s: float = 8.0, hop_s: float = 2.0) -> np.ndarray:
    """Heart rate (W,) in bpm of the windows [i hop_s, i hop_s + window_s) of a PPG that may be disturbed by motion.

    Each window's spectrum is taken at 40-200 bpm from 0.6-5 Hz of every PPG channel (equal weight), and divided by 1 + 3 times the spectrum of the
    acceleration `acc_AT` (A axes, on the same clock; None: not corrected), scaled to 1 at its top: what swings with the arm is no pulse (the idea
    of the spectral subtraction of Zhang 2015, IEEE TBME 62:1902). The rates are then the path of highest total log power whose steps cost
    |change| / 8 bpm (Viterbi 1967), so a window whose pulse drowns takes its rate from its neighbours. The whole recording is looked at: this is
    no causal estimate.

    Raises ValueError for shapes that differ in length, samples that are not finite, a rate below 25 Hz, and less than one window.
    """
    ppg_CT = np.atleast_2d(np.asarray(ppg_CT, np.float64))
    if ppg_CT.ndim != 2 or fs < TRACK_HZ:
        raise ValueError(f"ppg_CT must be (channels, samples) at {TRACK_HZ:g} Hz or more, got shape {ppg_CT.shape} at {fs:g} Hz")
    power_WF = _spectra(ppg_CT, fs, window_s, hop_s).mean(1)
    if acc_AT is not None:
        acc_AT = np.atleast_2d(np.asarray(acc_AT, np.float64))
        if acc_AT.shape[1] != ppg_CT.shape[1]:
            raise ValueError(f"acc_AT must have the {ppg_CT.shape[1]} samples of ppg_CT, got shape {acc_AT.shape}; bring both to one rate first")
        motion_WF = _spectra(acc_AT, fs, window_s, hop_s, by_size=True).mean(1)
        power_WF = power_WF / (1 + _MOTION * motion_WF / np.maximum(motion_WF.max(1, keepdims=True), 1e-12))
    share_WF = power_WF / np.maximum(power_WF.sum(1, keepdims=True), 1e-12)
    return RATES_BPM[_best_path(np.log(share_WF + _FLOOR / len(RATES_BPM)))]


def _spectra(x_CT: np.ndarray, fs: float, window_s: float, hop_s: float, by_size: bool = False) -> np.ndarray:
    """Power (W, C, F) at RATES_BPM of Hann windows: each channel's top is 1, or with `by_size` channels keep their sizes."""
    x_CT = bandpass(resample(x_CT, fs, TRACK_HZ), TRACK_HZ, *_BAND_HZ, order=3)
    length, hop = n_samples(window_s, TRACK_HZ), n_samples(hop_s, TRACK_HZ)
    start_W = starts(x_CT.shape[1], length, hop)
    if not len(start_W):
        raise ValueError(f"the recording is shorter than a window of {window_s:g} s; choose a shorter window_s")
    x_WCn = np.lib.stride_tricks.sliding_window_view(x_CT, length, axis=1)[:, start_W].transpose(1, 0, 2)
    x_WCn = x_WCn - x_WCn.mean(-1, keepdims=True)
    turn_nF = np.exp(-2j * np.pi * np.arange(length)[:, None] / TRACK_HZ * RATES_BPM / 60) * np.hanning(length)[:, None]
    power_WCF = np.abs(x_WCn @ turn_nF) ** 2
    return power_WCF if by_size else power_WCF / np.maximum(power_WCF.max(-1, keepdims=True), 1e-12)


def _best_path(score_WF: np.ndarray) -> np.ndarray:
    """Positions (W,) of the path of highest score, a step of one position costing its part of `_STEP_BPM`."""
    cost_FF = np.abs(RATES_BPM[:, None] - RATES_BPM) / _STEP_BPM
    best_F, came_from = score_WF[0], []
    for score_F in score_WF[1:]:
        total_FF = best_F[:, None] - cost_FF
        came_from.append(total_FF.argmax(0))
        best_F = total_FF.max(0) + score_F
    path = [int(best_F.argmax())]
    for origin_F in reversed(came_from):
        path.append(int(origin_F[path[-1]]))
    return np.array(path[::-1])


def _skewness(x_T: np.ndarray) -> float:
    """Within [-1, 1]; 0 for a constant."""
    x_T = x_T - x_T.mean()
    power = (x_T**2).mean()
    return float(np.clip((x_T**3).mean() / power**1.5, -1, 1)) if power > 0 else 0.0
