import json
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physio_bpe import FileFormatError, MuLaw, Percentile, Tokenizer, TokenizerError, VocabularyError, from_json, load, save, to_json, train

SMALL = Tokenizer(merges=[(97, 98), (256, 97), (99, 99)], quantizer=Percentile(lower=2, per="lead"), layout="per_lead", mode="longest", corpus_sha256="ab" * 32)


def altered(**changes):
    values = json.loads(to_json(SMALL))
    for key, value in changes.items():
        if value is ...:
            del values[key]
        else:
            values[key] = value
    return json.dumps(values)


def test_a_file_gives_the_tokenizer_back(tmp_path, waves):
    for tokenizer in (SMALL, train(waves, 100, quantizer=MuLaw(n_levels=31, peak_mv=3)), Tokenizer(merges=[], special_tokens=())):
        save(tokenizer, tmp_path / "t.json")
        there = load(tmp_path / "t.json")
        assert there == tokenizer and there.quantizer == tokenizer.quantizer and there.layout == tokenizer.layout
        assert np.array_equal(there.merges, tokenizer.merges) and there.special_ids == tokenizer.special_ids
        assert np.array_equal(there.encode(waves[0]).ids, tokenizer.encode(waves[0]).ids)
        assert (tmp_path / "t.json").read_text() == to_json(there)


def test_the_file_says_what_it_is(tmp_path):
    values = json.loads(to_json(SMALL))
    assert values["format"] == "physio-bpe" and values["version"] == 1 and re.fullmatch(r"\d+\.\d+\.\d+.*", values["library"])
    assert values["alphabet"] == {"first": 97, "n_levels": 26} and values["merges"] == [[97, 98], [256, 97], [99, 99]]
    assert values["special_tokens"] == {"pad": 259, "bos": 260, "eos": 261} and values["vocabulary_hash"] == SMALL.vocabulary_hash


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    save(SMALL, tmp_path / "t.json")
    before = (tmp_path / "t.json").read_bytes()
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        save(Tokenizer(merges=[]), tmp_path / "t.json")
    assert (tmp_path / "t.json").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["t.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON at line 1, column 1"),
        ("[1, 2]", "holds a list"),
        ("{}", "'format' is None"),
        (b"\xff\xfe{", "not text"),
        ("[" * 100_000, "too deep"),
        ('{"format": ' + "9" * 10_000 + "}", "not a tokenizer's file"),
        ('{"format": NaN}', "holds NaN"),
        ('{"format": "physio-bpe", "format": "physio-bpe"}', "'format' is there twice"),
        (altered(format="other"), "'format' is 'other'"),
        (altered(version=2), "'version' is 2, this physio-bpe reads 1 to 1; update"),
        (altered(version="1"), "'version' is '1'"),
        (altered(merges=...), "'merges' is missing"),
        (altered(checksum=...), "'checksum' is missing"),
        (altered(comment="hello"), "'comment' is unknown"),
        (altered(merges={}), "'merges' is of type dict"),
        (altered(merges=[[97, 98], [256, 97], [99, 259]]), r"merges\[2\] is \[99, 259\]: it must be a pair of ids from 0 to 257"),
        (altered(merges=[[97, 98], [257, 97], [99, 99]]), r"merges\[1\] is \[257, 97\]"),
        (altered(merges=[[97, 98], [256.0, 97], [99, 99]]), r"merges\[1\]"),
        (altered(merges=[[97, 98], [True, 97], [99, 99]]), r"merges\[1\]"),
        (altered(merges=[[97, 98], [97], [99, 99]]), r"merges\[1\]"),
        (altered(merges=[[97, 98], [256, 98], [99, 99]]), "'vocabulary_hash' does not belong"),
        (altered(merges=[[97, 98], [256, 97]]), "'special_tokens'.*after these merges"),
        (altered(special_tokens={"pad": 260, "bos": 259, "eos": 261}), "'special_tokens'"),
        (altered(alphabet={"first": 0, "n_levels": 26}), "'alphabet'"),
        (altered(alphabet={"first": 97, "n_levels": 5}), "'alphabet'"),
        (altered(quantizer={"name": "percentile", "lower": 3.0}), "'vocabulary_hash'"),
        (altered(quantizer={"name": "lloyd"}), "quantizer name must be one of"),
        (altered(quantizer={"name": "percentile", "lower": 99.5}), "lower < upper"),
        (altered(layout="rows"), "layout must be one of"),
        (altered(layout="lead_major"), "'vocabulary_hash'"),
        (altered(mode="greedy"), "mode must be one of"),
        (altered(mode="bpe"), "'checksum' does not belong"),
        (altered(corpus_sha256="cd" * 32), "'checksum' does not belong"),
        (altered(library="9.9.9"), "'checksum' does not belong"),
        (altered(vocabulary_hash="0" * 64), "'vocabulary_hash' does not belong"),
    ],
)
def test_what_is_no_tokenizers_file_is_refused_by_place(text, message, tmp_path):
    with pytest.raises(FileFormatError, match=message):
        from_json(text)
    (tmp_path / "bad.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FileFormatError, match=f"bad.json: .*{message}"):
        load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ([[97, 98], [97, 98]], r"pairs\[1\]"),  # the same pair
        ([[97, 97], [97, 256], [256, 97]], r"pairs\[2\]"),  # the same string
        ([[97, 97], *([256 + i, 256 + i] for i in range(30))], r"pairs\[\d+\].*expand"),  # 2**31 symbols in one token
    ],
)
def test_merges_of_a_file_that_make_no_vocabulary_are_named(merges, message):
    with pytest.raises(VocabularyError, match=message):
        from_json(altered(merges=merges))


@given(at=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_no_changed_byte_goes_unnoticed(at, byte):
    content = bytearray(to_json(SMALL).encode())
    at %= len(content)
    if content[at] == byte:
        return
    content[at] = byte
    try:
        there = from_json(bytes(content))
    except TokenizerError:
        return
    assert there == SMALL  # white space


@pytest.mark.parametrize("kept", [1, 50, 200, 500, 900])
def test_a_truncated_file_is_refused(kept):
    text = to_json(SMALL)
    with pytest.raises(FileFormatError, match="truncated"):
        from_json(text[: kept * len(text) // 1000])


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.json")


def test_a_giant_is_not_read(tmp_path):
    with open(tmp_path / "giant.json", "wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(FileFormatError, match="2147483648 bytes"):
        load(tmp_path / "giant.json")
