"""A store from windows that are in memory already, for own data without files and for measurements. N windows, C channels, T samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from physio_data.corpora.contract import TaskSpec
from physio_data.journal import StoreWriter, discard_journal, locked
from physio_data.manifest import FORMAT, MANIFEST, SCHEMA, SCHEMA_PLAIN, write_manifest
from physio_data.splits import check_disjoint
from physio_data.store import Store


def write_store(
    path: str | Path,
    signal_NCT: np.ndarray,
    *,
    fs: float,
    channels: Sequence[str],
    units: Sequence[str],
    subject: Sequence[str],
    record: Sequence[str] | None = None,
    start_s: Sequence[float] | None = None,
    fold: Sequence[str] | None = None,
    labels: Mapping[str, np.ndarray] | None = None,
    tasks: Mapping[str, TaskSpec] | None = None,
    kind: str = "series",
    band: tuple[float | None, float | None] | None = None,
    n_valid: Sequence[int] | None = None,
    channel_present_NC: np.ndarray | None = None,
    dtype: str = "float32",
    compression: str = "none",
    shard_windows: int | None = None,
) -> Store:
    """Write finite windows in physical units (N, C, T) as a store and open it.

    `band` states what the signal was filtered with. Rows of unknown neighbourhood: `next` is -1 throughout. Raises ValueError for shapes that
    do not fit, samples that are not finite, a subject in two folds, and a folder that holds a store already.
    """
    x_NCT = np.asarray(signal_NCT)
    path, n = Path(path), len(x_NCT)
    if x_NCT.ndim != 3 or not n or x_NCT.shape[1] != len(channels) or len(channels) != len(units):
        raise ValueError(f"signal_NCT must be (N, {len(channels)} channels, T) with a unit for each channel, got shape {x_NCT.shape}, units {tuple(units)}")
    if (path / MANIFEST).exists():
        raise ValueError(f"{path} holds a store already; choose another folder")
    labels, tasks = dict(labels or {}), dict(tasks or {})
    if set(labels) != set(tasks):
        raise ValueError(f"labels and tasks must name the same tasks, got {sorted(labels)} and {sorted(tasks)}")
    columns = {
        "subject": np.asarray(subject, np.str_),
        "record": np.asarray(subject if record is None else record, np.str_),
        "start_s": np.zeros(n) if start_s is None else np.asarray(start_s, np.float64),
        "n_valid": np.full(n, x_NCT.shape[2], np.int32) if n_valid is None else np.asarray(n_valid, np.int32),
        "channel_present": np.ones(x_NCT.shape[:2], bool) if channel_present_NC is None else np.asarray(channel_present_NC, bool),
        "quality": np.zeros(n, np.uint32),
        "next": np.full(n, -1, np.int64),
        "dt_next_s": np.full(n, np.nan),
        "fold": np.full(n, "train") if fold is None else np.asarray(fold, np.str_),
        "age": np.full(n, np.nan, np.float32),
        "sex": np.full(n, ""),
        **{f"label/{task}": np.asarray(values) for task, values in labels.items()},
    }
    for name, values in columns.items():
        if len(values) != n:
            raise ValueError(f"{name} must have one value per window, got {len(values)} for {n} windows")
    check_disjoint(columns["subject"], columns["fold"])
    path.mkdir(parents=True, exist_ok=True)
    with locked(path):
        writer = StoreWriter(path, {"from": "arrays"}, shape_CT=x_NCT.shape[1:], dtype=dtype, shard_windows=shard_windows, compression=compression)
        try:
            for start in range(0, n, writer.shard_windows):
                part = slice(start, start + writer.shard_windows)
                if not np.isfinite(x_NCT[part]).all():
                    raise ValueError("signal_NCT must be finite; leave windows with gaps out")
                writer.add(x_NCT[part], {name: values[part] for name, values in columns.items()}, {}, {})
            writer.finish()
        finally:
            writer.close()
        shards = [shard["entry"] for shard in writer.shards]
        write_manifest(path, _manifest(shards, columns, tasks, x_NCT.shape, fs, channels, units, kind, band, dtype, compression))
        discard_journal(path)
    return Store(path)


def _manifest(shards, columns, tasks, shape, fs, channels, units, kind, band, dtype, compression) -> dict:
    return {
        "format": FORMAT,
        "schema": SCHEMA_PLAIN if compression == "none" else SCHEMA,
        "corpus": "arrays",
        "config": {"from": "arrays"},
        "kind": kind,
        "channels": list(channels),
        "units": list(units),
        "fs": float(fs),
        "n_samples": shape[2],
        "window_s": shape[2] / fs,
        "band": None if band is None else list(band),
        "notch_hz": None,
        "raw": False,
        "dtype": dtype,
        **({} if compression == "none" else {"compression": compression}),
        "subjects": "known",
        "waivers": [],
        "tasks": {name: {"kind": spec.kind, "classes": list(spec.classes), "unit": spec.unit} for name, spec in tasks.items()},
        "columns": sorted(columns),
        "tails": bool((columns["n_valid"] < shape[2]).any()),
        "channels_absent": not bool(columns["channel_present"].all()),
        "n_windows": shape[0],
        "folds": dict(sorted(Counter(columns["fold"].tolist()).items())),
        "n_rejected": 0,
        "rejected": {},
        "shards": shards,
    }
