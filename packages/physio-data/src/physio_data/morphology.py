"""Hand-crafted features of short ECG and PPG windows: the floor that learned features are compared with.

Letters: N windows, C channels, T samples, K beats, L samples about a beat, F features.
`handcrafted` is that floor; `ppg_features` and `ecg_intervals` are the classical lists with their own definitions, for concept tables.
Rhythm and amplitudes come from the beats of `physio_data.beats`; per-beat values are kept as (N, K) with NaN where a window has fewer beats.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from physio_data import beats
from physio_data.ecg_intervals import ecg_intervals
from physio_data.pulse_features import ppg_features

__all__ = ["ecg_intervals", "handcrafted", "ppg_features"]

_RHYTHM = ("n_beats", "rate_bpm", "rr_mean_s", "rr_sd_s", "rr_rmssd_s", "rr_pnn50", "rr_min_ratio", "rr_max_ratio", "rr_drop", "rr_early_then_late")
_BEAT = ("amplitude", "amplitude_cv", "amplitude_min_ratio", "amplitude_max_ratio", "width_s", "width_cv", "width_max_ratio", "width_min_ratio")
_TEMPLATE = ("template_median", "template_min", "template_p10", "template_distance_max", "early_odd")
_SHAPE = ("sd", "skewness", "kurtosis", "band_low", "band_mid", "band_high", "spectral_entropy")
_ECG = ("area_cv", "area_max_ratio", "area_min_ratio", "opposite_sign")
_PPG = ("crest_s", "crest_ratio", "area_ratio", "area_min_ratio", "reflection", "upslope_min_ratio", "notch_min_ratio")
_CHUNK = 1024  # windows at a time, to bound memory


def handcrafted(x_NCT: np.ndarray, fs: float, kind: Literal["ppg", "ecg"] = "ppg") -> tuple[np.ndarray, tuple[str, ...]]:
    """Features (N, F) float64 of windows and their names; NaN where a window lacks the beats that define one. Several channels stand side by side
    (`ch0/...`); a pulse points up, an ECG may have either polarity. The window should be filtered and in physical units (mV, a.u.).

    Rhythm, from intervals RR between beats (Task Force 1996, Circulation 93:1043): mean, standard deviation, RMSSD, share of
    |successive differences| above 50 ms; shortest and longest over the median (prematurity, compensatory pause); the largest relative
    fall from one interval to the next; the largest product of an interval's shortness and the next one's excess length.
    Beats: height (QRS peak to peak; pulse foot to peak) as median, coefficient of variation, extremes over the median; width (QRS: time
    in which the slope exceeds a fifth of its top; pulse: at half height), likewise; correlation of each beat with the window's median
    beat (Orphanidou et al. 2015, IEEE JBHI 19:832), the log of the largest relative distance to it, and the root of the largest product
    of a beat's earliness and its 1 - correlation.
    ECG: area of |QRS| about its level, and the share of beats whose main deflection has the rarer sign. PPG: crest time and its share of
    the interval, area after the peak over before it (after the inflection-point area of Wang et al. 2009), area and upslope extremes,
    reflected-wave height over the peak's (Millasseau et al. 2002, Clin Sci 103:371), depth of the lowest foot.
    Window: standard deviation, skewness (Elgendi 2016, Bioengineering 3:21), excess kurtosis, power shares of three bands, entropy of
    the spectrum.

    Raises ValueError for another shape than (N, C, T), an unknown kind, a rate below 20 Hz (PPG) or 100 Hz (ECG), and samples that are not finite.
    """
    x_NCT = np.asarray(x_NCT)
    if x_NCT.ndim != 3:
        raise ValueError(f"x_NCT must be (windows, channels, samples), got shape {x_NCT.shape}; add the axis that is missing")
    if kind not in ("ppg", "ecg"):
        raise ValueError(f"kind must be 'ppg' or 'ecg', got {kind!r}")
    lowest_hz = 100.0 if kind == "ecg" else 20.0
    if not lowest_hz <= fs < np.inf:
        raise ValueError(f"fs must be at least {lowest_hz:g} Hz for kind={kind!r}, got {fs}; resample first")
    if x_NCT.shape[2] < fs:
        raise ValueError(f"x_NCT must hold at least a second ({fs:g} samples), got {x_NCT.shape[2]}")
    bad = np.flatnonzero(~np.isfinite(x_NCT).all((1, 2)))
    if len(bad):
        raise ValueError(f"x_NCT has samples that are not finite, first in window {bad[0]}; leave out windows with gaps")

    one = (*_RHYTHM, *_BEAT, *_TEMPLATE, *(_ECG if kind == "ecg" else _PPG), *_SHAPE)
    n_channels = x_NCT.shape[1]
    names = one if n_channels == 1 else tuple(f"ch{c}/{name}" for c in range(n_channels) for name in one)
    out = np.full((len(x_NCT), n_channels, len(one)), np.nan)
    features = _ecg_features if kind == "ecg" else _ppg_features
    for begin in range(0, len(x_NCT), _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        for c in range(n_channels):
            found = features(x_NCT[rows, c].astype(np.float64), fs)
            out[rows, c] = np.stack([found[name] for name in one], axis=1)
    return out.reshape(len(x_NCT), -1), names


def _ecg_features(x_NT: np.ndarray, fs: float) -> dict[str, np.ndarray]:
    band_NT, energy_NT = beats.qrs_energy(x_NT, fs)
    at_NK = _padded([beats.pick_r(band_T, energy_T, fs) for band_T, energy_T in zip(band_NT, energy_NT, strict=True)])
    around_NKL = _around(x_NT, at_NK, round(0.14 * fs), round(0.14 * fs))
    level_NK1 = np.median(around_NKL, axis=2, keepdims=True)
    top_NK, bottom_NK = (around_NKL - level_NK1).max(2), (level_NK1 - around_NKL).max(2)
    energy_NKL = np.abs(np.gradient(around_NKL, axis=2))
    width_NK = (energy_NKL > 0.2 * energy_NKL.max(2, keepdims=True)).sum(2) / fs + 0.0 * at_NK
    area_NK = np.abs(around_NKL - level_NK1).mean(2)
    upright_NK = np.where(np.isnan(at_NK), np.nan, top_NK > bottom_NK)
    share_N = _mean(upright_NK)
    template = _template(_around(x_NT, at_NK, round(0.25 * fs), round(0.35 * fs)), at_NK / fs)
    return {
        **_rhythm(at_NK / fs),
        **_beat_values(top_NK + bottom_NK, width_NK),
        **template,
        "area_cv": _sd(area_NK) / _mean(area_NK),
        "area_max_ratio": _largest(area_NK) / _median(area_NK),
        "area_min_ratio": _smallest(area_NK) / _median(area_NK),
        "opposite_sign": np.minimum(share_N, 1 - share_N),
        **_window(x_NT, fs, ((0.5, 5.0), (5.0, 15.0), (15.0, 40.0))),
    }


def _ppg_features(x_NT: np.ndarray, fs: float) -> dict[str, np.ndarray]:
    band_NT = beats.pulse_band(x_NT, fs)
    rise_NT = beats.slope_sum(band_NT, fs)
    foot_NK = _padded([beats.feet(band_T, beats.pick_pulses(rise_T, fs), fs) for band_T, rise_T in zip(band_NT, rise_NT, strict=True)])
    foot_NKL = _around(band_NT, foot_NK, 0, round(0.6 * fs))
    first_NK1, none_NK = foot_NKL[:, :, :1], np.isnan(foot_NK)
    reach = round(0.4 * fs) + 1
    crest_NK = foot_NKL[:, :, :reach].argmax(2)
    height_NK = np.where(none_NK, np.nan, np.take_along_axis(foot_NKL, crest_NK[:, :, None], 2)[:, :, 0] - first_NK1[:, :, 0])
    height_NK[~(height_NK > 0)] = np.nan
    pulse_NKL = (foot_NKL - first_NK1) / height_NK[:, :, None]  # foot 0, peak 1
    width_NK = (pulse_NKL > 0.5).sum(2) / fs + 0.0 * height_NK
    step_L = np.arange(pulse_NKL.shape[2])
    before_NKL = step_L <= crest_NK[:, :, None]
    area_before_NK = np.where(before_NKL, pulse_NKL, 0).sum(2)
    area_after_NK = np.where(before_NKL, 0, np.maximum(pulse_NKL, 0)).sum(2)
    rr_NK = np.diff(foot_NK, axis=1, append=np.nan) / fs
    late_NKL = (step_L >= crest_NK[:, :, None] + round(0.16 * fs)) & (step_L <= crest_NK[:, :, None] + round(0.28 * fs))
    reflection_NK = np.where(late_NKL, pulse_NKL, 0).sum(2) / np.maximum(late_NKL.sum(2), 1)
    upslope_NK = np.diff(foot_NKL[:, :, :reach], axis=2).max(2) * fs + 0.0 * height_NK
    depth_NK = first_NK1[:, :, 0] + 0.0 * height_NK
    crest_s_NK = crest_NK / fs + 0.0 * height_NK
    return {
        **_rhythm(foot_NK / fs),
        **_beat_values(height_NK, width_NK),
        **_template(_around(band_NT, foot_NK, round(0.1 * fs), round(0.6 * fs)), foot_NK / fs),
        "crest_s": _median(crest_s_NK),
        "crest_ratio": _median(crest_s_NK / rr_NK),
        "area_ratio": _median(area_after_NK / area_before_NK),
        "area_min_ratio": _smallest(height_NK * (area_before_NK + area_after_NK)) / _median(height_NK * (area_before_NK + area_after_NK)),
        "reflection": _median(reflection_NK),
        "upslope_min_ratio": _smallest(upslope_NK) / _median(upslope_NK),
        "notch_min_ratio": (_smallest(depth_NK) - _median(depth_NK)) / _median(height_NK),
        **_window(x_NT, fs, ((0.1, 1.0), (1.0, 2.25), (2.25, 8.0))),
    }


def _rhythm(beat_s_NK: np.ndarray) -> dict[str, np.ndarray]:
    """Interval features, `_RHYTHM`, of beat times in seconds."""
    rr_NK = np.diff(beat_s_NK, axis=1)
    step_NK = np.diff(rr_NK, axis=1)
    usual_N1 = _median(rr_NK)[:, None]
    ratio_NK = rr_NK / usual_N1
    n_N = (~np.isnan(beat_s_NK)).sum(1)
    return {
        "n_beats": n_N.astype(np.float64),
        "rate_bpm": 60 / usual_N1[:, 0],
        "rr_mean_s": _mean(rr_NK),
        "rr_sd_s": _sd(rr_NK),
        "rr_rmssd_s": np.sqrt(_mean(step_NK**2)),
        "rr_pnn50": _mean(np.where(np.isnan(step_NK), np.nan, np.abs(step_NK) > 0.05)),
        "rr_min_ratio": _smallest(ratio_NK),
        "rr_max_ratio": _largest(ratio_NK),
        "rr_drop": _largest(-step_NK / rr_NK[:, :-1]),
        "rr_early_then_late": _largest(np.maximum(1 - ratio_NK[:, :-1], 0) * np.maximum(ratio_NK[:, 1:] - 1, 0) + 0.0 * step_NK),
    }


def _beat_values(height_NK: np.ndarray, width_NK: np.ndarray) -> dict[str, np.ndarray]:
    height_N, width_N = _median(height_NK), _median(width_NK)
    return {
        "amplitude": height_N,
        "amplitude_cv": _sd(height_NK) / _mean(height_NK),
        "amplitude_min_ratio": _smallest(height_NK) / height_N,
        "amplitude_max_ratio": _largest(height_NK) / height_N,
        "width_s": width_N,
        "width_cv": _sd(width_NK) / _mean(width_NK),
        "width_max_ratio": _largest(width_NK) / width_N,
        "width_min_ratio": _smallest(width_NK) / width_N,
    }


def _template(piece_NKL: np.ndarray, beat_s_NK: np.ndarray) -> dict[str, np.ndarray]:
    """Correlation (Pearson) and distance of each beat to the window's median beat; NaN below three beats."""
    there_NK = ~np.isnan(piece_NKL[:, :, 0])
    rr_NK = np.diff(beat_s_NK, axis=1, prepend=np.nan)
    early_NK = np.maximum(1 - rr_NK / _median(rr_NK)[:, None], 0)
    n_windows, n_beats, length = piece_NKL.shape
    median_NL = _median(np.moveaxis(piece_NKL, 1, 2).reshape(-1, n_beats)).reshape(n_windows, length)
    a_NKL = piece_NKL - piece_NKL.mean(2, keepdims=True)
    b_N1L = (median_NL - median_NL.mean(1, keepdims=True))[:, None]
    scale_NK = np.sqrt((a_NKL**2).sum(2) * (b_N1L**2).sum(2))
    r_NK = np.where(there_NK & (scale_NK > 0), (a_NKL * b_N1L).sum(2) / np.where(scale_NK > 0, scale_NK, 1.0), np.nan)
    r_NK[there_NK.sum(1) < 3] = np.nan
    size_N1 = np.sqrt((b_N1L**2).sum(2))
    distance_NK = np.sqrt(((a_NKL - b_N1L) ** 2).sum(2)) / np.where(size_N1 > 0, size_N1, np.nan) + 0.0 * r_NK
    return {
        "template_median": _median(r_NK),
        "template_min": _smallest(r_NK),
        "template_p10": _quantile(r_NK, 0.1),
        "template_distance_max": np.log(_largest(distance_NK) + 1e-3),
        "early_odd": np.sqrt(_largest(early_NK * (1 - r_NK))),
    }


def _window(x_NT: np.ndarray, fs: float, bands_hz: tuple[tuple[float, float], ...]) -> dict[str, np.ndarray]:
    """Moments and spectrum of whole windows; NaN where a window is constant."""
    centred_NT = x_NT - x_NT.mean(1, keepdims=True)
    sd_N = np.sqrt((centred_NT**2).mean(1))
    safe_N = np.where(sd_N > 1e-12, sd_N, np.nan)
    unit_NT = centred_NT / safe_N[:, None]
    power_NF = np.abs(np.fft.rfft(unit_NT * np.hanning(x_NT.shape[1]))) ** 2
    hz_F = np.fft.rfftfreq(x_NT.shape[1], 1 / fs)
    share_NF = power_NF[:, 1:] / power_NF[:, 1:].sum(1, keepdims=True)
    bands = {
        f"band_{name}": share_NF[:, (hz_F[1:] >= low) & (hz_F[1:] < high)].sum(1) for name, (low, high) in zip(("low", "mid", "high"), bands_hz, strict=True)
    }
    entropy_N = -(share_NF * np.log(share_NF + 1e-12)).sum(1) / np.log(share_NF.shape[1])
    return {"sd": sd_N, "skewness": (unit_NT**3).mean(1), "kurtosis": (unit_NT**4).mean(1) - 3, **bands, "spectral_entropy": entropy_N}


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of different length as (N, K) float64 with NaN after each row's end; K is at least 3."""
    out = np.full((len(rows), max(3, max((len(row) for row in rows), default=0))), np.nan)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return out


def _around(x_NT: np.ndarray, at_NK: np.ndarray, before: int, after: int) -> np.ndarray:
    """Samples about each beat (N, K, before + 1 + after), linear between samples; NaN where there is no beat, the window's ends repeated."""
    start_NK = np.where(np.isnan(at_NK), 0.0, at_NK)
    whole_NK = np.floor(start_NK).astype(np.int64)
    index_NKL = whole_NK[:, :, None] + np.arange(-before, after + 1)
    last = x_NT.shape[1] - 1
    row_N11 = np.arange(len(x_NT))[:, None, None]
    left_NKL = x_NT[row_N11, np.clip(index_NKL, 0, last)]
    part_NK = start_NK - whole_NK
    if part_NK.any():
        left_NKL = left_NKL + part_NK[:, :, None] * (x_NT[row_N11, np.clip(index_NKL + 1, 0, last)] - left_NKL)
    left_NKL[np.isnan(at_NK)] = np.nan
    return left_NKL


def _mean(x_NK: np.ndarray) -> np.ndarray:
    there = ~np.isnan(x_NK)
    n_N = there.sum(1)
    return np.where(n_N > 0, np.where(there, x_NK, 0.0).sum(1) / np.maximum(n_N, 1), np.nan)


def _sd(x_NK: np.ndarray) -> np.ndarray:
    """Population standard deviation; NaN below two values."""
    deviation_NK = x_NK - _mean(x_NK)[:, None]
    return np.where((~np.isnan(x_NK)).sum(1) > 1, np.sqrt(_mean(deviation_NK**2)), np.nan)


def _quantile(x_NK: np.ndarray, q: float) -> np.ndarray:
    """Linear quantile of the values that are there."""
    ordered_NK = np.sort(x_NK, axis=1)  # NaN last
    n_N = (~np.isnan(x_NK)).sum(1)
    place_N = q * np.maximum(n_N - 1, 0)
    low_N = np.floor(place_N).astype(np.int64)
    row_N = np.arange(len(x_NK))
    low, high = ordered_NK[row_N, low_N], ordered_NK[row_N, np.minimum(low_N + 1, np.maximum(n_N - 1, 0))]
    return low + (place_N - low_N) * (high - low)


def _median(x_NK: np.ndarray) -> np.ndarray:
    return _quantile(x_NK, 0.5)


def _smallest(x_NK: np.ndarray) -> np.ndarray:
    return _quantile(x_NK, 0.0)


def _largest(x_NK: np.ndarray) -> np.ndarray:
    return _quantile(x_NK, 1.0)
