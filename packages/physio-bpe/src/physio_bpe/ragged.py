"""Sequences of unequal length as one array and its borders: sequence i is `ids[offsets[i] : offsets[i + 1]]`.

Shape letters: N sequences, L positions of the longest or the length asked for.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint32]
Offsets = NDArray[np.int64]
Side = Literal["right", "left"]


class Framed(NamedTuple):
    """Sequences with bos and eos, cut to a length, and what the cut took: tokens per sequence, and which of all given tokens stayed."""

    ids: Ids
    offsets: Offsets
    n_cut: NDArray[np.int64]
    kept: NDArray[np.bool_]


def frame(ids: Ids, offsets: Offsets, *, bos: int | None = None, eos: int | None = None, max_length: int | None = None) -> Framed:
    """Put `bos` before and `eos` after each sequence; what exceeds `max_length`, both included, leaves the end before `eos`.

    ValueError for a `max_length` that bos and eos alone fill.
    """
    n_special = (bos is not None) + (eos is not None)
    lengths_N = np.diff(offsets)
    room_N = lengths_N
    if max_length is not None:
        if max_length <= n_special:
            raise ValueError(f"max_length must leave room for a token beside {n_special} special ones, got {max_length}")
        room_N = np.minimum(lengths_N, max_length - n_special)
    n_cut_N = lengths_N - room_N
    if not n_special and not n_cut_N.any():
        return Framed(ids, offsets, n_cut_N, np.ones(len(ids), bool))
    position = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths_N)
    kept = position < np.repeat(room_N, lengths_N)
    new_offsets = np.concatenate([[0], np.cumsum(room_N + n_special)]).astype(np.int64)
    framed = np.empty(new_offsets[-1], np.uint32)
    shift_N = new_offsets[:-1] + (bos is not None)
    framed[(position + np.repeat(shift_N, lengths_N))[kept]] = ids[kept]
    if bos is not None:
        framed[new_offsets[:-1]] = bos
    if eos is not None:
        framed[new_offsets[1:] - 1] = eos
    return Framed(framed, new_offsets, n_cut_N, kept)


def pad(ids: Ids, offsets: Offsets, pad_id: int, *, length: int | None = None, side: Side = "right") -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Sequences as (N, L) int64 filled with `pad_id`, and (N, L) bool, True at real tokens. L is the longest, or `length`.

    ValueError where a sequence is longer than `length`: cut when encoding, where the cut is reported.
    """
    if side not in ("right", "left"):
        raise ValueError(f"side must be 'right' or 'left', got {side!r}")
    lengths_N = np.diff(offsets)
    longest = int(lengths_N.max(initial=0))
    if length is None:
        length = longest
    elif longest > length:
        raise ValueError(f"length={length} is shorter than sequence {int(lengths_N.argmax())} with {longest} tokens; encode with max_length={length}")
    position_L = np.arange(length)
    real_NL = position_L < lengths_N[:, None] if side == "right" else position_L >= length - lengths_N[:, None]
    padded_NL = np.full((len(lengths_N), length), pad_id, np.int64)
    padded_NL[real_NL] = ids
    return padded_NL, real_NL


def total_per_sequence(values: NDArray[np.int64], offsets: Offsets) -> NDArray[np.int64]:
    """Sum of `values` over each sequence, (N,)."""
    running = np.concatenate([np.zeros(1, np.int64), np.cumsum(values)])
    total_N: NDArray[np.int64] = running[offsets[1:]] - running[offsets[:-1]]
    return total_N
