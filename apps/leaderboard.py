"""One page that compares runs: from the predictions they stored, or from the benchmark, which is run and resumed as needed.

uv run apps/leaderboard.py runs/a-probe runs/b-probe --out runs/page
uv run apps/leaderboard.py --recipe benchmark --size fast --root ../shared/data --out runs/benchmark
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

import benchmark
import console
import figures
from console import say
from physio_train import comparisons, floors, table
from physio_train import predictions as prediction_files
from physio_train.predictions import Predictions, align, concatenate, rename, same_windows
from physio_train.run import write_json
from physio_train.table import Table
from questions import heading_of

FLOORS = ("twin", "handcrafted", "leak", "supervised")


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """A page of tables, one a question, with floors, intervals, paired differences and the figure."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of probe.py, finetune.py or evaluate.py --out, each with predictions.csv."""
    out: Path
    """Folder of the page."""
    recipe: Literal["benchmark"] | None = None
    """Run the benchmark, or go on with it, instead of reading runs."""
    size: Literal["tiny", "fast", "reference"] = "fast"
    """tiny: a minute or two a corpus, for tests; fast: three hours on two cores; reference: a GPU."""
    root: Path = Path("../shared/data")
    """Folder that holds the corpora's folders (mitdb, cinc2017, ptbxl, ppgbp, cpsc2021, ucr_small)."""
    sources: tuple[str, ...] = ()
    """Sources of the benchmark to run. Default: all."""
    methods: tuple[str, ...] = benchmark.METHODS
    """Pretrained rows of the benchmark."""
    jobs: int = min(2, os.cpu_count() or 1)
    """Processes, of one thread each."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(Leaderboard, args=list(arguments), description=__doc__)
    if bool(app.runs) == bool(app.recipe):
        raise ValueError("give runs to compare, or --recipe benchmark")
    app.out.mkdir(parents=True, exist_ok=True)
    tables = of_benchmark(app) if app.recipe else of_runs(app.runs)
    write_page(app.out, tables)
    return {"out": app.out, "tables": len(tables), "best": {name: best_of(t)[0] for name, t in tables.items() if best_of(t)}}


# From runs


def of_runs(paths: Sequence[Path]) -> dict[str, Table]:
    """One table a task; a run's own rows carry its name, floors that runs share stand once. Runs that scored other windows get a table of theirs."""
    names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"two runs have one name ({', '.join(sorted({n for n in names if names.count(n) > 1}))}): rename a folder")
    groups: list[tuple[str, str, str, dict[str, Predictions]]] = []
    apart: set[str] = set()  # tasks of runs that found subjects disjoint over their folds
    for path, name in zip(paths, names, strict=True):
        found, task, kind, heading, disjoint = read_run(path)
        apart |= {task} if disjoint else set()
        for row in found.rows:
            own = row if row in FLOORS else name if row == "pretrained" else f"{name} {row}"
            lines = rename(found.take(found.row == row), own)
            place = next((g for g in groups if g[0] == task and g[1] == kind and same_question(g[3], lines)), None)
            if place is None:
                groups.append((task, kind, heading, {own: lines}))
            elif own not in place[3]:
                place[3][own] = lines
    tables = {}
    for task, kind, heading, rows in groups:
        name = task if task not in tables else f"{task} ({sum(k.startswith(task) for k in tables) + 1})"
        tables[name] = scored(task, kind, heading, list(rows.values()), {}, "leak" not in rows and task in apart, [])
    return tables


def read_run(path: Path) -> tuple[Predictions, str, str, str, bool]:
    """Predictions, task, kind and heading of a run folder, and whether its leak check found no subject on both sides."""
    if not (path / "predictions.csv").is_file():
        raise ValueError(f"{path} holds no predictions.csv: give a folder of probe.py, finetune.py or evaluate.py --out")
    found = prediction_files.read(path / "predictions.csv")
    said = json.loads((path / "table.json").read_text(encoding="utf-8")) if (path / "table.json").is_file() else {}
    kind = said.get("kind") or table.infer_kind(found)
    disjoint = any(row["row"] == "leak" and row[table.COLUMNS[kind][0]].get("word") == "disjoint" for row in said.get("rows", ()))
    return found, said.get("task", "+".join(found.names)), kind, said.get("heading", "transductive"), disjoint


def same_question(rows: Mapping[str, Predictions], lines: Predictions) -> bool:
    other = next(iter(rows.values()))
    return other.names == lines.names and same_windows(align(other, other.rows[0]), align(lines, lines.rows[0]))


# From the benchmark


def of_benchmark(app: Leaderboard) -> dict[str, Table]:
    """Run what is missing, source by source; the page is written anew after each, so that an interrupted one can be read."""
    claim(app)
    sources, absent = benchmark.wanted(app.sources, app.root, app.size)
    tables: dict[str, Table] = {}
    for source in sources:
        store = benchmark.prepared(source, app.root, app.out, app.size, app.jobs)
        folder = app.out / "stores" / source.name
        for task in source.tasks:
            say(f"{source.name}: {task}")
            todo, question, specs, refused = benchmark.cells(source, store, folder, task, app.out, app.size, app.methods)
            refused += benchmark.run_cells(todo, app.jobs, benchmark.keep_cell)
            whole, twins, disjoint = benchmark.stored(todo, question, specs)
            heading = heading_of(store, question.rows_N, ())  # every method is pretrained inside its fold
            notes = [*dict.fromkeys(refused), benchmark.pretraining_note(source, store, app.out), *source_notes(store, question)]
            tables[f"{source.name}: {task}"] = scored(task, question.task.kind, heading, whole, twins, disjoint, notes)
            write_page(app.out, tables, absent)
    if not tables:
        raise ValueError(f"no source of the benchmark is there under {app.root}: {'; '.join(absent)}")
    return tables


def claim(app: Leaderboard) -> None:
    path = app.out / "asked.json"
    asked = benchmark.identity(app.root, app.size, app.methods)
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != asked:
        raise ValueError(f"{app.out} holds a page of another size, root or set of methods: choose another --out")
    write_json(path, asked)


def source_notes(store, question) -> list[str]:
    """Which classes the scored windows hold, and the subjects' own figures where there are few."""
    notes = [] if store.manifest.get("subjects", "known") == "known" else ["subjects: unknown; records are kept whole"]
    y, task = question.windows.y, question.task
    if task.kind in ("multiclass", "multilabel"):
        label_NK = task.columns_of(y)
        notes.append("windows by class: " + ", ".join(f"{c} {int(np.nansum(label_NK[:, k]))}" for k, c in enumerate(task.columns)))
    return notes


# Tables


def scored(
    task: str, kind: str, heading: str, rows: Sequence[Predictions], twins: Mapping[str, Mapping[str, Predictions]], disjoint: bool, notes: Sequence[str]
) -> Table:
    """The table of one question, its floors always in it: a floor that no run stored is an empty row with its reason."""
    settings = {row: dict(by) for row, by in twins.items()}
    strongest = {row: floors.strongest(by, kind=kind, row=row) for row, by in settings.items()}
    if strongest:
        sign = -1.0 if kind == "regression" else 1.0
        top = max(strongest, key=lambda row: sign * strongest[row].figures[strongest[row].setting])
        rows = [*rows, rename(strongest[top].predictions, "twin")]
        notes = [*notes, f"twin: the strongest of the methods' untrained networks, {top} ({strongest[top].setting}); the others stand in their own rows"]
    parts = [*rows, *(rename(found.predictions, row) for row, found in strongest.items() if len(strongest) > 1)]
    if not parts:
        return table.Table(task=task, kind=kind, heading=heading, counts={}, rows=(), notes=(*notes, "no row could be fitted"))
    there = concatenate(parts)
    shown = table.score(
        there, kind=kind, heading=heading, disjoint=disjoint, task=task, notes=[*notes, *per_subject_notes(there, kind), *class_notes(there, kind)]
    )
    absent = [name for name in FLOORS if name not in [row.name for row in shown.rows]]
    lead = table.COLUMNS[kind][0]
    blank = {c: table.Cell(word="no predictions stored" if c == lead else "") for c in shown.rows[0].cells}
    empty = [table.Row(name=name, n_runs=0, cells=blank) for name in absent]
    more = best_against_floors(shown, there, kind)
    return table.Table(task=task, kind=kind, heading=heading, counts=shown.counts, rows=(*shown.rows, *empty), notes=(*shown.notes, *more))


def best_of(shown: Table) -> tuple[str, float] | None:
    """The best row that is no floor, with its figure."""
    lead = table.COLUMNS[shown.kind][0]
    own = [(row.name, row.cells[lead].value) for row in shown.rows if not is_floor(row.name) and row.cells[lead].value is not None]
    return (min if shown.kind == "regression" else max)(own, key=lambda pair: pair[1]) if own else None


def is_floor(name: str) -> bool:
    return name in FLOORS or name.startswith("twin of ")


def best_against_floors(shown: Table, there: Predictions, kind: str) -> list[str]:
    """Whether the best row is above each floor, by DeLong over subjects where there is one AUROC and one run a row."""
    best, lead = best_of(shown), table.COLUMNS[shown.kind][0]
    if best is None:
        return []
    notes = []
    for floor in ("handcrafted", "supervised"):
        row = next((r for r in shown.rows if r.name == floor and r.cells[lead].value is not None), None)
        if row is None:
            continue
        above = best[1] < row.cells[lead].value if kind == "regression" else best[1] > row.cells[lead].value
        text = f"best row {best[0]} ({best[1]:.3f}) is {'above' if above else 'not above'} {floor} ({row.cells[lead].value:.3f})"
        if kind == "binary":
            text += delong_text(there, best[0], floor)
        notes.append(text)
    return notes


def delong_text(there: Predictions, a: str, b: str) -> str:
    one, two = align(there, a), align(there, b)
    clusters = np.where(one.subject != "", one.subject, one.record)
    if len(one.runs) != 1 or len(two.runs) != 1 or not same_windows(one, two) or len(np.unique(clusters)) < 10:
        return ""
    try:
        found = comparisons.delong_difference(one.labels_NK[:, 0], one.runs[0][:, 0], two.runs[0][:, 0], clusters)
    except ValueError:
        return ""  # fewer than two subjects hold one of the classes
    return f"; DeLong over {len(np.unique(clusters))} clusters: {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}], p = {found.p:.3g}"


def per_subject_notes(there: Predictions, kind: str) -> list[str]:
    """With fewer than ten subjects: each one's own figure, or why it has none."""
    first = align(there, there.rows[0])
    who = np.where(first.subject != "", first.subject, first.record)
    names = np.unique(who)
    if kind != "binary" or len(names) >= 10:
        return []
    notes = []
    for row in there.rows:
        a = align(there, row)
        cells = []
        for name in names:
            part = who == name
            y = a.labels_NK[part, 0]
            both = len(np.unique(y[np.isfinite(y)])) > 1
            value = np.mean([table.metrics.auroc(y, run[part, 0]) for run in a.runs]) if both else None
            cells.append(f"{name} {value:.3f}" if both else f"{name} - (one class only)")
        notes.append(f"{row}, AUROC per subject: {', '.join(cells)}")
    return notes


def class_notes(there: Predictions, kind: str) -> list[str]:
    """Every class by itself, twins left out: AUROC and AP against all others, windows; of a multi-class task also sensitivity and precision of its calls."""
    if kind not in ("multiclass", "multilabel"):
        return []
    notes = []
    for row in (name for name in there.rows if not is_floor(name) or name in ("handcrafted", "supervised")):
        a = align(there, row)
        known = np.isfinite(a.labels_NK).all(axis=1) if kind == "multiclass" else np.ones(len(a.labels_NK), dtype=bool)
        parts = []
        for k, name in enumerate(there.names):
            y = a.labels_NK[known, k]
            n = int(np.nansum(y))
            if len(np.unique(y[np.isfinite(y)])) < 2:
                parts.append(f"{name} - (one class only)")
                continue
            auroc, ap = (np.mean([figure(y, run[known, k]) for run in a.runs]) for figure in (table.metrics.auroc, table.metrics.average_precision))
            text = f"{name} (n = {n}) AUROC {auroc:.3f}, AP {ap:.3f}"
            if kind == "multiclass":
                called = [np.argmax(run[known], axis=1) == k for run in a.runs]
                hits = [np.sum(c & (y == 1)) for c in called]
                sensitivity = np.mean([h / n for h in hits])
                precision = [h / c.sum() for h, c in zip(hits, called, strict=True) if c.any()]
                text += f", Se {100 * sensitivity:.1f} %, PPV {f'{100 * np.mean(precision):.1f} %' if precision else '- (never called)'}"
            parts.append(text)
        notes.append(f"{row}: {'; '.join(parts)}")
    return notes


# The page


def write_page(out: Path, tables: Mapping[str, Table], absent: Sequence[str] = ()) -> None:
    """leaderboard.md, .csv, .json and the figure."""
    text = ["# Leaderboard", ""]
    for name, shown in tables.items():
        text += [f"## {name}", "", shown.markdown(), ""]
    text += [f"- not run: {line}" for line in absent]
    (out / "leaderboard.md").write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    with (out / "leaderboard.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["table", "heading", "row", "runs", "column", "value", "low", "high", "word"])
        for name, shown in tables.items():
            for row in shown.rows:
                for column in shown.columns:
                    cell = row.cells[column]
                    writer.writerow(
                        [name, shown.heading, row.name, row.n_runs, column, *("" if v is None else v for v in (cell.value, cell.low, cell.high)), cell.word]
                    )
    write_json(out / "leaderboard.json", {name: shown.to_json() for name, shown in tables.items()})
    figures.leaderboard(out / "figures" / "leaderboard.png", tables, table.COLUMNS)


if __name__ == "__main__":
    console.run(main)
