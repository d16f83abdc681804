"""PPG-BP: three clips of 2.1 s of fingertip PPG from each of 219 people, with blood pressure and diagnoses (Liang et al. 2018). N windows."""

from __future__ import annotations

import csv
import math
import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.corpora.labels import AGE_SEX, PRESSURE, age_sex, pressure
from physio_data.recording import Recording

FS = 1000.0
STAGES = ("Normal", "Prehypertension", "Stage 1 hypertension", "Stage 2 hypertension")
_CLIP = re.compile(r"^(\d+)_(\d+)$")
# column -> how its header may begin, in the table as published (exported from the workbook) and in the shorter form, lower case without blanks
_COLUMNS = {
    "subject": ("subject_id",),
    "sex": ("sex",),
    "age": ("age",),
    "sbp": ("sbp", "systolicbloodpressure"),
    "dbp": ("dbp", "diastolicbloodpressure"),
    "rate": ("hr", "heartrate"),
    "hypertension": ("hypertension",),
    "diabetes": ("diabetes",),
}


def list_records(root: str | Path) -> list[str]:
    """`2_1`, `2_2`, ...: clips by subject, then by number."""
    return sorted((path.stem for path in _clip_folder(root).glob("*.txt") if _CLIP.match(path.stem)), key=lambda stem: tuple(map(int, stem.split("_"))))


def open_record(root: str | Path, record_id: str) -> Recording:
    """One clip in a.u. at 1000 Hz; the subject is `ppgbp:<id>`. `ValueError` names a clip that is no line of numbers and a subject without a row."""
    path = _clip_folder(root) / f"{record_id}.txt"
    table, where = _subjects(root)
    subject = record_id.partition("_")[0]
    if subject not in table:
        raise ValueError(f"{where}: no row for subject {subject}, whose clip {path.name} is there; add the row or take the clip away")
    row = table[subject]
    try:
        x_T = np.array(path.read_text(encoding="ascii").split(), np.float32)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a line of numbers ({error}); fetch it again") from error
    if not x_T.size:
        raise ValueError(f"{path}: empty; fetch it again")
    return Recording.from_array(
        x_T[None],
        fs=FS,
        channels=("PPG",),
        units=("a.u.",),
        subject=f"ppgbp:{subject}",
        record=record_id,
        age=_number(where, subject, "age", row["age"]),
        sex={"f": "F", "m": "M"}.get(row["sex"][:1].lower(), ""),
        labels={
            "sbp": _number(where, subject, "sbp", row["sbp"]),
            "dbp": _number(where, subject, "dbp", row["dbp"]),
            "rate": _number(where, subject, "rate", row["rate"]),
            "stage": _stage(where, subject, row["hypertension"]),
            "diabetes": int(bool(row["diabetes"].strip())),
        },
    )


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`hypertension`: stage 1 or 2 against the rest; `diabetes`: an empty cell means none; pressure in mmHg, `rate` in bpm, `age`, `sex`."""
    n, of = len(start_s_N), recording.labels
    stage = int(of["stage"])
    return {
        "hypertension": np.full(n, -1 if stage < 0 else int(stage >= 2), np.int64),
        "diabetes": np.full(n, of["diabetes"], np.int64),
        **pressure(np.full(n, of["sbp"]), np.full(n, of["dbp"])),
        "rate": np.full(n, of["rate"], np.float64),
        **age_sex(recording, n),
    }


def _stage(where: Path, subject: str, text: str) -> int:
    """Position in STAGES, -1 for an empty cell."""
    if not text.strip():
        return -1
    near = [i for i, stage in enumerate(STAGES) if stage.lower() == text.strip().lower()]
    if not near:
        raise ValueError(f"{where}: hypertension of subject {subject} is {text!r}, expected one of {', '.join(STAGES)}")
    return near[0]


def _number(where: Path, subject: str, column: str, text: str) -> float:
    if not text.strip():
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}: {column} of subject {subject} is {text!r}, not a number; mend the cell or leave it empty") from None


def _clip_folder(root: str | Path) -> Path:
    """The folder of the clips: `root` itself, or `0_subject` in it or in its `Data File`."""
    folder = Path(root)
    return _found_clips(folder, folder.stat().st_mtime_ns if folder.is_dir() else 0)


@lru_cache(maxsize=4)
def _found_clips(folder: Path, changed_ns: int) -> Path:
    for place in (folder / "Data File" / "0_subject", folder / "0_subject", folder):
        if place.is_dir() and any(_CLIP.match(path.stem) for path in place.glob("*.txt")):
            return place
    raise ValueError(f"root {folder} holds no clips such as 2_1.txt, nor does a folder 0_subject in it; name the folder of PPG-BP")


def _subjects(root: str | Path) -> tuple[dict[str, dict[str, str]], Path]:
    table = _found_table(Path(root), _clip_folder(root), Path(root).stat().st_mtime_ns)
    return _read_subjects(table, table.stat().st_mtime_ns), table


@lru_cache(maxsize=4)
def _found_table(folder: Path, clips: Path, changed_ns: int) -> Path:
    places = (folder, folder / "Data File", clips.parent)
    tables = sorted({path for place in places for path in place.glob("*.csv")})
    if len(tables) != 1:
        there = ", ".join(path.name for path in tables) or "none"
        raise ValueError(f"root {folder} holds {there} as subject table, one CSV was expected; save the published workbook as subjects.csv there")
    return tables[0]


@lru_cache(maxsize=4)
def _read_subjects(path: Path, changed_ns: int) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    names = [[cell.lower().replace(" ", "") for cell in row] for row in rows]
    head = next((i for i, row in enumerate(names) if any(cell.startswith("subject_id") for cell in row)), None)
    if head is None:
        raise ValueError(f"{path}: no column subject_id in its header; it must have {', '.join(_COLUMNS)}")
    place: dict[str, int] = {}
    for column, spellings in _COLUMNS.items():
        found = [i for i, cell in enumerate(names[head]) if any(cell == s or cell.startswith((f"{s}(", f"{s}_")) for s in spellings)]
        if not found:
            raise ValueError(f"{path}: no column {column} ({' or '.join(spellings)}), the header has {', '.join(rows[head])}")
        place[column] = found[0]
    return {row[place["subject"]].strip(): {column: row[i] for column, i in place.items()} for row in rows[head + 1 :] if len(row) > max(place.values())}


CORPUS = Corpus(
    name="ppgbp",
    title="PPG-BP: fingertip PPG with blood pressure",
    licence="CC BY 4.0",
    access="open",
    size="657 clips of 2.1 s at 1000 Hz, 219 people",
    citation="Liang Y, Chen Z, Liu G, Elgendi M. Sci Data 2018;5:180020",
    url="https://doi.org/10.6084/m9.figshare.5459299",
    signal_kind="ppg",
    list_records=list_records,
    open_record=open_record,
    # 262 samples: a clip has 262.5, and the few of double length then give two windows
    defaults=PrepareDefaults(leads=("PPG",), window_s=2.096, hop_s=2.096, fs=125.0, band=(0.5, 12.0), split="stratified"),
    tasks={
        "hypertension": TaskSpec(kind="binary", classes=("none or prehypertension", "stage 1 or 2")),
        "diabetes": TaskSpec(kind="binary", classes=("none", "diabetes")),
        **PRESSURE,
        "rate": TaskSpec(kind="regression", unit="bpm"),
        **AGE_SEX,
    },
    label_windows=label_windows,
    obtain="download the archive from figshare, unpack it and save the workbook as subjects.csv beside the folder 0_subject",
    records_per_task=32,
)
