"""Random numbers that belong to a window, not to a process: one counter-based stream per (seed, epoch, index, name).

A draw depends on nothing else, so masks, noise and crops are the same for any rank, worker and batch composition, and a
resumed run repeats them. The generator is Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011), vectorised in NumPy. Shapes: B windows, N streams, K values per stream.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

VALIDATION_EPOCH = 2**32 - 1
"""The epoch of validation draws: no training epoch reaches it, so validation masks never change and never repeat training's."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)


def philox4x32(counter_N4: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds of Philox4x32 over 128-bit counters: four uint32 words in, four uint32 words out.

    `counter_N4` is (..., 4) of any unsigned type holding 32-bit words, least significant first; `key` is two 32-bit words.
    """
    c0, c1, c2, c3 = (counter_N4[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(10):
        product_0, product_1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product_1 >> _SHIFT_32) ^ c1 ^ np.uint64(k0),
            product_1 & _LOW_32,
            (product_0 >> _SHIFT_32) ^ c3 ^ np.uint64(k1),
            product_0 & _LOW_32,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def stream_key(seed: int, name: str) -> tuple[int, int]:
    """The 64-bit Philox key of a seed and a stream's name (SHA-256, so any integer and any text will do)."""
    digest = hashlib.sha256(f"{seed}|{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def words(seed: int, epoch: int, index_N: np.ndarray, name: str, n_words: int) -> np.ndarray:
    """(N, K) uint32: the first `n_words` random words of each index's stream. `index_N` holds 64-bit integers."""
    if not 0 <= epoch <= VALIDATION_EPOCH:
        raise ValueError(f"epoch must lie in 0..2**32-1, got {epoch}")
    index_N = np.asarray(index_N)
    if index_N.ndim != 1 or index_N.dtype.kind not in "iu":
        raise ValueError(f"index must be a vector of integers, one per window, got {index_N.dtype} of shape {index_N.shape}")
    index_N = index_N.astype(np.int64, copy=False).view(np.uint64) if index_N.dtype != np.uint64 else index_N
    n_blocks = -(-n_words // 4)
    counter_NK4 = np.empty((len(index_N), n_blocks, 4), dtype=np.uint32)
    counter_NK4[..., 0] = np.arange(n_blocks, dtype=np.uint32)
    counter_NK4[..., 1] = (index_N & _LOW_32).astype(np.uint32)[:, None]
    counter_NK4[..., 2] = (index_N >> _SHIFT_32).astype(np.uint32)[:, None]
    counter_NK4[..., 3] = epoch
    return philox4x32(counter_NK4, stream_key(seed, name)).reshape(len(index_N), 4 * n_blocks)[:, :n_words]


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """(n,) int64: the shuffled order 0..n-1 of an epoch, the same on every machine and with every NumPy version."""
    n_blocks = -(-n // 2)  # a block's four words are the sort keys of two positions
    key_N = np.empty(2 * n_blocks, dtype=np.uint64)
    for start in range(0, n_blocks, 1 << 14):  # pieces that stay in the processor's cache
        block_M = np.arange(start, min(n_blocks, start + (1 << 14)), dtype=np.int64)
        word_M22 = words(seed, epoch, block_M, "shuffle", 4).reshape(-1, 2, 2).astype(np.uint64)
        key_N[2 * start : 2 * start + 2 * len(block_M)] = ((word_M22[..., 0] << _SHIFT_32) | word_M22[..., 1]).ravel()
    return np.argsort(key_N[:n], kind="stable")


@dataclass(frozen=True)
class Streams:
    """The draws of one epoch: `uniform` and `normal` give one draw per window, keyed by (seed, epoch, index, name).

    Draws land on `device`, or on the index's device where none is named. An index that lives on an accelerator is copied
    to the host, which waits for the device; `fit` therefore leaves a batch's index on the host.
    """

    seed: int
    epoch: int = 0
    device: torch.device | str | None = None

    def uniform(self, name: str, index_B: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) float32 in [0, 1), multiples of 2**-24."""
        word_BK = self._words(name, index_B, math.prod(shape))
        return self._place((word_BK >> np.uint32(8)).astype(np.float32) * np.float32(2**-24), index_B, shape)

    def normal(self, name: str, index_B: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) float32 of mean 0 and variance 1, by Box and Muller (1958) in float64."""
        n = math.prod(shape)
        word_BK = self._words(name, index_B, 2 * -(-n // 2)).astype(np.float64)
        radius_BK = np.sqrt(-2.0 * np.log((word_BK[:, 0::2] + 1.0) * 2.0**-32))
        angle_BK = word_BK[:, 1::2] * (2.0 * np.pi * 2.0**-32)
        pair_BK2 = np.stack([radius_BK * np.cos(angle_BK), radius_BK * np.sin(angle_BK)], axis=-1)
        return self._place(pair_BK2.reshape(len(word_BK), -1)[:, :n].astype(np.float32), index_B, shape)

    def _words(self, name: str, index_B: Tensor, n_words: int) -> np.ndarray:
        return words(self.seed, self.epoch, torch.as_tensor(index_B).cpu().numpy(), name, n_words)

    def _place(self, value_BK: np.ndarray, index_B: Tensor, shape: tuple[int, ...]) -> Tensor:
        value = torch.from_numpy(np.ascontiguousarray(value_BK)).reshape(len(value_BK), *shape)
        device = torch.device(self.device if self.device is not None else torch.as_tensor(index_B).device)
        return value if device.type == "cpu" else value.pin_memory().to(device, non_blocking=True)
