"""Chapman-Shaoxing-Ningbo: 45,152 12-lead ECGs of 10 s with SNOMED codes (Zheng et al. 2020), `WFDBRecords/01/010/JS00001.hea`. N windows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from physio_data.corpora import snomed
from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.recording import ECG_LEADS, Recording

# Zheng et al. 2020 (Sci Data 7:48) merge the rhythms into four groups: names and SNOMED codes
RHYTHMS: Mapping[str, tuple[str, ...]] = {
    "AFIB": ("164889003", "164890007"),
    "GSVT": ("426761007", "713422000", "233896004", "233897008", "195101003", "427084000"),
    "SB": ("426177001",),
    "SR": ("426783006", "427393009"),
}


def list_records(root: str | Path) -> list[str]:
    """Every record below `root` whose name begins with JS, as its path without a suffix, sorted."""
    return snomed.list_headers(root, ("JS",))


def open_record(root: str | Path, record_id: str) -> Recording:
    """One record; the database gives one record a person, the subject is `csn:<record>`."""
    return snomed.open_header(root, record_id, source="csn")


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`dx` and `age`, `sex` as `snomed.label_windows`; `rhythm` by the four groups, -1 where a record states none of them or several."""
    codes = set(str(recording.labels["codes"]).split(","))
    groups = [i for i, of_group in enumerate(RHYTHMS.values()) if codes & set(of_group)]
    rhythm = np.full(len(start_s_N), groups[0] if len(groups) == 1 else -1, np.int64)
    return {**snomed.label_windows(recording, start_s_N, window_s), "rhythm": rhythm}


CORPUS = Corpus(
    name="csn",
    title="A large scale 12-lead electrocardiogram database for arrhythmia study (Chapman-Shaoxing-Ningbo) 1.0.0",
    licence="CC BY 4.0",
    access="open",
    size="45,152 records of 10 s, 12 leads at 500 Hz",
    citation="Zheng J, Zhang J, Danioko S, et al. Sci Data 2020;7:48. Zheng J, Chu H, Struppa D, et al. Sci Rep 2020;10:2898",
    url="https://physionet.org/content/ecg-arrhythmia/1.0.0/",
    signal_kind="ecg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=ECG_LEADS, window_s=10.0, hop_s=10.0, fs=100.0, band=(0.5, 40.0)),
    tasks={**snomed.DX_TASKS, "rhythm": TaskSpec(kind="multiclass", classes=tuple(RHYTHMS))},
    label_windows=label_windows,
)
