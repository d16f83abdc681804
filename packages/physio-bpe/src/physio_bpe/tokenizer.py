"""A tokenizer: how samples become symbols, in which order, which merges join them, and which special ids follow. Frozen once made.

Ids 0-255 are single symbols (bytes), merge i makes id 256 + i, special tokens come after the merges.
Shape letters: N records, C leads, T samples, n tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from physio_bpe._core import Vocabulary
from physio_bpe.encoded import Encoded, EncodedBatch
from physio_bpe.errors import SignalError, VocabularyError
from physio_bpe.layout import Layout, Spans, check_layout, flatten, spans, unflatten
from physio_bpe.quantize import ECG_BYTE, Counts, Float, Quantizer, Scale, Symbols, dequantize, first_byte, quantize, to_plain
from physio_bpe.ragged import Ids, Offsets, frame, total_per_sequence

Mode = Literal["bpe", "longest"]
N_SYMBOLS = 256  # ids below this are single bytes
SPECIAL_TOKENS = ("pad", "bos", "eos")
MAX_THREADS = 1024
MAX_DECODED = 1 << 30  # symbols of one call: ids of long tokens declare far more than they take up
MAX_MISSING = 1 << 24  # symbols of a record that were cut off and are filled with NaN


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """Signals to ids and back. Two are equal when their files would say the same.

    `merges` (M, 2) are pairs of earlier ids in rank order. `mode` is what `encode` does unless told otherwise: "bpe" replays the merges in
    rank order, "longest" takes the longest token at each position, as ECG-Byte does. `corpus_sha256` names what it was trained on.
    Raises VocabularyError naming the merge where a pair refers to an id that is not there yet, spells an earlier token or grows beyond bounds.
    """

    merges: NDArray[np.uint32]
    quantizer: Quantizer = ECG_BYTE
    layout: Layout = "lead_major"
    mode: Mode = "bpe"
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    corpus_sha256: str | None = None
    _vocabulary: Vocabulary = field(init=False, repr=False)
    _lengths: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_layout(self.layout)
        _check_mode(self.mode)
        to_plain(self.quantizer)
        names = self.special_tokens
        if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
            raise ValueError(f"special_tokens must be a tuple of different names, got {names!r}")
        merges = _as_merges(self.merges)
        try:
            vocabulary = Vocabulary(merges)
        except ValueError as error:
            raise VocabularyError(str(error)) from None
        object.__setattr__(self, "merges", merges)
        object.__setattr__(self, "_vocabulary", vocabulary)
        lengths = np.frombuffer(vocabulary.lengths(), np.uint32).astype(np.int64)
        object.__setattr__(self, "_lengths", np.concatenate([lengths, np.zeros(len(names), np.int64)]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokenizer):
            return NotImplemented
        return (self.vocabulary_hash, self.mode, self.corpus_sha256) == (other.vocabulary_hash, other.mode, other.corpus_sha256)

    def __hash__(self) -> int:
        return hash(self.vocabulary_hash)

    def __repr__(self) -> str:
        return f"Tokenizer({self.n_merges} merges, {self.quantizer}, {self.layout}, {self.mode}, {self.vocabulary_hash[:12]})"

    def __reduce__(self) -> tuple[object, ...]:
        """Worker processes build the search structures anew."""
        return _rebuilt, (self.merges, self.quantizer, self.layout, self.mode, self.special_tokens, self.corpus_sha256)

    @property
    def n_merges(self) -> int:
        return len(self.merges)

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary a model needs: symbols, merges and special tokens."""
        return N_SYMBOLS + self.n_merges + len(self.special_tokens)

    @property
    def alphabet(self) -> bytes:
        """The symbols that signals become, level 0 first."""
        first = first_byte(self.quantizer.n_levels)
        return bytes(range(first, first + self.quantizer.n_levels))

    def special_id(self, name: str) -> int:
        """Id of a special token. ValueError for a name that there is not."""
        if name not in self.special_tokens:
            raise ValueError(f"no special token {name!r}; there are {', '.join(self.special_tokens) or 'none'}")
        return N_SYMBOLS + self.n_merges + self.special_tokens.index(name)

    @property
    def special_ids(self) -> dict[str, int]:
        return {name: self.special_id(name) for name in self.special_tokens}

    @cached_property
    def vocabulary_hash(self) -> str:
        """SHA-256 of everything that says what an id means: quantizer, layout, merges, special tokens. What a model stores to refuse another."""
        head = {"quantizer": to_plain(self.quantizer), "layout": self.layout, "special_tokens": self.special_tokens}
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        digest.update(self.merges.astype("<u4").tobytes())
        return digest.hexdigest()

    def token(self, id: int) -> bytes:
        """The symbols that an id stands for; none for a special token. VocabularyError for an id that there is not."""
        if not 0 <= id < self.n_tokens:
            raise VocabularyError(f"id {id} is not in the vocabulary of {self.n_tokens} tokens")
        return bytes(self._vocabulary.token_bytes(id)) if id < N_SYMBOLS + self.n_merges else b""

    def with_mode(self, mode: Mode) -> Tokenizer:
        """The same vocabulary with another default rule."""
        return replace(self, mode=mode)

    def encode(
        self, x_CT: ArrayLike, *, mode: Mode | None = None, scale: Scale | None = None, bos: bool = False, eos: bool = False, max_length: int | None = None
    ) -> Encoded:
        """Ids of one record (C, T), with the scale and the counts of what was clipped, filled or cut.

        `scale` replaces what the quantizer would measure. `bos` and `eos` put these special tokens around; `max_length`, both included, cuts the
        end and says so in `n_cut_tokens` and `n_cut_symbols`. SignalError for samples that are not finite (see `quantize`).
        """
        x_CT = np.asarray(x_CT)
        if x_CT.ndim != 2:
            raise SignalError(f"x_CT must be one record (leads, samples), got shape {x_CT.shape}; encode_batch takes several")
        if scale is not None:
            scale = Scale(*(np.broadcast_to(np.asarray(part, np.float32), (1, len(x_CT))) for part in scale))
        return self.encode_batch(x_CT[None], mode=mode, scale=scale, bos=bos, eos=eos, max_length=max_length)[0]

    def encode_batch(
        self,
        x: ArrayLike | Sequence[ArrayLike],
        *,
        mode: Mode | None = None,
        scale: Scale | None = None,
        bos: bool = False,
        eos: bool = False,
        max_length: int | None = None,
        n_threads: int = 1,
    ) -> EncodedBatch:
        """Ids of a batch (N, C, T), or of a list of records (C, T_i) of equal leads and unequal length, ragged: `ids` and `offsets`.

        As `encode` otherwise; the ids do not depend on `n_threads`.
        """
        records = _records(x)
        if records is None:
            x_NCT = np.asarray(x)
            if x_NCT.ndim != 3:
                raise SignalError(f"x must be a batch (records, leads, samples) or a list of records, got shape {x_NCT.shape}")
            quantized = quantize(x_NCT, self.quantizer, scale)
            line, borders = flatten(quantized.symbols, self.layout)
            scale, n_clipped_NC, n_filled_NC = quantized.scale, quantized.n_clipped, quantized.n_filled
            n_samples_N = np.full(len(x_NCT), x_NCT.shape[2], np.int64)
        else:
            line, borders, scale, n_clipped_NC, n_filled_NC, n_samples_N = self._quantized_list(records, scale)
        ids, offsets = self._encoded(line, borders, mode or self.mode, n_threads)
        if self.layout == "per_lead":
            offsets = np.ascontiguousarray(offsets[:: n_clipped_NC.shape[1]])
        framed = frame(ids, offsets, bos=self.special_id("bos") if bos else None, eos=self.special_id("eos") if eos else None, max_length=max_length)
        n_cut_symbols_N = total_per_sequence(np.where(framed.kept, 0, self._lengths[ids]), offsets)
        return EncodedBatch(
            ids=framed.ids,
            offsets=framed.offsets,
            scale=scale,
            n_samples=n_samples_N,
            n_clipped=n_clipped_NC,
            n_filled=n_filled_NC,
            n_cut_tokens=framed.n_cut,
            n_cut_symbols=n_cut_symbols_N,
            pad_id=self.special_id("pad") if "pad" in self.special_tokens else None,
        )

    def _quantized_list(self, records: Sequence[NDArray[np.generic]], scale: Scale | None) -> tuple[Symbols, Offsets, Scale, Counts, Counts, NDArray[np.int64]]:
        n_leads = len(records[0]) if records[0].ndim == 2 else 0
        lines, lengths, scales, clipped, filled = [], [], [], [], []
        for number, x_CT in enumerate(records):
            if x_CT.ndim != 2 or len(x_CT) != n_leads:
                raise SignalError(f"every record must be (leads, samples) with the {n_leads} leads of the first, got shape {x_CT.shape} at record {number}")
            given = None if scale is None else Scale(*(np.broadcast_to(part, (len(records), n_leads))[number] for part in scale))
            try:
                quantized = quantize(x_CT, self.quantizer, given)
            except SignalError as error:
                raise SignalError(f"record {number} of the list: {error}") from None
            line, borders = flatten(quantized.symbols[None], self.layout)
            lines.append(line)
            lengths.append(np.diff(borders))
            scales.append(quantized.scale)
            clipped.append(quantized.n_clipped)
            filled.append(quantized.n_filled)
        borders = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        both = Scale(np.stack([one.low for one in scales]), np.stack([one.span for one in scales]))
        n_samples_N = np.array([len(line) // n_leads for line in lines], np.int64)
        return np.concatenate(lines), borders, both, np.stack(clipped), np.stack(filled), n_samples_N

    def encode_symbols(self, symbols: str | bytes | bytearray | memoryview | Symbols, *, mode: Mode | None = None) -> Ids:
        """Ids (n,) uint32 of one line of symbols, any bytes; text stands for its UTF-8 bytes, as in ECG-Byte."""
        line = symbols if isinstance(symbols, np.ndarray) else np.frombuffer(symbols.encode() if isinstance(symbols, str) else symbols, np.uint8)
        return self.encode_segments(line, np.array([0, line.size], np.int64), mode=mode)[0]

    def encode_segments(self, symbols: Symbols, offsets: Offsets, *, mode: Mode | None = None, n_threads: int = 1) -> tuple[Ids, Offsets]:
        """Ids and their offsets of many lines of symbols, given as one array and its N + 1 borders. SignalError names a wrong border."""
        return self._encoded(symbols, offsets, mode or self.mode, n_threads)

    def _encoded(self, line: Symbols, borders: Offsets, mode: Mode, n_threads: int) -> tuple[Ids, Offsets]:
        _check_mode(mode)
        check_threads(n_threads)
        line, borders = _as_segments(line, borders, np.uint8, "symbols")
        run = self._vocabulary.encode_bpe if mode == "bpe" else self._vocabulary.encode_longest
        try:
            ids, offsets = run(line, borders, n_threads)
        except ValueError as error:
            raise SignalError(str(error)) from None
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.int64)

    def decode_symbols(self, ids: ArrayLike) -> bytes:
        """The symbols that ids stand for; special tokens stand for none.

        VocabularyError names the first id that is not in the vocabulary; SignalError refuses ids that stand for more than 2**30 symbols.
        """
        plain = self._without_special(ids)
        if (total := int(self._lengths[plain].sum())) > MAX_DECODED:
            raise SignalError(f"the ids stand for {total} symbols, one call decodes up to {MAX_DECODED}")
        symbols, _ = self._vocabulary.decode(plain, np.array([0, len(plain)], np.int64))
        return bytes(symbols)

    def decode(self, encoded: Encoded) -> Float:
        """The signal (C, T) float32 at bin centres, in the unit of the scale; NaN where the tokens were cut off."""
        return self.decode_ids(encoded.ids, scale=encoded.scale, n_leads=encoded.n_leads, n_samples=encoded.n_samples)

    def decode_ids(self, ids: ArrayLike, *, scale: Scale, n_leads: int, n_samples: int | None = None) -> Float:
        """The signal (C, T) float32 of ids from elsewhere, a model perhaps.

        Without `n_samples` the symbols must fill all leads; with it a missing end is NaN. SignalError for symbols outside the alphabet, too many
        of them, or a scale that does not fit; VocabularyError for an id that is not in the vocabulary.
        """
        if n_leads < 1 or (n_samples is not None and n_samples < 1):
            raise SignalError(f"n_leads and n_samples must be positive, got {n_leads} and {n_samples}")
        known = int(self.lengths(ids).sum())
        missing = 0 if n_samples is None else n_leads * n_samples - known
        if missing < 0:
            raise SignalError(f"the ids stand for {known} symbols, more than {n_leads} leads of {n_samples} samples")
        if missing > MAX_MISSING:
            raise SignalError(f"{missing} symbols of {n_leads} leads of {n_samples} samples are missing, at most {MAX_MISSING} are filled")
        line = np.frombuffer(self.decode_symbols(ids), np.uint8)
        if n_samples is None:
            if not known:
                raise SignalError("the ids stand for no symbol; give n_samples for a record of which nothing is left")
            return dequantize(unflatten(line, n_leads, self.layout), self.quantizer, scale)
        filler = np.full(missing, self.alphabet[0], np.uint8)
        x_CT = dequantize(unflatten(np.concatenate([line, filler]), n_leads, self.layout), self.quantizer, scale)
        if missing:
            known_CT = unflatten((np.arange(known + missing) < known).view(np.uint8), n_leads, self.layout)
            x_CT = np.where(known_CT, x_CT, np.float32(np.nan))
        return x_CT

    def spans(self, encoded: Encoded) -> Spans:
        """Which samples of which leads each token covers (see `Spans`)."""
        return self.spans_of(encoded.ids, n_leads=encoded.n_leads, n_samples=encoded.n_samples)

    def spans_of(self, ids: ArrayLike, *, n_leads: int, n_samples: int) -> Spans:
        """As `spans`, for ids of one record from elsewhere."""
        return spans(self.lengths(ids), n_leads, n_samples, self.layout)

    def lengths(self, ids: ArrayLike) -> NDArray[np.int64]:
        """How many symbols each id stands for, 0 for special tokens. VocabularyError names the first id that is not in the vocabulary."""
        lengths: NDArray[np.int64] = self._lengths[self._checked(ids)]
        return lengths

    def _without_special(self, ids: ArrayLike) -> Ids:
        checked = self._checked(ids)
        return np.ascontiguousarray(checked[checked < N_SYMBOLS + self.n_merges], np.uint32)

    def _checked(self, ids: ArrayLike) -> NDArray[np.integer]:
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise VocabularyError(f"ids must be one sequence of whole numbers, got {array.dtype} of shape {array.shape}")
        if not array.size:
            return array.astype(np.uint32)
        if (outside := (array < 0) | (array >= self.n_tokens)).any():
            at = int(outside.argmax())
            raise VocabularyError(f"ids[{at}] is {array[at]}, the vocabulary has ids 0 to {self.n_tokens - 1}")
        return array


def _rebuilt(
    merges: NDArray[np.uint32], quantizer: Quantizer, layout: Layout, mode: Mode, special_tokens: tuple[str, ...], corpus_sha256: str | None
) -> Tokenizer:
    return Tokenizer(merges=merges, quantizer=quantizer, layout=layout, mode=mode, special_tokens=special_tokens, corpus_sha256=corpus_sha256)


def _as_merges(merges: ArrayLike) -> NDArray[np.uint32]:
    """Pairs as a read-only (M, 2) uint32 array. VocabularyError names what is none."""
    array = np.asarray(merges)
    if array.size == 0:
        array = np.zeros((0, 2), np.uint32)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        raise VocabularyError(f"merges must be pairs of whole numbers (M, 2), got {array.dtype} of shape {array.shape}")
    if (outside := ((array < 0) | (array >= 1 << 32)).any(1)).any():
        at = int(outside.argmax())
        raise VocabularyError(f"merges[{at}] is {array[at].tolist()}: ids lie between 0 and {N_SYMBOLS + at - 1} there")
    pairs = np.array(array, np.uint32, order="C")
    pairs.flags.writeable = False
    return pairs


def _as_segments(values: ArrayLike, offsets: ArrayLike, dtype: type[np.uint8], what: str) -> tuple[Symbols, Offsets]:
    line, borders = np.asarray(values), np.asarray(offsets)
    if line.ndim != 1 or line.dtype != dtype:
        raise SignalError(f"{what} must be one line of {np.dtype(dtype)}, got {line.dtype} of shape {line.shape}")
    if borders.ndim != 1 or borders.dtype.kind not in "iu":
        raise SignalError(f"offsets must be one line of whole numbers, got {borders.dtype} of shape {borders.shape}")
    return np.ascontiguousarray(line), np.ascontiguousarray(borders, np.int64)


def check_threads(n_threads: int) -> None:
    """ValueError for what is no number of threads."""
    if isinstance(n_threads, bool) or not isinstance(n_threads, int) or not 1 <= n_threads <= MAX_THREADS:
        raise ValueError(f"n_threads must be a whole number from 1 to {MAX_THREADS}, got {n_threads!r}")


def _check_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")


def _records(x: ArrayLike | Sequence[ArrayLike]) -> list[NDArray[np.generic]] | None:
    """The records of a list whose shapes differ; None for what is one array."""
    if not isinstance(x, (list, tuple)) or not x:
        return None
    records = [np.asarray(record) for record in x]
    return records if len({record.shape for record in records}) > 1 else None
