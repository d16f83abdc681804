"""One shard of a store: an HDF5 file with `/signal` and `/index/<column>`.

The signal is contiguous and read through a memory map; in an archive it is compressed in chunks of some windows, which are decoded whole and
kept for a while. Shape letters: N windows of the shard, B rows asked for, C channels, T samples, S = C * T.
"""

from __future__ import annotations

import math
import mmap
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from physio_data.manifest import SCHEMA, SCHEMA_PLAIN, file_sha256, sync_folder

Compression = Literal["none", "lzf", "gzip", "lz4"]

_BLOCK_BYTES = 1 << 24  # what is copied at once while a shard is written
_PAGE = 4096
_SHARD_BYTES = 1 << 29  # about half a gigabyte: most stores are one shard, the fastest to read
_CHUNK_BYTES = 1 << 18  # of an archive, before compression: decoded whole, in the processor's cache
_CHUNKS_KEPT = 64  # decoded chunks a shard keeps: what a pool of a block shuffle needs


def write_shard(path: Path, signal_NCT: np.ndarray, columns: Mapping[str, np.ndarray], *, dtype: str, compression: Compression = "none") -> dict:
    """Write one shard atomically and return its manifest entry {file, n_windows, bytes, sha256}.

    `signal_NCT` is float32 (a memory map is read block by block); `dtype` "int16" stores each window and channel as 16-bit integers with
    `/scale` and `/offset` (N, C) float32, so that x = q * scale + offset, an error of at most half of range / 65534. Equal content gives
    equal bytes. With a `compression` the signal lies in chunks of `chunk_windows` windows. The temporary file is removed on any error.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # Aligned data start on a page; times are not tracked, so the bytes depend on the content only.
        with h5py.File(temporary, "w", alignment_threshold=_PAGE, alignment_interval=_PAGE) as file:
            file.attrs["schema"] = SCHEMA_PLAIN if compression == "none" else SCHEMA
            file.attrs["n_windows"] = len(signal_NCT)
            _write_signal(file, signal_NCT, dtype, compression)
            for name, values_N in columns.items():
                file.create_dataset(f"index/{name}", data=_storable(values_N))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        entry = {"file": path.name, "n_windows": len(signal_NCT), "bytes": temporary.stat().st_size, "sha256": file_sha256(temporary)}
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return entry


def _write_signal(file: h5py.File, signal_NCT: np.ndarray, dtype: str, compression: Compression) -> None:
    n, n_channels, n_samples = signal_NCT.shape
    stored = np.dtype("<i2" if dtype == "int16" else "<f4")
    chunk = min(n, chunk_windows(n_channels, n_samples, dtype))
    layout = {} if compression == "none" else {"chunks": (chunk, n_channels, n_samples), **filters(compression)}
    data = file.create_dataset("signal", shape=signal_NCT.shape, dtype=stored, **layout)
    step = chunk * max(1, _BLOCK_BYTES // (4 * chunk * n_channels * n_samples))
    if dtype == "int16":
        scale = file.create_dataset("scale", shape=(n, n_channels), dtype="<f4")
        offset = file.create_dataset("offset", shape=(n, n_channels), dtype="<f4")
    for start in range(0, n, step):
        block_NCT = signal_NCT[start : start + step]
        if dtype == "int16":
            block_NCT, scale[start : start + step], offset[start : start + step] = quantise(block_NCT)
        data[start : start + step] = block_NCT


def chunk_windows(n_channels: int, n_samples: int, dtype: str) -> int:
    """How many windows an archive decodes at once."""
    return max(1, _CHUNK_BYTES // ((2 if dtype == "int16" else 4) * n_channels * n_samples))


def filters(compression: Compression) -> dict[str, object]:
    """What h5py is told to compress with. ImportError names the extra where `lz4` (bitshuffle and LZ4) is not installed."""
    if compression == "lz4":
        return dict(_hdf5plugin().Bitshuffle(cname="lz4"))
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    return {"compression": "lzf", "shuffle": True}


def _hdf5plugin():
    try:
        import hdf5plugin
    except ImportError as error:
        raise ImportError('compression lz4 needs the package hdf5plugin: pip install "physio-data[archive]"') from error
    return hdf5plugin


def usual_windows(n_channels: int, n_samples: int) -> int:
    """How many windows a shard holds where the caller does not say."""
    return max(1, _SHARD_BYTES // (4 * n_channels * n_samples))


def quantise(x_NCT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int16 codes (N, C, T) with scale (N, C) and offset (N, C) float32; a flat channel has scale 0 and comes back exactly."""
    low_NC, high_NC = x_NCT.min(axis=-1).astype(np.float64), x_NCT.max(axis=-1).astype(np.float64)
    scale_NC = ((high_NC - low_NC) / 65534.0).astype(np.float32)
    offset_NC = ((high_NC + low_NC) / 2.0).astype(np.float32)
    step_NC1 = np.where(scale_NC > 0, scale_NC, 1.0)[..., None]
    codes = np.rint((x_NCT - offset_NC[..., None]) / step_NC1)
    return np.clip(codes, -32767, 32767).astype(np.int16), scale_NC, offset_NC


def _storable(values_N: np.ndarray) -> np.ndarray:
    """Text as fixed-length UTF-8 (no object arrays, no pickle), everything else as it is."""
    if values_N.dtype.kind != "U":
        return values_N
    encoded = np.char.encode(values_N, "utf-8")
    length = max(1, encoded.dtype.itemsize)
    return encoded.astype(h5py.string_dtype("utf-8", length))


class Shard:
    """A shard opened for reading: checked against its manifest entry, its signal mapped into memory or decoded on the first read."""

    def __init__(self, folder: Path, entry: Mapping, *, shape_CT: tuple[int, int], dtype: str, compression: Compression = "none") -> None:
        self.path = folder / entry["file"]
        self.n_windows = int(entry["n_windows"])
        self.shape = (self.n_windows, *shape_CT)
        self.dtype, self.compression = dtype, compression
        self._check_size(int(entry["bytes"]))
        self._offsets = self._locate()
        self._memory: mmap.mmap | None = None
        self._maps: dict[str, np.ndarray] = {}
        self._maps_of_columns: dict[str, np.ndarray] = {}
        self._chunked: h5py.Dataset | None = None
        self._decoded: OrderedDict[int, np.ndarray] = OrderedDict()

    def _check_size(self, expected: int) -> None:
        if not self.path.is_file():
            raise ValueError(f"the store lacks its shard {self.path}; restore it or prepare the store again")
        size = self.path.stat().st_size
        if size != expected:
            raise ValueError(f"shard {self.path} is damaged: {size} bytes, the manifest says {expected}; restore it or prepare the store again")

    def _locate(self) -> dict[str, int]:
        names = ("signal", "scale", "offset") if self.dtype == "int16" else ("signal",)
        names = names if self.compression == "none" else names[1:]
        try:
            with h5py.File(self.path, "r") as file:
                schema, n_windows, shape = int(file.attrs["schema"]), int(file.attrs["n_windows"]), file["signal"].shape
                stored = file["signal"].dtype
                offsets = {name: file[name].id.get_offset() for name in names}
        except (OSError, KeyError, RuntimeError) as error:
            raise ValueError(f"shard {self.path} is damaged: {error}; restore it or prepare the store again") from error
        if schema > SCHEMA:
            raise ValueError(f"shard {self.path} has schema {schema}, this physio-data reads up to {SCHEMA}: update physio-data")
        if n_windows != self.n_windows or shape != self.shape or stored != np.dtype("<i2" if self.dtype == "int16" else "<f4"):
            raise ValueError(
                f"shard {self.path} is damaged: it holds {shape} {stored}, the manifest says {self.shape} {self.dtype}; restore it or prepare the store again"
            )
        if self.n_windows and None in offsets.values():
            raise ValueError(f"shard {self.path} is damaged: its signal is not contiguous; prepare the store again")
        return offsets

    def mapped(self, name: str) -> np.ndarray:
        """A memory map, one window a row: "signal" (N, C * T) as stored, "scale" and "offset" (N, C) of an int16 shard."""
        if name not in self._maps:
            dtype = "<i2" if name == "signal" and self.dtype == "int16" else "<f4"
            width = self.shape[1] * (self.shape[2] if name == "signal" else 1)
            self._maps[name] = self._view(dtype, self._offsets[name], (self.n_windows, width))
        return self._maps[name]

    def take(self, name: str, rows_B: np.ndarray, out_BS: np.ndarray, places_B: np.ndarray) -> None:
        """Write rows of a dataset to places of `out_BS`, as `mapped` names them; of an archive's signal each chunk is decoded once."""
        if name != "signal" or self.compression == "none":
            out_BS[places_B] = self.mapped(name)[rows_B]
            return
        if self.compression == "lz4":
            _hdf5plugin()  # registers its filters with HDF5
        if self._chunked is None:
            self._chunked = h5py.File(self.path, "r")["signal"]
        size = self._chunked.chunks[0]
        chunk_B = rows_B // size
        for number in np.unique(chunk_B).tolist():
            here = chunk_B == number
            out_BS[places_B[here]] = self._chunk(number, size)[rows_B[here] - number * size]

    def _chunk(self, number: int, size: int) -> np.ndarray:
        """A decoded chunk (windows, S); the ones used last are kept."""
        if number in self._decoded:
            self._decoded.move_to_end(number)
            return self._decoded[number]
        try:
            chunk_BS = self._chunked[number * size : (number + 1) * size].reshape(-1, self.shape[1] * self.shape[2])
        except OSError as error:
            raise ValueError(f"shard {self.path} is damaged at windows {number * size} ff.: {error}; restore it or prepare the store again") from error
        self._decoded[number] = chunk_BS
        if len(self._decoded) > _CHUNKS_KEPT:
            self._decoded.popitem(last=False)
        return chunk_BS

    def mapped_column(self, name: str) -> np.ndarray:
        """A column of `/index` as a read-only map, text as bytes: only what is looked at comes into memory."""
        if name not in self._maps_of_columns:
            with h5py.File(self.path, "r") as file:
                data = file[f"index/{name}"]
                offset = data.id.get_offset()
                shape, dtype, values = data.shape, data.dtype, data[()] if offset is None else None
            self._maps_of_columns[name] = self._view(dtype, offset, shape) if values is None else values
        return self._maps_of_columns[name]

    def _view(self, dtype: np.dtype | str, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        """An array over a part of the mapped file. Plain, not np.memmap, whose own indexing costs more than a short read."""
        if self._memory is None:
            with open(self.path, "rb") as file:
                self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._memory, dtype, math.prod(shape), offset).reshape(shape)

    def release(self) -> None:
        """Give back the memory of what was looked at; it stays in the system's page cache, and views stay valid."""
        if self._memory is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)

    def names(self) -> list[str]:
        """The names of the columns under `/index`, sorted."""
        found: list[str] = []
        with h5py.File(self.path, "r") as file:
            file["index"].visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        return sorted(found)

    def column(self, name: str) -> np.ndarray:
        """A column of `/index`, read from the file: (N,) or (N, ...); text as a NumPy string array."""
        with h5py.File(self.path, "r") as file:
            values_N = file[f"index/{name}"][()]
        return decoded(values_N)


def decoded(values_N: np.ndarray) -> np.ndarray:
    """Text of UTF-8 bytes, everything else as it is; of runs of equal values, the usual case, each is decoded once."""
    if values_N.dtype.kind != "S" or not len(values_N):
        return values_N.astype(np.str_) if values_N.dtype.kind == "S" else values_N
    values_N = values_N.astype(np.bytes_)
    head_N = np.concatenate([[True], values_N[1:] != values_N[:-1]])
    heads = np.char.decode(values_N[head_N], "utf-8")
    return heads if len(heads) == len(values_N) else np.repeat(heads, np.diff(np.append(np.flatnonzero(head_N), len(values_N))))
