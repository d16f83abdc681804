"""The archive's layout: `NAME_TRAIN.tsv` and `NAME_TEST.tsv`, the label first, rows already normalised."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write(root: Path, seed: int = 0) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    for fold, n in (("TRAIN", 12), ("TEST", 20)):
        rows = []
        for i in range(n):
            x_T = np.sin(np.linspace(0, (2 + i % 2) * np.pi, 64)) + 0.1 * rng.standard_normal(64)
            rows.append("\t".join([str((-1, 1)[i % 2]), *(f"{value:.6f}" for value in (x_T - x_T.mean()) / x_T.std())]))
        (root / f"Twin_{fold}.tsv").write_text("\n".join(rows) + "\n")
    return {}
