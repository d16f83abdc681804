import sys
import warnings
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from physio_data.corpora import CORPORA, corpus, mitbih
from physio_data.corpora.mitbih import DS1, DS2, PACED
from physio_data.prepare import PrepareConfig, prepare
from physio_data.recording import Annotations, Recording
from physio_data.store import Store

wfdb = pytest.importorskip("wfdb")


@pytest.fixture(scope="module")
def root(shared):
    folder = shared / "data" / "mitdb"
    if not folder.is_dir():
        pytest.skip(f"shared data absent: {folder}")
    return folder


def test_the_two_sets_are_those_of_de_chazal():
    everything = "100 101 102 103 104 105 106 107 108 109 111 112 113 114 115 116 117 118 119 121 122 123 124".split()
    everything += "200 201 202 203 205 207 208 209 210 212 213 214 215 217 219 220 221 222 223 228 230 231 232 233 234".split()
    assert len(DS1) == len(DS2) == 22 and sorted([*DS1, *DS2, *PACED]) == everything and len(everything) == 48


def test_a_beat_on_the_edge_belongs_to_the_window_that_it_begins():
    beats = Annotations(time_s=[9.9, 10.0, 20.0, 30.0, 45.0], symbol=["N", "V", "N", "V", "V"], aux=[""] * 5)
    record = Recording.from_array(np.zeros((1, 10)), fs=1.0, channels=("MLII",), units=("mV",), subject="p", record="r", annotations=beats)
    np.testing.assert_array_equal(mitbih.holds_beat(record, np.array([0.0, 10.0, 20.0, 30.0]), 10.0, ("V",)), [0, 1, 0, 1])
    np.testing.assert_array_equal(mitbih.holds_beat(replace(record, annotations=None), np.zeros(2), 10.0, ("V",)), [-1, -1])


def test_windows_and_labels_agree_with_the_annotation_files(root, tmp_path):
    manifest = prepare(PrepareConfig(corpus="mitbih", root=str(root)), tmp_path / "s")
    store = Store(tmp_path / "s")
    assert (len(store), manifest["n_records"], store.channels, store.fs, store.n_samples) == (4140, 23, ("MLII",), 100.0, 1000)
    assert manifest["waivers"] == [] and manifest["folds"] == {"train": 22 * 180, "test": 180}
    for record in ("100", "114", "201", "208"):
        header = wfdb.rdheader(str(root / record))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pandas, about wfdb's own calls
            marks = wfdb.rdann(str(root / record), "atr")
        v_N = np.zeros(180, int)
        for sample, symbol in zip(marks.sample, marks.symbol, strict=True):
            if symbol == "V" and sample // 3600 < 180:
                v_N[sample // 3600] = 1
        rows = store.index["record"] == record
        np.testing.assert_array_equal(store.label("pvc")[rows], v_N)
        age, sex = header.comments[0].split()[:2]
        assert (store.index["age"][rows] == float(age)).all() and (store.index["sex"][rows] == sex).all()
        assert (store.label("sex")[rows] == ["F", "M"].index(sex)).all()
    assert set(store.index["subject"][store.index["record"] == "201"]) == {"mitbih:201-202"}


def test_the_lead_is_taken_by_name(root, tmp_path):
    """Record 114 has V5 first; filtered away from the ends, the store holds its MLII."""
    from scipy.signal import butter, sosfiltfilt

    signal, fields = wfdb.rdsamp(str(root / "114"))
    assert fields["sig_name"] == ["V5", "MLII"]
    recording = corpus("mitbih").open_record(root, "114").select(("MLII",))
    np.testing.assert_allclose(recording.read(5000, 9000)[0], signal[5000:9000, 1], atol=1e-6)
    prepare(PrepareConfig(corpus="mitbih", root=str(root), fs=360.0, split="hash"), tmp_path / "s")
    store = Store(tmp_path / "s")
    row = int(np.flatnonzero((store.index["record"] == "114") & (store.index["start_s"] == 600.0))[0])
    y_T = sosfiltfilt(butter(4, (0.5, 40.0), "bandpass", fs=360.0, output="sos"), signal[:, 1])
    np.testing.assert_allclose(store[row]["signal"][0], y_T[600 * 360 : 610 * 360], atol=1e-3)


def test_an_absent_lead_is_named(root, tmp_path):
    with pytest.raises(ValueError, match=r"record '100' has no channel 'V1'; it has MLII, V5"):
        prepare(PrepareConfig(corpus="mitbih", root=str(root), leads=("V1",)), tmp_path / "s")


def test_201_and_202_need_their_waiver(monkeypatch, tmp_path):
    """One person on both sides of the official division: allowed by name, and written down."""

    def open_record(root, record_id):
        person = "201-202" if record_id in ("201", "202") else record_id
        x_CT = np.random.default_rng(int(record_id)).standard_normal((1, 1000))
        return Recording.from_array(x_CT, fs=100.0, channels=("MLII",), units=("mV",), subject=f"mitbih:{person}", record=record_id)

    for waivers in (mitbih.CORPUS.waivers, ()):
        module = ModuleType("faked")
        module.ROW = replace(mitbih.CORPUS, list_records=lambda root: ["100", "201", "202"], open_record=open_record, waivers=waivers)
        monkeypatch.setitem(sys.modules, "faked", module)
        monkeypatch.setitem(CORPORA, "mitbih", "faked:ROW")
        cfg = PrepareConfig(corpus="mitbih", root="x")
        if waivers:
            manifest = prepare(cfg, tmp_path / "with")
            assert manifest["waivers"] == ["mitbih-201-202"] and manifest["folds"] == {"train": 1, "test": 2}
        else:
            with pytest.raises(ValueError, match=r"'mitbih:201-202' is in two folds"):
                prepare(cfg, tmp_path / "without")


def test_an_empty_root_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no record of corpus 'mitbih'"):
        prepare(PrepareConfig(corpus="mitbih", root=str(tmp_path)), tmp_path / "s")
    with pytest.raises(ValueError, match=r"is no folder"):
        prepare(PrepareConfig(corpus="mitbih", root=str(tmp_path / "nowhere")), tmp_path / "s")
    with pytest.raises(ValueError, match=r"root must name the folder"):
        prepare(PrepareConfig(corpus="mitbih"), tmp_path / "s")
