"""Polarity of a PPG, and the heart rate through motion, against the truth of the generator and against recordings with a reference."""

import numpy as np
import pytest

from physio_data.corpora import bidmc, troika
from physio_data.pulses import heart_rate_track, pulse_polarity
from physio_data.synthesis import synthesize


@pytest.mark.parametrize("fs", [32.0, 125.0, 500.0])
def test_polarity_of_the_synthetic_cohort(fs):
    for person in synthesize(3, 1.0, fs, ("PPG",), 2):
        x_T = np.nan_to_num(person.signal_CT[0], nan=float(np.nanmean(person.signal_CT)))
        assert pulse_polarity(x_T, fs) == 1 and pulse_polarity(7 - 3 * x_T, fs) == -1


def test_what_has_no_pulse_counts_as_upright():
    assert pulse_polarity(np.zeros(1000), 100.0) == 1 and pulse_polarity(np.full(1000, np.nan), 100.0) == 1
    with pytest.raises(ValueError, match="one channel"):
        pulse_polarity(np.zeros((2, 100)), 100.0)


def test_pulses_of_the_real_samples_point_up(shared):
    folder = shared / "data" / "ppg_bidmc01"
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    x_T = bidmc.open_record(folder, "bidmc01").select(["PLETH"]).read()[0]
    assert pulse_polarity(x_T, 125.0) == 1 and pulse_polarity(-x_T, 125.0) == -1


def drowned(fs=50.0, seconds=60.0):
    """A pulse from 80 to 120 bpm under an arm that swings at 2.5 Hz (150 per minute) more strongly."""
    t_s = np.arange(int(seconds * fs)) / fs
    rate_bpm = 80 + 40 * t_s / seconds
    pulse_T = np.sin(2 * np.pi * np.cumsum(rate_bpm / 60) / fs)
    swing_T = np.sin(2 * np.pi * 2.5 * t_s + 0.3)
    noise = np.random.default_rng(0).standard_normal((2, len(t_s)))
    return pulse_T + 1.6 * swing_T + 0.3 * noise, np.stack([swing_T, 0.2 * swing_T, 1 + 0 * swing_T]), rate_bpm


def test_acceleration_tells_the_pulse_from_the_arm():
    ppg_CT, acc_AT, rate_T = drowned()
    truth_W = np.array([rate_T[int(50 * s) : int(50 * (s + 8))].mean() for s in range(0, 53, 2)])
    assert np.abs(heart_rate_track(ppg_CT, 50.0, acc_AT) - truth_W).mean() < 3
    assert np.abs(heart_rate_track(ppg_CT, 50.0) - 150).mean() < 3  # without it the arm wins


def test_offset_gain_and_rate_of_sampling_do_not_matter():
    ppg_CT, acc_AT, _ = drowned()
    found_W = heart_rate_track(ppg_CT, 50.0, acc_AT)
    assert np.abs(heart_rate_track(100 + 5 * ppg_CT, 50.0, 9.8 * acc_AT) - found_W).max() <= 0.5
    assert len(found_W) == 27


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: heart_rate_track(np.zeros(1000), 10.0), "25 Hz or more"),
        (lambda: heart_rate_track(np.zeros(100), 50.0), "shorter than a window"),
        (lambda: heart_rate_track(np.zeros(1000), 50.0, np.zeros((3, 999))), "acc_AT must have the 1000 samples"),
        (lambda: heart_rate_track(np.full(1000, np.nan), 50.0), "not finite"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rates_during_exercise(shared):
    folder = shared / "data" / "troika"
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    errors = []
    for record in troika.list_records(folder):
        x_CT, reference_W = troika.open_record(folder, record).read(), troika.reference_rates(folder, record)
        found_W = heart_rate_track(x_CT[1:3], 125.0, x_CT[3:])
        n = min(len(found_W), len(reference_W))
        assert abs(len(found_W) - len(reference_W)) <= 2
        errors.append(np.abs(found_W[:n] - reference_W[:n]).mean())
    assert np.mean(errors) < 10 and max(errors) < 10
