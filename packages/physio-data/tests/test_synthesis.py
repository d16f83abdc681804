"""The generator: what it promises about identity, physiology, truth and speed."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from physio_data.synthesis import Noise, SynthesisConfig, synthesize, synthesize_subject

CALM = SynthesisConfig(
    pvc_per_min=0,
    pac_per_min=0,
    af_subjects=0,
    baseline_per_min=0,
    powerline_per_min=0,
    motion_per_min=0,
    pop_per_min=0,
    clip_per_min=0,
    dropout_per_min=0,
    sensor_noise=(0, 0),
)


def cohort(n, minutes=2.0, fs=25.0, channels=("PPG",), seed=0, **changes):
    return list(synthesize(n, minutes, fs, channels, seed, replace(CALM, **changes)))


def test_a_subject_is_the_same_whatever_the_number_of_subjects_and_other_channels():
    alone = synthesize_subject(3, 1.0, 125.0, ("PPG",), seed=7)
    of_many = list(synthesize(5, 1.0, 125.0, ("ECG", "PPG"), seed=7))[3]
    np.testing.assert_array_equal(of_many.signal_CT[1], alone.signal_CT[0])
    np.testing.assert_array_equal(of_many.noise_CT[1], alone.noise_CT[0])
    assert alone.subject == of_many.subject == "synthetic:7-00003"


def test_seeds_and_subjects_differ():
    first, second = cohort(2)
    other = cohort(1, seed=1)[0]
    assert len({first.age, second.age, other.age}) == 3
    assert not np.array_equal(first.signal_CT, second.signal_CT) and not np.array_equal(first.signal_CT, other.signal_CT)


def test_noise_leaves_the_beats_alone():
    quiet, noisy = cohort(1)[0], cohort(1, motion_per_min=20, sensor_noise=(0.1, 0.1))[0]
    np.testing.assert_array_equal(quiet.beat_s, noisy.beat_s)


def test_traits_lie_in_their_ranges_and_stiffness_grows_with_age():
    people = cohort(300, 0.1)
    age = np.array([p.age for p in people])
    stiffness = np.array([p.stiffness for p in people])
    assert 20 <= age.min() and age.max() <= 85
    assert 0.4 < np.mean([p.sex == "F" for p in people]) < 0.6
    assert 0.75 < np.corrcoef(age, stiffness)[0, 1] < 0.97  # an individual deviation remains


def test_beats_keep_the_subjects_resting_rate():
    for person in cohort(10):
        assert 60 / np.mean(np.diff(person.beat_s)) == pytest.approx(person.rate_bpm, rel=0.08)
        assert (person.beat_type == "N").all() and not person.af_T.any()


def test_breathing_in_quickens_the_heart():
    person = cohort(1, 4.0, rsa_depth=(0.12, 0.12), slow_sd=(0, 0))[0]
    middle_s = (person.beat_s[1:] + person.beat_s[:-1]) / 2
    breath = np.interp(middle_s, np.arange(len(person.respiration_T)) / person.fs, person.respiration_T)
    assert np.corrcoef(breath, np.diff(person.beat_s))[0, 1] < -0.8


def test_the_pulse_arrives_sooner_in_a_stiffer_tree():
    people = cohort(150, 0.2)
    delay = np.array([np.median(p.pulse_s - p.beat_s) for p in people])
    assert np.corrcoef(delay, [p.stiffness for p in people])[0, 1] < -0.7
    assert 0.1 < delay.min() and delay.max() < 0.4


def test_a_ventricular_beat_is_early_with_a_full_pause_and_a_weak_pulse():
    people = cohort(20, 4.0, pvc_per_min=3.0, pvc_interpolated=0, rsa_depth=(0, 0), slow_sd=(0, 0), respiratory_modulation=(0, 0), amplitude_jitter=0)
    n_seen, weaker = 0, []
    for person in people:
        rr, usual_s = np.diff(person.beat_s), 60 / person.rate_bpm
        (at,) = np.nonzero(person.beat_type[1:-1] == "V")
        assert (rr[at] <= 0.88 * usual_s + 1e-6).all()
        lone = at[(at > 1) & (at < len(rr) - 2)]
        lone = lone[(person.beat_type[lone] == "N") & (person.beat_type[lone - 1] == "N")]
        np.testing.assert_allclose(rr[lone] + rr[lone + 1], 2 * usual_s, rtol=1e-2)
        n_seen += len(at)
        crest = [person.signal_CT[0, int(s * 25) : int((s + 0.3) * 25) + 1].max() for s in person.pulse_s[lone + 1]]
        usual = [person.signal_CT[0, int(s * 25) : int((s + 0.3) * 25) + 1].max() for s in person.pulse_s[lone - 1]]
        weaker += list(np.array(crest) < np.array(usual))
    assert n_seen > 100 and np.mean(weaker) > 0.9


def test_an_atrial_beat_resets_the_sinus_clock():
    person = cohort(1, 10.0, pac_per_min=6.0, pac_shape=50.0, pac_pause=(1, 1), rsa_depth=(0, 0), slow_sd=(0, 0))[0]
    rr, usual_s = np.diff(person.beat_s), 60 / person.rate_bpm
    (at,) = np.nonzero(person.beat_type[1:-1] == "A")
    assert len(at) > 20
    np.testing.assert_allclose(rr[at + 1], usual_s, rtol=1e-2)


def test_fibrillation_is_irregular_without_a_p_wave():
    people = cohort(6, 2.0, 250.0, ("ECG",), af_subjects=1, af_burden=(1, 1), shape_spread=0)
    for person in people:
        rr = np.diff(person.beat_s)
        assert person.af_T.all() and rr.std() / rr.mean() > 0.1
        assert abs(np.corrcoef(rr[1:], rr[:-1])[0, 1]) < 0.35
    sinus = cohort(1, 2.0, 250.0, ("ECG",), shape_spread=0)[0]

    def p_height(person):
        index = (np.round(person.beat_s[2:-2, None] * 250) + np.arange(-58, -25)).astype(int)
        mean = person.signal_CT[0][index].mean(0)
        return (mean - np.linspace(mean[0], mean[-1], len(mean))).max()  # above the chord between its ends

    assert p_height(sinus) > 2 * max(p_height(person) for person in people)


def test_the_ecg_peaks_where_the_truth_says():
    person = cohort(1, 1.0, 500.0, ("ECG",))[0]
    assert person.units == ("mV",)
    for beat_s in person.beat_s[1:-1]:
        around = person.signal_CT[0, round((beat_s - 0.1) * 500) : round((beat_s + 0.1) * 500)]
        assert abs(np.argmax(around) - 50) <= 3


def test_the_noise_mask_marks_exactly_what_differs():
    for change, bit in (
        ({"baseline_per_min": 3}, Noise.BASELINE),
        ({"powerline_per_min": 3}, Noise.POWERLINE),
        ({"motion_per_min": 3}, Noise.MOTION),
        ({"pop_per_min": 3}, Noise.POP),
        ({"clip_per_min": 3}, Noise.CLIPPED),
        ({"dropout_per_min": 3}, Noise.DROPOUT),
        ({"gap_per_min": 3}, Noise.GAP),
    ):
        clean, noisy = (cohort(1, 4.0, 125.0, **c)[0] for c in ({}, change))
        marked = noisy.noise_CT != 0
        assert marked.any() and (noisy.noise_CT[marked] == bit).all(), bit
        np.testing.assert_array_equal(noisy.signal_CT[~marked], clean.signal_CT[~marked])
        assert (noisy.signal_CT[marked] != clean.signal_CT[marked]).mean() > 0.5, bit
        assert np.isnan(noisy.signal_CT).any() == (bit == Noise.GAP)


def test_no_powerline_below_its_nyquist_rate():
    assert not (cohort(1, 2.0, 25.0, powerline_per_min=30)[0].noise_CT & Noise.POWERLINE).any()


def test_default_prevalences():
    people = list(synthesize(150, 2.0, 25.0))
    holds = np.array([[((p.pulse_s[p.beat_type == "V"] // 10) == k).any() for k in range(12)] for p in people])
    assert 0.10 < holds.mean() < 0.22
    by_subject = holds.mean(1)
    assert 0.2 < (by_subject == 0).mean() < 0.7 and by_subject.max() < 1.0  # crowded into some subjects, none with nothing else
    assert 0.02 < np.mean([p.af_T.mean() for p in people]) < 0.15


def test_one_ppg_channel_is_made_a_thousand_times_faster_than_life():
    list(synthesize(2, 4.0, 25.0))
    start = time.process_time()
    list(synthesize(20, 4.0, 25.0))
    assert 20 * 240 / (time.process_time() - start) > 1000


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: SynthesisConfig(rate_bpm=(90, 60)), "rate_bpm"),
        (lambda: SynthesisConfig(pvc_per_min=-1), "pvc_per_min"),
        (lambda: SynthesisConfig(filling=1.5), "filling"),
        (lambda: SynthesisConfig(pvc_coupling=(0.1, 0.5)), "pvc_coupling"),
        (lambda: synthesize_subject(0, 1, 25.0, ("EEG",)), "channels"),
        (lambda: synthesize_subject(0, 1, 25.0, "PPG"), "channels"),
        (lambda: synthesize_subject(0, 1, 25.0, ("ECG",)), "fs"),
        (lambda: synthesize_subject(0, 0.01, 25.0), "minutes"),
        (lambda: synthesize_subject(-1, 1, 25.0), "index"),
        (lambda: list(synthesize(0, 1, 25.0)), "n_subjects"),
    ],
)
def test_bad_arguments_are_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()
