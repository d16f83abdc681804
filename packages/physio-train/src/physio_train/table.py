"""The probe table: every row of predictions.csv scored the same way, with intervals, floors and what a reader must know beneath.

N windows, K score columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from physio_train import metrics
from physio_train.comparisons import bootstrap_p, holm
from physio_train.floors import HEADINGS, headline
from physio_train.predictions import Aligned, Predictions, align, clusters_of, same_windows
from physio_train.statistics import MIN_CLUSTERS, interval, per_record_mean, replicates

COLUMNS = {
    "binary": ("AUROC", "AP", "AUROC per record", "AUROC per fold", "F1", "sens@spec.9", "Brier", "ECE", "difference", "p (Holm)"),
    "multiclass": ("AUROC", "AP", "AUROC per fold", "balanced accuracy", "macro F1", "accuracy", "Brier", "ECE", "difference", "p (Holm)"),
    "multilabel": ("AUROC", "AP", "AUROC per fold", "F1", "sens@spec.9", "Brier", "ECE", "difference", "p (Holm)"),
    "regression": ("MAE", "r2", "pearson", "MAE per fold", "difference", "p (Holm)"),
}
LOWER_IS_BETTER = {"MAE", "MAE per fold", "Brier", "ECE"}
SUPPORT = 10  # positives (and negatives) below which one label's AUROC is mostly chance


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure with its interval, a word instead of one, or nothing. A figure that is not defined is None, never NaN."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    word: str = ""  # beside a figure: why it has no interval; alone: why there is no figure

    def text(self, *, signed: bool = False) -> str:
        """`0.912 [0.880, 0.931]`, `0.912 (n = 3, no interval)`, the word alone, or a dash."""
        if self.value is None:
            return self.word or "-"
        show = lambda v: f"{v:{'+' if signed else ''}.3f}"  # noqa: E731
        if self.low is None or self.high is None:
            return show(self.value) + (f" ({self.word})" if self.word else "")
        return f"{show(self.value)} [{show(self.low)}, {show(self.high)}]"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: its name, over how many runs it is a mean, and its cells by column."""

    name: str
    n_runs: int
    cells: Mapping[str, Cell]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a probe prints: a heading (one of `floors.HEADINGS`), the counts, the rows and the notes."""

    task: str
    kind: str
    heading: str
    counts: Mapping[str, int]  # windows, subjects, positives, ...
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns, without those that are empty in every row."""
        return tuple(c for c in COLUMNS[self.kind] if any(row.cells[c] != Cell() for row in self.rows))

    def row(self, name: str) -> Row:
        """The row of that name; ValueError lists what there is."""
        found = next((row for row in self.rows if row.name == name), None)
        if found is None:
            raise ValueError(f"no row {name!r} in the table; rows are {', '.join(row.name for row in self.rows)}")
        return found

    def title(self) -> str:
        """`pvc, inductive: 4140 windows, 22 subjects, 1117 positives`."""
        return f"{self.task}, {self.heading}: " + ", ".join(f"{n} {name}" for name, n in self.counts.items())

    def cells(self) -> list[list[str]]:
        """Header and rows as text, for a terminal table or a CSV."""
        body = [[row.name, str(row.n_runs) if row.n_runs else "-", *(row.cells[c].text(signed=c == "difference") for c in self.columns)] for row in self.rows]
        return [["row", "runs", *self.columns], *body]

    def plain(self) -> str:
        """Aligned text with title and notes."""
        cells = self.cells()
        width = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, width, strict=True)).rstrip() for line in cells]
        return "\n".join([self.title(), *lines, *(f"- {note}" for note in self.notes)])

    def markdown(self) -> str:
        """A GitHub table with title and notes."""
        head, *body = self.cells()
        lines = [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body]]
        return "\n".join([f"**{self.title()}**", "", *lines, "", *(f"- {note}" for note in self.notes)]).rstrip()

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dumps(..., allow_nan=False); undefined figures are null."""
        cell = lambda c: {"value": c.value, "low": c.low, "high": c.high} | ({"word": c.word} if c.word else {})  # noqa: E731
        rows = [{"row": row.name, "n_runs": row.n_runs} | {name: cell(c) for name, c in row.cells.items()} for row in self.rows]
        return {"task": self.task, "kind": self.kind, "heading": self.heading, "counts": dict(self.counts), "rows": rows, "notes": list(self.notes)}


def score(
    predictions: Predictions,
    *,
    kind: str | None = None,
    heading: str = "transductive",
    reference: str | Mapping[str, str] = "twin",
    settings: Mapping[str, Mapping[str, Predictions]] | None = None,
    disjoint: bool | None = None,
    task: str | None = None,
    min_windows: int = 5,
    n_resamples: int = 1000,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> Table:
    """Score every row of the predictions.

    Figures are means over a row's runs (seeds, repeats); intervals and the paired `difference` to the `reference` row come from the same resamples of
    subjects (of records where subjects are unknown); below ten of either there is no interval, and the cell says so. The differences' p-values are Holm's.
    Where `reference` maps rows to their own, each is compared with its own and a row that it does not name with none. A row whose scores are missing (NaN) or
    constant keeps its line, with the reason in its first cell or a note. Windows of unknown label are left out. F1 needs the thresholds that `cross_validate`
    keeps; read back from a CSV its cell is empty. `settings` gives a row several candidates, {"twin": {"as initialised": predictions, ...}}: each cell then
    shows the strongest of them. `disjoint=True` adds the leak row, its cells the word `disjoint`. `kind` is inferred from the labels where it is not given.
    """
    if heading not in HEADINGS:
        raise ValueError(f"heading must be one of {'; '.join(HEADINGS)}, got {heading!r}")
    settings = settings or {}
    kind = kind or infer_kind(predictions)
    said = list(notes)
    candidates = {name: dict(settings[name]) if settings.get(name) else {"": predictions} for name in dict.fromkeys([*predictions.rows, *settings])}
    built, broken = {}, {}
    for name, parts in candidates.items():
        if n_missing := sum(_n_missing(align(part, name)) for part in parts.values()):
            broken[name] = f"{n_missing} scores are missing"
        else:
            built[name] = _Built(parts, name, kind, min_windows, n_resamples, seed)
    if not built:
        raise ValueError("no row can be scored: " + "; ".join(f"{name}: {why}" for name, why in broken.items()))
    first = next(iter(built.values()))
    found = {name: row.cells(said) for name, row in built.items()}
    of_row = {name: reference for name in built if name not in (reference, "leak")} if isinstance(reference, str) else dict(reference)
    compared = {name: other for name, other in of_row.items() if name in built and other in built}
    for name, other in compared.items():
        found[name]["difference"] = _difference(built[name], built[other], other, said)
    if compared:
        same = len(set(compared.values())) == 1
        text = next(iter(compared.values())) if same else f"its own reference ({'; '.join(f'{name}: {other}' for name, other in compared.items())})"
        said.append(f"difference: {COLUMNS[kind][0]} of the row minus that of {text}, on the same windows and resamples")
    for name, p in zip(compared, holm([_p(built[name], built[other], found[name]["difference"]) for name, other in compared.items()]), strict=True):
        found[name]["p (Holm)"] = Cell(value=float(p)) if np.isfinite(p) else Cell()
    lead = COLUMNS[kind][0]
    rows = []
    for name in candidates:
        cells = {lead: Cell(word=broken[name])} if name in broken else found[name]
        rows.append(Row(name=name, n_runs=len(built[name].best.runs) if name in built else 0, cells={c: cells.get(c, Cell()) for c in COLUMNS[kind]}))
    if disjoint and "leak" not in built:
        rows.append(Row(name="leak", n_runs=0, cells={c: Cell(word="disjoint") if c == COLUMNS[kind][0] else Cell() for c in COLUMNS[kind]}))
    said += _common_notes(first.best, built, kind)
    return Table(
        task=task or (predictions.names[0] if len(predictions.names) == 1 else "+".join(predictions.names)),
        kind=kind,
        heading=heading,
        counts=_counts(first.best, kind),
        rows=tuple(rows),
        notes=tuple(dict.fromkeys(said)),
    )


class _Built:
    """One row in the making: its candidates aligned, the strongest of them by the headline figure, and its resampled figures."""

    def __init__(self, parts: Mapping[str, Predictions], name: str, kind: str, min_windows: int, n_resamples: int, seed: int) -> None:
        self.name, self.kind, self.min_windows = name, kind, min_windows
        self.aligned = {setting: _labelled(align(part, name)) for setting, part in parts.items()}
        figures = {setting: _mean(lambda y, s: headline(y, s, kind), a) for setting, a in self.aligned.items()}
        sign = -1.0 if kind == "regression" else 1.0
        self.setting = max(figures, key=lambda setting: sign * figures[setting] if np.isfinite(figures[setting]) else -np.inf)
        self.figures, self.best = figures, self.aligned[self.setting]
        self.point = figures[self.setting]
        clusters = clusters_of(self.best)
        self.n_clusters = len(np.unique(clusters))
        self.replicates = np.full(0, np.nan) if self.n_clusters < MIN_CLUSTERS else _headline_replicates(self.best, kind, clusters, n_resamples, seed)

    def cells(self, notes: list[str]) -> dict[str, Cell]:
        """Every cell but the difference; where there are several settings, the strongest for each cell."""
        cells = {}
        for column, figure in _figures(self.kind, self.min_windows).items():
            values = [v for v in (figure(a) for a in self.aligned.values()) if v is not None and np.isfinite(v)]
            if values:
                cells[column] = Cell(value=min(values) if column in LOWER_IS_BETTER else max(values))
        lead = COLUMNS[self.kind][0]
        cells[lead] = _with_interval(self.point, self.replicates, self.name, notes, self.n_clusters)
        if cells[lead] == Cell():
            cells[lead] = Cell(word="no known label" if not len(self.best.subject) else "one class only" if self.kind != "regression" else "not defined")
        if self.kind != "regression" and len(self.best.subject) and all(np.ptp(run) == 0 for run in self.best.runs):
            notes.append(f"{self.name}: every score is the same, so that AUROC is 0.5 by definition")
        if len(self.aligned) > 1:
            listed = ", ".join(f"{setting} {value:.3f}" for setting, value in self.figures.items())
            notes.append(f"{self.name}: each cell is the strongest of its settings; {COLUMNS[self.kind][0]} by setting: {listed}")
        return cells


def _figures(kind: str, min_windows: int) -> dict[str, Callable[[Aligned], float | None]]:
    """Column -> figure of a row; None where it does not apply."""
    pooled = lambda metric: lambda a: _mean(lambda y, s: metrics.macro(metric, y, s), a)  # noqa: E731
    per_fold = lambda a: _per_fold(a, kind)  # noqa: E731
    if kind == "regression":
        plain = lambda metric: lambda a: _mean(lambda y, s: metric(y[:, 0], s[:, 0]), a)  # noqa: E731
        return {"r2": plain(metrics.r2), "pearson": plain(metrics.pearson), "MAE per fold": per_fold}
    shared = {
        "AP": pooled(metrics.average_precision),
        "AUROC per fold": per_fold,
        "Brier": lambda a: pooled(metrics.brier)(a) if _probabilities(a) else None,
        "ECE": lambda a: pooled(metrics.ece)(a) if _probabilities(a) else None,
    }
    if kind == "multiclass":
        called = lambda metric: lambda a: _of_calls(metric, a)  # noqa: E731
        names = {"balanced accuracy": metrics.balanced_accuracy, "macro F1": metrics.macro_f1, "accuracy": metrics.accuracy}
        return shared | {name: called(metric) for name, metric in names.items()}
    shared |= {"F1": _f1, "sens@spec.9": pooled(metrics.sensitivity_at_specificity)}
    if kind == "binary":
        shared["AUROC per record"] = lambda a: per_record_mean(a.labels_NK[:, 0], [run[:, 0] for run in a.runs], a.record, min_windows=min_windows)[0]
    return shared


def _mean(figure: Callable[[np.ndarray, np.ndarray], float], a: Aligned) -> float:
    return float(np.mean([figure(a.labels_NK, run) for run in a.runs]))


def _of_calls(metric: Callable[[np.ndarray, np.ndarray], float], a: Aligned) -> float | None:
    """A figure of the calls, the class of the highest score; a window of no class that is scored cannot be called right and is left out."""
    one_N = one_class(a)
    if not one_N.any():
        return None
    y_N = np.argmax(a.labels_NK[one_N], axis=1)
    return float(np.mean([metric(y_N, np.argmax(run[one_N], axis=1)) for run in a.runs]))


def one_class(a: Aligned) -> np.ndarray:
    """Windows (N,) whose class has a column; a label map may reach only some of the data's classes."""
    return np.nansum(a.labels_NK, axis=1) == 1


def _f1(a: Aligned) -> float | None:
    if a.thresholds is None or not all(np.isfinite(t).all() for t in a.thresholds):
        return None
    per_run = []
    for run, threshold in zip(a.runs, a.thresholds, strict=True):
        columns = [metrics.f1_at(a.labels_NK[:, k], run[:, k], threshold=threshold[:, k]) for k in range(run.shape[1])]
        defined = [value for value in columns if np.isfinite(value)]
        per_run.append(np.mean(defined) if defined else np.nan)
    return float(np.mean(per_run))


def _per_fold(a: Aligned, kind: str) -> float | None:
    """Mean over folds, then over runs; folds where the figure is not defined are left out. None for a single fold."""
    per_run = []
    for run, fold in zip(a.runs, a.folds, strict=True):
        names = np.unique(fold)
        if len(names) < 2:
            return None
        figures = [headline(a.labels_NK[fold == name], run[fold == name], kind) for name in names]
        defined = [f for f in figures if np.isfinite(f)]
        per_run.append(np.mean(defined) if defined else np.nan)
    return float(np.mean(per_run))


def _difference(row: _Built, floor: _Built, reference: str, notes: list[str]) -> Cell:
    if not same_windows(row.best, floor.best):
        notes.append(f"{row.name}: scored on other windows than {reference}, so there is no paired difference")
        return Cell()
    return _with_interval(row.point - floor.point, row.replicates - floor.replicates, f"{row.name} - {reference}", notes, row.n_clusters)


def _p(row: _Built, floor: _Built, difference: Cell) -> float:
    return float("nan") if difference.low is None else bootstrap_p(row.replicates - floor.replicates)


def _headline_replicates(a: Aligned, kind: str, clusters: np.ndarray, n: int, seed: int) -> np.ndarray:
    """The headline figure in every resample; labels absent from a resample are left out of its macro mean."""
    if kind == "regression":
        return replicates(metrics.mae, a.labels_NK[:, 0], [run[:, 0] for run in a.runs], clusters, n=n, seed=seed)
    by_label = [[replicates(metrics.auroc, a.labels_NK[:, k], run[:, k], clusters, n=n, seed=seed) for k in range(run.shape[1])] for run in a.runs]
    each_RKB = np.array(by_label)
    known = np.isfinite(each_RKB)
    n_known_RB = known.sum(axis=1)
    macro_RB = np.where(n_known_RB > 0, np.where(known, each_RKB, 0.0).sum(axis=1) / np.maximum(n_known_RB, 1), np.nan)
    return macro_RB.mean(axis=0)


def _with_interval(point: float, replicates_B: np.ndarray, name: str, notes: list[str], n_clusters: int) -> Cell:
    if not np.isfinite(point):
        return Cell()
    found = interval(point, replicates_B, n_clusters=n_clusters)
    if not np.isfinite(found.low):
        return Cell(value=float(point), word=found.word)
    if found.n_dropped:
        notes.append(f"{name}: {found.n_dropped} of {found.n_resamples} resamples had no defined figure and were left out")
    if found.widened:
        notes.append(f"{name}: the resamples lie beside the point, so the interval was widened to hold it")
    return Cell(value=float(point), low=found.low, high=found.high)


def _n_missing(a: Aligned) -> int:
    """Scores that are not finite although the window has a known label."""
    known = np.isfinite(a.labels_NK).any(axis=1)
    return sum(int((~np.isfinite(run[known])).sum()) for run in a.runs)


def _labelled(a: Aligned) -> Aligned:
    """Without the windows whose labels are all unknown."""
    keep = np.isfinite(a.labels_NK).any(axis=1)
    cut = lambda arrays: None if arrays is None else [v[keep] for v in arrays]  # noqa: E731
    return Aligned(a.labels_NK[keep], cut(a.runs), cut(a.thresholds), cut(a.folds), a.keys, a.subject[keep], a.record[keep], a.start_s[keep])


def _probabilities(a: Aligned) -> bool:
    return all(((run >= 0) & (run <= 1)).all() for run in a.runs)


def _counts(a: Aligned, kind: str) -> dict[str, int]:
    counts = {"windows": len(a.subject)}
    if np.any(a.subject != ""):
        counts["subjects"] = len(np.unique(a.subject[a.subject != ""]))
    if np.any(a.record != ""):
        counts["records"] = len(np.unique(a.record))
    if kind == "binary":
        counts["positives"] = int(np.nansum(a.labels_NK))  # AP is read against positives / windows, the prevalence
    return counts


def _common_notes(first: Aligned, built: Mapping[str, _Built], kind: str) -> list[str]:
    notes = []
    if not len(first.subject):
        notes.append("no window has a known label: scores only")
    elif not np.any(first.subject != ""):
        notes.append("subjects: unknown" + ("; intervals resample records" if len(np.unique(first.record)) > 1 else "; no interval"))
    if kind in ("binary", "multilabel") and all(row.best.thresholds is None for row in built.values()):
        notes.append("F1 needs a threshold chosen on validation, which predictions.csv does not carry")
    if kind in ("multiclass", "multilabel"):
        absent = [k for k in range(first.labels_NK.shape[1]) if len(np.unique(first.labels_NK[np.isfinite(first.labels_NK[:, k]), k])) < 2]
        if absent:
            notes.append(f"macro figures leave out {len(absent)} labels with one class only")
    if kind == "multiclass" and (n_other := int((~one_class(first)).sum())):
        notes.append(
            f"{n_other} windows are of a class that is not scored: accuracy, balanced accuracy and macro F1 leave them out, "
            "the other figures count them as negatives of every class"
        )
    if kind != "regression" and any(_probabilities(row.best) for row in built.values()):
        notes.append("Brier and ECE of fits that weigh classes equally (the probe's default) measure that weighting too")
    if kind != "regression" and len(first.subject):
        notes.append(f"AP of chance (prevalence): {_prevalence(first):.3f}")
        thin = _thin(first)
        if thin.any() and not thin.all():
            listed = ", ".join(f"{name} {_mean(lambda y, s: metrics.macro_auroc(y[:, ~thin], s[:, ~thin]), row.best):.3f}" for name, row in built.items())
            notes.append(f"macro AUROC of the {int((~thin).sum())} of {len(thin)} labels with at least {SUPPORT} windows of each class: {listed}")
    return notes


def _prevalence(a: Aligned) -> float:
    """Mean over labels of the share of positives."""
    rates = [float(np.nanmean(y)) for y in a.labels_NK.T if np.isfinite(y).any()]
    return float(np.mean(rates))


def _thin(a: Aligned) -> np.ndarray:
    """Labels (K,) with fewer than `SUPPORT` windows of either class."""
    return np.minimum((a.labels_NK == 1).sum(axis=0), (a.labels_NK == 0).sum(axis=0)) < SUPPORT


def infer_kind(predictions: Predictions) -> str:
    """The kind of task that the labels look like: regression, binary, multiclass (one class a window), or multilabel."""
    label_NK = np.stack([predictions.labels[name] for name in predictions.names], axis=1)
    known = label_NK[np.isfinite(label_NK).all(axis=1)]
    if not np.isin(known, (0, 1)).all():
        return "regression"
    if label_NK.shape[1] == 1:
        return "binary"
    return "multiclass" if len(known) and (known.sum(axis=1) == 1).all() else "multilabel"
