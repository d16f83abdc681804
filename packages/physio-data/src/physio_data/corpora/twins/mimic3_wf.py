"""The matched subset's layout: `p00/p000020/` with a master header of variable layout, its segments and a gap, numerics beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from physio_data.corpora.twins.people import person
from physio_data.corpora.twins.wfdb_files import digital, header, signal_line, write_plain

GAP = 5 * 125
PIECES = ((40 * 125, ("II", "PLETH")), (None, ()), (30 * 125, ("PLETH",)), (20 * 125, ("II",)))


def write(root: Path, seed: int = 0) -> dict[str, object]:
    for index, (person_id, date) in enumerate((("p000020", "2183-04-28-17-47"), ("p000109", "2141-10-21-09-05"))):
        folder = root / person_id[:3] / person_id
        folder.mkdir(parents=True)
        _write_record(folder, f"{person_id}-{date}", f"35{index:05d}", index, seed)
    (root / "PATIENTS.csv").write_text('"ROW_ID","SUBJECT_ID","GENDER","DOB","DOD"\n1,20,"F","2107-04-28 00:00:00",\n2,109,"M","1841-08-07 00:00:00",\n')
    records = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("p*-*.hea") if not path.stem.endswith("n"))
    (root / "RECORDS-waveforms").write_text("\n".join(records) + "\n")
    return {"patients": str(root / "PATIENTS.csv")}


def _write_record(folder: Path, master: str, stem: str, index: int, seed: int) -> None:
    subject = person(index, 95.0, 125.0, ("ECG", "PPG"), seed)
    row_of, at = {"II": 0, "PLETH": 1}, 0
    lines = [f"{stem}_layout 0"]
    layout = [f"~ 0 {gain:g}(0)/{unit} 16 0 0 0 0 {name}" for name, gain, unit in (("II", 1000, "mV"), ("PLETH", 500, "NU"))]
    header(folder / f"{stem}_layout.hea", f"{stem}_layout 2 125 0", layout)
    for number, (length, names) in enumerate(PIECES, 1):
        if length is None:
            lines.append(f"~ {GAP}")
            at += GAP
            continue
        segment = f"{stem}_{number:04d}"
        d_CT = np.stack([digital(subject.signal_CT[row_of[name], at : at + length], 1000 if name == "II" else 500) for name in names])
        write_plain(folder / f"{segment}.dat", d_CT)
        signals = [
            signal_line(f"{segment}.dat", "16", 1000 if name == "II" else 500, "mV" if name == "II" else "NU", d_T, name)
            for name, d_T in zip(names, d_CT, strict=True)
        ]
        header(folder / f"{segment}.hea", f"{segment} {len(names)} 125 {length}", signals)
        lines.append(f"{segment} {length}")
        at += length
    header(folder / f"{master}.hea", f"{master}/{len(lines)} 2 125 {at} 17:47:41.250 28/04/2183", lines)
    header(folder / f"{master}n.hea", f"{master}n 1 0.0166667 2", [f"{master}n.dat 16 1/bpm 16 0 80 160 0 HR"])
    np.array([80, 80], "<i2").tofile(folder / f"{master}n.dat")
