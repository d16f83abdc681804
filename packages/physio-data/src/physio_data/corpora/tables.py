"""Tables beside the signals: CSV files of a corpus, read once a process. Cells stay text."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np


def rows_of(path: Path, needed: Sequence[str]) -> tuple[Mapping[str, str], ...]:
    """Rows of a CSV or CSV.gz file with a header as {column: cell}, blanks around cells removed.

    ``ValueError`` names the file where it is missing, lacks a column of ``needed``, is no text, or where a row has more cells than the
    header (spreadsheet programs leave such rows behind).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; it is part of the corpus, fetch it into the root folder")
    rows = _read(path, path.stat().st_mtime_ns)
    if missing := [name for name in needed if name not in (rows[0] if rows else ())]:
        raise ValueError(f"{path}: no column {', '.join(missing)}; it has {', '.join(rows[0]) if rows else 'no row'}; fetch the original file again")
    return rows


def table_of(path: Path, key: str, needed: Sequence[str] = ()) -> Mapping[str, Mapping[str, str]]:
    """`rows_of` by the text of one column; a repeated key is an error that names it."""
    rows_of(path, (key, *needed))
    return _keyed(Path(path), Path(path).stat().st_mtime_ns, key)


def number(text: str) -> float:
    """A cell as a float, NaN where it is empty or no number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def whole_id(text: str) -> str:
    """An id that a table may write as 15709.0: without the fraction."""
    return text.removesuffix(".0")


def flags(classes: Sequence[str], present: Sequence[str]) -> str:
    """One character a class, "1" where it is present: how a Recording's labels carry a multi-label row."""
    return "".join("1" if name in present else "0" for name in classes)


def multilabel(stated: str, n_classes: int, n_windows: int) -> np.ndarray:
    """`flags` for every window: (N, n_classes) int64; -1 throughout where nothing is stated ("")."""
    row = [int(flag) for flag in stated] if stated else [-1] * n_classes
    return np.tile(np.array(row, np.int64), (n_windows, 1))


@lru_cache(maxsize=16)
def _read(path: Path, changed_ns: int) -> tuple[Mapping[str, str], ...]:
    try:
        with gzip.open(path, "rt", encoding="utf-8-sig", newline="") if path.suffix == ".gz" else path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.DictReader(handle, skipinitialspace=True)
            rows = []
            for row in reader:
                if None in row:
                    raise ValueError(f"{path}, line {reader.line_num}: more cells than the header has columns; fetch the original file again")
                rows.append({name: (cell or "").strip() for name, cell in row.items()})
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: not a readable CSV file ({error}); fetch it again") from error
    return tuple(rows)


@lru_cache(maxsize=16)
def _keyed(path: Path, changed_ns: int, key: str) -> Mapping[str, Mapping[str, str]]:
    table: dict[str, Mapping[str, str]] = {}
    for line, row in enumerate(_read(path, changed_ns), 2):
        if row[key] in table:
            raise ValueError(f"{path}: {key} {row[key]!r} stands in two rows, the second near line {line}; fetch the original file again")
        table[row[key]] = row
    return table
