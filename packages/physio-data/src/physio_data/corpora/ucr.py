"""The UCR archive's data sets: short series of one class each, already normalised, read from .tsv, .txt or .ts files. N windows."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.recording import Recording

FOLDS = ("train", "test")
SUFFIXES = (".tsv", ".txt", ".ts")  # the first that is there is read


@dataclass(frozen=True)
class _Table:
    """The rows of one file: series (C, T) each, labels as written ("" unknown), and the class names that its header lists."""

    series: tuple[np.ndarray, ...]
    labels: tuple[str, ...]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _DataSet:
    name: str
    tables: Mapping[str, _Table]
    classes: tuple[str, ...]


def list_records(root: str | Path, *, source_fs: float = 1.0, crop_size: int | None = None) -> list[str]:
    """`train-0`, `train-1`, ..., `test-0`, ...: the rows of the files in the folder of one data set; either file may be absent."""
    return [f"{fold}-{row}" for fold, table in _data_set(root).tables.items() for row in range(len(table.series))]


def open_record(root: str | Path, record_id: str, *, source_fs: float = 1.0, crop_size: int | None = None) -> Recording:
    """One row as a Recording. The archive states no rate and no subjects: one sample counts as one second unless `source_fs` (Hz) says more,
    and every row is its own subject, `ucr:<data set>:<fold>-<row>`. `record` is the 0-based row number. `crop_size` samples are kept: from a start
    drawn per row in the train file, from the middle in the test file, so that a score does not depend on a draw."""
    data = _data_set(root)
    fold, _, row = record_id.rpartition("-")
    table = data.tables[fold]
    x_CT = table.series[int(row)]
    if crop_size is not None:
        x_CT = _cropped(x_CT, crop_size, data.name, fold, int(row))
    label = table.labels[int(row)]
    channels = ("series",) if len(x_CT) == 1 else tuple(f"series{i}" for i in range(1, len(x_CT) + 1))
    return Recording.from_array(
        x_CT,
        fs=source_fs,
        channels=channels,
        units=("normalised",) * len(x_CT),
        subject=f"ucr:{data.name}:{record_id}",
        record=row,
        labels={"class": data.classes.index(label) if label else -1} if data.classes else {},
    )


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`class`: the position of the row's class among the original names, -1 where the file has no label."""
    return {task: np.full(len(start_s_N), position, np.int64) for task, position in recording.labels.items()}


def folds(record_ids: list[str], root: str | Path, *, source_fs: float = 1.0, crop_size: int | None = None) -> dict[str, str]:
    """The archive's own division into a train and a test file."""
    return {record_id: record_id.rpartition("-")[0] for record_id in record_ids}


def tasks_at(root: str | Path, *, source_fs: float = 1.0, crop_size: int | None = None) -> dict[str, TaskSpec]:
    """`class` with the original names of both files; none where no row has a label."""
    classes = _data_set(root).classes
    return {"class": TaskSpec(kind="binary" if len(classes) == 2 else "multiclass", classes=classes)} if classes else {}


def train_statistics(root: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (C,) of the samples of the train file: labels are no samples, and the test file is not looked at."""
    table = _data_set(root).tables.get("train")
    if table is None:
        raise ValueError(f"root {root} has no train file, from which alone statistics are taken; add NAME_TRAIN.tsv")
    x_CT = np.concatenate(table.series, axis=1).astype(np.float64)
    return np.nanmean(x_CT, axis=1), np.nanstd(x_CT, axis=1)


def _cropped(x_CT: np.ndarray, crop_size: int, name: str, fold: str, row: int) -> np.ndarray:
    spare = x_CT.shape[1] - crop_size
    if crop_size < 1 or spare < 0:
        raise ValueError(f"crop_size must lie between 1 and the {x_CT.shape[1]} samples of {name} {fold} row {row}, got {crop_size}")
    digest = hashlib.sha256(f"{name}|{fold}|{row}".encode()).digest()
    start = int.from_bytes(digest[:8], "big") % (spare + 1) if fold == "train" else spare // 2
    return x_CT[:, start : start + crop_size]


def _data_set(root: str | Path) -> _DataSet:
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one of a single data set, which holds NAME_TRAIN.tsv and NAME_TEST.tsv")
    files = {fold: path for fold in FOLDS if (path := _file(folder, fold)) is not None}
    if not files:
        raise ValueError(f"root {folder} holds no NAME_TRAIN or NAME_TEST file with suffix {', '.join(SUFFIXES)}; name the folder of a single data set")
    return _read_set(tuple((fold, path, path.stat().st_mtime_ns) for fold, path in files.items()))


def _file(folder: Path, fold: str) -> Path | None:
    for suffix in SUFFIXES:
        found = sorted(path for path in folder.glob(f"*{suffix}") if path.stem.upper().endswith(f"_{fold.upper()}"))
        if len(found) > 1:
            raise ValueError(f"root {folder} holds several data sets ({', '.join(path.name for path in found)}); name the folder of one")
        if found:
            return found[0]
    return None


@lru_cache(maxsize=4)
def _read_set(files: tuple[tuple[str, Path, int], ...]) -> _DataSet:
    tables: dict[str, _Table] = {}
    width = None
    for fold, path, _ in files:
        tables[fold] = _read_ts(path) if path.suffix == ".ts" else _read_columns(path, width)
        width = len(tables[fold].series[0][0]) + 1 if path.suffix != ".ts" else None
    listed = {name for table in tables.values() for name in table.classes}
    names = listed | {label for table in tables.values() for label in table.labels if label}
    first = files[0][1]
    return _DataSet(first.stem.rpartition("_")[0], tables, tuple(sorted(names, key=_class_order)))


def _class_order(name: str) -> tuple[float, str]:
    try:
        return float(name), name
    except ValueError:
        return math.inf, name


def _read_columns(path: Path, labelled_width: int | None) -> _Table:
    """Rows of numbers split by tabs, commas or blanks. The first is the label, unless the rows are one shorter than those of the train
    file; without a train file a first column that is not whole numbers throughout is taken for a sample."""
    lines = [line.replace(",", " ").split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty; fetch it again")
    width = max(map(len, lines))
    if min(map(len, lines)) != width:
        short = next(number for number, line in enumerate(lines, 1) if len(line) != width)
        raise ValueError(f"{path}, row {short}: {len(lines[short - 1])} values, the longest row has {width}; the file is cut off or damaged")
    if labelled_width is None:
        labelled = all(line[0] == "?" or _is_whole(line[0]) for line in lines)
    elif width in (labelled_width, labelled_width - 1):
        labelled = width == labelled_width
    else:
        raise ValueError(f"{path}: rows of {width} values, the train file has a label and {labelled_width - 1} samples; they do not belong together")
    labels = tuple(_class_name(line[0]) if labelled else "" for line in lines)
    return _Table(tuple(_series(path, number, [line[labelled:]]) for number, line in enumerate(lines, 1)), labels)


def _is_whole(text: str) -> bool:
    try:
        return float(text).is_integer()
    except ValueError:
        return False


def _class_name(text: str) -> str:
    """The class as the archive names it: `1.0000000e+00` is `1`; `?` is unknown."""
    text = text.strip()
    if text in ("?", ""):
        return ""
    return str(int(float(text))) if _is_whole(text) else text


def _read_ts(path: Path) -> _Table:
    """The sktime format: `@` header lines, then per row the dimensions and the label, split by colons."""
    listed: tuple[str, ...] = ()
    states_label: bool | None = None
    series: list[np.ndarray] = []
    labels: list[str] = []
    in_data = False
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("@"):
            words = line[1:].split()
            in_data |= words[0].lower() == "data"
            if words[0].lower() == "classlabel":
                states_label = len(words) > 1 and words[1].lower() == "true"
                listed = tuple(_class_name(word) for word in words[2:]) if states_label else ()
            if words[0].lower() == "timestamps" and words[-1].lower() == "true":
                raise ValueError(f"{path}: series with time stamps are not supported; write evenly sampled values")
            continue
        if not in_data:
            raise ValueError(f"{path}, line {number}: values before @data; this is not a .ts file")
        parts = line.split(":")
        labelled = len(parts) > 1 and "," not in parts[-1] if states_label is None else states_label and len(parts) > 1
        series.append(_series(path, number, [part.split(",") for part in (parts[:-1] if labelled else parts)]))
        labels.append(_class_name(parts[-1]) if labelled else "")
    if not series:
        raise ValueError(f"{path} holds no series; fetch it again")
    return _Table(tuple(series), tuple(labels), listed)


def _series(path: Path, number: int, dimensions: list[list[str]]) -> np.ndarray:
    """(C, T) float32; `?` and NaN are gaps, at the end of a series they are its end."""
    try:
        x_CT = np.array([[math.nan if value.strip() == "?" else float(value) for value in row] for row in dimensions], np.float64)
    except ValueError as error:
        raise ValueError(f"{path}, row {number}: {error}; the file is damaged or of another format") from error
    there = np.flatnonzero(np.isfinite(x_CT).any(axis=0))
    return x_CT[:, : there[-1] + 1 if there.size else 0].astype(np.float32)


CORPUS = Corpus(
    name="ucr",
    title="UCR Time Series Classification Archive (one data set a folder)",
    licence="none stated: research use, cite",
    access="open",
    size="ECG200: 200 series of 96 samples; TwoLeadECG: 1162 of 82; ECG5000: 5000 of 140",
    citation="Dau HA et al. The UCR Time Series Archive. IEEE/CAA J Autom Sinica 2019;6(6):1293-1305",
    url="https://www.timeseriesclassification.com/",
    signal_kind="series",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(split="official"),
    label_windows=label_windows,
    official_folds=folds,
    tasks_at=tasks_at,
    subjects="unknown",
    records_per_task=256,
    options={
        "source_fs": "rate in Hz, which the archive does not state (default 1: one sample is one second)",
        "crop_size": "samples to keep of each series, from a drawn start in the train file and from the middle in the test file (default: all)",
    },
)
