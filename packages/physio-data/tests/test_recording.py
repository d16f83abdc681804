import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physio_data.recording import ECG_LEADS, Annotations, Recording, canonical_lead


def make(channels=("V5", "MLII"), n=100, **more):
    signal_CT = np.arange(len(channels) * n, dtype=np.float32).reshape(len(channels), n)
    return Recording.from_array(signal_CT, fs=50.0, channels=channels, units=["mV"] * len(channels), subject="s", record="r", **more)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [("avr", "aVR"), ("AVR", "aVR"), ("mlii", "MLII"), ("ML II", "MLII"), ("v1", "V1"), ("ECG lead II", "II"), ("ECG_V5", "V5"), ("pleth", "PLETH")],
)
def test_spellings_of_a_lead_are_one(written, canonical):
    assert canonical_lead(written) == canonical


@pytest.mark.parametrize("name", ["ECG1", "V", "Fp2-F4", "Resp. Imp.", "MCL"])
def test_unknown_names_stay_as_written(name):
    assert canonical_lead(name) == name


@given(st.text(max_size=12))
def test_canonical_names_are_fixed_points(name):
    assert canonical_lead(canonical_lead(name)) == canonical_lead(name)


def test_leads_are_selected_by_name_whatever_the_file_order():
    assert np.array_equal(make().select(["mlii"]).read(), make().read()[1:])
    both = make(("i", "AVR", "V1")).select(["V1", "aVR"])
    assert both.channels == ("V1", "aVR")
    assert both.read(0, 1)[:, 0].tolist() == [200.0, 100.0]


def test_an_absent_lead_names_what_is_there():
    with pytest.raises(ValueError, match=r"'r' has no channel 'II'; it has V5, MLII"):
        make().select(["II"])


def test_a_name_that_fits_two_channels_is_refused_but_an_exact_one_wins():
    twice = make(("ECG II", "II"))
    assert twice.select(["II"]).read(0, 1)[0, 0] == 100.0
    with pytest.raises(ValueError, match="2 channels that 'ii' fits"):
        twice.select(["ii"])


@pytest.mark.parametrize("bad", [{"fs": 0.0}, {"fs": math.nan}, {"units": ("mV",)}, {"channels": "MLII"}, {"sex": "female"}, {"n_samples": -1}])
def test_a_recording_checks_itself(bad):
    fields = {"fs": 1.0, "channels": ("a", "b"), "units": ("mV", "mV"), "n_samples": 3, "subject": "s", "record": "r", "reader": lambda a, b: None}
    with pytest.raises(ValueError, match=next(iter(bad)) if next(iter(bad)) != "units" else "unit per channel"):
        Recording(**{**fields, **bad})


def test_a_wrong_rank_is_refused_not_transposed():
    with pytest.raises(ValueError, match=r"got shape \(100, 2\)"):
        Recording.from_array(np.zeros((100, 2)), fs=1, channels=["a", "b"], units=["mV", "mV"], subject="s", record="r")


def test_only_the_asked_range_is_read():
    asked = []

    def reader(start, stop):
        asked.append((start, stop))
        return np.zeros((1, stop - start), np.float32)

    day = Recording(fs=250, channels=("II",), units=("mV",), n_samples=250 * 86400, subject="s", record="r", reader=reader)
    assert asked == []
    assert day.select(["II"]).read(1000, 1250).shape == (1, 250)
    assert asked == [(1000, 1250)]
    assert day.read(5, 5).shape == (1, 0)
    with pytest.raises(ValueError, match="0 <= start <= stop"):
        day.read(0, day.n_samples + 1)


def test_a_reader_of_another_shape_is_caught():
    bad = Recording(fs=1, channels=("a",), units=("",), n_samples=9, subject="s", record="r", reader=lambda a, b: np.zeros((2, b - a)))
    with pytest.raises(ValueError, match=r"shape \(2, 9\)"):
        bad.read()


def test_recordings_travel_between_processes():
    again = pickle.loads(pickle.dumps(make(("i", "AVR")).select(["aVR"])))
    assert np.array_equal(again.signal_CT, make(("i", "AVR")).signal_CT[1:])


def test_annotations_are_sorted_and_cut_by_time():
    notes = Annotations(time_s=np.array([3.0, 1.0, 2.0]), symbol=np.array(["V", "N", "+"]), aux=np.array(["", "", "(AFIB"]))
    assert notes.symbol.tolist() == ["N", "+", "V"]
    assert notes.between(2.0, 3.0).aux.tolist() == ["(AFIB"]
    with pytest.raises(ValueError, match="equally long"):
        Annotations(time_s=np.zeros(2), symbol=np.array(["N"]), aux=np.array(["", ""]))


def test_importing_the_package_loads_neither_scipy_nor_wfdb():
    code = "import sys, physio_data; print([m for m in ('scipy', 'wfdb', 'pandas', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_twelve_leads_stand_in_clinical_order():
    assert ECG_LEADS == ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
