"""Labels and folds from a CSV: joined by subject, record or segment, or refused with the file, the line and what to do."""

import numpy as np
import pytest

from physio_data.corpora.twins import write_twin
from physio_data.join import read_folds, read_labels
from physio_data.prepare import PrepareConfig, prepare
from physio_data.store import Store


@pytest.fixture
def troika(tmp_path):
    write_twin("troika", tmp_path / "files")

    def prepared(**config):
        root = str(tmp_path / "files")
        prepare(PrepareConfig(corpus="troika", root=root, window_s=10.0, **config), tmp_path / "store")
        return Store(tmp_path / "store")

    return prepared


def table(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_labels_by_subject_with_and_without_namespace(tmp_path, troika):
    path = table(tmp_path, "subject,mi,bmi,group\ntroika:01,1,22.5,b\n02,0,,a\n")
    store = troika(labels=path)
    subject = store.index["subject"]
    assert store.tasks["mi"]["kind"] == "binary" and store.tasks["bmi"]["kind"] == "regression" and store.tasks["group"]["classes"] == ["a", "b"]
    expected = {"troika:01": (1, 22.5, 1), "troika:02": (0, np.nan, 0), "troika:test-01": (-1, np.nan, -1)}
    for column, task in enumerate(("mi", "bmi", "group")):
        np.testing.assert_array_equal(store.label(task), [expected[name][column] for name in subject])
    assert "rate" in store.tasks  # the corpus's own stays


def test_labels_by_record_and_by_segment(tmp_path, troika):
    path = table(tmp_path, "record,start_s,arousal,other\nDATA_01_TYPE01,0,3,x\nDATA_01_TYPE01,20.001,5,y\nDATA_01_TYPE01,10.5,7,z\n")
    store = troika(labels=path, labels_on="segment", kinds={"arousal": "regression"})
    first = store.index["record"] == "DATA_01_TYPE01"
    np.testing.assert_array_equal(store.label("arousal")[first], [3, np.nan, 5, np.nan])
    assert np.isnan(store.label("arousal")[~first]).all() and "other" not in store.tasks


def test_record_labels_reach_every_window(tmp_path, troika):
    store = troika(labels=table(tmp_path, "record,stage\nDATA_01_TYPE01,2\nTEST_S01_T01,10\n"), labels_on="record", kinds={"stage": "multiclass"})
    assert store.tasks["stage"]["classes"] == ["2", "10"]
    expected = {"DATA_01_TYPE01": 0, "TEST_S01_T01": 1, "DATA_02_TYPE02": -1}
    assert store.label("stage").tolist() == [expected[name] for name in store.index["record"]]


def test_folds_replace_the_split(tmp_path, troika):
    store = troika(folds=table(tmp_path, "subject,fold\n01,train\n02,test\ntest-01,\nnobody,train\n"))
    fold_of = dict(zip(store.index["subject"].tolist(), store.index["fold"].tolist(), strict=True))
    assert fold_of == {"troika:01": "train", "troika:02": "test", "troika:test-01": ""} and store.manifest["split"] == "file"


def test_the_same_table_elsewhere_gives_the_same_store(tmp_path, troika):
    text = "subject,mi\n01,1\n"
    troika(labels=table(tmp_path, text))
    troika(labels=table(tmp_path, text, "copy.csv"))  # finished: opens
    with pytest.raises(ValueError, match="labels"):
        troika(labels=table(tmp_path, "subject,mi\n01,0\n", "other.csv"))


@pytest.mark.parametrize(
    ("config", "text", "message"),
    [
        ({}, "subject,mi\n99,1\n", r"t\.csv, line 2: the corpus has no subject '99'; its ids are like troika:01"),
        ({}, "person,mi\n1,1\n", r"t\.csv: no column subject, the header has person, mi"),
        ({}, "subject,mi\n01,1\n01,0\n", r"t\.csv, line 3: subject 01 stands in line 2 already"),
        ({}, "subject,mi\n01,1\ntroika:01,0\n", r"t\.csv, line 3: 'troika:01' and '01' of line 2 are one subject"),
        ({}, "subject,mi\n01,2\n02,1\n", r"whole numbers, which may be classes or a quantity; say --kind mi=multiclass"),
        ({"kinds": {"mi": "binary"}}, "subject,mi\n01,2\n", r"t\.csv, line 2, column mi: '2' is not 0 or 1"),
        ({"kinds": {"mi": "regression"}}, "subject,mi\n01,high\n", r"line 2, column mi: 'high' is not a number"),
        ({"kinds": {"mi": "ordinal"}}, "subject,mi\n01,2\n", r"kind of mi must be one of binary, multiclass, regression"),
        ({"kinds": {"hf": "binary"}}, "subject,mi\n01,1\n", r"no column hf"),
        ({}, "subject,rate\n01,70.5\n", r"corpus 'troika' has a task 'rate' of its own; give the column another name"),
        ({}, "subject,mi\n01\n", r"line 2: 1 cells where the header has 2"),
        ({}, "subject,mi\n,1\n", r"line 2: subject is empty"),
        ({}, "subject,mi\n", r"a header but no line"),
        ({}, "subject\n01\n", r"no column beside subject"),
        ({"labels_on": "segment"}, "record,mi\nDATA_01_TYPE01,1\n", r"no column start_s"),
        ({"labels_on": "segment"}, "record,start_s,mi\nDATA_01_TYPE01,soon,1\n", r"line 2: start_s is 'soon', expected seconds"),
        ({"labels_on": "record"}, "record,mi\nDATA_09,1\n", r"no record 'DATA_09'"),
    ],
)
def test_a_bad_table_of_labels_is_named(tmp_path, troika, config, text, message):
    with pytest.raises(ValueError, match=message):
        troika(labels=table(tmp_path, text), **config)
    assert not (tmp_path / "store" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("config", "text", "message"),
    [
        ({}, "subject,fold\n01,train\n02,test\n01,test\n", r"t\.csv, line 4: subject '01' stands in line 2 already, with fold 'train'"),
        ({}, "subject,fold\n01,train\n", r"no line for subject 'troika:02' \(2 such\); add one, with an empty fold"),
        ({}, "subject,record,fold\n01,a,train\n", r"needs one column subject or record"),
        ({}, "subject\n01\n", r"no column fold"),
        ({"split": "hash"}, "subject,fold\n01,train\n", r"split=hash would deal them otherwise"),
    ],
)
def test_a_bad_table_of_folds_is_named(tmp_path, troika, config, text, message):
    with pytest.raises(ValueError, match=message):
        troika(folds=table(tmp_path, text), **config)


def test_a_person_of_two_records_is_in_one_fold(tmp_path):
    write_twin("bidmc", tmp_path / "files")
    folds = table(tmp_path, "record,fold\nbidmc01,train\nbidmc02,train\nbidmc03,test\n")
    with pytest.raises(ValueError, match=r"subject 'bidmc:01' is in two folds, test and train"):
        prepare(PrepareConfig(corpus="bidmc", root=str(tmp_path / "files"), folds=folds), tmp_path / "store")


def test_tables_with_marks_and_blanks_are_read(tmp_path):
    (tmp_path / "t.csv").write_bytes("﻿subject , y\n a , 1.5\n\n b , NA\n".encode())
    labels = read_labels(tmp_path / "t.csv", "subject")
    assert labels.values == {"y": {"a": 1.5}} and labels.lines == {"a": 2, "b": 4}
    with pytest.raises(ValueError, match=r"none\.csv: no such file"):
        read_folds(tmp_path / "none.csv")
