"""HiMAE's labelled windows: one HDF5 file and the metadata CSV, labels written as "[0]"."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from physio_data.corpora.twins.people import person


def write(root: Path, seed: int = 0) -> dict[str, object]:
    people = [person(index, 40.0, 25.0, seed=seed) for index in range(3)]
    x_NT = np.concatenate([p.signal_CT.reshape(4, 250) for p in people])
    label_N = np.array([int(((p.pulse_s[p.beat_type == "V"] // 10) == k).any()) for p in people for k in range(4)])
    with h5py.File(root / "pvc.h5", "w") as file:
        file["ppg"], file["labels"], file["patient_ids"] = x_NT, label_N[:, None], np.repeat(np.arange(3), 4)
    rows = [f"{i},{i // 4},{i % 4},[{label}],25" for i, label in enumerate(label_N)]
    (root / "metadata.csv").write_text("global_idx,case_id_num,segment_idx,pvc,fs\n" + "\n".join(rows) + "\n")
    return {}
