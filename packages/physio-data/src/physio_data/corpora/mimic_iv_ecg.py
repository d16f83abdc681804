"""MIMIC-IV-ECG: 800,035 diagnostic 12-lead ECGs of 10 s, matched to the patients of MIMIC-IV, with the machine's report (Gow et al. 2023). N windows.

`record_list.csv` (subject_id, study_id, file_name, ecg_time, path) names the WFDB records under `files/`; `machine_measurements.csv` has the
report as report_0 to report_17. In the files aVF stands before aVL: leads are chosen by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults
from physio_data.corpora.labels import AGE_SEX, age_sex
from physio_data.corpora.mimic import read_patients, sex_of, whole
from physio_data.corpora.tables import rows_of, table_of
from physio_data.formats.wfdb import open_wfdb
from physio_data.recording import ECG_LEADS, Recording

REPORT_COLUMNS = tuple(f"report_{i}" for i in range(18))
OVER_89 = 91.0  # MIMIC-IV writes anchor_age 91 for everyone older than 89
_COLUMNS = ("subject_id", "study_id", "path")
_OPTIONS = {
    "partial": "true reads the records that are there instead of refusing an incomplete copy",
    "patients": "patients.csv or patients.csv.gz of MIMIC-IV (hosp), which needs credentials: gives age and sex",
}


def list_records(root: str | Path, *, partial: bool = False, patients: str | None = None) -> list[str]:
    """The study ids in the order of `record_list.csv`. `ValueError` where headers are not there; with `partial` those are left out."""
    folder = Path(root)
    rows = rows_of(folder / "record_list.csv", _COLUMNS)
    absent = {row["study_id"]: row["path"] for row in rows if not (folder / f"{row['path']}.hea").is_file()}
    if absent and (not partial or len(absent) == len(rows)):
        raise ValueError(
            f"{folder}: {len(absent)} of {len(rows)} records of record_list.csv are not there, the first {next(iter(absent.values()))}.hea; "
            f"fetch them, or pass option partial true to read those that are there"
        )
    return [row["study_id"] for row in rows if row["study_id"] not in absent]


def open_record(root: str | Path, record_id: str, *, partial: bool = False, patients: str | None = None) -> Recording:
    """One record with its report as text; the subject is `mimic4:<subject_id>`, the same person as in the MIMIC-IV waveforms."""
    folder = Path(root)
    row = table_of(folder / "record_list.csv", "study_id", _COLUMNS).get(record_id)
    if row is None:
        raise ValueError(f"{folder / 'record_list.csv'}: no study {record_id}; fetch the table again")
    age, sex = _age_and_sex(row, patients)
    recording = open_wfdb(folder / f"{row['path']}.hea", annotation=None)
    return replace(recording, subject=f"mimic4:{row['subject_id']}", record=record_id, age=age, sex=sex, labels={"text": report(folder, record_id)})


def report(root: Path, study_id: str) -> str:
    """The machine's statements of a study, joined by blanks; "" where the table has no row for it."""
    path = root / "machine_measurements.csv"
    rows_of(path, ("study_id", "report_0"))
    return _reports(path, path.stat().st_mtime_ns).get(study_id, "")


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`age` and `sex`, known where the clinical table is given."""
    return age_sex(recording, len(start_s_N))


@lru_cache(maxsize=2)
def _reports(path: Path, changed_ns: int) -> dict[str, str]:
    return {row["study_id"]: " ".join(row[name] for name in REPORT_COLUMNS if row.get(name)) for row in rows_of(path, ("study_id",))}


def _age_and_sex(row: Mapping[str, str], patients: str | None) -> tuple[float, str]:
    """Age at the recording: the anchor age moved by the years between the anchor year and the recording, on the same shifted calendar."""
    if patients is None:
        return math.nan, ""
    person = _patients(patients).get(row["subject_id"])
    if person is None:
        return math.nan, ""
    year = row.get("ecg_time", "")[:4]
    age = whole(person["anchor_age"]) + (int(year) - whole(person["anchor_year"]) if year.isdigit() else math.nan)
    return (min(age, OVER_89) if age >= 0 else math.nan), sex_of(person["gender"])


@lru_cache(maxsize=2)
def _patients(path: str) -> dict[str, dict[str, str]]:
    return read_patients(path, ("subject_id", "gender", "anchor_age", "anchor_year"))


CORPUS = Corpus(
    name="mimic_iv_ecg",
    title="MIMIC-IV-ECG: Diagnostic Electrocardiogram Matched Subset 1.0",
    licence="ODbL 1.0",
    access="open",
    size="800,035 records of 10 s, 161,352 patients, 12 leads at 500 Hz",
    citation="Gow B, Pollard T, Nathanson LA, et al. MIMIC-IV-ECG (version 1.0). PhysioNet 2023, doi:10.13026/4nqg-sb35",
    url="https://physionet.org/content/mimic-iv-ecg/1.0/",
    signal_kind="ecg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=ECG_LEADS, window_s=10.0, hop_s=10.0, fs=100.0, band=(0.5, 40.0)),
    tasks=dict(AGE_SEX),
    label_windows=label_windows,
    records_per_task=64,
    layout="unverified",
    obtain="files/, record_list.csv and machine_measurements.csv from https://physionet.org/content/mimic-iv-ecg/1.0/, open to all; "
    "age and sex need hosp/patients.csv.gz of MIMIC-IV, for which PhysioNet asks for training and a signed agreement",
    options=_OPTIONS,
)
