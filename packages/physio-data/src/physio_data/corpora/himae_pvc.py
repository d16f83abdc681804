"""HiMAE's labelled layout: one HDF5 file with `/ppg` or `/ecg` windows, `/labels` and `/patient_ids`, and a metadata CSV. N windows."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.formats.hdf5 import HimaePvc
from physio_data.recording import Recording

_OPTIONS = {
    "source_fs": "rate of the windows in Hz where no metadata states it (default 25, the original's)",
    "metadata": "the metadata CSV (default: the CSV beside the file, where there is exactly one)",
}


def list_records(root: str | Path, *, source_fs: float | None = None, metadata: str | None = None) -> list[str]:
    """`0`, `1`, ...: the rows of the file; `root` is the HDF5 file or a folder that holds one."""
    return [str(row) for row in range(len(_windows(root, source_fs, metadata)))]


def open_record(root: str | Path, record_id: str, *, source_fs: float | None = None, metadata: str | None = None) -> Recording:
    """One window as a Recording; subject is the patient, `himae:<id>`, `record` the row number (`global_idx`). Rows are not known to follow
    one another without a gap, so no window has a `next`."""
    data, row = _windows(root, source_fs, metadata), int(record_id)
    channels = tuple(name.upper() for name in data.signals)
    return Recording.from_array(
        data.read(row, row + 1)[0],
        fs=data.fs,
        channels=channels,
        units=("a.u.",) * len(channels),
        subject=f"himae:{data.patients[row]}",
        record=record_id,
        labels=_labels(data.labels[row]),
    )


def _labels(label: np.ndarray) -> dict[str, float | int]:
    """A label row of one value is the PVC flag, one of three is (unused, systolic, diastolic) of HiMAE's app "element"."""
    if np.ndim(label) == 0:
        return {"pvc": int(label) if label in (0, 1) else -1}
    sbp, dbp = float(label[1]), float(label[2])
    return {"sbp": sbp, "dbp": dbp, "htn_bp": hypertension(sbp, dbp)}


def hypertension(sbp_mmhg: float, dbp_mmhg: float) -> int:
    """HiMAE's rule, 130/80 with a margin of 8 left out: 1 from 138 systolic or 88 diastolic on, 0 up to 122 and 72, else -1 (not scored)."""
    if sbp_mmhg >= 138 or dbp_mmhg >= 88:
        return 1
    return 0 if sbp_mmhg <= 122 and dbp_mmhg <= 72 else -1


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """The row's own labels for every window cut from it."""
    return {task: np.full(len(start_s_N), value, np.int64 if isinstance(value, int) else np.float64) for task, value in recording.labels.items()}


def tasks_at(root: str | Path, *, source_fs: float | None = None, metadata: str | None = None) -> dict[str, TaskSpec]:
    """`pvc`, or `sbp`, `dbp` and `htn_bp` where the label rows hold blood pressure."""
    if _windows(root, source_fs, metadata).labels.ndim == 1:
        return {"pvc": TaskSpec(kind="binary", classes=("no PVC", "PVC"))}
    pressure = TaskSpec(kind="regression", unit="mmHg")
    return {"sbp": pressure, "dbp": pressure, "htn_bp": TaskSpec(kind="binary", classes=("normotensive", "hypertensive"))}


def _windows(root: str | Path, source_fs: float | None, metadata: str | None) -> HimaePvc:
    path = Path(root)
    if path.is_dir():
        found = sorted([*path.glob("*.h5"), *path.glob("*.hdf5")])
        if len(found) != 1:
            raise ValueError(f"root {path} holds {len(found)} HDF5 files, one was expected; name the file itself")
        path = found[0]
    if not path.is_file():
        raise ValueError(f"root {path} does not exist; name the HDF5 file with /ppg or /ecg, /labels and /patient_ids, or its folder")
    tables = sorted(path.parent.glob("*.csv"))
    table = Path(metadata) if metadata is not None else tables[0] if len(tables) == 1 else None
    return _opened(path, path.stat().st_mtime_ns, table, source_fs)


@lru_cache(maxsize=4)
def _opened(path: Path, changed_ns: int, metadata: Path | None, fs: float | None) -> HimaePvc:
    data = HimaePvc.open(path, metadata=metadata, fs=fs)
    if data.labels.ndim == 2 and data.labels.shape[1] != 3:
        raise ValueError(f"{path}: /labels has rows of {data.labels.shape[1]} values; one (PVC) or three (unused, systolic, diastolic) are known")
    if data.labels.ndim == 1 and not set(np.unique(data.labels[~np.isnan(data.labels)])) <= {-1.0, 0.0, 1.0}:
        worst = next(value for value in data.labels.tolist() if value not in (-1.0, 0.0, 1.0) and not math.isnan(value))
        raise ValueError(f"{path}: /labels holds {worst:g}; PVC labels are 0, 1 or -1 (unknown)")
    return data


CORPUS = Corpus(
    name="himae_pvc",
    title="Labelled windows in HiMAE's layout (PVC, or blood pressure of app element)",
    licence="that of the data",
    access="own",
    size="the original's file: 55,861 windows of 10 s at 25 Hz, 18 patients, 2,604 with a PVC",
    citation="HiMAE: hierarchical masked autoencoders for wearable signals",
    url="a file of one's own",
    signal_kind="ppg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(),
    label_windows=label_windows,
    tasks_at=tasks_at,
    records_per_task=256,
    options=_OPTIONS,
)
