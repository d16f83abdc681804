"""ECG intervals of windows: RR, PR, QRS, QT, from the window's median beat. N windows, T samples, K beats, L samples of a beat.

A window's beats are aligned at R and their median, sample by sample, is delineated: noise falls with the root of their number and an ectopic beat
does not count. Points:

    QRS   from R outwards, within 0.1 s before and 0.12 s behind, until the slope stays for 0.014 s below 6 % of its top, less its noise
    P     the largest deflection of the 0.22 s before QRS, from the line through both ends of that stretch; its onset by the same rule as T's end
    T     the largest deflection from 0.08 s behind QRS to 0.52 s behind R at 60 bpm; its end where the tangent at its steepest descent meets the level
          behind it (Lepeschkin and Surawicz 1952, Circulation 6:378)
"""

from __future__ import annotations

import numpy as np

from physio_data import beats
from physio_data.filters import bandpass, resample

WORK_HZ = 500.0
BEFORE_S, AFTER_S = 0.36, 0.62
MIN_BEATS = 3
QUIET_S = 0.02
P_HEIGHT = 0.025  # of the QRS, and three times the noise: a smaller bump is no P wave
T_HEIGHT = 0.03
LATEST_T_S = 0.52  # behind R at 60 bpm, growing with the root of the interval (Bazett): what comes later is the next P wave or baseline
_CHUNK = 512

INTERVALS: dict[str, str] = {
    "rr_s": "median interval between R peaks, s",
    "hr_bpm": "60 over it",
    "pr_s": "onset of P to onset of QRS, s; NaN where no P wave stands out or the rhythm is irregular without one",
    "qrs_s": "onset to end of QRS, s",
    "qt_s": "onset of QRS to the end of T, s; NaN where no T wave stands out",
    "qtc_s": "qt over the root of rr (Bazett 1920, Heart 7:353), s",
    "p_height": "of P over the height of QRS",
    "t_height": "of T over the height of QRS, negative where T points against R",
    "n_beats": "beats in the window",
}


def ecg_intervals(x_NT: np.ndarray, fs: float) -> tuple[np.ndarray, tuple[str, ...]]:
    """Intervals (N, F) float64 of windows (N, T) of one lead, in any unit and polarity, and their names; definitions in INTERVALS.

    NaN where an interval cannot be measured: fewer than three beats, no wave above the noise. Windows of 5 s or more suit; the band should reach
    from 1 Hz or lower to 40 Hz. Raises ValueError for another shape, a rate below 100 Hz and samples that are not finite.
    """
    x_NT = np.asarray(x_NT, np.float64)
    if x_NT.ndim != 2:
        raise ValueError(f"x_NT must be (windows, samples), got shape {x_NT.shape}; take one lead")
    if not 100 <= fs < np.inf or x_NT.shape[1] < 2 * fs:
        raise ValueError(f"windows must be 2 s or longer at 100 Hz or more, got {x_NT.shape[1]} samples at {fs:g} Hz")
    bad = np.flatnonzero(~np.isfinite(x_NT).all(1))
    if len(bad):
        raise ValueError(f"x_NT has samples that are not finite, first in window {bad[0]}; leave out windows with gaps")
    out_NF = np.full((len(x_NT), len(INTERVALS)), np.nan)
    for at in range(0, len(x_NT), _CHUNK):
        rows = slice(at, at + _CHUNK)
        found = _intervals(x_NT[rows], fs)
        out_NF[rows] = np.stack([found[name] for name in INTERVALS], axis=1)
    return out_NF, tuple(INTERVALS)


def median_beat(x_NT: np.ndarray, fs: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(beat_NL, rr_s_N, n_beats_N): each window's median beat at 500 Hz from 0.36 s before R to 0.62 s behind; NaN below three beats."""
    band_NT, energy_NT = beats.qrs_energy(x_NT, fs)
    smooth_NT = resample(bandpass(x_NT - x_NT[:, :1], fs, 0.5, min(40.0, 0.45 * fs), order=2), fs, WORK_HZ)
    fine_NT = resample(band_NT, fs, WORK_HZ)
    n_before, n_after = round(BEFORE_S * WORK_HZ), round(AFTER_S * WORK_HZ)
    beat_NL = np.full((len(x_NT), n_before + n_after + 1), np.nan)
    rr_N, n_N = np.full(len(x_NT), np.nan), np.zeros(len(x_NT))
    step_L = np.arange(-n_before, n_after + 1)
    for row, (band_T, energy_T) in enumerate(zip(band_NT, energy_NT, strict=True)):
        r_K = beats.pick_r(band_T, energy_T, fs)
        n_N[row] = len(r_K)
        if len(r_K) < MIN_BEATS:
            continue
        rr_N[row] = np.median(np.diff(r_K)) / fs
        r_K = _refined(fine_NT[row], np.rint(r_K * WORK_HZ / fs).astype(np.int64))
        inside_K = (r_K >= n_before) & (r_K + n_after < smooth_NT.shape[1])
        if inside_K.sum() >= MIN_BEATS - 1:
            beat_NL[row] = np.median(smooth_NT[row][r_K[inside_K][:, None] + step_L], axis=0)
    return beat_NL, rr_N, n_N


def _refined(band_T: np.ndarray, r_K: np.ndarray) -> np.ndarray:
    """R moved by up to 0.02 s to the largest deflection of the QRS band, of the usual sign, at the finer rate."""
    reach = round(0.02 * WORK_HZ)
    near_KL = np.clip(r_K[:, None] + np.arange(-reach, reach + 1), 0, len(band_T) - 1)
    sign = np.sign(np.median(band_T[r_K.clip(0, len(band_T) - 1)])) or 1.0
    return near_KL[np.arange(len(r_K)), (sign * band_T[near_KL]).argmax(1)]


def _intervals(x_NT: np.ndarray, fs: float) -> dict[str, np.ndarray]:
    beat_NL, rr_N, n_N = median_beat(x_NT, fs)
    known_N = np.isfinite(beat_NL).all(1)
    beat_NL = np.where(known_N[:, None], beat_NL, 0.0)
    r = round(BEFORE_S * WORK_HZ)
    on_N, off_N = _qrs(beat_NL, r)
    level_N = np.take_along_axis(beat_NL, on_N[:, None], 1)[:, 0]
    around_NL = np.where(_within(beat_NL, on_N, off_N), beat_NL - level_N[:, None], 0.0)
    height_N = np.ptp(around_NL, axis=1)
    r_sign_N = np.where(around_NL.max(1) >= -around_NL.min(1), 1.0, -1.0)
    p_on_N, p_height_N = _p_wave(beat_NL, on_N, rr_N)
    t_end_N, t_height_N = _t_wave(beat_NL, off_N, r, rr_N)
    safe_N = np.where(known_N & (height_N > 0), height_N, np.nan)
    p_share_N, t_share_N = p_height_N / safe_N, t_height_N / safe_N
    has_p_N, has_t_N = np.abs(p_share_N) >= P_HEIGHT, np.abs(t_share_N) >= T_HEIGHT
    qt_N = np.where(has_t_N, (t_end_N - on_N) / WORK_HZ, np.nan)
    return {
        "rr_s": rr_N,
        "hr_bpm": 60 / rr_N,
        "pr_s": np.where(has_p_N, (on_N - p_on_N) / WORK_HZ, np.nan),
        "qrs_s": np.where(np.isfinite(safe_N), (off_N - on_N) / WORK_HZ, np.nan),
        "qt_s": qt_N,
        "qtc_s": qt_N / np.sqrt(rr_N),
        "p_height": p_share_N,
        "t_height": t_share_N * r_sign_N,
        "n_beats": n_N,
    }


def _within(x_NL: np.ndarray, first_N: np.ndarray, last_N: np.ndarray) -> np.ndarray:
    step_L = np.arange(x_NL.shape[1])
    return (step_L >= first_N[:, None]) & (step_L <= last_N[:, None])


def _qrs(beat_NL: np.ndarray, r: int) -> tuple[np.ndarray, np.ndarray]:
    slope_NL = _smooth(np.abs(np.gradient(beat_NL, axis=1)), 5)
    first, last = r - round(0.10 * WORK_HZ), r + round(0.12 * WORK_HZ)
    near_NL = slope_NL[:, first : last + 1]
    top_N = near_NL.max(1)
    quiet_N = np.quantile(slope_NL, 0.2, axis=1)  # a fifth of a beat is flat: its slope is noise
    steep_NL = near_NL > (quiet_N + 0.06 * (top_N - quiet_N))[:, None]
    back_N, on_N = _until_quiet(steep_NL[:, r - first :: -1]), _until_quiet(steep_NL[:, r - first :])
    return r - back_N, np.minimum(r + on_N, last)


def _until_quiet(steep_NL: np.ndarray) -> np.ndarray:
    """How many samples (N,) a QRS goes on from R: up to the first QUIET_S without a steep one, or to the end."""
    n_quiet = round(QUIET_S * WORK_HZ)
    windows_NLq = np.lib.stride_tricks.sliding_window_view(np.pad(steep_NL, ((0, 0), (0, n_quiet - 1))), n_quiet, axis=1)
    calm_NL = ~windows_NLq.any(2)
    calm_NL[:, : round(0.02 * WORK_HZ)] = False  # the top of R itself is flat
    return np.where(calm_NL.any(1), calm_NL.argmax(1), steep_NL.shape[1] - 1)


def _p_wave(beat_NL: np.ndarray, on_N: np.ndarray, rr_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Onset (N,) in samples and height (N,) of the P wave."""
    length = round(0.24 * WORK_HZ)
    index_NW = np.clip(on_N[:, None] - length + np.arange(length), 0, None)
    piece_NW = _smooth(np.take_along_axis(beat_NL, index_NW, 1), 7)
    line_NW = piece_NW[:, :1] + (piece_NW[:, -1:] - piece_NW[:, :1]) * np.linspace(0, 1, length)
    bump_NW = piece_NW - line_NW
    inner_NW = bump_NW[:, round(0.02 * WORK_HZ) : -round(0.03 * WORK_HZ)]
    top_N = np.abs(inner_NW).argmax(1) + round(0.02 * WORK_HZ)
    height_N = np.take_along_axis(bump_NW, top_N[:, None], 1)[:, 0]
    onset_N = _foot(bump_NW * np.sign(height_N)[:, None], top_N, round(0.09 * WORK_HZ), -1)
    return index_NW[:, 0] + onset_N, height_N


def _t_wave(beat_NL: np.ndarray, off_N: np.ndarray, r: int, rr_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """End (N,) in samples and height (N,) of the T wave."""
    smooth_NL = _smooth(beat_NL, 11)
    latest_N = np.nan_to_num(np.minimum(0.7 * rr_N, LATEST_T_S * np.sqrt(rr_N)), nan=AFTER_S)
    last_N = np.minimum(r + latest_N * WORK_HZ, beat_NL.shape[1] - 1 - round(0.02 * WORK_HZ)).astype(np.int64)
    first_N = np.minimum(off_N + round(0.08 * WORK_HZ), last_N - 5)
    level_N = np.take_along_axis(smooth_NL, last_N[:, None], 1)[:, 0]
    bump_NL = np.where(_within(smooth_NL, first_N, last_N), smooth_NL - level_N[:, None], 0.0)
    inner_NL = np.where(_within(smooth_NL, first_N + 5, last_N - round(0.04 * WORK_HZ)), bump_NL, 0.0)
    top_N = np.abs(inner_NL).argmax(1)
    height_N = np.take_along_axis(bump_NL, top_N[:, None], 1)[:, 0]
    upright_NL = (smooth_NL - level_N[:, None]) * np.sign(height_N)[:, None]
    return _foot(upright_NL, top_N, round(0.16 * WORK_HZ), 1), height_N


def _foot(bump_NW: np.ndarray, top_N: np.ndarray, reach: int, way: int) -> np.ndarray:
    """Where the tangent at the steepest flank within `reach` samples of the top meets zero, before it (`way` -1) or behind it (1)."""
    slope_NW = np.gradient(bump_NW, axis=1) * -way
    index_NR = np.clip(top_N[:, None] + way * np.arange(reach + 1), 0, bump_NW.shape[1] - 1)
    flank_NR = np.take_along_axis(slope_NW, index_NR, 1)
    at_N = np.take_along_axis(index_NR, flank_NR.argmax(1)[:, None], 1)[:, 0]
    steepest_N = np.maximum(flank_NR.max(1), 1e-12)
    run_N = np.clip(np.take_along_axis(bump_NW, at_N[:, None], 1)[:, 0] / steepest_N, 0, reach)
    return at_N + way * run_N


def _smooth(x_NL: np.ndarray, length: int) -> np.ndarray:
    from scipy.ndimage import uniform_filter1d

    return uniform_filter1d(x_NL, length, axis=1, mode="nearest")
