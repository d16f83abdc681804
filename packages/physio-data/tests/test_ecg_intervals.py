"""ECG intervals of a drawn beat against where its waves were drawn, and against the cardiologists' bounds of LUDB."""

import numpy as np
import pytest

from physio_data.ecg_intervals import INTERVALS, ecg_intervals
from physio_data.formats import open_recording
from physio_data.formats.wfdb import read_annotations


def drawn(fs, rr_s=0.8, pr_s=0.16, qrs_s=0.09, qt_s=0.38, seconds=10.0, p_mv=0.15, noise_mv=0.0, sign=1.0):
    """Beats of raised cosines (P of 0.1 s, T of 0.18 s) and a triangular QRS: every wave begins and ends where it is told to."""
    t_s = np.arange(round(seconds * fs)) / fs
    x_T = noise_mv * np.random.default_rng(0).standard_normal(t_s.size)

    def wave(on_s, width_s, height):
        phase_T = (t_s - on_s) / width_s
        return np.where((phase_T > 0) & (phase_T < 1), height * 0.5 * (1 - np.cos(2 * np.pi * phase_T)), 0)

    for qrs_on_s in np.arange(0.5, seconds, rr_s):
        x_T = x_T + wave(qrs_on_s - pr_s, 0.1, p_mv) + wave(qrs_on_s + qt_s - 0.18, 0.18, 0.3)
        x_T = x_T + np.interp(t_s, qrs_on_s + qrs_s * np.array([0, 0.25, 0.5, 0.8, 1]), [0, -0.1, 1.2, -0.25, 0], left=0, right=0)
    return sign * x_T[None]


def named(x_NT, fs):
    values_NF, names = ecg_intervals(x_NT, fs)
    assert names == tuple(INTERVALS) and values_NF.shape == (len(x_NT), len(names))
    return {name: values_NF[:, f] for f, name in enumerate(names)}


@pytest.mark.parametrize("fs", [250.0, 360.0, 500.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("pr_s", "qrs_s", "qt_s", "rr_s"), [(0.16, 0.09, 0.38, 0.8), (0.20, 0.12, 0.42, 1.0), (0.13, 0.08, 0.33, 0.62)])
def test_intervals_of_a_drawn_beat(fs, sign, pr_s, qrs_s, qt_s, rr_s):
    found = named(drawn(fs, rr_s, pr_s, qrs_s, qt_s, noise_mv=0.005, sign=sign), fs)
    assert found["rr_s"][0] == pytest.approx(rr_s, abs=0.005) and found["hr_bpm"][0] == pytest.approx(60 / rr_s, abs=0.5)
    assert found["pr_s"][0] == pytest.approx(pr_s, abs=0.03)
    assert found["qrs_s"][0] == pytest.approx(qrs_s, abs=0.03)
    assert found["qt_s"][0] == pytest.approx(qt_s, abs=0.045)
    assert found["qtc_s"][0] == pytest.approx(found["qt_s"][0] / np.sqrt(rr_s), rel=0.01)
    assert found["t_height"][0] > 0.1


def test_without_a_p_wave_there_is_no_pr():
    assert np.isnan(named(drawn(500.0, p_mv=0.0), 500.0)["pr_s"][0])


def test_offset_gain_and_company_do_not_matter():
    x_NT = np.concatenate([drawn(250.0), drawn(250.0, rr_s=0.7), np.zeros((1, 2500))])
    found, moved = named(x_NT, 250.0), named(3 * x_NT[:2] + 5, 250.0)
    for name in INTERVALS:
        np.testing.assert_allclose(moved[name], found[name][:2], rtol=1e-6, atol=1e-9, err_msg=name)
    assert found["n_beats"][2] == 0 and all(np.isnan(found[name][2]) for name in INTERVALS if name != "n_beats")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ecg_intervals(np.zeros(2500), 250.0), r"x_NT must be \(windows, samples\)"),
        (lambda: ecg_intervals(np.zeros((1, 2500)), 50.0), "100 Hz or more"),
        (lambda: ecg_intervals(np.stack([np.zeros(2500), np.full(2500, np.nan)]), 250.0), "first in window 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def annotated(path):
    """Median PR, QRS and QT (s) of the bounds that LUDB's cardiologists drew in lead II; NaN below three beats."""
    marks = read_annotations(path, "ii", fs=500.0)
    bounds = {wave: [] for wave in "pNt"}
    for i in range(1, len(marks) - 1):
        if marks.symbol[i] in bounds and marks.symbol[i - 1] == "(" and marks.symbol[i + 1] == ")":
            bounds[marks.symbol[i]].append((marks.time_s[i - 1], marks.time_s[i + 1]))
    pr = [on - max(p for p, _ in bounds["p"] if p < on) for on, _ in bounds["N"] if any(0 < on - p < 0.35 for p, _ in bounds["p"])]
    qt = [min(end for _, end in bounds["t"] if end > on) - on for on, _ in bounds["N"] if any(0 < end - on < 0.7 for _, end in bounds["t"])]
    return tuple(np.median(values) if len(values) > 2 else np.nan for values in (pr, [off - on for on, off in bounds["N"]], qt))


def test_intervals_of_annotated_records(shared):
    folder = shared / "data" / "ludb"
    headers = sorted(folder.rglob("*.hea")) if folder.is_dir() else []
    if not headers:
        pytest.skip(f"shared data absent: {folder}")
    truth, found = [], []
    for header in headers[:40]:
        truth.append(annotated(header))
        row = named(open_recording(header, annotation=None).select(["II"]).read(), 500.0)
        found.append((row["pr_s"][0], row["qrs_s"][0], row["qt_s"][0]))
    error_NF = np.abs(np.array(found) - np.array(truth))
    for f, allowed_s in enumerate((0.015, 0.025, 0.04)):
        known = np.isfinite(error_NF[:, f])
        assert known.sum() > 25 and np.median(error_NF[known, f]) < allowed_s
