import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physio_data import quality
from physio_data.quality import Limits, Reason, check


def pulses(fs=25.0, bpm=72.0, n=1, window_s=10.0, seed=0):
    """Clean PPG-like windows (n, 1, T): a wave with a dicrotic bump, a little noise."""
    rng = np.random.default_rng(seed)
    phase_NT = 2 * np.pi * (bpm / 60 * np.arange(round(window_s * fs)) / fs + rng.random((n, 1)))
    x_NT = np.exp(2 * np.cos(phase_NT)) + 0.8 * np.exp(4 * np.cos(phase_NT - 2.2) - 3) + 0.02 * rng.normal(size=phase_NT.shape)
    return x_NT[:, None]


def ecg(beat_s, fs=250.0, window_s=10.0, sign=1.0, seed=0):
    """Clean ECG-like window (1, 1, T) with P, QRS and T waves at given R times."""
    t_s = np.arange(round(window_s * fs)) / fs
    x_T = 0.005 * np.random.default_rng(seed).normal(size=t_s.size)
    for at_s, width_s, height in ((0, 0.012, 1.2), (0.035, 0.012, -0.25), (-0.16, 0.025, 0.12), (0.25, 0.05, 0.3)):
        x_T += height * np.exp(-0.5 * ((t_s[:, None] - np.asarray(beat_s) - at_s) / width_s) ** 2).sum(-1)
    return sign * x_T[None, None]


def names(bits):
    return set(quality.reason_names(int(bits[0])))


@pytest.mark.parametrize("fs", [25.0, 62.5, 125.0, 1000.0])
@pytest.mark.parametrize("bpm", [40.0, 72.0, 150.0])
def test_clean_pulses_pass_at_any_rate(fs, bpm):
    assert not check(pulses(fs, bpm, n=8), fs).any()


@settings(max_examples=40)
@given(offset=st.floats(-1e5, 1e5), gain=st.sampled_from([-3.0, 1e-3, 1.0, 50.0]))
def test_neither_offset_nor_gain_makes_a_clean_window_bad(offset, gain):
    x_NCT = ecg(np.arange(0.3, 10, 0.8)) * gain
    assert check(x_NCT + offset * abs(gain), 250.0, "ecg")[0] == 0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_clean_ecg_passes_upright_and_inverted(sign):
    assert check(ecg(np.arange(0.4, 10, 0.9), sign=sign), 250.0, "ecg")[0] == 0


def test_an_irregular_rhythm_is_not_noise():
    beat_s = np.cumsum(np.random.default_rng(3).uniform(0.4, 1.2, 12))
    assert check(ecg(beat_s), 250.0, "ecg")[0] == 0


def test_a_gap_is_missing():
    x_NCT = pulses(n=3)
    x_NCT[1, 0, 40] = np.nan
    x_NCT[2] = np.inf
    assert check(x_NCT, 25.0).tolist() == [0, Reason.MISSING, Reason.MISSING]
    assert check(x_NCT, 25.0, limits=Limits(missing_fraction=0.01))[1] == 0


def test_a_sensor_that_is_off_is_flat():
    x_NCT = pulses(125.0)
    x_NCT[..., -400:] = x_NCT[..., -400:-399]
    assert "flat" in names(check(x_NCT, 125.0))
    x_NCT = pulses(125.0)
    x_NCT[..., -200:] = x_NCT[..., -200:-199]  # 16 % of the window
    assert "flat" not in names(check(x_NCT, 125.0))


def test_a_constant_is_flat_and_not_clipped():
    assert names(check(np.full((1, 1, 250), 1234.5), 25.0)) >= {"flat"}
    assert "clipped" not in names(check(np.full((1, 1, 250), 1234.5), 25.0))


@pytest.mark.parametrize("part", ["top", "bottom"])
def test_a_rail_is_clipped(part):
    x_NCT = pulses(125.0)
    x_NCT = np.minimum(x_NCT, np.quantile(x_NCT, 0.85)) if part == "top" else np.maximum(x_NCT, np.quantile(x_NCT, 0.2))
    assert names(check(x_NCT, 125.0)) == {"clipped"}


def test_the_smooth_foot_of_a_pulse_is_not_clipped():
    assert check(np.exp(3 * np.cos(2 * np.pi * 1.2 * np.arange(1250) / 125))[None, None], 125.0)[0] == 0


@pytest.mark.parametrize("hz", [0.2, 5.0])
def test_an_implausible_rate_is_named(hz):
    x_T = np.sin(2 * np.pi * hz * np.arange(2500) / 125) + 0.01 * np.random.default_rng(0).normal(size=2500)
    assert "rate" in names(check(x_T[None, None], 125.0))


@pytest.mark.parametrize(("kind", "fs"), [("ppg", 25.0), ("ppg", 125.0), ("ecg", 100.0), ("ecg", 250.0)])
def test_noise_matches_no_template(kind, fs):
    x_NCT = np.random.default_rng(0).normal(size=(200, 1, round(10 * fs)))
    assert (check(x_NCT, fs, kind) & Reason.TEMPLATE > 0).mean() > 0.98


def test_one_odd_beat_does_not_spoil_the_template():
    beat_s = np.arange(0.5, 10, 0.9)
    beat_s[5] -= 0.3
    assert check(ecg(beat_s), 250.0, "ecg")[0] == 0


def test_short_windows_are_not_judged_by_their_beats():
    noise = np.random.default_rng(0).normal(size=(5, 1, 2100))
    assert not check(noise, 1000.0).any()


def test_a_window_carries_the_reasons_of_all_its_channels():
    two = np.concatenate([pulses(), np.zeros((1, 1, 250))], axis=1)
    assert "flat" in names(check(two, 25.0))


def test_the_work_can_be_limited_to_some_reasons():
    noise = np.random.default_rng(0).normal(size=(3, 1, 1250))
    assert not check(noise, 125.0, reasons=Reason.MISSING | Reason.FLAT | Reason.CLIPPED).any()
    assert check(noise, 125.0, reasons=Reason.TEMPLATE).tolist() == [Reason.TEMPLATE] * 3


def test_more_noise_scores_lower():
    clean = pulses(n=20)[:, 0]
    noise = np.random.default_rng(1).normal(size=clean.shape)
    means = [quality.score(clean + level * noise, 25.0).mean() for level in (0.0, 0.5, 2.0, 8.0)]
    assert means == sorted(means, reverse=True) and means[0] > 0.95
    assert quality.score(clean[0], 25.0) == pytest.approx(quality.score(clean, 25.0)[0])
    assert quality.score(np.full(250, 3.0), 25.0) == 0


def test_blocks_do_not_change_the_answer():
    x_NCT = np.concatenate([pulses(n=700, seed=2), np.random.default_rng(5).normal(size=(700, 1, 250))])
    order = np.random.default_rng(6).permutation(1400)
    assert np.array_equal(check(x_NCT, 25.0)[order], check(x_NCT[order], 25.0))


def test_reasons_are_named_and_counted():
    assert quality.reason_names(Reason.FLAT | Reason.RATE) == ("flat", "rate")
    assert quality.reason_counts([0, 2, 10]) == {"missing": 0, "flat": 2, "clipped": 0, "rate": 1, "template": 0}


def test_skewness_and_relative_power_equal_their_formulas():
    from scipy.stats import skew

    x_NT = pulses(n=3)[:, 0]
    assert np.allclose(quality.skewness(x_NT), skew(x_NT, axis=-1), atol=1e-4)
    tone = np.sin(2 * np.pi * 1.5 * np.arange(1000) / 25)[None]
    assert quality.relative_power(tone + 0.5 * np.sin(2 * np.pi * 5 * np.arange(1000) / 25), 25.0)[0] == pytest.approx(0.8, abs=0.01)


def test_thousands_of_windows_a_second():
    x_NCT = pulses(n=2000)
    check(x_NCT[:10], 25.0)
    start = time.process_time()
    check(x_NCT, 25.0)
    assert 2000 / (time.process_time() - start) > 1000


@pytest.mark.parametrize("bad", [{"flat_fraction": 2.0}, {"min_bpm": 0.0}, {"min_bpm": 300.0}, {"min_template_ppg": 2.0}])
def test_limits_check_themselves(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Limits(**bad)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="kind"):
        check(pulses(), 25.0, "eeg")
    with pytest.raises(ValueError, match="x_NCT"):
        check(pulses()[0], 25.0)


def test_real_ecg_windows_pass_with_their_ventricular_beats(shared):
    wfdb_format = pytest.importorskip("physio_data.formats.wfdb")
    folder = shared / "data" / "mitdb"
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    from physio_data.windows import cut, starts

    recording = wfdb_format.open_wfdb(folder / "119").select(["MLII"])
    starts_N = starts(recording.n_samples, 3600, 3600)
    bits_N = check(cut(recording.read(), starts_N, 3600), 360.0, "ecg")
    ventricular_s = recording.annotations.time_s[recording.annotations.symbol == "V"]
    holds_N = np.searchsorted(ventricular_s, starts_N / 360 + 10) > np.searchsorted(ventricular_s, starts_N / 360)
    assert holds_N.sum() > 100 and (bits_N[holds_N] > 0).mean() < 0.05


@pytest.mark.parametrize("fs", [32.0, 125.0, 1000.0])
@pytest.mark.parametrize("snr_db", [0.0, 6.0, 12.0])
def test_the_white_part_of_the_power_is_found(fs, snr_db):
    rng = np.random.default_rng(0)
    t_T = np.arange(int(10 * fs)) / fs
    pulse_NT = np.sin(2 * np.pi * rng.uniform(0.8, 2, (40, 1)) * t_T) + 0.4 * np.sin(2 * np.pi * 2.9 * t_T) + 300
    noise_NT = rng.standard_normal(pulse_NT.shape) * pulse_NT.std(-1, keepdims=True) * 10 ** (-snr_db / 20)
    expected = 1 / (1 + 10 ** (snr_db / 10))
    assert np.median(quality.white_fraction(pulse_NT + noise_NT, fs)) == pytest.approx(expected, rel=0.15)
    assert quality.white_fraction(pulse_NT, fs).max() < 0.01
    assert quality.white_fraction(np.full((1, 100), 3.0), fs) == 0


def test_noise_shows_in_the_score_although_the_beats_themselves_differ():
    """Beats whose heights and lengths wander, as a moving person's: at 6 dB the noise is told from the wandering."""
    rng = np.random.default_rng(1)
    t_T = np.arange(320) / 32.0
    phase_NT = np.cumsum(rng.normal(1.2, 0.5, (80, 320)).clip(0.5, 2.5), axis=-1) / 32.0
    height_NT = 1 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.1, 0.4, (80, 1)) * t_T)
    clean_NT = height_NT * np.exp(2 * np.cos(2 * np.pi * phase_NT)) + rng.uniform(0, 2, (80, 1)) * np.sin(2 * np.pi * rng.uniform(0.2, 0.9, (80, 1)) * t_T)
    noisy_NT = clean_NT + rng.standard_normal(clean_NT.shape) * clean_NT.std(-1, keepdims=True) / 2
    clean_N, noisy_N = quality.score(clean_NT, 32.0), quality.score(noisy_NT, 32.0)
    assert (clean_N[:, None] > noisy_N[None, :]).mean() >= 0.95
