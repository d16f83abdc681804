"""What a reader of a leaderboard must know beside its tables: the best row against the floors, subjects and classes by themselves. N windows, K classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from physio_train import comparisons, table
from physio_train.metrics import auroc, average_precision, ectopic_beats
from physio_train.predictions import Aligned, Predictions, align, clusters_of, same_windows
from physio_train.statistics import MIN_CLUSTERS
from physio_train.table import Table

FLOORS = ("twin", "handcrafted", "leak", "supervised")
ALPHA = 0.05
AAMI = ("N", "S", "V", "F", "Q")


def best_of(shown: Table) -> tuple[str, float] | None:
    """The best row that is no floor, with its figure."""
    lead = table.COLUMNS[shown.kind][0]
    own = [(row.name, row.cells[lead].value) for row in shown.rows if not is_floor(row.name) and row.cells[lead].value is not None]
    return (min if shown.kind == "regression" else max)(own, key=lambda pair: pair[1]) if own else None


def floor_of(name: str) -> str:
    """`twin` of `twin of a`, `handcrafted` of `handcrafted`."""
    return name.partition(" of ")[0]


def is_floor(name: str) -> bool:
    return floor_of(name) in FLOORS


def best_against_floors(shown: Table, there: Predictions, kind: str) -> list[str]:
    """Whether the best row is above each floor, by DeLong over subjects where there is one AUROC and one run a row."""
    best, lead = best_of(shown), table.COLUMNS[shown.kind][0]
    if best is None:
        return []
    figure = {row.name: row.cells[lead].value for row in shown.rows if row.cells[lead].value is not None}
    own = [name for name in figure if not is_floor(name)]
    which = f"best of {len(own)} rows, {best[0]}" if len(own) > 1 else best[0]
    notes = []
    for floor in (name for name in figure if floor_of(name) in ("handcrafted", "supervised")):
        above = best[1] < figure[floor] if kind == "regression" else best[1] > figure[floor]
        text = f"{which} ({best[1]:.3f}) is {'above' if above else 'not above'} {floor} ({figure[floor]:.3f})"
        notes.append(text + (delong_text(there, own, best[0], floor) if kind == "binary" else ""))
    return notes


def delong_text(there: Predictions, own: Sequence[str], best: str, floor: str) -> str:
    """The best row against a floor. It was picked among all of them on the windows that test it: its p is Holm's over all rows, its interval Bonferroni's."""
    level = 1 - ALPHA / len(own)
    found = {name: delong(there, name, floor, level) for name in own}
    if found[best] is None:
        return ""
    p = comparisons.holm([1.0 if each is None else each.p for each in found.values()])[own.index(best)]
    picked = f" (Holm over the {len(own)} rows, as the best was picked on these windows; interval at {100 * level:.3g} %)" if len(own) > 1 else ""
    value, n = found[best], len(np.unique(clusters_of(align(there, best))))
    return f"; DeLong over {n} clusters: {value.value:+.3f} [{value.low:+.3f}, {value.high:+.3f}], p = {p:.3g}{picked}"


def delong(there: Predictions, a: str, b: str, level: float) -> comparisons.Difference | None:
    """One row against another over subjects; None where there are several runs, other windows, few subjects or nothing to tell them apart by."""
    one, two = align(there, a), align(there, b)
    if len(one.runs) != 1 or len(two.runs) != 1 or not same_windows(one, two) or len(np.unique(clusters_of(one))) < MIN_CLUSTERS:
        return None
    try:
        found = comparisons.delong_difference(one.labels_NK[:, 0], one.runs[0][:, 0], two.runs[0][:, 0], clusters_of(one), level=level)
    except ValueError:
        return None  # fewer than two subjects hold one of the classes
    return found if np.isfinite(found.p) else None


def per_subject_notes(there: Predictions, kind: str) -> list[str]:
    """With fewer than ten subjects: each one's own figure, or why it has none."""
    first = align(there, there.rows[0])
    who = clusters_of(first)
    names = np.unique(who)
    if kind != "binary" or len(names) >= MIN_CLUSTERS:
        return []
    notes = []
    for row in there.rows:
        a = align(there, row)
        cells = []
        for name in names:
            part = who == name
            y = a.labels_NK[part, 0]
            both = len(np.unique(y[np.isfinite(y)])) > 1
            value = np.mean([auroc(y, run[part, 0]) for run in a.runs]) if both else None
            cells.append(f"{name} {value:.3f}" if both else f"{name} - (one class only)")
        notes.append(f"{row}, AUROC per subject: {', '.join(cells)}")
    return notes


def class_notes(there: Predictions, kind: str) -> list[str]:
    """Every class by itself, twins left out: AUROC and AP against all others, windows; of a multi-class task also sensitivity and precision of its calls."""
    if kind not in ("multiclass", "multilabel"):
        return []
    notes = []
    for row in (name for name in there.rows if not is_floor(name) or floor_of(name) in ("handcrafted", "supervised")):
        a = align(there, row)
        known = np.isfinite(a.labels_NK).all(axis=1) if kind == "multiclass" else np.ones(len(a.labels_NK), dtype=bool)
        parts = []
        for k, name in enumerate(there.names):
            y = a.labels_NK[known, k]
            n = int(np.nansum(y))
            if len(np.unique(y[np.isfinite(y)])) < 2:
                parts.append(f"{name} - (one class only)")
                continue
            area, ap = (np.mean([figure(y, run[known, k]) for run in a.runs]) for figure in (auroc, average_precision))
            text = f"{name} (n = {n}) AUROC {area:.3f}, AP {ap:.3f}"
            if kind == "multiclass":
                called = [np.argmax(run[known], axis=1) == k for run in a.runs]
                hits = [np.sum(c & (y == 1)) for c in called]
                precision = [h / c.sum() for h, c in zip(hits, called, strict=True) if c.any()]
                text += f", {rates([h / n for h in hits], precision)}"
            parts.append(text)
        notes.append(f"{row}, each class against all others: {'; '.join(parts)}")
        if kind == "multiclass" and set(there.names) == set(AAMI):
            notes.append(f"{row}, by the AAMI's rule: {ectopic_text(a, there.names, known)}")
    if any("by the AAMI's rule" in note for note in notes):
        notes.append("AAMI's rule (ANSI/AAMI EC57): a fusion or unclassifiable beat called V, or an unclassifiable one called S, is no false alarm")
    return notes


def ectopic_text(a: Aligned, classes: Sequence[str], known: np.ndarray) -> str:
    """`VEB Se 77.7 %, PPV 81.9 %; SVEB Se 75.9 %, PPV 38.5 %`, means over runs."""
    known = known & table.one_class(a)
    y_N = np.argmax(a.labels_NK[known], axis=1)
    runs = [ectopic_beats(y_N, np.argmax(run[known], axis=1), tuple(classes)) for run in a.runs]
    finite = lambda values: [v for v in values if np.isfinite(v)]  # noqa: E731
    return "; ".join(f"{name} {rates(finite([run[name][0] for run in runs]), finite([run[name][1] for run in runs]))}" for name in ("VEB", "SVEB"))


def rates(sensitivity: Sequence[float], precision: Sequence[float]) -> str:
    """Means over runs as `Se 77.7 %, PPV 81.9 %`."""
    se, ppv = (f"{100 * np.mean(values):.1f} %" if values else "" for values in (sensitivity, precision))
    return f"Se {se or '- (no such window)'}, PPV {ppv or '- (never called)'}"
