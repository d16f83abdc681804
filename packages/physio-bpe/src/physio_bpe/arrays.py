"""Signals in .npy, .npz and .csv files, for the command line. Sizes that a header declares are checked against the file before memory is taken."""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from physio_bpe.errors import FileFormatError

SUFFIXES = (".npy", ".npz", ".csv")


def read_signals(path: str | Path) -> Iterator[NDArray[np.generic]]:
    """The records (C, T) and batches (N, C, T) of a file, in order: the array of a .npy, each array of a .npz, the columns of a .csv as leads.

    One line (T,) is a record of one lead. FileFormatError names the file and what is wrong in it; OSError where there is none.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise FileFormatError(f"{path} must end in one of {', '.join(SUFFIXES)}")
    if path.suffix == ".npz":
        for name, array in read_npz(path).items():
            yield _shaped(array, f"{path}, array {name!r}")
    else:
        yield _shaped(_read_npy(path) if path.suffix == ".npy" else _read_csv(path), str(path))


def read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    """All arrays of a .npz by name."""
    arrays: dict[str, NDArray[np.generic]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                with archive.open(info) as member:
                    _check_declared(member, info.file_size, f"{path}, array {name!r}")
                with archive.open(info) as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
        raise error if isinstance(error, FileFormatError) else FileFormatError(f"{path} is no whole .npz: {error}") from None
    if not arrays:
        raise FileFormatError(f"{path} holds no array")
    return arrays


def _read_npy(path: Path) -> NDArray[np.generic]:
    with open(path, "rb") as file:
        _check_declared(file, path.stat().st_size, str(path))
    array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _check_declared(file: IO[bytes], size: int, where: str) -> None:
    """The array's header must declare what follows it, no more and no less."""
    try:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:
        raise FileFormatError(f"{where} is no NumPy array: {str(error).splitlines()[0]}") from None
    n_values = 1
    for length in shape:
        n_values *= int(length)
    if dtype.hasobject:
        raise FileFormatError(f"{where} holds objects, not numbers")
    if (there := size - file.tell()) != n_values * dtype.itemsize:
        raise FileFormatError(
            f"{where} declares {n_values} values of {dtype}, {n_values * dtype.itemsize} bytes, but {there} bytes follow: truncated or altered"
        )


def _read_csv(path: Path) -> NDArray[np.float64]:
    """(C, T) from one column a lead; comma, semicolon or tab; a first line that is no number names the columns."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            first = file.readline()
            delimiter = max(",;\t", key=first.count)
            file.seek(0)
            rows = [row for row in csv.reader(file, delimiter=delimiter) if row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise FileFormatError(f"{path} is no text table: {error}") from None
    header = bool(rows) and not _is_number(rows[0][0])
    width = len(rows[0]) if rows else 0
    values = np.empty((len(rows) - header, width))
    for at, row in enumerate(rows[header:]):
        if len(row) != width:
            raise FileFormatError(f"{path}, row {at + 1 + header} has {len(row)} columns, the first has {width}")
        try:
            values[at] = row
        except ValueError:
            bad = next(column for column, cell in enumerate(row) if not _is_number(cell))
            raise FileFormatError(f"{path}, row {at + 1 + header}, column {bad + 1} is {row[bad]!r}, not a number") from None
    return values.T


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shaped(array: NDArray[np.generic], where: str) -> NDArray[np.generic]:
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2, 3) or 0 in array.shape:
        raise FileFormatError(f"{where} must hold numbers as (samples,), (leads, samples) or (records, leads, samples), got {array.dtype} {array.shape}")
    return array[None] if array.ndim == 1 else array
