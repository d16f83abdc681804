"""PulseDB v2: 10-s segments of ECG, PPG and arterial pressure of 5,361 people, one MATLAB 7.3 file each (Wang et al. 2023). N windows.

A file holds one struct array `Subj_Wins`, which HDF5 shows as one dataset of object references a field (a file of one segment holds the
values themselves). Segments that failed the corpus's own checks are left out of it, so neighbours in a file need not be neighbours in time:
a record here is a run of segments whose times `T` follow one another without a gap. Version 1 states no time, there every segment is a record.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults
from physio_data.corpora.labels import AGE_SEX, PRESSURE, age_sex, pressure
from physio_data.formats.hdf5 import open_h5
from physio_data.recording import Recording

FS, SEGMENT = 125.0, 1250  # Hz, samples
SOURCES = {"PulseDB_MIMIC": "mimic3", "PulseDB_Vital": "vitaldb"}  # folder -> namespace of its subject ids
STRUCT = "Subj_Wins"
# signals: "record" keeps the amplitude as measured (version 2), "raw" is scaled to 0-1 segment by segment
SIGNALS = {"record": {"PPG": "PPG_Record", "ECG": "ECG_Record", "ABP": "ABP_Raw"}, "raw": {"PPG": "PPG_Raw", "ECG": "ECG_Raw", "ABP": "ABP_Raw"}}
_UNITS = {"PPG": "a.u.", "ECG": "a.u.", "ABP": "mmHg"}
_PERSON = re.compile(r"^p\d{6}$")
_OPTIONS = {"signals": "record (default: amplitude as measured, version 2) or raw (scaled 0-1 by segment; every segment is then a record of its own)"}


@dataclass(frozen=True)
class PulseFile:
    """What one file says about its segments: runs as (first, stop) positions, start times (N,), pressures and the person."""

    runs: tuple[tuple[int, int], ...]
    start_s: np.ndarray
    case: np.ndarray
    sbp: np.ndarray
    dbp: np.ndarray
    age: float
    sex: str


def list_records(root: str | Path, *, signals: str = "record") -> list[str]:
    """`PulseDB_MIMIC/p000020-0`, ...: folder, person and the position of the run's first segment. Times of all segments are read for it."""
    return [f"{key}-{first}" for key, path in _files(root).items() for first, _ in _facts(path, signals).runs]


def open_record(root: str | Path, record_id: str, *, signals: str = "record") -> Recording:
    """One run of gap-free segments: PPG, ECG and ABP at 125 Hz. The subject is `mimic3:<id>`, the same person as in the MIMIC-III waveforms, or
    `vitaldb:<id>`; `start_s` counts from the start of the clip that the run was cut from."""
    key, _, first = record_id.rpartition("-")
    path = _files(root)[key]
    facts = _facts(path, signals)
    lo, hi = next(run for run in facts.runs if run[0] == int(first))
    names = SIGNALS[signals]
    return Recording(
        fs=FS,
        channels=tuple(names),
        units=tuple(_UNITS[name] for name in names),
        n_samples=(hi - lo) * SEGMENT,
        subject=f"{SOURCES.get(path.parent.name, 'pulsedb')}:{path.stem}",
        record=f"{path.stem}-{first}",
        start_s=float(facts.start_s[lo]) if np.isfinite(facts.start_s[lo]) else 0.0,
        age=facts.age,
        sex=facts.sex,
        labels={"path": str(path), "first": lo, "signals": signals},
        reader=PulseReader(str(path), tuple(names.values()), lo),
    )


@dataclass(frozen=True)
class PulseReader:
    """Reads segments of some fields by dereferencing, straight into one array."""

    path: str
    fields: tuple[str, ...]
    first: int

    def __call__(self, start: int, stop: int) -> np.ndarray:
        lo, hi = start // SEGMENT, -(-stop // SEGMENT)
        x_CST = np.empty((len(self.fields), hi - lo, SEGMENT), np.float64)
        with open_h5(self.path) as file:
            for c, name in enumerate(self.fields):
                _read_signals(file, self.path, name, range(self.first + lo, self.first + hi), x_CST[c])
        return x_CST.reshape(len(self.fields), -1)[:, start - lo * SEGMENT : stop - lo * SEGMENT].astype(np.float32)


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`sbp`, `dbp` (mmHg) and `htn_bp` of the segment that holds the window's centre; `age` and `sex` of the person."""
    facts = _facts(Path(str(recording.labels["path"])), str(recording.labels["signals"]))
    at_N = int(recording.labels["first"]) + np.floor((np.asarray(start_s_N) + window_s / 2) * FS / SEGMENT).astype(np.int64)
    return {**pressure(facts.sbp[at_N], facts.dbp[at_N]), **age_sex(recording, len(at_N))}


def _files(root: str | Path) -> dict[str, Path]:
    folder = Path(root)
    places = [folder / name for name in SOURCES if (folder / name).is_dir()] or [folder]
    found = {f"{place.name}/{path.stem}": path for place in places for path in sorted(place.glob("*.mat")) if _PERSON.match(path.stem)}
    if not found:
        raise ValueError(f"root {folder} holds no p000020.mat, ..., nor folders {' or '.join(SOURCES)} with such files; name the folder of PulseDB")
    return found


def _facts(path: Path, signals: str) -> PulseFile:
    if signals not in SIGNALS:
        raise ValueError(f"signals must be one of {', '.join(SIGNALS)}, got {signals!r}")
    return _read_facts(path, path.stat().st_mtime_ns, signals)


@lru_cache(maxsize=64)
def _read_facts(path: Path, changed_ns: int, signals: str) -> PulseFile:
    with open_h5(path) as file:
        if STRUCT not in file or not isinstance(file[STRUCT], h5py.Group):
            there = ", ".join(name for name in file if name[0] != "#") or "nothing"
            raise ValueError(f"{path}: no struct {STRUCT}, the file has {there}; not a file of PulseDB")
        group = file[STRUCT]
        missing = [name for name in (*SIGNALS[signals].values(), "SubjectID") if name not in group]
        if missing:
            remedy = "version 1 has no amplitudes as measured, give the option signals=raw" if "PPG_Raw" in group else "not a file of PulseDB"
            raise ValueError(f"{path}: no field {', '.join(missing)} in {STRUCT}, it has {', '.join(group)}; {remedy}")
        n = _n_segments(group["SubjectID"])
        start_s = np.array([_start_s(value) for value in _column(file, group, "T", n)])
        case = np.array([_text(value) for value in _column(file, group, "CaseID", n)])
        sbp, dbp = (np.array([_first(value) for value in _column(file, group, name, n)]) for name in ("SegSBP", "SegDBP"))
        age, sex = _first(_column(file, group, "Age", n)[0]), _text(_column(file, group, "Gender", n)[0]).strip().upper()
    runs = _runs(start_s, case, joined=signals == "record")
    return PulseFile(runs, start_s, case, sbp, dbp, age if 0 <= age <= 120 else math.nan, sex if sex in ("F", "M") else "")


def _runs(start_s: np.ndarray, case: np.ndarray, joined: bool) -> tuple[tuple[int, int], ...]:
    """Stretches [first, stop) whose start times follow one another by one segment, to half a sample, within one case."""
    n = len(start_s)
    follows = np.zeros(n, bool)
    if joined:
        with np.errstate(invalid="ignore"):
            follows[1:] = (np.abs(np.diff(start_s) - SEGMENT / FS) < 0.5 / FS) & (case[1:] == case[:-1])
    edges = [*np.flatnonzero(~follows).tolist(), n]
    return tuple(pairwise(edges))


def _n_segments(field: h5py.Dataset) -> int:
    return field.size if field.dtype == h5py.ref_dtype else 1


def _column(file: h5py.File, group: h5py.Group, name: str, n: int) -> list[np.ndarray | None]:
    """What each of `n` segments has in a field: an array, or None where the field is missing or empty."""
    if name not in group:
        return [None] * n
    field = group[name]
    items = [file[reference] for reference in field[()].ravel()] if field.dtype == h5py.ref_dtype else [field]
    if len(items) != n:
        raise ValueError(f"{file.filename}: field {name} has {len(items)} segments and SubjectID has {n}; the file is damaged")
    return [_opened(file, item) for item in items]


def _opened(file: h5py.File, item: h5py.Dataset) -> np.ndarray | None:
    """The value of a dataset, out of the cells that may wrap it; None where MATLAB says that it is empty (the dataset then holds its size)."""
    while item.dtype == h5py.ref_dtype:
        item = file[item[()].ravel()[0]]
    return None if item.attrs.get("MATLAB_empty", 0) else item[()]


def _start_s(value: np.ndarray | None) -> float:
    """A segment's first moment in seconds. `T` is one number or a time for every sample; steps of 1 count samples."""
    if value is None or not value.size:
        return math.nan
    time_T = np.ravel(value).astype(np.float64)
    return float(time_T[0] / (FS if time_T.size > 1 and abs(time_T[1] - time_T[0] - 1) < 1e-6 else 1.0))


def _read_signals(file: h5py.File, path: str, name: str, rows: range, out_ST: np.ndarray) -> None:
    """Fill (S, SEGMENT) from the references of a field; `ValueError` names the segment whose length is another."""
    field = file[STRUCT][name]
    if field.dtype != h5py.ref_dtype:
        items = [field.id]
    else:
        reference = field[()].ravel()
        items = (h5py.h5r.dereference(reference[i], file.id) for i in rows)
    for k, item in enumerate(items):
        if int(np.prod(item.shape)) != SEGMENT:
            raise ValueError(f"{path}: {name} of segment {rows[k]} has shape {tuple(item.shape)}, expected {SEGMENT} samples; the file is damaged")
        item.read(h5py.h5s.ALL, h5py.h5s.ALL, out_ST[k].reshape(item.shape))


def _first(value: np.ndarray | None) -> float:
    return math.nan if value is None or not value.size else float(np.ravel(value)[0])


def _text(value: np.ndarray | None) -> str:
    """MATLAB text: numbers of characters; a number stays a number."""
    if value is None:
        return ""
    codes = np.ravel(value)
    return "".join(map(chr, codes.tolist())) if codes.dtype.kind == "u" else ",".join(f"{code:g}" for code in codes.tolist())


CORPUS = Corpus(
    name="pulsedb",
    title="PulseDB 2.0",
    licence="MIMIC part: ODbL; VitalDB part: CC BY-NC-SA 4.0",
    access="open",
    size="5,361 people, 5,245,454 segments of 10 s: ECG, PPG and arterial pressure at 125 Hz",
    citation="Wang W, Mohseni P, Kilgore KL, Najafizadeh L. PulseDB. Front Digit Health 2023;4:1090854",
    url="https://github.com/pulselabteam/PulseDB",
    signal_kind="mixed",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=("PPG",), window_s=10.0, hop_s=10.0, fs=125.0, band=(0.5, 8.0), split="hash"),
    tasks={**PRESSURE, **AGE_SEX},
    label_windows=label_windows,
    obtain="the authors link the two archives (PulseDB_MIMIC, PulseDB_Vital) from the page; --root is the folder that holds both or one",
    records_per_task=32,
    options=_OPTIONS,
)
