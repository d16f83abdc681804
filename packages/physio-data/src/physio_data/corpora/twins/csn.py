"""Chapman-Shaoxing-Ningbo's layout: `WFDBRecords/01/010/JS00001.hea` and `.mat`."""

from __future__ import annotations

from pathlib import Path

from physio_data.corpora.twins.ecg12 import write_snomed

RECORDS = {
    "WFDBRecords/01/010/JS00001": ("85", "Male", "164889003,59118001,164934002"),
    "WFDBRecords/01/010/JS00002": ("59", "Female", "426177001,164934002"),
    "WFDBRecords/01/011/JS00104": ("20", "Female", "426783006"),
    "WFDBRecords/02/020/JS01054": ("45", "Male", "426761007"),
}


def write(root: Path, seed: int = 0) -> dict[str, object]:
    for index, (name, (age, sex, dx)) in enumerate(RECORDS.items()):
        write_snomed(root / name, index, 10.0, seed, age=age, sex=sex, dx=dx)
    return {}
