import json
import sys

import numpy as np
import pytest

from physio_bpe import FileFormatError, LeadMinMax, Tokenizer, from_hf_json, hf_json, load_hf, load_published, save_hf, to_hf, train, train_symbols


@pytest.fixture(scope="module")
def tokenizers():
    return pytest.importorskip("tokenizers", reason="the extra [hf] is not installed")


@pytest.fixture(scope="module")
def trained(waves):
    return train(waves, 150)


def lines(n_levels, n, length, seed=0):
    """Random walks and noise over an alphabet, as bytes."""
    rng = np.random.default_rng(seed)
    first = 97 if n_levels == 26 else 0
    walks = np.clip(n_levels // 2 + rng.integers(-1, 2, (n, length)).cumsum(1), 0, n_levels - 1)
    noise = rng.integers(0, n_levels, (n, length))
    return [bytes((row + first).astype(np.uint8)) for row in np.concatenate([walks, noise])]


@pytest.mark.parametrize("n_levels", [26, 256])
@pytest.mark.parametrize("mode", ["bpe", "longest"])
def test_the_exported_model_gives_equal_ids(tokenizers, waves, n_levels, mode):
    tokenizer = train(waves, 200, quantizer=LeadMinMax(n_levels=n_levels))
    theirs = to_hf(tokenizer, mode)
    texts = [*lines(n_levels, 4, 600), tokenizer.alphabet * 3, b"", bytes(range(256))]
    for text in texts:
        got = theirs.encode(text.decode("latin-1"))
        assert got.ids == tokenizer.encode_symbols(text, mode=mode).tolist()
        assert theirs.decode(got.ids).encode("latin-1") == text
    assert theirs.get_vocab_size() == tokenizer.n_tokens
    assert theirs.token_to_id("⟨eos⟩") == tokenizer.special_id("eos")


def test_the_greedy_model_agrees_on_whole_leads(tokenizers, shared):
    tokenizer = load_published(shared / "data/ecgbyte_tokenizers/ecg_byte_tokenizer_5000.pkl")
    theirs = to_hf(tokenizer)
    for text in [*lines(26, 2, 2500), b"m" * 2500]:
        assert theirs.encode(text.decode()).ids == tokenizer.encode_symbols(text, mode="longest").tolist()


def test_training_there_gives_the_same_merges(tokenizers):
    texts = lines(26, 20, 400)
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.train_from_iterator([text.decode() for text in texts], tokenizers.trainers.BpeTrainer(vocab_size=26 + 120, show_progress=False, special_tokens=[]))
    ours = train_symbols(texts, 120)
    there = from_hf_json(theirs.to_str(), renumber=True)
    assert np.array_equal(there.merges, ours.merges)
    with pytest.raises(FileFormatError, match=r"has id None where 0 is needed; renumber=True"):
        from_hf_json(theirs.to_str())
    for text in texts[:5]:
        assert [theirs.id_to_token(id).encode() for id in theirs.encode(text.decode()).ids] == [ours.token(int(id)) for id in ours.encode_symbols(text)]


@pytest.mark.parametrize("mode", ["bpe", "longest"])
def test_a_file_comes_back(trained, mode, tmp_path):
    save_hf(trained, tmp_path / "tokenizer.json", mode)
    there = load_hf(tmp_path / "tokenizer.json")
    assert there == Tokenizer(merges=trained.merges, mode=mode)
    other = load_hf(tmp_path / "tokenizer.json", quantizer=LeadMinMax(), layout="per_lead")
    assert other.layout == "per_lead" and other.quantizer == LeadMinMax() and np.array_equal(other.merges, trained.merges)


def test_their_own_writing_is_read_too(tokenizers, trained):
    for mode in ("bpe", "longest"):
        assert from_hf_json(to_hf(trained, mode).to_str()) == Tokenizer(merges=trained.merges, mode=mode)


def test_older_files_hold_merges_as_text(trained):
    values = json.loads(hf_json(trained))
    values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]
    assert np.array_equal(from_hf_json(json.dumps(values)).merges, trained.merges)


def changed(tokenizer, mode="bpe", **changes):
    values = json.loads(hf_json(tokenizer, mode))
    values["model"] |= changes.pop("model", {})
    return json.dumps(values | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "'pre_tokenizer' changes or divides"),
        ({"model": {"type": "Unigram"}}, "type 'Unigram'"),
        ({"model": {"dropout": 0.1}}, "'model.dropout' is 0.1"),
        ({"model": {"merges": [["a", "b", "c"]]}}, r"model.merges\[0\] is no pair"),
        ({"model": {"merges": [["a", "bc"]]}}, r"model.merges\[0\] names 'bc'"),
        ({"model": {"merges": [["a", "Ā"]]}}, r"model.merges\[0\] names 'Ā'"),
        ({"model": {"merges": [["a", "b"], ["a", "b"]]}}, r"model.merges\[1\] makes 'ab', which an earlier"),
        ({"model": {"merges": "none"}}, "'model.merges' must be a list"),
        ({"model": {"vocab": {"a": "97"}}}, "'vocab' of strings and ids"),
        ({"added_tokens": [{"id": 5, "content": "<s>"}]}, r"added_tokens\[0\] must have id"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_place(trained, changes, message, tmp_path):
    (tmp_path / "tokenizer.json").write_text(changed(trained, **changes))
    with pytest.raises(ValueError, match=f"tokenizer.json: .*({message})"):
        load_hf(tmp_path / "tokenizer.json")
    for text in ("", "[]", "{}", "[" * 10**5):
        with pytest.raises(FileFormatError):
            from_hf_json(text)


def test_a_missing_extra_is_named(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"physio-bpe\[hf\]"):
        to_hf(trained)
