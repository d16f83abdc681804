"""China Physiological Signal Challenge 2018 and its extra set: 12-lead ECGs of 6 to 144 s, nine diagnoses (Liu et al. 2018). N windows.

Both forms are read: the challenge's own struct files (`A0001.mat` with `ECG.sex`, `ECG.age`, `ECG.data`, and `REFERENCE.csv`), and the WFDB
records with SNOMED codes of the CinC challenges (`A*` of the training set, `Q*` of the extra set).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.corpora import snomed
from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.corpora.labels import AGE_SEX, age_sex
from physio_data.corpora.tables import flags, multilabel, rows_of
from physio_data.recording import ECG_LEADS, Recording

FS = 500.0  # Hz, by the challenge's description; the struct files state no rate
# the challenge's numbers 1 to 9 in order, with the SNOMED codes that the CinC challenges give them
DIAGNOSES: Mapping[str, tuple[str, ...]] = {
    "Normal": ("426783006",),
    "AF": ("164889003",),
    "I-AVB": ("270492004",),
    "LBBB": ("164909002",),
    "RBBB": ("59118001",),
    "PAC": ("284470004", "63593006"),
    "PVC": ("164884008", "427172004", "17338001"),
    "STD": ("429622005",),
    "STE": ("164931005",),
}


def list_records(root: str | Path) -> list[str]:
    """Every record below `root`, as its path without a suffix, sorted."""
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(f"root {folder} is no folder; name the one that holds A0001.mat, ... or folders of them")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.mat") if path.stem[:1] in "AQ" and path.stem[1:].isdigit())


def open_record(root: str | Path, record_id: str) -> Recording:
    """One record; the challenge names no patients, the subject is `cpsc2018:<record>`, of the extra set `cpsc2018x:<record>`."""
    path = Path(root) / f"{record_id}.mat"
    if path.with_suffix(".hea").is_file():
        recording = snomed.open_header(root, record_id)
        codes = set(str(recording.labels["codes"]).split(",")) - {""}
        present = [name for name, of_class in DIAGNOSES.items() if codes & set(of_class)]
        return replace(recording, labels={"dx": flags(tuple(DIAGNOSES), present) if codes else ""})
    data_CT, age, sex = _struct(path)
    return Recording.from_array(
        data_CT,
        fs=FS,
        channels=ECG_LEADS,
        units=("mV",) * len(ECG_LEADS),
        subject=f"{snomed.source_of(path.stem)}:{path.stem}",
        record=path.stem,
        age=age,
        sex=sex,
        labels={"dx": _reference(path)},
    )


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """`dx`: 0/1 for each of the nine diagnoses, -1 throughout without a label file; `age`, `sex`."""
    n = len(start_s_N)
    return {"dx": multilabel(str(recording.labels["dx"]), len(DIAGNOSES), n), **age_sex(recording, n)}


def _struct(path: Path) -> tuple[np.ndarray, float, str]:
    """(12, T) in mV, age in years, sex, from a struct file; `ValueError` names what it lacks."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise ValueError(f"{path}: no such file; fetch the record from the challenge")
    try:
        ecg = loadmat(path, squeeze_me=True, struct_as_record=False).get("ECG")
    except (MatReadError, ValueError, TypeError, IndexError, NotImplementedError, OSError, EOFError) as error:
        raise ValueError(f"{path}: not a readable MATLAB file, it may be cut off ({error}); fetch it again") from error
    if ecg is None or not hasattr(ecg, "data"):
        raise ValueError(f"{path}: no struct ECG with a field data, and no header {path.stem}.hea beside it; this is not a record of the challenge")
    data_CT = np.atleast_2d(np.asarray(ecg.data, np.float32))
    if data_CT.shape[0] != len(ECG_LEADS):
        raise ValueError(f"{path}: ECG.data has shape {data_CT.shape}, expected ({len(ECG_LEADS)}, samples); fetch it again")
    age = getattr(ecg, "age", math.nan)
    age = float(age) if np.size(age) == 1 and np.asarray(age).dtype.kind in "iuf" and 0 <= float(age) <= 120 else math.nan
    return data_CT, age, {"m": "M", "f": "F"}.get(str(getattr(ecg, "sex", "")).strip().lower()[:1], "")


def _reference(path: Path) -> str:
    """The diagnoses of a record in `REFERENCE.csv` beside it or one folder up; "" where there is none."""
    for folder in (path.parent, path.parent.parent):
        if (folder / "REFERENCE.csv").is_file():
            table = _labels(folder / "REFERENCE.csv", (folder / "REFERENCE.csv").stat().st_mtime_ns)
            if path.stem not in table:
                raise ValueError(f"{folder / 'REFERENCE.csv'}: no row for record {path.stem}; fetch the label file of this set")
            return table[path.stem]
    return ""


@lru_cache(maxsize=4)
def _labels(path: Path, changed_ns: int) -> dict[str, str]:
    names = tuple(DIAGNOSES)
    table = {}
    for row in rows_of(path, ("Recording", "First_label", "Second_label", "Third_label")):
        numbers = [row[column].removesuffix(".0") for column in ("First_label", "Second_label", "Third_label") if row[column].lower() not in ("", "nan")]
        if bad := [number for number in numbers if not number.isdigit() or not 1 <= int(number) <= len(names)]:
            raise ValueError(f"{path}: record {row['Recording']} has the label {bad[0]!r}; they are 1 to {len(names)}")
        table[row["Recording"]] = flags(names, [names[int(number) - 1] for number in numbers])
    return table


CORPUS = Corpus(
    name="cpsc2018",
    title="China Physiological Signal Challenge 2018, training set and extra set",
    licence="CC BY 4.0",
    access="open",
    size="6,877 records of 6 to 60 s and 3,453 extra ones of 8 to 98 s, 12 leads at 500 Hz",
    citation="Liu F, Liu C, Zhao L, et al. J Med Imaging Health Inform 2018;8:1368-1373",
    url="http://2018.icbeb.org/Challenge.html",
    signal_kind="ecg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=ECG_LEADS, window_s=10.0, hop_s=10.0, fs=100.0, band=(0.5, 40.0)),
    tasks={"dx": TaskSpec(kind="multilabel", classes=tuple(DIAGNOSES)), **AGE_SEX},
    label_windows=label_windows,
    subjects="unknown",
    obtain="struct files and REFERENCE.csv from the challenge's page; the same records as WFDB, with the extra set, "
    "from https://physionet.org/content/challenge-2021/1.0.3/, folders training/cpsc_2018 and training/cpsc_2018_extra",
)
