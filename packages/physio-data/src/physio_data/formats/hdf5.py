"""HDF5: one signal dataset with a rate, and the two layouts of HiMAE (shards with an index CSV; windows with labels).

Shape letters: N windows, C channels, T samples. Files are opened when samples are asked for, in the process that asks.
"""

from __future__ import annotations

import bisect
import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from physio_data.formats.arrays import RATE_NAMES, as_rows, oriented, settled_names, settled_rate
from physio_data.recording import Recording

WAVEFORM = "normalized_waveform"
_SIGNALS = ("ppg", "ecg")


@contextmanager
def open_h5(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """An HDF5 file for reading; a missing, truncated or foreign file, or a damaged block in it, is a ``ValueError`` naming it."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise ValueError(f"{path}: not a readable HDF5 file, it may be cut off ({error}); fetch or write it again") from error


def open_hdf5(
    path: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    source_fs: float | None = None,
    subject: str | None = None,
    channels: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
    axes: str = "CT",
) -> Recording:
    """Open one dataset (T,), (C, T) or, with ``axes="TC"``, (T, C) as a Recording read by range.

    ``dataset`` may be left out when the file holds only one numeric dataset. The rate is an attribute (``fs``, ``sampling_rate``,
    ...) of the dataset, of a group above it or of the file, else ``source_fs`` in Hz; ``channels`` and ``units`` likewise.
    """
    path = Path(path)
    with open_h5(path) as file:
        data = _signal_dataset(path, file, dataset)
        name, shape, attributes = data.name, data.shape, _attributes(data)
    n_channels, n_samples, axes = oriented(path, f"dataset {name}", shape, axes)
    stated = next((float(np.ravel(attributes[key])[0]) for key in RATE_NAMES if key in attributes), None)
    fs = settled_rate(path, stated, source_fs, f"no attribute {', '.join(RATE_NAMES[:3])} ... on {name}")
    labels = channels if channels is not None else attributes.get("channels")
    unit_of = units if units is not None else attributes.get("units", attributes.get("unit"))
    names, unit_of = (None if given is None else [text(value) for value in np.ravel(given)] for given in (labels, unit_of))
    names, unit_of = settled_names(path, n_channels, names, unit_of)
    return Recording(
        fs=fs,
        channels=names,
        units=unit_of,
        n_samples=n_samples,
        subject=subject or path.stem,
        record=path.stem,
        reader=Hdf5Reader(str(path), name, axes),
    )


@dataclass(frozen=True)
class Hdf5Reader:
    """Reads a range of one dataset; ``axes`` is ``T``, ``CT`` or ``TC``."""

    path: str
    dataset: str
    axes: str

    def __call__(self, start: int, stop: int) -> np.ndarray:
        with open_h5(self.path) as file:
            data = file[self.dataset]
            x = data[:, start:stop] if self.axes == "CT" else data[start:stop]
        return as_rows(x, self.axes)


class IndexRow(NamedTuple):
    """One line of a HiMAE index: where in the CSV, which shard (absolute path), which group in it (a string)."""

    line: int
    shard: Path
    key: str


def read_index(path: str | os.PathLike[str]) -> list[IndexRow]:
    """Rows of an index CSV with columns ``local_path,global_idx``. Ids are strings: ``000123`` is not ``123``.

    A relative ``local_path`` is taken from the CSV's folder. ``ValueError`` names the file, and the line of an incomplete row.
    """
    path = Path(path)
    rows = []
    for line, row in _rows(path, ("local_path", "global_idx")):
        if not row["local_path"] or not row["global_idx"]:
            raise ValueError(f"{path}, line {line}: local_path or global_idx is empty; fill it in or delete the line")
        rows.append(IndexRow(line, (path.parent / row["local_path"]).absolute(), row["global_idx"]))
    return rows


@dataclass(frozen=True)
class HimaeShards:
    """HiMAE's pre-training data: ``h5[global_idx]["normalized_waveform"]`` per index row, read one segment at a time."""

    path: Path
    rows: tuple[IndexRow, ...]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> HimaeShards:
        """From the index CSV; shards are opened when read."""
        return cls(Path(path), tuple(read_index(path)))

    def __len__(self) -> int:
        return len(self.rows)

    def n_samples(self, i: int) -> int:
        """Samples of segment ``i`` without reading them."""
        with open_h5(self.rows[i].shard) as file:
            return self._waveform(file, i).size

    def read(self, i: int) -> np.ndarray:
        """Segment ``i``: (T,) float32 as stored, NaN kept."""
        return self.read_many([i])[0]

    def read_many(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Several segments, each (T,) float32, in the order asked for; each shard is opened once."""
        by_shard: dict[Path, list[int]] = {}
        for position, i in enumerate(indices):
            by_shard.setdefault(self.rows[i].shard, []).append(position)
        found: dict[int, np.ndarray] = {}
        for shard, positions in by_shard.items():
            with open_h5(shard) as file:
                for position in positions:
                    found[position] = np.ravel(self._waveform(file, indices[position])[()]).astype(np.float32)
        return [found[position] for position in range(len(indices))]

    def _waveform(self, file: h5py.File, i: int) -> h5py.Dataset:
        row = self.rows[i]
        where = f"{self.path}, line {row.line}"
        if row.key not in file:
            raise ValueError(f"{where}: id {row.key!r} is not in shard {row.shard}; near it: {_near(row.key, file)}. Ids are strings, keep their leading zeros")
        group = file[row.key]
        if not isinstance(group, h5py.Group) or WAVEFORM not in group:
            raise ValueError(f"{where}: {row.shard} holds no {WAVEFORM!r} under id {row.key!r}; this is not HiMAE's shard layout")
        waveform = group[WAVEFORM]
        if waveform.size != max(waveform.shape, default=0):
            raise ValueError(f"{where}: {WAVEFORM!r} of id {row.key!r} in {row.shard} has shape {waveform.shape}, expected one row of samples")
        return waveform


@dataclass(frozen=True, kw_only=True)
class HimaePvc:
    """HiMAE's labelled windows: ``/ppg`` and/or ``/ecg`` (N, T) or (N, 1, T), ``/labels`` and ``/patient_ids``, read by row.

    ``labels`` is (N,) float64 for one label a window, (N, K) for app "element" rows (x, SBP, DBP); ``patients`` (N,) strings;
    ``segments`` (N,) int64 position within the patient (from the metadata CSV, else counted per patient in file order).
    """

    path: Path
    signals: tuple[str, ...]
    n_samples: int
    fs: float
    labels: np.ndarray
    patients: np.ndarray
    segments: np.ndarray

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, metadata: str | os.PathLike[str] | None = None, fs: float | None = None, signals: Sequence[str] | None = None
    ) -> HimaePvc:
        """Open the file, joined to a metadata CSV ``global_idx,case_id_num,segment_idx,pvc,fs`` (row order = HDF5 order) when given.

        ``fs`` (Hz) defaults to the metadata's rate, else to the original's 25; ``signals`` to those in the file. ``ValueError`` names
        the file and, where the two disagree on a label or a patient, the row.
        """
        path = Path(path)
        with open_h5(path) as file:
            there = tuple(name for name in _SIGNALS if name in file)
            chosen = tuple(signals) if signals is not None else there
            if not chosen or not set(chosen) <= set(there):
                raise ValueError(f"{path}: signals {chosen or _SIGNALS} are not all there, the file has {', '.join(file) or 'nothing'}")
            for name in ("labels", "patient_ids"):
                if name not in file:
                    raise ValueError(f"{path}: no dataset /{name}; the file has {', '.join(file)}")
            shapes = {name: _window_shape(path, name, file[name].shape) for name in chosen}
            labels, patients = np.asarray(file["labels"][()]), np.ravel(file["patient_ids"][()])
        if len(set(shapes.values())) > 1:
            raise ValueError(f"{path}: signals differ in shape, {shapes}; choose one with signals=")
        n_windows, n_samples = shapes[chosen[0]]
        labels = _label_numbers(path, labels)
        patients = np.array([text(value) for value in patients], np.str_)
        for name, n in (("labels", len(labels)), ("patient_ids", len(patients))):
            if n != n_windows:
                raise ValueError(f"{path}: /{name} has {n} rows and /{chosen[0]} has {n_windows}; the file is inconsistent, write it again")
        segments = _count_within(patients)
        if metadata is not None:
            segments, stated_fs = _join(path, Path(metadata), labels, patients)
            if fs is not None and fs != stated_fs:
                raise ValueError(f"{metadata}: states {stated_fs:g} Hz, which fs={fs:g} contradicts; leave it out")
            fs = stated_fs
        return cls(path=path, signals=chosen, n_samples=n_samples, fs=25.0 if fs is None else float(fs), labels=labels, patients=patients, segments=segments)

    def __len__(self) -> int:
        return len(self.patients)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Windows [start, stop): (N, C, T) float32, channels in the order of ``signals``."""
        stop = len(self) if stop is None else stop
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"start, stop must satisfy 0 <= start <= stop <= {len(self)} (windows of {self.path}), got {start}, {stop}")
        with open_h5(self.path) as file:
            windows = [np.asarray(file[name][start:stop], np.float32).reshape(stop - start, 1, self.n_samples) for name in self.signals]
        return np.concatenate(windows, axis=1)


def text(value: object) -> str:
    """A name or id as HDF5 stores it (bytes, number or string) as a string; whole floats lose their ``.0``."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _signal_dataset(path: Path, file: h5py.File, dataset: str | None) -> h5py.Dataset:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) and item.dtype.kind in "iuf" and item.ndim else None)
    if dataset is None:
        if len(found) != 1:
            raise ValueError(f"{path}: {len(found)} numeric datasets ({', '.join(found[:8]) or 'none'}); name the signal's with dataset=")
        dataset = found[0]
    if dataset not in file or not isinstance(file[dataset], h5py.Dataset):
        raise ValueError(f"{path}: no dataset {dataset!r}; the file has {', '.join(found[:8]) or 'none'}")
    return file[dataset]


def _attributes(data: h5py.Dataset) -> dict[str, object]:
    merged: dict[str, object] = {}
    node: h5py.Dataset | h5py.Group = data
    while True:
        merged = {**{key: node.attrs[key] for key in node.attrs}, **merged}
        if node.name == "/":
            return merged
        node = node.parent


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.DictReader(handle, skipinitialspace=True)
        missing = [name for name in needed if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; the header has {', '.join(reader.fieldnames or ()) or 'nothing'}")
        for row in reader:
            yield reader.line_num, {name: (row[name] or "").strip() for name in needed}


def _near(key: str, file: h5py.File) -> str:
    """Up to three ids of a shard next to a missing one: the same number otherwise written first, then neighbours in order."""
    keys = sorted(file)
    same = [k for k in keys if k.isdigit() and key.isdigit() and int(k) == int(key)]
    at = bisect.bisect(keys, key)
    return ", ".join(dict.fromkeys(map(repr, [*same, *keys[max(0, at - 1) : at + 2]]))) or "none, the shard is empty"


def _window_shape(path: Path, name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) == 3 and shape[1] == 1:
        shape = (shape[0], shape[2])
    if len(shape) != 2:
        raise ValueError(f"{path}: /{name} has shape {shape}, expected (windows, samples) or (windows, 1, samples)")
    return shape


def _label_numbers(path: Path, labels: np.ndarray) -> np.ndarray:
    if labels.ndim > 2 or labels.ndim == 0:
        raise ValueError(f"{path}: /labels has shape {labels.shape}, expected (windows,), (windows, 1) or (windows, values)")
    if labels.dtype.kind not in "biuf":
        try:
            labels = np.array([float(text(value).strip("[] ")) for value in labels.ravel()]).reshape(labels.shape)
        except ValueError as error:
            raise ValueError(f"{path}: /labels holds text that is no number ({error})") from error
    labels = labels.astype(np.float64)
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _count_within(patients: np.ndarray) -> np.ndarray:
    seen: dict[str, int] = {}
    segments = np.empty(len(patients), np.int64)
    for i, patient in enumerate(patients.tolist()):
        segments[i] = seen.get(patient, 0)
        seen[patient] = int(segments[i]) + 1
    return segments


def _join(path: Path, metadata: Path, labels: np.ndarray, patients: np.ndarray) -> tuple[np.ndarray, float]:
    """Segment numbers (N,) and the rate of a metadata CSV, after checking it row by row against the HDF5 file."""
    rows = list(_rows(metadata, ("global_idx", "case_id_num", "segment_idx", "pvc", "fs")))
    if len(rows) != len(patients):
        raise ValueError(f"{metadata} has {len(rows)} rows and {path} has {len(patients)} windows; they must be of one export")
    cases = [_plain(row["case_id_num"]) for _, row in rows]
    ids = [_plain(patient) for patient in patients.tolist()]
    literal = any(a == b for a, b in zip(ids, cases, strict=True))  # else the CSV numbers patients anew: then one to one
    case_of: dict[str, str] = {}
    id_of: dict[str, str] = {}
    rates = set()
    segments = np.empty(len(rows), np.int64)
    for i, (line, row) in enumerate(rows):
        where = f"{metadata}, line {line} (row {i})"
        number = {name: _number(where, name, row[name]) for name in ("global_idx", "segment_idx", "pvc", "fs")}
        if number["global_idx"] != i:
            raise ValueError(f"{where}: global_idx is {row['global_idx']}, expected {i}; the rows must stand in the order of {path}")
        label = labels[i] if labels.ndim == 1 else labels[i, 0]
        if number["pvc"] != label:
            raise ValueError(f"{where}: pvc is {row['pvc']} and /labels of {path} has {label:g}; the two files are not of one export")
        if (ids[i] != cases[i]) if literal else (case_of.setdefault(ids[i], cases[i]) != cases[i] or id_of.setdefault(cases[i], ids[i]) != ids[i]):
            raise ValueError(
                f"{where}: case_id_num is {row['case_id_num']} and /patient_ids of {path} has {str(patients[i])!r}; the two files are not of one export"
            )
        segments[i] = int(number["segment_idx"])
        rates.add(number["fs"])
    if len(rates) != 1 or min(rates) <= 0:
        raise ValueError(f"{metadata}: fs must be one positive rate for all rows, got {sorted(rates)}")
    return segments, rates.pop()


def _number(where: str, name: str, cell: str) -> float:
    try:
        return float(cell.strip("[] "))
    except ValueError:
        raise ValueError(f"{where}: {name} is {cell!r}, not a number") from None


def _plain(identifier: str) -> str:
    """A patient id for comparison only: ``3``, ``3.0`` and ``003`` are one."""
    try:
        number = float(identifier)
    except ValueError:
        return identifier
    return str(int(number)) if number.is_integer() else identifier
