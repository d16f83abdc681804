"""A folder of CSV files that do not state their rate, and the description that does."""

from __future__ import annotations

import json
from pathlib import Path

from physio_data.corpora.twins.people import person


def write(root: Path, seed: int = 0) -> dict[str, object]:
    for index, name in enumerate(("anna_1", "anna_2", "ben_1")):
        x_T = person(index // 2, 30.0, 64.0, seed=seed + index % 2).signal_CT[0]
        (root / f"{name}.csv").write_text("\n".join(f"{value:.5f}" for value in x_T) + "\n")
    (root / "folder.json").write_text(json.dumps({"files": "*.csv", "fs": 64, "channels": "PPG", "units": "a.u.", "subject": "^([a-z]+)_"}))
    return {}
