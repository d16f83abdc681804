"""The CinC 2021 layout: `training/<source>/g1/<record>.hea` and `.mat`, SNOMED codes, age and sex in the header."""

from __future__ import annotations

from pathlib import Path

from physio_data.corpora.twins.ecg12 import write_snomed

RECORDS = {
    "training/georgia/g1/E00001": ("78", "Male", "426177001,67741000119109"),
    "training/ptb-xl/g1/HR00001": ("56", "Female", "426783006,251146004"),
    "training/ningbo/g1/JS10647": ("NaN", "Unknown", "284470004,427084000"),
    "training/cpsc_2018_extra/g1/Q0001": ("34", "M", "17338001"),
}


def write(root: Path, seed: int = 0) -> dict[str, object]:
    for index, (name, (age, sex, dx)) in enumerate(RECORDS.items()):
        write_snomed(root / name, index, 14.0 if index == 3 else 10.0, seed, age=age, sex=sex, dx=dx)
    return {}
