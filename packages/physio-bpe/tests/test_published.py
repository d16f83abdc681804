import datetime
import hashlib
import json
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physio_bpe import FileFormatError, TokenizerError, VocabularyError, from_expanded, load_published, train_symbols
from physio_bpe.published import longest_match, pairs_of


@pytest.fixture(scope="session")
def published(shared, ecg_byte):
    path = shared / ecg_byte["tokenizer_5000"]["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == ecg_byte["tokenizer_5000"]["sha256"]
    return load_published(path)


def content(tokens, vocab=None):
    """(vocab, merges) as ECG-Byte stores them."""
    text = {i: "".join(chr(s) if s < 128 else f"<{s}>" for s in token) for i, token in enumerate([*(bytes([i]) for i in range(256)), *tokens])}
    return vocab or text, [(list(token), 256 + i) for i, token in enumerate(tokens)]


def written(tmp_path, value, protocol=4):
    path = tmp_path / "made.pkl"
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol=protocol))
    return path


def test_the_published_tokenizer_is_read_whole(published, ecg_byte, shared):
    fixture = ecg_byte["tokenizer_5000"]
    assert published.n_merges == fixture["n_merges"] and published.n_merges + 256 == fixture["n_vocab"]
    assert published.special_ids == {"pad": 5256, "bos": 5257, "eos": 5258} and published.n_tokens == 5259
    assert published.mode == "longest"
    raw = json.loads((shared / "data/ecgbyte_tokenizers/ecg_byte_tokenizer_5000.json").read_text())
    assert [list(published.token(256 + i)) for i in range(5000)] == [symbols for symbols, _ in raw["merges"]]
    assert load_published(shared / "data/ecgbyte_tokenizers/ecg_byte_tokenizer_5000.json") == published


def test_its_ids_are_the_recorded_ones(published, ecg_byte):
    for case in ecg_byte["encode_5000"]:
        assert published.encode_symbols(case["text"]).tolist() == case["ids"], case["name"]
    symbolise = ecg_byte["symbolise"]
    assert published.encode(np.array(symbolise["ecg"], np.float32)).ids.tolist() == symbolise["ids_5000"]


def test_small_vocabularies_give_the_recorded_ids(ecg_byte):
    for case in ecg_byte["encode_small"]:
        tokens = [bytes(symbols) for symbols, _ in case["merges"]]
        assert longest_match(case["text"].encode(), tokens) == case["ids"], case["text"]
    first, twice, apart = ([bytes(symbols) for symbols, _ in case["merges"]] for case in ecg_byte["encode_small"])
    assert from_expanded(first).encode_symbols(b"aaaabaaabb").tolist() == ecg_byte["encode_small"][0]["ids"]
    with pytest.raises(VocabularyError, match=r"merges\[3\] makes b'aba', as id 258 does already"):
        from_expanded(twice)
    with pytest.raises(VocabularyError, match=r"merges\[0\] makes b'abcd', which is no two earlier tokens"):
        from_expanded(apart)


def test_training_gives_the_recorded_merges(ecg_byte):
    for case in ecg_byte["train"]:
        tokenizer = train_symbols([case["text"].encode()], case["num_merges"])
        assert [[list(tokenizer.token(256 + i)), 256 + i] for i in range(tokenizer.n_merges)] == case["merges"], case["name"]
        assert tokenizer.encode_symbols(case["text"].encode()).tolist() == case["final_ids"], case["name"]


@given(text=st.text(st.sampled_from("abklmmmmmmnoz"), max_size=400) | st.text(max_size=50))
def test_any_text_is_encoded_as_the_rule_says(published, text):
    tokens = [published.token(256 + i) for i in range(5000)]
    assert published.encode_symbols(text).tolist() == longest_match(text.encode(), tokens)


@given(segments=st.lists(st.text("abc", min_size=1, max_size=60), min_size=1, max_size=4), n_merges=st.integers(1, 50))
def test_the_merged_pairs_are_found_again_from_the_strings(segments, n_merges):
    trained = train_symbols([segment.encode() for segment in segments], n_merges)
    tokens = [trained.token(256 + i) for i in range(trained.n_merges)]
    assert np.array_equal(pairs_of(tokens), trained.merges)


def test_every_protocol_is_read_and_bytes_beyond_ascii_are_spelled(tmp_path):
    tokens = [b"ab", b"\xc3\xa9", b"ab\xc3\xa9"]
    for protocol in range(6):
        there = load_published(written(tmp_path, content(tokens), protocol))
        assert [there.token(256 + i) for i in range(3)] == tokens


class _Opens:
    def __reduce__(self):
        return open, ("never", "w")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [_Opens(), ({0: _Opens()}, []), (datetime.date(2020, 1, 1), []), (np.zeros(3), []), (frozenset(), [])])
def test_a_pickle_with_a_global_is_refused_and_does_nothing(value, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileFormatError, match=r"made.pkl: byte \d+ of the pickle is [A-Z_]+.*only plain values"):
        load_published(written(tmp_path, value, protocol))
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "truncated"),
        (b"not a pickle", "truncated or altered"),
        (pickle.dumps(content([b"ab"]))[:-40], "truncated"),
        (b"\x80\x04r" + struct.pack("<I", 1 << 31) + b".", "numbers a value 2147483648"),  # would reserve a table of 2**31 places
        (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 31) + b"a.", "truncated"),  # text of 2**31 characters by declaration
        (b"\x80\x04\x95" + struct.pack("<Q", 1 << 31) + b"N.", "truncated|NoneType|cannot be read"),
        (b"\x80\x040.", "cannot be read"),  # takes from an empty stack
        (b"\x80\x04Q.", "BINPERSID"),
        (b"\x80\x04]}]s.", "cannot be read|not a whole"),
        (3, "holds a int"),
        ([1, 2], "holds a list"),
        (({}, {}), "merges a list"),
        (({}, []), "vocab has 0 entries, 0 merges make 256"),
        (({}, [([97, 98], 256)]), "vocab has 0 entries"),
        (({}, [([97, 98], 257)]), r"merges\[0\] has id 257, in order it is 256"),
        (({}, [([97, 300], 256)]), r"merges\[0\] holds what is no byte"),
        (({}, [([97], 256)]), "two bytes or more"),
        (({}, [("ab", 256)]), r"merges\[0\]"),
        (({}, [[97, 98]]), r"merges\[0\]"),
        (({}, [([97, True], 256)]), "no byte"),
        (({}, [([97, 98], 256.0)]), r"merges\[0\]"),
        (content([b"ab"], {**content([b"ab"])[0], 256: "ba"}), r"vocab\[256\] is 'ba', the merges say 'ab'"),
        (content([b"ab"], {**{i + 1: "" for i in range(256)}, "x": 1}), r"vocab\[0\]"),
    ],
)
def test_what_is_no_published_tokenizer_is_refused_by_place(value, message, tmp_path):
    with pytest.raises(FileFormatError, match=f"made.pkl: .*({message})"):
        load_published(written(tmp_path, value))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([b"ab", b"ab"], r"merges\[1\] makes b'ab', as id 256 does already"),
        ([b"abcd"], r"merges\[0\] makes b'abcd', which is no two earlier tokens"),
        ([b"abc", b"ab"], r"merges\[0\]"),  # refers to what comes later
    ],
)
def test_tokens_that_no_merge_makes_are_named(tokens, message, tmp_path):
    with pytest.raises(VocabularyError, match=f"made.pkl: {message}"):
        load_published(written(tmp_path, content(tokens)))


def test_shared_and_endless_values_cost_nothing(tmp_path):
    endless = []
    endless.append((endless, 256))
    with pytest.raises(FileFormatError, match=r"merges\[0\]"):
        load_published(written(tmp_path, ({}, endless)))
    chain = b"\x80\x04}" + b"]" * 50_000 + b"a" * 49_999 + b"\x86."
    with pytest.raises(FileFormatError, match=r"merges\[0\]"):
        load_published(written(tmp_path, chain))
    long = [97] * 100_000
    with pytest.raises(FileFormatError, match="more than 1048576 symbols"):
        load_published(written(tmp_path, ({}, [(long, 256 + i) for i in range(1000)])))


@given(at=st.integers(0, 10**9), byte=st.integers(0, 255))
def test_an_altered_pickle_is_the_same_or_refused(at, byte, tmp_path_factory):
    whole = bytearray(pickle.dumps(content([b"ab", b"abc"]), protocol=4))
    whole[at % len(whole)] = byte
    path = tmp_path_factory.getbasetemp() / "altered.pkl"
    path.write_bytes(whole)
    try:
        tokenizer = load_published(path)
    except TokenizerError:
        return
    assert tokenizer.n_merges == 2


@pytest.mark.parametrize(
    "text", ["", "{}", '{"vocab": [], "merges": []}', '{"vocab": {"a": "b"}, "merges": []}', '{"vocab": {"0": "b"}, "merges": []}', "[" * 10**5]
)
def test_a_json_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "made.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"made.json: "):
        load_published(tmp_path / "made.json")
