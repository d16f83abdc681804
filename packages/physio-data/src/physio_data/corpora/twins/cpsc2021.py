"""CPSC 2021's layout: `data_<patient>_<number>.hea` `.dat` (format 16, 200 Hz) `.atr` with `(AFIB` and `(N`, the person's rhythm in the header."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from physio_data.corpora.twins.ecg12 import twelve_leads, write_marks
from physio_data.corpora.twins.wfdb_files import digital, header, write_plain

# name -> (what the header says, rhythm marks as (second, aux))
RECORDS = {
    "data_0_1": ("non atrial fibrillation", ()),
    "data_0_2": ("non atrial fibrillation", ()),
    "data_7_1": ("persistent atrial fibrillation", ((0.0, "(AFIB"), (59.5, "(N"))),
    "data_12_1": ("paroxysmal atrial fibrillation", ((20.0, "(AFIB"), (41.0, "(N"))),
}


def write(root: Path, seed: int = 0) -> dict[str, object]:
    for index, (name, (says, rhythm)) in enumerate(RECORDS.items()):
        leads_CT, someone = twelve_leads(index, 60.0, 200.0, seed)
        d_CT = digital(leads_CT[:2], 8000)
        write_plain(root / f"{name}.dat", d_CT)
        checksum_C = d_CT.astype(np.int64).sum(1) & 0xFFFF
        lines = [f"{name}.dat 16 8000.25(0)/mV 16 0 {d_CT[c, 0]} {checksum_C[c]} 0 {lead}" for c, lead in enumerate(("I", "II"))]
        header(root / f"{name}.hea", f"{name} 2 200 {d_CT.shape[1]}", lines, (says,))
        marks = [(int(at * 200), "+", aux) for at, aux in rhythm] + [(int(at * 200), "N", "None" if index == 2 else "") for at in someone.beat_s]
        marks.sort()
        write_marks(root / f"{name}.atr", [at for at, _, _ in marks], [symbol for _, symbol, _ in marks], {i: aux for i, (_, _, aux) in enumerate(marks)})
    return {}
