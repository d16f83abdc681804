"""A tokenizer as one JSON file: versioned, complete, written whole or not at all, and refused by name where it was altered.

    {"format": "physio-bpe", "version": 1, "library": "0.1.0", "alphabet": {"first": 97, "n_levels": 26},
     "quantizer": {"name": "record_minmax", "n_levels": 26, "missing": "refuse"}, "layout": "lead_major", "mode": "bpe",
     "special_tokens": {"pad": 258, "bos": 259, "eos": 260}, "corpus_sha256": null,
     "vocabulary_hash": "...", "checksum": "...", "merges": [[109, 109], [256, 109]]}

`vocabulary_hash` covers what an id means (`Tokenizer.vocabulary_hash`), `checksum` everything else as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from physio_bpe.errors import FileFormatError, TokenizerError
from physio_bpe.quantize import first_byte, from_plain, to_plain
from physio_bpe.tokenizer import N_SYMBOLS, Tokenizer

FORMAT = "physio-bpe"
VERSION = 1
MAX_BYTES = 1 << 28  # a file beyond this is none of ours
_KINDS: dict[str, type | tuple[type, ...]] = {  # every key of the file and its type
    "format": str,
    "version": int,
    "library": str,
    "alphabet": dict,
    "quantizer": dict,
    "layout": str,
    "mode": str,
    "special_tokens": dict,
    "corpus_sha256": (str, type(None)),
    "vocabulary_hash": str,
    "checksum": str,
    "merges": list,
}


def save(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a tokenizer's file so that it appears whole or not at all; its bytes depend on the tokenizer and the library version only."""
    write_atomic(Path(path), to_json(tokenizer).encode())


def load(path: str | Path) -> Tokenizer:
    """Read a tokenizer's file.

    FileFormatError names the file and the place: truncated or altered, foreign, newer than this version, a key missing, unknown or twice;
    VocabularyError the merge that makes no token. OSError where there is no such file.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise FileFormatError(f"{path} has {size} bytes, a tokenizer's file at most {MAX_BYTES}")
    try:
        return from_json(path.read_bytes())
    except TokenizerError as error:
        raise type(error)(f"{path}: {error}") from None


def to_json(tokenizer: Tokenizer) -> str:
    """The text of a tokenizer's file."""
    n_levels = tokenizer.quantizer.n_levels
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "library": version("physio-bpe"),
        "alphabet": {"first": first_byte(n_levels), "n_levels": n_levels},
        "quantizer": to_plain(tokenizer.quantizer),
        "layout": tokenizer.layout,
        "mode": tokenizer.mode,
        "special_tokens": tokenizer.special_ids,
        "corpus_sha256": tokenizer.corpus_sha256,
        "vocabulary_hash": tokenizer.vocabulary_hash,
        "merges": tokenizer.merges.tolist(),
    }
    values["checksum"] = _checksum(values)
    merges = ",\n".join(json.dumps(pair) for pair in values["merges"])
    lines = [f"{json.dumps(key)}: {json.dumps(values[key])}" for key in _KINDS if key != "merges"]
    return "{\n" + ",\n".join(lines) + f',\n"merges": [\n{merges}\n]\n}}\n'


def from_json(text: str | bytes) -> Tokenizer:
    """The tokenizer of a file's text; errors as `load`, without the file's name."""
    values = _parsed(text)
    if values.get("format") != FORMAT:
        raise FileFormatError(f"key 'format' is {values.get('format')!r}, a tokenizer's file says {FORMAT!r}")
    if not isinstance(values.get("version"), int) or not 1 <= values["version"] <= VERSION:
        raise FileFormatError(f"key 'version' is {values.get('version')!r}, this physio-bpe reads 1 to {VERSION}; update it for a newer file")
    for key in values:
        if key not in _KINDS:
            raise FileFormatError(f"key {key!r} is unknown; there are {', '.join(_KINDS)}")
    for key, kind in _KINDS.items():
        if key not in values:
            raise FileFormatError(f"key {key!r} is missing: the file is truncated or altered")
        if not isinstance(values[key], kind) or isinstance(values[key], bool):
            raise FileFormatError(f"key {key!r} is of type {type(values[key]).__name__}: the file is altered")
    merges = _merges(values["merges"])
    try:
        quantizer = from_plain(values["quantizer"])
        tokenizer = Tokenizer(
            merges=merges,
            quantizer=quantizer,
            layout=values["layout"],
            mode=values["mode"],
            special_tokens=tuple(values["special_tokens"]),
            corpus_sha256=values["corpus_sha256"],
        )
    except TokenizerError:
        raise
    except ValueError as error:
        raise FileFormatError(str(error)) from None
    _check_consistent(values, tokenizer)
    return tokenizer


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, flush it to disk and rename it; the temporary file never outlives an error."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        values = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except FileFormatError:
        raise
    except json.JSONDecodeError as error:
        raise FileFormatError(f"not JSON at line {error.lineno}, column {error.colno} ({error.msg}): the file is truncated or altered") from None
    except UnicodeDecodeError as error:
        raise FileFormatError(f"not text at byte {error.start}: the file is altered") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise FileFormatError(f"not a tokenizer's file: {error}") from None
    except RecursionError:
        raise FileFormatError("lists or objects lie too deep: the file is altered") from None
    if not isinstance(values, dict):
        raise FileFormatError(f"the file holds a {type(values).__name__}, a tokenizer's file an object")
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise FileFormatError(f"key {twice!r} is there twice: the file is altered")
    return values


def _no_constant(name: str) -> None:
    raise FileFormatError(f"the file holds {name}, which is no JSON number")


def _merges(values: list[Any]) -> np.ndarray:
    for at, pair in enumerate(values):
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(part) is int and 0 <= part < N_SYMBOLS + at for part in pair)):
            raise FileFormatError(f"merges[{at}] is {_short(pair)}: it must be a pair of ids from 0 to {N_SYMBOLS + at - 1}")
    return np.array(values, np.uint32).reshape(-1, 2)


def _short(value: object) -> str:
    return reprlib.repr(value)


def _check_consistent(values: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    n_levels = tokenizer.quantizer.n_levels
    if values["alphabet"] != {"first": first_byte(n_levels), "n_levels": n_levels}:
        raise FileFormatError(f"key 'alphabet' is {_short(values['alphabet'])}, but {n_levels} levels are bytes from {first_byte(n_levels)} on")
    if values["special_tokens"] != tokenizer.special_ids:
        raise FileFormatError(f"key 'special_tokens' is {_short(values['special_tokens'])}, but after these merges come {tokenizer.special_ids}")
    if values["vocabulary_hash"] != tokenizer.vocabulary_hash:
        raise FileFormatError("key 'vocabulary_hash' does not belong to these merges and settings: the file is altered")
    if values["checksum"] != _checksum(values):
        raise FileFormatError("key 'checksum' does not belong to this content: the file is altered")


def _checksum(values: Mapping[str, Any]) -> str:
    content = {key: value for key, value in values.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
