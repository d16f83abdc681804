"""Quality indices: values known beforehand, ranges kept, noise told from clean windows on real recordings."""

import time

import numpy as np
import pytest
from scipy import stats

from physio_data import quality
from physio_data.formats import open_recording
from physio_data.sqi import INDICES, indices


def pulses(fs=25.0, n=1):
    """Clean PPG-like windows (n, T) of 10 s at 72 bpm, each with its own phase."""
    phase_NT = 2 * np.pi * (1.2 * np.arange(round(10 * fs)) / fs + np.random.default_rng(9).uniform(size=(n, 1)))
    return np.exp(2 * np.cos(phase_NT)) + 0.8 * np.exp(2 * np.cos(phase_NT - 1.8))


def ecg(beat_s, fs=250.0):
    """A clean ECG-like window (1, T) of 10 s with R and T waves at given times."""
    t_s = np.arange(round(10 * fs)) / fs
    since_s = t_s[:, None] - np.asarray(beat_s)
    return (1.2 * np.exp(-0.5 * (since_s / 0.012) ** 2) + 0.3 * np.exp(-0.5 * ((since_s - 0.25) / 0.05) ** 2)).sum(-1)[None]


@pytest.mark.parametrize(("kind", "fs"), [("ppg", 25.0), ("ppg", 125.0), ("ecg", 250.0)])
def test_every_index_stays_in_its_range(kind, fs):
    rng = np.random.default_rng(0)
    x_NT = rng.standard_normal((40, round(10 * fs))) * np.geomspace(1e-3, 1e3, 40)[:, None] + 5
    x_NT[3, 20:90] = np.nan
    x_NT[4] = 2.0
    found = indices(x_NT, fs, kind)
    assert list(found) == list(INDICES)
    for name, (_, (low, high), _, source) in INDICES.items():
        value = found[name][np.isfinite(found[name])]
        assert value.size and value.min() >= low - 1e-6 and value.max() <= high + 1e-6 and source, name


def test_moments_are_those_of_scipy():
    x_NT = np.random.default_rng(1).gamma(2.0, size=(5, 1000))
    found = indices(x_NT, 100.0)
    np.testing.assert_allclose(found["skewness"], stats.skew(x_NT, axis=1), rtol=1e-4)
    np.testing.assert_allclose(found["kurtosis"], stats.kurtosis(x_NT, axis=1), rtol=1e-3)


def test_neither_offset_nor_gain_changes_an_index():
    x_NT = np.concatenate([pulses(125.0, n=3), np.random.default_rng(2).standard_normal((3, 1250))])
    plain, moved = indices(x_NT, 125.0), indices(1000 + 64 * x_NT, 125.0)
    for name in INDICES:
        np.testing.assert_allclose(moved[name], plain[name], rtol=2e-3, atol=1e-3, err_msg=name)


def test_traces_of_the_converter_are_counted():
    x_T = pulses(125.0)[0].copy()
    x_T[100:150] = x_T[100]  # held for 0.4 s
    x_T[400:425] = np.nan
    x_T[600:725] = np.nanmax(x_T)  # a second at the rail
    found = indices(x_T[None], 125.0)
    assert found["dropout"][0] == pytest.approx((50 + 25 + 125) / 1250)
    assert found["saturated_s"][0] == pytest.approx(1.0, abs=0.03)
    assert found["clipped"][0] == pytest.approx(126 / 1225, abs=0.003)
    constant = indices(np.full((1, 1250), 7.0), 125.0)
    assert constant["dropout"][0] == 1 and constant["saturated_s"][0] == 0 and constant["flat"][0] == 1 and np.isnan(constant["skewness"][0])


def test_beats_are_counted():
    beat_s = np.arange(0.4, 10, 0.8)
    found = indices(ecg(beat_s), 250.0, "ecg")
    assert found["n_beats"][0] == len(beat_s) and found["bpm"][0] == pytest.approx(75, abs=1) and found["template"][0] > 0.99


def test_thousands_of_windows_a_second():
    x_NT = pulses(n=2000)
    indices(x_NT[:10], 25.0)
    start = time.process_time()
    indices(x_NT, 25.0)
    assert 2000 / (time.process_time() - start) > 1000


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"x_NT must be \(windows, samples\)"):
        indices(np.zeros(100), 25.0)
    with pytest.raises(ValueError, match="kind"):
        indices(np.zeros((2, 100)), 25.0, "eeg")


def auroc(good, bad):
    return stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad))


@pytest.mark.parametrize("snr_db", [6, 0])
@pytest.mark.parametrize("kind", ["ppg", "ecg"])
def test_noise_is_told_from_clean_windows(shared, kind, snr_db):
    path = shared / "data" / ("ppg_bidmc01/bidmc_01_Signals.csv" if kind == "ppg" else "mitdb/100.hea")
    if not path.is_file():
        pytest.skip(f"shared data absent: {path}")
    recording = open_recording(path).select(["PLETH" if kind == "ppg" else "MLII"])
    length = round(10 * recording.fs)
    x_NT = recording.read(0, 48 * length)[0].reshape(48, length)
    noise_NT = np.random.default_rng(0).standard_normal(x_NT.shape) * x_NT.std(1, keepdims=True) * 10 ** (-snr_db / 20)
    clean_N, noisy_N = quality.score(x_NT, recording.fs, kind), quality.score(x_NT + noise_NT, recording.fs, kind)
    assert auroc(clean_N, noisy_N) > 0.95
