"""WESAD: chest and wrist signals of 15 people at rest, under stress and amused (Schmidt et al. 2018). N windows."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.corpora.empatica import CHEST_HZ, EmpaticaReader, known_device, load_subject, subject_files
from physio_data.corpora.labels import AGE_SEX, age_sex, longest_state
from physio_data.recording import Recording

STATES = ("baseline", "stress", "amusement")  # 1, 2, 3 of the files; 0 is transient, 4 meditation, 5-7 are to be ignored
_AGE = re.compile(r"^\W*age\W*(\d{1,3})", re.IGNORECASE | re.MULTILINE)
_SEX = re.compile(r"^\W*gender\W*(f|m)", re.IGNORECASE | re.MULTILINE)


def list_records(root: str | Path, *, device: str = "wrist") -> list[str]:
    """`S2`, ..., `S17`: the subjects whose pickle is there (S1 and S12 do not exist)."""
    known_device(device)
    return list(subject_files(root, "WESAD"))


def open_record(root: str | Path, record_id: str, *, device: str = "wrist") -> Recording:
    """One subject's signals of one device: `wrist` (PPG at 64 Hz), `wrist_acc` (32 Hz), `wrist_slow` (EDA, skin temperature at 4 Hz) or
    `chest` (ECG, respiration, EDA, EMG, temperature, acceleration at 700 Hz). Opening reads the whole pickle: it has no index."""
    path = subject_files(root, "WESAD")[record_id]
    reader = EmpaticaReader(str(path), known_device(device))
    groups, rows = reader.groups(), reader.rows()
    readme = path.with_name(f"{record_id}_readme.txt")
    notes = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    age, sex = _AGE.search(notes), _SEX.search(notes)
    return Recording(
        fs=groups[0][3],
        channels=tuple(name for group in groups for name in group[1]),
        units=tuple(group[2] for group in groups for _ in group[1]),
        n_samples=min(map(len, rows)),
        subject=f"wesad:{record_id}",
        record=record_id,
        age=float(age[1]) if age else math.nan,
        sex=sex[1].upper() if sex else "",
        labels={"path": str(path)},
        reader=reader,
    )


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`stress`: the state that fills more than half of the window, -1 for transitions and meditation; `age` and `sex` from the readme."""
    label_T = load_subject(str(recording.labels["path"])).array("label").ravel()
    state_N, share_N = longest_state(label_T.astype(np.int64) - 1, CHEST_HZ, start_s_N, window_s, len(STATES))
    return {"stress": np.where(share_N > 0.5, state_N, -1), **age_sex(recording, len(start_s_N))}


CORPUS = Corpus(
    name="wesad",
    title="WESAD: wearable stress and affect detection",
    licence="CC BY 4.0 (as listed by the UCI repository)",
    access="open",
    size="15 people, about 100 min each; chest at 700 Hz, wrist PPG at 64 Hz",
    citation="Schmidt P, Reiss A, Duerichen R, Marberger C, Van Laerhoven K. ICMI 2018:400-408",
    url="https://archive.ics.uci.edu/dataset/465/wesad+wearable+stress+and+affect+detection",
    signal_kind="mixed",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=(), window_s=10.0, hop_s=10.0, split="hash"),
    tasks={"stress": TaskSpec(kind="multiclass", classes=STATES), **AGE_SEX},
    label_windows=label_windows,
    layout="unverified",
    obtain="download WESAD.zip from the UCI repository and unpack it; --root is the folder that holds S2, S3, ...",
    options={"device": "wrist (PPG, default), wrist_acc, wrist_slow or chest; a device is one rate"},
)
