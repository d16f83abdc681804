"""Hand-made features of a store's windows: what a table's `handcrafted` row reads. N windows, C channels, T samples, F features.

ECG: rhythm and shape (`morphology.handcrafted`), intervals of the median beat, wave heights of the median beat in mV, quality indices, irregularity of RR.
PPG: the same rhythm and shape, the pulse's fiducials, quality indices. Windows around beats: intervals to the neighbouring beats and the shape of this one
against the record's own.
"""

from __future__ import annotations

import numpy as np

from physio_data import beats
from physio_data.ecg_intervals import AFTER_S, BEFORE_S, WORK_HZ, ecg_intervals, median_beat
from physio_data.morphology import handcrafted
from physio_data.pulse_features import ppg_features
from physio_data.sqi import indices
from physio_data.store import Store, Stores
from physio_train.embed import signals

LOWEST_HZ = {"ecg": 100.0, "ppg": 25.0}
SHORTEST_S = 2.0  # of windows with beats in them
NEIGHBOURS = 20  # beats on either side that say what is usual


def has_handcrafted(store: Store | Stores) -> bool:
    """Whether hand-made features are defined for this kind of signal at this rate and length; bare series have the plain ones."""
    if store.kind not in LOWEST_HZ:
        return set(store.units) == {"normalised"}
    return store.fs >= LOWEST_HZ[store.kind] and (around_beats(store) or store.window_s >= SHORTEST_S)


def around_beats(store: Store | Stores) -> bool:
    """Whether every window is centred on one beat."""
    return "beat_s" in store.index


def handcrafted_features(store: Store | Stores, rows_N: np.ndarray) -> np.ndarray:
    """Features (N, F) float64 of these rows, NaN where a window lacks what defines one."""
    if around_beats(store):
        return beat_features(store, rows_N)
    of_block = {"ecg": ecg_features, "ppg": pulse_features}.get(store.kind, series_features)
    return np.concatenate([of_block(x_NCT.astype(np.float64), store.fs) for x_NCT in signals(store, rows_N, batch_size=512)])


def ecg_features(x_NCT: np.ndarray, fs: float) -> np.ndarray:
    parts = [handcrafted(x_NCT, fs, "ecg")[0], irregularity(x_NCT[:, 0], fs)]
    for c in range(x_NCT.shape[1]):
        x_NT = x_NCT[:, c]
        quality = indices(x_NT, fs, "ecg")
        parts += [ecg_intervals(x_NT, fs)[0], waves(x_NT, fs), np.stack([quality[name] for name in quality], axis=1)]
    return _finite(np.concatenate(parts, axis=1))


def pulse_features(x_NCT: np.ndarray, fs: float) -> np.ndarray:
    parts = [handcrafted(x_NCT, fs, "ppg")[0]]
    for c in range(x_NCT.shape[1]):
        quality = indices(x_NCT[:, c], fs, "ppg")
        parts += [ppg_features(x_NCT[:, c], fs)[0], np.stack([quality[name] for name in quality], axis=1)]
    return _finite(np.concatenate(parts, axis=1))


def series_features(x_NCT: np.ndarray, fs: float) -> np.ndarray:
    """Short normalised series: the samples themselves, their steps, and moments."""
    flat_NS = x_NCT.reshape(len(x_NCT), -1)
    moments = [x_NCT.mean(2), x_NCT.std(2), (x_NCT**3).mean(2), x_NCT.argmax(2) / x_NCT.shape[2], x_NCT.argmin(2) / x_NCT.shape[2]]
    return _finite(np.concatenate([flat_NS, np.diff(x_NCT, axis=2).reshape(len(x_NCT), -1), *moments], axis=1))


def irregularity(x_NT: np.ndarray, fs: float) -> np.ndarray:
    """How irregular the rhythm is, beyond `handcrafted`: spread of |successive differences| over the interval (median, mean, quartiles), share of RR pairs that
    differ by a tenth, turning points, and the entropy of RR in bins of 40 ms (after Lake & Moorman 2011, Am J Physiol 300:H319, for few beats)."""
    out = np.full((len(x_NT), 8), np.nan)
    band_NT, energy_NT = beats.qrs_energy(x_NT, fs)
    for row, (band_T, energy_T) in enumerate(zip(band_NT, energy_NT, strict=True)):
        rr_K = np.diff(beats.pick_r(band_T, energy_T, fs)) / fs
        if len(rr_K) < 4:
            continue
        step_K = np.abs(np.diff(rr_K)) / rr_K[:-1]
        turns = np.mean((np.diff(rr_K)[1:] * np.diff(rr_K)[:-1]) < 0)
        _, count = np.unique(np.round(rr_K / 0.04), return_counts=True)
        share = count / count.sum()
        quartiles = np.quantile(rr_K, [0.1, 0.9]) / np.median(rr_K)
        out[row] = [np.median(step_K), step_K.mean(), np.quantile(step_K, 0.25), np.mean(step_K > 0.1), turns, -(share * np.log(share)).sum(), *quartiles]
    return out


def waves(x_NT: np.ndarray, fs: float) -> np.ndarray:
    """Heights of the median beat over its level before QRS, in the signal's unit: R, S, Q, ST at two places, T and P (largest and smallest), area of QRS."""
    beat_NL, _, _ = median_beat(x_NT, fs)
    at = lambda start_s, stop_s: beat_NL[:, max(0, round((BEFORE_S + start_s) * WORK_HZ)) : round((BEFORE_S + stop_s) * WORK_HZ)]  # noqa: E731
    level_N1 = np.median(at(-0.10, -0.06), axis=1, keepdims=True)
    part = lambda start_s, stop_s: at(start_s, stop_s) - level_N1  # noqa: E731
    qrs = part(-0.05, 0.07)
    late = part(0.14, min(0.42, AFTER_S))
    return np.stack(
        [
            qrs.max(1),
            part(0.0, 0.08).min(1),
            part(-0.06, 0.0).min(1),
            part(0.08, 0.10).mean(1),
            part(0.12, 0.14).mean(1),
            late.max(1),
            late.min(1),
            np.abs(qrs).mean(1),
            qrs.mean(1),
            part(-0.25, -0.08).max(1),
            part(-0.25, -0.08).min(1),
        ],
        axis=1,
    )


def beat_features(store: Store | Stores, rows_N: np.ndarray) -> np.ndarray:
    """Rhythm from the annotated neighbours of the same record (de Chazal et al. 2004, IEEE TBME 51:1196) and shape against the record's own median beat.

    Labels have no part in it: the record's usual beat is the median of all its windows, its usual interval that of the beats around.
    """
    rhythm_NF = _beat_rhythm(store.index["record"], store.index["subject"], store.index["beat_s"])
    out = np.empty((len(rows_N), 0))
    record_N = np.char.add(np.char.add(store.index["subject"].astype(str), "/"), store.index["record"].astype(str))
    shape = [None] * len(rows_N)
    for name in np.unique(record_N[rows_N]):
        every = np.flatnonzero(record_N == name)
        x_KCT = np.concatenate(list(signals(store, every))).astype(np.float64)
        found = dict(zip(every.tolist(), _beat_shape(x_KCT, store.fs), strict=True))
        for place in np.flatnonzero(record_N[rows_N] == name):
            shape[place] = found[int(rows_N[place])]
    out = np.concatenate([rhythm_NF[rows_N], np.stack(shape)], axis=1)
    return _finite(out)


def _beat_rhythm(record_N: np.ndarray, subject_N: np.ndarray, beat_s_N: np.ndarray) -> np.ndarray:
    """Intervals before, after and around each beat (N, 7), over the median of the beats around; NaN at a record's ends."""
    out = np.full((len(beat_s_N), 7), np.nan)
    order = np.lexsort((beat_s_N, record_N, subject_N))
    cut = np.flatnonzero((record_N[order][1:] != record_N[order][:-1]) | (subject_N[order][1:] != subject_N[order][:-1])) + 1
    for rows in np.split(order, cut):
        rr_K = np.diff(beat_s_N[rows], prepend=np.nan, append=np.nan)  # before each beat, and behind the last
        before_K, after_K = rr_K[:-1], rr_K[1:]
        padded = np.concatenate([np.full(NEIGHBOURS, np.nan), before_K, np.full(NEIGHBOURS, np.nan)])
        around_KJ = np.lib.stride_tricks.sliding_window_view(padded, 2 * NEIGHBOURS + 1)
        usual_K = _nanmedian(around_KJ)
        earlier_K, later_K = np.append(np.nan, before_K[:-1]), np.append(after_K[1:], np.nan)
        spread_K = _nanmedian(np.abs(around_KJ - usual_K[:, None]))
        ratios = [before_K / usual_K, after_K / usual_K, before_K / after_K, earlier_K / usual_K, later_K / usual_K]
        out[rows] = np.stack([*ratios, spread_K / usual_K, (before_K + after_K) / usual_K], axis=1)
    return out


def _beat_shape(x_KCT: np.ndarray, fs: float) -> np.ndarray:
    """Shape of each beat (K, C * 14) of one record, all of it against the record's own, so that gain and montage of a recording do not matter.

    Correlation with the median beat (whole and QRS), distance to it, width, height, area and steepness of QRS over the record's medians, how much QRS points
    one way, what stands before it (a P wave or none), its slow share, the wave behind it against it, how usual the beat is (the share of the record's beats
    whose QRS correlates at least 0.9 with it), and how like the beats just before and behind.
    """
    parts = []
    middle = x_KCT.shape[2] // 2
    reach, lead = round(0.15 * fs), round(0.08 * fs)
    near = slice(max(0, middle - reach), middle + reach + 1)
    for c in range(x_KCT.shape[1]):
        x_KT = x_KCT[:, c] - np.median(x_KCT[:, c], axis=1, keepdims=True)
        usual_T, qrs_KT = np.median(x_KT, axis=0), x_KT[:, near]
        slope_KT = np.abs(np.gradient(qrs_KT, axis=1))
        height_K, area_K = np.maximum(np.ptp(qrs_KT, axis=1), 1e-9), np.abs(qrs_KT).mean(1)
        width_K = (slope_KT > 0.2 * slope_KT.max(1, keepdims=True)).sum(1) / fs
        peak_K = qrs_KT.max(1) + qrs_KT.min(1)
        behind_K = x_KT[:, middle + round(0.14 * fs) : middle + round(0.4 * fs)].mean(1)
        before_K = np.abs(x_KT[:, : middle - lead]).max(1)
        power_KF = np.abs(np.fft.rfft(qrs_KT - qrs_KT.mean(1, keepdims=True))) ** 2
        hz_F = np.fft.rfftfreq(qrs_KT.shape[1], 1 / fs)
        unit_KT = _unit(qrs_KT)
        usualness_K = np.concatenate([(unit_KT[k : k + 1024] @ unit_KT.T > 0.9).mean(1) for k in range(0, len(unit_KT), 1024)])
        beside_K = (unit_KT[:-1] * unit_KT[1:]).sum(1)
        neighbours_K = np.maximum(np.append(-1.0, beside_K), np.append(beside_K, -1.0))
        over = lambda v_K: v_K / max(np.median(v_K), 1e-9)  # noqa: E731
        parts += [
            _unit(x_KT) @ _unit(usual_T[None])[0],
            unit_KT @ _unit(usual_T[None, near])[0],
            np.abs(x_KT - usual_T).mean(1) / max(np.abs(usual_T).mean(), 1e-9),
            over(width_K),
            over(height_K),
            over(area_K),
            over(slope_KT.max(1) / height_K),
            peak_K / height_K,
            over(before_K / height_K),
            power_KF[:, hz_F <= 8].sum(1) / np.maximum(power_KF.sum(1), 1e-12),
            behind_K * np.sign(peak_K) / height_K,
            width_K,
            usualness_K,
            neighbours_K,
        ]
    return np.stack(parts, axis=1)


def _unit(x_KT: np.ndarray) -> np.ndarray:
    """Rows without their mean, of length 1."""
    x_KT = x_KT - x_KT.mean(1, keepdims=True)
    return x_KT / np.maximum(np.linalg.norm(x_KT, axis=1, keepdims=True), 1e-9)


def _nanmedian(x_KJ: np.ndarray) -> np.ndarray:
    out, there_K = np.full(len(x_KJ), np.nan), np.isfinite(x_KJ).any(axis=1)
    out[there_K] = np.nanmedian(x_KJ[there_K], axis=1)
    return out


def _finite(x_NF: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x_NF), x_NF, np.nan)
