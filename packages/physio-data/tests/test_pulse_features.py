"""PPG features of drawn pulses against the same quantities computed from the drawing, and what they tell about people."""

import time

import numpy as np
import pytest
from scipy import stats

from physio_data.pulse_features import FEATURES, LEVELS, ppg_features
from physio_data.synthesis import SynthesisConfig, synthesize

PERIOD_S, WAVES = 0.9, ((0.16, 0.055, 1.0), (0.40, 0.075, 0.45))  # centre, width (s), height of the systolic and the diastolic wave
QUIET = SynthesisConfig(motion_per_min=0, pop_per_min=0, clip_per_min=0, dropout_per_min=0, baseline_per_min=0, sensor_noise=(0, 0.003))


def drawn(t_s):
    """One drawn beat, repeated; smooth enough for a low-pass at 10 Hz to leave it alone."""
    since_s = np.asarray(t_s)[..., None] - PERIOD_S * np.arange(-1, 30)
    return sum(height * np.exp(-0.5 * ((since_s - at) / width) ** 2) for at, width, height in WAVES).sum(-1)


def named(x_NT, fs, **more):
    values_NF, names = ppg_features(x_NT, fs, **more)
    assert names == tuple(FEATURES) and values_NF.shape == (len(x_NT), len(FEATURES))
    return {name: values_NF[:, f] for f, name in enumerate(names)}


def window(fs, seconds=10.0):
    return drawn(0.3 + np.arange(round(seconds * fs)) / fs)[None]


@pytest.fixture(scope="module")
def truth():
    """Quantities of the drawn beat on a fine grid, from its lowest point to the next."""
    t_s = np.arange(0, PERIOD_S, 1e-4)
    x_T = drawn(t_s + PERIOD_S)
    x_T = np.roll(x_T, -int(x_T.argmin()))
    x_T = (x_T - x_T[0]) / (x_T.max() - x_T[0])
    sp = int(x_T.argmax())
    valley = sp + int(x_T[sp : sp + 3000].argmin())
    second = valley + int(x_T[valley : valley + 2500].argmax())
    return t_s, x_T, sp, valley, second


@pytest.mark.parametrize("fs", [50.0, 125.0, 500.0])
def test_times_heights_and_areas_of_a_drawn_pulse(truth, fs):
    t_s, x_T, sp, valley, second = truth
    found = named(window(fs), fs, height_m=1.8)
    assert found["hr_bpm"][0] == pytest.approx(60 / PERIOD_S, abs=0.2) and found["sdnn_s"][0] < 0.003 and found["n_beats"][0] >= 9
    assert found["asp"][0] == pytest.approx(drawn(t_s).max() - drawn(t_s).min(), rel=0.02)
    assert found["delta_t_s"][0] == pytest.approx(t_s[second] - t_s[sp], abs=0.012)
    assert found["stiffness"][0] == pytest.approx(1.8 / (t_s[second] - t_s[sp]), rel=0.05)
    assert found["adn_asp"][0] == pytest.approx(x_T[valley], abs=0.02) and found["reflection"][0] == pytest.approx(x_T[second], abs=0.02)
    for level in LEVELS[1:]:
        above = np.flatnonzero(x_T >= level / 100)
        first_fall = sp + int(np.argmax(x_T[sp:] < level / 100))
        assert found[f"tpw{level}_s"][0] == pytest.approx((first_fall - above[0]) * 1e-4, abs=0.012), level
    area_sys, area_dia = np.trapezoid(x_T[: valley + 1], dx=1e-4), np.trapezoid(x_T[valley:], dx=1e-4)
    assert found["auc_sys_s"][0] == pytest.approx(area_sys, rel=0.05) and found["ipa"][0] == pytest.approx(area_dia / area_sys, rel=0.08)
    assert found["u_asp"][0] == pytest.approx(np.gradient(x_T, 1e-4).max(), rel=0.05)


def test_second_derivative_ratios_of_a_drawn_pulse(truth):
    _, x_T, _, _, _ = truth
    slope_T = np.gradient(np.tile(x_T, 3), 1e-4)
    second_T = np.gradient(slope_T, 1e-4)[len(x_T) : 2 * len(x_T)]
    steepest = int(slope_T[len(x_T) : 2 * len(x_T)].argmax())
    a, b = second_T[:steepest].max(), second_T[steepest:].min()
    found = named(window(250.0), 250.0)
    assert found["b_a"][0] == pytest.approx(b / a, rel=0.06) and found["agi_inf"][0] == pytest.approx(found["b_a"][0] - found["e_a"][0])
    assert found["e_a"][0] > 0.1


def test_neither_offset_nor_gain_nor_company_matters():
    people = list(synthesize(4, 0.5, 125.0, ("PPG",), 3, QUIET))
    x_NT = np.concatenate([p.signal_CT.reshape(-1, 1250) for p in people]).astype(np.float64)
    found, moved = named(x_NT, 125.0), named(5 * x_NT[3:6] + 80, 125.0)
    for name in FEATURES:
        np.testing.assert_allclose(moved[name], found[name][3:6] * (5 if name == "asp" else 1), rtol=1e-6, atol=1e-9, err_msg=name)


def test_features_follow_the_generators_truth():
    people = list(synthesize(40, 0.5, 125.0, ("PPG",), 1, QUIET))
    mean = [{name: np.median(value) for name, value in named(p.signal_CT.reshape(-1, 1250), 125.0).items()} for p in people]
    rate = [60 / np.median(np.diff(p.pulse_s)) for p in people]
    assert np.median(np.abs(np.array([m["hr_bpm"] for m in mean]) - rate)) < 1.5
    stiffness = [p.stiffness for p in people]
    for name, sign in (("tsp_tpi", 1), ("ipa", -1), ("harmonic3", -1)):  # stiff arteries: a later crest, less area behind the notch, a rounder pulse
        value = np.array([m[name] for m in mean])
        known = np.isfinite(value)
        assert known.mean() > 0.8 and sign * stats.spearmanr(value[known], np.array(stiffness)[known]).statistic > 0.4, name


def test_what_has_no_pulse_has_no_features():
    found = named(np.zeros((2, 500)), 50.0)
    assert (found["n_beats"] == 0).all() and all(np.isnan(found[name]).all() for name in FEATURES if name != "n_beats")
    noise = named(np.random.default_rng(0).standard_normal((3, 500)), 50.0)
    assert set(noise) == set(FEATURES)


def test_features_are_quick():
    x_NT = np.tile(window(125.0), (300, 1))
    start = time.process_time()
    ppg_features(x_NT, 125.0)
    assert 300 / (time.process_time() - start) > 150


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ppg_features(np.zeros((2, 1, 500)), 50.0), r"x_NT must be \(windows, samples\)"),
        (lambda: ppg_features(np.zeros((2, 500)), 20.0), "25 Hz or more"),
        (lambda: ppg_features(np.zeros((2, 60)), 50.0), "2 s or longer"),
        (lambda: ppg_features(np.stack([np.zeros(500), np.full(500, np.nan)]), 50.0), "first in window 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
