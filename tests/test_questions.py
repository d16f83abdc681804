"""Recordings that share a name in a corpus that names nobody: they are kept apart in folds, resamples and predictions."""

import numpy as np
import pytest

import prepare
from compose import ReadOut
from physio_data.store import Store
from physio_train import predictions as prediction_files
from physio_train import table
from physio_train.folds import outer_folds
from physio_train.protocol import cross_validate
from questions import question_of, records_of, split_question


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A data set of 30 and 24 series: both files count their rows from 0."""
    folder = tmp_path_factory.mktemp("archive")
    (folder / "Bumps").mkdir()
    rng = np.random.default_rng(0)
    for fold, n in (("TRAIN", 30), ("TEST", 24)):
        rows = np.column_stack([np.arange(n) % 3 + 1, rng.normal(size=(n, 60))])
        np.savetxt(folder / "Bumps" / f"Bumps_{fold}.tsv", rows, delimiter="\t", fmt=["%d"] + ["%.6f"] * 60)
    prepare.main(["ucr", "--root", str(folder / "Bumps"), "--split", "official", "--out", str(folder / "store")])
    return Store(folder / "store")


def test_series_of_both_files_of_an_archive_are_scored_whole_and_each_by_itself(archive, tmp_path):
    question = question_of(archive, ("store",), archive.rows(), ReadOut(task="class"))
    windows = question.windows
    assert len(np.unique(windows.groups)) == len(windows) == 54
    features_ND = np.eye(3)[windows.y] + np.random.default_rng(1).normal(size=(54, 3))
    specs = outer_folds(windows.groups, windows.y, n_folds=3, repeats=2)
    found = cross_validate("pretrained", features_ND, windows, question.task, specs).predictions
    found = prediction_files.read(prediction_files.write(tmp_path / "p.csv", found))
    assert set(found.record) == {f"ucr:Bumps:train-{i}" for i in range(30)} | {f"ucr:Bumps:test-{i}" for i in range(24)}
    assert not found.subject.astype(bool).any()
    first = prediction_files.align(found, "pretrained")
    number = [int(name.rpartition("-")[2]) for name in first.record]
    assert (first.labels_NK.argmax(axis=1) == np.array(number) % 3).all(), "every series meets its own label"
    assert table.score(found, kind="multiclass").counts == {"windows": 54, "records": 54}


def test_where_one_file_alone_is_scored_its_series_are_named_by_their_rows(archive):
    train, test = archive.rows("train"), archive.rows("test")
    question, spec = split_question(archive, ("store",), ReadOut(task="class"), train=train, test=test)
    assert question.windows.record[spec.test].tolist() == [str(i) for i in range(24)]
    assert len(np.unique(question.windows.groups)) == 54
    assert records_of(archive, train).tolist() == [str(i) for i in range(30)]


class Named(dict):
    """An index of four windows in the place of a store."""

    manifest: dict[str, str]
    index = property(lambda self: self)

    def __len__(self):
        return 4


def test_recordings_of_one_person_stay_two_and_known_subjects_keep_their_records():
    store = Named(record=np.array(["r", "r", "q", "r"]), subject=np.array(["c:p1", "c:p2", "c:p1", "c:p3"]))
    store.manifest = {"subjects": "unknown"}
    assert records_of(store, np.arange(4)).tolist() == ["c:p1/r", "c:p2/r", "c:p1/q", "c:p3/r"]
    assert records_of(store, np.array([1, 2])).tolist() == ["r", "q"]
    store.manifest = {"subjects": "known"}
    assert records_of(store, np.arange(4)).tolist() == ["r", "r", "q", "r"]
