"""Heartbeats in ECG and PPG: R peaks, QRS onsets, pulse onsets and peaks, heart rate. Letters: T samples, N rows, K beats, C channels.

R peaks: the band energy of Pan and Tompkins 1985 (IEEE TBME 32:230) with their running thresholds, T-wave rule and search-back, in
the root of the energy so that a weak beat among strong ones keeps its place. Pulses: the slope sum of Zong et al. 2003 (Comput
Cardiol 30:259) against the height of neighbouring pulses.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from physio_data.filters import bandpass

__all__ = ["heart_rate", "pulse_onsets", "pulse_peaks", "qrs_onsets", "r_peaks"]

_QRS_BAND_HZ = (5.0, 18.0)
_PULSE_BAND_HZ = (0.5, 8.0)


def r_peaks(x_T: np.ndarray, fs: float) -> np.ndarray:
    """Sample indices (K,) int64 of the R peaks of one ECG lead, in any unit and polarity.

    The index is that of the largest deflection in the QRS band, of the lead's usual sign where a beat has both signs. Raises ValueError
    below 100 Hz, for another shape than (T,), and at the first NaN or infinite sample. Under half a second there is no beat.
    """
    x_T = _checked(x_T, fs, 100.0)
    if len(x_T) < fs / 2:
        return np.zeros(0, np.int64)
    band_NT, energy_NT = qrs_energy(x_T[None], fs)
    return pick_r(band_NT[0], energy_NT[0], fs)


def qrs_onsets(x_T: np.ndarray, fs: float) -> np.ndarray:
    """Sample indices (K,) int64 where each QRS of `r_peaks` begins: the last quiet moment before it, at most 0.16 s earlier.

    Quiet is a mean absolute slope over 20 ms below a tenth of its maximum in the beat.
    """
    x_T = _checked(x_T, fs, 100.0)
    peak_K = r_peaks(x_T, fs)
    if not len(peak_K):
        return peak_K
    slope_T = _moving_mean(np.abs(np.gradient(bandpass(x_T, fs, 1.0, min(40.0, 0.45 * fs)))), max(round(0.02 * fs), 1))
    back = round(0.16 * fs)
    index_KL = np.clip(peak_K[:, None] - np.arange(back + 1), 0, len(x_T) - 1)  # from the peak backwards
    slope_KL = slope_T[index_KL]
    steepest_K = slope_KL[:, : round(0.10 * fs) + 1].argmax(1)
    quiet_KL = (slope_KL < 0.1 * slope_KL.max(1, keepdims=True)) & (np.arange(back + 1) > steepest_K[:, None])
    first_K = np.where(quiet_KL.any(1), quiet_KL.argmax(1), back)
    return np.maximum(peak_K - first_K, 0)


def pulse_onsets(x_T: np.ndarray, fs: float) -> np.ndarray:
    """Sample indices (K,) int64 of the feet of PPG pulses (pulses point up): where the tangent of steepest rise meets the level of the minimum before it.

    Raises ValueError below 20 Hz and at the first NaN or infinite sample. Under a second there is no pulse.
    """
    x_T = _checked(x_T, fs, 20.0)
    if len(x_T) < fs:
        return np.zeros(0, np.int64)
    band_T = pulse_band(x_T, fs)
    steep_K = pick_pulses(slope_sum(band_T, fs), fs)
    return np.unique(np.clip(np.round(feet(band_T, steep_K, fs)), 0, len(x_T) - 1).astype(np.int64))


def pulse_peaks(x_T: np.ndarray, fs: float) -> np.ndarray:
    """Sample indices (K,) int64 of the systolic peaks of PPG pulses, the maximum within 0.35 s after the steepest rise; errors as `pulse_onsets`."""
    x_T = _checked(x_T, fs, 20.0)
    if len(x_T) < fs:
        return np.zeros(0, np.int64)
    band_T = pulse_band(x_T, fs)
    steep_K = pick_pulses(slope_sum(band_T, fs), fs)
    index_KL = np.minimum(steep_K[:, None] + np.arange(round(0.35 * fs) + 1), len(x_T) - 1)
    return np.unique(index_KL[np.arange(len(steep_K)), band_T[index_KL].argmax(1)]) if len(steep_K) else steep_K


def heart_rate(x_CT: np.ndarray, fs: float, kind: Literal["ecg", "ppg"] = "ecg") -> float:
    """Beats per minute: 60 over the median interval, its median over channels; NaN where no channel has two beats. `x_CT` may be (T,)."""
    if kind not in ("ecg", "ppg"):
        raise ValueError(f"kind must be 'ecg' or 'ppg', got {kind!r}")
    find = r_peaks if kind == "ecg" else pulse_onsets
    beats = [find(x_T, fs) for x_T in np.atleast_2d(x_CT)]
    rates = [60 * fs / float(np.median(np.diff(beat_K))) for beat_K in beats if len(beat_K) > 1]
    return float(np.median(rates)) if rates else float("nan")


def qrs_energy(x_NT: np.ndarray, fs: float) -> tuple[np.ndarray, np.ndarray]:
    """(band_NT, energy_NT): the QRS band, and the root of its squared slope averaged over 0.1 s."""
    x_NT = np.asarray(x_NT, np.float64)
    band_NT = bandpass(x_NT - x_NT[..., :1], fs, *_QRS_BAND_HZ, order=2)
    slope_NT = np.gradient(band_NT, axis=-1)
    return band_NT, np.sqrt(np.maximum(_moving_mean(slope_NT**2, max(round(0.1 * fs), 1)), 0))


def pick_r(band_T: np.ndarray, energy_T: np.ndarray, fs: float) -> np.ndarray:
    """R peaks (K,) from one row of `qrs_energy`."""
    from scipy.signal import find_peaks

    block = max(min(round(2 * fs), len(energy_T)), 1)
    n_blocks = max(len(energy_T) // block, 1)
    signal_level = float(np.median(energy_T[: n_blocks * block].reshape(n_blocks, -1).max(1)))
    if not signal_level > 1e-9 * max(float(np.abs(band_T).max()), 1e-12):
        return np.zeros(0, np.int64)
    at, _ = find_peaks(np.concatenate([[0.0], energy_T, [0.0]]), distance=max(round(0.2 * fs), 1), height=0.02 * signal_level)
    at = at - 1
    kept = _adaptive(at, energy_T[at], signal_level, float(np.median(energy_T)), fs)
    kept = _without_waves_between(at, energy_T[at], kept)
    return _on_deflection(band_T, at[kept], fs)


def _adaptive(at: np.ndarray, height: np.ndarray, signal_level: float, noise_level: float, fs: float) -> list[int]:
    """Positions in `at` that are beats, by running levels of signal and noise."""
    kept: list[int] = []
    rr = [0.8 * fs]
    for i, (here, high) in enumerate(zip(at.tolist(), height.tolist(), strict=True)):
        if kept and here - at[kept[-1]] > 1.6 * np.median(rr[-8:]):  # search back
            missed = [j for j in range(kept[-1] + 1, i) if at[j] - at[kept[-1]] > 0.3 * fs and here - at[j] > 0.25 * fs]
            best = max(missed, key=lambda j: height[j], default=None)
            if best is not None and height[best] > 0.5 * (noise_level + 0.35 * (signal_level - noise_level)):
                rr.append(at[best] - at[kept[-1]])
                kept.append(best)
        threshold = noise_level + 0.35 * (signal_level - noise_level)
        since = here - at[kept[-1]] if kept else np.inf
        t_wave = since < 0.36 * fs and high < 0.55 * height[kept[-1]]
        if since < 0.28 * fs and high > 1.7 * height[kept[-1]]:  # what was taken was the P wave of this beat
            kept[-1] = i
        elif high > threshold and not t_wave and since > 0.22 * fs:
            if kept:
                rr.append(since)
            kept.append(i)
            signal_level += 0.125 * (min(high, 1.5 * signal_level) - signal_level)
        else:
            noise_level += 0.125 * (min(high, signal_level) - noise_level) * (0.5 if t_wave else 1.0)
    return kept


def _without_waves_between(at: np.ndarray, height: np.ndarray, kept: list[int]) -> list[int]:
    """Positions in `at` without tall P and T waves: a beat of less than half of both its neighbours, which are hardly more than one usual interval apart."""
    beats = list(kept)
    i = 1
    while i < len(beats) - 1:
        usual = np.median(np.diff(at[beats[max(0, i - 9) : i + 10]]))
        weak = height[beats[i]] < 0.5 * min(height[beats[i - 1]], height[beats[i + 1]])
        if weak and at[beats[i + 1]] - at[beats[i - 1]] < 1.4 * usual:
            del beats[i]
        else:
            i += 1
    return beats


def _on_deflection(band_T: np.ndarray, at_K: np.ndarray, fs: float) -> np.ndarray:
    if not len(at_K):
        return at_K.astype(np.int64)
    reach = round(0.09 * fs)
    index_KL = np.clip(at_K[:, None] + np.arange(-reach, reach + 1), 0, len(band_T) - 1)
    value_KL = band_T[index_KL]
    up_K, down_K = value_KL.max(1), -value_KL.min(1)
    usual = 1.0 if np.median(up_K - down_K) >= 0 else -1.0
    other_K = np.where(usual > 0, down_K, up_K) > 1.5 * np.where(usual > 0, up_K, down_K)
    sign_K = np.where(other_K, -usual, usual)
    return np.unique(index_KL[np.arange(len(at_K)), (sign_K[:, None] * value_KL).argmax(1)])


def pulse_band(x_T: np.ndarray, fs: float) -> np.ndarray:
    """The pulse band along the last axis, without the offset."""
    x_T = np.asarray(x_T, np.float64)
    return bandpass(x_T - x_T[..., :1], fs, _PULSE_BAND_HZ[0], min(_PULSE_BAND_HZ[1], 0.4 * fs), order=2)


def slope_sum(band_T: np.ndarray, fs: float) -> np.ndarray:
    """Rise over the last and next 0.08 s, falls left out, along the last axis."""
    rise_T = np.maximum(np.gradient(band_T, axis=-1), 0)
    return _moving_mean(rise_T, max(round(0.16 * fs) | 1, 3))


def pick_pulses(rise_T: np.ndarray, fs: float) -> np.ndarray:
    """Moments of steepest rise (K,): maxima of the slope sum, 0.3 s apart, of at least a quarter of what is usual among their neighbours.

    A rise of less than 0.7 of the one before it and within 0.45 s of it is taken for that pulse's reflected wave.
    """
    from scipy.ndimage import percentile_filter
    from scipy.signal import find_peaks

    at, _ = find_peaks(rise_T, distance=max(round(0.3 * fs), 1))
    if not len(at):
        return at.astype(np.int64)
    height = rise_T[at]
    usual = percentile_filter(height, 80, size=21, mode="reflect")
    strong = height > np.maximum(0.25 * usual, 1e-9)
    at, height = at[strong], height[strong]
    reflected = np.zeros(len(at), bool)
    reflected[1:] = (np.diff(at) < 0.45 * fs) & (height[1:] < 0.7 * height[:-1])
    return at[~reflected]


def feet(band_T: np.ndarray, steep_K: np.ndarray, fs: float) -> np.ndarray:
    """Intersecting-tangent feet (K,) float64, in samples: the steepest point's tangent against the minimum of the 0.4 s before it."""
    if not len(steep_K):
        return np.zeros(0)
    slope_T = np.gradient(band_T)
    near_KL = np.clip(steep_K[:, None] + np.arange(-round(0.08 * fs), round(0.08 * fs) + 1), 0, len(band_T) - 1)
    top_K = near_KL[np.arange(len(steep_K)), slope_T[near_KL].argmax(1)]
    low_K = band_T[np.clip(top_K[:, None] - np.arange(round(0.4 * fs) + 1), 0, len(band_T) - 1)].min(1)
    slope_K = np.maximum(slope_T[top_K], 1e-12)
    return np.maximum(top_K - np.minimum((band_T[top_K] - low_K) / slope_K, 0.4 * fs), 0.0)


def _moving_mean(x_NT: np.ndarray, length: int) -> np.ndarray:
    """Centred mean over `length` samples along the last axis, the edges repeated."""
    left = length // 2
    padded = np.concatenate([np.repeat(x_NT[..., :1], left + 1, -1), x_NT, np.repeat(x_NT[..., -1:], length - 1 - left, -1)], axis=-1)
    total = np.cumsum(padded, axis=-1)
    return (total[..., length:] - total[..., :-length]) / length


def _checked(x_T: np.ndarray, fs: float, lowest_hz: float) -> np.ndarray:
    x_T = np.asarray(x_T, np.float64)
    if x_T.ndim != 1:
        raise ValueError(f"x_T must be one channel (T,), got shape {x_T.shape}; call it once per channel")
    if not lowest_hz <= fs < np.inf:
        raise ValueError(f"fs must be at least {lowest_hz:g} Hz to place these beats, got {fs}; resample first")
    bad = np.flatnonzero(~np.isfinite(x_T))
    if len(bad):
        raise ValueError(f"x_T has {len(bad)} samples that are not finite, the first at {bad[0]} ({bad[0] / fs:.3f} s); cut the gap out or fill it first")
    return x_T
