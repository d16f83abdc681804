"""What is asked of every row of a probe table: which windows, their labels, and how an encoder is read. N windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compose import ReadOut
from physio_data.store import Store, Stores
from physio_train import floors
from physio_train.folds import FoldSpec
from physio_train.protocol import Task, Windows


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of every row: which windows of which stores, their labels, and how an encoder is read."""

    stores: tuple[str, ...]
    task: Task
    rows_N: np.ndarray  # row in the stores of each window
    windows: Windows
    read_out: ReadOut
    lead: tuple[tuple[str, str], ...] = ()  # a channel's name and what some of the stores call it
    validation: np.ndarray | None = None  # windows (numbers into rows_N) that choose regularisation and threshold; None: inner folds of the training windows


def question_of(store: Store | Stores, paths: Sequence[Path | str], rows_N: np.ndarray, read_out: ReadOut, *, scored: np.ndarray | None = None) -> Question:
    """The windows of these rows and their labels under the read-out's task; `scored` as in `records_of`."""
    task = task_of(store, read_out.task)
    return Question(stores=tuple(map(str, paths)), task=task, rows_N=rows_N, windows=windows_of(store, task, rows_N, scored=scored), read_out=read_out)


def task_of(store: Store | Stores, name: str | None) -> Task:
    """A task of the store; the only one where none is named. ValueError lists what there is."""
    tasks = (store.stores[0] if isinstance(store, Stores) else store).tasks
    if name is None and len(tasks) != 1:
        raise ValueError(f"name one task with --task: the store has {', '.join(tasks) or 'none'}")
    name = name or next(iter(tasks))
    if name not in tasks:
        raise ValueError(f"task {name!r} is not in the store; it has {', '.join(tasks) or 'none'}")
    return Task(name=name, kind=tasks[name]["kind"], classes=tuple(tasks[name]["classes"]) if tasks[name]["kind"] in ("multiclass", "multilabel") else ())


def windows_of(store: Store | Stores, task: Task, rows_N: np.ndarray, *, scored: np.ndarray | None = None) -> Windows:
    """Who, where and which label; a store without the task gives unknown labels, a corpus without subjects empty ones; `scored` as in `records_of`."""
    members = store.stores if isinstance(store, Stores) else [store]
    label = np.concatenate([_labels(member, task, members[0].tasks[task.name]) for member in members])
    subject = subjects_of(store)
    start_s = store.index["beat_s" if "beat_s" in store.index else "start_s"]  # a window around a beat is known by the beat's own time
    recording = store.index["subject"][rows_N]
    return Windows(y=label[rows_N], subject=subject[rows_N], record=records_of(store, rows_N, scored=scored), start_s=start_s[rows_N], recording=recording)


def records_of(store: Store | Stores, rows_N: np.ndarray, *, scored: np.ndarray | None = None) -> np.ndarray:
    """Record names of rows, (N,) str. Where the corpus names nobody and recordings among the rows that are `scored` (default: all of these) share a name (the
    series of an archive's train and test file have one numbering), the name that a recording has in `index["subject"]`: no two windows are then taken for one.
    """
    record, own = store.index["record"], store.index["subject"]
    nameless = subjects_of(store) == ""
    judged = rows_N if scored is None else scored
    judged = judged[nameless[judged]]
    pairs = set(zip(record[judged].tolist(), own[judged].tolist(), strict=True))
    if len(pairs) == len({name for name, _ in pairs}):
        return record[rows_N]
    several = len(pairs) > len({name for _, name in pairs})  # some recordings of one person
    full = np.array([f"{o}/{r}" if several else o for r, o in zip(record[rows_N].tolist(), own[rows_N].tolist(), strict=True)])
    return np.where(nameless[rows_N], full, record[rows_N])


def heading_of(store: Store | Stores, rows_N: np.ndarray, seen: Sequence[str] | None) -> str:
    """What a table of these windows is headed, from the subjects that pretraining saw: `physio_train.floors.heading`, where a store without subjects names its
    recordings."""
    return floors.heading(subjects_of(store)[rows_N], seen, store.index["subject"][rows_N])


def _labels(store: Store, task: Task, asked: Mapping[str, Any]) -> np.ndarray:
    if task.name in store.tasks:
        spec = store.tasks[task.name]
        if spec["kind"] != asked["kind"] or list(spec["classes"]) != list(asked["classes"]):
            raise ValueError(f"task {task.name!r} is another one in {store.path} ({spec}) than in the first store ({asked})")
        return store.label(task.name)
    if task.kind == "regression":
        return np.full(len(store), np.nan)
    return np.full((len(store), len(task.classes)) if task.kind == "multilabel" else len(store), -1)


def subjects_of(store: Store | Stores) -> np.ndarray:
    """Who each window is of, empty where the corpus does not say; a recording's own name, which `index` has there, is no subject."""
    members = store.stores if isinstance(store, Stores) else [store]
    known = [member.manifest.get("subjects", "known") == "known" for member in members]
    return np.concatenate([member.index["subject"] if k else np.full(len(member), "") for member, k in zip(members, known, strict=True)])


def split_question(
    store: Store | Stores,
    paths: Sequence[Path | str],
    read_out: ReadOut,
    *,
    train: np.ndarray,
    test: np.ndarray,
    validation: np.ndarray | None = None,
) -> tuple[Question, FoldSpec]:
    """One training and one test set of rows; validation rows choose regularisation and threshold, else inner folds of the training ones."""
    held = np.zeros(0, np.int64) if validation is None else validation
    rows_N = np.concatenate([train, held, test])
    if len(np.unique(rows_N)) < len(rows_N):
        raise ValueError("a window is on two of the sides train, val and test: name every fold on one side")
    if validation is not None and not len(held):
        raise ValueError("no window is left on the val side: name another val fold, or none")
    n_fit = len(train) + len(held)
    spec = FoldSpec(seed=0, repeat=0, fold="test", train=np.arange(n_fit), test=np.arange(n_fit, len(rows_N)))
    question = question_of(store, paths, rows_N, read_out, scored=test)
    return (question if validation is None else replace(question, validation=np.arange(len(train), n_fit))), spec


def shared_subjects(question: Question, spec: FoldSpec) -> list[str]:
    """Subjects with windows on both sides."""
    subject = question.windows.subject
    return [name for name in np.intersect1d(subject[spec.train], subject[spec.test]).tolist() if name]


def check_sides(question: Question, spec: FoldSpec, store: Store | Stores) -> tuple[str, ...]:
    """ValueError for a subject on both sides of a store's folds without a waiver; the waivers, as notes for the table."""
    waivers = tuple(str(name) for name in store.manifest.get("waivers", ()))
    for name in shared_subjects(question, spec):
        if not {name, name.replace(":", "-")} & set(waivers):
            raise ValueError(f"subject {name!r} is on both sides of the folds; split by subject")
    return tuple(f"waiver {name} of the store's folds" for name in waivers)
