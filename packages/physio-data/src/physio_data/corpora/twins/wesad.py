"""WESAD's layout: `S2/S2.pkl`, as Python 2 wrote it (protocol 2), and the readme of the subject."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from physio_data.corpora.twins.people import person


def devices(index: int, seconds: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """The signals of chest (700 Hz) and wrist (64, 32 and 4 Hz) of one made-up person."""
    rng = np.random.default_rng([seed, index])
    chest = person(index, seconds, 700.0, ("ECG",), seed)
    wrist = person(index, seconds, 64.0, ("PPG",), seed)
    n = 700 * seconds
    column = {"ECG": chest.signal_CT[0], "EMG": 0.01 * rng.standard_normal(n), "EDA": 5 + rng.standard_normal(n).cumsum() / 1e3}
    column |= {"Temp": np.full(n, 33.0, np.float32), "Resp": 3 * chest.respiration_T}
    return {
        "chest": {"ACC": rng.standard_normal((n, 3)), **{name: x[:, None].astype(np.float64) for name, x in column.items()}},
        "wrist": {
            "ACC": np.round(20 * rng.standard_normal((32 * seconds, 3))),
            "BVP": 60.0 * wrist.signal_CT[0][:, None].astype(np.float64),
            "EDA": rng.uniform(0.2, 0.3, (4 * seconds, 1)),
            "TEMP": np.full((4 * seconds, 1), 33.1),
        },
    }


def write(root: Path, seed: int = 0) -> dict[str, object]:
    seconds = 120
    states = np.repeat([0, 1, 2, 4, 3, 7], [10, 30, 30, 10, 30, 10])
    for index, name in enumerate(("S2", "S10")):
        folder = root / name
        folder.mkdir()
        content = {"signal": devices(index, seconds, seed), "label": np.repeat(states, 700).astype(np.int32), "subject": name}
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))
        (folder / f"{name}_readme.txt").write_text(f"### Personal information ###\nAge: {27 + index}\nHeight (cm): 175\nGender: {('male', 'female')[index]}\n")
    return {}
