"""Sleep-EDF's layout: `sleep-cassette/SC4001E0-PSG.edf` (EDF+, EEG at 100 Hz beside 1 Hz channels) and `SC4001EC-Hypnogram.edf`."""

from __future__ import annotations

from datetime import date, time
from pathlib import Path

import numpy as np

NIGHTS = (("SC4001E0", "SC4001EC", "F", "Female_33yr"), ("SC4002E0", "SC4002EC", "F", "Female_33yr"), ("SC4011E0", "SC4011EH", "M", "Male_51yr"))
STAGES = ("W", "1", "2", "3", "4", "R", "?")


def write(root: Path, seed: int = 0) -> dict[str, object]:
    """Each 30-s stage has a rhythm of its own: 10 Hz awake, 1 Hz in deep sleep, 6 Hz otherwise. Needs `edfio` (extra `edf`)."""
    import edfio

    folder = root / "sleep-cassette"
    folder.mkdir()
    for n, (night, scored, sex, name) in enumerate(NIGHTS):
        rng = np.random.default_rng([seed, n])
        t_T = np.arange(30 * len(STAGES) * 100) / 100
        hz_T = np.repeat([{"W": 10.0, "3": 1.0, "4": 1.0}.get(stage, 6.0) for stage in STAGES], 3000)
        rhythm_T = 30 * np.sin(2 * np.pi * hz_T * t_T)
        names = ("EEG Fpz-Cz", "EEG Pz-Oz", "EOG horizontal")
        signals = [
            edfio.EdfSignal(rhythm_T * gain + 5 * rng.standard_normal(len(t_T)), 100, label=label, physical_dimension="uV", physical_range=(-192, 192))
            for label, gain in zip(names, (0.5, 1.0, 0.2), strict=True)
        ]
        slow = np.full(30 * len(STAGES), 37.0) + 0.01 * rng.standard_normal(30 * len(STAGES))
        signals.append(edfio.EdfSignal(slow, 1, label="Temp rectal", physical_dimension="DegC", physical_range=(34, 40)))
        patient = edfio.Patient(code="X", sex=sex, name=name)
        edfio.Edf(signals, patient=patient, starttime=time(16, 13, 0), recording=edfio.Recording(startdate=date(1989, 4, 24))).write(
            folder / f"{night}-PSG.edf"
        )
        marks = [edfio.EdfAnnotation(30.0 * k, 30.0, f"Sleep stage {stage}") for k, stage in enumerate(STAGES)]
        edfio.Edf([], patient=patient, starttime=time(16, 13, 0), annotations=marks).write(folder / f"{scored}-Hypnogram.edf")
    return {}
