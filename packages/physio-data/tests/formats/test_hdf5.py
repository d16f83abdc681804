import csv
import pickle

import h5py
import numpy as np
import pytest

from physio_data import open_recording
from physio_data.formats.hdf5 import WAVEFORM, HimaePvc, HimaeShards, open_hdf5, read_index


def write_shard(path, segments):
    with h5py.File(path, "w") as file:
        for key, x_T in segments.items():
            file[f"{key}/{WAVEFORM}"] = x_T
    return path


def write_csv(path, header, rows):
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def write_index(tmp_path, rows):
    return write_csv(tmp_path / "index.csv", ["local_path", "global_idx"], rows)


def write_pvc(path, labels, patients, n_samples=20, **signals):
    n = len(patients)
    with h5py.File(path, "w") as file:
        for name, shape in (signals or {"ppg": (n, n_samples)}).items():
            file[name] = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
        file["labels"], file["patient_ids"] = labels, patients
    return path


def metadata_rows(patients, labels, fs=25):
    return [[i, patient, i, f"[{label}]", fs] for i, (patient, label) in enumerate(zip(patients, labels, strict=True))]


METADATA = ["global_idx", "case_id_num", "segment_idx", "pvc", "fs"]


def test_ids_stay_strings_and_paths_are_relative_to_the_index(tmp_path):
    write_shard(tmp_path / "a.h5", {"000123": np.arange(5.0), "123": np.zeros(5)})
    rows = read_index(write_index(tmp_path, [["a.h5", "000123"], [str(tmp_path / "a.h5"), "123"]]))
    assert [(row.line, row.key, row.shard) for row in rows] == [(2, "000123", tmp_path / "a.h5"), (3, "123", tmp_path / "a.h5")]
    shards = HimaeShards.open(tmp_path / "index.csv")
    assert len(shards) == 2 and shards.n_samples(0) == 5
    assert shards.read(0).tolist() == [0, 1, 2, 3, 4] and shards.read(0).dtype == np.float32
    assert [x_T.sum() for x_T in pickle.loads(pickle.dumps(shards)).read_many([1, 0, 1])] == [0, 10, 0]


def test_an_id_that_is_not_in_its_shard_names_the_row_the_shard_and_near_ids(tmp_path):
    write_shard(tmp_path / "a.h5", {f"{i:06d}": np.zeros(3) for i in range(200)})
    shards = HimaeShards.open(write_index(tmp_path, [["a.h5", "000005"], ["a.h5", "123"]]))
    shards.read(0)
    with pytest.raises(ValueError, match=r"index\.csv, line 3: id '123' is not in shard .*a\.h5; near it: '000123'"):
        shards.read(1)
    with pytest.raises(ValueError, match="line 3"):
        shards.n_samples(1)


def test_a_shard_cut_in_half_is_named(tmp_path):
    path = write_shard(tmp_path / "a.h5", {f"{i:06d}": np.random.default_rng(i).normal(size=500) for i in range(50)})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shards = HimaeShards.open(write_index(tmp_path, [["a.h5", "000001"], ["gone.h5", "000001"]]))
    with pytest.raises(ValueError, match=r"a\.h5: not a readable HDF5 file, it may be cut off"):
        shards.read(0)
    with pytest.raises(ValueError, match=r"gone\.h5: no such file"):
        shards.read(1)


def test_an_incomplete_index_is_named(tmp_path):
    with pytest.raises(ValueError, match="no column global_idx; the header has local_path, idx"):
        read_index(write_csv(tmp_path / "i.csv", ["local_path", "idx"], []))
    with pytest.raises(ValueError, match="line 3"):
        read_index(write_index(tmp_path, [["a.h5", "1"], ["a.h5", ""]]))


def test_another_layout_under_an_id_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["1/other"], file[f"2/{WAVEFORM}"] = np.zeros(3), np.zeros((2, 3))
    shards = HimaeShards.open(write_index(tmp_path, [["a.h5", "1"], ["a.h5", "2"]]))
    with pytest.raises(ValueError, match="not HiMAE's shard layout"):
        shards.read(0)
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        shards.read(1)


@pytest.mark.parametrize("shape", [(4, 20), (4, 1, 20)])
@pytest.mark.parametrize("labels", [np.array([0, 1, 0, 0]), np.array([[0], [1], [0], [0]]), np.array(["[0]", "[1]", "[0]", "[0]"], "S3")])
def test_labelled_windows_open_in_each_of_their_forms(tmp_path, shape, labels):
    pvc = HimaePvc.open(write_pvc(tmp_path / "p.h5", labels, np.array([7, 7, 3, 3]), ppg=shape))
    assert (len(pvc), pvc.n_samples, pvc.fs, pvc.signals) == (4, 20, 25.0, ("ppg",))
    assert pvc.labels.tolist() == [0, 1, 0, 0]
    assert pvc.patients.tolist() == ["7", "7", "3", "3"] and pvc.segments.tolist() == [0, 1, 0, 1]
    assert pvc.read(1, 3).shape == (2, 1, 20) and pvc.read(1, 3)[0, 0, 0] == 20


def test_both_signals_become_channels_unless_one_is_chosen(tmp_path):
    path = write_pvc(tmp_path / "p.h5", [0, 1], [b"a", b"b"], ppg=(2, 6), ecg=(2, 1, 6))
    assert HimaePvc.open(path).read().shape == (2, 2, 6)
    assert HimaePvc.open(path, signals=["ecg"]).signals == ("ecg",)
    with pytest.raises(ValueError, match="not all there"):
        HimaePvc.open(path, signals=["eeg"])


def test_element_rows_keep_their_values(tmp_path):
    pvc = HimaePvc.open(write_pvc(tmp_path / "p.h5", np.array([[0.5, 120, 80], [0.1, 140, 95]]), [1, 2]))
    assert pvc.labels.tolist() == [[0.5, 120, 80], [0.1, 140, 95]]


def test_metadata_in_the_published_form_is_joined(tmp_path):
    path = write_pvc(tmp_path / "p.h5", [[0], [1], [0]], [4, 4, 9])
    pvc = HimaePvc.open(path, metadata=write_csv(tmp_path / "m.csv", METADATA, [[0, 4, 10, "[0]", 50], [1, 4, 11, "[1]", 50], [2, 9, 0, "[0]", 50]]))
    assert pvc.segments.tolist() == [10, 11, 0] and pvc.fs == 50.0


def test_metadata_may_number_patients_anew(tmp_path):
    path = write_pvc(tmp_path / "p.h5", [0, 1, 0], np.array([b"c17", b"c17", b"c02"]))
    HimaePvc.open(path, metadata=write_csv(tmp_path / "m.csv", METADATA, metadata_rows([0, 0, 1], [0, 1, 0])))
    with pytest.raises(ValueError, match=r"line 4 \(row 2\): case_id_num is 0"):
        HimaePvc.open(path, metadata=write_csv(tmp_path / "m.csv", METADATA, metadata_rows([0, 0, 0], [0, 1, 0])))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (metadata_rows([4, 4, 9], [0, 0, 0]), r"line 3 \(row 1\): pvc is \[0\] and /labels .* has 1"),
        (metadata_rows([4, 9, 9], [0, 1, 0]), r"line 3 \(row 1\): case_id_num is 9 and /patient_ids .* has '4'"),
        (metadata_rows([4, 4, 9], [0, 1, 0])[::-1], r"line 2 \(row 0\): global_idx is 2, expected 0"),
        (metadata_rows([4, 4], [0, 1]), "has 2 rows and .* has 3 windows"),
        ([*metadata_rows([4, 4], [0, 1]), [2, 9, 2, "[0]", 30]], "fs must be one positive rate"),
        ([*metadata_rows([4, 4], [0, 1]), [2, 9, 2, "[x]", 25]], r"row 2\): pvc is '\[x\]', not a number"),
    ],
)
def test_metadata_that_disagrees_is_named_by_row(tmp_path, rows, message):
    path = write_pvc(tmp_path / "p.h5", [0, 1, 0], [4, 4, 9])
    with pytest.raises(ValueError, match=message):
        HimaePvc.open(path, metadata=write_csv(tmp_path / "m.csv", METADATA, rows))


def test_inconsistent_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"/patient_ids has 3 rows and /ppg has 2"):
        HimaePvc.open(write_pvc(tmp_path / "p.h5", [0, 1], [4, 4, 9], ppg=(2, 5)))
    with h5py.File(tmp_path / "q.h5", "w") as file:
        file["ppg"] = np.zeros((2, 5))
    with pytest.raises(ValueError, match="no dataset /labels"):
        HimaePvc.open(tmp_path / "q.h5")


def test_the_published_metadata_joins(shared, tmp_path):
    metadata = shared / "fixtures" / "himae" / "pvc_10s_synth_metadata.csv"
    if not metadata.is_file():
        pytest.skip(f"shared data absent: {metadata}")
    with metadata.open() as handle:
        rows = list(csv.DictReader(handle))
    labels, patients = [int(row["pvc"][1]) for row in rows], [int(row["case_id_num"]) for row in rows]
    pvc = HimaePvc.open(write_pvc(tmp_path / "p.h5", labels, patients, ppg=(len(rows), 2)), metadata=metadata)
    assert (len(pvc), pvc.labels.sum(), len(np.unique(pvc.patients))) == (55861, 2604, 18)


def test_a_single_dataset_is_a_recording_read_by_range(tmp_path):
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["x"] = np.arange(12, dtype=np.int16).reshape(2, 6)
        file["x"].attrs.update({"fs": 50, "channels": ["II", "PLETH"], "units": ["mV", "a.u."]})
    recording = open_recording(tmp_path / "r.h5", subject="anna")
    assert (recording.fs, recording.channels, recording.units, recording.n_samples) == (50.0, ("II", "PLETH"), ("mV", "a.u."), 6)
    assert recording.select(["pleth"]).read(1, 3).tolist() == [[7.0, 8.0]]


def test_axes_are_said_not_guessed(tmp_path):
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["g/x"] = np.arange(12).reshape(6, 2)
        file["g"].attrs["sampling rate"] = 10
    with pytest.raises(ValueError, match="axes='TC'"):
        open_hdf5(tmp_path / "r.h5")
    assert open_hdf5(tmp_path / "r.h5", axes="TC").read(2, 4).tolist() == [[4, 6], [5, 7]]


def test_what_an_hdf5_file_leaves_open_is_asked_for(tmp_path):
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["a"], file["b"] = np.zeros(5), np.zeros(5)
    with pytest.raises(ValueError, match=r"2 numeric datasets \(a, b\); name the signal's"):
        open_recording(tmp_path / "r.h5")
    with pytest.raises(ValueError, match="--source-fs"):
        open_recording(tmp_path / "r.h5", dataset="a")
    assert open_recording(tmp_path / "r.h5", dataset="a", source_fs=9).duration_s == pytest.approx(5 / 9)
    with pytest.raises(ValueError, match="no dataset 'c'"):
        open_recording(tmp_path / "r.h5", dataset="c", source_fs=9)
