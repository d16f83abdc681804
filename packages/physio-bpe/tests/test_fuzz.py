"""Whatever bytes come: a tokenizer, or a TokenizerError. Bounded by examples, minutes at most."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from physio_bpe import Scale, Tokenizer, TokenizerError, from_hf_json, from_json, hf_json, load_published, to_json
from physio_bpe.serialize import _checksum

pytestmark = pytest.mark.slow
MANY = settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
BASE = Tokenizer(merges=[(97, 98), (256, 97), (99, 99), (257, 258)])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 1 << 33) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=12,
)
PAIRS = st.lists(st.lists(st.integers(-1, 300), min_size=1, max_size=3), max_size=12)


def mutated(draw, content):
    """Bytes with a few places overwritten, cut out or doubled."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, max(0, len(content) - 1))), draw(st.integers(0, 12))
        content[at : at + length] = draw(st.binary(max_size=12))
    return bytes(content)


def works(tokenizer):
    """A tokenizer that was let through keeps its word."""
    for mode in ("bpe", "longest"):
        for symbols in (b"", b"a", b"abacabcc" * 5, bytes(range(256))):
            ids = tokenizer.encode_symbols(symbols, mode=mode)
            assert tokenizer.decode_symbols(ids) == symbols
    assert from_json(to_json(tokenizer)) == tokenizer


@MANY
@given(data=st.data())
def test_files_of_altered_bytes(data):
    for text, read in ((to_json(BASE), from_json), (hf_json(BASE), from_hf_json), (hf_json(BASE, "longest"), from_hf_json)):
        try:
            works(read(mutated(data.draw, text.encode())))
        except TokenizerError:
            continue


@MANY
@given(key=st.sampled_from(sorted(json.loads(to_json(BASE)))), value=JSON, merges=st.none() | PAIRS, sealed=st.booleans())
def test_files_of_altered_values(key, value, merges, sealed):
    values = json.loads(to_json(BASE)) | {key: value}
    if merges is not None:
        values["merges"] = merges
    if sealed:  # somebody who can compute the checks
        values["checksum"] = _checksum(values)
    try:
        works(from_json(json.dumps(values)))
    except TokenizerError:
        return


@MANY
@given(data=st.data(), merges=PAIRS)
def test_any_merges(data, merges):
    try:
        works(Tokenizer(merges=merges))
    except (TokenizerError, ValueError) as error:
        assert isinstance(error, TokenizerError) or "inhomogeneous" in str(error)


@MANY
@given(data=st.data(), raw=st.booleans())
def test_pickles_of_any_bytes(data, raw, tmp_path):
    path = tmp_path / "any.pkl"
    vocab = {i: chr(i) if i < 128 else f"<{i}>" for i in range(256)} | {256: "ab"}
    path.write_bytes(data.draw(st.binary(max_size=200)) if raw else mutated(data.draw, pickle.dumps((vocab, [([97, 98], 256)]), data.draw(st.integers(0, 5)))))
    try:
        works(load_published(path))
    except TokenizerError:
        return


@MANY
@given(ids=st.lists(st.integers(-3, 300), max_size=30), n_leads=st.integers(-1, 4), n_samples=st.none() | st.integers(-1, 40), span=st.floats(-1, 1e39))
def test_any_ids_and_any_shape(ids, n_leads, n_samples, span):
    scale = Scale(np.zeros(1), np.array([span]))
    try:
        with np.errstate(over="ignore"):
            x_CT = BASE.decode_ids(ids, scale=scale, n_leads=n_leads, n_samples=n_samples)
    except TokenizerError:
        return
    assert x_CT.shape[0] == n_leads and (n_samples is None or x_CT.shape[1] == n_samples)


@MANY
@given(symbols=st.binary(max_size=40), offsets=st.lists(st.integers(-2, 1 << 33), max_size=6), mode=st.sampled_from(["bpe", "longest"]))
def test_any_borders(symbols, offsets, mode):
    line = np.frombuffer(symbols, np.uint8)
    try:
        ids, borders = BASE.encode_segments(line, np.array(offsets, np.int64), mode=mode)
    except TokenizerError:
        return
    assert BASE.decode_symbols(ids) == symbols and len(borders) == len(offsets)
