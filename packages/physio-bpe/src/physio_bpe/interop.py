"""Hugging Face `tokenizer.json`: export and import, equal ids.

Rank order becomes a BPE model, longest match a WordPiece model without prefix (the greedy one that takes any vocabulary). Symbols are the
characters U+0000 to U+00FF. That WordPiece tries every length down from the rest of the string, so its time grows with the square of the
string: fine up to a few thousand symbols, while `Tokenizer.encode_symbols` stays linear. Writing and reading need no further package; `to_hf`
needs the extra `[hf]`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from physio_bpe.errors import FileFormatError, TokenizerError
from physio_bpe.layout import Layout
from physio_bpe.published import pairs_of
from physio_bpe.quantize import ECG_BYTE, Quantizer
from physio_bpe.serialize import write_atomic
from physio_bpe.tokenizer import N_SYMBOLS, Mode, Tokenizer

if TYPE_CHECKING:
    import tokenizers

OPEN, CLOSE = "\N{MATHEMATICAL LEFT ANGLE BRACKET}", "\N{MATHEMATICAL RIGHT ANGLE BRACKET}"  # around special tokens: no symbol is such a character
MAX_CHARS = 1 << 30  # WordPiece gives up on longer strings; effectively never


def hf_json(tokenizer: Tokenizer, mode: Mode | None = None) -> str:
    """The text of a `tokenizer.json` that gives this tokenizer's ids, by `mode` or by its default rule."""
    strings = [tokenizer.token(id).decode("latin-1") for id in range(N_SYMBOLS + tokenizer.n_merges)]
    vocab = {string: id for id, string in enumerate(strings)}
    model: dict[str, Any]
    if (mode or tokenizer.mode) == "bpe":
        merges = [[strings[left], strings[right]] for left, right in tokenizer.merges.tolist()]
        model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
        model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges}
    else:
        model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "", "max_input_chars_per_word": MAX_CHARS, "vocab": vocab}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": id, "content": f"{OPEN}{name}{CLOSE}", **flags} for name, id in tokenizer.special_ids.items()]
    values = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None, "pre_tokenizer": None}
    return json.dumps(values | {"post_processor": None, "decoder": {"type": "Fuse"}, "model": model}, ensure_ascii=False)


def save_hf(tokenizer: Tokenizer, path: str | Path, mode: Mode | None = None) -> None:
    """Write `hf_json` to a file that appears whole or not at all."""
    write_atomic(Path(path), hf_json(tokenizer, mode).encode())


def to_hf(tokenizer: Tokenizer, mode: Mode | None = None) -> tokenizers.Tokenizer:
    """The same as a `tokenizers.Tokenizer`; its `encode` takes symbols as text: `symbols.decode("latin-1")`. ImportError without the extra."""
    try:
        import tokenizers
    except ImportError:
        raise ImportError('tokenizers is not installed; pip install "physio-bpe[hf]"') from None
    return tokenizers.Tokenizer.from_str(hf_json(tokenizer, mode))


def load_hf(path: str | Path, *, quantizer: Quantizer = ECG_BYTE, layout: Layout = "lead_major", renumber: bool = False) -> Tokenizer:
    """Read a `tokenizer.json`; `from_hf_json` says what it takes. Errors name the file; OSError where there is none."""
    try:
        return from_hf_json(Path(path).read_bytes(), quantizer=quantizer, layout=layout, renumber=renumber)
    except TokenizerError as error:
        raise type(error)(f"{path}: {error}") from None


def from_hf_json(text: str | bytes, *, quantizer: Quantizer = ECG_BYTE, layout: Layout = "lead_major", renumber: bool = False) -> Tokenizer:
    """The tokenizer of a `tokenizer.json` with a BPE model, or with a WordPiece model without prefix; such a file knows no quantizer or layout.

    Ids must be as here: the character U+00XX has id 0xXX, merge i makes id 256 + i, special tokens follow. A BPE file of another numbering is
    taken with `renumber=True`: same merges, our ids, and special tokens of our default. FileFormatError names what does not fit.
    """
    values = _object(text)
    model = values.get("model")
    if not isinstance(model, dict) or not isinstance(vocab := model.get("vocab"), dict) or not all(type(id) is int for id in vocab.values()):
        raise FileFormatError("key 'model' must hold a 'vocab' of strings and ids")
    for key in ("normalizer", "pre_tokenizer", "post_processor"):
        if values.get(key) is not None:
            raise FileFormatError(f"key {key!r} changes or divides the text before merging, which has no counterpart here")
    if model.get("type") == "BPE":
        tokens, merges, mode = _bpe_parts(model)
        strings = [_bytes(token) for token in tokens]
    elif model.get("type") == "WordPiece" and model.get("continuing_subword_prefix") == "":
        strings = [_bytes(token) for token, id in sorted(vocab.items(), key=lambda item: item[1]) if id >= N_SYMBOLS]
        merges, mode = pairs_of(strings), "longest"
    else:
        raise FileFormatError(f"key 'model' is of type {model.get('type')!r}: BPE, or WordPiece with an empty prefix, is read")
    if renumber and mode == "bpe":
        return Tokenizer(merges=merges, quantizer=quantizer, layout=layout, mode="bpe")
    _check_numbering(vocab, strings)
    names = _special_names(values.get("added_tokens") or [], N_SYMBOLS + len(strings))
    return Tokenizer(merges=merges, quantizer=quantizer, layout=layout, mode=mode, special_tokens=names)  # type: ignore[arg-type]


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"not JSON ({error}): the file is truncated or altered") from None
    if not isinstance(values, dict):
        raise FileFormatError(f"the file holds a {type(values).__name__}, a tokenizer.json an object")
    return values


def _bpe_parts(model: dict[str, Any]) -> tuple[list[str], np.ndarray, str]:
    """Strings that the merges make, in order, and the merges as pairs of our ids."""
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        if model.get(key):
            raise FileFormatError(f"key 'model.{key}' is {model[key]!r}, which has no counterpart here")
    if not isinstance(model.get("merges"), list):
        raise FileFormatError("key 'model.merges' must be a list of pairs")
    ids = {chr(symbol): symbol for symbol in range(N_SYMBOLS)}
    tokens: list[str] = []
    pairs: list[tuple[int, int]] = []
    for at, entry in enumerate(model["merges"]):
        parts = entry.split(" ") if isinstance(entry, str) else entry  # files before 2024 hold "left right"
        if not (isinstance(parts, list) and len(parts) == 2 and all(isinstance(part, str) for part in parts)):
            raise FileFormatError(f"model.merges[{at}] is no pair of strings")
        if unknown := [part for part in parts if part not in ids]:
            raise FileFormatError(f"model.merges[{at}] names {unknown[0]!r}, which is neither a character up to U+00FF nor made by a merge before")
        token = parts[0] + parts[1]
        if token in ids:
            raise FileFormatError(f"model.merges[{at}] makes {token!r}, which an earlier merge makes already")
        pairs.append((ids[parts[0]], ids[parts[1]]))
        ids[token] = N_SYMBOLS + at
        tokens.append(token)
    return tokens, np.array(pairs, np.uint32).reshape(-1, 2), "bpe"


def _bytes(token: str) -> bytes:
    try:
        return token.encode("latin-1")
    except UnicodeEncodeError:
        raise FileFormatError(f"token {token!r} holds a character beyond U+00FF: a symbol is a byte") from None


def _check_numbering(vocab: dict[str, int], strings: list[bytes]) -> None:
    expected = {chr(symbol): symbol for symbol in range(N_SYMBOLS)} | {token.decode("latin-1"): N_SYMBOLS + i for i, token in enumerate(strings)}
    for token, id in expected.items():
        if vocab.get(token) != id:
            raise FileFormatError(f"token {token!r} has id {vocab.get(token)} where {id} is needed; renumber=True takes a BPE file of another numbering")
    if extra := [token for token in vocab if token not in expected]:
        raise FileFormatError(f"token {extra[0]!r} (id {vocab[extra[0]]}) is neither a symbol nor made by a merge; renumber=True leaves such out")


def _special_names(added: list[Any], first: int) -> tuple[str, ...]:
    names: list[str] = []
    for at, entry in enumerate(added):
        if not (isinstance(entry, dict) and entry.get("id") == first + at and isinstance(entry.get("content"), str)):
            raise FileFormatError(f"added_tokens[{at}] must have id {first + at} and a content; special tokens follow the merges")
        names.append(entry["content"].removeprefix(OPEN).removesuffix(CLOSE))
    return tuple(names)
