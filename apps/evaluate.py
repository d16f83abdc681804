"""Score a saved probe or fine-tuned model on other data, without any training.

uv run apps/evaluate.py --ckpt runs/tuned --data stores/test --predictions P.csv
uv run apps/evaluate.py --ckpt himae.ckpt --reference himae --probe pvc_linear_probe.pt --data stores/himae_pvc --out runs/original
uv run apps/evaluate.py robustness --ckpt runs/tuned --data stores/test --out runs/robust      also: resolution
"""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

import compose
import console
import downstream
from console import say
from label_maps import LabelMap
from physio_data.store import Store, Stores
from physio_train import floors, table
from physio_train import predictions as prediction_files
from physio_train.metrics import accuracy, auroc, macro_f1
from physio_train.predictions import Predictions, concatenate, make
from physio_train.protocol import Task, Windows
from physio_train.run import write_json
from physio_train.table import Table
from questions import records_of, subjects_of, task_of, windows_of

SUBCOMMANDS = {
    "imputation": "imputation:main",
    "reconstruction": "reconstruction:main",
    "resolution": "resolution:main",
    "robustness": "robustness:main",
}
AGE_BANDS = ((0, 40), (40, 60), (60, 75), (75, 200))  # years, the upper end left out


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """A saved model's scores of every window of a store, and what they are worth where labels are known."""

    ckpt: tuple[Path, ...]
    """Folders of probe.py, finetune.py or ecg5000.py --out, several of one kind as so many seeds; or, with --reference and --probe, an original's backbone."""
    data: tuple[Path, ...]
    """Stores to score."""
    reference: str | None = None
    """The row of MODELS whose original wrote --ckpt."""
    probe: Path | None = None
    """The original's linear probe."""
    task: str | None = None
    """The store's task that the scores are compared with. Default: the saved model's own."""
    lead: dict[str, str] | None = None
    """The model's channel and the store's name for it, as pairs: --lead ECG I."""
    label_map: Path | str | None = None
    """A CSV with columns source,target (or scp_snomed, snomed_scp, scp_aami, aami_scp, snomed_aami, aami_snomed): the model's classes under the store's
    names."""
    unmapped: Literal["error", "drop"] = "error"
    """What to do with a class of the model that the map does not name: error, or drop."""
    use: str = ""
    """Folds to score: names or numbers joined by +. Default: the whole store."""
    by: tuple[str, ...] = ()
    """Subgroups, each scored on its own: sex, age, or a column of the store's index."""
    against: str | None = None
    """Of a task of several classes: also the accuracy of this class against all others."""
    together: bool = False
    """Of several --ckpt: also a row of their mean score."""
    row: str = ""
    """The row's name in predictions.csv. Default: pretrained; untrained or from scratch where the encoder came as initialised."""
    predictions: Path | None = None
    """Write every scored window here, as CSV."""
    out: Path | None = None
    """Folder for the table, the predictions and the summary by subject."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    if arguments and arguments[0] in SUBCOMMANDS:
        module, _, name = SUBCOMMANDS[arguments[0]].partition(":")
        return getattr(importlib.import_module(module), name)(arguments[1:])
    app = tyro.cli(Evaluate, args=list(arguments), description=console.paragraphs(__doc__))
    store = compose.open_stores(app.data, lead=app.lead)
    if app.together and len(app.ckpt) < 2:
        raise ValueError("--together is the mean score of several models: give their folders with --ckpt A B ...")
    rows_N = compose.rows_of(store, tuple(app.use.split("+"))) if app.use else store.rows()
    spec = compose.spec_of(store)
    parts, headings, names, notes = [], [], [], [f"channel {name} of the store taken for {channel}" for channel, name in (app.lead or {}).items()]
    for seed, path in enumerate(app.ckpt):
        saved = downstream.load(path, reference=app.reference, probe=app.probe, spec=spec)
        saved.contract.check(spec)
        part, task, said = scored(app, saved, store, rows_N)
        parts.append(replace(part, seed=np.full(len(part), seed)))
        heading, known = downstream.known_of(saved, store, rows_N)
        notes += [note for note in (*said, *known) if note not in notes]
        headings.append(heading)
        names.append(app.row or saved.row)
    if len(set(names)) > 1:
        raise ValueError(
            f"--ckpt names models that are {' and '.join(dict.fromkeys(names))}, which are no seeds of one row: score them one by one, or give --row"
        )
    row = names[0]
    predicted = concatenate(parts)
    if app.together:
        predicted = concatenate([predicted, mean_of(parts, f"{row}, {len(parts)} together")])
    worst = max(headings, key=floors.HEADINGS.index)  # what one of them saw is seen
    shown = judged(predicted, task, worst, notes)
    print(shown.plain(), flush=True)
    calls = {name: called(predicted, name, app.against) for name in predicted.rows} if task.kind == "multiclass" and labelled(predicted) else {}
    for name, figures in calls.items():
        say(f"{name}: " + "; ".join(f"{figure} {text_of(values)}" for figure, values in figures.items()))
    first = predicted.take((predicted.row == row) & (predicted.seed == 0))
    groups = {name: subgroups(first, task, store, rows_N, name) for name in app.by}
    for name, parts in groups.items():
        say(f"by {name}: " + "; ".join(f"{value} {text}" for value, text in parts.items()))
    for path in (app.predictions, None if app.out is None else app.out / "predictions.csv"):
        if path is not None:
            prediction_files.write(path, predicted)
    if app.out is not None:
        own = by_subject(app.out, first, task)
        write_json(app.out / "table.json", shown.to_json() | {"by": groups, "per_subject": own, "calls": calls})
        (app.out / "table.md").write_text(shown.markdown() + "\n", encoding="utf-8")
        for name, text in own.items():
            own_mean = "" if text["mean_auroc"] is None else f", mean AUROC of theirs {text['mean_auroc']:.3f}"
            say(f"{name}: {text['two_classes']} of {text['subjects']} subjects have both classes{own_mean}")
    lead = shown.rows[0].cells[shown.columns[0]] if shown.columns else None
    figure = {} if lead is None else {shown.columns[0]: lead.value, "interval": [lead.low, lead.high], "word": lead.word}
    done = {"task": task.name, "windows": len(rows_N), "heading": shown.heading, **figure, "by": groups, "out": app.out, "predictions": app.predictions}
    return done | ({"calls": calls} if calls else {})


def labelled(predicted: Predictions) -> bool:
    return any(np.isfinite(column).any() for column in predicted.labels.values())


def mean_of(parts: Sequence[Predictions], row: str) -> Predictions:
    """One row of the mean score of several models that scored the same windows."""
    scores = {name: np.mean([part.scores[name] for part in parts], axis=0) for name in parts[0].names}
    return replace(prediction_files.rename(parts[0], row), scores=scores, thresholds={})


def called(predicted: Predictions, row: str, against: str | None = None) -> dict[str, list[float]]:
    """Accuracy, macro F1 over the classes present and, of one class against all others, accuracy: each run's, of the class with the highest score.

    ValueError for a class that the task does not have.
    """
    if against is not None and against not in predicted.names:
        raise ValueError(f"--against {against} is no class of the task; it has {', '.join(predicted.names)}")
    found = prediction_files.align(predicted, row)
    known_N = table.one_class(found)
    y_N = found.labels_NK[known_N].argmax(axis=1)
    call_runs = [run[known_N].argmax(axis=1) for run in found.runs]
    figures = {"accuracy": [accuracy(y_N, call_N) for call_N in call_runs], "macro F1": [macro_f1(y_N, call_N) for call_N in call_runs]}
    if against is not None:
        k = predicted.names.index(against)
        figures[f"accuracy of {against} against the rest"] = [accuracy((y_N == k).astype(int), (call_N == k).astype(int)) for call_N in call_runs]
    return {name: [round(float(v), 6) for v in values] for name, values in figures.items()}


def text_of(values: Sequence[float]) -> str:
    """`.9416 (sd .0021 over 5 runs)`; of one run the figure alone."""
    if len(values) < 2:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} (sd {np.std(values, ddof=1):.4f} over {len(values)} runs)"


def scored(app: Evaluate, saved: downstream.Saved, store: Store | Stores, rows_N: np.ndarray) -> tuple[Predictions, Task, list[str]]:
    """The predictions of all rows under the store's task, where it has it."""
    name = app.task or saved.task.name
    notes, label_map = [], None if app.label_map is None else LabelMap.read(app.label_map)
    if name in store.tasks:
        task = task_of(store, name)
    elif app.task is not None:
        raise ValueError(f"task {name!r} is not in the store; it has {', '.join(store.tasks) or 'none'}")
    else:
        task, notes = saved.task, [f"the store has no task {name!r}: scores only"]
    words = two_classes(label_map, saved, task)
    if words is not None:
        notes.append(f"label map {label_map.name}: " + ", ".join(f"{own} is {theirs}" for own, theirs in zip(saved.labels, words, strict=True)))
        label_map = None
    if label_map is None and name in store.tasks:
        saved, said = downstream.facing(saved, store, task, words)
        notes += said
    score_NK, classes = downstream.predict(saved, store, rows_N), saved.task.columns
    if label_map is not None:
        mapped = label_map.scores(score_NK, classes, task.columns, unmapped=app.unmapped)
        score_NK, classes = mapped.scores_NK, mapped.columns
        notes += mapped.notes
    elif task.kind != saved.task.kind or (task.columns != saved.task.columns and task.kind != "binary"):
        raise ValueError(
            f"the model scores {saved.task.kind} {', '.join(saved.task.columns)}, the store's task {task.name!r} is {task.kind} {', '.join(task.columns)}: "
            "give a --label-map, or another --task"
        )
    else:
        classes = task.columns
    windows = windows_of(store, task, rows_N) if name in store.tasks else blank_windows(store, task, rows_N)
    label_NK = task.columns_of(windows.y)
    place = {"subject": windows.subject, "record": windows.record, "start_s": windows.start_s, "fold": store.index["fold"][rows_N]}
    known = {c: k for k, c in enumerate(task.columns)}
    thresholds = {c: saved.threshold_K[k] for k, c in enumerate(classes)} if label_map is None and np.isfinite(saved.threshold_K).all() else None
    return (
        make(
            app.row or saved.row,
            {c: score_NK[:, k] for k, c in enumerate(classes)},
            labels={c: label_NK[:, known[c]] for c in classes if c in known},
            thresholds=thresholds,
            **place,
        ),
        task,
        notes,
    )


def two_classes(label_map: LabelMap | None, saved: downstream.Saved, task: Task) -> tuple[str, ...] | None:
    """The two classes of a binary model in the words of a label map that names both; None for any other model, task or map."""
    if label_map is None or task.kind != "binary" or saved.task.kind != "binary" or not saved.labels or not set(saved.labels) <= label_map.target_of.keys():
        return None
    return tuple(label_map.target_of[label] for label in saved.labels)


def blank_windows(store: Store | Stores, task: Task, rows_N: np.ndarray) -> Windows:
    """Windows without a known label."""
    n = len(rows_N)
    y = np.full(n, np.nan) if task.kind == "regression" else np.full((n, len(task.classes)) if task.kind == "multilabel" else n, -1)
    return Windows(y=y, subject=subjects_of(store)[rows_N], record=records_of(store, rows_N), start_s=store.index["start_s"][rows_N])


def judged(predicted: Predictions, task: Task, heading: str, notes: Sequence[str]) -> Table:
    kind = task.kind if len(predicted.names) > 1 or task.kind == "regression" else "binary"
    return table.score(predicted, kind=kind, heading=heading, task=task.name, notes=notes)


def subgroups(predicted: Predictions, task: Task, store: Store | Stores, rows_N: np.ndarray, name: str) -> dict[str, str]:
    """The first figure of every value of a column, or why there is none."""
    if name not in store.index:
        raise ValueError(f"the store has no column {name!r} to group by; there are {', '.join(store.index)}")
    value_N = np.asarray(store.index[name])[rows_N]
    if name == "age":
        bands = [f"{low}-{high - 1}" if high < 200 else f"{low}+" for low, high in AGE_BANDS]
        value_N = np.array([next((b for b, (low, high) in zip(bands, AGE_BANDS, strict=True) if low <= v < high), "unknown") for v in value_N])
    found = {}
    for value in np.unique(value_N):
        part = predicted.take(value_N == value)
        shown = judged(part, task, "transductive", ())
        found[str(value) or "unknown"] = f"{shown.rows[0].cells[table.COLUMNS[shown.kind][0]].text()} of {len(part)} windows"
    return found


def by_subject(out: Path, predicted: Predictions, task: Task) -> dict[str, dict[str, float | int | None]]:
    """per_subject.csv: windows, positives, mean label and mean score of every subject, and its own AUROC or why it has none.

    Returns for every class of a task with classes how many subjects there are, how many have both classes, and the mean AUROC of those (None: of nobody);
    a subject of one class has no part in the mean.
    """
    who = prediction_files.clusters_of(predicted)
    own: dict[str, list[float]] = {c: [] for c in predicted.names}
    with (out / "per_subject.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["subject", "class", "windows", "labelled", "positives", "label_rate", "mean_score", "auroc", "reason"])
        for name in np.unique(who):
            part = who == name
            for c in predicted.names:
                y, s = predicted.labels[c][part], predicted.scores[c][part]
                known = np.isfinite(y)
                figure = auroc(y, s) if task.kind != "regression" and known.any() else float("nan")
                reason = "" if np.isfinite(figure) else "no known label" if not known.any() else "a number" if task.kind == "regression" else "one class only"
                own[c].append(figure)
                positives = "" if task.kind == "regression" else int(np.nansum(y))
                rate = f"{np.nanmean(y):.6g}" if known.any() else ""
                writer.writerow([name, c, int(part.sum()), int(known.sum()), positives, rate, f"{s.mean():.6g}", f"{figure:.6g}" if not reason else "", reason])
    if task.kind == "regression":
        return {}
    two = {c: [figure for figure in figures if np.isfinite(figure)] for c, figures in own.items()}
    return {c: {"subjects": len(own[c]), "two_classes": len(two[c]), "mean_auroc": round(float(np.mean(two[c])), 6) if two[c] else None} for c in own}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
