"""PPG-DaLiA: wrist PPG of 15 people through two hours of daily life, with the heart rate of an ECG (Reiss et al. 2019). N windows.

The corpus's PPG is reported to point down where other corpora point up (a pulse's rise is its steepest part): each recording is checked and
turned upright, unless `polarity` says otherwise.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.corpora.empatica import EmpaticaReader, known_device, load_subject, stated_number, subject_files
from physio_data.corpora.labels import AGE_SEX, RATE, age_sex, at_reference_windows, longest_state
from physio_data.pulses import pulse_polarity
from physio_data.recording import Recording

ACTIVITIES = ("transient", "sitting", "stairs", "table soccer", "cycling", "driving", "lunch", "walking", "working")  # 0 to 8 of the files
ACTIVITY_HZ = 4.0
POLARITIES = ("check", "keep", "turn")
_OPTIONS = {
    "device": "wrist (PPG, default), wrist_acc, wrist_slow or chest; a device is one rate",
    "polarity": "of the wrist's PPG: check (default; measured per recording), keep as stored, or turn",
}


def list_records(root: str | Path, *, device: str = "wrist", polarity: str = "check") -> list[str]:
    """`S1`, ..., `S15`: the subjects whose pickle is there."""
    known_device(device)
    return list(subject_files(root, "PPG-DaLiA"))


def open_record(root: str | Path, record_id: str, *, device: str = "wrist", polarity: str = "check") -> Recording:
    """One subject's signals of one device, as `wesad.open_record`; `labels["sign"]` is -1 where the PPG was turned."""
    if polarity not in POLARITIES:
        raise ValueError(f"polarity must be one of {', '.join(POLARITIES)}, got {polarity!r}")
    path = subject_files(root, "PPG-DaLiA")[record_id]
    reader = EmpaticaReader(str(path), known_device(device))
    groups, rows = reader.groups(), reader.rows()
    fs, sign = groups[0][3], 1
    if device == "wrist":
        sign = -1 if polarity == "turn" else pulse_polarity(rows[0], fs) if polarity == "check" else 1
    person = load_subject(path).content.get("questionnaire", {})
    return Recording(
        fs=fs,
        channels=tuple(name for group in groups for name in group[1]),
        units=tuple(group[2] for group in groups for _ in group[1]),
        n_samples=min(map(len, rows)),
        subject=f"dalia:{record_id}",
        record=record_id,
        age=stated_number(person.get("AGE", math.nan)),
        sex={"f": "F", "m": "M"}.get(str(person.get("Gender", "")).strip()[:1].lower(), ""),
        labels={"path": str(path), "sign": sign},
        reader=EmpaticaReader(str(path), device, sign),
    )


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`rate`: bpm of the ECG, stated for windows of 8 s every 2 s, linear between them; `activity`: what fills more than half of the window."""
    subject = load_subject(str(recording.labels["path"]))
    state_N, share_N = longest_state(subject.array("activity"), ACTIVITY_HZ, start_s_N, window_s, len(ACTIVITIES))
    return {
        "rate": at_reference_windows(subject.array("label").ravel(), start_s_N, window_s),
        "activity": np.where(share_N > 0.5, state_N, -1),
        **age_sex(recording, len(start_s_N)),
    }


CORPUS = Corpus(
    name="dalia",
    title="PPG-DaLiA: PPG-based heart rate in daily life",
    licence="CC BY 4.0 (as listed by the UCI repository)",
    access="open",
    size="15 people, about 2.5 h each; wrist PPG at 64 Hz, chest ECG at 700 Hz",
    citation="Reiss A, Indlekofer I, Schmidt P, Van Laerhoven K. Deep PPG. Sensors 2019;19(14):3079",
    url="https://archive.ics.uci.edu/dataset/495/ppg+dalia",
    signal_kind="mixed",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(window_s=8.0, hop_s=2.0, split="hash"),
    tasks={**RATE, "activity": TaskSpec(kind="multiclass", classes=ACTIVITIES), **AGE_SEX},
    label_windows=label_windows,
    layout="unverified",
    obtain="download the archive from the UCI repository and unpack it; --root is PPG_FieldStudy, which holds S1, S2, ...",
    options=_OPTIONS,
)
