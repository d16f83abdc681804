"""Frozen features of chosen rows of a dataset, in one pass over it.

B windows a batch, N rows, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physio_train.batches import read

Encoded = Tensor | np.ndarray
Encode = Callable[[dict[str, Any]], Encoded | Mapping[str, Encoded]]


def embed(
    encode: Encode,
    dataset: Any,
    rows: Sequence[int] | np.ndarray,
    *,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray | dict[str, np.ndarray]:
    """Features (N, D) float32 of `rows`, in their order; a dict of them where `encode` returns one (several levels or pools of one forward pass).

    `encode(batch)` gets a dict of tensors on `device` ("signal" (B, C, T) and what else the dataset has) and returns (B, D). It runs under inference mode;
    the encoder must be in eval mode, which `encode` answers for. The dataset has `.batch(rows)` (a dict of arrays), or items by `[i]` that are dicts.
    `progress(done, total)` is called after every batch. Raises ValueError where features are not (B, D) or not finite, naming the first row.
    """
    rows = np.asarray(rows, dtype=np.int64)
    if rows.ndim != 1 or not len(rows):
        raise ValueError(f"rows must be a non-empty list of row numbers, got shape {rows.shape}: is the fold empty?")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    out: dict[str, np.ndarray] = {}
    single = False
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            encoded = encode(_tensors(read(dataset, part), device))
            single = not isinstance(encoded, Mapping)
            for name, value in {"": encoded}.items() if single else encoded.items():
                features = _features(name, value, part)
                if name not in out:
                    out[name] = np.empty((len(rows), features.shape[1]), dtype=np.float32)
                out[name][start : start + len(part)] = features
            if progress is not None:
                progress(start + len(part), len(rows))
    return out[""] if single else out


def signals(dataset: Any, rows: Sequence[int] | np.ndarray, *, batch_size: int = 1024) -> Iterator[np.ndarray]:
    """The windows themselves, (B, C, T) float32 a batch: what hand-crafted features are computed from."""
    rows = np.asarray(rows, dtype=np.int64)
    for start in range(0, len(rows), batch_size):
        yield np.asarray(read(dataset, rows[start : start + batch_size])["signal"], dtype=np.float32)


def _tensors(batch: Mapping[str, Any], device: str | torch.device) -> dict[str, Any]:
    move = lambda v: torch.as_tensor(v).to(device) if isinstance(v, Tensor) or (isinstance(v, np.ndarray) and v.dtype.kind in "fiub") else v  # noqa: E731
    return {name: move(value) for name, value in batch.items()}


def _features(name: str, value: Encoded, rows: np.ndarray) -> np.ndarray:
    features = value.detach().to("cpu", torch.float32).numpy() if isinstance(value, Tensor) else np.asarray(value, dtype=np.float32)
    label = f"features {name!r}" if name else "features"
    if features.ndim != 2 or len(features) != len(rows):
        raise ValueError(f"{label} of {len(rows)} windows must be ({len(rows)}, D), got {features.shape}: pool the tokens first")
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise ValueError(f"{label} of row {rows[np.argmax(bad)]} are not finite ({int(bad.sum())} rows of this batch): check the window and the normalisation")
    return features
