from __future__ import annotations

import datetime
import sys

import numpy as np
import pytest

from physio_data.formats.edf import open_edf, open_edf_groups, read_edf_annotations

edfio = pytest.importorskip("edfio", reason="the extra physio-data[edf] is not installed")


@pytest.fixture
def night(tmp_path):
    """Two rates, microvolts, a patient, a hypnogram: as sleep recordings are."""
    rng = np.random.default_rng(0)
    signals = [
        edfio.EdfSignal(rng.normal(0, 20, 3000), 100, label="EEG Fpz-Cz", physical_dimension="uV", physical_range=(-200, 200)),
        edfio.EdfSignal(rng.uniform(0, 9, 30), 1, label="Temp rectal", physical_dimension="DegC", physical_range=(0, 10)),
        edfio.EdfSignal(rng.normal(0, 20, 3000), 100, label="EOG horizontal", physical_dimension="uV", physical_range=(-200, 200)),
    ]
    marks = [edfio.EdfAnnotation(0, 20, "Sleep stage W"), edfio.EdfAnnotation(20, 10, "Sleep stage 1"), edfio.EdfAnnotation(7.5, None, "Lights off")]
    edf = edfio.Edf(
        signals,
        patient=edfio.Patient(sex="F", birthdate=datetime.date(1960, 5, 2), name="X"),
        recording=edfio.Recording(startdate=datetime.date(2000, 5, 2)),
        annotations=marks,
        data_record_duration=1,
    )
    edf.write(tmp_path / "night.edf")
    return tmp_path / "night.edf", [signal.data.copy() for signal in signals]


def test_each_rate_is_a_recording_in_physical_units(night):
    path, data = night
    slow, fast = open_edf_groups(path)
    assert (slow.fs, slow.channels, slow.n_samples) == (1.0, ("Temp rectal",), 30)
    assert (fast.fs, fast.channels, fast.units, fast.n_samples) == (100.0, ("EEG Fpz-Cz", "EOG horizontal"), ("uV", "uV"), 3000)
    np.testing.assert_allclose(fast.read(), [data[0], data[2]], atol=1.1 * 400 / 65535)
    np.testing.assert_array_equal(fast.read(1, 2999), fast.read()[:, 1:2999])
    assert fast.age == pytest.approx(40.0, abs=0.01) and fast.sex == "F"
    with pytest.raises(ValueError, match=r"several rates \(1 Hz: Temp rectal; 100 Hz: EEG Fpz-Cz, EOG horizontal\)"):
        open_edf(path)


def test_annotations_come_apart_with_their_durations(night):
    marks = read_edf_annotations(night[0])
    assert marks.time_s.tolist() == [0.0, 7.5, 20.0]
    assert marks.symbol.tolist() == ["Sleep stage W", "Lights off", "Sleep stage 1"] and marks.aux.tolist() == ["20", "", "10"]


def test_a_truncated_file_is_named_with_both_sizes(night):
    path = night[0]
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"night\.edf: truncated, its header asks for \d+ bytes \(30 data records\) and it has"):
        open_edf_groups(path)


def test_a_file_of_annotations_only_is_told_from_a_recording(shared):
    path = shared / "data" / "wfdb_formats" / "test_edfann.edf"
    if not path.is_file():
        pytest.skip(f"shared data absent: {path}")
    with pytest.raises(ValueError, match=r"holds no signal, only 856 annotations"):
        open_edf(path)
    marks = read_edf_annotations(path)
    assert len(marks) == 856 and marks.symbol[0] == "Sleep stage W" and marks.aux[0] == "30"


def test_a_missing_library_names_the_extra(night, monkeypatch):
    monkeypatch.setitem(sys.modules, "edfio", None)
    with pytest.raises(ImportError, match=r"physio-data\[edf\]"):
        open_edf(night[0])
