"""CODE-15%: 345,779 12-lead ECGs of the Telehealth Network of Minas Gerais in HDF5 parts (Ribeiro et al. 2021). N windows, C channels, T samples.

`exams.csv` describes the exams; `exams_part0.hdf5`, ... hold `exam_id` (M,) and `tracings` (M, 4096, 12) at 400 Hz in 0.1 mV, where
recordings of 7 and 10 s have zeros before and after. The zeros are cut off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.corpora.labels import AGE_SEX, age_sex
from physio_data.corpora.tables import flags, multilabel, number, table_of, whole_id
from physio_data.formats.hdf5 import open_h5
from physio_data.recording import ECG_LEADS, Recording

FS = 400.0  # Hz, by the description; the files state no rate
MV_PER_UNIT = 0.1  # the tracings are in 1e-4 V
DIAGNOSES = ("1dAVb", "RBBB", "LBBB", "SB", "ST", "AF")
_COLUMNS = ("exam_id", "age", "is_male", "patient_id", *DIAGNOSES)


@dataclass(frozen=True)
class _Place:
    part: Path
    row: int


def list_records(root: str | Path) -> list[str]:
    """The exam ids of every part that is there, part by part in file order; the empty row at a part's end is no exam."""
    return list(_places(Path(root)))


def open_record(root: str | Path, record_id: str) -> Recording:
    """One exam in mV without the zeros around it; the subject is `code15:<patient_id>`."""
    place = _places(Path(root)).get(record_id)
    if place is None:
        raise ValueError(f"{root}: exam {record_id!r} is in no exams_part*.hdf5 there; fetch the part that exams.csv names for it")
    row = table_of(Path(root) / "exams.csv", "exam_id", _COLUMNS).get(record_id)
    if row is None:
        raise ValueError(f"{Path(root) / 'exams.csv'}: no row for exam {record_id} of {place.part.name}; fetch the table again")
    with open_h5(place.part) as file:
        x_TC = np.asarray(file["tracings"][place.row], np.float32)
    age = number(row["age"])
    return Recording.from_array(
        trimmed(x_TC).T * np.float32(MV_PER_UNIT),
        fs=FS,
        channels=ECG_LEADS,
        units=("mV",) * len(ECG_LEADS),
        subject=f"code15:{whole_id(row['patient_id'])}",
        record=record_id,
        age=age if 0 <= age <= 120 else math.nan,
        sex={"true": "M", "1": "M", "false": "F", "0": "F"}.get(whole_id(row["is_male"]).lower(), ""),
        labels={"dx": flags(DIAGNOSES, [name for name in DIAGNOSES if _is_true(row, name)])},
    )


def trimmed(x_TC: np.ndarray) -> np.ndarray:
    """Without the samples before the first and after the last that is not zero in some lead; zeros inside stay."""
    used = np.flatnonzero(np.any(x_TC != 0, axis=1))
    return x_TC[used[0] : used[-1] + 1] if used.size else x_TC[:0]


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`dx`: 0/1 for six diagnoses; `age`, `sex`."""
    n = len(start_s_N)
    return {"dx": multilabel(str(recording.labels["dx"]), len(DIAGNOSES), n), **age_sex(recording, n)}


def _is_true(row: Mapping[str, str], name: str) -> bool:
    value = whole_id(row[name]).lower()
    if value not in ("true", "false", "1", "0"):
        raise ValueError(f"exams.csv: {name} of exam {row['exam_id']} is {row[name]!r}, not True or False; fetch the table again")
    return value in ("true", "1")


def _places(root: Path) -> dict[str, _Place]:
    if not root.is_dir():
        raise ValueError(f"root {root} is no folder; name the one that holds exams.csv and exams_part0.hdf5, ...")
    parts = sorted(root.glob("exams_part*.hdf5"), key=lambda path: int(path.stem.removeprefix("exams_part")))
    return _indexed(tuple(parts), tuple(path.stat().st_mtime_ns for path in parts))


@lru_cache(maxsize=2)
def _indexed(parts: tuple[Path, ...], changed_ns: tuple[int, ...]) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    for part in parts:
        with open_h5(part) as file:
            for name in ("exam_id", "tracings"):
                if name not in file or not isinstance(file[name], h5py.Dataset):
                    raise ValueError(f"{part}: no dataset {name}; the file has {', '.join(file) or 'nothing'}; fetch it again")
            shape, ids = file["tracings"].shape, np.ravel(file["exam_id"][()])
        if len(shape) != 3 or shape[2] != len(ECG_LEADS) or shape[0] != ids.size:
            raise ValueError(f"{part}: tracings has shape {shape} beside {ids.size} exam ids, expected ({ids.size}, samples, {len(ECG_LEADS)}); fetch it again")
        for row, exam in enumerate(ids.tolist()):
            if exam:  # the last row of a part has id 0 and no signal
                if str(exam) in places:
                    raise ValueError(f"{part}: exam {exam} is also in {places[str(exam)].part.name}; keep one copy of each part")
                places[str(exam)] = _Place(part, row)
    return places


CORPUS = Corpus(
    name="code15",
    title="CODE-15%: a large scale annotated dataset of 12-lead ECGs, 1.0.0",
    licence="CC BY 4.0",
    access="open",
    size="345,779 exams of 7 or 10 s, 233,770 patients, 12 leads at 400 Hz, 18 parts",
    citation="Ribeiro AH, Paixao GMM, Lima EM, et al. CODE-15%. Zenodo 2021, doi:10.5281/zenodo.4916206. Lima EM, et al. Nat Commun 2021;12:5117",
    url="https://zenodo.org/records/4916206",
    signal_kind="ecg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=ECG_LEADS, window_s=7.0, hop_s=7.0, fs=100.0, band=(0.5, 40.0)),
    tasks={"dx": TaskSpec(kind="multilabel", classes=DIAGNOSES), **AGE_SEX},
    label_windows=label_windows,
    records_per_task=64,
    layout="unverified",
    obtain="exams.csv and exams_part0.zip to exams_part17.zip from https://zenodo.org/records/4916206, each unpacked into one folder",
)
