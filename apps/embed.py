"""Turn a store into a folder of features by any encoder: vectors or tokens, augmented views, the store's index beside them.

uv run apps/embed.py --ckpt runs/a --data stores/mitbih --out features/a                                 pooled vectors
uv run apps/embed.py --ckpt papagei_s.pt --reference papagei --data stores/ppg-raw --views 1 --out F     with an augmented view
uv run torchrun --nproc-per-node 2 apps/embed.py --ckpt runs/a --data stores/mitbih --out features/a     shared by two ranks
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

import compose
import console
from compose import Size
from console import say
from encoders import chosen
from features import disk_estimate, encoded, read_as, write_features
from physio_data.store import Store, Stores
from physio_models.contract import Encoder
from physio_train import RankLostError, World, session
from physio_train.features import check_space, open_features
from physio_train.loop import default_device

JOIN_S = 600.0  # how long ranks wait for one another


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Encode every window of a store into a folder of features. Killed, the same command goes on and ends with the same bytes."""

    data: tuple[Path, ...]
    """Folders of stores, of one kind of window."""
    out: Path
    """The folder of features."""
    ckpt: Path | None = None
    """A trained encoder: a run folder (its best step), a step folder, a saved folder, or an original's file with --reference."""
    reference: str | None = None
    """The row of MODELS whose original wrote the file given by --ckpt."""
    model: str | None = None
    """An untrained encoder instead: a row of MODELS."""
    init_seed: int = 0
    """The untrained encoder's initialisation."""
    size: Size = "fast"
    """The untrained encoder's preset."""
    tokenizer: Path | None = None
    """A tokenizer's file, for an untrained encoder that reads tokens."""
    level: str | None = None
    """A level of the encoder, or all of them, pooled and concatenated. Default: the deepest."""
    pool: Literal["mean", "max", "std", "peak", "mean+max", "mean+std", "mean+max+std", "tokens"] = "mean"
    """How a level's tokens become one vector; tokens keeps them all, (N, n, D)."""
    views: int = 0
    """Augmented views of every window; they need a store prepared with --raw."""
    augmentation: str = "st_sae"
    """How views are made: a row of the augmentation presets (papagei, st_sae, cwt_mae, ecg_encoder)."""
    view_seed: int = 0
    """Which draws of the augmentation."""
    windows: bool = False
    """Keep the windows too, filtered and in physical units (windows.npy, float32)."""
    bare: bool = False
    """One view as (N, D) and windows as (N, T), as the original pipeline caches them."""
    use: str = "all"
    """Folds to encode, separated by commas; `all` takes every window."""
    dtype: Literal["float32", "float16"] = "float32"
    """How features are stored."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """How they are computed; auto is bf16 where this machine multiplies it in hardware."""
    batch_size: int = 256
    """Windows encoded at once."""
    dry_run: bool = False
    """Encode a few windows, print shapes and the disk that all of them would take; write nothing."""


def main(arguments: Sequence[str]) -> Mapping[str, object] | None:
    app = tyro.cli(Embed, args=list(arguments), description=console.paragraphs(__doc__))
    if app.batch_size < 1 or app.views < 0:
        raise ValueError(f"--batch-size must be at least 1 and --views at least 0, got {app.batch_size} and {app.views}")
    began = time.monotonic()
    try:
        with session(timeout_s=JOIN_S) as world:
            summary = run(app, world)
    except RankLostError as error:
        raise console.Failed(f"{error}; the same command goes on with what is missing") from None
    return None if summary is None else {**summary, "seconds": round(time.monotonic() - began, 1)}


def run(app: Embed, world: World) -> dict[str, object] | None:
    store = compose.open_stores(app.data)
    encoder = opened(app, store)
    rows_N = None if app.use == "all" else compose.rows_of(store, [fold.strip() for fold in app.use.split(",")])
    n = len(store) if rows_N is None else len(rows_N)
    asked = {
        "level": app.level,
        "pool": app.pool,
        "views": app.views,
        "augmentation": app.augmentation,
        "windows": app.windows,
        "bare": app.bare,
        "dtype": app.dtype,
    }
    if app.dry_run:
        return dry_run(app, encoder, store, n, asked) if world.is_main else None
    if world.is_main:
        say(f"{n} windows of {len(store.channels)} x {store.n_samples} at {store.fs:g} Hz, {disk_estimate(encoder, store, n, **asked) / 1e9:.3f} GB to write")
    with console.progress("embed", -(-n // world.world_size), quiet=not world.is_main) as show:
        began = time.monotonic()
        path = write_features(
            encoder,
            store,
            app.out,
            rows=rows_N,
            view_seed=app.view_seed,
            precision=app.precision,
            batch_size=app.batch_size,
            progress=lambda done, total: show(done, f"of {total}, {done / max(1e-9, time.monotonic() - began):.0f} windows/s"),
            **asked,
        )
    if not world.is_main:
        return None
    made = open_features(path, verify=False)
    array = made.z if made.z is not None else made.tokens
    return {
        "features": str(path),
        "windows": len(made),
        "shape": list(array.shape),
        "views": made.n_views,
        "model": made.meta["model"]["hash"],
        "level": made.meta["level"],
    }


def opened(app: Embed, store: Store | Stores) -> Encoder:
    """The encoder on this rank's device. An untrained one takes the store's windows as they are read."""
    origin = chosen(store, ckpt=app.ckpt, reference=app.reference, model=app.model, init_seed=app.init_seed, size=app.size, tokenizer=app.tokenizer)
    encoder = origin.open(store)
    if encoder.untrained:
        encoder.contract = replace(encoder.contract, band=read_as(store).band)
    return encoder.to(default_device())


def dry_run(app: Embed, encoder: Encoder, store: Store | Stores, n: int, asked: Mapping[str, object]) -> dict[str, object]:
    """Shapes, and whether everything would fit on the disk."""
    needed = disk_estimate(encoder, store, n, **asked)
    check_space(app.out, needed)
    level = app.level or encoder.level_names[-1]
    batch = store.batch(store.rows()[:4])
    with torch.inference_mode():
        found = encoded(encoder, batch["signal"], read_as(store), level=level, pool=app.pool, valid_BT=batch.get("valid"))
    say(f"features {found.shape} of level {level}, pool {app.pool}; levels are {', '.join(encoder.level_names)}; {needed / 1e9:.3f} GB for {n} windows")
    return {"dry_run": True, "features": list(found.shape), "windows": n, "bytes": needed, "levels": list(encoder.level_names)}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
