"""The native part: buffers in, bytearrays out (`numpy.frombuffer` takes them without a copy). The GIL is released while it works.

Sequences lie one after the other in one buffer: `values[offsets[i]:offsets[i + 1]]` is sequence i. All errors about values are ValueError
and name the place; a buffer of another type or layout is a TypeError.
"""

from collections.abc import Callable
from typing import final

from typing_extensions import Buffer  # for type checkers alone; in collections.abc from Python 3.12 on

__all__ = ["Trainer", "Vocabulary", "train"]

def train(
    segments: Buffer,
    offsets: Buffer,
    n_merges: int,
    *,
    weights: Buffer | None = None,
    n_threads: int = 1,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[bytearray, bytearray]:
    """Up to `n_merges` merges of uint8 `segments` with int64 `offsets` (n + 1): ((M, 2) uint32 pairs, (M,) uint64 counts).

    Highest count first, then the smallest (left, right) pair; overlapping occurrences count; no merge crosses a segment. `weights` (n):
    integers, or floats that are whole. `progress(n_done, n_merges)` is called about twenty times a second.
    """

@final
class Trainer:
    """Collects segments piece by piece, one byte each; `train` takes and empties what was pushed."""

    def __new__(cls) -> Trainer: ...
    def push(self, segments: Buffer, offsets: Buffer, weights: Buffer | None = None) -> None: ...
    def train(self, n_merges: int, n_threads: int = 1, progress: Callable[[int, int], object] | None = None) -> tuple[bytearray, bytearray]: ...
    @property
    def n_symbols(self) -> int: ...
    @property
    def n_segments(self) -> int: ...

@final
class Vocabulary:
    """Tokens of (M, 2) uint32 `pairs`: ids below 256 are single symbols, `pairs[i]` makes id 256 + i of two earlier ids.

    Refused: an id that does not exist yet, two tokens that spell the same, tokens beyond 2^24 symbols (2^27 together).
    """

    def __new__(cls, pairs: Buffer) -> Vocabulary: ...
    def encode_bpe(self, symbols: Buffer, offsets: Buffer, n_threads: int = 1) -> tuple[bytearray, bytearray]:
        """Rank-order merging: (uint32 ids, int64 offsets)."""

    def encode_longest(self, symbols: Buffer, offsets: Buffer, n_threads: int = 1) -> tuple[bytearray, bytearray]:
        """Greedy longest match: (uint32 ids, int64 offsets). ValueError where the search tree would exceed 256 MiB."""

    def decode(self, ids: Buffer, offsets: Buffer, n_threads: int = 1) -> tuple[bytearray, bytearray]:
        """uint32 ids back to (uint8 symbols, int64 offsets)."""

    def lengths(self) -> bytearray:
        """Symbols per token, (256 + M,) uint32."""

    def token_bytes(self, id: int) -> bytes:
        """Symbols of one token."""

    def pairs(self) -> bytearray:
        """The merges, (M, 2) uint32."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def n_unreachable(self) -> int:
        """Tokens that `encode_bpe` never gives, because their own string encodes otherwise; 0 for every trained vocabulary."""
