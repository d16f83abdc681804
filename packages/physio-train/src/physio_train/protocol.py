"""How a probe is judged: cross-validated over subjects, or trained on one set and tested on another; the result is always predictions.

N windows, D features, K score columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from physio_train import probe
from physio_train.folds import FoldSpec, check_apart
from physio_train.predictions import Predictions, concatenate, make
from physio_train.probe import Probe, ProbeConfig

FeaturesOf = Callable[[FoldSpec], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is predicted. `classes` names the score columns of a multi-class or multi-label task, in the order of the class numbers."""

    name: str
    kind: probe.Kind = "binary"
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind in ("multiclass", "multilabel") and not self.classes:
            raise ValueError(f"classes of the {self.kind} task {self.name!r} are missing: name one per score column")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the label and score columns in predictions.csv."""
        return self.classes if self.kind in ("multiclass", "multilabel") else (self.name,)

    def columns_of(self, y: np.ndarray) -> np.ndarray:
        """Labels as (N, K) 0/1 (or the real target), NaN where unknown."""
        y = np.asarray(y, dtype=np.float64)
        if self.kind == "regression":
            return y[:, None]
        if self.kind == "multiclass":
            return np.where(y[:, None] >= 0, (y[:, None] == np.arange(len(self.classes))).astype(np.float64), np.nan)
        y = y[:, None] if y.ndim == 1 else y
        return np.where(y >= 0, y, np.nan)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Who and where each window is, and its label: (N,) class numbers (-1 unknown), a real target (NaN unknown), or (N, K) 0/1."""

    y: np.ndarray
    subject: np.ndarray  # (N,) str; all empty where the corpus does not tell
    record: np.ndarray  # (N,) str
    start_s: np.ndarray  # (N,) float64
    recording: np.ndarray | None = None  # (N,) str; a name that no two recordings share, where those of `record` may be; None: they are not

    def __post_init__(self) -> None:
        columns = [name for name in ("subject", "record", "start_s", "recording") if getattr(self, name) is not None]
        wrong = {name: len(getattr(self, name)) for name in columns if len(getattr(self, name)) != len(self.y)}
        if wrong:
            raise ValueError(f"every column must have the length of y, {len(self.y)}, got {wrong}")

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: np.ndarray) -> Windows:
        """The windows chosen by an index or a boolean mask."""
        recording = None if self.recording is None else self.recording[rows]
        return Windows(y=self.y[rows], subject=self.subject[rows], record=self.record[rows], start_s=self.start_s[rows], recording=recording)

    @property
    def groups(self) -> np.ndarray:
        """What stays whole in folds: the subject, or the recording of a window whose subject is unknown."""
        subject = np.asarray(self.subject).astype(str)
        return np.where(subject != "", subject, np.asarray(self.record if self.recording is None else self.recording).astype(str))


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Predictions of one row and the probes that made them, one per outer fold."""

    predictions: Predictions
    probes: list[tuple[FoldSpec, Probe]]

    @property
    def converged(self) -> bool:
        """Whether every fit met its tolerance."""
        return all(fitted.converged for _, fitted in self.probes)


def cross_validate(
    row: str,
    features: np.ndarray | FeaturesOf,
    windows: Windows,
    task: Task,
    specs: Sequence[FoldSpec],
    config: ProbeConfig | None = None,
    *,
    validation: np.ndarray | None = None,
    allow_shared: frozenset[str] = frozenset(),
) -> Scored:
    """Fit inside every outer fold and score its test windows; see `each_fold`, which yields them one by one for a progress bar."""
    done = list(each_fold(row, features, windows, task, specs, config, validation=validation, allow_shared=allow_shared))
    return Scored(predictions=concatenate([part for part, _, _ in done]), probes=[(spec, fitted) for _, spec, fitted in done])


def each_fold(
    row: str,
    features: np.ndarray | FeaturesOf,
    windows: Windows,
    task: Task,
    specs: Sequence[FoldSpec],
    config: ProbeConfig | None = None,
    *,
    validation: np.ndarray | None = None,
    allow_shared: frozenset[str] = frozenset(),
) -> Iterator[tuple[Predictions, FoldSpec, Probe]]:
    """One (predictions, fold, probe) per spec of `outer_folds`.

    `features` is (N, D) for all windows, or a function of the fold that returns it: an encoder pretrained on `spec.train` alone, or a twin of seed `spec.seed`.
    The probe sees features and labels of `spec.train` only; test labels are written beside the scores and read by nothing else. `validation` (rows) are a
    corpus's own validation fold: they choose strength and threshold in place of inner folds and are not fitted on. Raises ValueError where a subject is on
    both sides, or in `validation` and tested, unless `allow_shared` names it.
    """
    config = config or ProbeConfig(kind=task.kind)
    _check_kind(config, task)
    groups = windows.groups
    for spec in specs:
        train = spec.train if validation is None else np.setdiff1d(spec.train, validation)
        check_apart(groups[train if validation is None else np.union1d(train, validation)], groups[spec.test], allow_shared)
        x_ND = features(spec) if callable(features) else features
        if len(x_ND) != len(windows):
            raise ValueError(f"features must have a row for each of the {len(windows)} windows, got {len(x_ND)}")
        chooser = None if validation is None else (x_ND[validation], windows.y[validation])
        fitted = probe.fit(x_ND[train], windows.y[train], groups[train], config, classes=task.classes, validation=chooser)
        part = predict(row, fitted, x_ND[spec.test], windows.take(spec.test), task, seed=spec.seed, repeat=spec.repeat, fold=str(spec.fold))
        yield part, spec, fitted


def train_test(
    row: str,
    x_train_ND: np.ndarray,
    train: Windows,
    x_test_ND: np.ndarray,
    test: Windows,
    task: Task,
    config: ProbeConfig | None = None,
    *,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
    fold: str = "test",
    allow_shared: frozenset[str] = frozenset(),
) -> tuple[Predictions, Probe]:
    """Fit on one set, score another. Raises ValueError where a subject is in both (see `floors.without_shared`), unless allowed by name.

    Test labels may be unknown throughout (-1 or NaN). `validation` (x, y) is a corpus's own validation fold; else inner folds of the training subjects serve.
    """
    config = config or ProbeConfig(kind=task.kind)
    _check_kind(config, task)
    if np.any(np.asarray(train.subject) != "") and np.any(np.asarray(test.subject) != ""):
        check_apart(train.subject, test.subject, allow_shared)
    fitted = probe.fit(x_train_ND, train.y, train.groups, config, classes=task.classes, validation=validation)
    return predict(row, fitted, x_test_ND, test, task, seed=seed, fold=fold), fitted


def predict(
    row: str, fitted: Probe, x_ND: np.ndarray, windows: Windows, task: Task, *, seed: int = 0, repeat: int = 0, fold: str | np.ndarray = "test"
) -> Predictions:
    """Scores of a fitted probe as predictions, with its thresholds beside them."""
    score_NK, label_NK = fitted.predict(x_ND), task.columns_of(windows.y)
    thresholds = {name: fitted.threshold_K[k] for k, name in enumerate(task.columns)} if np.isfinite(fitted.threshold_K).any() else None
    return make(
        row,
        {name: score_NK[:, k] for k, name in enumerate(task.columns)},
        labels={name: label_NK[:, k] for k, name in enumerate(task.columns)},
        seed=seed,
        repeat=repeat,
        fold=fold,
        subject=windows.subject,
        record=windows.record,
        start_s=windows.start_s,
        thresholds=thresholds,
    )


def _check_kind(config: ProbeConfig, task: Task) -> None:
    if config.kind != task.kind:
        raise ValueError(f"config.kind is {config.kind!r} but task {task.name!r} is {task.kind}: give ProbeConfig(kind={task.kind!r})")
