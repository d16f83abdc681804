"""Scores of a running signal: samples come as CSV lines, a JSON line goes out for each window as soon as it is complete.

some-recorder | uv run apps/stream.py --ckpt runs/probe --source-fs 250 --channels MLII --units mV

A line is one sample of every channel; a first line of names may stand before, and a column time, t or timestamp gives seconds. Nothing is
dropped: a slow reader of the output holds the input back. The model is a folder of pretrain.py, probe.py, finetune.py or export.py.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

import console
from physio_data.streaming import Stream, StreamPlan, Window
from physio_data.timing import TIME_NAMES
from physio_data.windows import n_samples
from physio_models.contract import ANY, BUTTERWORTH, InputContract, SignalSpec
from physio_train import probe as probes


@dataclass(frozen=True, kw_only=True)
class StreamApp:
    """Scores of a signal on standard input."""

    ckpt: Path
    """A run, saved, probe, fine-tuned or exported folder."""
    source_fs: float
    """Rate of the samples, in Hz."""
    channels: tuple[str, ...] | None = None
    """Names of the columns, where no line of names stands before them."""
    units: tuple[str, ...] | None = None
    """Units of the channels. Default: the model's."""
    hop_s: float | None = None
    """From one window's start to the next one's, in seconds. Default: half a window."""
    settle_s: float = 0.0
    """No window begins within this time after the start and after a gap."""
    on_nan: Literal["error", "gap"] = "error"
    """What an empty field or nan is: an error, or a lost sample."""


class Scorer(NamedTuple):
    """A model of any kind: its contract, and what it says of windows (B, C, T): one mapping a window."""

    contract: InputContract
    say: Callable[[np.ndarray, SignalSpec], list[dict[str, Any]]]


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    app = tyro.cli(StreamApp, args=list(arguments), description=console.paragraphs(__doc__))
    given = {name: getattr(app, name) for name in ("channels", "units", "hop_s", "settle_s", "on_nan")}
    return {"windows": printed(stream(app.ckpt, sys.stdin, source_fs=app.source_fs, **given))}


def printed(lines: Iterable[Mapping[str, Any]]) -> int:
    """Print each mapping as one JSON line as soon as it is there; how many. `console.Stopped` where nobody reads them."""
    n = 0
    try:
        for line in lines:
            print(json.dumps(line), flush=True)
            n += 1
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise console.Stopped("nobody reads the output any more", 0) from None
    return n


def stream(
    ckpt: Path | str,
    lines: Iterable[str],
    *,
    source_fs: float,
    channels: Sequence[str] | None = None,
    units: Sequence[str] | None = None,
    hop_s: float | None = None,
    settle_s: float = 0.0,
    on_nan: Literal["error", "gap"] = "error",
) -> Iterator[dict[str, Any]]:
    """One mapping a window, in order: ``start_s`` and a score by class, or ``embedding`` where the model has no head.

    ValueError for a line that is no sample, samples that are not finite, a clock that jumps back, another rate, or channels that do not
    fit the model. What was read before is out by then.
    """
    scorer, lines = scorer_of(Path(ckpt)), iter(lines)
    names, time_column, lines = columns_of(lines, channels)
    contract = scorer.contract
    plan, spec = plan_of(contract, names, units, source_fs=source_fs, hop_s=hop_s, settle_s=settle_s, on_nan=on_nan)
    contract.check(spec)
    running = Stream(plan)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        sample, time_s = sample_of(line, number, len(names), time_column)
        yield from said(scorer, running.push(sample, time_s), spec)
    yield from said(scorer, running.close(), spec)


def said(scorer: Scorer, windows: list[Window], spec: SignalSpec) -> Iterator[dict[str, Any]]:
    """One line a window. Windows are scored one at a time, so that no digit depends on how many a chunk completed."""
    for window in windows:
        (line,) = scorer.say(window.x_CT[None], spec)
        yield {"start_s": round(window.start_s, 6)} | line


def scorer_of(ckpt: Path) -> Scorer:
    """A folder of any kind as a scorer."""
    if (ckpt / "model.onnx").is_file():
        from physio_models.export import Exported

        exported = Exported(ckpt)
        names = exported.labels["classes"] if exported.labels else None
        return Scorer(exported.contract, lambda x_BCT, spec: as_lines((out := exported(x_BCT, spec)).get("scores", out["embedding"]), names))
    if (meta := ckpt / probes.META_FILE).is_file() and "finetuned" in json.loads(meta.read_text(encoding="utf-8")):
        saved = importlib.import_module("downstream").load(ckpt)
        return Scorer(saved.contract, lambda x_BCT, spec: as_lines(saved.scores(x_BCT, spec), saved.task.columns))
    from physio_models.pretrained import from_pretrained

    encoder = from_pretrained(ckpt)
    if not meta.is_file():
        return Scorer(encoder.contract, lambda x_BCT, spec: as_lines(encoder(x_BCT, spec).pooled_BD.cpu().numpy(), None))
    probe = probes.load(ckpt)
    columns = probe.classes if probe.config.kind in ("multiclass", "multilabel") else (probe.more["task"],)

    def scores(x_BCT: np.ndarray, spec: SignalSpec) -> list[dict[str, Any]]:
        features = encoder.features(x_BCT, spec, level=probe.more["level"], pool=probe.more["pool"])
        return as_lines(probe.predict(features.cpu().numpy()), columns)

    return Scorer(encoder.contract, scores)


def as_lines(values_BK: np.ndarray, names: Sequence[str] | None) -> list[dict[str, Any]]:
    if names is None:
        return [{"embedding": [round(float(v), 6) for v in value_D]} for value_D in values_BK]
    return [{name: round(float(v), 6) for name, v in zip(names, value_K, strict=True)} for value_K in values_BK]


def columns_of(lines: Iterator[str], channels: Sequence[str] | None) -> tuple[tuple[str, ...], int | None, Iterator[str]]:
    """Channel names, the column of times if there is one, and the lines of samples."""
    first = next((line for line in lines if line.strip()), "")
    fields = [field.strip() for field in first.split(",")]
    if first and not all(is_number(field) for field in fields):
        times = [i for i, field in enumerate(fields) if field.lower() in TIME_NAMES or field.lower() == "time_s"]
        time_column = times[0] if times else None
        return tuple(field for i, field in enumerate(fields) if i != time_column), time_column, lines
    if channels is None:
        raise ValueError("the lines name no channels: put a line of names first, or name them with --channels")
    time_column = 0 if len(fields) == len(channels) + 1 else None
    return tuple(channels), time_column, chain([first], lines) if first else lines


def plan_of(
    contract: InputContract, names: tuple[str, ...], units: Sequence[str] | None, *, source_fs: float, hop_s: float | None, **more: Any
) -> tuple[StreamPlan, SignalSpec]:
    """How the stream becomes the contract's windows, and what these are."""
    hop = n_samples(contract.window_s / 2 if hop_s is None else hop_s, contract.fs)
    band = contract.spec.band
    if band is not None and contract.spec.filter != BUTTERWORTH:
        raise ValueError(
            f"the model's windows were filtered by {contract.filter!r}, which has no running form: use predict.py, or train on a store without --filter"
        )
    notch_hz = contract.notch_hz
    plan = StreamPlan(channels=names, fs_in=source_fs, fs=contract.fs, n_samples=contract.n_samples, hop=hop, band=band, notch_hz=notch_hz, **more)
    if units is None:
        units = [contract.units[0]] * len(names)
    spec = SignalSpec(
        channels=names,
        units=tuple("a.u." if unit == ANY else unit for unit in units),
        fs=contract.fs,
        n_samples=contract.n_samples,
        band=band,
        notch_hz=notch_hz,
        kind=contract.kind,
    )
    return plan, spec


def sample_of(line: str, number: int, n_channels: int, time_column: int | None) -> tuple[np.ndarray, float | None]:
    """One line as (C, 1) and its time; an empty field is a sample that was lost."""
    fields = line.split(",")
    wanted = n_channels + (time_column is not None)
    if len(fields) != wanted or not all(is_number(field) for field in fields):
        raise ValueError(f"line {number} of samples must be {wanted} numbers with commas between, got {line.strip()[:80]!r}")
    values = [float(field) if field.strip() else np.nan for field in fields]
    time_s = None if time_column is None else values.pop(time_column)
    return np.array(values)[:, None], time_s


def is_number(field: str) -> bool:
    if not field.strip():
        return True
    try:
        float(field)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    console.run(main)
