"""The classical features of PPG pulses: fiducial points, times, widths, areas, second-derivative ratios. N windows, T samples, B beats, K phases.

Every beat runs from foot to foot (the minimum near the intersecting tangents of `beats.feet`). It is cut at K phases from the window low-passed
at 10 Hz and brought to 200 Hz, less the line between its feet, and scaled to a height of 1. Fiducials, after Goda et al. 2024 (pyPPG, Physiol Meas
45:045001) and Takazawa et al. 1998 (Hypertension 32:365):

    sp   systolic peak: the maximum in the first 60 % of the beat          u    steepest rise before it
    a    maximum of the second derivative up to u                          b    its minimum between u and 0.15 s behind the peak
    e    its highest local maximum behind b, up to 60 % of the beat        c,d  its highest local maximum and lowest local minimum between b and e
    dn   dicrotic notch: the lowest local minimum of the beat around e (within 0.08 s), e itself where there is none
    dp   diastolic peak: the first local maximum of the beat within 0.3 s behind dn, else the flattest descent there (the slope's first local maximum)

Features are medians over a window's beats that correlate at least 0.8 with their mean.
"""

from __future__ import annotations

import numpy as np

from physio_data import beats
from physio_data.filters import lowpass, resample
from physio_data.papagei import window_labels

WORK_HZ, PHASES, LOWPASS_HZ = 200.0, 200, 10.0
LEVELS = (10, 25, 50, 75, 90)  # percent of the height at which widths are taken
TEMPLATE_R = 0.8
_CHUNK = 512

# name -> definition, unit; the order of the columns
FEATURES: dict[str, str] = {
    "hr_bpm": "60 over the median interval between feet",
    "tpi_s": "pulse interval, foot to foot",
    "sdnn_s": "standard deviation of the intervals (Task Force 1996, Circulation 93:1043)",
    "rmssd_s": "root mean square of their successive differences",
    "tsp_s": "crest time, foot to sp",
    "tsp_tpi": "crest time over the interval",
    "tsys_s": "foot to dn",
    "tdia_s": "dn to the next foot",
    "tsys_tdia": "their ratio",
    "delta_t_s": "sp to dp",
    "stiffness": "body height over delta_t, m/s (Millasseau et al. 2002, Clin Sci 103:371); needs the height",
    "asp": "height of sp above the line between the feet, in the signal's unit",
    "adn_asp": "height of dn over that of sp",
    "reflection": "height of dp over that of sp (reflection index, Millasseau et al. 2002)",
    **{f"tpw{level}_s": f"width at {level} % of the height" for level in LEVELS},
    **{f"tdw_tsw{level}": f"width behind sp over width before it, at {level} %" for level in LEVELS},
    "auc_sys_s": "area from foot to dn, height 1",
    "auc_dia_s": "area from dn to the next foot",
    "ipa": "inflection point area, auc_dia over auc_sys (Wang et al. 2009, EMBC:2831)",
    "u_asp": "steepest rise over the height, 1/s",
    "tu_s": "foot to u",
    "b_a": "second derivative at b over that at a (Takazawa et al. 1998)",
    "c_a": "likewise c",
    "d_a": "likewise d",
    "e_a": "likewise e",
    "agi": "ageing index (b - c - d - e) / a",
    "agi_mod": "(b - c - d) / a",
    "agi_inf": "(b - e) / a, where c and d cannot be told (Baek et al. 2007)",
    "augmentation": "height at d less height at b, over that of sp: late against early systolic wave (Takazawa et al. 1998)",
    "skewness": "of the window (Elgendi 2016, Bioengineering 3:21)",
    "kurtosis": "of the window, less 3",
    "entropy": "Shannon entropy of the window's values in 32 bins, over log 32",
    "harmonic2": "spectral power at twice the pulse rate over that at the rate",
    "harmonic3": "at three times",
    "respiratory": "share of the power up to 8 Hz that lies at 0.1-0.5 Hz",
    "papagei_svri": "PaPaGei's sVRI (papagei.window_labels)",
    "papagei_skew": "PaPaGei's mean skewness of the halves",
    "papagei_ipa": "PaPaGei's IPA: systolic over diastolic area, the inverse of ipa in its idea",
    "n_beats": "beats that were used",
}


def ppg_features(x_NT: np.ndarray, fs: float, *, height_m: np.ndarray | float | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Features (N, F) float64 of PPG windows (N, T), pulses pointing up, and their names; definitions and units in FEATURES.

    NaN where a window lacks what defines one (two whole beats; c and d where the second derivative shows none; a notch). `height_m` is the body
    height of each window's subject. The window should be band-passed, and 4 s or longer. Raises ValueError for another shape, a rate below 25 Hz,
    windows below 2 s and samples that are not finite.
    """
    x_NT = np.asarray(x_NT, np.float64)
    if x_NT.ndim != 2:
        raise ValueError(f"x_NT must be (windows, samples), got shape {x_NT.shape}; take one channel")
    if not 25 <= fs < np.inf or x_NT.shape[1] < 2 * fs:
        raise ValueError(f"windows must be 2 s or longer at 25 Hz or more, got {x_NT.shape[1]} samples at {fs:g} Hz")
    bad = np.flatnonzero(~np.isfinite(x_NT).all(1))
    if len(bad):
        raise ValueError(f"x_NT has samples that are not finite, first in window {bad[0]}; leave out windows with gaps")
    height_N = np.full(len(x_NT), np.nan) if height_m is None else np.broadcast_to(np.asarray(height_m, np.float64), (len(x_NT),))
    out_NF = np.full((len(x_NT), len(FEATURES)), np.nan)
    for at in range(0, len(x_NT), _CHUNK):
        rows = slice(at, at + _CHUNK)
        found = {**_beat_features(x_NT[rows], fs, height_N[rows]), **_window_features(x_NT[rows], fs)}
        rate_hz = found["hr_bpm"] / 60
        found |= _harmonics(x_NT[rows], fs, rate_hz)
        out_NF[rows] = np.stack([found[name] for name in FEATURES], axis=1)
    return out_NF, tuple(FEATURES)


def _beat_features(x_NT: np.ndarray, fs: float, height_N: np.ndarray) -> dict[str, np.ndarray]:
    n = len(x_NT)
    smooth_NT = lowpass(x_NT - x_NT.mean(1, keepdims=True), fs, min(LOWPASS_HZ, 0.4 * fs))
    work_NT = resample(smooth_NT, fs, WORK_HZ)
    slope_NT = np.gradient(work_NT, axis=1) * WORK_HZ
    row_B, foot_B, stop_B = _feet(work_NT)
    tpi_B = (stop_B - foot_B) / WORK_HZ
    phase_K = np.linspace(0, 1, PHASES)
    place_BK = foot_B[:, None] + (stop_B - foot_B)[:, None] * phase_K
    ramp_B1 = _at(work_NT, row_B, stop_B[:, None]) - _at(work_NT, row_B, foot_B[:, None])
    pulse_BK = _at(work_NT, row_B, place_BK) - _at(work_NT, row_B, foot_B[:, None]) - ramp_B1 * phase_K
    early_K = phase_K <= 0.6
    sp_B = np.where(early_K, pulse_BK, -np.inf).argmax(1) if len(pulse_BK) else np.zeros(0, np.int64)
    asp_B = np.take_along_axis(pulse_BK, sp_B[:, None], 1)[:, 0]
    pulse_BK = pulse_BK / np.where(asp_B > 0, asp_B, np.nan)[:, None]
    good_B = (asp_B > 0) & (sp_B > 0) & (_likeness(pulse_BK, row_B, n) >= TEMPLATE_R)
    row_B, foot_B, tpi_B, pulse_BK, sp_B, asp_B, place_BK = (v[good_B] for v in (row_B, foot_B, tpi_B, pulse_BK, sp_B, asp_B, place_BK))
    v_BK = _at(slope_NT, row_B, place_BK) / asp_B[:, None]
    a_BK = _at(np.gradient(slope_NT, axis=1) * WORK_HZ, row_B, place_BK) / asp_B[:, None]
    point = _fiducials(pulse_BK, v_BK, a_BK, sp_B, tpi_B)

    def height(name: str) -> np.ndarray:
        return _pick(pulse_BK, point[name])

    def time_s(name: str) -> np.ndarray:
        return point[name] / (PHASES - 1) * tpi_B

    a, b, c, d, e = (_pick(a_BK, point[name]) for name in "abcde")
    a = np.where(a > 0, a, np.nan)
    area_BK = (
        np.concatenate([np.zeros((len(pulse_BK), 1)), np.cumsum((pulse_BK[:, 1:] + pulse_BK[:, :-1]) / 2, axis=1)], axis=1) / (PHASES - 1) * tpi_B[:, None]
    )
    auc_sys = _pick(area_BK, point["dn"])
    auc_dia = area_BK[:, -1] - auc_sys
    delta_t = np.where(time_s("dp") > time_s("sp"), time_s("dp") - time_s("sp"), np.nan)
    values = {
        "tsp_s": time_s("sp"),
        "tsp_tpi": time_s("sp") / tpi_B,
        "tsys_s": time_s("dn"),
        "tdia_s": tpi_B - time_s("dn"),
        "tsys_tdia": time_s("dn") / (tpi_B - time_s("dn")),
        "delta_t_s": delta_t,
        "stiffness": height_N[row_B] / delta_t,
        "asp": asp_B,
        "adn_asp": height("dn"),
        "reflection": height("dp"),
        "auc_sys_s": auc_sys,
        "auc_dia_s": auc_dia,
        "ipa": auc_dia / auc_sys,
        "u_asp": _pick(v_BK, point["u"]),
        "tu_s": time_s("u"),
        "b_a": b / a,
        "c_a": c / a,
        "d_a": d / a,
        "e_a": e / a,
        "agi": (b - c - d - e) / a,
        "agi_mod": (b - c - d) / a,
        "agi_inf": (b - e) / a,
        "augmentation": height("d") - height("b"),
        **_widths(pulse_BK, sp_B, tpi_B),
    }
    n_N = np.bincount(row_B, minlength=n)
    medians = {name: _row_median(value, row_B, n) for name, value in values.items()}
    return {**medians, **_rhythm(row_B, foot_B, tpi_B, n), "n_beats": n_N.astype(np.float64)}


def _feet(work_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, foot and next foot (B,) of every beat that lies whole inside its window and lasts 0.3 to 2.4 s."""
    rows, starts, stops = [], [], []
    band_NT = beats.pulse_band(work_NT, WORK_HZ)
    rise_NT = beats.slope_sum(band_NT, WORK_HZ)
    for row, (band_T, rise_T) in enumerate(zip(band_NT, rise_NT, strict=True)):
        foot_K = np.unique(_lowest(work_NT[row], beats.feet(band_T, beats.pick_pulses(rise_T, WORK_HZ), WORK_HZ)))
        foot_K = foot_K[foot_K > 0.02 * WORK_HZ]  # a pulse under way at the window's start has no foot in it
        gap_K = np.diff(foot_K) / WORK_HZ
        keep = np.flatnonzero((gap_K >= 0.3) & (gap_K <= 2.4))
        rows.append(np.full(len(keep), row))
        starts.append(foot_K[keep])
        stops.append(foot_K[keep + 1])
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    return np.concatenate(rows), np.concatenate(starts), np.concatenate(stops)


def _lowest(x_T: np.ndarray, foot_K: np.ndarray) -> np.ndarray:
    """The minima (K,) near tangent feet: from 0.12 s before to 0.04 s behind. A tangent's foot stands part of the way up a rounded one."""
    near_KL = np.rint(foot_K).astype(np.int64)[:, None] + np.arange(-round(0.12 * WORK_HZ), round(0.04 * WORK_HZ) + 1)
    near_KL = np.clip(near_KL, 0, len(x_T) - 1)
    return near_KL[np.arange(len(near_KL)), x_T[near_KL].argmin(1)].astype(np.float64) if len(near_KL) else foot_K


def _fiducials(pulse_BK: np.ndarray, v_BK: np.ndarray, a_BK: np.ndarray, sp_B: np.ndarray, tpi_B: np.ndarray) -> dict[str, np.ndarray]:
    """Positions (B,) float64 in phases, NaN where a point is not there."""
    step_K = np.arange(PHASES)
    sp_B1 = sp_B[:, None]
    a_second_B1 = (PHASES - 1) / tpi_B[:, None]  # phases
    u_B = np.where(step_K <= sp_B1, v_BK, -np.inf).argmax(1)
    a_B = np.where(step_K <= u_B[:, None], a_BK, -np.inf).argmax(1)
    b_B = np.where((step_K > u_B[:, None]) & (step_K <= sp_B1 + 0.15 * a_second_B1), a_BK, np.inf).argmin(1)
    e_B = _best(a_BK, _peaks(a_BK) & (step_K > b_B[:, None] + 0.06 * a_second_B1) & (step_K > sp_B1) & (step_K <= 0.6 * (PHASES - 1)))
    inner_BK = (step_K > b_B[:, None]) & (step_K < np.nan_to_num(e_B, nan=0)[:, None])
    c_B = _best(a_BK, _peaks(a_BK) & inner_BK)
    d_B = _best(-a_BK, _peaks(-a_BK) & inner_BK & (step_K > np.nan_to_num(c_B, nan=PHASES)[:, None]))
    around_BK = (np.abs(step_K - np.nan_to_num(e_B, nan=-PHASES)[:, None]) <= 0.08 * a_second_B1) & (step_K > sp_B1)
    notch_B = _best(-pulse_BK, _peaks(-pulse_BK) & around_BK)
    dn_B = np.where(np.isnan(notch_B), e_B, notch_B)
    behind_BK = step_K - np.nan_to_num(dn_B, nan=PHASES)[:, None]
    after_BK = (behind_BK > 0) & (behind_BK <= 0.3 * a_second_B1) & (step_K < 0.95 * PHASES)
    top_B = _best(-step_K + 0.0 * pulse_BK, _peaks(pulse_BK) & after_BK)
    flat_B = _best(-step_K + 0.0 * v_BK, _peaks(v_BK) & after_BK)
    dp_B = np.where(np.isnan(top_B), flat_B, top_B)
    return {
        "sp": sp_B.astype(float),
        "u": u_B.astype(float),
        "a": a_B.astype(float),
        "b": b_B.astype(float),
        "c": c_B,
        "d": d_B,
        "e": e_B,
        "dn": dn_B,
        "dp": dp_B,
    }


def _peaks(y_BK: np.ndarray) -> np.ndarray:
    peak_BK = np.zeros(y_BK.shape, bool)
    peak_BK[:, 1:-1] = (y_BK[:, 1:-1] > y_BK[:, :-2]) & (y_BK[:, 1:-1] >= y_BK[:, 2:])
    return peak_BK


def _best(y_BK: np.ndarray, allowed_BK: np.ndarray) -> np.ndarray:
    """Position (B,) of the highest allowed value, NaN where nothing is allowed."""
    if not len(y_BK):
        return np.zeros(0)
    return np.where(allowed_BK.any(1), np.where(allowed_BK, y_BK, -np.inf).argmax(1), np.nan)


def _widths(pulse_BK: np.ndarray, sp_B: np.ndarray, tpi_B: np.ndarray) -> dict[str, np.ndarray]:
    """Widths between the last rise through a level before sp and the first fall below it behind, to a part of a phase."""
    out = {}
    step_K = np.arange(PHASES)
    for level in LEVELS:
        low_BK = pulse_BK < level / 100
        rise_B = np.where(low_BK & (step_K < sp_B[:, None]), step_K, 0).max(1, initial=0)
        fall_B = np.where(low_BK & (step_K > sp_B[:, None]), step_K, PHASES - 1).min(1, initial=PHASES - 1)
        up_B = rise_B + _part(pulse_BK, rise_B, np.minimum(rise_B + 1, PHASES - 1), level / 100)
        down_B = fall_B - 1 + _part(pulse_BK, fall_B - 1, fall_B, level / 100)
        phase_s = tpi_B / (PHASES - 1)
        out[f"tpw{level}_s"] = (down_B - up_B) * phase_s
        out[f"tdw_tsw{level}"] = (down_B - sp_B) / np.maximum(sp_B - up_B, 0.5)
    return out


def _part(y_BK: np.ndarray, first_B: np.ndarray, second_B: np.ndarray, level: float) -> np.ndarray:
    """Where, from 0 at the first position to 1 at the second, the straight line between them meets the level."""
    row_B = np.arange(len(y_BK))
    low_B, high_B = y_BK[row_B, first_B], y_BK[row_B, second_B]
    rise_B = high_B - low_B
    return np.clip(np.where(rise_B != 0, (level - low_B) / np.where(rise_B != 0, rise_B, 1), 0), 0, 1)


def _likeness(pulse_BK: np.ndarray, row_B: np.ndarray, n: int) -> np.ndarray:
    """Correlation (B,) of each beat with its window's mean beat."""
    y_BK = np.nan_to_num(pulse_BK)
    sum_NK = np.zeros((n, PHASES))
    np.add.at(sum_NK, row_B, y_BK)
    y_BK, mean_BK = y_BK - y_BK.mean(1, keepdims=True), sum_NK[row_B] - sum_NK[row_B].mean(1, keepdims=True)
    scale_B = np.sqrt((y_BK**2).sum(1) * (mean_BK**2).sum(1))
    return np.where(scale_B > 0, (y_BK * mean_BK).sum(1) / np.where(scale_B > 0, scale_B, 1), 0)


def _rhythm(row_B: np.ndarray, foot_B: np.ndarray, tpi_B: np.ndarray, n: int) -> dict[str, np.ndarray]:
    tpi_N = _row_median(tpi_B, row_B, n)
    table_NK = _table(tpi_B, row_B, n)
    foot_NK = _table(foot_B, row_B, n)
    follows_NK = np.abs(np.diff(foot_NK, axis=1) / WORK_HZ - table_NK[:, :-1]) < 1.5 / WORK_HZ  # the next beat in the table is the next one in time
    step_NK = np.where(follows_NK, np.diff(table_NK, axis=1), np.nan)
    count_N, n_steps_N = (~np.isnan(table_NK)).sum(1), (~np.isnan(step_NK)).sum(1)
    mean_N = np.nansum(table_NK, axis=1) / np.maximum(count_N, 1)
    square_N = np.nansum((table_NK - mean_N[:, None]) ** 2, axis=1) / np.maximum(count_N, 1)
    return {
        "hr_bpm": 60 / tpi_N,
        "tpi_s": tpi_N,
        "sdnn_s": np.where(count_N > 1, np.sqrt(square_N), np.nan),
        "rmssd_s": np.where(n_steps_N > 0, np.sqrt(np.nansum(step_NK**2, axis=1) / np.maximum(n_steps_N, 1)), np.nan),
    }


def _window_features(x_NT: np.ndarray, fs: float) -> dict[str, np.ndarray]:
    centred_NT = x_NT - x_NT.mean(1, keepdims=True)
    sd_N1 = centred_NT.std(1, keepdims=True)
    unit_NT = centred_NT / np.where(sd_N1 > 0, sd_N1, np.nan)
    labels_N3 = window_labels(x_NT, fs)
    return {
        "skewness": (unit_NT**3).mean(1),
        "kurtosis": (unit_NT**4).mean(1) - 3,
        "entropy": _entropy(centred_NT),
        "papagei_svri": labels_N3[:, 0],
        "papagei_skew": labels_N3[:, 1],
        "papagei_ipa": labels_N3[:, 2],
    }


def _entropy(x_NT: np.ndarray, n_bins: int = 32) -> np.ndarray:
    low_N1, span_N1 = x_NT.min(1, keepdims=True), np.ptp(x_NT, axis=1, keepdims=True)
    bin_NT = np.minimum((x_NT - low_N1) / np.where(span_N1 > 0, span_N1, 1) * n_bins, n_bins - 1).astype(np.int64)
    count_NB = np.stack([(bin_NT == k).sum(1) for k in range(n_bins)], axis=1)
    share_NB = count_NB / x_NT.shape[1]
    entropy_N = -(share_NB * np.log(np.where(share_NB > 0, share_NB, 1))).sum(1) / np.log(n_bins)
    return np.where(span_N1[:, 0] > 0, entropy_N, np.nan)


def _harmonics(x_NT: np.ndarray, fs: float, rate_hz_N: np.ndarray) -> dict[str, np.ndarray]:
    """Powers within a fifth of the rate around its multiples, and of breathing."""
    power_NF = np.abs(np.fft.rfft((x_NT - x_NT.mean(1, keepdims=True)) * np.hanning(x_NT.shape[1]))) ** 2
    hz_F = np.fft.rfftfreq(x_NT.shape[1], 1 / fs)

    def around(k: int) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.where(np.abs(hz_F - k * rate_hz_N[:, None]) <= 0.2 * rate_hz_N[:, None], power_NF, 0).sum(1)

    total_N = power_NF[:, (hz_F > 0) & (hz_F <= 8)].sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        first_N = np.where(np.isnan(rate_hz_N), np.nan, around(1))
        return {
            "harmonic2": around(2) / first_N,
            "harmonic3": around(3) / first_N,
            "respiratory": np.where(total_N > 0, power_NF[:, (hz_F >= 0.1) & (hz_F <= 0.5)].sum(1) / np.where(total_N > 0, total_N, 1), np.nan),
        }


def _at(x_NT: np.ndarray, row_B: np.ndarray, place_BK: np.ndarray) -> np.ndarray:
    """Values of the beats' windows at places (B, K) in samples, linear between samples."""
    left_BK = np.clip(place_BK.astype(np.int64), 0, x_NT.shape[1] - 2)
    part_BK = place_BK - left_BK
    low_BK = x_NT[row_B[:, None], left_BK]
    return low_BK + part_BK * (x_NT[row_B[:, None], left_BK + 1] - low_BK)


def _pick(y_BK: np.ndarray, place_B: np.ndarray) -> np.ndarray:
    """Values at positions (B,), NaN where the position is."""
    there_B = ~np.isnan(place_B)
    return np.where(there_B, y_BK[np.arange(len(y_BK)), np.where(there_B, place_B, 0).astype(np.int64)], np.nan)


def _table(value_B: np.ndarray, row_B: np.ndarray, n: int) -> np.ndarray:
    """Values sorted by row as (N, most), NaN behind a row's last; at least two columns."""
    n_N = np.bincount(row_B, minlength=n)
    table_NK = np.full((n, max(2, int(n_N.max(initial=0)))), np.nan)
    table_NK[row_B, np.arange(len(row_B)) - np.repeat(np.cumsum(n_N) - n_N, n_N)] = value_B
    return table_NK


def _row_median(value_B: np.ndarray, row_B: np.ndarray, n: int) -> np.ndarray:
    """Median of the values that are there, for each row; NaN where there is none."""
    sorted_NK = np.sort(_table(value_B, row_B, n), axis=1)  # NaN last
    n_N = (~np.isnan(sorted_NK)).sum(1)
    row_N = np.arange(n)
    low_N, high_N = sorted_NK[row_N, np.maximum(n_N - 1, 0) // 2], sorted_NK[row_N, np.minimum(n_N // 2, sorted_NK.shape[1] - 1)]
    return np.where(n_N > 0, (low_N + high_N) / 2, np.nan)
