"""Learning merges from signals: quantise, lay out, count pairs, join the most frequent one, again.

The highest count wins, then the smallest (left, right) pair; overlapping occurrences count; nothing is joined across a segment's border. The
result is the same for any number of threads and any division of the records into arrays.
Shape letters: N records, C leads, T samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray

from physio_bpe._core import Trainer
from physio_bpe.errors import SignalError
from physio_bpe.layout import Layout, check_layout, flatten
from physio_bpe.quantize import ECG_BYTE, Quantizer, Symbols, quantize
from physio_bpe.ragged import Offsets
from physio_bpe.tokenizer import SPECIAL_TOKENS, Mode, Tokenizer, check_threads

Progress = Callable[[int, int], object]
BLOCK = 1 << 22  # symbols handed to the trainer at a time: a batch is never held twice


def train(
    signals: NDArray[np.generic] | Iterable[ArrayLike],
    n_merges: int,
    *,
    quantizer: Quantizer = ECG_BYTE,
    layout: Layout = "lead_major",
    mode: Mode = "bpe",
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS,
    weights: Iterable[int] | None = None,
    n_threads: int = 1,
    progress: Progress | None = None,
) -> Tokenizer:
    """Train a tokenizer on a batch (N, C, T), or on an iterable of records (C, T) and batches, read once and not kept.

    `weights` counts record i as often as its i-th whole number says. `progress(done, total)` is called with the number of merges; Ctrl-C
    stops. Fewer merges come out where no pair is left to join. SignalError for a corpus without records and for samples that are not finite
    (record numbers count from the start of their array).
    """
    check_layout(layout)
    arrays = [signals] if isinstance(signals, np.ndarray) else signals
    segments = _segments(arrays, quantizer, layout, None if weights is None else iter(weights))
    merges, corpus_sha256 = _learned(segments, n_merges, n_threads, progress)
    return Tokenizer(merges=merges, quantizer=quantizer, layout=layout, mode=mode, special_tokens=special_tokens, corpus_sha256=corpus_sha256)


def train_symbols(
    segments: Iterable[bytes | Symbols],
    n_merges: int,
    *,
    quantizer: Quantizer = ECG_BYTE,
    layout: Layout = "lead_major",
    mode: Mode = "bpe",
    special_tokens: tuple[str, ...] = SPECIAL_TOKENS,
    weights: Iterable[int] | None = None,
    n_threads: int = 1,
    progress: Progress | None = None,
) -> Tokenizer:
    """As `train`, on lines of symbols that exist already, one segment each; `quantizer` and `layout` say how they were made."""
    merges, corpus_sha256 = _learned(_lines(segments, None if weights is None else iter(weights)), n_merges, n_threads, progress)
    return Tokenizer(merges=merges, quantizer=quantizer, layout=layout, mode=mode, special_tokens=special_tokens, corpus_sha256=corpus_sha256)


Segments = tuple[Symbols, Offsets, NDArray[np.uint64] | None]


def _segments(arrays: Iterable[ArrayLike], quantizer: Quantizer, layout: Layout, weights: Iterator[int] | None) -> Iterator[Segments]:
    for number, array in enumerate(arrays):
        x = np.asarray(array)
        if x.ndim not in (2, 3) or 0 in x.shape:
            raise SignalError(f"array {number} must be a record (leads, samples) or a batch (records, leads, samples) with samples, got shape {x.shape}")
        x_NCT = x[None] if x.ndim == 2 else x
        step = max(1, BLOCK // (x_NCT.shape[1] * x_NCT.shape[2]))
        for start in range(0, len(x_NCT), step):
            part = x_NCT[start : start + step]
            try:
                line, borders = flatten(quantize(part, quantizer).symbols, layout)
            except SignalError as error:
                raise SignalError(f"array {number}, from its record {start} on: {error}") from None
            yield line, borders, _weights(weights, len(part), part.shape[1] if layout == "per_lead" else 1)
    _check_used(weights)


def _lines(segments: Iterable[bytes | Symbols], weights: Iterator[int] | None) -> Iterator[Segments]:
    for number, segment in enumerate(segments):
        line = segment if isinstance(segment, np.ndarray) else np.frombuffer(segment, np.uint8)
        if line.ndim != 1 or line.dtype != np.uint8:
            raise SignalError(f"segment {number} must be bytes or one line of uint8, got {line.dtype} of shape {line.shape}")
        yield np.ascontiguousarray(line), np.array([0, line.size], np.int64), _weights(weights, 1, 1)
    _check_used(weights)


def _weights(weights: Iterator[int] | None, n_records: int, n_segments_each: int) -> NDArray[np.uint64] | None:
    if weights is None:
        return None
    taken = list(islice(weights, n_records))
    if len(taken) < n_records:
        raise ValueError("weights has fewer values than there are records; give one each")
    if bad := [value for value in taken if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 1 << 63]:
        raise ValueError(f"weights must be whole numbers from 0 on, got {bad[0]!r}")
    return np.repeat(np.array(taken, np.uint64), n_segments_each)


def _check_used(weights: Iterator[int] | None) -> None:
    if weights is not None and next(weights, None) is not None:
        raise ValueError("weights has more values than there are records; give one each")


def _learned(segments: Iterable[Segments], n_merges: int, n_threads: int, progress: Progress | None) -> tuple[NDArray[np.uint32], str]:
    """Merges (M, 2) and the hash of the corpus, which does not depend on how it was divided into arrays."""
    if isinstance(n_merges, bool) or not isinstance(n_merges, (int, np.integer)) or n_merges < 0:
        raise ValueError(f"n_merges must be a whole number from 0 on, got {n_merges!r}")
    check_threads(n_threads)
    trainer = Trainer()
    symbols_hash, shape_hash, n_segments = hashlib.sha256(), hashlib.sha256(), 0
    for line, borders, weights in segments:
        trainer.push(line, borders, weights)
        symbols_hash.update(line.data)
        each = np.ones(len(borders) - 1, "<u8") if weights is None else weights.astype("<u8")
        shape_hash.update(np.stack([np.diff(borders).astype("<u8"), each], axis=1).tobytes())
        n_segments += len(borders) - 1
    if not n_segments:
        raise SignalError("there is nothing to train on: no record came")
    pairs, _ = trainer.train(int(n_merges), n_threads, progress)
    merges = np.frombuffer(pairs, np.uint32).reshape(-1, 2)
    return merges, hashlib.sha256(symbols_hash.digest() + shape_hash.digest()).hexdigest()
