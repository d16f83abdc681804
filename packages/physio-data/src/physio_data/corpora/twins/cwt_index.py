"""CWT-MAE's layout: `index.json` and pickles, and a split file beside them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np

from physio_data.corpora.twins.people import person


def write(root: Path, seed: int = 0) -> dict[str, object]:
    (root / "segments").mkdir()
    entries = []
    for index in range(8):
        subject = person(index, 10.0, 100.0, ("ECG", "PPG"), seed)
        data = np.concatenate([subject.signal_CT[:1], np.zeros((3, 1000), np.float32), subject.signal_CT[1:]])
        path = f"segments/{index:03d}.pkl"
        (root / path).write_bytes(pickle.dumps({"data": data, "label": index % 2}))
        entries.append({"path": path, "len": 1000, "label": index % 2})
    (root / "index.json").write_text(json.dumps(entries))
    (root / "splits").mkdir()
    paths = [f"../{entry['path']}" for entry in entries]
    (root / "splits" / "split.json").write_text(json.dumps({"train": paths[:4], "val": paths[4:6], "test": paths[6:]}))
    return {"source_fs": 100.0, "channels": "ECG,ACCX,ACCY,ACCZ,PPG"}
