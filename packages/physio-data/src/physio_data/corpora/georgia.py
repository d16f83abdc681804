"""The Georgia 12-lead ECG database, as the PhysioNet/CinC Challenges 2020 and 2021 publish it: records E00001 to E10344."""

from __future__ import annotations

from pathlib import Path

from physio_data.corpora.contract import Corpus, PrepareDefaults
from physio_data.corpora.snomed import DX_TASKS, label_windows, list_headers, open_header
from physio_data.recording import ECG_LEADS, Recording


def list_records(root: str | Path) -> list[str]:
    """Every record below `root` whose name begins with E, as its path without a suffix, sorted."""
    return list_headers(root, ("E",))


def open_record(root: str | Path, record_id: str) -> Recording:
    """One record; the subject is `georgia:<record>`."""
    return open_header(root, record_id, source="georgia")


CORPUS = Corpus(
    name="georgia",
    title="Georgia 12-lead ECG Challenge database",
    licence="CC BY 4.0",
    access="open",
    size="10,344 records of 5 to 10 s, 12 leads at 500 Hz",
    citation="Perez Alday EA, Gu A, Shah AJ, et al. Physiol Meas 2020;41:124003",
    url="https://physionet.org/content/challenge-2021/1.0.3/training/georgia/",
    signal_kind="ecg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=ECG_LEADS, window_s=10.0, hop_s=10.0, fs=100.0, band=(0.5, 40.0)),
    tasks=DX_TASKS,
    label_windows=label_windows,
    subjects="unknown",
)
