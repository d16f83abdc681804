"""PTB-XL: 21,799 clinical 12-lead ECGs of 10 s, with SCP-ECG statements, reports and ten stratified folds (Wagner et al. 2020). N windows.

The folder is the published one: `ptbxl_database.csv`, `scp_statements.csv`, `records100/` and `records500/`.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import Corpus, PrepareDefaults, TaskSpec
from physio_data.corpora.labels import AGE_SEX, age_sex
from physio_data.corpora.tables import flags, multilabel, number, rows_of, table_of, whole_id
from physio_data.formats import open_recording
from physio_data.recording import ECG_LEADS, Recording

SUPERCLASSES = ("CD", "HYP", "MI", "NORM", "STTC")
LABEL_SETS = ("superclass", "all", "diag", "sub", "form", "rhythm")
OVER_89 = 91.4  # years, for the code 300: the median that MIMIC-III's documentation gives for its over-89s
_COLUMNS = ("ecg_id", "patient_id", "age", "sex", "report", "scp_codes", "strat_fold", "filename_lr", "filename_hr")
_FOLDS = {**{str(fold): "train" for fold in range(1, 9)}, "9": "val", "10": "test"}
_OPTIONS = {
    "rate": "which copies to read, 100 or 500 (Hz; default 100)",
    "partial": "true reads the records that are there instead of refusing an incomplete copy",
}


def list_records(root: str | Path, *, rate: int = 100, partial: bool = False) -> list[str]:
    """`00001_lr`, ... (100 Hz) or `00001_hr`, ... (500 Hz), in the order of the table.

    `ValueError` where the table names records whose header is not there; with `partial` those are left out.
    """
    folder = Path(root)
    column = _column(rate)
    paths = [row[column] for row in rows_of(folder / "ptbxl_database.csv", _COLUMNS)]
    absent = [path for path in paths if not (folder / f"{path}.hea").is_file()]
    if absent and (not partial or len(absent) == len(paths)):
        raise ValueError(
            f"{folder}: {len(absent)} of {len(paths)} records of ptbxl_database.csv are not there, the first {absent[0]}.hea; "
            f"fetch them, choose the other rate, or pass option partial true to read those that are there"
        )
    missing = set(absent)
    return [Path(path).name for path in paths if path not in missing]


def open_record(root: str | Path, record_id: str, *, rate: int = 100, partial: bool = False) -> Recording:
    """One record with its label sets; the subject is `ptbxl:<patient_id>`, the text its report (mostly German), as stated."""
    folder = Path(root)
    row = table_of(folder / "ptbxl_database.csv", "ecg_id", _COLUMNS).get(str(int(record_id.partition("_")[0])))
    if row is None:
        raise ValueError(f"{folder / 'ptbxl_database.csv'}: no ecg_id {record_id.partition('_')[0]} (record {record_id!r}); fetch the table again")
    age = number(row["age"])
    return replace(
        open_recording(folder / f"{row[_column(rate)]}.hea", annotation=None),
        subject=f"ptbxl:{whole_id(row['patient_id'])}",
        record=record_id,
        age=OVER_89 if age >= 300 else age if 0 <= age <= 120 else math.nan,
        sex={"0": "M", "1": "F"}.get(whole_id(row["sex"]), ""),
        labels={**_label_sets(folder, row), "text": row["report"]},
    )


def label_windows(recording: Recording, start_s_N: np.ndarray, window_s: float) -> dict[str, np.ndarray]:
    """The six label sets, 0/1 per class; -1 throughout where a record has no statement of a set (the benchmark leaves it out there). `age`, `sex`."""
    n = len(start_s_N)
    sets = {}
    for name in LABEL_SETS:
        stated, n_classes = str(recording.labels[name]), int(recording.labels[f"n_{name}"])
        sets[name] = multilabel(stated if "1" in stated else "", n_classes, n)
    return {**sets, **age_sex(recording, n)}


def folds(record_ids: list[str], root: str | Path, *, rate: int = 100, partial: bool = False) -> dict[str, str]:
    """`strat_fold` 1-8 train, 9 val, 10 test; no patient is in two folds."""
    table = table_of(Path(root) / "ptbxl_database.csv", "ecg_id", _COLUMNS)
    return {record_id: _FOLDS[whole_id(table[str(int(record_id.partition("_")[0]))]["strat_fold"])] for record_id in record_ids}


def tasks_at(root: str | Path, *, rate: int = 100, partial: bool = False) -> dict[str, TaskSpec]:
    """The six label sets with the classes of `scp_statements.csv`, in alphabetical order, and age and sex."""
    return {name: TaskSpec(kind="multilabel", classes=classes) for name, classes in _classes(Path(root)).items()} | dict(AGE_SEX)


def _label_sets(folder: Path, row: Mapping[str, str]) -> dict[str, str | int]:
    """Statements count whatever their likelihood, as in the benchmark of Strodthoff et al. 2021 (IEEE JBHI 25:1519)."""
    try:
        codes = tuple(ast.literal_eval(row["scp_codes"]))
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"{folder / 'ptbxl_database.csv'}: scp_codes of ecg_id {row['ecg_id']} is {row['scp_codes']!r}, not a dictionary ({error}); fetch the table again"
        ) from None
    statement = _statements(folder)
    if unknown := [code for code in codes if code not in statement]:
        raise ValueError(f"{folder / 'scp_statements.csv'}: no statement {unknown[0]!r}, which ecg_id {row['ecg_id']} carries; fetch both tables again")
    present = {
        "superclass": [statement[code]["diagnostic_class"] for code in codes if statement[code]["diagnostic"]],
        "all": codes,
        "diag": [code for code in codes if statement[code]["diagnostic"]],
        "sub": [statement[code]["diagnostic_subclass"] for code in codes if statement[code]["diagnostic"]],
        "form": [code for code in codes if statement[code]["form"]],
        "rhythm": [code for code in codes if statement[code]["rhythm"]],
    }
    classes = _classes(folder)
    return {name: flags(classes[name], present[name]) for name in LABEL_SETS} | {f"n_{name}": len(classes[name]) for name in LABEL_SETS}


def _statements(folder: Path) -> dict[str, Mapping[str, str]]:
    return _described(folder)[0]


def _classes(folder: Path) -> dict[str, tuple[str, ...]]:
    return _described(folder)[1]


def _described(folder: Path) -> tuple[dict[str, Mapping[str, str]], dict[str, tuple[str, ...]]]:
    path = folder / "scp_statements.csv"
    rows_of(path, ("diagnostic", "form", "rhythm", "diagnostic_class", "diagnostic_subclass"))
    return _label_classes(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _label_classes(path: Path, changed_ns: int) -> tuple[dict[str, Mapping[str, str]], dict[str, tuple[str, ...]]]:
    """Statements by code, and the classes of every label set."""
    statement = {next(iter(row.values())): row for row in rows_of(path, ())}  # the column of codes has no name
    of_kind = {kind: sorted(code for code, row in statement.items() if row[kind]) for kind in ("diagnostic", "form", "rhythm")}
    groups = {column: sorted({statement[code][column] for code in of_kind["diagnostic"]} - {""}) for column in ("diagnostic_class", "diagnostic_subclass")}
    return statement, {
        "superclass": tuple(groups["diagnostic_class"]),
        "all": tuple(sorted(statement)),
        "diag": tuple(of_kind["diagnostic"]),
        "sub": tuple(groups["diagnostic_subclass"]),
        "form": tuple(of_kind["form"]),
        "rhythm": tuple(of_kind["rhythm"]),
    }


def _column(rate: int) -> str:
    if rate not in (100, 500):
        raise ValueError(f"rate must be 100 or 500 (Hz), got {rate!r}; PTB-XL has no other copies, resample with fs")
    return "filename_lr" if rate == 100 else "filename_hr"


CORPUS = Corpus(
    name="ptbxl",
    title="PTB-XL, a large publicly available electrocardiography dataset, 1.0.3",
    licence="CC BY 4.0",
    access="open",
    size="21,799 records of 10 s, 18,869 patients, 12 leads at 500 Hz and as copies at 100 Hz; 1.7 GB compressed",
    citation="Wagner P, Strodthoff N, Bousseljot RD, et al. Sci Data 2020;7:154. Folds and label sets: Strodthoff N, et al. IEEE JBHI 2021;25:1519-1528",
    url="https://physionet.org/content/ptb-xl/1.0.3/",
    signal_kind="ecg",
    list_records=list_records,
    open_record=open_record,
    defaults=PrepareDefaults(leads=ECG_LEADS, window_s=10.0, hop_s=10.0, fs=100.0, band=(0.5, 40.0), split="official"),
    tasks={"superclass": TaskSpec(kind="multilabel", classes=SUPERCLASSES), **AGE_SEX},
    tasks_at=tasks_at,
    label_windows=label_windows,
    official_folds=folds,
    options=_OPTIONS,
)
