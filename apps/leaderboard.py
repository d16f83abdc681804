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
from claims import FLOORS, best_against_floors, best_of, class_notes, floor_of, is_floor, per_subject_notes
from console import say
from physio_train import floors, table
from physio_train import predictions as prediction_files
from physio_train.predictions import Predictions, align, concatenate, rename, same_windows
from physio_train.run import write_json
from physio_train.table import Table
from questions import heading_of

OWN = ("twin", "leak")  # floors that belong to one run: its network's twin, the check of its folds


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
    app = tyro.cli(Leaderboard, args=list(arguments), description=console.paragraphs(__doc__))
    if bool(app.runs) == bool(app.recipe):
        raise ValueError("give runs to compare, or --recipe benchmark")
    app.out.mkdir(parents=True, exist_ok=True)
    tables = of_benchmark(app) if app.recipe else of_runs(app.runs)
    write_page(app.out, tables)
    return {"out": app.out, "tables": len(tables), "best": {name: best_of(t)[0] for name, t in tables.items() if best_of(t)}}


# From runs


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder stores, and whether its leak check found no subject on both sides."""

    name: str
    predictions: Predictions
    task: str
    kind: str
    heading: str
    disjoint: bool


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that answered one question on the same windows: each one's rows, as it names them."""

    task: str
    kind: str
    runs: dict[str, Run]
    rows: dict[str, dict[str, Predictions]]  # by run and row


def of_runs(paths: Sequence[Path]) -> dict[str, Table]:
    """One table a question; a run's own rows carry its name and are compared with its own twin. Runs that scored other windows get a table of theirs."""
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"two runs have one name ({', '.join(sorted({n for n in names if names.count(n) > 1}))}): rename a folder")
    groups: list[Group] = []
    for run in runs:
        for row in run.predictions.rows:
            lines = run.predictions.take(run.predictions.row == row)
            place = next((g for g in groups if (g.task, g.kind) == (run.task, run.kind) and same_question(g, lines)), None)
            if place is None:
                groups.append(place := Group(task=run.task, kind=run.kind, runs={}, rows={}))
            place.runs[run.name] = run
            place.rows.setdefault(run.name, {})[row] = lines
    tables = {}
    for group in groups:
        name = group.task if group.task not in tables else f"{group.task} ({sum(k.startswith(group.task) for k in tables) + 1})"
        tables[name] = of_group(group)
    return tables


def of_group(group: Group) -> Table:
    """The table of some runs: floors that differ between them stand once each, and the heading is that of the run that may have seen most."""
    named, page = floor_names(group.rows), {}
    twins: dict[str, set[str]] = {}
    for run, rows in group.rows.items():
        for row, lines in rows.items():
            own = named.get((run, row)) or (run if row == "pretrained" else f"{run} {row}")
            if own in page and row not in FLOORS:
                raise ValueError(f"two rows would be called {own!r}: rename the folder of run {run}")
            page.setdefault(own, rename(lines, own))
            if row not in OWN:
                twins.setdefault(own, set()).add(named.get((run, "twin"), ""))
    reference = {row: min(of) for row, of in twins.items() if len(of) == 1 and min(of)}
    notes = []
    if alone := [run for run in group.rows if (run, "twin") not in named]:
        notes += [f"no twin is stored for {', '.join(alone)}, so no difference"] if len(alone) < len(group.rows) else []
    headings = {name: run.heading for name, run in group.runs.items()}
    if len(set(headings.values())) > 1:
        notes.append(f"headed as the run that may have seen most ({'; '.join(f'{name}: {heading}' for name, heading in headings.items())})")
    disjoint, leaks = [name for name, run in group.runs.items() if run.disjoint], any(row == "leak" for _, row in named)
    if disjoint and (leaks or len(disjoint) < len(group.runs)):
        notes.append(f"leak: subjects are disjoint over the folds of {', '.join(disjoint)}")
    worst = max(headings.values(), key=floors.HEADINGS.index)
    return scored(group.task, group.kind, worst, list(page.values()), {}, bool(disjoint) and not leaks, notes, reference=reference)


def floor_names(rows: Mapping[str, Mapping[str, Predictions]]) -> dict[tuple[str, str], str]:
    """What each run's floors are called: NAME where the runs that store it store the same (of twin and leak, which belong to a run, where all do), else
    `NAME of RUN, RUN`."""
    named = {}
    for floor in FLOORS:
        versions: list[list[str]] = []
        for run in (run for run in rows if floor in rows[run]):
            same = next((who for who in versions if same_scores(rows[who[0]][floor], rows[run][floor], floor)), None)
            versions.append([run]) if same is None else same.append(run)
        shared = len(versions) == 1 and (floor not in OWN or len(versions[0]) == len(rows))
        named |= {(run, floor): floor if shared else f"{floor} of {', '.join(who)}" for who in versions for run in who}
    return named


def read_run(path: Path) -> Run:
    """A run folder: its predictions, and what table.json beside them says."""
    if not (path / "predictions.csv").is_file():
        raise ValueError(f"{path} holds no predictions.csv: give a folder of probe.py, finetune.py or evaluate.py --out")
    name = path.resolve().name
    if is_floor(name):
        raise ValueError(f"{path} has the name of a floor ({', '.join(FLOORS)}): rename the folder")
    found = prediction_files.read(path / "predictions.csv")
    said = json.loads((path / "table.json").read_text(encoding="utf-8")) if (path / "table.json").is_file() else {}
    kind, heading = said.get("kind") or table.infer_kind(found), said.get("heading", "transductive")
    if heading not in floors.HEADINGS:
        raise ValueError(f"{path / 'table.json'} is headed {heading!r}, which is none of {'; '.join(floors.HEADINGS)}: run it again")
    disjoint = any(row["row"] == "leak" and row[table.COLUMNS[kind][0]].get("word") == "disjoint" for row in said.get("rows", ()))
    return Run(name=name, predictions=found, task=said.get("task", "+".join(found.names)), kind=kind, heading=heading, disjoint=disjoint)


def same_question(group: Group, lines: Predictions) -> bool:
    other = next(iter(next(iter(group.rows.values())).values()))
    return other.names == lines.names and same_windows(align(other, other.rows[0]), align(lines, lines.rows[0]))


def same_scores(a: Predictions, b: Predictions, row: str) -> bool:
    """Whether two runs stored one and the same row of the same windows."""
    one, two = align(a, row), align(b, row)
    same = len(one.runs) == len(two.runs) and np.array_equal(one.labels_NK, two.labels_NK, equal_nan=True)
    return same and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(one.runs, two.runs, strict=True))


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
    task: str,
    kind: str,
    heading: str,
    rows: Sequence[Predictions],
    twins: Mapping[str, Mapping[str, Predictions]],
    disjoint: bool,
    notes: Sequence[str],
    reference: str | Mapping[str, str] = "twin",
) -> Table:
    """The table of one question, its floors always in it: a floor that no run stored is an empty row with its reason; `reference` as in `table.score`."""
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
    said = [*notes, *per_subject_notes(there, kind), *class_notes(there, kind)]
    shown = table.score(there, kind=kind, heading=heading, reference=reference, disjoint=disjoint, task=task, notes=said)
    absent = [name for name in FLOORS if name not in [floor_of(row.name) for row in shown.rows]]
    lead = table.COLUMNS[kind][0]
    blank = {c: table.Cell(word="no predictions stored" if c == lead else "") for c in shown.rows[0].cells}
    empty = [table.Row(name=name, n_runs=0, cells=blank) for name in absent]
    more = best_against_floors(shown, there, kind)
    return table.Table(task=task, kind=kind, heading=heading, counts=shown.counts, rows=(*shown.rows, *empty), notes=(*shown.notes, *more))


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
