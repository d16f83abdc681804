"""CinC 2017's layout: `A00001.hea` whose first line has the date before the time, `A00001.mat` (version 4, format 16 from byte 24), `REFERENCE-v3.csv`."""

from __future__ import annotations

from pathlib import Path

from physio_data.corpora.twins.ecg12 import twelve_leads, write_mat4
from physio_data.corpora.twins.wfdb_files import digital

RHYTHMS = {"A00001": ("N", 10.0), "A00002": ("A", 30.0), "A00003": ("O", 9.5), "A00004": ("~", 12.0), "A00005": ("N", 18.0)}


def write(root: Path, seed: int = 0) -> dict[str, object]:
    for index, (name, (_, seconds)) in enumerate(RHYTHMS.items()):
        lead_CT = twelve_leads(index, seconds, 300.0, seed)[0][:1] * (-1 if index == 2 else 1)
        write_mat4(root / name, digital(lead_CT, 1000), fs=300.0, names=("ECG ",), fmt="16+24", gain=1000, stamp=" 2014-05-08 05:05:15 ")
    (root / "REFERENCE-v3.csv").write_text("".join(f"{name},{rhythm}\n" for name, (rhythm, _) in RHYTHMS.items()))
    return {}
