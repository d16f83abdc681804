"""Window quality: a reason for each rejection, computed for thousands of windows a second.

Shape letters: N windows, C channels, T samples, M = N * C rows, K samples of a resampled beat.

    reason    set when                                                                     source of the limit
    MISSING   a sample is not finite                                                       a store never holds a gap
    FLAT      >= 25 % of the changes over 40 ms are <= 1e-3 of the standard deviation      PaPaGei's flat-line rule, made scale-free
    CLIPPED   >= 5 % of the samples lie at the minimum, or at the maximum                  rail or saturation of the converter
    RATE      the pulse rate by autocorrelation lies outside 30-200 bpm, or there is none  Orphanidou et al. 2015 use 40-180
    TEMPLATE  the median correlation of beats with their mean is < 0.8 (PPG), 0.66 (ECG)   Orphanidou et al. 2015: 0.86 and 0.66

Every measure ignores an offset and a gain. A window carries the reasons of all its channels. FLAT and CLIPPED look for traces of
the converter that filters wipe out, so check those on the signal as recorded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntFlag
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["ppg", "ecg"]

FLAT_LAG_S = 0.04  # one sample at 25 Hz; longer than the top of a pulse is flat at 1000 Hz
EXTREME = 1e-6  # "at the minimum" is within this part of the range: a rail repeats one value, the smooth foot of a pulse does not
SHORTEST_S = 4.0  # below, RATE and TEMPLATE are not decided: there are too few beats
BEAT_SAMPLES = 32  # K
_COARSE_HZ = 50.0  # rows are averaged down to about this rate before beats are sought
_BLOCK_ROWS = 1024  # rows worked on at a time, to bound memory


class Reason(IntFlag):
    """Why a window is not fit for use; 0 is a clean window."""

    MISSING = 1
    FLAT = 2
    CLIPPED = 4
    RATE = 8
    TEMPLATE = 16


ALL_REASONS = Reason.MISSING | Reason.FLAT | Reason.CLIPPED | Reason.RATE | Reason.TEMPLATE


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where each reason begins; fractions in [0, 1], rates in beats per minute, correlations in [-1, 1]."""

    missing_fraction: float = 0.0  # rejected above
    flat_fraction: float = 0.25  # rejected from here on
    flat_change: float = 1e-3  # change over 40 ms, in standard deviations, that counts as none
    clipped_fraction: float = 0.05  # rejected from here on, at either end
    min_bpm: float = 30.0
    max_bpm: float = 200.0
    min_template_ppg: float = 0.8
    min_template_ecg: float = 0.66

    def __post_init__(self) -> None:
        for name in ("missing_fraction", "flat_fraction", "flat_change", "clipped_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("min_template_ppg", "min_template_ecg"):
            if not -1 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [-1, 1], got {getattr(self, name)}; -1 switches the check off")
        if not 0 < self.min_bpm < self.max_bpm:
            raise ValueError(f"min_bpm and max_bpm must satisfy 0 < min < max, got {self.min_bpm}, {self.max_bpm}")


DEFAULT_LIMITS = Limits()


def check(x_NCT: np.ndarray, fs: float, kind: Kind = "ppg", limits: Limits = DEFAULT_LIMITS, *, reasons: Reason = ALL_REASONS) -> np.ndarray:
    """Reason bits (N,) uint32 of windows (N, C, T) at ``fs`` Hz; 0 means clean.

    ``reasons`` limits the work: FLAT and CLIPPED on the signal as recorded, RATE and TEMPLATE on the filtered one. Windows shorter than
    4 s never get RATE or TEMPLATE. A window that misses samples gets the other reasons only from what is there (gaps replaced
    by the mean), and none of them when nothing is there.
    """
    x_NCT = np.asarray(x_NCT)
    if x_NCT.ndim != 3 or 0 in x_NCT.shape[1:]:
        raise ValueError(f"x_NCT must be (windows, channels, samples) with at least one of the last two, got shape {x_NCT.shape}")
    check_kind(kind, fs)
    rows_MT = x_NCT.reshape(-1, x_NCT.shape[2])
    bits_M = np.zeros(len(rows_MT), np.uint32)
    for at in range(0, len(rows_MT), _BLOCK_ROWS):
        bits_M[at : at + _BLOCK_ROWS] = _check_rows(rows_MT[at : at + _BLOCK_ROWS], fs, kind, limits, reasons)
    return np.bitwise_or.reduce(bits_M.reshape(x_NCT.shape[:2]), axis=1)


def score(x: np.ndarray, fs: float, kind: Kind = "ppg") -> np.ndarray | float:
    """How alike the beats of a window are: the median over its beats of the best correlation with one of its six neighbours, higher is better.

    (T,) gives a float, (N, T) an array (N,), in [-1, 1]; 0 where fewer than two beats are found or samples are missing. Noise of a quarter of the
    signal's power (6 dB) lowers it from about 0.99 to 0.8. Of a PPG, what `white_fraction` says is noise counts as well, squared: beats of a
    living person differ more than the noise floor of a whole window does. Indices beside it: `sqi.indices`.
    """
    x_NT = np.atleast_2d(np.asarray(x))
    if x_NT.ndim != 2 or x_NT.shape[1] == 0:
        raise ValueError(f"x must be (samples,) or (windows, samples), got shape {np.shape(x)}")
    check_kind(kind, fs)
    score_N = np.zeros(len(x_NT))
    for at in range(0, len(x_NT), _BLOCK_ROWS):
        block_NT = x_NT[at : at + _BLOCK_ROWS]
        whole_N = np.isfinite(block_NT).all(-1)
        if whole_N.any():
            beats = beats_of(centred(block_NT[whole_N]), fs, kind)
            alike_M = np.nan_to_num(beats.pair_M)
            if kind == "ppg":
                alike_M = np.where(alike_M > 0, alike_M * (1 - white_fraction(block_NT[whole_N], fs)) ** 2, alike_M)
            score_N[at : at + _BLOCK_ROWS][whole_N] = alike_M
    return float(score_N[0]) if np.ndim(x) == 1 else score_N


def skewness(x_NT: np.ndarray) -> np.ndarray:
    """Third standardised moment (N,), the best single quality index for PPG of Elgendi 2016; NaN for a flat window."""
    centred_NT = centred(np.atleast_2d(np.asarray(x_NT))).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (centred_NT**3).mean(-1) / (centred_NT**2).mean(-1) ** 1.5


def relative_power(x_NT: np.ndarray, fs: float, band_hz: tuple[float, float] = (1.0, 2.25), total_hz: tuple[float, float] = (0.0, 8.0)) -> np.ndarray:
    """Power in ``band_hz`` over power in ``total_hz`` (N,), offset removed (Elgendi 2016); NaN for a flat window."""
    centred_NT = centred(np.atleast_2d(np.asarray(x_NT))).astype(np.float64)
    power_NF = np.abs(np.fft.rfft(centred_NT * np.hanning(centred_NT.shape[-1]), axis=-1)) ** 2
    hz_F = np.fft.rfftfreq(centred_NT.shape[-1], 1 / fs)
    band_N, total_N = (power_NF[:, (hz_F >= lo) & (hz_F <= hi)].sum(-1) for lo, hi in (band_hz, total_hz))
    with np.errstate(invalid="ignore", divide="ignore"):
        return band_N / total_N


def white_fraction(x_NT: np.ndarray, fs: float) -> np.ndarray:
    """The part of the power that is white noise (N,), in [0, 1]: the floor of the spectrum above the pulse's band, taken over the whole band.

    A pulse has next to nothing above 10 Hz (at low rates: above 0.3 fs). The floor is the median there over ln 2, since the power of noise at
    one frequency is exponentially distributed; lines such as mains hum do not move a median. 0 for a flat window and after a low-pass filter.
    """
    centred_NT = centred(np.atleast_2d(np.asarray(x_NT)))
    power_NF = np.abs(np.fft.rfft(centred_NT * np.hanning(centred_NT.shape[-1]).astype(np.float32), axis=-1)) ** 2
    hz_F = np.fft.rfftfreq(centred_NT.shape[-1], 1 / fs)
    above_F = hz_F > min(10.0, 0.3 * fs)
    total_N = power_NF.sum(-1)
    if not above_F.any():
        return np.zeros(len(centred_NT))
    floor_N = np.median(power_NF[:, above_F], axis=-1) / np.log(2)
    return np.clip(floor_N * len(hz_F) / np.where(total_N > 0, total_N, 1), 0, 1)


def reason_names(bits: int | Reason) -> tuple[str, ...]:
    """The lower-case names of the reasons in a bit set: ``reason_names(6) == ("flat", "clipped")``."""
    return tuple(str(reason.name).lower() for reason in Reason if int(bits) & reason)


def reason_counts(bits_N: Iterable[int]) -> dict[str, int]:
    """How many windows carry each reason, for a manifest; a window with two counts under both."""
    bits_N = np.asarray(bits_N, np.uint32)
    return {str(reason.name).lower(): int(np.count_nonzero(bits_N & np.uint32(reason))) for reason in Reason}


class Beats(NamedTuple):
    """Per row: the pulse rate (NaN without a period), the median correlation of beats with their mean and with their best neighbour (NaN below
    two beats), and how many beats there are."""

    bpm_M: np.ndarray
    template_M: np.ndarray
    pair_M: np.ndarray
    n_beats_M: np.ndarray


def check_kind(kind: str, fs: float) -> None:
    if kind not in ("ppg", "ecg"):
        raise ValueError(f"kind must be 'ppg' or 'ecg', got {kind!r}; other signals have no beats to check")
    if not (np.isfinite(fs) and fs > 0):
        raise ValueError(f"fs must be a positive number of Hz, got {fs}")


def _check_rows(x_MT: np.ndarray, fs: float, kind: Kind, limits: Limits, reasons: Reason) -> np.ndarray:
    bits_M = np.zeros(len(x_MT), np.uint32)
    finite_MT = np.isfinite(x_MT)
    there_M = finite_MT.any(-1)

    def put(reason: Reason, bad_M: np.ndarray) -> None:
        bits_M[bad_M] |= np.uint32(reason & reasons)

    put(Reason.MISSING, (1 - finite_MT.mean(-1) > limits.missing_fraction) | ~there_M)
    x_MT = centred(x_MT, finite_MT)
    if reasons & Reason.FLAT:
        put(Reason.FLAT, there_M & (flat_fraction(x_MT, finite_MT, fs, limits.flat_change) >= limits.flat_fraction))
    if reasons & Reason.CLIPPED:
        put(Reason.CLIPPED, there_M & (clipped_fraction(x_MT, finite_MT) >= limits.clipped_fraction))
    if reasons & (Reason.RATE | Reason.TEMPLATE) and x_MT.shape[-1] >= SHORTEST_S * fs and there_M.any():
        beats = beats_of(x_MT, fs, kind)
        put(Reason.RATE, there_M & ~((beats.bpm_M >= limits.min_bpm) & (beats.bpm_M <= limits.max_bpm)))
        put(Reason.TEMPLATE, there_M & ~(beats.template_M >= (limits.min_template_ppg if kind == "ppg" else limits.min_template_ecg)))
    return bits_M


def centred(x_MT: np.ndarray, finite_MT: np.ndarray | None = None) -> np.ndarray:
    """Rows less their mean, float32; missing samples become 0. The mean is taken in float64: an offset costs no digits."""
    if finite_MT is None or finite_MT.all():
        return (x_MT - x_MT.mean(-1, dtype=np.float64, keepdims=True)).astype(np.float32)
    mean_M1 = np.where(finite_MT, x_MT, 0).sum(-1, dtype=np.float64, keepdims=True) / np.maximum(finite_MT.sum(-1, keepdims=True), 1)
    return np.where(finite_MT, np.where(finite_MT, x_MT, 0) - mean_M1, 0).astype(np.float32)


def flat_fraction(x_MT: np.ndarray, finite_MT: np.ndarray, fs: float, flat_change: float) -> np.ndarray:
    lag = max(1, round(FLAT_LAG_S * fs))
    if x_MT.shape[-1] <= lag:
        return np.zeros(len(x_MT))
    known_MT = finite_MT[:, lag:] & finite_MT[:, :-lag]
    flat_MT = np.abs(x_MT[:, lag:] - x_MT[:, :-lag]) <= flat_change * x_MT.std(-1, keepdims=True)
    return (flat_MT & known_MT).sum(-1) / np.maximum(known_MT.sum(-1), 1)


def clipped_fraction(x_MT: np.ndarray, finite_MT: np.ndarray) -> np.ndarray:
    low_M1 = np.where(finite_MT, x_MT, np.inf).min(-1, keepdims=True)
    high_M1 = np.where(finite_MT, x_MT, -np.inf).max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        near_M1 = EXTREME * (high_M1 - low_M1)
        at_low_M, at_high_M = ((x_MT <= low_M1 + near_M1) & finite_MT).sum(-1), ((x_MT >= high_M1 - near_M1) & finite_MT).sum(-1)
    fraction_M = np.maximum(at_low_M, at_high_M) / np.maximum(finite_MT.sum(-1), 1)
    return np.where(high_M1[:, 0] > low_M1[:, 0], fraction_M, 0.0)  # a constant is flat, not clipped


def _pulse_train(x_MT: np.ndarray, fs: float, kind: Kind) -> tuple[np.ndarray, float]:
    """Rows in which every beat is one hump, at a coarser rate: PPG less its slow baseline; for ECG, the energy of its steep parts."""
    from scipy.ndimage import uniform_filter1d

    factor = max(1, round(fs / _COARSE_HZ))
    if kind == "ecg":
        x_MT = np.abs(np.diff(x_MT, axis=-1, prepend=x_MT[:, :1]))
    n_coarse = x_MT.shape[-1] // factor
    coarse_MT = x_MT[:, : n_coarse * factor].reshape(len(x_MT), n_coarse, factor).mean(-1) if factor > 1 else x_MT
    coarse_hz = fs / factor
    if kind == "ecg":
        coarse_MT = uniform_filter1d(coarse_MT, max(1, round(0.12 * coarse_hz)), axis=-1, mode="nearest")
        ceiling_M1 = 1.5 * np.quantile(coarse_MT, 0.95, axis=-1, keepdims=True)
        coarse_MT = np.minimum(coarse_MT, ceiling_M1)  # one tall artefact does not hide the beats
    else:
        coarse_MT = uniform_filter1d(coarse_MT, max(1, round(0.12 * coarse_hz)), axis=-1, mode="nearest")
        coarse_MT = coarse_MT - uniform_filter1d(coarse_MT, min(n_coarse, max(3, round(1.5 * coarse_hz))), axis=-1, mode="reflect")
    return coarse_MT - coarse_MT.mean(-1, keepdims=True), coarse_hz


def _period_s(pulse_MT: np.ndarray, hz: float) -> np.ndarray:
    """Period (M,) in seconds: the shortest lag whose autocorrelation peak reaches 0.8 of the highest; NaN without a positive peak.

    Lags run from 0.2 s to 2.4 s, at most to 0.6 of the window, so that rates outside 30-200 bpm show as such.
    """
    n = pulse_MT.shape[-1]
    last = min(round(2.4 * hz), int(0.6 * n))
    first = max(1, round(0.2 * hz))
    if last - first < 2:
        return np.full(len(pulse_MT), np.nan)
    spectrum_MF = np.fft.rfft(pulse_MT, 2 * n, axis=-1)
    acf_ML = np.fft.irfft(np.abs(spectrum_MF) ** 2, 2 * n, axis=-1)[:, : last + 2]
    acf_ML = acf_ML / (n - np.arange(acf_ML.shape[-1]))  # the overlap shrinks with the lag
    inner_ML, before_ML, after_ML = acf_ML[:, first : last + 1], acf_ML[:, first - 1 : last], acf_ML[:, first + 1 : last + 2]
    peak_ML = np.where((inner_ML > before_ML) & (inner_ML >= after_ML) & (inner_ML > 0), inner_ML, 0)
    high_M1 = peak_ML.max(-1, keepdims=True)
    at_M = np.argmax(peak_ML >= 0.8 * high_M1, axis=-1)
    rows = np.arange(len(pulse_MT))
    curve_M = before_ML[rows, at_M] - 2 * inner_ML[rows, at_M] + after_ML[rows, at_M]
    with np.errstate(invalid="ignore", divide="ignore"):
        shift_M = np.where(curve_M < 0, 0.5 * (before_ML[rows, at_M] - after_ML[rows, at_M]) / curve_M, 0.0)
    return np.where(high_M1[:, 0] > 0, (at_M + first + np.clip(shift_M, -0.5, 0.5)) / hz, np.nan)


def beats_of(x_MT: np.ndarray, fs: float, kind: Kind) -> Beats:
    pulse_MT, hz = _pulse_train(x_MT, fs, kind)
    period_M = _period_s(pulse_MT, hz)
    row_B, at_B = _humps(pulse_MT, _half_width(period_M * hz, hz, kind))
    bpm_M, template_M, pair_M, n_beats_M = 60.0 / period_M, np.full(len(x_MT), np.nan), np.full(len(x_MT), np.nan), np.zeros(len(x_MT), np.int64)
    if row_B.size:
        n_beats_M = np.bincount(row_B, minlength=len(x_MT))
        span_M = _median_gap(row_B, at_B, np.bincount(row_B, minlength=len(x_MT))) / hz
        if kind == "ecg":  # in atrial fibrillation nothing repeats, the beats are there all the same
            bpm_M = np.where((bpm_M >= DEFAULT_LIMITS.min_bpm) & (bpm_M <= DEFAULT_LIMITS.max_bpm), bpm_M, 60.0 / span_M)
        centre_B = at_B * (fs / hz) + 0.5 * (fs / hz - 1)
        if kind == "ecg":
            centre_B = _at_r(x_MT, fs, row_B, centre_B)
        whole_B, beat_BK = _pieces(x_MT, fs, kind, row_B, centre_B, span_M)
        template_M = _template_correlation(beat_BK, row_B[whole_B], len(x_MT))
        pair_M = _pair_correlation(beat_BK, row_B[whole_B], len(x_MT))
    return Beats(bpm_M, template_M, pair_M, n_beats_M)


def _half_width(period_M: np.ndarray, hz: float, kind: Kind) -> np.ndarray:
    """How far (coarse samples) a beat must top its surroundings: 0.3 of a period, for ECG within 0.12-0.25 s so that early beats count; 0 is no beat."""
    half_M = 0.3 * np.nan_to_num(period_M, nan=0.0)
    if kind == "ecg":
        half_M = np.clip(np.where(half_M > 0, half_M, 0.2 * hz), 0.12 * hz, 0.25 * hz)
    return np.where(half_M > 0, np.maximum(half_M, 1), 0).astype(int)


def _humps(pulse_MT: np.ndarray, half_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Beats as (row (B,), coarse sample (B,)): the highest sample of its surroundings, and at least 0.3 of the row's usual height."""
    from scipy.ndimage import maximum_filter1d

    height_M1 = 0.3 * np.quantile(pulse_MT, 0.95, axis=-1, keepdims=True)
    beat_MT = np.zeros(pulse_MT.shape, bool)
    for half in np.unique(half_M[half_M > 0]):
        rows = np.flatnonzero(half_M == half)
        some_MT = pulse_MT[rows]
        beat_MT[rows] = (some_MT == maximum_filter1d(some_MT, 2 * half + 1, axis=-1, mode="nearest")) & (some_MT > height_M1[rows]) & (some_MT > 0)
    return np.nonzero(beat_MT)


def _at_r(x_MT: np.ndarray, fs: float, row_B: np.ndarray, centre_B: np.ndarray) -> np.ndarray:
    """Centres moved to the tallest deflection within 0.1 s, in the direction in which the row's QRS complexes point."""
    from scipy.ndimage import uniform_filter1d

    sharp_MT = x_MT - uniform_filter1d(x_MT, max(1, round(0.2 * fs)), axis=-1, mode="nearest")
    low_M, high_M = np.quantile(sharp_MT, [0.01, 0.99], axis=-1)
    sharp_MT = sharp_MT * np.where(high_M >= -low_M, 1, -1)[:, None].astype(np.float32)
    reach = max(1, round(0.1 * fs))
    near_BW = np.clip(np.round(centre_B).astype(np.int64)[:, None] + np.arange(-reach, reach + 1), 0, x_MT.shape[-1] - 1)
    return near_BW[np.arange(len(row_B)), np.argmax(sharp_MT[row_B[:, None], near_BW], axis=-1)].astype(float)


def _median_gap(row_B: np.ndarray, at_B: np.ndarray, n_M: np.ndarray) -> np.ndarray:
    """Median distance (M,) of neighbouring beats in coarse samples; NaN below two beats."""
    table_MB = _ragged(np.diff(at_B, append=0).astype(float), row_B, n_M)
    table_MB[np.arange(len(n_M))[n_M > 0], n_M[n_M > 0] - 1] = np.nan  # the last beat of a row has no next one
    return _median(table_MB)


def _pieces(x_MT: np.ndarray, fs: float, kind: Kind, row_B: np.ndarray, centre_B: np.ndarray, span_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which beats lie wholly inside (B,), and those beats (B', K) less their mean, of length 1.

    A PPG beat reaches from 0.4 of the usual interval before its top to 0.5 behind it, an ECG beat from 0.2 s before R to 0.4 s
    behind; each is resampled to K samples, so intervals need not be even.
    """
    before_M, after_M = (0.4 * span_M, 0.5 * span_M) if kind == "ppg" else (np.full_like(span_M, 0.2), np.minimum(0.4, 0.6 * span_M))
    start_B, stop_B = centre_B - before_M[row_B] * fs, centre_B + after_M[row_B] * fs
    with np.errstate(invalid="ignore"):
        whole_B = (start_B >= 0) & (stop_B <= x_MT.shape[-1] - 1)
    row_B, start_B, stop_B = row_B[whole_B], start_B[whole_B], stop_B[whole_B]
    position_BK = start_B[:, None] + (stop_B - start_B)[:, None] * np.linspace(0, 1, BEAT_SAMPLES)
    left_BK = np.minimum(position_BK.astype(np.int64), x_MT.shape[-1] - 2)
    weight_BK = (position_BK - left_BK).astype(np.float32)
    return whole_B, _unit(x_MT[row_B[:, None], left_BK] * (1 - weight_BK) + x_MT[row_B[:, None], left_BK + 1] * weight_BK)


def _template_correlation(beat_BK: np.ndarray, row_B: np.ndarray, n_rows: int) -> np.ndarray:
    """Median over a row's whole beats of the correlation with their mean, (M,); NaN below two whole beats."""
    n_M = np.bincount(row_B, minlength=n_rows)
    if not row_B.size:
        return np.full(n_rows, np.nan)
    first_M = np.concatenate([[0], np.cumsum(n_M)[:-1]])
    sum_MK = np.zeros((n_rows, BEAT_SAMPLES), np.float32)
    has = n_M > 0
    sum_MK[has] = np.add.reduceat(beat_BK, first_M[has], axis=0)
    r_B = (beat_BK * _unit(sum_MK)[row_B]).sum(-1)
    return np.where(n_M >= 2, _median(_ragged(r_B.astype(float), row_B, n_M)), np.nan)


def _pair_correlation(beat_BK: np.ndarray, row_B: np.ndarray, n_rows: int) -> np.ndarray:
    """Median over a row's whole beats of the best correlation with one of the three beats on either side, (M,); NaN below two whole beats.

    Two noisy copies of a beat correlate by S / (S + N), a noisy copy with a mean by the root of that: a pair shows noise sooner. Where the
    shape alternates, as with ectopic beats, the best of the neighbours is still its like.
    """
    n_M = np.bincount(row_B, minlength=n_rows)
    best_B = np.full(len(row_B), -1.0, np.float32)
    line_K = np.linspace(-1, 1, BEAT_SAMPLES, dtype=np.float32)
    line_K /= np.sqrt((line_K**2).sum())
    level_BK = _unit(beat_BK - (beat_BK @ line_K)[:, None] * line_K)  # a drifting baseline is not noise
    for apart in range(1, 4):
        same_B = row_B[apart:] == row_B[:-apart]
        r_B = np.where(same_B, (level_BK[apart:] * level_BK[:-apart]).sum(-1), -1.0)
        best_B[apart:] = np.maximum(best_B[apart:], r_B)
        best_B[:-apart] = np.maximum(best_B[:-apart], r_B)
    return np.where(n_M >= 2, _median(_ragged(best_B.astype(float), row_B, n_M)), np.nan)


def _unit(x_BK: np.ndarray) -> np.ndarray:
    """Rows less their mean, of length 1; a flat row stays 0."""
    x_BK = x_BK - x_BK.mean(-1, keepdims=True)
    norm_B1 = np.sqrt((x_BK**2).sum(-1, keepdims=True))
    return x_BK / np.where(norm_B1 > 0, norm_B1, 1)


def _ragged(value_B: np.ndarray, row_B: np.ndarray, n_M: np.ndarray) -> np.ndarray:
    """Values sorted by row as a table (M, most), NaN behind a row's last."""
    table_MB = np.full((len(n_M), max(1, int(n_M.max(initial=0)))), np.nan)
    table_MB[row_B, np.arange(len(row_B)) - np.repeat(np.cumsum(n_M) - n_M, n_M)] = value_B
    return table_MB


def _median(table_MB: np.ndarray) -> np.ndarray:
    """Median of each row without its NaN; NaN for a row of nothing but NaN."""
    sorted_MB = np.sort(table_MB, axis=-1)  # NaN sorts last
    n_M = np.isfinite(table_MB).sum(-1)
    rows = np.arange(len(table_MB))
    low_M, high_M = sorted_MB[rows, np.maximum(n_M - 1, 0) // 2], sorted_MB[rows, np.minimum(n_M // 2, table_MB.shape[1] - 1)]
    return np.where(n_M > 0, (low_M + high_M) / 2, np.nan)
