"""NumPy files: `.npy` through a memory map, `.npz` with the signal and what is known of it. No pickle is ever read."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from physio_data.formats.arrays import RATE_NAMES, as_rows, oriented, settled_names, settled_rate
from physio_data.recording import Recording


def open_npy(
    path: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    source_fs: float | None = None,
    subject: str | None = None,
    channels: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
    axes: str = "CT",
) -> Recording:
    """Open an array (T,), (C, T) or, with ``axes="TC"``, (T, C). A ``.npy`` file states no rate: ``source_fs`` in Hz.

    In a ``.npz`` archive ``dataset`` names the signal where there are several arrays; scalars ``fs``, ``sampling_rate``, ... and string
    arrays ``channels`` and ``units`` are used where they are there. ``ValueError`` names the file: truncated, holding Python objects, without a rate.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix.lower() == ".npy":
        name, x, facts = "the array", _loaded(path, mmap_mode="r"), {}
    else:
        name, x, facts = _from_archive(path, dataset)
    if x.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {name} is of type {x.dtype}, a signal is of numbers; save it as float32")
    n_channels, n_samples, axes = oriented(path, name, x.shape, axes)
    stated = next((float(np.ravel(facts[key])[0]) for key in RATE_NAMES if key in facts), None)
    names, unit_of = (
        argument if argument is not None else [str(value) for value in np.ravel(facts[key])] if key in facts else None
        for argument, key in ((channels, "channels"), (units, "units"))
    )
    names, unit_of = settled_names(path, n_channels, names, unit_of)
    fs = settled_rate(path, stated, source_fs, "a .npy file has none" if path.suffix.lower() == ".npy" else f"no entry {', '.join(RATE_NAMES[:2])} ...")
    common = {"fs": fs, "channels": names, "units": unit_of, "subject": subject or path.stem, "record": path.stem}
    if path.suffix.lower() == ".npy":
        return Recording(**common, n_samples=n_samples, reader=NpyReader(str(path), axes))
    return Recording.from_array(as_rows(x, axes), **common)


@dataclass(frozen=True)
class NpyReader:
    """Reads a range of a ``.npy`` file through a memory map."""

    path: str
    axes: str

    def __call__(self, start: int, stop: int) -> np.ndarray:
        x = _loaded(Path(self.path), mmap_mode="r")
        return as_rows(np.array(x[:, start:stop] if self.axes == "CT" else x[start:stop]), self.axes)


def _from_archive(path: Path, dataset: str | None) -> tuple[str, np.ndarray, dict[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            there = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable .npz archive of plain arrays ({error}); write it again with numpy.savez") from error
    signals = [name for name, value in there.items() if value.dtype.kind in "iuf" and value.size > 1]
    if dataset is None and len(signals) != 1:
        raise ValueError(f"{path}: {len(signals)} numeric arrays ({', '.join(signals) or 'none'}); name the signal's with dataset=")
    name = dataset if dataset is not None else signals[0]
    if name not in there:
        raise ValueError(f"{path}: no array {name!r}; the file has {', '.join(there) or 'none'}")
    return name, there[name], {key.lower(): value for key, value in there.items() if key != name and value.dtype.kind != "O"}


def _loaded(path: Path, mmap_mode: str) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"{path}: not a readable .npy array ({error}); it may be cut off, or hold Python objects, of which only the layouts "
            f"of the corpora cwt_index and ecg_preprocess are read"
        ) from error
