"""PPG-DaLiA's layout: `S1/S1.pkl`; the PPG of the second subject points down."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from physio_data.corpora.twins.people import person
from physio_data.corpora.twins.wesad import devices


def write(root: Path, seed: int = 0) -> dict[str, object]:
    seconds = 60
    for index, name in enumerate(("S1", "S2")):
        folder = root / name
        folder.mkdir()
        signal = devices(index, seconds, seed)
        signal["chest"] |= {name: np.array([0.0]) for name in ("EDA", "EMG", "Temp")}  # not recorded; one dummy value each
        signal["wrist"]["BVP"] *= (1, -1)[index]
        beat_s = person(index, seconds, 64.0, ("PPG",), seed).beat_s
        rate = [60 / np.diff(beat_s[(beat_s >= s) & (beat_s < s + 8)]).mean() for s in range(0, seconds - 7, 2)]
        content = {
            "rpeaks": np.rint(700 * beat_s).astype(np.int64),
            "signal": signal,
            "label": np.array(rate),
            "activity": np.repeat([0.0, 1.0, 7.0], [40, 100, 100])[:, None],
            "questionnaire": {"WEIGHT": 78.0, "Gender": (" m", " f")[index], "AGE": 34 - index, "HEIGHT": 182.0, "SKIN": 3, "SPORT": 6},
            "subject": name,
        }
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return {}
