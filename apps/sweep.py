"""Train a recipe at every point of a grid, with several seeds, and put what came out into one table.

uv run apps/sweep.py himae_ppg --grid fit.lr=1e-3,3e-4 --grid objective.mask_ratio=0.5,0.8 --seeds 3 --out sweeps/a
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import tyro

import compose
import console
import pretrain
from compose import Size
from physio_train.run import write_json
from prepare import prepared

APPS = Path(__file__).parent
STOPPED = (130, 143, -2, -15)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Grid x seeds -> runs. The same command goes on where it stopped and tries again what failed; a longer grid or more seeds add runs to what is there."""

    recipe: tyro.conf.Positional[str]
    """A file of apps/recipes."""
    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=VALUE,VALUE,... of the recipe's config, as fit.lr=1e-3,3e-4; what a field of several values takes stands apart by spaces: fit.betas="0.9 0.99"."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=VALUE for all runs."""
    seeds: int = 1
    """Training seeds 0, 1, ... at each point."""
    size: Size = "fast"
    """The recipe's size."""
    data: tuple[Path, ...] = ()
    """Prepared stores. Default: the recipe prepares its own under stores/, once."""
    out: Path
    """Folder of the runs and the table."""
    jobs: int = 1
    """Runs at a time."""
    table: bool = True
    """Probe every run."""
    dry_run: bool = False
    """Print the commands, run nothing."""


@dataclass(frozen=True)
class Point:
    """One run: the values of the grid's fields, and a seed."""

    values: tuple[tuple[str, str], ...]  # (field, value) in the grid's order
    seed: int

    @property
    def name(self) -> str:
        """What the run's folder is called."""
        said = "_".join([*(f"{field}={value}" for field, value in self.values), f"seed{self.seed}"])
        safe = re.sub(r"[^A-Za-z0-9.=_+-]", "-", said)[:120]
        return safe if safe == said else f"{safe}-{hashlib.sha256(said.encode()).hexdigest()[:6]}"


Launch = Callable[[Sequence[str]], tuple[int, str, str]]
"""A command's exit code, stdout and stderr."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    return run(tyro.cli(Sweep, args=list(arguments), description=console.paragraphs(__doc__)), launched)


def run(app: Sweep, launch: Launch) -> Mapping[str, object]:
    """Every run that is missing, then the table."""
    began = time.monotonic()
    points = points_of(app)
    for point in points:
        pretrain.parse(flags_of(app, point))  # what the recipe does not have is refused before anything runs
    if app.dry_run:
        for point in points:
            console.say(" ".join(command_of(app, point)))
        return {"dry_run": True, "runs": len(points)}
    claim(app)
    prepare_once(app, points)
    todo = [point for point in points if result_of(app, point).get("status") != "done"]
    with console.progress("sweep", len(points)) as show, ThreadPoolExecutor(app.jobs) as pool:
        show(len(points) - len(todo), "")
        running = {pool.submit(one, app, point, launch): point for point in todo}
        try:
            for number, future in enumerate(as_completed(running), start=1):
                show(len(points) - len(todo) + number, f"{running[future].name} {future.result()}")
        except (KeyboardInterrupt, console.Stopped):
            pool.shutdown(wait=True, cancel_futures=True)
            raise console.Stopped("finished runs are kept and the one cut off goes on from its last checkpoint: give the same command again") from None
    results = [result_of(app, point) for point in points]
    lines = summarised(app, points, results)
    write_tables(app, points, results, lines)
    print(markdown(app, lines), flush=True)
    failed = [(point.name, result["error"]) for point, result in zip(points, results, strict=True) if result["status"] == "failed"]
    if failed:
        named = "; ".join(f"{name}: {error}" for name, error in failed[:5])
        raise console.Failed(f"{len(failed)} of {len(points)} runs failed ({named}); the table is {app.out / 'table.md'}, the same command tries them again")
    best = min((line for line in lines if line["val_loss"] is not None), key=lambda line: line["val_loss"], default=None)
    chosen = None if best is None else {key: best[key] for key in fields_of(app)}
    return {"out": app.out, "runs": len(points), "points": len(lines), "lowest_val_loss": chosen, "table": lines, "seconds": round(time.monotonic() - began, 1)}


# What is run


def points_of(app: Sweep) -> list[Point]:
    """The grid's points in its order, the seeds of each together. ValueError for an entry that is none."""
    if app.seeds < 1 or app.jobs < 1:
        raise ValueError(f"--seeds and --jobs must be at least 1, got {app.seeds} and {app.jobs}")
    axes = []
    for entry in app.grid:
        field, equals, values = entry.partition("=")
        found = [value.strip() for value in values.split(",")]
        if not equals or not field or "" in found or len(set(found)) < len(found):
            raise ValueError(f"--grid must read FIELD=VALUE,VALUE,... with different values, got {entry!r}")
        axes.append([(field, value) for value in found])
    named = [axis[0][0] for axis in axes] + [entry.partition("=")[0] for entry in app.set]
    if len(set(named)) < len(named) or "fit.seed" in named:
        raise ValueError(f"each field can be named once, and fit.seed is what --seeds counts; got {', '.join(named)}")
    return [Point(values, seed) for values in itertools.product(*axes) for seed in range(app.seeds)]


def fields_of(app: Sweep) -> list[str]:
    return [entry.partition("=")[0] for entry in app.grid]


def flags_of(app: Sweep, point: Point) -> list[str]:
    """The flags of pretrain.py at a point."""
    flags = [app.recipe, "--size", app.size]
    if app.data:
        flags += ["--data", *map(str, app.data)]
    for field, value in (*(tuple(entry.split("=", 1)) for entry in app.set if "=" in entry), *point.values):
        flags += flag(field, value)
    if wrong := [entry for entry in app.set if "=" not in entry]:
        raise ValueError(f"--set must read FIELD=VALUE, got {wrong[0]!r}")
    return [*flags, "--fit.seed", str(point.seed), *([] if app.table else ["--no-table"])]


def flag(field: str, value: str) -> list[str]:
    """A field of the config as a flag: switches have no value of their own."""
    name = field.replace("_", "-")
    if value in ("True", "False"):
        head, dot, last = name.rpartition(".")
        return [f"--{head}{dot}{'' if value == 'True' else 'no-'}{last}"]
    return [f"--{name}", *value.split(" ")]


def command_of(app: Sweep, point: Point) -> list[str]:
    """The command that makes a run, or goes on with one that has a checkpoint."""
    folder = app.out / point.name
    jobs = ["--jobs", "1"]
    start = [sys.executable, str(APPS / "pretrain.py")]
    if (folder / "config.json").is_file() and any((folder / "checkpoints").glob("step_*")):
        return [*start, "--resume", str(folder), *([] if app.table else ["--no-table"]), *jobs]
    return [*start, *flags_of(app, point), "--out", str(folder), *jobs]


def launched(command: Sequence[str]) -> tuple[int, str, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def one(app: Sweep, point: Point, launch: Launch) -> str:
    """Do one run and keep what came of it; returns its state."""
    command = command_of(app, point)
    folder = app.out / point.name
    if "--resume" not in command:
        shutil.rmtree(folder, ignore_errors=True)  # cut off before its first checkpoint
    code, said, errors = launch(command)
    if code in STOPPED:
        raise console.Stopped(point.name)
    lines = [line for line in said.splitlines() if line.startswith("{")]
    if code == 0 and lines:
        write_json(app.out / f"{point.name}.json", {"status": "done", "summary": json.loads(lines[-1])})
        return "done"
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), f"exit code {code}").removeprefix("error: ")
    write_json(app.out / f"{point.name}.json", {"status": "failed", "error": last, "code": code})
    (app.out / f"{point.name}.log").write_text(errors, encoding="utf-8")
    return f"failed: {last}"


def result_of(app: Sweep, point: Point) -> dict:
    path = app.out / f"{point.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"status": "missing", "error": "was not run"}


def claim(app: Sweep) -> None:
    """Make the folder; one that is there is gone on with for the same recipe, data and fixed fields only."""
    asked = {
        "recipe": app.recipe,
        "size": app.size,
        "data": [str(path) for path in app.data],
        "set": sorted(app.set),
        "table": app.table,
        "fields": fields_of(app),
    }
    path = app.out / "sweep.json"
    if path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))
        if differing := [key for key in asked if saved.get(key) != asked[key]]:
            raise ValueError(f"{app.out} holds another sweep ({', '.join(differing)} differ): choose another --out")
        return
    if app.out.exists() and (not app.out.is_dir() or any(app.out.iterdir())):
        raise ValueError(f"{app.out} is not empty: choose another --out")
    app.out.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def prepare_once(app: Sweep, points: Sequence[Point]) -> None:
    """The recipe's own stores, before runs that share them start."""
    if app.data:
        return
    cohorts = {}
    for point in points:
        cohort = pretrain.parse(flags_of(app, point)).cfg.cohort
        cohorts[compose.own_store(cohort)] = cohort
    for path, cohort in cohorts.items():
        prepared(cohort.prepare_config(), path, workers=0)


# What came out


def summarised(app: Sweep, points: Sequence[Point], results: Sequence[Mapping]) -> list[dict]:
    """A line for each point of the grid: its fields, how many seeds are done, and mean and range over them."""
    lines = []
    for values, group in itertools.groupby(zip(points, results, strict=True), key=lambda pair: pair[0].values):
        found = [result for _, result in group]
        done = [result["summary"] for result in found if result["status"] == "done"]
        metric = next((metric_of(summary) for summary in done if metric_of(summary)), None)
        line: dict = dict(values) | {"seeds": len(done), "failed": len(found) - len(done)}
        line["val_loss"] = mean([summary.get("best_value") for summary in done])
        line["metric"] = metric
        for row in ("pretrained", "twin"):
            scores = [] if metric is None else [summary[metric].get(row) for summary in done if metric in summary]
            line[row] = mean(scores)
            if row == "pretrained":
                line["range"] = [min(scores), max(scores)] if scores else None
        lines.append(line)
    return lines


def metric_of(summary: Mapping) -> str | None:
    """The leading figure of a run's probe table."""
    return next((key for key, value in summary.items() if isinstance(value, Mapping) and "pretrained" in value), None)


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def write_tables(app: Sweep, points: Sequence[Point], results: Sequence[Mapping], lines: Sequence[Mapping]) -> None:
    """table.md with a line a point, table.csv with a line a run, table.json with both."""
    (app.out / "table.md").write_text(markdown(app, lines) + "\n", encoding="utf-8")
    fields = fields_of(app)
    with (app.out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*fields, "seed", "status", "val_loss", "metric", "pretrained", "twin", "run", "error"])
        for point, result in zip(points, results, strict=True):
            summary = result.get("summary", {})
            metric = metric_of(summary)
            scores = summary.get(metric, {}) if metric else {}
            told = [summary.get("best_value"), metric, scores.get("pretrained"), scores.get("twin"), point.name, result.get("error", "")]
            writer.writerow([*(value for _, value in point.values), point.seed, result["status"], *("" if value is None else value for value in told)])
    write_json(app.out / "table.json", {"points": list(lines), "runs": [{"run": point.name, **result} for point, result in zip(points, results, strict=True)]})


def markdown(app: Sweep, lines: Sequence[Mapping]) -> str:
    """The table as Markdown. Choose by validation loss: the scores are those of the test fold."""
    metric = next((line["metric"] for line in lines if line["metric"]), "score")
    head = [*fields_of(app), "seeds", "validation loss", f"{metric} [range over seeds]", "twin", "failed"]
    rows = [head, ["---"] * len(head)]
    for line in lines:
        score = "-" if line["pretrained"] is None else f"{line['pretrained']:.3f} [{line['range'][0]:.3f}, {line['range'][1]:.3f}]"
        shown = [f"{value:.4g}" if value is not None else "-" for value in (line["val_loss"], line["twin"])]
        rows.append([*(line[field] for field in fields_of(app)), str(line["seeds"]), shown[0], score, shown[1], str(line["failed"])])
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    return f"{table}\n\nScores are of the test fold: choose a point by its validation loss."


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
