import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physio_data import filters
from physio_data.windows import n_samples

FS = 100.0
T_S = np.arange(3000) / FS
MIDDLE = slice(1000, 2000)


def level_db(y, hz, fs):
    """Level of a tone against amplitude 1, by projection on a window without leakage."""
    window = np.hanning(len(y))
    t_s = np.arange(len(y)) / fs
    amplitude = 2 * abs(np.sum(window * y * np.exp(-2j * np.pi * hz * t_s))) / window.sum()
    return 20 * np.log10(amplitude + 1e-12)


def test_a_bandpass_keeps_its_band_without_phase_and_removes_the_rest():
    kept = np.sin(2 * np.pi * 5 * T_S)
    y = filters.bandpass(kept + 3 + np.sin(2 * np.pi * 0.05 * T_S) + np.sin(2 * np.pi * 45 * T_S), FS, 0.5, 30)
    assert np.abs(y - kept)[MIDDLE].max() < 0.01


def test_an_edge_lies_six_decibels_down():
    y = filters.bandpass(np.sin(2 * np.pi * 10 * T_S), FS, None, 10.0)
    assert level_db(y[MIDDLE], 10, FS) == pytest.approx(-6.02, abs=0.05)


def test_open_sides_are_high_and_low_pass():
    slow, fast = np.sin(2 * np.pi * 0.2 * T_S), np.sin(2 * np.pi * 20 * T_S)
    assert np.abs(filters.highpass(slow + fast, FS, 2.0) - fast)[MIDDLE].max() < 0.01
    assert np.abs(filters.lowpass(slow + fast, FS, 5.0) - slow)[MIDDLE].max() < 0.01
    assert np.array_equal(filters.bandpass(slow, FS, None, None), slow)


def test_a_filter_run_backwards_in_time_is_the_same():
    x = np.random.default_rng(0).normal(size=3000)
    forward, backward = filters.bandpass(x, FS, 0.5, 20), filters.bandpass(x[::-1], FS, 0.5, 20)[::-1]
    assert np.allclose(forward[MIDDLE], backward[MIDDLE], atol=1e-6)


def test_a_notch_takes_the_mains_and_leaves_the_neighbours():
    y = filters.notch(np.sin(2 * np.pi * 50 * np.arange(5000) / 250) + np.sin(2 * np.pi * 40 * np.arange(5000) / 250), 250, 50)
    assert level_db(y[1500:3500], 50, 250) < -60
    assert abs(level_db(y[1500:3500], 40, 250)) < 0.1


@pytest.mark.parametrize(("fs_in", "fs_out", "tone_hz"), [(100, 25, 13), (100, 25, 30), (360, 100, 52), (360, 100, 120), (125, 25, 23.7), (117, 25, 20)])
def test_resampling_lets_no_tone_fold_back(fs_in, fs_out, tone_hz):
    t_s = np.arange(round(30 * fs_in)) / fs_in
    y = filters.resample(np.sin(2 * np.pi * tone_hz * t_s), fs_in, fs_out)
    alias_hz = abs(tone_hz - fs_out * round(tone_hz / fs_out))
    assert level_db(y[10 * fs_out : 20 * fs_out], alias_hz, fs_out) < -60


@pytest.mark.parametrize(("fs_in", "fs_out"), [(100, 25), (360, 100), (125, 25), (25, 100), (62.4725, 25)])
def test_resampling_keeps_a_tone_in_the_band_and_its_clock(fs_in, fs_out):
    t_s, u_s = np.arange(round(20 * fs_in)) / fs_in, np.arange(round(20 * fs_out)) / fs_out
    y = filters.resample(500 + np.sin(2 * np.pi * 3 * t_s), fs_in, fs_out)
    n = min(len(y), len(u_s))
    assert np.abs(y[:n] - 500 - np.sin(2 * np.pi * 3 * u_s[:n]))[2 * fs_out : -2 * fs_out].max() < 1e-3


@given(n=st.integers(30, 400), fs_in=st.sampled_from([25, 62.4725, 100, 125, 360, 500]), fs_out=st.sampled_from([25, 50, 100, 128]))
def test_the_resampled_length_follows_the_one_rounding_rule(n, fs_in, fs_out):
    assert filters.resample(np.zeros((2, n), np.float32), fs_in, fs_out).shape == (2, n_samples(n / fs_in, fs_out))


def test_an_offset_leaves_no_ringing():
    assert np.abs(filters.resample(np.full(1000, 1e4), 100, 25) - 1e4).max() < 1e-6
    assert np.abs(filters.bandpass(np.full(1000, 1e4), 100, 0.5, 8)).max() < 1e-6


@pytest.mark.parametrize("call", [lambda x: filters.bandpass(x, FS, 0.5, 20), lambda x: filters.notch(x, FS, 20), lambda x: filters.resample(x, 100, 25)])
def test_a_gap_is_refused_with_its_position(call):
    x = np.zeros((2, 100), np.float32)
    x[1, 7] = np.nan
    with pytest.raises(ValueError, match=r"index \(1, 7\)"):
        call(x)


@pytest.mark.parametrize(("low_hz", "high_hz"), [(0.0, 8), (8, 8), (9, 8), (0.5, 50), (-1, None), (None, 60)])
def test_impossible_edges_are_refused(low_hz, high_hz):
    with pytest.raises(ValueError, match="fs/2"):
        filters.bandpass(np.zeros(100), FS, low_hz, high_hz)


def test_precision_and_shape_are_kept():
    x = np.random.default_rng(1).normal(size=(3, 2, 400)).astype(np.float32)
    for y in (filters.bandpass(x, FS, 0.5, 20), filters.notch(x, FS, 20), filters.resample(x, 100, 50)):
        assert y.dtype == np.float32 and y.shape[:2] == (3, 2)
    assert np.allclose(filters.bandpass(x, FS, 0.5, 20)[2, 1], filters.bandpass(x[2, 1].astype(np.float64), FS, 0.5, 20), atol=1e-5)


def test_a_window_shorter_than_the_filter_still_comes_back():
    assert filters.bandpass(np.arange(5.0), FS, 0.5, 20).shape == (5,)
    assert filters.resample(np.ones(3), 100, 50).shape == (2,)
