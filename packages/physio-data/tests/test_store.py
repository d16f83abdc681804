import pickle

import h5py
import numpy as np
import pytest

from physio_data.arrays import write_store
from physio_data.corpora.contract import TaskSpec
from physio_data.store import Store, Stores

RNG = np.random.default_rng(0)


def make(path, n=50, n_channels=2, n_samples=40, **more):
    x_NCT = RNG.standard_normal((n, n_channels, n_samples)).astype(np.float32)
    more = {"subject": [f"é{i // 5}" for i in range(n)], "fold": ["train" if i < 30 else "test" for i in range(n)]} | more
    store = write_store(path, x_NCT, fs=20.0, channels=["I", "II"][:n_channels], units=["mV"] * n_channels, **more)
    return x_NCT, store


@pytest.mark.parametrize("shard_windows", [None, 7, 1])
def test_a_batch_holds_the_rows_in_the_order_asked_for(tmp_path, shard_windows):
    x_NCT, store = make(tmp_path / "s", shard_windows=shard_windows)
    for rows in ([3], [49, 0, 7, 7, 6], RNG.permutation(50), np.arange(50), [], RNG.integers(0, 50, 256)):
        batch = store.batch(rows)
        assert batch["signal"].dtype == np.float32 and batch["index"].dtype == np.int64
        np.testing.assert_array_equal(batch["signal"], x_NCT[np.asarray(rows, int)])
        np.testing.assert_array_equal(batch["index"], rows)
        assert set(batch) == {"signal", "index"}


@pytest.mark.parametrize("shard_windows", [None, 7])
def test_int16_comes_back_within_half_a_step(tmp_path, shard_windows):
    x_NCT, store = make(tmp_path / "s", dtype="int16", shard_windows=shard_windows)
    rows = RNG.permutation(50)
    step_NC1 = np.ptp(x_NCT, axis=-1, keepdims=True) / 65534
    assert (np.abs(store.batch(rows)["signal"] - x_NCT[rows]) <= 0.51 * step_NC1[rows] + 1e-6).all()


def test_a_flat_channel_survives_int16(tmp_path):
    x_NCT = np.full((2, 1, 8), 3.25, np.float32)
    store = write_store(tmp_path / "s", x_NCT, fs=1, channels=["I"], units=["mV"], subject=["a", "b"], dtype="int16")
    np.testing.assert_array_equal(store.batch([0, 1])["signal"], x_NCT)


def test_items_carry_subject_label_and_valid(tmp_path):
    label_N = RNG.integers(0, 2, 50)
    n_valid = np.full(50, 40)
    n_valid[4] = 25
    x_NCT, store = make(tmp_path / "s", labels={"pvc": label_N}, tasks={"pvc": TaskSpec(kind="binary")}, n_valid=n_valid)
    item = store[4]
    np.testing.assert_array_equal(item["signal"], x_NCT[4])
    assert item["subject"] == "é0" and item["index"] == 4 and item["label"] == label_N[4]
    assert item["valid"].sum() == 25 and item["valid"][:25].all()
    assert [i["index"] for i in store.__getitems__([9, 2])] == [9, 2]
    np.testing.assert_array_equal(store.label("pvc"), label_N)


def test_absent_channels_are_marked(tmp_path):
    present_NC = np.ones((50, 2), bool)
    present_NC[3, 1] = False
    _, store = make(tmp_path / "s", channel_present_NC=present_NC)
    np.testing.assert_array_equal(store.batch([2, 3])["channel_present"], [[True, True], [True, False]])


def test_rows_of_a_fold(tmp_path):
    _, store = make(tmp_path / "s")
    np.testing.assert_array_equal(store.rows("test"), np.arange(30, 50))
    assert len(store.rows()) == len(store.rows(["train", "test"])) == 50
    with pytest.raises(ValueError, match=r"'val' has no window.*test, train"):
        store.rows("val")


def test_rows_outside_and_fractions_are_refused(tmp_path):
    _, store = make(tmp_path / "s")
    for rows in ([-1], [50]):
        with pytest.raises(IndexError, match=r"0 ... 49"):
            store.batch(rows)
    with pytest.raises(ValueError, match=r"whole row numbers"):
        store.batch([0.5])


def test_a_pickled_store_reopens_by_path(tmp_path):
    x_NCT, store = make(tmp_path / "s", labels={"a": np.zeros(50, int), "b": np.ones(50, int)}, tasks={k: TaskSpec(kind="binary") for k in "ab"})
    chosen = Store(store.path, task="b")
    content = pickle.dumps(chosen)
    again = pickle.loads(content)
    assert len(content) < 1000 and again.hash == store.hash and again.task == "b"
    np.testing.assert_array_equal(again.batch([5])["signal"], x_NCT[[5]])
    assert store.task is None
    with pytest.raises(ValueError, match=r"'c' is not in the store.*a, b"):
        Store(store.path, task="c")


def test_a_shard_cut_in_half_is_named(tmp_path):
    _, store = make(tmp_path / "s", shard_windows=20)
    shard = store.path / "shard-00001.h5"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"shard-00001.h5 is damaged: \d+ bytes"):
        Store(store.path)
    shard.unlink()
    with pytest.raises(ValueError, match=r"lacks its shard"):
        Store(store.path)


def test_a_changed_byte_is_found_by_verify(tmp_path):
    _, store = make(tmp_path / "s")
    shard = store.path / "shard-00000.h5"
    content = bytearray(shard.read_bytes())
    content[-1000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged: SHA-256"):
        Store(store.path, verify=True)


def test_a_shard_that_is_no_hdf5_is_named(tmp_path):
    _, store = make(tmp_path / "s")
    shard = store.path / "shard-00000.h5"
    shard.write_bytes(b"x" * shard.stat().st_size)
    with pytest.raises(ValueError, match=r"shard-00000.h5 is damaged"):
        Store(store.path)


def test_a_newer_store_is_refused(tmp_path):
    _, store = make(tmp_path / "s")
    path = store.path / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"schema": 1', '"schema": 3'))
    with pytest.raises(ValueError, match=r"schema 3, this physio-data reads up to 2: update"):
        Store(store.path)
    path.write_text(text)
    with h5py.File(store.path / "shard-00000.h5", "r+") as file:
        file.attrs["schema"] = 3
    with pytest.raises(ValueError, match=r"shard-00000.h5 has schema 3"):
        Store(store.path)


def test_other_damage_to_the_manifest(tmp_path):
    with pytest.raises(ValueError, match=r"is not a store: no manifest.json"):
        Store(tmp_path)
    _, store = make(tmp_path / "s")
    path = store.path / "manifest.json"
    text = path.read_text()
    for content, message in ((text[:200], "is damaged"), ("{}", "does not say format"), (text.replace('"fs"', '"xs"'), "lacks fs")):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            Store(store.path)
    path.write_text(text.replace('"n_windows": 50', '"n_windows": 51', 1))
    with pytest.raises(ValueError, match=r"is damaged"):
        Store(store.path)


def test_several_stores_pack_their_index(tmp_path):
    x_NCT, first = make(tmp_path / "a", n=10)
    y_NCT, second = make(tmp_path / "b", n=6)
    both = Stores([first, second])
    batch = both.batch([12, 3, 15])
    np.testing.assert_array_equal(batch["signal"], np.concatenate([x_NCT, y_NCT])[[12, 3, 15]])
    np.testing.assert_array_equal(batch["index"], [(1 << 48) | 2, 3, (1 << 48) | 5])
    assert len(both) == 16 and len(both.rows("train")) == 16 and both[11]["index"] == (1 << 48) | 1
    again = pickle.loads(pickle.dumps(both))
    np.testing.assert_array_equal(again.batch([15])["signal"], y_NCT[[5]])


def test_stores_of_different_input_are_refused(tmp_path):
    _, first = make(tmp_path / "a", n=10)
    _, second = make(tmp_path / "b", n=6, n_channels=1)
    with pytest.raises(ValueError, match=r"differ in channels"):
        Stores([first, second])


def test_stores_of_different_bands_are_refused(tmp_path):
    first, second = (make(tmp_path / name, n=6, band=band)[1] for name, band in (("a", (0.5, 8.0)), ("b", (1.0, 4.0))))
    with pytest.raises(ValueError, match=r"differ in band: .* has \[0.5, 8.0\], .* has \[1.0, 4.0\]"):
        Stores([first, second])
    second.manifest |= {"band": [0.5, 8.0], "raw": True}
    with pytest.raises(ValueError, match=r"differ in raw"):
        Stores([first, second])
    second.manifest |= {"raw": False, "filter": "butterworth"}
    Stores([first, second])  # what says no filter has this one
    second.manifest |= {"notch_hz": 50.0}
    with pytest.raises(ValueError, match=r"differ in notch_hz"):
        Stores([first, second])
    second.manifest |= {"notch_hz": None, "filter": "papagei"}
    with pytest.raises(ValueError, match=r"differ in filter"):
        Stores([first, second])


def test_a_subject_in_two_folds_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'é0' is in two folds"):
        make(tmp_path / "s", fold=["train", "test"] * 25)


def test_channels_are_read_under_other_names(tmp_path):
    x_NCT, _ = make(tmp_path / "a")
    other = Store(tmp_path / "a", channels=("MLII", "V5"))
    assert other.channels == ("MLII", "V5") and pickle.loads(pickle.dumps(other)).channels == ("MLII", "V5")
    y_NCT, _ = make(tmp_path / "b")
    both = Stores([other, Store(tmp_path / "b", channels=("MLII", "V5"))])
    np.testing.assert_array_equal(both.batch([3, 53])["signal"], np.stack([x_NCT[3], y_NCT[3]]))
    with pytest.raises(ValueError, match="must name the 2 of"):
        Store(tmp_path / "a", channels=("MLII",))
