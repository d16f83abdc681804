"""predictions.csv: one line per scored window, the one thing that every figure and every comparison is computed from.

Columns `row,seed,repeat,fold,subject,record,start_s,label_<c>...,score_<c>...`; a label cell is empty where the label is unknown.
N lines, K labels.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

PLAIN = ("row", "seed", "repeat", "fold", "subject", "record", "start_s")


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The columns of predictions.csv as arrays of one length, and the validation-chosen threshold of each line where there is one (not in the CSV)."""

    row: np.ndarray  # (N,) str: pretrained, twin, handcrafted, ...
    seed: np.ndarray  # (N,) int64
    repeat: np.ndarray  # (N,) int64
    fold: np.ndarray  # (N,) str: number of the outer fold or name of the store's fold
    subject: np.ndarray  # (N,) str
    record: np.ndarray  # (N,) str
    start_s: np.ndarray  # (N,) float64
    labels: Mapping[str, np.ndarray]  # name -> (N,) float64, NaN unknown
    scores: Mapping[str, np.ndarray]  # name -> (N,) float64
    thresholds: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> (N,) float64

    def __post_init__(self) -> None:
        if list(self.labels) != list(self.scores) or not self.scores:
            raise ValueError(f"labels and scores must have the same names, got {list(self.labels)} and {list(self.scores)}")
        n = len(self.row)
        columns = {name: getattr(self, name) for name in PLAIN} | {f"label_{k}": v for k, v in self.labels.items()}
        columns |= {f"score_{k}": v for k, v in self.scores.items()} | {f"threshold_{k}": v for k, v in self.thresholds.items()}
        wrong = {name: np.shape(column) for name, column in columns.items() if np.shape(column) != (n,)}
        if wrong:
            raise ValueError(f"every column must be ({n},) like row, got {wrong}")

    def __len__(self) -> int:
        return len(self.row)

    @property
    def names(self) -> tuple[str, ...]:
        """The labels' names, in the order of their columns."""
        return tuple(self.scores)

    @property
    def rows(self) -> tuple[str, ...]:
        """The table's rows in the order they first appear."""
        return tuple(dict.fromkeys(self.row.tolist()))

    def take(self, lines: np.ndarray) -> Predictions:
        """The lines chosen by an index or a boolean mask."""
        cut = lambda columns: {name: column[lines] for name, column in columns.items()}  # noqa: E731
        plain = {name: getattr(self, name)[lines] for name in PLAIN}
        return Predictions(**plain, labels=cut(self.labels), scores=cut(self.scores), thresholds=cut(self.thresholds))


class Aligned(NamedTuple):
    """One row's runs over the same windows in the same order."""

    labels_NK: np.ndarray
    runs: list[np.ndarray]  # scores (N, K), one array per (seed, repeat)
    thresholds: list[np.ndarray] | None  # (N, K) like runs
    folds: list[np.ndarray]  # (N,) str, one per run
    keys: list[tuple[int, int]]  # (seed, repeat) per run
    subject: np.ndarray
    record: np.ndarray
    start_s: np.ndarray


def clusters_of(windows: Aligned | Predictions) -> np.ndarray:
    """Whose each window is (N,): the subject, or the record where nobody is named."""
    return np.where(windows.subject != "", windows.subject, windows.record)


def make(
    row: str,
    scores: Mapping[str, np.ndarray],
    *,
    labels: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    repeat: int = 0,
    fold: str | np.ndarray = "",
    subject: np.ndarray | None = None,
    record: np.ndarray | None = None,
    start_s: np.ndarray | None = None,
    thresholds: Mapping[str, float | np.ndarray] | None = None,
) -> Predictions:
    """Predictions of one row and run; what is left out becomes unknown (empty names, NaN starts and labels)."""
    n = len(next(iter(scores.values())))
    wide = lambda value, dtype: np.broadcast_to(np.asarray(value, dtype=dtype), (n,)).copy()  # noqa: E731
    text = lambda value: wide("" if value is None else np.asarray(value).astype(str), None)  # noqa: E731
    known = labels or {}
    return Predictions(
        row=text(row),
        seed=wide(seed, np.int64),
        repeat=wide(repeat, np.int64),
        fold=text(fold),
        subject=text(subject),
        record=text(record),
        start_s=wide(np.nan if start_s is None else start_s, np.float64),
        labels={name: wide(known.get(name, np.nan), np.float64) for name in scores},
        scores={name: wide(column, np.float64) for name, column in scores.items()},
        thresholds={name: wide(value, np.float64) for name, value in (thresholds or {}).items()},
    )


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """All lines after one another; the parts must score the same labels. Thresholds stay where every part has them, else they are NaN."""
    if not parts:
        raise ValueError("parts must hold at least one Predictions, got none")
    names = parts[0].names
    other = next((part.names for part in parts if part.names != names), None)
    if other is not None:
        raise ValueError(f"parts score different labels: {names} and {other}; keep one table per task")
    join = lambda of: {name: np.concatenate([of(part).get(name, np.full(len(part), np.nan)) for part in parts]) for name in names}  # noqa: E731
    plain = {name: np.concatenate([getattr(part, name) for part in parts]) for name in PLAIN}
    thresholds = join(lambda part: part.thresholds) if any(part.thresholds for part in parts) else {}
    return Predictions(**plain, labels=join(lambda part: part.labels), scores=join(lambda part: part.scores), thresholds=thresholds)


def rename(predictions: Predictions, row: str) -> Predictions:
    """The same lines under another row name (the run's name on a leaderboard)."""
    return replace(predictions, row=np.full(len(predictions), row))


def write(path: str | Path, predictions: Predictions) -> Path:
    """Write predictions.csv atomically: under a temporary name beside it, flushed to disk, then renamed."""
    path = Path(path)
    header = [*PLAIN, *(f"label_{name}" for name in predictions.names), *(f"score_{name}" for name in predictions.names)]
    columns = [getattr(predictions, name).tolist() for name in PLAIN[:-1]]
    columns += [_cells(predictions.start_s)]
    columns += [_cells(predictions.labels[name]) for name in predictions.names] + [_cells(predictions.scores[name]) for name in predictions.names]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(zip(*columns, strict=True))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read(path: str | Path, *, columns: Mapping[str, str] | None = None, row: str = "published") -> Predictions:
    """Read a predictions CSV back. For a foreign file, `columns` maps our column names to its own and `row` names its lines.

    `read(path, columns={"subject": "patient_id", "label_pvc": "label", "score_pvc": "p_pvc"})` reads HiMAE's published file.
    Plain columns that are absent become 0, empty or NaN; ids stay strings. Raises ValueError for a missing score column or a cell that is no number.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, None)
        lines = list(reader)
    if header is None:
        raise ValueError(f"{path} is empty: expected a header {','.join(PLAIN)},label_<c>,score_<c>")
    ragged = next((i for i, line in enumerate(lines) if len(line) != len(header)), None)
    if ragged is not None:
        raise ValueError(f"{path}, line {ragged + 2}: {len(lines[ragged])} cells under {len(header)} columns; is the file cut off?")
    own = {name: theirs for name, theirs in columns.items()} if columns else {name: name for name in header}
    absent = [theirs for theirs in own.values() if theirs not in header]
    if absent:
        raise ValueError(f"{path} has no column {absent[0]!r}; its columns are {', '.join(header)}")
    by_position = list(zip(*lines, strict=True)) if lines else [()] * len(header)
    cells = {name: by_position[header.index(theirs)] for name, theirs in own.items()}
    names = [name.removeprefix("score_") for name in cells if name.startswith("score_")]
    if not names:
        raise ValueError(f"{path} has no score_<c> column; map one with columns={{'score_<c>': ...}}, its columns are {', '.join(header)}")
    number = lambda name, kind: _numbers(path, name, cells[name], kind) if name in cells else None  # noqa: E731
    n = len(lines)
    return Predictions(
        row=np.array(cells.get("row", (row,) * n), dtype=str),
        seed=number("seed", np.int64) if "seed" in cells else np.zeros(n, dtype=np.int64),
        repeat=number("repeat", np.int64) if "repeat" in cells else np.zeros(n, dtype=np.int64),
        fold=np.array(cells.get("fold", ("",) * n), dtype=str),
        subject=np.array(cells.get("subject", ("",) * n), dtype=str),
        record=np.array(cells.get("record", ("",) * n), dtype=str),
        start_s=number("start_s", np.float64) if "start_s" in cells else np.full(n, np.nan),
        labels={name: number(f"label_{name}", np.float64) if f"label_{name}" in cells else np.full(n, np.nan) for name in names},
        scores={name: number(f"score_{name}", np.float64) for name in names},
    )


def runs(predictions: Predictions) -> Iterator[tuple[tuple[int, int], Predictions]]:
    """The (seed, repeat) runs of one row's lines, in order."""
    for seed, repeat in sorted(set(zip(predictions.seed.tolist(), predictions.repeat.tolist(), strict=True))):
        yield (seed, repeat), predictions.take((predictions.seed == seed) & (predictions.repeat == repeat))


def align(predictions: Predictions, row: str) -> Aligned:
    """One row's runs in a common window order (record, start, subject); raises ValueError where runs did not score the same windows."""
    lines = predictions.take(predictions.row == row)
    if not len(lines):
        raise ValueError(f"row {row!r} is not in the predictions; rows are {', '.join(predictions.rows)}")
    keys, parts = zip(*((key, part.take(_order(part))) for key, part in runs(lines)), strict=True)
    first = parts[0]
    for key, part in zip(keys, parts, strict=True):
        if (twice := _repeated(part)) is not None:
            where = f"record {str(part.record[twice])!r}, subject {str(part.subject[twice])!r}, start {part.start_s[twice]:g} s"
            raise ValueError(
                f"row {row!r}, run (seed, repeat) {key} scores a window twice ({where}): "
                "give two runs each a seed or repeat of its own, two recordings each a record name of its own"
            )
        if not same_windows(first, part):
            raise ValueError(f"row {row!r}: run (seed, repeat) {key} scored other windows than {keys[0]}; score every run on the same windows")
    stack = lambda of, part: np.stack([of(part)[name] for name in predictions.names], axis=1)  # noqa: E731
    return Aligned(
        labels_NK=stack(lambda part: part.labels, first),
        runs=[stack(lambda part: part.scores, part) for part in parts],
        thresholds=[stack(lambda part: part.thresholds, part) for part in parts] if lines.thresholds else None,
        folds=[part.fold for part in parts],
        keys=list(keys),
        subject=first.subject,
        record=first.record,
        start_s=first.start_s,
    )


def same_windows(a, b) -> bool:
    """Whether two ordered sets of lines (Predictions or Aligned) are about the same windows."""
    equal = np.array_equal(a.subject, b.subject) and np.array_equal(a.record, b.record)
    return equal and np.array_equal(a.start_s, b.start_s, equal_nan=True)


def _repeated(ordered: Predictions) -> int | None:
    """The first line about the same window as the line before it; windows without a start cannot be told apart."""
    equal = np.ones(max(len(ordered) - 1, 0), dtype=bool)
    for column in (ordered.subject, ordered.record, ordered.start_s):
        equal &= column[1:] == column[:-1]
    return int(np.argmax(equal)) + 1 if equal.any() else None


def _order(part: Predictions) -> np.ndarray:
    return np.lexsort((part.subject, part.start_s, part.record))


def _cells(values: np.ndarray) -> list:
    """Shortest text that reads back as the same number; whole numbers without a point, NaN as an empty cell."""
    return ["" if v != v else int(v) if v.is_integer() and abs(v) < 1e15 and not (v == 0 and np.signbit(v)) else repr(v) for v in values.tolist()]


def _numbers(path: str | Path, name: str, cells: Sequence[str], kind: type) -> np.ndarray:
    empty = kind is np.float64
    try:
        return np.array([np.nan if empty and not cell.strip() else kind(cell) for cell in cells], dtype=kind)
    except ValueError as error:
        raise ValueError(f"{path}, column {name}: {error}; expected numbers{' or empty cells' if empty else ''}") from None


assert PLAIN == tuple(f.name for f in fields(Predictions))[: len(PLAIN)]
