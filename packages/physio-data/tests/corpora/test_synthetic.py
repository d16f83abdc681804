"""The built-in corpus: its records, its labels against the generator's truth, its options."""

from __future__ import annotations

import numpy as np
import pytest

from physio_data.corpora import corpus
from physio_data.recording import Annotations, Recording
from physio_data.synthesis import SynthesisConfig, synthesize_subject

CORPUS = corpus("synthetic")


def by_hand(beats, symbols, aux, **more):
    marks = Annotations(time_s=np.array(beats), symbol=np.array(symbols), aux=np.array(aux))
    return Recording.from_array(
        np.zeros((1, 1000)), fs=25, channels=("PPG",), units=("a.u.",), subject="s", record="r", annotations=marks, labels={"stiffness": 8.5}, age=40.0, **more
    )


def test_a_record_is_the_generators_subject():
    record = next(CORPUS.records(n_subjects=3, minutes=1.0, seed=5, pvc_per_min=6))
    subject = synthesize_subject(0, 1.0, 25.0, ("PPG",), 5, SynthesisConfig(pvc_per_min=6))
    np.testing.assert_array_equal(record.signal_CT, subject.signal_CT)
    assert (record.subject, record.record, record.age, record.sex) == (subject.subject, "5-00000", subject.age, subject.sex)
    assert (record.channels, record.units, record.fs) == (("PPG",), ("a.u.",), 25.0)


def test_both_channels_share_the_ecgs_clock():
    record = next(CORPUS.records(n_subjects=1, minutes=0.5, signal="both"))
    subject = synthesize_subject(0, 0.5, 250.0, ("ECG", "PPG"))
    assert record.channels == ("ECG", "PPG") and record.units == ("mV", "a.u.")
    np.testing.assert_array_equal(record.annotations.time_s[record.annotations.symbol != "+"], subject.beat_s)


def test_a_beat_stands_where_the_signal_shows_it():
    subject = synthesize_subject(0, 0.5, 25.0, ("PPG",))
    record = next(CORPUS.records(n_subjects=1, minutes=0.5))
    np.testing.assert_array_equal(record.annotations.time_s[record.annotations.symbol != "+"], subject.pulse_s[subject.pulse_s < 30])
    assert (subject.pulse_s > subject.beat_s + 0.05).all()


def test_record_ids_are_sorted_and_grow_at_the_end():
    few, many = CORPUS.list_records(None, n_subjects=9), CORPUS.list_records(None, n_subjects=12)
    assert many == sorted(many) and many[:9] == few


def test_labels_by_hand():
    record = by_hand([0.0, 1.0, 2.0, 9.9, 10.0, 12.0, 14.0, 15.5], ["+", "N", "N", "V", "N", "N", "A", "+"], ["(N", "", "", "", "", "", "", "(AFIB"])
    labels = CORPUS.window_labels(record, np.array([0.0, 10.0, 20.0]), 10.0)
    assert labels["pvc"].tolist() == [1, 0, 0]
    assert labels["af"].tolist() == [0, 0, 1]  # 4.5 of 10 s are not the majority
    np.testing.assert_allclose(labels["rate"], [60 / (8.9 / 2), 60 / 2.0, np.nan])
    assert labels["age"].tolist() == [40.0] * 3 and labels["stiffness"].tolist() == [8.5] * 3


def test_labels_agree_with_the_truth_sample_by_sample():
    options = {"n_subjects": 8, "minutes": 2.0, "af_subjects": 0.5, "pvc_per_min": 4.0}
    for index, record in enumerate(CORPUS.records(**options)):
        truth = synthesize_subject(index, 2.0, 25.0, ("PPG",), 0, SynthesisConfig(af_subjects=0.5, pvc_per_min=4.0))
        labels = CORPUS.window_labels(record, np.arange(12) * 10.0, 10.0)
        for w in range(12):
            shown = (truth.pulse_s >= 10 * w) & (truth.pulse_s < 10 * w + 10)
            assert labels["pvc"][w] == (truth.beat_type[shown] == "V").any()
            assert labels["af"][w] == (truth.af_T[250 * w : 250 * w + 250].mean() > 0.5)


def test_every_label_has_its_task():
    labels = CORPUS.window_labels(next(CORPUS.records(n_subjects=1)), np.zeros(1), 10.0)
    assert set(labels) == set(CORPUS.tasks) == {"pvc", "af", "age", "stiffness", "rate"}


def test_options_are_checked():
    with pytest.raises(ValueError, match="pvc_per_minute"):
        next(CORPUS.records(n_subjects=1, pvc_per_minute=3))
    with pytest.raises(ValueError, match="signal"):
        next(CORPUS.records(n_subjects=1, signal="eeg"))
    with pytest.raises(ValueError, match="n_subjects"):
        next(CORPUS.records(n_subjects=0))
