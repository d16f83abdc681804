"""ecg_preprocess's layout: `<base>/preprocessed_<length>/<name>_<i>.npy`, each a pickled dictionary in an array of no dimension."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from physio_data.corpora.ecg_preprocess import AS_FILED, REORDERED
from physio_data.corpora.twins.people import person

# share of the synthetic lead in each of the twelve, obeying II = I + III and Goldberger's equations
SHARE = {"I": 0.6, "II": 1.0, "III": 0.4, "aVR": -0.8, "aVL": 0.1, "aVF": 0.7, "V1": -0.4, "V2": 0.3, "V3": 0.6, "V4": 1.1, "V5": 1.0, "V6": 0.8}
BASES = (("ptb_xl", AS_FILED, "records500/00000/{:05d}_hr"), ("mimic_iv", REORDERED, "files/p1000/p1000003{}/s40689238/40689238"))


def write(root: Path, seed: int = 0) -> dict[str, object]:
    for b, (base, leads, pattern) in enumerate(BASES):
        folder = root / base / "preprocessed_1250"
        folder.mkdir(parents=True)
        for index in (1, 2):
            x_T = person(10 * b + index, 10.0, 250.0, ("ECG",), seed).signal_CT[0].astype(np.float64)
            name = Path(pattern.format(index)).name.replace("40689238", f"4068923{index}")
            for i in range(2):
                segment = {
                    "ecg": np.stack([SHARE[lead] * x_T[1250 * i : 1250 * (i + 1)] for lead in leads]),
                    "report": "sinus rhythm. normal ecg.",
                    "ecg_path": f"../data/{base}/{pattern.format(index)}",
                    "original_sf": 500,
                    "target_sf": 250,
                    "segment_len": 1250,
                    "npy_path": f"./{base}/preprocessed_1250/{name}_{i}.npy",
                }
                np.save(folder / f"{name}_{i}.npy", segment)
    return {}
