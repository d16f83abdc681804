"""LUDB's layout: `ludb.csv` whose cells end in line breaks, `data/1.hea` `.dat` with lower-case leads, and one annotation file a lead (`.i` ... `.v6`)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from physio_data.corpora.twins.ecg12 import twelve_leads, write_marks
from physio_data.corpora.twins.wfdb_files import digital, header, signal_line, write_plain
from physio_data.recording import ECG_LEADS

COLUMNS = (
    "ID,Sex,Age,Rhythms,Electric axis of the heart,Conduction abnormalities,Extrasystolies,Hypertrophies,Cardiac pacing,Ischemia,"
    "Non-specific repolarization abnormalities,Other states"
).split(",")
RECORDS = {"1": ("F", "51", "Sinus bradycardia"), "2": ("M", "64", "Sinus rhythm"), "10": ("M", "43", "Atrial fibrillation\nAberrant conduction")}
BOUNDS_S = {"p": (-0.20, -0.16, -0.12), "N": (-0.04, 0.0, 0.05), "t": (0.18, 0.28, 0.36)}  # of each wave, from the R peak


def write(root: Path, seed: int = 0) -> dict[str, object]:
    folder = root / "data"
    folder.mkdir()
    for index, (name, (sex, age, rhythm)) in enumerate(RECORDS.items()):
        leads_CT, someone = twelve_leads(index, 10.0, 500.0, seed)
        d_CT = digital(leads_CT, 1500)
        write_plain(folder / f"{name}.dat", d_CT)
        lines = [signal_line(f"{name}.dat", "16", 1500, "mV", d_T, lead.lower()) for d_T, lead in zip(d_CT, ECG_LEADS, strict=True)]
        header(folder / f"{name}.hea", f"{name} 12 500 {d_CT.shape[1]}", lines, (f"<age>: {age}", f"<sex>: {sex}", "<diagnoses>:", f"Rhythm: {rhythm}."))
        beats_s = someone.beat_s[(someone.beat_s > 0.9) & (someone.beat_s < 9.1)]
        narrowed = min(1.0, float(np.diff(someone.beat_s).min()) / 0.6)  # no T runs into the next P
        symbols = [symbol for wave in BOUNDS_S for symbol in ("(", wave, ")")]
        offsets_s = narrowed * np.concatenate(list(BOUNDS_S.values()))
        samples = np.rint(500 * (beats_s[:, None] + offsets_s)).astype(int)
        for lead in ECG_LEADS:
            write_marks(folder / f"{name}.{lead.lower()}", samples.ravel().tolist(), symbols * len(beats_s))
    with (root / "ludb.csv").open("w", newline="", encoding="utf-8") as handle:
        table = csv.DictWriter(handle, COLUMNS)
        table.writeheader()
        for name, (sex, age, rhythm) in RECORDS.items():
            table.writerow(dict.fromkeys(COLUMNS, "") | {"ID": name, "Sex": f"{sex}\n", "Age": f"{age}\n", "Rhythms": rhythm})
    return {}
