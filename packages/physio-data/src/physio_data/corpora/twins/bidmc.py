"""BIDMC's layout: `bidmc_csv/bidmc_01_{Signals,Numerics}.csv` and `..._Fix.txt`, the third recording of the first one's person."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from physio_data.corpora.twins.people import person

PEOPLE = ((0, "s00123", 88, "F"), (1, "s00456", 52, "M"), (0, "s00123", 88, "F"))


def write(root: Path, seed: int = 0) -> dict[str, object]:
    folder = root / "bidmc_csv"
    folder.mkdir()
    for number, (index, source, age, sex) in enumerate(PEOPLE, 1):
        subject = person(index, 30.0, 125.0, ("ECG", "PPG"), seed + number // 3)
        ecg_T, ppg_T = subject.signal_CT.astype(np.float64)
        rows = np.column_stack([np.arange(len(ecg_T)) / 125, subject.respiration_T, ppg_T, 0.8 * ecg_T, -0.5 * ecg_T, ecg_T])
        lines = [",".join(f"{value:.5g}" for value in row) for row in rows]
        (folder / f"bidmc_{number:02d}_Signals.csv").write_text("Time [s], RESP, PLETH, V, AVR, II\n" + "\n".join(lines) + "\n")
        rate = round(float(60 / np.diff(subject.beat_s).mean()))
        seconds = [f"{second},{rate},{rate},17,{'' if second == 3 else 97}" for second in range(31)]
        (folder / f"bidmc_{number:02d}_Numerics.csv").write_text("Time [s], HR, PULSE, RESP, SpO2\n" + "\n".join(seconds) + "\n")
        (folder / f"bidmc_{number:02d}_Fix.txt").write_text(f"Source: {source}-2683-09-03-21-37\nAge: {age}\nGender: {sex}\nLocation: micu\n")
    return {}
