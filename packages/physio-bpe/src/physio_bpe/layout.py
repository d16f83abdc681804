"""The order in which a record's samples become one line of symbols, and the way back from a stretch of that line to leads and samples.

Shape letters: N records, C leads, T samples, n tokens.

- ``lead_major``   all of lead 0, then all of lead 1 ...: one segment per record, tokens may straddle two leads (ECG-Byte)
- ``per_lead``     the same order, but each lead is a segment of its own: no token straddles leads
- ``interleaved``  sample 0 of all leads, then sample 1 ...: one segment per record
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from physio_bpe.errors import SignalError

Layout = Literal["lead_major", "per_lead", "interleaved"]
LAYOUTS: tuple[Layout, ...] = ("lead_major", "per_lead", "interleaved")


class Spans(NamedTuple):
    """What tokens cover: row i says that token `token[i]` covers the samples `start[i]` to `stop[i]` (exclusive) of lead `lead[i]`; all int64.

    A token has one row per lead that it touches; a special token has none.
    """

    token: NDArray[np.int64]
    lead: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]


def check_layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")


def flatten(symbols_NCT: NDArray[np.uint8], layout: Layout) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Symbols of a batch (N, C, T) as one line (N*C*T,) with the segment borders: N + 1 offsets, or N*C + 1 for ``per_lead``."""
    N, C, T = symbols_NCT.shape
    line = symbols_NCT.swapaxes(1, 2) if layout == "interleaved" else symbols_NCT
    length = T if layout == "per_lead" else C * T
    return np.ascontiguousarray(line).reshape(-1), np.arange(0, N * C * T + 1, length, dtype=np.int64)


def unflatten(line: NDArray[np.uint8], n_leads: int, layout: Layout) -> NDArray[np.uint8]:
    """One record's line back as (C, T). SignalError where its length is no multiple of the number of leads."""
    if n_leads < 1 or len(line) % n_leads:
        raise SignalError(f"{len(line)} symbols are no whole number of samples of {n_leads} leads; give n_samples for a record that was cut")
    if layout == "interleaved":
        return np.ascontiguousarray(line.reshape(-1, n_leads).T)
    return line.reshape(n_leads, -1)


def spans(lengths_n: NDArray[np.int64], n_leads: int, n_samples: int, layout: Layout) -> Spans:
    """Leads and samples that each token of a record covers, from the tokens' lengths in symbols (0 for special tokens).

    SignalError where the tokens cover more than `n_leads * n_samples` symbols.
    """
    if n_leads < 1 or n_samples < 1:
        raise SignalError(f"n_leads and n_samples must be positive, got {n_leads} and {n_samples}")
    stop_n = np.cumsum(lengths_n)
    start_n = stop_n - lengths_n
    if len(stop_n) and stop_n[-1] > n_leads * n_samples:
        raise SignalError(f"the tokens cover {stop_n[-1]} symbols, more than {n_leads} leads of {n_samples} samples")
    if layout == "interleaved":
        n_rows = np.minimum(lengths_n, n_leads)
        token, nth = _rows(n_rows)
        first = start_n[token] + nth  # the first symbol of this lead in the token
        lead, start = first % n_leads, first // n_leads
        return Spans(token, lead, start, start + (stop_n[token] - first + n_leads - 1) // n_leads)
    first_lead = start_n // n_samples
    n_rows = np.where(lengths_n > 0, (stop_n - 1) // n_samples - first_lead + 1, 0)
    token, nth = _rows(n_rows)
    lead = first_lead[token] + nth
    start = np.maximum(start_n[token] - lead * n_samples, 0)
    return Spans(token, lead, start, np.minimum(stop_n[token] - lead * n_samples, n_samples))


def _rows(n_rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token of each row, and which of that token's rows it is."""
    token = np.repeat(np.arange(len(n_rows), dtype=np.int64), n_rows)
    return token, np.arange(len(token), dtype=np.int64) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
