"""MIMIC-IV Waveform Database: ICU waveforms of 198 people, multi-segment WFDB records in FLAC, several samples a frame. N windows.

A frame comes 62.4725 times a second and holds two samples of Pleth: averaged over a frame, as is common, the PPG would lose half its rate. Here
every sample is kept, at 124.945 Hz.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults
from physio_data.corpora.labels import AGE_SEX, age_sex
from physio_data.corpora.mimic import has_channel, headers, read_patients, sex_of, whole
from physio_data.formats.wfdb import open_wfdb_groups
from physio_data.recording import Recording, canonical_lead

OVER_89 = 91.0  # the clinical database states 91 for everyone above 89
_DATE = re.compile(r"\b(\d\d)/(\d\d)/(\d{4})\b|\b(\d{4})-\d\d-\d\d\b")
_OPTIONS = {
    "channel": "the channel that a record must have to be listed; its rate is the one that is read (default Pleth)",
    "patients": "hosp/patients.csv or .csv.gz of MIMIC-IV, for age and sex (credentialed; default: none)",
}


def list_records(root: str | Path, *, channel: str = "Pleth", patients: str | None = None) -> list[str]:
    """`waves/p100/p10014354/81739927/81739927`, ...: records under `root` that have the channel, one per folder of its name."""
    folder = Path(root)
    found = [path for path in headers(folder, r"\d{8}") if path.parent.name == path.stem and has_channel(path, channel)]
    return [path.relative_to(folder).with_suffix("").as_posix() for path in found]


def open_record(root: str | Path, record_id: str, *, channel: str = "Pleth", patients: str | None = None) -> Recording:
    """The channels of a record that share the rate of `channel`; the subject is `mimic4:p10014354`."""
    path = Path(root) / f"{record_id}.hea"
    groups = open_wfdb_groups(path, annotation=None)
    wanted = canonical_lead(channel).lower()
    group = next((group for group in groups if wanted in {canonical_lead(name).lower() for name in group.channels}), None)
    if group is None:
        there = ", ".join(name for group in groups for name in group.channels)
        raise ValueError(f"{path}: no channel {channel!r}, the record has {there}; give the option channel")
    person = path.resolve().parent.parent.name
    age, sex = _age_sex(patients, person, path) if patients else (math.nan, "")
    return replace(group, subject=f"mimic4:{person}", record=path.stem, age=age, sex=sex)


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`age` and `sex`, unknown without the clinical table."""
    return age_sex(recording, len(start_s_N))


def _age_sex(table: str, person: str, header: Path) -> tuple[float, str]:
    """anchor_age + (year of the record - anchor_year), and sex."""
    row = _table(Path(table)).get(person.removeprefix("p"))
    first = header.read_text(encoding="utf-8", errors="replace").splitlines()[0]
    date = _DATE.search(first)
    if row is None or date is None:
        return math.nan, sex_of(row["gender"]) if row else ""
    age = whole(row["anchor_age"]) + int(date[3] or date[4]) - whole(row["anchor_year"])
    return (OVER_89 if whole(row["anchor_age"]) >= OVER_89 else age), sex_of(row["gender"])


@lru_cache(maxsize=2)
def _table(path: Path) -> dict[str, dict[str, str]]:
    return read_patients(path, ("subject_id", "gender", "anchor_age", "anchor_year"))


CORPUS = Corpus(
    name="mimic4_wf",
    title="MIMIC-IV Waveform Database 0.1.0",
    licence="ODbL 1.0",
    access="open",
    size="200 records of 198 people, PPG at about 125 Hz in FLAC (needs the extra wfdb); ages are in the credentialed clinical database",
    citation="Moody B, Hao S, Gow B, Pollard T, Zong W, Mark R. PhysioNet 2022. doi:10.13026/a2mw-f949",
    url="https://physionet.org/content/mimic4wdb/0.1.0/",
    signal_kind="mixed",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=("Pleth",), window_s=10.0, hop_s=10.0, fs=125.0, band=(0.5, 8.0), split="hash"),
    tasks=AGE_SEX,
    label_windows=label_windows,
    obtain="PhysioNet, no credentials: the folder waves; ages need hosp/patients.csv.gz of the credentialed MIMIC-IV",
    options=_OPTIONS,
)
