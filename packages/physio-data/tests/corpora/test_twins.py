"""Every corpus reads its twin, which lies on disk as the real one does: the same store twice, named subjects, labels within their tasks."""

import numpy as np
import pytest

from physio_data.corpora import CORPORA, corpus
from physio_data.corpora.twins import has_twin, write_twin
from physio_data.prepare import PrepareConfig, prepare
from physio_data.store import Store


def prepared(name, folder, **more):
    options = dict(more.pop("options", None) or write_twin(name, folder / "files"))
    source_fs = options.pop("source_fs", None)
    prepare(PrepareConfig(corpus=name, root=str(folder / "files"), source_fs=source_fs, corpus_options=options, **more), folder / "store")
    return Store(folder / "store")


@pytest.mark.parametrize("name", [name for name in CORPORA if has_twin(name)])
def test_a_twin_becomes_a_store(name, tmp_path):
    store = prepared(name, tmp_path)
    row = corpus(name)
    assert len(store) > 0 and np.isfinite(store.batch(np.arange(len(store)))["signal"]).all()
    assert all(":" in subject for subject in set(store.index["subject"].tolist())), "subject ids are namespaced by their source"
    for task, spec in store.tasks.items():
        label = np.asarray(store.label(task))
        if spec["kind"] == "regression":
            assert label.dtype.kind == "f"
        else:
            assert label.dtype.kind == "i" and label.min() >= -1 and label.max() < max(len(spec["classes"]), 2)
    assert set(store.tasks) == set(row.tasks) or row.tasks_at is not None or (set(store.tasks) < set(row.tasks) and row.beat_times is not None)
    following = np.flatnonzero(store.index["next"] >= 0)
    same = store.index["next"][following]
    assert (store.index["record"][same] == store.index["record"][following]).all()
    np.testing.assert_allclose(store.index["start_s"][same] - store.index["start_s"][following], store.index["dt_next_s"][following], atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CORPORA if has_twin(name)])
def test_records_list_in_one_order_and_open_by_id(name, tmp_path):
    options = write_twin(name, tmp_path / "files")
    row = corpus(name)
    row.check_options(options)
    listed = row.list_records(tmp_path / "files", **options)
    assert listed and list(listed) == list(row.list_records(tmp_path / "files", **options)) and len(set(listed)) == len(listed)
    recording = row.open_record(tmp_path / "files", listed[-1], **options)
    half = recording.n_samples // 2
    np.testing.assert_array_equal(recording.read(half, recording.n_samples), recording.read()[:, half:])


@pytest.mark.parametrize("name", [name for name, target in CORPORA.items() if corpus(name).access != "generated"])
def test_an_absent_folder_is_named(name, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        row = corpus(name)
        options = {"source_fs": 100.0} if "source_fs" in row.options else {}
        row.list_records(tmp_path / "nowhere", **options)


def test_every_corpus_with_files_has_a_twin():
    assert [name for name in CORPORA if corpus(name).access != "generated" and not has_twin(name)] == []


def test_a_twin_keeps_to_its_own_folder(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="is not empty"):
        write_twin("bidmc", tmp_path)
    with pytest.raises(ValueError, match="corpus 'synthetic' has no twin"):
        write_twin("synthetic", tmp_path)
