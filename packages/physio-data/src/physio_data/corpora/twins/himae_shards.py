"""HiMAE's pretraining layout: an index CSV whose ids keep their zeros, and two HDF5 shards."""

from __future__ import annotations

from pathlib import Path

import h5py

from physio_data.corpora.twins.people import person


def write(root: Path, seed: int = 0) -> dict[str, object]:
    rows = []
    for shard in range(2):
        with h5py.File(root / f"shard{shard}.h5", "w") as file:
            for index in range(4):
                x_T = person(index, 10.0, 25.0, seed=seed + shard).signal_CT[0]
                key = f"{4 * shard + index:06d}"
                file.create_dataset(f"{key}/normalized_waveform", data=2 * (x_T - x_T.min()) / (x_T.max() - x_T.min()) - 1)
                rows.append(f"shard{shard}.h5,{key}")
    (root / "index.csv").write_text("local_path,global_idx\n" + "\n".join(rows) + "\n")
    return {"source_fs": 25.0}
