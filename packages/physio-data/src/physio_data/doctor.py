"""Is a store whole, and what limits reading it on this machine: the disk, decoding, or copying in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from physio_data.manifest import file_sha256, read_manifest
from physio_data.order import BlockShuffle
from physio_data.shards import Shard, chunk_windows
from physio_data.store import Store

_BATCH = 256  # windows
_BLOCK = 1 << 22  # bytes of one sequential read
_COPY_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Health:
    """What the check of a store's files found."""

    n_shards: int
    n_bytes: int
    damaged: tuple[str, ...]  # a sentence a shard
    hash_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Rates of reading in bytes of float32 signal a second, and the slowest stage."""

    cold_bytes_per_s: float  # random batches, the shards' pages dropped from memory before
    warm_bytes_per_s: float  # the same batches again
    disk_bytes_per_s: float  # one sequential pass, pages dropped before
    copy_bytes_per_s: float  # memory to memory
    windows_per_s: float  # cold
    limit: str  # "disk", "decode" or "copy"
    advice: str


def check(path: str | Path, progress: Callable[[int, int], None] | None = None) -> Health:
    """Hash every shard of the store at `path` and open each: all that are damaged are named, not only the first.

    ValueError where there is no manifest that can be read. `progress(n_done, n_shards)` after each shard.
    """
    folder = Path(path)
    manifest, _ = read_manifest(folder)
    shape_CT = (len(manifest["channels"]), int(manifest["n_samples"]))
    damaged, n_bytes, began = [], 0, time.perf_counter()
    for number, entry in enumerate(manifest["shards"], 1):
        try:
            shard = Shard(folder, entry, shape_CT=shape_CT, dtype=manifest["dtype"], compression=manifest.get("compression", "none"))
            n_bytes += int(entry["bytes"])
            if (found := file_sha256(shard.path)) != entry["sha256"]:
                raise ValueError(f"shard {shard.path} is damaged: SHA-256 {found}, the manifest says {entry['sha256']}")
        except ValueError as error:
            damaged.append(str(error))
        if progress is not None:
            progress(number, len(manifest["shards"]))
    held = sum(int(entry["n_windows"]) for entry in manifest["shards"])
    if held != manifest["n_windows"]:
        damaged.append(f"{folder}: the shards hold {held} windows, the manifest says {manifest['n_windows']}")
    return Health(n_shards=len(manifest["shards"]), n_bytes=n_bytes, damaged=tuple(damaged), hash_bytes_per_s=n_bytes / max(time.perf_counter() - began, 1e-9))


def measure(path: str | Path, *, seconds: float = 2.0) -> Speed:
    """Time random batches of the store, cold and warm, beside a sequential pass and a copy; each for about `seconds`.

    The pages of the shards are dropped from the page cache first where the system allows it (Linux, local disks); elsewhere "cold" is warm.
    An archive is read in the order of a block shuffle, the one it is made for.
    """
    store = Store(path)
    files = [store.path / entry["file"] for entry in store.manifest["shards"]]
    window_bytes = 4 * len(store.channels) * store.n_samples
    order = np.random.default_rng(0).permutation(len(store))
    if store.compression != "none":
        order = BlockShuffle(block=chunk_windows(len(store.channels), store.n_samples, store.manifest["dtype"]))(np.arange(len(store)), 0, 0)
    _drop(files)
    disk = _sequential(files, seconds)
    _drop(files)
    cold, n_read = _random(Store(path), order, seconds)
    warm, _ = _random(Store(path), order[:n_read], seconds)  # the same rows, now in memory; a fresh store has decoded nothing
    copy = _copy(seconds)
    limit, advice = verdict(cold * window_bytes, warm * window_bytes, copy, archive=store.compression != "none", dtype=store.manifest["dtype"])
    return Speed(
        cold_bytes_per_s=cold * window_bytes,
        warm_bytes_per_s=warm * window_bytes,
        disk_bytes_per_s=disk,
        copy_bytes_per_s=copy,
        windows_per_s=cold,
        limit=limit,
        advice=advice,
    )


def verdict(cold: float, warm: float, copy: float, *, archive: bool, dtype: str) -> tuple[str, str]:
    """("disk" | "decode" | "copy", what to do), from rates in bytes of float32 signal a second.

    The disk limits where reading warm is twice as fast as cold. Otherwise decoding does in an archive or an int16 store that reaches less than
    half of a plain copy, and the copy itself in everything else.
    """
    if warm > 2 * cold:
        return "disk", "read in blocks (--shuffle blocks), keep the store on a faster disk, or make it smaller (--dtype int16)"
    if (archive or dtype == "int16") and warm < 0.5 * copy:
        return "decode", "prepare without --compression for repeated training" if archive else "prepare with --dtype float32 if the disk has room"
    return "copy", "reading is as fast as this machine's memory allows; nothing to gain here"


def _random(store: Store, order: np.ndarray, seconds: float) -> tuple[float, int]:
    """(windows a second, windows read) of random batches, one pass at most."""
    began, n = time.perf_counter(), 0
    while n < len(order) and time.perf_counter() - began < seconds:
        n += len(store.batch(order[n : n + _BATCH])["index"])
    return n / max(time.perf_counter() - began, 1e-9), n


def _sequential(files: list[Path], seconds: float) -> float:
    began, n = time.perf_counter(), 0
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while (piece := len(file.read(_BLOCK))) and time.perf_counter() - began < seconds:
                n += piece
    return n / max(time.perf_counter() - began, 1e-9)


def _copy(seconds: float) -> float:
    """Bytes a second of a copy between two arrays that no cache holds."""
    source, target = np.ones(_COPY_BYTES // 4, np.float32), np.zeros(_COPY_BYTES // 4, np.float32)
    np.copyto(target, source)
    began, n = time.perf_counter(), 0
    while n < 4 or time.perf_counter() - began < min(seconds, 0.5):
        np.copyto(target, source)
        n += 1
    return n * _COPY_BYTES / (time.perf_counter() - began)


def _drop(files: list[Path]) -> None:
    """Ask the system to forget the files' pages."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
