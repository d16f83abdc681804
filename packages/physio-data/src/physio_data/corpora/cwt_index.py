"""CWT-MAE's layout: a JSON list of {path, len, label}, each path a pickle {'data': (M, L), 'label': ...}; or a split file {train, test, val}. N windows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.corpora.plain import matrix, named
from physio_data.formats.pickles import read_pickle
from physio_data.recording import Recording

FOLDS = ("train", "val", "test")
_OPTIONS = {
    "source_fs": "rate of the segments in Hz, which the layout does not state; required",
    "channels": "names of the rows of data, in order: ECG,ACCX,ACCY,ACCZ,PPG (default ch1, ch2, ...)",
    "units": "units of the rows, in order (default a.u.)",
    "split_file": "JSON {train: [...], test: [...], val: [...]} of pickles; its folds are the official split",
    "task_index": "which entry's class is the label where a pickle's label is a list of {'class': ...} (default 0)",
}


@dataclass(frozen=True)
class Entry:
    """One line of an index or split file: the pickle, and what the list says about it (`label` None: see the pickle)."""

    path: Path
    length: int | None
    label: object
    fold: str


def list_records(root: str | Path, *, split_file: str | None = None, **options: object) -> list[str]:
    """`000000`, `000001`, ...: positions in the index, or in the split file (train, val, test)."""
    return [f"{i:06d}" for i in range(len(_entries(root, split_file)[0]))]


def open_record(
    root: str | Path,
    record_id: str,
    *,
    source_fs: float | None = None,
    channels: str | None = None,
    units: str | None = None,
    split_file: str | None = None,
    task_index: int = 0,
) -> Recording:
    """One segment. The layout states neither rate nor subject: `source_fs` (Hz) is required, every segment is its own subject."""
    if source_fs is None:
        raise ValueError("source_fs is missing: CWT-MAE's pickles state no rate; give it in Hz with --source-fs")
    entries, where = _entries(root, split_file)
    entry = entries[int(record_id)]
    content = read_pickle(entry.path)
    x_CT = matrix(entry.path, content, "data")
    if entry.length is not None and entry.length != x_CT.shape[1]:
        raise ValueError(f"{where}, entry {int(record_id)}: len is {entry.length} and {entry.path} has {x_CT.shape[1]} samples; write the index again")
    label = _label(entry, content, task_index)
    classes = _classes(root, split_file, task_index)
    return Recording.from_array(
        x_CT,
        fs=source_fs,
        channels=named(channels, len(x_CT), "channels"),
        units=named(units, len(x_CT), "units") if units else ("a.u.",) * len(x_CT),
        subject=f"cwt:{where.stem}:{record_id}",
        record=entry.path.stem,
        labels={} if not classes else {"class": classes.index(label) if label else -1},
    )


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`class`: the position of the segment's class among the original ones, -1 where it has none."""
    return {task: np.full(len(start_s_N), position, np.int64) for task, position in recording.labels.items()}


def folds(record_ids: list[str], root: str | Path, *, split_file: str | None = None, **options: object) -> dict[str, str] | None:
    """The folds of the split file; an index publishes none."""
    entries, _ = _entries(root, split_file)
    return {record_id: entries[int(record_id)].fold for record_id in record_ids} if entries[0].fold else None


def tasks_at(root: str | Path, *, split_file: str | None = None, task_index: int = 0, **options: object) -> dict[str, TaskSpec]:
    """`class` with the labels found; none where nothing is labelled. Labels that only the pickles hold are read from them."""
    classes = _classes(root, split_file, task_index)
    return {"class": TaskSpec(kind="binary" if len(classes) == 2 else "multiclass", classes=classes)} if classes else {}


def _entries(root: str | Path, split_file: str | None) -> tuple[tuple[Entry, ...], Path]:
    path = Path(split_file) if split_file else Path(root)
    if split_file and not path.is_file():
        path = Path(root) / split_file
    if path.is_dir():
        found = sorted(path.glob("*.json"))
        if len(found) != 1:
            raise ValueError(f"root {path} holds {len(found)} JSON files, one index was expected; name the index file itself, or give the option split_file")
        path = found[0]
    if not path.is_file():
        raise ValueError(f"root {path} does not exist; name the JSON list of {{path, len, label}} or its folder")
    return _read_entries(path, path.stat().st_mtime_ns), path


@lru_cache(maxsize=4)
def _read_entries(path: Path, changed_ns: int) -> tuple[Entry, ...]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error}); it may be cut off") from error
    if isinstance(content, dict):
        missing = [fold for fold in ("train", "test") if fold not in content]
        if missing:
            raise ValueError(f"{path}: no list {missing[0]!r}, the file has {', '.join(content) or 'nothing'}; a split file has train, test and perhaps val")
        lists = [(fold, content[fold]) for fold in FOLDS if fold in content]
    else:
        lists = [("", content)]
    entries = [_entry(path, fold, i, item) for fold, items in lists if _is_list(path, items) for i, item in enumerate(items)]
    if not entries:
        raise ValueError(f"{path}: an empty index; write it again")
    seen: dict[Path, str] = {}
    for entry in entries:
        if seen.setdefault(entry.path, entry.fold) != entry.fold:
            raise ValueError(f"{path}: {entry.path.name} stands under both {seen[entry.path]!r} and {entry.fold!r}; a segment belongs to one")
    return tuple(entries)


def _is_list(path: Path, items: object) -> bool:
    if not isinstance(items, list):
        raise ValueError(f"{path}: holds a {type(items).__name__} where a list of segments is expected")
    return True


def _entry(path: Path, fold: str, i: int, item: object) -> Entry:
    place = f"{path}, entry {i}{f' of {fold}' if fold else ''}"
    if isinstance(item, str):
        item = {"path": item}
    if not isinstance(item, Mapping) or not isinstance(item.get("path"), str):
        raise ValueError(f"{place}: no path; an entry is {{path, len, label}} or the path of a pickle")
    length = item.get("len")
    if length is not None and not isinstance(length, int):
        raise ValueError(f"{place}: len is {length!r}, expected a number of samples")
    return Entry((path.parent / item["path"]).absolute(), length, item.get("label"), fold)


def _classes(root: str | Path, split_file: str | None, task_index: int) -> tuple[str, ...]:
    entries, path = _entries(root, split_file)
    return _read_classes(entries, path.stat().st_mtime_ns, task_index)


@lru_cache(maxsize=4)
def _read_classes(entries: tuple[Entry, ...], changed_ns: int, task_index: int) -> tuple[str, ...]:
    labels = {_label(entry, None if entry.label is not None else read_pickle(entry.path), task_index) for entry in entries}
    return tuple(sorted(labels - {""}, key=lambda name: (0, int(name), name) if name.lstrip("-").isdigit() else (1, 0, name)))


def _label(entry: Entry, content: object, task_index: int) -> str:
    """The class as text, "" where there is none."""
    label = entry.label if entry.label is not None else content.get("label") if isinstance(content, dict) else None
    if isinstance(label, list):
        if not 0 <= task_index < len(label):
            raise ValueError(f"{entry.path}: its label is a list of {len(label)}, task_index={task_index} is outside; choose 0 to {len(label) - 1}")
        label = label[task_index].get("class") if isinstance(label[task_index], dict) else label[task_index]
    if isinstance(label, np.ndarray) and label.size == 1:
        label = label.item()
    if label is None:
        return ""
    if isinstance(label, float | np.floating) and float(label).is_integer():
        label = int(label)
    if not isinstance(label, str | int | np.integer):
        raise ValueError(f"{entry.path}: label is a {type(label).__name__}, expected a number, a name or a list of {{'class': ...}}")
    return str(label)


CORPUS = Corpus(
    name="cwt_index",
    title="Segments in CWT-MAE's layout (JSON index or split file, one pickle a segment)",
    licence="that of the data",
    access="own",
    size="any",
    citation="Wearable-Foundation-Model (CWT-MAE-RoPE v3)",
    url="a folder of one's own",
    signal_kind="mixed",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(),
    label_windows=label_windows,
    official_folds=folds,
    tasks_at=tasks_at,
    subjects="unknown",
    records_per_task=64,
    options=_OPTIONS,
)
