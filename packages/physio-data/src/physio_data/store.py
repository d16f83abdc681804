"""Reading a store of windows: one row or a batch of rows at a time, through memory maps, from any process.

Shape letters: N windows of the store, B rows asked for, C channels, T samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from physio_data.manifest import file_sha256, read_manifest
from physio_data.remote import is_remote, local_store
from physio_data.shards import Shard, decoded

_SMALL_BYTES = 1 << 30  # of a store that may stay mapped as a whole
_MAPPED_BYTES = 1 << 26  # what random reads of a larger one may leave mapped
_FAULT_BYTES = 1 << 16  # what the system maps around one read
STORE_SHIFT = 48  # an item of several stores has index = store << 48 | row


class Columns(Mapping[str, np.ndarray]):
    """The columns of a store's index by name, each read from the shards when it is first asked for."""

    def __init__(self, names: Sequence[str], shards: Sequence[Shard]) -> None:
        self._names, self._shards = tuple(names), shards
        self._read: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(f"no index column {name!r}; there are {', '.join(self._names)}")
        if name not in self._read:
            self._read[name] = np.concatenate([shard.column(name) for shard in self._shards])
        return self._read[name]

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the column
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Store:
    """A store on disk, read only: physical units, one row per window.

    `task` names the label that items and batches carry; without it a store of one task carries that one and a store of several none.
    Opening checks sizes, shapes and versions; `verify=True` hashes every shard as well. A pickled store reopens by its path, so DataLoader
    workers may hold it. An address (`s3://bucket/folder`) is read through the copy in `cache` (default: `remote.default_cache()`).
    `channels` reads the channels under other names, one for each and in their order, where corpora name one lead differently.
    Raises ValueError for a missing, damaged or newer store, for an unknown task and for another number of names than channels.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        task: str | None = None,
        verify: bool = False,
        cache: str | Path | None = None,
        channels: Sequence[str] | None = None,
    ) -> None:
        self.path = local_store(path, cache) if is_remote(path) else Path(path).resolve()
        self.manifest, self.hash = read_manifest(self.path)
        stored = tuple(self.manifest["channels"])
        self.channels: tuple[str, ...] = stored if channels is None else tuple(channels)
        if len(self.channels) != len(stored):
            raise ValueError(f"channels must name the {len(stored)} of {self.path} ({', '.join(stored)}) in their order, got {self.channels}")
        self.units: tuple[str, ...] = tuple(self.manifest["units"])
        self.fs: float = float(self.manifest["fs"])
        self.n_samples: int = int(self.manifest["n_samples"])
        self.window_s: float = float(self.manifest["window_s"])
        self.tasks: dict[str, dict] = self.manifest["tasks"]
        self.kind: str = self.manifest.get("kind", "")
        shape_CT, dtype = (len(self.channels), self.n_samples), self.manifest["dtype"]
        self.compression: str = self.manifest.get("compression", "none")
        self._shards = [Shard(self.path, entry, shape_CT=shape_CT, dtype=dtype, compression=self.compression) for entry in self.manifest["shards"]]
        self._first_S = np.cumsum([0, *(shard.n_windows for shard in self._shards)])
        if self._first_S[-1] != self.manifest["n_windows"]:
            raise ValueError(f"{self.path} is damaged: its shards hold {self._first_S[-1]} windows, the manifest says {self.manifest['n_windows']}")
        self._maps: dict[str, list[np.ndarray]] = {}
        self._large = sum(int(entry["bytes"]) for entry in self.manifest["shards"]) > _SMALL_BYTES
        self._touched = 0
        self.index = Columns(self.manifest["columns"], self._shards)
        self.task = self._resolve_task(task)
        if verify:
            self.verify()

    def _resolve_task(self, task: str | None) -> str | None:
        if task is None:
            return next(iter(self.tasks)) if len(self.tasks) == 1 else None
        if task not in self.tasks:
            raise ValueError(f"task {task!r} is not in the store {self.path}; it has {', '.join(self.tasks) or 'none'}")
        return task

    def __getstate__(self) -> tuple[Path, str | None, tuple[str, ...]]:
        return self.path, self.task, self.channels

    def __setstate__(self, state: tuple[Path, str | None, tuple[str, ...]]) -> None:
        Store.__init__(self, state[0], task=state[1], channels=state[2])

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}: {len(self)} windows, {'+'.join(self.channels)}, {self.n_samples} samples at {self.fs:g} Hz)"

    def verify(self) -> None:
        """Hash every shard and compare with the manifest; ValueError names the first that differs."""
        for shard, entry in zip(self._shards, self.manifest["shards"], strict=True):
            if (found := file_sha256(shard.path)) != entry["sha256"]:
                raise ValueError(f"shard {shard.path} is damaged: SHA-256 {found}, the manifest says {entry['sha256']}; restore it or prepare the store again")

    def __len__(self) -> int:
        return int(self._first_S[-1])

    def rows(self, fold: str | Sequence[str] | None = None) -> np.ndarray:
        """Row numbers (n,) int64 of one fold, of several, or of the whole store (None). ValueError for a fold that has no window."""
        if fold is None:
            return np.arange(len(self), dtype=np.int64)
        folds = (fold,) if isinstance(fold, str) else tuple(fold)
        if absent := [name for name in folds if name not in self.folds]:
            raise ValueError(f"fold {absent[0]!r} has no window in {self.path}; there are {', '.join(self.folds)}")
        return self.rows_of_folds(folds)

    def rows_of_folds(self, folds: Sequence[str]) -> np.ndarray:
        """Row numbers (n,) of the folds that are there; read shard by shard, so memory is that of the answer."""
        wanted = [name.encode() for name in folds]
        found = [np.zeros(0, np.int64)]
        for shard, first in zip(self._shards, self._first_S, strict=False):
            fold_N = shard.mapped_column("fold")
            found.append(first + np.flatnonzero(np.logical_or.reduce([fold_N == name for name in wanted])))
            shard.release()
        return np.concatenate(found)

    @property
    def folds(self) -> tuple[str, ...]:
        """The folds that have windows, sorted."""
        if "folds" in self.manifest:
            return tuple(sorted(name for name, count in self.manifest["folds"].items() if count))
        return tuple(np.unique(self.index["fold"]).tolist())

    def at(self, name: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """A column of the index at some rows, (B, ...): nothing else of it is brought into memory. KeyError for an unknown column."""
        if name not in self.index:
            raise KeyError(f"no index column {name!r}; there are {', '.join(self.index)}")
        rows_B = self._checked(rows)
        maps = [shard.mapped_column(name) for shard in self._shards]
        if len(maps) == 1:
            values_B = maps[0][rows_B]
            self._note_read(values_B)
            return decoded(values_B)
        shard_B = np.searchsorted(self._first_S, rows_B, side="right") - 1
        width = max((part.dtype for part in maps), key=lambda dtype: dtype.itemsize)
        values_B = np.empty((len(rows_B), *maps[0].shape[1:]), width)
        for number in np.unique(shard_B).tolist():
            here = shard_B == number
            values_B[here] = maps[number][rows_B[here] - self._first_S[number]]
        self._note_read(values_B)
        return decoded(values_B)

    def label(self, task: str | None = None) -> np.ndarray:
        """Labels (N,) int64 (-1 unknown) or float64 (NaN unknown), (N, classes) for a multilabel task; `task` None is the store's own."""
        task = self.task if task is None else self._resolve_task(task)
        if task is None:
            raise ValueError(f"name a task: the store {self.path} has {', '.join(self.tasks) or 'none'}")
        return self.index[f"label/{task}"]

    def batch(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Windows in the order asked for: {"signal": (B, C, T) float32, "index": (B,) int64} and, where the store has them,
        "valid" (B, T) bool (only with short tails), "channel_present" (B, C) bool (only with absent channels), "label" (B, ...).
        """
        rows_B = self._checked(rows)
        batch = {"signal": self._signal(rows_B), "index": rows_B}
        if self.manifest.get("tails"):
            batch["valid"] = np.arange(self.n_samples) < self.at("n_valid", rows_B)[:, None]
        if self.manifest.get("channels_absent"):
            batch["channel_present"] = self.at("channel_present", rows_B)
        if self.task is not None:
            batch["label"] = self.at(f"label/{self.task}", rows_B)
        return batch

    def _checked(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        rows_B = np.asarray(rows)
        if rows_B.ndim != 1 or (rows_B.size and rows_B.dtype.kind not in "iu"):
            raise ValueError(f"rows must be a sequence of whole row numbers, got shape {rows_B.shape}, dtype {rows_B.dtype}")
        rows_B = rows_B.astype(np.int64)
        if rows_B.size and (rows_B.min() < 0 or rows_B.max() >= len(self)):
            raise IndexError(f"rows must lie in 0 ... {len(self) - 1}, got {rows_B.min()} ... {rows_B.max()}")
        return rows_B

    def _signal(self, rows_B: np.ndarray) -> np.ndarray:
        shape_BCT = (len(rows_B), len(self.channels), self.n_samples)
        stored_BS = self._gathered("signal", rows_B)
        self._note_read(stored_BS)
        if stored_BS.dtype == np.float32:
            return stored_BS.reshape(shape_BCT)
        signal_BCT = stored_BS.reshape(shape_BCT) * self._gathered("scale", rows_B)[..., None]
        signal_BCT += self._gathered("offset", rows_B)[..., None]
        return signal_BCT

    def _note_read(self, values_B: np.ndarray) -> None:
        """Keep the resident memory of a large store bounded: what was mapped is given back now and then."""
        if not self._large:
            return
        self._touched += max(values_B.nbytes, len(values_B) * _FAULT_BYTES)
        if self._touched > _MAPPED_BYTES:
            self._touched = 0
            for shard in self._shards:
                shard.release()

    def _gathered(self, name: str, rows_B: np.ndarray) -> np.ndarray:
        """Rows of a dataset, in the order asked for; every sample of a mapped one is copied once."""
        if self.compression != "none" and name == "signal":
            return self._unpacked(rows_B)
        maps = self._maps.setdefault(name, [])
        if not maps:
            maps.extend(shard.mapped(name) for shard in self._shards)
        out_BS = np.empty((len(rows_B), maps[0].shape[1]), maps[0].dtype)
        if len(maps) == 1:  # the rows are checked; any mode but "raise" lets NumPy write straight into `out`
            return np.take(maps[0], rows_B, axis=0, out=out_BS, mode="clip")
        shard_B = np.searchsorted(self._first_S, rows_B, side="right") - 1
        local_B = rows_B - self._first_S[shard_B]
        for place, (shard, row) in enumerate(zip(shard_B.tolist(), local_B.tolist(), strict=True)):
            out_BS[place] = maps[shard][row]
        return out_BS

    def _unpacked(self, rows_B: np.ndarray) -> np.ndarray:
        """Rows (B, S) of an archive's signal."""
        out_BS = np.empty((len(rows_B), len(self.channels) * self.n_samples), np.int16 if self.manifest["dtype"] == "int16" else np.float32)
        shard_B = np.searchsorted(self._first_S, rows_B, side="right") - 1
        for number in np.unique(shard_B).tolist():
            places = np.flatnonzero(shard_B == number)
            self._shards[number].take("signal", rows_B[places] - self._first_S[number], out_BS, places)
        return out_BS

    def __getitem__(self, row: int) -> dict:
        """One item: {"signal": (C, T) float32, "index": int, "subject": str} and label, valid, channel_present as in `batch`."""
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict]:
        """Items of several rows, read together (PyTorch's loader calls this)."""
        batch = self.batch(rows)
        subject_B = self.at("subject", batch["index"])
        items = [{key: values[i] for key, values in batch.items()} for i in range(len(batch["index"]))]
        for item, subject in zip(items, subject_B.tolist(), strict=True):
            item["index"] = int(item["index"])
            item["subject"] = subject
        return items


class Stores:
    """Several stores of one input (same channels, units, rate, length, band) read as one; an index packs (store, row) as store << 48 | row.

    Positions 0 ... N-1 run through the stores in the order given: `rows`, `label` and `__getitem__` count in positions, items and batches
    carry the packed index. Raises ValueError naming what differs.
    """

    def __init__(self, stores: Sequence[Store | str | Path], *, task: str | None = None) -> None:
        self.stores = [store if isinstance(store, Store) else Store(store, task=task) for store in stores]
        if not self.stores:
            raise ValueError("stores must name at least one store, got none")
        first = self.stores[0]
        for name in ("channels", "units", "fs", "n_samples", "kind"):
            setattr(self, name, getattr(first, name))
            for other in self.stores[1:]:
                if getattr(other, name) != getattr(first, name):
                    raise ValueError(
                        f"stores differ in {name}: {first.path} has {getattr(first, name)}, {other.path} has {getattr(other, name)}; prepare alike"
                    )
        self._same_filter()
        self.window_s = first.window_s
        self._common_labels(task)
        self._first_S = np.cumsum([0, *(len(store) for store in self.stores)])
        self.index = _JoinedColumns(self.stores)

    def _same_filter(self) -> None:
        """A contract is checked once for all stores, so what was filtered, and whether it was yet, must be the same in each."""
        for other in self.stores[1:]:
            for key, usual in (("band", None), ("filter", "butterworth"), ("notch_hz", None), ("raw", None)):
                here, there = self.manifest.get(key) or usual, other.manifest.get(key) or usual
                if here != there:
                    raise ValueError(f"stores differ in {key}: {self.stores[0].path} has {here}, {other.path} has {there}; prepare alike")

    def _common_labels(self, task: str | None) -> None:
        tasks = self.stores[0].tasks
        self.tasks = {name: spec for name, spec in tasks.items() if all(store.tasks.get(name) == spec for store in self.stores)}
        if task is not None and task not in self.tasks:
            raise ValueError(f"task {task!r} is not in every store alike; common are {', '.join(self.tasks) or 'none'}")
        self.task = task if task is not None else (next(iter(self.tasks)) if len(self.tasks) == 1 else None)

    @property
    def hash(self) -> str:
        """The hashes of the stores, joined by commas."""
        return ",".join(store.hash for store in self.stores)

    @property
    def manifest(self) -> dict:
        """The manifest of the first store; what concerns the input is the same in all."""
        return self.stores[0].manifest

    def __len__(self) -> int:
        return int(self._first_S[-1])

    def rows(self, fold: str | Sequence[str] | None = None) -> np.ndarray:
        """Positions (n,) int64 of one fold, of several, or of everything; a store without the fold gives none."""
        if fold is None:
            return np.arange(len(self), dtype=np.int64)
        folds = (fold,) if isinstance(fold, str) else tuple(fold)
        found = np.concatenate([first + store.rows_of_folds(folds) for store, first in zip(self.stores, self._first_S, strict=False)])
        if not found.size:
            raise ValueError(f"no window of fold {', '.join(folds)} in {', '.join(str(store.path) for store in self.stores)}")
        return found

    @property
    def folds(self) -> tuple[str, ...]:
        """The folds that have windows in any store, sorted."""
        return tuple(sorted({name for store in self.stores for name in store.folds}))

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many windows each store has."""
        return tuple(map(len, self.stores))

    def at(self, name: str, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """A column at some positions, as `Store.at`; `next` counts in positions."""
        positions_B = np.asarray(positions, np.int64)
        store_B = np.searchsorted(self._first_S, positions_B, side="right") - 1
        parts = []
        for number, store in enumerate(self.stores):
            here = np.flatnonzero(store_B == number)
            first = self._first_S[number]
            values = store.at(name, positions_B[here] - first)
            parts.append((here, np.where(values < 0, -1, values + first) if name == "next" else values))
        joined = np.concatenate([values for _, values in parts])
        place = np.concatenate([here for here, _ in parts])
        out_B = np.empty_like(joined)
        out_B[place] = joined
        return out_B

    def label(self, task: str | None = None) -> np.ndarray:
        """Labels (N,) over all stores, as `Store.label`."""
        task = task or self.task
        if task not in self.tasks:
            raise ValueError(f"name a task that all stores have alike: {', '.join(self.tasks) or 'none'}")
        return np.concatenate([store.label(task) for store in self.stores])

    def packed(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """The packed index (store << 48 | row) of each position."""
        positions_B = np.asarray(positions, np.int64)
        store_B = np.searchsorted(self._first_S, positions_B, side="right") - 1
        return store_B.astype(np.int64) << STORE_SHIFT | (positions_B - self._first_S[store_B])

    def batch(self, positions: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """As `Store.batch`, with packed indices; "valid" and "channel_present" are there as soon as one store has them."""
        positions_B = np.asarray(positions, np.int64)
        if positions_B.size and (positions_B.min() < 0 or positions_B.max() >= len(self)):
            raise IndexError(f"positions must lie in 0 ... {len(self) - 1}, got {positions_B.min()} ... {positions_B.max()}")
        packed_B = self.packed(positions_B)
        signal_BCT = np.empty((len(positions_B), len(self.channels), self.n_samples), np.float32)
        batch: dict[str, np.ndarray] = {"signal": signal_BCT, "index": packed_B}
        if any(store.manifest.get("tails") for store in self.stores):
            batch["valid"] = np.ones((len(positions_B), self.n_samples), bool)
        if any(store.manifest.get("channels_absent") for store in self.stores):
            batch["channel_present"] = np.ones((len(positions_B), len(self.channels)), bool)
        for number, store in enumerate(self.stores):
            places = np.flatnonzero(packed_B >> STORE_SHIFT == number)
            part = store.batch(positions_B[places] - self._first_S[number])
            for key in ("signal", "valid", "channel_present"):
                if key in part:
                    batch[key][places] = part[key]
        if self.task is not None:
            batch["label"] = self.at(f"label/{self.task}", positions_B)
        return batch

    def __getitem__(self, position: int) -> dict:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict]:
        """Items of several positions, with packed indices."""
        batch = self.batch(positions)
        subject_B = self.at("subject", positions)
        items = [{key: values[i] for key, values in batch.items()} for i in range(len(positions))]
        for item, subject in zip(items, subject_B.tolist(), strict=True):
            item["index"] = int(item["index"])
            item["subject"] = subject
        return items


class _JoinedColumns(Mapping[str, np.ndarray]):
    """The index columns that all stores have, joined; `next` counts in positions."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self._stores = stores
        self._names = tuple(name for name in stores[0].index if all(name in store.index for store in stores))
        self._read: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(f"no index column {name!r} in every store; there are {', '.join(self._names)}")
        if name not in self._read:
            first = np.cumsum([0, *(len(store) for store in self._stores)])
            parts = [store.index[name] for store in self._stores]
            if name == "next":
                parts = [np.where(part < 0, -1, part + start) for part, start in zip(parts, first[:-1], strict=True)]
            self._read[name] = np.concatenate(parts)
        return self._read[name]

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the column
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
