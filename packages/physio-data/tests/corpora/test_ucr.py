import numpy as np
import pytest

from physio_data.corpora import ucr
from physio_data.prepare import PrepareConfig, prepare
from physio_data.store import Store

X_NT = np.round(np.random.default_rng(3).standard_normal((6, 8)), 4)


def write(path, labels, rows_NT, separator="\t", style="{:.4f}"):
    lines = []
    for label, row in zip(labels if labels is not None else [None] * len(rows_NT), rows_NT, strict=True):
        lines.append(separator.join(([] if label is None else [label]) + [style.format(value) for value in row]))
    path.write_text("\n".join(lines) + "\n")


def store_of(root, out, **more):
    prepare(PrepareConfig(corpus="ucr", root=str(root), **more), out)
    return Store(out)


@pytest.mark.parametrize(("suffix", "separator"), [(".tsv", "\t"), (".txt", ","), (".txt", "  ")])
def test_train_and_test_files_become_folds_with_their_classes(tmp_path, suffix, separator):
    write(tmp_path / f"Toy_TRAIN{suffix}", ["-1", "1.0000000e+00", "-1"], X_NT[:3], separator)
    write(tmp_path / f"Toy_TEST{suffix}", ["1", "?", "-1"], X_NT[3:], separator)
    store = store_of(tmp_path, tmp_path / "s")
    assert store.tasks == {"class": {"kind": "binary", "classes": ["-1", "1"], "unit": ""}}
    np.testing.assert_array_equal(store.label(), [0, 1, 0, 1, -1, 0])
    np.testing.assert_array_equal(store.index["fold"], ["train"] * 3 + ["test"] * 3)
    np.testing.assert_array_equal(store.index["record"], ["0", "1", "2"] * 2)
    np.testing.assert_allclose(store.batch(np.arange(6))["signal"][:, 0], X_NT, atol=1e-7)
    assert store.units == ("normalised",) and store.fs == 1.0 and store.manifest["subjects"] == "unknown" and store.manifest["band"] is None
    assert len(np.unique(store.index["subject"])) == 6


def test_a_test_file_without_labels_is_told_by_its_width(tmp_path):
    write(tmp_path / "Toy_TRAIN.tsv", ["1", "2", "3"], X_NT[:3])
    write(tmp_path / "Toy_TEST.tsv", None, X_NT[3:])
    store = store_of(tmp_path, tmp_path / "s", source_fs=50.0)
    np.testing.assert_array_equal(store.label(), [0, 1, 2, -1, -1, -1])
    np.testing.assert_allclose(store.batch([3])["signal"][0, 0], X_NT[3], atol=1e-7)
    assert store.fs == 50.0 and store.tasks["class"]["kind"] == "multiclass"


@pytest.mark.parametrize("labels", [None, ["2", "0", "0", "5", "2", "0"]])
def test_a_folder_with_only_a_test_file(tmp_path, labels):
    write(tmp_path / "Toy_TEST.txt", labels, X_NT, " ", "{:.7e}")
    store = store_of(tmp_path, tmp_path / "s")
    np.testing.assert_allclose(store.batch(np.arange(6))["signal"][:, 0], X_NT, atol=1e-6)
    assert set(store.index["fold"]) == {"test"}
    if labels is None:
        assert store.tasks == {}
    else:
        np.testing.assert_array_equal(store.label(), [1, 0, 0, 2, 1, 0])


def test_ts_files_put_the_label_after_the_last_colon(tmp_path):
    head = "# a remark\n@problemName Toy\n@timestamps false\n@univariate {}\n@classLabel {}\n@data\n"
    (tmp_path / "Toy_TRAIN.ts").write_text(head.format("true", "true abnormal normal") + "1,2,3:normal\n4,5,6:abnormal\n")
    (tmp_path / "Toy_TEST.ts").write_text(head.format("true", "false") + "7,8,9\n")
    store = store_of(tmp_path, tmp_path / "s")
    assert store.tasks["class"]["classes"] == ["abnormal", "normal"]
    np.testing.assert_array_equal(store.label(), [1, 0, -1])
    np.testing.assert_array_equal(store.batch([0, 1, 2])["signal"][:, 0], [[1, 2, 3], [4, 5, 6], [7, 8, 9]])


def test_ts_files_may_have_several_dimensions_and_gaps(tmp_path):
    (tmp_path / "Toy_TEST.ts").write_text("@classLabel true a b\n@data\n1,2,3:4,5,6:b\n1,?,3:4,5,6:a\n")
    prepared = prepare(PrepareConfig(corpus="ucr", root=str(tmp_path)), tmp_path / "s")
    store = Store(tmp_path / "s")
    assert store.channels == ("series1", "series2") and prepared["rejected"] == {"missing": 1}
    np.testing.assert_array_equal(store.batch([0])["signal"][0], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(store.label(), [1])


def test_damage_and_doubt_are_named(tmp_path):
    for name, content, message in (
        ("cut", {"A_TRAIN.tsv": "1\t2\t3\n1\t2\n"}, r"A_TRAIN.tsv, row 2: 2 values, the longest row has 3"),
        ("foreign", {"A_TRAIN.tsv": "1\t2\t3\n", "A_TEST.tsv": "1\t2\t3\t4\t5\n"}, r"do not belong together"),
        ("several", {"A_TRAIN.tsv": "1\t2\n", "B_TRAIN.tsv": "1\t2\n"}, r"holds several data sets"),
        ("none", {"A.csv": "1,2\n"}, r"holds no NAME_TRAIN"),
        ("text", {"A_TRAIN.tsv": "1\t2\tx\n"}, r"row 1: could not convert"),
        ("empty", {"A_TRAIN.tsv": ""}, r"is empty"),
    ):
        (tmp_path / name).mkdir()
        for file, text in content.items():
            (tmp_path / name / file).write_text(text)
        with pytest.raises(ValueError, match=message):
            prepare(PrepareConfig(corpus="ucr", root=str(tmp_path / name)), tmp_path / "s")


@pytest.mark.parametrize(
    ("name", "classes", "train", "test", "length"),
    [("ECG200", {"-1": 67, "1": 133}, 100, 100, 96), ("TwoLeadECG", {"1": 581, "2": 581}, 23, 1139, 82)],
)
def test_the_archive_s_own_files(shared, tmp_path, name, classes, train, test, length):
    root = shared / "data" / "ucr_small" / name
    if not root.is_dir():
        pytest.skip(f"shared data absent: {root}")
    store = store_of(root, tmp_path / "s")
    assert store.manifest["folds"] == {"train": train, "test": test} and store.n_samples == length
    position, count = np.unique(store.label(), return_counts=True)
    assert {store.tasks["class"]["classes"][p]: n for p, n in zip(position, count, strict=True)} == classes


def test_crops_are_drawn_in_the_train_file_only(tmp_path):
    rows = "\n".join("1\t" + "\t".join(map(str, range(20))) for _ in range(6))
    for fold in ("TRAIN", "TEST"):
        (tmp_path / f"Count_{fold}.tsv").write_text(rows + "\n")
    starts = {record: ucr.open_record(tmp_path, record, crop_size=8).read()[0] for record in ucr.list_records(tmp_path)}
    assert all(np.array_equal(x_T, np.arange(x_T[0], x_T[0] + 8)) for x_T in starts.values())
    assert {starts[f"test-{row}"][0] for row in range(6)} == {6.0} and len({starts[f"train-{row}"][0] for row in range(6)}) > 2
    assert np.array_equal(ucr.open_record(tmp_path, "train-3", crop_size=8).read()[0], starts["train-3"])
    assert ucr.open_record(tmp_path, "train-0", crop_size=20).n_samples == 20  # as long as the series is allowed
    with pytest.raises(ValueError, match=r"crop_size must lie between 1 and the 20 samples of Count train row 0, got 21"):
        ucr.open_record(tmp_path, "train-0", crop_size=21)


def test_statistics_are_those_of_the_train_samples(tmp_path):
    (tmp_path / "S_TRAIN.tsv").write_text("100\t1\t2\t3\n-100\t4\t5\t6\n")
    (tmp_path / "S_TEST.tsv").write_text("100\t70\t80\t90\n")
    mean_C, sd_C = ucr.train_statistics(tmp_path)
    assert mean_C == pytest.approx([3.5]) and sd_C == pytest.approx([np.std([1, 2, 3, 4, 5, 6])])
