"""PhysioNet/CinC Challenge 2021 training data: eight sources of 12-lead ECGs in one layout (Reyna et al. 2021). Folders below the root are searched."""

from __future__ import annotations

from pathlib import Path

from physio_data.corpora.contract import Corpus, PrepareDefaults
from physio_data.corpora.snomed import DX_TASKS, label_windows, list_headers, open_header
from physio_data.recording import ECG_LEADS, Recording


def list_records(root: str | Path) -> list[str]:
    """Every record below `root`, as its path without a suffix, sorted."""
    return list_headers(root)


def open_record(root: str | Path, record_id: str) -> Recording:
    """One record; subjects are `<source>:<record>`, the source told by the first letters of the name."""
    return open_header(root, record_id)


CORPUS = Corpus(
    name="cinc2021",
    title="PhysioNet/Computing in Cardiology Challenge 2021, training data 1.0.3",
    licence="CC BY 4.0",
    access="open",
    size="88,253 records of 5 s to 30 min, 12 leads at 257 to 1000 Hz, 8 sources",
    citation="Reyna MA, Sadr N, Perez Alday EA, et al. Will two do? Comput Cardiol 2021;48:1-4",
    url="https://physionet.org/content/challenge-2021/1.0.3/",
    signal_kind="ecg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=ECG_LEADS, window_s=10.0, hop_s=10.0, fs=100.0, band=(0.5, 40.0)),
    tasks=DX_TASKS,
    label_windows=label_windows,
    subjects="unknown",
)
