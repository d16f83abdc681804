"""Labels, outcomes and folds from a CSV of one's own, joined to the windows of a corpus by subject, by record, or by segment. N windows."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from physio_data import manifest
from physio_data.corpora.contract import TaskSpec

On = Literal["subject", "record", "segment"]
KEYS: Mapping[str, tuple[str, ...]] = {"subject": ("subject",), "record": ("record",), "segment": ("record", "start_s")}
KINDS = ("binary", "multiclass", "regression")
_EMPTY = frozenset({"", "nan", "na", "n/a", "null", "none"})


@dataclass(frozen=True)
class Row:
    """One line of a table: its number in the file, and its cells by column."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A table of labels: per task what it is, and the value of each key (a class position, 0/1 or a number; absent where unknown).

    A key is (subject,) or (record,); for segments it is (record,) too, and the value is the pair of start times and values, both (K,), sorted.
    """

    path: Path
    on: On
    specs: Mapping[str, TaskSpec]
    values: Mapping[str, Mapping[str, object]]  # task -> key -> value
    lines: Mapping[str, int]  # key -> its first line

    def matched(self, ids: Mapping[str, tuple[str, ...]]) -> Labels:
        """The same table with the keys of the store; `ids` maps a record id of the corpus to the names it may be called by.

        `ValueError` names the first line whose subject or record the corpus does not have.
        """
        found = resolve(self.path, self.on if self.on == "subject" else "record", self.lines, ids, missing="raise")
        values = {task: {found[key]: value for key, value in of.items()} for task, of in self.values.items()}
        return Labels(path=self.path, on=self.on, specs=self.specs, values=values, lines={found[key]: line for key, line in self.lines.items()})

    def columns(self, key: str, start_s_N: np.ndarray, tolerance_s: float) -> dict[str, np.ndarray]:
        """Label columns (N,) of the windows of one subject or record; a segment matches where its start is nearer than `tolerance_s`."""
        out = {}
        for task, spec in self.specs.items():
            regression = spec.kind == "regression"
            column_N = np.full(len(start_s_N), math.nan if regression else -1, np.float64 if regression else np.int64)
            value = self.values[task].get(key)
            if value is not None and self.on == "segment":
                start_K, value_K = value
                at_N = np.clip(np.searchsorted(start_K, start_s_N), 0, len(start_K) - 1)
                at_N = np.where((at_N > 0) & (np.abs(start_K[at_N - 1] - start_s_N) < np.abs(start_K[at_N] - start_s_N)), at_N - 1, at_N)
                near_N = np.abs(start_K[at_N] - start_s_N) < tolerance_s
                column_N[near_N] = value_K[at_N[near_N]]
            elif value is not None:
                column_N[:] = value
            out[task] = column_N
        return out


def read_labels(path: str | Path, on: On, kinds: Mapping[str, str] | None = None) -> Labels:
    """Read a table with the key columns of `on` (subject; record; record and start_s in seconds) and a column a task.

    `kinds` names the columns to take and what they are (binary, multiclass, regression); without it every other column is a task, binary where
    its values are 0 and 1, multiclass where they are names, regression where some number is not whole. Whole numbers beyond 0 and 1 could be
    either: they need `kinds`. An empty cell (also nan, NA, none) is unknown. Classes stand in the order of their numbers, else of the alphabet.

    `ValueError` names the file and the line: a missing column, a key that stands twice, a value that does not fit its kind.
    """
    path = Path(path)
    if on not in KEYS:
        raise ValueError(f"labels are joined on {', '.join(KEYS)}, got {on!r}")
    for task, kind in (kinds or {}).items():
        if kind not in KINDS:
            raise ValueError(f"kind of {task} must be one of {', '.join(KINDS)}, got {kind!r}")
    rows = read_rows(path, (*KEYS[on], *(kinds or {})))
    tasks = list(kinds) if kinds else [name for name in rows[0].cells if name not in ("subject", "record", "start_s")]
    if not tasks:
        raise ValueError(f"{path}: no column beside {', '.join(KEYS[on])}; add one a task")
    _refuse_repeated(path, on, rows)
    specs, values = {}, {}
    for task in tasks:
        known = [row for row in rows if row.cells[task].lower() not in _EMPTY]
        kind = kinds[task] if kinds else _usual_kind(path, task, known)
        specs[task] = _spec(kind, known, task)
        number = {row.line: _value(path, task, specs[task], row) for row in known}
        values[task] = _by_key(path, on, known, number)
    lines: dict[str, int] = {}
    for row in rows:
        lines.setdefault(row.cells[KEYS[on][0]], row.line)
    return Labels(path=path, on=on, specs=specs, values=values, lines=lines)


def read_folds(path: str | Path) -> tuple[str, dict[str, str], dict[str, int]]:
    """("subject" or "record", id -> fold, id -> line) of a table with that column and `fold`; an empty fold means: in none.

    `ValueError` names the file and the line of an id that stands twice, and a table with both columns or neither.
    """
    path = Path(path)
    rows = read_rows(path, ("fold",))
    on = [name for name in ("subject", "record") if name in rows[0].cells]
    if len(on) != 1:
        raise ValueError(f"{path}: needs one column subject or record beside fold, the header has {', '.join(rows[0].cells)}; keep one of them")
    fold_of: dict[str, str] = {}
    line_of: dict[str, int] = {}
    for row in rows:
        name = row.cells[on[0]]
        if name in fold_of:
            raise ValueError(f"{path}, line {row.line}: {on[0]} {name!r} stands in line {line_of[name]} already, with fold {fold_of[name]!r}; keep one line")
        fold_of[name], line_of[name] = row.cells["fold"], row.line
    return on[0], fold_of, line_of


def resolve(
    path: Path, on: str, lines: Mapping[str, int], ids: Mapping[str, tuple[str, ...]], *, missing: Literal["raise", "leave"] = "raise"
) -> dict[str, str]:
    """Name in the table -> id of the corpus. An id may be called by its full name or by what follows its namespace, `mitbih:100` by `100`,
    where that fits one only; `ids` maps ids to further names. A name that fits none raises, or is left out with `missing="leave"`."""
    called: dict[str, list[str]] = {}
    for identity, names in ids.items():
        for name in {identity, identity.rpartition(":")[2], *names}:
            called.setdefault(name, []).append(identity)
    found: dict[str, str] = {}
    for name, line in lines.items():
        fits = [name] if name in ids else called.get(name, [])
        if len(fits) > 1:
            raise ValueError(f"{path}, line {line}: {on} {name!r} fits {len(fits)} of the corpus ({', '.join(sorted(fits)[:3])}, ...); write its full id")
        if not fits and missing == "raise":
            some = ", ".join(list(ids)[:3])
            raise ValueError(f"{path}, line {line}: the corpus has no {on} {name!r}; its ids are like {some}. Mend the line or take it out")
        if fits:
            found[name] = fits[0]
    name_of: dict[str, str] = {}
    for name, identity in found.items():
        if name_of.setdefault(identity, name) != name:
            raise ValueError(f"{path}, line {lines[name]}: {name!r} and {name_of[identity]!r} of line {lines[name_of[identity]]} are one {on}; keep one line")
    return found


def folds_of_records(path: str | Path, record_ids: Sequence[str], facts: Callable[[str], tuple[str, str]]) -> tuple[dict[str, str], dict[str, str]]:
    """(record id -> fold, record id -> subject) from a table of folds; `facts(record_id)` is its (subject, record name).

    Lines for subjects and records that are not here are passed over, a record without a line is a `ValueError`.
    """
    path = Path(path)
    on, fold_of, line_of = read_folds(path)
    known = {record_id: facts(record_id) for record_id in record_ids}
    ids = {subject: () for subject, _ in known.values()} if on == "subject" else {record_id: (name,) for record_id, (_, name) in known.items()}
    fold = {identity: fold_of[name] for name, identity in resolve(path, on, line_of, ids, missing="leave").items()}
    key = {record_id: subject if on == "subject" else record_id for record_id, (subject, _) in known.items()}
    absent = sorted({name for name in key.values() if name not in fold})
    if absent:
        raise ValueError(f"{path}: no line for {on} {absent[0]!r} ({len(absent)} such); add one, with an empty fold to leave it out of every fold")
    return {record_id: fold[name] for record_id, name in key.items()}, {record_id: subject for record_id, (subject, _) in known.items()}


def file_sha256(path: str | Path) -> str:
    """Of a table, for the manifest: the same content gives the same store wherever the file lies."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return manifest.file_sha256(path)


def read_rows(path: Path, needed: Sequence[str]) -> list[Row]:
    """Lines of a CSV with these columns; cells are stripped. `ValueError` names a missing file or column, a line of another length, and an empty key."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        header = [cell.strip() for cell in next(reader, [])]
        missing = [name for name in needed if name not in header]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}, the header has {', '.join(header) or 'nothing'}; name its columns so")
        rows = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise ValueError(f"{path}, line {reader.line_num}: {len(cells)} cells where the header has {len(header)}; mend the line")
            row = Row(reader.line_num, dict(zip(header, map(str.strip, cells), strict=True)))
            empty = [name for name in ("subject", "record", "start_s") if name in needed and not row.cells[name]]
            if empty:
                raise ValueError(f"{path}, line {row.line}: {empty[0]} is empty; fill it in or delete the line")
            rows.append(row)
    if not rows:
        raise ValueError(f"{path}: a header but no line; it may be cut off")
    return rows


def _refuse_repeated(path: Path, on: On, rows: Sequence[Row]) -> None:
    first: dict[tuple[str, ...], int] = {}
    for row in rows:
        key = tuple(row.cells[name] for name in KEYS[on])
        if key in first:
            raise ValueError(f"{path}, line {row.line}: {on} {', '.join(key)} stands in line {first[key]} already; keep one line")
        first[key] = row.line


def _usual_kind(path: Path, task: str, rows: Sequence[Row]) -> str:
    numbers = [_number(row.cells[task]) for row in rows]
    if any(number is None for number in numbers):
        return "multiclass"
    if {0.0, 1.0} >= set(numbers):
        return "binary"
    if all(number.is_integer() for number in numbers):
        raise ValueError(f"{path}: column {task} holds whole numbers, which may be classes or a quantity; say --kind {task}=multiclass or {task}=regression")
    return "regression"


def _spec(kind: str, rows: Sequence[Row], task: str) -> TaskSpec:
    if kind != "multiclass":
        return TaskSpec(kind=kind)
    names = {row.cells[task] for row in rows} or {""}
    return TaskSpec(kind="multiclass", classes=tuple(sorted(names, key=lambda name: (0, _number(name), name) if _number(name) is not None else (1, 0.0, name))))


def _value(path: Path, task: str, spec: TaskSpec, row: Row) -> float | int:
    text = row.cells[task]
    if spec.kind == "multiclass":
        return spec.classes.index(text)
    number = _number(text)
    if number is None or (spec.kind == "binary" and number not in (0.0, 1.0)):
        wanted = "0 or 1" if spec.kind == "binary" else "a number"
        raise ValueError(f"{path}, line {row.line}, column {task}: {text!r} is not {wanted}; mend the cell, or leave it empty where unknown")
    return int(number) if spec.kind == "binary" else number


def _by_key(path: Path, on: On, rows: Sequence[Row], number: Mapping[int, float | int]) -> dict[str, object]:
    if on != "segment":
        return {row.cells[on]: number[row.line] for row in rows}
    starts: dict[str, list[tuple[float, float | int]]] = {}
    for row in rows:
        start_s = _number(row.cells["start_s"])
        if start_s is None:
            raise ValueError(f"{path}, line {row.line}: start_s is {row.cells['start_s']!r}, expected seconds")
        starts.setdefault(row.cells["record"], []).append((start_s, number[row.line]))
    return {record: tuple(map(np.array, zip(*sorted(pairs), strict=True))) for record, pairs in starts.items()}


def _number(text: str) -> float | None:
    """A finite number, None where the text is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
