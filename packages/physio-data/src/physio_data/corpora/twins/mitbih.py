"""MIT-BIH's layout: `100.hea` `.dat` (format 212, 360 Hz) `.atr`; record 114 has V5 first, 102 is paced, 201 and 202 are one person."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from physio_data.corpora.twins.ecg12 import twelve_leads, write_212, write_marks
from physio_data.corpora.twins.wfdb_files import digital
from physio_data.recording import ECG_LEADS

RECORDS = {
    "100": "69 M 1085 1629 x1",
    "101": "75 F 1011 654 x1",
    "102": "84 F 1960 1151 x1",
    "114": "72 F 1629 1351 x1",
    "201": "68 M 1960 1151 x1",
    "202": "68 M",
}
SYMBOL = {"N": "N", "V": "V", "S": "A"}


def write(root: Path, seed: int = 0) -> dict[str, object]:
    for index, (name, comment) in enumerate(RECORDS.items()):
        leads_CT, someone = twelve_leads(index, 60.0, 360.0, seed)
        names = ("V5", "MLII") if name == "114" else ("MLII", "V5")
        rows = [ECG_LEADS.index("II" if lead == "MLII" else lead) for lead in names]
        write_212(root / name, np.clip(digital(leads_CT[rows], 200), -2047, 2047), fs=360.0, names=names, gain=200, comments=(comment, "Aldomet, Inderal"))
        kinds = ["/" if name == "102" else SYMBOL.get(str(kind), "N") for kind in someone.beat_type]
        samples = np.rint(someone.beat_s * 360).astype(int)
        first = max(int(samples[0]) - 60, 1)
        write_marks(root / f"{name}.atr", [first, *samples], ["+", *kinds], {0: "(P" if name == "102" else "(N"})
    return {}
