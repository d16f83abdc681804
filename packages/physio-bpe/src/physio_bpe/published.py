"""The tokenizers that ECG-Byte published: a pickle of (vocab, merges), read without ever building an object.

Facts of the format: `vocab` maps ids to text, `merges` is a list of ([bytes of the whole token], id) with ids from 256 on in merge order. The
pair that was merged is not stored; it is found again from the strings.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from physio_bpe.errors import FileFormatError, TokenizerError, VocabularyError
from physio_bpe.tokenizer import N_SYMBOLS, Tokenizer

MAX_BYTES = 1 << 26
MAX_SYMBOLS = 1 << 20  # of all tokens together
_PLAIN = {  # opcodes that make numbers, text, lists, tuples and dicts, and nothing else
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP"),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
}


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every global and every persistent id, whatever the scan before it let through."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"the global {module}.{name} is refused")

    def persistent_load(self, pid: object) -> NoReturn:
        raise pickle.UnpicklingError("a persistent id is refused")


def load_published(path: str | Path) -> Tokenizer:
    """A published tokenizer from its `.pkl`, or from a `.json` of the same content: 26 letters, min-max over the record, longest match.

    FileFormatError names the file and the byte or entry: truncated, altered, a global, anything but plain values; VocabularyError the merge
    that is no token. OSError where there is no such file.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise FileFormatError(f"{path} has {size} bytes, a published tokenizer at most {MAX_BYTES}")
    content = path.read_bytes()
    try:
        vocab, merges = _from_json(content) if path.suffix == ".json" else _from_pickle(content)
        return from_expanded(_checked(vocab, merges))
    except TokenizerError as error:
        raise type(error)(f"{path}: {error}") from None


def from_expanded(tokens: Sequence[bytes]) -> Tokenizer:
    """The tokenizer whose merge i makes the string `tokens[i]`, in rank order; its default rule is the longest match.

    VocabularyError names a token that is no two earlier ones, or is there already.
    """
    return Tokenizer(merges=pairs_of(tokens), mode="longest")


def pairs_of(tokens: Sequence[bytes]) -> np.ndarray:
    """The pairs (M, 2) uint32 of merges known by their strings.

    A string may split into two earlier tokens in several ways. Training merged the one split whose two sides, each as the earlier merges leave
    it, stay apart when they meet. Where there is none (a list that no training made) the split of lowest ids stands in; longest match does not
    depend on it. VocabularyError names a merge that is no two earlier tokens, or is there already.
    """
    ids = {bytes([symbol]): symbol for symbol in range(N_SYMBOLS)}
    made: dict[tuple[int, int], int] = {}
    pairs: list[tuple[int, int]] = []
    proper = [True] * N_SYMBOLS  # tokens that the merges before them really arrive at
    lengths = {1}
    for merge, token in enumerate(tokens):
        if token in ids:
            raise VocabularyError(f"merges[{merge}] makes {_short(token)}, as id {ids[token]} does already")
        ends = [at for at in lengths if len(token) - at in lengths]
        splits = sorted((ids[token[:at]], ids[token[at:]]) for at in ends if token[:at] in ids and token[at:] in ids)
        if not splits:
            raise VocabularyError(f"merges[{merge}] makes {_short(token)}, which is no two earlier tokens")
        trained = next((pair for pair in splits if proper[pair[0]] and proper[pair[1]] and _stay_apart(*pair, pairs, made)), None)
        pair = trained or splits[0]
        proper.append(trained is not None)
        ids[token] = made[pair] = N_SYMBOLS + merge
        pairs.append(pair)
        lengths.add(len(token))
    return np.array(pairs, np.uint32).reshape(-1, 2)


def _stay_apart(left: int, right: int, pairs: list[tuple[int, int]], made: dict[tuple[int, int], int]) -> bool:
    """Whether no earlier merge joins the end of `left` with the start of `right` while both are being built; they are un-merged, latest first."""
    left_parent = right_parent = N_SYMBOLS + len(pairs)
    while True:
        crossing = made.get((left, right))
        if crossing is not None and crossing < left_parent and crossing <= right_parent:  # of equal rank the leftmost is merged first
            return False
        if max(left, right) < N_SYMBOLS:
            return True
        if left > right:
            left_parent, left = left, pairs[left - N_SYMBOLS][1]
        else:
            right_parent, right = right, pairs[right - N_SYMBOLS][0]


def longest_match(symbols: bytes, tokens: Sequence[bytes]) -> list[int]:
    """ECG-Byte's rule for any strings, pairs of earlier ones or not: at each position the longest token, else the byte; token i has id 256 + i.

    In Python and for a few strings; `Tokenizer.encode_symbols` does the same at speed. Of equal strings the last counts.
    """
    ids = {token: N_SYMBOLS + i for i, token in enumerate(tokens)}
    longest, at, out = max(map(len, tokens), default=1), 0, []
    while at < len(symbols):
        stop = next((stop for stop in range(min(at + longest, len(symbols)), at, -1) if symbols[at:stop] in ids), at + 1)
        out.append(ids.get(symbols[at:stop], symbols[at]))
        at = stop
    return out


def _from_pickle(content: bytes) -> tuple[Any, Any]:
    n_opcodes = 0
    try:
        for opcode, argument, at in pickletools.genops(content):
            n_opcodes += 1
            if opcode.name not in _PLAIN:
                what = f" ({argument})" if argument is not None else ""
                raise FileFormatError(f"byte {at} of the pickle is {opcode.name}{what[:80]}, only plain values are read")
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= n_opcodes:
                raise FileFormatError(f"byte {at} of the pickle numbers a value {argument} where it has {n_opcodes}: the file is altered")
    except FileFormatError:
        raise
    except (ValueError, IndexError, OverflowError) as error:
        raise FileFormatError(f"not a whole pickle ({error}): the file is truncated or altered") from None
    try:
        loaded = _PlainUnpickler(io.BytesIO(content)).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise FileFormatError(f"the pickle cannot be read ({error}): the file is altered") from None
    if not isinstance(loaded, tuple) or len(loaded) != 2:
        raise FileFormatError(f"the pickle holds a {type(loaded).__name__}, a published tokenizer a pair (vocab, merges)")
    return loaded


def _from_json(content: bytes) -> tuple[Any, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"not JSON ({error}): the file is truncated or altered") from None
    if not isinstance(values, dict) or set(values) != {"vocab", "merges"} or not isinstance(values["vocab"], dict):
        raise FileFormatError("the file must hold an object of 'vocab' and 'merges'")
    if bad := [key for key in values["vocab"] if not (key.isascii() and key.isdigit() and len(key) < 10)]:
        raise FileFormatError(f"vocab has the key {_short(bad[0])}, which is no id")
    return {int(key): text for key, text in values["vocab"].items()}, values["merges"]


def _checked(vocab: Any, merges: Any) -> list[bytes]:
    """The tokens' strings in order, once both parts of the file say the same."""
    if type(vocab) is not dict or type(merges) is not list:
        raise FileFormatError(f"vocab must be a dict and merges a list, got {type(vocab).__name__} and {type(merges).__name__}")
    tokens: list[bytes] = []
    total = 0
    for at, entry in enumerate(merges):
        if not (isinstance(entry, (tuple, list)) and len(entry) == 2 and type(entry[0]) is list and type(entry[1]) is int):
            raise FileFormatError(f"merges[{at}] is {_short(entry)}, not a list of bytes and an id")
        symbols, id = entry
        if id != N_SYMBOLS + at:
            raise FileFormatError(f"merges[{at}] has id {id}, in order it is {N_SYMBOLS + at}")
        if not all(type(symbol) is int and 0 <= symbol < N_SYMBOLS for symbol in symbols):
            raise FileFormatError(f"merges[{at}] holds what is no byte: {_short(symbols)}")
        if len(symbols) < 2:
            raise FileFormatError(f"merges[{at}] is {_short(symbols)}, a token has two bytes or more")
        if (total := total + len(symbols)) > MAX_SYMBOLS:
            raise FileFormatError(f"merges[{at}]: the tokens up to it stand for more than {MAX_SYMBOLS} symbols")
        tokens.append(bytes(symbols))
    n = N_SYMBOLS + len(tokens)
    if len(vocab) != n:
        raise FileFormatError(f"vocab has {len(vocab)} entries, {len(tokens)} merges make {n}")
    for id in range(n):
        text = "".join(chr(symbol) if symbol < 128 else f"<{symbol}>" for symbol in (tokens[id - N_SYMBOLS] if id >= N_SYMBOLS else bytes([id])))
        if vocab.get(id) != text:
            raise FileFormatError(f"vocab[{id}] is {_short(vocab.get(id))}, the merges say {_short(text)}")
    return tokens


def _short(value: object) -> str:
    return reprlib.repr(value)
