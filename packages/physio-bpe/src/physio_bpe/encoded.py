"""What encoding returns: ids, and everything needed to read them again or to know what was lost.

Shape letters: N records, C leads, L positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from physio_bpe.quantize import Counts, Scale
from physio_bpe.ragged import Ids, Offsets, Side, pad


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One record as ids."""

    ids: Ids  # (n,)
    scale: Scale  # low and span, (C,) each
    n_samples: int  # samples per lead that went in
    n_clipped: Counts  # (C,) samples outside the scale
    n_filled: Counts  # (C,) samples that were not finite and were replaced
    n_cut_tokens: int  # tokens beyond max_length
    n_cut_symbols: int  # symbols (samples of all leads) that those stood for

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_leads(self) -> int:
        return len(self.n_clipped)


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedBatch:
    """Several records as ids, ragged: record i has `ids[offsets[i] : offsets[i + 1]]`; `batch[i]` is it as `Encoded`."""

    ids: Ids
    offsets: Offsets  # (N + 1,)
    scale: Scale  # low and span, (N, C) each
    n_samples: NDArray[np.int64]  # (N,)
    n_clipped: Counts  # (N, C)
    n_filled: Counts  # (N, C)
    n_cut_tokens: Counts  # (N,)
    n_cut_symbols: Counts  # (N,)
    pad_id: int | None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[Encoded]:
        return (self[record] for record in range(len(self)))

    def __getitem__(self, record: int) -> Encoded:
        if not -len(self) <= record < len(self):
            raise IndexError(f"record {record} of {len(self)}")
        record %= len(self)
        return Encoded(
            ids=self.ids[self.offsets[record] : self.offsets[record + 1]],
            scale=Scale(self.scale.low[record], self.scale.span[record]),
            n_samples=int(self.n_samples[record]),
            n_clipped=self.n_clipped[record],
            n_filled=self.n_filled[record],
            n_cut_tokens=int(self.n_cut_tokens[record]),
            n_cut_symbols=int(self.n_cut_symbols[record]),
        )

    def padded(self, length: int | None = None, *, side: Side = "right") -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Ids (N, L) int64 filled with the tokenizer's pad, and (N, L) bool, True at real tokens. L is the longest record, or `length`.

        ValueError where a record is longer than `length` (cut with `max_length` when encoding, which reports it) or there is no pad token.
        """
        if self.pad_id is None:
            raise ValueError("the tokenizer has no special token 'pad'; make it with one")
        return pad(self.ids, self.offsets, self.pad_id, length=length, side=side)
