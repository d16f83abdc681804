"""Beat detection against annotated records and against the generator's truth."""

from __future__ import annotations

import numpy as np
import pytest

from physio_data import beats
from physio_data.corpora import ludb
from physio_data.formats import open_recording
from physio_data.synthesis import SynthesisConfig, synthesize

TOLERANCE_S = 0.15
BEAT_CODES = set("NLRBAaJSVrFejnE/fQ?")
HARD = ("101", "106", "116", "203", "208")  # noise, bigeminy, lost signal, fast multiform rhythm, fusion beats


def matched(found_s, true_s, tolerance_s=TOLERANCE_S):
    """How many true beats have a found beat of their own within the tolerance (both sorted)."""
    n, j = 0, 0
    for t in true_s:
        while j < len(found_s) and found_s[j] < t - tolerance_s:
            j += 1
        if j < len(found_s) and found_s[j] <= t + tolerance_s:
            n, j = n + 1, j + 1
    return n


def outside_flutter(time_s, marks):
    for begin_s in marks.time_s[marks.symbol == "["]:
        ends = marks.time_s[(marks.symbol == "]") & (marks.time_s > begin_s)]
        time_s = time_s[(time_s < begin_s) | (time_s > (ends[0] if len(ends) else np.inf))]
    return time_s


def mitdb_counts(shared, record):
    recording = open_recording(shared / "data" / "mitdb" / f"{record}.hea").select(["MLII"])
    marks = recording.annotations
    true_s = outside_flutter(marks.time_s[np.isin(marks.symbol, list(BEAT_CODES))], marks)
    found_s = outside_flutter(beats.r_peaks(recording.signal_CT[0], recording.fs) / recording.fs, marks)
    return np.array([matched(found_s, true_s), len(true_s), len(found_s)])


def test_r_peaks_on_hard_mit_bih_records(shared):
    hit, true, found = sum(mitdb_counts(shared, record) for record in HARD)
    assert hit / true >= 0.99 and hit / found >= 0.99


@pytest.mark.slow
def test_r_peaks_on_all_mit_bih_records(shared):
    records = sorted(path.stem for path in (shared / "data" / "mitdb").glob("*.hea"))
    hit, true, found = sum(mitdb_counts(shared, record) for record in records)
    assert len(records) == 23
    assert hit / true >= 0.995 and hit / found >= 0.995


def ludb_counts(folder, records):
    """QRS onsets of lead II found, annotated and reported, between the first and the last annotated beat."""
    total = np.zeros(3)
    for record in records:
        recording = ludb.open_record(folder, record).select(["II"])
        true_s = ludb.wave_bounds(recording.annotations)["QRS"][:, 0]
        true_s = true_s[np.isfinite(true_s)]
        found_s = beats.qrs_onsets(recording.signal_CT[0], recording.fs) / recording.fs
        found_s = found_s[(found_s >= true_s[0] - TOLERANCE_S) & (found_s <= true_s[-1] + TOLERANCE_S)]
        total += [matched(found_s, true_s), len(true_s), len(found_s)]
    return total


def test_qrs_onsets_on_ludb(shared):
    folder = shared / "data" / "ludb"
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    hit, true, found = ludb_counts(folder, ludb.list_records(folder))
    assert hit / true >= 0.99 and hit / found >= 0.99 and true > 800


def test_a_tall_wave_between_two_beats_is_no_beat():
    """Now and then a wave of two fifths of the R wave's height, nearly as steep, halfway to the next beat; a beat that comes early is kept."""
    fs = 250.0
    t = np.arange(0, 60, 1 / fs)
    beat_s = np.arange(0.7, 59, 0.95)
    early_s = beat_s[30] + 0.45  # as weak as the waves, but the next beat waits for it
    beat_s = np.sort(np.append(beat_s[np.arange(beat_s.size) != 31], early_s))
    height = np.where(beat_s == early_s, 0.45, 1.0)
    x_T = sum(h * np.exp(-0.5 * ((t - at) / 0.012) ** 2) for at, h in zip(beat_s, height, strict=True))
    x_T += sum(0.4 * np.exp(-0.5 * ((t - at - 0.5) / 0.012) ** 2) for at in beat_s[2:28:6])
    found_s = beats.r_peaks(x_T, fs) / fs
    assert len(found_s) == len(beat_s) and np.abs(found_s - beat_s).max() < 0.02


def people(fs, channels, **changes):
    return list(synthesize(8, 2.0, fs, channels, 3, SynthesisConfig(motion_per_min=0, pop_per_min=0, clip_per_min=0, dropout_per_min=0, **changes)))


@pytest.mark.parametrize("fs", [100.0, 250.0, 1000.0])
def test_r_peaks_of_synthetic_ecg_at_any_rate(fs):
    hit = true = found = 0
    for person in people(fs, ("ECG",), pvc_per_min=4.0):
        found_s = beats.r_peaks(person.signal_CT[0], fs) / fs
        hit, true, found = hit + matched(found_s, person.beat_s, 0.08), true + len(person.beat_s), found + len(found_s)
    assert hit / true > 0.99 and hit / found > 0.99


def test_r_peaks_do_not_depend_on_scale_or_polarity():
    x_T = people(250.0, ("ECG",))[0].signal_CT[0]
    expected = beats.r_peaks(x_T, 250.0)
    np.testing.assert_array_equal(beats.r_peaks(-x_T, 250.0), expected)
    np.testing.assert_array_equal(beats.r_peaks(1e3 * x_T + 7e3, 250.0), expected)


def test_qrs_onsets_lead_their_peaks_by_half_a_qrs():
    person = people(500.0, ("ECG",), pvc_per_min=0, sensor_noise=(0, 0), shape_spread=0)[0]
    lead_s = (beats.r_peaks(person.signal_CT[0], 500.0) - beats.qrs_onsets(person.signal_CT[0], 500.0)) / 500
    assert 0.03 < np.median(lead_s) < 0.08  # Q begins 0.034 + 2 x 0.009 s before R
    wide = next(p for p in people(500.0, ("ECG",), pvc_per_min=20.0, shape_spread=0) if (p.beat_type == "V").sum() > 5)
    peaks = beats.r_peaks(wide.signal_CT[0], 500.0)
    kind = wide.beat_type[np.abs(peaks[:, None] / 500 - wide.beat_s).argmin(1)]
    lead_s = (peaks - beats.qrs_onsets(wide.signal_CT[0], 500.0)) / 500
    assert np.median(lead_s[kind == "V"]) > np.median(lead_s[kind == "N"]) + 0.01


@pytest.mark.parametrize("fs", [25.0, 40.0, 125.0])
def test_pulses_of_synthetic_ppg(fs):
    hit = true = found = 0
    lag_s = []
    for person in people(fs, ("PPG",), af_subjects=0, pvc_per_min=0.5):
        found_s = beats.pulse_onsets(person.signal_CT[0], fs) / fs
        hit, true, found = hit + matched(found_s, person.pulse_s), true + len(person.pulse_s), found + len(found_s)
        lag_s.append(np.median(found_s - person.pulse_s[np.abs(found_s[:, None] - person.pulse_s).argmin(1)]))
        peaks = beats.pulse_peaks(person.signal_CT[0], fs) / fs
        assert 0.05 < np.median(peaks[1:] - found_s[np.searchsorted(found_s, peaks[1:]) - 1]) < 0.3
    assert hit / true > 0.98 and hit / found > 0.98
    assert np.ptp(lag_s) < 0.08  # the same moment of the pulse in every subject


def test_heart_rate_of_sines_and_of_nothing():
    t = np.arange(1000) / 25
    pulses_CT = np.stack([np.sin(2 * np.pi * 1.2 * t), np.sin(2 * np.pi * 1.2 * t + 1)])
    assert beats.heart_rate(pulses_CT, 25.0, kind="ppg") == pytest.approx(72, abs=2.5)
    for kind, fs in (("ppg", 25.0), ("ecg", 250.0)):
        assert np.isnan(beats.heart_rate(np.zeros((1, 2500)), fs, kind=kind))
        assert np.isnan(beats.heart_rate(np.zeros((1, 10)), fs, kind=kind))


def test_nothing_is_found_in_a_constant():
    assert len(beats.r_peaks(np.full(5000, 3.0), 250.0)) == len(beats.pulse_onsets(np.full(500, 3.0), 25.0)) == len(beats.qrs_onsets(np.zeros(900), 100.0)) == 0


@pytest.mark.parametrize("find", [beats.r_peaks, beats.qrs_onsets, beats.pulse_onsets, beats.pulse_peaks])
def test_bad_input_is_named(find):
    x_T = np.zeros(1000)
    x_T[250] = np.nan
    with pytest.raises(ValueError, match=r"first at 250 \(2\.500 s\)"):
        find(x_T, 100.0)
    with pytest.raises(ValueError, match="fs"):
        find(np.zeros(1000), 15.0)
    with pytest.raises(ValueError, match="shape"):
        find(np.zeros((2, 1000)), 100.0)
