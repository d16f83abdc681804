"""China Physiological Signal Challenge 2021: two-lead Holter ECGs of people with and without paroxysmal AF, rhythm by rhythm. N windows, K marks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.formats.wfdb import header_comments, open_wfdb
from physio_data.recording import Recording

_AF = ("(AFIB", "(AFL")  # the challenge counts flutter with fibrillation
_MARKS = (*_AF, "(N")  # the aux text "None" of many beats says nothing


def list_records(root: str | Path) -> list[str]:
    """Every record below `root` (data_0_1, ...), as its path without a suffix, by patient and number."""
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one that holds data_0_1.hea, .dat and .atr, ...")
    found = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("data_*.hea")]
    return sorted(found, key=lambda path: [int(part) for part in Path(path).name.split("_")[1:]])


def open_record(root: str | Path, record_id: str) -> Recording:
    """One record with its beats and rhythm marks; `data_21_7` is the seventh of patient 21, subject `cpsc2021:21`."""
    path = Path(root) / f"{record_id}.hea"
    says = "; ".join(header_comments(path)).strip().lower()
    return replace(open_wfdb(path), subject=f"cpsc2021:{path.stem.split('_')[1]}", record=path.stem, labels={"header": says})


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`af`: 1 where AF fills more than half of the window, else 0; -1 where neither marks nor the header tell the rhythm."""
    start_s_N = np.asarray(start_s_N, np.float64)
    if recording.annotations is None:
        return {"af": np.full(len(start_s_N), -1, np.int64)}
    spans = af_spans(recording)
    if spans is None:
        return {"af": np.full(len(start_s_N), -1, np.int64)}
    overlap_NK = np.minimum(start_s_N[:, None] + window_s, spans[:, 1]) - np.maximum(start_s_N[:, None], spans[:, 0])
    return {"af": (np.maximum(overlap_NK, 0).sum(1) > window_s / 2).astype(np.int64)}


def af_spans(recording: Recording) -> np.ndarray | None:
    """Begin and end of every AF episode (K, 2) in seconds; none where the header says non atrial fibrillation, None where nothing tells.

    Before the first mark the rhythm is the one that it ends: AF before `(N`, none before `(AFIB`.
    """
    marks = recording.annotations
    at = np.flatnonzero(np.isin(marks.aux, _MARKS))
    if not at.size:
        return np.zeros((0, 2)) if str(recording.labels["header"]).startswith("non atrial fibrillation") else None
    time_s, is_af = marks.time_s[at], np.isin(marks.aux[at], _AF)
    spans = [(0.0, time_s[0])] if not is_af[0] else []
    end_s = np.append(time_s[1:], recording.duration_s)
    spans += zip(time_s[is_af], end_s[is_af], strict=True)
    return np.array(spans, np.float64).reshape(-1, 2)


CORPUS = Corpus(
    name="cpsc2021",
    title="The 4th China Physiological Signal Challenge 2021: paroxysmal atrial fibrillation events from dynamic ECG, 1.0.0",
    licence="CC BY 4.0",
    access="open",
    size="1,436 records, 105 patients, leads I and II at 200 Hz",
    citation="Wang X, Ma C, Zhang X, et al. Paroxysmal atrial fibrillation events detection from dynamic ECG. PhysioNet 2021, doi:10.13026/ksya-qw89",
    url="https://physionet.org/content/cpsc2021/1.0.0/",
    signal_kind="ecg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=("I", "II"), window_s=10.0, hop_s=10.0, fs=100.0, band=(0.5, 40.0)),
    tasks={"af": TaskSpec(kind="binary", classes=("no AF", "AF"))},
    label_windows=label_windows,
)
