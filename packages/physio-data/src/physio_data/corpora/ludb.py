"""Lobachevsky University Electrocardiography Database: 200 12-lead ECGs of 10 s, P, QRS and T bounded by hand in every lead. N windows, K waves.

Its limb leads do not obey II = I + III exactly (they were recorded otherwise); nothing is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.corpora.labels import AGE_SEX, age_sex
from physio_data.corpora.tables import table_of
from physio_data.formats.wfdb import open_wfdb, read_annotations
from physio_data.recording import ECG_LEADS, Annotations, Recording, canonical_lead

WAVES = {"p": "P", "N": "QRS", "t": "T"}
RHYTHMS = (
    "Sinus rhythm",
    "Sinus tachycardia",
    "Sinus bradycardia",
    "Sinus arrhythmia",
    "Irregular sinus rhythm",
    "Atrial fibrillation",
    "Atrial flutter, typical",
)
_OPTIONS = {"lead": "the lead whose wave bounds become the annotations (default II)"}


def list_records(root: str | Path, *, lead: str = "II") -> list[str]:
    """`1`, `2`, ... in ascending order; the records lie in `root` or, as published, in `root/data`."""
    return sorted((path.stem for path in _folder(root).glob("*.hea") if path.stem.isdigit()), key=int)


def open_record(root: str | Path, record_id: str, *, lead: str = "II") -> Recording:
    """One record; annotations are the bounds of one lead: `(` onset, `p` `N` `t` peak of P, QRS and T, `)` offset. The subject is `ludb:<record>`."""
    folder = _folder(root)
    recording = open_wfdb(folder / f"{record_id}.hea", annotation=_extension(lead))
    return replace(recording, subject=f"ludb:{record_id}", record=record_id, labels={"rhythm": _rhythm(Path(root), folder, record_id)})


def wave_bounds(annotations: Annotations) -> dict[str, np.ndarray]:
    """`{"P" | "QRS" | "T": (K, 3) onset, peak and offset in seconds}` from one lead's annotations; NaN where a bound was not marked.

    The bounds of a peak are the marks directly beside it.
    """
    symbol, time_s = annotations.symbol.tolist(), annotations.time_s.tolist()
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WAVES.values()}
    for i, (mark, at) in enumerate(zip(symbol, time_s, strict=True)):
        if mark in WAVES:
            onset = time_s[i - 1] if i and symbol[i - 1] == "(" else np.nan
            offset = time_s[i + 1] if i + 1 < len(symbol) and symbol[i + 1] == ")" else np.nan
            found[WAVES[mark]].append((onset, at, offset))
    return {name: np.array(waves, np.float64).reshape(-1, 3) for name, waves in found.items()}


def bounds_of(root: str | Path, record_id: str, lead: str) -> dict[str, np.ndarray]:
    """`wave_bounds` of one lead of one record."""
    return wave_bounds(read_annotations(_folder(root) / record_id, _extension(lead)))


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`rhythm`: the record's first-named rhythm, -1 for one outside the list or without `ludb.csv`; `age`, `sex`."""
    n = len(start_s_N)
    rhythm = str(recording.labels["rhythm"])
    return {"rhythm": np.full(n, RHYTHMS.index(rhythm) if rhythm in RHYTHMS else -1, np.int64), **age_sex(recording, n)}


def _rhythm(root: Path, folder: Path, record_id: str) -> str:
    for place in dict.fromkeys((root, folder, folder.parent)):
        if (place / "ludb.csv").is_file():
            row: Mapping[str, str] | None = table_of(place / "ludb.csv", "ID", ("Rhythms",)).get(record_id)
            if row is None:
                raise ValueError(f"{place / 'ludb.csv'}: no row for record {record_id}; fetch the table again")
            return row["Rhythms"].partition("\n")[0].strip()
    return ""


def _folder(root: str | Path) -> Path:
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one that holds ludb.csv and data/1.hea, ...")
    return folder / "data" if (folder / "data").is_dir() else folder


def _extension(lead: str) -> str:
    name = canonical_lead(lead)
    if name not in ECG_LEADS:
        raise ValueError(f"lead must be one of {', '.join(ECG_LEADS)}, got {lead!r}")
    return name.lower()


CORPUS = Corpus(
    name="ludb",
    title="Lobachevsky University Electrocardiography Database 1.0.1",
    licence="ODC-By 1.0",
    access="open",
    size="200 records of 10 s, 200 people, 12 leads at 500 Hz, 58,429 bounded waves",
    citation="Kalyakulina AI, Yusipov II, Moskalenko VA, et al. IEEE Access 2020;8:186181-186190",
    url="https://physionet.org/content/ludb/1.0.1/",
    signal_kind="ecg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=ECG_LEADS, window_s=10.0, hop_s=10.0, fs=100.0, band=(0.5, 40.0)),
    tasks={"rhythm": TaskSpec(kind="multiclass", classes=RHYTHMS), **AGE_SEX},
    label_windows=label_windows,
    options=_OPTIONS,
)
