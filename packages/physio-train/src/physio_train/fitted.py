"""How a fitted read-out is kept: arrays as safetensors, the rest as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file


def write_fitted(folder: str | Path, weights_file: str, meta_file: str, values: Mapping[str, Any], meta: Mapping[str, Any]) -> Path:
    """Write the arrays among ``values`` and ``meta`` into the folder, each file atomically. ValueError for a number in ``meta`` that JSON lacks."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    weights, text = folder / f".{weights_file}.{os.getpid()}.tmp", folder / f".{meta_file}.{os.getpid()}.tmp"
    try:
        save_file(arrays, weights)
        text.write_text(json.dumps(meta, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(weights, folder / weights_file)
        os.replace(text, folder / meta_file)
    finally:
        weights.unlink(missing_ok=True)
        text.unlink(missing_ok=True)
    return folder
