"""A folder of features: its layout, reading it, and the arrays that fill it block by block.

    FOLDER/z.npy        (N, D) one vector a window, or tokens.npy (N, n, D), float32 or float16
           z_aug.npy    (A, N, D) augmented views of the same windows, where there are any
           windows.npy  (N, C, T) float32, the windows themselves, where they were asked for
           index.h5     /index/<column>, row for row: subject, record, start_s, next ...
           meta.json    what made them (hashes of model, store and contract, level, pool, views) and the shape and SHA-256 of each file

The folder is filled under a hidden name beside its own and renamed when it is whole, so what bears the name can be read. Three bare
arrays z.npy, z_aug.npy and windows.npy, as other pipelines cache them, are read too; (N, D) of views counts as A = 1.
Shape letters: N windows, D features, n tokens, A views, C channels, T samples.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT, VERSION = "physio-features", 1
META, INDEX, PLAN = "meta.json", "index.h5", "plan.json"
ARRAYS = {"z": (2,), "tokens": (3,), "z_aug": (2, 3), "windows": (2, 3)}
"""Name of an array -> how many axes it may have."""


@dataclass(frozen=True)
class Features:
    """An opened folder; arrays are memory maps. Bare arrays have an empty `meta` and `index`."""

    path: Path
    meta: dict[str, Any]
    z: np.ndarray | None  # (N, D)
    tokens: np.ndarray | None  # (N, n, D)
    z_aug: np.ndarray | None  # (A, N, D)
    windows: np.ndarray | None  # (N, C, T)
    index: dict[str, np.ndarray]  # column -> (N, ...)

    def __len__(self) -> int:
        return len(self.z if self.z is not None else self.tokens)

    @property
    def n_views(self) -> int:
        return 0 if self.z_aug is None else len(self.z_aug)


def open_features(folder: Path | str, *, verify: bool = True) -> Features:
    """Open a folder of features, its shapes checked and, with `verify`, every file's SHA-256.

    ValueError where there is none, it is unfinished, of a newer version, or a file is missing, damaged or of another length.
    """
    folder = Path(folder)
    if not folder.is_dir():
        unfinished = partial_folder(folder).is_dir()
        state = "it is unfinished: give the command that makes it again, it goes on" if unfinished else "make one with embed"
        raise ValueError(f"{folder} is no folder of features: {state}")
    if (folder / PLAN).exists():
        raise ValueError(f"{folder} is unfinished: give the command that makes it again, it goes on")
    meta = _meta(folder)
    arrays = {name: _array(folder / f"{name}.npy", n_axes) for name, n_axes in ARRAYS.items()}
    if (arrays["z"] is None) == (arrays["tokens"] is None):
        raise ValueError(f"{folder} must hold z.npy or tokens.npy, one of them")
    if meta:
        _check_files(folder, meta, verify)
    index = _index(folder / INDEX) if (folder / INDEX).exists() else {}
    if arrays["z_aug"] is not None and arrays["z_aug"].ndim == 2:
        arrays["z_aug"] = arrays["z_aug"][None]
    if arrays["windows"] is not None and arrays["windows"].ndim == 2:
        arrays["windows"] = arrays["windows"][:, None]
    found = Features(path=folder, meta=meta, index=index, **arrays)
    _check_rows(found)
    return found


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    if not path.exists():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}; embed again") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(f"{path} does not say format {FORMAT!r}: this is no folder of features")
    if meta.get("version", 0) > VERSION:
        raise ValueError(f"{path} has version {meta['version']}, this physio-train reads up to {VERSION}: update physio-train")
    return meta


def _array(path: Path, n_axes: tuple[int, ...]) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; embed again") from None
    if array.ndim not in n_axes or array.dtype.kind != "f":
        raise ValueError(f"{path} must hold floats with {' or '.join(map(str, n_axes))} axes, got {array.dtype} {array.shape}")
    return array.view(np.ndarray)


def _check_files(folder: Path, meta: Mapping[str, Any], verify: bool) -> None:
    there = {path.name for path in folder.iterdir() if path.suffix in (".npy", ".h5")}
    if strange := sorted(there - meta["files"].keys()):
        raise ValueError(f"{folder} holds {', '.join(strange)}, which its {META} does not name: take it away")
    for name, said in meta["files"].items():
        path = folder / name
        if not path.exists() or path.stat().st_size != said["bytes"]:
            raise ValueError(f"{path} is {'missing' if not path.exists() else 'not as long as ' + META + ' says'}: restore it or embed again")
        if verify and sha256(path) != said["sha256"]:
            raise ValueError(f"{path} is not the file that was written (SHA-256 differs): restore it or embed again")


def _check_rows(found: Features) -> None:
    n = len(found)
    if found.meta and found.meta["n_windows"] != n:
        raise ValueError(f"{found.path} is damaged: {n} rows, {META} says {found.meta['n_windows']}")
    if found.z_aug is not None and (found.z is None or found.z_aug.shape[1:] != found.z.shape):
        raise ValueError(f"{found.path / 'z_aug.npy'} is {found.z_aug.shape}, not (A, N, D) with the (N, D) of z.npy: embed again")
    if found.windows is not None and len(found.windows) != n:
        raise ValueError(f"{found.path / 'windows.npy'} has {len(found.windows)} rows, the features {n}: embed again")
    if wrong := [name for name, values_N in found.index.items() if len(values_N) != n]:
        raise ValueError(f"{found.path / INDEX}: column {wrong[0]} has {len(found.index[wrong[0]])} rows, the features {n}: embed again")


def write_index(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """The columns under /index; text as fixed-length UTF-8. Equal content gives equal bytes."""
    with _h5py().File(path, "w") as file:
        for name, values_N in sorted(columns.items()):
            file.create_dataset(f"index/{name}", data=_storable(np.asarray(values_N)))
    flush(path)


def _storable(values_N: np.ndarray) -> np.ndarray:
    if values_N.dtype.kind != "U":
        return values_N
    encoded = np.char.encode(values_N, "utf-8")
    return encoded.astype(_h5py().string_dtype("utf-8", max(1, encoded.dtype.itemsize)))


def _index(path: Path) -> dict[str, np.ndarray]:
    h5py = _h5py()
    columns: dict[str, np.ndarray] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            values_N = item[()]
            columns[name] = np.char.decode(values_N.astype(np.bytes_), "utf-8") if values_N.dtype.kind == "S" else values_N

    try:
        with h5py.File(path, "r") as file:
            file["index"].visititems(take)
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {error}; embed again") from None
    return columns


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise ValueError("index.h5 of a folder of features needs h5py: pip install h5py") from None
    return h5py


# What fills a folder


def partial_folder(folder: Path) -> Path:
    """Where a folder is filled until it is whole: beside it, hidden."""
    return folder.with_name(f".{folder.name}.partial")


class ArrayFile:
    """A .npy file of known shape, its space taken at once, filled row by row in any order and by any number of processes."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype).newbyteorder("<")
        header = _header(shape, self.dtype)
        self._start = len(header)
        if not path.exists():
            temporary = path.with_suffix(".new")
            with temporary.open("wb") as file:
                file.write(header)
                file.flush()
                if (n_bytes := self.dtype.itemsize * math.prod(shape)) > 0:
                    os.posix_fallocate(file.fileno(), self._start, n_bytes)
                os.fsync(file.fileno())
            temporary.replace(path)
        self._file = path.open("r+b", buffering=0)

    def write(self, row: int, values: np.ndarray) -> None:
        """Put rows (B, ...) from `row` on, counted in rows of the last axes. ValueError for a shape that does not fit or numbers that are not finite."""
        row_shape = self.shape[-values.ndim + 1 :]
        if values.shape[1:] != row_shape:
            raise ValueError(f"{self.path.name} takes rows of {row_shape}, got {values.shape[1:]}")
        stored = np.ascontiguousarray(values, self.dtype)
        if not np.isfinite(stored).all():
            bad = row + int(np.argmax(~np.isfinite(stored.reshape(len(stored), -1)).all(1)))
            raise ValueError(f"{self.path.name}: row {bad} is not finite as {self.dtype}: check the window and the normalisation, or store float32")
        view, at = memoryview(stored).cast("B"), self._start + row * self.dtype.itemsize * math.prod(row_shape)
        while view:
            n_written = os.pwrite(self._file.fileno(), view, at)
            view, at = view[n_written:], at + n_written

    def flush(self) -> None:
        os.fdatasync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """What stands before the numbers of a .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def n_bytes(shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> int:
    """Bytes of arrays given as name -> (shape, dtype)."""
    return sum(np.dtype(dtype).itemsize * math.prod(shape) for shape, dtype in shapes.values())


def check_space(folder: Path, needed: int) -> None:
    """ValueError where the disk that will hold `folder` has fewer free bytes than needed."""
    home = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(home).free
    if needed > free:
        raise ValueError(
            f"the features need {needed / 1e9:.2f} GB and {home} has {free / 1e9:.2f} GB free: choose another disk, float16, fewer views, or pooled features"
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
