"""A table of means over windows: one row a method, one column a figure, intervals by resampling whole subjects, differences on the same resamples.

N windows, B resamples. Where subjects are unknown records take their place. It serves what has no class label: forecasts, imputations, reconstructions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from physio_train.statistics import MIN_CLUSTERS, interval, replicates


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A mean over windows with its interval; None where it is not defined. `n_left_out` windows had no value."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n_left_out: int = 0

    def text(self, *, signed: bool = False) -> str:
        """`0.912 [0.880, 0.931]`, or a dash."""
        if self.value is None:
            return "-"
        show = lambda v: f"{v:{'+' if signed else ''}.4g}"  # noqa: E731
        return show(self.value) + ("" if self.low is None else f" [{show(self.low)}, {show(self.high)}]")


@dataclass(frozen=True, kw_only=True)
class Scorecard:
    """Rows of figures by method, and what a reader must know."""

    title: str
    n_windows: int
    n_clusters: int
    clusters: str  # what is counted and resampled: subjects, or records where these are unknown
    rows: Mapping[str, Mapping[str, Figure]]
    difference: Mapping[str, Figure]  # of the first column, to `reference`
    reference: str
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The figures' names, in order."""
        return tuple(dict.fromkeys(column for row in self.rows.values() for column in row))

    def cells(self) -> list[list[str]]:
        """Header and rows as text."""
        head = ["row", *self.columns, *([f"{self.columns[0]} difference"] if self.difference else [])]
        none = Figure(value=None)
        body = [
            [name, *(row.get(c, none).text() for c in self.columns), *([self.difference.get(name, none).text(signed=True)] if self.difference else [])]
            for name, row in self.rows.items()
        ]
        return [head, *body]

    def plain(self) -> str:
        """Aligned text."""
        cells = self.cells()
        width = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, width, strict=True)).rstrip() for line in cells]
        return "\n".join([self.heading(), *lines, *(f"- {note}" for note in self.notes)])

    def markdown(self) -> str:
        """A GitHub table."""
        head, *body = self.cells()
        lines = [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body]]
        return "\n".join([f"**{self.heading()}**", "", *lines, "", *(f"- {note}" for note in self.notes)]).rstrip()

    def heading(self) -> str:
        """The title with its counts."""
        return f"{self.title}: {self.n_windows} windows, {self.n_clusters} {self.clusters}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; undefined figures are null."""
        plain = lambda f: {"value": f.value, "low": f.low, "high": f.high, "n_left_out": f.n_left_out}  # noqa: E731
        return {
            "title": self.title,
            "n_windows": self.n_windows,
            "n_subjects": self.n_clusters if self.clusters == "subjects" else None,
            "n_clusters": self.n_clusters,
            "clusters": self.clusters,
            "reference": self.reference,
            "rows": {name: {c: plain(f) for c, f in row.items()} for name, row in self.rows.items()},
            "difference": {name: plain(f) for name, f in self.difference.items()},
            "notes": list(self.notes),
        }


def mean_of_known(labels_N: np.ndarray, values_N: np.ndarray, *, weight: np.ndarray | None = None) -> float | np.ndarray:
    """The weighted mean of the values that are finite, NaN over none; `labels_N` is not looked at (`physio_train.statistics` gives it to every metric)."""
    known = np.isfinite(values_N)
    value = np.where(known, values_N, 0.0)
    w_BN = np.ones((1, len(value))) if weight is None else np.atleast_2d(weight)
    total_B = w_BN @ known
    out_B = np.where(total_B > 0, (w_BN @ value) / np.maximum(total_B, 1e-300), np.nan)
    return float(out_B[0]) if weight is None or np.ndim(weight) == 1 else out_B


def score(
    values: Mapping[str, Mapping[str, np.ndarray]],
    clusters_N: np.ndarray,
    *,
    title: str,
    reference: str,
    clusters: str = "subjects",
    notes: Sequence[str] = (),
    n_resamples: int = 1000,
    seed: int = 0,
) -> Scorecard:
    """`values[row][column]` (N,) per window -> the table. Differences of the first column to the row `reference` are over the same resamples of
    clusters; `clusters` says what these are: subjects, or records where a corpus names nobody.

    ValueError where a row has another number of windows, or there is no row `reference`.
    """
    clusters_N = np.asarray(clusters_N)
    if reference not in values:
        raise ValueError(f"reference {reference!r} is no row; rows are {', '.join(values)}")
    for name, row in values.items():
        for column, value_N in row.items():
            if np.shape(value_N) != clusters_N.shape:
                raise ValueError(f"{name}, {column}: values of shape {np.shape(value_N)} for {len(clusters_N)} windows")
    n_clusters = len(np.unique(clusters_N))
    said, lead = list(notes), next(iter(values[reference]))
    if n_clusters < MIN_CLUSTERS:
        said.append(f"n = {n_clusters} {clusters}, no interval")
    resampled = {
        name: {c: _replicates(v, clusters_N, n_resamples, seed) if n_clusters >= MIN_CLUSTERS else None for c, v in row.items()} for name, row in values.items()
    }
    rows = {name: {c: _figure(np.asarray(v), resampled[name][c]) for c, v in row.items()} for name, row in values.items()}
    difference = {}
    for name, row in values.items():
        if name != reference and lead in row:
            point = rows[name][lead].value, rows[reference][lead].value
            if None not in point:
                a, b = resampled[name][lead], resampled[reference][lead]
                difference[name] = _with_interval(point[0] - point[1], None if a is None else a - b, 0)
    for column in dict.fromkeys(c for row in values.values() for c in row):
        left = {name: row[column].n_left_out for name, row in rows.items() if column in row and row[column].n_left_out}
        if left:
            said.append(f"{column} is not defined in " + ", ".join(f"{n} windows of {name}" for name, n in left.items()) + ", which are left out of it")
    if difference:
        said.append(f"{lead} difference: to {reference}" + (f", on the same resamples of {clusters}" if n_clusters >= MIN_CLUSTERS else ""))
    return Scorecard(
        title=title,
        n_windows=len(clusters_N),
        n_clusters=n_clusters,
        clusters=clusters,
        rows=rows,
        difference=difference,
        reference=reference,
        notes=tuple(dict.fromkeys(said)),
    )


def strongest(values: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str], column: str) -> str:
    """The row of `names` with the lowest mean of a column of errors."""
    return min(names, key=lambda name: mean_of_known(np.zeros(0), np.asarray(values[name][column])))


def _replicates(value_N: np.ndarray, clusters_N: np.ndarray, n: int, seed: int) -> np.ndarray:
    return replicates(mean_of_known, np.zeros(len(clusters_N)), np.asarray(value_N, dtype=np.float64), clusters_N, n=n, seed=seed)


def _figure(value_N: np.ndarray, resampled_B: np.ndarray | None) -> Figure:
    point = mean_of_known(np.zeros(0), value_N)
    return _with_interval(point, resampled_B, int((~np.isfinite(value_N)).sum()))


def _with_interval(point: float, resampled_B: np.ndarray | None, left_out: int) -> Figure:
    if not np.isfinite(point):
        return Figure(value=None, n_left_out=left_out)
    if resampled_B is None:
        return Figure(value=float(point), n_left_out=left_out)
    found = interval(point, resampled_B)
    ends = (found.low, found.high) if np.isfinite(found.low) else (None, None)
    return Figure(value=float(point), low=ends[0], high=ends[1], n_left_out=left_out)
