"""PhysioNet/CinC Challenge 2017: single-lead ECGs of 9 to 61 s from a hand-held device, four rhythms (Clifford et al. 2017). N windows.

Headers put the date before the time. Some traces are upside down, as people held the device.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.formats import open_recording
from physio_data.recording import Recording

LABEL_FILES = ("REFERENCE-v3.csv",)  # version 3 is the final one; earlier ones differ in hundreds of labels
RHYTHMS = ("N", "A", "O", "~")


def list_records(root: str | Path) -> list[str]:
    """Every record below `root` (A00001, ...), as its path without a suffix, sorted."""
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one that holds A00001.hea, A00001.mat, ... and REFERENCE-v3.csv")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("A*.hea") if path.stem[1:].isdigit())


def open_record(root: str | Path, record_id: str) -> Recording:
    """One record with its rhythm (`labels["rhythm"]`, "" without a label file); patients are not named, the subject is `cinc2017:<record>`."""
    path = Path(root) / f"{record_id}.hea"
    return replace(open_recording(path, annotation=None), subject=f"cinc2017:{path.stem}", record=path.stem, labels={"rhythm": _rhythm(Path(root), path)})


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`af`: A against N and O, noisy records (~) unlabelled; `noise`: ~ against the rest; `rhythm`: N, A, O, ~. -1 without a label file."""
    rhythm = str(recording.labels["rhythm"])
    n = len(start_s_N)
    return {
        "af": np.full(n, {"A": 1, "N": 0, "O": 0}.get(rhythm, -1), np.int64),
        "noise": np.full(n, int(rhythm == "~") if rhythm else -1, np.int64),
        "rhythm": np.full(n, RHYTHMS.index(rhythm) if rhythm else -1, np.int64),
    }


def _rhythm(root: Path, path: Path) -> str:
    for folder in dict.fromkeys((path.parent, root, root.parent)):
        for name in LABEL_FILES:
            if (folder / name).is_file():
                table = _labels(folder / name, (folder / name).stat().st_mtime_ns)
                if path.stem not in table:
                    raise ValueError(f"{folder / name}: no row for record {path.stem}; fetch the label file of this set")
                return table[path.stem]
    return ""


@lru_cache(maxsize=4)
def _labels(path: Path, changed_ns: int) -> dict[str, str]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        rows = [row for row in csv.reader(handle) if row]
    for line, row in enumerate(rows, 1):
        if len(row) != 2 or row[1].strip() not in RHYTHMS:
            raise ValueError(f"{path}, line {line}: {','.join(row)!r} is not a record and one of {', '.join(RHYTHMS)}; fetch it again")
    return {record.strip(): rhythm.strip() for record, rhythm in rows}


CORPUS = Corpus(
    name="cinc2017",
    title="AF Classification from a Short Single Lead ECG Recording: the PhysioNet/CinC Challenge 2017, 1.0.0",
    licence="ODC-By 1.0",
    access="open",
    size="8,528 records of 9 to 61 s, 1 lead at 300 Hz",
    citation="Clifford GD, Liu C, Moody B, et al. Comput Cardiol 2017;44:1-4",
    url="https://physionet.org/content/challenge-2017/1.0.0/",
    signal_kind="ecg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=("ECG",), window_s=9.0, hop_s=9.0, fs=100.0, band=(0.5, 40.0)),
    tasks={
        "af": TaskSpec(kind="binary", classes=("no AF", "AF")),
        "noise": TaskSpec(kind="binary", classes=("rhythm seen", "noise")),
        "rhythm": TaskSpec(kind="multiclass", classes=RHYTHMS),
    },
    label_windows=label_windows,
    subjects="unknown",
    obtain="training2017.zip or sample2017/validation with REFERENCE-v3.csv beside the records, from https://physionet.org/content/challenge-2017/1.0.0/",
)
