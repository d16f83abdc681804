"""The order in which an epoch reads windows: block shuffle for stores beyond memory, and a mixture of several stores by weight.

Without an order a loader shuffles exactly: one permutation of all rows an epoch, right for stores that the page cache holds. Where they are
read from disk, `BlockShuffle` reads runs of neighbouring rows: blocks in random order, rows at random within a pool of blocks, so that two
windows of one batch are at most `pool` blocks' reading apart while the disk and a compressed chunk are read once. An order is a pure function
of (rows, seed, epoch): nothing has to be remembered to resume. N rows that may be read, M rows of an epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def permutation(n: int, *key: int | str) -> np.ndarray:
    """(n,) int64: 0 ... n-1 in an order that the key alone decides, on every machine (sort keys from a Philox stream)."""
    return np.argsort(_stream(key).random_raw(n), kind="stable")


def _stream(key: Sequence[int | str]) -> np.random.Philox:
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], "<u8"))


@dataclass(frozen=True, kw_only=True)
class BlockShuffle:
    """Rows in blocks of `block` neighbours; the blocks are shuffled, and the rows within each `pool` of them. Every row comes once an epoch.

    `block` in rows: that of an archive's chunk, or as many as make a megabyte; one pool of `block * pool` rows is what has to fit in memory.
    """

    block: int = 256
    pool: int = 32

    def __post_init__(self) -> None:
        for name in ("block", "pool"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def length(self, rows_N: np.ndarray) -> int:
        return len(rows_N)

    def __call__(self, rows_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """(N,) the rows in the order of that epoch."""
        blocks, block_N = np.unique(rows_N // self.block, return_inverse=True)
        place_of_block = np.empty(len(blocks), np.int64)
        place_of_block[permutation(len(blocks), seed, epoch, "blocks")] = np.arange(len(blocks))
        pool_N = place_of_block[block_N] // self.pool
        return rows_N[np.lexsort((_stream((seed, epoch, "rows")).random_raw(len(rows_N)), pool_N))]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several stores read as one, each with its share of every epoch; an epoch has as many windows as rows that may be read.

    `sizes` are the stores' lengths in the order of `Stores`, `weights` their shares, in any unit. A store is read in whole passes, each a
    permutation of its own; an epoch goes on in the pass where the epoch before it stopped. So every window of a store comes equally often (to
    within one), whatever its weight, and none is left out for good. A window that comes twice in one epoch meets the same augmentation twice.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.weights) or not self.sizes:
            raise ValueError(f"weights must give one number a store, got {len(self.weights)} for {len(self.sizes)} stores")
        if not all(np.isfinite(weight) and weight > 0 for weight in self.weights):
            raise ValueError(f"weights must be positive, got {self.weights}; leave a store out instead of weighing it 0")

    def length(self, rows_N: np.ndarray) -> int:
        return len(rows_N)

    def shares(self, n: int) -> np.ndarray:
        """(stores,) int64: how many of `n` windows each store gives, by largest remainder."""
        exact = n * np.asarray(self.weights, np.float64) / sum(self.weights)
        whole = np.floor(exact).astype(np.int64)
        most = np.argsort(whole - exact, kind="stable")[: n - int(whole.sum())]
        whole[most] += 1
        return whole

    def __call__(self, rows_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """(N,) positions of that epoch, the stores mixed at random. ValueError where a store has none of the rows."""
        store_N = np.searchsorted(np.cumsum(self.sizes), rows_N, side="right")
        drawn = []
        for number, share in enumerate(self.shares(len(rows_N)).tolist()):
            own = rows_N[store_N == number]
            if not len(own):
                raise ValueError(f"store {number + 1} of {len(self.sizes)} has no window to read; name folds that it has, or leave it out")
            drawn.append(_passes(own, epoch * share, share, (seed, number)))
        order = np.concatenate(drawn)
        return order[permutation(len(order), seed, epoch, "mixture")]


def _passes(own: np.ndarray, start: int, n: int, key: tuple[int, int]) -> np.ndarray:
    """`n` rows from place `start` on of the endless row of permutations of `own`."""
    parts, stop = [np.empty(0, own.dtype)], start + n
    while start < stop:
        number, at = divmod(start, len(own))
        take = min(len(own) - at, stop - start)
        parts.append(own[permutation(len(own), *key, "pass", number)[at : at + take]])
        start += take
    return np.concatenate(parts)
