"""Endless training batches in one global order that no number of ranks or workers changes.

Decisions taken here: `batch_size` counts the windows of one optimiser step over all ranks; an epoch is a permutation keyed
by (seed, epoch); rank r reads the r-th contiguous slice of every global batch; no batch spans two epochs, so the remainder
`n % batch_size` of an epoch (other windows each time) is left out. `one_epoch()` is for validation: every row exactly once.
Shapes: B windows of this rank, C channels, T samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from physio_train.streams import VALIDATION_EPOCH, Streams, permutation

Batch = dict[str, Any]
"""Tensors by name: `signal` (B, C, T), `index` (B,) int64, `epoch` () int64, and what the dataset adds."""
Transform = Callable[[Batch, Streams], Batch]
"""A change of a batch, random only through the streams: `(batch, streams) -> batch`."""


class Dataset(Protocol):
    """What `Batches` reads: `batch(rows) -> dict of arrays`, or else `__getitem__(row) -> dict` whose values are stacked."""

    def __getitem__(self, row: int) -> dict[str, Any]: ...


class RowOrder(Protocol):
    """An order of an epoch other than the exact shuffle, as a frozen dataclass whose fields say all: its repr goes into the saved position."""

    def length(self, rows: np.ndarray) -> int:
        """How many rows an epoch has."""

    def __call__(self, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """The rows of an epoch in order; a pure function."""


class Batches:
    """Iterator of batches; `next(batches)` never ends. `state_dict()` is a position that `load_state_dict` returns to exactly.

    `rows` are the dataset's rows to draw from (a store's train fold). `n_workers` processes read ahead; with 0 the batch is
    read when asked for. Either way batches are identical. `transform(batch, streams)` runs where the batch is read. `order` replaces
    the permutation of an epoch: a block shuffle, or a mixture in which rows may come several times.
    """

    def __init__(
        self,
        dataset: Dataset,
        rows: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        order: RowOrder | None = None,
        n_workers: int = 0,
        transform: Transform | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.rows = np.ascontiguousarray(rows, dtype=np.int64)
        if self.rows.ndim != 1 or len(self.rows) == 0:
            raise ValueError(f"rows must be a non-empty vector of row numbers, got shape {self.rows.shape}: name a fold that has windows")
        if batch_size < world_size or batch_size < 1:
            raise ValueError(f"batch_size counts the windows of all ranks and must be at least world_size={world_size}, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, got {rank}")
        if n_workers < 0:
            raise ValueError(f"n_workers must be 0 (read in this process) or more, got {n_workers}")
        if order is not None and not shuffle:
            raise ValueError("order says how an epoch is shuffled, shuffle=False that it is not: give one of the two")
        self.order = order
        self.batch_size, self.seed, self.rank, self.world_size, self.shuffle = batch_size, seed, rank, world_size, shuffle
        self._n_workers, self._pin_memory = n_workers, pin_memory
        self._reader = _Reader(dataset, transform, seed)
        self._epoch, self._batch = 0, 0
        self._source: Iterator[Batch] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in an epoch; ValueError where there are fewer windows than one batch."""
        n = (len(self.rows) if self.order is None else self.order.length(self.rows)) // self.batch_size
        if n == 0:
            raise ValueError(f"batch_size={self.batch_size} exceeds the {len(self.rows)} windows there are: lower batch_size or give more rows")
        return n

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        steps_per_epoch = self.steps_per_epoch
        if self._source is None:
            order = _Order(self.rows, self.batch_size, self.seed, self.shuffle, self.rank, self.world_size, self.order)
            self._source = self._read(order.tickets(self._epoch, self._batch))
        batch = next(self._source)
        self._batch += 1
        if self._batch == steps_per_epoch:
            self._epoch, self._batch = self._epoch + 1, 0
        return batch

    def one_epoch(self) -> Iterator[Batch]:
        """Every row once and in order, the last batch short, for validation; the training position stays where it is.

        `epoch` is the fixed validation epoch. A rank whose slice of the short batch is empty skips it. ValueError where some
        rank would get no window at all.
        """
        if len(self.rows) < self.world_size:
            raise ValueError(f"{len(self.rows)} windows cannot be shared by {self.world_size} ranks: give at least one a rank, or use fewer ranks")
        starts = range(0, len(self.rows), self.batch_size)
        pieces = (np.array_split(self.rows[i : i + self.batch_size], self.world_size)[self.rank] for i in starts)
        return (self._pin(self._reader[VALIDATION_EPOCH, rows]) for rows in pieces if len(rows))

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out, in plain JSON values; what was read ahead does not count."""
        return {"epoch": self._epoch, "batch": self._batch, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position. ValueError where rows, batch size, seed or order are not those it was saved with."""
        own = self._identity()
        different = [key for key in {**own, "order": None} if state.get(key) != own.get(key)]
        if different:
            raise ValueError(f"the saved sampler position belongs to other batches ({', '.join(different)} differ): resume with the same data and order")
        self._epoch, self._batch, self._source = int(state["epoch"]), int(state["batch"]), None

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.rows.tobytes()).hexdigest()
        identity = {"batch_size": self.batch_size, "seed": self.seed, "shuffle": self.shuffle, "n_rows": len(self.rows), "rows_sha256": digest}
        return identity if self.order is None else {**identity, "order": repr(self.order)}

    def _read(self, tickets: Iterator[tuple[int, np.ndarray]]) -> Iterator[Batch]:
        if self._n_workers == 0:
            return (self._pin(self._reader[ticket]) for ticket in tickets)
        loader = torch.utils.data.DataLoader(
            self._reader, batch_size=None, sampler=_Iterable(tickets), num_workers=self._n_workers, collate_fn=_unchanged, pin_memory=self._pin_memory
        )
        return iter(loader)

    def _pin(self, batch: Batch) -> Batch:
        return {key: value.pin_memory() if isinstance(value, Tensor) else value for key, value in batch.items()} if self._pin_memory else batch


@dataclass(frozen=True)
class _Order:
    """The global order of windows, and this rank's part of it; apart from `Batches`, so that readers ahead do not hold on to it."""

    rows: np.ndarray
    batch_size: int
    seed: int
    shuffle: bool
    rank: int
    world_size: int
    order: RowOrder | None = None

    def tickets(self, epoch: int, batch: int) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch, rows of this rank), from a position on and without end."""
        while True:
            order = self._epoch(epoch)
            for b in range(batch, len(order) // self.batch_size):
                rows = order[b * self.batch_size : (b + 1) * self.batch_size]
                yield epoch, np.array_split(rows, self.world_size)[self.rank]
            epoch, batch = epoch + 1, 0

    def _epoch(self, epoch: int) -> np.ndarray:
        if self.order is not None:
            return self.order(self.rows, self.seed, epoch)
        return self.rows[permutation(self.seed, epoch, len(self.rows))] if self.shuffle else self.rows


@dataclass(frozen=True)
class _Reader:
    """Turns a ticket (epoch, rows) into a batch of tensors; a map-style dataset to torch's loader."""

    dataset: Dataset
    transform: Transform | None
    seed: int

    def __getitem__(self, ticket: tuple[int, np.ndarray]) -> Batch:
        epoch, rows = ticket
        batch = {key: _tensor(value) for key, value in read(self.dataset, rows).items()}
        batch.setdefault("index", torch.from_numpy(rows.copy()))
        batch["epoch"] = torch.tensor(epoch, dtype=torch.int64)
        return batch if self.transform is None else self.transform(batch, Streams(self.seed, epoch))


@dataclass(frozen=True)
class _Iterable:
    tickets: Iterator[tuple[int, np.ndarray]]

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return self.tickets


def _unchanged(batch: Batch) -> Batch:
    return batch


def read(dataset: Dataset, rows: np.ndarray) -> dict[str, Any]:
    """Arrays of some rows by name: `dataset.batch(rows)` where it exists, else the stacked items."""
    if hasattr(dataset, "batch"):
        return dict(dataset.batch(rows))
    items = [dataset[int(row)] for row in rows]
    return {key: np.stack([np.asarray(item[key]) for item in items]) for key in items[0]}


def _tensor(value: Any) -> Any:
    """Numbers become tensors (a read-only array is copied first); text stays an array."""
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        return array
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """Cut `length` samples from each window at an offset of its own, `signal` and `valid` alike."""

    length: int

    def __call__(self, batch: Batch, streams: Streams) -> Batch:
        n_samples = batch["signal"].shape[-1]
        if not 1 <= self.length <= n_samples:
            raise ValueError(f"RandomCrop.length must lie in 1..{n_samples}, the window's samples, got {self.length}")
        start_B = (streams.uniform("crop", batch["index"]).double() * (n_samples - self.length + 1)).long()
        at_BT = start_B[:, None] + torch.arange(self.length)
        out = batch | {"signal": batch["signal"].gather(-1, at_BT[:, None, :].expand(-1, batch["signal"].shape[1], -1))}
        return out | {"valid": batch["valid"].gather(-1, at_BT)} if "valid" in batch else out


@dataclass(frozen=True, kw_only=True)
class AddNoise:
    """Add white Gaussian noise of standard deviation `std`, in the signal's unit."""

    std: float

    def __call__(self, batch: Batch, streams: Streams) -> Batch:
        noise_BCT = streams.normal("noise", batch["index"], tuple(batch["signal"].shape[1:]))
        return batch | {"signal": batch["signal"] + self.std * noise_BCT}
