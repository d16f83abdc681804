import json

import h5py
import numpy as np
import pytest

from physio_data.corpora.himae_pvc import hypertension
from physio_data.prepare import PrepareConfig, prepare
from physio_data.store import Store

X_NT = np.random.default_rng(5).standard_normal((7, 50)).astype(np.float32)


def write_shards(folder):
    with h5py.File(folder / "a.h5", "w") as file:
        for i in range(4):
            file.create_dataset(f"{i:06d}/normalized_waveform", data=X_NT[i])
    with h5py.File(folder / "b.h5", "w") as file:
        for i in range(4, 7):
            file.create_dataset(f"{i}/normalized_waveform", data=X_NT[i])
    rows = [f"a.h5,{i:06d}" for i in range(4)] + [f"b.h5,{i}" for i in range(4, 7)]
    (folder / "index.csv").write_text("local_path,global_idx\n" + "\n".join(rows) + "\n")


def test_pretraining_shards_keep_their_string_ids(tmp_path):
    write_shards(tmp_path)
    with pytest.raises(ValueError, match=r"state no rate; give it in Hz with --source-fs"):
        prepare(PrepareConfig(corpus="himae_shards", root=str(tmp_path)), tmp_path / "s")
    prepare(PrepareConfig(corpus="himae_shards", root=str(tmp_path), source_fs=25.0), tmp_path / "s")
    store = Store(tmp_path / "s")
    np.testing.assert_array_equal(store.batch(np.arange(7))["signal"][:, 0], X_NT)
    assert store.index["record"].tolist() == ["000000", "000001", "000002", "000003", "4", "5", "6"]
    assert store.units == ("normalised",) and store.manifest["subjects"] == "unknown" and store.window_s == 2.0 and store.tasks == {}


def test_an_id_that_is_not_in_its_shard_is_named(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "index.csv").write_text("local_path,global_idx\na.h5,000001\na.h5,1\n")
    with pytest.raises(ValueError, match=r"line 3: id '1' is not in shard .*'000001'"):
        prepare(PrepareConfig(corpus="himae_shards", root=str(tmp_path), source_fs=25.0), tmp_path / "s")


@pytest.mark.parametrize("nested", [False, True])
def test_labelled_windows_keep_patients_and_labels(tmp_path, nested):
    label_N = np.array([0, 1, 0, 0, 1, 0, 0])
    with h5py.File(tmp_path / "pvc.h5", "w") as file:
        file["ppg"] = X_NT[:, None, :] if nested else X_NT
        file["labels"] = label_N[:, None] if nested else label_N
        file["patient_ids"] = np.array([3, 3, 3, 5, 5, 7, 7])
    rows = [f"{i},{p},{s},[{y}],25" for i, (p, s, y) in enumerate(zip([3, 3, 3, 5, 5, 7, 7], [0, 1, 2, 0, 1, 0, 1], label_N, strict=True))]
    (tmp_path / "meta.csv").write_text("global_idx,case_id_num,segment_idx,pvc,fs\n" + "\n".join(rows) + "\n")
    prepare(PrepareConfig(corpus="himae_pvc", root=str(tmp_path)), tmp_path / "s")
    store = Store(tmp_path / "s")
    np.testing.assert_array_equal(store.label("pvc"), label_N)
    np.testing.assert_array_equal(store.batch(np.arange(7))["signal"][:, 0], X_NT)
    assert store.index["subject"].tolist() == ["himae:3"] * 3 + ["himae:5"] * 2 + ["himae:7"] * 2
    assert store.fs == 25.0 and store.channels == ("PPG",) and store.kind == "ppg" and (store.index["next"] == -1).all()


def test_blood_pressure_rows_become_three_tasks(tmp_path):
    pressure_NK = np.array([[0, 120, 70], [0, 138, 60], [0, 130, 80], [0, 110, 88], [0, 122, 72], [0, 123, 72], [0, 137.9, 87.9]])
    with h5py.File(tmp_path / "bp.h5", "w") as file:
        file["ppg"], file["labels"], file["patient_ids"] = X_NT, pressure_NK, np.arange(7)
    prepare(PrepareConfig(corpus="himae_pvc", root=str(tmp_path / "bp.h5"), source_fs=50.0), tmp_path / "s")
    store = Store(tmp_path / "s")
    np.testing.assert_array_equal(store.label("sbp"), pressure_NK[:, 1])
    np.testing.assert_array_equal(store.label("dbp"), pressure_NK[:, 2])
    np.testing.assert_array_equal(store.label("htn_bp"), [0, 1, -1, 1, 0, -1, -1])
    assert store.fs == 50.0 and store.task is None and store.tasks["sbp"]["unit"] == "mmHg"


def test_the_hypertension_rule_agrees_with_the_original_s_table(shared):
    path = shared / "fixtures" / "himae" / "meta.json"
    if not path.is_file():
        pytest.skip(f"shared data absent: {path}")
    table = json.loads(path.read_text())["hypertension_label"]
    assert len(table) > 40
    for pressure, label in table.items():
        assert hypertension(*map(float, pressure.split("/"))) == (-1 if label is None else label)
