"""BIDMC PPG and Respiration Dataset: eight minutes of ICU waveforms of 46 people in 53 recordings. N windows.

Both forms are read: `bidmc_csv/bidmc_01_Signals.csv` with `..._Numerics.csv` and `..._Fix.txt`, and the WFDB records `bidmc01`.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults
from physio_data.corpora.labels import AGE_SEX, RATE, age_sex
from physio_data.formats import open_recording
from physio_data.recording import Recording

_CSV = re.compile(r"^bidmc_(\d+)_Signals$")
_WFDB = re.compile(r"^bidmc(\d+)$")
_SOURCE = re.compile(r"\b([sp]\d{5,6})\b", re.IGNORECASE)  # the person's id in the MIMIC-II matched waveforms
_AGE = re.compile(r"\bage\b\W*(\d{1,3})", re.IGNORECASE)
_SEX = re.compile(r"\b(?:gender|sex)\b\W*([FM])", re.IGNORECASE)
_WARD = re.compile(r"\blocation\b\W*([a-z]+)", re.IGNORECASE)
_UNITS = {"RESP": "a.u.", "PLETH": "a.u.", "PPG": "a.u."}


def list_records(root: str | Path) -> list[str]:
    """`bidmc01`, ..., `bidmc53`: those that are there as CSV or as WFDB."""
    return sorted(_files(root))


def open_record(root: str | Path, record_id: str) -> Recording:
    """One recording at 125 Hz. ECG leads are in mV, PLETH and RESP in a.u.; subjects are `bidmc:<number of the person's first recording>`."""
    path = _files(root)[record_id]
    recording = open_recording(path) if path.suffix == ".csv" else open_recording(path, annotation=None)
    names = tuple(name.strip().rstrip(",") for name in recording.channels)
    age, sex, _, _ = _facts(path)
    return replace(
        recording,
        channels=names,
        units=tuple(_UNITS.get(name, "mV") for name in names),
        subject=f"bidmc:{_people(root)[record_id]}",
        record=record_id,
        age=age,
        sex=sex,
        labels={"numerics": str(_numerics_file(path) or "")},
    )


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`rate`: the monitor's heart rate, the mean of its values within the window (NaN without the numerics file); `age` and `sex`."""
    value_S = _monitor_rate(str(recording.labels["numerics"])) if recording.labels["numerics"] else np.zeros(0)
    rate_N = np.full(len(start_s_N), np.nan)
    for n, start_s in enumerate(np.asarray(start_s_N)):
        inside = value_S[max(0, math.ceil(start_s)) : math.floor(start_s + window_s) + 1]
        if np.isfinite(inside).any():
            rate_N[n] = np.nanmean(inside)
    return {"rate": rate_N, **age_sex(recording, len(start_s_N))}


def _files(root: str | Path) -> dict[str, Path]:
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one that holds bidmc_01_Signals.csv, ... (bidmc_csv) or bidmc01.hea, ...")
    found: dict[str, Path] = {}
    for place in (folder, folder / "bidmc_csv"):
        for path in [*place.glob("bidmc*.hea"), *place.glob("bidmc_*_Signals.csv")]:
            if number := _WFDB.match(path.stem) or _CSV.match(path.stem):
                found[f"bidmc{number[1]}"] = path
    return found


def _people(root: str | Path) -> dict[str, str]:
    files = _files(root)
    return dict(_same_people(tuple((record, path, path.stat().st_mtime_ns) for record, path in sorted(files.items()))))


@lru_cache(maxsize=4)
def _same_people(files: tuple[tuple[str, Path, int], ...]) -> tuple[tuple[str, str], ...]:
    """(record, number of its person's first recording). The text beside a recording names its source in MIMIC-II; where it names none,
    neighbouring recordings of the same age, sex and ward count as one person: a person too few never leaks, one too many does."""
    person: dict[str, str] = {}
    by_source: dict[str, str] = {}
    before: tuple[float, str, str] | None = None
    last = ""
    for record, path, _ in files:
        age, sex, ward, source = _facts(path)
        own = record.removeprefix("bidmc")
        facts = (age, sex, ward)
        if source:
            own = by_source.setdefault(source, own)
        elif before == facts and not math.isnan(age):
            own = last
        person[record], last, before = own, own, facts
    return tuple(person.items())


@lru_cache(maxsize=64)
def _facts(path: Path) -> tuple[float, str, str, str]:
    """Age (NaN unknown), sex, ward and source as the file beside the signals states them: `..._Fix.txt` or the comments of the header."""
    beside = path if path.suffix == ".hea" else path.with_name(path.name.replace("_Signals.csv", "_Fix.txt"))
    text = beside.read_text(encoding="utf-8", errors="replace") if beside.is_file() else ""
    if path.suffix == ".hea":
        text = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    age, sex, ward, source = _AGE.search(text), _SEX.search(text), _WARD.search(text), _SOURCE.search(text)
    return float(age[1]) if age else math.nan, sex[1].upper() if sex else "", ward[1].lower() if ward else "", source[1].lower() if source else ""


def _numerics_file(path: Path) -> Path | None:
    number = (_WFDB.match(path.stem) or _CSV.match(path.stem))[1]
    places = (path.parent / f"bidmc_{number}_Numerics.csv", path.parent / "bidmc_csv" / f"bidmc_{number}_Numerics.csv")
    return next((place for place in places if place.is_file()), None)


@lru_cache(maxsize=16)
def _monitor_rate(path: str) -> np.ndarray:
    """The column HR, one value a second, NaN where the monitor shows none."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    if not rows or "HR" not in rows[0]:
        raise ValueError(f"{path}: no column HR, the header has {', '.join(rows[0]) if rows else 'nothing'}; fetch the file again")
    column = rows[0].index("HR")
    try:
        return np.array([float(row[column]) if len(row) > column and row[column] else math.nan for row in rows[1:]])
    except ValueError as error:
        raise ValueError(f"{path}: column HR holds what is no number ({error}); fetch the file again") from error


CORPUS = Corpus(
    name="bidmc",
    title="BIDMC PPG and Respiration Dataset 1.0.0",
    licence="ODC-By 1.0",
    access="open",
    size="53 recordings of 8 min, 46 people; PPG, ECG and respiration at 125 Hz, monitor values at 1 Hz",
    citation="Pimentel MAF et al. IEEE Trans Biomed Eng 2017;64(8):1914-1923",
    url="https://physionet.org/content/bidmc/1.0.0/",
    signal_kind="mixed",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=("PLETH",), window_s=10.0, hop_s=10.0, fs=125.0, band=(0.5, 8.0), split="hash"),
    tasks={**RATE, **AGE_SEX},
    label_windows=label_windows,
    layout="unverified",
)
