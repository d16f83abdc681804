"""MATLAB files: versions 4, 5 and 7 through SciPy, 7.3 (HDF5) by range through h5py. Arrays have the shape that MATLAB shows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from physio_data.formats.arrays import RATE_NAMES, as_rows, oriented, settled_names, settled_rate
from physio_data.formats.hdf5 import open_h5
from physio_data.recording import Recording
from physio_data.timing import TIME_NAMES, rate_of_times

_NUMERIC = {b"double", b"single", *(f"{sign}int{bits}".encode() for sign in ("", "u") for bits in (8, 16, 32, 64))}


def open_mat(
    path: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    source_fs: float | None = None,
    subject: str | None = None,
    channels: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
    axes: str = "CT",
) -> Recording:
    """Open one numeric variable as a Recording: ``dataset`` names it (``sig``, or ``ECG.data`` inside a struct), where there are several.

    A vector is one channel; a matrix is (C, T), or (T, C) with ``axes="TC"``. The rate is a scalar variable ``fs``, ``Fs``,
    ``sampling_rate``, ..., a uniform vector called ``time``, ``timer``, ``t``, ... (s, or ms where it steps by more than 0.5), else ``source_fs`` in Hz.
    ``ValueError`` names the file and what it holds.
    """
    path = Path(path)
    shapes, scalars, times = {}, {}, {}
    for name, shape, load in variables(path):
        if int(np.prod(shape)) == 1:
            scalars[name.rpartition(".")[2].lower()] = float(np.ravel(load())[0])
        elif name.rpartition(".")[2].lower() in TIME_NAMES and max(shape) == np.prod(shape):
            times[name] = np.ravel(load()).astype(np.float64)
        elif len(shape) == 2:
            shapes[name] = shape
    if dataset is None:
        if len(shapes) != 1:
            listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise ValueError(f"{path}: {len(shapes)} numeric arrays ({listed or 'none'}); name the signal's with dataset=")
        dataset = next(iter(shapes))
    if dataset not in shapes:
        raise ValueError(f"{path}: no numeric array {dataset!r}; the file has {', '.join(shapes) or 'none'}")
    shape = shapes[dataset]
    vector = 1 in shape
    n_channels, n_samples, axes = (1, max(shape), "T") if vector else oriented(path, dataset, shape, axes)
    stated = next((scalars[name] for name in RATE_NAMES if name in scalars), None)
    clock = next((time_T for time_T in times.values() if time_T.size == n_samples), None)
    if stated is None and clock is not None:
        stated = rate_of_times(clock)
    names, unit_of = settled_names(path, n_channels, channels, units)
    fs = settled_rate(path, stated, source_fs, f"no scalar variable {', '.join(RATE_NAMES[:2])} ... and no uniform time vector")
    common = {"fs": fs, "channels": names, "units": unit_of, "subject": subject or path.stem, "record": path.stem}
    if h5py.is_hdf5(path):
        return Recording(**common, n_samples=n_samples, reader=Mat73Reader(str(path), dataset, axes))
    x = next(load() for name, _, load in variables(path) if name == dataset)
    return Recording.from_array(as_rows(np.ravel(x) if vector else x, axes), **common)


def variables(path: Path) -> Iterator[tuple[str, tuple[int, ...], object]]:
    """(name, MATLAB shape, function that loads it) of every numeric array; fields of scalar structs as ``struct.field``."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    yield from _of_hdf5(path) if h5py.is_hdf5(path) else _of_scipy(path)


@dataclass(frozen=True)
class Mat73Reader:
    """Reads a range of one variable of a version 7.3 file, where arrays lie with their axes reversed."""

    path: str
    dataset: str
    axes: str

    def __call__(self, start: int, stop: int) -> np.ndarray:
        with open_h5(self.path) as file:
            data = file[self.dataset.replace(".", "/")]
            if self.axes == "T":
                return np.atleast_2d(data[:, start:stop] if data.shape[0] == 1 else data[start:stop].T)
            return data[start:stop].T if self.axes == "CT" else data[:, start:stop]


def _of_hdf5(path: Path) -> list[tuple[str, tuple[int, ...], object]]:
    found: list[tuple[str, tuple[int, ...], object]] = []

    def loader(name: str):
        def load() -> np.ndarray:
            with open_h5(path) as file:
                return file[name][()].T

        return load

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("#") and not item.attrs.get("MATLAB_empty", 0):
            if item.attrs.get("MATLAB_class", b"double") in _NUMERIC and item.dtype.kind in "iuf":
                found.append((name.replace("/", "."), item.shape[::-1], loader(name)))

    with open_h5(path) as file:
        file.visititems(visit)
    return found


def _of_scipy(path: Path) -> Iterator[tuple[str, tuple[int, ...], object]]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path)
    except (MatReadError, ValueError, TypeError, KeyError, IndexError, NotImplementedError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not a readable MATLAB file, it may be cut off ({error}); a WFDB signal file needs its .hea beside it") from error
    for name, value in content.items():
        if not name.startswith("__"):
            yield from _flat(name, value)


def _flat(name: str, value: object) -> Iterator[tuple[str, tuple[int, ...], object]]:
    if not isinstance(value, np.ndarray):
        return
    if value.dtype.names and value.size == 1:
        for field in value.dtype.names:
            yield from _flat(f"{name}.{field}", value.ravel()[0][field])
    elif value.dtype.kind in "iuf" and value.size:
        yield name, value.shape, lambda: value
