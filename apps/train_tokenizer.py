"""Train a tokenizer on the windows of a store: samples become symbols, frequent pairs of symbols become tokens.

uv run apps/train_tokenizer.py --data stores/mitbih --out tokenizers/mitbih.json --merges 1000
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

import console
from console import say
from physio_bpe import QUANTIZERS, Quantizer, Tokenizer, save, train
from physio_bpe.quantize import from_plain
from physio_data.store import Store, Stores

Scalar = int | float | bool | str
WINDOWS_AT_ONCE = 4096
SAMPLE = 256  # windows that the summary's compression is measured on


@dataclass(frozen=True, kw_only=True)
class TrainTokenizer:
    """Train a byte-pair tokenizer on the windows of one or several stores, as they are stored: filtered, resampled, in physical units.

    Windows are independent; nothing of a window, or with --layout per_lead of a lead, is joined with its neighbour. The same flags give the same file.
    """

    data: tuple[Path, ...]
    """Folders of stores, of one kind of window."""
    out: Path
    """The tokenizer's file, .json."""
    merges: int = 1000
    """Tokens to learn, beside the 256 symbols and the special ones."""
    quantizer: Literal["record_minmax", "lead_minmax", "percentile", "fixed_range", "mu_law"] = "record_minmax"
    """How a sample becomes a level; record_minmax with 26 levels is ECG-Byte's rule, fixed_range keeps amplitude (in mV)."""
    levels: int = 26
    """Levels of a sample, 2 to 256."""
    option: dict[str, Scalar] = field(default_factory=dict)
    """Fields of the quantizer, as KEY VALUE pairs: low_mv -2 high_mv 2."""
    layout: Literal["lead_major", "per_lead", "interleaved"] = "lead_major"
    """Order of the samples of a window: lead after lead in one line, each lead on its own, or sample by sample."""
    mode: Literal["bpe", "longest"] = "bpe"
    """The rule that encoding follows by default."""
    use: str = "train"
    """Folds to train on, separated by commas; `all` reads every window."""
    windows: int | None = None
    """Most windows to train on, drawn at random."""
    seed: int = 0
    """Which windows are drawn."""
    threads: int = 1
    """Threads of the trainer; the merges are the same for any number."""
    dry_run: bool = False
    """Encode the first windows as symbols, print shapes, write nothing."""


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(TrainTokenizer, args=arguments, description=TrainTokenizer.__doc__)
    quantizer = from_plain({"name": app.quantizer, "n_levels": app.levels, **app.option})
    store = Store(app.data[0]) if len(app.data) == 1 else Stores(list(app.data))
    rows_N = rows(app, store)
    if app.dry_run:
        say(described(store, rows_N))
        return dry_run(app, store, rows_N, quantizer)
    began = time.monotonic()
    try:
        say(described(store, rows_N))
        tokenizer = trained(app, store, rows_N, quantizer)
        found = measured(tokenizer, store, rows_N)
        app.out.parent.mkdir(parents=True, exist_ok=True)
    except KeyboardInterrupt:
        raise console.Stopped("nothing was written; the same command begins anew") from None
    save(tokenizer, app.out)
    told = {"tokenizer": str(app.out), "n_merges": tokenizer.n_merges, "n_tokens": tokenizer.n_tokens, "vocabulary_hash": tokenizer.vocabulary_hash}
    return told | {"data": store.hash, "n_windows": len(rows_N), **found, "seconds": round(time.monotonic() - began, 1)}


def described(store: Store | Stores, rows_N: np.ndarray) -> str:
    return f"{len(rows_N)} windows of {len(store.channels)} x {store.n_samples} samples at {store.fs:g} Hz"


def rows(app: TrainTokenizer, store: Store | Stores) -> np.ndarray:
    """Rows to train on: the folds asked for, less windows that lack a channel, and a random part of them if --windows says so."""
    found_N = store.rows(None if app.use == "all" else tuple(fold.strip() for fold in app.use.split(",")))
    if "channel_present" in store.index:
        whole_N = store.index["channel_present"][found_N].all(1)
        if not whole_N.all():
            say(f"{(~whole_N).sum()} windows lack a channel and are left out")
            found_N = found_N[whole_N]
    if app.windows is not None:
        if app.windows < 1:
            raise ValueError(f"--windows must be at least 1, got {app.windows}")
        found_N = np.sort(np.random.default_rng(app.seed).permutation(found_N)[: app.windows])
    if not len(found_N):
        raise ValueError(f"--use {app.use}: no whole window is left to train on")
    return found_N


def records(store: Store | Stores, rows_N: np.ndarray) -> Iterator[np.ndarray]:
    """The windows as batches (B, C, T); short tails one by one, without what was repeated behind them."""
    for start in range(0, len(rows_N), WINDOWS_AT_ONCE):
        batch = store.batch(rows_N[start : start + WINDOWS_AT_ONCE])
        signal_BCT, valid_BT = batch["signal"], batch.get("valid")
        if valid_BT is None or valid_BT.all():
            yield signal_BCT
        else:
            yield from (x_CT[:, valid_T] for x_CT, valid_T in zip(signal_BCT, valid_BT, strict=True))


def trained(app: TrainTokenizer, store: Store | Stores, rows_N: np.ndarray, quantizer: Quantizer) -> Tokenizer:
    with ExitStack() as stack:
        shown: list[console.Report] = []

        def merged(done: int, total: int) -> None:
            if not shown:
                shown.append(stack.enter_context(console.progress("merge", total)))
            shown[0](done, "merges")

        options = {"quantizer": quantizer, "layout": app.layout, "mode": app.mode, "n_threads": app.threads, "progress": merged}
        return train(records(store, rows_N), app.merges, **options)


def measured(tokenizer: Tokenizer, store: Store | Stores, rows_N: np.ndarray) -> dict[str, object]:
    """Symbols per token, and samples outside the scale, over the first windows trained on."""
    few = [x_CT for x in records(store, rows_N[:SAMPLE]) for x_CT in (x if x.ndim == 3 else x[None])]
    batch = tokenizer.encode_batch(few)
    n_symbols = int(batch.n_samples.sum()) * len(store.channels)
    return {"symbols_per_token": round(n_symbols / len(batch.ids), 3), "clipped": round(int(batch.n_clipped.sum()) / n_symbols, 6)}


def dry_run(app: TrainTokenizer, store: Store | Stores, rows_N: np.ndarray, quantizer: Quantizer) -> dict[str, object]:
    tokenizer = train(records(store, rows_N[:SAMPLE]), 0, quantizer=quantizer, layout=app.layout)
    encoded = tokenizer.encode_batch(store.batch(rows_N[:1])["signal"])
    say(f"{QUANTIZERS[app.quantizer].__name__}: {len(encoded.ids)} symbols a window before merging, {int(encoded.n_clipped.sum())} samples clipped")
    return {"n_windows": len(rows_N), "symbols": len(encoded.ids), "merges": app.merges, "dry_run": True}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    console.run(main)
