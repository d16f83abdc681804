"""Two layouts of arrays with labels in files of their own: what CWT-MAE's index and ecg_preprocess's segments share. C channels, T samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def matrix(where: str | Path, content: object, key: str) -> np.ndarray:
    """(C, T) float32 under `key` of a dictionary; one row of samples becomes (1, T). `ValueError` names the file and what is there."""
    if not isinstance(content, dict):
        raise ValueError(f"{where}: holds a {type(content).__name__}, expected a dictionary with {key!r}")
    if key not in content:
        raise ValueError(f"{where}: no {key!r}, the dictionary has {', '.join(map(str, content)) or 'nothing'}")
    x = np.asarray(content[key])
    if x.dtype.kind not in "biuf" or x.ndim not in (1, 2) or not x.size:
        raise ValueError(f"{where}: {key!r} is an array of shape {x.shape} and type {x.dtype}, expected numbers (channels, samples)")
    x = np.atleast_2d(x)
    if len(x) > x.shape[1]:
        raise ValueError(f"{where}: {key!r} has shape {x.shape}, more channels than samples; save it as (channels, samples)")
    return x.astype(np.float32)


def named(text: str | None, n: int, what: str) -> tuple[str, ...]:
    """Names written as `ECG,PPG`, one for each of `n` channels; without any `ch1`, `ch2`, ..."""
    names = tuple(part.strip() for part in str(text).split(",")) if text else tuple(f"ch{i}" for i in range(1, n + 1))
    if len(names) != n:
        raise ValueError(f"{what} must name {n} channels, got {len(names)}: {', '.join(names)}")
    return names
