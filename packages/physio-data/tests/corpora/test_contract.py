import pytest

from physio_data.corpora import CORPORA, Corpus, PrepareDefaults, TaskSpec, corpus
from physio_data.corpora.twins import has_twin


@pytest.mark.parametrize("name", CORPORA)
def test_every_row_is_a_corpus_that_states_its_origin(name):
    row = corpus(name)
    assert isinstance(row, Corpus) and row.name == name
    assert all(row.card().values()) and row.signal_kind in ("ecg", "ppg", "eeg", "mixed", "series")
    assert row.defaults.split != "official" or row.official_folds is not None
    assert row.access == "generated" or has_twin(name)
    for module_function in (row.list_records, row.open_record):
        assert "<" not in module_function.__qualname__  # workers import it by name


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match=r"no corpus 'mitbhi'; did you mean 'mitbih'\? There are synthetic, "):
        corpus("mitbhi")
    with pytest.raises(ValueError, match=r"is a type, not a Corpus"):
        corpus("physio_data.corpora.contract:Corpus")


def test_an_option_that_a_corpus_does_not_have_is_named():
    with pytest.raises(ValueError, match=r"corpus 'ucr' has no option 'fs'; it has .*source_fs"):
        next(corpus("ucr").records("anywhere", fs=3))


def test_specs_check_themselves():
    with pytest.raises(ValueError, match=r"kind must be"):
        TaskSpec(kind="ordinal")
    with pytest.raises(ValueError, match=r"needs its class names"):
        TaskSpec(kind="multiclass")
    assert PrepareDefaults().split == "hash"
