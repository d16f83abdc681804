"""The features folder as rows of embeddings with their index, and the triplets (z_t, z_{t+1}, z_aug) that training reads.

N rows, d width, A augmented views, B rows of a batch. Neighbours come from the index's `next` column and are checked again by
record and by time: never across a gap, a record or a rejected window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from physio_train.features import open_features

NEEDED = ("subject", "record", "start_s", "next", "fold")
CHECK_ROWS = 65536


@dataclass(frozen=True)
class Features:
    """Embeddings on disk and what is known of each row.

    `z_ND` (N, d) and `z_aug_AND` (A, N, d) are memory maps, float32 or float16; `index` holds one array (N,) per column (`subject record start_s
    next dt_next_s fold age sex label/<task>` ...), strings decoded; `meta` is meta.json. `tokens_NTD` instead of `z_ND` where tokens were embedded.
    """

    z_ND: np.ndarray
    z_aug_AND: np.ndarray | None
    index: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]
    path: Path | None = None
    windows: np.ndarray | None = None

    @classmethod
    def open(cls, folder: Path | str) -> Features:
        """Open a features folder (`physio_train.features`); nothing but the index is read. ValueError names what is missing or does not fit.

        Tokens (`tokens.npy`, (N, n, d)) are opened as N n rows: the index is repeated, `token` (N n,) counts them, and a row's `next` is the same token
        of the following window.
        """
        opened = open_features(folder, verify=False)
        if not opened.index:
            raise ValueError(f"{folder} has no index.h5, so neighbours and patients are unknown: make the folder with `embed.py`")
        if opened.z is not None:
            found = cls(opened.z, opened.z_aug, opened.index, opened.meta, opened.path, opened.windows)
        else:
            n_tokens, width = opened.tokens.shape[1:]
            found = cls(opened.tokens.reshape(-1, width), None, _per_token(opened.index, n_tokens), opened.meta, opened.path)
        found._check()
        return found

    def _check(self) -> None:
        where = self.path or "features"
        if self.z_ND.ndim != 2 or not len(self.z_ND):
            raise ValueError(f"{where}: z must be (N, d) with at least one row, got {self.z_ND.shape}")
        missing = [name for name in NEEDED if name not in self.index]
        if missing:
            raise ValueError(f"{where}: the index lacks {', '.join(missing)}; embed the store again")
        for name, column in self.index.items():
            if len(column) != len(self.z_ND):
                raise ValueError(f"{where}: index column {name} has {len(column)} rows for {len(self.z_ND)} embeddings; embed the store again")
        if self.z_aug_AND is not None and self.z_aug_AND.shape[1:] != self.z_ND.shape:
            raise ValueError(f"{where}: z_aug must be (A, {len(self.z_ND)}, {self.z_ND.shape[1]}), got {self.z_aug_AND.shape}; embed the store again")

    def __len__(self) -> int:
        return len(self.z_ND)

    @property
    def width(self) -> int:
        return self.z_ND.shape[1]

    @property
    def n_views(self) -> int:
        return 0 if self.z_aug_AND is None else len(self.z_aug_AND)

    @property
    def subject(self) -> np.ndarray:
        """(N,) str, the patient of each row."""
        return self.index["subject"]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(name.removeprefix("label/") for name in self.index if name.startswith("label/"))

    def label(self, task: str) -> np.ndarray:
        """(N,) values of a task; ValueError lists the tasks there are."""
        if f"label/{task}" not in self.index:
            raise ValueError(f"no task {task!r}: the features have {', '.join(self.tasks) or 'no labels'}")
        return self.index[f"label/{task}"]

    def rows(self, *folds: str) -> np.ndarray:
        """Row numbers (int64) of the folds named, all rows without a name. ValueError where none is left."""
        found = np.arange(len(self)) if not folds else np.flatnonzero(np.isin(self.index["fold"], folds))
        if not len(found):
            there = ", ".join(np.unique(self.index["fold"]).tolist())
            raise ValueError(f"no row in fold {' or '.join(folds)}: the features have {there}")
        return found

    def z(self, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """Embeddings (n, d) float32 of some rows, read from disk; all of them without an argument."""
        return np.asarray(self.z_ND[slice(None) if rows is None else rows], dtype=np.float32)

    def z_aug(self, view: int, rows: np.ndarray | slice | None = None) -> np.ndarray:
        """Augmented embeddings (n, d) float32 of one view. ValueError where there is none."""
        if self.z_aug_AND is None:
            raise ValueError(f"{self.path or 'features'} has no augmented views: embed again with `--views 1`, or set `--loss.stab 0`")
        return np.asarray(self.z_aug_AND[view][slice(None) if rows is None else rows], dtype=np.float32)

    def check_finite(self, rows: np.ndarray | None = None) -> None:
        """ValueError naming the first row with a value that is not finite; reads the cache once, in order."""
        rows = np.arange(len(self)) if rows is None else np.asarray(rows)
        for start in range(0, len(rows), CHECK_ROWS):
            part = rows[start : start + CHECK_ROWS]
            for what, z_nD in [("z", self.z(part)), *((f"z_aug[{a}]", self.z_aug(a, part)) for a in range(self.n_views))]:
                bad = ~np.isfinite(z_nD).all(1)
                if bad.any():
                    row = int(part[bad.argmax()])
                    raise ValueError(
                        f"{what} is not finite in row {row} (record {self.index['record'][row]}), {bad.sum()} such rows nearby: embed those windows again"
                    )


def _per_token(index: Mapping[str, np.ndarray], n_tokens: int) -> dict[str, np.ndarray]:
    out = {name: np.repeat(column, n_tokens, axis=0) for name, column in index.items()}
    token = np.tile(np.arange(n_tokens), len(index["next"]))
    out["next"] = np.where(out["next"] >= 0, out["next"] * n_tokens + token, -1)
    return out | {"token": token}


def neighbours(index: Mapping[str, np.ndarray], *, tolerance_s: float = 0.02) -> np.ndarray:
    """Row (N,) int64 of each row's follower, -1 where it has none; `next` of the index, checked.

    A follower has the same subject and record, starts one hop later (the median of all distances, within `tolerance_s`, half a sample at 25 Hz) and
    agrees with `dt_next_s`; where the index marks windows with `quality` bits, both are unmarked.
    """
    next_N = np.asarray(index["next"]).astype(np.int64)
    n = len(next_N)
    here = np.flatnonzero((next_N >= 0) & (next_N < n))
    there = next_N[here]
    dt = index["start_s"][there] - index["start_s"][here]
    good = (index["subject"][there] == index["subject"][here]) & (index["record"][there] == index["record"][here]) & (dt > 0)
    if "dt_next_s" in index:
        good &= np.abs(dt - index["dt_next_s"][here]) <= tolerance_s
    if "quality" in index and np.issubdtype(index["quality"].dtype, np.integer):
        good &= (index["quality"][here] == 0) & (index["quality"][there] == 0)
    if good.any():
        good &= np.abs(dt - np.median(dt[good])) <= tolerance_s
    out = np.full(n, -1, np.int64)
    out[here[good]] = there[good]
    return out


class RawBatch(NamedTuple):
    """Embeddings (float32, their own units) of a batch, its followers with the row each follows and the seconds between, one augmented view."""

    z_BD: np.ndarray
    next_MD: np.ndarray | None
    pair_M: np.ndarray | None
    dt_M: np.ndarray | None
    aug_BD: np.ndarray | None


class Triplets:
    """Batches of triplets over some rows, in one order that depends on `seed` and the step alone.

    Rows are shuffled in blocks, then within a pool of blocks, so reads of a memory map stay near each other; a cache of at most `in_memory_bytes` is
    read once and kept. A follower outside `rows` does not count. `rows_read` counts what was read.

    Raises ValueError where only one patient is there, where `needs_next` and no row has a follower, where `needs_aug` and there are no views, and where
    a value is not finite.
    """

    def __init__(
        self,
        features: Features,
        rows: np.ndarray,
        *,
        batch_size: int = 4096,
        seed: int = 0,
        needs_next: bool = True,
        needs_aug: bool = True,
        block_rows: int = 4096,
        pool_blocks: int = 64,
        in_memory_bytes: int = 2 << 30,
    ) -> None:
        self.features, self.rows, self.seed = features, np.asarray(rows, np.int64), seed
        self.block_rows, self.pool_blocks, self.needs_next, self.needs_aug = block_rows, pool_blocks, needs_next, needs_aug
        n_subjects = len(np.unique(features.subject[self.rows]))
        if n_subjects < 2:
            raise ValueError(f"{len(self.rows)} training windows of {n_subjects} patient(s): concepts need at least two patients; widen --use or add data")
        next_N = neighbours(features.index)
        inside = np.zeros(len(features), bool)
        inside[self.rows] = True
        self.next_N = np.where((next_N >= 0) & inside[next_N.clip(0)], next_N, -1)
        self.n_pairs = int((self.next_N[self.rows] >= 0).sum())
        if needs_next and not self.n_pairs:
            raise ValueError(
                f"{features.path or 'the features'}: no training window is followed by another without a gap, so temporal smoothness has nothing to compare: "
                "set --loss.smooth 0"
            )
        if needs_aug and not features.n_views:
            raise ValueError(f"{features.path or 'the features'} has no augmented views: embed again with `--views 1`, or set --loss.stab 0")
        self.batch_size = min(batch_size, len(self.rows))
        self.steps_per_epoch = max(1, len(self.rows) // self.batch_size)
        self.rows_read = 0
        self._order: tuple[int, np.ndarray] | None = None
        n_bytes = (1 + (features.n_views if needs_aug else 0)) * features.z_ND.nbytes
        self._z, self._aug = features.z_ND, features.z_aug_AND
        if n_bytes <= in_memory_bytes:
            self._z, self._aug = np.asarray(self._z).copy(), np.asarray(self._aug).copy() if needs_aug else None
            self.rows_read += len(features)
        self.in_memory = n_bytes <= in_memory_bytes

    def order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch in the order they are read."""
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            blocks = [self.rows[i : i + self.block_rows] for i in range(0, len(self.rows), self.block_rows)]
            blocks = [blocks[i] for i in rng.permutation(len(blocks))]
            pools = [np.concatenate(blocks[i : i + self.pool_blocks]) for i in range(0, len(blocks), self.pool_blocks)]
            self._order = epoch, np.concatenate([rng.permutation(pool) for pool in pools])
        return self._order[1]

    def at(self, step: int) -> RawBatch:
        """The batch of a step (0-based)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        rows_B = np.sort(self.order(epoch)[place * self.batch_size : (place + 1) * self.batch_size])
        z_BD = self._read(self._z, rows_B)
        next_MD = pair_M = dt_M = aug_BD = None
        if self.needs_next:
            pair_M = np.flatnonzero(self.next_N[rows_B] >= 0)
            follow_M = self.next_N[rows_B[pair_M]]
            next_MD = self._read(self._z, follow_M)
            dt_M = (self.features.index["start_s"][follow_M] - self.features.index["start_s"][rows_B[pair_M]]).astype(np.float32)
        if self.needs_aug:
            view = int(np.random.default_rng([self.seed, epoch, place]).integers(self.features.n_views))
            aug_BD = self._read(self._aug[view], rows_B)
        return RawBatch(z_BD, next_MD, pair_M, dt_M, aug_BD)

    def _read(self, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if not self.in_memory:
            self.rows_read += len(rows)
        return np.asarray(array[rows], np.float32)


def input_statistics(features: Features, rows: np.ndarray, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """(mean (d,), scale (d,)) float64 of the training rows: one s = sqrt(E||z - mean||^2) for all ("scalar"), a deviation each over sqrt(d) ("per_dim").

    Either way E||x||^2 = 1. Reads the rows twice, in order. ValueError where a value is not finite or all embeddings are alike.
    """
    rows = np.asarray(rows)
    parts = [rows[i : i + CHECK_ROWS] for i in range(0, len(rows), CHECK_ROWS)]
    features.check_finite(rows)
    mean_D = sum(features.z(part).sum(0, dtype=np.float64) for part in parts) / len(rows)
    variance_D = sum(np.square(features.z(part) - mean_D).sum(0) for part in parts) / len(rows)
    total = variance_D.sum()
    if total <= 1e-12 * max(1.0, float(np.square(mean_D).sum())):
        raise ValueError(f"all {len(rows)} training embeddings are alike: the encoder has collapsed, or the store holds one window many times")
    if norm == "none":
        return np.zeros_like(mean_D), np.ones_like(mean_D)
    if norm == "scalar":
        return mean_D, np.full_like(mean_D, np.sqrt(total))
    spread_D = np.sqrt(variance_D)
    return mean_D, np.where(spread_D > 1e-6 * spread_D.max(), spread_D, spread_D.max()) * np.sqrt(len(mean_D))
