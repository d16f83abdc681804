"""MIMIC-III Waveform Database Matched Subset: days of ICU waveforms of 10,282 people, as multi-segment WFDB records. N windows."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults
from physio_data.corpora.labels import AGE_SEX, age_sex
from physio_data.corpora.mimic import has_channel, headers, read_patients, sex_of
from physio_data.formats.wfdb import open_wfdb
from physio_data.recording import Recording

MASTER = r"p\d{6}-\d{4}-\d\d-\d\d-\d\d-\d\d"  # numerics end in n and are left out
OVER_89 = 91.4  # years: the median age that the clinical database states for those whose birth is moved 300 years back
_OPTIONS = {
    "channel": "the channel that a record must have to be listed (default PLETH)",
    "patients": "PATIENTS.csv of the clinical database, for age and sex (credentialed; default: none)",
}


def list_records(root: str | Path, *, channel: str = "PLETH", patients: str | None = None) -> list[str]:
    """`p00/p000020/p000020-2183-04-28-17-47`, ...: master headers under `root` whose layout has the channel; only headers are read."""
    folder = Path(root)
    return [path.relative_to(folder).with_suffix("").as_posix() for path in headers(folder, MASTER) if has_channel(path, channel)]


def open_record(root: str | Path, record_id: str, *, channel: str = "PLETH", patients: str | None = None) -> Recording:
    """One record, read by range, gaps between its segments as NaN; the subject is `mimic3:p000020`, as PulseDB's MIMIC part names the same person."""
    recording = open_wfdb(Path(root) / f"{record_id}.hea", annotation=None)
    stem = Path(record_id).name
    age, sex = _age_sex(patients, stem) if patients else (math.nan, "")
    return replace(recording, subject=f"mimic3:{stem[:7]}", record=stem, age=age, sex=sex)


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`age` and `sex`, unknown without the clinical table."""
    return age_sex(recording, len(start_s_N))


def _age_sex(table: str, stem: str) -> tuple[float, str]:
    """Age in years at the record's date and sex; both dates are moved by the same days. An age of 300 or more means over 89."""
    row = _table(Path(table)).get(str(int(stem[1:7])))
    if row is None:
        return math.nan, ""
    born = re.match(r"\d{4}-\d\d-\d\d", row["dob"])
    if born is None:
        raise ValueError(f"{table}: DOB of subject {int(stem[1:7])} is {row['dob']!r}, expected a date such as 2094-03-05 00:00:00")
    days = (datetime.strptime(stem[8:18], "%Y-%m-%d") - datetime.strptime(born[0], "%Y-%m-%d")).days
    age = days / 365.25
    return OVER_89 if age >= 300 else age if age >= 0 else math.nan, sex_of(row["gender"])


@lru_cache(maxsize=2)
def _table(path: Path) -> dict[str, dict[str, str]]:
    return read_patients(path, ("subject_id", "gender", "dob"))


CORPUS = Corpus(
    name="mimic3_wf",
    title="MIMIC-III Waveform Database Matched Subset 1.0",
    licence="ODbL 1.0",
    access="open",
    size="22,317 waveform records of 10,282 people at 125 Hz, about 2.4 TB; ages are in the credentialed clinical database",
    citation="Moody B, Moody G, Villarroel M, Clifford GD, Silva I. PhysioNet 2020. doi:10.13026/c2294b",
    url="https://physionet.org/content/mimic3wdb-matched/1.0/",
    signal_kind="mixed",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=("PLETH",), window_s=10.0, hop_s=10.0, fs=125.0, band=(0.5, 8.0), split="hash"),
    tasks=AGE_SEX,
    label_windows=label_windows,
    obtain="PhysioNet, no credentials: download the folders p00 to p09 that you want; ages need PATIENTS.csv of the credentialed MIMIC-III clinical database",
    options=_OPTIONS,
)
