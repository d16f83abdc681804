"""What a corpus states about itself and the functions it brings: the one contract that every row of CORPORA fulfils."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

    from physio_data.recording import Recording

TaskKind = Literal["binary", "multiclass", "multilabel", "regression"]


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One labelled task of a store: what its label column holds and how its classes are called."""

    kind: TaskKind
    classes: tuple[str, ...] = ()  # original class names; a label is a position here (binary: 0 or 1; multilabel: 0/1 per class)
    unit: str = ""  # of a regression target, for instance "year" or "mmHg"

    def __post_init__(self) -> None:
        if self.kind not in ("binary", "multiclass", "multilabel", "regression"):
            raise ValueError(f"kind must be binary, multiclass, multilabel or regression, got {self.kind!r}")
        if self.kind in ("multiclass", "multilabel") and not self.classes:
            raise ValueError(f"a {self.kind} task needs its class names, got classes=()")


@dataclass(frozen=True, kw_only=True)
class PrepareDefaults:
    """What `prepare` uses for this corpus where the caller names nothing else."""

    leads: tuple[str, ...] = ()  # by name; () takes every channel of the first record
    window_s: float | None = None  # None: a whole record is one window
    hop_s: float | None = None  # None: hop = window
    fs: float | None = None  # Hz of the store; None keeps the rate of the first record
    band: tuple[float | None, float | None] | None = None  # Hz; None: no filter
    split: Literal["hash", "stratified", "official"] = "hash"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus: its card, its defaults, and the functions that list, open and label its records.

    `list_records(root, **options) -> sequence of record ids` is cheap, sorted and stable: it fixes the order of a store.
    `open_record(root, record_id, **options) -> Recording` reads headers and annotations only; the signal stays lazy (`Recording.reader`).
    Both are module-level functions, because worker processes open their records by id. A corpus without files ignores `root`.
    `label_windows(recording, start_s_N, window_s) -> {task: (N,) array}`: int64 with -1 for unknown, float64 with NaN for regression,
    (N, n_classes) int64 for multilabel. `start_s_N` counts seconds from the record's first sample.
    `official_folds(record_ids, root, **options) -> {record_id: fold}`: the published split, or None.
    `beat_times(recording) -> (K,) seconds` of the annotated beats and `label_beats(recording, beat_s_K) -> {task: (K,) array}` serve windows
    that are centred on beats; their tasks stand in `tasks` too.
    `tasks_at(root, **options)` overrides `tasks` where class names lie in the files.
    """

    name: str
    title: str
    licence: str
    access: str  # "open", "credentialed", "generated", or "own" for a layout that users bring files in
    size: str
    citation: str
    url: str
    signal_kind: str  # "ecg", "ppg", "eeg", "mixed" or "series"
    list_records: Callable[..., Sequence[str]]
    open_record: Callable[..., Recording]
    defaults: PrepareDefaults = field(default_factory=PrepareDefaults)
    tasks: Mapping[str, TaskSpec] = field(default_factory=dict)
    label_windows: Callable[[Recording, np.ndarray, float], dict[str, np.ndarray]] | None = None
    beat_times: Callable[[Recording], np.ndarray] | None = None
    label_beats: Callable[[Recording, np.ndarray], dict[str, np.ndarray]] | None = None
    official_folds: Callable[..., Mapping[str, str] | None] | None = None
    tasks_at: Callable[..., Mapping[str, TaskSpec]] | None = None
    waivers: tuple[str, ...] = ()  # subjects that the official folds may share, as `splits.check_disjoint` names them
    subjects: Literal["known", "unknown"] = "known"
    records_per_task: int = 1  # how many records one worker call takes; larger where a record is one short row of a table
    layout: Literal["verified", "unverified"] = "verified"  # whether the files that it reads were seen, or only described by the corpus's documentation
    obtain: str = ""  # how to get the files, where the page at `url` alone does not say it
    options: Mapping[str, str] = field(default_factory=dict)  # option name -> one-line help (with its unit)

    def __post_init__(self) -> None:
        if (self.beat_times is None) != (self.label_beats is None):
            raise ValueError(f"corpus {self.name!r} needs both beat_times and label_beats, or neither")
        if self.layout not in ("verified", "unverified"):
            raise ValueError(f"layout must be verified or unverified, got {self.layout!r}")
        if self.records_per_task < 1:
            raise ValueError(f"records_per_task must be at least 1, got {self.records_per_task}")

    def records(self, root: str | Path | None = None, **options: object) -> Iterator[Recording]:
        """Every record in the order of `list_records`, opened lazily one after another."""
        self.check_options(options)
        for record_id in self.list_records(root, **options):
            yield self.open_record(root, record_id, **options)

    def window_labels(self, recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
        """Labels of the windows that start at `start_s_N` (seconds from the record's first sample) and last `window_s`."""
        return {} if self.label_windows is None else self.label_windows(recording, start_s_N, window_s)

    def beat_labels(self, recording: Recording, beat_s_K: np.ndarray) -> dict[str, np.ndarray]:
        """Labels of the windows centred on the beats at `beat_s_K` (seconds from the record's first sample)."""
        return {} if self.label_beats is None else self.label_beats(recording, beat_s_K)

    def folds(self, record_ids: Sequence[str], root: str | Path | None = None, **options: object) -> Mapping[str, str] | None:
        """The official fold of every record id, or None where the corpus publishes no split."""
        return None if self.official_folds is None else self.official_folds(record_ids, root, **options)

    def task_specs(self, root: str | Path | None = None, **options: object) -> Mapping[str, TaskSpec]:
        """The tasks of this corpus, with the class names of the files under `root` where they are not fixed."""
        return self.tasks if self.tasks_at is None else self.tasks_at(root, **options)

    def check_options(self, options: Mapping[str, object]) -> None:
        """Raise ValueError for an option that this corpus does not have."""
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            raise ValueError(f"corpus {self.name!r} has no option {unknown[0]!r}; it has {', '.join(sorted(self.options)) or 'none'}")

    def card(self) -> dict[str, str]:
        """The corpus card that a store's manifest keeps."""
        keys = ("name", "title", "licence", "access", "size", "citation", "url", "layout")
        return {key: getattr(self, key) for key in keys} | {"obtain": self.obtain or f"from {self.url}"}
