"""Features of a whole store by any encoder, as a folder: what `embed.py` does, for other apps to call.

Shape letters: N windows, B windows of a batch, C channels, T samples, D features, n tokens, A views.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from compose import fast_precision, spec_of
from physio_data.augment import PRESETS, Augmentation, augment, then_filter
from physio_data.filters import notch
from physio_data.store import Store, Stores
from physio_models.contract import Encoder, SignalSpec
from physio_models.pooling import POOLS, pool_levels
from physio_train import filling
from physio_train.features import n_bytes
from physio_train.loop import autocast

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Batches of a store, (B, C, T) in physical units and filtered; of a raw store also augmented views, made before the filter."""

    store: Any  # Store or Stores
    rows_N: np.ndarray
    band: tuple[float | None, float | None] | None  # Hz, still to be applied; None: nothing is
    filter: str
    notch_hz: float | None
    steps: tuple[Augmentation, ...]
    n_views: int
    seed: int

    def __call__(self, at: slice) -> dict[str, Any]:
        batch = dict(self.store.batch(self.rows_N[at]))
        raw_BCT = batch["signal"]
        batch["signal"] = self._filtered(raw_BCT)
        views = (augment(raw_BCT, self.store.fs, self.steps, seed=self.seed, epoch=0, index_B=batch["index"], view=a) for a in range(self.n_views))
        return batch | {"views": [self._filtered(view_BCT) for view_BCT in views]}

    def _filtered(self, x_BCT: np.ndarray) -> np.ndarray:
        if self.notch_hz is not None:
            x_BCT = notch(x_BCT, self.store.fs, self.notch_hz)
        return x_BCT if self.band is None else then_filter(x_BCT, self.store.fs, self.band, self.filter).astype(np.float32)


def write_features(
    encoder: Encoder,
    store: Store | Stores,
    out: Path | str,
    *,
    level: str | None = None,
    pool: str = "mean",
    views: int = 0,
    augmentation: str = "st_sae",
    view_seed: int = 0,
    windows: bool = False,
    bare: bool = False,
    rows: np.ndarray | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    precision: Precision = "fp32",
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Encode a store into the folder `out` (layout: `physio_train.features`) and return it; every rank of a job calls this.

    `level` is one of the encoder's or `all` (None: the deepest), `pool` as in a probe, or `tokens` for all tokens of one level (N, n, D). `views` augmented
    views of each window need a raw store (`prepare --raw`): augment by a row of PRESETS, filter, normalise, encode. `windows` keeps the filtered windows.
    `bare` shapes z_aug (N, D) and windows (N, T), as the original pipeline caches them. `rows` are store rows (None: all). A folder that is whole is left
    as it is, one that was cut off is gone on with, bit for bit. ContractError: the store does not fit the encoder. ValueError: another folder is there,
    the disk is too small, views of a filtered store.
    """
    level = level if level is not None else encoder.level_names[-1]
    reader, spec = _reader(store, rows, views, augmentation, view_seed)
    encoder.contract.check(spec)
    _check(encoder, level, pool, views, bare, len(store.channels))
    precision = fast_precision() if precision == "auto" else precision
    n = len(reader.rows_N)

    def features(x_BCT: np.ndarray, batch: Mapping[str, Any]) -> np.ndarray:
        with autocast(precision, encoder.device):
            return encoded(encoder, x_BCT, spec, level=level, pool=pool, valid_BT=batch.get("valid"), channel_present_BC=batch.get("channel_present"))

    with torch.inference_mode():
        first = reader(slice(0, 1))
        shapes = shapes_of(features(first["signal"], first).shape[1:], n, views, dtype, (len(store.channels), store.n_samples) if windows else None, bare)
        made = made_by(encoder, store, reader) | {"level": level, "pool": pool, "precision": precision}
        plan = made | {"shapes": {name: list(shape) for name, (shape, _) in shapes.items()}, "dtype": dtype, "batch_size": batch_size}
        plan |= {"device": encoder.device.type, "windows": windows, "rows": hashlib.sha256(reader.rows_N.astype("<i8").tobytes()).hexdigest()}
        begun = filling.begin(out, plan, shapes)
        if begun is None:
            return Path(out)
        name = "tokens" if pool == "tokens" else "z"

        def pieces(batch: Mapping[str, Any], at: slice) -> list[filling.Piece]:
            found = [(name, at.start, features(batch["signal"], batch))]
            found += [("z_aug", a * n + at.start, features(view_BCT, batch)) for a, view_BCT in enumerate(batch["views"])]
            return found + ([("windows", at.start, batch["signal"][:, 0] if bare else batch["signal"])] if windows else [])

        filling.fill(begun, n, batch_size, reader, pieces, progress=progress)
        return filling.finish(begun, {**made, "signal": signal_of(store, spec)}, index_of(store, rows))


def encoded(
    encoder: Encoder,
    x_BCT: np.ndarray | Tensor,
    spec: SignalSpec,
    *,
    level: str,
    pool: str,
    valid_BT: np.ndarray | None = None,
    channel_present_BC: np.ndarray | None = None,
) -> np.ndarray:
    """Pooled features (B, D) of windows, or with pool `tokens` those of a level (B, n, D), 0 past a short tail; float32."""
    x, valid, present_BC = encoder.prepare(x_BCT, spec, valid_BT=valid_BT, channel_present_BC=channel_present_BC)
    out = encoder.model.encode(x, valid_BT=valid, channel_present_BC=present_BC)
    real = None if valid is None else encoder.model.token_valid(valid)
    if pool == "tokens":
        tokens_BND = out.levels[level]
        found = tokens_BND if real is None else tokens_BND.masked_fill(~real[level][..., None], 0.0)
    else:
        found = pool_levels(out, level, pool, real)
    return found.float().cpu().numpy()


def disk_estimate(encoder: Encoder, store: Store | Stores, n: int, **asked: Any) -> int:
    """Bytes that the arrays of `write_features` would take, for windows of which one is encoded."""
    reader, spec = _reader(store, None, 0, asked["augmentation"], 0)
    first = reader(slice(0, 1))
    level = asked["level"] or encoder.level_names[-1]
    with torch.inference_mode():
        one = encoded(
            encoder, first["signal"], spec, level=level, pool=asked["pool"], valid_BT=first.get("valid"), channel_present_BC=first.get("channel_present")
        )
    signal_CT = (len(store.channels), store.n_samples) if asked["windows"] else None
    return n_bytes(shapes_of(one.shape[1:], n, asked["views"], asked["dtype"], signal_CT, asked["bare"]))


def shapes_of(row: tuple[int, ...], n: int, views: int, dtype: str, signal_CT: tuple[int, int] | None, bare: bool) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype) of the arrays; `row` is the shape of one window's features."""
    shapes: dict[str, tuple[tuple[int, ...], str]] = {"tokens" if len(row) == 2 else "z": ((n, *row), dtype)}
    if views:
        shapes["z_aug"] = ((n, *row) if bare else (views, n, *row), dtype)
    if signal_CT is not None:
        shapes["windows"] = ((n, signal_CT[1]) if bare else (n, *signal_CT), "float32")
    return shapes


def _reader(store: Store | Stores, rows: np.ndarray | None, views: int, augmentation: str, seed: int) -> tuple[Reader, SignalSpec]:
    """How a store is read, and what comes out of it."""
    manifest = store.manifest
    raw = bool(manifest.get("raw"))
    if views and not raw:
        raise ValueError("augmented views change the waveform before it is filtered, and this store is filtered: prepare it anew with --raw")
    if augmentation not in PRESETS:
        raise ValueError(f"augmentation must be one of {', '.join(PRESETS)}, got {augmentation!r}")
    band = tuple(manifest["band"]) if raw and manifest.get("band") else None
    notch_hz = manifest.get("notch_hz") if raw else None
    spec = replace(spec_of(store), band=band, notch_hz=notch_hz) if raw else spec_of(store)
    steps = PRESETS[augmentation] if views else ()
    reader = Reader(
        store=store,
        rows_N=store.rows() if rows is None else np.asarray(rows, np.int64),
        band=band,
        filter=spec.filter,
        notch_hz=notch_hz,
        steps=steps,
        n_views=views,
        seed=seed,
    )
    return reader, spec


def read_as(store: Store | Stores) -> SignalSpec:
    """What the windows of a store are when they reach the encoder: those of a raw store are filtered by then."""
    return _reader(store, None, 0, next(iter(PRESETS)), 0)[1]


def _check(encoder: Encoder, level: str, pool: str, views: int, bare: bool, n_channels: int) -> None:
    if level != "all" and level not in encoder.level_names:
        raise ValueError(f"level must be all or one of {', '.join(encoder.level_names)}, got {level!r}")
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
    if pool == "tokens" and level == "all":
        raise ValueError("pool tokens keeps the tokens of one level: name it, as level='" + encoder.level_names[-1] + "'")
    if pool == "tokens" and views:
        raise ValueError("views are kept as one vector each: choose a pool, or no views with pool tokens")
    if pool == "tokens" and getattr(encoder.config, "input", "signal") == "tokens":
        raise ValueError("a window has as many tokens as it happens to compress to, so tokens have no common shape: choose a pool, as mean")
    if bare and (views > 1 or n_channels > 1):
        raise ValueError(f"the bare layout has one view and one channel, got {views} views and {n_channels} channels")


def made_by(encoder: Encoder, store: Store | Stores, reader: Reader) -> dict[str, Any]:
    """What made the features, as meta.json keeps it."""
    contract = encoder.contract.to_json()
    config = getattr(encoder, "config", None)
    filtered = {"band": reader.band, "filter": reader.filter, "notch_hz": reader.notch_hz}
    return {
        "model": {
            "name": encoder.name,
            "config": dataclasses.asdict(config) if dataclasses.is_dataclass(config) else None,
            "hash": model_hash(encoder),
            "untrained": encoder.untrained,
        },
        "stores": store.hash.split(","),
        "contract": contract,
        "contract_hash": hashlib.sha256(json.dumps(contract, sort_keys=True).encode()).hexdigest(),
        "seen": encoder.seen,
        "views": None if not reader.n_views else {"n": reader.n_views, "seed": reader.seed, "steps": [_step(step) for step in reader.steps]},
        "filtered_here": filtered if reader.band is not None or reader.notch_hz is not None else None,
    }


def _step(step: Augmentation) -> dict[str, Any]:
    return {"name": type(step).__name__, **dataclasses.asdict(step)}


def model_hash(encoder: Encoder) -> str:
    """SHA-256 of a network's weights and running statistics, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def signal_of(store: Store | Stores, spec: SignalSpec) -> dict[str, Any]:
    """What the windows are and what may be asked of them: for readers that have the features alone."""
    keys = {"kind": store.kind, "channels": store.channels, "units": store.units, "fs": store.fs, "n_samples": store.n_samples, "window_s": store.window_s}
    return keys | {"band": spec.band, "tasks": store.tasks, "subjects": store.manifest.get("subjects", "known"), "waivers": store.manifest.get("waivers", [])}


def index_of(store: Store | Stores, rows: np.ndarray | None) -> dict[str, np.ndarray]:
    """The store's index row for row. Of a part of its rows `next` counts in rows of the part, and `store_row` says which they are."""
    if rows is None:
        return {name: store.index[name] for name in store.index}
    rows = np.asarray(rows, np.int64)
    columns = {name: store.index[name][rows] for name in store.index}
    if "next" in columns:
        place = np.full(len(store) + 1, -1, np.int64)  # the last entry answers for -1, no next
        place[rows] = np.arange(len(rows))
        columns["next"] = place[columns["next"]]
    return columns | {"store_row": rows}
