"""MIMIC-IV Waveform's layout: `waves/p100/p10014354/81739927/` with FLAC signal files by kind and two samples of Pleth a frame."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from physio_data.corpora.twins.people import person
from physio_data.corpora.twins.wfdb_files import digital, header, signal_line, write_flac

FRAME_HZ = 62.4725
RATE = f"{FRAME_HZ}/999.56"


def write(root: Path, seed: int = 0) -> dict[str, object]:
    for index, (person_id, record) in enumerate((("p10014354", "81739927"), ("p10019003", "87033314"))):
        folder = root / "waves" / person_id[:4] / person_id / record
        folder.mkdir(parents=True)
        _write_record(folder, record, index, seed)
    hosp = root / "hosp"
    hosp.mkdir()
    with gzip.open(hosp / "patients.csv.gz", "wt", encoding="utf-8") as file:
        file.write("subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod\n10014354,F,60,2146,2014 - 2016,\n10019003,M,91,2150,2014 - 2016,\n")
    (root / "RECORDS").write_text("waves/p100/p10014354/\nwaves/p100/p10019003/\n")
    return {"patients": str(hosp / "patients.csv.gz")}


def _write_record(folder: Path, record: str, index: int, seed: int) -> None:
    """A layout and two segments: ECG II at four samples a frame (`e`), Pleth and Resp at two and one (`p`, `r`)."""
    n_frames = 2500
    subject = person(index, 2 * n_frames / FRAME_HZ + 0.1, 4 * FRAME_HZ, ("ECG",), seed)
    pulse = person(index, 2 * n_frames / FRAME_HZ + 0.1, 2 * FRAME_HZ, ("PPG",), seed)
    kinds = (("e", "II", 4, 200.0, "mV", subject.signal_CT[0]), ("p", "Pleth", 2, 1000.0, "NU", pulse.signal_CT[0]))
    kinds += (("r", "Resp", 1, 1000.0, "Ohm", subject.respiration_T[::4]),)
    layout = [f"~ 0x{factor} {gain:g}(0)/{unit} 16 0 0 0 0 {name}" for _, name, factor, gain, unit, _ in kinds]
    header(folder / f"{record}_0000.hea", f"{record}_0000 {len(kinds)} {RATE} 0", layout)
    for number in (1, 2):
        lines = []
        for letter, name, factor, gain, unit, x_T in kinds:
            d_T = digital(x_T[(number - 1) * n_frames * factor : number * n_frames * factor], gain)
            file = f"{record}_{number:04d}{letter}.dat"
            write_flac(folder / file, d_T[None])
            lines.append(signal_line(file, f"516x{factor}", gain, unit, d_T, name))
        header(folder / f"{record}_{number:04d}.hea", f"{record}_{number:04d} {len(kinds)} {RATE} {n_frames}", lines)
    segments = [f"{record}_0000 0", f"{record}_0001 {n_frames}", f"{record}_0002 {n_frames}"]
    header(folder / f"{record}.hea", f"{record}/3 {len(kinds)} {RATE} {2 * n_frames} 14:35:42.000 16/07/2148", segments, [f"subject {folder.parent.name}"])
    ticks = np.arange(0, 80, 1.0) * 999.56
    with gzip.open(folder / f"{record}n.csv.gz", "wt", encoding="utf-8") as out:
        out.write("time,HR [bpm]\n" + "".join(f"{tick:.0f},{60 + index}\n" for tick in ticks))
