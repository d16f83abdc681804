"""What a figure must beat: the random twin at its strongest setting, and the subject's own label rate; and who may be scored at all.

N windows, K score columns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from physio_train.folds import FoldSpec
from physio_train.metrics import macro_auroc, mae
from physio_train.predictions import Predictions, align, concatenate, make
from physio_train.protocol import Task, Windows

BY_RECORDING = "inductive by recording, subjects unknown"
HEADINGS = ("inductive", BY_RECORDING, "transductive")


class Twin(NamedTuple):
    """The strongest setting of an untrained net and every setting's figure (mean over seeds and repeats)."""

    setting: str
    predictions: Predictions
    figures: dict[str, float]


def strongest(settings: Mapping[str, Predictions], *, kind: str = "binary", row: str = "twin") -> Twin:
    """Choose the setting of the random twin by its mean headline figure on the scored windows.

    The one allowed look at test labels, because it can only raise the floor. The figure is AUROC (macro over classes), for regression the mean absolute error.
    Ties go to the setting named first.
    """
    figures = {}
    for name, predictions in settings.items():
        aligned = align(predictions, row)
        figures[name] = float(np.mean([headline(aligned.labels_NK, run, kind) for run in aligned.runs]))
    if not figures:
        raise ValueError("settings must hold the predictions of at least one setting of the twin, got none")
    sign = -1.0 if kind == "regression" else 1.0
    best = max(figures, key=lambda name: sign * figures[name] if np.isfinite(figures[name]) else -np.inf)
    return Twin(best, settings[best], figures)


def headline(labels_NK: np.ndarray, scores_NK: np.ndarray, kind: str, *, weight=None):
    """The figure a table leads with: AUROC (macro over the labels present), for regression the mean absolute error."""
    return mae(labels_NK[:, 0], scores_NK[:, 0], weight=weight) if kind == "regression" else macro_auroc(labels_NK, scores_NK, weight=weight)


def label_rate(y_train_NK: np.ndarray, subjects_train: np.ndarray, subjects_test: np.ndarray) -> np.ndarray | None:
    """Each test window's score is its subject's label rate in training, (N, K); None where no subject repeats.

    A subject new to training gets the rate of all training windows. High figures mean that knowing the person is enough: the split leaks.
    """
    subjects_train, subjects_test = np.asarray(subjects_train).astype(str), np.asarray(subjects_test).astype(str)
    known = np.isfinite(y_train_NK).any(axis=1) & (subjects_train != "")
    names, subject_N = np.unique(subjects_train[known], return_inverse=True)
    if not np.isin(subjects_test, names).any():
        return None
    y = y_train_NK[known]
    total = np.nansum(y, axis=0) / np.maximum(np.isfinite(y).sum(axis=0), 1)
    out = np.tile(total, (len(subjects_test), 1))
    for s, name in enumerate(names):
        own = y[subject_N.reshape(-1) == s]
        n_known = np.isfinite(own).sum(axis=0)
        out[subjects_test == name] = np.where(n_known > 0, np.nansum(own, axis=0) / np.maximum(n_known, 1), total)
    return out


def leak(windows: Windows, task: Task, specs: Sequence[FoldSpec]) -> Predictions | None:
    """The leak check over outer folds (of the first seed) as predictions of the row `leak`; None where subjects are disjoint in every fold."""
    y_NK, parts, repeats = task.columns_of(windows.y), [], False
    for spec in (spec for spec in specs if spec.seed == specs[0].seed):
        rate = label_rate(y_NK[spec.train], windows.subject[spec.train], windows.subject[spec.test])
        repeats = repeats or rate is not None
        total = np.nan_to_num(np.nansum(y_NK[spec.train], axis=0) / np.maximum(np.isfinite(y_NK[spec.train]).sum(axis=0), 1))
        rate = np.tile(total, (len(spec.test), 1)) if rate is None else rate
        parts.append(_leak_part(rate, y_NK[spec.test], windows.take(spec.test), task, repeat=spec.repeat, fold=str(spec.fold)))
    return concatenate(parts) if repeats else None


def leak_train_test(train: Windows, test: Windows, task: Task, *, fold: str = "test") -> Predictions | None:
    """The leak check of one training and one test set; None where their subjects are disjoint."""
    rate = label_rate(task.columns_of(train.y), train.subject, test.subject)
    return None if rate is None else _leak_part(rate, task.columns_of(test.y), test, task, repeat=0, fold=fold)


def without_shared(subjects_train: np.ndarray, subjects_test: np.ndarray, *, allowed: Collection[str] = ()) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which training windows stay, (N,) bool, when those of subjects who are also in the test set leave, and who leaves; `allowed` subjects stay."""
    subjects_train = np.asarray(subjects_train).astype(str)
    shared = np.setdiff1d(np.intersect1d(subjects_train, np.asarray(subjects_test).astype(str)), ["", *allowed])
    return ~np.isin(subjects_train, shared), tuple(shared.tolist())


def unseen(subjects_test: np.ndarray, seen: Collection[str] | None) -> np.ndarray:
    """Which windows belong to subjects that pretraining did not see, (N,) bool; all False where what it saw, or who the subject is, is unknown."""
    subjects_test = np.asarray(subjects_test).astype(str)
    return np.zeros(len(subjects_test), dtype=bool) if seen is None else ~np.isin(subjects_test, [*seen, ""])


def heading(subjects_test: np.ndarray, seen: Collection[str] | None, recordings_test: np.ndarray | None = None) -> str:
    """`inductive` when no window of the test subjects was seen in pretraining, labelled or not; else, or where that is not known, `transductive`.

    A corpus that names no subjects may name its recordings in `seen` and `recordings_test`: none of them seen is `BY_RECORDING`.
    """
    if not len(subjects_test):
        return "transductive"
    new_N = unseen(subjects_test, seen)
    if new_N.all():
        return "inductive"
    nameless_N = np.asarray(subjects_test).astype(str) == ""
    by_recording = recordings_test is not None and (new_N | (nameless_N & unseen(recordings_test, seen))).all()
    return BY_RECORDING if by_recording else "transductive"


def _leak_part(rate_NK: np.ndarray, y_NK: np.ndarray, windows: Windows, task: Task, *, repeat: int, fold: str) -> Predictions:
    columns = task.columns
    return make(
        "leak",
        {name: rate_NK[:, k] for k, name in enumerate(columns)},
        labels={name: y_NK[:, k] for k, name in enumerate(columns)},
        repeat=repeat,
        fold=fold,
        subject=windows.subject,
        record=windows.record,
        start_s=windows.start_s,
    )
