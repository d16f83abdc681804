"""MIT-BIH Arrhythmia Database: 48 half-hour two-lead ECGs with every beat annotated (Moody and Mark 2001). N windows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.formats import open_recording
from physio_data.recording import Recording
from physio_data.splits import official_folds

PACED = ("102", "104", "107", "217")  # left out, as the AAMI recommendation and de Chazal do; 102 and 104 have no MLII either
DS1 = "101 106 108 109 112 114 115 116 118 119 122 124 201 203 205 207 208 209 215 220 223 230".split()
DS2 = "100 103 105 111 113 117 121 123 200 202 210 212 213 214 219 221 222 228 231 232 233 234".split()
AAMI = ("N", "S", "V", "F", "Q")
# ANSI/AAMI EC57: MIT-BIH's beat codes by class
AAMI_OF = {symbol: name for name, symbols in {"N": "NLRej", "S": "aAJS", "V": "VE", "F": "F", "Q": "/fQ"}.items() for symbol in symbols}
ONE_PERSON = ("201", "202")  # stated by the database's directory; de Chazal's sets have it on both sides


def list_records(root: str | Path) -> list[str]:
    """The records under `root` in ascending order, without the paced ones."""
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one that holds 100.hea, 100.dat, 100.atr, ...")
    return sorted(path.stem for path in folder.glob("*.hea") if path.stem.isdigit() and path.stem not in PACED)


def open_record(root: str | Path, record_id: str) -> Recording:
    """One record with its beats; subject ids are `mitbih:<record>`, and `mitbih:201-202` for the person of two records."""
    recording = open_recording(Path(root) / f"{record_id}.hea")
    person = "-".join(ONE_PERSON) if record_id in ONE_PERSON else record_id
    return replace(recording, subject=f"mitbih:{person}", record=record_id)


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`pvc`: at least one beat annotated V in [start, start + window); -1 where the record has no annotations. `age` and `sex` as its header says."""
    n = len(start_s_N)
    return {
        "pvc": holds_beat(recording, start_s_N, window_s, ("V",)),
        "age": np.full(n, recording.age, np.float64),
        "sex": np.full(n, {"F": 0, "M": 1}.get(recording.sex, -1), np.int64),
    }


def holds_beat(recording: Recording, start_s_N: np.ndarray, window_s: float, symbols: tuple[str, ...]) -> np.ndarray:
    """1 where a window holds at least one annotation of these symbols, else 0; -1 throughout without annotations. (N,) int64."""
    if recording.annotations is None:
        return np.full(len(start_s_N), -1, np.int64)
    beat_s = recording.annotations.time_s[np.isin(recording.annotations.symbol, symbols)]
    first_N, last_N = np.searchsorted(beat_s, start_s_N), np.searchsorted(beat_s, np.asarray(start_s_N) + window_s)
    return (last_N > first_N).astype(np.int64)


def beat_times(recording: Recording) -> np.ndarray:
    """Times (K,) in seconds of the beats that have an AAMI class. `ValueError` without annotations: then there is no beat to put a window on."""
    if recording.annotations is None:
        raise ValueError(f"record {recording.record!r} has no .atr file beside it, and windows around beats need one; fetch it")
    return recording.annotations.time_s[np.isin(recording.annotations.symbol, list(AAMI_OF))]


def label_beats(recording: Recording, beat_s_K: np.ndarray) -> dict[str, np.ndarray]:
    """`aami`: the class (0 to 4: N S V F Q) of the annotated beat at each time; `age` and `sex` as its header says."""
    marks = recording.annotations
    is_beat = np.isin(marks.symbol, list(AAMI_OF))
    class_B = np.array([AAMI.index(AAMI_OF[symbol]) for symbol in marks.symbol[is_beat].tolist()], np.int64)
    at_K = np.searchsorted(marks.time_s[is_beat], beat_s_K)
    n = len(beat_s_K)
    sex = {"F": 0, "M": 1}.get(recording.sex, -1)
    return {"aami": class_B[at_K], "age": np.full(n, recording.age, np.float64), "sex": np.full(n, sex, np.int64)}


def folds(record_ids: list[str], root: str | Path) -> dict[str, str]:
    """The inter-patient division of de Chazal, O'Dwyer and Reilly (2004): DS1 trains, DS2 tests."""
    return official_folds(record_ids, {"train": DS1, "test": DS2})


CORPUS = Corpus(
    name="mitbih",
    title="MIT-BIH Arrhythmia Database 1.0.0",
    licence="ODC-By 1.0",
    access="open",
    size="48 records of 30 min, 47 people, 2 leads at 360 Hz; 44 without the paced ones",
    citation="Moody GB, Mark RG. IEEE Eng Med Biol 2001;20(3):45-50. Split: de Chazal P, O'Dwyer M, Reilly RB. IEEE Trans Biomed Eng 2004;51(7):1196-1206",
    url="https://physionet.org/content/mitdb/1.0.0/",
    signal_kind="ecg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=("MLII",), window_s=10.0, hop_s=10.0, fs=100.0, band=(0.5, 40.0), split="official"),
    tasks={
        "pvc": TaskSpec(kind="binary", classes=("no PVC", "PVC")),
        "aami": TaskSpec(kind="multiclass", classes=AAMI),
        "age": TaskSpec(kind="regression", unit="years"),
        "sex": TaskSpec(kind="binary", classes=("F", "M")),
    },
    label_windows=label_windows,
    beat_times=beat_times,
    label_beats=label_beats,
    official_folds=folds,
    waivers=("mitbih-201-202",),
)
