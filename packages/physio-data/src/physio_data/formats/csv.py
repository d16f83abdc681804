"""Delimited text: one column a channel, an optional time column, an optional header.

The file is parsed once, when it is opened: text has no random access.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from physio_data.formats.arrays import settled_rate
from physio_data.formats.opensignals import text_columns
from physio_data.recording import Recording
from physio_data.timing import TIME_NAMES, uniform_rate

_EMPTY = frozenset({"", "nan", "na", "n/a", "null", "none", "-"})
_UNIT_OF_TIME = {"s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "millisecond": 1e-3, "milliseconds": 1e-3}
_BRACKETS = re.compile(r"^(.*?)\s*[\[(]\s*([^\])]*?)\s*[\])]$")
_SUFFIX = re.compile(r"^(.*?)[_ ](ms|msec|s|sec|seconds|milliseconds)$", re.IGNORECASE)
_STATED_RATE = re.compile(r"sampling\W{0,3}(?:rate|frequency)[^0-9\n]{0,12}([0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)
_STATED_NAMES = re.compile(r"^\W*labels?\W*[:=]+\s*(.+)$", re.IGNORECASE)
_COMMENTS = ("#", "%", "//")


@dataclass(frozen=True)
class _Table:
    """Rows of cells with their 1-based line numbers, and what the lines above them say."""

    header: list[str] | None
    cells: list[list[str]]
    lines: list[int]
    comments: list[str]
    decimal_comma: bool


def open_csv(
    path: str | os.PathLike[str],
    *,
    source_fs: float | None = None,
    subject: str | None = None,
    channels: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
) -> Recording:
    """Open a text file of one row per sample.

    Separators are comma, semicolon, tab, bar or blanks; a byte-order mark (UTF-8 or UTF-16), quotes of both kinds, OpenSignals' JSON
    header, lines that start with ``#``, ``%`` or ``//``, and a decimal comma beside semicolons are understood. Empty cells (also
    ``nan``, ``NA``, ``null``, ``-``) are NaN. A header may carry
    units as ``PLETH [a.u.]``; without one the channels are ``ch1``, ``ch2``, ... unless ``channels`` names them.

    The rate is, in this order: a uniform time column (time, timestamp, t, ... in s, ms or as date and time), a comment "Sampling
    rate: 1000", ``source_fs`` in Hz, which may repeat but not contradict a stated rate. A time column whose unit is not named is
    taken as seconds for steps up to 0.5 and as milliseconds for steps above 0.5, except exactly 1, which may count samples.

    ``ValueError`` names the file, and where it applies the line and the column: no rate, a cell that is no number, a row of
    another length, no data.
    """
    path = Path(path)
    table = _read_table(path)
    names, unit_of = _columns(path, table)
    time_column = _time_column(table)
    time_s, decimals = (None, 0) if time_column is None else _time(path, table, time_column, names[time_column], unit_of[time_column])
    vendor = text_columns(path, table.comments)
    keep = [i for i in range(len(names)) if i != time_column and not _all_blank(table, names, i)] if vendor is None else vendor[1]
    if not keep:
        raise ValueError(f"{path}: no signal column beside the time column; add one column a channel")
    fs = _rate(path, table, time_s, decimals, source_fs)
    x_CT = np.stack([_numbers(path, table, i, names[i]) for i in keep])

    stated = next((m[1].strip() for m in map(_STATED_NAMES.match, table.comments) if m), None)
    if channels is not None:
        labels = list(channels)
    elif vendor is not None:
        labels = vendor[0]
    elif table.header is None and stated and len(stated.split(",")) == len(keep):
        labels = [name.strip() for name in stated.split(",")]
    else:
        labels = [names[i] for i in keep]
    for argument, given in (("channels", labels), ("units", units)):
        if given is not None and len(given) != len(keep):
            raise ValueError(f"{path}: {argument} must name {len(keep)} signal columns, got {len(given)}: {', '.join(given)}")
    return Recording.from_array(
        x_CT,
        fs=fs,
        channels=labels,
        units=list(units) if units is not None else [unit_of[i] or "a.u." for i in keep],
        subject=subject or path.stem,
        record=path.stem,
    )


def _read_table(path: Path) -> _Table:
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file (byte {error.start} is not UTF-8); save it as UTF-8 text") from error
    comments, numbered = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith(_COMMENTS):
            comments.append(line.strip().lstrip("#%/ ").strip())
        else:
            numbered.append((number, line))
    while numbered and not numbered[0][1].strip():
        numbered.pop(0)
    while numbered and not numbered[-1][1].strip():
        numbered.pop()
    if not numbered:
        raise ValueError(f"{path}: no data, only {len(comments)} comment lines; the file may be cut off")
    lines = [line for _, line in numbered if line.strip()]
    delimiter = _delimiter(lines[min(1, len(lines) - 1)])  # the first may be a header
    rows = [(number, _split(line, delimiter)) for number, line in numbered]
    decimal_comma = delimiter == ";" and any("," in cell for cell in rows[-1][1])
    if len(rows[0][1]) > 1:
        rows = [row for row in rows if any(cell for cell in row[1])]  # a blank line is a missing sample only where there is one column
    header = rows.pop(0)[1] if _is_header(rows[0][1], decimal_comma) else None
    if not rows:
        raise ValueError(f"{path}: a header but no data; the file may be cut off")
    if len(rows) == 1 and header is None and len(rows[0][1]) > 2:
        raise ValueError(f"{path}: one line of {len(rows[0][1])} values; a line is one sample of every channel, so write one value a line")
    width = len(header if header is not None else rows[0][1])
    for number, cells in rows:
        if len(cells) != width:
            raise ValueError(f"{path}, line {number}: {len(cells)} columns where {width} are expected; mend or delete the line")
    return _Table(header, [cells for _, cells in rows], [number for number, _ in rows], comments, decimal_comma)


def _delimiter(line: str) -> str | None:
    for delimiter in (";", "\t", "|", ","):
        if delimiter in line:
            return delimiter
    return None


def _split(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return [cell.strip("\"'") for cell in line.split()] or [""]
    if '"' in line:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]
    return [cell.strip().strip("'") for cell in line.split(delimiter)]


def _is_header(cells: list[str], decimal_comma: bool) -> bool:
    """No cell is a number, or one is the name of a time column (then the others may be channel numbers)."""
    return any(map(_is_time, cells)) or (any(cells) and not any(_is_number(cell, decimal_comma) for cell in cells))


def _is_number(cell: str, decimal_comma: bool = False) -> bool:
    try:
        float(cell.replace(",", ".") if decimal_comma else cell)
    except ValueError:
        return cell.lower() in _EMPTY and cell != ""
    return True


def _columns(path: Path, table: _Table) -> tuple[list[str], list[str]]:
    if table.header is None:
        return [f"ch{i}" for i in range(1, len(table.cells[0]) + 1)], [""] * len(table.cells[0])
    names, units = [], []
    for i, cell in enumerate(table.header, 1):
        match = _BRACKETS.match(cell.strip("'"))
        name, unit = (match[1], match[2]) if match else (cell.strip("'"), "")
        names.append(name or f"ch{i}")
        units.append(unit)
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise ValueError(f"{path}: the header repeats {', '.join(repeated)}; give every column its own name")
    return names, units


def _is_time(header_cell: str) -> bool:
    name = header_cell.strip("'").lower()
    match = _BRACKETS.match(name)
    name = match[1] if match else name
    suffix = _SUFFIX.match(name)
    return name in TIME_NAMES or name in _UNIT_OF_TIME or (suffix is not None and suffix[1] in TIME_NAMES)


def _time_column(table: _Table) -> int | None:
    if table.header is None:
        return None
    return next((i for i, cell in enumerate(table.header) if _is_time(cell)), None)


def _time(path: Path, table: _Table, column: int, name: str, unit: str) -> tuple[np.ndarray, int]:
    """Seconds (T,) and the number of decimals written, in seconds."""
    first, last = table.cells[0][column], table.cells[-1][column]
    if not _is_number(first, table.decimal_comma):
        try:
            stamps = np.array([row[column] for row in table.cells], "datetime64[us]")
        except ValueError:
            return _numbers(path, table, column, name), 0  # raises with line and column
        if np.isnat(stamps).any():
            raise ValueError(f"{path}, line {table.lines[int(np.argmax(np.isnat(stamps)))]}, column {name!r}: no time; delete the line or give --source-fs")
        return (stamps - stamps[0]) / np.timedelta64(1, "s"), len(first.partition(".")[2])
    t = _numbers(path, table, column, name)
    decimals = max(len(cell.replace(",", ".").partition(".")[2]) for cell in (first, last))
    suffix = _SUFFIX.match(name)
    unit = (unit or (suffix[2] if suffix else "") or (name if name.lower() in _UNIT_OF_TIME and len(name) > 1 else "")).lower()
    if unit in _UNIT_OF_TIME:
        seconds = _UNIT_OF_TIME[unit]
    else:
        step = abs(float(np.nanmedian(np.diff(t)))) if t.size > 1 else 0.0
        if step == 1.0:
            raise ValueError(f"{path}: column {name!r} goes up by 1 and names no unit: samples, ms or s? Name it {name}_ms or {name}_s, or delete it")
        seconds = 1.0 if step <= 0.5 else 1e-3
    return t * seconds, decimals + (3 if seconds == 1e-3 else 0)


def _rate(path: Path, table: _Table, time_s: np.ndarray | None, decimals: int, source_fs: float | None) -> float:
    stated = uniform_rate(time_s, decimals) if time_s is not None else None
    if stated is None:
        stated = next((float(m[1]) for m in map(_STATED_RATE.search, table.comments) if m and float(m[1]) > 0), None)
    return settled_rate(path, stated, source_fs, "its time column is not uniform" if time_s is not None else "it has no time column")


def _all_blank(table: _Table, names: list[str], column: int) -> bool:
    """A column that a separator at the line ends leaves behind: nothing in it and no name in the header."""
    named = table.header is not None and table.header[column] != ""
    last = column == len(names) - 1
    return last and column > 0 and not named and not any(row[column] for row in table.cells)


def _numbers(path: Path, table: _Table, column: int, name: str) -> np.ndarray:
    cells = [row[column] for row in table.cells]
    if table.decimal_comma:
        cells = [cell.replace(",", ".") for cell in cells]
    try:
        return np.array([float(cell) if cell.lower() not in _EMPTY else np.nan for cell in cells], np.float64)
    except ValueError:
        bad = next(i for i, cell in enumerate(cells) if not _is_number(cell) and cell.lower() not in _EMPTY)
        raise ValueError(f"{path}, line {table.lines[bad]}, column {name!r}: {cells[bad]!r} is not a number; mend the cell or leave it empty") from None
