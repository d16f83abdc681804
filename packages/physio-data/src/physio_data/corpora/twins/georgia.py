"""Georgia's layout in the CinC 2021 training data: `g1/E00001.hea` and `.mat`; one record is shorter than ten seconds."""

from __future__ import annotations

from pathlib import Path

from physio_data.corpora.twins.ecg12 import write_snomed

RECORDS = {"g1/E00001": ("78", "Male", "426177001"), "g1/E00002": ("53", "Female", "164889003,59118001"), "g2/E01000": ("61", "Male", "Unknown")}


def write(root: Path, seed: int = 0) -> dict[str, object]:
    for index, (name, (age, sex, dx)) in enumerate(RECORDS.items()):
        write_snomed(root / name, index, 10.0, seed, age=age, sex=sex, dx=dx)
    return {}
